/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * How an answer is cut into frames, each of which a dialect can read alone:
 *
 *   KX_FRAMING_SSE    server-sent events (sse.h)
 *   KX_FRAMING_LINES  a JSON value a line (NDJSON), LF or CRLF
 *   KX_FRAMING_ARRAY  the elements of one JSON array (Gemini without
 *                     "alt=sse"); a frame is an element with all that stands
 *                     in front of it
 *   KX_FRAMING_WHOLE  one JSON value, which is all of the answer
 */


#ifndef _KX_FRAME_H_INCLUDED_
#define _KX_FRAME_H_INCLUDED_


#include "sse.h"


/* bits, so that there can be sets of them */

typedef enum {
    KX_FRAMING_SSE = 1,
    KX_FRAMING_LINES = 2,
    KX_FRAMING_ARRAY = 4,
    KX_FRAMING_WHOLE = 8
} kx_framing_e;


/* survives between buffers */

typedef struct {
    kx_framing_e    framing;
    kx_sse_t        sse;

    /* KX_FRAMING_ARRAY */
    unsigned        depth;           /* of brackets that are open */
    unsigned        string:1;
    unsigned        escape:1;
} kx_framer_t;


typedef struct {
    kx_str_t        event;           /* the name of an SSE event, or empty */
    kx_str_t        data;            /* the JSON text, or a terminator */
    kx_str_t        tail;            /* the end of data, in place */
    kx_str_t        eol;             /* how its lines end, a constant */
    size_t          start;           /* bytes that belong before it: a BOM, or
                                        the LF of a CRLF that was cut */
    kx_str_t        whole;           /* all its bytes, if another one with the
                                        same ones is the same; or empty */
} kx_frame_t;


void kx_framer_init(kx_framer_t *f, kx_framing_e framing);

/*
 * Goes on in the answer with the bytes from p up to last.  Returns the place
 * after the first frame that ends there, or NULL if none does: then all the
 * bytes belong to an unfinished frame.
 */
const unsigned char *kx_framer_next(kx_framer_t *f, const unsigned char *p,
    const unsigned char *last);

/*
 * Does nothing of what went before change what the next byte means, which is
 * the first one of a frame?  It then may be compared with fr->whole of an
 * earlier one, and passed over without kx_framer_next().
 */
unsigned kx_framer_between(const kx_framer_t *f);

/*
 * Is what the answer ends with a frame although nothing has ended it?  So for
 * a last line without LF and a whole answer, not for an event (WHATWG HTML
 * 9.2.6).
 */
unsigned kx_framer_last(const kx_framer_t *f);

/*
 * Reads a frame of len bytes at p; first is set for the first one of an
 * answer, which may start with a BOM.  scratch has room for len bytes; only
 * an event of several data lines is joined there.  Returns KX_OK, or
 * KX_DECLINED when there is no data in it.
 */
int kx_frame_parse(kx_frame_t *fr, const kx_framer_t *f,
    const unsigned char *p, size_t len, unsigned first,
    unsigned char *scratch);


#endif /* _KX_FRAME_H_INCLUDED_ */
