/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "feed.h"
#include "conversation.h"


/* in front of a message's id and content */

typedef struct {
    uint64_t          created;
    uint32_t          len;           /* of the content */
    uint16_t          id_len;
    uint8_t           role;
    uint8_t           spare;
} kx_feed_head_t;


/* in front of the id of an ad's message */

typedef struct {
    uint32_t          nbids;
    uint32_t          seq;           /* of their turn */
    kx_session_bid_t  bids[KX_MAX_BIDS];
} kx_feed_bids_t;


_Static_assert(sizeof(kx_feed_head_t) == 16, "KX_FEED_TEXT_LEN counts on it");


static unsigned kx_feed_known(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *id);
static size_t kx_feed_message_id(kx_session_table_t *t, const kx_item_t *item,
    kx_feed_head_t *head, unsigned char id[KX_API_MAX_MESSAGE_ID]);
static kx_feed_e kx_feed_repeat(kx_session_table_t *t, kx_session_t *s,
    const kx_api_message_t *m, const unsigned char *digest, uint64_t now,
    uint64_t wall, uint32_t timeout, uint32_t pid);
static void kx_feed_trim(kx_session_table_t *t, kx_session_t *s, size_t len);
static kx_feed_e kx_feed_turn(kx_session_t *s, kx_root_t *root,
    const kx_api_message_t *m, const unsigned char *digest, uint64_t now,
    uint64_t wall, uint32_t timeout, uint32_t pid);
static unsigned kx_feed_pair(kx_session_table_t *t, kx_session_t *s);
static void kx_feed_assign(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *id);
static void kx_feed_unassign(kx_session_table_t *t, kx_session_t *s);
static void kx_feed_drop_ad(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *id);
static int kx_feed_ad_of(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *id, kx_item_t *item, kx_feed_bids_t *bids);
static unsigned kx_feed_read_bids(kx_session_table_t *t,
    const kx_item_t *item, kx_feed_bids_t *bids);
static void kx_feed_push(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *data);
static uint32_t kx_feed_room(const kx_str_t *data, unsigned n);


int
kx_feed_open(kx_session_table_t *t, kx_session_t *s,
    const unsigned char id[KX_ID_LEN], const kx_str_t *user,
    const kx_str_t *conversation)
{
    kx_str_t       data[2], message;
    unsigned char  buf[KX_MESSAGE_ID_LEN];

    if (kx_store_root(t, s) != NULL) {
        return KX_OK;
    }

    if (user->len == 0 || user->len > KX_MAX_IDENTITY
        || conversation->len == 0 || conversation->len > KX_MAX_IDENTITY
        || kx_store_keep(t, s, id) != KX_OK)
    {
        return KX_DECLINED;
    }

    data[0] = *user;
    data[1] = *conversation;

    if (kx_store_reserve(t, s, kx_store_blocks(user->len
                                               + conversation->len) + 2)
        != KX_OK)
    {
        kx_session_table_close(t, s);
        return KX_DECLINED;
    }

    kx_session_table_change(t, s);

    (void) kx_store_add(t, s, KX_ITEM_IDENTITY, user->len, data, 2);

    if (s->paired) {
        kx_message_id(buf, s->assistant);

        message.data = buf;
        message.len = KX_MESSAGE_ID_LEN;

        kx_feed_assign(t, s, &message);
    }

    kx_session_table_changed(t, s);

    return KX_OK;
}


int
kx_feed_identity(kx_session_table_t *t, kx_session_t *s, unsigned char *buf,
    kx_str_t *user, kx_str_t *conversation)
{
    kx_item_t  item;

    if (kx_store_first(t, s, KX_ITEM_IDENTITY, &item) != KX_OK
        || item.number == 0 || item.number > KX_MAX_IDENTITY
        || item.len <= item.number
        || item.len - item.number > KX_MAX_IDENTITY
        || kx_store_read(t, &item, 0, buf, item.len) != item.len)
    {
        return KX_DECLINED;
    }

    user->data = buf;
    user->len = (size_t) item.number;

    conversation->data = buf + user->len;
    conversation->len = item.len - user->len;

    return KX_OK;
}


