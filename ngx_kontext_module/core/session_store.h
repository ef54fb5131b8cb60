/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is kept of a session that the session API knows (design.md 4, 5): its
 * options, messages, ads and events, as items of any length in chains of
 * blocks of one size.  The blocks lie in the memory of the session table,
 * behind the slots, and are under its lock.
 *
 * Each such session has a root, a block with the heads of its lists.  A
 * change of items is a change of the session: it happens between
 * kx_session_table_change() and kx_session_table_changed(), so that a session
 * in which a process died is closed, and its blocks are free again.  Whatever
 * frees blocks of other sessions (kx_store_keep(), kx_store_reserve()) must
 * be done before.
 *
 * As in the table, nothing that is read is trusted: indices are checked,
 * walks are bounded.  Each block says whose it is, so that damage to one
 * session's links does no harm to another.  A session whose blocks turn out
 * to be damaged is not closed, it loses its root and all that was kept: at
 * once where the table is repaired on the spot, else with the next
 * kx_session_table_check().  Until then a damaged list has no items.
 */


#ifndef _KX_SESSION_STORE_H_INCLUDED_
#define _KX_SESSION_STORE_H_INCLUDED_


#include "session_table.h"


#define KX_STORE_BLOCK       256     /* bytes, with a header of 8 */
#define KX_STORE_MAX_BLOCKS  1024    /* of a session, its root included */


typedef enum {
    KX_ITEM_OPTIONS = 0,
    KX_ITEM_MESSAGE,
    KX_ITEM_AD,
    KX_ITEM_EVENT,
    KX_ITEM_IDENTITY
} kx_item_kind_e;

#define KX_ITEM_KINDS  5


/* before the blocks, which are aligned to 64 */

typedef struct {
    uint32_t        fresh;           /* blocks from here on never were used */
    uint32_t        seal;            /* fresh in other words */
    uint32_t        used;            /* blocks */
    uint32_t        free;            /* chain of blocks that were used */
    uint32_t        roots;
    uint32_t        newest;          /* of the roots, in order of use */
    uint32_t        oldest;
    uint32_t        broken;          /* damage was seen: to be repaired */
    uint32_t        spare[8];
} kx_store_t;


typedef struct {
    uint32_t        first;           /* blocks; KX_SESSION_NONE: no items */
    uint32_t        last;
    uint32_t        count;           /* items */
    uint32_t        bytes;           /* of their data */
} kx_item_list_t;


typedef struct {
    unsigned char   id[KX_ID_LEN];   /* the secret of the API's session id */
    uint32_t        slot;            /* of the session */
    uint32_t        newer;           /* roots in order of use, blocks */
    uint32_t        older;
    uint32_t        blocks;          /* in use, this one included */
    kx_item_list_t  lists[KX_ITEM_KINDS];

    /* the rules' own, see feed.h; zero at first */
    uint64_t        events;          /* number of the newest event */
    uint64_t        messages;        /* number of the newest message */
    uint64_t        trigger;         /* number of the message that ... */
    uint64_t        due;             /* ... is to be asked for at this "now" */
    uint32_t        owner;           /* pid of who does or did so, or 0 */
    uint32_t        revision;        /* grows with each change of options */
    uint32_t        init_owner;      /* pid of who sends /init, or 0 */
    uint8_t         track_only;      /* of the trigger */
    uint8_t         spare[3];
} kx_root_t;


typedef struct {
    uint32_t        next;            /* item of the list */
    uint32_t        len;             /* of all data, bytes */
    uint64_t        number;
    unsigned char   data[KX_STORE_BLOCK - 24];
} kx_item_head_t;


typedef struct {
    uint32_t        next;            /* of the item, or of the free ones */
    uint32_t        owner;           /* index of the root */
    union {
        kx_root_t       root;
        kx_item_head_t  item;        /* the first block of an item */
        unsigned char   data[KX_STORE_BLOCK - 8];
    } u;
} kx_block_t;


/*
 * An item as it was found; it is valid until the lock is released or the item
 * is removed, except that kx_store_next() may be called after a removal.
 */

typedef struct {
    uint32_t        block;           /* KX_SESSION_NONE: there is none */
    uint32_t        root;
    uint32_t        next;            /* the item after it */
    uint32_t        len;             /* of its data, bytes */
    uint32_t        left;            /* items that a walk may still meet */
    uint64_t        number;          /* what it was added with */
} kx_item_t;


/*
 * How many blocks an item with len bytes of data takes; more than
 * KX_STORE_MAX_BLOCKS if it is too long to be kept.
 */
uint32_t kx_store_blocks(size_t len);

/* The root of a session, or NULL if it has none or a damaged one. */
kx_root_t *kx_store_root(kx_session_table_t *t, kx_session_t *s);

