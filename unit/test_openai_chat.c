/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is understood of an OpenAI chat stream: its text, its finish marker
 * and whether an ad may go in (chat-apis.md 4.3, 4.4, 11).
 */


#include "chat.h"


#include <cjson/cJSON.h>


static chat_t  chat;


static void
start(const char *request)
{
    chat_start(&chat, &kx_openai_chat, "/v1/chat/completions", request,
               KX_FRAMING_SSE, KX_FORM_MEMBER);
}


static void
feed_text(chat_result_t *res, const char *stream)
{
    chat_feed_text(&chat, res, stream);
    chat_result_free(res);
}


static void
feed(chat_result_t *res, const unsigned char *p, size_t len)
{
    chat_feed(&chat, res, p, len);
    chat_result_free(res);
}


/* the text of answer 0 is the one that expected.json has */

static void
assert_sample(const char *name)
{
    cJSON        *root;
    const cJSON  *record;

    record = chat_expected(name, &root);
    record = cJSON_GetObjectItemCaseSensitive(record, "choices");
    record = cJSON_GetObjectItemCaseSensitive(record, "0");

    chat_assert_text(&chat, chat_string(record, "text"));

    cJSON_Delete(root);
}


/* text, marker and refusals of all the samples, as expected.json has them */

static void
test_samples(void **state)
{
    size_t          i, len, n;
    chat_result_t   res;
    unsigned char  *p, *at;

    static const struct {
        const char   *name;
        unsigned      frames;
        unsigned      finish;
        kx_reason_e   refused;
    } cases[] = {
        { "openai-chat.sse", 144, 142, KX_REASON_NONE },
        { "openai-chat-crlf.sse", 144, 142, KX_REASON_NONE },
        { "openai-chat-azure.sse", 23, 20, KX_REASON_NONE },
        { "openai-chat-llamacpp.sse", 185, 183, KX_REASON_NONE },
        { "openai-chat-vllm.sse", 185, 183, KX_REASON_NONE },
        { "openai-chat-openrouter.sse", 183, 181, KX_REASON_NONE },
        { "openai-chat-split-surrogate.sse", 12, 11, KX_REASON_NONE },
        { "openai-chat-n2.sse", 17, 16, KX_REASON_NONE },
        { "openai-chat-error.sse", 32, 0, KX_REASON_ERROR_FRAME },
        { "openai-chat-tools.sse", 31, 29, KX_REASON_TOOL_CALLS }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p = chat_sample(cases[i].name, &len);

        start("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}");
        chat_feed(&chat, &res, p, len);

        if (res.frames != cases[i].frames || res.finish != cases[i].finish
            || res.finishes != (cases[i].finish != 0)
            || res.refused != cases[i].refused)
        {
            fail_msg("%s: frames %u, finish %u, refused %d", cases[i].name,
                     res.frames, res.finish, res.refused);
        }

        if (res.finish) {
            n = sizeof(",\"kontext\":" CHAT_PAYLOAD) - 1;

            assert_int_equal(res.len, len + n);

            at = (unsigned char *) strstr((char *) res.out,
                                          ",\"kontext\":" CHAT_PAYLOAD "}");
            assert_non_null(at);
            assert_true(at[n + 1] == '\n' || at[n + 1] == '\r');

            memmove(at, at + n, (size_t) (res.out + res.len - (at + n)));
            res.len -= n;
        }

        assert_int_equal(res.len, len);
        assert_memory_equal(res.out, p, len);
        chat_result_free(&res);

        if (cases[i].refused == KX_REASON_NONE) {
            assert_sample(cases[i].name);
        }

        free(p);
    }
}


