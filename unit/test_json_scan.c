/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "json_scan.h"


#define NELTS(a)  (sizeof(a) / sizeof((a)[0]))

#define FFFD      "\xef\xbf\xbd"


typedef struct {
    size_t          len;
    unsigned        calls;
    unsigned char   data[4096];
} collect_t;


typedef struct {
    kx_str_t        raw;
    kx_str_t        text;
} pair_t;


static void scan_init(kx_json_t *j, const char *s);
static int scan_whole(const char *s, size_t len);
static int walk_value(kx_json_t *j);
static int walk_whole(const char *s, size_t len);
static void collect(void *data, const unsigned char *p, size_t len);
static void assert_dead(kx_json_t *j);
static unsigned char *exact(const char *s, size_t len);
static char *nested(const char *open, const char *middle, const char *close,
    unsigned n);


static const char  *good[] = {
    "{}", "[]", "\"\"", "0", "-0", "10", "-1.5", "1e5", "1E+05", "0.0e-0",
    "true", "false", "null", " \t\r\n[ \t\r\n] \t\r\n",
    "{\"a\":1}", "{ \"a\" : 1 , \"b\" : [ 1 , 2 , { } ] }",
    "[[],{},[{}],{\"\":[]}]", "[1,\"2\",true,false,null,-3.25e+7]",
    "\"\\\"\"", "\"\\\\\"", "\"\\\\\\\"\"", "[\"\\\\\",\"\\\"\"]",
    "{\"a\\\"b\":\"c\\\\\"}", "\"a\tb\nc\"", "[\"{\",\"[\",\"]}\"]",
    "1.7976931348623157e400", "12345678901234567890123456789",
    "\"\\x\"", "\"\\u12\"", "\"\xff\""
};


static const char  *bad[] = {
    "", " ", "{", "}", "[", "]", "\"", "\"a", "\"\\\"", "\"\\\\\\\"",
    "{]", "[}", "[1", "[1,", "[1,]", "[,]", "[,1]", "[1 2]", "[1,,2]",
    "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{,}", "{\"a\" 1}", "{\"a\"::1}",
    "{\"a\":1 \"b\":2}", "{a:1}", "{1:1}", "{null:1}", "{\"a\":1", "{\"a",
    "{\"a\"", "{\"a\":", "{\"a\":1}}", "[]]", "[] []", "1 2", "\"a\"\"b\"",
    "01", "-", "+1", ".5", "1.", "1.e5", "1e", "1e+", "-a", "--1", "1a",
    "0x10", "1.5.5", "Infinity", "NaN", "-Infinity",
    "t", "tru", "truE", "True", "truex", "nul", "nulll", "fals", "falsee",
    "true1", "1true", "1\"a\"", "true\"a\"", "1[", "1{", "[true[]]",
    "'a'", "/* */ 1", "[1]//", "\f1", "\v1", "\xa0[]", "\xef\xbb\xbf[]",
    ",", ":", "[\"a\":1]", "[1:2]", "{\"a\",1}"
};


static void
scan_init(kx_json_t *j, const char *s)
{
    kx_json_init(j, (const unsigned char *) s, strlen(s));
}


static int
scan_whole(const char *s, size_t len)
{
    kx_json_t  j;

    kx_json_init(&j, (const unsigned char *) s, len);

    if (kx_json_skip(&j, NULL) != KX_OK) {
        assert_dead(&j);
        return KX_ERROR;
    }

    return kx_json_end(&j);
}


/* the depth of the tests is what bounds this recursion */

static int
walk_value(kx_json_t *j)
{
    int       rc;
    kx_str_t  s;

    switch (kx_json_type(j)) {

    case KX_JSON_OBJECT:

        if (kx_json_enter(j) != KX_OK) {
            return KX_ERROR;
        }

        while ((rc = kx_json_member(j, &s)) == KX_OK) {

            if (walk_value(j) != KX_OK) {
                return KX_ERROR;
            }
        }

        return rc == KX_DONE ? KX_OK : rc;

    case KX_JSON_ARRAY:

        if (kx_json_enter(j) != KX_OK) {
            return KX_ERROR;
        }

        while ((rc = kx_json_element(j)) == KX_OK) {

            if (walk_value(j) != KX_OK) {
                return KX_ERROR;
            }
        }

        return rc == KX_DONE ? KX_OK : rc;

    case KX_JSON_STRING:
        return kx_json_string(j, &s);

    default:
        return kx_json_skip(j, NULL);
    }
}


