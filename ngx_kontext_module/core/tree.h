/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * JSON bodies as trees of cJSON, with what cJSON leaves to its caller: texts
 * that are not UTF-8, zero bytes in them, depth, and whether a text was bad
 * or there was no memory.  All memory here is cJSON's.
 */


#ifndef _KX_TREE_H_INCLUDED_
#define _KX_TREE_H_INCLUDED_


#include "kx.h"

#include <cjson/cJSON.h>


#define KX_TREE_MAX_DEPTH   32
#define KX_TREE_MAX_NUMBER  63       /* characters, as in cJSON 1.7.15 */

#define KX_TREE_REPLACED    "\xef\xbf\xbd"       /* U+FFFD */


/*
 * Reads an object or an array, which must be all of the text, into *root.
 * No string in it has a zero byte: U+FFFD takes its place, also in names.
 * Ill-formed UTF-8 and halves of surrogate pairs become U+FFFD, too, or are
 * an error when the reader is strict.  The caller bounds len; a tree takes
 * some 40 times as many bytes at the most.  Of members with the same name
 * kx_tree_get() and cJSON find the first.  KX_OK; KX_DECLINED: the text is
 * not like that; KX_ERROR: no memory.  *root is NULL then.
 */
int kx_tree_read(cJSON **root, const unsigned char *text, size_t len,
    unsigned strict);

/* A member, or NULL; one that is null counts as one that is not there. */
const cJSON *kx_tree_get(const cJSON *object, const char *name);

/*
 * A C string out of at most max bytes of s: ill-formed UTF-8 and zero bytes
 * become U+FFFD; cut tells that not all of it did fit.  Released with
 * cJSON_free().  NULL: no memory.
 */
char *kx_tree_text(const kx_str_t *s, size_t max, size_t *len,
    unsigned *cut);

/*
 * Adds a string of at most max bytes, made as above.  object may be NULL:
 * there was no memory for it.  KX_OK or KX_ERROR (no memory).
 */
int kx_tree_add(cJSON *object, const char *name, const kx_str_t *s,
    size_t max);


#endif /* _KX_TREE_H_INCLUDED_ */
