/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * OpenAI Chat Completions (chat-apis.md 4), as also spoken by Azure,
 * OpenRouter, vLLM, llama.cpp, LiteLLM and others.
 */


#include "dialect.h"


typedef struct {
    int              index;          /* below zero: not said */
    unsigned         tools:1;
    unsigned         refusal:1;
    kx_str_t         content;        /* raw JSON */
    kx_str_t         finish;         /* raw string */
} kx_openai_choice_t;


static int kx_openai_chat_path(const kx_str_t *path);
static int kx_openai_chat_body(const kx_conversation_t *cv);
static int kx_openai_chat_request(kx_conversation_t *cv, kx_json_t *j);
static int kx_openai_chat_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key);
static int kx_openai_chat_messages(kx_conversation_t *cv, kx_json_t *j);
static int kx_openai_chat_message(kx_conversation_t *cv, kx_json_t *j);
static int kx_openai_chat_metadata(kx_conversation_t *cv, kx_json_t *j);
static int kx_openai_chat_identity(kx_conversation_t *cv, kx_json_t *j,
    kx_identity_t *id, kx_identity_e rank);
static int kx_openai_chat_response_format(kx_conversation_t *cv,
    kx_json_t *j);
static int kx_openai_chat_tool_choice(kx_conversation_t *cv, kx_json_t *j);
static int kx_openai_chat_int(kx_json_t *j, int max);
static void kx_openai_chat_text(const kx_str_t *content, kx_sink_pt sink,
    void *data);
static unsigned kx_openai_chat_part(kx_json_t *j, kx_str_t *text);
static kx_frame_e kx_openai_chat_frame(kx_answer_t *a, const kx_str_t *event,
    const kx_str_t *data);
static int kx_openai_chat_choices(kx_answer_t *a, kx_json_t *j,
    unsigned *finished);
static int kx_openai_chat_choice(kx_json_t *j, kx_openai_choice_t *choice);
static int kx_openai_chat_delta(kx_json_t *j, kx_openai_choice_t *choice);
static void kx_openai_chat_apply(kx_answer_t *a, kx_openai_choice_t *choice,
    unsigned *finished);
static void kx_openai_chat_answer_sink(void *data, const unsigned char *p,
    size_t len);


const kx_dialect_t  kx_openai_chat = {
    kx_string("openai_chat"),
    kx_openai_chat_path,
    kx_openai_chat_body,
    kx_openai_chat_request,
    kx_openai_chat_text,
    kx_openai_chat_frame
};


static int
kx_openai_chat_path(const kx_str_t *path)
{
    static const char  suffix[] = "/chat/completions";

    size_t  n;

    n = sizeof(suffix) - 1;

    return path->len >= n
           && memcmp(path->data + path->len - n, suffix, n) == 0;
}


static int
kx_openai_chat_body(const kx_conversation_t *cv)
{
    return cv->has_messages && cv->has_model;
}


static int
kx_openai_chat_request(kx_conversation_t *cv, kx_json_t *j)
{
    int       rc;
    kx_str_t  key;

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        rc = kx_openai_chat_member(cv, j, &key);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_openai_chat_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key)
{
    int             n;
    kx_json_type_e  type;

    type = kx_json_type(j);

    if (kx_json_is(key, "messages")) {
        return kx_openai_chat_messages(cv, j);
    }

    if (kx_json_is(key, "model")) {
        cv->has_model = (type == KX_JSON_STRING);
        return kx_json_skip(j, NULL);
    }

    if (kx_json_is(key, "stream")) {
        cv->stream = (type == KX_JSON_TRUE);
        return kx_json_skip(j, NULL);
    }

    if (kx_json_is(key, "n")) {
        n = kx_openai_chat_int(j, KX_MAX_CHOICES);
        cv->choices = (n > 0) ? (unsigned) n : 1;
        return j->bad ? KX_ERROR : KX_OK;
    }

    if (kx_json_is(key, "user")) {
        return kx_openai_chat_identity(cv, j, &cv->user, KX_IDENTITY_USER);
    }

    if (kx_json_is(key, "safety_identifier")) {
        return kx_openai_chat_identity(cv, j, &cv->user, KX_IDENTITY_SAFETY);
    }

    if (kx_json_is(key, "session_id")) {
        return kx_openai_chat_identity(cv, j, &cv->conversation,
                                       KX_IDENTITY_SESSION);
    }

    if (kx_json_is(key, "metadata")) {
        return kx_openai_chat_metadata(cv, j);
    }

    if (kx_json_is(key, "response_format")) {
        return kx_openai_chat_response_format(cv, j);
    }

    if (kx_json_is(key, "tool_choice") || kx_json_is(key, "function_call")) {
        return kx_openai_chat_tool_choice(cv, j);
    }

    /* constrained output of vLLM, SGLang and llama.cpp */

    if (kx_json_is(key, "guided_json")
        || kx_json_is(key, "guided_regex")
        || kx_json_is(key, "guided_choice")
        || kx_json_is(key, "guided_grammar")
        || kx_json_is(key, "structured_outputs")
        || kx_json_is(key, "json_schema")
        || kx_json_is(key, "grammar"))
    {
        if (type != KX_JSON_NULL && type != KX_JSON_FALSE) {
            cv->json_mode = 1;
        }
    }

    return kx_json_skip(j, NULL);
}


