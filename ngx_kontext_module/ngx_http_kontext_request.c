/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_DEFER         2     /* ms */
#define NGX_HTTP_KONTEXT_SCRATCH_POOL  8192


typedef enum {
    NGX_HTTP_KONTEXT_MODE_OFF = 0,
    NGX_HTTP_KONTEXT_MODE_ON,
    NGX_HTTP_KONTEXT_MODE_TRACK,
    NGX_HTTP_KONTEXT_MODE_IDENTIFY
} ngx_http_kontext_mode_e;


static ngx_int_t ngx_http_kontext_mode(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf, ngx_http_kontext_mode_e *mode);
static void ngx_http_kontext_finalize(void *data);
static void ngx_http_kontext_count_chat(ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_space(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_space_t *space, size_t size);
static void ngx_http_kontext_cleanup(void *data);
static kx_reason_e ngx_http_kontext_check_request(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf);
static void ngx_http_kontext_body_handler(ngx_http_request_t *r);
static void ngx_http_kontext_choose(ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_identity_encoding(ngx_http_request_t *r);
static void ngx_http_kontext_analyse_handler(ngx_event_t *ev);
static kx_reason_e ngx_http_kontext_understand(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *body, kx_pool_t *scratch);
static ngx_int_t ngx_http_kontext_identify(ngx_http_kontext_ctx_t *ctx);
static ngx_int_t ngx_http_kontext_identity(ngx_http_request_t *r,
    ngx_http_complex_value_t *cv, ngx_str_t *header, ngx_str_t *value);
static ngx_int_t ngx_http_kontext_weak_user(ngx_http_kontext_ctx_t *ctx);
static void *ngx_http_kontext_scratch_alloc(void *data, size_t size);


static ngx_str_t  ngx_http_kontext_user_header =
    ngx_string("x-openwebui-user-id");

static ngx_str_t  ngx_http_kontext_chat_header =
    ngx_string("x-openwebui-chat-id");

/* chat-apis.md 12: clients that name their session */

static ngx_str_t  ngx_http_kontext_session_headers[] = {
    ngx_string("x-claude-code-session-id"),
    ngx_string("session-id"),
    ngx_string("session_id"),
    ngx_string("x-opencode-session"),
    ngx_string("x-session-id"),
    ngx_string("x-session-affinity"),
    ngx_null_string
};

static ngx_str_t  ngx_http_kontext_credentials[] = {
    ngx_string("authorization"),
    ngx_string("x-api-key"),
    ngx_string("api-key"),
    ngx_string("x-goog-api-key"),
    ngx_null_string
};


ngx_http_kontext_ctx_t *
ngx_http_kontext_get_ctx(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t      *cln;
    ngx_http_kontext_ctx_t  *ctx;

    r = r->main;

    ctx = ngx_http_get_module_ctx(r, ngx_http_kontext_module);

    if (ctx == NULL && (r->internal || r->filter_finalize)) {

        /* an internal redirect or an error page has cleared r->ctx */

        for (cln = r->pool->cleanup; cln; cln = cln->next) {
            if (cln->handler == ngx_http_kontext_cleanup) {
                ctx = cln->data;
                ngx_http_set_ctx(r, ctx, ngx_http_kontext_module);
                break;
            }
        }
    }

    return ctx;
}


ngx_int_t
ngx_http_kontext_handler(ngx_http_request_t *r)
{
    ngx_int_t                     rc;
    kx_reason_e                   reason;
    ngx_http_kontext_ctx_t       *ctx;
    ngx_http_kontext_mode_e       mode;
    ngx_http_kontext_loc_conf_t  *klcf;

    if (r != r->main) {
        return NGX_DECLINED;
    }

    ctx = ngx_http_kontext_get_ctx(r);

    if (ctx) {
        return NGX_DECLINED;
    }

    klcf = ngx_http_get_module_loc_conf(r, ngx_http_kontext_module);

    if (!klcf->enabled || klcf->api) {
        return NGX_DECLINED;
    }

    if (ngx_http_kontext_mode(r, klcf, &mode) != NGX_OK
        || mode == NGX_HTTP_KONTEXT_MODE_OFF)
    {
        return NGX_DECLINED;
    }

    ctx = ngx_http_kontext_create_ctx(r, klcf);
    if (ctx == NULL) {
        return NGX_DECLINED;
    }

    ctx->track_only = (mode == NGX_HTTP_KONTEXT_MODE_TRACK);
    ctx->identify = (mode == NGX_HTTP_KONTEXT_MODE_IDENTIFY);

    reason = ngx_http_kontext_check_request(r, klcf);

    if (reason != KX_REASON_NONE) {
        ngx_http_kontext_bypass(ctx, reason);
        return NGX_DECLINED;
    }

    rc = ngx_http_read_client_request_body(r, ngx_http_kontext_body_handler);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    ngx_http_finalize_request(r, NGX_DONE);

    return NGX_DONE;
}


static ngx_int_t
ngx_http_kontext_mode(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf, ngx_http_kontext_mode_e *mode)
{
    ngx_str_t  value;

    if (ngx_http_complex_value(r, klcf->enable, &value) != NGX_OK) {
        return NGX_ERROR;
    }

    *mode = NGX_HTTP_KONTEXT_MODE_OFF;

    if (value.len == 2 && ngx_strncmp(value.data, "on", 2) == 0) {
        *mode = NGX_HTTP_KONTEXT_MODE_ON;

    } else if (value.len == 10
               && ngx_strncmp(value.data, "track_only", 10) == 0)
    {
        *mode = NGX_HTTP_KONTEXT_MODE_TRACK;

    } else if (value.len == 8
               && ngx_strncmp(value.data, "identify", 8) == 0)
    {
        *mode = NGX_HTTP_KONTEXT_MODE_IDENTIFY;
    }

    return NGX_OK;
}


ngx_http_kontext_ctx_t *
ngx_http_kontext_create_ctx(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf)
{
    ngx_pool_cleanup_t      *cln;
    ngx_http_cleanup_t      *hcln;
    ngx_http_kontext_ctx_t  *ctx;

    hcln = ngx_http_cleanup_add(r, 0);
    if (hcln == NULL) {
        return NULL;
    }

    cln = ngx_pool_cleanup_add(r->pool, 0);
    if (cln == NULL) {
        return NULL;
    }

    /* not of the pool, which would take another page for it */

    ctx = ngx_alloc(sizeof(ngx_http_kontext_ctx_t), r->connection->log);
    if (ctx == NULL) {
        return NULL;
    }

    ngx_memzero(ctx, sizeof(ngx_http_kontext_ctx_t));

    /*
     * set by ngx_memzero():
     *
     *     ctx->status = NGX_HTTP_KONTEXT_OFF;
     *     ctx->reason = KX_REASON_NONE;
     */

    ctx->request = r;
    ctx->conf = klcf;
    ctx->preload_time = NGX_CONF_UNSET_MSEC;
    ctx->hold_time = NGX_CONF_UNSET_MSEC;

    ctx->pool.alloc = ngx_http_kontext_alloc;
    ctx->pool.data = r->pool;

    hcln->handler = ngx_http_kontext_finalize;
    hcln->data = ctx;

    cln->handler = ngx_http_kontext_cleanup;
    cln->data = ctx;

    ngx_http_set_ctx(r, ctx, ngx_http_kontext_module);

    return ctx;
}


/* runs when the request is over, however it ended, and before it is logged */

static void
ngx_http_kontext_finalize(void *data)
{
    ngx_http_kontext_ctx_t  *ctx = data;

    ngx_http_kontext_end(ctx);

    if (ctx->api == NULL) {
        ngx_http_kontext_count_chat(ctx);
    }
}


static void
ngx_http_kontext_count_chat(ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_kontext_zone_t  *zone;

    zone = ngx_http_kontext_zone_of(ctx->conf);

    ngx_http_kontext_count(zone, chats[ctx->status], 1);

    if (ctx->reason != KX_REASON_NONE) {
        ngx_http_kontext_count(zone, reasons[ctx->reason], 1);
    }

    if (ctx->injected) {
        ngx_http_kontext_count(zone,
                               injected[ctx->answer.form == KX_FORM_TEXT], 1);
    }

    if (ctx->hold_time != NGX_CONF_UNSET_MSEC) {
        ngx_http_kontext_count(zone,
                               hold.buckets[kx_status_bucket(ctx->hold_time)],
                               1);
        ngx_http_kontext_count(zone, hold.sum, ctx->hold_time);
    }
}


/* marks the context among the cleanups of the pool, too, see above */

static void
ngx_http_kontext_cleanup(void *data)
{
    ngx_free(data);
}


static kx_reason_e
ngx_http_kontext_check_request(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf)
{
    ngx_str_t  value;

    static ngx_str_t  encoding = ngx_string("content-encoding");

    if (r->method != NGX_HTTP_POST) {
        return KX_REASON_METHOD;
    }

    if (r->headers_in.content_type == NULL
        || !ngx_http_kontext_is_json(&r->headers_in.content_type->value))
    {
        return KX_REASON_CONTENT_TYPE;
    }

    ngx_http_kontext_header(r, &encoding, &value);

    if (value.len
        && !(value.len == 8
             && ngx_strncasecmp(value.data, (u_char *) "identity", 8) == 0))
    {
        return KX_REASON_ENCODED_BODY;
    }

    if (r->headers_in.content_length_n > 0
        && (uint64_t) r->headers_in.content_length_n > klcf->max_body)
    {
        return KX_REASON_LARGE_BODY;
    }

    if (r->headers_in.content_length_n <= 0 && !r->headers_in.chunked) {
        return KX_REASON_NO_BODY;
    }

    return KX_REASON_NONE;
}


/* application/json or a +json type, with or without parameters */

ngx_uint_t
ngx_http_kontext_is_json(ngx_str_t *type)
{
    size_t   len;
    u_char  *p;

    p = ngx_strlchr(type->data, type->data + type->len, ';');
    len = p ? (size_t) (p - type->data) : type->len;

    while (len && (type->data[len - 1] == ' ' || type->data[len - 1] == '\t'))
    {
        len--;
    }

    if (len == sizeof("application/json") - 1
        && ngx_strncasecmp(type->data, (u_char *) "application/json", len)
           == 0)
    {
        return 1;
    }

    return len > 5
           && ngx_strncasecmp(type->data + len - 5, (u_char *) "+json", 5)
              == 0;
}


static void
ngx_http_kontext_body_handler(ngx_http_request_t *r)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ngx_http_kontext_get_ctx(r);

    ctx->body_done = 1;

    ngx_http_kontext_choose(ctx);

    if (ctx->identify) {

        /* whoever is to have the request depends on what it says */

        ngx_http_kontext_analyse(ctx);

        ctx->ended = 1;

        r->preserve_body = 1;
        r->write_event_handler = ngx_http_core_run_phases;

        ngx_http_core_run_phases(r);
        return;
    }

    if (ctx->conf->inject == NGX_HTTP_KONTEXT_INJECT_TEXT) {

        /* this one does come before the first token: the model must not see
           the ads of earlier turns */

        (void) ngx_http_kontext_retract(ctx);
    }

    r->preserve_body = 1;
    r->write_event_handler = ngx_http_core_run_phases;

    if (ngx_http_kontext_identity_encoding(r) != NGX_OK) {
        ngx_http_kontext_bypass(ctx, KX_REASON_NO_MEMORY);
        ngx_http_core_run_phases(r);
        return;
    }

    /*
     * The body is looked at when the request has been passed on, and either
     * the first bytes of the answer as well, or nothing came of it so far:
     * not even the time that takes may delay the first token.
     */

    ctx->analyse.handler = ngx_http_kontext_analyse_handler;
    ctx->analyse.data = ctx;
    ctx->analyse.log = r->connection->log;

    ngx_add_timer(&ctx->analyse, NGX_HTTP_KONTEXT_DEFER);

    ngx_http_core_run_phases(r);
}


/* the dialect: configured, or told by the path or a header */

static void
ngx_http_kontext_choose(ngx_http_kontext_ctx_t *ctx)
{
    ngx_str_t             value;
    ngx_http_request_t   *r;
    const kx_dialect_t   *dialect;
    const kx_dialect_t  **d;

    r = ctx->request;
    dialect = ctx->conf->format;

    if (dialect == NULL) {
        dialect = kx_dialect_by_path(&r->uri);
    }

    for (d = kx_dialects; *d && dialect == NULL; d++) {

        if ((*d)->header.len == 0) {
            continue;
        }

        value.len = 0;
        ngx_http_kontext_header(r, (ngx_str_t *) &(*d)->header, &value);

        if (value.len) {
            dialect = *d;
        }
    }

    if (dialect == NULL) {

        /* the body has to tell */

        ctx->guess = 1;
        return;
    }

    kx_conversation_init(&ctx->cv, dialect, &r->uri,
                         ngx_http_kontext_text_key(r), &ctx->pool);
}


/*
 * Asks the backend not to compress: RFC 9110, 12.5.3.  nginx itself may still
 * compress for the client, it looks at the element that is left aside.
 */

static ngx_int_t
ngx_http_kontext_identity_encoding(ngx_http_request_t *r)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h, *own;

    static ngx_str_t  name = ngx_string("accept-encoding");

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                break;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len != name.len
            || ngx_strncasecmp(h[i].key.data, name.data, name.len) != 0)
        {
            continue;
        }

