/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The ad as it goes to the client: a JSON object, or a text.
 */


#include "ngx_http_kontext.h"


static u_char *ngx_http_kontext_ad_text(ngx_http_kontext_ctx_t *ctx,
    u_char *p, u_char *end);
static ngx_int_t ngx_http_kontext_ad_keep(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *s, u_char *p, u_char *last);


ngx_int_t
ngx_http_kontext_ad(ngx_http_kontext_ctx_t *ctx, ngx_str_t *payload)
{
    u_char   *last, *end, buf[KX_MAX_MEMBER];
    kx_ad_t   ad;

    ngx_memzero(&ad, sizeof(kx_ad_t));

    ad.origin = ctx->conf->frame_origin;
    ad.message_id = ctx->message_id;
    ad.label = ctx->label;
    ad.sdk_name = ctx->sdk_name;
    ad.theme = ctx->theme;
    ad.placements = ctx->conf->placements->elts;
    ad.bids = ctx->bids;
    ad.nbids = ctx->nbids;

    end = buf + KX_MAX_MEMBER;

    /* the URL of the first bid, for the variables; then the ad */

    last = kx_protocol_frame_url(buf, end, &ad, &ctx->bids[0]);

    if (ngx_http_kontext_ad_keep(ctx, &ctx->frame_url, buf, last) != NGX_OK) {
        return NGX_DECLINED;
    }

    if (ctx->conf->inject == NGX_HTTP_KONTEXT_INJECT_NONE) {
        ngx_http_kontext_refuse(ctx, KX_REASON_SHADOW);
        return NGX_DECLINED;
    }

    last = (ctx->answer.form == KX_FORM_TEXT)
           ? ngx_http_kontext_ad_text(ctx, buf, end)
           : kx_protocol_member(buf, end, &ad);

    return ngx_http_kontext_ad_keep(ctx, payload, buf, last);
}


/* the place after it, or NULL: it is too large, or refused already */

static u_char *
ngx_http_kontext_ad_text(ngx_http_kontext_ctx_t *ctx, u_char *p, u_char *end)
{
    ngx_str_t  value;

    if (ngx_http_complex_value(ctx->request, ctx->conf->text, &value)
        != NGX_OK)
    {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        return NULL;
    }

    return kx_text_ad_write(p, end, &value);
}


/* copies what was written into the request's pool; last NULL: it was not */

static ngx_int_t
ngx_http_kontext_ad_keep(ngx_http_kontext_ctx_t *ctx, ngx_str_t *s, u_char *p,
    u_char *last)
{
    if (last == NULL) {
        ngx_http_kontext_refuse(ctx, KX_REASON_LARGE_AD);
        return NGX_DECLINED;
    }

    s->len = last - p;
    s->data = ngx_pnalloc(ctx->request->pool, s->len);

    if (s->data == NULL) {
        s->len = 0;
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        return NGX_DECLINED;
    }

    ngx_memcpy(s->data, p, s->len);

    return NGX_OK;
}
