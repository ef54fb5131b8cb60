/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "session_store.h"


/* an index has 30 bits at most, an owner that and a mark */

#define KX_STORE_MAX    0x40000000
#define KX_STORE_MARK   0x80000000

/* owners of no block: free ones, and those of a root that is lost */

#define KX_STORE_FREE   0xffffffff
#define KX_STORE_LOST   0xfffffffe

#define KX_STORE_FIRST  sizeof(((kx_block_t *) 0)->u.item.data)
#define KX_STORE_NEXT   sizeof(((kx_block_t *) 0)->u.data)


typedef struct {
    uint32_t        block;
    uint32_t        owner;
    size_t          left;            /* bytes of the block, from p on */
    unsigned char  *p;
} kx_store_cursor_t;


_Static_assert(sizeof(kx_block_t) == KX_STORE_BLOCK, "a block is 256 bytes");
_Static_assert(sizeof(kx_store_t) == 64, "blocks are aligned to 64");


static kx_root_t *kx_store_at(const kx_store_view_t *v, uint32_t b);
static kx_root_t *kx_store_of(kx_session_table_t *t, kx_store_view_t *v,
    kx_session_t *s);
static uint32_t kx_store_slot(kx_session_table_t *t, const kx_session_t *s);
static kx_block_t *kx_store_member(const kx_store_view_t *v, uint32_t b,
    uint32_t owner);
static int kx_store_room(kx_session_table_t *t, kx_session_t *s, uint32_t n);
static kx_session_t *kx_store_oldest(kx_session_table_t *t,
    const kx_store_view_t *v, const kx_session_t *s);
static kx_session_t *kx_store_session(kx_session_table_t *t,
    const kx_store_view_t *v, uint32_t b);
static kx_session_t *kx_store_lookup(kx_session_table_t *t, uint32_t root,
    const unsigned char *id);
static uint32_t kx_store_chain(kx_store_view_t *v, uint32_t n,
    uint32_t owner);
static uint32_t kx_store_take(kx_store_view_t *v, uint32_t owner);
static void kx_store_put(const kx_store_view_t *v, uint32_t b);
static uint32_t kx_store_release(const kx_store_view_t *v, uint32_t b,
    uint32_t owner);
static void kx_store_cut(const kx_store_view_t *v, uint32_t owner,
    kx_item_list_t *list, kx_block_t *previous, uint32_t b);
static int kx_store_load(const kx_store_view_t *v, kx_item_t *item,
    uint32_t b);
static int kx_store_seek(const kx_store_view_t *v, kx_store_cursor_t *c,
    const kx_item_t *item, size_t offset, size_t *len);
static unsigned char *kx_store_span(const kx_store_view_t *v,
    kx_store_cursor_t *c, size_t *len);
static void kx_store_empty(const kx_store_view_t *v, kx_item_list_t *list);
static int kx_store_front(const kx_store_view_t *v, uint32_t b);
static int kx_store_unlink(const kx_store_view_t *v, uint32_t b);
static uint32_t *kx_store_newer(const kx_store_view_t *v, uint32_t b);
static uint32_t *kx_store_older(const kx_store_view_t *v, uint32_t b);
static int kx_store_walk(const kx_store_view_t *v, uint32_t owner);
static int kx_store_walk_list(const kx_store_view_t *v, uint32_t owner,
    const kx_item_list_t *list, uint32_t *blocks);
static int kx_store_visit(const kx_store_view_t *v, uint32_t b,
    uint32_t owner);


uint32_t
kx_store_blocks(size_t len)
{
    if (len <= KX_STORE_FIRST) {
        return 1;
    }

    if (len > KX_STORE_MAX_BLOCKS * KX_STORE_NEXT) {
        return KX_STORE_MAX_BLOCKS + 1;
    }

    len -= KX_STORE_FIRST;

    return 1 + (uint32_t) ((len + KX_STORE_NEXT - 1) / KX_STORE_NEXT);
}


int
kx_store_view(kx_session_table_t *t, kx_store_view_t *v)
{
    uint64_t     size;
    kx_store_t  *head;

    head = kx_session_table_store(t, &size);

    if (head == NULL || size < sizeof(kx_store_t) + 2 * sizeof(kx_block_t)) {
        return KX_DECLINED;
    }

    size = (size - sizeof(kx_store_t)) / sizeof(kx_block_t);

    v->head = head;
    v->blocks = (kx_block_t *) (head + 1);
    v->n = (size > KX_STORE_MAX) ? KX_STORE_MAX : (uint32_t) size;
    v->limit = head->fresh;

    if (v->limit > v->n || head->seal != ~v->limit) {
        v->limit = v->n;
    }

    return KX_OK;
}


