/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is kept of sessions: items and their order, whom it closes to make
 * room, and what becomes of it when its memory is damaged.
 */


#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include "session_store.h"

#include <cmocka.h>


#define NOW     1000000ULL
#define WALL    1772475611045ULL
#define IDLE    60000

#define SLOTS   8
#define BLOCKS  24

#define FIRST   232                  /* bytes in the first block of an item */
#define NEXT    248                  /* and in each one after it */

#define MODELS  17
#define ITEMS   40


/* what a session is to have */

typedef struct {
    uint64_t   number;
    uint32_t   len;
    unsigned   seed;
} entry_t;

typedef struct {
    unsigned   live;                 /* the session */
    unsigned   kept;                 /* it has a root */
    unsigned   salt;                 /* of its id */
    unsigned   n[KX_ITEM_KINDS];
    entry_t    items[KX_ITEM_KINDS][ITEMS];
} model_t;


static unsigned char        *mem;
static size_t                size;
static unsigned              share;
static kx_session_table_t   *t;

static model_t               models[MODELS];
static unsigned              salt;
static uint32_t              chance;


static kx_store_view_t
view(void)
{
    kx_store_view_t  v;

    assert_int_equal(kx_store_view(t, &v), KX_OK);

    return v;
}


static kx_session_t *
slot(uint32_t i)
{
    return kx_session_table_slots(t) + i;
}


static unsigned
draw(unsigned n)
{
    chance = chance * 1664525 + 1013904223;

    return (chance >> 8) % n;
}


static void
make(size_t n, unsigned part)
{
    free(mem);

    size = n;
    share = part;
    assert_int_equal(posix_memalign((void **) &mem, 64, size + 1), 0);
    memset(mem, 0xa5, size + 1);

    t = kx_session_table_create(mem, size, share);

    memset(models, 0, sizeof(models));
}


/* a table with so many slots and blocks, of which three in four at most */

static void
make_store(uint32_t slots, uint32_t blocks)
{
    size_t           n;
    kx_store_view_t  v;

    for (n = (slots + blocks) * 256; /* void */ ; n += 64) {

        for (share = 1; share <= KX_SESSION_MAX_SHARE; share++) {
            free(mem);
            assert_int_equal(posix_memalign((void **) &mem, 64, n), 0);

            t = kx_session_table_create(mem, n, share);

            if (t && t->slots == slots && kx_store_view(t, &v) == KX_OK
                && v.n == blocks)
            {
                make(n, share);
                assert_non_null(t);
                return;
            }
        }
    }
}


static int
setup(void **state)
{
    chance = 1;
    salt = 0;
    make_store(SLOTS, BLOCKS);
    return 0;
}


static int
teardown(void **state)
{
    free(mem);
    mem = NULL;
    return 0;
}


static const unsigned char *
key(unsigned n)
{
    static unsigned char  k[KX_ID_LEN];

    memset(k, 0xcc, KX_ID_LEN);
    k[0] = n % 5;
    k[1] = 0;
    k[2] = 0;
    k[3] = 0;
    memcpy(k + 4, &n, sizeof(n));

    return k;
}


static const unsigned char *
id(unsigned n)
{
    static unsigned char  p[KX_ID_LEN];

    memset(p, 'i', KX_ID_LEN);
    memcpy(p + 8, &n, sizeof(n));

    return p;
}


static kx_session_t *
open_at(unsigned n, uint64_t now)
{
    unsigned  created;

    return kx_session_table_open(t, key(n), 7, now, WALL, IDLE, &created);
}


static kx_session_t *
find_at(unsigned n, uint64_t now)
{
    return kx_session_table_find(t, key(n), now, IDLE);
}


/* without moving it */

static kx_session_t *
record(unsigned n)
{
    uint32_t  i;

    for (i = 0; i < t->slots; i++) {
        if (slot(i)->live && memcmp(slot(i)->key, key(n), KX_ID_LEN) == 0) {
            return slot(i);
        }
    }

    return NULL;
}


static void
verify(void)
{
    assert_int_equal(kx_session_table_verify(t), KX_OK);
}


static uint32_t
used(void)
{
    return view().head->used;
}


static kx_block_t *
block(uint32_t b)
{
    kx_store_view_t  v;

    v = view();
    assert_true(b < v.n);

    return &v.blocks[b];
}


static unsigned char
pattern(unsigned seed, size_t i)
{
    return (unsigned char) (seed * 37 + i * 11 + i / 251 + 1);
}


static int
put_in(kx_session_t *s, kx_item_kind_e kind, const entry_t *e)
{
    int             rc;
    size_t          i, cut;
    kx_str_t        data[3];
    unsigned char  *p;

    p = malloc(e->len + 1);
    assert_non_null(p);

    for (i = 0; i < e->len; i++) {
        p[i] = pattern(e->seed, i);
    }

    cut = e->len / 3;

    data[0].data = p;
    data[0].len = cut;
    data[1].data = NULL;
    data[1].len = 0;
    data[2].data = p + cut;
    data[2].len = e->len - cut;

    kx_session_table_change(t, s);
    rc = kx_store_add(t, s, kind, e->number, data, 3);
    kx_session_table_changed(t, s);

    free(p);

    return rc;
}


static unsigned
is_entry(const kx_item_t *item, const entry_t *e)
{
    size_t          i;
    unsigned        rc;
    unsigned char  *p;

    if (item->number != e->number || item->len != e->len) {
        return 0;
    }

    /* exactly as much, so that a sanitizer sees one byte too many */

    p = malloc(e->len ? e->len : 1);
    assert_non_null(p);

    rc = kx_store_read(t, item, 0, p, (size_t) e->len + 10) == e->len;

    for (i = 0; rc && i < e->len; i++) {
        rc = p[i] == pattern(e->seed, i);
    }

    free(p);

    return rc;
}


/* whether a session has what its model says */

static unsigned
as_modelled(unsigned n)
{
    int            rc;
    uint32_t       blocks, bytes, last;
    unsigned       i, kind;
    model_t       *m;
    kx_item_t      item;
    kx_root_t     *root;
    kx_session_t  *s;

    m = &models[n];
    s = record(n);

    if (s == NULL || !m->live) {
        return s == NULL && !m->live;
    }

    root = kx_store_root(t, s);

    if (root == NULL || !m->kept) {
        return root == NULL && !m->kept && s->root == KX_SESSION_NONE;
    }

    if (memcmp(root->id, id(n * 1000 + m->salt), KX_ID_LEN) != 0) {
        return 0;
    }

    blocks = 1;

    for (kind = 0; kind < KX_ITEM_KINDS; kind++) {
        bytes = 0;
        last = KX_SESSION_NONE;
        rc = kx_store_first(t, s, kind, &item);

        for (i = 0; i < m->n[kind]; i++) {

            if (rc != KX_OK || !is_entry(&item, &m->items[kind][i])) {
                return 0;
            }

            bytes += item.len;
            blocks += kx_store_blocks(item.len);
            last = item.block;

            rc = kx_store_next(t, &item);
        }

        if (rc != KX_DECLINED
            || item.block != KX_SESSION_NONE
            || root->lists[kind].count != m->n[kind]
            || root->lists[kind].bytes != bytes)
        {
            return 0;
        }

        rc = kx_store_last(t, s, kind, &item);

        if (rc != (m->n[kind] ? KX_OK : KX_DECLINED)
            || (rc == KX_OK && item.block != last))
        {
            return 0;
        }
    }

    return root->blocks == blocks;
}


static void
all_as_modelled(void)
{
    unsigned  i;
    uint32_t  n;

    n = 0;

    for (i = 0; i < MODELS; i++) {
        assert_true(as_modelled(i));

        if (models[i].kept) {
            n += kx_store_root(t, record(i))->blocks;
        }
    }

    assert_int_equal(used(), n);
    verify();
}


static kx_session_t *
keep_at(unsigned n, uint64_t now)
{
    model_t       *m;
    kx_session_t  *s;

    m = &models[n];

    s = open_at(n, now);
    assert_non_null(s);

    if (!m->live) {
        memset(m, 0, sizeof(model_t));
        m->live = 1;
    }

    if (kx_store_keep(t, s, id(n * 1000 + salt)) != KX_OK) {
        return NULL;
    }

    if (!m->kept) {
        m->kept = 1;
        m->salt = salt;
    }

    return s;
}


static int
add(unsigned n, kx_item_kind_e kind, uint32_t len)
{
    int        rc;
    entry_t    e;
    model_t   *m;

    static unsigned  seed;

    m = &models[n];

    e.seed = seed++;
    e.number = 0x100000000ULL * n + seed;
    e.len = len;

    rc = put_in(record(n), kind, &e);

    if (rc == KX_OK) {
        assert_true(m->n[kind] < ITEMS);
        m->items[kind][m->n[kind]++] = e;
    }

    return rc;
}


