/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Anthropic Messages: what is understood of a request and of an answer, and
 * where an ad goes (chat-apis.md 6 and 11).
 */


#include "chat.h"


#include <cjson/cJSON.h>


#define HASH  "0123456789abcdef0123456789abcdef" \
              "0123456789abcdef0123456789abcdef"
#define ACC   "11111111-2222-3333-4444-555555555555"
#define SES   "aaaaaaaa-BBBB-cccc-dddd-eeeeeeeeeeee"

#define MEMBER  ",\"kontext\":" CHAT_PAYLOAD

#define TEXT(eol, n)                                                          \
    "event: content_block_start" eol                                          \
    "data: {\"type\":\"content_block_start\",\"index\":" n ",\"content_block" \
    "\":{\"type\":\"text\",\"text\":\"\"}}" eol eol                           \
    "event: content_block_delta" eol                                          \
    "data: {\"type\":\"content_block_delta\",\"index\":" n ",\"delta\":"      \
    "{\"type\":\"text_delta\",\"text\":\"" CHAT_PAYLOAD "\"}}" eol eol        \
    "event: content_block_stop" eol                                           \
    "data: {\"type\":\"content_block_stop\",\"index\":" n "}" eol eol


static const unsigned char  key[] = "0123456789abcdef";

static chat_t             chat;
static chat_memory_t      memory;
static kx_pool_t          pool = { chat_alloc, &memory };
static kx_conversation_t  cv;
static kx_message_t       messages[KX_MAX_MESSAGES];
static unsigned           n;
static kx_str_t           cid = kx_string("c-1");
static kx_str_t           path = kx_string("/v1/messages");


static kx_reason_e
scan_len(const unsigned char *p, size_t len)
{
    kx_conversation_init(&cv, &kx_anthropic, &path, key, &pool);

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
    unsigned char  digest[KX_ID_LEN];

    if (scan(body) != KX_REASON_NONE) {
        fail_msg("%s", body);
    }

    n = chat_messages(&cv, &cid, messages, digest);
}


static void
assert_text(unsigned i, kx_role_e role, const char *text)
{
    assert_true(i < n);
    assert_int_equal(messages[i].role, role);
    assert_int_equal(messages[i].content.len, strlen(text));
    assert_memory_equal(messages[i].content.data, text, strlen(text));
}


static unsigned
is(const kx_str_t *s, const char *text)
{
    return s->len == strlen(text)
           && (s->len == 0 || memcmp(s->data, text, s->len) == 0);
}


static void
start(kx_framing_e framing, kx_form_e form)
{
    chat_start(&chat, &kx_anthropic, "/v1/messages",
               "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
               framing, form);
}


static void
feed_text(chat_result_t *res, const char *stream)
{
    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    chat_feed_text(&chat, res, stream);
    chat_result_free(res);
}


/* what was put in is these bytes, and all else is as it was */

static void
assert_only(chat_result_t *res, const char *ad, unsigned times,
    const unsigned char *p, size_t len)
{
    size_t          size;
    unsigned char  *at;

    size = strlen(ad);

    assert_int_equal(res->len, len + times * size);

    while (times--) {
        at = (unsigned char *) strstr((char *) res->out, ad);
        assert_non_null(at);

        memmove(at, at + size, (size_t) (res->out + res->len - at) - size);
        res->len -= size;
        res->out[res->len] = '\0';
    }

    assert_memory_equal(res->out, p, len);
}


/* the answer has the id that it will have as a part of the history */

static void
assert_comes_back(const char *content)
{
    char           body[2048];
    unsigned char  digest[KX_ID_LEN], id[KX_MESSAGE_ID_LEN];

    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest), KX_OK);
    kx_message_id(id, digest);

    snprintf(body, sizeof(body),
             "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},"
             "{\"role\":\"assistant\",\"content\":%s},"
             "{\"role\":\"user\",\"content\":\"ho\"}]}", content);

    understand(body);

    assert_int_equal(n, 3);
    assert_int_equal(messages[1].id.len, KX_MESSAGE_ID_LEN);
    assert_memory_equal(messages[1].id.data, id, KX_MESSAGE_ID_LEN);
}


static int
teardown(void **state)
{
    (void) state;

    memory.fail_at = 0;
    chat.memory.fail_at = 0;

    chat_free(&memory);
    chat_done(&chat);

    return 0;
}


static void
test_sample_streams(void **state)
{
    size_t          i, len;
    cJSON          *root;
    const cJSON    *record;
    chat_result_t   res;
    unsigned char  *p;

    static const struct {
        const char   *name;
        const char   *text;
        unsigned      frames;
        unsigned      finish;
        unsigned      end;
        kx_reason_e   refused;
    } cases[] = {
        { "anthropic.sse", TEXT("\n", "1"), 146, 145, 146, KX_REASON_NONE },
        { "anthropic-crlf.sse", TEXT("\r\n", "1"), 146, 145, 146,
          KX_REASON_NONE },
        { "anthropic-error.sse", NULL, 31, 0, 0, KX_REASON_ERROR_FRAME },
        { "anthropic-thinking-tools.sse", NULL, 90, 89, 90,
          KX_REASON_TOOL_CALLS }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p = chat_sample(cases[i].name, &len);
        record = chat_expected(cases[i].name, &root);

        start(KX_FRAMING_SSE, KX_FORM_MEMBER);
        chat_feed(&chat, &res, p, len);

        if (res.frames != cases[i].frames || res.finish != cases[i].finish
            || res.finishes != (cases[i].finish != 0)
            || res.end != cases[i].end || res.refused != cases[i].refused)
        {
            fail_msg("%s: frames %u, finish %u, end %u, refused %d",
                     cases[i].name, res.frames, res.finish, res.end,
                     res.refused);
        }

        assert_only(&res, MEMBER, res.finish ? 2 : 0, p, len);
        chat_result_free(&res);

        assert_true(is(&chat.answer.response_id, chat_string(record, "id")));
        chat_assert_text(&chat, chat_string(record, "text"));

        start(KX_FRAMING_SSE, KX_FORM_TEXT);
        chat_feed(&chat, &res, p, len);

        assert_int_equal(res.finish, cases[i].finish);

        if (cases[i].text) {
            assert_int_equal(res.places, KX_OK);
            assert_only(&res, cases[i].text, 1, p, len);

        } else {
            assert_true(res.finish == 0 || res.places == KX_DECLINED);
            assert_only(&res, "", 0, p, len);
        }

        chat_result_free(&res);
        cJSON_Delete(root);
        free(p);
    }
}


