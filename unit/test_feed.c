/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Messages, ads, events and options of a session that the session API knows
 * (protocol.md 3.2, 5, 6, 7, 9).  All orders of what may happen to it are in
 * test_session_orders.c.
 */


#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include "conversation.h"
#include "feed.h"

#include <cmocka.h>


#define NOW      1000000ULL
#define WALL     1772475611045ULL
#define IDLE     600000
#define TIMEOUT  16000

#define PID      4711
#define OTHER    4712

/* a table with room for all that a session may have, and a small one */

#define LARGE    (1024 * 1024)
#define SMALL    16384
#define SHARE    48

#define HEAD     16                  /* in front of a message's id */


static unsigned char        *mem;
static size_t                size;
static kx_session_table_t   *t;
static kx_session_t         *s;
static uint64_t              now;
static uint32_t              chance;

static kx_message_t          messages[KX_MAX_MESSAGES];
static unsigned char         text[KX_FEED_TEXT_LEN];

static kx_feed_event_t       events[KX_FEED_EVENTS];
static unsigned char         event_text[KX_FEED_EVENTS_LEN];
static uint64_t              lost;

static kx_feed_ad_t          ad;
static kx_feed_ad_t          ads[KX_MAX_MESSAGES];
static unsigned char         ids[KX_MAX_MESSAGES * KX_API_MAX_MESSAGE_ID];

static unsigned char         large[KX_MAX_CONTENT + 1];

static const unsigned char   server1[KX_ID_LEN] = "sessionId one..";
static const unsigned char   reply1[KX_ID_LEN] = "first assistant";
static const unsigned char   reply2[KX_ID_LEN] = "secnd assistant";
static const unsigned char   traffic1[KX_ID_LEN] = "a turn that was";
static const unsigned char   traffic2[KX_ID_LEN] = "another of them";

static const kx_str_t  placements[] = {
    kx_string("inlineAd"),
    kx_string("bottomAd"),
    kx_string("sidebar"),
    kx_string("footer")
};


static void
make(size_t n)
{
    free(mem);

    size = n;
    assert_int_equal(posix_memalign((void **) &mem, 64, n), 0);
    memset(mem, 0xa5, n);

    t = kx_session_table_create(mem, n, SHARE);
    assert_non_null(t);

    now = NOW;
    s = NULL;
}


static kx_str_t
str(const char *p)
{
    kx_str_t  string;

    string.data = (unsigned char *) p;
    string.len = strlen(p);

    return string;
}


static unsigned
same(const kx_str_t *string, const char *p)
{
    return string->len == strlen(p)
           && memcmp(string->data, p, string->len) == 0;
}


static void
verify(void)
{
    assert_int_equal(kx_session_table_verify(t), KX_OK);
    assert_int_equal(t->repaired, 0);
}


/* a session that the API does not know */

static kx_session_t *
session(unsigned n)
{
    unsigned       created;
    unsigned char  key[KX_ID_LEN];

    memset(key, n, KX_ID_LEN);

    s = kx_session_table_open(t, key, 7, now, WALL, IDLE, &created);
    assert_non_null(s);

    return s;
}


static int
known(unsigned n)
{
    kx_str_t       user, conversation;
    unsigned char  id[KX_ID_LEN];

    memset(id, 'A' + n, KX_ID_LEN);

    user = str("u-381");
    conversation = str("c-77");

    return kx_feed_open(t, s, id, &user, &conversation);
}


static void
open_one(unsigned n)
{
    session(n);
    assert_int_equal(known(n), KX_OK);
}


static int
setup(void **state)
{
    make(LARGE);
    open_one(1);
    return 0;
}


static int
setup_traffic(void **state)
{
    make(LARGE);
    session(1);
    return 0;
}


static int
teardown(void **state)
{
    free(mem);
    mem = NULL;
    return 0;
}


static void
make_digest(unsigned char digest[KX_ID_LEN], const kx_str_t *id)
{
    size_t  i;

    memset(digest, 0x55, KX_ID_LEN);

    for (i = 0; i < id->len; i++) {
        digest[i % KX_ID_LEN] = (unsigned char) (digest[i % KX_ID_LEN] * 31
                                                 + id->data[i]);
    }
}


static kx_feed_e
say_long(kx_role_e role, const kx_str_t *id, const kx_str_t *content,
    uint64_t created, unsigned track_only)
{
    unsigned char     digest[KX_ID_LEN];
    kx_api_message_t  m;

    memset(&m, 0, sizeof(kx_api_message_t));

    m.message.role = role;
    m.message.id = *id;
    m.message.content = *content;
    m.message.created = created;
    m.has_created = created != 0;
    m.track_only = track_only;

    make_digest(digest, id);

    return kx_feed_message(t, s, &m, digest, now, WALL + now - NOW, TIMEOUT,
                           PID);
}


static kx_feed_e
say(kx_role_e role, const char *id)
{
    kx_str_t  i, content;

    i = str(id);
    content = str("a text");

    return say_long(role, &i, &content, 0, 0);
}


static kx_feed_e
user(const char *id)
{
    return say(KX_ROLE_USER, id);
}


static kx_feed_e
assistant(const char *id)
{
    return say(KX_ROLE_ASSISTANT, id);
}


static kx_preload_answer_t
answer(kx_ad_outcome_e outcome)
{
    kx_preload_answer_t  a;

    memset(&a, 0, sizeof(kx_preload_answer_t));

    a.outcome = outcome;

    return a;
}


/* n bids, the first bytes of which are tag and their number */

static kx_preload_answer_t
filled(unsigned n, char tag)
{
    unsigned             i;
    kx_preload_answer_t  a;

    a = answer(KX_AD_FILLED);
    a.nbids = n;

    for (i = 0; i < n; i++) {
        memset(a.bids[i].id, 'x', KX_ID_LEN);
        a.bids[i].id[0] = tag;
        a.bids[i].id[1] = (unsigned char) i;
        a.bids[i].placement = i;
        a.bids[i].revenue = i ? i * 0.25 : -1;
    }

    return a;
}


static int
answered(uint32_t seq, kx_preload_answer_t a)
{
    return kx_feed_answer(t, s, seq, &a, placements, NULL, 0);
}


/* the tag of a message's ad, 0: it has none */

static int
ad_of(const char *id)
{
    kx_str_t  i;

    i = str(id);

    if (kx_feed_ad(t, s, &i, placements, 4, &ad) != KX_OK) {
        return 0;
    }

    assert_true(same(&ad.id, id));
    assert_true(ad.nbids > 0);

    return ad.bids[0].id[0];
}


static unsigned
all_ads(void)
{
    return kx_feed_ads(t, s, placements, 4, ads, ids, sizeof(ids));
}


static unsigned
all_messages(void)
{
    return kx_feed_messages(t, s, UINT64_MAX, 0, messages, text,
                            sizeof(text));
}


static unsigned
all_events(uint64_t after)
{
    return kx_feed_events(t, s, after, events, KX_FEED_EVENTS, event_text,
                          sizeof(event_text), &lost);
}


static int
bid_known(char tag, unsigned n, double *revenue)
{
    int               rc;
    kx_str_t          message;
    unsigned char     id[KX_ID_LEN], buf[KX_API_MAX_MESSAGE_ID];
    kx_session_bid_t  bid;

    memset(id, 'x', KX_ID_LEN);
    id[0] = tag;
    id[1] = (unsigned char) n;

    rc = kx_feed_bid(t, s, id, &bid, buf, &message);

    if (rc == KX_OK) {
        assert_memory_equal(bid.id, id, KX_ID_LEN);
        assert_int_equal(bid.code, kx_session_code(&placements[n]));

        /* that of an ad has a message, the newest turn's may have none */

        assert_true(message.len > 0 || memcmp(s->bids[n].id, id, KX_ID_LEN)
                                       == 0);

        *revenue = bid.revenue;
    }

    return rc;
}


/* the name of a numbered thing, until there are four newer ones */

static const char *
name(const char *prefix, unsigned n)
{
    static char      buf[4][32];
    static unsigned  i;

    i = (i + 1) % 4;
    snprintf(buf[i], sizeof(buf[i]), "%s%u", prefix, n);

    return buf[i];
}


