/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the nginx side of the module shares.  A request goes through it like
 * this:
 *
 *   ngx_http_kontext_request.c     reads the body, understands it
 *   ngx_http_kontext_retract.c     takes text ads of the past out of it
 *   ngx_http_kontext_zone.c        the shared memory
 *   ngx_http_kontext_session.c     finds its session there
 *   ngx_http_kontext_wake.c        tells other workers of it
 *   ngx_http_kontext_store.c       and other machines, by a store
 *   ngx_http_kontext_turn.c        what is asked for it, and what came of it
 *   ngx_http_kontext_ad_request.c  puts together what an ad call may say
 *   ngx_http_kontext_ask.c         /init and /preload, and their answers
 *   ngx_http_kontext_privacy.c     and what it may not
 *   ngx_http_kontext_breaker.c     whether the ad server is to be asked
 *   ngx_http_kontext_ad_call.c     calls, in background subrequests
 *   ngx_http_kontext_detach.c      of requests that no client waits for
 *   ngx_http_kontext_report.c      tells Kontext what went wrong
 *   ngx_http_kontext_filter.c      meets the response
 *   ngx_http_kontext_stream.c      a streamed answer, frame by frame
 *   ngx_http_kontext_whole.c       an answer in one piece
 *   ngx_http_kontext_answer.c      what its frames say
 *   ngx_http_kontext_hold.c        its end waits for the ad
 *   ngx_http_kontext_ad.c          the ad as it goes to the client
 *   ngx_http_kontext_out.c         buffers to the next filter
 *
 * and a call of the session API like this:
 *
 *   ngx_http_kontext_api.c         which call it is, and its answer
 *   ngx_http_kontext_feed.c        what it does with its session
 *   ngx_http_kontext_events.c      streams what happens to it
 *
 * ngx_http_kontext_status.c shows what was counted on the way;
 * ngx_http_kontext_headers.c is for all of them.
 */


#ifndef _NGX_HTTP_KONTEXT_H_INCLUDED_
#define _NGX_HTTP_KONTEXT_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "core/breaker.h"
#include "core/chat/dialect.h"
#include "core/consent.h"
#include "core/device.h"
#include "core/feed.h"
#include "core/record.h"
#include "core/redact.h"
#include "core/responses.h"
#include "core/session_table.h"
#include "core/status.h"
#include "core/text_ad.h"


#define NGX_HTTP_KONTEXT_VERSION      "0.1.0"

#define NGX_HTTP_KONTEXT_BUFFERED     0x08      /* a free bit of r->buffered */

#define NGX_HTTP_KONTEXT_MAX_FRAME    65536     /* larger ones pass unread */
#define NGX_HTTP_KONTEXT_SMALL_FRAME  4096
#define NGX_HTTP_KONTEXT_MAX_HELD     65536     /* after the finish marker */
#define NGX_HTTP_KONTEXT_MAX_COPIES   262144    /* not yet sent, a stream */
#define NGX_HTTP_KONTEXT_MAX_WHOLE    1048576   /* an answer in one piece */
#define NGX_HTTP_KONTEXT_INIT_TIMEOUT 16000     /* ms, protocol.md 2.4 */

/* ms: a call ends by then with all its attempts, protocol.md 1.2 */
#define NGX_HTTP_KONTEXT_CALLS_TIMEOUT  (4 * KX_PRELOAD_TIMEOUT + 7000)

#define NGX_HTTP_KONTEXT_LATE_CALLS   256       /* of a worker, see ask.c */
#define NGX_HTTP_KONTEXT_TURNS        256       /* marks of news */
#define NGX_HTTP_KONTEXT_MEMO_SIZE    4194304   /* of a worker, see memo.h */
#define NGX_HTTP_KONTEXT_SPACE        2097152   /* of a worker, for bodies */
#define NGX_HTTP_KONTEXT_HEAP         524288    /* half of what may be free */
#define NGX_HTTP_KONTEXT_PING         15000     /* ms, of an event stream */
#define NGX_HTTP_KONTEXT_SLOTS        64        /* workers that can be woken */


typedef enum {
    NGX_HTTP_KONTEXT_OFF = 0,
    NGX_HTTP_KONTEXT_BYPASS,
    NGX_HTTP_KONTEXT_PENDING,
    NGX_HTTP_KONTEXT_FILLED,
    NGX_HTTP_KONTEXT_NO_FILL,
    NGX_HTTP_KONTEXT_ERROR
} ngx_http_kontext_status_e;


/* of a kx_counters_t, which is nothing but numbers */

#define NGX_HTTP_KONTEXT_COUNTERS                                             \
    (sizeof(kx_counters_t) / sizeof(uint64_t))

#define ngx_http_kontext_count(zone, field, n)                                \
    (void) ngx_atomic_fetch_add(&(zone)->counters[                            \
                                     offsetof(kx_counters_t, field)           \
                                     / sizeof(uint64_t)], n)


#define NGX_HTTP_KONTEXT_INJECT_MEMBER  0
#define NGX_HTTP_KONTEXT_INJECT_TEXT    1
#define NGX_HTTP_KONTEXT_INJECT_NONE    2


/* parameters of kontext_character */

#define NGX_HTTP_KONTEXT_CHARACTER_ID          0
#define NGX_HTTP_KONTEXT_CHARACTER_NAME        1
#define NGX_HTTP_KONTEXT_CHARACTER_AVATAR_URL  2
#define NGX_HTTP_KONTEXT_CHARACTER_GREETING    3
#define NGX_HTTP_KONTEXT_CHARACTER_PERSONA     4
#define NGX_HTTP_KONTEXT_CHARACTER_TAGS        5
#define NGX_HTTP_KONTEXT_CHARACTER_NSFW        6

/* of kontext_regulatory */

#define NGX_HTTP_KONTEXT_GDPR                  0
#define NGX_HTTP_KONTEXT_GDPR_CONSENT          1
#define NGX_HTTP_KONTEXT_COPPA                 2
#define NGX_HTTP_KONTEXT_GPP                   3
#define NGX_HTTP_KONTEXT_GPP_SID               4
#define NGX_HTTP_KONTEXT_US_PRIVACY            5

/* of kontext_device */

