/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The UI message stream of Vercel's AI SDK 5 and later (chat-apis.md 9), which
 * useChat() speaks with the publisher's own server.
 */


#include "dialect.h"


#define KX_AI_SDK_UI_TOOLS  64       /* calls that wait for their output */


/* cv->variant: there was a list of messages */

#define KX_AI_SDK_UI_LIST   1


/* an event, raw strings */

typedef struct {
    unsigned    preliminary:1;
    kx_str_t    type;
    kx_str_t    delta;
    kx_str_t    message_id;
    kx_str_t    tool;
    kx_str_t    finish;
} kx_ai_sdk_ui_event_t;


typedef struct {
    unsigned    kept:1;              /* the last frame was KX_FRAME_KEEP */
    unsigned    ntools;
    uint64_t    tools[KX_AI_SDK_UI_TOOLS];   /* hashes of toolCallId */
} kx_ai_sdk_ui_t;


static int kx_ai_sdk_ui_path(const kx_str_t *path);
static unsigned kx_ai_sdk_ui_body(const kx_members_t *members);
static unsigned kx_ai_sdk_ui_has_parts(const kx_str_t *message);
static void kx_ai_sdk_ui_start(kx_conversation_t *cv, const kx_str_t *path);
static int kx_ai_sdk_ui_request(kx_conversation_t *cv, kx_json_t *j);
static int kx_ai_sdk_ui_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key);
static int kx_ai_sdk_ui_messages(kx_conversation_t *cv, kx_json_t *j);
static int kx_ai_sdk_ui_single(kx_conversation_t *cv, kx_json_t *j);
static int kx_ai_sdk_ui_message(kx_conversation_t *cv, kx_json_t *j);
static void kx_ai_sdk_ui_content(const kx_str_t *content, kx_sink_pt sink,
    void *data);
static kx_frame_e kx_ai_sdk_ui_frame(kx_answer_t *a, const kx_frame_t *fr);
static int kx_ai_sdk_ui_event(const kx_str_t *data, kx_ai_sdk_ui_event_t *ev);
static kx_frame_e kx_ai_sdk_ui_finish(kx_answer_t *a, const kx_str_t *finish);
static void kx_ai_sdk_ui_tool(kx_answer_t *a, const kx_ai_sdk_ui_event_t *ev);
static uint64_t kx_ai_sdk_ui_hash(kx_answer_t *a, const kx_str_t *id);
static void kx_ai_sdk_ui_sip(void *data, const unsigned char *p, size_t len);
static int kx_ai_sdk_ui_member(kx_answer_t *a, const kx_frame_t *fr);
static int kx_ai_sdk_ui_text(kx_answer_t *a, const kx_frame_t *fr);


static const kx_str_t  kx_ai_sdk_ui_noise[] = {
    kx_string("")
};


const kx_dialect_t  kx_ai_sdk_ui = {
    kx_string("ai_sdk_ui"),
    kx_string(""),
    KX_FRAMING_SSE,
    sizeof(kx_ai_sdk_ui_t),
    kx_ai_sdk_ui_noise,
    kx_ai_sdk_ui_path,
    kx_ai_sdk_ui_body,
    kx_ai_sdk_ui_start,
    kx_ai_sdk_ui_request,
    kx_ai_sdk_ui_content,
    kx_ai_sdk_ui_frame,
    NULL,
    NULL,
    kx_ai_sdk_ui_member,
    kx_ai_sdk_ui_text
};


static int
kx_ai_sdk_ui_path(const kx_str_t *path)
{
    return kx_path_ends(path, "/api/chat") ? KX_AGAIN : KX_DECLINED;
}


static unsigned
kx_ai_sdk_ui_body(const kx_members_t *members)
{
    kx_str_t         raw;
    kx_json_t        j;
    kx_json_type_e   type;
    const kx_str_t  *value;

    value = kx_members_get(members, "message");

    if (value && kx_ai_sdk_ui_has_parts(value)) {
        return 1;
    }

    value = kx_members_get(members, "messages");
    if (value == NULL) {
        return 0;
    }

    kx_json_init(&j, value->data, value->len);

    if (kx_json_enter(&j) != KX_OK) {
        return 0;
    }

    while (kx_json_element(&j) == KX_OK) {
        type = kx_json_type(&j);

        if (kx_json_skip(&j, &raw) != KX_OK) {
            break;
        }

        if (type == KX_JSON_OBJECT) {
            return kx_ai_sdk_ui_has_parts(&raw);
        }
    }

    return 0;
}


