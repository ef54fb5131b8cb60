/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Ollama's own API: what is understood of a request and of an answer in
 * lines, and where an ad goes (chat-apis.md 7 and 11).
 */


#include "chat.h"


#include <cjson/cJSON.h>


#define MEMBER  ",\"kontext\":" CHAT_PAYLOAD

/* of the samples */

#define NAMES(time)                                                           \
    "{\"model\":\"qwen3:8b\",\"created_at\":\"2026-11-22T07:40:0" time "Z\","

#define CHAT_TEXT                                                             \
    "\"message\":{\"role\":\"assistant\",\"content\":\"" CHAT_PAYLOAD         \
    "\"},\"done\":false}"

#define GENERATE_TEXT  "\"response\":\"" CHAT_PAYLOAD "\",\"done\":false}"

#define SAID(text)                                                            \
    "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\""     \
    text "\"},\"done\":false}\n"

#define DONE                                                                  \
    "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":"       \
    "\"\"},\"done\":true,\"done_reason\":\"stop\"}\n"


static const unsigned char  key[] = "0123456789abcdef";

static chat_t             chat;
static chat_memory_t      memory;
static kx_pool_t          pool = { chat_alloc, &memory };
static kx_conversation_t  cv;
static kx_message_t       messages[KX_MAX_MESSAGES];
static unsigned           n;
static kx_str_t           cid = kx_string("c-1");


static kx_reason_e
scan_len(const char *path, const unsigned char *p, size_t len)
{
    kx_str_t  uri;

    uri.data = (unsigned char *) path;
    uri.len = strlen(path);

    kx_conversation_init(&cv, &kx_ollama, &uri, key, &pool);

    return kx_conversation_scan(&cv, p, len);
}


static kx_reason_e
scan(const char *body)
{
    return scan_len("/api/chat", (const unsigned char *) body, strlen(body));
}


static kx_reason_e
scan_generate(const char *body)
{
    return scan_len("/api/generate", (const unsigned char *) body,
                    strlen(body));
}


static void
assert_text(unsigned i, kx_role_e role, const char *text)
{
    assert_true(i < n);
    assert_int_equal(messages[i].role, role);
    assert_int_equal(messages[i].content.len, strlen(text));
    assert_memory_equal(messages[i].content.data, text, strlen(text));
}


static void
start(kx_framing_e framing, kx_form_e form)
{
    chat_start(&chat, &kx_ollama, "/api/chat",
               "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
               framing, form);
}


static void
feed_text(chat_result_t *res, kx_framing_e framing, const char *stream)
{
    start(framing, KX_FORM_MEMBER);
    chat_feed_text(&chat, res, stream);
    chat_result_free(res);
}


/* what was put in is these bytes, once, and all else is as it was */

static void
assert_only(chat_result_t *res, const char *ad, const unsigned char *p,
    size_t len)
{
    size_t          size;
    unsigned char  *at;

    size = strlen(ad);

    assert_int_equal(res->len, len + size);

    if (size) {
        at = (unsigned char *) strstr((char *) res->out, ad);
        assert_non_null(at);

        memmove(at, at + size, (size_t) (res->out + res->len - at) - size);
    }

    assert_memory_equal(res->out, p, len);
}


