/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What nodes know of a session by a store: its bytes, and what becomes of two
 * records.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "record.h"


#define NOW  1790000000000ULL

static const unsigned char  key[KX_ID_LEN + 1] = "a key of a store";
static const unsigned char  other[KX_ID_LEN + 1] = "another such key";
static const unsigned char  secret[KX_SIP_KEY_LEN + 1] = "the nodes' words";
static const unsigned char  wrong[KX_SIP_KEY_LEN + 1] = "of somebody else";


static void
turn(kx_record_turn_t *t, unsigned char message, uint64_t clock,
    unsigned state, unsigned char bid)
{
    memset(t, 0, sizeof(kx_record_turn_t));
    memset(t->message, message, KX_ID_LEN);

    t->clock = NOW + clock;
    t->ad_clock = NOW + clock;
    t->index = message;
    t->state = (uint8_t) state;

    if (state == KX_TURN_FILLED) {
        t->nbids = 1;
        memset(t->bids[0].id, bid, KX_ID_LEN);
        t->bids[0].revenue = 0.5;
        t->bids[0].code = 7;
    }

    if (state == KX_TURN_NO_FILL) {
        strcpy(t->code, "unfilled_bid");
    }
}


static void
largest(kx_record_t *r)
{
    unsigned  i, j;

    memset(r, 0, sizeof(kx_record_t));

    r->user = 0x0102030405060708ULL;
    r->created = 1790000000;
    r->preload_timeout = 5000;
    r->flags = KX_RECORD_FLAGS;
    memset(r->server_id, 0xab, KX_ID_LEN);
    r->server_clock = NOW;
    r->nturns = KX_RECORD_TURNS;

    for (i = 0; i < KX_RECORD_TURNS; i++) {
        turn(&r->turns[i], (unsigned char) (9 - i), 9 - i, KX_TURN_FILLED, 0);
        memset(r->turns[i].code, 'c', KX_SESSION_CODE_LEN - 1);
        r->turns[i].nbids = KX_MAX_BIDS;

        for (j = 0; j < KX_MAX_BIDS; j++) {
            memset(r->turns[i].bids[j].id, (int) (16 * i + j), KX_ID_LEN);
            r->turns[i].bids[j].revenue = j ? (float) 0.25 : -1;
            r->turns[i].bids[j].code = j + 1;
        }
    }
}


static void
comes_back_as_it_was(void **state)
{
    size_t          len;
    kx_record_t     r, s;
    unsigned char   p[KX_RECORD_MAX];

    largest(&r);
    memset(&s, 0xee, sizeof(s));

    len = kx_record_encode(p, &r, key, secret) - p;

    assert_true(len <= KX_RECORD_MAX);
    assert_true(len > 650);
    assert_int_equal(kx_record_decode(&s, p, len, key, secret, NOW), KX_OK);
    assert_memory_equal(&r, &s, sizeof(r));

    /* the smallest one */

    memset(&r, 0, sizeof(r));
    len = kx_record_encode(p, &r, key, secret) - p;
    assert_int_equal(len, 30);
    assert_int_equal(kx_record_decode(&s, p, len, key, secret, NOW), KX_OK);
    assert_memory_equal(&r, &s, sizeof(r));

    /* what most conversations have */

    r.flags = KX_RECORD_INIT | KX_RECORD_SERVER_ID;
    r.nturns = 1;
    turn(&r.turns[0], 3, 0, KX_TURN_FILLED, 4);
    len = kx_record_encode(p, &r, key, secret) - p;
    assert_int_equal(len, 115);
}


