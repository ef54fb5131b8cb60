/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Which format a request is of, and what all the formats have in common.
 */


#include "chat.h"


#define NELTS(a)  (sizeof(a) / sizeof((a)[0]))


static chat_t  chat;


static int
teardown(void **state)
{
    chat_done(&chat);

    return 0;
}


static kx_str_t
str(const char *s)
{
    kx_str_t  t;

    t.len = strlen(s);
    t.data = (unsigned char *) s;

    return t;
}


static void
read_members(kx_members_t *m, const char *s)
{
    assert_int_equal(kx_members_read(m, (const unsigned char *) s, strlen(s)),
                     KX_OK);
}


static void
assert_value(const kx_str_t *value, const char *s)
{
    if (s == NULL) {
        assert_null(value);
        return;
    }

    assert_non_null(value);
    assert_int_equal(value->len, strlen(s));
    assert_memory_equal(value->data, s, value->len);
}


static void
start(void)
{
    chat_start(&chat, &kx_openai_chat, "/v1/chat/completions", "{}",
               KX_FRAMING_SSE, KX_FORM_MEMBER);
}


/* each row of the table is whole, and can be told from the others */

static void
test_table(void **state)
{
    size_t               i, n;
    const kx_dialect_t  *d;

    for (n = 0; kx_dialects[n]; n++) {
        d = kx_dialects[n];

        assert_true(d->name.len > 0);
        assert_ptr_equal(kx_dialect_by_name(d->name.data, d->name.len), d);

        for (i = 0; i < n; i++) {
            assert_true(d != kx_dialects[i]);
        }

        for (i = 0; i < d->header.len; i++) {
            assert_true(d->header.data[i] < 'A' || d->header.data[i] > 'Z');
        }

        /* kx_answer_frame() has no more room for it */

        assert_true(d->state > 0 && d->state <= KX_MAX_STATE);
        assert_non_null(d->noise);

        assert_true(d->framings != 0);
        assert_int_equal(d->framings & ~(unsigned) (KX_FRAMING_SSE
                                                    |KX_FRAMING_LINES
                                                    |KX_FRAMING_ARRAY
                                                    |KX_FRAMING_WHOLE),
                         0);

        assert_non_null(d->path);
        assert_non_null(d->body);
        assert_non_null(d->request);
        assert_non_null(d->content);
        assert_non_null(d->member);
        assert_non_null(d->text);

        assert_int_equal(d->whole != NULL,
                         (d->framings & KX_FRAMING_WHOLE) != 0);
        assert_int_equal(d->frame != NULL,
                         (d->framings & ~(unsigned) KX_FRAMING_WHOLE) != 0);
    }

    assert_int_equal(n, 6);
}


static void
test_names(void **state)
{
    size_t  i;

    static const struct {
        const char          *name;
        const kx_dialect_t  *dialect;
    } cases[] = {
        { "openai_chat", &kx_openai_chat },
        { "openai_responses", &kx_openai_responses },
        { "anthropic", &kx_anthropic },
        { "ollama", &kx_ollama },
        { "gemini", &kx_gemini },
        { "ai_sdk_ui", &kx_ai_sdk_ui },
        { "openai_cha", NULL },
        { "openai_chats", NULL },
        { "OpenAI_chat", NULL },
        { "auto", NULL },
        { "", NULL }
    };

    for (i = 0; i < NELTS(cases); i++) {
        assert_ptr_equal(kx_dialect_by_name((const unsigned char *)
                                            cases[i].name,
                                            strlen(cases[i].name)),
                         cases[i].dialect);
    }
}


static void
test_paths(void **state)
{
    size_t                i;
    unsigned              n;
    kx_str_t              path;
    const kx_dialect_t  **d;

    static const struct {
        const char          *path;
        const kx_dialect_t  *dialect;
    } cases[] = {
        { "/v1/chat/completions", &kx_openai_chat },
        { "/openai/deployments/gpt-4o/chat/completions", &kx_openai_chat },
        { "/v1/responses", &kx_openai_responses },
        { "/openai/v1/responses", &kx_openai_responses },
        { "/v1/messages", &kx_anthropic },
        { "/proxy/v1/messages", &kx_anthropic },
        { "/api/generate", &kx_ollama },
        { "/v1beta/models/gemini-2.5-flash:generateContent", &kx_gemini },
        { "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
          &kx_gemini },

        /* two have it, or nobody */

        { "/api/chat", NULL },
        { "/messages", NULL },
        { "/v1/embeddings", NULL },
        { "/v1/messages/count_tokens", NULL },
        { "/v1/messages/batches", NULL },
        { "/v1/responses/resp_1/cancel", NULL },
        { "/v1beta/models/gemini-2.5-flash:countTokens", NULL },
        { "/api/tags", NULL },
        { "/", NULL },
        { "", NULL }
    };

    for (i = 0; i < NELTS(cases); i++) {
        path = str(cases[i].path);

        if (kx_dialect_by_path(&path) != cases[i].dialect) {
            fail_msg("%s", cases[i].path);
        }

        n = 0;

        for (d = kx_dialects; *d; d++) {
            n += ((*d)->path(&path) == KX_OK);
        }

        assert_int_equal(n, cases[i].dialect != NULL);
    }
}