static unsigned char *
with_crlf(const unsigned char *p, size_t len, size_t *size)
{
    size_t          i;
    unsigned char  *copy;

    copy = malloc(len * 2);
    assert_non_null(copy);

    *size = 0;

    for (i = 0; i < len; i++) {
        if (p[i] == '\n') {
            copy[(*size)++] = '\r';
        }

        copy[(*size)++] = p[i];
    }

    return copy;
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
    char            ad[512];
    size_t          i, len, size;
    cJSON          *root;
    unsigned        crlf;
    const cJSON    *record;
    chat_result_t   res;
    unsigned char  *p, *copy;

    static const struct {
        const char   *name;
        const char   *text;
        unsigned      frames;
        unsigned      finish;
        kx_reason_e   refused;
    } cases[] = {
        { "ollama.ndjson", NAMES("4.063308661") CHAT_TEXT, 141, 141,
          KX_REASON_NONE },
        { "ollama-generate.ndjson", NAMES("4.063308661") GENERATE_TEXT, 141,
          141, KX_REASON_NONE },
        { "ollama-tools.ndjson", NAMES("2.026440517") CHAT_TEXT, 44, 44,
          KX_REASON_TOOL_CALLS },
        { "ollama-error.ndjson", "", 13, 0, KX_REASON_ERROR_FRAME }
    };

    (void) state;

    for (i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        crlf = i % 2;

        p = chat_sample(cases[i / 2].name, &len);
        record = chat_expected(cases[i / 2].name, &root);

        if (crlf) {
            copy = with_crlf(p, len, &size);
            free(p);
            p = copy;
            len = size;
        }

        start(KX_FRAMING_LINES, KX_FORM_MEMBER);
        chat_feed(&chat, &res, p, len);

        if (res.frames != cases[i / 2].frames
            || res.finish != cases[i / 2].finish
            || res.finishes != (cases[i / 2].finish != 0)
            || res.refused != cases[i / 2].refused)
        {
            fail_msg("%s: frames %u, finish %u, refused %d",
                     cases[i / 2].name, res.frames, res.finish, res.refused);
        }

        assert_only(&res, res.finish ? MEMBER : "", p, len);
        chat_result_free(&res);

        if (res.refused != KX_REASON_TOOL_CALLS) {
            chat_assert_text(&chat, chat_string(record, "text"));
        }

        start(KX_FRAMING_LINES, KX_FORM_TEXT);
        chat_feed(&chat, &res, p, len);

        assert_int_equal(res.finish, cases[i / 2].finish);

        snprintf(ad, sizeof(ad), "%s%s%s", cases[i / 2].text,
                 (crlf && res.finish) ? "\r" : "", res.finish ? "\n" : "");

        assert_only(&res, ad, p, len);
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

    p = chat_sample("ollama.response.json", &len);
    record = chat_expected("ollama.ndjson", &root);

    start(KX_FRAMING_WHOLE, KX_FORM_MEMBER);
    chat_feed(&chat, &res, p, len);

    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_NONE);
    assert_int_equal(res.places, KX_OK);
    assert_only(&res, MEMBER, p, len);
    chat_result_free(&res);

    chat_assert_text(&chat, chat_string(record, "text"));

    start(KX_FRAMING_WHOLE, KX_FORM_TEXT);
    chat_feed(&chat, &res, p, len);

    assert_int_equal(res.places, KX_OK);
    assert_non_null(strstr((char *) res.out, "PAYLOAD\"},\"done\":true"));
    assert_only(&res, CHAT_PAYLOAD, p, len);

    chat_result_free(&res);
    cJSON_Delete(root);
    free(p);
}


