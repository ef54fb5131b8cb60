/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "session_store.h"


/* to be changed with the layout of the table or of a record */

#define KX_SESSION_LAYOUT     0x6b78736573730004ULL

/* an odd number */
#define KX_SESSION_FACTOR     0x9e3779b97f4a7c15ULL

/* a power of two, and runs of 1, 2, 4 and so on up to that */
#define KX_SESSION_MAX_SLOTS  0x40000000
#define KX_SESSION_RUNS       31

/* idle sessions that are closed whenever one is made */
#define KX_SESSION_EXPIRE     2

/* an odd number that leaves the multiples of it far apart */
#define KX_SESSION_STRIDE     0x9e3779b1


/* size and share are one word: what there is of the size comes in 64ths */

#define kx_session_table_word(size, share)                                    \
    (((uint64_t) (size) & ~(uint64_t) 63) | (share))

#define kx_session_table_size(word)   ((word) & ~(uint64_t) 63)
#define kx_session_table_share(word)  ((word) & 63)


/* what the header of a table says of its size */

typedef struct {
    uint64_t  word;
    uint64_t  magic;
    uint64_t  seal;
    uint32_t  slots;
    uint32_t  buckets;
} kx_session_geometry_t;


_Static_assert(sizeof(kx_session_t) == 256, "a session is 256 bytes");
_Static_assert(sizeof(kx_session_table_t) % sizeof(uint32_t) == 0,
               "buckets follow the table");


static int kx_session_table_geometry(kx_session_geometry_t *g, uint64_t word);
static uint64_t kx_session_table_offset(uint64_t buckets);
static uint64_t kx_session_table_seal(uint64_t word, uint64_t layout);
static unsigned kx_session_table_fits(const kx_session_table_t *t,
    const kx_session_geometry_t *g);
static int kx_session_table_restore(kx_session_table_t *t, uint64_t word);
static int kx_session_table_heads(kx_session_table_t *t);
static kx_session_t *kx_session_table_get(kx_session_table_t *t,
    const unsigned char *key);
static int kx_session_table_lookup(kx_session_table_t *t,
    const unsigned char *key, uint32_t *index);
static unsigned kx_session_table_idle(const kx_session_t *s, uint64_t now,
    uint64_t idle);
static void kx_session_table_use(kx_session_table_t *t, kx_session_t *s,
    uint64_t now);
static void kx_session_table_expire(kx_session_table_t *t, uint64_t now,
    uint64_t idle);
static kx_session_t *kx_session_table_take(kx_session_table_t *t);
static int kx_session_table_detach(kx_session_table_t *t, uint32_t i);
static int kx_session_table_front(kx_session_table_t *t, uint32_t i);
static int kx_session_table_unchain(kx_session_table_t *t, uint32_t i);
static uint32_t kx_session_table_sort(kx_session_t *slots, uint32_t list);
static uint32_t kx_session_table_merge(kx_session_t *slots, uint32_t one,
    uint32_t two);
static void kx_session_table_wipe(kx_session_t *s);
static uint32_t *kx_session_table_newer(kx_session_table_t *t, uint32_t i);
static uint32_t *kx_session_table_older(kx_session_table_t *t, uint32_t i);
static uint32_t *kx_session_table_bucket(kx_session_table_t *t,
    const unsigned char *key);
static uint32_t *kx_session_table_buckets(kx_session_table_t *t);


kx_session_table_t *
kx_session_table_create(void *mem, size_t size, unsigned share)
{
    kx_session_table_t     *t;
    kx_session_geometry_t   g;

    if (share > KX_SESSION_MAX_SHARE
        || kx_session_table_geometry(&g, kx_session_table_word(size, share))
           != KX_OK)
    {
        return NULL;
    }

    t = mem;

    /* a table that is half made may not be taken for a whole one */

    t->magic = 0;
    t->seal = 0;
    kx_barrier();

    memset(t, 0, sizeof(kx_session_table_t));

    t->size = g.word;
    t->slots = g.slots;
    t->buckets = g.buckets;

    kx_session_table_rebuild(t, 0);

    t->repaired = 0;
    kx_barrier();

    t->magic = g.magic;
    t->seal = g.seal;

    return t;
}


