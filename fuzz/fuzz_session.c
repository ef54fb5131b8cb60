/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The input is a program: operations on a table of sessions, workers that die
 * in a change, and damage to the memory in between.  Without damage the table
 * is consistent after each operation; with it, it is of use nevertheless.
 */


#include <stdlib.h>

#include "session_table.h"


#define MAX_STEPS  2000
#define MAX_SLOTS  40
#define IDLE       1000

#define check(expr)                                                           \
    do {                                                                      \
        if (!(expr)) {                                                        \
            abort();                                                          \
        }                                                                     \
    } while (0)


typedef struct {
    const unsigned char  *pos;
    const unsigned char  *end;

    unsigned char        *mem;
    size_t                size;
    kx_session_table_t   *t;

    uint64_t              now;
    unsigned              damaged;
    unsigned              died;
} run_t;


int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len);


static const unsigned char  secret[32] = "a secret of thirty-two bytes....";


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

    rc = kx_session_table_check(r->t);

    if (rc == KX_ERROR) {
        check(r->damaged);

        /* nobody who goes on in spite of it comes to grief */

        if (byte(r) & 1) {
            return;
        }

        r->t = kx_session_table_create(r->mem, r->size, secret);
        check(r->t != NULL);
        r->damaged = 0;

    } else if (!r->damaged) {
        check(rc == (r->died ? KX_DONE : KX_OK));
    }

    r->died = 0;
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

        if (s) {
            change(r, s);
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

            change(r, s);
        }
    }

    if (!r->damaged && !r->died) {
        check(kx_session_table_verify(r->t) == KX_OK);
    }
}


static void
settle(run_t *r)
{
    int            rc;
    uint32_t       i;
    unsigned       created;
    kx_session_t  *s;
    unsigned char  k[KX_ID_LEN];

    /* whatever it was, a repair leaves it whole */

    r->t->dirty = 1;
    rc = kx_session_table_check(r->t);

    if (rc == KX_ERROR) {
        check(r->damaged);
        check(kx_session_table_attach(r->mem, r->size) == NULL);

        r->t = kx_session_table_create(r->mem, r->size, secret);
        check(r->t != NULL);

    } else {
        check(rc == KX_DONE);
    }

    check(kx_session_table_verify(r->t) == KX_OK);

    memset(k, 0xee, KX_ID_LEN);

    for (i = 0; i < r->t->slots + 2; i++) {
        memcpy(k, &i, sizeof(i));

        s = kx_session_table_open(r->t, k, 0, r->now, r->now, IDLE, &created);
        check(s != NULL && created);
        check(kx_session_table_find(r->t, k, r->now, IDLE) == s);
    }

    check(kx_session_table_verify(r->t) == KX_OK);
    check(r->t->used == r->t->slots);
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

    if (posix_memalign((void **) &r.mem, 64, r.size) != 0) {
        return 0;
    }

    memset(r.mem, 0, r.size);

    r.t = kx_session_table_create(r.mem, r.size, secret);
    check(r.t != NULL);

    for (n = 0; r.pos < r.end && n < MAX_STEPS; n++) {
        step(&r);
    }

    settle(&r);

    free(r.mem);

    return 0;
}
