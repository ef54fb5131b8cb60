/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The session API: which call it is, whether it may be made, and its answer.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_MERGES  8       /* of options, against others' */


typedef enum {
    NGX_HTTP_KONTEXT_SESSIONS = 0,
    NGX_HTTP_KONTEXT_SESSION,
    NGX_HTTP_KONTEXT_MESSAGES,
    NGX_HTTP_KONTEXT_AD,
    NGX_HTTP_KONTEXT_EVENTS
} ngx_http_kontext_resource_e;


typedef ngx_int_t (*ngx_http_kontext_api_pt)(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);


/* a call of the API: resource, method and what does it */

typedef struct {
    ngx_http_kontext_resource_e      resource;
    ngx_uint_t                       method;
    ngx_http_kontext_api_pt          handler;
    ngx_uint_t                       body;
} ngx_http_kontext_api_call_t;


struct ngx_http_kontext_api_s {
    ngx_http_kontext_ctx_t          *ctx;
    ngx_http_kontext_loc_conf_t     *conf;
    ngx_http_kontext_zone_t         *zone;
    ngx_http_kontext_api_call_t     *call;
    ngx_http_kontext_resource_e      resource;
    ngx_str_t                        id;         /* as it was written */
    ngx_str_t                        message;
    ngx_http_kontext_sid_t           sid;
    ngx_http_kontext_view_t         *view;
    ngx_str_t                        token;
    ngx_str_t                        user;       /* who it must be, or empty */
    ngx_str_t                        body;
    kx_pool_t                        pool;
};


