/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "text.h"


#define NELTS(a)  (sizeof(a) / sizeof((a)[0]))


typedef struct {
    const char     *text;
    const char     *canonical;
    const char     *visible;
} case_t;


typedef struct {
    size_t          len;
    unsigned        calls;
    unsigned char   data[8192];
} collect_t;


static void collect(void *data, const unsigned char *p, size_t len);
static void feed(kx_text_t *t, const char *p, size_t len);
static void check(const char *text, size_t len, const size_t *ends,
    size_t nends, kx_text_form_e form, const char *expected);


static const case_t  cases[] = {
    { "", "", "" },
    { "a", "a", "a" },
    { "Hello, world", "Hello, world", "Hello, world" },

    /* white space */

    { " ", "", " " },
    { " \t\n\v\f\r", "", " \t\n\v\f\n" },
    { " a ", "a", " a " },
    { "\n\na\n\n", "a", "\n\na\n\n" },
    { "a b", "a b", "a b" },
    { "a  b", "a b", "a  b" },
    { "a\tb\nc\vd\fe\rf", "a b c d e f", "a\tb\nc\vd\fe\nf" },
    { "a \n\t b", "a b", "a \n\t b" },
    { "a b c d e f g h i j", "a b c d e f g h i j", "a b c d e f g h i j" },
    { "word1 word2 word3  word4", "word1 word2 word3 word4",
      "word1 word2 word3  word4" },
    { "1234567  9", "1234567 9", "1234567  9" },
    { "12345678  0", "12345678 0", "12345678  0" },
    { "123456 \n9", "123456 9", "123456 \n9" },
    { "a\x01" "b\x1f c", "a\x01" "b\x1f c", "a\x01" "b\x1f c" },

    /* no white space: U+00A0, U+0085, U+2028, U+3000 */

    { "a\xc2\xa0\xc2\xa0" "b\xc2\x85\xc2\x85",
      "a\xc2\xa0\xc2\xa0" "b\xc2\x85\xc2\x85",
      "a\xc2\xa0\xc2\xa0" "b\xc2\x85\xc2\x85" },
    { "\xe2\x80\xa8\xe3\x80\x80x", "\xe2\x80\xa8\xe3\x80\x80x",
      "\xe2\x80\xa8\xe3\x80\x80x" },

    /* line ends */

    { "a\r\nb\rc\nd", "a b c d", "a\nb\nc\nd" },
    { "\r\r\n\n\r", "", "\n\n\n\n" },
    { "a\r", "a", "a\n" },
    { "a\r\n", "a", "a\n" },
    { "a\r\n\r\nb", "a b", "a\n\nb" },
    { "a\n\rb", "a b", "a\n\nb" },

    /* blocks */

    { "<think>x</think>", "", "" },
    { "<think></think>a", "a", "a" },
    { "<think>x</think>a", "a", "a" },
    { "<think>\nx\n</think>\n\n a b", "a b", "a b" },
    { "<think>x</think>\r\n\r\na\r\nb", "a b", "a\nb" },
    { "<think>x</think> \n<think>y</think>\n a", "a", "a" },
    { "a<think>x</think>b", "ab", "ab" },
    { "a <think>x</think> b", "a b", "a  b" },
    { "a\n<think>x</think>\n b", "a b", "a\n\n b" },
    { " <think>x</think> b", "b", "  b" },
    { "a\r<think>x</think>\nb", "a b", "a\nb" },
    { "<details type=\"reasoning\" done=\"true\">\n<summary>T</summary>\n"
      "x\n</details>\nHi", "Hi", "Hi" },
    { "<details type=\"reasoning\">x</details>a", "a", "a" },
    { "<details type=\"reasoning\"\n>x</details>a", "a", "a" },
    { "a<think>x</think>b<details type=\"reasoning\">y</details>c"
      "<think>z</think>", "abc", "abc" },

    /* what ends a block, and what does not */

    { "<think>a<think>b</think>c</think>d", "c</think>d", "c</think>d" },
    { "<think>a</details>b</think>c", "c", "c" },
    { "<details type=\"reasoning\">a</think>b</details>c", "c", "c" },
    { "<think>a<</think>b", "b", "b" },
    { "<think>a</</think>b", "b", "b" },
    { "<think>a</thin</think>b", "b", "b" },
    { "<think></think</think>b", "b", "b" },
    { "<think>a</thinks</think>b", "b", "b" },
    { "<think>a</ think></think>b", "b", "b" },

    /* left open */

    { "a<think>b", "a", "a" },
    { "a <think>b c </thin", "a", "a " },
    { "a<think>", "a", "a" },
    { "<details type=\"reasoning\"", "", "" },
    { "<think>x</think>\n ", "", "" },

    /* no blocks */

    { "<", "<", "<" },
    { "a<", "a<", "a<" },
    { "a <", "a <", "a <" },
    { "<thin", "<thin", "<thin" },
    { "<think", "<think", "<think" },
    { "<think >x</think >", "<think >x</think >", "<think >x</think >" },
    { "<thinking>x", "<thinking>x", "<thinking>x" },
    { "<Think>x</Think>", "<Think>x</Think>", "<Think>x</Think>" },
    { "</think>x", "</think>x", "</think>x" },
    { "< think>x", "< think>x", "< think>x" },
    { "<details>x</details>", "<details>x</details>",
      "<details>x</details>" },
    { "<details type=\"other\">x", "<details type=\"other\">x",
      "<details type=\"other\">x" },
    { "<details  type=\"reasoning\">x", "<details type=\"reasoning\">x",
      "<details  type=\"reasoning\">x" },
    { "<details ", "<details", "<details " },
    { "<details \r\n\r\n b", "<details b", "<details \n\n b" },
    { "<details type=\"reasonin", "<details type=\"reasonin",
      "<details type=\"reasonin" },
    { "<t <d <", "<t <d <", "<t <d <" },
    { "<td>x<tr><div>", "<td>x<tr><div>", "<td>x<tr><div>" },
    { "a<b && c<d", "a<b && c<d", "a<b && c<d" },

    /* a tag begun anew */

    { "<<think>x</think>a", "<a", "<a" },
    { "<thin<think>x</think>a", "<thina", "<thina" },
    { "<details <think>x</think>a", "<details a", "<details a" },
    { "<th<details type=\"reasoning\">x</details>a", "<tha", "<tha" },
    { "<details type=<details type=\"reasoning\">x</details>",
      "<details type=", "<details type=" },

    /* what is left when a block is out is not looked at again */

    { "<th<think>x</think>ink>a", "<think>a", "<think>a" }
};


