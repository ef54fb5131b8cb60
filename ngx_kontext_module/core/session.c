/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "session.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>


/*
 * A session of the same key that was closed had numbers that are far from
 * these; its calls have nothing to say here.
 */

#define KX_SESSION_NEAR     0x10000

/* the largest distance that 32 bits of a clock can tell from the past */

#define KX_SESSION_FAR      0x7fffffff

#define KX_FNV_OFFSET       0x811c9dc5
#define KX_FNV_PRIME        0x01000193


static unsigned kx_session_own(uint32_t newest, uint32_t seq);
static uint64_t kx_session_clock(uint64_t last, uint64_t wall);
static uint32_t kx_session_next(uint32_t seq);
static uint32_t kx_session_until(uint64_t now, uint32_t timeout);
static unsigned kx_session_before(uint64_t now, uint32_t until);
static void kx_session_fill(kx_session_t *s, const kx_preload_answer_t *a,
    const kx_str_t *placements);
static unsigned kx_session_taken(const kx_bid_t *bids, unsigned n,
    unsigned placement);


kx_turn_e
kx_session_turn(kx_session_t *s, const unsigned char message[KX_ID_LEN],
    unsigned track_only, uint64_t now, uint64_t wall, uint32_t timeout)
{
    unsigned  same;

    same = memcmp(s->user_message, message, KX_ID_LEN) == 0;

    if (same && s->disabled) {
        return KX_TURN_DISABLED;
    }

    if (same && !track_only) {

        if (s->turn == KX_TURN_FILLED || s->turn == KX_TURN_NO_FILL) {
            return KX_TURN_REUSE;
        }

        if (kx_session_awaited(s, now)) {
            return KX_TURN_WAIT;
        }
    }

    kx_session_supersede(s);

    if (!same) {
        memcpy(s->user_message, message, KX_ID_LEN);
        s->turn_wall = kx_session_clock(s->turn_wall, wall);
        s->index = 0;
    }

    if (s->disabled) {
        return KX_TURN_DISABLED;
    }

    s->turn = KX_TURN_PENDING;
    s->turn_until = kx_session_until(now, timeout);

    return KX_TURN_ASK;
}


void
kx_session_supersede(kx_session_t *s)
{
    s->seq = kx_session_next(s->seq);
    s->turn = KX_TURN_NONE;
    s->nbids = 0;
    s->answered = 0;
    s->paired = 0;

    memset(s->assistant, 0, KX_ID_LEN);
    memset(s->code, 0, KX_SESSION_CODE_LEN);
    memset(s->bids, 0, sizeof(s->bids));
}


/* another node's clock may be ahead of this one's */

static uint64_t
kx_session_clock(uint64_t last, uint64_t wall)
{
    if (last >= wall && last - wall < KX_SESSION_AHEAD) {
        return last + 1;
    }

    return wall;
}


unsigned
kx_session_awaited(const kx_session_t *s, uint64_t now)
{
    return s->turn == KX_TURN_PENDING
           && kx_session_before(now, s->turn_until);
}


static uint32_t
kx_session_next(uint32_t seq)
{
    /* 0 is "never" */

    return (seq == 0xffffffff) ? 1 : seq + 1;
}


static unsigned
kx_session_own(uint32_t newest, uint32_t seq)
{
    return newest - seq < KX_SESSION_NEAR;
}


static uint32_t
kx_session_until(uint64_t now, uint32_t timeout)
{
    if (timeout > KX_SESSION_FAR) {
        timeout = KX_SESSION_FAR;
    }

    return (uint32_t) now + timeout;
}


static unsigned
kx_session_before(uint64_t now, uint32_t until)
{
    uint32_t  left;

    left = until - (uint32_t) now;

    return left != 0 && left <= KX_SESSION_FAR;
}


int
kx_session_answer(kx_session_t *s, uint32_t seq, const kx_preload_answer_t *a,
    const kx_str_t *placements)
{
    if (!kx_session_own(s->seq, seq)) {
        return KX_DECLINED;
    }

    if (a->has_session) {
        memcpy(s->server_id, a->session, KX_ID_LEN);
        s->has_server_id = 1;
    }

    if (seq != s->seq || s->turn != KX_TURN_PENDING) {
        return KX_DECLINED;
    }

    if (a->disable) {
        s->disabled = 1;
    }

    memcpy(s->code, a->code, KX_SESSION_CODE_LEN - 1);
    s->code[KX_SESSION_CODE_LEN - 1] = '\0';

    switch (a->outcome) {

    case KX_AD_FILLED:
        kx_session_fill(s, a, placements);
        s->turn = s->nbids ? KX_TURN_FILLED : KX_TURN_NO_FILL;
        s->paired = s->nbids && s->answered;
        break;

    case KX_AD_NO_FILL:
        s->turn = KX_TURN_NO_FILL;
        break;

    default: /* KX_AD_ERROR, KX_AD_NONE */
        s->turn = KX_TURN_NONE;
        break;
    }

    return KX_OK;
}


