/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Ollama's own API, both forms of it: /api/chat and /api/generate
 * (chat-apis.md 7).
 */


#include "dialect.h"


#define KX_OLLAMA_GENERATE  1        /* kx_conversation_t.variant */


typedef enum {
    KX_OLLAMA_FORM_UNKNOWN = 0,
    KX_OLLAMA_FORM_CHAT,
    KX_OLLAMA_FORM_GENERATE
} kx_ollama_form_e;


/* a line of an answer, or a whole one; raw JSON */

typedef struct {
    kx_str_t          content;       /* of the message, a string */
    kx_str_t          response;      /* a string */
    kx_str_t          reason;        /* for being done; null is not kept */
    unsigned          message:1;
    unsigned          tools:1;
    unsigned          error:1;
    unsigned          done:1;
} kx_ollama_line_t;


typedef struct {
    kx_ollama_form_e  form;
} kx_ollama_t;


/* of a request for /api/generate */

typedef struct {
    kx_str_t          prompt;        /* raw JSON, a string */
    unsigned          raw:1;
    unsigned          suffix:1;
} kx_ollama_prompt_t;


static int kx_ollama_path(const kx_str_t *path);
static unsigned kx_ollama_body(const kx_members_t *members);
static void kx_ollama_start(kx_conversation_t *cv, const kx_str_t *path);
static int kx_ollama_request(kx_conversation_t *cv, kx_json_t *j);
static int kx_ollama_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key, kx_ollama_prompt_t *prompt);
static kx_role_e kx_ollama_role(const kx_str_t *raw);
static void kx_ollama_content(const kx_str_t *content, kx_sink_pt sink,
    void *data);
static kx_frame_e kx_ollama_frame(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_ollama_head(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_ollama_line(kx_answer_t *a,
    const kx_ollama_line_t *line);
static int kx_ollama_read(const kx_str_t *data, kx_ollama_line_t *line);
static int kx_ollama_read_message(kx_json_t *j, kx_ollama_line_t *line);
static unsigned kx_ollama_normal(const kx_str_t *reason);
static int kx_ollama_text(kx_answer_t *a, const kx_frame_t *fr);
static int kx_ollama_text_line(kx_answer_t *a, const kx_frame_t *fr);


static const kx_str_t  kx_ollama_empty = kx_string("");


static const kx_str_t  kx_ollama_noise[] = {
    kx_string("created_at"),
    kx_string("")
};


const kx_dialect_t  kx_ollama = {
    kx_string("ollama"),
    kx_string(""),
    KX_FRAMING_LINES|KX_FRAMING_WHOLE,
    sizeof(kx_ollama_t),
    kx_ollama_noise,
    kx_ollama_path,
    kx_ollama_body,
    kx_ollama_start,
    kx_ollama_request,
    kx_ollama_content,
    kx_ollama_frame,
    kx_ollama_head,
    kx_ollama_frame,
    kx_answer_member,
    kx_ollama_text
};


/* the AI SDK has its user interface at /api/chat, too */

static int
kx_ollama_path(const kx_str_t *path)
{
    if (kx_path_ends(path, "/api/generate")) {
        return KX_OK;
    }

    return kx_path_ends(path, "/api/chat") ? KX_AGAIN : KX_DECLINED;
}


/* the completions of OpenAI have a prompt, too, and members beside it */

static unsigned
kx_ollama_body(const kx_members_t *members)
{
    unsigned  i;

    static const char *const  openai[] = {
        "max_tokens", "temperature", "top_p", "n", "best_of", "echo", "stop",
        "user", "stream_options", "frequency_penalty", "presence_penalty",
        "logit_bias"
    };

    if (!kx_members_has(members, "model", KX_JSON_STRING)) {
        return 0;
    }

    if (kx_members_has(members, "messages", KX_JSON_ARRAY)) {
        return 1;
    }

    for (i = 0; i < sizeof(openai) / sizeof(openai[0]); i++) {
        if (kx_members_get(members, openai[i])) {
            return 0;
        }
    }

    return kx_members_has(members, "prompt", KX_JSON_STRING);
}


static void
kx_ollama_start(kx_conversation_t *cv, const kx_str_t *path)
{
    cv->stream = 1;

    if (kx_ollama_path(path) == KX_OK) {
        cv->variant = KX_OLLAMA_GENERATE;
    }
}


static int
kx_ollama_request(kx_conversation_t *cv, kx_json_t *j)
{
    int                 rc;
    kx_str_t            key;
    kx_ollama_prompt_t  prompt;

    memset(&prompt, 0, sizeof(kx_ollama_prompt_t));

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        rc = kx_ollama_request_member(cv, j, &key, &prompt);

        if (rc != KX_OK) {
            return rc;
        }
    }

    if (rc != KX_DONE) {
        return rc;
    }

    if (prompt.prompt.len == 0 || cv->has_messages) {
        return KX_OK;
    }

    cv->has_messages = 1;

    /* code that is to be completed is nobody's question */

    return kx_conversation_message(cv, (prompt.raw || prompt.suffix)
                                       ? KX_ROLE_OTHER : KX_ROLE_USER,
                                   &prompt.prompt, NULL);
}


static int
kx_ollama_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key, kx_ollama_prompt_t *prompt)
{
    kx_str_t        raw;
    kx_json_type_e  type;

    if (kx_json_is(key, "messages") && cv->variant != KX_OLLAMA_GENERATE) {
        return kx_conversation_list(cv, j, kx_ollama_role);
    }

    type = kx_json_type(j);

    if (kx_json_skip(j, &raw) != KX_OK) {
        return KX_ERROR;
    }

    if (kx_json_is(key, "prompt")) {
        prompt->prompt.len = (type == KX_JSON_STRING) ? raw.len : 0;
        prompt->prompt.data = raw.data;

    } else if (kx_json_is(key, "raw")) {
        prompt->raw = (type == KX_JSON_TRUE);

    } else if (kx_json_is(key, "suffix")) {
        prompt->suffix = (type == KX_JSON_STRING && raw.len > 2);

    } else if (kx_json_is(key, "stream")) {
        cv->stream = (type != KX_JSON_FALSE);

    } else if (kx_json_is(key, "format")) {
        cv->json_mode = (type != KX_JSON_NULL
                         && !(type == KX_JSON_STRING && raw.len == 2));
    }

    return KX_OK;
}