static int
walk_whole(const char *s, size_t len)
{
    kx_json_t  j;

    kx_json_init(&j, (const unsigned char *) s, len);

    if (walk_value(&j) != KX_OK) {
        assert_dead(&j);
        return KX_ERROR;
    }

    return kx_json_end(&j);
}


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


static void
assert_dead(kx_json_t *j)
{
    kx_str_t  s;

    assert_int_equal(kx_json_type(j), KX_JSON_BAD);
    assert_int_equal(kx_json_enter(j), KX_ERROR);
    assert_int_equal(kx_json_member(j, &s), KX_ERROR);
    assert_int_equal(kx_json_element(j), KX_ERROR);
    assert_int_equal(kx_json_string(j, &s), KX_ERROR);
    assert_int_equal(kx_json_skip(j, &s), KX_ERROR);
    assert_int_equal(kx_json_end(j), KX_ERROR);
}


/* a copy without a byte to spare, for AddressSanitizer to guard */

static unsigned char *
exact(const char *s, size_t len)
{
    unsigned char  *p;

    p = malloc(len ? len : 1);
    assert_non_null(p);

    memcpy(p, s, len);

    return p;
}


static char *
nested(const char *open, const char *middle, const char *close, unsigned n)
{
    char      *s, *p;
    unsigned   i;

    s = malloc((strlen(open) + strlen(close)) * n + strlen(middle) + 1);
    assert_non_null(s);

    p = s;

    for (i = 0; i < n; i++) {
        p = stpcpy(p, open);
    }

    p = stpcpy(p, middle);

    for (i = 0; i < n; i++) {
        p = stpcpy(p, close);
    }

    return s;
}


static void
test_good(void **state)
{
    size_t          i, len;
    unsigned char  *p;

    for (i = 0; i < NELTS(good); i++) {
        len = strlen(good[i]);
        p = exact(good[i], len);

        if (scan_whole((char *) p, len) != KX_OK
            || walk_whole((char *) p, len) != KX_OK)
        {
            fail_msg("refused: %s", good[i]);
        }

        free(p);
    }
}


static void
test_bad(void **state)
{
    size_t          i, len;
    unsigned char  *p;

    for (i = 0; i < NELTS(bad); i++) {
        len = strlen(bad[i]);
        p = exact(bad[i], len);

        if (scan_whole((char *) p, len) != KX_ERROR
            || walk_whole((char *) p, len) != KX_ERROR)
        {
            fail_msg("accepted: %s", bad[i]);
        }

        free(p);
    }

    assert_int_equal(scan_whole(NULL, 0), KX_ERROR);
    assert_int_equal(scan_whole("1\0", 2), KX_ERROR);
    assert_int_equal(scan_whole("[\0]", 3), KX_ERROR);
    assert_int_equal(scan_whole("\"\0\"", 3), KX_OK);
}


/* no start of an object or array is a whole one */

static void
test_truncated(void **state)
{
    size_t          len, n;
    unsigned char  *p;

    static const char  text[] =
        "{\"a\\\\\":[true,-1.5e+3,\"x\\\"y\",{\"b\":null}],\"c\":{}}";

    len = sizeof(text) - 1;

    assert_int_equal(scan_whole(text, len), KX_OK);

    for (n = 0; n < len; n++) {
        p = exact(text, n);

        assert_int_equal(scan_whole((char *) p, n), KX_ERROR);
        assert_int_equal(walk_whole((char *) p, n), KX_ERROR);

        free(p);
    }
}