#if (NGX_HTTP_GZIP || NGX_HTTP_HEADERS)

        if (r->headers_in.accept_encoding == &h[i]) {
            own = ngx_palloc(r->pool, sizeof(ngx_table_elt_t));
            if (own == NULL) {
                return NGX_ERROR;
            }

            *own = h[i];
            r->headers_in.accept_encoding = own;
        }

#endif

        ngx_str_set(&h[i].value, "identity");
    }

    return NGX_OK;
}


static void
ngx_http_kontext_analyse_handler(ngx_event_t *ev)
{
    ngx_connection_t        *c;
    ngx_http_request_t      *r;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ev->data;
    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    ngx_http_kontext_analyse(ctx);

    ngx_http_run_posted_requests(c);
}


void
ngx_http_kontext_analyse(ngx_http_kontext_ctx_t *ctx)
{
    kx_pool_t                  scratch;
    ngx_str_t                  body;
    ngx_pool_t                *pool;
    kx_reason_e                reason;
    ngx_http_request_t        *r;
    ngx_http_kontext_space_t   space;

    if (ctx->analysed || !ctx->body_done
        || ctx->status == NGX_HTTP_KONTEXT_BYPASS)
    {
        return;
    }

    r = ctx->request;

    ctx->analysed = 1;

    ngx_http_kontext_analyse_cancel(ctx);

    reason = ngx_http_kontext_read_body(ctx, ctx->conf->max_body, &body,
                                        &space);

    /* the texts are needed until the ad calls are written, and no longer */

    pool = NULL;

    if (reason == KX_REASON_NONE) {
        ctx->scratched = space.data ? body.len : 0;

        pool = ngx_create_pool(NGX_HTTP_KONTEXT_SCRATCH_POOL,
                               r->connection->log);
        if (pool == NULL) {
            reason = KX_REASON_NO_MEMORY;
        }
    }

    if (reason == KX_REASON_NONE) {
        ctx->scratch = pool;

        scratch.alloc = ngx_http_kontext_scratch_alloc;
        scratch.data = ctx;

        reason = ngx_http_kontext_understand(ctx, &body, &scratch);
    }

    if (ctx->identify) {

        /* that is all */

        if (reason == KX_REASON_NO_TOKEN) {
            reason = KX_REASON_NONE;
        }

    } else if (reason == KX_REASON_NONE && ctx->ended) {

        /* the answer was there before anything could be asked */

        reason = ctx->response ? ctx->response : KX_REASON_LATE;

    } else if (reason == KX_REASON_NONE) {
        reason = ngx_http_kontext_turn(ctx, pool);
    }

    if (ctx->fetch) {

        /* they are needed until the store has answered */

        ctx->fetch->space = space;

    } else {
        ngx_http_kontext_release_body(ctx, &space);

        if (pool) {
            ngx_destroy_pool(pool);
        }
    }

    /* nothing may look into the body any more */

    ctx->scratch = NULL;
    ctx->cv.scratch = NULL;
    ctx->cv.memos = NULL;
    ctx->cv.kept = NULL;
    ngx_memzero(&ctx->cv.first, sizeof(kx_str_t));

    if (reason == KX_REASON_BAD_BODY) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "kontext: the request body is not what its format "
                      "says, no ad is asked for");
    }

    if (reason != KX_REASON_NONE) {
        ngx_http_kontext_bypass(ctx, reason);
    }
}


