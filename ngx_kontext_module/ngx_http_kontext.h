/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the nginx side of the module shares.  A request goes through it like
 * this:
 *
 *   ngx_http_kontext_request.c     reads the body, understands it
 *   ngx_http_kontext_retract.c     takes text ads of the past out of it
 *   ngx_http_kontext_zone.c        finds its session in shared memory
 *   ngx_http_kontext_turn.c        what is asked for it, and what came of it
 *   ngx_http_kontext_ad_request.c  puts together what an ad call may say
 *   ngx_http_kontext_ad_call.c     asks, in background subrequests
 *   ngx_http_kontext_filter.c      meets the response
 *   ngx_http_kontext_stream.c      a streamed answer, frame by frame
 *   ngx_http_kontext_whole.c       an answer in one piece
 *   ngx_http_kontext_answer.c      what its frames say
 *   ngx_http_kontext_hold.c        its end waits for the ad
 *   ngx_http_kontext_ad.c          the ad as it goes to the client
 *   ngx_http_kontext_out.c         buffers to the next filter
 */


#ifndef _NGX_HTTP_KONTEXT_H_INCLUDED_
#define _NGX_HTTP_KONTEXT_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "core/chat/dialect.h"
#include "core/device.h"
#include "core/responses.h"
#include "core/session_table.h"
#include "core/text_ad.h"


#define NGX_HTTP_KONTEXT_VERSION      "0.1.0"

#define NGX_HTTP_KONTEXT_BUFFERED     0x08      /* a free bit of r->buffered */

#define NGX_HTTP_KONTEXT_MAX_FRAME    65536     /* larger ones pass unread */
#define NGX_HTTP_KONTEXT_SMALL_FRAME  4096
#define NGX_HTTP_KONTEXT_MAX_HELD     65536     /* after the finish marker */
#define NGX_HTTP_KONTEXT_MAX_COPIES   262144    /* not yet sent, a stream */
#define NGX_HTTP_KONTEXT_MAX_WHOLE    1048576   /* an answer in one piece */
#define NGX_HTTP_KONTEXT_INIT_TIMEOUT 16000     /* ms, protocol.md 2.4 */
#define NGX_HTTP_KONTEXT_TURNS        256       /* marks of new turns */


typedef enum {
    NGX_HTTP_KONTEXT_OFF = 0,
    NGX_HTTP_KONTEXT_BYPASS,
    NGX_HTTP_KONTEXT_PENDING,
    NGX_HTTP_KONTEXT_FILLED,
    NGX_HTTP_KONTEXT_NO_FILL,
    NGX_HTTP_KONTEXT_ERROR
} ngx_http_kontext_status_e;


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


typedef struct {
    ngx_str_t                          name;
    ngx_shm_zone_t                    *zone;
    ngx_uint_t                         used;       /* is it on anywhere? */
    ngx_array_t                        locations;  /* to be checked */
} ngx_http_kontext_main_conf_t;


typedef struct {
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

    ngx_uint_t                         enabled;    /* may be on */
} ngx_http_kontext_loc_conf_t;


typedef struct ngx_http_kontext_ctx_s   ngx_http_kontext_ctx_t;
typedef struct ngx_http_kontext_call_s  ngx_http_kontext_call_t;


typedef void (*ngx_http_kontext_call_handler_pt)(
    ngx_http_kontext_call_t *call);


/* POST /init or POST /preload, with all of its attempts */

struct ngx_http_kontext_call_s {
    ngx_http_kontext_ctx_t            *ctx;
    ngx_http_request_t                *sr;         /* NULL between attempts */

    ngx_str_t                          uri;
    ngx_str_t                          body;

    ngx_uint_t                         attempt;
    ngx_msec_t                         timeout;    /* of an attempt */
    ngx_event_t                        timer;      /* deadline, or back-off */
    ngx_msec_t                         started;

    /* the answer */
    ngx_uint_t                         status;     /* 0: transport failure */
    u_char                            *data;
    size_t                             len;
    size_t                             size;

    ngx_http_kontext_call_handler_pt   handler;

    unsigned                           preload:1;
    unsigned                           active:1;   /* no result yet */
    unsigned                           overflow:1;
    unsigned                           complete:1; /* its last buffer came */
};


/*
 * Lives in the pool of the main request, and is found again after an internal
 * redirect, which clears r->ctx.
 */

struct ngx_http_kontext_ctx_s {
    ngx_http_request_t                *request;
    ngx_http_kontext_loc_conf_t       *conf;

    ngx_http_kontext_status_e          status;
    kx_reason_e                        reason;
    kx_reason_e                        response;   /* before it was analysed */
    ngx_str_t                          code;       /* skipCode or errCode */

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

