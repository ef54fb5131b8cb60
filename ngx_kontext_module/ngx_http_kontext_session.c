/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What a chat does with its session in the zone.  Nothing is read, written or
 * made here while the lock is held.
 */


#include "ngx_http_kontext.h"


static void ngx_http_kontext_session_read(ngx_http_kontext_turn_t *turn,
    kx_session_t *ks, ngx_http_kontext_session_t *s);
static ngx_int_t ngx_http_kontext_session_merge(ngx_http_kontext_turn_t *turn,
    kx_session_t *ks, kx_record_t *record);
static ngx_uint_t ngx_http_kontext_session_events(
    ngx_http_kontext_turn_t *turn, kx_preload_answer_t *a, kx_pool_t *pool,
    kx_str_t *events);
static uint64_t ngx_http_kontext_session_response_key(
    ngx_http_kontext_ctx_t *ctx, ngx_str_t *id);
static kx_session_t *ngx_http_kontext_session_lock(
    ngx_http_kontext_turn_t *turn, ngx_uint_t *taken);


/* of the session that was read last */

static u_char  ngx_http_kontext_options[KX_API_MAX_OPTIONS];


void
ngx_http_kontext_session_key(ngx_http_kontext_turn_t *turn, ngx_str_t *token,
    ngx_str_t *conversation, ngx_str_t *user)
{
    kx_sip_t       sip;
    const u_char  *key;

    key = turn->zone->secret;

    kx_sip_init(&sip, key, 1);
    kx_sip_field(&sip, "session", 7);
    kx_sip_field(&sip, token->data, token->len);
    kx_sip_field(&sip, conversation->data, conversation->len);
    kx_sip_final128(&sip, turn->key);

    kx_sip_init(&sip, key, 0);
    kx_sip_field(&sip, "user", 4);
    kx_sip_field(&sip, user->data, user->len);
    turn->user = kx_sip_final64(&sip);
}


ngx_int_t
ngx_http_kontext_session_turn(ngx_http_kontext_turn_t *turn, u_char *message,
    ngx_uint_t index, ngx_uint_t track_only, kx_record_t *record,
    ngx_http_kontext_session_t *s, ngx_atomic_uint_t *turns)
{
    uint32_t                  revision;
    uint64_t                  now, wall;
    unsigned                  created;
    kx_session_t             *ks;
    kx_session_table_t       *table;
    ngx_http_kontext_zone_t  *zone;

    zone = turn->zone;
    table = zone->table;

    wall = ngx_http_kontext_wall();
    now = ngx_http_kontext_now();

    ngx_http_kontext_zone_enter(zone);

    ks = kx_session_table_open(table, turn->key, turn->user, now, wall,
                               zone->idle, &created);

    if (ks == NULL) {
        ngx_http_kontext_zone_leave(zone);
        return NGX_DECLINED;
    }

    kx_session_table_change(table, ks);

    if (record
        && ngx_http_kontext_session_merge(turn, ks, record) != NGX_OK)
    {
        /* this turn takes the conversation over, and is the newer one */

        ks->turn_wall = ngx_max(ks->turn_wall, kx_record_clock(record));
    }

    s->turn = kx_session_turn(ks, message, track_only, now, wall,
                              NGX_HTTP_KONTEXT_CALLS_TIMEOUT);

    ks->index = ngx_min(index, 0xffff);

    s->init = s->turn != KX_TURN_DISABLED
              && kx_session_init_claim(ks, now,
                                       NGX_HTTP_KONTEXT_CALLS_TIMEOUT)
                 == KX_OK;

    kx_session_table_changed(table, ks);

    if (s->turn == KX_TURN_ASK) {
        kx_feed_traffic(table, ks);
    }

    turn->seq = ks->seq;
    turn->init_seq = ks->init_seq;
    turn->no_errors = ks->no_errors;
    turn->debug = ks->debug;

    s->has_server_id = ks->has_server_id;
    ngx_memcpy(s->server_id, ks->server_id, KX_ID_LEN);
    s->timeout = ks->preload_timeout;
    s->wall = ks->turn_wall;
    s->created = created;

    ngx_http_kontext_session_read(turn, ks, s);

    s->options.data = ngx_http_kontext_options;
    s->options.len = kx_feed_options(table, ks, ngx_http_kontext_options,
                                     &revision);

    ngx_http_kontext_zone_leave(zone);

    /* requests of this conversation in other workers shall look */

    *turns = ngx_http_kontext_touch(zone, turn->key);

    return NGX_OK;
}


