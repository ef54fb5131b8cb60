/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The rules of a session (protocol.md 2.3, 2.4, 3.3, 4.3, 5, 6).
 */


#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <math.h>

#include "session.h"

#include <cmocka.h>


#define NOW   1000000ULL
#define WALL  1772475611045ULL


static kx_session_t  s;

static const unsigned char  turn1[KX_ID_LEN] = "first user turn";
static const unsigned char  turn2[KX_ID_LEN] = "secnd user turn";
static const unsigned char  turn3[KX_ID_LEN] = "third user turn";
static const unsigned char  reply1[KX_ID_LEN] = "first assistant";
static const unsigned char  reply2[KX_ID_LEN] = "secnd assistant";

static const unsigned char  server1[KX_ID_LEN] = "sessionId one..";
static const unsigned char  server2[KX_ID_LEN] = "sessionId two..";

static const unsigned char  bid1[KX_ID_LEN] = "bid number one.";
static const unsigned char  bid2[KX_ID_LEN] = "bid number two.";

static const kx_str_t  placements[] = {
    kx_string("inlineAd"),
    kx_string("bottomAd"),
    kx_string("sidebar")
};


static int
setup(void **state)
{
    memset(&s, 0, sizeof(s));
    return 0;
}


static kx_turn_e
turn(const unsigned char *message, uint64_t now)
{
    return kx_session_turn(&s, message, 0, now, WALL + now - NOW, 16000);
}


static kx_preload_answer_t
answer(kx_ad_outcome_e outcome, const unsigned char *server)
{
    kx_preload_answer_t  a;

    memset(&a, 0, sizeof(a));

    a.outcome = outcome;

    if (server) {
        a.has_session = 1;
        memcpy(a.session, server, KX_ID_LEN);
    }

    return a;
}


static kx_preload_answer_t
filled(void)
{
    kx_preload_answer_t  a;

    a = answer(KX_AD_FILLED, server1);

    a.nbids = 2;
    memcpy(a.bids[0].id, bid1, KX_ID_LEN);
    a.bids[0].placement = 1;
    a.bids[0].revenue = 0.25;
    memcpy(a.bids[1].id, bid2, KX_ID_LEN);
    a.bids[1].placement = 0;
    a.bids[1].revenue = -1;

    return a;
}


static kx_preload_answer_t
no_fill(const char *code)
{
    kx_preload_answer_t  a;

    a = answer(KX_AD_NO_FILL, server1);
    strcpy(a.code, code);

    return a;
}


static int
answered(uint32_t seq, kx_preload_answer_t a)
{
    return kx_session_answer(&s, seq, &a, placements);
}


static unsigned
nbids(void)
{
    kx_bid_t  bids[KX_MAX_BIDS];

    return kx_session_bids(&s, bids, placements, 3);
}


static void
test_turn_is_asked_once(void **state)
{
    assert_int_equal(turn(turn1, NOW), KX_TURN_ASK);
    assert_int_not_equal(s.seq, 0);
    assert_int_equal(s.turn, KX_TURN_PENDING);
    assert_int_equal(s.turn_until, NOW + 16000);
    assert_true(s.turn_wall == WALL);
    assert_memory_equal(s.user_message, turn1, KX_ID_LEN);

    /* another request of the same turn */

    assert_int_equal(turn(turn1, NOW), KX_TURN_WAIT);
    assert_int_equal(turn(turn1, NOW + 15999), KX_TURN_WAIT);
    assert_int_equal(s.seq, 1);
}


static void
test_turn_is_asked_again_after_its_deadline(void **state)
{
    uint32_t  seq;

    turn(turn1, NOW);
    seq = s.seq;

    assert_int_equal(turn(turn1, NOW + 16000), KX_TURN_ASK);
    assert_int_not_equal(s.seq, seq);
    assert_int_equal(s.turn_until, NOW + 32000);

    /* it came at the time that it came */

    assert_true(s.turn_wall == WALL);

    /* the one that was given up answers after all */

    assert_int_equal(answered(seq, filled()), KX_DECLINED);
    assert_int_equal(s.turn, KX_TURN_PENDING);
    assert_int_equal(nbids(), 0);
}


static void
test_turn_reuses_an_ad(void **state)
{
    uint32_t  seq;

    turn(turn1, NOW);
    seq = s.seq;

    assert_int_equal(answered(seq, filled()), KX_OK);
    assert_int_equal(s.turn, KX_TURN_FILLED);

    assert_int_equal(turn(turn1, NOW + 1000000), KX_TURN_REUSE);
    assert_int_equal(s.seq, seq);
    assert_int_equal(nbids(), 2);
}


