/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "ngx_http_kontext.h"


/* a location where kontext may be on, to be checked when all are known */

typedef struct {
    ngx_http_core_srv_conf_t  *server;
    ngx_str_t                  prefix;
    ngx_str_t                  store;      /* empty: there is none */
} ngx_http_kontext_location_t;


/* what a constant parameter may be: one of a list, or of some characters */

typedef struct {
    ngx_str_t                 *names;
    ngx_uint_t                 n;
    ngx_str_t                 *list;
    char                      *characters;
    char                      *what;
} ngx_http_kontext_param_check_t;


static char *ngx_http_kontext_enable(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_ad_server(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_frame_origin(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);
static char *ngx_http_kontext_format(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_inject(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_text(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_install_id(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_placements(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_params(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_api(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_api_origin(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_kontext_status(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static ngx_uint_t ngx_http_kontext_is_origin(ngx_str_t *value);
static ngx_int_t ngx_http_kontext_check_param(ngx_conf_t *cf,
    ngx_str_t *names, ngx_uint_t n, ngx_str_t *value);

static void *ngx_http_kontext_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_kontext_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_kontext_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static ngx_int_t ngx_http_kontext_default_value(ngx_conf_t *cf,
    ngx_http_complex_value_t **cv, ngx_str_t *value);
static ngx_int_t ngx_http_kontext_preconfiguration(ngx_conf_t *cf);
static ngx_int_t ngx_http_kontext_postconfiguration(ngx_conf_t *cf);
static ngx_int_t ngx_http_kontext_init_process(ngx_cycle_t *cycle);
static void ngx_http_kontext_exit_process(ngx_cycle_t *cycle);
static ngx_int_t ngx_http_kontext_is_internal(
    ngx_http_core_srv_conf_t *server, ngx_str_t *uri);
static ngx_int_t ngx_http_kontext_check_location(ngx_conf_t *cf,
    ngx_http_kontext_location_t *location);
static ngx_http_core_loc_conf_t *ngx_http_kontext_find_location(
    ngx_http_location_tree_node_t *node, ngx_str_t *uri);


/* in the order of NGX_HTTP_KONTEXT_CHARACTER_ID and so on */

static ngx_str_t  ngx_http_kontext_character_params[] = {
    ngx_string("id"),
    ngx_string("name"),
    ngx_string("avatar_url"),
    ngx_string("greeting"),
    ngx_string("persona"),
    ngx_string("tags"),
    ngx_string("nsfw"),
    ngx_null_string
};


static ngx_str_t  ngx_http_kontext_regulatory_params[] = {
    ngx_string("gdpr"),
    ngx_string("gdpr_consent"),
    ngx_string("coppa"),
    ngx_string("gpp"),
    ngx_string("gpp_sid"),
    ngx_string("us_privacy"),
    ngx_null_string
};


static ngx_str_t  ngx_http_kontext_device_params[] = {
    ngx_string("type"),
    ngx_string("os"),
    ngx_string("os_version"),
    ngx_string("locale"),
    ngx_string("timezone"),
    ngx_string("width"),
    ngx_string("height"),
    ngx_string("dpr"),
    ngx_string("dark"),
    ngx_string("user_agent"),
    ngx_null_string
};


static ngx_str_t  ngx_http_kontext_sdk_params[] = {
    ngx_string("name"),
    ngx_string("platform"),
    ngx_string("version"),
    ngx_null_string
};


/* what the ad server accepts, protocol.md 3.5 */

static ngx_str_t  ngx_http_kontext_sdk_names[] = {
    ngx_string("sdk-js"),
    ngx_string("sdk-react"),
    ngx_string("sdk-react-native"),
    ngx_string("sdk-flutter"),
    ngx_string("sdk-kotlin"),
    ngx_string("sdk-swift"),
    ngx_string("sdk"),
    ngx_null_string
};


static ngx_str_t  ngx_http_kontext_sdk_platforms[] = {
    ngx_string("web"),
    ngx_string("ios"),
    ngx_string("android"),
    ngx_null_string
};


ngx_str_t  ngx_http_kontext_device_types[] = {
    ngx_string("handset"),
    ngx_string("tablet"),
    ngx_string("desktop"),
    ngx_string("tv"),
    ngx_string("other"),
    ngx_null_string
};


static ngx_str_t  ngx_http_kontext_flags[] = {
    ngx_string("0"),
    ngx_string("1"),
    ngx_null_string
};


static ngx_http_kontext_param_check_t  ngx_http_kontext_param_checks[] = {

    { ngx_http_kontext_sdk_params, NGX_HTTP_KONTEXT_SDK_NAME,
      ngx_http_kontext_sdk_names, NULL, NULL },

    { ngx_http_kontext_sdk_params, NGX_HTTP_KONTEXT_SDK_PLATFORM,
      ngx_http_kontext_sdk_platforms, NULL, NULL },

    { ngx_http_kontext_device_params, NGX_HTTP_KONTEXT_DEVICE_TYPE,
      ngx_http_kontext_device_types, NULL, NULL },

    { ngx_http_kontext_device_params, NGX_HTTP_KONTEXT_DEVICE_WIDTH,
      NULL, "0123456789", "a number of pixels" },

    { ngx_http_kontext_device_params, NGX_HTTP_KONTEXT_DEVICE_HEIGHT,
      NULL, "0123456789", "a number of pixels" },

    { ngx_http_kontext_device_params, NGX_HTTP_KONTEXT_DEVICE_DPR,
      NULL, "0123456789.", "a number, such as \"2\" or \"1.5\"" },

    { ngx_http_kontext_device_params, NGX_HTTP_KONTEXT_DEVICE_DARK,
      ngx_http_kontext_flags, NULL, NULL },

    { ngx_http_kontext_character_params, NGX_HTTP_KONTEXT_CHARACTER_NSFW,
      ngx_http_kontext_flags, NULL, NULL },

    { ngx_http_kontext_regulatory_params, NGX_HTTP_KONTEXT_GDPR,
      ngx_http_kontext_flags, NULL, NULL },

    { ngx_http_kontext_regulatory_params, NGX_HTTP_KONTEXT_COPPA,
      ngx_http_kontext_flags, NULL, NULL },

    { ngx_http_kontext_regulatory_params, NGX_HTTP_KONTEXT_GPP_SID,
      NULL, "0123456789, ", "numbers with commas, such as \"2,6\"" },

    { NULL, 0, NULL, NULL, NULL }
};


static ngx_conf_num_bounds_t  ngx_http_kontext_max_calls_bounds = {
    ngx_conf_check_num_bounds, 0, 1000000
};


static ngx_command_t  ngx_http_kontext_commands[] = {

    { ngx_string("kontext"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_kontext_enable,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, enable),
      NULL },

    { ngx_string("kontext_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1234,
      ngx_http_kontext_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_publisher_token"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, token),
      NULL },

    { ngx_string("kontext_user_id"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, user_id),
      NULL },

    { ngx_string("kontext_conversation_id"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, conversation_id),
      NULL },

    { ngx_string("kontext_ad_server"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_kontext_ad_server,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_store"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE123,
      ngx_http_kontext_store,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_frame_origin"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_kontext_frame_origin,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_format"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_kontext_format,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_inject"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_kontext_inject,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_text"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_kontext_text,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, text),
      NULL },

    { ngx_string("kontext_label"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, label),
      NULL },

    { ngx_string("kontext_grace"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, grace),
      NULL },

    { ngx_string("kontext_placements"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_placements,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_character"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_params,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, character),
      ngx_http_kontext_character_params },

    { ngx_string("kontext_regulatory"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_params,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, regulatory),
      ngx_http_kontext_regulatory_params },

    { ngx_string("kontext_consent"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_consent_set,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_redact"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_redact_set,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_device"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_params,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, device),
      ngx_http_kontext_device_params },

    { ngx_string("kontext_sdk"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_params,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, sdk),
      ngx_http_kontext_sdk_params },

    { ngx_string("kontext_variant_id"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, variant_id),
      NULL },

    { ngx_string("kontext_user_email"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, user_email),
      NULL },

    { ngx_string("kontext_theme"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, theme),
      NULL },

    { ngx_string("kontext_install_id"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_kontext_install_id,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, install_id),
      NULL },

    { ngx_string("kontext_preload_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, preload_timeout),
      NULL },

    { ngx_string("kontext_breaker"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_breaker,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_max_calls"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, max_calls),
      &ngx_http_kontext_max_calls_bounds },

    { ngx_string("kontext_max_body"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_kontext_loc_conf_t, max_body),
      NULL },

    { ngx_string("kontext_api"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_kontext_api,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_api_origin"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_kontext_api_origin,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("kontext_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_kontext_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_kontext_module_ctx = {
    ngx_http_kontext_preconfiguration,     /* preconfiguration */
    ngx_http_kontext_postconfiguration,    /* postconfiguration */

    ngx_http_kontext_create_main_conf,     /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_kontext_create_loc_conf,      /* create location configuration */
    ngx_http_kontext_merge_loc_conf        /* merge location configuration */
};


ngx_module_t  ngx_http_kontext_module = {
    NGX_MODULE_V1,
    &ngx_http_kontext_module_ctx,          /* module context */
    ngx_http_kontext_commands,             /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_kontext_init_process,         /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_kontext_exit_process,         /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


void
ngx_http_kontext_bypass(ngx_http_kontext_ctx_t *ctx, kx_reason_e reason)
{
    ctx->status = NGX_HTTP_KONTEXT_BYPASS;
    ctx->reason = reason;

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "kontext bypass: %V",
                   kx_reason_name(reason));
}


void
ngx_http_kontext_refuse(ngx_http_kontext_ctx_t *ctx, kx_reason_e reason)
{
    if (ctx->reason != KX_REASON_NONE) {
        return;
    }

    ctx->reason = reason;

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "kontext no ad in this answer: %V",
                   kx_reason_name(reason));
}


static char *
ngx_http_kontext_enable(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    char       *rv;
    ngx_str_t  *value;

    rv = ngx_http_set_complex_value_slot(cf, cmd, conf);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    if (klcf->enable->lengths) {
        return NGX_CONF_OK;
    }

    value = &klcf->enable->value;

    if ((value->len == 2 && ngx_strncmp(value->data, "on", 2) == 0)
        || (value->len == 3 && ngx_strncmp(value->data, "off", 3) == 0)
        || (value->len == 1 && value->data[0] == '0')
        || value->len == 0
        || (value->len == 10
            && ngx_strncmp(value->data, "track_only", 10) == 0)
        || (value->len == 8
            && ngx_strncmp(value->data, "identify", 8) == 0))
    {
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid value \"%V\" in \"kontext\", it must be "
                       "\"on\", \"off\", \"track_only\", \"identify\" or a "
                       "variable",
                       value);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_kontext_ad_server(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    ngx_str_t  *value;

    if (klcf->ad_server.data) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (value[1].len == 0 || value[1].data[0] != '/') {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\" in \"kontext_ad_server\", "
                           "it must be the prefix of an internal location, "
                           "such as \"/_kontext\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    klcf->ad_server = value[1];

    if (klcf->ad_server.data[klcf->ad_server.len - 1] == '/') {
        klcf->ad_server.len--;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_kontext_frame_origin(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    u_char      c;
    size_t      i, skip;
    ngx_str_t  *value, *origin;

    origin = &klcf->frame_origin;

    if (origin->data) {
        return "is duplicate";
    }

    value = cf->args->elts;
    *origin = value[1];

    if (origin->len && origin->data[origin->len - 1] == '/') {
        origin->len--;
    }

    if (origin->len > 8 && ngx_strncmp(origin->data, "https://", 8) == 0) {
        skip = 8;

    } else if (origin->len > 7
               && ngx_strncmp(origin->data, "http://", 7) == 0)
    {
        skip = 7;

    } else {
        goto invalid;
    }

    for (i = skip; i < origin->len; i++) {
        c = origin->data[i];

        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')
              || (c >= 'A' && c <= 'Z') || c == '.' || c == '-' || c == ':'
              || c == '[' || c == ']' || c == '_'))
        {
            goto invalid;
        }
    }

    return NGX_CONF_OK;

invalid:

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid value \"%V\" in \"kontext_frame_origin\", it "
                       "must be \"https://host\" or \"https://host:port\" "
                       "without a path", &value[1]);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_kontext_format(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    u_char               *p, *last, names[NGX_MAX_CONF_ERRSTR];
    ngx_str_t            *value;
    const kx_dialect_t  **d;

    if (klcf->format != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (value[1].len == 4 && ngx_strncmp(value[1].data, "auto", 4) == 0) {
        klcf->format = NULL;
        return NGX_CONF_OK;
    }

    klcf->format = kx_dialect_by_name(value[1].data, value[1].len);

    if (klcf->format == NULL) {
        last = names + sizeof(names);
        p = ngx_cpymem(names, "\"auto\"", 6);

        for (d = kx_dialects; *d; d++) {
            p = ngx_slprintf(p, last, d[1] ? ", \"%V\"" : " or \"%V\"",
                             &(*d)->name);
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "unknown format \"%V\" in \"kontext_format\", it "
                           "must be %*s", &value[1], (size_t) (p - names),
                           names);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_kontext_inject(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    ngx_str_t  *value;

    if (klcf->inject != NGX_CONF_UNSET_UINT) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "member") == 0) {
        klcf->inject = NGX_HTTP_KONTEXT_INJECT_MEMBER;

    } else if (ngx_strcmp(value[1].data, "text") == 0) {
        klcf->inject = NGX_HTTP_KONTEXT_INJECT_TEXT;

    } else if (ngx_strcmp(value[1].data, "none") == 0) {
        klcf->inject = NGX_HTTP_KONTEXT_INJECT_NONE;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\" in \"kontext_inject\", it "
                           "must be \"member\", \"text\" or \"none\"",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* without the URL in it the text could not be recognised in the history */

static char *
ngx_http_kontext_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_str_t  *value;

    value = cf->args->elts;

    if (ngx_strstr(value[1].data, "$kontext_frame_url") == NULL
        && ngx_strstr(value[1].data, "${kontext_frame_url}") == NULL)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"kontext_text\" must have $kontext_frame_url in "
                           "it, such as "
                           "\"[$kontext_label]($kontext_frame_url)\"");
        return NGX_CONF_ERROR;
    }

    return ngx_http_set_complex_value_slot(cf, cmd, conf);
}


static char *
ngx_http_kontext_install_id(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    char       *rv;
    u_char      id[KX_ID_LEN];
    ngx_str_t  *value;

    rv = ngx_http_set_complex_value_slot(cf, cmd, conf);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    value = &klcf->install_id->value;

    if (klcf->install_id->lengths || value->len == 0
        || kx_uuid_parse(id, value->data, value->len) == KX_OK)
    {
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid value \"%V\" in \"kontext_install_id\", it "
                       "must be a variable or a UUID, such as "
                       "\"019a5c1e-7b40-7c3a-9d11-5a2f0c9e7b61\"", value);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_kontext_placements(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    kx_str_t    *code;
    ngx_str_t   *value;
    ngx_uint_t   i, j;

    if (klcf->placements != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (cf->args->nelts - 1 > KX_MAX_BIDS) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "too many codes in \"kontext_placements\", at most "
                           "%d may be given", KX_MAX_BIDS);
        return NGX_CONF_ERROR;
    }

    klcf->placements = ngx_array_create(cf->pool, KX_MAX_BIDS,
                                        sizeof(kx_str_t));
    if (klcf->placements == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 1; i < cf->args->nelts; i++) {

        if (value[i].len == 0 || value[i].len > KX_MAX_CODE) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid code \"%V\" in "
                               "\"kontext_placements\", it must have 1 to %d "
                               "characters", &value[i], KX_MAX_CODE);
            return NGX_CONF_ERROR;
        }

        for (j = 1; j < i; j++) {
            if (value[j].len == value[i].len
                && ngx_strncmp(value[j].data, value[i].data, value[i].len)
                   == 0)
            {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "duplicate code \"%V\" in "
                                   "\"kontext_placements\"", &value[i]);
                return NGX_CONF_ERROR;
            }
        }

        code = ngx_array_push(klcf->placements);
        if (code == NULL) {
            return NGX_CONF_ERROR;
        }

        code->len = value[i].len;
        code->data = value[i].data;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_kontext_params(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char  *p = conf;

    u_char                            *eq;
    ngx_str_t                         *value, *name, s;
    ngx_uint_t                         i, n;
    ngx_http_kontext_params_t        **params;
    ngx_http_compile_complex_value_t   ccv;

    params = (ngx_http_kontext_params_t **) (p + cmd->offset);

    if (*params != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    *params = ngx_pcalloc(cf->pool, sizeof(ngx_http_kontext_params_t));
    if (*params == NULL) {
        return NGX_CONF_ERROR;
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        name = cmd->post;
        n = 0;

        eq = ngx_strlchr(value[i].data, value[i].data + value[i].len, '=');

        if (eq) {
            s.len = eq - value[i].data;
            s.data = value[i].data;

            for (n = 0; name[n].len; n++) {
                if (name[n].len == s.len
                    && ngx_strncmp(name[n].data, s.data, s.len) == 0)
                {
                    break;
                }
            }
        }

        if (eq == NULL || name[n].len == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\" in \"%V\", "
                               "parameters are written name=value and the "
                               "first known name is \"%V\"",
                               &value[i], &cmd->name, &name[0]);
            return NGX_CONF_ERROR;
        }

        if ((*params)->values[n]) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate parameter \"%V\" in \"%V\"",
                               &name[n], &cmd->name);
            return NGX_CONF_ERROR;
        }

        s.data = eq + 1;
        s.len = value[i].data + value[i].len - s.data;

        (*params)->values[n] = ngx_palloc(cf->pool,
                                          sizeof(ngx_http_complex_value_t));
        if ((*params)->values[n] == NULL) {
            return NGX_CONF_ERROR;
        }

        ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

        ccv.cf = cf;
        ccv.value = &s;
        ccv.complex_value = (*params)->values[n];

        if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
            return NGX_CONF_ERROR;
        }

        if ((*params)->values[n]->lengths || s.len == 0) {
            continue;
        }

        if (ngx_http_kontext_check_param(cf, name, n, &s) != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_kontext_api(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    ngx_str_t                 *value, s;
    ngx_uint_t                 prefix;
    ngx_http_core_loc_conf_t  *clcf;

    if (klcf->api) {
        return "is duplicate";
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    prefix = clcf->name.len && !clcf->named && !clcf->exact_match;

#if (NGX_PCRE)
    prefix = prefix && clcf->regex == NULL;
#endif

    if (!prefix) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"kontext_api\" is in location \"%V\", it must be "
                           "in one with a prefix, such as "
                           "\"location /kontext/\"", &clcf->name);
        return NGX_CONF_ERROR;
    }

    klcf->api = 1;
    klcf->api_ping = NGX_HTTP_KONTEXT_PING;

    clcf->handler = ngx_http_kontext_api_handler;

    if (cf->args->nelts == 1) {
        return NGX_CONF_OK;
    }

    value = cf->args->elts;

    if (ngx_strncmp(value[1].data, "ping=", 5) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\" in \"kontext_api\", it "
                           "must be \"ping=time\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    s.data = value[1].data + 5;
    s.len = value[1].len - 5;

    klcf->api_ping = ngx_parse_time(&s, 0);

    if (klcf->api_ping == (ngx_msec_t) NGX_ERROR || klcf->api_ping == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid time \"%V\" in \"kontext_api\", write "
                           "such as \"ping=15s\"", &s);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_kontext_api_origin(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    ngx_str_t   *value, *origin;
    ngx_uint_t   i;

    if (klcf->api_origins != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (value[1].len == 3 && ngx_strncmp(value[1].data, "off", 3) == 0
        && cf->args->nelts == 2)
    {
        klcf->api_origins = NULL;
        return NGX_CONF_OK;
    }

    klcf->api_origins = ngx_array_create(cf->pool, cf->args->nelts - 1,
                                         sizeof(ngx_str_t));
    if (klcf->api_origins == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 1; i < cf->args->nelts; i++) {

        if (!ngx_http_kontext_is_origin(&value[i])) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid value \"%V\" in "
                               "\"kontext_api_origin\", write the origin of a "
                               "page as its browser does, such as "
                               "\"https://app.example.com\", \"*\" for all, "
                               "or \"off\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        origin = ngx_array_push(klcf->api_origins);
        if (origin == NULL) {
            return NGX_CONF_ERROR;
        }

        *origin = value[i];
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_kontext_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    ngx_http_core_loc_conf_t  *clcf;

    if (klcf->status) {
        return "is duplicate";
    }

    klcf->status = 1;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_kontext_status_handler;

    return NGX_CONF_OK;
}


/* "*", or a scheme and a host in lower case without anything after it */

static ngx_uint_t
ngx_http_kontext_is_origin(ngx_str_t *value)
{
    u_char      *p, *last;
    ngx_uint_t   host;

    if (value->len == 1 && value->data[0] == '*') {
        return 1;
    }

    host = 0;
    last = value->data + value->len;

    for (p = value->data; p < last; p++) {

        if ((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9')
            || *p == '.' || *p == '-')
        {
            continue;
        }

        if (host) {
            if (*p != ':' && *p != '[' && *p != ']' && *p != '_') {
                return 0;
            }

            continue;
        }

        if (p == value->data || last - p < 4 || ngx_strncmp(p, "://", 3) != 0)
        {
            return 0;
        }

        p += 2;
        host = 1;
    }

    return host;
}


/* constants of which it is known what they may be */

static ngx_int_t
ngx_http_kontext_check_param(ngx_conf_t *cf, ngx_str_t *names, ngx_uint_t n,
    ngx_str_t *value)
{
    u_char                          *p, buf[NGX_MAX_CONF_ERRSTR / 2];
    size_t                           i;
    ngx_str_t                       *list;
    ngx_http_kontext_param_check_t  *check;

    for (check = ngx_http_kontext_param_checks; check->names; check++) {
        if (check->names == names && check->n == n) {
            break;
        }
    }

    if (check->names == NULL) {
        return NGX_OK;
    }

    list = check->list;
    p = buf;

    if (list) {

        if (ngx_http_kontext_listed(value, list)) {
            return NGX_OK;
        }

        for (i = 0; list[i].len; i++) {
            p = ngx_slprintf(p, buf + sizeof(buf), "%s\"%V\"",
                             i ? ", " : "one of ", &list[i]);
        }

    } else {

        for (i = 0; i < value->len; i++) {
            if (ngx_strchr(check->characters, value->data[i]) == NULL) {
                break;
            }
        }

        if (i == value->len) {
            return NGX_OK;
        }

        p = ngx_slprintf(p, buf + sizeof(buf), "%s", check->what);
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid value \"%V\" of parameter \"%V\", "
                       "it must be %*s",
                       value, &names[n], (size_t) (p - buf), buf);

    return NGX_ERROR;
}


ngx_uint_t
ngx_http_kontext_listed(ngx_str_t *value, ngx_str_t *list)
{
    for ( /* void */ ; list->len; list++) {
        if (list->len == value->len
            && ngx_strncmp(list->data, value->data, value->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


static void *
ngx_http_kontext_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_kontext_main_conf_t));
    if (kmcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&kmcf->locations, cf->temp_pool, 4,
                       sizeof(ngx_http_kontext_location_t))
        != NGX_OK
        || ngx_array_init(&kmcf->sites, cf->pool, 2,
                          sizeof(ngx_http_kontext_site_t *))
           != NGX_OK)
    {
        return NULL;
    }

    return kmcf;
}


static void *
ngx_http_kontext_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_kontext_loc_conf_t  *klcf;

    klcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_kontext_loc_conf_t));
    if (klcf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     klcf->ad_server = { 0, NULL };
     *     klcf->frame_origin = { 0, NULL };
     *     klcf->site = NULL;
     *     klcf->breaker.failures = 0;
     *     klcf->consent = NULL;
     *     klcf->enabled = 0;
     *     klcf->status = 0;
     *     klcf->api = 0;
     *     klcf->api_ping = 0;
     */

    klcf->enable = NGX_CONF_UNSET_PTR;
    klcf->store = NGX_CONF_UNSET_PTR;
    klcf->token = NGX_CONF_UNSET_PTR;
    klcf->user_id = NGX_CONF_UNSET_PTR;
    klcf->conversation_id = NGX_CONF_UNSET_PTR;
    klcf->label = NGX_CONF_UNSET_PTR;
    klcf->text = NGX_CONF_UNSET_PTR;
    klcf->variant_id = NGX_CONF_UNSET_PTR;
    klcf->user_email = NGX_CONF_UNSET_PTR;
    klcf->theme = NGX_CONF_UNSET_PTR;
    klcf->install_id = NGX_CONF_UNSET_PTR;
    klcf->character = NGX_CONF_UNSET_PTR;
    klcf->regulatory = NGX_CONF_UNSET_PTR;
    klcf->device = NGX_CONF_UNSET_PTR;
    klcf->sdk = NGX_CONF_UNSET_PTR;
    klcf->placements = NGX_CONF_UNSET_PTR;
    klcf->format = NGX_CONF_UNSET_PTR;
    klcf->inject = NGX_CONF_UNSET_UINT;
    klcf->grace = NGX_CONF_UNSET_MSEC;
    klcf->preload_timeout = NGX_CONF_UNSET_MSEC;
    klcf->max_body = NGX_CONF_UNSET_SIZE;
    klcf->max_calls = NGX_CONF_UNSET;
    klcf->redact = NGX_CONF_UNSET_UINT;
    klcf->api_origins = NGX_CONF_UNSET_PTR;

    return klcf;
}


static char *
ngx_http_kontext_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_kontext_loc_conf_t *prev = parent;
    ngx_http_kontext_loc_conf_t *conf = child;

    kx_str_t                      *code;
    ngx_str_t                     *value;
    ngx_http_core_loc_conf_t      *clcf;
    ngx_http_kontext_location_t   *location;
    ngx_http_kontext_main_conf_t  *kmcf;

    static ngx_str_t  label = ngx_string("Sponsored");
    static ngx_str_t  text =
        ngx_string("[$kontext_label]($kontext_frame_url)");

    kmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_kontext_module);

    conf->main = kmcf;

    ngx_conf_merge_ptr_value(conf->enable, prev->enable, NULL);
    ngx_conf_merge_ptr_value(conf->store, prev->store, NULL);
    ngx_conf_merge_ptr_value(conf->token, prev->token, NULL);
    ngx_conf_merge_ptr_value(conf->user_id, prev->user_id, NULL);
    ngx_conf_merge_ptr_value(conf->conversation_id, prev->conversation_id,
                             NULL);
    ngx_conf_merge_ptr_value(conf->label, prev->label, NULL);
    ngx_conf_merge_ptr_value(conf->text, prev->text, NULL);
    ngx_conf_merge_ptr_value(conf->variant_id, prev->variant_id, NULL);
    ngx_conf_merge_ptr_value(conf->user_email, prev->user_email, NULL);
    ngx_conf_merge_ptr_value(conf->theme, prev->theme, NULL);
    ngx_conf_merge_ptr_value(conf->install_id, prev->install_id, NULL);
    ngx_conf_merge_ptr_value(conf->character, prev->character, NULL);
    ngx_conf_merge_ptr_value(conf->regulatory, prev->regulatory, NULL);
    ngx_conf_merge_ptr_value(conf->device, prev->device, NULL);
    ngx_conf_merge_ptr_value(conf->sdk, prev->sdk, NULL);
    ngx_conf_merge_ptr_value(conf->placements, prev->placements, NULL);
    ngx_conf_merge_ptr_value(conf->format, prev->format, NULL);

    if (conf->ad_server.data == NULL) {
        conf->ad_server = prev->ad_server;
    }

    if (conf->ad_server.data == NULL) {
        ngx_str_set(&conf->ad_server, "/_kontext");
    }

    ngx_conf_merge_str_value(conf->frame_origin, prev->frame_origin,
                             "https://server.megabrain.co");

    ngx_conf_merge_uint_value(conf->inject, prev->inject,
                              NGX_HTTP_KONTEXT_INJECT_MEMBER);
    ngx_conf_merge_msec_value(conf->grace, prev->grace, 500);
    ngx_conf_merge_msec_value(conf->preload_timeout, prev->preload_timeout,
                              0);
    ngx_conf_merge_size_value(conf->max_body, prev->max_body,
                              8 * 1024 * 1024);

    ngx_conf_merge_ptr_value(conf->api_origins, prev->api_origins, NULL);

    ngx_http_kontext_breaker_merge(conf, prev);

    if (ngx_http_kontext_privacy_merge(cf, conf, prev) != NGX_CONF_OK) {
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (prev->api && (clcf->noname || clcf->lmt_excpt)) {

        /* "if" and "limit_except" are of the same location */

        conf->api = 1;
        conf->api_ping = prev->api_ping;
        clcf->handler = ngx_http_kontext_api_handler;
    }

    if (prev->status && (clcf->noname || clcf->lmt_excpt)) {
        conf->status = 1;
        clcf->handler = ngx_http_kontext_status_handler;
    }

    kmcf->used |= conf->status;

    value = conf->enable ? &conf->enable->value : NULL;

    conf->enabled = value
                    && (conf->enable->lengths
                        || !(value->len == 0 || value->data[0] == '0'
                             || value->len == 3));

    if (!conf->enabled && !conf->api) {
        return NGX_CONF_OK;
    }

    if (!conf->api && conf->enable->lengths == NULL && value->len == 8) {

        /* "identify" asks nobody for anything */

        kmcf->used = 1;
        return NGX_CONF_OK;
    }

    if (conf->token == NULL
        || (conf->token->lengths == NULL && conf->token->value.len == 0))
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%s\" is on but there is no publisher token, "
                           "write \"kontext_publisher_token <token>;\" at "
                           "the same level or above",
                           conf->api ? "kontext_api" : "kontext");
        return NGX_CONF_ERROR;
    }

    if (conf->label == NULL
        && ngx_http_kontext_default_value(cf, &conf->label, &label) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    if (conf->text == NULL
        && ngx_http_kontext_default_value(cf, &conf->text, &text) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    if (conf->placements == NULL) {
        conf->placements = ngx_array_create(cf->pool, 1, sizeof(kx_str_t));
        if (conf->placements == NULL) {
            return NGX_CONF_ERROR;
        }

        code = ngx_array_push(conf->placements);
        if (code == NULL) {
            return NGX_CONF_ERROR;
        }

        code->len = sizeof("inlineAd") - 1;
        code->data = (u_char *) "inlineAd";
    }

    conf->site = ngx_http_kontext_site(cf, kmcf, &conf->ad_server);
    if (conf->site == NULL) {
        return NGX_CONF_ERROR;
    }

    if (conf->site->conf == NULL) {
        conf->site->conf = conf;
    }

    if (conf->store) {
        conf->store_site = ngx_http_kontext_site(cf, kmcf, &conf->store->uri);
        if (conf->store_site == NULL) {
            return NGX_CONF_ERROR;
        }

        if (conf->store_site->conf == NULL) {
            conf->store_site->conf = conf;
            conf->store_site->store = 1;
        }
    }

    kmcf->used = 1;
    kmcf->api |= conf->api;

    /* what only comes from above was checked there, or may be of no use */

    if (conf->enable == prev->enable && conf->store == prev->store
        && !conf->api)
    {
        return NGX_CONF_OK;
    }

    location = ngx_array_push(&kmcf->locations);
    if (location == NULL) {
        return NGX_CONF_ERROR;
    }

    location->server = ngx_http_conf_get_module_srv_conf(cf,
                                                        ngx_http_core_module);
    location->prefix = conf->ad_server;

    if (conf->store) {
        location->store = conf->store->uri;

    } else {
        ngx_str_null(&location->store);
    }

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_kontext_default_value(ngx_conf_t *cf, ngx_http_complex_value_t **cv,
    ngx_str_t *value)
{
    ngx_http_compile_complex_value_t  ccv;

    *cv = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
    if (*cv == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = value;
    ccv.complex_value = *cv;

    return ngx_http_compile_complex_value(&ccv);
}


static ngx_int_t
ngx_http_kontext_preconfiguration(ngx_conf_t *cf)
{
    return ngx_http_kontext_add_variables(cf);
}


static ngx_int_t
ngx_http_kontext_postconfiguration(ngx_conf_t *cf)
{
    ngx_uint_t                     i;
    ngx_http_handler_pt           *h;
    ngx_http_core_main_conf_t     *cmcf;
    ngx_http_kontext_location_t   *location;
    ngx_http_kontext_main_conf_t  *kmcf;

    kmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_kontext_module);

    if (!kmcf->used) {
        return NGX_OK;
    }

    if (ngx_http_kontext_zone_default(cf) != NGX_OK) {
        return NGX_ERROR;
    }

    location = kmcf->locations.elts;

    for (i = 0; i < kmcf->locations.nelts; i++) {
        if (ngx_http_kontext_check_location(cf, &location[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_PRECONTENT_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_kontext_handler;

    return ngx_http_kontext_filter_init(cf);
}


static ngx_int_t
ngx_http_kontext_init_process(ngx_cycle_t *cycle)
{
    void                          *mem;
    ngx_http_kontext_main_conf_t  *kmcf;

    if (ngx_process != NGX_PROCESS_WORKER
        && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    kmcf = ngx_http_cycle_get_module_main_conf(cycle,
                                               ngx_http_kontext_module);

    if (kmcf == NULL || kmcf->zone == NULL) {
        return NGX_OK;
    }

    ngx_http_kontext_breakers_start(kmcf);

    /* without memory for it every message is read each time */

    kmcf->memos = ngx_palloc(cycle->pool, sizeof(kx_memo_table_t));
    mem = ngx_pmemalign(cycle->pool, NGX_HTTP_KONTEXT_MEMO_SIZE,
                        NGX_HTTP_KONTEXT_MEMO_SIZE);

    if (kmcf->memos && mem) {

#ifdef MADV_HUGEPAGE

        /* it is looked up all over: in one page, if there are large ones */

        (void) madvise(mem, NGX_HTTP_KONTEXT_MEMO_SIZE, MADV_HUGEPAGE);

#endif

        ngx_memzero(mem, NGX_HTTP_KONTEXT_MEMO_SIZE);
        kx_memo_init(kmcf->memos, mem, NGX_HTTP_KONTEXT_MEMO_SIZE);

    } else {
        kmcf->memos = NULL;
    }

#if !(NGX_DEBUG_PALLOC)

    /* a tool that looks for overruns shall see each body for itself */

    kmcf->space.data = ngx_palloc(cycle->pool, NGX_HTTP_KONTEXT_SPACE);
    kmcf->space.size = kmcf->space.data ? NGX_HTTP_KONTEXT_SPACE : 0;

#endif

    /*
     * The system's allocator gives back what is free at the end of the heap
     * when that is more than it expects to need; from a large block that was
     * freed it learns that the next chats will take it again.
     */

    mem = ngx_alloc(NGX_HTTP_KONTEXT_HEAP, cycle->log);

    if (mem) {
        ngx_free(mem);
    }

    return ngx_http_kontext_wake_init(cycle, kmcf->zone->data);
}


static void
ngx_http_kontext_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_kontext_wake_exit();
}


/*
 * Without a location of its own the ad server's prefix would be served by
 * whatever else matches, most likely the chat backend.
 */

static ngx_int_t
ngx_http_kontext_check_location(ngx_conf_t *cf,
    ngx_http_kontext_location_t *location)
{
    ngx_str_t  uri;

    uri.len = location->prefix.len + sizeof("/preload") - 1;
    uri.data = ngx_pnalloc(cf->temp_pool, uri.len);
    if (uri.data == NULL) {
        return NGX_ERROR;
    }

    ngx_memcpy(ngx_cpymem(uri.data, location->prefix.data,
                          location->prefix.len),
               "/preload", sizeof("/preload") - 1);

    if (ngx_http_kontext_is_internal(location->server, &uri) != NGX_OK) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"kontext\" is on in server \"%V\" in %s:%ui which has "
                      "no internal location \"%V/\" for the ad server, write "
                      "\"include kontext_ad_server.conf;\" in this server or "
                      "name your own internal location with "
                      "\"kontext_ad_server\"",
                      &location->server->server_name,
                      location->server->file_name, location->server->line,
                      &location->prefix);
        return NGX_ERROR;
    }

    if (location->store.len
        && ngx_http_kontext_is_internal(location->server, &location->store)
           != NGX_OK)
    {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"kontext_store %V\" is used in server \"%V\" in "
                      "%s:%ui which has no internal location \"%V\", write "
                      "\"location = %V { internal; ... }\" in this server",
                      &location->store, &location->server->server_name,
                      location->server->file_name, location->server->line,
                      &location->store, &location->store);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_is_internal(ngx_http_core_srv_conf_t *server, ngx_str_t *uri)
{
    ngx_str_t                  name;
    ngx_http_core_loc_conf_t  *clcf, *found;

    clcf = server->ctx->loc_conf[ngx_http_core_module.ctx_index];

#if (NGX_PCRE)
    if (clcf->regex_locations) {
        return NGX_OK;
    }
#endif

    found = NULL;
    name = *uri;

    do {
        clcf = ngx_http_kontext_find_location(clcf->static_locations, &name);

        if (clcf) {
            found = clcf;
        }

    } while (clcf && clcf->static_locations);

    return (found && found->internal) ? NGX_OK : NGX_DECLINED;
}


/* the longest prefix that matches, as ngx_http_core_module looks for it */

static ngx_http_core_loc_conf_t *
ngx_http_kontext_find_location(ngx_http_location_tree_node_t *node,
    ngx_str_t *uri)
{
    size_t                     len, n;
    u_char                    *p;
    ngx_int_t                  rc;
    ngx_http_core_loc_conf_t  *found;

    found = NULL;
    len = uri->len;
    p = uri->data;

    while (node) {
        n = ngx_min(len, (size_t) node->len);

        rc = ngx_filename_cmp(p, node->name, n);

        if (rc != 0) {
            node = (rc < 0) ? node->left : node->right;
            continue;
        }

        if (len <= (size_t) node->len) {

            if (len == (size_t) node->len) {
                return node->exact ? node->exact : node->inclusive;
            }

            node = node->left;
            continue;
        }

        if (node->inclusive) {
            found = node->inclusive;
            p += n;
            len -= n;
            node = node->tree;
            continue;
        }

        node = node->right;
    }

    return found;
}