static void
collect(void *data, const unsigned char *p, size_t len)
{
    collect_t  *c = data;

    assert_true(len > 0);
    assert_true(len <= sizeof(c->data) - c->len);

    memcpy(c->data + c->len, p, len);
    c->len += len;
    c->calls++;
}


/* from memory that ends with the text and is gone after the call */

static void
feed(kx_text_t *t, const char *p, size_t len)
{
    unsigned char  *copy;

    copy = malloc(len ? len : 1);
    assert_non_null(copy);

    memcpy(copy, p, len);
    kx_text_feed(t, copy, len);

    free(copy);
}


static void
check(const char *text, size_t len, const size_t *ends, size_t nends,
    kx_text_form_e form, const char *expected)
{
    size_t     i, start;
    collect_t  c;
    kx_text_t  t;

    c.len = 0;
    start = 0;

    kx_text_init(&t, form, collect, &c);

    for (i = 0; i < nends; i++) {
        feed(&t, text + start, ends[i] - start);
        start = ends[i];
    }

    feed(&t, text + start, len - start);
    kx_text_finish(&t);

    if (c.len != strlen(expected) || memcmp(c.data, expected, c.len) != 0) {
        fail_msg("form %d of \"%s\": \"%.*s\" instead of \"%s\"", form, text,
                 (int) c.len, c.data, expected);
    }

    assert_int_equal(t.out, c.len);
}


static void
test_whole(void **state)
{
    size_t  i, len;

    for (i = 0; i < NELTS(cases); i++) {
        len = strlen(cases[i].text);

        check(cases[i].text, len, NULL, 0, KX_TEXT_CANONICAL,
              cases[i].canonical);
        check(cases[i].text, len, NULL, 0, KX_TEXT_VISIBLE,
              cases[i].visible);
    }
}