kx_feed_e
kx_feed_message(kx_session_table_t *t, kx_session_t *s,
    const kx_api_message_t *m, const unsigned char digest[KX_ID_LEN],
    uint64_t now, uint64_t wall, uint32_t timeout, uint32_t pid)
{
    size_t           len;
    kx_str_t         data[3];
    kx_feed_e        rc;
    kx_root_t       *root;
    kx_feed_head_t   head;

    if (m->message.id.len == 0 || m->message.id.len > KX_API_MAX_MESSAGE_ID
        || m->message.content.len > KX_MAX_CONTENT)
    {
        return KX_FEED_NO_ROOM;
    }

    if (kx_feed_known(t, s, &m->message.id)) {
        return kx_feed_repeat(t, s, m, digest, now, wall, timeout, pid);
    }

    memset(&head, 0, sizeof(kx_feed_head_t));

    head.created = m->has_created ? m->message.created : wall;
    head.len = (uint32_t) m->message.content.len;
    head.id_len = (uint16_t) m->message.id.len;
    head.role = (uint8_t) m->message.role;

    data[0].data = (unsigned char *) &head;
    data[0].len = sizeof(kx_feed_head_t);
    data[1] = m->message.id;
    data[2] = m->message.content;

    len = data[0].len + data[1].len + data[2].len;

    /* and an ad of it */

    if (kx_store_reserve(t, s, kx_store_blocks(len) + 3) != KX_OK) {
        return KX_FEED_NO_ROOM;
    }

    root = kx_store_root(t, s);
    if (root == NULL) {
        return KX_FEED_NO_ROOM;
    }

    kx_session_table_change(t, s);

    kx_feed_trim(t, s, len);

    if (kx_store_add(t, s, KX_ITEM_MESSAGE, root->messages + 1, data, 3)
        != KX_OK)
    {
        kx_session_table_changed(t, s);
        return KX_FEED_NO_ROOM;
    }

    root->messages++;

    rc = KX_FEED_STORED;

    if (m->message.role == KX_ROLE_USER) {
        rc = kx_feed_turn(s, root, m, digest, now, wall, timeout, pid);

    } else if (kx_feed_pair(t, s)) {
        rc = KX_FEED_PAIRED;
    }

    kx_session_table_changed(t, s);

    return rc;
}


static unsigned
kx_feed_known(kx_session_table_t *t, kx_session_t *s, const kx_str_t *id)
{
    int             rc;
    size_t          len;
    kx_item_t       item;
    unsigned char   buf[KX_API_MAX_MESSAGE_ID];
    kx_feed_head_t  head;

    for (rc = kx_store_first(t, s, KX_ITEM_MESSAGE, &item);
         rc == KX_OK;
         rc = kx_store_next(t, &item))
    {
        len = kx_feed_message_id(t, &item, &head, buf);

        if (len == id->len && memcmp(buf, id->data, len) == 0) {
            return 1;
        }
    }

    return 0;
}


/* 0: it makes no sense */

static size_t
kx_feed_message_id(kx_session_table_t *t, const kx_item_t *item,
    kx_feed_head_t *head, unsigned char id[KX_API_MAX_MESSAGE_ID])
{
    if (kx_store_read(t, item, 0, head, sizeof(kx_feed_head_t))
        != sizeof(kx_feed_head_t))
    {
        return 0;
    }

    if (head->id_len > KX_API_MAX_MESSAGE_ID
        || head->role > KX_ROLE_ASSISTANT
        || item->len != sizeof(kx_feed_head_t) + head->id_len
                        + (size_t) head->len)
    {
        return 0;
    }

    return kx_store_read(t, item, sizeof(kx_feed_head_t), id, head->id_len);
}


