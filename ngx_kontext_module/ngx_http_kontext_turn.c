/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A user's turn: what its session decides, what its ad calls bring, and how
 * it ends.
 */


#include "ngx_http_kontext.h"


static kx_reason_e ngx_http_kontext_turn_start(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_fetch_t *fetch);
static kx_reason_e ngx_http_kontext_turn_request(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s, kx_ad_request_t *ar);
static void ngx_http_kontext_turn_drop(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s);
static void ngx_http_kontext_set_session(ngx_http_kontext_ctx_t *ctx,
    const u_char *id);


kx_reason_e
ngx_http_kontext_turn(ngx_http_kontext_ctx_t *ctx, ngx_pool_t *pool)
{
    ngx_http_kontext_fetch_t  *fetch;

    fetch = ngx_pcalloc(pool, sizeof(ngx_http_kontext_fetch_t));
    if (fetch == NULL) {
        return KX_REASON_NO_MEMORY;
    }

    fetch->pool = pool;
    fetch->messages = ngx_palloc(pool,
                                 KX_MAX_MESSAGES * sizeof(kx_message_t));
    if (fetch->messages == NULL) {
        return KX_REASON_NO_MEMORY;
    }

    fetch->n = kx_conversation_messages(&ctx->cv, &ctx->conversation,
                                        fetch->messages, fetch->digest);

    if (fetch->n == 0) {
        return KX_REASON_NO_MEMORY;
    }

    if (ctx->turn.shared
        && ngx_http_kontext_session_due(&ctx->turn, fetch->digest,
                                        &fetch->seq)
        && ngx_http_kontext_store_fetch(ctx, fetch) == NGX_OK)
    {
        ctx->status = NGX_HTTP_KONTEXT_PENDING;
        return KX_REASON_NONE;
    }

    return ngx_http_kontext_turn_start(ctx, fetch);
}


void
ngx_http_kontext_turn_resume(ngx_http_kontext_ctx_t *ctx)
{
    kx_reason_e                reason;
    ngx_http_kontext_fetch_t  *fetch;

    fetch = ctx->fetch;

    /* what was asked for later may be answered earlier */

    if (ngx_http_kontext_session_passed(&ctx->turn, fetch->digest,
                                        fetch->seq))
    {
        ngx_http_kontext_store_leave(ctx);
        ngx_http_kontext_superseded(ctx);
        return;
    }

    ctx->status = NGX_HTTP_KONTEXT_OFF;

    /* what is found out of its messages is good for the next request, too */

    ctx->cv.memos = ctx->conf->main->memos;

    reason = ngx_http_kontext_turn_start(ctx, fetch);

    ctx->cv.memos = NULL;

    ngx_http_kontext_store_leave(ctx);

    if (reason != KX_REASON_NONE) {
        ngx_http_kontext_bypass(ctx, reason);
    }

    ngx_http_kontext_hold_wake(ctx);
}


