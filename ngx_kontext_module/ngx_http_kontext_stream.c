/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The answer on its way to the client.  Whole frames pass in the buffers they
 * came in; an unfinished one is kept back until its end; the frame with the
 * finish marker takes the ad, or waits for it.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_POLL  10    /* ms */


static ngx_int_t ngx_http_kontext_header_filter(ngx_http_request_t *r);
static kx_reason_e ngx_http_kontext_check_response(ngx_http_request_t *r);
static void ngx_http_kontext_open(ngx_http_request_t *r,
    ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);
static ngx_uint_t ngx_http_kontext_broken(ngx_http_request_t *r,
    ngx_buf_t *b);
static ngx_int_t ngx_http_kontext_stream(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t *in);
static ngx_int_t ngx_http_kontext_stream_special(ngx_http_kontext_ctx_t *ctx,
    ngx_buf_t *b, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_read(ngx_http_kontext_ctx_t *ctx,
    ngx_buf_t *b, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_keep(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len);
static ngx_int_t ngx_http_kontext_stream_emit(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, const u_char *p, size_t len);
static kx_frame_e ngx_http_kontext_stream_frame(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len, size_t *at);
static ngx_int_t ngx_http_kontext_stream_finish(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len, size_t at);
static void ngx_http_kontext_stream_wait(ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_stream_hold(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len);
static ngx_uint_t ngx_http_kontext_decided(ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_stream_release(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_stream_member(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *member);
static ngx_int_t ngx_http_kontext_stream_link(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, ngx_buf_t *b);
static ngx_int_t ngx_http_kontext_stream_own(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, u_char *p, size_t len);
static ngx_buf_t *ngx_http_kontext_stream_buf(ngx_http_kontext_ctx_t *ctx,
    size_t size);
static void ngx_http_kontext_stream_sent(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t **out);
static void ngx_http_kontext_stream_event(ngx_event_t *ev);
static void ngx_http_kontext_stream_resume(ngx_http_kontext_ctx_t *ctx);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


ngx_int_t
ngx_http_kontext_stream_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_kontext_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_kontext_body_filter;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_header_filter(ngx_http_request_t *r)
{
    kx_reason_e               reason;
    ngx_http_kontext_ctx_t   *ctx;
    ngx_http_kontext_call_t  *call;

    if (r != r->main) {
        call = ngx_http_kontext_call_of(r);

        return call ? ngx_http_kontext_call_header(r, call)
                    : ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_kontext_get_ctx(r);

    if (ctx == NULL || !ctx->body_done || ctx->header_seen
        || ctx->status == NGX_HTTP_KONTEXT_BYPASS)
    {
        return ngx_http_next_header_filter(r);
    }

    ctx->header_seen = 1;

    reason = ngx_http_kontext_check_response(r);

    if (reason != KX_REASON_NONE) {

        if (ctx->analysed) {
            ngx_http_kontext_refuse(ctx, reason);

        } else {
            ctx->response = reason;
        }

        ngx_http_kontext_end(ctx);

        return ngx_http_next_header_filter(r);
    }

    /* a length must be known to be wrong before it is taken away */

    if (r->headers_out.content_length_n >= 0) {
        ngx_http_kontext_analyse(ctx);
    }

    if (!ctx->track_only && ctx->status != NGX_HTTP_KONTEXT_BYPASS) {
        ngx_http_kontext_open(r, ctx);
    }

    return ngx_http_next_header_filter(r);
}


static kx_reason_e
ngx_http_kontext_check_response(ngx_http_request_t *r)
{
    size_t      len;
    ngx_str_t  *type;

    if (r->headers_out.status != NGX_HTTP_OK || r->header_only) {
        return KX_REASON_STATUS;
    }

    if (r->headers_out.content_encoding
        && r->headers_out.content_encoding->value.len)
    {
        return KX_REASON_ENCODED_RESPONSE;
    }

    type = &r->headers_out.content_type;
    len = sizeof("text/event-stream") - 1;

    if (type->len < len
        || ngx_strncasecmp(type->data, (u_char *) "text/event-stream", len)
           != 0
        || (type->len > len
            && type->data[len] != ';' && type->data[len] != ' '))
    {
        return KX_REASON_RESPONSE_TYPE;
    }

    return KX_REASON_NONE;
}


static void
ngx_http_kontext_open(ngx_http_request_t *r, ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_upstream_t  *u;

    ctx->streaming = 1;
    ctx->first = 1;

    kx_answer_init(&ctx->answer, &ctx->cv);

    r->filter_need_in_memory = 1;

    if (ctx->conf->inject == NGX_HTTP_KONTEXT_INJECT_MEMBER
        && ctx->status != NGX_HTTP_KONTEXT_NO_FILL
        && ctx->status != NGX_HTTP_KONTEXT_ERROR)
    {
        ngx_http_clear_content_length(r);
        ngx_http_clear_accept_ranges(r);
        ngx_http_clear_last_modified(r);
        ngx_http_weak_etag(r);
    }

    /*
     * As "X-Accel-Buffering: no" from the backend: tokens flow at once also
     * where proxy_buffering was left on.
     */

    u = r->upstream;

    if (u && u->buffering && u->conf->change_buffering && !u->store
#if (NGX_HTTP_CACHE)
        && !u->cacheable && r->cache == NULL
#endif
       )
    {
        u->buffering = 0;
    }

    ngx_log_debug0(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext reads along the answer");
}


static ngx_int_t
ngx_http_kontext_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_int_t                 rc;
    ngx_uint_t                last;
    ngx_chain_t              *cl;
    ngx_http_kontext_ctx_t   *ctx;
    ngx_http_kontext_call_t  *call;

    if (r != r->main) {
        call = ngx_http_kontext_call_of(r);

        return call ? ngx_http_kontext_call_body(r, call, in)
                    : ngx_http_next_body_filter(r, in);
    }

    ctx = ngx_http_kontext_get_ctx(r);

    if (ctx == NULL || ctx->ended) {
        return ngx_http_next_body_filter(r, in);
    }

    if (ctx->streaming && !ctx->passing) {
        return ngx_http_kontext_stream(ctx, in);
    }

    last = 0;

    for (cl = in; cl; cl = cl->next) {
        last |= cl->buf->last_buf || ngx_http_kontext_broken(r, cl->buf);
    }

    rc = ngx_http_next_body_filter(r, in);

    if (last) {
        ngx_http_kontext_end(ctx);

    } else if (in) {
        ngx_http_kontext_analyse_post(ctx);
    }

    return rc;
}


/*
 * An upstream that died is said to the filters as a mere flush, after its
 * connection was closed; no last buffer follows.
 */

static ngx_uint_t
ngx_http_kontext_broken(ngx_http_request_t *r, ngx_buf_t *b)
{
    return b->flush && !b->last_buf && ngx_buf_size(b) == 0
           && r->upstream && r->upstream->peer.connection == NULL;
}


static ngx_int_t
ngx_http_kontext_stream(ngx_http_kontext_ctx_t *ctx, ngx_chain_t *in)
{
    ngx_int_t            rc;
    ngx_buf_t           *b;
    ngx_uint_t           last, sent, broken;
    ngx_chain_t         *cl, *out, **ll;
    ngx_http_request_t  *r;

    r = ctx->request;

    /* an ad that was not shown before the user went on is lost */

    if ((ctx->status == NGX_HTTP_KONTEXT_PENDING
         || ctx->status == NGX_HTTP_KONTEXT_FILLED)
        && ctx->reason == KX_REASON_NONE
        && ngx_http_kontext_zone_turned(ctx)
        && ngx_http_kontext_zone_look(ctx, NULL) == NGX_DECLINED)
    {
        ngx_http_kontext_superseded(ctx);
    }

    out = NULL;
    ll = &out;
    last = 0;
    broken = 0;

    if (ctx->status == NGX_HTTP_KONTEXT_BYPASS) {

        /* it turned out that nothing is to be put in */

        if (ngx_http_kontext_stream_emit(ctx, &ll, ctx->frame, ctx->frame_len)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        ctx->frame_len = 0;
        ctx->passing = 1;
    }

    for (cl = in; cl; cl = cl->next) {
        b = cl->buf;
        last |= b->last_buf;
        broken |= ngx_http_kontext_broken(r, b);

        if (ngx_buf_in_memory(b) && b->last > b->pos) {
            rc = ngx_http_kontext_stream_read(ctx, b, &ll);

        } else {
            rc = ngx_http_kontext_stream_special(ctx, b, &ll);
        }

        if (rc != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (last && ctx->holding) {
        ctx->last = 1;
    }

    if (ctx->holding && ngx_http_kontext_decided(ctx)) {
        last = ctx->last;

        if (ngx_http_kontext_stream_release(ctx, &ll) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if ((last || broken) && !ctx->holding
        && ctx->reason == KX_REASON_NONE && !ctx->finished)
    {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_FINISH);
    }

    if (out == NULL && in && !ctx->flushed && !ctx->holding) {

        /* a frame has only begun, but the header shall go now */

        b = ngx_calloc_buf(r->pool);
        if (b == NULL) {
            return NGX_ERROR;
        }

        b->flush = 1;

        if (ngx_http_kontext_stream_link(ctx, &ll, b) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    ctx->flushed = 1;

    if (out == NULL && in && ctx->busy == NULL && !r->connection->buffered) {
        return NGX_OK;
    }

    sent = (out != NULL);

    rc = ngx_http_next_body_filter(r, out);

    ngx_http_kontext_stream_sent(ctx, &out);

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


/* a buffer without data that can be read */

static ngx_int_t
ngx_http_kontext_stream_special(ngx_http_kontext_ctx_t *ctx, ngx_buf_t *b,
    ngx_chain_t ***ll)
{
    ngx_uint_t  broken;

    broken = ngx_http_kontext_broken(ctx->request, b);

    if (ctx->frame_len && (b->last_buf || broken)) {

        /* the stream ends within a frame: what came of it goes as it is */

        if (ngx_http_kontext_stream_emit(ctx, ll, ctx->frame, ctx->frame_len)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        ctx->frame_len = 0;
        ctx->skipping = 1;
    }

    if (!ctx->holding) {
        return ngx_http_kontext_stream_link(ctx, ll, b);
    }

    if (ngx_buf_size(b)) {

        /* data in a file, which the copy filter does not let through */

        ctx->expired = 1;

        if (ngx_http_kontext_stream_release(ctx, ll) != NGX_OK) {
            return NGX_ERROR;
        }

        return ngx_http_kontext_stream_link(ctx, ll, b);
    }

    if (broken) {
        ctx->expired = 1;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_stream_read(ngx_http_kontext_ctx_t *ctx, ngx_buf_t *b,
    ngx_chain_t ***ll)
{
    size_t         at, len;
    kx_frame_e     verdict;
    const u_char  *p, *end, *frame;

    /* what is in memory counts: it may be cut, and the file would not be */

    b->in_file = 0;

    p = b->pos;

    while (p < b->last && !ctx->passing && !ctx->holding) {

        end = kx_sse_frame(&ctx->sse, p, b->last);

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

            /* it has no end: it goes as it is, after what came of it before */

            if (ngx_http_kontext_stream_emit(ctx, ll, ctx->frame,
                                             ctx->frame_len)
                != NGX_OK)
            {
                return NGX_ERROR;
            }

            ctx->frame_len = 0;
            ctx->passing = 1;
            break;
        }

        len = (end ? end : b->last) - p;

        if (end == NULL || ctx->frame_len) {

            if (ngx_http_kontext_stream_keep(ctx, p, len) != NGX_OK) {

                /* too large, or no memory: it passes unread */

                if (ngx_http_kontext_stream_emit(ctx, ll, ctx->frame,
                                                 ctx->frame_len)
                    != NGX_OK)
                {
                    return NGX_ERROR;
                }

                ctx->frame_len = 0;
                ctx->skipping = (end == NULL);
                ctx->first = 0;
                p += len;
                continue;
            }

            if (end == NULL) {
                b->last = (u_char *) p;
                break;
            }

            b->pos = (u_char *) end;

            frame = ctx->frame;
            len = ctx->frame_len;

        } else {
            frame = p;
        }

        verdict = ngx_http_kontext_stream_frame(ctx, frame, len, &at);

        if (verdict == KX_FRAME_FINISH && !ctx->analysed) {

            /* the whole answer came at once */

            ngx_http_kontext_analyse(ctx);

            if (ctx->status == NGX_HTTP_KONTEXT_BYPASS) {
                verdict = KX_FRAME_PASS;
                ctx->passing = 1;

            } else if (ctx->answer.nstarted < ctx->cv.choices) {

                /* more answers were asked for than it was known */

                verdict = KX_FRAME_PASS;
                ctx->answer.complete = 0;
            }
        }

        if (verdict == KX_FRAME_FINISH) {

            /* what is in front of it goes now */

            if (frame == p && p > b->pos) {

                if (ngx_http_kontext_stream_emit(ctx, ll, b->pos, p - b->pos)
                    != NGX_OK)
                {
                    return NGX_ERROR;
                }
            }

            b->pos = (u_char *) end;

            if (ngx_http_kontext_stream_finish(ctx, frame, len, at) == NGX_OK)
            {
                ctx->frame_len = 0;

                if (ngx_http_kontext_decided(ctx)
                    && ngx_http_kontext_stream_release(ctx, ll) != NGX_OK)
                {
                    return NGX_ERROR;
                }

            } else {

                /* no memory: the frame goes, and the ad does not */

                ctx->passing = 1;

                if (ngx_http_kontext_stream_emit(ctx, ll, frame, len)
                    != NGX_OK)
                {
                    return NGX_ERROR;
                }

                ctx->frame_len = 0;
            }

        } else if (ctx->frame_len) {

            if (ngx_http_kontext_stream_emit(ctx, ll, ctx->frame,
                                             ctx->frame_len)
                != NGX_OK)
            {
                return NGX_ERROR;
            }

            ctx->frame_len = 0;
        }

        p = end;
    }

    if (ctx->holding) {

        if (ngx_http_kontext_stream_hold(ctx, b->pos, b->last - b->pos)
            == NGX_OK)
        {
            b->pos = b->last;
            return NGX_OK;
        }

        /* too much: the wait is over */

        ctx->expired = 1;

        if (ngx_http_kontext_stream_release(ctx, ll) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return ngx_http_kontext_stream_link(ctx, ll, b);
}


/* adds to the unfinished frame; NGX_DECLINED: it is too large */

static ngx_int_t
ngx_http_kontext_stream_keep(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len)
{
    size_t   size;
    u_char  *frame;

    if (len > NGX_HTTP_KONTEXT_MAX_FRAME - ctx->frame_len
        || ctx->copies > NGX_HTTP_KONTEXT_MAX_COPIES)
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


/* sends a copy of some bytes */

static ngx_int_t
ngx_http_kontext_stream_emit(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    const u_char *p, size_t len)
{
    ngx_buf_t  *b;

    if (len == 0) {
        return NGX_OK;
    }

    b = ngx_http_kontext_stream_buf(ctx, len);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->last = ngx_cpymem(b->pos, p, len);

    return ngx_http_kontext_stream_link(ctx, ll, b);
}


static kx_frame_e
ngx_http_kontext_stream_frame(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len, size_t *at)
{
    size_t           n;
    u_char          *scratch, buf[4096];
    unsigned         first;
    kx_frame_e       verdict;
    kx_sse_event_t   ev;

    first = ctx->first;
    ctx->first = 0;

    /* several data lines, which hardly anybody sends, are joined in it */

    scratch = buf;

    if (len > sizeof(buf)) {
        scratch = ngx_alloc(len, ctx->request->connection->log);
        if (scratch == NULL) {
            return KX_FRAME_PASS;
        }
    }

    verdict = KX_FRAME_PASS;

    if (kx_sse_parse(&ev, p, len, first, scratch) == KX_OK) {

        verdict = ctx->answer.dialect->frame(&ctx->answer, &ev.event,
                                             &ev.data);

        if (verdict == KX_FRAME_FINISH) {

            /* counted from the end, as the data may have been joined */

            n = ev.data.data + ev.data.len - ctx->answer.at;

            if (n <= ev.tail.len) {
                *at = ev.tail.data + ev.tail.len - n - p;

            } else {
                verdict = KX_FRAME_PASS;
            }
        }
    }

    if (scratch != buf) {
        ngx_free(scratch);
    }

    if (verdict != KX_FRAME_FINISH
        && ctx->answer.refused != KX_REASON_NONE)
    {
        ngx_http_kontext_refuse(ctx, ctx->answer.refused);
        ctx->passing = 1;
    }

    return verdict;
}


/* the last safe moment: the frame is copied, and decided about */

static ngx_int_t
ngx_http_kontext_stream_finish(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len, size_t at)
{
    int      rc;
    u_char  *id;

    ctx->finished = 1;

    rc = kx_answer_digest(&ctx->answer,
                          &ctx->conversation,
                          ctx->message);

    if (ctx->answer.refused != KX_REASON_NONE) {
        ngx_http_kontext_refuse(ctx, ctx->answer.refused);

    } else if (rc != KX_OK) {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_TEXT);
    }

    if (rc == KX_OK) {
        id = ngx_pnalloc(ctx->request->pool, KX_MESSAGE_ID_LEN);

        if (id) {
            kx_message_id(id, ctx->message);
            ctx->message_id.data = id;
            ctx->message_id.len = KX_MESSAGE_ID_LEN;

        } else {
            ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        }
    }

    if (ngx_http_kontext_stream_hold(ctx, p, len) != NGX_OK) {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        return NGX_DECLINED;
    }

    ctx->held_at = at;
    ctx->holding = 1;
    ctx->hold_start = ngx_current_msec;

    ctx->request->buffered |= NGX_HTTP_KONTEXT_BUFFERED;

    if (!ngx_http_kontext_decided(ctx)) {
        ngx_http_kontext_stream_wait(ctx);
    }

    return NGX_OK;
}


static void
ngx_http_kontext_stream_wait(ngx_http_kontext_ctx_t *ctx)
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

    ctx->grace.handler = ngx_http_kontext_stream_event;
    ctx->grace.data = ctx;
    ctx->grace.log = log;

    ngx_add_timer(&ctx->grace, grace);

    if (ctx->waiting) {
        ctx->poll.handler = ngx_http_kontext_stream_event;
        ctx->poll.data = ctx;
        ctx->poll.log = log;

        ngx_add_timer(&ctx->poll, NGX_HTTP_KONTEXT_POLL);
    }
}


static ngx_int_t
ngx_http_kontext_stream_hold(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len)
{
    size_t   size;
    u_char  *held;

    if (len == 0) {
        return NGX_OK;
    }

    if (len > NGX_HTTP_KONTEXT_MAX_FRAME + NGX_HTTP_KONTEXT_MAX_HELD
              - ctx->held_len)
    {
        return NGX_DECLINED;
    }

    if (len > ctx->held_size - ctx->held_len) {
        size = ngx_max(ctx->held_size * 2, ctx->held_len + len);
        size = ngx_max(size, 1024);

        held = ngx_pnalloc(ctx->request->pool, size);
        if (held == NULL) {
            return NGX_DECLINED;
        }

        if (ctx->held_len) {
            ngx_memcpy(held, ctx->held, ctx->held_len);
        }

        ctx->held = held;
        ctx->held_size = size;
    }

    ngx_memcpy(ctx->held + ctx->held_len, p, len);
    ctx->held_len += len;

    return NGX_OK;
}


/* is there nothing more to wait for? */

static ngx_uint_t
ngx_http_kontext_decided(ngx_http_kontext_ctx_t *ctx)
{
    ngx_event_t                 *timer;
    ngx_http_kontext_session_t   s;

    if (ctx->expired || ctx->reason != KX_REASON_NONE
        || ctx->status != NGX_HTTP_KONTEXT_PENDING)
    {
        return 1;
    }

    if (ctx->waiting) {

        switch (ngx_http_kontext_zone_look(ctx, &s)) {

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

    } else if (!ctx->preload.active) {
        return 1;
    }

    if (ctx->conf->grace == 0
        || ngx_http_kontext_call_overflowed(&ctx->preload)
        || ctx->conf->inject != NGX_HTTP_KONTEXT_INJECT_MEMBER)
    {
        return 1;
    }

    /* the next attempt comes too late anyway */

    timer = &ctx->preload.timer;

    return ctx->preload.active && ctx->preload.sr == NULL
           && timer->timer_set
           && (ngx_msec_int_t) (timer->timer.key - ctx->hold_start)
              >= (ngx_msec_int_t) ctx->conf->grace;
}


static ngx_int_t
ngx_http_kontext_stream_release(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll)
{
    u_char              *p;
    ngx_buf_t           *b;
    ngx_str_t            member;
    ngx_http_request_t  *r;

    r = ctx->request;

    ctx->holding = 0;
    ctx->passing = 1;
    ctx->hold_time = ngx_current_msec - ctx->hold_start;

    r->buffered &= ~NGX_HTTP_KONTEXT_BUFFERED;

    if (ctx->grace.timer_set) {
        ngx_del_timer(&ctx->grace);
    }

    if (ctx->poll.timer_set) {
        ngx_del_timer(&ctx->poll);
    }

    if (ctx->status == NGX_HTTP_KONTEXT_PENDING
        && !(ctx->preload.active
             && (ctx->preload.attempt
                 || ngx_http_kontext_call_overflowed(&ctx->preload))))
    {
        ngx_http_kontext_refuse(ctx, KX_REASON_LATE);
    }

    p = ctx->held;
    member.len = 0;

    if (ctx->status == NGX_HTTP_KONTEXT_FILLED
        && ctx->reason == KX_REASON_NONE
        && ngx_http_kontext_stream_member(ctx, &member) == NGX_OK)
    {
        if (ngx_http_kontext_stream_own(ctx, ll, p, ctx->held_at) != NGX_OK
            || ngx_http_kontext_stream_own(ctx, ll, member.data, member.len)
               != NGX_OK)
        {
            return NGX_ERROR;
        }

        p += ctx->held_at;
        ctx->injected = 1;

        ngx_http_kontext_zone_pair(ctx);
    }

    ngx_log_debug4(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext ends the answer: %uz bytes held for %M ms, "
                   "injected:%d last:%d",
                   ctx->held_len, ctx->hold_time, ctx->injected, ctx->last);

    if (ngx_http_kontext_stream_own(ctx, ll, p,
                                    ctx->held + ctx->held_len - p)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx->last) {
        b = ngx_calloc_buf(r->pool);
        if (b == NULL) {
            return NGX_ERROR;
        }

        b->last_buf = 1;
        b->last_in_chain = 1;

        return ngx_http_kontext_stream_link(ctx, ll, b);
    }

    return NGX_OK;
}


/* the member with the comma in front of it, or NGX_DECLINED */

static ngx_int_t
ngx_http_kontext_stream_member(ngx_http_kontext_ctx_t *ctx, ngx_str_t *member)
{
    u_char   *p, *last, *buf, *end;
    kx_ad_t   ad;

    buf = ngx_pnalloc(ctx->request->pool, KX_MAX_MEMBER);
    if (buf == NULL) {
        goto memory;
    }

    ngx_memzero(&ad, sizeof(kx_ad_t));

    ad.origin = ctx->conf->frame_origin;
    ad.message_id = ctx->message_id;
    ad.label = ctx->label;
    ad.sdk_name = ctx->sdk_name;
    ad.theme = ctx->theme;
    ad.placements = ctx->conf->placements->elts;
    ad.bids = ctx->bids;
    ad.nbids = ctx->nbids;

    /* the URL of the first bid, for the variables; then the member */

    end = buf + KX_MAX_MEMBER;

    last = kx_protocol_frame_url(buf, end, &ad, &ctx->bids[0]);
    if (last == NULL) {
        goto large;
    }

    ctx->frame_url.data = buf;
    ctx->frame_url.len = last - buf;

    if (ctx->conf->inject == NGX_HTTP_KONTEXT_INJECT_NONE) {
        ngx_http_kontext_refuse(ctx, KX_REASON_SHADOW);
        return NGX_DECLINED;
    }

    if (end - last < (ssize_t) sizeof(",\"kontext\":")) {
        goto large;
    }

    member->data = last;

    p = ngx_cpymem(last, ",\"kontext\":", sizeof(",\"kontext\":") - 1);

    last = kx_protocol_member(p, end, &ad);
    if (last == NULL) {
        goto large;
    }

    member->len = last - member->data;

    return NGX_OK;

large:

    ngx_http_kontext_refuse(ctx, KX_REASON_LARGE_AD);

    return NGX_DECLINED;

memory:

    ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);

    return NGX_DECLINED;
}


/* links a buffer, unless there is nothing in it */

static ngx_int_t
ngx_http_kontext_stream_link(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
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

    if (ngx_buf_in_memory(b)) {
        b->flush = 1;
    }

    cl->buf = b;
    cl->next = NULL;

    **ll = cl;
    *ll = &cl->next;

    return NGX_OK;
}


/* sends bytes that stay as long as the request */

static ngx_int_t
ngx_http_kontext_stream_own(ngx_http_kontext_ctx_t *ctx, ngx_chain_t ***ll,
    u_char *p, size_t len)
{
    ngx_buf_t  *b;

    b = ngx_calloc_buf(ctx->request->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = p;
    b->last = p + len;
    b->memory = 1;

    return ngx_http_kontext_stream_link(ctx, ll, b);
}


/* a buffer of ours with room for size bytes, one that was sent if possible */

static ngx_buf_t *
ngx_http_kontext_stream_buf(ngx_http_kontext_ctx_t *ctx, size_t size)
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


static void
ngx_http_kontext_stream_sent(ngx_http_kontext_ctx_t *ctx, ngx_chain_t **out)
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


void
ngx_http_kontext_stream_wake(ngx_http_kontext_ctx_t *ctx)
{
    if (ctx->ended || !ctx->holding || ctx->wake.posted) {
        return;
    }

    /* not here: the caller is in the middle of another request */

    ctx->wake.handler = ngx_http_kontext_stream_event;
    ctx->wake.data = ctx;
    ctx->wake.log = ctx->request->connection->log;

    ngx_post_event(&ctx->wake, &ngx_posted_events);
}


static void
ngx_http_kontext_stream_event(ngx_event_t *ev)
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
        ngx_http_kontext_stream_resume(ctx);
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_kontext_stream_resume(ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_request_t  *r;

    r = ctx->request;

    if (!ngx_http_kontext_decided(ctx)) {

        if (ctx->waiting && !ctx->poll.timer_set) {
            ngx_add_timer(&ctx->poll, NGX_HTTP_KONTEXT_POLL);
        }

        return;
    }

    if (ctx->last) {

        /* the backend is done: nginx waits for us to send the rest */

        ngx_http_post_request(r, NULL);
        return;
    }

    /*
     * The request belongs to its upstream, which alone may end it when the
     * client is gone, and which watches over what could not be sent at once.
     */

    (void) ngx_http_output_filter(r, NULL);

    ngx_http_post_request(r, NULL);
}