/* the first bytes of the answer are on their way to the client */

void
ngx_http_kontext_analyse_post(ngx_http_kontext_ctx_t *ctx)
{
    if (ctx->analysed || !ctx->body_done) {
        return;
    }

    ngx_http_kontext_analyse_cancel(ctx);

    ngx_post_event(&ctx->analyse, &ngx_posted_events);
}


void
ngx_http_kontext_analyse_cancel(ngx_http_kontext_ctx_t *ctx)
{
    if (ctx->analyse.timer_set) {
        ngx_del_timer(&ctx->analyse);
    }

    if (ctx->analyse.posted) {
        ngx_delete_posted_event(&ctx->analyse);
    }
}


kx_reason_e
ngx_http_kontext_read_body(ngx_http_kontext_ctx_t *ctx, size_t max,
    ngx_str_t *body, ngx_http_kontext_space_t *space)
{
    off_t                size;
    u_char              *p;
    size_t               len;
    ngx_buf_t           *b;
    ngx_chain_t         *cl;
    ngx_http_request_t  *r;

    r = ctx->request;

    space->data = NULL;

    if (r->request_body == NULL || r->request_body->bufs == NULL) {
        return KX_REASON_NO_BODY;
    }

    size = 0;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        size += ngx_buf_size(cl->buf);
    }

    if (size == 0) {
        return KX_REASON_NO_BODY;
    }

    if ((uint64_t) size > max) {
        return KX_REASON_LARGE_BODY;
    }

    cl = r->request_body->bufs;

    if (cl->next == NULL && ngx_buf_in_memory(cl->buf)) {
        body->data = cl->buf->pos;
        body->len = cl->buf->last - cl->buf->pos;
        return KX_REASON_NONE;
    }

    if (ngx_http_kontext_space(ctx, space, (size_t) size) != NGX_OK) {
        return KX_REASON_NO_MEMORY;
    }

    p = space->data;

    for ( /* void */ ; cl; cl = cl->next) {
        b = cl->buf;

        if (ngx_buf_in_memory(b)) {
            p = ngx_cpymem(p, b->pos, b->last - b->pos);
            continue;
        }

        if (!b->in_file) {
            continue;
        }

        len = (size_t) (b->file_last - b->file_pos);

        if (ngx_read_file(b->file, p, len, b->file_pos) != (ssize_t) len) {
            return KX_REASON_NO_BODY;
        }

        p += len;
    }

    body->data = space->data;
    body->len = p - space->data;

    return KX_REASON_NONE;
}


