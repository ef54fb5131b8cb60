/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A pull scanner over JSON text (RFC 8259) that lies in memory: no tree, no
 * copies, no recursion, no allocation.  The caller walks into what it wants
 * and skips the rest.
 *
 *     kx_json_init(&j, p, len);
 *
 *     if (kx_json_type(&j) != KX_JSON_OBJECT) -> not an object
 *     kx_json_enter(&j);
 *
 *     while ((rc = kx_json_member(&j, &key)) == KX_OK) {
 *         consume exactly one value: kx_json_string(), kx_json_skip(), or
 *         kx_json_enter() and everything up to its KX_DONE
 *     }
 *
 *     rc is KX_DONE at the closing brace, KX_ERROR on bad JSON
 *
 * After an error every further call returns KX_ERROR.
 */


#ifndef _KX_JSON_SCAN_H_INCLUDED_
#define _KX_JSON_SCAN_H_INCLUDED_


#include "kx.h"


#define KX_JSON_MAX_DEPTH  512    /* deeper text is an error */
#define KX_BAD_UTF8        0xffffffff


typedef enum {
    KX_JSON_BAD = 0,
    KX_JSON_STRING,
    KX_JSON_NUMBER,
    KX_JSON_TRUE,
    KX_JSON_FALSE,
    KX_JSON_NULL,
    KX_JSON_OBJECT,
    KX_JSON_ARRAY
} kx_json_type_e;


typedef struct {
    const unsigned char  *pos;
    const unsigned char  *last;
    unsigned              depth;
    unsigned char         first;     /* no value yet in this container */
    unsigned char         in_object; /* this container is one */
    unsigned char         bad;
    /* a bit for each open container: set for an object */
    unsigned char         object[KX_JSON_MAX_DEPTH / 8];
} kx_json_t;


/* The state of a text that arrives as several JSON strings, see below. */

typedef struct {
    uint32_t              high;      /* a high surrogate waits for its half */
} kx_decode_t;


void kx_json_init(kx_json_t *j, const unsigned char *p, size_t len);

/*
 * Tells the type of the value that comes next, by its first character, and
 * consumes white space only.  KX_JSON_BAD: none can start here.
 */
kx_json_type_e kx_json_type(kx_json_t *j);

/* Enters the object or array that comes next.  KX_OK or KX_ERROR. */
int kx_json_enter(kx_json_t *j);

/*
 * Goes to the value of the next member of the object that was entered last;
 * key is its raw name, without the quotes and with its escapes.  KX_OK,
 * KX_DONE (the closing brace was consumed), KX_ERROR.
 */
int kx_json_member(kx_json_t *j, kx_str_t *key);

/* The same for the elements of an array. */
int kx_json_element(kx_json_t *j);

/*
 * Consumes a string; raw is what stands between its quotes, in place.
 * KX_OK or KX_ERROR (it is not a string, or has no end).
 */
int kx_json_string(kx_json_t *j, kx_str_t *raw);

/*
 * The quote that ends a string whose inside starts at start, or NULL: there is
 * none before last.
 */
const unsigned char *kx_json_string_end(const unsigned char *start,
    const unsigned char *last);

/*
 * Consumes any value; raw (may be NULL) is its text, in place, with quotes
 * or brackets.  Nested values are checked, not only bracketed.
 */
int kx_json_skip(kx_json_t *j, kx_str_t *raw);

/*
 * To be called after the outermost value: KX_OK when only white space is
 * left, KX_ERROR otherwise.
 */
int kx_json_end(kx_json_t *j);

/* Does a raw string, once its escapes are decoded, equal s of len bytes? */
int kx_json_equal(const kx_str_t *raw, const char *s, size_t len);

/* The same for s in ASCII without backslashes, one character at least. */
static inline int kx_json_name(const kx_str_t *raw, const char *s,
    size_t len);

#define kx_json_is(raw, s)  kx_json_name(raw, s, sizeof(s) - 1)

/*
 * Decodes a raw string into dst of size bytes, as kx_decode() does.  Returns
 * the length, or -1 when it does not fit.
 */
ssize_t kx_json_copy(const kx_str_t *raw, unsigned char *dst, size_t size);

/*
 * Decodes the escapes of raw and passes valid UTF-8 on to the sink in one or
 * more calls: surrogate pairs become one character, also when their halves
 * came in two strings; a lone half, a bad escape and each ill-formed
 * sequence become U+FFFD (WHATWG Encoding, 4.8.1).  \u0000 gives a zero
 * byte.  kx_decode_finish() gives out what waits for more.
 */
void kx_decode_init(kx_decode_t *d);
void kx_decode(kx_decode_t *d, const kx_str_t *raw, kx_sink_pt sink,
    void *data);
void kx_decode_finish(kx_decode_t *d, kx_sink_pt sink, void *data);

/*
 * The length of a raw string once it is decoded, or -1 when the two are not
 * quite the same: it has a control character, a CR as an escape, a zero byte,
 * a bad escape, a lone surrogate, or is ill-formed UTF-8.  A string that is
 * clean can be sent on as it is.
 */
ssize_t kx_json_clean(const kx_str_t *raw);

/*
 * Is all of a text printable ASCII without a backslash?  What is a string in
 * it to kx_json_string() then is a good one.
 */
unsigned kx_json_plain(const unsigned char *p, size_t len);

/*
 * Reads a character of UTF-8 at *pos, which is before last, and goes on after
 * it.  KX_BAD_UTF8: an ill-formed one, of which as much is taken as one U+FFFD
 * stands for: the longest start of a character that could still be
 * well-formed, at least one byte (Unicode 3.9, table 3-7).
 */
uint32_t kx_utf8_read(const unsigned char **pos, const unsigned char *last);

/*
 * Writes s (UTF-8; ill-formed sequences become U+FFFD) as the inside of a
 * JSON string in pure ASCII: \uXXXX, surrogate pairs above U+FFFF.  Returns
 * the place after the last byte, or NULL when it does not fit before end.
 */
unsigned char *kx_json_escape(unsigned char *dst, const unsigned char *end,
    const kx_str_t *s);


static inline int
kx_json_name(const kx_str_t *raw, const char *s, size_t len)
{
    if (raw->len <= len) {

        /* an escape is longer than its character */

        return raw->len == len && memcmp(raw->data, s, len) == 0;
    }

    return (raw->data[0] == (unsigned char) *s || raw->data[0] == '\\')
           && kx_json_equal(raw, s, len);
}


#endif /* _KX_JSON_SCAN_H_INCLUDED_ */
