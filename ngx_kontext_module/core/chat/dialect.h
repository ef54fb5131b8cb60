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


#define KX_MAX_CHOICES  128          /* "n" of an OpenAI request */


typedef enum {
    KX_FRAME_PASS = 0,               /* goes on as it is */
    KX_FRAME_FINISH,                 /* the ad goes in here, or nowhere */
    KX_FRAME_END                     /* the terminator */
} kx_frame_e;


/* an answer while it streams; must not move between the calls */

typedef struct {
    const kx_dialect_t  *dialect;
    kx_conversation_t   *conversation;

    kx_reason_e          refused;    /* why it can take no ad, or none */

    /* after KX_FRAME_FINISH: the member goes in front of this byte of data */
    const unsigned char *at;

    kx_decode_t          decode;
    kx_text_t            text;
    kx_sha256_t          sha;
    kx_sip_t             sip;

    unsigned             complete:1;
    unsigned             nstarted;
    unsigned             nfinished;
    unsigned char        started[KX_MAX_CHOICES / 8];
    unsigned char        finished[KX_MAX_CHOICES / 8];
} kx_answer_t;


struct kx_dialect_s {
    kx_str_t             name;       /* as in kontext_format */

    /* does a request's path belong to this format, and to no other? */
    int                (*path)(const kx_str_t *path);

    /* may a body that was scanned be of this format? */
    int                (*body)(const kx_conversation_t *cv);

    /*
     * Walks through a request body: j is at its outermost value.  KX_OK,
     * KX_ERROR (bad JSON), KX_AGAIN (no memory).
     */
    int                (*request)(kx_conversation_t *cv, kx_json_t *j);

    /*
     * Gives the decoded visible text of a message's raw content to the sink,
     * its parts joined with LF.
     */
    void               (*text)(const kx_str_t *content, kx_sink_pt sink,
                               void *data);

    /*
     * Reads a frame: the name of its event, which may be empty, and its data,
     * in place or joined.
     */
    kx_frame_e         (*frame)(kx_answer_t *a, const kx_str_t *event,
                                const kx_str_t *data);
};


/* The dialect of a name in kontext_format, or NULL. */
const kx_dialect_t *kx_dialect_by_name(const unsigned char *name, size_t len);

/* The dialect that a path belongs to, or NULL. */
const kx_dialect_t *kx_dialect_by_path(const kx_str_t *path);

/* What to try when the path tells nothing; body() then has the last word. */
const kx_dialect_t *kx_dialect_default(void);

/* Starts an answer to the request that cv was scanned from. */
void kx_answer_init(kx_answer_t *a, kx_conversation_t *cv);

/* Gives a raw string of the answer's visible text; for the dialects. */
void kx_answer_text(kx_answer_t *a, const kx_str_t *raw);

/*
 * The digest in the id of the finished answer.  To be called once.  KX_OK, or
 * KX_DECLINED when the answer has no visible text.
 */
int kx_answer_digest(kx_answer_t *a, const kx_str_t *conversation_id,
    unsigned char digest[KX_ID_LEN]);


extern const kx_dialect_t  kx_openai_chat;


#endif /* _KX_DIALECT_H_INCLUDED_ */