kx_root_t *
kx_store_root(kx_session_table_t *t, kx_session_t *s)
{
    kx_store_view_t  v;

    return s->live ? kx_store_of(t, &v, s) : NULL;
}


/* The root in block b, if there is one. */

static kx_root_t *
kx_store_at(const kx_store_view_t *v, uint32_t b)
{
    kx_block_t  *block;

    block = kx_store_member(v, b, b);

    return block ? &block->u.root : NULL;
}


static kx_root_t *
kx_store_of(kx_session_table_t *t, kx_store_view_t *v, kx_session_t *s)
{
    kx_root_t  *root;

    if (kx_store_view(t, v) != KX_OK) {
        return NULL;
    }

    root = kx_store_at(v, s->root);

    return (root && root->slot == kx_store_slot(t, s)) ? root : NULL;
}


static uint32_t
kx_store_slot(kx_session_table_t *t, const kx_session_t *s)
{
    return (uint32_t) (s - kx_session_table_slots(t));
}


static kx_block_t *
kx_store_member(const kx_store_view_t *v, uint32_t b, uint32_t owner)
{
    if (b >= v->limit || v->blocks[b].owner != owner) {
        return NULL;
    }

    return &v->blocks[b];
}


int
kx_store_keep(kx_session_table_t *t, kx_session_t *s,
    const unsigned char id[KX_ID_LEN])
{
    uint32_t          b;
    unsigned          i;
    kx_root_t        *root;
    kx_store_view_t   v;

    if (!s->live) {
        return KX_DECLINED;
    }

    if (s->root != KX_SESSION_NONE) {

        if (kx_store_root(t, s)) {
            return KX_OK;
        }

        /* it loses what it has there */

        kx_session_table_rebuild(t, 1);
    }

    if (kx_store_room(t, s, 1) != KX_OK || kx_store_view(t, &v) != KX_OK) {
        return KX_DECLINED;
    }

    kx_session_table_mark(t);

    b = kx_store_take(&v, KX_STORE_LOST);

    if (b == KX_SESSION_NONE) {
        kx_session_table_rebuild(t, 1);
        return KX_DECLINED;
    }

    root = &v.blocks[b].u.root;

    memset(root, 0, sizeof(kx_root_t));
    memcpy(root->id, id, KX_ID_LEN);

    root->slot = kx_store_slot(t, s);
    root->blocks = 1;

    for (i = 0; i < KX_ITEM_KINDS; i++) {
        root->lists[i].first = KX_SESSION_NONE;
        root->lists[i].last = KX_SESSION_NONE;
    }

    v.blocks[b].owner = b;
    v.head->roots++;

    /* from here on a repair keeps it */

    kx_barrier();
    s->root = b;
    kx_barrier();

    if (kx_store_front(&v, b) != KX_OK) {
        kx_session_table_rebuild(t, 1);
        return (s->root == b) ? KX_OK : KX_DECLINED;
    }

    kx_session_table_clear(t);

    return KX_OK;
}


int
kx_store_reserve(kx_session_table_t *t, kx_session_t *s, uint32_t n)
{
    kx_root_t  *root;

    root = kx_store_root(t, s);

    if (root == NULL
        || root->blocks > KX_STORE_MAX_BLOCKS
        || n > KX_STORE_MAX_BLOCKS - root->blocks)
    {
        return KX_DECLINED;
    }

    return kx_store_room(t, s, n);
}


/* Closes others until n blocks are free. */

static int
kx_store_room(kx_session_table_t *t, kx_session_t *s, uint32_t n)
{
    uint32_t          own;
    unsigned          repaired;
    kx_root_t        *root;
    kx_session_t     *oldest;
    kx_store_view_t   v;

    for (repaired = 0; /* void */ ; /* void */ ) {

        if (kx_store_view(t, &v) != KX_OK) {
            return KX_DECLINED;
        }

        own = 0;

        if (s->root != KX_SESSION_NONE) {
            root = kx_store_of(t, &v, s);

            if (root == NULL) {
                return KX_DECLINED;
            }

            own = root->blocks;
        }

        if (own > v.n || n > v.n - own) {
            return KX_DECLINED;
        }

        if (v.head->used <= v.n && n <= v.n - v.head->used) {
            return KX_OK;
        }

        oldest = kx_store_oldest(t, &v, s);

        if (oldest) {
            kx_session_table_close(t, oldest);
            t->evicted++;
            continue;
        }

        /* with all of the others gone there would be room */

        if (repaired) {
            return KX_DECLINED;
        }

        kx_session_table_rebuild(t, 1);
        repaired = 1;
    }
}


