/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "memo.h"


static kx_memo_t *kx_memo_set(const kx_memo_table_t *t, uint64_t tag);


void
kx_memo_init(kx_memo_table_t *t, void *mem, size_t size)
{
    t->memos = mem;
    t->sets = size / (KX_MEMO_SET * sizeof(kx_memo_t));
    t->next = 0;
}


const kx_memo_t *
kx_memo_find(const kx_memo_table_t *t, uint64_t tag)
{
    unsigned    i;
    kx_memo_t  *set;

    set = kx_memo_set(t, tag);

    for (i = 0; i < KX_MEMO_SET; i++) {
        if (set[i].tag == tag) {
            return &set[i];
        }
    }

    return NULL;
}


void
kx_memo_put(kx_memo_table_t *t, const kx_memo_t *memo)
{
    unsigned    i;
    kx_memo_t  *set;

    set = kx_memo_set(t, memo->tag);

    for (i = 0; i < KX_MEMO_SET; i++) {
        if (set[i].tag == memo->tag) {
            break;
        }
    }

    if (i == KX_MEMO_SET) {

        /* any of them, in an order that has nothing to do with the tags */

        t->next = t->next * 1664525 + 1013904223;
        i = t->next >> 30;
    }

    set[i] = *memo;
}


static kx_memo_t *
kx_memo_set(const kx_memo_table_t *t, uint64_t tag)
{
    return &t->memos[tag % t->sets * KX_MEMO_SET];
}
