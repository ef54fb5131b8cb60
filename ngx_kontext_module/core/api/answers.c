/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the session API answers, and the ids of sessions.
 */


#include "body.h"
#include "../hash.h"


#define KX_API_MAX_TEXT       1024   /* bytes of a short text of our own */
#define KX_API_ID_PREFIX      "kxs_"
#define KX_API_ID_BYTES       (4 + KX_ID_LEN)
#define KX_API_ID_DOMAIN      "ngx_kontext session id 1"


static int kx_api_state(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_who(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_flags(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_options(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_messages(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_ads(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_ad(cJSON *ads, const kx_ad_t *ad);
static int kx_api_add_time(cJSON *object, const char *name, uint64_t ms);
static uint32_t kx_api_id_mask(const unsigned char id[KX_ID_LEN],
    const unsigned char *key);


static const char  kx_api_base32[] = "abcdefghijklmnopqrstuvwxyz234567";


kx_str_t
kx_api_write_state(const kx_api_state_t *state, const kx_pool_t *pool)
{
    cJSON     *root;
    kx_str_t   s = { 0, NULL };

    root = cJSON_CreateObject();

    if (kx_api_state(root, state) == KX_OK) {
        s = kx_api_print(root, pool);
    }

    cJSON_Delete(root);

    return s;
}


static int
kx_api_state(cJSON *root, const kx_api_state_t *s)
{
    if (kx_api_state_who(root, s) != KX_OK
        || kx_api_state_flags(root, s) != KX_OK
        || kx_api_state_options(root, s) != KX_OK
        || kx_api_state_messages(root, s) != KX_OK)
    {
        return KX_ERROR;
    }

    return kx_api_state_ads(root, s);
}


static int
kx_api_state_who(cJSON *root, const kx_api_state_t *s)
{
    if (kx_tree_add(root, "sessionId", &s->id, KX_API_ID_LEN) != KX_OK
        || kx_tree_add(root, "userId", &s->user_id, KX_API_MAX_TEXT) != KX_OK
        || kx_tree_add(root, "conversationId", &s->conversation_id,
                       KX_API_MAX_TEXT)
           != KX_OK
        || (s->has_server_id
            && kx_api_add_uuid(root, "serverSessionId", s->server_id)
               != KX_OK))
    {
        return KX_ERROR;
    }

    return kx_api_add_time(root, "createdAt", s->created);
}


static int
kx_api_state_flags(cJSON *root, const kx_api_state_t *s)
{
    cJSON     *flags;
    uint32_t   timeout;

    timeout = s->preload_timeout ? s->preload_timeout : KX_PRELOAD_TIMEOUT;

    if (cJSON_AddBoolToObject(root, "disabled", s->disabled != 0) == NULL
        || kx_api_add_text(root, "preload", s->preload) != KX_OK)
    {
        return KX_ERROR;
    }

    flags = cJSON_AddObjectToObject(root, "flags");

    if (cJSON_AddBoolToObject(flags, "enabled", s->enabled != 0) == NULL
        || cJSON_AddNumberToObject(flags, "preloadTimeout", timeout) == NULL
        || cJSON_AddBoolToObject(flags, "reportErrors", s->report_errors != 0)
           == NULL
        || cJSON_AddBoolToObject(flags, "reportDebug", s->report_debug != 0)
           == NULL
        || cJSON_AddBoolToObject(flags, "init", s->init != 0) == NULL)
    {
        return KX_ERROR;
    }

    return KX_OK;
}


static int
kx_api_state_options(cJSON *root, const kx_api_state_t *s)
{
    cJSON                 *options;
    const kx_api_error_t  *error;

    error = kx_options_load(&options, &s->options);

    /* damage: there are none */

    if (error != NULL) {
        return (error == &kx_api_no_memory) ? KX_ERROR : KX_OK;
    }

    error = kx_options_over(root, options);

    cJSON_Delete(options);

    return error ? KX_ERROR : KX_OK;
}


static int
kx_api_state_messages(cJSON *root, const kx_api_state_t *s)
{
    cJSON               *array, *item;
    unsigned             i;
    const kx_message_t  *m;

    array = cJSON_AddArrayToObject(root, "messages");
    if (array == NULL) {
        return KX_ERROR;
    }

    for (i = 0; i < s->nmessages; i++) {
        m = &s->messages[i];

        if (m->role != KX_ROLE_USER && m->role != KX_ROLE_ASSISTANT) {
            continue;
        }

        item = cJSON_CreateObject();

        if (!cJSON_AddItemToArray(array, item)) {
            return KX_ERROR;
        }

        if (kx_tree_add(item, "id", &m->id, KX_API_MAX_TEXT) != KX_OK
            || kx_api_add_text(item, "role",
                               (m->role == KX_ROLE_USER) ? "user"
                                                         : "assistant")
               != KX_OK
            || kx_api_add_time(item, "createdAt", m->created) != KX_OK)
        {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


static int
kx_api_state_ads(cJSON *root, const kx_api_state_t *s)
{
    cJSON     *ads;
    unsigned   i;

    ads = cJSON_AddObjectToObject(root, "ads");
    if (ads == NULL) {
        return KX_ERROR;
    }

    for (i = 0; i < s->nads; i++) {
        if (kx_api_state_ad(ads, &s->ads[i]) != KX_OK) {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


/* the form is that of the member: it is written and read again */

static int
kx_api_state_ad(cJSON *ads, const kx_ad_t *ad)
{
    int             rc;
    char           *id;
    cJSON          *member, *list;
    size_t          len;
    unsigned        cut;
    unsigned char  *buf, *last;

    buf = cJSON_malloc(KX_MAX_MEMBER);
    if (buf == NULL) {
        return KX_ERROR;
    }

    member = NULL;
    rc = KX_OK;

    last = kx_protocol_member(buf, buf + KX_MAX_MEMBER, ad);

    /* one that cannot be shown is none */

    if (last != NULL) {
        rc = kx_tree_read(&member, buf, (size_t) (last - buf), 1);
    }

    cJSON_free(buf);

    if (member == NULL) {
        return (rc == KX_ERROR) ? KX_ERROR : KX_OK;
    }

    list = cJSON_DetachItemFromObjectCaseSensitive(member, "ads");

    cJSON_Delete(member);

    id = kx_tree_text(&ad->message_id, KX_API_MAX_TEXT, &len, &cut);

    if (id == NULL) {
        cJSON_Delete(list);
        return KX_ERROR;
    }

    /* the newest of two */

    cJSON_DeleteItemFromObjectCaseSensitive(ads, id);

    if (!cJSON_AddItemToObject(ads, id, list)) {
        cJSON_Delete(list);
        rc = KX_ERROR;
    }

    cJSON_free(id);

    return rc;
}


kx_str_t
kx_api_write_error(const kx_api_error_t *e, const kx_pool_t *pool)
{
    cJSON     *root, *error;
    kx_str_t   s = { 0, NULL };

    root = cJSON_CreateObject();
    error = cJSON_AddObjectToObject(root, "error");

    if (kx_tree_add(error, "code", &e->code, KX_API_MAX_TEXT) != KX_OK
        || kx_tree_add(error, "message", &e->message, KX_API_MAX_TEXT)
           != KX_OK)
    {
        cJSON_Delete(root);
        return s;
    }

    s = kx_api_print(root, pool);

    cJSON_Delete(root);

    return s;
}


static int
kx_api_add_time(cJSON *object, const char *name, uint64_t ms)
{
    char  text[32];

    kx_protocol_time(text, ms);

    return kx_api_add_text(object, name, text);
}


void
kx_api_id_write(unsigned char *dst, uint32_t root,
    const unsigned char id[KX_ID_LEN], const unsigned char *key)
{
    unsigned       acc, bits, i;
    unsigned char  bytes[KX_API_ID_BYTES];

    root ^= kx_api_id_mask(id, key);

    for (i = 0; i < 4; i++) {
        bytes[i] = (unsigned char) (root >> (24 - 8 * i));
    }

    memcpy(bytes + 4, id, KX_ID_LEN);
    memcpy(dst, KX_API_ID_PREFIX, sizeof(KX_API_ID_PREFIX) - 1);

    dst += sizeof(KX_API_ID_PREFIX) - 1;

    acc = 0;
    bits = 0;

    /* five bytes are eight characters, nothing is left at the end */

    for (i = 0; i < KX_API_ID_BYTES; i++) {
        acc = (acc << 8 | bytes[i]) & 0xfff;
        bits += 8;

        while (bits >= 5) {
            bits -= 5;
            *dst++ = (unsigned char) kx_api_base32[(acc >> bits) & 31];
        }
    }
}


int
kx_api_id_read(uint32_t *root, unsigned char id[KX_ID_LEN],
    const kx_str_t *text, const unsigned char *key)
{
    size_t          prefix;
    unsigned        acc, bits, i, n;
    const char     *c;
    unsigned char   bytes[KX_API_ID_BYTES];

    prefix = sizeof(KX_API_ID_PREFIX) - 1;

    if (text->len != KX_API_ID_LEN
        || memcmp(text->data, KX_API_ID_PREFIX, prefix) != 0)
    {
        return KX_DECLINED;
    }

    acc = 0;
    bits = 0;
    n = 0;

    for (i = (unsigned) prefix; i < KX_API_ID_LEN; i++) {
        c = memchr(kx_api_base32, text->data[i], sizeof(kx_api_base32) - 1);

        if (c == NULL) {
            return KX_DECLINED;
        }

        acc = (acc << 5 | (unsigned) (c - kx_api_base32)) & 0xfff;
        bits += 5;

        if (bits >= 8) {
            bits -= 8;
            bytes[n++] = (unsigned char) (acc >> bits);
        }
    }

    memcpy(id, bytes + 4, KX_ID_LEN);

    *root = ((uint32_t) bytes[0] << 24 | (uint32_t) bytes[1] << 16
             | (uint32_t) bytes[2] << 8 | bytes[3])
            ^ kx_api_id_mask(id, key);

    return KX_OK;
}


static uint32_t
kx_api_id_mask(const unsigned char id[KX_ID_LEN], const unsigned char *key)
{
    kx_sip_t  h;

    kx_sip_init(&h, key, 0);
    kx_sip_field(&h, KX_API_ID_DOMAIN, sizeof(KX_API_ID_DOMAIN) - 1);
    kx_sip_field(&h, id, KX_ID_LEN);

    return (uint32_t) kx_sip_final64(&h);
}
