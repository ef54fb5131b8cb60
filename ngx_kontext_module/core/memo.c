/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "memo.h"


static unsigned kx_memo_place(const kx_memo_set_t *set, uint64_t tag);


void
kx_memo_init(kx_memo_table_t *t, void *mem, size_t size)
{
    uint64_t  n;

    n = size / sizeof(kx_memo_set_t);

    while (n & (n - 1)) {
        n &= n - 1;
    }

    t->sets = mem;
    t->mask = n - 1;
    t->next = 0;
}


int
kx_memo_find(const kx_memo_table_t *t, uint64_t tag, uint64_t *hash,
    const kx_memo_t **memo)
{
    unsigned              i;
    const kx_memo_set_t  *set;

    set = &t->sets[tag & t->mask];
    i = kx_memo_place(set, tag);

    if (i == KX_MEMO_SET) {
        return KX_DECLINED;
    }

    *hash = set->hashes[i];

    if (memo) {
        *memo = &set->memos[i];
    }

    return KX_OK;
}


void
kx_memo_put(kx_memo_table_t *t, uint64_t tag, uint64_t hash,
    const kx_memo_t *memo)
{
    unsigned        i;
    kx_memo_set_t  *set;

    set = &t->sets[tag & t->mask];
    i = kx_memo_place(set, tag);

    if (i == KX_MEMO_SET) {

        /* any of them, in an order that has nothing to do with the tags */

        t->next = t->next * 1664525 + 1013904223;
        i = t->next >> 30;
    }

    set->tags[i] = tag;
    set->hashes[i] = hash;
    set->memos[i] = *memo;
}


/* KX_MEMO_SET: it is not there */

static unsigned
kx_memo_place(const kx_memo_set_t *set, uint64_t tag)
{
    unsigned  i;

    for (i = 0; i < KX_MEMO_SET; i++) {
        if (set->tags[i] == tag) {
            break;
        }
    }

    return i;
}
