/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is understood of OpenAI Responses, and where an ad goes in them
 * (chat-apis.md 5, 10 to 13).
 */


#include "chat.h"


#include <cjson/cJSON.h>


#define ANY_PATH   "/v1/responses"

#define ADDED(index, item)                                                    \
    "data: {\"type\":\"response.output_item.added\",\"output_index\":" index  \
    ",\"item\":" item "}\n\n"

#define DONE(index, item)                                                     \
    "data: {\"type\":\"response.output_item.done\",\"output_index\":" index   \
    ",\"item\":" item "}\n\n"

#define DELTA(index, part, text)                                              \
    "data: {\"type\":\"response.output_text.delta\",\"output_index\":" index  \
    ",\"content_index\":" part ",\"delta\":" text "}\n\n"

#define MESSAGE    "{\"id\":\"m\",\"type\":\"message\"}"
#define SAID       MESSAGE_WITH("{\"type\":\"output_text\",\"text\":\"a\"}")
#define COMPLETED  "data: {\"type\":\"response.completed\",\"response\":"     \
                   "{\"output\":[]}}\n\n"

#define MESSAGE_WITH(part)                                                    \
    "{\"type\":\"message\",\"content\":[" part "]}"


static chat_t             chat;
static kx_message_t       messages[KX_MAX_MESSAGES];
static unsigned           nmessages;

static const unsigned char  key[] = "0123456789abcdef";


static void
start(kx_framing_e framing, kx_form_e form)
{
    chat_start(&chat, &kx_openai_responses, ANY_PATH, "{}", framing, form);
}


static void
feed_text(chat_result_t *res, const char *stream)
{
    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    chat_feed_text(&chat, res, stream);
    chat_result_free(res);
}


static void
feed_whole(chat_result_t *res, const char *body)
{
    start(KX_FRAMING_WHOLE, KX_FORM_MEMBER);
    chat_feed_text(&chat, res, body);
    chat_result_free(res);
}


/* takes what was put in out of it again */

static void
strip(chat_result_t *res)
{
    char           *at, *from;
    size_t          n;
    unsigned        i;
    kx_str_t        s;
    kx_place_t     *place;

    from = (char *) res->out;

    for (i = 0; i < chat.answer.nplaces; i++) {
        place = &chat.answer.places[i];

        s.len = place->before.len + sizeof(CHAT_PAYLOAD) - 1
                + place->after.len;
        s.data = malloc(s.len + 1);
        assert_non_null(s.data);

        n = place->before.len;

        memcpy(s.data, place->before.data, n);
        memcpy(s.data + n, CHAT_PAYLOAD, sizeof(CHAT_PAYLOAD) - 1);
        n += sizeof(CHAT_PAYLOAD) - 1;
        memcpy(s.data + n, place->after.data, place->after.len);
        s.data[s.len] = '\0';

        at = strstr(from, (char *) s.data);
        assert_non_null(at);

        n = (size_t) ((char *) res->out + res->len - (at + s.len));
        memmove(at, at + s.len, n + 1);
        res->len -= s.len;

        from = at;
        free(s.data);
    }
}


/* LF to CRLF; release it */

static unsigned char *
crlf(const unsigned char *p, size_t *len)
{
    size_t          i, n;
    unsigned char  *out;

    out = malloc(*len * 2);
    assert_non_null(out);

    for (i = 0, n = 0; i < *len; i++) {

        if (p[i] == '\n') {
            out[n++] = '\r';
        }

        out[n++] = p[i];
    }

    *len = n;

    return out;
}


static void
check_sample(const char *name, const unsigned char *p, size_t len,
    kx_form_e form, unsigned frames, unsigned finish, kx_reason_e refused)
{
    cJSON          *root;
    const char     *text, *id;
    const cJSON    *record;
    chat_result_t   res;

    start(KX_FRAMING_SSE, form);
    chat_feed(&chat, &res, p, len);

    if (res.frames != frames || res.finish != finish
        || res.finishes != (finish != 0) || res.refused != refused)
    {
        fail_msg("%s: frames %u, finish %u, refused %d", name, res.frames,
                 res.finish, res.refused);
    }

    if (finish) {
        assert_int_equal(res.places, KX_OK);
        assert_int_equal(chat.answer.nplaces,
                         form == KX_FORM_MEMBER ? 1 : 5);
        assert_true(res.len > len);
    }

    strip(&res);
    assert_int_equal(res.len, len);
    assert_memory_equal(res.out, p, len);
    chat_result_free(&res);

    record = chat_expected(name, &root);

    id = chat_string(record, "id");
    assert_int_equal(chat.answer.response_id.len, strlen(id));
    assert_memory_equal(chat.answer.response_id.data, id, strlen(id));

    /* the native id is not sent back by all clients */

    assert_int_equal(chat.answer.message_id.len, 0);

    text = chat_string(record, "text");

    if (text[0]) {
        chat_assert_text(&chat, text);
    }

    cJSON_Delete(root);
}


static void
test_sample_streams_are_understood_and_stay_whole(void **state)
{
    size_t          i, len, n;
    kx_form_e       form;
    unsigned char  *p, *q;

    static const struct {
        const char   *name;
        unsigned      frames;
        unsigned      finish;
        kx_reason_e   refused;
    } cases[] = {
        { "openai-responses.sse", 194, 194, KX_REASON_NONE },
        { "openai-responses-tools.sse", 80, 80, KX_REASON_TOOL_CALLS },
        { "openai-responses-failed.sse", 71, 0, KX_REASON_ERROR_FRAME }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        p = chat_sample(cases[i].name, &len);

        n = len;
        q = crlf(p, &n);

        for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {
            check_sample(cases[i].name, p, len, form, cases[i].frames,
                         cases[i].finish, cases[i].refused);
            check_sample(cases[i].name, q, n, form, cases[i].frames,
                         cases[i].finish, cases[i].refused);
        }

        free(q);
        free(p);
    }
}


static void
test_sample_stream_takes_the_member_inside_its_response(void **state)
{
    size_t          len;
    chat_result_t   res;
    unsigned char  *p;

    (void) state;

    p = chat_sample("openai-responses.sse", &len);

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    chat_feed(&chat, &res, p, len);

    assert_non_null(strstr((char *) res.out,
                           "\"user\":null,\"metadata\":{},\"kontext\":PAYLOAD}"
                           ",\"sequence_number\":193}\n\n"));

    chat_result_free(&res);
    free(p);
}


/* what a client that puts the events together comes to */

static void
test_sample_stream_takes_the_text_as_an_item(void **state)
{
    char           *p, *end, *line;
    cJSON          *event, *item, *output;
    size_t          len;
    unsigned        seen;
    const char     *type;
    chat_result_t   res;
    unsigned char  *sample;

    (void) state;

    sample = chat_sample("openai-responses.sse", &len);

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    chat_feed(&chat, &res, sample, len);
    free(sample);

    seen = 0;
    p = strstr((char *) res.out, "msg_kontext");
    assert_non_null(p);

    while (p > (char *) res.out && strncmp(p, "event: ", 7) != 0) {
        p--;
    }

    while (*p) {
        line = strstr(p, "\ndata: ");
        end = strstr(p, "\n\n");
        assert_non_null(line);
        assert_non_null(end);

        *line = '\0';
        *end = '\0';

        event = cJSON_Parse(line + 7);
        assert_non_null(event);

        type = chat_string(event, "type");
        assert_string_equal(p + 7, type);

        assert_int_equal(cJSON_GetObjectItemCaseSensitive(event,
                             "sequence_number")->valueint, 193);

        if (strcmp(type, "response.completed") == 0) {
            output = cJSON_GetObjectItemCaseSensitive(event, "response");
            output = cJSON_GetObjectItemCaseSensitive(output, "output");

            assert_int_equal(cJSON_GetArraySize(output), 3);

            item = cJSON_GetArrayItem(output, 2);
            assert_string_equal(chat_string(item, "role"), "assistant");
            assert_string_equal(chat_string(item, "status"), "completed");
            assert_string_equal(chat_string(item, "id"),
                                "msg_kontext_0f6b1c9d2a7e48350069212e90c4d881"
                                "93a5b7e6f1d2c3b4a5");

            item = cJSON_GetObjectItemCaseSensitive(item, "content");
            item = cJSON_GetArrayItem(item, 0);
            assert_string_equal(chat_string(item, "text"), CHAT_PAYLOAD);

        } else {
            assert_int_equal(cJSON_GetObjectItemCaseSensitive(event,
                                 "output_index")->valueint, 2);
        }

        cJSON_Delete(event);
        seen++;
        p = end + 2;
    }

    assert_int_equal(seen, 7);
    chat_result_free(&res);
}


