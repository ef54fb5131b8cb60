/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "json_write.h"
#include "json_scan.h"

#include <stdio.h>

#include <cjson/cJSON.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif


#define KX_WRITE_ROOM    16          /* what one step may take */
#define KX_WRITE_NUMBER  32

#define KX_REPLACED      "\xef\xbf\xbd"     /* U+FFFD */
#define KX_REPLACED_LEN  3


static inline int kx_json_write_room(kx_json_writer_t *w, size_t len);
static int kx_json_write_grow(kx_json_writer_t *w, size_t len);
static inline void kx_json_write_next(kx_json_writer_t *w, const char *name);
static void kx_json_write_name(kx_json_writer_t *w, const char *name);
static void kx_json_write(kx_json_writer_t *w, const void *p, size_t len);
#ifdef __SSE2__
static inline int kx_json_write_found(__m128i v);
#endif
static size_t kx_json_write_plain(kx_json_writer_t *w, const unsigned char *p,
    size_t len);
static void kx_json_write_special(kx_json_writer_t *w, unsigned char c);


/* the second character of an escape, 'u' for \u00XX, 0 where none is needed */

static const unsigned char  kx_write_escapes[128] = {
    'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
    'b', 't', 'n', 'u', 'f', 'r', 'u', 'u',
    'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
    'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
    ['"'] = '"',
    ['\\'] = '\\'
};


void
kx_json_write_init(kx_json_writer_t *w, size_t size)
{
    w->comma = 0;

    w->start = cJSON_malloc(size + 1);
    w->pos = w->start;
    w->end = w->start ? w->start + size : NULL;
}


/*
 * Is there room for len bytes, which are more than none?  There is none at all
 * after a failure.
 */

static inline int
kx_json_write_room(kx_json_writer_t *w, size_t len)
{
    if ((size_t) (w->end - w->pos) >= len) {
        return KX_OK;
    }

    return kx_json_write_grow(w, len);
}


static int
kx_json_write_grow(kx_json_writer_t *w, size_t len)
{
    size_t          size, used;
    unsigned char  *p;

    if (w->start == NULL) {
        return KX_ERROR;
    }

    used = (size_t) (w->pos - w->start);
    size = (size_t) (w->end - w->start);
    size = size * 2 + len;

    p = cJSON_malloc(size + 1);

    if (p) {
        memcpy(p, w->start, used);
    }

    cJSON_free(w->start);

    w->start = p;
    w->pos = p ? p + used : NULL;
    w->end = p ? p + size : NULL;

    return p ? KX_OK : KX_ERROR;
}


void
kx_json_write_open(kx_json_writer_t *w, const char *name, char bracket)
{
    kx_json_write_next(w, name);

    if (kx_json_write_room(w, 1) == KX_OK) {
        *w->pos++ = (unsigned char) bracket;
    }

    w->comma = 0;
}


void
kx_json_write_close(kx_json_writer_t *w, char bracket)
{
    if (kx_json_write_room(w, 1) == KX_OK) {
        *w->pos++ = (unsigned char) bracket;
    }

    w->comma = 1;
}


/* what stands in front of a value, if anything */

static inline void
kx_json_write_next(kx_json_writer_t *w, const char *name)
{
    if (name || w->comma) {
        kx_json_write_name(w, name);
    }

    w->comma = 1;
}


static void
kx_json_write_name(kx_json_writer_t *w, const char *name)
{
    size_t          len;
    unsigned char  *p;

    len = name ? strlen(name) : 0;

    if (kx_json_write_room(w, len + sizeof(",\"\":") - 1) != KX_OK) {
        return;
    }

    p = w->pos;

    if (w->comma) {
        *p++ = ',';
    }

    if (name) {
        *p++ = '"';
        memcpy(p, name, len);
        p += len;
        *p++ = '"';
        *p++ = ':';
    }

    w->pos = p;
}


static void
kx_json_write(kx_json_writer_t *w, const void *p, size_t len)
{
    if (kx_json_write_room(w, len) != KX_OK) {
        return;
    }

    memcpy(w->pos, p, len);
    w->pos += len;
}


void
kx_json_write_string(kx_json_writer_t *w, const char *name, const kx_str_t *s,
    size_t max)
{
    size_t                n;
    const unsigned char  *p, *start, *last;

    kx_json_write_next(w, name);

    if (kx_json_write_room(w, 1) != KX_OK) {
        return;
    }

    *w->pos++ = '"';

    p = s->data;
    last = s->len ? p + s->len : p;

    while (p < last && max) {
        n = (size_t) (last - p);

        if (kx_json_write_room(w, KX_WRITE_ROOM) != KX_OK) {
            return;
        }

        if (*p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\') {
            n = kx_json_write_plain(w, p, (n < max) ? n : max);
            p += n;
            max -= n;
            continue;
        }

        if (*p && *p < 0x80) {
            kx_json_write_special(w, *p++);
            max--;
            continue;
        }

        start = p;

        if (kx_utf8_read(&p, last) == KX_BAD_UTF8 || *start == '\0') {

            if (max < KX_REPLACED_LEN) {
                break;
            }

            kx_json_write(w, KX_REPLACED, KX_REPLACED_LEN);
            max -= KX_REPLACED_LEN;
            continue;
        }

        n = (size_t) (p - start);

        if (max < n) {
            break;
        }

        kx_json_write(w, start, n);
        max -= n;
    }

    if (kx_json_write_room(w, 1) == KX_OK) {
        *w->pos++ = '"';
    }
}


