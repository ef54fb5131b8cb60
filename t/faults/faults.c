/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * For the tests: what the module calls and what may fail, fails when a test
 * says so.  Linked with the objects of the module, and with --wrap=NAME for
 * each NAME below, into a module of its own; what nginx calls for itself is
 * not touched.
 *
 * The test and the worker share the file that $KONTEXT_FAULTS names, which is
 * a faults_t.  The test sets at and starts to count anew.
 */


#define _GNU_SOURCE

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <sys/mman.h>

#include <cjson/cJSON.h>

#include "ngx_http_kontext.h"


#define FAULTS_NAME   48
#define FAULTS_LATER  64


typedef struct {
    uint64_t   at;                       /* the call that fails, from 1; 0 */
    uint64_t   on;                       /* and all that follow it */
    uint64_t   count;                    /* calls that might have failed */
    uint64_t   failed;                   /* and those that have */
    uint64_t   json;                     /* does memory of cJSON count? */
    int64_t    blocks;                   /* of memory that are not freed yet */
    int64_t    pools;
    int64_t    later;                    /* blocks that a timer frees */
    uint64_t   where;                    /* offset in the module */
    char       name[FAULTS_NAME];        /* the call that failed first */
} faults_t;


static faults_t   faults_none;
static faults_t  *faults = &faults_none;
static void      *faults_later[FAULTS_LATER];


static ngx_uint_t faults_now(const char *name, void *where);
static void faults_count(void *p, ngx_uint_t later);
static void *faults_malloc(size_t size);
static void faults_free(void *p);
static void faults_pool_gone(void *data);
static void faults_init(void) __attribute__((constructor));


/* the call with these arguments fails with that value */

