/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is understood of Gemini requests and answers, and where an ad goes in
 * (chat-apis.md 8, 11, 13).
 */


#include "chat.h"


#include <cjson/cJSON.h>


#define STREAM  "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
#define WHOLE   "/v1beta/models/gemini-2.5-flash:generateContent"

#define DATA    "data: "
#define HI      "{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}"

#define MEMBER  ",\"kontext\":" CHAT_PAYLOAD
#define PART    ",{\"text\":\"" CHAT_PAYLOAD "\"}"


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

    chat_free(&memory);

    kx_conversation_init(&cv, &kx_gemini, &uri, key, &pool);

    return kx_conversation_scan(&cv, p, len);
}


static kx_reason_e
scan(const char *body)
{
    return scan_len(STREAM, (const unsigned char *) body, strlen(body));
}


static void
understand(const char *body)
{
    unsigned char  digest[KX_ID_LEN];

    if (scan(body) != KX_REASON_NONE) {
        fail_msg("not understood: %s", body);
    }

    n = chat_messages(&cv, &cid, messages, digest);
}


static void
assert_said(unsigned i, kx_role_e role, const char *text)
{
    assert_true(i < n);
    assert_int_equal(messages[i].role, role);

    if (messages[i].content.len != strlen(text)
        || memcmp(messages[i].content.data, text, strlen(text)) != 0)
    {
        fail_msg("\"%.*s\" is not \"%s\"", (int) messages[i].content.len,
                 (char *) messages[i].content.data, text);
    }
}


static void
start(kx_framing_e framing, kx_form_e form)
{
    chat_start(&chat, &kx_gemini, framing == KX_FRAMING_WHOLE ? WHOLE : STREAM,
               HI, framing, form);
}


static void
feed_text(chat_result_t *res, const char *stream)
{
    chat_feed_text(&chat, res, stream);
    chat_result_free(res);
}


/* the output is the input with this string at one place */

static void
assert_added(chat_result_t *res, const unsigned char *p, size_t len,
    const char *added)
{
    size_t          size;
    unsigned char  *at;

    size = strlen(added);

    assert_int_equal(res->len, len + size);

    at = (unsigned char *) strstr((char *) res->out, added);
    assert_non_null(at);

    memmove(at, at + size, (size_t) (res->out + res->len - (at + size)));

    assert_memory_equal(res->out, p, len);
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
    unsigned char  *p, digest[KX_ID_LEN];

    (void) state;

    p = chat_sample("gemini.request.json", &len);

    assert_int_equal(scan_len(STREAM, p, len), KX_REASON_NONE);
    n = chat_messages(&cv, &cid, messages, digest);

    record = chat_expected("gemini.request.json", &root);
    record = cJSON_GetObjectItemCaseSensitive(record, "conversation");

    assert_int_equal(n, cJSON_GetArraySize(record));
    assert_int_equal(n, 4);

    for (i = 0; i < n; i++) {
        m = cJSON_GetArrayItem(record, (int) i);

        assert_said(i, strcmp(chat_string(m, "role"), "user")
                       ? KX_ROLE_ASSISTANT : KX_ROLE_USER,
                    chat_string(m, "text"));
    }

    assert_true(cv.has_messages);
    assert_true(cv.user_turn);
    assert_true(cv.stream);
    assert_false(cv.json_mode);
    assert_false(cv.forced_tools);
    assert_int_equal(cv.choices, 1);
    assert_int_equal(cv.user.rank, KX_IDENTITY_NONE);
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_NONE);

    cJSON_Delete(root);
    free(p);
}


static void
test_sample_answers(void **state)
{
    size_t          i, len;
    cJSON          *root;
    kx_form_e       form;
    const char     *id;
    const cJSON    *record;
    chat_result_t   res;
    unsigned char  *p;

    static const struct {
        const char    *name;
        const char    *expected;
        kx_framing_e   framing;
        unsigned       frames;
    } cases[] = {
        { "gemini.sse", "gemini.sse", KX_FRAMING_SSE, 13 },
        { "gemini-array.json", "gemini-array.json", KX_FRAMING_ARRAY, 12 },
        { "gemini.response.json", "gemini.sse", KX_FRAMING_WHOLE, 1 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p = chat_sample(cases[i].name, &len);

        record = chat_expected(cases[i].expected, &root);
        assert_string_equal(chat_string(record, "finishReason"), "STOP");

        for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {
            start(cases[i].framing, form);
            chat_feed(&chat, &res, p, len);

            assert_int_equal(res.frames, cases[i].frames);
            assert_int_equal(res.finish, cases[i].frames);
            assert_int_equal(res.finishes, 1);
            assert_int_equal(res.refused, KX_REASON_NONE);
            assert_int_equal(res.places, KX_OK);

            assert_added(&res, p, len,
                         form == KX_FORM_TEXT ? PART : MEMBER);
            chat_result_free(&res);

            assert_int_equal(chat.answer.answers, 1);
            id = chat_string(record, "responseId");

            assert_int_equal(chat.answer.response_id.len, strlen(id));
            assert_memory_equal(chat.answer.response_id.data, id, strlen(id));

            chat_assert_text(&chat, chat_string(record, "text"));
        }

        cJSON_Delete(root);
        free(p);
    }
}


static void
test_sample_tools(void **state)
{
    size_t          len;
    chat_result_t   res;
    unsigned char  *p, digest[KX_ID_LEN];

    (void) state;

    p = chat_sample("gemini-tools.sse", &len);

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    chat_feed(&chat, &res, p, len);
    chat_result_free(&res);

    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_TOOL_CALLS);
    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest),
                     KX_DECLINED);

    free(p);
}


