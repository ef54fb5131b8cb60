/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Reports to Kontext (protocol.md 13): what has failed, and, if it was asked
 * for, the steps of a session.  Nothing waits for them, and an ad server that
 * is down does not get many.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_REPORT_TIMEOUT  5000   /* ms */
#define NGX_HTTP_KONTEXT_REPORT_CALLS    4      /* under way, of a worker */
#define NGX_HTTP_KONTEXT_REPORT_RATE     10     /* a second, of a worker */
#define NGX_HTTP_KONTEXT_REPORT_SAME     1000   /* ms between two of a kind */
#define NGX_HTTP_KONTEXT_REPORT_KINDS    8


/* failures that were reported last */

typedef struct {
    ngx_uint_t       hash;
    ngx_msec_t       time;
    ngx_uint_t       count;                /* that were not reported since */
    ngx_uint_t       sent;
} ngx_http_kontext_report_kind_t;


static ngx_http_kontext_report_kind_t *ngx_http_kontext_report_kind(
    const char *error, const char *stack);
static ngx_int_t ngx_http_kontext_report_admit(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn);
static void ngx_http_kontext_report_send(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf, ngx_http_kontext_call_e kind,
    char *body, size_t len);
static void ngx_http_kontext_report_done(ngx_http_kontext_call_t *call);


static ngx_http_kontext_report_kind_t  ngx_http_kontext_report_kinds[
                                              NGX_HTTP_KONTEXT_REPORT_KINDS];
static ngx_uint_t  ngx_http_kontext_reports;
static ngx_msec_t  ngx_http_kontext_report_start;
static ngx_uint_t  ngx_http_kontext_report_count;


void
ngx_http_kontext_report(ngx_http_request_t *r, ngx_http_kontext_turn_t *turn,
    kx_ad_request_t *ar, const char *error, const char *stack)
{
    char                            *body, text[256];
    size_t                           len;
    ngx_http_kontext_report_kind_t  *kind;

    if (turn->no_errors || ar->consent != KX_CONSENT_ASK) {
        return;
    }

    kind = ngx_http_kontext_report_kind(error, stack);

    if ((kind->sent
         && ngx_current_msec - kind->time < NGX_HTTP_KONTEXT_REPORT_SAME)
        || ngx_http_kontext_report_admit(r, turn) != NGX_OK)
    {
        kind->count++;
        ngx_http_kontext_count(turn->zone, dropped, 1);
        return;
    }

    if (kind->count) {
        *ngx_snprintf((u_char *) text, sizeof(text) - 1,
                      "%s (and %ui times more since the last report)",
                      error, kind->count) = '\0';
        error = text;
    }

    kind->sent = 1;
    kind->time = ngx_current_msec;
    kind->count = 0;

    body = kx_protocol_error_report(ar, error, stack, NULL, &len);

    ngx_http_kontext_report_send(r, turn->conf, NGX_HTTP_KONTEXT_CALL_ERROR,
                                 body, len);
}


void
ngx_http_kontext_debug(ngx_http_request_t *r, ngx_http_kontext_turn_t *turn,
    kx_ad_request_t *ar, const char *name, const char *data)
{
    char    *body;
    size_t   len;

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext %s %s", name, data);

    if (!turn->debug || ar->consent != KX_CONSENT_ASK) {
        return;
    }

    if (ngx_http_kontext_report_admit(r, turn) != NGX_OK) {
        ngx_http_kontext_count(turn->zone, dropped, 1);
        return;
    }

    body = kx_protocol_debug_report(ar, name, data, &len);

    ngx_http_kontext_report_send(r, turn->conf, NGX_HTTP_KONTEXT_CALL_DEBUG,
                                 body, len);
}


/* what is known of a failure: if there is no place, the oldest is forgotten */

static ngx_http_kontext_report_kind_t *
ngx_http_kontext_report_kind(const char *error, const char *stack)
{
    ngx_uint_t                       hash, i;
    ngx_http_kontext_report_kind_t  *kind, *oldest;

    hash = ngx_hash_key((u_char *) error, ngx_strlen(error))
           ^ ngx_hash_key((u_char *) stack, ngx_strlen(stack)) << 1;

    oldest = ngx_http_kontext_report_kinds;

    for (i = 0; i < NGX_HTTP_KONTEXT_REPORT_KINDS; i++) {
        kind = &ngx_http_kontext_report_kinds[i];

        if (kind->hash == hash) {
            return kind;
        }

        if ((ngx_msec_int_t) (kind->time - oldest->time) < 0) {
            oldest = kind;
        }
    }

    oldest->hash = hash;
    oldest->time = ngx_current_msec;
    oldest->count = 0;
    oldest->sent = 0;

    return oldest;
}


static ngx_int_t
ngx_http_kontext_report_admit(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn)
{
    if (ngx_current_msec - ngx_http_kontext_report_start >= 1000) {
        ngx_http_kontext_report_start = ngx_current_msec;
        ngx_http_kontext_report_count = 0;
    }

    if (ngx_exiting
        || ngx_http_kontext_reports >= NGX_HTTP_KONTEXT_REPORT_CALLS
        || ngx_http_kontext_report_count >= NGX_HTTP_KONTEXT_REPORT_RATE
        || !ngx_http_kontext_breaker_allows(turn->conf))
    {
        ngx_log_debug0(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                       "kontext report is dropped");
        return NGX_DECLINED;
    }

    ngx_http_kontext_report_count++;

    return NGX_OK;
}


static void
ngx_http_kontext_report_send(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf, ngx_http_kontext_call_e kind,
    char *body, size_t len)
{
    ngx_http_kontext_call_t  *call;

    call = ngx_http_kontext_call_create(r, klcf, kind);

    if (call == NULL) {

        if (body) {
            kx_protocol_free(body);
        }

        return;
    }

    call->timeout = NGX_HTTP_KONTEXT_REPORT_TIMEOUT;
    call->handler = ngx_http_kontext_report_done;

    if (ngx_http_kontext_call_start(call, body, len) == NGX_OK) {
        ngx_http_kontext_reports++;
    }
}


/* whatever came of it: a report about a report would never end */

static void
ngx_http_kontext_report_done(ngx_http_kontext_call_t *call)
{
    ngx_http_kontext_reports--;

    ngx_http_kontext_call_count(call, call->status ? KX_CALL_OK
                                                   : KX_CALL_FAILED);
}
