/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#define _GNU_SOURCE                  /* memmem() */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <cjson/cJSON.h>

#include "api.h"
#include "hash.h"


#define MAX_BLOCKS  16384

#define BID    "019a5c21-9f00-7d44-a1b2-3c4d5e6f7081"
#define BID_U  "019A5C21-9F00-7D44-A1B2-3C4D5E6F7081"

#define FFFD   "\xef\xbf\xbd"

#define count(array)  (sizeof(array) / sizeof((array)[0]))


/* what is read, and what comes of it: a text, or an error */

typedef struct {
    const char             *body;
    const char             *text;
    const kx_api_error_t   *error;
} case_t;


typedef struct {
    const char             *older;
    const char             *newer;
    const char             *text;
    const kx_api_error_t   *error;
} merge_t;


/* an operation that is repeated while memory fails; 1: it found none */

typedef int (*run_pt)(void);


static void *pool_alloc(void *data, size_t size);
static void pool_free(void);
static void *failing_malloc(size_t size);
static kx_str_t text(const char *s);
static unsigned char *exact(const void *p, size_t len);
static const kx_api_error_t *read_session(kx_api_session_t *s,
    const void *body, size_t len);
static const kx_api_error_t *read_patch(kx_str_t *options, const void *body,
    size_t len);
static const kx_api_error_t *read_messages(kx_api_message_t **m, unsigned *n,
    const void *body, size_t len);
static const kx_api_error_t *read_event(kx_api_event_t *e, const void *body,
    size_t len);
static void assert_str(const kx_str_t *s, const char *expected);
static void assert_line(const kx_str_t *s);
static void assert_error(const kx_api_error_t *error,
    const kx_api_error_t *expected, const char *body);
static unsigned char *padded(const char *start, const char *end, size_t len);


static void    *blocks[MAX_BLOCKS];
static size_t   nblocks, pool_bytes;
static size_t   pool_allowed = MAX_BLOCKS;

static unsigned long  allocations, allowed;

static kx_pool_t  pool = { pool_alloc, NULL };

static const unsigned char  key[] = "0123456789abcdef";


static void *
pool_alloc(void *data, size_t size)
{
    /* nobody asks for nothing */

    assert_true(size > 0);

    if (nblocks >= pool_allowed) {
        return NULL;
    }

    assert_true(nblocks < MAX_BLOCKS);

    blocks[nblocks] = malloc(size);
    assert_non_null(blocks[nblocks]);

    memset(blocks[nblocks], 0xee, size);
    pool_bytes += size;

    return blocks[nblocks++];
}


static void
pool_free(void)
{
    while (nblocks) {
        free(blocks[--nblocks]);
    }

    pool_bytes = 0;
}


static void *
failing_malloc(size_t size)
{
    return (allocations++ < allowed) ? malloc(size) : NULL;
}


static kx_str_t
text(const char *s)
{
    kx_str_t  str;

    str.len = strlen(s);
    str.data = (unsigned char *) s;

    return str;
}


/* a copy in memory that ends where it ends */

static unsigned char *
exact(const void *p, size_t len)
{
    unsigned char  *copy;

    copy = malloc(len ? len : 1);
    assert_non_null(copy);

    if (len) {
        memcpy(copy, p, len);
    }

    return copy;
}


static const kx_api_error_t *
read_session(kx_api_session_t *s, const void *body, size_t len)
{
    unsigned char         *copy;
    const kx_api_error_t  *error;

    copy = exact(body, len);
    error = kx_api_read_session(s, copy, len, &pool);
    free(copy);

    return error;
}


static const kx_api_error_t *
read_patch(kx_str_t *options, const void *body, size_t len)
{
    unsigned char         *copy;
    const kx_api_error_t  *error;

    copy = exact(body, len);
    error = kx_api_read_patch(options, copy, len, &pool);
    free(copy);

    return error;
}


static const kx_api_error_t *
read_messages(kx_api_message_t **m, unsigned *n, const void *body, size_t len)
{
    unsigned char         *copy;
    const kx_api_error_t  *error;

    copy = exact(body, len);
    error = kx_api_read_messages(m, n, copy, len, &pool);
    free(copy);

    return error;
}


static const kx_api_error_t *
read_event(kx_api_event_t *e, const void *body, size_t len)
{
    unsigned char         *copy;
    const kx_api_error_t  *error;

    copy = exact(body, len);
    error = kx_api_read_event(e, copy, len, &pool);
    free(copy);

    return error;
}


static void
assert_str(const kx_str_t *s, const char *expected)
{
    if (s->len != strlen(expected) || memcmp(s->data, expected, s->len)) {
        fail_msg("expected %s\ngot %.*s", expected, (int) s->len, s->data);
    }
}


/* JSON on one line for everybody who reads lines */

static void
assert_line(const kx_str_t *s)
{
    cJSON          *root;
    size_t          i;
    unsigned char  *p;

    p = s->data;

    assert_true(s->len > 0);

    for (i = 0; i < s->len; i++) {
        assert_true(p[i] >= ' ');

        if (i + 2 < s->len && p[i] == 0xe2 && p[i + 1] == 0x80) {
            assert_true(p[i + 2] != 0xa8 && p[i + 2] != 0xa9);
        }
    }

    root = cJSON_ParseWithLength((char *) p, s->len);
    assert_non_null(root);
    cJSON_Delete(root);
}


static void
assert_error(const kx_api_error_t *error, const kx_api_error_t *expected,
    const char *body)
{
    if (error != expected) {
        fail_msg("%.300s: %s, not %s", body,
                 error ? (char *) error->code.data : "no error",
                 expected ? (char *) expected->code.data : "no error");
    }
}


/* a body of len bytes, filled up with "x" between start and end */

static unsigned char *
padded(const char *start, const char *end, size_t len)
{
    unsigned char  *p;

    p = malloc(len);
    assert_non_null(p);
    assert_true(strlen(start) + strlen(end) <= len);

    memset(p, 'x', len);
    memcpy(p, start, strlen(start));
    memcpy(p + len - strlen(end), end, strlen(end));

    return p;
}


#define CHARACTER  "{\"id\":\"ch-1\",\"name\":\"Merlin\","                    \
                   "\"avatarUrl\":\"https://a.b/m.png\","                     \
                   "\"greeting\":\"Hail\",\"persona\":\"wise\","              \
                   "\"tags\":[\"old\",\"beard\"],\"isNsfw\":false}"
#define REGULATORY  "{\"gdpr\":1,\"gdprConsent\":\"CPx\",\"coppa\":0,"        \
                    "\"gpp\":\"DBA\",\"gppSid\":[2,7],"                       \
                    "\"usPrivacy\":\"1YNN\"}"
#define OPTIONS    "{\"character\":" CHARACTER ",\"regulatory\":" REGULATORY  \
                   ",\"variantId\":\"b\",\"userEmail\":\"a@example.com\"}"

#define FULL  "{\"userEmail\":\"a@example.com\",\"variantId\":\"b\","         \
              "\"regulatory\":" REGULATORY ",\"character\":" CHARACTER ","    \
              "\"conversationId\":\"c-77\",\"userId\":\"u-381\"}"


