/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * An answer in one piece: nobody can use it before its end, so it is
 * collected, together with its header, whose length then is right.
 */


#include "ngx_http_kontext.h"


static ngx_int_t ngx_http_kontext_whole_buf(ngx_http_kontext_ctx_t *ctx,
    ngx_buf_t *b, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_whole_pass(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll);
static void ngx_http_kontext_whole_read(ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_whole_header(ngx_http_kontext_ctx_t *ctx);


ngx_int_t
ngx_http_kontext_whole(ngx_http_kontext_ctx_t *ctx, ngx_chain_t *in)
{
    ngx_int_t            rc;
    ngx_uint_t           last, broken;
    ngx_chain_t         *cl, *out, **ll, **own;
    ngx_http_request_t  *r;

    r = ctx->request;

    out = NULL;
    ll = &out;
    own = NULL;
    last = 0;
    broken = 0;

    ngx_http_kontext_check_superseded(ctx);

    for (cl = in; cl; cl = cl->next) {
        last |= cl->buf->last_buf;
        broken |= ngx_http_kontext_broken(r, cl->buf);

        if (ngx_http_kontext_whole_buf(ctx, cl->buf, &ll) != NGX_OK) {
            goto nomem;
        }
    }

    if ((last || broken) && !ctx->passing && !ctx->holding) {
        ctx->last = last;

        if (last) {
            ngx_http_kontext_whole_read(ctx);
        }

        if (!ctx->holding) {
            ngx_http_kontext_refuse(ctx, KX_REASON_NO_FINISH);

            if (ngx_http_kontext_whole_pass(ctx, &ll) != NGX_OK) {
                goto nomem;
            }
        }
    }

    if (ctx->holding && ngx_http_kontext_hold_over(ctx)
        && ngx_http_kontext_hold_release(ctx, &ll) != NGX_OK)
    {
        goto nomem;
    }

    goto send;

nomem:

    own = ll;

    ngx_http_kontext_out_rest(ctx, &own, cl);

    for ( /* void */ ; cl; cl = cl->next) {
        last |= cl->buf->last_buf;
        broken |= ngx_http_kontext_broken(r, cl->buf);
    }

send:

    if (!ctx->passing) {
        return NGX_OK;
    }

    if (!ctx->header_sent) {
        rc = ngx_http_kontext_whole_header(ctx);

        if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
            return NGX_ERROR;
        }
    }

    if (broken && own == NULL) {

        /* no last buffer will follow: what there is goes now */

        ngx_http_kontext_out_flush(ctx, &ll);
    }

    rc = ngx_http_kontext_send_body(r, out);

    if (ctx->last || last || broken) {
        ngx_http_kontext_end(ctx);
    }

    return rc;
}


static ngx_int_t
ngx_http_kontext_whole_buf(ngx_http_kontext_ctx_t *ctx, ngx_buf_t *b,
    ngx_chain_t ***ll)
{
    size_t  len;

    len = ngx_buf_in_memory(b) ? (size_t) (b->last - b->pos) : 0;

    if (len && !ctx->passing && !ctx->holding) {
        b->in_file = 0;

        if (ngx_http_kontext_hold_add(ctx, b->pos, len,
                                      NGX_HTTP_KONTEXT_MAX_WHOLE)
            == NGX_OK)
        {
            b->pos = b->last;
            return NGX_OK;
        }

        ngx_http_kontext_refuse(ctx, KX_REASON_LARGE_RESPONSE);

        if (ngx_http_kontext_whole_pass(ctx, ll) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (ngx_buf_size(b) && !ctx->passing) {

        /* data in a file, which the copy filter does not let through */

        ngx_http_kontext_refuse(ctx, KX_REASON_LARGE_RESPONSE);

        if (ngx_http_kontext_whole_pass(ctx, ll) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return ctx->passing ? ngx_http_kontext_out_link(ctx, ll, b) : NGX_OK;
}


/* what there is goes as it is, and what comes as well */

static ngx_int_t
ngx_http_kontext_whole_pass(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll)
{
    ctx->passing = 1;

    return ngx_http_kontext_out_held(ctx, ll, ctx->held);
}


static void
ngx_http_kontext_whole_read(ngx_http_kontext_ctx_t *ctx)
{
    size_t      len;
    kx_frame_e  verdict;

    /* places are counted from the start of what is held */

    len = ctx->held_len;
    ctx->held_len = 0;

    verdict = ngx_http_kontext_answer_frame(ctx, ctx->held, len, 0);

    ctx->held_len = len;

    if (verdict != KX_FRAME_FINISH) {
        return;
    }

    ngx_http_kontext_answer_finish(ctx);
    ngx_http_kontext_hold_start(ctx);
}


static ngx_int_t
ngx_http_kontext_whole_header(ngx_http_kontext_ctx_t *ctx)
{
    off_t                len;
    ngx_http_request_t  *r;

    r = ctx->request;

    ctx->header_sent = 1;

    if (ctx->injected) {
        len = r->headers_out.content_length_n;

        ngx_http_kontext_change_header(r);

        if (len >= 0) {
            r->headers_out.content_length_n = len + ctx->injected;
        }
    }

    return ngx_http_kontext_send_header(r);
}
