/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the session API does with a session in the zone, and the preload of a
 * message that was fed.  Nothing is read, written or made here while the lock
 * is held.
 */


#include "ngx_http_kontext.h"

#include <signal.h>


#define NGX_HTTP_KONTEXT_ENDS  1024      /* of this worker */


/* a preload that is due after the debounce, in a detached request's pool */

typedef struct {
    ngx_http_request_t           *request;
    ngx_event_t                   timer;
    ngx_http_kontext_sid_t        sid;
    ngx_http_kontext_turn_t       turn;
    kx_ad_request_t               ar;
    ngx_uint_t                    track_only;
} ngx_http_kontext_feed_t;


/* a session that is closed when its listeners have had time to read */

typedef struct {
    ngx_event_t                   timer;
    ngx_http_kontext_zone_t      *zone;
    ngx_http_kontext_sid_t        sid;
} ngx_http_kontext_end_t;


static kx_session_t *ngx_http_kontext_feed_lock(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid);
static void ngx_http_kontext_feed_read(ngx_http_kontext_zone_t *zone,
    kx_session_t *ks, ngx_http_kontext_view_t *view);
static ngx_int_t ngx_http_kontext_feed_later(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid);
static void ngx_http_kontext_feed_end(ngx_event_t *ev);
static void ngx_http_kontext_feed_timer(ngx_event_t *ev);
static void ngx_http_kontext_feed_send(ngx_http_kontext_feed_t *feed);


static ngx_uint_t  ngx_http_kontext_ends;


ngx_int_t
ngx_http_kontext_feed_open(ngx_http_kontext_turn_t *turn, ngx_str_t *user,
    ngx_str_t *conversation, ngx_http_kontext_view_t *view,
    ngx_uint_t *init, ngx_uint_t *created)
{
    u_char                    id[KX_ID_LEN];
    uint64_t                  now;
    unsigned                  is_new;
    ngx_int_t                 rc;
    kx_session_t             *ks;
    kx_session_table_t       *table;
    ngx_http_kontext_zone_t  *zone;

    zone = turn->zone;
    table = zone->table;

    if (ngx_http_kontext_random(id, KX_ID_LEN) != NGX_OK) {
        return NGX_ERROR;
    }

    now = ngx_http_kontext_now();

    ngx_http_kontext_zone_enter(zone);

    ks = kx_session_table_open(table, turn->key, turn->user, now,
                               ngx_http_kontext_wall(), zone->idle, &is_new);

    *created = is_new;
    *init = 0;

    if (ks == NULL || kx_feed_open(table, ks, id, user, conversation) != KX_OK)
    {
        rc = NGX_DECLINED;

    } else {
        rc = NGX_OK;

        *init = !ks->disabled
                && kx_feed_init_claim(table, ks, now,
                                      NGX_HTTP_KONTEXT_CALLS_TIMEOUT,
                                      (uint32_t) ngx_pid, 0)
                   == KX_OK;

        ngx_http_kontext_feed_read(zone, ks, view);
    }

    ngx_http_kontext_zone_leave(zone);

    /* whoever works for another user's session shall know */

    (void) ngx_http_kontext_touch(zone, turn->key);

    return rc;
}


ngx_int_t
ngx_http_kontext_feed_view(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_view_t *view, ngx_http_kontext_sid_t *sid)
{
    kx_session_t  *ks;

    ks = ngx_http_kontext_feed_lock(zone, sid);

    if (ks) {
        ngx_http_kontext_feed_read(zone, ks, view);
    }

    ngx_http_kontext_zone_leave(zone);

    return (ks && view->user.len) ? NGX_OK : NGX_DECLINED;
}


