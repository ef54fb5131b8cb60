/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The session API (design.md 5): what its calls say and what it answers.
 * Bodies are read and written with cJSON.  Everything that comes in is from
 * a stranger.
 *
 * What is read: JSON of KX_API_MAX_BODY bytes at most (kx_api_too_large), 32
 * deep at most; of members with the same name the first one counts; a member
 * that is null is not given.  Zero bytes, ill-formed UTF-8 and halves of
 * surrogate pairs are U+FFFD in texts; ids (userId, conversationId, message
 * ids, the id of a character, placement codes) that have a U+FFFD are
 * refused.  Strings are decoded into the pool.  After an error what was to be
 * filled in is undefined, and what the pool gave stays there.
 *
 * What is written is a text in the pool: JSON in UTF-8 on one line, without
 * CR, LF, U+2028 and U+2029, with no zero at its end.
 */


#ifndef _KX_API_H_INCLUDED_
#define _KX_API_H_INCLUDED_


#include "protocol.h"


#define KX_API_MAX_BODY      262144  /* bytes of a request */
#define KX_API_MAX_OPTIONS   8192    /* bytes of options, as JSON */
#define KX_API_MAX_EVENT     4096    /* bytes of an event's data, as JSON */
#define KX_API_MAX_PAYLOAD   3584    /* bytes of the payload in it */
#define KX_API_ID_LEN        36      /* "kxs_" and 32 characters of base32 */
#define KX_API_MAX_MESSAGE_ID  256   /* bytes */


/* what an answer of the API says when it refuses; all are constants */

typedef struct {
    unsigned             status;     /* HTTP */
    kx_str_t             code;       /* "bad_json" */
    kx_str_t             message;    /* a sentence for a developer */
} kx_api_error_t;

extern const kx_api_error_t  kx_api_bad_json;          /* 400 */
extern const kx_api_error_t  kx_api_bad_member;        /* 400 */
extern const kx_api_error_t  kx_api_unknown_member;    /* 400 */
extern const kx_api_error_t  kx_api_missing_member;    /* 400 */
extern const kx_api_error_t  kx_api_bad_role;          /* 400 */
extern const kx_api_error_t  kx_api_bad_time;          /* 400 */
extern const kx_api_error_t  kx_api_bad_event;         /* 400 */
extern const kx_api_error_t  kx_api_forbidden_user;    /* 403 */
extern const kx_api_error_t  kx_api_unknown_path;      /* 404 */
extern const kx_api_error_t  kx_api_unknown_session;   /* 404 */
extern const kx_api_error_t  kx_api_unknown_ad;        /* 404, of an event */
extern const kx_api_error_t  kx_api_no_ad;             /* 404 */
extern const kx_api_error_t  kx_api_bad_method;        /* 405 */
extern const kx_api_error_t  kx_api_immutable;         /* 409 */
extern const kx_api_error_t  kx_api_too_large;         /* 413 */
extern const kx_api_error_t  kx_api_media_type;        /* 415 */
extern const kx_api_error_t  kx_api_too_many_streams;  /* 503 */
extern const kx_api_error_t  kx_api_no_room;           /* 503 */
extern const kx_api_error_t  kx_api_no_memory;         /* 500 */


/* POST sessions */

typedef struct {
    kx_str_t             user_id;            /* empty: not given */
    kx_str_t             conversation_id;    /* empty: not given */
    kx_str_t             options;            /* JSON, see below */
} kx_api_session_t;

/*
 * Reads the body of POST sessions: an object of userId, conversationId
 * (strings of 1 to KX_MAX_IDENTITY bytes), character, regulatory (objects),
 * variantId, userEmail (strings); no other member.  Who has to be named is
 * for the caller to say.  options are the last four as compact JSON, in that
 * order, "{}" without any, KX_API_MAX_OPTIONS bytes at most
 * (kx_api_too_large).  Of the objects they have the known members only
 * (protocol.md 10, 11), which must be of the right type: gdpr and coppa 0 or
 * 1, gppSid integers from 0 to INT_MAX, isNsfw a boolean; a character has a
 * non-empty id and name (kx_api_missing_member); any other member is
 * kx_api_unknown_member.  What is empty is a value, too, with which an
 * option is taken back; only in tags it is left out.  NULL or the error.
 */
