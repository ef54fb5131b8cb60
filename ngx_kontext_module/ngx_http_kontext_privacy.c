/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is not to be told, and what is done for a user who has said no.
 */


#include "ngx_http_kontext.h"


typedef struct {
    ngx_str_t     name;
    ngx_uint_t    value;
} ngx_http_kontext_name_t;


static ngx_http_kontext_name_t *ngx_http_kontext_name(
    ngx_http_kontext_name_t *names, u_char *p, size_t len);
static char *ngx_http_kontext_consent_bad(ngx_conf_t *cf, ngx_str_t *value);


static ngx_http_kontext_name_t  ngx_http_kontext_actions[] = {
    { ngx_string("ask"), KX_CONSENT_ASK },
    { ngx_string("anonymous"), KX_CONSENT_ANONYMOUS },
    { ngx_string("skip"), KX_CONSENT_SKIP },
    { ngx_null_string, 0 }
};


static ngx_http_kontext_name_t  ngx_http_kontext_signals[] = {
    { ngx_string("gdpr"), KX_SIGNAL_GDPR },
    { ngx_string("gpp"), KX_SIGNAL_GPP },
    { ngx_string("us_privacy"), KX_SIGNAL_US_PRIVACY },
    { ngx_string("coppa"), KX_SIGNAL_COPPA },
    { ngx_string("gpc"), KX_SIGNAL_GPC },
    { ngx_string("unreadable"), KX_SIGNAL_UNREADABLE },
    { ngx_null_string, 0 }
};


static ngx_http_kontext_name_t  ngx_http_kontext_kinds[] = {
    { ngx_string("email"), KX_REDACT_EMAIL },
    { ngx_string("phone"), KX_REDACT_PHONE },
    { ngx_string("card"), KX_REDACT_CARD },
    { ngx_string("key"), KX_REDACT_KEY },
    { ngx_null_string, 0 }
};


char *
ngx_http_kontext_consent_set(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    u_char                   *eq;
    ngx_int_t                 n;
    ngx_str_t                *value;
    ngx_uint_t                i;
    ngx_http_kontext_name_t  *action, *signal;

    if (klcf->consent) {
        return "is duplicate";
    }

    klcf->consent = ngx_pcalloc(cf->pool, sizeof(kx_consent_conf_t));
    if (klcf->consent == NULL) {
        return NGX_CONF_ERROR;
    }

    value = cf->args->elts;

    action = ngx_http_kontext_name(ngx_http_kontext_actions, value[1].data,
                                   value[1].len);
    if (action == NULL) {
        return ngx_http_kontext_consent_bad(cf, &value[1]);
    }

    for (i = 0; i < KX_SIGNALS; i++) {
        klcf->consent->actions[i] = action->value;
    }

    for (i = 2; i < cf->args->nelts; i++) {

        eq = ngx_strlchr(value[i].data, value[i].data + value[i].len, '=');
        if (eq == NULL) {
            return ngx_http_kontext_consent_bad(cf, &value[i]);
        }

        if (eq - value[i].data == 6
            && ngx_strncmp(value[i].data, "vendor", 6) == 0)
        {
            n = ngx_atoi(eq + 1, value[i].data + value[i].len - eq - 1);

            if (n < 1 || n > 65535) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "invalid parameter \"%V\" in "
                                   "\"kontext_consent\", write a vendor's "
                                   "number of the Global Vendor List, such "
                                   "as \"vendor=755\"", &value[i]);
                return NGX_CONF_ERROR;
            }

            klcf->consent->vendor = n;

            continue;
        }

        signal = ngx_http_kontext_name(ngx_http_kontext_signals,
                                       value[i].data, eq - value[i].data);

        action = ngx_http_kontext_name(ngx_http_kontext_actions, eq + 1,
                                  value[i].data + value[i].len - eq - 1);

        if (signal == NULL || action == NULL) {
            return ngx_http_kontext_consent_bad(cf, &value[i]);
        }

        klcf->consent->actions[signal->value] = action->value;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_kontext_consent_bad(ngx_conf_t *cf, ngx_str_t *value)
{
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid parameter \"%V\" in \"kontext_consent\", "
                       "write \"skip\", \"anonymous\" or \"ask\", and after "
                       "it what is done otherwise for \"gdpr=\", \"gpp=\", "
                       "\"us_privacy=\", \"coppa=\", \"gpc=\" or "
                       "\"unreadable=\", such as \"skip gpc=anonymous\"",
                       value);

    return NGX_CONF_ERROR;
}


