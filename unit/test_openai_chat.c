/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is understood of an OpenAI chat stream: its text, its finish marker
 * and whether an ad may go in (chat-apis.md 4.3, 4.4, 11).
 */


#include "chat.h"


static const unsigned char  key[] = "0123456789abcdef";

static chat_memory_t      memory;
static kx_pool_t          pool = { chat_alloc, &memory };
static kx_conversation_t  cv;
static kx_answer_t        answer;
static kx_str_t           cid = kx_string("c-1");


/* the answer that most of the samples have, from expected.json */

static const char  great_plan[] =
    "Great plan! A packing list for \xe2\x80\x9cKrumlov \xe2\x86\x92 "
    "S\xc3\xa3o Jo\xc3\xa3o\xe2\x80\x9d:\n\n1. **Tyres** \xe2\x80\x93 2 "
    "\xc3\x97 35 mm, run at 4.5 bar (\xe2\x89\x88 65 psi)\n2. A "
    "\"multi-tool\" with a chain\\cassette tool (C:\\tools\\bike)\n3. Snacks "
    "\xf0\x9f\xa5\x90\xf0\x9f\xa7\x80 \xe2\x80\x93 label "
    "\xe8\x87\xaa\xe8\xbb\xa2\xe8\xbb\x8a \xf0\x9f\x9a\xb2 / "
    "n\xc3\xa1hradn\xc3\xad du\xc5\xa1""e\n4. `<script>alert(\"x\")</script>` "
    "is *not* gear; neither is `data: [DONE]` nor `event: done`\n5. Flag "
    "\xf0\x9f\x87\xa8\xf0\x9f\x87\xbf, family tent "
    "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7"
    "\xe2\x80\x8d\xf0\x9f\x91\xa6, tab\there, bell \x07, line sep "
    "\xe2\x80\xa8 end.\n\nTotal \xe2\x89\x88 6.8 kg. Safe travels "
    "\xe2\x80\x94 \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d / "
    "\xd8\xb3\xd9\x84\xd8\xa7\xd9\x85 \xf0\x9f\x91\x8b\xf0\x9f\x8f\xbd";


typedef struct {
    unsigned         frames;
    unsigned         finish;         /* number of the marker, from 1; 0 none */
    unsigned         finishes;
    unsigned         end;
    kx_reason_e      refused;        /* when the marker came, or at the end */
    size_t           at;             /* offset in the stream */
} result_t;


static void
start(const char *request)
{
    chat_free(&memory);

    kx_conversation_init(&cv, &kx_openai_chat, key, &pool);
    assert_int_equal(kx_conversation_scan(&cv,
                                          (const unsigned char *) request,
                                          strlen(request)),
                     KX_REASON_NONE);

    kx_answer_init(&answer, &cv);
}


static void
feed(result_t *res, const unsigned char *p, size_t len)
{
    size_t                n;
    unsigned              first;
    kx_sse_t              sse;
    kx_frame_e            verdict;
    unsigned char        *scratch;
    kx_sse_event_t        ev;
    const unsigned char  *end, *start, *last;

    memset(res, 0, sizeof(result_t));
    memset(&sse, 0, sizeof(kx_sse_t));

    start = p;
    last = p + len;
    first = 1;

    scratch = malloc(len);
    assert_non_null(scratch);

    while ((end = kx_sse_frame(&sse, p, last)) != NULL) {
        n = (size_t) (end - p);

        if (kx_sse_parse(&ev, p, n, first, scratch) == KX_OK) {
            res->frames++;

            verdict = kx_openai_chat.frame(&answer, &ev.event, &ev.data);

            if (verdict == KX_FRAME_FINISH) {
                res->finishes++;
                res->finish = res->frames;
                res->refused = answer.refused;
                res->at = (size_t) (answer.at - start);
            }

            if (verdict == KX_FRAME_END) {
                res->end = res->frames;
            }
        }

        first = 0;
        p = end;
    }

    if (!res->finish) {
        res->refused = answer.refused;
    }

    free(scratch);
}


static void
feed_text(result_t *res, const char *stream)
{
    feed(res, (const unsigned char *) stream, strlen(stream));
}


/* the id of the answer is the one its text will have in the history */

