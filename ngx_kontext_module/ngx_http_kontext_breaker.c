/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The circuit breakers of the ad servers, and how many calls of one there may
 * be at the same time.  A server block and the prefix of its location name an
 * ad server; its record in the zone is found again by that after a reload.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_MAX_BREAKERS  64
#define NGX_HTTP_KONTEXT_BREAKERS      8      /* one part of the zone */
#define NGX_HTTP_KONTEXT_AUTO_CALLS    0xffffffff


static char *ngx_http_kontext_breaker_param(ngx_conf_t *cf,
    kx_breaker_conf_t *breaker, ngx_str_t *value);
static kx_breaker_conf_t *ngx_http_kontext_breaker_conf(
    ngx_http_kontext_loc_conf_t *klcf);
static ngx_http_kontext_site_t *ngx_http_kontext_breaker_site(
    ngx_http_kontext_call_t *call, kx_breaker_conf_t **conf,
    ngx_uint_t *telling);
static uint64_t ngx_http_kontext_breaker_key(ngx_http_kontext_site_t *site);
static kx_breaker_t *ngx_http_kontext_breaker_find(
    ngx_http_kontext_zone_t *zone, ngx_http_kontext_main_conf_t *kmcf,
    uint64_t key);
static ngx_uint_t ngx_http_kontext_breaker_used(
    ngx_http_kontext_main_conf_t *kmcf, uint64_t key);


static const kx_breaker_conf_t  ngx_http_kontext_breaker_default = {
    .failures = 50,
    .min = 20,
    .window = 10000,
    .probe = 1000,
    .stall = 500
};


char *
ngx_http_kontext_breaker(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    char               *rv;
    ngx_str_t          *value;
    ngx_uint_t          i;
    kx_breaker_conf_t  *breaker;

    breaker = &klcf->breaker;

    if (breaker->failures) {
        return "is duplicate";
    }

    *breaker = ngx_http_kontext_breaker_default;

    value = cf->args->elts;

    if (cf->args->nelts == 2
        && value[1].len == 3 && ngx_strncmp(value[1].data, "off", 3) == 0)
    {
        breaker->off = 1;
        return NGX_CONF_OK;
    }

    rv = NGX_CONF_OK;

    for (i = 1; i < cf->args->nelts && rv == NGX_CONF_OK; i++) {
        rv = ngx_http_kontext_breaker_param(cf, breaker, &value[i]);
    }

    return rv;
}


static char *
ngx_http_kontext_breaker_param(ngx_conf_t *cf, kx_breaker_conf_t *breaker,
    ngx_str_t *value)
{
    u_char      *eq;
    uint32_t    *time;
    ngx_int_t    n;
    ngx_str_t    name, s;
    ngx_msec_t   ms;

    eq = ngx_strlchr(value->data, value->data + value->len, '=');

    name.data = value->data;
    name.len = eq ? (size_t) (eq - value->data) : 0;

    s.data = value->data + name.len + 1;
    s.len = eq ? value->len - name.len - 1 : 0;

    if (name.len == 8 && ngx_strncmp(name.data, "failures", 8) == 0) {

        n = (s.len && s.data[s.len - 1] == '%')
            ? ngx_atoi(s.data, s.len - 1) : NGX_ERROR;

        if (n < 1 || n > 100) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid share \"%V\" in \"kontext_breaker\", "
                               "write \"failures=1%%\" to \"failures=100%%\"",
                               &s);
            return NGX_CONF_ERROR;
        }

        breaker->failures = n;

        return NGX_CONF_OK;
    }

    if (name.len == 3 && ngx_strncmp(name.data, "min", 3) == 0) {

        n = ngx_atoi(s.data, s.len);

        if (n < 1 || n > 10000) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid number \"%V\" in "
                               "\"kontext_breaker\", write \"min=1\" to "
                               "\"min=10000\"", &s);
            return NGX_CONF_ERROR;
        }

        breaker->min = n;

        return NGX_CONF_OK;
    }

    if (name.len == 6 && ngx_strncmp(name.data, "window", 6) == 0) {
        time = &breaker->window;

    } else if (name.len == 5 && ngx_strncmp(name.data, "probe", 5) == 0) {
        time = &breaker->probe;

    } else if (name.len == 5 && ngx_strncmp(name.data, "stall", 5) == 0) {
        time = &breaker->stall;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\" in \"kontext_breaker\", "
                           "it must be \"failures=percent%%\", "
                           "\"window=time\", \"min=number\", \"probe=time\", "
                           "\"stall=time\", or \"off\" alone", value);
        return NGX_CONF_ERROR;
    }

    ms = ngx_parse_time(&s, 0);

    if (ms == (ngx_msec_t) NGX_ERROR || ms < 10 || ms > 600000) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid time \"%V\" in \"kontext_breaker\", "
                           "write \"%V=10ms\" to \"%V=10m\"", &s, &name,
                           &name);
        return NGX_CONF_ERROR;
    }

    *time = ms;

    return NGX_CONF_OK;
}


