/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "ngx_http_kontext.h"

#include <sys/random.h>


#define NGX_HTTP_KONTEXT_ZONE_IDLE  1800000     /* 30 minutes, in ms */
#define NGX_HTTP_KONTEXT_ZONE_MIN   (8 * ngx_pagesize)
#define NGX_HTTP_KONTEXT_RESPONSES  32          /* one of so many pages */

#define ngx_http_kontext_now()  ((uint64_t) ngx_current_msec)


typedef struct {
    ngx_slab_pool_t             *shpool;
    kx_session_table_t          *table;
    ngx_atomic_t                *turns;
    kx_response_t               *responses;
    size_t                       nresponses;
    size_t                       size;         /* of the table */
    ngx_msec_t                   idle;
    u_char                       secret[32];
} ngx_http_kontext_zone_t;


/* what lies in the memory, in front of the table */

typedef struct {
    ngx_atomic_t                 turns[NGX_HTTP_KONTEXT_TURNS];
    kx_response_t               *responses;
    size_t                       nresponses;
    void                        *table;
    size_t                       size;
} ngx_http_kontext_shared_t;


static char *ngx_http_kontext_zone_add(ngx_conf_t *cf, ngx_str_t *name,
    ssize_t size, ngx_msec_t idle);
static ngx_int_t ngx_http_kontext_zone_init(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_kontext_zone_secret(u_char *secret, size_t len);
static ngx_http_kontext_zone_t *ngx_http_kontext_zone_get(
    ngx_http_request_t *r);
static void ngx_http_kontext_zone_enter(ngx_http_kontext_zone_t *zone);
static uint64_t ngx_http_kontext_zone_response_key(
    ngx_http_kontext_ctx_t *ctx, ngx_str_t *id);
static kx_session_t *ngx_http_kontext_zone_lock(ngx_http_kontext_ctx_t *ctx,
    ngx_uint_t *taken);
static void ngx_http_kontext_zone_unlock(ngx_http_kontext_ctx_t *ctx,
    kx_session_t *ks);
static void ngx_http_kontext_zone_read(ngx_http_kontext_ctx_t *ctx,
    kx_session_t *ks, ngx_http_kontext_session_t *s);


char *
ngx_http_kontext_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_main_conf_t *kmcf = conf;

    u_char      *p;
    ssize_t      size;
    ngx_str_t   *value, name, s;
    ngx_msec_t   idle;

    if (kmcf->zone) {
        return "is duplicate";
    }

    value = cf->args->elts;

    p = (u_char *) ngx_strchr(value[1].data, ':');

    if (p == NULL || p == value[1].data) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid zone \"%V\" in \"kontext_zone\", write "
                           "\"name:size\", such as \"kontext:32m\"",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    name.data = value[1].data;
    name.len = p - name.data;

    s.data = p + 1;
    s.len = value[1].data + value[1].len - s.data;

    size = ngx_parse_size(&s);

    if (size == NGX_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid size \"%V\" in \"kontext_zone\", write "
                           "a number with \"k\" or \"m\"", &s);
        return NGX_CONF_ERROR;
    }

    if (size < (ssize_t) NGX_HTTP_KONTEXT_ZONE_MIN) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone \"%V\" is too small, it must have at least "
                           "%uzk", &value[1],
                           (size_t) NGX_HTTP_KONTEXT_ZONE_MIN / 1024);
        return NGX_CONF_ERROR;
    }

    idle = NGX_HTTP_KONTEXT_ZONE_IDLE;

    if (cf->args->nelts == 3) {

        if (ngx_strncmp(value[2].data, "idle=", 5) != 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\" in "
                               "\"kontext_zone\", it must be \"idle=time\"",
                               &value[2]);
            return NGX_CONF_ERROR;
        }

        s.data = value[2].data + 5;
        s.len = value[2].len - 5;

        idle = ngx_parse_time(&s, 0);

        if (idle == (ngx_msec_t) NGX_ERROR || idle == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid time \"%V\" in \"kontext_zone\", "
                               "write such as \"idle=30m\"", &s);
            return NGX_CONF_ERROR;
        }
    }

    return ngx_http_kontext_zone_add(cf, &name, size, idle);
}