static void
test_sample_whole(void **state)
{
    size_t          len;
    cJSON          *root;
    const cJSON    *record;
    chat_result_t   res;
    unsigned char  *p;

    (void) state;

    p = chat_sample("anthropic.response.json", &len);
    record = chat_expected("anthropic.sse", &root);

    start(KX_FRAMING_WHOLE, KX_FORM_MEMBER);
    chat_feed(&chat, &res, p, len);

    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_NONE);
    assert_int_equal(res.places, KX_OK);
    assert_only(&res, MEMBER, 1, p, len);
    chat_result_free(&res);

    assert_true(is(&chat.answer.response_id, chat_string(record, "id")));
    chat_assert_text(&chat, chat_string(record, "text"));

    start(KX_FRAMING_WHOLE, KX_FORM_TEXT);
    chat_feed(&chat, &res, p, len);

    assert_int_equal(res.places, KX_OK);
    assert_only(&res, ",{\"type\":\"text\",\"text\":\"PAYLOAD\"}", 1, p, len);

    chat_result_free(&res);
    cJSON_Delete(root);
    free(p);
}


static void
test_sample_request(void **state)
{
    size_t          len;
    cJSON          *root;
    unsigned        i;
    const char     *role;
    const cJSON    *record, *m;
    unsigned char  *p, digest[KX_ID_LEN], id[KX_MESSAGE_ID_LEN];

    (void) state;

    p = chat_sample("anthropic.request.json", &len);

    assert_int_equal(scan_len(p, len), KX_REASON_NONE);
    n = chat_messages(&cv, &cid, messages, digest);

    record = chat_expected("anthropic.request.json", &root);
    record = cJSON_GetObjectItemCaseSensitive(record, "conversation");

    assert_int_equal(n, cJSON_GetArraySize(record));

    i = 0;

    cJSON_ArrayForEach(m, record) {
        role = chat_string(m, "role");

        assert_text(i++, strcmp(role, "user") ? KX_ROLE_ASSISTANT
                                              : KX_ROLE_USER,
                    chat_string(m, "text"));
    }

    kx_message_id(id, digest);
    assert_memory_equal(messages[n - 1].id.data, id, KX_MESSAGE_ID_LEN);

    assert_true(cv.stream);
    assert_true(cv.user_turn);
    assert_true(cv.has_messages);
    assert_false(cv.json_mode);
    assert_false(cv.forced_tools);
    assert_int_equal(cv.choices, 1);
    assert_int_equal(cv.user.rank, KX_IDENTITY_METADATA);
    assert_true(is(&cv.user.value, "13803d75-b4b5-4c3e-b2a2-6f21399b021b"));
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_NONE);

    cJSON_Delete(root);
    free(p);
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
        { "[{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 },
        { "[{\"content\":\"hi\",\"role\":\"us\\u0065r\"}]", 1, 1 },
        { "[{\"role\":\"User\",\"content\":\"hi\"}]", 0, 0 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
          "\"text\":\"hi\"}]}]", 1, 1 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"image\","
          "\"source\":{}}]}]", 0, 0 },
        { "[{\"role\":\"user\",\"content\":\" \\n\"}]", 0, 0 },
        { "[{\"role\":\"user\"}]", 0, 0 },

        /* a tool's result alone is no turn, with a text beside it, it is */

        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"assistant\",\"content\":[{\"type\":\"tool_use\","
          "\"id\":\"t\",\"name\":\"f\",\"input\":{\"text\":\"x\"}}]},"
          "{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\","
          "\"content\":[{\"type\":\"text\",\"text\":\"x\"}]}]}]", 0, 1 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\","
          "\"content\":\"x\"},{\"type\":\"text\",\"text\":\"hi\"}]}]", 1, 1 },

        /* an answer that has been begun for the model */

        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"assistant\",\"content\":\"{\"}]", 0, 2 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"assistant\",\"content\":[]}]", 0, 1 },

        { "[{\"role\":\"system\",\"content\":\"x\"},"
          "{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"system\",\"content\":\"x\"}]", 0, 1 },
        { "[{\"role\":\"assistant\",\"content\":[{\"type\":\"thinking\","
          "\"thinking\":\"x\",\"text\":\"y\"}]},"
          "{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{\"messages\":%s}", cases[i].messages);

        if (scan(body) != KX_REASON_NONE
            || cv.user_turn != cases[i].turn
            || cv.nhashes != cases[i].kept)
        {
            fail_msg("%s: turn %u, kept %u", cases[i].messages, cv.user_turn,
                     cv.nhashes);
        }
    }
}


static void
test_last_duplicate_wins(void **state)
{
    (void) state;

    understand("{\"messages\":[{\"role\":\"user\",\"content\":\"old\"}],"
               "\"metadata\":{\"user_id\":\"u1\",\"user_id\":\"u2\"},"
               "\"stream\":true,\"stream\":false,"
               "\"messages\":[{\"role\":\"system\",\"role\":\"user\","
               "\"content\":\"a\",\"content\":\"b\"}]}");

    assert_int_equal(n, 1);
    assert_text(0, KX_ROLE_USER, "b");
    assert_true(is(&cv.user.value, "u2"));
    assert_false(cv.stream);

    understand("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
               "\"messages\":null}");

    assert_int_equal(n, 0);
    assert_false(cv.user_turn);
    assert_false(cv.has_messages);
}


