/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Sessions and their options (protocol.md 7, 10, 11).
 */


#include "body.h"

#include <limits.h>


/* what is said of a member of the options */

typedef enum {
    KX_OPTION_TEXT = 0,
    KX_OPTION_ID,                    /* a text that stands for something */
    KX_OPTION_TEXTS,
    KX_OPTION_BOOLEAN,
    KX_OPTION_BIT,
    KX_OPTION_INTEGERS,
    KX_OPTION_OBJECT
} kx_option_kind_e;


typedef struct kx_option_s  kx_option_t;

struct kx_option_s {
    const char               *name;
    kx_option_kind_e          kind;
    unsigned                  needed;
    const kx_option_t        *members;
};


static const kx_api_error_t *kx_api_only(const cJSON *root,
    const char *const *names, const kx_api_error_t *error);
static const kx_api_error_t *kx_api_session(kx_api_session_t *s,
    const cJSON *root, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_identity(kx_str_t *dst,
    const cJSON *root, const char *name, const kx_pool_t *pool);
static const kx_api_error_t *kx_options_write(kx_str_t *text,
    const cJSON *root, const kx_pool_t *pool);
static const kx_api_error_t *kx_options_take(cJSON *dst, const cJSON *root,
    const kx_option_t *members);
static const kx_api_error_t *kx_option_take(cJSON **value, const cJSON *item,
    const kx_option_t *option);
static const kx_api_error_t *kx_option_text(cJSON **value,
    const cJSON *item);
static const kx_api_error_t *kx_option_array(cJSON **value,
    const cJSON *item, unsigned integers);
static const kx_api_error_t *kx_option_object(cJSON **value,
    const cJSON *item, const kx_option_t *members);
static unsigned kx_option_integer(const cJSON *item);
static int kx_options_character(kx_character_t *c, const cJSON *item,
    const kx_pool_t *pool);
static int kx_options_regulatory(kx_regulatory_t *g, const cJSON *item,
    const kx_pool_t *pool);
static int kx_api_copy(kx_str_t *dst, const cJSON *item,
    const kx_pool_t *pool);


static const char *const  kx_api_session_names[] = {
    "userId", "conversationId", "character", "regulatory", "variantId",
    "userEmail", NULL
};

static const char *const  kx_api_patch_names[] = {
    "regulatory", "variantId", "userEmail", NULL
};

static const kx_option_t  kx_character_members[] = {
    { "id", KX_OPTION_ID, 1, NULL },
    { "name", KX_OPTION_TEXT, 1, NULL },
    { "avatarUrl", KX_OPTION_TEXT, 0, NULL },
    { "greeting", KX_OPTION_TEXT, 0, NULL },
    { "persona", KX_OPTION_TEXT, 0, NULL },
    { "tags", KX_OPTION_TEXTS, 0, NULL },
    { "isNsfw", KX_OPTION_BOOLEAN, 0, NULL },
    { NULL, KX_OPTION_TEXT, 0, NULL }
};

static const kx_option_t  kx_regulatory_members[] = {
    { "gdpr", KX_OPTION_BIT, 0, NULL },
    { "gdprConsent", KX_OPTION_TEXT, 0, NULL },
    { "coppa", KX_OPTION_BIT, 0, NULL },
    { "gpp", KX_OPTION_TEXT, 0, NULL },
    { "gppSid", KX_OPTION_INTEGERS, 0, NULL },
    { "usPrivacy", KX_OPTION_TEXT, 0, NULL },
    { NULL, KX_OPTION_TEXT, 0, NULL }
};

static const kx_option_t  kx_options_members[] = {
    { "character", KX_OPTION_OBJECT, 0, kx_character_members },
    { "regulatory", KX_OPTION_OBJECT, 0, kx_regulatory_members },
    { "variantId", KX_OPTION_TEXT, 0, NULL },
    { "userEmail", KX_OPTION_TEXT, 0, NULL },
    { NULL, KX_OPTION_TEXT, 0, NULL }
};


const kx_api_error_t *
kx_api_read_session(kx_api_session_t *s, const unsigned char *body,
    size_t len, const kx_pool_t *pool)
{
    cJSON                 *root;
    const kx_api_error_t  *error;

    memset(s, 0, sizeof(kx_api_session_t));

    error = kx_api_parse_object(&root, body, len, KX_API_MAX_BODY);

    if (error == NULL) {
        error = kx_api_session(s, root, pool);
    }

    cJSON_Delete(root);

    return error;
}


static const kx_api_error_t *
kx_api_session(kx_api_session_t *s, const cJSON *root, const kx_pool_t *pool)
{
    const kx_api_error_t  *error;

    error = kx_api_only(root, kx_api_session_names, &kx_api_unknown_member);

    if (error == NULL) {
        error = kx_api_identity(&s->user_id, root, "userId", pool);
    }

    if (error == NULL) {
        error = kx_api_identity(&s->conversation_id, root, "conversationId",
                                pool);
    }

    return error ? error : kx_options_write(&s->options, root, pool);
}


const kx_api_error_t *
kx_api_read_patch(kx_str_t *options, const unsigned char *body, size_t len,
    const kx_pool_t *pool)
{
    cJSON                 *root;
    const kx_api_error_t  *error;

    memset(options, 0, sizeof(kx_str_t));

    error = kx_api_parse_object(&root, body, len, KX_API_MAX_BODY);

    if (error == NULL) {
        error = kx_api_only(root, kx_api_patch_names, &kx_api_immutable);
    }

    if (error == NULL) {
        error = kx_options_write(options, root, pool);
    }

    cJSON_Delete(root);

    return error;
}


static const kx_api_error_t *
kx_api_identity(kx_str_t *dst, const cJSON *root, const char *name,
    const kx_pool_t *pool)
{
    const char   *s;
    const cJSON  *item;

    item = kx_tree_get(root, name);

    if (item == NULL) {
        return NULL;
    }

    s = cJSON_GetStringValue(item);

    if (s == NULL || !kx_api_is_id(s, KX_MAX_IDENTITY)) {
        return &kx_api_bad_member;
    }

    return kx_api_keep(dst, s, strlen(s), pool);
}


const kx_api_error_t *
kx_options_merge(kx_str_t *result, const kx_str_t *older,
    const kx_str_t *newer, const kx_pool_t *pool)
{
    cJSON                 *old, *new;
    const kx_api_error_t  *error;

    new = NULL;

    error = kx_options_load(&old, older);

    /* damage is not the caller's fault, and the new ones are good */

    if (error != NULL && error != &kx_api_no_memory) {
        old = cJSON_CreateObject();
        error = old ? NULL : &kx_api_no_memory;
    }

    if (error == NULL) {
        error = kx_options_load(&new, newer);
    }

    if (error == NULL) {
        error = kx_options_over(old, new);
    }

    if (error == NULL) {
        error = kx_options_write(result, old, pool);
    }

    cJSON_Delete(new);
    cJSON_Delete(old);

    return error;
}


/* newer loses what it has to older */

const kx_api_error_t *
kx_options_over(cJSON *older, cJSON *newer)
{
    cJSON              *item, *former;
    const kx_option_t  *option;

    for (option = kx_options_members; option->name != NULL; option++) {
        item = cJSON_DetachItemFromObjectCaseSensitive(newer, option->name);

        if (item == NULL) {
            continue;
        }

        former = cJSON_DetachItemFromObjectCaseSensitive(older, option->name);

        if (former != NULL && option->members == kx_character_members
            && !cJSON_Compare(former, item, 1))
        {
            cJSON_Delete(former);
            cJSON_Delete(item);

            return &kx_api_immutable;
        }

        cJSON_Delete(former);

        if (!cJSON_AddItemToObject(older, option->name, item)) {
            cJSON_Delete(item);
            return &kx_api_no_memory;
        }
    }

    return NULL;
}


/* the options among the members of root; it has others, too */

static const kx_api_error_t *
kx_options_write(kx_str_t *text, const cJSON *root, const kx_pool_t *pool)
{
    cJSON                 *options;
    const kx_api_error_t  *error;

    options = cJSON_CreateObject();

    error = kx_options_take(options, root, kx_options_members);

    if (error == NULL) {
        *text = kx_api_print(options, pool);

        if (text->len == 0) {
            error = &kx_api_no_memory;

        } else if (text->len > KX_API_MAX_OPTIONS) {
            error = &kx_api_too_large;
        }
    }

    cJSON_Delete(options);

    return error;
}


/* reads what kx_options_write() has written, or something else */

const kx_api_error_t *
kx_options_load(cJSON **options, const kx_str_t *text)
{
    cJSON                 *root;
    const kx_api_error_t  *error;

    *options = NULL;

    if (text->len == 0) {
        *options = cJSON_CreateObject();
        return *options ? NULL : &kx_api_no_memory;
    }

    error = kx_api_parse_object(&root, text->data, text->len,
                                KX_API_MAX_OPTIONS);
    if (error != NULL) {
        return error;
    }

    *options = cJSON_CreateObject();

    error = kx_options_take(*options, root, kx_options_members);

    if (error != NULL) {
        cJSON_Delete(*options);
        *options = NULL;
    }

    cJSON_Delete(root);

    return error;
}


/* dst may be NULL: there was no memory for it */

static const kx_api_error_t *
kx_options_take(cJSON *dst, const cJSON *root, const kx_option_t *members)
{
    cJSON                 *value;
    const cJSON           *item;
    const kx_option_t     *option;
    const kx_api_error_t  *error;

    if (dst == NULL) {
        return &kx_api_no_memory;
    }

    for (option = members; option->name != NULL; option++) {
        item = kx_tree_get(root, option->name);

        if (item == NULL) {

            if (option->needed) {
                return &kx_api_missing_member;
            }

            continue;
        }

        if (option->needed && cJSON_IsString(item)
            && item->valuestring[0] == '\0')
        {
            return &kx_api_bad_member;
        }

        error = kx_option_take(&value, item, option);

        if (error != NULL) {
            return error;
        }

        if (!cJSON_AddItemToObject(dst, option->name, value)) {
            cJSON_Delete(value);
            return &kx_api_no_memory;
        }
    }

    return NULL;
}


/* *value is NULL after an error */

static const kx_api_error_t *
kx_option_take(cJSON **value, const cJSON *item, const kx_option_t *option)
{
    *value = NULL;

    switch (option->kind) {

    case KX_OPTION_ID:
        if (!cJSON_IsString(item)
            || !kx_api_is_id(item->valuestring, KX_API_MAX_OPTIONS))
        {
            return &kx_api_bad_member;
        }

        return kx_option_text(value, item);

    case KX_OPTION_TEXT:
        return kx_option_text(value, item);

    case KX_OPTION_TEXTS:
        return kx_option_array(value, item, 0);

    case KX_OPTION_INTEGERS:
        return kx_option_array(value, item, 1);

    case KX_OPTION_OBJECT:
        return kx_option_object(value, item, option->members);

    case KX_OPTION_BOOLEAN:
        if (!cJSON_IsBool(item)) {
            return &kx_api_bad_member;
        }

        *value = cJSON_CreateBool(cJSON_IsTrue(item));

        break;

    case KX_OPTION_BIT:
        if (!kx_option_integer(item) || item->valueint > 1) {
            return &kx_api_bad_member;
        }

        *value = cJSON_CreateNumber(item->valueint);
    }

    return *value ? NULL : &kx_api_no_memory;
}


static const kx_api_error_t *
kx_option_text(cJSON **value, const cJSON *item)
{
    if (!cJSON_IsString(item)) {
        return &kx_api_bad_member;
    }

    *value = cJSON_CreateString(item->valuestring);

    return *value ? NULL : &kx_api_no_memory;
}


static const kx_api_error_t *
kx_option_array(cJSON **value, const cJSON *item, unsigned integers)
{
    cJSON                 *array, *copy;
    const cJSON           *element;
    const kx_api_error_t  *error;

    if (!cJSON_IsArray(item)) {
        return &kx_api_bad_member;
    }

    array = cJSON_CreateArray();
    error = array ? NULL : &kx_api_no_memory;

    cJSON_ArrayForEach(element, item) {

        if (error != NULL) {
            break;
        }

        copy = NULL;

        if (!integers) {

            if (cJSON_IsString(element) && element->valuestring[0] == '\0') {
                continue;
            }

            error = kx_option_text(&copy, element);

        } else if (!kx_option_integer(element)) {
            error = &kx_api_bad_member;

        } else {
            copy = cJSON_CreateNumber(element->valueint);
            error = copy ? NULL : &kx_api_no_memory;
        }

        if (copy != NULL) {
            cJSON_AddItemToArray(array, copy);
        }
    }

    if (error != NULL) {
        cJSON_Delete(array);
        array = NULL;
    }

    *value = array;

    return error;
}


static const kx_api_error_t *
kx_option_object(cJSON **value, const cJSON *item,
    const kx_option_t *members)
{
    cJSON                 *object;
    const cJSON           *member;
    const kx_option_t     *option;
    const kx_api_error_t  *error;

    if (!cJSON_IsObject(item)) {
        return &kx_api_bad_member;
    }

    cJSON_ArrayForEach(member, item) {

        for (option = members; option->name != NULL; option++) {
            if (strcmp(option->name, member->string) == 0) {
                break;
            }
        }

        if (option->name == NULL) {
            return &kx_api_unknown_member;
        }
    }

    object = cJSON_CreateObject();

    error = kx_options_take(object, item, members);

    if (error != NULL) {
        cJSON_Delete(object);
        object = NULL;
    }

    *value = object;

    return error;
}


/* one that an int holds, not below zero */

static unsigned
kx_option_integer(const cJSON *item)
{
    double  n;

    if (!cJSON_IsNumber(item)) {
        return 0;
    }

    n = item->valuedouble;

    return n >= 0 && n <= INT_MAX && n == (double) (int) n;
}


int
kx_options_apply(kx_ad_request_t *ar, const kx_str_t *options,
    const kx_pool_t *pool)
{
    int               rc;
    cJSON            *root;
    kx_ad_request_t   next;

    if (options->len == 0) {
        return KX_OK;
    }

    if (kx_options_load(&root, options) != NULL) {
        return KX_ERROR;
    }

    next = *ar;

    rc = kx_options_character(&next.character,
                              kx_tree_get(root, "character"), pool);

    if (rc == KX_OK) {
        rc = kx_options_regulatory(&next.regulatory,
                                   kx_tree_get(root, "regulatory"), pool);
    }

    if (rc == KX_OK) {
        rc = kx_api_copy(&next.variant_id, kx_tree_get(root, "variantId"),
                         pool);
    }

    if (rc == KX_OK) {
        rc = kx_api_copy(&next.user_email, kx_tree_get(root, "userEmail"),
                         pool);
    }

    cJSON_Delete(root);

    if (rc == KX_OK) {
        *ar = next;
    }

    return rc;
}


static int
kx_options_character(kx_character_t *c, const cJSON *item,
    const kx_pool_t *pool)
{
    const cJSON  *tags, *tag, *nsfw;

    if (item == NULL) {
        return KX_OK;
    }

    /* one character, not parts of two */

    memset(c, 0, sizeof(kx_character_t));

    nsfw = kx_tree_get(item, "isNsfw");
    c->nsfw = nsfw ? (cJSON_IsTrue(nsfw) != 0) : -1;

    if (kx_api_copy(&c->id, kx_tree_get(item, "id"), pool) != KX_OK
        || kx_api_copy(&c->name, kx_tree_get(item, "name"), pool) != KX_OK
        || kx_api_copy(&c->avatar_url, kx_tree_get(item, "avatarUrl"), pool)
           != KX_OK
        || kx_api_copy(&c->greeting, kx_tree_get(item, "greeting"), pool)
           != KX_OK
        || kx_api_copy(&c->persona, kx_tree_get(item, "persona"), pool)
           != KX_OK)
    {
        return KX_ERROR;
    }

    tags = kx_tree_get(item, "tags");

    if (tags == NULL) {
        return KX_OK;
    }

    c->has_tags = 1;

    if (tags->child == NULL) {
        return KX_OK;
    }

    c->tags = pool->alloc(pool->data, (size_t) cJSON_GetArraySize(tags)
                                      * sizeof(kx_str_t));
    if (c->tags == NULL) {
        return KX_ERROR;
    }

    cJSON_ArrayForEach(tag, tags) {
        if (kx_api_copy(&c->tags[c->ntags++], tag, pool) != KX_OK) {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


static int
kx_options_regulatory(kx_regulatory_t *g, const cJSON *item,
    const kx_pool_t *pool)
{
    const cJSON  *value, *sid;

    value = kx_tree_get(item, "gdpr");

    if (value != NULL) {
        g->gdpr = value->valueint;
    }

    value = kx_tree_get(item, "coppa");

    if (value != NULL) {
        g->coppa = value->valueint;
    }

    if (kx_api_copy(&g->gdpr_consent, kx_tree_get(item, "gdprConsent"), pool)
        != KX_OK
        || kx_api_copy(&g->gpp, kx_tree_get(item, "gpp"), pool) != KX_OK
        || kx_api_copy(&g->us_privacy, kx_tree_get(item, "usPrivacy"), pool)
           != KX_OK)
    {
        return KX_ERROR;
    }

    value = kx_tree_get(item, "gppSid");

    if (value == NULL) {
        return KX_OK;
    }

    g->has_gpp_sid = 1;
    g->ngpp_sid = 0;

    if (value->child == NULL) {
        return KX_OK;
    }

    g->gpp_sid = pool->alloc(pool->data, (size_t) cJSON_GetArraySize(value)
                                         * sizeof(int));
    if (g->gpp_sid == NULL) {
        return KX_ERROR;
    }

    cJSON_ArrayForEach(sid, value) {
        g->gpp_sid[g->ngpp_sid++] = sid->valueint;
    }

    return KX_OK;
}


static const kx_api_error_t *
kx_api_only(const cJSON *root, const char *const *names,
    const kx_api_error_t *error)
{
    unsigned      i;
    const cJSON  *item;

    cJSON_ArrayForEach(item, root) {

        for (i = 0; names[i] != NULL; i++) {
            if (strcmp(names[i], item->string) == 0) {
                break;
            }
        }

        if (names[i] == NULL) {
            return error;
        }
    }

    return NULL;
}


/* item is a string or NULL; dst stays as it was then */

static int
kx_api_copy(kx_str_t *dst, const cJSON *item, const kx_pool_t *pool)
{
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL) {
        return KX_OK;
    }

    return kx_api_keep(dst, s, strlen(s), pool) ? KX_ERROR : KX_OK;
}
