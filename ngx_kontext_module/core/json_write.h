/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Writes JSON (RFC 8259) from the first byte to the last one, without a tree.
 *
 *     kx_json_write_init(&w, 1000);
 *     kx_json_write_open(&w, NULL, '{');
 *     kx_json_write_string(&w, "name", &s, 100);
 *     kx_json_write_close(&w, '}');
 *     text = kx_json_write_done(&w, &len);
 *
 * When there is no memory, all further calls do nothing, and there is no text
 * in the end.  A name is NULL for what has none: an element of an array and
 * the outermost value.  All memory is cJSON's.
 */


#ifndef _KX_JSON_WRITE_H_INCLUDED_
#define _KX_JSON_WRITE_H_INCLUDED_


#include "kx.h"


typedef struct {
    unsigned char   *start;
    unsigned char   *pos;
    unsigned char   *end;            /* one byte is kept for the zero */
    unsigned         comma;          /* a value was written here already */
} kx_json_writer_t;


/* Starts with room for size bytes; it grows as it has to. */
void kx_json_write_init(kx_json_writer_t *w, size_t size);

/* Opens and closes an object or an array: "{", "[", "}", "]". */
void kx_json_write_open(kx_json_writer_t *w, const char *name, char bracket);
void kx_json_write_close(kx_json_writer_t *w, char bracket);

/*
 * Writes a string of at most max bytes of s, in whole characters: ill-formed
 * UTF-8 and zero bytes become U+FFFD, which counts for three.
 */
void kx_json_write_string(kx_json_writer_t *w, const char *name,
    const kx_str_t *s, size_t max);

/* Writes a raw string, which has no name: one that pleased kx_json_clean(). */
void kx_json_write_raw(kx_json_writer_t *w, const kx_str_t *raw);

/*
 * Writes len bytes of JSON as they are, at least one: whole members with the
 * commas around them, up to where the next value starts.
 */
void kx_json_write_piece(kx_json_writer_t *w, const char *p, size_t len);

/* Writes a finite number. */
void kx_json_write_number(kx_json_writer_t *w, const char *name, double n);

void kx_json_write_bool(kx_json_writer_t *w, const char *name, unsigned flag);

/* As if there were no memory any more: there will be no text. */
void kx_json_write_fail(kx_json_writer_t *w);

/*
 * The text, which ends with a zero, and its length.  It is released with
 * cJSON_free().  NULL: there was no memory.
 */
char *kx_json_write_done(kx_json_writer_t *w, size_t *len);

/*
 * How many bytes a string has in the sense of kx_json_write_string(), with no
 * end to it.
 */
size_t kx_json_write_len(const kx_str_t *s);


#endif /* _KX_JSON_WRITE_H_INCLUDED_ */
