/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "json_scan.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif


#define KX_JSON_EACH    ((uint64_t) 0x0101010101010101ULL)
#define KX_JSON_HIGH    ((uint64_t) 0x8080808080808080ULL)

#define KX_REPLACEMENT  0xfffd

/* the longest escape, a surrogate pair, is 12 bytes and gives 4 */

#define KX_JSON_SHRINK  6

/* decoded text is gathered here so that not each escape is a call */

#define KX_GATHER_SIZE  2048
#define KX_GATHER_ROOM  16           /* what one step may take */

#define kx_json_digit(c)  ((c) >= '0' && (c) <= '9')

#define kx_json_as_is(c)                                                      \
    ((c) >= 0x20 && (c) < 0x7f && (c) != '"' && (c) != '\\')


typedef struct {
    kx_sink_pt            sink;
    void                 *data;
    size_t                len;
    unsigned char         buf[KX_GATHER_SIZE];
} kx_gather_t;


typedef struct {
    unsigned char        *pos;
    size_t                left;
    unsigned              full;
} kx_json_copy_t;


typedef struct {
    const unsigned char  *pos;
    size_t                left;
    unsigned              differs;
} kx_json_equal_t;


static inline int kx_json_next(kx_json_t *j, unsigned object);
static void kx_json_leave(kx_json_t *j);
static inline const unsigned char *kx_json_quote(const unsigned char *start,
    const unsigned char *last);
static const unsigned char *kx_json_quote_far(const unsigned char *start,
    const unsigned char *last);
static int kx_json_scalar(kx_json_t *j);
static int kx_json_number(kx_json_t *j);
static const unsigned char *kx_json_digits(const unsigned char *p,
    const unsigned char *last);
static int kx_json_literal(kx_json_t *j, const char *s, size_t len);
static int kx_json_scalar_end(kx_json_t *j, const unsigned char *p);
static inline unsigned char kx_json_peek(kx_json_t *j);
static int kx_json_bad(kx_json_t *j);
static void kx_json_equal_sink(void *data, const unsigned char *p,
    size_t len);
static void kx_json_copy_sink(void *data, const unsigned char *p, size_t len);
static const unsigned char *kx_json_clean_escape(const unsigned char *p,
    const unsigned char *last, size_t *n);
static const unsigned char *kx_decode_plain(kx_gather_t *g,
    const unsigned char *p, const unsigned char *last);
static const unsigned char *kx_decode_escape(kx_decode_t *d, kx_gather_t *g,
    const unsigned char *p, const unsigned char *last);
static const unsigned char *kx_decode_unit(const unsigned char *p,
    const unsigned char *last, uint32_t *unit);
static inline void kx_decode_lone(kx_decode_t *d, kx_gather_t *g);
static void kx_gather_char(kx_gather_t *g, uint32_t c);
static void kx_gather_flush(kx_gather_t *g);
static size_t kx_utf8_write(unsigned char *dst, uint32_t c);
static unsigned char *kx_json_escape_unit(unsigned char *dst, uint32_t unit);


/* the escapes of one character: RFC 8259, 7 */

static const unsigned char  kx_escapes[256] = {
    ['"'] = '"',
    ['\\'] = '\\',
    ['/'] = '/',
    ['b'] = '\b',
    ['f'] = '\f',
    ['n'] = '\n',
    ['r'] = '\r',
    ['t'] = '\t'
};


/* by the first character */

static const unsigned char  kx_json_types[256] = {
    ['"'] = KX_JSON_STRING,
    ['{'] = KX_JSON_OBJECT,
    ['['] = KX_JSON_ARRAY,
    ['t'] = KX_JSON_TRUE,
    ['f'] = KX_JSON_FALSE,
    ['n'] = KX_JSON_NULL,
    ['-'] = KX_JSON_NUMBER,
    ['0'] = KX_JSON_NUMBER,
    ['1'] = KX_JSON_NUMBER,
    ['2'] = KX_JSON_NUMBER,
    ['3'] = KX_JSON_NUMBER,
    ['4'] = KX_JSON_NUMBER,
    ['5'] = KX_JSON_NUMBER,
    ['6'] = KX_JSON_NUMBER,
    ['7'] = KX_JSON_NUMBER,
    ['8'] = KX_JSON_NUMBER,
    ['9'] = KX_JSON_NUMBER
};