static void
test_walk(void **state)
{
    kx_str_t   key, raw;
    kx_json_t  j;

    scan_init(&j, " { \"s\\u0074r\" : \"v\\n\" , \"n\":-1.5e3,"
                  "\"list\":[ 1 , {\"deep\":[[]]} ,\"x\"], \"o\":{}} ");

    assert_int_equal(kx_json_type(&j), KX_JSON_OBJECT);
    assert_int_equal(kx_json_enter(&j), KX_OK);

    assert_int_equal(kx_json_member(&j, &key), KX_OK);
    assert_int_equal(key.len, 8);
    assert_memory_equal(key.data, "s\\u0074r", 8);
    assert_true(kx_json_is(&key, "str"));
    assert_int_equal(kx_json_type(&j), KX_JSON_STRING);
    assert_int_equal(kx_json_string(&j, &raw), KX_OK);
    assert_int_equal(raw.len, 3);
    assert_memory_equal(raw.data, "v\\n", 3);

    assert_int_equal(kx_json_member(&j, &key), KX_OK);
    assert_true(kx_json_is(&key, "n"));
    assert_int_equal(kx_json_type(&j), KX_JSON_NUMBER);
    assert_int_equal(kx_json_skip(&j, &raw), KX_OK);
    assert_int_equal(raw.len, 6);
    assert_memory_equal(raw.data, "-1.5e3", 6);

    assert_int_equal(kx_json_member(&j, &key), KX_OK);
    assert_true(kx_json_is(&key, "list"));
    assert_int_equal(kx_json_type(&j), KX_JSON_ARRAY);
    assert_int_equal(kx_json_enter(&j), KX_OK);

    assert_int_equal(kx_json_element(&j), KX_OK);
    assert_int_equal(kx_json_skip(&j, NULL), KX_OK);

    assert_int_equal(kx_json_element(&j), KX_OK);
    assert_int_equal(kx_json_type(&j), KX_JSON_OBJECT);
    assert_int_equal(kx_json_skip(&j, &raw), KX_OK);
    assert_int_equal(raw.len, 13);
    assert_memory_equal(raw.data, "{\"deep\":[[]]}", 13);

    assert_int_equal(kx_json_element(&j), KX_OK);
    assert_int_equal(kx_json_skip(&j, &raw), KX_OK);
    assert_int_equal(raw.len, 3);
    assert_memory_equal(raw.data, "\"x\"", 3);

    assert_int_equal(kx_json_element(&j), KX_DONE);

    assert_int_equal(kx_json_member(&j, &key), KX_OK);
    assert_true(kx_json_is(&key, "o"));
    assert_int_equal(kx_json_enter(&j), KX_OK);
    assert_int_equal(kx_json_member(&j, &key), KX_DONE);

    assert_int_equal(kx_json_member(&j, &key), KX_DONE);
    assert_int_equal(kx_json_end(&j), KX_OK);
}


static void
test_types(void **state)
{
    size_t     i;
    kx_json_t  j;

    static const struct {
        const char      *text;
        kx_json_type_e   type;
    } types[] = {
        { " \"", KX_JSON_STRING },
        { "-", KX_JSON_NUMBER },
        { "7", KX_JSON_NUMBER },
        { "t", KX_JSON_TRUE },
        { "f", KX_JSON_FALSE },
        { "n", KX_JSON_NULL },
        { "\r\n\t {", KX_JSON_OBJECT },
        { "[", KX_JSON_ARRAY },
        { "", KX_JSON_BAD },
        { "]", KX_JSON_BAD },
        { "}", KX_JSON_BAD },
        { ",", KX_JSON_BAD },
        { "x", KX_JSON_BAD },
        { "\xff", KX_JSON_BAD }
    };

    for (i = 0; i < NELTS(types); i++) {
        scan_init(&j, types[i].text);
        assert_int_equal(kx_json_type(&j), types[i].type);

        /* it only tells */

        assert_int_equal(kx_json_type(&j), types[i].type);
        assert_int_equal(j.bad, 0);
    }
}


/* calls that do not suit the place are errors, not surprises */

static void
test_misuse(void **state)
{
    kx_str_t   s;
    kx_json_t  j;

    scan_init(&j, "{}");
    assert_int_equal(kx_json_member(&j, &s), KX_ERROR);
    assert_dead(&j);

    scan_init(&j, "[]");
    assert_int_equal(kx_json_element(&j), KX_ERROR);
    assert_dead(&j);

    scan_init(&j, "[1]");
    assert_int_equal(kx_json_enter(&j), KX_OK);
    assert_int_equal(kx_json_member(&j, &s), KX_ERROR);
    assert_dead(&j);

    scan_init(&j, "{\"a\":1}");
    assert_int_equal(kx_json_enter(&j), KX_OK);
    assert_int_equal(kx_json_element(&j), KX_ERROR);
    assert_dead(&j);

    scan_init(&j, "{\"a\":1,\"b\":2}");
    assert_int_equal(kx_json_enter(&j), KX_OK);
    assert_int_equal(kx_json_member(&j, &s), KX_OK);
    assert_int_equal(kx_json_member(&j, &s), KX_ERROR);
    assert_dead(&j);

    scan_init(&j, "1");
    assert_int_equal(kx_json_enter(&j), KX_ERROR);
    assert_dead(&j);

    scan_init(&j, "1");
    assert_int_equal(kx_json_string(&j, &s), KX_ERROR);
    assert_dead(&j);

    scan_init(&j, "[1]");
    assert_int_equal(kx_json_enter(&j), KX_OK);
    assert_int_equal(kx_json_end(&j), KX_ERROR);
    assert_dead(&j);
}


