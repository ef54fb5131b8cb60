/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "conversation.h"
#include "auxiliary.h"
#include "redact.h"
#include "chat/dialect.h"


#define KX_HASHES_MIN  64


/* the hashes that find their place in a table without a search, mostly */

#define KX_ORDINALS    64


/* both forms of a message's text, made in one go */

typedef struct {
    kx_text_t        canonical;
    kx_text_t        visible;
    kx_sha256_t      sha;
    kx_mix_t         mix;
    unsigned char   *last;
    unsigned char   *end;
    unsigned         cut:1;
} kx_message_text_t;


/* what is known of a message that is sent */

typedef struct {
    kx_memo_t        memo;
    unsigned         has_sha:1;
    unsigned         known:1;        /* there is no need to keep the memo */
    unsigned char    sha[KX_SHA256_LEN];
} kx_reading_t;


/* how the canonical text of a message begins */

typedef struct {
    size_t           len;
    unsigned char    text[KX_AUXILIARY_LEN];
} kx_opening_t;


typedef struct {
    uint64_t         hash;
    uint32_t         count;
    uint32_t         used;
} kx_ordinal_t;


/* a message up to its role, and on to its content */

typedef struct {
    kx_str_t         role;
    kx_str_t         content;
} kx_usual_form_t;


/* where texts go, one after the other */

typedef struct {
    unsigned char   *pos;
    unsigned char   *end;
} kx_room_t;


static int kx_conversation_element(kx_conversation_t *cv, kx_json_t *j,
    kx_role_e (*role)(const kx_str_t *raw));
static unsigned kx_conversation_usual(kx_json_t *j, kx_str_t *name,
    kx_str_t *content);
static int kx_conversation_keep(kx_conversation_t *cv, kx_role_e role,
    const kx_str_t *content, const kx_str_t *id);
static unsigned kx_conversation_said(kx_conversation_t *cv,
    const kx_str_t *content);
static size_t kx_conversation_canonical(kx_conversation_t *cv,
    const kx_str_t *content, kx_sink_pt sink, void *data);
static void kx_conversation_opening(kx_conversation_t *cv);
static void kx_conversation_open(void *data, const unsigned char *p,
    size_t len);
static void kx_conversation_settle(kx_conversation_t *cv, kx_kept_t *kept);
static void kx_conversation_tagged(const kx_conversation_t *cv,
    kx_kept_t *kept);
static uint64_t kx_conversation_tag(const kx_conversation_t *cv,
    const kx_kept_t *kept);
static uint64_t kx_conversation_owner(const kx_conversation_t *cv,
    const kx_str_t *conversation_id);
static void kx_conversation_mix(void *data, const unsigned char *p,
    size_t len);
static int kx_conversation_room(kx_conversation_t *cv, kx_room_t *room);
static void kx_conversation_ordinals(const kx_conversation_t *cv,
    uint32_t ordinals[KX_MAX_MESSAGES]);
static kx_ordinal_t *kx_conversation_ordinal(kx_ordinal_t *table,
    uint64_t hash);
static int kx_conversation_id(kx_conversation_t *cv,
    const kx_str_t *conversation_id, const kx_kept_t *kept, uint32_t ordinal,
    kx_reading_t *rd, kx_str_t *id, unsigned char digest[KX_ID_LEN]);
static void kx_conversation_made_id(kx_conversation_t *cv,
    const kx_str_t *conversation_id, const kx_kept_t *kept, uint32_t ordinal,
    kx_reading_t *rd, unsigned char digest[KX_ID_LEN]);
static int kx_conversation_read(kx_conversation_t *cv, kx_kept_t *kept,
    kx_reading_t *rd, kx_message_t *m, kx_room_t *room, size_t max);
static unsigned kx_conversation_plain(kx_conversation_t *cv,
    const kx_kept_t *kept, kx_reading_t *rd, kx_message_t *m, size_t max);
static int kx_conversation_text(kx_conversation_t *cv, const kx_kept_t *kept,
    kx_reading_t *rd, kx_str_t *text, kx_room_t *room, size_t max);
static unsigned kx_conversation_try(kx_conversation_t *cv,
    const kx_kept_t *kept, kx_message_text_t *mt);
