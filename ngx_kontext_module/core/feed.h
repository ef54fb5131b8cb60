/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The rules of a session that the session API knows: messages that are fed,
 * the ads of its messages, its events and options (protocol.md 5, 6, 7, 9).
 * They lie in the session's store, the turn itself is that of session.h.
 *
 * All functions are called with the table locked, of a session with a root
 * (session_store.h) unless it says otherwise, and not within a change: they
 * make room first, which may close other sessions, and then change this one.
 */


#ifndef _KX_FEED_H_INCLUDED_
#define _KX_FEED_H_INCLUDED_


#include "api.h"
#include "session_store.h"


#define KX_FEED_DEBOUNCE   10        /* ms, protocol.md 5 */
#define KX_FEED_EVENTS     64        /* kept of a session */
#define KX_FEED_EVENTS_LEN 16384     /* bytes of their data */

/* what all messages of a session take: texts, ids and heads */
#define KX_FEED_TEXT_LEN                                                      \
    (KX_MAX_CONTENT + KX_MAX_MESSAGES * (KX_API_MAX_MESSAGE_ID + 16))


typedef enum {
    KX_FEED_STORED = 0,              /* there is nothing to ask for */
    KX_FEED_PAIRED,                  /* nor here: it got the ad */
    KX_FEED_ASK,                     /* a preload is due after the debounce */
    KX_FEED_REPEATED,                /* it is there already */
    KX_FEED_AGAIN,                   /* so it is, and KX_FEED_ASK */
    KX_FEED_DISABLED,                /* it is stored, nothing may be asked */
    KX_FEED_NO_ROOM,
    KX_FEED_GONE                     /* never said here: no such session */
} kx_feed_e;


typedef struct {
    kx_str_t        id;              /* of the message */
    kx_bid_t        bids[KX_MAX_BIDS];
    unsigned        nbids;
} kx_feed_ad_t;


typedef struct {
    uint64_t        number;
    kx_str_t        data;            /* JSON on one line */
} kx_feed_event_t;


/*
 * Makes a session one that the API knows; id is random, user and conversation
 * are its names, of 1 to KX_MAX_IDENTITY bytes.  What is paired already
 * becomes the ad of its message.  KX_OK, also if it was one, or KX_DECLINED:
 * there is no room, and the session may be closed.  For one without a root.
 */
int kx_feed_open(kx_session_table_t *t, kx_session_t *s,
    const unsigned char id[KX_ID_LEN], const kx_str_t *user,
    const kx_str_t *conversation);

/*
 * Copies the names into buf, of 2 * KX_MAX_IDENTITY bytes.  KX_OK, or
 * KX_DECLINED: they are damaged.
 */
int kx_feed_identity(kx_session_table_t *t, kx_session_t *s,
    unsigned char *buf, kx_str_t *user, kx_str_t *conversation);

/*
 * addMessage: stores a message as the newest one and drops the oldest beyond
 * KX_MAX_MESSAGES or KX_FEED_TEXT_LEN, with their ads.  digest stands for the
 * message, as in kx_session_turn().  A user's message supersedes the turn and
 * loses its unpaired ad; pid is of the process that will ask.  An assistant's
 * message may get the ad.  A message whose id is there already is not stored
 * again; the newest one of a user may be asked for again if its preload has
 * failed, and its ad then goes to the next assistant's message: that is how
 * an answer is replaced by another.  timeout as in kx_session_turn().
 */
kx_feed_e kx_feed_message(kx_session_table_t *t, kx_session_t *s,
    const kx_api_message_t *m, const unsigned char digest[KX_ID_LEN],
    uint64_t now, uint64_t wall, uint32_t timeout, uint32_t pid);

/*
 * Copies the messages up to the one with this number, without their contents
 * if there is no room in buf (KX_FEED_TEXT_LEN bytes are always enough), or
 * ids only if ids is set.  Strings point into buf.  Returns their number.
 */
unsigned kx_feed_messages(kx_session_table_t *t, kx_session_t *s,
    uint64_t number, unsigned ids, kx_message_t messages[KX_MAX_MESSAGES],
    unsigned char *buf, size_t size);

/*
 * A new turn was seen in traffic: no message that was fed before may get its
 * ad.  Also for a session without a root.
 */
