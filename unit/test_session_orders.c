/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * All orders of what may happen to a session: what is seen of it after each
 * step is what a plain model of the rules says (protocol.md 2.3, 2.4, 4.3, 5,
 * 6.1, 7).
 */


#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include "feed.h"

#include <cmocka.h>


#define DEPTH    6                   /* steps of all kinds */
#define FURTHER  7                   /* of those that pairing depends on */
#define MOST     FURTHER
#define EVENTS   (2 * MOST)

#define SIZE     16384
#define SHARE    48
#define TIMEOUT  16000
#define IDLE     600000
#define NOW      1000000ULL
#define WALL     1772475611045ULL

#define check(what)                                                           \
    if (!(what)) {                                                            \
        differs(#what, __LINE__);                                             \
    }


typedef enum {
    DO_USER = 0,
    DO_TRACK_ONLY,
    DO_ASSISTANT,
    DO_AGAIN,                        /* the newest user message */
    DO_AGAIN_TRACK_ONLY,
    DO_FILL,                         /* answers to the newest call */
    DO_NO_FILL,
    DO_ERROR,
    DO_PERMANENT,
    DO_FILL_OLD,                     /* to the oldest one without an answer */
    DO_PERMANENT_OLD,
    DO_ENABLE,                       /* answers to /init */
    DO_DISABLE,
    DO_TIMEOUT,                      /* the turn's preload is given up */
    DO_CLOSE,
    DO_ALL
} do_e;

static const char  *names[DO_ALL] = {
    "user", "track-only", "assistant", "again", "again-track-only", "fill",
    "no-fill", "error", "permanent", "fill-old", "permanent-old", "enable",
    "disable", "timeout", "close"
};


/* the model: messages, calls and sessions have numbers from 1 on */

typedef enum {
    NOTHING = 0,                     /* asked for, or it has failed */
    ASKED,
    FILLED,
    UNFILLED
} preload_e;

typedef enum {
    FILLED_ONE = 0,
    FILLED_TWO,
    NO_FILL,
    FAILED,
    BANNED,
    INIT_DISABLED,
    KINDS
} event_e;

typedef struct {
    unsigned    number;
    unsigned    user;
} message_t;

typedef struct {
    unsigned    track_only;
    unsigned    answered;
    unsigned    session;             /* that it was made for */
} call_t;

typedef struct {
    unsigned    message;
    unsigned    call;
} pair_t;

typedef struct {
    event_e     kind;
    unsigned    number;              /* of the call or of the session */
} event_t;

typedef struct {
    unsigned    done;                /* steps */
    unsigned    written;             /* messages */
    unsigned    ncalls;
    unsigned    session;
    call_t      calls[MOST + 1];

    /* of this session */

    preload_e   preload;
    unsigned    current;             /* the call that it is about */
    unsigned    asked;               /* in this step */
    unsigned    paired;
    unsigned    disabled;
    unsigned    init;                /* it has an answer */
    unsigned    server;              /* the call whose sessionId it has */
    const char  *code;

    unsigned    nmessages;
    unsigned    npairs;
    unsigned    nevents;
    message_t   messages[MOST];
    pair_t      pairs[MOST];        /* oldest first */
    event_t     events[EVENTS];
} model_t;


static unsigned char         mem[SIZE] __attribute__((aligned(64)));
static unsigned char         copies[MOST][SIZE];
static kx_session_table_t   *t;
static kx_session_t         *s;

static do_e                  order[MOST];
static unsigned              length;
static unsigned              orders, steps;

static uint32_t              seqs[MOST + 1];    /* of calls */
static char                  ids[MOST + 1][16];
static char                  texts[MOST + 1][32];
static char                  events[KINDS][MOST + 2][32];

static const unsigned char   key[KX_ID_LEN] = "a conversation.";

static const kx_str_t  placements[] = {
    kx_string("inlineAd"),
    kx_string("bottomAd")
};


static void
differs(const char *what, int line)
{
    unsigned  i;

    print_error("after");

    for (i = 0; i < length; i++) {
        print_error(" %s", names[order[i]]);
    }

    print_error(":\n");

    _fail(what, line);
}


/* the rules */

static void
model_open(model_t *m)
{
    m->session++;
    m->preload = NOTHING;
    m->current = 0;
    m->paired = 0;
    m->disabled = 0;
    m->init = 0;
    m->server = 0;
    m->code = "";
    m->nmessages = 0;
    m->npairs = 0;
    m->nevents = 0;
}


static unsigned
model_last_user(const model_t *m)
{
    unsigned  i, last;

    last = 0;

    for (i = 0; i < m->nmessages; i++) {
        if (m->messages[i].user) {
            last = m->messages[i].number;
        }
    }

    return last;
}


static void
model_event(model_t *m, event_e kind, unsigned number)
{
    m->events[m->nevents].kind = kind;
    m->events[m->nevents].number = number;
    m->nevents++;
}


/* protocol.md 6.1, try_pair() */

static unsigned
model_pair(model_t *m)
{
    unsigned   i, n;
    message_t  last;

    if (m->preload != FILLED || m->nmessages == 0) {
        return 0;
    }

    last = m->messages[m->nmessages - 1];

    if (last.user || m->paired) {
        return 0;
    }

    for (i = 0; i < m->npairs; i++) {
        if (m->pairs[i].message == last.number) {
            return 0;
        }
    }

    /* the answer that this one has replaced loses the ad */

    n = 0;

    for (i = 0; i < m->npairs; i++) {
        if (m->pairs[i].call != m->current) {
            m->pairs[n++] = m->pairs[i];
        }
    }

    m->pairs[n].message = last.number;
    m->pairs[n].call = m->current;
    m->npairs = n + 1;
    m->paired = 1;

    return 1;
}


static void
model_message(model_t *m, unsigned user)
{
    m->messages[m->nmessages].number = ++m->written;
    m->messages[m->nmessages].user = user;
    m->nmessages++;
}


static int
model_ask(model_t *m, unsigned track_only)
{
    /* what was there is cancelled, a bid without an answer lost */

    m->preload = NOTHING;
    m->paired = 0;
    m->code = "";

    if (m->disabled) {
        return KX_FEED_DISABLED;
    }

    m->current = ++m->ncalls;
    m->calls[m->current].track_only = track_only;
    m->calls[m->current].answered = 0;
    m->calls[m->current].session = m->session;
    m->preload = ASKED;
    m->asked = m->done;

    return KX_FEED_ASK;
}


static int
model_again(model_t *m, unsigned track_only)
{
    if (m->disabled) {
        return KX_FEED_DISABLED;
    }

    if (m->preload == NOTHING || track_only) {
        (void) model_ask(m, track_only);
        return KX_FEED_AGAIN;
    }

    if (m->preload == FILLED) {
        m->paired = 0;
    }

    return KX_FEED_REPEATED;
}


static int
model_answer(model_t *m, unsigned call, do_e what)
{
    m->calls[call].answered = 1;

    /* another session has begun since */

    if (m->calls[call].session != m->session) {
        return KX_DECLINED;
    }

    /* a transport failure has no sessionId */

    if (what != DO_ERROR) {
        m->server = call;
    }

    if (m->preload != ASKED || m->current != call) {
        return KX_DECLINED;
    }

    switch (what) {

    case DO_FILL:

        if (m->calls[call].track_only) {
            m->preload = UNFILLED;
            m->code = "track_only";
            break;
        }

        m->preload = FILLED;
        model_event(m, FILLED_ONE, call);
        model_event(m, FILLED_TWO, call);
        (void) model_pair(m);
        break;

    case DO_NO_FILL:
        m->preload = UNFILLED;
        m->code = "ad_skipped";
        model_event(m, NO_FILL, call);
        break;

    case DO_ERROR:
        m->preload = NOTHING;
        m->code = "request_failed";
        model_event(m, FAILED, call);
        break;

    default: /* DO_PERMANENT */
        m->preload = NOTHING;
        m->disabled = 1;
        m->code = "geo_disabled";
        model_event(m, BANNED, call);
        break;
    }

    return KX_OK;
}


static unsigned
model_oldest(const model_t *m)
{
    unsigned  i;

    for (i = 1; i <= m->ncalls; i++) {
        if (!m->calls[i].answered) {
            return i;
        }
    }

    return 0;
}


/* an answer needs a call; the oldest one may be the newest: it is one step */

static unsigned
model_can(const model_t *m, do_e what)
{
    switch (what) {

    case DO_AGAIN:
    case DO_AGAIN_TRACK_ONLY:
        return model_last_user(m) != 0;

    case DO_FILL:
    case DO_NO_FILL:
    case DO_ERROR:
    case DO_PERMANENT:
        return m->ncalls && !m->calls[m->ncalls].answered;

    case DO_FILL_OLD:
    case DO_PERMANENT_OLD:
        return model_oldest(m) && model_oldest(m) != m->ncalls;

    case DO_ENABLE:
    case DO_DISABLE:
        return !m->init;

    case DO_TIMEOUT:
        return m->preload == ASKED;

    default:
        return 1;
    }
}


static int
model_do(model_t *m, do_e what)
{
    m->done++;

    switch (what) {

    case DO_USER:
        model_message(m, 1);
        return model_ask(m, 0);

    case DO_TRACK_ONLY:
        model_message(m, 1);
        return model_ask(m, 1);

    case DO_ASSISTANT:
        model_message(m, 0);
        return model_pair(m) ? KX_FEED_PAIRED : KX_FEED_STORED;

    case DO_AGAIN:
        return model_again(m, 0);

    case DO_AGAIN_TRACK_ONLY:
        return model_again(m, 1);

    case DO_FILL_OLD:
        return model_answer(m, model_oldest(m), DO_FILL);

    case DO_PERMANENT_OLD:
        return model_answer(m, model_oldest(m), DO_PERMANENT);

    case DO_ENABLE:
        m->init = 1;
        return 0;

    case DO_DISABLE:
        m->init = 1;
        m->disabled = 1;
        model_event(m, INIT_DISABLED, m->session);
        return 0;

    case DO_TIMEOUT:
        m->preload = NOTHING;
        return 0;

    case DO_CLOSE:
        model_open(m);
        return 0;

    default: /* answers */
        return model_answer(m, m->ncalls, what);
    }
}


/* the code */

static kx_str_t
string(const char *text)
{
    kx_str_t  str;

    str.data = (unsigned char *) text;
    str.len = strlen(text);

    return str;
}


static unsigned
same(const kx_str_t *str, const char *text)
{
    return str->len == strlen(text) && memcmp(str->data, text, str->len) == 0;
}


static void
make_id(unsigned char id[KX_ID_LEN], char kind, unsigned one, unsigned two)
{
    memset(id, kind, KX_ID_LEN);
    id[1] = (unsigned char) one;
    id[2] = (unsigned char) two;
}


static void
code_open(unsigned session)
{
    kx_str_t       user, conversation;
    unsigned       created;
    unsigned char  id[KX_ID_LEN];

    s = kx_session_table_open(t, key, 7, NOW, WALL, IDLE, &created);
    check(s != NULL && created);

    make_id(id, 'r', session, 0);
    user = string("u-1");
    conversation = string("c-1");
    check(kx_feed_open(t, s, id, &user, &conversation) == KX_OK);

    kx_session_table_change(t, s);
    check(kx_session_init_claim(s, NOW, TIMEOUT) == KX_OK);
    kx_session_table_changed(t, s);
}


static int
code_message(const model_t *m, unsigned number, unsigned user,
    unsigned track_only)
{
    unsigned char     digest[KX_ID_LEN];
    kx_api_message_t  am;

    memset(&am, 0, sizeof(kx_api_message_t));

    am.message.role = user ? KX_ROLE_USER : KX_ROLE_ASSISTANT;
    am.message.id = string(ids[number]);
    am.message.content = string(texts[number]);
    am.track_only = track_only;

    make_id(digest, 'm', number, 0);

    return kx_feed_message(t, s, &am, digest, NOW + m->done, WALL + m->done,
                           TIMEOUT, 100 + m->done);
}


static int
code_asked(const model_t *m, int rc)
{
    unsigned  i;

    if (rc == KX_FEED_ASK || rc == KX_FEED_AGAIN) {

        for (i = 1; i < m->ncalls; i++) {
            check(seqs[i] != s->seq);
        }

        seqs[m->ncalls] = s->seq;
    }

    return rc;
}


static int
code_answer(const model_t *m, unsigned call, do_e what)
{
    unsigned             i, n;
    kx_str_t             data[2];
    kx_preload_answer_t  a;

    memset(&a, 0, sizeof(kx_preload_answer_t));

    n = 1;
    a.has_session = 1;
    make_id(a.session, 's', call, 0);

    switch (what) {

    case DO_FILL:

        if (m->calls[call].track_only) {
            n = 0;
            a.outcome = KX_AD_NO_FILL;
            strcpy(a.code, "track_only");
            break;
        }

        n = 2;
        data[0] = string(events[FILLED_ONE][call]);
        data[1] = string(events[FILLED_TWO][call]);

        a.outcome = KX_AD_FILLED;
        a.nbids = 2;

        for (i = 0; i < 2; i++) {
            make_id(a.bids[i].id, 'b', call, i);
            a.bids[i].placement = i;
            a.bids[i].revenue = call + i;
        }

        break;

    case DO_NO_FILL:
        a.outcome = KX_AD_NO_FILL;
        strcpy(a.code, "ad_skipped");
        data[0] = string(events[NO_FILL][call]);
        break;

    case DO_ERROR:
        a.outcome = KX_AD_ERROR;
        a.transport = 1;
        a.has_session = 0;
        strcpy(a.code, "request_failed");
        data[0] = string(events[FAILED][call]);
        break;

    default: /* DO_PERMANENT */
        a.outcome = KX_AD_ERROR;
        a.disable = 1;
        strcpy(a.code, "geo_disabled");
        data[0] = string(events[BANNED][call]);
        break;
    }

    return kx_feed_answer(t, s, seqs[call], &a, placements, data, n);
}


static void
code_init(const model_t *m, unsigned enabled)
{
    kx_str_t          data;
    kx_init_answer_t  a;

    memset(&a, 0, sizeof(kx_init_answer_t));

    a.applied = 1;
    a.enabled = enabled;
    a.report_errors = 1;

    data = string(events[INIT_DISABLED][m->session]);

    kx_feed_init_answer(t, s, s->init_seq, &a, &data);
}


/* m is what is to be afterwards, older what was before */

static int
code_do(const model_t *m, const model_t *older, do_e what)
{
    check(kx_session_table_check(t, SIZE, SHARE) == KX_OK);

    s = kx_session_table_find(t, key, NOW + m->done, IDLE);
    check(s != NULL);

    switch (what) {

    case DO_USER:
        return code_asked(m, code_message(m, m->written, 1, 0));

    case DO_TRACK_ONLY:
        return code_asked(m, code_message(m, m->written, 1, 1));

    case DO_ASSISTANT:
        return code_message(m, m->written, 0, 0);

    case DO_AGAIN:
        return code_asked(m, code_message(m, model_last_user(m), 1, 0));

    case DO_AGAIN_TRACK_ONLY:
        return code_asked(m, code_message(m, model_last_user(m), 1, 1));

    case DO_FILL_OLD:
        return code_answer(older, model_oldest(older), DO_FILL);

    case DO_PERMANENT_OLD:
        return code_answer(older, model_oldest(older), DO_PERMANENT);

    case DO_ENABLE:
    case DO_DISABLE:
        code_init(m, what == DO_ENABLE);
        return 0;

    case DO_TIMEOUT:
        kx_session_table_change(t, s);
        kx_session_cancel(s, seqs[older->current]);
        kx_session_table_changed(t, s);
        return 0;

    case DO_CLOSE:
        kx_session_table_close(t, s);
        code_open(m->session);
        return 0;

    default: /* answers */
        return code_answer(older, older->ncalls, what);
    }
}


/* what changes nothing, whenever it comes */

static void
code_idle(const model_t *m)
{
    unsigned   i;
    message_t  message;

    kx_session_table_change(t, s);

    for (i = 1; i <= m->ncalls; i++) {
        if (m->preload != ASKED || i != m->current) {
            kx_session_cancel(s, seqs[i]);
        }
    }

    kx_session_table_changed(t, s);

    for (i = 0; i < m->nmessages; i++) {
        message = m->messages[i];

        if (message.number == model_last_user(m)) {
            message.user = 0;
        }

        check(code_message(m, message.number, message.user, 0)
              == KX_FEED_REPEATED);
    }

    if (m->preload != ASKED) {
        check(kx_feed_take(t, s, s->seq, 100 + m->asked, 1) == KX_DECLINED);
    }
}


static void
compare_turn(const model_t *m)
{
    unsigned        i;
    kx_bid_t        bids[KX_MAX_BIDS];
    kx_root_t      *root;
    unsigned char   id[KX_ID_LEN];

    check(s->turn == (m->preload == ASKED ? KX_TURN_PENDING
                      : m->preload == FILLED ? KX_TURN_FILLED
                      : m->preload == UNFILLED ? KX_TURN_NO_FILL
                      : KX_TURN_NONE));

    check(s->nbids == (m->preload == FILLED ? 2 : 0));
    check(s->paired == m->paired);
    check(s->disabled == m->disabled);
    check(s->init == (m->init ? KX_INIT_DONE : KX_INIT_SENT));
    check(strcmp(s->code, m->code) == 0);

    check(s->has_server_id == (m->server != 0));
    make_id(id, 's', m->server, 0);
    check(m->server == 0 || memcmp(s->server_id, id, KX_ID_LEN) == 0);

    make_id(id, 'm', model_last_user(m), 0);
    check(model_last_user(m) == 0
          || memcmp(s->user_message, id, KX_ID_LEN) == 0);

    check(kx_session_bids(s, bids, placements, 2)
          == (m->preload == FILLED ? 2 : 0));

    for (i = 0; i < 2 && m->preload == FILLED; i++) {
        make_id(id, 'b', m->current, i);
        check(memcmp(bids[i].id, id, KX_ID_LEN) == 0);
    }

    root = kx_store_root(t, s);
    check(root != NULL);

    make_id(id, 'r', m->session, 0);
    check(memcmp(root->id, id, KX_ID_LEN) == 0);

    if (m->preload == ASKED) {
        check(s->seq == seqs[m->current]);
        check(root->owner == 100 + m->asked);
        check(root->due == NOW + m->asked + KX_FEED_DEBOUNCE);
        check(root->track_only == m->calls[m->current].track_only);
    }
}


static void
compare_messages(const model_t *m)
{
    unsigned        i, n;
    kx_message_t    messages[KX_MAX_MESSAGES], *message;

    static unsigned char  buf[KX_FEED_TEXT_LEN];

    n = kx_feed_messages(t, s, UINT64_MAX, 0, messages, buf, sizeof(buf));
    check(n == m->nmessages);

    for (i = 0; i < n; i++) {
        message = &messages[i];

        check(same(&message->id, ids[m->messages[i].number]));
        check(same(&message->content, texts[m->messages[i].number]));
        check(message->role == (m->messages[i].user ? KX_ROLE_USER
                                                    : KX_ROLE_ASSISTANT));
    }

    /* what a preload says ends with the message that it is for */

    if (model_last_user(m) == 0) {
        return;
    }

    n = kx_feed_messages(t, s, kx_store_root(t, s)->trigger, 1, messages, buf,
                         sizeof(buf));
    check(n > 0);
    check(m->messages[n - 1].number == model_last_user(m));

    for (i = 0; i < n; i++) {
        check(same(&messages[i].id, ids[m->messages[i].number]));
    }
}


static void
compare_bids(const kx_feed_ad_t *ad, unsigned call)
{
    unsigned       i;
    unsigned char  id[KX_ID_LEN];

    check(ad->nbids == 2);

    for (i = 0; i < 2; i++) {
        make_id(id, 'b', call, i);
        check(memcmp(ad->bids[i].id, id, KX_ID_LEN) == 0);
        check(ad->bids[i].placement == i);
        check(ad->bids[i].revenue == call + i);
    }
}


static void
compare_ads(const model_t *m)
{
    kx_str_t          id, message;
    unsigned          i, j, n, call, paired;
    kx_feed_ad_t      ad, ads[KX_MAX_MESSAGES];
    unsigned char     bid_id[KX_ID_LEN], buf[KX_API_MAX_MESSAGE_ID];
    kx_session_bid_t  bid;

    for (i = 1; i <= m->written; i++) {
        call = 0;

        for (j = 0; j < m->npairs; j++) {
            if (m->pairs[j].message == i) {
                call = m->pairs[j].call;
            }
        }

        id = string(ids[i]);

        check(kx_feed_ad(t, s, &id, placements, 2, &ad)
              == (call ? KX_OK : KX_DECLINED));

        if (call) {
            compare_bids(&ad, call);
        }
    }

    n = kx_feed_ads(t, s, placements, 2, ads, buf, sizeof(buf));
    check(n == m->npairs);

    for (i = 0; i < n; i++) {
        check(same(&ads[i].id, ids[m->pairs[i].message]));
        compare_bids(&ads[i], m->pairs[i].call);
    }

    /* bids that a page may speak of */

    for (i = 1; i <= m->ncalls; i++) {
        call = (m->preload == FILLED && m->current == i);
        paired = 0;

        for (j = 0; j < m->npairs; j++) {
            paired |= (m->pairs[j].call == i);
        }

        make_id(bid_id, 'b', i, 1);
        check(kx_feed_bid(t, s, bid_id, &bid, buf, &message)
              == ((call || paired) ? KX_OK : KX_DECLINED));
        check(!(call || paired) || bid.revenue == i + 1);
        check((message.len != 0) == paired);
    }
}


static void
compare_events(const model_t *m)
{
    uint64_t         lost;
    unsigned         i, n;
    unsigned char    buf[32 * EVENTS];
    kx_feed_event_t  list[EVENTS + 1];

    n = kx_feed_events(t, s, 0, list, EVENTS + 1, buf, sizeof(buf), &lost);
    check(n == m->nevents);
    check(lost == 0);

    for (i = 0; i < n; i++) {
        check(list[i].number == i + 1);
        check(same(&list[i].data,
                   events[m->events[i].kind][m->events[i].number]));
    }
}


static void
compare(const model_t *m)
{
    compare_turn(m);
    compare_messages(m);
    compare_ads(m);
    compare_events(m);

    check(kx_session_table_verify(t) == KX_OK);
    check(t->used == 1 && t->evicted == 0 && t->expired == 0
          && t->repaired == 0);
}


static void
walk(const model_t *m, const unsigned char *taken, unsigned depth,
    unsigned last)
{
    int       rc;
    do_e      what;
    model_t   next;

    if (depth == last) {
        orders++;
        return;
    }

    memcpy(copies[depth], mem, SIZE);

    for (what = 0; what < DO_ALL; what++) {

        if (!taken[what] || !model_can(m, what)) {
            continue;
        }

        steps++;
        order[depth] = what;
        length = depth + 1;

        next = *m;
        rc = model_do(&next, what);

        check(code_do(&next, m, what) == rc);
        compare(&next);

        code_idle(&next);
        compare(&next);

        walk(&next, taken, depth + 1, last);

        memcpy(mem, copies[depth], SIZE);
    }
}


static void
run(const unsigned char *taken, unsigned last)
{
    model_t  m;

    t = kx_session_table_create(mem, SIZE, SHARE);
    assert_non_null(t);

    memset(&m, 0, sizeof(model_t));

    model_open(&m);
    code_open(m.session);
    compare(&m);

    orders = 0;
    steps = 0;

    walk(&m, taken, 0, last);

    print_message("%u orders of %u, %u steps\n", orders, last, steps);
}


static void
test_all_steps(void **state)
{
    unsigned char  taken[DO_ALL];

    memset(taken, 1, DO_ALL);

    run(taken, DEPTH);
}


static void
test_steps_of_pairing(void **state)
{
    unsigned char  taken[DO_ALL];

    memset(taken, 0, DO_ALL);

    taken[DO_USER] = 1;
    taken[DO_ASSISTANT] = 1;
    taken[DO_AGAIN] = 1;
    taken[DO_AGAIN_TRACK_ONLY] = 1;
    taken[DO_FILL] = 1;
    taken[DO_FILL_OLD] = 1;
    taken[DO_ERROR] = 1;
    taken[DO_TIMEOUT] = 1;

    run(taken, FURTHER);
}


static int
setup(void **state)
{
    unsigned  i, j;

    for (i = 0; i <= MOST; i++) {
        snprintf(ids[i], sizeof(ids[i]), "m%u", i);
        snprintf(texts[i], sizeof(texts[i]), "the text of message %u", i);
    }

    for (i = 0; i < KINDS; i++) {
        for (j = 0; j <= MOST + 1; j++) {
            snprintf(events[i][j], sizeof(events[i][j]),
                     "{\"kind\":%u,\"of\":%u}", i, j);
        }
    }

    return 0;
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup(test_all_steps, setup),
        cmocka_unit_test_setup(test_steps_of_pairing, setup)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
