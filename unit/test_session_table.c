/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The table of sessions: what it holds, whom it closes, and what becomes of
 * it when its memory is damaged.
 */


#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include "session_table.h"

#include <cmocka.h>


#define NOW    1000000ULL
#define WALL   1772475611045ULL
#define IDLE   60000
#define SLOTS  6


static unsigned char        *mem;
static size_t                size;
static kx_session_table_t   *t;


/* offset of the slots, as the layout has it */

static size_t
offset(uint32_t buckets)
{
    return (sizeof(kx_session_table_t) + 4 * (size_t) buckets + 63) / 64 * 64;
}


static kx_session_t *
slot(uint32_t i)
{
    return (kx_session_t *) (mem + offset(t->buckets)) + i;
}


static void
make(size_t n)
{
    free(mem);

    size = n;
    assert_int_equal(posix_memalign((void **) &mem, 64, size), 0);
    memset(mem, 0xa5, size);

    t = kx_session_table_create(mem, size, 0);
}


static void
make_slots(uint32_t n)
{
    uint32_t  buckets;

    for (buckets = 1; buckets * 2 < n; buckets *= 2) { /* void */ }

    make(offset(buckets) + n * sizeof(kx_session_t));

    assert_non_null(t);
    assert_int_equal(t->slots, n);
    assert_int_equal(t->buckets, buckets);
}


