/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * JSON, and the text in it.  The first byte says how texts are cut; the rest
 * is taken as JSON, as the inside of a string, as UTF-8 and as a message.
 *
 *   JSON      walking into everything and skipping agree, also about where
 *             it ends; the end of an error is the end
 *   strings   decoded in pieces they are what they are as a whole, valid
 *             UTF-8, equal to themselves, and come back when escaped
 *   messages  fed in pieces they are what a plain reading of the rules gives
 */


#include <stdlib.h>

#include "check.h"
#include "json_scan.h"
#include "text.h"


#define is_space(c)  ((c) == ' ' || ((c) >= '\t' && (c) <= '\r'))


typedef struct {
    unsigned char  *start;
    size_t          len;
    size_t          size;
} buf_t;


static void buf_init(buf_t *b, size_t size);
static void buf_sink(void *data, const unsigned char *p, size_t len);
static unsigned buf_same(const buf_t *a, const buf_t *b);
static void fuzz_scan(const unsigned char *p, size_t len, unsigned seed);
static int scan_walk(kx_json_t *j, unsigned seed);
static int scan_value(kx_json_t *j, unsigned seed);
static void scan_dead(kx_json_t *j);
static void fuzz_string(const kx_str_t *raw, unsigned seed);
static size_t string_token(const unsigned char *p, size_t len);
static void string_escape(const kx_str_t *s, const buf_t *decoded);
static unsigned utf8_valid(const unsigned char *p, size_t len);
static void fuzz_text(const unsigned char *p, size_t len, unsigned seed);
static void text_form(buf_t *b, kx_text_form_e form, const unsigned char *p,
    size_t len, unsigned seed);
static void text_reference(buf_t *canonical, buf_t *visible,
    const unsigned char *p, size_t len);
static size_t text_block(const unsigned char *p, size_t len);
static size_t piece(unsigned *seed, size_t left);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


static void
buf_init(buf_t *b, size_t size)
{
    b->start = malloc(size + 1);
    check(b->start != NULL);

    b->len = 0;
    b->size = size;
}


static void
buf_sink(void *data, const unsigned char *p, size_t len)
{
    buf_t  *b = data;

    check(len > 0 && len <= b->size - b->len);

    memcpy(b->start + b->len, p, len);
    b->len += len;
}


static unsigned
buf_same(const buf_t *a, const buf_t *b)
{
    return a->len == b->len && memcmp(a->start, b->start, a->len) == 0;
}


static void
fuzz_scan(const unsigned char *p, size_t len, unsigned seed)
{
    int             skip, walk;
    kx_str_t        raw;
    kx_json_t       j, k;
    unsigned char  *copy;

    copy = malloc(len ? len : 1);
    check(copy != NULL);

    if (len) {
        memcpy(copy, p, len);
    }

    kx_json_init(&j, copy, len);
    kx_json_init(&k, copy, len);

    skip = kx_json_skip(&j, &raw);
    walk = scan_walk(&k, seed);

    check(skip == walk);
    check(j.pos == k.pos);

    if (skip == KX_OK) {
        check(raw.data >= copy && raw.data + raw.len == j.pos);
        check(raw.len > 0 && j.pos <= copy + len);
        check(j.depth == 0 && !j.bad);

        check(kx_json_end(&j) == kx_json_end(&k));

        /* what was cut out stands for itself */

        kx_json_init(&j, raw.data, raw.len);
        check(kx_json_skip(&j, NULL) == KX_OK && kx_json_end(&j) == KX_OK);

    } else {
        check(skip == KX_ERROR);
        scan_dead(&j);
        scan_dead(&k);
    }

    free(copy);
}


/* walks into all containers, but for some that it skips */

static int
scan_walk(kx_json_t *j, unsigned seed)
{
    int       rc;
    unsigned  object[KX_JSON_MAX_DEPTH + 1];
    kx_str_t  key;

    do {
        rc = scan_value(j, seed++);

        if (rc == KX_AGAIN) {
            object[j->depth] = (j->pos[-1] == '{');

        } else if (rc != KX_OK) {
            return rc;
        }

        while (j->depth) {
            rc = object[j->depth] ? kx_json_member(j, &key)
                                  : kx_json_element(j);

            if (rc == KX_OK) {

                if (object[j->depth]) {
                    check(key.data[-1] == '"' && key.data[key.len] == '"');
                    fuzz_string(&key, seed);
                }

                break;
            }

            if (rc != KX_DONE) {
                return rc;
            }
        }

    } while (j->depth);

    return KX_OK;
}


/* consumes a value, or enters it: KX_AGAIN */

static int
scan_value(kx_json_t *j, unsigned seed)
{
    int       rc;
    kx_str_t  raw;

    switch (kx_json_type(j)) {

    case KX_JSON_STRING:
        rc = kx_json_string(j, &raw);

        if (rc == KX_OK) {
            fuzz_string(&raw, seed);
        }

        return rc;

    case KX_JSON_OBJECT:
    case KX_JSON_ARRAY:

        if (seed % 5 == 4) {
            return kx_json_skip(j, NULL);
        }

        rc = kx_json_enter(j);

        return (rc == KX_OK) ? KX_AGAIN : rc;

    default:
        return kx_json_skip(j, &raw);
    }
}


