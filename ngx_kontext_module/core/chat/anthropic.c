/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Anthropic Messages (chat-apis.md 6).
 */


#include "dialect.h"


#define KX_ANTHROPIC_MAX_BLOCKS  1000000


/* of an event, or of a whole message; raw JSON, and raw strings */

typedef struct {
    kx_str_t    index;
    kx_str_t    delta;
    kx_str_t    block;
    kx_str_t    message;
    kx_str_t    content;
    kx_str_t    type;
    kx_str_t    id;
    kx_str_t    stop;
    unsigned    error:1;
} kx_anthropic_event_t;


/* blocks come one after the other, they do not interleave */

typedef struct {
    unsigned    blocks;              /* the highest index and one */
    unsigned    text:1;              /* the newest block is one of text */
    unsigned    tool:1;              /* it calls a tool of the client */
    unsigned    open:1;              /* it has not been stopped */
    unsigned    parts:1;             /* there was a block of text */
    unsigned    odd:1;               /* an index was none */
    kx_str_t    place;               /* raw, delta or content of the finish */
} kx_anthropic_t;


/* what Claude Code puts into metadata.user_id */

typedef struct {
    kx_str_t    device;
    kx_str_t    account;             /* may be empty */
    kx_str_t    session;
} kx_anthropic_user_t;


static int kx_anthropic_path(const kx_str_t *path);
static unsigned kx_anthropic_body(const kx_members_t *members);
static int kx_anthropic_request(kx_conversation_t *cv, kx_json_t *j);
static int kx_anthropic_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key);
static int kx_anthropic_tool_choice(kx_conversation_t *cv, kx_json_t *j);
static int kx_anthropic_output(kx_conversation_t *cv, kx_json_t *j);
static int kx_anthropic_metadata(kx_conversation_t *cv, kx_json_t *j);
static unsigned kx_anthropic_user_string(const kx_str_t *value,
    kx_anthropic_user_t *user);
static unsigned kx_anthropic_user_json(const kx_str_t *value,
    kx_anthropic_user_t *user);
static unsigned kx_anthropic_word(kx_str_t *s, const kx_str_t *word);
static unsigned kx_anthropic_run(kx_str_t *s, kx_str_t *run);
static unsigned kx_anthropic_uuid(const kx_str_t *s);
static void kx_anthropic_content(const kx_str_t *content, kx_sink_pt sink,
    void *data);