static void
test_sample_answer_in_one_piece(void **state)
{
    cJSON          *root;
    size_t          len;
    kx_form_e       form;
    const char     *id;
    const cJSON    *record;
    chat_result_t   res;
    unsigned char  *p;

    (void) state;

    p = chat_sample("openai-responses.response.json", &len);
    record = chat_expected("openai-responses.sse", &root);

    for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {
        start(KX_FRAMING_WHOLE, form);
        chat_feed(&chat, &res, p, len);

        assert_int_equal(res.finish, 1);
        assert_int_equal(res.refused, KX_REASON_NONE);
        assert_int_equal(res.places, KX_OK);
        assert_int_equal(chat.answer.nplaces, 1);

        assert_non_null(strstr((char *) res.out,
                               form == KX_FORM_MEMBER
                               ? ",\"metadata\":{},\"kontext\":PAYLOAD}"
                               : "\"text\":\"PAYLOAD\"}],\"role\":"
                                 "\"assistant\"}],\"parallel_tool_calls\""));

        strip(&res);
        assert_int_equal(res.len, len);
        assert_memory_equal(res.out, p, len);
        chat_result_free(&res);

        chat_assert_text(&chat, chat_string(record, "text"));

        id = chat_string(record, "id");
        assert_int_equal(chat.answer.response_id.len, strlen(id));
        assert_memory_equal(chat.answer.response_id.data, id, strlen(id));
    }

    cJSON_Delete(root);
    free(p);
}


static void
test_places_of_a_member(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
        const char   *out;
    } cases[] = {

        { KX_FRAMING_SSE,
          "data: {\"type\":\"response.completed\",\"response\":{\"a\":\"}\","
          "\"b\":{\"c\":[{}]} } , \"sequence_number\":7}\r\n\r\n",
          "data: {\"type\":\"response.completed\",\"response\":{\"a\":\"}\","
          "\"b\":{\"c\":[{}]} ,\"kontext\":PAYLOAD} , \"sequence_number\":7}"
          "\r\n\r\n" },

        { KX_FRAMING_SSE,
          "data: {\"response\":{},\"type\":\"response.completed\"}\n\n",
          "data: {\"response\":{\"kontext\":PAYLOAD},"
          "\"type\":\"response.completed\"}\n\n" },

        /* as in JavaScript, the last one of a name counts */

        { KX_FRAMING_SSE,
          "data: {\"type\":\"x\",\"response\":{\"a\":1},\"response\":"
          "{\"b\":2},\"type\":\"response.completed\"}\n\n",
          "data: {\"type\":\"x\",\"response\":{\"a\":1},\"response\":"
          "{\"b\":2,\"kontext\":PAYLOAD},\"type\":\"response.completed\"}"
          "\n\n" },

        /* the last one of several data lines */

        { KX_FRAMING_SSE,
          "data: {\"type\":\"response.completed\",\n"
          "data: \"response\":{\"a\":1}}\n\n",
          "data: {\"type\":\"response.completed\",\n"
          "data: \"response\":{\"a\":1,\"kontext\":PAYLOAD}}\n\n" },

        { KX_FRAMING_SSE,
          "data: {\"type\":\"response.incomplete\",\"response\":{"
          "\"incomplete_details\":{\"reason\":\"max_output_tokens\"}}}\n\n",
          "data: {\"type\":\"response.incomplete\",\"response\":{"
          "\"incomplete_details\":{\"reason\":\"max_output_tokens\"},"
          "\"kontext\":PAYLOAD}}\n\n" },

        { KX_FRAMING_WHOLE,
          " {\"output\":[],\"output_text\":\"a\" }\n",
          " {\"output\":[],\"output_text\":\"a\" ,\"kontext\":PAYLOAD}\n" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, KX_FORM_MEMBER);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.refused, KX_REASON_NONE);
        assert_int_equal(res.places, KX_OK);
        assert_string_equal((char *) res.out, cases[i].out);
        chat_result_free(&res);
    }
}


static void
test_places_of_a_text(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
        const char   *out;
    } cases[] = {

        { KX_FRAMING_SSE,
          "data: {\"type\":\"response.created\",\"response\":{\"id\":"
          "\"resp_1.a\"}}\r\n\r\n"
          "data: {\"type\":\"response.output_item.added\",\"output_index\":8,"
          "\"item\":{\"type\":\"message\"}}\r\n\r\n"
          "data: {\"type\":\"response.completed\",\"response\":{\"output\":["
          "{\"a\":[]} ]},\"sequence_number\":40}\r\n\r\n",

          "data: {\"type\":\"response.created\",\"response\":{\"id\":"
          "\"resp_1.a\"}}\r\n\r\n"
          "data: {\"type\":\"response.output_item.added\",\"output_index\":8,"
          "\"item\":{\"type\":\"message\"}}\r\n\r\n"

          "event: response.output_item.added\r\n"
          "data: {\"type\":\"response.output_item.added\",\"output_index\":9,"
          "\"item\":{\"id\":\"msg_kontext_1_a\",\"type\":\"message\","
          "\"status\":\"in_progress\",\"content\":[],\"role\":\"assistant\"},"
          "\"sequence_number\":40}\r\n\r\n"

          "event: response.content_part.added\r\n"
          "data: {\"type\":\"response.content_part.added\","
          "\"item_id\":\"msg_kontext_1_a\",\"output_index\":9,"
          "\"content_index\":0,\"part\":{\"type\":\"output_text\","
          "\"annotations\":[],\"logprobs\":[],\"text\":\"\"},"
          "\"sequence_number\":40}\r\n\r\n"

          "event: response.output_text.delta\r\n"
          "data: {\"type\":\"response.output_text.delta\","
          "\"item_id\":\"msg_kontext_1_a\",\"output_index\":9,"
          "\"content_index\":0,\"delta\":\"PAYLOAD\",\"logprobs\":[],"
          "\"sequence_number\":40}\r\n\r\n"

          "event: response.output_text.done\r\n"
          "data: {\"type\":\"response.output_text.done\","
          "\"item_id\":\"msg_kontext_1_a\",\"output_index\":9,"
          "\"content_index\":0,\"text\":\"PAYLOAD\",\"logprobs\":[],"
          "\"sequence_number\":40}\r\n\r\n"

          "event: response.content_part.done\r\n"
          "data: {\"type\":\"response.content_part.done\","
          "\"item_id\":\"msg_kontext_1_a\",\"output_index\":9,"
          "\"content_index\":0,\"part\":{\"type\":\"output_text\","
          "\"annotations\":[],\"logprobs\":[],\"text\":\"PAYLOAD\"},"
          "\"sequence_number\":40}\r\n\r\n"

          "event: response.output_item.done\r\n"
          "data: {\"type\":\"response.output_item.done\",\"output_index\":9,"
          "\"item\":{\"id\":\"msg_kontext_1_a\",\"type\":\"message\","
          "\"status\":\"completed\",\"content\":[{\"type\":\"output_text\","
          "\"annotations\":[],\"logprobs\":[],\"text\":\"PAYLOAD\"}],"
          "\"role\":\"assistant\"},\"sequence_number\":40}\r\n\r\n"

          "data: {\"type\":\"response.completed\",\"response\":{\"output\":["
          "{\"a\":[]} ,{\"id\":\"msg_kontext_1_a\",\"type\":\"message\","
          "\"status\":\"completed\",\"content\":[{\"type\":\"output_text\","
          "\"annotations\":[],\"logprobs\":[],\"text\":\"PAYLOAD\"}],"
          "\"role\":\"assistant\"}]},\"sequence_number\":40}\r\n\r\n" },

        /*
         * No ids, no numbers but what is none, and no items at the end: an ad
         * there would pass for all of the answer.
         */

        { KX_FRAMING_SSE,
          "data: {\"type\":\"response.completed\",\"response\":{\"output\":[]"
          "},\"sequence_number\":\"4\"}\n\n",

          "event: response.output_item.added\n"
          "data: {\"type\":\"response.output_item.added\",\"output_index\":0,"
          "\"item\":{\"id\":\"msg_kontext\",\"type\":\"message\","
          "\"status\":\"in_progress\",\"content\":[],\"role\":\"assistant\"}}"
          "\n\n"

          "event: response.content_part.added\n"
          "data: {\"type\":\"response.content_part.added\","
          "\"item_id\":\"msg_kontext\",\"output_index\":0,"
          "\"content_index\":0,\"part\":{\"type\":\"output_text\","
          "\"annotations\":[],\"logprobs\":[],\"text\":\"\"}}\n\n"

          "event: response.output_text.delta\n"
          "data: {\"type\":\"response.output_text.delta\","
          "\"item_id\":\"msg_kontext\",\"output_index\":0,"
          "\"content_index\":0,\"delta\":\"PAYLOAD\",\"logprobs\":[]}\n\n"

          "event: response.output_text.done\n"
          "data: {\"type\":\"response.output_text.done\","
          "\"item_id\":\"msg_kontext\",\"output_index\":0,"
          "\"content_index\":0,\"text\":\"PAYLOAD\",\"logprobs\":[]}\n\n"

          "event: response.content_part.done\n"
          "data: {\"type\":\"response.content_part.done\","
          "\"item_id\":\"msg_kontext\",\"output_index\":0,"
          "\"content_index\":0,\"part\":{\"type\":\"output_text\","
          "\"annotations\":[],\"logprobs\":[],\"text\":\"PAYLOAD\"}}\n\n"

          "event: response.output_item.done\n"
          "data: {\"type\":\"response.output_item.done\",\"output_index\":0,"
          "\"item\":{\"id\":\"msg_kontext\",\"type\":\"message\","
          "\"status\":\"completed\",\"content\":[{\"type\":\"output_text\","
          "\"annotations\":[],\"logprobs\":[],\"text\":\"PAYLOAD\"}],"
          "\"role\":\"assistant\"}}\n\n"

          "data: {\"type\":\"response.completed\",\"response\":{\"output\":[]"
          "},\"sequence_number\":\"4\"}\n\n" },

        { KX_FRAMING_WHOLE,
          "{\"id\":\"r\",\"output\":[" SAID "],\"output_text\":\"a\"}",
          "{\"id\":\"r\",\"output\":[" SAID ",{\"id\":\"msg_kontext_r\","
          "\"type\":\"message\",\"status\":\"completed\",\"content\":[{"
          "\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],"
          "\"text\":\"PAYLOAD\"}],\"role\":\"assistant\"}],"
          "\"output_text\":\"a\"}" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, KX_FORM_TEXT);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.refused, KX_REASON_NONE);
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

        /* which index is free? */

        { KX_FRAMING_SSE, ADDED("-1", MESSAGE) COMPLETED },
        { KX_FRAMING_SSE, ADDED("1.5", MESSAGE) COMPLETED },
        { KX_FRAMING_SSE, ADDED("\"1\"", MESSAGE) COMPLETED },
        { KX_FRAMING_SSE, ADDED("null", MESSAGE) COMPLETED },
        { KX_FRAMING_SSE, ADDED("1000000", MESSAGE) COMPLETED },
        { KX_FRAMING_SSE,
          "data: {\"type\":\"response.output_item.added\",\"item\":{}}\n\n"
          COMPLETED },

        { KX_FRAMING_WHOLE, "{\"output\":[]}" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, KX_FORM_TEXT);
        chat_feed_text(&chat, &res, cases[i].in);

        assert_int_equal(res.finishes, 1);
        assert_int_equal(res.refused, KX_REASON_NONE);
        assert_int_equal(res.places, KX_DECLINED);
        assert_string_equal((char *) res.out, cases[i].in);
        chat_result_free(&res);
    }

    /* the largest index there is room for */

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    chat_feed_text(&chat, &res, ADDED("999999", MESSAGE) COMPLETED);
    assert_int_equal(res.places, KX_OK);
    assert_non_null(strstr((char *) res.out, "\"output_index\":1000000,"));
    chat_result_free(&res);
}


