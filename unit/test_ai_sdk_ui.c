/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is understood of the requests of useChat() and of UI message streams,
 * and where an ad goes in (chat-apis.md 9, 11, 13).
 */


#include "chat.h"


#include <cjson/cJSON.h>


#define PATH      "/api/chat"
#define HI        "{\"messages\":[{\"role\":\"user\",\"parts\":[{\"type\":" \
                  "\"text\",\"text\":\"hi\"}]}]}"

#define EVENT(s)  "data: {\"type\":\"" s "}\n\n"

#define START     EVENT("start\",\"messageId\":\"m-1\"")
#define STEP      EVENT("start-step\"")
#define TEXT(s)   EVENT("text-start\",\"id\":\"t\"")                         \
                  EVENT("text-delta\",\"id\":\"t\",\"delta\":\"" s "\"")      \
                  EVENT("text-end\",\"id\":\"t\"")
#define STEP_END  EVENT("finish-step\"")
#define FINISH    EVENT("finish\"")
#define DONE      "data: [DONE]\n\n"

#define OPEN      EVENT("tool-input-available\",\"toolCallId\":\"c-1\","     \
                        "\"toolName\":\"f\",\"input\":{}")
#define OUTPUT    EVENT("tool-output-available\",\"toolCallId\":\"c-1\","    \
                        "\"output\":{\"type\":\"error\"}")

#define MEMBER    EVENT("data-kontext\",\"data\":" CHAT_PAYLOAD              \
                        ",\"transient\":true")
#define AD        EVENT("text-start\",\"id\":\"kontext-ad\"")                \
                  EVENT("text-delta\",\"id\":\"kontext-ad\",\"delta\":\""    \
                        CHAT_PAYLOAD "\"")                                   \
                  EVENT("text-end\",\"id\":\"kontext-ad\"")


static const unsigned char  key[] = "0123456789abcdef";

static chat_t             chat;
static chat_memory_t      memory;
static kx_pool_t          pool = { chat_alloc, &memory };
static kx_conversation_t  cv;
static kx_message_t       messages[KX_MAX_MESSAGES];
static unsigned           n;
static unsigned char      newest[KX_ID_LEN];
static kx_str_t           cid = kx_string("c-1");


static kx_reason_e
scan_len(const unsigned char *p, size_t len)
{
    kx_str_t  path = kx_string(PATH);

    chat_free(&memory);

    kx_conversation_init(&cv, &kx_ai_sdk_ui, &path, key, &pool);

    return kx_conversation_scan(&cv, p, len);
}


static kx_reason_e
scan(const char *body)
{
    return scan_len((const unsigned char *) body, strlen(body));
}


static void
understand(const char *body)
{
    if (scan(body) != KX_REASON_NONE) {
        fail_msg("not understood: %s", body);
    }

    n = chat_messages(&cv, &cid, messages, newest);
}


static void
assert_string(const kx_str_t *s, const char *expected)
{
    if (s->len != strlen(expected)
        || memcmp(s->data, expected, s->len) != 0)
    {
        fail_msg("\"%.*s\" is not \"%s\"", (int) s->len, (char *) s->data,
                 expected);
    }
}


static void
assert_said(unsigned i, kx_role_e role, const char *text, const char *id)
{
    assert_true(i < n);
    assert_int_equal(messages[i].role, role);
    assert_string(&messages[i].content, text);

    if (id) {
        assert_string(&messages[i].id, id);
    }
}


static void
start(kx_form_e form)
{
    chat_start(&chat, &kx_ai_sdk_ui, PATH, HI, KX_FRAMING_SSE, form);
}


static void
feed_text(chat_result_t *res, const char *stream)
{
    chat_feed_text(&chat, res, stream);
    chat_result_free(res);
}


static int
teardown(void **state)
{
    (void) state;

    chat_done(&chat);
    memory.fail_at = 0;
    chat_free(&memory);

    return 0;
}