static void
test_open(void **state)
{
    kx_str_t        u, c;
    kx_root_t      *root;
    kx_session_t   *found;
    unsigned char   buf[2 * KX_MAX_IDENTITY], id[KX_ID_LEN];

    memset(id, 'A' + 1, KX_ID_LEN);

    root = kx_store_root(t, s);
    assert_non_null(root);
    assert_memory_equal(root->id, id, KX_ID_LEN);

    found = kx_store_find(t, s->root, id, now, IDLE);
    assert_ptr_equal(found, s);

    assert_int_equal(kx_feed_identity(t, s, buf, &u, &c), KX_OK);
    assert_true(same(&u, "u-381"));
    assert_true(same(&c, "c-77"));

    assert_int_equal(all_messages(), 0);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(all_events(0), 0);
    assert_int_equal(lost, 0);

    /* it is one already: nothing is lost, nothing is new */

    assert_int_equal(user("m1"), KX_FEED_ASK);
    assert_int_equal(known(2), KX_OK);

    assert_ptr_equal(kx_store_root(t, s), root);
    assert_memory_equal(root->id, id, KX_ID_LEN);
    assert_int_equal(all_messages(), 1);
    verify();
}


static void
test_open_names(void **state)
{
    unsigned        i;
    kx_str_t        u, c, user_id, conversation;
    unsigned char   buf[2 * KX_MAX_IDENTITY], id[KX_ID_LEN];

    static const size_t  lens[][2] = {
        { 1, 1 }, { 1, 256 }, { 256, 1 }, { 256, 256 }, { 100, 132 },
        { 100, 133 }, { 0, 1 }, { 1, 0 }, { 257, 1 }, { 1, 257 }
    };

    memset(large, 'c', sizeof(large));
    memset(large, 'u', KX_MAX_IDENTITY + 1);

    for (i = 0; i < 10; i++) {
        make(LARGE);
        session(1);

        memset(id, 'i', KX_ID_LEN);

        u.data = large;
        u.len = lens[i][0];
        c.data = large + KX_MAX_IDENTITY + 1;
        c.len = lens[i][1];

        if (i >= 6) {
            assert_int_equal(kx_feed_open(t, s, id, &u, &c), KX_DECLINED);
            verify();
            continue;
        }

        assert_int_equal(kx_feed_open(t, s, id, &u, &c), KX_OK);

        assert_int_equal(kx_feed_identity(t, s, buf, &user_id, &conversation),
                         KX_OK);
        assert_int_equal(user_id.len, u.len);
        assert_memory_equal(user_id.data, u.data, u.len);
        assert_int_equal(conversation.len, c.len);
        assert_memory_equal(conversation.data, c.data, c.len);
        verify();
    }
}


static void
test_open_after_traffic(void **state)
{
    unsigned char  id[KX_MESSAGE_ID_LEN + 1];

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);
    answered(s->seq, filled(2, 'a'));
    kx_session_pair(s, s->seq, reply1);

    assert_int_equal(known(1), KX_OK);

    /* the ad that is paired is that of its message */

    kx_message_id(id, reply1);
    id[KX_MESSAGE_ID_LEN] = '\0';

    assert_int_equal(ad_of((char *) id), 'a');
    assert_int_equal(ad.nbids, 2);
    assert_int_equal(ad.bids[1].placement, 1);
    assert_true(ad.bids[0].revenue < 0);
    assert_true(ad.bids[1].revenue == 0.25);

    assert_int_equal(all_ads(), 1);
    assert_true(same(&ads[0].id, (char *) id));

    /* the next turn of traffic leaves it there */

    kx_session_turn(s, traffic2, 0, now, WALL, TIMEOUT);
    assert_int_equal(ad_of((char *) id), 'a');
    verify();
}


static void
test_open_within_a_turn(void **state)
{
    unsigned char  id[KX_MESSAGE_ID_LEN + 1];

    /* nothing is paired yet, the answer of the assistant came first */

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);
    assert_int_equal(kx_session_pair(s, s->seq, reply1), KX_AGAIN);

    assert_int_equal(known(1), KX_OK);
    assert_int_equal(all_ads(), 0);

    assert_int_equal(answered(s->seq, filled(1, 'a')), KX_OK);

    kx_message_id(id, reply1);
    id[KX_MESSAGE_ID_LEN] = '\0';

    assert_int_equal(ad_of((char *) id), 'a');
    verify();
}


static void
test_open_with_an_unpaired_ad(void **state)
{
    double  revenue;

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);
    answered(s->seq, filled(2, 'a'));

    assert_int_equal(known(1), KX_OK);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(bid_known('a', 1, &revenue), KX_OK);

    /* the app tells of the answer to it */

    assert_int_equal(assistant("a1"), KX_FEED_PAIRED);
    assert_int_equal(ad_of("a1"), 'a');
}


static void
test_messages(void **state)
{
    unsigned    i, n;
    kx_str_t    id, content;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    id = str("m1");
    content = str("Which shoes?");

    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 1234567, 0),
                     KX_FEED_ASK);
    assert_int_equal(root->messages, 1);
    assert_int_equal(root->trigger, 1);
    assert_int_equal(root->due, now + 10);
    assert_int_equal(root->owner, PID);
    assert_int_equal(root->track_only, 0);
    assert_int_equal(s->turn, KX_TURN_PENDING);
    assert_int_equal(s->turn_until, now + TIMEOUT);

    id = str("m2");
    content = str("");
    now += 5;

    assert_int_equal(say_long(KX_ROLE_ASSISTANT, &id, &content, 0, 0),
                     KX_FEED_STORED);
    assert_int_equal(root->trigger, 1);
    assert_int_equal(root->due, NOW + 10);

    id = str("m3");
    content = str("And a longer text, so that it takes more than one block "
                  "of those that the store has for what is said in here, "
                  "which are of 256 bytes each, with 24 of them taken by "
                  "what leads from one to the next, and of the first one "
                  "some more: that is enough now.");

    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 0, 1),
                     KX_FEED_ASK);
    assert_int_equal(root->trigger, 3);
    assert_int_equal(root->due, NOW + 15);
    assert_int_equal(root->track_only, 1);

    assert_int_equal(all_messages(), 3);

    assert_true(same(&messages[0].id, "m1"));
    assert_true(same(&messages[0].content, "Which shoes?"));
    assert_int_equal(messages[0].role, KX_ROLE_USER);
    assert_true(messages[0].created == 1234567);

    assert_true(same(&messages[1].id, "m2"));
    assert_int_equal(messages[1].content.len, 0);
    assert_int_equal(messages[1].role, KX_ROLE_ASSISTANT);
    assert_true(messages[1].created == WALL + 5);

    assert_true(same(&messages[2].id, "m3"));
    assert_int_equal(messages[2].content.len, content.len);
    assert_memory_equal(messages[2].content.data, content.data, content.len);

    /* up to each of them */

    for (i = 0; i <= 4; i++) {
        n = kx_feed_messages(t, s, i, 0, messages, text, sizeof(text));
        assert_int_equal(n, i < 3 ? i : 3);
    }

    /* ids only */

    n = kx_feed_messages(t, s, 3, 1, messages, text, sizeof(text));
    assert_int_equal(n, 3);

    for (i = 0; i < n; i++) {
        assert_true(same(&messages[i].id, name("m", i + 1)));
        assert_int_equal(messages[i].content.len, 0);
    }

    assert_true(messages[0].created == 1234567);
    assert_int_equal(messages[1].role, KX_ROLE_ASSISTANT);
    verify();
}