static void
test_ids_of_items_are_plain_and_short(void **state)
{
    char           in[2048], id[512];
    chat_result_t  res;

    (void) state;

    memset(id, 'x', sizeof(id));
    id[KX_MAX_IDENTITY] = '\0';

    snprintf(in, sizeof(in),
             "data: {\"type\":\"response.completed\",\"response\":"
             "{\"id\":\"%s\",\"output\":[]}}\n\n", id);

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    chat_feed_text(&chat, &res, in);

    id[64 - (sizeof("msg_kontext_") - 1)] = '\0';
    snprintf(in, sizeof(in), "\"item_id\":\"msg_kontext_%s\",", id);

    assert_non_null(strstr((char *) res.out, in));
    chat_result_free(&res);

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    chat_feed_text(&chat, &res,
                   "data: {\"type\":\"response.completed\",\"response\":"
                   "{\"id\":\"\\\"\\n\xe2\x80\xa8%\",\"output\":[]}}\n\n");
    assert_non_null(strstr((char *) res.out,
                           "\"item_id\":\"msg_kontext_______\","));
    chat_result_free(&res);
}


static void
test_no_memory_for_a_text(void **state)
{
    unsigned       i, last;
    chat_result_t  res;

    (void) state;

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    last = chat.memory.n;

    for (i = 1; i <= 5; i++) {
        start(KX_FRAMING_SSE, KX_FORM_TEXT);
        chat.memory.fail_at = last + i;
        chat_feed_text(&chat, &res, COMPLETED);
        chat.memory.fail_at = 0;

        assert_int_equal(res.places, KX_ERROR);
        assert_string_equal((char *) res.out, COMPLETED);
        chat_result_free(&res);
    }

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    chat.memory.fail_at = last + i;
    chat_feed_text(&chat, &res, COMPLETED);
    chat.memory.fail_at = 0;

    assert_int_equal(res.places, KX_OK);
    chat_result_free(&res);
}


/* the first len bytes of a frame */

static kx_frame_e
head(const char *frame, size_t len)
{
    kx_frame_t      fr;
    kx_frame_e      verdict;
    unsigned char  *p, *scratch;

    /* nothing behind it may be read */

    p = malloc(len);
    scratch = malloc(len);
    assert_non_null(p);
    assert_non_null(scratch);

    memcpy(p, frame, len);

    verdict = KX_FRAME_PASS;

    if (kx_frame_parse(&fr, &chat.framer, p, len, 0, scratch) == KX_OK) {
        verdict = kx_openai_responses.head(&chat.answer, &fr);
    }

    if (verdict == KX_FRAME_FINISH && chat.answer.nplaces) {
        assert_true(chat.answer.places[0].at > fr.data.data);
        assert_true(chat.answer.places[0].at <= fr.data.data + fr.data.len);

        /* from the start of the frame, which is what the tests know */

        chat.answer.places[0].at = (unsigned char *) frame
                                   + (chat.answer.places[0].at - p);
    }

    free(scratch);
    free(p);

    return verdict;
}


static void
test_beginning_of_a_large_finish(void **state)
{
    size_t        len, n;
    kx_place_t   *place;
    kx_frame_e    verdict;

    static const char  frame[] =
        "event: response.completed\n"
        "data: {\"sequence_number\":9,\"type\":\"response.completed\","
        "\"response\":{\"id\":\"r\",\"status\":\"completed\",\"error\":null,"
        "\"incomplete_details\":null,\"instructions\":\"be \\\"good\\\" and";

    static const char  opened[] = "\"response\":{\"";

    (void) state;

    n = (size_t) (strstr(frame, opened) - frame) + sizeof(opened) - 1;

    for (len = 1; len < sizeof(frame); len++) {
        start(KX_FRAMING_SSE, KX_FORM_MEMBER);
        verdict = head(frame, len);

        assert_int_equal(verdict,
                         len < n ? KX_FRAME_PASS : KX_FRAME_FINISH);
        assert_int_equal(chat.answer.refused, KX_REASON_NONE);
        assert_int_equal(chat.answer.nplaces, len < n ? 0 : 1);

        if (len < n) {
            continue;
        }

        place = &chat.answer.places[0];

        assert_ptr_equal(place->at, frame + n - 1);
        assert_int_equal(place->before.len, sizeof("\"kontext\":") - 1);
        assert_memory_equal(place->before.data, "\"kontext\":",
                            place->before.len);
        assert_int_equal(place->after.len, 1);
        assert_memory_equal(place->after.data, ",", 1);
    }

    assert_int_equal(chat.answer.response_id.len, 1);

    /* there are no places for a text, and none a second time */

    assert_int_equal(head(frame, sizeof(frame) - 1), KX_FRAME_PASS);

    start(KX_FRAMING_SSE, KX_FORM_TEXT);
    assert_int_equal(head(frame, sizeof(frame) - 1), KX_FRAME_PASS);
    assert_int_equal(chat.answer.nplaces, 0);
}