static kx_feed_e
kx_feed_repeat(kx_session_table_t *t, kx_session_t *s,
    const kx_api_message_t *m, const unsigned char *digest, uint64_t now,
    uint64_t wall, uint32_t timeout, uint32_t pid)
{
    kx_turn_e   turn;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    if (root == NULL || m->message.role != KX_ROLE_USER
        || memcmp(s->user_message, digest, KX_ID_LEN) != 0)
    {
        return KX_FEED_REPEATED;
    }

    kx_session_table_change(t, s);

    turn = kx_session_turn(s, digest, m->track_only, now, wall, timeout);

    if (turn == KX_TURN_ASK) {
        root->due = now + KX_FEED_DEBOUNCE;
        root->owner = pid;
        root->track_only = (uint8_t) m->track_only;
    }

    if (turn == KX_TURN_REUSE) {

        /* the answer to it is made again, and the next one has the ad */

        s->answered = 0;
        s->paired = 0;
    }

    kx_session_table_changed(t, s);

    switch (turn) {

    case KX_TURN_ASK:
        return KX_FEED_AGAIN;

    case KX_TURN_DISABLED:
        return KX_FEED_DISABLED;

    default: /* KX_TURN_REUSE, KX_TURN_WAIT */
        return KX_FEED_REPEATED;
    }
}


/* makes room for a message, protocol.md 3.2, 6.2 */

static void
kx_feed_trim(kx_session_table_t *t, kx_session_t *s, size_t len)
{
    kx_str_t         id;
    kx_item_t        item;
    kx_root_t       *root;
    unsigned char    buf[KX_API_MAX_MESSAGE_ID];
    kx_feed_head_t   head;
    kx_item_list_t  *list;

    root = kx_store_root(t, s);
    if (root == NULL) {
        return;
    }

    list = &root->lists[KX_ITEM_MESSAGE];

    while (list->count >= KX_MAX_MESSAGES
           || list->bytes + len > KX_FEED_TEXT_LEN)
    {
        if (kx_store_first(t, s, KX_ITEM_MESSAGE, &item) != KX_OK) {
            return;
        }

        id.data = buf;
        id.len = kx_feed_message_id(t, &item, &head, buf);

        kx_store_shift(t, s, KX_ITEM_MESSAGE);

        if (id.len) {
            kx_feed_drop_ad(t, s, &id);
        }
    }
}


static kx_feed_e
kx_feed_turn(kx_session_t *s, kx_root_t *root, const kx_api_message_t *m,
    const unsigned char *digest, uint64_t now, uint64_t wall,
    uint32_t timeout, uint32_t pid)
{
    kx_turn_e  turn;

    /* the message is a new one, whatever the current turn is of */

    if (memcmp(s->user_message, digest, KX_ID_LEN) == 0) {
        memset(s->user_message, 0, KX_ID_LEN);
    }

    turn = kx_session_turn(s, digest, m->track_only, now, wall, timeout);

    root->trigger = root->messages;

    if (turn != KX_TURN_ASK) {
        return KX_FEED_DISABLED;
    }

    root->due = now + KX_FEED_DEBOUNCE;
    root->owner = pid;
    root->track_only = (uint8_t) m->track_only;

    return KX_FEED_ASK;
}


/* protocol.md 6.1; within a change */

static unsigned
kx_feed_pair(kx_session_table_t *t, kx_session_t *s)
{
    kx_str_t         id;
    kx_item_t        item, ad;
    kx_root_t       *root;
    unsigned char    buf[KX_API_MAX_MESSAGE_ID];
    kx_feed_head_t   head;
    kx_feed_bids_t   bids;

    root = kx_store_root(t, s);

    if (s->turn != KX_TURN_FILLED || s->paired || root == NULL
        || kx_store_last(t, s, KX_ITEM_MESSAGE, &item) != KX_OK
        || item.number <= root->trigger)
    {
        return 0;
    }

    id.data = buf;
    id.len = kx_feed_message_id(t, &item, &head, buf);

    if (id.len == 0 || head.role != KX_ROLE_ASSISTANT
        || kx_feed_ad_of(t, s, &id, &ad, &bids) == KX_OK)
    {
        return 0;
    }

    s->paired = 1;

    kx_feed_assign(t, s, &id);

    return 1;
}


/* the bids of the turn become the ad of a message; within a change */

