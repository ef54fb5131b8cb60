/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * OpenAI Responses (chat-apis.md 5), as also spoken by Azure, OpenRouter,
 * vLLM, llama.cpp and others.
 */


#include "dialect.h"
#include "../text_ad.h"


#define KX_RESPONSES_ITEMS     1024  /* whose kind is remembered */
#define KX_RESPONSES_DIGITS    7     /* of an output index */
#define KX_RESPONSES_ID_LEN    64    /* of an item's id, as for OpenAI */
#define KX_RESPONSES_PARTS     48    /* of a template, between two ads */


typedef struct {
    int                   next;      /* above all output indices so far */
    int                   item;      /* where the newest text belongs */
    int                   part;
    unsigned              text:1;    /* there was some */
    unsigned              tool:1;    /* the last item is the client's to do */
    unsigned              odd:1;     /* an index cannot be told */

    /* items whose text is no part of the answer */
    unsigned char         hidden[KX_RESPONSES_ITEMS / 8];
} kx_responses_t;


/* what the templates of an ad are filled in with */

typedef struct {
    kx_str_t              id;
    kx_str_t              index;
    kx_str_t              sequence;  /* raw, or empty */
    kx_str_t              eol;
    unsigned char         ids[KX_RESPONSES_ID_LEN];
    unsigned char         digits[KX_RESPONSES_DIGITS];
} kx_responses_fill_t;


static int kx_responses_path(const kx_str_t *path);
static unsigned kx_responses_body(const kx_members_t *members);
static int kx_responses_request(kx_conversation_t *cv, kx_json_t *j);
static int kx_responses_setting(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key);
static int kx_responses_input(kx_conversation_t *cv, kx_json_t *j);
static int kx_responses_message(kx_conversation_t *cv, kx_json_t *j);
static int kx_responses_conversation(kx_conversation_t *cv, kx_json_t *j);
static int kx_responses_format(kx_conversation_t *cv, kx_json_t *j);
static int kx_responses_tool_choice(kx_conversation_t *cv, kx_json_t *j);
static void kx_responses_content(const kx_str_t *content, kx_sink_pt sink,
    void *data);
