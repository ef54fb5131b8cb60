/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * /init and /preload for a turn: they are made here, and their answers go to
 * the session and to the request that waits.  When that one is over they may
 * go on: a late ad is one that the session API can still hand out.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_ASKS  64


static ngx_http_kontext_ask_t *ngx_http_kontext_ask_create(
    ngx_http_request_t *r, ngx_http_kontext_call_e kind,
    ngx_http_kontext_turn_t *turn, kx_ad_request_t *ar);
static void ngx_http_kontext_ask_refused(ngx_http_request_t *r,
    ngx_http_kontext_call_e kind, ngx_http_kontext_turn_t *turn);
static void ngx_http_kontext_ask_init(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_ask_preload(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_ask_count(ngx_http_kontext_call_t *call,
    kx_preload_answer_t *a);
static void ngx_http_kontext_ask_tell(ngx_http_kontext_call_t *call,
    kx_preload_answer_t *a);
static void ngx_http_kontext_ask_failed(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_ask_over(ngx_http_kontext_ask_t *ask);
static void ngx_http_kontext_ask_news(ngx_http_kontext_watch_t *watch);
static ngx_queue_t *ngx_http_kontext_asks_of(ngx_http_kontext_turn_t *turn);


/* of this worker, by session, and how many of them nobody waits for */

static ngx_queue_t  ngx_http_kontext_asks[NGX_HTTP_KONTEXT_ASKS];
static ngx_uint_t   ngx_http_kontext_late;


ngx_int_t
ngx_http_kontext_ask(ngx_http_request_t *r, ngx_http_kontext_call_e kind,
    ngx_http_kontext_turn_t *turn, kx_ad_request_t *ar,
    ngx_http_kontext_ctx_t *ctx, ngx_msec_t timeout, ngx_uint_t track_only)
{
    char                    *body;
    size_t                   len;
    ngx_http_kontext_ask_t  *ask;

    ask = NULL;

    if (kind == NGX_HTTP_KONTEXT_CALL_INIT
        && !ngx_http_kontext_breaker_allows(turn->conf))
    {
        ngx_http_kontext_session_init_cancel(turn);
        return NGX_ERROR;
    }

    if (ctx || ngx_http_kontext_late < NGX_HTTP_KONTEXT_LATE_CALLS) {
        ask = ngx_http_kontext_ask_create(r, kind, turn, ar);
    }

    if (ask == NULL) {
        ngx_http_kontext_ask_refused(r, kind, turn);
        return NGX_ERROR;
    }

    ask->call->timeout = timeout;
    ask->call->track_only = track_only;

    len = 0;
    body = (kind == NGX_HTTP_KONTEXT_CALL_INIT)
           ? kx_protocol_init(ar, &len) : kx_protocol_preload(ar, &len);

    if (ngx_http_kontext_call_start(ask->call, body, len) != NGX_OK) {
        ngx_http_kontext_ask_refused(r, kind, turn);
        return NGX_ERROR;
    }

    ngx_queue_insert_tail(ngx_http_kontext_asks_of(turn), &ask->queue);

    ask->ctx = ctx;

    if (kind == NGX_HTTP_KONTEXT_CALL_PRELOAD) {
        ngx_http_kontext_debug(r, turn, ar, "Session: preload-start", "{}");
    }

    if (ngx_http_kontext_has_api(turn->conf)) {

        /* it may be closed, and in another worker */

        ask->watch.handler = ngx_http_kontext_ask_news;
        ask->watch.data = ask;

        ngx_http_kontext_watch(turn->zone, &ask->watch, turn->key);
    }

    if (ctx == NULL) {
        ngx_http_kontext_late++;

    } else if (kind == NGX_HTTP_KONTEXT_CALL_INIT) {
        ctx->init = ask;

    } else {
        ctx->ask = ask;
    }

    return NGX_OK;
}


ngx_msec_t
ngx_http_kontext_ask_timeout(ngx_http_kontext_loc_conf_t *klcf,
    ngx_msec_t timeout)
{
    if (timeout == 0) {
        timeout = KX_PRELOAD_TIMEOUT;
    }

    if (klcf->preload_timeout && klcf->preload_timeout < timeout) {
        timeout = klcf->preload_timeout;
    }

    return timeout;
}


static ngx_http_kontext_ask_t *
ngx_http_kontext_ask_create(ngx_http_request_t *r,
    ngx_http_kontext_call_e kind, ngx_http_kontext_turn_t *turn,
    kx_ad_request_t *ar)
{
    kx_pool_t                 kp;
    ngx_pool_t               *pool;
    ngx_http_kontext_ask_t   *ask;
    ngx_http_kontext_call_t  *call;

    call = ngx_http_kontext_call_create(r, turn->conf, kind);
    if (call == NULL) {
        return NULL;
    }

    pool = call->request->pool;

    ask = ngx_pcalloc(pool, sizeof(ngx_http_kontext_ask_t));
    if (ask == NULL) {
        ngx_http_kontext_call_cancel(call);
        return NULL;
    }

    call->ask = ask;
    call->failed = ngx_http_kontext_ask_failed;
    call->handler = (kind == NGX_HTTP_KONTEXT_CALL_INIT)
                    ? ngx_http_kontext_ask_init
                    : ngx_http_kontext_ask_preload;

    ask->call = call;
    ask->turn = *turn;

    kp.alloc = ngx_http_kontext_alloc;
    kp.data = pool;

    if (kx_ad_request_who(&ask->who, ar, &kp) != KX_OK) {
        ngx_http_kontext_call_cancel(call);
        return NULL;
    }

    call->token = ask->who.publisher_token;

    if (ar->consent != KX_CONSENT_ASK) {
        ngx_http_kontext_detach_anonymous(call->request);
    }

    return ask;
}


static void
ngx_http_kontext_ask_refused(ngx_http_request_t *r,
    ngx_http_kontext_call_e kind, ngx_http_kontext_turn_t *turn)
{
    kx_pool_t  pool;

    if (kind == NGX_HTTP_KONTEXT_CALL_INIT) {
        ngx_http_kontext_session_init_cancel(turn);
        return;
    }

    pool.alloc = ngx_http_kontext_alloc;
    pool.data = r->pool;

    ngx_http_kontext_session_failed(turn, &pool);
}


static void
ngx_http_kontext_ask_init(ngx_http_kontext_call_t *call)
{
    kx_pool_t                pool;
    kx_init_answer_t         a;
    ngx_http_kontext_ask_t  *ask;

    ask = call->ask;

    kx_protocol_init_answer(&a, call->status, call->data, call->len);

    ngx_log_debug4(NGX_LOG_DEBUG_HTTP, call->request->connection->log, 0,
                   "kontext init: status:%ui applied:%d enabled:%d "
                   "timeout:%uD",
                   call->status, a.applied, a.enabled, a.preload_timeout);

    ngx_http_kontext_call_count(call, a.failed ? KX_CALL_FAILED : KX_CALL_OK);

    ngx_http_kontext_ask_over(ask);

    pool.alloc = ngx_http_kontext_alloc;
    pool.data = call->request->pool;

    if (ngx_http_kontext_session_init_answer(&ask->turn, &a, &pool)
        == NGX_OK)
    {
        ngx_http_kontext_store_save(call->request, &ask->turn);
    }

    if (a.failed) {
        ngx_http_kontext_report(call->request, &ask->turn, &ask->who,
                                "init failed", "Init.fetch");
    }
}


static void
ngx_http_kontext_ask_preload(ngx_http_kontext_call_t *call)
{
    ngx_int_t                     rc;
    kx_pool_t                     pool;
    kx_preload_answer_t           a;
    ngx_http_kontext_ask_t       *ask;
    ngx_http_kontext_ctx_t       *ctx;
    ngx_http_kontext_loc_conf_t  *klcf;

    ask = call->ask;
    ctx = ask->ctx;
    klcf = call->conf;

    kx_protocol_preload_answer(&a, call->status, call->data, call->len,
                               klcf->placements->elts,
                               klcf->placements->nelts, call->track_only);

    /* an answer that cannot be read is none */

    ngx_http_kontext_breaker_end(call, a.failed ? KX_BREAKER_FAILED
                                                : KX_BREAKER_ANSWERED);

    ngx_http_kontext_ask_over(ask);

    if (ask->who.consent != KX_CONSENT_ASK) {

        /* a session of nobody's: it is not to be known by it again */

        a.has_session = 0;
    }

    pool.alloc = ngx_http_kontext_alloc;
    pool.data = call->request->pool;

    rc = ngx_http_kontext_session_answer(&ask->turn, &a, &pool);

    ngx_log_debug5(NGX_LOG_DEBUG_HTTP, call->request->connection->log, 0,
                   "kontext preload: status:%ui outcome:%d code:\"%s\" "
                   "bids:%ud counts:%i",
                   call->status, a.outcome, a.code, a.nbids, rc);

    ngx_http_kontext_ask_count(call, &a);

    if (rc == NGX_OK) {
        ngx_http_kontext_ask_tell(call, &a);
        ngx_http_kontext_store_save(call->request, &ask->turn);
    }

    if (ctx == NULL) {
        return;
    }

    ctx->preload_time = ngx_current_msec - call->started;

    if (rc == NGX_OK) {
        ngx_http_kontext_turn_answer(ctx, &a);

    } else {
        ngx_http_kontext_refuse(ctx, KX_REASON_SUPERSEDED);
    }

    ngx_http_kontext_hold_wake(ctx);
}


static void
ngx_http_kontext_ask_count(ngx_http_kontext_call_t *call,
    kx_preload_answer_t *a)
{
    ngx_msec_t                time;
    ngx_http_kontext_zone_t  *zone;

    zone = call->ask->turn.zone;
    time = ngx_current_msec - call->started;

    ngx_http_kontext_count(zone, preload.buckets[kx_status_bucket(time)], 1);
    ngx_http_kontext_count(zone, preload.sum, time);

    switch (a->outcome) {

    case KX_AD_FILLED:
        ngx_http_kontext_call_count(call, KX_CALL_FILLED);
        break;

    case KX_AD_NO_FILL:
        ngx_http_kontext_call_count(call, KX_CALL_NO_FILL);
        break;

    default:
        ngx_http_kontext_call_count(call, a->failed ? KX_CALL_FAILED
                                                    : KX_CALL_ERROR);
        break;
    }
}


/* protocol.md 13.1: not of what the ad server has answered itself */

static void
ngx_http_kontext_ask_tell(ngx_http_kontext_call_t *call,
    kx_preload_answer_t *a)
{
    char                     data[KX_MAX_CODE + 32];
    ngx_http_kontext_ask_t  *ask;

    ask = call->ask;

    if (a->outcome == KX_AD_FILLED) {
        ngx_http_kontext_debug(call->request, &ask->turn, &ask->who,
                               "Session: preload-success", "{}");
        return;
    }

    (void) ngx_sprintf((u_char *) data, "{\"reason\":\"%s\"}%Z", a->code);

    ngx_http_kontext_debug(call->request, &ask->turn, &ask->who,
                           (call->track_only && a->outcome == KX_AD_NO_FILL
                            && ngx_strcmp(a->code, "track_only") == 0)
                           ? "Session: preload-track-only-skip-bids"
                           : "Session: preload-failure", data);

    if (a->failed) {
        ngx_http_kontext_report(call->request, &ask->turn, &ask->who,
                                "Error preloading ads", "Preload.fetch");
    }
}


/* who holds back an answer may not want to wait for the next attempt */

static void
ngx_http_kontext_ask_failed(ngx_http_kontext_call_t *call)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = call->ask->ctx;

    if (ctx && call->kind == NGX_HTTP_KONTEXT_CALL_PRELOAD) {
        ngx_http_kontext_hold_wake(ctx);
    }
}


/* the memory stays until the caller is done */

static void
ngx_http_kontext_ask_over(ngx_http_kontext_ask_t *ask)
{
    ngx_queue_remove(&ask->queue);

    ngx_http_kontext_unwatch(&ask->watch);

    if (ask->ctx == NULL) {
        ngx_http_kontext_late--;

    } else if (ask->call->kind == NGX_HTTP_KONTEXT_CALL_INIT) {
        ask->ctx->init = NULL;

    } else {
        ask->ctx->ask = NULL;
    }

    ask->ctx = NULL;
}


/* a newer turn has come, or the session is gone */

static void
ngx_http_kontext_ask_news(ngx_http_kontext_watch_t *watch)
{
    ngx_http_kontext_ask_t *ask = watch->data;

    ngx_http_kontext_turn_t  turn;

    if (ngx_exiting && ask->ctx == NULL
        && ask->call->kind == NGX_HTTP_KONTEXT_CALL_INIT)
    {
        /* the next turn asks again, and in a worker that stays */

        turn = ask->turn;

        ngx_http_kontext_ask_cancel(ask);
        ngx_http_kontext_session_init_cancel(&turn);

        return;
    }

    switch (ngx_http_kontext_session_look(&ask->turn, NULL)) {

    case NGX_DECLINED:

        if (ask->call->kind == NGX_HTTP_KONTEXT_CALL_INIT) {

            /* of any turn of the session, if it is the same user's */

            if (ngx_http_kontext_session_same(&ask->turn) == NGX_OK) {
                return;
            }
        }

        break;

    case NGX_ERROR:

        if (ask->ctx) {

            /* a chat that has outlived its session still has its ad */

            return;
        }

        break;

    default:
        return;
    }

    if (ask->ctx && ask->ctx->ask == ask) {
        ngx_http_kontext_superseded(ask->ctx);

    } else {
        ngx_http_kontext_ask_cancel(ask);
    }
}


void
ngx_http_kontext_ask_leave(ngx_http_kontext_ask_t *ask)
{
    ngx_http_kontext_turn_t  turn;
    ngx_http_kontext_call_e  kind;

    kind = ask->call->kind;

    /*
     * Without the API an ad that comes later is of no use to anybody, but the
     * breaker may wait for an answer.
     */

    if ((ngx_http_kontext_has_api(ask->turn.conf) || ask->call->probe)
        && ngx_http_kontext_late < NGX_HTTP_KONTEXT_LATE_CALLS
        && !ngx_exiting)
    {
        if (kind == NGX_HTTP_KONTEXT_CALL_INIT) {
            ask->ctx->init = NULL;

        } else {
            ask->ctx->ask = NULL;
        }

        ask->ctx = NULL;
        ngx_http_kontext_late++;

        return;
    }

    turn = ask->turn;

    ngx_http_kontext_ask_cancel(ask);

    if (kind == NGX_HTTP_KONTEXT_CALL_INIT) {
        ngx_http_kontext_session_init_cancel(&turn);

    } else {
        ngx_http_kontext_session_cancel(&turn);
    }
}


void
ngx_http_kontext_ask_cancel(ngx_http_kontext_ask_t *ask)
{
    ngx_http_kontext_ask_over(ask);

    ngx_http_kontext_call_cancel(ask->call);
}


/* a newer turn of the user cancels the older call, protocol.md 5 */

void
ngx_http_kontext_ask_supersede(ngx_http_kontext_turn_t *turn)
{
    ngx_queue_t             *q, *next, *asks;
    ngx_http_kontext_ask_t  *ask;

    asks = ngx_http_kontext_asks_of(turn);

    for (q = ngx_queue_head(asks); q != ngx_queue_sentinel(asks); q = next) {
        next = ngx_queue_next(q);

        ask = ngx_queue_data(q, ngx_http_kontext_ask_t, queue);

        if (ngx_memcmp(ask->turn.key, turn->key, KX_ID_LEN) != 0) {
            continue;
        }

        if (ask->turn.user == turn->user
            && (ask->call->kind == NGX_HTTP_KONTEXT_CALL_INIT
                || ask->turn.seq == turn->seq))
        {
            continue;
        }

        if (ask->ctx && ask->ctx->ask == ask) {
            ngx_http_kontext_superseded(ask->ctx);

        } else {
            ngx_http_kontext_ask_cancel(ask);
        }
    }
}


ngx_uint_t
ngx_http_kontext_ask_failing(ngx_http_kontext_ask_t *ask)
{
    return ask->call->attempt != 0 || ask->call->overflow;
}


ngx_uint_t
ngx_http_kontext_ask_later(ngx_http_kontext_ask_t *ask, ngx_msec_t limit)
{
    ngx_event_t  *timer;

    timer = &ask->call->timer;

    return ask->call->overflow
           || (ask->call->sr == NULL && timer->timer_set
               && (ngx_msec_int_t) (timer->timer.key - limit) >= 0);
}


static ngx_queue_t *
ngx_http_kontext_asks_of(ngx_http_kontext_turn_t *turn)
{
    ngx_queue_t  *q;

    q = &ngx_http_kontext_asks[turn->key[1] % NGX_HTTP_KONTEXT_ASKS];

    if (q->next == NULL) {
        ngx_queue_init(q);
    }

    return q;
}