static void
test_beginnings_that_forbid(void **state)
{
    size_t         i;
    kx_frame_e     verdict;

    static const struct {
        const char   *frame;
        kx_frame_e    verdict;
        kx_reason_e   refused;
    } cases[] = {
        { "data: {\"response\":{\"id\":\"r\",\"instructions\":\"x",
          KX_FRAME_PASS, KX_REASON_NONE },
        { "data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"",
          KX_FRAME_PASS, KX_REASON_NONE },
        { "data: {\"type\":\"response.completed\",\"response\":{   ",
          KX_FRAME_PASS, KX_REASON_NONE },
        { "data: {\"type\":\"response.completed\",\"response\":{ }, \"x",
          KX_FRAME_PASS, KX_REASON_NONE },
        { "data: {\"type\":\"response.completed\",\"response\":[\"",
          KX_FRAME_PASS, KX_REASON_NONE },
        { "data: {\"type\":\"response.completed\",\"response\":{ \"id\":1",
          KX_FRAME_FINISH, KX_REASON_NONE },
        { "data: {\"type\":\"response.completed\",\"response\":{\"status\":"
          "\"cancelled\",\"a\":\"",
          KX_FRAME_FINISH, KX_REASON_FINISH_REASON },
        { "data: {\"type\":\"response.completed\",\"response\":{\"status\":"
          "\"incomplete\",\"a\":\"",
          KX_FRAME_FINISH, KX_REASON_FINISH_REASON },
        { "data: {\"type\":\"response.completed\",\"response\":{\"error\":{",
          KX_FRAME_FINISH, KX_REASON_ERROR_FRAME },
        { "data: {\"type\":\"response.incomplete\",\"response\":{\"id\":\"r",
          KX_FRAME_FINISH, KX_REASON_FINISH_REASON },
        { "data: {\"type\":\"response.incomplete\",\"response\":{"
          "\"incomplete_details\":{\"reason\":\"max_output_tokens\"},\"a\":\"",
          KX_FRAME_FINISH, KX_REASON_NONE },
        { "data: {\"type\":\"response.incomplete\",\"response\":{"
          "\"incomplete_details\":{\"reason\":\"content_filter\"},\"a\":\"",
          KX_FRAME_FINISH, KX_REASON_FINISH_REASON },
        { "data: {\"type\":\"response.failed\",\"response\":{\"id\":\"r\",",
          KX_FRAME_PASS, KX_REASON_ERROR_FRAME },
        { "event: error\ndata: [\"", KX_FRAME_PASS, KX_REASON_ERROR_FRAME },
        { "data: {\"type\":\"response.refusal.done\",\"refusal\":\"I",
          KX_FRAME_PASS, KX_REASON_REFUSAL },

        /* a list that is cut off does not say what its last item is */

        { "data: {\"type\":\"response.completed\",\"response\":{\"output\":["
          "{\"type\":\"function_call\"},{\"type\":\"mess",
          KX_FRAME_FINISH, KX_REASON_NONE },
        { "data: {\"type\":\"response.completed\",\"response\":{\"output\":["
          "{\"type\":\"function_call\"}],\"a\":\"",
          KX_FRAME_FINISH, KX_REASON_TOOL_CALLS }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(KX_FRAMING_SSE, KX_FORM_MEMBER);
        verdict = head(cases[i].frame, strlen(cases[i].frame));

        if (verdict != cases[i].verdict
            || chat.answer.refused != cases[i].refused
            || chat.answer.nplaces != (verdict == KX_FRAME_FINISH
                                       && cases[i].refused == KX_REASON_NONE))
        {
            fail_msg("%s: %d %d", cases[i].frame, verdict,
                     chat.answer.refused);
        }
    }
}


static void
test_large_frames_before_the_finish_count(void **state)
{
    chat_result_t  res;

    static const char  item[] =
        "data: {\"type\":\"response.output_item.done\",\"output_index\":3,"
        "\"item\":{\"type\":\"function_call\",\"arguments\":\"x";
    static const char  last[] =
        "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"";

    (void) state;

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    assert_int_equal(head(item, sizeof(item) - 1), KX_FRAME_PASS);
    assert_int_equal(chat.answer.refused, KX_REASON_NONE);
    assert_int_equal(head(last, sizeof(last) - 1), KX_FRAME_FINISH);
    assert_int_equal(chat.answer.refused, KX_REASON_TOOL_CALLS);
    assert_int_equal(chat.answer.nplaces, 0);

    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    assert_int_equal(head(item, sizeof(item) - 1), KX_FRAME_PASS);
    chat_feed_text(&chat, &res, ADDED("4", MESSAGE));
    chat_result_free(&res);
    assert_int_equal(head(last, sizeof(last) - 1), KX_FRAME_FINISH);
    assert_int_equal(chat.answer.refused, KX_REASON_NONE);
}


static void
test_what_forbids_an_ad_in_a_stream(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *events;
        kx_reason_e   refused;
    } cases[] = {
        { "", KX_REASON_NONE },
        { ADDED("0", "{\"type\":\"function_call\"}"), KX_REASON_TOOL_CALLS },
        { DONE("0", "{\"type\":\"function_call\"}"), KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"custom_tool_call\"}"),
          KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"computer_call\"}"), KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"local_shell_call\"}"),
          KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"shell_call\"}"), KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"apply_patch_call\"}"),
          KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"mcp_approval_request\"}"),
          KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"some_future_call\"}"),
          KX_REASON_TOOL_CALLS },
        { ADDED("0", "{\"type\":\"web_search_call\"}"), KX_REASON_NONE },
        { ADDED("0", "{\"type\":\"file_search_call\"}"), KX_REASON_NONE },
        { ADDED("0", "{\"type\":\"code_interpreter_call\"}"),
          KX_REASON_NONE },
        { ADDED("0", "{\"type\":\"image_generation_call\"}"),
          KX_REASON_NONE },
        { ADDED("0", "{\"type\":\"mcp_call\"}"), KX_REASON_NONE },
        { ADDED("0", "{\"type\":\"reasoning\"}"), KX_REASON_NONE },
        { ADDED("0", "{\"type\":\"call\"}"), KX_REASON_NONE },
        { ADDED("0", "{}") ADDED("0", "7"), KX_REASON_NONE },

        /* it is the last one that counts, the one of the highest index */

        { ADDED("0", "{\"type\":\"function_call\"}") ADDED("1", MESSAGE),
          KX_REASON_NONE },
        { ADDED("1", MESSAGE) ADDED("0", "{\"type\":\"function_call\"}"),
          KX_REASON_NONE },
        { ADDED("0", MESSAGE) ADDED("1", "{\"type\":\"function_call\"}")
          DONE("0", MESSAGE),
          KX_REASON_TOOL_CALLS },
        { ADDED("-1", "{\"type\":\"function_call\"}"), KX_REASON_TOOL_CALLS },

        { "data: {\"type\":\"response.refusal.delta\",\"delta\":\"I\"}\n\n",
          KX_REASON_REFUSAL },
        { "data: {\"type\":\"response.refusal.done\"}\n\n",
          KX_REASON_REFUSAL },
        { "data: {\"type\":\"response.failed\",\"response\":{}}\n\n",
          KX_REASON_ERROR_FRAME },
        { "data: {\"type\":\"error\",\"message\":\"x\"}\n\n",
          KX_REASON_ERROR_FRAME },
        { "event: error\ndata: x\n\n", KX_REASON_ERROR_FRAME },
        { "data: {\"error\":{\"message\":\"x\"}}\n\n",
          KX_REASON_ERROR_FRAME },
        { "data: {\"error\":null}\n\n", KX_REASON_NONE }
    };

    char  stream[4096];

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(stream, sizeof(stream), "%s" COMPLETED "data: [DONE]\n\n",
                 cases[i].events);

        feed_text(&res, stream);

        if (res.finishes != 1 || res.end != res.frames
            || res.refused != cases[i].refused)
        {
            fail_msg("%s: %u %d", cases[i].events, res.finishes, res.refused);
        }
    }
}


/* the same in the last event and in an answer in one piece */

