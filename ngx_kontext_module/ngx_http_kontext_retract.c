/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A client sends the text of its history back, and with it the ads that were
 * put into it.  Neither the model nor the ad server may see them again.
 */


#include "ngx_http_kontext.h"


static ngx_int_t ngx_http_kontext_retract_ranges(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *body, kx_range_t *ranges);
static ngx_int_t ngx_http_kontext_retract_rest(ngx_http_request_t *r,
    ngx_str_t *body, kx_range_t *ranges, ngx_uint_t n, ngx_chain_t **rest);
static ngx_int_t ngx_http_kontext_retract_file(ngx_http_request_t *r,
    ngx_chain_t **rest);
static ngx_int_t ngx_http_kontext_retract_copy(ngx_http_request_t *r,
    ngx_chain_t **rest, size_t size);
static ngx_int_t ngx_http_kontext_retract_length(ngx_http_request_t *r,
    off_t length);


ngx_int_t
ngx_http_kontext_retract(ngx_http_kontext_ctx_t *ctx)
{
    ngx_int_t                  rc;
    ngx_str_t                  body;
    kx_range_t                *ranges;
    kx_reason_e                reason;
    ngx_http_kontext_space_t   space;

    rc = NGX_OK;

    reason = ngx_http_kontext_read_body(ctx, ctx->conf->max_body, &body,
                                        &space);

    if (reason == KX_REASON_NONE && kx_text_ad_marked(body.data, body.len)) {

        ranges = ngx_alloc(KX_MAX_TEXT_ADS * sizeof(kx_range_t),
                           ctx->request->connection->log);

        rc = ranges ? ngx_http_kontext_retract_ranges(ctx, &body, ranges)
                    : NGX_ERROR;

        if (ranges) {
            ngx_free(ranges);
        }
    }

    ngx_http_kontext_release_body(ctx, &space);

    return rc;
}


static ngx_int_t
ngx_http_kontext_retract_ranges(ngx_http_kontext_ctx_t *ctx, ngx_str_t *body,
    kx_range_t *ranges)
{
    size_t               size;
    unsigned             i, n;
    ngx_int_t            rc;
    ngx_chain_t         *cl, *rest;
    ngx_http_request_t  *r;

    r = ctx->request;

    n = kx_text_ad_find(ranges, body->data, body->len,
                        &ctx->conf->frame_origin);
    if (n == 0) {
        return NGX_OK;
    }

    size = body->len;

    for (i = 0; i < n; i++) {
        size -= ranges[i].end - ranges[i].start;
    }

    if (ngx_http_kontext_retract_rest(r, body, ranges, n, &rest) != NGX_OK) {
        return NGX_ERROR;
    }

    /* what was read into a file goes into a file again */

    rc = NGX_OK;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        if (cl->buf->in_file) {
            rc = NGX_DECLINED;
        }
    }

    rc = (rc == NGX_OK) ? ngx_http_kontext_retract_copy(r, &rest, size)
                        : ngx_http_kontext_retract_file(r, &rest);

    if (rc == NGX_OK) {
        rc = ngx_http_kontext_retract_length(r, size);
    }

    if (rc == NGX_OK) {
        r->request_body->bufs = rest;
    }

    ngx_log_debug3(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext takes ads out of the request, %ud ranges, "
                   "%uz bytes left: %i", n, size, rc);

    return rc;
}


/* buffers with what is outside of the ranges, in place */

static ngx_int_t
ngx_http_kontext_retract_rest(ngx_http_request_t *r, ngx_str_t *body,
    kx_range_t *ranges, ngx_uint_t n, ngx_chain_t **rest)
{
    size_t         at, end;
    ngx_buf_t     *b;
    ngx_uint_t     i;
    ngx_chain_t   *cl;

    *rest = NULL;
    at = 0;

    for (i = 0; i <= n; i++) {
        end = (i < n) ? ranges[i].start : body->len;

        if (end > at) {
            b = ngx_calloc_buf(r->pool);
            cl = ngx_alloc_chain_link(r->pool);

            if (b == NULL || cl == NULL) {
                return NGX_ERROR;
            }

            b->memory = 1;
            b->pos = body->data + at;
            b->last = body->data + end;

            cl->buf = b;
            cl->next = NULL;

            *rest = cl;
            rest = &cl->next;
        }

        if (i < n) {
            at = ranges[i].end;
        }
    }

    return NGX_OK;
}


/*
 * One buffer that starts at the start of its memory, or of its file: nginx
 * sets it back to that when it tries the next server.
 */

static ngx_int_t
ngx_http_kontext_retract_copy(ngx_http_request_t *r, ngx_chain_t **rest,
    size_t size)
{
    ngx_buf_t    *b;
    ngx_chain_t  *cl, *out;

    b = ngx_create_temp_buf(r->pool, size);
    out = ngx_alloc_chain_link(r->pool);

    if (b == NULL || out == NULL) {
        return NGX_ERROR;
    }

    for (cl = *rest; cl; cl = cl->next) {
        b->last = ngx_cpymem(b->last, cl->buf->pos,
                             cl->buf->last - cl->buf->pos);
    }

    b->last_buf = 1;

    out->buf = b;
    out->next = NULL;

    *rest = out;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_retract_file(ngx_http_request_t *r, ngx_chain_t **rest)
{
    ssize_t                    n;
    ngx_buf_t                 *b;
    ngx_chain_t               *out;
    ngx_temp_file_t           *tf;
    ngx_http_core_loc_conf_t  *clcf;

    tf = ngx_pcalloc(r->pool, sizeof(ngx_temp_file_t));
    b = ngx_calloc_buf(r->pool);
    out = ngx_alloc_chain_link(r->pool);

    if (tf == NULL || b == NULL || out == NULL) {
        return NGX_ERROR;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    tf->file.fd = NGX_INVALID_FILE;
    tf->file.log = r->connection->log;
    tf->path = clcf->client_body_temp_path;
    tf->pool = r->pool;
    tf->log_level = NGX_LOG_DEBUG;

    n = ngx_write_chain_to_temp_file(tf, *rest);

    if (n == NGX_ERROR) {
        return NGX_ERROR;
    }

    b->in_file = 1;
    b->file_last = n;
    b->file = &tf->file;
    b->last_buf = 1;

    out->buf = b;
    out->next = NULL;

    *rest = out;

    /* $request_body_file, and the file that the upstream closes */

    r->request_body->temp_file = tf;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_retract_length(ngx_http_request_t *r, off_t length)
{
    u_char           *p;
    ngx_table_elt_t  *h;

    h = r->headers_in.content_length;

    if (h) {
        p = ngx_pnalloc(r->pool, NGX_OFF_T_LEN);
        if (p == NULL) {
            return NGX_ERROR;
        }

        h->value.len = ngx_sprintf(p, "%O", length) - p;
        h->value.data = p;
    }

    r->headers_in.content_length_n = length;

    return NGX_OK;
}