static void
test_modes(void **state)
{
    char    body[1024];
    size_t  i;

    static const struct {
        const char  *member;
        unsigned     json;
        unsigned     tools;
    } cases[] = {
        { "\"tools\":[{\"name\":\"f\"}]", 0, 0 },
        { "\"tool_choice\":{\"type\":\"auto\"}", 0, 0 },
        { "\"tool_choice\":{\"type\":\"none\"}", 0, 0 },
        { "\"tool_choice\":{\"type\":\"any\"}", 0, 1 },
        { "\"tool_choice\":{\"name\":\"f\",\"type\":\"t\\u006fol\"}", 0, 1 },
        { "\"tool_choice\":{\"type\":\"any\"},"
          "\"tool_choice\":{\"type\":\"auto\"}", 0, 0 },
        { "\"tool_choice\":\"any\"", 0, 0 },
        { "\"tool_choice\":{\"type\":7}", 0, 0 },
        { "\"tool_choice\":null", 0, 0 },
        { "\"output_config\":{\"effort\":\"low\"}", 0, 0 },
        { "\"output_config\":{\"format\":null}", 0, 0 },
        { "\"output_config\":{\"effort\":\"low\",\"format\":"
          "{\"type\":\"json_schema\",\"schema\":{}}}", 1, 0 },
        { "\"output_config\":\"format\"", 0, 0 },
        { "\"output_format\":null", 0, 0 },
        { "\"output_format\":{\"type\":\"json_schema\"}", 1, 0 },
        { "\"response_format\":{\"type\":\"json_object\"}", 0, 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{%s,\"stream\":true}",
                 cases[i].member);

        assert_int_equal(scan(body), KX_REASON_NONE);

        if (!cv.stream || cv.json_mode != cases[i].json
            || cv.forced_tools != cases[i].tools)
        {
            fail_msg("%s", cases[i].member);
        }
    }

    assert_int_equal(scan("{}"), KX_REASON_NONE);
    assert_false(cv.stream);
    assert_int_equal(scan("{\"stream\":\"true\"}"), KX_REASON_NONE);
    assert_false(cv.stream);
}


static void
test_identities(void **state)
{
    char    body[1024];
    size_t  i;

    static const struct {
        const char  *metadata;
        const char  *user;
        const char  *conversation;
    } cases[] = {
        { "null", "", "" },
        { "{\"user_id\":null}", "", "" },
        { "{\"user_id\":\"u1\"}", "u1", "" },
        { "{\"user_id\":\"u1\",\"session_id\":\"s\"}", "u1", "s" },

        /* Claude Code */

        { "{\"user_id\":\"user_" HASH "_account_" ACC "_session_" SES "\"}",
          "user_" HASH "_account_" ACC, SES },
        { "{\"user_id\":\"user_" HASH "_account__session_" SES "\"}",
          "user_" HASH "_account_", SES },
        { "{\"user_id\":\"{\\\"device_id\\\":\\\"" HASH "\\\","
          "\\\"account_uuid\\\":\\\"" ACC "\\\","
          "\\\"session_id\\\":\\\"" SES "\\\"}\"}",
          "user_" HASH "_account_" ACC, SES },
        { "{\"user_id\":\"{ \\\"session_id\\\": \\\"" SES "\\\", \\\"x\\\": "
          "[7], \\\"account_uuid\\\": \\\"\\\", \\\"device_id\\\": "
          "\\\"d-1\\\" }\"}",
          "user_d-1_account_", SES },

        /* another conversation id is a better one */

        { "{\"chat_id\":\"c\",\"user_id\":\"user_a_account_" ACC "_session_"
          SES "\"}", "user_a_account_" ACC, "c" },

        /* nearly so: the whole is the user */

        { "{\"user_id\":\"user__account_" ACC "_session_" SES "\"}",
          "user__account_" ACC "_session_" SES, "" },
        { "{\"user_id\":\"user_a b_account_" ACC "_session_" SES "\"}",
          "user_a b_account_" ACC "_session_" SES, "" },
        { "{\"user_id\":\"user_a_account_x_session_" SES "\"}",
          "user_a_account_x_session_" SES, "" },
        { "{\"user_id\":\"user_a_account_" ACC "_session_1\"}",
          "user_a_account_" ACC "_session_1", "" },
        { "{\"user_id\":\"user_a_account_" ACC "_session_" SES "x\"}",
          "user_a_account_" ACC "_session_" SES "x", "" },
        { "{\"user_id\":\"user_a_account_" ACC "_session_" SES " \"}",
          "user_a_account_" ACC "_session_" SES " ", "" },
        { "{\"user_id\":\"user_a_account_" ACC "_session_\"}",
          "user_a_account_" ACC "_session_", "" },
        { "{\"user_id\":\"xuser_a_account_" ACC "_session_" SES "\"}",
          "xuser_a_account_" ACC "_session_" SES, "" },
        { "{\"user_id\":\"user_a_account_11111111-2222-3333-4444_55555555555"
          "_session_" SES "\"}",
          "user_a_account_11111111-2222-3333-4444_55555555555_session_" SES,
          "" },
        { "{\"user_id\":\"user_a_account_" ACC "_session_"
          "aaaaaaaa-bbbb-cccc-dddd-gggggggggggg\"}",
          "user_a_account_" ACC "_session_"
          "aaaaaaaa-bbbb-cccc-dddd-gggggggggggg", "" },
        { "{\"user_id\":\"user_a_account_" ACC "_session_"
          "aaaaaaaaabbbb-cccc-dddd-eeeeeeeeeeee\"}",
          "user_a_account_" ACC "_session_"
          "aaaaaaaaabbbb-cccc-dddd-eeeeeeeeeeee", "" },
        { "{\"user_id\":\"{\\\"device_id\\\":\\\"d\\\","
          "\\\"session_id\\\":\\\"" SES "\\\"}\"}",
          "{\"device_id\":\"d\",\"session_id\":\"" SES "\"}", "" },
        { "{\"user_id\":\"{\\\"account_uuid\\\":\\\"\\\","
          "\\\"session_id\\\":\\\"" SES "\\\"}\"}",
          "{\"account_uuid\":\"\",\"session_id\":\"" SES "\"}", "" },
        { "{\"user_id\":\"{\\\"device_id\\\":\\\"d\\\","
          "\\\"account_uuid\\\":\\\"\\\"}\"}",
          "{\"device_id\":\"d\",\"account_uuid\":\"\"}", "" },
        { "{\"user_id\":\"{\\\"device_id\\\":\\\"d\\\","
          "\\\"account_uuid\\\":null,\\\"session_id\\\":\\\"" SES "\\\"}\"}",
          "{\"device_id\":\"d\",\"account_uuid\":null,\"session_id\":\"" SES
          "\"}", "" },
        { "{\"user_id\":\"{\\\"device_id\\\":\\\"d e\\\","
          "\\\"account_uuid\\\":\\\"\\\","
          "\\\"session_id\\\":\\\"" SES "\\\"}\"}",
          "{\"device_id\":\"d e\",\"account_uuid\":\"\",\"session_id\":\"" SES
          "\"}", "" },
        { "{\"user_id\":\"{\\\"device_id\\\":\\\"d\\\","
          "\\\"account_uuid\\\":\\\"\\\","
          "\\\"session_id\\\":\\\"" SES "\\\"}x\"}",
          "{\"device_id\":\"d\",\"account_uuid\":\"\",\"session_id\":\"" SES
          "\"}x", "" },
        { "{\"user_id\":\"{\\\"device_id\\\":\\\"d\\\"\"}",
          "{\"device_id\":\"d\"", "" },
        { "{\"user_id\":\"[]\"}", "[]", "" },
        { "{\"user_id\":\"{}\"}", "{}", "" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{\"metadata\":%s}", cases[i].metadata);

        assert_int_equal(scan(body), KX_REASON_NONE);

        if (!is(&cv.user.value, cases[i].user)
            || !is(&cv.conversation.value, cases[i].conversation))
        {
            fail_msg("%s", cases[i].metadata);
        }
    }

    assert_int_equal(scan("{\"metadata\":{\"user_id\":\"user_a_account_" ACC
                          "_session_" SES "\"}}"),
                     KX_REASON_NONE);
    assert_int_equal(cv.user.rank, KX_IDENTITY_METADATA);
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_METADATA4);
}


static void
test_bad_bodies(void **state)
{
    char    *bomb;
    size_t   i;

    static const char  *bodies[] = {
        "", "[]", "7", "null", "{", "{\"messages\":[}", "{\"messages\":[{}",
        "{\"messages\":[\"hi\"]}", "{\"messages\":[{},7]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi}]}",
        "{\"metadata\":{\"user_id\":\"u\"", "{\"tool_choice\":{\"type\":}}",
        "{\"output_config\":[}", "{} {}"
    };

    (void) state;

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        if (scan(bodies[i]) != KX_REASON_BAD_BODY) {
            fail_msg("%s", bodies[i]);
        }
    }

    /* a nesting bomb: an error, and no deep stack */

    bomb = malloc(1000000);
    assert_non_null(bomb);
    memset(bomb, '[', 1000000);
    memcpy(bomb, "{\"messages\":[{\"content\":", 24);
    assert_int_equal(scan_len((unsigned char *) bomb, 1000000),
                     KX_REASON_BAD_BODY);
    free(bomb);
}