static void
test_sample_requests(void **state)
{
    size_t          i, len;
    cJSON          *root;
    unsigned        k;
    const char     *role;
    const cJSON    *record, *m;
    unsigned char  *p, digest[KX_ID_LEN], id[KX_MESSAGE_ID_LEN];

    static const struct {
        const char  *name;
        const char  *path;
        unsigned     variant;
    } cases[] = {
        { "ollama.request.json", "/api/chat", 0 },
        { "ollama-generate.request.json", "/api/generate", 1 },
        { "ollama-generate.request.json", "/llm", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p = chat_sample(cases[i].name, &len);

        assert_int_equal(scan_len(cases[i].path, p, len), KX_REASON_NONE);
        n = chat_messages(&cv, &cid, messages, digest);

        record = chat_expected(cases[i].name, &root);
        record = cJSON_GetObjectItemCaseSensitive(record, "conversation");

        assert_int_equal(n, cJSON_GetArraySize(record));

        k = 0;

        cJSON_ArrayForEach(m, record) {
            role = chat_string(m, "role");

            assert_text(k++, strcmp(role, "user") ? KX_ROLE_ASSISTANT
                                                  : KX_ROLE_USER,
                        chat_string(m, "text"));
        }

        kx_message_id(id, digest);
        assert_memory_equal(messages[n - 1].id.data, id, KX_MESSAGE_ID_LEN);

        assert_int_equal(cv.variant, cases[i].variant);
        assert_true(cv.stream);
        assert_true(cv.user_turn);
        assert_true(cv.has_messages);
        assert_false(cv.json_mode);
        assert_false(cv.forced_tools);
        assert_int_equal(cv.user.rank, KX_IDENTITY_NONE);
        assert_int_equal(cv.conversation.rank, KX_IDENTITY_NONE);

        cJSON_Delete(root);
        free(p);
    }
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
        { "[{\"content\":\"hi\",\"role\":\"USER\"}]", 1, 1 },
        { "[{\"role\":\"us\\u0065r\",\"content\":\"hi\"}]", 1, 1 },
        { "[{\"role\":\"Assistant\",\"content\":\"hi\"}]", 0, 1 },
        { "[{\"role\":\"assistants\",\"content\":\"hi\"}]", 0, 0 },
        { "[{\"role\":\"use\",\"content\":\"hi\"}]", 0, 0 },
        { "[{\"role\":\"\",\"content\":\"hi\"}]", 0, 0 },
        { "[{\"role\":7,\"content\":\"hi\"}]", 0, 0 },
        { "[{\"content\":\"hi\"}]", 0, 0 },
        { "[{\"role\":\"user\",\"content\":\" \"}]", 0, 0 },
        { "[{\"role\":\"user\",\"content\":null}]", 0, 0 },

        /* there are no parts */

        { "[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
          "\"text\":\"hi\"}]}]", 0, 0 },

        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"tool\",\"content\":\"x\"}]", 0, 1 },
        { "[{\"role\":\"system\",\"content\":\"x\"},"
          "{\"role\":\"user\",\"content\":\"hi\",\"images\":[\"AA\"]}]",
          1, 1 },
        { "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]},"
          "{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"assistant\",\"content\":\"{\"}]", 0, 2 }
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
test_prompts(void **state)
{
    size_t  i;

    static const struct {
        const char  *body;
        unsigned     has;
        unsigned     turn;
        unsigned     kept;
    } cases[] = {
        { "{}", 0, 0, 0 },
        { "{\"prompt\":\"hi\"}", 1, 1, 1 },
        { "{\"prompt\":\"\"}", 1, 0, 0 },
        { "{\"prompt\":null}", 0, 0, 0 },
        { "{\"prompt\":[\"hi\"]}", 0, 0, 0 },
        { "{\"prompt\":\"hi\",\"prompt\":7}", 0, 0, 0 },
        { "{\"prompt\":7,\"prompt\":\"hi\"}", 1, 1, 1 },
        { "{\"prompt\":\"hi\",\"raw\":true}", 1, 0, 0 },
        { "{\"raw\":true,\"raw\":false,\"prompt\":\"hi\"}", 1, 1, 1 },
        { "{\"prompt\":\"hi\",\"suffix\":\"}\"}", 1, 0, 0 },
        { "{\"prompt\":\"hi\",\"suffix\":\"\"}", 1, 1, 1 },
        { "{\"prompt\":\"hi\",\"suffix\":null}", 1, 1, 1 },
        { "{\"prompt\":\"hi\",\"template\":\"{{ .Prompt }}\"}", 1, 1, 1 },

        /* these are none of this request */

        { "{\"prompt\":\"hi\",\"messages\":[{\"role\":\"user\","
          "\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}]}",
          1, 1, 1 },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", 0, 0, 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {

        if (scan_generate(cases[i].body) != KX_REASON_NONE
            || cv.has_messages != cases[i].has
            || cv.user_turn != cases[i].turn
            || cv.nhashes != cases[i].kept)
        {
            fail_msg("%s: has %u, turn %u, kept %u", cases[i].body,
                     cv.has_messages, cv.user_turn, cv.nhashes);
        }
    }

    /* and where there are messages, a prompt is none */

    assert_int_equal(scan("{\"prompt\":\"hi\",\"raw\":true,\"messages\":["
                          "{\"role\":\"user\",\"content\":\"a\"},"
                          "{\"role\":\"user\",\"content\":\"b\"}]}"),
                     KX_REASON_NONE);
    assert_int_equal(cv.nhashes, 2);
    assert_true(cv.user_turn);
}


static void
test_modes(void **state)
{
    char    body[1024];
    size_t  i;

    static const struct {
        const char  *member;
        unsigned     stream;
        unsigned     json;
    } cases[] = {
        { "\"x\":1", 1, 0 },
        { "\"stream\":true", 1, 0 },
        { "\"stream\":false", 0, 0 },
        { "\"stream\":null", 1, 0 },
        { "\"stream\":false,\"stream\":true", 1, 0 },
        { "\"format\":\"json\"", 1, 1 },
        { "\"format\":{\"type\":\"object\"}", 1, 1 },
        { "\"format\":\"\"", 1, 0 },
        { "\"format\":null", 1, 0 },
        { "\"options\":{\"format\":\"json\",\"stream\":false}", 1, 0 },
        { "\"user\":\"u\",\"metadata\":{\"user_id\":\"u\"}", 1, 0 }
    };

    (void) state;

    for (i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{%s}", cases[i / 2].member);

        assert_int_equal(i % 2 ? scan_generate(body) : scan(body),
                         KX_REASON_NONE);

        if (cv.stream != cases[i / 2].stream
            || cv.json_mode != cases[i / 2].json
            || cv.user.rank != KX_IDENTITY_NONE)
        {
            fail_msg("%s", cases[i / 2].member);
        }
    }
}


static void
test_last_duplicate_wins(void **state)
{
    unsigned char  digest[KX_ID_LEN];

    (void) state;

    assert_int_equal(scan("{\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"old\"}],\"messages\":[{\"role\":\"tool\","
                          "\"role\":\"user\",\"content\":\"a\","
                          "\"content\":\"b\"}]}"),
                     KX_REASON_NONE);
    n = chat_messages(&cv, &cid, messages, digest);

    assert_int_equal(n, 1);
    assert_text(0, KX_ROLE_USER, "b");

    assert_int_equal(scan("{\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"old\"}],\"messages\":{}}"),
                     KX_REASON_NONE);
    assert_false(cv.has_messages);
    assert_false(cv.user_turn);
    assert_int_equal(cv.nhashes, 0);
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
        "{\"prompt\":\"hi}", "{\"prompt\":}", "{\"format\":{]}", "{} {}"
    };

    (void) state;

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        if (scan(bodies[i]) != KX_REASON_BAD_BODY) {
            fail_msg("%s", bodies[i]);
        }
    }

    assert_int_equal(scan_generate("{\"messages\":[\"hi\"],\"prompt\":"
                                   "\"a\"}"),
                     KX_REASON_NONE);
    assert_int_equal(scan_generate("{\"prompt\":\"a\""), KX_REASON_BAD_BODY);

    /* a nesting bomb: an error, and no deep stack */

    bomb = malloc(1000000);
    assert_non_null(bomb);
    memset(bomb, '[', 1000000);
    memcpy(bomb, "{\"messages\":[{\"content\":", 24);
    assert_int_equal(scan_len("/api/chat", (unsigned char *) bomb, 1000000),
                     KX_REASON_BAD_BODY);
    free(bomb);
}


