/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Workers tell each other that something has happened to a session: each of
 * them has a slot in the zone where it says what it watches, and a descriptor
 * that the others write to.  The descriptors are made by the master process
 * and live as long as the zone, through all reloads.
 */


#include "ngx_http_kontext.h"

#include <signal.h>


#define NGX_HTTP_KONTEXT_WAKE_POLL  50    /* ms, for a worker without a slot */


struct ngx_http_kontext_fds_s {
    ngx_uint_t      refs;                 /* cycles of this process */
    int             fd[NGX_HTTP_KONTEXT_SLOTS];
};


static void ngx_http_kontext_fds_cleanup(void *data);
static ngx_uint_t ngx_http_kontext_slot_claim(ngx_http_kontext_zone_t *zone);
static ngx_int_t ngx_http_kontext_wake_listen(ngx_cycle_t *cycle,
    ngx_http_kontext_zone_t *zone);
static void ngx_http_kontext_wake_handler(ngx_event_t *ev);
static void ngx_http_kontext_wake_poll(ngx_event_t *ev);
static void ngx_http_kontext_wake_run(ngx_http_kontext_zone_t *zone);


/* this worker's */

static ngx_queue_t                ngx_http_kontext_watches[
                                                     NGX_HTTP_KONTEXT_TURNS];
static ngx_uint_t                 ngx_http_kontext_counts[
                                                     NGX_HTTP_KONTEXT_TURNS];
static ngx_uint_t                 ngx_http_kontext_nwatches;
static ngx_queue_t               *ngx_http_kontext_next_watch;
static ngx_event_t                ngx_http_kontext_poll;
static ngx_http_kontext_slot_t   *ngx_http_kontext_slot;
static ngx_connection_t          *ngx_http_kontext_wake;