static void
its_bytes_are_those_of_version_1(void **state)
{
    size_t         len;
    kx_record_t    r;
    unsigned char  p[KX_RECORD_MAX];

    static const unsigned char  expected[] =
        "kxr\1\x21"
        "\x08\7\6\5\4\3\2\1" "\x80\x3d\xb1\x6a" "\x88\x13\0\0"
        "\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab"
        "\0\x8c\x50\xc4\xa0\1\0\0"
        "\1"
        "\3\3\3\3\3\3\3\3\3\3\3\3\3\3\3\3"
        "\1\x8c\x50\xc4\xa0\1\0\0" "\1\x8c\x50\xc4\xa0\1\0\0" "\3\0" "\2"
        "\0" "\1"
        "\4\4\4\4\4\4\4\4\4\4\4\4\4\4\4\4" "\0\0\0\x3f" "\7\0\0\0";

    memset(&r, 0, sizeof(r));

    r.user = 0x0102030405060708ULL;
    r.created = 1790000512;
    r.preload_timeout = 5000;
    r.flags = KX_RECORD_INIT | KX_RECORD_SERVER_ID;
    memset(r.server_id, 0xab, KX_ID_LEN);
    r.server_clock = 1790000008192ULL;
    r.nturns = 1;
    turn(&r.turns[0], 3, 8193, KX_TURN_FILLED, 4);

    len = kx_record_encode(p, &r, key, secret) - p;

    assert_int_equal(len, sizeof(expected) - 1 + 8);
    assert_memory_equal(p, expected, sizeof(expected) - 1);
}


/* each bit counts, and each byte is needed */

static void
what_is_damaged_is_a_miss(void **state)
{
    size_t          i, len;
    unsigned        bit;
    kx_record_t     r, s;
    unsigned char   p[KX_RECORD_MAX + 1];

    largest(&r);
    len = kx_record_encode(p, &r, key, secret) - p;

    for (i = 0; i < len; i++) {
        for (bit = 1; bit < 256; bit <<= 1) {
            p[i] ^= (unsigned char) bit;
            assert_int_equal(kx_record_decode(&s, p, len, key, secret, NOW),
                             KX_DECLINED);
            p[i] ^= (unsigned char) bit;
        }

        assert_int_equal(kx_record_decode(&s, p, i, key, secret, NOW),
                         KX_DECLINED);
    }

    p[len] = 0;
    assert_int_equal(kx_record_decode(&s, p, len + 1, key, secret, NOW),
                     KX_DECLINED);
    assert_int_equal(kx_record_decode(&s, p, len, other, secret, NOW),
                     KX_DECLINED);
    assert_int_equal(kx_record_decode(&s, p, len, key, wrong, NOW),
                     KX_DECLINED);
    assert_int_equal(kx_record_decode(&s, p, len, key, secret, NOW), KX_OK);
}


/* sealed well, by a node that is not right in its mind */

static int
decoded(const kx_record_t *r)
{
    size_t          len;
    kx_record_t     s;
    unsigned char   p[KX_RECORD_MAX * 2];

    len = kx_record_encode(p, r, key, secret) - p;

    return kx_record_decode(&s, p, len, key, secret, NOW);
}


static void
what_makes_no_sense_is_a_miss(void **state)
{
    kx_record_t  r;

    largest(&r);
    assert_int_equal(decoded(&r), KX_OK);

    r.flags |= 0x40;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.server_clock = NOW + KX_SESSION_AHEAD + 1;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.preload_timeout = KX_MAX_PRELOAD_TIMEOUT + 1;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[0].clock = NOW + KX_SESSION_AHEAD + 1;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[1].ad_clock = r.turns[1].clock + 1;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[2].state = KX_TURN_PENDING;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[2].state = KX_TURN_NO_FILL;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[2].state = 200;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[1].nbids = 0;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[1].code[3] = '"';
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[1].code[3] = '\n';
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[1].bids[1].code = 0;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[1].bids[1].revenue = (float) -0.5;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    r.turns[1].bids[1].revenue = (float) (1e30 * 1e30);
    assert_int_equal(decoded(&r), KX_DECLINED);

    /* out of order, and twice the same */

    largest(&r);
    r.turns[0].clock = r.turns[1].clock - 1;
    r.turns[0].ad_clock = 0;
    assert_int_equal(decoded(&r), KX_DECLINED);

    largest(&r);
    memcpy(r.turns[2].message, r.turns[0].message, KX_ID_LEN);
    assert_int_equal(decoded(&r), KX_DECLINED);
}


/* sealed by who may: a node could have written it, or it is none */

static unsigned
sealed(unsigned char *p, size_t len)
{
    unsigned        i;
    kx_sip_t        sip;
    uint64_t        seal;
    kx_record_t     s;
    unsigned char   again[KX_RECORD_MAX];

    kx_sip_init(&sip, secret, 0);
    kx_sip_field(&sip, key, KX_ID_LEN);
    kx_sip_field(&sip, p, len);
    seal = kx_sip_final64(&sip);

    for (i = 0; i < 8; i++) {
        p[len + i] = (unsigned char) (seal >> (8 * i));
    }

    if (kx_record_decode(&s, p, len + 8, key, secret, NOW) != KX_OK) {
        return 0;
    }

    assert_ptr_equal(kx_record_encode(again, &s, key, secret),
                     again + len + 8);
    assert_memory_equal(again, p, len + 8);

    return 1;
}