/*
 * The pages of a large body would be given back and taken again for each
 * request: the worker has some that it keeps.
 */

static ngx_int_t
ngx_http_kontext_space(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_space_t *space, size_t size)
{
    ngx_http_kontext_space_t  *kept;

    kept = &ctx->conf->main->space;

    if (kept->data && kept->size >= size) {
        *space = *kept;
        kept->data = NULL;

        return NGX_OK;
    }

    space->data = ngx_alloc(size, ctx->request->connection->log);
    space->size = 0;

    return space->data ? NGX_OK : NGX_ERROR;
}


void
ngx_http_kontext_release_body(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_space_t *space)
{
    if (space->data == NULL) {
        return;
    }

    if (space->size) {
        ctx->conf->main->space.data = space->data;

    } else {
        ngx_free(space->data);
    }

    space->data = NULL;
}


static kx_reason_e
ngx_http_kontext_understand(ngx_http_kontext_ctx_t *ctx, ngx_str_t *body,
    kx_pool_t *scratch)
{
    kx_reason_e          reason;
    ngx_http_request_t  *r;
    const kx_dialect_t  *dialect;

    r = ctx->request;
    dialect = ctx->cv.dialect;

    if (dialect == NULL) {
        dialect = kx_dialect_by_body(&r->uri, body->data, body->len);

        if (dialect == NULL) {
            return KX_REASON_FORMAT;
        }

        kx_conversation_init(&ctx->cv, dialect, &r->uri,
                             ngx_http_kontext_text_key(r), &ctx->pool);
    }

    ctx->cv.scratch = scratch;
    ctx->cv.memos = ctx->conf->main->memos;

    reason = kx_conversation_scan(&ctx->cv, body->data, body->len);

    if (reason != KX_REASON_NONE) {
        return reason;
    }

    if (!ctx->cv.has_messages) {
        return KX_REASON_BAD_BODY;
    }

    ngx_log_debug4(NGX_LOG_DEBUG_HTTP, r->connection->log, 0,
                   "kontext %V request: %uD messages, user turn:%d stream:%d",
                   &dialect->name, ctx->cv.nhashes,
                   ctx->cv.user_turn, ctx->cv.stream);

    if (!ctx->cv.user_turn) {
        return KX_REASON_NO_USER_TURN;
    }

    if (ctx->cv.auxiliary) {
        return KX_REASON_AUXILIARY;
    }

    if (ctx->cv.json_mode) {
        return KX_REASON_JSON_MODE;
    }

    if (ctx->cv.forced_tools) {
        return KX_REASON_FORCED_TOOLS;
    }

    if (ngx_http_kontext_identify(ctx) != NGX_OK) {
        return KX_REASON_NO_MEMORY;
    }

    if (ngx_http_kontext_check_token(&ctx->token) != NGX_OK) {
        return KX_REASON_NO_TOKEN;
    }

    ctx->turn.zone = ngx_http_kontext_zone_get(r);
    ctx->turn.conf = ctx->conf;

    ngx_http_kontext_session_key(&ctx->turn, &ctx->token, &ctx->conversation,
                                 &ctx->user);
    ngx_http_kontext_store_key(&ctx->turn, &ctx->token, &ctx->conversation,
                               &ctx->user);

    return KX_REASON_NONE;
}


