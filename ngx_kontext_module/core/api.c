/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "api.h"
#include "hash.h"
#include "tree.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>


#define KX_API_MAX_TEXT       1024   /* bytes of a short text of our own */

#define KX_API_SAFE_INTEGER   9007199254740991.0     /* 2^53 - 1 */
#define KX_API_LAST_TIME      253402300799999LL      /* the end of 9999 */
#define KX_API_DAY            86400000LL
#define KX_API_1970           2440588                /* as a Julian day */

#define KX_API_ID_PREFIX      "kxs_"
#define KX_API_ID_BYTES       (4 + KX_ID_LEN)
#define KX_API_ID_DOMAIN      "ngx_kontext session id 1"

#define KX_API_LINE_END_LEN   3      /* U+2028 and U+2029, as \u2028 6 */

/* the longest escape of a byte is \u0001 */

#define KX_API_MAX_ESCAPE     6


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


static const kx_api_error_t *kx_api_parse(cJSON **root,
    const unsigned char *body, size_t len, size_t max);
static const kx_api_error_t *kx_api_parse_object(cJSON **root,
    const unsigned char *body, size_t len, size_t max);
static const kx_api_error_t *kx_api_only(const cJSON *root,
    const char *const *names, const kx_api_error_t *error);
static const kx_api_error_t *kx_api_session(kx_api_session_t *s,
    const cJSON *root, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_identity(kx_str_t *dst,
    const cJSON *root, const char *name, const kx_pool_t *pool);
static unsigned kx_api_is_id(const char *s, size_t max);

static const kx_api_error_t *kx_options_write(kx_str_t *text,
    const cJSON *root, const kx_pool_t *pool);
static const kx_api_error_t *kx_options_load(cJSON **options,
    const kx_str_t *text);
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
static const kx_api_error_t *kx_options_over(cJSON *older, cJSON *newer);
static int kx_options_character(kx_character_t *c, const cJSON *item,
    const kx_pool_t *pool);
static int kx_options_regulatory(kx_regulatory_t *g, const cJSON *item,
    const kx_pool_t *pool);

static const kx_api_error_t *kx_api_messages(kx_api_message_t **messages,
    unsigned *n, const cJSON *root, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_message_whole(const cJSON *item);
static const kx_api_error_t *kx_api_message(kx_api_message_t *m,
    const cJSON *item, unsigned track_only, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_message_id(kx_str_t *id,
    const cJSON *item, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_role(kx_role_e *role, const cJSON *item);
static const kx_api_error_t *kx_api_content(kx_str_t *content,
    const cJSON *item, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_track_only(unsigned *track_only,
    const cJSON *item);
static const kx_api_error_t *kx_api_created(uint64_t *ms, const cJSON *item);
static int kx_api_time(int64_t *ms, const char *s);
static const char *kx_api_date(int64_t *ms, const char *p);
static const char *kx_api_clock(int64_t *ms, const char *p);
static const char *kx_api_offset(int64_t *ms, const char *p);
static const char *kx_api_digits(int64_t *value, const char *p, unsigned n,
    int64_t min, int64_t max);

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

static int kx_api_state(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_who(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_flags(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_options(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_messages(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_ads(cJSON *root, const kx_api_state_t *s);
static int kx_api_state_ad(cJSON *ads, const kx_ad_t *ad);
static int kx_api_add_text(cJSON *object, const char *name,
    const char *text);
static int kx_api_add_uuid(cJSON *object, const char *name,
    const unsigned char *id);
static int kx_api_add_time(cJSON *object, const char *name, uint64_t ms);

static const kx_api_error_t *kx_api_keep(kx_str_t *dst, const char *s,
    size_t len, const kx_pool_t *pool);
static int kx_api_copy(kx_str_t *dst, const cJSON *item,
    const kx_pool_t *pool);
static kx_str_t kx_api_print(const cJSON *root, const kx_pool_t *pool);
static unsigned kx_api_line_end(const char *p);
static uint32_t kx_api_id_mask(const unsigned char id[KX_ID_LEN],
    const unsigned char *key);


const kx_api_error_t  kx_api_bad_json = {
    400, kx_string("bad_json"),
    kx_string("The body is not what is read here: send one JSON object (or "
              "an array of messages) in UTF-8, nested at most 32 deep.")
};

const kx_api_error_t  kx_api_bad_member = {
    400, kx_string("bad_member"),
    kx_string("A member has the wrong type or length: send userId, "
              "conversationId and message ids as strings of 1 to 256 bytes, "
              "texts as strings, and the others as they are documented.")
};

const kx_api_error_t  kx_api_unknown_member = {
    400, kx_string("unknown_member"),
    kx_string("There is a member that is not known: send userId, "
              "conversationId, character, regulatory, variantId and "
              "userEmail only.")
};

const kx_api_error_t  kx_api_missing_member = {
    400, kx_string("missing_member"),
    kx_string("A member is missing: send userId and conversationId of a "
              "session, id and name of a character, and id, role and content "
              "of each message, of which there must be one.")
};

const kx_api_error_t  kx_api_bad_role = {
    400, kx_string("bad_role"),
    kx_string("The role of a message is not known: send \"user\" or "
              "\"assistant\", and leave all other messages out.")
};

const kx_api_error_t  kx_api_bad_time = {
    400, kx_string("bad_time"),
    kx_string("createdAt is not a time: send a string like "
              "\"2026-01-31T09:08:07.123Z\" or milliseconds since 1970.")
};

const kx_api_error_t  kx_api_bad_event = {
    400, kx_string("bad_event"),
    kx_string("The event is not known or not complete: send its name and, in "
              "payload, the bid's UUID as bidId; ad.viewed needs content and "
              "format, too, ad.clicked content, url, format and area.")
};

const kx_api_error_t  kx_api_forbidden_user = {
    403, kx_string("forbidden_user"),
    kx_string("The userId is not that of the user who calls: send the one "
              "that the server knows the user by, or none.")
};

const kx_api_error_t  kx_api_unknown_path = {
    404, kx_string("unknown_path"),
    kx_string("There is nothing at this path: send calls to /sessions, "
              "/sessions/{id} or its /messages, /events and "
              "/ads/{messageId}.")
};

const kx_api_error_t  kx_api_unknown_session = {
    404, kx_string("unknown_session"),
    kx_string("There is no such session, or it is closed: send POST "
              "/sessions to get a new one.")
};

const kx_api_error_t  kx_api_unknown_ad = {
    404, kx_string("unknown_ad"),
    kx_string("The session has no ad with this bid: send the bidId of an ad "
              "that it was given.")
};

const kx_api_error_t  kx_api_no_ad = {
    404, kx_string("no_ad"),
    kx_string("The message has no ad, or not yet: wait for the event "
              "ad.filled, or send the id of an assistant message.")
};

const kx_api_error_t  kx_api_bad_method = {
    405, kx_string("bad_method"),
    kx_string("The method is not for this path: send one of those in the "
              "header Allow.")
};

const kx_api_error_t  kx_api_immutable = {
    409, kx_string("immutable"),
    kx_string("A member cannot be changed while the session lives: send "
              "regulatory, variantId and userEmail only, or close the "
              "session and start another.")
};

const kx_api_error_t  kx_api_too_large = {
    413, kx_string("too_large"),
    kx_string("That is too much: send at most 262144 bytes at once, 8192 of "
              "options and 3584 of an event's payload.")
};

const kx_api_error_t  kx_api_media_type = {
    415, kx_string("media_type"),
    kx_string("The body is not said to be JSON: send it with Content-Type: "
              "application/json and without Content-Encoding.")
};

const kx_api_error_t  kx_api_too_many_streams = {
    503, kx_string("too_many_streams"),
    kx_string("There are too many event streams: close one, or send the "
              "call again later.")
};

const kx_api_error_t  kx_api_no_room = {
    503, kx_string("no_room"),
    kx_string("There is no room for more in the memory of the sessions: send "
              "less, or send the call again later.")
};

const kx_api_error_t  kx_api_no_memory = {
    500, kx_string("no_memory"),
    kx_string("The server has no memory for this call: send it again later.")
};


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


static const char  kx_api_base32[] = "abcdefghijklmnopqrstuvwxyz234567";


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


/* *root is NULL after an error */

static const kx_api_error_t *
kx_api_parse(cJSON **root, const unsigned char *body, size_t len, size_t max)
{
    *root = NULL;

    if (len > max) {
        return &kx_api_too_large;
    }

    switch (kx_tree_read(root, body, len, 0)) {

    case KX_OK:
        return NULL;

    case KX_DECLINED:
        return &kx_api_bad_json;

    default:
        return &kx_api_no_memory;
    }
}


static const kx_api_error_t *
kx_api_parse_object(cJSON **root, const unsigned char *body, size_t len,
    size_t max)
{
    const kx_api_error_t  *error;

    error = kx_api_parse(root, body, len, max);

    if (error == NULL && !cJSON_IsObject(*root)) {
        cJSON_Delete(*root);
        *root = NULL;

        return &kx_api_bad_json;
    }

    return error;
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


/*
 * A text in which something had to be replaced might be that of another who
 * had something else there.
 */

static unsigned
kx_api_is_id(const char *s, size_t max)
{
    size_t  len;

    len = strlen(s);

    return len > 0 && len <= max && strstr(s, KX_TREE_REPLACED) == NULL;
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

static const kx_api_error_t *
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

static const kx_api_error_t *
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

        error = kx_option_take(&value, item, option);

        if (error != NULL) {
            return error;
        }

        if (value == NULL) {

            if (option->needed) {
                return &kx_api_bad_member;
            }

            continue;
        }

        if (!cJSON_AddItemToObject(dst, option->name, value)) {
            cJSON_Delete(value);
            return &kx_api_no_memory;
        }
    }

    return NULL;
}


/* *value is NULL after an error, and for what is empty */

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

    if (item->valuestring[0] == '\0') {
        return NULL;
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

    if (error != NULL || array->child == NULL) {
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
    const kx_api_error_t  *error;

    if (!cJSON_IsObject(item)) {
        return &kx_api_bad_member;
    }

    object = cJSON_CreateObject();

    error = kx_options_take(object, item, members);

    if (error != NULL || object->child == NULL) {
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

    g->gpp_sid = pool->alloc(pool->data, (size_t) cJSON_GetArraySize(value)
                                         * sizeof(int));
    if (g->gpp_sid == NULL) {
        return KX_ERROR;
    }

    g->ngpp_sid = 0;

    cJSON_ArrayForEach(sid, value) {
        g->gpp_sid[g->ngpp_sid++] = sid->valueint;
    }

    return KX_OK;
}


const kx_api_error_t *
kx_api_read_messages(kx_api_message_t **messages, unsigned *n,
    const unsigned char *body, size_t len, const kx_pool_t *pool)
{
    cJSON                 *root;
    const kx_api_error_t  *error;

    *messages = NULL;
    *n = 0;

    error = kx_api_parse(&root, body, len, KX_API_MAX_BODY);

    if (error == NULL) {
        error = kx_api_messages(messages, n, root, pool);
    }

    cJSON_Delete(root);

    return error;
}


static const kx_api_error_t *
kx_api_messages(kx_api_message_t **messages, unsigned *n, const cJSON *root,
    const kx_pool_t *pool)
{
    unsigned               count, i, track_only;
    const cJSON           *item, *list, *first;
    kx_api_message_t      *m;
    const kx_api_error_t  *error;

    track_only = 0;
    list = cJSON_IsArray(root) ? root : kx_tree_get(root, "messages");

    if (list != NULL && list != root) {
        error = kx_api_track_only(&track_only, root);

        if (error != NULL) {
            return error;
        }

        if (!cJSON_IsArray(list)) {
            return &kx_api_bad_member;
        }
    }

    /* one message is a list of itself */

    first = list ? list->child : root;
    count = 0;

    for (item = first; item != NULL; item = item->next) {
        error = kx_api_message_whole(item);

        if (error != NULL) {
            return error;
        }

        count++;
    }

    if (count == 0) {
        return &kx_api_missing_member;
    }

    /* that of a few bytes of the body for each */

    m = pool->alloc(pool->data, count * sizeof(kx_api_message_t));
    if (m == NULL) {
        return &kx_api_no_memory;
    }

    for (i = 0, item = first; i < count; i++, item = item->next) {
        error = kx_api_message(&m[i], item, track_only, pool);

        if (error != NULL) {
            return error;
        }
    }

    *messages = m;
    *n = count;

    return NULL;
}


static const kx_api_error_t *
kx_api_message_whole(const cJSON *item)
{
    if (!cJSON_IsObject(item)) {
        return &kx_api_bad_member;
    }

    if (kx_tree_get(item, "id") == NULL
        || kx_tree_get(item, "role") == NULL
        || kx_tree_get(item, "content") == NULL)
    {
        return &kx_api_missing_member;
    }

    return NULL;
}


static const kx_api_error_t *
kx_api_message(kx_api_message_t *m, const cJSON *item, unsigned track_only,
    const kx_pool_t *pool)
{
    const kx_api_error_t  *error;

    memset(m, 0, sizeof(kx_api_message_t));

    error = kx_api_message_id(&m->message.id, kx_tree_get(item, "id"), pool);

    if (error == NULL) {
        error = kx_api_role(&m->message.role, kx_tree_get(item, "role"));
    }

    if (error == NULL) {
        error = kx_api_content(&m->message.content,
                               kx_tree_get(item, "content"), pool);
    }

    if (error == NULL) {
        error = kx_api_created(&m->message.created,
                               kx_tree_get(item, "createdAt"));
    }

    if (error == NULL) {
        m->track_only = track_only;
        error = kx_api_track_only(&m->track_only, item);
    }

    return error;
}


static const kx_api_error_t *
kx_api_message_id(kx_str_t *id, const cJSON *item, const kx_pool_t *pool)
{
    char         digits[32];
    double       n;
    const char  *s;

    if (cJSON_IsNumber(item)) {
        n = item->valuedouble;

        if (!(n >= -KX_API_SAFE_INTEGER && n <= KX_API_SAFE_INTEGER)
            || n != (double) (int64_t) n)
        {
            return &kx_api_bad_member;
        }

        s = digits;
        snprintf(digits, sizeof(digits), "%lld", (long long) n);

    } else {
        s = cJSON_GetStringValue(item);

        if (s == NULL || !kx_api_is_id(s, KX_API_MAX_MESSAGE_ID)) {
            return &kx_api_bad_member;
        }
    }

    return kx_api_keep(id, s, strlen(s), pool);
}


static const kx_api_error_t *
kx_api_role(kx_role_e *role, const cJSON *item)
{
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL) {
        return &kx_api_bad_role;
    }

    if (strcmp(s, "user") == 0) {
        *role = KX_ROLE_USER;
        return NULL;
    }

    if (strcmp(s, "assistant") == 0) {
        *role = KX_ROLE_ASSISTANT;
        return NULL;
    }

    return &kx_api_bad_role;
}


static const kx_api_error_t *
kx_api_content(kx_str_t *content, const cJSON *item, const kx_pool_t *pool)
{
    size_t       len;
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL) {
        return &kx_api_bad_member;
    }

    len = strlen(s);

    if (len > KX_MAX_CONTENT) {
        len = KX_MAX_CONTENT;

        while (len && ((unsigned char) s[len] & 0xc0) == 0x80) {
            len--;
        }
    }

    return kx_api_keep(content, s, len, pool);
}


/* leaves *track_only as it was when nothing is said */

static const kx_api_error_t *
kx_api_track_only(unsigned *track_only, const cJSON *item)
{
    const cJSON  *flag;

    flag = kx_tree_get(item, "trackOnly");

    if (flag == NULL) {
        return NULL;
    }

    if (!cJSON_IsBool(flag)) {
        return &kx_api_bad_member;
    }

    *track_only = (cJSON_IsTrue(flag) != 0);

    return NULL;
}


static const kx_api_error_t *
kx_api_created(uint64_t *ms, const cJSON *item)
{
    double       n;
    int64_t      when;
    const char  *s;

    if (item == NULL) {
        return NULL;
    }

    if (cJSON_IsNumber(item)) {
        n = item->valuedouble;

        if (!(n >= 0 && n < (double) (KX_API_LAST_TIME + 1))) {
            return &kx_api_bad_time;
        }

        *ms = (uint64_t) n;

        return NULL;
    }

    s = cJSON_GetStringValue(item);

    if (s == NULL || kx_api_time(&when, s) != KX_OK
        || when < 0 || when > KX_API_LAST_TIME)
    {
        return &kx_api_bad_time;
    }

    *ms = (uint64_t) when;

    return NULL;
}


/* RFC 3339, 5.6; KX_DECLINED: it is something else */

static int
kx_api_time(int64_t *ms, const char *s)
{
    const char  *p;

    *ms = 0;

    p = kx_api_date(ms, s);

    if (p == NULL || (*p != 'T' && *p != 't' && *p != ' ')) {
        return KX_DECLINED;
    }

    p = kx_api_clock(ms, p + 1);

    if (p == NULL) {
        return KX_DECLINED;
    }

    p = kx_api_offset(ms, p);

    return (p != NULL && *p == '\0') ? KX_OK : KX_DECLINED;
}


static const char *
kx_api_date(int64_t *ms, const char *p)
{
    int64_t  year, month, day, y, m, days;

    static const unsigned char  length[] = {
        31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31
    };

    p = kx_api_digits(&year, p, 4, 0, 9999);

    if (p == NULL || *p != '-') {
        return NULL;
    }

    p = kx_api_digits(&month, p + 1, 2, 1, 12);

    if (p == NULL || *p != '-') {
        return NULL;
    }

    days = length[month - 1];

    if (month == 2
        && ((year % 4 == 0 && year % 100 != 0) || year % 400 == 0))
    {
        days++;
    }

    p = kx_api_digits(&day, p + 1, 2, 1, days);

    /* years that start in March, from 4801 BC on */

    y = year + 4800 - (month < 3);
    m = (month + 9) % 12;

    days = day + (153 * m + 2) / 5 + 365 * y + y / 4 - y / 100 + y / 400
           - 32045;

    *ms += (days - KX_API_1970) * KX_API_DAY;

    return p;
}


static const char *
kx_api_clock(int64_t *ms, const char *p)
{
    int64_t  hour, minute, second, scale;

    p = kx_api_digits(&hour, p, 2, 0, 23);

    if (p == NULL || *p != ':') {
        return NULL;
    }

    p = kx_api_digits(&minute, p + 1, 2, 0, 59);

    if (p == NULL || *p != ':') {
        return NULL;
    }

    /* a leap second is the first one of the next minute */

    p = kx_api_digits(&second, p + 1, 2, 0, 60);

    if (p == NULL) {
        return NULL;
    }

    *ms += ((hour * 60 + minute) * 60 + second) * 1000;

    if (*p != '.') {
        return p;
    }

    p++;

    if (*p < '0' || *p > '9') {
        return NULL;
    }

    for (scale = 100; *p >= '0' && *p <= '9'; p++) {
        *ms += scale * (*p - '0');
        scale /= 10;
    }

    return p;
}


static const char *
kx_api_offset(int64_t *ms, const char *p)
{
    int64_t  hour, minute, sign;

    if (*p == 'Z' || *p == 'z') {
        return p + 1;
    }

    if (*p != '+' && *p != '-') {
        return NULL;
    }

    sign = (*p == '+') ? 1 : -1;

    p = kx_api_digits(&hour, p + 1, 2, 0, 23);

    if (p == NULL || *p != ':') {
        return NULL;
    }

    p = kx_api_digits(&minute, p + 1, 2, 0, 59);

    if (p != NULL) {
        *ms -= sign * (hour * 60 + minute) * 60000;
    }

    return p;
}


static const char *
kx_api_digits(int64_t *value, const char *p, unsigned n, int64_t min,
    int64_t max)
{
    *value = 0;

    for ( /* void */ ; n > 0; n--) {

        if (*p < '0' || *p > '9') {
            return NULL;
        }

        *value = *value * 10 + (*p++ - '0');
    }

    return (*value >= min && *value <= max) ? p : NULL;
}


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

    if (cJSON_AddBoolToObject(flags, "enabled", s->disabled == 0) == NULL
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
kx_api_add_text(cJSON *object, const char *name, const char *text)
{
    kx_str_t  s;

    s.len = strlen(text);
    s.data = (unsigned char *) text;

    return kx_tree_add(object, name, &s, KX_API_MAX_TEXT);
}


static int
kx_api_add_uuid(cJSON *object, const char *name, const unsigned char *id)
{
    kx_str_t       s;
    unsigned char  uuid[KX_UUID_LEN];

    s.data = uuid;
    s.len = (size_t) (kx_uuid_write(uuid, id) - uuid);

    return kx_tree_add(object, name, &s, KX_UUID_LEN);
}


static int
kx_api_add_time(cJSON *object, const char *name, uint64_t ms)
{
    char  text[32];

    kx_protocol_time(text, ms);

    return kx_api_add_text(object, name, text);
}


static const kx_api_error_t *
kx_api_keep(kx_str_t *dst, const char *s, size_t len, const kx_pool_t *pool)
{
    dst->data = pool->alloc(pool->data, len ? len : 1);
    if (dst->data == NULL) {
        return &kx_api_no_memory;
    }

    memcpy(dst->data, s, len);

    dst->len = len;

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


/*
 * On one line, also for those to whom U+2028 and U+2029 end one, which cJSON
 * leaves as they are.  Empty: no memory.
 */

static kx_str_t
kx_api_print(const cJSON *root, const kx_pool_t *pool)
{
    char           *text, *p;
    size_t          len;
    kx_str_t        s = { 0, NULL };
    unsigned char  *dst;

    text = cJSON_PrintUnformatted(root);
    if (text == NULL) {
        return s;
    }

    len = 0;

    for (p = text; *p != '\0'; p++) {
        len += kx_api_line_end(p) ? 1 + KX_API_LINE_END_LEN : 1;
    }

    dst = pool->alloc(pool->data, len);

    if (dst != NULL) {
        s.len = len;
        s.data = dst;

        for (p = text; *p != '\0'; p++) {

            if (kx_api_line_end(p)) {
                memcpy(dst, (p[2] == '\xa8') ? "\\u2028" : "\\u2029", 6);
                dst += 6;
                p += KX_API_LINE_END_LEN - 1;

            } else {
                *dst++ = (unsigned char) *p;
            }
        }
    }

    cJSON_free(text);

    return s;
}


static unsigned
kx_api_line_end(const char *p)
{
    return p[0] == '\xe2' && p[1] == '\x80'
           && (p[2] == '\xa8' || p[2] == '\xa9');
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
