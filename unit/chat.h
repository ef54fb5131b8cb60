/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Helpers of the tests that read the sample files of the chat formats.
 */


#ifndef _CHAT_H_INCLUDED_
#define _CHAT_H_INCLUDED_


#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/chat/dialect.h"
#include "core/sse.h"


#define CHAT_MAX_BLOCKS  4096


typedef struct {
    void      *blocks[CHAT_MAX_BLOCKS];
    unsigned   n;
    unsigned   fail_at;              /* 0: never */
} chat_memory_t;


static inline void *
chat_alloc(void *data, size_t size)
{
    chat_memory_t  *m = data;

    if (m->fail_at && m->n + 1 >= m->fail_at) {
        return NULL;
    }

    assert_true(m->n < CHAT_MAX_BLOCKS);

    m->blocks[m->n] = malloc(size ? size : 1);
    assert_non_null(m->blocks[m->n]);

    return m->blocks[m->n++];
}


static inline void
chat_free(chat_memory_t *m)
{
    while (m->n) {
        free(m->blocks[--m->n]);
    }
}


/* the samples lie beside the repository; without them nothing is proven */

static inline unsigned char *
chat_sample(const char *name, size_t *len)
{
    char            path[1024];
    FILE           *f;
    long            size;
    const char     *dir;
    unsigned char  *p;

    dir = getenv("KONTEXT_SHARED");

    snprintf(path, sizeof(path), "%s/samples/%s", dir ? dir : "../shared",
             name);

    f = fopen(path, "rb");
    if (f == NULL) {
        fail_msg("cannot open %s", path);
        return NULL;
    }

    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);

    p = malloc((size_t) size);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, (size_t) size, f), size);
    fclose(f);

    *len = (size_t) size;

    return p;
}


#endif /* _CHAT_H_INCLUDED_ */