static void
test_every_prefix_of_a_request_is_bad(void **state)
{
    size_t          i, k, len;
    unsigned char  *p, *copy;

    static const char *const  names[][2] = {
        { "ollama.request.json", "/api/chat" },
        { "ollama-generate.request.json", "/api/generate" }
    };

    (void) state;

    for (k = 0; k < 2; k++) {
        p = chat_sample(names[k][0], &len);

        for (i = 0; i + 2 < len; i++) {

            /* of its own size, so that reading past the end is seen */

            copy = malloc(i ? i : 1);
            assert_non_null(copy);
            memcpy(copy, p, i);

            assert_int_equal(scan_len(names[k][1], copy, i),
                             KX_REASON_BAD_BODY);

            free(copy);
            chat_free(&memory);
        }

        free(p);
    }
}


static void
test_paths_and_bodies(void **state)
{
    size_t        i;
    kx_str_t      p;
    kx_members_t  members;

    static const struct {
        const char  *path;
        int          rc;
    } paths[] = {
        { "/api/chat", KX_AGAIN },
        { "/ollama/api/chat", KX_AGAIN },
        { "/api/generate", KX_OK },
        { "/ollama/api/generate", KX_OK },
        { "/api/chat/", KX_DECLINED },
        { "/api/tags", KX_DECLINED },
        { "/v1/chat/completions", KX_DECLINED },
        { "/api/completion", KX_DECLINED },
        { "api/chat", KX_DECLINED },
        { "", KX_DECLINED }
    };

    static const struct {
        const char  *body;
        unsigned     ours;
    } bodies[] = {
        { "{\"model\":\"m\",\"messages\":[]}", 1 },
        { "{\"model\":\"m\",\"prompt\":\"hi\"}", 1 },
        { "{\"model\":\"m\",\"prompt\":\"hi\",\"options\":"
          "{\"temperature\":1},\"stream\":false,\"raw\":false}", 1 },
        { "{\"model\":7,\"messages\":[]}", 0 },
        { "{\"messages\":[]}", 0 },
        { "{\"prompt\":\"hi\"}", 0 },
        { "{\"model\":\"m\"}", 0 },
        { "{\"model\":\"m\",\"messages\":{}}", 0 },
        { "{\"model\":\"m\",\"prompt\":[\"hi\"]}", 0 },

        /* OpenAI's completions */

        { "{\"model\":\"m\",\"prompt\":\"hi\",\"max_tokens\":16}", 0 },
        { "{\"model\":\"m\",\"prompt\":\"hi\",\"temperature\":0}", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        p.data = (unsigned char *) paths[i].path;
        p.len = strlen(paths[i].path);

        if (kx_ollama.path(&p) != paths[i].rc) {
            fail_msg("%s", paths[i].path);
        }
    }

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        assert_int_equal(kx_members_read(&members,
                                         (unsigned char *) bodies[i].body,
                                         strlen(bodies[i].body)),
                         KX_OK);

        if (kx_ollama.body(&members) != bodies[i].ours) {
            fail_msg("%s", bodies[i].body);
        }
    }

    p.data = (unsigned char *) "/api/chat";
    p.len = 9;

    assert_ptr_equal(kx_dialect_by_body(&p, (unsigned char *)
                                            bodies[0].body,
                                        strlen(bodies[0].body)),
                     &kx_ollama);

    p.data = (unsigned char *) "/api/generate";
    p.len = 13;

    assert_ptr_equal(kx_dialect_by_path(&p), &kx_ollama);
    assert_ptr_equal(kx_dialect_by_name((unsigned char *) "ollama", 6),
                     &kx_ollama);
}