static void
forget(unsigned n, kx_item_kind_e kind, unsigned i)
{
    model_t  *m;

    m = &models[n];

    m->n[kind]--;
    memmove(&m->items[kind][i], &m->items[kind][i + 1],
            (m->n[kind] - i) * sizeof(entry_t));
}


static void
item_at(unsigned n, kx_item_kind_e kind, unsigned i, kx_item_t *item)
{
    assert_int_equal(kx_store_first(t, record(n), kind, item), KX_OK);

    while (i--) {
        assert_int_equal(kx_store_next(t, item), KX_OK);
    }
}


static void
shift(unsigned n, kx_item_kind_e kind)
{
    kx_session_table_change(t, record(n));
    kx_store_shift(t, record(n), kind);
    kx_session_table_changed(t, record(n));

    if (models[n].n[kind]) {
        forget(n, kind, 0);
    }
}


static void
remove_at(unsigned n, kx_item_kind_e kind, unsigned i)
{
    kx_item_t  item;

    item_at(n, kind, i, &item);

    kx_session_table_change(t, record(n));
    kx_store_remove(t, record(n), kind, &item);
    kx_session_table_changed(t, record(n));

    forget(n, kind, i);
}


static void
gone(unsigned n)
{
    memset(&models[n], 0, sizeof(model_t));
}


/* the session stays, what was kept of it does not */

static void
lost(unsigned n)
{
    gone(n);
    models[n].live = 1;
}


static void
repair(void)
{
    t->dirty = 1;
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
}


/* sessions 0 to 3, all of different shape */

static void
prepare(void)
{
    keep_at(0, NOW);
    add(0, KX_ITEM_OPTIONS, 20);
    add(0, KX_ITEM_MESSAGE, FIRST + NEXT + 1);
    add(0, KX_ITEM_MESSAGE, 5);
    add(0, KX_ITEM_MESSAGE, FIRST);

    keep_at(1, NOW + 1);
    add(1, KX_ITEM_MESSAGE, FIRST + 1);
    add(1, KX_ITEM_EVENT, 0);
    add(1, KX_ITEM_MESSAGE, 7);
    add(1, KX_ITEM_AD, 100);

    open_at(2, NOW + 2);
    lost(2);

    keep_at(3, NOW + 3);
    add(3, KX_ITEM_EVENT, FIRST + NEXT);
    add(3, KX_ITEM_EVENT, 3);

    all_as_modelled();
}


static void
test_geometry(void **state)
{
    size_t               n;
    uint32_t             slots;
    unsigned             part;
    kx_session_t        *last;
    kx_store_view_t      v;

    for (n = 1; n < 60000; n += (n < 3000) ? 37 : 1013) {
        make(n, 0);
        slots = t ? t->slots : 0;

        for (part = 0; part <= KX_SESSION_MAX_SHARE; part++) {
            make(n, part);

            if (t == NULL) {
                assert_true(slots == 0 || part);
                continue;
            }

            last = slot(t->slots);
            assert_true((unsigned char *) last <= mem + n);

            assert_int_equal(kx_session_table_check(t, size, share), KX_OK);
            verify();
            assert_ptr_equal(kx_session_table_attach(mem, n, part), t);
            assert_null(kx_session_table_attach(mem, n, part + 1));
            assert_null(kx_session_table_attach(mem, n, part - 1));
            assert_null(kx_session_table_attach(mem, n + 64, part));

            if (part == 0) {
                assert_int_equal(kx_store_view(t, &v), KX_DECLINED);
                continue;
            }

            assert_true(t->slots <= slots);

            if (kx_store_view(t, &v) != KX_OK) {
                assert_true(n / 64 * part < 64 + 2 * 256);
                continue;
            }

            assert_true((unsigned char *) v.head == (unsigned char *) last);
            assert_true((unsigned char *) (v.blocks + v.n) <= mem + n);
            assert_true((unsigned char *) (v.blocks + v.n + 1)
                        > mem + n - n % 64);
            assert_int_equal((uintptr_t) v.blocks % 64, 0);
            assert_true(v.n >= 2);
            assert_true(v.n + 1 >= n / 64 * part / 256);

            /* nothing is done to the blocks until they are used */

            assert_int_equal(v.head->fresh, 0);
            assert_int_equal(((unsigned char *) v.blocks)[0], 0xa5);

            v.blocks[v.n - 1].u.data[NEXT - 1] = 1;
        }
    }

    make(100000, KX_SESSION_MAX_SHARE + 1);
    assert_null(t);
    make(100000, 64);
    assert_null(t);
    make(100000, KX_SESSION_MAX_SHARE);
    assert_non_null(t);
    assert_null(kx_session_table_attach(mem, size, 64));
    assert_null(kx_session_table_attach(mem, size, 64
                                        + KX_SESSION_MAX_SHARE));
}


static void
test_words_of_the_size(void **state)
{
    unsigned             i, j;
    uint64_t             bit;
    kx_store_view_t      v;
    kx_session_table_t   good;

    prepare();

    good = *t;

    for (i = 0; i < 64; i++) {
        bit = (uint64_t) 1 << i;

        for (j = 1; j < 16; j++) {

            if ((j & 1) && (j & 2)) {
                continue;
            }

            t->magic ^= (j & 1) ? bit : 0;
            t->seal ^= (j & 2) ? bit : 0;
            t->size ^= (j & 4) ? bit : 0;
            t->slots ^= (j & 8) ? 1U << i % 32 : 0;

            assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
            assert_true(t->size == good.size);
            assert_true(t->magic == good.magic);
            assert_int_equal(t->slots, good.slots);
        }
    }

    all_as_modelled();

    /* without both there is no store either */

    t->magic ^= 0x10;
    t->seal ^= 0x20;
    t->size = 0x1000000000 + KX_SESSION_MAX_SHARE;

    assert_int_equal(kx_session_table_check(t, size, share), KX_ERROR);
    assert_int_equal(kx_store_view(t, &v), KX_DECLINED);
    assert_null(kx_store_find(t, 0, id(0), NOW, IDLE));
    assert_null(kx_store_find(t, 0x3fffff, id(0), NOW, IDLE));
    assert_null(kx_store_peek(t, 0, id(0)));
    assert_null(kx_store_root(t, slot(0)));
    assert_int_equal(kx_store_keep(t, slot(0), id(0)), KX_DECLINED);
}


static void
test_without_a_store(void **state)
{
    unsigned        k;
    kx_str_t        data;
    kx_item_t       item;
    kx_session_t   *s;
    unsigned char   c;

    for (k = 0; k < 2; k++) {

        /* none at all, or a share that is too small for two blocks */

        make(3000, k ? 8 : 0);
        assert_non_null(t);

        s = open_at(1, NOW);
        assert_non_null(s);

        assert_null(kx_store_root(t, s));
        assert_int_equal(kx_store_keep(t, s, id(1)), KX_DECLINED);
        assert_int_equal(kx_store_reserve(t, s, 1), KX_DECLINED);
        assert_int_equal(kx_store_reserve(t, s, 0), KX_DECLINED);
        assert_null(kx_store_find(t, 0, id(1), NOW, IDLE));
        assert_null(kx_store_peek(t, KX_SESSION_NONE, id(1)));

        data.data = (unsigned char *) "x";
        data.len = 1;

        kx_session_table_change(t, s);
        assert_int_equal(kx_store_add(t, s, KX_ITEM_AD, 1, &data, 1),
                         KX_DECLINED);
        kx_store_shift(t, s, KX_ITEM_AD);
        memset(&item, 0, sizeof(item));
        kx_store_remove(t, s, KX_ITEM_AD, &item);
        kx_store_write(t, &item, 0, "x", 1);
        kx_session_table_changed(t, s);

        assert_int_equal(kx_store_read(t, &item, 0, &c, 1), 0);
        assert_int_equal(kx_store_first(t, s, KX_ITEM_AD, &item),
                         KX_DECLINED);
        assert_int_equal(kx_store_last(t, s, KX_ITEM_AD, &item), KX_DECLINED);
        assert_int_equal(kx_store_next(t, &item), KX_DECLINED);

        verify();
        assert_int_equal(kx_session_table_check(t, size, share), KX_OK);

        /* a root where there is no store */

        s->root = 0;
        assert_int_equal(kx_session_table_verify(t), KX_ERROR);
        assert_ptr_equal(find_at(1, NOW), s);
        assert_int_equal(s->root, KX_SESSION_NONE);
        verify();
    }
}


