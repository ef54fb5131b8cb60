/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Events (protocol.md 9).
 */


#include "body.h"
#include "../hash.h"

#include <math.h>


/* the longest escape of a byte is \u0001 */

#define KX_API_MAX_ESCAPE     6


/* a member of the payload of an event */

typedef struct {
    const char               *name;
    unsigned                  needed;
    const char               *missing;       /* what it is then */
} kx_event_member_t;


typedef struct {
    kx_str_t                  name;
    unsigned                  needs_bid;
    unsigned                  has_revenue;
    kx_event_member_t         members[7];
} kx_event_rule_t;


static const kx_api_error_t *kx_api_take_event(kx_api_event_t *e,
    const cJSON *root, const kx_pool_t *pool);
static const kx_event_rule_t *kx_event_rule(const char *name, size_t len);
static const kx_api_error_t *kx_api_event_ids(kx_api_event_t *e,
    const cJSON *root, const cJSON *source, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_payload(cJSON *payload,
    const kx_api_event_t *e, const kx_event_rule_t *rule,
    const cJSON *source);
static int kx_api_payload_again(cJSON *payload, const kx_api_event_t *e,
    const kx_event_rule_t *rule, cJSON *source, double revenue);
static int kx_api_add_revenue(cJSON *payload, double revenue);
static kx_str_t kx_api_envelope(cJSON *payload, const char *name,
    const kx_str_t *code, const kx_pool_t *pool);


static const kx_event_rule_t  kx_event_rules[] = {

    { kx_string("ad.error"), 0, 0,
      { { "message", 0, "Ad error" }, { "errCode", 0, "unknown" } } },

    { kx_string("ad.render-started"), 1, 0, { { "bidId", 1, NULL } } },

    { kx_string("ad.render-completed"), 1, 0, { { "bidId", 1, NULL } } },

    { kx_string("ad.viewed"), 1, 1,
      { { "bidId", 1, NULL }, { "messageId", 0, NULL },
        { "content", 1, NULL }, { "format", 1, NULL } } },

    { kx_string("ad.clicked"), 1, 0,
      { { "bidId", 1, NULL }, { "messageId", 0, NULL },
        { "content", 1, NULL }, { "url", 1, NULL },
        { "format", 1, NULL }, { "area", 1, NULL } } },

    { kx_string("video.started"), 1, 0, { { "bidId", 1, NULL } } },

    { kx_string("video.completed"), 1, 0, { { "bidId", 1, NULL } } },

    { kx_string("reward.granted"), 1, 0, { { "bidId", 1, NULL } } },

    { { 0, NULL }, 0, 0, { { NULL, 0, NULL } } }
};


const kx_api_error_t *
kx_api_read_event(kx_api_event_t *e, const unsigned char *body, size_t len,
    const kx_pool_t *pool)
{
    cJSON                 *root;
    const kx_api_error_t  *error;

    memset(e, 0, sizeof(kx_api_event_t));

    error = kx_api_parse_object(&root, body, len, KX_API_MAX_BODY);

    if (error == NULL) {
        error = kx_api_take_event(e, root, pool);
    }

    cJSON_Delete(root);

    return error;
}


static const kx_api_error_t *
kx_api_take_event(kx_api_event_t *e, const cJSON *root,
    const kx_pool_t *pool)
{
    cJSON                  *payload;
    const char             *name;
    const cJSON            *source;
    const kx_api_error_t   *error;
    const kx_event_rule_t  *rule;

    name = cJSON_GetStringValue(kx_tree_get(root, "name"));

    if (name == NULL) {
        return &kx_api_bad_event;
    }

    rule = kx_event_rule(name, strlen(name));

    if (rule == NULL) {
        return &kx_api_bad_event;
    }

    e->name = rule->name;

    source = kx_tree_get(root, "payload");

    if (source == NULL) {
        source = root;

    } else if (!cJSON_IsObject(source)) {
        return &kx_api_bad_event;
    }

    error = kx_api_event_ids(e, root, source, pool);

    if (error != NULL) {
        return error;
    }

    if (rule->needs_bid && !e->has_bid) {
        return &kx_api_bad_event;
    }

    payload = cJSON_CreateObject();

    error = kx_api_payload(payload, e, rule, source);

    if (error == NULL) {
        e->payload = kx_api_print(payload, pool);

        if (e->payload.len == 0) {
            error = &kx_api_no_memory;

        } else if (e->payload.len > KX_API_MAX_PAYLOAD) {
            error = &kx_api_too_large;
        }
    }

    cJSON_Delete(payload);

    return error;
}


static const kx_event_rule_t *
kx_event_rule(const char *name, size_t len)
{
    const kx_event_rule_t  *rule;

    for (rule = kx_event_rules; rule->name.len != 0; rule++) {
        if (rule->name.len == len && !memcmp(rule->name.data, name, len)) {
            return rule;
        }
    }

    return NULL;
}


static const kx_api_error_t *
kx_api_event_ids(kx_api_event_t *e, const cJSON *root, const cJSON *source,
    const kx_pool_t *pool)
{
    const char            *s;
    const cJSON           *item;
    const kx_api_error_t  *error;

    item = kx_tree_get(source, "bidId");

    if (item == NULL) {
        item = kx_tree_get(source, "id");
    }

    if (item != NULL) {
        s = cJSON_GetStringValue(item);

        if (s == NULL
            || kx_uuid_parse(e->bid, (const unsigned char *) s, strlen(s))
               != KX_OK)
        {
            return &kx_api_bad_event;
        }

        e->has_bid = 1;
    }

    /* an empty string is how some say that they have none */

    item = kx_tree_get(source, "messageId");
    s = cJSON_GetStringValue(item);

    if (item != NULL && (s == NULL || *s != '\0')) {
        error = kx_api_message_id(&e->message_id, item, pool);

        if (error != NULL) {
            return (error == &kx_api_no_memory) ? error : &kx_api_bad_event;
        }
    }

    item = kx_tree_get(root, "code");
    s = cJSON_GetStringValue(item);

    if (item == NULL || (s != NULL && *s == '\0')) {
        return NULL;
    }

    if (s == NULL || !kx_api_is_id(s, KX_MAX_CODE)) {
        return &kx_api_bad_event;
    }

    return kx_api_keep(&e->code, s, strlen(s), pool);
}


static const kx_api_error_t *
kx_api_payload(cJSON *payload, const kx_api_event_t *e,
    const kx_event_rule_t *rule, const cJSON *source)
{
    int                       rc;
    const char               *s;
    const cJSON              *item;
    const kx_event_member_t  *member;

    for (member = rule->members; member->name != NULL; member++) {

        if (strcmp(member->name, "bidId") == 0) {
            rc = kx_api_add_uuid(payload, member->name, e->bid);

        } else if (strcmp(member->name, "messageId") == 0) {
            rc = e->message_id.len
                     ? kx_tree_add(payload, member->name, &e->message_id,
                                   KX_API_MAX_MESSAGE_ID)
                     : KX_OK;

        } else {
            item = kx_tree_get(source, member->name);
            s = cJSON_GetStringValue(item);

            if (s == NULL && (item != NULL || member->needed)) {
                return &kx_api_bad_event;
            }

            if (member->missing != NULL && (s == NULL || *s == '\0')) {
                s = member->missing;
            }

            rc = KX_OK;

            if (cJSON_AddStringToObject(payload, member->name, s) == NULL) {
                rc = KX_ERROR;
            }
        }

        if (rc != KX_OK) {
            return &kx_api_no_memory;
        }
    }

    return NULL;
}


kx_str_t
kx_api_event(const kx_api_event_t *e, double revenue, const kx_pool_t *pool)
{
    cJSON                  *payload, *source;
    kx_str_t                s = { 0, NULL };
    const kx_event_rule_t  *rule;

    rule = kx_event_rule((char *) e->name.data, e->name.len);

    if (rule == NULL
        || kx_tree_read(&source, e->payload.data, e->payload.len, 0) != KX_OK)
    {
        return s;
    }

    payload = cJSON_CreateObject();

    if (kx_api_payload_again(payload, e, rule, source, revenue) != KX_OK) {
        cJSON_Delete(payload);
        payload = NULL;
    }

    cJSON_Delete(source);

    return kx_api_envelope(payload, (char *) rule->name.data, &e->code, pool);
}


/* with what the ad server and the session know of the ad */

static int
kx_api_payload_again(cJSON *payload, const kx_api_event_t *e,
    const kx_event_rule_t *rule, cJSON *source, double revenue)
{
    cJSON                    *item;
    const kx_event_member_t  *member;

    for (member = rule->members; member->name != NULL; member++) {
        item = cJSON_DetachItemFromObjectCaseSensitive(source, member->name);

        if (item != NULL) {

            if (!cJSON_AddItemToObject(payload, member->name, item)) {
                cJSON_Delete(item);
                return KX_ERROR;
            }

            continue;
        }

        if (strcmp(member->name, "messageId") != 0 || e->message_id.len == 0
            || e->payload.len + sizeof(",\"messageId\":\"\"") - 1
               + e->message_id.len * KX_API_MAX_ESCAPE > KX_API_MAX_PAYLOAD)
        {
            continue;
        }

        if (kx_tree_add(payload, member->name, &e->message_id,
                        KX_API_MAX_MESSAGE_ID)
            != KX_OK)
        {
            return KX_ERROR;
        }
    }

    return rule->has_revenue ? kx_api_add_revenue(payload, revenue) : KX_OK;
}


/* cJSON would print null for a number that is not finite */

static int
kx_api_add_revenue(cJSON *payload, double revenue)
{
    if (!isfinite(revenue) || revenue < 0) {
        return KX_OK;
    }

    return cJSON_AddNumberToObject(payload, "revenue", revenue) ? KX_OK
                                                                : KX_ERROR;
}


kx_str_t
kx_api_event_filled(const unsigned char bid[KX_ID_LEN], const kx_str_t *code,
    double revenue, const kx_pool_t *pool)
{
    cJSON  *payload;

    payload = cJSON_CreateObject();

    if (kx_api_add_uuid(payload, "bidId", bid) != KX_OK
        || kx_tree_add(payload, "code", code, KX_MAX_CODE) != KX_OK
        || kx_api_add_revenue(payload, revenue) != KX_OK)
    {
        cJSON_Delete(payload);
        payload = NULL;
    }

    return kx_api_envelope(payload, "ad.filled", code, pool);
}


kx_str_t
kx_api_event_no_fill(const char *skip_code, const kx_pool_t *pool)
{
    cJSON  *payload;

    payload = cJSON_CreateObject();

    if (kx_api_add_text(payload, "skipCode", skip_code) != KX_OK) {
        cJSON_Delete(payload);
        payload = NULL;
    }

    return kx_api_envelope(payload, "ad.no-fill", NULL, pool);
}


kx_str_t
kx_api_event_error(const char *err_code, const char *message,
    const kx_pool_t *pool)
{
    cJSON  *payload;

    payload = cJSON_CreateObject();

    if (kx_api_add_text(payload, "message", message) != KX_OK
        || kx_api_add_text(payload, "errCode", err_code) != KX_OK)
    {
        cJSON_Delete(payload);
        payload = NULL;
    }

    return kx_api_envelope(payload, "ad.error", NULL, pool);
}


/* payload is taken, it is NULL when there was no memory for it */

static kx_str_t
kx_api_envelope(cJSON *payload, const char *name, const kx_str_t *code,
    const kx_pool_t *pool)
{
    cJSON     *root;
    kx_str_t   s = { 0, NULL };

    root = cJSON_CreateObject();

    if (payload == NULL
        || cJSON_AddStringToObject(root, "name", name) == NULL
        || (code != NULL && code->len != 0
            && kx_tree_add(root, "code", code, KX_MAX_CODE) != KX_OK)
        || !cJSON_AddItemToObject(root, "payload", payload))
    {
        cJSON_Delete(payload);

    } else {
        s = kx_api_print(root, pool);
    }

    cJSON_Delete(root);

    return s;
}