static int
kx_openai_chat_messages(kx_conversation_t *cv, kx_json_t *j)
{
    int  rc;

    kx_conversation_restart(cv);

    cv->has_messages = (kx_json_type(j) == KX_JSON_ARRAY);

    if (!cv->has_messages) {
        return kx_json_skip(j, NULL);
    }

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_element(j)) == KX_OK) {
        rc = kx_openai_chat_message(cv, j);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_openai_chat_message(kx_conversation_t *cv, kx_json_t *j)
{
    int       rc;
    kx_str_t  key, role, content;

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    role.len = 0;
    role.data = NULL;
    content.len = 0;
    content.data = NULL;

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        if (kx_json_is(&key, "content")) {
            rc = kx_json_skip(j, &content);

        } else if (kx_json_is(&key, "role")
                   && kx_json_type(j) == KX_JSON_STRING)
        {
            rc = kx_json_string(j, &role);

        } else {
            rc = kx_json_skip(j, NULL);
        }

        if (rc != KX_OK) {
            return rc;
        }
    }

    if (rc != KX_DONE) {
        return rc;
    }

    if (kx_json_is(&role, "user")) {
        return kx_conversation_message(cv, KX_ROLE_USER, &content);
    }

    if (kx_json_is(&role, "assistant")) {
        return kx_conversation_message(cv, KX_ROLE_ASSISTANT, &content);
    }

    return kx_conversation_message(cv, KX_ROLE_OTHER, &content);
}


