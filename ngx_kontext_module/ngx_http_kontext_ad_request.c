/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_MAX_TAGS     32
#define NGX_HTTP_KONTEXT_MAX_GPP_SID  32


static ngx_int_t ngx_http_kontext_sdk(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, kx_ad_request_t *ar);
static ngx_int_t ngx_http_kontext_install_id(ngx_http_request_t *r,
    ngx_http_complex_value_t *cv, kx_ad_request_t *ar);
static ngx_int_t ngx_http_kontext_device(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, kx_device_t *device);
static ngx_int_t ngx_http_kontext_character(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, kx_character_t *character);
static ngx_int_t ngx_http_kontext_regulatory(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, kx_regulatory_t *regulatory);
static ngx_uint_t ngx_http_kontext_next(ngx_str_t *list, ngx_str_t *item);
static int ngx_http_kontext_flag(ngx_str_t *value);


typedef struct {
    ngx_str_t   name;
    size_t      offset;
} ngx_http_kontext_device_header_t;


static ngx_http_kontext_device_header_t  ngx_http_kontext_device_headers[] = {

    { ngx_string("user-agent"), offsetof(kx_device_headers_t, user_agent) },

    { ngx_string("accept-language"),
      offsetof(kx_device_headers_t, accept_language) },

    { ngx_string("sec-ch-ua-platform"),
      offsetof(kx_device_headers_t, ua_platform) },

    { ngx_string("sec-ch-ua-platform-version"),
      offsetof(kx_device_headers_t, ua_platform_version) },

    { ngx_string("sec-ch-ua-mobile"),
      offsetof(kx_device_headers_t, ua_mobile) },

    { ngx_string("sec-ch-prefers-color-scheme"),
      offsetof(kx_device_headers_t, color_scheme) },

    { ngx_string("sec-ch-dpr"), offsetof(kx_device_headers_t, dpr) },

    { ngx_string("sec-ch-viewport-width"),
      offsetof(kx_device_headers_t, width) },

    { ngx_string("sec-ch-viewport-height"),
      offsetof(kx_device_headers_t, height) },

    { ngx_null_string, 0 }
};


