/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A streamed answer on its way to the client.  Whole frames pass in the
 * buffers they came in; an unfinished one is kept back until its end; the
 * frame with the finish takes the ad, or waits for it.
 */


#include "ngx_http_kontext.h"


static const u_char *ngx_http_kontext_stream_same(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t **in);
static ngx_int_t ngx_http_kontext_stream_special(ngx_http_kontext_ctx_t *ctx,
    ngx_buf_t *b, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_end(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_read(ngx_http_kontext_ctx_t *ctx,
    ngx_buf_t *b, const u_char *p, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_large(ngx_http_kontext_ctx_t *ctx,
    ngx_buf_t *b, const u_char **p, const u_char *end, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_frame(ngx_http_kontext_ctx_t *ctx,
    ngx_buf_t *b, const u_char *p, size_t len, ngx_uint_t head,
    ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_flush(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_flush_kept(
    ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_keep(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len);


/* an ad that was not shown before the user went on is lost */

void
ngx_http_kontext_check_superseded(ngx_http_kontext_ctx_t *ctx)
{
    if ((ctx->status == NGX_HTTP_KONTEXT_PENDING
         || ctx->status == NGX_HTTP_KONTEXT_FILLED)
        && ctx->reason == KX_REASON_NONE
        && ctx->fetch == NULL
        && ngx_http_kontext_session_turned(&ctx->turn, &ctx->turns)
        && ngx_http_kontext_session_look(&ctx->turn, NULL) == NGX_DECLINED)
    {
        ngx_http_kontext_superseded(ctx);
    }
}


ngx_int_t
ngx_http_kontext_stream(ngx_http_kontext_ctx_t *ctx, ngx_chain_t *in)
{
    ngx_int_t            rc;
    ngx_buf_t           *b;
    ngx_uint_t           last, sent, broken;
    ngx_chain_t         *cl, *same, *out, **ll, **own;
    const u_char        *p;
    ngx_http_request_t  *r;

    r = ctx->request;

    same = in;
    p = ngx_http_kontext_stream_same(ctx, &same);

    if (same == NULL && in) {
        ctx->flushed = 1;

        rc = ngx_http_kontext_send_body(r, in);

        ngx_http_kontext_analyse_post(ctx);

        return rc;
    }

    ngx_http_kontext_check_superseded(ctx);

    out = NULL;
    ll = &out;
    own = NULL;
    cl = in;
    last = 0;
    broken = 0;

    for ( /* void */ ; cl != same; cl = cl->next) {
        if (ngx_http_kontext_out_link(ctx, &ll, cl->buf) != NGX_OK) {
            goto nomem;
        }
    }

    if (ctx->status == NGX_HTTP_KONTEXT_BYPASS) {

        /* it turned out that nothing is to be put in */

        if (ngx_http_kontext_stream_flush(ctx, &ll) != NGX_OK) {
            goto nomem;
        }

        ctx->passing = 1;
    }

    for ( /* void */ ; cl; cl = cl->next) {
        b = cl->buf;
        last |= b->last_buf;
        broken |= ngx_http_kontext_broken(r, b);

        if (ngx_buf_in_memory(b) && b->last > b->pos) {
            rc = ngx_http_kontext_stream_read(ctx, b,
                                              (cl == same && p) ? p : b->pos,
                                              &ll);

        } else {
            rc = ngx_http_kontext_stream_special(ctx, b, &ll);
        }

        if (rc != NGX_OK) {
            goto nomem;
        }
    }

    if (last && ctx->holding) {
        ctx->last = 1;
    }

    if (ctx->holding && ngx_http_kontext_hold_over(ctx)) {
        last = ctx->last;

        if (ngx_http_kontext_hold_release(ctx, &ll) != NGX_OK) {
            goto nomem;
        }
    }

    goto send;

nomem:

    own = ll;

    ngx_http_kontext_out_rest(ctx, &own, cl);

    for ( /* void */ ; cl; cl = cl->next) {
        last |= cl->buf->last_buf;
        broken |= ngx_http_kontext_broken(r, cl->buf);
    }

    last |= ctx->last;

send:

    if ((last || broken) && !ctx->holding
        && ctx->reason == KX_REASON_NONE && !ctx->finished)
    {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_FINISH);
    }

    if (out == NULL && in && !ctx->flushed && !ctx->holding) {

        /* a frame has only begun, but the header shall go now */

        b = ngx_calloc_buf(r->pool);

        if (b) {
            b->flush = 1;

            /* for want of memory it goes with the frame */

            (void) ngx_http_kontext_out_link(ctx, &ll, b);
        }
    }

    ctx->flushed = 1;

    if (out == NULL && in && ctx->busy == NULL && !r->connection->buffered) {
        return NGX_OK;
    }

    sent = (out != NULL);

    rc = ngx_http_kontext_send_body(r, out);

    if (own) {
        *own = NULL;
    }

    ngx_http_kontext_out_sent(ctx, &out);

    if ((last || broken) && !ctx->holding) {

        if (!ctx->analysed) {
            ctx->response = KX_REASON_NO_FINISH;
        }

        ngx_http_kontext_end(ctx);

    } else if (sent) {
        ngx_http_kontext_analyse_post(ctx);
    }

    return rc;
}


/*
 * Most buffers have nothing but frames that are like the ones before: they can
 * go on in the chain they came in.  Sets in to the first one that cannot, and
 * returns the place where that one is to be read on, or NULL: at its start.
 */

static const u_char *
ngx_http_kontext_stream_same(ngx_http_kontext_ctx_t *ctx, ngx_chain_t **in)
{
    ngx_buf_t     *b;
    ngx_chain_t   *cl;
    const u_char  *p;

    if (ctx->status == NGX_HTTP_KONTEXT_BYPASS || ctx->frame_len || ctx->kept
        || ctx->skipping || ctx->holding || ctx->busy)
    {
        return NULL;
    }

    for (cl = *in; cl; cl = cl->next) {
        b = cl->buf;

        *in = cl;

        if (!ngx_buf_in_memory(b) || b->pos == b->last || b->last_buf) {
            return NULL;
        }

        p = kx_answer_repeat(&ctx->answer, &ctx->framer, b->pos, b->last);

        if (p != b->last) {
            return p;
        }

        /* see ngx_http_kontext_stream_read(), ngx_http_kontext_out_link() */

        b->in_file = 0;
        b->flush = 1;
    }

    *in = NULL;

    return NULL;
}


/* a buffer without data that can be read */

static ngx_int_t
ngx_http_kontext_stream_special(ngx_http_kontext_ctx_t *ctx, ngx_buf_t *b,
    ngx_chain_t ***ll)
{
    ngx_uint_t  broken;

    broken = ngx_http_kontext_broken(ctx->request, b);

    if ((b->last_buf || broken) && !ctx->passing && !ctx->holding) {

        if (b->last_buf && ngx_http_kontext_stream_end(ctx, ll) != NGX_OK) {
            return NGX_ERROR;
        }

        if (!ctx->holding) {

            /* it ends within a frame: what came of it goes as it is */

            if (ctx->frame_len) {
                ctx->skipping = 1;
            }

            if (ngx_http_kontext_stream_flush(ctx, ll) != NGX_OK) {
                return NGX_ERROR;
            }
        }
    }

    if (!ctx->holding) {
        return ngx_http_kontext_out_link(ctx, ll, b);
    }

    if (ngx_buf_size(b)) {

        /* data in a file, which the copy filter does not let through */

        ctx->expired = 1;

        if (ngx_http_kontext_hold_release(ctx, ll) != NGX_OK) {
            return NGX_ERROR;
        }

        return ngx_http_kontext_out_link(ctx, ll, b);
    }

    if (broken) {
        ctx->expired = 1;
    }

    return NGX_OK;
}


/* the end of the answer may be the end of a frame */

static ngx_int_t
ngx_http_kontext_stream_end(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll)
{
    if (ctx->frame_len == 0 || ctx->skipping
        || !kx_framer_last(&ctx->framer))
    {
        return NGX_OK;
    }

    return ngx_http_kontext_stream_frame(ctx, NULL, ctx->frame,
                                         ctx->frame_len, 0, ll);
}


/* reads a buffer from p on: what is in front of that was read */

static ngx_int_t
ngx_http_kontext_stream_read(ngx_http_kontext_ctx_t *ctx, ngx_buf_t *b,
    const u_char *p, ngx_chain_t ***ll)
{
    const u_char  *end;

    /* what is in memory counts: it may be cut, and the file would not be */

    b->in_file = 0;

    while (p < b->last && !ctx->passing && !ctx->holding) {

        if (ctx->frame_len == 0 && !ctx->kept && !ctx->skipping) {
            p = kx_answer_repeat(&ctx->answer, &ctx->framer, p, b->last);

            if (p == b->last) {
                break;
            }
        }

        end = kx_framer_next(&ctx->framer, p, b->last);

        if (ctx->skipping) {

            if (end == NULL) {
                break;
            }

            ctx->skipping = 0;
            ctx->first = 0;
            p = end;
            continue;
        }

        if (end == NULL && b->last_buf) {

            if (!kx_framer_last(&ctx->framer)) {

                /* it has no end: it goes as it is, after what came before */

                if (ngx_http_kontext_stream_flush(ctx, ll) != NGX_OK) {
                    return NGX_ERROR;
                }

                ctx->passing = 1;
                break;
            }

            end = b->last;
        }

        if (end && ctx->frame_len == 0) {

            if (ngx_http_kontext_stream_frame(ctx, b, p, end - p, 0, ll)
                != NGX_OK)
            {
                return NGX_ERROR;
            }

            p = end;
            continue;
        }

        /* it began in another buffer, or it goes on in one */

        if (ngx_http_kontext_stream_keep(ctx, p, (end ? end : b->last) - p)
            != NGX_OK)
        {
            if (ngx_http_kontext_stream_large(ctx, b, &p, end, ll)
                != NGX_OK)
            {
                return NGX_ERROR;
            }

            continue;
        }

        if (end == NULL) {
            b->last = (u_char *) p;
            break;
        }

        b->pos = (u_char *) end;
        p = end;

        if (ngx_http_kontext_stream_frame(ctx, NULL, ctx->frame,
                                          ctx->frame_len, 0, ll)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    if (b->last_buf && !ctx->holding
        && ngx_http_kontext_stream_flush(ctx, ll) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx->holding) {

        if (ngx_http_kontext_hold_add(ctx, b->pos, b->last - b->pos,
                                      NGX_HTTP_KONTEXT_MAX_FRAME
                                      + NGX_HTTP_KONTEXT_MAX_HELD)
            == NGX_OK)
        {
            b->pos = b->last;
            return NGX_OK;
        }

        /* too much: the wait is over */

        ctx->expired = 1;

        if (ngx_http_kontext_hold_release(ctx, ll) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (ngx_http_kontext_out_link(ctx, ll, b) == NGX_OK) {
        return NGX_OK;
    }

    if (ngx_buf_size(b)) {

        /* the frame that it ends with goes where it came from */

        b->last += ctx->frame_len;
        ctx->frame_len = 0;
    }

    return NGX_ERROR;
}


/*
 * A frame is too large to be kept, or there is no memory: it passes unread,
 * but for its beginning, which may say that it is the finish.
 */

static ngx_int_t
ngx_http_kontext_stream_large(ngx_http_kontext_ctx_t *ctx, ngx_buf_t *b,
    const u_char **p, const u_char *end, ngx_chain_t ***ll)
{
    size_t  len;

    if (end == NULL && ctx->answer.dialect->head) {

        len = ngx_min((size_t) (b->last - *p),
                      NGX_HTTP_KONTEXT_MAX_FRAME - ctx->frame_len);

        if (ngx_http_kontext_out_copy(ctx, ll, b->pos, *p - b->pos)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        b->pos = (u_char *) *p;

        if (ngx_http_kontext_stream_keep(ctx, *p, len) == NGX_OK) {
            *p += len;
            b->pos = (u_char *) *p;
            ctx->skipping = 1;

            return ngx_http_kontext_stream_frame(ctx, NULL, ctx->frame,
                                                 ctx->frame_len, 1, ll);
        }
    }

    if (ngx_http_kontext_stream_flush(ctx, ll) != NGX_OK) {
        return NGX_ERROR;
    }

    ctx->skipping = (end == NULL);
    ctx->first = 0;

    *p = end ? end : b->last;

    return NGX_OK;
}


/*
 * Reads a frame of len bytes at p: in the buffer b, or if that is NULL in
 * ctx->frame.
 */

static ngx_int_t
ngx_http_kontext_stream_frame(ngx_http_kontext_ctx_t *ctx, ngx_buf_t *b,
    const u_char *p, size_t len, ngx_uint_t head, ngx_chain_t ***ll)
{
    kx_frame_e  verdict;

    verdict = ngx_http_kontext_answer_frame(ctx, p, len, head);

    if (verdict == KX_FRAME_PASS || verdict == KX_FRAME_END) {

        /* what was kept has been right in front of it */

        return (b && !ctx->kept) ? NGX_OK
                                 : ngx_http_kontext_stream_flush(ctx, ll);
    }

    if (b) {

        /* what is in front of it goes now */

        if (ngx_http_kontext_out_copy(ctx, ll, b->pos, p - b->pos)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        b->pos = (u_char *) p;
    }

    if (verdict == KX_FRAME_KEEP
        && ngx_http_kontext_stream_flush_kept(ctx, ll) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (verdict == KX_FRAME_FINISH) {
        ngx_http_kontext_answer_finish(ctx);
    }

    if (ngx_http_kontext_hold_add(ctx, p, len,
                                  NGX_HTTP_KONTEXT_MAX_FRAME
                                  + NGX_HTTP_KONTEXT_MAX_HELD)
        != NGX_OK)
    {
        /* no memory: the frame goes, and the ad does not */

        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        ctx->passing = 1;

        return ngx_http_kontext_stream_flush(ctx, ll);
    }

    if (b) {
        b->pos = (u_char *) p + len;

    } else {
        ctx->frame_len = 0;
    }

    if (verdict == KX_FRAME_KEEP) {
        ctx->kept = 1;
        return NGX_OK;
    }

    ctx->kept = 0;

    ngx_http_kontext_hold_start(ctx);

    return ngx_http_kontext_hold_over(ctx)
           ? ngx_http_kontext_hold_release(ctx, ll) : NGX_OK;
}


/* sends what was kept back of frames that are of no interest any more */

static ngx_int_t
ngx_http_kontext_stream_flush(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll)
{
    if (ngx_http_kontext_stream_flush_kept(ctx, ll) != NGX_OK
        || ngx_http_kontext_out_copy(ctx, ll, ctx->frame, ctx->frame_len)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    ctx->frame_len = 0;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_stream_flush_kept(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll)
{
    if (!ctx->kept) {
        return NGX_OK;
    }

    if (ngx_http_kontext_out_copy(ctx, ll, ctx->held, ctx->held_len)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ctx->kept = 0;
    ctx->held_len = 0;

    return NGX_OK;
}


/* adds to the unfinished frame; NGX_DECLINED: it is too large */

static ngx_int_t
ngx_http_kontext_stream_keep(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len)
{
    size_t   size, max;
    u_char  *frame;

    /*
     * What large frames leave behind on the way to a client that does not read
     * shall not cost it the small one that finishes the answer.
     */

    max = NGX_HTTP_KONTEXT_MAX_COPIES;

    if (ctx->frame_len + len <= NGX_HTTP_KONTEXT_SMALL_FRAME) {
        max += NGX_HTTP_KONTEXT_MAX_FRAME;
    }

    if (len > NGX_HTTP_KONTEXT_MAX_FRAME - ctx->frame_len
        || ctx->copies > max)
    {
        return NGX_DECLINED;
    }

    if (len > ctx->frame_size - ctx->frame_len) {
        size = ngx_max(ctx->frame_size * 2, ctx->frame_len + len);
        size = ngx_min(ngx_max(size, 1024), NGX_HTTP_KONTEXT_MAX_FRAME);

        frame = ngx_pnalloc(ctx->request->pool, size);
        if (frame == NULL) {
            return NGX_DECLINED;
        }

        if (ctx->frame_len) {
            ngx_memcpy(frame, ctx->frame, ctx->frame_len);
        }

        ctx->frame = frame;
        ctx->frame_size = size;
    }

    ngx_memcpy(ctx->frame + ctx->frame_len, p, len);
    ctx->frame_len += len;

    return NGX_OK;
}
