/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Ads as text: how they are written, and how they are taken out of what a
 * client sends back.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include <cjson/cJSON.h>

#include "text_ad.h"


#define NELTS(a)  (sizeof(a) / sizeof((a)[0]))

#define ORIGIN    "https://ads.example"
#define URL       ORIGIN "/api/frame/b-1?messageId=kx1_a"

/* the mark, and an ad as the module writes it */

#define RAW       "\xe2\x81\xa3"
#define ESC       "\\u2063"
#define AD        "\\n\\n" ESC "Ad: " URL ESC

#define MAX_BODY  (1024 * 1024)


static const kx_str_t  origin = kx_string(ORIGIN);


static unsigned
valid(const unsigned char *p, size_t len)
{
    kx_json_t  j;

    kx_json_init(&j, p, len);

    return kx_json_skip(&j, NULL) == KX_OK && kx_json_end(&j) == KX_OK;
}


/* takes the ads out of a body; the number of ranges */

static unsigned
cut(const char *body, size_t len, char *out, size_t *left)
{
    size_t          pos;
    unsigned        i, n;
    kx_range_t      ranges[KX_MAX_TEXT_ADS + 1];
    unsigned char  *p;

    p = malloc(len ? len : 1);
    assert_non_null(p);
    memcpy(p, body, len);

    ranges[KX_MAX_TEXT_ADS].start = 12345;

    n = kx_text_ad_find(ranges, p, len, &origin);

    assert_true(n <= KX_MAX_TEXT_ADS);
    assert_int_equal(ranges[KX_MAX_TEXT_ADS].start, 12345);

    pos = 0;
    *left = 0;

    for (i = 0; i < n; i++) {
        assert_true(ranges[i].start < ranges[i].end);
        assert_true(ranges[i].end <= len);
        assert_true(i == 0 || ranges[i].start > ranges[i - 1].end);

        memcpy(out + *left, body + pos, ranges[i].start - pos);
        *left += ranges[i].start - pos;
        pos = ranges[i].end;
    }

    memcpy(out + *left, body + pos, len - pos);
    *left += len - pos;
    out[*left] = '\0';

    free(p);

    return n;
}


static void
check(const char *in, const char *out)
{
    char      once[MAX_BODY], twice[MAX_BODY];
    size_t    len;
    unsigned  n;

    n = cut(in, strlen(in), once, &len);

    if (strcmp(once, out) != 0) {
        fail_msg("%s\nbecame\n%s\nand not\n%s", in, once, out);
    }

    assert_int_equal(n != 0, strcmp(in, out) != 0);
    assert_int_equal(valid((unsigned char *) in, strlen(in)),
                     valid((unsigned char *) once, len));

    assert_int_equal(cut(once, len, twice, &len), 0);
    assert_string_equal(twice, once);
}