static kx_frame_e kx_anthropic_frame(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_anthropic_whole(kx_answer_t *a, const kx_frame_t *fr);
static int kx_anthropic_read(const kx_str_t *data, kx_anthropic_event_t *ev);
static void kx_anthropic_start(kx_answer_t *a,
    const kx_anthropic_event_t *ev);
static void kx_anthropic_delta(kx_answer_t *a,
    const kx_anthropic_event_t *ev);
static kx_frame_e kx_anthropic_finish(kx_answer_t *a, const kx_str_t *stop,
    const kx_str_t *place);
static void kx_anthropic_blocks(kx_anthropic_t *state,
    const kx_str_t *content);
static void kx_anthropic_index(kx_anthropic_t *state, const kx_str_t *raw);
static int kx_anthropic_member(kx_answer_t *a, const kx_frame_t *fr);
static int kx_anthropic_text(kx_answer_t *a, const kx_frame_t *fr);
static int kx_anthropic_text_whole(kx_answer_t *a);
static int kx_anthropic_text_block(kx_answer_t *a, const kx_frame_t *fr);


static const kx_str_t  kx_anthropic_empty = kx_string("");


static const kx_str_t  kx_anthropic_noise[] = {
    kx_string("")
};


const kx_dialect_t  kx_anthropic = {
    kx_string("anthropic"),
    kx_string("anthropic-version"),
    KX_FRAMING_SSE|KX_FRAMING_WHOLE,
    sizeof(kx_anthropic_t),
    kx_anthropic_noise,
    kx_anthropic_path,
    kx_anthropic_body,
    NULL,
    kx_anthropic_request,
    kx_anthropic_content,
    kx_anthropic_frame,
    NULL,
    kx_anthropic_whole,
    kx_anthropic_member,
    kx_anthropic_text
};


static int
kx_anthropic_path(const kx_str_t *path)
{
    if (kx_path_ends(path, "/v1/messages")) {
        return KX_OK;
    }

    return kx_path_ends(path, "/messages") ? KX_AGAIN : KX_DECLINED;
}


static unsigned
kx_anthropic_body(const kx_members_t *members)
{
    unsigned  i;

    static const char *const  openai[] = {
        "n", "response_format", "stream_options", "user", "stop", "seed",
        "logprobs", "logit_bias", "frequency_penalty", "presence_penalty",
        "parallel_tool_calls", "max_completion_tokens"
    };

    if (!kx_members_has(members, "messages", KX_JSON_ARRAY)
        || !kx_members_has(members, "max_tokens", KX_JSON_NUMBER))
    {
        return 0;
    }

    if (kx_members_has(members, "system", KX_JSON_STRING)
        || kx_members_has(members, "system", KX_JSON_ARRAY)
        || kx_members_has(members, "anthropic_version", KX_JSON_STRING))
    {
        return 1;
    }

    for (i = 0; i < sizeof(openai) / sizeof(openai[0]); i++) {
        if (kx_members_get(members, openai[i])) {
            return 0;
        }
    }

    return kx_members_has(members, "stop_sequences", KX_JSON_ARRAY)
           || kx_members_has(members, "thinking", KX_JSON_OBJECT)
           || kx_members_has(members, "top_k", KX_JSON_NUMBER);
}


static int
kx_anthropic_request(kx_conversation_t *cv, kx_json_t *j)
{
    return kx_conversation_members(cv, j, kx_anthropic_request_member);
}


static int
kx_anthropic_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key)
{
    kx_json_type_e  type;

    type = kx_json_type(j);

    if (kx_json_is(key, "messages")) {
        return kx_conversation_list(cv, j, kx_conversation_role);
    }

    if (kx_json_is(key, "stream")) {
        cv->stream = (type == KX_JSON_TRUE);
        return kx_json_skip(j, NULL);
    }

    if (kx_json_is(key, "metadata")) {
        return kx_anthropic_metadata(cv, j);
    }

    if (kx_json_is(key, "tool_choice")) {
        return kx_anthropic_tool_choice(cv, j);
    }

    if (kx_json_is(key, "output_config")) {
        return kx_anthropic_output(cv, j);
    }

    if (type != KX_JSON_NULL && kx_json_is(key, "output_format")) {
        cv->json_mode = 1;
    }

    return kx_json_skip(j, NULL);
}


static int
kx_anthropic_tool_choice(kx_conversation_t *cv, kx_json_t *j)
{
    kx_str_t      raw, type;
    kx_members_t  members;

    if (kx_json_skip(j, &raw) != KX_OK) {
        return KX_ERROR;
    }

    cv->forced_tools = kx_members_read(&members, raw.data, raw.len) == KX_OK
                       && kx_members_string(&members, "type", &type)
                       && (kx_json_is(&type, "any")
                           || kx_json_is(&type, "tool"));

    return KX_OK;
}


static int
kx_anthropic_output(kx_conversation_t *cv, kx_json_t *j)
{
    kx_str_t      raw;
    kx_members_t  members;

    if (kx_json_skip(j, &raw) != KX_OK) {
        return KX_ERROR;
    }

    if (kx_members_read(&members, raw.data, raw.len) == KX_OK
        && kx_members_get(&members, "format")
        && !kx_members_has(&members, "format", KX_JSON_NULL))
    {
        cv->json_mode = 1;
    }

    return KX_OK;
}


/*
 * Claude Code's user_id changes with its session: what is left of both its
 * forms without that, is written in the older one.
 */

static int
kx_anthropic_metadata(kx_conversation_t *cv, kx_json_t *j)
{
    int                   rc;
    unsigned              i;
    unsigned char        *p;
    const kx_str_t       *parts[4];
    kx_anthropic_user_t   user;

    static const kx_str_t  prefix = kx_string("user_");
    static const kx_str_t  infix = kx_string("_account_");

    rc = kx_conversation_metadata(cv, j);

    if (rc != KX_OK || cv->user.rank != KX_IDENTITY_METADATA) {
        return rc;
    }

    if (!kx_anthropic_user_string(&cv->user.value, &user)
        && !kx_anthropic_user_json(&cv->user.value, &user))
    {
        return KX_OK;
    }

    parts[0] = &prefix;
    parts[1] = &user.device;
    parts[2] = &infix;
    parts[3] = &user.account;

    p = cv->pool->alloc(cv->pool->data, KX_MAX_IDENTITY);
    if (p == NULL) {
        return KX_AGAIN;
    }

    if (cv->conversation.rank >= KX_IDENTITY_METADATA4) {
        cv->conversation.rank = KX_IDENTITY_METADATA4;
        cv->conversation.value = user.session;
    }

    /* shorter than what it was taken from, in both forms */

    cv->user.value.data = p;

    for (i = 0; i < 4; i++) {
        if (parts[i]->len) {
            memcpy(p, parts[i]->data, parts[i]->len);
            p += parts[i]->len;
        }
    }

    cv->user.value.len = (size_t) (p - cv->user.value.data);

    return KX_OK;
}