static void
test_blocks_of_a_length(void **state)
{
    assert_int_equal(kx_store_blocks(0), 1);
    assert_int_equal(kx_store_blocks(1), 1);
    assert_int_equal(kx_store_blocks(FIRST), 1);
    assert_int_equal(kx_store_blocks(FIRST + 1), 2);
    assert_int_equal(kx_store_blocks(FIRST + NEXT), 2);
    assert_int_equal(kx_store_blocks(FIRST + NEXT + 1), 3);
    assert_int_equal(kx_store_blocks(FIRST + 1023 * NEXT), 1024);
    assert_int_equal(kx_store_blocks(FIRST + 1023 * NEXT + 1), 1025);
    assert_int_equal(kx_store_blocks(1 << 30), KX_STORE_MAX_BLOCKS + 1);
    assert_int_equal(kx_store_blocks((size_t) -1), KX_STORE_MAX_BLOCKS + 1);
}


static void
test_keep(void **state)
{
    uint32_t       b;
    unsigned       i;
    kx_root_t      zero, *root;
    kx_session_t  *s;

    s = open_at(1, NOW);
    assert_null(kx_store_root(t, s));
    assert_int_equal(used(), 0);

    assert_int_equal(kx_store_keep(t, s, id(1)), KX_OK);

    root = kx_store_root(t, s);
    assert_non_null(root);
    assert_memory_equal(root->id, id(1), KX_ID_LEN);
    assert_ptr_equal(slot(root->slot), s);
    assert_int_equal(root->blocks, 1);
    assert_int_equal(used(), 1);
    verify();

    for (i = 0; i < KX_ITEM_KINDS; i++) {
        assert_int_equal(root->lists[i].first, KX_SESSION_NONE);
        assert_int_equal(root->lists[i].last, KX_SESSION_NONE);
        assert_int_equal(root->lists[i].count, 0);
        assert_int_equal(root->lists[i].bytes, 0);
    }

    memset(&zero, 0, sizeof(zero));
    assert_memory_equal(&root->events, &zero.events,
                        sizeof(kx_root_t) - offsetof(kx_root_t, events));

    /* twice is once */

    b = s->root;
    root->events = 5;
    assert_int_equal(kx_store_keep(t, s, id(2)), KX_OK);
    assert_int_equal(s->root, b);
    assert_ptr_equal(kx_store_root(t, s), root);
    assert_memory_equal(root->id, id(1), KX_ID_LEN);
    assert_int_equal(root->events, 5);
    assert_int_equal(used(), 1);

    /* the next one in the same block starts anew */

    kx_session_table_close(t, s);
    assert_int_equal(used(), 0);
    verify();

    s = open_at(2, NOW);
    assert_int_equal(kx_store_keep(t, s, id(3)), KX_OK);
    assert_int_equal(s->root, b);
    assert_int_equal(kx_store_root(t, s)->events, 0);
    verify();

    /* nor does one that is closed get anything */

    kx_session_table_close(t, s);
    assert_int_equal(kx_store_keep(t, s, id(3)), KX_DECLINED);
    assert_null(kx_store_root(t, s));
    assert_int_equal(kx_session_table_check(t, size, share), KX_OK);
    verify();
}


static void
test_find(void **state)
{
    uint32_t        b, i;
    unsigned char   wrong[KX_ID_LEN];
    kx_session_t   *s;

    static const unsigned char  zero[KX_ID_LEN];

    prepare();

    s = record(0);
    b = s->root;

    assert_ptr_equal(kx_store_peek(t, b, id(0)), s);
    assert_true(s->used == NOW);
    assert_int_not_equal(t->newest, (uint32_t) (s - slot(0)));
    assert_int_equal(view().head->oldest, b);

    assert_ptr_equal(kx_store_find(t, b, id(0), NOW + 10, IDLE), s);
    assert_true(s->used == NOW + 10);
    assert_int_equal(t->newest, (uint32_t) (s - slot(0)));
    assert_int_equal(view().head->newest, b);
    assert_int_not_equal(view().head->oldest, b);
    verify();

    for (i = 0; i < 8 * KX_ID_LEN; i++) {
        memcpy(wrong, id(0), KX_ID_LEN);
        wrong[i / 8] ^= 1 << i % 8;
        assert_null(kx_store_find(t, b, wrong, NOW + 11, IDLE));
        assert_null(kx_store_peek(t, b, wrong));
    }

    /* no other block is one, whatever it has */

    for (i = 0; i < BLOCKS + 5; i++) {

        if (i != b) {
            assert_null(kx_store_find(t, i, id(0), NOW + 11, IDLE));
        }

        assert_null(kx_store_find(t, i, zero, NOW + 11, IDLE));
        assert_null(kx_store_peek(t, i, zero));
    }

    assert_null(kx_store_peek(t, KX_SESSION_NONE, id(0)));
    assert_null(kx_store_peek(t, 0x80000000 | b, id(0)));
    assert_null(kx_store_find(t, 0x7fffffff, id(0), NOW + 11, IDLE));
    assert_int_equal(kx_session_table_check(t, size, share), KX_OK);
    all_as_modelled();

    /* an idle one is seen as long as nobody uses it */

    assert_ptr_equal(kx_store_peek(t, b, id(0)), s);
    assert_null(kx_store_find(t, b, id(0), NOW + 11 + IDLE, IDLE));
    assert_int_equal(t->expired, 1);
    assert_null(kx_store_peek(t, b, id(0)));
    gone(0);
    all_as_modelled();

    /* a record that makes no sense */

    s = record(1);
    b = s->root;
    s->nbids = 77;
    assert_null(kx_store_peek(t, b, id(1000)));
    assert_true(s->live);
    assert_null(kx_store_find(t, b, id(1000), NOW + 11, IDLE));
    assert_false(s->live);
    gone(1);
    all_as_modelled();
}


static void
test_lengths(void **state)
{
    size_t         i, k, n;
    kx_item_t      item;
    kx_session_t  *s;
    unsigned char  p[3000], q[3000];

    static const uint32_t  lengths[] = {
        0, 1, 7, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT,
        FIRST + NEXT + 1, FIRST + 5 * NEXT, FIRST + 10 * NEXT + 9
    };

    s = keep_at(1, NOW);

    for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        n = lengths[i];

        assert_int_equal(add(1, KX_ITEM_MESSAGE, n), KX_OK);
        assert_int_equal(used(), 1 + kx_store_blocks(n));
        all_as_modelled();

        assert_int_equal(kx_store_last(t, s, KX_ITEM_MESSAGE, &item), KX_OK);
        assert_int_equal(kx_store_read(t, &item, 0, p, sizeof(p)), n);

        for (k = 0; k <= n + 1; k += (n < 300) ? 1 : 13) {
            memset(q, 'q', sizeof(q));
            assert_int_equal(kx_store_read(t, &item, k, q, 300),
                             (k >= n) ? 0 : (n - k < 300) ? n - k : 300);
            assert_memory_equal(q, p + k,
                                (k >= n) ? 0 : (n - k < 300) ? n - k : 300);
            assert_int_equal(q[300], 'q');
            assert_int_equal(kx_store_read(t, &item, k, q, 0), 0);
        }

        assert_int_equal(kx_store_read(t, &item, (size_t) -1, q, 9), 0);

        /* written in place */

        for (k = 0; k <= n; k += (n < 300) ? 1 : 13) {
            kx_session_table_change(t, s);
            kx_store_write(t, &item, k, "0123456789", 10);
            kx_session_table_changed(t, s);

            memcpy(p + k, "0123456789", 10);

            assert_int_equal(kx_store_read(t, &item, 0, q, sizeof(q)), n);
            assert_memory_equal(p, q, n);
        }

        verify();

        shift(1, KX_ITEM_MESSAGE);
        assert_int_equal(used(), 1);
        all_as_modelled();
    }
}


static void
test_pieces(void **state)
{
    size_t         i, len;
    kx_str_t       data[40];
    kx_item_t      item;
    kx_session_t  *s;
    unsigned char  p[3000], q[3000];

    s = keep_at(1, NOW);

    for (i = 0; i < sizeof(p); i++) {
        p[i] = pattern(3, i);
    }

    for (i = 0, len = 0; i < 40; i++) {
        data[i].data = p + len;
        data[i].len = (i * 53) % 131;
        len += data[i].len;
    }

    kx_session_table_change(t, s);
    assert_int_equal(kx_store_add(t, s, KX_ITEM_AD, 1, data, 40), KX_OK);
    assert_int_equal(kx_store_add(t, s, KX_ITEM_AD, 2, data, 0), KX_OK);
    assert_int_equal(kx_store_add(t, s, KX_ITEM_AD, 3, NULL, 0), KX_OK);
    kx_session_table_changed(t, s);
    verify();

    assert_int_equal(kx_store_first(t, s, KX_ITEM_AD, &item), KX_OK);
    assert_int_equal(item.len, len);
    assert_int_equal(kx_store_read(t, &item, 0, q, sizeof(q)), len);
    assert_memory_equal(p, q, len);

    assert_int_equal(kx_store_next(t, &item), KX_OK);
    assert_int_equal(item.len, 0);
    assert_true(item.number == 2);

    /* lengths that run over */

    data[0].len = (size_t) -1;
    data[1].len = 3;

    kx_session_table_change(t, s);
    assert_int_equal(kx_store_add(t, s, KX_ITEM_AD, 4, data, 1), KX_DECLINED);
    assert_int_equal(kx_store_add(t, s, KX_ITEM_AD, 4, data, 2), KX_DECLINED);
    data[0].len = 3;
    data[1].len = (size_t) -2;
    assert_int_equal(kx_store_add(t, s, KX_ITEM_AD, 4, data, 2), KX_DECLINED);
    kx_session_table_changed(t, s);

    assert_int_equal(kx_store_root(t, s)->lists[KX_ITEM_AD].count, 3);
    verify();
}


