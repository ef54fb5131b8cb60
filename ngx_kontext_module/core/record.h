/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A session as other machines know it: what is kept of it under a key in a
 * store that several nodes share, how two of them become one, and how it goes
 * into a session and comes out of one.
 *
 * Version 1, numbers with the least significant byte first:
 *
 *      0  3   "kxr"
 *      3  1   version
 *      4  1   flags, KX_RECORD_*
 *      5  8   user, a digest
 *     13  4   when it was made, s since the epoch
 *     17  4   preload timeout, ms
 *     21  24  with KX_RECORD_SERVER_ID only: the server's sessionId, and the
 *             clock of the turn that it is known from
 *      .  1   how many turns follow, the newest first
 *      .      of each: message 16, clock 8, clock of its ads 8, index 2,
 *             state 1, length and bytes of the code, number of bids 1, and of
 *             each of them: id 16, revenue 4 (IEEE 754), placement code 4
 *      .  8   SipHash-2-4 of the key of the record and all before, by a key
 *             that the nodes share
 *
 * Clocks are ms since the epoch, or one more than that of the turn before if
 * this is later: so a turn is newer than all that its node knew of, whatever
 * the clocks of the nodes say.
 */


#ifndef _KX_RECORD_H_INCLUDED_
#define _KX_RECORD_H_INCLUDED_


#include "hash.h"
#include "session.h"


#define KX_RECORD_VERSION    1
#define KX_RECORD_TURNS      4       /* kept, the newest */
#define KX_RECORD_MAX        768     /* bytes of the largest one */
#define KX_RECORD_SPAN       120000  /* ms: older ones than that are not */

#define KX_RECORD_INIT       0x01    /* /init was answered */
#define KX_RECORD_DISABLED   0x02
#define KX_RECORD_OFF        0x04
#define KX_RECORD_NO_ERRORS  0x08
#define KX_RECORD_DEBUG      0x10
#define KX_RECORD_SERVER_ID  0x20
#define KX_RECORD_FLAGS      0x3f


/* a message of the user, and the ads that were assigned to it */

typedef struct {
    unsigned char      message[KX_ID_LEN];
    uint64_t           clock;        /* the last time it was sent */
    uint64_t           ad_clock;     /* when the ads were asked for */
    uint16_t           index;        /* of the user's turns, 0: not known */
    uint8_t            state;        /* KX_TURN_NONE, _FILLED or _NO_FILL */
    uint8_t            nbids;
    char               code[KX_SESSION_CODE_LEN];
    kx_session_bid_t   bids[KX_MAX_BIDS];
} kx_record_turn_t;


typedef struct {
    uint64_t           user;
    uint32_t           created;
    uint32_t           preload_timeout;
    unsigned           flags;
    unsigned char      server_id[KX_ID_LEN];
    uint64_t           server_clock;
    unsigned           nturns;
    kx_record_turn_t   turns[KX_RECORD_TURNS];   /* the newest first */
} kx_record_t;


/*
 * Writes a record into dst, which has KX_RECORD_MAX bytes; returns the place
 * after it.  key is the one that it is stored by, secret KX_SIP_KEY_LEN bytes.
 */
unsigned char *kx_record_encode(unsigned char *dst, const kx_record_t *r,
    const unsigned char key[KX_ID_LEN], const unsigned char *secret);

/*
 * Reads what was stored by a key; now is ms since the epoch.  KX_OK, or
 * KX_DECLINED: it is of another version, damaged, another key's, or makes no
 * sense; r is undefined then.
 */
int kx_record_decode(kx_record_t *r, const unsigned char *p, size_t len,
    const unsigned char key[KX_ID_LEN], const unsigned char *secret,
    uint64_t now);

/*
 * Makes of a what both say.  Of two users the one with the newer turn has the
 * conversation.  Of the same user's turns the newest wins, and each message
 * has the ads of one preload, the first that was filled.  The order in which
 * nodes merge, and how often, makes no difference, as long as no more than
 * KX_RECORD_TURNS turns are within KX_RECORD_SPAN of the newest.
 */
void kx_record_merge(kx_record_t *a, const kx_record_t *b);

/* What a session has to say; user is the digest that all nodes know. */
void kx_record_take(kx_record_t *r, const kx_session_t *s, uint64_t user);

/*
 * Gives a session what it does not know; r was merged with what was taken of
 * it, or it is new.  A turn that is newer than the session's supersedes it.
 * Within kx_session_table_change().
 */
void kx_record_give(kx_session_t *s, const kx_record_t *r);

/* The clock of the newest turn; 0: there is none. */
uint64_t kx_record_clock(const kx_record_t *r);

/*
 * May other nodes know something that is of use?  s is the session that the
 * node knows, or NULL; message the digest of the user's turn that comes.  No:
 * the session is disabled, or it is the turn that the session is at, and its
 * result is there or awaited.  Also a turn that follows the session's may have
 * been had elsewhere, and be asked for again.
 */
unsigned kx_record_due(const kx_session_t *s,
    const unsigned char message[KX_ID_LEN], uint64_t now);


#endif /* _KX_RECORD_H_INCLUDED_ */