#define NGX_HTTP_KONTEXT_DEVICE_TYPE           0
#define NGX_HTTP_KONTEXT_DEVICE_OS             1
#define NGX_HTTP_KONTEXT_DEVICE_OS_VERSION     2
#define NGX_HTTP_KONTEXT_DEVICE_LOCALE         3
#define NGX_HTTP_KONTEXT_DEVICE_TIMEZONE       4
#define NGX_HTTP_KONTEXT_DEVICE_WIDTH          5
#define NGX_HTTP_KONTEXT_DEVICE_HEIGHT         6
#define NGX_HTTP_KONTEXT_DEVICE_DPR            7
#define NGX_HTTP_KONTEXT_DEVICE_DARK           8
#define NGX_HTTP_KONTEXT_DEVICE_USER_AGENT     9

/* of kontext_sdk */

#define NGX_HTTP_KONTEXT_SDK_NAME              0
#define NGX_HTTP_KONTEXT_SDK_PLATFORM          1
#define NGX_HTTP_KONTEXT_SDK_VERSION           2

#define NGX_HTTP_KONTEXT_MAX_PARAMS            10


/* values of a directive of the form name=value ..., NULL: not given */

typedef struct {
    ngx_http_complex_value_t          *values[NGX_HTTP_KONTEXT_MAX_PARAMS];
} ngx_http_kontext_params_t;


typedef struct ngx_http_kontext_loc_conf_s  ngx_http_kontext_loc_conf_t;


/* an ad server: a location of a server block */

typedef struct {
    ngx_str_t                          server;     /* its name */
    ngx_str_t                          prefix;
    uint64_t                           key;
    kx_breaker_t                      *breaker;    /* in the zone */
    ngx_http_kontext_loc_conf_t       *conf;       /* the first that uses it */
    ngx_uint_t                         store;      /* of records, not of ads */
} ngx_http_kontext_site_t;


/* a store of sessions that several nodes share */

typedef struct {
    ngx_str_t                          uri;
    ngx_str_t                          words;      /* the secret as written */
    ngx_msec_t                         timeout;
    kx_breaker_conf_t                  breaker;

    /* keys: of the records, and of what a node makes up */
    u_char                             secret[KX_SHA256_LEN];
} ngx_http_kontext_store_conf_t;


/* where a body lies that did not come in one piece */

typedef struct {
    u_char                            *data;       /* or NULL */
    size_t                             size;       /* 0: to be freed */
} ngx_http_kontext_space_t;


typedef struct {
    ngx_str_t                          name;
    ngx_shm_zone_t                    *zone;
    ngx_uint_t                         used;       /* is it on anywhere? */
    ngx_uint_t                         api;        /* is there kontext_api? */
    ngx_array_t                        locations;  /* to be checked */
    ngx_array_t                        sites;      /* of pointers to them */
    kx_memo_table_t                   *memos;      /* of the worker, or NULL */
    ngx_http_kontext_space_t           space;      /* kept by the worker */
} ngx_http_kontext_main_conf_t;


struct ngx_http_kontext_loc_conf_s {
    ngx_http_kontext_main_conf_t      *main;
    ngx_http_kontext_site_t           *site;
    ngx_http_kontext_site_t           *store_site;
    ngx_http_kontext_store_conf_t     *store;      /* NULL: there is none */

    ngx_http_complex_value_t          *enable;
    ngx_http_complex_value_t          *token;
    ngx_http_complex_value_t          *user_id;
    ngx_http_complex_value_t          *conversation_id;
    ngx_http_complex_value_t          *label;
    ngx_http_complex_value_t          *text;
    ngx_http_complex_value_t          *variant_id;
    ngx_http_complex_value_t          *user_email;
    ngx_http_complex_value_t          *theme;
    ngx_http_complex_value_t          *install_id;

    ngx_http_kontext_params_t         *character;
    ngx_http_kontext_params_t         *regulatory;
    ngx_http_kontext_params_t         *device;
    ngx_http_kontext_params_t         *sdk;

    ngx_array_t                       *placements; /* of kx_str_t */

    ngx_str_t                          ad_server;  /* no slash at the end */
    ngx_str_t                          frame_origin;

    const kx_dialect_t                *format;     /* NULL: auto */
    ngx_uint_t                         inject;
    ngx_msec_t                         grace;
    ngx_msec_t                         preload_timeout;
    size_t                             max_body;
    ngx_int_t                          max_calls;
    kx_breaker_conf_t                  breaker;    /* failures 0: not given */
    kx_consent_conf_t                 *consent;
    ngx_uint_t                         redact;     /* KX_REDACT_* */

    ngx_uint_t                         enabled;    /* may be on */

    ngx_uint_t                         status;
    ngx_uint_t                         api;
    ngx_msec_t                         api_ping;
    ngx_array_t                       *api_origins;   /* of ngx_str_t */
};


typedef struct ngx_http_kontext_zone_s  ngx_http_kontext_zone_t;
typedef struct ngx_http_kontext_fds_s   ngx_http_kontext_fds_t;
typedef struct ngx_http_kontext_ctx_s   ngx_http_kontext_ctx_t;
typedef struct ngx_http_kontext_ask_s   ngx_http_kontext_ask_t;
typedef struct ngx_http_kontext_call_s  ngx_http_kontext_call_t;
typedef struct ngx_http_kontext_api_s   ngx_http_kontext_api_t;
typedef struct ngx_http_kontext_fetch_s  ngx_http_kontext_fetch_t;


typedef void (*ngx_http_kontext_call_handler_pt)(
    ngx_http_kontext_call_t *call);


typedef enum {
    NGX_HTTP_KONTEXT_CALL_INIT = 0,
    NGX_HTTP_KONTEXT_CALL_PRELOAD,
    NGX_HTTP_KONTEXT_CALL_ERROR,
    NGX_HTTP_KONTEXT_CALL_DEBUG,
    NGX_HTTP_KONTEXT_CALL_STORE      /* not of the ad server */
} ngx_http_kontext_call_e;


/* a call of a location with all of its attempts, in a pool of its own */

struct ngx_http_kontext_call_s {
    ngx_http_request_t                *request;    /* a detached one */
    ngx_http_request_t                *sr;         /* NULL between attempts */
    ngx_http_kontext_loc_conf_t       *conf;
    ngx_http_kontext_call_e            kind;

    ngx_uint_t                         method;
    ngx_str_t                          uri;
    ngx_str_t                          args;
    ngx_str_t                          body;
    ngx_str_t                          token;
    size_t                             max;        /* of the answer */

    ngx_uint_t                         attempt;
    ngx_msec_t                         timeout;    /* of an attempt */
    ngx_event_t                        timer;      /* deadline, or back-off */
    ngx_event_t                        event;      /* posted */
    ngx_msec_t                         started;
    uint64_t                           begun;      /* the attempt */

    /* the answer */
    ngx_uint_t                         status;     /* 0: transport failure */
    u_char                            *data;
    size_t                             len;
    size_t                             size;