static void
kx_feed_assign(kx_session_table_t *t, kx_session_t *s, const kx_str_t *id)
{
    kx_str_t         data[2];
    kx_root_t       *root;
    kx_feed_bids_t   bids;

    root = kx_store_root(t, s);

    if (root == NULL || s->nbids == 0 || s->nbids > KX_MAX_BIDS) {
        return;
    }

    memset(&bids, 0, sizeof(kx_feed_bids_t));

    bids.nbids = s->nbids;
    bids.seq = s->seq;
    memcpy(bids.bids, s->bids, s->nbids * sizeof(kx_session_bid_t));

    kx_feed_drop_ad(t, s, id);
    kx_feed_unassign(t, s);

    while (root->lists[KX_ITEM_AD].count >= KX_MAX_MESSAGES) {
        kx_store_shift(t, s, KX_ITEM_AD);
    }

    data[0].data = (unsigned char *) &bids;
    data[0].len = sizeof(kx_feed_bids_t);
    data[1] = *id;

    (void) kx_store_add(t, s, KX_ITEM_AD, root->messages, data, 2);
}


/* the ad of a turn is shown once: the new answer has replaced another one */

static void
kx_feed_unassign(kx_session_table_t *t, kx_session_t *s)
{
    int              rc;
    kx_item_t        item;
    kx_feed_bids_t   bids;

    for (rc = kx_store_first(t, s, KX_ITEM_AD, &item);
         rc == KX_OK;
         rc = kx_store_next(t, &item))
    {
        if (kx_feed_read_bids(t, &item, &bids) && bids.seq == s->seq) {
            kx_store_remove(t, s, KX_ITEM_AD, &item);
            return;
        }
    }
}


static void
kx_feed_drop_ad(kx_session_table_t *t, kx_session_t *s, const kx_str_t *id)
{
    kx_item_t       item;
    kx_feed_bids_t  bids;

    if (kx_feed_ad_of(t, s, id, &item, &bids) == KX_OK) {
        kx_store_remove(t, s, KX_ITEM_AD, &item);
    }
}


static int
kx_feed_ad_of(kx_session_table_t *t, kx_session_t *s, const kx_str_t *id,
    kx_item_t *item, kx_feed_bids_t *bids)
{
    int            rc;
    unsigned char  buf[KX_API_MAX_MESSAGE_ID];

    if (id->len == 0 || id->len > KX_API_MAX_MESSAGE_ID) {
        return KX_DECLINED;
    }

    for (rc = kx_store_first(t, s, KX_ITEM_AD, item);
         rc == KX_OK;
         rc = kx_store_next(t, item))
    {
        if (item->len == sizeof(kx_feed_bids_t) + id->len
            && kx_store_read(t, item, sizeof(kx_feed_bids_t), buf, id->len)
               == id->len
            && memcmp(buf, id->data, id->len) == 0
            && kx_feed_read_bids(t, item, bids))
        {
            return KX_OK;
        }
    }

    return KX_DECLINED;
}


static unsigned
kx_feed_read_bids(kx_session_table_t *t, const kx_item_t *item,
    kx_feed_bids_t *bids)
{
    if (kx_store_read(t, item, 0, bids, sizeof(kx_feed_bids_t))
        != sizeof(kx_feed_bids_t))
    {
        return 0;
    }

    return bids->nbids > 0 && bids->nbids <= KX_MAX_BIDS;
}


unsigned
kx_feed_messages(kx_session_table_t *t, kx_session_t *s, uint64_t number,
    unsigned ids, kx_message_t messages[KX_MAX_MESSAGES], unsigned char *buf,
    size_t size)
{
    int              rc;
    size_t           len;
    unsigned         n;
    kx_item_t        item;
    unsigned char    id[KX_API_MAX_MESSAGE_ID];
    kx_message_t    *m;
    kx_feed_head_t   head;

    n = 0;

    for (rc = kx_store_first(t, s, KX_ITEM_MESSAGE, &item);
         rc == KX_OK && item.number <= number && n < KX_MAX_MESSAGES;
         rc = kx_store_next(t, &item))
    {
        len = kx_feed_message_id(t, &item, &head, id);

        if (len == 0 || len > size) {
            continue;
        }

        m = &messages[n++];

        m->role = (kx_role_e) head.role;
        m->created = head.created;

        m->id.data = buf;
        m->id.len = len;
        memcpy(buf, id, len);

        buf += len;
        size -= len;

        m->content.data = buf;
        m->content.len = 0;
        m->raw.data = NULL;
        m->raw.len = 0;
        m->tag = 0;
        m->clean = 0;

        if (ids || head.len > size) {
            continue;
        }

        m->content.len = kx_store_read(t, &item,
                                       sizeof(kx_feed_head_t) + len, buf,
                                       head.len);
        buf += m->content.len;
        size -= m->content.len;
    }

    return n;
}