static void
test_turn_reuses_a_no_fill(void **state)
{
    turn(turn1, NOW);

    assert_int_equal(answered(s.seq, no_fill("ad_skipped")), KX_OK);
    assert_int_equal(s.turn, KX_TURN_NO_FILL);
    assert_string_equal(s.code, "ad_skipped");

    assert_int_equal(turn(turn1, NOW + 20000), KX_TURN_REUSE);
    assert_string_equal(s.code, "ad_skipped");
    assert_int_equal(nbids(), 0);
}


static void
test_turn_asks_again_after_an_error(void **state)
{
    uint32_t             seq;
    kx_preload_answer_t  a;

    turn(turn1, NOW);
    seq = s.seq;

    a = answer(KX_AD_ERROR, NULL);
    a.transport = 1;
    strcpy(a.code, "request_failed");

    assert_int_equal(answered(seq, a), KX_OK);
    assert_int_equal(s.turn, KX_TURN_NONE);
    assert_string_equal(s.code, "request_failed");

    assert_int_equal(turn(turn1, NOW + 1), KX_TURN_ASK);
    assert_int_not_equal(s.seq, seq);
    assert_true(s.turn_wall == WALL);
    assert_string_equal(s.code, "");

    /* an error that the server tells, and an answer that tells nothing */

    assert_int_equal(answered(s.seq, answer(KX_AD_ERROR, server1)), KX_OK);
    assert_int_equal(turn(turn1, NOW + 2), KX_TURN_ASK);

    assert_int_equal(answered(s.seq, answer(KX_AD_NONE, NULL)), KX_OK);
    assert_int_equal(turn(turn1, NOW + 3), KX_TURN_ASK);
    assert_false(s.disabled);
}


static void
test_turn_asks_again_after_a_cancel(void **state)
{
    uint32_t  seq;

    turn(turn1, NOW);
    seq = s.seq;

    kx_session_cancel(&s, seq);
    assert_int_equal(s.turn, KX_TURN_NONE);

    /* cancelled: what it answers does not count, but its session does */

    assert_int_equal(answered(seq, filled()), KX_DECLINED);
    assert_int_equal(s.turn, KX_TURN_NONE);
    assert_int_equal(nbids(), 0);
    assert_true(s.has_server_id);

    assert_int_equal(turn(turn1, NOW + 1), KX_TURN_ASK);
    assert_int_not_equal(s.seq, seq);
}


static void
test_cancel_leaves_others_alone(void **state)
{
    uint32_t  seq;

    turn(turn1, NOW);
    seq = s.seq;
    turn(turn2, NOW + 1);

    kx_session_cancel(&s, seq);
    assert_int_equal(s.turn, KX_TURN_PENDING);

    answered(s.seq, filled());
    kx_session_cancel(&s, s.seq);
    assert_int_equal(s.turn, KX_TURN_FILLED);
    assert_int_equal(nbids(), 2);
}


static void
test_turn_supersedes_a_pending_one(void **state)
{
    uint32_t             seq;
    kx_preload_answer_t  a;

    turn(turn1, NOW);
    seq = s.seq;

    assert_int_equal(turn(turn2, NOW + 500), KX_TURN_ASK);
    assert_int_not_equal(s.seq, seq);
    assert_true(s.turn_wall == WALL + 500);
    assert_memory_equal(s.user_message, turn2, KX_ID_LEN);

    a = filled();
    a.disable = 1;

    /* rule 1: cancelled, discarded; only the sessionId is kept */

    assert_int_equal(answered(seq, a), KX_DECLINED);
    assert_int_equal(s.turn, KX_TURN_PENDING);
    assert_false(s.disabled);
    assert_int_equal(nbids(), 0);
    assert_true(s.has_server_id);
    assert_memory_equal(s.server_id, server1, KX_ID_LEN);

    assert_int_equal(answered(s.seq, filled()), KX_OK);
    assert_int_equal(nbids(), 2);

    /* a second answer of the same call */

    assert_int_equal(answered(s.seq, no_fill("x")), KX_DECLINED);
    assert_int_equal(s.turn, KX_TURN_FILLED);
}


