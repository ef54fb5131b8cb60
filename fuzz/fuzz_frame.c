/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Framings.  The first byte says which one, the second how the rest is cut
 * into buffers.  What is read in the frames does not depend on that; all
 * frames together are the answer; the elements of an array that is valid JSON
 * are those that a JSON parser finds.
 */


#include <stdlib.h>

#include "check.h"
#include "frame.h"
#include "json_scan.h"


/* what was read, as bytes */

typedef struct {
    unsigned char  *start;
    size_t          len;
    size_t          size;
    unsigned        n;               /* frames that have data */
} reading_t;


static void reading_add(reading_t *r, const void *p, size_t len);
static void read_answer(reading_t *r, kx_framing_e framing,
    const unsigned char *p, size_t len, unsigned cut);
static void read_frame(reading_t *r, const kx_framer_t *f,
    const unsigned char *p, size_t len, unsigned first);
static void check_place(const kx_frame_t *fr, const unsigned char *p,
    size_t len);
static unsigned elements(const unsigned char *p, size_t len);
static size_t piece(unsigned *cut, size_t left);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


static void
reading_add(reading_t *r, const void *p, size_t len)
{
    if (r->size - r->len < len + 1) {
        r->size = r->size * 2 + len + 1;
        r->start = realloc(r->start, r->size);
        check(r->start != NULL);
    }

    if (len) {
        memcpy(r->start + r->len, p, len);
        r->len += len;
    }

    r->start[r->len++] = '\0';
}


static void
read_answer(reading_t *r, kx_framing_e framing, const unsigned char *p,
    size_t len, unsigned cut)
{
    size_t                start, pos, n, used;
    unsigned              first;
    kx_framer_t           f;
    unsigned char        *buf;
    const unsigned char  *next;

    memset(r, 0, sizeof(reading_t));
    kx_framer_init(&f, framing);

    start = 0;
    first = 1;

    for (pos = 0; pos < len; pos += n) {
        n = piece(&cut, len - pos);

        /* memory that ends with the buffer */

        buf = malloc(n);
        check(buf != NULL);
        memcpy(buf, p + pos, n);

        used = 0;

        while ((next = kx_framer_next(&f, buf + used, buf + n)) != NULL) {
            check(next > buf + used && next <= buf + n);

            used = (size_t) (next - buf);

            read_frame(r, &f, p + start, pos + used - start, first);

            start = pos + used;
            first = 0;
        }

        free(buf);
    }

    if (kx_framer_last(&f)) {

        if (start < len) {
            read_frame(r, &f, p + start, len - start, first);
        }

    } else {
        check(framing == KX_FRAMING_SSE || framing == KX_FRAMING_ARRAY);
    }

    /* where the last one has ended, but for the LF of a CRLF */

    if (framing == KX_FRAMING_SSE && start && start < len
        && p[start - 1] == '\r' && p[start] == '\n')
    {
        start++;
    }

    reading_add(r, &start, sizeof(start));
}


static void
read_frame(reading_t *r, const kx_framer_t *f, const unsigned char *p,
    size_t len, unsigned first)
{
    int             rc;
    kx_frame_t      fr;
    unsigned char  *frame, *scratch;

    frame = malloc(len);
    scratch = malloc(len);
    check(frame != NULL && scratch != NULL);

    memcpy(frame, p, len);
    memset(scratch, '#', len);

    rc = kx_frame_parse(&fr, f, frame, len, first, scratch);

    check(memcmp(frame, p, len) == 0);
    check(fr.eol.len == 1 || (fr.eol.len == 2 && fr.eol.data[0] == '\r'));
    check(fr.eol.data[fr.eol.len - 1] == '\n' || fr.eol.data[0] == '\r');

    if (rc == KX_OK) {
        check_place(&fr, frame, len);

        if (f->framing != KX_FRAMING_SSE) {
            check(fr.data.len > 0);
            check(fr.event.len == 0);
            check(fr.data.data == fr.tail.data);
            check(fr.data.len == fr.tail.len);
            check(memchr(" \t\r\n", fr.data.data[0], 4) == NULL);
            check(memchr(" \t\r\n", fr.data.data[fr.data.len - 1], 4)
                  == NULL);
        }

        if (f->framing == KX_FRAMING_ARRAY) {
            check(fr.data.data[0] == '{');
        }

        r->n++;

        reading_add(r, fr.event.data, fr.event.len);
        reading_add(r, fr.data.data, fr.data.len);
        reading_add(r, fr.eol.data, fr.eol.len);

    } else {
        check(rc == KX_DECLINED);
    }

    free(frame);
    free(scratch);
}