static void
test_refusals(void **state)
{
    char           stream[2048];
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *message;
        const char   *rest;
        kx_reason_e   refused;
    } cases[] = {
        { "", "", KX_REASON_NONE },
        { "", ",\"done_reason\":\"stop\"", KX_REASON_NONE },
        { "", ",\"done_reason\":\"length\"", KX_REASON_NONE },
        { "", ",\"done_reason\":\"st\\u006fp\"", KX_REASON_NONE },
        { "", ",\"done_reason\":\"\"", KX_REASON_NONE },
        { "", ",\"done_reason\":null", KX_REASON_NONE },
        { "", ",\"done_reason\":\"load\"", KX_REASON_FINISH_REASON },
        { "", ",\"done_reason\":\"unload\"", KX_REASON_FINISH_REASON },
        { "", ",\"done_reason\":\"new\"", KX_REASON_FINISH_REASON },
        { "", ",\"done_reason\":7", KX_REASON_FINISH_REASON },
        { "", ",\"done_reason\":10", KX_REASON_FINISH_REASON },
        { ",\"tool_calls\":[]", "", KX_REASON_NONE },
        { ",\"tool_calls\":null", "", KX_REASON_NONE },
        { ",\"tool_calls\":[{\"function\":{}}]", "", KX_REASON_TOOL_CALLS },
        { ",\"thinking\":\"hm\"", ",\"thinking\":\"hm\"", KX_REASON_NONE }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {

        /* the tool call is in a line before, or in the same one */

        snprintf(stream, sizeof(stream),
                 "{\"message\":{\"content\":\"a\"%s},\"done\":false}\n"
                 "{\"message\":{\"content\":\"\"},\"done\":true%s}\n",
                 cases[i].message, cases[i].rest);

        feed_text(&res, KX_FRAMING_LINES, stream);

        if (res.finish != 2 || res.refused != cases[i].refused) {
            fail_msg("%s %s: %u %d", cases[i].message, cases[i].rest,
                     res.finish, res.refused);
        }

        snprintf(stream, sizeof(stream),
                 "{\"done\":true%s,\"message\":{\"content\":\"a\"%s}}",
                 cases[i].rest, cases[i].message);

        feed_text(&res, KX_FRAMING_WHOLE, stream);

        assert_int_equal(res.finish, 1);
        assert_int_equal(res.refused, cases[i].refused);
    }
}


static void
test_error_lines(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char  *streams[] = {
        "{\"error\":\"x\"}\n",
        "{\"error\":\"x\"}",
        SAID("a") "{\"error\":{\"message\":\"x\"}}\n",
        SAID("a") "{\"error\":\"x\",\"done\":true}\n",
        SAID("a") "{\"done\":true,\"error\":\"\"}\n"
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        feed_text(&res, KX_FRAMING_LINES, streams[i]);

        if (res.finish || res.refused != KX_REASON_ERROR_FRAME) {
            fail_msg("%s", streams[i]);
        }
    }

    feed_text(&res, KX_FRAMING_LINES, SAID("a") "{\"error\":\"x\"}\n" DONE);
    assert_int_equal(res.refused, KX_REASON_ERROR_FRAME);

    feed_text(&res, KX_FRAMING_LINES, "{\"error\":null,\"done\":true}\n");
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_NONE);

    feed_text(&res, KX_FRAMING_WHOLE, "{\"error\":\"x\"}");
    assert_int_equal(res.finish, 0);
    assert_int_equal(res.refused, KX_REASON_ERROR_FRAME);
}


static void
test_no_marker(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char  *lines[] = {
        "\n", "7\n", "[]\n", "\"done\"\n", "{}\n", ": {\"done\":true}\n",
        "data: {\"done\":true}\n",
        "{\"done\":false}\n", "{\"done\":null}\n", "{\"done\":\"true\"}\n",
        "{\"done\":1}\n", "{\"done\":[true]}\n",
        "{\"done\":true,\"done\":false}\n",
        "{\"message\":{\"done\":true}}\n",
        "{\"response\":\"a\",\"done_reason\":\"stop\"}\n",
        "{\"done\":true\n", "{\"done\":true}x\n", "{\"done\":true}{}\n",
        "[{\"done\":true}]\n", "{\"message\":{\"a\":},\"done\":true}\n"
    };

    (void) state;

    for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        feed_text(&res, KX_FRAMING_LINES, lines[i]);

        if (res.finish || res.refused != KX_REASON_NONE) {
            fail_msg("%s", lines[i]);
        }

        feed_text(&res, KX_FRAMING_WHOLE, lines[i]);

        if (res.finish || res.refused != KX_REASON_NONE) {
            fail_msg("%s", lines[i]);
        }
    }
}