static void
what_is_sealed_and_has_no_shape_is_a_miss(void **state)
{
    size_t         i, len;
    unsigned       n, read;
    kx_record_t    r;
    unsigned char  good[KX_RECORD_MAX], p[KX_RECORD_MAX + 8];

    largest(&r);
    len = kx_record_encode(good, &r, key, secret) - good - 8;
    read = 0;

    for (i = 0; i < len; i++) {

        memcpy(p, good, i);
        assert_false(sealed(p, i));

        for (n = 0; n < 256; n++) {
            memcpy(p, good, len);
            p[i] = (unsigned char) n;
            read += sealed(p, len);
        }
    }

    assert_true(read > len && read < 256 * len);
}


static void
what_only_one_of_two_knows_of_a_turn(void **state)
{
    kx_record_t  a, b, ab, ba;

    /* the same turn: the place of a message that only one could tell, and
       the ads of two preloads of the same time */

    memset(&a, 0, sizeof(a));
    a.user = 7;
    a.nturns = 1;
    turn(&a.turns[0], 1, 5, KX_TURN_FILLED, 9);
    b = a;
    a.turns[0].index = 0;
    b.turns[0].index = 4;
    b.turns[0].nbids = 2;
    memset(b.turns[0].bids[1].id, 3, KX_ID_LEN);
    b.turns[0].bids[1].code = 8;

    ab = a;
    kx_record_merge(&ab, &b);
    ba = b;
    kx_record_merge(&ba, &a);

    assert_memory_equal(&ab, &ba, sizeof(a));
    assert_int_equal(ab.turns[0].index, 4);
    assert_int_equal(ab.turns[0].nbids, 2);

    /* two turns of the same time and place have an order, too */

    turn(&b.turns[0], 2, 5, KX_TURN_FILLED, 8);
    b.turns[0].index = 0;

    ab = a;
    kx_record_merge(&ab, &b);
    ba = b;
    kx_record_merge(&ba, &a);

    assert_memory_equal(&ab, &ba, sizeof(a));
    assert_int_equal(ab.nturns, 2);
    assert_int_equal(ab.turns[0].message[0], 2);

    b.turns[0].index = 3;
    a.turns[0].index = 4;

    ab = a;
    kx_record_merge(&ab, &b);
    assert_int_equal(ab.turns[0].message[0], 1);
}


static void
a_session_without_a_turn_has_none_to_tell(void **state)
{
    kx_record_t   r;
    kx_session_t  a, b;

    memset(&a, 0, sizeof(a));
    memset(&b, 0, sizeof(b));
    a.disabled = 1;
    a.init = KX_INIT_DONE;

    kx_record_take(&r, &a, 5);
    assert_int_equal(r.nturns, 0);
    assert_int_equal(kx_record_clock(&r), 0);

    kx_record_give(&b, &r);
    assert_true(b.disabled);
    assert_int_equal(b.init, KX_INIT_DONE);
    assert_int_equal(b.seq, 0);
}


/*
 * All records of one user with up to two turns: three messages, at two times,
 * in each state and with one of two ads, known or not by /init and by a
 * server's id.
 */

#define MAX_RECORDS  1600

static kx_record_t  records[MAX_RECORDS];
static unsigned     nrecords;


static void
record(const kx_record_turn_t *t, unsigned n, unsigned what)
{
    kx_record_t  *r, one;

    assert_true(nrecords < MAX_RECORDS);

    r = &records[nrecords++];
    memset(r, 0, sizeof(kx_record_t));

    r->user = 1;
    r->created = 100 + what;

    if (what & 1) {
        r->flags |= KX_RECORD_INIT;
        r->preload_timeout = 1000 + what;
    }

    if (what & 2) {
        r->flags |= KX_RECORD_SERVER_ID;
        memset(r->server_id, (int) (what * 7), KX_ID_LEN);
        r->server_clock = NOW + (what & 1);
    }

    if (what & 4) {
        r->flags |= KX_RECORD_DISABLED;
    }

