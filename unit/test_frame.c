/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * How answers are cut into frames, wherever the buffers end, and what is read
 * in a frame.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "frame.h"


#define NELTS(a)    (sizeof(a) / sizeof((a)[0]))

#define MAX_OUT     4096


/* frames as text, each with a "|" behind it, and the unfinished rest */

typedef struct {
    kx_framer_t     framer;
    size_t          len;
    char            out[MAX_OUT];
} reader_t;


static void
reader_add(reader_t *r, const unsigned char *p, size_t len)
{
    assert_true(r->len + len < MAX_OUT);

    memcpy(r->out + r->len, p, len);
    r->len += len;
    r->out[r->len] = '\0';
}


static void
reader_feed(reader_t *r, const char *p, size_t len)
{
    unsigned char        *copy, *start, *last;
    const unsigned char  *next;

    /* memory that ends with the buffer */

    copy = malloc(len ? len : 1);
    assert_non_null(copy);

    memcpy(copy, p, len);

    start = copy;
    last = copy + len;

    while ((next = kx_framer_next(&r->framer, start, last)) != NULL) {
        assert_true(next > start && next <= last);

        reader_add(r, start, (size_t) (next - start));
        reader_add(r, (unsigned char *) "|", 1);

        start += next - start;
    }

    reader_add(r, start, (size_t) (last - start));

    free(copy);
}


static void
check_splits(kx_framing_e framing, const char *stream, const char *frames)
{
    size_t    i, k, len;
    reader_t  r;

    len = strlen(stream);

    /* two buffers, one of which may be empty */

    for (i = 0; i <= len; i++) {
        memset(&r, 0, sizeof(reader_t));
        kx_framer_init(&r.framer, framing);

        reader_feed(&r, stream, i);
        reader_feed(&r, stream + i, len - i);

        assert_string_equal(r.out, frames);
    }

    /* many of the same size */

    for (i = 1; i <= 7; i++) {
        memset(&r, 0, sizeof(reader_t));
        kx_framer_init(&r.framer, framing);

        for (k = 0; k < len; k += i) {
            reader_feed(&r, stream + k, (len - k < i) ? len - k : i);
        }

        assert_string_equal(r.out, frames);
    }
}