static void kx_message_feed(void *data, const unsigned char *p, size_t len);
static void kx_message_canonical(void *data, const unsigned char *p,
    size_t len);
static void kx_message_visible(void *data, const unsigned char *p,
    size_t len);
static void kx_conversation_sha(void *data, const unsigned char *p,
    size_t len);


/* what JSON.stringify() makes of a message, and json.dumps() of Python */

static const kx_usual_form_t  kx_usual_forms[] = {
    { kx_string("{\"role\":\""), kx_string("\",\"content\":\"") },
    { kx_string("{\"role\": \""), kx_string("\", \"content\": \"") },
    { kx_string(""), kx_string("") }
};


static const kx_str_t  kx_roles[] = {
    kx_string("user"),
    kx_string("assistant")
};


void
kx_conversation_init(kx_conversation_t *cv, const kx_dialect_t *dialect,
    const kx_str_t *path, const unsigned char *key, const kx_pool_t *pool)
{
    memset(cv, 0, sizeof(kx_conversation_t));
    memcpy(cv->key, key, KX_SIP_KEY_LEN);

    cv->dialect = dialect;
    cv->pool = pool;
    cv->scratch = pool;
    cv->choices = 1;
    cv->user.rank = KX_IDENTITY_NONE;
    cv->conversation.rank = KX_IDENTITY_NONE;

    if (dialect->start) {
        dialect->start(cv, path);
    }
}


kx_reason_e
kx_conversation_scan(kx_conversation_t *cv, const unsigned char *body,
    size_t len)
{
    int        rc;
    kx_json_t  j;

    kx_json_init(&j, body, len);

    rc = cv->dialect->request(cv, &j);

    if (rc == KX_AGAIN) {
        return KX_REASON_NO_MEMORY;
    }

    if (rc != KX_OK || kx_json_end(&j) != KX_OK) {
        return KX_REASON_BAD_BODY;
    }

    if (cv->user_turn) {
        kx_conversation_opening(cv);
    }

    return KX_REASON_NONE;
}