static void
test_sample_request(void **state)
{
    size_t          len;
    cJSON          *root;
    unsigned        i;
    const cJSON    *record, *m;
    unsigned char  *p;

    (void) state;

    p = chat_sample("ai-sdk-ui.request.json", &len);

    assert_int_equal(scan_len(p, len), KX_REASON_NONE);
    n = chat_messages(&cv, &cid, messages, newest);

    record = chat_expected("ai-sdk-ui.request.json", &root);
    record = cJSON_GetObjectItemCaseSensitive(record, "conversation");

    assert_int_equal(n, cJSON_GetArraySize(record));
    assert_int_equal(n, 3);

    for (i = 0; i < n; i++) {
        m = cJSON_GetArrayItem(record, (int) i);

        assert_said(i, strcmp(chat_string(m, "role"), "user")
                       ? KX_ROLE_ASSISTANT : KX_ROLE_USER,
                    chat_string(m, "text"), chat_string(m, "id"));
    }

    assert_true(cv.has_messages);
    assert_true(cv.user_turn);
    assert_true(cv.stream);
    assert_int_equal(cv.choices, 1);
    assert_int_equal(cv.user.rank, KX_IDENTITY_NONE);
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_NATIVE);
    assert_string(&cv.conversation.value, "chat-9f2cQ1x9ZbT7mW3Y");

    cJSON_Delete(root);
    free(p);
}


static void
test_sample_answers(void **state)
{
    size_t          i, len, size;
    cJSON          *root;
    kx_form_e       form;
    const char     *added;
    const cJSON    *record;
    chat_result_t   res;
    unsigned char  *p, *at;

    static const struct {
        const char   *name;
        unsigned      frames;
        unsigned      finish;
        kx_reason_e   refused;
    } cases[] = {
        { "ai-sdk-ui.sse", 147, 146, KX_REASON_NONE },
        { "ai-sdk-ui-tools.sse", 207, 206, KX_REASON_NONE },
        { "ai-sdk-ui-error.sse", 27, 0, KX_REASON_ERROR_FRAME }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p = chat_sample(cases[i].name, &len);
        record = chat_expected(cases[i].name, &root);

        for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {
            start(form);
            chat_feed(&chat, &res, p, len);

            assert_int_equal(res.frames, cases[i].frames);
            assert_int_equal(res.finish, cases[i].finish);
            assert_int_equal(res.end, cases[i].frames);
            assert_int_equal(res.refused, cases[i].refused);

            if (res.finish) {
                assert_string_equal(chat_string(record, "finishReason"),
                                    "stop");

                added = (form == KX_FORM_TEXT) ? AD : MEMBER;
                size = strlen(added);

                at = (unsigned char *) strstr((char *) res.out, added);
                assert_non_null(at);
                assert_int_equal(res.len, len + size);

                memmove(at, at + size,
                        (size_t) (res.out + res.len - (at + size)) + 1);

                assert_ptr_equal(at, strstr((char *) res.out,
                    form == KX_FORM_TEXT ? STEP_END "data: {\"type\":\"finish"
                    : "data: {\"type\":\"finish\""));
            }

            assert_memory_equal(res.out, p, len);
            chat_result_free(&res);

            assert_string(&chat.answer.message_id,
                          chat_string(record, "messageId"));
            chat_assert_text(&chat, chat_string(record, "text"));
        }

        cJSON_Delete(root);
        free(p);
    }
}


static void
test_places(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_form_e    form;
        const char  *in;
        const char  *out;
    } cases[] = {
        { KX_FORM_MEMBER,
          START STEP TEXT("a") STEP_END FINISH DONE,
          START STEP TEXT("a") STEP_END MEMBER FINISH DONE },

        /* in front of the last step's end, and of no other */

        { KX_FORM_TEXT,
          START STEP OPEN OUTPUT STEP_END STEP TEXT("a") STEP_END FINISH DONE,
          START STEP OPEN OUTPUT STEP_END STEP TEXT("a") AD STEP_END FINISH
          DONE },

        /* what stands between the two is not gone over */

        { KX_FORM_TEXT,
          START STEP TEXT("a") STEP_END EVENT("data-x\",\"data\":1") FINISH,
          START STEP TEXT("a") STEP_END EVENT("data-x\",\"data\":1") AD
          FINISH },

        { KX_FORM_TEXT,
          START STEP TEXT("a") STEP_END ": keep-alive\n\n" FINISH,
          START STEP TEXT("a") STEP_END ": keep-alive\n\n" AD FINISH },

        { KX_FORM_TEXT,
          START STEP TEXT("a") STEP_END "data: x\n\n" FINISH,
          START STEP TEXT("a") STEP_END "data: x\n\n" AD FINISH },

        /* of two ends the first one is gone when the second one comes */

        { KX_FORM_TEXT,
          START TEXT("a") STEP_END STEP_END FINISH DONE,
          START TEXT("a") STEP_END STEP_END AD FINISH DONE },

        { KX_FORM_TEXT,
          START TEXT("a") STEP_END STEP_END STEP_END FINISH DONE,
          START TEXT("a") STEP_END STEP_END AD STEP_END FINISH DONE },

        /* no steps */

        { KX_FORM_TEXT, START TEXT("a") FINISH DONE,
          START TEXT("a") AD FINISH DONE },

        /* the line ends of the stream */

        { KX_FORM_MEMBER,
          "data: {\"type\":\"finish\"}\r\n\r\n",
          "data: {\"type\":\"data-kontext\",\"data\":PAYLOAD,\"transient\":"
          "true}\r\n\r\ndata: {\"type\":\"finish\"}\r\n\r\n" },

        { KX_FORM_TEXT,
          "data: {\"type\":\"finish\"}\r\r",
          "data: {\"type\":\"text-start\",\"id\":\"kontext-ad\"}\r\r"
          "data: {\"type\":\"text-delta\",\"id\":\"kontext-ad\",\"delta\":"
          "\"PAYLOAD\"}\r\r"
          "data: {\"type\":\"text-end\",\"id\":\"kontext-ad\"}\r\r"
          "data: {\"type\":\"finish\"}\r\r" },

        /* several data lines, and a name that means nothing */

        { KX_FORM_MEMBER,
          "event: x\ndata: {\"type\":\ndata: \"finish\"}\n\n",
          MEMBER "event: x\ndata: {\"type\":\ndata: \"finish\"}\n\n" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].form);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.finishes, 1);
        assert_int_equal(res.refused, KX_REASON_NONE);
        assert_int_equal(res.places, KX_OK);
        assert_string_equal((char *) res.out, cases[i].out);
        chat_result_free(&res);
    }
}