static void
test_bodies(void **state)
{
    size_t    i;
    kx_str_t  path;

    static const struct {
        const char          *path;
        const char          *body;
        const kx_dialect_t  *dialect;
    } cases[] = {

        /* of those that the path leaves */

        { "/api/chat", "{\"model\":\"m\",\"messages\":[{\"role\":\"user\","
          "\"content\":\"hi\"}]}", &kx_ollama },
        { "/api/chat", "{\"id\":\"c\",\"messages\":[{\"role\":\"user\","
          "\"parts\":[]}],\"model\":\"m\"}", &kx_ai_sdk_ui },
        { "/api/chat", "{\"id\":\"c\",\"message\":{\"role\":\"user\","
          "\"parts\":[]}}", &kx_ai_sdk_ui },
        { "/api/chat", "{\"contents\":[]}", NULL },

        /* of any */

        { "/chat", "{\"model\":\"m\",\"messages\":[{\"role\":\"user\","
          "\"content\":\"hi\"}]}", &kx_openai_chat },
        { "/chat", "{\"model\":\"m\",\"max_tokens\":9,\"system\":\"s\","
          "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
          &kx_anthropic },
        { "/chat", "{\"model\":\"m\",\"input\":\"hi\",\"stream\":true}",
          &kx_openai_responses },
        { "/chat", "{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}",
          &kx_gemini },
        { "/chat", "{\"messages\":[{\"role\":\"user\",\"parts\":[]}]}",
          &kx_ai_sdk_ui },
        { "/chat", "{\"model\":\"m\",\"prompt\":\"hi\"}", &kx_ollama },

        { "/chat", "{}", NULL },
        { "/chat", "{\"model\":\"m\"}", NULL },
        { "/chat", "{\"contents\":{}}", NULL },
        { "/chat", "[{\"contents\":[]}]", NULL },
        { "/chat", "{\"contents\":[]", NULL },
        { "/chat", "{\"contents\":[],}", NULL },
        { "/chat", "", NULL },
        { "/chat", "x", NULL }
    };

    for (i = 0; i < NELTS(cases); i++) {
        path = str(cases[i].path);

        if (kx_dialect_by_body(&path, (const unsigned char *) cases[i].body,
                               strlen(cases[i].body))
            != cases[i].dialect)
        {
            fail_msg("%s %s", cases[i].path, cases[i].body);
        }
    }
}