int
kx_conversation_members(kx_conversation_t *cv, kx_json_t *j,
    int (*member)(kx_conversation_t *cv, kx_json_t *j, const kx_str_t *key))
{
    int       rc;
    kx_str_t  key;

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        rc = member(cv, j, &key);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


int
kx_conversation_list(kx_conversation_t *cv, kx_json_t *j,
    kx_role_e (*role)(const kx_str_t *raw))
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
        rc = kx_conversation_element(cv, j, role);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


static int
kx_conversation_element(kx_conversation_t *cv, kx_json_t *j,
    kx_role_e (*role)(const kx_str_t *raw))
{
    int       rc;
    kx_str_t  key, name, content;

    if (kx_conversation_usual(j, &name, &content)) {
        return kx_conversation_message(cv, role(&name), &content, NULL);
    }

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_ERROR;
    }

    name.len = 0;
    name.data = NULL;
    content.len = 0;
    content.data = NULL;

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        if (kx_json_is(&key, "content")) {
            rc = kx_json_skip(j, &content);

        } else if (kx_json_is(&key, "role")
                   && kx_json_type(j) == KX_JSON_STRING)
        {
            rc = kx_json_string(j, &name);

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

    return kx_conversation_message(cv, role(&name), &content, NULL);
}


/* consumes a message that is written as most clients do, or nothing */

static unsigned
kx_conversation_usual(kx_json_t *j, kx_str_t *name, kx_str_t *content)
{
    const unsigned char    *p, *end, *last;
    const kx_usual_form_t  *form;

    p = j->pos;
    last = j->last;

    for (form = kx_usual_forms; form->role.len; form++) {

        if ((size_t) (last - p) > form->role.len
            && memcmp(p, form->role.data, form->role.len) == 0)
        {
            break;
        }
    }

    if (form->role.len == 0) {
        return 0;
    }

    p += form->role.len;
    name->data = (unsigned char *) p;

    while (p < last && *p >= 'a' && *p <= 'z') {
        p++;
    }

    name->len = (size_t) (p - name->data);

    if ((size_t) (last - p) <= form->content.len
        || memcmp(p, form->content.data, form->content.len) != 0)
    {
        return 0;
    }

    p += form->content.len;

    end = kx_json_string_end(p, last);

    if (end == NULL || ++end == last || *end != '}') {
        return 0;
    }

    content->data = (unsigned char *) p - 1;
    content->len = (size_t) (end - content->data);

    j->pos = end + 1;

    return 1;
}


kx_role_e
kx_conversation_role(const kx_str_t *raw)
{
    if (kx_json_is(raw, "user")) {
        return KX_ROLE_USER;
    }

    return kx_json_is(raw, "assistant") ? KX_ROLE_ASSISTANT : KX_ROLE_OTHER;
}


int
kx_conversation_message(kx_conversation_t *cv, kx_role_e role,
    const kx_str_t *content, const kx_str_t *id)
{
    cv->user_turn = 0;

    if (role == KX_ROLE_OTHER || !kx_conversation_said(cv, content)) {
        return KX_OK;
    }

    if (kx_conversation_keep(cv, role, content, id) != KX_OK) {
        return KX_AGAIN;
    }

    if (role == KX_ROLE_USER) {
        cv->user_turn = 1;

        if (cv->first.data == NULL) {
            cv->first = *content;
        }
    }

    return KX_OK;
}


static int
kx_conversation_keep(kx_conversation_t *cv, kx_role_e role,
    const kx_str_t *content, const kx_str_t *id)
{
    uint32_t    size;
    uint64_t   *hashes;
    kx_kept_t  *kept;

    if (cv->kept == NULL) {
        cv->kept = cv->scratch->alloc(cv->scratch->data,
                                      KX_MAX_MESSAGES * sizeof(kx_kept_t));
        if (cv->kept == NULL) {
            return KX_ERROR;
        }
    }

    if (cv->nhashes == cv->size) {
        size = cv->size ? cv->size * 2 : KX_HASHES_MIN;

        hashes = cv->pool->alloc(cv->pool->data, size * sizeof(uint64_t));
        if (hashes == NULL) {
            return KX_ERROR;
        }

        if (cv->nhashes) {
            memcpy(hashes, cv->hashes, cv->nhashes * sizeof(uint64_t));
        }

        cv->hashes = hashes;
        cv->size = size;
    }

    kept = &cv->kept[cv->nhashes % KX_MAX_MESSAGES];

    if (cv->nhashes >= KX_MAX_MESSAGES) {
        kx_conversation_settle(cv, kept);
    }

    kept->role = role;
    kept->content = *content;
    kept->index = cv->nhashes++;
    kept->id.len = 0;
    kept->id.data = NULL;

    if (id) {
        kept->id = *id;
    }

    kept->tag = 0;

    if (cv->memos) {
        kept->tag = kx_conversation_tag(cv, kept);
        kx_memo_expect(cv->memos, kept->tag);
    }

    return KX_OK;
}


/* is there any visible text? */

static unsigned
kx_conversation_said(kx_conversation_t *cv, const kx_str_t *content)
{
    kx_opening_t   opening;
    unsigned char  c;

    if (content->len > 2 && content->data[0] == '"') {

        c = content->data[1];

        if (c > ' ' && c != '<' && c != '\\' && c != '"') {
            return 1;
        }
    }

    opening.len = 0;

    return kx_conversation_canonical(cv, content, kx_conversation_open,
                                     &opening)
           != 0;
}


/* the length of a content's canonical text, which goes to the sink */

static size_t
kx_conversation_canonical(kx_conversation_t *cv, const kx_str_t *content,
    kx_sink_pt sink, void *data)
{
    kx_text_t  text;

    kx_text_init(&text, KX_TEXT_CANONICAL, sink, data);

    cv->dialect->content(content, kx_text_feed, &text);
    kx_text_finish(&text);

    return text.out;
}


/* what the newest message, a user's, begins with */

static void
kx_conversation_opening(kx_conversation_t *cv)
{
    kx_opening_t      opening;
    const kx_kept_t  *kept;

    kept = &cv->kept[(cv->nhashes - 1) % KX_MAX_MESSAGES];

    opening.len = 0;

    (void) kx_conversation_canonical(cv, &kept->content, kx_conversation_open,
                                     &opening);

    cv->auxiliary = kx_auxiliary(opening.text, opening.len);
}


static void
kx_conversation_open(void *data, const unsigned char *p, size_t len)
{
    size_t         n;
    kx_opening_t  *opening = data;

    n = sizeof(opening->text) - opening->len;
    n = (n < len) ? n : len;

    memcpy(opening->text + opening->len, p, n);
    opening->len += n;
}


/* makes the hash of a message that is not among the last ones any more */

static void
kx_conversation_settle(kx_conversation_t *cv, kx_kept_t *kept)
{
    uint64_t  hash;
    kx_mix_t  mix;

    static const kx_memo_t  memo;

    kx_conversation_tagged(cv, kept);

    if (cv->memos
        && kx_memo_find(cv->memos, kept->tag, &cv->hashes[kept->index], NULL)
           == KX_OK)
    {
        return;
    }

    kx_conversation_hash(cv, &mix, kept->role);
    (void) kx_conversation_canonical(cv, &kept->content, kx_conversation_mix,
                                     &mix);

    hash = kx_mix_final(&mix);

    cv->hashes[kept->index] = hash;

    if (cv->memos) {
        kx_memo_put(cv->memos, kept->tag, hash, &memo);
    }
}


/* there may be memos since after the message was scanned */

static void
kx_conversation_tagged(const kx_conversation_t *cv, kx_kept_t *kept)
{
    if (cv->memos && kept->tag == 0) {
        kept->tag = kx_conversation_tag(cv, kept);
    }
}


/* what a memo is known by: the same bytes are the same text in a dialect */

static uint64_t
kx_conversation_tag(const kx_conversation_t *cv, const kx_kept_t *kept)
{
    uint64_t  tag;

    tag = kx_mix_once(cv->key, (uint64_t) kept->role,
                      (uint64_t) (uintptr_t) cv->dialect,
                      kept->content.data, kept->content.len);

    return tag ? tag : 1;
}


static uint64_t
kx_conversation_owner(const kx_conversation_t *cv,
    const kx_str_t *conversation_id)
{
    uint64_t  owner;

    owner = kx_mix_once(cv->key, 0, 0, conversation_id->data,
                        conversation_id->len);

    return owner ? owner : 1;
}


static void
kx_conversation_mix(void *data, const unsigned char *p, size_t len)
{
    kx_mix_update(data, p, len);
}


void
kx_conversation_restart(kx_conversation_t *cv)
{
    cv->user_turn = 0;
    cv->nhashes = 0;
    cv->first.len = 0;
    cv->first.data = NULL;
}


int
kx_conversation_identity(kx_conversation_t *cv, kx_json_t *j,
    kx_identity_t *id, kx_identity_e rank)
{
    int       rc;
    kx_str_t  value;

    if (rank > id->rank) {
        return kx_json_skip(j, NULL);
    }

    value.len = 0;

    rc = kx_conversation_string(cv, j, &value);

    if (rc == KX_OK && value.len) {
        id->rank = rank;
        id->value = value;
    }

    return rc;
}


int
kx_conversation_string(kx_conversation_t *cv, kx_json_t *j, kx_str_t *value)
{
    ssize_t         n;
    kx_str_t        raw;
    unsigned char  *p, buf[KX_MAX_IDENTITY];

    if (kx_json_type(j) != KX_JSON_STRING) {
        return kx_json_skip(j, NULL);
    }

    if (kx_json_string(j, &raw) != KX_OK) {
        return KX_ERROR;
    }

    n = kx_json_copy(&raw, buf, KX_MAX_IDENTITY);
    if (n <= 0) {
        return KX_OK;
    }

    p = cv->pool->alloc(cv->pool->data, (size_t) n);
    if (p == NULL) {
        return KX_AGAIN;
    }

    memcpy(p, buf, (size_t) n);

    value->len = (size_t) n;
    value->data = p;

    return KX_OK;
}


int
kx_conversation_metadata(kx_conversation_t *cv, kx_json_t *j)
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

        rc = id ? kx_conversation_identity(cv, j, id, rank)
                : kx_json_skip(j, NULL);

        if (rc != KX_OK) {
            return rc;
        }
    }

    return (rc == KX_DONE) ? KX_OK : rc;
}


