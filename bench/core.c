/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The hot paths of the core, to be counted (bench/count) or timed:
 *
 *     core events DIALECT FRAMING FILE N    reads an answer N times
 *     core scan SIZE N                      reads a request N times
 *     core lookup SESSIONS N                finds N sessions
 *
 * Only bench_run() counts: what is made ready before it does not.
 */


#include <stdio.h>
#include <stdlib.h>

#include "core/chat/dialect.h"
#include "core/session_table.h"


#define BENCH_POOL  (64 * 1024 * 1024)


typedef struct {
    unsigned char    *p;
    size_t            used;
} bench_pool_t;


typedef struct {
    unsigned          n;
    size_t            units;         /* of one run */

    /* events */
    kx_framing_e      framing;

    /* events, scan */
    const kx_dialect_t  *dialect;
    unsigned char    *text;
    size_t            len;
    bench_pool_t      memory;
    kx_pool_t         pool;

    /* lookup */
    kx_session_table_t  *table;
    size_t            size;
    unsigned char    *keys;
    size_t            nkeys;

    void            (*run)(void *data);
} bench_t;


static void *bench_alloc(void *data, size_t size);
static void bench_file(bench_t *b, const char *name);
static void bench_body(bench_t *b, size_t size);
static void bench_table(bench_t *b, size_t sessions);
static void bench_events(void *data);
static void bench_scan(void *data);
static void bench_lookup(void *data);
static void bench_key(unsigned char *key, size_t i);
static void bench_die(const char *what);

void bench_run(bench_t *b);


static const unsigned char  bench_secret[32] =
    "0123456789abcdef0123456789abcde";


int
main(int argc, char **argv)
{
    bench_t  b;

    memset(&b, 0, sizeof(bench_t));

    b.pool.alloc = bench_alloc;
    b.pool.data = &b.memory;

    if (argc == 6 && strcmp(argv[1], "events") == 0) {
        b.dialect = kx_dialect_by_name((unsigned char *) argv[2],
                                       strlen(argv[2]));
        b.framing = (kx_framing_e) atoi(argv[3]);
        b.n = (unsigned) atoi(argv[5]);
        b.run = bench_events;

        bench_file(&b, argv[4]);

    } else if (argc == 4 && strcmp(argv[1], "scan") == 0) {
        b.dialect = &kx_openai_chat;
        b.n = (unsigned) atoi(argv[3]);
        b.run = bench_scan;

        bench_body(&b, (size_t) atol(argv[2]));

    } else if (argc == 4 && strcmp(argv[1], "lookup") == 0) {
        b.n = (unsigned) atoi(argv[3]);
        b.run = bench_lookup;

        bench_table(&b, (size_t) atol(argv[2]));

    } else {
        bench_die("usage: see bench/core.c");
    }

    if (b.run != bench_lookup) {

        if (b.dialect == NULL) {
            bench_die("unknown dialect");
        }

        b.memory.p = malloc(BENCH_POOL);
        if (b.memory.p == NULL) {
            bench_die("no memory");
        }
    }

    bench_run(&b);

    printf("%zu\n", b.units);

    return 0;
}


__attribute__((noinline)) void
bench_run(bench_t *b)
{
    unsigned  i;

    for (i = 0; i < b->n; i++) {
        b->memory.used = 0;
        b->run(b);
    }
}


static void
bench_events(void *data)
{
    bench_t  *b = data;

    unsigned              first, deltas;
    kx_str_t              path = { 1, (unsigned char *) "/" };
    kx_frame_t            fr;
    kx_answer_t           a;
    kx_framer_t           f;
    unsigned char         scratch[65536];
    kx_conversation_t     cv;
    const unsigned char  *p, *end, *last;

    kx_conversation_init(&cv, b->dialect, &path, bench_secret, &b->pool);

    if (kx_answer_init(&a, &cv, b->framing, KX_FORM_MEMBER) != KX_OK) {
        bench_die("no memory");
    }

    kx_framer_init(&f, b->framing);

    p = b->text;
    last = p + b->len;
    first = 1;
    b->units = 0;

    for ( ;; ) {
        deltas = a.deltas;
        p = kx_answer_repeat(&a, &f, p, last);
        b->units += a.deltas - deltas;

        end = kx_framer_next(&f, p, last);
        if (end == NULL) {
            break;
        }

        if (kx_frame_parse(&fr, &f, p, (size_t) (end - p), first, scratch)
            == KX_OK)
        {
            (void) kx_answer_frame(&a, &fr);
            b->units++;
        }

        first = 0;
        p = end;
    }
}