void
kx_json_init(kx_json_t *j, const unsigned char *p, size_t len)
{
    j->pos = p;
    j->last = len ? p + len : p;
    j->depth = 0;
    j->first = 0;
    j->in_object = 0;
    j->bad = 0;
}


kx_json_type_e
kx_json_type(kx_json_t *j)
{
    return (kx_json_type_e) kx_json_types[kx_json_peek(j)];
}


int
kx_json_enter(kx_json_t *j)
{
    unsigned char  c, bit, *byte;

    c = kx_json_peek(j);

    if ((c != '{' && c != '[') || j->depth == KX_JSON_MAX_DEPTH) {
        return kx_json_bad(j);
    }

    byte = &j->object[j->depth / 8];
    bit = (unsigned char) (1 << (j->depth % 8));

    if (c == '{') {
        *byte |= bit;

    } else {
        *byte &= (unsigned char) ~bit;
    }

    j->depth++;
    j->first = 1;
    j->in_object = (c == '{');
    j->pos++;

    return KX_OK;
}


int
kx_json_member(kx_json_t *j, kx_str_t *key)
{
    int  rc;

    rc = kx_json_next(j, 1);

    if (rc != KX_OK) {
        return rc;
    }

    if (kx_json_string(j, key) != KX_OK) {
        return KX_ERROR;
    }

    if (kx_json_peek(j) != ':') {
        return kx_json_bad(j);
    }

    j->pos++;

    return KX_OK;
}


int
kx_json_element(kx_json_t *j)
{
    return kx_json_next(j, 0);
}


/* goes over what stands in front of a member or an element */

static inline int
kx_json_next(kx_json_t *j, unsigned object)
{
    unsigned char  c;

    c = kx_json_peek(j);

    if (j->depth == 0 || j->in_object != object) {
        return kx_json_bad(j);
    }

    if (c == (object ? '}' : ']')) {
        kx_json_leave(j);
        return KX_DONE;
    }

    if (j->first) {
        j->first = 0;

    } else {

        if (c != ',') {
            return kx_json_bad(j);
        }

        j->pos++;
    }

    /* the caller finds out whether a value can start here */

    return (j->pos < j->last) ? KX_OK : kx_json_bad(j);
}


static void
kx_json_leave(kx_json_t *j)
{
    unsigned  i;

    j->pos++;
    j->first = 0;
    j->in_object = 0;

    if (--j->depth) {
        i = j->depth - 1;
        j->in_object = (unsigned char) (j->object[i / 8] >> (i % 8)) & 1;
    }
}


int
kx_json_string(kx_json_t *j, kx_str_t *raw)
{
    const unsigned char  *p, *end;

    if (kx_json_peek(j) != '"') {
        return kx_json_bad(j);
    }

    p = j->pos + 1;
    end = kx_json_quote(p, j->last);

    if (end == NULL) {
        return kx_json_bad(j);
    }

    raw->len = (size_t) (end - p);
    raw->data = (unsigned char *) p;

    j->pos = end + 1;

    return KX_OK;
}


const unsigned char *
kx_json_string_end(const unsigned char *start, const unsigned char *last)
{
    return kx_json_quote(start, last);
}


/*
 * The quote that ends the string.  A quote is escaped by an odd number of
 * backslashes; no backslash is counted for more than one quote.
 */

static inline const unsigned char *
kx_json_quote(const unsigned char *start, const unsigned char *last)
{
#ifdef __SSE2__

    int                   found;
    __m128i               v;
    const unsigned char  *p;

    /* most strings are names: short, and without backslashes */

    if (last - start >= 16) {
        v = _mm_loadu_si128((const __m128i *) start);

        found = _mm_movemask_epi8(
                    _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')),
                                 _mm_cmpeq_epi8(v, _mm_set1_epi8('\\'))));

        if (found) {
            p = start + __builtin_ctz((unsigned) found);

            if (*p == '"') {
                return p;
            }
        }
    }