/* The least recently used session with a root that is not s. */

static kx_session_t *
kx_store_oldest(kx_session_table_t *t, const kx_store_view_t *v,
    const kx_session_t *s)
{
    uint32_t       b;
    kx_root_t     *root;
    kx_session_t  *oldest;

    b = v->head->oldest;

    if (b == s->root) {
        root = kx_store_at(v, b);

        if (root == NULL) {
            return NULL;
        }

        b = root->newer;
    }

    oldest = kx_store_session(t, v, b);

    return (oldest != s) ? oldest : NULL;
}


/* The session that the root in block b belongs to, and that says so. */

static kx_session_t *
kx_store_session(kx_session_table_t *t, const kx_store_view_t *v, uint32_t b)
{
    kx_root_t     *root;
    kx_session_t  *s;

    root = kx_store_at(v, b);

    if (root == NULL || root->slot >= t->slots) {
        return NULL;
    }

    s = &kx_session_table_slots(t)[root->slot];

    return (s->live && s->root == b) ? s : NULL;
}


kx_session_t *
kx_store_find(kx_session_table_t *t, uint32_t root,
    const unsigned char id[KX_ID_LEN], uint64_t now, uint64_t idle)
{
    kx_session_t  *s;

    s = kx_store_lookup(t, root, id);

    if (s == NULL) {
        return NULL;
    }

    if (!kx_session_table_sane(s)) {
        kx_session_table_close(t, s);
        return NULL;
    }

    s = kx_session_table_touch(t, s, now, idle);

    /* a repair may have come in between */

    return (s && s->root == root) ? s : NULL;
}


kx_session_t *
kx_store_peek(kx_session_table_t *t, uint32_t root,
    const unsigned char id[KX_ID_LEN])
{
    kx_session_t  *s;

    s = kx_store_lookup(t, root, id);

    return (s && kx_session_table_sane(s)) ? s : NULL;
}


static kx_session_t *
kx_store_lookup(kx_session_table_t *t, uint32_t root, const unsigned char *id)
{
    unsigned              i;
    kx_session_t         *s;
    kx_store_view_t       v;
    volatile unsigned     diff;
    const unsigned char  *secret;

    static const unsigned char  dummy[KX_ID_LEN];

    s = NULL;
    secret = dummy;

    if (kx_store_view(t, &v) == KX_OK) {
        s = kx_store_session(t, &v, root);
    }

    if (s) {
        secret = v.blocks[root].u.root.id;
    }

    diff = 0;

    for (i = 0; i < KX_ID_LEN; i++) {
        diff |= secret[i] ^ id[i];
    }

    return diff ? NULL : s;
}


int
kx_store_add(kx_session_table_t *t, kx_session_t *s, kx_item_kind_e kind,
    uint64_t number, const kx_str_t *data, unsigned n)
{
    size_t              len, left, size;
    uint32_t            b, need;
    unsigned            i;
    kx_root_t          *root;
    kx_block_t         *last;
    unsigned char      *p;
    kx_item_list_t     *list;
    kx_store_view_t     v;
    kx_store_cursor_t   c;

    root = s->live ? kx_store_of(t, &v, s) : NULL;

    if (root == NULL) {
        return KX_DECLINED;
    }

    len = 0;

    for (i = 0; i < n; i++) {

        if (data[i].len > KX_STORE_MAX_BLOCKS * KX_STORE_NEXT - len) {
            return KX_DECLINED;
        }

        len += data[i].len;
    }

    need = kx_store_blocks(len);

    if (root->blocks > KX_STORE_MAX_BLOCKS
        || need > KX_STORE_MAX_BLOCKS - root->blocks
        || v.head->used > v.n
        || need > v.n - v.head->used)
    {
        return KX_DECLINED;
    }

    last = NULL;
    list = &root->lists[kind];

    if (list->first != KX_SESSION_NONE) {
        last = kx_store_member(&v, list->last, s->root);

        if (last == NULL
            || list->last == s->root
            || last->u.item.next != KX_SESSION_NONE)
        {
            v.head->broken = 1;
            return KX_DECLINED;
        }
    }

    b = kx_store_chain(&v, need, s->root);

    if (b == KX_SESSION_NONE) {
        return KX_DECLINED;
    }

    v.blocks[b].u.item.next = KX_SESSION_NONE;
    v.blocks[b].u.item.len = (uint32_t) len;
    v.blocks[b].u.item.number = number;

    c.block = b;
    c.owner = s->root;
    c.left = KX_STORE_FIRST;
    c.p = v.blocks[b].u.item.data;

    for (i = 0; i < n; i++) {

        for (left = data[i].len; left; left -= size) {
            size = left;
            p = kx_store_span(&v, &c, &size);

            if (p == NULL) {
                break;
            }

            memcpy(p, data[i].data + data[i].len - left, size);
        }
    }

    if (last) {
        last->u.item.next = b;

    } else {
        list->first = b;
    }

    list->last = b;
    list->count++;
    list->bytes += (uint32_t) len;

    root->blocks += need;

    return KX_OK;
}