static void
test_what_forbids_an_ad_at_the_end(void **state)
{
    char           in[4096];
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char   *response;
        kx_reason_e   refused;
    } cases[] = {
        { "", KX_REASON_NONE },
        { ",\"status\":\"completed\"", KX_REASON_NONE },
        { ",\"status\":null", KX_REASON_NONE },
        { ",\"status\":\"failed\"", KX_REASON_ERROR_FRAME },
        { ",\"status\":\"cancelled\"", KX_REASON_FINISH_REASON },
        { ",\"error\":null", KX_REASON_NONE },
        { ",\"error\":{\"code\":\"x\"}", KX_REASON_ERROR_FRAME },
        { ",\"status\":\"incomplete\"", KX_REASON_FINISH_REASON },
        { ",\"status\":\"incomplete\",\"incomplete_details\":null",
          KX_REASON_FINISH_REASON },
        { ",\"status\":\"incomplete\",\"incomplete_details\":{\"reason\":7}",
          KX_REASON_FINISH_REASON },
        { ",\"status\":\"incomplete\",\"incomplete_details\":"
          "{\"reason\":\"max_output_tokens\"}", KX_REASON_NONE },
        { ",\"status\":\"incomplete\",\"incomplete_details\":"
          "{\"reason\":\"max_output_tokens2\"}", KX_REASON_FINISH_REASON },
        { ",\"status\":\"incomplete\",\"incomplete_details\":"
          "{\"reason\":\"content_filter\"}", KX_REASON_FINISH_REASON },
        { ",\"output\":[7,null,[],{},{\"type\":7},{\"type\":\"message\"},"
          MESSAGE_WITH("{\"type\":\"output_text\"},7,{}") "]",
          KX_REASON_NONE },
        { ",\"output\":[{\"type\":\"message\",\"content\":\"a\"}]",
          KX_REASON_NONE },
        { ",\"output\":[{\"type\":\"function_call\"}]",
          KX_REASON_TOOL_CALLS },
        { ",\"output\":[{\"type\":\"function_call\"}," SAID "]",
          KX_REASON_NONE },
        { ",\"output\":[" SAID ",{\"type\":\"web_search_call\"}]",
          KX_REASON_NONE },
        { ",\"output\":[" MESSAGE_WITH("{\"type\":\"refusal\"}") "," SAID "]",
          KX_REASON_REFUSAL }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(in, sizeof(in),
                 "data: {\"type\":\"response.completed\",\"response\":"
                 "{\"output\":[]%s}}\n\n", cases[i].response);

        feed_text(&res, in);

        if (res.finish != 1 || res.refused != cases[i].refused) {
            fail_msg("%s: %u %d", in, res.finish, res.refused);
        }

        snprintf(in, sizeof(in), "{\"output\":[]%s}", cases[i].response);

        feed_whole(&res, in);

        if (res.finish != 1 || res.refused != cases[i].refused) {
            fail_msg("%s: %u %d", in, res.finish, res.refused);
        }
    }

    feed_text(&res, "data: {\"type\":\"response.incomplete\",\"response\":"
                    "{\"status\":\"completed\"}}\n\n");
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.refused, KX_REASON_FINISH_REASON);
}


static void
test_what_is_no_finish(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const char  *streams[] = {
        "data: [DONE]\n\n",
        "data: 7\n\ndata: \"x\"\n\ndata: []\n\ndata: {}\n\n",
        "data: {\"type\":7,\"response\":{}}\n\n",
        "data: {\"type\":null,\"response\":{}}\n\n",
        "data: {\"type\":\"response.complete\",\"response\":{}}\n\n",
        "data: {\"type\":\"response.completed2\",\"response\":{}}\n\n",
        "data: {\"type\":\"response.queued\",\"response\":{}}\n\n",
        "data: {\"type\":\"response.completed\"}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":null}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":[{}]}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":{}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":{}}}\n\n",
        "event: response.completed\ndata: {\"response\":{}}\n\n",
        ": {\"type\":\"response.completed\",\"response\":{}}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":{}}\n"
    };

    static const char  *answers[] = {
        "", "7", "[]", "{}", "{\"output\":null}", "{\"output\":{}}",
        "{\"output\":[]", "{\"output\":[]}}",
        "{\"output\":[],\"status\":\"queued\"}",
        "{\"output\":[],\"status\":\"in_progress\"}"
    };

    (void) state;

    for (i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        feed_text(&res, streams[i]);

        if (res.finishes || res.refused != KX_REASON_NONE) {
            fail_msg("%s", streams[i]);
        }
    }

    for (i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
        feed_whole(&res, answers[i]);

        if (res.finishes || res.refused != KX_REASON_NONE) {
            fail_msg("%s", answers[i]);
        }
    }

    feed_whole(&res, "{\"error\":{\"message\":\"x\"}}");
    assert_int_equal(res.finishes, 0);
    assert_int_equal(res.refused, KX_REASON_ERROR_FRAME);

    feed_text(&res, COMPLETED COMPLETED);
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.finishes, 1);
}


static void
test_text_of_an_answer(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        kx_framing_e  framing;
        const char   *in;
        const char   *text;
    } cases[] = {

        /* no commentary, and only what messages say */

        { KX_FRAMING_SSE,
          ADDED("0", "{\"type\":\"message\",\"phase\":\"commentary\"}")
          ADDED("1", "{\"type\":\"reasoning\"}")
          ADDED("2", "{\"type\":\"message\",\"phase\":\"final_answer\"}")
          DELTA("0", "0", "\"x\"") DELTA("1", "0", "\"y\"")
          DELTA("2", "0", "\"a\"") DELTA("0", "0", "\"z\""),
          "a" },

        /* the index is an item's, whatever was there before */

        { KX_FRAMING_SSE,
          ADDED("7", "{\"type\":\"message\",\"phase\":\"commentary\"}")
          ADDED("7", "{\"type\":\"message\",\"phase\":null}")
          DELTA("7", "0", "\"a\""),
          "a" },

        /* the parts of a message, as in a request; messages are not joined */

        { KX_FRAMING_SSE,
          ADDED("0", MESSAGE) DELTA("0", "0", "\"a\"") DELTA("0", "0", "\"b\"")
          DELTA("0", "1", "\"c\"") DELTA("1", "0", "\"d\""),
          "ab\ncd" },

        /* as many items are told apart as there is room for */

        { KX_FRAMING_SSE,
          ADDED("1023", "{\"type\":\"reasoning\"}")
          ADDED("1024", "{\"type\":\"reasoning\"}")
          DELTA("1023", "0", "\"x\"") DELTA("1024", "0", "\"a\""),
          "a" },

        { KX_FRAMING_SSE,
          DELTA("0", "0", "\"\\ud83d\"") DELTA("0", "0", "\"\\ude00\""),
          "\xf0\x9f\x98\x80" },

        /* what is odd is not read */

        { KX_FRAMING_SSE,
          DELTA("0", "0", "7") DELTA("0", "0", "null")
          DELTA("0", "0", "[\"x\"]") DELTA("null", "-1", "\"a\"")
          DELTA("99999999999999999999", "1e5", "\"b\"")
          DELTA("1024", "0", "\"c\"")
          "data: {\"type\":\"response.output_text.delta\"}\n\n"
          "data: {\"type\":\"response.output_text.done\",\"text\":\"x\"}\n\n"
          "data: {\"type\":\"response.reasoning_text.delta\",\"delta\":\"x\"}"
          "\n\n",
          "abc" },

        { KX_FRAMING_SSE,
          "event: x\ndata: {\"delta\":\"x\",\"d\\u0065lta\":\"a\","
          "\"type\":\"response.output_text.\\u0064elta\"}\n\n",
          "a" },

        { KX_FRAMING_WHOLE,
          "{\"output\":[{\"type\":\"message\",\"phase\":\"commentary\","
          "\"content\":[{\"type\":\"output_text\",\"text\":\"x\"}]},"
          "{\"type\":\"reasoning\",\"content\":[{\"type\":\"output_text\","
          "\"text\":\"y\"}]},"
          MESSAGE_WITH("{\"type\":\"output_text\",\"text\":\"a\"},"
                       "{\"type\":\"output_text\",\"text\":\"b\"}") ","
          SAID "]}",
          "a\nba" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(cases[i].framing, KX_FORM_MEMBER);
        chat_feed_text(&chat, &res, cases[i].in);
        chat_result_free(&res);
        chat_assert_text(&chat, cases[i].text);
    }
}


static void
test_answer_without_text(void **state)
{
    kx_str_t       cid = kx_string("c-1");
    chat_result_t  res;
    unsigned char  digest[KX_ID_LEN];

    (void) state;

    feed_text(&res, ADDED("0", "{\"type\":\"message\",\"phase\":"
                               "\"commentary\"}")
                    DELTA("0", "0", "\"x\"") COMPLETED);

    assert_int_equal(res.finish, 3);
    assert_int_equal(kx_answer_digest(&chat.answer, &cid, digest),
                     KX_DECLINED);
}


