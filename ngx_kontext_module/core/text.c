/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "text.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif


#define KX_TEXT_SIZE  1024           /* canonical text is gathered in */

#ifndef __SSE2__

#define KX_TEXT_STEP  8
#define KX_TEXT_EACH  ((uint64_t) 0x0101010101010101ULL)
#define KX_TEXT_HIGH  ((uint64_t) 0x8080808080808080ULL)
#define KX_TEXT_LOW   ((uint64_t) 0x7f7f7f7f7f7f7f7fULL)

#endif

#define kx_text_space(c)                                                      \
    ((c) == ' ' || ((c) >= '\t' && (c) <= '\r'))


/* blocks count from 1; the first two characters of a tag tell which it is */

enum {
    KX_TEXT_THINK = 1,
    KX_TEXT_DETAILS
};


typedef struct {
    kx_str_t  open;
    kx_str_t  close;
} kx_text_tag_t;


static const unsigned char *kx_text_block(kx_text_t *t,
    const unsigned char *p, const unsigned char *last);
static const unsigned char *kx_text_tag(kx_text_t *t, const unsigned char *p,
    const unsigned char *last);
static const unsigned char *kx_text_angle(const unsigned char *p,
    const unsigned char *last);
static void kx_text_plain(kx_text_t *t, const unsigned char *p,
    const unsigned char *last);
static void kx_text_canonical(kx_text_t *t, const unsigned char *p,
    const unsigned char *last);
static const unsigned char *kx_text_run(const unsigned char *start,
    const unsigned char *p, const unsigned char *last);
#ifdef __SSE2__
static inline unsigned kx_text_ends(const unsigned char *p);
#else
static unsigned kx_text_folded(const unsigned char *p);
#endif
static void kx_text_visible(kx_text_t *t, const unsigned char *p,
    const unsigned char *last);
static void kx_text_out(kx_text_t *t, const unsigned char *p, size_t len);


static const kx_text_tag_t  kx_text_tags[] = {
    { kx_string(""), kx_string("") },
    { kx_string("<think>"), kx_string("</think>") },
    { kx_string("<details type=\"reasoning\""), kx_string("</details>") }
};


void
kx_text_init(kx_text_t *t, kx_text_form_e form, kx_sink_pt sink, void *data)
{
    memset(t, 0, sizeof(kx_text_t));

    t->form = form;
    t->sink = sink;
    t->data = data;
}


void
kx_text_feed(void *data, const unsigned char *p, size_t len)
{
    kx_text_t            *t = data;
    const unsigned char  *last, *angle;

    if (len == 0) {
        return;
    }

    last = p + len;

    while (p < last) {

        if (t->block) {
            p = kx_text_block(t, p, last);
            continue;
        }

        if (t->matched) {
            p = kx_text_tag(t, p, last);
            continue;
        }

        angle = kx_text_angle(p, last);

        kx_text_plain(t, p, angle);

        if (angle == last) {
            return;
        }

        t->tag = KX_TEXT_THINK;
        t->matched = 1;

        p = angle + 1;
    }
}


void
kx_text_finish(kx_text_t *t)
{
    const kx_str_t  *tag;

    if (t->block == 0 && t->matched) {
        tag = &kx_text_tags[t->tag].open;
        kx_text_plain(t, tag->data, tag->data + t->matched);
    }

    t->block = 0;
    t->matched = 0;
    t->space = 0;
}


/* looks for the end of a block */

static const unsigned char *
kx_text_block(kx_text_t *t, const unsigned char *p, const unsigned char *last)
{
    const kx_str_t  *tag;

    tag = &kx_text_tags[t->block].close;

    while (p < last) {

        if (t->matched == 0) {
            p = memchr(p, '<', (size_t) (last - p));

            if (p == NULL) {
                return last;
            }
        }

        if (*p != tag->data[t->matched]) {

            /* the character may be the first one of the tag */

            t->matched = 0;

            if (*p != '<') {
                p++;
                continue;
            }
        }

        p++;

        if (++t->matched == tag->len) {
            t->block = 0;
            t->matched = 0;
            break;
        }
    }

    return p;
}


/* goes on with a tag that may open a block */

static const unsigned char *
kx_text_tag(kx_text_t *t, const unsigned char *p, const unsigned char *last)
{
    size_t           matched;
    const kx_str_t  *tag;

    if (t->matched == 1 && *p == 'd') {
        t->tag = KX_TEXT_DETAILS;
    }

    tag = &kx_text_tags[t->tag].open;

    while (p < last) {

        if (*p != tag->data[t->matched]) {
            matched = t->matched;
            t->matched = 0;

            kx_text_plain(t, tag->data, tag->data + matched);
            break;
        }

        p++;

        if (++t->matched == tag->len) {
            t->block = t->tag;
            t->block_seen = 1;
            t->matched = 0;
            t->skip = (t->out == 0);
            break;
        }
    }

    return p;
}


/* the place of a "<" that may be the first character of a tag, or last */

static const unsigned char *
kx_text_angle(const unsigned char *p, const unsigned char *last)
{
    while (p < last) {
        p = memchr(p, '<', (size_t) (last - p));

        if (p == NULL) {
            break;
        }

        if (p + 1 == last || p[1] == 't' || p[1] == 'd') {
            return p;
        }

        p++;
    }

    return last;
}


/* text without tags */