void
ngx_http_kontext_breaker_merge(ngx_http_kontext_loc_conf_t *conf,
    ngx_http_kontext_loc_conf_t *prev)
{
    if (conf->breaker.failures == 0) {
        conf->breaker = prev->breaker;
    }

    if (conf->breaker.failures == 0) {
        conf->breaker = ngx_http_kontext_breaker_default;
    }

    ngx_conf_merge_value(conf->max_calls, prev->max_calls,
                         NGX_HTTP_KONTEXT_AUTO_CALLS);

    conf->breaker.max_calls = conf->max_calls;
}


ngx_http_kontext_site_t *
ngx_http_kontext_site(ngx_conf_t *cf, ngx_http_kontext_main_conf_t *kmcf,
    ngx_str_t *prefix)
{
    ngx_uint_t                  i;
    ngx_http_kontext_site_t    *site, **sites;
    ngx_http_core_srv_conf_t   *cscf;

    cscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_core_module);

    sites = kmcf->sites.elts;

    for (i = 0; i < kmcf->sites.nelts; i++) {
        if (sites[i]->server.len == cscf->server_name.len
            && sites[i]->prefix.len == prefix->len
            && ngx_strncmp(sites[i]->server.data, cscf->server_name.data,
                           cscf->server_name.len)
               == 0
            && ngx_strncmp(sites[i]->prefix.data, prefix->data, prefix->len)
               == 0)
        {
            return sites[i];
        }
    }

    sites = ngx_array_push(&kmcf->sites);
    site = ngx_pcalloc(cf->pool, sizeof(ngx_http_kontext_site_t));

    if (sites == NULL || site == NULL) {
        return NULL;
    }

    site->server = cscf->server_name;
    site->prefix = *prefix;
    site->key = ngx_http_kontext_breaker_key(site);

    *sites = site;

    return site;
}


static uint64_t
ngx_http_kontext_breaker_key(ngx_http_kontext_site_t *site)
{
    uint64_t              key;
    kx_sip_t              sip;

    static const u_char   zero[KX_SIP_KEY_LEN];

    /* a name: nothing secret depends on it */

    kx_sip_init(&sip, zero, 0);
    kx_sip_field(&sip, site->server.data, site->server.len);
    kx_sip_field(&sip, site->prefix.data, site->prefix.len);
    key = kx_sip_final64(&sip);

    return key ? key : 1;
}


ngx_int_t
ngx_http_kontext_breakers_create(ngx_http_kontext_main_conf_t *kmcf,
    ngx_slab_pool_t *shpool, kx_breaker_t **breakers, ngx_uint_t *n)
{
    size_t  len;

    /* one more than there are: the next configuration may name another */

    *n = ngx_min(kmcf->sites.nelts + 1, NGX_HTTP_KONTEXT_MAX_BREAKERS);

    /* a small zone is for sessions first */

    len = ngx_max(shpool->pfree / NGX_HTTP_KONTEXT_BREAKERS, 1)
          * ngx_pagesize;

    *n = ngx_min(*n, len / sizeof(kx_breaker_t));

    *breakers = ngx_slab_calloc(shpool, *n * sizeof(kx_breaker_t));

    return *breakers ? NGX_OK : NGX_ERROR;
}


void
ngx_http_kontext_breakers_init(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_main_conf_t *kmcf)
{
    ngx_uint_t                 i;
    ngx_http_kontext_site_t  **sites;

    sites = kmcf->sites.elts;

    for (i = 0; i < kmcf->sites.nelts; i++) {
        sites[i]->breaker = ngx_http_kontext_breaker_find(zone, kmcf,
                                                          sites[i]->key);
    }
}


static kx_breaker_t *
ngx_http_kontext_breaker_find(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_main_conf_t *kmcf, uint64_t key)
{
    ngx_uint_t     i;
    kx_breaker_t  *b;

    for (i = 0; i < zone->nbreakers; i++) {
        if (zone->breakers[i].key == key) {
            return &zone->breakers[i];
        }
    }

    /* a new one, or that of an ad server which is not configured any more */

    for (i = 0; i < zone->nbreakers; i++) {
        b = &zone->breakers[i];

        if (!ngx_http_kontext_breaker_used(kmcf, b->key)) {
            ngx_memzero(b, sizeof(kx_breaker_t));
            b->key = key;
            return b;
        }
    }

    /* there are more than there was room for: some share one */

    return &zone->breakers[key % zone->nbreakers];
}


static ngx_uint_t
ngx_http_kontext_breaker_used(ngx_http_kontext_main_conf_t *kmcf,
    uint64_t key)
{
    ngx_uint_t                 i;
    ngx_http_kontext_site_t  **sites;

    sites = kmcf->sites.elts;

    for (i = 0; i < kmcf->sites.nelts; i++) {
        if (sites[i]->key == key) {
            return 1;
        }
    }

    return 0;
}