    if (n) {
        r->nturns = 1;
        r->turns[0] = t[0];
    }

    if (n == 2) {

        /* as it would have come about */

        memset(&one, 0, sizeof(one));
        one.user = 1;
        one.nturns = 1;
        one.turns[0] = t[1];

        kx_record_merge(r, &one);
    }
}


static void
all_records(void)
{
    unsigned          i, j, n;
    kx_record_turn_t  turns[48], two[2];

    n = 0;

    for (i = 0; i < 3; i++) {
        for (j = 0; j < 2; j++) {
            turn(&turns[n++], (unsigned char) i, j, KX_TURN_NONE, 0);
            turn(&turns[n++], (unsigned char) i, j, KX_TURN_NO_FILL, 0);
            turn(&turns[n++], (unsigned char) i, j, KX_TURN_FILLED, 1);
            turn(&turns[n++], (unsigned char) i, j, KX_TURN_FILLED, 2);
        }
    }

    nrecords = 0;

    for (i = 0; i < 8; i++) {
        record(NULL, 0, i);
    }

    for (i = 0; i < n; i++) {
        record(&turns[i], 1, i % 8);

        for (j = 0; j < n; j++) {
            two[0] = turns[i];
            two[1] = turns[j];
            record(two, 2, (i + j) % 8);
        }
    }
}


static void
merged(kx_record_t *r, const kx_record_t *a, const kx_record_t *b)
{
    *r = *a;
    kx_record_merge(r, b);
}


static unsigned
same(const kx_record_t *a, const kx_record_t *b)
{
    return memcmp(a, b, sizeof(kx_record_t)) == 0;
}


static void
merging_does_not_care_for_order(void **state)
{
    unsigned     i, j, k;
    kx_record_t  ab, ba, abc, bc, a_bc;

    all_records();

    for (i = 0; i < nrecords; i++) {

        merged(&ab, &records[i], &records[i]);
        assert_true(same(&ab, &records[i]));

        for (j = 0; j < nrecords; j++) {
            merged(&ab, &records[i], &records[j]);
            merged(&ba, &records[j], &records[i]);
            assert_true(same(&ab, &ba));

            merged(&ba, &ab, &records[i]);
            assert_true(same(&ab, &ba));

            /* every third one of a prime number is each in the end */

            for (k = (i + j) % 97; k < nrecords; k += 97) {
                merged(&abc, &ab, &records[k]);
                merged(&bc, &records[j], &records[k]);
                merged(&a_bc, &records[i], &bc);
                assert_true(same(&abc, &a_bc));
            }
        }
    }
}


static void
the_newest_turn_wins_and_a_message_has_one_ad(void **state)
{
    unsigned                 i, j, k, n;
    kx_record_t              r, *a, *b;
    const kx_record_turn_t  *t, *own;

    all_records();

    for (i = 0; i < nrecords; i++) {
        for (j = 0; j < nrecords; j++) {
            a = &records[i];
            b = &records[j];

            merged(&r, a, b);

            assert_true(r.nturns >= a->nturns && r.nturns >= b->nturns);

            if (a->nturns) {
                assert_true(r.turns[0].clock >= a->turns[0].clock);
            }

            if (b->nturns) {
                assert_true(r.turns[0].clock >= b->turns[0].clock);
            }

            for (k = 0; k < r.nturns; k++) {
                t = &r.turns[k];

                /* newest first, and each once */

                for (n = 0; n < k; n++) {
                    assert_true(r.turns[n].clock >= t->clock);
                    assert_memory_not_equal(r.turns[n].message, t->message,
                                            KX_ID_LEN);
                }

                /* its ad is one that it had, and there is one if it had */

                for (n = 0; n < a->nturns + b->nturns; n++) {
                    own = (n < a->nturns) ? &a->turns[n]
                                          : &b->turns[n - a->nturns];

                    if (memcmp(own->message, t->message, KX_ID_LEN) == 0
                        && own->state == KX_TURN_FILLED)
                    {
                        assert_int_equal(t->state, KX_TURN_FILLED);
                        assert_int_equal(t->nbids, 1);
                        assert_true(t->ad_clock <= own->ad_clock);
                    }
                }
            }

            /* what is known once is known */

            assert_int_equal(r.flags, a->flags | b->flags);
        }
    }
}