static void
test_whole_answers(void **state)
{
    size_t          len;
    chat_result_t   res;
    unsigned char  *p;

    (void) state;

    p = chat_sample("openai-chat.response.json", &len);
    chat_start(&chat, &kx_openai_chat, "/v1/chat/completions", "{}",
               KX_FRAMING_WHOLE, KX_FORM_MEMBER);
    chat_feed(&chat, &res, p, len);

    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_NONE);
    assert_int_equal(res.places, KX_OK);
    assert_non_null(strstr((char *) res.out, ",\"kontext\":PAYLOAD}"));
    assert_int_equal(res.len, len + sizeof(",\"kontext\":PAYLOAD") - 1);

    assert_sample("openai-chat.sse");
    chat_result_free(&res);
    free(p);

    p = chat_sample("openai-chat-tools.response.json", &len);
    chat_start(&chat, &kx_openai_chat, "/v1/chat/completions", "{}",
               KX_FRAMING_WHOLE, KX_FORM_MEMBER);
    feed(&res, p, len);

    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_TOOL_CALLS);
    free(p);
}


static void
test_text_ads(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
        const char   *out;
    } cases[] = {

        /* a chunk of its own, with the line ends of the stream */

        { KX_FRAMING_SSE,
          "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":"
          "{\"content\":\"a\"}}]}\r\n\r\n"
          "data: {\"id\":\"c\",\"created\":7,\"model\":\"m\",\"choices\":"
          "[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\r\n\r\n",

          "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":"
          "{\"content\":\"a\"}}]}\r\n\r\n"
          "data: {\"id\":\"c\",\"created\":7,\"model\":\"m\","
          "\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,"
          "\"delta\":{\"content\":\"PAYLOAD\"},\"finish_reason\":null}]}"
          "\r\n\r\n"
          "data: {\"id\":\"c\",\"created\":7,\"model\":\"m\",\"choices\":"
          "[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\r\n\r\n" },

        /* the finish chunk has the end of the text */

        { KX_FRAMING_SSE,
          "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},"
          "\"finish_reason\":\"stop\"}]}\n\n",
          "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":"
          "\"aPAYLOAD\"},\"finish_reason\":\"stop\"}]}\n\n" },

        /* what is no scalar is not copied */

        { KX_FRAMING_SSE,
          "data: {\"id\":[\"c\"],\"choices\":[{\"index\":0,\"delta\":"
          "{\"content\":\"\"},\"finish_reason\":\"stop\"}]}\n\n",
          "data: {\"object\":\"chat.completion.chunk\",\"choices\":"
          "[{\"index\":0,\"delta\":{\"content\":\"PAYLOAD\"},"
          "\"finish_reason\":null}]}\n\n"
          "data: {\"id\":[\"c\"],\"choices\":[{\"index\":0,\"delta\":"
          "{\"content\":\"\"},\"finish_reason\":\"stop\"}]}\n\n" },

        { KX_FRAMING_WHOLE,
          "{\"choices\":[{\"index\":0,\"message\":{\"content\":\"a\\\"\"},"
          "\"finish_reason\":\"stop\"}]}\n",
          "{\"choices\":[{\"index\":0,\"message\":{\"content\":"
          "\"a\\\"PAYLOAD\"},\"finish_reason\":\"stop\"}]}\n" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        chat_start(&chat, &kx_openai_chat, "/v1/chat/completions", "{}",
                   cases[i].framing, KX_FORM_TEXT);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.places, KX_OK);
        assert_string_equal((char *) res.out, cases[i].out);
        chat_result_free(&res);
    }
}


static void
test_two_answers_asked_for(void **state)
{
    size_t          len;
    chat_result_t   res;
    unsigned char  *p;

    (void) state;

    /* one after the other: the marker is that of the last one */

    start("{\"n\":2}");
    feed_text(&res,
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n"
        "data: {\"choices\":[{\"index\":0,\"delta\":{},"
        "\"finish_reason\":\"stop\"}]}\n\n"
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"}}]}\n\n"
        "data: {\"choices\":[{\"index\":1,\"delta\":{},"
        "\"finish_reason\":\"length\"}]}\n\n"
        "data: [DONE]\n\n");

    assert_int_equal(res.finish, 4);
    assert_int_equal(res.end, 5);
    assert_int_equal(res.refused, KX_REASON_NONE);

    p = chat_sample("openai-chat-n2.sse", &len);
    start("{\"n\":2}");
    feed(&res, p, len);
    assert_int_equal(res.finish, 16);
    free(p);

    /* one of them calls a tool */

    start("{\"n\":2}");
    feed_text(&res,
        "data: {\"choices\":[{\"index\":1,\"delta\":{},"
        "\"finish_reason\":\"tool_calls\"},"
        "{\"index\":0,\"delta\":{\"content\":\"a\"},"
        "\"finish_reason\":\"stop\"}]}\n\n");

    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_TOOL_CALLS);
}


