/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "ngx_http_kontext.h"


static ngx_http_kontext_ctx_t *ngx_http_kontext_variable_ctx(
    ngx_http_request_t *r);
static ngx_int_t ngx_http_kontext_variable_status(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_reason(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_injected(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_format(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_string(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_bid(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_code(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_label(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_revenue(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_time(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_kontext_variable_plain(ngx_http_request_t *r,
    ngx_str_t *dst, const ngx_str_t *src);
static void ngx_http_kontext_variable_set(ngx_http_variable_value_t *v,
    const ngx_str_t *value);


/* in the order of ngx_http_kontext_status_e */

static ngx_str_t  ngx_http_kontext_statuses[] = {
    ngx_string("off"),
    ngx_string("bypass"),
    ngx_string("pending"),
    ngx_string("filled"),
    ngx_string("no_fill"),
    ngx_string("error")
};


static ngx_http_variable_t  ngx_http_kontext_vars[] = {

    { ngx_string("kontext_status"), NULL,
      ngx_http_kontext_variable_status, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_reason"), NULL,
      ngx_http_kontext_variable_reason, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_injected"), NULL,
      ngx_http_kontext_variable_injected, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_format"), NULL,
      ngx_http_kontext_variable_format, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_session"), NULL,
      ngx_http_kontext_variable_string,
      offsetof(ngx_http_kontext_ctx_t, session), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_session_user"), NULL,
      ngx_http_kontext_variable_string,
      offsetof(ngx_http_kontext_ctx_t, user), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_session_conversation"), NULL,
      ngx_http_kontext_variable_string,
      offsetof(ngx_http_kontext_ctx_t, conversation),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_message_id"), NULL,
      ngx_http_kontext_variable_string,
      offsetof(ngx_http_kontext_ctx_t, message_id),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_bid_id"), NULL,
      ngx_http_kontext_variable_bid, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_code"), NULL,
      ngx_http_kontext_variable_code, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_revenue"), NULL,
      ngx_http_kontext_variable_revenue, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_event"), NULL,
      ngx_http_kontext_variable_string,
      offsetof(ngx_http_kontext_ctx_t, event), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_frame_url"), NULL,
      ngx_http_kontext_variable_string,
      offsetof(ngx_http_kontext_ctx_t, frame_url),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_label"), NULL,
      ngx_http_kontext_variable_label, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_preload_time"), NULL,
      ngx_http_kontext_variable_time,
      offsetof(ngx_http_kontext_ctx_t, preload_time),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("kontext_hold_time"), NULL,
      ngx_http_kontext_variable_time,
      offsetof(ngx_http_kontext_ctx_t, hold_time),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


ngx_int_t
ngx_http_kontext_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_kontext_vars; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


/* whoever wants to know now, also makes it known now */

static ngx_http_kontext_ctx_t *
ngx_http_kontext_variable_ctx(ngx_http_request_t *r)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_get_ctx(r);

    if (ctx) {
        ngx_http_kontext_analyse(ctx);
    }

    return ctx;
}


static ngx_int_t
ngx_http_kontext_variable_status(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    ngx_http_kontext_variable_set(v,
                &ngx_http_kontext_statuses[ctx ? ctx->status
                                               : NGX_HTTP_KONTEXT_OFF]);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_reason(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    if (ctx == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    /* the ad server's word goes first */

    if (ctx->code.len) {
        ngx_http_kontext_variable_set(v, &ctx->code);
        return NGX_OK;
    }

    ngx_http_kontext_variable_set(v, kx_reason_name(ctx->reason));

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_injected(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_kontext_ctx_t  *ctx;

    static ngx_str_t  forms[] = { ngx_string("member"), ngx_string("text") };
    static ngx_str_t  none = ngx_string("");

    ctx = ngx_http_kontext_variable_ctx(r);

    ngx_http_kontext_variable_set(v, (ctx && ctx->injected)
                                     ? &forms[ctx->answer.form] : &none);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_format(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    if (ctx == NULL || ctx->cv.dialect == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    ngx_http_kontext_variable_set(v, &ctx->cv.dialect->name);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_string(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t               *value, plain;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    if (ctx == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    value = (ngx_str_t *) ((char *) ctx + data);

    if (value->len == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    if (ngx_http_kontext_variable_plain(r, &plain, value) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_kontext_variable_set(v, &plain);

    return NGX_OK;
}


/*
 * Ids come out of JSON of the client and of the model, and may have line ends:
 * as a variable they become part of headers (proxy_set_header, add_header).
 */

static ngx_int_t
ngx_http_kontext_variable_plain(ngx_http_request_t *r, ngx_str_t *dst,
    const ngx_str_t *src)
{
    size_t  i;

    *dst = *src;

    for (i = 0; i < src->len; i++) {
        if (src->data[i] >= 0x20 && src->data[i] != 0x7f) {
            continue;
        }

        if (dst->data == src->data) {
            dst->data = ngx_pnalloc(r->pool, src->len);
            if (dst->data == NULL) {
                return NGX_ERROR;
            }

            ngx_memcpy(dst->data, src->data, src->len);
        }

        dst->data[i] = '?';
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_bid(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t                value;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    if (ctx == NULL || ctx->nbids == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    value.data = ngx_pnalloc(r->pool, KX_UUID_LEN);
    if (value.data == NULL) {
        return NGX_ERROR;
    }

    value.len = kx_uuid_write(value.data, ctx->bids[0].id) - value.data;

    ngx_http_kontext_variable_set(v, &value);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_code(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t               *code;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    if (ctx == NULL || ctx->nbids == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    code = ctx->conf->placements->elts;

    ngx_http_kontext_variable_set(v, &code[ctx->bids[0].placement]);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_label(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    if (ctx == NULL || ctx->nbids == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    ngx_http_kontext_variable_set(v, &ctx->label);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_revenue(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    double                   revenue;
    u_char                  *p;
    ngx_str_t                value;
    ngx_uint_t               i;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    revenue = -1;

    if (ctx) {
        for (i = 0; i < ctx->nbids; i++) {
            if (ctx->bids[i].revenue >= 0) {
                revenue = (revenue < 0) ? ctx->bids[i].revenue
                                        : revenue + ctx->bids[i].revenue;
            }
        }
    }

    if (revenue < 0 || revenue > 1e9) {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_INT64_LEN + sizeof(".000000"));
    if (p == NULL) {
        return NGX_ERROR;
    }

    value.data = p;
    p = ngx_sprintf(p, "%.6f", revenue);

    while (p[-1] == '0') {
        p--;
    }

    if (p[-1] == '.') {
        p--;
    }

    value.len = p - value.data;

    ngx_http_kontext_variable_set(v, &value);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_variable_time(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t                value;
    ngx_msec_t               ms;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_variable_ctx(r);

    if (ctx == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    ms = *(ngx_msec_t *) ((char *) ctx + data);

    if (ms == NGX_CONF_UNSET_MSEC) {
        v->not_found = 1;
        return NGX_OK;
    }

    value.data = ngx_pnalloc(r->pool, NGX_TIME_T_LEN + 4);
    if (value.data == NULL) {
        return NGX_ERROR;
    }

    value.len = ngx_sprintf(value.data, "%T.%03M", (time_t) ms / 1000,
                            ms % 1000)
                - value.data;

    ngx_http_kontext_variable_set(v, &value);

    return NGX_OK;
}


static void
ngx_http_kontext_variable_set(ngx_http_variable_value_t *v,
    const ngx_str_t *value)
{
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;
    v->len = value->len;
    v->data = value->data;
}