static void
ngx_http_kontext_feed_read(ngx_http_kontext_zone_t *zone, kx_session_t *ks,
    ngx_http_kontext_view_t *view)
{
    kx_root_t           *root;
    kx_session_table_t  *table;

    table = zone->table;
    root = kx_store_root(table, ks);

    ngx_str_null(&view->user);
    ngx_str_null(&view->conversation);

    if (root == NULL
        || kx_feed_identity(table, ks, view->identity, &view->user,
                            &view->conversation)
           != KX_OK)
    {
        return;
    }

    view->sid.root = ks->root;
    ngx_memcpy(view->sid.id, root->id, KX_ID_LEN);

    view->turn.zone = zone;
    ngx_memcpy(view->turn.key, ks->key, KX_ID_LEN);
    view->turn.user = ks->user;
    view->turn.seq = ks->seq;
    view->turn.init_seq = ks->init_seq;
    view->turn.no_errors = ks->no_errors;
    view->turn.debug = ks->debug;

    view->has_server_id = ks->has_server_id;
    ngx_memcpy(view->server_id, ks->server_id, KX_ID_LEN);

    view->created = (uint64_t) ks->created * 1000;
    view->disabled = ks->disabled;
    view->enabled = !ks->off;
    view->init = (ks->init == KX_INIT_DONE);
    view->timeout = ks->preload_timeout;
    view->state = ks->turn;
    view->failed = (ks->turn == KX_TURN_NONE && ks->code[0]);
    view->owner = root->owner;
    view->init_owner = (ks->init == KX_INIT_SENT) ? root->init_owner : 0;
    view->track_only = root->track_only;
    view->events = root->events;

    view->options.data = view->stored;
    view->options.len = kx_feed_options(table, ks, view->stored,
                                        &view->revision);

    view->nmessages = 0;
    view->nads = 0;

    if (view->size) {
        view->nmessages = kx_feed_messages(table, ks,
                                           view->ids ? root->messages
                                                     : root->trigger,
                                           view->ids, view->messages,
                                           view->text, view->size);
    }

    if (view->placements) {
        view->nads = kx_feed_ads(table, ks, view->placements->elts,
                                 view->placements->nelts, view->ads,
                                 view->ad_ids, sizeof(view->ad_ids));
    }
}


ngx_int_t
ngx_http_kontext_feed_set_options(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, uint32_t revision, ngx_str_t *options)
{
    int            rc;
    kx_session_t  *ks;

    ks = ngx_http_kontext_feed_lock(zone, sid);

    rc = ks ? kx_feed_set_options(zone->table, ks, revision, options)
            : KX_ERROR;

    ngx_http_kontext_zone_leave(zone);

    return rc;
}


kx_feed_e
ngx_http_kontext_feed_message(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, kx_api_message_t *m, u_char *digest,
    ngx_http_kontext_turn_t *turn, uint32_t dead, ngx_uint_t *init)
{
    uint64_t       now;
    kx_feed_e      rc;
    kx_session_t  *ks;

    now = ngx_http_kontext_now();

    *init = 0;

    ks = ngx_http_kontext_feed_lock(zone, sid);

    if (ks == NULL) {
        ngx_http_kontext_zone_leave(zone);
        return KX_FEED_GONE;
    }

    rc = kx_feed_message(zone->table, ks, m, digest, now,
                         ngx_http_kontext_wall(),
                         NGX_HTTP_KONTEXT_CALLS_TIMEOUT, ngx_pid);

    if (rc == KX_FEED_ASK || rc == KX_FEED_AGAIN) {

        /* the first one may have failed, or have died with its worker */

        *init = kx_feed_init_claim(zone->table, ks, now,
                                   NGX_HTTP_KONTEXT_CALLS_TIMEOUT,
                                   (uint32_t) ngx_pid, dead)
                == KX_OK;
    }

    turn->seq = ks->seq;
    turn->init_seq = ks->init_seq;
    turn->no_errors = ks->no_errors;
    turn->debug = ks->debug;

    ngx_http_kontext_zone_leave(zone);

    if (rc == KX_FEED_ASK || rc == KX_FEED_AGAIN || rc == KX_FEED_DISABLED) {
        (void) ngx_http_kontext_touch(zone, turn->key);
    }

    return rc;
}


ngx_int_t
ngx_http_kontext_feed_ad(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, ngx_str_t *id, ngx_array_t *placements,
    kx_feed_ad_t *ad)
{
    int            rc;
    kx_session_t  *ks;

    ks = ngx_http_kontext_feed_lock(zone, sid);

    rc = ks ? kx_feed_ad(zone->table, ks, id, placements->elts,
                         placements->nelts, ad)
            : KX_DECLINED;

    ngx_http_kontext_zone_leave(zone);

    return (rc == KX_OK) ? NGX_OK : NGX_DECLINED;
}


ngx_int_t
ngx_http_kontext_feed_bid(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, u_char *id, kx_session_bid_t *bid,
    u_char *buf, ngx_str_t *message)
{
    int            rc;
    kx_session_t  *ks;

    ks = ngx_http_kontext_feed_lock(zone, sid);

    rc = ks ? kx_feed_bid(zone->table, ks, id, bid, buf, message)
            : KX_DECLINED;

    ngx_http_kontext_zone_leave(zone);

    return (rc == KX_OK) ? NGX_OK : NGX_DECLINED;
}


uint64_t
ngx_http_kontext_feed_event(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, ngx_str_t *data, u_char *key)
{
    uint64_t       number;
    kx_session_t  *ks;

    ks = ngx_http_kontext_feed_lock(zone, sid);

    number = ks ? kx_feed_event(zone->table, ks, data) : 0;

    ngx_http_kontext_zone_leave(zone);

    (void) ngx_http_kontext_touch(zone, key);

    return number;
}


