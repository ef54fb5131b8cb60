/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is said to a Kontext ad server and what it answers (protocol.md 2 to
 * 4, 8, 12.1), and the member that carries an ad to the client.  The memory
 * of a body is cJSON's.
 */


#ifndef _KX_PROTOCOL_H_INCLUDED_
#define _KX_PROTOCOL_H_INCLUDED_


#include "kx.h"


#define KX_PRELOAD_TIMEOUT  16000    /* ms, protocol.md 2.2 */
#define KX_MAX_PRELOAD_TIMEOUT  600000   /* ms: what /init may say */
#define KX_MAX_ANSWER       65536    /* bytes of an ad server's answer */
#define KX_MAX_CONTENT      65536    /* bytes of message text in a preload */
#define KX_MAX_FRAME_URL    2048
#define KX_MAX_MEMBER       16384


typedef enum {
    KX_ROLE_USER = 0,
    KX_ROLE_ASSISTANT,
    KX_ROLE_OTHER                    /* never sent: system, developer, tool */
} kx_role_e;


typedef struct {
    kx_role_e            role;
    kx_str_t             id;
    kx_str_t             content;    /* UTF-8 */

    /* the same as a JSON string without its quotes, which is sent as it is
       if it is given; then content has a length of KX_MAX_CONTENT at most,
       and need not have data */
    kx_str_t             raw;

    uint64_t             tag;        /* of its memo (memo.h), or 0 */
    unsigned             clean;      /* KX_REDACT_*: what was not in raw */
    uint64_t             created;    /* ms since the epoch */
} kx_message_t;


/* numbers below zero and empty strings are unknown and left out */

typedef struct {
    kx_str_t             type;       /* handset, tablet, desktop, tv, other */
    kx_str_t             os;
    kx_str_t             os_version;
    kx_str_t             locale;     /* BCP 47 */
    kx_str_t             timezone;   /* IANA */
    kx_str_t             user_agent;
    int                  width;      /* px */
    int                  height;     /* px */
    double               dpr;
    int                  dark;       /* 0 or 1 */

    unsigned char        version[16];     /* where os_version may lie */
} kx_device_t;


typedef struct {
    kx_str_t             id;
    kx_str_t             name;
    kx_str_t             avatar_url;
    kx_str_t             greeting;
    kx_str_t             persona;
    kx_str_t            *tags;
    unsigned             ntags;
    unsigned             has_tags;   /* a list, be it an empty one */
    int                  nsfw;       /* 0, 1, or -1: not said */
} kx_character_t;


typedef struct {
    int                  gdpr;       /* 0, 1, or -1: not said */
    int                  coppa;      /* 0, 1, or -1: not said */
    kx_str_t             gdpr_consent;
    kx_str_t             gpp;
    kx_str_t             us_privacy;
    int                 *gpp_sid;
    unsigned             ngpp_sid;
    unsigned             has_gpp_sid;        /* as has_tags */
} kx_regulatory_t;


/*
 * All that an ad call may say: nothing that is not in here can leave.  An
 * empty string is left out of the body (never sent as null), except for the
 * members that the protocol demands.
 */

typedef struct {
    kx_str_t             publisher_token;
    kx_str_t             user_id;
    kx_str_t             conversation_id;
    kx_str_t             install_id;
    kx_str_t             variant_id;
    kx_str_t             user_email;
    kx_str_t             sdk_name;
    kx_str_t             sdk_platform;
    kx_str_t             sdk_version;

    unsigned             has_session:1;
    unsigned char        session[KX_ID_LEN];     /* the server's sessionId */

    kx_str_t            *placements;
    unsigned             nplacements;

    kx_message_t        *messages;   /* oldest first, the user's newest last */
    unsigned             nmessages;

    unsigned             redact;     /* KX_REDACT_* of redact.h, of messages */
    unsigned             gpc;        /* the header Sec-GPC said so */
    unsigned             consent;    /* kx_consent_e of consent.h */

    kx_device_t          device;
    kx_character_t       character;  /* used if id and name are given */
    kx_regulatory_t      regulatory;
} kx_ad_request_t;


typedef struct {
    unsigned             applied:1;  /* there was a usable answer */
    unsigned             failed:1;   /* transport failure or bad JSON */
    unsigned             enabled:1;
    unsigned             report_errors:1;
    unsigned             report_debug:1;
    uint32_t             preload_timeout;        /* ms, 0: not said */
} kx_init_answer_t;


typedef enum {
    KX_AD_NONE = 0,                  /* nothing known yet */
    KX_AD_FILLED,
    KX_AD_NO_FILL,
    KX_AD_ERROR
} kx_ad_outcome_e;


typedef struct {
    unsigned char        id[KX_ID_LEN];
    unsigned             placement;  /* index into the enabled placements */
    double               revenue;    /* below zero: not said */
} kx_bid_t;


