/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is taken out of messages.  The first byte says what is looked for and
 * whether the text was cut, the second one where a secret is put into the
 * rest; both have to hold:
 *
 *   - The text is left as it was.  What comes out is no longer than a sixth
 *     more, is UTF-8 if the text is, and is the text with placeholders in
 *     place of some parts of it.
 *   - A secret that stands by itself is gone, whatever is around it.
 */


#include <stdlib.h>

#include <cjson/cJSON.h>

#include "check.h"
#include "json_scan.h"
#include "redact.h"


#define MAX_DERIVED  80


typedef struct {
    unsigned     kind;
    const char  *text;
    size_t       core;               /* what of it must not be left */
    size_t       len;
} secret_t;


static unsigned utf8_valid(const unsigned char *p, size_t len);
static const unsigned char *find(const unsigned char *p, size_t len,
    const char *s, size_t n);
static unsigned placeholder(const unsigned char *p, size_t len);
static unsigned derived(const kx_str_t *out, const kx_str_t *text,
    unsigned cut);
static void fuzz_redact(const unsigned char *p, size_t len, unsigned kinds,
    unsigned cut);
static void fuzz_secret(const unsigned char *p, size_t len, unsigned kinds,
    unsigned where);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


static const secret_t  secrets[] = {
    { KX_REDACT_EMAIL, " qzq@secret.example ", 1, 18 },
    { KX_REDACT_PHONE, "\n+14155550132\n", 1, 12 },
    { KX_REDACT_CARD, "\n5105105105105100\n", 1, 16 },
    { KX_REDACT_KEY, " AKIAQZQZQZQZQZQZ2345 ", 1, 20 },
    { KX_REDACT_KEY, " ghp_qzqzqzqzqzqzqzqzqzqzqzqzqzqz12QZ ", 1, 36 },
};


static unsigned
utf8_valid(const unsigned char *p, size_t len)
{
    const unsigned char  *last;

    last = p + len;

    while (p < last) {
        if (kx_utf8_read(&p, last) == KX_BAD_UTF8) {
            return 0;
        }
    }

    return 1;
}


static const unsigned char *
find(const unsigned char *p, size_t len, const char *s, size_t n)
{
    for ( /* void */ ; len >= n; p++, len--) {
        if (memcmp(p, s, n) == 0) {
            return p;
        }
    }

    return NULL;
}


static unsigned
placeholder(const unsigned char *p, size_t len)
{
    unsigned  i;

    static const char *const  names[] = {
        "[email]", "[phone]", "[card]", "[key]"
    };

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (len >= strlen(names[i])
            && memcmp(p, names[i], strlen(names[i])) == 0)
        {
            return (unsigned) strlen(names[i]);
        }
    }

    return 0;
}


/* may it have been made of the text, up to its end unless it was cut? */

static unsigned
derived(const kx_str_t *out, const kx_str_t *text, unsigned cut)
{
    size_t    i, j, to;
    unsigned  n, any;

    /* [i][j]: i bytes of the result may be made of j bytes of the text */

    static unsigned char  may[2 * MAX_DERIVED][MAX_DERIVED + 1];

    memset(may, 0, sizeof(may));
    may[0][0] = 1;

    for (i = 0; i < out->len; i++) {
        n = placeholder(out->data + i, out->len - i);
        any = 0;

        for (j = 0; j <= text->len; j++) {
            any |= may[i][j];

            if (may[i][j] && j < text->len
                && out->data[i] == text->data[j])
            {
                may[i + 1][j + 1] = 1;
            }

            if (any && n) {
                may[i + n][j] = 1;
            }
        }
    }

    to = text->len;

    for (j = cut ? 0 : to; j <= to; j++) {
        if (may[out->len][j]) {
            return 1;
        }
    }

    return 0;
}


static void
fuzz_redact(const unsigned char *p, size_t len, unsigned kinds, unsigned cut)
{
    kx_str_t        text, out;
    unsigned char  *exact, *copy;

    exact = malloc(len ? len : 1);
    check(exact != NULL);

    if (len) {
        memcpy(exact, p, len);
    }

    text.len = len;
    text.data = exact;

    check(kx_redact(&out, &copy, &text, kinds, cut) == KX_OK);
    check(len == 0 || memcmp(exact, p, len) == 0);
    check(out.len <= len + len / 6);

    if (copy == NULL) {
        check(out.len <= len && (out.len == 0 || out.data == exact));
        check(cut || out.len == len);

    } else {
        check(kinds != 0);
        check(out.data == copy);
    }

    if (kinds == 0) {
        check(out.len == len);
    }

    check(!utf8_valid(p, len) || utf8_valid(out.data, out.len));

    if (len <= MAX_DERIVED) {
        check(derived(&out, &text, cut));
    }

    cJSON_free(copy);
    free(exact);
}


static void
fuzz_secret(const unsigned char *p, size_t len, unsigned kinds,
    unsigned where)
{
    size_t           at;
    kx_str_t         text, out;
    unsigned char   *with, *copy;
    const secret_t  *s;

    s = &secrets[where % (sizeof(secrets) / sizeof(secrets[0]))];
    at = len ? where % (len + 1) : 0;

    text.len = len + strlen(s->text);
    with = malloc(text.len);
    check(with != NULL);

    if (len) {
        memcpy(with, p, at);
        memcpy(with + text.len - (len - at), p + at, len - at);
    }

    memcpy(with + at, s->text, strlen(s->text));

    text.data = with;

    if (find(p, len, s->text + s->core, s->len) == NULL) {
        check(kx_redact(&out, &copy, &text, kinds | s->kind, 0) == KX_OK);
        check(find(out.data, out.len, s->text + s->core, s->len) == NULL);

        cJSON_free(copy);
    }

    free(with);
}


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    if (len < 2) {
        return 0;
    }

    fuzz_redact(p + 2, len - 2, p[0] & KX_REDACT_ALL, p[0] >> 7);
    fuzz_secret(p + 2, len - 2, p[0] & KX_REDACT_ALL, p[1]);

    return 0;
}