static void
test_places(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        kx_form_e     form;
        const char   *in;
        const char   *out;
    } cases[] = {

        /* in usageMetadata, wherever that is */

        { KX_FRAMING_SSE, KX_FORM_MEMBER,
          DATA "{\"usageMetadata\":{\"totalTokenCount\":7 },\"candidates\":"
          "[{\"finishReason\":\"STOP\"}]}\r\n\r\n",
          DATA "{\"usageMetadata\":{\"totalTokenCount\":7 ,\"kontext\":"
          "PAYLOAD},\"candidates\":[{\"finishReason\":\"STOP\"}]}\r\n\r\n" },

        { KX_FRAMING_SSE, KX_FORM_MEMBER,
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"usageMetadata\":{ }}\n\n",
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"usageMetadata\":{ \"kontext\":PAYLOAD}}\n\n" },

        /* the last one of that name is the one that counts */

        { KX_FRAMING_SSE, KX_FORM_MEMBER,
          DATA "{\"usageMetadata\":{},\"candidates\":[{\"finishReason\":"
          "\"STOP\"}],\"usageMetadata\":{\"a\":{}}}\n\n",
          DATA "{\"usageMetadata\":{},\"candidates\":[{\"finishReason\":"
          "\"STOP\"}],\"usageMetadata\":{\"a\":{},\"kontext\":PAYLOAD}}"
          "\n\n" },

        /* there is none, in this chunk */

        { KX_FRAMING_SSE, KX_FORM_MEMBER,
          DATA "{\"usageMetadata\":{}}\n\n"
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"usageMetadata\":[{}] }\n\n",
          DATA "{\"usageMetadata\":{}}\n\n"
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"usageMetadata\":[{}] ,\"kontext\":PAYLOAD}\n\n" },

        { KX_FRAMING_WHOLE, KX_FORM_MEMBER,
          "{\"candidates\":[{\"finishReason\":\"STOP\"}]}\n",
          "{\"candidates\":[{\"finishReason\":\"STOP\"}]"
          ",\"kontext\":PAYLOAD}\n" },

        { KX_FRAMING_ARRAY, KX_FORM_MEMBER,
          "[{\"candidates\":[{\"finishReason\":\"STOP\"}],\n"
          "\"usageMetadata\":{\"a\":1\n}}\n]",
          "[{\"candidates\":[{\"finishReason\":\"STOP\"}],\n"
          "\"usageMetadata\":{\"a\":1\n,\"kontext\":PAYLOAD}}\n]" },

        /* a part behind the last one */

        { KX_FRAMING_SSE, KX_FORM_TEXT,
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a]\"}"
          "],\"role\":\"model\"},\"finishReason\":\"STOP\"}]}\n\n",
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a]\"}"
          ",{\"text\":\"PAYLOAD\"}],\"role\":\"model\"},\"finishReason\":"
          "\"STOP\"}]}\n\n" },

        { KX_FRAMING_WHOLE, KX_FORM_TEXT,
          "{\"candidates\":[{\"finishReason\":\"STOP\",\"content\":"
          "{\"parts\":[ ]}}]}",
          "{\"candidates\":[{\"finishReason\":\"STOP\",\"content\":"
          "{\"parts\":[ {\"text\":\"PAYLOAD\"}]}}]}" },

        /* a chunk in front, with the line ends of the stream */

        { KX_FRAMING_SSE, KX_FORM_TEXT,
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}"
          "]}}]}\r\n\r\n"
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"modelVersion\":\"g-1\",\"responseId\":\"r\"}\r\n\r\n",
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}"
          "]}}]}\r\n\r\n"
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
          "\"PAYLOAD\"}],\"role\":\"model\"},\"index\":0}],"
          "\"modelVersion\":\"g-1\",\"responseId\":\"r\"}\r\n\r\n"
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"modelVersion\":\"g-1\",\"responseId\":\"r\"}\r\n\r\n" },

        /* what is no scalar is not copied */

        { KX_FRAMING_SSE, KX_FORM_TEXT,
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\",\"content\":{}"
          "}],\"modelVersion\":{},\"responseId\":[\"r\"]}\n\n",
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
          "\"PAYLOAD\"}],\"role\":\"model\"},\"index\":0}]}\n\n"
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\",\"content\":{}"
          "}],\"modelVersion\":{},\"responseId\":[\"r\"]}\n\n" },

        /* an element in front, but behind the bracket or the comma */

        { KX_FRAMING_ARRAY, KX_FORM_TEXT,
          "[{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}]}}]}"
          "\n,\r\n"
          "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"responseId\":\"r\"}\n]\n",
          "[{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}]}}]}"
          "\n,\r\n"
          "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
          "\"PAYLOAD\"}],\"role\":\"model\"},\"index\":0}],"
          "\"responseId\":\"r\"}\n,\r\n"
          "{\"candidates\":[{\"finishReason\":\"STOP\"}],"
          "\"responseId\":\"r\"}\n]\n" },

        { KX_FRAMING_ARRAY, KX_FORM_TEXT,
          "[{\"candidates\":[{\"finishReason\":\"STOP\"}]}]",
          "[{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
          "\"PAYLOAD\"}],\"role\":\"model\"},\"index\":0}]}\n,\r\n"
          "{\"candidates\":[{\"finishReason\":\"STOP\"}]}]" },

        /* the parts of another candidate, or of another chunk, are not its */

        { KX_FRAMING_SSE, KX_FORM_TEXT,
          DATA "{\"candidates\":[{\"content\":{\"parts\":[]},"
          "\"finishReason\":\"STOP\"},{\"index\":1,\"content\":{\"parts\":"
          "[{}]},\"finishReason\":\"STOP\"}]}\n\n",
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
          "\"PAYLOAD\"}]},\"finishReason\":\"STOP\"},{\"index\":1,"
          "\"content\":{\"parts\":[{}]},\"finishReason\":\"STOP\"}]}\n\n" },

        /* an event of several lines is joined: not in the middle of it */

        { KX_FRAMING_SSE, KX_FORM_TEXT,
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}"
          "]},\n"
          DATA "\"finishReason\":\"STOP\"}]}\n\n",
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
          "\"PAYLOAD\"}],\"role\":\"model\"},\"index\":0}]}\n\n"
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}"
          "]},\n"
          DATA "\"finishReason\":\"STOP\"}]}\n\n" },

        { KX_FRAMING_SSE, KX_FORM_MEMBER,
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],\n"
          DATA "\"usageMetadata\":{}}\n\n",
          DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}],\n"
          DATA "\"usageMetadata\":{\"kontext\":PAYLOAD}}\n\n" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, cases[i].form);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.finishes, 1);
        assert_int_equal(res.places, KX_OK);
        assert_string_equal((char *) res.out, cases[i].out);
        chat_result_free(&res);
    }
}


