/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Reading and writing of the bodies of the session API.
 */


#include "body.h"
#include "../hash.h"


#define KX_API_MAX_TEXT       1024   /* bytes of a short text of our own */
#define KX_API_LINE_END_LEN   3      /* U+2028 and U+2029, as \u2028 6 */


static unsigned kx_api_line_end(const char *p);


/* *root is NULL after an error */

const kx_api_error_t *
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


const kx_api_error_t *
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


/*
 * A text in which something had to be replaced might be that of another who
 * had something else there.
 */

unsigned
kx_api_is_id(const char *s, size_t max)
{
    size_t  len;

    len = strlen(s);

    return len > 0 && len <= max && strstr(s, KX_TREE_REPLACED) == NULL;
}


const kx_api_error_t *
kx_api_message_id(kx_str_t *id, const cJSON *item, const kx_pool_t *pool)
{
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL || !kx_api_is_id(s, KX_API_MAX_MESSAGE_ID)) {
        return &kx_api_bad_member;
    }

    return kx_api_keep(id, s, strlen(s), pool);
}


int
kx_api_add_text(cJSON *object, const char *name, const char *text)
{
    kx_str_t  s;

    s.len = strlen(text);
    s.data = (unsigned char *) text;

    return kx_tree_add(object, name, &s, KX_API_MAX_TEXT);
}


int
kx_api_add_uuid(cJSON *object, const char *name, const unsigned char *id)
{
    kx_str_t       s;
    unsigned char  uuid[KX_UUID_LEN];

    s.data = uuid;
    s.len = (size_t) (kx_uuid_write(uuid, id) - uuid);

    return kx_tree_add(object, name, &s, KX_UUID_LEN);
}


const kx_api_error_t *
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


/*
 * On one line, also for those to whom U+2028 and U+2029 end one, which cJSON
 * leaves as they are.  Empty: no memory.
 */

kx_str_t
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
