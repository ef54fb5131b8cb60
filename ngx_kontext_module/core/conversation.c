/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "conversation.h"
#include "auxiliary.h"
#include "chat/dialect.h"


#define KX_HASHES_MIN  64


/* both forms of a message's text, made in one go */

typedef struct {
    kx_text_t        canonical;
    kx_text_t        visible;
    kx_sha256_t      sha;
    unsigned char   *last;
    unsigned char   *end;
    unsigned         cut:1;
} kx_message_text_t;


/* a message's hash, and how its canonical text begins */

typedef struct {
    kx_mix_t         mix;
    size_t           len;
    unsigned char    text[KX_AUXILIARY_LEN];
} kx_opening_t;


static int kx_conversation_element(kx_conversation_t *cv, kx_json_t *j,
    kx_role_e (*role)(const kx_str_t *raw));
static int kx_conversation_keep(kx_conversation_t *cv, kx_role_e role,
    const kx_str_t *content, const kx_str_t *id, uint64_t hash);
static void kx_conversation_canonical(void *data, const unsigned char *p,
    size_t len);
static int kx_conversation_id(kx_conversation_t *cv,
    const kx_str_t *conversation_id, const kx_kept_t *kept,
    const unsigned char sha[KX_SHA256_LEN], kx_str_t *id,
    unsigned char digest[KX_ID_LEN]);
static int kx_conversation_text(kx_conversation_t *cv, const kx_kept_t *kept,
    kx_str_t *text, size_t room, unsigned char sha[KX_SHA256_LEN]);
static void kx_message_feed(void *data, const unsigned char *p, size_t len);
static void kx_message_canonical(void *data, const unsigned char *p,
    size_t len);
static void kx_message_visible(void *data, const unsigned char *p,
    size_t len);
static void kx_conversation_sha(void *data, const unsigned char *p,
    size_t len);


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
    kx_text_t     text;
    kx_opening_t  opening;

    cv->user_turn = 0;
    cv->auxiliary = 0;

    if (role == KX_ROLE_OTHER) {
        return KX_OK;
    }

    opening.len = 0;

    kx_conversation_hash(cv, &opening.mix, role);
    kx_text_init(&text, KX_TEXT_CANONICAL, kx_conversation_canonical,
                 &opening);

    cv->dialect->content(content, kx_text_feed, &text);
    kx_text_finish(&text);

    if (text.out == 0) {
        return KX_OK;
    }

    if (kx_conversation_keep(cv, role, content, id,
                             kx_mix_final(&opening.mix))
        != KX_OK)
    {
        return KX_AGAIN;
    }

    if (role == KX_ROLE_USER) {
        cv->user_turn = 1;
        cv->auxiliary = kx_auxiliary(opening.text, opening.len);

        if (cv->first.data == NULL) {
            cv->first = *content;
        }
    }

    return KX_OK;
}


static int
kx_conversation_keep(kx_conversation_t *cv, kx_role_e role,
    const kx_str_t *content, const kx_str_t *id, uint64_t hash)
{
    uint32_t    size;
    uint64_t   *hashes;
    kx_kept_t  *kept;

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

    kept->role = role;
    kept->content = *content;
    kept->index = cv->nhashes;
    kept->id.len = 0;
    kept->id.data = NULL;

    if (id) {
        kept->id = *id;
    }

    cv->hashes[cv->nhashes++] = hash;

    return KX_OK;
}