/*
 * Between kx_session_table_change() and ..._changed().  NGX_DECLINED: the
 * other nodes know another user's.
 */

static ngx_int_t
ngx_http_kontext_session_merge(ngx_http_kontext_turn_t *turn,
    kx_session_t *ks, kx_record_t *record)
{
    kx_record_t  own;

    kx_record_take(&own, ks, turn->store_user);
    kx_record_merge(record, &own);

    if (record->user != turn->store_user) {
        return NGX_DECLINED;
    }

    kx_record_give(ks, record);

    return NGX_OK;
}


ngx_uint_t
ngx_http_kontext_session_due(ngx_http_kontext_turn_t *turn, u_char *message,
    uint32_t *seq)
{
    ngx_uint_t     due, taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    due = kx_record_due(ks, message, ngx_http_kontext_now());
    *seq = ks ? ks->seq : 0;

    ngx_http_kontext_zone_leave(turn->zone);

    return due;
}


ngx_uint_t
ngx_http_kontext_session_passed(ngx_http_kontext_turn_t *turn,
    u_char *message, uint32_t seq)
{
    ngx_uint_t     passed, taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    passed = ks && ks->seq != seq
             && ngx_memcmp(ks->user_message, message, KX_ID_LEN) != 0;

    ngx_http_kontext_zone_leave(turn->zone);

    return passed;
}


ngx_int_t
ngx_http_kontext_session_share(ngx_http_kontext_turn_t *turn,
    kx_record_t *record, ngx_uint_t known)
{
    ngx_int_t            rc;
    ngx_uint_t           taken;
    kx_session_t        *ks;
    kx_session_table_t  *table;

    table = turn->zone->table;

    rc = NGX_DECLINED;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    if (ks && known) {
        kx_session_table_change(table, ks);
        rc = ngx_http_kontext_session_merge(turn, ks, record);
        kx_session_table_changed(table, ks);

    } else if (ks) {
        kx_record_take(record, ks, turn->store_user);
        rc = NGX_OK;
    }

    ngx_http_kontext_zone_leave(turn->zone);

    if (ks && known) {
        (void) ngx_http_kontext_touch(turn->zone, turn->key);
    }

    return rc;
}


static void
ngx_http_kontext_session_read(ngx_http_kontext_turn_t *turn,
    kx_session_t *ks, ngx_http_kontext_session_t *s)
{
    s->state = ks->turn;

    ngx_memcpy(s->code, ks->code, KX_SESSION_CODE_LEN);
    s->code[KX_SESSION_CODE_LEN - 1] = '\0';

    s->nbids = kx_session_bids(ks, s->bids, turn->conf->placements->elts,
                               turn->conf->placements->nelts);
}


ngx_int_t
ngx_http_kontext_session_answer(ngx_http_kontext_turn_t *turn,
    kx_preload_answer_t *a, kx_pool_t *pool)
{
    kx_str_t       events[KX_MAX_BIDS];
    ngx_int_t      rc;
    ngx_uint_t     n, taken;
    kx_session_t  *ks;

    n = ngx_http_kontext_session_events(turn, a, pool, events);

    ks = ngx_http_kontext_session_lock(turn, &taken);

    /* the answer to this request is good also when its session is evicted */

    rc = taken ? NGX_DECLINED : NGX_OK;

    if (ks) {
        if (kx_feed_answer(turn->zone->table, ks, turn->seq, a,
                           turn->conf->placements->elts, events, n)
            != KX_OK)
        {
            rc = NGX_DECLINED;
        }

        turn->no_errors = ks->no_errors;
        turn->debug = ks->debug;
    }

    ngx_http_kontext_zone_leave(turn->zone);

    (void) ngx_http_kontext_touch(turn->zone, turn->key);

    return rc;
}