static void
test_messages_that_do_not_fit(void **state)
{
    size_t     len;
    unsigned   i, n, whole;
    kx_str_t   id, content;

    for (i = 0; i < 3; i++) {
        id = str(name("m", i));
        content = str("0123456789");
        say_long(KX_ROLE_ASSISTANT, &id, &content, 0, 0);
    }

    for (len = 0; len <= 36; len++) {
        unsigned char  *buf;

        buf = malloc(len + 1);

        n = kx_feed_messages(t, s, 3, 0, messages, buf, len);

        /* a text is left out as a whole, its message only with its id */

        whole = 0;

        for (i = 0; i < n; i++) {
            assert_int_equal(messages[i].id.len, 2);
            assert_true(messages[i].content.len == 0
                        || messages[i].content.len == 10);
            whole += messages[i].content.len / 10;
        }

        assert_true(2 * n + 10 * whole <= len);

        if (len >= 6) {
            assert_int_equal(n + 5 * whole <= len / 2, 1);
        }

        if (len == 36) {
            assert_int_equal(n, 3);
            assert_int_equal(whole, 3);
        }

        free(buf);
    }
}


static void
test_messages_of_all_sizes(void **state)
{
    size_t     len;
    unsigned   n;
    kx_str_t   id, content;

    memset(large, 'x', sizeof(large));

    content.data = large;

    for (len = 0; len < 1200; len += 7) {
        make(LARGE);
        open_one(1);

        content.len = len;
        id.data = large;
        id.len = 1 + len % KX_API_MAX_MESSAGE_ID;

        assert_int_equal(say_long(KX_ROLE_ASSISTANT, &id, &content, 0, 0),
                         KX_FEED_STORED);

        n = all_messages();
        assert_int_equal(n, 1);
        assert_int_equal(messages[0].id.len, id.len);
        assert_memory_equal(messages[0].id.data, large, id.len);
        assert_int_equal(messages[0].content.len, len);
        assert_memory_equal(messages[0].content.data, large, len);
        verify();
    }
}


static void
test_messages_beyond_measure(void **state)
{
    kx_str_t  id, content;

    memset(large, 'x', sizeof(large));

    content = str("");
    id.data = large;

    id.len = 0;
    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 0, 0),
                     KX_FEED_NO_ROOM);

    id.len = KX_API_MAX_MESSAGE_ID + 1;
    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 0, 0),
                     KX_FEED_NO_ROOM);

    id.len = KX_API_MAX_MESSAGE_ID;
    content.data = large;
    content.len = KX_MAX_CONTENT + 1;
    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 0, 0),
                     KX_FEED_NO_ROOM);

    assert_int_equal(s->turn, KX_TURN_NONE);
    assert_int_equal(all_messages(), 0);

    content.len = KX_MAX_CONTENT;
    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 0, 0),
                     KX_FEED_ASK);
    assert_int_equal(all_messages(), 1);
    assert_int_equal(messages[0].content.len, KX_MAX_CONTENT);
    verify();
}


static void
test_window(void **state)
{
    unsigned  i, j, n;

    for (i = 1; i <= 75; i++) {

        if (i % 2) {
            assert_int_equal(user(name("m", i)), KX_FEED_ASK);

        } else {
            assert_int_equal(assistant(name("m", i)), KX_FEED_STORED);
        }

        n = all_messages();
        assert_int_equal(n, i < 30 ? i : 30);

        for (j = 0; j < n; j++) {
            assert_true(same(&messages[j].id, name("m", i - n + 1 + j)));
        }

        /* the snapshot ends with the triggering message */

        n = kx_feed_messages(t, s, kx_store_root(t, s)->trigger, 0, messages,
                             text, sizeof(text));
        assert_true(n > 0);
        assert_true(same(&messages[n - 1].id, name("m", i - (i + 1) % 2)));
    }

    /* one that has left the window is a new one when it comes again */

    assert_int_equal(user("m46"), KX_FEED_REPEATED);
    assert_int_equal(user("m45"), KX_FEED_ASK);
    assert_int_equal(all_messages(), 30);
    assert_true(same(&messages[29].id, "m45"));
    verify();
}


static void
test_turn_that_left_the_window(void **state)
{
    uint32_t  seq;
    unsigned  i;

    user("u");
    seq = s->seq;
    answered(seq, filled(1, 'a'));

    for (i = 1; i <= 30; i++) {
        assistant(name("a", i));
    }

    /* the turn is the current one, but its message is a new one */

    assert_int_equal(user("u"), KX_FEED_ASK);
    assert_int_not_equal(s->seq, seq);
    assert_int_equal(s->turn, KX_TURN_PENDING);
    assert_int_equal(kx_store_root(t, s)->trigger, 32);

    assert_int_equal(all_messages(), 30);
    assert_true(same(&messages[29].id, "u"));
    assert_int_equal(ad_of("a1"), 0);
    verify();
}


static void
test_text_budget(void **state)
{
    unsigned   i, n;
    kx_str_t   id, content;

    /* each message as large as it may be */

    memset(large, 'x', sizeof(large));

    content.data = large;
    content.len = KX_MAX_CONTENT;

    for (i = 1; i <= 3; i++) {
        id = str(name("m", i));
        say_long(KX_ROLE_USER, &id, &content, 0, 0);

        assert_int_equal(all_messages(), 1);
        assert_true(same(&messages[0].id, name("m", i)));
        assert_int_equal(messages[0].content.len, KX_MAX_CONTENT);
    }

    /* what is left of the budget, to the byte */

    content.len = KX_FEED_TEXT_LEN - (HEAD + 2 + KX_MAX_CONTENT)
                  - (HEAD + 2);

    id = str("m4");
    say_long(KX_ROLE_USER, &id, &content, 0, 0);
    assert_int_equal(all_messages(), 2);

    make(LARGE);
    open_one(1);

    id = str("m3");
    content.len = KX_MAX_CONTENT;
    say_long(KX_ROLE_USER, &id, &content, 0, 0);

    id = str("m4");
    content.len = KX_FEED_TEXT_LEN - (HEAD + 2 + KX_MAX_CONTENT)
                  - (HEAD + 2) + 1;
    say_long(KX_ROLE_USER, &id, &content, 0, 0);

    assert_int_equal(all_messages(), 1);
    assert_true(same(&messages[0].id, "m4"));

    /* one that needs the room of many */

    for (i = 5; i < 40; i++) {
        id = str(name("m", i));
        content.len = 3000;
        say_long(KX_ROLE_ASSISTANT, &id, &content, 0, 0);
    }

    n = all_messages();
    assert_int_equal(n, KX_FEED_TEXT_LEN / (HEAD + 3 + 3000));

    id = str("m40");
    content.len = 60000;
    say_long(KX_ROLE_USER, &id, &content, 0, 0);

    n = all_messages();
    assert_int_equal(n, 1 + (KX_FEED_TEXT_LEN - 60000 - HEAD - 3)
                            / (HEAD + 3 + 3000));
    assert_true(same(&messages[n - 1].id, "m40"));
    assert_true(same(&messages[n - 2].id, "m39"));
    verify();
}


static void
test_repeated(void **state)
{
    uint32_t  seq;

    user("u1");
    seq = s->seq;

    /* under way */

    now += 5;
    assert_int_equal(user("u1"), KX_FEED_REPEATED);
    assert_int_equal(s->seq, seq);
    assert_int_equal(kx_store_root(t, s)->due, NOW + 10);

    assistant("a1");
    assert_int_equal(assistant("a1"), KX_FEED_REPEATED);
    assert_int_equal(user("a1"), KX_FEED_REPEATED);
    assert_int_equal(assistant("u1"), KX_FEED_REPEATED);
    assert_int_equal(user("u1"), KX_FEED_REPEATED);
    assert_int_equal(all_messages(), 2);
    assert_int_equal(s->seq, seq);
    assert_int_equal(s->turn, KX_TURN_PENDING);

    /* a no-fill is an answer */

    assert_int_equal(answered(seq, answer(KX_AD_NO_FILL)), KX_OK);
    assert_int_equal(user("u1"), KX_FEED_REPEATED);
    assert_int_equal(s->turn, KX_TURN_NO_FILL);

    /* an older one */

    user("u2");
    seq = s->seq;
    assert_int_equal(user("u1"), KX_FEED_REPEATED);
    assert_int_equal(s->seq, seq);
    assert_int_equal(s->turn, KX_TURN_PENDING);
    assert_int_equal(all_messages(), 3);
    verify();
}


