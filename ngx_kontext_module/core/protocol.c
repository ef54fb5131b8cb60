/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "protocol.h"
#include "hash.h"
#include "json_scan.h"
#include "json_write.h"
#include "redact.h"

#include <math.h>
#include <stdlib.h>

#include <cjson/cJSON.h>


#define KX_BODY_SIZE           2048  /* of a body without messages, mostly */
#define KX_BODY_MESSAGE        128   /* and of each, besides its text */
#define KX_BODY_MAX            131072

#define kx_protocol_piece(w, s)                                               \
    kx_json_write_piece(w, s, sizeof(s) - 1)

#define KX_DAY                 86400000
#define KX_TIME_LEN            24
#define KX_DATE_LEN            10
#define KX_LAST_TIME           253402300799999ULL    /* the end of 9999 */

#define KX_INSTALL_DOMAIN      "ngx_kontext install id 1"
#define KX_INSTALL_FROM        1735689600000ULL      /* the start of 2025 */
#define KX_INSTALL_SPAN        31536000000ULL        /* and its length */


/* pos is NULL once something did not fit */

typedef struct {
    unsigned char        *pos;
    const unsigned char  *end;
} kx_writer_t;


/* a day as it is written, and the ms that the next one starts at, or 0 */

typedef struct {
    uint64_t              next;
    char                  date[KX_DATE_LEN];
} kx_day_t;


/* the text of a message, as it is sent */

typedef struct {
    kx_str_t              text;
    unsigned char        *copy;
    size_t                len;
    unsigned              raw;       /* it is the message's raw string */
} kx_said_t;


static int kx_ad_request_strings(void *dst, const void *src,
    const size_t *offsets, const kx_pool_t *pool);
static int kx_ad_request_string(kx_str_t *dst, const kx_str_t *src,
    const kx_pool_t *pool);
static void kx_protocol_additional(kx_json_writer_t *w,
    const kx_ad_request_t *r, const unsigned char *session,
    const unsigned char *bid);
static void kx_protocol_common(kx_json_writer_t *w, const kx_ad_request_t *r);
static void kx_protocol_placements(kx_json_writer_t *w,
    const kx_ad_request_t *r);
static size_t kx_protocol_size(const kx_ad_request_t *r);
static void kx_protocol_messages(kx_json_writer_t *w,
    const kx_ad_request_t *r);
static int kx_protocol_said(kx_said_t *said, kx_message_t *m,
    unsigned redact);
static void kx_protocol_message(kx_json_writer_t *w, const kx_message_t *m,
    const kx_said_t *said, size_t max, kx_day_t *day);
static void kx_protocol_sdk(kx_json_writer_t *w, const kx_ad_request_t *r);
static void kx_protocol_device(kx_json_writer_t *w, const kx_device_t *d);
static void kx_protocol_os(kx_json_writer_t *w, const kx_device_t *d);
static void kx_protocol_screen(kx_json_writer_t *w, const kx_device_t *d);
static void kx_protocol_character(kx_json_writer_t *w,
    const kx_character_t *c);
static void kx_protocol_regulatory(kx_json_writer_t *w,
    const kx_regulatory_t *g);

static void kx_protocol_add(kx_json_writer_t *w, const char *name,
    const kx_str_t *s);
static void kx_protocol_add_text(kx_json_writer_t *w, const char *name,
    const char *text);
static void kx_protocol_add_uuid(kx_json_writer_t *w, const char *name,
    const unsigned char *id);
static void kx_protocol_add_given(kx_json_writer_t *w, const char *name,
    const kx_str_t *s);
static void kx_protocol_add_number(kx_json_writer_t *w, const char *name,
    double n);
static void kx_protocol_add_flag(kx_json_writer_t *w, const char *name,
    int flag);

static void kx_write_member(kx_writer_t *w, const kx_ad_t *ad);
static void kx_write_url(kx_writer_t *w, const kx_ad_t *ad,
    const kx_bid_t *bid);