static void
test_splits(void **state)
{
    size_t  i, n, len, ends[2], bytes[256];

    for (i = 0; i < NELTS(cases); i++) {
        len = strlen(cases[i].text);

        for (ends[0] = 0; ends[0] <= len; ends[0]++) {
            for (ends[1] = ends[0]; ends[1] <= len; ends[1]++) {
                check(cases[i].text, len, ends, 2, KX_TEXT_CANONICAL,
                      cases[i].canonical);
                check(cases[i].text, len, ends, 2, KX_TEXT_VISIBLE,
                      cases[i].visible);
            }
        }
    }

    for (i = 0; i < NELTS(cases); i++) {
        len = strlen(cases[i].text);
        assert_true(len < NELTS(bytes));

        for (n = 0; n < len; n++) {
            bytes[n] = n + 1;
        }

        check(cases[i].text, len, bytes, len, KX_TEXT_CANONICAL,
              cases[i].canonical);
        check(cases[i].text, len, bytes, len, KX_TEXT_VISIBLE,
              cases[i].visible);
    }
}


/* white space at each place of a word of eight bytes */

static void
test_words(void **state)
{
    char    text[64], expected[64], *p;
    size_t  i, n, gap;

    static const char  *gaps[] = { " ", "  ", "\n", "\t ", " \r\n" };

    for (gap = 0; gap < NELTS(gaps); gap++) {
        for (i = 1; i < 24; i++) {
            for (n = 1; n < 12; n++) {
                memset(text, 'x', i);
                p = stpcpy(text + i, gaps[gap]);
                memset(p, 'y', n);
                p[n] = '\0';

                memset(expected, 'x', i);
                expected[i] = ' ';
                memset(expected + i + 1, 'y', n);
                expected[i + 1 + n] = '\0';

                check(text, strlen(text), NULL, 0, KX_TEXT_CANONICAL,
                      expected);
            }
        }
    }
}


static void
test_binary(void **state)
{
    size_t         i;
    kx_text_t      t;
    collect_t      c;
    unsigned char  p[256];

    for (i = 0; i < sizeof(p); i++) {
        p[i] = (unsigned char) i;
    }

    c.len = 0;
    kx_text_init(&t, KX_TEXT_VISIBLE, collect, &c);
    kx_text_feed(&t, p, sizeof(p));
    kx_text_finish(&t);

    p['\r'] = '\n';
    assert_int_equal(c.len, 256);
    assert_memory_equal(c.data, p, 256);

    /* 9 to 13 become one space, the space is one already */

    c.len = 0;
    kx_text_init(&t, KX_TEXT_CANONICAL, collect, &c);
    kx_text_feed(&t, p, sizeof(p));
    kx_text_finish(&t);

    assert_int_equal(c.len, 252);
    assert_memory_equal(c.data, p, 9);
    assert_int_equal(c.data[9], ' ');
    assert_memory_equal(c.data + 10, p + 14, 242);
}


/* long text goes through in one piece */

static void
test_calls(void **state)
{
    char       *text;
    size_t      i, len;
    kx_text_t   t;
    collect_t   c;

    static const char  unit[] = "If a<b, \xd1\x82\xd0\xb5\xd0\xba, it is. ";

    len = 100 * (sizeof(unit) - 1);
    text = malloc(len);
    assert_non_null(text);

    for (i = 0; i < 100; i++) {
        memcpy(text + i * (sizeof(unit) - 1), unit, sizeof(unit) - 1);
    }

    c.len = 0;
    c.calls = 0;
    kx_text_init(&t, KX_TEXT_CANONICAL, collect, &c);
    kx_text_feed(&t, (unsigned char *) text, len);
    kx_text_finish(&t);

    assert_int_equal(c.calls, 1);
    assert_int_equal(c.len, len - 1);
    assert_memory_equal(c.data, text, len - 1);

    c.len = 0;
    c.calls = 0;
    kx_text_init(&t, KX_TEXT_VISIBLE, collect, &c);
    kx_text_feed(&t, (unsigned char *) text, len);
    kx_text_finish(&t);

    assert_int_equal(c.calls, 1);
    assert_int_equal(c.len, len);
    assert_memory_equal(c.data, text, len);

    free(text);
}


static void
test_empty(void **state)
{
    kx_text_t  t;
    collect_t  c;

    c.len = 0;

    kx_text_init(&t, KX_TEXT_CANONICAL, collect, &c);
    kx_text_feed(&t, NULL, 0);
    kx_text_feed(&t, (unsigned char *) "a<th", 4);
    kx_text_feed(&t, NULL, 0);
    kx_text_finish(&t);

    /* nothing is given out twice */

    kx_text_finish(&t);

    assert_int_equal(c.len, 4);
    assert_memory_equal(c.data, "a<th", 4);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_binary),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_empty)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