static void
test_every_prefix_of_a_request_is_bad(void **state)
{
    size_t          i, len;
    unsigned char  *p, *copy;

    (void) state;

    p = chat_sample("anthropic.request.json", &len);

    for (i = 0; i + 2 < len; i++) {

        /* of its own size, so that reading past the end is seen */

        copy = malloc(i ? i : 1);
        assert_non_null(copy);
        memcpy(copy, p, i);

        assert_int_equal(scan_len(copy, i), KX_REASON_BAD_BODY);

        free(copy);
        chat_free(&memory);
    }

    free(p);
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
        { "{\"messages\":[],\"max_tokens\":9,\"system\":\"x\"}", 1 },
        { "{\"messages\":[],\"max_tokens\":9,\"system\":[]}", 1 },
        { "{\"messages\":[],\"max_tokens\":9,\"anthropic_version\":\"b\"}",
          1 },
        { "{\"messages\":[],\"max_tokens\":9,\"stop_sequences\":[\"x\"]}",
          1 },
        { "{\"messages\":[],\"max_tokens\":9,\"thinking\":{}}", 1 },
        { "{\"messages\":[],\"max_tokens\":9,\"top_k\":5}", 1 },

        /* OpenAI's, and what others made of it */

        { "{\"model\":\"m\",\"messages\":[],\"max_tokens\":9}", 0 },
        { "{\"messages\":[],\"max_tokens\":9,\"temperature\":1,"
          "\"stream\":true}", 0 },
        { "{\"messages\":[],\"max_tokens\":9,\"top_k\":5,\"n\":1}", 0 },
        { "{\"messages\":[],\"max_tokens\":9,\"top_k\":5,\"user\":\"u\"}",
          0 },
        { "{\"messages\":[],\"max_tokens\":9,\"thinking\":{},"
          "\"response_format\":{}}", 0 },
        { "{\"messages\":[],\"max_tokens\":9,\"top_k\":5,"
          "\"stream_options\":{}}", 0 },
        { "{\"messages\":[],\"system\":\"x\"}", 0 },
        { "{\"messages\":[],\"max_tokens\":\"9\",\"system\":\"x\"}", 0 },
        { "{\"messages\":{},\"max_tokens\":9,\"system\":\"x\"}", 0 },
        { "{\"messages\":[],\"max_tokens\":9,\"system\":null}", 0 },
        { "{\"max_tokens\":9,\"system\":\"x\"}", 0 },
        { "{}", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(kx_members_read(&members,
                                         (unsigned char *) cases[i].body,
                                         strlen(cases[i].body)),
                         KX_OK);

        if (kx_anthropic.body(&members) != cases[i].ours) {
            fail_msg("%s", cases[i].body);
        }
    }
}


static void
test_paths(void **state)
{
    size_t    i;
    kx_str_t  p;

    static const struct {
        const char  *path;
        int          rc;
    } cases[] = {
        { "/v1/messages", KX_OK },
        { "/anthropic/v1/messages", KX_OK },
        { "/messages", KX_AGAIN },
        { "/v1/threads/t/messages", KX_AGAIN },
        { "/v2/messages", KX_AGAIN },
        { "/v1/messages/", KX_DECLINED },
        { "/v1/messages/count_tokens", KX_DECLINED },
        { "/v1/messages/batches", KX_DECLINED },
        { "/v1/chat/completions", KX_DECLINED },
        { "messages", KX_DECLINED },
        { "", KX_DECLINED }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p.data = (unsigned char *) cases[i].path;
        p.len = strlen(cases[i].path);

        if (kx_anthropic.path(&p) != cases[i].rc) {
            fail_msg("%s", cases[i].path);
        }
    }

    p.data = (unsigned char *) "/v1/messages";
    p.len = 12;

    assert_ptr_equal(kx_dialect_by_path(&p), &kx_anthropic);
    assert_ptr_equal(kx_dialect_by_name((unsigned char *) "anthropic", 9),
                     &kx_anthropic);
}


#define EVENT(name, rest)                                                     \
    "event: " name "\ndata: {\"type\":\"" name "\"" rest "}\n\n"

#define BEGIN  EVENT("message_start", ",\"message\":{\"id\":\"msg_1\"}")

#define BLOCK(i, type)                                                        \
    EVENT("content_block_start",                                              \
          ",\"index\":" i ",\"content_block\":{\"type\":\"" type "\"}")

#define SAID(i, text)                                                         \
    EVENT("content_block_delta",                                              \
          ",\"index\":" i ",\"delta\":{\"type\":\"text_delta\",\"text\":\""   \
          text "\"}")

