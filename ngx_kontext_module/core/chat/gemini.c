/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Google Gemini (chat-apis.md 8), of the Gemini API and of Vertex AI.
 */


#include "dialect.h"


#define KX_GEMINI_STREAM  ":streamGenerateContent"
#define KX_GEMINI_WHOLE   ":generateContent"


/* cv->variant: another method of the API, which the path says */

#define KX_GEMINI_NO_CHAT  1


/* a content of a request */

typedef struct {
    kx_role_e        role;
    kx_str_t         parts;          /* raw JSON */
} kx_gemini_turn_t;


typedef struct {
    unsigned         thought:1;
    unsigned         call:1;
    kx_str_t         text;           /* raw string */
} kx_gemini_part_t;


typedef struct {
    int              index;          /* below zero: not understood */
    kx_str_t         parts;          /* raw JSON */
    kx_str_t         finish;         /* raw string */
} kx_gemini_candidate_t;


/* of the candidates, by their index */

typedef struct {
    unsigned         nstarted;
    unsigned         nfinished;
    unsigned char    started[KX_MAX_CHOICES / 8];
    unsigned char    finished[KX_MAX_CHOICES / 8];
} kx_gemini_t;


static int kx_gemini_path(const kx_str_t *path);
static unsigned kx_gemini_body(const kx_members_t *members);
static void kx_gemini_start(kx_conversation_t *cv, const kx_str_t *path);
static int kx_gemini_request(kx_conversation_t *cv, kx_json_t *j);
static int kx_gemini_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key);
static int kx_gemini_contents(kx_conversation_t *cv, kx_json_t *j);
static int kx_gemini_turn(kx_json_t *j, kx_gemini_turn_t *turn);
static kx_role_e kx_gemini_role(const kx_str_t *raw);
static int kx_gemini_generation_config(kx_conversation_t *cv, kx_json_t *j);
static unsigned kx_gemini_json_mode(const kx_members_t *config);
static unsigned kx_gemini_structured(const kx_members_t *members,
    const char *const *types, const char *const *schemas);
static int kx_gemini_tool_config(kx_conversation_t *cv, kx_json_t *j);
static const kx_str_t *kx_gemini_get(const kx_members_t *members,
    const char *const *names);
static int kx_gemini_int(const kx_str_t *raw, int max);
static void kx_gemini_content(const kx_str_t *content, kx_sink_pt sink,
    void *data);
static void kx_gemini_turn_text(const kx_gemini_turn_t *turn,
    kx_decode_t *decode, kx_sink_pt sink, void *data);
static int kx_gemini_part(kx_json_t *j, kx_gemini_part_t *part);
static kx_frame_e kx_gemini_read(kx_answer_t *a, const kx_frame_t *fr);
static int kx_gemini_read_member(kx_answer_t *a, kx_json_t *j,
    const kx_str_t *key, unsigned *finished);
static int kx_gemini_candidates(kx_answer_t *a, kx_json_t *j,
    unsigned *finished);
static int kx_gemini_candidate(kx_json_t *j, kx_gemini_candidate_t *c);
static int kx_gemini_candidate_parts(kx_json_t *j, kx_str_t *parts);
static void kx_gemini_apply(kx_answer_t *a, const kx_gemini_candidate_t *c,
    unsigned *finished);
static void kx_gemini_apply_parts(kx_answer_t *a, const kx_str_t *parts,
    unsigned text);
static int kx_gemini_feedback(kx_answer_t *a, kx_json_t *j);
static int kx_gemini_member(kx_answer_t *a, const kx_frame_t *fr);
static int kx_gemini_text(kx_answer_t *a, const kx_frame_t *fr);
static int kx_gemini_chunk(kx_answer_t *a, const kx_frame_t *fr);
static unsigned kx_gemini_empty(const kx_str_t *raw);


static const kx_str_t  kx_gemini_noise[] = {
    kx_string("promptTokenCount"),
    kx_string("candidatesTokenCount"),
    kx_string("thoughtsTokenCount"),
    kx_string("totalTokenCount"),
    kx_string("tokenCount"),
    kx_string("")
};