/* of each worker: one before it may have died with calls */

void
ngx_http_kontext_breakers_start(ngx_http_kontext_main_conf_t *kmcf)
{
    ngx_uint_t                 i;
    ngx_http_kontext_site_t  **sites;

    sites = kmcf->sites.elts;

    for (i = 0; i < kmcf->sites.nelts; i++) {
        kx_breaker_restart(sites[i]->breaker, ngx_http_kontext_now());
    }
}


/* by default a quarter of all connections may be calls of an ad server */

static kx_breaker_conf_t *
ngx_http_kontext_breaker_conf(ngx_http_kontext_loc_conf_t *klcf)
{
    ngx_core_conf_t  *ccf;

    if (klcf->breaker.max_calls == NGX_HTTP_KONTEXT_AUTO_CALLS) {
        ccf = (ngx_core_conf_t *) ngx_get_conf(ngx_cycle->conf_ctx,
                                               ngx_core_module);

        klcf->breaker.max_calls = ngx_max(ngx_cycle->connection_n
                                          * ngx_max(ccf->worker_processes, 1)
                                          / 4, 1);
    }

    return &klcf->breaker;
}


kx_reason_e
ngx_http_kontext_breaker_admit(ngx_http_kontext_loc_conf_t *klcf,
    ngx_uint_t *probe)
{
    kx_breaker_e  rc;

    rc = kx_breaker_admit(klcf->site->breaker,
                          ngx_http_kontext_breaker_conf(klcf),
                          ngx_http_kontext_now());

    *probe = (rc == KX_BREAKER_PROBE);

    switch (rc) {

    case KX_BREAKER_OPEN:
        return KX_REASON_BREAKER;

    case KX_BREAKER_BUSY:
        return KX_REASON_BUSY;

    default:
        return KX_REASON_NONE;
    }
}


ngx_uint_t
ngx_http_kontext_breaker_allows(ngx_http_kontext_loc_conf_t *klcf)
{
    return kx_breaker_allows(klcf->site->breaker,
                             ngx_http_kontext_breaker_conf(klcf),
                             ngx_http_kontext_now());
}


ngx_uint_t
ngx_http_kontext_breaker_store(ngx_http_kontext_loc_conf_t *klcf)
{
    kx_breaker_e  rc;

    rc = kx_breaker_admit(klcf->store_site->breaker, &klcf->store->breaker,
                          ngx_http_kontext_now());

    return rc == KX_BREAKER_PASS || rc == KX_BREAKER_PROBE;
}


/* telling: it is a call that says how its server is doing */

static ngx_http_kontext_site_t *
ngx_http_kontext_breaker_site(ngx_http_kontext_call_t *call,
    kx_breaker_conf_t **conf, ngx_uint_t *telling)
{
    if (call->kind == NGX_HTTP_KONTEXT_CALL_STORE) {
        *conf = &call->conf->store->breaker;
        *telling = 1;

        return call->conf->store_site;
    }

    *conf = ngx_http_kontext_breaker_conf(call->conf);
    *telling = (call->kind == NGX_HTTP_KONTEXT_CALL_PRELOAD);

    return call->conf->site;
}


void
ngx_http_kontext_breaker_begin(ngx_http_kontext_call_t *call)
{
    ngx_uint_t                telling;
    kx_breaker_conf_t        *conf;
    ngx_http_kontext_site_t  *site;

    site = ngx_http_kontext_breaker_site(call, &conf, &telling);

    call->begun = ngx_http_kontext_now();
    call->counted = 1;

    kx_breaker_begin(site->breaker, telling, call->begun);
}


void
ngx_http_kontext_breaker_end(ngx_http_kontext_call_t *call,
    kx_breaker_end_e end)
{
    ngx_uint_t                telling;
    kx_breaker_conf_t        *conf;
    ngx_http_kontext_site_t  *site;

    if (!call->counted) {
        return;
    }

    call->counted = 0;

    site = ngx_http_kontext_breaker_site(call, &conf, &telling);

    kx_breaker_end(site->breaker, conf, telling, call->begun,
                   ngx_http_kontext_now(), end);
}


void
ngx_http_kontext_breaker_status(ngx_http_kontext_site_t *site,
    kx_status_breaker_t *s)
{
    uint64_t            now;
    kx_breaker_t       *b;
    kx_breaker_conf_t  *conf;

    b = site->breaker;
    now = ngx_http_kontext_now();

    conf = site->store ? &site->conf->store->breaker
                       : ngx_http_kontext_breaker_conf(site->conf);

    s->state = kx_breaker_state(b, conf, now);
    s->calls = kx_breaker_calls(b, now);
    s->max_calls = conf->max_calls;
    s->opened = b->opened;
    s->refused = b->refused;
    s->busy = b->busy;
}