/* frames are held only for a text that may come */

static void
test_steps_are_kept_for_text_only(void **state)
{
    size_t      i;
    kx_frame_t  fr;

    static const struct {
        kx_form_e     form;
        kx_reason_e   refused;
        kx_frame_e    verdict;
    } cases[] = {
        { KX_FORM_TEXT, KX_REASON_NONE, KX_FRAME_KEEP },
        { KX_FORM_TEXT, KX_REASON_ERROR_FRAME, KX_FRAME_PASS },
        { KX_FORM_MEMBER, KX_REASON_NONE, KX_FRAME_PASS }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].form);
        chat.answer.refused = cases[i].refused;

        memset(&fr, 0, sizeof(kx_frame_t));
        fr.data.data = (unsigned char *) "{\"type\":\"finish-step\"}";
        fr.data.len = strlen((char *) fr.data.data);

        assert_int_equal(kx_ai_sdk_ui.frame(&chat.answer, &fr),
                         cases[i].verdict);
    }

    /* nor is it once the marker has come */

    start(KX_FORM_TEXT);
    chat.answer.complete = 1;

    assert_int_equal(kx_ai_sdk_ui.frame(&chat.answer, &fr), KX_FRAME_PASS);
}


static void
test_no_memory_for_places(void **state)
{
    unsigned       i;
    kx_form_e      form;
    chat_result_t  res;

    (void) state;

    for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {
        for (i = 1; i <= 2; i++) {
            start(form);
            chat.memory.fail_at = chat.memory.n + i;
            feed_text(&res, FINISH);
            chat.memory.fail_at = 0;

            assert_int_equal(res.finish, 1);

            /* a member needs one piece, a text two */

            assert_int_equal(res.places, (form == KX_FORM_TEXT || i == 1)
                                         ? KX_ERROR : KX_OK);
        }
    }
}


