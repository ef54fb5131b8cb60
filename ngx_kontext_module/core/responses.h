/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Which conversation an answer belongs to, for requests that name nothing but
 * the answer they go on from (previous_response_id, chat-apis.md 12).  Sets
 * of a few entries in shared memory; a new one takes the place of the oldest
 * of its set.  The caller locks.  A process may die within a call: an entry
 * then is lost, or another one stays.
 */


#ifndef _KX_RESPONSES_H_INCLUDED_
#define _KX_RESPONSES_H_INCLUDED_


#include "kx.h"


typedef struct {
    uint64_t         key;            /* 0: free */
    uint64_t         used;           /* ms of a clock that never goes back */
    unsigned char    conversation[KX_ID_LEN];
} kx_response_t;


/*
 * n is the number of entries, which start as zeroes; key a keyed digest of
 * publisher, user and response id.
 */
void kx_responses_put(kx_response_t *responses, size_t n, uint64_t key,
    const unsigned char conversation[KX_ID_LEN], uint64_t now);

/* KX_OK, or KX_DECLINED when it is not known or older than idle ms. */
int kx_responses_get(kx_response_t *responses, size_t n, uint64_t key,
    unsigned char conversation[KX_ID_LEN], uint64_t now, uint64_t idle);


#endif /* _KX_RESPONSES_H_INCLUDED_ */