static const case_t  sessions[] = {
    { FULL, OPTIONS, NULL },
    { " {\"userId\" : \"u\"\r\n, \"conversationId\":\t\"c\" } ", "{}", NULL },
    { "{}", "{}", NULL },
    { "{\"userId\":null,\"conversationId\":null,\"character\":null,"
      "\"regulatory\":null,\"variantId\":null,\"userEmail\":null}", "{}",
      NULL },

    /* what is empty is a value, too; what is not known is wrong */

    { "{\"variantId\":\"\",\"userEmail\":\"\",\"regulatory\":{}}",
      "{\"regulatory\":{},\"variantId\":\"\",\"userEmail\":\"\"}", NULL },
    { "{\"regulatory\":{\"gdprConsent\":\"\",\"gdpr\":null}}",
      "{\"regulatory\":{\"gdprConsent\":\"\"}}", NULL },
    { "{\"regulatory\":{\"gppSid\":[]}}",
      "{\"regulatory\":{\"gppSid\":[]}}", NULL },
    { "{\"regulatory\":{\"gdpr\":0,\"title\":{\"a\":[]}}}", NULL,
      &kx_api_unknown_member },
    { "{\"regulatory\":{\"gdprconsent\":\"a\"}}", NULL,
      &kx_api_unknown_member },
    { "{\"character\":{\"__proto__\":{\"x\":1},\"name\":\"n\",\"id\":\"i\"}}",
      NULL, &kx_api_unknown_member },
    { "{\"character\":{\"isNsfw\":null,\"name\":\"n\",\"tags\":[\"\"],"
      "\"id\":\"i\",\"greeting\":\"\"}}",
      "{\"character\":{\"id\":\"i\",\"name\":\"n\",\"greeting\":\"\","
      "\"tags\":[]}}", NULL },
    { "{\"character\":{\"name\":\"n\",\"id\":\"i\","
      "\"tags\":[\"a\",\"\",\"b\"],\"isNsfw\":true}}",
      "{\"character\":{\"id\":\"i\",\"name\":\"n\",\"tags\":[\"a\",\"b\"],"
      "\"isNsfw\":true}}", NULL },
    { "{\"regulatory\":{\"gppSid\":[0,2147483647,2.0,1e1]}}",
      "{\"regulatory\":{\"gppSid\":[0,2147483647,2,10]}}", NULL },

    /* the first of two counts, also if it is null */

    { "{\"variantId\":\"a\",\"variantId\":\"b\"}", "{\"variantId\":\"a\"}",
      NULL },
    { "{\"variantId\":null,\"variantId\":\"b\"}", "{}", NULL },
    { "{\"regulatory\":{\"gdpr\":1,\"gdpr\":7}}",
      "{\"regulatory\":{\"gdpr\":1}}", NULL },

    /* text */

    { "{\"variantId\":\"\\u0000\"}", "{\"variantId\":\"" FFFD "\"}", NULL },
    { "{\"variantId\":\"a\\ud800b\\udc00\\ud83d\\ude00\"}",
      "{\"variantId\":\"a" FFFD "b" FFFD "\xf0\x9f\x98\x80\"}", NULL },
    { "{\"variantId\":\"\\ud800\\ud83d\\ude00\"}",
      "{\"variantId\":\"" FFFD "\xf0\x9f\x98\x80\"}", NULL },
    { "{\"variantId\":\"\\ud800\\u0041\\ud800\\\\udc00\"}",
      "{\"variantId\":\"" FFFD "A" FFFD "\\\\udc00\"}", NULL },
    { "{\"variantId\":\"\xff\xc3\xa9\xed\xa0\x80\"}",
      "{\"variantId\":\"" FFFD "\xc3\xa9" FFFD FFFD FFFD "\"}", NULL },
    { "{\"variantId\":\"\\u2028\\u2029\xe2\x80\xa8 \xe2\x80\xaa\xe2\x82\xa8"
      "\xe2\x80\"}",
      "{\"variantId\":\"\\u2028\\u2029\\u2028 \xe2\x80\xaa\xe2\x82\xa8"
      FFFD "\"}", NULL },
    { "{\"variantId\":\"\\n\\r\\t\\b\\f\\u0001\\u001f\\u007f\\/\\\"\"}",
      "{\"variantId\":\"\\n\\r\\t\\b\\f\\u0001\\u001f\x7f/\\\"\"}", NULL },

    { "", NULL, &kx_api_bad_json },
    { " ", NULL, &kx_api_bad_json },
    { "oops", NULL, &kx_api_bad_json },
    { "null", NULL, &kx_api_bad_json },
    { "7", NULL, &kx_api_bad_json },
    { "\"{}\"", NULL, &kx_api_bad_json },
    { "[]", NULL, &kx_api_bad_json },
    { "[{}]", NULL, &kx_api_bad_json },
    { "{}{}", NULL, &kx_api_bad_json },
    { "{} x", NULL, &kx_api_bad_json },
    { "{,}", NULL, &kx_api_bad_json },
    { "{\"variantId\":\"a\",}", NULL, &kx_api_bad_json },
    { "{'variantId':'a'}", NULL, &kx_api_bad_json },
    { "{\"variantId\":\"\n\"}", NULL, &kx_api_bad_json },
    { "{\"variantId\":\"\\x\"}", NULL, &kx_api_bad_json },
    { "{\"variantId\":\"\\u12g4\"}", NULL, &kx_api_bad_json },
    { "{\"variantId\":\"\\u12\"}", NULL, &kx_api_bad_json },
    { "{\"variantId\":NaN}", NULL, &kx_api_bad_json },
    { "{\"variantId\":Infinity}", NULL, &kx_api_bad_json },
    { "{\"variantId\":-Infinity}", NULL, &kx_api_bad_json },
    { "\xef\xbb\xbf{}", NULL, &kx_api_bad_json },
    { "{}\xff", NULL, &kx_api_bad_json },
    { "{\"regulatory\":{\"gdpr\":1"
      "000000000000000000000000000000000000000000000000000000000000000}}",
      NULL, &kx_api_bad_json },

    { "{\"x\":1}", NULL, &kx_api_unknown_member },
    { "{\"x\":null}", NULL, &kx_api_unknown_member },
    { "{\"\":\"\"}", NULL, &kx_api_unknown_member },
    { "{\"userid\":\"u\"}", NULL, &kx_api_unknown_member },
    { "{\"userId\\u0000\":\"u\"}", NULL, &kx_api_unknown_member },
    { "{\"__proto__\":{\"userId\":\"u\"}}", NULL, &kx_api_unknown_member },
    { "{\"publisherToken\":\"t\"}", NULL, &kx_api_unknown_member },

    { "{\"userId\":\"\"}", NULL, &kx_api_bad_member },
    { "{\"userId\":7}", NULL, &kx_api_bad_member },
    { "{\"userId\":true}", NULL, &kx_api_bad_member },
    { "{\"userId\":[\"u\"]}", NULL, &kx_api_bad_member },
    { "{\"userId\":{}}", NULL, &kx_api_bad_member },
    { "{\"userId\":\"a\\u0000\"}", NULL, &kx_api_bad_member },
    { "{\"userId\":\"a\\ud800\"}", NULL, &kx_api_bad_member },
    { "{\"userId\":\"a\xff\"}", NULL, &kx_api_bad_member },
    { "{\"userId\":\"a" FFFD "\"}", NULL, &kx_api_bad_member },
    { "{\"conversationId\":\"\"}", NULL, &kx_api_bad_member },
    { "{\"conversationId\":1e999}", NULL, &kx_api_bad_member },
    { "{\"conversationId\":\"\\udfff\"}", NULL, &kx_api_bad_member },
    { "{\"variantId\":7}", NULL, &kx_api_bad_member },
    { "{\"userEmail\":{}}", NULL, &kx_api_bad_member },
    { "{\"character\":[]}", NULL, &kx_api_bad_member },
    { "{\"character\":\"Merlin\"}", NULL, &kx_api_bad_member },
    { "{\"character\":{}}", NULL, &kx_api_missing_member },
    { "{\"character\":{\"id\":\"i\"}}", NULL, &kx_api_missing_member },
    { "{\"character\":{\"id\":null,\"name\":\"n\"}}", NULL,
      &kx_api_missing_member },
    { "{\"character\":{\"id\":\"\",\"name\":\"n\"}}", NULL,
      &kx_api_bad_member },
    { "{\"character\":{\"id\":\"\\u0000\",\"name\":\"n\"}}", NULL,
      &kx_api_bad_member },
    { "{\"character\":{\"id\":1,\"name\":\"n\"}}", NULL, &kx_api_bad_member },
    { "{\"character\":{\"id\":\"i\",\"name\":\"\"}}", NULL,
      &kx_api_bad_member },
    { "{\"character\":{\"id\":\"i\",\"name\":\"n\",\"isNsfw\":1}}", NULL,
      &kx_api_bad_member },
    { "{\"character\":{\"id\":\"i\",\"name\":\"n\",\"tags\":\"a\"}}", NULL,
      &kx_api_bad_member },
    { "{\"character\":{\"id\":\"i\",\"name\":\"n\",\"tags\":[\"a\",1]}}",
      NULL, &kx_api_bad_member },
    { "{\"character\":{\"id\":\"i\",\"name\":\"n\",\"tags\":[null]}}", NULL,
      &kx_api_bad_member },
    { "{\"character\":{\"id\":\"i\",\"name\":\"n\",\"persona\":[]}}", NULL,
      &kx_api_bad_member },
    { "{\"regulatory\":[]}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gdpr\":2}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gdpr\":-1}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gdpr\":0.5}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gdpr\":true}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gdpr\":\"1\"}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gdpr\":1e999}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"coppa\":4294967297}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gpp\":1}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gppSid\":7}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gppSid\":[\"7\"]}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gppSid\":[2,-1]}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gppSid\":[2147483648]}}", NULL,
      &kx_api_bad_member },
    { "{\"regulatory\":{\"gppSid\":[1e999]}}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"gppSid\":[-1e999]}}", NULL, &kx_api_bad_member }
};


static void
test_session(void **state)
{
    size_t                 i;
    kx_api_session_t       s;
    const kx_api_error_t  *error;

    for (i = 0; i < count(sessions); i++) {
        error = read_session(&s, sessions[i].body, strlen(sessions[i].body));

        assert_error(error, sessions[i].error, sessions[i].body);

        if (error == NULL) {
            assert_str(&s.options, sessions[i].text);
            assert_line(&s.options);
        }

        pool_free();
    }

    assert_null(read_session(&s, FULL, strlen(FULL)));
    assert_str(&s.user_id, "u-381");
    assert_str(&s.conversation_id, "c-77");

    assert_null(read_session(&s, "{\"userId\":\"\\u00e9\"}", 19));
    assert_str(&s.user_id, "\xc3\xa9");
    assert_int_equal(s.conversation_id.len, 0);

    pool_free();
}


static void
test_session_zero_bytes(void **state)
{
    kx_api_session_t  s;

    static const char  inside[] = "{\"variantId\":\"\0\"}";
    static const char  tail[] = "{}\0";

    assert_error(read_session(&s, inside, sizeof(inside) - 1),
                 &kx_api_bad_json, "zero");
    assert_error(read_session(&s, tail, sizeof(tail) - 1), &kx_api_bad_json,
                 "zero");
    assert_error(kx_api_read_session(&s, NULL, 0, &pool), &kx_api_bad_json,
                 "nothing");
}


static void
test_session_limits(void **state)
{
    char                  *p;
    size_t                 len, i;
    unsigned               depth;
    kx_str_t               id;
    unsigned char         *body;
    kx_api_session_t       s;
    const kx_api_error_t  *error;

    static const char  *names[] = { "userId", "conversationId" };

    /* ids, in bytes */

    for (i = 0; i < 2; i++) {
        for (len = KX_MAX_IDENTITY; len <= KX_MAX_IDENTITY + 1; len++) {
            char  start[32];

            snprintf(start, sizeof(start), "{\"%s\":\"", names[i]);

            body = padded(start, "\xc3\xa9\"}", len + strlen(start) + 2);
            error = read_session(&s, body, len + strlen(start) + 2);
            free(body);

            if (len == KX_MAX_IDENTITY) {
                assert_error(error, NULL, names[i]);
                id = i ? s.conversation_id : s.user_id;
                assert_int_equal(id.len, KX_MAX_IDENTITY);

            } else {
                assert_error(error, &kx_api_bad_member, names[i]);
            }

            pool_free();
        }
    }

    /* options, as they are written */

    for (len = KX_API_MAX_OPTIONS; len <= KX_API_MAX_OPTIONS + 1; len++) {
        body = padded("{\"variantId\":\"", "\"}", len);
        error = read_session(&s, body, len);
        assert_error(error, (len == KX_API_MAX_OPTIONS) ? NULL
                                                        : &kx_api_too_large,
                     "options");
        pool_free();

        /* each is six bytes then */

        memcpy(body + len - 11, "\xe2\x80\xa8\\n\x01", 5);
        memcpy(body + len - 6, "xxxx", 4);
        error = read_session(&s, body, len - 3);
        assert_error(error, &kx_api_bad_json, "options");

        free(body);
        pool_free();
    }

    body = padded("{\"variantId\":\"\xe2\x80\xa8", "\"}",
                  KX_API_MAX_OPTIONS - 3);
    assert_null(read_session(&s, body, KX_API_MAX_OPTIONS - 3));
    assert_int_equal(s.options.len, KX_API_MAX_OPTIONS);
    free(body);

    body = padded("{\"variantId\":\"\xe2\x80\xa8", "\"}",
                  KX_API_MAX_OPTIONS - 2);
    assert_error(read_session(&s, body, KX_API_MAX_OPTIONS - 2),
                 &kx_api_too_large, "options");
    free(body);
    pool_free();

    /* the body */

    for (len = KX_API_MAX_BODY; len <= KX_API_MAX_BODY + 1; len++) {
        body = padded("{\"character\":{\"id\":\"i\",\"name\":\"n\",\"x\":\"",
                      "\"}}", len);
        error = read_session(&s, body, len);
        free(body);

        assert_error(error, (len == KX_API_MAX_BODY)
                            ? &kx_api_unknown_member : &kx_api_too_large,
                     "body");
    }

    pool_free();

    /* depth */

    for (depth = 30; depth <= 34; depth++) {
        len = 34 + 2 * (depth - 2) + 2;
        p = malloc(len + 1);
        assert_non_null(p);

        i = (size_t) snprintf(p, len, "{\"regulatory\":{\"gdpr\":1,\"x\":");
        memset(p + i, '[', depth - 2);
        memset(p + i + depth - 2, ']', depth - 2);
        memcpy(p + i + 2 * (depth - 2), "}}", 3);

        assert_error(read_session(&s, p, strlen(p)),
                     (depth <= 32) ? &kx_api_unknown_member
                                   : &kx_api_bad_json, p);
        free(p);
    }

    pool_free();
}