static void
test_members(void **state)
{
    kx_members_t  m;

    read_members(&m, " { } ");
    assert_int_equal(m.n, 0);
    assert_null(kx_members_get(&m, "a"));
    assert_null(kx_members_get(&m, ""));

    read_members(&m, "{\"a\" : \"x\" , \"b\":[1, {\"a\":2}],\n\"c\":-1e5,"
                     "\"d\":null,\"e\":true,\"f\":false,\"g\":{\"a\":1},"
                     "\"\":\"y\",\"\\u0068\\\"\":\"\\u007a\"}");

    assert_int_equal(m.n, 9);
    assert_value(kx_members_get(&m, "a"), "\"x\"");
    assert_value(kx_members_get(&m, "b"), "[1, {\"a\":2}]");
    assert_value(kx_members_get(&m, "c"), "-1e5");
    assert_value(kx_members_get(&m, "d"), "null");
    assert_value(kx_members_get(&m, "g"), "{\"a\":1}");
    assert_value(kx_members_get(&m, ""), "\"y\"");
    assert_value(kx_members_get(&m, "h\""), "\"\\u007a\"");
    assert_value(kx_members_get(&m, "A"), NULL);
    assert_value(kx_members_get(&m, "aa"), NULL);

    assert_value(kx_members_scalar(&m, "a"), "\"x\"");
    assert_value(kx_members_scalar(&m, "b"), NULL);
    assert_value(kx_members_scalar(&m, "c"), "-1e5");
    assert_value(kx_members_scalar(&m, "d"), NULL);
    assert_value(kx_members_scalar(&m, "e"), NULL);
    assert_value(kx_members_scalar(&m, "f"), NULL);
    assert_value(kx_members_scalar(&m, "g"), NULL);
    assert_value(kx_members_scalar(&m, "z"), NULL);

    assert_true(kx_members_has(&m, "a", KX_JSON_STRING));
    assert_true(kx_members_has(&m, "b", KX_JSON_ARRAY));
    assert_true(kx_members_has(&m, "c", KX_JSON_NUMBER));
    assert_true(kx_members_has(&m, "d", KX_JSON_NULL));
    assert_true(kx_members_has(&m, "e", KX_JSON_TRUE));
    assert_true(kx_members_has(&m, "f", KX_JSON_FALSE));
    assert_true(kx_members_has(&m, "g", KX_JSON_OBJECT));
    assert_false(kx_members_has(&m, "g", KX_JSON_ARRAY));
    assert_false(kx_members_has(&m, "z", KX_JSON_NULL));
    assert_false(kx_members_has(&m, "z", KX_JSON_BAD));

    /* a line end, which joined data lines have */

    read_members(&m, "{\"a\":\"x\ny\",\"b\":\"x\ry\",\"c\":\"x\\ny\"}");
    assert_value(kx_members_get(&m, "a"), "\"x\ny\"");
    assert_value(kx_members_scalar(&m, "a"), NULL);
    assert_value(kx_members_scalar(&m, "b"), NULL);
    assert_value(kx_members_scalar(&m, "c"), "\"x\\ny\"");

    /* the last one of a name */

    read_members(&m, "{\"a\":1,\"b\":2,\"\\u0061\":[]}");
    assert_value(kx_members_get(&m, "a"), "[]");
    assert_value(kx_members_scalar(&m, "a"), NULL);
}


static void
test_bad_members(void **state)
{
    size_t        i;
    kx_members_t  m;

    static const char  *cases[] = {
        "", " ", "[]", "\"a\"", "null", "7", "x", "{", "{\"a\"", "{\"a\":",
        "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{\"a\" 1}", "{a:1}",
        "{\"a\":01}", "{\"a\":tru}", "{\"a\":[}", "{,}", "{\"a\":{\"b\"}}"
    };

    for (i = 0; i < NELTS(cases); i++) {
        assert_int_equal(kx_members_read(&m, (const unsigned char *) cases[i],
                                         strlen(cases[i])),
                         KX_ERROR);
    }
}


/* further ones are read, but not kept */

static void
test_many_members(void **state)
{
    char          body[4096], key[16];
    size_t        len;
    unsigned      i, n;
    kx_members_t  m;

    for (n = KX_MAX_MEMBERS - 1; n <= KX_MAX_MEMBERS + 2; n++) {
        len = (size_t) sprintf(body, "{");

        for (i = 0; i < n; i++) {
            len += (size_t) sprintf(body + len, "%s\"k%u\":%u",
                                    i ? "," : "", i, i);
        }

        sprintf(body + len, "}");
        read_members(&m, body);

        assert_int_equal(m.n, n < KX_MAX_MEMBERS ? n : KX_MAX_MEMBERS);

        for (i = 0; i < n; i++) {
            sprintf(key, "k%u", i);
            assert_int_equal(kx_members_get(&m, key) != NULL,
                             i < KX_MAX_MEMBERS);
        }

        body[len] = ',';
        assert_int_equal(kx_members_read(&m, (unsigned char *) body, len + 1),
                         KX_ERROR);
    }
}


static void
test_join(void **state)
{
    char      text[KX_MAX_COPIED + 2];
    unsigned  i;
    kx_str_t  parts[4], dst;

    start();

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';

    parts[0] = str("ab");
    parts[1] = str("");
    parts[2] = str("c");
    parts[3].len = 0;
    parts[3].data = NULL;

    assert_int_equal(kx_answer_join(&chat.answer, &dst, parts, 4), KX_OK);
    assert_int_equal(dst.len, 3);
    assert_memory_equal(dst.data, "abc", 3);

    assert_int_equal(kx_answer_join(&chat.answer, &dst, parts, 0), KX_OK);
    assert_int_equal(dst.len, 0);

    /* one part may be as large as that, and all of them may */

    for (i = 0; i < 4; i++) {
        parts[i] = str(text);
        parts[i].len = KX_MAX_COPIED;
    }

    assert_int_equal(kx_answer_join(&chat.answer, &dst, parts, 4), KX_OK);
    assert_int_equal(dst.len, 4 * KX_MAX_COPIED);
    assert_memory_equal(dst.data + 3 * KX_MAX_COPIED, text, KX_MAX_COPIED);

    /* a part of the result itself */

    dst.len = 1;
    parts[0] = dst;
    parts[1] = str("y");

    assert_int_equal(kx_answer_join(&chat.answer, &dst, parts, 2), KX_OK);
    assert_int_equal(dst.len, 2);
    assert_memory_equal(dst.data, "xy", 2);

    for (i = 0; i < 4; i++) {
        parts[i] = str("z");
    }

    for (i = 0; i < 4; i++) {
        parts[i].len = KX_MAX_COPIED + 1;
        parts[i].data = (unsigned char *) text;

        assert_int_equal(kx_answer_join(&chat.answer, &dst, parts, 4),
                         KX_DECLINED);

        parts[i] = str("z");
    }

    chat.memory.fail_at = chat.memory.n + 1;
    assert_int_equal(kx_answer_join(&chat.answer, &dst, parts, 4), KX_ERROR);
    chat.memory.fail_at = 0;
}