static void
test_shift_and_remove(void **state)
{
    unsigned       i, k;
    kx_item_t      item;
    kx_session_t  *s;

    /* of three: the first, the middle, the last; then of two, then of one */

    static const unsigned  orders[][3] = {
        { 0, 0, 0 }, { 0, 1, 0 }, { 1, 0, 0 }, { 1, 1, 0 }, { 2, 0, 0 },
        { 2, 1, 0 }
    };

    prepare();

    for (i = 0; i < 6; i++) {
        add(1, KX_ITEM_AD, 10);
        shift(1, KX_ITEM_AD);

        while (models[1].n[KX_ITEM_AD] < 3) {
            add(1, KX_ITEM_AD, 200 * models[1].n[KX_ITEM_AD]);
        }

        for (k = 0; k < 3; k++) {
            remove_at(1, KX_ITEM_AD, orders[i][k]);
            all_as_modelled();

            add(1, KX_ITEM_AD, 5);
            all_as_modelled();
            remove_at(1, KX_ITEM_AD, models[1].n[KX_ITEM_AD] - 1);
            all_as_modelled();
        }

        assert_int_equal(models[1].n[KX_ITEM_AD], 0);
    }

    for (i = 0; i < 3; i++) {
        shift(0, KX_ITEM_MESSAGE);
        all_as_modelled();
    }

    /* none left, and none of another list */

    shift(0, KX_ITEM_MESSAGE);
    all_as_modelled();

    item_at(0, KX_ITEM_OPTIONS, 0, &item);
    s = record(0);

    kx_session_table_change(t, s);
    kx_store_remove(t, s, KX_ITEM_MESSAGE, &item);
    kx_store_remove(t, s, KX_ITEM_AD, &item);
    kx_session_table_changed(t, s);
    all_as_modelled();

    /* none of another session */

    item_at(3, KX_ITEM_EVENT, 1, &item);

    kx_session_table_change(t, s);
    kx_store_remove(t, s, KX_ITEM_OPTIONS, &item);
    kx_session_table_changed(t, s);

    item.block = KX_SESSION_NONE;

    kx_session_table_change(t, s);
    kx_store_remove(t, s, KX_ITEM_OPTIONS, &item);
    kx_session_table_changed(t, s);
    all_as_modelled();

    assert_int_equal(t->repaired, 0);
}


static void
test_remove_while_walking(void **state)
{
    int            rc;
    unsigned       i;
    kx_item_t      item;
    kx_session_t  *s;
    unsigned char  c;

    s = keep_at(1, NOW);

    for (i = 0; i < 10; i++) {
        assert_int_equal(add(1, KX_ITEM_EVENT, i), KX_OK);
    }

    kx_session_table_change(t, s);

    for (rc = kx_store_first(t, s, KX_ITEM_EVENT, &item), i = 0;
         rc == KX_OK;
         rc = kx_store_next(t, &item))
    {
        if (item.len % 3) {
            kx_store_remove(t, s, KX_ITEM_EVENT, &item);
            forget(1, KX_ITEM_EVENT, i);

            /* there is nothing left of it */

            assert_int_equal(kx_store_read(t, &item, 0, &c, 1), 0);

        } else {
            i++;
        }
    }

    kx_session_table_changed(t, s);

    assert_int_equal(i, 4);
    all_as_modelled();
}


static void
test_no_room(void **state)
{
    kx_session_t  *s;

    s = keep_at(1, NOW);

    assert_int_equal(add(1, KX_ITEM_AD, FIRST + (BLOCKS - 3) * NEXT), KX_OK);
    assert_int_equal(used(), BLOCKS - 1);
    assert_int_equal(add(1, KX_ITEM_AD, FIRST + 1), KX_DECLINED);
    all_as_modelled();

    assert_int_equal(add(1, KX_ITEM_AD, FIRST), KX_OK);
    assert_int_equal(used(), BLOCKS);
    assert_int_equal(add(1, KX_ITEM_AD, 0), KX_DECLINED);
    all_as_modelled();

    /* nobody closes itself */

    assert_int_equal(kx_store_reserve(t, s, 0), KX_OK);
    assert_int_equal(kx_store_reserve(t, s, 1), KX_DECLINED);
    assert_int_equal(kx_store_keep(t, s, id(1)), KX_OK);
    all_as_modelled();

    shift(1, KX_ITEM_AD);
    assert_int_equal(kx_store_reserve(t, s, BLOCKS - 2), KX_OK);
    assert_int_equal(kx_store_reserve(t, s, BLOCKS - 1), KX_DECLINED);
    assert_int_equal(kx_store_reserve(t, s, 0xffffffff), KX_DECLINED);
    all_as_modelled();

    assert_int_equal(t->evicted, 0);
    assert_int_equal(t->repaired, 0);
}


static void
test_limit_of_a_session(void **state)
{
    int            rc;
    unsigned       n;
    kx_item_t      item;
    kx_session_t  *s;

    make(1500 * 256, KX_SESSION_MAX_SHARE);
    assert_true(view().n > KX_STORE_MAX_BLOCKS);

    s = keep_at(1, NOW);

    assert_int_equal(kx_store_reserve(t, s, KX_STORE_MAX_BLOCKS - 1), KX_OK);
    assert_int_equal(kx_store_reserve(t, s, KX_STORE_MAX_BLOCKS),
                     KX_DECLINED);

    assert_int_equal(add(1, KX_ITEM_MESSAGE, FIRST + 1022 * NEXT + 1),
                     KX_DECLINED);
    assert_int_equal(add(1, KX_ITEM_MESSAGE, FIRST + 1022 * NEXT), KX_OK);
    assert_int_equal(used(), KX_STORE_MAX_BLOCKS);
    all_as_modelled();

    assert_int_equal(kx_store_reserve(t, s, 1), KX_DECLINED);
    assert_int_equal(add(1, KX_ITEM_MESSAGE, 0), KX_DECLINED);
    repair();
    all_as_modelled();

    /* as many items as there can be are walked */

    shift(1, KX_ITEM_MESSAGE);
    models[1].n[KX_ITEM_MESSAGE] = 0;

    while (used() < KX_STORE_MAX_BLOCKS) {
        models[1].n[KX_ITEM_EVENT] = 0;
        assert_int_equal(add(1, KX_ITEM_EVENT, 1), KX_OK);
    }

    n = 0;

    for (rc = kx_store_first(t, s, KX_ITEM_EVENT, &item);
         rc == KX_OK;
         rc = kx_store_next(t, &item))
    {
        n++;
    }

    assert_int_equal(n, KX_STORE_MAX_BLOCKS - 1);

    repair();
    verify();
    assert_int_equal(used(), KX_STORE_MAX_BLOCKS);

    kx_session_table_close(t, s);
    assert_int_equal(used(), 0);
    verify();
}