ngx_int_t
ngx_http_kontext_fds_open(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_zone_t *old, ngx_log_t *log)
{
    ngx_uint_t               i;
    ngx_http_kontext_fds_t  *fds;

    if (old) {
        zone->fds = old->fds;
        zone->fds->refs++;
        return NGX_OK;
    }

    fds = ngx_alloc(sizeof(ngx_http_kontext_fds_t), log);
    if (fds == NULL) {
        return NGX_ERROR;
    }

    fds->refs = 1;

    for (i = 0; i < NGX_HTTP_KONTEXT_SLOTS; i++) {

#if (NGX_HAVE_EVENTFD)
        fds->fd[i] = eventfd(0, EFD_NONBLOCK|EFD_CLOEXEC);
#else
        fds->fd[i] = -1;
#endif
    }

    zone->fds = fds;

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_fds_keep(ngx_conf_t *cf, ngx_http_kontext_zone_t *zone)
{
    ngx_pool_cleanup_t  *cln;

    cln = ngx_pool_cleanup_add(cf->pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_kontext_fds_cleanup;
    cln->data = zone;

    return NGX_OK;
}


static void
ngx_http_kontext_fds_cleanup(void *data)
{
    ngx_http_kontext_zone_t *zone = data;

    ngx_uint_t               i;
    ngx_http_kontext_fds_t  *fds;

    fds = zone->fds;

    if (fds == NULL || --fds->refs) {
        return;
    }

    for (i = 0; i < NGX_HTTP_KONTEXT_SLOTS; i++) {
        if (fds->fd[i] != -1) {
            (void) close(fds->fd[i]);
        }
    }

    ngx_free(fds);
}


ngx_int_t
ngx_http_kontext_wake_init(ngx_cycle_t *cycle, ngx_http_kontext_zone_t *zone)
{
    ngx_uint_t  i, n;

    for (i = 0; i < NGX_HTTP_KONTEXT_TURNS; i++) {
        ngx_queue_init(&ngx_http_kontext_watches[i]);
    }

    ngx_http_kontext_poll.handler = ngx_http_kontext_wake_poll;
    ngx_http_kontext_poll.data = zone;
    ngx_http_kontext_poll.log = cycle->log;

    n = ngx_http_kontext_slot_claim(zone);

    if (n == NGX_HTTP_KONTEXT_SLOTS || zone->fds->fd[n] == -1) {
        ngx_log_error(NGX_LOG_NOTICE, cycle->log, 0,
                      "kontext: no way to be woken by other workers is left, "
                      "this one looks every %d ms",
                      NGX_HTTP_KONTEXT_WAKE_POLL);
        return NGX_OK;
    }

    zone->fd = zone->fds->fd[n];

    return ngx_http_kontext_wake_listen(cycle, zone);
}


static ngx_uint_t
ngx_http_kontext_slot_claim(ngx_http_kontext_zone_t *zone)
{
    ngx_pid_t                 pid;
    ngx_uint_t                i, n;
    ngx_http_kontext_slot_t  *slot;

    for (n = 0; n < NGX_HTTP_KONTEXT_SLOTS; n++) {
        slot = &zone->slots[n];
        pid = (ngx_pid_t) slot->pid;

        if (pid && kill(pid, 0) == -1 && ngx_errno == NGX_ESRCH) {
            (void) ngx_atomic_cmp_set(&slot->pid, pid, 0);
        }
    }

    for (n = 0; n < NGX_HTTP_KONTEXT_SLOTS; n++) {
        slot = &zone->slots[n];

        if (slot->pid || !ngx_atomic_cmp_set(&slot->pid, 0, ngx_pid)) {
            continue;
        }

        slot->streams = 0;
        slot->pending = 0;

        for (i = 0; i < NGX_HTTP_KONTEXT_TURNS / 64; i++) {
            slot->watches[i] = 0;
        }

        ngx_http_kontext_slot = slot;

        do {
            i = *zone->nslots;
        } while (i <= n && !ngx_atomic_cmp_set(zone->nslots, i, n + 1));

        break;
    }

    return n;
}


static ngx_int_t
ngx_http_kontext_wake_listen(ngx_cycle_t *cycle,
    ngx_http_kontext_zone_t *zone)
{
    ngx_event_t       *rev;
    ngx_connection_t  *c;

    c = ngx_get_connection(zone->fd, cycle->log);
    if (c == NULL) {
        return NGX_ERROR;
    }

    c->pool = cycle->pool;
    c->data = zone;

    rev = c->read;

    rev->log = cycle->log;
    rev->handler = ngx_http_kontext_wake_handler;

    /* as a channel of nginx's own it may be open when the worker ends */

    rev->channel = 1;
    c->write->channel = 1;

    /* nginx tells idle connections that the worker is about to end */

    c->idle = 1;

    if (ngx_add_event(rev, NGX_READ_EVENT, 0) == NGX_ERROR) {
        ngx_free_connection(c);
        return NGX_ERROR;
    }

    ngx_http_kontext_wake = c;

    return NGX_OK;
}


void
ngx_http_kontext_wake_exit(void)
{
    if (ngx_http_kontext_slot) {
        ngx_http_kontext_slot->pid = 0;
        ngx_http_kontext_slot = NULL;
    }
}


static void
ngx_http_kontext_wake_handler(ngx_event_t *ev)
{
    uint64_t                  count;
    ngx_connection_t         *c;
    ngx_http_kontext_slot_t  *slot;
    ngx_http_kontext_zone_t  *zone;

    c = ev->data;
    zone = c->data;
    slot = ngx_http_kontext_slot;

    /* if it is not read from by now, it is nginx that closes what is idle */

    c->close = 0;

    if (read(c->fd, &count, sizeof(uint64_t)) == -1
        && ngx_errno != NGX_EAGAIN)
    {
        ngx_log_error(NGX_LOG_ALERT, ev->log, ngx_errno,
                      "kontext: reading of a wake-up failed");
    }

    /* whatever happens from here on is told anew */

    if (slot) {
        (void) ngx_atomic_cmp_set(&slot->pending, 1, 0);
    }

    ngx_http_kontext_wake_run(zone);
}


static void
ngx_http_kontext_wake_poll(ngx_event_t *ev)
{
    ngx_http_kontext_wake_run(ev->data);

    if (ngx_http_kontext_nwatches) {
        ngx_add_timer(&ngx_http_kontext_poll, NGX_HTTP_KONTEXT_WAKE_POLL);
    }
}


static void
ngx_http_kontext_wake_run(ngx_http_kontext_zone_t *zone)
{
    ngx_uint_t                 i;
    ngx_queue_t               *q;
    ngx_atomic_uint_t          turns;
    ngx_http_kontext_watch_t  *watch;

    for (i = 0; i < NGX_HTTP_KONTEXT_TURNS; i++) {

        turns = zone->turns[i];

        for (q = ngx_queue_head(&ngx_http_kontext_watches[i]);
             q != ngx_queue_sentinel(&ngx_http_kontext_watches[i]);
             q = ngx_http_kontext_next_watch)
        {
            /* a handler may stop any watch */

            ngx_http_kontext_next_watch = ngx_queue_next(q);

            watch = ngx_queue_data(q, ngx_http_kontext_watch_t, queue);

            if (watch->turns != turns || ngx_exiting) {
                watch->turns = turns;
                watch->handler(watch);
            }
        }
    }

    ngx_http_kontext_next_watch = NULL;
}


void
ngx_http_kontext_wake_heal(void)
{
    /* a worker may have died between its mark and the waking */

    if (ngx_http_kontext_slot && ngx_http_kontext_slot->pending) {
        ngx_post_event(ngx_http_kontext_wake->read, &ngx_posted_events);
    }
}


void
ngx_http_kontext_watch(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_watch_t *watch, const u_char *key)
{
    ngx_uint_t                i;
    ngx_http_kontext_slot_t  *slot;

    i = ngx_http_kontext_bucket(key);

    watch->bucket = i;
    watch->watching = 1;

    ngx_queue_insert_tail(&ngx_http_kontext_watches[i], &watch->queue);

    ngx_http_kontext_counts[i]++;
    ngx_http_kontext_nwatches++;

    slot = ngx_http_kontext_slot;

    if (slot && ngx_http_kontext_wake) {
        slot->watches[i / 64] |= (uint64_t) 1 << (i % 64);

        /* a barrier: others shall see it before turns is read here */

        (void) ngx_atomic_fetch_add(&slot->pending, 0);

    } else if (!ngx_http_kontext_poll.timer_set) {
        ngx_add_timer(&ngx_http_kontext_poll, NGX_HTTP_KONTEXT_WAKE_POLL);
    }

    /* what has happened before is for the caller to look at, after this */

    watch->turns = zone->turns[i];
}


void
ngx_http_kontext_unwatch(ngx_http_kontext_watch_t *watch)
{
    ngx_uint_t  i;

    if (!watch->watching) {
        return;
    }

    i = watch->bucket;

    if (ngx_http_kontext_next_watch == &watch->queue) {
        ngx_http_kontext_next_watch = ngx_queue_next(&watch->queue);
    }

    ngx_queue_remove(&watch->queue);

    watch->watching = 0;

    ngx_http_kontext_counts[i]--;
    ngx_http_kontext_nwatches--;

    if (ngx_http_kontext_counts[i] == 0 && ngx_http_kontext_slot) {
        ngx_http_kontext_slot->watches[i / 64] &= ~((uint64_t) 1 << (i % 64));
    }
}


ngx_atomic_uint_t
ngx_http_kontext_touch(ngx_http_kontext_zone_t *zone, const u_char *key)
{
    uint64_t                  one;
    ngx_uint_t                i, n, last;
    ngx_atomic_uint_t         turns;
    ngx_http_kontext_slot_t  *slot;

    i = ngx_http_kontext_bucket(key);

    turns = ngx_atomic_fetch_add(&zone->turns[i], 1) + 1;

    last = ngx_min(*zone->nslots, NGX_HTTP_KONTEXT_SLOTS);

    for (n = 0; n < last; n++) {
        slot = &zone->slots[n];

        if (slot->pid == 0
            || !(slot->watches[i / 64] & (uint64_t) 1 << (i % 64))
            || !ngx_atomic_cmp_set(&slot->pending, 0, 1))
        {
            continue;
        }

        if (slot == ngx_http_kontext_slot) {
            ngx_post_event(ngx_http_kontext_wake->read, &ngx_posted_events);
            continue;
        }

        one = 1;

        if (write(zone->fds->fd[n], &one, sizeof(uint64_t)) == -1
            && ngx_errno != NGX_EAGAIN)
        {
            ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, ngx_errno,
                          "kontext: waking of another worker failed");
        }
    }

    return turns;
}


ngx_int_t
ngx_http_kontext_stream_count(ngx_http_kontext_zone_t *zone, ngx_uint_t max)
{
    ngx_pid_t                 pid;
    ngx_uint_t                i, n;
    ngx_http_kontext_slot_t  *slot;

    n = 0;

    for (i = 0; i < NGX_HTTP_KONTEXT_SLOTS; i++) {
        slot = &zone->slots[i];
        pid = (ngx_pid_t) slot->pid;

        if (pid && slot->streams
            && (slot == ngx_http_kontext_slot || kill(pid, 0) == 0
                || ngx_errno != NGX_ESRCH))
        {
            n += slot->streams;
        }
    }

    if (n >= max) {
        return NGX_DECLINED;
    }

    if (ngx_http_kontext_slot) {
        (void) ngx_atomic_fetch_add(&ngx_http_kontext_slot->streams, 1);
    }

    return NGX_OK;
}


void
ngx_http_kontext_stream_uncount(void)
{
    if (ngx_http_kontext_slot) {
        (void) ngx_atomic_fetch_add(&ngx_http_kontext_slot->streams, -1);
    }
}


ngx_uint_t
ngx_http_kontext_bucket(const u_char *key)
{
    return key[0] % NGX_HTTP_KONTEXT_TURNS;
}