kx_session_table_t *
kx_session_table_attach(void *mem, size_t size, unsigned share)
{
    kx_session_table_t     *t;
    kx_session_geometry_t   g;

    if (share > KX_SESSION_MAX_SHARE
        || kx_session_table_geometry(&g, kx_session_table_word(size, share))
           != KX_OK)
    {
        return NULL;
    }

    t = mem;

    return kx_session_table_fits(t, &g) ? t : NULL;
}


static int
kx_session_table_geometry(kx_session_geometry_t *g, uint64_t word)
{
    uint64_t  buckets, offset, size, slots;

    size = kx_session_table_size(word);

    if (kx_session_table_share(word) > KX_SESSION_MAX_SHARE) {
        return KX_DECLINED;
    }

    size -= size / 64 * kx_session_table_share(word);

    /* these are too few, whatever they take themselves */

    slots = size / sizeof(kx_session_t);

    for (buckets = 1; buckets * 8 < slots; buckets *= 2) { /* void */ }

    for ( /* void */ ; /* void */ ; buckets *= 2) {

        offset = kx_session_table_offset(buckets);

        if (size < offset + sizeof(kx_session_t)) {
            return KX_DECLINED;
        }

        slots = (size - offset) / sizeof(kx_session_t);

        if (slots > KX_SESSION_MAX_SLOTS) {
            return KX_DECLINED;
        }

        if (buckets * 2 >= slots) {
            break;
        }
    }

    g->word = word;
    g->magic = kx_session_table_seal(word, KX_SESSION_LAYOUT);
    g->seal = kx_session_table_seal(word, ~KX_SESSION_LAYOUT);
    g->slots = (uint32_t) slots;
    g->buckets = (uint32_t) buckets;

    return KX_OK;
}


static uint64_t
kx_session_table_offset(uint64_t buckets)
{
    uint64_t  offset;

    offset = sizeof(kx_session_table_t) + buckets * sizeof(uint32_t);

    return (offset + 63) & ~(uint64_t) 63;
}


/* Words that tell the size, and are not like to do so by accident. */

static uint64_t
kx_session_table_seal(uint64_t word, uint64_t layout)
{
    uint64_t  seal;

    seal = (word ^ layout) * KX_SESSION_FACTOR;
    seal ^= seal >> 32;

    return seal * KX_SESSION_FACTOR;
}


static unsigned
kx_session_table_fits(const kx_session_table_t *t,
    const kx_session_geometry_t *g)
{
    return t->magic == g->magic
           && t->seal == g->seal
           && t->size == g->word
           && t->slots == g->slots
           && t->buckets == g->buckets;
}


int
kx_session_table_check(kx_session_table_t *t, size_t size, unsigned share)
{
    int  rc;

    rc = kx_session_table_restore(t, kx_session_table_word(size, share));

    if (rc == KX_ERROR) {
        return KX_ERROR;
    }

    if (rc == KX_OK
        && t->dirty == 0
        && kx_session_table_heads(t) == KX_OK
        && kx_store_heads(t) == KX_OK)
    {
        return KX_OK;
    }

    kx_session_table_rebuild(t, 1);

    return KX_DONE;
}


static int
kx_session_table_restore(kx_session_table_t *t, uint64_t word)
{
    kx_session_geometry_t  g;

    if (kx_session_table_geometry(&g, word) != KX_OK
        || (t->magic != g.magic && t->seal != g.seal))
    {
        /* half of a table, or none: it gets no slots */

        t->size = 0;
        t->slots = 0;
        t->buckets = 1;

        kx_session_table_rebuild(t, 0);

        return KX_ERROR;
    }

    if (kx_session_table_fits(t, &g)) {
        return KX_OK;
    }

    kx_session_table_mark(t);

    t->size = g.word;
    t->slots = g.slots;
    t->buckets = g.buckets;
    t->magic = g.magic;
    t->seal = g.seal;

    return KX_DONE;
}