static void
another_user_takes_the_conversation(void **state)
{
    kx_record_t  a, b, ab, ba;

    memset(&a, 0, sizeof(a));
    memset(&b, 0, sizeof(b));

    a.user = 1;
    a.flags = KX_RECORD_DISABLED;
    a.nturns = 1;
    turn(&a.turns[0], 1, 5, KX_TURN_FILLED, 1);

    b.user = 2;
    b.nturns = 1;
    turn(&b.turns[0], 2, 6, KX_TURN_NONE, 0);

    merged(&ab, &a, &b);
    merged(&ba, &b, &a);
    assert_true(same(&ab, &b));
    assert_true(same(&ba, &b));

    b.turns[0].clock = a.turns[0].clock;
    merged(&ab, &a, &b);
    merged(&ba, &b, &a);
    assert_true(same(&ab, &ba));
}


static void
old_turns_are_forgotten(void **state)
{
    unsigned     i;
    kx_record_t  r, one;

    memset(&r, 0, sizeof(r));
    r.user = 1;

    for (i = 0; i < 9; i++) {
        memset(&one, 0, sizeof(one));
        one.user = 1;
        one.nturns = 1;
        turn(&one.turns[0], (unsigned char) i, i * 1000, KX_TURN_FILLED, 1);
        kx_record_merge(&r, &one);
    }

    assert_int_equal(r.nturns, KX_RECORD_TURNS);
    assert_int_equal(r.turns[0].message[0], 8);
    assert_int_equal(r.turns[3].message[0], 5);

    /* an older one has no place any more */

    turn(&one.turns[0], 4, 4000, KX_TURN_FILLED, 1);
    kx_record_merge(&r, &one);
    assert_int_equal(r.turns[3].message[0], 5);

    turn(&one.turns[0], 9, 6000 + KX_RECORD_SPAN, KX_TURN_FILLED, 1);
    kx_record_merge(&r, &one);
    assert_int_equal(r.nturns, 4);

    turn(&one.turns[0], 10, 9000 + KX_RECORD_SPAN, KX_TURN_FILLED, 1);
    kx_record_merge(&r, &one);
    assert_int_equal(r.nturns, 2);
    assert_int_equal(r.turns[0].message[0], 10);
    assert_int_equal(r.turns[1].message[0], 9);
}


/* one node's session to another node's */

static void
message(unsigned char *m, unsigned char c)
{
    memset(m, c, KX_ID_LEN);
}


static void
fill(kx_session_t *s, unsigned char bid)
{
    kx_str_t             placement = kx_string("inlineAd");
    kx_preload_answer_t  a;

    memset(&a, 0, sizeof(a));
    a.outcome = KX_AD_FILLED;
    a.has_session = 1;
    memset(a.session, 0x5e, KX_ID_LEN);
    a.nbids = 1;
    memset(a.bids[0].id, bid, KX_ID_LEN);
    a.bids[0].revenue = 0.25;

    assert_int_equal(kx_session_answer(s, s->seq, &a, &placement), KX_OK);
}


static void
a_session_moves_to_another_node(void **state)
{
    kx_record_t       r;
    kx_session_t      a, b;
    unsigned char     m[KX_ID_LEN];
    kx_init_answer_t  init;

    memset(&a, 0, sizeof(a));
    memset(&b, 0, sizeof(b));
    memset(&init, 0, sizeof(init));

    message(m, 1);

    assert_int_equal(kx_session_turn(&a, m, 0, 1000, NOW, 100), KX_TURN_ASK);
    assert_int_equal(kx_session_init_claim(&a, 1000, 100), KX_OK);

    /* nothing that is under way is said to be there */

    kx_record_take(&r, &a, 5);
    assert_int_equal(r.flags, 0);
    assert_int_equal(r.turns[0].state, KX_TURN_NONE);

    init.applied = 1;
    init.enabled = 1;
    init.report_debug = 1;
    init.preload_timeout = 3000;
    kx_session_init_answer(&a, a.init_seq, &init);
    fill(&a, 9);

    kx_record_take(&r, &a, 5);
    kx_record_give(&b, &r);

    /* no second /init, the same id, and the same ad for the same turn */

    assert_int_equal(kx_session_init_claim(&b, 70, 100), KX_DECLINED);
    assert_int_equal(b.preload_timeout, 3000);
    assert_int_equal(b.no_errors, 1);
    assert_int_equal(b.debug, 1);
    assert_true(b.has_server_id);
    assert_int_equal(b.server_id[0], 0x5e);
    assert_int_equal(kx_session_turn(&b, m, 0, 70, NOW, 100),
                     KX_TURN_REUSE);
    assert_int_equal(b.nbids, 1);
    assert_int_equal(b.bids[0].id[0], 9);

    /* the next one is newer, although the clock is behind */

    message(m, 2);
    assert_int_equal(kx_session_turn(&b, m, 0, 80, NOW - 5000, 100),
                     KX_TURN_ASK);
    assert_true(b.turn_wall > a.turn_wall);

    b.disabled = 1;
    kx_record_take(&r, &b, 5);
    kx_record_give(&a, &r);
    assert_int_equal(kx_session_turn(&a, m, 0, 2000, NOW, 100),
                     KX_TURN_DISABLED);
}