/* it becomes a header */

ngx_int_t
ngx_http_kontext_check_token(ngx_str_t *token)
{
    size_t  i;

    for (i = 0; i < token->len; i++) {
        if (token->data[i] < 0x20 || token->data[i] == 0x7f) {
            return NGX_DECLINED;
        }
    }

    return token->len ? NGX_OK : NGX_DECLINED;
}


/* who and which conversation, in the order of chat-apis.md 12 */

static ngx_int_t
ngx_http_kontext_identify(ngx_http_kontext_ctx_t *ctx)
{
    ngx_str_t           *name;
    kx_identity_t       *id;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (ngx_http_kontext_value(r, ctx->conf->token, &ctx->token) != NGX_OK
        || ngx_http_kontext_value(r, ctx->conf->label, &ctx->label) != NGX_OK
        || ngx_http_kontext_value(r, ctx->conf->theme, &ctx->theme) != NGX_OK
        || ngx_http_kontext_sdk_name(r, ctx->conf->sdk, &ctx->sdk_name)
           != NGX_OK
        || ngx_http_kontext_identity(r, ctx->conf->user_id,
                                     &ngx_http_kontext_user_header,
                                     &ctx->user)
           != NGX_OK
        || ngx_http_kontext_identity(r, ctx->conf->conversation_id,
                                     &ngx_http_kontext_chat_header,
                                     &ctx->conversation)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx->user.len == 0) {
        ctx->user = ctx->cv.user.value;
    }

    if (ctx->user.len == 0
        && ngx_http_kontext_weak_user(ctx) != NGX_OK)
    {
        return NGX_ERROR;
    }

    id = &ctx->cv.conversation;

    if (ctx->conversation.len == 0 && id->rank == KX_IDENTITY_NATIVE) {
        ctx->conversation = id->value;
    }

    if (ctx->conversation.len == 0 && ctx->cv.previous.len
        && ngx_http_kontext_session_previous(ctx, &ctx->cv.previous)
           == NGX_ERROR)
    {
        return NGX_ERROR;
    }

    if (ctx->conversation.len == 0 && id->rank <= KX_IDENTITY_SESSION) {
        ctx->conversation = id->value;
    }

    for (name = ngx_http_kontext_session_headers;
         name->len && ctx->conversation.len == 0;
         name++)
    {
        if (ngx_http_kontext_identity(r, NULL, name, &ctx->conversation)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    if (ctx->conversation.len == 0) {
        ctx->conversation = id->value;
    }

    if (ctx->conversation.len) {
        return NGX_OK;
    }

    ctx->conversation.data = ngx_pnalloc(r->pool, KX_MESSAGE_ID_LEN);
    if (ctx->conversation.data == NULL) {
        return NGX_ERROR;
    }

    ctx->conversation.len = KX_MESSAGE_ID_LEN;
    ctx->derived = 1;

    kx_conversation_derive(&ctx->cv, &ctx->user, ctx->conversation_digest);
    kx_conversation_id_write(ctx->conversation.data,
                             ctx->conversation_digest);

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_value(ngx_http_request_t *r, ngx_http_complex_value_t *cv,
    ngx_str_t *value)
{
    if (cv == NULL) {
        return NGX_OK;
    }

    return ngx_http_complex_value(r, cv, value);
}


/* a directive's value, or else a header's; one that is too long is none */

static ngx_int_t
ngx_http_kontext_identity(ngx_http_request_t *r, ngx_http_complex_value_t *cv,
    ngx_str_t *header, ngx_str_t *value)
{
    if (ngx_http_kontext_value(r, cv, value) != NGX_OK) {
        return NGX_ERROR;
    }

    if (value->len == 0 || value->len > KX_MAX_IDENTITY) {
        ngx_http_kontext_header(r, header, value);
    }

    if (value->len > KX_MAX_IDENTITY) {
        value->len = 0;
    }

    return NGX_OK;
}


/*
 * Nothing names the user: the credential and the address stand for it, behind
 * a keyed hash.  It does not outlive the zone, unless nodes have a secret in
 * common, and users who share both are one.
 */

static ngx_int_t
ngx_http_kontext_weak_user(ngx_http_kontext_ctx_t *ctx)
{
    u_char                          digest[KX_ID_LEN];
    kx_sip_t                        sip;
    ngx_str_t                      *name, value;
    ngx_http_request_t             *r;
    ngx_http_kontext_store_conf_t  *store;

    r = ctx->request;
    store = ctx->conf->store;

    kx_sip_init(&sip, (store && store->words.len)
                      ? store->secret + KX_SIP_KEY_LEN
                      : ngx_http_kontext_zone_key(r), 1);
    kx_sip_field(&sip, "weak user", 9);

    for (name = ngx_http_kontext_credentials; name->len; name++) {
        ngx_http_kontext_header(r, name, &value);
        kx_sip_field(&sip, value.data, value.len);
    }

    kx_sip_field(&sip, r->connection->addr_text.data,
                 r->connection->addr_text.len);
    kx_sip_final128(&sip, digest);

    ctx->user.data = ngx_pnalloc(r->pool, 4 + KX_BASE32_ID_LEN);
    if (ctx->user.data == NULL) {
        return NGX_ERROR;
    }

    ctx->user.len = 4 + KX_BASE32_ID_LEN;

    kx_base32_id(ngx_cpymem(ctx->user.data, "kxu_", 4), digest);

    return NGX_OK;
}


void *
ngx_http_kontext_alloc(void *data, size_t size)
{
    return ngx_palloc(data, size);
}


/* as much is kept while the store is asked, which is bounded */

static void *
ngx_http_kontext_scratch_alloc(void *data, size_t size)
{
    ngx_http_kontext_ctx_t *ctx = data;

    ctx->scratched += size;

    return ngx_palloc(ctx->scratch, size);
}