static void
test_turn_supersedes_an_ad(void **state)
{
    uint32_t  seq;

    turn(turn1, NOW);
    seq = s.seq;
    answered(seq, filled());

    assert_int_equal(kx_session_pair(&s, seq, reply1), KX_OK);

    assert_int_equal(turn(turn2, NOW + 1), KX_TURN_ASK);
    assert_int_equal(nbids(), 0);
    assert_int_equal(s.nbids, 0);
    assert_false(s.paired);

    /* a bid is never moved to a later message */

    assert_int_equal(kx_session_pair(&s, seq, reply1), KX_DECLINED);
    assert_int_equal(kx_session_pair(&s, s.seq, reply2), KX_AGAIN);
    assert_false(s.paired);
    assert_int_equal(nbids(), 0);

    /* back to the turn before: its ad is lost */

    answered(s.seq, no_fill("x"));
    assert_false(s.paired);
    assert_int_equal(turn(turn1, NOW + 2), KX_TURN_ASK);
}


static void
test_pair_result_first(void **state)
{
    turn(turn1, NOW);

    answered(s.seq, filled());
    assert_false(s.answered);
    assert_false(s.paired);

    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_OK);
    assert_true(s.answered);
    assert_true(s.paired);
    assert_memory_equal(s.assistant, reply1, KX_ID_LEN);
}


static void
test_pair_assistant_first(void **state)
{
    turn(turn1, NOW);

    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_AGAIN);
    assert_int_equal(s.turn, KX_TURN_PENDING);
    assert_true(s.answered);
    assert_false(s.paired);

    assert_int_equal(answered(s.seq, filled()), KX_OK);
    assert_true(s.paired);
    assert_memory_equal(s.assistant, reply1, KX_ID_LEN);

    /* of two that come before the result, the one that has replaced it */

    turn(turn2, NOW);
    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_AGAIN);
    assert_int_equal(kx_session_pair(&s, s.seq, reply2), KX_AGAIN);

    answered(s.seq, filled());
    assert_true(s.paired);
    assert_memory_equal(s.assistant, reply2, KX_ID_LEN);
}


static void
test_pair_assistant_first_without_an_ad(void **state)
{
    uint32_t             seq;
    unsigned             i;
    kx_preload_answer_t  a;

    static const unsigned char  zero[KX_ID_LEN];

    for (i = 0; i < 4; i++) {
        memset(&s, 0, sizeof(s));

        turn(turn1, NOW);
        kx_session_pair(&s, s.seq, reply1);

        switch (i) {

        case 0:
            a = no_fill("unfilled_bid");
            break;

        case 1:
            a = answer(KX_AD_ERROR, NULL);
            break;

        case 2:
            a = answer(KX_AD_NONE, NULL);
            break;

        default:
            a = filled();
            a.nbids = 0;
            break;
        }

        assert_int_equal(answered(s.seq, a), KX_OK);
        assert_false(s.paired);
        assert_int_equal(kx_session_pair(&s, s.seq, reply2), KX_DECLINED);
        assert_false(s.paired);
    }

    /* a message of the turn before is none of this one */

    memset(&s, 0, sizeof(s));

    turn(turn1, NOW);
    seq = s.seq;
    kx_session_pair(&s, seq, reply1);
    turn(turn2, NOW + 1);

    assert_false(s.answered);
    assert_memory_equal(s.assistant, zero, KX_ID_LEN);

    assert_int_equal(answered(seq, filled()), KX_DECLINED);
    assert_false(s.paired);

    assert_int_equal(answered(s.seq, filled()), KX_OK);
    assert_false(s.paired);

    /* one whose preload was given up, and another is sent for it */

    turn(turn3, NOW + 2);
    seq = s.seq;
    kx_session_pair(&s, seq, reply1);
    kx_session_cancel(&s, seq);

    assert_int_equal(answered(seq, filled()), KX_DECLINED);
    assert_false(s.paired);
    assert_int_equal(kx_session_pair(&s, seq, reply2), KX_DECLINED);

    assert_int_equal(turn(turn3, NOW + 3), KX_TURN_ASK);
    assert_int_equal(answered(s.seq, filled()), KX_OK);
    assert_false(s.paired);
}


static void
test_pair_needs_an_ad(void **state)
{
    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_DECLINED);

    turn(turn1, NOW);
    answered(s.seq, no_fill("unfilled_bid"));
    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_DECLINED);

    turn(turn2, NOW);
    answered(s.seq, answer(KX_AD_ERROR, NULL));
    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_DECLINED);

    turn(turn3, NOW);
    answered(s.seq, filled());
    assert_int_equal(kx_session_pair(&s, s.seq - 1, reply1), KX_DECLINED);
    assert_int_equal(kx_session_pair(&s, s.seq + 1, reply1), KX_DECLINED);
    assert_false(s.paired);
}