static void
test_eviction(void **state)
{
    unsigned       i;
    kx_session_t  *s;

    /* 0 to 4 with 5, 4, 3, 2 and 1 blocks, one without, nine are left */

    for (i = 0; i < 5; i++) {
        keep_at(i, NOW + i);

        if (i < 4) {
            add(i, KX_ITEM_MESSAGE, FIRST + (3 - i) * NEXT);
        }
    }

    open_at(5, NOW + 5);
    lost(5);

    assert_int_equal(used(), 15);
    all_as_modelled();

    /* 0 is used by its key, 1 by its root: 2 is the least recently used */

    assert_non_null(find_at(0, NOW + 10));
    assert_non_null(kx_store_find(t, record(1)->root, id(1000), NOW + 11,
                                  IDLE));

    s = record(4);
    assert_int_equal(kx_store_reserve(t, s, BLOCKS - 15), KX_OK);
    assert_int_equal(t->evicted, 0);

    assert_int_equal(kx_store_reserve(t, s, BLOCKS - 15 + 1), KX_OK);
    assert_int_equal(t->evicted, 1);
    gone(2);
    all_as_modelled();

    /* it is the oldest now, and it is not the one that goes */

    assert_int_equal(kx_store_reserve(t, record(3), BLOCKS - 12 + 1), KX_OK);
    assert_int_equal(t->evicted, 2);
    gone(4);
    all_as_modelled();

    /* 0 has to go for 1, and 3 does so before */

    assert_int_equal(kx_store_reserve(t, record(1), BLOCKS - 11 + 3), KX_OK);
    assert_int_equal(t->evicted, 4);
    gone(3);
    gone(0);
    all_as_modelled();

    /* nobody goes when that would not be enough */

    keep_at(6, NOW + 12);
    assert_int_equal(kx_store_reserve(t, record(6), BLOCKS), KX_DECLINED);
    assert_int_equal(t->evicted, 4);
    all_as_modelled();

    /* a root can take the place of another session */

    assert_int_equal(add(6, KX_ITEM_AD, FIRST + (BLOCKS - 6) * NEXT), KX_OK);
    assert_int_equal(used(), BLOCKS);

    find_at(6, NOW + 13);
    keep_at(7, NOW + 14);
    gone(1);
    assert_int_equal(t->evicted, 5);
    all_as_modelled();

    assert_non_null(record(5));
    assert_int_equal(t->repaired, 0);
}


static void
test_closing_frees(void **state)
{
    size_t         i;
    unsigned       created;
    kx_session_t  *s;

    keep_at(0, NOW);
    add(0, KX_ITEM_OPTIONS, 3000);

    kx_session_table_close(t, record(0));
    gone(0);
    assert_int_equal(used(), 0);
    all_as_modelled();

    /* nothing of it is left */

    for (i = 0; i < view().limit; i++) {
        assert_int_equal(block(i)->u.data[0], 0);
        assert_memory_equal(block(i)->u.data, block(i)->u.data + 1,
                            sizeof(block(i)->u.data) - 1);
    }

    /* idle */

    keep_at(0, NOW);
    add(0, KX_ITEM_OPTIONS, 3000);
    keep_at(1, NOW + 5);
    assert_null(find_at(0, NOW + IDLE + 1));
    gone(0);
    all_as_modelled();

    open_at(2, NOW + 5 + IDLE + 1);
    gone(1);
    lost(2);
    all_as_modelled();
    assert_int_equal(t->expired, 2);

    /* another user */

    keep_at(2, NOW + IDLE + 10);
    add(2, KX_ITEM_OPTIONS, 3000);

    s = kx_session_table_open(t, key(2), 8, NOW + IDLE + 10, WALL, IDLE,
                              &created);
    assert_int_equal(created, 1);
    assert_int_equal(s->root, KX_SESSION_NONE);
    lost(2);
    all_as_modelled();
    assert_int_equal(used(), 0);

    /* a full table */

    kx_session_table_close(t, record(2));
    gone(2);

    for (i = 0; i < SLOTS; i++) {
        keep_at(i, NOW + i);
        add(i, KX_ITEM_AD, 250);
    }

    open_at(SLOTS, NOW + SLOTS);
    gone(0);
    lost(SLOTS);
    all_as_modelled();
    assert_int_equal(t->evicted, 1);
    assert_int_equal(t->repaired, 0);
}


static void
test_repair_keeps(void **state)
{
    unsigned  i;

    prepare();

    kx_store_root(t, record(0))->trigger = 99;
    find_at(0, NOW + 10);

    for (i = 0; i < 3; i++) {
        repair();
        all_as_modelled();
    }

    assert_int_equal(kx_store_root(t, record(0))->trigger, 99);

    /* the order of the roots, too: 1, 3, 0 */

    assert_int_equal(kx_store_reserve(t, record(2), 0), KX_DECLINED);
    assert_int_equal(view().head->oldest, record(1)->root);
    assert_int_equal(view().head->newest, record(0)->root);

    /* the heads of the store */

    memset(view().head, 0x11, sizeof(kx_store_t));
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    all_as_modelled();

    memset(view().head, 0, sizeof(kx_store_t));
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    all_as_modelled();

    /* marks of a repair that has not come to its end */

    for (i = 0; i < view().limit; i++) {
        block(i)->owner |= 0x80000000;
    }

    repair();
    all_as_modelled();

    /* whoever was being changed is closed, and has nothing any more */

    kx_session_table_change(t, record(0));
    kx_store_shift(t, record(0), KX_ITEM_MESSAGE);

    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    gone(0);
    all_as_modelled();

    /* all of the store is there to be used */

    kx_session_table_close(t, record(1));
    kx_session_table_close(t, record(3));
    gone(1);
    gone(3);

    keep_at(4, NOW + 20);
    assert_int_equal(add(4, KX_ITEM_AD, FIRST + (BLOCKS - 2) * NEXT), KX_OK);
    all_as_modelled();
}


/* how the blocks of session 0 are damaged, and only that one */

static void
damage_0(unsigned k)
{
    uint32_t         other;
    kx_root_t       *root;
    kx_item_t        first, second, third;
    kx_item_list_t  *list;

    root = kx_store_root(t, record(0));
    list = &root->lists[KX_ITEM_MESSAGE];
    other = kx_store_root(t, record(1))->lists[KX_ITEM_MESSAGE].first;

    item_at(0, KX_ITEM_MESSAGE, 0, &first);
    item_at(0, KX_ITEM_MESSAGE, 1, &second);
    item_at(0, KX_ITEM_MESSAGE, 2, &third);

    switch (k) {

    /* items that lead nowhere, to another session, in circles */

    case 0:
        block(second.block)->u.item.next = BLOCKS;
        break;

    case 1:
        block(second.block)->u.item.next = other;
        break;

    case 2:
        block(second.block)->u.item.next = first.block;
        break;

    case 3:
        block(third.block)->u.item.next = third.block;
        break;

    case 4:
        block(second.block)->u.item.next = record(0)->root;
        break;

    case 5:
        block(first.block)->u.item.next = third.block;
        break;

    case 6:
        block(first.block)->u.item.next = block(first.block)->next;
        break;

    /* the same with the blocks of an item */

    case 7:
        block(first.block)->next = 0x7fffffff;
        break;

    case 8:
        block(first.block)->next = other;
        break;

    case 9:
        block(first.block)->next = first.block;
        break;

    case 10:
        block(first.block)->next = record(0)->root;
        break;

    case 11:
        block(first.block)->next = second.block;
        break;

    case 12:
        block(first.block)->next = KX_SESSION_NONE;
        break;

    case 13:
        block(second.block)->next = third.block;
        break;

    case 14:
        block(first.block)->next = view().head->free;
        break;

    /* lengths */

    case 15:
        block(first.block)->u.item.len++;
        break;

    case 16:
        block(first.block)->u.item.len = 0xffffffff;
        break;

    case 17:
        block(first.block)->u.item.len = 0;
        break;

    /* the heads */

    case 18:
        list->count++;
        break;

    case 19:
        list->bytes--;
        break;

    case 20:
        list->last = first.block;
        break;

    case 21:
        list->last = KX_SESSION_NONE;
        break;

    case 22:
        list->first = KX_SESSION_NONE;
        break;

    case 23:
        list->first = other;
        break;

    case 24:
        list->first = record(1)->root;
        break;

    case 25:
        list->first = record(0)->root;
        break;

    case 26:
        list->first = second.block;
        break;

    case 27:
        root->lists[KX_ITEM_AD] = *list;
        break;

    case 28:
        root->lists[KX_ITEM_AD] = kx_store_root(t, record(1))->lists[1];
        break;

    /* the root */

    case 29:
        root->blocks++;
        break;

    case 30:
        root->slot = 0xffffffff;
        break;

    case 31:
        root->slot = (uint32_t) (record(1) - slot(0));
        break;

    case 32:
        record(0)->root = record(1)->root;
        break;

    case 33:
        record(0)->root = first.block;
        break;

    case 34:
        record(0)->root = BLOCKS;
        break;

    case 35:
        record(0)->root = KX_SESSION_NONE;
        break;

    /* whose they are */

    case 36:
        block(first.block)->owner = record(1)->root;
        break;

    case 37:
        block(record(0)->root)->owner = record(1)->root;
        break;

    case 38:
        block(second.block)->owner = 0xffffffff;
        break;

    /* both of them agree */

    case 39:
        block(first.block)->u.item.len += NEXT;
        list->bytes += NEXT;
        break;

    case 40:
        block(second.block)->u.item.len = FIRST + 1;
        list->bytes += FIRST + 1 - second.len;
        break;

    case 41:
        list->count = 2;
        list->bytes -= third.len;
        list->last = second.block;
        block(second.block)->u.item.next = KX_SESSION_NONE;
        break;

    default:
        block(second.block)->owner = 0x80000000 | record(0)->root;
        break;
    }
}


