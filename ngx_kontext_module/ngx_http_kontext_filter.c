/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The header and the body of each response pass here: the answers of the ad
 * server are captured, those of the chat backend are read along if an ad may
 * go in, and nothing else is touched.
 */


#include "ngx_http_kontext.h"


static ngx_int_t ngx_http_kontext_header_filter(ngx_http_request_t *r);
static kx_reason_e ngx_http_kontext_check_response(ngx_http_request_t *r,
    kx_framing_e *framing);
static ngx_int_t ngx_http_kontext_open(ngx_http_request_t *r,
    ngx_http_kontext_ctx_t *ctx, kx_framing_e framing);
static void ngx_http_kontext_unbuffer(ngx_http_request_t *r);
static ngx_int_t ngx_http_kontext_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


typedef struct {
    ngx_str_t                        type;
    kx_framing_e                     framing;
} ngx_http_kontext_type_t;


static ngx_http_kontext_type_t  ngx_http_kontext_types[] = {
    { ngx_string("text/event-stream"), KX_FRAMING_SSE },
    { ngx_string("application/json"), KX_FRAMING_WHOLE },
    { ngx_string("application/x-ndjson"), KX_FRAMING_LINES },
    { ngx_string("application/ndjson"), KX_FRAMING_LINES },
    { ngx_string("application/jsonl"), KX_FRAMING_LINES },
    { ngx_null_string, 0 }
};


/* RFC 1864, RFC 3230, RFC 9530: of the bytes that the backend sent */

static ngx_str_t  ngx_http_kontext_digests[] = {
    ngx_string("content-md5"),
    ngx_string("digest"),
    ngx_string("content-digest"),
    ngx_string("repr-digest"),
    ngx_null_string
};


ngx_int_t
ngx_http_kontext_filter_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_kontext_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_kontext_body_filter;

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_send_header(ngx_http_request_t *r)
{
    return ngx_http_next_header_filter(r);
}


ngx_int_t
ngx_http_kontext_send_body(ngx_http_request_t *r, ngx_chain_t *out)
{
    return ngx_http_next_body_filter(r, out);
}