/* user_<device>_account_<uuid>_session_<uuid> */

static unsigned
kx_anthropic_user_string(const kx_str_t *value, kx_anthropic_user_t *user)
{
    kx_str_t  s;

    static const kx_str_t  prefix = kx_string("user_");
    static const kx_str_t  account = kx_string("_account_");
    static const kx_str_t  session = kx_string("_session_");

    s = *value;

    if (!kx_anthropic_word(&s, &prefix)
        || !kx_anthropic_run(&s, &user->device)
        || !kx_anthropic_word(&s, &account))
    {
        return 0;
    }

    if (kx_anthropic_run(&s, &user->account)
        && !kx_anthropic_uuid(&user->account))
    {
        return 0;
    }

    return kx_anthropic_word(&s, &session)
           && kx_anthropic_run(&s, &user->session)
           && kx_anthropic_uuid(&user->session)
           && s.len == 0;
}


/* {"device_id":"...","account_uuid":"<uuid>","session_id":"<uuid>"} */

static unsigned
kx_anthropic_user_json(const kx_str_t *value, kx_anthropic_user_t *user)
{
    int        rc;
    kx_str_t   key, raw, run, *part;
    kx_json_t  j;

    memset(user, 0, sizeof(kx_anthropic_user_t));

    kx_json_init(&j, value->data, value->len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return 0;
    }

    while ((rc = kx_json_member(&j, &key)) == KX_OK) {
        part = kx_json_is(&key, "device_id") ? &user->device
               : kx_json_is(&key, "account_uuid") ? &user->account
               : kx_json_is(&key, "session_id") ? &user->session : NULL;

        if (part == NULL) {
            rc = kx_json_skip(&j, NULL);

        } else {
            rc = kx_json_string(&j, part);
        }

        if (rc != KX_OK) {
            return 0;
        }
    }

    if (rc != KX_DONE || kx_json_end(&j) != KX_OK
        || user->device.len == 0 || user->account.data == NULL)
    {
        return 0;
    }

    raw = user->device;

    return kx_anthropic_run(&raw, &run)
           && raw.len == 0
           && (user->account.len == 0 || kx_anthropic_uuid(&user->account))
           && kx_anthropic_uuid(&user->session);
}


static unsigned
kx_anthropic_word(kx_str_t *s, const kx_str_t *word)
{
    if (s->len < word->len || memcmp(s->data, word->data, word->len) != 0) {
        return 0;
    }

    s->data += word->len;
    s->len -= word->len;

    return 1;
}


/* letters, digits and "-", one at least */

static unsigned
kx_anthropic_run(kx_str_t *s, kx_str_t *run)
{
    size_t         i;
    unsigned char  c;

    for (i = 0; i < s->len; i++) {
        c = s->data[i];

        if ((c < '0' || c > '9') && (c < 'a' || c > 'z')
            && (c < 'A' || c > 'Z') && c != '-')
        {
            break;
        }
    }

    run->data = s->data;
    run->len = i;

    s->data += i;
    s->len -= i;

    return i != 0;
}


static unsigned
kx_anthropic_uuid(const kx_str_t *s)
{
    size_t         i;
    unsigned char  c;

    if (s->len != KX_UUID_LEN) {
        return 0;
    }

    for (i = 0; i < KX_UUID_LEN; i++) {
        c = s->data[i];

        if (i == 8 || i == 13 || i == 18 || i == 23) {

            if (c != '-') {
                return 0;
            }

        } else if ((c < '0' || c > '9') && (c < 'a' || c > 'f')
                   && (c < 'A' || c > 'F'))
        {
            return 0;
        }
    }

    return 1;
}