#endif

    return kx_json_quote_far(start, last);
}


static const unsigned char *
kx_json_quote_far(const unsigned char *start, const unsigned char *last)
{
    const unsigned char  *p, *slash;

    for (p = start; p < last; p++) {
        p = memchr(p, '"', (size_t) (last - p));

        if (p == NULL) {
            return NULL;
        }

        slash = p;

        while (slash > start && slash[-1] == '\\') {
            slash--;
        }

        if ((p - slash) % 2 == 0) {
            return p;
        }
    }

    return NULL;
}


int
kx_json_skip(kx_json_t *j, kx_str_t *raw)
{
    int                   rc;
    unsigned              depth;
    kx_str_t              s;
    unsigned char         c;
    const unsigned char  *start;

    c = kx_json_peek(j);

    start = j->pos;
    depth = j->depth;

    for ( ;; ) {

        if (c == '"') {
            rc = kx_json_string(j, &s);

        } else if (c == '{' || c == '[') {
            rc = kx_json_enter(j);

        } else {
            rc = kx_json_scalar(j);
        }

        if (rc != KX_OK) {
            return rc;
        }

        /* to the next value, out of the containers that end before it */

        while (j->depth > depth) {
            rc = j->in_object ? kx_json_member(j, &s) : kx_json_element(j);

            if (rc != KX_DONE) {
                break;
            }
        }

        if (j->depth == depth) {
            break;
        }

        if (rc != KX_OK) {
            return rc;
        }

        c = kx_json_peek(j);
    }

    if (raw != NULL) {
        raw->len = (size_t) (j->pos - start);
        raw->data = (unsigned char *) start;
    }

    return KX_OK;
}


static int
kx_json_scalar(kx_json_t *j)
{
    switch (kx_json_type(j)) {

    case KX_JSON_NUMBER:
        return kx_json_number(j);

    case KX_JSON_TRUE:
        return kx_json_literal(j, "true", 4);

    case KX_JSON_FALSE:
        return kx_json_literal(j, "false", 5);

    case KX_JSON_NULL:
        return kx_json_literal(j, "null", 4);

    default:
        return kx_json_bad(j);
    }
}


static int
kx_json_number(kx_json_t *j)
{
    const unsigned char  *p, *last;

    p = j->pos;
    last = j->last;

    if (*p == '-') {
        p++;
    }

    if (p < last && *p == '0') {
        p++;

    } else {
        p = kx_json_digits(p, last);
    }

    if (p && p < last && *p == '.') {
        p = kx_json_digits(p + 1, last);
    }

    if (p && p < last && (*p | 0x20) == 'e') {
        p++;

        if (p < last && (*p == '+' || *p == '-')) {
            p++;
        }

        p = kx_json_digits(p, last);
    }

    return p ? kx_json_scalar_end(j, p) : kx_json_bad(j);
}


/* the place after one or more digits, or NULL */

static const unsigned char *
kx_json_digits(const unsigned char *p, const unsigned char *last)
{
    const unsigned char  *start;

    start = p;

    while (p < last && kx_json_digit(*p)) {
        p++;
    }

    return (p > start) ? p : NULL;
}


static int
kx_json_literal(kx_json_t *j, const char *s, size_t len)
{
    if ((size_t) (j->last - j->pos) < len || memcmp(j->pos, s, len) != 0) {
        return kx_json_bad(j);
    }

    return kx_json_scalar_end(j, j->pos + len);
}


/* a number or a literal must not run into what follows */

static int
kx_json_scalar_end(kx_json_t *j, const unsigned char *p)
{
    if (p < j->last) {

        switch (*p) {

        case ',':
        case ']':
        case '}':
        case ' ':
        case '\n':
        case '\r':
        case '\t':
            break;

        default:
            return kx_json_bad(j);
        }
    }

    j->pos = p;

    return KX_OK;
}