static kx_frame_e kx_responses_frame(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_responses_head(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_responses_whole(kx_answer_t *a, const kx_frame_t *fr);
static kx_frame_e kx_responses_event(kx_answer_t *a, const kx_frame_t *fr,
    const kx_members_t *event);
static int kx_responses_index(kx_answer_t *a, const kx_members_t *event);
static void kx_responses_item(kx_answer_t *a, const kx_members_t *event,
    int index);
static void kx_responses_delta(kx_answer_t *a, const kx_members_t *event,
    int index);
static void kx_responses_response_id(kx_answer_t *a,
    const kx_members_t *response);
static void kx_responses_finish(kx_answer_t *a, const kx_members_t *response,
    unsigned incomplete);
static void kx_responses_output(kx_answer_t *a, const kx_str_t *output);
static unsigned kx_responses_output_item(kx_answer_t *a,
    const kx_members_t *item);
static unsigned kx_responses_refused(const kx_str_t *content);
static unsigned kx_responses_client_tool(const kx_str_t *type);
static unsigned kx_responses_error(const kx_members_t *members);
static void kx_responses_refuse(kx_answer_t *a, kx_reason_e reason);
static int kx_responses_member(kx_answer_t *a, const kx_frame_t *fr);
static int kx_responses_text(kx_answer_t *a, const kx_frame_t *fr);
static unsigned kx_responses_items(const kx_str_t *output);
static void kx_responses_item_id(kx_answer_t *a, kx_responses_fill_t *fill);
static void kx_responses_item_index(kx_answer_t *a,
    kx_responses_fill_t *fill);
static int kx_responses_place(kx_answer_t *a, const unsigned char *at,
    const char *template, const kx_responses_fill_t *fill);
static const kx_str_t *kx_responses_object(kx_answer_t *a,
    const kx_frame_t *fr, kx_members_t *event);
static int kx_responses_read(kx_members_t *members, const kx_str_t *data);
static int kx_responses_members(kx_members_t *members, kx_json_t *j);
static int kx_responses_element(kx_members_t *members, kx_json_t *j);
static unsigned kx_responses_is(const kx_members_t *members, const char *key,
    const char *value);
static int kx_responses_int(const kx_members_t *members, const char *key);


static const kx_str_t  kx_responses_noise[] = {
    kx_string("obfuscation"),
    kx_string("sequence_number"),
    kx_string("")
};


const kx_dialect_t  kx_openai_responses = {
    kx_string("openai_responses"),
    kx_string(""),
    KX_FRAMING_SSE|KX_FRAMING_WHOLE,
    sizeof(kx_responses_t),
    kx_responses_noise,
    kx_responses_path,
    kx_responses_body,
    NULL,
    kx_responses_request,
    kx_responses_content,
    kx_responses_frame,
    kx_responses_head,
    kx_responses_whole,
    kx_responses_member,
    kx_responses_text
};


/*
 * The events of one more item, with the members of OpenAI's own: %a is the
 * ad, %e a line end, %i the id of the item, %n its output index, %s the
 * sequence number.
 */

static const char  kx_responses_ad_events[] =

    "event: response.output_item.added%e"
    "data: {\"type\":\"response.output_item.added\",\"output_index\":%n,"
    "\"item\":{\"id\":\"%i\",\"type\":\"message\","
    "\"status\":\"in_progress\",\"content\":[],\"role\":\"assistant\"}%s}"
    "%e%e"

    "event: response.content_part.added%e"
    "data: {\"type\":\"response.content_part.added\",\"item_id\":\"%i\","
    "\"output_index\":%n,\"content_index\":0,\"part\":{"
    "\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],"
    "\"text\":\"\"}%s}"
    "%e%e"

    "event: response.output_text.delta%e"
    "data: {\"type\":\"response.output_text.delta\",\"item_id\":\"%i\","
    "\"output_index\":%n,\"content_index\":0,\"delta\":\"%a\","
    "\"logprobs\":[]%s}"
    "%e%e"

    "event: response.output_text.done%e"
    "data: {\"type\":\"response.output_text.done\",\"item_id\":\"%i\","
    "\"output_index\":%n,\"content_index\":0,\"text\":\"%a\","
    "\"logprobs\":[]%s}"
    "%e%e"

    "event: response.content_part.done%e"
    "data: {\"type\":\"response.content_part.done\",\"item_id\":\"%i\","
    "\"output_index\":%n,\"content_index\":0,\"part\":{"
    "\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],"
    "\"text\":\"%a\"}%s}"
    "%e%e"

    "event: response.output_item.done%e"
    "data: {\"type\":\"response.output_item.done\",\"output_index\":%n,"
    "\"item\":{\"id\":\"%i\",\"type\":\"message\",\"status\":\"completed\","
    "\"content\":[{\"type\":\"output_text\",\"annotations\":[],"
    "\"logprobs\":[],\"text\":\"%a\"}],\"role\":\"assistant\"}%s}"
    "%e%e";


/* the same item in the output of the response */

static const char  kx_responses_ad_item[] =
    ",{\"id\":\"%i\",\"type\":\"message\",\"status\":\"completed\","
    "\"content\":[{\"type\":\"output_text\",\"annotations\":[],"
    "\"logprobs\":[],\"text\":\"%a\"}],\"role\":\"assistant\"}";


static int
kx_responses_path(const kx_str_t *path)
{
    return kx_path_ends(path, "/responses") ? KX_OK : KX_DECLINED;
}


/*
 * Without "stream" it might as well be a request for embeddings, for a
 * moderation or for speech.
 */

static unsigned
kx_responses_body(const kx_members_t *members)
{
    return kx_members_has(members, "model", KX_JSON_STRING)
           && (kx_members_has(members, "input", KX_JSON_STRING)
               || kx_members_has(members, "input", KX_JSON_ARRAY))
           && (kx_members_has(members, "stream", KX_JSON_TRUE)
               || kx_members_has(members, "stream", KX_JSON_FALSE));
}


static int
kx_responses_request(kx_conversation_t *cv, kx_json_t *j)
{
    return kx_conversation_members(cv, j, kx_responses_setting);
}


static int
kx_responses_setting(kx_conversation_t *cv, kx_json_t *j, const kx_str_t *key)
{
    if (kx_json_is(key, "input")) {
        return kx_responses_input(cv, j);
    }

    if (kx_json_is(key, "stream")) {
        cv->stream = (kx_json_type(j) == KX_JSON_TRUE);
        return kx_json_skip(j, NULL);
    }

    if (kx_json_is(key, "conversation")) {
        return kx_responses_conversation(cv, j);
    }

    if (kx_json_is(key, "previous_response_id")) {
        cv->previous.len = 0;
        return kx_conversation_string(cv, j, &cv->previous);
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

    if (kx_json_is(key, "text")) {
        return kx_responses_format(cv, j);
    }

    if (kx_json_is(key, "tool_choice")) {
        return kx_responses_tool_choice(cv, j);
    }

    return kx_json_skip(j, NULL);
}


static int
kx_responses_input(kx_conversation_t *cv, kx_json_t *j)
{
    int             rc;
    kx_str_t        content;
    kx_json_type_e  type;

    kx_conversation_restart(cv);

    type = kx_json_type(j);

    cv->has_messages = (type == KX_JSON_STRING || type == KX_JSON_ARRAY);

    if (type != KX_JSON_ARRAY) {
        rc = kx_json_skip(j, &content);

        if (rc != KX_OK || type != KX_JSON_STRING) {
            return rc;
        }

        return kx_conversation_message(cv, KX_ROLE_USER, &content, NULL);
    }

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_element(j)) == KX_OK) {
        rc = kx_responses_message(cv, j);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


/*
 * An item.  Ids are not taken: only some clients send them, so that the same
 * message would have two (chat-apis.md 13).
 */

static int
kx_responses_message(kx_conversation_t *cv, kx_json_t *j)
{
    kx_str_t         id, type;
    kx_role_e        role;
    kx_members_t     item;
    const kx_str_t  *content;

    static const kx_str_t  none = kx_string("");

    if (kx_responses_members(&item, j) != KX_OK) {
        return KX_ERROR;
    }

    if (kx_members_string(&item, "id", &id)
        && id.len >= sizeof(KX_TEXT_AD_ID) - 1
        && memcmp(id.data, KX_TEXT_AD_ID, sizeof(KX_TEXT_AD_ID) - 1) == 0)
    {
        /* an ad that comes back, or a reference to it */
        return KX_OK;
    }

    /*
     * Reasoning, calls and their results, and references to what only the
     * server has: a user's message before them is not the newest any more.
     */

    role = KX_ROLE_OTHER;

    if (!kx_members_string(&item, "type", &type)
        || kx_json_is(&type, "message"))
    {
        if (kx_responses_is(&item, "role", "user")) {
            role = KX_ROLE_USER;

        } else if (kx_responses_is(&item, "role", "assistant")
                   && !kx_responses_is(&item, "phase", "commentary"))
        {
            role = KX_ROLE_ASSISTANT;
        }
    }

    content = kx_members_get(&item, "content");

    return kx_conversation_message(cv, role, content ? content : &none, NULL);
}


/* an id, or {"id": ...} */

static int
kx_responses_conversation(kx_conversation_t *cv, kx_json_t *j)
{
    kx_json_t        id;
    kx_members_t     members;
    const kx_str_t  *value;

    if (kx_json_type(j) != KX_JSON_OBJECT) {
        return kx_conversation_identity(cv, j, &cv->conversation,
                                       KX_IDENTITY_NATIVE);
    }

    if (kx_responses_members(&members, j) != KX_OK) {
        return KX_ERROR;
    }

    value = kx_members_get(&members, "id");

    if (value == NULL) {
        return KX_OK;
    }

    kx_json_init(&id, value->data, value->len);

    return kx_conversation_identity(cv, &id, &cv->conversation,
                                    KX_IDENTITY_NATIVE);
}


/* {"format": {"type": "json_schema", ... }} */

static int
kx_responses_format(kx_conversation_t *cv, kx_json_t *j)
{
    kx_str_t         type;
    kx_members_t     members;
    const kx_str_t  *value;

    if (kx_json_type(j) != KX_JSON_OBJECT) {
        return kx_json_skip(j, NULL);
    }

    if (kx_responses_members(&members, j) != KX_OK) {
        return KX_ERROR;
    }

    value = kx_members_get(&members, "format");

    if (value && kx_responses_read(&members, value) == KX_OK
        && kx_members_string(&members, "type", &type))
    {
        cv->json_mode = !kx_json_is(&type, "text");
    }

    return KX_OK;
}


static int
kx_responses_tool_choice(kx_conversation_t *cv, kx_json_t *j)
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


static void
kx_responses_content(const kx_str_t *content, kx_sink_pt sink, void *data)
{
    static const kx_str_t  types[] = {
        kx_string("input_text"),
        kx_string("output_text"),
        kx_string("text"),
        kx_string("")
    };

    kx_content_text(content, types, sink, data);
}


static kx_frame_e
kx_responses_frame(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_members_t  event;

    if (fr->data.len == 6 && memcmp(fr->data.data, "[DONE]", 6) == 0) {
        return KX_FRAME_END;
    }

    if (kx_responses_read(&event, &fr->data) != KX_OK) {
        event.n = 0;
    }

    return kx_responses_event(a, fr, &event);
}


/*
 * The last event says again what the instructions and the tools were, and
 * what the answer is.  Its beginning is enough.
 */

static kx_frame_e
kx_responses_head(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_members_t          event;
    const kx_str_t       *response;
    const unsigned char  *p, *last;

    static const kx_str_t  before = kx_string("\"kontext\":");
    static const kx_str_t  after = kx_string(",");

    if (kx_responses_read(&event, &fr->data) == KX_ERROR) {
        event.n = 0;
    }

    if (kx_responses_event(a, fr, &event) != KX_FRAME_FINISH) {
        return KX_FRAME_PASS;
    }

    if (a->refused != KX_REASON_NONE) {
        return KX_FRAME_FINISH;
    }

    if (a->form != KX_FORM_MEMBER) {
        return KX_FRAME_PASS;
    }

    response = kx_members_get(&event, "response");

    p = response->data + 1;
    last = response->data + response->len;

    while (p < last && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) {
        p++;
    }

    /* a comma needs a member that follows */

    if (p == last || *p != '"') {
        return KX_FRAME_PASS;
    }

    return (kx_answer_place(a, response->data + 1, &before, &after) == KX_OK)
           ? KX_FRAME_FINISH : KX_FRAME_PASS;
}


static kx_frame_e
kx_responses_whole(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_members_t  response;

    if (kx_responses_read(&response, &fr->data) != KX_OK) {
        return KX_FRAME_PASS;
    }

    if (!kx_members_has(&response, "output", KX_JSON_ARRAY)) {

        if (kx_responses_error(&response)) {
            kx_responses_refuse(a, KX_REASON_ERROR_FRAME);
        }

        return KX_FRAME_PASS;
    }

    /* in the background: the answer is to be asked for later */

    if (kx_responses_is(&response, "status", "queued")
        || kx_responses_is(&response, "status", "in_progress"))
    {
        return KX_FRAME_PASS;
    }

    kx_responses_response_id(a, &response);
    kx_responses_finish(a, &response, 0);

    return KX_FRAME_FINISH;
}


static kx_frame_e
kx_responses_event(kx_answer_t *a, const kx_frame_t *fr,
    const kx_members_t *event)
{
    int              index;
    unsigned         incomplete;
    kx_str_t         type;
    kx_members_t     response;
    const kx_str_t  *value;

    if ((fr->event.len == 5 && memcmp(fr->event.data, "error", 5) == 0)
        || kx_responses_error(event))
    {
        kx_responses_refuse(a, KX_REASON_ERROR_FRAME);
    }

    if (!kx_members_string(event, "type", &type)) {
        return KX_FRAME_PASS;
    }

    index = kx_responses_index(a, event);

    if (kx_json_is(&type, "response.output_text.delta")) {
        kx_responses_delta(a, event, index);
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&type, "response.output_item.added")
        || kx_json_is(&type, "response.output_item.done"))
    {
        kx_responses_item(a, event, index);
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&type, "response.refusal.delta")
        || kx_json_is(&type, "response.refusal.done"))
    {
        kx_responses_refuse(a, KX_REASON_REFUSAL);
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&type, "response.failed") || kx_json_is(&type, "error")) {
        kx_responses_refuse(a, KX_REASON_ERROR_FRAME);
        return KX_FRAME_PASS;
    }

    value = kx_members_get(event, "response");

    if (value == NULL || kx_responses_read(&response, value) == KX_ERROR) {
        return KX_FRAME_PASS;
    }

    kx_responses_response_id(a, &response);

    incomplete = (unsigned) kx_json_is(&type, "response.incomplete");

    if ((!incomplete && !kx_json_is(&type, "response.completed"))
        || a->complete)
    {
        return KX_FRAME_PASS;
    }

    kx_responses_finish(a, &response, incomplete);

    return KX_FRAME_FINISH;
}