/* So many blocks in a chain; KX_SESSION_NONE: the free ones are damaged. */

static uint32_t
kx_store_chain(kx_store_view_t *v, uint32_t n, uint32_t owner)
{
    uint32_t  b, first, last;

    first = kx_store_take(v, owner);
    last = first;

    while (last != KX_SESSION_NONE && --n) {
        b = kx_store_take(v, owner);

        if (b == KX_SESSION_NONE) {
            (void) kx_store_release(v, first, owner);
            return KX_SESSION_NONE;
        }

        v->blocks[last].next = b;
        last = b;
    }

    return (last == KX_SESSION_NONE) ? KX_SESSION_NONE : first;
}


static uint32_t
kx_store_take(kx_store_view_t *v, uint32_t owner)
{
    uint32_t     b;
    kx_block_t  *block;

    b = v->head->free;

    if (b != KX_SESSION_NONE) {
        block = kx_store_member(v, b, KX_STORE_FREE);

        if (block == NULL) {
            v->head->broken = 1;
            return KX_SESSION_NONE;
        }

        v->head->free = block->next;

    } else if (v->limit < v->n) {
        b = v->limit++;
        block = &v->blocks[b];

        v->head->fresh = v->limit;
        v->head->seal = ~v->limit;

    } else {
        v->head->broken = 1;
        return KX_SESSION_NONE;
    }

    /* one that is free has nothing in it, also after a repair */

    block->next = KX_SESSION_NONE;
    block->owner = owner;
    kx_barrier();

    v->head->used++;

    return b;
}


/* Nothing is left of what was said in it. */

static void
kx_store_put(const kx_store_view_t *v, uint32_t b)
{
    kx_block_t  *block;

    block = &v->blocks[b];

    memset(block, 0, sizeof(kx_block_t));
    kx_barrier();

    block->owner = KX_STORE_FREE;
    block->next = v->head->free;

    v->head->free = b;
    v->head->used--;
}


/* Frees the blocks of an item; returns their number, or 0: damaged. */

static uint32_t
kx_store_release(const kx_store_view_t *v, uint32_t b, uint32_t owner)
{
    uint32_t     n, next;
    kx_block_t  *block;

    /* a block that was freed here has another owner: there is an end */

    for (n = 0; b != KX_SESSION_NONE; n++) {
        block = kx_store_member(v, b, owner);

        if (block == NULL || b == owner) {
            v->head->broken = 1;
            return 0;
        }

        next = block->next;
        kx_store_put(v, b);
        b = next;
    }

    return n;
}


void
kx_store_shift(kx_session_table_t *t, kx_session_t *s, kx_item_kind_e kind)
{
    kx_root_t        *root;
    kx_item_list_t   *list;
    kx_store_view_t   v;

    root = s->live ? kx_store_of(t, &v, s) : NULL;

    if (root == NULL) {
        return;
    }

    list = &root->lists[kind];

    kx_store_cut(&v, s->root, list, NULL, list->first);
}


void
kx_store_remove(kx_session_table_t *t, kx_session_t *s, kx_item_kind_e kind,
    const kx_item_t *item)
{
    uint32_t          b, n;
    kx_root_t        *root;
    kx_block_t       *block, *previous;
    kx_item_list_t   *list;
    kx_store_view_t   v;

    root = s->live ? kx_store_of(t, &v, s) : NULL;

    if (root == NULL || item->block == KX_SESSION_NONE) {
        return;
    }

    list = &root->lists[kind];
    previous = NULL;

    for (b = list->first, n = 0; b != item->block; b = block->u.item.next) {

        if (b == KX_SESSION_NONE) {
            return;
        }

        block = kx_store_member(&v, b, s->root);

        if (block == NULL || b == s->root || n++ == KX_STORE_MAX_BLOCKS) {
            kx_store_empty(&v, list);
            return;
        }

        previous = block;
    }

    kx_store_cut(&v, s->root, list, previous, b);
}


/* Takes the item in block b out of a list. */