#define DAMAGES  43


/* What it does not have any more is lost to the session alone. */

static void
test_repair_of_damage(void **state)
{
    unsigned  k;

    for (k = 0; k < DAMAGES; k++) {
        setup(NULL);
        prepare();
        damage_0(k);

        repair();

        if (k < DAMAGES - 1) {
            lost(0);
        }

        all_as_modelled();

        /* and it may have one again */

        assert_non_null(keep_at(0, NOW + 10));
        add(0, KX_ITEM_MESSAGE, 500);
        all_as_modelled();
    }
}


/* Closing it frees all of it at once, however it was linked. */

static void
test_close_of_damaged(void **state)
{
    unsigned  k;

    for (k = 0; k < DAMAGES; k++) {
        setup(NULL);
        prepare();
        damage_0(k);

        kx_session_table_close(t, record(0));
        gone(0);

        if (k == 35) {

            /* nobody can know of these */

            assert_int_equal(kx_session_table_verify(t), KX_ERROR);
            repair();
        }

        all_as_modelled();
    }
}


/* A list is emptied where it turns out to be damaged, and that is noticed. */

static void
emptied(unsigned removal)
{
    kx_item_t        item;
    kx_session_t    *s;
    kx_item_list_t  *list;

    s = record(0);
    list = &kx_store_root(t, s)->lists[KX_ITEM_MESSAGE];

    memset(&item, 0, sizeof(item));
    item.block = BLOCKS + 7;

    kx_session_table_change(t, s);

    if (removal) {
        kx_store_remove(t, s, KX_ITEM_MESSAGE, &item);

    } else {
        kx_store_shift(t, s, KX_ITEM_MESSAGE);
    }

    kx_session_table_changed(t, s);

    assert_int_equal(list->first, KX_SESSION_NONE);
    assert_int_equal(list->last, KX_SESSION_NONE);
    assert_int_equal(list->count, 0);
    assert_int_equal(list->bytes, 0);

    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    lost(0);
    all_as_modelled();
}


static void
test_list_is_emptied(void **state)
{
    unsigned         i;
    kx_item_t        first, second;
    kx_root_t       *root;
    kx_item_list_t  *list;

    for (i = 0; i < 11; i++) {
        setup(NULL);
        prepare();

        root = kx_store_root(t, record(0));
        list = &root->lists[KX_ITEM_MESSAGE];
        item_at(0, KX_ITEM_MESSAGE, 0, &first);
        item_at(0, KX_ITEM_MESSAGE, 1, &second);

        switch (i) {

        case 0:
            block(first.block)->next = KX_SESSION_NONE;
            break;

        case 1:
            block(first.block)->u.item.len = 0xffffffff;
            break;

        case 2:
            list->bytes = 1;
            break;

        case 3:
            list->count = 0;
            break;

        case 4:
            root->blocks = 3;
            break;

        case 5:
            list->last = first.block;
            break;

        case 6:
            block(first.block)->u.item.next = KX_SESSION_NONE;
            break;

        case 7:
            list->first = record(0)->root;
            break;

        case 8:
            list->first = KX_SESSION_NONE;
            break;

        case 9:
            block(second.block)->u.item.next = first.block;
            break;

        default:
            block(second.block)->u.item.next = record(1)->root;
        }

        emptied(i > 8);
    }
}


static void
test_bad_items(void **state)
{
    kx_item_t       item, old;
    kx_root_t      *root;
    kx_session_t   *s;
    unsigned char   p[1000];

    /* a length that no item has */

    prepare();
    item_at(0, KX_ITEM_MESSAGE, 0, &item);
    block(item.block)->u.item.len = 0x7fffffff;
    assert_int_equal(kx_store_first(t, record(0), KX_ITEM_MESSAGE, &item),
                     KX_DECLINED);
    assert_int_equal(item.block, KX_SESSION_NONE);
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);

    /* a chain that leads to the root, where the secret is */

    setup(NULL);
    prepare();
    item_at(0, KX_ITEM_MESSAGE, 0, &item);
    block(item.block)->next = record(0)->root;
    assert_int_equal(kx_store_read(t, &item, 0, p, sizeof(p)), FIRST);
    assert_int_equal(kx_store_read(t, &item, FIRST + 1, p, sizeof(p)), 0);

    kx_session_table_change(t, record(0));
    kx_store_write(t, &item, FIRST - 1, "0123456789", 10);
    kx_session_table_changed(t, record(0));

    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    lost(0);
    all_as_modelled();

    /* the last item is the root, whose id looks like an end */

    setup(NULL);
    s = keep_at(1, NOW);
    add(1, KX_ITEM_AD, 5);
    root = kx_store_root(t, s);
    memset(root->id, 0xff, KX_ID_LEN);
    root->lists[KX_ITEM_AD].last = s->root;
    assert_int_equal(add(1, KX_ITEM_AD, 5), KX_DECLINED);
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    verify();

    /* an item whose block has become another's */

    setup(NULL);
    s = keep_at(1, NOW);
    add(1, KX_ITEM_AD, 5);
    item_at(1, KX_ITEM_AD, 0, &old);
    remove_at(1, KX_ITEM_AD, 0);
    assert_int_equal(kx_store_read(t, &old, 0, p, sizeof(p)), 0);

    add(1, KX_ITEM_AD, 6);
    item_at(1, KX_ITEM_AD, 0, &item);
    assert_int_equal(item.block, old.block);
    assert_int_equal(kx_store_read(t, &old, 0, p, sizeof(p)), 0);
    assert_int_equal(kx_store_read(t, &item, 0, p, sizeof(p)), 6);
    all_as_modelled();
}


/* What the header of the store cannot be is repaired at once. */

static void
test_heads(void **state)
{
    unsigned     i, k;
    kx_store_t  *h;

    for (k = 0; k < 2; k++) {

        for (i = 0; i < 12; i++) {
            setup(NULL);

            if (k) {
                prepare();
            }

            h = view().head;

            switch (i) {

            case 0:
                h->fresh = 0x3fffffff;
                h->seal = ~h->fresh;
                assert_null(kx_store_peek(t, 0x3ffffff0, id(0)));
                break;

            case 1:
                h->fresh += 1;
                break;

            case 2:
                h->seal += 1;
                break;

            case 3:
                h->used = h->fresh + 1;
                break;

            case 4:
                h->used = h->fresh;
                h->free = 0;
                break;

            case 5:
                h->used = 0;
                h->fresh = 3;
                h->seal = ~h->fresh;
                h->free = KX_SESSION_NONE;
                break;

            case 6:
                h->roots = h->used + 1;
                break;

            case 7:
                h->roots = t->used + 1;
                break;

            case 8:
                h->newest = k ? BLOCKS : 0;
                break;

            case 9:
                h->oldest = k ? KX_SESSION_NONE : 0;
                break;

            case 10:
                h->broken = 1;
                break;

            default:
                h->free = BLOCKS;
            }

            assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);

            /* fewer blocks than there were: this cannot be known */

            if (i == 5) {
                verify();

            } else {
                all_as_modelled();
            }
        }
    }
}


/* The test's own eyes: each of these is an error. */

static void
test_verify(void **state)
{
    unsigned          i;
    kx_store_view_t   v;

    for (i = 0; i < DAMAGES + 8; i++) {
        setup(NULL);
        prepare();

        v = view();

        switch (i) {

        case 0:
            v.head->roots--;
            break;

        case 1:
            v.head->oldest = v.head->newest;
            break;

        case 2:
            kx_store_root(t, record(1))->older = KX_SESSION_NONE;
            break;

        case 3:
            kx_store_root(t, record(1))->newer = record(1)->root;
            break;

        case 4:
            kx_store_root(t, record(0))->older = record(3)->root;
            break;

        case 5:
            v.head->used--;
            break;

        case 6:
            shift(0, KX_ITEM_MESSAGE);
            verify();
            v.blocks[v.head->free].next = v.head->free;
            break;

        case 7:
            shift(0, KX_ITEM_MESSAGE);
            verify();
            v.blocks[v.head->free].next = KX_SESSION_NONE;
            break;

        default:
            damage_0(i - 8);
        }

        assert_int_equal(kx_session_table_verify(t), KX_ERROR);
        repair();
        verify();
    }
}


/* Nobody has checked: each operation comes to an end and harms nobody. */