    /* session */
    u_char                             key[KX_ID_LEN];
    u_char                             conversation_digest[KX_ID_LEN];
    uint64_t                           user_key;
    uint32_t                           seq;
    uint32_t                           init_seq;
    ngx_atomic_uint_t                  turns;      /* seen at the start */
    ngx_str_t                          session;    /* the server's sessionId */

    /* ad calls */
    ngx_http_kontext_call_t            init;
    ngx_http_kontext_call_t            preload;
    ngx_queue_t                        queue;      /* of this worker's asks */
    ngx_msec_t                         preload_time;
    kx_bid_t                           bids[KX_MAX_BIDS];
    ngx_uint_t                         nbids;

    /* stream */
    kx_answer_t                        answer;
    kx_framer_t                        framer;
    size_t                             at[KX_MAX_PLACES];
    size_t                             start;      /* of a kept frame */
    ngx_str_t                          message_id;
    u_char                             message[KX_ID_LEN];
    ngx_str_t                          frame_url;  /* of the first bid */

    u_char                            *frame;      /* an unfinished one */
    size_t                             frame_len;
    size_t                             frame_size;
    u_char                            *held;       /* from the finish on */
    size_t                             held_len;
    size_t                             held_size;
    ngx_chain_t                       *free;
    ngx_chain_t                       *busy;
    size_t                             copies;     /* bytes in busy */

    ngx_event_t                        wake;       /* posted */
    ngx_event_t                        grace;      /* timer */
    ngx_event_t                        poll;       /* timer */
    ngx_msec_t                         hold_start;
    ngx_msec_t                         hold_time;
    size_t                             injected;   /* bytes */

    unsigned                           body_done:1;
    unsigned                           analysed:1;
    unsigned                           guess:1;    /* the body tells */
    unsigned                           derived:1;  /* the conversation's id */
    unsigned                           track_only:1;
    unsigned                           asked:1;    /* in the queue */
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
};


/* module */

extern ngx_module_t  ngx_http_kontext_module;

/* The context of the main request that r belongs to, or NULL. */
ngx_http_kontext_ctx_t *ngx_http_kontext_get_ctx(ngx_http_request_t *r);

/* Sets a bypass or a reason; the first one stays. */
void ngx_http_kontext_bypass(ngx_http_kontext_ctx_t *ctx, kx_reason_e reason);
void ngx_http_kontext_refuse(ngx_http_kontext_ctx_t *ctx, kx_reason_e reason);


/* variables */

ngx_int_t ngx_http_kontext_add_variables(ngx_conf_t *cf);


/* request */

ngx_int_t ngx_http_kontext_handler(ngx_http_request_t *r);

/*
 * The body in one piece; copy is what is to be released with ngx_free() when
 * it is not needed any more, or NULL.
 */
kx_reason_e ngx_http_kontext_read_body(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *body, u_char **copy);

/*
 * Understands the request and starts its ad calls, once.  Asks for nothing
 * any more when the answer has ended.
 */
void ngx_http_kontext_analyse(ngx_http_kontext_ctx_t *ctx);

/* The same, as soon as what is being sent was sent, if it is still due. */
void ngx_http_kontext_analyse_post(ngx_http_kontext_ctx_t *ctx);

void ngx_http_kontext_analyse_cancel(ngx_http_kontext_ctx_t *ctx);


/* turn */

/* Asks for an ad, or finds out that none is to be asked for. */
kx_reason_e ngx_http_kontext_turn(ngx_http_kontext_ctx_t *ctx);

/* A newer turn of the user has made this one's ad useless. */
void ngx_http_kontext_superseded(ngx_http_kontext_ctx_t *ctx);

/* Gives up what is still under way for a request that is answered. */
void ngx_http_kontext_end(ngx_http_kontext_ctx_t *ctx);


/* zone: what a session has to say to a request, copied out of the memory */

typedef struct {
    kx_turn_e                          turn;
    ngx_uint_t                         init;       /* send /init */
    ngx_uint_t                         has_server_id;
    u_char                             server_id[KX_ID_LEN];
    uint32_t                           timeout;    /* of /init, or 0 */
    uint64_t                           wall;       /* when the turn came */
    kx_turn_state_e                    state;
    u_char                             code[KX_SESSION_CODE_LEN];
} ngx_http_kontext_session_t;


/* Takes the result of a turn that another request has asked for. */
void ngx_http_kontext_reuse(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s);

char *ngx_http_kontext_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* Adds the default zone where kontext is used and none was configured. */
ngx_int_t ngx_http_kontext_zone_default(ngx_conf_t *cf);

