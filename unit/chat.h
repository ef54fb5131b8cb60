/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Helpers of the tests that read the sample files of the chat formats.
 */


#ifndef _CHAT_H_INCLUDED_
#define _CHAT_H_INCLUDED_


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/chat/dialect.h"


#define CHAT_MAX_BLOCKS  4096


typedef struct {
    void      *blocks[CHAT_MAX_BLOCKS];
    unsigned   n;
    unsigned   fail_at;              /* 0: never */
} chat_memory_t;


static inline void *
chat_alloc(void *data, size_t size)
{
    chat_memory_t  *m = data;

    if (m->fail_at && m->n + 1 >= m->fail_at) {
        return NULL;
    }

    assert_true(m->n < CHAT_MAX_BLOCKS);

    m->blocks[m->n] = malloc(size ? size : 1);
    assert_non_null(m->blocks[m->n]);

    return m->blocks[m->n++];
}


static inline void
chat_free(chat_memory_t *m)
{
    while (m->n) {
        free(m->blocks[--m->n]);
    }
}


/* the content of a message that was left a raw string */

static inline void
chat_decode(kx_message_t *m, const kx_pool_t *pool)
{
    if (m->content.data || m->content.len == 0) {
        return;
    }

    m->content.data = pool->alloc(pool->data, m->content.len);
    assert_non_null(m->content.data);

    assert_int_equal(kx_json_copy(&m->raw, m->content.data, m->content.len),
                     m->content.len);
}


/*
 * The messages of a conversation, all of them decoded.  They are the same
 * where nothing is known of them, where they become known, and when they are.
 */

static inline unsigned
chat_messages(kx_conversation_t *cv, const kx_str_t *cid,
    kx_message_t *messages, unsigned char digest[KX_ID_LEN])
{
    unsigned              i, k, n, m;
    uint64_t             *hashes;
    kx_message_t          others[KX_MAX_MESSAGES];
    unsigned char         other[KX_ID_LEN];
    kx_memo_table_t       memos;
    kx_conversation_t     again;
    static unsigned char  mem[64 * sizeof(kx_memo_set_t)]
                              __attribute__((aligned(KX_MEMO_ALIGN)));

    memset(mem, 0, sizeof(mem));
    kx_memo_init(&memos, mem, sizeof(mem));

    again = *cv;
    again.memos = &memos;

    n = kx_conversation_messages(cv, cid, messages, digest);

    hashes = malloc(cv->nhashes * sizeof(uint64_t) + 1);
    assert_non_null(hashes);

    if (cv->nhashes) {
        memcpy(hashes, cv->hashes, cv->nhashes * sizeof(uint64_t));
    }

    for (i = 0; i < n; i++) {
        chat_decode(&messages[i], cv->scratch);
    }

    for (k = 0; k < 3; k++) {
        m = kx_conversation_messages(&again, cid, others, other);

        assert_int_equal(m, n);

        if (n) {
            assert_memory_equal(other, digest, KX_ID_LEN);
            assert_memory_equal(again.hashes, hashes,
                                cv->nhashes * sizeof(uint64_t));
        }

        for (i = 0; i < n; i++) {
            chat_decode(&others[i], cv->scratch);
            assert_int_equal(others[i].role, messages[i].role);
            assert_int_equal(others[i].content.len, messages[i].content.len);
            assert_memory_equal(others[i].content.data,
                                messages[i].content.data,
                                messages[i].content.len);
            assert_int_equal(others[i].id.len, messages[i].id.len);
            assert_memory_equal(others[i].id.data, messages[i].id.data,
                                messages[i].id.len);
        }
    }

    free(hashes);

    return n;
}


/* the samples lie beside the repository; without them nothing is proven */

static inline unsigned char *
chat_sample(const char *name, size_t *len)
{
    char            path[1024];
    FILE           *f;
    long            size;
    const char     *dir;
    unsigned char  *p;

    dir = getenv("KONTEXT_SHARED");

    snprintf(path, sizeof(path), "%s/samples/%s", dir ? dir : "../shared",
             name);

    f = fopen(path, "rb");
    if (f == NULL) {
        fail_msg("cannot open %s", path);
        return NULL;
    }

    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);

    p = malloc((size_t) size);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, (size_t) size, f), size);
    fclose(f);

    *len = (size_t) size;

    return p;
}


/* what is understood of a stream, frame by frame (unit/chat.c) */

typedef struct {
    unsigned         frames;         /* that have data */
    unsigned         finish;         /* number of the marker, from 1; 0 none */
    unsigned         finishes;
    unsigned         end;            /* number of the terminator */
    kx_reason_e      refused;        /* when the marker came, or at the end */
    int              places;         /* result of kx_answer_places() */

    /* the stream with "PAYLOAD" at its places, or as it was; malloc()ed */
    unsigned char   *out;
    size_t           len;
} chat_result_t;


/* a conversation and an answer to it, made by chat_start() */

typedef struct {
    chat_memory_t      memory;
    kx_pool_t          pool;
    kx_conversation_t  cv;
    kx_answer_t        answer;
    kx_framer_t        framer;
    kx_str_t           payload;      /* CHAT_PAYLOAD if data is NULL */
} chat_t;


#define CHAT_PAYLOAD  "PAYLOAD"


/*
 * Scans a request body, which must be understood, and starts an answer.  c is
 * zeroed the first time; what an earlier call has left is freed.
 */
void chat_start(chat_t *c, const kx_dialect_t *dialect, const char *path,
    const char *request, kx_framing_e framing, kx_form_e form);

/* Reads a whole answer in frames; release res with chat_result_free(). */
void chat_feed(chat_t *c, chat_result_t *res, const unsigned char *p,
    size_t len);
void chat_feed_text(chat_t *c, chat_result_t *res, const char *stream);
void chat_result_free(chat_result_t *res);

/* Frees all of it. */
void chat_done(chat_t *c);

/*
 * Fails unless the answer's text is this one: its message id is then the one
 * that the text has when it comes back in an OpenAI request.
 */
void chat_assert_text(chat_t *c, const char *text);

/* A sample's record in expected.json; release with cJSON_Delete(*root). */
struct cJSON;
const struct cJSON *chat_expected(const char *name, struct cJSON **root);

/* A string of such a record, or NULL. */
const char *chat_string(const struct cJSON *record, const char *name);


#endif /* _CHAT_H_INCLUDED_ */
