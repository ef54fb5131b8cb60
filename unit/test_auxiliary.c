/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Questions that front ends ask the model themselves: by their first words,
 * and in a request, where the text is canonical and the newest one counts.
 */


#include "chat.h"

#include "auxiliary.h"


/* memory that ends with the text */

static unsigned
auxiliary(const char *s, size_t len)
{
    unsigned        rc;
    unsigned char  *p;

    if (len > KX_AUXILIARY_LEN) {
        len = KX_AUXILIARY_LEN;
    }

    p = malloc(len ? len : 1);
    assert_non_null(p);
    memcpy(p, s, len);

    rc = kx_auxiliary(p, len);

    free(p);

    return rc;
}


static void
test_openings(void **state)
{
    size_t  i, n, len;

    static const char  *openings[] = {
        "### Task: ",
        "Please generate a concise, 5-word-or-less title for the",
        "Provide a concise, 5-word-or-less title for the",
        "Analyze this conversation and provide: 1. The detected",
        "Please write a 5-10 word title for the following",
        "Generate a concise, 3-5 word title",
        "Create a concise, 3-5 word title",
        "Create a concise, 3-5 word phrase"
    };

    char  text[256];

    for (i = 0; i < sizeof(openings) / sizeof(openings[0]); i++) {
        len = strlen(openings[i]);

        assert_true(len <= KX_AUXILIARY_LEN);
        assert_true(auxiliary(openings[i], len));

        for (n = 0; n < len; n++) {
            assert_false(auxiliary(openings[i], n));
        }

        snprintf(text, sizeof(text), "%s and more, much more than is ever "
                 "looked at of a message's text", openings[i]);
        assert_true(auxiliary(text, strlen(text)));

        snprintf(text, sizeof(text), " %s", openings[i]);
        assert_false(auxiliary(text, strlen(text)));

        for (n = 0; n < len; n++) {
            memcpy(text, openings[i], len);
            text[n] ^= 0x20;
            assert_false(auxiliary(text, len));
        }
    }
}


static void
test_others(void **state)
{
    size_t  i;

    static const char  *texts[] = {
        "",
        "hi",
        "### Task",
        "### Tasks: a list of them",
        "Please generate a concise title",
        "Can you generate a concise, 3-5 word title?"
    };

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        assert_false(auxiliary(texts[i], strlen(texts[i])));
    }
}


static void
test_requests(void **state)
{
    size_t  i;

    static chat_t  chat;

    static const struct {
        const char  *messages;
        unsigned     auxiliary;
    } cases[] = {
        { "{\"role\":\"user\",\"content\":\"hi\"}", 0 },

        { "{\"role\":\"user\",\"content\":\"### Task:\\nGenerate a title\"}",
          1 },
        { "{\"role\":\"user\",\"content\":\" \\n### \\u0054ask:\\t\\n  x\"}",
          1 },
        { "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":"
          "\"### Task:\"},{\"type\":\"text\",\"text\":\"x\"}]}", 1 },
        { "{\"role\":\"user\",\"content\":\"<think>x</think>### Task: x\"}",
          1 },
        { "{\"role\":\"user\",\"content\":\"### Task:\"}", 0 },

        /* the newest message counts, and only one of the user */

        { "{\"role\":\"user\",\"content\":\"### Task: x\"},"
          "{\"role\":\"assistant\",\"content\":\"y\"},"
          "{\"role\":\"user\",\"content\":\"thanks\"}", 0 },
        { "{\"role\":\"user\",\"content\":\"hi\"},"
          "{\"role\":\"assistant\",\"content\":\"y\"},"
          "{\"role\":\"user\",\"content\":\"### Task: x\"}", 1 },
        { "{\"role\":\"assistant\",\"content\":\"### Task: x\"}", 0 },
        { "{\"role\":\"system\",\"content\":\"### Task: x\"}", 0 },
        { "{\"role\":\"user\",\"content\":\"### Task: x\"},"
          "{\"role\":\"system\",\"content\":\"y\"}", 0 }
    };

    char  body[512];

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(body, sizeof(body), "{\"messages\":[%s]}",
                 cases[i].messages);

        chat_start(&chat, &kx_openai_chat, "/v1/chat/completions", body,
                   KX_FRAMING_SSE, KX_FORM_MEMBER);

        if (chat.cv.auxiliary != cases[i].auxiliary) {
            fail_msg("%s", body);
        }
    }

    /* messages that are given twice */

    chat_start(&chat, &kx_openai_chat, "/v1/chat/completions",
               "{\"messages\":[{\"role\":\"user\",\"content\":"
               "\"### Task: x\"}],\"messages\":[]}",
               KX_FRAMING_SSE, KX_FORM_MEMBER);
    assert_int_equal(chat.cv.auxiliary, 0);

    chat_done(&chat);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_openings),
        cmocka_unit_test(test_others),
        cmocka_unit_test(test_requests)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