static void
scan_dead(kx_json_t *j)
{
    kx_str_t  s;

    check(kx_json_type(j) == KX_JSON_BAD);
    check(kx_json_enter(j) == KX_ERROR);
    check(kx_json_member(j, &s) == KX_ERROR);
    check(kx_json_element(j) == KX_ERROR);
    check(kx_json_string(j, &s) == KX_ERROR);
    check(kx_json_skip(j, NULL) == KX_ERROR);
    check(kx_json_end(j) == KX_ERROR);
}


static void
fuzz_string(const kx_str_t *raw, unsigned seed)
{
    buf_t        whole, pieces;
    size_t       n, pos;
    ssize_t      copied;
    kx_str_t     part;
    kx_decode_t  d;

    buf_init(&whole, 3 * raw->len);
    buf_init(&pieces, 3 * raw->len);

    kx_decode_init(&d);
    kx_decode(&d, raw, buf_sink, &whole);
    kx_decode_finish(&d, buf_sink, &whole);

    check(utf8_valid(whole.start, whole.len));

    /* strings end between characters */

    kx_decode_init(&d);

    part.len = 0;
    part.data = raw->data;

    for (pos = 0; pos < raw->len; pos += n) {
        n = string_token(raw->data + pos, raw->len - pos);
        part.len += n;

        seed = seed * 1103515245 + 12345;

        if (seed >> 16 & 1) {
            kx_decode(&d, &part, buf_sink, &pieces);

            part.data += part.len;
            part.len = 0;
        }
    }

    kx_decode(&d, &part, buf_sink, &pieces);
    kx_decode_finish(&d, buf_sink, &pieces);

    check(buf_same(&whole, &pieces));

    /* into as much room as it takes, and less */

    copied = kx_json_copy(raw, pieces.start, whole.len);
    check(copied >= 0 && (size_t) copied == whole.len);
    check(memcmp(pieces.start, whole.start, whole.len) == 0);

    if (whole.len) {
        check(kx_json_copy(raw, pieces.start, whole.len - 1) == -1);
        check(kx_json_copy(raw, pieces.start, seed % whole.len) == -1);
        check(!kx_json_equal(raw, (char *) whole.start, whole.len - 1));
    }

    check(kx_json_equal(raw, (char *) whole.start, whole.len));

    whole.start[whole.len] = 'x';
    check(!kx_json_equal(raw, (char *) whole.start, whole.len + 1));

    if (whole.len) {
        whole.start[seed % whole.len] ^= 1;
        check(!kx_json_equal(raw, (char *) whole.start, whole.len));
        whole.start[seed % whole.len] ^= 1;
    }

    part.len = whole.len;
    part.data = whole.start;

    string_escape(&part, &whole);

    free(whole.start);
    free(pieces.start);
}


/* what no cut may part: an escape, an ASCII character, a run of others */

static size_t
string_token(const unsigned char *p, size_t len)
{
    size_t  n;

    n = 1;

    if (p[0] == '\\') {

        if (len > 1 && p[1] < 0x80) {
            n = 2;

            if (p[1] == 'u') {

                while (n < len && n < 6
                       && ((p[n] >= '0' && p[n] <= '9')
                           || (p[n] >= 'a' && p[n] <= 'f')
                           || (p[n] >= 'A' && p[n] <= 'F')))
                {
                    n++;
                }
            }
        }

        return n;
    }

    while (n < len && p[0] >= 0x80 && p[n] >= 0x80) {
        n++;
    }

    return n;
}


/* s, which is decoded when made valid, escaped and back, in exact room */

static void
string_escape(const kx_str_t *s, const buf_t *decoded)
{
    size_t          i, len;
    ssize_t         n;
    kx_str_t        raw;
    unsigned char  *p, *end, *back;

    p = calloc(1, 6 * s->len + 1);
    back = malloc(3 * s->len + 1);
    check(p != NULL && back != NULL);

    end = kx_json_escape(p, p + 6 * s->len, s);
    check(end != NULL);

    len = (size_t) (end - p);

    for (i = 0; i < len; i++) {
        check(p[i] >= 0x20 && p[i] < 0x7f);

        if (p[i] == '\\') {
            check(++i < len && memchr("\"\\u", p[i], 3) != NULL);

        } else {
            check(p[i] != '"');
        }
    }

    raw.len = len;
    raw.data = p;

    n = kx_json_copy(&raw, back, 3 * s->len);
    check(n >= 0 && utf8_valid(back, (size_t) n));

    if (decoded != NULL) {
        check((size_t) n == decoded->len);
        check(memcmp(back, decoded->start, (size_t) n) == 0);
    }

    free(p);

    /* and with a byte less it does not fit */

    if (len) {
        p = calloc(1, len);
        check(p != NULL);

        check(kx_json_escape(p, p + len, s) == p + len);
        check(kx_json_escape(p, p + len - 1, s) == NULL);

        free(p);
    }

    free(back);
}


