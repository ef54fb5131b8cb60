/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The circuit breaker, by a clock that the tests set.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <pthread.h>

#include "breaker.h"

#include <cmocka.h>


#define CALLS    256
#define THREADS  4
#define ROUNDS   20000


typedef struct {
    kx_breaker_t       b;
    kx_breaker_conf_t  conf;
    uint64_t           now;
    uint64_t           begun[CALLS];
    unsigned           n;
} site_t;


static void
site_init(site_t *s)
{
    memset(s, 0, sizeof(site_t));

    s->conf.failures = 50;
    s->conf.min = 10;
    s->conf.window = 10000;
    s->conf.probe = 1000;
    s->conf.stall = 500;

    /* far from zero, and not at the start of any part */

    s->now = 1234567891;
}


static void
begin(site_t *s, unsigned n)
{
    while (n--) {
        s->begun[s->n++] = s->now;
        kx_breaker_begin(&s->b, 1, s->now);
    }
}


/* the oldest n calls end */

static void
end(site_t *s, unsigned n, kx_breaker_end_e how)
{
    unsigned  i;

    assert_true(n <= s->n);

    for (i = 0; i < n; i++) {
        kx_breaker_end(&s->b, &s->conf, 1, s->begun[i], s->now, how);
    }

    s->n -= n;
    memmove(s->begun, s->begun + n, s->n * sizeof(uint64_t));
}


/* calls that take some ms */

static void
calls(site_t *s, unsigned n, unsigned ms, kx_breaker_end_e how)
{
    while (n--) {
        begin(s, 1);
        s->now += ms;
        end(s, 1, how);
    }
}


static kx_breaker_e
admit(site_t *s)
{
    return kx_breaker_admit(&s->b, &s->conf, s->now);
}


static void
test_new(void **state)
{
    site_t  s;

    site_init(&s);

    assert_int_equal(admit(&s), KX_BREAKER_PASS);
    assert_true(kx_breaker_allows(&s.b, &s.conf, s.now));
    assert_int_equal(kx_breaker_calls(&s.b, s.now), 0);
    assert_int_equal(kx_breaker_state(&s.b, &s.conf, s.now),
                     KX_BREAKER_CLOSED);
}


static void
test_failures_in_a_row(void **state)
{
    site_t  s;

    site_init(&s);

    calls(&s, 1000, 1, KX_BREAKER_ANSWERED);
    calls(&s, 9, 1, KX_BREAKER_FAILED);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);

    calls(&s, 1, 1, KX_BREAKER_FAILED);
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);
    assert_false(kx_breaker_allows(&s.b, &s.conf, s.now));
    assert_int_equal(kx_breaker_state(&s.b, &s.conf, s.now),
                     KX_BREAKER_IS_OPEN);
    assert_int_equal(s.b.opened, 1);
    assert_int_equal(s.b.refused, 1);
}


static void
test_share_of_failures(void **state)
{
    site_t    s;
    unsigned  i;

    site_init(&s);

    /* two of five fail: never enough */

    for (i = 0; i < 200; i++) {
        calls(&s, 3, 7, KX_BREAKER_ANSWERED);
        calls(&s, 2, 7, KX_BREAKER_FAILED);
        assert_int_equal(admit(&s), KX_BREAKER_PASS);
    }

    /* three of five do: in a window */

    for (i = 0; i < 400 && admit(&s) == KX_BREAKER_PASS; i++) {
        calls(&s, 2, 7, KX_BREAKER_ANSWERED);
        calls(&s, 3, 7, KX_BREAKER_FAILED);
    }

    assert_in_range(i, 50, 299);
    assert_int_equal(s.b.opened, 1);
}


static void
test_few_failures(void **state)
{
    site_t    s;
    unsigned  i;

    site_init(&s);

    /* half of them, but never min in a window */

    for (i = 0; i < 100; i++) {
        calls(&s, 1, 600, KX_BREAKER_FAILED);
        calls(&s, 1, 600, KX_BREAKER_ANSWERED);
        assert_int_equal(admit(&s), KX_BREAKER_PASS);
    }
}