void
kx_conversation_restart(kx_conversation_t *cv)
{
    cv->user_turn = 0;
    cv->auxiliary = 0;
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


static void
kx_conversation_canonical(void *data, const unsigned char *p, size_t len)
{
    size_t         n;
    kx_opening_t  *opening = data;

    kx_mix_update(&opening->mix, p, len);

    n = sizeof(opening->text) - opening->len;

    if (n) {
        n = (n < len) ? n : len;

        memcpy(opening->text + opening->len, p, n);
        opening->len += n;
    }
}


uint64_t
kx_conversation_count(const kx_conversation_t *cv, uint64_t hash, uint32_t n)
{
    uint32_t  i;
    uint64_t  count;

    count = 0;

    for (i = 0; i < n; i++) {
        count += (cv->hashes[i] == hash);
    }

    return count;
}


unsigned
kx_conversation_messages(kx_conversation_t *cv,
    const kx_str_t *conversation_id, kx_message_t *messages,
    unsigned char digest[KX_ID_LEN])
{
    size_t               room;
    uint32_t             n, left;
    unsigned             i;
    kx_str_t             text, id;
    kx_message_t        *m;
    unsigned char        sha[KX_SHA256_LEN], d[KX_ID_LEN];
    const kx_kept_t     *kept;

    n = cv->nhashes;
    left = (n < KX_MAX_MESSAGES) ? n : KX_MAX_MESSAGES;

    room = KX_MAX_CONTENT;
    m = messages + KX_MAX_MESSAGES;

    while (left--) {
        kept = &cv->kept[--n % KX_MAX_MESSAGES];

        switch (kx_conversation_text(cv, kept, &text, room, sha)) {

        case KX_OK:
            break;

        case KX_DECLINED:

            /* only the newest one may be cut */

            if (room != KX_MAX_CONTENT) {
                left = 0;
                continue;
            }

            left = 0;
            break;

        default:
            return 0;
        }

        if (kx_conversation_id(cv, conversation_id, kept, sha, &id, d)
            != KX_OK)
        {
            return 0;
        }

        if (m == messages + KX_MAX_MESSAGES) {
            memcpy(digest, d, KX_ID_LEN);
        }

        m--;
        m->role = kept->role;
        m->id = id;
        m->content = text;

        room -= text.len;
    }

    i = (unsigned) (messages + KX_MAX_MESSAGES - m);

    memmove(messages, m, i * sizeof(kx_message_t));

    return i;
}


/* its own id if it has one, or one made of its text (chat-apis.md 13) */

static int
kx_conversation_id(kx_conversation_t *cv, const kx_str_t *conversation_id,
    const kx_kept_t *kept, const unsigned char sha[KX_SHA256_LEN],
    kx_str_t *id, unsigned char digest[KX_ID_LEN])
{
    ssize_t         n;
    uint64_t        ordinal;
    unsigned char  *p, buf[KX_MAX_IDENTITY];

    n = kx_json_copy(&kept->id, buf, KX_MAX_IDENTITY);

    p = cv->pool->alloc(cv->pool->data,
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

    ordinal = kx_conversation_count(cv, cv->hashes[kept->index],
                                    kept->index)
              + 1;

    kx_message_digest(digest, conversation_id, kept->role, sha, ordinal);
    kx_message_id(p, digest);

    id->len = KX_MESSAGE_ID_LEN;

    return KX_OK;
}


/* KX_DECLINED: the text was cut, sha is that of the whole one all the same */

static int
kx_conversation_text(kx_conversation_t *cv, const kx_kept_t *kept,
    kx_str_t *text, size_t room, unsigned char sha[KX_SHA256_LEN])
{
    size_t             size;
    unsigned char     *p;
    kx_message_text_t  mt;

    /* an ill-formed byte becomes three, all else gets shorter or stays */

    size = kept->content.len;
    size = (size > room / 3) ? room : size * 3;

    p = cv->pool->alloc(cv->pool->data, size ? size : 1);
    if (p == NULL) {
        return KX_ERROR;
    }

    mt.last = p;
    mt.end = p + size;
    mt.cut = 0;

    kx_sha256_init(&mt.sha);
    kx_text_init(&mt.canonical, KX_TEXT_CANONICAL, kx_message_canonical, &mt);
    kx_text_init(&mt.visible, KX_TEXT_VISIBLE, kx_message_visible, &mt);

    cv->dialect->content(&kept->content, kx_message_feed, &mt);

    kx_text_finish(&mt.canonical);
    kx_text_finish(&mt.visible);

    kx_sha256_final(&mt.sha, sha);

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
    kx_text_t      text;
    kx_sha256_t    sha;
    unsigned char  result[KX_SHA256_LEN];

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-cid-1", 8);
    kx_sha256_field(&sha, user->data, user->len);

    if (cv->previous.len) {

        /* what was said before is not in the request */

        kx_sha256_field(&sha, cv->previous.data, cv->previous.len);

    } else {
        kx_text_init(&text, KX_TEXT_CANONICAL, kx_conversation_sha, &sha);

        if (cv->first.data) {
            cv->dialect->content(&cv->first, kx_text_feed, &text);
        }

        kx_text_finish(&text);
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