static unsigned
utf8_valid(const unsigned char *p, size_t len)
{
    size_t    i, n, k;
    uint32_t  c;

    static const uint32_t  least[] = { 0, 0x80, 0x800, 0x10000 };

    for (i = 0; i < len; i += n + 1) {

        if (p[i] < 0x80) {
            n = 0;
            c = p[i];

        } else if (p[i] >> 5 == 6) {
            n = 1;
            c = p[i] & 0x1f;

        } else if (p[i] >> 4 == 14) {
            n = 2;
            c = p[i] & 0x0f;

        } else if (p[i] >> 3 == 30) {
            n = 3;
            c = p[i] & 0x07;

        } else {
            return 0;
        }

        for (k = 1; k <= n; k++) {

            if (i + k >= len || p[i + k] >> 6 != 2) {
                return 0;
            }

            c = c * 64 + (p[i + k] & 0x3f);
        }

        if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) {
            return 0;
        }
    }

    return 1;
}


static void
fuzz_text(const unsigned char *p, size_t len, unsigned seed)
{
    buf_t  canonical, visible, b;

    buf_init(&canonical, len);
    buf_init(&visible, len);
    buf_init(&b, len);

    text_reference(&canonical, &visible, p, len);

    text_form(&b, KX_TEXT_CANONICAL, p, len, 0);
    check(buf_same(&b, &canonical));

    text_form(&b, KX_TEXT_CANONICAL, p, len, seed);
    check(buf_same(&b, &canonical));

    text_form(&b, KX_TEXT_VISIBLE, p, len, 0);
    check(buf_same(&b, &visible));

    text_form(&b, KX_TEXT_VISIBLE, p, len, seed);
    check(buf_same(&b, &visible));

    free(canonical.start);
    free(visible.start);
    free(b.start);
}


static void
text_form(buf_t *b, kx_text_form_e form, const unsigned char *p, size_t len,
    unsigned seed)
{
    size_t          n, pos;
    kx_text_t       t;
    unsigned char  *copy;

    b->len = 0;

    kx_text_init(&t, form, buf_sink, b);

    for (pos = 0; pos < len; pos += n) {
        n = piece(&seed, len - pos);

        copy = malloc(n);
        check(copy != NULL);

        memcpy(copy, p + pos, n);
        kx_text_feed(&t, copy, n);

        free(copy);
    }

    kx_text_finish(&t);

    check(t.out == b->len);
}


static void
text_reference(buf_t *canonical, buf_t *visible, const unsigned char *p,
    size_t len)
{
    buf_t           kept;
    size_t          n, i;
    unsigned        skip;

    buf_init(&kept, len);
    skip = 0;

    for (i = 0; i < len; i += n) {
        n = text_block(p + i, len - i);

        if (n) {
            skip |= (kept.len == 0);
            continue;
        }

        n = 1;

        /* only the visible form cares, the other one is trimmed anyway */

        if (skip && kept.len == 0 && is_space(p[i])) {
            continue;
        }

        buf_sink(&kept, p + i, 1);
    }

    for (i = 0; i < kept.len; i++) {

        if (kept.start[i] != '\r') {
            buf_sink(visible, kept.start + i, 1);

        } else if (i + 1 == kept.len || kept.start[i + 1] != '\n') {
            buf_sink(visible, (const unsigned char *) "\n", 1);
        }

        if (!is_space(kept.start[i])) {

            if (i > 0 && is_space(kept.start[i - 1]) && canonical->len) {
                buf_sink(canonical, (const unsigned char *) " ", 1);
            }

            buf_sink(canonical, kept.start + i, 1);
        }
    }

    free(kept.start);
}


/* the length of the reasoning block at p, 0 if there is none */

static size_t
text_block(const unsigned char *p, size_t len)
{
    size_t                i, n, open;

    static const char  *tags[] = { "<think>", "</think>",
                                   "<details type=\"reasoning\"",
                                   "</details>" };

    for (i = 0; i < 4; i += 2) {
        open = strlen(tags[i]);

        if (len < open || memcmp(p, tags[i], open) != 0) {
            continue;
        }

        for (n = open; n + strlen(tags[i + 1]) <= len; n++) {

            if (memcmp(p + n, tags[i + 1], strlen(tags[i + 1])) == 0) {
                return n + strlen(tags[i + 1]);
            }
        }

        return len;
    }

    return 0;
}


/* zero is the whole at once */

static size_t
piece(unsigned *seed, size_t left)
{
    size_t  n;

    if (*seed == 0) {
        return left;
    }

    *seed = (*seed * 1103515245 + 12345) | 1;
    n = 1 + (*seed >> 16) % 12;

    return (n < left) ? n : left;
}


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    unsigned  seed;
    kx_str_t  s;

    if (len == 0) {
        return 0;
    }

    seed = *p++;
    len--;

    fuzz_scan(p, len, seed);

    s.len = len;
    s.data = (unsigned char *) p;

    fuzz_string(&s, seed);
    string_escape(&s, NULL);

    fuzz_text(p, len, seed);

    return 0;
}
