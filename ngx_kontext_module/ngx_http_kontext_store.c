/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What other machines know of a session, and are told of it: records in a
 * store, read and written by GET, PUT and DELETE of an internal location.
 * Nothing here is waited for by a chat, but for the end of its answer, and
 * that no longer than for an ad: without the store a node works as if it were
 * alone.
 */


#include "ngx_http_kontext.h"


#define NGX_HTTP_KONTEXT_STORE_TIMEOUT  500     /* ms */
#define NGX_HTTP_KONTEXT_STORE_CALLS    1024    /* of a worker */

/* bytes of requests that a worker keeps while the store is asked */
#define NGX_HTTP_KONTEXT_STORE_KEPT     67108864

/* s: memcached takes larger ones for a date */
#define NGX_HTTP_KONTEXT_STORE_EXPTIME  2592000

#define NGX_HTTP_KONTEXT_STORE_KEY      (4 + KX_BASE32_ID_LEN)


static char *ngx_http_kontext_store_param(ngx_conf_t *cf,
    ngx_http_kontext_store_conf_t *store, ngx_str_t *value);
static ngx_http_kontext_call_t *ngx_http_kontext_store_call(
    ngx_http_request_t *r, ngx_http_kontext_turn_t *turn, ngx_uint_t method);
static ngx_http_kontext_call_t *ngx_http_kontext_store_late_call(
    ngx_http_request_t *r, ngx_http_kontext_turn_t *turn, ngx_uint_t method,
    ngx_http_kontext_call_handler_pt handler);
