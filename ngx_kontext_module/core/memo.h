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


typedef struct {
    uint64_t         tag;            /* of role and raw content, 0: no memo */
    uint64_t         hash;           /* of role and canonical text, keyed */

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


typedef struct {
    kx_memo_t       *memos;
    uint64_t         sets;
    uint32_t         next;           /* tells whose place a new one takes */
} kx_memo_table_t;


/*
 * Makes an empty table in size bytes at mem, which are zero, and remain the
 * caller's; there must be room for one set, KX_MEMO_SET memos, at least.
 */
#define KX_MEMO_SET  4

void kx_memo_init(kx_memo_table_t *t, void *mem, size_t size);

/*
 * The memo of a tag other than 0, or NULL.  It is valid until the next
 * kx_memo_put().
 */
const kx_memo_t *kx_memo_find(const kx_memo_table_t *t, uint64_t tag);

/* Keeps a copy, in place of the one with that tag or of some other one. */
void kx_memo_put(kx_memo_table_t *t, const kx_memo_t *memo);


#endif /* _KX_MEMO_H_INCLUDED_ */