/* the output index of an event; below zero: there is none */

static int
kx_responses_index(kx_answer_t *a, const kx_members_t *event)
{
    int              index;
    kx_responses_t  *state;

    state = a->state;

    index = kx_responses_int(event, "output_index");

    if (index < 0) {

        if (kx_members_get(event, "output_index")) {
            state->odd = 1;
        }

    } else if (index >= state->next) {
        state->next = index + 1;
    }

    return index;
}


static void
kx_responses_item(kx_answer_t *a, const kx_members_t *event, int index)
{
    kx_str_t         type;
    unsigned         hidden;
    kx_members_t     item;
    unsigned char    bit, *byte;
    const kx_str_t  *value;
    kx_responses_t  *state;

    state = a->state;

    if (index < 0) {
        state->odd = 1;
    }

    value = kx_members_get(event, "item");

    if (value == NULL || kx_responses_read(&item, value) == KX_ERROR
        || !kx_members_string(&item, "type", &type))
    {
        return;
    }

    if (index < 0 || index + 1 == state->next) {
        state->tool = kx_responses_client_tool(&type);
    }

    if (index < 0 || index >= KX_RESPONSES_ITEMS) {
        return;
    }

    hidden = !kx_json_is(&type, "message")
             || kx_responses_is(&item, "phase", "commentary");

    byte = &state->hidden[index / 8];
    bit = (unsigned char) (1 << (index % 8));

    if (hidden) {
        *byte |= bit;

    } else {
        *byte &= (unsigned char) ~bit;
    }
}


