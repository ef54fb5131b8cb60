/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The end of an answer, from the finish on, is copied and held until the ad
 * is there or there is nothing more to wait for.
 */


#include "ngx_http_kontext.h"


static void ngx_http_kontext_hold_wait(ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_hold_ad(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, u_char **p);
static void ngx_http_kontext_hold_news(ngx_http_kontext_watch_t *watch);
static void ngx_http_kontext_hold_event(ngx_event_t *ev);
static void ngx_http_kontext_hold_resume(ngx_http_kontext_ctx_t *ctx);


ngx_int_t
ngx_http_kontext_hold_add(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len, size_t max)
{
    size_t   size;
    u_char  *held;

    if (len == 0) {
        return NGX_OK;
    }

    if (ctx->held_len > max || len > max - ctx->held_len) {
        return NGX_DECLINED;
    }

    if (len > ctx->held_size - ctx->held_len) {
        size = ngx_max(ctx->held_size * 2, ctx->held_len + len);
        size = ngx_min(ngx_max(size, 1024), max);

        held = ngx_pnalloc(ctx->request->pool, size);
        if (held == NULL) {
            return NGX_DECLINED;
        }

        if (ctx->held_len) {
            ngx_memcpy(held, ctx->held, ctx->held_len);
        }

        if (ctx->held_size > ctx->request->pool->max) {
            (void) ngx_pfree(ctx->request->pool, ctx->held);
        }

        ctx->held = held;
        ctx->held_size = size;
    }

    ngx_memcpy(ctx->held + ctx->held_len, p, len);
    ctx->held_len += len;

    return NGX_OK;
}


void
ngx_http_kontext_hold_start(ngx_http_kontext_ctx_t *ctx)
{
    ctx->holding = 1;
    ctx->hold_start = ngx_current_msec;

    ctx->request->buffered |= NGX_HTTP_KONTEXT_BUFFERED;

    if (!ngx_http_kontext_hold_over(ctx)) {
        ngx_http_kontext_hold_wait(ctx);
    }
}


static void
ngx_http_kontext_hold_wait(ngx_http_kontext_ctx_t *ctx)
{
    ngx_log_t                 *log;
    ngx_msec_t                 grace;
    ngx_http_core_loc_conf_t  *clcf;

    log = ctx->request->connection->log;

    clcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_core_module);

    /* send_timeout runs meanwhile and would end the request */

    grace = ngx_min(ctx->conf->grace, clcf->send_timeout / 2);

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, log, 0,
                   "kontext holds the end of the answer for %M ms", grace);

    ctx->grace.handler = ngx_http_kontext_hold_event;
    ctx->grace.data = ctx;
    ctx->grace.log = log;

    ngx_add_timer(&ctx->grace, grace);

    if (ctx->waiting) {

        /* for another request, which may be in another worker */

        ctx->watch.handler = ngx_http_kontext_hold_news;
        ctx->watch.data = ctx;

        ngx_http_kontext_watch(ctx->turn.zone, &ctx->watch, ctx->turn.key);

        if (ngx_http_kontext_session_look(&ctx->turn, NULL) != NGX_AGAIN) {
            ngx_http_kontext_hold_wake(ctx);
        }
    }
}


static void
ngx_http_kontext_hold_news(ngx_http_kontext_watch_t *watch)
{
    ngx_http_kontext_hold_wake(watch->data);
}


ngx_uint_t
ngx_http_kontext_hold_over(ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_kontext_session_t  s;

    if (ctx->expired || ctx->reason != KX_REASON_NONE
        || ctx->status != NGX_HTTP_KONTEXT_PENDING)
    {
        return 1;
    }

    if (ctx->waiting) {

        switch (ngx_http_kontext_session_look(&ctx->turn, &s)) {

        case NGX_OK:
            ngx_http_kontext_reuse(ctx, &s);
            return 1;

        case NGX_DECLINED:
            ngx_http_kontext_superseded(ctx);
            return 1;

        case NGX_ERROR:
            ctx->waiting = 0;
            return 1;

        default: /* NGX_AGAIN */
            break;
        }

    } else if (ctx->ask == NULL && ctx->fetch == NULL) {
        return 1;
    }

    if (ctx->conf->grace == 0
        || ctx->conf->inject == NGX_HTTP_KONTEXT_INJECT_NONE)
    {
        return 1;
    }

    /* the next attempt comes too late anyway */

    return ctx->ask
           && ngx_http_kontext_ask_later(ctx->ask,
                                         ctx->hold_start + ctx->conf->grace);
}


