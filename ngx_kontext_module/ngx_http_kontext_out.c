/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Buffers on their way to the next filter, the backend's and our own.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_SPARE  4    /* held, a frame, the end; a flush */


static ngx_chain_t *ngx_http_kontext_out_spared(ngx_chain_t ***ll,
    ngx_chain_t *cl, u_char *p, size_t len);
static ngx_buf_t *ngx_http_kontext_out_buf(ngx_http_kontext_ctx_t *ctx,
    size_t size);


ngx_int_t
ngx_http_kontext_out_link(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    ngx_buf_t *b)
{
    ngx_buf_t    *own;
    ngx_chain_t  *cl;

    if (ngx_buf_size(b) == 0 && !ngx_buf_special(b)) {

        if (!b->last_buf && !b->sync) {
            return NGX_OK;
        }

        /* all of its data was taken out, its marks remain */

        own = ngx_calloc_buf(ctx->request->pool);
        if (own == NULL) {
            return NGX_ERROR;
        }

        own->last_buf = b->last_buf;
        own->last_in_chain = b->last_in_chain;
        own->sync = b->sync;

        b = own;
    }

    cl = ngx_alloc_chain_link(ctx->request->pool);
    if (cl == NULL) {
        return NGX_ERROR;
    }

    /* an event must not wait for the next one, whoever filters after us */

    if (ngx_buf_in_memory(b) && ctx->framer.framing != KX_FRAMING_WHOLE) {
        b->flush = 1;
    }

    cl->buf = b;
    cl->next = NULL;

    **ll = cl;
    *ll = &cl->next;

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_out_own(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    u_char *p, size_t len)
{
    ngx_buf_t  *b;

    if (len == 0) {
        return NGX_OK;
    }

    b = ngx_calloc_buf(ctx->request->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = p;
    b->last = p + len;
    b->memory = 1;

    return ngx_http_kontext_out_link(ctx, ll, b);
}


ngx_int_t
ngx_http_kontext_out_held(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    u_char *p)
{
    ngx_buf_t     *b;
    ngx_chain_t  **start;

    start = *ll;

    if (ngx_http_kontext_out_own(ctx, ll, p,
                                 ctx->held_len - (p - ctx->held))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx->last) {
        b = ngx_calloc_buf(ctx->request->pool);

        if (b) {
            b->last_buf = 1;
            b->last_in_chain = 1;
        }

        if (b == NULL || ngx_http_kontext_out_link(ctx, ll, b) != NGX_OK) {
            *ll = start;
            *start = NULL;
            return NGX_ERROR;
        }
    }

    ctx->held_len = 0;

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_out_spare(ngx_http_kontext_ctx_t *ctx)
{
    ngx_buf_t    *b;
    ngx_uint_t    i;
    ngx_chain_t  *cl;

    cl = ngx_pcalloc(ctx->request->pool,
                     NGX_HTTP_KONTEXT_SPARE
                     * (sizeof(ngx_chain_t) + sizeof(ngx_buf_t)));
    if (cl == NULL) {
        return NGX_ERROR;
    }

    b = (ngx_buf_t *) (cl + NGX_HTTP_KONTEXT_SPARE);

    for (i = 0; i < NGX_HTTP_KONTEXT_SPARE; i++) {
        cl[i].buf = &b[i];
    }

    ctx->spare = cl;

    return NGX_OK;
}


/* links a spare buffer with len bytes, if there are any; the next spare one */

static ngx_chain_t *
ngx_http_kontext_out_spared(ngx_chain_t ***ll, ngx_chain_t *cl, u_char *p,
    size_t len)
{
    ngx_buf_t  *b;

    if (len == 0) {
        return cl;
    }

    b = cl->buf;
    b->pos = p;
    b->last = p + len;
    b->memory = 1;
    b->flush = 1;

    **ll = cl;
    *ll = &cl->next;

    return cl + 1;
}


void
ngx_http_kontext_out_rest(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    ngx_chain_t *in)
{
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
    ngx_http_kontext_hold_end(ctx);

    /* of a buffer whose data was taken out the marks remain */

    while (in && ngx_buf_size(in->buf) == 0 && !ngx_buf_special(in->buf)) {
        ctx->last |= in->buf->last_buf;
        in = in->next;
    }

    cl = ngx_http_kontext_out_spared(ll, ctx->spare, ctx->held, ctx->held_len);
    cl = ngx_http_kontext_out_spared(ll, cl, ctx->frame, ctx->frame_len);

    if (ctx->last) {
        b = cl->buf;
        b->last_buf = 1;
        b->last_in_chain = 1;

        **ll = cl;
        *ll = &cl->next;
    }

    ctx->kept = 0;
    ctx->held_len = 0;
    ctx->frame_len = 0;

    **ll = in;
}


void
ngx_http_kontext_out_flush(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll)
{
    ngx_chain_t  *cl;

    cl = &ctx->spare[NGX_HTTP_KONTEXT_SPARE - 1];

    cl->buf->flush = 1;

    **ll = cl;
    *ll = &cl->next;
}


ngx_int_t
ngx_http_kontext_out_copy(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    const u_char *p, size_t len)
{
    ngx_buf_t  *b;

    if (len == 0) {
        return NGX_OK;
    }

    b = ngx_http_kontext_out_buf(ctx, len);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->last = ngx_cpymem(b->pos, p, len);

    return ngx_http_kontext_out_link(ctx, ll, b);
}


/* a buffer of ours with room for size bytes, one that was sent if possible */

static ngx_buf_t *
ngx_http_kontext_out_buf(ngx_http_kontext_ctx_t *ctx, size_t size)
{
    ngx_buf_t    *b;
    ngx_chain_t  *cl, **ll;

    for (ll = &ctx->free; *ll; ll = &cl->next) {
        cl = *ll;
        b = cl->buf;

        if ((size_t) (b->end - b->start) >= size) {
            *ll = cl->next;
            ngx_free_chain(ctx->request->pool, cl);

            b->pos = b->start;
            b->last = b->start;

            return b;
        }
    }

    b = ngx_create_temp_buf(ctx->request->pool, ngx_max(size, 1024));

    if (b) {
        b->tag = (ngx_buf_tag_t) &ngx_http_kontext_module;
    }

    return b;
}


void
ngx_http_kontext_out_sent(ngx_http_kontext_ctx_t *ctx, ngx_chain_t **out)
{
    ngx_chain_t  *cl;

    ngx_chain_update_chains(ctx->request->pool, &ctx->free, &ctx->busy, out,
                            (ngx_buf_tag_t) &ngx_http_kontext_module);

    ctx->copies = 0;

    for (cl = ctx->busy; cl; cl = cl->next) {
        if (cl->buf->tag == (ngx_buf_tag_t) &ngx_http_kontext_module) {
            ctx->copies += cl->buf->end - cl->buf->start;
        }
    }
}