/* the end of the data is in the frame */

static void
check_place(const kx_frame_t *fr, const unsigned char *p, size_t len)
{
    check(fr->tail.data >= p && fr->tail.data + fr->tail.len <= p + len);
    check(fr->tail.len <= fr->data.len && fr->data.len <= len);
    check(memcmp(fr->data.data + fr->data.len - fr->tail.len, fr->tail.data,
                 fr->tail.len) == 0);
}


/* how many objects an array has, each of them found by its frame */

static unsigned
elements(const unsigned char *p, size_t len)
{
    unsigned              n;
    kx_str_t              raw;
    kx_json_t             j;
    kx_frame_t            fr;
    kx_framer_t           f;
    kx_json_type_e        type;
    const unsigned char  *start, *next;

    kx_framer_init(&f, KX_FRAMING_ARRAY);
    kx_json_init(&j, p, len);

    check(kx_json_enter(&j) == KX_OK);

    start = p;
    n = 0;

    while (kx_json_element(&j) == KX_OK) {
        type = kx_json_type(&j);
        check(kx_json_skip(&j, &raw) == KX_OK);

        if (type != KX_JSON_OBJECT && type != KX_JSON_ARRAY) {
            continue;
        }

        next = kx_framer_next(&f, start, p + len);
        check(next == j.pos);

        if (type == KX_JSON_OBJECT
            && kx_frame_parse(&fr, &f, start, (size_t) (next - start), 0,
                              NULL)
               == KX_OK
            && fr.data.len == raw.len)
        {
            /* with no "{" in a string in front of it */

            check(fr.data.data == raw.data);
            n++;
        }

        start = next;
    }

    check(kx_framer_next(&f, start, p + len) == NULL);

    return n;
}


static size_t
piece(unsigned *cut, size_t left)
{
    size_t  n;

    /* all at once, in equal pieces, or in pieces of all kinds */

    if (*cut == 0) {
        return left;
    }

    if (*cut < 16) {
        n = *cut;

    } else {
        *cut = (*cut * 1103515245 + 12345) & 0x7fffffff;
        n = 1 + (*cut >> 16) % 40;
        *cut |= 16;
    }

    return (n < left) ? n : left;
}


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    unsigned      cut;
    kx_json_t     j;
    reading_t     once, cuts;
    kx_framing_e  framing;

    static const kx_framing_e  framings[] = {
        KX_FRAMING_SSE,
        KX_FRAMING_LINES,
        KX_FRAMING_ARRAY,
        KX_FRAMING_WHOLE
    };

    if (len < 3) {
        return 0;
    }

    framing = framings[p[0] % 4];
    cut = p[1];

    p += 2;
    len -= 2;

    read_answer(&once, framing, p, len, 0);
    read_answer(&cuts, framing, p, len, cut);

    check(once.len == cuts.len);
    check(once.n == cuts.n);
    check(memcmp(once.start, cuts.start, once.len) == 0);

    kx_json_init(&j, p, len);

    if (framing == KX_FRAMING_ARRAY && kx_json_type(&j) == KX_JSON_ARRAY
        && kx_json_skip(&j, NULL) == KX_OK && kx_json_end(&j) == KX_OK)
    {
        check(elements(p, len) <= once.n);
    }

    free(once.start);
    free(cuts.start);

    return 0;
}
