/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What a chat request says: who talks, in which conversation, and its
 * messages (chat-apis.md 11 to 13).  The body is scanned in place; of the
 * history only a hash a message is kept, and the text of the last
 * KX_MAX_MESSAGES.
 */


#ifndef _KX_CONVERSATION_H_INCLUDED_
#define _KX_CONVERSATION_H_INCLUDED_


#include "content.h"
#include "hash.h"
#include "json_scan.h"
#include "memo.h"
#include "protocol.h"
#include "reason.h"
#include "text.h"


typedef struct kx_dialect_s       kx_dialect_t;
typedef struct kx_conversation_s  kx_conversation_t;


/* where an identity was found; the lower one wins (chat-apis.md 12) */

typedef enum {
    KX_IDENTITY_NATIVE = 1,          /* the format's own conversation id */
    KX_IDENTITY_SAFETY,              /* safety_identifier */
    KX_IDENTITY_USER,                /* user */
    KX_IDENTITY_SESSION,             /* session_id */
    KX_IDENTITY_METADATA,            /* metadata.user_id, metadata.chat_id */
    KX_IDENTITY_METADATA2,           /* metadata.conversation_id */
    KX_IDENTITY_METADATA3,           /* metadata.thread_id */
    KX_IDENTITY_METADATA4,           /* metadata.session_id */
    KX_IDENTITY_NONE
} kx_identity_e;


typedef struct {
    kx_identity_e        rank;
    kx_str_t             value;      /* decoded, 1 to KX_MAX_IDENTITY bytes */
} kx_identity_t;


typedef struct {
    kx_role_e            role;
    kx_str_t             content;    /* raw JSON, in the body */
    kx_str_t             id;         /* raw string, in the body, or empty */
    uint64_t             tag;        /* of its memo, if there are memos */
    uint32_t             index;      /* into hashes */
} kx_kept_t;


struct kx_conversation_s {
    const kx_dialect_t  *dialect;
    const kx_pool_t     *pool;
    const kx_pool_t     *scratch;    /* what is not needed with the answer */
    kx_memo_table_t     *memos;      /* of the process, or NULL */
    unsigned char        key[KX_SIP_KEY_LEN];

    kx_identity_t        user;
    kx_identity_t        conversation;

    unsigned             stream:1;
    unsigned             json_mode:1;
    unsigned             forced_tools:1;
    unsigned             user_turn:1;     /* the newest message is a user's */
    unsigned             has_messages:1;
    unsigned             auxiliary:1;     /* a front end's own question */
    unsigned             variant:4;       /* for the dialect */
    unsigned             choices;         /* answers asked for, 1 or more */

    /* the id of the answer that this request goes on from, or empty */
    kx_str_t             previous;

    /* keyed hashes of role and canonical text of all messages; those of the
       last ones are made by kx_conversation_messages() */
    uint64_t            *hashes;
    uint32_t             nhashes;
    uint32_t             size;

    /* the last ones, a ring: message i is at i % KX_MAX_MESSAGES */
    kx_kept_t           *kept;

    kx_str_t             first;           /* raw content of the first user's */
};


/*
 * Starts with a dialect and the path of a request; key is a secret of
 * KX_SIP_KEY_LEN bytes that texts are compared with, pool is where hashes and
 * identities go.  It also is scratch, where messages and their texts go, until
 * the caller sets another one, which needs to last until the last call that
 * takes cv, but for those about answers.  The caller may set memos, too.
 */
void kx_conversation_init(kx_conversation_t *cv, const kx_dialect_t *dialect,
    const kx_str_t *path, const unsigned char *key, const kx_pool_t *pool);

/*
 * Scans a request body, which must stay as it is until the last call that
 * takes cv.  Returns KX_REASON_NONE, or KX_REASON_BAD_BODY when it is not
 * what its format says, or KX_REASON_NO_MEMORY.
 */
kx_reason_e kx_conversation_scan(kx_conversation_t *cv,
    const unsigned char *body, size_t len);

/*
 * Makes the messages of an ad call, and is to be called once: the last ones,
 * oldest first, with their ids and visible texts, as raw strings where these
 * say the same; created is left alone.
 * KX_MAX_CONTENT bytes of text at most: older messages that do not fit are
 * left out, a newest one that does not is cut.  digest is that of the newest
 * message.  messages has room for KX_MAX_MESSAGES.  Returns their number, 0
 * when there is no memory.
 */
