/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Walks a copy of the shared memory of a running nginx: each link of the
 * table of sessions, and of what they keep.  A change that a worker was in the
 * middle of is repaired first, as the next worker would.
 *
 *     zone-walk FILE          a line of figures; exit 0: consistent
 */


#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/session_store.h"
#include "core/session_table.h"


#define ZONE_WALK_STEP  64           /* the alignment of a table */
#define ZONE_WALK_PAGE  4096         /* its size is so many of them */


static kx_session_table_t *zone_walk_attach(unsigned char *p, size_t *size,
    unsigned *share);


int
main(int argc, char **argv)
{
    int                  rc;
    FILE                *f;
    long                 size;
    void                *mem;
    size_t               i, n;
    unsigned             dirty, found, share;
    unsigned char       *p;
    kx_store_view_t      v;
    kx_session_table_t  *t;

    f = (argc == 2) ? fopen(argv[1], "rb") : NULL;

    if (f == NULL) {
        fprintf(stderr, "usage: zone-walk FILE\n");
        return 2;
    }

    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);

    if (size <= 0
        || posix_memalign(&mem, ZONE_WALK_PAGE, (size_t) size) != 0
        || fread(mem, 1, (size_t) size, f) != (size_t) size)
    {
        fprintf(stderr, "zone-walk: cannot read %s\n", argv[1]);
        return 2;
    }

    fclose(f);

    p = mem;
    found = 0;

    for (i = 0; i + sizeof(kx_session_table_t) < (size_t) size;
         i += ZONE_WALK_STEP)
    {
        n = (size_t) size - i;
        t = zone_walk_attach(p + i, &n, &share);

        if (t == NULL) {
            continue;
        }

        found++;
        dirty = t->dirty;

        rc = kx_session_table_check(t, n, share);

        if (rc == KX_ERROR || kx_session_table_verify(t) != KX_OK) {
            fprintf(stderr, "zone-walk: the table at %zu is damaged "
                    "(dirty: %u, check: %d)\n", i, dirty, rc);
            return 1;
        }

        v.n = 0;
        v.head = NULL;

        (void) kx_store_view(t, &v);

        printf("sessions:%u of %u, blocks:%u of %u, evicted:%llu, "
               "repaired:%llu%s\n", t->used, t->slots,
               v.head ? v.head->used : 0, v.n,
               (unsigned long long) t->evicted,
               (unsigned long long) t->repaired,
               dirty ? ", within a change" : "");
    }

    if (found == 0) {
        fprintf(stderr, "zone-walk: no table\n");
        return 1;
    }

    return 0;
}


/* how large it is only its owner knows; the table knows whether it is so */

static kx_session_table_t *
zone_walk_attach(unsigned char *p, size_t *size, unsigned *share)
{
    size_t               n;
    kx_session_table_t  *t;

    t = (kx_session_table_t *) p;

    if (t->slots == 0 || t->slots > *size / sizeof(kx_session_t)
        || t->buckets == 0 || (t->buckets & (t->buckets - 1)))
    {
        return NULL;
    }

    for (n = ZONE_WALK_PAGE; n <= *size; n += ZONE_WALK_PAGE) {

        for (*share = 0; *share <= KX_SESSION_MAX_SHARE; (*share)++) {

            if (kx_session_table_attach(p, n, *share)) {
                *size = n;
                return t;
            }
        }
    }

    return NULL;
}