static void
test_repeated_after_a_failure(void **state)
{
    uint32_t    seq;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    user("u1");
    seq = s->seq;
    answered(seq, answer(KX_AD_ERROR));

    now += 100;
    assert_int_equal(user("u1"), KX_FEED_AGAIN);
    assert_int_not_equal(s->seq, seq);
    assert_int_equal(root->due, now + 10);
    assert_int_equal(root->trigger, 1);
    assert_int_equal(all_messages(), 1);

    /* it was given up */

    kx_session_cancel(s, s->seq);
    assert_int_equal(user("u1"), KX_FEED_AGAIN);

    /* nobody has heard of it for too long */

    seq = s->seq;
    now += TIMEOUT - 1;
    assert_int_equal(user("u1"), KX_FEED_REPEATED);
    now++;
    assert_int_equal(user("u1"), KX_FEED_AGAIN);
    assert_int_not_equal(s->seq, seq);

    assert_int_equal(answered(seq, filled(1, 'a')), KX_DECLINED);
    assert_int_equal(answered(s->seq, filled(1, 'b')), KX_OK);

    assistant("a1");
    assert_int_equal(ad_of("a1"), 'b');
    verify();
}


static void
test_regenerate(void **state)
{
    double    revenue;
    uint32_t  seq;

    user("u1");
    seq = s->seq;
    answered(seq, filled(2, 'a'));
    assert_int_equal(assistant("a1"), KX_FEED_PAIRED);
    assert_int_equal(ad_of("a1"), 'a');

    /* the next answer without being asked for again gets none */

    assert_int_equal(assistant("a2"), KX_FEED_STORED);
    assert_int_equal(ad_of("a2"), 0);
    assert_int_equal(ad_of("a1"), 'a');

    /* one of an assistant with the id of a user's message */

    assert_int_equal(assistant("u1"), KX_FEED_REPEATED);
    assert_int_equal(assistant("b1"), KX_FEED_STORED);
    assert_int_equal(ad_of("b1"), 0);

    /* no second preload, and the answer that replaces another inherits */

    assert_int_equal(user("u1"), KX_FEED_REPEATED);
    assert_int_equal(s->seq, seq);
    assert_int_equal(s->turn, KX_TURN_FILLED);
    assert_int_equal(ad_of("a1"), 'a');

    assert_int_equal(assistant("a3"), KX_FEED_PAIRED);
    assert_int_equal(ad_of("a3"), 'a');
    assert_int_equal(ad.nbids, 2);
    assert_int_equal(ad_of("a1"), 0);
    assert_int_equal(all_ads(), 1);

    assistant("a4");
    assert_int_equal(ad_of("a3"), 'a');
    assert_int_equal(ad_of("a4"), 0);

    /* asked for again, and never answered: nothing is lost by that */

    user("u1");
    user("u2");
    assert_int_equal(ad_of("a3"), 'a');
    answered(s->seq, filled(1, 'b'));
    assistant("a5");
    assert_int_equal(ad_of("a3"), 'a');
    assert_int_equal(ad_of("a5"), 'b');
    assert_int_equal(bid_known('a', 1, &revenue), KX_OK);
    assert_true(revenue == 0.25);
    assert_int_equal(all_ads(), 2);
    assert_true(same(&ads[0].id, "a3"));
    assert_true(same(&ads[1].id, "a5"));
    verify();
}


static void
test_ads_leave_with_their_messages(void **state)
{
    double     revenue;
    unsigned   i;
    kx_str_t   id, content;

    user("u");
    answered(s->seq, filled(1, 'a'));
    assistant("a");
    user("u0");

    for (i = 1; i < 29; i++) {
        assistant(name("x", i));
        assert_int_equal(ad_of("a"), 'a');
    }

    assert_int_equal(bid_known('a', 0, &revenue), KX_OK);

    assistant("x29");
    assert_int_equal(ad_of("a"), 0);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(bid_known('a', 0, &revenue), KX_DECLINED);

    /* for want of room */

    user("u1");
    answered(s->seq, filled(1, 'b'));
    assistant("b");
    assert_int_equal(ad_of("b"), 'b');

    memset(large, 'x', sizeof(large));
    id = str("large");
    content.data = large;
    content.len = KX_MAX_CONTENT;
    say_long(KX_ROLE_USER, &id, &content, 0, 0);
    assert_int_equal(ad_of("b"), 'b');

    id = str("larger");
    say_long(KX_ROLE_USER, &id, &content, 0, 0);
    assert_int_equal(all_messages(), 1);
    assert_int_equal(ad_of("b"), 0);
    verify();
}


static void
test_an_ad_for_each_answer(void **state)
{
    unsigned  i, j, n;

    for (i = 0; i < 40; i++) {
        user(name("u", i));
        answered(s->seq, filled(4, 'A' + i));
        assistant(name("a", i));

        n = all_ads();
        assert_int_equal(n, i < 15 ? i + 1 : 15);

        for (j = 0; j < n; j++) {
            assert_true(same(&ads[j].id, name("a", i + 1 - n + j)));
            assert_int_equal(ads[j].nbids, 4);
            assert_int_equal(ads[j].bids[3].id[0], 'A' + i + 1 - n + j);
        }
    }

    verify();
}


static void
test_ad_by_placement(void **state)
{
    size_t     len;
    unsigned   n;
    kx_str_t   id, long_id;

    static const kx_str_t  others[] = {
        kx_string("elsewhere"),
        kx_string("bottomAd")
    };

    memset(large, 'i', sizeof(large));
    long_id.data = large;
    long_id.len = KX_API_MAX_MESSAGE_ID;

    user("u1");
    answered(s->seq, filled(4, 'a'));
    say_long(KX_ROLE_ASSISTANT, &long_id, &others[0], 0, 0);

    assert_int_equal(kx_feed_ad(t, s, &long_id, placements, 4, &ad), KX_OK);
    assert_int_equal(ad.nbids, 4);
    assert_int_equal(ad.bids[2].id[1], 2);
    assert_int_equal(ad.bids[2].placement, 2);
    assert_true(ad.bids[2].revenue == 0.5);

    /* another location has other placements */

    assert_int_equal(kx_feed_ad(t, s, &long_id, others, 2, &ad), KX_OK);
    assert_int_equal(ad.nbids, 1);
    assert_int_equal(ad.bids[0].id[1], 1);
    assert_int_equal(ad.bids[0].placement, 1);

    assert_int_equal(kx_feed_ad(t, s, &long_id, others, 1, &ad),
                     KX_DECLINED);
    assert_int_equal(kx_feed_ads(t, s, others, 1, ads, ids, sizeof(ids)), 0);
    assert_int_equal(kx_feed_ads(t, s, others, 2, ads, ids, sizeof(ids)), 1);

    /* ids that are none of its own */

    id = long_id;
    id.len--;
    assert_int_equal(kx_feed_ad(t, s, &id, placements, 4, &ad), KX_DECLINED);
    id.len = 0;
    assert_int_equal(kx_feed_ad(t, s, &id, placements, 4, &ad), KX_DECLINED);
    id.len = KX_API_MAX_MESSAGE_ID + 1;
    assert_int_equal(kx_feed_ad(t, s, &id, placements, 4, &ad), KX_DECLINED);
    assert_int_equal(ad_of("u1"), 0);

    /* what does not fit is left out */

    user("u2");
    answered(s->seq, filled(1, 'b'));
    assistant("a2");

    for (len = 0; len <= 258; len++) {
        unsigned char  *buf;

        buf = malloc(len + 1);
        n = kx_feed_ads(t, s, placements, 4, ads, buf, len);

        assert_int_equal(n, len < 2 ? 0 : len < 258 ? 1 : 2);
        assert_true(n == 0 || ads[n - 1].id.len == 2 || len == 256
                    || len == 257);
        free(buf);
    }
}


