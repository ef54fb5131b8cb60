/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "dialect.h"


#define KX_ESCAPED  6                /* bytes of \\uXXXX, for one at least */


static void kx_answer_sink(void *data, const unsigned char *p, size_t len);
static void kx_answer_flush(kx_answer_t *a);
static unsigned char *kx_answer_ascii(unsigned char *dst, const kx_str_t *s);


const kx_dialect_t  *kx_dialects[] = {
    &kx_openai_responses,
    &kx_gemini,
    &kx_ai_sdk_ui,
    &kx_anthropic,
    &kx_openai_chat,
    &kx_ollama,
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
        if ((*d)->path(path) == KX_OK) {
            return *d;
        }
    }

    return NULL;
}


const kx_dialect_t *
kx_dialect_by_body(const kx_str_t *path, const unsigned char *body,
    size_t len)
{
    unsigned              some;
    kx_members_t          members;
    const kx_dialect_t  **d;

    if (kx_members_read(&members, body, len) != KX_OK) {
        return NULL;
    }

    some = 0;

    for (d = kx_dialects; *d; d++) {
        if ((*d)->path(path) == KX_AGAIN) {
            some = 1;
            break;
        }
    }

    for (d = kx_dialects; *d; d++) {

        if (some && (*d)->path(path) != KX_AGAIN) {
            continue;
        }

        if ((*d)->body(&members)) {
            return *d;
        }
    }

    return NULL;
}


unsigned
kx_path_ends(const kx_str_t *path, const char *suffix)
{
    size_t  n;

    n = strlen(suffix);

    return path->len >= n
           && memcmp(path->data + path->len - n, suffix, n) == 0;
}


int
kx_answer_init(kx_answer_t *a, kx_conversation_t *cv, kx_framing_e framing,
    kx_form_e form)
{
    memset(a, 0, sizeof(kx_answer_t));

    a->dialect = cv->dialect;
    a->conversation = cv;
    a->framing = framing;
    a->form = form;
    a->answers = 1;

    kx_decode_init(&a->decode);
    kx_text_init(&a->text, KX_TEXT_CANONICAL, kx_answer_sink, a);
    kx_sha256_init(&a->sha);
    kx_conversation_hash(cv, &a->mix, KX_ROLE_ASSISTANT);

    a->state = cv->pool->alloc(cv->pool->data, cv->dialect->state);
    if (a->state == NULL) {
        return KX_ERROR;
    }

    memset(a->state, 0, cv->dialect->state);

    return KX_OK;
}


static void
kx_answer_sink(void *data, const unsigned char *p, size_t len)
{
    kx_answer_t  *a = data;

    kx_sha256_update(&a->sha, p, len);
    kx_mix_update(&a->mix, p, len);
}


kx_frame_e
kx_answer_frame(kx_answer_t *a, const kx_frame_t *fr)
{
    size_t                size;
    kx_str_t              raw;
    unsigned              deltas;
    kx_frame_e            verdict;
    unsigned char         state[KX_MAX_STATE];
    const unsigned char  *last;

    if (a->shape.n && fr->whole.len) {
        last = fr->whole.data + fr->whole.len;

        if (kx_shape_match(&a->shape, fr->whole.data, last, &raw) == last) {
            kx_answer_text(a, &raw);
            return KX_FRAME_PASS;
        }
    }

    size = a->dialect->state;
    memcpy(state, a->state, size);

    deltas = a->deltas;

    verdict = a->dialect->frame(a, fr);

    if (verdict != KX_FRAME_PASS || memcmp(state, a->state, size) != 0) {

        /* the same frame may mean something else from now on */

        a->shape.n = 0;
        return verdict;
    }

    if (a->refused == KX_REASON_NONE && fr->whole.len
        && a->deltas == deltas + 1 && a->learned < KX_MAX_SHAPES)
    {
        a->learned++;
        kx_shape_learn(&a->shape, &fr->whole, &fr->data, &a->delta,
                       a->dialect->noise);
    }

    return verdict;
}


