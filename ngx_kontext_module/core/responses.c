/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "responses.h"


#define KX_RESPONSES_SET  4


static kx_response_t *kx_responses_set(kx_response_t *responses, size_t n,
    uint64_t *key);


void
kx_responses_put(kx_response_t *responses, size_t n, uint64_t key,
    const unsigned char conversation[KX_ID_LEN], uint64_t now)
{
    unsigned        i;
    kx_response_t  *set, *r;

    set = kx_responses_set(responses, n, &key);
    if (set == NULL) {
        return;
    }

    r = &set[0];

    for (i = 0; i < KX_RESPONSES_SET; i++) {

        if (set[i].key == key) {
            r = &set[i];
            break;
        }

        if (r->key && (set[i].key == 0 || set[i].used < r->used)) {
            r = &set[i];
        }
    }

    /* no entry is ever half the old one and half the new one */

    r->key = 0;
    __sync_synchronize();

    r->used = now;
    memcpy(r->conversation, conversation, KX_ID_LEN);

    __sync_synchronize();
    r->key = key;
}


int
kx_responses_get(kx_response_t *responses, size_t n, uint64_t key,
    unsigned char conversation[KX_ID_LEN], uint64_t now, uint64_t idle)
{
    unsigned        i;
    kx_response_t  *set;

    set = kx_responses_set(responses, n, &key);
    if (set == NULL) {
        return KX_DECLINED;
    }

    for (i = 0; i < KX_RESPONSES_SET; i++) {

        if (set[i].key != key) {
            continue;
        }

        if (now > set[i].used && now - set[i].used > idle) {
            return KX_DECLINED;
        }

        memcpy(conversation, set[i].conversation, KX_ID_LEN);
        return KX_OK;
    }

    return KX_DECLINED;
}


static kx_response_t *
kx_responses_set(kx_response_t *responses, size_t n, uint64_t *key)
{
    n /= KX_RESPONSES_SET;

    if (n == 0) {
        return NULL;
    }

    if (*key == 0) {
        *key = 1;
    }

    return &responses[(*key % n) * KX_RESPONSES_SET];
}