static void
kx_responses_delta(kx_answer_t *a, const kx_members_t *event, int index)
{
    int              part;
    kx_str_t         delta;
    kx_responses_t  *state;

    static const kx_str_t  lf = kx_string("\\n");

    state = a->state;

    if (index >= 0 && index < KX_RESPONSES_ITEMS
        && (state->hidden[index / 8] >> (index % 8) & 1))
    {
        return;
    }

    if (!kx_members_string(event, "delta", &delta) || delta.len == 0) {
        return;
    }

    part = kx_responses_int(event, "content_index");

    /* the parts of one message are joined as those of a request are */

    if (state->text && state->item == index && state->part != part) {
        kx_answer_text(a, &lf);
    }

    kx_answer_text(a, &delta);

    state->text = 1;
    state->item = index;
    state->part = part;
}


static void
kx_responses_response_id(kx_answer_t *a, const kx_members_t *response)
{
    kx_str_t  id;

    if (a->response_id.len == 0 && kx_members_string(response, "id", &id)) {
        kx_answer_id(a, &a->response_id, &id);
    }
}


static void
kx_responses_finish(kx_answer_t *a, const kx_members_t *response,
    unsigned incomplete)
{
    kx_str_t         status;
    kx_members_t     details;
    const kx_str_t  *value;
    kx_responses_t  *state;

    a->complete = 1;

    if (kx_responses_error(response)) {
        kx_responses_refuse(a, KX_REASON_ERROR_FRAME);
    }

    if (kx_members_string(response, "status", &status)) {

        if (kx_json_is(&status, "failed")) {
            kx_responses_refuse(a, KX_REASON_ERROR_FRAME);

        } else if (kx_json_is(&status, "incomplete")) {
            incomplete = 1;

        } else if (!kx_json_is(&status, "completed")) {
            kx_responses_refuse(a, KX_REASON_FINISH_REASON);
        }
    }

    if (incomplete) {
        value = kx_members_get(response, "incomplete_details");

        if (value == NULL || kx_responses_read(&details, value) == KX_ERROR
            || !kx_responses_is(&details, "reason", "max_output_tokens"))
        {
            kx_responses_refuse(a, KX_REASON_FINISH_REASON);
        }
    }

    value = kx_members_get(response, "output");

    if (value) {
        kx_responses_output(a, value);
    }

    state = a->state;

    if (state->tool) {
        kx_responses_refuse(a, KX_REASON_TOOL_CALLS);
    }
}