static void
test_probes(void **state)
{
    site_t    s;
    unsigned  i, probes;

    site_init(&s);
    calls(&s, 10, 1, KX_BREAKER_FAILED);

    /* one an interval, whoever asks, and whatever becomes of it */

    probes = 0;

    for (i = 0; i < 10000; i++) {
        s.now++;
        probes += (admit(&s) == KX_BREAKER_PROBE);
        assert_false(kx_breaker_allows(&s.b, &s.conf, s.now));
    }

    assert_int_equal(probes, 10);
    assert_int_equal(s.b.refused, 9990);
    assert_int_equal(kx_breaker_state(&s.b, &s.conf, s.now),
                     KX_BREAKER_HALF_OPEN);

    /* one that fails changes nothing, one that is left neither */

    calls(&s, 1, 1, KX_BREAKER_FAILED);
    calls(&s, 1, 1, KX_BREAKER_LEFT);
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);

    calls(&s, 1, 1, KX_BREAKER_ANSWERED);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);
    assert_int_equal(kx_breaker_state(&s.b, &s.conf, s.now),
                     KX_BREAKER_CLOSED);

    /* all is forgotten */

    calls(&s, 9, 1, KX_BREAKER_FAILED);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);
    calls(&s, 1, 1, KX_BREAKER_FAILED);
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);
    assert_int_equal(s.b.opened, 2);
}


static void
test_luck_from_before(void **state)
{
    site_t  s;

    site_init(&s);

    begin(&s, 12);
    s.now++;
    end(&s, 10, KX_BREAKER_FAILED);
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);

    /* begun before it opened */

    s.now += 10;
    end(&s, 1, KX_BREAKER_ANSWERED);
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);

    /* and what fails after it was closed does not count, either */

    s.now += 1000;
    assert_int_equal(admit(&s), KX_BREAKER_PROBE);
    begin(&s, 1);
    s.now += 50;
    kx_breaker_end(&s.b, &s.conf, 1, s.begun[1], s.now, KX_BREAKER_ANSWERED);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);

    end(&s, 1, KX_BREAKER_FAILED);
    assert_int_equal(s.b.failures, 0);
}


/* it takes a call and never answers */

static void
test_hang(void **state)
{
    site_t    s;
    uint64_t  start;

    site_init(&s);

    calls(&s, 100, 50, KX_BREAKER_ANSWERED);

    start = s.now;

    /* 40 a second */

    while (admit(&s) == KX_BREAKER_PASS) {
        begin(&s, 1);
        s.now += 25;
        assert_true(s.now - start < 1000);
    }

    assert_true(s.now - start >= 500);
    assert_int_equal(s.b.opened, 1);
}


/* the same when it hangs from the start */

static void
test_hang_at_once(void **state)
{
    site_t    s;
    uint64_t  start;

    site_init(&s);

    start = s.now;
    begin(&s, 200);

    while (admit(&s) == KX_BREAKER_PASS) {
        s.now += 10;
        assert_true(s.now - start < 1000);
    }

    assert_true(s.now - start >= 500);
}


/* the same when every chat is over before a call is */

static void
test_hang_of_short_chats(void **state)
{
    site_t    s;
    uint64_t  start;

    site_init(&s);

    calls(&s, 100, 50, KX_BREAKER_ANSWERED);

    start = s.now;

    while (admit(&s) == KX_BREAKER_PASS) {
        begin(&s, 1);
        s.now += 20;

        if (s.now - s.begun[0] >= 510) {
            end(&s, 1, KX_BREAKER_LEFT);
        }

        assert_true(s.now - start < 1000);
    }
}


/* an ad server that takes a second to choose is not one that hangs */

