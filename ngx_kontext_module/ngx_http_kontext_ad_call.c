/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Calls of the ad server are background subrequests of detached requests:
 * they neither keep back the first byte of an answer nor the next request of
 * its client.  Their answers are captured here, within bounds.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_RETRIES  3     /* of /init and of /preload */


static void ngx_http_kontext_call_release(void *data);
static ngx_int_t ngx_http_kontext_call_send(ngx_http_kontext_call_t *call);
static ngx_int_t ngx_http_kontext_call_request(ngx_http_kontext_call_t *call,
    ngx_http_request_t *sr);
static ngx_str_t *ngx_http_kontext_call_method(ngx_uint_t method);
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
static void ngx_http_kontext_call_post(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_call_event(ngx_event_t *ev);


/* in the order of ngx_http_kontext_call_e */

static ngx_str_t  ngx_http_kontext_paths[] = {
    ngx_string("/init"),
    ngx_string("/preload"),
    ngx_string("/error"),
    ngx_string("/debug")
};


ngx_http_kontext_call_t *
ngx_http_kontext_call_create(ngx_http_request_t *from,
    ngx_http_kontext_loc_conf_t *klcf, ngx_http_kontext_call_e kind)
{
    ngx_http_request_t       *r;
    ngx_http_kontext_call_t  *call;

    r = ngx_http_kontext_detach(from);
    if (r == NULL) {
        return NULL;
    }

    call = ngx_pcalloc(r->pool, sizeof(ngx_http_kontext_call_t));
    if (call == NULL) {
        ngx_http_kontext_detach_free(r);
        return NULL;
    }

    call->request = r;
    call->kind = kind;
    call->conf = klcf;
    call->method = NGX_HTTP_POST;
    call->max = KX_MAX_ANSWER;

    call->timer.handler = ngx_http_kontext_call_timer;
    call->timer.data = call;
    call->timer.log = r->connection->log;

    call->event.handler = ngx_http_kontext_call_event;
    call->event.data = call;
    call->event.log = r->connection->log;

    call->active = 1;

    return call;
}


ngx_int_t
ngx_http_kontext_call_start(ngx_http_kontext_call_t *call, char *body,
    size_t len)
{
    u_char              *p;
    ngx_str_t           *prefix, *path;
    ngx_pool_cleanup_t  *cln;
    ngx_http_request_t  *r;

    r = call->request;

    cln = ngx_pool_cleanup_add(r->pool, 0);

    if (body && cln) {
        cln->handler = ngx_http_kontext_call_release;
        cln->data = body;

        call->body.data = (u_char *) body;
        call->body.len = len;

    } else if (body) {
        kx_protocol_free(body);
    }

    prefix = &call->conf->ad_server;
    path = &ngx_http_kontext_paths[call->kind];

    p = ngx_pnalloc(r->pool, prefix->len + path->len);

    if (call->body.data == NULL || p == NULL) {
        ngx_http_kontext_call_cancel(call);
        return NGX_ERROR;
    }

    call->uri.data = p;

    p = ngx_cpymem(p, prefix->data, prefix->len);
    p = ngx_cpymem(p, path->data, path->len);

    call->uri.len = p - call->uri.data;

    return ngx_http_kontext_call_launch(call);
}


static void
ngx_http_kontext_call_release(void *data)
{
    kx_protocol_free(data);
}


ngx_int_t
ngx_http_kontext_call_launch(ngx_http_kontext_call_t *call)
{
    call->started = ngx_current_msec;

    if (ngx_http_kontext_call_send(call) != NGX_OK) {
        ngx_http_kontext_call_cancel(call);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_call_send(ngx_http_kontext_call_t *call)
{
    ngx_http_request_t          *r, *sr;
    ngx_http_post_subrequest_t  *ps;

    r = call->request;

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

    if (ngx_http_subrequest(r, &call->uri, &call->args, &sr, ps,
                            NGX_HTTP_SUBREQUEST_BACKGROUND)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_http_kontext_call_post(call);

    if (call->kind != NGX_HTTP_KONTEXT_CALL_STORE) {
        ngx_http_kontext_count(ngx_http_kontext_zone_of(call->conf),
                               attempts[call->kind], 1);
    }

    ngx_http_kontext_breaker_begin(call);

    if (ngx_http_kontext_call_request(call, sr) != NGX_OK) {

        /* it is posted already: it shall do nothing but end */

        sr->write_event_handler = ngx_http_kontext_call_drop;
        ngx_http_kontext_breaker_end(call, KX_BREAKER_LEFT);

        return NGX_ERROR;
    }

    call->sr = sr;

    /* it is all that its connection has: nothing shall wait for another */

    r->connection->data = sr;

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

    if (call->kind == NGX_HTTP_KONTEXT_CALL_STORE) {
        ngx_str_set(&type, "application/octet-stream");

    } else {
        ngx_str_set(&type, "application/json");
    }

    if (call->body.len
        && ngx_http_kontext_call_push(sr, &content_type, &type,
                                   &sr->headers_in.content_type)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    /* protocol.md 1.1: reports have no token in their header */

    if ((call->kind == NGX_HTTP_KONTEXT_CALL_INIT
         || call->kind == NGX_HTTP_KONTEXT_CALL_PRELOAD)
        && ngx_http_kontext_call_push(sr, &token, &call->token, &h) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (call->kind == NGX_HTTP_KONTEXT_CALL_PRELOAD) {

        if (call->track_only) {
            ngx_str_set(&flag, "1");

        } else {
            ngx_str_set(&flag, "0");
        }

        if (ngx_http_kontext_call_push(sr, &disabled, &flag, &h) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    sr->method = call->method;
    sr->method_name = *ngx_http_kontext_call_method(call->method);

    ngx_http_set_ctx(sr, call, ngx_http_kontext_module);

    cmcf = ngx_http_get_module_main_conf(sr, ngx_http_core_module);

    sr->variables = ngx_pcalloc(sr->pool, cmcf->variables.nelts
                                          * sizeof(ngx_http_variable_value_t));

    sr->request_body = ngx_pcalloc(sr->pool,
                                   sizeof(ngx_http_request_body_t));

    if (sr->variables == NULL || sr->request_body == NULL) {
        return NGX_ERROR;
    }

    if (call->body.len == 0) {
        sr->headers_in.content_length_n = -1;
        return NGX_OK;
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

    return NGX_OK;
}


static ngx_str_t *
ngx_http_kontext_call_method(ngx_uint_t method)
{
    static ngx_str_t  get = ngx_string("GET");
    static ngx_str_t  put = ngx_string("PUT");
    static ngx_str_t  post = ngx_string("POST");
    static ngx_str_t  delete = ngx_string("DELETE");

    switch (method) {

    case NGX_HTTP_GET:
        return &get;

    case NGX_HTTP_PUT:
        return &put;

    case NGX_HTTP_DELETE:
        return &delete;

    default:
        return &post;
    }
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

    if (r->headers_out.content_length_n > (off_t) call->max) {
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

            if (len > call->max - call->len) {
                ngx_http_kontext_call_abandon(call);
                len = 0;
            }

            if (len > call->size - call->len) {
                size = ngx_max(call->size * 2, call->len + len);
                size = ngx_min(ngx_max(size, 1024), call->max);

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


/* in the subrequest's own filters, so that it is to be ended from outside */

static void
ngx_http_kontext_call_abandon(ngx_http_kontext_call_t *call)
{
    ngx_log_error(NGX_LOG_INFO, call->request->connection->log, 0,
                  "kontext: the answer to \"%V\" is larger than %uz bytes",
                  &call->uri, call->max);

    call->overflow = 1;

    /* it may be cancelled before its end: nobody waits for it any more */

    ngx_http_kontext_breaker_end(call, KX_BREAKER_FAILED);

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
        call->request->connection->data = call->request;

        if (call->timer.timer_set) {
            ngx_del_timer(&call->timer);
        }

        call->status = ngx_http_kontext_call_status(call, sr, rc);

        ngx_http_kontext_call_result(call);
    }

    /* or nginx would make an error page of it */

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
    ngx_uint_t  retries;
    ngx_msec_t  delay;

    if (call->status == NGX_HTTP_TOO_MANY_REQUESTS) {
        call->status = 0;
    }

    if (call->status == 0 || call->status >= NGX_HTTP_INTERNAL_SERVER_ERROR) {
        ngx_http_kontext_breaker_end(call, KX_BREAKER_FAILED);
    }

    retries = (call->kind == NGX_HTTP_KONTEXT_CALL_INIT
               || call->kind == NGX_HTTP_KONTEXT_CALL_PRELOAD)
              ? NGX_HTTP_KONTEXT_RETRIES : 0;

    /* protocol.md 1.2; an answer that was too large would be so again */

    if (call->status == 0 && !call->overflow && call->attempt < retries
        && !ngx_exiting && ngx_http_kontext_breaker_allows(call->conf))
    {

        delay = 1000 << call->attempt++;

        ngx_log_debug2(NGX_LOG_DEBUG_HTTP, call->request->connection->log, 0,
                       "kontext call \"%V\" failed, again in %M ms",
                       &call->uri, delay);

        ngx_add_timer(&call->timer, delay);

        if (call->failed) {
            call->failed(call);
        }

        return;
    }

    call->active = 0;

    ngx_http_kontext_call_post(call);

    call->handler(call);

    ngx_http_kontext_breaker_end(call, KX_BREAKER_ANSWERED);
}


/* an attempt is out of time, or the next one is due */

static void
ngx_http_kontext_call_timer(ngx_event_t *ev)
{
    ngx_http_kontext_call_t  *call;

    call = ev->data;

    if (call->sr) {
        ngx_log_debug1(NGX_LOG_DEBUG_HTTP, call->request->connection->log, 0,
                       "kontext call \"%V\" is given up", &call->uri);

        ngx_http_kontext_call_close(call);

        call->status = 0;
        ngx_http_kontext_call_result(call);

        return;
    }

    /* a worker that is about to end makes no new attempt */

    if (ngx_exiting || !ngx_http_kontext_breaker_allows(call->conf)
        || ngx_http_kontext_call_send(call) != NGX_OK)
    {
        call->active = 0;
        call->status = 0;

        ngx_http_kontext_call_post(call);

        call->handler(call);
    }
}


void
ngx_http_kontext_call_cancel(ngx_http_kontext_call_t *call)
{
    if (!call->active) {
        return;
    }

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, call->request->connection->log, 0,
                   "kontext call \"%V\" is cancelled", &call->uri);

    call->active = 0;

    ngx_http_kontext_call_count(call, KX_CALL_CANCELLED);
    ngx_http_kontext_breaker_end(call, KX_BREAKER_LEFT);

    if (call->timer.timer_set) {
        ngx_del_timer(&call->timer);
    }

    ngx_http_kontext_call_close(call);

    ngx_http_kontext_call_post(call);
}


void
ngx_http_kontext_call_count(ngx_http_kontext_call_t *call,
    kx_call_outcome_e outcome)
{
    if (call->kind == NGX_HTTP_KONTEXT_CALL_STORE) {
        return;
    }

    ngx_http_kontext_count(ngx_http_kontext_zone_of(call->conf),
                           calls[call->kind][outcome], 1);
}


/*
 * nginx has no call that ends a subrequest from outside.  Its upstream's own
 * cleanup does it: it closes the connection and drops the reference to the
 * detached request, which has another one as long as it is there.
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
    call->request->connection->data = call->request;

    ngx_http_kontext_detach_calm(call->request);

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


/*
 * Neither is a subrequest run in the middle of another request, nor is a
 * call freed in the middle of its own.
 */

static void
ngx_http_kontext_call_post(ngx_http_kontext_call_t *call)
{
    if (!call->event.posted) {
        ngx_post_event(&call->event, &ngx_posted_events);
    }
}


static void
ngx_http_kontext_call_event(ngx_event_t *ev)
{
    ngx_http_kontext_call_t  *call;

    call = ev->data;

    if (!call->active) {
        ngx_http_kontext_detach_free(call->request);
        return;
    }

    ngx_http_run_posted_requests(call->request->connection);
}
