/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A user's turn: what its session decides, what its ad calls bring, and how
 * it ends.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_ASKS       64
#define NGX_HTTP_KONTEXT_TURN_POOL  4096


static kx_reason_e ngx_http_kontext_turn_ask(ngx_http_kontext_ctx_t *ctx,
    ngx_pool_t *pool);
static void ngx_http_kontext_init_handler(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_preload_handler(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_set_session(ngx_http_kontext_ctx_t *ctx,
    const u_char *id);
static void ngx_http_kontext_set_code(ngx_http_kontext_ctx_t *ctx,
    const char *code);
static void ngx_http_kontext_supersede(ngx_http_kontext_ctx_t *ctx);
static ngx_queue_t *ngx_http_kontext_asks_of(ngx_http_kontext_ctx_t *ctx);


/* this worker's requests that wait for a preload, by session */

static ngx_queue_t  ngx_http_kontext_asks[NGX_HTTP_KONTEXT_ASKS];


kx_reason_e
ngx_http_kontext_turn(ngx_http_kontext_ctx_t *ctx)
{
    ngx_pool_t   *pool;
    kx_reason_e   reason;

    /* the texts are needed until the ad calls are written, and no longer */

    pool = ngx_create_pool(NGX_HTTP_KONTEXT_TURN_POOL,
                           ctx->request->connection->log);
    if (pool == NULL) {
        return KX_REASON_NO_MEMORY;
    }

    reason = ngx_http_kontext_turn_ask(ctx, pool);

    ngx_destroy_pool(pool);

    return reason;
}


static kx_reason_e
ngx_http_kontext_turn_ask(ngx_http_kontext_ctx_t *ctx, ngx_pool_t *pool)
{
    char                        *body;
    size_t                       len;
    u_char                       digest[KX_ID_LEN];
    unsigned                     i, n;
    ngx_int_t                    rc;
    kx_pool_t                    scratch;
    kx_message_t                *messages;
    kx_ad_request_t              ar;
    ngx_http_request_t          *r;
    ngx_http_kontext_session_t   s;

    r = ctx->request;

    messages = ngx_palloc(pool, KX_MAX_MESSAGES * sizeof(kx_message_t));
    if (messages == NULL) {
        return KX_REASON_NO_MEMORY;
    }

    scratch.alloc = ctx->pool.alloc;
    scratch.data = pool;

    ctx->cv.pool = &scratch;

    n = kx_conversation_messages(&ctx->cv,
                                 &ctx->conversation,
                                 messages, digest);

    ctx->cv.pool = &ctx->pool;

    if (n == 0) {
        return KX_REASON_NO_MEMORY;
    }

    if (ngx_http_kontext_zone_turn(ctx, digest, &s) != NGX_OK) {
        return KX_REASON_NO_SESSION;
    }

    if (s.has_server_id) {
        ngx_http_kontext_set_session(ctx, s.server_id);
    }

    ngx_log_debug3(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext turn %uD: %d, init:%ui", ctx->seq, s.turn,
                   s.init);

    ngx_http_kontext_supersede(ctx);

    if (s.turn == KX_TURN_DISABLED) {
        return KX_REASON_DISABLED;
    }

    if (s.turn == KX_TURN_REUSE) {
        ngx_http_kontext_reuse(ctx, &s);

    } else {
        ctx->status = NGX_HTTP_KONTEXT_PENDING;
        ctx->waiting = (s.turn == KX_TURN_WAIT);
        ctx->nbids = 0;
    }

    if (s.turn != KX_TURN_ASK && !s.init) {
        return KX_REASON_NONE;
    }

    ngx_memzero(&ar, sizeof(kx_ad_request_t));
    len = 0;

    /* what is not on the wire is when a message was said: an order is */

    for (i = 0; i < n; i++) {
        messages[i].created = s.wall - (n - 1 - i) * 1000;
    }

    ar.messages = messages;
    ar.nmessages = n;
    ar.has_session = s.has_server_id;
    ngx_memcpy(ar.session, s.server_id, KX_ID_LEN);

    rc = ngx_http_kontext_ad_request(ctx, &ar);

    if (s.init) {
        body = (rc == NGX_OK) ? kx_protocol_init(&ar, &len) : NULL;

        ctx->init.timeout = NGX_HTTP_KONTEXT_INIT_TIMEOUT;
        ctx->init.handler = ngx_http_kontext_init_handler;

        if (body == NULL
            || ngx_http_kontext_call_start(&ctx->init, body, len) != NGX_OK)
        {
            ngx_http_kontext_zone_init_cancel(ctx);
        }
    }

    if (s.turn == KX_TURN_ASK) {
        body = (rc == NGX_OK) ? kx_protocol_preload(&ar, &len) : NULL;

        ctx->preload.timeout = s.timeout ? s.timeout : KX_PRELOAD_TIMEOUT;
        ctx->preload.handler = ngx_http_kontext_preload_handler;

        if (ctx->conf->preload_timeout
            && ctx->conf->preload_timeout < ctx->preload.timeout)
        {
            ctx->preload.timeout = ctx->conf->preload_timeout;
        }

        if (body == NULL
            || ngx_http_kontext_call_start(&ctx->preload, body, len)
               != NGX_OK)
        {
            ngx_http_kontext_zone_cancel(ctx);
            return KX_REASON_NO_MEMORY;
        }

        ngx_queue_insert_tail(ngx_http_kontext_asks_of(ctx), &ctx->queue);
        ctx->asked = 1;
    }

    return KX_REASON_NONE;
}


void
ngx_http_kontext_reuse(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s)
{
    ctx->waiting = 0;

    switch (s->state) {

    case KX_TURN_FILLED:

        if (ctx->nbids) {
            ctx->status = NGX_HTTP_KONTEXT_FILLED;
            break;
        }

        /* it was made for other placements */

        ctx->status = NGX_HTTP_KONTEXT_NO_FILL;
        ngx_http_kontext_set_code(ctx, "unfilled_bid");
        break;

    case KX_TURN_NO_FILL:
        ctx->status = NGX_HTTP_KONTEXT_NO_FILL;
        ngx_http_kontext_set_code(ctx, (char *) s->code);
        break;

    default:

        /* the one that was waited for has failed or given up */

        ctx->status = NGX_HTTP_KONTEXT_ERROR;
        ngx_http_kontext_set_code(ctx, "request_failed");
        break;
    }
}


static void
ngx_http_kontext_init_handler(ngx_http_kontext_call_t *call)
{
    kx_init_answer_t         a;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = call->ctx;

    kx_protocol_init_answer(&a, call->status, call->data, call->len);

    ngx_log_debug4(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "kontext init: status:%ui applied:%d enabled:%d "
                   "timeout:%uD",
                   call->status, a.applied, a.enabled, a.preload_timeout);

    ngx_http_kontext_zone_init_answer(ctx, &a);
}


static void
ngx_http_kontext_preload_handler(ngx_http_kontext_call_t *call)
{
    ngx_int_t                rc;
    kx_preload_answer_t      a;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = call->ctx;

    kx_protocol_preload_answer(&a, call->status, call->data, call->len,
                               ctx->conf->placements->elts,
                               ctx->conf->placements->nelts,
                               ctx->track_only);

    rc = ngx_http_kontext_zone_answer(ctx, &a);

    ctx->preload_time = ngx_current_msec - call->started;

    ngx_log_debug5(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "kontext preload: status:%ui outcome:%d code:\"%s\" "
                   "bids:%ud counts:%i",
                   call->status, a.outcome, a.code, a.nbids, rc);

    if (ctx->asked) {
        ngx_queue_remove(&ctx->queue);
        ctx->asked = 0;
    }

    if (rc != NGX_OK) {
        ngx_http_kontext_refuse(ctx, KX_REASON_SUPERSEDED);
        ngx_http_kontext_hold_wake(ctx);
        return;
    }

    if (a.has_session) {
        ngx_http_kontext_set_session(ctx, a.session);
    }

    switch (a.outcome) {

    case KX_AD_FILLED:
        ctx->status = NGX_HTTP_KONTEXT_FILLED;
        ctx->nbids = a.nbids;
        ngx_memcpy(ctx->bids, a.bids, a.nbids * sizeof(kx_bid_t));
        break;

    case KX_AD_NO_FILL:
        ctx->status = NGX_HTTP_KONTEXT_NO_FILL;
        ngx_http_kontext_set_code(ctx, a.code);
        break;

    default:
        ctx->status = NGX_HTTP_KONTEXT_ERROR;
        ngx_http_kontext_set_code(ctx, a.code);
        break;
    }

    ngx_http_kontext_hold_wake(ctx);
}


static void
ngx_http_kontext_set_session(ngx_http_kontext_ctx_t *ctx, const u_char *id)
{
    u_char  *p;

    p = ngx_pnalloc(ctx->request->pool, KX_UUID_LEN);

    if (p) {
        ctx->session.data = p;
        ctx->session.len = kx_uuid_write(p, id) - p;
    }
}


static void
ngx_http_kontext_set_code(ngx_http_kontext_ctx_t *ctx, const char *code)
{
    size_t   len;
    u_char  *p;

    len = ngx_strlen(code);

    p = ngx_pnalloc(ctx->request->pool, len + 1);

    if (p) {
        ngx_memcpy(p, code, len);
        ctx->code.data = p;
        ctx->code.len = len;
    }
}


/* a newer turn of the user cancels the older call, protocol.md 5 */

static void
ngx_http_kontext_supersede(ngx_http_kontext_ctx_t *ctx)
{
    ngx_queue_t             *q, *next, *asks;
    ngx_http_kontext_ctx_t  *other;

    asks = ngx_http_kontext_asks_of(ctx);

    for (q = ngx_queue_head(asks); q != ngx_queue_sentinel(asks); q = next) {
        next = ngx_queue_next(q);

        other = ngx_queue_data(q, ngx_http_kontext_ctx_t, queue);

        if (other != ctx
            && ngx_memcmp(other->key, ctx->key, KX_ID_LEN) == 0
            && (other->seq != ctx->seq || other->user_key != ctx->user_key))
        {
            ngx_http_kontext_superseded(other);
        }
    }
}


void
ngx_http_kontext_superseded(ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_request_t  *r;

    r = ctx->request;

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "kontext turn %uD is superseded", ctx->seq);

    ngx_http_kontext_refuse(ctx, KX_REASON_SUPERSEDED);

    ctx->waiting = 0;

    if (ctx->asked) {
        ngx_queue_remove(&ctx->queue);
        ctx->asked = 0;
    }

    /* the subrequest may be all that keeps that request, and its ctx */

    r->main->count++;

    ngx_http_kontext_call_cancel(&ctx->preload);
    ngx_http_kontext_hold_wake(ctx);

    ngx_http_finalize_request(r, NGX_DONE);
}


static ngx_queue_t *
ngx_http_kontext_asks_of(ngx_http_kontext_ctx_t *ctx)
{
    ngx_queue_t  *q;

    q = &ngx_http_kontext_asks[ctx->key[1] % NGX_HTTP_KONTEXT_ASKS];

    if (q->next == NULL) {
        ngx_queue_init(q);
    }

    return q;
}


void
ngx_http_kontext_end(ngx_http_kontext_ctx_t *ctx)
{
    if (ctx->ended) {
        return;
    }

    ctx->ended = 1;

    ngx_http_kontext_analyse_cancel(ctx);

    if (ctx->wake.posted) {
        ngx_delete_posted_event(&ctx->wake);
    }

    if (ctx->grace.timer_set) {
        ngx_del_timer(&ctx->grace);
    }

    if (ctx->poll.timer_set) {
        ngx_del_timer(&ctx->poll);
    }

    if (ctx->asked) {
        ngx_queue_remove(&ctx->queue);
        ctx->asked = 0;
    }

    if (ctx->status == NGX_HTTP_KONTEXT_PENDING) {

        if (ctx->preload.active
            && (ctx->preload.attempt
                || ngx_http_kontext_call_overflowed(&ctx->preload)))
        {
            ctx->status = NGX_HTTP_KONTEXT_ERROR;
            ngx_http_kontext_set_code(ctx, "request_failed");

        } else {
            ngx_http_kontext_refuse(ctx, KX_REASON_LATE);
        }
    }

    if (ctx->preload.active) {
        ngx_http_kontext_call_cancel(&ctx->preload);
        ngx_http_kontext_zone_cancel(ctx);
    }

    if (ctx->init.active) {
        ngx_http_kontext_call_cancel(&ctx->init);
        ngx_http_kontext_zone_init_cancel(ctx);
    }
}