unsigned kx_conversation_messages(kx_conversation_t *cv,
    const kx_str_t *conversation_id, kx_message_t *messages,
    unsigned char digest[KX_ID_LEN]);

/*
 * Keeps what was found out about the messages meanwhile, that they are clean
 * (protocol.h), for the next time.
 */
void kx_conversation_learn(kx_conversation_t *cv,
    const kx_message_t *messages, unsigned n);

/*
 * Makes the digest of a conversation id for a request that has none: of the
 * user and of the whole first user message, or of the answer that it goes on
 * from.  Two conversations of one user that start with the same words get
 * the same one.
 */
void kx_conversation_derive(kx_conversation_t *cv, const kx_str_t *user,
    unsigned char digest[KX_ID_LEN]);

/*
 * Writes such a conversation id, KX_MESSAGE_ID_LEN characters: "kxc_" and the
 * base32 of its digest.
 */
void kx_conversation_id_write(unsigned char *dst,
    const unsigned char digest[KX_ID_LEN]);

/*
 * Writes a message id, KX_MESSAGE_ID_LEN characters: "kx1_" and the base32 of
 * its digest.
 */
void kx_message_id(unsigned char *dst, const unsigned char digest[KX_ID_LEN]);


/* for the dialects */

/*
 * A message of the request, in order; content is its raw JSON, id its own id
 * as a raw string, or NULL.  KX_OK or KX_AGAIN (no memory).
 */
int kx_conversation_message(kx_conversation_t *cv, kx_role_e role,
    const kx_str_t *content, const kx_str_t *id);

/*
 * Consumes an object and has each member's value consumed by member, which
 * returns what this does: KX_OK, KX_ERROR (it is no object, or bad), KX_AGAIN.
 */
int kx_conversation_members(kx_conversation_t *cv, kx_json_t *j,
    int (*member)(kx_conversation_t *cv, kx_json_t *j, const kx_str_t *key));

/*
 * Consumes the list of messages that most formats have: objects with "role"
 * and "content".  role tells the one of a raw name, which is empty where there
 * is none.  What is no list is no messages.  KX_OK, KX_ERROR, KX_AGAIN.
 */
int kx_conversation_list(kx_conversation_t *cv, kx_json_t *j,
    kx_role_e (*role)(const kx_str_t *raw));

/* The role of "user" and of "assistant"; any other one is not sent. */
kx_role_e kx_conversation_role(const kx_str_t *raw);

/* Forgets all messages: the member was there before and the last one wins. */
void kx_conversation_restart(kx_conversation_t *cv);

/*
 * Consumes the value that comes next: an identity if it is a string, not too
 * long and the best so far.  KX_OK, KX_ERROR, KX_AGAIN.
 */
int kx_conversation_identity(kx_conversation_t *cv, kx_json_t *j,
    kx_identity_t *id, kx_identity_e rank);

/* Consumes a "metadata" object with the identities that may be in it. */
int kx_conversation_metadata(kx_conversation_t *cv, kx_json_t *j);

/* Consumes a string of 1 to KX_MAX_IDENTITY bytes into value, decoded. */
int kx_conversation_string(kx_conversation_t *cv, kx_json_t *j,
    kx_str_t *value);

/* Digest of a message from that of its text (chat-apis.md 13, step 4). */
void kx_message_digest(unsigned char digest[KX_ID_LEN],
    const kx_str_t *conversation_id, kx_role_e role,
    const unsigned char text[KX_SHA256_LEN], uint64_t ordinal);

/* The same of a message that has an id of its own, as a part of text. */
void kx_message_digest_native(unsigned char digest[KX_ID_LEN],
    const kx_str_t *conversation_id, const kx_str_t *id);

/*
 * How many messages of the request have this hash; kx_conversation_messages()
 * was called.
 */
uint64_t kx_conversation_count(const kx_conversation_t *cv, uint64_t hash);

/* Starts the keyed hash of a message's text. */
void kx_conversation_hash(const kx_conversation_t *cv, kx_mix_t *mix,
    kx_role_e role);


#endif /* _KX_CONVERSATION_H_INCLUDED_ */
