/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A worker may die at any instruction.  A child runs one operation on a table
 * in shared memory, instruction by instruction, and is killed after some
 * number of them; the table must then be consistent, and nothing may be lost
 * but what was being changed.
 *
 * To kill one at each instruction takes time in proportion to the square of
 * their number.  So this is done with the short operations; of the long ones
 * each instruction is looked at while the child has stopped there, and some
 * of them are those where it dies.
 *
 * Not under a sanitizer, whose instructions are too many.
 */


#define _GNU_SOURCE

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "record.h"
#include "session_store.h"


#define NOW         1000000ULL
#define WALL        1772475611045ULL
#define IDLE        60000

#define SIZE        2048
#define STORE_SIZE  6144             /* the same, and 16 blocks */
#define SHARE       43
#define BLOCKS      16
#define SLOTS       7
#define BUCKETS     4
#define KEYS        16

#define NEW         12               /* the key of a session to be made */

#define SHORT       400
#define STRIDE      13
#define ALL         0xffffffff

/* the whole test; it takes a small part of it */
#define MAX_SECONDS 1200


typedef struct {
    volatile unsigned  started;
    volatile unsigned  done;
} control_t;


typedef struct {
    const char        *name;
    void             (*prepare)(void);
    void             (*operate)(void);
    unsigned           lost;         /* sessions that may be gone, bits */
    unsigned           share;        /* of the store */
} scenario_t;


static unsigned char       *mem;
static size_t               size;
static unsigned             share;
static kx_session_table_t  *t;
static control_t           *control;

static unsigned char        before[STORE_SIZE] __attribute__((aligned(64)));
static unsigned char        after[STORE_SIZE] __attribute__((aligned(64)));

static const char          *name;
static unsigned             nsteps;
static unsigned             nkilled;