#define STOP(i)  EVENT("content_block_stop", ",\"index\":" i)

#define DELTA(stop)                                                           \
    EVENT("message_delta", ",\"delta\":{\"stop_reason\":" stop "}")

#define DONE  DELTA("\"end_turn\"")

#define END  EVENT("message_stop", "")


static void
test_stop_reasons(void **state)
{
    char           stream[2048];
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *stop;
        kx_reason_e   refused;
    } cases[] = {
        { "end_turn", KX_REASON_NONE },
        { "end\\u005fturn", KX_REASON_NONE },
        { "max_tokens", KX_REASON_NONE },
        { "stop_sequence", KX_REASON_NONE },
        { "tool_use", KX_REASON_TOOL_CALLS },
        { "pause_turn", KX_REASON_TOOL_CALLS },
        { "refusal", KX_REASON_REFUSAL },
        { "model_context_window_exceeded", KX_REASON_FINISH_REASON },
        { "something_new", KX_REASON_FINISH_REASON },
        { "End_turn", KX_REASON_FINISH_REASON }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(stream, sizeof(stream),
                 BEGIN BLOCK("0", "text") SAID("0", "a") STOP("0")
                 DELTA("\"%s\"") END, cases[i].stop);

        feed_text(&res, stream);

        if (res.finish != 5 || res.end != 6
            || res.refused != cases[i].refused)
        {
            fail_msg("%s: %u %d", cases[i].stop, res.finish, res.refused);
        }

        snprintf(stream, sizeof(stream),
                 "{\"type\":\"message\",\"content\":[],"
                 "\"stop_reason\":\"%s\"}", cases[i].stop);

        start(KX_FRAMING_WHOLE, KX_FORM_MEMBER);
        chat_feed_text(&chat, &res, stream);
        chat_result_free(&res);

        assert_int_equal(res.finish, 1);
        assert_int_equal(res.refused, cases[i].refused);
    }
}


/* a block that calls a tool says nothing, the stop reason does */

static void
test_tool_blocks(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *stream;
        kx_reason_e   refused;
        int           text;
    } cases[] = {
        { BLOCK("0", "text") SAID("0", "a") STOP("0")
          BLOCK("1", "tool_use") STOP("1") DELTA("\"tool_use\""),
          KX_REASON_TOOL_CALLS, KX_DECLINED },
        { BLOCK("0", "text") SAID("0", "a") STOP("0")
          BLOCK("1", "tool_use") STOP("1") DONE,
          KX_REASON_NONE, KX_DECLINED },
        { BLOCK("0", "tool_use") STOP("0")
          BLOCK("1", "text") SAID("1", "a") STOP("1") DONE,
          KX_REASON_NONE, KX_OK },
        { BLOCK("0", "server_tool_use") STOP("0")
          BLOCK("1", "web_search_tool_result") STOP("1")
          BLOCK("2", "text") SAID("2", "a") STOP("2") DONE,
          KX_REASON_NONE, KX_OK }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        feed_text(&res, cases[i].stream);

        assert_int_equal(res.refused, cases[i].refused);
        assert_int_equal(res.places, KX_OK);
        chat_assert_text(&chat, "a");

        start(KX_FRAMING_SSE, KX_FORM_TEXT);
        chat_feed_text(&chat, &res, cases[i].stream);
        chat_result_free(&res);

        assert_int_equal(res.places, cases[i].text);
    }
}


static void
test_error_frames(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char  *streams[] = {
        "event: error\ndata: {\"type\":\"x\"}\n\n",
        "event: error\ndata: x\n\n",
        "data: {\"type\":\"error\",\"error\":{\"type\":\"api_error\"}}\n\n",
        "data: {\"type\":\"\\u0065rror\"}\n\n",
        "data: {\"error\":{\"message\":\"x\"}}\n\n",
        "data: {\"error\":\"x\"}\n\n",
        BLOCK("0", "text") SAID("0", "a")
        "data: {\"type\":\"error\"}\n\n" STOP("0") DONE
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        feed_text(&res, streams[i]);

        if (res.refused != KX_REASON_ERROR_FRAME) {
            fail_msg("%s", streams[i]);
        }
    }

    feed_text(&res, "data: {\"type\":\"ping\",\"error\":null}\n\n");
    assert_int_equal(res.refused, KX_REASON_NONE);

    start(KX_FRAMING_WHOLE, KX_FORM_MEMBER);
    chat_feed_text(&chat, &res,
                   "{\"type\":\"error\",\"error\":{\"type\":\"x\"}}");
    chat_result_free(&res);

    assert_int_equal(res.finish, 0);
    assert_int_equal(res.refused, KX_REASON_ERROR_FRAME);
}


static void
test_no_marker(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char  *streams[] = {
        "data: [DONE]\n\n",
        "data: 7\n\ndata: []\n\ndata: \"message_delta\"\n\n",
        "data: {}\n\n",
        END,
        EVENT("ping", ""),
        EVENT("ping", ",\"delta\":{\"stop_reason\":\"end_turn\"}"),
        EVENT("message_delta", ""),
        EVENT("message_delta", ",\"stop_reason\":\"end_turn\""),
        EVENT("message_delta", ",\"delta\":\"stop_reason\""),
        EVENT("message_delta", ",\"delta\":{}"),
        EVENT("message_delta", ",\"delta\":{\"stop_reason\":\"end_turn\"},"
              "\"delta\":{}"),
        DELTA("null"),
        DELTA("\"\""),
        DELTA("7"),
        DELTA("[\"end_turn\"]"),
        "event: message_delta\n"
        "data: {\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n",
        "data: {\"type\":7,\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n",
        "data: {\"type\":\"message_delta\","
        "\"delta\":{\"stop_reason\":\"end_turn\"}\n\n",
        "data: {\"type\":\"message_delta\","
        "\"delta\":{\"stop_reason\":\"end_turn\"}}x\n\n",
        ": {\"type\":\"message_delta\","
        "\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n",
        "data: {\"type\":\"message_delta\","
        "\"delta\":{\"stop_reason\":\"end_turn\"}}\n"
    };

    static const char  *bodies[] = {
        "", "7", "[]", "{}", "{\"type\":\"message\"}",
        "{\"type\":\"message\",\"content\":\"a\","
        "\"stop_reason\":\"end_turn\"}",
        "{\"type\":\"message\",\"stop_reason\":\"end_turn\"}",
        "{\"type\":\"message\",\"content\":[],\"stop_reason\":null}",
        "{\"type\":\"completion\",\"content\":[],"
        "\"stop_reason\":\"end_turn\"}",
        "{\"content\":[],\"stop_reason\":\"end_turn\"}",
        "{\"type\":\"message\",\"content\":{\"type\":\"text\"},"
        "\"stop_reason\":\"end_turn\"}",
        "{\"type\":\"message\",\"content\":[],\"stop_reason\":\"end_turn\"",
        "{\"type\":\"message\",\"content\":[],\"stop_reason\":\"end_turn\"}x"
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        feed_text(&res, streams[i]);

        if (res.finish || res.refused != KX_REASON_NONE) {
            fail_msg("%s", streams[i]);
        }
    }

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        start(KX_FRAMING_WHOLE, KX_FORM_MEMBER);
        chat_feed_text(&chat, &res, bodies[i]);
        chat_result_free(&res);

        if (res.finish || res.refused != KX_REASON_NONE) {
            fail_msg("%s", bodies[i]);
        }
    }
}


