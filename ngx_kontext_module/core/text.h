/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The text of a message as a stream of UTF-8 bytes.  Two forms are made of
 * it (chat-apis.md 13, step 2; protocol.md 3.2):
 *
 *   KX_TEXT_CANONICAL  what message ids are made of: reasoning blocks taken
 *                      out, runs of white space (space, HT, LF, VT, FF, CR)
 *                      folded to one space, trimmed at both ends;
 *   KX_TEXT_VISIBLE    what a user saw: reasoning blocks taken out together
 *                      with the white space after a block that opens the
 *                      text, CRLF and CR made LF, all else as it was.
 *
 * A reasoning block is <think> ... </think> or <details type="reasoning" ...
 * ... </details>; one that is not closed reaches to the end of the text.
 * Any split of the input gives the same output.
 */


#ifndef _KX_TEXT_H_INCLUDED_
#define _KX_TEXT_H_INCLUDED_


#include "kx.h"


typedef enum {
    KX_TEXT_CANONICAL = 0,
    KX_TEXT_VISIBLE
} kx_text_form_e;


typedef struct {
    kx_text_form_e   form;
    unsigned         block;      /* which reasoning block is open, 0 none */
    unsigned         tag;        /* which block a tag seen in part opens */
    unsigned         matched;    /* characters of a tag seen so far */
    unsigned         space:1;    /* white space waits for what follows */
    unsigned         cr:1;       /* the last byte was a CR */
    unsigned         skip:1;     /* drop white space: a block opened it */
    unsigned         block_seen:1;
    size_t           out;        /* bytes given to the sink so far */
    kx_sink_pt       sink;
    void            *data;
} kx_text_t;


/* sink is called with the bytes of the chosen form, data as its argument */
void kx_text_init(kx_text_t *t, kx_text_form_e form, kx_sink_pt sink,
    void *data);

/* feeds bytes; a kx_sink_pt itself, so t is a void pointer */
void kx_text_feed(void *t, const unsigned char *p, size_t len);

/* ends the text: gives out what was kept back */
void kx_text_finish(kx_text_t *t);


#endif /* _KX_TEXT_H_INCLUDED_ */