void kx_feed_traffic(kx_session_table_t *t, kx_session_t *s);

/*
 * As kx_session_answer(), also for a session without a root; the n events are
 * appended if the answer counts, and a bid is paired.
 */
int kx_feed_answer(kx_session_table_t *t, kx_session_t *s, uint32_t seq,
    const kx_preload_answer_t *a, const kx_str_t *placements,
    const kx_str_t *events, unsigned n);

/* As kx_session_init_answer(); event says that it disables the session. */
void kx_feed_init_answer(kx_session_table_t *t, kx_session_t *s,
    uint32_t seq, const kx_init_answer_t *a, const kx_str_t *event);

/*
 * As kx_session_pair(), also for a session without a root, for a message that
 * was seen in traffic.  id is its id as the client knows it; what is paired
 * later, by kx_feed_answer(), has kx_message_id() of the digest instead.
 */
int kx_feed_assistant(kx_session_table_t *t, kx_session_t *s, uint32_t seq,
    const unsigned char message[KX_ID_LEN], const kx_str_t *id);

/*
 * The preload of turn seq is under way in a process that has died: another
 * one takes it over.  KX_OK, or KX_DECLINED when from is not the owner.
 */
int kx_feed_take(kx_session_table_t *t, kx_session_t *s, uint32_t seq,
    uint32_t from, uint32_t to);

/*
 * Claims the /init of a session, as kx_session_init_claim(), for the process
 * pid.  dead is one that has died, or 0: what it had under way is lost.
 */
int kx_feed_init_claim(kx_session_table_t *t, kx_session_t *s, uint64_t now,
    uint32_t timeout, uint32_t pid, uint32_t dead);

/*
 * Ends a session but for its events, which listeners may not have read yet:
 * it is not found any more, but by kx_store_peek(), and makes room for another
 * one of the same key.  The caller closes it KX_SESSION_CLOSING ms later; one
 * without events is closed at once.
 */
void kx_feed_end(kx_session_table_t *t, kx_session_t *s);

/* The ad of a message.  KX_OK or KX_DECLINED; ad->id is id. */
int kx_feed_ad(kx_session_table_t *t, kx_session_t *s, const kx_str_t *id,
    const kx_str_t *placements, unsigned nplacements, kx_feed_ad_t *ad);

/*
 * All ads, oldest first; ids point into buf, and what does not fit into it is
 * left out.  Returns their number, at most KX_MAX_MESSAGES.
 */
unsigned kx_feed_ads(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *placements, unsigned nplacements,
    kx_feed_ad_t ads[KX_MAX_MESSAGES], unsigned char *buf, size_t size);

/*
 * Is this a bid of the session?  KX_OK or KX_DECLINED.  message is that of
 * its ad, in buf of KX_API_MAX_MESSAGE_ID bytes, empty if it is not paired.
 */
int kx_feed_bid(kx_session_table_t *t, kx_session_t *s,
    const unsigned char id[KX_ID_LEN], kx_session_bid_t *bid,
    unsigned char *buf, kx_str_t *message);

/*
 * Appends an event and drops the oldest beyond the limits.  Returns its
 * number, 0 when there is no room for it.
 */
uint64_t kx_feed_event(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *data);

/*
 * Copies events after the one with this number, as many as fit into buf and
 * into n.  lost is set to the number of those that are gone.  Returns how
 * many were copied.
 */
unsigned kx_feed_events(kx_session_table_t *t, kx_session_t *s,
    uint64_t after, kx_feed_event_t *events, unsigned n, unsigned char *buf,
    size_t size, uint64_t *lost);

/*
 * Copies the options, at most KX_API_MAX_OPTIONS bytes, into buf; revision is
 * for kx_feed_set_options().  Returns their length.
 */
size_t kx_feed_options(kx_session_table_t *t, kx_session_t *s,
    unsigned char *buf, uint32_t *revision);

/*
 * Replaces the options.  KX_OK, KX_AGAIN when they have changed since that
 * revision, KX_DECLINED when there is no room.
 */
int kx_feed_set_options(kx_session_table_t *t, kx_session_t *s,
    uint32_t revision, const kx_str_t *options);


#endif /* _KX_FEED_H_INCLUDED_ */