static void
test_no_place(void **state)
{
    char          *stream;
    size_t         size;
    chat_result_t  res;

    (void) state;

    /* a whole answer cannot get another chunk */

    start(KX_FRAMING_WHOLE, KX_FORM_TEXT);
    feed_text(&res, "{\"candidates\":[{\"finishReason\":\"STOP\"}]}");
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.places, KX_DECLINED);

    /* what would be copied is too large */

    size = KX_MAX_COPIED + 200;
    stream = malloc(size);
    assert_non_null(stream);

    snprintf(stream, size, DATA "{\"candidates\":[{\"finishReason\":"
             "\"STOP\"}],\"modelVersion\":\"%0*d\"}\n\n", KX_MAX_COPIED, 7);

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    feed_text(&res, stream);
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.places, KX_DECLINED);

    free(stream);

    /* there is no memory for the chunk */

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    chat.memory.fail_at = chat.memory.n + 1;
    feed_text(&res, DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n");
    chat.memory.fail_at = 0;
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.places, KX_ERROR);
}


static void
test_refusals(void **state)
{
    char           stream[2048];
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *part;
        const char   *finish;
        const char   *rest;
        kx_reason_e   refused;
    } cases[] = {
        { "{\"text\":\"a\"}", "\"STOP\"", "", KX_REASON_NONE },
        { "{\"text\":\"a\"}", "\"MAX_TOKENS\"", "", KX_REASON_NONE },
        { "{\"text\":\"a\"}", "\"ST\\u004fP\"", "", KX_REASON_NONE },
        { "{\"text\":\"a\"}", "\"SAFETY\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"RECITATION\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"BLOCKLIST\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"PROHIBITED_CONTENT\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"SPII\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"MODEL_ARMOR\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"IMAGE_SAFETY\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"IMAGE_RECITATION\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"IMAGE_PROHIBITED_CONTENT\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"stop\"", "", KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"OTHER\"", "", KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"CONTINUATION\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"text\":\"a\"}", "\"MALFORMED_FUNCTION_CALL\"", "",
          KX_REASON_FINISH_REASON },
        { "{\"functionCall\":{\"name\":\"f\"}}", "\"STOP\"", "",
          KX_REASON_TOOL_CALLS },
        { "{\"function_call\":{\"name\":\"f\"}}", "\"STOP\"", "",
          KX_REASON_TOOL_CALLS },
        { "{\"functionCall\":null}", "\"STOP\"", "", KX_REASON_NONE },
        { "{\"executableCode\":{\"code\":\"1\"}}", "\"STOP\"", "",
          KX_REASON_NONE },
        { "{\"text\":\"a\"}", "\"STOP\"",
          ",\"promptFeedback\":{\"blockReason\":\"SAFETY\"}",
          KX_REASON_REFUSAL },
        { "{\"text\":\"a\"}", "\"STOP\"",
          ",\"promptFeedback\":{\"safetyRatings\":[],\"blockReason\":null}",
          KX_REASON_NONE },
        { "{\"text\":\"a\"}", "\"STOP\"", ",\"promptFeedback\":null",
          KX_REASON_NONE },
        { "{\"text\":\"a\"}", "\"STOP\"", ",\"error\":{\"code\":500}",
          KX_REASON_ERROR_FRAME },
        { "{\"text\":\"a\"}", "\"STOP\"", ",\"error\":null",
          KX_REASON_NONE }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(stream, sizeof(stream),
                 DATA "{\"candidates\":[{\"content\":{\"parts\":[%s]}}]}"
                 "\r\n\r\n"
                 DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
                 "\"\"}]},\"finishReason\":%s,\"index\":0}]%s}\r\n\r\n",
                 cases[i].part, cases[i].finish, cases[i].rest);

        start(KX_FRAMING_SSE, KX_FORM_MEMBER);
        feed_text(&res, stream);

        if (res.finish != 2 || res.refused != cases[i].refused) {
            fail_msg("%s %s%s: %u %d", cases[i].part, cases[i].finish,
                     cases[i].rest, res.finish, res.refused);
        }
    }
}


