/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The event stream of a session: server-sent events, WHATWG HTML 9.2.  What
 * there is to send is read from the zone when the client has taken what was
 * sent before, so that a slow one costs no more than a fast one.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_BATCH       16      /* events written at once */
#define NGX_HTTP_KONTEXT_BATCH_SIZE  8192

/* of an event, besides its data and its name */
#define NGX_HTTP_KONTEXT_EVENT_SIZE                                           \
    (sizeof("id: \nevent: \ndata: \n\n") + NGX_INT64_LEN)


typedef struct {
    ngx_http_request_t           *request;
    ngx_http_kontext_zone_t      *zone;
    ngx_http_kontext_sid_t        sid;
    uint64_t                      after;      /* number of the last one sent */
    ngx_http_kontext_watch_t      watch;
    ngx_event_t                   news;       /* posted */
    ngx_event_t                   ping;       /* timer */
    ngx_msec_t                    interval;   /* of pings */
    ngx_buf_t                     buf;
    ngx_uint_t                    ended;
} ngx_http_kontext_events_t;


static ngx_int_t ngx_http_kontext_events_header(ngx_http_request_t *r);
static uint64_t ngx_http_kontext_events_after(ngx_http_request_t *r);
static void ngx_http_kontext_events_finalize(void *data);
static void ngx_http_kontext_events_cleanup(void *data);
static void ngx_http_kontext_events_watch(ngx_http_kontext_watch_t *watch);
static void ngx_http_kontext_events_news(ngx_event_t *ev);
static void ngx_http_kontext_events_ping(ngx_event_t *ev);
static void ngx_http_kontext_events_writer(ngx_http_request_t *r);
static void ngx_http_kontext_events_push(ngx_http_kontext_events_t *e);
static ngx_int_t ngx_http_kontext_events_read(ngx_http_kontext_events_t *e);
static u_char *ngx_http_kontext_events_write(u_char *p,
    kx_feed_event_t *event);
static void ngx_http_kontext_events_name(ngx_str_t *data, ngx_str_t *name);
static ngx_int_t ngx_http_kontext_events_text(ngx_http_kontext_events_t *e,
    char *text, size_t len);
static ngx_int_t ngx_http_kontext_events_send(ngx_http_kontext_events_t *e);
static void ngx_http_kontext_events_end(ngx_http_kontext_events_t *e);


ngx_int_t
ngx_http_kontext_events(ngx_http_request_t *r, ngx_http_kontext_sid_t *sid,
    ngx_http_kontext_turn_t *turn, uint64_t newest, ngx_msec_t interval)
{
    ngx_int_t                   rc;
    ngx_event_t                *rev;
    ngx_http_cleanup_t         *hcln;
    ngx_pool_cleanup_t         *cln;
    ngx_http_kontext_events_t  *e;

    rc = ngx_http_kontext_events_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        ngx_http_kontext_stream_uncount();
        return rc;
    }

    /*
     * The buffer goes with the pool: HTTP/2 may still have it when all else
     * of the request is over.
     */

    cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_kontext_events_t));
    hcln = ngx_http_cleanup_add(r, 0);

    if (cln == NULL || hcln == NULL) {
        ngx_http_kontext_stream_uncount();
        return NGX_ERROR;
    }

    e = cln->data;
    ngx_memzero(e, sizeof(ngx_http_kontext_events_t));

    cln->handler = ngx_http_kontext_events_cleanup;

    hcln->handler = ngx_http_kontext_events_finalize;
    hcln->data = e;

    e->request = r;
    e->zone = turn->zone;
    e->sid = *sid;
    e->after = ngx_min(ngx_http_kontext_events_after(r), newest);
    e->interval = ngx_max(interval, 1);

    e->news.handler = ngx_http_kontext_events_news;
    e->news.data = e;
    e->news.log = r->connection->log;

    e->ping.handler = ngx_http_kontext_events_ping;
    e->ping.data = e;
    e->ping.log = r->connection->log;
    e->ping.cancelable = 1;

    e->watch.handler = ngx_http_kontext_events_watch;
    e->watch.data = e;

    ngx_http_kontext_get_ctx(r)->events = e;

    r->read_event_handler = ngx_http_test_reading;
    r->write_event_handler = ngx_http_kontext_events_writer;

    ngx_http_kontext_watch(e->zone, &e->watch, turn->key);

    r->main->count++;

    ngx_add_timer(&e->ping, e->interval);

    /* the client may have gone already */

    rev = r->connection->read;

    if (ngx_http_kontext_events_text(e, "retry: 1000\n\n",
                                     sizeof("retry: 1000\n\n") - 1)
        != NGX_OK
        || ngx_handle_read_event(rev, 0) != NGX_OK)
    {
        ngx_http_finalize_request(r, NGX_ERROR);
        return NGX_DONE;
    }

    if (rev->ready) {
        ngx_post_event(rev, &ngx_posted_events);
    }

    /* there may be something to tell already */

    ngx_post_event(&e->news, &ngx_posted_events);

    return NGX_DONE;
}