static void
test_bids(void **state)
{
    double  revenue;

    user("u1");
    assert_int_equal(bid_known('a', 0, &revenue), KX_DECLINED);

    answered(s->seq, filled(3, 'a'));

    revenue = 0;
    assert_int_equal(bid_known('a', 0, &revenue), KX_OK);
    assert_true(revenue < 0);
    assert_int_equal(bid_known('a', 2, &revenue), KX_OK);
    assert_true(revenue == 0.5);
    assert_int_equal(bid_known('a', 3, &revenue), KX_DECLINED);

    /* lost without an answer to it */

    user("u2");
    assert_int_equal(bid_known('a', 0, &revenue), KX_DECLINED);

    /* paired, it is known for as long as its message */

    answered(s->seq, filled(3, 'b'));
    assistant("a2");
    user("u3");
    revenue = 0;
    assert_int_equal(bid_known('b', 0, &revenue), KX_OK);
    assert_true(revenue < 0);
    assert_int_equal(bid_known('b', 2, &revenue), KX_OK);
    assert_true(revenue == 0.5);
}


static void
test_assistant_of_traffic(void **state)
{
    kx_str_t       id;
    unsigned       i, n;
    unsigned char  digest[KX_ID_LEN], written[KX_MESSAGE_ID_LEN + 1];

    /* the result first: the id is that of the client */

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);
    answered(s->seq, filled(1, 'a'));

    id = str("as the client knows it");
    assert_int_equal(kx_feed_assistant(t, s, s->seq - 1, reply1, &id),
                     KX_DECLINED);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(kx_feed_assistant(t, s, s->seq, reply1, &id), KX_OK);
    assert_true(s->paired);
    assert_int_equal(ad_of("as the client knows it"), 'a');

    /* the answer that replaces it */

    id = str("anew");
    assert_int_equal(kx_feed_assistant(t, s, s->seq, reply2, &id), KX_OK);
    assert_int_equal(ad_of("anew"), 'a');
    assert_int_equal(ad_of("as the client knows it"), 0);
    assert_int_equal(all_ads(), 1);

    /* the assistant first */

    kx_session_turn(s, traffic2, 0, now, WALL, TIMEOUT);
    id = str("too early");
    assert_int_equal(kx_feed_assistant(t, s, s->seq, reply1, &id), KX_AGAIN);
    assert_int_equal(all_ads(), 1);

    answered(s->seq, filled(1, 'b'));

    kx_message_id(written, reply1);
    written[KX_MESSAGE_ID_LEN] = '\0';
    assert_int_equal(ad_of((char *) written), 'b');
    assert_int_equal(ad_of("too early"), 0);
    assert_int_equal(ad_of("anew"), 'a');

    /* no fill */

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);
    answered(s->seq, answer(KX_AD_NO_FILL));
    assert_int_equal(kx_feed_assistant(t, s, s->seq, reply1, &id),
                     KX_DECLINED);
    assert_int_equal(all_ads(), 2);

    /* no more than there are messages in a window */

    for (i = 0; i < 40; i++) {
        memset(digest, i + 1, KX_ID_LEN);
        kx_session_turn(s, digest, 0, now, WALL, TIMEOUT);
        answered(s->seq, filled(1, i));
        id = str(name("t", i));
        assert_int_equal(kx_feed_assistant(t, s, s->seq, digest, &id), KX_OK);
    }

    n = all_ads();
    assert_int_equal(n, KX_MAX_MESSAGES);
    assert_true(same(&ads[0].id, "t10"));
    assert_true(same(&ads[n - 1].id, "t39"));
    verify();
}


static void
test_traffic_supersedes(void **state)
{
    uint32_t  seq;

    user("u1");
    seq = s->seq;

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);

    assert_int_equal(answered(seq, filled(1, 'a')), KX_DECLINED);
    assert_int_equal(all_ads(), 0);

    /* and the other way round */

    seq = s->seq;
    assert_int_equal(user("u2"), KX_FEED_ASK);
    assert_int_equal(answered(seq, filled(1, 'a')), KX_DECLINED);

    assistant("a2");
    assert_int_equal(answered(s->seq, filled(1, 'b')), KX_OK);
    assert_int_equal(ad_of("a2"), 'b');
    verify();
}


static void
test_traffic_and_older_messages(void **state)
{
    /* a bid is never moved to an older message, protocol.md 6.1 */

    user("u1");
    answered(s->seq, answer(KX_AD_NO_FILL));
    assistant("a1");

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);
    kx_feed_traffic(t, s);
    assert_int_equal(answered(s->seq, filled(1, 'a')), KX_OK);

    assert_int_equal(ad_of("a1"), 0);
    assert_int_equal(all_ads(), 0);
}


static void
test_superseded(void **state)
{
    kx_str_t             data;
    uint32_t             seq;
    kx_preload_answer_t  a;

    user("u1");
    seq = s->seq;
    user("u2");
    assistant("a2");

    a = filled(2, 'a');
    a.disable = 1;
    a.has_session = 1;
    memcpy(a.session, server1, KX_ID_LEN);
    data = str("{\"name\":\"ad.filled\"}");

    assert_int_equal(kx_feed_answer(t, s, seq, &a, placements, &data, 1),
                     KX_DECLINED);
    assert_int_equal(all_events(0), 0);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(s->turn, KX_TURN_PENDING);
    assert_false(s->disabled);
    assert_true(s->has_server_id);
    assert_memory_equal(s->server_id, server1, KX_ID_LEN);
}


static void
test_events_of_an_answer(void **state)
{
    kx_str_t             data[2];
    kx_preload_answer_t  a;

    data[0] = str("{\"name\":\"ad.filled\",\"code\":\"inlineAd\"}");
    data[1] = str("{\"name\":\"ad.filled\",\"code\":\"bottomAd\"}");

    user("u1");
    a = filled(2, 'a');
    assert_int_equal(kx_feed_answer(t, s, s->seq, &a, placements, data, 2),
                     KX_OK);

    assert_int_equal(all_events(0), 2);
    assert_int_equal(events[0].number, 1);
    assert_true(same(&events[0].data, (char *) data[0].data));
    assert_int_equal(events[1].number, 2);
    assert_true(same(&events[1].data, (char *) data[1].data));

    /* a second answer to the same call */

    assert_int_equal(kx_feed_answer(t, s, s->seq, &a, placements, data, 2),
                     KX_DECLINED);
    assert_int_equal(all_events(0), 2);
    verify();
}


static void
test_disabled(void **state)
{
    kx_str_t             data;
    kx_preload_answer_t  a;

    user("u1");
    answered(s->seq, filled(1, 'a'));
    assistant("a1");
    user("u2");

    a = answer(KX_AD_ERROR);
    a.disable = 1;
    data = str("{\"name\":\"ad.error\"}");
    assert_int_equal(kx_feed_answer(t, s, s->seq, &a, placements, &data, 1),
                     KX_OK);
    assert_true(s->disabled);
    assert_int_equal(all_events(0), 1);

    /* messages are stored, and what is paired stays */

    assert_int_equal(assistant("a2"), KX_FEED_STORED);
    assert_int_equal(user("u3"), KX_FEED_DISABLED);
    assert_int_equal(user("u3"), KX_FEED_DISABLED);
    assert_int_equal(user("u2"), KX_FEED_REPEATED);
    assert_int_equal(all_messages(), 5);
    assert_int_equal(s->turn, KX_TURN_NONE);
    assert_int_equal(ad_of("a1"), 'a');
    assert_int_equal(ad_of("a2"), 0);
}


static kx_init_answer_t
init_answer(unsigned enabled)
{
    kx_init_answer_t  a;

    memset(&a, 0, sizeof(kx_init_answer_t));

    a.applied = 1;
    a.enabled = enabled;
    a.report_errors = 1;

    return a;
}