static void
test_no_marker(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *stream;
        kx_reason_e   refused;
    } cases[] = {
        { "", KX_REASON_NONE },
        { DATA "{}\n\n", KX_REASON_NONE },
        { DATA "7\n\n" DATA "\"x\"\n\n" DATA "[]\n\n" DATA "[DONE]\n\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":null}\n\n", KX_REASON_NONE },
        { DATA "{\"candidates\":{\"finishReason\":\"STOP\"}}\n\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":[]}\n\n", KX_REASON_NONE },
        { DATA "{\"candidates\":[7,null,[]]}\n\n", KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"finishReason\":null}]}\n\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"finishReason\":\"\"}]}\n\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"finishReason\":1}]}\n\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"finishReason\":"
          "\"FINISH_REASON_UNSPECIFIED\"}]}\n\n", KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]\n\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]}x\n\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]}\n",
          KX_REASON_NONE },
        { DATA "{\"candidates\":[{\"content\":7,\"index\":null}],"
          "\"usageMetadata\":7,\"promptFeedback\":[],\"responseId\":7}\n\n",
          KX_REASON_NONE },
        { DATA "{\"promptFeedback\":{\"blockReason\":\"OTHER\"}}\n\n",
          KX_REASON_REFUSAL },
        { DATA "{\"error\":{\"code\":503,\"status\":\"UNAVAILABLE\"}}\n\n",
          KX_REASON_ERROR_FRAME },
        { DATA "{\"candidates\":[{\"index\":-1,\"finishReason\":\"STOP\"}]}"
          "\n\n", KX_REASON_FINISH_REASON },
        { DATA "{\"candidates\":[{\"index\":128,\"finishReason\":\"STOP\"}]}"
          "\n\n", KX_REASON_FINISH_REASON },
        { DATA "{\"candidates\":[{\"index\":0.5,\"finishReason\":\"STOP\"}]}"
          "\n\n", KX_REASON_FINISH_REASON },
        { DATA "{\"candidates\":[{\"index\":99999999999999999999,"
          "\"finishReason\":\"STOP\"}]}\n\n", KX_REASON_FINISH_REASON }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(KX_FRAMING_SSE, KX_FORM_MEMBER);
        feed_text(&res, cases[i].stream);

        if (res.finish || res.refused != cases[i].refused) {
            fail_msg("%s: %u %d", cases[i].stream, res.finish, res.refused);
        }
    }
}


/* the array form of an error, and what is no array */

static void
test_array_errors(void **state)
{
    chat_result_t  res;

    (void) state;

    start(KX_FRAMING_ARRAY, KX_FORM_MEMBER);
    feed_text(&res, "[{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
                    "\"a\"}]}}]}\n,\r\n{\"error\":{\"code\":503}}\n]");
    assert_int_equal(res.finish, 0);
    assert_int_equal(res.refused, KX_REASON_ERROR_FRAME);

    start(KX_FRAMING_ARRAY, KX_FORM_MEMBER);
    feed_text(&res, "{\"candidates\":[{\"finishReason\":\"STOP\"}]}");
    assert_int_equal(res.finish, 0);
}


static void
test_deep_answer(void **state)
{
    char           stream[4096], *p;
    unsigned       i, depth;
    chat_result_t  res;

    (void) state;

    /* three brackets are open around it */

    for (depth = KX_JSON_MAX_DEPTH - 3; depth < KX_JSON_MAX_DEPTH; depth++) {
        p = stream + sprintf(stream, DATA "{\"candidates\":[{\"content\":");

        for (i = 0; i < depth; i++) {
            *p++ = '[';
        }

        for (i = 0; i < depth; i++) {
            *p++ = ']';
        }

        strcpy(p, ",\"finishReason\":\"STOP\"}]}\n\n");

        start(KX_FRAMING_SSE, KX_FORM_MEMBER);
        feed_text(&res, stream);

        assert_int_equal(res.finish, depth == KX_JSON_MAX_DEPTH - 3);
    }
}


static void
test_marker_comes_once(void **state)
{
    chat_result_t  res;

    (void) state;

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    feed_text(&res,
              DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n"
              DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n"
              DATA "{\"candidates\":[{\"index\":1,\"finishReason\":\"STOP\"}"
              "]}\n\n");
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.finishes, 1);
}