static void
test_refusals(void **state)
{
    char           stream[2048];
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *delta;
        const char   *finish;
        kx_reason_e   refused;
    } cases[] = {
        { "{\"content\":\"a\"}", "\"stop\"", KX_REASON_NONE },
        { "{\"content\":\"a\"}", "\"length\"", KX_REASON_NONE },
        { "{\"content\":\"a\"}", "\"st\\u006fp\"", KX_REASON_NONE },
        { "{\"content\":\"a\"}", "\"content_filter\"",
          KX_REASON_FINISH_REASON },
        { "{\"content\":\"a\"}", "\"error\"", KX_REASON_FINISH_REASON },
        { "{\"content\":\"a\"}", "\"tool_calls\"", KX_REASON_TOOL_CALLS },
        { "{\"content\":\"a\"}", "\"function_call\"", KX_REASON_TOOL_CALLS },
        { "{\"refusal\":\"I cannot\"}", "\"stop\"", KX_REASON_REFUSAL },
        { "{\"refusal\":null}", "\"stop\"", KX_REASON_NONE },
        { "{\"refusal\":\"\"}", "\"stop\"", KX_REASON_NONE },
        { "{\"tool_calls\":[]}", "\"stop\"", KX_REASON_NONE },
        { "{\"tool_calls\":[{\"index\":0}]}", "\"stop\"",
          KX_REASON_TOOL_CALLS },
        { "{\"function_call\":{\"name\":\"f\"}}", "\"stop\"",
          KX_REASON_TOOL_CALLS }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(stream, sizeof(stream),
                 "data: {\"choices\":[{\"finish_reason\":null,\"delta\":%s,"
                 "\"index\":0}]}\r\n\r\n"
                 "data: {\"choices\":[{\"finish_reason\":%s,\"index\":0,"
                 "\"delta\":{}}]}\r\n\r\n",
                 cases[i].delta, cases[i].finish);

        start("{}");
        feed_text(&res, stream);

        if (res.finish != 2 || res.refused != cases[i].refused) {
            fail_msg("%s %s: %u %d", cases[i].delta, cases[i].finish,
                     res.finish, res.refused);
        }
    }
}


static void
test_no_marker(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char  *streams[] = {
        "data: [DONE]\n\n",
        "data: {}\n\n",
        "data: 7\n\ndata: \"x\"\n\ndata: []\n\n",
        "data: {\"choices\":null}\n\n",
        "data: {\"choices\":{}}\n\n",
        "data: {\"choices\":[]}\n\n",
        "data: {\"choices\":[7,null,[]]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"\"}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"finish_reason\":7}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]\n\n",
        "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}x\n\n",
        "{\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\n",
        ": {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n"
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        start("{}");
        feed_text(&res, streams[i]);

        if (res.finish) {
            fail_msg("%s", streams[i]);
        }
    }
}


static void
test_odd_indices(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char  *streams[] = {
        "data: {\"choices\":[{\"index\":-1,\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[{\"index\":128,\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[{\"index\":1.5,\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[{\"index\":99999999999999999999,"
        "\"finish_reason\":\"stop\"}]}\n\n"
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        start("{}");
        feed_text(&res, streams[i]);
        assert_int_equal(res.finish, 0);
        assert_int_equal(res.refused, KX_REASON_FINISH_REASON);
    }
}