/* Secret keys that belong to the zone, of KX_SIP_KEY_LEN bytes each. */
const u_char *ngx_http_kontext_zone_key(ngx_http_request_t *r);
const u_char *ngx_http_kontext_text_key(ngx_http_request_t *r);

/*
 * Opens the session of ctx->token, user and conversation for the turn whose
 * user message has this digest.  Fills in s, ctx->seq, init_seq and bids.
 * NGX_OK, or NGX_DECLINED when there is no room.
 */
ngx_int_t ngx_http_kontext_zone_turn(ngx_http_kontext_ctx_t *ctx,
    u_char *message, ngx_http_kontext_session_t *s);

/* Results of the calls; NGX_DECLINED: superseded, or the session is gone. */
ngx_int_t ngx_http_kontext_zone_answer(ngx_http_kontext_ctx_t *ctx,
    kx_preload_answer_t *a);
void ngx_http_kontext_zone_init_answer(ngx_http_kontext_ctx_t *ctx,
    kx_init_answer_t *a);
void ngx_http_kontext_zone_cancel(ngx_http_kontext_ctx_t *ctx);
void ngx_http_kontext_zone_init_cancel(ngx_http_kontext_ctx_t *ctx);

/* Pairs the ad of the turn with the message ctx->message. */
void ngx_http_kontext_zone_pair(ngx_http_kontext_ctx_t *ctx);

/*
 * Remembers of which conversation the answer ctx->answer.response_id is, if
 * the conversation has no name but the one that was made for it.
 */
void ngx_http_kontext_zone_response(ngx_http_kontext_ctx_t *ctx);

/*
 * Looks up the conversation of an earlier answer: NGX_OK (ctx->conversation
 * is set), NGX_DECLINED (it is not known), NGX_ERROR (no memory).
 */
ngx_int_t ngx_http_kontext_zone_previous(ngx_http_kontext_ctx_t *ctx,
    ngx_str_t *id);

/*
 * Looks for the answer that another request has asked for, or for a newer
 * turn: NGX_OK (bids, and s unless it is NULL, are filled in), NGX_AGAIN,
 * NGX_DECLINED (superseded), NGX_ERROR (the session is gone).
 */
ngx_int_t ngx_http_kontext_zone_look(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s);

/* Has a turn started since that may be one of this session? */
ngx_uint_t ngx_http_kontext_zone_turned(ngx_http_kontext_ctx_t *ctx);


/* ad request */

/* Puts together what may be said; strings are in r->pool or in place. */
ngx_int_t ngx_http_kontext_ad_request(ngx_http_kontext_ctx_t *ctx,
    kx_ad_request_t *ar);

/* The values of hardware.type (protocol.md 3.6), up to an empty string. */
extern ngx_str_t  ngx_http_kontext_device_types[];

/* Is a value in a list that ends with an empty string? */
ngx_uint_t ngx_http_kontext_listed(ngx_str_t *value, ngx_str_t *list);

/* A value of a name=value directive; empty if not given. */
ngx_int_t ngx_http_kontext_param(ngx_http_request_t *r,
    ngx_http_kontext_params_t *params, ngx_uint_t n, ngx_str_t *value);

/* The first request header of a lower case name, or an empty string. */
void ngx_http_kontext_header(ngx_http_request_t *r, ngx_str_t *name,
    ngx_str_t *value);


/* ad call */

/* Sends /init or /preload; body is released.  NGX_OK or NGX_ERROR. */
ngx_int_t ngx_http_kontext_call_start(ngx_http_kontext_call_t *call,
    char *body, size_t len);

/* Gives a call up, without a word.  Safe at any time. */
void ngx_http_kontext_call_cancel(ngx_http_kontext_call_t *call);

/* Is the answer known to be too large, although it is not done? */
ngx_uint_t ngx_http_kontext_call_overflowed(ngx_http_kontext_call_t *call);

/* The call whose subrequest r is, or NULL. */
ngx_http_kontext_call_t *ngx_http_kontext_call_of(ngx_http_request_t *r);

ngx_int_t ngx_http_kontext_call_header(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call);
ngx_int_t ngx_http_kontext_call_body(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call, ngx_chain_t *in);


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

/* Links what is held, with the ad or without. */
ngx_int_t ngx_http_kontext_hold_release(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll);

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

/* What is held from p on, and the end of the answer if it has come. */
ngx_int_t ngx_http_kontext_out_held(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, u_char *p);

/* A copy of bytes. */
ngx_int_t ngx_http_kontext_out_copy(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t ***ll, const u_char *p, size_t len);

/* Takes back what was sent of a chain. */
void ngx_http_kontext_out_sent(ngx_http_kontext_ctx_t *ctx,
    ngx_chain_t **out);


#endif /* _NGX_HTTP_KONTEXT_H_INCLUDED_ */
