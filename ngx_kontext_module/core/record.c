/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "record.h"

#include <float.h>


#define KX_RECORD_SEAL  8            /* bytes, at the end */


typedef struct {
    const unsigned char  *pos;
    const unsigned char  *last;
    unsigned              bad;
} kx_record_reader_t;


static unsigned char *kx_record_write(unsigned char *p, uint64_t n,
    unsigned size);
static unsigned char *kx_record_bytes(unsigned char *p, const void *src,
    size_t len);
static unsigned char *kx_record_write_turn(unsigned char *p,
    const kx_record_turn_t *t);
static uint64_t kx_record_seal(const unsigned char *p, size_t len,
    const unsigned char *key, const unsigned char *secret);
static uint64_t kx_record_read(kx_record_reader_t *rd, unsigned size);
static void kx_record_take_bytes(kx_record_reader_t *rd, void *dst,
    size_t len);
static void kx_record_read_turn(kx_record_reader_t *rd, kx_record_turn_t *t);
static unsigned kx_record_sane(const kx_record_t *r, uint64_t now);
static void kx_record_merge_init(kx_record_t *a, const kx_record_t *b);
static void kx_record_merge_turn(kx_record_t *a, const kx_record_turn_t *t);
static unsigned kx_record_newer(const kx_record_turn_t *a,
    const kx_record_turn_t *b);
static int kx_record_ads(const kx_record_turn_t *a,
    const kx_record_turn_t *b);
static void kx_record_sort(kx_record_t *r, unsigned i);
static void kx_record_forget(kx_record_t *r);
static void kx_record_give_turn(kx_session_t *s, const kx_record_turn_t *t);


unsigned char *
kx_record_encode(unsigned char *dst, const kx_record_t *r,
    const unsigned char key[KX_ID_LEN], const unsigned char *secret)
{
    unsigned        i;
    unsigned char  *p;

    p = kx_record_bytes(dst, "kxr", 3);
    p = kx_record_write(p, KX_RECORD_VERSION, 1);
    p = kx_record_write(p, r->flags, 1);
    p = kx_record_write(p, r->user, 8);
    p = kx_record_write(p, r->created, 4);
    p = kx_record_write(p, r->preload_timeout, 4);

    if (r->flags & KX_RECORD_SERVER_ID) {
        p = kx_record_bytes(p, r->server_id, KX_ID_LEN);
        p = kx_record_write(p, r->server_clock, 8);
    }

    p = kx_record_write(p, r->nturns, 1);

    for (i = 0; i < r->nturns; i++) {
        p = kx_record_write_turn(p, &r->turns[i]);
    }

    return kx_record_write(p, kx_record_seal(dst, p - dst, key, secret),
                           KX_RECORD_SEAL);
}


static unsigned char *
kx_record_write_turn(unsigned char *p, const kx_record_turn_t *t)
{
    size_t                   len;
    uint32_t                 revenue;
    unsigned                 i;
    const kx_session_bid_t  *bid;

    p = kx_record_bytes(p, t->message, KX_ID_LEN);
    p = kx_record_write(p, t->clock, 8);
    p = kx_record_write(p, t->ad_clock, 8);
    p = kx_record_write(p, t->index, 2);
    p = kx_record_write(p, t->state, 1);

    len = strlen(t->code);

    p = kx_record_write(p, len, 1);
    p = kx_record_bytes(p, t->code, len);
    p = kx_record_write(p, t->nbids, 1);

    for (i = 0; i < t->nbids; i++) {
        bid = &t->bids[i];

        memcpy(&revenue, &bid->revenue, sizeof(revenue));

        p = kx_record_bytes(p, bid->id, KX_ID_LEN);
        p = kx_record_write(p, revenue, 4);
        p = kx_record_write(p, bid->code, 4);
    }

    return p;
}


static unsigned char *
kx_record_write(unsigned char *p, uint64_t n, unsigned size)
{
    while (size--) {
        *p++ = (unsigned char) n;
        n >>= 8;
    }

    return p;
}


static unsigned char *
kx_record_bytes(unsigned char *p, const void *src, size_t len)
{
    memcpy(p, src, len);

    return p + len;
}


static uint64_t
kx_record_seal(const unsigned char *p, size_t len, const unsigned char *key,
    const unsigned char *secret)
{
    kx_sip_t  sip;

    kx_sip_init(&sip, secret, 0);
    kx_sip_field(&sip, key, KX_ID_LEN);
    kx_sip_field(&sip, p, len);

    return kx_sip_final64(&sip);
}