int
kx_json_end(kx_json_t *j)
{
    (void) kx_json_peek(j);

    if (j->bad || j->depth || j->pos < j->last) {
        return kx_json_bad(j);
    }

    return KX_OK;
}


/* consumes white space; what follows, or zero, which no value starts with */

static inline unsigned char
kx_json_peek(kx_json_t *j)
{
    unsigned char         c;
    const unsigned char  *p;

    for (p = j->pos; p < j->last; p++) {
        c = *p;

        if (c > ' ' || (c != ' ' && c != '\n' && c != '\r' && c != '\t')) {
            j->pos = p;
            return c;
        }
    }

    j->pos = p;

    return 0;
}


static int
kx_json_bad(kx_json_t *j)
{
    /* with nothing left to read, all further calls come here, too */

    j->pos = j->last;
    j->bad = 1;

    return KX_ERROR;
}


int
kx_json_equal(const kx_str_t *raw, const char *s, size_t len)
{
    size_t           i;
    kx_str_t         rest;
    kx_decode_t      d;
    unsigned char    c;
    kx_json_equal_t  eq;

    for (i = 0; i < raw->len; i++) {
        c = raw->data[i];

        if (c == '\\' || c >= 0x80) {
            break;
        }

        if (i == len || c != (unsigned char) s[i]) {
            return 0;
        }
    }

    if (i == raw->len) {
        return i == len;
    }

    rest.len = raw->len - i;
    rest.data = raw->data + i;

    if (rest.len / KX_JSON_SHRINK > len - i) {
        return 0;
    }

    eq.pos = (const unsigned char *) s + i;
    eq.left = len - i;
    eq.differs = 0;

    kx_decode_init(&d);
    kx_decode(&d, &rest, kx_json_equal_sink, &eq);
    kx_decode_finish(&d, kx_json_equal_sink, &eq);

    return !eq.differs && eq.left == 0;
}


static void
kx_json_equal_sink(void *data, const unsigned char *p, size_t len)
{
    kx_json_equal_t  *eq = data;

    if (eq->differs || len > eq->left || memcmp(eq->pos, p, len) != 0) {
        eq->differs = 1;
        return;
    }

    eq->pos += len;
    eq->left -= len;
}


ssize_t
kx_json_copy(const kx_str_t *raw, unsigned char *dst, size_t size)
{
    kx_decode_t     d;
    kx_json_copy_t  copy;

    if (raw->len / KX_JSON_SHRINK > size) {
        return -1;
    }

    copy.pos = dst;
    copy.left = size;
    copy.full = 0;

    kx_decode_init(&d);
    kx_decode(&d, raw, kx_json_copy_sink, &copy);
    kx_decode_finish(&d, kx_json_copy_sink, &copy);

    return copy.full ? -1 : (ssize_t) (size - copy.left);
}


static void
kx_json_copy_sink(void *data, const unsigned char *p, size_t len)
{
    kx_json_copy_t  *copy = data;

    if (copy->full || len > copy->left) {
        copy->full = 1;
        return;
    }

    memcpy(copy->pos, p, len);

    copy->pos += len;
    copy->left -= len;
}


unsigned
kx_json_plain(const unsigned char *p, size_t len)
{
    uint64_t              w, slash, odd;
    const unsigned char  *last;

    odd = 0;
    last = p + len;

    /* the top bit of a byte below 0x20, of a backslash, and of 0x80 and up */

    while (last - p >= 8) {
        memcpy(&w, p, 8);

        slash = w ^ (KX_JSON_EACH * '\\');

        odd |= w | ((w - KX_JSON_EACH * ' ') & ~w)
                 | ((slash - KX_JSON_EACH) & ~slash);

        p += 8;
    }

    if (odd & (KX_JSON_EACH << 7)) {
        return 0;
    }

    while (p < last) {
        if (*p < 0x20 || *p == '\\' || *p >= 0x80) {
            return 0;
        }

        p++;
    }

    return 1;
}