static void
test_slow_answers(void **state)
{
    site_t    s;
    uint64_t  start;

    site_init(&s);

    /* it has to be known: a first chat or some */

    begin(&s, 9);
    s.now += 1000;
    end(&s, 9, KX_BREAKER_ANSWERED);

    for (start = s.now; s.now - start < 20000; s.now += 10) {

        if (s.n && s.now - s.begun[0] >= 1000) {
            end(&s, 1, KX_BREAKER_ANSWERED);
        }

        if (s.now - start < 19000) {
            assert_int_equal(admit(&s), KX_BREAKER_PASS);
            begin(&s, 1);
        }
    }

    assert_int_equal(s.b.opened, 0);
    end(&s, s.n, KX_BREAKER_ANSWERED);

    /* 200 at once */

    start = s.now;
    begin(&s, 200);

    while (s.now - start < 1200) {
        s.now += 10;
        assert_int_equal(admit(&s), KX_BREAKER_PASS);
    }

    end(&s, 200, KX_BREAKER_ANSWERED);

    /* chats that are over earlier say nothing of it */

    for (start = s.now; s.now - start < 5000; s.now += 20) {
        assert_int_equal(admit(&s), KX_BREAKER_PASS);
        begin(&s, 1);

        if (s.now - s.begun[0] >= 600) {
            end(&s, 1, KX_BREAKER_LEFT);
        }
    }

    end(&s, s.n, KX_BREAKER_LEFT);

    /* and then it does hang */

    calls(&s, 1, 1000, KX_BREAKER_ANSWERED);
    start = s.now;
    begin(&s, 40);

    while (admit(&s) == KX_BREAKER_PASS) {
        s.now += 10;

        /* a quarter more than the 1200 ms of the 200, and a part */

        assert_true(s.now - start <= 1500 + KX_BREAKER_PART + 10);
    }
}


/* what was slow only for want of knowledge is closed by its own answers */

static void
test_slow_at_first(void **state)
{
    site_t  s;

    site_init(&s);

    begin(&s, 200);
    s.now += 900;
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);

    s.now += 100;
    end(&s, 1, KX_BREAKER_ANSWERED);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);

    s.now += 100;
    end(&s, 199, KX_BREAKER_ANSWERED);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);
    assert_int_equal(s.b.opened, 1);
}


/* one that answers is no proof that calls of before are late */

/* a worker's time is that of its last event, and another's is ahead of it */

static void
test_behind(void **state)
{
    site_t    s;
    uint64_t  start;

    site_init(&s);

    /* answers take a second, and come all the time */

    begin(&s, 9);
    s.now += 1000;
    end(&s, 9, KX_BREAKER_ANSWERED);

    for (start = s.now; s.now - start < 5000; s.now += 10) {

        if (s.n && s.now - s.begun[0] >= 1000) {
            end(&s, 1, KX_BREAKER_ANSWERED);
        }

        assert_int_equal(kx_breaker_admit(&s.b, &s.conf, s.now - 3),
                         KX_BREAKER_PASS);
        begin(&s, 1);
    }

    assert_int_equal(s.b.opened, 0);
    assert_in_range(s.b.latency, 990 * 8, 1010 * 8);

    /* it is not the time of a probe yet */

    site_init(&s);
    calls(&s, 10, 1, KX_BREAKER_FAILED);

    assert_int_equal(kx_breaker_admit(&s.b, &s.conf, s.now - 3),
                     KX_BREAKER_OPEN);

    /* nor is an answer that one */

    kx_breaker_begin(&s.b, 1, s.now - 5);
    kx_breaker_end(&s.b, &s.conf, 1, s.now - 5, s.now - 3,
                   KX_BREAKER_ANSWERED);
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);
}


static void
test_quiet_times(void **state)
{
    site_t  s;

    site_init(&s);

    begin(&s, 30);
    s.now += 700;
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);

    s.now += 1000;
    assert_int_equal(admit(&s), KX_BREAKER_PROBE);
    calls(&s, 0, 0, KX_BREAKER_ANSWERED);

    kx_breaker_begin(&s.b, 1, s.now);
    kx_breaker_end(&s.b, &s.conf, 1, s.now, s.now + 20, KX_BREAKER_ANSWERED);
    s.now += 20;
    assert_int_equal(admit(&s), KX_BREAKER_PASS);

    /* the 30 are still there */

    s.now += 3000;
    assert_int_equal(kx_breaker_calls(&s.b, s.now), 30);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);
}


