/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The status page.
 */


#include "ngx_http_kontext.h"


static ngx_uint_t ngx_http_kontext_status_is_text(ngx_http_request_t *r);
static void ngx_http_kontext_status_read(ngx_http_request_t *r,
    kx_status_t *s);
static ngx_int_t ngx_http_kontext_status_breakers(ngx_http_request_t *r,
    kx_status_t *s);
static ngx_int_t ngx_http_kontext_status_name(ngx_http_request_t *r,
    ngx_str_t *value, kx_str_t *name);


ngx_int_t
ngx_http_kontext_status_handler(ngx_http_request_t *r)
{
    size_t                         size;
    u_char                        *p, *last;
    ngx_int_t                      rc;
    ngx_str_t                      body;
    ngx_uint_t                     text;
    kx_status_t                    s;
    ngx_http_kontext_main_conf_t  *kmcf;

    static ngx_str_t  types[] = {
        ngx_string("application/json"),
        ngx_string("text/plain; version=0.0.4; charset=utf-8")
    };

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    ngx_memzero(&s, sizeof(kx_status_t));

    kmcf = ngx_http_get_module_main_conf(r, ngx_http_kontext_module);

    size = KX_STATUS_MAX + kmcf->sites.nelts * KX_STATUS_BREAKER;

    p = ngx_palloc(r->pool, size);

    if (p == NULL
        || ngx_http_kontext_status_name(r, &kmcf->zone->shm.name, &s.zone)
           != NGX_OK
        || ngx_http_kontext_status_breakers(r, &s) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_kontext_status_read(r, &s);

    text = ngx_http_kontext_status_is_text(r);

    last = text ? kx_status_prometheus(p, p + size, &s)
                : kx_status_json(p, p + size, &s);

    if (last == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    body.data = p;
    body.len = last - p;

    return ngx_http_kontext_respond(r, NGX_HTTP_OK, &types[text], &body);
}


/* "?format=prometheus", or what Prometheus says that it accepts */

static ngx_uint_t
ngx_http_kontext_status_is_text(ngx_http_request_t *r)
{
    ngx_str_t  value;

    static ngx_str_t  name = ngx_string("accept");

    if (ngx_http_arg(r, (u_char *) "format", 6, &value) == NGX_OK) {
        return value.len == 10
               && ngx_strncmp(value.data, "prometheus", 10) == 0;
    }

    ngx_http_kontext_header(r, &name, &value);

    return value.len
           && (ngx_strlcasestrn(value.data, value.data + value.len,
                                (u_char *) "text/plain", 10 - 1)
               || ngx_strlcasestrn(value.data, value.data + value.len,
                                   (u_char *) "openmetrics", 11 - 1));
}


static void
ngx_http_kontext_status_read(ngx_http_request_t *r, kx_status_t *s)
{
    uint64_t                 *n;
    ngx_uint_t                i, last;
    kx_store_view_t           v;
    kx_session_table_t       *t;
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_get(r);
    t = zone->table;

    s->version = NGX_HTTP_KONTEXT_VERSION;
    s->size = zone->size;
    s->max_streams = zone->streams;

    ngx_http_kontext_zone_enter(zone);

    s->sessions = t->used;
    s->slots = t->slots;
    s->evicted = t->evicted;
    s->expired = t->expired;
    s->repaired = t->repaired;

    if (kx_store_view(t, &v) == KX_OK) {
        s->blocks = v.n;
        s->used_blocks = v.head->used;
    }

    ngx_http_kontext_zone_leave(zone);

    last = ngx_min(*zone->nslots, NGX_HTTP_KONTEXT_SLOTS);

    for (i = 0; i < last; i++) {
        if (zone->slots[i].pid) {
            s->streams += zone->slots[i].streams;
        }
    }

    n = (uint64_t *) &s->n;

    for (i = 0; i < NGX_HTTP_KONTEXT_COUNTERS; i++) {
        n[i] = zone->counters[i];
    }
}


static ngx_int_t
ngx_http_kontext_status_breakers(ngx_http_request_t *r, kx_status_t *s)
{
    ngx_uint_t                      i;
    ngx_http_kontext_site_t       **sites;
    ngx_http_kontext_main_conf_t   *kmcf;

    kmcf = ngx_http_get_module_main_conf(r, ngx_http_kontext_module);

    sites = kmcf->sites.elts;

    s->breakers = ngx_palloc(r->pool, (kmcf->sites.nelts + 1)
                                      * sizeof(kx_status_breaker_t));
    if (s->breakers == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < kmcf->sites.nelts; i++) {

        if (ngx_http_kontext_status_name(r, &sites[i]->server,
                                         &s->breakers[i].server)
            != NGX_OK
            || ngx_http_kontext_status_name(r, &sites[i]->prefix,
                                            &s->breakers[i].location)
               != NGX_OK)
        {
            return NGX_ERROR;
        }

        ngx_http_kontext_breaker_status(sites[i], &s->breakers[i]);
    }

    s->nbreakers = i;

    return NGX_OK;
}


/* it becomes a part of JSON and of a label */

static ngx_int_t
ngx_http_kontext_status_name(ngx_http_request_t *r, ngx_str_t *value,
    kx_str_t *name)
{
    u_char     *p;
    size_t      i;

    name->len = ngx_min(value->len, KX_STATUS_NAME);

    p = ngx_pnalloc(r->pool, name->len + 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_memcpy(p, value->data, name->len);

    name->data = p;

    for (i = 0; i < name->len; i++) {
        if (p[i] < ' ' || p[i] >= 0x7f || p[i] == '"' || p[i] == '\\') {
            p[i] = '_';
        }
    }

    return NGX_OK;
}