static void
test_regenerated_answer_inherits(void **state)
{
    uint32_t  seq;

    turn(turn1, NOW);
    seq = s.seq;
    answered(seq, filled());
    kx_session_pair(&s, seq, reply1);

    assert_int_equal(turn(turn1, NOW + 60000), KX_TURN_REUSE);
    assert_int_equal(s.seq, seq);
    assert_true(s.paired);

    assert_int_equal(kx_session_pair(&s, s.seq, reply2), KX_OK);
    assert_memory_equal(s.assistant, reply2, KX_ID_LEN);
    assert_int_equal(nbids(), 2);
}


static void
test_late_answer_counts(void **state)
{
    turn(turn1, NOW);

    /* nobody has asked again: the answer may be as late as it likes */

    assert_int_equal(answered(s.seq, filled()), KX_OK);
    assert_int_equal(turn(turn1, NOW + 100000), KX_TURN_REUSE);
}


static void
test_server_id_is_kept(void **state)
{
    kx_ad_outcome_e  o;

    static const kx_ad_outcome_e  outcomes[] = {
        KX_AD_FILLED, KX_AD_NO_FILL, KX_AD_ERROR, KX_AD_NONE
    };

    unsigned  i;

    for (i = 0; i < 4; i++) {
        o = outcomes[i];
        memset(&s, 0, sizeof(s));

        turn(turn1, NOW);
        answered(s.seq, answer(o, NULL));
        assert_false(s.has_server_id);

        turn(turn2, NOW);
        answered(s.seq, answer(o, server1));
        assert_true(s.has_server_id);
        assert_memory_equal(s.server_id, server1, KX_ID_LEN);

        turn(turn3, NOW);
        answered(s.seq, answer(o, server2));
        assert_memory_equal(s.server_id, server2, KX_ID_LEN);

        /* never cleared: neither by an answer without it nor by a turn */

        turn(turn1, NOW);
        answered(s.seq, answer(o, NULL));
        turn(turn2, NOW);
        kx_session_cancel(&s, s.seq);
        assert_true(s.has_server_id);
        assert_memory_equal(s.server_id, server2, KX_ID_LEN);
    }
}


static void
test_disabled_by_a_preload(void **state)
{
    uint32_t             seq;
    kx_preload_answer_t  a;

    turn(turn1, NOW);

    a = answer(KX_AD_ERROR, server1);
    a.disable = 1;
    strcpy(a.code, "geo_disabled");

    assert_int_equal(answered(s.seq, a), KX_OK);
    assert_true(s.disabled);
    assert_int_equal(s.turn, KX_TURN_NONE);
    assert_memory_equal(s.server_id, server1, KX_ID_LEN);

    seq = s.seq;

    assert_int_equal(turn(turn1, NOW + 1), KX_TURN_DISABLED);
    assert_int_equal(s.seq, seq);
    assert_int_equal(turn(turn2, NOW + 2), KX_TURN_DISABLED);
    assert_int_equal(s.turn, KX_TURN_NONE);
    assert_memory_equal(s.user_message, turn2, KX_ID_LEN);
    assert_true(s.turn_wall == WALL + 2);

    assert_int_equal(kx_session_turn(&s, turn3, 1, NOW, WALL, 16000),
                     KX_TURN_DISABLED);
}


static void
test_disabled_keeps_the_ad(void **state)
{
    kx_init_answer_t  ia;

    turn(turn1, NOW);
    answered(s.seq, filled());
    kx_session_pair(&s, s.seq, reply1);

    memset(&ia, 0, sizeof(ia));
    ia.applied = 1;
    kx_session_init_claim(&s, NOW, 16000);
    kx_session_init_answer(&s, s.init_seq, &ia);

    assert_true(s.disabled);
    assert_int_equal(turn(turn1, NOW + 1), KX_TURN_DISABLED);
    assert_int_equal(s.turn, KX_TURN_FILLED);
    assert_int_equal(nbids(), 2);
    assert_true(s.paired);
    assert_memory_equal(s.assistant, reply1, KX_ID_LEN);
    assert_int_equal(kx_session_pair(&s, s.seq, reply2), KX_OK);
}


static void
test_disabled_does_not_cancel(void **state)
{
    kx_init_answer_t  ia;

    turn(turn1, NOW);

    memset(&ia, 0, sizeof(ia));
    ia.applied = 1;
    kx_session_init_answer(&s, s.init_seq, &ia);
    assert_true(s.disabled);

    /* what is under way is still applied */

    assert_int_equal(answered(s.seq, filled()), KX_OK);
    assert_int_equal(nbids(), 2);
}


