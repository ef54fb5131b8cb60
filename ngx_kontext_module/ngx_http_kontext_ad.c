/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The ad as it goes to the client: a JSON object, or a text.
 */


#include "ngx_http_kontext.h"


static ngx_int_t ngx_http_kontext_ad_text(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *payload, u_char *p, u_char *end);


ngx_int_t
ngx_http_kontext_ad(ngx_http_kontext_ctx_t *ctx, ngx_str_t *payload)
{
    u_char   *last, *buf, *end;
    kx_ad_t   ad;

    buf = ngx_pnalloc(ctx->request->pool, KX_MAX_MEMBER);
    if (buf == NULL) {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        return NGX_DECLINED;
    }

    ngx_memzero(&ad, sizeof(kx_ad_t));

    ad.origin = ctx->conf->frame_origin;
    ad.message_id = ctx->message_id;
    ad.label = ctx->label;
    ad.sdk_name = ctx->sdk_name;
    ad.theme = ctx->theme;
    ad.placements = ctx->conf->placements->elts;
    ad.bids = ctx->bids;
    ad.nbids = ctx->nbids;

    /* the URL of the first bid, for the variables; then the ad */

    end = buf + KX_MAX_MEMBER;

    last = kx_protocol_frame_url(buf, end, &ad, &ctx->bids[0]);

    if (last) {
        ctx->frame_url.data = buf;
        ctx->frame_url.len = last - buf;

        if (ctx->conf->inject == NGX_HTTP_KONTEXT_INJECT_NONE) {
            ngx_http_kontext_refuse(ctx, KX_REASON_SHADOW);
            return NGX_DECLINED;
        }

        if (ctx->answer.form == KX_FORM_TEXT) {
            return ngx_http_kontext_ad_text(ctx, payload, last, end);
        }

        payload->data = last;
        last = kx_protocol_member(last, end, &ad);
    }

    if (last == NULL) {
        ngx_http_kontext_refuse(ctx, KX_REASON_LARGE_AD);
        return NGX_DECLINED;
    }

    payload->len = last - payload->data;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_ad_text(ngx_http_kontext_ctx_t *ctx, ngx_str_t *payload,
    u_char *p, u_char *end)
{
    u_char     *last;
    ngx_str_t   value;

    if (ngx_http_complex_value(ctx->request, ctx->conf->text, &value)
        != NGX_OK)
    {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        return NGX_DECLINED;
    }

    last = kx_text_ad_write(p, end, &value);

    if (last == NULL) {
        ngx_http_kontext_refuse(ctx, KX_REASON_LARGE_AD);
        return NGX_DECLINED;
    }

    payload->data = p;
    payload->len = last - p;

    return NGX_OK;
}
