/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A client sends the text of its history back, and with it the ads that were
 * put into it.  Neither the model nor the ad server may see them again.
 */


#include "ngx_http_kontext.h"


static ngx_int_t ngx_http_kontext_retract_bufs(ngx_http_request_t *r,
    kx_range_t *ranges, ngx_uint_t n);
static ngx_int_t ngx_http_kontext_retract_part(ngx_http_request_t *r,
    ngx_buf_t *b, off_t start, off_t end, ngx_chain_t ***ll);
static ngx_int_t ngx_http_kontext_retract_length(ngx_http_request_t *r,
    off_t gone);


ngx_int_t
ngx_http_kontext_retract(ngx_http_kontext_ctx_t *ctx)
{
    u_char              *copy;
    unsigned             n;
    ngx_int_t            rc;
    ngx_str_t            body;
    kx_range_t           ranges[KX_MAX_TEXT_ADS];
    ngx_http_request_t  *r;

    r = ctx->request;

    if (ngx_http_kontext_read_body(ctx, &body, &copy) != KX_REASON_NONE) {
        return NGX_OK;
    }

    n = kx_text_ad_find(ranges, body.data, body.len,
                        &ctx->conf->frame_origin);

    if (copy) {
        ngx_free(copy);
    }

    if (n == 0) {
        return NGX_OK;
    }

    rc = ngx_http_kontext_retract_bufs(r, ranges, n);

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext takes ads out of the request, %ud ranges: %i",
                   n, rc);

    return rc;
}


/* the same buffers in parts, without the ranges */

static ngx_int_t
ngx_http_kontext_retract_bufs(ngx_http_request_t *r, kx_range_t *ranges,
    ngx_uint_t n)
{
    off_t         at, pos, end, gone;
    ngx_uint_t    i;
    ngx_chain_t  *cl, *out, **ll;

    out = NULL;
    ll = &out;
    at = 0;
    gone = 0;
    i = 0;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {

        pos = at;
        end = at + ngx_buf_size(cl->buf);

        while (i < n && (off_t) ranges[i].start < end) {

            if (ngx_http_kontext_retract_part(r, cl->buf, pos - at,
                                              (off_t) ranges[i].start - at,
                                              &ll)
                != NGX_OK)
            {
                return NGX_ERROR;
            }

            pos = ngx_min((off_t) ranges[i].end, end);

            if ((off_t) ranges[i].end > end) {

                /* it goes on in the next buffer */

                gone += end - (off_t) ranges[i].start;
                ranges[i].start = end;
                break;
            }

            gone += (off_t) (ranges[i].end - ranges[i].start);
            i++;
        }

        if (ngx_http_kontext_retract_part(r, cl->buf, pos - at, end - at,
                                          &ll)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        at = end;
    }

    if (out == NULL || ngx_http_kontext_retract_length(r, gone) != NGX_OK) {
        return NGX_ERROR;
    }

    for (cl = out; cl->next; cl = cl->next) { /* void */ }

    cl->buf->last_buf = 1;

    r->request_body->bufs = out;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_retract_part(ngx_http_request_t *r, ngx_buf_t *b,
    off_t start, off_t end, ngx_chain_t ***ll)
{
    ngx_buf_t    *part;
    ngx_chain_t  *cl;

    if (start >= end) {
        return NGX_OK;
    }

    part = ngx_alloc_buf(r->pool);
    cl = ngx_alloc_chain_link(r->pool);

    if (part == NULL || cl == NULL) {
        return NGX_ERROR;
    }

    *part = *b;
    part->last_buf = 0;

    if (ngx_buf_in_memory(b)) {
        part->pos = b->pos + start;
        part->last = b->pos + end;
    }

    if (b->in_file) {
        part->file_pos = b->file_pos + start;
        part->file_last = b->file_pos + end;
    }

    cl->buf = part;
    cl->next = NULL;

    **ll = cl;
    *ll = &cl->next;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_retract_length(ngx_http_request_t *r, off_t gone)
{
    u_char           *p;
    ngx_table_elt_t  *h;

    h = r->headers_in.content_length;

    if (h) {
        p = ngx_pnalloc(r->pool, NGX_OFF_T_LEN);
        if (p == NULL) {
            return NGX_ERROR;
        }

        h->value.len = ngx_sprintf(p, "%O",
                                   r->headers_in.content_length_n - gone)
                       - p;
        h->value.data = p;
    }

    r->headers_in.content_length_n -= gone;

    return NGX_OK;
}