static void
kx_store_cut(const kx_store_view_t *v, uint32_t owner, kx_item_list_t *list,
    kx_block_t *previous, uint32_t b)
{
    uint32_t     n, next, len, last;
    kx_root_t   *root;
    kx_block_t  *block;

    if (b == KX_SESSION_NONE) {

        if (list->count || list->bytes || list->last != KX_SESSION_NONE) {
            kx_store_empty(v, list);
        }

        return;
    }

    block = kx_store_member(v, b, owner);

    if (block == NULL || b == owner) {
        kx_store_empty(v, list);
        return;
    }

    root = &v->blocks[owner].u.root;

    next = block->u.item.next;
    len = block->u.item.len;
    last = list->last;

    n = kx_store_release(v, b, owner);

    if (n == 0
        || n != kx_store_blocks(len)
        || n >= root->blocks
        || list->count == 0
        || list->bytes < len
        || (next == KX_SESSION_NONE) != (last == b))
    {
        kx_store_empty(v, list);
        return;
    }

    if (previous) {
        previous->u.item.next = next;

        if (next == KX_SESSION_NONE) {
            list->last = (uint32_t) (previous - v->blocks);
        }

    } else {
        list->first = next;

        if (next == KX_SESSION_NONE) {
            list->last = KX_SESSION_NONE;
        }
    }

    list->count--;
    list->bytes -= len;

    root->blocks -= n;
}


/* Whoever empties a list one by one comes to an end, also when it is bad. */

static void
kx_store_empty(const kx_store_view_t *v, kx_item_list_t *list)
{
    list->first = KX_SESSION_NONE;
    list->last = KX_SESSION_NONE;
    list->count = 0;
    list->bytes = 0;

    v->head->broken = 1;
}


int
kx_store_first(kx_session_table_t *t, kx_session_t *s, kx_item_kind_e kind,
    kx_item_t *item)
{
    kx_root_t        *root;
    kx_store_view_t   v;

    item->block = KX_SESSION_NONE;

    root = s->live ? kx_store_of(t, &v, s) : NULL;

    if (root == NULL) {
        return KX_DECLINED;
    }

    item->root = s->root;
    item->left = KX_STORE_MAX_BLOCKS;

    return kx_store_load(&v, item, root->lists[kind].first);
}


int
kx_store_last(kx_session_table_t *t, kx_session_t *s, kx_item_kind_e kind,
    kx_item_t *item)
{
    kx_root_t        *root;
    kx_store_view_t   v;

    item->block = KX_SESSION_NONE;

    root = s->live ? kx_store_of(t, &v, s) : NULL;

    if (root == NULL) {
        return KX_DECLINED;
    }

    item->root = s->root;
    item->left = KX_STORE_MAX_BLOCKS;

    return kx_store_load(&v, item, root->lists[kind].last);
}


int
kx_store_next(kx_session_table_t *t, kx_item_t *item)
{
    kx_store_view_t  v;

    if (item->block == KX_SESSION_NONE) {
        return KX_DECLINED;
    }

    item->block = KX_SESSION_NONE;

    if (kx_store_view(t, &v) != KX_OK) {
        return KX_DECLINED;
    }

    return kx_store_load(&v, item, item->next);
}


static int
kx_store_load(const kx_store_view_t *v, kx_item_t *item, uint32_t b)
{
    kx_block_t  *block;

    item->block = KX_SESSION_NONE;
    item->next = KX_SESSION_NONE;
    item->len = 0;
    item->number = 0;

    if (b == KX_SESSION_NONE) {
        return KX_DECLINED;
    }

    block = kx_store_member(v, b, item->root);

    if (block == NULL
        || b == item->root
        || kx_store_blocks(block->u.item.len) > KX_STORE_MAX_BLOCKS
        || item->left == 0)
    {
        v->head->broken = 1;
        return KX_DECLINED;
    }

    item->block = b;
    item->next = block->u.item.next;
    item->len = block->u.item.len;
    item->number = block->u.item.number;
    item->left--;

    return KX_OK;
}


size_t
kx_store_read(kx_session_table_t *t, const kx_item_t *item, size_t offset,
    void *dst, size_t len)
{
    size_t              done, size;
    unsigned char      *p, *out;
    kx_store_view_t     v;
    kx_store_cursor_t   c;

    if (kx_store_view(t, &v) != KX_OK
        || kx_store_seek(&v, &c, item, offset, &len) != KX_OK)
    {
        return 0;
    }

    out = dst;

    for (done = 0; done < len; done += size) {
        size = len - done;
        p = kx_store_span(&v, &c, &size);

        if (p == NULL) {
            break;
        }

        memcpy(out + done, p, size);
    }

    return done;
}