static void
test_depth(void **state)
{
    char       *s;
    unsigned    i, n;
    kx_str_t    key;
    kx_json_t   j;

    s = nested("[", "1", "]", KX_JSON_MAX_DEPTH);
    assert_int_equal(scan_whole(s, strlen(s)), KX_OK);
    assert_int_equal(walk_whole(s, strlen(s)), KX_OK);
    free(s);

    s = nested("[", "", "]", KX_JSON_MAX_DEPTH + 1);
    assert_int_equal(scan_whole(s, strlen(s)), KX_ERROR);
    assert_int_equal(walk_whole(s, strlen(s)), KX_ERROR);

    /* what was entered already counts, too */

    for (n = 1; n <= KX_JSON_MAX_DEPTH; n++) {
        scan_init(&j, s);

        for (i = 0; i < n; i++) {
            assert_int_equal(kx_json_enter(&j), KX_OK);
            assert_int_equal(kx_json_element(&j), KX_OK);
        }

        assert_int_equal(kx_json_skip(&j, NULL), KX_ERROR);
        assert_dead(&j);
    }

    free(s);

    /* objects and arrays in turns: each bit is looked at */

    s = nested("{\"a\":[", "null", "]}", KX_JSON_MAX_DEPTH / 2);
    assert_int_equal(scan_whole(s, strlen(s)), KX_OK);
    assert_int_equal(walk_whole(s, strlen(s)), KX_OK);
    s[strlen(s) - 1] = ']';
    assert_int_equal(scan_whole(s, strlen(s)), KX_ERROR);
    free(s);

    s = nested("{\"a\":", "null", "}", KX_JSON_MAX_DEPTH);
    scan_init(&j, s);
    assert_int_equal(kx_json_enter(&j), KX_OK);
    assert_int_equal(kx_json_member(&j, &key), KX_OK);
    assert_int_equal(kx_json_skip(&j, NULL), KX_OK);
    assert_int_equal(kx_json_member(&j, &key), KX_DONE);
    assert_int_equal(kx_json_end(&j), KX_OK);
    free(s);

    /* a body that is nothing but brackets */

    s = malloc(1000000);
    assert_non_null(s);
    memset(s, '[', 1000000);
    assert_int_equal(scan_whole(s, 1000000), KX_ERROR);
    free(s);
}


