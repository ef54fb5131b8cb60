/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Frames of one shape: what is compared must be as good as what is read.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "shape.h"


static kx_shape_t  shape;

static const kx_str_t  noise[] = {
    kx_string("n"),
    kx_string("obfuscation"),
    kx_string("")
};


/* text is what stands between the first "<" and ">" of data */

static void
learn_frame(const char *before, const char *data, const char *after)
{
    char      frame[KX_SHAPE_SIZE * 4];
    kx_str_t  f, d, text;

    f.data = (unsigned char *) frame;
    f.len = (size_t) sprintf(frame, "%s%s%s", before, data, after);

    d.data = f.data + strlen(before);
    d.len = strlen(data);

    text.data = (unsigned char *) strchr(frame, '<');
    assert_non_null(text.data);
    text.len = (size_t) (strchr(frame, '>') + 1 - (char *) text.data);

    kx_shape_learn(&shape, &f, &d, &text, noise);
}


static void
learn(const char *data)
{
    learn_frame("", data, "");
}


static void
assert_matches(const char *data, const char *text)
{
    kx_str_t              raw;
    const unsigned char  *p, *last;

    p = (const unsigned char *) data;
    last = p + strlen(data);

    if (kx_shape_match(&shape, p, last, &raw) != last) {
        fail_msg("does not match: %s", data);
    }

    assert_int_equal(raw.len, strlen(text));
    assert_memory_equal(raw.data, text, raw.len);
}


static void
assert_differs(const char *data)
{
    size_t          len;
    kx_str_t        raw;
    unsigned char  *p;

    /* in memory of its own, so that nothing is read behind it */

    len = strlen(data);

    p = malloc(len ? len : 1);
    assert_non_null(p);
    memcpy(p, data, len);

    if (kx_shape_match(&shape, p, p + len, &raw) != NULL) {
        fail_msg("matches: %s", data);
    }

    free(p);
}


static void
test_text(void **state)
{
    (void) state;

    learn("{\"a\":[1,{\"b\":null}],\"content\":\"<x>\",\"c\":\"d\"}");

    assert_int_equal(shape.n, 1);

    assert_matches("{\"a\":[1,{\"b\":null}],\"content\":\"\",\"c\":\"d\"}",
                   "");
    assert_matches("{\"a\":[1,{\"b\":null}],\"content\":\"hi\",\"c\":\"d\"}",
                   "hi");
    assert_matches("{\"a\":[1,{\"b\":null}],\"content\":\"\\\"\\\\\","
                   "\"c\":\"d\"}", "\\\"\\\\");
}


static void
test_what_differs(void **state)
{
    size_t  i;

    static const char  *others[] = {
        "",
        "{",
        "{\"content\":\"a\",\"finish\":null",
        "{\"content\":\"a\",\"finish\":\"stop\"}",
        "{\"content\":\"a\" ,\"finish\":null}",
        "{\"content\":\"a,\"finish\":null}",
        "{\"content\":\"a\\\",\"finish\":null}",
        "{\"content\":\"a\\",
        "{\"content\":\"a",
        "{\"content\":\"a\nb\",\"finish\":null}",
        "{\"content\":\"a\\\nb\",\"finish\":null}",
        "{\"content\":\"0123456789abcdef0123456789\r\",\"finish\":null}",
        "{\"content\":null,\"finish\":null}",
        "{\"content\":a,\"finish\":null}",
        "{\"Content\":\"a\",\"finish\":null}",
        "{\"content\":\"a\",\"tools\":[{}],\"finish\":null}",
        "{\"content\":\"a\",\"finish\":null,\"content\":\"b\"}"
    };

    (void) state;

    learn("{\"content\":\"<x>\",\"finish\":null}");
    assert_matches("{\"content\":\"a\",\"finish\":null}", "a");

    for (i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        assert_differs(others[i]);
    }
}


/* what is around the object counts, what comes after the frame does not */

