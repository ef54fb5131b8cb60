/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The input is a program: operations on a table of sessions and its store,
 * workers that die in a change, and damage to the memory in between.  Without
 * damage the table is consistent after each operation, and what was kept is
 * what a plain array has; with it, it is of use nevertheless.
 */


#include <stdlib.h>

#include "check.h"
#include "session_store.h"


#define MAX_STEPS  2000
#define MAX_SLOTS  40
#define MAX_BLOCKS 64
#define MAX_ITEMS  12
#define IDLE       1000


/* what is kept of the session in a slot */

typedef struct {
    uint32_t              serial;
    unsigned              n[KX_ITEM_KINDS];
    uint32_t              items[KX_ITEM_KINDS][MAX_ITEMS];
} kept_t;


typedef struct {
    const unsigned char  *pos;
    const unsigned char  *end;

    unsigned char        *mem;
    size_t                size;
    unsigned              share;
    kx_session_table_t   *t;

    uint32_t              serial;
    kept_t                kept[MAX_SLOTS + MAX_BLOCKS];

    uint64_t              now;
    unsigned              damaged;
    unsigned              died;
} run_t;


int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len);


static const kx_str_t  placements[] = {
    kx_string("inlineAd"),
    kx_string("bottomAd"),
    kx_string("sidebar"),
    kx_string("overlay")
};


static unsigned
byte(run_t *r)
{
    return (r->pos < r->end) ? *r->pos++ : 0;
}


static uint32_t
word(run_t *r)
{
    uint32_t  n;

    n = byte(r);
    n |= byte(r) << 8;

    return n;
}


static void
key(run_t *r, unsigned char k[KX_ID_LEN])
{
    unsigned  n;

    n = byte(r) % 64;

    memset(k, 0xcc, KX_ID_LEN);
    k[0] = (unsigned char) (n % 7);
    k[1] = (unsigned char) n;
}


static void
lock(run_t *r)
{
    int  rc;

    rc = kx_session_table_check(r->t, r->size, r->share);

    if (rc == KX_ERROR) {
        check(r->damaged);

        /* nobody who goes on in spite of it comes to grief */

        if (byte(r) & 1) {
            return;
        }

        r->t = kx_session_table_create(r->mem, r->size, r->share);
        check(r->t != NULL);
        r->damaged = 0;

    } else if (!r->damaged) {
        check(rc == (r->died ? KX_DONE : KX_OK));
    }

    r->died = 0;
}


static kept_t *
kept(run_t *r, kx_session_t *s)
{
    return &r->kept[s - kx_session_table_slots(r->t)];
}


/* An item's length is in its number, and so is what its bytes are. */

static uint32_t
length(uint32_t number)
{
    return number % 3000;
}


static unsigned char
pattern(uint32_t number, size_t i)
{
    return (unsigned char) (number * 7 + i * 11 + i / 251);
}


/* All items that there are, and the right ones. */

static void
compare(run_t *r, kx_session_t *s)
{
    int         rc;
    size_t      i, len;
    kept_t     *k;
    uint32_t    id;
    unsigned    n, kind;
    kx_item_t   item;
    kx_root_t  *root;

    static unsigned char  p[KX_STORE_MAX_BLOCKS * KX_STORE_BLOCK];

    root = kx_store_root(r->t, s);

    if (root == NULL) {
        check(s->root == KX_SESSION_NONE || r->damaged);
        return;
    }

    k = kept(r, s);

    if (!r->damaged) {
        memcpy(&id, root->id, sizeof(id));
        check(id == k->serial);
    }

    for (kind = 0; kind < KX_ITEM_KINDS; kind++) {
        n = 0;

        for (rc = kx_store_first(r->t, s, kind, &item);
             rc == KX_OK;
             rc = kx_store_next(r->t, &item))
        {
            check(n < KX_STORE_MAX_BLOCKS);
            check(item.len <= sizeof(p));

            len = kx_store_read(r->t, &item, 0, p, sizeof(p));
            check(len <= item.len);

            if (!r->damaged) {
                check(n < k->n[kind]);
                check(item.number == k->items[kind][n]);
                check(item.len == length(k->items[kind][n]));
                check(len == item.len);

                for (i = 0; i < len; i++) {
                    check(p[i] == pattern((uint32_t) item.number, i));
                }
            }

            n++;
        }

        check(r->damaged
              || (n == k->n[kind] && root->lists[kind].count == n));
    }
}