static void
test_the_first_stop_reason_is_the_marker(void **state)
{
    chat_result_t  res;

    (void) state;

    feed_text(&res,
              BEGIN BLOCK("0", "text") SAID("0", "a") DELTA("null") STOP("0")
              EVENT("message_delta", ",\"usage\":{\"output_tokens\":1}")
              DONE DELTA("\"refusal\"") END);

    assert_int_equal(res.finish, 7);
    assert_int_equal(res.finishes, 1);
    assert_int_equal(res.refused, KX_REASON_NONE);
    assert_int_equal(chat.answer.refused, KX_REASON_NONE);
    assert_true(is(&chat.answer.response_id, "msg_1"));
}


static void
test_blocks_are_joined_as_in_the_history(void **state)
{
    chat_result_t  res;

    (void) state;

    /* text, thinking, text */

    feed_text(&res,
              BLOCK("0", "thinking")
              EVENT("content_block_delta", ",\"index\":0,\"delta\":"
                    "{\"type\":\"thinking_delta\",\"thinking\":\"no\"}")
              STOP("0")
              BLOCK("1", "text") SAID("1", "one") SAID("1", " and") STOP("1")
              BLOCK("2", "redacted_thinking") STOP("2")
              BLOCK("3", "text") SAID("3", "two") STOP("3") DONE);

    assert_comes_back("[{\"type\":\"thinking\",\"thinking\":\"no\"},"
                      "{\"type\":\"text\",\"text\":\"one and\"},"
                      "{\"type\":\"redacted_thinking\",\"data\":\"x\"},"
                      "{\"type\":\"text\",\"text\":\"two\"}]");

    /* one block is one word, and has it in its start, too */

    feed_text(&res,
              EVENT("content_block_start", ",\"index\":0,\"content_block\":"
                    "{\"type\":\"text\",\"text\":\"fo\"}")
              SAID("0", "ur") STOP("0") DONE);

    assert_comes_back("\"four\"");

    /* half a character in each block is none */

    feed_text(&res,
              BLOCK("0", "text") SAID("0", "a\\ud83d") STOP("0")
              BLOCK("1", "text") SAID("1", "\\udeb2") STOP("1") DONE);

    assert_comes_back("[{\"type\":\"text\",\"text\":\"a\\ud83d\"},"
                      "{\"type\":\"text\",\"text\":\"\\udeb2\"}]");

    /* in one block it is */

    feed_text(&res,
              BLOCK("0", "text") SAID("0", "a\\ud83d") EVENT("ping", "")
              SAID("0", "\\udeb2") STOP("0") DONE);

    assert_comes_back("\"a\\ud83d\\udeb2\"");

    start(KX_FRAMING_WHOLE, KX_FORM_MEMBER);
    chat_feed_text(&chat, &res,
                   "{\"type\":\"message\",\"stop_reason\":\"end_turn\","
                   "\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
                   "{\"type\":\"thinking\",\"thinking\":\"x\"},"
                   "{\"type\":\"text\",\"text\":\"b\"}]}");
    chat_result_free(&res);

    assert_comes_back("[{\"type\":\"text\",\"text\":\"a\"},"
                      "{\"type\":\"text\",\"text\":\"b\"}]");
}


static void
test_no_text(void **state)
{
    size_t         i;
    chat_result_t  res;
    unsigned char  digest[KX_ID_LEN];

    static const char  *streams[] = {
        DONE,
        BLOCK("0", "text") STOP("0") DONE,
        SAID("0", "a") DONE,
        BLOCK("0", "tool_use") SAID("0", "a") STOP("0") DONE,
        BLOCK("0", "text")
        EVENT("content_block_delta", ",\"index\":0,\"delta\":"
              "{\"type\":\"citations_delta\",\"text\":\"a\"}")
        EVENT("content_block_delta", ",\"index\":0,\"delta\":"
              "{\"type\":\"text_delta\",\"text\":[\"a\"]}")
        EVENT("content_block_delta", ",\"index\":0,\"delta\":\"text_delta\"")
        EVENT("content_block_delta", ",\"index\":0")
        STOP("0") DONE,
        EVENT("content_block_start", ",\"index\":0,\"content_block\":\"text\"")
        SAID("0", "a") STOP("0") DONE,
        BLOCK("0", "text") STOP("0")
        EVENT("content_block_start", ",\"index\":1") SAID("1", "a") DONE
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        feed_text(&res, streams[i]);

        assert_true(res.finish > 0);

        if (kx_answer_digest(&chat.answer, &cid, digest) != KX_DECLINED) {
            fail_msg("%s", streams[i]);
        }
    }
}


