/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "sse.h"

#ifdef __SSE2__

#include <emmintrin.h>

#else

/* how far ahead an LF is looked for before a CR, see kx_sse_line() */

#define KX_SSE_WINDOW  512

#endif


static const unsigned char *kx_sse_end(kx_sse_t *sse,
    const unsigned char *p);
static const unsigned char *kx_sse_line(const unsigned char *p,
    const unsigned char *last);
static unsigned kx_sse_field(const unsigned char *p,
    const unsigned char *end, const char *name, size_t len, kx_str_t *value);
static void kx_sse_data(kx_sse_event_t *ev, const kx_str_t *value,
    unsigned char *scratch);


const unsigned char *
kx_sse_frame(kx_sse_t *sse, const unsigned char *p, const unsigned char *last)
{
    while (p < last) {

        if (*p == '\n') {
            p++;

            if (sse->cr) {
                sse->cr = 0;
                continue;
            }

            if (!sse->line) {
                return kx_sse_end(sse, p);
            }

            sse->line = 0;
            sse->lines++;
            continue;
        }

        if (*p == '\r') {
            p++;
            sse->cr = 1;

            if (sse->line) {
                sse->line = 0;
                sse->lines++;
                continue;
            }

            if (p < last && *p == '\n') {
                p++;
                sse->cr = 0;
            }

            return kx_sse_end(sse, p);
        }

        sse->cr = 0;
        sse->line = 1;

        p = kx_sse_line(p, last);
    }

    sse->single = 0;

    return NULL;
}


static const unsigned char *
kx_sse_end(kx_sse_t *sse, const unsigned char *p)
{
    sse->single = (sse->lines == 1);
    sse->lines = 0;

    return p;
}


int
kx_sse_parse(kx_sse_event_t *ev, const unsigned char *p, size_t len,
    unsigned first, unsigned char *scratch)
{
    kx_str_t              value;
    const unsigned char  *last, *end;

    memset(ev, 0, sizeof(kx_sse_event_t));

    if (len == 0) {
        return KX_DECLINED;
    }

    last = p + len;

    if (first && len >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0) {
        p += 3;
    }

    while (p < last) {
        end = kx_sse_line(p, last);

        if (kx_sse_field(p, end, "data", 4, &value)) {
            kx_sse_data(ev, &value, scratch);

        } else if (kx_sse_field(p, end, "event", 5, &value)) {
            ev->event = value;
        }

        /* the LF of a CRLF then is a blank line, which says nothing here */

        p = end + (end < last);
    }

    return ev->ndata ? KX_OK : KX_DECLINED;
}


int
kx_sse_parse_single(kx_sse_event_t *ev, const unsigned char *p, size_t len)
{
    kx_str_t              value;
    const unsigned char  *last;

    memset(ev, 0, sizeof(kx_sse_event_t));

    last = p + len;

    while (p < last && *p == '\n') {
        p++;
    }

    while (p < last && (last[-1] == '\n' || last[-1] == '\r')) {
        last--;
    }

    if (!kx_sse_field(p, last, "data", 4, &value)) {
        return KX_DECLINED;
    }

    ev->data = value;
    ev->tail = value;
    ev->ndata = 1;

    return KX_OK;
}


#ifdef __SSE2__

/* the place of the first CR or LF, or last */

static const unsigned char *
kx_sse_line(const unsigned char *p, const unsigned char *last)
{
    int      found;
    __m128i  v, w, x, y, lf, cr;

    lf = _mm_set1_epi8('\n');
    cr = _mm_set1_epi8('\r');

    while (last - p >= 64) {
        v = _mm_loadu_si128((const __m128i *) p);
        w = _mm_loadu_si128((const __m128i *) (p + 16));
        x = _mm_loadu_si128((const __m128i *) (p + 32));
        y = _mm_loadu_si128((const __m128i *) (p + 48));

        v = _mm_or_si128(_mm_cmpeq_epi8(v, lf), _mm_cmpeq_epi8(v, cr));
        w = _mm_or_si128(_mm_cmpeq_epi8(w, lf), _mm_cmpeq_epi8(w, cr));
        x = _mm_or_si128(_mm_cmpeq_epi8(x, lf), _mm_cmpeq_epi8(x, cr));
        y = _mm_or_si128(_mm_cmpeq_epi8(y, lf), _mm_cmpeq_epi8(y, cr));

        if (_mm_movemask_epi8(_mm_or_si128(_mm_or_si128(v, w),
                                           _mm_or_si128(x, y))))
        {
            break;
        }

        p += 64;
    }

    while (last - p >= 16) {
        v = _mm_loadu_si128((const __m128i *) p);

        found = _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(v, lf),
                                               _mm_cmpeq_epi8(v, cr)));
        if (found) {
            return p + __builtin_ctz((unsigned) found);
        }

        p += 16;
    }

    while (p < last && *p != '\n' && *p != '\r') {
        p++;
    }

    return p;
}

#else

/*
 * The place of the first CR or LF, or last.  Two searches of the library are
 * faster than a loop over the bytes, but the first must not run to the end of
 * a large buffer that has a CR for every line.
 */

static const unsigned char *
kx_sse_line(const unsigned char *p, const unsigned char *last)
{
    size_t                n;
    const unsigned char  *lf, *cr;

    while (p < last) {
        n = (size_t) (last - p);

        if (n > KX_SSE_WINDOW) {
            n = KX_SSE_WINDOW;
        }

        lf = memchr(p, '\n', n);

        if (lf != NULL) {
            n = (size_t) (lf - p);
        }

        cr = memchr(p, '\r', n);

        if (cr != NULL) {
            return cr;
        }

        if (lf != NULL) {
            return lf;
        }

        p += n;
    }

    return last;
}

#endif


static unsigned
kx_sse_field(const unsigned char *p, const unsigned char *end,
    const char *name, size_t len, kx_str_t *value)
{
    if ((size_t) (end - p) < len || memcmp(p, name, len) != 0) {
        return 0;
    }

    p += len;

    if (p < end) {

        if (*p++ != ':') {
            return 0;
        }

        if (p < end && *p == ' ') {
            p++;
        }
    }

    value->len = (size_t) (end - p);
    value->data = (unsigned char *) p;

    return 1;
}


static void
kx_sse_data(kx_sse_event_t *ev, const kx_str_t *value, unsigned char *scratch)
{
    ev->tail = *value;

    if (ev->ndata++ == 0) {
        ev->data = *value;
        return;
    }

    if (ev->ndata == 2) {
        memcpy(scratch, ev->data.data, ev->data.len);
        ev->data.data = scratch;
    }

    scratch[ev->data.len++] = '\n';

    memcpy(scratch + ev->data.len, value->data, value->len);
    ev->data.len += value->len;
}
