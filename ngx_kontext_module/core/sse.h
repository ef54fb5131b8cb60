/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Server-sent events (WHATWG HTML 9.2.5 and 9.2.6): where a frame ends, and
 * what it says.  LF, CRLF and CR, also mixed; an optional BOM.
 *
 * A frame is everything up to and including a blank line.  A lone blank line
 * is a frame, too, one that says nothing.
 */


#ifndef _KX_SSE_H_INCLUDED_
#define _KX_SSE_H_INCLUDED_


#include "kx.h"


/* survives between buffers; all zeroes at the start of a stream */

typedef struct {
    unsigned              line:1;    /* the current line has characters */
    unsigned              cr:1;      /* the last character was a CR */
    unsigned              lines;     /* of this frame, that are not blank */
    unsigned              single;    /* the frame that has ended had one */
} kx_sse_t;


typedef struct {
    kx_str_t              event;     /* the last event field, or empty */
    kx_str_t              data;      /* all data, joined with LF */
    kx_str_t              tail;      /* the last data line, in place */
    unsigned              ndata;     /* number of data lines */
} kx_sse_event_t;


/*
 * Goes on in the stream with the bytes from p up to last.  Returns the place
 * after the first frame that ends there, or NULL if none does: then all the
 * bytes belong to an unfinished frame.  A frame that ends with CR ends there
 * even if an LF may follow in the next buffer; that LF then is the first
 * byte of the next frame, and means nothing.  With the LF at hand, it is
 * part of the frame.
 */
const unsigned char *kx_sse_frame(kx_sse_t *sse, const unsigned char *p,
    const unsigned char *last);

/*
 * Reads a whole frame of len bytes at p; first is set for the first frame of
 * a stream, which may start with a BOM.  One data line is left in place;
 * several are joined in scratch, which has room for len bytes.  Returns
 * KX_OK if the frame has data, KX_DECLINED if it has none (comments, other
 * fields, blank lines).
 */
int kx_sse_parse(kx_sse_event_t *ev, const unsigned char *p, size_t len,
    unsigned first, unsigned char *scratch);

/* The same for a frame without a BOM that has one line only. */
int kx_sse_parse_single(kx_sse_event_t *ev, const unsigned char *p,
    size_t len);


#endif /* _KX_SSE_H_INCLUDED_ */