static void
test_bytes_of_a_member(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
        const char   *out;
    } cases[] = {
        { KX_FRAMING_SSE,
          BEGIN "event: message_delta\r\ndata: {\"type\":\"message_delta\","
          "\"delta\":{\"stop_reason\":\"end_turn\" },\"usage\":{}} \r\n\r\n"
          END,
          BEGIN "event: message_delta\r\ndata: {\"type\":\"message_delta\","
          "\"delta\":{\"stop_reason\":\"end_turn\" ,\"kontext\":PAYLOAD},"
          "\"usage\":{},\"kontext\":PAYLOAD} \r\n\r\n" END },
        { KX_FRAMING_SSE,
          "data: {\"usage\":{},\"delta\":{\"stop_reason\":\"end_turn\"},"
          "\"type\":\"message_delta\"}\n\n",
          "data: {\"usage\":{},\"delta\":{\"stop_reason\":\"end_turn\","
          "\"kontext\":PAYLOAD},\"type\":\"message_delta\","
          "\"kontext\":PAYLOAD}\n\n" },

        /* a client has the last of two */

        { KX_FRAMING_SSE,
          "data: {\"type\":\"message_delta\",\"delta\":{},"
          "\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n",
          "data: {\"type\":\"message_delta\",\"delta\":{},"
          "\"delta\":{\"stop_reason\":\"end_turn\",\"kontext\":PAYLOAD},"
          "\"kontext\":PAYLOAD}\n\n" },

        /* of a joined event only the last line can be written to */

        { KX_FRAMING_SSE,
          "data: {\"type\":\"message_delta\",\n"
          "data: \"delta\":{\"stop_reason\":\"end_turn\"}}\n\n",
          "data: {\"type\":\"message_delta\",\n"
          "data: \"delta\":{\"stop_reason\":\"end_turn\","
          "\"kontext\":PAYLOAD},\"kontext\":PAYLOAD}\n\n" },
        { KX_FRAMING_SSE,
          "data: {\"delta\":{\"stop_reason\":\"end_turn\"},\n"
          "data: \"type\":\"message_delta\"}\n\n",
          "data: {\"delta\":{\"stop_reason\":\"end_turn\"},\n"
          "data: \"type\":\"message_delta\",\"kontext\":PAYLOAD}\n\n" },

        { KX_FRAMING_WHOLE,
          "{\"type\":\"message\",\"content\":[{\"type\":\"text\","
          "\"text\":\"a\"}],\"stop_reason\":\"end_turn\"}\n",
          "{\"type\":\"message\",\"content\":[{\"type\":\"text\","
          "\"text\":\"a\"}],\"stop_reason\":\"end_turn\","
          "\"kontext\":PAYLOAD}\n" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, KX_FORM_MEMBER);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.places, KX_OK);
        assert_string_equal((char *) res.out, cases[i].out);
        chat_result_free(&res);
    }
}


static void
test_bytes_of_a_text(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
        const char   *out;
    } cases[] = {
        { KX_FRAMING_SSE,
          BEGIN BLOCK("0", "text") SAID("0", "a") STOP("0") DONE END,
          BEGIN BLOCK("0", "text") SAID("0", "a") STOP("0")
          TEXT("\n", "1") DONE END },
        { KX_FRAMING_SSE,
          BLOCK("0", "thinking") STOP("0") BLOCK("1", "text") STOP("1")
          "event: message_delta\r\ndata: {\"type\":\"message_delta\","
          "\"delta\":{\"stop_reason\":\"end_turn\"}}\r\n\r\n",
          BLOCK("0", "thinking") STOP("0") BLOCK("1", "text") STOP("1")
          TEXT("\r\n", "2")
          "event: message_delta\r\ndata: {\"type\":\"message_delta\","
          "\"delta\":{\"stop_reason\":\"end_turn\"}}\r\n\r\n" },

        /* the start of a block was too large to be read */

        { KX_FRAMING_SSE,
          BLOCK("0", "text") STOP("0") STOP("18") DONE,
          BLOCK("0", "text") STOP("0") STOP("18") TEXT("\n", "19") DONE },
        { KX_FRAMING_SSE, BLOCK("5", "text") STOP("5") BLOCK("3", "text")
          STOP("3") DONE,
          BLOCK("5", "text") STOP("5") BLOCK("3", "text")
          STOP("3") TEXT("\n", "6") DONE },

        { KX_FRAMING_WHOLE,
          "{\"type\":\"message\",\"content\":[{\"type\":\"text\","
          "\"text\":\"a\"} ],\"stop_reason\":\"end_turn\"}",
          "{\"type\":\"message\",\"content\":[{\"type\":\"text\","
          "\"text\":\"a\"} ,{\"type\":\"text\",\"text\":\"PAYLOAD\"}],"
          "\"stop_reason\":\"end_turn\"}" },
        { KX_FRAMING_WHOLE,
          "{\"type\":\"message\",\"stop_reason\":\"end_turn\","
          "\"content\":[ ]}",
          "{\"type\":\"message\",\"stop_reason\":\"end_turn\","
          "\"content\":[ {\"type\":\"text\",\"text\":\"PAYLOAD\"}]}" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, KX_FORM_TEXT);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.places, KX_OK);
        assert_string_equal((char *) res.out, cases[i].out);
        chat_result_free(&res);
    }
}


static void
test_no_place_for_a_text(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
    } cases[] = {

        /* the last block is still open */

        { KX_FRAMING_SSE, BLOCK("0", "text") SAID("0", "a") DONE },

        /* what number has a new one? */

        { KX_FRAMING_SSE, BLOCK("-1", "text") STOP("-1") DONE },
        { KX_FRAMING_SSE, BLOCK("\"0\"", "text") STOP("0") DONE },
        { KX_FRAMING_SSE, BLOCK("1.5", "text") STOP("0") DONE },
        { KX_FRAMING_SSE, BLOCK("1000000", "text") STOP("0") DONE },
        { KX_FRAMING_SSE, BLOCK("99999999999999999999", "text") STOP("0")
          DONE },
        { KX_FRAMING_SSE,
          EVENT("content_block_start", ",\"content_block\":{\"type\":"
                "\"text\"}") STOP("0") DONE },

        { KX_FRAMING_WHOLE,
          "{\"type\":\"message\",\"stop_reason\":\"max_tokens\","
          "\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
          "{\"type\":\"tool_use\"}]}" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, KX_FORM_TEXT);
        chat_feed_text(&chat, &res, cases[i].in);

        if (!res.finish || res.places != KX_DECLINED) {
            fail_msg("%s", cases[i].in);
        }

        assert_string_equal((char *) res.out, cases[i].in);
        chat_result_free(&res);
    }
}


static void
test_every_prefix_of_a_stream(void **state)
{
    size_t          i, len, at;
    unsigned        form;
    chat_result_t   res;
    unsigned char  *copy;

    static const char  stream[] =
        BEGIN BLOCK("0", "text") SAID("0", "a\\ud83d") SAID("0", "\\udeb2")
        STOP("0") EVENT("ping", "") DONE END;

    (void) state;

    len = sizeof(stream) - 1;
    at = len - (sizeof(END) - 1);

    for (i = 0; i <= len; i++) {
        copy = malloc(i ? i : 1);
        assert_non_null(copy);
        memcpy(copy, stream, i);

        for (form = 0; form < 2; form++) {
            start(KX_FRAMING_SSE, form ? KX_FORM_TEXT : KX_FORM_MEMBER);
            chat_feed(&chat, &res, copy, i);

            assert_int_equal(res.refused, KX_REASON_NONE);
            assert_int_equal(res.finishes, i >= at);

            assert_only(&res, form ? TEXT("\n", "1") : MEMBER,
                        i < at ? 0 : form ? 1 : 2, copy, i);
            chat_result_free(&res);
        }

        free(copy);
    }
}