static void
test_write(void **state)
{
    size_t          i, n, room;
    kx_str_t        value;
    unsigned char   buf[256], *last;

    static const struct {
        const char  *value;
        const char  *text;
    } cases[] = {
        { "", "\\n\\n\\u2063\\u2063" },
        { "Ad: " URL, "\\n\\n\\u2063Ad: " URL "\\u2063" },
        { "\"\\/\n\t", "\\n\\n\\u2063\\\"\\\\/\\u000a\\u0009\\u2063" },
        { "\xc3\xa9 \xf0\x9f\x98\x80 \xff",
          "\\n\\n\\u2063\\u00e9 \\ud83d\\ude00 \\ufffd\\u2063" },

        /* marks, and what is none */

        { RAW, "\\n\\n\\u2063\\u2063" },
        { RAW "a" RAW RAW "b" RAW, "\\n\\n\\u2063ab\\u2063" },
        { "\xe2\x81\xa4", "\\n\\n\\u2063\\u2064\\u2063" },
        { "\xe2\x81", "\\n\\n\\u2063\\ufffd\\u2063" },
        { "\\u2063", "\\n\\n\\u2063\\\\u2063\\u2063" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        value.data = (unsigned char *) cases[i].value;
        value.len = strlen(cases[i].value);

        n = strlen(cases[i].text);

        for (room = 0; room <= n + 1; room++) {
            memset(buf, '#', sizeof(buf));

            last = kx_text_ad_write(buf, buf + room, &value);

            assert_int_equal(buf[room], '#');

            if (room < n) {
                assert_null(last);
                continue;
            }

            assert_ptr_equal(last, buf + n);
            assert_memory_equal(buf, cases[i].text, n);
        }
    }
}


/* the largest one is found again, also if no byte of it is UTF-8 */

static void
test_largest(void **state)
{
    size_t          i, len, n;
    kx_str_t        value;
    unsigned char   text[KX_MAX_TEXT_AD + 1], *p, *last;

    static char        body[MAX_BODY], out[MAX_BODY];
    static const char  fill[] = "a\"\xff\x01";

    for (i = 0; i < sizeof(fill) - 1; i++) {
        memset(text, fill[i], sizeof(text));
        memcpy(text, URL, sizeof(URL) - 1);

        value.data = text;
        value.len = KX_MAX_TEXT_AD;

        n = (size_t) sprintf(body, "{\"a\":\"x");
        p = (unsigned char *) body + n;

        last = kx_text_ad_write(p, (unsigned char *) body + MAX_BODY, &value);
        assert_non_null(last);

        len = (size_t) (last - (unsigned char *) body);
        len += (size_t) sprintf((char *) last, "y\"}");

        assert_int_equal(cut(body, len, out, &len), 1);
        assert_string_equal(out, "{\"a\":\"xy\"}");

        value.len++;
        assert_null(kx_text_ad_write(p, (unsigned char *) body + MAX_BODY,
                                     &value));
    }
}


static void
test_marks(void **state)
{
    size_t  i;

    static const struct {
        const char  *in;
        const char  *out;
    } cases[] = {

        /* as it was written, and as clients write it */

        { "{\"a\":\"x" AD "\"}", "{\"a\":\"x\"}" },
        { "{\"a\":\"x\\n\\n" RAW "Ad: " URL RAW "\"}", "{\"a\":\"x\"}" },
        { "{\"a\":\"x\\n\\n" RAW "Ad: " URL ESC "\"}", "{\"a\":\"x\"}" },
        { "{\"a\":\"x\\n\\n" ESC "Ad: " URL RAW "\"}", "{\"a\":\"x\"}" },

        /* trimmed, folded, or with text behind it */

        { "{\"a\":\"x" ESC URL ESC "\"}", "{\"a\":\"x\"}" },
        { "{\"a\":\"x " ESC URL ESC " \"}", "{\"a\":\"x  \"}" },
        { "{\"a\":\"x" AD "y\"}", "{\"a\":\"xy\"}" },
        { "{\"a\":\"" AD "\"}", "{\"a\":\"\"}" },
        { "\"" AD "\"", "\"\"" },
        { "[\"" AD "\"]", "[\"\"]" },
        { "{\"" AD "\":1}", "{\"" AD "\":1}" },

        /* the URL within the text, in all its forms */

        { "\"x" ESC "a [b](" URL ") c" ESC "\"", "\"x\"" },
        { "\"x" ESC "https:\\/\\/ads.example\\/api\\/frame\\/b" ESC "\"",
          "\"x\"" },
        { "\"x" ESC "\\u0068ttps://ads.example\\u002Fapi/frame/b" ESC "\"",
          "\"x\"" },
        { "\"x" ESC ORIGIN " " ORIGIN "/api " URL ESC "\"", "\"x\"" },

        /* escaped backslashes */

        { "\"x\\\\u2063" URL ESC "\"", "\"x\\\\u2063" URL ESC "\"" },
        { "\"x\\\\" ESC URL ESC "\"", "\"x\\\\\"" },
        { "\"x" ESC URL "\\\\u2063\"", "\"x" ESC URL "\\\\u2063\"" },
        { "\"x" ESC URL "\\\\" ESC "\"", "\"x\"" },

        /* nobody's, or no ad */

        { "\"x" ESC "https://other.example/api/frame/b" ESC "\"",
          "\"x" ESC "https://other.example/api/frame/b" ESC "\"" },
        { "\"x" ESC "http://ads.example/api/frame/b" ESC "\"",
          "\"x" ESC "http://ads.example/api/frame/b" ESC "\"" },
        { "\"x" ESC "https://ads.example.evil/api/frame/b" ESC "\"",
          "\"x" ESC "https://ads.example.evil/api/frame/b" ESC "\"" },
        { "\"x" ESC "https://ads.example/api/frame" ESC "\"",
          "\"x" ESC "https://ads.example/api/frame" ESC "\"" },
        { "\"" ESC ESC "\"", "\"" ESC ESC "\"" },
        { "\"x " URL " y\"", "\"x " URL " y\"" },
        { "\"x" ESC URL "\"", "\"x" ESC URL "\"" },
        { "\"x" URL ESC "\"", "\"x" URL ESC "\"" },
        { "\"" ESC URL "\",\"" ESC "\"", "\"" ESC URL "\",\"" ESC "\"" },
        { "[\"" ESC URL "\",\"" ESC "\"]", "[\"" ESC URL "\",\"" ESC "\"]" },
        { "\"x" ESC URL "\xe2\x81\"", "\"x" ESC URL "\xe2\x81\"" },
        { "\"x" ESC URL "\\u206\"", "\"x" ESC URL "\\u206\"" },

        /* several, and others between them */

        { "\"x" AD "y" AD "z\"", "\"xyz\"" },
        { "\"" AD AD "\"", "\"\"" },
        { "\"x" AD "\\n\\n" AD "y\"", "\"x\\n\\ny\"" },
        { "\"x" ESC "y" ESC URL ESC "z\"", "\"x" ESC "yz\"" },
        { "\"x\\n\\n" ESC "y" ESC "\\n\\n" ESC URL ESC "z\"",
          "\"x\\n\\n" ESC "y" ESC "z\"" },
        { "\"x" ESC "y" ESC "z" AD "\"", "\"x" ESC "y" ESC "z\"" },
        { "\"x" ESC "y" AD "\"", "\"x" ESC "y\"" },
        { "{\"a\":\"x" AD "\",\"b\":[\"" AD "\",{\"c\":\"" AD "\"}]}",
          "{\"a\":\"x\",\"b\":[\"\",{\"c\":\"\"}]}" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        check(cases[i].in, cases[i].out);
    }
}


static void
test_newlines(void **state)
{
    size_t  i;

    static const struct {
        const char  *in;
        const char  *out;
    } cases[] = {
        { "\\n", "" },
        { "\\n\\n", "" },
        { "\\n\\n\\n", "\\n" },
        { "\\u000a\\n", "" },
        { "\\n\\u000A", "" },
        { "\\u000A\\u000a\\n", "\\u000A" },
        { "\\n \\n", "\\n " },
        { "\\r\\n", "\\r" },
        { "\\t", "\\t" },
        { "\\u000b", "\\u000b" },
        { "\\u000d", "\\u000d" },

        /* a backslash and a letter */

        { "\\\\n", "\\\\n" },
        { "\\\\n\\n", "\\\\n" },
        { "\\\\\\n", "\\\\" },
        { "\\\\\\n\\n", "\\\\" },
        { "\\\\\\\\n", "\\\\\\\\n" },
        { "\\\\u000a", "\\\\u000a" },
        { "\\\\\\u000a", "\\\\" },
        { "n", "n" },
        { "u000a", "u000a" },
        { "", "" }
    };

    char  in[512], out[512];

    for (i = 0; i < NELTS(cases); i++) {
        sprintf(in, "\"x%s" ESC URL ESC "y\"", cases[i].in);
        sprintf(out, "\"x%sy\"", cases[i].out);
        check(in, out);

        sprintf(in, "\"%s" ESC URL ESC "\"", cases[i].in);
        sprintf(out, "\"%s\"", cases[i].out);
        check(in, out);

        /* behind an ad, and behind a mark of somebody else */

        sprintf(in, "\"" AD "%s" ESC URL ESC "y\"", cases[i].in);
        sprintf(out, "\"%sy\"", cases[i].out);
        check(in, out);

        sprintf(in, "\"" ESC "%s" ESC URL ESC "y\"", cases[i].in);
        sprintf(out, "\"" ESC "%sy\"", cases[i].out);
        check(in, out);
    }
}


/* P: a part that is an ad, Q and R: others */

#define P  "{\"type\":\"text\",\"text\":\"" AD "\"}"
#define Q  "{\"type\":\"text\",\"text\":\"q\"}"
#define R  "{\"text\":[],\"a\":{\"b\":7}}"


static void
test_elements(void **state)
{
    size_t  i;

    static const struct {
        const char  *in;
        const char  *out;
    } cases[] = {

        { "[" P "," Q "," R "]", "[" Q "," R "]" },
        { "[" Q "," P "," R "]", "[" Q "," R "]" },
        { "[" Q "," R "," P "]", "[" Q "," R "]" },
        { "[" P "," P "," Q "]", "[" Q "]" },
        { "[" Q "," P "," P "]", "[" Q "]" },
        { "[" P "," Q "," P "]", "[" Q "]" },
        { "[" P "," Q "," P "," R "," P "]", "[" Q "," R "]" },
        { "[" P "," P "," Q "," P "," P "," R "," P "," P "]",
          "[" Q "," R "]" },
        { "[" P "]", "[]" },
        { "[" P "," P "," P "]", "[]" },

        /* white space */

        { "[ " P " , " P "\n, " Q " ]", "[ " Q " ]" },
        { "[ " Q " , " P "\n, " P " ]", "[ " Q " ]" },
        { "[ " P " ]", "[  ]" },
        { "[\n" P ",\n" P "\n]", "[\n\n]" },

        /* elements of other kinds count, too */

        { "[1," P "]", "[1]" },
        { "[" P ",1]", "[1]" },
        { "[\"x\"," P ",\"" AD "\"]", "[\"x\",\"\"]" },
        { "[" P ",[" P "]," P "]", "[[]]" },

        /* all of the text, and more than the text */

        { "[{\"text\":\"x" AD "\"}]", "[{\"text\":\"x\"}]" },
        { "[{\"text\":\"" AD "\\n\"}]", "[{\"text\":\"\\n\"}]" },
        { "[{\"text\":\"" AD AD "\"}]", "[]" },
        { "[{\"t\\u0065xt\":\"" AD "\",\"a\":[{}]}]", "[]" },
        { "[{\"text\":\"\"}," P "]", "[{\"text\":\"\"}]" },
        { "[{\"title\":\"" AD "\"}]", "[{\"title\":\"\"}]" },

        /* the same key again: the last one wins */

        { "[{\"text\":\"" AD "\",\"text\":\"x\"}]",
          "[{\"text\":\"\",\"text\":\"x\"}]" },
        { "[{\"text\":\"" AD "\",\"text\":null}]",
          "[{\"text\":\"\",\"text\":null}]" },
        { "[{\"text\":\"" AD "\",\"text\":{}}]",
          "[{\"text\":\"\",\"text\":{}}]" },
        { "[{\"text\":\"" AD "\",\"text\":[1]}]",
          "[{\"text\":\"\",\"text\":[1]}]" },
        { "[{\"text\":\"x\",\"text\":\"" AD "\"}]", "[]" },
        { "[{\"text\":\"" AD "\",\"text\":\"" AD "\"}]", "[]" },

        /* not in an array */

        { "{\"text\":\"" AD "\"}", "{\"text\":\"\"}" },
        { "{\"a\":{\"text\":\"" AD "\"}}", "{\"a\":{\"text\":\"\"}}" },
        { "[{\"a\":{\"text\":\"" AD "\"}}]", "[{\"a\":{\"text\":\"\"}}]" },

        /* the object around it */

        { "[{\"content\":[" P "]}]", "[]" },
        { "[{\"content\":[" P "," P "]}," Q "]", "[" Q "]" },
        { "[" Q ",{\"role\":\"a\",\"content\":[" P "],\"id\":1}]",
          "[" Q "]" },
        { "{\"messages\":[{\"content\":\"x\"},{\"content\":[" P "]},"
          "{\"content\":\"y\"}]}",
          "{\"messages\":[{\"content\":\"x\"},{\"content\":\"y\"}]}" },
        { "{\"messages\":[{\"content\":[" P "," Q "]}]}",
          "{\"messages\":[{\"content\":[" Q "]}]}" },
        { "{\"messages\":[{\"content\":[" P "]},{\"content\":[" P "]}]}",
          "{\"messages\":[]}" },
        { "{\"content\":[" P "]}", "{\"content\":[]}" },
        { "{\"a\":{\"content\":[" P "]}}", "{\"a\":{\"content\":[]}}" },
        { "[{\"content\":[]}," P "]", "[{\"content\":[]}]" },
        { "[{\"content\":[[" P "]]}]", "[{\"content\":[[]]}]" },

        /* and around that, all the way up */

        { "[1,{\"a\":[{\"b\":[{\"c\":[" P "]}]}]}]", "[1]" },
        { "[1,{\"a\":[2,{\"b\":[{\"c\":[" P "]}]}]}]", "[1,{\"a\":[2]}]" },
        { "[{\"a\":[{\"b\":{\"c\":[" P "]}}]}]",
          "[{\"a\":[{\"b\":{\"c\":[]}}]}]" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        check(cases[i].in, cases[i].out);
    }
}


/* items that are ads by their ids, as of OpenAI Responses */

#define I  "{\"type\":\"item_reference\",\"id\":\"msg_kontext_1\"}"


static void
test_items(void **state)
{
    size_t  i;

    static const struct {
        const char  *in;
        const char  *out;
    } cases[] = {
        { "[" I "]", "[]" },
        { "[" I "," Q "," I "," I "]", "[" Q "]" },
        { "[" Q "," I "," P "," R "]", "[" Q "," R "]" },
        { "{\"input\":[{\"id\":\"msg_kontext\",\"content\":[{\"text\":"
          "\"x\"}]}]}", "{\"input\":[]}" },
        { "[{\"id\":\"msg_kontext\",\"text\":\"x\"}]", "[]" },
        { "[{\"text\":\"x\",\"id\":\"msg_kontext\"}]", "[]" },
        { "[{\"id\":\"msg_kontext\",\"text\":\"" AD "\"}]", "[]" },
        { "[{\"id\":\"msg_kontext\",\"a\":[" P "," Q "]}," Q "]",
          "[" Q "]" },

        /* nobody's */

        { "[{\"id\":\"msg_kontex\"}]", "[{\"id\":\"msg_kontex\"}]" },
        { "[{\"id\":\"a_msg_kontext\"}]", "[{\"id\":\"a_msg_kontext\"}]" },
        { "[{\"item_id\":\"msg_kontext\"}]",
          "[{\"item_id\":\"msg_kontext\"}]" },
        { "[\"msg_kontext\"]", "[\"msg_kontext\"]" },
        { "[{\"id\":[\"msg_kontext\"]}]", "[{\"id\":[\"msg_kontext\"]}]" },
        { "{\"id\":\"msg_kontext\"}", "{\"id\":\"msg_kontext\"}" },
        { "{\"a\":{\"id\":\"msg_kontext\"}}",
          "{\"a\":{\"id\":\"msg_kontext\"}}" },
        { "[" I, "[" I },

        /* the same key again */

        { "[{\"id\":\"msg_kontext\",\"id\":\"m\"}]",
          "[{\"id\":\"msg_kontext\",\"id\":\"m\"}]" },
        { "[{\"id\":\"msg_kontext\",\"id\":null}]",
          "[{\"id\":\"msg_kontext\",\"id\":null}]" },
        { "[{\"id\":\"m\",\"id\":\"msg_kontext\"}]", "[]" }
    };

    for (i = 0; i < NELTS(cases); i++) {
        check(cases[i].in, cases[i].out);
    }
}


static void
test_bad_json(void **state)
{
    size_t  i;

    static const char  *cases[] = {
        "",
        " ",
        RAW,
        "{",
        "\"" AD,
        "{\"a\":\"" AD "\"",
        "{\"a\":\"" AD "\"}}",
        "{\"a\":\"" AD "\",}",
        "{\"a\":\"" AD "\" \"b\":1}",
        "[" P ",]",
        "[" P "," Q,
        "[" P "," Q "}",
        "{\"a\":\"" AD "\",\"b\":tru}",
        "{\"a\":\"" AD "\",b:1}",
        "\"" AD "\" x",
        "[" P Q "]"
    };

    for (i = 0; i < NELTS(cases); i++) {
        check(cases[i], cases[i]);
    }
}


static void
test_deep(void **state)
{
    char      body[8192], out[8192];
    size_t    len, i, n;
    unsigned  levels;

    for (levels = KX_JSON_MAX_DEPTH - 2; levels < KX_JSON_MAX_DEPTH; levels++)
    {
        n = 0;

        for (i = 0; i < levels; i++) {
            body[n++] = '[';
        }

        n += (size_t) sprintf(body + n, P);

        for (i = 0; i < levels; i++) {
            body[n++] = ']';
        }

        assert_int_equal(cut(body, n, out, &len), 1);
        assert_int_equal(len, 2 * levels);
    }

    /* one more is an error */

    memmove(body + 1, body, n);
    body[0] = '[';
    body[n + 1] = ']';

    assert_int_equal(cut(body, n + 2, out, &len), 0);
}


static void
test_no_origin(void **state)
{
    kx_str_t    none = kx_string("");
    kx_range_t  ranges[KX_MAX_TEXT_ADS];

    static const char  body[] = "\"" ESC "/api/frame/" ESC "\"";

    assert_int_equal(kx_text_ad_find(ranges, (unsigned char *) body,
                                     sizeof(body) - 1, &none),
                     0);
}


/* more ads than there is room for: some stay, and nothing breaks */

static void
test_too_many(void **state)
{
    size_t    i, k, len, left;
    unsigned  n;

    static char  body[MAX_BODY], out[MAX_BODY];

    static const struct {
        const char  *head;
        const char  *element;
        const char  *tail;
        unsigned     ranges;
    } cases[] = {
        { "[0", "\"x" AD "\"", "]", KX_MAX_TEXT_ADS },
        { "[0", "{\"content\":\"" AD "\"}", "]", KX_MAX_TEXT_ADS },
        { "[0", Q "," P, "]", KX_MAX_TEXT_ADS },
        { "[0", P "," Q, "]", KX_MAX_TEXT_ADS },
        { "[0", "[" P "," Q "]", "]", KX_MAX_TEXT_ADS },
        { "[0", "[" P "]", "]", KX_MAX_TEXT_ADS },
        { "[0", "[" P "," P "]", "]", KX_MAX_TEXT_ADS },
        { "[0", "{\"a\":[" P "," P "," Q "]}", "]", KX_MAX_TEXT_ADS },

        /* neighbours are one range */

        { "[0", P, "]", 1 },
        { "[0", "{\"content\":[" P "," P "]}", "]", 1 },
        { "[[" P, P, "]]", 1 },
        { "[{\"a\":[" P, P, "]}]", 1 },

        /* what is full when an element that holds them all goes */

        { "[" Q ",{\"a\":[0", "\"" AD "\"", "],\"text\":\"" AD "\"}]", 1 },
        { "[{\"b\":[0", "\"x" AD "\"", "],\"a\":[" P "]}," Q "]", 1 },
        { "[{\"a\":[" P "],\"b\":[0", "\"x" AD "\"", "]}]", 1 },
        { "[" P "," Q ",[0", "\"" AD "\"", "]," P "," P "]",
          KX_MAX_TEXT_ADS }
    };

    for (i = 0; i < NELTS(cases); i++) {
        for (n = KX_MAX_TEXT_ADS - 2; n <= KX_MAX_TEXT_ADS + 3; n++) {
            len = (size_t) sprintf(body, "%s", cases[i].head);

            for (k = 0; k < n; k++) {
                len += (size_t) sprintf(body + len, ",%s", cases[i].element);
            }

            len += (size_t) sprintf(body + len, "%s", cases[i].tail);
            assert_true(valid((unsigned char *) body, len));

            k = cut(body, len, out, &left);

            if (!valid((unsigned char *) out, left)) {
                fail_msg("%s ... %s", cases[i].head, cases[i].tail);
            }

            if (n > KX_MAX_TEXT_ADS) {
                assert_int_equal(k, cases[i].ranges);
            }

            if (n < KX_MAX_TEXT_ADS - 1 || cases[i].ranges == 1) {
                assert_null(strstr(out, URL));
            }
        }
    }
}


/* a body that is made twice, with ads and without them */

typedef struct {
    unsigned  seed;
    unsigned  spaces;
    size_t    with;
    size_t    without;
    char      body[MAX_BODY];
    char      plain[MAX_BODY];
} maker_t;


static unsigned
dice(maker_t *m, unsigned n)
{
    m->seed = m->seed * 1103515245 + 12345;

    return (m->seed >> 16) % n;
}


static void
put(maker_t *m, const char *s)
{
    m->with += (size_t) sprintf(m->body + m->with, "%s", s);
    m->without += (size_t) sprintf(m->plain + m->without, "%s", s);
}


static void
space(maker_t *m)
{
    if (m->spaces && dice(m, 3) == 0) {
        put(m, dice(m, 2) ? " " : "\r\n\t");
    }
}


static void
put_ad(maker_t *m)
{
    static const char  *lfs[] = { "", "\\n", "\\n\\n", "\\u000a\\n" };
    static const char  *marks[] = { RAW, ESC };
    static const char  *texts[] = {
        URL, "Ad " URL ".", "[x](" URL ")", "\\\"" URL "\\\\",
        "https:\\/\\/ads.example\\/api\\/frame\\/7"
    };

    m->with += (size_t) sprintf(m->body + m->with, "%s%s%s%s",
                                lfs[dice(m, NELTS(lfs))], marks[dice(m, 2)],
                                texts[dice(m, NELTS(texts))],
                                marks[dice(m, 2)]);
}


/* a string that is more than ads */

static void
put_string(maker_t *m)
{
    unsigned  n;

    static const char  *words[] = {
        "a", "\\\\n", "\\\"]", " ", "\\n", "\xe2\x80\xa8", "\xe2\x81\xa4",
        "\\ud83d\\ude00", "\\u2064", "{[", "https://ads.example/", "\\\\",
        RAW "https://other.example/api/frame/1" RAW, "\\n\\n"
    };

    put(m, "\"");

    for (n = dice(m, 4); n; n--) {
        put(m, words[dice(m, NELTS(words))]);

        if (dice(m, 4) == 0) {

            /* not where its line feeds would be taken for those of the ad */

            put(m, "z");
            put_ad(m);
        }
    }

    put(m, ".\"");
}


static void put_value(maker_t *m, unsigned depth);


/* an array whose elements stay, but for some that are ads */

static void
put_array(maker_t *m, unsigned depth, const char *gone)
{
    unsigned  n, kept;

    put(m, "[");

    kept = 0;

    for (n = 1 + dice(m, 4); n; n--) {

        if (dice(m, 3) == 0) {

            /* with the comma that is nearer to it */

            if (m->body[m->with - 1] != '[') {
                m->body[m->with++] = ',';
            }

            m->with += (size_t) sprintf(m->body + m->with, "%s", gone);
            continue;
        }

        if (m->body[m->with - 1] != '[') {
            m->body[m->with++] = ',';
        }

        if (kept++) {
            m->plain[m->without++] = ',';
        }

        space(m);
        put_value(m, depth - 1);
    }

    if (kept == 0) {

        if (m->body[m->with - 1] != '[') {
            m->body[m->with++] = ',';
        }

        put_string(m);
    }

    put(m, "]");
}


static void
put_value(maker_t *m, unsigned depth)
{
    unsigned  n;

    static const char  *parts[] = {
        P,
        "{\"text\":\"" RAW URL RAW "\"}",
        "{\"a\":[1,{}],\"text\":\"" AD AD "\",\"b\":\"" AD "\"}",
        "{\"role\":\"assistant\",\"content\":[" P "]}",
        "{\"content\":[ " P ", " P " ],\"parts\":{\"text\":\"" AD "\"}}"
    };

    switch (depth ? dice(m, 6) : dice(m, 3)) {

    case 0:
    case 1:
        put_string(m);
        break;

    case 2:
        put(m, dice(m, 2) ? "-1.5e3" : "null");
        break;

    case 3:
    case 4:
        put_array(m, depth, parts[dice(m, NELTS(parts))]);
        break;

    default:
        put(m, "{");

        for (n = dice(m, 3); n; n--) {
            put(m, dice(m, 2) ? "\"text\"" : "\"content\"");
            space(m);
            put(m, ":");
            space(m);
            put_value(m, depth - 1);
            put(m, ",");
        }

        put(m, "\"id\":1}");
    }

    space(m);
}


static void
test_random_bodies(void **state)
{
    char      *printed, *expected;
    cJSON     *json;
    size_t     len;
    unsigned   i, n, ads;

    static char     out[MAX_BODY];
    static maker_t  m;

    ads = 0;

    for (i = 1; i <= 4000; i++) {
        m.seed = i * 7919;
        m.spaces = i % 2;
        m.with = 0;
        m.without = 0;

        put_value(&m, 4);

        assert_true(valid((unsigned char *) m.body, m.with));
        assert_true(valid((unsigned char *) m.plain, m.without));

        n = cut(m.body, m.with, out, &len);
        ads += n;

        if (n == KX_MAX_TEXT_ADS) {
            continue;
        }

        json = cJSON_ParseWithLength(out, len);
        printed = cJSON_PrintUnformatted(json);
        cJSON_Delete(json);

        json = cJSON_ParseWithLength(m.plain, m.without);
        expected = cJSON_PrintUnformatted(json);
        cJSON_Delete(json);

        assert_non_null(printed);
        assert_non_null(expected);

        if (strcmp(printed, expected) != 0) {
            fail_msg("%u: %s\n%s\n%s", i, m.body, printed, expected);
        }

        /* and to the byte, if there is no white space */

        if (!m.spaces && strcmp(out, m.plain) != 0) {
            fail_msg("%u: %s\n%s\n%s", i, m.body, out, m.plain);
        }

        cJSON_free(printed);
        cJSON_free(expected);
    }

    assert_true(ads > 4000);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_write),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_marks),
        cmocka_unit_test(test_newlines),
        cmocka_unit_test(test_elements),
        cmocka_unit_test(test_items),
        cmocka_unit_test(test_bad_json),
        cmocka_unit_test(test_deep),
        cmocka_unit_test(test_no_origin),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_random_bodies)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