ngx_int_t
ngx_http_kontext_zone_default(ngx_conf_t *cf)
{
    ngx_str_t                      name;
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_kontext_module);

    if (kmcf->zone) {
        return NGX_OK;
    }

    ngx_str_set(&name, "kontext");

    if (ngx_http_kontext_zone_add(cf, &name, 32 * 1024 * 1024,
                                  NGX_HTTP_KONTEXT_ZONE_IDLE)
        != NGX_CONF_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static char *
ngx_http_kontext_zone_add(ngx_conf_t *cf, ngx_str_t *name, ssize_t size,
    ngx_msec_t idle)
{
    ngx_http_kontext_zone_t       *zone;
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_kontext_module);

    zone = ngx_pcalloc(cf->pool, sizeof(ngx_http_kontext_zone_t));
    if (zone == NULL) {
        return NGX_CONF_ERROR;
    }

    zone->idle = idle;

    kmcf->zone = ngx_shared_memory_add(cf, name, size,
                                       &ngx_http_kontext_module);
    if (kmcf->zone == NULL) {
        return NGX_CONF_ERROR;
    }

    kmcf->zone->init = ngx_http_kontext_zone_init;
    kmcf->zone->data = zone;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_kontext_zone_init(ngx_shm_zone_t *shm_zone, void *data)
{
    size_t                      len;
    ngx_slab_pool_t            *shpool;
    ngx_http_kontext_zone_t    *zone;
    ngx_http_kontext_shared_t  *shared;

    zone = shm_zone->data;
    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    zone->shpool = shpool;

    if (data || shm_zone->shm.exists) {
        shared = shpool->data;

    } else {
        len = sizeof(" in kontext zone \"\"") + shm_zone->shm.name.len;

        shpool->log_ctx = ngx_slab_alloc(shpool, len);
        if (shpool->log_ctx == NULL) {
            return NGX_ERROR;
        }

        ngx_sprintf(shpool->log_ctx, " in kontext zone \"%V\"%Z",
                    &shm_zone->shm.name);

        shared = ngx_slab_calloc(shpool, sizeof(ngx_http_kontext_shared_t));
        if (shared == NULL) {
            return NGX_ERROR;
        }

        len = ngx_max(shpool->pfree / NGX_HTTP_KONTEXT_RESPONSES, 1)
              * ngx_pagesize;

        shared->responses = ngx_slab_calloc(shpool, len);
        if (shared->responses == NULL) {
            return NGX_ERROR;
        }

        shared->nresponses = len / sizeof(kx_response_t);

        /*
         * All that is left becomes the table: the slab allocator could not
         * be relied on after a worker died in it.
         */

        shared->size = shpool->pfree * ngx_pagesize;
        shared->table = ngx_slab_alloc(shpool, shared->size);

        if (shared->table == NULL) {
            return NGX_ERROR;
        }

        shpool->log_nomem = 0;
        shpool->data = shared;
    }

    zone->turns = shared->turns;
    zone->responses = shared->responses;
    zone->nresponses = shared->nresponses;
    zone->size = shared->size;
    zone->table = NULL;

    if (data || shm_zone->shm.exists) {
        zone->table = kx_session_table_attach(shared->table, shared->size);
    }

    if (zone->table) {
        ngx_memcpy(zone->secret, zone->table->secret, sizeof(zone->secret));
        return NGX_OK;
    }

    if (ngx_http_kontext_zone_secret(zone->secret, sizeof(zone->secret))
        != NGX_OK)
    {
        ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, ngx_errno,
                      "no random bytes for kontext zone \"%V\"",
                      &shm_zone->shm.name);
        return NGX_ERROR;
    }

    zone->table = kx_session_table_create(shared->table, shared->size,
                                          zone->secret);

    return zone->table ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_kontext_zone_secret(u_char *secret, size_t len)
{
    ssize_t  n;

    do {
        n = getrandom(secret, len, 0);
    } while (n == -1 && ngx_errno == NGX_EINTR);

    return (n == (ssize_t) len) ? NGX_OK : NGX_ERROR;
}


const u_char *
ngx_http_kontext_zone_key(ngx_http_request_t *r)
{
    return ngx_http_kontext_zone_get(r)->secret;
}


const u_char *
ngx_http_kontext_text_key(ngx_http_request_t *r)
{
    return ngx_http_kontext_zone_get(r)->secret + KX_SIP_KEY_LEN;
}


ngx_int_t
ngx_http_kontext_zone_turn(ngx_http_kontext_ctx_t *ctx, u_char *message,
    ngx_http_kontext_session_t *s)
{
    uint32_t                  timeout;
    uint64_t                  now, wall;
    unsigned                  created;
    ngx_time_t               *tp;
    kx_session_t             *ks;
    kx_session_table_t       *table;
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_get(ctx->request);
    table = zone->table;

    tp = ngx_timeofday();
    wall = (uint64_t) tp->sec * 1000 + tp->msec;
    now = ngx_http_kontext_now();

    /* a preload ends by then, with all its attempts: protocol.md 1.2 */

    timeout = 4 * KX_PRELOAD_TIMEOUT + 7000;

    ngx_http_kontext_zone_enter(zone);

    ks = kx_session_table_open(table, ctx->key, ctx->user_key, now, wall,
                               zone->idle, &created);

    if (ks == NULL) {
        ngx_shmtx_unlock(&zone->shpool->mutex);
        return NGX_DECLINED;
    }

    kx_session_table_change(table, ks);

    s->turn = kx_session_turn(ks, message, ctx->track_only, now, wall,
                              timeout);

    s->init = s->turn != KX_TURN_DISABLED
              && kx_session_init_claim(ks, now, timeout) == KX_OK;

    kx_session_table_changed(table, ks);

    ctx->seq = ks->seq;
    ctx->init_seq = ks->init_seq;

    s->has_server_id = ks->has_server_id;
    ngx_memcpy(s->server_id, ks->server_id, KX_ID_LEN);
    s->timeout = ks->preload_timeout;
    s->wall = ks->turn_wall;

    ngx_http_kontext_zone_read(ctx, ks, s);

    /* requests of this conversation in other workers shall look */

    ctx->turns = ngx_atomic_fetch_add(
                         &zone->turns[ctx->key[0] % NGX_HTTP_KONTEXT_TURNS],
                         1)
                 + 1;

    ngx_shmtx_unlock(&zone->shpool->mutex);

    return NGX_OK;
}


static void
ngx_http_kontext_zone_read(ngx_http_kontext_ctx_t *ctx, kx_session_t *ks,
    ngx_http_kontext_session_t *s)
{
    s->state = ks->turn;

    ngx_memcpy(s->code, ks->code, KX_SESSION_CODE_LEN);
    s->code[KX_SESSION_CODE_LEN - 1] = '\0';

    ctx->nbids = kx_session_bids(ks, ctx->bids, ctx->conf->placements->elts,
                                 ctx->conf->placements->nelts);
}


ngx_int_t
ngx_http_kontext_zone_answer(ngx_http_kontext_ctx_t *ctx,
    kx_preload_answer_t *a)
{
    ngx_int_t      rc;
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_zone_lock(ctx, &taken);

    /* the answer to this request is good also when its session is evicted */

    rc = taken ? NGX_DECLINED : NGX_OK;

    if (ks && kx_session_answer(ks, ctx->seq, a,
                                ctx->conf->placements->elts)
              != KX_OK)
    {
        rc = NGX_DECLINED;
    }

    ngx_http_kontext_zone_unlock(ctx, ks);

    return rc;
}


void
ngx_http_kontext_zone_init_answer(ngx_http_kontext_ctx_t *ctx,
    kx_init_answer_t *a)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_zone_lock(ctx, &taken);

    if (ks) {
        kx_session_init_answer(ks, ctx->init_seq, a);
    }

    ngx_http_kontext_zone_unlock(ctx, ks);
}


