/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The memory of which conversation an answer belongs to.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "responses.h"


#define SET    4
#define SETS   8
#define N      (SET * SETS)
#define IDLE   1000


static kx_response_t  table[N + 1];


static int
setup(void **state)
{
    memset(table, 0, sizeof(table));

    return 0;
}


static void
put(size_t n, uint64_t key, unsigned char id, uint64_t now)
{
    unsigned char  conversation[KX_ID_LEN];

    memset(conversation, id, KX_ID_LEN);

    kx_responses_put(table, n, key, conversation, now);
}


/* the conversation, or -1 */

static int
get(size_t n, uint64_t key, uint64_t now)
{
    unsigned       i;
    unsigned char  conversation[KX_ID_LEN];

    memset(conversation, 0xee, KX_ID_LEN);

    if (kx_responses_get(table, n, key, conversation, now, IDLE) != KX_OK) {

        for (i = 0; i < KX_ID_LEN; i++) {
            assert_int_equal(conversation[i], 0xee);
        }

        return -1;
    }

    for (i = 1; i < KX_ID_LEN; i++) {
        assert_int_equal(conversation[i], conversation[0]);
    }

    return conversation[0];
}


static void
test_put_get(void **state)
{
    uint64_t  key;

    assert_int_equal(get(N, 7, 0), -1);
    put(N, 7, 1, 0);
    assert_int_equal(get(N, 7, 0), 1);
    assert_int_equal(get(N, 7 + SETS, 0), -1);

    /* a set holds as many as it has places */

    for (key = 100; key < 100 + N; key++) {
        put(N, key, (unsigned char) key, 10);
    }

    for (key = 100; key < 100 + N; key++) {
        assert_int_equal(get(N, key, 10), (unsigned char) key);
    }

    /* the same answer again */

    put(N, 100, 3, 20);
    assert_int_equal(get(N, 100, 20), 3);
    assert_int_equal(get(N, 100 + SETS, 20), 100 + SETS);

    put(N, UINT64_MAX, 9, 30);
    assert_int_equal(get(N, UINT64_MAX, 30), 9);
}


static void
test_oldest_goes(void **state)
{
    unsigned  i;
    uint64_t  key;

    static const uint64_t  used[] = { 50, 20, 40, 30 };

    for (i = 0; i < SET; i++) {
        put(N, 5 + i * SETS, (unsigned char) i, used[i]);
    }

    /* one of another set harms nobody */

    put(N, 6, 77, 60);

    for (i = 0; i < SET; i++) {
        assert_int_equal(get(N, 5 + i * SETS, 60), i);
    }

    put(N, 5 + 10 * SETS, 10, 60);

    assert_int_equal(get(N, 5 + 10 * SETS, 60), 10);
    assert_int_equal(get(N, 5 + 1 * SETS, 60), -1);
    assert_int_equal(get(N, 5 + 3 * SETS, 60), 3);

    /* an update makes an entry young */

    put(N, 5 + 3 * SETS, 33, 70);
    put(N, 5 + 11 * SETS, 11, 70);

    assert_int_equal(get(N, 5 + 2 * SETS, 70), -1);
    assert_int_equal(get(N, 5 + 3 * SETS, 70), 33);
    assert_int_equal(get(N, 5 + 0 * SETS, 70), 0);

    /* always the last four of a set */

    for (key = 20; key < 60; key++) {
        put(N, 5 + key * SETS, (unsigned char) key, 100 + key);

        if (key >= 23) {
            assert_int_equal(get(N, 5 + (key - 3) * SETS, 100 + key),
                             key - 3);
        }

        assert_int_equal(get(N, 5 + (key - 4) * SETS, 100 + key), -1);
    }
}


static void
test_idle(void **state)
{
    put(N, 1, 1, 5000);

    assert_int_equal(get(N, 1, 5000), 1);
    assert_int_equal(get(N, 1, 5000 + IDLE), 1);
    assert_int_equal(get(N, 1, 5001 + IDLE), -1);
    assert_int_equal(get(N, 1, UINT64_MAX), -1);

    /* another worker's clock may be behind */

    assert_int_equal(get(N, 1, 4000), 1);
    assert_int_equal(get(N, 1, 0), 1);
}


static void
test_key_zero(void **state)
{
    assert_int_equal(get(N, 0, 0), -1);

    put(N, 0, 5, 0);
    assert_int_equal(get(N, 0, 0), 5);

    put(N, 0, 6, 0);
    assert_int_equal(get(N, 0, 0), 6);
    assert_int_equal(get(N, SETS, 0), -1);
}


static void
test_sizes(void **state)
{
    size_t    n;
    uint64_t  key;

    /* too small for a set */

    for (n = 0; n < SET; n++) {
        put(n, 1, 1, 0);
        assert_int_equal(get(n, 1, 0), -1);
        assert_int_equal(table[0].key, 0);
    }

    /* what is left over of the memory is not touched */

    for (key = 1; key < 100; key++) {
        put(SET * 2 + 3, key, 1, key);
        assert_int_equal(get(SET * 2 + 3, key, key), 1);
    }

    for (n = SET * 2; n <= N; n++) {
        assert_int_equal(table[n].key, 0);
        assert_int_equal(table[n].used, 0);
    }
}


/* a process has died after any of the writes of a put */

static void
test_torn(void **state)
{
    unsigned        i;
    kx_response_t  *set;

    set = &table[2 * SET];

    for (i = 0; i < SET; i++) {
        put(N, 2 + i * SETS, (unsigned char) (10 + i), 100 + i);
    }

    /* key, time and half of the conversation are gone */

    set[1].key = 0;
    set[1].used = 999;
    memset(set[1].conversation, 0xdd, KX_ID_LEN / 2);

    assert_int_equal(get(N, 2 + SETS, 200), -1);
    assert_int_equal(get(N, 0, 200), -1);
    assert_int_equal(get(N, 2, 200), 10);

    /* it is free, and the first to be taken */

    put(N, 2 + 20 * SETS, 20, 200);
    assert_int_equal(get(N, 2 + 20 * SETS, 200), 20);
    assert_int_equal(get(N, 2, 200), 10);
    assert_int_equal(get(N, 2 + 2 * SETS, 200), 12);
    assert_int_equal(get(N, 2 + 3 * SETS, 200), 13);

    /* two of them, and one is known already */

    set[0].key = 0;
    set[2].key = 0;

    put(N, 2 + 3 * SETS, 33, 210);
    assert_int_equal(get(N, 2 + 3 * SETS, 210), 33);
    assert_int_equal(set[0].key, 0);
    assert_int_equal(set[2].key, 0);

    put(N, 2, 40, 210);
    put(N, 2 + SETS, 41, 210);
    assert_int_equal(get(N, 2, 210), 40);
    assert_int_equal(get(N, 2 + SETS, 210), 41);
    assert_int_equal(get(N, 2 + 3 * SETS, 210), 33);
    assert_int_equal(get(N, 2 + 20 * SETS, 210), 20);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup(test_put_get, setup),
        cmocka_unit_test_setup(test_oldest_goes, setup),
        cmocka_unit_test_setup(test_idle, setup),
        cmocka_unit_test_setup(test_key_zero, setup),
        cmocka_unit_test_setup(test_sizes, setup),
        cmocka_unit_test_setup(test_torn, setup)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