ssize_t
kx_json_clean(const kx_str_t *raw)
{
    size_t                n;
    const unsigned char  *p, *start, *last;

#ifdef __SSE2__

    int                   found;
    __m128i               v, slash, control;

    slash = _mm_set1_epi8('\\');
    control = _mm_set1_epi8(0x1f);

#endif

    n = 0;
    p = raw->data;
    last = raw->len ? p + raw->len : p;

    while (p < last) {

#ifdef __SSE2__

        if (last - p >= 16) {
            v = _mm_loadu_si128((const __m128i *) p);

            found = _mm_movemask_epi8(
                        _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, slash),
                                     _mm_cmpeq_epi8(_mm_min_epu8(v, control),
                                                    v)), v));

            if (found == 0) {
                n += 16;
                p += 16;
                continue;
            }

            n += (size_t) __builtin_ctz((unsigned) found);
            p += __builtin_ctz((unsigned) found);
        }

#endif

        if (*p == '\\') {
            p = kx_json_clean_escape(p + 1, last, &n);

            if (p == NULL) {
                return -1;
            }

            continue;
        }

        if (*p < 0x20) {
            return -1;
        }

        start = p;

        if (kx_utf8_read(&p, last) == KX_BAD_UTF8) {
            return -1;
        }

        n += (size_t) (p - start);
    }

    return (ssize_t) n;
}


/* p is after the backslash; the place after the escape, or NULL */

static const unsigned char *
kx_json_clean_escape(const unsigned char *p, const unsigned char *last,
    size_t *n)
{
    uint32_t  unit;

    if (p == last || *p == 'r') {
        return NULL;
    }

    if (*p != 'u') {
        *n += 1;
        return kx_escapes[*p] ? p + 1 : NULL;
    }

    p = kx_decode_unit(p + 1, last, &unit);

    if (unit == 0 || unit == '\r' || unit == KX_REPLACEMENT) {
        return NULL;
    }

    if (unit < 0xd800 || unit > 0xdfff) {
        *n += (unit < 0x80) ? 1 : (unit < 0x800) ? 2 : 3;
        return p;
    }

    if (unit >= 0xdc00 || last - p < 6 || p[0] != '\\' || p[1] != 'u') {
        return NULL;
    }

    p = kx_decode_unit(p + 2, last, &unit);

    *n += 4;

    return (unit >= 0xdc00 && unit <= 0xdfff) ? p : NULL;
}


void
kx_decode_init(kx_decode_t *d)
{
    d->high = 0;
}


void
kx_decode(kx_decode_t *d, const kx_str_t *raw, kx_sink_pt sink, void *data)
{
    kx_gather_t           g;
    const unsigned char  *p, *start, *last;

    if (raw->len == 0) {
        return;
    }

    g.sink = sink;
    g.data = data;
    g.len = 0;

    p = raw->data;
    last = p + raw->len;

    while (p < last) {

        if (KX_GATHER_SIZE - g.len < KX_GATHER_ROOM) {
            kx_gather_flush(&g);
        }

        if (*p == '\\') {

            if (d->high == 0 && last - p > 1 && kx_escapes[p[1]]) {
                g.buf[g.len++] = kx_escapes[p[1]];
                p += 2;

            } else {
                p = kx_decode_escape(d, &g, p + 1, last);
            }

            continue;
        }

        kx_decode_lone(d, &g);

        if (*p < 0x80) {
            p = kx_decode_plain(&g, p, last);
            continue;
        }

        start = p;

        if (kx_utf8_read(&p, last) == KX_BAD_UTF8) {
            kx_gather_char(&g, KX_REPLACEMENT);
            continue;
        }

        do {
            g.buf[g.len++] = *start++;
        } while (start < p);
    }

    kx_gather_flush(&g);
}


void
kx_decode_finish(kx_decode_t *d, kx_sink_pt sink, void *data)
{
    if (d->high) {
        d->high = 0;
        sink(data, (const unsigned char *) "\xef\xbf\xbd", 3);
    }
}


/*
 * Gathers up to the first byte that is a backslash or not ASCII, or as much as
 * there is room for.
 */