static void
kx_anthropic_content(const kx_str_t *content, kx_sink_pt sink, void *data)
{
    static const kx_str_t  types[] = {
        kx_string("text"),
        kx_string("")
    };

    kx_content_text(content, types, sink, data);
}


static kx_frame_e
kx_anthropic_frame(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_str_t               raw;
    kx_members_t           members;
    kx_anthropic_t        *state;
    kx_anthropic_event_t   ev;

    state = a->state;

    if (fr->event.len == 5 && memcmp(fr->event.data, "error", 5) == 0) {
        a->refused = KX_REASON_ERROR_FRAME;
        return KX_FRAME_PASS;
    }

    if (kx_anthropic_read(&fr->data, &ev) != KX_OK) {
        return KX_FRAME_PASS;
    }

    if (ev.error || kx_json_is(&ev.type, "error")) {
        a->refused = KX_REASON_ERROR_FRAME;
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&ev.type, "content_block_delta")) {
        kx_anthropic_delta(a, &ev);
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&ev.type, "content_block_start")) {
        kx_anthropic_start(a, &ev);
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&ev.type, "content_block_stop")) {
        kx_anthropic_index(state, &ev.index);
        state->open = 0;
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&ev.type, "message_start")) {

        if (a->response_id.len == 0
            && kx_members_read(&members, ev.message.data, ev.message.len)
               == KX_OK
            && kx_members_string(&members, "id", &raw))
        {
            kx_answer_id(a, &a->response_id, &raw);
        }

        return KX_FRAME_PASS;
    }

    if (kx_json_is(&ev.type, "message_delta")) {

        if (kx_members_read(&members, ev.delta.data, ev.delta.len) == KX_OK
            && kx_members_string(&members, "stop_reason", &raw))
        {
            return kx_anthropic_finish(a, &raw, &ev.delta);
        }

        return KX_FRAME_PASS;
    }

    return kx_json_is(&ev.type, "message_stop") ? KX_FRAME_END
                                                : KX_FRAME_PASS;
}


static kx_frame_e
kx_anthropic_whole(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_anthropic_event_t  ev;

    if (kx_anthropic_read(&fr->data, &ev) != KX_OK) {
        return KX_FRAME_PASS;
    }

    if (ev.error || kx_json_is(&ev.type, "error")) {
        a->refused = KX_REASON_ERROR_FRAME;
        return KX_FRAME_PASS;
    }

    if (!kx_json_is(&ev.type, "message")
        || ev.content.len == 0 || ev.content.data[0] != '[')
    {
        return KX_FRAME_PASS;
    }

    if (ev.id.len) {
        kx_answer_id(a, &a->response_id, &ev.id);
    }

    kx_anthropic_blocks(a->state, &ev.content);
    kx_anthropic_content(&ev.content, kx_answer_decoded, a);

    return kx_anthropic_finish(a, &ev.stop, &ev.content);
}


static int
kx_anthropic_read(const kx_str_t *data, kx_anthropic_event_t *ev)
{
    int             rc;
    kx_str_t        key, raw, *part;
    kx_json_t       j;
    kx_json_type_e  type;

    memset(ev, 0, sizeof(kx_anthropic_event_t));

    kx_json_init(&j, data->data, data->len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return KX_DECLINED;
    }

    while ((rc = kx_json_member(&j, &key)) == KX_OK) {
        type = kx_json_type(&j);

        if (type == KX_JSON_STRING) {

            if (kx_json_string(&j, &raw) != KX_OK) {
                return KX_DECLINED;
            }

            part = kx_json_is(&key, "type") ? &ev->type
                   : kx_json_is(&key, "id") ? &ev->id
                   : kx_json_is(&key, "stop_reason") ? &ev->stop : NULL;

        } else {

            if (kx_json_skip(&j, &raw) != KX_OK) {
                return KX_DECLINED;
            }

            part = kx_json_is(&key, "index") ? &ev->index
                   : kx_json_is(&key, "delta") ? &ev->delta
                   : kx_json_is(&key, "content_block") ? &ev->block
                   : kx_json_is(&key, "message") ? &ev->message
                   : kx_json_is(&key, "content") ? &ev->content : NULL;
        }

        if (part) {
            *part = raw;

        } else if (type != KX_JSON_NULL && kx_json_is(&key, "error")) {
            ev->error = 1;
        }
    }

    return (rc == KX_DONE && kx_json_end(&j) == KX_OK) ? KX_OK : KX_DECLINED;
}