static int
kx_session_table_heads(kx_session_table_t *t)
{
    if (t->used > t->slots) {
        return KX_ERROR;
    }

    if (t->used == t->slots) {
        if (t->free != KX_SESSION_NONE) {
            return KX_ERROR;
        }

    } else if (t->free >= t->slots) {
        return KX_ERROR;
    }

    if (t->used == 0) {
        if (t->newest != KX_SESSION_NONE || t->oldest != KX_SESSION_NONE) {
            return KX_ERROR;
        }

    } else if (t->newest >= t->slots || t->oldest >= t->slots) {
        return KX_ERROR;
    }

    return KX_OK;
}


kx_session_t *
kx_session_table_find(kx_session_table_t *t,
    const unsigned char key[KX_ID_LEN], uint64_t now, uint64_t idle)
{
    kx_session_t  *s;

    s = kx_session_table_get(t, key);

    return s ? kx_session_table_touch(t, s, now, idle) : NULL;
}


kx_session_t *
kx_session_table_touch(kx_session_table_t *t, kx_session_t *s, uint64_t now,
    uint64_t idle)
{
    if (s->closing) {
        return NULL;
    }

    if (kx_session_table_idle(s, now, idle)) {
        kx_session_table_close(t, s);
        t->expired++;
        return NULL;
    }

    kx_session_table_use(t, s, now);

    return s;
}


static kx_session_t *
kx_session_table_get(kx_session_table_t *t, const unsigned char *key)
{
    int            rc;
    uint32_t       i;
    kx_session_t  *s;

    rc = kx_session_table_lookup(t, key, &i);

    if (rc == KX_ERROR) {
        kx_session_table_rebuild(t, 1);
        rc = kx_session_table_lookup(t, key, &i);
    }

    if (rc == KX_ERROR) {
        kx_session_table_rebuild(t, 0);
    }

    if (rc != KX_OK) {
        return NULL;
    }

    s = &kx_session_table_slots(t)[i];

    if (!kx_session_table_sane(s)) {
        kx_session_table_close(t, s);
        return NULL;
    }

    return s;
}


static int
kx_session_table_lookup(kx_session_table_t *t, const unsigned char *key,
    uint32_t *index)
{
    uint32_t       i, n;
    kx_session_t  *slots;

    n = 0;
    slots = kx_session_table_slots(t);

    for (i = *kx_session_table_bucket(t, key);
         i != KX_SESSION_NONE;
         i = slots[i].next)
    {
        if (i >= t->slots || n++ == t->slots || !slots[i].live) {
            return KX_ERROR;
        }

        if (memcmp(slots[i].key, key, KX_ID_LEN) == 0) {
            *index = i;
            return KX_OK;
        }
    }

    return KX_DECLINED;
}


static unsigned
kx_session_table_idle(const kx_session_t *s, uint64_t now, uint64_t idle)
{
    if (s->closing && idle > KX_SESSION_CLOSING) {
        idle = KX_SESSION_CLOSING;
    }

    /* the clock of another process may be ahead by a little */

    return now > s->used && now - s->used > idle;
}


static void
kx_session_table_use(kx_session_table_t *t, kx_session_t *s, uint64_t now)
{
    uint32_t  i;

    i = (uint32_t) (s - kx_session_table_slots(t));

    kx_session_table_mark(t);

    s->used = now;

    if (kx_session_table_detach(t, i) != KX_OK
        || kx_session_table_front(t, i) != KX_OK
        || kx_store_use(t, s) != KX_OK)
    {
        kx_session_table_rebuild(t, 1);
        return;
    }

    kx_session_table_clear(t);
}