const kx_api_error_t *kx_api_read_session(kx_api_session_t *s,
    const unsigned char *body, size_t len, const kx_pool_t *pool);

/*
 * Reads the body of PATCH: an object of regulatory, variantId, userEmail;
 * any other member, null too, is kx_api_immutable.  options as above.
 */
const kx_api_error_t *kx_api_read_patch(kx_str_t *options,
    const unsigned char *body, size_t len, const kx_pool_t *pool);


/* options of a session */

/*
 * Puts newer options over those that a session has (protocol.md 7): a member
 * that is given overwrites, regulatory as a whole.  kx_api_immutable when both
 * have a character and it is not the same in all that is known of it;
 * kx_api_too_large when both are more than KX_API_MAX_OPTIONS.  older is what
 * was stored: not trusted, "" is "{}", and so are options that are damaged.
 */
const kx_api_error_t *kx_options_merge(kx_str_t *result,
    const kx_str_t *older, const kx_str_t *newer, const kx_pool_t *pool);

/*
 * Puts the options over what the directives have said in an ad request:
 * what they name wins, of regulatory member by member.  Strings go into the
 * pool.  "" is "{}".  KX_OK or KX_ERROR (no memory, or what is stored is no
 * options), which leaves the request as it was.
 */
int kx_options_apply(kx_ad_request_t *ar, const kx_str_t *options,
    const kx_pool_t *pool);


/* POST sessions/{id}/messages */

typedef struct {
    kx_message_t         message;
    unsigned             has_created;
    unsigned             track_only;
} kx_api_message_t;

/*
 * Reads one message {id, role, content, createdAt?, trackOnly?}, an array of
 * them, or {messages: [...], trackOnly?} where trackOnly is the default of
 * each.  An object with messages is the third of them.  id: a string of 1 to
 * KX_API_MAX_MESSAGE_ID bytes; role: user or assistant; content: a string,
 * also an empty one, cut after KX_MAX_CONTENT bytes between two characters;
 * createdAt: RFC 3339 (any offset, fraction of a second) or ms since the
 * epoch, of the years 1970 to 9999, cut to ms.  Other members are let be.  *n
 * is at least 1.  One message that is bad, and none is taken.  NULL or the
 * error.
 */
const kx_api_error_t *kx_api_read_messages(kx_api_message_t **messages,
    unsigned *n, const unsigned char *body, size_t len,
    const kx_pool_t *pool);


/* POST sessions/{id}/events */

typedef struct {
    kx_str_t             name;       /* a constant: "ad.viewed" */
    kx_str_t             message_id; /* empty: not given */
    kx_str_t             code;       /* empty: not given */
    unsigned             has_bid;
    unsigned char        bid[KX_ID_LEN];
    kx_str_t             payload;    /* JSON object, without revenue */
} kx_api_event_t;

/*
 * Reads {name, code?, payload?} or an event with the members of its payload
 * beside the name (protocol.md 9): ad.viewed, ad.clicked, ad.render-started,
 * ad.render-completed, ad.error, video.started, video.completed,
 * reward.granted.  The bid is "bidId", or "id" as creatives call it, a UUID;
 * all but ad.error need it, ad.viewed content and format too, ad.clicked
 * content, url, format and area too, all of them strings.  messageId is as in
 * a message; an empty one and an empty code are not given; code has
 * KX_MAX_CODE bytes at most.  payload has the members that protocol.md 9 names
 * for the event, if they are given, in that order, the bid as lower case
 * "bidId"; of ad.error message and errCode, each with a default ("Ad error",
 * "unknown").  It has KX_API_MAX_PAYLOAD bytes at most (kx_api_too_large).
 * Whatever else is wrong is kx_api_bad_event.
 */