/* Ollama takes "User" for "user" */

static kx_role_e
kx_ollama_role(const kx_str_t *raw)
{
    ssize_t        i, n;
    unsigned char  buf[sizeof("assistant") - 1];

    n = kx_json_copy(raw, buf, sizeof(buf));

    for (i = 0; i < n; i++) {
        if (buf[i] >= 'A' && buf[i] <= 'Z') {
            buf[i] |= 0x20;
        }
    }

    if (n == 4 && memcmp(buf, "user", 4) == 0) {
        return KX_ROLE_USER;
    }

    if (n == 9 && memcmp(buf, "assistant", 9) == 0) {
        return KX_ROLE_ASSISTANT;
    }

    return KX_ROLE_OTHER;
}


/* there are no parts */

static void
kx_ollama_content(const kx_str_t *content, kx_sink_pt sink, void *data)
{
    kx_content_text(content, &kx_ollama_empty, sink, data);
}


/* an answer in one piece is one line with all of it */

static kx_frame_e
kx_ollama_frame(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_ollama_line_t  line;

    if (kx_ollama_read(&fr->data, &line) != KX_OK) {
        return KX_FRAME_PASS;
    }

    return kx_ollama_line(a, &line);
}


/*
 * The last line of /api/generate has the tokens of the conversation, behind
 * all that matters here.
 */

static kx_frame_e
kx_ollama_head(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_ollama_line_t  line;

    static const kx_str_t  before = kx_string("\"kontext\":");
    static const kx_str_t  after = kx_string(",");

    if (a->framing != KX_FRAMING_LINES || a->form != KX_FORM_MEMBER) {
        return KX_FRAME_PASS;
    }

    if (kx_ollama_read(&fr->data, &line) == KX_DECLINED
        || !line.done || line.reason.len == 0
        || kx_ollama_line(a, &line) != KX_FRAME_FINISH)
    {
        return KX_FRAME_PASS;
    }

    /* in front of all others, of which there are some */

    return (kx_answer_place(a, fr->data.data + 1, &before, &after) == KX_OK)
           ? KX_FRAME_FINISH : KX_FRAME_PASS;
}


static kx_frame_e
kx_ollama_line(kx_answer_t *a, const kx_ollama_line_t *line)
{
    kx_str_t      raw;
    kx_ollama_t  *state;

    if (line->error) {
        a->refused = KX_REASON_ERROR_FRAME;
        return KX_FRAME_PASS;
    }

    if (a->complete) {
        return KX_FRAME_PASS;
    }

    state = a->state;
    a->found[0].len = 0;

    if (line->message) {
        state->form = KX_OLLAMA_FORM_CHAT;
        a->found[0] = line->content;

    } else if (line->response.len) {
        state->form = KX_OLLAMA_FORM_GENERATE;
        a->found[0] = line->response;
    }

    if (a->found[0].len) {
        raw.data = a->found[0].data + 1;
        raw.len = a->found[0].len - 2;

        kx_answer_text(a, &raw);
    }

    if (line->tools) {
        a->refused = KX_REASON_TOOL_CALLS;
    }

    if (!line->done) {
        return KX_FRAME_PASS;
    }

    if (!kx_ollama_normal(&line->reason)) {
        a->refused = KX_REASON_FINISH_REASON;
    }

    a->complete = 1;

    return KX_FRAME_FINISH;
}


/*
 * KX_DECLINED: it is no object; KX_ERROR: it is bad, or ends too soon, and
 * line has what stands in front of that.
 */