/* this one is no use of the session: a stream does not keep it */

ngx_int_t
ngx_http_kontext_feed_events(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, uint64_t after, kx_feed_event_t *events,
    ngx_uint_t *n, u_char *buf, size_t size, uint64_t *lost)
{
    uint64_t       now, idle;
    ngx_uint_t     max;
    kx_session_t  *ks;

    max = *n;
    *n = 0;

    now = ngx_http_kontext_now();

    ngx_http_kontext_zone_enter(zone);

    ks = kx_store_peek(zone->table, sid->root, sid->id);

    if (ks) {
        *n = kx_feed_events(zone->table, ks, after, events, max, buf, size,
                            lost);

        idle = zone->idle;

        if (ks->closing) {
            idle = ngx_min(idle, KX_SESSION_CLOSING);
        }

        if (now > ks->used && now - ks->used > idle) {
            kx_session_table_close(zone->table, ks);
            zone->table->expired++;
            ks = NULL;

        } else if (ks->closing && *n == 0) {
            ks = NULL;
        }
    }

    ngx_http_kontext_zone_leave(zone);

    return (ks || *n) ? NGX_OK : NGX_DECLINED;
}


ngx_int_t
ngx_http_kontext_feed_close(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, u_char *key)
{
    ngx_uint_t     closing;
    kx_session_t  *ks;

    closing = 0;

    ks = ngx_http_kontext_feed_lock(zone, sid);

    if (ks) {
        kx_feed_end(zone->table, ks);
        closing = ks->live && ks->closing;
    }

    ngx_http_kontext_zone_leave(zone);

    if (closing && ngx_http_kontext_feed_later(zone, sid) != NGX_OK) {
        ngx_http_kontext_zone_enter(zone);

        ks = kx_store_peek(zone->table, sid->root, sid->id);

        if (ks) {
            kx_session_table_close(zone->table, ks);
        }

        ngx_http_kontext_zone_leave(zone);
    }

    (void) ngx_http_kontext_touch(zone, key);

    return ks ? NGX_OK : NGX_DECLINED;
}


static ngx_int_t
ngx_http_kontext_feed_later(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid)
{
    ngx_http_kontext_end_t  *end;

    if (ngx_http_kontext_ends >= NGX_HTTP_KONTEXT_ENDS) {
        return NGX_DECLINED;
    }

    end = ngx_calloc(sizeof(ngx_http_kontext_end_t), ngx_cycle->log);
    if (end == NULL) {
        return NGX_DECLINED;
    }

    end->zone = zone;
    end->sid = *sid;

    end->timer.handler = ngx_http_kontext_feed_end;
    end->timer.data = end;
    end->timer.log = ngx_cycle->log;
    end->timer.cancelable = 1;

    ngx_add_timer(&end->timer, KX_SESSION_CLOSING);

    ngx_http_kontext_ends++;

    return NGX_OK;
}


static void
ngx_http_kontext_feed_end(ngx_event_t *ev)
{
    kx_session_t            *ks;
    ngx_http_kontext_end_t  *end;

    end = ev->data;

    ngx_http_kontext_zone_enter(end->zone);

    ks = kx_store_peek(end->zone->table, end->sid.root, end->sid.id);

    if (ks) {
        kx_session_table_close(end->zone->table, ks);
    }

    ngx_http_kontext_zone_leave(end->zone);

    ngx_http_kontext_ends--;

    ngx_free(end);
}


static kx_session_t *
ngx_http_kontext_feed_lock(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid)
{
    ngx_http_kontext_zone_enter(zone);

    return kx_store_find(zone->table, sid->root, sid->id,
                         ngx_http_kontext_now(), zone->idle);
}


ngx_int_t
ngx_http_kontext_feed_start(ngx_http_request_t *r,
    ngx_http_kontext_sid_t *sid, ngx_http_kontext_turn_t *turn,
    kx_ad_request_t *ar, ngx_uint_t track_only, ngx_msec_t delay)
{
    kx_pool_t                 pool;
    ngx_http_request_t       *dr;
    ngx_http_kontext_feed_t  *feed;

    dr = ngx_http_kontext_detach(r);
    if (dr == NULL) {
        ngx_http_kontext_session_cancel(turn);
        return NGX_ERROR;
    }

    pool.alloc = ngx_http_kontext_alloc;
    pool.data = dr->pool;

    feed = ngx_pcalloc(dr->pool, sizeof(ngx_http_kontext_feed_t));

    if (feed == NULL || kx_ad_request_copy(&feed->ar, ar, &pool) != KX_OK) {
        ngx_http_kontext_detach_free(dr);
        ngx_http_kontext_session_cancel(turn);
        return NGX_ERROR;
    }

    feed->request = dr;
    feed->sid = *sid;
    feed->turn = *turn;
    feed->track_only = track_only;

    feed->timer.handler = ngx_http_kontext_feed_timer;
    feed->timer.data = feed;
    feed->timer.log = dr->connection->log;

    ngx_add_timer(&feed->timer, delay);

    return NGX_OK;
}