static void
test_every_prefix_of_a_whole_answer(void **state)
{
    size_t          i, len;
    chat_result_t   res;
    unsigned char  *p, *copy;

    (void) state;

    p = chat_sample("anthropic.response.json", &len);

    while (p[len - 1] != '}') {
        len--;
    }

    for (i = 0; i < len; i++) {
        copy = malloc(i ? i : 1);
        assert_non_null(copy);
        memcpy(copy, p, i);

        start(KX_FRAMING_WHOLE, KX_FORM_TEXT);
        chat_feed(&chat, &res, copy, i);

        assert_int_equal(res.finish, 0);
        assert_only(&res, "", 0, copy, i);

        chat_result_free(&res);
        free(copy);
    }

    free(p);
}


static void
test_deep_and_odd_frames_pass(void **state)
{
    char           *stream, *p;
    unsigned        i;
    chat_result_t   res;

    (void) state;

    stream = malloc(1 << 20);
    assert_non_null(stream);

    /* deeper than is read */

    p = stream + sprintf(stream, "data: {\"type\":\"message_delta\","
                         "\"delta\":{\"stop_reason\":\"refusal\",\"a\":");

    memset(p, '[', 100000);
    memset(p + 100000, ']', 100000);
    strcpy(p + 200000, "}}\n\n" DONE);

    feed_text(&res, stream);
    assert_int_equal(res.finish, 2);
    assert_int_equal(res.refused, KX_REASON_NONE);

    /* a reason behind more members than are looked at */

    p = stream + sprintf(stream, "data: {\"type\":\"message_delta\","
                         "\"delta\":{");

    for (i = 0; i < 10000; i++) {
        p += sprintf(p, "\"m%u\":[],", i);
    }

    sprintf(p, "\"stop_reason\":\"end_turn\"}}\n\n");

    feed_text(&res, stream);
    assert_int_equal(res.finish, 0);

    free(stream);
}


static void
test_ids_are_taken_once(void **state)
{
    unsigned       before;
    chat_result_t  res;

    (void) state;

    feed_text(&res, BEGIN);
    before = chat.memory.n;

    chat_feed_text(&chat, &res,
                   EVENT("message_start", ",\"message\":{\"id\":\"msg_2\"}")
                   EVENT("message_start", ",\"message\":{\"id\":\"msg_3\"}"));
    chat_result_free(&res);

    assert_int_equal(chat.memory.n, before);
    assert_true(is(&chat.answer.response_id, "msg_1"));

    feed_text(&res, EVENT("message_start", "")
              EVENT("message_start", ",\"message\":{\"id\":7}")
              EVENT("message_start", ",\"message\":\"id\"") DONE);
    assert_int_equal(res.finish, 4);
    assert_int_equal(chat.answer.response_id.len, 0);
}


static void
test_no_memory(void **state)
{
    unsigned       i, failed;
    chat_result_t  res;

    (void) state;

    for (failed = 0, i = 1; i < 8; i++) {
        chat_free(&memory);
        memory.fail_at = i;

        switch (scan("{\"metadata\":{\"user_id\":\"user_a_account__session_"
                     SES "\"},\"messages\":[{\"role\":\"user\","
                     "\"content\":\"hi\"}]}"))
        {

        case KX_REASON_NO_MEMORY:
            failed++;
            break;

        case KX_REASON_NONE:
            break;

        default:
            fail();
        }
    }

    /* the identity, the user made of it, the messages, the hashes */

    assert_int_equal(failed, 4);

    for (failed = 0, i = 1; i < 8; i++) {
        start(KX_FRAMING_SSE, KX_FORM_TEXT);

        chat.memory.fail_at = chat.memory.n + i;
        chat_feed_text(&chat, &res, BLOCK("0", "text") STOP("0") DONE);
        chat_result_free(&res);
        chat.memory.fail_at = 0;

        assert_int_equal(res.finish, 3);

        if (res.places != KX_OK) {
            assert_int_equal(res.places, KX_ERROR);
            failed++;
        }
    }

    assert_int_equal(failed, 3);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_teardown(test_sample_streams, teardown),
        cmocka_unit_test_teardown(test_sample_whole, teardown),
        cmocka_unit_test_teardown(test_sample_request, teardown),
        cmocka_unit_test_teardown(test_turns, teardown),
        cmocka_unit_test_teardown(test_last_duplicate_wins, teardown),
        cmocka_unit_test_teardown(test_modes, teardown),
        cmocka_unit_test_teardown(test_identities, teardown),
        cmocka_unit_test_teardown(test_bad_bodies, teardown),
        cmocka_unit_test_teardown(test_every_prefix_of_a_request_is_bad,
                                  teardown),
        cmocka_unit_test_teardown(test_bodies, teardown),
        cmocka_unit_test_teardown(test_paths, teardown),
        cmocka_unit_test_teardown(test_stop_reasons, teardown),
        cmocka_unit_test_teardown(test_tool_blocks, teardown),
        cmocka_unit_test_teardown(test_error_frames, teardown),
        cmocka_unit_test_teardown(test_no_marker, teardown),
        cmocka_unit_test_teardown(test_the_first_stop_reason_is_the_marker,
                                  teardown),
        cmocka_unit_test_teardown(test_blocks_are_joined_as_in_the_history,
                                  teardown),
        cmocka_unit_test_teardown(test_no_text, teardown),
        cmocka_unit_test_teardown(test_bytes_of_a_member, teardown),
        cmocka_unit_test_teardown(test_bytes_of_a_text, teardown),
        cmocka_unit_test_teardown(test_no_place_for_a_text, teardown),
        cmocka_unit_test_teardown(test_every_prefix_of_a_stream, teardown),
        cmocka_unit_test_teardown(test_every_prefix_of_a_whole_answer,
                                  teardown),
        cmocka_unit_test_teardown(test_deep_and_odd_frames_pass, teardown),
        cmocka_unit_test_teardown(test_ids_are_taken_once, teardown),
        cmocka_unit_test_teardown(test_no_memory, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