static void
test_lines(void **state)
{
    size_t  i;

    static const struct {
        const char  *stream;
        const char  *frames;
    } cases[] = {
        { "", "" },
        { "\n", "\n|" },
        { "\r\n\n", "\r\n|\n|" },
        { "{\"a\":1}\n{\"b\":2}\n", "{\"a\":1}\n|{\"b\":2}\n|" },
        { "{\"a\":1}\r\n{\"b\":\"\\n\"}\r\n",
          "{\"a\":1}\r\n|{\"b\":\"\\n\"}\r\n|" },
        { "{\"a\":1}\n\n{\"b\":2}", "{\"a\":1}\n|\n|{\"b\":2}" },

        /* a lone CR ends nothing */

        { "{\"a\":1}\r{\"b\":2}\n", "{\"a\":1}\r{\"b\":2}\n|" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        check_splits(KX_FRAMING_LINES, cases[i].stream, cases[i].frames);
    }
}


static void
test_arrays(void **state)
{
    size_t  i;

    static const struct {
        const char  *stream;
        const char  *frames;
    } cases[] = {
        { "", "" },
        { "[]", "[]" },
        { " [ \n ] \n", " [ \n ] \n" },
        { "[{}]", "[{}|]" },
        { "[{\"a\":1},{\"b\":2}]", "[{\"a\":1}|,{\"b\":2}|]" },

        /* as Gemini prints it */

        { "[{\n  \"a\": [\n    {\n      \"b\": 1\n    }\n  ]\n}\n,\r\n{\n"
          "  \"c\": {}\n}\n]\n",
          "[{\n  \"a\": [\n    {\n      \"b\": 1\n    }\n  ]\n}|\n,\r\n{\n"
          "  \"c\": {}\n}|\n]\n" },

        /* brackets, quotes and backslashes in strings */

        { "[{\"]}\":\"[{\"},{\"a\":\"\\\"}]\"},{\"b\":\"\\\\\"},"
          "{\"c\":\"\\\\\\\"]}\"}]",
          "[{\"]}\":\"[{\"}|,{\"a\":\"\\\"}]\"}|,{\"b\":\"\\\\\"}|,"
          "{\"c\":\"\\\\\\\"]}\"}|]" },

        /* what is no object is in front of the next one, or an element */

        { "[1,\"}\",null,{\"a\":1},[2,{\"b\":[]}],true,{}]",
          "[1,\"}\",null,{\"a\":1}|,[2,{\"b\":[]}]|,true,{}|]" },
        { "[[],[[]],{\"a\":[[1],[{}]]}]", "[[]|,[[]]|,{\"a\":[[1],[{}]]}|]" },
        { "[1,2]", "[1,2]" },

        { "\xef\xbb\xbf[{\"a\":1}]", "\xef\xbb\xbf[{\"a\":1}|]" },

        /* after its end */

        { "[{\"a\":1}] {\"b\":2} ]]}} \"[{}\" x",
          "[{\"a\":1}|] {\"b\":2} ]]}} \"[{}\" x" },
        { "[{}]}]}[{\"b\":2}]", "[{}|]}]}[{\"b\":2}|]" },

        /* no array, and none that ends */

        { "{\"error\":{\"code\":400}}", "{\"error\":{\"code\":400}|}" },
        { "[{\"a\":{\"b\":1}", "[{\"a\":{\"b\":1}" },
        { "[{\"a\":\"}]}]", "[{\"a\":\"}]}]" },
        { "]}]}", "]}]}" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        check_splits(KX_FRAMING_ARRAY, cases[i].stream, cases[i].frames);
    }
}


static void
test_whole_and_events(void **state)
{
    kx_framer_t  f;

    check_splits(KX_FRAMING_WHOLE, "{\"a\":\n\n1}\n\n", "{\"a\":\n\n1}\n\n");
    check_splits(KX_FRAMING_SSE, "data: 1\n\n: x\ndata: 2\n\ndata: 3\n",
                 "data: 1\n\n|: x\ndata: 2\n\n|data: 3\n");
    check_splits(KX_FRAMING_SSE, "data: 1\r\rdata: 2\r\r",
                 "data: 1\r\r|data: 2\r\r|");

    kx_framer_init(&f, KX_FRAMING_SSE);
    assert_false(kx_framer_last(&f));

    kx_framer_init(&f, KX_FRAMING_ARRAY);
    assert_false(kx_framer_last(&f));

    kx_framer_init(&f, KX_FRAMING_LINES);
    assert_true(kx_framer_last(&f));

    kx_framer_init(&f, KX_FRAMING_WHOLE);
    assert_true(kx_framer_last(&f));
}


/* NULL for data: there is none */

static void
test_parse(void **state)
{
    int             rc;
    size_t          i, len;
    kx_frame_t      fr;
    kx_framer_t     f;
    unsigned char  *p, *scratch;

    static const struct {
        kx_framing_e  framing;
        unsigned      first;
        const char   *frame;
        const char   *event;
        const char   *data;
        const char   *tail;
        const char   *eol;
    } cases[] = {

        { KX_FRAMING_SSE, 0, "data: {}\n\n", "", "{}", "{}", "\n" },
        { KX_FRAMING_SSE, 0, "event: e\r\ndata: {}\r\n\r\n", "e", "{}", "{}",
          "\r\n" },
        { KX_FRAMING_SSE, 0, "data: {}\r\r", "", "{}", "{}", "\r" },
        { KX_FRAMING_SSE, 0, "data: {\ndata: }\n\n", "", "{\n}", "}", "\n" },
        { KX_FRAMING_SSE, 0, ": ping\n\n", "", NULL, "", "\n" },
        { KX_FRAMING_SSE, 0, "\n", "", NULL, "", "\n" },
        { KX_FRAMING_SSE, 1, "\xef\xbb\xbf" "data: {}\n\n", "", "{}", "{}",
          "\n" },
        { KX_FRAMING_SSE, 0, "\xef\xbb\xbf" "data: {}\n\n", "", NULL, "",
          "\n" },

        /* the LF of its last CRLF may be in the next one, and one of the
           frame before in this one */

        { KX_FRAMING_SSE, 0, "\ndata: {}\r\n\r", "", "{}", "{}", "\r\n" },
        { KX_FRAMING_SSE, 0, "\ndata: {}\r\n\r\n", "", "{}", "{}", "\r\n" },

        /* mixed ends: that of the last line that is not blank */

        { KX_FRAMING_SSE, 0, "data: {}\n\r\n", "", "{}", "{}", "\n" },
        { KX_FRAMING_SSE, 0, "data: {}\n\r", "", "{}", "{}", "\n" },
        { KX_FRAMING_SSE, 0, "data: {}\r\n\n", "", "{}", "{}", "\r\n" },
        { KX_FRAMING_SSE, 0, "data: {}\r\r\n", "", "{}", "{}", "\r" },

        { KX_FRAMING_LINES, 0, "{\"a\":1}\n", "", "{\"a\":1}", NULL, "\n" },
        { KX_FRAMING_LINES, 0, " {\"a\":1}\t\r\n", "", "{\"a\":1}", NULL,
          "\r\n" },
        { KX_FRAMING_LINES, 0, "{\"a\":1}", "", "{\"a\":1}", NULL, "\n" },
        { KX_FRAMING_LINES, 0, "\n", "", NULL, NULL, "\n" },
        { KX_FRAMING_LINES, 0, " \r\n", "", NULL, NULL, "\r\n" },
        { KX_FRAMING_LINES, 1, "\xef\xbb\xbf\n", "", NULL, NULL, "\n" },
        { KX_FRAMING_LINES, 1, "\xef\xbb\xbf{}\n", "", "{}", NULL, "\n" },
        { KX_FRAMING_LINES, 0, "\xef\xbb\xbf{}\n", "", "\xef\xbb\xbf{}", NULL,
          "\n" },

        { KX_FRAMING_ARRAY, 1, "[{\"a\":1}", "", "{\"a\":1}", NULL, "\n" },
        { KX_FRAMING_ARRAY, 1, "\xef\xbb\xbf [\r\n{\"a\":1}", "", "{\"a\":1}",
          NULL, "\n" },
        { KX_FRAMING_ARRAY, 0, "\r\n,\r\n{\r\n}", "", "{\r\n}", NULL, "\n" },
        { KX_FRAMING_ARRAY, 0, ",[1]", "", NULL, NULL, "\n" },

        { KX_FRAMING_WHOLE, 1, "\xef\xbb\xbf\n{\n}\r\n", "", "{\n}", NULL,
          "\r\n" },
        { KX_FRAMING_WHOLE, 1, "[]", "", "[]", NULL, "\n" },
        { KX_FRAMING_WHOLE, 1, "\xef\xbb\xbf", "", NULL, NULL, "\n" },
        { KX_FRAMING_WHOLE, 1, "\xef\xbb", "", "\xef\xbb", NULL, "\n" },
        { KX_FRAMING_WHOLE, 1, " ", "", NULL, NULL, "\n" },
        { KX_FRAMING_WHOLE, 1, "", "", NULL, NULL, "\n" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        len = strlen(cases[i].frame);

        p = malloc(len ? len : 1);
        scratch = malloc(len ? len : 1);
        assert_non_null(p);
        assert_non_null(scratch);

        memcpy(p, cases[i].frame, len);

        kx_framer_init(&f, cases[i].framing);

        rc = kx_frame_parse(&fr, &f, p, len, cases[i].first, scratch);

        if (rc != (cases[i].data ? KX_OK : KX_DECLINED)) {
            fail_msg("%u: %d: %s", (unsigned) i, rc, cases[i].frame);
        }

        if (strlen(cases[i].eol) != fr.eol.len
            || memcmp(fr.eol.data, cases[i].eol, fr.eol.len) != 0)
        {
            fail_msg("%u: line ends: %s", (unsigned) i, cases[i].frame);
        }

        if (rc == KX_OK) {
            assert_int_equal(fr.event.len, strlen(cases[i].event));
            assert_int_equal(fr.data.len, strlen(cases[i].data));
            assert_memory_equal(fr.data.data, cases[i].data, fr.data.len);

            if (cases[i].tail) {
                assert_int_equal(fr.tail.len, strlen(cases[i].tail));
                assert_memory_equal(fr.tail.data, cases[i].tail,
                                    fr.tail.len);

            } else {
                assert_ptr_equal(fr.tail.data, fr.data.data);
                assert_int_equal(fr.tail.len, fr.data.len);
            }

            assert_true(fr.tail.data >= p
                        && fr.tail.data + fr.tail.len <= p + len);
        }

        free(p);
        free(scratch);
    }
}


/* what stands in front of a frame: a BOM, and half of a line end */

static void
test_starts(void **state)
{
    size_t         i;
    kx_frame_t     fr;
    kx_framer_t    f;
    unsigned char  scratch[64];

    static const struct {
        kx_framing_e  framing;
        unsigned      first;
        const char   *frame;
        size_t        start;
    } cases[] = {
        { KX_FRAMING_SSE, 1, "data: {}\n\n", 0 },
        { KX_FRAMING_SSE, 1, "\xef\xbb\xbf" "data: {}\n\n", 3 },
        { KX_FRAMING_SSE, 0, "\ndata: {}\n\n", 1 },
        { KX_FRAMING_SSE, 0, "\n: x\n\n", 1 },
        { KX_FRAMING_SSE, 0, " \ndata: {}\n\n", 0 },
        { KX_FRAMING_LINES, 1, "{}\n", 0 },
        { KX_FRAMING_LINES, 1, "\xef\xbb\xbf{}\n", 3 },
        { KX_FRAMING_LINES, 0, " {}\n", 0 },
        { KX_FRAMING_LINES, 0, "\n", 0 },
        { KX_FRAMING_ARRAY, 1, "\xef\xbb\xbf[{}", 3 },
        { KX_FRAMING_ARRAY, 0, "\n,{}", 0 },
        { KX_FRAMING_WHOLE, 1, "\xef\xbb\xbf{}", 3 },
        { KX_FRAMING_WHOLE, 1, "\xef\xbb{}", 0 },
        { KX_FRAMING_WHOLE, 1, "\xef\xbb", 0 }
    };

    for (i = 0; i < NELTS(cases); i++) {
        kx_framer_init(&f, cases[i].framing);

        (void) kx_frame_parse(&fr, &f,
                              (const unsigned char *) cases[i].frame,
                              strlen(cases[i].frame), cases[i].first,
                              scratch);

        assert_int_equal(fr.start, cases[i].start);
    }
}


/* where an event ends says nothing about how its lines do */

static void
test_line_ends_at_every_split(void **state)
{
    size_t                i, k, len, rest;
    kx_frame_t            fr;
    kx_framer_t           f;
    unsigned char         scratch[64];
    const unsigned char  *p, *next;

    static const struct {
        const char  *stream;
        const char  *eol;
    } cases[] = {
        { "data: {}\r\n\r\ndata: []\r\n\r\n", "\r\n" },
        { "data: {}\n\ndata: []\n\n", "\n" },
        { "data: {}\r\rdata: []\r\r", "\r" },
        { "data: {}\n\r\ndata: []\n\r\n", "\n" },
        { "data: {}\r\n\ndata: []\r\n\n", "\r\n" },
        { "data: {}\r\r\ndata: []\r\r\n", "\r" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        len = strlen(cases[i].stream);

        for (k = 1; k <= len; k++) {
            kx_framer_init(&f, KX_FRAMING_SSE);

            p = (const unsigned char *) cases[i].stream;
            rest = len;

            /* the first frame may end at k, or at the end of all of it */

            next = kx_framer_next(&f, p, p + k);

            if (next == NULL) {
                next = kx_framer_next(&f, p + k, p + len);
            }

            while (next) {
                if (kx_frame_parse(&fr, &f, p, (size_t) (next - p), 0,
                                   scratch)
                    == KX_OK)
                {
                    assert_int_equal(fr.eol.len, strlen(cases[i].eol));
                    assert_memory_equal(fr.eol.data, cases[i].eol,
                                        fr.eol.len);
                }

                rest -= (size_t) (next - p);
                p = next;
                next = kx_framer_next(&f, p, p + rest);
            }
        }
    }
}


/* which frame another one can be compared with, and where */

static void
test_whole_frame(void **state)
{
    size_t         i, len;
    kx_frame_t     fr;
    kx_framer_t    f;
    unsigned char  scratch[256];

    static const struct {
        kx_framing_e   framing;
        unsigned       first;
        const char    *frame;
        unsigned       whole;
    } cases[] = {
        { KX_FRAMING_SSE, 0, "data: {}\n\n", 1 },
        { KX_FRAMING_SSE, 0, "event: a\r\ndata: {}\r\n\r\n", 1 },
        { KX_FRAMING_SSE, 0, "data: {}\r\n\r", 0 },
        { KX_FRAMING_SSE, 0, "\ndata: {}\n\n", 0 },
        { KX_FRAMING_SSE, 0, "data: {\ndata: }\n\n", 0 },
        { KX_FRAMING_SSE, 1, "data: {}\n\n", 0 },
        { KX_FRAMING_LINES, 0, "{}\n", 1 },
        { KX_FRAMING_LINES, 0, "{}", 0 },
        { KX_FRAMING_LINES, 1, "{}\n", 0 },
        { KX_FRAMING_ARRAY, 0, ",{}", 1 },
        { KX_FRAMING_ARRAY, 1, "[{}", 0 }
    };

    (void) state;

    for (i = 0; i < NELTS(cases); i++) {
        len = strlen(cases[i].frame);

        kx_framer_init(&f, cases[i].framing);

        assert_int_equal(kx_frame_parse(&fr, &f,
                                        (unsigned char *) cases[i].frame, len,
                                        cases[i].first, scratch),
                         KX_OK);

        if ((fr.whole.len != 0) != cases[i].whole) {
            fail_msg("%u: %s", (unsigned) i, cases[i].frame);
        }

        if (fr.whole.len) {
            assert_ptr_equal(fr.whole.data, cases[i].frame);
            assert_int_equal(fr.whole.len, len);
        }
    }
}


static void
test_between_frames(void **state)
{
    size_t                i;
    kx_framer_t           f;
    const unsigned char  *p, *last;

    static const struct {
        kx_framing_e   framing;
        const char    *bytes;
        unsigned       between;
    } cases[] = {
        { KX_FRAMING_SSE, "", 1 },
        { KX_FRAMING_SSE, "data: {}\n\n", 1 },
        { KX_FRAMING_SSE, "data: {}\r\n\r\n", 1 },
        { KX_FRAMING_SSE, "data: {}\r\n\r", 0 },
        { KX_FRAMING_SSE, "data: {}\n", 0 },
        { KX_FRAMING_SSE, "data", 0 },
        { KX_FRAMING_LINES, "{}\n", 1 },
        { KX_FRAMING_ARRAY, "", 0 },
        { KX_FRAMING_ARRAY, "[{}", 1 },
        { KX_FRAMING_ARRAY, "[{},{", 0 },
        { KX_FRAMING_ARRAY, "[{},\"", 0 },
        { KX_FRAMING_WHOLE, "", 0 }
    };

    (void) state;

    for (i = 0; i < NELTS(cases); i++) {
        kx_framer_init(&f, cases[i].framing);

        p = (const unsigned char *) cases[i].bytes;
        last = p + strlen(cases[i].bytes);

        while (p != NULL && p < last) {
            p = kx_framer_next(&f, p, last);
        }

        if (kx_framer_between(&f) != cases[i].between) {
            fail_msg("%u: %s", (unsigned) i, cases[i].bytes);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_whole_frame),
        cmocka_unit_test(test_between_frames),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_whole_and_events),
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_starts),
        cmocka_unit_test(test_line_ends_at_every_split)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