void
kx_store_write(kx_session_table_t *t, const kx_item_t *item, size_t offset,
    const void *src, size_t len)
{
    size_t                done, size;
    unsigned char        *p;
    kx_store_view_t       v;
    kx_store_cursor_t     c;
    const unsigned char  *in;

    if (kx_store_view(t, &v) != KX_OK
        || kx_store_seek(&v, &c, item, offset, &len) != KX_OK)
    {
        return;
    }

    in = src;

    for (done = 0; done < len; done += size) {
        size = len - done;
        p = kx_store_span(&v, &c, &size);

        if (p == NULL) {
            break;
        }

        memcpy(p, in + done, size);
    }
}


/* Cuts len to what there is of an item from offset on, and goes there. */

static int
kx_store_seek(const kx_store_view_t *v, kx_store_cursor_t *c,
    const kx_item_t *item, size_t offset, size_t *len)
{
    size_t       size;
    kx_block_t  *block;

    block = kx_store_member(v, item->block, item->root);

    if (block == NULL
        || item->block == item->root
        || block->u.item.len != item->len
        || offset >= item->len)
    {
        return KX_DECLINED;
    }

    if (*len > item->len - offset) {
        *len = item->len - offset;
    }

    c->block = item->block;
    c->owner = item->root;
    c->left = KX_STORE_FIRST;
    c->p = block->u.item.data;

    for ( /* void */ ; offset; offset -= size) {
        size = offset;

        if (kx_store_span(v, c, &size) == NULL) {
            return KX_DECLINED;
        }
    }

    return KX_OK;
}


/* The next bytes of an item, *len or as many as lie in one place. */

static unsigned char *
kx_store_span(const kx_store_view_t *v, kx_store_cursor_t *c, size_t *len)
{
    uint32_t        b;
    kx_block_t     *block;
    unsigned char  *p;

    if (c->left == 0) {
        b = v->blocks[c->block].next;
        block = kx_store_member(v, b, c->owner);

        if (block == NULL || b == c->owner) {
            v->head->broken = 1;
            return NULL;
        }

        c->block = b;
        c->left = KX_STORE_NEXT;
        c->p = block->u.data;
    }

    if (*len > c->left) {
        *len = c->left;
    }

    p = c->p;

    c->p += *len;
    c->left -= *len;

    return p;
}


int
kx_store_heads(kx_session_table_t *t)
{
    kx_store_t       *h;
    kx_store_view_t   v;

    if (kx_store_view(t, &v) != KX_OK) {
        return KX_OK;
    }

    h = v.head;

    if (h->broken
        || h->fresh > v.n
        || h->seal != ~h->fresh
        || h->used > h->fresh
        || h->roots > h->used
        || h->roots > t->used)
    {
        return KX_ERROR;
    }

    if (h->used == h->fresh) {
        if (h->free != KX_SESSION_NONE) {
            return KX_ERROR;
        }

    } else if (h->free >= h->fresh) {
        return KX_ERROR;
    }

    if (h->roots == 0) {
        if (h->newest != KX_SESSION_NONE || h->oldest != KX_SESSION_NONE) {
            return KX_ERROR;
        }

    } else if (h->newest >= h->fresh || h->oldest >= h->fresh) {
        return KX_ERROR;
    }

    return KX_OK;
}


int
kx_store_use(kx_session_table_t *t, kx_session_t *s)
{
    kx_store_view_t  v;

    if (s->root == KX_SESSION_NONE) {
        return KX_OK;
    }

    if (kx_store_of(t, &v, s) == NULL) {
        return KX_ERROR;
    }

    if (v.head->newest == s->root) {
        return KX_OK;
    }

    if (kx_store_unlink(&v, s->root) != KX_OK) {
        return KX_ERROR;
    }

    return kx_store_front(&v, s->root);
}


static int
kx_store_front(const kx_store_view_t *v, uint32_t b)
{
    uint32_t   *newer;
    kx_root_t  *root;

    newer = kx_store_newer(v, v->head->newest);

    if (newer == NULL || *newer != KX_SESSION_NONE) {
        return KX_ERROR;
    }

    root = &v->blocks[b].u.root;

    root->newer = KX_SESSION_NONE;
    root->older = v->head->newest;

    *newer = b;
    v->head->newest = b;

    return KX_OK;
}


static int
kx_store_unlink(const kx_store_view_t *v, uint32_t b)
{
    uint32_t   *newer, *older;
    kx_root_t  *root;

    root = &v->blocks[b].u.root;

    older = kx_store_older(v, root->newer);
    newer = kx_store_newer(v, root->older);

    if (older == NULL || *older != b || newer == NULL || *newer != b) {
        return KX_ERROR;
    }

    *older = root->older;
    *newer = root->newer;

    return KX_OK;
}