/* the items at the end; in one piece, it is only here that the text is */

static void
kx_responses_output(kx_answer_t *a, const kx_str_t *output)
{
    int              rc;
    unsigned         tool;
    kx_json_t        j;
    kx_members_t     item;
    kx_responses_t  *state;

    kx_json_init(&j, output->data, output->len);

    if (kx_json_type(&j) != KX_JSON_ARRAY || kx_json_enter(&j) != KX_OK) {
        return;
    }

    tool = 0;

    while ((rc = kx_responses_element(&item, &j)) == KX_OK) {
        tool = kx_responses_output_item(a, &item);
    }

    if (rc == KX_DONE) {
        state = a->state;
        state->tool |= tool;
    }
}


/* does the client have to act on it? */

static unsigned
kx_responses_output_item(kx_answer_t *a, const kx_members_t *item)
{
    kx_str_t         type;
    const kx_str_t  *content;

    if (!kx_members_string(item, "type", &type)) {
        return 0;
    }

    if (!kx_json_is(&type, "message")) {
        return kx_responses_client_tool(&type);
    }

    content = kx_members_get(item, "content");

    if (content == NULL) {
        return 0;
    }

    if (kx_responses_refused(content)) {
        kx_responses_refuse(a, KX_REASON_REFUSAL);
    }

    if (a->framing == KX_FRAMING_WHOLE
        && !kx_responses_is(item, "phase", "commentary"))
    {
        kx_responses_content(content, kx_answer_decoded, a);
    }

    return 0;
}