void
kx_json_write_raw(kx_json_writer_t *w, const kx_str_t *raw)
{
    unsigned char  *p;

    kx_json_write_next(w, NULL);

    if (kx_json_write_room(w, raw->len + 2) != KX_OK) {
        return;
    }

    p = w->pos;

    *p++ = '"';
    memcpy(p, raw->data, raw->len);
    p += raw->len;
    *p++ = '"';

    w->pos = p;
}


void
kx_json_write_piece(kx_json_writer_t *w, const char *p, size_t len)
{
    kx_json_write(w, p, len);

    w->comma = 0;
}


#ifdef __SSE2__

/* a bit for each of 16 bytes that cannot stand as it is, or is not ASCII */

static inline int
kx_json_write_found(__m128i v)
{
    __m128i  special, control;

    special = _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')),
                           _mm_cmpeq_epi8(v, _mm_set1_epi8('\\')));

    control = _mm_cmpeq_epi8(_mm_min_epu8(v, _mm_set1_epi8(0x1f)), v);

    return _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(special, control), v));
}

#endif


/*
 * Writes up to the first byte that cannot stand as it is, or as much as there
 * is room for; returns how many.
 */

static size_t
kx_json_write_plain(kx_json_writer_t *w, const unsigned char *p, size_t len)
{
    size_t                room;
    unsigned char        *dst;
    const unsigned char  *start, *last;

#ifdef __SSE2__

    int                   found;
    __m128i               v;

#endif

    room = (size_t) (w->end - w->pos);

    start = p;
    last = p + ((len < room) ? len : room);
    dst = w->pos;

#ifdef __SSE2__

    while (last - p >= 16) {
        v = _mm_loadu_si128((const __m128i *) p);

        _mm_storeu_si128((__m128i *) dst, v);

        found = kx_json_write_found(v);

        if (found) {

            /* what was copied too much will be overwritten */

            p += __builtin_ctz((unsigned) found);
            w->pos += p - start;

            return (size_t) (p - start);
        }

        dst += 16;
        p += 16;
    }

    if (p > start && p < last) {

        /* the last bytes are read together with some in front of them */

        v = _mm_loadu_si128((const __m128i *) (last - 16));

        if (kx_json_write_found(v) == 0) {
            _mm_storeu_si128((__m128i *) (dst + (last - p) - 16), v);

            w->pos = dst + (last - p);

            return (size_t) (last - start);
        }
    }

#endif

    while (p < last && *p < 0x80 && !kx_write_escapes[*p]) {
        *dst++ = *p++;
    }

    w->pos = dst;

    return (size_t) (p - start);
}


/* there is room */

static void
kx_json_write_special(kx_json_writer_t *w, unsigned char c)
{
    unsigned char      *p;
    static const char   hex[] = "0123456789abcdef";

    p = w->pos;

    *p++ = '\\';
    *p++ = kx_write_escapes[c];

    if (kx_write_escapes[c] == 'u') {
        *p++ = '0';
        *p++ = '0';
        *p++ = (unsigned char) hex[c >> 4];
        *p++ = (unsigned char) hex[c & 15];
    }

    w->pos = p;
}


void
kx_json_write_number(kx_json_writer_t *w, const char *name, double n)
{
    int       len, i;
    char     *p, buf[KX_WRITE_NUMBER];
    uint32_t  whole;

    kx_json_write_next(w, name);

    if (n >= 0 && n <= UINT32_MAX && n == (double) (uint32_t) n) {
        p = buf + KX_WRITE_NUMBER;
        whole = (uint32_t) n;

        do {
            *--p = (char) ('0' + whole % 10);
            whole /= 10;
        } while (whole);

        kx_json_write(w, p, (size_t) (buf + KX_WRITE_NUMBER - p));

        return;
    }

    len = snprintf(buf, sizeof(buf), "%.15g", n);

    /* the decimal point of some locale */

    for (i = 0; i < len; i++) {
        if (buf[i] == ',') {
            buf[i] = '.';
        }
    }

    kx_json_write(w, buf, (size_t) len);
}


void
kx_json_write_bool(kx_json_writer_t *w, const char *name, unsigned flag)
{
    kx_json_write_next(w, name);

    if (flag) {
        kx_json_write(w, "true", 4);

    } else {
        kx_json_write(w, "false", 5);
    }
}


void
kx_json_write_fail(kx_json_writer_t *w)
{
    cJSON_free(w->start);

    w->start = NULL;
    w->pos = NULL;
    w->end = NULL;
}


char *
kx_json_write_done(kx_json_writer_t *w, size_t *len)
{
    if (w->start == NULL) {
        return NULL;
    }

    *w->pos = '\0';
    *len = (size_t) (w->pos - w->start);

    return (char *) w->start;
}


size_t
kx_json_write_len(const kx_str_t *s)
{
    size_t                n;
    const unsigned char  *p, *start, *last;

#ifdef __SSE2__

    __m128i               v;

#endif

    n = 0;
    p = s->data;
    last = s->len ? p + s->len : p;

    while (p < last) {

#ifdef __SSE2__

        if (last - p >= 16) {
            v = _mm_loadu_si128((const __m128i *) p);
            v = _mm_or_si128(v, _mm_cmpeq_epi8(v, _mm_setzero_si128()));

            if (_mm_movemask_epi8(v) == 0) {
                n += 16;
                p += 16;
                continue;
            }
        }

#endif

        start = p;

        if (kx_utf8_read(&p, last) == KX_BAD_UTF8 || *start == '\0') {
            n += KX_REPLACED_LEN;

        } else {
            n += (size_t) (p - start);
        }
    }

    return n;
}