static void
keep(run_t *r, kx_session_t *s)
{
    int               rc;
    kept_t           *k;
    unsigned char     id[KX_ID_LEN];
    kx_store_view_t   v;

    if (s->root != KX_SESSION_NONE && !r->damaged) {
        check(kx_store_root(r->t, s) != NULL);
        return;
    }

    memset(id, 0x5a, sizeof(id));
    r->serial++;
    memcpy(id, &r->serial, sizeof(r->serial));

    rc = kx_store_keep(r->t, s, id);

    if (r->damaged) {
        return;
    }

    check(rc == kx_store_view(r->t, &v));

    if (rc == KX_OK) {
        k = kept(r, s);
        memset(k, 0, sizeof(kept_t));
        k->serial = r->serial;

        check(kx_store_peek(r->t, s->root, id) == s);
        check(kx_store_find(r->t, s->root, id, r->now, IDLE) == s);
    }
}


static void
add(run_t *r, kx_session_t *s, unsigned kind)
{
    int               rc;
    size_t            i, len, cut;
    kept_t           *k;
    uint32_t          number, need;
    unsigned          room;
    kx_str_t          data[2];
    kx_store_view_t   v;

    static unsigned char  p[3000];

    k = kept(r, s);
    number = word(r);
    len = length(number);
    need = kx_store_blocks(len);

    for (i = 0; i < len; i++) {
        p[i] = pattern(number, i);
    }

    cut = byte(r);
    cut = (cut < len) ? cut : len;

    data[0].data = p;
    data[0].len = cut;
    data[1].data = p + cut;
    data[1].len = len - cut;

    room = kx_store_view(r->t, &v) == KX_OK
           && s->root != KX_SESSION_NONE
           && kx_store_root(r->t, s) != NULL
           && kx_store_root(r->t, s)->blocks + need <= v.n;

    if (byte(r) & 1) {
        rc = kx_store_reserve(r->t, s, need);
        check(r->damaged || rc == (room ? KX_OK : KX_DECLINED));

    } else {
        room = room && need <= v.n - v.head->used;
    }

    /* it is still there, and had it been closed, nothing would be added */

    check(r->damaged || s->live);

    if (!r->damaged && room && k->n[kind] == MAX_ITEMS) {
        return;
    }

    kx_session_table_change(r->t, s);
    rc = kx_store_add(r->t, s, kind, number, data, 2);

    if (!r->damaged) {
        check(rc == (room ? KX_OK : KX_DECLINED));

        if (rc == KX_OK) {
            k->items[kind][k->n[kind]++] = number;
        }
    }
}


static void
forget(kept_t *k, unsigned kind, unsigned i)
{
    if (i < k->n[kind]) {
        k->n[kind]--;
        memmove(&k->items[kind][i], &k->items[kind][i + 1],
                (k->n[kind] - i) * sizeof(uint32_t));
    }
}


static void
store(run_t *r, kx_session_t *s)
{
    int             rc;
    kept_t         *k;
    unsigned        what, kind, i, n;
    kx_item_t       item;
    unsigned char   p[300];

    what = byte(r);
    kind = what / 8 % KX_ITEM_KINDS;
    k = kept(r, s);

    compare(r, s);

    switch (what % 8) {

    case 0:
        keep(r, s);
        return;

    case 1:
        (void) kx_store_reserve(r->t, s, byte(r));
        compare(r, s);
        return;

    case 2:
        kx_session_table_change(r->t, s);
        kx_store_shift(r->t, s, kind);
        forget(k, kind, 0);
        break;

    case 3:
        n = byte(r) % (k->n[kind] ? k->n[kind] : 1);
        rc = kx_store_first(r->t, s, kind, &item);

        for (i = 0; rc == KX_OK && i < n; i++) {
            rc = kx_store_next(r->t, &item);
        }

        kx_session_table_change(r->t, s);

        if (rc == KX_OK) {
            kx_store_remove(r->t, s, kind, &item);
            forget(k, kind, i);
        }

        break;

    case 4:
        rc = kx_store_last(r->t, s, kind, &item);

        kx_session_table_change(r->t, s);

        if (rc == KX_OK) {
            n = word(r) % (item.len + 1);
            i = (unsigned) kx_store_read(r->t, &item, n, p, byte(r));
            kx_store_write(r->t, &item, n, p, i);
        }

        break;

    default:
        add(r, s, kind);

        if (!r->t->dirty) {
            return;
        }
    }

    if (byte(r) == 0xdd) {
        r->died = 1;
        return;
    }

    kx_session_table_changed(r->t, s);
    compare(r, s);
}