kx_session_t *
kx_session_table_open(kx_session_table_t *t,
    const unsigned char key[KX_ID_LEN], uint64_t user, uint64_t now,
    uint64_t wall, uint64_t idle, unsigned *created)
{
    uint32_t       i, *bucket;
    kx_session_t  *s;

    *created = 0;

    s = kx_session_table_get(t, key);

    if (s) {
        if (kx_session_table_idle(s, now, idle)) {
            t->expired++;

        } else if (s->user == user && !s->closing) {
            kx_session_table_use(t, s, now);
            return s;
        }

        kx_session_table_close(t, s);
    }

    kx_session_table_expire(t, now, idle);

    s = kx_session_table_take(t);

    if (s == NULL) {
        kx_session_table_rebuild(t, 1);
        s = kx_session_table_take(t);
    }

    if (s == NULL) {
        kx_session_table_rebuild(t, 0);
        return NULL;
    }

    i = (uint32_t) (s - kx_session_table_slots(t));
    bucket = kx_session_table_bucket(t, key);

    kx_session_table_mark(t);

    t->free = s->next;
    t->used++;
    t->opened++;

    kx_session_table_wipe(s);

    memcpy(s->key, key, KX_ID_LEN);
    s->user = user;
    s->created = (uint32_t) (wall / 1000);
    s->root = KX_SESSION_NONE;
    s->used = now;

    /* what an earlier session of this key has asked for is no answer here */

    s->seq = t->opened * KX_SESSION_STRIDE;
    s->init_seq = s->seq;

    s->next = *bucket;
    *bucket = i;

    /* from here on a repair keeps it */

    kx_barrier();
    s->live = 1;
    kx_barrier();

    if (kx_session_table_front(t, i) != KX_OK) {
        kx_session_table_rebuild(t, 1);

    } else {
        kx_session_table_clear(t);
    }

    *created = 1;

    return s;
}


static void
kx_session_table_expire(kx_session_table_t *t, uint64_t now, uint64_t idle)
{
    unsigned       n;
    kx_session_t  *s;

    for (n = 0; n < KX_SESSION_EXPIRE; n++) {

        if (t->oldest >= t->slots) {
            return;
        }

        s = &kx_session_table_slots(t)[t->oldest];

        if (!kx_session_table_idle(s, now, idle)) {
            return;
        }

        kx_session_table_close(t, s);
        t->expired++;
    }
}


/* A free slot, which stays in its chain; NULL: the table is damaged. */

static kx_session_t *
kx_session_table_take(kx_session_table_t *t)
{
    kx_session_t  *s, *slots;

    slots = kx_session_table_slots(t);

    if (t->used >= t->slots && t->oldest < t->slots) {
        kx_session_table_close(t, &slots[t->oldest]);
        t->evicted++;
    }

    if (t->free >= t->slots) {
        return NULL;
    }

    s = &slots[t->free];

    if (s->live || (s->next >= t->slots && s->next != KX_SESSION_NONE)) {
        return NULL;
    }

    return s;
}


void
kx_session_table_close(kx_session_table_t *t, kx_session_t *s)
{
    size_t  i;

    i = s - kx_session_table_slots(t);

    if (i >= t->slots || !s->live) {
        return;
    }

    kx_session_table_mark(t);

    s->live = 0;
    kx_barrier();

    if (kx_session_table_detach(t, i) != KX_OK
        || kx_session_table_unchain(t, i) != KX_OK
        || kx_store_drop(t, s) != KX_OK)
    {
        kx_session_table_rebuild(t, 1);
        return;
    }

    kx_session_table_wipe(s);

    s->next = t->free;
    t->free = i;
    t->used--;

    kx_session_table_clear(t);
}


static int
kx_session_table_detach(kx_session_table_t *t, uint32_t i)
{
    uint32_t      *newer, *older;
    kx_session_t  *s;

    s = &kx_session_table_slots(t)[i];

    older = kx_session_table_older(t, s->newer);
    newer = kx_session_table_newer(t, s->older);

    if (older == NULL || *older != i || newer == NULL || *newer != i) {
        return KX_ERROR;
    }

    *older = s->older;
    *newer = s->newer;

    return KX_OK;
}


static int
kx_session_table_front(kx_session_table_t *t, uint32_t i)
{
    uint32_t      *newer;
    kx_session_t  *s;

    newer = kx_session_table_newer(t, t->newest);

    if (newer == NULL || *newer != KX_SESSION_NONE) {
        return KX_ERROR;
    }

    s = &kx_session_table_slots(t)[i];

    s->newer = KX_SESSION_NONE;
    s->older = t->newest;

    *newer = i;
    t->newest = i;

    return KX_OK;
}