/* what is made of a body is bounded by what is kept of it */

static void
test_many_values(void **state)
{
    size_t             i, len;
    unsigned           n;
    unsigned char     *body;
    kx_api_event_t     e;
    kx_api_message_t  *m;
    kx_api_session_t   s;

    static const char  start[] = "{\"messages\":[";

    len = KX_API_MAX_BODY;
    body = malloc(len);
    assert_non_null(body);

    for (i = 0; i < len; i++) {
        body[i] = (i % 2) ? '1' : ',';
    }

    memcpy(body, start, sizeof(start) - 1);
    memcpy(body + len - 3, "1]}", 3);

    assert_error(read_messages(&m, &n, body, len), &kx_api_bad_member, "many");
    assert_int_equal(pool_bytes, 0);

    assert_error(read_event(&e, body, len), &kx_api_bad_event, "many");
    assert_int_equal(pool_bytes, 0);

    assert_error(read_session(&s, body, len), &kx_api_unknown_member, "many");
    assert_int_equal(pool_bytes, 0);

    /* objects */

    for (i = sizeof(start) - 1; i + 3 <= len - 4; i += 3) {
        memcpy(body + i, "{},", 3);
    }

    memset(body + i, ' ', len - i);
    memcpy(body + len - 4, "{}]}", 4);

    assert_error(read_messages(&m, &n, body, len), &kx_api_missing_member,
                 "many");
    assert_int_equal(pool_bytes, 0);

    free(body);
}


static const case_t  patches[] = {
    { "{}", "{}", NULL },
    { "{\"regulatory\":" REGULATORY ",\"variantId\":\"c\","
      "\"userEmail\":\"b@c\"}",
      "{\"regulatory\":" REGULATORY ",\"variantId\":\"c\","
      "\"userEmail\":\"b@c\"}", NULL },
    { "{\"variantId\":null}", "{}", NULL },
    { "{\"character\":" CHARACTER "}", NULL, &kx_api_immutable },
    { "{\"userId\":\"u\"}", NULL, &kx_api_immutable },
    { "{\"conversationId\":null}", NULL, &kx_api_immutable },
    { "{\"variantId\":\"c\",\"enabledPlacementCodes\":[]}", NULL,
      &kx_api_immutable },
    { "{\"variantId\":7,\"__proto__\":1}", NULL, &kx_api_immutable },
    { "{\"variantId\":7}", NULL, &kx_api_bad_member },
    { "{\"regulatory\":{\"coppa\":3}}", NULL, &kx_api_bad_member },
    { "[]", NULL, &kx_api_bad_json },
    { "", NULL, &kx_api_bad_json }
};


static void
test_patch(void **state)
{
    size_t                 i;
    kx_str_t               options;
    unsigned char         *body;
    const kx_api_error_t  *error;

    for (i = 0; i < count(patches); i++) {
        error = read_patch(&options, patches[i].body,
                           strlen(patches[i].body));

        assert_error(error, patches[i].error, patches[i].body);

        if (error == NULL) {
            assert_str(&options, patches[i].text);
        }

        pool_free();
    }

    body = padded("{\"variantId\":\"", "\"}", KX_API_MAX_OPTIONS + 1);
    assert_error(read_patch(&options, body, KX_API_MAX_OPTIONS + 1),
                 &kx_api_too_large, "patch");
    free(body);

    body = padded("{", "}", KX_API_MAX_BODY + 1);
    assert_error(read_patch(&options, body, KX_API_MAX_BODY + 1),
                 &kx_api_too_large, "patch");
    free(body);

    pool_free();
}


#define A  "{\"id\":\"a\",\"name\":\"n\"}"

static const merge_t  merges[] = {
    { "", "{}", "{}", NULL },
    { "", "", "{}", NULL },
    { "{}", "{}", "{}", NULL },
    { "", OPTIONS, OPTIONS, NULL },
    { OPTIONS, "{}", OPTIONS, NULL },
    { OPTIONS, OPTIONS, OPTIONS, NULL },
    { "{\"variantId\":\"a\",\"userEmail\":\"e\"}", "{\"variantId\":\"b\"}",
      "{\"variantId\":\"b\",\"userEmail\":\"e\"}", NULL },

    /* in their order, the character is added */

    { "{\"userEmail\":\"e\"}", "{\"character\":" A "}",
      "{\"character\":" A ",\"userEmail\":\"e\"}", NULL },

    /* regulatory as a whole */

    { "{\"regulatory\":{\"gdpr\":1,\"gpp\":\"a\"}}",
      "{\"regulatory\":{\"coppa\":1}}", "{\"regulatory\":{\"coppa\":1}}",
      NULL },

    /* the same character in another order is the same */

    { "{\"character\":" A "}",
      "{\"variantId\":\"b\",\"character\":{\"name\":\"n\","
      "\"id\":\"a\"}}",
      "{\"character\":" A ",\"variantId\":\"b\"}", NULL },
    { "{\"character\":" A "}",
      "{\"character\":{\"id\":\"b\",\"name\":\"n\"}}", NULL,
      &kx_api_immutable },
    { "{\"character\":" A "}",
      "{\"character\":{\"id\":\"A\",\"name\":\"n\"}}", NULL,
      &kx_api_immutable },
    { "{\"character\":" A "}",
      "{\"character\":{\"id\":\"a\",\"name\":\"n\",\"isNsfw\":true}}", NULL,
      &kx_api_immutable },
    { OPTIONS, "{\"character\":" A "}", NULL, &kx_api_immutable },

    /* damage */

    { "{\"variantId\":\"a", "{\"userEmail\":\"e\"}", "{\"userEmail\":\"e\"}",
      NULL },
    { "\xee\xee\xee", "{\"character\":" A "}", "{\"character\":" A "}",
      NULL },
    { "[]", "{}", "{}", NULL },
    { "{\"variantId\":7,\"userEmail\":\"e\"}", "{}", "{}", NULL },
    { "{\"character\":{}}", "{\"variantId\":\"b\"}", "{\"variantId\":\"b\"}",
      NULL },
    { "{\"x\":1,\"variantId\":\"a\"}", "{}", "{\"variantId\":\"a\"}", NULL },
    { "{}", "oops", NULL, &kx_api_bad_json },
    { "{}", "{\"variantId\":7}", NULL, &kx_api_bad_member }
};


static void
test_merge(void **state)
{
    size_t                 i, len;
    kx_str_t               older, newer, result;
    const kx_api_error_t  *error;

    for (i = 0; i < count(merges); i++) {
        older.len = strlen(merges[i].older);
        older.data = exact(merges[i].older, older.len);
        newer.len = strlen(merges[i].newer);
        newer.data = exact(merges[i].newer, newer.len);

        error = kx_options_merge(&result, &older, &newer, &pool);

        free(older.data);
        free(newer.data);

        assert_error(error, merges[i].error, merges[i].newer);

        if (error == NULL) {
            assert_str(&result, merges[i].text);
        }

        pool_free();
    }

    /* both together */

    newer = text("{\"userEmail\":\"e\"}");
    len = KX_API_MAX_OPTIONS - (newer.len - 1);

    for (i = len; i <= len + 1; i++) {
        older.len = i;
        older.data = padded("{\"variantId\":\"", "\"}", i);

        assert_error(kx_options_merge(&result, &older, &newer, &pool),
                     (i == len) ? NULL : &kx_api_too_large, "merge");

        if (i == len) {
            assert_int_equal(result.len, KX_API_MAX_OPTIONS);
        }

        free(older.data);
        pool_free();
    }

    /* more than can have been stored is damage, too */

    older.len = KX_API_MAX_OPTIONS + 1;
    older.data = padded("{\"variantId\":\"", "\"}", older.len);
    assert_null(kx_options_merge(&result, &older, &newer, &pool));
    assert_str(&result, "{\"userEmail\":\"e\"}");

    assert_error(kx_options_merge(&result, &newer, &older, &pool),
                 &kx_api_too_large, "merge");

    free(older.data);
    pool_free();
}


static void
request(kx_ad_request_t *ar)
{
    static int       sids[] = { 5 };
    static kx_str_t  tags[] = { kx_string("x"), kx_string("y") };

    memset(ar, 0, sizeof(kx_ad_request_t));

    ar->publisher_token = text("acme-dev");
    ar->user_id = text("u-381");
    ar->conversation_id = text("c-77");
    ar->sdk_name = text("sdk-js");
    ar->sdk_platform = text("web");
    ar->sdk_version = text("4.0.2");
    ar->variant_id = text("directive");
    ar->user_email = text("d@e");
    ar->device.type = text("desktop");
    ar->device.width = -1;
    ar->device.height = -1;
    ar->device.dpr = -1;

    ar->character.id = text("of-directive");
    ar->character.name = text("D");
    ar->character.greeting = text("Hello");
    ar->character.tags = tags;
    ar->character.ntags = 2;
    ar->character.has_tags = 1;
    ar->character.nsfw = 1;

    ar->regulatory.gdpr = 0;
    ar->regulatory.coppa = 1;
    ar->regulatory.gpp = text("of-directive");
    ar->regulatory.gpp_sid = sids;
    ar->regulatory.ngpp_sid = 1;
    ar->regulatory.has_gpp_sid = 1;
}


static void
test_apply(void **state)
{
    size_t            i;
    kx_str_t          options;
    kx_ad_request_t   ar, before;

    static const char  *damaged[] = {
        "oops", "[]", "{", "{\"variantId\":1}", "{\"character\":{}}",
        "\xff\xff", "{\"regulatory\":{\"gppSid\":[1,\"\"]}}"
    };

    request(&ar);
    before = ar;

    /* nothing is said */

    options = text("");
    assert_int_equal(kx_options_apply(&ar, &options, &pool), KX_OK);
    assert_memory_equal(&ar, &before, sizeof(ar));

    options = text("{}");
    assert_int_equal(kx_options_apply(&ar, &options, &pool), KX_OK);
    assert_memory_equal(&ar, &before, sizeof(ar));

    /* damage */

    for (i = 0; i < count(damaged); i++) {
        options = text(damaged[i]);
        assert_int_equal(kx_options_apply(&ar, &options, &pool), KX_ERROR);
        assert_memory_equal(&ar, &before, sizeof(ar));
    }

    options.len = KX_API_MAX_OPTIONS + 1;
    options.data = padded("{\"variantId\":\"", "\"}", options.len);
    assert_int_equal(kx_options_apply(&ar, &options, &pool), KX_ERROR);
    assert_memory_equal(&ar, &before, sizeof(ar));
    free(options.data);

    /* of regulatory member by member, one character as a whole */

    options = text("{\"regulatory\":{\"gdpr\":1,\"usPrivacy\":\"1Y\"},"
                   "\"character\":" A "}");
    assert_int_equal(kx_options_apply(&ar, &options, &pool), KX_OK);

    assert_int_equal(ar.regulatory.gdpr, 1);
    assert_int_equal(ar.regulatory.coppa, 1);
    assert_str(&ar.regulatory.gpp, "of-directive");
    assert_str(&ar.regulatory.us_privacy, "1Y");
    assert_int_equal(ar.regulatory.ngpp_sid, 1);
    assert_str(&ar.character.id, "a");
    assert_str(&ar.character.name, "n");
    assert_int_equal(ar.character.greeting.len, 0);
    assert_int_equal(ar.character.ntags, 0);
    assert_int_equal(ar.character.nsfw, -1);
    assert_str(&ar.variant_id, "directive");
    assert_str(&ar.user_email, "d@e");

    /* all of it */

    request(&ar);
    options.len = strlen(OPTIONS);
    options.data = exact(OPTIONS, options.len);
    assert_int_equal(kx_options_apply(&ar, &options, &pool), KX_OK);
    free(options.data);

    assert_str(&ar.variant_id, "b");
    assert_str(&ar.user_email, "a@example.com");
    assert_str(&ar.character.id, "ch-1");
    assert_str(&ar.character.avatar_url, "https://a.b/m.png");
    assert_str(&ar.character.greeting, "Hail");
    assert_str(&ar.character.persona, "wise");
    assert_int_equal(ar.character.ntags, 2);
    assert_str(&ar.character.tags[1], "beard");
    assert_int_equal(ar.character.nsfw, 0);
    assert_int_equal(ar.regulatory.gdpr, 1);
    assert_int_equal(ar.regulatory.coppa, 0);
    assert_str(&ar.regulatory.gdpr_consent, "CPx");
    assert_int_equal(ar.regulatory.ngpp_sid, 2);
    assert_int_equal(ar.regulatory.gpp_sid[1], 7);

    pool_free();
}