void
kx_feed_traffic(kx_session_table_t *t, kx_session_t *s)
{
    kx_root_t  *root;

    root = kx_store_root(t, s);

    if (root == NULL) {
        return;
    }

    kx_session_table_change(t, s);

    root->trigger = root->messages;
    root->owner = 0;

    kx_session_table_changed(t, s);
}


int
kx_feed_answer(kx_session_table_t *t, kx_session_t *s, uint32_t seq,
    const kx_preload_answer_t *a, const kx_str_t *placements,
    const kx_str_t *events, unsigned n)
{
    int            rc;
    kx_str_t       id;
    unsigned       i, kept;
    kx_root_t     *root;
    unsigned char  buf[KX_MESSAGE_ID_LEN];

    /* without the room the session still has its answer */

    kept = kx_store_root(t, s) != NULL
           && kx_store_reserve(t, s, kx_feed_room(events, n) + 3) == KX_OK;

    kx_session_table_change(t, s);

    rc = kx_session_answer(s, seq, a, placements);

    root = kept ? kx_store_root(t, s) : NULL;

    if (rc == KX_OK && root) {

        root->owner = 0;

        for (i = 0; i < n; i++) {
            kx_feed_push(t, s, &events[i]);
        }

        if (s->paired) {
            kx_message_id(buf, s->assistant);

            id.data = buf;
            id.len = KX_MESSAGE_ID_LEN;

            kx_feed_assign(t, s, &id);

        } else {
            (void) kx_feed_pair(t, s);
        }
    }

    kx_session_table_changed(t, s);

    return rc;
}


void
kx_feed_init_answer(kx_session_table_t *t, kx_session_t *s, uint32_t seq,
    const kx_init_answer_t *a, const kx_str_t *event)
{
    unsigned  kept;

    kept = a->applied && !a->enabled
           && (!s->disabled || s->init != KX_INIT_DONE)
           && kx_store_root(t, s) != NULL
           && kx_store_reserve(t, s, kx_feed_room(event, 1)) == KX_OK;

    kx_session_table_change(t, s);

    kx_session_init_answer(s, seq, a);

    if (kept) {
        kx_feed_push(t, s, event);
    }

    kx_session_table_changed(t, s);
}


int
kx_feed_assistant(kx_session_table_t *t, kx_session_t *s, uint32_t seq,
    const unsigned char message[KX_ID_LEN], const kx_str_t *id)
{
    int       rc;
    unsigned  kept;

    kept = kx_store_root(t, s) != NULL
           && kx_store_reserve(t, s, 3) == KX_OK;

    kx_session_table_change(t, s);

    rc = kx_session_pair(s, seq, message);

    if (rc == KX_OK && kept
        && id->len && id->len <= KX_API_MAX_MESSAGE_ID)
    {
        kx_feed_assign(t, s, id);
    }

    kx_session_table_changed(t, s);

    return rc;
}


int
kx_feed_take(kx_session_table_t *t, kx_session_t *s, uint32_t seq,
    uint32_t from, uint32_t to)
{
    kx_root_t  *root;

    root = kx_store_root(t, s);

    if (root == NULL || seq != s->seq || s->turn != KX_TURN_PENDING
        || root->owner != from)
    {
        return KX_DECLINED;
    }

    kx_session_table_change(t, s);
    root->owner = to;
    kx_session_table_changed(t, s);

    return KX_OK;
}


int
kx_feed_init_claim(kx_session_table_t *t, kx_session_t *s, uint64_t now,
    uint32_t timeout, uint32_t pid, uint32_t dead)
{
    int         rc;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    if (root == NULL) {
        return KX_DECLINED;
    }

    kx_session_table_change(t, s);

    if (dead && root->init_owner == dead) {
        kx_session_init_cancel(s, s->init_seq);
    }

    rc = kx_session_init_claim(s, now, timeout);

    if (rc == KX_OK) {
        root->init_owner = pid;
    }

    kx_session_table_changed(t, s);

    return rc;
}