void
kx_conversation_hash(const kx_conversation_t *cv, kx_mix_t *mix,
    kx_role_e role)
{
    unsigned char  c;

    c = (unsigned char) role;

    kx_mix_init(mix, cv->key);
    kx_mix_update(mix, &c, 1);
}


uint64_t
kx_conversation_count(const kx_conversation_t *cv, uint64_t hash)
{
    uint32_t  i;
    uint64_t  count;

    count = 0;

    for (i = 0; i < cv->nhashes; i++) {
        count += (cv->hashes[i] == hash);
    }

    return count;
}


unsigned
kx_conversation_messages(kx_conversation_t *cv,
    const kx_str_t *conversation_id, kx_message_t *messages,
    unsigned char digest[KX_ID_LEN])
{
    int            rc;
    size_t         max;
    uint32_t       i, n, first, sent, ordinals[KX_MAX_MESSAGES];
    uint64_t       owner;
    kx_kept_t     *kept;
    kx_room_t      room;
    kx_reading_t  *rd, readings[KX_MAX_MESSAGES];
    kx_message_t  *m;

    n = cv->nhashes;
    first = (n < KX_MAX_MESSAGES) ? 0 : n - KX_MAX_MESSAGES;
    sent = n;

    room.pos = NULL;
    room.end = NULL;

    max = KX_MAX_CONTENT;

    for (i = n; i > first; i--) {
        kept = &cv->kept[(i - 1) % KX_MAX_MESSAGES];

        if (max == 0) {
            kx_conversation_settle(cv, kept);
            continue;
        }

        m = &messages[sent - 1 - first];

        rc = kx_conversation_read(cv, kept,
                                  &readings[kept->index % KX_MAX_MESSAGES],
                                  m, &room, max);

        if (rc == KX_ERROR) {
            return 0;
        }

        /* only the newest one may be cut */

        if (rc == KX_DECLINED && i < n) {
            max = 0;
            continue;
        }

        m->role = kept->role;
        sent--;

        max = (rc == KX_OK) ? max - m->content.len : 0;
    }

    n -= sent;
    memmove(messages, messages + (sent - first), n * sizeof(kx_message_t));

    kx_conversation_ordinals(cv, ordinals);

    owner = cv->memos ? kx_conversation_owner(cv, conversation_id) : 0;

    for (i = 0; i < n; i++) {
        kept = &cv->kept[(sent + i) % KX_MAX_MESSAGES];
        rd = &readings[kept->index % KX_MAX_MESSAGES];

        if (rd->memo.owner != owner) {
            rd->memo.owner = owner;
            rd->memo.ordinal = 0;
        }

        if (kx_conversation_id(cv, conversation_id, kept,
                               ordinals[kept->index % KX_MAX_MESSAGES], rd,
                               &messages[i].id, digest)
            != KX_OK)
        {
            return 0;
        }

        if (cv->memos && !rd->known) {
            kx_memo_put(cv->memos, kept->tag, cv->hashes[kept->index],
                        &rd->memo);
        }
    }

    return n;
}