const kx_dialect_t  kx_gemini = {
    kx_string("gemini"),
    kx_string("x-goog-api-key"),
    KX_FRAMING_SSE|KX_FRAMING_ARRAY|KX_FRAMING_WHOLE,
    sizeof(kx_gemini_t),
    kx_gemini_noise,
    kx_gemini_path,
    kx_gemini_body,
    kx_gemini_start,
    kx_gemini_request,
    kx_gemini_content,
    kx_gemini_read,
    NULL,
    kx_gemini_read,
    kx_gemini_member,
    kx_gemini_text
};


static int
kx_gemini_path(const kx_str_t *path)
{
    return (kx_path_ends(path, KX_GEMINI_STREAM)
            || kx_path_ends(path, KX_GEMINI_WHOLE))
           ? KX_OK : KX_DECLINED;
}


static unsigned
kx_gemini_body(const kx_members_t *members)
{
    return kx_members_has(members, "contents", KX_JSON_ARRAY);
}


static void
kx_gemini_start(kx_conversation_t *cv, const kx_str_t *path)
{
    size_t  i;

    /* of those with contents in their bodies */

    static const char *const  others[] = {
        ":countTokens", ":computeTokens", "/cachedContents"
    };

    cv->stream = kx_path_ends(path, KX_GEMINI_STREAM);

    for (i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (kx_path_ends(path, others[i])) {
            cv->variant = KX_GEMINI_NO_CHAT;
        }
    }
}


static int
kx_gemini_request(kx_conversation_t *cv, kx_json_t *j)
{
    if (cv->variant == KX_GEMINI_NO_CHAT) {
        return KX_ERROR;
    }

    return kx_conversation_members(cv, j, kx_gemini_request_member);
}


static int
kx_gemini_request_member(kx_conversation_t *cv, kx_json_t *j,
    const kx_str_t *key)
{
    if (kx_json_is(key, "contents")) {
        return kx_gemini_contents(cv, j);
    }

    if (kx_json_is(key, "generationConfig")
        || kx_json_is(key, "generation_config"))
    {
        return kx_gemini_generation_config(cv, j);
    }

    if (kx_json_is(key, "toolConfig") || kx_json_is(key, "tool_config")) {
        return kx_gemini_tool_config(cv, j);
    }

    if (kx_json_is(key, "labels")) {
        return kx_conversation_metadata(cv, j);
    }

    return kx_json_skip(j, NULL);
}


/*
 * Neighbours of the model are one message: the chat helpers of both official
 * SDKs keep each chunk of a stream as a content of its own, and other clients
 * send the same text back as one.  The content of a message so is all the
 * objects, as they stand in the body, with the commas between them.
 */

static int
kx_gemini_contents(kx_conversation_t *cv, kx_json_t *j)
{
    int                   rc;
    kx_str_t              content;
    kx_role_e             role;
    kx_gemini_turn_t      turn;
    const unsigned char  *start;

    kx_conversation_restart(cv);

    cv->has_messages = (kx_json_type(j) == KX_JSON_ARRAY);

    if (!cv->has_messages) {
        return kx_json_skip(j, NULL);
    }

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    role = KX_ROLE_OTHER;
    content.len = 0;
    content.data = NULL;

    while ((rc = kx_json_element(j)) == KX_OK) {

        if (kx_json_type(j) != KX_JSON_OBJECT) {
            return KX_ERROR;
        }

        start = j->pos;

        if (kx_gemini_turn(j, &turn) != KX_OK) {
            return KX_ERROR;
        }

        if (turn.role == KX_ROLE_ASSISTANT && role == KX_ROLE_ASSISTANT) {
            content.len = (size_t) (j->pos - content.data);
            continue;
        }

        if (content.len) {
            rc = kx_conversation_message(cv, role, &content, NULL);

            if (rc != KX_OK) {
                return rc;
            }
        }

        role = turn.role;
        content.data = (unsigned char *) start;
        content.len = (size_t) (j->pos - start);
    }

    if (rc != KX_DONE) {
        return rc;
    }

    return content.len ? kx_conversation_message(cv, role, &content, NULL)
                       : KX_OK;
}


