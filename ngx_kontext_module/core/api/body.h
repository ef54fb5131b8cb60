/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the bodies of the session API have in common.  For core/api/ only.
 */


#ifndef _KX_API_BODY_H_INCLUDED_
#define _KX_API_BODY_H_INCLUDED_


#include "../api.h"
#include "../tree.h"


/*
 * Reads a body of at most max bytes into a tree, which the caller deletes
 * with cJSON_Delete(): any value, or an object.  NULL or the error; *root is
 * NULL after an error.
 */
const kx_api_error_t *kx_api_parse(cJSON **root, const unsigned char *body,
    size_t len, size_t max);
const kx_api_error_t *kx_api_parse_object(cJSON **root,
    const unsigned char *body, size_t len, size_t max);

/* Can a text of at most max bytes be an id?  None with U+FFFD in it can. */
unsigned kx_api_is_id(const char *s, size_t max);

/* Reads the id of a message, a string.  NULL or the error. */
const kx_api_error_t *kx_api_message_id(kx_str_t *id, const cJSON *item,
    const kx_pool_t *pool);

/* Copies len bytes into the pool.  NULL or kx_api_no_memory. */
const kx_api_error_t *kx_api_keep(kx_str_t *dst, const char *s, size_t len,
    const kx_pool_t *pool);

/* Add a member; object may be NULL.  KX_OK or KX_ERROR (no memory). */
int kx_api_add_text(cJSON *object, const char *name, const char *text);
int kx_api_add_uuid(cJSON *object, const char *name,
    const unsigned char *id);

/*
 * Prints a tree, which may be NULL, on one line without U+2028 and U+2029,
 * into the pool.  Empty: no memory.
 */
kx_str_t kx_api_print(const cJSON *root, const kx_pool_t *pool);

/*
 * Reads stored options into a tree, which the caller deletes.  NULL or the
 * error, and *options is NULL.
 */
const kx_api_error_t *kx_options_load(cJSON **options, const kx_str_t *text);

/* Moves the members of newer over those of older.  NULL or the error. */
const kx_api_error_t *kx_options_over(cJSON *older, cJSON *newer);


#endif /* _KX_API_BODY_H_INCLUDED_ */
