/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A dialect is a chat API: how its requests say who talks and what was said,
 * and where an ad may go in its answers (chat-apis.md 1 and 11).  Each has a
 * file of its own and a line in the table in dialect.c.
 */


#ifndef _KX_DIALECT_H_INCLUDED_
#define _KX_DIALECT_H_INCLUDED_


#include "../conversation.h"
#include "../frame.h"
#include "../shape.h"


#define KX_MAX_CHOICES  128          /* "n" of an OpenAI request */
#define KX_MAX_PLACES   6            /* where the parts of one ad go */
#define KX_MAX_RAW      256          /* bytes of text that wait */
#define KX_MAX_STATE    1024         /* of a dialect, in an answer */
#define KX_MAX_SHAPES   16           /* learned in an answer */
#define KX_MAX_COPIED   1024         /* of a raw value taken into a text ad */


/* what an ad is to the client */

typedef enum {
    KX_FORM_MEMBER = 0,              /* a JSON object, invisible by itself */
    KX_FORM_TEXT                     /* text of the answer */
} kx_form_e;


typedef enum {
    KX_FRAME_PASS = 0,               /* goes on as it is */
    KX_FRAME_KEEP,                   /* waits for the next one */
    KX_FRAME_FINISH,                 /* the ad goes in here, or nowhere */
    KX_FRAME_END                     /* the terminator */
} kx_frame_e;


/*
 * A place of an ad in the finish frame: before, payload, after, where payload
 * is the JSON object of KX_FORM_MEMBER, or the inside of the JSON string of
 * KX_FORM_TEXT.
 */

typedef struct {
    const unsigned char *at;         /* within data; NULL: before the frame */
    kx_str_t             before;
    kx_str_t             after;
} kx_place_t;


/*
 * An answer while it comes; must not move between the calls.  What each event
 * goes by is at the beginning, in as few lines of the cache as it takes.
 */

typedef struct {

    /* the newest text, and how often there was some */
    kx_str_t             delta;
    unsigned             deltas;

    unsigned             learned;    /* shapes so far */
    size_t               nraw;
    kx_shape_t           shape;

    /* raw text that waits for more, to be worth the while */
    unsigned char        raw[KX_MAX_RAW];

    const kx_dialect_t  *dialect;
    kx_conversation_t   *conversation;
    kx_framing_e         framing;
    kx_form_e            form;
    void                *state;      /* the dialect's own */

    /* raw, of the newest frame, for member() and text() */
    kx_str_t             found[2];

    kx_reason_e          refused;    /* why it can take no ad, or none */
    unsigned             answers;    /* of those asked for, that have begun */
    unsigned             complete:1; /* the marker was seen */

    kx_decode_t          decode;
    kx_text_t            text;
    kx_sha256_t          sha;
    kx_mix_t             mix;

    kx_str_t             message_id; /* of the format itself, or empty */
    kx_str_t             response_id;

    /* after kx_answer_places(), in the order of the bytes */
    unsigned             nplaces;
    kx_place_t           places[KX_MAX_PLACES];
} kx_answer_t;


/* the members of a request body's outermost object, the first ones */

#define KX_MAX_MEMBERS  64

typedef struct {
    unsigned             n;
    struct {
        kx_str_t         key;        /* raw */
        kx_str_t         value;      /* raw */
    }                    m[KX_MAX_MEMBERS];
} kx_members_t;


struct kx_dialect_s {
    kx_str_t             name;       /* as in kontext_format */

    /* a request header that only its clients send, lower case, or empty */
    kx_str_t             header;

    /* kx_framing_e of the answers it can read, a set */
    unsigned             framings;

    /*
     * Size of kx_answer_t.state, at most KX_MAX_STATE, which starts with
     * zeroes, and all of which frame() goes by: as long as it stays the same,
     * frames of one shape mean the same (shape.h).  No pointers: see found.
     */
    size_t               state;

    /* members whose values say nothing while text streams, up to "" */
    const kx_str_t      *noise;

    /*
     * Does a request's path belong to this format?  KX_OK: to no other,
     * KX_AGAIN: its body has to tell, KX_DECLINED: no.
     */
    int                (*path)(const kx_str_t *path);

    /* may a body be of this format?  Only members with a meaning to it. */
    unsigned           (*body)(const kx_members_t *members);

    /* NULL, or takes from the path what a request says with it */
    void               (*start)(kx_conversation_t *cv, const kx_str_t *path);

    /*
     * Walks through a request body: j is at its outermost value.  KX_OK,
     * KX_ERROR (bad JSON, or not of this format), KX_AGAIN (no memory).
     */
    int                (*request)(kx_conversation_t *cv, kx_json_t *j);

    /*
     * Gives the decoded visible text of a message's raw content to the sink,
     * its parts joined with LF.
     */
    void               (*content)(const kx_str_t *content, kx_sink_pt sink,
                                  void *data);

    /*
     * Reads a frame of a streamed answer: its text into kx_answer_text(), and
     * what speaks against an ad into a->refused.
     */
    kx_frame_e         (*frame)(kx_answer_t *a, const kx_frame_t *fr);

    /*
     * NULL, or the same for a frame that is too large to be kept, of which
     * fr has the beginning, more than 4 kilobytes: KX_FRAME_PASS, or
     * KX_FRAME_FINISH with the places of a member set.
     */
    kx_frame_e         (*head)(kx_answer_t *a, const kx_frame_t *fr);