static void
test_refusals(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *stream;
        kx_reason_e   refused;
    } cases[] = {
        { EVENT("finish\""), KX_REASON_NONE },
        { EVENT("f\\u0069nish\""), KX_REASON_NONE },
        { EVENT("finish\",\"finishReason\":null"), KX_REASON_NONE },
        { EVENT("finish\",\"finishReason\":7"), KX_REASON_NONE },
        { EVENT("finish\",\"finishReason\":\"stop\""), KX_REASON_NONE },
        { EVENT("finish\",\"finishReason\":\"length\""), KX_REASON_NONE },
        { EVENT("finish\",\"finishReason\":\"tool-calls\""),
          KX_REASON_TOOL_CALLS },
        { EVENT("finish\",\"finishReason\":\"content-filter\""),
          KX_REASON_FINISH_REASON },
        { EVENT("finish\",\"finishReason\":\"error\""),
          KX_REASON_ERROR_FRAME },
        { EVENT("finish\",\"finishReason\":\"other\""),
          KX_REASON_FINISH_REASON },
        { EVENT("finish\",\"finishReason\":\"unknown\""),
          KX_REASON_FINISH_REASON },
        { EVENT("finish\",\"finishReason\":\"\""), KX_REASON_FINISH_REASON },
        { EVENT("error\",\"errorText\":\"x\"")
          EVENT("finish\",\"finishReason\":\"other\""),
          KX_REASON_ERROR_FRAME },
        { EVENT("abort\"") FINISH, KX_REASON_FINISH_REASON },

        /* calls and what becomes of them */

        { OPEN FINISH, KX_REASON_TOOL_CALLS },
        { OPEN OUTPUT FINISH, KX_REASON_NONE },
        { OPEN OPEN OUTPUT FINISH, KX_REASON_NONE },
        { OUTPUT OPEN FINISH, KX_REASON_TOOL_CALLS },
        { OUTPUT FINISH, KX_REASON_NONE },
        { EVENT("tool-input-start\",\"toolCallId\":\"c-1\"") OPEN OUTPUT
          FINISH, KX_REASON_NONE },
        { EVENT("tool-input-start\",\"toolCallId\":\"c-1\"")
          EVENT("tool-input-delta\",\"toolCallId\":\"c-1\"") FINISH,
          KX_REASON_TOOL_CALLS },
        { EVENT("tool-input-start\",\"toolCallId\":\"c-1\"")
          EVENT("tool-input-error\",\"toolCallId\":\"c-1\"") FINISH,
          KX_REASON_NONE },
        { OPEN EVENT("tool-output-error\",\"toolCallId\":\"c-1\"") FINISH,
          KX_REASON_NONE },
        { OPEN EVENT("tool-output-denied\",\"toolCallId\":\"c-1\"") FINISH,
          KX_REASON_NONE },
        { OPEN EVENT("tool-output-available\",\"toolCallId\":\"c-1\","
                     "\"preliminary\":true") FINISH, KX_REASON_TOOL_CALLS },
        { OPEN EVENT("tool-output-available\",\"toolCallId\":\"c-1\","
                     "\"preliminary\":false") FINISH, KX_REASON_NONE },
        { OPEN EVENT("tool-output-available\",\"toolCallId\":\"c-2\"")
          FINISH, KX_REASON_TOOL_CALLS },
        { OPEN EVENT("tool-output-available\",\"toolCallId\":"
                     "\"\\u0063-1\"") FINISH, KX_REASON_NONE },
        { OPEN OUTPUT EVENT("tool-approval-request\",\"approvalId\":\"a\","
                            "\"toolCallId\":\"c-1\"") FINISH,
          KX_REASON_TOOL_CALLS },
        { OPEN EVENT("tool-approval-request\",\"approvalId\":\"a\","
                     "\"toolCallId\":\"c-1\"")
          EVENT("tool-approval-response\",\"approvalId\":\"a\","
                "\"approved\":true") OUTPUT FINISH, KX_REASON_NONE },
        { EVENT("tool-input-available\"") FINISH, KX_REASON_TOOL_CALLS },
        { EVENT("tool-input-available\",\"toolCallId\":7") FINISH,
          KX_REASON_TOOL_CALLS }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(KX_FORM_MEMBER);
        feed_text(&res, cases[i].stream);

        if (res.finishes != 1 || res.refused != cases[i].refused) {
            fail_msg("%s: %u %d", cases[i].stream, res.finishes,
                     res.refused);
        }
    }
}


static void
test_many_tools(void **state)
{
    char           stream[128];
    unsigned       i, k, calls;
    chat_result_t  res;

    static const char *const  types[] = {
        "tool-input-start",
        "tool-output-available"
    };

    (void) state;

    for (calls = 64; calls <= 65; calls++) {
        start(KX_FORM_MEMBER);

        for (k = 0; k < 2; k++) {
            for (i = 0; i < calls; i++) {
                snprintf(stream, sizeof(stream),
                         "data: {\"type\":\"%s\",\"toolCallId\":\"%u\"}\n\n",
                         types[k], i);
                feed_text(&res, stream);
            }
        }

        feed_text(&res, FINISH);

        assert_int_equal(res.finish, 1);
        assert_int_equal(res.refused, calls == 64 ? KX_REASON_NONE
                                                  : KX_REASON_TOOL_CALLS);
    }

    /* one after the other there may be more of them */

    start(KX_FORM_MEMBER);

    for (i = 0; i < 200; i++) {
        feed_text(&res, OPEN OUTPUT);
    }

    feed_text(&res, FINISH);
    assert_int_equal(res.refused, KX_REASON_NONE);
}