/* what an app says is what the ad server hears */

static void
test_round_trip(void **state)
{
    char                  *body;
    cJSON                 *root, *expected, *item, *value;
    size_t                 len;
    unsigned               n;
    kx_str_t               patch, options;
    kx_message_t           list[2];
    kx_ad_request_t        ar;
    kx_api_session_t       s;
    kx_api_message_t      *m;

    static const char  fed[] =
        "[{\"id\":\"m1\",\"role\":\"user\",\"content\":\"Hi\\u2028\","
        "\"createdAt\":\"2026-03-02T19:20:11.045+01:00\"},"
        "{\"id\":\"2\",\"role\":\"assistant\",\"content\":\"Ho\","
        "\"createdAt\":1772475615900}]";

    static const char  changed[] = "{\"variantId\":\"z\","
                                   "\"regulatory\":{\"gdpr\":0}}";

    static const char  said[] =
        "{\"character\":" CHARACTER ",\"regulatory\":{\"gdpr\":0,"
        "\"coppa\":1,\"gpp\":\"of-directive\",\"gppSid\":[5]},"
        "\"variantId\":\"z\",\"userEmail\":\"a@example.com\",\"messages\":["
        "{\"id\":\"m1\",\"role\":\"user\",\"content\":\"Hi\xe2\x80\xa8\","
        "\"createdAt\":\"2026-03-02T18:20:11.045Z\"},"
        "{\"id\":\"2\",\"role\":\"assistant\",\"content\":\"Ho\","
        "\"createdAt\":\"2026-03-02T18:20:15.900Z\"}]}";

    assert_null(read_session(&s, FULL, strlen(FULL)));
    assert_null(read_patch(&patch, changed, sizeof(changed) - 1));
    assert_null(kx_options_merge(&options, &s.options, &patch, &pool));
    assert_null(read_messages(&m, &n, fed, sizeof(fed) - 1));
    assert_int_equal(n, 2);

    request(&ar);
    ar.user_id = s.user_id;
    ar.conversation_id = s.conversation_id;
    list[0] = m[0].message;
    list[1] = m[1].message;
    ar.messages = list;
    ar.nmessages = 2;

    assert_int_equal(kx_options_apply(&ar, &options, &pool), KX_OK);

    body = kx_protocol_preload(&ar, &len);
    assert_non_null(body);
    root = cJSON_Parse(body);
    assert_non_null(root);
    kx_protocol_free(body);

    expected = cJSON_Parse(said);
    assert_non_null(expected);

    cJSON_ArrayForEach(item, expected) {
        value = cJSON_GetObjectItem(root, item->string);

        if (!cJSON_Compare(item, value, 1)) {
            fail_msg("%s is %s", item->string, cJSON_PrintUnformatted(value));
        }
    }

    cJSON_Delete(expected);
    cJSON_Delete(root);
    pool_free();
}


static void
test_messages(void **state)
{
    unsigned           n;
    kx_api_message_t  *m;

    static const char  one[] =
        "{\"id\":\"m1\",\"role\":\"user\",\"content\":\"Hi \\ud83d\","
        "\"createdAt\":0,\"parts\":[{\"type\":\"text\"}],"
        "\"messages\":null,\"__proto__\":{\"id\":\"x\"}}";
    static const char  list[] =
        "[{\"id\":\"-7\",\"role\":\"assistant\",\"content\":\"\"},"
        "{\"id\":\"9007199254740991\",\"role\":\"user\",\"content\":\"a\","
        "\"trackOnly\":true},"
        "{\"id\":\"1e3\",\"id\":\"x\",\"role\":\"user\",\"content\":\"\xff\","
        "\"trackOnly\":null}]";
    static const char  object[] =
        "{\"messages\":[{\"id\":\"-0\",\"role\":\"user\",\"content\":\"a\"},"
        "{\"id\":\"m2\",\"role\":\"user\",\"content\":\"b\","
        "\"trackOnly\":false}],\"trackOnly\":true,\"id\":\"7\"}";

    assert_null(read_messages(&m, &n, one, sizeof(one) - 1));
    assert_int_equal(n, 1);
    assert_str(&m->message.id, "m1");
    assert_int_equal(m->message.role, KX_ROLE_USER);
    assert_str(&m->message.content, "Hi " FFFD);
    assert_int_equal(m->has_created, 1);
    assert_true(m->message.created == 0);
    assert_int_equal(m->track_only, 0);

    assert_null(read_messages(&m, &n, list, sizeof(list) - 1));
    assert_int_equal(n, 3);
    assert_str(&m[0].message.id, "-7");
    assert_int_equal(m[0].message.role, KX_ROLE_ASSISTANT);
    assert_str(&m[0].message.content, "");
    assert_non_null(m[0].message.content.data);
    assert_int_equal(m[0].track_only, 0);
    assert_str(&m[1].message.id, "9007199254740991");
    assert_int_equal(m[1].track_only, 1);
    assert_str(&m[2].message.id, "1e3");
    assert_str(&m[2].message.content, FFFD);
    assert_int_equal(m[2].track_only, 0);

    assert_null(read_messages(&m, &n, object, sizeof(object) - 1));
    assert_int_equal(n, 2);
    assert_str(&m[0].message.id, "-0");
    assert_int_equal(m[0].track_only, 1);
    assert_int_equal(m[1].track_only, 0);

    pool_free();
}


#define MESSAGE(id, role, more)                                               \
    "{\"id\":" id ",\"role\":" role ",\"content\":\"c\"" more "}"
#define GOOD  MESSAGE("\"m\"", "\"user\"", "")