static void
test_text_and_where_it_is_not(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char  *stream;
        const char  *text;
    } cases[] = {
        { SAID("a\\ud83d") SAID("\\udeb2") DONE, "a\xf0\x9f\x9a\xb2" },
        { SAID("Hel") "\n: keep-alive\nx\n" SAID("lo") DONE, "Hello" },
        { "{\"message\":{\"content\":\"\",\"thinking\":\"no\"}}\n" SAID("a")
          DONE, "a" },
        { "{\"thinking\":\"no\",\"response\":\"\"}\n{\"response\":\"a\"}\n"
          "{\"response\":\"b\",\"done\":true}", "ab" },
        { "{\"message\":{\"content\":[\"no\"]}}\n"
          "{\"message\":{\"content\":null}}\n{\"message\":\"no\"}\n"
          "{\"response\":[\"no\"]}\n{\"content\":\"no\"}\n" SAID("a") DONE,
          "a" },
        { "{\"message\":{\"content\":\"no\"},\"message\":{\"content\":"
          "\"no\",\"content\":\"a\"}}\n" DONE, "a" },
        { "{\"message\":{\"content\":\"no\"},\"message\":{}}\n" SAID("a")
          DONE, "a" },
        { "{\"response\":\"no\",\"response\":\"a\"}\n" DONE, "a" },

        /* one form or the other */

        { "{\"response\":\"no\",\"message\":{\"content\":\"a\"}}\n" DONE,
          "a" },

        /* nothing comes after the end */

        { SAID("a") DONE SAID("no") DONE, "a" },
        { SAID("a") DONE "{\"message\":{\"tool_calls\":[{}]}}\n", "a" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        feed_text(&res, KX_FRAMING_LINES, cases[i].stream);

        assert_true(res.finish > 0);
        assert_int_equal(res.finishes, 1);
        assert_int_equal(chat.answer.refused, KX_REASON_NONE);
        chat_assert_text(&chat, cases[i].text);
    }

    feed_text(&res, KX_FRAMING_WHOLE,
              "{\"response\":\"Hello\",\"thinking\":\"no\",\"done\":true}");
    assert_int_equal(res.finish, 1);
    chat_assert_text(&chat, "Hello");
}


static void
test_bytes_of_an_ad(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        kx_form_e     form;
        const char   *in;
        const char   *out;
    } cases[] = {
        { KX_FRAMING_LINES, KX_FORM_MEMBER,
          SAID("a") "{\"done\":true} \r\n",
          SAID("a") "{\"done\":true,\"kontext\":PAYLOAD} \r\n" },
        { KX_FRAMING_LINES, KX_FORM_MEMBER,
          "{\"done\":true,\"context\":[1]}",
          "{\"done\":true,\"context\":[1],\"kontext\":PAYLOAD}" },
        { KX_FRAMING_WHOLE, KX_FORM_MEMBER,
          "{\n\"response\":\"a\",\n\"done\":true\n}\n",
          "{\n\"response\":\"a\",\n\"done\":true\n,\"kontext\":PAYLOAD}\n" },

        /* a line in front of the last one */

        { KX_FRAMING_LINES, KX_FORM_TEXT,
          SAID("a") "{\"created_at\":\"t\",\"model\":\"m\",\"done\":true}\n",
          SAID("a") "{\"model\":\"m\",\"created_at\":\"t\",\"message\":"
          "{\"role\":\"assistant\",\"content\":\"PAYLOAD\"},\"done\":false}\n"
          "{\"created_at\":\"t\",\"model\":\"m\",\"done\":true}\n" },
        { KX_FRAMING_LINES, KX_FORM_TEXT,
          "{\"response\":\"a\"}\r\n"
          "{\"model\":\"m\",\"response\":\"\",\"done\":true}\r\n",
          "{\"response\":\"a\"}\r\n"
          "{\"model\":\"m\",\"response\":\"PAYLOAD\",\"done\":false}\r\n"
          "{\"model\":\"m\",\"response\":\"\",\"done\":true}\r\n" },

        /* with an end of line of its own, when the last one has none */

        { KX_FRAMING_LINES, KX_FORM_TEXT,
          "{\"response\":\"a\"}\r\n{\"done\":true}",
          "{\"response\":\"a\"}\r\n"
          "{\"response\":\"PAYLOAD\",\"done\":false}\n{\"done\":true}" },
        { KX_FRAMING_LINES, KX_FORM_TEXT,
          "{\"response\":\"a\"}\r\n{\"done\":true}\r",
          "{\"response\":\"a\"}\r\n"
          "{\"response\":\"PAYLOAD\",\"done\":false}\n{\"done\":true}\r" },

        /* what is no scalar is not copied */

        { KX_FRAMING_LINES, KX_FORM_TEXT,
          SAID("a") "{\"model\":[\"m\"],\"created_at\":7,\"done\":true}\n",
          SAID("a") "{\"created_at\":7,\"message\":{\"role\":\"assistant\","
          "\"content\":\"PAYLOAD\"},\"done\":false}\n"
          "{\"model\":[\"m\"],\"created_at\":7,\"done\":true}\n" },

        /* the last line has the end of the text */

        { KX_FRAMING_LINES, KX_FORM_TEXT,
          SAID("a") "{\"message\":{\"content\":\"b\\\"\"},\"done\":true}\n",
          SAID("a") "{\"message\":{\"content\":\"b\\\"PAYLOAD\"},"
          "\"done\":true}\n" },

        { KX_FRAMING_WHOLE, KX_FORM_TEXT,
          "{\"done\":true,\"message\":{\"content\":\"a\"}}",
          "{\"done\":true,\"message\":{\"content\":\"aPAYLOAD\"}}" },
        { KX_FRAMING_WHOLE, KX_FORM_TEXT,
          "{\"response\":\"a\\\\\",\"done\":true}",
          "{\"response\":\"a\\\\PAYLOAD\",\"done\":true}" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, cases[i].form);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.places, KX_OK);
        assert_string_equal((char *) res.out, cases[i].out);
        chat_result_free(&res);
    }
}