char *
ngx_http_kontext_redact_set(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    ngx_str_t                *value;
    ngx_uint_t                i;
    ngx_http_kontext_name_t  *kind;

    if (klcf->redact != NGX_CONF_UNSET_UINT) {
        return "is duplicate";
    }

    value = cf->args->elts;
    klcf->redact = 0;

    if (cf->args->nelts == 2 && value[1].len == 3
        && ngx_strncmp(value[1].data, "off", 3) == 0)
    {
        return NGX_CONF_OK;
    }

    if (cf->args->nelts == 2 && value[1].len == 2
        && ngx_strncmp(value[1].data, "on", 2) == 0)
    {
        klcf->redact = KX_REDACT_ALL;
        return NGX_CONF_OK;
    }

    for (i = 1; i < cf->args->nelts; i++) {

        kind = ngx_http_kontext_name(ngx_http_kontext_kinds, value[i].data,
                                     value[i].len);
        if (kind == NULL) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid value \"%V\" in \"kontext_redact\", "
                               "write \"on\", \"off\", or some of \"email\", "
                               "\"phone\", \"card\" and \"key\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        klcf->redact |= kind->value;
    }

    return NGX_CONF_OK;
}


static ngx_http_kontext_name_t *
ngx_http_kontext_name(ngx_http_kontext_name_t *names, u_char *p, size_t len)
{
    for ( /* void */ ; names->name.len; names++) {
        if (names->name.len == len
            && ngx_strncmp(names->name.data, p, len) == 0)
        {
            return names;
        }
    }

    return NULL;
}


char *
ngx_http_kontext_privacy_merge(ngx_conf_t *cf,
    ngx_http_kontext_loc_conf_t *conf, ngx_http_kontext_loc_conf_t *prev)
{
    ngx_uint_t  i;

    ngx_conf_merge_uint_value(conf->redact, prev->redact, KX_REDACT_ALL);

    if (conf->consent == NULL) {
        conf->consent = prev->consent;
    }

    if (conf->consent) {
        return NGX_CONF_OK;
    }

    /* who has said no is not asked about; what nobody can read is passed on */

    conf->consent = ngx_pcalloc(cf->pool, sizeof(kx_consent_conf_t));
    if (conf->consent == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < KX_SIGNALS; i++) {
        conf->consent->actions[i] = KX_CONSENT_SKIP;
    }

    conf->consent->actions[KX_SIGNAL_UNREADABLE] = KX_CONSENT_ASK;

    return NGX_CONF_OK;
}


/* https://w3c.github.io/gpc/: the header's only value is 1 */

ngx_uint_t
ngx_http_kontext_gpc(ngx_http_request_t *r)
{
    ngx_str_t  value;

    static ngx_str_t  name = ngx_string("sec-gpc");

    ngx_http_kontext_header(r, &name, &value);

    return value.len == 1 && value.data[0] == '1';
}


void
ngx_http_kontext_consent(ngx_http_kontext_loc_conf_t *klcf,
    kx_ad_request_t *ar)
{
    ar->consent = kx_consent(klcf->consent, &ar->regulatory, ar->gpc);
}


ngx_int_t
ngx_http_kontext_anonymise(kx_ad_request_t *ar, ngx_pool_t *pool)
{
    u_char       random[2 * KX_ID_LEN];
    kx_alias_t  *alias;

    alias = ngx_palloc(pool, sizeof(kx_alias_t));

    if (alias == NULL || ngx_http_kontext_random(random, sizeof(random))
                         != NGX_OK)
    {
        return NGX_ERROR;
    }

    kx_consent_anonymise(ar, alias, random);

    return NGX_OK;
}