const unsigned char *
kx_answer_repeat(kx_answer_t *a, const kx_framer_t *f, const unsigned char *p,
    const unsigned char *last)
{
    kx_str_t              raw;
    const unsigned char  *end;

    if (a->shape.n == 0 || !kx_framer_between(f)) {
        return p;
    }

    while (p < last) {
        end = kx_shape_match(&a->shape, p, last, &raw);

        if (end == NULL) {
            break;
        }

        kx_answer_text(a, &raw);
        p = end;
    }

    return p;
}


void
kx_answer_text(kx_answer_t *a, const kx_str_t *raw)
{
    a->delta = *raw;
    a->deltas++;

    if (raw->len > KX_MAX_RAW - a->nraw) {
        kx_answer_flush(a);
    }

    if (raw->len > KX_MAX_RAW) {
        kx_decode(&a->decode, raw, kx_text_feed, &a->text);
        return;
    }

    if (raw->len) {
        memcpy(a->raw + a->nraw, raw->data, raw->len);
        a->nraw += raw->len;
    }
}


static void
kx_answer_flush(kx_answer_t *a)
{
    kx_str_t  raw;

    raw.data = a->raw;
    raw.len = a->nraw;

    a->nraw = 0;

    kx_decode(&a->decode, &raw, kx_text_feed, &a->text);
}


void
kx_answer_break(kx_answer_t *a)
{
    kx_answer_flush(a);
    kx_decode_finish(&a->decode, kx_text_feed, &a->text);
    kx_answer_decoded(a, (const unsigned char *) "\n", 1);
}


void
kx_answer_decoded(void *data, const unsigned char *p, size_t len)
{
    kx_answer_t  *a = data;

    /* not what a shape can be made of */

    a->deltas += 2;

    kx_answer_flush(a);

    kx_text_feed(&a->text, p, len);
}


int
kx_answer_digest(kx_answer_t *a, const kx_str_t *conversation_id,
    unsigned char digest[KX_ID_LEN])
{
    uint64_t            hash, ordinal;
    unsigned char       text[KX_SHA256_LEN];
    kx_conversation_t  *cv;

    cv = a->conversation;

    kx_answer_flush(a);
    kx_decode_finish(&a->decode, kx_text_feed, &a->text);
    kx_text_finish(&a->text);

    if (a->text.out == 0) {
        return KX_DECLINED;
    }

    if (a->message_id.len) {
        kx_message_digest_native(digest, conversation_id, &a->message_id);
        return KX_OK;
    }

    kx_sha256_final(&a->sha, text);
    hash = kx_mix_final(&a->mix);

    ordinal = kx_conversation_count(cv, hash) + 1;

    kx_message_digest(digest, conversation_id, KX_ROLE_ASSISTANT, text,
                      ordinal);

    return KX_OK;
}


int
kx_answer_places(kx_answer_t *a, const kx_frame_t *fr)
{
    int  rc;

    a->nplaces = 0;

    rc = (a->form == KX_FORM_TEXT) ? a->dialect->text(a, fr)
                                   : a->dialect->member(a, fr);

    if (rc != KX_OK) {
        a->nplaces = 0;
    }

    return rc;
}


int
kx_answer_place(kx_answer_t *a, const unsigned char *at,
    const kx_str_t *before, const kx_str_t *after)
{
    kx_place_t  *place;

    if (a->nplaces == KX_MAX_PLACES) {
        return KX_DECLINED;
    }

    place = &a->places[a->nplaces++];

    place->at = at;
    place->before = *before;
    place->after = *after;

    return KX_OK;
}


int
kx_answer_member(kx_answer_t *a, const kx_frame_t *fr)
{
    size_t  n;

    static const kx_str_t  before = kx_string(",\"kontext\":");
    static const kx_str_t  after = kx_string("");

    n = fr->data.len;

    while (n && fr->data.data[n - 1] != '}') {
        n--;
    }

    if (n == 0) {
        return KX_DECLINED;
    }

    return kx_answer_place(a, fr->data.data + n - 1, &before, &after);
}