/* Where the index of the root that is newer than b is kept. */

static uint32_t *
kx_store_newer(const kx_store_view_t *v, uint32_t b)
{
    kx_root_t  *root;

    if (b == KX_SESSION_NONE) {
        return &v->head->oldest;
    }

    root = kx_store_at(v, b);

    return root ? &root->newer : NULL;
}


static uint32_t *
kx_store_older(const kx_store_view_t *v, uint32_t b)
{
    kx_root_t  *root;

    if (b == KX_SESSION_NONE) {
        return &v->head->newest;
    }

    root = kx_store_at(v, b);

    return root ? &root->older : NULL;
}


int
kx_store_drop(kx_session_table_t *t, kx_session_t *s)
{
    uint32_t          b, n, next, blocks;
    unsigned          i;
    kx_root_t        *root;
    kx_block_t       *block;
    kx_store_view_t   v;

    if (s->root == KX_SESSION_NONE) {
        return KX_OK;
    }

    root = kx_store_of(t, &v, s);

    if (root == NULL
        || v.head->roots == 0
        || v.head->used < root->blocks
        || kx_store_unlink(&v, s->root) != KX_OK)
    {
        return KX_ERROR;
    }

    blocks = 1;

    for (i = 0; i < KX_ITEM_KINDS; i++) {

        for (b = root->lists[i].first; b != KX_SESSION_NONE; b = next) {
            block = kx_store_member(&v, b, s->root);

            if (block == NULL) {
                return KX_ERROR;
            }

            next = block->u.item.next;
            n = kx_store_release(&v, b, s->root);

            if (n == 0) {
                return KX_ERROR;
            }

            blocks += n;
        }
    }

    /* otherwise there are blocks that the lists did not lead to */

    if (blocks != root->blocks) {
        return KX_ERROR;
    }

    kx_store_put(&v, s->root);
    v.head->roots--;

    return KX_OK;
}


void
kx_store_repair(kx_session_table_t *t, unsigned keep)
{
    uint32_t          b;
    kx_store_view_t   v;

    if (kx_store_view(t, &v) != KX_OK) {
        return;
    }

    if (!keep) {
        v.limit = 0;
    }

    /* the marks of a repair that did not come to its end */

    for (b = 0; b < v.limit; b++) {

        if (v.blocks[b].owner != KX_STORE_FREE) {
            v.blocks[b].owner &= ~KX_STORE_MARK;
        }
    }

    memset(v.head, 0, sizeof(kx_store_t));

    v.head->fresh = v.limit;
    v.head->seal = ~v.limit;
    v.head->free = KX_SESSION_NONE;
    v.head->newest = KX_SESSION_NONE;
    v.head->oldest = KX_SESSION_NONE;
}


void
kx_store_rescue(kx_session_table_t *t, kx_session_t *s)
{
    uint32_t          b;
    kx_root_t        *root;
    kx_store_view_t   v;

    b = s->root;

    if (b == KX_SESSION_NONE) {
        return;
    }

    root = kx_store_of(t, &v, s);

    if (root && kx_store_walk(&v, b) == KX_OK) {
        return;
    }

    s->root = KX_SESSION_NONE;

    if (root) {
        v.blocks[b].owner = KX_STORE_LOST;
    }
}


/*
 * Marks all blocks of a session that the links lead to.  A block is marked
 * once, and only if it says that it belongs there: no walk is long, and none
 * comes into another session.
 */

static int
kx_store_walk(const kx_store_view_t *v, uint32_t owner)
{
    uint32_t    blocks;
    unsigned    i;
    kx_root_t  *root;

    if (kx_store_visit(v, owner, owner) != KX_OK) {
        return KX_ERROR;
    }

    root = &v->blocks[owner].u.root;
    blocks = 1;

    for (i = 0; i < KX_ITEM_KINDS; i++) {

        if (kx_store_walk_list(v, owner, &root->lists[i], &blocks) != KX_OK) {
            return KX_ERROR;
        }
    }

    return (blocks == root->blocks && blocks <= KX_STORE_MAX_BLOCKS)
           ? KX_OK : KX_ERROR;
}