static void
bench_scan(void *data)
{
    bench_t  *b = data;

    kx_str_t           cid = { 3, (unsigned char *) "c-1" };
    kx_str_t           path = { 1, (unsigned char *) "/" };
    kx_message_t       messages[KX_MAX_MESSAGES];
    unsigned char      digest[KX_ID_LEN];
    kx_conversation_t  cv;

    kx_conversation_init(&cv, b->dialect, &path, bench_secret, &b->pool);

    if (kx_conversation_scan(&cv, b->text, b->len) != KX_REASON_NONE
        || kx_conversation_messages(&cv, &cid, messages, digest) == 0)
    {
        bench_die("bad body");
    }

    b->units = b->len;
}


static void
bench_lookup(void *data)
{
    bench_t  *b = data;

    size_t  i;

    for (i = 0; i < b->nkeys; i++) {

        if (kx_session_table_check(b->table, b->size, 0) != KX_OK
            || kx_session_table_find(b->table, b->keys + i * KX_ID_LEN, 1000,
                                     1800000)
               == NULL)
        {
            bench_die("not found");
        }
    }

    b->units = b->nkeys;
}


static void *
bench_alloc(void *data, size_t size)
{
    void          *p;
    bench_pool_t  *pool = data;

    if (size > BENCH_POOL - pool->used) {
        return NULL;
    }

    p = pool->p + pool->used;
    pool->used += (size + 15) & ~(size_t) 15;

    return p;
}


static void
bench_file(bench_t *b, const char *name)
{
    FILE  *f;
    long   size;

    f = fopen(name, "rb");
    if (f == NULL) {
        bench_die(name);
    }

    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);

    b->len = (size_t) size;
    b->text = malloc(b->len);

    if (b->text == NULL || fread(b->text, 1, b->len, f) != b->len) {
        bench_die(name);
    }

    fclose(f);
}


/* a chat of many turns, in English, with some Markdown */

static void
bench_body(bench_t *b, size_t size)
{
    char  *p, *last;

    static const char  turn[] =
        "{\"role\":\"user\",\"content\":\"And what do you think about the "
        "second of these, is it worth the money if I run twice a week?\"},"
        "{\"role\":\"assistant\",\"content\":\"It depends:\\n\\n1. **Weight** "
        "\\u2013 it is 40 g heavier than the first one.\\n2. **Price**: you "
        "pay \\\"only\\\" 30 % more.\\n\\nFor two runs a week I would take "
        "the first one, and spend the rest on socks. If your knees hurt "
        "after longer runs, though, the softer foam of the second one makes "
        "a difference that you will notice from the first day on, and the "
        "outsole lasts about 300 km longer.\"},";

    static const char  end[] =
        "{\"role\":\"user\",\"content\":\"Thanks! And trail shoes?\"}]}";

    b->text = malloc(size + 4096);
    if (b->text == NULL) {
        bench_die("no memory");
    }

    p = (char *) b->text;
    last = p + size;

    p += sprintf(p, "{\"model\":\"m\",\"stream\":true,\"messages\":[");

    while (p + sizeof(turn) + sizeof(end) < last) {
        memcpy(p, turn, sizeof(turn) - 1);
        p += sizeof(turn) - 1;
    }

    memcpy(p, end, sizeof(end) - 1);
    p += sizeof(end) - 1;

    b->len = (size_t) (p - (char *) b->text);
}


static void
bench_table(bench_t *b, size_t sessions)
{
    void          *mem;
    size_t         i, size;
    unsigned       created;
    unsigned char  key[KX_ID_LEN];

    size = sessions * 300 + 65536;

    if (posix_memalign(&mem, 4096, size) != 0) {
        bench_die("no memory");
    }

    memset(mem, 0, size);

    b->size = size;
    b->table = kx_session_table_create(mem, size, 0);
    if (b->table == NULL) {
        bench_die("no table");
    }

    for (i = 0; i < sessions; i++) {
        bench_key(key, i);

        if (kx_session_table_open(b->table, key, 1, 1000, 1000, 1800000,
                                  &created)
            == NULL)
        {
            bench_die("no session");
        }
    }

    b->nkeys = 1000;
    b->keys = malloc(b->nkeys * KX_ID_LEN);
    if (b->keys == NULL) {
        bench_die("no memory");
    }

    for (i = 0; i < b->nkeys; i++) {
        bench_key(b->keys + i * KX_ID_LEN, (i * 7919) % sessions);
    }
}


static void
bench_key(unsigned char *key, size_t i)
{
    kx_sip_t  sip;

    kx_sip_init(&sip, bench_secret, 1);
    kx_sip_field(&sip, &i, sizeof(size_t));
    kx_sip_final128(&sip, key);
}


static void
bench_die(const char *what)
{
    fprintf(stderr, "core: %s\n", what);
    exit(2);
}