typedef struct {
    kx_ad_outcome_e      outcome;
    unsigned             transport:1;            /* rule 2: may be retried */
    unsigned             failed:1;               /* rule 2: may be reported */
    unsigned             disable:1;              /* rule 5 */
    unsigned             has_session:1;
    unsigned char        session[KX_ID_LEN];
    /* skipCode or errCode, printable ASCII without spaces, zero-terminated */
    char                 code[KX_MAX_CODE + 1];
    unsigned             nbids;
    kx_bid_t             bids[KX_MAX_BIDS];      /* one a placement at most */
} kx_preload_answer_t;


/* what is needed to show an ad of a message */

typedef struct {
    kx_str_t             origin;     /* scheme://host[:port], no slash */
    kx_str_t             message_id;
    kx_str_t             label;
    kx_str_t             sdk_name;
    kx_str_t             theme;      /* may be empty */
    kx_str_t            *placements;
    kx_bid_t            *bids;
    unsigned             nbids;
} kx_ad_t;


/*
 * Copies what a request says into a pool, but not its messages; placements
 * stay where they are.  kx_ad_request_who() copies the identities and the sdk
 * only.  dst may not be src.  KX_OK or KX_ERROR (no memory).
 */
int kx_ad_request_copy(kx_ad_request_t *dst, const kx_ad_request_t *src,
    const kx_pool_t *pool);
int kx_ad_request_who(kx_ad_request_t *dst, const kx_ad_request_t *src,
    const kx_pool_t *pool);

/*
 * Build the body of POST /init and of POST /preload (protocol.md 2.1, 3.1 to
 * 3.7).  The text has *len bytes and is released with kx_protocol_free().
 * NULL: no memory.  Messages in which nothing was found to redact are marked
 * as clean.
 */
char *kx_protocol_init(const kx_ad_request_t *r, size_t *len);
char *kx_protocol_preload(const kx_ad_request_t *r, size_t *len);
void kx_protocol_free(char *body);

/*
 * Build the body of POST /error and of POST /debug (protocol.md 13), of r the
 * identities and the sdk.  stack and data may be NULL, bid too.
 */
char *kx_protocol_error_report(const kx_ad_request_t *r, const char *error,
    const char *stack, const unsigned char *bid, size_t *len);
char *kx_protocol_debug_report(const kx_ad_request_t *r, const char *name,
    const char *data, size_t *len);

/*
 * Reads the answer to /init (protocol.md 2.2, 2.3): tolerant member by
 * member.  status is the HTTP status, or 0 after a transport failure.  A
 * usable answer sets applied; the flags have their defaults otherwise.
 */
void kx_protocol_init_answer(kx_init_answer_t *a, unsigned status,
    const unsigned char *body, size_t len);

/*
 * Classifies the answer to /preload by rules 2 to 9 of protocol.md 4.3, in
 * that order.  status is the HTTP status, or 0 after a transport failure
 * (timeout, reset, an answer cut short or larger than KX_MAX_ANSWER, 429).
 * track_only: rule 9 becomes no fill with the code "track_only".
 */
void kx_protocol_preload_answer(kx_preload_answer_t *a, unsigned status,
    const unsigned char *body, size_t len, const kx_str_t *placements,
    unsigned nplacements, unsigned track_only);

/*
 * The same for a preload that was not sent: an outcome without an ad, and why
 * as a code of at most KX_MAX_CODE bytes.
 */
void kx_protocol_no_answer(kx_preload_answer_t *a, kx_ad_outcome_e outcome,
    const char *code);

/*
 * Writes the URL of a bid's frame (protocol.md 12.1), all parameters percent
 * encoded.  Returns the place after it, or NULL when it does not fit before
 * end.
 */
unsigned char *kx_protocol_frame_url(unsigned char *dst,
    const unsigned char *end, const kx_ad_t *ad, const kx_bid_t *bid);

/*
 * Writes the value of the "kontext" member (design.md 3.3): a JSON object in
 * pure ASCII on one line.  Returns as kx_protocol_frame_url().
 */
unsigned char *kx_protocol_member(unsigned char *dst,
    const unsigned char *end, const kx_ad_t *ad);

/*
 * Writes ms since the epoch as YYYY-MM-DDThh:mm:ss.mmmZ, 24 characters and
 * a zero (protocol.md 3.2).
 */
void kx_protocol_time(char dst[32], uint64_t ms);

/*
 * Makes the install id of a user for whom the operator names none: a UUID in
 * the form of version 7 that is the same for the same publisher and user on
 * every machine (protocol.md 3.4).  dst has KX_UUID_LEN bytes.
 */
void kx_protocol_install_id(unsigned char *dst, const kx_str_t *token,
    const kx_str_t *user);


#endif /* _KX_PROTOCOL_H_INCLUDED_ */
