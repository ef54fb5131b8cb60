/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Ad calls are background subrequests: no other kind leaves the first byte
 * of the answer alone.  Their answers are captured here, within bounds, and
 * no failure of theirs ever becomes one of the client's connection.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_RETRIES  3


static ngx_int_t ngx_http_kontext_call_send(ngx_http_kontext_call_t *call);
static ngx_int_t ngx_http_kontext_call_request(ngx_http_kontext_call_t *call,
    ngx_http_request_t *sr);
static ngx_int_t ngx_http_kontext_call_push(ngx_http_request_t *sr,
    ngx_str_t *name, ngx_str_t *value, ngx_table_elt_t **header);
static void ngx_http_kontext_call_abandon(ngx_http_kontext_call_t *call);
static ngx_int_t ngx_http_kontext_call_done(ngx_http_request_t *sr,
    void *data, ngx_int_t rc);
static ngx_uint_t ngx_http_kontext_call_status(ngx_http_kontext_call_t *call,
    ngx_http_request_t *sr, ngx_int_t rc);
static void ngx_http_kontext_call_result(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_call_timer(ngx_event_t *ev);
static void ngx_http_kontext_call_close(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_call_drop(ngx_http_request_t *sr);


static ngx_str_t  ngx_http_kontext_post = ngx_string("POST");


ngx_int_t
ngx_http_kontext_call_start(ngx_http_kontext_call_t *call, char *body,
    size_t len)
{
    u_char                  *p;
    ngx_str_t               *prefix;
    ngx_http_request_t      *r;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = call->ctx;
    r = ctx->request;

    call->body.data = ngx_pnalloc(r->pool, len);

    if (call->body.data) {
        ngx_memcpy(call->body.data, body, len);
        call->body.len = len;
    }

    kx_protocol_free(body);

    if (call->body.data == NULL) {
        return NGX_ERROR;
    }

    prefix = &ctx->conf->ad_server;

    call->uri.len = prefix->len + (call->preload ? sizeof("/preload") - 1
                                                 : sizeof("/init") - 1);

    call->uri.data = ngx_pnalloc(r->pool, call->uri.len);
    if (call->uri.data == NULL) {
        return NGX_ERROR;
    }

    p = ngx_cpymem(call->uri.data, prefix->data, prefix->len);

    if (call->preload) {
        ngx_memcpy(p, "/preload", sizeof("/preload") - 1);

    } else {
        ngx_memcpy(p, "/init", sizeof("/init") - 1);
    }

    call->timer.handler = ngx_http_kontext_call_timer;
    call->timer.data = call;
    call->timer.log = r->connection->log;

    call->attempt = 0;
    call->started = ngx_current_msec;
    call->active = 1;

    if (ngx_http_kontext_call_send(call) != NGX_OK) {
        call->active = 0;
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_call_send(ngx_http_kontext_call_t *call)
{
    ngx_http_request_t          *r, *sr;
    ngx_http_post_subrequest_t  *ps;

    r = call->ctx->request;

    call->status = 0;
    call->len = 0;
    call->overflow = 0;
    call->complete = 0;

    ps = ngx_palloc(r->pool, sizeof(ngx_http_post_subrequest_t));
    if (ps == NULL) {
        return NGX_ERROR;
    }

    ps->handler = ngx_http_kontext_call_done;
    ps->data = call;

    if (ngx_http_subrequest(r, &call->uri, NULL, &sr, ps,
                            NGX_HTTP_SUBREQUEST_BACKGROUND)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ngx_http_kontext_call_request(call, sr) != NGX_OK) {

        /* it is posted already: it shall do nothing but end */

        sr->write_event_handler = ngx_http_kontext_call_drop;
        return NGX_ERROR;
    }

    call->sr = sr;

    ngx_add_timer(&call->timer, call->timeout);

    ngx_log_debug3(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext call \"%V\" attempt %ui, %uz bytes",
                   &call->uri, call->attempt, call->body.len);

    return NGX_OK;
}


/*
 * The subrequest says nothing but what is put in here: it must inherit none
 * of the client's headers, and none of its variables.
 */

static ngx_int_t
ngx_http_kontext_call_request(ngx_http_kontext_call_t *call,
    ngx_http_request_t *sr)
{
    ngx_buf_t                  *b;
    ngx_str_t                   server, flag, type;
    ngx_table_elt_t            *h;
    ngx_http_core_main_conf_t  *cmcf;

    static ngx_str_t  content_type = ngx_string("Content-Type");
    static ngx_str_t  token = ngx_string("Kontextso-Publisher-Token");
    static ngx_str_t  disabled = ngx_string("Kontextso-Is-Disabled");

    server = sr->headers_in.server;

    ngx_memzero(&sr->headers_in, sizeof(ngx_http_headers_in_t));

    sr->headers_in.server = server;
    sr->headers_in.content_length_n = (off_t) call->body.len;
    sr->headers_in.keep_alive_n = -1;

    if (ngx_list_init(&sr->headers_in.headers, sr->pool, 4,
                      sizeof(ngx_table_elt_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_str_set(&type, "application/json");

    if (ngx_http_kontext_call_push(sr, &content_type, &type,
                                   &sr->headers_in.content_type)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ngx_http_kontext_call_push(sr, &token, &call->ctx->token, &h)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (call->preload) {

        if (call->ctx->track_only) {
            ngx_str_set(&flag, "1");

        } else {
            ngx_str_set(&flag, "0");
        }

        if (ngx_http_kontext_call_push(sr, &disabled, &flag, &h) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    sr->method = NGX_HTTP_POST;
    sr->method_name = ngx_http_kontext_post;

    sr->request_body = ngx_pcalloc(sr->pool,
                                   sizeof(ngx_http_request_body_t));
    if (sr->request_body == NULL) {
        return NGX_ERROR;
    }

    b = ngx_calloc_buf(sr->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->start = call->body.data;
    b->pos = b->start;
    b->last = b->start + call->body.len;
    b->end = b->last;
    b->memory = 1;
    b->last_buf = 1;

    sr->request_body->buf = b;
    sr->request_body->bufs = ngx_alloc_chain_link(sr->pool);
    if (sr->request_body->bufs == NULL) {
        return NGX_ERROR;
    }

    sr->request_body->bufs->buf = b;
    sr->request_body->bufs->next = NULL;

    cmcf = ngx_http_get_module_main_conf(sr, ngx_http_core_module);

    sr->variables = ngx_pcalloc(sr->pool, cmcf->variables.nelts
                                          * sizeof(ngx_http_variable_value_t));
    if (sr->variables == NULL) {
        return NGX_ERROR;
    }

    ngx_http_set_ctx(sr, call, ngx_http_kontext_module);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_call_push(ngx_http_request_t *sr, ngx_str_t *name,
    ngx_str_t *value, ngx_table_elt_t **header)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&sr->headers_in.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->key = *name;
    h->value = *value;

#if (nginx_version >= 1023000)
    h->next = NULL;
#endif

    h->lowcase_key = ngx_pnalloc(sr->pool, name->len);
    if (h->lowcase_key == NULL) {
        return NGX_ERROR;
    }

    h->hash = ngx_hash_strlow(h->lowcase_key, name->data, name->len);

    *header = h;

    return NGX_OK;
}


ngx_http_kontext_call_t *
ngx_http_kontext_call_of(ngx_http_request_t *r)
{
    if (r == r->main || r->post_subrequest == NULL
        || r->post_subrequest->handler != ngx_http_kontext_call_done)
    {
        return NULL;
    }

    /* unlike r->ctx, this survives an internal redirect */

    return r->post_subrequest->data;
}


ngx_int_t
ngx_http_kontext_call_header(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call)
{
    r->header_sent = 1;
    r->filter_need_in_memory = 1;

    if (call->sr != r) {
        return NGX_OK;
    }

    call->status = r->headers_out.status;

    if (r->headers_out.content_length_n > KX_MAX_ANSWER) {
        ngx_http_kontext_call_abandon(call);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_call_body(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call, ngx_chain_t *in)
{
    size_t        len, size;
    u_char       *p;
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    for (cl = in; cl; cl = cl->next) {
        b = cl->buf;

        if (call->sr == r && (b->last_in_chain || b->last_buf)) {
            call->complete = 1;
        }

        len = ngx_buf_in_memory(b) ? (size_t) (b->last - b->pos) : 0;

        if (len && call->sr == r && !call->overflow) {

            if (len > KX_MAX_ANSWER - call->len) {
                ngx_http_kontext_call_abandon(call);
                len = 0;
            }

            if (len > call->size - call->len) {
                size = ngx_max(call->size * 2, call->len + len);
                size = ngx_min(ngx_max(size, 4096), KX_MAX_ANSWER);

                p = ngx_pnalloc(r->pool, size);

                if (p == NULL) {
                    call->overflow = 1;
                    len = 0;

                } else {
                    if (call->len) {
                        ngx_memcpy(p, call->data, call->len);
                    }

                    call->data = p;
                    call->size = size;
                }
            }

            if (len) {
                ngx_memcpy(call->data + call->len, b->pos, len);
                call->len += len;
            }
        }

        b->pos = b->last;
        b->file_pos = b->file_last;
    }

    return NGX_OK;
}


/*
 * A buffered answer does not reach our body filter before its end, and one
 * that outgrows the buffers not at all: the pipe then waits for a client
 * connection that belongs to the main request.
 */

ngx_uint_t
ngx_http_kontext_call_overflowed(ngx_http_kontext_call_t *call)
{
    ngx_http_upstream_t  *u;

    if (call->overflow) {
        return 1;
    }

    u = call->sr ? call->sr->upstream : NULL;

    return u && u->buffering && u->pipe
           && u->pipe->read_length > KX_MAX_ANSWER;
}


/* in the subrequest's own filters, so that it is to be ended from outside */

static void
ngx_http_kontext_call_abandon(ngx_http_kontext_call_t *call)
{
    ngx_log_error(NGX_LOG_INFO, call->ctx->request->connection->log, 0,
                  "kontext: the ad server's answer to \"%V\" is larger than "
                  "%d bytes", &call->uri, KX_MAX_ANSWER);

    call->overflow = 1;

    if (call->timer.timer_set) {
        ngx_del_timer(&call->timer);
    }

    ngx_add_timer(&call->timer, 0);
}


static ngx_int_t
ngx_http_kontext_call_done(ngx_http_request_t *sr, void *data, ngx_int_t rc)
{
    ngx_http_kontext_call_t *call = data;

    /* may be called twice, or for one that was given up */

    if (call->sr == sr && call->active) {
        call->sr = NULL;

        if (call->timer.timer_set) {
            ngx_del_timer(&call->timer);
        }

        call->status = ngx_http_kontext_call_status(call, sr, rc);

        ngx_http_kontext_call_result(call);
    }

    /* whatever came of it must not touch the client's connection */

    return NGX_OK;
}


/* the HTTP status of the answer, or 0 for a transport failure */

static ngx_uint_t
ngx_http_kontext_call_status(ngx_http_kontext_call_t *call,
    ngx_http_request_t *sr, ngx_int_t rc)
{
    if (call->overflow) {
        return 0;
    }

    if (sr->upstream) {

        /* no answer at all, or one that was cut short */

        if (rc == NGX_ERROR || (rc == NGX_OK && !call->complete)) {
            return 0;
        }

        if (sr->upstream->headers_in.status_n == 0) {

            /* nginx takes what is not HTTP for a body of HTTP/0.9 */

            return (rc == NGX_OK && call->len) ? NGX_HTTP_OK : 0;
        }

        if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
            return sr->upstream->headers_in.status_n == (ngx_uint_t) rc
                   ? (ngx_uint_t) rc : 0;
        }

        return call->status ? call->status
                            : sr->upstream->headers_in.status_n;
    }

    if (rc == NGX_ERROR) {
        return 0;
    }

    if (rc >= NGX_HTTP_OK) {
        return rc;
    }

    return call->status;
}


static void
ngx_http_kontext_call_result(ngx_http_kontext_call_t *call)
{
    ngx_msec_t  delay;

    if (call->status == NGX_HTTP_TOO_MANY_REQUESTS) {
        call->status = 0;
    }

    /* protocol.md 1.2; an answer that was too large would be so again */

    if (call->status == 0 && !call->overflow
        && call->attempt < NGX_HTTP_KONTEXT_RETRIES
        && !call->ctx->ended)
    {
        delay = 1000 << call->attempt++;

        ngx_log_debug2(NGX_LOG_DEBUG_HTTP, call->ctx->request->connection->log,
                       0, "kontext call \"%V\" failed, again in %M ms",
                       &call->uri, delay);

        ngx_add_timer(&call->timer, delay);

        if (call->preload) {
            ngx_http_kontext_hold_wake(call->ctx);
        }

        return;
    }

    call->active = 0;

    /* a long history is not to be kept as long as the answer streams */

    if (call->body.len > call->ctx->request->pool->max) {
        (void) ngx_pfree(call->ctx->request->pool, call->body.data);
        call->body.len = 0;
    }

    call->handler(call);
}


/* an attempt is out of time, or the next one is due */

static void
ngx_http_kontext_call_timer(ngx_event_t *ev)
{
    ngx_connection_t         *c;
    ngx_http_request_t       *r;
    ngx_http_kontext_call_t  *call;

    call = ev->data;
    r = call->ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    /* ending the subrequest must not end the request under our feet */

    r->main->count++;

    if (call->sr) {
        ngx_log_debug1(NGX_LOG_DEBUG_HTTP, c->log, 0,
                       "kontext call \"%V\" is given up", &call->uri);

        ngx_http_kontext_call_close(call);

        call->status = 0;
        ngx_http_kontext_call_result(call);

    } else if (ngx_http_kontext_call_send(call) != NGX_OK) {
        call->active = 0;
        call->handler(call);
    }

    ngx_http_finalize_request(r, NGX_DONE);

    ngx_http_run_posted_requests(c);
}


void
ngx_http_kontext_call_cancel(ngx_http_kontext_call_t *call)
{
    if (!call->active) {
        return;
    }

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, call->ctx->request->connection->log, 0,
                   "kontext call \"%V\" is cancelled", &call->uri);

    call->active = 0;

    if (call->timer.timer_set) {
        ngx_del_timer(&call->timer);
    }

    ngx_http_kontext_call_close(call);
}


/*
 * nginx has no call that ends a subrequest from outside.  Its upstream's own
 * cleanup does it: it closes the connection and drops the reference to the
 * main request, which has another one as long as it is not answered.
 */

static void
ngx_http_kontext_call_close(ngx_http_kontext_call_t *call)
{
    ngx_http_request_t   *sr;
    ngx_http_upstream_t  *u;

    sr = call->sr;

    if (sr == NULL) {
        return;
    }

    call->sr = NULL;

    u = sr->upstream;

    if (u == NULL || u->cleanup == NULL || *u->cleanup == NULL) {

        /* posted, and not run yet */

        sr->write_event_handler = ngx_http_kontext_call_drop;
        return;
    }

    sr->write_event_handler = ngx_http_request_empty_handler;

    (*u->cleanup)(sr);
}


static void
ngx_http_kontext_call_drop(ngx_http_request_t *sr)
{
    ngx_http_finalize_request(sr, NGX_OK);
}