static void
test_no_place_for_a_text(void **state)
{
    char           line[4096], name[KX_MAX_COPIED];
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
    } cases[] = {
        { KX_FRAMING_LINES, "{\"done\":true}\n" },
        { KX_FRAMING_WHOLE, "{\"done\":true}" },
        { KX_FRAMING_WHOLE, "{\"response\":\"\",\"done\":true}" },
        { KX_FRAMING_WHOLE,
          "{\"message\":{\"content\":\"a\",\"content\":7},\"done\":true}" },
        { KX_FRAMING_WHOLE, "{\"message\":{},\"done\":true}" }
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

    /* a name that is too long to be copied */

    memset(name, 'm', sizeof(name));

    for (i = 0; i < 2; i++) {
        snprintf(line, sizeof(line), SAID("a")
                 "{\"model\":\"%.*s\",\"done\":true}\n",
                 KX_MAX_COPIED - 2 + (int) i, name);

        start(KX_FRAMING_LINES, KX_FORM_TEXT);
        chat_feed_text(&chat, &res, line);
        chat_result_free(&res);

        assert_int_equal(res.places, i ? KX_DECLINED : KX_OK);
    }
}


/* a last line that is too large to be kept */

static void
test_head(void **state)
{
    char          *line;
    size_t         i;
    kx_frame_e     verdict;
    kx_frame_t     fr;
    kx_framer_t    framer;
    unsigned char  scratch[1];

    static const struct {
        const char   *line;
        kx_framing_e  framing;
        kx_form_e     form;
        kx_frame_e    verdict;
        kx_reason_e   refused;
    } cases[] = {
        { "{\"response\":\"b\",\"done\":true,\"done_reason\":\"stop\","
          "\"context\":[1,2,",
          KX_FRAMING_LINES, KX_FORM_MEMBER, KX_FRAME_FINISH,
          KX_REASON_NONE },
        { "{\"response\":\"b\",\"done\":true,\"done_reason\":\"load\","
          "\"context\":[1,2,",
          KX_FRAMING_LINES, KX_FORM_MEMBER, KX_FRAME_FINISH,
          KX_REASON_FINISH_REASON },
        { "{\"response\":\"b\",\"done\":true,\"context\":[1,2,",
          KX_FRAMING_LINES, KX_FORM_MEMBER, KX_FRAME_PASS, KX_REASON_NONE },
        { "{\"response\":\"b\",\"done\":true,\"done_reason\":\"st",
          KX_FRAMING_LINES, KX_FORM_MEMBER, KX_FRAME_PASS, KX_REASON_NONE },
        { "{\"response\":\"b\",\"done\":false,\"done_reason\":\"stop\",\"x",
          KX_FRAMING_LINES, KX_FORM_MEMBER, KX_FRAME_PASS, KX_REASON_NONE },
        { "[{\"done\":true,\"done_reason\":\"stop\",\"context\":[1",
          KX_FRAMING_LINES, KX_FORM_MEMBER, KX_FRAME_PASS, KX_REASON_NONE },
        { "{\"response\":\"b\",\"done\":true,\"done_reason\":\"stop\","
          "\"context\":[1,2,",
          KX_FRAMING_LINES, KX_FORM_TEXT, KX_FRAME_PASS, KX_REASON_NONE },
        { "{\"response\":\"b\",\"done\":true,\"done_reason\":\"stop\","
          "\"context\":[1,2,",
          KX_FRAMING_WHOLE, KX_FORM_MEMBER, KX_FRAME_PASS, KX_REASON_NONE }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, cases[i].form);

        line = strdup(cases[i].line);
        assert_non_null(line);

        kx_framer_init(&framer, cases[i].framing);
        assert_int_equal(kx_frame_parse(&fr, &framer, (unsigned char *) line,
                                        strlen(line), 0, scratch),
                         KX_OK);

        verdict = kx_ollama.head(&chat.answer, &fr);

        if (verdict != cases[i].verdict
            || chat.answer.refused != cases[i].refused)
        {
            fail_msg("%s: %d %d", line, verdict, chat.answer.refused);
        }

        if (verdict == KX_FRAME_FINISH) {
            assert_int_equal(chat.answer.nplaces, 1);
            assert_ptr_equal(chat.answer.places[0].at, line + 1);
            assert_int_equal(chat.answer.places[0].before.len, 10);
            assert_memory_equal(chat.answer.places[0].before.data,
                                "\"kontext\":", 10);
            assert_int_equal(chat.answer.places[0].after.len, 1);
            assert_memory_equal(chat.answer.places[0].after.data, ",", 1);

            chat_assert_text(&chat, "b");

        } else {
            assert_int_equal(chat.answer.nplaces, 0);
        }

        free(line);
    }
}