static kx_reason_e
ngx_http_kontext_turn_start(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_fetch_t *fetch)
{
    unsigned                     i, n;
    ngx_msec_t                   timeout;
    ngx_uint_t                   probe;
    kx_reason_e                  reason;
    kx_message_t                *messages;
    kx_ad_request_t              ar;
    ngx_http_request_t          *r;
    ngx_http_kontext_session_t   s;

    r = ctx->request;
    n = fetch->n;
    messages = fetch->messages;

    if (ngx_http_kontext_session_turn(&ctx->turn, fetch->digest,
                                      ctx->cv.nhashes, ctx->track_only,
                                      fetch->found ? &fetch->record : NULL,
                                      &s, &ctx->turns)
        != NGX_OK)
    {
        return KX_REASON_NO_SESSION;
    }

    if (s.has_server_id) {
        ngx_http_kontext_set_session(ctx, s.server_id);
    }

    ngx_log_debug3(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext turn %uD: %d, init:%ui", ctx->turn.seq, s.turn,
                   s.init);

    ngx_http_kontext_ask_supersede(&ctx->turn);

    if (s.turn == KX_TURN_DISABLED) {
        return KX_REASON_DISABLED;
    }

    reason = ngx_http_kontext_turn_request(ctx, &s, &ar);

    if (reason == KX_REASON_NONE) {

        /* what is not on the wire is when a message was said: an order is */

        for (i = 0; i < n; i++) {
            messages[i].created = s.wall - (n - 1 - i) * 1000;
        }

        ar.messages = messages;
        ar.nmessages = n;

        if (ar.consent == KX_CONSENT_ANONYMOUS
            && ngx_http_kontext_anonymise(&ar, fetch->pool) != NGX_OK)
        {
            reason = KX_REASON_NO_MEMORY;
        }
    }

    if (reason != KX_REASON_NONE) {
        ngx_http_kontext_turn_drop(ctx, &s);
        return reason;
    }

    probe = 0;

    if (s.turn == KX_TURN_ASK) {
        reason = ngx_http_kontext_breaker_admit(ctx->conf, &probe);

        if (reason != KX_REASON_NONE) {
            ngx_http_kontext_turn_drop(ctx, &s);
            return reason;
        }
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

    if (s.init) {
        (void) ngx_http_kontext_ask(r, NGX_HTTP_KONTEXT_CALL_INIT,
                                    &ctx->turn, &ar, ctx,
                                    NGX_HTTP_KONTEXT_INIT_TIMEOUT, 0);
    }

    if (s.turn != KX_TURN_ASK) {
        return KX_REASON_NONE;
    }

    timeout = ngx_http_kontext_ask_timeout(ctx->conf, s.timeout);

    if (ngx_http_kontext_ask(r, NGX_HTTP_KONTEXT_CALL_PRELOAD, &ctx->turn,
                             &ar, ctx, timeout, ctx->track_only)
        != NGX_OK)
    {
        return KX_REASON_NO_MEMORY;
    }

    kx_conversation_learn(&ctx->cv, messages, n);

    ctx->ask->call->probe = probe;

    return KX_REASON_NONE;
}


/* what may be said, without messages; or why nothing may */

static kx_reason_e
ngx_http_kontext_turn_request(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s, kx_ad_request_t *ar)
{
    ngx_memzero(ar, sizeof(kx_ad_request_t));

    ar->publisher_token = ctx->token;
    ar->user_id = ctx->user;
    ar->conversation_id = ctx->conversation;
    ar->has_session = s->has_server_id;
    ngx_memcpy(ar->session, s->server_id, KX_ID_LEN);

    if (ngx_http_kontext_ad_request(ctx->request, ctx->conf, ar) != NGX_OK
        || kx_options_apply(ar, &s->options, &ctx->pool) != KX_OK)
    {
        return KX_REASON_NO_MEMORY;
    }

    ngx_http_kontext_consent(ctx->conf, ar);

    if (ar->consent == KX_CONSENT_SKIP) {
        return KX_REASON_CONSENT;
    }

    if (ar->consent == KX_CONSENT_ANONYMOUS && s->init) {

        /* it would say who is there: the next turn that may will send it */

        s->init = 0;
        ngx_http_kontext_session_init_cancel(&ctx->turn);
    }

    return KX_REASON_NONE;
}


/* what the session has told to ask is not asked: the next turn may */

static void
ngx_http_kontext_turn_drop(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s)
{
    if (s->init) {
        ngx_http_kontext_session_init_cancel(&ctx->turn);
    }

    if (s->turn == KX_TURN_ASK) {
        ngx_http_kontext_session_cancel(&ctx->turn);
    }
}


void
ngx_http_kontext_reuse(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s)
{
    ctx->waiting = 0;

    switch (s->state) {

    case KX_TURN_FILLED:

        ctx->nbids = s->nbids;
        ngx_memcpy(ctx->bids, s->bids, s->nbids * sizeof(kx_bid_t));

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


void
ngx_http_kontext_turn_answer(ngx_http_kontext_ctx_t *ctx,
    kx_preload_answer_t *a)
{
    if (a->has_session) {
        ngx_http_kontext_set_session(ctx, a->session);
    }

    switch (a->outcome) {

    case KX_AD_FILLED:
        ctx->status = NGX_HTTP_KONTEXT_FILLED;
        ctx->nbids = a->nbids;
        ngx_memcpy(ctx->bids, a->bids, a->nbids * sizeof(kx_bid_t));
        break;

    case KX_AD_NO_FILL:
        ctx->status = NGX_HTTP_KONTEXT_NO_FILL;
        ngx_http_kontext_set_code(ctx, a->code);
        break;

    default:
        ctx->status = NGX_HTTP_KONTEXT_ERROR;
        ngx_http_kontext_set_code(ctx, a->code);
        break;
    }
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


void
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


void
ngx_http_kontext_superseded(ngx_http_kontext_ctx_t *ctx)
{
    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "kontext turn %uD is superseded", ctx->turn.seq);

    ngx_http_kontext_refuse(ctx, KX_REASON_SUPERSEDED);

    ctx->waiting = 0;

    if (ctx->ask) {
        ngx_http_kontext_ask_cancel(ctx->ask);
    }

    ngx_http_kontext_hold_wake(ctx);
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

    ngx_http_kontext_unwatch(&ctx->watch);

    if (ctx->status == NGX_HTTP_KONTEXT_PENDING) {

        if (ctx->ask && ngx_http_kontext_ask_failing(ctx->ask)) {
            ctx->status = NGX_HTTP_KONTEXT_ERROR;
            ngx_http_kontext_set_code(ctx, "request_failed");

        } else {
            ngx_http_kontext_refuse(ctx, KX_REASON_LATE);
        }
    }

    if (ctx->fetch) {
        ngx_http_kontext_store_leave(ctx);
    }

    if (ctx->ask) {
        ngx_http_kontext_ask_leave(ctx->ask);
    }

    if (ctx->init) {
        ngx_http_kontext_ask_leave(ctx->init);
    }
}
