/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "status.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>


/* pos is NULL once something did not fit */

typedef struct {
    unsigned char        *pos;
    const unsigned char  *end;
} kx_status_writer_t;


/* what there is to say of a breaker but its state */

typedef struct {
    const char           *name;      /* of Prometheus, after "kontext_" */
    const char           *member;    /* of JSON */
    const char           *type;
    const char           *help;
    size_t                offset;
} kx_status_breaker_number_t;


/* a number of the status that is not one of a list */

typedef struct {
    const char           *name;      /* of Prometheus, after "kontext_" */
    const char           *group;     /* of JSON, a change begins an object */
    const char           *member;
    const char           *help;
    unsigned              counter;
    size_t                offset;
} kx_status_number_t;


static void kx_status_add(kx_status_writer_t *w, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static uint64_t kx_status_number(const void *s, size_t offset);
static void kx_status_json_list(kx_status_writer_t *w, const char *name,
    const char *const *names, const uint64_t *values, unsigned n);
static void kx_status_json_calls(kx_status_writer_t *w,
    const kx_status_t *s);
static void kx_status_json_breakers(kx_status_writer_t *w,
    const kx_status_t *s);
static void kx_status_breakers(kx_status_writer_t *w, const kx_status_t *s);
static void kx_status_sample(kx_status_writer_t *w, const char *name,
    const kx_status_breaker_t *b, uint64_t value);
static void kx_status_json_times(kx_status_writer_t *w, const char *name,
    const kx_histogram_t *h);
static void kx_status_family(kx_status_writer_t *w, const char *name,
    const char *type, const char *help);
static void kx_status_list(kx_status_writer_t *w, const char *name,
    const char *label, const char *const *names, const uint64_t *values,
    unsigned n);
static void kx_status_times(kx_status_writer_t *w, const char *name,
    const char *help, const kx_histogram_t *h);
static uint64_t kx_status_total(const kx_histogram_t *h);


static const char *const  kx_status_chats[] = {
    "off", "bypass", "pending", "filled", "no_fill", "error"
};


static const char *const  kx_status_forms[] = { "member", "text" };

static const char *const  kx_status_calls[] = {
    "init", "preload", "error", "debug"
};


static const char *const  kx_status_outcomes[] = {
    "filled", "no_fill", "error", "ok", "failed", "cancelled"
};


static const char *const  kx_status_states[] = {
    "closed", "open", "half_open"
};


static const kx_status_breaker_number_t  kx_status_breaker_numbers[] = {

    { "calls_open", "calls", "gauge",
      "Calls that the ad server has not answered.",
      offsetof(kx_status_breaker_t, calls) },

    { "calls_open_max", "max_calls", "gauge",
      "Calls that there may be at the same time, 0: any number.",
      offsetof(kx_status_breaker_t, max_calls) },

    { "breaker_opened_total", "opened", "counter",
      "How often the circuit breaker has opened.",
      offsetof(kx_status_breaker_t, opened) },

    { "breaker_refused_total", "refused", "counter",
      "Preloads that were not sent because it was open.",
      offsetof(kx_status_breaker_t, refused) },

    { "calls_busy_total", "busy", "counter",
      "Preloads that were not sent because there were too many calls.",
      offsetof(kx_status_breaker_t, busy) },

    { NULL, NULL, NULL, NULL, 0 }
};


/* upper bounds of the buckets but the last, ms */

static const unsigned  kx_status_bounds[KX_STATUS_BUCKETS - 1] = {
    5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000
};


static const kx_status_number_t  kx_status_numbers[] = {

    { "zone_bytes", "zone", "bytes", "Size of the sessions and their store.",
      0, offsetof(kx_status_t, size) },

    { "sessions", "sessions", "live", "Sessions that live.",
      0, offsetof(kx_status_t, sessions) },

    { "session_slots", "sessions", "slots", "Sessions that there is room for.",
      0, offsetof(kx_status_t, slots) },

    { "sessions_evicted_total", "sessions", "evicted",
      "Sessions that were closed because there was no room.",
      1, offsetof(kx_status_t, evicted) },

    { "sessions_expired_total", "sessions", "expired",
      "Sessions that were closed because they were idle.",
      1, offsetof(kx_status_t, expired) },

    { "zone_repairs_total", "sessions", "repaired",
      "Repairs of the zone after a worker had died.",
      1, offsetof(kx_status_t, repaired) },

    { "store_blocks", "store", "blocks", "Blocks of the session API's store.",
      0, offsetof(kx_status_t, blocks) },

    { "store_used_blocks", "store", "used", "Blocks of it that are in use.",
      0, offsetof(kx_status_t, used_blocks) },

    { "event_streams", "streams", "open", "Event streams that are open.",
      0, offsetof(kx_status_t, streams) },

    { "event_streams_max", "streams", "max", "Event streams that may be open.",
      0, offsetof(kx_status_t, max_streams) },

    { "reports_dropped_total", "reports", "dropped",
      "Reports to the ad server that were not sent, to spare it.",
      1, offsetof(kx_status_t, n.dropped) },

    { "records_found_total", "records", "found",
      "Sessions that were found in the store of the nodes.",
      1, offsetof(kx_status_t, n.records.found) },

    { "records_missing_total", "records", "missing",
      "Sessions that were not there.",
      1, offsetof(kx_status_t, n.records.missing) },

    { "records_unreadable_total", "records", "unreadable",
      "Records of sessions that could not be read.",
      1, offsetof(kx_status_t, n.records.unreadable) },

    { "records_fetch_failed_total", "records", "fetch_failed",
      "Sessions that the store did not answer for.",
      1, offsetof(kx_status_t, n.records.fetch_failed) },

    { "records_saved_total", "records", "saved",
      "Sessions that were written to the store.",
      1, offsetof(kx_status_t, n.records.saved) },

    { "records_saved_bytes_total", "records", "saved_bytes",
      "Their size.", 1, offsetof(kx_status_t, n.records.bytes) },

    { "records_save_failed_total", "records", "save_failed",
      "Sessions that could not be written.",
      1, offsetof(kx_status_t, n.records.save_failed) },

    { "records_deleted_total", "records", "deleted",
      "Sessions that were deleted in the store.",
      1, offsetof(kx_status_t, n.records.deleted) },

    { "records_refused_total", "records", "refused",
      "Calls of the store that were not made, to spare it.",
      1, offsetof(kx_status_t, n.records.refused) },

    { NULL, NULL, NULL, NULL, 0, 0 }
};


unsigned
kx_status_bucket(uint64_t ms)
{
    unsigned  i;

    for (i = 0; i < KX_STATUS_BUCKETS - 1; i++) {
        if (ms <= kx_status_bounds[i]) {
            break;
        }
    }

    return i;
}


unsigned char *
kx_status_json(unsigned char *dst, const unsigned char *end,
    const kx_status_t *s)
{
    unsigned                   i;
    const char                *group;
    const char                *reasons[KX_REASONS];
    kx_status_writer_t         w;
    const kx_status_number_t  *number;

    w.pos = dst;
    w.end = end;

    kx_status_add(&w, "{\"version\":\"%s\",\"zone\":{\"name\":\"%.*s\"",
                  s->version, (int) s->zone.len, (char *) s->zone.data);

    group = "zone";

    for (number = kx_status_numbers; number->name != NULL; number++) {

        if (strcmp(number->group, group) != 0) {
            group = number->group;
            kx_status_add(&w, "},\"%s\":{", group);

        } else {
            kx_status_add(&w, ",");
        }

        kx_status_add(&w, "\"%s\":%" PRIu64, number->member,
                      kx_status_number(s, number->offset));
    }

    for (i = 0; i < KX_REASONS; i++) {
        reasons[i] = (const char *) kx_reason_name((kx_reason_e) i)->data;
    }

    kx_status_add(&w, "},\"chats\":");
    kx_status_json_list(&w, NULL, kx_status_chats, s->n.chats,
                        KX_STATUS_CHATS);
    kx_status_json_list(&w, "reasons", &reasons[1], &s->n.reasons[1],
                        KX_REASONS - 1);
    kx_status_json_list(&w, "injected", kx_status_forms, s->n.injected, 2);
    kx_status_json_calls(&w, s);
    kx_status_json_times(&w, "preload", &s->n.preload);
    kx_status_json_times(&w, "hold", &s->n.hold);
    kx_status_json_breakers(&w, s);
    kx_status_add(&w, "}\n");

    return w.pos;
}


static void
kx_status_add(kx_status_writer_t *w, const char *format, ...)
{
    int      n;
    size_t   left;
    va_list  args;

    if (w->pos == NULL) {
        return;
    }

    left = (size_t) (w->end - w->pos);

    va_start(args, format);
    n = vsnprintf((char *) w->pos, left, format, args);
    va_end(args);

    if (n < 0 || (size_t) n >= left) {
        w->pos = NULL;
        return;
    }

    w->pos += n;
}


static uint64_t
kx_status_number(const void *s, size_t offset)
{
    uint64_t  n;

    memcpy(&n, (const char *) s + offset, sizeof(uint64_t));

    return n;
}


static void
kx_status_json_list(kx_status_writer_t *w, const char *name,
    const char *const *names, const uint64_t *values, unsigned n)
{
    unsigned  i;

    if (name != NULL) {
        kx_status_add(w, ",\"%s\":", name);
    }

    for (i = 0; i < n; i++) {
        kx_status_add(w, "%s\"%s\":%" PRIu64, i ? "," : "{", names[i],
                      values[i]);
    }

    kx_status_add(w, "}");
}


static void
kx_status_json_calls(kx_status_writer_t *w, const kx_status_t *s)
{
    unsigned  i, j;

    kx_status_add(w, ",\"calls\":{");

    for (i = 0; i < KX_STATUS_CALLS; i++) {
        kx_status_add(w, "%s\"%s\":{\"attempts\":%" PRIu64, i ? "," : "",
                      kx_status_calls[i], s->n.attempts[i]);

        for (j = 0; j < KX_CALL_OUTCOMES; j++) {
            kx_status_add(w, ",\"%s\":%" PRIu64, kx_status_outcomes[j],
                          s->n.calls[i][j]);
        }

        kx_status_add(w, "}");
    }

    kx_status_add(w, "}");
}


static void
kx_status_json_breakers(kx_status_writer_t *w, const kx_status_t *s)
{
    unsigned                           i;
    const kx_status_breaker_t         *b;
    const kx_status_breaker_number_t  *number;

    kx_status_add(w, ",\"breakers\":[");

    for (i = 0; i < s->nbreakers; i++) {
        b = &s->breakers[i];

        kx_status_add(w, "%s{\"server\":\"%.*s\",\"location\":\"%.*s\","
                      "\"state\":\"%s\"", i ? "," : "",
                      (int) b->server.len, (char *) b->server.data,
                      (int) b->location.len, (char *) b->location.data,
                      kx_status_states[b->state]);

        for (number = kx_status_breaker_numbers; number->name; number++) {
            kx_status_add(w, ",\"%s\":%" PRIu64, number->member,
                          kx_status_number(b, number->offset));
        }

        kx_status_add(w, "}");
    }

    kx_status_add(w, "]");
}


static void
kx_status_json_times(kx_status_writer_t *w, const char *name,
    const kx_histogram_t *h)
{
    unsigned  i;

    kx_status_add(w, ",\"%s_ms\":{\"count\":%" PRIu64 ",\"sum\":%" PRIu64
                  ",\"buckets\":{", name, kx_status_total(h), h->sum);

    for (i = 0; i < KX_STATUS_BUCKETS - 1; i++) {
        kx_status_add(w, "\"%u\":%" PRIu64 ",", kx_status_bounds[i],
                      h->buckets[i]);
    }

    kx_status_add(w, "\"more\":%" PRIu64 "}}", h->buckets[i]);
}


unsigned char *
kx_status_prometheus(unsigned char *dst, const unsigned char *end,
    const kx_status_t *s)
{
    unsigned                   i, j;
    const char                *reasons[KX_REASONS];
    kx_status_writer_t         w;
    const kx_status_number_t  *number;

    w.pos = dst;
    w.end = end;

    kx_status_family(&w, "info", "gauge", "The module.");
    kx_status_add(&w, "kontext_info{version=\"%s\",zone=\"%.*s\"} 1\n",
                  s->version, (int) s->zone.len, (char *) s->zone.data);

    for (number = kx_status_numbers; number->name != NULL; number++) {
        kx_status_family(&w, number->name,
                         number->counter ? "counter" : "gauge",
                         number->help);
        kx_status_add(&w, "kontext_%s %" PRIu64 "\n", number->name,
                      kx_status_number(s, number->offset));
    }

    for (i = 0; i < KX_REASONS; i++) {
        reasons[i] = (const char *) kx_reason_name((kx_reason_e) i)->data;
    }

    kx_status_family(&w, "chats_total", "counter",
                     "Chats by their $kontext_status.");
    kx_status_list(&w, "chats_total", "status", kx_status_chats, s->n.chats,
                   KX_STATUS_CHATS);

    kx_status_family(&w, "chats_without_ad_total", "counter",
                     "Chats without an ad by the module's own reason.");
    kx_status_list(&w, "chats_without_ad_total", "reason", &reasons[1],
                   &s->n.reasons[1], KX_REASONS - 1);

    kx_status_family(&w, "ads_injected_total", "counter",
                     "Answers with an ad by its form.");
    kx_status_list(&w, "ads_injected_total", "form", kx_status_forms,
                   s->n.injected, 2);

    kx_status_family(&w, "call_attempts_total", "counter",
                     "Requests that were sent to the ad server.");
    kx_status_list(&w, "call_attempts_total", "call", kx_status_calls,
                   s->n.attempts, KX_STATUS_CALLS);

    kx_status_family(&w, "calls_total", "counter",
                     "Calls of the ad server by how they have ended.");

    for (i = 0; i < KX_STATUS_CALLS; i++) {
        for (j = 0; j < KX_CALL_OUTCOMES; j++) {
            kx_status_add(&w, "kontext_calls_total{call=\"%s\",outcome=\"%s\"}"
                          " %" PRIu64 "\n", kx_status_calls[i],
                          kx_status_outcomes[j], s->n.calls[i][j]);
        }
    }

    kx_status_times(&w, "preload_seconds",
                    "How long the ad server took for a preload.",
                    &s->n.preload);
    kx_status_times(&w, "hold_seconds",
                    "How long the end of an answer was held for its ad.",
                    &s->n.hold);

    kx_status_breakers(&w, s);

    return w.pos;
}


static void
kx_status_breakers(kx_status_writer_t *w, const kx_status_t *s)
{
    unsigned                           i, j;
    const kx_status_breaker_t         *b;
    const kx_status_breaker_number_t  *number;

    if (s->nbreakers == 0) {
        return;
    }

    kx_status_family(w, "breaker_state", "gauge",
                     "The circuit breaker of an ad server, 1 for its state.");

    for (i = 0; i < s->nbreakers; i++) {
        b = &s->breakers[i];

        for (j = 0; j < sizeof(kx_status_states) / sizeof(char *); j++) {
            kx_status_add(w, "kontext_breaker_state{server=\"%.*s\","
                          "location=\"%.*s\",state=\"%s\"} %u\n",
                          (int) b->server.len, (char *) b->server.data,
                          (int) b->location.len, (char *) b->location.data,
                          kx_status_states[j], b->state == j);
        }
    }

    for (number = kx_status_breaker_numbers; number->name; number++) {
        kx_status_family(w, number->name, number->type, number->help);

        for (i = 0; i < s->nbreakers; i++) {
            kx_status_sample(w, number->name, &s->breakers[i],
                             kx_status_number(&s->breakers[i],
                                              number->offset));
        }
    }
}


static void
kx_status_sample(kx_status_writer_t *w, const char *name,
    const kx_status_breaker_t *b, uint64_t value)
{
    kx_status_add(w, "kontext_%s{server=\"%.*s\",location=\"%.*s\"} %"
                  PRIu64 "\n", name,
                  (int) b->server.len, (char *) b->server.data,
                  (int) b->location.len, (char *) b->location.data, value);
}


static void
kx_status_family(kx_status_writer_t *w, const char *name, const char *type,
    const char *help)
{
    kx_status_add(w, "# HELP kontext_%s %s\n# TYPE kontext_%s %s\n", name,
                  help, name, type);
}


static void
kx_status_list(kx_status_writer_t *w, const char *name, const char *label,
    const char *const *names, const uint64_t *values, unsigned n)
{
    unsigned  i;

    for (i = 0; i < n; i++) {
        kx_status_add(w, "kontext_%s{%s=\"%s\"} %" PRIu64 "\n", name, label,
                      names[i], values[i]);
    }
}


static void
kx_status_times(kx_status_writer_t *w, const char *name, const char *help,
    const kx_histogram_t *h)
{
    unsigned  i;
    uint64_t  n;

    kx_status_family(w, name, "histogram", help);

    n = 0;

    for (i = 0; i < KX_STATUS_BUCKETS - 1; i++) {
        n += h->buckets[i];

        kx_status_add(w, "kontext_%s_bucket{le=\"%g\"} %" PRIu64 "\n", name,
                      kx_status_bounds[i] / 1000.0, n);
    }

    kx_status_add(w, "kontext_%s_bucket{le=\"+Inf\"} %" PRIu64 "\n"
                  "kontext_%s_sum %" PRIu64 ".%03u\n"
                  "kontext_%s_count %" PRIu64 "\n",
                  name, kx_status_total(h),
                  name, h->sum / 1000, (unsigned) (h->sum % 1000),
                  name, kx_status_total(h));
}


static uint64_t
kx_status_total(const kx_histogram_t *h)
{
    unsigned  i;
    uint64_t  n;

    n = 0;

    for (i = 0; i < KX_STATUS_BUCKETS; i++) {
        n += h->buckets[i];
    }

    return n;
}
