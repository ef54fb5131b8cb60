/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * An ad as text of an answer, and how it is found when the client sends it
 * back with the history (chat-apis.md 13, step 2):
 *
 *     LF LF U+2063 ... the frame URL ... U+2063
 *
 * U+2063 INVISIBLE SEPARATOR is no white space: clients neither show nor trim
 * it.
 */


#ifndef _KX_TEXT_AD_H_INCLUDED_
#define _KX_TEXT_AD_H_INCLUDED_


#include "json_scan.h"


/* how the id of an item begins that is nothing but an ad (Responses) */
#define KX_TEXT_AD_ID    "msg_kontext"

#define KX_MAX_TEXT_AD   4096        /* bytes between the marks */
#define KX_MAX_TEXT_ADS  1024        /* that are taken out of a request */


typedef struct {
    size_t          start;           /* offsets: the first byte, */
    size_t          end;             /* and the one after the last */
} kx_range_t;


/*
 * Writes value between its marks as the inside of a JSON string, in pure
 * ASCII; marks within value are left out.  Returns the place after the last
 * byte, or NULL when it does not fit before end or is too large.
 */
unsigned char *kx_text_ad_write(unsigned char *dst, const unsigned char *end,
    const kx_str_t *value);

/*
 * May there be an ad in a text at all?  Nearly no request has one, and this is
 * the faster way to know.
 */
unsigned kx_text_ad_marked(const unsigned char *p, size_t len);

/*
 * Finds the bytes of a JSON text that are to be left out so that no ad with a
 * frame URL of this origin remains in it, in ascending order, at most
 * KX_MAX_TEXT_ADS ranges.  Where an ad is all of the member "text" of an
 * object in an array, the object goes, and so does an object in an array
 * whose own array has become empty by that, or whose member "id" begins with
 * KX_TEXT_AD_ID.  Of members with the same name, "text" or "id", the last one
 * counts.  Returns the number of ranges; 0 also for bad JSON.
 */
unsigned kx_text_ad_find(kx_range_t *ranges, const unsigned char *p,
    size_t len, const kx_str_t *origin);


#endif /* _KX_TEXT_AD_H_INCLUDED_ */