static void
assert_answer(const char *text)
{
    char          *body, *p;
    size_t         n;
    unsigned       i, count;
    kx_message_t   messages[KX_MAX_MESSAGES];
    unsigned char  digest[KX_ID_LEN], expected[KX_ID_LEN];
    unsigned char  id[KX_MESSAGE_ID_LEN];

    assert_int_equal(kx_answer_digest(&answer, &cid, digest), KX_OK);
    kx_message_id(id, digest);

    n = strlen(text);

    body = malloc(n * 6 + 200);
    assert_non_null(body);

    p = body + sprintf(body, "{\"messages\":[{\"role\":\"user\","
                             "\"content\":\"hi\"},{\"role\":\"assistant\","
                             "\"content\":\"");

    for (i = 0; i < n; i++) {
        if (text[i] == '"' || text[i] == '\\'
            || (unsigned char) text[i] < 0x20)
        {
            p += sprintf(p, "\\u%04x", (unsigned) text[i]);

        } else {
            *p++ = text[i];
        }
    }

    sprintf(p, "\"}]}");

    kx_conversation_init(&cv, &kx_openai_chat, key, &pool);
    assert_int_equal(kx_conversation_scan(&cv, (unsigned char *) body,
                                          strlen(body)),
                     KX_REASON_NONE);

    count = kx_conversation_messages(&cv, &cid, messages, expected);

    assert_int_equal(count, 2);
    assert_memory_equal(messages[1].id.data, id, KX_MESSAGE_ID_LEN);

    free(body);
}


static void
test_samples(void **state)
{
    size_t          i, len;
    result_t        res;
    unsigned char  *p;

    static const struct {
        const char   *name;
        unsigned      frames;
        unsigned      finish;
        kx_reason_e   refused;
        const char   *text;
    } cases[] = {
        { "openai-chat.sse", 144, 142, KX_REASON_NONE, great_plan },
        { "openai-chat-crlf.sse", 144, 142, KX_REASON_NONE, great_plan },
        { "openai-chat-azure.sse", 23, 20, KX_REASON_NONE, great_plan },
        { "openai-chat-llamacpp.sse", 185, 183, KX_REASON_NONE, great_plan },
        { "openai-chat-vllm.sse", 185, 183, KX_REASON_NONE, great_plan },
        { "openai-chat-openrouter.sse", 183, 181, KX_REASON_NONE,
          great_plan },
        { "openai-chat-split-surrogate.sse", 12, 11, KX_REASON_NONE,
          "Ride \xf0\x9f\x9a\xb2 on \xf0\x9f\x91\xa8\xe2\x80\x8d"
          "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7!" },
        { "openai-chat-n2.sse", 17, 16, KX_REASON_NONE,
          "Yes \xe2\x80\x94 \xe2\x80\x9cgo\xe2\x80\x9d \xf0\x9f\x9a\xb2!" },
        { "openai-chat-error.sse", 32, 0, KX_REASON_ERROR_FRAME, NULL },
        { "openai-chat-tools.sse", 31, 29, KX_REASON_TOOL_CALLS, NULL }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p = chat_sample(cases[i].name, &len);

        start("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}");
        feed(&res, p, len);

        if (res.frames != cases[i].frames || res.finish != cases[i].finish
            || res.finishes != (cases[i].finish != 0)
            || res.refused != cases[i].refused)
        {
            fail_msg("%s: frames %u, finish %u, refused %d", cases[i].name,
                     res.frames, res.finish, res.refused);
        }

        if (res.finish) {
            assert_int_equal(p[res.at], '}');
            assert_true(p[res.at + 1] == '\n' || p[res.at + 1] == '\r');
        }

        if (cases[i].text) {
            assert_answer(cases[i].text);
        }

        free(p);
    }
}


static void
test_two_answers_asked_for(void **state)
{
    size_t          len;
    result_t        res;
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
    char      stream[2048];
    size_t    i;
    result_t  res;

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
    size_t    i;
    result_t  res;

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
    size_t    i;
    result_t  res;

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
    result_t  res;

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
    result_t  res;

    (void) state;

    start("{}");
    feed_text(&res,
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":["
        "{\"type\":\"thinking\",\"thinking\":[]},"
        "{\"type\":\"text\",\"text\":\"Hel\"}]}}]}\n\n"
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo\"},"
        "\"finish_reason\":\"stop\"}]}\n\n");

    assert_int_equal(res.finish, 2);
    assert_answer("Hello");
}


static void
test_no_text(void **state)
{
    result_t       res;
    unsigned char  digest[KX_ID_LEN];

    (void) state;

    start("{}");
    feed_text(&res,
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":"
        "\"<think>hm</think>\\n\"},\"finish_reason\":\"stop\"}]}\n\n");

    assert_int_equal(res.finish, 1);
    assert_int_equal(kx_answer_digest(&answer, &cid, digest), KX_DECLINED);
}


static void
test_joined_data_lines(void **state)
{
    result_t     res;
    const char  *stream =
        "data: {\"choices\":[{\"index\":0,\n"
        "data: \"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"\n"
        "data: }]}\n\n";

    (void) state;

    start("{}");
    feed_text(&res, stream);
    assert_int_equal(res.finish, 1);
    assert_answer("a");
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

    chat_free(&memory);

    return 0;
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_teardown(test_samples, teardown),
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