static unsigned
kx_ai_sdk_ui_has_parts(const kx_str_t *message)
{
    kx_members_t  members;

    return kx_members_read(&members, message->data, message->len) == KX_OK
           && kx_members_has(&members, "parts", KX_JSON_ARRAY);
}


static void
kx_ai_sdk_ui_start(kx_conversation_t *cv, const kx_str_t *path)
{
    (void) path;

    cv->stream = 1;
}


static int
kx_ai_sdk_ui_request(kx_conversation_t *cv, kx_json_t *j)
{
    return kx_conversation_members(cv, j, kx_ai_sdk_ui_request_member);
}


static int
kx_ai_sdk_ui_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key)
{
    if (kx_json_is(key, "messages")) {
        return kx_ai_sdk_ui_messages(cv, j);
    }

    if (kx_json_is(key, "message")) {
        return kx_ai_sdk_ui_single(cv, j);
    }

    if (kx_json_is(key, "id")) {
        return kx_conversation_identity(cv, j, &cv->conversation,
                                        KX_IDENTITY_NATIVE);
    }

    return kx_json_skip(j, NULL);
}


static int
kx_ai_sdk_ui_messages(kx_conversation_t *cv, kx_json_t *j)
{
    int  rc;

    if (kx_json_type(j) != KX_JSON_ARRAY) {
        return kx_json_skip(j, NULL);
    }

    kx_conversation_restart(cv);

    cv->has_messages = 1;
    cv->variant = KX_AI_SDK_UI_LIST;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_element(j)) == KX_OK) {
        rc = kx_ai_sdk_ui_message(cv, j);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


/* the newest message of an app that keeps the history itself */

static int
kx_ai_sdk_ui_single(kx_conversation_t *cv, kx_json_t *j)
{
    if (kx_json_type(j) != KX_JSON_OBJECT
        || cv->variant == KX_AI_SDK_UI_LIST)
    {
        return kx_json_skip(j, NULL);
    }

    kx_conversation_restart(cv);

    cv->has_messages = 1;

    return kx_ai_sdk_ui_message(cv, j);
}


static int
kx_ai_sdk_ui_message(kx_conversation_t *cv, kx_json_t *j)
{
    int              rc;
    kx_str_t         key, role, id, parts, content;
    kx_role_e        who;
    kx_json_type_e   type;

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    memset(&role, 0, sizeof(kx_str_t));
    memset(&id, 0, sizeof(kx_str_t));
    memset(&parts, 0, sizeof(kx_str_t));
    memset(&content, 0, sizeof(kx_str_t));

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        if (type == KX_JSON_ARRAY && kx_json_is(&key, "parts")) {
            rc = kx_json_skip(j, &parts);

        } else if (type == KX_JSON_STRING && kx_json_is(&key, "role")) {
            rc = kx_json_string(j, &role);

        } else if (type == KX_JSON_STRING && kx_json_is(&key, "id")) {
            rc = kx_json_string(j, &id);

        } else if (kx_json_is(&key, "content")) {
            rc = kx_json_skip(j, &content);

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

    who = kx_json_is(&role, "user") ? KX_ROLE_USER
          : kx_json_is(&role, "assistant") ? KX_ROLE_ASSISTANT
          : KX_ROLE_OTHER;

    /* AI SDK 4 has no parts in some messages */

    return kx_conversation_message(cv, who, parts.len ? &parts : &content,
                                   &id);
}


static void
kx_ai_sdk_ui_content(const kx_str_t *content, kx_sink_pt sink, void *data)
{
    static const kx_str_t  types[] = {
        kx_string("text"),
        kx_string("")
    };

    kx_content_text(content, types, sink, data);
}


static kx_frame_e
kx_ai_sdk_ui_frame(kx_answer_t *a, const kx_frame_t *fr)
{
    unsigned               kept;
    kx_ai_sdk_ui_t        *state;
    kx_ai_sdk_ui_event_t   ev;

    state = a->state;

    kept = state->kept;
    state->kept = 0;

    if (fr->data.len == 6 && memcmp(fr->data.data, "[DONE]", 6) == 0) {
        return KX_FRAME_END;
    }

    if (kx_ai_sdk_ui_event(&fr->data, &ev) != KX_OK) {
        return KX_FRAME_PASS;
    }

    if (kx_json_is(&ev.type, "text-delta")) {
        kx_answer_text(a, &ev.delta);

    } else if (kx_json_is(&ev.type, "text-start")) {

        /* between the parts of all steps, as content() joins them */

        kx_answer_break(a);

    } else if (kx_json_is(&ev.type, "start")) {

        if (a->message_id.len == 0) {
            kx_answer_id(a, &a->message_id, &ev.message_id);
        }

    } else if (kx_json_is(&ev.type, "finish-step")) {

        /* the text of an ad goes in here, if it is the last step */

        if (a->form == KX_FORM_TEXT && !kept && !a->complete
            && a->refused == KX_REASON_NONE)
        {
            state->kept = 1;
            return KX_FRAME_KEEP;
        }

    } else if (kx_json_is(&ev.type, "finish")) {
        return kx_ai_sdk_ui_finish(a, &ev.finish);

    } else if (kx_json_is(&ev.type, "error")) {
        a->refused = KX_REASON_ERROR_FRAME;

    } else if (kx_json_is(&ev.type, "abort")) {
        a->refused = KX_REASON_FINISH_REASON;

    } else {
        kx_ai_sdk_ui_tool(a, &ev);
    }

    return KX_FRAME_PASS;
}


static int
kx_ai_sdk_ui_event(const kx_str_t *data, kx_ai_sdk_ui_event_t *ev)
{
    int              rc;
    kx_str_t         key, raw;
    kx_json_t        j;
    kx_json_type_e   type;

    memset(ev, 0, sizeof(kx_ai_sdk_ui_event_t));

    kx_json_init(&j, data->data, data->len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return KX_DECLINED;
    }

    while ((rc = kx_json_member(&j, &key)) == KX_OK) {
        type = kx_json_type(&j);

        if (type != KX_JSON_STRING) {

            if (kx_json_is(&key, "preliminary")) {
                ev->preliminary = (type == KX_JSON_TRUE);
            }

            rc = kx_json_skip(&j, NULL);

        } else {
            rc = kx_json_string(&j, &raw);

            if (rc != KX_OK) {
                break;
            }

            if (kx_json_is(&key, "type")) {
                ev->type = raw;

            } else if (kx_json_is(&key, "delta")) {
                ev->delta = raw;

            } else if (kx_json_is(&key, "messageId")) {
                ev->message_id = raw;

            } else if (kx_json_is(&key, "toolCallId")) {
                ev->tool = raw;

            } else if (kx_json_is(&key, "finishReason")) {
                ev->finish = raw;
            }
        }

        if (rc != KX_OK) {
            break;
        }
    }

    return (rc == KX_DONE) ? kx_json_end(&j) : KX_DECLINED;
}


static kx_frame_e
kx_ai_sdk_ui_finish(kx_answer_t *a, const kx_str_t *finish)
{
    kx_ai_sdk_ui_t  *state;

    if (a->complete) {
        return KX_FRAME_PASS;
    }

    a->complete = 1;

    if (a->refused != KX_REASON_NONE) {
        return KX_FRAME_FINISH;
    }

    state = a->state;

    if (state->ntools || kx_json_is(finish, "tool-calls")) {
        a->refused = KX_REASON_TOOL_CALLS;

    } else if (kx_json_is(finish, "error")) {
        a->refused = KX_REASON_ERROR_FRAME;

    } else if (finish->data && !kx_json_is(finish, "stop")
               && !kx_json_is(finish, "length"))
    {
        a->refused = KX_REASON_FINISH_REASON;
    }

    return KX_FRAME_FINISH;
}


/* a call that is open when the answer finishes waits for the client */

static void
kx_ai_sdk_ui_tool(kx_answer_t *a, const kx_ai_sdk_ui_event_t *ev)
{
    size_t           i;
    uint64_t         hash;
    unsigned         n;
    kx_ai_sdk_ui_t  *state;

    static const struct {
        kx_str_t     type;
        unsigned     opens;
    } types[] = {
        { kx_string("tool-input-start"), 1 },
        { kx_string("tool-input-available"), 1 },
        { kx_string("tool-approval-request"), 1 },
        { kx_string("tool-input-error"), 0 },
        { kx_string("tool-output-available"), 0 },
        { kx_string("tool-output-error"), 0 },
        { kx_string("tool-output-denied"), 0 }
    };

    for (i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (kx_json_equal(&ev->type, (const char *) types[i].type.data,
                          types[i].type.len))
        {
            break;
        }
    }

    if (i == sizeof(types) / sizeof(types[0]) || ev->preliminary) {
        return;
    }

    state = a->state;
    hash = kx_ai_sdk_ui_hash(a, &ev->tool);

    for (n = 0; n < state->ntools; n++) {
        if (state->tools[n] == hash) {
            break;
        }
    }

    if (types[i].opens) {

        if (n == KX_AI_SDK_UI_TOOLS) {
            a->refused = KX_REASON_TOOL_CALLS;

        } else if (n == state->ntools) {
            state->tools[state->ntools++] = hash;
        }

    } else if (n < state->ntools) {
        state->tools[n] = state->tools[--state->ntools];
    }
}


static uint64_t
kx_ai_sdk_ui_hash(kx_answer_t *a, const kx_str_t *id)
{
    kx_sip_t     sip;
    kx_decode_t  decode;

    kx_sip_init(&sip, a->conversation->key, 0);

    kx_decode_init(&decode);
    kx_decode(&decode, id, kx_ai_sdk_ui_sip, &sip);
    kx_decode_finish(&decode, kx_ai_sdk_ui_sip, &sip);

    return kx_sip_final64(&sip);
}


static void
kx_ai_sdk_ui_sip(void *data, const unsigned char *p, size_t len)
{
    kx_sip_update(data, p, len);
}


static int
kx_ai_sdk_ui_member(kx_answer_t *a, const kx_frame_t *fr)
{
    int       rc;
    kx_str_t  parts[3], after;

    static const kx_str_t  before =
        kx_string("data: {\"type\":\"data-kontext\",\"data\":");
    static const kx_str_t  end = kx_string(",\"transient\":true}");

    parts[0] = end;
    parts[1] = fr->eol;
    parts[2] = fr->eol;

    rc = kx_answer_join(a, &after, parts, 3);
    if (rc != KX_OK) {
        return rc;
    }

    return kx_answer_place(a, NULL, &before, &after);
}


/*
 * A text part of its own in front of the finish-step that was kept, or of
 * the finish (chat-apis.md 9.3, 5b).
 */

static int
kx_ai_sdk_ui_text(kx_answer_t *a, const kx_frame_t *fr)
{
    int       rc;
    kx_str_t  parts[6], before, after;

    static const kx_str_t  start =
        kx_string("data: {\"type\":\"text-start\",\"id\":\"kontext-ad\"}");
    static const kx_str_t  delta =
        kx_string("data: {\"type\":\"text-delta\",\"id\":\"kontext-ad\","
                  "\"delta\":\"");
    static const kx_str_t  close = kx_string("\"}");
    static const kx_str_t  end =
        kx_string("data: {\"type\":\"text-end\",\"id\":\"kontext-ad\"}");

    parts[0] = start;
    parts[1] = fr->eol;
    parts[2] = fr->eol;
    parts[3] = delta;

    rc = kx_answer_join(a, &before, parts, 4);
    if (rc != KX_OK) {
        return rc;
    }

    parts[0] = close;
    parts[1] = fr->eol;
    parts[2] = fr->eol;
    parts[3] = end;
    parts[4] = fr->eol;
    parts[5] = fr->eol;

    rc = kx_answer_join(a, &after, parts, 6);
    if (rc != KX_OK) {
        return rc;
    }

    return kx_answer_place(a, NULL, &before, &after);
}