void
ngx_http_kontext_session_failed(ngx_http_kontext_turn_t *turn,
    kx_pool_t *pool)
{
    kx_preload_answer_t  a;

    kx_protocol_preload_answer(&a, 0, NULL, 0, NULL, 0, 0);

    (void) ngx_http_kontext_session_answer(turn, &a, pool);
}


void
ngx_http_kontext_session_refused(ngx_http_kontext_turn_t *turn,
    kx_ad_outcome_e outcome, kx_reason_e reason, kx_pool_t *pool)
{
    kx_preload_answer_t  a;

    kx_protocol_no_answer(&a, outcome,
                          (const char *) kx_reason_name(reason)->data);

    (void) ngx_http_kontext_session_answer(turn, &a, pool);
}


/* what there is to tell of an answer, protocol.md 4.3 */

static ngx_uint_t
ngx_http_kontext_session_events(ngx_http_kontext_turn_t *turn,
    kx_preload_answer_t *a, kx_pool_t *pool, kx_str_t *events)
{
    char         *message;
    kx_str_t     *codes;
    ngx_uint_t    i;

    /* nobody reads them */

    if (!ngx_http_kontext_has_api(turn->conf)) {
        return 0;
    }

    switch (a->outcome) {

    case KX_AD_FILLED:

        codes = turn->conf->placements->elts;

        for (i = 0; i < a->nbids; i++) {
            events[i] = kx_api_event_filled(a->bids[i].id,
                                            &codes[a->bids[i].placement],
                                            a->bids[i].revenue, pool);
        }

        return a->nbids;

    case KX_AD_NO_FILL:

        if (ngx_strcmp(a->code, "track_only") == 0) {
            return 0;
        }

        events[0] = kx_api_event_no_fill(a->code, pool);

        return 1;

    default:

        message = a->disable ? "Session is disabled"
                  : a->failed ? "Error preloading ads"
                  : "Ad generation skipped";

        events[0] = kx_api_event_error(a->code, message, pool);

        return 1;
    }
}


ngx_int_t
ngx_http_kontext_session_init_answer(ngx_http_kontext_turn_t *turn,
    kx_init_answer_t *a, kx_pool_t *pool)
{
    kx_str_t       event;
    ngx_int_t      rc;
    ngx_uint_t     taken;
    kx_session_t  *ks;

    event = kx_api_event_error("session_disabled_by_init",
                               "Session is disabled", pool);

    ks = ngx_http_kontext_session_lock(turn, &taken);

    rc = NGX_DECLINED;

    if (ks) {
        kx_feed_init_answer(turn->zone->table, ks, turn->init_seq, a, &event);

        turn->no_errors = ks->no_errors;
        turn->debug = ks->debug;

        if (ks->turn != KX_TURN_PENDING) {
            rc = NGX_OK;
        }
    }

    ngx_http_kontext_zone_leave(turn->zone);

    (void) ngx_http_kontext_touch(turn->zone, turn->key);

    return rc;
}


void
ngx_http_kontext_session_cancel(ngx_http_kontext_turn_t *turn)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    if (ks) {
        kx_session_table_change(turn->zone->table, ks);
        kx_session_cancel(ks, turn->seq);
        kx_session_table_changed(turn->zone->table, ks);
    }

    ngx_http_kontext_zone_leave(turn->zone);

    (void) ngx_http_kontext_touch(turn->zone, turn->key);
}


void
ngx_http_kontext_session_init_cancel(ngx_http_kontext_turn_t *turn)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    if (ks) {
        kx_session_table_change(turn->zone->table, ks);
        kx_session_init_cancel(ks, turn->init_seq);
        kx_session_table_changed(turn->zone->table, ks);
    }

    ngx_http_kontext_zone_leave(turn->zone);
}


void
ngx_http_kontext_session_assistant(ngx_http_kontext_turn_t *turn,
    u_char *message, ngx_str_t *id)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    if (ks) {
        (void) kx_feed_assistant(turn->zone->table, ks, turn->seq, message,
                                 id);
    }

    ngx_http_kontext_zone_leave(turn->zone);
}


