/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The session of a conversation and its rules (protocol.md 2.4, 3.3, 5, 6,
 * 7).  A record has a fixed size, holds no text and no pointers, and lies in
 * a table in shared memory (session_table.h).  All functions here are called
 * with the table locked and between kx_session_table_change() and
 * kx_session_table_changed().
 *
 * Times named "now" are ms of a clock that never goes back and is the same
 * for all processes; "wall" is ms since the epoch.
 */


#ifndef _KX_SESSION_H_INCLUDED_
#define _KX_SESSION_H_INCLUDED_


#include "protocol.h"


#define KX_SESSION_CODE_LEN  24      /* with its zero; longer ones are cut */
#define KX_SESSION_AHEAD     600000  /* ms: no node's clock is so far ahead */


typedef struct {
    unsigned char   id[KX_ID_LEN];
    float           revenue;         /* below zero: not said */
    uint32_t        code;            /* kx_session_code() of the placement */
} kx_session_bid_t;


typedef struct {
    /* who: keyed digests of publisher and conversation, and of the user */
    unsigned char   key[KX_ID_LEN];
    uint64_t        user;

    uint32_t        created;         /* wall, in seconds */
    uint32_t        root;            /* what is kept of it, session_store.h */
    uint64_t        used;            /* now, of the last turn */

    /* links of the table, indices of slots */
    uint32_t        next;
    uint32_t        newer;
    uint32_t        older;

    uint8_t         live;            /* the slot holds a session */
    uint8_t         busy;            /* a change is under way */
    uint8_t         init;            /* kx_init_state_e */
    uint8_t         turn;            /* kx_turn_state_e */
    uint8_t         nbids;
    uint8_t         disabled:1;      /* by a preload or by /init */
    uint8_t         off:1;           /* /init: enabled false */
    uint8_t         no_errors:1;     /* /init: reportErrors false */
    uint8_t         debug:1;         /* /init: reportDebug true */
    uint8_t         has_server_id:1;
    uint8_t         answered:1;      /* assistant is set */
    uint8_t         paired:1;        /* and has the ad */
    uint8_t         closing:1;       /* only its events are left */
    uint16_t        index;           /* of the user's turn, 0: not known */

    uint32_t        seq;             /* grows with every turn asked for */
    uint32_t        init_seq;        /* grows with every /init sent */
    uint32_t        preload_timeout; /* ms, 0: /init said nothing */

    /* lower 32 bits of now: what is under way ends by then */
    uint32_t        init_until;
    uint32_t        turn_until;

    /* wall, when the user's turn came; later than that of the turn before */
    uint64_t        turn_wall;

    unsigned char   server_id[KX_ID_LEN];
    unsigned char   user_message[KX_ID_LEN];     /* of the current turn */
    unsigned char   assistant[KX_ID_LEN];        /* the message with the ad */

    char            code[KX_SESSION_CODE_LEN];   /* skipCode or errCode */
    kx_session_bid_t  bids[KX_MAX_BIDS];
} kx_session_t;


typedef enum {
    KX_INIT_DUE = 0,
    KX_INIT_SENT,
    KX_INIT_DONE
} kx_init_state_e;


typedef enum {
    KX_TURN_NONE = 0,                /* no preload, or one that failed */
    KX_TURN_PENDING,
    KX_TURN_FILLED,
    KX_TURN_NO_FILL
} kx_turn_state_e;


typedef enum {
    KX_TURN_ASK = 0,                 /* send a preload with this seq */
    KX_TURN_REUSE,                   /* the turn has its answer already */
    KX_TURN_WAIT,                    /* another request asks for this turn */
    KX_TURN_DISABLED                 /* nothing may be asked */
} kx_turn_e;


/*
 * A user's turn: message is the digest in its message id.  Decides what is to
 * be done, in this order: a disabled session asks nothing (but the turn is
 * taken note of, and an older one is superseded); the same turn again is
 * KX_TURN_REUSE while it is filled or has a no-fill, KX_TURN_WAIT while its
 * preload is under way and now is before turn_until, and is asked again
 * otherwise; another turn supersedes the current one and loses its ad.
 * KX_TURN_ASK sets seq anew, turn_until to now + timeout ms, and turn_wall
 * unless it is the same turn again.
 *
 * Track-only turns never reuse and never wait.
 */
kx_turn_e kx_session_turn(kx_session_t *s,
    const unsigned char message[KX_ID_LEN], unsigned track_only, uint64_t now,
    uint64_t wall, uint32_t timeout);

/*
 * The answer to the preload of turn seq.  The server's sessionId is kept from
 * every answer that has one, also from one that is superseded, but not from
 * one to an earlier session of the same conversation.  Returns KX_OK if the
 * answer counts, KX_DECLINED if a newer turn superseded it or the turn was
 * cancelled.  A transport failure or an error leaves KX_TURN_NONE.
 * placements are the codes that bids[].placement is an index into.
 */
int kx_session_answer(kx_session_t *s, uint32_t seq,
    const kx_preload_answer_t *a, const kx_str_t *placements);

/* The current turn is over, and its ad is lost. */
void kx_session_supersede(kx_session_t *s);

/* Is the preload of the current turn under way? */
unsigned kx_session_awaited(const kx_session_t *s, uint64_t now);

/* The preload of turn seq was given up: the turn may be asked again. */
void kx_session_cancel(kx_session_t *s, uint32_t seq);

/*
 * Pairs the ad of turn seq with an assistant message (protocol.md 6.1): the
 * answer that replaces another inherits its ad.  KX_OK; KX_AGAIN when there
 * is none yet: kx_session_answer() will pair it; or KX_DECLINED when seq is
 * not the current turn or gets no ad.
 */
int kx_session_pair(kx_session_t *s, uint32_t seq,
    const unsigned char message[KX_ID_LEN]);

/*
 * Copies the bids of the current turn for those of the placements that they
 * were made for; returns their number.
 */
unsigned kx_session_bids(const kx_session_t *s, kx_bid_t bids[KX_MAX_BIDS],
    const kx_str_t *placements, unsigned nplacements);

/* The same of n bids that were kept elsewhere. */
unsigned kx_session_placed(const kx_session_bid_t *kept, unsigned n,
    kx_bid_t bids[KX_MAX_BIDS], const kx_str_t *placements,
    unsigned nplacements);

/*
 * Claims the /init of a session: KX_OK sets init_seq, and init_until to now +
 * timeout ms, and the caller sends it; KX_DECLINED: it is done, or under way
 * elsewhere.
 */
int kx_session_init_claim(kx_session_t *s, uint64_t now, uint32_t timeout);

/*
 * The answer to /init number seq of this session, not of an earlier one of the
 * same conversation: applied, however late; without a usable one
 * the defaults stay, and after a transport failure (failed) it is due again.
 */
void kx_session_init_answer(kx_session_t *s, uint32_t seq,
    const kx_init_answer_t *a);

/* /init number seq was given up: it is due again with the next turn. */
void kx_session_init_cancel(kx_session_t *s, uint32_t seq);

/* The revenue of a bid as it was said; below zero: it was not. */
double kx_session_revenue(const kx_session_bid_t *bid);

/* The number that stands for a placement code in a record; never 0. */
uint32_t kx_session_code(const kx_str_t *code);


#endif /* _KX_SESSION_H_INCLUDED_ */
