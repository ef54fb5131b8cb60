/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is understood of an OpenAI chat request: turns, texts, identities and
 * message ids (chat-apis.md 4.1, 12, 13).
 */


#include "chat.h"


static const unsigned char  key[] = "0123456789abcdef";

static chat_memory_t      memory;
static kx_pool_t          pool = { chat_alloc, &memory };
static kx_conversation_t  cv;
static kx_message_t       messages[KX_MAX_MESSAGES];
static unsigned           n;
static kx_str_t           cid = kx_string("c-1");
static kx_str_t           path = kx_string("/v1/chat/completions");


static kx_reason_e
scan_len(const unsigned char *p, size_t len)
{
    kx_conversation_init(&cv, &kx_openai_chat, &path, key, &pool);

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

    assert_int_equal(scan(body), KX_REASON_NONE);
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


static int
teardown(void **state)
{
    (void) state;

    memory.fail_at = 0;
    chat_free(&memory);

    return 0;
}


static void
test_sample_request(void **state)
{
    size_t          len;
    unsigned char  *p, digest[KX_ID_LEN];

    (void) state;

    p = chat_sample("openai-chat.request.json", &len);

    assert_int_equal(scan_len(p, len), KX_REASON_NONE);
    n = chat_messages(&cv, &cid, messages, digest);

    assert_int_equal(n, 3);
    assert_text(0, KX_ROLE_USER,
                "Here is a photo of my bike. We ride from \xc4\x8c"
                "esk\xc3\xbd Krumlov to Lisbon in May \xe2\x80\x94 is it up "
                "to it?");
    assert_text(1, KX_ROLE_ASSISTANT,
                "Nice steel tourer! The frame and the 36-spoke rear wheel are "
                "fine for ~2 900 km. Check the chain (\xe2\x89\xa5 0.75 % "
                "wear \xe2\x86\x92 replace) and fit 35 mm tyres.");

    assert_true(cv.stream);
    assert_true(cv.user_turn);
    assert_false(cv.json_mode);
    assert_false(cv.forced_tools);
    assert_int_equal(cv.choices, 1);

    /* safety_identifier goes before user, metadata.chat_id is there */

    assert_int_equal(cv.user.value.len, 32);
    assert_memory_equal(cv.user.value.data, "5f2c6f0e", 8);
    assert_int_equal(cv.conversation.value.len, 6);
    assert_memory_equal(cv.conversation.value.data, "c-7b1e", 6);

    free(p);
}


static void
test_sample_tools_request(void **state)
{
    size_t          len;
    unsigned char  *p, digest[KX_ID_LEN];

    (void) state;

    p = chat_sample("openai-chat-tools.request.json", &len);

    assert_int_equal(scan_len(p, len), KX_REASON_NONE);
    n = chat_messages(&cv, &cid, messages, digest);

    assert_int_equal(n, 3);
    assert_text(1, KX_ROLE_ASSISTANT,
                "It is 14.5 \xc2\xb0""C. \nTry the Vltava "
                "\xe2\x80\x9cloop\xe2\x80\x9d (18.4 km).");
    assert_text(2, KX_ROLE_USER, "And tomorrow?");

    free(p);
}


static void
test_turns(void **state)
{
    size_t  i;

    static const struct {
        const char  *messages;
        unsigned     turn;
        unsigned     kept;
    } cases[] = {
        { "[]", 0, 0 },
        { "null", 0, 0 },
        { "\"hi\"", 0, 0 },
        { "[{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 },
        { "[{\"content\":\"hi\",\"role\":\"user\"}]", 1, 1 },
        { "[{\"content\":\"hi\",\"r\\u006fle\":\"us\\u0065r\"}]", 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"\"}]", 0, 0 },
        { "[{\"role\":\"user\",\"content\":\" \\n\\t \"}]", 0, 0 },
        { "[{\"role\":\"user\",\"content\":null}]", 0, 0 },
        { "[{\"role\":\"user\"}]", 0, 0 },
        { "[{\"content\":\"hi\"}]", 0, 0 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]",
          0, 0 },
        { "[{\"role\":\"user\",\"content\":[{\"text\":\"a\",\"type\":\"text\""
          "},{\"type\":\"text\",\"text\":\"b\"}]}]", 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"assistant\",\"content\":\"ho\"}]", 0, 2 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"tool\",\"content\":\"14 C\"}]", 0, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"function\",\"content\":\"14 C\"}]", 0, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"system\",\"content\":\"be brief\"}]", 0, 1 },
        { "[{\"role\":\"developer\",\"content\":\"x\"},"
          "{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 },
        { "[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]},"
          "{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 }
    };

    char  body[1024];

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
test_parts_are_joined(void **state)
{
    (void) state;

    understand("{\"messages\":[{\"role\":\"user\",\"content\":["
               "{\"type\":\"text\",\"text\":\"one\"},"
               "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"AA\"}},"
               "{\"type\":\"refusal\",\"refusal\":\"no\"},"
               "{\"type\":\"text\",\"text\":\"t\\u0077o\"}]}]}");

    assert_int_equal(n, 1);
    assert_text(0, KX_ROLE_USER, "one\ntwo");
}


static void
test_last_duplicate_wins(void **state)
{
    (void) state;

    understand("{\"messages\":[{\"role\":\"user\",\"content\":\"old\"}],"
               "\"user\":\"u1\",\"user\":\"u2\","
               "\"messages\":[{\"role\":\"system\",\"role\":\"user\","
               "\"content\":\"a\",\"content\":\"b\"}]}");

    assert_int_equal(n, 1);
    assert_text(0, KX_ROLE_USER, "b");
    assert_int_equal(cv.user.value.len, 2);
    assert_memory_equal(cv.user.value.data, "u2", 2);
}


static void
test_escapes_and_lone_surrogates(void **state)
{
    (void) state;

    understand("{\"messages\":[{\"role\":\"user\",\"content\":"
               "\"a\\\"\\\\\\/\\u00e9\\ud83d\\udeb2\\ud83d!\"}]}");

    assert_text(0, KX_ROLE_USER,
                "a\"\\/\xc3\xa9\xf0\x9f\x9a\xb2\xef\xbf\xbd!");
}


static void
test_reasoning_is_not_text(void **state)
{
    (void) state;

    understand("{\"messages\":["
               "{\"role\":\"assistant\",\"content\":\"<think>a b</think>\\n"
               "\\nHello\"},"
               "{\"role\":\"assistant\",\"content\":\"<think>only\"},"
               "{\"role\":\"user\",\"content\":\"hi\"}]}");

    assert_int_equal(n, 2);
    assert_text(0, KX_ROLE_ASSISTANT, "Hello");
    assert_text(1, KX_ROLE_USER, "hi");
}


static void
test_modes(void **state)
{
    size_t  i;

    static const struct {
        const char  *member;
        unsigned     json;
        unsigned     tools;
    } cases[] = {
        { "\"response_format\":{\"type\":\"text\"}", 0, 0 },
        { "\"response_format\":{\"type\":\"json_object\"}", 1, 0 },
        { "\"response_format\":{\"x\":[{}],\"type\":\"json_schema\"}", 1, 0 },
        { "\"response_format\":null", 0, 0 },
        { "\"grammar\":\"root ::= x\"", 1, 0 },
        { "\"guided_json\":{}", 1, 0 },
        { "\"guided_json\":null", 0, 0 },
        { "\"tool_choice\":\"auto\"", 0, 0 },
        { "\"tool_choice\":\"none\"", 0, 0 },
        { "\"tool_choice\":\"required\"", 0, 1 },
        { "\"tool_choice\":{\"type\":\"function\"}", 0, 1 },
        { "\"tool_choice\":null", 0, 0 },
        { "\"function_call\":{\"name\":\"f\"}", 0, 1 },
        { "\"tools\":[{\"type\":\"function\"}]", 0, 0 }
    };

    char  body[1024];

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{%s,\"stream\":true}",
                 cases[i].member);

        assert_int_equal(scan(body), KX_REASON_NONE);

        if (cv.json_mode != cases[i].json
            || cv.forced_tools != cases[i].tools)
        {
            fail_msg("%s", cases[i].member);
        }
    }

    assert_int_equal(scan("{\"n\":3}"), KX_REASON_NONE);
    assert_int_equal(cv.choices, 3);
    assert_int_equal(scan("{\"n\":1e3}"), KX_REASON_NONE);
    assert_int_equal(cv.choices, 1);
    assert_int_equal(scan("{\"n\":99999999999999999999}"), KX_REASON_NONE);
    assert_int_equal(cv.choices, 1);
}


static void
test_identities(void **state)
{
    char    body[1024], id[400];
    size_t  i;

    static const struct {
        const char  *body;
        const char  *user;
        const char  *conversation;
    } cases[] = {
        { "{}", "", "" },
        { "{\"user\":\"u\",\"safety_identifier\":\"s\"}", "s", "" },
        { "{\"safety_identifier\":\"s\",\"user\":\"u\"}", "s", "" },
        { "{\"metadata\":{\"user_id\":\"m\"},\"user\":\"u\"}", "u", "" },
        { "{\"metadata\":{\"user_id\":\"m\"}}", "m", "" },
        { "{\"user\":7,\"metadata\":{\"user_id\":null}}", "", "" },
        { "{\"user\":\"\"}", "", "" },
        { "{\"user\":\"\\u0075\\u0031\"}", "u1", "" },
        { "{\"metadata\":{\"session_id\":\"d\",\"thread_id\":\"c\","
          "\"conversation_id\":\"b\",\"chat_id\":\"a\"}}", "", "a" },
        { "{\"metadata\":{\"session_id\":\"d\",\"thread_id\":\"c\"}}",
          "", "c" },
        { "{\"metadata\":{\"chat_id\":\"a\"},\"session_id\":\"s\"}",
          "", "s" },
        { "{\"metadata\":\"x\"}", "", "" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(scan(cases[i].body), KX_REASON_NONE);

        if (cv.user.value.len != strlen(cases[i].user)
            || (cv.user.value.len
                && memcmp(cv.user.value.data, cases[i].user,
                          cv.user.value.len) != 0)
            || cv.conversation.value.len != strlen(cases[i].conversation)
            || (cv.conversation.value.len
                && memcmp(cv.conversation.value.data, cases[i].conversation,
                          cv.conversation.value.len) != 0))
        {
            fail_msg("%s", cases[i].body);
        }
    }

    /* one that is too long counts as absent */

    memset(id, 'x', sizeof(id));
    snprintf(body, sizeof(body), "{\"user\":\"%.*s\"}", KX_MAX_IDENTITY, id);
    assert_int_equal(scan(body), KX_REASON_NONE);
    assert_int_equal(cv.user.value.len, KX_MAX_IDENTITY);

    snprintf(body, sizeof(body), "{\"user\":\"%.*s\"}", KX_MAX_IDENTITY + 1,
             id);
    assert_int_equal(scan(body), KX_REASON_NONE);
    assert_int_equal(cv.user.value.len, 0);
}


static void
test_bad_bodies(void **state)
{
    char    *bomb;
    size_t   i;

    static const char  *bodies[] = {
        "", " ", "[]", "7", "\"x\"", "null", "{", "{]", "{\"a\"}", "{\"a\":}",
        "{\"a\":1,}", "{\"a\":1}x", "{\"messages\":[}", "{\"messages\":[{}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi}]}",
        "{\"messages\":[\"hi\"]}", "{\"messages\":[{},7]}",
        "{'a':1}", "{\"a\":tru}", "{\"a\":01}", "{} {}"
    };

    (void) state;

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        if (scan(bodies[i]) != KX_REASON_BAD_BODY) {
            fail_msg("%s", bodies[i]);
        }
    }

    /* nesting bombs: an error, and no deep stack */

    bomb = malloc(1000000);
    assert_non_null(bomb);
    memset(bomb, '[', 1000000);
    memcpy(bomb, "{\"messages\":", 12);
    assert_int_equal(scan_len((unsigned char *) bomb, 1000000),
                     KX_REASON_BAD_BODY);
    free(bomb);
}


static void
test_every_prefix_is_safe(void **state)
{
    size_t          i, len;
    unsigned char  *p, *copy;

    (void) state;

    p = chat_sample("openai-chat-tools.request.json", &len);

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
test_ids_are_stable(void **state)
{
    unsigned       i;
    unsigned char  first[4][KX_MESSAGE_ID_LEN];

    (void) state;

    understand("{\"messages\":[{\"role\":\"user\",\"content\":\"ok\"},"
               "{\"role\":\"assistant\",\"content\":\"sure\"},"
               "{\"role\":\"user\",\"content\":\"ok\"}]}");

    assert_int_equal(n, 3);

    for (i = 0; i < 3; i++) {
        assert_int_equal(messages[i].id.len, KX_MESSAGE_ID_LEN);
        assert_memory_equal(messages[i].id.data, "kx1_", 4);
        memcpy(first[i], messages[i].id.data, KX_MESSAGE_ID_LEN);
    }

    /* the same words again are another message */

    assert_memory_not_equal(first[0], first[2], KX_MESSAGE_ID_LEN);

    /* sent again, with another white space and one more turn */

    understand("{\"messages\":[{\"role\":\"system\",\"content\":\"x\"},"
               "{\"role\":\"user\",\"content\":[{\"type\":\"text\","
               "\"text\":\" ok\\n\"}]},"
               "{\"role\":\"assistant\",\"content\":\"sure\"},"
               "{\"role\":\"user\",\"content\":\"\\u006fk\"},"
               "{\"role\":\"assistant\",\"content\":\"ok\"},"
               "{\"role\":\"user\",\"content\":\"bye\"}]}");

    assert_int_equal(n, 5);

    for (i = 0; i < 3; i++) {
        assert_memory_equal(messages[i].id.data, first[i],
                            KX_MESSAGE_ID_LEN);
    }

    /* role and conversation are part of it */

    assert_memory_not_equal(messages[3].id.data, first[0],
                            KX_MESSAGE_ID_LEN);

    cid.data = (unsigned char *) "c-2";

    understand("{\"messages\":[{\"role\":\"user\",\"content\":\"ok\"}]}");
    assert_memory_not_equal(messages[0].id.data, first[0],
                            KX_MESSAGE_ID_LEN);

    cid.data = (unsigned char *) "c-1";
}


static void
test_last_thirty(void **state)
{
    char           *p, *body;
    unsigned        i;
    unsigned char   digest[KX_ID_LEN];

    (void) state;

    body = malloc(1 << 20);
    assert_non_null(body);

    p = body + sprintf(body, "{\"messages\":[");

    for (i = 0; i < 2000; i++) {
        p += sprintf(p, "{\"role\":\"%s\",\"content\":\"m%u\"},",
                     i % 2 ? "assistant" : "user", i);
    }

    p += sprintf(p, "{\"role\":\"user\",\"content\":\"last\"}]}");

    assert_int_equal(scan(body), KX_REASON_NONE);
    assert_int_equal(cv.nhashes, 2001);

    n = chat_messages(&cv, &cid, messages, digest);

    assert_int_equal(n, KX_MAX_MESSAGES);
    assert_text(0, KX_ROLE_ASSISTANT, "m1971");
    assert_text(29, KX_ROLE_USER, "last");

    free(body);
}


static void
test_text_is_capped(void **state)
{
    char     *body, *p;
    size_t    total;
    unsigned  i;

    (void) state;

    body = malloc(1 << 20);
    assert_non_null(body);

    /* older messages that do not fit are left out */

    p = body + sprintf(body, "{\"messages\":[");

    for (i = 0; i < 10; i++) {
        p += sprintf(p, "{\"role\":\"user\",\"content\":\"");
        memset(p, 'a' + (int) i, 20000);
        p += 20000;
        p += sprintf(p, "\"}%s", i < 9 ? "," : "]}");
    }

    understand(body);

    assert_int_equal(n, 3);
    assert_int_equal(messages[2].content.data[0], 'j');

    for (total = 0, i = 0; i < n; i++) {
        total += messages[i].content.len;
    }

    assert_true(total <= KX_MAX_CONTENT);

    /* one that does not fit itself is cut, and not within a character */

    p = body + sprintf(body, "{\"messages\":[{\"role\":\"user\","
                             "\"content\":\"x");

    for (i = 0; i < 40000; i++) {
        p += sprintf(p, "\xc3\xa9");
    }

    sprintf(p, "\"}]}");

    understand(body);

    assert_int_equal(n, 1);
    assert_true(messages[0].content.len <= KX_MAX_CONTENT);
    assert_true(messages[0].content.len > KX_MAX_CONTENT - 4);
    assert_int_equal(messages[0].content.len % 2, 1);

    free(body);
}


static void
test_derived_conversation(void **state)
{
    kx_str_t       u1 = kx_string("u1"), u2 = kx_string("u2");
    unsigned char  a[KX_ID_LEN], b[KX_ID_LEN], id[KX_MESSAGE_ID_LEN];

    (void) state;

    assert_int_equal(scan("{\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"first\"}]}"), KX_REASON_NONE);
    kx_conversation_derive(&cv, &u1, a);
    kx_conversation_id_write(id, a);
    assert_memory_equal(id, "kxc_", 4);

    kx_conversation_derive(&cv, &u2, b);
    assert_memory_not_equal(a, b, KX_ID_LEN);

    assert_int_equal(scan("{\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"first\"},{\"role\":\"assistant\",\"content\":"
                          "\"answer\"},{\"role\":\"user\",\"content\":"
                          "\"second\"}]}"), KX_REASON_NONE);
    kx_conversation_derive(&cv, &u1, b);
    assert_memory_equal(a, b, KX_ID_LEN);

    assert_int_equal(scan("{\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"first!\"}]}"), KX_REASON_NONE);
    kx_conversation_derive(&cv, &u1, b);
    assert_memory_not_equal(a, b, KX_ID_LEN);
}


static void
test_no_memory(void **state)
{
    unsigned       i, failed;
    unsigned char  digest[KX_ID_LEN];

    (void) state;

    failed = 0;

    for (i = 1; i < 16; i++) {
        chat_free(&memory);
        memory.fail_at = i;

        switch (scan("{\"user\":\"u\",\"messages\":[{\"role\":\"user\","
                     "\"content\":\"h\\ri\"},{\"role\":\"user\",\"content\":"
                     "\"ho\"}]}"))
        {

        case KX_REASON_NO_MEMORY:
            failed++;
            break;

        case KX_REASON_NONE:
            n = kx_conversation_messages(&cv, &cid, messages, digest);

            if (n == 0) {
                failed++;
                break;
            }

            assert_int_equal(n, 2);
            break;

        default:
            fail();
        }
    }

    assert_int_equal(failed, 6);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_teardown(test_sample_request, teardown),
        cmocka_unit_test_teardown(test_sample_tools_request, teardown),
        cmocka_unit_test_teardown(test_turns, teardown),
        cmocka_unit_test_teardown(test_parts_are_joined, teardown),
        cmocka_unit_test_teardown(test_last_duplicate_wins, teardown),
        cmocka_unit_test_teardown(test_escapes_and_lone_surrogates, teardown),
        cmocka_unit_test_teardown(test_reasoning_is_not_text, teardown),
        cmocka_unit_test_teardown(test_modes, teardown),
        cmocka_unit_test_teardown(test_identities, teardown),
        cmocka_unit_test_teardown(test_bad_bodies, teardown),
        cmocka_unit_test_teardown(test_every_prefix_is_safe, teardown),
        cmocka_unit_test_teardown(test_ids_are_stable, teardown),
        cmocka_unit_test_teardown(test_last_thirty, teardown),
        cmocka_unit_test_teardown(test_text_is_capped, teardown),
        cmocka_unit_test_teardown(test_derived_conversation, teardown),
        cmocka_unit_test_teardown(test_no_memory, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
