/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "ngx_http_kontext.h"

#include <sys/random.h>


#define NGX_HTTP_KONTEXT_ZONE_IDLE  1800000     /* 30 minutes, in ms */
#define NGX_HTTP_KONTEXT_ZONE_MIN   (8 * ngx_pagesize)
#define NGX_HTTP_KONTEXT_RESPONSES  32          /* one of so many pages */
#define NGX_HTTP_KONTEXT_SHARE      16          /* 64ths of it: the store */
#define NGX_HTTP_KONTEXT_MAX_SHARE  48
#define NGX_HTTP_KONTEXT_STREAMS    1024        /* of events */


/* what lies in the memory, in front of the table */

typedef struct {
    ngx_atomic_t                 turns[NGX_HTTP_KONTEXT_TURNS];
    ngx_http_kontext_slot_t      slots[NGX_HTTP_KONTEXT_SLOTS];
    ngx_atomic_t                 nslots;       /* used up to now */
    ngx_atomic_t                 counters[NGX_HTTP_KONTEXT_COUNTERS];
} ngx_http_kontext_shared_t;


static char *ngx_http_kontext_zone_param(ngx_conf_t *cf, ngx_str_t *value,
    ssize_t size, ngx_http_kontext_zone_t *zone);
static char *ngx_http_kontext_zone_add(ngx_conf_t *cf, ngx_str_t *name,
    ssize_t size, ngx_http_kontext_zone_t **zone);
static ngx_int_t ngx_http_kontext_zone_init(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_kontext_zone_create(ngx_shm_zone_t *shm_zone,
    ngx_http_kontext_zone_t *zone);
static ngx_int_t ngx_http_kontext_zone_inherit(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_zone_t *old);


char *
ngx_http_kontext_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_main_conf_t *kmcf = conf;

    char                     *rv;
    u_char                   *p;
    ssize_t                   size;
    ngx_str_t                *value, name, s;
    ngx_uint_t                i;
    ngx_http_kontext_zone_t  *zone;

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

    rv = ngx_http_kontext_zone_add(cf, &name, size, &zone);

    for (i = 2; i < cf->args->nelts && rv == NGX_CONF_OK; i++) {
        rv = ngx_http_kontext_zone_param(cf, &value[i], size, zone);
    }

    return rv;
}


static char *
ngx_http_kontext_zone_param(ngx_conf_t *cf, ngx_str_t *value, ssize_t size,
    ngx_http_kontext_zone_t *zone)
{
    ssize_t     store;
    ngx_int_t   n;
    ngx_str_t   s;
    ngx_msec_t  idle;

    if (ngx_strncmp(value->data, "idle=", 5) == 0) {

        s.data = value->data + 5;
        s.len = value->len - 5;

        idle = ngx_parse_time(&s, 0);

        if (idle == (ngx_msec_t) NGX_ERROR || idle == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid time \"%V\" in \"kontext_zone\", "
                               "write such as \"idle=30m\"", &s);
            return NGX_CONF_ERROR;
        }

        zone->idle = idle;

        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value->data, "store=", 6) == 0) {

        s.data = value->data + 6;
        s.len = value->len - 6;

        store = ngx_parse_size(&s);

        if (store == NGX_ERROR
            || store > size / 64 * NGX_HTTP_KONTEXT_MAX_SHARE)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid size \"%V\" in \"kontext_zone\", "
                               "write such as \"store=8m\", at most three "
                               "quarters of the zone", &s);
            return NGX_CONF_ERROR;
        }

        zone->share = (store + size / 64 - 1) / (size / 64);

        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value->data, "streams=", 8) == 0) {

        s.data = value->data + 8;
        s.len = value->len - 8;

        n = ngx_atoi(s.data, s.len);

        if (n == NGX_ERROR) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid number \"%V\" in \"kontext_zone\", "
                               "write such as \"streams=1024\"", &s);
            return NGX_CONF_ERROR;
        }

        zone->streams = n;

        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid parameter \"%V\" in \"kontext_zone\", it "
                       "must be \"idle=time\", \"store=size\" or "
                       "\"streams=number\"", value);

    return NGX_CONF_ERROR;
}