static int
kx_openai_chat_metadata(kx_conversation_t *cv, kx_json_t *j)
{
    int             rc;
    kx_str_t        key;
    kx_identity_e   rank;
    kx_identity_t  *id;

    if (kx_json_type(j) != KX_JSON_OBJECT) {
        return kx_json_skip(j, NULL);
    }

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        id = &cv->conversation;
        rank = KX_IDENTITY_METADATA;

        if (kx_json_is(&key, "user_id")) {
            id = &cv->user;

        } else if (kx_json_is(&key, "chat_id")) {
            rank = KX_IDENTITY_METADATA;

        } else if (kx_json_is(&key, "conversation_id")) {
            rank = KX_IDENTITY_METADATA2;

        } else if (kx_json_is(&key, "thread_id")) {
            rank = KX_IDENTITY_METADATA3;

        } else if (kx_json_is(&key, "session_id")) {
            rank = KX_IDENTITY_METADATA4;

        } else {
            id = NULL;
        }

        rc = id ? kx_openai_chat_identity(cv, j, id, rank)
                : kx_json_skip(j, NULL);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_openai_chat_identity(kx_conversation_t *cv, kx_json_t *j,
    kx_identity_t *id, kx_identity_e rank)
{
    kx_str_t  raw;

    if (kx_json_type(j) != KX_JSON_STRING) {
        return kx_json_skip(j, NULL);
    }

    if (kx_json_string(j, &raw) != KX_OK) {
        return KX_ERROR;
    }

    return kx_conversation_identity(cv, id, rank, &raw);
}


static int
kx_openai_chat_response_format(kx_conversation_t *cv, kx_json_t *j)
{
    int       rc;
    kx_str_t  key, type;

    if (kx_json_type(j) != KX_JSON_OBJECT) {
        return kx_json_skip(j, NULL);
    }

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        if (kx_json_is(&key, "type") && kx_json_type(j) == KX_JSON_STRING) {
            rc = kx_json_string(j, &type);

            if (rc == KX_OK) {
                cv->json_mode = !kx_json_is(&type, "text");
            }

        } else {
            rc = kx_json_skip(j, NULL);
        }

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_openai_chat_tool_choice(kx_conversation_t *cv, kx_json_t *j)
{
    kx_str_t  raw;

    switch (kx_json_type(j)) {

    case KX_JSON_STRING:

        if (kx_json_string(j, &raw) != KX_OK) {
            return KX_ERROR;
        }

        cv->forced_tools = !kx_json_is(&raw, "auto")
                           && !kx_json_is(&raw, "none");
        return KX_OK;

    case KX_JSON_OBJECT:

        /* a tool by its name, or a list that one must come from */

        cv->forced_tools = 1;
        break;

    default:
        break;
    }

    return kx_json_skip(j, NULL);
}


/* a whole number of up to max, or -1 for any other value */

static int
kx_openai_chat_int(kx_json_t *j, int max)
{
    int       n;
    size_t    i;
    kx_str_t  raw;

    if (kx_json_type(j) != KX_JSON_NUMBER) {
        (void) kx_json_skip(j, NULL);
        return -1;
    }

    if (kx_json_skip(j, &raw) != KX_OK) {
        return -1;
    }

    n = 0;

    for (i = 0; i < raw.len; i++) {

        if (raw.data[i] < '0' || raw.data[i] > '9') {
            return -1;
        }

        n = n * 10 + (raw.data[i] - '0');

        if (n > max) {
            return -1;
        }
    }

    return n;
}


static void
kx_openai_chat_text(const kx_str_t *content, kx_sink_pt sink, void *data)
{
    unsigned     parts;
    kx_str_t     raw;
    kx_json_t    j;
    kx_decode_t  decode;

    if (content->len == 0) {
        return;
    }

    kx_json_init(&j, content->data, content->len);
    kx_decode_init(&decode);

    switch (kx_json_type(&j)) {

    case KX_JSON_STRING:

        if (kx_json_string(&j, &raw) == KX_OK) {
            kx_decode(&decode, &raw, sink, data);
            kx_decode_finish(&decode, sink, data);
        }

        break;

    case KX_JSON_ARRAY:

        if (kx_json_enter(&j) != KX_OK) {
            return;
        }

        parts = 0;

        while (kx_json_element(&j) == KX_OK) {

            if (!kx_openai_chat_part(&j, &raw)) {
                continue;
            }

            if (parts++) {
                sink(data, (unsigned char *) "\n", 1);
            }

            kx_decode(&decode, &raw, sink, data);
            kx_decode_finish(&decode, sink, data);
        }

        break;

    default:
        break;
    }
}


/* consumes a part; is it one of text? */

static unsigned
kx_openai_chat_part(kx_json_t *j, kx_str_t *text)
{
    int       rc;
    unsigned  is_text, has_text;
    kx_str_t  key, type;

    if (kx_json_type(j) != KX_JSON_OBJECT) {
        (void) kx_json_skip(j, NULL);
        return 0;
    }

    if (kx_json_enter(j) != KX_OK) {
        return 0;
    }

    is_text = 0;
    has_text = 0;

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        if (kx_json_type(j) != KX_JSON_STRING) {
            rc = kx_json_skip(j, NULL);

        } else if (kx_json_is(&key, "type")) {
            rc = kx_json_string(j, &type);
            is_text = (rc == KX_OK && kx_json_is(&type, "text"));

        } else if (kx_json_is(&key, "text")) {
            rc = kx_json_string(j, text);
            has_text = (rc == KX_OK);

        } else {
            rc = kx_json_skip(j, NULL);
        }

        if (rc != KX_OK) {
            return 0;
        }
    }

    return rc == KX_DONE && is_text && has_text;
}


static kx_frame_e
kx_openai_chat_frame(kx_answer_t *a, const kx_str_t *event,
    const kx_str_t *data)
{
    int             rc;
    unsigned        finished;
    kx_str_t        key;
    kx_json_t       j;
    kx_json_type_e  type;

    if (data->len == 6 && memcmp(data->data, "[DONE]", 6) == 0) {
        return KX_FRAME_END;
    }

    if (event->len == 5 && memcmp(event->data, "error", 5) == 0) {
        a->refused = KX_REASON_ERROR_FRAME;
        return KX_FRAME_PASS;
    }

    kx_json_init(&j, data->data, data->len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return KX_FRAME_PASS;
    }

    finished = 0;

    while ((rc = kx_json_member(&j, &key)) == KX_OK) {
        type = kx_json_type(&j);

        if (type == KX_JSON_ARRAY && kx_json_is(&key, "choices")) {
            rc = kx_openai_chat_choices(a, &j, &finished);

        } else {

            if (type != KX_JSON_NULL && kx_json_is(&key, "error")) {
                a->refused = KX_REASON_ERROR_FRAME;
            }

            rc = kx_json_skip(&j, NULL);
        }

        if (rc != KX_OK) {
            break;
        }
    }

    if (rc != KX_DONE) {
        return KX_FRAME_PASS;
    }

    a->at = j.pos - 1;

    if (kx_json_end(&j) != KX_OK) {
        return KX_FRAME_PASS;
    }

    if (!finished || a->complete
        || a->nfinished < a->nstarted
        || a->nstarted < a->conversation->choices)
    {
        return KX_FRAME_PASS;
    }

    a->complete = 1;

    return KX_FRAME_FINISH;
}


static int
kx_openai_chat_choices(kx_answer_t *a, kx_json_t *j, unsigned *finished)
{
    int                 rc;
    kx_openai_choice_t  choice;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_element(j)) == KX_OK) {

        if (kx_json_type(j) != KX_JSON_OBJECT) {
            rc = kx_json_skip(j, NULL);

        } else {
            rc = kx_openai_chat_choice(j, &choice);

            if (rc == KX_OK) {
                kx_openai_chat_apply(a, &choice, finished);
            }
        }

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_openai_chat_choice(kx_json_t *j, kx_openai_choice_t *choice)
{
    int             rc;
    kx_str_t        key;
    kx_json_type_e  type;

    memset(choice, 0, sizeof(kx_openai_choice_t));

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        if (type == KX_JSON_NUMBER && kx_json_is(&key, "index")) {
            choice->index = kx_openai_chat_int(j, KX_MAX_CHOICES - 1);
            rc = j->bad ? KX_ERROR : KX_OK;

        } else if (type == KX_JSON_OBJECT && kx_json_is(&key, "delta")) {
            rc = kx_openai_chat_delta(j, choice);

        } else if (type == KX_JSON_STRING
                   && kx_json_is(&key, "finish_reason"))
        {
            rc = kx_json_string(j, &choice->finish);

        } else {
            rc = kx_json_skip(j, NULL);
        }

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_openai_chat_delta(kx_json_t *j, kx_openai_choice_t *choice)
{
    int             rc;
    kx_str_t        key, raw;
    kx_json_type_e  type;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        rc = kx_json_skip(j, &raw);
        if (rc != KX_OK) {
            return rc;
        }

        if (type == KX_JSON_NULL) {
            continue;
        }

        if (kx_json_is(&key, "content")) {
            choice->content = raw;

        } else if (kx_json_is(&key, "tool_calls")) {

            /* some servers send an empty list with every chunk */

            choice->tools |= (type == KX_JSON_ARRAY
                              && memchr(raw.data, '{', raw.len) != NULL);

        } else if (kx_json_is(&key, "function_call")) {
            choice->tools = 1;

        } else if (kx_json_is(&key, "refusal")) {
            choice->refusal |= (type == KX_JSON_STRING && raw.len > 2);
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static void
kx_openai_chat_apply(kx_answer_t *a, kx_openai_choice_t *choice,
    unsigned *finished)
{
    unsigned       i;
    kx_str_t       raw;
    kx_json_t      j;
    unsigned char  bit;

    if (choice->index < 0) {
        a->refused = KX_REASON_FINISH_REASON;
        return;
    }

    i = (unsigned) choice->index / 8;
    bit = (unsigned char) (1 << (choice->index % 8));

    if (!(a->started[i] & bit)) {
        a->started[i] |= bit;
        a->nstarted++;
    }

    if (choice->tools) {
        a->refused = KX_REASON_TOOL_CALLS;
    }

    if (choice->refusal) {
        a->refused = KX_REASON_REFUSAL;
    }

    if (choice->index == 0 && choice->content.len) {
        kx_json_init(&j, choice->content.data, choice->content.len);

        if (kx_json_type(&j) == KX_JSON_STRING) {

            /* the halves of a surrogate pair may come in two chunks */

            if (kx_json_string(&j, &raw) == KX_OK) {
                kx_answer_text(a, &raw);
            }

        } else {
            kx_openai_chat_text(&choice->content, kx_openai_chat_answer_sink,
                                a);
        }
    }

    if (choice->finish.len == 0 || (a->finished[i] & bit)) {
        return;
    }

    a->finished[i] |= bit;
    a->nfinished++;

    *finished = 1;

    if (kx_json_is(&choice->finish, "tool_calls")
        || kx_json_is(&choice->finish, "function_call"))
    {
        a->refused = KX_REASON_TOOL_CALLS;

    } else if (!kx_json_is(&choice->finish, "stop")
               && !kx_json_is(&choice->finish, "length"))
    {
        a->refused = KX_REASON_FINISH_REASON;
    }
}


static void
kx_openai_chat_answer_sink(void *data, const unsigned char *p, size_t len)
{
    kx_answer_t  *a = data;

    kx_text_feed(&a->text, p, len);
}