static int
kx_store_walk_list(const kx_store_view_t *v, uint32_t owner,
    const kx_item_list_t *list, uint32_t *blocks)
{
    uint32_t  b, item, n, last, count, bytes;

    last = KX_SESSION_NONE;
    count = 0;
    bytes = 0;

    for (item = list->first;
         item != KX_SESSION_NONE;
         item = v->blocks[item].u.item.next)
    {
        n = 0;

        for (b = item; b != KX_SESSION_NONE; b = v->blocks[b].next) {

            if (kx_store_visit(v, b, owner) != KX_OK) {
                return KX_ERROR;
            }

            n++;
        }

        if (n != kx_store_blocks(v->blocks[item].u.item.len)) {
            return KX_ERROR;
        }

        last = item;
        count++;
        bytes += v->blocks[item].u.item.len;
        *blocks += n;
    }

    return (last == list->last && count == list->count && bytes == list->bytes)
           ? KX_OK : KX_ERROR;
}


static int
kx_store_visit(const kx_store_view_t *v, uint32_t b, uint32_t owner)
{
    kx_block_t  *block;

    block = kx_store_member(v, b, owner);

    if (block == NULL) {
        return KX_ERROR;
    }

    block->owner |= KX_STORE_MARK;

    return KX_OK;
}


void
kx_store_sweep(kx_session_table_t *t)
{
    uint32_t          b, owner;
    kx_block_t       *block;
    kx_store_view_t   v;

    if (kx_store_view(t, &v) != KX_OK) {
        return;
    }

    for (b = v.limit; b-- > 0; /* void */ ) {
        block = &v.blocks[b];

        if (block->owner != KX_STORE_FREE && (block->owner & KX_STORE_MARK)) {
            owner = block->owner & ~KX_STORE_MARK;

            if (owner < v.limit
                && (v.blocks[owner].owner & ~KX_STORE_MARK) == owner)
            {
                block->owner = owner;
                v.head->used++;
                continue;
            }
        }

        if (block->owner != KX_STORE_FREE) {
            memset(block, 0, sizeof(kx_block_t));
            kx_barrier();
        }

        block->owner = KX_STORE_FREE;
        block->next = v.head->free;
        v.head->free = b;
    }
}


void
kx_store_relink(kx_session_table_t *t, kx_session_t *s)
{
    kx_store_view_t  v;

    if (s->root == KX_SESSION_NONE || kx_store_of(t, &v, s) == NULL) {
        return;
    }

    (void) kx_store_front(&v, s->root);
    v.head->roots++;
}


int
kx_store_verify(kx_session_table_t *t)
{
    int               rc;
    uint32_t          b, n, newer, used, free;
    kx_root_t        *root;
    kx_session_t     *s;
    kx_store_view_t   v;

    s = kx_session_table_slots(t);

    if (kx_store_view(t, &v) != KX_OK) {

        for (b = 0; b < t->slots; b++) {
            if (s[b].live && s[b].root != KX_SESSION_NONE) {
                return KX_ERROR;
            }
        }

        return KX_OK;
    }

    if (kx_store_heads(t) != KX_OK) {
        return KX_ERROR;
    }

    rc = KX_OK;
    n = 0;
    newer = KX_SESSION_NONE;

    for (b = v.head->newest; b != KX_SESSION_NONE; b = root->older) {
        root = kx_store_at(&v, b);

        if (root == NULL
            || n++ == v.head->roots
            || root->newer != newer
            || kx_store_session(t, &v, b) == NULL)
        {
            return KX_ERROR;
        }

        newer = b;
    }

    if (n != v.head->roots || v.head->oldest != newer) {
        return KX_ERROR;
    }

    free = 0;

    for (b = v.head->free; b != KX_SESSION_NONE; b = v.blocks[b].next) {

        if (kx_store_member(&v, b, KX_STORE_FREE) == NULL
            || free++ == v.limit)
        {
            return KX_ERROR;
        }
    }

    /* blocks are marked for a while */

    kx_session_table_mark(t);

    for (b = 0; b < t->slots; b++) {

        if (!s[b].live || s[b].root == KX_SESSION_NONE) {
            continue;
        }

        if (kx_store_session(t, &v, s[b].root) != &s[b]
            || kx_store_walk(&v, s[b].root) != KX_OK)
        {
            rc = KX_ERROR;
        }

        n--;
    }

    used = 0;

    for (b = 0; b < v.limit; b++) {

        if (v.blocks[b].owner == KX_STORE_FREE) {
            free--;

        } else if (v.blocks[b].owner & KX_STORE_MARK) {
            v.blocks[b].owner &= ~KX_STORE_MARK;
            used++;

        } else {
            rc = KX_ERROR;
        }
    }

    kx_session_table_clear(t);

    return (rc == KX_OK && n == 0 && free == 0 && used == v.head->used)
           ? KX_OK : KX_ERROR;
}
