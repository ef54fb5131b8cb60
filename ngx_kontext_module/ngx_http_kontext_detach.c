/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A request that no client has sent, for what goes on when the client has
 * its answer.  It has a connection without a socket, as a stream of HTTP/2
 * has one, and never answers: its subrequests do all the work.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_DETACH_POOL  2048
#define NGX_HTTP_KONTEXT_LOG_LINE     256
#define NGX_HTTP_KONTEXT_BLOCKED      10    /* ms */


static ngx_connection_t *ngx_http_kontext_detach_connection(
    ngx_http_request_t *r, ngx_pool_t *pool);
static ngx_int_t ngx_http_kontext_detach_peer(ngx_connection_t *c,
    ngx_connection_t *from);
static ngx_int_t ngx_http_kontext_detach_dup(ngx_pool_t *pool,
    ngx_str_t *dst, ngx_str_t *src);
static void ngx_http_kontext_detach_event(ngx_event_t *ev);
static void ngx_http_kontext_detach_blocked(ngx_event_t *ev);


ngx_http_request_t *
ngx_http_kontext_detach(ngx_http_request_t *from)
{
    ngx_str_t                  line;
    ngx_pool_t                *pool;
    ngx_connection_t          *c;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    pool = ngx_create_pool(NGX_HTTP_KONTEXT_DETACH_POOL, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    c = ngx_http_kontext_detach_connection(from, pool);
    if (c == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }

    r = ngx_http_create_request(c);
    if (r == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }

#if (NGX_STAT_STUB)

    /* it is none of the requests that an operator counts */

    (void) ngx_atomic_fetch_add(ngx_stat_reading, -1);
    r->stat_reading = 0;
    (void) ngx_atomic_fetch_add(ngx_stat_requests, -1);

#endif

    c->data = r;

    r->loc_conf = from->loc_conf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);
    ngx_set_connection_log(c, clcf->error_log);

    r->method = from->method;
    r->http_version = NGX_HTTP_VERSION_11;
    r->http_state = NGX_HTTP_PROCESS_REQUEST_STATE;
    r->internal = 1;
    r->logged = 1;

    ngx_str_set(&r->method_name, "POST");
    ngx_str_set(&r->http_protocol, "HTTP/1.1");

    line = from->main->request_line;
    line.len = ngx_min(line.len, NGX_HTTP_KONTEXT_LOG_LINE);

    if (ngx_http_kontext_detach_dup(r->pool, &r->request_line, &line)
        != NGX_OK
        || ngx_http_kontext_detach_dup(r->pool, &r->headers_in.server,
                                       &from->headers_in.server)
           != NGX_OK)
    {
        ngx_http_kontext_detach_free(r);
        return NULL;
    }

    return r;
}