static const struct {
    const char  *raw;
    const char  *text;
    size_t       len;
} decoded[] = {

#define text(s)  s, sizeof(s) - 1

    { "", text("") },
    { "plain", text("plain") },
    { "\\\"\\\\\\/\\b\\f\\n\\r\\t", text("\"\\/\b\f\n\r\t") },
    { "a\\u0000b", text("a\0b") },
    { "\\u0041\\u00e9\\u00E9\\u20ac\\uFFFF",
      text("A\xc3\xa9\xc3\xa9\xe2\x82\xac\xef\xbf\xbf") },
    { "\\u007f\\u0080\\u07ff\\u0800",
      text("\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80") },

    /* surrogates */

    { "\\ud83d\\ude00", text("\xf0\x9f\x98\x80") },
    { "\\uD83D\\uDE00x", text("\xf0\x9f\x98\x80x") },
    { "\\ud800\\udc00\\udbff\\udfff",
      text("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf") },
    { "\\ud83d", text(FFFD) },
    { "\\ude00", text(FFFD) },
    { "\\ud83dx", text(FFFD "x") },
    { "\\ud83d\xc3\xa9", text(FFFD "\xc3\xa9") },
    { "\\ud83d\xff", text(FFFD FFFD) },
    { "\\ud83d\\n", text(FFFD "\n") },
    { "\\ud83d\\u0041", text(FFFD "A") },
    { "\\ud83d\\ud83d\\ude00", text(FFFD "\xf0\x9f\x98\x80") },
    { "\\ude00\\ud83d", text(FFFD FFFD) },
    { "\\ud83d\\", text(FFFD FFFD) },
    { "\\ud83d\\u12", text(FFFD FFFD) },

    /* bad escapes */

    { "\\", text(FFFD) },
    { "a\\", text("a" FFFD) },
    { "\\x41", text(FFFD "41") },
    { "\\N", text(FFFD) },
    { "\\u", text(FFFD) },
    { "\\u12", text(FFFD) },
    { "\\u12g4", text(FFFD "g4") },
    { "\\u12\\n", text(FFFD "\n") },
    { "\\u\\u0041", text(FFFD "A") },
    { "\\\xc3\xa9", text(FFFD "\xc3\xa9") },
    { "\\u00\xc3\xa9", text(FFFD "\xc3\xa9") },
    { "\\U0041", text(FFFD "0041") },

    /* UTF-8, well-formed: the ends of all ranges */

    { "\x7f\xc2\x80\xdf\xbf", text("\x7f\xc2\x80\xdf\xbf") },
    { "\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf",
      text("\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf") },
    { "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
      text("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf") },

    /* ill-formed: as the examples of Unicode 3.9 and around each range */

    { "\x80", text(FFFD) },
    { "\xbf\xbf", text(FFFD FFFD) },
    { "\xc0\x80", text(FFFD FFFD) },
    { "\xc1\xbf", text(FFFD FFFD) },
    { "\xc3", text(FFFD) },
    { "\xc3z", text(FFFD "z") },
    { "\xc3\\n", text(FFFD "\n") },
    { "\xe0\x9f\xbf", text(FFFD FFFD FFFD) },
    { "\xed\xa0\x80", text(FFFD FFFD FFFD) },
    { "\xed\xb0\x80", text(FFFD FFFD FFFD) },
    { "\xe2\x82", text(FFFD) },
    { "\xe2\x82z", text(FFFD "z") },
    { "\xe2", text(FFFD) },
    { "\xf0\x8f\xbf\xbf", text(FFFD FFFD FFFD FFFD) },
    { "\xf0\x9f\x98", text(FFFD) },
    { "\xf0\x9f\x98z", text(FFFD "z") },
    { "\xf0\x9f", text(FFFD) },
    { "\xf4\x90\x80\x80", text(FFFD FFFD FFFD FFFD) },
    { "\xf5\x80\x80\x80", text(FFFD FFFD FFFD FFFD) },
    { "\xff\xfe", text(FFFD FFFD) },
    { "\xf0\x80\x80\x41", text(FFFD FFFD FFFD "A") },
    { "\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",
      text("a" FFFD FFFD FFFD "b" FFFD "c" FFFD FFFD "d") },

    /* each place in a word of eight */

    { "0123456\\n", text("0123456\n") },
    { "01234567\\n", text("01234567\n") },
    { "012345678\\n0123456789abcdef\xff",
      text("012345678\n0123456789abcdef" FFFD) },
    { "0123456789012345678901234567890123456789\\t0123456789012345678901"
      "23456789012345678901234567\xc3\xa9",
      text("0123456789012345678901234567890123456789\t012345678901234567890"
           "123456789012345678901234567\xc3\xa9") }

#undef text

};


static void
test_decode(void **state)
{
    size_t          i;
    kx_str_t        raw;
    collect_t       c;
    kx_decode_t     d;
    unsigned char   dst[256];

    for (i = 0; i < NELTS(decoded); i++) {
        raw.len = strlen(decoded[i].raw);
        raw.data = exact(decoded[i].raw, raw.len);

        c.len = 0;

        kx_decode_init(&d);
        kx_decode(&d, &raw, collect, &c);
        kx_decode_finish(&d, collect, &c);

        if (c.len != decoded[i].len
            || memcmp(c.data, decoded[i].text, c.len) != 0)
        {
            fail_msg("decoded[%zu]: %s", i, decoded[i].raw);
        }

        assert_int_equal(kx_json_copy(&raw, dst, sizeof(dst)),
                         decoded[i].len);
        assert_memory_equal(dst, decoded[i].text, decoded[i].len);

        assert_int_equal(kx_json_copy(&raw, dst, decoded[i].len),
                         decoded[i].len);

        if (decoded[i].len) {
            assert_int_equal(kx_json_copy(&raw, dst, decoded[i].len - 1), -1);
        }

        assert_true(kx_json_equal(&raw, decoded[i].text, decoded[i].len));

        free(raw.data);
    }
}