static void
change(run_t *r, kx_session_t *s)
{
    unsigned              i, what;
    uint32_t              seq;
    kx_bid_t              bids[KX_MAX_BIDS];
    unsigned char         message[KX_ID_LEN];
    kx_init_answer_t      ia;
    kx_preload_answer_t   a;

    what = byte(r);
    seq = s->seq - (what >> 7);
    memset(message, byte(r) % 4, KX_ID_LEN);

    kx_session_table_change(r->t, s);

    switch (what % 8) {

    case 0:
    case 1:
        (void) kx_session_turn(s, message, what >> 6 & 1, r->now, r->now,
                               word(r));
        break;

    case 2:
        memset(&a, 0, sizeof(a));
        a.outcome = byte(r) % 4;
        a.disable = byte(r) == 1;
        a.has_session = what >> 6 & 1;
        a.nbids = byte(r) % (KX_MAX_BIDS + 1);

        for (i = 0; i < a.nbids; i++) {
            memset(a.bids[i].id, (int) byte(r), KX_ID_LEN);
            a.bids[i].placement = byte(r) % 4;
            a.bids[i].revenue = (double) byte(r) - 10;
        }

        memset(a.code, 'c', byte(r) % KX_MAX_CODE);
        (void) kx_session_answer(s, seq, &a, placements);
        break;

    case 3:
        (void) kx_session_pair(s, seq, message);
        break;

    case 4:
        kx_session_cancel(s, seq);
        break;

    case 5:
        (void) kx_session_init_claim(s, r->now, word(r));
        break;

    case 6:
        memset(&ia, 0, sizeof(ia));
        i = byte(r);
        ia.applied = i;
        ia.failed = i >> 1;
        ia.enabled = i >> 2;
        ia.report_errors = i >> 3;
        ia.report_debug = i >> 4;
        ia.preload_timeout = word(r);
        kx_session_init_answer(s, s->init_seq - (what >> 7), &ia);
        break;

    default:
        kx_session_init_cancel(s, s->init_seq - (what >> 7));
    }

    check(kx_session_bids(s, bids, placements, 4) <= KX_MAX_BIDS);

    if (byte(r) == 0xdd) {
        r->died = 1;
        return;
    }

    kx_session_table_changed(r->t, s);
}


static void
damage(run_t *r)
{
    size_t          from, to, n, i;
    unsigned char  *p;

    r->damaged = 1;
    p = r->mem;
    to = word(r) % r->size;
    n = byte(r) % 64;

    switch (byte(r) % 5) {

    case 0:
        for (i = 0; i < n && to + i < r->size; i++) {
            p[to + i] = (unsigned char) byte(r);
        }
        break;

    case 1:
        p[to] ^= 1 << n % 8;
        break;

    case 2:
        /* an index that may well be one, just not this one */
        to -= to % 4;
        n %= MAX_SLOTS;
        memset(p + to, 0, (r->size - to < 4) ? r->size - to : 4);
        p[to] = (unsigned char) n;
        break;

    case 3:
        from = word(r) % r->size;
        n = word(r) % 512;

        if (n > r->size - from) {
            n = r->size - from;
        }

        if (n > r->size - to) {
            n = r->size - to;
        }

        memmove(p + to, p + from, n);
        break;

    default:
        n = word(r);
        memset(p + to, (int) byte(r),
               (n > r->size - to) ? r->size - to : n);
    }
}