void
ngx_http_kontext_session_response(ngx_http_kontext_ctx_t *ctx)
{
    uint64_t                  key;
    ngx_http_kontext_zone_t  *zone;

    if (!ctx->derived) {
        return;
    }

    zone = ngx_http_kontext_zone_get(ctx->request);

    key = ngx_http_kontext_session_response_key(ctx, &ctx->answer.response_id);

    ngx_shmtx_lock(&zone->shpool->mutex);

    kx_responses_put(zone->responses, zone->nresponses, key,
                     ctx->conversation_digest, ngx_http_kontext_now());

    ngx_shmtx_unlock(&zone->shpool->mutex);
}


ngx_int_t
ngx_http_kontext_session_previous(ngx_http_kontext_ctx_t *ctx, ngx_str_t *id)
{
    int                       rc;
    u_char                   *p;
    uint64_t                  key;
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_get(ctx->request);

    key = ngx_http_kontext_session_response_key(ctx, id);

    ngx_shmtx_lock(&zone->shpool->mutex);

    rc = kx_responses_get(zone->responses, zone->nresponses, key,
                          ctx->conversation_digest, ngx_http_kontext_now(),
                          zone->idle);

    ngx_shmtx_unlock(&zone->shpool->mutex);

    if (rc != KX_OK) {
        return NGX_DECLINED;
    }

    p = ngx_pnalloc(ctx->request->pool, KX_MESSAGE_ID_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    kx_conversation_id_write(p, ctx->conversation_digest);

    ctx->conversation.data = p;
    ctx->conversation.len = KX_MESSAGE_ID_LEN;
    ctx->derived = 1;

    return NGX_OK;
}


static uint64_t
ngx_http_kontext_session_response_key(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *id)
{
    kx_sip_t  sip;

    kx_sip_init(&sip, ngx_http_kontext_zone_key(ctx->request), 0);
    kx_sip_field(&sip, "response", 8);
    kx_sip_field(&sip, ctx->token.data, ctx->token.len);
    kx_sip_field(&sip, ctx->user.data, ctx->user.len);
    kx_sip_field(&sip, id->data, id->len);

    return kx_sip_final64(&sip);
}


ngx_int_t
ngx_http_kontext_session_look(ngx_http_kontext_turn_t *turn,
    ngx_http_kontext_session_t *s)
{
    ngx_int_t      rc;
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    if (taken || (ks && ks->seq != turn->seq)) {
        rc = NGX_DECLINED;

    } else if (ks == NULL) {
        rc = NGX_ERROR;

    } else if (ks->turn == KX_TURN_PENDING) {
        rc = NGX_AGAIN;

    } else {
        rc = NGX_OK;

        if (s) {
            ngx_http_kontext_session_read(turn, ks, s);
        }
    }

    ngx_http_kontext_zone_leave(turn->zone);

    return rc;
}


ngx_int_t
ngx_http_kontext_session_same(ngx_http_kontext_turn_t *turn)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_session_lock(turn, &taken);

    ngx_http_kontext_zone_leave(turn->zone);

    return ks ? NGX_OK : NGX_DECLINED;
}


ngx_uint_t
ngx_http_kontext_session_turned(ngx_http_kontext_turn_t *turn,
    ngx_atomic_uint_t *turns)
{
    ngx_atomic_uint_t  n;

    n = turn->zone->turns[ngx_http_kontext_bucket(turn->key)];

    if (n == *turns) {
        return 0;
    }

    *turns = n;

    return 1;
}


/*
 * The session, or NULL; locked in either case.  taken: another user has taken
 * the conversation over.
 */

static kx_session_t *
ngx_http_kontext_session_lock(ngx_http_kontext_turn_t *turn,
    ngx_uint_t *taken)
{
    kx_session_t             *ks;
    ngx_http_kontext_zone_t  *zone;

    zone = turn->zone;
    *taken = 0;

    ngx_http_kontext_zone_enter(zone);

    ks = kx_session_table_find(zone->table, turn->key, ngx_http_kontext_now(),
                               zone->idle);

    if (ks && ks->user != turn->user) {
        *taken = 1;
        return NULL;
    }

    return ks;
}