#define check(expr)                                                           \
    do {                                                                      \
        if (!(expr)) {                                                        \
            fail(#expr, __LINE__);                                            \
        }                                                                     \
    } while (0)


static void
fail(const char *what, int line)
{
    fprintf(stderr, "%s:%d: %s, killed after %u steps: not %s\n",
            __FILE__, line, name, nsteps, what);
    exit(1);
}


static void
give_up(const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", __FILE__, what, strerror(errno));
    exit(1);
}


static const unsigned char *
key(unsigned n)
{
    static unsigned char  k[KX_ID_LEN];

    /* two buckets are in use, so that chains have inner members */

    memset(k, 0xcc, KX_ID_LEN);
    k[0] = n % 2;
    k[1] = 0;
    k[2] = 0;
    k[3] = 0;
    k[4] = n;

    return k;
}


static kx_session_t *
slots_of(unsigned char *block)
{
    return (kx_session_t *) (block + (sizeof(kx_session_table_t)
                                      + 4 * BUCKETS + 63) / 64 * 64);
}


static kx_session_t *
record(unsigned char *block, unsigned n)
{
    unsigned       i;
    kx_session_t  *s;

    s = slots_of(block);

    for (i = 0; i < SLOTS; i++) {
        if (s[i].live && memcmp(s[i].key, key(n), KX_ID_LEN) == 0) {
            return &s[i];
        }
    }

    return NULL;
}


/* what the store has of a session, one after the other */

static size_t
contents(unsigned char *block, unsigned n, unsigned char *p)
{
    int                  rc;
    size_t               len;
    unsigned             kind;
    kx_item_t            item;
    kx_root_t           *root;
    kx_session_t        *s;
    kx_session_table_t  *table;

    len = 0;
    table = (kx_session_table_t *) block;
    s = record(block, n);
    root = s ? kx_store_root(table, s) : NULL;

    if (root == NULL) {
        return 0;
    }

    memcpy(p, root->id, KX_ID_LEN);
    len += KX_ID_LEN;

    for (kind = 0; kind < KX_ITEM_KINDS; kind++) {

        for (rc = kx_store_first(table, s, kind, &item);
             rc == KX_OK;
             rc = kx_store_next(table, &item))
        {
            memcpy(p + len, &item.number, sizeof(item.number));
            len += sizeof(item.number);
            memcpy(p + len, &item.len, sizeof(item.len));
            len += sizeof(item.len);

            if (kx_store_read(table, &item, 0, p + len, item.len)
                != item.len)
            {
                return (size_t) -1;
            }

            len += item.len;
        }

        p[len++] = 'k';
    }

    return len;
}


static unsigned
same_contents(unsigned char *one, unsigned char *two, unsigned n)
{
    size_t  len;

    static unsigned char  a[STORE_SIZE], b[STORE_SIZE];

    len = contents(one, n, a);

    return contents(two, n, b) == len && memcmp(a, b, len) == 0;
}


/* all of a record but what the table keeps in it */

static unsigned
same(const kx_session_t *one, const kx_session_t *two)
{
    kx_session_t  a, b;

    if (one == NULL || two == NULL) {
        return 0;
    }

    a = *one;
    b = *two;

    a.next = b.next = 0;
    a.newer = b.newer = 0;
    a.older = b.older = 0;

    return memcmp(&a, &b, sizeof(kx_session_t)) == 0;
}


static kx_session_t *
open_at(unsigned n, uint64_t user, uint64_t now)
{
    unsigned       created;
    kx_session_t  *s;

    s = kx_session_table_open(t, key(n), user, now, WALL, IDLE, &created);

    if (s && created) {
        kx_session_table_change(t, s);
        s->preload_timeout = 1000 + n;
        s->has_server_id = 1;
        memset(s->server_id, 'a' + n, KX_ID_LEN);
        memset(s->user_message, 'A' + n, KX_ID_LEN);
        kx_session_table_changed(t, s);
    }

    return s;
}


/* 0 to 3, of which 0 is the newest and 2 is in the middle */

static void
prepare_some(void)
{
    open_at(1, 1, NOW + 1);
    open_at(2, 1, NOW + 2);
    open_at(3, 1, NOW + 3);
    open_at(0, 1, NOW + 4);
}


/* 0 to 6, of which 1 is the oldest */

static void
prepare_full(void)
{
    prepare_some();

    open_at(4, 1, NOW + 5);
    open_at(5, 1, NOW + 6);
    open_at(6, 1, NOW + 7);
}


static int
add_item(unsigned n, kx_item_kind_e kind, size_t len)
{
    kx_str_t       data[2];
    unsigned char  p[1000];

    memset(p, 'a' + n + kind, sizeof(p));

    data[0].data = p;
    data[0].len = len / 2;
    data[1].data = p;
    data[1].len = len - len / 2;

    return kx_store_add(t, record(mem, n), kind, 100 + len, data, 2);
}


static void
add_at(unsigned n, kx_item_kind_e kind, size_t len)
{
    kx_session_table_change(t, record(mem, n));
    check(add_item(n, kind, len) == KX_OK);
    kx_session_table_changed(t, record(mem, n));
}


static int
keep_at(unsigned n)
{
    return kx_store_keep(t, record(mem, n), key(n));
}


/* 1, 2 and 3 have items, 1 is the oldest; 6 blocks are free, 4 were used */

static void
prepare_store(void)
{
    prepare_full();

    check(keep_at(6) == KX_OK);
    add_at(6, KX_ITEM_EVENT, 600);
    kx_session_table_close(t, record(mem, 6));
    open_at(6, 1, NOW + 7);

    check(keep_at(1) == KX_OK);
    check(keep_at(2) == KX_OK);
    check(keep_at(3) == KX_OK);

    add_at(1, KX_ITEM_OPTIONS, 30);
    add_at(2, KX_ITEM_MESSAGE, 300);
    add_at(2, KX_ITEM_MESSAGE, 10);
    add_at(2, KX_ITEM_MESSAGE, 20);
    add_at(2, KX_ITEM_EVENT, 0);
    add_at(3, KX_ITEM_AD, 100);

    check(keep_at(6) == KX_OK);
    add_at(6, KX_ITEM_EVENT, 600);
    kx_session_table_close(t, record(mem, 6));
    open_at(6, 1, NOW + 7);
}


/* none is free */

static void
prepare_store_full(void)
{
    prepare_store();

    add_at(3, KX_ITEM_MESSAGE, 800);
    add_at(3, KX_ITEM_EVENT, 1);
    add_at(3, KX_ITEM_EVENT, 2);
}


/* 1, 2 and 3 are idle by the time of the operation */

static void
prepare_idle(void)
{
    prepare_full();

    (void) kx_session_table_find(t, key(0), NOW + IDLE, IDLE);
    (void) kx_session_table_find(t, key(4), NOW + IDLE, IDLE);
    (void) kx_session_table_find(t, key(5), NOW + IDLE, IDLE);
    (void) kx_session_table_find(t, key(6), NOW + IDLE, IDLE);
}


/* somebody died while he changed 2 and the links were in disorder */

static void
prepare_dirty(void)
{
    kx_session_t  *s;

    prepare_full();

    s = kx_session_table_find(t, key(4), NOW + 8, IDLE);
    kx_session_table_close(t, s);

    s = kx_session_table_find(t, key(2), NOW + 9, IDLE);
    kx_session_table_change(t, s);
    s->seq++;

    s = record(mem, 3);
    s->next = 77;
    s->newer = s->older;
    t->oldest = t->newest;
    t->free = KX_SESSION_NONE;
    memset(t + 1, 0, 4 * t->buckets);
}


/* the same with all that links the blocks */

static void
prepare_store_dirty(void)
{
    kx_store_view_t  v;

    prepare_store();

    kx_session_table_change(t, record(mem, 2));
    check(add_item(2, KX_ITEM_AD, 500) == KX_OK);

    check(kx_store_view(t, &v) == KX_OK);
    memset(v.head, 0x22, sizeof(kx_store_t));

    record(mem, 3)->newer = 77;
    memset(t + 1, 0, 4 * t->buckets);
}


static void
prepare_geometry(void)
{
    prepare_full();

    t->slots = 1 << 20;
    t->buckets = 0;
}


static void
operate_open(void)
{
    unsigned  created;

    (void) kx_session_table_open(t, key(NEW), 1, NOW + IDLE + 4, WALL, IDLE,
                                 &created);
}


static void
operate_open_soon(void)
{
    unsigned  created;

    (void) kx_session_table_open(t, key(NEW), 1, NOW + 9, WALL, IDLE,
                                 &created);
}


static void
operate_open_again(void)
{
    unsigned  created;

    (void) kx_session_table_open(t, key(2), 1, NOW + 9, WALL, IDLE, &created);
}


static void
operate_open_other_user(void)
{
    unsigned  created;

    (void) kx_session_table_open(t, key(2), 2, NOW + 9, WALL, IDLE, &created);
}


static void
operate_find(void)
{
    (void) kx_session_table_find(t, key(2), NOW + 9, IDLE);
}


static void
operate_find_oldest(void)
{
    (void) kx_session_table_find(t, key(1), NOW + 9, IDLE);
}


static void
operate_find_idle(void)
{
    (void) kx_session_table_find(t, key(2), NOW + IDLE + 9, IDLE);
}


static void
operate_close(void)
{
    kx_session_table_close(t, record(mem, 2));
}


static void
operate_change(void)
{
    kx_session_t         *s;
    kx_preload_answer_t   a;

    static const unsigned char  message[KX_ID_LEN] = "a user's turn..";
    static const unsigned char  reply[KX_ID_LEN] = "an assistant's.";
    static const kx_str_t       placement = kx_string("inlineAd");

    memset(&a, 0, sizeof(a));
    a.outcome = KX_AD_FILLED;
    a.nbids = 1;
    a.has_session = 1;
    memset(a.session, 's', KX_ID_LEN);
    memset(a.bids[0].id, 'b', KX_ID_LEN);

    s = record(mem, 2);

    kx_session_table_change(t, s);

    (void) kx_session_turn(s, message, 0, NOW, WALL, 16000);
    (void) kx_session_init_claim(s, NOW, 16000);
    (void) kx_session_answer(s, s->seq, &a, &placement);
    (void) kx_session_pair(s, s->seq, reply);

    kx_session_table_changed(t, s);
}


/* what another node knows comes in, and supersedes the turn */

static void
operate_share(void)
{
    kx_record_t        own, theirs;
    kx_session_t      *s;
    kx_record_turn_t  *turn;

    memset(&theirs, 0, sizeof(theirs));

    theirs.user = 7;
    theirs.flags = KX_RECORD_INIT | KX_RECORD_SERVER_ID | KX_RECORD_DEBUG;
    theirs.preload_timeout = 900;
    theirs.server_clock = WALL + 5000;
    theirs.nturns = 1;
    memset(theirs.server_id, 's', KX_ID_LEN);

    turn = &theirs.turns[0];

    turn->clock = WALL + 5000;
    turn->ad_clock = WALL + 5000;
    turn->index = 3;
    turn->state = KX_TURN_FILLED;
    turn->nbids = 1;
    turn->bids[0].code = 1;
    memset(turn->message, 'm', KX_ID_LEN);
    memset(turn->bids[0].id, 'b', KX_ID_LEN);

    s = record(mem, 2);

    kx_session_table_change(t, s);

    kx_record_take(&own, s, 7);
    kx_record_merge(&theirs, &own);
    kx_record_give(s, &theirs);

    kx_session_table_changed(t, s);
}


static void
operate_keep(void)
{
    (void) keep_at(4);
}


static void
operate_reserve(void)
{
    (void) kx_store_reserve(t, record(mem, 3), 7);
}


static void
operate_add(void)
{
    kx_session_t  *s;

    s = record(mem, 2);

    kx_session_table_change(t, s);
    (void) add_item(2, KX_ITEM_MESSAGE, 700);
    kx_session_table_changed(t, s);
}


static void
operate_shift(void)
{
    kx_session_t  *s;

    s = record(mem, 2);

    kx_session_table_change(t, s);
    kx_store_shift(t, s, KX_ITEM_MESSAGE);
    kx_session_table_changed(t, s);
}


static void
operate_remove(void)
{
    kx_item_t      item;
    kx_session_t  *s;

    s = record(mem, 2);

    (void) kx_store_first(t, s, KX_ITEM_MESSAGE, &item);
    (void) kx_store_next(t, &item);

    kx_session_table_change(t, s);
    kx_store_remove(t, s, KX_ITEM_MESSAGE, &item);
    kx_session_table_changed(t, s);
}


static void
operate_store_find(void)
{
    kx_session_t  *s;

    s = record(mem, 2);

    (void) kx_store_find(t, s->root, key(2), NOW + 9, IDLE);
}


static void
operate_check(void)
{
    (void) kx_session_table_check(t, size, share);
}


static void
operate_create(void)
{
    (void) kx_session_table_create(mem, size, share);
}


static const scenario_t  scenarios[] = {

    { "open", prepare_some, operate_open_soon, 0, 0 },
    { "open, evicts", prepare_full, operate_open_soon, 1 << 1, 0 },
    { "open, expires", prepare_idle, operate_open, 1 << 1 | 1 << 2, 0 },
    { "open, lives", prepare_full, operate_open_again, 0, 0 },
    { "open, other user", prepare_full, operate_open_other_user, 1 << 2, 0 },
    { "find", prepare_full, operate_find, 0, 0 },
    { "find oldest", prepare_full, operate_find_oldest, 0, 0 },
    { "find idle", prepare_full, operate_find_idle, 1 << 2, 0 },
    { "close", prepare_full, operate_close, 1 << 2, 0 },
    { "change", prepare_full, operate_change, 1 << 2, 0 },
    { "share", prepare_full, operate_share, 1 << 2, 0 },
    { "repair", prepare_dirty, operate_check, 1 << 2 | 1 << 4, 0 },
    { "repair, size", prepare_geometry, operate_check, 0, 0 },
    { "create", prepare_full, operate_create, (1 << KEYS) - 1, 0 },

    { "keep", prepare_store, operate_keep, 0, SHARE },
    { "keep, evicts", prepare_store_full, operate_keep, 1 << 1, SHARE },
    { "reserve, evicts", prepare_store, operate_reserve, 1 << 1, SHARE },
    { "add", prepare_store, operate_add, 1 << 2, SHARE },
    { "shift", prepare_store, operate_shift, 1 << 2, SHARE },
    { "remove", prepare_store, operate_remove, 1 << 2, SHARE },
    { "find by root", prepare_store, operate_store_find, 0, SHARE },
    { "close, store", prepare_store, operate_close, 1 << 2, SHARE },
    { "repair, store", prepare_store_dirty, operate_check, 1 << 2, SHARE },
    { "create, store", prepare_store, operate_create, (1 << KEYS) - 1, SHARE }
};


/* The store goes on, and nothing is left of what was closed. */

static void
survived_store(void)
{
    unsigned         i;
    kx_session_t    *s;
    kx_store_view_t  v;

    static const kx_block_t  zero;

    check(kx_store_view(t, &v) == KX_OK);
    check(v.n == BLOCKS);

    for (i = 0; i < v.limit; i++) {
        check(v.blocks[i].owner != KX_SESSION_NONE
              || memcmp(&v.blocks[i].u, &zero.u, sizeof(zero.u)) == 0);
    }

    s = open_at(KEYS - 1, 1, NOW + IDLE);
    check(s != NULL);
    check(keep_at(KEYS - 1) == KX_OK);
    check(kx_store_reserve(t, s, BLOCKS - 1) == KX_OK);
    check(v.head->used == 1);
    check(kx_session_table_verify(t) == KX_OK);

    for (i = 0; i < (BLOCKS - 1) / 3; i++) {
        add_at(KEYS - 1, KX_ITEM_MESSAGE, 500);
    }

    check(v.head->used == BLOCKS);
    check(kx_session_table_verify(t) == KX_OK);

    kx_session_table_close(t, s);
    check(v.head->used == 0);
    check(kx_session_table_verify(t) == KX_OK);
}


static void
survived(const scenario_t *sc)
{
    int            rc;
    unsigned       i, j, missing;
    kx_session_t  *s, *old, *new;

    static const kx_session_t  zero;

    rc = kx_session_table_check(t, size, share);

    if (rc == KX_ERROR) {

        /* this one tells that it is to be created anew, and only this one */

        check(sc->operate == operate_create);
        check(kx_session_table_attach(mem, size, share) == NULL);
        check(kx_session_table_find(t, key(2), NOW + 9, IDLE) == NULL);
        check(kx_session_table_create(mem, size, share) == t);
    }

    check(kx_session_table_verify(t) == KX_OK);
    check(kx_session_table_check(t, size, share) == KX_OK);
    check(kx_session_table_attach(mem, size, share) == t);
    check(t->slots == SLOTS);
    check(t->buckets == BUCKETS);

    missing = 0;

    for (i = 0; i < KEYS; i++) {
        s = record(mem, i);
        old = record(before, i);
        new = record(after, i);

        if (s == NULL) {
            check(old == NULL || (sc->lost & 1 << i));
            missing += old != NULL && new != NULL;
            continue;
        }

        /* a session is as it was or as it was to be, not a mixture */

        check((same(s, old) && same_contents(mem, before, i))
              || (same(s, new) && same_contents(mem, after, i)));
    }

    check(missing <= 1);

    /* nothing is left of those that are gone */

    for (i = 0; i < SLOTS; i++) {
        s = &slots_of(mem)[i];

        if (!s->live) {
            j = s->next;
            s->next = 0;
            check(memcmp(s, &zero, sizeof(kx_session_t)) == 0);
            s->next = j;
        }
    }

    /* those that are there are found, and the table goes on */

    for (i = 0; i < KEYS; i++) {
        s = record(mem, i);
        check(kx_session_table_find(t, key(i), NOW + IDLE, 2 * IDLE) == s);
    }

    check(kx_session_table_verify(t) == KX_OK);

    for (i = 0; i < SLOTS + 1; i++) {
        s = open_at(KEYS + i, 1, NOW + IDLE);
        check(s != NULL);
        check(kx_session_table_find(t, key(KEYS + i), NOW + IDLE, IDLE) == s);
    }

    check(t->used == SLOTS);
    check(kx_session_table_verify(t) == KX_OK);

    kx_session_table_close(t, s);
    check(t->used == SLOTS - 1);
    check(kx_session_table_verify(t) == KX_OK);

    if (share) {
        survived_store();
    }
}


/* What would be if the process went no further than this. */

static void
look(const scenario_t *sc)
{
    static unsigned char  now[STORE_SIZE];

    memcpy(now, mem, size);
    survived(sc);
    memcpy(mem, now, size);
}


/*
 * Runs the operation for so many steps, or ALL of it, and kills the process.
 * Each of them is looked at if all are asked for; returns their number.
 */

static unsigned
run(const scenario_t *sc, unsigned steps)
{
    int       status;
    pid_t     pid;
    unsigned  n;

    control->started = 0;
    control->done = 0;

    memcpy(mem, before, size);

    pid = fork();

    if (pid == -1) {
        give_up("fork()");
    }

    if (pid == 0) {

        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) == -1) {
            _exit(2);
        }

        raise(SIGSTOP);

        control->started = 1;
        sc->operate();
        control->done = 1;

        _exit(0);
    }

    if (waitpid(pid, &status, 0) != pid) {
        give_up("waitpid()");
    }

    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP) {
        fprintf(stderr, "%s: a child cannot be traced here\n", __FILE__);
        exit(1);
    }

    if (ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *) PTRACE_O_EXITKILL)
        == -1)
    {
        give_up("ptrace(PTRACE_SETOPTIONS)");
    }

    for (n = 0; !control->done; /* void */ ) {

        if (control->started) {
            nsteps = n;

            if (steps == ALL) {
                look(sc);

            } else if (n == steps) {
                break;
            }

            n++;
        }

        if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == -1) {
            give_up("ptrace(PTRACE_SINGLESTEP)");
        }

        if (waitpid(pid, &status, 0) != pid) {
            give_up("waitpid()");
        }

        if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) {
            fprintf(stderr, "%s: %s: status %d after %u steps\n",
                    __FILE__, name, status, n);
            exit(1);
        }
    }

    if (kill(pid, SIGKILL) == -1) {
        give_up("kill()");
    }

    if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status)) {
        give_up("waitpid()");
    }

    nkilled++;

    return n;
}