static unsigned
kx_responses_refused(const kx_str_t *content)
{
    kx_json_t     j;
    kx_members_t  part;

    kx_json_init(&j, content->data, content->len);

    if (kx_json_type(&j) != KX_JSON_ARRAY || kx_json_enter(&j) != KX_OK) {
        return 0;
    }

    while (kx_responses_element(&part, &j) == KX_OK) {
        if (kx_responses_is(&part, "type", "refusal")) {
            return 1;
        }
    }

    return 0;
}


/*
 * Is an item of this type a call that the server leaves to the client?  So
 * are all calls but those that are known to be its own.
 */

static unsigned
kx_responses_client_tool(const kx_str_t *type)
{
    static const kx_str_t  call = kx_string("_call");

    if (kx_json_is(type, "mcp_approval_request")) {
        return 1;
    }

    if (type->len < call.len
        || memcmp(type->data + type->len - call.len, call.data, call.len)
           != 0)
    {
        return 0;
    }

    return !kx_json_is(type, "web_search_call")
           && !kx_json_is(type, "file_search_call")
           && !kx_json_is(type, "code_interpreter_call")
           && !kx_json_is(type, "image_generation_call")
           && !kx_json_is(type, "mcp_call");
}


static unsigned
kx_responses_error(const kx_members_t *members)
{
    return kx_members_get(members, "error")
           && !kx_members_has(members, "error", KX_JSON_NULL)
           && !kx_members_has(members, "error", KX_JSON_BAD);
}


/* the first reason stays */

static void
kx_responses_refuse(kx_answer_t *a, kx_reason_e reason)
{
    if (a->refused == KX_REASON_NONE) {
        a->refused = reason;
    }
}


static int
kx_responses_member(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_members_t     event, response;
    const kx_str_t  *object;

    static const kx_str_t  more = kx_string(",\"kontext\":");
    static const kx_str_t  only = kx_string("\"kontext\":");
    static const kx_str_t  after = kx_string("");

    if (a->framing == KX_FRAMING_WHOLE) {
        return kx_answer_member(a, fr);
    }

    object = kx_responses_object(a, fr, &event);

    if (object == NULL || kx_responses_read(&response, object) != KX_OK) {
        return KX_DECLINED;
    }

    return kx_answer_place(a, object->data + object->len - 1,
                           response.n ? &more : &only, &after);
}