static void kx_write_literal(kx_writer_t *w, const char *s);
static void kx_write_uuid(kx_writer_t *w, const unsigned char id[KX_ID_LEN]);
static void kx_write_json(kx_writer_t *w, const kx_str_t *s);
static void kx_write_uri(kx_writer_t *w, const kx_str_t *s);
static void kx_write(kx_writer_t *w, const void *p, size_t len);

static void kx_time_write(char dst[32], uint64_t ms, kx_day_t *day);
static void kx_time_day(char date[KX_DATE_LEN], unsigned day);
static unsigned kx_time_year(unsigned year);
static unsigned kx_time_leap(unsigned year);
static inline char *kx_time_pair(char *dst, unsigned n);


/* the strings of a request, up to an offset that is none */

#define KX_NO_OFFSET  ((size_t) -1)

static const size_t  kx_ad_request_whos[] = {
    offsetof(kx_ad_request_t, publisher_token),
    offsetof(kx_ad_request_t, user_id),
    offsetof(kx_ad_request_t, conversation_id),
    offsetof(kx_ad_request_t, install_id),
    offsetof(kx_ad_request_t, sdk_name),
    offsetof(kx_ad_request_t, sdk_platform),
    offsetof(kx_ad_request_t, sdk_version),
    KX_NO_OFFSET
};


static const size_t  kx_ad_request_others[] = {
    offsetof(kx_ad_request_t, variant_id),
    offsetof(kx_ad_request_t, user_email),
    offsetof(kx_ad_request_t, device.type),
    offsetof(kx_ad_request_t, device.os),
    offsetof(kx_ad_request_t, device.os_version),
    offsetof(kx_ad_request_t, device.locale),
    offsetof(kx_ad_request_t, device.timezone),
    offsetof(kx_ad_request_t, device.user_agent),
    offsetof(kx_ad_request_t, character.id),
    offsetof(kx_ad_request_t, character.name),
    offsetof(kx_ad_request_t, character.avatar_url),
    offsetof(kx_ad_request_t, character.greeting),
    offsetof(kx_ad_request_t, character.persona),
    offsetof(kx_ad_request_t, regulatory.gdpr_consent),
    offsetof(kx_ad_request_t, regulatory.gpp),
    offsetof(kx_ad_request_t, regulatory.us_privacy),
    KX_NO_OFFSET
};


int
kx_ad_request_who(kx_ad_request_t *dst, const kx_ad_request_t *src,
    const kx_pool_t *pool)
{
    memset(dst, 0, sizeof(kx_ad_request_t));

    dst->consent = src->consent;
    dst->has_session = src->has_session;
    memcpy(dst->session, src->session, KX_ID_LEN);

    return kx_ad_request_strings(dst, src, kx_ad_request_whos, pool);
}


int
kx_ad_request_copy(kx_ad_request_t *dst, const kx_ad_request_t *src,
    const kx_pool_t *pool)
{
    unsigned    i, n;
    kx_str_t   *tags;
    const int  *sids;

    *dst = *src;

    dst->messages = NULL;
    dst->nmessages = 0;

    if (kx_ad_request_strings(dst, src, kx_ad_request_whos, pool) != KX_OK
        || kx_ad_request_strings(dst, src, kx_ad_request_others, pool)
           != KX_OK)
    {
        return KX_ERROR;
    }

    n = src->character.ntags;

    if (n) {
        tags = pool->alloc(pool->data, n * sizeof(kx_str_t));
        if (tags == NULL) {
            return KX_ERROR;
        }

        for (i = 0; i < n; i++) {
            if (kx_ad_request_string(&tags[i], &src->character.tags[i], pool)
                != KX_OK)
            {
                return KX_ERROR;
            }
        }

        dst->character.tags = tags;
    }

    n = src->regulatory.ngpp_sid;
    sids = src->regulatory.gpp_sid;

    if (n) {
        dst->regulatory.gpp_sid = pool->alloc(pool->data, n * sizeof(int));
        if (dst->regulatory.gpp_sid == NULL) {
            return KX_ERROR;
        }

        memcpy(dst->regulatory.gpp_sid, sids, n * sizeof(int));
    }

    return KX_OK;
}