static void
test_busy(void **state)
{
    site_t  s;

    site_init(&s);
    s.conf.max_calls = 5;

    begin(&s, 4);
    kx_breaker_begin(&s.b, 0, s.now);

    assert_int_equal(kx_breaker_calls(&s.b, s.now), 5);
    assert_int_equal(admit(&s), KX_BREAKER_BUSY);
    assert_false(kx_breaker_allows(&s.b, &s.conf, s.now));
    assert_int_equal(s.b.busy, 1);
    assert_int_equal(s.b.refused, 0);

    end(&s, 1, KX_BREAKER_ANSWERED);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);

    s.conf.max_calls = 0;
    begin(&s, 100);
    s.conf.off = 1;
    s.now += 1000;
    assert_int_equal(admit(&s), KX_BREAKER_PASS);
}


/* a worker was killed with its calls */

static void
test_dead_worker(void **state)
{
    site_t  s;

    site_init(&s);
    s.conf.max_calls = 20;

    begin(&s, 20);
    assert_int_equal(admit(&s), KX_BREAKER_BUSY);

    /* the next one has come */

    kx_breaker_restart(&s.b, s.now);
    s.conf.max_calls = 0;
    s.now += 2000;
    assert_int_equal(admit(&s), KX_BREAKER_PASS);
    s.conf.max_calls = 20;
    assert_int_equal(admit(&s), KX_BREAKER_BUSY);

    s.now += KX_BREAKER_SPAN;
    assert_int_equal(kx_breaker_calls(&s.b, s.now), 0);
    assert_int_equal(admit(&s), KX_BREAKER_PASS);

    /* what ends when it is not counted any more */

    end(&s, 20, KX_BREAKER_ANSWERED);
    assert_int_equal(kx_breaker_calls(&s.b, s.now), 0);

    /* and with a probe */

    calls(&s, 10, 1, KX_BREAKER_FAILED);
    s.now += 1000;
    assert_int_equal(admit(&s), KX_BREAKER_PROBE);
    assert_int_equal(admit(&s), KX_BREAKER_OPEN);
    s.now += 1000;
    assert_int_equal(admit(&s), KX_BREAKER_PROBE);
}


static void
test_off(void **state)
{
    site_t  s;

    site_init(&s);
    s.conf.off = 1;

    calls(&s, 100, 1, KX_BREAKER_FAILED);
    begin(&s, 100);
    s.now += 5000;
    end(&s, 50, KX_BREAKER_LEFT);

    assert_int_equal(admit(&s), KX_BREAKER_PASS);
    assert_true(kx_breaker_allows(&s.b, &s.conf, s.now));
    assert_int_equal(s.b.opened, 0);
}


/* other calls than preloads are counted, and say nothing */

static void
test_other_calls(void **state)
{
    site_t    s;
    unsigned  i;

    site_init(&s);

    for (i = 0; i < 100; i++) {
        kx_breaker_begin(&s.b, 0, s.now);
        kx_breaker_end(&s.b, &s.conf, 0, s.now, s.now, KX_BREAKER_FAILED);
        kx_breaker_begin(&s.b, 0, s.now);
    }

    s.now += 2000;

    assert_int_equal(admit(&s), KX_BREAKER_PASS);
    assert_int_equal(kx_breaker_calls(&s.b, s.now), 100);
}


/* whatever is found in the memory: soon it works, both ways */