static void
use_damaged(unsigned what)
{
    int             rc;
    uint32_t        b;
    unsigned        n, kind;
    kx_str_t        data;
    kx_item_t       item;
    kx_root_t      *root;
    kx_session_t   *s;
    unsigned char   p[2000];

    s = record(0);
    kind = KX_ITEM_MESSAGE;

    data.data = p;
    data.len = 300;
    memset(p, 'p', sizeof(p));

    switch (what) {

    case 0:
        for (rc = kx_store_first(t, s, kind, &item), n = 0;
             rc == KX_OK;
             rc = kx_store_next(t, &item))
        {
            (void) kx_store_read(t, &item, 0, p, sizeof(p));
            (void) kx_store_read(t, &item, 400, p, sizeof(p));
            assert_true(n++ <= KX_STORE_MAX_BLOCKS);
        }

        (void) kx_store_last(t, s, kind, &item);
        break;

    case 1:
        root = kx_store_root(t, s);

        if (root && root->lists[kind].first < BLOCKS) {
            kx_session_table_change(t, s);

            for (n = 0; root->lists[kind].count; n++) {
                kx_store_shift(t, s, kind);
                assert_true(n <= KX_STORE_MAX_BLOCKS);
            }

            kx_session_table_changed(t, s);
        }

        break;

    case 2:
        if (kx_store_last(t, s, kind, &item) == KX_OK) {
            kx_session_table_change(t, s);
            kx_store_write(t, &item, 0, p, sizeof(p));
            kx_store_remove(t, s, kind, &item);
            kx_session_table_changed(t, s);
        }

        break;

    case 3:
        kx_session_table_change(t, s);

        for (n = 0; n < BLOCKS; n++) {
            (void) kx_store_add(t, s, kind, n, &data, 1);
        }

        kx_session_table_changed(t, s);
        break;

    case 4:
        kx_session_table_close(t, s);
        break;

    case 5:
        (void) find_at(0, NOW + 10);
        break;

    case 6:
        (void) kx_store_keep(t, s, id(9));
        break;

    case 7:
        (void) kx_store_reserve(t, s, BLOCKS - 8);
        break;

    case 8:
        s = open_at(9, NOW + 10);
        assert_int_equal(kx_store_keep(t, s, id(9)), KX_OK);
        assert_int_equal(kx_store_reserve(t, s, BLOCKS - 1), KX_OK);
        break;

    case 9:
        for (b = 0; b < BLOCKS; b++) {
            (void) kx_store_find(t, b, id(0), NOW + 10, IDLE);
            (void) kx_store_peek(t, b, id(1000));

            s = kx_store_peek(t, b, id(0));
            assert_true(s == NULL || s->root == b);
        }

        break;

    default:
        open_at(0, NOW + 2 * IDLE);
    }
}


static void
test_use_of_damaged(void **state)
{
    unsigned  k, what;

    for (what = 0; what < 11; what++) {

        for (k = 0; k < DAMAGES; k++) {
            setup(NULL);
            prepare();
            damage_0(k);
            use_damaged(what);

            (void) kx_session_table_check(t, size, share);
            repair();
            verify();

            if (what != 7 && what != 8 && what != 10) {

                /* the others have seen nothing of it */

                assert_true(as_modelled(1));
                assert_true(as_modelled(2));
                assert_true(as_modelled(3));
            }
        }
    }
}


/* What a repair is needed for is noticed by those who come across it. */

static void
test_damage_is_noticed(void **state)
{
    uint32_t   n;
    kx_item_t  item;

    prepare();

    item_at(0, KX_ITEM_MESSAGE, 0, &item);
    block(item.block)->next = 1000;

    assert_int_equal(kx_session_table_check(t, size, share), KX_OK);
    assert_false(is_entry(&item, &models[0].items[KX_ITEM_MESSAGE][0]));
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    lost(0);
    all_as_modelled();

    /* free blocks that are none */

    view().head->free = record(1)->root;
    assert_int_equal(add(1, KX_ITEM_AD, 10), KX_DECLINED);
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    all_as_modelled();
    assert_int_equal(add(1, KX_ITEM_AD, 10), KX_OK);

    block(view().head->free)->next = BLOCKS + 1;
    n = used();
    assert_int_equal(add(1, KX_ITEM_AD, 800), KX_DECLINED);
    assert_int_equal(used(), n);
    assert_true(as_modelled(1));
    assert_int_equal(kx_session_table_check(t, size, share), KX_DONE);
    all_as_modelled();
    assert_int_equal(add(1, KX_ITEM_AD, 800), KX_OK);

    /* links of the roots */

    kx_store_root(t, record(3))->older = 77;
    assert_non_null(find_at(3, NOW + 9));
    find_at(1, NOW + 10);
    assert_non_null(find_at(3, NOW + 11));
    all_as_modelled();

    /* a count by which there would be no room: nobody is closed for it */

    view().head->used = BLOCKS;
    view().head->oldest = KX_SESSION_NONE;
    assert_int_equal(kx_store_reserve(t, record(3), 5), KX_OK);
    all_as_modelled();
    assert_int_equal(t->evicted, 0);
}


/* Whatever one word of the memory becomes, little is lost. */

static void
test_each_word(void **state)
{
    int             rc;
    size_t          i, words;
    uint32_t       *word, head;
    unsigned        j, k, kept;
    unsigned char  *copy;

    static const uint32_t  values[] = {
        0, 1, 2, 7, SLOTS, BLOCKS - 1, BLOCKS, 0x7fffffff, 0x80000001,
        0xfffffffe, 0xffffffff
    };

    prepare();

    words = size / 4;
    copy = malloc(size);
    assert_non_null(copy);
    memcpy(copy, mem, size);

    head = (uint32_t) ((unsigned char *) view().head - mem) / 4;

    for (i = 0; i < words; i++) {

        for (k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
            memcpy(mem, copy, size);

            word = (uint32_t *) mem + i;
            *word = values[k];

            rc = kx_session_table_check(t, size, share);
            assert_true(rc == KX_OK || rc == KX_DONE);

            repair();
            verify();

            kept = 0;

            for (j = 0; j < 4; j++) {
                kept += as_modelled(j);
            }

            /* of a word in the header of the store there is nothing */

            assert_true(kept >= (i >= head && i < head + 16 ? 4 : 3));

            /* damaged once more, and used at once */

            *word = values[k];

            for (j = 0; j < 10; j++) {
                (void) kx_session_table_check(t, size, share);

                if (record(0)) {
                    use_damaged(j);
                }
            }

            repair();
            verify();
        }
    }

    free(copy);
}


static void
test_two_with_the_same_blocks(void **state)
{
    prepare();

    /* one root, two sessions: it names one of them */

    record(2)->root = record(0)->root;
    assert_int_equal(kx_session_table_verify(t), KX_ERROR);

    repair();
    all_as_modelled();

    record(2)->root = record(0)->root;
    assert_ptr_equal(find_at(2, NOW + 10), record(2));
    all_as_modelled();

    record(2)->root = record(0)->root;
    kx_session_table_close(t, record(2));
    gone(2);
    all_as_modelled();

    /* one item in the lists of two */

    kx_store_root(t, record(1))->lists[KX_ITEM_MESSAGE] =
        kx_store_root(t, record(0))->lists[KX_ITEM_MESSAGE];

    kx_session_table_close(t, record(1));
    gone(1);
    all_as_modelled();
}


static void
test_repair_is_linear(void **state)
{
    uint32_t    b, n;
    unsigned    i, k;
    kx_root_t  *root;

    /* each session's lists lead to the same long chain */

    make(8000 * 256, KX_SESSION_MAX_SHARE - 4);
    assert_true(t->slots >= 2000);

    for (i = 0; i < 2000; i++) {
        assert_int_equal(kx_store_keep(t, open_at(i, NOW), id(i)), KX_OK);
    }

    kx_session_table_change(t, record(0));

    for (i = 0; i < 1000; i++) {
        assert_int_equal(kx_store_add(t, record(0), KX_ITEM_EVENT, 1, NULL,
                                      0), KX_OK);
    }

    kx_session_table_changed(t, record(0));
    verify();

    b = record(0)->root;

    for (i = 0; i < 2000; i++) {
        root = &block(slot(i)->root)->u.root;

        for (k = 0; k < KX_ITEM_KINDS; k++) {
            root->lists[k] = block(b)->u.root.lists[KX_ITEM_EVENT];
        }
    }

    repair();
    verify();
    assert_int_equal(used(), 0);

    /* or all of memory is one chain that everybody claims to own */

    for (i = 0; i < 2000; i++) {
        assert_int_equal(kx_store_keep(t, slot(i), id(i)), KX_OK);
    }

    n = view().n;
    view().head->fresh = n;
    view().head->seal = ~n;

    for (b = 0; b < n; b++) {
        block(b)->owner = 0;
        block(b)->next = (b + 1) % n;
        block(b)->u.item.next = (b + 1) % n;
    }

    block(0)->u.root.lists[0].first = 1;

    for (i = 0; i < 2000; i++) {
        slot(i)->root = 0;
    }

    repair();
    verify();
    assert_int_equal(used(), 0);
    assert_int_equal(t->used, 2000);
}