static int
kx_ad_request_strings(void *dst, const void *src, const size_t *offsets,
    const kx_pool_t *pool)
{
    kx_str_t        *to;
    const kx_str_t  *from;

    for ( /* void */ ; *offsets != KX_NO_OFFSET; offsets++) {
        to = (kx_str_t *) ((char *) dst + *offsets);
        from = (const kx_str_t *) ((const char *) src + *offsets);

        if (kx_ad_request_string(to, from, pool) != KX_OK) {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


static int
kx_ad_request_string(kx_str_t *dst, const kx_str_t *src,
    const kx_pool_t *pool)
{
    size_t          len;
    unsigned char  *p;

    len = src->len;

    if (len == 0) {
        dst->len = 0;
        dst->data = NULL;
        return KX_OK;
    }

    p = pool->alloc(pool->data, len);
    if (p == NULL) {
        return KX_ERROR;
    }

    memcpy(p, src->data, len);

    dst->data = p;
    dst->len = len;

    return KX_OK;
}


char *
kx_protocol_init(const kx_ad_request_t *r, size_t *len)
{
    kx_json_writer_t  w;

    kx_json_write_init(&w, KX_BODY_SIZE);

    kx_json_write_open(&w, NULL, '{');
    kx_protocol_common(&w, r);
    kx_protocol_sdk(&w, r);
    kx_json_write_close(&w, '}');

    return kx_json_write_done(&w, len);
}


char *
kx_protocol_preload(const kx_ad_request_t *r, size_t *len)
{
    kx_json_writer_t  w;

    kx_json_write_init(&w, kx_protocol_size(r));

    kx_json_write_open(&w, NULL, '{');
    kx_protocol_common(&w, r);
    kx_protocol_add(&w, "conversationId", &r->conversation_id);
    kx_protocol_add_uuid(&w, "sessionId", r->has_session ? r->session : NULL);
    kx_protocol_placements(&w, r);
    kx_protocol_messages(&w, r);
    kx_protocol_sdk(&w, r);
    kx_protocol_device(&w, &r->device);
    kx_protocol_character(&w, &r->character);
    kx_protocol_regulatory(&w, &r->regulatory);
    kx_protocol_add_given(&w, "userEmail", &r->user_email);
    kx_protocol_add_given(&w, "variantId", &r->variant_id);
    kx_json_write_close(&w, '}');

    return kx_json_write_done(&w, len);
}


char *
kx_protocol_error_report(const kx_ad_request_t *r, const char *error,
    const char *stack, const unsigned char *bid, size_t *len)
{
    kx_json_writer_t  w;

    kx_json_write_init(&w, KX_BODY_SIZE);

    kx_json_write_open(&w, NULL, '{');
    kx_protocol_add_text(&w, "error", error);
    kx_protocol_add_text(&w, "stack", stack);
    kx_protocol_additional(&w, r, NULL, bid);
    kx_json_write_close(&w, '}');

    return kx_json_write_done(&w, len);
}


char *
kx_protocol_debug_report(const kx_ad_request_t *r, const char *name,
    const char *data, size_t *len)
{
    kx_json_writer_t  w;

    kx_json_write_init(&w, KX_BODY_SIZE);

    kx_json_write_open(&w, NULL, '{');
    kx_protocol_add_text(&w, "name", name);
    kx_protocol_add_text(&w, "data", data);
    kx_protocol_additional(&w, r, r->has_session ? r->session : NULL, NULL);
    kx_json_write_close(&w, '}');

    return kx_json_write_done(&w, len);
}


static void
kx_protocol_additional(kx_json_writer_t *w, const kx_ad_request_t *r,
    const unsigned char *session, const unsigned char *bid)
{
    kx_json_write_open(w, "additionalData", '{');
    kx_protocol_add_given(w, "publisherToken", &r->publisher_token);
    kx_protocol_add_given(w, "conversationId", &r->conversation_id);
    kx_protocol_add_given(w, "userId", &r->user_id);
    kx_protocol_add_given(w, "installId", &r->install_id);
    kx_protocol_add_uuid(w, "sessionId", session);
    kx_protocol_add_uuid(w, "bidId", bid);
    kx_protocol_sdk(w, r);
    kx_json_write_close(w, '}');
}


void
kx_protocol_free(char *body)
{
    cJSON_free(body);
}


static void
kx_protocol_common(kx_json_writer_t *w, const kx_ad_request_t *r)
{
    kx_protocol_add(w, "publisherToken", &r->publisher_token);
    kx_protocol_add(w, "userId", &r->user_id);

    /* better none than one that is no UUID: older SDKs send none */

    kx_protocol_add_given(w, "installId", &r->install_id);
}


static void
kx_protocol_placements(kx_json_writer_t *w, const kx_ad_request_t *r)
{
    unsigned               i;
    static const kx_str_t  inline_ad = kx_string("inlineAd");

    kx_json_write_open(w, "enabledPlacementCodes", '[');

    if (r->nplacements == 0) {
        kx_protocol_add(w, NULL, &inline_ad);
    }

    for (i = 0; i < r->nplacements; i++) {
        kx_protocol_add(w, NULL, &r->placements[i]);
    }

    kx_json_write_close(w, ']');
}


/* what a body takes where little has to be escaped */

static size_t
kx_protocol_size(const kx_ad_request_t *r)
{
    size_t    size;
    unsigned  i;

    size = KX_BODY_SIZE;

    for (i = 0; i < r->nmessages; i++) {
        size += KX_BODY_MESSAGE + r->messages[i].raw.len
                + r->messages[i].content.len
                + r->messages[i].content.len / 8;
    }

    return (size < KX_BODY_MAX) ? size : KX_BODY_MAX;
}


/*
 * What is left out is always the beginning of the conversation: a gap would
 * change its meaning.
 */

static void
kx_protocol_messages(kx_json_writer_t *w, const kx_ad_request_t *r)
{
    size_t         left, max;
    kx_day_t       day;
    unsigned       i, n;
    kx_said_t      said[KX_MAX_MESSAGES];
    kx_message_t  *m;

    day.next = 0;
    left = KX_MAX_CONTENT;
    max = KX_MAX_CONTENT;
    n = 0;

    for (i = r->nmessages; i > 0 && n < KX_MAX_MESSAGES; i--) {
        m = &r->messages[i - 1];

        if (m->role != KX_ROLE_USER && m->role != KX_ROLE_ASSISTANT) {
            continue;
        }

        if (kx_protocol_said(&said[n], m, r->redact) != KX_OK) {
            kx_json_write_fail(w);
            break;
        }

        if (said[n].len > left) {

            if (n) {
                cJSON_free(said[n].copy);
                break;
            }

            /* the newest one alone, and cut */

            max = left;
            n = 1;
            i--;
            break;
        }

        left -= said[n].len;
        n++;
    }

    kx_json_write_open(w, "messages", '[');

    for ( /* void */ ; n > 0; i++) {
        m = &r->messages[i];

        if (m->role == KX_ROLE_USER || m->role == KX_ROLE_ASSISTANT) {
            n--;
            kx_protocol_message(w, m, &said[n], max, &day);
            cJSON_free(said[n].copy);
        }
    }

    kx_json_write_close(w, ']');
}


/* what is sent of a message's text; copy is to be released if it is KX_OK */

static int
kx_protocol_said(kx_said_t *said, kx_message_t *m, unsigned redact)
{
    int             rc;
    kx_str_t        text;
    unsigned char  *decoded;

    said->copy = NULL;

    if (m->raw.len == 0) {

        /* one as long as there may be was cut, whatever stood there */

        rc = kx_redact(&said->text, &said->copy, &m->content, redact,
                       m->content.len > KX_MAX_CONTENT - 4);

        said->raw = 0;
        said->len = (rc == KX_OK) ? kx_json_write_len(&said->text) : 0;

        return rc;
    }

    said->raw = 1;
    said->len = m->content.len;

    if ((redact & ~m->clean) == 0) {
        return KX_OK;
    }

    text = m->raw;
    decoded = NULL;

    if (memchr(m->raw.data, '\\', m->raw.len) != NULL) {

        decoded = cJSON_malloc(m->content.len + 1);
        if (decoded == NULL) {
            return KX_ERROR;
        }

        text.data = decoded;
        text.len = m->content.len;

        if (kx_json_copy(&m->raw, decoded, text.len) != (ssize_t) text.len) {
            cJSON_free(decoded);
            return KX_ERROR;
        }
    }

    rc = kx_redact(&said->text, &said->copy, &text, redact, 0);

    cJSON_free(decoded);

    if (said->copy) {
        said->raw = 0;
        said->len = kx_json_write_len(&said->text);

    } else if (rc == KX_OK) {
        m->clean |= redact;
    }

    return rc;
}


static void
kx_protocol_message(kx_json_writer_t *w, const kx_message_t *m,
    const kx_said_t *said, size_t max, kx_day_t *day)
{
    char      time[32];
    kx_str_t  created;

    kx_time_write(time, m->created, day);

    created.data = (unsigned char *) time;
    created.len = KX_TIME_LEN;

    kx_json_write_open(w, NULL, '{');
    kx_protocol_add(w, "id", &m->id);

    if (m->role == KX_ROLE_USER) {
        kx_protocol_piece(w, ",\"role\":\"user\",\"content\":");

    } else {
        kx_protocol_piece(w, ",\"role\":\"assistant\",\"content\":");
    }

    if (said->raw) {
        kx_json_write_raw(w, &m->raw);

    } else {
        kx_json_write_string(w, NULL, &said->text, max);
    }

    kx_protocol_piece(w, ",\"createdAt\":");
    kx_json_write_raw(w, &created);
    kx_json_write_close(w, '}');
}


static void
kx_protocol_sdk(kx_json_writer_t *w, const kx_ad_request_t *r)
{
    kx_json_write_open(w, "sdk", '{');
    kx_protocol_add(w, "name", &r->sdk_name);
    kx_protocol_add(w, "platform", &r->sdk_platform);
    kx_protocol_add(w, "version", &r->sdk_version);
    kx_json_write_close(w, '}');
}


static void
kx_protocol_device(kx_json_writer_t *w, const kx_device_t *d)
{
    kx_json_write_open(w, "device", '{');

    kx_json_write_open(w, "hardware", '{');
    kx_protocol_add(w, "type", &d->type);
    kx_json_write_close(w, '}');

    kx_protocol_os(w, d);
    kx_protocol_screen(w, d);

    if (d->user_agent.len) {
        kx_json_write_open(w, "network", '{');
        kx_protocol_add(w, "userAgent", &d->user_agent);
        kx_json_write_close(w, '}');
    }

    kx_json_write_close(w, '}');
}


static void
kx_protocol_os(kx_json_writer_t *w, const kx_device_t *d)
{
    kx_json_write_open(w, "os", '{');
    kx_protocol_add(w, "name", &d->os);
    kx_protocol_add(w, "version", &d->os_version);
    kx_protocol_add(w, "locale", &d->locale);
    kx_protocol_add(w, "timezone", &d->timezone);
    kx_json_write_close(w, '}');
}


static void
kx_protocol_screen(kx_json_writer_t *w, const kx_device_t *d)
{
    kx_json_write_open(w, "screen", '{');
    kx_protocol_add_number(w, "width", d->width);
    kx_protocol_add_number(w, "height", d->height);
    kx_protocol_add_number(w, "dpr", d->dpr);
    kx_protocol_add_flag(w, "darkMode", d->dark);
    kx_json_write_close(w, '}');
}


static void
kx_protocol_character(kx_json_writer_t *w, const kx_character_t *c)
{
    unsigned  i;

    if (c->id.len == 0 || c->name.len == 0) {
        return;
    }

    kx_json_write_open(w, "character", '{');

    kx_protocol_add(w, "id", &c->id);
    kx_protocol_add(w, "name", &c->name);
    kx_protocol_add_given(w, "avatarUrl", &c->avatar_url);
    kx_protocol_add_given(w, "greeting", &c->greeting);
    kx_protocol_add_given(w, "persona", &c->persona);
    kx_protocol_add_flag(w, "isNsfw", c->nsfw);

    if (c->has_tags) {
        kx_json_write_open(w, "tags", '[');

        for (i = 0; i < c->ntags; i++) {
            kx_protocol_add_given(w, NULL, &c->tags[i]);
        }

        kx_json_write_close(w, ']');
    }

    kx_json_write_close(w, '}');
}


static void
kx_protocol_regulatory(kx_json_writer_t *w, const kx_regulatory_t *g)
{
    unsigned  i;

    if (g->gdpr < 0 && g->coppa < 0 && g->gdpr_consent.len == 0
        && g->gpp.len == 0 && g->us_privacy.len == 0 && !g->has_gpp_sid)
    {
        return;
    }

    kx_json_write_open(w, "regulatory", '{');

    kx_protocol_add_number(w, "gdpr", g->gdpr);
    kx_protocol_add_given(w, "gdprConsent", &g->gdpr_consent);
    kx_protocol_add_number(w, "coppa", g->coppa);
    kx_protocol_add_given(w, "gpp", &g->gpp);
    kx_protocol_add_given(w, "usPrivacy", &g->us_privacy);

    if (g->has_gpp_sid) {
        kx_json_write_open(w, "gppSid", '[');

        for (i = 0; i < g->ngpp_sid; i++) {
            kx_json_write_number(w, NULL, g->gpp_sid[i]);
        }

        kx_json_write_close(w, ']');
    }

    kx_json_write_close(w, '}');
}


static void
kx_protocol_add(kx_json_writer_t *w, const char *name, const kx_str_t *s)
{
    kx_json_write_string(w, name, s, KX_MAX_CONTENT);
}


/* nothing is added for NULL, here and below */

static void
kx_protocol_add_text(kx_json_writer_t *w, const char *name, const char *text)
{
    kx_str_t  s;

    if (text == NULL) {
        return;
    }

    s.len = strlen(text);
    s.data = (unsigned char *) text;

    kx_protocol_add(w, name, &s);
}


static void
kx_protocol_add_uuid(kx_json_writer_t *w, const char *name,
    const unsigned char *id)
{
    kx_str_t       s;
    unsigned char  uuid[KX_UUID_LEN];

    if (id == NULL) {
        return;
    }

    s.data = uuid;
    s.len = (size_t) (kx_uuid_write(uuid, id) - uuid);

    kx_protocol_add(w, name, &s);
}


static void
kx_protocol_add_given(kx_json_writer_t *w, const char *name,
    const kx_str_t *s)
{
    if (s->len) {
        kx_protocol_add(w, name, s);
    }
}


static void
kx_protocol_add_number(kx_json_writer_t *w, const char *name, double n)
{
    if (isfinite(n) && n >= 0) {
        kx_json_write_number(w, name, n);
    }
}


static void
kx_protocol_add_flag(kx_json_writer_t *w, const char *name, int flag)
{
    if (flag >= 0) {
        kx_json_write_bool(w, name, flag != 0);
    }
}


unsigned char *
kx_protocol_frame_url(unsigned char *dst, const unsigned char *end,
    const kx_ad_t *ad, const kx_bid_t *bid)
{
    kx_writer_t  w;

    w.pos = dst;
    w.end = end;

    kx_write_url(&w, ad, bid);

    return w.pos;
}


unsigned char *
kx_protocol_member(unsigned char *dst, const unsigned char *end,
    const kx_ad_t *ad)
{
    kx_writer_t  w;

    w.pos = dst;
    w.end = end;

    kx_write_member(&w, ad);

    return w.pos;
}


static void
kx_write_member(kx_writer_t *w, const kx_ad_t *ad)
{
    unsigned         i;
    kx_str_t         s;
    unsigned char    url[KX_MAX_FRAME_URL], *last;
    const kx_bid_t  *bid;

    kx_write_literal(w, "{\"messageId\":\"");
    kx_write_json(w, &ad->message_id);
    kx_write_literal(w, "\",\"ads\":[");

    for (i = 0; i < ad->nbids; i++) {
        bid = &ad->bids[i];

        /* this checks bid->placement, too */

        last = kx_protocol_frame_url(url, url + KX_MAX_FRAME_URL, ad, bid);

        if (last == NULL) {
            w->pos = NULL;
            return;
        }

        s.len = (size_t) (last - url);
        s.data = url;

        kx_write_literal(w, i ? ",{\"bidId\":\"" : "{\"bidId\":\"");
        kx_write_uuid(w, bid->id);
        kx_write_literal(w, "\",\"code\":\"");
        kx_write_json(w, &ad->placements[bid->placement]);
        kx_write_literal(w, "\",\"label\":\"");
        kx_write_json(w, &ad->label);
        kx_write_literal(w, "\",\"frameUrl\":\"");
        kx_write_json(w, &s);
        kx_write_literal(w, "\"}");
    }

    kx_write_literal(w, "]}");
}


static void
kx_write_url(kx_writer_t *w, const kx_ad_t *ad, const kx_bid_t *bid)
{
    if (bid->placement >= KX_MAX_BIDS) {
        w->pos = NULL;
        return;
    }

    kx_write(w, ad->origin.data, ad->origin.len);
    kx_write_literal(w, "/api/frame/");
    kx_write_uuid(w, bid->id);
    kx_write_literal(w, "?code=");
    kx_write_uri(w, &ad->placements[bid->placement]);
    kx_write_literal(w, "&messageId=");
    kx_write_uri(w, &ad->message_id);
    kx_write_literal(w, "&sdk=");
    kx_write_uri(w, &ad->sdk_name);

    if (ad->theme.len) {
        kx_write_literal(w, "&theme=");
        kx_write_uri(w, &ad->theme);
    }
}


static void
kx_write_literal(kx_writer_t *w, const char *s)
{
    kx_write(w, s, strlen(s));
}


static void
kx_write_uuid(kx_writer_t *w, const unsigned char id[KX_ID_LEN])
{
    unsigned char  uuid[KX_UUID_LEN];

    (void) kx_uuid_write(uuid, id);

    kx_write(w, uuid, KX_UUID_LEN);
}


static void
kx_write_json(kx_writer_t *w, const kx_str_t *s)
{
    if (w->pos != NULL) {
        w->pos = kx_json_escape(w->pos, w->end, s);
    }
}


/* all but the unreserved characters of RFC 3986 is encoded */

static void
kx_write_uri(kx_writer_t *w, const kx_str_t *s)
{
    size_t             i;
    unsigned char      c, code[3];
    static const char  hex[] = "0123456789ABCDEF";

    for (i = 0; i < s->len && w->pos != NULL; i++) {
        c = s->data[i];

        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
            || (c >= '0' && c <= '9')
            || c == '-' || c == '.' || c == '_' || c == '~')
        {
            if (w->pos == w->end) {
                w->pos = NULL;
                return;
            }

            *w->pos++ = c;
            continue;
        }

        code[0] = '%';
        code[1] = (unsigned char) hex[c >> 4];
        code[2] = (unsigned char) hex[c & 15];

        kx_write(w, code, 3);
    }
}


static void
kx_write(kx_writer_t *w, const void *p, size_t len)
{
    if (w->pos == NULL || len == 0) {
        return;
    }

    if (len > (size_t) (w->end - w->pos)) {
        w->pos = NULL;
        return;
    }

    memcpy(w->pos, p, len);

    w->pos += len;
}


void
kx_protocol_time(char dst[32], uint64_t ms)
{
    kx_day_t  day;

    day.next = 0;

    kx_time_write(dst, ms, &day);
}


/* most times are of the same day as the one before */

static void
kx_time_write(char dst[32], uint64_t ms, kx_day_t *day)
{
    char      *p;
    unsigned   msec, sec, min;

    if (ms > KX_LAST_TIME) {
        ms = KX_LAST_TIME;
    }

    if (ms >= day->next || ms < day->next - KX_DAY) {
        kx_time_day(day->date, (unsigned) (ms / KX_DAY));
        day->next = (ms / KX_DAY + 1) * KX_DAY;
    }

    msec = (unsigned) (ms - (day->next - KX_DAY));
    sec = msec / 1000;
    min = sec / 60;

    msec -= sec * 1000;
    sec -= min * 60;

    memcpy(dst, day->date, KX_DATE_LEN);

    p = dst + KX_DATE_LEN;

    *p++ = 'T';
    p = kx_time_pair(p, min / 60);
    *p++ = ':';
    p = kx_time_pair(p, min % 60);
    *p++ = ':';
    p = kx_time_pair(p, sec);
    *p++ = '.';
    *p++ = (char) ('0' + msec / 100);
    p = kx_time_pair(p, msec % 100);
    *p++ = 'Z';
    *p = '\0';
}


/* YYYY-MM-DD of a day after 1 January 1970 */

static void
kx_time_day(char date[KX_DATE_LEN], unsigned day)
{
    char      *p;
    unsigned   year, month, leap;

    /* no year has more than 366 days */

    year = 1970 + day / 366;

    while (kx_time_year(year + 1) <= day) {
        year++;
    }

    day -= kx_time_year(year);

    /* as if February had 30 days, months come every 367/12 days */

    leap = kx_time_leap(year);

    if (day >= 59 + leap) {
        day += 2 - leap;
    }

    month = (12 * day + 373) / 367;
    day -= (367 * month - 362) / 12;

    p = kx_time_pair(date, year / 100);
    p = kx_time_pair(p, year % 100);
    *p++ = '-';
    p = kx_time_pair(p, month);
    *p++ = '-';
    (void) kx_time_pair(p, day + 1);
}


/* the days from 1970 to the start of a year */

static unsigned
kx_time_year(unsigned year)
{
    year--;

    return (year - 1969) * 365 + (year / 4 - 1969 / 4)
           - (year / 100 - 1969 / 100) + (year / 400 - 1969 / 400);
}


static unsigned
kx_time_leap(unsigned year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}


static inline char *
kx_time_pair(char *dst, unsigned n)
{
    dst[0] = (char) ('0' + n / 10);
    dst[1] = (char) ('0' + n % 10);

    return dst + 2;
}


void
kx_protocol_install_id(unsigned char *dst, const kx_str_t *token,
    const kx_str_t *user)
{
    unsigned       i;
    uint64_t       ms;
    kx_sha256_t    sha;
    unsigned char  digest[KX_SHA256_LEN], id[KX_ID_LEN];

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, KX_INSTALL_DOMAIN, sizeof(KX_INSTALL_DOMAIN) - 1);
    kx_sha256_field(&sha, token->data, token->len);
    kx_sha256_field(&sha, user->data, user->len);
    kx_sha256_final(&sha, digest);

    /* the time comes out of bytes that nothing else is made of */

    ms = 0;

    for (i = KX_ID_LEN; i < KX_ID_LEN + 8; i++) {
        ms = ms << 8 | digest[i];
    }

    ms = KX_INSTALL_FROM + ms % KX_INSTALL_SPAN;

    for (i = 0; i < 6; i++) {
        id[i] = (unsigned char) (ms >> (40 - 8 * i));
    }

    memcpy(id + 6, digest, KX_ID_LEN - 6);

    id[6] = (unsigned char) (0x70 | (id[6] & 0x0f));
    id[8] = (unsigned char) (0x80 | (id[8] & 0x3f));

    (void) kx_uuid_write(dst, id);
}
