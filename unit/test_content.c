/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The text in the content of a message.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "content.h"


#define FFFD  "\xef\xbf\xbd"


typedef struct {
    size_t      len;
    char        text[4096];
} text_t;


static const kx_str_t  types[] = {
    kx_string("text"),
    kx_string("input_text"),
    kx_string("")
};


static void
sink(void *data, const unsigned char *p, size_t len)
{
    text_t  *t = data;

    assert_true(len > 0);
    assert_true(t->len + len < sizeof(t->text));

    memcpy(t->text + t->len, p, len);
    t->len += len;
}


static void
check(const char *content, const kx_str_t *of, const char *text)
{
    text_t     t;
    kx_str_t   raw;

    raw.len = strlen(content);
    raw.data = malloc(raw.len ? raw.len : 1);
    assert_non_null(raw.data);
    memcpy(raw.data, content, raw.len);

    t.len = 0;
    kx_content_text(&raw, of, sink, &t);
    t.text[t.len] = '\0';

    if (strcmp(t.text, text) != 0) {
        fail_msg("%s: \"%s\", not \"%s\"", content, t.text, text);
    }

    free(raw.data);
}


static void
test_strings(void **state)
{
    check("\"\"", types, "");
    check("\"a\"", types, "a");
    check(" \"a\\n\\\"\\u00e9\\ud83d\\ude00\" ", types,
          "a\n\"\xc3\xa9\xf0\x9f\x98\x80");
    check("\"a\\ud83d\"", types, "a" FFFD);
    check("\"\\ud83d\"", types, FFFD);
    check("\"a\xff\"", types, "a" FFFD);
    check("\"a\"", &types[2], "a");
}


static void
test_parts(void **state)
{
    check("[]", types, "");
    check("[{\"type\":\"text\",\"text\":\"a\"}]", types, "a");
    check("[{\"text\":\"a\",\"type\":\"text\"}]", types, "a");
    check("[{\"type\":\"text\",\"text\":\"a\"},"
          "{\"type\":\"input_text\",\"text\":\"b\"}]", types, "a\nb");
    check("[{\"t\\u0079pe\":\"te\\u0078t\",\"\\u0074ext\":\"a\"}]", types,
          "a");
    check("[{\"type\":\"text\",\"text\":\"\"},"
          "{\"type\":\"text\",\"text\":\"b\"},"
          "{\"type\":\"text\",\"text\":\"\"}]", types, "\nb\n");

    /* halves of a pair that are in two parts are two halves */

    check("[{\"type\":\"text\",\"text\":\"\\ud83d\"},"
          "{\"type\":\"text\",\"text\":\"\\ude00\"}]", types, FFFD "\n" FFFD);

    /* among others, which may have all kinds of members */

    check("[{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\","
          "\"text\":\"n\"}},"
          "{\"type\":\"text\",\"text\":\"a\",\"annotations\":[{\"type\":"
          "\"x\",\"text\":\"n\"}],\"n\":1,\"b\":true,\"z\":null},"
          "{\"type\":\"thinking\",\"text\":\"n\"},"
          "\"n\",7,null,[{\"type\":\"text\",\"text\":\"n\"}],{},"
          "{\"type\":\"text\",\"text\":\"b\"}]", types, "a\nb");

    /* not a text */

    check("[{\"text\":\"a\"}]", types, "");
    check("[{\"type\":\"text\"}]", types, "");
    check("[{\"type\":\"text\",\"text\":null}]", types, "");
    check("[{\"type\":\"text\",\"text\":{\"value\":\"a\"}}]", types, "");
    check("[{\"type\":null,\"text\":\"a\"}]", types, "");
    check("[{\"type\":\"\",\"text\":\"a\"}]", types, "");
    check("[{\"type\":\"Text\",\"text\":\"a\"}]", types, "");
    check("[{\"type\":\"texts\",\"text\":\"a\"}]", types, "");
    check("[{\"type\":\"text\",\"text\":\"a\"}]", &types[2], "");

    /* the last one of a name */

    check("[{\"type\":\"text\",\"text\":\"a\",\"text\":\"b\"}]", types, "b");
    check("[{\"type\":\"text\",\"text\":\"a\",\"type\":\"x\"}]", types, "");
    check("[{\"type\":\"x\",\"text\":\"a\",\"type\":\"text\"}]", types, "a");
}


static void
test_others(void **state)
{
    size_t  i;

    static const char  *cases[] = {
        "", " ", "null", "true", "7", "{}",
        "{\"type\":\"text\",\"text\":\"a\"}",
        "x", "\"", "\"a", "[", "]", "[x", "[,", "[{", "[{\"type\":\"text\"",
        "[{\"type\":\"text\",\"text\":\"a\"",
        "[{\"type\":\"text\",\"text\":\"a\",}]",
        "[{\"type\":\"text\",\"text\":a}]",
        "[{\"type\" \"text\",\"text\":\"a\"}]",
        "[{\"type\":tru,\"text\":\"a\"}]"
    };

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        check(cases[i], types, "");
    }

    /* what is bad ends it */

    check("[{\"type\":\"text\",\"text\":\"a\"},x,"
          "{\"type\":\"text\",\"text\":\"b\"}]", types, "a");
    check("[{\"type\":\"text\",\"text\":\"a\"} "
          "{\"type\":\"text\",\"text\":\"b\"}]", types, "a");
    check("[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\"", types,
          "a");
    check("[{\"type\":\"text\",\"text\":\"a\"},{\"a\":01},"
          "{\"type\":\"text\",\"text\":\"b\"}]", types, "a");
}


/* containers within parts, down to where the scanner stops */

static void
test_depth(void **state)
{
    char      content[2048];
    size_t    i, n;
    unsigned  levels;

    for (levels = KX_JSON_MAX_DEPTH - 2; levels <= KX_JSON_MAX_DEPTH - 1;
         levels++)
    {
        n = (size_t) sprintf(content, "[{\"type\":\"text\",\"a\":");

        for (i = 0; i < levels; i++) {
            content[n++] = '[';
        }

        for (i = 0; i < levels; i++) {
            content[n++] = ']';
        }

        sprintf(content + n, ",\"text\":\"a\"}]");

        check(content, types, levels < KX_JSON_MAX_DEPTH - 1 ? "a" : "");
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_others),
        cmocka_unit_test(test_depth)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
