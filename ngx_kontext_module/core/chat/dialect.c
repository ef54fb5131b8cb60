/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "dialect.h"


static void kx_answer_sink(void *data, const unsigned char *p, size_t len);


static const kx_dialect_t  *kx_dialects[] = {
    &kx_openai_chat,
    NULL
};


const kx_dialect_t *
kx_dialect_by_name(const unsigned char *name, size_t len)
{
    const kx_dialect_t  **d;

    for (d = kx_dialects; *d; d++) {
        if ((*d)->name.len == len && memcmp((*d)->name.data, name, len) == 0) {
            return *d;
        }
    }

    return NULL;
}


const kx_dialect_t *
kx_dialect_by_path(const kx_str_t *path)
{
    const kx_dialect_t  **d;

    for (d = kx_dialects; *d; d++) {
        if ((*d)->path(path)) {
            return *d;
        }
    }

    return NULL;
}


const kx_dialect_t *
kx_dialect_default(void)
{
    return kx_dialects[0];
}


void
kx_answer_init(kx_answer_t *a, kx_conversation_t *cv)
{
    memset(a, 0, sizeof(kx_answer_t));

    a->dialect = cv->dialect;
    a->conversation = cv;

    kx_decode_init(&a->decode);
    kx_text_init(&a->text, KX_TEXT_CANONICAL, kx_answer_sink, a);
    kx_sha256_init(&a->sha);
    kx_conversation_hash(cv, &a->sip, KX_ROLE_ASSISTANT);
}


static void
kx_answer_sink(void *data, const unsigned char *p, size_t len)
{
    kx_answer_t  *a = data;

    kx_sha256_update(&a->sha, p, len);
    kx_sip_update(&a->sip, p, len);
}


void
kx_answer_text(kx_answer_t *a, const kx_str_t *raw)
{
    kx_decode(&a->decode, raw, kx_text_feed, &a->text);
}


int
kx_answer_digest(kx_answer_t *a, const kx_str_t *conversation_id,
    unsigned char digest[KX_ID_LEN])
{
    uint64_t            hash, ordinal;
    unsigned char       text[KX_SHA256_LEN];
    kx_conversation_t  *cv;

    cv = a->conversation;

    kx_decode_finish(&a->decode, kx_text_feed, &a->text);
    kx_text_finish(&a->text);

    if (a->text.out == 0) {
        return KX_DECLINED;
    }

    kx_sha256_final(&a->sha, text);
    hash = kx_sip_final64(&a->sip);

    ordinal = kx_conversation_count(cv, hash, cv->nhashes) + 1;

    kx_message_digest(digest, conversation_id, KX_ROLE_ASSISTANT, text,
                      ordinal);

    return KX_OK;
}
