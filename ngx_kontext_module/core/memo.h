/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What was found out about messages.  A chat sends its whole history with
 * each turn: what was read before is known again by a keyed hash of the bytes
 * that it was sent as, and neither decoded nor hashed a second time.
 */


#ifndef _KX_MEMO_H_INCLUDED_
#define _KX_MEMO_H_INCLUDED_


#include "kx.h"


#define KX_MEMO_SET    4             /* places that a tag may be at, 2^2 */
#define KX_MEMO_ALIGN  64            /* bytes, a line of the cache */


typedef struct {

    /* of which conversation, as a keyed hash, and which one of those with
       this text digest is; 0: not known */
    uint64_t         owner;
    uint32_t         ordinal;
    unsigned char    digest[KX_ID_LEN];

    /* length of the visible text, and that the raw string says the same */
    uint32_t         len;
    unsigned         raw:1;

    unsigned         text:1;         /* the two are known */
    unsigned         clean:4;        /* KX_REDACT_*: what is not in it */
} kx_memo_t;


/* one line of the cache */

typedef struct {
    uint64_t         tag;            /* 0: no memo */
    uint64_t         hash;
    kx_memo_t        memo;
    unsigned char    unused[KX_MEMO_ALIGN - 2 * sizeof(uint64_t)
                            - sizeof(kx_memo_t)];
} kx_memo_place_t;


typedef struct {
    kx_memo_place_t  places[KX_MEMO_SET];
} kx_memo_set_t;


typedef struct {
    kx_memo_set_t   *sets;
    uint64_t         mask;           /* their number, a power of 2, less 1 */
    uint32_t         next;           /* tells which one has to give way */
} kx_memo_table_t;


/*
 * Makes an empty table in size bytes at mem, which are zero, and remain the
 * caller's; there must be room for a kx_memo_set_t at least, and mem should
 * be aligned to KX_MEMO_ALIGN.  A power of 2 sets is used.
 */
void kx_memo_init(kx_memo_table_t *t, void *mem, size_t size);

/* Says that a tag will be asked for soon. */
static inline void kx_memo_expect(const kx_memo_table_t *t, uint64_t tag);

/*
 * What is known by a tag other than 0: the keyed hash of role and canonical
 * text, and the rest of it.  memo is valid until the next kx_memo_put(), and
 * may be NULL if nobody wants to know.  KX_OK or KX_DECLINED.
 */
int kx_memo_find(const kx_memo_table_t *t, uint64_t tag, uint64_t *hash,
    const kx_memo_t **memo);

/*
 * Keeps a copy of memo, which is not one of the table's, in place of the one
 * with that tag or of some other one.
 */
void kx_memo_put(kx_memo_table_t *t, uint64_t tag, uint64_t hash,
    const kx_memo_t *memo);


/* where a tag is looked for first, by bits that do not choose its set */

static inline unsigned
kx_memo_first(uint64_t tag)
{
    return (unsigned) (tag >> 62);
}


static inline void
kx_memo_expect(const kx_memo_table_t *t, uint64_t tag)
{
#ifdef __GNUC__
    __builtin_prefetch(&t->sets[tag & t->mask].places[kx_memo_first(tag)]);
#else
    (void) t;
    (void) tag;
#endif
}


#endif /* _KX_MEMO_H_INCLUDED_ */
