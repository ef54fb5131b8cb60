/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "memo.h"


static kx_memo_place_t *kx_memo_place(const kx_memo_table_t *t,
    uint64_t tag);


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
    const kx_memo_place_t  *place;

    place = kx_memo_place(t, tag);

    if (place == NULL || place->tag == 0) {
        return KX_DECLINED;
    }

    *hash = place->hash;

    if (memo) {
        *memo = &place->memo;
    }

    return KX_OK;
}


void
kx_memo_put(kx_memo_table_t *t, uint64_t tag, uint64_t hash,
    const kx_memo_t *memo)
{
    kx_memo_set_t    *set;
    kx_memo_place_t  *place, *first;

    place = kx_memo_place(t, tag);
    set = &t->sets[tag & t->mask];

    if (place == NULL) {

        /* any of them, in an order that has nothing to do with the tags */

        t->next = t->next * 1664525 + 1013904223;
        place = &set->places[t->next >> 30];
    }

    if (place->tag != tag) {

        /* a new one will be asked for the soonest: it is fetched ahead */

        first = &set->places[kx_memo_first(tag)];

        if (place != first) {
            *place = *first;
            place = first;
        }
    }

    place->tag = tag;
    place->hash = hash;
    place->memo = *memo;
}


/*
 * The place of a tag, or the free one that ends the search for it, as none
 * gets free again; NULL: there is neither.
 */

static kx_memo_place_t *
kx_memo_place(const kx_memo_table_t *t, uint64_t tag)
{
    unsigned          i;
    kx_memo_set_t    *set;
    kx_memo_place_t  *place;

    set = &t->sets[tag & t->mask];

    for (i = 0; i < KX_MEMO_SET; i++) {
        place = &set->places[(kx_memo_first(tag) + i) % KX_MEMO_SET];

        if (place->tag == tag || place->tag == 0) {
            return place;
        }
    }

    return NULL;
}