static void
test_two_candidates_asked_for(void **state)
{
    chat_result_t  res;

    static const char  request[] =
        "{\"generationConfig\":{\"candidateCount\":2}}";

    (void) state;

    /* the marker is that of the last one, the text that of candidate 0 */

    chat_start(&chat, &kx_gemini, STREAM, request, KX_FRAMING_SSE,
               KX_FORM_TEXT);
    chat_feed_text(&chat, &res,
        DATA "{\"candidates\":[{\"index\":1,\"content\":{\"parts\":[{"
        "\"text\":\"b\"}]}},{\"content\":{\"parts\":[{\"text\":\"a\"}]},"
        "\"finishReason\":\"STOP\"}]}\n\n"
        DATA "{\"candidates\":[{\"index\":1,\"content\":{\"parts\":[{"
        "\"text\":\"c\"}]},\"finishReason\":\"STOP\"}]}\n\n");

    assert_int_equal(res.finish, 2);
    assert_int_equal(res.refused, KX_REASON_NONE);
    assert_int_equal(chat.answer.answers, 2);
    chat_assert_text(&chat, "a");

    /* and so is the ad */

    assert_int_equal(res.places, KX_OK);
    assert_non_null(strstr((char *) res.out,
        "\n\n" DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
        "\"PAYLOAD\"}],\"role\":\"model\"},\"index\":0}]}\n\n" DATA));
    chat_result_free(&res);

    /* only one has come, or one twice */

    chat_start(&chat, &kx_gemini, STREAM, request, KX_FRAMING_SSE,
               KX_FORM_MEMBER);
    feed_text(&res, DATA "{\"candidates\":[{\"finishReason\":\"STOP\"},"
                    "{\"index\":1}]}\n\n"
                    DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n");
    assert_int_equal(res.finish, 0);

    chat_start(&chat, &kx_gemini, STREAM, request, KX_FRAMING_SSE,
               KX_FORM_MEMBER);
    feed_text(&res, DATA "{\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n");
    assert_int_equal(res.finish, 0);

    /* one of them calls a function */

    chat_start(&chat, &kx_gemini, STREAM, request, KX_FRAMING_SSE,
               KX_FORM_MEMBER);
    feed_text(&res,
        DATA "{\"candidates\":[{\"index\":1,\"content\":{\"parts\":[{"
        "\"functionCall\":{}}]},\"finishReason\":\"STOP\"},{\"index\":0,"
        "\"finishReason\":\"STOP\"}]}\n\n");
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_TOOL_CALLS);
}


static void
test_response_id_is_kept_once(void **state)
{
    unsigned       before;
    chat_result_t  res;

    (void) state;

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    before = chat.memory.n;
    feed_text(&res, DATA "{\"responseId\":\"r-1\"}\n\n"
                    DATA "{\"responseId\":\"r-2\"}\n\n"
                    DATA "{\"responseId\":\"r-1\"}\n\n");

    assert_int_equal(chat.answer.response_id.len, 3);
    assert_memory_equal(chat.answer.response_id.data, "r-1", 3);
    assert_int_equal(chat.memory.n, before + 1);
}


/* joined with nothing, thoughts left out, halves of characters put together */

static void
test_answer_text(void **state)
{
    chat_result_t  res;

    (void) state;

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    feed_text(&res,
        DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"hm\","
        "\"thought\":true},{\"thought\":false,\"text\":\"Hel\"},{\"text\":"
        "7},{\"inlineData\":{}},null,{\"text\":\"lo \\ud83d\"}]}}]}\n\n"
        DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\\ude80"
        "!\"}]},\"finishReason\":\"STOP\"}]}\n\n");

    assert_int_equal(res.finish, 2);
    chat_assert_text(&chat, "Hello \xf0\x9f\x9a\x80!");
}


/* as the chat helpers send it back, chunk by chunk, and as others do */

static void
test_answer_comes_back_with_its_id(void **state)
{
    size_t           i;
    chat_result_t    res;
    unsigned char    digest[KX_ID_LEN], id[KX_MESSAGE_ID_LEN];

    static const char *const  bodies[] = {

        "{\"contents\":[{\"role\":\"user\",\"parts\":[{\"text\":\"hi\"}]},"
        "{\"role\":\"model\",\"parts\":[{\"text\":\"hm\",\"thought\":true},"
        "{\"text\":\"Hel\"}]}"
        " , {\"parts\":[{\"text\":\"lo th\"}],\"role\":\"model\"},"
        "{\"parts\":[{\"text\":\"ere\",\"thoughtSignature\":\"x\"}],"
        "\"role\":\"model\"}]}",

        "{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]},{\"role\":\"model\","
        "\"parts\":[{\"text\":\"Hello there\"}]}]}",

        "{\"contents\":[{\"role\":\"USER\",\"parts\":[{\"text\":\"hi\"}]},"
        "{\"role\":\"MODEL\",\"parts\":[{\"text\":\"Hello\"},{\"text\":"
        "\" there\"}]}]}"
    };

    (void) state;

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    feed_text(&res,
        DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"hm\","
        "\"thought\":true},{\"text\":\"Hel\"}],\"role\":\"model\"}}]}\n\n"
        DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"lo th\"}"
        "],\"role\":\"model\"}}]}\n\n"
        DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"ere\"}"
        "],\"role\":\"model\"},\"finishReason\":\"STOP\"}]}\n\n");

    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest), KX_OK);
    kx_message_id(id, digest);

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        understand(bodies[i]);

        assert_int_equal(n, 2);
        assert_false(cv.user_turn);
        assert_said(0, KX_ROLE_USER, "hi");
        assert_said(1, KX_ROLE_ASSISTANT, "Hello there");
        assert_memory_equal(messages[1].id.data, id, KX_MESSAGE_ID_LEN);
    }
}