    ngx_http_kontext_call_handler_pt   handler;    /* it is over */
    ngx_http_kontext_call_handler_pt   failed;     /* an attempt is, or NULL */
    ngx_http_kontext_ask_t            *ask;
    void                              *data_of;    /* the handler's */

    unsigned                           track_only:1;
    unsigned                           active:1;   /* no result yet */
    unsigned                           overflow:1;
    unsigned                           complete:1; /* its last buffer came */
    unsigned                           counted:1;  /* by the breaker */
    unsigned                           probe:1;    /* its result is wanted */
};


/* what a worker says of itself in the zone; only pending is of the others */

typedef struct {
    ngx_atomic_t                       pid;        /* 0: nobody's */
    ngx_atomic_t                       pending;    /* it was woken */
    ngx_atomic_t                       streams;    /* of events, open */
    volatile uint64_t                  watches[NGX_HTTP_KONTEXT_TURNS / 64];
} ngx_http_kontext_slot_t;


struct ngx_http_kontext_zone_s {
    ngx_slab_pool_t                   *shpool;
    kx_session_table_t                *table;
    ngx_atomic_t                      *turns;      /* count news, by key */
    ngx_http_kontext_slot_t           *slots;
    ngx_atomic_t                      *nslots;     /* used up to now */
    ngx_atomic_t                      *counters;   /* a kx_counters_t */
    kx_response_t                     *responses;
    size_t                             nresponses;
    kx_breaker_t                      *breakers;
    ngx_uint_t                         nbreakers;
    ngx_http_kontext_main_conf_t      *main;
    size_t                             size;       /* of the table */
    ngx_uint_t                         share;      /* 64ths: of the store */
    ngx_msec_t                         idle;
    ngx_uint_t                         streams;    /* of events, at most */
    ngx_http_kontext_fds_t            *fds;
    int                                fd;         /* this worker's, or -1 */
    u_char                             secret[32];
};


typedef struct ngx_http_kontext_watch_s  ngx_http_kontext_watch_t;

struct ngx_http_kontext_watch_s {
    ngx_queue_t                        queue;
    ngx_uint_t                         bucket;
    ngx_atomic_uint_t                  turns;      /* seen */
    void                             (*handler)(
                                           ngx_http_kontext_watch_t *watch);
    void                              *data;
    unsigned                           watching:1;
};


/* which turn of which session */

typedef struct {
    ngx_http_kontext_zone_t           *zone;
    ngx_http_kontext_loc_conf_t       *conf;
    u_char                             key[KX_ID_LEN];
    uint64_t                           user;
    uint32_t                           seq;
    uint32_t                           init_seq;

    /* how all nodes name it, if they share a store */
    u_char                             store_key[KX_ID_LEN];
    uint64_t                           store_user;

    /* what /init has said of reports */
    unsigned                           no_errors:1;
    unsigned                           debug:1;
    unsigned                           shared:1;
} ngx_http_kontext_turn_t;


/* a session as the API names it, session_store.h */

typedef struct {
    uint32_t                           root;
    u_char                             id[KX_ID_LEN];
} ngx_http_kontext_sid_t;


/* what the API sees of a session, copied out of the memory */

typedef struct {

    /* what is wanted */
    size_t                             size;       /* 0: no messages */
    u_char                            *text;       /* where they go */
    ngx_uint_t                         ids;        /* not their contents */
    ngx_array_t                       *placements; /* NULL: no ads */

    ngx_http_kontext_sid_t             sid;
    ngx_http_kontext_turn_t            turn;       /* conf is not set */
    ngx_str_t                          user;
    ngx_str_t                          conversation;
    ngx_str_t                          options;
    uint32_t                           revision;
    uint32_t                           timeout;    /* of /init, or 0 */
    uint64_t                           created;    /* ms since the epoch */
    uint64_t                           events;
    kx_turn_state_e                    state;
    uint32_t                           owner;
    uint32_t                           init_owner; /* 0: it is not sent */
    ngx_uint_t                         has_server_id;
    u_char                             server_id[KX_ID_LEN];

    kx_message_t                       messages[KX_MAX_MESSAGES];
    ngx_uint_t                         nmessages;
    kx_feed_ad_t                       ads[KX_MAX_MESSAGES];
    ngx_uint_t                         nads;

    unsigned                           disabled:1;
    unsigned                           enabled:1;
    unsigned                           init:1;     /* it has answered */
    unsigned                           failed:1;
    unsigned                           track_only:1;

    u_char                             identity[2 * KX_MAX_IDENTITY];
    u_char                             stored[KX_API_MAX_OPTIONS];
    u_char                             ad_ids[KX_MAX_MESSAGES
                                              * KX_API_MAX_MESSAGE_ID];
} ngx_http_kontext_view_t;


/* /init or /preload of a turn; lives in the pool of its call */

struct ngx_http_kontext_ask_s {
    ngx_queue_t                        queue;      /* of this worker's asks */
    ngx_http_kontext_call_t           *call;
    ngx_http_kontext_ctx_t            *ctx;        /* who waits, or NULL */
    ngx_http_kontext_turn_t            turn;
    ngx_http_kontext_watch_t           watch;
    kx_ad_request_t                    who;        /* for reports */
};


/* a turn that waits for what the store knows; lives in its pool */

struct ngx_http_kontext_fetch_s {
    ngx_http_kontext_ctx_t            *ctx;
    ngx_http_kontext_call_t           *call;       /* NULL: it is answered */
    ngx_pool_t                        *pool;
    ngx_http_kontext_space_t           space;      /* of the body */
    size_t                             kept;       /* bytes of all of it */
    kx_message_t                      *messages;
    ngx_uint_t                         n;
    u_char                             digest[KX_ID_LEN];
    uint32_t                           seq;        /* when it was asked */
    ngx_uint_t                         found;
    kx_record_t                        record;
};


/*
 * Lives as long as the pool of the main request, and is found again after an
 * internal redirect, which clears r->ctx.
 */

struct ngx_http_kontext_ctx_s {
    ngx_http_request_t                *request;
    ngx_http_kontext_loc_conf_t       *conf;

    ngx_http_kontext_status_e          status;
    kx_reason_e                        reason;