static void
ngx_http_kontext_feed_timer(ngx_event_t *ev)
{
    ngx_http_request_t       *r;
    ngx_http_kontext_feed_t  *feed;

    feed = ev->data;
    r = feed->request;

    ngx_http_kontext_feed_send(feed);

    ngx_http_kontext_detach_free(r);
}


static void
ngx_http_kontext_feed_send(ngx_http_kontext_feed_t *feed)
{
    kx_pool_t                 pool;
    ngx_uint_t                probe;
    kx_reason_e               reason;
    kx_ad_request_t          *ar;
    ngx_http_request_t       *r;
    ngx_http_kontext_view_t  *view;

    r = feed->request;
    ar = &feed->ar;

    pool.alloc = ngx_http_kontext_alloc;
    pool.data = r->pool;

    view = ngx_pcalloc(r->pool, sizeof(ngx_http_kontext_view_t));

    if (view) {
        view->size = KX_FEED_TEXT_LEN;
        view->text = ngx_palloc(r->pool, KX_FEED_TEXT_LEN);
    }

    if (view == NULL || view->text == NULL) {
        ngx_http_kontext_session_cancel(&feed->turn);
        return;
    }

    /* a newer message has come within the debounce, or it is closed */

    if (ngx_http_kontext_feed_view(feed->turn.zone, view, &feed->sid)
        != NGX_OK
        || view->turn.seq != feed->turn.seq
        || view->state != KX_TURN_PENDING)
    {
        return;
    }

    ar->messages = view->messages;
    ar->nmessages = view->nmessages;

    ar->has_session = view->has_server_id;
    ngx_memcpy(ar->session, view->server_id, KX_ID_LEN);

    if (ar->nmessages == 0
        || kx_options_apply(ar, &view->options, &pool) != KX_OK)
    {
        ngx_http_kontext_session_failed(&feed->turn, &pool);
        return;
    }

    feed->turn.no_errors = view->turn.no_errors;
    feed->turn.debug = view->turn.debug;

    ngx_http_kontext_consent(feed->turn.conf, ar);

    if (ar->consent == KX_CONSENT_SKIP) {
        ngx_http_kontext_session_refused(&feed->turn, KX_AD_NO_FILL,
                                         KX_REASON_CONSENT, &pool);
        return;
    }

    if (ar->consent == KX_CONSENT_ANONYMOUS
        && ngx_http_kontext_anonymise(ar, r->pool) != NGX_OK)
    {
        ngx_http_kontext_session_failed(&feed->turn, &pool);
        return;
    }

    reason = ngx_http_kontext_breaker_admit(feed->turn.conf, &probe);

    if (reason != KX_REASON_NONE) {
        ngx_http_kontext_session_refused(&feed->turn, KX_AD_ERROR, reason,
                                         &pool);
        return;
    }

    (void) ngx_http_kontext_ask(r, NGX_HTTP_KONTEXT_CALL_PRELOAD, &feed->turn,
                                ar, NULL,
                                ngx_http_kontext_ask_timeout(feed->turn.conf,
                                                             view->timeout),
                                feed->track_only);
}


ngx_int_t
ngx_http_kontext_feed_orphan(ngx_http_kontext_view_t *view)
{
    int            rc;
    kx_session_t  *ks;

    if (view->state != KX_TURN_PENDING
        || !ngx_http_kontext_feed_dead(view->owner))
    {
        return NGX_DECLINED;
    }

    ks = ngx_http_kontext_feed_lock(view->turn.zone, &view->sid);

    rc = ks ? kx_feed_take(view->turn.zone->table, ks, view->turn.seq,
                           view->owner, (uint32_t) ngx_pid)
            : KX_DECLINED;

    ngx_http_kontext_zone_leave(view->turn.zone);

    return (rc == KX_OK) ? NGX_OK : NGX_DECLINED;
}


ngx_uint_t
ngx_http_kontext_feed_dead(uint32_t pid)
{
    return pid && pid != (uint32_t) ngx_pid
           && kill((ngx_pid_t) pid, 0) == -1 && ngx_errno == NGX_ESRCH;
}