/* for the texts of the last messages, as long as they are well-formed */

static int
kx_conversation_room(kx_conversation_t *cv, kx_room_t *room)
{
    size_t    size;
    uint32_t  i, n;

    n = (cv->nhashes < KX_MAX_MESSAGES) ? cv->nhashes : KX_MAX_MESSAGES;
    size = 1;

    for (i = 0; i < n && size < KX_MAX_CONTENT; i++) {
        size += cv->kept[i].content.len;
    }

    if (size > KX_MAX_CONTENT) {
        size = KX_MAX_CONTENT;
    }

    room->pos = cv->scratch->alloc(cv->scratch->data, size);
    if (room->pos == NULL) {
        return KX_ERROR;
    }

    room->end = room->pos + size;

    return KX_OK;
}


/* of the last ones, how many there are of each up to it (chat-apis.md 13) */

static void
kx_conversation_ordinals(const kx_conversation_t *cv,
    uint32_t ordinals[KX_MAX_MESSAGES])
{
    uint32_t       i, n, first;
    kx_ordinal_t  *o, table[KX_ORDINALS];

    n = cv->nhashes;
    first = (n < KX_MAX_MESSAGES) ? 0 : n - KX_MAX_MESSAGES;

    memset(table, 0, sizeof(table));

    for (i = first; i < n; i++) {
        o = kx_conversation_ordinal(table, cv->hashes[i]);
        o->hash = cv->hashes[i];
        o->used = 1;
    }

    for (i = 0; i < n; i++) {
        o = kx_conversation_ordinal(table, cv->hashes[i]);

        if (o->used) {
            o->count++;

            if (i >= first) {
                ordinals[i % KX_MAX_MESSAGES] = o->count;
            }
        }
    }
}