void
kx_feed_end(kx_session_table_t *t, kx_session_t *s)
{
    unsigned    i;
    kx_root_t  *root;

    static const kx_item_kind_e  kinds[] = {
        KX_ITEM_OPTIONS, KX_ITEM_MESSAGE, KX_ITEM_AD, KX_ITEM_IDENTITY
    };

    root = kx_store_root(t, s);

    if (root == NULL || root->lists[KX_ITEM_EVENT].count == 0) {
        kx_session_table_close(t, s);
        return;
    }

    kx_session_table_change(t, s);

    for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        while (root->lists[kinds[i]].count) {
            kx_store_shift(t, s, kinds[i]);
        }
    }

    kx_session_cancel(s, s->seq);
    s->closing = 1;

    kx_session_table_changed(t, s);
}


int
kx_feed_ad(kx_session_table_t *t, kx_session_t *s, const kx_str_t *id,
    const kx_str_t *placements, unsigned nplacements, kx_feed_ad_t *ad)
{
    kx_item_t       item;
    kx_feed_bids_t  bids;

    if (kx_feed_ad_of(t, s, id, &item, &bids) != KX_OK) {
        return KX_DECLINED;
    }

    ad->id = *id;
    ad->nbids = kx_session_placed(bids.bids, bids.nbids, ad->bids,
                                  placements, nplacements);

    return ad->nbids ? KX_OK : KX_DECLINED;
}


unsigned
kx_feed_ads(kx_session_table_t *t, kx_session_t *s,
    const kx_str_t *placements, unsigned nplacements,
    kx_feed_ad_t ads[KX_MAX_MESSAGES], unsigned char *buf, size_t size)
{
    int              rc;
    size_t           len;
    unsigned         n;
    kx_item_t        item;
    kx_feed_ad_t    *ad;
    kx_feed_bids_t   bids;

    n = 0;

    for (rc = kx_store_first(t, s, KX_ITEM_AD, &item);
         rc == KX_OK && n < KX_MAX_MESSAGES;
         rc = kx_store_next(t, &item))
    {
        if (!kx_feed_read_bids(t, &item, &bids)) {
            continue;
        }

        len = item.len - sizeof(kx_feed_bids_t);

        if (len > size) {
            continue;
        }

        ad = &ads[n];

        ad->nbids = kx_session_placed(bids.bids, bids.nbids, ad->bids,
                                      placements, nplacements);
        if (ad->nbids == 0) {
            continue;
        }

        ad->id.data = buf;
        ad->id.len = kx_store_read(t, &item, sizeof(kx_feed_bids_t), buf,
                                   len);
        buf += ad->id.len;
        size -= ad->id.len;
        n++;
    }

    return n;
}


int
kx_feed_bid(kx_session_table_t *t, kx_session_t *s,
    const unsigned char id[KX_ID_LEN], kx_session_bid_t *bid,
    unsigned char *buf, kx_str_t *message)
{
    int              rc;
    unsigned         i;
    kx_item_t        item;
    kx_feed_bids_t   bids;

    message->data = buf;
    message->len = 0;

    for (rc = kx_store_first(t, s, KX_ITEM_AD, &item);
         rc == KX_OK;
         rc = kx_store_next(t, &item))
    {
        if (!kx_feed_read_bids(t, &item, &bids)) {
            continue;
        }

        for (i = 0; i < bids.nbids; i++) {

            if (memcmp(bids.bids[i].id, id, KX_ID_LEN) != 0) {
                continue;
            }

            *bid = bids.bids[i];

            message->len = kx_store_read(t, &item, sizeof(kx_feed_bids_t),
                                         buf, KX_API_MAX_MESSAGE_ID);
            return KX_OK;
        }
    }

    for (i = 0; i < s->nbids && i < KX_MAX_BIDS; i++) {
        if (memcmp(s->bids[i].id, id, KX_ID_LEN) == 0) {
            *bid = s->bids[i];
            return KX_OK;
        }
    }

    return KX_DECLINED;
}