static void
random_operation(uint64_t now)
{
    unsigned        n, kind;
    kx_str_t        data;
    kx_item_t       item;
    kx_session_t   *s;
    unsigned char   p[700];

    n = draw(MODELS);
    kind = draw(KX_ITEM_KINDS);

    s = find_at(n, now);

    switch (s ? draw(8) : 8) {

    case 0:
    case 1:
        (void) kx_store_reserve(t, s, 4);
        kx_session_table_change(t, s);

        memset(p, 'x', sizeof(p));
        data.data = p;
        data.len = draw(sizeof(p));
        (void) kx_store_add(t, s, kind, now, &data, 1);

        kx_session_table_changed(t, s);
        break;

    case 2:
        kx_session_table_change(t, s);
        kx_store_shift(t, s, kind);
        kx_session_table_changed(t, s);
        break;

    case 3:
        if (kx_store_last(t, s, kind, &item) == KX_OK) {
            kx_session_table_change(t, s);
            kx_store_write(t, &item, draw(800), "write", 5);
            kx_store_remove(t, s, kind, &item);
            kx_session_table_changed(t, s);
        }

        break;

    case 4:
        for (n = kx_store_first(t, s, kind, &item);
             n == KX_OK;
             n = kx_store_next(t, &item))
        {
            (void) kx_store_read(t, &item, draw(300), p, sizeof(p));
        }

        break;

    case 5:
        kx_session_table_close(t, s);
        break;

    case 6:
        (void) kx_store_peek(t, draw(BLOCKS), id(n));
        (void) kx_store_find(t, s->root, id(n), now, IDLE);
        break;

    default:
        s = open_at(n, now);

        if (s) {
            (void) kx_store_keep(t, s, id(n));
        }
    }
}


static void
test_random_damage(void **state)
{
    int        rc;
    size_t     from;
    unsigned   i, j, n, run;
    uint64_t   now;

    for (run = 0; run < 400; run++) {
        make_store(SLOTS, BLOCKS);
        chance = run;

        from = draw(2) ? 0 : (size_t) ((unsigned char *) view().head - mem);
        now = NOW;

        for (i = 0; i < 300; i++) {

            if (i > 50 && draw(4) == 0) {

                for (n = draw(6); n; n--) {
                    j = draw(size - from) + from;
                    mem[j] = draw(2) ? draw(BLOCKS) : draw(256);
                }
            }

            /* sometimes nobody looks first, as it is within a lock */

            if (draw(4) || from == 0) {
                rc = kx_session_table_check(t, size, share);

                if (rc == KX_ERROR) {
                    assert_int_equal(from, 0);
                    t = kx_session_table_create(mem, size, share);
                }
            }

            random_operation(now += draw(20));
        }

        t->dirty = 1;

        if (kx_session_table_check(t, size, share) == KX_ERROR) {
            t = kx_session_table_create(mem, size, share);
        }

        verify();

        for (i = 0; i < 100; i++) {
            random_operation(now += draw(20));
            verify();
            assert_int_equal(kx_session_table_check(t, size, share), KX_OK);
        }
    }
}


/* The same operations on the store and on plain arrays. */

static void
test_against_arrays(void **state)
{
    int        rc;
    unsigned   i, j, k, n, kind, need, free, order[MODELS], norder;
    uint64_t   now, closed;
    uint32_t   blocks[MODELS], total;

    make_store(24, 60);

    now = NOW;
    norder = 0;
    closed = 0;
    memset(blocks, 0, sizeof(blocks));

    for (i = 0; i < 30000; i++) {
        n = draw(MODELS);
        kind = draw(KX_ITEM_KINDS);
        now += 1;
        salt = draw(900);

        /* used: to the front */

        if (models[n].live) {
            if (draw(2)) {
                assert_non_null(find_at(n, now));

            } else if (models[n].kept) {
                assert_non_null(kx_store_find(t, record(n)->root,
                                              id(n * 1000 + models[n].salt),
                                              now, IDLE));

            } else {
                assert_non_null(open_at(n, now));
            }

        } else {
            open_at(n, now);
            lost(n);
        }

        for (j = 0; j < norder; j++) {
            if (order[j] == n) {
                memmove(order + 1, order, j * sizeof(order[0]));
                order[0] = n;
                break;
            }
        }

        k = draw(10);

        total = 0;

        for (j = 0; j < MODELS; j++) {
            total += blocks[j];
        }

        free = 60 - total;

        if (k < 6) {
            k = draw(8) ? draw(700) : draw(9000);
            need = models[n].kept ? kx_store_blocks(k) : 1;

            if (models[n].kept && models[n].n[kind] == ITEMS) {
                continue;
            }

            if (need > 60 - blocks[n]) {
                assert_int_equal(kx_store_reserve(t, record(n), need),
                                 KX_DECLINED);

            } else {

                while (free < need) {
                    j = order[--norder];

                    if (j == n) {
                        j = order[--norder];
                        order[norder++] = n;
                    }

                    free += blocks[j];
                    blocks[j] = 0;
                    gone(j);
                    closed++;
                }

                if (models[n].kept) {
                    assert_int_equal(kx_store_reserve(t, record(n), need),
                                     KX_OK);
                    assert_int_equal(add(n, kind, k), KX_OK);
                    blocks[n] += need;

                } else {
                    assert_non_null(keep_at(n, now));
                    memmove(order + 1, order, norder * sizeof(order[0]));
                    order[0] = n;
                    norder++;
                    blocks[n] = 1;
                }
            }

        } else if (k < 8) {

            if (models[n].n[kind]) {
                j = draw(models[n].n[kind]);
                blocks[n] -= kx_store_blocks(models[n].items[kind][j].len);
                remove_at(n, kind, j);
            }

        } else if (k < 9) {

            if (models[n].n[kind]) {
                blocks[n] -= kx_store_blocks(models[n].items[kind][0].len);
            }

            if (models[n].kept) {
                shift(n, kind);
            }

        } else if (draw(4) == 0) {
            kx_session_table_close(t, record(n));

            for (j = 0; j < norder; j++) {
                if (order[j] == n) {
                    norder--;
                    memmove(order + j, order + j + 1,
                            (norder - j) * sizeof(order[0]));
                    break;
                }
            }

            gone(n);
            blocks[n] = 0;

        } else if (draw(100) == 0) {
            repair();
        }

        rc = 1;

        for (j = 0; j < MODELS; j++) {
            rc &= !models[j].kept
                  || kx_store_root(t, record(j))->blocks == blocks[j];
        }

        assert_true(rc);
        assert_true(t->evicted == closed);

        if (i % 16 == 0) {
            all_as_modelled();
        }
    }

    assert_true(closed > 1000);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup(test_geometry, setup),
        cmocka_unit_test_setup(test_words_of_the_size, setup),
        cmocka_unit_test_setup(test_without_a_store, setup),
        cmocka_unit_test_setup(test_blocks_of_a_length, setup),
        cmocka_unit_test_setup(test_keep, setup),
        cmocka_unit_test_setup(test_find, setup),
        cmocka_unit_test_setup(test_lengths, setup),
        cmocka_unit_test_setup(test_pieces, setup),
        cmocka_unit_test_setup(test_shift_and_remove, setup),
        cmocka_unit_test_setup(test_remove_while_walking, setup),
        cmocka_unit_test_setup(test_no_room, setup),
        cmocka_unit_test_setup(test_limit_of_a_session, setup),
        cmocka_unit_test_setup(test_eviction, setup),
        cmocka_unit_test_setup(test_closing_frees, setup),
        cmocka_unit_test_setup(test_repair_keeps, setup),
        cmocka_unit_test_setup(test_repair_of_damage, setup),
        cmocka_unit_test_setup(test_close_of_damaged, setup),
        cmocka_unit_test_setup(test_list_is_emptied, setup),
        cmocka_unit_test_setup(test_bad_items, setup),
        cmocka_unit_test_setup(test_heads, setup),
        cmocka_unit_test_setup(test_verify, setup),
        cmocka_unit_test_setup(test_use_of_damaged, setup),
        cmocka_unit_test_setup(test_damage_is_noticed, setup),
        cmocka_unit_test_setup(test_each_word, setup),
        cmocka_unit_test_setup(test_two_with_the_same_blocks, setup),
        cmocka_unit_test_setup(test_repair_is_linear, setup),
        cmocka_unit_test_setup(test_random_damage, setup),
        cmocka_unit_test_setup(test_against_arrays, setup)
    };

    return cmocka_run_group_tests(tests, NULL, teardown);
}