static void
kx_anthropic_start(kx_answer_t *a, const kx_anthropic_event_t *ev)
{
    kx_str_t         type, text;
    kx_members_t     members;
    kx_anthropic_t  *state;

    state = a->state;

    kx_anthropic_index(state, &ev->index);

    state->open = 1;
    state->text = 0;
    state->tool = 0;

    if (kx_members_read(&members, ev->block.data, ev->block.len) != KX_OK
        || !kx_members_string(&members, "type", &type))
    {
        return;
    }

    state->tool = kx_json_is(&type, "tool_use") ? 1 : 0;
    state->text = kx_json_is(&type, "text") ? 1 : 0;

    if (!state->text) {
        return;
    }

    if (state->parts) {

        /* as content() joins the blocks when they come back */

        kx_answer_break(a);
    }

    state->parts = 1;

    if (kx_members_string(&members, "text", &text)) {
        kx_answer_text(a, &text);
    }
}


static void
kx_anthropic_delta(kx_answer_t *a, const kx_anthropic_event_t *ev)
{
    kx_str_t         type, text;
    kx_members_t     members;
    kx_anthropic_t  *state;

    state = a->state;

    kx_anthropic_index(state, &ev->index);

    if (state->text
        && kx_members_read(&members, ev->delta.data, ev->delta.len) == KX_OK
        && kx_members_string(&members, "type", &type)
        && kx_json_is(&type, "text_delta")
        && kx_members_string(&members, "text", &text))
    {
        kx_answer_text(a, &text);
    }
}


static kx_frame_e
kx_anthropic_finish(kx_answer_t *a, const kx_str_t *stop,
    const kx_str_t *place)
{
    kx_anthropic_t  *state;

    if (a->complete || stop->len == 0) {
        return KX_FRAME_PASS;
    }

    if (kx_json_is(stop, "tool_use") || kx_json_is(stop, "pause_turn")) {
        a->refused = KX_REASON_TOOL_CALLS;

    } else if (kx_json_is(stop, "refusal")) {
        a->refused = KX_REASON_REFUSAL;

    } else if (!kx_json_is(stop, "end_turn")
               && !kx_json_is(stop, "max_tokens")
               && !kx_json_is(stop, "stop_sequence"))
    {
        a->refused = KX_REASON_FINISH_REASON;
    }

    state = a->state;
    state->place = *place;

    a->complete = 1;

    return KX_FRAME_FINISH;
}


static void
kx_anthropic_blocks(kx_anthropic_t *state, const kx_str_t *content)
{
    kx_str_t      raw, type;
    kx_json_t     j;
    kx_members_t  members;

    kx_json_init(&j, content->data, content->len);

    if (kx_json_enter(&j) != KX_OK) {
        return;
    }

    while (kx_json_element(&j) == KX_OK && kx_json_skip(&j, &raw) == KX_OK) {
        state->blocks++;

        state->tool = kx_members_read(&members, raw.data, raw.len) == KX_OK
                      && kx_members_string(&members, "type", &type)
                      && kx_json_is(&type, "tool_use");
    }
}


/* not only of a start, which may have been too large to be read */

static void
kx_anthropic_index(kx_anthropic_t *state, const kx_str_t *raw)
{
    size_t    i;
    unsigned  n;

    n = 0;

    for (i = 0; i < raw->len; i++) {

        if (raw->data[i] < '0' || raw->data[i] > '9') {
            break;
        }

        n = n * 10 + (unsigned) (raw->data[i] - '0');

        if (n >= KX_ANTHROPIC_MAX_BLOCKS) {
            break;
        }
    }

    if (i == 0 || i < raw->len) {
        state->odd = 1;
        return;
    }

    if (n >= state->blocks) {
        state->blocks = n + 1;
    }
}


/*
 * Inside the delta, where LangChain finds it, and beside it, where others do
 * (chat-apis.md 6.4, 4a and 4b).  The delta is not empty: it has the reason.
 */

