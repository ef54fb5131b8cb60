/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * JSON that is written must be what cJSON would write, and read.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "json_write.h"
#include "tree.h"


#define FFFD  "\xef\xbf\xbd"


static uint32_t       seed;
static unsigned long  allocations, allowed;


static uint32_t
number(uint32_t n)
{
    seed = seed * 1103515245 + 12345;

    return (seed >> 8) % n;
}


static void *
failing_malloc(size_t size)
{
    return (allocations++ < allowed) ? malloc(size) : NULL;
}


/* a string by itself, out of memory that has not a byte more */

static char *
string(const unsigned char *p, size_t len, size_t max)
{
    char              *text;
    size_t             n;
    kx_str_t           s;
    kx_json_writer_t   w;

    s.len = len;
    s.data = malloc(len ? len : 1);
    assert_non_null(s.data);
    memcpy(s.data, p, len);

    kx_json_write_init(&w, 0);
    kx_json_write_string(&w, NULL, &s, max);
    text = kx_json_write_done(&w, &n);

    assert_non_null(text);
    assert_int_equal(strlen(text), n);

    free(s.data);

    return text;
}


static void
assert_string(const char *s, size_t len, size_t max, const char *expected)
{
    char  *text;

    text = string((const unsigned char *) s, len, max);
    assert_string_equal(text, expected);
    cJSON_free(text);
}


static void
test_structure(void **state)
{
    char              *text;
    size_t             len;
    kx_str_t           s = kx_string("b");
    kx_json_writer_t   w;

    (void) state;

    kx_json_write_init(&w, 10);

    kx_json_write_open(&w, NULL, '{');
    kx_json_write_string(&w, "a", &s, 10);
    kx_json_write_open(&w, "o", '{');
    kx_json_write_close(&w, '}');
    kx_json_write_open(&w, "l", '[');
    kx_json_write_number(&w, NULL, 1);
    kx_json_write_number(&w, NULL, 2.625);
    kx_json_write_open(&w, NULL, '[');
    kx_json_write_close(&w, ']');
    kx_json_write_string(&w, NULL, &s, 10);
    kx_json_write_close(&w, ']');
    kx_json_write_bool(&w, "t", 1);
    kx_json_write_bool(&w, "f", 0);
    kx_json_write_number(&w, "n", 4294967296.0);
    kx_json_write_number(&w, "m", 4294967295.0);
    kx_json_write_number(&w, "z", 0);
    kx_json_write_number(&w, "e", -1.5e300);
    kx_json_write_close(&w, '}');

    text = kx_json_write_done(&w, &len);

    assert_string_equal(text, "{\"a\":\"b\",\"o\":{},\"l\":[1,2.625,[],\"b\"],"
                              "\"t\":true,\"f\":false,\"n\":4294967296,"
                              "\"m\":4294967295,\"z\":0,\"e\":-1.5e+300}");
    assert_int_equal(len, strlen(text));

    cJSON_free(text);
}


static void
test_strings(void **state)
{
    (void) state;

    assert_string("", 0, 10, "\"\"");
    assert_string("a\"b\\c/", 6, 10, "\"a\\\"b\\\\c/\"");
    assert_string("\b\t\n\f\r\x01\x1f\x7f", 8, 10,
                  "\"\\b\\t\\n\\f\\r\\u0001\\u001f\x7f\"");
    assert_string("a\0b", 3, 10, "\"a" FFFD "b\"");
    assert_string("a\xff\xe2\x82", 4, 10, "\"a" FFFD FFFD "\"");
    assert_string("\xe2\x82\xac\xf0\x9f\x98\x80", 7, 10,
                  "\"\xe2\x82\xac\xf0\x9f\x98\x80\"");
}


static void
test_cuts(void **state)
{
    (void) state;

    assert_string("abc", 3, 0, "\"\"");
    assert_string("abc", 3, 2, "\"ab\"");
    assert_string("a\n\n", 3, 2, "\"a\\n\"");
    assert_string("a\xe2\x82\xac", 4, 3, "\"a\"");
    assert_string("a\xe2\x82\xac", 4, 4, "\"a\xe2\x82\xac\"");
    assert_string("a\xff" "b", 3, 3, "\"a\"");
    assert_string("0123456789abcdefghijklmnop", 26, 17,
                  "\"0123456789abcdefg\"");
}


/* the same as cJSON has it, for texts of all kinds and lengths */

static void
test_like_cjson(void **state)
{
    char           *text, *clean, *expected;
    cJSON          *item;
    size_t          i, len, n, max;
    kx_str_t        s;
    unsigned        round, kind, cut;
    unsigned char   buf[300];

    (void) state;

    for (round = 0; round < 20000; round++) {
        seed = round;
        len = number(sizeof(buf));
        kind = number(5);

        for (i = 0; i < len; i++) {
            buf[i] = (unsigned char) ('a' + number(26));

            if (kind && number(kind * 10) == 0) {
                buf[i] = (unsigned char) number(256);
            }
        }

        max = number(2) ? sizeof(buf) * 3 : number(sizeof(buf));

        s.len = len;
        s.data = buf;

        clean = kx_tree_text(&s, max, &n, &cut);
        assert_non_null(clean);

        if (!cut) {
            assert_int_equal(kx_json_write_len(&s), n);

        } else {
            assert_true(kx_json_write_len(&s) > n);
        }

        item = cJSON_CreateString(clean);
        expected = cJSON_PrintUnformatted(item);

        text = string(buf, len, max);
        assert_string_equal(text, expected);

        cJSON_free(text);
        cJSON_free(expected);
        cJSON_free(clean);
        cJSON_Delete(item);
    }
}


static void
test_no_memory(void **state)
{
    char              *text;
    size_t             len;
    kx_str_t           s = kx_string("\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n");
    cJSON_Hooks        hooks;
    kx_json_writer_t   w;

    (void) state;

    hooks.malloc_fn = failing_malloc;
    hooks.free_fn = free;
    cJSON_InitHooks(&hooks);

    for (allowed = 0; allowed < 100; allowed++) {
        allocations = 0;

        kx_json_write_init(&w, 1);
        kx_json_write_open(&w, NULL, '{');
        kx_json_write_string(&w, "a", &s, 100);
        kx_json_write_number(&w, "b", 1);
        kx_json_write_bool(&w, "c", 1);
        kx_json_write_close(&w, '}');

        text = kx_json_write_done(&w, &len);

        if (text) {
            break;
        }
    }

    assert_true(allowed > 2);
    assert_int_equal(len, 23 + 2 * s.len);

    cJSON_free(text);
    cJSON_InitHooks(NULL);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_structure),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_like_cjson),
        cmocka_unit_test(test_no_memory)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