static kx_ordinal_t *
kx_conversation_ordinal(kx_ordinal_t *table, uint64_t hash)
{
    unsigned  i;

    i = (unsigned) (hash % KX_ORDINALS);

    while (table[i].used && table[i].hash != hash) {
        i = (i + 1) % KX_ORDINALS;
    }

    return &table[i];
}


/* its own id if it has one, or one made of its text (chat-apis.md 13) */

static int
kx_conversation_id(kx_conversation_t *cv, const kx_str_t *conversation_id,
    const kx_kept_t *kept, uint32_t ordinal, kx_reading_t *rd, kx_str_t *id,
    unsigned char digest[KX_ID_LEN])
{
    ssize_t         n;
    unsigned char  *p, buf[KX_MAX_IDENTITY];

    n = kept->id.len ? kx_json_copy(&kept->id, buf, KX_MAX_IDENTITY) : 0;

    p = cv->scratch->alloc(cv->scratch->data,
                           (n > 0) ? (size_t) n : KX_MESSAGE_ID_LEN);
    if (p == NULL) {
        return KX_ERROR;
    }

    id->data = p;

    if (n > 0) {
        memcpy(p, buf, (size_t) n);
        id->len = (size_t) n;

        kx_message_digest_native(digest, conversation_id, id);

        return KX_OK;
    }

    kx_conversation_made_id(cv, conversation_id, kept, ordinal, rd, digest);
    kx_message_id(p, digest);

    id->len = KX_MESSAGE_ID_LEN;

    return KX_OK;
}


static void
kx_conversation_made_id(kx_conversation_t *cv,
    const kx_str_t *conversation_id, const kx_kept_t *kept, uint32_t ordinal,
    kx_reading_t *rd, unsigned char digest[KX_ID_LEN])
{
    kx_sha256_t  sha;

    if (rd->memo.ordinal == ordinal) {
        memcpy(digest, rd->memo.digest, KX_ID_LEN);
        return;
    }

    if (!rd->has_sha) {
        kx_sha256_init(&sha);
        (void) kx_conversation_canonical(cv, &kept->content,
                                         kx_conversation_sha, &sha);
        kx_sha256_final(&sha, rd->sha);
    }

    kx_message_digest(digest, conversation_id, kept->role, rd->sha, ordinal);

    rd->memo.ordinal = ordinal;
    memcpy(rd->memo.digest, digest, KX_ID_LEN);

    rd->known = 0;
}


/*
 * The text of a message, of max bytes at most, and its hashes.  KX_DECLINED:
 * the text was cut.
 */

static int
kx_conversation_read(kx_conversation_t *cv, kx_kept_t *kept,
    kx_reading_t *rd, kx_message_t *m, kx_room_t *room, size_t max)
{
    int               rc;
    uint64_t         *hash;
    const kx_memo_t  *known;

    hash = &cv->hashes[kept->index];

    kx_conversation_tagged(cv, kept);

    m->raw.len = 0;
    m->raw.data = NULL;
    m->tag = cv->memos ? kept->tag : 0;
    m->clean = 0;

    rd->has_sha = 0;

    if (cv->memos
        && kx_memo_find(cv->memos, kept->tag, hash, &known) == KX_OK
        && known->text && known->raw && known->len <= max)
    {
        rd->memo = *known;
        rd->known = 1;

        m->raw.data = kept->content.data + 1;
        m->raw.len = kept->content.len - 2;
        m->content.data = NULL;
        m->content.len = known->len;
        m->clean = known->clean;

        return KX_OK;
    }

    memset(&rd->memo, 0, sizeof(kx_memo_t));

    rd->known = 0;

    rc = KX_OK;

    if (!kx_conversation_plain(cv, kept, rd, m, max)) {
        rc = kx_conversation_text(cv, kept, rd, &m->content, room, max);
    }

    rd->has_sha = (rc != KX_ERROR);

    return rc;
}