static void
test_every_prefix_of_a_stream(void **state)
{
    size_t          i, len, at;
    unsigned        form;
    const char     *ad;
    chat_result_t   res;
    unsigned char  *copy;

    static const char  stream[] =
        SAID("a\\ud83d") SAID("\\udeb2") DONE SAID("b");

    static const char  text[] = "{\"model\":\"m\"," CHAT_TEXT "\n";

    (void) state;

    /* with the brace it is whole, a line end or not */

    len = sizeof(stream) - 1;
    at = sizeof(SAID("a\\ud83d") SAID("\\udeb2") DONE) - 2;

    for (i = 0; i <= len; i++) {
        copy = malloc(i ? i : 1);
        assert_non_null(copy);
        memcpy(copy, stream, i);

        for (form = 0; form < 2; form++) {
            start(KX_FRAMING_LINES, form ? KX_FORM_TEXT : KX_FORM_MEMBER);
            chat_feed(&chat, &res, copy, i);

            assert_int_equal(res.refused, KX_REASON_NONE);
            assert_int_equal(res.finishes, i >= at);

            ad = (i < at) ? "" : form ? text : MEMBER;
            assert_only(&res, ad, copy, i);
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

    p = chat_sample("ollama.response.json", &len);

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
        assert_only(&res, "", copy, i);

        chat_result_free(&res);
        free(copy);
    }

    free(p);
}


static void
test_no_memory(void **state)
{
    unsigned       i, failed;
    chat_result_t  res;

    (void) state;

    memory.fail_at = 1;
    assert_int_equal(scan_generate("{\"prompt\":\"hi\"}"),
                     KX_REASON_NO_MEMORY);
    assert_int_equal(scan("{\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"hi\"}]}"), KX_REASON_NO_MEMORY);

    for (failed = 0, i = 1; i < 8; i++) {
        start(KX_FRAMING_LINES, KX_FORM_TEXT);

        chat.memory.fail_at = chat.memory.n + i;
        chat_feed_text(&chat, &res, SAID("a") DONE);
        chat_result_free(&res);
        chat.memory.fail_at = 0;

        assert_int_equal(res.finish, 2);

        if (res.places != KX_OK) {
            assert_int_equal(res.places, KX_ERROR);
            failed++;
        }
    }

    assert_int_equal(failed, 2);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_teardown(test_sample_streams, teardown),
        cmocka_unit_test_teardown(test_sample_whole, teardown),
        cmocka_unit_test_teardown(test_sample_requests, teardown),
        cmocka_unit_test_teardown(test_turns, teardown),
        cmocka_unit_test_teardown(test_prompts, teardown),
        cmocka_unit_test_teardown(test_modes, teardown),
        cmocka_unit_test_teardown(test_last_duplicate_wins, teardown),
        cmocka_unit_test_teardown(test_bad_bodies, teardown),
        cmocka_unit_test_teardown(test_every_prefix_of_a_request_is_bad,
                                  teardown),
        cmocka_unit_test_teardown(test_paths_and_bodies, teardown),
        cmocka_unit_test_teardown(test_refusals, teardown),
        cmocka_unit_test_teardown(test_error_lines, teardown),
        cmocka_unit_test_teardown(test_no_marker, teardown),
        cmocka_unit_test_teardown(test_text_and_where_it_is_not, teardown),
        cmocka_unit_test_teardown(test_bytes_of_an_ad, teardown),
        cmocka_unit_test_teardown(test_no_place_for_a_text, teardown),
        cmocka_unit_test_teardown(test_head, teardown),
        cmocka_unit_test_teardown(test_every_prefix_of_a_stream, teardown),
        cmocka_unit_test_teardown(test_every_prefix_of_a_whole_answer,
                                  teardown),
        cmocka_unit_test_teardown(test_no_memory, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