static void
test_disabled_turn_supersedes(void **state)
{
    uint32_t  seq;

    turn(turn1, NOW);
    seq = s.seq;
    s.disabled = 1;

    assert_int_equal(turn(turn2, NOW + 1), KX_TURN_DISABLED);
    assert_int_equal(answered(seq, filled()), KX_DECLINED);
    assert_int_equal(answered(s.seq, filled()), KX_DECLINED);
    assert_int_equal(nbids(), 0);
    assert_true(s.has_server_id);
}


static void
test_track_only(void **state)
{
    uint32_t  seq;

    /* never waits */

    turn(turn1, NOW);
    seq = s.seq;

    assert_int_equal(kx_session_turn(&s, turn1, 1, NOW, WALL + 9, 16000),
                     KX_TURN_ASK);
    assert_int_not_equal(s.seq, seq);
    assert_true(s.turn_wall == WALL);
    assert_int_equal(answered(seq, filled()), KX_DECLINED);

    /* never reuses a no-fill */

    seq = s.seq;
    assert_int_equal(answered(seq, no_fill("track_only")), KX_OK);
    assert_int_equal(kx_session_turn(&s, turn1, 1, NOW, WALL, 16000),
                     KX_TURN_ASK);
    assert_int_not_equal(s.seq, seq);

    /* nor an ad, which it drops */

    turn(turn2, NOW);
    answered(s.seq, filled());
    kx_session_pair(&s, s.seq, reply1);

    assert_int_equal(kx_session_turn(&s, turn2, 1, NOW, WALL, 16000),
                     KX_TURN_ASK);
    assert_int_equal(nbids(), 0);
    assert_false(s.paired);

    /* another request of the turn, which is no track-only one, waits */

    assert_int_equal(turn(turn2, NOW), KX_TURN_WAIT);
}


static void
test_deadlines_wrap_around(void **state)
{
    uint64_t  now;

    for (now = 0xffffc000ULL; now < 0x100000100ULL; now += 61) {
        memset(&s, 0, sizeof(s));

        assert_int_equal(turn(turn1, now), KX_TURN_ASK);
        assert_int_equal(turn(turn1, now), KX_TURN_WAIT);
        assert_int_equal(turn(turn1, now + 15999), KX_TURN_WAIT);
        assert_int_equal(turn(turn1, now + 16000), KX_TURN_ASK);

        assert_int_equal(kx_session_init_claim(&s, now, 16000), KX_OK);
        assert_int_equal(kx_session_init_claim(&s, now + 15999, 16000),
                         KX_DECLINED);
        assert_int_equal(kx_session_init_claim(&s, now + 16000, 16000),
                         KX_OK);
    }

    /* a deadline of long ago is one of the past */

    memset(&s, 0, sizeof(s));
    turn(turn1, NOW);
    assert_int_equal(turn(turn1, NOW + 16000 + 0x7fffffff), KX_TURN_ASK);

    /* nor does a timeout beyond all measure become one */

    assert_int_equal(kx_session_turn(&s, turn2, 0, NOW, WALL, 0xffffffff),
                     KX_TURN_ASK);
    assert_int_equal(turn(turn2, NOW), KX_TURN_WAIT);
    assert_int_equal(turn(turn2, NOW + 0x7ffffffe), KX_TURN_WAIT);
    assert_int_equal(turn(turn2, NOW + 0x7fffffff), KX_TURN_ASK);

    /* no time at all: nobody waits */

    assert_int_equal(kx_session_turn(&s, turn3, 0, NOW, WALL, 0),
                     KX_TURN_ASK);
    assert_int_equal(turn(turn3, NOW), KX_TURN_ASK);
}


static void
test_numbers_wrap_around(void **state)
{
    s.seq = 0xffffffff;
    s.init_seq = 0xffffffff;

    assert_int_equal(turn(turn1, NOW), KX_TURN_ASK);
    assert_int_equal(s.seq, 1);
    assert_int_equal(answered(1, filled()), KX_OK);

    assert_int_equal(kx_session_init_claim(&s, NOW, 16000), KX_OK);
    assert_int_equal(s.init_seq, 1);
}


static void
test_codes_are_cut(void **state)
{
    turn(turn1, NOW);
    answered(s.seq, no_fill("a_code_of_exactly_23_ch"));
    assert_string_equal(s.code, "a_code_of_exactly_23_ch");

    turn(turn2, NOW);
    answered(s.seq, no_fill("abcdefghijklmnopqrstuvwxyz0123456789"
                            "abcdefghijklmnopqrstuvwxyz0"));
    assert_string_equal(s.code, "abcdefghijklmnopqrstuvw");
    assert_int_equal(sizeof(s.code), KX_SESSION_CODE_LEN);

    turn(turn3, NOW);
    assert_string_equal(s.code, "");
}