static void
test_place(void **state)
{
    unsigned       i;
    kx_str_t       before = kx_string("b"), after = kx_string("a");
    unsigned char  data[KX_MAX_PLACES + 1];

    start();

    for (i = 0; i < KX_MAX_PLACES; i++) {
        assert_int_equal(kx_answer_place(&chat.answer, i ? &data[i] : NULL,
                                         &before, &after),
                         KX_OK);
    }

    assert_int_equal(kx_answer_place(&chat.answer, &data[i], &before, &after),
                     KX_DECLINED);

    assert_int_equal(chat.answer.nplaces, KX_MAX_PLACES);
    assert_null(chat.answer.places[0].at);

    for (i = 1; i < KX_MAX_PLACES; i++) {
        assert_ptr_equal(chat.answer.places[i].at, &data[i]);
        assert_ptr_equal(chat.answer.places[i].before.data, before.data);
        assert_ptr_equal(chat.answer.places[i].after.data, after.data);
    }
}


static void
test_member(void **state)
{
    size_t        i;
    kx_frame_t    fr;
    kx_place_t   *place;

    static const struct {
        const char  *data;
        int          at;
    } cases[] = {
        { "{\"a\":1}", 6 },
        { "{\"a\":{\"b\":2}}", 12 },
        { "{\"a\":\"}\"\n}\n \t", 9 },
        { "}", 0 },
        { "", -1 },
        { "[1]", -1 }
    };

    start();
    memset(&fr, 0, sizeof(fr));

    for (i = 0; i < NELTS(cases); i++) {
        fr.data = str(cases[i].data);
        fr.tail = fr.data;

        chat.answer.nplaces = 0;

        if (cases[i].at < 0) {
            assert_int_equal(kx_answer_member(&chat.answer, &fr),
                             KX_DECLINED);
            assert_int_equal(chat.answer.nplaces, 0);
            continue;
        }

        assert_int_equal(kx_answer_member(&chat.answer, &fr), KX_OK);
        assert_int_equal(chat.answer.nplaces, 1);

        place = &chat.answer.places[0];

        assert_ptr_equal(place->at, fr.data.data + cases[i].at);
        assert_int_equal(place->before.len, 11);
        assert_memory_equal(place->before.data, ",\"kontext\":", 11);
        assert_int_equal(place->after.len, 0);
    }

    chat.answer.nplaces = KX_MAX_PLACES;
    fr.data = str("{\"a\":1}");
    assert_int_equal(kx_answer_member(&chat.answer, &fr), KX_DECLINED);
}


static void
test_id(void **state)
{
    char      text[KX_MAX_IDENTITY + 8];
    kx_str_t  id, raw;

    start();

    id.len = 0;

    raw = str("");
    kx_answer_id(&chat.answer, &id, &raw);
    assert_int_equal(id.len, 0);

    raw = str("m\\u00e9\\n");
    kx_answer_id(&chat.answer, &id, &raw);
    assert_int_equal(id.len, 4);
    assert_memory_equal(id.data, "m\xc3\xa9\n", 4);

    /* as long as it may be; one that is longer is none */

    memset(text, 'i', sizeof(text));

    raw.data = (unsigned char *) text;
    raw.len = KX_MAX_IDENTITY;
    kx_answer_id(&chat.answer, &id, &raw);
    assert_int_equal(id.len, KX_MAX_IDENTITY);
    assert_memory_equal(id.data, text, KX_MAX_IDENTITY);

    raw = str("x");
    kx_answer_id(&chat.answer, &id, &raw);
    assert_int_equal(id.len, 1);

    raw.data = (unsigned char *) text;
    raw.len = KX_MAX_IDENTITY + 1;
    kx_answer_id(&chat.answer, &id, &raw);
    assert_int_equal(id.len, 1);

    chat.memory.fail_at = chat.memory.n + 1;
    raw = str("yy");
    kx_answer_id(&chat.answer, &id, &raw);
    assert_int_equal(id.len, 1);
    chat.memory.fail_at = 0;
}