static int
setup(void **state)
{
    make_slots(SLOTS);
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

    /* the first bytes choose the bucket: let some of them collide */

    memset(k, 0xcc, KX_ID_LEN);
    k[0] = n % 5;
    k[1] = 0;
    k[2] = 0;
    k[3] = 0;
    memcpy(k + 4, &n, sizeof(n));

    return k;
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


/* whether a session lives, without moving it */

static unsigned
lives(unsigned n)
{
    uint32_t  i;

    for (i = 0; i < t->slots; i++) {
        if (slot(i)->live && memcmp(slot(i)->key, key(n), KX_ID_LEN) == 0) {
            return 1;
        }
    }

    return 0;
}


static void
verify(void)
{
    assert_int_equal(kx_session_table_verify(t), KX_OK);
}


static void
test_create_fits(void **state)
{
    size_t  n, last, need;

    last = 0;

    for (n = 1; n < 40000; n += (n < 2000) ? 1 : 61) {
        make(n);

        if (t == NULL) {
            assert_int_equal(last, 0);
            continue;
        }

        need = offset(t->buckets) + t->slots * sizeof(kx_session_t);

        assert_true(t->slots >= 1);
        assert_true(need <= n);
        assert_true(need + sizeof(kx_session_t) > n);
        assert_int_equal(t->buckets & (t->buckets - 1), 0);
        assert_true(t->buckets * 2 >= t->slots);
        assert_true(t->buckets <= t->slots);
        assert_int_equal(t->repaired, 0);
        assert_int_equal(kx_session_table_check(t, size, 0), KX_OK);
        verify();

        /* the last byte of the last slot is in the block */

        memset(slot(t->slots - 1), 0, sizeof(kx_session_t));
        last = t->slots;
    }

    assert_true(last > 100);
}


static void
test_attach(void **state)
{
    kx_session_t         *s;
    unsigned char        *copy;
    kx_session_table_t   *other;

    s = open_at(1, NOW);
    s->seq = 4711;

    assert_ptr_equal(kx_session_table_attach(mem, size, 0), t);
    assert_null(kx_session_table_attach(mem, size - 1, 0));
    assert_null(kx_session_table_attach(mem, 0, 0));

    /* another process has it elsewhere */

    copy = NULL;
    assert_int_equal(posix_memalign((void **) &copy, 64, size), 0);
    memcpy(copy, mem, size);

    other = kx_session_table_attach(copy, size, 0);
    assert_non_null(other);
    assert_int_equal(kx_session_table_check(other, size, 0), KX_OK);
    assert_int_equal(kx_session_table_verify(other), KX_OK);

    s = kx_session_table_find(other, key(1), NOW, IDLE);
    assert_non_null(s);
    assert_true((unsigned char *) s > copy
                && (unsigned char *) s < copy + size);
    assert_int_equal(s->seq, 4711);

    other->magic ^= 1;
    assert_null(kx_session_table_attach(copy, size, 0));
    other->magic ^= 1;

    other->seal ^= 1;
    assert_null(kx_session_table_attach(copy, size, 0));
    other->seal ^= 1;

    other->slots--;
    assert_null(kx_session_table_attach(copy, size, 0));
    other->slots++;

    other->buckets *= 2;
    assert_null(kx_session_table_attach(copy, size, 0));

    memset(copy, 0, size);
    assert_null(kx_session_table_attach(copy, size, 0));

    free(copy);
}


static void
test_open_makes_a_session(void **state)
{
    unsigned       created;
    kx_session_t  *s;

    static const unsigned char  zero[KX_ID_LEN];

    assert_null(find_at(1, NOW));

    s = kx_session_table_open(t, key(1), 99, NOW, WALL, IDLE, &created);
    assert_non_null(s);
    assert_int_equal(created, 1);
    assert_memory_equal(s->key, key(1), KX_ID_LEN);
    assert_int_equal(s->user, 99);
    assert_true(s->created == WALL / 1000);
    assert_true(s->root == KX_SESSION_NONE);
    assert_true(s->used == NOW);
    assert_int_equal(s->turn, KX_TURN_NONE);
    assert_int_equal(s->init, KX_INIT_DUE);
    assert_false(s->disabled);
    assert_false(s->has_server_id);
    assert_memory_equal(s->user_message, zero, KX_ID_LEN);
    assert_int_equal(t->used, 1);
    verify();

    assert_ptr_equal(kx_session_table_open(t, key(1), 99, NOW + 5, WALL + 5000,
                                           IDLE, &created), s);
    assert_int_equal(created, 0);
    assert_true(s->created == WALL / 1000);
    assert_true(s->used == NOW + 5);

    assert_ptr_equal(find_at(1, NOW + 6), s);
    assert_true(s->used == NOW + 6);
    assert_int_equal(t->used, 1);
    verify();
}


static void
test_other_user(void **state)
{
    unsigned       created;
    kx_session_t  *s;

    s = kx_session_table_open(t, key(1), 1, NOW, WALL, IDLE, &created);
    s->disabled = 1;
    s->has_server_id = 1;

    s = kx_session_table_open(t, key(1), 2, NOW, WALL + 1000, IDLE,
                              &created);
    assert_non_null(s);
    assert_int_equal(created, 1);
    assert_int_equal(s->user, 2);
    assert_true(s->created == WALL / 1000 + 1);
    assert_false(s->disabled);
    assert_false(s->has_server_id);
    assert_int_equal(t->used, 1);
    assert_int_equal(t->evicted, 0);
    assert_int_equal(t->expired, 0);
    verify();
}


static void
test_numbers_of_an_earlier_session(void **state)
{
    uint32_t              seq, init_seq;
    kx_session_t         *s;
    kx_preload_answer_t   a;

    static const unsigned char  message[KX_ID_LEN] = "a user's turn..";

    s = open_at(1, NOW);
    kx_session_turn(s, message, 0, NOW, WALL, 16000);
    kx_session_init_claim(s, NOW, 16000);
    seq = s->seq;
    init_seq = s->init_seq;

    kx_session_table_close(t, s);

    s = open_at(1, NOW);
    kx_session_turn(s, message, 0, NOW, WALL, 16000);
    kx_session_init_claim(s, NOW, 16000);

    /* what was asked for the closed one is answered now */

    memset(&a, 0, sizeof(a));
    a.outcome = KX_AD_NO_FILL;

    assert_int_equal(kx_session_answer(s, seq, &a, NULL), KX_DECLINED);
    assert_int_equal(s->turn, KX_TURN_PENDING);

    kx_session_init_cancel(s, init_seq);
    assert_int_equal(s->init, KX_INIT_SENT);
}


static void
test_close(void **state)
{
    uint32_t       next;
    unsigned       i;
    kx_session_t  *s;

    static const kx_session_t  zero;

    /* first, last and in the middle of the lists */

    static const unsigned  order[SLOTS] = { 2, 0, 5, 3, 1, 4 };

    for (i = 0; i < SLOTS; i++) {
        s = open_at(i, NOW + i);
        memset(s->server_id, 'x', KX_ID_LEN);
        memset(s->bids, 'y', sizeof(s->bids));
    }

    verify();

    for (i = 0; i < SLOTS; i++) {
        s = find_at(order[i], NOW + 10);
        assert_non_null(s);

        kx_session_table_close(t, s);
        verify();

        next = s->next;
        s->next = 0;
        assert_memory_equal(s, &zero, sizeof(kx_session_t));
        s->next = next;

        assert_null(find_at(order[i], NOW + 10));
        assert_int_equal(t->used, SLOTS - 1 - i);

        /* twice is once */

        kx_session_table_close(t, s);
        assert_int_equal(t->used, SLOTS - 1 - i);
        verify();
    }

    assert_int_equal(t->newest, KX_SESSION_NONE);
    assert_int_equal(t->oldest, KX_SESSION_NONE);
    assert_int_equal(t->repaired, 0);
}


static void
test_full_table_evicts(void **state)
{
    unsigned  i;

    for (i = 0; i < SLOTS; i++) {
        open_at(i, NOW + i);
    }

    /* 0 was used last, so 1 goes, then 2 */

    find_at(0, NOW + 10);

    assert_non_null(open_at(10, NOW + 11));
    assert_false(lives(1));
    assert_true(lives(0));
    assert_int_equal(t->evicted, 1);
    verify();

    assert_non_null(open_at(11, NOW + 12));
    assert_false(lives(2));
    assert_int_equal(t->evicted, 2);
    assert_int_equal(t->used, SLOTS);
    verify();

    /* an open of one that lives moves it as well, and evicts nobody */

    assert_non_null(open_at(3, NOW + 13));
    assert_int_equal(t->evicted, 2);

    open_at(12, NOW + 14);
    assert_true(lives(3));
    assert_false(lives(4));
    assert_int_equal(t->expired, 0);
    assert_int_equal(t->repaired, 0);
    verify();
}


static void
test_one_slot(void **state)
{
    unsigned  i;

    make_slots(1);

    for (i = 0; i < 10; i++) {
        assert_non_null(open_at(i, NOW + i));
        assert_int_equal(t->used, 1);
        verify();
    }

    assert_int_equal(t->evicted, 9);
    assert_non_null(find_at(9, NOW + 10));
    assert_null(find_at(8, NOW + 10));
}


static void
test_idle_session_is_closed(void **state)
{
    unsigned       created;
    kx_session_t  *s;

    open_at(1, NOW);
    assert_non_null(find_at(1, NOW + IDLE));

    assert_null(find_at(1, NOW + IDLE + IDLE + 1));
    assert_int_equal(t->used, 0);
    assert_int_equal(t->expired, 1);
    verify();

    s = open_at(1, NOW);
    s->disabled = 1;

    s = kx_session_table_open(t, key(1), 7, NOW + IDLE, WALL, IDLE, &created);
    assert_int_equal(created, 0);
    assert_true(s->disabled);

    s = kx_session_table_open(t, key(1), 7, NOW + 2 * IDLE + 1, WALL, IDLE,
                              &created);
    assert_int_equal(created, 1);
    assert_false(s->disabled);
    assert_int_equal(t->expired, 2);
    assert_int_equal(t->used, 1);

    /* the clock of another process is behind by a little */

    assert_ptr_equal(find_at(1, NOW + 2 * IDLE), s);
    assert_int_equal(t->expired, 2);
    verify();
}


static void
test_idle_sessions_make_room(void **state)
{
    unsigned  i;

    for (i = 0; i < SLOTS; i++) {
        open_at(i, NOW + i);
    }

    /* 0 to 3 are idle: two of them go for each one that comes */

    assert_non_null(open_at(10, NOW + IDLE + 4));
    assert_false(lives(0));
    assert_false(lives(1));
    assert_true(lives(2));
    assert_int_equal(t->used, SLOTS - 1);
    assert_int_equal(t->expired, 2);
    assert_int_equal(t->evicted, 0);
    verify();

    open_at(11, NOW + IDLE + 4);
    assert_false(lives(2));
    assert_false(lives(3));
    assert_true(lives(4));
    assert_int_equal(t->expired, 4);

    /* nobody is idle any more */

    open_at(12, NOW + IDLE + 4);
    open_at(13, NOW + IDLE + 4);
    assert_int_equal(t->expired, 4);
    assert_int_equal(t->evicted, 0);
    assert_int_equal(t->used, SLOTS);

    open_at(14, NOW + IDLE + 4);
    assert_false(lives(4));
    assert_int_equal(t->evicted, 1);
    verify();
}


static void
test_change_is_marked(void **state)
{
    kx_session_t  *s;

    open_at(1, NOW);
    s = open_at(2, NOW);

    assert_int_equal(t->dirty, 0);

    kx_session_table_change(t, s);
    assert_int_equal(t->dirty, 1);
    assert_int_equal(s->busy, 1);
    assert_int_equal(kx_session_table_verify(t), KX_ERROR);

    kx_session_table_changed(t, s);
    assert_int_equal(t->dirty, 0);
    assert_int_equal(s->busy, 0);
    verify();

    assert_int_equal(kx_session_table_check(t, size, 0), KX_OK);
    assert_int_equal(t->repaired, 0);
    assert_non_null(find_at(2, NOW));
}


static void
test_check_drops_what_was_being_changed(void **state)
{
    unsigned  i;

    /* what is left, in the order of its use */

    static const unsigned  order[SLOTS - 1] = { 0, 2, 4, 5, 1 };

    for (i = 0; i < SLOTS; i++) {
        open_at(i, NOW + i)->preload_timeout = i;
    }

    find_at(1, NOW + 10);
    kx_session_table_change(t, find_at(3, NOW + 11));

    assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
    assert_int_equal(t->repaired, 1);
    verify();

    assert_null(find_at(3, NOW + 12));
    assert_int_equal(t->used, SLOTS - 1);
    assert_int_equal(t->evicted, 0);

    open_at(20, NOW + 12);

    for (i = 0; i < SLOTS - 1; i++) {
        assert_true(lives(order[i]));
        open_at(21 + i, NOW + 12);
        assert_false(lives(order[i]));
        verify();
    }

    assert_int_equal(kx_session_table_check(t, size, 0), KX_OK);
}


static void
header_is(const kx_session_table_t *good)
{
    assert_true(t->magic == good->magic);
    assert_true(t->seal == good->seal);
    assert_true(t->size == good->size);
    assert_int_equal(t->slots, good->slots);
    assert_int_equal(t->buckets, good->buckets);
}


/* the header of a larger table, or a part of it, that someone wrote there */

static void
test_another_size_is_not_believed(void **state)
{
    void                *large;
    unsigned             i;
    kx_session_table_t   mine, *other;

    (void) state;

    large = NULL;

    for (i = 0; i < 4; i++) {
        make_slots(SLOTS);
        open_at(1, NOW);

        mine = *t;

        assert_int_equal(posix_memalign(&large, 64, size * 64), 0);
        other = kx_session_table_create(large, size * 64, 0);
        assert_non_null(other);

        t->size = other->size;
        t->slots = other->slots;
        t->buckets = other->buckets;

        if (i & 1) {
            t->magic = other->magic;
        }

        if (i & 2) {
            t->seal = other->seal;
        }

        free(large);

        if (i == 3) {
            assert_int_equal(kx_session_table_check(t, size, 0), KX_ERROR);
            assert_int_equal(t->slots, 0);
            assert_null(find_at(1, NOW));
            continue;
        }

        assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
        header_is(&mine);
        assert_non_null(find_at(1, NOW));
        verify();
    }
}


static void
test_check_keeps_the_rest(void **state)
{
    unsigned       i;
    kx_session_t   copy[SLOTS], *s;

    for (i = 0; i < SLOTS - 1; i++) {
        s = open_at(i, NOW + i);
        memset(s->server_id, 'a' + i, KX_ID_LEN);
        memset(s->bids, 'A' + i, sizeof(s->bids));
        s->disabled = i & 1;
        copy[i] = *s;
    }

    t->dirty = 1;
    memset(t + 1, 0x5a, t->buckets * 4);

    assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
    verify();

    for (i = 0; i < SLOTS - 1; i++) {
        s = find_at(i, NOW + i);
        assert_non_null(s);

        assert_int_equal(s->user, copy[i].user);
        assert_int_equal(s->created, copy[i].created);
        assert_memory_equal((char *) s + offsetof(kx_session_t, live),
                            (char *) &copy[i] + offsetof(kx_session_t, live),
                            sizeof(kx_session_t)
                            - offsetof(kx_session_t, live));
    }
}


static void
test_check_drops_what_makes_no_sense(void **state)
{
    unsigned  i;

    make_slots(8);

    for (i = 0; i < 8; i++) {
        open_at(i, NOW);
    }

    find_at(0, NOW)->live = 2;
    find_at(1, NOW)->turn = KX_TURN_NO_FILL + 1;
    find_at(2, NOW)->init = KX_INIT_DONE + 1;
    find_at(3, NOW)->nbids = KX_MAX_BIDS + 1;
    find_at(4, NOW)->code[KX_SESSION_CODE_LEN - 1] = 'x';
    memset(find_at(5, NOW)->key, 0, KX_ID_LEN);
    find_at(6, NOW)->busy = 0xff;

    t->dirty = 1;
    assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
    verify();

    assert_int_equal(t->used, 1);
    assert_non_null(find_at(7, NOW));
}


static void
test_find_drops_what_makes_no_sense(void **state)
{
    unsigned       created;
    kx_session_t  *s;

    open_at(1, NOW)->turn = 77;
    open_at(2, NOW)->nbids = 77;
    open_at(3, NOW);

    assert_null(find_at(1, NOW));
    assert_false(lives(1));

    s = kx_session_table_open(t, key(2), 7, NOW, WALL, IDLE, &created);
    assert_int_equal(created, 1);
    assert_int_equal(s->nbids, 0);

    assert_non_null(find_at(3, NOW));
    assert_int_equal(t->used, 2);
    verify();
}


static void
test_words_of_the_size(void **state)
{
    unsigned             i, j;
    uint64_t             bit;
    kx_session_table_t   good;

    for (i = 0; i < SLOTS; i++) {
        open_at(i, NOW + i);
    }

    good = *t;

    for (i = 0; i < 64; i++) {
        bit = (uint64_t) 1 << i;

        for (j = 1; j < 32; j++) {

            /* magic or seal are enough to tell the others */

            if ((j & 1) && (j & 2)) {
                continue;
            }

            t->magic ^= (j & 1) ? bit : 0;
            t->seal ^= (j & 2) ? bit : 0;
            t->size ^= (j & 4) ? bit : 0;
            t->slots ^= (j & 8) ? 1U << i % 32 : 0;
            t->buckets ^= (j & 16) ? 1U << i % 32 : 0;

            assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
            header_is(&good);
            verify();

            assert_non_null(find_at(i % SLOTS, NOW + 10));
        }
    }

    assert_int_equal(t->used, SLOTS);

    /* without both nothing is known, and nothing is touched */

    t->magic ^= 0x10;
    t->seal ^= 0x20;

    assert_int_equal(kx_session_table_check(t, size, 0), KX_ERROR);
    assert_int_equal(kx_session_table_check(t, size, 0), KX_ERROR);
    assert_int_equal(kx_session_table_verify(t), KX_ERROR);
    assert_null(find_at(1, NOW));
    assert_null(open_at(1, NOW));
    assert_null(kx_session_table_attach(mem, size, 0));

    kx_session_table_close(t, slot(0));

    assert_ptr_equal(kx_session_table_create(mem, size, 0), t);
    assert_int_equal(kx_session_table_check(t, size, 0), KX_OK);
    verify();
    assert_non_null(open_at(1, NOW));
}


/* Whatever one word of the memory becomes, the table is of use. */

static void
test_each_word(void **state)
{
    int             rc;
    size_t          i, words;
    uint32_t       *word;
    unsigned        j, k, n, found, created;
    kx_session_t   *s;
    unsigned char  *copy;

    static const uint32_t  values[] = {
        0, 1, 2, SLOTS - 1, SLOTS, SLOTS + 1, 0x7fffffff, 0x80000000,
        0xfffffffe, 0xffffffff
    };

    for (n = 0; n <= SLOTS; n += 3) {
        make_slots(SLOTS);

        for (j = 0; j < n; j++) {
            open_at(j, NOW + j);
        }

        words = size / 4;
        copy = malloc(size);
        assert_non_null(copy);
        memcpy(copy, mem, size);

        for (i = 0; i < words; i++) {

            for (k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
                memcpy(mem, copy, size);

                word = (uint32_t *) mem + i;
                *word = values[k];

                rc = kx_session_table_check(t, size, 0);
                assert_true(rc == KX_OK || rc == KX_DONE);

                for (j = 0; j < n; j++) {
                    find_at(j, NOW + 10);
                }

                /* at most the session whose record it was is lost */

                t->dirty = 1;
                assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
                verify();

                found = 0;

                for (j = 0; j < n; j++) {
                    found += find_at(j, NOW + 10) != NULL;
                }

                assert_true(found + 1 >= n);

                /* damaged once more, and used at once */

                *word = values[k];

                for (j = 0; j < 2 * SLOTS; j++) {
                    kx_session_table_check(t, size, 0);

                    s = kx_session_table_open(t, key(20 + j), 7, NOW + 11,
                                              WALL, IDLE, &created);
                    assert_non_null(s);
                    assert_int_equal(created, 1);
                    assert_ptr_equal(find_at(20 + j, NOW + 11), s);

                    if (j % 3 == 0) {
                        kx_session_table_close(t, s);
                        assert_null(find_at(20 + j, NOW + 11));
                    }
                }

                t->dirty = 1;
                assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
                verify();
            }
        }

        free(copy);
    }
}


static void
test_chain_that_never_ends(void **state)
{
    unsigned       i;
    kx_session_t  *s;

    /* 0 and 5 share a bucket */

    s = open_at(0, NOW);
    open_at(5, NOW + 1);

    s->next = (uint32_t) (s - slot(0));

    assert_null(find_at(10, NOW + 2));
    assert_int_equal(t->repaired, 1);
    verify();
    assert_non_null(find_at(0, NOW + 2));
    assert_non_null(find_at(5, NOW + 2));

    /* and a list that never ends */

    for (i = 0; i < SLOTS; i++) {
        open_at(i, NOW + i);
    }

    slot(t->oldest)->older = t->newest;
    assert_int_equal(kx_session_table_verify(t), KX_ERROR);

    open_at(30, NOW + 20);
    assert_int_equal(t->repaired, 2);
    verify();
}


static void
test_close_of_a_damaged_one(void **state)
{
    unsigned       i;
    kx_session_t  *s;

    for (i = 0; i < SLOTS; i++) {
        open_at(i, NOW + i);
    }

    s = find_at(2, NOW + 10);
    s->older = SLOTS;
    kx_session_table_close(t, s);

    assert_false(lives(2));
    assert_int_equal(t->used, SLOTS - 1);
    assert_int_equal(t->repaired, 1);
    verify();

    /* its chain does not know it */

    s = find_at(3, NOW + 11);
    memset(t + 1, 0xff, t->buckets * 4);
    kx_session_table_close(t, s);

    assert_false(lives(3));
    assert_int_equal(t->used, SLOTS - 2);
    assert_int_equal(t->repaired, 2);
    verify();

    assert_non_null(find_at(0, NOW + 12));
    assert_non_null(find_at(1, NOW + 12));
    assert_non_null(find_at(4, NOW + 12));
    assert_non_null(find_at(5, NOW + 12));
}


static void
test_free_chain(void **state)
{
    unsigned  i;

    /* free slots that are lost are found again instead of an eviction */

    open_at(0, NOW);
    slot(t->free)->next = KX_SESSION_NONE;

    for (i = 1; i < SLOTS; i++) {
        kx_session_table_check(t, size, 0);
        assert_non_null(open_at(i, NOW + i));
    }

    assert_int_equal(t->used, SLOTS);
    assert_int_equal(t->evicted, 0);
    assert_int_equal(t->repaired, 1);
    verify();

    /* and one that lives is not handed out */

    setup(NULL);

    open_at(0, NOW);
    slot(t->free)->next = t->newest;

    for (i = 1; i < SLOTS; i++) {
        assert_non_null(open_at(i, NOW + i));
        assert_true(lives(0));
    }

    assert_int_equal(t->repaired, 1);
    verify();
}


static void
test_repair_sorts(void **state)
{
    uint32_t   i, n, x;
    uint64_t   used;

    static const uint32_t  sizes[] = { 1, 2, 3, 7, 8, 9, 64, 100, 1000, 1023 };

    x = 12345;

    for (n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
        make_slots(sizes[n]);

        for (i = 0; i < sizes[n]; i++) {
            open_at(i, NOW);
        }

        for (i = 0; i < sizes[n]; i++) {
            x = x * 1664525 + 1013904223;
            slot(i)->used = NOW + (x >> 8) % (2 * sizes[n]);
        }

        t->dirty = 1;
        assert_int_equal(kx_session_table_check(t, size, 0), KX_DONE);
        assert_int_equal(t->used, sizes[n]);
        verify();

        used = 0;

        for (i = t->oldest; i != KX_SESSION_NONE; i = slot(i)->newer) {
            assert_true(slot(i)->used >= used);
            used = slot(i)->used;
        }
    }
}


/* The same operations on the table and on a plain list. */

typedef struct {
    unsigned   key;
    uint64_t   user;
    uint64_t   used;
} entry_t;


static entry_t   list[17];           /* the newest first */
static unsigned  nlist;


static void
list_remove(unsigned i)
{
    nlist--;
    memmove(&list[i], &list[i + 1], (nlist - i) * sizeof(entry_t));
}


static void
list_insert(entry_t *e)
{
    memmove(&list[1], &list[0], nlist * sizeof(entry_t));
    list[0] = *e;
    nlist++;
}


static void
list_compare(void)
{
    uint32_t  k;
    unsigned  i;

    assert_int_equal(t->used, nlist);

    k = t->newest;

    for (i = 0; i < nlist; i++) {
        assert_memory_equal(slot(k)->key, key(list[i].key), KX_ID_LEN);
        assert_true(slot(k)->used == list[i].used);
        assert_true(slot(k)->user == list[i].user);
        k = slot(k)->older;
    }
}


static void
test_against_a_list(void **state)
{
    entry_t        e;
    unsigned       i, j, k, n, x, idle, created, other;
    uint64_t       evicted, expired;
    kx_session_t  *s;

    make_slots(17);

    x = 1;
    other = 0;
    evicted = 0;
    expired = 0;

    nlist = 0;
    e.used = NOW;

    for (i = 0; i < 100000; i++) {
        x = x * 1664525 + 1013904223;
        k = (x >> 8) % 40;

        e.key = k;
        e.user = (x >> 24) % 50 == 0;
        e.used += (x >> 13) % 97 == 0 ? IDLE / 2 : (x >> 16) % 7;

        for (j = 0; j < nlist && list[j].key != k; j++) { /* void */ }

        idle = j < nlist && e.used - list[j].used > IDLE;

        if ((x >> 16) % 3) {
            s = kx_session_table_open(t, key(k), e.user, e.used, WALL, IDLE,
                                      &created);
            assert_non_null(s);

            n = j < nlist && !idle && list[j].user == e.user;
            assert_int_equal(created, !n);

            if (j < nlist) {
                other += !n && !idle;
                expired += idle;
                list_remove(j);
            }

            for (j = 0; created && j < 2; j++) {
                if (nlist && e.used - list[nlist - 1].used > IDLE) {
                    expired++;
                    nlist--;
                }
            }

            if (nlist == 17) {
                evicted++;
                nlist--;
            }

            list_insert(&e);

        } else {
            s = find_at(k, e.used);
            assert_int_equal(s != NULL, j < nlist && !idle);

            if (j < nlist) {
                e.user = list[j].user;
                list_remove(j);

                if (idle) {
                    expired++;

                } else if ((x >> 28) == 0) {
                    kx_session_table_close(t, s);

                } else {
                    list_insert(&e);
                }
            }
        }

        verify();
        list_compare();

        assert_int_equal(t->evicted, evicted);
        assert_int_equal(t->expired, expired);
    }

    assert_int_equal(t->repaired, 0);
    assert_true(evicted > 100);
    assert_true(expired > 100);
    assert_true(other > 100);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup(test_create_fits, setup),
        cmocka_unit_test_setup(test_attach, setup),
        cmocka_unit_test_setup(test_open_makes_a_session, setup),
        cmocka_unit_test_setup(test_other_user, setup),
        cmocka_unit_test_setup(test_numbers_of_an_earlier_session, setup),
        cmocka_unit_test_setup(test_close, setup),
        cmocka_unit_test_setup(test_full_table_evicts, setup),
        cmocka_unit_test_setup(test_one_slot, setup),
        cmocka_unit_test_setup(test_idle_session_is_closed, setup),
        cmocka_unit_test_setup(test_idle_sessions_make_room, setup),
        cmocka_unit_test_setup(test_change_is_marked, setup),
        cmocka_unit_test_setup(test_check_drops_what_was_being_changed,
                               setup),
        cmocka_unit_test_setup(test_another_size_is_not_believed, setup),
        cmocka_unit_test_setup(test_check_keeps_the_rest, setup),
        cmocka_unit_test_setup(test_check_drops_what_makes_no_sense, setup),
        cmocka_unit_test_setup(test_find_drops_what_makes_no_sense, setup),
        cmocka_unit_test_setup(test_words_of_the_size, setup),
        cmocka_unit_test_setup(test_each_word, setup),
        cmocka_unit_test_setup(test_chain_that_never_ends, setup),
        cmocka_unit_test_setup(test_close_of_a_damaged_one, setup),
        cmocka_unit_test_setup(test_free_chain, setup),
        cmocka_unit_test_setup(test_repair_sorts, setup),
        cmocka_unit_test_setup(test_against_a_list, setup)
    };

    return cmocka_run_group_tests(tests, NULL, teardown);
}
