/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Types shared by the core.  The core links without nginx: it is what the
 * unit tests, the fuzzers and the counters run.
 */


#ifndef _KX_H_INCLUDED_
#define _KX_H_INCLUDED_


#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>


/* the values of the NGX_* codes of the same names */

#define KX_OK         0
#define KX_ERROR     -1
#define KX_AGAIN     -2
#define KX_DONE      -4
#define KX_DECLINED  -5


#define KX_ID_LEN         16      /* bytes of a UUID or of a message digest */
#define KX_UUID_LEN       36      /* "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx" */
#define KX_MESSAGE_ID_LEN 30      /* "kx1_" and 26 characters of base32 */
#define KX_MAX_MESSAGES   30      /* protocol.md 3.2 */
#define KX_MAX_BIDS       4       /* placements a session may have */
#define KX_MAX_CODE       63      /* skipCode, errCode, placement code */
#define KX_MAX_IDENTITY   256     /* userId, conversationId, in bytes */


/* data is not terminated by a zero; a type compatible with ngx_str_t */

#ifdef _NGX_STRING_H_INCLUDED_

typedef ngx_str_t  kx_str_t;

#else

typedef struct {
    size_t          len;
    unsigned char  *data;
} kx_str_t;

#endif


#define kx_string(str)  { sizeof(str) - 1, (unsigned char *) str }


/*
 * Memory that lives as long as the request: an nginx pool in the module,
 * malloc() in the tests.  alloc() returns NULL when there is no memory and
 * nothing that it returned is freed one by one.
 */

typedef struct {
    void         *(*alloc)(void *data, size_t size);
    void           *data;
} kx_pool_t;


/* takes len bytes at p, which are valid only during the call */

typedef void (*kx_sink_pt)(void *data, const unsigned char *p, size_t len);


#endif /* _KX_H_INCLUDED_ */