static void
test_init(void **state)
{
    kx_str_t          data;
    kx_init_answer_t  a;

    data = str("{\"name\":\"ad.error\",\"payload\":{}}");

    /* nothing to tell of */

    kx_session_init_claim(s, now, TIMEOUT);
    memset(&a, 0, sizeof(kx_init_answer_t));
    a.failed = 1;
    kx_feed_init_answer(t, s, s->init_seq, &a, &data);
    assert_int_equal(s->init, KX_INIT_DUE);
    assert_int_equal(all_events(0), 0);

    kx_session_init_claim(s, now, TIMEOUT);
    a.failed = 0;
    kx_feed_init_answer(t, s, s->init_seq, &a, &data);
    assert_int_equal(s->init, KX_INIT_DONE);
    assert_int_equal(all_events(0), 0);

    make(LARGE);
    open_one(1);
    kx_session_init_claim(s, now, TIMEOUT);
    a = init_answer(1);
    a.preload_timeout = 8000;
    kx_feed_init_answer(t, s, s->init_seq, &a, &data);
    assert_int_equal(s->preload_timeout, 8000);
    assert_int_equal(all_events(0), 0);
    assert_false(s->disabled);

    /* one event, however often it is told */

    make(LARGE);
    open_one(1);
    user("u1");
    kx_session_init_claim(s, now, TIMEOUT);
    a = init_answer(0);
    kx_feed_init_answer(t, s, s->init_seq, &a, &data);
    assert_true(s->disabled);
    assert_int_equal(all_events(0), 1);
    assert_true(same(&events[0].data, (char *) data.data));

    kx_feed_init_answer(t, s, s->init_seq, &a, &data);
    assert_int_equal(all_events(0), 1);

    /* what is under way is not cancelled by it */

    assert_int_equal(answered(s->seq, filled(1, 'a')), KX_OK);
    assistant("a1");
    assert_int_equal(ad_of("a1"), 'a');
    verify();
}


static void
test_init_late(void **state)
{
    kx_str_t          data;
    uint32_t          seq;
    kx_init_answer_t  a;

    /* of two that were sent the one that is given up answers after all */

    data = str("{\"name\":\"ad.error\"}");

    kx_session_init_claim(s, now, TIMEOUT);
    seq = s->init_seq;
    now += TIMEOUT;
    assert_int_equal(kx_session_init_claim(s, now, TIMEOUT), KX_OK);

    a = init_answer(1);
    kx_feed_init_answer(t, s, s->init_seq, &a, &data);
    assert_int_equal(s->init, KX_INIT_DONE);

    a = init_answer(0);
    kx_feed_init_answer(t, s, seq, &a, &data);

    /* it is disabled, and that is told once: protocol.md 2.4 */

    assert_true(s->disabled);
    assert_int_equal(all_events(0), 1);
}


static void
test_take(void **state)
{
    uint32_t    seq;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    user("u1");
    seq = s->seq;

    assert_int_equal(kx_feed_take(t, s, seq, OTHER, OTHER), KX_DECLINED);
    assert_int_equal(kx_feed_take(t, s, seq - 1, PID, OTHER), KX_DECLINED);
    assert_int_equal(kx_feed_take(t, s, seq + 1, PID, OTHER), KX_DECLINED);
    assert_int_equal(root->owner, PID);

    /* one of them has it */

    assert_int_equal(kx_feed_take(t, s, seq, PID, OTHER), KX_OK);
    assert_int_equal(root->owner, OTHER);
    assert_int_equal(kx_feed_take(t, s, seq, PID, OTHER + 1), KX_DECLINED);
    assert_int_equal(s->seq, seq);
    assert_int_equal(s->turn, KX_TURN_PENDING);
    assert_int_equal(root->trigger, 1);

    assert_int_equal(answered(seq, filled(1, 'a')), KX_OK);

    /* there is nothing left to take over */

    assert_int_equal(kx_feed_take(t, s, seq, OTHER, PID), KX_DECLINED);

    user("u2");
    seq = s->seq;
    assert_int_equal(root->owner, PID);
    kx_session_cancel(s, seq);
    assert_int_equal(kx_feed_take(t, s, seq, PID, OTHER), KX_DECLINED);
    verify();
}


static void
test_events(void **state)
{
    unsigned   i, n;
    kx_str_t   data;

    for (i = 1; i <= 200; i++) {
        data = str(name("event ", i));
        assert_int_equal(kx_feed_event(t, s, &data), i);

        n = all_events(0);
        assert_int_equal(n, i < 64 ? i : 64);
        assert_int_equal(lost, i < 64 ? 0 : i - 64);
        assert_int_equal(events[0].number, i - n + 1);
        assert_true(same(&events[0].data, name("event ", i - n + 1)));
        assert_int_equal(events[n - 1].number, i);
        assert_true(same(&events[n - 1].data, name("event ", i)));
    }

    /* after each number: 137 to 200 are there */

    for (i = 0; i <= 210; i++) {
        n = all_events(i);

        assert_int_equal(n, i < 136 ? 64 : i < 200 ? 200 - i : 0);
        assert_int_equal(lost, i < 136 ? 136 - i : 0);

        if (n) {
            assert_int_equal(events[0].number, i < 136 ? 137 : i + 1);
            assert_int_equal(events[n - 1].number, 200);
        }
    }

    assert_int_equal(all_events(UINT64_MAX), 0);
    verify();
}


static void
test_events_in_parts(void **state)
{
    size_t      len;
    uint64_t    after;
    unsigned    i, n, seen;
    kx_str_t    data;

    for (i = 1; i <= 100; i++) {
        data = str(name("event ", i));
        kx_feed_event(t, s, &data);
    }

    /* as many as fit into the array */

    after = 0;
    seen = 0;

    for ( ;; ) {
        n = kx_feed_events(t, s, after, events, 7, event_text,
                           sizeof(event_text), &lost);
        if (n == 0) {
            break;
        }

        assert_int_equal(lost, after ? 0 : 36);
        assert_int_equal(events[0].number, after ? after + 1 : 37);
        assert_true(n <= 7);

        seen += n;
        after = events[n - 1].number;
    }

    assert_int_equal(after, 100);
    assert_int_equal(seen, 64);

    /* and into the memory */

    for (len = 0; len < 60; len++) {
        unsigned char  *buf;

        buf = malloc(len + 1);

        n = kx_feed_events(t, s, 40, events, KX_FEED_EVENTS, buf, len,
                           &lost);
        assert_int_equal(n, len / 8);
        assert_int_equal(lost, 0);

        for (i = 0; i < n; i++) {
            assert_true(same(&events[i].data, name("event ", 41 + i)));
        }

        free(buf);
    }
}


static void
test_events_by_their_size(void **state)
{
    unsigned    i, n;
    uint64_t    bytes;
    kx_str_t    data;

    memset(large, 'e', sizeof(large));

    data.data = large;
    data.len = 0;
    assert_int_equal(kx_feed_event(t, s, &data), 0);
    data.len = KX_API_MAX_EVENT + 1;
    assert_int_equal(kx_feed_event(t, s, &data), 0);
    assert_int_equal(all_events(0), 0);

    data.len = KX_API_MAX_EVENT;

    for (i = 1; i <= 9; i++) {
        assert_int_equal(kx_feed_event(t, s, &data), i);
        assert_int_equal(all_events(0), i < 4 ? i : 4);
        assert_int_equal(lost, i < 4 ? 0 : i - 4);
    }

    /* a small one more and the oldest is gone, all of it */

    data.len = 1;
    assert_int_equal(kx_feed_event(t, s, &data), 10);
    assert_int_equal(all_events(0), 4);
    assert_int_equal(events[0].number, 7);
    assert_int_equal(events[0].data.len, KX_API_MAX_EVENT);
    assert_int_equal(events[3].data.len, 1);

    for (i = 0; i < 300; i++) {
        data.len = 1 + i * 37 % KX_API_MAX_EVENT;
        kx_feed_event(t, s, &data);

        n = all_events(0);
        bytes = 0;

        while (n--) {
            bytes += events[n].data.len;
        }

        assert_true(bytes <= KX_FEED_EVENTS_LEN);
    }

    verify();
}