static void
kx_text_plain(kx_text_t *t, const unsigned char *p, const unsigned char *last)
{
    if (t->form == KX_TEXT_CANONICAL) {
        kx_text_canonical(t, p, last);

    } else {
        kx_text_visible(t, p, last);
    }
}


static void
kx_text_canonical(kx_text_t *t, const unsigned char *p,
    const unsigned char *last)
{
    size_t                n, len;
    unsigned char         buf[KX_TEXT_SIZE];
    const unsigned char  *start, *end;

    n = 0;
    start = p;

    while (p < last) {

        if (kx_text_space(*p)) {
            t->space = 1;
            p++;
            continue;
        }

        end = kx_text_run(start, p, last);
        len = (size_t) (end - p);

        if (len >= sizeof(buf) - n) {
            kx_text_out(t, buf, n);
            n = 0;
        }

        if (t->space && t->out + n) {
            buf[n++] = ' ';
        }

        t->space = 0;

        if (len >= sizeof(buf) - n) {
            kx_text_out(t, buf, n);
            kx_text_out(t, p, len);
            n = 0;

        } else {
            memcpy(buf + n, p, len);
            n += len;
        }

        p = end;
    }

    kx_text_out(t, buf, n);
}


#ifdef __SSE2__

/*
 * A bit for each of 16 bytes at which a run ends: other white space than one
 * space with a character behind it.  The 17th bit is set when the last byte is
 * a space, of which that is not known.
 */

static inline unsigned
kx_text_ends(const unsigned char *p)
{
    __m128i   v, w;
    unsigned  spaces, others;

    v = _mm_loadu_si128((const __m128i *) p);
    w = _mm_sub_epi8(v, _mm_set1_epi8('\t'));

    spaces = (unsigned) _mm_movemask_epi8(_mm_cmpeq_epi8(v,
                                                  _mm_set1_epi8(' ')));
    others = (unsigned) _mm_movemask_epi8(_mm_cmpeq_epi8(w,
                            _mm_min_epu8(w, _mm_set1_epi8('\r' - '\t'))));

    return others | (spaces & ((spaces | others) >> 1))
           | (spaces >> 15 << 16);
}

#endif


/*
 * The end of what may be passed on as it is: p is at a character that is not
 * white space, and each white space after it up to the end is one space with
 * another character behind it.  What is between start and p is not looked at,
 * but can be read.
 */

static const unsigned char *
kx_text_run(const unsigned char *start, const unsigned char *p,
    const unsigned char *last)
{
#ifdef __SSE2__

    unsigned  end, seen;

    while (last - p >= 16) {
        end = kx_text_ends(p);

        if (end & 0xffff) {
            return p + __builtin_ctz(end);
        }

        /* what comes after a space at the end is seen with the next ones */

        p += 16 - (end >> 16);
    }

    if (last - p > 1 && last - start >= 16) {

        /* the last bytes are read together with some in front of them */

        seen = (unsigned) (16 - (last - p));
        end = kx_text_ends(last - 16) >> seen;

        if (end & (0xffff >> seen)) {
            return p + __builtin_ctz(end);
        }

        p = last - (end >> (16 - seen));
    }

#else

    (void) start;

    while (last - p >= KX_TEXT_STEP && kx_text_folded(p)) {
        p += KX_TEXT_STEP - (p[KX_TEXT_STEP - 1] == ' ');
    }

#endif

    while (p < last) {

        if (!kx_text_space(*p)) {
            p++;
            continue;
        }

        if (*p != ' ' || p + 1 == last || kx_text_space(p[1])) {
            break;
        }

        p += 2;
    }

    return p;
}


#ifndef __SSE2__

/* are there no control characters and no two spaces in KX_TEXT_STEP bytes? */

static unsigned
kx_text_folded(const unsigned char *p)
{
    uint64_t  w, space, spaces;

    memcpy(&w, p, 8);

    /* exact, other than the usual test for a zero byte: nothing carries */

    space = w ^ (' ' * KX_TEXT_EACH);
    spaces = ~(((space & KX_TEXT_LOW) + KX_TEXT_LOW) | space | KX_TEXT_LOW);

    return (((w - ' ' * KX_TEXT_EACH) & ~w & KX_TEXT_HIGH)
            | (spaces & (spaces << 8))) == 0;
}

#endif


static void
kx_text_visible(kx_text_t *t, const unsigned char *p,
    const unsigned char *last)
{
    const unsigned char  *cr;

    if (t->skip) {

        while (p < last && kx_text_space(*p)) {
            p++;
        }

        if (p == last) {
            return;
        }

        t->skip = 0;
    }

    while (p < last) {

        if (t->cr) {
            t->cr = 0;

            if (*p == '\n') {
                p++;
                continue;
            }
        }

        cr = memchr(p, '\r', (size_t) (last - p));

        if (cr == NULL) {
            kx_text_out(t, p, (size_t) (last - p));
            return;
        }

        if (cr > p) {
            kx_text_out(t, p, (size_t) (cr - p));
        }

        p = cr + 1;

        /* an LF at hand is given out with what follows it */

        if (p < last && *p == '\n') {
            continue;
        }

        kx_text_out(t, (unsigned char *) "\n", 1);
        t->cr = 1;
    }
}


static void
kx_text_out(kx_text_t *t, const unsigned char *p, size_t len)
{
    if (len == 0) {
        return;
    }

    t->out += len;
    t->sink(t->data, p, len);
}