/* a text whose raw string can be sent as it is */

static unsigned
kx_conversation_plain(kx_conversation_t *cv, const kx_kept_t *kept,
    kx_reading_t *rd, kx_message_t *m, size_t max)
{
    ssize_t            n;
    kx_str_t           raw;
    kx_message_text_t  mt;

    raw = kept->content;

    if (raw.len < 2 || raw.data[0] != '"' || raw.data[raw.len - 1] != '"') {
        return 0;
    }

    raw.data++;
    raw.len -= 2;

    n = kx_json_clean(&raw);

    if (n < 0 || (size_t) n > max) {
        return 0;
    }

    kx_sha256_init(&mt.sha);
    kx_conversation_hash(cv, &mt.mix, kept->role);
    kx_text_init(&mt.canonical, KX_TEXT_CANONICAL, kx_message_canonical, &mt);

    cv->dialect->content(&kept->content, kx_text_feed, &mt.canonical);

    kx_text_finish(&mt.canonical);

    if (mt.canonical.block_seen) {
        return 0;
    }

    kx_sha256_final(&mt.sha, rd->sha);

    cv->hashes[kept->index] = kx_mix_final(&mt.mix);

    rd->memo.len = (uint32_t) n;
    rd->memo.raw = 1;
    rd->memo.text = 1;

    m->raw = raw;
    m->content.data = NULL;
    m->content.len = (size_t) n;

    return 1;
}


void
kx_conversation_learn(kx_conversation_t *cv, const kx_message_t *messages,
    unsigned n)
{
    unsigned             i;
    uint64_t             hash;
    kx_memo_t            memo;
    const kx_memo_t     *known;
    const kx_message_t  *m;

    if (cv->memos == NULL) {
        return;
    }

    for (i = 0; i < n; i++) {
        m = &messages[i];

        if (m->clean
            && kx_memo_find(cv->memos, m->tag, &hash, &known) == KX_OK
            && known->raw && known->clean != m->clean)
        {
            memo = *known;
            memo.clean = m->clean & KX_REDACT_ALL;

            kx_memo_put(cv->memos, m->tag, hash, &memo);
        }
    }
}


/* any text, decoded */

static int
kx_conversation_text(kx_conversation_t *cv, const kx_kept_t *kept,
    kx_reading_t *rd, kx_str_t *text, kx_room_t *room, size_t max)
{
    size_t             size;
    unsigned char     *p;
    kx_message_text_t  mt;

    if (room->pos == NULL && kx_conversation_room(cv, room) != KX_OK) {
        return KX_ERROR;
    }

    p = room->pos;
    size = (size_t) (room->end - p);

    mt.last = p;
    mt.end = p + ((size < max) ? size : max);

    if (!kx_conversation_try(cv, kept, &mt)) {
        room->pos = mt.last;

    } else if (size < max) {

        /* an ill-formed byte becomes three */

        size = kept->content.len;
        size = (size > max / 3) ? max : size * 3;

        p = cv->scratch->alloc(cv->scratch->data, size);
        if (p == NULL) {
            return KX_ERROR;
        }

        mt.last = p;
        mt.end = p + size;

        (void) kx_conversation_try(cv, kept, &mt);
    }

    kx_sha256_final(&mt.sha, rd->sha);
    cv->hashes[kept->index] = kx_mix_final(&mt.mix);

    if (mt.cut) {

        /* not in the middle of a character */

        while (mt.last > p && (mt.last[-1] & 0xc0) == 0x80) {
            mt.last--;
        }

        if (mt.last > p && mt.last[-1] >= 0xc0) {
            mt.last--;
        }
    }

    text->len = (size_t) (mt.last - p);
    text->data = p;

    return mt.cut ? KX_DECLINED : KX_OK;
}