static void
test_options(void **state)
{
    uint32_t   revision, older;
    kx_str_t   options;

    assert_int_equal(kx_feed_options(t, s, text, &revision), 0);

    options = str("{\"variantId\":\"a\"}");
    assert_int_equal(kx_feed_set_options(t, s, revision + 1, &options),
                     KX_AGAIN);
    assert_int_equal(kx_feed_options(t, s, text, &older), 0);
    assert_int_equal(older, revision);

    assert_int_equal(kx_feed_set_options(t, s, revision, &options), KX_OK);
    assert_int_equal(kx_feed_options(t, s, text, &revision), options.len);
    assert_memory_equal(text, options.data, options.len);
    assert_int_not_equal(revision, older);

    /* somebody else was faster */

    options = str("{\"variantId\":\"bb\"}");
    assert_int_equal(kx_feed_set_options(t, s, older, &options), KX_AGAIN);
    assert_int_equal(kx_feed_set_options(t, s, revision, &options), KX_OK);
    assert_int_equal(kx_feed_set_options(t, s, revision, &options), KX_AGAIN);

    assert_int_equal(kx_feed_options(t, s, text, &revision), options.len);
    assert_memory_equal(text, options.data, options.len);

    /* as long as they may be */

    memset(large, 'o', sizeof(large));
    options.data = large;
    options.len = KX_API_MAX_OPTIONS + 1;
    assert_int_equal(kx_feed_set_options(t, s, revision, &options),
                     KX_DECLINED);

    options.len = KX_API_MAX_OPTIONS;
    assert_int_equal(kx_feed_set_options(t, s, revision, &options), KX_OK);
    assert_int_equal(kx_feed_options(t, s, text, &revision),
                     KX_API_MAX_OPTIONS);
    assert_memory_equal(text, large, KX_API_MAX_OPTIONS);

    assert_int_equal(kx_store_root(t, s)->lists[KX_ITEM_OPTIONS].count, 1);
    verify();
}


static void
test_without_a_root(void **state)
{
    double               revenue;
    kx_str_t             data, id, u, c;
    uint32_t             revision;
    kx_init_answer_t     ia;
    kx_preload_answer_t  a;

    /* what traffic does to a session it does to it without the API as well */

    kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);

    a = filled(2, 'a');
    a.has_session = 1;
    memcpy(a.session, server1, KX_ID_LEN);
    data = str("{\"name\":\"ad.filled\"}");
    id = str("a1");

    assert_int_equal(kx_feed_assistant(t, s, s->seq, reply1, &id), KX_AGAIN);
    assert_int_equal(kx_feed_answer(t, s, s->seq, &a, placements, &data, 1),
                     KX_OK);
    assert_int_equal(s->turn, KX_TURN_FILLED);
    assert_true(s->paired);
    assert_memory_equal(s->server_id, server1, KX_ID_LEN);
    assert_int_equal(kx_feed_assistant(t, s, s->seq, reply2, &id), KX_OK);
    assert_memory_equal(s->assistant, reply2, KX_ID_LEN);
    assert_int_equal(bid_known('a', 1, &revenue), KX_OK);
    assert_int_equal(kx_feed_answer(t, s, s->seq, &a, placements, &data, 1),
                     KX_DECLINED);

    /* there is nothing else */

    assert_int_equal(user("u1"), KX_FEED_NO_ROOM);
    assert_int_equal(assistant("a1"), KX_FEED_NO_ROOM);
    assert_int_equal(s->turn, KX_TURN_FILLED);
    assert_int_equal(all_messages(), 0);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(ad_of("a1"), 0);
    assert_int_equal(kx_feed_event(t, s, &data), 0);
    lost = 1;
    assert_int_equal(all_events(0), 0);
    assert_int_equal(lost, 0);
    assert_int_equal(kx_feed_options(t, s, text, &revision), 0);
    assert_int_equal(kx_feed_set_options(t, s, revision, &data), KX_DECLINED);
    assert_int_equal(kx_feed_identity(t, s, text, &u, &c), KX_DECLINED);

    kx_session_turn(s, traffic2, 0, now, WALL, TIMEOUT);
    assert_int_equal(kx_feed_take(t, s, s->seq, 0, PID), KX_DECLINED);

    kx_session_init_claim(s, now, TIMEOUT);
    ia = init_answer(0);
    kx_feed_init_answer(t, s, s->init_seq, &ia, &data);
    assert_true(s->disabled);
    assert_null(kx_store_root(t, s));
    verify();
}


static void
test_closed_with_its_store(void **state)
{
    user("u1");
    answered(s->seq, filled(1, 'a'));
    assistant("a1");

    kx_session_table_close(t, s);
    verify();

    open_one(1);
    assert_int_equal(all_messages(), 0);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(all_events(0), 0);
    assert_int_equal(user("u1"), KX_FEED_ASK);
    verify();
}


static void
test_end(void **state)
{
    unsigned       created;
    kx_str_t       data;
    uint32_t       block;
    kx_session_t  *other;
    unsigned char  key[KX_ID_LEN], secret_id[KX_ID_LEN];

    open_one(1);
    data = str("{\"name\":\"ad.viewed\"}");

    user("u1");
    answered(s->seq, filled(1, 'a'));
    assistant("a1");
    assert_int_equal(kx_feed_event(t, s, &data), 1);

    block = s->root;
    memcpy(secret_id, kx_store_root(t, s)->id, KX_ID_LEN);
    memcpy(key, s->key, KX_ID_LEN);

    kx_feed_end(t, s);
    verify();

    /* what is left are its events, and for listeners only */

    assert_null(kx_session_table_find(t, key, now, IDLE));
    assert_null(kx_store_find(t, block, secret_id, now, IDLE));
    assert_ptr_equal(kx_store_peek(t, block, secret_id), s);
    assert_int_equal(all_events(0), 1);
    assert_int_equal(all_messages(), 0);
    assert_int_equal(all_ads(), 0);
    assert_int_equal(kx_store_root(t, s)->blocks, 2);

    /* another one takes its place */

    other = kx_session_table_open(t, key, s->user, now, WALL, IDLE, &created);
    assert_non_null(other);
    assert_true(created);
    assert_null(kx_store_peek(t, block, secret_id));
    verify();

    /* without events, or without a root, there is nothing to keep */

    s = other;
    kx_feed_end(t, s);
    assert_null(kx_session_table_find(t, key, now, IDLE));
    verify();
}


static void
test_end_takes_its_time(void **state)
{
    kx_str_t       data;
    uint32_t       block;
    kx_session_t  *one;
    unsigned char  secret_id[KX_ID_LEN];

    open_one(1);
    data = str("{\"name\":\"ad.viewed\"}");
    assert_int_equal(kx_feed_event(t, s, &data), 1);

    one = s;
    block = s->root;
    memcpy(secret_id, kx_store_root(t, s)->id, KX_ID_LEN);

    kx_feed_end(t, s);

    /* when a new one comes, what has been closing for long enough goes */

    now += KX_SESSION_CLOSING;
    open_one(2);
    assert_ptr_equal(kx_store_peek(t, block, secret_id), one);

    now++;
    open_one(3);
    assert_null(kx_store_peek(t, block, secret_id));
    verify();
}


static void
test_room_of_others(void **state)
{
    unsigned       i;
    kx_str_t       id, content;
    kx_session_t  *one;
    unsigned char  key[KX_ID_LEN];

    make(SMALL);

    for (i = 1; i <= 5; i++) {
        open_one(i);
        assert_int_equal(user("u1"), KX_FEED_ASK);
    }

    /* the least recently used ones go, and never the one that asks */

    one = s;
    memset(large, 'x', sizeof(large));
    id = str("u2");
    content.data = large;
    content.len = 9000;

    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 0, 0),
                     KX_FEED_ASK);
    assert_int_equal(all_messages(), 2);
    assert_true(t->evicted > 0);

    memset(key, 5, KX_ID_LEN);
    assert_ptr_equal(kx_session_table_find(t, key, now, IDLE), one);
    memset(key, 1, KX_ID_LEN);
    assert_null(kx_session_table_find(t, key, now, IDLE));
    verify();
}