static int
kx_anthropic_member(kx_answer_t *a, const kx_frame_t *fr)
{
    int                   rc;
    kx_anthropic_t       *state;
    const unsigned char  *at, *tail;

    static const kx_str_t  before = kx_string(",\"kontext\":");

    if (a->framing == KX_FRAMING_WHOLE) {
        return kx_answer_member(a, fr);
    }

    state = a->state;

    at = state->place.data + state->place.len - 1;
    tail = fr->data.data + fr->data.len - fr->tail.len;

    /* in a joined event it may stand in front of the last line */

    if (at >= tail) {
        rc = kx_answer_place(a, at, &before, &kx_anthropic_empty);
        if (rc != KX_OK) {
            return rc;
        }
    }

    return kx_answer_member(a, fr);
}


static int
kx_anthropic_text(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_anthropic_t  *state;

    state = a->state;

    /* a tool's result has to follow it */

    if (state->tool) {
        return KX_DECLINED;
    }

    if (a->framing == KX_FRAMING_WHOLE) {
        return kx_anthropic_text_whole(a);
    }

    if (state->open || state->odd) {
        return KX_DECLINED;
    }

    return kx_anthropic_text_block(a, fr);
}


static int
kx_anthropic_text_whole(kx_answer_t *a)
{
    kx_anthropic_t       *state;
    const unsigned char  *at;

    static const kx_str_t  next =
        kx_string(",{\"type\":\"text\",\"text\":\"");
    static const kx_str_t  first =
        kx_string("{\"type\":\"text\",\"text\":\"");
    static const kx_str_t  after = kx_string("\"}");

    state = a->state;

    at = state->place.data + state->place.len - 1;

    return kx_answer_place(a, at, state->blocks ? &next : &first, &after);
}


/* a block of its own in front of the message_delta (chat-apis.md 6.4, 5b) */

static int
kx_anthropic_text_block(kx_answer_t *a, const kx_frame_t *fr)
{
    int              rc;
    unsigned         n;
    kx_str_t         parts[11], before, after, index;
    unsigned char   *p, buf[16];
    kx_anthropic_t  *state;

    static const kx_str_t  start = kx_string("event: content_block_start");
    static const kx_str_t  start_data =
        kx_string("data: {\"type\":\"content_block_start\",\"index\":");
    static const kx_str_t  block =
        kx_string(",\"content_block\":{\"type\":\"text\",\"text\":\"\"}}");
    static const kx_str_t  delta = kx_string("event: content_block_delta");
    static const kx_str_t  delta_data =
        kx_string("data: {\"type\":\"content_block_delta\",\"index\":");
    static const kx_str_t  text =
        kx_string(",\"delta\":{\"type\":\"text_delta\",\"text\":\"");
    static const kx_str_t  delta_end = kx_string("\"}}");
    static const kx_str_t  stop = kx_string("event: content_block_stop");
    static const kx_str_t  stop_data =
        kx_string("data: {\"type\":\"content_block_stop\",\"index\":");
    static const kx_str_t  stop_end = kx_string("}");

    state = a->state;

    p = buf + sizeof(buf);
    n = state->blocks;

    do {
        *--p = (unsigned char) ('0' + n % 10);
        n /= 10;
    } while (n);

    index.data = p;
    index.len = (size_t) (buf + sizeof(buf) - p);

    n = 0;
    parts[n++] = start;
    parts[n++] = fr->eol;
    parts[n++] = start_data;
    parts[n++] = index;
    parts[n++] = block;
    parts[n++] = fr->eol;
    parts[n++] = fr->eol;
    parts[n++] = delta;
    parts[n++] = fr->eol;

    rc = kx_answer_join(a, &before, parts, n);
    if (rc != KX_OK) {
        return rc;
    }

    n = 0;
    parts[n++] = before;
    parts[n++] = delta_data;
    parts[n++] = index;
    parts[n++] = text;

    rc = kx_answer_join(a, &before, parts, n);
    if (rc != KX_OK) {
        return rc;
    }

    n = 0;
    parts[n++] = delta_end;
    parts[n++] = fr->eol;
    parts[n++] = fr->eol;
    parts[n++] = stop;
    parts[n++] = fr->eol;
    parts[n++] = stop_data;
    parts[n++] = index;
    parts[n++] = stop_end;
    parts[n++] = fr->eol;
    parts[n++] = fr->eol;

    rc = kx_answer_join(a, &after, parts, n);
    if (rc != KX_OK) {
        return rc;
    }

    return kx_answer_place(a, NULL, &before, &after);
}