static void
test_damage(void **state)
{
    site_t          s;
    size_t          i;
    unsigned        round, n;
    unsigned char  *p;

    srand(1);

    for (round = 0; round < 2000; round++) {
        site_init(&s);

        p = (unsigned char *) &s.b;

        for (i = 0; i < sizeof(kx_breaker_t); i++) {
            p[i] = (round == 0) ? 0xff : (unsigned char) (rand() >> 5);
        }

        if (round & 1) {

            /* of a time that is near */

            for (i = 0; i < KX_BREAKER_STARTS; i++) {
                s.b.asked[i] = ((s.now / KX_BREAKER_PART - i % 100) << 32)
                               | (unsigned) rand();
                s.b.calls[i] = s.b.asked[i];
            }

            s.b.state = ((s.now + (unsigned) rand()) << 2) | 3;
        }

        s.conf.max_calls = (round & 2) ? 50 : 0;

        for (n = 0; n < 30; n++) {
            (void) admit(&s);
            (void) kx_breaker_allows(&s.b, &s.conf, s.now);
            (void) kx_breaker_state(&s.b, &s.conf, s.now);
            begin(&s, 1);
            s.now += 700;
            end(&s, 1, KX_BREAKER_ANSWERED);
        }

        /* it has answered for longer than anything is remembered */

        assert_int_equal(admit(&s), KX_BREAKER_PASS);
        assert_int_equal(kx_breaker_calls(&s.b, s.now), 0);

        calls(&s, 10, 1, KX_BREAKER_FAILED);
        assert_int_equal(admit(&s), KX_BREAKER_OPEN);
        s.now += 1000;
        assert_int_equal(admit(&s), KX_BREAKER_PROBE);
        calls(&s, 1, 1, KX_BREAKER_ANSWERED);
        assert_int_equal(admit(&s), KX_BREAKER_PASS);
    }
}


/* nothing is lost between workers */

static void *
worker(void *data)
{
    site_t    *s = data;
    unsigned   i;

    for (i = 0; i < ROUNDS; i++) {
        kx_breaker_begin(&s->b, 1, s->now);

        if (kx_breaker_admit(&s->b, &s->conf, s->now) != KX_BREAKER_PASS) {
            return s;
        }

        if (i % 2) {
            kx_breaker_end(&s->b, &s->conf, 1, s->now, s->now,
                           KX_BREAKER_ANSWERED);
        }
    }

    return NULL;
}


static void
test_workers(void **state)
{
    void       *rc;
    site_t      s;
    unsigned    i;
    pthread_t   threads[THREADS];

    site_init(&s);

    for (i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, worker, &s), 0);
    }

    for (i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], &rc), 0);
        assert_null(rc);
    }

    assert_int_equal(kx_breaker_calls(&s.b, s.now), THREADS * ROUNDS / 2);
}


/* only one of them gets the probe */

static void *
prober(void *data)
{
    site_t  *s = data;

    return kx_breaker_admit(&s->b, &s->conf, s->now) == KX_BREAKER_PROBE
           ? s : NULL;
}


static void
test_one_probe(void **state)
{
    void       *rc;
    site_t      s;
    unsigned    i, n, round;
    pthread_t   threads[THREADS];

    site_init(&s);
    calls(&s, 10, 1, KX_BREAKER_FAILED);

    for (round = 0; round < 50; round++) {
        s.now += 1000;
        n = 0;

        for (i = 0; i < THREADS; i++) {
            assert_int_equal(pthread_create(&threads[i], NULL, prober, &s),
                             0);
        }

        for (i = 0; i < THREADS; i++) {
            assert_int_equal(pthread_join(threads[i], &rc), 0);
            n += (rc != NULL);
        }

        assert_int_equal(n, 1);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_new),
        cmocka_unit_test(test_failures_in_a_row),
        cmocka_unit_test(test_share_of_failures),
        cmocka_unit_test(test_few_failures),
        cmocka_unit_test(test_probes),
        cmocka_unit_test(test_luck_from_before),
        cmocka_unit_test(test_hang),
        cmocka_unit_test(test_hang_at_once),
        cmocka_unit_test(test_hang_of_short_chats),
        cmocka_unit_test(test_slow_answers),
        cmocka_unit_test(test_slow_at_first),
        cmocka_unit_test(test_behind),
        cmocka_unit_test(test_quiet_times),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_dead_worker),
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_other_calls),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_workers),
        cmocka_unit_test(test_one_probe),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