static void
test_bids(void **state)
{
    kx_bid_t             bids[KX_MAX_BIDS];
    kx_preload_answer_t  a;

    static const kx_str_t  others[] = {
        kx_string("sidebar"),
        kx_string("inlineAd"),
        kx_string("inlineAd")
    };

    turn(turn1, NOW);
    answered(s.seq, filled());

    memset(bids, 0xff, sizeof(bids));
    assert_int_equal(kx_session_bids(&s, bids, placements, 3), 2);
    assert_memory_equal(bids[0].id, bid1, KX_ID_LEN);
    assert_int_equal(bids[0].placement, 1);
    assert_true(bids[0].revenue == 0.25);
    assert_memory_equal(bids[1].id, bid2, KX_ID_LEN);
    assert_int_equal(bids[1].placement, 0);
    assert_true(bids[1].revenue < 0);

    /* by code, not by place: another location has other placements */

    assert_int_equal(kx_session_bids(&s, bids, others, 3), 1);
    assert_memory_equal(bids[0].id, bid2, KX_ID_LEN);
    assert_int_equal(bids[0].placement, 1);

    assert_int_equal(kx_session_bids(&s, bids, others, 1), 0);
    assert_int_equal(kx_session_bids(&s, bids, placements, 0), 0);

    /* filled, it says, but with nothing */

    turn(turn2, NOW);
    a = filled();
    a.nbids = 0;
    assert_int_equal(answered(s.seq, a), KX_OK);
    assert_int_equal(s.turn, KX_TURN_NO_FILL);
    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_DECLINED);
}


static void
test_all_bids(void **state)
{
    unsigned             i;
    kx_bid_t             bids[KX_MAX_BIDS];
    kx_preload_answer_t  a;

    static const kx_str_t  codes[] = {
        kx_string("a"),
        kx_string("b"),
        kx_string("c"),
        kx_string("d")
    };

    turn(turn1, NOW);

    a = answer(KX_AD_FILLED, server1);

    /* more than there can be */

    a.nbids = KX_MAX_BIDS + 1;

    for (i = 0; i < KX_MAX_BIDS; i++) {
        memset(a.bids[i].id, 'a' + i, KX_ID_LEN);
        a.bids[i].placement = i;
        a.bids[i].revenue = i;
    }

    assert_int_equal(kx_session_answer(&s, s.seq, &a, codes), KX_OK);
    assert_int_equal(s.nbids, KX_MAX_BIDS);

    assert_int_equal(kx_session_bids(&s, bids, codes, 4), KX_MAX_BIDS);

    for (i = 0; i < KX_MAX_BIDS; i++) {
        assert_int_equal(bids[i].id[0], 'a' + i);
        assert_int_equal(bids[i].placement, i);
        assert_true(bids[i].revenue == i);
    }

    /* a number in the memory that somebody else has written */

    s.nbids = 255;
    assert_int_equal(kx_session_bids(&s, bids, codes, 4), KX_MAX_BIDS);
}


static void
test_revenue_that_is_none(void **state)
{
    unsigned             i;
    kx_bid_t             bids[KX_MAX_BIDS];
    kx_preload_answer_t  a;

    const double  values[] = { NAN, INFINITY, -INFINITY, 1e300, -0.5 };

    for (i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        memset(&s, 0, sizeof(s));
        turn(turn1, NOW);

        a = filled();
        a.bids[0].revenue = values[i];
        answered(s.seq, a);

        assert_int_equal(kx_session_bids(&s, bids, placements, 3), 2);
        assert_true(bids[0].revenue == -1);
    }

    s.bids[0].revenue = NAN;
    kx_session_bids(&s, bids, placements, 3);
    assert_true(bids[0].revenue == -1);

    turn(turn2, NOW);
    a = filled();
    a.bids[0].revenue = 0;
    answered(s.seq, a);
    kx_session_bids(&s, bids, placements, 3);
    assert_true(bids[0].revenue == 0);
}


static kx_init_answer_t
init_answer(void)
{
    kx_init_answer_t  a;

    memset(&a, 0, sizeof(a));

    a.applied = 1;
    a.enabled = 1;
    a.report_errors = 1;

    return a;
}