static ngx_connection_t *
ngx_http_kontext_detach_connection(ngx_http_request_t *r, ngx_pool_t *pool)
{
    ngx_log_t                 *log;
    ngx_connection_t          *c, *from;
    ngx_http_log_ctx_t        *ctx;
    ngx_http_connection_t     *hc;
    ngx_http_core_srv_conf_t  *cscf;

    from = r->connection;

    c = ngx_pcalloc(pool, sizeof(ngx_connection_t));
    hc = ngx_pcalloc(pool, sizeof(ngx_http_connection_t));
    log = ngx_palloc(pool, sizeof(ngx_log_t));
    ctx = ngx_pcalloc(pool, sizeof(ngx_http_log_ctx_t));

    if (c == NULL || hc == NULL || log == NULL || ctx == NULL) {
        return NULL;
    }

    c->read = ngx_pcalloc(pool, sizeof(ngx_event_t));
    c->write = ngx_pcalloc(pool, sizeof(ngx_event_t));

    if (c->read == NULL || c->write == NULL) {
        return NULL;
    }

    cscf = ngx_http_get_module_srv_conf(r, ngx_http_core_module);

    hc->addr_conf = r->http_connection->addr_conf;
    hc->conf_ctx = cscf->ctx;

    ctx->connection = c;

    *log = *from->log;
    log->data = ctx;
    log->action = "calling the ad server";

    c->fd = (ngx_socket_t) -1;
    c->data = hc;
    c->pool = pool;
    c->log = log;
    c->number = from->number;
    c->listening = from->listening;
    c->type = from->type;
    c->sndlowat = 1;
    c->tcp_nodelay = NGX_TCP_NODELAY_DISABLED;
    c->tcp_nopush = NGX_TCP_NOPUSH_DISABLED;

    if (ngx_http_kontext_detach_peer(c, from) != NGX_OK) {
        return NULL;
    }

    /*
     * Nothing ever comes in, and what goes out is taken at once.  As there is
     * no socket nothing may be added to what the kernel watches, or be deleted
     * from it: which states are left alone depends on the method.
     */

    c->read->data = c;
    c->read->index = NGX_INVALID_INDEX;
    c->read->active = 1;
    c->read->handler = ngx_http_kontext_detach_event;
    c->read->log = log;

    c->write->data = c;
    c->write->index = NGX_INVALID_INDEX;
    c->write->write = 1;
    c->write->active = (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? 1 : 0;
    c->write->ready = 1;
    c->write->handler = ngx_http_kontext_detach_event;
    c->write->log = log;

    return c;
}


/* $remote_addr and the like say the same as in the client's request */

static ngx_int_t
ngx_http_kontext_detach_peer(ngx_connection_t *c, ngx_connection_t *from)
{
    ngx_pool_t            *pool;
    ngx_proxy_protocol_t  *pp;

    pool = c->pool;

    if (ngx_http_kontext_detach_dup(pool, &c->addr_text, &from->addr_text)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    c->sockaddr = ngx_palloc(pool, ngx_max(from->socklen,
                                           sizeof(struct sockaddr_in)));
    if (c->sockaddr == NULL) {
        return NGX_ERROR;
    }

    ngx_memcpy(c->sockaddr, from->sockaddr, from->socklen);
    c->socklen = from->socklen;

    /* a socket can be asked for its address, a copy cannot */

    if (from->fd != (ngx_socket_t) -1
        && ngx_connection_local_sockaddr(from, NULL, 0) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (from->local_sockaddr && from->local_socklen) {
        c->local_sockaddr = ngx_palloc(pool, from->local_socklen);
        if (c->local_sockaddr == NULL) {
            return NGX_ERROR;
        }

        ngx_memcpy(c->local_sockaddr, from->local_sockaddr,
                   from->local_socklen);
        c->local_socklen = from->local_socklen;
    }

    if (from->proxy_protocol == NULL) {
        return NGX_OK;
    }

    pp = ngx_pcalloc(pool, sizeof(ngx_proxy_protocol_t));
    if (pp == NULL) {
        return NGX_ERROR;
    }

    pp->src_port = from->proxy_protocol->src_port;
    pp->dst_port = from->proxy_protocol->dst_port;

    if (ngx_http_kontext_detach_dup(pool, &pp->src_addr,
                                    &from->proxy_protocol->src_addr)
        != NGX_OK
        || ngx_http_kontext_detach_dup(pool, &pp->dst_addr,
                                       &from->proxy_protocol->dst_addr)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    c->proxy_protocol = pp;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_detach_dup(ngx_pool_t *pool, ngx_str_t *dst, ngx_str_t *src)
{
    ngx_str_null(dst);

    if (src->len == 0) {
        return NGX_OK;
    }

    dst->data = ngx_pstrdup(pool, src);
    if (dst->data == NULL) {
        return NGX_ERROR;
    }

    dst->len = src->len;

    return NGX_OK;
}


/* what a delay of the subrequest ends with: limit_req and the like */

static void
ngx_http_kontext_detach_event(ngx_event_t *ev)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    c = ev->data;
    r = c->data;

    if (!ev->delayed || !ev->timedout) {
        return;
    }

    ev->delayed = 0;
    ev->timedout = 0;

    ngx_http_set_log_request(c->log, r);

    if (ev->write && r != r->main) {
        r->write_event_handler(r);
    }

    ngx_http_run_posted_requests(c);
}


void
ngx_http_kontext_detach_anonymous(ngx_http_request_t *r)
{
    ngx_connection_t  *c;

    c = r->connection;

    ngx_memzero(c->sockaddr, sizeof(struct sockaddr_in));

    c->sockaddr->sa_family = AF_INET;
    c->socklen = sizeof(struct sockaddr_in);

    ngx_str_set(&c->addr_text, "");
    c->proxy_protocol = NULL;
}


void
ngx_http_kontext_detach_calm(ngx_http_request_t *r)
{
    ngx_event_t  *wev;

    wev = r->connection->write;

    if (wev->timer_set) {
        ngx_del_timer(wev);
    }

    wev->delayed = 0;
    wev->timedout = 0;
}


void
ngx_http_kontext_detach_free(ngx_http_request_t *r)
{
    ngx_pool_t        *pool;
    ngx_connection_t  *c;

    c = r->connection;
    pool = c->pool;

    ngx_http_kontext_detach_calm(r);

    if (r->blocked) {

        /* a thread writes a file; nginx itself waits for its end, too */

        c->read->handler = ngx_http_kontext_detach_blocked;
        ngx_add_timer(c->read, NGX_HTTP_KONTEXT_BLOCKED);

        return;
    }

    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }

    if (c->write->posted) {
        ngx_delete_posted_event(c->write);
    }

    if (c->read->timer_set) {
        ngx_del_timer(c->read);
    }

    ngx_http_free_request(r, 0);

    ngx_destroy_pool(pool);
}


static void
ngx_http_kontext_detach_blocked(ngx_event_t *ev)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    c = ev->data;
    r = c->data;

    ngx_http_kontext_detach_free(r->main);
}