ngx_int_t
ngx_http_kontext_hold_release(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll)
{
    u_char        *p;
    ngx_chain_t  **start;

    ngx_http_kontext_hold_end(ctx);

    if (ctx->status == NGX_HTTP_KONTEXT_PENDING
        && !(ctx->ask && ngx_http_kontext_ask_failing(ctx->ask)))
    {
        ngx_http_kontext_refuse(ctx, KX_REASON_LATE);
    }

    p = ctx->held;
    start = *ll;

    if (ctx->status == NGX_HTTP_KONTEXT_FILLED
        && ctx->reason == KX_REASON_NONE
        && ngx_http_kontext_hold_ad(ctx, ll, &p) != NGX_OK)
    {
        goto failed;
    }

    ngx_log_debug4(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "kontext ends the answer: %uz bytes held for %M ms, "
                   "injected:%uz last:%d",
                   ctx->held_len, ctx->hold_time, ctx->injected, ctx->last);

    if (ngx_http_kontext_out_held(ctx, ll, p) == NGX_OK) {
        return NGX_OK;
    }

failed:

    /* not half of an ad */

    *ll = start;
    **ll = NULL;

    ctx->injected = 0;

    return NGX_ERROR;
}


void
ngx_http_kontext_hold_end(ngx_http_kontext_ctx_t *ctx)
{
    ctx->passing = 1;

    if (!ctx->holding) {
        return;
    }

    ctx->holding = 0;
    ctx->hold_time = ngx_current_msec - ctx->hold_start;

    ctx->request->buffered &= ~NGX_HTTP_KONTEXT_BUFFERED;

    if (ctx->grace.timer_set) {
        ngx_del_timer(&ctx->grace);
    }

    ngx_http_kontext_unwatch(&ctx->watch);
}


/* what is held up to the last place of the ad, with the ad; p goes on there */

static ngx_int_t
ngx_http_kontext_hold_ad(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    u_char **p)
{
    u_char      *at;
    ngx_str_t    payload;
    ngx_uint_t   i;
    kx_place_t  *place;

    if (ngx_http_kontext_ad(ctx, &payload) != NGX_OK) {
        return NGX_OK;
    }

    for (i = 0; i < ctx->answer.nplaces; i++) {
        place = &ctx->answer.places[i];
        at = ctx->held + ctx->at[i];

        if (ngx_http_kontext_out_own(ctx, ll, *p, at - *p) != NGX_OK
            || ngx_http_kontext_out_own(ctx, ll, place->before.data,
                                        place->before.len)
               != NGX_OK
            || ngx_http_kontext_out_own(ctx, ll, payload.data, payload.len)
               != NGX_OK
            || ngx_http_kontext_out_own(ctx, ll, place->after.data,
                                        place->after.len)
               != NGX_OK)
        {
            return NGX_ERROR;
        }

        *p = at;

        ctx->injected += place->before.len + payload.len + place->after.len;
    }

    return NGX_OK;
}


void
ngx_http_kontext_hold_wake(ngx_http_kontext_ctx_t *ctx)
{
    if (ctx->ended || !ctx->holding || ctx->wake.posted) {
        return;
    }

    /* not here: the caller is in the middle of another request */

    ctx->wake.handler = ngx_http_kontext_hold_event;
    ctx->wake.data = ctx;
    ctx->wake.log = ctx->request->connection->log;

    ngx_post_event(&ctx->wake, &ngx_posted_events);
}


static void
ngx_http_kontext_hold_event(ngx_event_t *ev)
{
    ngx_connection_t        *c;
    ngx_http_request_t      *r;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ev->data;
    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    if (ev == &ctx->grace) {
        ctx->expired = 1;
    }

    if (ctx->holding) {
        ngx_http_kontext_hold_resume(ctx);
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_kontext_hold_resume(ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_request_t  *r;

    r = ctx->request;

    if (!ngx_http_kontext_hold_over(ctx)) {
        return;
    }

    if (ctx->last) {

        /* the backend is done: nginx waits for us to send the rest */

        (void) ngx_http_post_request(r, &ctx->posted);
        return;
    }

    /*
     * The request belongs to its upstream, which alone may end it when the
     * client is gone, and which watches over what could not be sent at once.
     */

    (void) ngx_http_output_filter(r, NULL);

    (void) ngx_http_post_request(r, &ctx->posted);
}