int
kx_record_decode(kx_record_t *r, const unsigned char *p, size_t len,
    const unsigned char key[KX_ID_LEN], const unsigned char *secret,
    uint64_t now)
{
    unsigned            i;
    kx_record_reader_t  rd;

    if (len < 4 + KX_RECORD_SEAL || len > KX_RECORD_MAX
        || memcmp(p, "kxr", 3) != 0 || p[3] != KX_RECORD_VERSION)
    {
        return KX_DECLINED;
    }

    len -= KX_RECORD_SEAL;

    rd.pos = p + len;
    rd.last = rd.pos + KX_RECORD_SEAL;
    rd.bad = 0;

    if (kx_record_read(&rd, KX_RECORD_SEAL)
        != kx_record_seal(p, len, key, secret))
    {
        return KX_DECLINED;
    }

    rd.pos = p + 4;
    rd.last = p + len;

    memset(r, 0, sizeof(kx_record_t));

    r->flags = (unsigned) kx_record_read(&rd, 1);
    r->user = kx_record_read(&rd, 8);
    r->created = (uint32_t) kx_record_read(&rd, 4);
    r->preload_timeout = (uint32_t) kx_record_read(&rd, 4);

    if (r->flags & KX_RECORD_SERVER_ID) {
        kx_record_take_bytes(&rd, r->server_id, KX_ID_LEN);
        r->server_clock = kx_record_read(&rd, 8);
    }

    r->nturns = (unsigned) kx_record_read(&rd, 1);

    if (r->nturns > KX_RECORD_TURNS) {
        return KX_DECLINED;
    }

    for (i = 0; i < r->nturns; i++) {
        kx_record_read_turn(&rd, &r->turns[i]);
    }

    if (rd.bad || rd.pos != rd.last || !kx_record_sane(r, now)) {
        return KX_DECLINED;
    }

    return KX_OK;
}


static void
kx_record_read_turn(kx_record_reader_t *rd, kx_record_turn_t *t)
{
    size_t             len;
    uint32_t           revenue;
    unsigned           i;
    kx_session_bid_t  *bid;

    kx_record_take_bytes(rd, t->message, KX_ID_LEN);
    t->clock = kx_record_read(rd, 8);
    t->ad_clock = kx_record_read(rd, 8);
    t->index = (uint16_t) kx_record_read(rd, 2);
    t->state = (uint8_t) kx_record_read(rd, 1);

    len = (size_t) kx_record_read(rd, 1);

    if (len >= KX_SESSION_CODE_LEN) {
        rd->bad = 1;
        return;
    }

    kx_record_take_bytes(rd, t->code, len);

    if (strlen(t->code) != len) {
        rd->bad = 1;
    }

    t->nbids = (uint8_t) kx_record_read(rd, 1);

    if (t->nbids > KX_MAX_BIDS) {
        rd->bad = 1;
        return;
    }

    for (i = 0; i < t->nbids; i++) {
        bid = &t->bids[i];

        kx_record_take_bytes(rd, bid->id, KX_ID_LEN);
        revenue = (uint32_t) kx_record_read(rd, 4);
        bid->code = (uint32_t) kx_record_read(rd, 4);

        memcpy(&bid->revenue, &revenue, sizeof(revenue));
    }
}


static uint64_t
kx_record_read(kx_record_reader_t *rd, unsigned size)
{
    uint64_t  n;
    unsigned  i;

    if ((size_t) (rd->last - rd->pos) < size) {
        rd->bad = 1;
        return 0;
    }

    n = 0;

    for (i = 0; i < size; i++) {
        n |= (uint64_t) *rd->pos++ << (8 * i);
    }

    return n;
}


static void
kx_record_take_bytes(kx_record_reader_t *rd, void *dst, size_t len)
{
    if ((size_t) (rd->last - rd->pos) < len) {
        rd->bad = 1;
        return;
    }

    memcpy(dst, rd->pos, len);
    rd->pos += len;
}


/* what kx_record_encode() may have written, and a node may believe */

static unsigned
kx_record_sane(const kx_record_t *r, uint64_t now)
{
    unsigned                 i, j;
    const kx_record_turn_t  *t;
    const kx_session_bid_t  *bid;

    now += KX_SESSION_AHEAD;

    if ((r->flags & ~KX_RECORD_FLAGS) || r->server_clock > now
        || r->preload_timeout > KX_MAX_PRELOAD_TIMEOUT)
    {
        return 0;
    }

    for (i = 0; i < r->nturns; i++) {
        t = &r->turns[i];

        if (t->clock > now || t->ad_clock > t->clock
            || (t->state != KX_TURN_NONE && t->state != KX_TURN_FILLED
                && t->state != KX_TURN_NO_FILL)
            || (t->nbids != 0) != (t->state == KX_TURN_FILLED))
        {
            return 0;
        }

        for (j = 0; t->code[j]; j++) {
            if (t->code[j] <= ' ' || t->code[j] >= 0x7f || t->code[j] == '"'
                || t->code[j] == '\\')
            {
                return 0;
            }
        }

        for (j = 0; j < t->nbids; j++) {
            bid = &t->bids[j];

            if (bid->code == 0
                || !(bid->revenue == -1
                     || (bid->revenue >= 0 && bid->revenue <= FLT_MAX)))
            {
                return 0;
            }
        }

        if (i && !kx_record_newer(&r->turns[i - 1], t)) {
            return 0;
        }

        for (j = 0; j < i; j++) {
            if (memcmp(r->turns[j].message, t->message, KX_ID_LEN) == 0) {
                return 0;
            }
        }
    }

    return 1;
}


