/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A table of sessions in one block of shared memory: an array of records,
 * hash chains and a list in order of use, all by index.  The caller locks.
 *
 * A process may die at any instruction while it changes the table, and its
 * lock may then be taken over.  Therefore each change is bracketed by a mark
 * in the table and one in the record; whoever finds the mark of the table
 * set drops the records that were being changed and links the others anew.
 * Nothing that is read from the memory is trusted: indices are checked, walks
 * are bounded, and a table that makes no sense is formatted.
 */


#ifndef _KX_SESSION_TABLE_H_INCLUDED_
#define _KX_SESSION_TABLE_H_INCLUDED_


#include "session.h"


#define KX_SESSION_NONE       0xffffffff
#define KX_SESSION_CLOSING    10000   /* ms that one may take to close */
#define KX_SESSION_MAX_SHARE  48     /* 64ths of the block */


/*
 * A process dies between two instructions, so what counts is only that the
 * compiler leaves the stores in order; memory follows.
 */

#define kx_barrier()  __asm__ volatile ("" : : : "memory")


typedef struct {
    uint64_t        magic;           /* changes with layout and size */
    uint64_t        size;            /* of the block, bytes, and the share */
    uint32_t        slots;
    uint32_t        buckets;         /* a power of two */
    uint32_t        dirty;           /* a change is under way */
    uint32_t        used;            /* live sessions */
    uint32_t        free;            /* chain of free slots, by next */
    uint32_t        newest;
    uint32_t        oldest;
    uint32_t        opened;          /* sessions ever made, modulo 2^32 */
    uint64_t        evicted;         /* counters since the block was made */
    uint64_t        expired;
    uint64_t        repaired;
    uint64_t        seal;            /* the magic in other words */
    /* buckets of uint32_t, then the slots, then session_store.h */
} kx_session_table_t;


/*
 * Formats size bytes at mem (aligned to 64).  share is how many 64ths of them
 * become the store of session_store.h, 0 to KX_SESSION_MAX_SHARE.  Returns the
 * table, at the same address, or NULL when the block cannot hold a session.
 */
kx_session_table_t *kx_session_table_create(void *mem, size_t size,
    unsigned share);

/*
 * Takes over a block that another process or cycle has formatted.  NULL if it
 * is of another layout, size or share.
 */
kx_session_table_t *kx_session_table_attach(void *mem, size_t size,
    unsigned share);

/*
 * To be called each time the lock was taken, before anything else: repairs
 * the table if a process died within a change.  size and share are those that
 * it was created with: there is no other memory of it, whatever it says.
 * Returns KX_OK, or KX_DONE after a repair.  KX_ERROR: magic and seal are both
 * lost; the table finds and opens nothing until it is created anew.
 */
int kx_session_table_check(kx_session_table_t *t, size_t size,
    unsigned share);

/*
 * Finds the session of a key and moves it to the front; if it was last used
 * more than idle ms ago it is closed instead.  NULL: there is none, or one
 * that is closing.
 */
kx_session_t *kx_session_table_find(kx_session_table_t *t,
    const unsigned char key[KX_ID_LEN], uint64_t now, uint64_t idle);

/*
 * Finds or makes the session of a key and a user.  One of another user is
 * closed first; a full table closes idle sessions and then the least recently
 * used one.  *created tells whether it is new.  NULL: the table is damaged
 * beyond repair; it has been formatted.
 */
kx_session_t *kx_session_table_open(kx_session_table_t *t,
    const unsigned char key[KX_ID_LEN], uint64_t user, uint64_t now,
    uint64_t wall, uint64_t idle, unsigned *created);

/* Closes a session: its slot is free, its contents are gone. */
void kx_session_table_close(kx_session_table_t *t, kx_session_t *s);

/* Bracket every change of a record. */
void kx_session_table_change(kx_session_table_t *t, kx_session_t *s);
void kx_session_table_changed(kx_session_table_t *t, kx_session_t *s);

/*
 * Checks every link of the table; for tests and assertions.  KX_OK or
 * KX_ERROR.
 */
int kx_session_table_verify(kx_session_table_t *t);


/* what session_store.c needs of the table */

/* kx_session_table_find() of a session that is sane. */
kx_session_t *kx_session_table_touch(kx_session_table_t *t, kx_session_t *s,
    uint64_t now, uint64_t idle);

/* The repair; it keeps each session that is sane and not being changed. */
void kx_session_table_rebuild(kx_session_table_t *t, unsigned keep);

unsigned kx_session_table_sane(const kx_session_t *s);
void kx_session_table_mark(kx_session_table_t *t);
void kx_session_table_clear(kx_session_table_t *t);
kx_session_t *kx_session_table_slots(kx_session_table_t *t);

/* What of the memory is the store's; NULL: nothing. */
void *kx_session_table_store(kx_session_table_t *t, uint64_t *size);


#endif /* _KX_SESSION_TABLE_H_INCLUDED_ */