static void
test_no_marker(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char *const  streams[] = {
        "",
        DONE,
        "data: {}\n\n",
        "data: 7\n\ndata: \"finish\"\n\ndata: []\n\ndata: null\n\n",
        "data: {\"type\":7}\n\ndata: {\"type\":[\"finish\"]}\n\n",
        "data: {\"type\":\"finish\"\n\n",
        "data: {\"type\":\"finish\"}x\n\n",
        "data: {\"type\":\"finish\"}\n",
        "{\"type\":\"finish\"}\n\n",
        "event: finish\ndata: {}\n\n",
        "data: {\"type\":\"Finish\"}\n\n",
        "data: {\"type\":\"finish-\"}\n\n",
        "data: {\"data\":{\"type\":\"finish\"},\"type\":\"data-x\"}\n\n",
        "data: {\"type\":\"finish\",\"type\":\"data-x\"}\n\n",
        START STEP TEXT("a") STEP_END
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        start(KX_FORM_TEXT);
        chat_feed_text(&chat, &res, streams[i]);

        if (res.finish || res.refused != KX_REASON_NONE
            || res.len != strlen(streams[i]))
        {
            fail_msg("%s", streams[i]);
        }

        chat_result_free(&res);
    }
}


static void
test_marker_comes_once(void **state)
{
    chat_result_t  res;

    (void) state;

    start(KX_FORM_TEXT);
    chat_feed_text(&chat, &res, TEXT("a") FINISH STEP_END FINISH DONE);

    assert_int_equal(res.finish, 4);
    assert_int_equal(res.finishes, 1);
    assert_int_equal(res.end, 7);
    assert_string_equal((char *) res.out,
                        TEXT("a") AD FINISH STEP_END FINISH DONE);
    chat_result_free(&res);
}


/* the id is the server's, or else made of what content() will find */

static void
test_message_ids(void **state)
{
    unsigned        before;
    chat_result_t   res;
    unsigned char   digest[KX_ID_LEN], id[KX_MESSAGE_ID_LEN];

    static const char  body[] =
        "{\"messages\":[{\"id\":\"u\",\"role\":\"user\",\"parts\":[{"
        "\"type\":\"text\",\"text\":\"hi\"}]},{\"id\":\"m-\\u0031\","
        "\"role\":\"assistant\",\"parts\":[{\"type\":\"text\",\"text\":"
        "\"a\"}]}]}";

    static const char  nameless[] =
        "{\"messages\":[{\"role\":\"user\",\"parts\":[{\"type\":\"text\","
        "\"text\":\"hi\"}]},{\"role\":\"assistant\",\"id\":\"\",\"parts\":["
        "{\"type\":\"step-start\"},{\"type\":\"text\",\"text\":\"a\\ud83d\"}"
        ",{\"type\":\"reasoning\",\"text\":\"hm\"},{\"type\":\"step-start\"}"
        ",{\"type\":\"text\",\"text\":\"\\ude80b\"}]}]}";

    (void) state;

    start(KX_FORM_MEMBER);
    feed_text(&res, START TEXT("a") FINISH);
    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest), KX_OK);

    understand(body);
    assert_int_equal(n, 2);
    assert_said(1, KX_ROLE_ASSISTANT, "a", "m-1");
    assert_memory_equal(newest, digest, KX_ID_LEN);

    /* there is none */

    start(KX_FORM_MEMBER);
    feed_text(&res,
        EVENT("start\"") STEP TEXT("a\\ud83d")
        EVENT("reasoning-delta\",\"id\":\"t\",\"delta\":\"hm\"") STEP_END
        STEP TEXT("\\ude80b") STEP_END FINISH);
    assert_int_equal(chat.answer.message_id.len, 0);
    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest), KX_OK);
    kx_message_id(id, digest);

    understand(nameless);
    assert_int_equal(n, 2);
    assert_said(1, KX_ROLE_ASSISTANT, "a\xef\xbf\xbd\n\xef\xbf\xbd""b", NULL);
    assert_memory_equal(messages[1].id.data, id, KX_MESSAGE_ID_LEN);
    assert_memory_equal(newest, digest, KX_ID_LEN);

    /* the first one is kept, and only that */

    start(KX_FORM_MEMBER);
    before = chat.memory.n;
    feed_text(&res, EVENT("start\",\"messageId\":\"\"")
                    EVENT("start\",\"messageId\":7") START
                    EVENT("start\",\"messageId\":\"m-2\""));
    assert_string(&chat.answer.message_id, "m-1");
    assert_int_equal(chat.memory.n, before + 1);
}