static ngx_int_t
ngx_http_kontext_header_filter(ngx_http_request_t *r)
{
    kx_reason_e               reason;
    kx_framing_e              framing;
    ngx_http_kontext_ctx_t   *ctx;
    ngx_http_kontext_call_t  *call;

    if (r != r->main) {
        call = ngx_http_kontext_call_of(r);

        return call ? ngx_http_kontext_call_header(r, call)
                    : ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_kontext_get_ctx(r);

    if (ctx == NULL || !ctx->body_done || ctx->header_seen || ctx->identify
        || ctx->status == NGX_HTTP_KONTEXT_BYPASS)
    {
        return ngx_http_next_header_filter(r);
    }

    ctx->header_seen = 1;

    reason = ngx_http_kontext_check_response(r, &framing);

    /*
     * The request must be understood before the first frame is read if only
     * its body tells the format, and before a length is taken away.
     */

    if (reason == KX_REASON_NONE
        && (ctx->guess || framing == KX_FRAMING_WHOLE
            || r->headers_out.content_length_n >= 0))
    {
        ngx_http_kontext_analyse(ctx);

        if (ctx->status == NGX_HTTP_KONTEXT_BYPASS) {
            return ngx_http_next_header_filter(r);
        }
    }

    if (reason == KX_REASON_NONE) {

        if (framing == KX_FRAMING_WHOLE && ctx->cv.stream
            && (ctx->cv.dialect->framings & KX_FRAMING_ARRAY))
        {
            framing = KX_FRAMING_ARRAY;
        }

        if (!(ctx->cv.dialect->framings & framing)) {
            reason = KX_REASON_RESPONSE_TYPE;

        } else if (framing == KX_FRAMING_WHOLE
                   && r->headers_out.content_length_n
                      > NGX_HTTP_KONTEXT_MAX_WHOLE)
        {
            reason = KX_REASON_LARGE_RESPONSE;
        }
    }

    if (reason != KX_REASON_NONE) {

        if (ctx->analysed) {
            ngx_http_kontext_refuse(ctx, reason);

        } else {
            ctx->response = reason;
        }

        ngx_http_kontext_end(ctx);

        return ngx_http_next_header_filter(r);
    }

    if (ctx->track_only
        || ngx_http_kontext_open(r, ctx, framing) != NGX_OK)
    {
        return ngx_http_next_header_filter(r);
    }

    if (framing == KX_FRAMING_WHOLE) {

        /* it goes with the first byte of the body, when the length is known */

        return NGX_OK;
    }

    ctx->header_sent = 1;

    return ngx_http_next_header_filter(r);
}


static kx_reason_e
ngx_http_kontext_check_response(ngx_http_request_t *r, kx_framing_e *framing)
{
    size_t                    len;
    ngx_str_t                *type;
    ngx_http_kontext_type_t  *t;

    if (r->headers_out.status != NGX_HTTP_OK || r->header_only) {
        return KX_REASON_STATUS;
    }

    /* it becomes a 206 behind our back */

    if (r->allow_ranges && r->headers_in.range) {
        return KX_REASON_STATUS;
    }

    if (r->headers_out.content_encoding
        && r->headers_out.content_encoding->value.len)
    {
        return KX_REASON_ENCODED_RESPONSE;
    }

    type = &r->headers_out.content_type;

    for (t = ngx_http_kontext_types; t->type.len; t++) {
        len = t->type.len;

        if (type->len >= len
            && ngx_strncasecmp(type->data, t->type.data, len) == 0
            && (type->len == len
                || type->data[len] == ';' || type->data[len] == ' '))
        {
            *framing = t->framing;
            return KX_REASON_NONE;
        }
    }

    return KX_REASON_RESPONSE_TYPE;
}


static ngx_int_t
ngx_http_kontext_open(ngx_http_request_t *r, ngx_http_kontext_ctx_t *ctx,
    kx_framing_e framing)
{
    if (ngx_http_kontext_out_spare(ctx) != NGX_OK
        || ngx_http_kontext_answer_open(ctx, framing) != NGX_OK)
    {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        return NGX_DECLINED;
    }

    ctx->streaming = 1;

    r->filter_need_in_memory = 1;

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext reads along the answer, framing:%d form:%d",
                   framing, ctx->answer.form);

    if (framing == KX_FRAMING_WHOLE) {
        return NGX_OK;
    }

    if (ctx->conf->inject != NGX_HTTP_KONTEXT_INJECT_NONE
        && ctx->status != NGX_HTTP_KONTEXT_NO_FILL
        && ctx->status != NGX_HTTP_KONTEXT_ERROR)
    {
        ngx_http_kontext_change_header(r);
    }

    ngx_http_kontext_unbuffer(r);

    return NGX_OK;
}


void
ngx_http_kontext_change_header(ngx_http_request_t *r)
{
    ngx_str_t        *name;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    ngx_http_clear_content_length(r);
    ngx_http_clear_accept_ranges(r);
    ngx_http_clear_last_modified(r);
    ngx_http_weak_etag(r);

    part = &r->headers_out.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                break;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        for (name = ngx_http_kontext_digests; name->len; name++) {

            if (h[i].key.len == name->len
                && ngx_strncasecmp(h[i].key.data, name->data, name->len)
                   == 0)
            {
                h[i].hash = 0;
            }
        }
    }
}


/*
 * As "X-Accel-Buffering: no" from the backend: tokens flow at once also where
 * proxy_buffering was left on.
 */

static void
ngx_http_kontext_unbuffer(ngx_http_request_t *r)
{
    ngx_http_upstream_t  *u;

    u = r->upstream;

    if (u && u->buffering && u->conf->change_buffering && !u->store
#if (NGX_HTTP_CACHE)
        && !u->cacheable && r->cache == NULL
#endif
       )
    {
        u->buffering = 0;
    }
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
        return (ctx->framer.framing == KX_FRAMING_WHOLE)
               ? ngx_http_kontext_whole(ctx, in)
               : ngx_http_kontext_stream(ctx, in);
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

ngx_uint_t
ngx_http_kontext_broken(ngx_http_request_t *r, ngx_buf_t *b)
{
    return b->flush && !b->last_buf && ngx_buf_size(b) == 0
           && r->upstream && r->upstream->peer.connection == NULL;
}
