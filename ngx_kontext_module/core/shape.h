/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * While text streams, one frame is like the other but for the text, and for a
 * number or a string that means nothing.  What a frame was found to mean is
 * true for each further one that has the same bytes elsewhere: it needs to be
 * compared, not to be read, and its end is found on the way.
 */


#ifndef _KX_SHAPE_H_INCLUDED_
#define _KX_SHAPE_H_INCLUDED_


#include "json_scan.h"


#define KX_SHAPE_SIZE   512          /* of what stays the same */
#define KX_SHAPE_HOLES  8            /* where something else may stand */


typedef struct {
    unsigned         n;              /* holes; 0: nothing was learned */
    unsigned         len;
    struct {
        unsigned short   at;         /* in bytes */
        unsigned char    string;     /* or a number */
        unsigned char    text;
    }                holes[KX_SHAPE_HOLES];
    unsigned char    bytes[KX_SHAPE_SIZE];
} kx_shape_t;


/*
 * Learns the shape of a frame: data is the JSON object in it, text the raw
 * string in that whose contents are the text, noise are the names of members
 * whose value may be any string or whole number, up to an empty one.  What
 * cannot be learned leaves s without a shape.
 */
void kx_shape_learn(kx_shape_t *s, const kx_str_t *frame,
    const kx_str_t *data, const kx_str_t *text, const kx_str_t *noise);

/*
 * Returns the place after the frame of that shape that starts at p, whose text
 * then is raw: its data is as good a JSON object as the one learned, and there
 * is no line end in it that was not in that one.  NULL: what is there up to
 * last has to be read.
 */
const unsigned char *kx_shape_match(const kx_shape_t *s,
    const unsigned char *p, const unsigned char *last, kx_str_t *raw);


#endif /* _KX_SHAPE_H_INCLUDED_ */