static const unsigned char *
kx_decode_plain(kx_gather_t *g, const unsigned char *p,
    const unsigned char *last)
{
    size_t          n, room;
    uint64_t        w, slash;
    unsigned char  *dst;

#ifdef __SSE2__

    int             found;
    __m128i         v;

#endif

    n = (size_t) (last - p);
    room = KX_GATHER_SIZE - g->len;
    last = p + ((n < room) ? n : room);

    dst = g->buf + g->len;

#ifdef __SSE2__

    while (last - p >= 16) {
        v = _mm_loadu_si128((const __m128i *) p);

        _mm_storeu_si128((__m128i *) dst, v);

        found = _mm_movemask_epi8(
                    _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('\\')), v));

        if (found) {

            /* what was copied too much will be overwritten */

            n = (size_t) __builtin_ctz((unsigned) found);
            g->len = (size_t) (dst - g->buf) + n;

            return p + n;
        }

        dst += 16;
        p += 16;
    }

#endif

    while (last - p >= 8) {
        memcpy(&w, p, 8);

        slash = w ^ ('\\' * KX_JSON_EACH);

        if ((((slash - KX_JSON_EACH) & ~slash) | w) & KX_JSON_HIGH) {
            break;
        }

        memcpy(dst, p, 8);

        dst += 8;
        p += 8;
    }

    while (p < last && *p != '\\' && *p < 0x80) {
        *dst++ = *p++;
    }

    g->len = (size_t) (dst - g->buf);

    return p;
}


/* p is after the backslash; the place after the escape */

static const unsigned char *
kx_decode_escape(kx_decode_t *d, kx_gather_t *g, const unsigned char *p,
    const unsigned char *last)
{
    uint32_t  c;

    /* a backslash before what is not ASCII stands for itself alone */

    c = (p < last && *p < 0x80) ? *p++ : 0;

    if (c == 'u') {
        p = kx_decode_unit(p, last, &c);

        if (c >= 0xdc00 && c <= 0xdfff) {

            if (d->high) {
                c = 0x10000 + ((d->high - 0xd800) << 10) + (c - 0xdc00);
                d->high = 0;

            } else {
                c = KX_REPLACEMENT;
            }

        } else if (c >= 0xd800 && c <= 0xdbff) {
            kx_decode_lone(d, g);
            d->high = c;
            return p;
        }

    } else {
        c = kx_escapes[c] ? kx_escapes[c] : KX_REPLACEMENT;
    }

    kx_decode_lone(d, g);
    kx_gather_char(g, c);

    return p;
}


/* reads XXXX of \uXXXX; a bad one gives U+FFFD and ends at its first fault */

static const unsigned char *
kx_decode_unit(const unsigned char *p, const unsigned char *last,
    uint32_t *unit)
{
    unsigned       i;
    uint32_t       n;
    unsigned char  c;

    n = 0;

    for (i = 0; i < 4; i++, p++) {

        if (p == last) {
            break;
        }

        c = *p;

        if (kx_json_digit(c)) {
            n = n << 4 | (uint32_t) (c - '0');
            continue;
        }

        c |= 0x20;

        if (c < 'a' || c > 'f') {
            break;
        }

        n = n << 4 | (uint32_t) (c - 'a' + 10);
    }

    *unit = (i == 4) ? n : KX_REPLACEMENT;

    return p;
}


/* something other than a low surrogate came after a high one */

static inline void
kx_decode_lone(kx_decode_t *d, kx_gather_t *g)
{
    if (d->high) {
        d->high = 0;
        kx_gather_char(g, KX_REPLACEMENT);
    }
}


static void
kx_gather_char(kx_gather_t *g, uint32_t c)
{
    if (KX_GATHER_SIZE - g->len < 4) {
        kx_gather_flush(g);
    }

    g->len += kx_utf8_write(g->buf + g->len, c);
}


static void
kx_gather_flush(kx_gather_t *g)
{
    if (g->len) {
        g->sink(g->data, g->buf, g->len);
        g->len = 0;
    }
}