static unsigned
kx_conversation_try(kx_conversation_t *cv, const kx_kept_t *kept,
    kx_message_text_t *mt)
{
    mt->cut = 0;

    kx_sha256_init(&mt->sha);
    kx_conversation_hash(cv, &mt->mix, kept->role);

    kx_text_init(&mt->canonical, KX_TEXT_CANONICAL, kx_message_canonical, mt);
    kx_text_init(&mt->visible, KX_TEXT_VISIBLE, kx_message_visible, mt);

    cv->dialect->content(&kept->content, kx_message_feed, mt);

    kx_text_finish(&mt->canonical);
    kx_text_finish(&mt->visible);

    return mt->cut;
}


static void
kx_message_feed(void *data, const unsigned char *p, size_t len)
{
    kx_message_text_t  *mt = data;

    kx_text_feed(&mt->canonical, p, len);
    kx_text_feed(&mt->visible, p, len);
}


static void
kx_message_canonical(void *data, const unsigned char *p, size_t len)
{
    kx_message_text_t  *mt = data;

    kx_sha256_update(&mt->sha, p, len);
    kx_mix_update(&mt->mix, p, len);
}


static void
kx_message_visible(void *data, const unsigned char *p, size_t len)
{
    kx_message_text_t  *mt = data;

    if (len > (size_t) (mt->end - mt->last)) {
        len = (size_t) (mt->end - mt->last);
        mt->cut = 1;
    }

    memcpy(mt->last, p, len);
    mt->last += len;
}


void
kx_conversation_derive(kx_conversation_t *cv, const kx_str_t *user,
    unsigned char digest[KX_ID_LEN])
{
    kx_sha256_t    sha;
    unsigned char  result[KX_SHA256_LEN];

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-cid-1", 8);
    kx_sha256_field(&sha, user->data, user->len);

    if (cv->previous.len) {

        /* what was said before is not in the request */

        kx_sha256_field(&sha, cv->previous.data, cv->previous.len);

    } else if (cv->first.data) {
        (void) kx_conversation_canonical(cv, &cv->first, kx_conversation_sha,
                                         &sha);
    }

    kx_sha256_final(&sha, result);

    memcpy(digest, result, KX_ID_LEN);
}


void
kx_conversation_id_write(unsigned char *dst,
    const unsigned char digest[KX_ID_LEN])
{
    memcpy(dst, "kxc_", 4);
    kx_base32_id(dst + 4, digest);
}


static void
kx_conversation_sha(void *data, const unsigned char *p, size_t len)
{
    kx_sha256_update(data, p, len);
}


void
kx_message_digest(unsigned char digest[KX_ID_LEN],
    const kx_str_t *conversation_id, kx_role_e role,
    const unsigned char text[KX_SHA256_LEN], uint64_t ordinal)
{
    unsigned       i;
    kx_sha256_t    sha;
    unsigned char  n[8], result[KX_SHA256_LEN];

    for (i = 0; i < 8; i++) {
        n[i] = (unsigned char) (ordinal >> (8 * i));
    }

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-mid-1", 8);
    kx_sha256_field(&sha, conversation_id->data, conversation_id->len);
    kx_sha256_field(&sha, kx_roles[role].data, kx_roles[role].len);
    kx_sha256_field(&sha, text, KX_SHA256_LEN);
    kx_sha256_field(&sha, n, 8);
    kx_sha256_final(&sha, result);

    memcpy(digest, result, KX_ID_LEN);
}


void
kx_message_digest_native(unsigned char digest[KX_ID_LEN],
    const kx_str_t *conversation_id, const kx_str_t *id)
{
    kx_sha256_t    sha;
    unsigned char  result[KX_SHA256_LEN];

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-mid-native", 13);
    kx_sha256_field(&sha, conversation_id->data, conversation_id->len);
    kx_sha256_field(&sha, id->data, id->len);
    kx_sha256_final(&sha, result);

    memcpy(digest, result, KX_ID_LEN);
}


void
kx_message_id(unsigned char *dst, const unsigned char digest[KX_ID_LEN])
{
    memcpy(dst, "kx1_", 4);
    kx_base32_id(dst + 4, digest);
}