/*
 * Gives a session a root, if it has none; id is random.  Closes least
 * recently used sessions with a root to make room, never s.  KX_OK, or
 * KX_DECLINED: there is no room.  Not within a change.  A root that is there
 * already is left alone, with its own id.
 */
int kx_store_keep(kx_session_table_t *t, kx_session_t *s,
    const unsigned char id[KX_ID_LEN]);

/*
 * The session that a root with this id belongs to, moved to the front as by
 * kx_session_table_find(), or NULL.  root is where it is said to be, from a
 * stranger.  The comparison takes the same time whatever is wrong.
 */
kx_session_t *kx_store_find(kx_session_table_t *t, uint32_t root,
    const unsigned char id[KX_ID_LEN], uint64_t now, uint64_t idle);

/* The same without a use of the session: it may be idle, and stays so. */
kx_session_t *kx_store_peek(kx_session_table_t *t, uint32_t root,
    const unsigned char id[KX_ID_LEN]);

/*
 * Sees to it that n blocks are free, and that s may have so many more, which
 * has a root: closes least recently used sessions with a root, never s.
 * KX_OK, or KX_DECLINED: there is no room; nobody is closed where that could
 * not make enough of it.  Not within a change.
 */
int kx_store_reserve(kx_session_table_t *t, kx_session_t *s, uint32_t n);

/*
 * Appends an item to a list of a session with a root: the n strings of data,
 * one after the other, which are not of the store.  Within a change.  KX_OK,
 * or KX_DECLINED when there are not as many free blocks or it would be too
 * many for a session: nothing is changed then.
 */
int kx_store_add(kx_session_table_t *t, kx_session_t *s, kx_item_kind_e kind,
    uint64_t number, const kx_str_t *data, unsigned n);

/* Removes the oldest item of a list, if there is one.  Within a change. */
void kx_store_shift(kx_session_table_t *t, kx_session_t *s,
    kx_item_kind_e kind);

/* Removes an item, wherever it is in its list.  Within a change. */
void kx_store_remove(kx_session_table_t *t, kx_session_t *s,
    kx_item_kind_e kind, const kx_item_t *item);

/*
 * The oldest item of a list, and the one after an item.  KX_OK, or
 * KX_DECLINED: there is none, item->block is KX_SESSION_NONE.
 */
int kx_store_first(kx_session_table_t *t, kx_session_t *s,
    kx_item_kind_e kind, kx_item_t *item);
int kx_store_next(kx_session_table_t *t, kx_item_t *item);

/* The newest item of a list, as kx_store_first(). */
int kx_store_last(kx_session_table_t *t, kx_session_t *s,
    kx_item_kind_e kind, kx_item_t *item);

/*
 * Copies up to len bytes of an item's data from offset on; returns how many
 * were copied: fewer than there should be if the item is damaged.
 */
size_t kx_store_read(kx_session_table_t *t, const kx_item_t *item,
    size_t offset, void *dst, size_t len);

/* Overwrites bytes of an item's data in place, within a change. */
void kx_store_write(kx_session_table_t *t, const kx_item_t *item,
    size_t offset, const void *src, size_t len);


/* the store as it lies in the memory */

typedef struct {
    kx_store_t     *head;
    kx_block_t     *blocks;
    uint32_t        n;               /* that there is memory for */
    uint32_t        limit;           /* that may be in use */
} kx_store_view_t;

/* KX_DECLINED: there is no store, or one without blocks. */
int kx_store_view(kx_session_table_t *t, kx_store_view_t *v);


/* what session_table.c needs of the store */

/* For kx_session_table_check(): KX_ERROR, a repair is due. */
int kx_store_heads(kx_session_table_t *t);

/* Moves the root of a session, if it has one, to the front. */
int kx_store_use(kx_session_table_t *t, kx_session_t *s);

/* Frees all of a session's blocks; KX_ERROR: a repair is to do that. */
int kx_store_drop(kx_session_table_t *t, kx_session_t *s);

/*
 * The repair, in this order: kx_store_repair(); kx_store_rescue() for each
 * session that is kept, whose root is KX_SESSION_NONE afterwards if it is
 * damaged; kx_store_sweep(); kx_store_relink() for each of them again, the
 * least recently used first.
 */
void kx_store_repair(kx_session_table_t *t, unsigned keep);
void kx_store_rescue(kx_session_table_t *t, kx_session_t *s);
void kx_store_sweep(kx_session_table_t *t);
void kx_store_relink(kx_session_table_t *t, kx_session_t *s);

/* For kx_session_table_verify(). */
int kx_store_verify(kx_session_table_t *t);


#endif /* _KX_SESSION_STORE_H_INCLUDED_ */
