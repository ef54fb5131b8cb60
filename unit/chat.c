/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Runs a dialect over a request and an answer as the module does: frame by
 * frame, with the ad put in where the dialect says.
 */


#include "chat.h"

#include <cjson/cJSON.h>


static void chat_put(chat_result_t *res, const void *p, size_t len);
static void chat_finish(chat_t *c, chat_result_t *res, kx_frame_t *fr,
    const unsigned char *p, size_t len);


static const unsigned char  chat_key[] = "0123456789abcdef";


void
chat_start(chat_t *c, const kx_dialect_t *dialect, const char *path,
    const char *request, kx_framing_e framing, kx_form_e form)
{
    kx_str_t     uri;
    kx_reason_e  reason;

    chat_free(&c->memory);

    c->pool.alloc = chat_alloc;
    c->pool.data = &c->memory;

    uri.data = (unsigned char *) path;
    uri.len = strlen(path);

    kx_conversation_init(&c->cv, dialect, &uri, chat_key, &c->pool);

    reason = kx_conversation_scan(&c->cv, (const unsigned char *) request,
                                  strlen(request));

    if (reason != KX_REASON_NONE) {
        fail_msg("%s: %.200s", (char *) kx_reason_name(reason)->data,
                 request);
    }

    assert_int_equal(kx_answer_init(&c->answer, &c->cv, framing, form),
                     KX_OK);

    kx_framer_init(&c->framer, framing);
}


void
chat_feed(chat_t *c, chat_result_t *res, const unsigned char *p, size_t len)
{
    size_t                n;
    unsigned              first, deltas;
    kx_frame_e            verdict;
    kx_frame_t            fr;
    unsigned char        *scratch;
    const unsigned char  *end, *kept, *last;

    memset(res, 0, sizeof(chat_result_t));

    last = p + len;
    first = 1;
    kept = NULL;

    scratch = malloc(len ? len : 1);
    assert_non_null(scratch);

    while (p < last) {

        if (kept == NULL) {
            deltas = c->answer.deltas;
            end = kx_answer_repeat(&c->answer, &c->framer, p, last);

            if (end > p) {
                res->frames += c->answer.deltas - deltas;
                chat_put(res, p, (size_t) (end - p));
                p = end;
                continue;
            }
        }

        end = kx_framer_next(&c->framer, p, last);

        if (end == NULL) {

            if (!kx_framer_last(&c->framer)) {
                break;
            }

            end = last;
        }

        n = (size_t) (end - p);
        verdict = KX_FRAME_PASS;

        if (kx_frame_parse(&fr, &c->framer, p, n, first, scratch) == KX_OK) {
            res->frames++;

            verdict = (c->framer.framing == KX_FRAMING_WHOLE)
                      ? c->answer.dialect->whole(&c->answer, &fr)
                      : kx_answer_frame(&c->answer, &fr);
        }

        first = 0;

        if (verdict == KX_FRAME_KEEP) {
            assert_null(kept);
            kept = p;
            p = end;
            continue;
        }

        if (verdict == KX_FRAME_FINISH && !res->finishes++) {
            res->finish = res->frames;
            res->refused = c->answer.refused;

            chat_finish(c, res, &fr, kept ? kept : p,
                        (size_t) (end - (kept ? kept : p)));

        } else {

            if (verdict == KX_FRAME_END) {
                res->end = res->frames;
            }

            chat_put(res, kept ? kept : p, (size_t) (end - (kept ? kept : p)));
        }

        kept = NULL;
        p = end;
    }

    if (kept) {
        p = kept;
    }

    chat_put(res, p, (size_t) (last - p));

    if (!res->finish) {
        res->refused = c->answer.refused;
    }

    free(scratch);
}