    /*
     * The same for an answer in one piece: KX_FRAME_FINISH, or KX_FRAME_PASS
     * when it is not of this format.  NULL if there is no such answer.
     */
    kx_frame_e         (*whole)(kx_answer_t *a, const kx_frame_t *fr);

    /*
     * Sets the places of a member, or of a text, in the frame that frame() or
     * whole() has just called the finish.  KX_OK, KX_DECLINED (there is no
     * place), KX_ERROR (no memory).
     */
    int                (*member)(kx_answer_t *a, const kx_frame_t *fr);
    int                (*text)(kx_answer_t *a, const kx_frame_t *fr);
};


/* The dialect of a name in kontext_format, or NULL. */
const kx_dialect_t *kx_dialect_by_name(const unsigned char *name, size_t len);

/* All of them, in the order in which bodies are tried, up to NULL. */
extern const kx_dialect_t  *kx_dialects[];

/* The dialect that a path belongs to and no other does, or NULL. */
const kx_dialect_t *kx_dialect_by_path(const kx_str_t *path);

/*
 * The dialect of a body whose path is not enough: one of those that the path
 * may belong to, or else any.  NULL: none.
 */
const kx_dialect_t *kx_dialect_by_body(const kx_str_t *path,
    const unsigned char *body, size_t len);

/*
 * Starts an answer to the request that cv was scanned from; takes state from
 * its pool.  KX_OK or KX_ERROR (no memory).
 */
int kx_answer_init(kx_answer_t *a, kx_conversation_t *cv,
    kx_framing_e framing, kx_form_e form);

/*
 * Reads a frame of a streamed answer, as frame() does; most are but compared
 * with the one before.
 */
kx_frame_e kx_answer_frame(kx_answer_t *a, const kx_frame_t *fr);

/*
 * Reads the frames from p on that are like the one before, as long as there is
 * nothing to them but text: each would be KX_FRAME_PASS.  A frame starts at p,
 * and no earlier one is kept.  Returns the place after them, which may be p.
 */
const unsigned char *kx_answer_repeat(kx_answer_t *a, const kx_framer_t *f,
    const unsigned char *p, const unsigned char *last);

/* Finds the places after KX_FRAME_FINISH, as member() and text() do. */
int kx_answer_places(kx_answer_t *a, const kx_frame_t *fr);

/*
 * The digest in the id of the finished answer.  To be called once.  KX_OK, or
 * KX_DECLINED when the answer has no visible text.
 */
int kx_answer_digest(kx_answer_t *a, const kx_str_t *conversation_id,
    unsigned char digest[KX_ID_LEN]);


/* for the dialects */

/* Does a path end with these bytes? */
unsigned kx_path_ends(const kx_str_t *path, const char *suffix);

/* Gives a raw string of the answer's visible text. */
void kx_answer_text(kx_answer_t *a, const kx_str_t *raw);

/* Ends a part of the text: the next one begins on a new line. */
void kx_answer_break(kx_answer_t *a);

/* Gives visible text that is decoded already; a kx_sink_pt. */
void kx_answer_decoded(void *a, const unsigned char *p, size_t len);

/* Reads a raw string of up to KX_MAX_IDENTITY bytes into an id. */
void kx_answer_id(kx_answer_t *a, kx_str_t *id, const kx_str_t *raw);

/* Adds a place; the strings are constants or in the pool. */
int kx_answer_place(kx_answer_t *a, const unsigned char *at,
    const kx_str_t *before, const kx_str_t *after);

/*
 * The place of a member behind all others of the object that fr->data is; for
 * member().
 */
int kx_answer_member(kx_answer_t *a, const kx_frame_t *fr);

/*
 * Joins n strings of JSON in memory of the pool, and makes it ASCII.  KX_OK,
 * KX_ERROR (no memory), or KX_DECLINED when one of them is larger than
 * KX_MAX_COPIED.
 */
int kx_answer_join(kx_answer_t *a, kx_str_t *dst, const kx_str_t *parts,
    unsigned n);

/*
 * Reads the members of an object from raw JSON; further ones than there is
 * room for are left out.  KX_OK or KX_ERROR (it is no object, or bad).
 */
int kx_members_read(kx_members_t *members, const unsigned char *p,
    size_t len);

/* The raw value of a member, the last one of that name, or NULL. */
const kx_str_t *kx_members_get(const kx_members_t *members, const char *key);

/*
 * The same if it is a string or a number without a line end in it; NULL
 * otherwise.
 */
const kx_str_t *kx_members_scalar(const kx_members_t *members,
    const char *key);

/* Is it a string?  raw is then what stands between its quotes. */
unsigned kx_members_string(const kx_members_t *members, const char *key,
    kx_str_t *raw);

/* Is it there, and of that type? */
unsigned kx_members_has(const kx_members_t *members, const char *key,
    kx_json_type_e type);


extern const kx_dialect_t  kx_openai_chat;
extern const kx_dialect_t  kx_openai_responses;
extern const kx_dialect_t  kx_anthropic;
extern const kx_dialect_t  kx_ollama;
extern const kx_dialect_t  kx_gemini;
extern const kx_dialect_t  kx_ai_sdk_ui;


#endif /* _KX_DIALECT_H_INCLUDED_ */