/* all the places or none: a part of an ad breaks what it is put into */

static void
test_no_half_ads(void **state)
{
    char           stream[4096];
    size_t         i;
    chat_result_t  res;

    for (i = 0; i < 2; i++) {
        chat_start(&chat, &kx_openai_responses, "/v1/responses", "{}",
                   KX_FRAMING_SSE, KX_FORM_TEXT);

        snprintf(stream, sizeof(stream),
                 "data: {\"type\":\"response.completed\",\"response\":"
                 "{\"status\":\"completed\",\"output\":[]},"
                 "\"sequence_number\":1%0*d}\n\n",
                 (int) (KX_MAX_COPIED - 1 + i), 0);

        chat_feed_text(&chat, &res, stream);

        assert_int_equal(res.finish, 1);
        assert_int_equal(res.places, i ? KX_DECLINED : KX_OK);
        assert_int_equal(chat.answer.nplaces, i ? 0 : 4);

        chat_result_free(&res);
    }
}


/* frames of a shape mean something else once there was the finish */

static void
test_shape_ends(void **state)
{
    chat_result_t  res;

    chat_start(&chat, &kx_ollama, "/api/chat", "{}", KX_FRAMING_LINES,
               KX_FORM_MEMBER);

    chat_feed_text(&chat, &res,
                   "{\"message\":{\"content\":\"a\"},\"done\":false}\n"
                   "{\"message\":{\"content\":\"b\"},\"done\":false}\n"
                   "{\"message\":{\"content\":\"c\"},\"done\":false}\n"
                   "{\"message\":{\"content\":\"\"},\"done\":true}\n"
                   "{\"message\":{\"content\":\"d\"},\"done\":false}\n");

    assert_int_equal(res.finish, 4);
    assert_int_equal(res.finishes, 1);
    chat_result_free(&res);

    chat_assert_text(&chat, "abc");
}


/* an answer starts empty, and needs memory for its state only */

static void
test_answers(void **state)
{
    size_t                i, n;
    kx_str_t              cid = kx_string("c"), path = kx_string("/");
    kx_pool_t             pool;
    kx_answer_t           a;
    chat_memory_t         memory;
    unsigned char         digest[KX_ID_LEN];
    kx_conversation_t     cv;
    const unsigned char  *p;

    static const unsigned char  key[KX_SIP_KEY_LEN];

    memset(&memory, 0, sizeof(memory));
    pool.alloc = chat_alloc;
    pool.data = &memory;

    for (n = 0; kx_dialects[n]; n++) {
        kx_conversation_init(&cv, kx_dialects[n], &path, key, &pool);

        memset(&a, 0xff, sizeof(a));
        assert_int_equal(kx_answer_init(&a, &cv, KX_FRAMING_SSE,
                                        KX_FORM_TEXT),
                         KX_OK);

        assert_ptr_equal(a.dialect, kx_dialects[n]);
        assert_int_equal(a.refused, KX_REASON_NONE);
        assert_int_equal(a.complete, 0);
        assert_int_equal(a.answers, 1);
        assert_int_equal(a.nplaces, 0);
        assert_int_equal(a.form, KX_FORM_TEXT);
        assert_int_equal(a.message_id.len, 0);
        assert_int_equal(a.response_id.len, 0);

        p = a.state;

        for (i = 0; i < kx_dialects[n]->state; i++) {
            assert_int_equal(p[i], 0);
        }

        assert_int_equal(kx_answer_digest(&a, &cid, digest), KX_DECLINED);

        if (kx_dialects[n]->state) {
            memory.fail_at = memory.n + 1;
            assert_int_equal(kx_answer_init(&a, &cv, KX_FRAMING_SSE,
                                            KX_FORM_TEXT),
                             KX_ERROR);
            memory.fail_at = 0;
        }
    }

    chat_free(&memory);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_bodies),
        cmocka_unit_test(test_members),
        cmocka_unit_test(test_bad_members),
        cmocka_unit_test(test_many_members),
        cmocka_unit_test_teardown(test_join, teardown),
        cmocka_unit_test_teardown(test_place, teardown),
        cmocka_unit_test_teardown(test_member, teardown),
        cmocka_unit_test_teardown(test_id, teardown),
        cmocka_unit_test_teardown(test_no_half_ads, teardown),
        cmocka_unit_test_teardown(test_shape_ends, teardown),
        cmocka_unit_test(test_answers)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
