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


/* of the answers, by their index */

typedef struct {
    unsigned         nstarted;
    unsigned         nfinished;
    unsigned char    started[KX_MAX_CHOICES / 8];
    unsigned char    finished[KX_MAX_CHOICES / 8];
} kx_openai_chat_t;


static int kx_openai_chat_path(const kx_str_t *path);
static unsigned kx_openai_chat_body(const kx_members_t *members);
static int kx_openai_chat_request(kx_conversation_t *cv, kx_json_t *j);
static int kx_openai_chat_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key);
static int kx_openai_chat_response_format(kx_conversation_t *cv,
    kx_json_t *j);
static int kx_openai_chat_tool_choice(kx_conversation_t *cv, kx_json_t *j);
static int kx_openai_chat_int(kx_json_t *j, int max);
static void kx_openai_chat_content(const kx_str_t *content, kx_sink_pt sink,
    void *data);
static kx_frame_e kx_openai_chat_frame(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_openai_chat_whole(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_openai_chat_read(kx_answer_t *a, const kx_str_t *data);
static int kx_openai_chat_choices(kx_answer_t *a, kx_json_t *j,
    unsigned *finished);
static int kx_openai_chat_choice(kx_json_t *j, kx_openai_choice_t *choice);
static int kx_openai_chat_delta(kx_json_t *j, kx_openai_choice_t *choice);
static void kx_openai_chat_apply(kx_answer_t *a, kx_openai_choice_t *choice,
    unsigned *finished);
static int kx_openai_chat_text(kx_answer_t *a, const kx_frame_t *fr);
static int kx_openai_chat_chunk(kx_answer_t *a, const kx_frame_t *fr);


static const kx_str_t  kx_openai_chat_noise[] = {
    kx_string("obfuscation"),
    kx_string("prompt_tokens"),
    kx_string("completion_tokens"),
    kx_string("total_tokens"),
    kx_string("")
};


const kx_dialect_t  kx_openai_chat = {
    kx_string("openai_chat"),
    kx_string(""),
    KX_FRAMING_SSE|KX_FRAMING_WHOLE,
    sizeof(kx_openai_chat_t),
    kx_openai_chat_noise,
    kx_openai_chat_path,
    kx_openai_chat_body,
    NULL,
    kx_openai_chat_request,
    kx_openai_chat_content,
    kx_openai_chat_frame,
    NULL,
    kx_openai_chat_whole,
    kx_answer_member,
    kx_openai_chat_text
};


static int
kx_openai_chat_path(const kx_str_t *path)
{
    return kx_path_ends(path, "/chat/completions") ? KX_OK : KX_DECLINED;
}


static unsigned
kx_openai_chat_body(const kx_members_t *members)
{
    return kx_members_has(members, "messages", KX_JSON_ARRAY)
           && kx_members_has(members, "model", KX_JSON_STRING);
}


static int
kx_openai_chat_request(kx_conversation_t *cv, kx_json_t *j)
{
    return kx_conversation_members(cv, j, kx_openai_chat_member);
}


static int
kx_openai_chat_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key)
{
    int             n;
    kx_json_type_e  type;

    type = kx_json_type(j);

    if (kx_json_is(key, "messages")) {
        return kx_conversation_list(cv, j, kx_conversation_role);
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
        return kx_conversation_identity(cv, j, &cv->user, KX_IDENTITY_USER);
    }

    if (kx_json_is(key, "safety_identifier")) {
        return kx_conversation_identity(cv, j, &cv->user, KX_IDENTITY_SAFETY);
    }

    if (kx_json_is(key, "session_id")) {
        return kx_conversation_identity(cv, j, &cv->conversation,
                                       KX_IDENTITY_SESSION);
    }

    if (kx_json_is(key, "metadata")) {
        return kx_conversation_metadata(cv, j);
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
kx_openai_chat_content(const kx_str_t *content, kx_sink_pt sink, void *data)
{
    static const kx_str_t  types[] = {
        kx_string("text"),
        kx_string("")
    };

    kx_content_text(content, types, sink, data);
}


static kx_frame_e
kx_openai_chat_frame(kx_answer_t *a, const kx_frame_t *fr)
{
    const kx_str_t  *data;

    data = &fr->data;

    if (data->len == 6 && memcmp(data->data, "[DONE]", 6) == 0) {
        return KX_FRAME_END;
    }

    if (fr->event.len == 5 && memcmp(fr->event.data, "error", 5) == 0) {
        a->refused = KX_REASON_ERROR_FRAME;
        return KX_FRAME_PASS;
    }

    return kx_openai_chat_read(a, data);
}


/* a message stands for the delta there, the rest is the same */

static kx_frame_e
kx_openai_chat_whole(kx_answer_t *a, const kx_frame_t *fr)
{
    return kx_openai_chat_read(a, &fr->data);
}


static kx_frame_e
kx_openai_chat_read(kx_answer_t *a, const kx_str_t *data)
{
    int                rc;
    unsigned           finished;
    kx_str_t           key;
    kx_json_t          j;
    kx_json_type_e     type;
    kx_openai_chat_t  *state;

    state = a->state;

    kx_json_init(&j, data->data, data->len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return KX_FRAME_PASS;
    }

    finished = 0;
    a->found[0].len = 0;

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

    if (rc != KX_DONE || kx_json_end(&j) != KX_OK) {
        return KX_FRAME_PASS;
    }

    if (!finished || a->complete || state->nfinished < state->nstarted
        || state->nstarted < a->conversation->choices)
    {
        return KX_FRAME_PASS;
    }

    a->answers = state->nstarted;
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

        } else if (type == KX_JSON_OBJECT
                   && (kx_json_is(&key, "delta")
                       || kx_json_is(&key, "message")))
        {
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
    unsigned           i;
    kx_str_t           raw;
    kx_json_t          j;
    unsigned char      bit;
    kx_openai_chat_t  *state;

    if (choice->index < 0) {
        a->refused = KX_REASON_FINISH_REASON;
        return;
    }

    state = a->state;

    i = (unsigned) choice->index / 8;
    bit = (unsigned char) (1 << (choice->index % 8));

    if (!(state->started[i] & bit)) {
        state->started[i] |= bit;
        state->nstarted++;
    }

    if (choice->tools) {
        a->refused = KX_REASON_TOOL_CALLS;
    }

    if (choice->refusal) {
        a->refused = KX_REASON_REFUSAL;
    }

    if (choice->index == 0 && choice->content.len) {
        a->found[0] = choice->content;

        kx_json_init(&j, choice->content.data, choice->content.len);

        if (kx_json_type(&j) == KX_JSON_STRING) {

            /* the halves of a surrogate pair may come in two chunks */

            if (kx_json_string(&j, &raw) == KX_OK) {
                kx_answer_text(a, &raw);
            }

        } else {
            kx_openai_chat_content(&choice->content, kx_answer_decoded, a);
        }
    }

    if (choice->finish.len == 0 || (state->finished[i] & bit)) {
        return;
    }

    state->finished[i] |= bit;
    state->nfinished++;

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


/*
 * At the end of the text that the finish chunk, or the message, has; or in a
 * chunk of its own in front of it (chat-apis.md 4.5, 5a).
 */

static int
kx_openai_chat_text(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_str_t  *content;

    static const kx_str_t  empty = kx_string("");

    content = &a->found[0];

    /*
     * A joined event may have its text in front of the last line; and in a
     * list of parts there is no one string to go on with.
     */

    if (content->len > 2) {
        return (content->data[0] == '"' && fr->data.data == fr->tail.data)
               ? kx_answer_place(a, content->data + content->len - 1, &empty,
                                 &empty)
               : KX_DECLINED;
    }

    if (a->framing == KX_FRAMING_WHOLE) {
        return KX_DECLINED;
    }

    return kx_openai_chat_chunk(a, fr);
}


static int
kx_openai_chat_chunk(kx_answer_t *a, const kx_frame_t *fr)
{
    int              rc;
    unsigned         i, n;
    kx_str_t         parts[12], before, after;
    kx_members_t     members;
    const kx_str_t  *value;

    static const char *const  names[] = { "id", "created", "model" };

    static const kx_str_t  keys[] = {
        kx_string("\"id\":"),
        kx_string("\"created\":"),
        kx_string("\"model\":")
    };

    static const kx_str_t  data = kx_string("data: {");
    static const kx_str_t  comma = kx_string(",");
    static const kx_str_t  choices =
        kx_string("\"object\":\"chat.completion.chunk\",\"choices\":"
                  "[{\"index\":0,\"delta\":{\"content\":\"");
    static const kx_str_t  end =
        kx_string("\"},\"finish_reason\":null}]}");

    if (kx_members_read(&members, fr->data.data, fr->data.len) != KX_OK) {
        return KX_DECLINED;
    }

    n = 0;
    parts[n++] = data;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        value = kx_members_scalar(&members, names[i]);

        if (value) {
            parts[n++] = keys[i];
            parts[n++] = *value;
            parts[n++] = comma;
        }
    }

    parts[n++] = choices;

    rc = kx_answer_join(a, &before, parts, n);
    if (rc != KX_OK) {
        return rc;
    }

    parts[0] = end;
    parts[1] = fr->eol;
    parts[2] = fr->eol;

    rc = kx_answer_join(a, &after, parts, 3);
    if (rc != KX_OK) {
        return rc;
    }

    return kx_answer_place(a, NULL, &before, &after);
}