static void
test(const scenario_t *sc)
{
    unsigned  n, i, dirty;

    name = sc->name;
    nsteps = 0;

    share = sc->share;
    size = share ? STORE_SIZE : SIZE;

    memset(mem, 0, size);
    t = kx_session_table_create(mem, size, share);
    check(t != NULL);

    sc->prepare();
    memcpy(before, mem, size);

    sc->operate();
    memcpy(after, mem, size);

    check(memcmp(before, after, size) != 0);
    check(kx_session_table_verify(t) == KX_OK);

    n = run(sc, ALL);

    check(memcmp(mem, after, size) == 0);
    survived(sc);

    dirty = 0;

    for (i = 0; i < n; i += (n <= SHORT) ? 1 : STRIDE) {
        check(run(sc, i) == i);
        dirty += t->dirty;
        survived(sc);
    }

    check(dirty);

    printf("%-18s %4u instructions, killed at each%s, %3u times within a "
           "change\n", name, n, (n <= SHORT) ? "" : " 13th", dirty);
    fflush(stdout);
}


int
main(void)
{
    unsigned   i;
    cpu_set_t  cpu;

    alarm(MAX_SECONDS);

    /* parent and child take turns: they are faster where they share a core */

    CPU_ZERO(&cpu);

    if (sched_getcpu() >= 0) {
        CPU_SET(sched_getcpu(), &cpu);
        (void) sched_setaffinity(0, sizeof(cpu), &cpu);
    }

    mem = mmap(NULL, STORE_SIZE, PROT_READ|PROT_WRITE,
               MAP_SHARED|MAP_ANONYMOUS, -1, 0);

    control = mmap(NULL, sizeof(control_t), PROT_READ|PROT_WRITE,
                   MAP_SHARED|MAP_ANONYMOUS, -1, 0);

    if (mem == MAP_FAILED || control == MAP_FAILED) {
        give_up("mmap()");
    }

    for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
        test(&scenarios[i]);
    }

    printf("%u processes killed, no table lost\n", nkilled);

    return 0;
}