static void
step(run_t *r)
{
    unsigned        created, op;
    kx_session_t   *s, *found;
    unsigned char   k[KX_ID_LEN];

    op = byte(r);
    r->now += byte(r) * 4;

    if (op >= 0xe0) {
        damage(r);
        return;
    }

    lock(r);
    key(r, k);

    switch (op % 4) {

    case 0:
        s = kx_session_table_find(r->t, k, r->now, IDLE);

        if (s && (op & 8)) {
            change(r, s);

        } else if (s) {
            store(r, s);
        }

        break;

    case 1:
        s = kx_session_table_find(r->t, k, r->now, IDLE);

        if (s) {
            kx_session_table_close(r->t, s);
            check(r->damaged
                  || kx_session_table_find(r->t, k, r->now, IDLE) == NULL);
        }

        break;

    default:
        s = kx_session_table_open(r->t, k, op >> 2 & 1, r->now, r->now, IDLE,
                                  &created);

        check(s != NULL || r->damaged);

        if (s) {
            check(memcmp(s->key, k, KX_ID_LEN) == 0);
            check(s->user == (op >> 2 & 1));

            /* damage may have hidden one of the same key, which comes back */

            found = kx_session_table_find(r->t, k, r->now, IDLE);
            check(found == s || r->damaged);

            if (op & 8) {
                change(r, s);

            } else {
                store(r, s);
            }
        }
    }

    if (!r->damaged && !r->died) {
        check(kx_session_table_verify(r->t) == KX_OK);
    }
}


static void
settle(run_t *r)
{
    int               rc;
    uint32_t          i;
    unsigned          created;
    kx_session_t     *s;
    unsigned char     k[KX_ID_LEN];
    kx_store_view_t   v;

    /* whatever it was, a repair leaves it whole */

    r->t->dirty = 1;
    rc = kx_session_table_check(r->t, r->size, r->share);

    if (rc == KX_ERROR) {
        check(r->damaged);
        check(kx_session_table_attach(r->mem, r->size, r->share) == NULL);

        r->t = kx_session_table_create(r->mem, r->size, r->share);
        check(r->t != NULL);

    } else {
        check(rc == KX_DONE);
    }

    check(kx_session_table_verify(r->t) == KX_OK);

    s = NULL;
    memset(k, 0xee, KX_ID_LEN);

    for (i = 0; i < r->t->slots + 2; i++) {
        memcpy(k, &i, sizeof(i));

        s = kx_session_table_open(r->t, k, 0, r->now, r->now, IDLE, &created);
        check(s != NULL && created);
        check(kx_session_table_find(r->t, k, r->now, IDLE) == s);
    }

    check(kx_session_table_verify(r->t) == KX_OK);
    check(r->t->used == r->t->slots);

    /* all of the store is there to be used */

    if (kx_store_view(r->t, &v) == KX_OK) {
        check(kx_store_keep(r->t, s, k) == KX_OK);
        check(kx_store_reserve(r->t, s, v.n - 1) == KX_OK);
        check(v.head->used == 1);

        kx_session_table_change(r->t, s);

        for (i = 1; i < v.n; i++) {
            check(kx_store_add(r->t, s, KX_ITEM_EVENT, i, NULL, 0) == KX_OK);
        }

        kx_session_table_changed(r->t, s);
        check(kx_session_table_verify(r->t) == KX_OK);
    }
}


int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t len)
{
    run_t     r;
    unsigned  n;

    memset(&r, 0, sizeof(r));

    r.pos = data;
    r.end = data + len;
    r.now = 0xffffff00;

    n = byte(&r) % MAX_SLOTS + 1;
    r.size = 192 + n * sizeof(kx_session_t) + byte(&r);

    n = byte(&r) % MAX_BLOCKS;
    r.size += n * KX_STORE_BLOCK;
    r.share = (unsigned) (n * KX_STORE_BLOCK * 64 / r.size);

    if (r.share > KX_SESSION_MAX_SHARE) {
        r.share = KX_SESSION_MAX_SHARE;
    }

    if (posix_memalign((void **) &r.mem, 64, r.size) != 0) {
        return 0;
    }

    memset(r.mem, 0, r.size);

    r.t = kx_session_table_create(r.mem, r.size, r.share);
    check(r.t != NULL);
    check(r.t->slots <= MAX_SLOTS + MAX_BLOCKS);

    for (n = 0; r.pos < r.end && n < MAX_STEPS; n++) {
        step(&r);
    }

    settle(&r);

    free(r.mem);

    return 0;
}