const kx_api_error_t *kx_api_read_event(kx_api_event_t *e,
    const unsigned char *body, size_t len, const kx_pool_t *pool);

/*
 * The data of an event as it is stored and sent, the envelope {name, code?,
 * payload} (protocol.md 9), KX_API_MAX_EVENT bytes at most.  revenue is below
 * zero when it is not said; it is added to the payload of ad.viewed only.  The
 * caller may fill in code and message_id from the ad where e has none; the
 * payload of ad.viewed and of ad.clicked then gets this messageId, unless
 * there is no room for it.  Empty: no memory.
 */
kx_str_t kx_api_event(const kx_api_event_t *e, double revenue,
    const kx_pool_t *pool);

/* The same for what happens at preload time; the texts are short. */
kx_str_t kx_api_event_filled(const unsigned char bid[KX_ID_LEN],
    const kx_str_t *code, double revenue, const kx_pool_t *pool);
kx_str_t kx_api_event_no_fill(const char *skip_code, const kx_pool_t *pool);
kx_str_t kx_api_event_error(const char *err_code, const char *message,
    const kx_pool_t *pool);


/* answers */

typedef struct {
    kx_str_t             id;         /* KX_API_ID_LEN characters */
    kx_str_t             user_id;
    kx_str_t             conversation_id;
    kx_str_t             options;    /* JSON; members are copied out of it */
    unsigned             has_server_id;
    unsigned char        server_id[KX_ID_LEN];
    uint64_t             created;    /* ms since the epoch */
    unsigned             disabled;
    unsigned             enabled;    /* by /init */
    unsigned             init;       /* /init has answered */
    uint32_t             preload_timeout;        /* ms, 0: the default */
    unsigned             report_errors;
    unsigned             report_debug;
    const char          *preload;    /* "none", "pending", "filled", ... */
    kx_message_t        *messages;   /* without content, oldest first */
    unsigned             nmessages;
    kx_ad_t             *ads;        /* oldest first */
    unsigned             nads;
} kx_api_state_t;

/*
 * The session: {"sessionId", "userId", "conversationId", "serverSessionId"?,
 * "createdAt", "disabled", "preload", "flags": {"enabled", "preloadTimeout",
 * "reportErrors", "reportDebug", "init"}, the options, "messages": [{"id",
 * "role", "createdAt"}], "ads": {messageId: [...]}}, with each ad as in the
 * member "ads" of kx_protocol_member().  "enabled" is what /init said.
 * Options that are damaged are left out, ads that kx_protocol_member() does
 * not write too; of two with one message id the newer counts.  Empty: no
 * memory.
 */
kx_str_t kx_api_write_state(const kx_api_state_t *s, const kx_pool_t *pool);

/* {"error": {"code", "message"}}.  Empty: no memory. */
kx_str_t kx_api_write_error(const kx_api_error_t *e, const kx_pool_t *pool);

/*
 * Writes a session id, KX_API_ID_LEN characters: root and id of its root
 * block (session_store.h).  key is secret and has KX_SIP_KEY_LEN bytes:
 * nobody shall read off the id where in the memory the session lies.  It does
 * not protect the id, which is secret itself; a text of the right form is read
 * as some root and id, whoever made it up.
 */
void kx_api_id_write(unsigned char *dst, uint32_t root,
    const unsigned char id[KX_ID_LEN], const unsigned char *key);

/* Reads one, in lower case.  KX_OK, or KX_DECLINED: it is none. */
int kx_api_id_read(uint32_t *root, unsigned char id[KX_ID_LEN],
    const kx_str_t *text, const unsigned char *key);


#endif /* _KX_API_H_INCLUDED_ */