static void
a_newer_turn_supersedes_and_the_same_one_is_answered(void **state)
{
    uint32_t       seq;
    kx_record_t    r;
    kx_session_t   a, b;
    unsigned char  m[KX_ID_LEN];

    memset(&a, 0, sizeof(a));
    memset(&b, 0, sizeof(b));

    /* both are asked for the same message, one has its ad */

    message(m, 1);
    (void) kx_session_turn(&a, m, 0, 1000, NOW, 100);
    (void) kx_session_turn(&b, m, 0, 1000, NOW + 3, 100);
    fill(&a, 9);

    seq = b.seq;
    kx_record_take(&r, &a, 5);
    kx_record_give(&b, &r);

    assert_int_equal(b.turn, KX_TURN_FILLED);
    assert_int_equal(b.bids[0].id[0], 9);
    assert_int_equal(b.seq, seq);

    /* a session that is waiting is not told to stop by one that knows less */

    memset(&b, 0, sizeof(b));
    (void) kx_session_turn(&b, m, 0, 1000, NOW + 3, 100);
    r.turns[0].state = KX_TURN_NONE;
    r.turns[0].nbids = 0;
    kx_record_give(&b, &r);
    assert_int_equal(b.turn, KX_TURN_PENDING);

    /* the user has gone on elsewhere */

    seq = b.seq;
    message(r.turns[0].message, 2);
    kx_record_give(&b, &r);
    assert_int_equal(b.turn, KX_TURN_NONE);
    assert_int_not_equal(b.seq, seq);
    assert_memory_equal(b.user_message, r.turns[0].message, KX_ID_LEN);
}


static void
a_record_is_due_when_somebody_may_know_more(void **state)
{
    kx_session_t   s;
    unsigned char  one[KX_ID_LEN], two[KX_ID_LEN];

    message(one, 1);
    message(two, 2);

    assert_true(kx_record_due(NULL, one, 1000));

    memset(&s, 0, sizeof(s));
    (void) kx_session_turn(&s, one, 0, 1000, NOW, 100);

    /* the same turn: awaited here, given up, answered; and another one */

    assert_false(kx_record_due(&s, one, 1050));
    assert_true(kx_record_due(&s, one, 1200));
    fill(&s, 9);
    assert_false(kx_record_due(&s, one, 1200));
    assert_true(kx_record_due(&s, two, 1200));

    s.disabled = 1;
    assert_false(kx_record_due(&s, two, 1200));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(comes_back_as_it_was),
        cmocka_unit_test(its_bytes_are_those_of_version_1),
        cmocka_unit_test(what_is_damaged_is_a_miss),
        cmocka_unit_test(what_makes_no_sense_is_a_miss),
        cmocka_unit_test(what_is_sealed_and_has_no_shape_is_a_miss),
        cmocka_unit_test(what_only_one_of_two_knows_of_a_turn),
        cmocka_unit_test(a_session_without_a_turn_has_none_to_tell),
        cmocka_unit_test(merging_does_not_care_for_order),
        cmocka_unit_test(the_newest_turn_wins_and_a_message_has_one_ad),
        cmocka_unit_test(another_user_takes_the_conversation),
        cmocka_unit_test(old_turns_are_forgotten),
        cmocka_unit_test(a_session_moves_to_another_node),
        cmocka_unit_test(a_newer_turn_supersedes_and_the_same_one_is_answered),
        cmocka_unit_test(a_record_is_due_when_somebody_may_know_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