static int
kx_session_table_unchain(kx_session_table_t *t, uint32_t i)
{
    uint32_t       n, *link;
    kx_session_t  *slots;

    slots = kx_session_table_slots(t);
    link = kx_session_table_bucket(t, slots[i].key);

    for (n = 0; *link != i; n++) {

        if (*link >= t->slots || n == t->slots) {
            return KX_ERROR;
        }

        link = &slots[*link].next;
    }

    *link = slots[i].next;

    return KX_OK;
}


void
kx_session_table_change(kx_session_table_t *t, kx_session_t *s)
{
    kx_session_table_mark(t);

    s->busy = 1;
    kx_barrier();
}


void
kx_session_table_changed(kx_session_table_t *t, kx_session_t *s)
{
    kx_barrier();
    s->busy = 0;

    kx_session_table_clear(t);
}


/*
 * Links everything anew from what the records say of themselves; whoever dies
 * in here leaves the mark, and the next one starts over.
 */

void
kx_session_table_rebuild(kx_session_table_t *t, unsigned keep)
{
    uint32_t       i, list, *buckets, *bucket;
    kx_session_t  *s, *slots;

    kx_session_table_mark(t);

    slots = kx_session_table_slots(t);
    buckets = kx_session_table_buckets(t);

    for (i = 0; i < t->buckets; i++) {
        buckets[i] = KX_SESSION_NONE;
    }

    kx_store_repair(t, keep);

    list = KX_SESSION_NONE;

    t->used = 0;
    t->free = KX_SESSION_NONE;

    for (i = t->slots; i-- > 0; /* void */ ) {
        s = &slots[i];

        if (keep && kx_session_table_sane(s)) {
            kx_store_rescue(t, s);
            s->newer = list;
            list = i;
            t->used++;
            continue;
        }

        kx_session_table_wipe(s);

        s->next = t->free;
        t->free = i;
    }

    kx_store_sweep(t);

    list = kx_session_table_sort(slots, list);

    t->oldest = list;
    t->newest = KX_SESSION_NONE;

    for (i = list; i != KX_SESSION_NONE; i = s->newer) {
        s = &slots[i];

        s->older = t->newest;
        t->newest = i;

        bucket = kx_session_table_bucket(t, s->key);
        s->next = *bucket;
        *bucket = i;

        kx_store_relink(t, s);
    }

    t->repaired++;

    kx_session_table_clear(t);
}


/*
 * A bottom-up merge sort, the least recently used first: run i has 2^i of
 * them or none, and two of a size are merged at once, while the cache has
 * them.
 */

static uint32_t
kx_session_table_sort(kx_session_t *slots, uint32_t list)
{
    uint32_t  runs[KX_SESSION_RUNS], next;
    unsigned  i;

    for (i = 0; i < KX_SESSION_RUNS; i++) {
        runs[i] = KX_SESSION_NONE;
    }

    while (list != KX_SESSION_NONE) {
        next = slots[list].newer;
        slots[list].newer = KX_SESSION_NONE;

        for (i = 0; i < KX_SESSION_RUNS - 1; i++) {

            if (runs[i] == KX_SESSION_NONE) {
                break;
            }

            list = kx_session_table_merge(slots, runs[i], list);
            runs[i] = KX_SESSION_NONE;
        }

        runs[i] = list;
        list = next;
    }

    for (i = 0; i < KX_SESSION_RUNS; i++) {
        list = kx_session_table_merge(slots, runs[i], list);
    }

    return list;
}


static uint32_t
kx_session_table_merge(kx_session_t *slots, uint32_t one, uint32_t two)
{
    uint32_t  list, *last;

    last = &list;

    while (one != KX_SESSION_NONE && two != KX_SESSION_NONE) {

        if (slots[one].used <= slots[two].used) {
            *last = one;
            last = &slots[one].newer;
            one = *last;

        } else {
            *last = two;
            last = &slots[two].newer;
            two = *last;
        }
    }

    *last = (one != KX_SESSION_NONE) ? one : two;

    return list;
}


static void
kx_session_table_wipe(kx_session_t *s)
{
    /* half a record must not look like a session */

    s->live = 0;
    kx_barrier();

    memset(s, 0, sizeof(kx_session_t));
    kx_barrier();
}