static void
test_turns(void **state)
{
    char    body[1024];
    size_t  i;

    static const struct {
        const char  *contents;
        unsigned     turn;
        unsigned     kept;
    } cases[] = {
        { "[]", 0, 0 },
        { "[{\"parts\":[{\"text\":\"hi\"}]}]", 1, 1 },
        { "[{\"parts\":[{\"text\":\"hi\"}],\"role\":null}]", 1, 1 },
        { "[{\"parts\":[{\"text\":\"hi\"}],\"r\\u006fle\":\"us\\u0065r\"}]",
          1, 1 },
        { "[{\"parts\":[{\"text\":\"hi\"}],\"role\":\"USER\"}]", 1, 1 },
        { "[{\"parts\":[{\"text\":\"hi\"}],\"role\":\"model\"}]", 0, 1 },
        { "[{\"parts\":[{\"text\":\"hi\"}],\"role\":\"function\"}]", 0, 0 },
        { "[{\"parts\":[{\"text\":\"hi\"}],\"role\":7}]", 0, 0 },
        { "[{\"parts\":[{\"text\":\"hi\"}],\"role\":[\"user\"]}]", 0, 0 },
        { "[{\"parts\":[{\"text\":\" \"}]}]", 0, 0 },
        { "[{\"parts\":[{\"text\":7}]}]", 0, 0 },
        { "[{\"parts\":[{\"text\":\"hm\",\"thought\":true}]}]", 0, 0 },
        { "[{\"parts\":[7,null,[],\"hi\"]}]", 0, 0 },
        { "[{\"parts\":{\"text\":\"hi\"}}]", 0, 0 },
        { "[{\"parts\":\"hi\"}]", 0, 0 },
        { "[{}]", 0, 0 },

        /* the result of a function is no turn, text beside it is */

        { "[{\"parts\":[{\"text\":\"hi\"}]},{\"role\":\"model\",\"parts\":"
          "[{\"functionCall\":{\"name\":\"f\"}}]},{\"role\":\"user\","
          "\"parts\":[{\"functionResponse\":{\"name\":\"f\",\"response\":"
          "{\"text\":\"no\"}}}]}]", 0, 1 },
        { "[{\"parts\":[{\"functionResponse\":{}},{\"text\":\"hi\"}]}]", 1,
          1 },

        /* one message of the model, two of the user */

        { "[{\"parts\":[{\"text\":\"a\"}]},{\"parts\":[{\"text\":\"b\"}]},"
          "{\"role\":\"model\",\"parts\":[{\"text\":\"c\"}]},{\"role\":"
          "\"model\",\"parts\":[{\"text\":\"d\"}]},{\"parts\":[{\"text\":"
          "\"e\"}]}]", 1, 4 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{\"contents\":%s}", cases[i].contents);

        understand(body);

        if (cv.user_turn != cases[i].turn || n != cases[i].kept) {
            fail_msg("%s: %u %u", cases[i].contents, cv.user_turn, n);
        }
    }
}


static void
test_user_text(void **state)
{
    (void) state;

    understand("{\"contents\":[{\"role\":\"user\",\"parts\":["
               "{\"text\":\"a\\ud83d\"},{\"inlineData\":{\"data\":\"AA\"}},"
               "{\"text\":\"\\ude80\",\"text\":\"b\"},"
               "{\"text\":\"hm\",\"thought\":true},{\"text\":\"c\\ud83d\"}]}]"
               "}");

    assert_int_equal(n, 1);
    assert_said(0, KX_ROLE_USER, "a\xef\xbf\xbd\nb\nc\xef\xbf\xbd");
}


static void
test_modes(void **state)
{
    char    body[1024];
    size_t  i;

    static const struct {
        const char  *member;
        unsigned     json_mode;
        unsigned     forced_tools;
        unsigned     choices;
    } cases[] = {
        { "\"generationConfig\":null", 0, 0, 1 },
        { "\"generationConfig\":[]", 0, 0, 1 },
        { "\"generationConfig\":{}", 0, 0, 1 },
        { "\"generationConfig\":{\"responseMimeType\":\"text/plain\"}",
          0, 0, 1 },
        { "\"generationConfig\":{\"responseMimeType\":\"\"}", 0, 0, 1 },
        { "\"generationConfig\":{\"responseMimeType\":null}", 0, 0, 1 },
        { "\"generationConfig\":{\"responseMimeType\":7}", 0, 0, 1 },
        { "\"generationConfig\":{\"responseMimeType\":\"application/json\"}",
          1, 0, 1 },
        { "\"generation_config\":{\"response_mime_type\":\"text/x.enum\"}",
          1, 0, 1 },
        { "\"generationConfig\":{\"responseSchema\":{}}", 1, 0, 1 },
        { "\"generationConfig\":{\"response_schema\":{}}", 1, 0, 1 },
        { "\"generationConfig\":{\"responseJsonSchema\":{}}", 1, 0, 1 },
        { "\"generationConfig\":{\"response_json_schema\":{}}", 1, 0, 1 },
        { "\"generationConfig\":{\"responseSchema\":null}", 0, 0, 1 },
        { "\"generationConfig\":{\"responseFormat\":[{\"audio\":{}},7,"
          "{\"text\":{\"mimeType\":\"application/json\"}}]}", 1, 0, 1 },
        { "\"generationConfig\":{\"response_format\":[{\"text\":"
          "{\"schema\":{}}}]}", 1, 0, 1 },
        { "\"generationConfig\":{\"responseFormat\":[{\"text\":"
          "{\"mime_type\":\"text/plain\"}},{\"text\":7},{}]}", 0, 0, 1 },
        { "\"generationConfig\":{\"responseFormat\":{}}", 0, 0, 1 },
        { "\"generationConfig\":{\"candidateCount\":1}", 0, 0, 1 },
        { "\"generationConfig\":{\"candidate_count\":3}", 0, 0, 3 },
        { "\"generationConfig\":{\"candidateCount\":128}", 0, 0, 128 },
        { "\"generationConfig\":{\"candidateCount\":129}", 0, 0, 1 },
        { "\"generationConfig\":{\"candidateCount\":0}", 0, 0, 1 },
        { "\"generationConfig\":{\"candidateCount\":-2}", 0, 0, 1 },
        { "\"generationConfig\":{\"candidateCount\":\"2\"}", 0, 0, 1 },
        { "\"toolConfig\":{\"functionCallingConfig\":{\"mode\":\"ANY\"}}",
          0, 1, 1 },
        { "\"tool_config\":{\"function_calling_config\":{\"allowed\":[],"
          "\"mode\":\"ANY\"}}", 0, 1, 1 },
        { "\"toolConfig\":{\"functionCallingConfig\":{\"mode\":\"AUTO\"}}",
          0, 0, 1 },
        { "\"toolConfig\":{\"functionCallingConfig\":{\"mode\":7}}",
          0, 0, 1 },
        { "\"toolConfig\":{\"functionCallingConfig\":[]}", 0, 0, 1 },
        { "\"toolConfig\":{\"mode\":\"ANY\"}", 0, 0, 1 },
        { "\"toolConfig\":7", 0, 0, 1 },
        { "\"tools\":[{\"functionDeclarations\":[]}]", 0, 0, 1 },
        { "\"responseMimeType\":\"application/json\"", 0, 0, 1 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{%s,\"contents\":[]}",
                 cases[i].member);

        understand(body);

        if (cv.json_mode != cases[i].json_mode
            || cv.forced_tools != cases[i].forced_tools
            || cv.choices != cases[i].choices)
        {
            fail_msg("%s: %u %u %u", cases[i].member, cv.json_mode,
                     cv.forced_tools, cv.choices);
        }
    }
}


static void
test_labels(void **state)
{
    (void) state;

    understand("{\"labels\":{\"user_id\":\"u-1\",\"chat_id\":\"c-9\"}}");

    assert_int_equal(cv.user.value.len, 3);
    assert_memory_equal(cv.user.value.data, "u-1", 3);
    assert_int_equal(cv.conversation.value.len, 3);
    assert_memory_equal(cv.conversation.value.data, "c-9", 3);

    /* nothing else in a body says who talks */

    understand("{\"user\":\"u-1\",\"id\":\"c-9\",\"labels\":[\"user_id\"]}");

    assert_int_equal(cv.user.rank, KX_IDENTITY_NONE);
    assert_int_equal(cv.conversation.rank, KX_IDENTITY_NONE);
}


static void
test_last_contents_win(void **state)
{
    (void) state;

    understand("{\"contents\":[{\"parts\":[{\"text\":\"a\"}]}],"
               "\"contents\":[{\"parts\":[{\"text\":\"b\"}]},"
               "{\"role\":\"model\",\"parts\":[{\"text\":\"c\"}]}]}");
    assert_int_equal(n, 2);
    assert_false(cv.user_turn);
    assert_said(0, KX_ROLE_USER, "b");

    understand("{\"contents\":[{\"parts\":[{\"text\":\"a\"}]}],"
               "\"contents\":null}");
    assert_int_equal(n, 0);
    assert_false(cv.has_messages);
    assert_false(cv.user_turn);
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
        "\"contents\"",
        "{",
        "{\"contents\":[}",
        "{\"contents\":[{\"role\":}]}",
        "{\"contents\":[\"hi\"]}",
        "{\"contents\":[{},7]}",
        "{\"contents\":[null]}",
        "{\"contents\":[]}x"
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
    memcpy(deep, "{\"contents\":[{\"parts\":", 22);
    deep[len] = '\0';
    assert_int_equal(scan(deep), KX_REASON_BAD_BODY);
    free(deep);

    /* cut anywhere, in memory of just that size */

    p = chat_sample("gemini.request.json", &len);

    while (len && p[len - 1] != '}') {
        len--;
    }

    for (i = 0; i < len; i++) {
        copy = malloc(i ? i : 1);
        assert_non_null(copy);
        memcpy(copy, p, i);
        assert_int_equal(scan_len(STREAM, copy, i), KX_REASON_BAD_BODY);
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

    /* in the middle, where a message is told by the next one */

    assert_int_equal(scan("{\"contents\":[{\"parts\":[{\"text\":\"a\"}]},"
                          "{\"parts\":[{\"text\":\"b\"}]}]}"),
                     KX_REASON_NO_MEMORY);
}


/* cut anywhere, in memory of just that size: the input goes on unchanged */

static void
test_truncated_answers(void **state)
{
    size_t          i, k, len;
    kx_form_e       form;
    chat_result_t   res;
    unsigned char  *copy;

    static const struct {
        kx_framing_e   framing;
        const char    *text;
    } cases[] = {
        { KX_FRAMING_SSE,
          DATA "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\\n\"}"
          "],\"role\":\"model\"},\"finishReason\":\"STOP\",\"index\":0}],"
          "\"usageMetadata\":{\"a\":1},\"modelVersion\":\"m\"}\r\n\r\n" },
        { KX_FRAMING_ARRAY,
          "[{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\\n\"}"
          "],\"role\":\"model\"},\"finishReason\":\"STOP\",\"index\":0}],"
          "\"usageMetadata\":{\"a\":1},\"modelVersion\":\"m\"}]" },
        { KX_FRAMING_WHOLE,
          "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\\n\"}"
          "],\"role\":\"model\"},\"finishReason\":\"STOP\",\"index\":0}],"
          "\"usageMetadata\":{\"a\":1},\"modelVersion\":\"m\"}" }
    };

    (void) state;

    for (k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
        len = strlen(cases[k].text);

        while (cases[k].text[len - 1] != '}') {
            len--;
        }

        for (i = 0; i < len; i++) {
            copy = malloc(i ? i : 1);
            assert_non_null(copy);
            memcpy(copy, cases[k].text, i);

            for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {
                start(cases[k].framing, form);
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
}


static void
test_paths(void **state)
{
    size_t    i;
    kx_str_t  path;

    static const struct {
        const char  *path;
        int          rc;
        unsigned     stream;
    } cases[] = {
        { STREAM, KX_OK, 1 },
        { WHOLE, KX_OK, 0 },
        { "/v1/models/gemini-2.5-flash:streamGenerateContent", KX_OK, 1 },
        { "/v1/projects/p/locations/l/publishers/google/models/m"
          ":streamGenerateContent", KX_OK, 1 },
        { "/v1/projects/p/locations/l/publishers/google/models/m"
          ":generateContent", KX_OK, 0 },
        { "/v1beta/models/m:countTokens", KX_DECLINED, 0 },
        { "/v1beta/models/m:batchGenerateContent", KX_DECLINED, 0 },
        { "/v1beta/models/streamGenerateContent", KX_DECLINED, 0 },
        { "/v1beta/models/m:streamGenerateContent/", KX_DECLINED, 0 },
        { "/v1/chat/completions", KX_DECLINED, 0 },
        { ":generateConten", KX_DECLINED, 0 },
        { "", KX_DECLINED, 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        path.data = (unsigned char *) cases[i].path;
        path.len = strlen(cases[i].path);

        kx_conversation_init(&cv, &kx_gemini, &path, key, &pool);

        if (kx_gemini.path(&path) != cases[i].rc
            || cv.stream != cases[i].stream)
        {
            fail_msg("%s: %d %u", cases[i].path, kx_gemini.path(&path),
                     cv.stream);
        }
    }

    path.data = (unsigned char *) STREAM;
    path.len = sizeof(STREAM) - 1;

    assert_ptr_equal(kx_dialect_by_path(&path), &kx_gemini);
    assert_ptr_equal(kx_dialect_by_name((unsigned char *) "gemini", 6),
                     &kx_gemini);

    path.len = 1;

    assert_ptr_equal(kx_dialect_by_body(&path, (unsigned char *) HI,
                                        sizeof(HI) - 1),
                     &kx_gemini);
}


/* they have contents, too */

static void
test_other_methods_are_no_chat(void **state)
{
    size_t  i;

    static const char *const  paths[] = {
        "/v1beta/models/m:countTokens",
        "/v1/projects/p/locations/l/publishers/google/models/m"
            ":computeTokens",
        "/v1beta/cachedContents"
    };

    (void) state;

    for (i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        assert_int_equal(scan_len(paths[i], (unsigned char *) HI,
                                  sizeof(HI) - 1),
                         KX_REASON_BAD_BODY);
    }

    assert_int_equal(scan_len("/gemini", (unsigned char *) HI,
                              sizeof(HI) - 1),
                     KX_REASON_NONE);
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
        { "{\"contents\":[]}", 1 },
        { "{\"c\\u006fntents\":[]}", 1 },
        { "{\"contents\":{}}", 0 },
        { "{\"contents\":\"hi\"}", 0 },
        { "{\"messages\":[],\"model\":\"m\"}", 0 },
        { "{}", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(kx_members_read(&members,
                                         (unsigned char *) cases[i].body,
                                         strlen(cases[i].body)),
                         KX_OK);

        if (kx_gemini.body(&members) != cases[i].ours) {
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
        cmocka_unit_test_teardown(test_sample_tools, teardown),
        cmocka_unit_test_teardown(test_places, teardown),
        cmocka_unit_test_teardown(test_no_place, teardown),
        cmocka_unit_test_teardown(test_refusals, teardown),
        cmocka_unit_test_teardown(test_no_marker, teardown),
        cmocka_unit_test_teardown(test_array_errors, teardown),
        cmocka_unit_test_teardown(test_deep_answer, teardown),
        cmocka_unit_test_teardown(test_marker_comes_once, teardown),
        cmocka_unit_test_teardown(test_two_candidates_asked_for, teardown),
        cmocka_unit_test_teardown(test_response_id_is_kept_once, teardown),
        cmocka_unit_test_teardown(test_answer_text, teardown),
        cmocka_unit_test_teardown(test_answer_comes_back_with_its_id,
                                  teardown),
        cmocka_unit_test_teardown(test_turns, teardown),
        cmocka_unit_test_teardown(test_user_text, teardown),
        cmocka_unit_test_teardown(test_modes, teardown),
        cmocka_unit_test_teardown(test_labels, teardown),
        cmocka_unit_test_teardown(test_last_contents_win, teardown),
        cmocka_unit_test_teardown(test_bad_requests, teardown),
        cmocka_unit_test_teardown(test_no_memory, teardown),
        cmocka_unit_test_teardown(test_truncated_answers, teardown),
        cmocka_unit_test_teardown(test_paths, teardown),
        cmocka_unit_test_teardown(test_other_methods_are_no_chat, teardown),
        cmocka_unit_test_teardown(test_bodies, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