static int
kx_gemini_turn(kx_json_t *j, kx_gemini_turn_t *turn)
{
    int             rc;
    kx_str_t        key, role;
    kx_json_type_e  type;

    turn->role = KX_ROLE_USER;
    turn->parts.len = 0;
    turn->parts.data = NULL;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        if (type == KX_JSON_ARRAY && kx_json_is(&key, "parts")) {
            rc = kx_json_skip(j, &turn->parts);

        } else if (type != KX_JSON_NULL && kx_json_is(&key, "role")) {
            rc = kx_json_skip(j, &role);

            if (rc == KX_OK) {
                turn->role = kx_gemini_role(&role);
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


/* Vertex AI also takes the capitals of some of its samples */

static kx_role_e
kx_gemini_role(const kx_str_t *raw)
{
    if (kx_json_is(raw, "\"user\"") || kx_json_is(raw, "\"USER\"")) {
        return KX_ROLE_USER;
    }

    if (kx_json_is(raw, "\"model\"") || kx_json_is(raw, "\"MODEL\"")) {
        return KX_ROLE_ASSISTANT;
    }

    return KX_ROLE_OTHER;
}


static int
kx_gemini_generation_config(kx_conversation_t *cv, kx_json_t *j)
{
    int              n;
    kx_str_t         raw;
    kx_members_t     config;
    const kx_str_t  *count;

    static const char *const  names[] = {
        "candidateCount",
        "candidate_count",
        NULL
    };

    if (kx_json_skip(j, &raw) != KX_OK) {
        return KX_ERROR;
    }

    if (kx_members_read(&config, raw.data, raw.len) != KX_OK) {
        return KX_OK;
    }

    count = kx_gemini_get(&config, names);

    if (count) {
        n = kx_gemini_int(count, KX_MAX_CHOICES);
        cv->choices = (n > 0) ? (unsigned) n : 1;
    }

    if (kx_gemini_json_mode(&config)) {
        cv->json_mode = 1;
    }

    return KX_OK;
}


static unsigned
kx_gemini_json_mode(const kx_members_t *config)
{
    kx_str_t         raw;
    kx_json_t        j;
    kx_members_t     format;
    const kx_str_t  *formats, *text;

    static const char *const  types[] = {
        "responseMimeType",
        "response_mime_type",
        NULL
    };

    static const char *const  schemas[] = {
        "responseSchema",
        "response_schema",
        "responseJsonSchema",
        "response_json_schema",
        NULL
    };

    static const char *const  names[] = {
        "responseFormat",
        "response_format",
        NULL
    };

    static const char *const  text_types[] = {
        "mimeType",
        "mime_type",
        NULL
    };

    static const char *const  text_schemas[] = {
        "schema",
        NULL
    };

    if (kx_gemini_structured(config, types, schemas)) {
        return 1;
    }

    /* a list of {text:{mimeType,schema}}, which is to replace the others */

    formats = kx_gemini_get(config, names);
    if (formats == NULL) {
        return 0;
    }

    kx_json_init(&j, formats->data, formats->len);

    if (kx_json_enter(&j) != KX_OK) {
        return 0;
    }

    while (kx_json_element(&j) == KX_OK) {

        if (kx_json_skip(&j, &raw) != KX_OK) {
            break;
        }

        if (kx_members_read(&format, raw.data, raw.len) != KX_OK) {
            continue;
        }

        text = kx_members_get(&format, "text");

        if (text && kx_members_read(&format, text->data, text->len) == KX_OK
            && kx_gemini_structured(&format, text_types, text_schemas))
        {
            return 1;
        }
    }

    return 0;
}


static unsigned
kx_gemini_structured(const kx_members_t *members, const char *const *types,
    const char *const *schemas)
{
    const kx_str_t  *type;

    type = kx_gemini_get(members, types);

    if (type && type->data[0] == '"' && !kx_json_is(type, "\"\"")
        && !kx_json_is(type, "\"text/plain\""))
    {
        return 1;
    }

    return kx_gemini_get(members, schemas) != NULL;
}


static int
kx_gemini_tool_config(kx_conversation_t *cv, kx_json_t *j)
{
    kx_str_t         raw;
    kx_members_t     config;
    const kx_str_t  *calling, *mode;

    static const char *const  names[] = {
        "functionCallingConfig",
        "function_calling_config",
        NULL
    };

    if (kx_json_skip(j, &raw) != KX_OK) {
        return KX_ERROR;
    }

    if (kx_members_read(&config, raw.data, raw.len) != KX_OK) {
        return KX_OK;
    }

    calling = kx_gemini_get(&config, names);

    if (calling == NULL
        || kx_members_read(&config, calling->data, calling->len) != KX_OK)
    {
        return KX_OK;
    }

    mode = kx_members_get(&config, "mode");

    if (mode && kx_json_is(mode, "\"ANY\"")) {
        cv->forced_tools = 1;
    }

    return KX_OK;
}


/* the raw value of the member that is there under one of the names */

static const kx_str_t *
kx_gemini_get(const kx_members_t *members, const char *const *names)
{
    const kx_str_t  *value;

    for ( /* void */ ; *names; names++) {
        value = kx_members_get(members, *names);

        if (value && value->data[0] != 'n') {
            return value;
        }
    }

    return NULL;
}


/* a whole number of up to max, or -1 for any other value */

static int
kx_gemini_int(const kx_str_t *raw, int max)
{
    int     n;
    size_t  i;

    n = 0;

    for (i = 0; i < raw->len; i++) {

        if (raw->data[i] < '0' || raw->data[i] > '9') {
            return -1;
        }

        n = n * 10 + (raw->data[i] - '0');

        if (n > max) {
            return -1;
        }
    }

    return n;
}


static void
kx_gemini_content(const kx_str_t *content, kx_sink_pt sink, void *data)
{
    kx_json_t             j;
    kx_decode_t           decode;
    kx_gemini_turn_t      turn;
    const unsigned char  *p, *last;

    kx_decode_init(&decode);

    p = content->data;
    last = p + content->len;

    while (p < last) {
        kx_json_init(&j, p, (size_t) (last - p));

        if (kx_gemini_turn(&j, &turn) != KX_OK) {
            break;
        }

        kx_gemini_turn_text(&turn, &decode, sink, data);

        /* over the comma */

        (void) kx_json_type(&j);

        p = j.pos + 1;
    }

    kx_decode_finish(&decode, sink, data);
}


/*
 * What the model says comes in as many parts as the server likes, and they
 * are joined with nothing, as in the answer and as all clients do it.
 */

static void
kx_gemini_turn_text(const kx_gemini_turn_t *turn, kx_decode_t *decode,
    kx_sink_pt sink, void *data)
{
    unsigned          parts;
    kx_json_t         j;
    kx_gemini_part_t  part;

    kx_json_init(&j, turn->parts.data, turn->parts.len);

    if (kx_json_enter(&j) != KX_OK) {
        return;
    }

    parts = 0;

    while (kx_json_element(&j) == KX_OK) {

        if (kx_gemini_part(&j, &part) != KX_OK) {
            return;
        }

        if (part.text.data == NULL || part.thought) {
            continue;
        }

        if (turn->role != KX_ROLE_ASSISTANT && parts++) {
            kx_decode_finish(decode, sink, data);
            sink(data, (const unsigned char *) "\n", 1);
        }

        kx_decode(decode, &part.text, sink, data);
    }
}


static int
kx_gemini_part(kx_json_t *j, kx_gemini_part_t *part)
{
    int             rc;
    kx_str_t        key;
    kx_json_type_e  type;

    memset(part, 0, sizeof(kx_gemini_part_t));

    if (kx_json_type(j) != KX_JSON_OBJECT) {
        return kx_json_skip(j, NULL);
    }

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        if (type == KX_JSON_STRING && kx_json_is(&key, "text")) {
            rc = kx_json_string(j, &part->text);

        } else {

            if (kx_json_is(&key, "thought")) {
                part->thought = (type == KX_JSON_TRUE);

            } else if (type != KX_JSON_NULL
                       && (kx_json_is(&key, "functionCall")
                           || kx_json_is(&key, "function_call")))
            {
                part->call = 1;
            }

            rc = kx_json_skip(j, NULL);
        }

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


/* a chunk, or all of the answer, which looks the same */

static kx_frame_e
kx_gemini_read(kx_answer_t *a, const kx_frame_t *fr)
{
    int           rc;
    unsigned      finished;
    kx_str_t      key;
    kx_json_t     j;
    kx_gemini_t  *state;

    state = a->state;

    kx_json_init(&j, fr->data.data, fr->data.len);

    if (kx_json_type(&j) != KX_JSON_OBJECT || kx_json_enter(&j) != KX_OK) {
        return KX_FRAME_PASS;
    }

    finished = 0;
    a->found[1].len = 0;

    while ((rc = kx_json_member(&j, &key)) == KX_OK) {
        rc = kx_gemini_read_member(a, &j, &key, &finished);

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
kx_gemini_read_member(kx_answer_t *a, kx_json_t *j, const kx_str_t *key,
    unsigned *finished)
{
    kx_str_t        raw;
    kx_json_type_e  type;

    type = kx_json_type(j);

    if (type == KX_JSON_ARRAY && kx_json_is(key, "candidates")) {
        return kx_gemini_candidates(a, j, finished);
    }

    if (type == KX_JSON_OBJECT && kx_json_is(key, "usageMetadata")) {
        return kx_json_skip(j, &a->found[1]);
    }

    if (type == KX_JSON_OBJECT && kx_json_is(key, "promptFeedback")) {
        return kx_gemini_feedback(a, j);
    }

    if (type == KX_JSON_STRING && a->response_id.len == 0
        && kx_json_is(key, "responseId"))
    {
        if (kx_json_string(j, &raw) != KX_OK) {
            return KX_ERROR;
        }

        kx_answer_id(a, &a->response_id, &raw);

        return KX_OK;
    }

    if (type != KX_JSON_NULL && kx_json_is(key, "error")) {
        a->refused = KX_REASON_ERROR_FRAME;
    }

    return kx_json_skip(j, NULL);
}


static int
kx_gemini_candidates(kx_answer_t *a, kx_json_t *j, unsigned *finished)
{
    int                    rc;
    kx_gemini_candidate_t  candidate;

    a->found[0].len = 0;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_element(j)) == KX_OK) {

        if (kx_json_type(j) != KX_JSON_OBJECT) {
            rc = kx_json_skip(j, NULL);

        } else {
            rc = kx_gemini_candidate(j, &candidate);

            if (rc == KX_OK) {
                kx_gemini_apply(a, &candidate, finished);
            }
        }

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_gemini_candidate(kx_json_t *j, kx_gemini_candidate_t *c)
{
    int             rc;
    kx_str_t        key, raw;
    kx_json_type_e  type;

    memset(c, 0, sizeof(kx_gemini_candidate_t));

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        if (type == KX_JSON_OBJECT && kx_json_is(&key, "content")) {
            rc = kx_gemini_candidate_parts(j, &c->parts);

        } else if (type == KX_JSON_STRING && kx_json_is(&key, "finishReason"))
        {
            rc = kx_json_string(j, &c->finish);

        } else if (type == KX_JSON_NUMBER && kx_json_is(&key, "index")) {
            rc = kx_json_skip(j, &raw);

            if (rc == KX_OK) {
                c->index = kx_gemini_int(&raw, KX_MAX_CHOICES - 1);
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
kx_gemini_candidate_parts(kx_json_t *j, kx_str_t *parts)
{
    int       rc;
    kx_str_t  key;

    parts->len = 0;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        if (kx_json_type(j) == KX_JSON_ARRAY && kx_json_is(&key, "parts")) {
            rc = kx_json_skip(j, parts);

        } else {
            rc = kx_json_skip(j, NULL);
        }

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static void
kx_gemini_apply(kx_answer_t *a, const kx_gemini_candidate_t *c,
    unsigned *finished)
{
    unsigned        i;
    kx_gemini_t    *state;
    unsigned char   bit;

    if (c->index < 0) {
        a->refused = KX_REASON_FINISH_REASON;
        return;
    }

    state = a->state;

    i = (unsigned) c->index / 8;
    bit = (unsigned char) (1 << (c->index % 8));

    if (!(state->started[i] & bit)) {
        state->started[i] |= bit;
        state->nstarted++;
    }

    if (c->index == 0) {
        a->found[0] = c->parts;
    }

    kx_gemini_apply_parts(a, &c->parts, c->index == 0);

    if (c->finish.len == 0
        || kx_json_is(&c->finish, "FINISH_REASON_UNSPECIFIED")
        || (state->finished[i] & bit))
    {
        return;
    }

    state->finished[i] |= bit;
    state->nfinished++;

    *finished = 1;

    if (!kx_json_is(&c->finish, "STOP")
        && !kx_json_is(&c->finish, "MAX_TOKENS"))
    {
        a->refused = KX_REASON_FINISH_REASON;
    }
}


static void
kx_gemini_apply_parts(kx_answer_t *a, const kx_str_t *parts, unsigned text)
{
    kx_json_t         j;
    kx_gemini_part_t  part;

    kx_json_init(&j, parts->data, parts->len);

    if (kx_json_enter(&j) != KX_OK) {
        return;
    }

    while (kx_json_element(&j) == KX_OK) {

        if (kx_gemini_part(&j, &part) != KX_OK) {
            return;
        }

        if (part.call) {
            a->refused = KX_REASON_TOOL_CALLS;
        }

        if (text && !part.thought) {
            kx_answer_text(a, &part.text);
        }
    }
}


/* the prompt was blocked, mostly without any candidate */

static int
kx_gemini_feedback(kx_answer_t *a, kx_json_t *j)
{
    int       rc;
    kx_str_t  key;

    if (kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        if (kx_json_type(j) == KX_JSON_STRING
            && kx_json_is(&key, "blockReason"))
        {
            a->refused = KX_REASON_REFUSAL;
        }

        rc = kx_json_skip(j, NULL);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


/* all that the official SDK lets through (chat-apis.md 8.3, 4c) */

static int
kx_gemini_member(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_str_t  *usage;

    static const kx_str_t  first = kx_string("\"kontext\":");
    static const kx_str_t  next = kx_string(",\"kontext\":");
    static const kx_str_t  after = kx_string("");

    usage = &a->found[1];

    if (usage->len == 0) {
        return kx_answer_member(a, fr);
    }

    return kx_answer_place(a, usage->data + usage->len - 1,
                           kx_gemini_empty(usage) ? &first : &next, &after);
}


/*
 * A part behind the others of the finish chunk, which so is never without
 * one: the official SDK then forgets the turn.
 */

static int
kx_gemini_text(kx_answer_t *a, const kx_frame_t *fr)
{
    kx_str_t     *parts;

    static const kx_str_t  first = kx_string("{\"text\":\"");
    static const kx_str_t  next = kx_string(",{\"text\":\"");
    static const kx_str_t  after = kx_string("\"}");

    parts = &a->found[0];

    /* a joined event has its parts in front of the last line, maybe */

    if (parts->len && fr->data.data == fr->tail.data) {
        return kx_answer_place(a, parts->data + parts->len - 1,
                               kx_gemini_empty(parts) ? &first : &next,
                               &after);
    }

    if (a->framing == KX_FRAMING_WHOLE) {
        return KX_DECLINED;
    }

    return kx_gemini_chunk(a, fr);
}


static int
kx_gemini_chunk(kx_answer_t *a, const kx_frame_t *fr)
{
    int              rc;
    unsigned         i, n;
    kx_str_t         parts[12], after;
    kx_members_t     members;
    const kx_str_t  *value;

    static const char *const  names[] = { "modelVersion", "responseId" };

    static const kx_str_t  keys[] = {
        kx_string(",\"modelVersion\":"),
        kx_string(",\"responseId\":")
    };

    static const kx_str_t  data =
        kx_string("data: {\"candidates\":[{\"content\":{\"parts\":"
                  "[{\"text\":\"");
    static const kx_str_t  element =
        kx_string("{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"");
    static const kx_str_t  text =
        kx_string("\"}],\"role\":\"model\"},\"index\":0}]");
    static const kx_str_t  end = kx_string("}");
    static const kx_str_t  comma = kx_string("}\n,\r\n");

    if (kx_members_read(&members, fr->data.data, fr->data.len) != KX_OK) {
        return KX_DECLINED;
    }

    n = 0;
    parts[n++] = text;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        value = kx_members_scalar(&members, names[i]);

        if (value) {
            parts[n++] = keys[i];
            parts[n++] = *value;
        }
    }

    if (a->framing == KX_FRAMING_ARRAY) {
        parts[n++] = comma;

    } else {
        parts[n++] = end;
        parts[n++] = fr->eol;
        parts[n++] = fr->eol;
    }

    rc = kx_answer_join(a, &after, parts, n);
    if (rc != KX_OK) {
        return rc;
    }

    /* the frame of an element begins with what stands in front of it */

    return (a->framing == KX_FRAMING_ARRAY)
           ? kx_answer_place(a, fr->data.data, &element, &after)
           : kx_answer_place(a, NULL, &data, &after);
}


/* are there only brackets? */

static unsigned
kx_gemini_empty(const kx_str_t *raw)
{
    kx_str_t   key;
    kx_json_t  j;

    kx_json_init(&j, raw->data, raw->len);

    return kx_json_enter(&j) == KX_OK
           && (raw->data[0] == '{' ? kx_json_member(&j, &key)
                                   : kx_json_element(&j))
              == KX_DONE;
}