static ngx_int_t
ngx_http_kontext_events_header(ngx_http_request_t *r)
{
    ngx_str_t  value;

    r->headers_out.status = NGX_HTTP_OK;

    ngx_str_set(&r->headers_out.content_type, "text/event-stream");
    r->headers_out.content_type_len = r->headers_out.content_type.len;

    ngx_str_set(&value, "no-store");

    if (ngx_http_kontext_header_out(r, "Cache-Control", &value) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    /* for an nginx in front of this one */

    ngx_str_set(&value, "no");

    if (ngx_http_kontext_header_out(r, "X-Accel-Buffering", &value)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_send_header(r);
}


static uint64_t
ngx_http_kontext_events_after(ngx_http_request_t *r)
{
    off_t      n;
    ngx_str_t  value;

    static ngx_str_t  name = ngx_string("last-event-id");

    ngx_http_kontext_header(r, &name, &value);

    if (value.len == 0
        && ngx_http_arg(r, (u_char *) "lastEventId", 11, &value) != NGX_OK)
    {
        return 0;
    }

    n = ngx_atoof(value.data, value.len);

    return (n == NGX_ERROR) ? 0 : (uint64_t) n;
}


/* runs when the request is over, however it ended */

static void
ngx_http_kontext_events_finalize(void *data)
{
    ngx_http_kontext_events_t *e = data;

    ngx_http_kontext_unwatch(&e->watch);

    if (e->news.posted) {
        ngx_delete_posted_event(&e->news);
    }

    if (e->ping.timer_set) {
        ngx_del_timer(&e->ping);
    }

    e->ended = 1;

    ngx_http_kontext_stream_uncount();
}


static void
ngx_http_kontext_events_cleanup(void *data)
{
    ngx_http_kontext_events_t *e = data;

    if (e->buf.start) {
        ngx_free(e->buf.start);
    }
}


static void
ngx_http_kontext_events_watch(ngx_http_kontext_watch_t *watch)
{
    ngx_http_kontext_events_t *e = watch->data;

    if (e->ended) {
        return;
    }

    if (ngx_exiting) {

        /* a worker that has nothing but timers of no account ends at once */

        e->ping.cancelable = 0;
        ngx_add_timer(&e->ping, 1);
        return;
    }

    /* not here: the caller is in the middle of another request */

    if (!e->news.posted) {
        ngx_post_event(&e->news, &ngx_posted_events);
    }
}


static void
ngx_http_kontext_events_news(ngx_event_t *ev)
{
    ngx_connection_t           *c;
    ngx_http_kontext_events_t  *e;

    e = ev->data;
    c = e->request->connection;

    ngx_http_set_log_request(c->log, e->request);

    ngx_http_kontext_events_push(e);

    ngx_http_run_posted_requests(c);
}


/* the connection is to be kept, and a session that is idle to be closed */

static void
ngx_http_kontext_events_ping(ngx_event_t *ev)
{
    ngx_connection_t           *c;
    ngx_http_kontext_events_t  *e;

    e = ev->data;
    c = e->request->connection;

    ngx_http_set_log_request(c->log, e->request);

    ngx_http_kontext_wake_heal();

    if (!ngx_exiting) {
        ngx_add_timer(&e->ping, e->interval);
    }

    if (e->buf.start == NULL && !ngx_exiting
        && ngx_http_kontext_events_text(e, ": keep-alive\n\n",
                                        sizeof(": keep-alive\n\n") - 1)
           != NGX_OK)
    {
        ngx_http_finalize_request(e->request, NGX_ERROR);

    } else {
        ngx_http_kontext_events_push(e);
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_kontext_events_writer(ngx_http_request_t *r)
{
    ngx_event_t                *wev;
    ngx_http_core_loc_conf_t   *clcf;
    ngx_http_kontext_events_t  *e;

    e = ngx_http_kontext_get_ctx(r)->events;
    wev = r->connection->write;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, NGX_ETIMEDOUT,
                      "client timed out");
        r->connection->timedout = 1;

        ngx_http_finalize_request(r, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    if (wev->delayed || r->aio) {

        if (ngx_handle_write_event(wev, clcf->send_lowat) != NGX_OK) {
            ngx_http_finalize_request(r, NGX_ERROR);
        }

        return;
    }

    if (ngx_http_output_filter(r, NULL) == NGX_ERROR) {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    ngx_http_kontext_events_push(e);
}


/* sends what there is, as long as it is taken */

static void
ngx_http_kontext_events_push(ngx_http_kontext_events_t *e)
{
    ngx_event_t               *wev;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    r = e->request;
    wev = r->connection->write;

    if (e->ended) {
        return;
    }

    for ( ;; ) {

        if (e->buf.start) {

            if (ngx_buf_size(&e->buf) || r->connection->buffered) {
                break;
            }

            ngx_free(e->buf.start);
            e->buf.start = NULL;
        }

        if (wev->timer_set && !wev->delayed) {
            ngx_del_timer(wev);
        }

        if (ngx_exiting || ngx_terminate) {

            /* an EventSource comes again, to another worker */

            ngx_http_kontext_events_end(e);
            return;
        }

        switch (ngx_http_kontext_events_read(e)) {

        case NGX_OK:
            break;

        case NGX_DONE:
            return;

        case NGX_DECLINED:
            ngx_http_kontext_events_end(e);
            return;

        default: /* NGX_ERROR */
            ngx_http_finalize_request(r, NGX_ERROR);
            return;
        }
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (!wev->delayed && !wev->timer_set) {
        ngx_add_timer(wev, clcf->send_timeout);
    }

    if (ngx_handle_write_event(wev, clcf->send_lowat) != NGX_OK) {
        ngx_http_finalize_request(r, NGX_ERROR);
    }
}


/* NGX_OK: a batch was sent; NGX_DONE: there is none; NGX_DECLINED: closed */

static ngx_int_t
ngx_http_kontext_events_read(ngx_http_kontext_events_t *e)
{
    size_t            size;
    u_char           *p, buf[NGX_HTTP_KONTEXT_BATCH_SIZE];
    uint64_t          lost;
    ngx_str_t         name;
    ngx_uint_t        i, n;
    kx_feed_event_t   events[NGX_HTTP_KONTEXT_BATCH];

    static char  closed[] =
        "event: session.closed\ndata: {\"name\":\"session.closed\"}\n\n";

    n = NGX_HTTP_KONTEXT_BATCH;
    lost = 0;

    if (ngx_http_kontext_feed_events(e->zone, &e->sid, e->after, events, &n,
                                     buf, sizeof(buf), &lost)
        != NGX_OK)
    {
        if (ngx_http_kontext_events_text(e, closed, sizeof(closed) - 1)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        return NGX_DECLINED;
    }

    if (n == 0) {
        return NGX_DONE;
    }

    size = 0;

    if (lost) {
        size += 2 * NGX_HTTP_KONTEXT_EVENT_SIZE + NGX_INT64_LEN;
    }

    for (i = 0; i < n; i++) {
        ngx_http_kontext_events_name(&events[i].data, &name);
        size += NGX_HTTP_KONTEXT_EVENT_SIZE + name.len + events[i].data.len;
    }

    p = ngx_alloc(size, e->request->connection->log);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(&e->buf, sizeof(ngx_buf_t));

    e->buf.start = p;
    e->buf.pos = p;
    e->buf.end = p + size;
    e->buf.temporary = 1;
    e->buf.flush = 1;

    if (lost) {
        p = ngx_sprintf(p, "event: events.lost\ndata: {\"name\":"
                        "\"events.lost\",\"payload\":{\"count\":%uL}}\n\n",
                        lost);
    }

    for (i = 0; i < n; i++) {
        p = ngx_http_kontext_events_write(p, &events[i]);
    }

    e->buf.last = p;
    e->after = events[n - 1].number;

    return ngx_http_kontext_events_send(e);
}


static u_char *
ngx_http_kontext_events_write(u_char *p, kx_feed_event_t *event)
{
    ngx_str_t  name;

    ngx_http_kontext_events_name(&event->data, &name);

    return ngx_sprintf(p, "id: %uL\nevent: %V\ndata: %V\n\n",
                       event->number, &name, &event->data);
}


/* an event begins with its name, see kx_api_event() */

static void
ngx_http_kontext_events_name(ngx_str_t *data, ngx_str_t *name)
{
    u_char  *p, *last;

    ngx_str_set(name, "message");

    if (data->len < 9 || ngx_strncmp(data->data, "{\"name\":\"", 9) != 0) {
        return;
    }

    p = data->data + 9;
    last = ngx_strlchr(p, data->data + data->len, '"');

    if (last) {
        name->data = p;
        name->len = last - p;
    }
}


static ngx_int_t
ngx_http_kontext_events_text(ngx_http_kontext_events_t *e, char *text,
    size_t len)
{
    u_char  *p;

    p = ngx_alloc(len, e->request->connection->log);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(&e->buf, sizeof(ngx_buf_t));

    e->buf.start = p;
    e->buf.pos = p;
    e->buf.last = ngx_cpymem(p, text, len);
    e->buf.end = e->buf.last;
    e->buf.temporary = 1;
    e->buf.flush = 1;

    return ngx_http_kontext_events_send(e);
}


static ngx_int_t
ngx_http_kontext_events_send(ngx_http_kontext_events_t *e)
{
    ngx_chain_t  out;

    out.buf = &e->buf;
    out.next = NULL;

    return (ngx_http_output_filter(e->request, &out) == NGX_ERROR)
           ? NGX_ERROR : NGX_OK;
}


static void
ngx_http_kontext_events_end(ngx_http_kontext_events_t *e)
{
    ngx_http_request_t  *r;

    r = e->request;

    e->ended = 1;

    ngx_http_kontext_unwatch(&e->watch);

    if (e->ping.timer_set) {
        ngx_del_timer(&e->ping);
    }

    ngx_http_finalize_request(r, ngx_http_send_special(r, NGX_HTTP_LAST));
}