ngx_int_t
ngx_http_kontext_zone_default(ngx_conf_t *cf)
{
    ngx_str_t                      name;
    ngx_http_kontext_zone_t       *zone;
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_kontext_module);

    if (kmcf->zone) {
        return NGX_OK;
    }

    ngx_str_set(&name, "kontext");

    if (ngx_http_kontext_zone_add(cf, &name, 32 * 1024 * 1024, &zone)
        != NGX_CONF_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static char *
ngx_http_kontext_zone_add(ngx_conf_t *cf, ngx_str_t *name, ssize_t size,
    ngx_http_kontext_zone_t **zp)
{
    ngx_http_kontext_zone_t       *zone;
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_kontext_module);

    zone = ngx_pcalloc(cf->pool, sizeof(ngx_http_kontext_zone_t));
    if (zone == NULL) {
        return NGX_CONF_ERROR;
    }

    zone->idle = NGX_HTTP_KONTEXT_ZONE_IDLE;
    zone->share = NGX_HTTP_KONTEXT_SHARE;
    zone->streams = NGX_HTTP_KONTEXT_STREAMS;
    zone->fd = -1;
    zone->main = kmcf;

    if (ngx_http_kontext_fds_keep(cf, zone) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    kmcf->zone = ngx_shared_memory_add(cf, name, size,
                                       &ngx_http_kontext_module);
    if (kmcf->zone == NULL) {
        return NGX_CONF_ERROR;
    }

    kmcf->zone->init = ngx_http_kontext_zone_init;
    kmcf->zone->data = zone;

    *zp = zone;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_kontext_zone_init(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_kontext_zone_t *old = data;

    ngx_http_kontext_zone_t  *zone;

    zone = shm_zone->data;
    zone->shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (ngx_http_kontext_fds_open(zone, old, shm_zone->shm.log) != NGX_OK) {
        return NGX_ERROR;
    }

    return old ? ngx_http_kontext_zone_inherit(zone, old)
               : ngx_http_kontext_zone_create(shm_zone, zone);
}


static ngx_int_t
ngx_http_kontext_zone_create(ngx_shm_zone_t *shm_zone,
    ngx_http_kontext_zone_t *zone)
{
    void                       *table;
    size_t                      len;
    ngx_slab_pool_t            *shpool;
    ngx_http_kontext_shared_t  *shared;

    shpool = zone->shpool;

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

    zone->turns = shared->turns;
    zone->slots = shared->slots;
    zone->nslots = &shared->nslots;
    zone->counters = shared->counters;

    len = ngx_max(shpool->pfree / NGX_HTTP_KONTEXT_RESPONSES, 1)
          * ngx_pagesize;

    zone->responses = ngx_slab_calloc(shpool, len);
    if (zone->responses == NULL) {
        return NGX_ERROR;
    }

    zone->nresponses = len / sizeof(kx_response_t);

    if (ngx_http_kontext_breakers_create(zone->main, shpool, &zone->breakers,
                                         &zone->nbreakers)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_http_kontext_breakers_init(zone, zone->main);

    /*
     * All that is left becomes the table: the slab allocator could not be
     * relied on after a worker died in it.
     */

    zone->size = shpool->pfree * ngx_pagesize;

    table = ngx_slab_alloc(shpool, zone->size);
    if (table == NULL) {
        return NGX_ERROR;
    }

    shpool->log_nomem = 0;

    if (ngx_http_kontext_random(zone->secret, sizeof(zone->secret))
        != NGX_OK)
    {
        ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, ngx_errno,
                      "no random bytes for kontext zone \"%V\"",
                      &shm_zone->shm.name);
        return NGX_ERROR;
    }

    zone->table = kx_session_table_create(table, zone->size, zone->share);

    return zone->table ? NGX_OK : NGX_ERROR;
}


/*
 * What is where in the zone is known from the configuration before, and not
 * from the zone: each worker could write there.
 */

static ngx_int_t
ngx_http_kontext_zone_inherit(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_zone_t *old)
{
    zone->turns = old->turns;
    zone->slots = old->slots;
    zone->nslots = old->nslots;
    zone->counters = old->counters;
    zone->responses = old->responses;
    zone->nresponses = old->nresponses;
    zone->breakers = old->breakers;
    zone->nbreakers = old->nbreakers;
    zone->size = old->size;
    zone->share = old->share;

    ngx_memcpy(zone->secret, old->secret, sizeof(zone->secret));

    ngx_http_kontext_breakers_init(zone, zone->main);

    zone->table = kx_session_table_attach(old->table, zone->size,
                                          zone->share);

    if (zone->table == NULL) {
        zone->table = kx_session_table_create(old->table, zone->size,
                                              zone->share);
    }

    return zone->table ? NGX_OK : NGX_ERROR;
}


ngx_int_t
ngx_http_kontext_random(u_char *p, size_t len)
{
    ssize_t  n;

    do {
        n = getrandom(p, len, 0);
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


ngx_http_kontext_zone_t *
ngx_http_kontext_zone_get(ngx_http_request_t *r)
{
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_http_get_module_main_conf(r, ngx_http_kontext_module);

    return kmcf->zone->data;
}


uint64_t
ngx_http_kontext_wall(void)
{
    ngx_time_t  *tp;

    tp = ngx_timeofday();

    return (uint64_t) tp->sec * 1000 + tp->msec;
}


/* a worker may have died with it */

void
ngx_http_kontext_zone_enter(ngx_http_kontext_zone_t *zone)
{
    ngx_shmtx_lock(&zone->shpool->mutex);

    if (kx_session_table_check(zone->table, zone->size, zone->share)
        == KX_ERROR)
    {
        (void) kx_session_table_create(zone->table, zone->size, zone->share);
    }
}


void
ngx_http_kontext_zone_leave(ngx_http_kontext_zone_t *zone)
{
    ngx_shmtx_unlock(&zone->shpool->mutex);
}