static void
test_no_text(void **state)
{
    chat_result_t  res;
    unsigned char  digest[KX_ID_LEN];

    (void) state;

    /* although it has an id */

    start(KX_FORM_MEMBER);
    feed_text(&res, START STEP TEXT(" \\n") TEXT("<think>hm</think>")
                    EVENT("reasoning-delta\",\"delta\":\"hm\"")
                    EVENT("text-delta\",\"delta\":7") STEP_END FINISH);
    assert_int_equal(res.finishes, 1);
    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest),
                     KX_DECLINED);
}


/* halves of a character in two deltas */

static void
test_answer_text(void **state)
{
    chat_result_t  res;

    (void) state;

    start(KX_FORM_MEMBER);
    feed_text(&res, EVENT("text-start\",\"id\":\"t\"")
                    EVENT("text-delta\",\"id\":\"t\",\"delta\":\"Hi \\ud83d\"")
                    EVENT("text-delta\",\"id\":\"t\",\"delta\":\"\\ude80!\"")
                    FINISH);
    chat_assert_text(&chat, "Hi \xf0\x9f\x9a\x80!");
}


static void
test_turns(void **state)
{
    char    body[1024];
    size_t  i;

    static const struct {
        const char  *messages;
        unsigned     turn;
        unsigned     kept;
    } cases[] = {
        { "[]", 0, 0 },
        { "[{\"role\":\"user\",\"parts\":[{\"type\":\"text\",\"text\":"
          "\"hi\"}]}]", 1, 1 },
        { "[{\"parts\":[{\"text\":\"hi\",\"type\":\"t\\u0065xt\"}],"
          "\"r\\u006fle\":\"us\\u0065r\"}]", 1, 1 },
        { "[{\"role\":\"user\",\"parts\":[{\"type\":\"file\",\"url\":"
          "\"data:,\"}]}]", 0, 0 },
        { "[{\"role\":\"user\",\"parts\":[{\"type\":\"reasoning\",\"text\":"
          "\"hi\"}]}]", 0, 0 },
        { "[{\"role\":\"user\",\"parts\":[{\"type\":\"text\",\"text\":7},"
          "null,7,[]]}]", 0, 0 },
        { "[{\"role\":\"user\",\"parts\":[]}]", 0, 0 },
        { "[{\"role\":\"user\"}]", 0, 0 },
        { "[{\"parts\":[{\"type\":\"text\",\"text\":\"hi\"}]}]", 0, 0 },
        { "[{\"role\":7,\"parts\":[{\"type\":\"text\",\"text\":\"hi\"}]}]",
          0, 0 },
        { "[{\"role\":\"system\",\"parts\":[{\"type\":\"text\",\"text\":"
          "\"hi\"}]}]", 0, 0 },

        /* a tool's output comes back in the assistant's message */

        { "[{\"role\":\"user\",\"parts\":[{\"type\":\"text\",\"text\":"
          "\"hi\"}]},{\"role\":\"assistant\",\"parts\":[{\"type\":\"tool-f\""
          ",\"state\":\"output-available\",\"output\":\"x\"}]}]", 0, 1 },

        /* AI SDK 4 */

        { "[{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\",\"parts\":null}]", 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\",\"parts\":[]}]", 0, 0 },
        { "[{\"role\":\"data\",\"content\":\"hi\"}]", 0, 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{\"messages\":%s}", cases[i].messages);

        understand(body);

        if (!cv.has_messages || cv.user_turn != cases[i].turn
            || n != cases[i].kept)
        {
            fail_msg("%s: %u %u", cases[i].messages, cv.user_turn, n);
        }
    }
}


static void
test_parts_go_before_content(void **state)
{
    (void) state;

    understand("{\"messages\":[{\"role\":\"user\",\"parts\":[{\"type\":"
               "\"text\",\"text\":\"a\"},{\"type\":\"file\"},{\"type\":"
               "\"text\",\"text\":\"b\"}],\"content\":\"c\"}]}");
    assert_int_equal(n, 1);
    assert_said(0, KX_ROLE_USER, "a\nb", NULL);
}


/* of apps that send nothing but the newest message */

static void
test_single_message(void **state)
{
    (void) state;

#define SAID(s)  "{\"id\":\"" s "\",\"role\":\"user\",\"parts\":[{\"type\":" \
                 "\"text\",\"text\":\"" s "\"}]}"

    understand("{\"id\":\"c-9\",\"message\":" SAID("a") "}");
    assert_true(cv.has_messages);
    assert_true(cv.user_turn);
    assert_true(cv.stream);
    assert_int_equal(n, 1);
    assert_said(0, KX_ROLE_USER, "a", "a");
    assert_string(&cv.conversation.value, "c-9");

    understand("{\"message\":" SAID("a") ",\"message\":" SAID("b") "}");
    assert_int_equal(n, 1);
    assert_said(0, KX_ROLE_USER, "b", "b");

    /* a list is more */

    understand("{\"message\":" SAID("a") ",\"messages\":[" SAID("b") ","
               SAID("c") "]}");
    assert_int_equal(n, 2);
    assert_said(0, KX_ROLE_USER, "b", "b");

    understand("{\"messages\":[" SAID("b") "],\"message\":" SAID("a") "}");
    assert_int_equal(n, 1);
    assert_said(0, KX_ROLE_USER, "b", "b");

    understand("{\"messages\":[" SAID("a") "],\"messages\":[" SAID("b")
               "]}");
    assert_int_equal(n, 1);
    assert_said(0, KX_ROLE_USER, "b", "b");

    /* neither is there */

    understand("{\"message\":\"hi\",\"messages\":\"hi\"}");
    assert_false(cv.has_messages);
    assert_false(cv.user_turn);
    assert_int_equal(n, 0);
}


static void
test_conversation_id(void **state)
{
    (void) state;

    understand("{\"id\":7,\"chatId\":\"c-9\",\"messages\":[]}");
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_NONE);

    understand("{\"id\":\"\",\"messages\":[{\"id\":\"m\"}]}");
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_NONE);

    understand("{\"id\":\"a\",\"id\":\"\\u0062\"}");
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_NATIVE);
    assert_string(&cv.conversation.value, "b");
}


