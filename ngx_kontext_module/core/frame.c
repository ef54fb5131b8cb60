/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "frame.h"


static const unsigned char *kx_framer_element(kx_framer_t *f,
    const unsigned char *p, const unsigned char *last);
static void kx_frame_whole(kx_frame_t *fr, const kx_framer_t *f,
    const unsigned char *p, size_t len, unsigned first);
static void kx_frame_eol(kx_frame_t *fr, const kx_framer_t *f,
    const unsigned char *p, size_t len);


static const kx_str_t  kx_eols[] = {
    kx_string("\n"),
    kx_string("\r\n"),
    kx_string("\r")
};


void
kx_framer_init(kx_framer_t *f, kx_framing_e framing)
{
    memset(f, 0, sizeof(kx_framer_t));

    f->framing = framing;
}


const unsigned char *
kx_framer_next(kx_framer_t *f, const unsigned char *p,
    const unsigned char *last)
{
    switch (f->framing) {

    case KX_FRAMING_SSE:
        return kx_sse_frame(&f->sse, p, last);

    case KX_FRAMING_LINES:
        p = (p < last) ? memchr(p, '\n', (size_t) (last - p)) : NULL;
        return p ? p + 1 : NULL;

    case KX_FRAMING_ARRAY:
        return kx_framer_element(f, p, last);

    default: /* KX_FRAMING_WHOLE */
        return NULL;
    }
}


/* the end of an element of the outermost array, if it has brackets itself */

static const unsigned char *
kx_framer_element(kx_framer_t *f, const unsigned char *p,
    const unsigned char *last)
{
    for ( /* void */ ; p < last; p++) {

        if (f->string) {

            if (f->escape) {
                f->escape = 0;

            } else if (*p == '\\') {
                f->escape = 1;

            } else if (*p == '"') {
                f->string = 0;
            }

            continue;
        }

        switch (*p) {

        case '"':
            f->string = 1;
            break;

        case '[':
        case '{':
            f->depth++;
            break;

        case ']':
        case '}':

            if (f->depth) {
                f->depth--;
            }

            if (f->depth == 1) {
                return p + 1;
            }

            break;

        default:
            break;
        }
    }

    return NULL;
}


unsigned
kx_framer_between(const kx_framer_t *f)
{
    switch (f->framing) {

    case KX_FRAMING_SSE:
        return !f->sse.line && !f->sse.cr && f->sse.lines == 0;

    case KX_FRAMING_LINES:
        return 1;

    case KX_FRAMING_ARRAY:
        return f->depth == 1 && !f->string;

    default: /* KX_FRAMING_WHOLE */
        return 0;
    }
}


unsigned
kx_framer_last(const kx_framer_t *f)
{
    return f->framing == KX_FRAMING_LINES || f->framing == KX_FRAMING_WHOLE;
}


int
kx_frame_parse(kx_frame_t *fr, const kx_framer_t *f, const unsigned char *p,
    size_t len, unsigned first, unsigned char *scratch)
{
    kx_sse_event_t        ev;
    const unsigned char  *start, *last;

    memset(fr, 0, sizeof(kx_frame_t));

    kx_frame_eol(fr, f, p, len);

    if (first && len >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0) {
        fr->start = 3;
    }

    if (f->framing == KX_FRAMING_SSE) {

        if (fr->start < len && p[fr->start] == '\n') {
            fr->start++;
        }

        if (((f->sse.single && !first)
             ? kx_sse_parse_single(&ev, p, len)
             : kx_sse_parse(&ev, p, len, first, scratch))
            != KX_OK)
        {
            return KX_DECLINED;
        }

        fr->event = ev.event;
        fr->data = ev.data;
        fr->tail = ev.tail;

        kx_frame_whole(fr, f, p, len, first);

        return KX_OK;
    }

    last = p + len;
    start = p + fr->start;

    if (f->framing == KX_FRAMING_ARRAY) {

        /* after "[" or "," */

        while (start < last && *start != '{') {
            start++;
        }
    }

    while (start < last && (*start == ' ' || *start == '\t'
                            || *start == '\r' || *start == '\n'))
    {
        start++;
    }

    while (last > start && (last[-1] == ' ' || last[-1] == '\t'
                            || last[-1] == '\r' || last[-1] == '\n'))
    {
        last--;
    }

    fr->data.data = (unsigned char *) start;
    fr->data.len = (size_t) (last - start);
    fr->tail = fr->data;

    kx_frame_whole(fr, f, p, len, first);

    return fr->data.len ? KX_OK : KX_DECLINED;
}


/*
 * The first one is like no other, nor is one whose data was joined, or which
 * may have taken half a line end from the next one.
 */

static void
kx_frame_whole(kx_frame_t *fr, const kx_framer_t *f, const unsigned char *p,
    size_t len, unsigned first)
{
    if (first || len == 0 || fr->start
        || fr->data.data != fr->tail.data
        || (f->framing != KX_FRAMING_ARRAY && p[len - 1] != '\n'))
    {
        return;
    }

    fr->whole.data = (unsigned char *) p;
    fr->whole.len = len;
}


static void
kx_frame_eol(kx_frame_t *fr, const kx_framer_t *f, const unsigned char *p,
    size_t len)
{
    fr->eol = kx_eols[0];

    if (f->framing == KX_FRAMING_SSE) {

        /* not of the blank line, whose LF may be in the next buffer */

        if (len && p[len - 1] == '\n') {
            len--;
        }

        if (len && p[len - 1] == '\r') {
            len--;
        }
    }

    if (len && p[len - 1] == '\r') {
        fr->eol = kx_eols[2];

    } else if (len > 1 && p[len - 1] == '\n' && p[len - 2] == '\r') {
        fr->eol = kx_eols[1];
    }
}