    unsigned                           body_done:1;
    unsigned                           analysed:1;
    unsigned                           guess:1;    /* the body tells */
    unsigned                           derived:1;  /* the conversation's id */
    unsigned                           track_only:1;
    unsigned                           identify:1; /* and nothing else */
    unsigned                           waiting:1;  /* asked by another one */
    unsigned                           header_seen:1;
    unsigned                           streaming:1;/* it is read along */
    unsigned                           first:1;    /* no frame yet */
    unsigned                           header_sent:1;
    unsigned                           flushed:1;  /* the header is out */
    unsigned                           kept:1;     /* a frame is in held */
    unsigned                           skipping:1; /* in a large frame */
    unsigned                           passing:1;  /* no need to read on */
    unsigned                           finished:1; /* the marker was seen */
    unsigned                           holding:1;
    unsigned                           expired:1;  /* the grace is over */
    unsigned                           last:1;     /* last_buf is kept back */
    unsigned                           ended:1;

    /* stream: what each event goes by is at the beginning */
    kx_framer_t                        framer;
    u_char                            *frame;      /* an unfinished one */
    size_t                             frame_len;
    ngx_chain_t                       *busy;
    ngx_chain_t                       *free;
    kx_answer_t                        answer;
    size_t                             frame_size;
    u_char                            *held;       /* from the finish on */
    size_t                             held_len;
    size_t                             held_size;
    size_t                             copies;     /* bytes in busy */
    ngx_chain_t                       *spare;      /* for want of memory */
    size_t                             at[KX_MAX_PLACES];
    size_t                             start;      /* of a kept frame */
    ngx_str_t                          message_id;
    u_char                             message[KX_ID_LEN];
    ngx_str_t                          frame_url;  /* of the first bid */

    kx_reason_e                        response;   /* before it was analysed */
    ngx_str_t                          code;       /* skipCode or errCode */

    /* a call of the session API */
    ngx_http_kontext_api_t            *api;
    void                              *events;     /* its event stream */
    ngx_str_t                          event;      /* what it reports */

    /* request */
    ngx_str_t                          token;
    ngx_str_t                          user;
    ngx_str_t                          conversation;
    ngx_str_t                          label;
    ngx_str_t                          theme;
    ngx_str_t                          sdk_name;
    kx_pool_t                          pool;
    kx_conversation_t                  cv;
    ngx_event_t                        analyse;    /* timer, or posted */
    ngx_pool_t                        *scratch;    /* of what it has said */
    size_t                             scratched;  /* bytes, with copies */

    /* session */
    ngx_http_kontext_turn_t            turn;
    ngx_http_kontext_fetch_t          *fetch;      /* it waits, or NULL */
    u_char                             conversation_digest[KX_ID_LEN];
    ngx_atomic_uint_t                  turns;      /* seen at the start */
    ngx_str_t                          session;    /* the server's sessionId */

    /* ad call */
    ngx_http_kontext_ask_t            *init;       /* under way, or NULL */
    ngx_http_kontext_ask_t            *ask;        /* the preload, as well */
    ngx_msec_t                         preload_time;
    kx_bid_t                           bids[KX_MAX_BIDS];
    ngx_uint_t                         nbids;

    /* the end of the stream */
    ngx_event_t                        wake;       /* posted */
    ngx_http_posted_request_t          posted;     /* run at once */
    ngx_event_t                        grace;      /* timer */
    ngx_http_kontext_watch_t           watch;      /* of another one's ask */
    ngx_msec_t                         hold_start;
    ngx_msec_t                         hold_time;
    size_t                             injected;   /* bytes */
};


/* module */

extern ngx_module_t  ngx_http_kontext_module;

/* The context of the main request that r belongs to, or NULL. */
ngx_http_kontext_ctx_t *ngx_http_kontext_get_ctx(ngx_http_request_t *r);

/* Sets a bypass or a reason; the first one stays. */
void ngx_http_kontext_bypass(ngx_http_kontext_ctx_t *ctx, kx_reason_e reason);
void ngx_http_kontext_refuse(ngx_http_kontext_ctx_t *ctx, kx_reason_e reason);


/* Can a session be one that the API knows? */
#define ngx_http_kontext_has_api(klcf)  ((klcf)->main->api)

/* The zone of a location. */
#define ngx_http_kontext_zone_of(klcf)                                        \
    ((ngx_http_kontext_zone_t *) (klcf)->main->zone->data)


/* variables */

ngx_int_t ngx_http_kontext_add_variables(ngx_conf_t *cf);


/* request */

ngx_int_t ngx_http_kontext_handler(ngx_http_request_t *r);

/* Gives a request a context; NULL: no memory. */
ngx_http_kontext_ctx_t *ngx_http_kontext_create_ctx(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf);

/* A directive's value; left alone where there is none. */
ngx_int_t ngx_http_kontext_value(ngx_http_request_t *r,
    ngx_http_complex_value_t *cv, ngx_str_t *value);

/* Is it one that can be sent in a header?  NGX_OK or NGX_DECLINED. */
ngx_int_t ngx_http_kontext_check_token(ngx_str_t *token);

/* alloc of a kx_pool_t; data is an nginx pool */
void *ngx_http_kontext_alloc(void *data, size_t size);

/* Is it application/json, or a type that ends with +json? */
ngx_uint_t ngx_http_kontext_is_json(ngx_str_t *type);

/*
 * The body in one piece, of max bytes at most, in its buffer or in space; that
 * is to be released when it is not needed any more, in any case.
 */
kx_reason_e ngx_http_kontext_read_body(ngx_http_kontext_ctx_t *ctx,
    size_t max, ngx_str_t *body, ngx_http_kontext_space_t *space);
void ngx_http_kontext_release_body(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_space_t *space);

/*
 * Understands the request and starts its ad calls, once.  Asks for nothing
 * any more when the answer has ended.
 */
void ngx_http_kontext_analyse(ngx_http_kontext_ctx_t *ctx);

/* The same, as soon as what is being sent was sent, if it is still due. */
void ngx_http_kontext_analyse_post(ngx_http_kontext_ctx_t *ctx);

void ngx_http_kontext_analyse_cancel(ngx_http_kontext_ctx_t *ctx);


/* store */