uint64_t
kx_record_clock(const kx_record_t *r)
{
    return r->nturns ? r->turns[0].clock : 0;
}


void
kx_record_merge(kx_record_t *a, const kx_record_t *b)
{
    int       rc;
    unsigned  i;

    if (a->user != b->user) {

        if (kx_record_clock(a) < kx_record_clock(b)
            || (kx_record_clock(a) == kx_record_clock(b)
                && a->user < b->user))
        {
            *a = *b;
        }

        return;
    }

    if (a->created == 0 || (b->created && b->created < a->created)) {
        a->created = b->created;
    }

    kx_record_merge_init(a, b);

    if (b->flags & KX_RECORD_SERVER_ID) {

        rc = memcmp(b->server_id, a->server_id, KX_ID_LEN);

        if (!(a->flags & KX_RECORD_SERVER_ID)
            || b->server_clock > a->server_clock
            || (b->server_clock == a->server_clock && rc > 0))
        {
            memcpy(a->server_id, b->server_id, KX_ID_LEN);
            a->server_clock = b->server_clock;
        }
    }

    a->flags |= b->flags;

    for (i = 0; i < b->nturns; i++) {
        kx_record_merge_turn(a, &b->turns[i]);
    }

    kx_record_forget(a);
}


/* a timeout of 0 is what the one says that knows nothing */

static void
kx_record_merge_init(kx_record_t *a, const kx_record_t *b)
{
    if (a->preload_timeout == 0
        || (b->preload_timeout && b->preload_timeout < a->preload_timeout))
    {
        a->preload_timeout = b->preload_timeout;
    }
}


static void
kx_record_merge_turn(kx_record_t *a, const kx_record_turn_t *t)
{
    unsigned           i;
    kx_record_turn_t  *own;

    for (i = 0; i < a->nturns; i++) {
        own = &a->turns[i];

        if (memcmp(own->message, t->message, KX_ID_LEN) != 0) {
            continue;
        }

        if (kx_record_ads(t, own) > 0) {
            own->state = t->state;
            own->ad_clock = t->ad_clock;
            own->nbids = t->nbids;
            memcpy(own->code, t->code, sizeof(t->code));
            memcpy(own->bids, t->bids, sizeof(t->bids));
        }

        if (t->clock > own->clock) {
            own->clock = t->clock;
        }

        if (t->index > own->index) {
            own->index = t->index;
        }

        kx_record_sort(a, i);

        return;
    }

    if (a->nturns < KX_RECORD_TURNS) {
        i = a->nturns++;

    } else {
        i = KX_RECORD_TURNS - 1;

        if (!kx_record_newer(t, &a->turns[i])) {
            return;
        }
    }

    a->turns[i] = *t;

    kx_record_sort(a, i);
}


/* moves turn i up to where it belongs */

static void
kx_record_sort(kx_record_t *r, unsigned i)
{
    kx_record_turn_t  t;

    for ( /* void */ ; i && kx_record_newer(&r->turns[i], &r->turns[i - 1]);
         i--)
    {
        t = r->turns[i];
        r->turns[i] = r->turns[i - 1];
        r->turns[i - 1] = t;
    }
}


/* no two nodes are at a turn that is so old, and its ads are lost anyway */

static void
kx_record_forget(kx_record_t *r)
{
    while (r->nturns > 1
           && r->turns[0].clock - r->turns[r->nturns - 1].clock
              > KX_RECORD_SPAN)
    {
        r->nturns--;
        memset(&r->turns[r->nturns], 0, sizeof(kx_record_turn_t));
    }
}


static unsigned
kx_record_newer(const kx_record_turn_t *a, const kx_record_turn_t *b)
{
    if (a->clock != b->clock) {
        return a->clock > b->clock;
    }

    if (a->index != b->index) {
        return a->index > b->index;
    }

    return memcmp(a->message, b->message, KX_ID_LEN) > 0;
}


/* whose ads a message keeps: above zero, those of a */