static void
test_frame(void **state)
{
    kx_str_t     raw;
    const char  *p;

    (void) state;

    learn_frame("event: delta\ndata: ", "{\"t\":\"<x>\"}", "\n\n");

    p = "event: delta\ndata: {\"t\":\"a\"}\n\ndata: {}\n\n";

    assert_ptr_equal(kx_shape_match(&shape, (const unsigned char *) p,
                                    (const unsigned char *) p + strlen(p),
                                    &raw),
                     p + strlen("event: delta\ndata: {\"t\":\"a\"}\n\n"));

    assert_matches("event: delta\ndata: {\"t\":\"0123456789abcde\\\"0123\"}"
                   "\n\n", "0123456789abcde\\\"0123");

    assert_differs("event: delta\ndata: {\"t\":\"a\"}\n");
    assert_differs("event: delta\ndata: {\"t\":\"a\"}\r\n\r\n");
    assert_differs("event: delta\ndata: {\"t\":\"a\"}\ndata: b\n\n");
    assert_differs("event: deltb\ndata: {\"t\":\"a\"}\n\n");
    assert_differs("event: delta\ndata:{\"t\":\"a\"}\n\n");
    assert_differs("data: {\"t\":\"a\"}\n\n");
}


static void
test_noise(void **state)
{
    (void) state;

    learn("{\"n\":7,\"t\":\"<x>\",\"obfuscation\":\"abc\",\"m\":7}");
    assert_int_equal(shape.n, 3);

    assert_matches("{\"n\":0,\"t\":\"a\",\"obfuscation\":\"\",\"m\":7}", "a");
    assert_matches("{\"n\":1234567890123,\"t\":\"a\",\"obfuscation\":"
                   "\"\\u0022\\\"\",\"m\":7}", "a");

    assert_differs("{\"n\":7,\"t\":\"a\",\"obfuscation\":\"\",\"m\":8}");
    assert_differs("{\"n\":,\"t\":\"a\",\"obfuscation\":\"\",\"m\":7}");
    assert_differs("{\"n\":01,\"t\":\"a\",\"obfuscation\":\"\",\"m\":7}");
    assert_differs("{\"n\":1.5,\"t\":\"a\",\"obfuscation\":\"\",\"m\":7}");
    assert_differs("{\"n\":-1,\"t\":\"a\",\"obfuscation\":\"\",\"m\":7}");
    assert_differs("{\"n\":\"7\",\"t\":\"a\",\"obfuscation\":\"\",\"m\":7}");
    assert_differs("{\"n\":7,\"t\":\"a\",\"obfuscation\":1,\"m\":7}");
}


/* what cannot be learned leaves nothing behind of an earlier shape */

static void
test_not_learned(void **state)
{
    char    *big;
    size_t   i;

    static const char  *bad[] = {
        "{\"t\":\"<x>\"",
        "{\"t\":\"<x>\"}}",
        "{\"t\":\"y<x>\"}",
        "{\"n\":1,\"n\":1,\"n\":1,\"n\":1,\"n\":1,\"n\":1,\"n\":1,\"n\":1,"
        "\"t\":\"<x>\"}",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"<x>\"]]]]]]]]]]]]]]]]]]]]"
        "]]]]]]]]]]]]]]]]]]]]"
    };

    (void) state;

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        learn("{\"t\":\"<x>\"}");
        assert_int_equal(shape.n, 1);

        learn(bad[i]);
        assert_int_equal(shape.n, 0);
        assert_differs("{\"t\":\"a\"}");
    }

    /* as large as it may be, and one byte more */

    big = malloc(KX_SHAPE_SIZE + 100);
    assert_non_null(big);

    for (i = 0; i < 2; i++) {
        sprintf(big, "{\"t\":\"<x>\",\"a\":\"%*s\"}",
                (int) (KX_SHAPE_SIZE - 15 + i), "");

        learn(big);
        assert_int_equal(shape.n, i == 0);
    }

    free(big);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_what_differs),
        cmocka_unit_test(test_frame),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_not_learned)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