static void
test_init_is_sent_once(void **state)
{
    kx_init_answer_t  a;

    assert_int_equal(s.init, KX_INIT_DUE);
    assert_int_equal(kx_session_init_claim(&s, NOW, 16000), KX_OK);
    assert_int_equal(s.init, KX_INIT_SENT);
    assert_int_equal(s.init_until, NOW + 16000);

    assert_int_equal(kx_session_init_claim(&s, NOW + 1, 16000), KX_DECLINED);

    /* preloads do not wait for it */

    assert_int_equal(turn(turn1, NOW), KX_TURN_ASK);

    a = init_answer();
    a.report_errors = 0;
    a.report_debug = 1;
    a.preload_timeout = 8000;
    kx_session_init_answer(&s, s.init_seq, &a);

    assert_int_equal(s.init, KX_INIT_DONE);
    assert_false(s.disabled);
    assert_true(s.no_errors);
    assert_true(s.debug);
    assert_int_equal(s.preload_timeout, 8000);

    /* and changes nothing for one that is under way */

    assert_int_equal(s.turn_until, NOW + 16000);

    assert_int_equal(kx_session_init_claim(&s, NOW + 99999, 16000),
                     KX_DECLINED);
}


static void
test_init_without_a_result(void **state)
{
    kx_init_answer_t  a;

    memset(&a, 0, sizeof(a));

    kx_session_init_claim(&s, NOW, 16000);
    kx_session_init_answer(&s, s.init_seq, &a);

    /* 204, non-2xx: all defaults, and it is done */

    assert_int_equal(s.init, KX_INIT_DONE);
    assert_false(s.disabled);
    assert_false(s.no_errors);
    assert_false(s.debug);
    assert_int_equal(s.preload_timeout, 0);
    assert_int_equal(kx_session_init_claim(&s, NOW + 99999, 16000),
                     KX_DECLINED);
}


static void
test_init_failed(void **state)
{
    uint32_t          seq;
    kx_init_answer_t  a;

    memset(&a, 0, sizeof(a));
    a.failed = 1;

    kx_session_init_claim(&s, NOW, 16000);
    seq = s.init_seq;
    kx_session_init_answer(&s, seq, &a);

    assert_int_equal(s.init, KX_INIT_DUE);
    assert_false(s.disabled);
    assert_false(s.no_errors);

    assert_int_equal(kx_session_init_claim(&s, NOW + 1, 16000), KX_OK);
    assert_int_not_equal(s.init_seq, seq);

    /* the failure of an older one says nothing of this one */

    kx_session_init_answer(&s, seq, &a);
    assert_int_equal(s.init, KX_INIT_SENT);

    a.failed = 0;
    kx_session_init_answer(&s, seq, &a);
    assert_int_equal(s.init, KX_INIT_SENT);
}


static void
test_init_cancelled(void **state)
{
    uint32_t  seq;

    kx_session_init_claim(&s, NOW, 16000);
    seq = s.init_seq;

    kx_session_init_cancel(&s, seq + 1);
    assert_int_equal(s.init, KX_INIT_SENT);

    kx_session_init_cancel(&s, seq);
    assert_int_equal(s.init, KX_INIT_DUE);

    assert_int_equal(kx_session_init_claim(&s, NOW, 16000), KX_OK);
    kx_session_init_cancel(&s, seq);
    assert_int_equal(s.init, KX_INIT_SENT);
}


static void
test_init_late_answer(void **state)
{
    uint32_t          seq;
    kx_init_answer_t  a;

    kx_session_init_claim(&s, NOW, 16000);
    seq = s.init_seq;

    /* its time is over, somebody else sends it again, and then it comes */

    assert_int_equal(kx_session_init_claim(&s, NOW + 16000, 16000), KX_OK);

    a = init_answer();
    a.preload_timeout = 5000;
    kx_session_init_answer(&s, seq, &a);

    assert_int_equal(s.init, KX_INIT_DONE);
    assert_int_equal(s.preload_timeout, 5000);

    /* the failure of the other one is of no importance then */

    memset(&a, 0, sizeof(a));
    a.failed = 1;
    kx_session_init_answer(&s, s.init_seq, &a);
    assert_int_equal(s.init, KX_INIT_DONE);
    assert_int_equal(s.preload_timeout, 5000);

    kx_session_init_cancel(&s, s.init_seq);
    assert_int_equal(s.init, KX_INIT_DONE);

    /* after it was given up */

    memset(&s, 0, sizeof(s));
    kx_session_init_claim(&s, NOW, 16000);
    kx_session_init_cancel(&s, s.init_seq);

    a = init_answer();
    a.enabled = 0;
    kx_session_init_answer(&s, s.init_seq, &a);
    assert_int_equal(s.init, KX_INIT_DONE);
    assert_true(s.disabled);
    assert_int_equal(turn(turn1, NOW), KX_TURN_DISABLED);
}