static void
chat_finish(chat_t *c, chat_result_t *res, kx_frame_t *fr,
    const unsigned char *p, size_t len)
{
    size_t                n;
    unsigned              i;
    kx_place_t           *place;
    const unsigned char  *last, *at;

    last = p + len;

    res->places = kx_answer_places(&c->answer, fr);

    if (res->places != KX_OK) {
        chat_put(res, p, len);
        return;
    }

    assert_true(c->answer.nplaces > 0);

    for (i = 0; i < c->answer.nplaces; i++) {
        place = &c->answer.places[i];

        if (place->at) {

            /* counted from the end, as the data may have been joined */

            assert_true(place->at >= fr->data.data
                        && place->at <= fr->data.data + fr->data.len);

            n = (size_t) (fr->data.data + fr->data.len - place->at);
            assert_true(n <= fr->tail.len);

            at = fr->tail.data + fr->tail.len - n;

            assert_true(at >= p && at <= last);

            chat_put(res, p, (size_t) (at - p));
            p = at;
        }

        chat_put(res, place->before.data, place->before.len);

        if (c->payload.data) {
            chat_put(res, c->payload.data, c->payload.len);

        } else {
            chat_put(res, CHAT_PAYLOAD, sizeof(CHAT_PAYLOAD) - 1);
        }

        chat_put(res, place->after.data, place->after.len);
    }

    chat_put(res, p, (size_t) (last - p));
}


static void
chat_put(chat_result_t *res, const void *p, size_t len)
{
    if (len == 0) {
        return;
    }

    res->out = realloc(res->out, res->len + len + 1);
    assert_non_null(res->out);

    memcpy(res->out + res->len, p, len);
    res->len += len;
    res->out[res->len] = '\0';
}


void
chat_feed_text(chat_t *c, chat_result_t *res, const char *stream)
{
    chat_feed(c, res, (const unsigned char *) stream, strlen(stream));
}


void
chat_result_free(chat_result_t *res)
{
    free(res->out);
    res->out = NULL;
}


void
chat_done(chat_t *c)
{
    chat_free(&c->memory);
}


void
chat_assert_text(chat_t *c, const char *text)
{
    char              *body;
    cJSON             *json, *messages, *m;
    unsigned           n;
    kx_str_t           cid = kx_string("c-1"), path = kx_string("/");
    kx_pool_t          pool;
    kx_message_t       said[KX_MAX_MESSAGES];
    chat_memory_t      memory;
    unsigned char      digest[KX_ID_LEN], newest[KX_ID_LEN];
    unsigned char      id[KX_MESSAGE_ID_LEN];
    kx_conversation_t  cv;

    c->answer.message_id.len = 0;

    assert_int_equal(kx_answer_digest(&c->answer, &cid, digest), KX_OK);
    kx_message_id(id, digest);

    json = cJSON_CreateObject();
    messages = cJSON_AddArrayToObject(json, "messages");

    m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "role", "user");
    cJSON_AddStringToObject(m, "content", "hi");
    cJSON_AddItemToArray(messages, m);

    m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "role", "assistant");
    cJSON_AddStringToObject(m, "content", text);
    cJSON_AddItemToArray(messages, m);

    body = cJSON_PrintUnformatted(json);
    assert_non_null(body);

    memset(&memory, 0, sizeof(chat_memory_t));
    pool.alloc = chat_alloc;
    pool.data = &memory;

    kx_conversation_init(&cv, &kx_openai_chat, &path, chat_key, &pool);
    assert_int_equal(kx_conversation_scan(&cv, (unsigned char *) body,
                                          strlen(body)),
                     KX_REASON_NONE);

    n = chat_messages(&cv, &cid, said, newest);

    assert_int_equal(n, 2);
    assert_memory_equal(said[1].id.data, id, KX_MESSAGE_ID_LEN);

    cJSON_free(body);
    cJSON_Delete(json);
    chat_free(&memory);
}


const cJSON *
chat_expected(const char *name, cJSON **root)
{
    size_t          len;
    const cJSON    *record;
    unsigned char  *p;

    p = chat_sample("expected.json", &len);

    *root = cJSON_ParseWithLength((char *) p, len);
    assert_non_null(*root);
    free(p);

    record = cJSON_GetObjectItemCaseSensitive(*root, name);

    if (record == NULL) {
        fail_msg("expected.json does not know %s", name);
    }

    return record;
}


const char *
chat_string(const cJSON *record, const char *name)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(record,
                                                                 name));
}