static void
test_bad_requests(void **state)
{
    char           *deep;
    size_t          i, len;
    unsigned char  *p, *copy;

    static const char *const  bodies[] = {
        "",
        "[]",
        "7",
        "{",
        "{\"messages\":[}",
        "{\"messages\":[\"hi\"]}",
        "{\"messages\":[{},7]}",
        "{\"messages\":[null]}",
        "{\"message\":{\"parts\":}}",
        "{\"messages\":[]}x"
    };

    (void) state;

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        if (scan(bodies[i]) != KX_REASON_BAD_BODY) {
            fail_msg("%s", bodies[i]);
        }
    }

    /* nesting without end */

    len = 100000;
    deep = malloc(len + 1);
    assert_non_null(deep);
    memset(deep, '[', len);
    memcpy(deep, "{\"messages\":[{\"parts\":", 22);
    deep[len] = '\0';
    assert_int_equal(scan(deep), KX_REASON_BAD_BODY);
    free(deep);

    /* cut anywhere, in memory of just that size */

    p = chat_sample("ai-sdk-ui.request.json", &len);

    while (len && p[len - 1] != '}') {
        len--;
    }

    for (i = 0; i < len; i++) {
        copy = malloc(i ? i : 1);
        assert_non_null(copy);
        memcpy(copy, p, i);
        assert_int_equal(scan_len(copy, i), KX_REASON_BAD_BODY);
        free(copy);
    }

    free(p);
}


static void
test_no_memory(void **state)
{
    (void) state;

    memory.fail_at = 1;
    assert_int_equal(scan(HI), KX_REASON_NO_MEMORY);
    assert_int_equal(scan("{\"id\":\"c\"}"), KX_REASON_NO_MEMORY);
}


/* cut anywhere, in memory of just that size: the input goes on unchanged */

static void
test_truncated_answers(void **state)
{
    size_t          i, len;
    kx_form_e       form;
    chat_result_t   res;
    unsigned char  *copy;

    static const char  stream[] = START STEP OPEN OUTPUT TEXT("a\\n\\ud83d")
                                  STEP_END FINISH;

    (void) state;

    len = sizeof(stream) - 2;

    for (i = 0; i < len; i++) {
        copy = malloc(i ? i : 1);
        assert_non_null(copy);
        memcpy(copy, stream, i);

        for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {
            start(form);
            chat_feed(&chat, &res, copy, i);

            assert_int_equal(res.finish, 0);
            assert_int_equal(res.len, i);

            if (i) {
                assert_memory_equal(res.out, copy, i);
            }

            chat_result_free(&res);
        }

        free(copy);
    }
}