/* the memory of a half that waits */

static void
test_decode_pieces(void **state)
{
    size_t       i, n;
    kx_str_t     raw;
    collect_t    c;
    kx_decode_t  d;

    static const struct {
        const char  *pieces[4];
        const char  *text;
    } cases[] = {
        { { "a\\ud83d", "\\ude00b" }, "a\xf0\x9f\x98\x80" "b" },
        { { "\\ud83d", "", "\\ude00" }, "\xf0\x9f\x98\x80" },
        { { "\\ud83d", "x" }, FFFD "x" },
        { { "\\ud83d", "\xff" }, FFFD FFFD },
        { { "\\ud83d", "\\ud83d", "\\ude00" }, FFFD "\xf0\x9f\x98\x80" },
        { { "\\ud83d", "\\t" }, FFFD "\t" },
        { { "\\ud83d" }, FFFD },

        /* a string is whole in all else: nothing else waits */

        { { "\xe2\x82", "\xac" }, FFFD FFFD },
        { { "\\u00", "41" }, FFFD "41" },
        { { "\\", "n" }, FFFD "n" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        c.len = 0;
        kx_decode_init(&d);

        for (n = 0; n < 4 && cases[i].pieces[n]; n++) {
            raw.len = strlen(cases[i].pieces[n]);
            raw.data = exact(cases[i].pieces[n], raw.len);

            kx_decode(&d, &raw, collect, &c);

            free(raw.data);
        }

        kx_decode_finish(&d, collect, &c);

        assert_int_equal(c.len, strlen(cases[i].text));
        assert_memory_equal(c.data, cases[i].text, c.len);

        /* nothing is given out twice */

        kx_decode_finish(&d, collect, &c);
        assert_int_equal(c.len, strlen(cases[i].text));
    }
}


/* text without escapes goes through in one piece, and without a copy */

static void
test_decode_calls(void **state)
{
    size_t       i;
    kx_str_t     raw;
    collect_t    c;
    kx_decode_t  d;

    static const char  unit[] = "plain \xd1\x82\xd0\xb5\xd0\xba\xd1\x81 ";

    raw.len = 100 * (sizeof(unit) - 1);
    raw.data = malloc(raw.len);
    assert_non_null(raw.data);

    for (i = 0; i < 100; i++) {
        memcpy(raw.data + i * (sizeof(unit) - 1), unit, sizeof(unit) - 1);
    }

    c.len = 0;
    c.calls = 0;

    kx_decode_init(&d);
    kx_decode(&d, &raw, collect, &c);

    assert_int_equal(c.calls, 1);
    assert_int_equal(c.len, raw.len);
    assert_memory_equal(c.data, raw.data, raw.len);

    free(raw.data);

    /* and short escapes are not one call each */

    raw.len = 2 * 1000;
    raw.data = malloc(raw.len);
    assert_non_null(raw.data);

    for (i = 0; i < 1000; i++) {
        memcpy(raw.data + i * 2, "\\n", 2);
    }

    c.len = 0;
    c.calls = 0;

    kx_decode(&d, &raw, collect, &c);

    assert_int_equal(c.len, 1000);
    assert_true(c.calls < 10);

    free(raw.data);
}


/* where the decoder's own buffer ends */

static void
test_decode_gathered(void **state)
{
    char           *p, text[1024];
    size_t          n, run, len;
    kx_str_t        raw;
    collect_t       c;
    kx_decode_t     d;
    unsigned char   expected[1024];

    for (n = 200; n < 300; n++) {
        for (run = 0; run < 48; run++) {
            memset(expected, '\t', n);
            memset(expected + n, 'x', run);
            memcpy(expected + n + run, "\xf0\x9f\x98\x80y", 5);
            len = n + run + 5;

            for (p = text; p < text + 2 * n; p += 2) {
                memcpy(p, "\\t", 2);
            }

            memset(p, 'x', run);
            memcpy(p + run, "\\ud83d\\ude00y", 13);

            raw.len = 2 * n + run + 13;
            raw.data = (unsigned char *) text;

            c.len = 0;
            kx_decode_init(&d);
            kx_decode(&d, &raw, collect, &c);

            assert_int_equal(c.len, len);
            assert_memory_equal(c.data, expected, len);
        }
    }
}


static void
test_equal(void **state)
{
    size_t          i, len;
    kx_str_t        raw;
    unsigned char  *text;

    static const struct {
        const char  *raw;
        const char  *text;
        int          equal;
    } cases[] = {
        { "", "", 1 },
        { "", "a", 0 },
        { "a", "", 0 },
        { "role", "role", 1 },
        { "role", "rol", 0 },
        { "rol", "role", 0 },
        { "role", "Role", 0 },
        { "r\\u006fle", "role", 1 },
        { "\\u0072\\u006f\\u006c\\u0065", "role", 1 },
        { "\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041",
          "AAAAAAAA", 1 },
        { "r\\u006fles", "role", 0 },
        { "r\\u006f", "role", 0 },
        { "role\\u0000", "role", 0 },
        { "role\\", "role", 0 },
        { "\\\\", "\\", 1 },
        { "\\\\", "\\\\", 0 },
        { "\\n", "\\n", 0 },
        { "\xc3\xa9", "\xc3\xa9", 1 },
        { "\\u00e9", "\xc3\xa9", 1 },
        { "\xff", FFFD, 1 },
        { "\xff", "\xff", 0 },
        { "\\ud83d", FFFD, 1 },
        { "a\\ud83d\\ude00", "a\xf0\x9f\x98\x80", 1 },
        { "a\\ud83d\\ude00", "a\xf0\x9f\x98\x81", 0 }
    };

    for (i = 0; i < NELTS(cases); i++) {
        raw.len = strlen(cases[i].raw);
        raw.data = exact(cases[i].raw, raw.len);

        len = strlen(cases[i].text);
        text = exact(cases[i].text, len);

        if (!!kx_json_equal(&raw, (char *) text, len) != cases[i].equal) {
            fail_msg("%s against %s", cases[i].raw, cases[i].text);
        }

        free(raw.data);
        free(text);
    }

    raw.len = 0;
    raw.data = NULL;

    assert_true(kx_json_equal(&raw, "", 0));
    assert_false(kx_json_is(&raw, "a"));
}


static void
test_copy_bounds(void **state)
{
    kx_str_t        raw;
    unsigned char   dst[8];

    memset(dst, '#', sizeof(dst));

    raw.len = 0;
    raw.data = NULL;
    assert_int_equal(kx_json_copy(&raw, dst, 0), 0);

    raw.data = (unsigned char *) "\\u0041\\u0042\\u0043";
    raw.len = 18;
    assert_int_equal(kx_json_copy(&raw, dst, 2), -1);
    assert_int_equal(kx_json_copy(&raw, dst, 3), 3);
    assert_memory_equal(dst, "ABC#####", 8);

    memset(dst, '#', sizeof(dst));

    raw.data = (unsigned char *) "\\ud83d";
    raw.len = 6;
    assert_int_equal(kx_json_copy(&raw, dst, 2), -1);
    assert_memory_equal(dst + 2, "######", 6);
    assert_int_equal(kx_json_copy(&raw, dst, 3), 3);

    /* what came after the text that did not fit is not put in instead */

    memset(dst, '#', sizeof(dst));

    raw.data = (unsigned char *) "0123456789012345678901234567890123456789\\n";
    raw.len = 42;
    assert_int_equal(kx_json_copy(&raw, dst, 8), -1);
    assert_memory_equal(dst, "########", 8);

    /* nothing shrinks more than this */

    raw.data = (unsigned char *) "\\u0041\\u0041\\u0041\\u0041\\u0041"
                                 "\\u0041\\u0041\\u0041";
    raw.len = 48;
    assert_int_equal(kx_json_copy(&raw, dst, 8), 8);
    assert_memory_equal(dst, "AAAAAAAA", 8);
}


static void
test_escape(void **state)
{
    size_t          i, len, room;
    kx_str_t        s;
    unsigned char  *dst, *end;

    static const pair_t  cases[] = {
        { kx_string(""), kx_string("") },
        { kx_string("plain ~"), kx_string("plain ~") },
        { kx_string("\"\\/"), kx_string("\\\"\\\\/") },
        { kx_string("\n\r\t\b\f\1\x1f\x7f"),
          kx_string("\\u000a\\u000d\\u0009\\u0008\\u000c\\u0001\\u001f"
                    "\\u007f") },
        { kx_string("a\0b"), kx_string("a\\u0000b") },
        { kx_string("\xc3\xa9\xe2\x82\xac\xef\xbf\xbf"),
          kx_string("\\u00e9\\u20ac\\uffff") },
        { kx_string("\xe2\x80\xa8"), kx_string("\\u2028") },
        { kx_string("\xf0\x9f\x98\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"),
          kx_string("\\ud83d\\ude00\\ud800\\udc00\\udbff\\udfff") },
        { kx_string("\xff" "a\xed\xa0\x80"),
          kx_string("\\ufffda\\ufffd\\ufffd\\ufffd") },
        { kx_string("\xe2\x82"), kx_string("\\ufffd") }
    };

    for (i = 0; i < NELTS(cases); i++) {
        s = cases[i].raw;
        len = cases[i].text.len;

        /* one byte less than needed, and so on down to none */

        for (room = 0; room <= len; room++) {
            dst = malloc(room ? room : 1);
            assert_non_null(dst);

            end = kx_json_escape(dst, dst + room, &s);

            if (room < len) {
                assert_null(end);

            } else {
                assert_ptr_equal(end, dst + len);
                assert_memory_equal(dst, cases[i].text.data, len);
            }

            free(dst);
        }
    }
}


/* each character there is, by escape and back */

static void
test_round_trip(void **state)
{
    size_t          n;
    uint32_t        c;
    kx_str_t        s, raw;
    unsigned char   utf8[4], text[4], escaped[12], *end;

    for (c = 0; c < 0x110000; c++) {

        if (c >= 0xd800 && c <= 0xdfff) {
            continue;
        }

        if (c < 0x80) {
            utf8[0] = (unsigned char) c;
            n = 1;

        } else if (c < 0x800) {
            utf8[0] = (unsigned char) (0xc0 + c / 64);
            utf8[1] = (unsigned char) (0x80 + c % 64);
            n = 2;

        } else if (c < 0x10000) {
            utf8[0] = (unsigned char) (0xe0 + c / 4096);
            utf8[1] = (unsigned char) (0x80 + c / 64 % 64);
            utf8[2] = (unsigned char) (0x80 + c % 64);
            n = 3;

        } else {
            utf8[0] = (unsigned char) (0xf0 + c / 262144);
            utf8[1] = (unsigned char) (0x80 + c / 4096 % 64);
            utf8[2] = (unsigned char) (0x80 + c / 64 % 64);
            utf8[3] = (unsigned char) (0x80 + c % 64);
            n = 4;
        }

        s.len = n;
        s.data = utf8;

        end = kx_json_escape(escaped, escaped + sizeof(escaped), &s);
        assert_non_null(end);

        raw.len = (size_t) (end - escaped);
        raw.data = escaped;

        assert_int_equal(kx_json_copy(&raw, text, sizeof(text)), n);
        assert_memory_equal(text, utf8, n);

        /* raw in a string it stays what it is */

        if (c != '\\') {
            assert_int_equal(kx_json_copy(&s, text, sizeof(text)), n);
            assert_memory_equal(text, utf8, n);
        }
    }
}


/* each byte at each place of texts of each length */

static void
test_plain(void **state)
{
    size_t         at, len;
    unsigned       c;
    unsigned char  text[24];

    assert_true(kx_json_plain(NULL, 0));

    for (len = 1; len <= sizeof(text); len++) {
        for (at = 0; at < len; at++) {
            for (c = 0; c < 256; c++) {
                memset(text, (c & 1) ? ' ' : 0x7f, sizeof(text));
                text[at] = (unsigned char) c;

                assert_int_equal(kx_json_plain(text, len),
                                 c >= 0x20 && c < 0x80 && c != '\\');
            }
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_walk),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_decode_pieces),
        cmocka_unit_test(test_decode_calls),
        cmocka_unit_test(test_decode_gathered),
        cmocka_unit_test(test_equal),
        cmocka_unit_test(test_copy_bounds),
        cmocka_unit_test(test_escape),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_plain)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