ngx_int_t
ngx_http_kontext_ad_request(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf, kx_ad_request_t *ar)
{
    ar->placements = klcf->placements->elts;
    ar->nplacements = klcf->placements->nelts;

    ar->redact = klcf->redact;
    ar->gpc = ngx_http_kontext_gpc(r);

    if (ngx_http_kontext_value(r, klcf->variant_id, &ar->variant_id)
        != NGX_OK
        || ngx_http_kontext_value(r, klcf->user_email, &ar->user_email)
           != NGX_OK
        || ngx_http_kontext_sdk(r, klcf->sdk, ar) != NGX_OK
        || ngx_http_kontext_install_id(r, klcf->install_id, ar) != NGX_OK
        || ngx_http_kontext_device(r, klcf->device, &ar->device) != NGX_OK
        || ngx_http_kontext_character(r, klcf->character, &ar->character)
           != NGX_OK
        || ngx_http_kontext_regulatory(r, klcf->regulatory, &ar->regulatory)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_sdk(ngx_http_request_t *r, ngx_http_kontext_params_t *params,
    kx_ad_request_t *ar)
{
    ngx_str_t  value;

    if (ngx_http_kontext_sdk_name(r, params, &ar->sdk_name) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ngx_http_kontext_param(r, params, NGX_HTTP_KONTEXT_SDK_PLATFORM,
                               &value)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (value.len == 0) {
        ngx_str_set(&value, "web");
    }

    ar->sdk_platform = value;

    if (ngx_http_kontext_param(r, params, NGX_HTTP_KONTEXT_SDK_VERSION,
                               &value)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (value.len == 0) {
        ngx_str_set(&value, NGX_HTTP_KONTEXT_VERSION);
    }

    ar->sdk_version = value;

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_sdk_name(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, ngx_str_t *name)
{
    if (ngx_http_kontext_param(r, params, NGX_HTTP_KONTEXT_SDK_NAME, name)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (name->len == 0) {
        ngx_str_set(name, "sdk-js");
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_install_id(ngx_http_request_t *r,
    ngx_http_complex_value_t *cv, kx_ad_request_t *ar)
{
    u_char     *p;
    u_char      id[KX_ID_LEN];
    ngx_str_t   value;

    p = ngx_pnalloc(r->pool, KX_UUID_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ar->install_id.len = KX_UUID_LEN;
    ar->install_id.data = p;

    if (cv) {

        if (ngx_http_complex_value(r, cv, &value) != NGX_OK) {
            return NGX_ERROR;
        }

        /* one that is not canonical is replaced, protocol.md 3.4 */

        if (kx_uuid_parse(id, value.data, value.len) == KX_OK) {
            (void) kx_uuid_write(p, id);
            return NGX_OK;
        }
    }

    kx_protocol_install_id(p, &ar->publisher_token, &ar->user_id);

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_device(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, kx_device_t *device)
{
    ngx_int_t                          n;
    ngx_str_t                          value[NGX_HTTP_KONTEXT_MAX_PARAMS];
    ngx_uint_t                         i;
    kx_device_headers_t                headers;
    ngx_http_kontext_device_header_t  *dh;

    ngx_memzero(&headers, sizeof(kx_device_headers_t));

    for (dh = ngx_http_kontext_device_headers; dh->name.len; dh++) {
        ngx_http_kontext_header(r, &dh->name,
                            (ngx_str_t *) ((char *) &headers + dh->offset));
    }

    kx_device_detect(device, &headers);

    for (i = 0; i <= NGX_HTTP_KONTEXT_DEVICE_USER_AGENT; i++) {
        if (ngx_http_kontext_param(r, params, i, &value[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (ngx_http_kontext_listed(&value[NGX_HTTP_KONTEXT_DEVICE_TYPE],
                                ngx_http_kontext_device_types))
    {
        device->type = value[NGX_HTTP_KONTEXT_DEVICE_TYPE];
    }

    if (value[NGX_HTTP_KONTEXT_DEVICE_OS].len) {
        device->os = value[NGX_HTTP_KONTEXT_DEVICE_OS];
    }

    if (value[NGX_HTTP_KONTEXT_DEVICE_OS_VERSION].len) {
        device->os_version = value[NGX_HTTP_KONTEXT_DEVICE_OS_VERSION];
    }

    if (value[NGX_HTTP_KONTEXT_DEVICE_LOCALE].len) {
        device->locale = value[NGX_HTTP_KONTEXT_DEVICE_LOCALE];
    }

    if (value[NGX_HTTP_KONTEXT_DEVICE_TIMEZONE].len) {
        device->timezone = value[NGX_HTTP_KONTEXT_DEVICE_TIMEZONE];
    }

    if (value[NGX_HTTP_KONTEXT_DEVICE_USER_AGENT].len) {
        device->user_agent = value[NGX_HTTP_KONTEXT_DEVICE_USER_AGENT];
    }

    n = ngx_atoi(value[NGX_HTTP_KONTEXT_DEVICE_WIDTH].data,
                 value[NGX_HTTP_KONTEXT_DEVICE_WIDTH].len);

    if (n > 0 && n <= 100000) {
        device->width = (int) n;
    }

    n = ngx_atoi(value[NGX_HTTP_KONTEXT_DEVICE_HEIGHT].data,
                 value[NGX_HTTP_KONTEXT_DEVICE_HEIGHT].len);

    if (n > 0 && n <= 100000) {
        device->height = (int) n;
    }

    n = ngx_atofp(value[NGX_HTTP_KONTEXT_DEVICE_DPR].data,
                  value[NGX_HTTP_KONTEXT_DEVICE_DPR].len, 3);

    if (n >= 100 && n <= 10000) {
        device->dpr = (double) n / 1000;
    }

    if (value[NGX_HTTP_KONTEXT_DEVICE_DARK].len) {
        device->dark = ngx_http_kontext_flag(
                               &value[NGX_HTTP_KONTEXT_DEVICE_DARK])
                       == 1;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_character(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, kx_character_t *character)
{
    kx_str_t   *tag;
    ngx_str_t   value[NGX_HTTP_KONTEXT_MAX_PARAMS], item;
    ngx_uint_t  i;

    character->nsfw = -1;

    if (params == NULL) {
        return NGX_OK;
    }

    for (i = 0; i <= NGX_HTTP_KONTEXT_CHARACTER_NSFW; i++) {
        if (ngx_http_kontext_param(r, params, i, &value[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    character->id = value[NGX_HTTP_KONTEXT_CHARACTER_ID];
    character->name = value[NGX_HTTP_KONTEXT_CHARACTER_NAME];
    character->avatar_url = value[NGX_HTTP_KONTEXT_CHARACTER_AVATAR_URL];
    character->greeting = value[NGX_HTTP_KONTEXT_CHARACTER_GREETING];
    character->persona = value[NGX_HTTP_KONTEXT_CHARACTER_PERSONA];

    character->nsfw = ngx_http_kontext_flag(
                                    &value[NGX_HTTP_KONTEXT_CHARACTER_NSFW]);

    if (value[NGX_HTTP_KONTEXT_CHARACTER_TAGS].len == 0) {
        return NGX_OK;
    }

    character->tags = ngx_palloc(r->pool, NGX_HTTP_KONTEXT_MAX_TAGS
                                          * sizeof(kx_str_t));
    if (character->tags == NULL) {
        return NGX_ERROR;
    }

    while (character->ntags < NGX_HTTP_KONTEXT_MAX_TAGS
           && ngx_http_kontext_next(&value[NGX_HTTP_KONTEXT_CHARACTER_TAGS],
                                    &item))
    {
        tag = &character->tags[character->ntags++];
        *tag = item;
        character->has_tags = 1;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_regulatory(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, kx_regulatory_t *regulatory)
{
    ngx_int_t   n;
    ngx_str_t   value[NGX_HTTP_KONTEXT_MAX_PARAMS], item;
    ngx_uint_t  i;

    regulatory->gdpr = -1;
    regulatory->coppa = -1;

    if (params == NULL) {
        return NGX_OK;
    }

    for (i = 0; i <= NGX_HTTP_KONTEXT_US_PRIVACY; i++) {
        if (ngx_http_kontext_param(r, params, i, &value[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    regulatory->gdpr = ngx_http_kontext_flag(&value[NGX_HTTP_KONTEXT_GDPR]);
    regulatory->coppa = ngx_http_kontext_flag(
                                             &value[NGX_HTTP_KONTEXT_COPPA]);

    regulatory->gdpr_consent = value[NGX_HTTP_KONTEXT_GDPR_CONSENT];
    regulatory->gpp = value[NGX_HTTP_KONTEXT_GPP];
    regulatory->us_privacy = value[NGX_HTTP_KONTEXT_US_PRIVACY];

    if (value[NGX_HTTP_KONTEXT_GPP_SID].len == 0) {
        return NGX_OK;
    }

    regulatory->gpp_sid = ngx_palloc(r->pool, NGX_HTTP_KONTEXT_MAX_GPP_SID
                                              * sizeof(int));
    if (regulatory->gpp_sid == NULL) {
        return NGX_ERROR;
    }

    while (regulatory->ngpp_sid < NGX_HTTP_KONTEXT_MAX_GPP_SID
           && ngx_http_kontext_next(&value[NGX_HTTP_KONTEXT_GPP_SID], &item))
    {
        n = ngx_atoi(item.data, item.len);

        if (n >= 0 && n <= 1000000) {
            regulatory->gpp_sid[regulatory->ngpp_sid++] = (int) n;
            regulatory->has_gpp_sid = 1;
        }
    }

    return NGX_OK;
}


/* takes the next item off a list with commas, semicolons or spaces */

static ngx_uint_t
ngx_http_kontext_next(ngx_str_t *list, ngx_str_t *item)
{
    while (list->len
           && (*list->data == ',' || *list->data == ';'
               || *list->data == ' '))
    {
        list->data++;
        list->len--;
    }

    item->data = list->data;

    while (list->len
           && *list->data != ',' && *list->data != ';' && *list->data != ' ')
    {
        list->data++;
        list->len--;
    }

    item->len = list->data - item->data;

    return item->len != 0;
}


/* 1, 0, or -1 for what is neither yes nor no */

static int
ngx_http_kontext_flag(ngx_str_t *value)
{
    switch (value->len) {

    case 1:

        if (value->data[0] == '1' || value->data[0] == '0') {
            return value->data[0] - '0';
        }

        break;

    case 2:

        if (ngx_strncmp(value->data, "on", 2) == 0) {
            return 1;
        }

        break;

    case 3:

        if (ngx_strncmp(value->data, "off", 3) == 0) {
            return 0;
        }

        break;

    case 4:

        if (ngx_strncmp(value->data, "true", 4) == 0) {
            return 1;
        }

        break;

    case 5:

        if (ngx_strncmp(value->data, "false", 5) == 0) {
            return 0;
        }

        break;
    }

    return -1;
}


ngx_int_t
ngx_http_kontext_param(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, ngx_uint_t n, ngx_str_t *value)
{
    if (params == NULL || params->values[n] == NULL) {
        ngx_str_null(value);
        return NGX_OK;
    }

    return ngx_http_complex_value(r, params->values[n], value);
}