/*
 * An item of its own (chat-apis.md 5.4, 5c): its events are in front of the
 * last one, which has it in its output.
 */

static int
kx_responses_text(kx_answer_t *a, const kx_frame_t *fr)
{
    int                   rc;
    kx_members_t          event, response;
    const kx_str_t       *object, *value;
    kx_responses_t       *state;
    kx_responses_fill_t   fill;

    object = kx_responses_object(a, fr, &event);

    if (object == NULL || kx_responses_read(&response, object) != KX_OK) {
        return KX_DECLINED;
    }

    memset(&fill, 0, sizeof(kx_responses_fill_t));

    fill.eol = fr->eol;

    kx_responses_item_id(a, &fill);
    kx_responses_item_index(a, &fill);

    value = kx_members_get(&response, "output");

    if (a->framing == KX_FRAMING_SSE) {
        state = a->state;

        if (state->odd) {
            return KX_DECLINED;
        }

        if (kx_members_has(&event, "sequence_number", KX_JSON_NUMBER)) {
            fill.sequence = *kx_members_get(&event, "sequence_number");
        }

        rc = kx_responses_place(a, NULL, kx_responses_ad_events, &fill);
        if (rc != KX_OK) {
            return rc;
        }
    }

    if (value == NULL || !kx_responses_items(value)) {

        /* the server does not say its own items again, so much for ours */

        return a->nplaces ? KX_OK : KX_DECLINED;
    }

    return kx_responses_place(a, value->data + value->len - 1,
                              kx_responses_ad_item, &fill);
}


static unsigned
kx_responses_items(const kx_str_t *output)
{
    kx_json_t  j;

    kx_json_init(&j, output->data, output->len);

    return kx_json_type(&j) == KX_JSON_ARRAY && kx_json_enter(&j) == KX_OK
           && kx_json_element(&j) == KX_OK;
}


/* as much of the response's id as there is room for, or none */

static void
kx_responses_item_id(kx_answer_t *a, kx_responses_fill_t *fill)
{
    size_t          i, n;
    unsigned char   c, *p, *id;

    p = fill->ids;

    memcpy(p, KX_TEXT_AD_ID, sizeof(KX_TEXT_AD_ID) - 1);
    p += sizeof(KX_TEXT_AD_ID) - 1;

    id = a->response_id.data;
    n = a->response_id.len;

    if (n > 5 && memcmp(id, "resp_", 5) == 0) {
        id += 5;
        n -= 5;
    }

    if (n) {
        *p++ = '_';
    }

    for (i = 0; i < n && p < fill->ids + KX_RESPONSES_ID_LEN; i++) {
        c = id[i];

        *p++ = ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z')
                || (c >= 'A' && c <= 'Z'))
               ? c : '_';
    }

    fill->id.data = fill->ids;
    fill->id.len = (size_t) (p - fill->ids);
}


static void
kx_responses_item_index(kx_answer_t *a, kx_responses_fill_t *fill)
{
    int              n;
    unsigned char   *p;
    kx_responses_t  *state;

    state = a->state;

    n = state->next;
    p = fill->digits + KX_RESPONSES_DIGITS;

    do {
        *--p = (unsigned char) ('0' + n % 10);
        n /= 10;
    } while (n);

    fill->index.data = p;
    fill->index.len = (size_t) (fill->digits + KX_RESPONSES_DIGITS - p);
}


/* the places of a filled in template, a place for each %a */