void
ngx_http_kontext_zone_cancel(ngx_http_kontext_ctx_t *ctx)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_zone_lock(ctx, &taken);

    if (ks) {
        kx_session_cancel(ks, ctx->seq);
    }

    ngx_http_kontext_zone_unlock(ctx, ks);
}


void
ngx_http_kontext_zone_init_cancel(ngx_http_kontext_ctx_t *ctx)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_zone_lock(ctx, &taken);

    if (ks) {
        kx_session_init_cancel(ks, ctx->init_seq);
    }

    ngx_http_kontext_zone_unlock(ctx, ks);
}


void
ngx_http_kontext_zone_pair(ngx_http_kontext_ctx_t *ctx)
{
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_zone_lock(ctx, &taken);

    if (ks) {
        (void) kx_session_pair(ks, ctx->seq, ctx->message);
    }

    ngx_http_kontext_zone_unlock(ctx, ks);
}


void
ngx_http_kontext_zone_response(ngx_http_kontext_ctx_t *ctx)
{
    uint64_t                  key;
    ngx_http_kontext_zone_t  *zone;

    if (!ctx->derived) {
        return;
    }

    zone = ngx_http_kontext_zone_get(ctx->request);

    key = ngx_http_kontext_zone_response_key(ctx, &ctx->answer.response_id);

    ngx_shmtx_lock(&zone->shpool->mutex);

    kx_responses_put(zone->responses, zone->nresponses, key,
                     ctx->conversation_digest, ngx_http_kontext_now());

    ngx_shmtx_unlock(&zone->shpool->mutex);
}