char *ngx_http_kontext_store(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* How the nodes name a session: sets what belongs to a turn with a conf. */
void ngx_http_kontext_store_key(ngx_http_kontext_turn_t *turn,
    ngx_str_t *token, ngx_str_t *conversation, ngx_str_t *user);

/*
 * Asks the store what other nodes know of a turn; fetch has its messages.
 * NGX_OK: turn_resume() is to follow, unless store_leave() is called first.
 * NGX_DECLINED: nobody is asked.
 */
ngx_int_t ngx_http_kontext_store_fetch(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_fetch_t *fetch);

/* Does not wait any more, and frees what there is of the request. */
void ngx_http_kontext_store_leave(ngx_http_kontext_ctx_t *ctx);

/* Tells the other nodes of a session; r is any request of its location. */
void ngx_http_kontext_store_save(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn);
void ngx_http_kontext_store_delete(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn);


/* turn */

/*
 * Asks for an ad, or finds out that none is to be asked for.  pool is for what
 * is not needed any more afterwards.
 */
kx_reason_e ngx_http_kontext_turn(ngx_http_kontext_ctx_t *ctx,
    ngx_pool_t *pool);

/* Goes on when the store has said what it knows. */
void ngx_http_kontext_turn_resume(ngx_http_kontext_ctx_t *ctx);

/* Keeps a skipCode or errCode for the variables. */
void ngx_http_kontext_set_code(ngx_http_kontext_ctx_t *ctx,
    const char *code);

/* A newer turn of the user has made this one's ad useless. */
void ngx_http_kontext_superseded(ngx_http_kontext_ctx_t *ctx);

/* Gives up what is still under way for a request that is answered. */
void ngx_http_kontext_end(ngx_http_kontext_ctx_t *ctx);


/* ask */

/*
 * Makes what is to be asked for a turn, /init or /preload: ar is what may be
 * said, with its messages.  ctx is who waits for the ad, or NULL.  NGX_OK, or
 * NGX_ERROR: the session knows that nothing is asked.
 */
ngx_int_t ngx_http_kontext_ask(ngx_http_request_t *r,
    ngx_http_kontext_call_e kind, ngx_http_kontext_turn_t *turn,
    kx_ad_request_t *ar, ngx_http_kontext_ctx_t *ctx, ngx_msec_t timeout,
    ngx_uint_t track_only);

/* How long a preload may take: what /init has said, 0 if it did not, and less
   if the operator wants so; ms */
ngx_msec_t ngx_http_kontext_ask_timeout(ngx_http_kontext_loc_conf_t *klcf,
    ngx_msec_t timeout);

/* Cancels what this worker asks for older turns of a session. */
void ngx_http_kontext_ask_supersede(ngx_http_kontext_turn_t *turn);

/* Nobody waits for it any more: it goes on if its ad may be of use. */
void ngx_http_kontext_ask_leave(ngx_http_kontext_ask_t *ask);

/* Gives it up; the session is not told. */
void ngx_http_kontext_ask_cancel(ngx_http_kontext_ask_t *ask);

/* Has the call failed once, or is its answer known to be of no use? */
ngx_uint_t ngx_http_kontext_ask_failing(ngx_http_kontext_ask_t *ask);

/* Is nothing to be expected of it before that time (as ngx_current_msec)? */
ngx_uint_t ngx_http_kontext_ask_later(ngx_http_kontext_ask_t *ask,
    ngx_msec_t limit);


/* zone: what a session has to say to a request, copied out of the memory */

typedef struct {
    kx_turn_e                          turn;
    ngx_uint_t                         init;       /* send /init */
    ngx_uint_t                         has_server_id;
    u_char                             server_id[KX_ID_LEN];
    uint32_t                           timeout;    /* of /init, or 0 */
    uint64_t                           wall;       /* when the turn came */
    ngx_uint_t                         created;
    ngx_str_t                          options;    /* of the API, see there */
    kx_turn_state_e                    state;
    u_char                             code[KX_SESSION_CODE_LEN];
    kx_bid_t                           bids[KX_MAX_BIDS];
    ngx_uint_t                         nbids;
} ngx_http_kontext_session_t;


/* Takes the result of a turn that another request has asked for. */
void ngx_http_kontext_reuse(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s);

/* Takes the answer to the preload that this request has asked for. */
void ngx_http_kontext_turn_answer(ngx_http_kontext_ctx_t *ctx,
    kx_preload_answer_t *a);

char *ngx_http_kontext_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* Adds the default zone where kontext is used and none was configured. */
ngx_int_t ngx_http_kontext_zone_default(ngx_conf_t *cf);

/* The zone that a request's sessions are in. */
ngx_http_kontext_zone_t *ngx_http_kontext_zone_get(ngx_http_request_t *r);

/* Bytes that nobody can guess.  NGX_OK or NGX_ERROR. */
ngx_int_t ngx_http_kontext_random(u_char *p, size_t len);

/* Secret keys that belong to the zone, of KX_SIP_KEY_LEN bytes each. */
const u_char *ngx_http_kontext_zone_key(ngx_http_request_t *r);
const u_char *ngx_http_kontext_text_key(ngx_http_request_t *r);

/* Finds out which session it is: sets key and user of a turn with a zone. */
void ngx_http_kontext_session_key(ngx_http_kontext_turn_t *turn,
    ngx_str_t *token, ngx_str_t *conversation, ngx_str_t *user);

/*
 * Opens the session of a turn whose user message has this digest, and is the
 * one of this index.  record is what other nodes know, or NULL.  Fills in
 * s, and seq and init_seq of the turn; turns is what zone_turned() compares.
 * NGX_OK, or NGX_DECLINED when there is no room.
 */
ngx_int_t ngx_http_kontext_session_turn(ngx_http_kontext_turn_t *turn,
    u_char *message, ngx_uint_t index, ngx_uint_t track_only,
    kx_record_t *record, ngx_http_kontext_session_t *s,
    ngx_atomic_uint_t *turns);

/* kx_record_due() of the session of a turn; seq is the session's, or 0. */
ngx_uint_t ngx_http_kontext_session_due(ngx_http_kontext_turn_t *turn,
    u_char *message, uint32_t *seq);

/* Has the user gone on to another message since session_due() gave seq? */
ngx_uint_t ngx_http_kontext_session_passed(ngx_http_kontext_turn_t *turn,
    u_char *message, uint32_t seq);

/*
 * Merges a session with what other nodes know, if known says that there is
 * something in record, and makes it what is to be written.  NGX_OK, or
 * NGX_DECLINED: there is no such session any more, or another user has a
 * newer one elsewhere.
 */
ngx_int_t ngx_http_kontext_session_share(ngx_http_kontext_turn_t *turn,
    kx_record_t *record, ngx_uint_t known);

/*
 * Results of the calls; NGX_DECLINED: superseded, or another user's.  pool is
 * for the events that they make.
 */
ngx_int_t ngx_http_kontext_session_answer(ngx_http_kontext_turn_t *turn,
    kx_preload_answer_t *a, kx_pool_t *pool);

/* NGX_OK, or NGX_DECLINED: the turn's preload is still to be answered. */
ngx_int_t ngx_http_kontext_session_init_answer(ngx_http_kontext_turn_t *turn,
    kx_init_answer_t *a, kx_pool_t *pool);

/* The preload could not even be sent, which the session's listeners learn. */
void ngx_http_kontext_session_failed(ngx_http_kontext_turn_t *turn,
    kx_pool_t *pool);

/* The preload was not to be sent: an outcome, and a reason for its code. */
void ngx_http_kontext_session_refused(ngx_http_kontext_turn_t *turn,
    kx_ad_outcome_e outcome, kx_reason_e reason, kx_pool_t *pool);
void ngx_http_kontext_session_cancel(ngx_http_kontext_turn_t *turn);
void ngx_http_kontext_session_init_cancel(ngx_http_kontext_turn_t *turn);

/* The answer of the turn is this message: its ad goes there, now or later. */
void ngx_http_kontext_session_assistant(ngx_http_kontext_turn_t *turn,
    u_char *message, ngx_str_t *id);

/* Is the session there, and the same user's?  NGX_OK or NGX_DECLINED. */
ngx_int_t ngx_http_kontext_session_same(ngx_http_kontext_turn_t *turn);

/*
 * Remembers of which conversation the answer ctx->answer.response_id is, if
 * the conversation has no name but the one that was made for it.
 */
void ngx_http_kontext_session_response(ngx_http_kontext_ctx_t *ctx);

/*
 * Looks up the conversation of an earlier answer: NGX_OK (ctx->conversation
 * is set), NGX_DECLINED (it is not known), NGX_ERROR (no memory).
 */
ngx_int_t ngx_http_kontext_session_previous(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *id);

/*
 * Looks for the answer that another request has asked for, or for a newer
 * turn: NGX_OK (s, unless it is NULL, is filled in), NGX_AGAIN, NGX_DECLINED
 * (superseded), NGX_ERROR (the session is gone).
 */
ngx_int_t ngx_http_kontext_session_look(ngx_http_kontext_turn_t *turn,
    ngx_http_kontext_session_t *s);

/* Has there been news since that may be of this session? */
ngx_uint_t ngx_http_kontext_session_turned(ngx_http_kontext_turn_t *turn,
    ngx_atomic_uint_t *turns);

/* Takes the zone's lock, and repairs what a dead worker has left. */
void ngx_http_kontext_zone_enter(ngx_http_kontext_zone_t *zone);
void ngx_http_kontext_zone_leave(ngx_http_kontext_zone_t *zone);

/* A clock that all workers share, ms. */
#define ngx_http_kontext_now()  ((uint64_t) ngx_current_msec)

/* ms since the epoch */
uint64_t ngx_http_kontext_wall(void);


/* wake */

/*
 * Opens the descriptors that belong to a zone, or takes those of the cycle
 * before; NGX_OK or NGX_ERROR.  They are closed with the last cycle's pool.
 */
ngx_int_t ngx_http_kontext_fds_open(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_zone_t *old, ngx_log_t *log);
ngx_int_t ngx_http_kontext_fds_keep(ngx_conf_t *cf,
    ngx_http_kontext_zone_t *zone);

/* Of each worker. */
ngx_int_t ngx_http_kontext_wake_init(ngx_cycle_t *cycle,
    ngx_http_kontext_zone_t *zone);
void ngx_http_kontext_wake_exit(void);

/* To be called from time to time by who watches. */
void ngx_http_kontext_wake_heal(void);

/* The index into the zone's turns for the session of a key. */
ngx_uint_t ngx_http_kontext_bucket(const u_char *key);

/*
 * Has the handler called whenever there may be news of the session of a key
 * (KX_ID_LEN bytes), from any worker, and when this worker is about to end.
 * Not within the lock.
 */
void ngx_http_kontext_watch(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_watch_t *watch, const u_char *key);
void ngx_http_kontext_unwatch(ngx_http_kontext_watch_t *watch);

/*
 * There is news of the session of a key: wakes the workers that watch it.
 * Returns its count.  Not within the lock.
 */
ngx_atomic_uint_t ngx_http_kontext_touch(ngx_http_kontext_zone_t *zone,
    const u_char *key);

/* Counts an event stream; NGX_DECLINED: there are max of them already. */
ngx_int_t ngx_http_kontext_stream_count(ngx_http_kontext_zone_t *zone,
    ngx_uint_t max);
void ngx_http_kontext_stream_uncount(void);


/* feed: NGX_DECLINED is that there is no such session, unless it says so */

/*
 * Opens the session of a turn for the API.  init: /init is to be sent.
 * NGX_DECLINED: there is no room.  NGX_ERROR: no random bytes.
 */
ngx_int_t ngx_http_kontext_feed_open(ngx_http_kontext_turn_t *turn,
    ngx_str_t *user, ngx_str_t *conversation, ngx_http_kontext_view_t *view,
    ngx_uint_t *init, ngx_uint_t *created);

ngx_int_t ngx_http_kontext_feed_view(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_view_t *view, ngx_http_kontext_sid_t *sid);

/* KX_OK, KX_AGAIN, KX_DECLINED as kx_feed_set_options(); KX_ERROR: gone. */
ngx_int_t ngx_http_kontext_feed_set_options(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, uint32_t revision, ngx_str_t *options);

/*
 * Sets what belongs to the turn; KX_FEED_ASK: feed_start() is to follow.  dead
 * is a worker that has died with the session's /init, or 0.
 */
kx_feed_e ngx_http_kontext_feed_message(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, kx_api_message_t *m, u_char *digest,
    ngx_http_kontext_turn_t *turn, uint32_t dead, ngx_uint_t *init);

/* Has this worker died? */
ngx_uint_t ngx_http_kontext_feed_dead(uint32_t pid);

/*
 * Sends the preload of a turn after a delay (ms), unless a newer one has come
 * by then.  ar is what may be said, without its messages.  NGX_ERROR: the
 * session knows that nothing is asked.
 */
ngx_int_t ngx_http_kontext_feed_start(ngx_http_request_t *r,
    ngx_http_kontext_sid_t *sid, ngx_http_kontext_turn_t *turn,
    kx_ad_request_t *ar, ngx_uint_t track_only, ngx_msec_t delay);

/*
 * Has a worker died with the preload of this session?  NGX_OK: it is this
 * one's now, and feed_start() is to follow.
 */
ngx_int_t ngx_http_kontext_feed_orphan(ngx_http_kontext_view_t *view);

/* NGX_DECLINED: the message has none. */
ngx_int_t ngx_http_kontext_feed_ad(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, ngx_str_t *id, ngx_array_t *placements,
    kx_feed_ad_t *ad);

/* NGX_DECLINED: there is no such bid; otherwise as kx_feed_bid(). */
ngx_int_t ngx_http_kontext_feed_bid(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, u_char *id, kx_session_bid_t *bid,
    u_char *buf, ngx_str_t *message);

/* Returns the event's number, 0: there is no room, or no session. */
uint64_t ngx_http_kontext_feed_event(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, ngx_str_t *data, u_char *key);

ngx_int_t ngx_http_kontext_feed_events(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, uint64_t after, kx_feed_event_t *events,
    ngx_uint_t *n, u_char *buf, size_t size, uint64_t *lost);

ngx_int_t ngx_http_kontext_feed_close(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_sid_t *sid, u_char *key);


/* api, events */

ngx_int_t ngx_http_kontext_api_handler(ngx_http_request_t *r);

/*
 * Makes the answer to r an event stream, which was counted already: of what
 * comes after the client's Last-Event-ID.  newest is the number of the newest
 * event; interval is how often a comment is sent, ms.
 */
ngx_int_t ngx_http_kontext_events(ngx_http_request_t *r,
    ngx_http_kontext_sid_t *sid, ngx_http_kontext_turn_t *turn,
    uint64_t newest, ngx_msec_t interval);


/* privacy */

char *ngx_http_kontext_consent_set(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_kontext_redact_set(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_kontext_privacy_merge(ngx_conf_t *cf,
    ngx_http_kontext_loc_conf_t *conf, ngx_http_kontext_loc_conf_t *prev);

/* Does the client say that its data are not to be sold or shared? */
ngx_uint_t ngx_http_kontext_gpc(ngx_http_request_t *r);

/* Sets ar->consent, by what is in ar. */
void ngx_http_kontext_consent(ngx_http_kontext_loc_conf_t *klcf,
    kx_ad_request_t *ar);

/* Takes the ids out; pool lives as long as ar.  NGX_OK or NGX_ERROR. */
ngx_int_t ngx_http_kontext_anonymise(kx_ad_request_t *ar, ngx_pool_t *pool);


/* breaker */

char *ngx_http_kontext_breaker(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
void ngx_http_kontext_breaker_merge(ngx_http_kontext_loc_conf_t *conf,
    ngx_http_kontext_loc_conf_t *prev);

/* The ad server of a prefix in the server block of cf.  NULL: no memory. */
ngx_http_kontext_site_t *ngx_http_kontext_site(ngx_conf_t *cf,
    ngx_http_kontext_main_conf_t *kmcf, ngx_str_t *prefix);

/*
 * Records for all ad servers of a configuration, in a new zone; finds those
 * that are there; and begins, in a new worker.  NGX_OK or NGX_ERROR (no room).
 */
ngx_int_t ngx_http_kontext_breakers_create(ngx_http_kontext_main_conf_t *kmcf,
    ngx_slab_pool_t *shpool, kx_breaker_t **breakers, ngx_uint_t *n);
void ngx_http_kontext_breakers_init(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_main_conf_t *kmcf);
void ngx_http_kontext_breakers_start(ngx_http_kontext_main_conf_t *kmcf);

/*
 * May a preload be sent?  KX_REASON_NONE, or why not.  probe: the breaker
 * waits for its result.
 */
kx_reason_e ngx_http_kontext_breaker_admit(ngx_http_kontext_loc_conf_t *klcf,
    ngx_uint_t *probe);

/* May the store be called? */
ngx_uint_t ngx_http_kontext_breaker_store(ngx_http_kontext_loc_conf_t *klcf);

/* May anything else be sent, or a preload once more? */
ngx_uint_t ngx_http_kontext_breaker_allows(ngx_http_kontext_loc_conf_t *klcf);

/* An attempt of a call begins, and ends; the first end counts. */
void ngx_http_kontext_breaker_begin(ngx_http_kontext_call_t *call);
void ngx_http_kontext_breaker_end(ngx_http_kontext_call_t *call,
    kx_breaker_end_e end);

/* What the status page says of it, but for the names. */
void ngx_http_kontext_breaker_status(ngx_http_kontext_site_t *site,
    kx_status_breaker_t *s);


/* status */

ngx_int_t ngx_http_kontext_status_handler(ngx_http_request_t *r);


/* report */

/*
 * Tell Kontext of a failure, if it may be told (turn->no_errors), and of a
 * step of a session, if it was asked for (turn->debug); r is any request of
 * the location, ar has the identities.  data is JSON.
 */
void ngx_http_kontext_report(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn, kx_ad_request_t *ar, const char *error,
    const char *stack);
void ngx_http_kontext_debug(ngx_http_request_t *r,
    ngx_http_kontext_turn_t *turn, kx_ad_request_t *ar, const char *name,
    const char *data);


/* ad request */

/*
 * Puts together what directives and headers say, for a request that has its
 * token, user and conversation; strings are in r->pool or in place.
 */
ngx_int_t ngx_http_kontext_ad_request(ngx_http_request_t *r,
    ngx_http_kontext_loc_conf_t *klcf, kx_ad_request_t *ar);

/* The name of the sdk that this is taken for. */
ngx_int_t ngx_http_kontext_sdk_name(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, ngx_str_t *name);

/* The values of hardware.type (protocol.md 3.6), up to an empty string. */
extern ngx_str_t  ngx_http_kontext_device_types[];

/* Is a value in a list that ends with an empty string? */
ngx_uint_t ngx_http_kontext_listed(ngx_str_t *value, ngx_str_t *list);

/* A value of a name=value directive; empty if not given. */
ngx_int_t ngx_http_kontext_param(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, ngx_uint_t n, ngx_str_t *value);


/* headers */

/* The first request header of a lower case name, or an empty string. */
void ngx_http_kontext_header(ngx_http_request_t *r, ngx_str_t *name,
    ngx_str_t *value);

/* Adds a response header.  NGX_OK or NGX_ERROR. */
ngx_int_t ngx_http_kontext_header_out(ngx_http_request_t *r, char *name,
    ngx_str_t *value);

/*
 * Sends a response that is not to be stored; type and body live as long as
 * the request.  The result is for ngx_http_finalize_request().
 */
ngx_int_t ngx_http_kontext_respond(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *type, ngx_str_t *body);


/* ad call */

/*
 * Makes a call in a pool of its own, call->request->pool; from is the request
 * whose location and client it is made for, klcf what was configured when it
 * came.  The caller sets token, timeout (ms), handler, failed and ask.  NULL:
 * no memory.
 */
ngx_http_kontext_call_t *ngx_http_kontext_call_create(
    ngx_http_request_t *from, ngx_http_kontext_loc_conf_t *klcf,
    ngx_http_kontext_call_e kind);

/*
 * Sends it; body is the call's from now on, and released with it; NULL is no
 * memory.  The handler is called once, and the call is freed after it.
 * NGX_ERROR: it is freed, without a word.
 */
ngx_int_t ngx_http_kontext_call_start(ngx_http_kontext_call_t *call,
    char *body, size_t len);

/* Sends one that has all it needs.  NGX_ERROR: as call_start(). */
ngx_int_t ngx_http_kontext_call_launch(ngx_http_kontext_call_t *call);

/* How a call has ended, for the status page. */
void ngx_http_kontext_call_count(ngx_http_kontext_call_t *call,
    kx_call_outcome_e outcome);

/* Gives a call up, without a word: it is freed, soon. */
void ngx_http_kontext_call_cancel(ngx_http_kontext_call_t *call);

/* The call whose subrequest r is, or NULL. */
ngx_http_kontext_call_t *ngx_http_kontext_call_of(ngx_http_request_t *r);

ngx_int_t ngx_http_kontext_call_header(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call);
ngx_int_t ngx_http_kontext_call_body(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call, ngx_chain_t *in);


/* detach */

/*
 * A request that outlives the one it is made from: the same location, server
 * and client address, nothing else.  It is its own main request, and owns
 * itself: ngx_http_kontext_detach_free() ends it and what it has under way,
 * as soon as no thread works for it.  NULL: no memory.
 */
ngx_http_request_t *ngx_http_kontext_detach(ngx_http_request_t *from);
void ngx_http_kontext_detach_free(ngx_http_request_t *r);

/* Forgets whose it is: it has no address then. */
void ngx_http_kontext_detach_anonymous(ngx_http_request_t *r);

/* Takes back a delay that its subrequest has asked for. */
void ngx_http_kontext_detach_calm(ngx_http_request_t *r);


/* retract */

/*
 * Takes the text ads of earlier answers out of the request's body, in place
 * of its buffers.  NGX_OK, or NGX_ERROR when there is no memory: the body
 * then is as it was.
 */
ngx_int_t ngx_http_kontext_retract(ngx_http_kontext_ctx_t *ctx);


/* filter */

ngx_int_t ngx_http_kontext_filter_init(ngx_conf_t *cf);

/* The filters after ours. */
ngx_int_t ngx_http_kontext_send_header(ngx_http_request_t *r);
ngx_int_t ngx_http_kontext_send_body(ngx_http_request_t *r, ngx_chain_t *out);

/* Takes out of the header what an ad makes wrong: lengths, digests. */
void ngx_http_kontext_change_header(ngx_http_request_t *r);

/* Does this buffer say that the backend has broken off? */
ngx_uint_t ngx_http_kontext_broken(ngx_http_request_t *r, ngx_buf_t *b);


/* stream, whole: body filters of an answer into which an ad may go */

ngx_int_t ngx_http_kontext_stream(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t *in);
ngx_int_t ngx_http_kontext_whole(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t *in);

/* Has the user gone on in another request?  Then the ad is lost. */
void ngx_http_kontext_check_superseded(ngx_http_kontext_ctx_t *ctx);


/* answer */

/* Starts to read an answer.  NGX_OK, or NGX_ERROR when there is no memory. */
ngx_int_t ngx_http_kontext_answer_open(ngx_http_kontext_ctx_t *ctx,
    kx_framing_e framing);

/*
 * Reads a frame, or with head set the beginning of a large one.  Sets
 * ctx->passing when no ad can come any more.  After KX_FRAME_FINISH, ctx->at
 * has the places of the ad, counted from the start of ctx->held, to which the
 * frame is to be added.
 */
kx_frame_e ngx_http_kontext_answer_frame(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len, ngx_uint_t head);

/* The answer is finished: its id, and what speaks against an ad. */
void ngx_http_kontext_answer_finish(ngx_http_kontext_ctx_t *ctx);


/* hold */

/*
 * Adds bytes to ctx->held, up to max in all.  NGX_OK, or NGX_DECLINED when it
 * would be more, or there is no memory.
 */
ngx_int_t ngx_http_kontext_hold_add(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len, size_t max);

/* From here on ctx->held waits for the ad. */
void ngx_http_kontext_hold_start(ngx_http_kontext_ctx_t *ctx);

/* Is there nothing more to wait for? */
ngx_uint_t ngx_http_kontext_hold_over(ngx_http_kontext_ctx_t *ctx);

/*
 * Links what is held, with the ad or without.  NGX_ERROR: no memory, and it is
 * still held.
 */
ngx_int_t ngx_http_kontext_hold_release(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll);

/* The wait is over, whatever becomes of what is held. */
void ngx_http_kontext_hold_end(ngx_http_kontext_ctx_t *ctx);

/* The result of the preload is there: posts an event. */
void ngx_http_kontext_hold_wake(ngx_http_kontext_ctx_t *ctx);


/* ad */

/*
 * Makes the member or the text, in r->pool.  NGX_OK, or NGX_DECLINED with a
 * reason when nothing is to be put in.
 */
ngx_int_t ngx_http_kontext_ad(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *payload);


/* out: links to a chain at *ll; NGX_OK or NGX_ERROR (no memory) */

/* A buffer as it is, unless there is nothing in it. */
ngx_int_t ngx_http_kontext_out_link(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, ngx_buf_t *b);

/* Bytes that stay as long as the request. */
ngx_int_t ngx_http_kontext_out_own(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, u_char *p, size_t len);

/*
 * What is held from p on, and the end of the answer if it has come.  After
 * NGX_ERROR it is still held, and nothing was linked.
 */
ngx_int_t ngx_http_kontext_out_held(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, u_char *p);

/* Memory for ngx_http_kontext_out_rest() and ngx_http_kontext_out_flush(). */
ngx_int_t ngx_http_kontext_out_spare(ngx_http_kontext_ctx_t *ctx);

/*
 * There is no memory for the answer as it was to be: what is held and what
 * came of a frame goes as it is, then in, whose links stay those of its owner:
 * the chain is to be cut at *ll after it was sent.  Needs no memory.
 */
void ngx_http_kontext_out_rest(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, ngx_chain_t *in);

/* A flush, once in an answer.  Needs no memory. */
void ngx_http_kontext_out_flush(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll);

/* A copy of bytes. */
ngx_int_t ngx_http_kontext_out_copy(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, const u_char *p, size_t len);

/* Takes back what was sent of a chain. */
void ngx_http_kontext_out_sent(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t **out);


#endif /* _NGX_HTTP_KONTEXT_H_INCLUDED_ */