static void
test_id_of_a_response(void **state)
{
    size_t         i;
    chat_result_t  res;

    static const struct {
        const char  *in;
        const char  *id;
    } cases[] = {
        { "data: {\"type\":\"response.created\",\"response\":{\"id\":\"a\"}}"
          "\n\n"
          "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"b\"}}"
          "\n\n", "a" },
        { "data: {\"type\":\"response.created\",\"response\":{\"id\":7}}\n\n"
          "data: {\"type\":\"response.completed\",\"response\":{\"id\":"
          "\"\\u0062\"}}\n\n", "b" },
        { COMPLETED, "" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        feed_text(&res, cases[i].in);

        assert_int_equal(chat.answer.response_id.len, strlen(cases[i].id));

        if (cases[i].id[0]) {
            assert_memory_equal(chat.answer.response_id.data, cases[i].id,
                                strlen(cases[i].id));
        }
    }
}


static void
test_stream_that_ends_anywhere(void **state)
{
    size_t         len, n;
    kx_form_e      form;
    chat_result_t  res;

    static const char  stream[] =
        "event: response.created\n"
        "data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n"
        ADDED("0", "{\"type\":\"message\",\"phase\":\"final_answer\"}")
        DELTA("0", "0", "\"\\u00e1\\n\"")
        DONE("0", MESSAGE_WITH("{\"type\":\"output_text\",\"text\":\"a\"}"))
        "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\","
        "\"status\":\"completed\",\"output\":[" SAID "]},"
        "\"sequence_number\":5}\n\n";

    (void) state;

    n = sizeof(stream) - 1;

    for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {

        for (len = 0; len <= n; len++) {
            start(KX_FRAMING_SSE, form);
            chat_feed(&chat, &res, (unsigned char *) stream, len);

            assert_int_equal(res.finishes, len == n);
            assert_int_equal(res.refused, KX_REASON_NONE);

            if (len) {
                strip(&res);
                assert_int_equal(res.len, len);
                assert_memory_equal(res.out, stream, len);
            }

            chat_result_free(&res);
        }
    }
}


/* each of the bytes made another one: nothing is read that is not there */

static void
test_stream_with_any_bad_byte(void **state)
{
    char           was, stream[512];
    size_t         i, j, n;
    kx_form_e      form;
    chat_result_t  res;

    static const char  bytes[] = "\"\\{}[],:0x\n";

    n = (size_t) snprintf(stream, sizeof(stream), "%s",
            ADDED("0", "{\"type\":\"message\"}") DELTA("0", "0", "\"a\"")
            "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\""
            ",\"output\":[" SAID "]},\"sequence_number\":5}\n\n");

    (void) state;

    for (form = KX_FORM_MEMBER; form <= KX_FORM_TEXT; form++) {

        for (i = 0; i < n; i++) {
            was = stream[i];

            for (j = 0; j < sizeof(bytes) - 1; j++) {
                stream[i] = bytes[j];

                start(KX_FRAMING_SSE, form);
                chat_feed(&chat, &res, (unsigned char *) stream, n);
                strip(&res);
                assert_int_equal(res.len, n);
                assert_memory_equal(res.out, stream, n);
                chat_result_free(&res);
            }

            stream[i] = was;
        }
    }
}


/* open, n times, in the middle of what is there before and after */

static char *
deep(const char *before, const char *open, unsigned n, const char *after)
{
    char    *p, *out;
    size_t   len;

    len = strlen(open);

    out = malloc(strlen(before) + n * len + strlen(after) + 1);
    assert_non_null(out);

    p = out + sprintf(out, "%s", before);

    while (n--) {
        memcpy(p, open, len);
        p += len;
    }

    strcpy(p, after);

    return out;
}


static void
test_deep_nesting_is_an_answer_without_finish(void **state)
{
    char           *p;
    kx_str_t        path = kx_string(ANY_PATH);
    chat_result_t   res;

    (void) state;

    p = deep("data: {\"type\":\"response.completed\",\"response\":{"
             "\"output\":", "[", 100000, "\n\n");
    feed_text(&res, p);
    assert_int_equal(res.finishes, 0);
    free(p);

    p = deep("data: {\"type\":\"response.completed\",\"response\":{"
             "\"output\":", "[", 100000, "");
    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    assert_int_equal(head(p, strlen(p)), KX_FRAME_FINISH);
    free(p);

    p = deep("{\"input\":", "[", 100000, "");
    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    kx_conversation_init(&chat.cv, &kx_openai_responses, &path, key,
                         &chat.pool);
    assert_int_equal(kx_conversation_scan(&chat.cv, (unsigned char *) p,
                                          strlen(p)),
                     KX_REASON_BAD_BODY);
    free(p);
}


static void
test_more_members_than_are_kept(void **state)
{
    char           *p;
    chat_result_t   res;

    (void) state;

    p = deep("data: {\"type\":\"response.completed\",\"response\":"
             "{\"status\":\"completed\"}", ",\"a\":1", 1000, "}\n\n");
    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    chat_feed_text(&chat, &res, p);
    assert_int_equal(res.finish, 1);
    assert_int_equal(res.places, KX_OK);
    strip(&res);
    assert_string_equal((char *) res.out, p);
    chat_result_free(&res);
    free(p);

    p = deep("data: {\"type\":\"response.completed\",\"response\":"
             "{\"status\":\"completed\"", ",\"a\":1", 1000, "}}\n\n");
    start(KX_FRAMING_SSE, KX_FORM_MEMBER);
    chat_feed_text(&chat, &res, p);
    assert_int_equal(res.places, KX_OK);
    assert_non_null(strstr((char *) res.out,
                           "\"a\":1,\"kontext\":PAYLOAD}}\n\n"));
    chat_result_free(&res);
    free(p);
}


/* requests */

static kx_reason_e
scan_len(const void *body, size_t len)
{
    kx_str_t  path = kx_string(ANY_PATH);

    chat_free(&chat.memory);

    chat.pool.alloc = chat_alloc;
    chat.pool.data = &chat.memory;

    kx_conversation_init(&chat.cv, &kx_openai_responses, &path, key,
                         &chat.pool);

    return kx_conversation_scan(&chat.cv, body, len);
}


static void
understand(const char *body)
{
    kx_str_t       cid = kx_string("c-1");
    kx_reason_e    reason;
    unsigned char  digest[KX_ID_LEN];

    reason = scan_len(body, strlen(body));

    if (reason != KX_REASON_NONE) {
        fail_msg("%s: %.200s", (char *) kx_reason_name(reason)->data, body);
    }

    nmessages = chat_messages(&chat.cv, &cid, messages, digest);
}


static void
assert_message(unsigned i, kx_role_e role, const char *text)
{
    assert_true(i < nmessages);
    assert_int_equal(messages[i].role, role);
    assert_int_equal(messages[i].content.len, strlen(text));
    assert_memory_equal(messages[i].content.data, text, strlen(text));
}


static void
assert_identity(const kx_identity_t *id, const char *value)
{
    assert_int_equal(id->value.len, strlen(value));

    if (value[0]) {
        assert_memory_equal(id->value.data, value, strlen(value));
    }
}


static void
check_request(const char *name)
{
    int             i, n;
    char           *body;
    cJSON          *root;
    size_t          len;
    const cJSON    *record, *m;
    unsigned char  *p;

    p = chat_sample(name, &len);
    body = malloc(len + 1);
    assert_non_null(body);
    memcpy(body, p, len);
    body[len] = '\0';
    free(p);

    understand(body);

    record = chat_expected(name, &root);
    record = cJSON_GetObjectItemCaseSensitive(record, "conversation");
    n = cJSON_GetArraySize(record);

    assert_true(n > 0);
    assert_int_equal(nmessages, n);

    for (i = 0; i < n; i++) {
        m = cJSON_GetArrayItem(record, i);

        assert_message((unsigned) i,
                       strcmp(chat_string(m, "role"), "user") == 0
                       ? KX_ROLE_USER : KX_ROLE_ASSISTANT,
                       chat_string(m, "text"));

        /* made of the text for all of them, also where there is an id */

        assert_int_equal(messages[i].id.len, KX_MESSAGE_ID_LEN);
        assert_memory_equal(messages[i].id.data, "kx1_", 4);
    }

    assert_true(chat.cv.has_messages);
    assert_true(chat.cv.user_turn);
    assert_true(chat.cv.stream);
    assert_false(chat.cv.json_mode);
    assert_false(chat.cv.forced_tools);
    assert_int_equal(chat.cv.choices, 1);

    cJSON_Delete(root);
    free(body);
}


static void
test_sample_requests_are_understood(void **state)
{
    static const char  previous[] =
        "resp_0f6b1c9d2a7e4835006921000a90c4d88193a5b7e6f1d2c3b4";

    (void) state;

    check_request("openai-responses.request.json");

    assert_identity(&chat.cv.user, "5f2c6f0e8c0b4a7d9e1f3a2b4c5d6e7f");
    assert_identity(&chat.cv.conversation,
                    "conv_0f6b1c9d2a7e4835006921000fe4b08193aa11bb22cc33dd44");
    assert_int_equal(chat.cv.previous.len, 0);

    check_request("openai-responses-prev.request.json");

    assert_identity(&chat.cv.user, "u-1842");
    assert_identity(&chat.cv.conversation, "");
    assert_int_equal(chat.cv.previous.len, sizeof(previous) - 1);
    assert_memory_equal(chat.cv.previous.data, previous,
                        sizeof(previous) - 1);
}


static void
test_turns_of_a_request(void **state)
{
    char    body[2048];
    size_t  i;

    static const struct {
        const char  *input;
        unsigned     there;
        unsigned     turn;
        unsigned     kept;
    } cases[] = {
        { "null", 0, 0, 0 },
        { "7", 0, 0, 0 },
        { "{}", 0, 0, 0 },
        { "\"\"", 1, 0, 0 },
        { "\" \\n\"", 1, 0, 0 },
        { "\"hi\"", 1, 1, 1 },
        { "[]", 1, 0, 0 },
        { "[{}]", 1, 0, 0 },
        { "[{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1, 1 },
        { "[{\"content\":\"hi\",\"r\\u006fle\":\"us\\u0065r\"}]", 1, 1, 1 },
        { "[{\"type\":null,\"role\":\"user\",\"content\":\"hi\"}]", 1, 1, 1 },
        { "[{\"type\":\"message\",\"role\":\"user\",\"content\":\"hi\"}]",
          1, 1, 1 },
        { "[{\"type\":\"input_text\",\"role\":\"user\",\"content\":\"hi\"}]",
          1, 0, 0 },
        { "[{\"type\":\"message\",\"role\":\"user\"}]", 1, 0, 0 },
        { "[{\"role\":\"user\",\"content\":null}]", 1, 0, 0 },
        { "[{\"role\":\"user\",\"content\":{\"text\":\"hi\"}}]", 1, 0, 0 },
        { "[{\"role\":7,\"content\":\"hi\"}]", 1, 0, 0 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"input_text\","
          "\"text\":\"hi\"}]}]", 1, 1, 1 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
          "\"text\":\"hi\"}]}]", 1, 1, 1 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"input_image\","
          "\"image_url\":\"data:x\"}]}]", 1, 0, 0 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\","
          "\"content\":[{\"type\":\"output_text\",\"text\":\"a\"}]}]",
          1, 0, 2 },
        { "[{\"role\":\"assistant\",\"content\":\"a\"},{\"role\":\"user\","
          "\"content\":\"hi\"}]", 1, 1, 2 },
        { "[{\"role\":\"assistant\",\"phase\":\"commentary\",\"content\":\"a\""
          "},{\"role\":\"assistant\",\"phase\":\"final_answer\",\"content\":"
          "\"b\"},{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1, 2 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"developer\","
          "\"content\":\"be good\"}]", 1, 0, 1 },
        { "[{\"role\":\"system\",\"content\":\"be good\"},{\"role\":\"user\","
          "\"content\":\"hi\"}]", 1, 1, 1 },

        /* what the model did, and what only the server knows, comes after */

        { "[{\"role\":\"user\",\"content\":\"hi\"},{\"type\":"
          "\"function_call\",\"call_id\":\"1\"},{\"type\":"
          "\"function_call_output\",\"output\":\"x\"}]", 1, 0, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"type\":\"mcp_approval_response\",\"approve\":true}]", 1, 0, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"type\":\"reasoning\",\"summary\":[]}]", 1, 0, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"type\":\"item_reference\",\"id\":\"msg_1\"}]", 1, 0, 1 },
        { "[{\"type\":\"reasoning\",\"summary\":[]},"
          "{\"type\":\"item_reference\",\"id\":\"msg_1\"},"
          "{\"role\":\"user\",\"content\":\"hi\"}]", 1, 1, 1 },

        /* our own items are none */

        { "[{\"role\":\"user\",\"content\":\"a\"},{\"id\":\"msg_kontext_1\","
          "\"type\":\"message\",\"role\":\"assistant\",\"content\":["
          "{\"type\":\"output_text\",\"text\":\"Buy\"}]},{\"role\":\"user\","
          "\"content\":\"hi\"}]", 1, 1, 2 },
        { "[{\"role\":\"user\",\"content\":\"hi\"},{\"type\":"
          "\"item_reference\",\"id\":\"msg_kontext\"}]", 1, 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\",\"id\":\"msg_kontex\"}]",
          1, 1, 1 },

        /* the last one of a name counts */

        { "\"x\",\"input\":[{\"role\":\"user\",\"content\":\"hi\"}]",
          1, 1, 1 },
        { "[{\"role\":\"user\",\"content\":\"hi\"}],\"input\":null",
          0, 0, 0 },
        { "[{\"role\":\"user\",\"content\":\"hi\",\"content\":7}]", 1, 0, 0 },
        { "[{\"type\":\"x\",\"role\":\"user\",\"content\":\"hi\",\"type\":"
          "\"message\"}]", 1, 1, 1 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{\"input\":%s}", cases[i].input);
        understand(body);

        if (chat.cv.has_messages != cases[i].there
            || chat.cv.user_turn != cases[i].turn
            || nmessages != cases[i].kept)
        {
            fail_msg("%s: %u %u %u", cases[i].input, chat.cv.has_messages,
                     chat.cv.user_turn, nmessages);
        }
    }

    understand("{\"input\":\"a\\n\\\"b\\\" \\ud83d\\ude00\"}");
    assert_message(0, KX_ROLE_USER, "a\n\"b\" \xf0\x9f\x98\x80");

    understand("{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":"
               "\"input_text\",\"text\":\"a\"},{\"type\":\"input_file\"},"
               "{\"type\":\"input_text\",\"text\":\"b\"}]}]}");
    assert_message(0, KX_ROLE_USER, "a\nb");

    understand("{}");
    assert_false(chat.cv.has_messages);
}


static void
test_settings_of_a_request(void **state)
{
    size_t  i;

    static const struct {
        const char  *body;
        unsigned     stream;
        unsigned     json_mode;
        unsigned     forced_tools;
    } cases[] = {
        { "{}", 0, 0, 0 },
        { "{\"stream\":true}", 1, 0, 0 },
        { "{\"stream\":false}", 0, 0, 0 },
        { "{\"stream\":\"true\"}", 0, 0, 0 },
        { "{\"stream\":true,\"stream\":null}", 0, 0, 0 },
        { "{\"stream\":true,\"background\":true}", 1, 0, 0 },
        { "{\"text\":{\"format\":{\"type\":\"text\"}}}", 0, 0, 0 },
        { "{\"text\":{\"format\":{\"type\":\"json_schema\",\"schema\":{}}}}",
          0, 1, 0 },
        { "{\"text\":{\"verbosity\":\"low\",\"format\":{\"type\":"
          "\"json_object\"}}}", 0, 1, 0 },
        { "{\"text\":{\"format\":{\"type\":7}}}", 0, 0, 0 },
        { "{\"text\":{\"format\":null}}", 0, 0, 0 },
        { "{\"text\":{\"format\":\"json\"}}", 0, 0, 0 },
        { "{\"text\":\"json\"}", 0, 0, 0 },
        { "{\"text\":null}", 0, 0, 0 },
        { "{\"text\":[{\"format\":{\"type\":\"json_object\"}}]}", 0, 0, 0 },
        { "{\"tool_choice\":\"auto\"}", 0, 0, 0 },
        { "{\"tool_choice\":\"none\"}", 0, 0, 0 },
        { "{\"tool_choice\":null}", 0, 0, 0 },
        { "{\"tool_choice\":\"required\"}", 0, 0, 1 },
        { "{\"tool_choice\":{\"type\":\"function\",\"name\":\"f\"}}",
          0, 0, 1 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        understand(cases[i].body);

        if (chat.cv.stream != cases[i].stream
            || chat.cv.json_mode != cases[i].json_mode
            || chat.cv.forced_tools != cases[i].forced_tools)
        {
            fail_msg("%s", cases[i].body);
        }
    }
}


static void
test_identities_of_a_request(void **state)
{
    size_t  i;

    static const struct {
        const char  *body;
        const char  *user;
        const char  *conversation;
        const char  *previous;
    } cases[] = {
        { "{\"user\":\"u\",\"safety_identifier\":\"s\"}", "s", "", "" },
        { "{\"safety_identifier\":\"s\",\"user\":\"u\"}", "s", "", "" },
        { "{\"user\":\"u\",\"metadata\":{\"user_id\":\"m\"}}", "u", "", "" },
        { "{\"metadata\":{\"user_id\":\"m\",\"thread_id\":\"t\"}}", "m", "t",
          "" },
        { "{\"conversation\":\"c\",\"session_id\":\"s\"}", "", "c", "" },
        { "{\"conversation\":{\"id\":\"\\u0063\",\"x\":1}}", "", "c", "" },
        { "{\"conversation\":{\"x\":1},\"session_id\":\"s\"}", "", "s", "" },
        { "{\"conversation\":{\"id\":7},\"session_id\":\"s\"}", "", "s", "" },
        { "{\"conversation\":null,\"metadata\":{\"chat_id\":\"m\"}}", "", "m",
          "" },
        { "{\"conversation\":[\"c\"],\"user\":{\"id\":\"u\"}}", "", "", "" },
        { "{\"session_id\":\"s\",\"conversation\":{\"id\":\"c\"}}", "", "c",
          "" },
        { "{\"prompt_cache_key\":\"p\"}", "", "", "" },
        { "{\"previous_response_id\":\"r\"}", "", "", "r" },
        { "{\"previous_response_id\":null}", "", "", "" },
        { "{\"previous_response_id\":\"r\",\"previous_response_id\":null}",
          "", "", "" },
        { "{\"previous_response_id\":7}", "", "", "" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        understand(cases[i].body);

        assert_identity(&chat.cv.user, cases[i].user);
        assert_identity(&chat.cv.conversation, cases[i].conversation);
        assert_int_equal(chat.cv.previous.len, strlen(cases[i].previous));

        if (cases[i].previous[0]) {
            assert_memory_equal(chat.cv.previous.data, cases[i].previous,
                                strlen(cases[i].previous));
        }
    }
}


static void
test_requests_that_are_none(void **state)
{
    char    *copy;
    size_t   i, len;

    static const char  *bodies[] = {
        "", "7", "[]", "\"x\"", "{", "{}}", "{\"input\":[7]}",
        "{\"input\":[\"hi\"]}", "{\"input\":[[]]}", "{\"input\":[null]}",
        "{\"input\":[{\"role\":\"user\"]}", "{\"input\":\"x}",
        "{\"text\":{\"format\":}}", "{\"conversation\":{\"id\"}}"
    };

    static const char  body[] =
        "{\"model\":\"m\",\"input\":[{\"type\":\"message\",\"role\":\"user\","
        "\"content\":[{\"type\":\"input_text\",\"text\":\"a\\u00e1\"}],"
        "\"id\":\"x\"},{\"type\":\"reasoning\"}],\"conversation\":{\"id\":"
        "\"c\"},\"text\":{\"format\":{\"type\":\"text\"}},\"tool_choice\":"
        "{\"type\":\"x\"},\"metadata\":{\"user_id\":\"u\"},\"stream\":true,"
        "\"previous_response_id\":\"r\",\"user\":\"u\"}";

    (void) state;

    for (i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        assert_int_equal(scan_len(bodies[i], strlen(bodies[i])),
                         KX_REASON_BAD_BODY);
    }

    for (len = 0; len < sizeof(body); len++) {
        copy = malloc(len ? len : 1);
        assert_non_null(copy);
        memcpy(copy, body, len);

        assert_int_equal(scan_len(copy, len),
                         len < sizeof(body) - 1 ? KX_REASON_BAD_BODY
                                                : KX_REASON_NONE);
        free(copy);
    }
}


static void
test_no_memory_for_a_request(void **state)
{
    unsigned  i;

    static const char  body[] =
        "{\"input\":\"hi\",\"conversation\":{\"id\":\"c\"},\"user\":\"u\","
        "\"previous_response_id\":\"r\"}";

    (void) state;

    for (i = 1; i <= 5; i++) {
        chat_free(&chat.memory);
        chat.memory.fail_at = i;
        assert_int_equal(scan_len(body, sizeof(body) - 1),
                         KX_REASON_NO_MEMORY);
    }

    chat.memory.fail_at = i;
    assert_int_equal(scan_len(body, sizeof(body) - 1), KX_REASON_NONE);
    chat.memory.fail_at = 0;
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
        { "/v1/responses", KX_OK },
        { "/responses", KX_OK },
        { "/openai/v1/responses", KX_OK },
        { "/api/v1/responses", KX_OK },
        { "/v1/responses/", KX_DECLINED },
        { "/v1/responses/resp_1/cancel", KX_DECLINED },
        { "/v1/responses/input_tokens", KX_DECLINED },
        { "/v1/myresponses", KX_DECLINED },
        { "responses", KX_DECLINED },
        { "/v1/chat/completions", KX_DECLINED },
        { "", KX_DECLINED }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        path.data = (unsigned char *) cases[i].path;
        path.len = strlen(cases[i].path);

        assert_int_equal(kx_openai_responses.path(&path), cases[i].rc);
    }
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
        { "{\"model\":\"m\",\"input\":\"hi\",\"stream\":true}", 1 },
        { "{\"model\":\"m\",\"input\":[],\"stream\":false}", 1 },
        { "{\"model\":\"m\",\"input\":{},\"stream\":true}", 0 },
        { "{\"model\":7,\"input\":\"hi\",\"stream\":true}", 0 },
        { "{\"input\":\"hi\",\"stream\":true}", 0 },
        { "{\"model\":\"m\",\"stream\":true}", 0 },
        { "{\"model\":\"m\",\"messages\":[],\"stream\":true}", 0 },

        /* embeddings, a moderation, speech */

        { "{\"model\":\"m\",\"input\":\"hi\"}", 0 },
        { "{\"model\":\"m\",\"input\":[{\"type\":\"text\",\"text\":\"hi\"}]}",
          0 },
        { "{\"model\":\"m\",\"input\":\"hi\",\"voice\":\"v\"}", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(kx_members_read(&members,
                             (unsigned char *) cases[i].body,
                             strlen(cases[i].body)),
                         KX_OK);
        assert_int_equal(kx_openai_responses.body(&members), cases[i].ours);
    }
}


static int
teardown(void **state)
{
    (void) state;

    chat.memory.fail_at = 0;
    chat_done(&chat);

    return 0;
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_teardown(
            test_sample_streams_are_understood_and_stay_whole, teardown),
        cmocka_unit_test_teardown(
            test_sample_stream_takes_the_member_inside_its_response,
            teardown),
        cmocka_unit_test_teardown(
            test_sample_stream_takes_the_text_as_an_item, teardown),
        cmocka_unit_test_teardown(test_sample_answer_in_one_piece, teardown),
        cmocka_unit_test_teardown(test_places_of_a_member, teardown),
        cmocka_unit_test_teardown(test_places_of_a_text, teardown),
        cmocka_unit_test_teardown(test_no_place_for_a_text, teardown),
        cmocka_unit_test_teardown(test_ids_of_items_are_plain_and_short,
                                  teardown),
        cmocka_unit_test_teardown(test_no_memory_for_a_text, teardown),
        cmocka_unit_test_teardown(test_beginning_of_a_large_finish, teardown),
        cmocka_unit_test_teardown(test_beginnings_that_forbid, teardown),
        cmocka_unit_test_teardown(test_large_frames_before_the_finish_count,
                                  teardown),
        cmocka_unit_test_teardown(test_what_forbids_an_ad_in_a_stream,
                                  teardown),
        cmocka_unit_test_teardown(test_what_forbids_an_ad_at_the_end,
                                  teardown),
        cmocka_unit_test_teardown(test_what_is_no_finish, teardown),
        cmocka_unit_test_teardown(test_text_of_an_answer, teardown),
        cmocka_unit_test_teardown(test_answer_without_text, teardown),
        cmocka_unit_test_teardown(test_id_of_a_response, teardown),
        cmocka_unit_test_teardown(test_stream_that_ends_anywhere, teardown),
        cmocka_unit_test_teardown(test_stream_with_any_bad_byte, teardown),
        cmocka_unit_test_teardown(
            test_deep_nesting_is_an_answer_without_finish, teardown),
        cmocka_unit_test_teardown(test_more_members_than_are_kept, teardown),
        cmocka_unit_test_teardown(test_sample_requests_are_understood,
                                  teardown),
        cmocka_unit_test_teardown(test_turns_of_a_request, teardown),
        cmocka_unit_test_teardown(test_settings_of_a_request, teardown),
        cmocka_unit_test_teardown(test_identities_of_a_request, teardown),
        cmocka_unit_test_teardown(test_requests_that_are_none, teardown),
        cmocka_unit_test_teardown(test_no_memory_for_a_request, teardown),
        cmocka_unit_test_teardown(test_paths, teardown),
        cmocka_unit_test_teardown(test_bodies, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