static int
kx_ollama_read(const kx_str_t *data, kx_ollama_line_t *line)
{
    int             rc;
    kx_str_t        key, raw;
    kx_json_t       j;
    kx_json_type_e  type;

    memset(line, 0, sizeof(kx_ollama_line_t));

    kx_json_init(&j, data->data, data->len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return KX_DECLINED;
    }

    while ((rc = kx_json_member(&j, &key)) == KX_OK) {
        type = kx_json_type(&j);

        if (type == KX_JSON_OBJECT && kx_json_is(&key, "message")) {

            if (kx_ollama_read_message(&j, line) != KX_OK) {
                return KX_ERROR;
            }

            continue;
        }

        if (kx_json_skip(&j, &raw) != KX_OK) {
            return KX_ERROR;
        }

        if (kx_json_is(&key, "done")) {
            line->done = (type == KX_JSON_TRUE);

        } else if (type == KX_JSON_NULL) {
            continue;

        } else if (kx_json_is(&key, "response")) {
            line->response.len = (type == KX_JSON_STRING) ? raw.len : 0;
            line->response.data = raw.data;

        } else if (kx_json_is(&key, "done_reason")) {
            line->reason = raw;

        } else if (kx_json_is(&key, "error")) {
            line->error = 1;
        }
    }

    return (rc == KX_DONE && kx_json_end(&j) == KX_OK) ? KX_OK : KX_ERROR;
}


static int
kx_ollama_read_message(kx_json_t *j, kx_ollama_line_t *line)
{
    int             rc;
    kx_str_t        key, raw;
    kx_json_type_e  type;

    line->message = 1;
    line->content.len = 0;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        rc = kx_json_skip(j, &raw);
        if (rc != KX_OK) {
            return rc;
        }

        if (kx_json_is(&key, "content")) {
            line->content.len = (type == KX_JSON_STRING) ? raw.len : 0;
            line->content.data = raw.data;

        } else if (type == KX_JSON_ARRAY && kx_json_is(&key, "tool_calls")) {

            /* an empty list is none */

            line->tools |= (memchr(raw.data, '{', raw.len) != NULL);
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


/* older versions have no reason */

static unsigned
kx_ollama_normal(const kx_str_t *reason)
{
    kx_str_t  raw;

    if (reason->len == 0) {
        return 1;
    }

    if (reason->data[0] != '"') {
        return 0;
    }

    raw.data = reason->data + 1;
    raw.len = reason->len - 2;

    return raw.len == 0
           || kx_json_is(&raw, "stop")
           || kx_json_is(&raw, "length");
}


/*
 * In a line of its own: there are clients that take a text in the last line
 * for an error (chat-apis.md 7.3, 5b).  Where it has one all the same, that is
 * the end of the answer.
 */

static int
kx_ollama_text(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_str_t     *content;
    kx_ollama_t  *state;

    state = a->state;
    content = &a->found[0];

    if (content->len > 2) {
        return kx_answer_place(a, content->data + content->len - 1,
                               &kx_ollama_empty, &kx_ollama_empty);
    }

    if (a->framing == KX_FRAMING_WHOLE
        || state->form == KX_OLLAMA_FORM_UNKNOWN)
    {
        return KX_DECLINED;
    }

    return kx_ollama_text_line(a, fr);
}


static int
kx_ollama_text_line(kx_answer_t *a, const kx_frame_t *fr)
{
    int              rc;
    unsigned         i, n, chat;
    kx_str_t         parts[8], before, after;
    kx_ollama_t     *state;
    kx_members_t     members;
    const kx_str_t  *value;

    static const char *const  names[] = { "model", "created_at" };

    static const kx_str_t  keys[] = {
        kx_string("\"model\":"),
        kx_string("\"created_at\":")
    };

    static const kx_str_t  start = kx_string("{");
    static const kx_str_t  comma = kx_string(",");
    static const kx_str_t  message =
        kx_string("\"message\":{\"role\":\"assistant\",\"content\":\"");
    static const kx_str_t  message_end = kx_string("\"},\"done\":false}");
    static const kx_str_t  response = kx_string("\"response\":\"");
    static const kx_str_t  response_end = kx_string("\",\"done\":false}");
    static const kx_str_t  lf = kx_string("\n");

    if (kx_members_read(&members, fr->data.data, fr->data.len) != KX_OK) {
        return KX_DECLINED;
    }

    state = a->state;
    chat = (state->form == KX_OLLAMA_FORM_CHAT);

    n = 0;
    parts[n++] = start;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        value = kx_members_scalar(&members, names[i]);

        if (value) {
            parts[n++] = keys[i];
            parts[n++] = *value;
            parts[n++] = comma;
        }
    }

    parts[n++] = chat ? message : response;

    rc = kx_answer_join(a, &before, parts, n);
    if (rc != KX_OK) {
        return rc;
    }

    /* the last line may have no end, or a lone CR, which is none */

    parts[0] = chat ? message_end : response_end;
    parts[1] = (fr->eol.data[fr->eol.len - 1] == '\n') ? fr->eol : lf;

    rc = kx_answer_join(a, &after, parts, 2);
    if (rc != KX_OK) {
        return rc;
    }

    return kx_answer_place(a, NULL, &before, &after);
}