static int
kx_responses_place(kx_answer_t *a, const unsigned char *at,
    const char *template, const kx_responses_fill_t *fill)
{
    int          rc;
    unsigned     n, ads;
    kx_str_t     before, text, parts[KX_RESPONSES_PARTS];
    const char  *p, *end;

    static const kx_str_t  sequence = kx_string(",\"sequence_number\":");
    static const kx_str_t  empty = kx_string("");

    n = 0;
    ads = 0;
    before = empty;

    for (p = template; *p; p = end) {
        end = p + strcspn(p, "%");

        if (n + 2 > KX_RESPONSES_PARTS) {
            return KX_DECLINED;
        }

        if (end > p) {
            parts[n].len = (size_t) (end - p);
            parts[n++].data = (unsigned char *) p;
            continue;
        }

        end = p + 2;

        switch (p[1]) {

        case 'e':
            parts[n++] = fill->eol;
            break;

        case 'i':
            parts[n++] = fill->id;
            break;

        case 'n':
            parts[n++] = fill->index;
            break;

        case 's':

            if (fill->sequence.len) {
                parts[n++] = sequence;
                parts[n++] = fill->sequence;
            }

            break;

        default: /* 'a' */

            rc = kx_answer_join(a, &text, parts, n);

            if (rc == KX_OK && ads++) {
                rc = kx_answer_place(a, at, &before, &empty);
            }

            if (rc != KX_OK) {
                return rc;
            }

            before = text;
            n = 0;
            break;
        }
    }

    rc = kx_answer_join(a, &text, parts, n);
    if (rc != KX_OK) {
        return rc;
    }

    return kx_answer_place(a, at, &before, &text);
}


/* the response that a finish frame has, or NULL */

static const kx_str_t *
kx_responses_object(kx_answer_t *a, const kx_frame_t *fr, kx_members_t *event)
{
    if (a->framing == KX_FRAMING_WHOLE) {
        return &fr->data;
    }

    if (kx_responses_read(event, &fr->data) != KX_OK) {
        return NULL;
    }

    return kx_members_get(event, "response");
}


/*
 * Reads an object of raw JSON.  KX_OK, KX_ERROR (it is none), or KX_DECLINED:
 * it is bad or cut off, and all that is right in front of the fault was read.
 */

static int
kx_responses_read(kx_members_t *members, const kx_str_t *data)
{
    kx_json_t  j;

    members->n = 0;

    kx_json_init(&j, data->data, data->len);

    if (kx_json_type(&j) != KX_JSON_OBJECT) {
        return KX_ERROR;
    }

    return (kx_responses_members(members, &j) == KX_OK
            && kx_json_end(&j) == KX_OK)
           ? KX_OK : KX_DECLINED;
}


/*
 * Consumes an object.  KX_OK or KX_ERROR; the last value before a fault is
 * there with its beginning.
 */

static int
kx_responses_members(kx_members_t *members, kx_json_t *j)
{
    int       rc;
    kx_str_t  key, value;

    members->n = 0;

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        (void) kx_json_type(j);

        value.data = (unsigned char *) j->pos;

        rc = kx_json_skip(j, NULL);

        value.len = (size_t) (j->pos - value.data);

        if (members->n < KX_MAX_MEMBERS) {
            members->m[members->n].key = key;
            members->m[members->n++].value = value;
        }

        if (rc != KX_OK) {
            return KX_ERROR;
        }
    }

    return (rc == KX_DONE) ? KX_OK : KX_ERROR;
}


/* consumes an element; of what is no object there are no members */

static int
kx_responses_element(kx_members_t *members, kx_json_t *j)
{
    int  rc;

    rc = kx_json_element(j);
    if (rc != KX_OK) {
        return rc;
    }

    if (kx_json_type(j) == KX_JSON_OBJECT) {
        return kx_responses_members(members, j);
    }

    members->n = 0;

    return kx_json_skip(j, NULL);
}


static unsigned
kx_responses_is(const kx_members_t *members, const char *key,
    const char *value)
{
    kx_str_t  raw;

    return kx_members_string(members, key, &raw)
           && kx_json_equal(&raw, value, strlen(value));
}


/* a whole number of less than KX_RESPONSES_DIGITS digits, or -1 */

static int
kx_responses_int(const kx_members_t *members, const char *key)
{
    int              n;
    size_t           i;
    const kx_str_t  *value;

    value = kx_members_get(members, key);

    if (value == NULL || value->len == 0
        || value->len >= KX_RESPONSES_DIGITS)
    {
        return -1;
    }

    n = 0;

    for (i = 0; i < value->len; i++) {

        if (value->data[i] < '0' || value->data[i] > '9') {
            return -1;
        }

        n = n * 10 + (value->data[i] - '0');
    }

    return n;
}