ngx_int_t
ngx_http_kontext_zone_previous(ngx_http_kontext_ctx_t *ctx, ngx_str_t *id)
{
    int                       rc;
    u_char                   *p;
    uint64_t                  key;
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_get(ctx->request);

    key = ngx_http_kontext_zone_response_key(ctx, id);

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
ngx_http_kontext_zone_response_key(ngx_http_kontext_ctx_t *ctx,
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
ngx_http_kontext_zone_look(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s)
{
    ngx_int_t      rc;
    ngx_uint_t     taken;
    kx_session_t  *ks;

    ks = ngx_http_kontext_zone_lock(ctx, &taken);

    if (taken || (ks && ks->seq != ctx->seq)) {
        rc = NGX_DECLINED;

    } else if (ks == NULL) {
        rc = NGX_ERROR;

    } else if (ks->turn == KX_TURN_PENDING) {
        rc = NGX_AGAIN;

    } else {
        rc = NGX_OK;

        if (s) {
            ngx_http_kontext_zone_read(ctx, ks, s);
        }
    }

    ngx_http_kontext_zone_unlock(ctx, ks);

    return rc;
}


ngx_uint_t
ngx_http_kontext_zone_turned(ngx_http_kontext_ctx_t *ctx)
{
    ngx_atomic_uint_t         n;
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_get(ctx->request);

    n = zone->turns[ctx->key[0] % NGX_HTTP_KONTEXT_TURNS];

    if (n == ctx->turns) {
        return 0;
    }

    ctx->turns = n;

    return 1;
}


static ngx_http_kontext_zone_t *
ngx_http_kontext_zone_get(ngx_http_request_t *r)
{
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_http_get_module_main_conf(r, ngx_http_kontext_module);

    return kmcf->zone->data;
}


/* takes the lock; a worker may have died with it */

static void
ngx_http_kontext_zone_enter(ngx_http_kontext_zone_t *zone)
{
    ngx_shmtx_lock(&zone->shpool->mutex);

    if (kx_session_table_check(zone->table) == KX_ERROR) {
        (void) kx_session_table_create(zone->table, zone->size, zone->secret);
    }
}


/*
 * The session, ready to be changed, or NULL; locked in either case.  taken:
 * another user has taken the conversation over.
 */

static kx_session_t *
ngx_http_kontext_zone_lock(ngx_http_kontext_ctx_t *ctx, ngx_uint_t *taken)
{
    kx_session_t             *ks;
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_get(ctx->request);
    *taken = 0;

    ngx_http_kontext_zone_enter(zone);

    ks = kx_session_table_find(zone->table, ctx->key, ngx_http_kontext_now(),
                               zone->idle);

    if (ks && ks->user != ctx->user_key) {
        *taken = 1;
        return NULL;
    }

    if (ks) {
        kx_session_table_change(zone->table, ks);
    }

    return ks;
}


static void
ngx_http_kontext_zone_unlock(ngx_http_kontext_ctx_t *ctx, kx_session_t *ks)
{
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_get(ctx->request);

    if (ks) {
        kx_session_table_changed(zone->table, ks);
    }

    ngx_shmtx_unlock(&zone->shpool->mutex);
}