static int
kx_record_ads(const kx_record_turn_t *a, const kx_record_turn_t *b)
{
    int  rc;

    static const uint8_t  rank[] = { 0, 0, 2, 1 };   /* kx_turn_state_e */

    if (rank[a->state] != rank[b->state]) {
        return rank[a->state] > rank[b->state] ? 1 : -1;
    }

    if (a->ad_clock != b->ad_clock) {
        return a->ad_clock < b->ad_clock ? 1 : -1;
    }

    if (a->nbids != b->nbids) {
        return a->nbids > b->nbids ? 1 : -1;
    }

    rc = memcmp(a->bids, b->bids, a->nbids * sizeof(kx_session_bid_t));

    return rc ? rc : memcmp(a->code, b->code, sizeof(a->code));
}


void
kx_record_take(kx_record_t *r, const kx_session_t *s, uint64_t user)
{
    kx_record_turn_t  *t;

    static const unsigned char  zero[KX_ID_LEN];

    memset(r, 0, sizeof(kx_record_t));

    r->user = user;
    r->created = s->created;

    if (s->init == KX_INIT_DONE) {
        r->flags |= KX_RECORD_INIT;
        r->preload_timeout = s->preload_timeout;
    }

    r->flags |= (s->disabled ? KX_RECORD_DISABLED : 0)
                | (s->off ? KX_RECORD_OFF : 0)
                | (s->no_errors ? KX_RECORD_NO_ERRORS : 0)
                | (s->debug ? KX_RECORD_DEBUG : 0);

    if (s->has_server_id) {
        r->flags |= KX_RECORD_SERVER_ID;
        r->server_clock = s->turn_wall;
        memcpy(r->server_id, s->server_id, KX_ID_LEN);
    }

    if (memcmp(s->user_message, zero, KX_ID_LEN) == 0) {
        return;
    }

    r->nturns = 1;
    t = &r->turns[0];

    memcpy(t->message, s->user_message, KX_ID_LEN);
    t->clock = s->turn_wall;
    t->ad_clock = s->turn_wall;
    t->index = s->index;

    if (s->turn == KX_TURN_PENDING || s->turn == KX_TURN_NONE) {
        t->state = KX_TURN_NONE;
        return;
    }

    t->state = s->turn;
    t->nbids = s->nbids;
    memcpy(t->bids, s->bids, s->nbids * sizeof(kx_session_bid_t));
    memcpy(t->code, s->code, KX_SESSION_CODE_LEN);
}


void
kx_record_give(kx_session_t *s, const kx_record_t *r)
{
    const kx_record_turn_t  *t;

    if (r->created) {
        s->created = r->created;
    }

    if (r->flags & KX_RECORD_INIT) {
        s->init = KX_INIT_DONE;
        s->preload_timeout = r->preload_timeout;
    }

    s->disabled = (r->flags & KX_RECORD_DISABLED) != 0;
    s->off = (r->flags & KX_RECORD_OFF) != 0;
    s->no_errors = (r->flags & KX_RECORD_NO_ERRORS) != 0;
    s->debug = (r->flags & KX_RECORD_DEBUG) != 0;

    if (r->flags & KX_RECORD_SERVER_ID) {
        memcpy(s->server_id, r->server_id, KX_ID_LEN);
        s->has_server_id = 1;
    }

    if (r->nturns == 0) {
        return;
    }

    t = &r->turns[0];

    if (memcmp(t->message, s->user_message, KX_ID_LEN) != 0) {
        kx_session_supersede(s);

        memcpy(s->user_message, t->message, KX_ID_LEN);
        s->turn_wall = t->clock;
        s->index = t->index;

        kx_record_give_turn(s, t);

        return;
    }

    /* what this node is waiting for may be there already */

    if (t->state != KX_TURN_NONE) {
        kx_record_give_turn(s, t);
    }
}


static void
kx_record_give_turn(kx_session_t *s, const kx_record_turn_t *t)
{
    s->turn = t->state;
    s->nbids = t->nbids;
    s->paired = s->nbids && s->answered;

    memset(s->bids, 0, sizeof(s->bids));
    memcpy(s->bids, t->bids, t->nbids * sizeof(kx_session_bid_t));
    memcpy(s->code, t->code, KX_SESSION_CODE_LEN);
}


unsigned
kx_record_due(const kx_session_t *s, const unsigned char message[KX_ID_LEN],
    uint64_t now)
{
    if (s == NULL) {
        return 1;
    }

    if (s->disabled) {
        return 0;
    }

    return memcmp(s->user_message, message, KX_ID_LEN) != 0
           || (s->turn != KX_TURN_FILLED && s->turn != KX_TURN_NO_FILL
               && !kx_session_awaited(s, now));
}