int
kx_answer_join(kx_answer_t *a, kx_str_t *dst, const kx_str_t *parts,
    unsigned n)
{
    size_t              len, j;
    unsigned            i;
    unsigned char      *p;
    kx_conversation_t  *cv;

    cv = a->conversation;
    len = 0;

    for (i = 0; i < n; i++) {

        if (parts[i].len > KX_MAX_COPIED) {
            return KX_DECLINED;
        }

        for (j = 0; j < parts[i].len; j++) {
            len += (parts[i].data[j] < 0x80) ? 1 : KX_ESCAPED;
        }
    }

    p = cv->pool->alloc(cv->pool->data, len ? len : 1);
    if (p == NULL) {
        return KX_ERROR;
    }

    dst->data = p;

    for (i = 0; i < n; i++) {
        p = kx_answer_ascii(p, &parts[i]);
    }

    dst->len = (size_t) (p - dst->data);

    return KX_OK;
}


/* JSON text as it is, but for characters that are not ASCII */

static unsigned char *
kx_answer_ascii(unsigned char *dst, const kx_str_t *s)
{
    kx_str_t              run;
    const unsigned char  *p, *last;

    p = s->data;
    last = p + s->len;

    while (p < last) {

        if (*p < 0x80) {
            *dst++ = *p++;
            continue;
        }

        run.data = (unsigned char *) p;

        while (p < last && *p >= 0x80) {
            p++;
        }

        run.len = (size_t) (p - run.data);

        dst = kx_json_escape(dst, dst + run.len * KX_ESCAPED, &run);
    }

    return dst;
}


void
kx_answer_id(kx_answer_t *a, kx_str_t *id, const kx_str_t *raw)
{
    ssize_t             n;
    unsigned char      *p, buf[KX_MAX_IDENTITY];
    kx_conversation_t  *cv;

    cv = a->conversation;

    n = kx_json_copy(raw, buf, KX_MAX_IDENTITY);
    if (n <= 0) {
        return;
    }

    p = cv->pool->alloc(cv->pool->data, (size_t) n);
    if (p == NULL) {
        return;
    }

    memcpy(p, buf, (size_t) n);

    id->len = (size_t) n;
    id->data = p;
}


int
kx_members_read(kx_members_t *members, const unsigned char *p, size_t len)
{
    int        rc;
    kx_str_t   key, value;
    kx_json_t  j;

    members->n = 0;

    kx_json_init(&j, p, len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(&j, &key)) == KX_OK) {

        if (kx_json_skip(&j, &value) != KX_OK) {
            return KX_ERROR;
        }

        if (members->n < KX_MAX_MEMBERS) {
            members->m[members->n].key = key;
            members->m[members->n++].value = value;
        }
    }

    return (rc == KX_DONE) ? KX_OK : KX_ERROR;
}


const kx_str_t *
kx_members_get(const kx_members_t *members, const char *key)
{
    size_t    len;
    unsigned  i;

    len = strlen(key);

    for (i = members->n; i > 0; i--) {
        if (kx_json_equal(&members->m[i - 1].key, key, len)) {
            return &members->m[i - 1].value;
        }
    }

    return NULL;
}


const kx_str_t *
kx_members_scalar(const kx_members_t *members, const char *key)
{
    const kx_str_t  *value;

    if (!kx_members_has(members, key, KX_JSON_STRING)
        && !kx_members_has(members, key, KX_JSON_NUMBER))
    {
        return NULL;
    }

    value = kx_members_get(members, key);

    /* the scanner lets control characters pass, as in joined data lines */

    return (memchr(value->data, '\n', value->len) == NULL
            && memchr(value->data, '\r', value->len) == NULL)
           ? value : NULL;
}


unsigned
kx_members_string(const kx_members_t *members, const char *key, kx_str_t *raw)
{
    kx_json_t        j;
    const kx_str_t  *value;

    value = kx_members_get(members, key);
    if (value == NULL) {
        return 0;
    }

    kx_json_init(&j, value->data, value->len);

    return kx_json_type(&j) == KX_JSON_STRING
           && kx_json_string(&j, raw) == KX_OK;
}


unsigned
kx_members_has(const kx_members_t *members, const char *key,
    kx_json_type_e type)
{
    kx_json_t        j;
    const kx_str_t  *value;

    value = kx_members_get(members, key);
    if (value == NULL) {
        return 0;
    }

    kx_json_init(&j, value->data, value->len);

    return kx_json_type(&j) == type;
}