static void
test_error_frames(void **state)
{
    chat_result_t  res;

    (void) state;

    start("{}");
    feed_text(&res, "event: error\ndata: {\"message\":\"x\"}\n\n");
    assert_int_equal(res.refused, KX_REASON_ERROR_FRAME);

    start("{}");
    feed_text(&res, "data: {\"error\":{\"message\":\"x\"},\"choices\":["
                    "{\"index\":0,\"finish_reason\":\"stop\"}]}\n\n");
    assert_int_equal(res.refused, KX_REASON_ERROR_FRAME);

    start("{}");
    feed_text(&res, "data: {\"error\":null}\n\n");
    assert_int_equal(res.refused, KX_REASON_NONE);
}


static void
test_content_parts_and_text_in_the_marker(void **state)
{
    chat_result_t  res;

    (void) state;

    start("{}");
    feed_text(&res,
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":["
        "{\"type\":\"thinking\",\"thinking\":[]},"
        "{\"type\":\"text\",\"text\":\"Hel\"}]}}]}\n\n"
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo\"},"
        "\"finish_reason\":\"stop\"}]}\n\n");

    assert_int_equal(res.finish, 2);
    chat_assert_text(&chat, "Hello");
}


static void
test_no_text(void **state)
{
    kx_str_t       cid = kx_string("c-1");
    chat_result_t  res;
    unsigned char  digest[KX_ID_LEN];

    (void) state;

    start("{}");
    feed_text(&res,
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":"
        "\"<think>hm</think>\\n\"},\"finish_reason\":\"stop\"}]}\n\n");

    assert_int_equal(res.finish, 1);
    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest),
                     KX_DECLINED);
}


static void
test_joined_data_lines(void **state)
{
    const char    *stream =
        "data: {\"choices\":[{\"index\":0,\n"
        "data: \"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"\n"
        "data: }]}\n\n";
    chat_result_t  res;

    (void) state;

    start("{}");
    feed_text(&res, stream);
    assert_int_equal(res.finish, 1);
    chat_assert_text(&chat, "a");
}


static void
test_paths(void **state)
{
    size_t    i;
    kx_str_t  path;

    static const struct {
        const char  *path;
        unsigned     ours;
    } cases[] = {
        { "/v1/chat/completions", 1 },
        { "/chat/completions", 1 },
        { "/openai/deployments/gpt/chat/completions", 1 },
        { "/v1/completions", 0 },
        { "/v1/chat/completions/", 0 },
        { "/v1/messages", 0 },
        { "/api/chat", 0 },
        { "/", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        path.data = (unsigned char *) cases[i].path;
        path.len = strlen(cases[i].path);

        assert_int_equal(kx_dialect_by_path(&path) == &kx_openai_chat,
                         cases[i].ours);
    }

    assert_ptr_equal(kx_dialect_by_name((unsigned char *) "openai_chat", 11),
                     &kx_openai_chat);
    assert_null(kx_dialect_by_name((unsigned char *) "openai", 6));
}


static int
teardown(void **state)
{
    (void) state;

    chat_done(&chat);

    return 0;
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_teardown(test_samples, teardown),
        cmocka_unit_test_teardown(test_whole_answers, teardown),
        cmocka_unit_test_teardown(test_text_ads, teardown),
        cmocka_unit_test_teardown(test_two_answers_asked_for, teardown),
        cmocka_unit_test_teardown(test_refusals, teardown),
        cmocka_unit_test_teardown(test_no_marker, teardown),
        cmocka_unit_test_teardown(test_odd_indices, teardown),
        cmocka_unit_test_teardown(test_error_frames, teardown),
        cmocka_unit_test_teardown(test_content_parts_and_text_in_the_marker,
                                  teardown),
        cmocka_unit_test_teardown(test_no_text, teardown),
        cmocka_unit_test_teardown(test_joined_data_lines, teardown),
        cmocka_unit_test_teardown(test_paths, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