unsigned
kx_session_table_sane(const kx_session_t *s)
{
    static const unsigned char  zero[KX_ID_LEN];

    return s->live == 1
           && s->busy == 0
           && s->init <= KX_INIT_DONE
           && s->turn <= KX_TURN_NO_FILL
           && s->nbids <= KX_MAX_BIDS
           && s->code[KX_SESSION_CODE_LEN - 1] == '\0'
           && memcmp(s->key, zero, KX_ID_LEN) != 0;
}


void
kx_session_table_mark(kx_session_table_t *t)
{
    t->dirty = 1;
    kx_barrier();
}


void
kx_session_table_clear(kx_session_table_t *t)
{
    kx_barrier();
    t->dirty = 0;
    kx_barrier();
}


/* Where the index of the one that is newer than i is kept. */

static uint32_t *
kx_session_table_newer(kx_session_table_t *t, uint32_t i)
{
    if (i == KX_SESSION_NONE) {
        return &t->oldest;
    }

    return (i < t->slots) ? &kx_session_table_slots(t)[i].newer : NULL;
}


static uint32_t *
kx_session_table_older(kx_session_table_t *t, uint32_t i)
{
    if (i == KX_SESSION_NONE) {
        return &t->newest;
    }

    return (i < t->slots) ? &kx_session_table_slots(t)[i].older : NULL;
}


static uint32_t *
kx_session_table_bucket(kx_session_table_t *t, const unsigned char *key)
{
    uint32_t  h;

    /* a key is a keyed digest: nobody chooses its bucket */

    memcpy(&h, key, sizeof(uint32_t));

    return &kx_session_table_buckets(t)[h & (t->buckets - 1)];
}


static uint32_t *
kx_session_table_buckets(kx_session_table_t *t)
{
    return (uint32_t *) (t + 1);
}


kx_session_t *
kx_session_table_slots(kx_session_table_t *t)
{
    unsigned char  *p;

    p = (unsigned char *) t;

    return (kx_session_t *) (p + kx_session_table_offset(t->buckets));
}


void *
kx_session_table_store(kx_session_table_t *t, uint64_t *size)
{
    uint64_t        offset;
    unsigned char  *p;

    offset = kx_session_table_offset(t->buckets)
             + t->slots * (uint64_t) sizeof(kx_session_t);

    if (kx_session_table_share(t->size) == 0
        || kx_session_table_size(t->size) < offset)
    {
        return NULL;
    }

    *size = kx_session_table_size(t->size) - offset;
    p = (unsigned char *) t;

    return p + offset;
}


int
kx_session_table_verify(kx_session_table_t *t)
{
    uint32_t               i, j, n, newer, *buckets;
    kx_session_t          *slots;
    kx_session_geometry_t  g;

    if (kx_session_table_geometry(&g, t->size) != KX_OK
        || !kx_session_table_fits(t, &g)
        || t->dirty
        || kx_session_table_heads(t) != KX_OK)
    {
        return KX_ERROR;
    }

    slots = kx_session_table_slots(t);
    buckets = kx_session_table_buckets(t);

    n = 0;
    newer = KX_SESSION_NONE;

    for (i = t->newest; i != KX_SESSION_NONE; i = slots[i].older) {

        if (i >= t->slots
            || n++ == t->used
            || slots[i].newer != newer
            || !kx_session_table_sane(&slots[i]))
        {
            return KX_ERROR;
        }

        newer = i;
    }

    if (n != t->used || t->oldest != newer) {
        return KX_ERROR;
    }

    n = 0;

    for (j = 0; j < t->buckets; j++) {

        for (i = buckets[j]; i != KX_SESSION_NONE; i = slots[i].next) {

            if (i >= t->slots
                || n++ == t->used
                || !slots[i].live
                || kx_session_table_bucket(t, slots[i].key) != &buckets[j])
            {
                return KX_ERROR;
            }
        }
    }

    if (n != t->used) {
        return KX_ERROR;
    }

    for (i = t->free; i != KX_SESSION_NONE; i = slots[i].next) {

        if (i >= t->slots || n++ == t->slots || slots[i].live) {
            return KX_ERROR;
        }
    }

    return (n == t->slots) ? kx_store_verify(t) : KX_ERROR;
}