uint64_t
kx_feed_event(kx_session_table_t *t, kx_session_t *s, const kx_str_t *data)
{
    uint64_t    before;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    if (root == NULL
        || kx_store_reserve(t, s, kx_feed_room(data, 1)) != KX_OK)
    {
        return 0;
    }

    before = root->events;

    kx_session_table_change(t, s);
    kx_feed_push(t, s, data);
    kx_session_table_changed(t, s);

    return (root->events != before) ? root->events : 0;
}


/* within a change */

static void
kx_feed_push(kx_session_table_t *t, kx_session_t *s, const kx_str_t *data)
{
    kx_root_t       *root;
    kx_item_list_t  *list;

    root = kx_store_root(t, s);

    if (root == NULL || data->len == 0 || data->len > KX_API_MAX_EVENT) {
        return;
    }

    list = &root->lists[KX_ITEM_EVENT];

    while (list->count
           && (list->count >= KX_FEED_EVENTS
               || list->bytes + data->len > KX_FEED_EVENTS_LEN))
    {
        kx_store_shift(t, s, KX_ITEM_EVENT);
    }

    if (kx_store_add(t, s, KX_ITEM_EVENT, root->events + 1, data, 1)
        == KX_OK)
    {
        root->events++;
    }
}


static uint32_t
kx_feed_room(const kx_str_t *data, unsigned n)
{
    unsigned  i;
    uint32_t  blocks;

    blocks = 0;

    for (i = 0; i < n; i++) {
        blocks += kx_store_blocks(data[i].len);
    }

    return blocks;
}


unsigned
kx_feed_events(kx_session_table_t *t, kx_session_t *s, uint64_t after,
    kx_feed_event_t *events, unsigned n, unsigned char *buf, size_t size,
    uint64_t *lost)
{
    int         rc;
    unsigned    i;
    uint64_t    first;
    kx_item_t   item;
    kx_root_t  *root;

    *lost = 0;

    root = kx_store_root(t, s);

    if (root == NULL || after >= root->events) {
        return 0;
    }

    i = 0;
    first = 0;

    for (rc = kx_store_first(t, s, KX_ITEM_EVENT, &item);
         rc == KX_OK && i < n;
         rc = kx_store_next(t, &item))
    {
        if (item.number <= after) {
            continue;
        }

        if (item.len > size) {
            break;
        }

        if (first == 0) {
            first = item.number;
        }

        events[i].number = item.number;
        events[i].data.data = buf;
        events[i].data.len = kx_store_read(t, &item, 0, buf, item.len);

        buf += events[i].data.len;
        size -= events[i].data.len;
        i++;
    }

    if (first > after + 1) {
        *lost = first - after - 1;
    }

    return i;
}


size_t
kx_feed_options(kx_session_table_t *t, kx_session_t *s, unsigned char *buf,
    uint32_t *revision)
{
    kx_item_t   item;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    *revision = root ? root->revision : 0;

    if (kx_store_first(t, s, KX_ITEM_OPTIONS, &item) != KX_OK
        || item.len > KX_API_MAX_OPTIONS)
    {
        return 0;
    }

    return kx_store_read(t, &item, 0, buf, item.len);
}


int
kx_feed_set_options(kx_session_table_t *t, kx_session_t *s,
    uint32_t revision, const kx_str_t *options)
{
    int         rc;
    kx_root_t  *root;

    root = kx_store_root(t, s);

    if (root == NULL || options->len > KX_API_MAX_OPTIONS) {
        return KX_DECLINED;
    }

    if (root->revision != revision) {
        return KX_AGAIN;
    }

    if (kx_store_reserve(t, s, kx_store_blocks(options->len)) != KX_OK) {
        return KX_DECLINED;
    }

    kx_session_table_change(t, s);

    kx_store_shift(t, s, KX_ITEM_OPTIONS);

    rc = kx_store_add(t, s, KX_ITEM_OPTIONS, 0, options, 1);

    root->revision++;

    kx_session_table_changed(t, s);

    return rc;
}