static void
test_init_enables_nothing(void **state)
{
    kx_init_answer_t     a;
    kx_preload_answer_t  pa;

    kx_session_init_claim(&s, NOW, 16000);
    turn(turn1, NOW);

    pa = answer(KX_AD_ERROR, NULL);
    pa.disable = 1;
    answered(s.seq, pa);

    a = init_answer();
    kx_session_init_answer(&s, s.init_seq, &a);

    assert_int_equal(s.init, KX_INIT_DONE);
    assert_true(s.disabled);
}


static void
test_states_that_do_not_exist(void **state)
{
    /* the memory is shared, and what it holds need not make sense */

    memset(&s, 0xff, sizeof(s));
    s.disabled = 0;

    assert_int_equal(nbids(), 0);
    assert_int_equal(kx_session_pair(&s, s.seq, reply1), KX_DECLINED);
    assert_int_equal(answered(s.seq, filled()), KX_DECLINED);
    assert_int_equal(kx_session_turn(&s, s.user_message, 0, NOW, WALL, 1),
                     KX_TURN_ASK);
    assert_int_equal(kx_session_init_claim(&s, NOW, 1), KX_OK);
}


static void
test_code_numbers(void **state)
{
    kx_str_t       code;
    unsigned char  text[8];

    static const kx_str_t  empty = kx_string("");
    static const kx_str_t  foobar = kx_string("foobar");

    /* FNV-1a of 32 bits */

    assert_int_equal(kx_session_code(&empty), 0x811c9dc5);
    assert_int_equal(kx_session_code(&foobar), 0xbf9cf968);

    assert_int_not_equal(kx_session_code(&placements[0]),
                         kx_session_code(&placements[1]));

    /* a text whose hash is 0 gets another number */

    memcpy(text, "\xcc\x24\x31\xc4", 4);
    code.len = 4;
    code.data = text;
    assert_int_equal(kx_session_code(&code), 1);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup(test_turn_is_asked_once, setup),
        cmocka_unit_test_setup(test_turn_is_asked_again_after_its_deadline,
                               setup),
        cmocka_unit_test_setup(test_turn_reuses_an_ad, setup),
        cmocka_unit_test_setup(test_turn_reuses_a_no_fill, setup),
        cmocka_unit_test_setup(test_turn_asks_again_after_an_error, setup),
        cmocka_unit_test_setup(test_turn_asks_again_after_a_cancel, setup),
        cmocka_unit_test_setup(test_cancel_leaves_others_alone, setup),
        cmocka_unit_test_setup(test_turn_supersedes_a_pending_one, setup),
        cmocka_unit_test_setup(test_turn_supersedes_an_ad, setup),
        cmocka_unit_test_setup(test_pair_result_first, setup),
        cmocka_unit_test_setup(test_pair_assistant_first, setup),
        cmocka_unit_test_setup(test_pair_assistant_first_without_an_ad,
                               setup),
        cmocka_unit_test_setup(test_pair_needs_an_ad, setup),
        cmocka_unit_test_setup(test_regenerated_answer_inherits, setup),
        cmocka_unit_test_setup(test_late_answer_counts, setup),
        cmocka_unit_test_setup(test_server_id_is_kept, setup),
        cmocka_unit_test_setup(test_disabled_by_a_preload, setup),
        cmocka_unit_test_setup(test_disabled_keeps_the_ad, setup),
        cmocka_unit_test_setup(test_disabled_does_not_cancel, setup),
        cmocka_unit_test_setup(test_disabled_turn_supersedes, setup),
        cmocka_unit_test_setup(test_track_only, setup),
        cmocka_unit_test_setup(test_deadlines_wrap_around, setup),
        cmocka_unit_test_setup(test_numbers_wrap_around, setup),
        cmocka_unit_test_setup(test_codes_are_cut, setup),
        cmocka_unit_test_setup(test_bids, setup),
        cmocka_unit_test_setup(test_all_bids, setup),
        cmocka_unit_test_setup(test_revenue_that_is_none, setup),
        cmocka_unit_test_setup(test_init_is_sent_once, setup),
        cmocka_unit_test_setup(test_init_without_a_result, setup),
        cmocka_unit_test_setup(test_init_failed, setup),
        cmocka_unit_test_setup(test_init_cancelled, setup),
        cmocka_unit_test_setup(test_init_late_answer, setup),
        cmocka_unit_test_setup(test_init_enables_nothing, setup),
        cmocka_unit_test_setup(test_states_that_do_not_exist, setup),
        cmocka_unit_test_setup(test_code_numbers, setup)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