static const kx_api_error_t *ngx_http_kontext_api_route(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_uint_t ngx_http_kontext_api_segment(ngx_str_t *path,
    ngx_str_t *segment);
static ngx_int_t ngx_http_kontext_api_message(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_uint_t ngx_http_kontext_api_is_text(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static void ngx_http_kontext_api_body(ngx_http_request_t *r);
static const kx_api_error_t *ngx_http_kontext_api_find(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_http_kontext_view_t *ngx_http_kontext_api_view(
    ngx_http_request_t *r, ngx_http_kontext_api_t *api, ngx_uint_t whole);

static ngx_int_t ngx_http_kontext_api_create(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static const kx_api_error_t *ngx_http_kontext_api_merge(
    ngx_http_kontext_api_t *api, ngx_str_t *options);
static ngx_int_t ngx_http_kontext_api_state(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_int_t ngx_http_kontext_api_patch(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_int_t ngx_http_kontext_api_delete(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_int_t ngx_http_kontext_api_messages(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_int_t ngx_http_kontext_api_ad(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_int_t ngx_http_kontext_api_events(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_int_t ngx_http_kontext_api_report(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);

static ngx_int_t ngx_http_kontext_api_request(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api, kx_ad_request_t *ar);
static void ngx_http_kontext_api_init(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api, kx_ad_request_t *ar);
static void ngx_http_kontext_api_orphan(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api);
static ngx_int_t ngx_http_kontext_api_write_state(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api, ngx_uint_t status);
static ngx_int_t ngx_http_kontext_api_show(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api, kx_ad_t *ad);
static ngx_int_t ngx_http_kontext_api_error(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api, const kx_api_error_t *e);
static ngx_int_t ngx_http_kontext_api_send(ngx_http_request_t *r,
    ngx_uint_t status, ngx_str_t *body);
static ngx_int_t ngx_http_kontext_api_origin(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf);
static ngx_int_t ngx_http_kontext_api_preflight(ngx_http_request_t *r);
static ngx_int_t ngx_http_kontext_api_allow(ngx_http_request_t *r,
    ngx_http_kontext_resource_e resource);


static ngx_http_kontext_api_call_t  ngx_http_kontext_api_calls[] = {

    { NGX_HTTP_KONTEXT_SESSIONS, NGX_HTTP_POST,
      ngx_http_kontext_api_create, 1 },

    { NGX_HTTP_KONTEXT_SESSION, NGX_HTTP_GET|NGX_HTTP_HEAD,
      ngx_http_kontext_api_state, 0 },

    { NGX_HTTP_KONTEXT_SESSION, NGX_HTTP_PATCH,
      ngx_http_kontext_api_patch, 1 },

    { NGX_HTTP_KONTEXT_SESSION, NGX_HTTP_DELETE,
      ngx_http_kontext_api_delete, 0 },

    { NGX_HTTP_KONTEXT_MESSAGES, NGX_HTTP_POST,
      ngx_http_kontext_api_messages, 1 },

    { NGX_HTTP_KONTEXT_AD, NGX_HTTP_GET|NGX_HTTP_HEAD,
      ngx_http_kontext_api_ad, 0 },

    { NGX_HTTP_KONTEXT_EVENTS, NGX_HTTP_GET|NGX_HTTP_HEAD,
      ngx_http_kontext_api_events, 0 },

    { NGX_HTTP_KONTEXT_EVENTS, NGX_HTTP_POST,
      ngx_http_kontext_api_report, 1 },

    { 0, 0, NULL, 0 }
};


ngx_int_t
ngx_http_kontext_api_handler(ngx_http_request_t *r)
{
    ngx_int_t                     rc;
    const kx_api_error_t         *e;
    ngx_http_kontext_api_t       *api;
    ngx_http_kontext_ctx_t       *ctx;
    ngx_http_kontext_api_call_t  *call;
    ngx_http_kontext_loc_conf_t  *klcf;

    klcf = ngx_http_get_module_loc_conf(r, ngx_http_kontext_module);

    ctx = ngx_http_kontext_get_ctx(r);

    if (r != r->main || (ctx && ctx->api)) {
        return NGX_HTTP_NOT_FOUND;
    }

    if (ctx == NULL) {
        ctx = ngx_http_kontext_create_ctx(r, klcf);
    }

    api = ngx_pcalloc(r->pool, sizeof(ngx_http_kontext_api_t));

    if (ctx == NULL || api == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->api = api;

    api->ctx = ctx;
    api->conf = klcf;
    api->zone = ngx_http_kontext_zone_get(r);
    api->pool.alloc = ngx_http_kontext_alloc;
    api->pool.data = r->pool;

    if (ngx_http_kontext_api_origin(r, klcf) != NGX_OK
        || ngx_http_kontext_value(r, klcf->token, &api->token) != NGX_OK
        || ngx_http_kontext_value(r, klcf->user_id, &api->user) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ngx_http_kontext_check_token(&api->token) != NGX_OK) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "kontext: \"kontext_publisher_token\" is empty here, "
                      "the session API cannot be used");
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->token = api->token;

    e = ngx_http_kontext_api_route(r, api);

    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    if (r->method == NGX_HTTP_OPTIONS) {
        return ngx_http_kontext_api_preflight(r);
    }

    for (call = ngx_http_kontext_api_calls; call->handler; call++) {
        if (call->resource == api->resource && (call->method & r->method)) {
            break;
        }
    }

    if (call->handler == NULL) {

        if (ngx_http_kontext_api_allow(r, api->resource) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return ngx_http_kontext_api_error(r, api, &kx_api_bad_method);
    }

    api->call = call;

    if (!call->body) {
        rc = ngx_http_discard_request_body(r);
        if (rc != NGX_OK) {
            return rc;
        }

        return call->handler(r, api);
    }

    if (!ngx_http_kontext_api_is_text(r, api)) {
        return ngx_http_kontext_api_error(r, api, &kx_api_media_type);
    }

    if (r->headers_in.content_length_n > KX_API_MAX_BODY) {
        return ngx_http_kontext_api_error(r, api, &kx_api_too_large);
    }

    rc = ngx_http_read_client_request_body(r, ngx_http_kontext_api_body);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


static const kx_api_error_t *
ngx_http_kontext_api_route(ngx_http_request_t *r, ngx_http_kontext_api_t *api)
{
    ngx_str_t                  path, segment;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (r->uri.len < clcf->name.len) {
        return &kx_api_unknown_path;
    }

    path.data = r->uri.data + clcf->name.len;
    path.len = r->uri.len - clcf->name.len;

    if (!ngx_http_kontext_api_segment(&path, &segment)
        || segment.len != 8 || ngx_strncmp(segment.data, "sessions", 8) != 0)
    {
        return &kx_api_unknown_path;
    }

    if (!ngx_http_kontext_api_segment(&path, &api->id)) {
        api->resource = NGX_HTTP_KONTEXT_SESSIONS;
        return path.len ? &kx_api_unknown_path : NULL;
    }

    if (!ngx_http_kontext_api_segment(&path, &segment)) {
        api->resource = NGX_HTTP_KONTEXT_SESSION;

    } else if (segment.len == 8
               && ngx_strncmp(segment.data, "messages", 8) == 0)
    {
        api->resource = NGX_HTTP_KONTEXT_MESSAGES;

    } else if (segment.len == 6
               && ngx_strncmp(segment.data, "events", 6) == 0)
    {
        api->resource = NGX_HTTP_KONTEXT_EVENTS;

    } else if (segment.len == 3 && ngx_strncmp(segment.data, "ads", 3) == 0
               && path.len > 1)
    {
        api->resource = NGX_HTTP_KONTEXT_AD;
        api->message.data = path.data + 1;
        api->message.len = path.len - 1;
        path.len = 0;

    } else {
        return &kx_api_unknown_path;
    }

    if (path.len) {
        return &kx_api_unknown_path;
    }

    if (kx_api_id_read(&api->sid.root, api->sid.id, &api->id,
                       api->zone->secret)
        != KX_OK)
    {
        return &kx_api_unknown_session;
    }

    return NULL;
}


/* takes the next segment off a path */

static ngx_uint_t
ngx_http_kontext_api_segment(ngx_str_t *path, ngx_str_t *segment)
{
    if (path->len && path->data[0] == '/') {
        path->data++;
        path->len--;
    }

    segment->data = path->data;

    while (path->len && path->data[0] != '/') {
        path->data++;
        path->len--;
    }

    segment->len = path->data - segment->data;

    return segment->len != 0;
}


/* a message id may have slashes, of which nginx makes something else */

static ngx_int_t
ngx_http_kontext_api_message(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    u_char     *p, *last, *dst, *src;
    ngx_str_t   uri;

    uri = r->unparsed_uri;

    p = ngx_strlchr(uri.data, uri.data + uri.len, '?');
    if (p) {
        uri.len = p - uri.data;
    }

    p = uri.data;
    last = uri.data + uri.len;

    for ( /* void */ ; p + api->id.len + 5 < last; p++) {
        if (ngx_strncmp(p, api->id.data, api->id.len) == 0
            && ngx_strncmp(p + api->id.len, "/ads/", 5) == 0)
        {
            break;
        }
    }

    if (p + api->id.len + 5 >= last) {

        /* it was rewritten */

        return NGX_OK;
    }

    src = p + api->id.len + 5;

    dst = ngx_pnalloc(r->pool, last - src);
    if (dst == NULL) {
        return NGX_ERROR;
    }

    api->message.data = dst;

    ngx_unescape_uri(&dst, &src, last - src, 0);

    api->message.len = dst - api->message.data;

    return NGX_OK;
}


static ngx_uint_t
ngx_http_kontext_api_is_text(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    ngx_str_t  *type, encoding;

    static ngx_str_t  name = ngx_string("content-encoding");

    ngx_http_kontext_header(r, &name, &encoding);

    if (r->headers_in.content_type == NULL
        || (encoding.len
            && !(encoding.len == 8
                 && ngx_strncasecmp(encoding.data, (u_char *) "identity", 8)
                    == 0)))
    {
        return 0;
    }

    type = &r->headers_in.content_type->value;

    if (ngx_http_kontext_is_json(type)) {
        return 1;
    }

    /* navigator.sendBeacon() without a question of CORS */

    return api->resource == NGX_HTTP_KONTEXT_EVENTS
           && type->len >= 10
           && ngx_strncasecmp(type->data, (u_char *) "text/plain", 10) == 0
           && (type->len == 10 || type->data[10] == ';'
               || type->data[10] == ' ');
}


static void
ngx_http_kontext_api_body(ngx_http_request_t *r)
{
    ngx_int_t                  rc;
    kx_reason_e                reason;
    ngx_http_kontext_api_t    *api;
    ngx_http_kontext_space_t   space;

    api = ngx_http_kontext_get_ctx(r)->api;

    reason = ngx_http_kontext_read_body(api->ctx, KX_API_MAX_BODY, &api->body,
                                        &space);

    switch (reason) {

    case KX_REASON_NONE:
        rc = api->call->handler(r, api);
        break;

    case KX_REASON_NO_BODY:
        rc = ngx_http_kontext_api_error(r, api, &kx_api_bad_json);
        break;

    case KX_REASON_LARGE_BODY:
        rc = ngx_http_kontext_api_error(r, api, &kx_api_too_large);
        break;

    default:
        rc = NGX_HTTP_INTERNAL_SERVER_ERROR;
        break;
    }

    ngx_http_kontext_release_body(api->ctx, &space);

    ngx_http_finalize_request(r, rc);
}


/* the session of a call, if it may be spoken of */

static const kx_api_error_t *
ngx_http_kontext_api_find(ngx_http_request_t *r, ngx_http_kontext_api_t *api)
{
    ngx_http_kontext_turn_t   turn;
    ngx_http_kontext_view_t  *view;

    view = api->view;

    if (ngx_http_kontext_feed_view(api->zone, view, &api->sid) != NGX_OK) {
        return &kx_api_unknown_session;
    }

    /* another publisher's or another user's is none */

    turn.zone = api->zone;

    ngx_http_kontext_session_key(&turn, &api->token, &view->conversation,
                                 api->user.len ? &api->user : &view->user);

    if (ngx_memcmp(turn.key, view->turn.key, KX_ID_LEN) != 0
        || turn.user != view->turn.user)
    {
        return &kx_api_unknown_session;
    }

    view->turn.conf = api->conf;

    ngx_http_kontext_store_key(&view->turn, &api->token, &view->conversation,
                               &view->user);

    api->ctx->turn = view->turn;
    api->ctx->user = view->user;
    api->ctx->conversation = view->conversation;

    return NULL;
}


static ngx_http_kontext_view_t *
ngx_http_kontext_api_view(ngx_http_request_t *r, ngx_http_kontext_api_t *api,
    ngx_uint_t whole)
{
    ngx_http_kontext_view_t  *view;

    view = ngx_pcalloc(r->pool, sizeof(ngx_http_kontext_view_t));
    if (view == NULL) {
        return NULL;
    }

    api->view = view;

    if (whole) {
        view->ids = 1;
        view->size = KX_MAX_MESSAGES * KX_API_MAX_MESSAGE_ID;
        view->placements = api->conf->placements;

        view->text = ngx_palloc(r->pool, view->size);
        if (view->text == NULL) {
            return NULL;
        }
    }

    return view;
}


static ngx_int_t
ngx_http_kontext_api_create(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    ngx_int_t                 rc;
    ngx_str_t                 conversation;
    ngx_uint_t                created, init;
    kx_ad_request_t           ar;
    kx_api_session_t          s;
    const kx_api_error_t     *e;
    ngx_http_kontext_turn_t   turn;

    e = kx_api_read_session(&s, api->body.data, api->body.len, &api->pool);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    ngx_str_null(&conversation);

    if (s.conversation_id.len == 0) {
        if (ngx_http_kontext_value(r, api->conf->conversation_id,
                                   &conversation)
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        s.conversation_id = conversation;
    }

    if (api->user.len) {

        if (s.user_id.len
            && (s.user_id.len != api->user.len
                || ngx_memcmp(s.user_id.data, api->user.data, api->user.len)
                   != 0))
        {
            return ngx_http_kontext_api_error(r, api, &kx_api_forbidden_user);
        }

        s.user_id = api->user;
    }

    if (s.user_id.len == 0 || s.conversation_id.len == 0) {
        return ngx_http_kontext_api_error(r, api, &kx_api_missing_member);
    }

    if (s.user_id.len > KX_MAX_IDENTITY
        || s.conversation_id.len > KX_MAX_IDENTITY)
    {
        return ngx_http_kontext_api_error(r, api, &kx_api_bad_member);
    }

    if (ngx_http_kontext_api_view(r, api, 1) == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memzero(&turn, sizeof(ngx_http_kontext_turn_t));

    turn.zone = api->zone;
    turn.conf = api->conf;

    ngx_http_kontext_session_key(&turn, &api->token, &s.conversation_id,
                                 &s.user_id);
    ngx_http_kontext_store_key(&turn, &api->token, &s.conversation_id,
                               &s.user_id);

    rc = ngx_http_kontext_feed_open(&turn, &s.user_id, &s.conversation_id,
                                    api->view, &init, &created);

    if (rc == NGX_ERROR) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (rc != NGX_OK || api->view->user.len == 0) {
        return ngx_http_kontext_api_error(r, api, &kx_api_no_room);
    }

    turn.init_seq = api->view->turn.init_seq;

    api->sid = api->view->sid;
    api->view->turn.conf = api->conf;

    ngx_http_kontext_store_key(&api->view->turn, &api->token,
                               &s.conversation_id, &s.user_id);

    api->ctx->turn = api->view->turn;
    api->ctx->user = s.user_id;
    api->ctx->conversation = s.conversation_id;

    /* consent is one of the options */

    if (s.options.len > 2) {
        e = ngx_http_kontext_api_merge(api, &s.options);
        if (e) {

            if (init) {
                ngx_http_kontext_session_init_cancel(&turn);
            }

            return ngx_http_kontext_api_error(r, api, e);
        }
    }

    if (ngx_http_kontext_api_request(r, api, &ar) != NGX_OK) {

        if (init) {
            ngx_http_kontext_session_init_cancel(&turn);
        }

        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (created) {
        ngx_http_kontext_debug(r, &api->view->turn, &ar, "Session: created",
                               "{}");
    }

    if (init) {
        ngx_http_kontext_api_init(r, api, &ar);
    }

    ngx_http_kontext_api_orphan(r, api);

    return ngx_http_kontext_api_write_state(r, api,
                                            created ? NGX_HTTP_CREATED
                                                    : NGX_HTTP_OK);
}


/* another call may change them at the same time */

static const kx_api_error_t *
ngx_http_kontext_api_merge(ngx_http_kontext_api_t *api, ngx_str_t *options)
{
    ngx_int_t              rc;
    ngx_str_t              merged;
    ngx_uint_t             i;
    const kx_api_error_t  *e;

    for (i = 0; i < NGX_HTTP_KONTEXT_MERGES; i++) {

        e = kx_options_merge(&merged, &api->view->options, options,
                             &api->pool);
        if (e) {
            return e;
        }

        rc = ngx_http_kontext_feed_set_options(api->zone, &api->sid,
                                               api->view->revision, &merged);

        if (rc == KX_OK) {
            api->view->options = merged;
            return NULL;
        }

        if (rc == KX_DECLINED) {
            return &kx_api_no_room;
        }

        if (rc == KX_ERROR
            || ngx_http_kontext_feed_view(api->zone, api->view, &api->sid)
               != NGX_OK)
        {
            return &kx_api_unknown_session;
        }
    }

    return &kx_api_no_room;
}


static ngx_int_t
ngx_http_kontext_api_state(ngx_http_request_t *r, ngx_http_kontext_api_t *api)
{
    const kx_api_error_t  *e;

    if (ngx_http_kontext_api_view(r, api, 1) == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    e = ngx_http_kontext_api_find(r, api);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    ngx_http_kontext_api_orphan(r, api);

    return ngx_http_kontext_api_write_state(r, api, NGX_HTTP_OK);
}


static ngx_int_t
ngx_http_kontext_api_patch(ngx_http_request_t *r, ngx_http_kontext_api_t *api)
{
    ngx_str_t              options;
    kx_ad_request_t        ar;
    const kx_api_error_t  *e;

    e = kx_api_read_patch(&options, api->body.data, api->body.len,
                          &api->pool);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    if (ngx_http_kontext_api_view(r, api, 1) == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    e = ngx_http_kontext_api_find(r, api);

    if (e == NULL) {
        e = ngx_http_kontext_api_merge(api, &options);
    }

    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    ngx_http_kontext_api_orphan(r, api);

    if (ngx_http_kontext_api_request(r, api, &ar) == NGX_OK) {
        ngx_http_kontext_debug(r, &api->view->turn, &ar,
                               "Session: options-updated", "{}");
    }

    return ngx_http_kontext_api_write_state(r, api, NGX_HTTP_OK);
}


static ngx_int_t
ngx_http_kontext_api_delete(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    kx_ad_request_t           ar;
    ngx_http_kontext_view_t  *view;

    view = ngx_http_kontext_api_view(r, api, 0);
    if (view == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ngx_http_kontext_api_find(r, api) == NULL) {

        if (ngx_http_kontext_api_request(r, api, &ar) == NGX_OK) {
            ngx_http_kontext_debug(r, &view->turn, &ar, "Session: destroyed",
                                   "{}");
        }

        (void) ngx_http_kontext_feed_close(api->zone, &api->sid,
                                           view->turn.key);

        ngx_http_kontext_store_delete(r, &view->turn);
    }

    r->headers_out.status = NGX_HTTP_NO_CONTENT;
    r->headers_out.content_length_n = 0;
    r->header_only = 1;

    return ngx_http_send_header(r);
}


static ngx_int_t
ngx_http_kontext_api_messages(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    char                      data[NGX_INT_T_LEN + 64], *preload;
    u_char                    digest[KX_ID_LEN], *p;
    unsigned                  i, n;
    uint32_t                  dead;
    kx_feed_e                 rc;
    ngx_str_t                 body;
    ngx_uint_t                accepted, repeated, ask, init, any;
    kx_ad_request_t           ar;
    kx_api_message_t         *messages, *m, *asked;
    const kx_api_error_t     *e;
    ngx_http_kontext_turn_t  *turn;
    ngx_http_kontext_view_t  *view;

    e = kx_api_read_messages(&messages, &n, api->body.data, api->body.len,
                             &api->pool);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    view = ngx_http_kontext_api_view(r, api, 0);
    if (view == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    e = ngx_http_kontext_api_find(r, api);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    if (ngx_http_kontext_api_request(r, api, &ar) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_kontext_api_orphan(r, api);

    dead = ngx_http_kontext_feed_dead(view->init_owner) ? view->init_owner : 0;

    turn = &view->turn;
    preload = "none";
    asked = NULL;
    repeated = 0;
    any = 0;

    /* only the last ones of a history are kept, protocol.md 3.2 */

    accepted = (n > KX_MAX_MESSAGES) ? n - KX_MAX_MESSAGES : 0;

    for (i = accepted; i < n; i++) {
        m = &messages[i];

        kx_message_digest_native(digest, &view->conversation,
                                 &m->message.id);

        rc = ngx_http_kontext_feed_message(api->zone, &api->sid, m, digest,
                                           turn, dead, &init);

        switch (rc) {

        case KX_FEED_GONE:
            return ngx_http_kontext_api_error(r, api,
                                              &kx_api_unknown_session);

        case KX_FEED_NO_ROOM:
            e = &kx_api_no_room;
            break;

        case KX_FEED_REPEATED:
            repeated++;
            continue;

        default:
            break;
        }

        if (e) {
            break;
        }

        any |= init;
        ask = (rc == KX_FEED_ASK || rc == KX_FEED_AGAIN);

        if (rc == KX_FEED_AGAIN) {
            repeated++;

        } else {
            accepted++;
        }

        if (m->message.role == KX_ROLE_USER) {
            asked = ask ? m : NULL;
            preload = ask ? "scheduled" : "disabled";
        }

        if (turn->debug) {
            (void) ngx_sprintf((u_char *) data, "{\"role\":\"%s\"}%Z",
                               m->message.role == KX_ROLE_USER
                               ? "user" : "assistant");

            ngx_http_kontext_debug(r, turn, &ar, "Session: message-added",
                                   data);

            if (rc == KX_FEED_PAIRED) {
                ngx_http_kontext_debug(r, turn, &ar, "Session: bid-assigned",
                                       "{}");
            }
        }
    }

    if (any) {
        ngx_http_kontext_api_init(r, api, &ar);
    }

    if (asked
        && ngx_http_kontext_feed_start(r, &api->sid, turn, &ar,
                                       asked->track_only, KX_FEED_DEBOUNCE)
           != NGX_OK)
    {
        preload = "none";
    }

    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    p = ngx_pnalloc(r->pool, 3 * NGX_INT_T_LEN + 64);
    if (p == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    body.data = p;
    body.len = ngx_sprintf(p, "{\"accepted\":%ui,\"repeated\":%ui,"
                           "\"preload\":\"%s\"}",
                           accepted, repeated, preload)
               - p;

    return ngx_http_kontext_api_send(r, NGX_HTTP_ACCEPTED, &body);
}


static ngx_int_t
ngx_http_kontext_api_ad(ngx_http_request_t *r, ngx_http_kontext_api_t *api)
{
    u_char                *p, *last, id[KX_MESSAGE_ID_LEN];
    u_char                 digest[KX_ID_LEN];
    kx_ad_t                ad;
    ngx_int_t              rc;
    ngx_str_t              other, body;
    kx_feed_ad_t           found;
    const kx_api_error_t  *e;

    if (ngx_http_kontext_api_message(r, api) != NGX_OK
        || ngx_http_kontext_api_view(r, api, 0) == NULL)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    e = ngx_http_kontext_api_find(r, api);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    ngx_http_kontext_api_orphan(r, api);

    api->ctx->message_id = api->message;

    rc = ngx_http_kontext_feed_ad(api->zone, &api->sid, &api->message,
                                  api->conf->placements, &found);

    if (rc != NGX_OK) {

        /* what came late for an answer that has an id of its own */

        kx_message_digest_native(digest, &api->view->conversation,
                                 &api->message);
        kx_message_id(id, digest);

        other.data = id;
        other.len = KX_MESSAGE_ID_LEN;

        rc = ngx_http_kontext_feed_ad(api->zone, &api->sid, &other,
                                      api->conf->placements, &found);
    }

    if (rc != NGX_OK) {
        return ngx_http_kontext_api_error(r, api, &kx_api_no_ad);
    }

    if (ngx_http_kontext_api_show(r, api, &ad) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ad.message_id = api->message;
    ad.bids = found.bids;
    ad.nbids = found.nbids;

    api->ctx->nbids = found.nbids;
    ngx_memcpy(api->ctx->bids, found.bids, found.nbids * sizeof(kx_bid_t));

    p = ngx_pnalloc(r->pool, KX_MAX_MEMBER);
    if (p == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    last = kx_protocol_member(p, p + KX_MAX_MEMBER, &ad);
    if (last == NULL) {
        return ngx_http_kontext_api_error(r, api, &kx_api_no_ad);
    }

    body.data = p;
    body.len = last - p;

    return ngx_http_kontext_api_send(r, NGX_HTTP_OK, &body);
}


static ngx_int_t
ngx_http_kontext_api_events(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    uint64_t                  newest;
    const kx_api_error_t     *e;
    ngx_http_kontext_turn_t   turn;

    if (ngx_http_kontext_api_view(r, api, 0) == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    e = ngx_http_kontext_api_find(r, api);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    ngx_http_kontext_api_orphan(r, api);

    if (ngx_http_kontext_stream_count(api->zone, api->zone->streams)
        != NGX_OK)
    {
        return ngx_http_kontext_api_error(r, api, &kx_api_too_many_streams);
    }

    turn = api->view->turn;
    newest = api->view->events;

    ngx_str_null(&api->ctx->user);
    ngx_str_null(&api->ctx->conversation);

    /* a stream is open for long, and this is not small */

    (void) ngx_pfree(r->pool, api->view);
    api->view = NULL;

    return ngx_http_kontext_events(r, &api->sid, &turn, newest,
                                   api->conf->api_ping);
}


static ngx_int_t
ngx_http_kontext_api_report(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    u_char                  *p;
    double                   revenue;
    uint64_t                 number;
    ngx_str_t                data, body, message;
    kx_api_event_t           event;
    kx_session_bid_t         bid;
    const kx_api_error_t    *e;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = api->ctx;

    e = kx_api_read_event(&event, api->body.data, api->body.len, &api->pool);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    if (ngx_http_kontext_api_view(r, api, 0) == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    e = ngx_http_kontext_api_find(r, api);
    if (e) {
        return ngx_http_kontext_api_error(r, api, e);
    }

    ngx_http_kontext_api_orphan(r, api);

    revenue = -1;

    if (event.has_bid) {

        p = ngx_pnalloc(r->pool, KX_API_MAX_MESSAGE_ID);
        if (p == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        if (ngx_http_kontext_feed_bid(api->zone, &api->sid, event.bid, &bid,
                                      p, &message)
            != NGX_OK)
        {
            return ngx_http_kontext_api_error(r, api, &kx_api_unknown_ad);
        }

        revenue = kx_session_revenue(&bid);

        if (event.message_id.len == 0) {
            event.message_id = message;
        }

        ctx->nbids = kx_session_placed(&bid, 1, ctx->bids,
                                       api->conf->placements->elts,
                                       api->conf->placements->nelts);

        if (ctx->nbids && event.code.len == 0) {
            event.code = ((kx_str_t *) api->conf->placements->elts)
                             [ctx->bids[0].placement];
        }
    }

    ctx->event = event.name;
    ctx->message_id = event.message_id;

    data = kx_api_event(&event, revenue, &api->pool);
    if (data.len == 0) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    number = ngx_http_kontext_feed_event(api->zone, &api->sid, &data,
                                         api->view->turn.key);
    if (number == 0) {
        return ngx_http_kontext_api_error(r, api, &kx_api_no_room);
    }

    p = ngx_pnalloc(r->pool, NGX_INT64_LEN + sizeof("{\"id\":}"));
    if (p == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    body.data = p;
    body.len = ngx_sprintf(p, "{\"id\":%uL}", number) - p;

    return ngx_http_kontext_api_send(r, NGX_HTTP_ACCEPTED, &body);
}


/* what an ad call of this session may say */

static ngx_int_t
ngx_http_kontext_api_request(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api, kx_ad_request_t *ar)
{
    kx_ad_request_t  said;

    ngx_memzero(ar, sizeof(kx_ad_request_t));

    ar->publisher_token = api->token;
    ar->user_id = api->view->user;
    ar->conversation_id = api->view->conversation;
    ar->has_session = api->view->has_server_id;
    ngx_memcpy(ar->session, api->view->server_id, KX_ID_LEN);

    if (ngx_http_kontext_ad_request(r, api->conf, ar) != NGX_OK) {
        return NGX_ERROR;
    }

    /* the session's own options are put over these for each preload */

    said = *ar;

    if (kx_options_apply(&said, &api->view->options, &api->pool) == KX_OK) {
        ngx_http_kontext_consent(api->conf, &said);
        ar->consent = said.consent;

    } else {
        ar->consent = KX_CONSENT_SKIP;
    }

    return NGX_OK;
}


static void
ngx_http_kontext_api_init(ngx_http_request_t *r, ngx_http_kontext_api_t *api,
    kx_ad_request_t *ar)
{
    if (ar->consent != KX_CONSENT_ASK) {

        /* it would say who is there */

        ngx_http_kontext_session_init_cancel(&api->view->turn);
        return;
    }

    (void) ngx_http_kontext_ask(r, NGX_HTTP_KONTEXT_CALL_INIT,
                                &api->view->turn, ar, NULL,
                                NGX_HTTP_KONTEXT_INIT_TIMEOUT, 0);
}


/* a preload that has died with its worker goes on in this one */

static void
ngx_http_kontext_api_orphan(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api)
{
    kx_ad_request_t  ar;

    if (ngx_http_kontext_feed_orphan(api->view) != NGX_OK) {
        return;
    }

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext takes over the preload of turn %uD",
                   api->view->turn.seq);

    if (ngx_http_kontext_api_request(r, api, &ar) != NGX_OK) {
        ngx_http_kontext_session_cancel(&api->view->turn);
        return;
    }

    /* what the client's own request has said of this is not known any more */

    ar.gpc = 1;

    (void) ngx_http_kontext_feed_start(r, &api->sid, &api->view->turn, &ar,
                                       api->view->track_only, 0);
}


static ngx_int_t
ngx_http_kontext_api_write_state(ngx_http_request_t *r,
    ngx_http_kontext_api_t *api, ngx_uint_t status)
{
    size_t                     len;
    u_char                    *p, id[KX_API_ID_LEN];
    kx_ad_t                    ad, *ads;
    ngx_str_t                  body, location;
    ngx_uint_t                 i;
    kx_api_state_t             s;
    ngx_http_kontext_view_t   *view;
    ngx_http_core_loc_conf_t  *clcf;

    static char  *states[] = { "none", "pending", "filled", "no_fill" };

    view = api->view;

    if (ngx_http_kontext_api_show(r, api, &ad) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ads = ngx_palloc(r->pool, KX_MAX_MESSAGES * sizeof(kx_ad_t));
    if (ads == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (i = 0; i < view->nads; i++) {
        ads[i] = ad;
        ads[i].message_id = view->ads[i].id;
        ads[i].bids = view->ads[i].bids;
        ads[i].nbids = view->ads[i].nbids;
    }

    kx_api_id_write(id, view->sid.root, view->sid.id, api->zone->secret);

    ngx_memzero(&s, sizeof(kx_api_state_t));

    s.id.data = id;
    s.id.len = KX_API_ID_LEN;
    s.user_id = view->user;
    s.conversation_id = view->conversation;
    s.options = view->options;
    s.has_server_id = view->has_server_id;
    ngx_memcpy(s.server_id, view->server_id, KX_ID_LEN);
    s.created = view->created;
    s.disabled = view->disabled;
    s.enabled = view->enabled;
    s.init = view->init;
    s.preload_timeout = view->timeout;
    s.report_errors = !view->turn.no_errors;
    s.report_debug = view->turn.debug;
    s.preload = view->failed ? "error"
                : states[ngx_min(view->state, KX_TURN_NO_FILL)];
    s.messages = view->messages;
    s.nmessages = view->nmessages;
    s.ads = ads;
    s.nads = view->nads;

    body = kx_api_write_state(&s, &api->pool);
    if (body.len == 0) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (r->method == NGX_HTTP_POST) {

        clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

        len = clcf->name.len + 2 * ngx_escape_uri(NULL, clcf->name.data,
                                                  clcf->name.len,
                                                  NGX_ESCAPE_URI);

        p = ngx_pnalloc(r->pool, len + sizeof("/sessions/") - 1
                                 + KX_API_ID_LEN);
        if (p == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        location.data = p;

        p = (u_char *) ngx_escape_uri(p, clcf->name.data, clcf->name.len,
                                      NGX_ESCAPE_URI);

        if (p[-1] != '/') {
            *p++ = '/';
        }

        p = ngx_cpymem(p, "sessions/", sizeof("sessions/") - 1);
        p = ngx_cpymem(p, id, KX_API_ID_LEN);

        location.len = p - location.data;

        if (ngx_http_kontext_header_out(r, "Location", &location) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    return ngx_http_kontext_api_send(r, status, &body);
}


/* what all ads of a location have in common */

static ngx_int_t
ngx_http_kontext_api_show(ngx_http_request_t *r, ngx_http_kontext_api_t *api,
    kx_ad_t *ad)
{
    ngx_memzero(ad, sizeof(kx_ad_t));

    ad->origin = api->conf->frame_origin;
    ad->placements = api->conf->placements->elts;

    if (ngx_http_kontext_value(r, api->conf->label, &ad->label) != NGX_OK
        || ngx_http_kontext_value(r, api->conf->theme, &ad->theme) != NGX_OK
        || ngx_http_kontext_sdk_name(r, api->conf->sdk, &ad->sdk_name)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    api->ctx->label = ad->label;

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_api_error(ngx_http_request_t *r, ngx_http_kontext_api_t *api,
    const kx_api_error_t *e)
{
    ngx_int_t  rc;
    ngx_str_t  body;

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext api refuses: %V", &e->code);

    /* for the log */

    api->ctx->code = e->code;

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    body = kx_api_write_error(e, &api->pool);
    if (body.len == 0) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_kontext_api_send(r, e->status, &body);
}


static ngx_int_t
ngx_http_kontext_api_send(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *body)
{
    static ngx_str_t  type = ngx_string("application/json");

    return ngx_http_kontext_respond(r, status, &type, body);
}


/* pages of other origins, Fetch standard 3.2 */

static ngx_int_t
ngx_http_kontext_api_origin(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf)
{
    ngx_str_t   origin, value, *allowed;
    ngx_uint_t  i;

    static ngx_str_t  name = ngx_string("origin");

    if (klcf->api_origins == NULL) {
        return NGX_OK;
    }

    ngx_str_set(&value, "Origin");

    if (ngx_http_kontext_header_out(r, "Vary", &value) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_str_set(&value, "Location, Allow");

    ngx_http_kontext_header(r, &name, &origin);

    if (origin.len == 0) {
        return NGX_OK;
    }

    allowed = klcf->api_origins->elts;

    for (i = 0; i < klcf->api_origins->nelts; i++) {

        if (allowed[i].len == 1 && allowed[i].data[0] == '*') {

            if (ngx_http_kontext_header_out(r, "Access-Control-Allow-Origin",
                                            &allowed[i])
                != NGX_OK)
            {
                return NGX_ERROR;
            }

            return ngx_http_kontext_header_out(r,
                                             "Access-Control-Expose-Headers",
                                             &value);
        }

        if (allowed[i].len != origin.len
            || ngx_strncmp(allowed[i].data, origin.data, origin.len) != 0)
        {
            continue;
        }

        if (ngx_http_kontext_header_out(r, "Access-Control-Allow-Origin",
                                        &origin)
            != NGX_OK
            || ngx_http_kontext_header_out(r,
                                           "Access-Control-Expose-Headers",
                                           &value)
               != NGX_OK)
        {
            return NGX_ERROR;
        }

        ngx_str_set(&value, "true");

        return ngx_http_kontext_header_out(r,
                                           "Access-Control-Allow-Credentials",
                                           &value);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_kontext_api_preflight(ngx_http_request_t *r)
{
    ngx_int_t                     rc;
    ngx_str_t                     value;
    ngx_http_kontext_api_t       *api;
    ngx_http_kontext_loc_conf_t  *klcf;

    api = ngx_http_kontext_get_ctx(r)->api;
    klcf = api->conf;

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_kontext_api_allow(r, api->resource) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (klcf->api_origins) {

        ngx_str_set(&value, "GET, POST, PATCH, DELETE");

        if (ngx_http_kontext_header_out(r, "Access-Control-Allow-Methods",
                                        &value)
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_str_set(&value, "Content-Type, Last-Event-ID");

        if (ngx_http_kontext_header_out(r, "Access-Control-Allow-Headers",
                                        &value)
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_str_set(&value, "600");

        if (ngx_http_kontext_header_out(r, "Access-Control-Max-Age", &value)
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    r->headers_out.status = NGX_HTTP_NO_CONTENT;
    r->headers_out.content_length_n = 0;
    r->header_only = 1;

    return ngx_http_send_header(r);
}


static ngx_int_t
ngx_http_kontext_api_allow(ngx_http_request_t *r,
    ngx_http_kontext_resource_e resource)
{
    ngx_str_t  value;

    switch (resource) {

    case NGX_HTTP_KONTEXT_SESSION:
        ngx_str_set(&value, "GET, HEAD, PATCH, DELETE, OPTIONS");
        break;

    case NGX_HTTP_KONTEXT_AD:
        ngx_str_set(&value, "GET, HEAD, OPTIONS");
        break;

    case NGX_HTTP_KONTEXT_EVENTS:
        ngx_str_set(&value, "GET, HEAD, POST, OPTIONS");
        break;

    default: /* NGX_HTTP_KONTEXT_SESSIONS, NGX_HTTP_KONTEXT_MESSAGES */
        ngx_str_set(&value, "POST, OPTIONS");
        break;
    }

    return ngx_http_kontext_header_out(r, "Allow", &value);
}