#define faults_wrap(type, error, name, params, args)                          \
    faults_wrap_if(faults_now(#name, __builtin_return_address(0)),            \
                   type, error, name, params, args)

#define faults_wrap_way(type, error, name, params, args)                      \
    faults_wrap_if(faults->failed == 0                                        \
                   && faults_now(#name, __builtin_return_address(0)),         \
                   type, error, name, params, args)

#define faults_wrap_if(cond, type, error, name, params, args)                 \
                                                                              \
    type __real_##name params;                                                \
    type __wrap_##name params;                                                \
                                                                              \
    type                                                                      \
    __wrap_##name params                                                      \
    {                                                                         \
        if (cond) {                                                           \
            return error;                                                     \
        }                                                                     \
                                                                              \
        return __real_##name args;                                            \
    }


/* memory */

faults_wrap(void *, NULL, ngx_palloc, (ngx_pool_t *pool, size_t size),
            (pool, size))
faults_wrap(void *, NULL, ngx_pnalloc, (ngx_pool_t *pool, size_t size),
            (pool, size))
faults_wrap(void *, NULL, ngx_pcalloc, (ngx_pool_t *pool, size_t size),
            (pool, size))
faults_wrap(u_char *, NULL, ngx_pstrdup, (ngx_pool_t *pool, ngx_str_t *src),
            (pool, src))
faults_wrap(ngx_buf_t *, NULL, ngx_create_temp_buf,
            (ngx_pool_t *pool, size_t size), (pool, size))
faults_wrap(ngx_array_t *, NULL, ngx_array_create,
            (ngx_pool_t *pool, ngx_uint_t n, size_t size), (pool, n, size))
faults_wrap(ngx_pool_cleanup_t *, NULL, ngx_pool_cleanup_add,
            (ngx_pool_t *pool, size_t size), (pool, size))
faults_wrap(ngx_http_cleanup_t *, NULL, ngx_http_cleanup_add,
            (ngx_http_request_t *r, size_t size), (r, size))

/* requests */

faults_wrap(ngx_int_t, NGX_ERROR, ngx_http_subrequest,
            (ngx_http_request_t *r, ngx_str_t *uri, ngx_str_t *args,
             ngx_http_request_t **sr, ngx_http_post_subrequest_t *ps,
             ngx_uint_t flags),
            (r, uri, args, sr, ps, flags))
faults_wrap(ngx_int_t, NGX_ERROR, ngx_http_complex_value,
            (ngx_http_request_t *r, ngx_http_complex_value_t *val,
             ngx_str_t *value),
            (r, val, value))
faults_wrap(ngx_int_t, NGX_ERROR, ngx_handle_read_event,
            (ngx_event_t *rev, ngx_uint_t flags), (rev, flags))
faults_wrap(ngx_int_t, NGX_ERROR, ngx_handle_write_event,
            (ngx_event_t *wev, size_t lowat), (wev, lowat))

/* files, and what the system has of its own */

faults_wrap(ssize_t, NGX_ERROR, ngx_read_file,
            (ngx_file_t *file, u_char *buf, size_t size, off_t offset),
            (file, buf, size, offset))
faults_wrap(ssize_t, NGX_ERROR, ngx_write_chain_to_temp_file,
            (ngx_temp_file_t *tf, ngx_chain_t *chain), (tf, chain))
faults_wrap(ssize_t, -1, write, (int fd, const void *p, size_t n),
            (fd, p, n))
faults_wrap(ssize_t, -1, getrandom, (void *p, size_t n, unsigned flags),
            (p, n, flags))

/* the zone is full, or its store is */

faults_wrap(kx_session_t *, NULL, kx_session_table_open,
            (kx_session_table_t *t, const unsigned char key[KX_ID_LEN],
             uint64_t user, uint64_t now, uint64_t wall, uint64_t idle,
             unsigned *created),
            (t, key, user, now, wall, idle, created))
faults_wrap(int, KX_DECLINED, kx_store_keep,
            (kx_session_table_t *t, kx_session_t *s,
             const unsigned char id[KX_ID_LEN]),
            (t, s, id))
faults_wrap(int, KX_DECLINED, kx_store_reserve,
            (kx_session_table_t *t, kx_session_t *s, uint32_t n), (t, s, n))

/* The way to the client: nginx itself can do nothing without. */

faults_wrap_way(ngx_int_t, NGX_ERROR, ngx_http_kontext_send_header,
            (ngx_http_request_t *r), (r))
faults_wrap_way(ngx_int_t, NGX_ERROR, ngx_http_kontext_send_body,
            (ngx_http_request_t *r, ngx_chain_t *out), (r, out))
faults_wrap_way(ngx_int_t, NGX_ERROR, ngx_http_send_header,
            (ngx_http_request_t *r), (r))
faults_wrap_way(ngx_int_t, NGX_ERROR, ngx_http_output_filter,
            (ngx_http_request_t *r, ngx_chain_t *in), (r, in))


/* memory only where there is no room yet */

ngx_int_t __real_ngx_http_post_request(ngx_http_request_t *r,
    ngx_http_posted_request_t *pr);
ngx_int_t __wrap_ngx_http_post_request(ngx_http_request_t *r,
    ngx_http_posted_request_t *pr);
ngx_chain_t *__real_ngx_alloc_chain_link(ngx_pool_t *pool);
ngx_chain_t *__wrap_ngx_alloc_chain_link(ngx_pool_t *pool);
void *__real_ngx_array_push(ngx_array_t *a);
void *__wrap_ngx_array_push(ngx_array_t *a);
void *__real_ngx_list_push(ngx_list_t *l);
void *__wrap_ngx_list_push(ngx_list_t *l);


ngx_int_t
__wrap_ngx_http_post_request(ngx_http_request_t *r,
    ngx_http_posted_request_t *pr)
{
    if (pr == NULL
        && faults_now("ngx_http_post_request", __builtin_return_address(0)))
    {
        return NGX_ERROR;
    }

    return __real_ngx_http_post_request(r, pr);
}


ngx_chain_t *
__wrap_ngx_alloc_chain_link(ngx_pool_t *pool)
{
    if (pool->chain == NULL
        && faults_now("ngx_alloc_chain_link", __builtin_return_address(0)))
    {
        return NULL;
    }

    return __real_ngx_alloc_chain_link(pool);
}


void *
__wrap_ngx_array_push(ngx_array_t *a)
{
    if (a->nelts == a->nalloc
        && faults_now("ngx_array_push", __builtin_return_address(0)))
    {
        return NULL;
    }

    return __real_ngx_array_push(a);
}


void *
__wrap_ngx_list_push(ngx_list_t *l)
{
    if (l->last->nelts == l->nalloc
        && faults_now("ngx_list_push", __builtin_return_address(0)))
    {
        return NULL;
    }

    return __real_ngx_list_push(l);
}


/* memory that somebody has to free */

void *__real_ngx_alloc(size_t size, ngx_log_t *log);
void *__wrap_ngx_alloc(size_t size, ngx_log_t *log);
void *__real_ngx_calloc(size_t size, ngx_log_t *log);
void *__wrap_ngx_calloc(size_t size, ngx_log_t *log);
void __real_free(void *p);
void __wrap_free(void *p);
ngx_pool_t *__real_ngx_create_pool(size_t size, ngx_log_t *log);
ngx_pool_t *__wrap_ngx_create_pool(size_t size, ngx_log_t *log);
ngx_http_request_t *__real_ngx_http_create_request(ngx_connection_t *c);
ngx_http_request_t *__wrap_ngx_http_create_request(ngx_connection_t *c);
ngx_pool_cleanup_t *__real_ngx_pool_cleanup_add(ngx_pool_t *p, size_t size);


void *
__wrap_ngx_alloc(size_t size, ngx_log_t *log)
{
    void  *p;

    if (faults_now("ngx_alloc", __builtin_return_address(0))) {
        return NULL;
    }

    p = __real_ngx_alloc(size, log);
    faults_count(p, 0);

    return p;
}


void *
__wrap_ngx_calloc(size_t size, ngx_log_t *log)
{
    void  *p;

    if (faults_now("ngx_calloc", __builtin_return_address(0))) {
        return NULL;
    }

    p = __real_ngx_calloc(size, log);

    /* the module takes it for the end of a closed session, and so only */

    faults_count(p, 1);

    return p;
}


void
__wrap_free(void *p)
{
    ngx_uint_t  i;

    for (i = 0; p && i < FAULTS_LATER; i++) {

        if (faults_later[i] == p) {
            faults_later[i] = NULL;
            faults->later--;

            __real_free(p);
            return;
        }
    }

    faults->blocks -= (p != NULL);
    __real_free(p);
}


static void
faults_count(void *p, ngx_uint_t later)
{
    ngx_uint_t  i;

    if (p == NULL) {
        return;
    }

    for (i = 0; later && i < FAULTS_LATER; i++) {

        if (faults_later[i] == NULL) {
            faults_later[i] = p;
            faults->later++;
            return;
        }
    }

    faults->blocks++;
}


ngx_pool_t *
__wrap_ngx_create_pool(size_t size, ngx_log_t *log)
{
    ngx_pool_t          *pool;
    ngx_pool_cleanup_t  *cln;

    if (faults_now("ngx_create_pool", __builtin_return_address(0))) {
        return NULL;
    }

    pool = __real_ngx_create_pool(size, log);

    if (pool) {
        cln = __real_ngx_pool_cleanup_add(pool, 0);

        if (cln) {
            cln->handler = faults_pool_gone;
            faults->pools++;
        }
    }

    return pool;
}


ngx_http_request_t *
__wrap_ngx_http_create_request(ngx_connection_t *c)
{
    ngx_http_request_t  *r;
    ngx_pool_cleanup_t  *cln;

    if (faults_now("ngx_http_create_request", __builtin_return_address(0))) {
        return NULL;
    }

    r = __real_ngx_http_create_request(c);

    if (r) {
        cln = __real_ngx_pool_cleanup_add(r->pool, 0);

        if (cln) {
            cln->handler = faults_pool_gone;
            faults->pools++;
        }
    }

    return r;
}


static void
faults_pool_gone(void *data)
{
    faults->pools--;
}


static void *
faults_malloc(size_t size)
{
    void  *p;

    if (faults->json && faults_now("cJSON", __builtin_return_address(0))) {
        return NULL;
    }

    p = malloc(size);
    faults_count(p, 0);

    return p;
}


static void
faults_free(void *p)
{
    faults->blocks -= (p != NULL);
    __real_free(p);
}


static ngx_uint_t
faults_now(const char *name, void *where)
{
    Dl_info  info;

    faults->count++;

    if (faults->at == 0
        || faults->count < faults->at
        || (faults->count > faults->at && !faults->on))
    {
        return 0;
    }

    if (faults->failed++ == 0) {
        ngx_cpystrn((u_char *) faults->name, (u_char *) name, FAULTS_NAME);

        if (dladdr(where, &info)) {
            faults->where = (u_char *) where - (u_char *) info.dli_fbase;
        }
    }

    ngx_set_errno(NGX_ENOMEM);

    return 1;
}


static void
faults_init(void)
{
    int           fd;
    char         *name;
    void         *p;
    cJSON_Hooks   hooks;

    name = getenv("KONTEXT_FAULTS");
    fd = name ? open(name, O_RDWR) : -1;

    if (fd == -1) {
        return;
    }

    p = mmap(NULL, sizeof(faults_t), PROT_READ|PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);

    if (p == MAP_FAILED) {
        return;
    }

    faults = p;

    hooks.malloc_fn = faults_malloc;
    hooks.free_fn = faults_free;
    cJSON_InitHooks(&hooks);
}