uint32_t
kx_utf8_read(const unsigned char **pos, const unsigned char *last)
{
    uint32_t              c;
    unsigned              n;
    unsigned char         min, max;
    const unsigned char  *p;

    p = *pos;
    c = *p++;
    n = 0;
    min = 0x80;
    max = 0xbf;

    if (c < 0x80) {
        /* void */

    } else if (c >= 0xc2 && c <= 0xdf) {
        n = 1;
        c &= 0x1f;

    } else if (c >= 0xe0 && c <= 0xef) {
        min = (c == 0xe0) ? 0xa0 : 0x80;
        max = (c == 0xed) ? 0x9f : 0xbf;
        n = 2;
        c &= 0x0f;

    } else if (c >= 0xf0 && c <= 0xf4) {
        min = (c == 0xf0) ? 0x90 : 0x80;
        max = (c == 0xf4) ? 0x8f : 0xbf;
        n = 3;
        c &= 0x07;

    } else {
        c = KX_BAD_UTF8;
    }

    while (n--) {

        if (p == last || *p < min || *p > max) {
            c = KX_BAD_UTF8;
            break;
        }

        c = c << 6 | (*p++ & 0x3f);
        min = 0x80;
        max = 0xbf;
    }

    *pos = p;

    return c;
}


static size_t
kx_utf8_write(unsigned char *dst, uint32_t c)
{
    if (c < 0x80) {
        dst[0] = (unsigned char) c;
        return 1;
    }

    if (c < 0x800) {
        dst[0] = (unsigned char) (0xc0 | c >> 6);
        dst[1] = (unsigned char) (0x80 | (c & 0x3f));
        return 2;
    }

    if (c < 0x10000) {
        dst[0] = (unsigned char) (0xe0 | c >> 12);
        dst[1] = (unsigned char) (0x80 | (c >> 6 & 0x3f));
        dst[2] = (unsigned char) (0x80 | (c & 0x3f));
        return 3;
    }

    dst[0] = (unsigned char) (0xf0 | c >> 18);
    dst[1] = (unsigned char) (0x80 | (c >> 12 & 0x3f));
    dst[2] = (unsigned char) (0x80 | (c >> 6 & 0x3f));
    dst[3] = (unsigned char) (0x80 | (c & 0x3f));

    return 4;
}


unsigned char *
kx_json_escape(unsigned char *dst, const unsigned char *end,
    const kx_str_t *s)
{
    size_t                room;
    uint32_t              c;
    const unsigned char  *p, *last;

    if (s->len == 0) {
        return dst;
    }

    p = s->data;
    last = p + s->len;

    for ( ;; ) {

        /* most of it stands as it is */

        while (p < last && dst < end && kx_json_as_is(*p)) {
            *dst++ = *p++;
        }

        if (p == last) {
            break;
        }

        room = (size_t) (end - dst);

        c = kx_utf8_read(&p, last);

        if (c == '"' || c == '\\') {

            if (room < 2) {
                return NULL;
            }

            *dst++ = '\\';
            *dst++ = (unsigned char) c;
            continue;
        }

        if (c == KX_BAD_UTF8) {
            c = KX_REPLACEMENT;
        }

        if (c < 0x10000) {

            if (room < 6) {
                return NULL;
            }

            dst = kx_json_escape_unit(dst, c);
            continue;
        }

        if (room < 12) {
            return NULL;
        }

        c -= 0x10000;

        dst = kx_json_escape_unit(dst, 0xd800 + (c >> 10));
        dst = kx_json_escape_unit(dst, 0xdc00 + (c & 0x3ff));
    }

    return dst;
}


static unsigned char *
kx_json_escape_unit(unsigned char *dst, uint32_t unit)
{
    static const char  hex[] = "0123456789abcdef";

    *dst++ = '\\';
    *dst++ = 'u';
    *dst++ = (unsigned char) hex[unit >> 12 & 15];
    *dst++ = (unsigned char) hex[unit >> 8 & 15];
    *dst++ = (unsigned char) hex[unit >> 4 & 15];
    *dst++ = (unsigned char) hex[unit & 15];

    return dst;
}