static ngx_int_t ngx_http_kontext_store_send(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_store_over(ngx_http_kontext_call_t *call);
static ngx_int_t ngx_http_kontext_store_record(ngx_http_kontext_call_t *call,
    ngx_http_kontext_turn_t *turn, kx_record_t *record);
static void ngx_http_kontext_store_fetched(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_store_resume(ngx_event_t *ev);
static void ngx_http_kontext_store_compared(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_store_put(ngx_http_kontext_call_t *from,
    ngx_http_kontext_turn_t *turn, kx_record_t *record);
static void ngx_http_kontext_store_written(ngx_http_kontext_call_t *call);
static void ngx_http_kontext_store_deleted(ngx_http_kontext_call_t *call);


/* of this worker, under way */

static ngx_uint_t  ngx_http_kontext_store_calls;
static size_t      ngx_http_kontext_store_kept;


char *
ngx_http_kontext_store(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_kontext_loc_conf_t *klcf = conf;

    char                           *rv;
    ngx_str_t                      *value;
    ngx_uint_t                      i;
    kx_sha256_t                     sha;
    ngx_http_kontext_store_conf_t  *store;

    if (klcf->store != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (cf->args->nelts == 2
        && value[1].len == 3 && ngx_strncmp(value[1].data, "off", 3) == 0)
    {
        klcf->store = NULL;
        return NGX_CONF_OK;
    }

    if (value[1].len < 2 || value[1].data[0] != '/') {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\" in \"kontext_store\", it "
                           "must be the prefix of an internal location, such "
                           "as \"/kontext_store\", or \"off\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    store = ngx_pcalloc(cf->pool, sizeof(ngx_http_kontext_store_conf_t));
    if (store == NULL) {
        return NGX_CONF_ERROR;
    }

    store->uri = value[1];
    store->timeout = NGX_HTTP_KONTEXT_STORE_TIMEOUT;

    store->breaker.failures = 50;
    store->breaker.min = 10;
    store->breaker.window = 10000;
    store->breaker.probe = 1000;

    klcf->store = store;

    rv = NGX_CONF_OK;

    for (i = 2; i < cf->args->nelts && rv == NGX_CONF_OK; i++) {
        rv = ngx_http_kontext_store_param(cf, store, &value[i]);
    }

    store->breaker.stall = store->timeout;

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-store-secret-1", 17);
    kx_sha256_field(&sha, store->words.data, store->words.len);
    kx_sha256_final(&sha, store->secret);

    return rv;
}


static char *
ngx_http_kontext_store_param(ngx_conf_t *cf,
    ngx_http_kontext_store_conf_t *store, ngx_str_t *value)
{
    ngx_str_t  s;

    if (ngx_strncmp(value->data, "timeout=", 8) == 0) {

        s.data = value->data + 8;
        s.len = value->len - 8;

        store->timeout = ngx_parse_time(&s, 0);

        if (store->timeout == (ngx_msec_t) NGX_ERROR || store->timeout == 0
            || store->timeout > 10000)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid time \"%V\" in \"kontext_store\", "
                               "write such as \"timeout=500ms\", 10s at most",
                               &s);
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value->data, "secret=", 7) == 0) {

        store->words.data = value->data + 7;
        store->words.len = value->len - 7;

        if (store->words.len < 16) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "the secret in \"kontext_store\" is too short, "
                               "it must have at least 16 characters, the same "
                               "on each node, such as what \"openssl rand "
                               "-hex 16\" prints");
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid parameter \"%V\" in \"kontext_store\", it "
                       "must be \"timeout=time\" or \"secret=text\"", value);

    return NGX_CONF_ERROR;
}


/* no node has a key of its own in it, and nobody's name can be read in it */

void
ngx_http_kontext_store_key(ngx_http_kontext_turn_t *turn, ngx_str_t *token,
    ngx_str_t *conversation, ngx_str_t *user)
{
    u_char                          digest[KX_SHA256_LEN];
    kx_sha256_t                     sha;
    ngx_http_kontext_store_conf_t  *store;

    store = turn->conf->store;

    turn->shared = (store != NULL);

    if (store == NULL) {
        return;
    }

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-store-key-1", 14);
    kx_sha256_field(&sha, store->secret, KX_SHA256_LEN);
    kx_sha256_field(&sha, token->data, token->len);
    kx_sha256_field(&sha, conversation->data, conversation->len);
    kx_sha256_final(&sha, digest);

    ngx_memcpy(turn->store_key, digest, KX_ID_LEN);

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-store-user-1", 15);
    kx_sha256_field(&sha, store->secret, KX_SHA256_LEN);
    kx_sha256_field(&sha, token->data, token->len);
    kx_sha256_field(&sha, user->data, user->len);
    kx_sha256_final(&sha, digest);

    ngx_memcpy(&turn->store_user, digest, sizeof(uint64_t));
}


/* a call of the location, not yet sent; NULL: there shall be none */

static ngx_http_kontext_call_t *
ngx_http_kontext_store_call(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn, ngx_uint_t method)
{
    u_char                         *p;
    ngx_uint_t                      n;
    ngx_http_kontext_call_t        *call;
    ngx_http_kontext_store_conf_t  *store;

    if (ngx_http_kontext_store_calls >= NGX_HTTP_KONTEXT_STORE_CALLS
        || !ngx_http_kontext_breaker_store(turn->conf))
    {
        ngx_http_kontext_count(turn->zone, records.refused, 1);
        return NULL;
    }

    call = ngx_http_kontext_call_create(r, turn->conf,
                                        NGX_HTTP_KONTEXT_CALL_STORE);
    if (call == NULL) {
        return NULL;
    }

    store = turn->conf->store;

    n = ngx_min((turn->zone->idle + 999) / 1000,
                NGX_HTTP_KONTEXT_STORE_EXPTIME);

    p = ngx_pnalloc(call->request->pool,
                    sizeof("key=&exptime=") - 1 + NGX_HTTP_KONTEXT_STORE_KEY
                    + NGX_INT_T_LEN);
    if (p == NULL) {
        ngx_http_kontext_call_cancel(call);
        return NULL;
    }

    call->args.data = p;

    p = ngx_cpymem(p, "key=kxs_", sizeof("key=kxs_") - 1);
    p = kx_base32_id(p, turn->store_key);

    if (method == NGX_HTTP_PUT) {
        p = ngx_sprintf(p, "&exptime=%ui", n);
    }

    call->args.len = p - call->args.data;

    call->uri = store->uri;
    call->method = method;
    call->timeout = store->timeout;
    call->max = KX_RECORD_MAX;

    return call;
}


/* one that no request waits for: its data is the turn */

static ngx_http_kontext_call_t *
ngx_http_kontext_store_late_call(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn, ngx_uint_t method,
    ngx_http_kontext_call_handler_pt handler)
{
    ngx_http_kontext_call_t  *call;
    ngx_http_kontext_turn_t  *copy;

    call = ngx_http_kontext_store_call(r, turn, method);
    if (call == NULL) {
        return NULL;
    }

    copy = ngx_palloc(call->request->pool, sizeof(ngx_http_kontext_turn_t));
    if (copy == NULL) {
        ngx_http_kontext_call_cancel(call);
        return NULL;
    }

    *copy = *turn;

    call->data_of = copy;
    call->handler = handler;

    return call;
}


static ngx_int_t
ngx_http_kontext_store_send(ngx_http_kontext_call_t *call)
{
    if (ngx_http_kontext_call_launch(call) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_kontext_store_calls++;

    return NGX_OK;
}


static void
ngx_http_kontext_store_over(ngx_http_kontext_call_t *call)
{
    ngx_http_kontext_store_calls--;
}


/*
 * What a GET has brought.  NGX_OK, NGX_DECLINED: there is none, NGX_ABORT: it
 * cannot be read, or NGX_ERROR: there was no answer.
 */

static ngx_int_t
ngx_http_kontext_store_record(ngx_http_kontext_call_t *call,
    ngx_http_kontext_turn_t *turn, kx_record_t *record)
{
    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, call->request->connection->log, 0,
                   "kontext store: status:%ui, %uz bytes",
                   call->status, call->len);

    if (call->status == NGX_HTTP_NOT_FOUND) {
        return NGX_DECLINED;
    }

    if (call->status != NGX_HTTP_OK) {
        return NGX_ERROR;
    }

    if (kx_record_decode(record, call->data, call->len, turn->store_key,
                         turn->conf->store->secret,
                         ngx_http_kontext_wall())
        != KX_OK)
    {
        return NGX_ABORT;
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_kontext_store_fetch(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_fetch_t *fetch)
{
    ngx_http_kontext_call_t  *call;

    if (ctx->scratched > NGX_HTTP_KONTEXT_STORE_KEPT
                         - ngx_http_kontext_store_kept)
    {
        ngx_http_kontext_count(ctx->turn.zone, records.refused, 1);
        return NGX_DECLINED;
    }

    call = ngx_http_kontext_store_call(ctx->request, &ctx->turn,
                                       NGX_HTTP_GET);
    if (call == NULL) {
        return NGX_DECLINED;
    }

    call->handler = ngx_http_kontext_store_fetched;
    call->data_of = fetch;

    if (ngx_http_kontext_store_send(call) != NGX_OK) {
        return NGX_DECLINED;
    }

    fetch->ctx = ctx;
    fetch->call = call;
    fetch->found = 0;
    fetch->kept = ctx->scratched;

    ngx_http_kontext_store_kept += fetch->kept;

    ctx->fetch = fetch;

    return NGX_OK;
}


static void
ngx_http_kontext_store_fetched(ngx_http_kontext_call_t *call)
{
    ngx_http_kontext_ctx_t    *ctx;
    ngx_http_kontext_zone_t   *zone;
    ngx_http_kontext_fetch_t  *fetch;

    ngx_http_kontext_store_over(call);

    fetch = call->data_of;
    ctx = fetch->ctx;
    zone = ctx->turn.zone;

    fetch->call = NULL;

    switch (ngx_http_kontext_store_record(call, &ctx->turn, &fetch->record)) {

    case NGX_OK:
        fetch->found = 1;
        ngx_http_kontext_count(zone, records.found, 1);
        break;

    case NGX_DECLINED:
        ngx_http_kontext_count(zone, records.missing, 1);
        break;

    case NGX_ABORT:
        ngx_http_kontext_count(zone, records.unreadable, 1);
        break;

    default: /* NGX_ERROR */
        ngx_http_kontext_count(zone, records.fetch_failed, 1);
        break;
    }

    /* not here: the caller is in the middle of another request */

    ctx->analyse.handler = ngx_http_kontext_store_resume;

    ngx_post_event(&ctx->analyse, &ngx_posted_events);
}


static void
ngx_http_kontext_store_resume(ngx_event_t *ev)
{
    ngx_connection_t        *c;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = ev->data;
    c = ctx->request->connection;

    ngx_http_set_log_request(c->log, ctx->request);

    ngx_http_kontext_turn_resume(ctx);

    ngx_http_run_posted_requests(c);
}


void
ngx_http_kontext_store_leave(ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_kontext_fetch_t  *fetch;

    fetch = ctx->fetch;
    ctx->fetch = NULL;

    if (fetch->call) {
        ngx_http_kontext_store_over(fetch->call);
        ngx_http_kontext_call_cancel(fetch->call);
    }

    ngx_http_kontext_store_kept -= fetch->kept;

    ngx_http_kontext_release_body(ctx, &fetch->space);

    ngx_destroy_pool(fetch->pool);
}


/*
 * What is there is read once more: another node may have had a turn of the
 * conversation meanwhile.
 */

void
ngx_http_kontext_store_save(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn)
{
    ngx_http_kontext_call_t  *call;

    if (!turn->shared) {
        return;
    }

    call = ngx_http_kontext_store_late_call(r, turn, NGX_HTTP_GET,
                                            ngx_http_kontext_store_compared);
    if (call) {
        (void) ngx_http_kontext_store_send(call);
    }
}


static void
ngx_http_kontext_store_compared(ngx_http_kontext_call_t *call)
{
    ngx_uint_t                found;
    kx_record_t               record;
    ngx_http_kontext_turn_t  *turn;

    ngx_http_kontext_store_over(call);

    turn = call->data_of;

    found = (ngx_http_kontext_store_record(call, turn, &record) == NGX_OK);

    /* a store that does not answer would not take it either */

    if (!found && call->status == 0) {
        ngx_http_kontext_count(turn->zone, records.save_failed, 1);
        return;
    }

    if (ngx_http_kontext_session_share(turn, &record, found) == NGX_OK) {
        ngx_http_kontext_store_put(call, turn, &record);
    }
}


static void
ngx_http_kontext_store_put(ngx_http_kontext_call_t *from,
    ngx_http_kontext_turn_t *turn, kx_record_t *record)
{
    u_char                   *p;
    ngx_http_kontext_call_t  *call;

    call = ngx_http_kontext_store_late_call(from->request, turn, NGX_HTTP_PUT,
                                            ngx_http_kontext_store_written);
    if (call == NULL) {
        return;
    }

    p = ngx_pnalloc(call->request->pool, KX_RECORD_MAX);
    if (p == NULL) {
        ngx_http_kontext_call_cancel(call);
        return;
    }

    call->body.data = p;
    call->body.len = kx_record_encode(p, record, turn->store_key,
                                      turn->conf->store->secret)
                     - p;

    (void) ngx_http_kontext_store_send(call);
}


static void
ngx_http_kontext_store_written(ngx_http_kontext_call_t *call)
{
    ngx_http_kontext_turn_t  *turn;

    ngx_http_kontext_store_over(call);

    turn = call->data_of;

    if (call->status >= NGX_HTTP_OK
        && call->status < NGX_HTTP_SPECIAL_RESPONSE)
    {
        ngx_http_kontext_count(turn->zone, records.saved, 1);
        ngx_http_kontext_count(turn->zone, records.bytes, call->body.len);

    } else {
        ngx_http_kontext_count(turn->zone, records.save_failed, 1);
    }
}


void
ngx_http_kontext_store_delete(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn)
{
    ngx_http_kontext_call_t  *call;

    if (!turn->shared) {
        return;
    }

    call = ngx_http_kontext_store_late_call(r, turn, NGX_HTTP_DELETE,
                                            ngx_http_kontext_store_deleted);
    if (call) {
        (void) ngx_http_kontext_store_send(call);
    }
}


static void
ngx_http_kontext_store_deleted(ngx_http_kontext_call_t *call)
{
    ngx_http_kontext_turn_t  *turn;

    ngx_http_kontext_store_over(call);

    turn = call->data_of;

    if (call->status == NGX_HTTP_NOT_FOUND
        || (call->status >= NGX_HTTP_OK
            && call->status < NGX_HTTP_SPECIAL_RESPONSE))
    {
        ngx_http_kontext_count(turn->zone, records.deleted, 1);

    } else {
        ngx_http_kontext_count(turn->zone, records.save_failed, 1);
    }
}