static void
test_no_room(void **state)
{
    double               revenue;
    uint32_t             seq, revision;
    unsigned             i, n;
    kx_str_t             id, content, data;
    kx_init_answer_t     ia;
    kx_preload_answer_t  a;

    make(SMALL);
    open_one(1);

    memset(large, 'x', sizeof(large));

    user("u1");
    seq = s->seq;

    data.data = large;
    data.len = 10;
    assert_int_equal(kx_feed_options(t, s, text, &revision), 0);
    assert_int_equal(kx_feed_set_options(t, s, revision, &data), KX_OK);

    /* events until there are no blocks */

    data.len = 200;

    for (i = 1; kx_feed_event(t, s, &data); i++) {
        assert_true(i < KX_FEED_EVENTS);
    }

    n = all_events(0);
    assert_int_equal(n, i - 1);
    assert_int_equal(kx_store_root(t, s)->events, i - 1);

    /* nothing changes by what does not fit */

    content.data = large;
    content.len = 3000;
    id = str("u2");

    assert_int_equal(say_long(KX_ROLE_USER, &id, &content, 0, 0),
                     KX_FEED_NO_ROOM);
    assert_int_equal(s->seq, seq);
    assert_int_equal(s->turn, KX_TURN_PENDING);
    assert_int_equal(kx_store_root(t, s)->messages, 1);
    assert_int_equal(all_messages(), 1);

    assert_int_equal(kx_feed_options(t, s, text, &revision), 10);
    assert_int_equal(kx_feed_set_options(t, s, revision, &content),
                     KX_DECLINED);
    assert_int_equal(kx_feed_options(t, s, text, &revision), 10);
    data.len = 10;
    assert_int_equal(kx_feed_set_options(t, s, revision + 1, &data),
                     KX_AGAIN);

    assert_int_equal(kx_feed_event(t, s, &content), 0);

    /* an answer counts without its event */

    a = filled(2, 'a');
    assert_int_equal(kx_feed_answer(t, s, seq, &a, placements, &content, 1),
                     KX_OK);
    assert_int_equal(s->turn, KX_TURN_FILLED);
    assert_int_equal(bid_known('a', 1, &revenue), KX_OK);
    assert_int_equal(all_events(0), n);

    kx_session_init_claim(s, now, TIMEOUT);
    ia = init_answer(0);
    kx_feed_init_answer(t, s, s->init_seq, &ia, &content);
    assert_true(s->disabled);
    assert_int_equal(all_events(0), n);

    id = str("a1");
    assert_int_equal(kx_feed_assistant(t, s, seq, reply1, &id), KX_OK);
    assert_true(s->paired);

    assert_int_equal(t->evicted, 0);
    verify();
}


static void
test_no_room_to_open(void **state)
{
    size_t     n;
    kx_str_t   u, c;
    unsigned   opened, refused;

    static const unsigned char  id[KX_ID_LEN] = "an id of a root";

    memset(large, 'n', sizeof(large));

    u.data = large;
    u.len = KX_MAX_IDENTITY;
    c = u;

    opened = 0;
    refused = 0;

    for (n = 1024; n < 8192; n += 64) {
        free(mem);
        assert_int_equal(posix_memalign((void **) &mem, 64, n), 0);

        t = kx_session_table_create(mem, n, SHARE);
        if (t == NULL) {
            continue;
        }

        session(1);
        kx_session_turn(s, traffic1, 0, now, WALL, TIMEOUT);
        answered(s->seq, filled(1, 'a'));
        kx_session_pair(s, s->seq, reply1);

        if (kx_feed_open(t, s, id, &u, &c) == KX_OK) {
            assert_non_null(kx_store_root(t, s));
            assert_int_equal(kx_feed_identity(t, s, text, &u, &c), KX_OK);
            assert_int_equal(all_ads(), 1);

            u.data = large;
            c.data = large;
            opened++;

        } else {
            assert_null(kx_store_root(t, s));
            assert_int_equal(opened, 0);
            refused++;
        }

        verify();
    }

    assert_true(opened > 0);
    assert_true(refused > 0);
}


static unsigned
draw(unsigned n)
{
    chance = chance * 1664525 + 1013904223;

    return (chance >> 8) % n;
}


/* the memory is shared, and what it holds need not make sense */

static void
test_damage(void **state)
{
    unsigned              i, j, round;
    kx_str_t              data, id, u, c;
    uint64_t              len;
    uint32_t              revision;
    unsigned char        *store, *copy, key[KX_ID_LEN];
    kx_init_answer_t      ia;
    kx_session_bid_t      bid;
    kx_preload_answer_t   a;

    make(4 * SMALL);
    open_one(1);

    for (i = 0; i < 8; i++) {
        user(name("u", i));
        data = str(name("event", i));
        a = filled(2, 'a' + i);
        kx_feed_answer(t, s, s->seq, &a, placements, &data, 1);
        assistant(name("a", i));
    }

    user("u8");
    data = str("{\"variantId\":\"a\"}");
    kx_feed_set_options(t, s, 0, &data);

    copy = malloc(size);
    memcpy(copy, mem, size);

    store = kx_session_table_store(t, &len);
    assert_non_null(store);

    memset(key, 1, KX_ID_LEN);
    chance = 1;

    for (round = 0; round < 8000; round++) {
        memcpy(mem, copy, size);

        for (i = 0; i <= round % 5; i++) {

            /* of blocks that are used, more often what leads on */

            j = draw(40) * KX_STORE_BLOCK + sizeof(kx_store_t)
                + (draw(2) ? draw(24) : draw(KX_STORE_BLOCK));

            if (draw(2)) {
                store[j] = (unsigned char) draw(256);

            } else {
                store[j] ^= (unsigned char) (1 << draw(8));
            }
        }

        s = kx_session_table_find(t, key, now, IDLE);
        if (s == NULL) {
            continue;
        }

        data = str("{\"variantId\":\"b\"}");
        id = str("a3");

        (void) all_messages();
        (void) all_events(draw(10));
        (void) all_ads();
        (void) kx_feed_ad(t, s, &id, placements, 4, &ad);
        (void) kx_feed_bid(t, s, key, &bid, text, &u);
        (void) kx_feed_identity(t, s, text, &u, &c);
        (void) kx_feed_options(t, s, text, &revision);
        (void) kx_feed_set_options(t, s, revision, &data);
        (void) kx_feed_take(t, s, s->seq, PID, OTHER);
        (void) user("u8");
        (void) assistant("a8");
        a = filled(2, 'z');
        (void) kx_feed_answer(t, s, s->seq, &a, placements, &data, 1);
        (void) kx_feed_assistant(t, s, s->seq, reply1, &id);
        (void) kx_feed_event(t, s, &data);
        ia = init_answer(0);
        kx_feed_init_answer(t, s, s->init_seq, &ia, &data);

        for (i = 0; i < 24; i++) {
            (void) assistant(name("b", i));
        }

        assert_int_not_equal(kx_session_table_check(t, size, SHARE),
                             KX_ERROR);

        s = kx_session_table_find(t, key, now, IDLE);

        if (s && kx_store_root(t, s)) {
            (void) user("u9");
            assert_true(all_messages() <= KX_MAX_MESSAGES);
        }
    }

    free(copy);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(test_open, setup, teardown),
        cmocka_unit_test_setup_teardown(test_open_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_open_after_traffic,
                                        setup_traffic, teardown),
        cmocka_unit_test_setup_teardown(test_open_within_a_turn,
                                        setup_traffic, teardown),
        cmocka_unit_test_setup_teardown(test_open_with_an_unpaired_ad,
                                        setup_traffic, teardown),
        cmocka_unit_test_setup_teardown(test_messages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_messages_that_do_not_fit, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_messages_of_all_sizes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_messages_beyond_measure, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_window, setup, teardown),
        cmocka_unit_test_setup_teardown(test_turn_that_left_the_window, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_text_budget, setup, teardown),
        cmocka_unit_test_setup_teardown(test_repeated, setup, teardown),
        cmocka_unit_test_setup_teardown(test_repeated_after_a_failure, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_regenerate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ads_leave_with_their_messages,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_ad_for_each_answer, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_ad_by_placement, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_bids, setup, teardown),
        cmocka_unit_test_setup_teardown(test_assistant_of_traffic, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_traffic_supersedes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_traffic_and_older_messages,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_superseded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events_of_an_answer, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_disabled, setup, teardown),
        cmocka_unit_test_setup_teardown(test_init, setup, teardown),
        cmocka_unit_test_setup_teardown(test_init_late, setup, teardown),
        cmocka_unit_test_setup_teardown(test_take, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events_in_parts, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_events_by_their_size, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_options, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_a_root, setup_traffic,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_closed_with_its_store, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_end_takes_its_time, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_room_of_others, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_no_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_room_to_open, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_damage, setup, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