static const case_t  bad_messages[] = {
    { "", NULL, &kx_api_bad_json },
    { "null", NULL, &kx_api_bad_json },
    { "\"m\"", NULL, &kx_api_bad_json },
    { "[" GOOD ",]", NULL, &kx_api_bad_json },
    { "[" GOOD "]]", NULL, &kx_api_bad_json },
    { "[]", NULL, &kx_api_missing_member },
    { "{}", NULL, &kx_api_missing_member },
    { "{\"messages\":[]}", NULL, &kx_api_missing_member },
    { "{\"messages\":{}}", NULL, &kx_api_bad_member },
    { "{\"messages\":\"m\"}", NULL, &kx_api_bad_member },
    { "{\"messages\":null}", NULL, &kx_api_missing_member },
    { "{\"messages\":[" GOOD "],\"trackOnly\":1}", NULL, &kx_api_bad_member },
    { "[null]", NULL, &kx_api_bad_member },
    { "[[" GOOD "]]", NULL, &kx_api_bad_member },
    { "[" GOOD ",7]", NULL, &kx_api_bad_member },
    { "[" GOOD ",{}]", NULL, &kx_api_missing_member },
    { "{\"role\":\"user\",\"content\":\"c\"}", NULL, &kx_api_missing_member },
    { "{\"id\":\"m\",\"content\":\"c\"}", NULL, &kx_api_missing_member },
    { "{\"id\":\"m\",\"role\":\"user\"}", NULL, &kx_api_missing_member },
    { "{\"id\":\"m\",\"role\":\"user\",\"content\":null}", NULL,
      &kx_api_missing_member },
    { "{\"id\":\"m\",\"role\":\"user\",\"content\":[]}", NULL,
      &kx_api_bad_member },
    { "{\"id\":\"m\",\"role\":\"user\",\"content\":7}", NULL,
      &kx_api_bad_member },
    { MESSAGE("\"\"", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("null", "\"user\"", ""), NULL, &kx_api_missing_member },
    { MESSAGE("true", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("{}", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("1.5", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("9007199254740992", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("-9007199254740992", "\"user\"", ""), NULL,
      &kx_api_bad_member },
    { MESSAGE("1e999", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("-1e999", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("\"\\u0000\"", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("\"\\ud800\"", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("\"\xff\"", "\"user\"", ""), NULL, &kx_api_bad_member },
    { MESSAGE("\"m\"", "\"system\"", ""), NULL, &kx_api_bad_role },
    { MESSAGE("\"m\"", "\"User\"", ""), NULL, &kx_api_bad_role },
    { MESSAGE("\"m\"", "\"user\\u0000\"", ""), NULL, &kx_api_bad_role },
    { MESSAGE("\"m\"", "\"\"", ""), NULL, &kx_api_bad_role },
    { MESSAGE("\"m\"", "7", ""), NULL, &kx_api_bad_role },
    { MESSAGE("\"m\"", "\"user\"", ",\"trackOnly\":\"yes\""), NULL,
      &kx_api_bad_member },
    { MESSAGE("\"m\"", "\"user\"", ",\"createdAt\":\"\""), NULL,
      &kx_api_bad_time },
    { MESSAGE("\"m\"", "\"user\"", ",\"createdAt\":{}"), NULL,
      &kx_api_bad_time },
    { MESSAGE("\"m\"", "\"user\"", ",\"createdAt\":true"), NULL,
      &kx_api_bad_time }
};


static void
test_bad_messages(void **state)
{
    size_t             i;
    unsigned           n;
    kx_api_message_t  *m;

    for (i = 0; i < count(bad_messages); i++) {
        assert_error(read_messages(&m, &n, bad_messages[i].body,
                                   strlen(bad_messages[i].body)),
                     bad_messages[i].error, bad_messages[i].body);
        pool_free();
    }
}


static void
test_message_limits(void **state)
{
    size_t                 len, i;
    unsigned               n;
    unsigned char         *body;
    kx_api_message_t      *m;
    const kx_api_error_t  *error;

    static const char  id_start[] = "{\"role\":\"user\",\"content\":\"\","
                                    "\"id\":\"";
    static const char  start[] = "{\"role\":\"user\",\"id\":\"m\","
                                 "\"content\":\"";

    for (len = KX_API_MAX_MESSAGE_ID; len <= KX_API_MAX_MESSAGE_ID + 1; len++)
    {
        body = padded(id_start, "\"}", sizeof(id_start) - 1 + len + 2);
        error = read_messages(&m, &n, body, sizeof(id_start) - 1 + len + 2);
        free(body);

        assert_error(error, (len == KX_API_MAX_MESSAGE_ID)
                            ? NULL : &kx_api_bad_member, "id");
    }

    pool_free();

    /* content: what ends on the last byte stays, what goes over it does not */

    for (i = 0; i < 7; i++) {
        len = sizeof(start) - 1 + KX_MAX_CONTENT + 2 + 100;
        body = padded(start, "\"}", len);

        memcpy(body + sizeof(start) - 1 + KX_MAX_CONTENT - i,
               "\xf0\x9f\x98\x80\xf0\x9f\x98\x80", 8);

        assert_null(read_messages(&m, &n, body, len));
        assert_int_equal(m->message.content.len,
                         KX_MAX_CONTENT - (i < 4 ? i : i - 4));
        free(body);
        pool_free();
    }

    for (len = KX_MAX_CONTENT - 1; len <= KX_MAX_CONTENT + 1; len++) {
        body = padded(start, "\"}", sizeof(start) - 1 + len + 2);
        assert_null(read_messages(&m, &n, body, sizeof(start) - 1 + len + 2));
        assert_int_equal(m->message.content.len,
                         (len < KX_MAX_CONTENT) ? len : KX_MAX_CONTENT);
        free(body);
        pool_free();
    }

    for (len = KX_API_MAX_BODY; len <= KX_API_MAX_BODY + 1; len++) {
        body = padded(start, "\"}", len);
        assert_error(read_messages(&m, &n, body, len),
                     (len == KX_API_MAX_BODY) ? NULL : &kx_api_too_large,
                     "body");
        free(body);
        pool_free();
    }

    /* of bytes that are no UTF-8 each becomes three */

    len = KX_API_MAX_BODY;
    body = malloc(len);
    assert_non_null(body);
    memset(body, 0xff, len);
    memcpy(body, start, sizeof(start) - 1);
    memcpy(body + len - 2, "\"}", 2);
    assert_null(read_messages(&m, &n, body, len));
    assert_int_equal(m->message.content.len,
                     KX_MAX_CONTENT / 3 * 3);
    free(body);

    pool_free();
}


static void
test_many_messages(void **state)
{
    size_t             len, i;
    unsigned           n;
    unsigned char     *body, *p;
    kx_api_message_t  *m;

    static const char  one[] = "{\"id\":\"1\",\"role\":\"user\","
                               "\"content\":\"\"},";

    len = KX_API_MAX_BODY / (sizeof(one) - 1);
    body = malloc(len * (sizeof(one) - 1) + 1);
    assert_non_null(body);

    p = body;
    *p++ = '[';

    for (i = 0; i < len; i++) {
        memcpy(p, one, sizeof(one) - 1);
        p += sizeof(one) - 1;
    }

    p[-1] = ']';

    assert_null(read_messages(&m, &n, body, (size_t) (p - body)));
    assert_int_equal(n, len);
    assert_true(pool_bytes < 4 * KX_API_MAX_BODY);

    free(body);
    pool_free();
}


static void
test_created(void **state)
{
    char               body[256];
    size_t             i;
    unsigned           n;
    kx_api_message_t  *m;

    static const struct {
        const char  *value;
        uint64_t     ms;
    } good[] = {
        { "null", 0 },
        { "0", 0 },
        { "1", 1 },
        { "1.9", 1 },
        { "1772475611045", 1772475611045ULL },
        { "1772475611045.25", 1772475611045ULL },
        { "1.772475611045e12", 1772475611045ULL },
        { "253402300799999", 253402300799999ULL },
        { "253402300799999.5", 253402300799999ULL },
        { "\"1970-01-01T00:00:00Z\"", 0 },
        { "\"2026-03-02T18:20:11.045Z\"", 1772475611045ULL },
        { "\"2026-03-02t18:20:11.045z\"", 1772475611045ULL },
        { "\"2026-03-02 18:20:11.045Z\"", 1772475611045ULL },
        { "\"2026-03-02T18:20:11.045999Z\"", 1772475611045ULL },
        { "\"2026-03-02T18:20:11.0450000000000000000000000000001Z\"",
          1772475611045ULL },
        { "\"2026-03-02T18:20:11.0Z\"", 1772475611000ULL },
        { "\"2026-03-02T18:20:11.5Z\"", 1772475611500ULL },
        { "\"2026-03-02T18:20:11.05Z\"", 1772475611050ULL },
        { "\"2026-03-02T18:20:11+00:00\"", 1772475611000ULL },
        { "\"2026-03-02T18:20:11-00:00\"", 1772475611000ULL },
        { "\"2026-03-03T00:05:11.045+05:45\"", 1772475611045ULL },
        { "\"2026-03-02T06:20:11.045-12:00\"", 1772475611045ULL },
        { "\"1969-12-31T23:30:00.001-00:30\"", 1 },
        { "\"2000-02-29T00:00:00Z\"", 951782400000ULL },
        { "\"2024-12-31T23:59:60Z\"", 1735689600000ULL },
        { "\"2100-02-28T23:59:59.999Z\"", 4107542399999ULL },
        { "\"9999-12-31T23:59:59.999Z\"", 253402300799999ULL }
    };

    static const char  *bad[] = {
        "-1",
        "-0.5",
        "253402300800000",
        "1e999",
        "-1e999",
        "false",
        "[]",
        "\"\"",
        "\"0\"",
        "\"1772475611045\"",
        "\"now\"",
        "\"2026-03-02\"",
        "\"2026-03-02T18:20Z\"",
        "\"2026-03-02T18:20:11\"",
        "\"2026-03-02T18:20:11.Z\"",
        "\"2026-03-02T18:20:11,5Z\"",
        "\"2026-03-02T18:20:11Z \"",
        "\" 2026-03-02T18:20:11Z\"",
        "\"2026-03-02T18:20:11ZZ\"",
        "\"2026-03-02T18:20:11Z\\u0000\"",
        "\"2026-03-02T18:20:11.5\"",
        "\"2026-03-02T18:20:11+01\"",
        "\"2026-03-02T18:20:11+0100\"",
        "\"2026-03-02T18:20:11+24:00\"",
        "\"2026-03-02T18:20:11+01:60\"",
        "\"2026-03-02T18:20:11+01:00Z\"",
        "\"2026-03-02_18:20:11Z\"",
        "\"2026-3-2T18:20:11Z\"",
        "\"2026-00-02T18:20:11Z\"",
        "\"2026-13-02T18:20:11Z\"",
        "\"2026-03-00T18:20:11Z\"",
        "\"2026-03-32T18:20:11Z\"",
        "\"2026-04-31T18:20:11Z\"",
        "\"2026-02-29T18:20:11Z\"",
        "\"2100-02-29T18:20:11Z\"",
        "\"2026-03-02T24:00:00Z\"",
        "\"2026-03-02T18:60:11Z\"",
        "\"2026-03-02T18:20:61Z\"",
        "\"2026-03-02T-1:20:11Z\"",
        "\"26-03-02T18:20:11Z\"",
        "\"+002026-03-02T18:20:11Z\"",
        "\"1969-12-31T23:59:59.999Z\"",
        "\"1970-01-01T00:00:00+00:01\"",
        "\"0000-01-01T00:00:00Z\"",
        "\"9999-12-31T23:59:60Z\"",
        "\"9999-12-31T23:59:59-00:01\"",
        "\"Mon, 02 Mar 2026 18:20:11 GMT\""
    };

    for (i = 0; i < count(good); i++) {
        snprintf(body, sizeof(body), "{\"id\":\"1\",\"role\":\"user\","
                 "\"content\":\"\",\"createdAt\":%s}", good[i].value);

        assert_error(read_messages(&m, &n, body, strlen(body)), NULL, body);

        if (m->message.created != good[i].ms) {
            fail_msg("%s: %llu", good[i].value,
                     (unsigned long long) m->message.created);
        }

        pool_free();
    }

    for (i = 0; i < count(bad); i++) {
        snprintf(body, sizeof(body), "{\"id\":\"1\",\"role\":\"user\","
                 "\"content\":\"\",\"createdAt\":%s}", bad[i]);

        assert_error(read_messages(&m, &n, body, strlen(body)),
                     &kx_api_bad_time, body);
        pool_free();
    }
}


/* the inverse of kx_protocol_time() for each day and each year */

static void
test_created_inverse(void **state)
{
    char               body[128], time[32];
    uint64_t           ms;
    unsigned           n;
    kx_api_message_t  *m;

    for (ms = 45; ms < 253402300800000ULL; ms += 86400000ULL * 27 + 1234567) {
        kx_protocol_time(time, ms);
        snprintf(body, sizeof(body), "{\"id\":\"1\",\"role\":\"user\","
                 "\"content\":\"\",\"createdAt\":\"%s\"}", time);

        assert_null(kx_api_read_messages(&m, &n, (unsigned char *) body,
                                         strlen(body), &pool));
        assert_true(m->message.created == ms);
        pool_free();
    }
}


static const case_t  events[] = {
    { "{\"name\":\"ad.viewed\",\"code\":\"inlineAd\",\"payload\":{"
      "\"format\":\"image\",\"content\":\"c\",\"messageId\":\"m4\","
      "\"id\":\"" BID_U "\",\"revenue\":9,\"x\":1}}",
      "{\"bidId\":\"" BID "\",\"messageId\":\"m4\",\"content\":\"c\","
      "\"format\":\"image\"}", NULL },
    { "{\"name\":\"ad.viewed\",\"bidId\":\"" BID "\",\"id\":\"no\","
      "\"content\":\"\",\"format\":\"\",\"messageId\":\"17\",\"revenue\":9}",
      "{\"bidId\":\"" BID "\",\"messageId\":\"17\",\"content\":\"\","
      "\"format\":\"\"}", NULL },
    { "{\"name\":\"ad.clicked\",\"payload\":{\"area\":\"a\",\"format\":\"f\","
      "\"url\":\"u\",\"content\":\"\\u2028\xff\",\"bidId\":\"" BID "\"}}",
      "{\"bidId\":\"" BID "\",\"content\":\"\\u2028" FFFD "\",\"url\":\"u\","
      "\"format\":\"f\",\"area\":\"a\"}", NULL },
    { "{\"name\":\"ad.render-started\",\"id\":\"" BID "\",\"x\":{\"y\":[]}}",
      "{\"bidId\":\"" BID "\"}", NULL },
    { "{\"name\":\"ad.render-completed\",\"payload\":{\"bidId\":null,"
      "\"id\":\"" BID "\",\"messageId\":\"m\"}}",
      "{\"bidId\":\"" BID "\"}", NULL },
    { "{\"name\":\"video.started\",\"payload\":null,\"bidId\":\"" BID "\"}",
      "{\"bidId\":\"" BID "\"}", NULL },
    { "{\"name\":\"video.completed\",\"bidId\":\"" BID "\",\"code\":null}",
      "{\"bidId\":\"" BID "\"}", NULL },
    { "{\"name\":\"reward.granted\",\"bidId\":\"" BID "\",\"code\":\"\","
      "\"messageId\":\"\"}", "{\"bidId\":\"" BID "\"}", NULL },
    { "{\"name\":\"ad.error\"}",
      "{\"message\":\"Ad error\",\"errCode\":\"unknown\"}", NULL },
    { "{\"name\":\"ad.error\",\"payload\":{}}",
      "{\"message\":\"Ad error\",\"errCode\":\"unknown\"}", NULL },
    { "{\"name\":\"ad.error\",\"payload\":{\"message\":\"\","
      "\"errCode\":\"iframe_error\",\"id\":\"" BID "\"}}",
      "{\"message\":\"Ad error\",\"errCode\":\"iframe_error\"}", NULL },
    { "{\"name\":\"ad.error\",\"message\":\"No\\nimage\",\"errCode\":null}",
      "{\"message\":\"No\\nimage\",\"errCode\":\"unknown\"}", NULL },

    { "", NULL, &kx_api_bad_json },
    { "[]", NULL, &kx_api_bad_json },
    { "[{\"name\":\"ad.error\"}]", NULL, &kx_api_bad_json },
    { "{}", NULL, &kx_api_bad_event },
    { "{\"name\":7}", NULL, &kx_api_bad_event },
    { "{\"name\":\"\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.filled\",\"bidId\":\"" BID "\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"ad.height\",\"bidId\":\"" BID "\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"ad.error\\u0000\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"AD.ERROR\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"__proto__\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"payload\":[]}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"payload\":\"p\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"message\":7}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"errCode\":{}}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"id\":\"x\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"code\":7}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"code\":\"\\u0000\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"messageId\":{}}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"messageId\":1.5}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.error\",\"messageId\":\"\\ud800\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"video.started\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"video.started\",\"bidId\":7}", NULL, &kx_api_bad_event },
    { "{\"name\":\"video.started\",\"bidId\":\"\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"video.started\",\"bidId\":\"" BID "0\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"video.started\",\"bidId\":\"" BID "\\u0000\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"video.started\",\"bidId\":\"" BID "\",\"payload\":{}}",
      NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.viewed\",\"bidId\":\"" BID "\",\"content\":\"c\"}",
      NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.viewed\",\"bidId\":\"" BID "\",\"content\":null,"
      "\"format\":\"f\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.viewed\",\"bidId\":\"" BID "\",\"content\":7,"
      "\"format\":\"f\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.viewed\",\"content\":\"c\",\"format\":\"f\"}", NULL,
      &kx_api_bad_event },
    { "{\"name\":\"ad.clicked\",\"bidId\":\"" BID "\",\"content\":\"c\","
      "\"url\":\"u\",\"format\":\"f\"}", NULL, &kx_api_bad_event },
    { "{\"name\":\"ad.clicked\",\"bidId\":\"" BID "\",\"content\":\"c\","
      "\"area\":\"u\",\"format\":\"f\"}", NULL, &kx_api_bad_event }
};


static void
test_events(void **state)
{
    size_t                 i;
    kx_str_t               s;
    kx_api_event_t         e;
    const kx_api_error_t  *error;

    for (i = 0; i < count(events); i++) {
        error = read_event(&e, events[i].body, strlen(events[i].body));

        assert_error(error, events[i].error, events[i].body);

        if (error == NULL) {
            assert_str(&e.payload, events[i].text);
            assert_line(&e.payload);

            s = kx_api_event(&e, -1, &pool);
            assert_line(&s);
        }

        pool_free();
    }
}


static void
test_event_data(void **state)
{
    kx_str_t        s;
    kx_api_event_t  e;

#define VIEWED  "{\"name\":\"ad.viewed\",\"bidId\":\"" BID_U "\","            \
                "\"content\":\"c\",\"format\":\"f\"}"
#define CODED   "{\"name\":\"video.started\",\"code\":\"inlineAd\","          \
                "\"payload\":{\"messageId\":\"m\",\"id\":\"" BID "\"}}"

    assert_null(read_event(&e, VIEWED, strlen(VIEWED)));
    assert_str(&e.name, "ad.viewed");
    assert_int_equal(e.message_id.len, 0);
    assert_int_equal(e.code.len, 0);
    assert_int_equal(e.has_bid, 1);
    assert_int_equal(e.bid[0], 0x01);
    assert_int_equal(e.bid[15], 0x81);

    s = kx_api_event(&e, -1, &pool);
    assert_str(&s, "{\"name\":\"ad.viewed\",\"payload\":{\"bidId\":\"" BID
               "\",\"content\":\"c\",\"format\":\"f\"}}");

    s = kx_api_event(&e, 0.0042, &pool);
    assert_str(&s, "{\"name\":\"ad.viewed\",\"payload\":{\"bidId\":\"" BID
               "\",\"content\":\"c\",\"format\":\"f\",\"revenue\":0.0042}}");

    s = kx_api_event(&e, 0, &pool);
    assert_str(&s, "{\"name\":\"ad.viewed\",\"payload\":{\"bidId\":\"" BID
               "\",\"content\":\"c\",\"format\":\"f\",\"revenue\":0}}");

    /* not a number, and without end */

    s = kx_api_event(&e, strtod("nan", NULL), &pool);
    assert_line(&s);
    assert_null(memmem(s.data, s.len, "revenue", 7));

    s = kx_api_event(&e, strtod("inf", NULL), &pool);
    assert_line(&s);
    assert_null(memmem(s.data, s.len, "revenue", 7));

    /* what the session knows of the ad */

    e.code = text("inlineAd");
    e.message_id = text("m4");
    s = kx_api_event(&e, 1, &pool);
    assert_str(&s, "{\"name\":\"ad.viewed\",\"code\":\"inlineAd\","
               "\"payload\":{\"bidId\":\"" BID "\",\"messageId\":\"m4\","
               "\"content\":\"c\",\"format\":\"f\",\"revenue\":1}}");

    assert_null(read_event(&e, CODED, strlen(CODED)));
    assert_str(&e.code, "inlineAd");
    assert_str(&e.message_id, "m");

    s = kx_api_event(&e, 0.0042, &pool);
    assert_str(&s, "{\"name\":\"video.started\",\"code\":\"inlineAd\","
               "\"payload\":{\"bidId\":\"" BID "\"}}");

    /* what was not read here */

    e.payload = text("oops");
    s = kx_api_event(&e, -1, &pool);
    assert_int_equal(s.len, 0);

    e.payload = text("[]");
    s = kx_api_event(&e, -1, &pool);
    assert_str(&s, "{\"name\":\"video.started\",\"code\":\"inlineAd\","
               "\"payload\":{}}");

    e.name = text("ad.unheard");
    s = kx_api_event(&e, -1, &pool);
    assert_int_equal(s.len, 0);

    pool_free();
}


static void
test_event_limits(void **state)
{
    size_t                 len, extra, i;
    kx_str_t               s;
    unsigned char         *body, long_id[KX_API_MAX_MESSAGE_ID];
    unsigned char          long_code[KX_MAX_CODE];
    kx_api_event_t         e;
    const kx_api_error_t  *error;

    static const char  start[] = "{\"name\":\"ad.viewed\",\"payload\":"
                                 "{\"bidId\":\"" BID "\",\"content\":\"";
    static const char  end[] = "\",\"format\":\"f\"}}";
    static const char  code_start[] = "{\"name\":\"ad.error\",\"code\":\"";

    extra = strlen("{\"name\":\"ad.viewed\",\"payload\":") + 1;

    memset(long_id, 1, sizeof(long_id));
    memset(long_code, 1, sizeof(long_code));

    for (len = KX_API_MAX_PAYLOAD; len <= KX_API_MAX_PAYLOAD + 1; len++) {
        body = padded(start, end, len + extra);
        error = read_event(&e, body, len + extra);
        free(body);

        if (len > KX_API_MAX_PAYLOAD) {
            assert_error(error, &kx_api_too_large, "event");
            continue;
        }

        assert_error(error, NULL, "event");
        assert_int_equal(e.payload.len, KX_API_MAX_PAYLOAD);

        /* the longest that can come of it */

        e.code.len = sizeof(long_code);
        e.code.data = long_code;
        e.message_id.len = sizeof(long_id);
        e.message_id.data = long_id;

        s = kx_api_event(&e, -1.7976931348623157e+308, &pool);
        assert_line(&s);

        s = kx_api_event(&e, 1.7976931348623157e-308, &pool);
        assert_line(&s);
        assert_in_range(s.len, KX_API_MAX_PAYLOAD + 400, KX_API_MAX_EVENT);

        pool_free();
    }

    /* a message id from the session is left out when there is no room */

    for (i = 0; i < 2; i++) {
        len = KX_API_MAX_PAYLOAD + i - strlen(",\"messageId\":\"\"") - 6 * 256;
        body = padded(start, end, len + extra);
        assert_null(read_event(&e, body, len + extra));
        free(body);

        e.message_id.len = sizeof(long_id);
        e.message_id.data = long_id;
        e.code.len = sizeof(long_code);
        e.code.data = long_code;

        s = kx_api_event(&e, 1.7976931348623157e-308, &pool);
        assert_line(&s);
        assert_true(s.len <= KX_API_MAX_EVENT);
        assert_int_equal(memmem(s.data, s.len, "messageId", 9) != NULL,
                         i == 0);
        pool_free();
    }

    /* code, in bytes */

    for (len = KX_MAX_CODE; len <= KX_MAX_CODE + 1; len++) {
        body = padded(code_start, "\"}", strlen(code_start) + len + 2);
        error = read_event(&e, body, strlen(code_start) + len + 2);
        free(body);

        assert_error(error, (len == KX_MAX_CODE) ? NULL : &kx_api_bad_event,
                     "code");
        pool_free();
    }

    /* what is not kept does not count, up to the limit of bodies */

    for (len = KX_API_MAX_BODY; len <= KX_API_MAX_BODY + 1; len++) {
        body = padded("{\"name\":\"ad.error\",\"x\":\"", "\"}", len);
        assert_error(read_event(&e, body, len),
                     (len == KX_API_MAX_BODY) ? NULL : &kx_api_too_large,
                     "body");
        free(body);
        pool_free();
    }
}


static void
test_preload_events(void **state)
{
    kx_str_t       s, code;
    unsigned char  bid[KX_ID_LEN];

    assert_int_equal(kx_uuid_parse(bid, (unsigned char *) BID, KX_UUID_LEN),
                     KX_OK);

    code = text("inlineAd");

    s = kx_api_event_filled(bid, &code, 0.0042, &pool);
    assert_str(&s, "{\"name\":\"ad.filled\",\"code\":\"inlineAd\","
               "\"payload\":{\"bidId\":\"" BID "\",\"code\":\"inlineAd\","
               "\"revenue\":0.0042}}");

    s = kx_api_event_filled(bid, &code, -1, &pool);
    assert_str(&s, "{\"name\":\"ad.filled\",\"code\":\"inlineAd\","
               "\"payload\":{\"bidId\":\"" BID "\",\"code\":\"inlineAd\"}}");

    s = kx_api_event_no_fill("ad_skipped", &pool);
    assert_str(&s, "{\"name\":\"ad.no-fill\",\"payload\":"
               "{\"skipCode\":\"ad_skipped\"}}");

    s = kx_api_event_error("geo_disabled", "Session is disabled\n\xe2\x80\xa8",
                           &pool);
    assert_str(&s, "{\"name\":\"ad.error\",\"payload\":"
               "{\"message\":\"Session is disabled\\n\\u2028\","
               "\"errCode\":\"geo_disabled\"}}");
    assert_line(&s);

    pool_free();
}


static kx_str_t  placements[] = {
    kx_string("inlineAd"),
    kx_string("after")
};

static kx_bid_t      bids[2];
static kx_message_t  messages[3];
static kx_ad_t       ads[4];


static void
full_state(kx_api_state_t *s)
{
    unsigned  i;

    memset(s, 0, sizeof(kx_api_state_t));

    s->id = text("kxs_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    s->user_id = text("u-381");
    s->conversation_id = text("c-77");
    s->options = text(OPTIONS);
    s->has_server_id = 1;
    memset(s->server_id, 0xab, KX_ID_LEN);
    s->created = 1772475611045ULL;
    s->enabled = 1;
    s->init = 1;
    s->preload_timeout = 8000;
    s->report_errors = 1;
    s->preload = "filled";

    messages[0].role = KX_ROLE_USER;
    messages[0].id = text("m1");
    messages[0].created = 1772475611045ULL;
    messages[1].role = KX_ROLE_OTHER;
    messages[1].id = text("m2");
    messages[2].role = KX_ROLE_ASSISTANT;
    messages[2].id = text("m3\n\xe2\x80\xa9\xff");
    messages[2].created = 0;
    s->messages = messages;
    s->nmessages = 3;

    memset(bids, 0, sizeof(bids));
    memset(bids[0].id, 0x11, KX_ID_LEN);
    memset(bids[1].id, 0x22, KX_ID_LEN);
    bids[1].placement = 1;

    for (i = 0; i < 4; i++) {
        ads[i].origin = text("https://x.y");
        ads[i].message_id = text("m3");
        ads[i].label = text("Ad\xe2\x80\xa8");
        ads[i].sdk_name = text("sdk-js");
        ads[i].theme = text("");
        ads[i].placements = placements;
        ads[i].bids = bids;
        ads[i].nbids = 2;
    }

    s->ads = ads;
    s->nads = 1;
}


#define FRAME(id, code, message)                                              \
    "{\"bidId\":\"" id "\",\"code\":\"" code "\",\"label\":\"Ad\\u2028\","    \
    "\"frameUrl\":\"https://x.y/api/frame/" id "?code=" code "&messageId="    \
    message "&sdk=sdk-js\"}"

#define ID_1  "11111111-1111-1111-1111-111111111111"
#define ID_2  "22222222-2222-2222-2222-222222222222"


static void
test_state(void **state)
{
    kx_str_t        s;
    kx_api_state_t  st;

    full_state(&st);
    s = kx_api_write_state(&st, &pool);
    assert_line(&s);
    assert_str(&s, "{\"sessionId\":\"kxs_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\","
               "\"userId\":\"u-381\",\"conversationId\":\"c-77\","
               "\"serverSessionId\":\"abababab-abab-abab-abab-abababababab\","
               "\"createdAt\":\"2026-03-02T18:20:11.045Z\","
               "\"disabled\":false,\"preload\":\"filled\","
               "\"flags\":{\"enabled\":true,\"preloadTimeout\":8000,"
               "\"reportErrors\":true,\"reportDebug\":false,\"init\":true},"
               "\"character\":" CHARACTER ",\"regulatory\":" REGULATORY ","
               "\"variantId\":\"b\",\"userEmail\":\"a@example.com\","
               "\"messages\":[{\"id\":\"m1\",\"role\":\"user\","
               "\"createdAt\":\"2026-03-02T18:20:11.045Z\"},"
               "{\"id\":\"m3\\n\\u2029" FFFD "\",\"role\":\"assistant\","
               "\"createdAt\":\"1970-01-01T00:00:00.000Z\"}],"
               "\"ads\":{\"m3\":[" FRAME(ID_1, "inlineAd", "m3") ","
               FRAME(ID_2, "after", "m3") "]}}");

    /* little is known */

    memset(&st, 0, sizeof(st));
    st.preload = "none";
    st.disabled = 1;
    st.report_debug = 1;

    s = kx_api_write_state(&st, &pool);
    assert_line(&s);
    assert_str(&s, "{\"sessionId\":\"\",\"userId\":\"\","
               "\"conversationId\":\"\","
               "\"createdAt\":\"1970-01-01T00:00:00.000Z\","
               "\"disabled\":true,\"preload\":\"none\","
               "\"flags\":{\"enabled\":false,\"preloadTimeout\":16000,"
               "\"reportErrors\":false,\"reportDebug\":true,\"init\":false},"
               "\"messages\":[],\"ads\":{}}");

    /* damage: a member of the state among the options, and worse */

    st.options = text("{\"sessionId\":\"x\",\"ads\":7,\"variantId\":\"b\"}");
    s = kx_api_write_state(&st, &pool);
    assert_line(&s);
    assert_non_null(memmem(s.data, s.len, "\"variantId\":\"b\"", 15));
    assert_null(memmem(s.data, s.len, "\"x\"", 3));

    st.options = text("{\"variantId\":\"b\"");
    s = kx_api_write_state(&st, &pool);
    assert_line(&s);
    assert_null(memmem(s.data, s.len, "variantId", 9));

    pool_free();
}


static void
test_state_ads(void **state)
{
    cJSON           *root, *list;
    kx_str_t         s, id;
    kx_api_state_t   st;

    /* the newest of one message, none that cannot be shown, odd names */

    full_state(&st);
    st.nads = 4;
    ads[1].nbids = 1;
    ads[2].message_id = text("__proto__");
    ads[2].nbids = 0;

    id.len = KX_MAX_FRAME_URL;
    id.data = padded("", "", id.len);
    ads[3].message_id = id;

    s = kx_api_write_state(&st, &pool);
    assert_line(&s);

    root = cJSON_ParseWithLength((char *) s.data, s.len);
    list = cJSON_GetObjectItem(root, "ads");
    assert_int_equal(cJSON_GetArraySize(list), 2);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(list, "m3")), 1);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(list,
                                                            "__proto__")), 0);
    cJSON_Delete(root);

    /* the longest id there is, of characters that become longest */

    memset(id.data, 0xff, KX_API_MAX_MESSAGE_ID);
    id.len = KX_API_MAX_MESSAGE_ID;
    ads[0].message_id = id;
    st.nads = 1;

    s = kx_api_write_state(&st, &pool);
    assert_line(&s);
    root = cJSON_ParseWithLength((char *) s.data, s.len);
    list = cJSON_GetObjectItem(root, "ads");
    assert_int_equal(cJSON_GetArraySize(list), 1);
    assert_int_equal(strlen(list->child->string), 3 * KX_API_MAX_MESSAGE_ID);
    cJSON_Delete(root);

    free(id.data);
    pool_free();
}


static void
test_errors(void **state)
{
    size_t                 i, k;
    cJSON                 *root, *error;
    kx_str_t               s;
    const kx_api_error_t  *e;

    static const struct {
        const kx_api_error_t  *error;
        unsigned               status;
        const char            *code;
    } errors[] = {
        { &kx_api_bad_json, 400, "bad_json" },
        { &kx_api_bad_member, 400, "bad_member" },
        { &kx_api_unknown_member, 400, "unknown_member" },
        { &kx_api_missing_member, 400, "missing_member" },
        { &kx_api_bad_role, 400, "bad_role" },
        { &kx_api_bad_time, 400, "bad_time" },
        { &kx_api_bad_event, 400, "bad_event" },
        { &kx_api_forbidden_user, 403, "forbidden_user" },
        { &kx_api_unknown_path, 404, "unknown_path" },
        { &kx_api_unknown_session, 404, "unknown_session" },
        { &kx_api_unknown_ad, 404, "unknown_ad" },
        { &kx_api_no_ad, 404, "no_ad" },
        { &kx_api_bad_method, 405, "bad_method" },
        { &kx_api_immutable, 409, "immutable" },
        { &kx_api_too_large, 413, "too_large" },
        { &kx_api_media_type, 415, "media_type" },
        { &kx_api_too_many_streams, 503, "too_many_streams" },
        { &kx_api_no_room, 503, "no_room" },
        { &kx_api_no_memory, 500, "no_memory" }
    };

    for (i = 0; i < count(errors); i++) {
        e = errors[i].error;

        assert_int_equal(e->status, errors[i].status);
        assert_str(&e->code, errors[i].code);

        /* one sentence that says what to send */

        assert_int_equal(e->message.data[e->message.len - 1], '.');
        assert_non_null(strstr((char *) e->message.data, "send"));

        for (k = 0; k < i; k++) {
            assert_string_not_equal((char *) e->message.data,
                                (char *) errors[k].error->message.data);
        }

        s = kx_api_write_error(e, &pool);
        assert_line(&s);

        root = cJSON_ParseWithLength((char *) s.data, s.len);
        error = cJSON_GetObjectItem(root, "error");
        assert_string_equal(cJSON_GetStringValue(
                                cJSON_GetObjectItem(error, "code")),
                            errors[i].code);
        assert_string_equal(cJSON_GetStringValue(
                                cJSON_GetObjectItem(error, "message")),
                            (char *) e->message.data);
        assert_int_equal(cJSON_GetArraySize(root), 1);
        assert_int_equal(cJSON_GetArraySize(error), 2);
        cJSON_Delete(root);
    }

    s = kx_api_write_error(&kx_api_no_memory, &pool);
    assert_str(&s, "{\"error\":{\"code\":\"no_memory\",\"message\":\"The "
               "server has no memory for this call: send it again "
               "later.\"}}");

    /* the limits that are named are the limits there are */

    assert_non_null(strstr((char *) kx_api_too_large.message.data, "262144"));
    assert_int_equal(KX_API_MAX_BODY, 262144);
    assert_non_null(strstr((char *) kx_api_too_large.message.data, "8192"));
    assert_int_equal(KX_API_MAX_OPTIONS, 8192);
    assert_non_null(strstr((char *) kx_api_too_large.message.data, "3584"));
    assert_int_equal(KX_API_MAX_PAYLOAD, 3584);
    assert_non_null(strstr((char *) kx_api_bad_member.message.data, "256"));

    pool_free();
}


static void
test_ids(void **state)
{
    unsigned        i, c, good;
    uint32_t        root, found, other;
    kx_str_t        s;
    unsigned char   dst[KX_API_ID_LEN + 1], last[KX_API_ID_LEN];
    unsigned char   id[KX_ID_LEN], back[KX_ID_LEN], key2[KX_SIP_KEY_LEN];

    memcpy(key2, key, KX_SIP_KEY_LEN);
    key2[0] ^= 1;

    s.len = KX_API_ID_LEN;
    s.data = dst;

    for (i = 0; i < 2000; i++) {
        root = (i % 3) ? i : 0xffffffff - i;

        for (c = 0; c < KX_ID_LEN; c++) {
            id[c] = (unsigned char) (i * 131 + c * 17 + (i >> c));
        }

        dst[KX_API_ID_LEN] = 0xcc;
        kx_api_id_write(dst, root, id, key);
        assert_int_equal(dst[KX_API_ID_LEN], 0xcc);
        assert_memory_equal(dst, "kxs_", 4);
        assert_int_equal(strspn((char *) dst + 4,
                                "abcdefghijklmnopqrstuvwxyz234567"), 32);

        assert_int_equal(kx_api_id_read(&found, back, &s, key), KX_OK);
        assert_true(found == root);
        assert_memory_equal(back, id, KX_ID_LEN);

        /* another key finds another place */

        assert_int_equal(kx_api_id_read(&other, back, &s, key2), KX_OK);
        assert_true(other != root);
        assert_memory_equal(back, id, KX_ID_LEN);
    }

    /* the same place looks different with another id */

    kx_api_id_write(dst, 7, id, key);
    memcpy(last, dst, KX_API_ID_LEN);
    id[15] ^= 1;
    kx_api_id_write(dst, 7, id, key);
    assert_memory_not_equal(dst + 4, last + 4, 6);

    /* each character counts, and has one form */

    for (i = 0; i < KX_API_ID_LEN; i++) {
        kx_api_id_write(dst, 7, id, key);
        good = 0;

        for (c = 0; c < 256; c++) {
            dst[i] = (unsigned char) c;

            if (kx_api_id_read(&found, back, &s, key) == KX_OK) {
                good++;
                kx_api_id_write(last, found, back, key);
                assert_memory_equal(last, dst, KX_API_ID_LEN);
            }
        }

        assert_int_equal(good, (i < 4) ? 1 : 32);
    }

    kx_api_id_write(dst, 7, id, key);

    for (s.len = 0; s.len <= KX_API_ID_LEN + 1; s.len++) {
        s.data = exact(dst, s.len);
        assert_int_equal(kx_api_id_read(&found, back, &s, key),
                         (s.len == KX_API_ID_LEN) ? KX_OK : KX_DECLINED);
        free(s.data);
    }
}


/* no part of a body is a body */

static void
test_prefixes(void **state)
{
    size_t             i, len;
    unsigned           n;
    kx_str_t           s, older;
    kx_api_event_t     e;
    kx_ad_request_t    ar;
    kx_api_session_t   session;
    kx_api_message_t  *m;

    static const char  list[] =
        "[{\"id\":\"m\\u00e91\",\"role\":\"user\",\"content\":\"\\ud83d\\ude00"
        "\",\"createdAt\":\"2026-03-02T18:20:11.045Z\",\"trackOnly\":true}]";
    static const char  click[] =
        "{\"name\":\"ad.clicked\",\"code\":\"inlineAd\",\"payload\":{"
        "\"id\":\"" BID "\",\"messageId\":\"m\",\"content\":\"\xc3\xa9\","
        "\"url\":\"u\",\"format\":\"f\",\"area\":\"a\"}}";

    for (len = 0; len < strlen(FULL); len++) {
        assert_error(read_session(&session, FULL, len), &kx_api_bad_json,
                     "session");
        assert_error(read_patch(&s, FULL, len), &kx_api_bad_json, "patch");
    }

    for (len = 0; len < strlen(list); len++) {
        assert_error(read_messages(&m, &n, list, len), &kx_api_bad_json,
                     "messages");
    }

    for (len = 0; len < strlen(click); len++) {
        assert_error(read_event(&e, click, len), &kx_api_bad_json, "event");
    }

    for (len = 1; len < strlen(OPTIONS); len++) {
        older.len = len;
        older.data = exact(OPTIONS, len);

        request(&ar);
        assert_int_equal(kx_options_apply(&ar, &older, &pool), KX_ERROR);

        s = text("{\"variantId\":\"c\"}");
        assert_null(kx_options_merge(&s, &older, &s, &pool));
        assert_str(&s, "{\"variantId\":\"c\"}");

        free(older.data);
        pool_free();
    }

    /* each byte damaged */

    for (i = 0; i < strlen(OPTIONS); i++) {
        older.len = strlen(OPTIONS);
        older.data = exact(OPTIONS, older.len);
        older.data[i] ^= 0x80;

        request(&ar);
        (void) kx_options_apply(&ar, &older, &pool);

        older.data[i] ^= 0x84;
        (void) kx_options_apply(&ar, &older, &pool);

        free(older.data);
        pool_free();
    }
}


static int
found(const kx_api_error_t *error)
{
    if (error == NULL) {
        return 1;
    }

    assert_error(error, &kx_api_no_memory, "memory");

    return 0;
}


static int
run_session(void)
{
    kx_api_session_t  s;

    return found(kx_api_read_session(&s, (unsigned char *) FULL, strlen(FULL),
                                     &pool));
}


static int
run_patch(void)
{
    kx_str_t  options;

    static const char  body[] = "{\"regulatory\":" REGULATORY "}";

    return found(kx_api_read_patch(&options, (unsigned char *) body,
                                   strlen(body), &pool));
}


static int
run_merge(void)
{
    kx_str_t  older, newer, result;

    older = text(OPTIONS);
    newer = text("{\"variantId\":\"c\",\"regulatory\":{\"gdpr\":0}}");

    return found(kx_options_merge(&result, &older, &newer, &pool));
}


static int
run_merge_damaged(void)
{
    kx_str_t  older, newer, result;

    older = text("{\"variantId\":1}");
    newer = text("{\"variantId\":\"c\"}");

    return found(kx_options_merge(&result, &older, &newer, &pool));
}


static int
run_apply(void)
{
    int              rc;
    kx_str_t         options;
    kx_ad_request_t  ar, before;

    request(&ar);
    before = ar;
    options = text(OPTIONS);

    rc = kx_options_apply(&ar, &options, &pool);

    if (rc == KX_OK) {
        return 1;
    }

    assert_int_equal(rc, KX_ERROR);
    assert_memory_equal(&ar, &before, sizeof(ar));

    return 0;
}


static int
run_messages(void)
{
    unsigned           n;
    kx_api_message_t  *m;

    static const char  body[] =
        "{\"messages\":[{\"id\":\"1\",\"role\":\"user\",\"content\":\"a\"},"
        "{\"id\":\"b\",\"role\":\"assistant\",\"content\":\"\"}]}";

    return found(kx_api_read_messages(&m, &n, (unsigned char *) body,
                                      strlen(body), &pool));
}


static int
run_event(void)
{
    kx_str_t               s;
    kx_api_event_t         e;
    const kx_api_error_t  *error;

    static const char  body[] =
        "{\"name\":\"ad.viewed\",\"code\":\"a\",\"payload\":{\"id\":\"" BID
        "\",\"messageId\":\"7\",\"content\":\"c\",\"format\":\"f\"}}";

    error = kx_api_read_event(&e, (unsigned char *) body, strlen(body),
                              &pool);

    if (!found(error)) {
        return 0;
    }

    e.payload = text("{\"bidId\":\"" BID "\",\"content\":\"c\"}");
    s = kx_api_event(&e, 0.5, &pool);

    return s.len != 0;
}


static int
run_event_error(void)
{
    kx_api_event_t  e;

    static const char  body[] = "{\"name\":\"ad.error\"}";

    return found(kx_api_read_event(&e, (unsigned char *) body, strlen(body),
                                   &pool));
}


static int
run_filled(void)
{
    kx_str_t  code;

    code = text("inlineAd");

    return kx_api_event_filled(key, &code, 0.5, &pool).len != 0;
}


static int
run_no_fill(void)
{
    return kx_api_event_no_fill("ad_skipped", &pool).len != 0;
}


static int
run_error(void)
{
    return kx_api_event_error("unknown", "Error", &pool).len != 0;
}


static int
run_state(void)
{
    kx_api_state_t  s;

    full_state(&s);
    s.nads = 2;

    return kx_api_write_state(&s, &pool).len != 0;
}


static int
run_write_error(void)
{
    return kx_api_write_error(&kx_api_no_room, &pool).len != 0;
}


/* says so and leaves nothing behind, which the sanitizer sees to */

static void
test_no_memory(void **state)
{
    size_t       i;
    cJSON_Hooks  hooks;

    static const struct {
        run_pt         run;
        size_t         pool;         /* allocations it takes at least */
        unsigned long  trees;
    } runs[] = {
        { run_session, 3, 60 },
        { run_patch, 1, 20 },
        { run_merge, 1, 60 },
        { run_merge_damaged, 1, 10 },
        { run_apply, 14, 40 },
        { run_messages, 5, 15 },
        { run_event, 4, 20 },
        { run_event_error, 1, 6 },
        { run_filled, 1, 10 },
        { run_no_fill, 1, 6 },
        { run_error, 1, 8 },
        { run_state, 1, 80 },
        { run_write_error, 1, 5 }
    };

    for (i = 0; i < count(runs); i++) {

        for (pool_allowed = 0; pool_allowed < 100; pool_allowed++) {
            if (runs[i].run()) {
                break;
            }

            pool_free();
        }

        pool_free();
        assert_in_range(pool_allowed, runs[i].pool, 99);
        pool_allowed = MAX_BLOCKS;

        hooks.malloc_fn = failing_malloc;
        hooks.free_fn = free;
        cJSON_InitHooks(&hooks);

        for (allowed = 0; allowed < 1000; allowed++) {
            allocations = 0;

            if (runs[i].run()) {
                break;
            }

            assert_true(allocations > allowed);
            pool_free();
        }

        cJSON_InitHooks(NULL);
        pool_free();
        assert_in_range(allowed, runs[i].trees, 999);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_session),
        cmocka_unit_test(test_session_zero_bytes),
        cmocka_unit_test(test_session_limits),
        cmocka_unit_test(test_many_values),
        cmocka_unit_test(test_patch),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_apply),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_bad_messages),
        cmocka_unit_test(test_message_limits),
        cmocka_unit_test(test_many_messages),
        cmocka_unit_test(test_created),
        cmocka_unit_test(test_created_inverse),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_event_data),
        cmocka_unit_test(test_event_limits),
        cmocka_unit_test(test_preload_events),
        cmocka_unit_test(test_state),
        cmocka_unit_test(test_state_ads),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_no_memory)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