static void
test_paths(void **state)
{
    size_t    i;
    kx_str_t  path;

    static const struct {
        const char  *path;
        int          rc;
    } cases[] = {
        { "/api/chat", KX_AGAIN },
        { "/app/api/chat", KX_AGAIN },
        { "/api/chat/", KX_DECLINED },
        { "/api/chat/completions", KX_DECLINED },
        { "/chat", KX_DECLINED },
        { "/v1/chat/completions", KX_DECLINED },
        { "", KX_DECLINED }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        path.data = (unsigned char *) cases[i].path;
        path.len = strlen(cases[i].path);

        assert_int_equal(kx_ai_sdk_ui.path(&path), cases[i].rc);
    }

    /* it is the body that tells, where the path may be any format's, too */

    for (i = 0; i < 2; i++) {
        path.data = (unsigned char *) PATH;
        path.len = i ? 1 : sizeof(PATH) - 1;

        assert_null(kx_dialect_by_path(&path));
        assert_ptr_equal(kx_dialect_by_body(&path, (unsigned char *) HI,
                                            sizeof(HI) - 1),
                         &kx_ai_sdk_ui);
    }

    assert_ptr_equal(kx_dialect_by_name((unsigned char *) "ai_sdk_ui", 9),
                     &kx_ai_sdk_ui);
}


static void
test_bodies(void **state)
{
    size_t        i;
    kx_members_t  members;

    static const struct {
        const char  *body;
        unsigned     ours;
    } cases[] = {
        { HI, 1 },
        { "{\"messages\":[{\"parts\":[]}]}", 1 },
        { "{\"messages\":[7,null,{\"content\":\"hi\",\"p\\u0061rts\":[]}]}",
          1 },
        { "{\"message\":{\"parts\":[]}}", 1 },
        { "{\"message\":{\"parts\":[]},\"messages\":[]}", 1 },
        { "{\"message\":7,\"messages\":[{\"parts\":[]}]}", 1 },
        { "{\"messages\":[{\"content\":\"hi\"},{\"parts\":[]}]}", 0 },
        { "{\"messages\":[{\"parts\":{}}]}", 0 },
        { "{\"messages\":[[{\"parts\":[]}]]}", 0 },
        { "{\"messages\":{\"parts\":[]}}", 0 },
        { "{\"messages\":[]}", 0 },
        { "{\"message\":\"hi\"}", 0 },
        { "{\"message\":[{\"parts\":[]}]}", 0 },
        { "{\"id\":\"c\",\"messages\":[{\"role\":\"user\",\"content\":"
          "\"hi\"}]}", 0 },
        { "{}", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(kx_members_read(&members,
                                         (unsigned char *) cases[i].body,
                                         strlen(cases[i].body)),
                         KX_OK);

        if (kx_ai_sdk_ui.body(&members) != cases[i].ours) {
            fail_msg("%s", cases[i].body);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_teardown(test_sample_request, teardown),
        cmocka_unit_test_teardown(test_sample_answers, teardown),
        cmocka_unit_test_teardown(test_places, teardown),
        cmocka_unit_test_teardown(test_steps_are_kept_for_text_only,
                                  teardown),
        cmocka_unit_test_teardown(test_no_memory_for_places, teardown),
        cmocka_unit_test_teardown(test_refusals, teardown),
        cmocka_unit_test_teardown(test_many_tools, teardown),
        cmocka_unit_test_teardown(test_no_marker, teardown),
        cmocka_unit_test_teardown(test_marker_comes_once, teardown),
        cmocka_unit_test_teardown(test_message_ids, teardown),
        cmocka_unit_test_teardown(test_no_text, teardown),
        cmocka_unit_test_teardown(test_answer_text, teardown),
        cmocka_unit_test_teardown(test_turns, teardown),
        cmocka_unit_test_teardown(test_parts_go_before_content, teardown),
        cmocka_unit_test_teardown(test_single_message, teardown),
        cmocka_unit_test_teardown(test_conversation_id, teardown),
        cmocka_unit_test_teardown(test_bad_requests, teardown),
        cmocka_unit_test_teardown(test_no_memory, teardown),
        cmocka_unit_test_teardown(test_truncated_answers, teardown),
        cmocka_unit_test_teardown(test_paths, teardown),
        cmocka_unit_test_teardown(test_bodies, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