static void
kx_session_fill(kx_session_t *s, const kx_preload_answer_t *a,
    const kx_str_t *placements)
{
    unsigned           i;
    const kx_bid_t    *bid;
    kx_session_bid_t  *b;

    for (i = 0; i < a->nbids && i < KX_MAX_BIDS; i++) {
        bid = &a->bids[i];
        b = &s->bids[i];

        memcpy(b->id, bid->id, KX_ID_LEN);
        b->code = kx_session_code(&placements[bid->placement]);

        /* not true of a NaN either */

        if (bid->revenue >= 0 && bid->revenue <= FLT_MAX) {
            b->revenue = (float) bid->revenue;

        } else {
            b->revenue = -1;
        }
    }

    s->nbids = (uint8_t) i;
}


void
kx_session_cancel(kx_session_t *s, uint32_t seq)
{
    if (seq == s->seq && s->turn == KX_TURN_PENDING) {
        s->turn = KX_TURN_NONE;
    }
}


int
kx_session_pair(kx_session_t *s, uint32_t seq,
    const unsigned char message[KX_ID_LEN])
{
    if (seq != s->seq
        || (s->turn != KX_TURN_FILLED && s->turn != KX_TURN_PENDING))
    {
        return KX_DECLINED;
    }

    memcpy(s->assistant, message, KX_ID_LEN);
    s->answered = 1;

    if (s->turn == KX_TURN_PENDING) {
        return KX_AGAIN;
    }

    s->paired = 1;

    return KX_OK;
}


unsigned
kx_session_bids(const kx_session_t *s, kx_bid_t bids[KX_MAX_BIDS],
    const kx_str_t *placements, unsigned nplacements)
{
    if (s->turn != KX_TURN_FILLED) {
        return 0;
    }

    return kx_session_placed(s->bids, s->nbids, bids, placements,
                             nplacements);
}


unsigned
kx_session_placed(const kx_session_bid_t *kept, unsigned n,
    kx_bid_t bids[KX_MAX_BIDS], const kx_str_t *placements,
    unsigned nplacements)
{
    unsigned                 i, j, m;
    const kx_session_bid_t  *b;

    m = 0;

    for (i = 0; i < n && i < KX_MAX_BIDS; i++) {
        b = &kept[i];

        for (j = 0; j < nplacements; j++) {

            if (b->code != kx_session_code(&placements[j])
                || kx_session_taken(bids, m, j))
            {
                continue;
            }

            memcpy(bids[m].id, b->id, KX_ID_LEN);
            bids[m].placement = j;
            bids[m].revenue = kx_session_revenue(b);
            m++;

            break;
        }
    }

    return m;
}


static unsigned
kx_session_taken(const kx_bid_t *bids, unsigned n, unsigned placement)
{
    unsigned  i;

    for (i = 0; i < n; i++) {
        if (bids[i].placement == placement) {
            return 1;
        }
    }

    return 0;
}


/* seven digits are what a float has, the others would be made up */

double
kx_session_revenue(const kx_session_bid_t *bid)
{
    char  text[32];

    if (!(bid->revenue >= 0 && bid->revenue <= FLT_MAX)) {
        return -1;
    }

    (void) snprintf(text, sizeof(text), "%.7g", (double) bid->revenue);

    return strtod(text, NULL);
}


int
kx_session_init_claim(kx_session_t *s, uint64_t now, uint32_t timeout)
{
    if (s->init == KX_INIT_DONE) {
        return KX_DECLINED;
    }

    if (s->init == KX_INIT_SENT && kx_session_before(now, s->init_until)) {
        return KX_DECLINED;
    }

    s->init = KX_INIT_SENT;
    s->init_seq = kx_session_next(s->init_seq);
    s->init_until = kx_session_until(now, timeout);

    return KX_OK;
}


void
kx_session_init_answer(kx_session_t *s, uint32_t seq,
    const kx_init_answer_t *a)
{
    if (!kx_session_own(s->init_seq, seq)) {
        return;
    }

    if (a->applied) {

        /* what a preload has disabled stays so */

        if (!a->enabled) {
            s->disabled = 1;
            s->off = 1;
        }

        s->no_errors = !a->report_errors;
        s->debug = a->report_debug;
        s->preload_timeout = a->preload_timeout;
        s->init = KX_INIT_DONE;

        return;
    }

    if (seq != s->init_seq || s->init != KX_INIT_SENT) {
        return;
    }

    s->init = a->failed ? KX_INIT_DUE : KX_INIT_DONE;
}


void
kx_session_init_cancel(kx_session_t *s, uint32_t seq)
{
    if (seq == s->init_seq && s->init == KX_INIT_SENT) {
        s->init = KX_INIT_DUE;
    }
}


uint32_t
kx_session_code(const kx_str_t *code)
{
    size_t    i;
    uint32_t  h;

    h = KX_FNV_OFFSET;

    for (i = 0; i < code->len; i++) {
        h = (h ^ code->data[i]) * KX_FNV_PRIME;
    }

    return h ? h : 1;
}
