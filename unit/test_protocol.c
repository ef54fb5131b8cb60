/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>
#include <cjson/cJSON.h>

#include "hash.h"
#include "protocol.h"
#include "redact.h"


#define SESSION   "019a5c20-11aa-7e02-8b6c-0d4e92f1a3c5"
#define BID       "019a5c21-9f00-7d44-a1b2-3c4d5e6f7081"
#define BID2      "019a5c21-9f00-7d44-a1b2-3c4d5e6f7082"

#define SESSION_MEMBER  "\"sessionId\":\"" SESSION "\""
#define BID_OBJECT      "{\"bidId\":\"" BID "\",\"code\":\"inlineAd\"}"

#define MAX_MESSAGES    40


/* an answer, and what is to come out of it */

typedef struct {
    unsigned          status;
    const char       *body;
    kx_ad_outcome_e   outcome;
    const char       *code;
    unsigned          nbids;
    unsigned          disable;
    unsigned          session;
} answer_t;


typedef struct {
    const char       *value;         /* of the revenue member */
    double            revenue;
} revenue_t;


typedef struct {
    unsigned          status;
    const char       *body;
    unsigned          applied;
    unsigned          failed;
    unsigned          enabled;
    unsigned          report_errors;
    unsigned          report_debug;
    uint32_t          timeout;
} init_answer_t;


static void minimal(kx_ad_request_t *r);
static kx_message_t *message(kx_ad_request_t *r, kx_role_e role,
    const char *id, const char *content, size_t len);
static kx_str_t text(const char *s);
static cJSON *body_of(const kx_ad_request_t *r);
static void assert_body(const kx_ad_request_t *r, const char *expected);
static const cJSON *at(const cJSON *root, const char *path);
static const char *content_of(const cJSON *root, int i);
static void classify(kx_preload_answer_t *a, unsigned status,
    const char *body, unsigned track_only);
static void assert_answer(const answer_t *t, unsigned track_only);
static void assert_failed(const kx_preload_answer_t *a);
static void parse_uuid(unsigned char id[KX_ID_LEN], const char *s);
static void *failing_malloc(size_t size);


static kx_message_t  messages[MAX_MESSAGES];

static kx_str_t  placements[] = {
    kx_string("inlineAd"),
    kx_string("after")
};

static unsigned long  allocations, allowed;


static void
minimal(kx_ad_request_t *r)
{
    memset(r, 0, sizeof(kx_ad_request_t));

    r->publisher_token = text("acme-dev");
    r->user_id = text("u-381");
    r->conversation_id = text("c-77");
    r->install_id = text("019a5c1e-7b40-7c3a-9d11-5a2f0c9e7b61");
    r->sdk_name = text("sdk-js");
    r->sdk_platform = text("web");
    r->sdk_version = text("4.0.2");
    r->placements = placements;
    r->nplacements = 1;
    r->messages = messages;

    r->device.type = text("desktop");
    r->device.os = text("Linux");
    r->device.locale = text("en-GB");
    r->device.timezone = text("Europe/London");
    r->device.width = 1920;
    r->device.height = 1080;
    r->device.dpr = 1;

    r->character.nsfw = -1;
    r->regulatory.gdpr = -1;
    r->regulatory.coppa = -1;
}


static kx_message_t *
message(kx_ad_request_t *r, kx_role_e role, const char *id,
    const char *content, size_t len)
{
    kx_message_t  *m;

    assert_true(r->nmessages < MAX_MESSAGES);

    m = &messages[r->nmessages++];

    m->role = role;
    m->id = text(id);
    m->content.data = (unsigned char *) content;
    m->content.len = len;
    m->raw.data = NULL;
    m->raw.len = 0;
    m->tag = 0;
    m->clean = 0;
    m->created = 1772475611045ULL;

    return m;
}


static kx_str_t
text(const char *s)
{
    kx_str_t  str;

    str.len = strlen(s);
    str.data = (unsigned char *) s;

    return str;
}


static cJSON *
body_of(const kx_ad_request_t *r)
{
    char    *body;
    cJSON   *root;
    size_t   len;

    len = 0;
    body = kx_protocol_preload(r, &len);
    assert_non_null(body);
    assert_int_equal(len, strlen(body));

    root = cJSON_ParseWithOpts(body, NULL, 1);
    assert_non_null(root);

    kx_protocol_free(body);

    return root;
}


static void
assert_body(const kx_ad_request_t *r, const char *expected)
{
    char   *body;
    cJSON  *root, *other;

    root = body_of(r);

    other = cJSON_Parse(expected);
    assert_non_null(other);

    if (!cJSON_Compare(root, other, 1)) {
        body = cJSON_PrintUnformatted(root);
        fail_msg("expected %s\ngot %s", expected, body);
    }

    cJSON_Delete(other);
    cJSON_Delete(root);
}


/* the value at a path of names joined by dots, or NULL */

static const cJSON *
at(const cJSON *root, const char *path)
{
    char         name[64];
    size_t       n;

    while (root && *path) {
        n = strcspn(path, ".");

        memcpy(name, path, n);
        name[n] = '\0';

        root = cJSON_GetObjectItemCaseSensitive(root, name);

        path += n;
        path += (*path == '.');
    }

    return root;
}


static const char *
content_of(const cJSON *root, int i)
{
    return cJSON_GetStringValue(at(cJSON_GetArrayItem(at(root, "messages"),
                                                      i),
                                   "content"));
}


static void
test_init_body(void **state)
{
    char             *body;
    size_t            len;
    kx_ad_request_t   r;

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", "secret", 6);
    r.user_email = text("a@example.com");
    r.has_session = 1;

    body = kx_protocol_init(&r, &len);

    assert_non_null(body);
    assert_string_equal(body,
        "{\"publisherToken\":\"acme-dev\",\"userId\":\"u-381\","
        "\"installId\":\"019a5c1e-7b40-7c3a-9d11-5a2f0c9e7b61\","
        "\"sdk\":{\"name\":\"sdk-js\",\"platform\":\"web\","
        "\"version\":\"4.0.2\"}}");
    assert_int_equal(len, strlen(body));

    kx_protocol_free(body);
}


static void
test_minimal_body(void **state)
{
    kx_ad_request_t  r;

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", "Which shoes?", 12);

    assert_body(&r,
        "{\"publisherToken\":\"acme-dev\",\"userId\":\"u-381\","
        "\"conversationId\":\"c-77\","
        "\"installId\":\"019a5c1e-7b40-7c3a-9d11-5a2f0c9e7b61\","
        "\"enabledPlacementCodes\":[\"inlineAd\"],"
        "\"messages\":[{\"id\":\"m1\",\"role\":\"user\","
        "\"content\":\"Which shoes?\","
        "\"createdAt\":\"2026-03-02T18:20:11.045Z\"}],"
        "\"sdk\":{\"name\":\"sdk-js\",\"platform\":\"web\","
        "\"version\":\"4.0.2\"},"
        "\"device\":{\"hardware\":{\"type\":\"desktop\"},"
        "\"os\":{\"name\":\"Linux\",\"version\":\"\","
        "\"locale\":\"en-GB\",\"timezone\":\"Europe/London\"},"
        "\"screen\":{\"width\":1920,\"height\":1080,\"dpr\":1,"
        "\"darkMode\":false}}}");
}


static void
test_full_body(void **state)
{
    int              sids[] = { 2, 7 };
    kx_str_t         tags[] = { kx_string("wise"), kx_string("old") };
    kx_ad_request_t  r;

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", "Hi", 2);
    message(&r, KX_ROLE_ASSISTANT, "m2", "Hello", 5);
    message(&r, KX_ROLE_USER, "m3", "Shoes?", 6);

    r.has_session = 1;
    parse_uuid(r.session, "019A5C20-11AA-7E02-8B6C-0D4E92F1A3C5");
    r.nplacements = 2;
    r.user_email = text("a@example.com");
    r.variant_id = text("b");
    r.device.user_agent = text("Mozilla/5.0 (X11)");
    r.device.os_version = text("6.1");
    r.device.dpr = 2.625;
    r.device.dark = 1;

    r.character.id = text("ch-1");
    r.character.name = text("Merlin");
    r.character.avatar_url = text("https://example.com/m.png");
    r.character.greeting = text("Well met");
    r.character.persona = text("a wizard");
    r.character.tags = tags;
    r.character.ntags = 2;
    r.character.has_tags = 1;
    r.character.nsfw = 0;

    r.regulatory.gdpr = 1;
    r.regulatory.coppa = 0;
    r.regulatory.gdpr_consent = text("CPexample");
    r.regulatory.gpp = text("DBAA");
    r.regulatory.us_privacy = text("1YNN");
    r.regulatory.gpp_sid = sids;
    r.regulatory.ngpp_sid = 2;
    r.regulatory.has_gpp_sid = 1;

    assert_body(&r,
        "{\"publisherToken\":\"acme-dev\",\"userId\":\"u-381\","
        "\"conversationId\":\"c-77\","
        "\"installId\":\"019a5c1e-7b40-7c3a-9d11-5a2f0c9e7b61\","
        "\"sessionId\":\"" SESSION "\","
        "\"enabledPlacementCodes\":[\"inlineAd\",\"after\"],"
        "\"messages\":["
        "{\"id\":\"m1\",\"role\":\"user\",\"content\":\"Hi\","
        "\"createdAt\":\"2026-03-02T18:20:11.045Z\"},"
        "{\"id\":\"m2\",\"role\":\"assistant\",\"content\":\"Hello\","
        "\"createdAt\":\"2026-03-02T18:20:11.045Z\"},"
        "{\"id\":\"m3\",\"role\":\"user\",\"content\":\"Shoes?\","
        "\"createdAt\":\"2026-03-02T18:20:11.045Z\"}],"
        "\"sdk\":{\"name\":\"sdk-js\",\"platform\":\"web\","
        "\"version\":\"4.0.2\"},"
        "\"device\":{\"hardware\":{\"type\":\"desktop\"},"
        "\"os\":{\"name\":\"Linux\",\"version\":\"6.1\","
        "\"locale\":\"en-GB\",\"timezone\":\"Europe/London\"},"
        "\"screen\":{\"width\":1920,\"height\":1080,\"dpr\":2.625,"
        "\"darkMode\":true},"
        "\"network\":{\"userAgent\":\"Mozilla/5.0 (X11)\"}},"
        "\"character\":{\"id\":\"ch-1\",\"name\":\"Merlin\","
        "\"avatarUrl\":\"https://example.com/m.png\","
        "\"greeting\":\"Well met\",\"persona\":\"a wizard\","
        "\"tags\":[\"wise\",\"old\"],\"isNsfw\":false},"
        "\"regulatory\":{\"gdpr\":1,\"gdprConsent\":\"CPexample\","
        "\"coppa\":0,\"gpp\":\"DBAA\",\"gppSid\":[2,7],"
        "\"usPrivacy\":\"1YNN\"},"
        "\"userEmail\":\"a@example.com\",\"variantId\":\"b\"}");
}


/* what is not known is left out; no null is ever printed */

/* of one day and of others, in any order */

static void
test_message_times(void **state)
{
    char             expected[32];
    cJSON           *root;
    unsigned         i;
    const cJSON     *item;
    kx_message_t    *m;
    kx_ad_request_t  r;

    static const uint64_t  times[] = {
        1772495999999ULL, 1772496000000ULL, 1772496000001ULL,
        1772582399999ULL, 1772582400000ULL, 1772495999999ULL, 0, 1, 86400000,
        86399999, 253402300799999ULL, 253402300800000ULL, 1772496000000ULL
    };

    minimal(&r);

    for (i = 0; i < sizeof(times) / sizeof(uint64_t); i++) {
        m = message(&r, KX_ROLE_USER, "m", "Hi", 2);
        m->created = times[i];
    }

    root = body_of(&r);

    for (i = 0; i < sizeof(times) / sizeof(uint64_t); i++) {
        item = cJSON_GetArrayItem(at(root, "messages"), (int) i);

        kx_protocol_time(expected, times[i]);
        assert_string_equal(cJSON_GetStringValue(at(item, "createdAt")),
                            expected);
    }

    cJSON_Delete(root);
}


static void
test_left_out(void **state)
{
    char             *body;
    cJSON            *root;
    size_t            len;
    kx_ad_request_t   r;

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", "x", 1);

    r.install_id.len = 0;
    r.device.width = -1;
    r.device.height = -1;
    r.device.dpr = -1;
    r.device.dark = -1;
    r.character.id = text("ch-1");
    r.character.persona = text("a wizard");

    root = body_of(&r);

    assert_null(at(root, "installId"));
    assert_null(at(root, "sessionId"));
    assert_null(at(root, "character"));
    assert_null(at(root, "regulatory"));
    assert_null(at(root, "userEmail"));
    assert_null(at(root, "variantId"));
    assert_null(at(root, "app"));
    assert_null(at(root, "device.network"));
    assert_true(cJSON_IsObject(at(root, "device.screen")));
    assert_int_equal(cJSON_GetArraySize(at(root, "device.screen")), 0);

    cJSON_Delete(root);

    r.character.name = text("Merlin");
    r.regulatory.coppa = 1;

    root = body_of(&r);

    assert_int_equal(cJSON_GetArraySize(at(root, "character")), 3);
    assert_int_equal(cJSON_GetArraySize(at(root, "regulatory")), 1);
    assert_int_equal(at(root, "regulatory.coppa")->valueint, 1);

    cJSON_Delete(root);

    body = kx_protocol_preload(&r, &len);

    assert_null(strstr(body, "null"));

    kx_protocol_free(body);
}


static void
test_last_messages(void **state)
{
    int              i, n;
    char             ids[MAX_MESSAGES][16];
    cJSON           *root;
    const cJSON     *list;
    kx_ad_request_t  r;

    minimal(&r);

    for (i = 0; i < MAX_MESSAGES; i++) {
        snprintf(ids[i], sizeof(ids[i]), "m%d", i);
        message(&r, (i % 2) ? KX_ROLE_USER : KX_ROLE_ASSISTANT, ids[i], "x",
                1);
    }

    root = body_of(&r);
    list = at(root, "messages");
    n = cJSON_GetArraySize(list);

    assert_int_equal(n, KX_MAX_MESSAGES);

    for (i = 0; i < n; i++) {
        assert_string_equal(
            cJSON_GetStringValue(at(cJSON_GetArrayItem(list, i), "id")),
            ids[MAX_MESSAGES - n + i]);
    }

    cJSON_Delete(root);
}


/* what is neither the user's nor the assistant's is never sent */

static void
test_other_roles(void **state)
{
    int              i;
    cJSON           *root;
    kx_ad_request_t  r;

    minimal(&r);

    for (i = 0; i < MAX_MESSAGES - 2; i++) {
        message(&r, KX_ROLE_OTHER, "s", "a secret prompt", 15);

        if (i == 0) {
            message(&r, KX_ROLE_ASSISTANT, "m1", "one", 3);
        }
    }

    message(&r, KX_ROLE_USER, "m2", "two", 3);

    root = body_of(&r);

    assert_int_equal(cJSON_GetArraySize(at(root, "messages")), 2);
    assert_string_equal(content_of(root, 0), "one");
    assert_string_equal(content_of(root, 1), "two");

    cJSON_Delete(root);
}


static void
test_content_limit(void **state)
{
    char             *big;
    cJSON            *root;
    kx_ad_request_t   r;

    big = malloc(KX_MAX_CONTENT);
    assert_non_null(big);
    memset(big, 'a', KX_MAX_CONTENT);

    /* exactly as much as fits */

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", "12345", 5);
    message(&r, KX_ROLE_USER, "m2", big, KX_MAX_CONTENT - 5);

    root = body_of(&r);
    assert_int_equal(cJSON_GetArraySize(at(root, "messages")), 2);
    cJSON_Delete(root);

    /* one byte more, and with it all that is older goes */

    minimal(&r);
    message(&r, KX_ROLE_USER, "m0", "1", 1);
    message(&r, KX_ROLE_USER, "m1", "123456", 6);
    message(&r, KX_ROLE_USER, "m2", big, KX_MAX_CONTENT - 5);

    root = body_of(&r);
    assert_int_equal(cJSON_GetArraySize(at(root, "messages")), 1);
    assert_int_equal(strlen(content_of(root, 0)), KX_MAX_CONTENT - 5);
    cJSON_Delete(root);

    free(big);
}


/* the newest message is cut, and not within a character */

static void
test_content_cut(void **state)
{
    char             *big;
    cJSON            *root;
    size_t            n;
    const char       *s;
    kx_ad_request_t   r;

    static const size_t  lengths[] = { 1, 2, 3, 4 };
    static const char   *chars[] = {
        "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"
    };

    big = malloc(KX_MAX_CONTENT + 64);
    assert_non_null(big);

    for (n = 0; n < 16; n++) {
        memset(big, 'a', KX_MAX_CONTENT + 64);
        memcpy(big + KX_MAX_CONTENT - n / 4, chars[n % 4], lengths[n % 4]);

        minimal(&r);
        message(&r, KX_ROLE_ASSISTANT, "m1", "older", 5);
        message(&r, KX_ROLE_USER, "m2", big, KX_MAX_CONTENT + 64);

        root = body_of(&r);
        assert_int_equal(cJSON_GetArraySize(at(root, "messages")), 1);

        s = content_of(root, 0);

        /* the character is there as a whole, or not at all */

        if (lengths[n % 4] <= n / 4) {
            assert_int_equal(strlen(s), KX_MAX_CONTENT);

        } else {
            assert_int_equal(strlen(s), KX_MAX_CONTENT - n / 4);
        }

        assert_memory_equal(s, big, strlen(s));

        cJSON_Delete(root);
    }

    free(big);
}


/* ill-formed text grows, and is bounded as it is sent */

static void
test_content_limit_ill_formed(void **state)
{
    char             *big;
    cJSON            *root;
    kx_ad_request_t   r;

    big = malloc(KX_MAX_CONTENT);
    assert_non_null(big);
    memset(big, 0xff, KX_MAX_CONTENT);

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", big, KX_MAX_CONTENT);

    root = body_of(&r);
    assert_int_equal(strlen(content_of(root, 0)), KX_MAX_CONTENT / 3 * 3);
    cJSON_Delete(root);

    free(big);
}


static void
test_ill_formed_text(void **state)
{
    cJSON            *root;
    kx_str_t          user = kx_string("u\0\xff");
    kx_ad_request_t   r;

    static const char  hostile[] = "a\0b \xc3[ \xed\xa0\x80 \xf0\x9f\\ \"\n"
                                   "\x01\xc3\xa9\xc3";

    minimal(&r);
    r.user_id = user;
    message(&r, KX_ROLE_USER, "m1", hostile, sizeof(hostile) - 1);

    root = body_of(&r);

    assert_string_equal(cJSON_GetStringValue(at(root, "userId")),
                        "u\xef\xbf\xbd\xef\xbf\xbd");
    assert_string_equal(content_of(root, 0),
                        "a\xef\xbf\xbd" "b \xef\xbf\xbd[ "
                        "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd "
                        "\xef\xbf\xbd\\ \"\n\x01\xc3\xa9\xef\xbf\xbd");

    cJSON_Delete(root);
}


static void
assert_report(char *body, size_t len, const char *expected)
{
    assert_non_null(body);
    assert_int_equal(len, strlen(body));
    assert_string_equal(body, expected);

    kx_protocol_free(body);
}


#define IDENTITIES  "\"publisherToken\":\"acme-dev\","                        \
                    "\"conversationId\":\"c-77\",\"userId\":\"u-381\","     \
                    "\"installId\":\"019a5c1e-7b40-7c3a-9d11-5a2f0c9e7b61\""
#define SDK         "\"sdk\":{\"name\":\"sdk-js\",\"platform\":\"web\","      \
                    "\"version\":\"4.0.2\"}"


static void
test_reports(void **state)
{
    char             *body, big[KX_MAX_CONTENT + 2];
    size_t            len;
    unsigned char     bid[KX_ID_LEN];
    kx_ad_request_t   r;

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", "Hi", 2);
    r.user_email = text("a@example.com");
    parse_uuid(bid, "019A5C21-9F00-7D44-A1B2-3C4D5E6F7081");

    body = kx_protocol_error_report(&r, "upstream timed out", "preload.read",
                                    bid, &len);
    assert_report(body, len, "{\"error\":\"upstream timed out\","
                  "\"stack\":\"preload.read\",\"additionalData\":{"
                  IDENTITIES ",\"bidId\":\"" BID "\"," SDK "}}");

    body = kx_protocol_error_report(&r, "e", NULL, NULL, &len);
    assert_report(body, len, "{\"error\":\"e\",\"additionalData\":{"
                  IDENTITIES "," SDK "}}");

    body = kx_protocol_debug_report(&r, "Session: bid-assigned",
                                    "{\"messageId\":\"m4\"}", &len);
    assert_report(body, len, "{\"name\":\"Session: bid-assigned\","
                  "\"data\":\"{\\\"messageId\\\":\\\"m4\\\"}\","
                  "\"additionalData\":{" IDENTITIES "," SDK "}}");

    /* the session is for /debug only, a bid for /error */

    r.has_session = 1;
    parse_uuid(r.session, SESSION);

    body = kx_protocol_debug_report(&r, "n", NULL, &len);
    assert_report(body, len, "{\"name\":\"n\",\"additionalData\":{"
                  IDENTITIES "," SESSION_MEMBER "," SDK "}}");

    body = kx_protocol_error_report(&r, "e", NULL, NULL, &len);
    assert_report(body, len, "{\"error\":\"e\",\"additionalData\":{"
                  IDENTITIES "," SDK "}}");

    /* what is not known is left out */

    r.publisher_token.len = 0;
    r.conversation_id.len = 0;
    r.user_id.len = 0;
    r.install_id.len = 0;
    r.has_session = 0;

    body = kx_protocol_error_report(&r, "", "", NULL, &len);
    assert_report(body, len, "{\"error\":\"\",\"stack\":\"\","
                  "\"additionalData\":{" SDK "}}");

    body = kx_protocol_debug_report(&r, "n", "\xff\n", &len);
    assert_report(body, len, "{\"name\":\"n\",\"data\":\"\xef\xbf\xbd\\n\","
                  "\"additionalData\":{" SDK "}}");

    /* bounded */

    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';

    body = kx_protocol_debug_report(&r, "n", big, &len);
    assert_non_null(body);
    assert_int_equal(len, strlen("{\"name\":\"n\",\"data\":\"\","
                                 "\"additionalData\":{" SDK "}}")
                          + KX_MAX_CONTENT);
    kx_protocol_free(body);
}


static void *
failing_malloc(size_t size)
{
    return (allocations++ < allowed) ? malloc(size) : NULL;
}


/* texts and raw strings, with and without something that is taken out */

static void
test_redacted(void **state)
{
    cJSON            *root;
    unsigned          i, redact;
    kx_message_t     *m;
    kx_ad_request_t   r;

    static const struct {
        const char  *raw;            /* NULL: only the text is given */
        const char  *text;
        const char  *redacted;
    } cases[] = {
        { NULL, "I am bob@example.com", "I am [email]" },
        { NULL, "Which \"shoes\"?", "Which \"shoes\"?" },
        { "I am bob@example.com", "I am bob@example.com", "I am [email]" },
        { "I am\\nbob@example.com", "I am\nbob@example.com",
          "I am\n[email]" },
        { "bob\\u0040example.com\\t\\\"", "bob@example.com\t\"",
          "[email]\t\"" },
        { "Which \\\"shoes\\\"?", "Which \"shoes\"?", "Which \"shoes\"?" },
        { "Which shoes?", "Which shoes?", "Which shoes?" },
    };

    for (redact = 0; redact < 2; redact++) {
        minimal(&r);
        r.redact = redact ? KX_REDACT_ALL : 0;

        for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            m = message(&r, KX_ROLE_USER, "m", cases[i].text,
                        strlen(cases[i].text));

            if (cases[i].raw) {
                m->content.data = NULL;
                m->raw.data = (unsigned char *) cases[i].raw;
                m->raw.len = strlen(cases[i].raw);
            }
        }

        root = body_of(&r);

        for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            assert_string_equal(content_of(root, i),
                                redact ? cases[i].redacted : cases[i].text);
        }

        cJSON_Delete(root);
    }
}


/* without memory there is no body, and nothing is lost or left behind */

static void
test_no_memory(void **state)
{
    int               sids[] = { 2, 7 };
    char             *body, big[20000];
    size_t            len;
    kx_str_t          tag = kx_string("wise");
    cJSON_Hooks       hooks;
    kx_message_t     *m;
    kx_ad_request_t   r;

    /* much that is to be escaped, so that it grows more than once */

    memset(big, '\n', sizeof(big));

    minimal(&r);
    message(&r, KX_ROLE_USER, "m1", big, sizeof(big));
    message(&r, KX_ROLE_USER, "m2", "Shoes?", 6);
    message(&r, KX_ROLE_ASSISTANT, "m3", "To bob@example.com?", 19);
    m = message(&r, KX_ROLE_USER, "m4", NULL, 19);
    m->raw = text("To\\nann@example.com.");

    r.redact = KX_REDACT_ALL;
    r.has_session = 1;
    r.user_email = text("a@example.com");
    r.device.user_agent = text("Mozilla/5.0 (X11)");
    r.character.id = text("ch-1");
    r.character.name = text("Merlin");
    r.character.tags = &tag;
    r.character.ntags = 1;
    r.character.has_tags = 1;
    r.character.nsfw = 1;
    r.regulatory.gdpr = 1;
    r.regulatory.gpp_sid = sids;
    r.regulatory.ngpp_sid = 2;
    r.regulatory.has_gpp_sid = 1;

    hooks.malloc_fn = failing_malloc;
    hooks.free_fn = free;
    cJSON_InitHooks(&hooks);

    for (allowed = 0; allowed < 1000; allowed++) {
        allocations = 0;
        body = kx_protocol_preload(&r, &len);

        if (body) {
            break;
        }

        assert_true(allocations > allowed);
    }

    assert_non_null(body);
    assert_true(allowed > 1);
    kx_protocol_free(body);

    allocations = 0;
    allowed = 0;
    assert_null(kx_protocol_init(&r, &len));

    cJSON_InitHooks(NULL);
}


static void
test_no_memory_report(void **state)
{
    char             *body, big[5000];
    size_t            len;
    unsigned          debug;
    cJSON_Hooks       hooks;
    unsigned char     bid[KX_ID_LEN];
    kx_ad_request_t   r;

    memset(big, 'd', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';

    minimal(&r);
    r.has_session = 1;
    memset(bid, 0xab, KX_ID_LEN);

    hooks.malloc_fn = failing_malloc;
    hooks.free_fn = free;
    cJSON_InitHooks(&hooks);

    for (debug = 0; debug < 2; debug++) {

        for (allowed = 0; allowed < 1000; allowed++) {
            allocations = 0;
            body = debug ? kx_protocol_debug_report(&r, "n", big, &len)
                         : kx_protocol_error_report(&r, "e", big, bid, &len);

            if (body) {
                break;
            }

            assert_true(allocations > allowed);
        }

        assert_non_null(body);
        assert_true(allowed > 0);
        kx_protocol_free(body);
    }

    cJSON_InitHooks(NULL);
}


/* an answer in plain ASCII needs none */

static void
test_no_memory_answer(void **state)
{
    cJSON_Hooks          hooks;
    kx_init_answer_t     init;
    kx_preload_answer_t  a;

    static const char  plain[] = "{" SESSION_MEMBER ",\"bids\":[" BID_OBJECT
                                 "]}";
    static const char  body[] = "{" SESSION_MEMBER ",\"bids\":[" BID_OBJECT
                                "],\"new\":\"\\u00e9\"}";

    hooks.malloc_fn = failing_malloc;
    hooks.free_fn = free;
    cJSON_InitHooks(&hooks);

    for (allowed = 0; allowed < 1000; allowed++) {
        allocations = 0;
        classify(&a, 200, body, 0);

        if (a.outcome == KX_AD_FILLED) {
            break;
        }

        assert_failed(&a);
    }

    assert_int_equal(a.outcome, KX_AD_FILLED);
    assert_true(allowed > 5);

    allocations = 0;
    allowed = 0;
    kx_protocol_init_answer(&init, 200, (const unsigned char *) "{\n}", 3);
    assert_int_equal(init.failed, 1);
    assert_int_equal(init.applied, 0);
    assert_int_equal(init.enabled, 1);

    kx_protocol_init_answer(&init, 200, (const unsigned char *) "{}\r\n", 4);
    assert_int_equal(init.applied, 1);

    classify(&a, 200, plain, 0);
    assert_int_equal(a.outcome, KX_AD_FILLED);

    cJSON_InitHooks(NULL);
}


static const init_answer_t  init_answers[] = {
    { 0, "{\"enabled\":false}", 0, 1, 1, 1, 0, 0 },
    { 204, "", 0, 0, 1, 1, 0, 0 },
    { 204, "{\"enabled\":false}", 0, 0, 1, 1, 0, 0 },
    { 200, "", 0, 0, 1, 1, 0, 0 },
    { 199, "{\"enabled\":false}", 0, 0, 1, 1, 0, 0 },
    { 300, "{\"enabled\":false}", 0, 0, 1, 1, 0, 0 },
    { 500, "oops", 0, 0, 1, 1, 0, 0 },
    { 200, "oops", 0, 1, 1, 1, 0, 0 },
    { 200, "[]", 0, 1, 1, 1, 0, 0 },
    { 200, "null", 0, 1, 1, 1, 0, 0 },
    { 200, "{\"enabled\":false", 0, 1, 1, 1, 0, 0 },
    { 200, "{\"enabled\":false}x", 0, 1, 1, 1, 0, 0 },
    { 200, "{}", 1, 0, 1, 1, 0, 0 },
    { 299, " {} \r\n", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"enabled\":false}", 1, 0, 0, 1, 0, 0 },
    { 200, "{\"Enabled\":false}", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"enabled\":0}", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"enabled\":null,\"reportErrors\":\"no\",\"reportDebug\":1}",
      1, 0, 1, 1, 0, 0 },
    { 200, "{\"enabled\":true,\"reportErrors\":false,\"reportDebug\":true,"
           "\"preloadTimeout\":8000,\"new\":[{}]}", 1, 0, 1, 0, 1, 8000 },
    { 200, "{\"preloadTimeout\":8000.0}", 1, 0, 1, 1, 0, 8000 },
    { 200, "{\"preloadTimeout\":1}", 1, 0, 1, 1, 0, 1 },
    { 200, "{\"preloadTimeout\":600000}", 1, 0, 1, 1, 0, 600000 },
    { 200, "{\"preloadTimeout\":600001}", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"preloadTimeout\":0}", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"preloadTimeout\":-5}", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"preloadTimeout\":1.5}", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"preloadTimeout\":1e999}", 1, 0, 1, 1, 0, 0 },
    { 200, "{\"preloadTimeout\":\"8000\",\"enabled\":false}",
      1, 0, 0, 1, 0, 0 }
};


static void
test_init_answers(void **state)
{
    size_t                n;
    unsigned              ok;
    kx_init_answer_t      a;
    const init_answer_t  *t;

    for (n = 0; n < sizeof(init_answers) / sizeof(init_answer_t); n++) {
        t = &init_answers[n];

        memset(&a, 0xff, sizeof(kx_init_answer_t));

        kx_protocol_init_answer(&a, t->status,
                                (const unsigned char *) t->body,
                                strlen(t->body));

        ok = a.applied == t->applied && a.failed == t->failed
             && a.enabled == t->enabled
             && a.report_errors == t->report_errors
             && a.report_debug == t->report_debug
             && a.preload_timeout == t->timeout;

        if (!ok) {
            fail_msg("%u %s: applied:%u failed:%u enabled:%u errors:%u "
                     "debug:%u timeout:%u", t->status, t->body, a.applied,
                     a.failed, a.enabled, a.report_errors, a.report_debug,
                     a.preload_timeout);
        }
    }
}


static void
classify(kx_preload_answer_t *a, unsigned status, const char *body,
    unsigned track_only)
{
    memset(a, 0xff, sizeof(kx_preload_answer_t));

    kx_protocol_preload_answer(a, status, (const unsigned char *) body,
                               strlen(body), placements, 2, track_only);
}


static void
assert_answer(const answer_t *t, unsigned track_only)
{
    unsigned             ok;
    unsigned char        session[KX_ID_LEN];
    kx_preload_answer_t  a;

    classify(&a, t->status, t->body, track_only);

    ok = a.outcome == t->outcome
         && strcmp(a.code, t->code) == 0
         && a.nbids == t->nbids
         && a.disable == t->disable
         && a.has_session == t->session
         && a.transport == (t->status == 0)
         && a.failed == (t->status == 0);

    if (!ok) {
        fail_msg("%u %s: outcome:%d code:\"%s\" bids:%u disable:%u "
                 "session:%u transport:%u", t->status, t->body,
                 (int) a.outcome, a.code, a.nbids, a.disable, a.has_session,
                 a.transport);
    }

    if (t->session) {
        parse_uuid(session, SESSION);
        assert_memory_equal(a.session, session, KX_ID_LEN);
    }
}


/* rule 2 for an answer that is final */

static void
assert_failed(const kx_preload_answer_t *a)
{
    assert_int_equal(a->outcome, KX_AD_ERROR);
    assert_string_equal(a->code, "request_failed");
    assert_int_equal(a->transport, 0);
    assert_int_equal(a->failed, 1);
    assert_int_equal(a->disable, 0);
    assert_int_equal(a->has_session, 0);
    assert_int_equal(a->nbids, 0);
}


static const answer_t  rules[] = {

    /* 2: transport */

    { 0, "{" SESSION_MEMBER ",\"bids\":[" BID_OBJECT "]}",
      KX_AD_ERROR, "request_failed", 0, 0, 0 },

    /* 3, before the body is looked at */

    { 204, "", KX_AD_NO_FILL, "unfilled_bid", 0, 0, 0 },
    { 204, "{\"errCode\":\"x\"}", KX_AD_NO_FILL, "unfilled_bid", 0, 0, 0 },

    /* 4: the body is not read */

    { 400, "{" SESSION_MEMBER ",\"errCode\":\"x\",\"permanent\":true}",
      KX_AD_ERROR, "unknown", 0, 0, 0 },
    { 500, "", KX_AD_ERROR, "unknown", 0, 0, 0 },
    { 302, "", KX_AD_ERROR, "unknown", 0, 0, 0 },
    { 101, "", KX_AD_ERROR, "unknown", 0, 0, 0 },

    /* 5 */

    { 200, "{\"errCode\":\"geo_disabled\",\"permanent\":true}",
      KX_AD_ERROR, "geo_disabled", 0, 1, 0 },
    { 200, "{" SESSION_MEMBER ",\"errCode\":\"geo_disabled\","
           "\"permanent\":true}",
      KX_AD_ERROR, "geo_disabled", 0, 1, 1 },
    { 200, "{\"permanent\":true}",
      KX_AD_ERROR, "session_disabled", 0, 1, 0 },
    { 200, "{\"permanent\":true,\"errCode\":null}",
      KX_AD_ERROR, "session_disabled", 0, 1, 0 },
    { 200, "{\"permanent\":true,\"errCode\":7}",
      KX_AD_ERROR, "unknown", 0, 1, 0 },

    /* permanent alone is no error */

    { 200, "{" SESSION_MEMBER ",\"permanent\":true,\"bids\":[" BID_OBJECT
           "]}", KX_AD_FILLED, "", 1, 0, 1 },

    /* 6 */

    { 200, "{\"errCode\":\"generation_failed\",\"error\":\"no\"}",
      KX_AD_ERROR, "generation_failed", 0, 0, 0 },
    { 200, "{" SESSION_MEMBER ",\"errCode\":\"x\",\"bids\":[" BID_OBJECT
           "]}", KX_AD_ERROR, "x", 0, 0, 1 },
    { 200, "{\"errCode\":\"x\",\"permanent\":\"true\"}",
      KX_AD_ERROR, "x", 0, 0, 0 },
    { 200, "{\"errCode\":\"x\",\"permanent\":1}",
      KX_AD_ERROR, "x", 0, 0, 0 },
    { 200, "{\"errCode\":\"x\",\"permanent\":false}",
      KX_AD_ERROR, "x", 0, 0, 0 },
    { 200, "{" SESSION_MEMBER ",\"errCode\":false}",
      KX_AD_ERROR, "unknown", 0, 0, 1 },
    { 200, "{" SESSION_MEMBER ",\"errCode\":\"\"}",
      KX_AD_ERROR, "unknown", 0, 0, 1 },
    { 200, "{}", KX_AD_ERROR, "unknown", 0, 0, 0 },
    { 200, "{\"sessionId\":null,\"skip\":true}",
      KX_AD_ERROR, "unknown", 0, 0, 0 },
    { 200, "{\"bids\":[" BID_OBJECT "]}", KX_AD_ERROR, "unknown", 0, 0, 0 },
    { 200, "{\"SESSIONID\":\"" SESSION "\"}",
      KX_AD_ERROR, "unknown", 0, 0, 0 },

    /* 7 */

    { 200, "{" SESSION_MEMBER ",\"skip\":true,\"skipCode\":\"ad_skipped\","
           "\"bids\":[" BID_OBJECT "]}",
      KX_AD_NO_FILL, "ad_skipped", 0, 0, 1 },
    { 200, "{" SESSION_MEMBER ",\"skip\":true}",
      KX_AD_NO_FILL, "unknown", 0, 0, 1 },
    { 200, "{" SESSION_MEMBER ",\"skip\":true,\"skipCode\":null}",
      KX_AD_NO_FILL, "unknown", 0, 0, 1 },

    /* 8 */

    { 200, "{" SESSION_MEMBER "}",
      KX_AD_NO_FILL, "unfilled_bid", 0, 0, 1 },
    { 200, "{" SESSION_MEMBER ",\"bids\":null,\"skip\":\"true\","
           "\"skipCode\":\"x\"}",
      KX_AD_NO_FILL, "unfilled_bid", 0, 0, 1 },
    { 200, "{" SESSION_MEMBER ",\"bids\":[],\"skip\":1}",
      KX_AD_NO_FILL, "unfilled_bid", 0, 0, 1 },
    { 200, "{" SESSION_MEMBER ",\"bids\":[{\"bidId\":\"" BID "\","
           "\"code\":\"other\"},{\"bidId\":\"" BID "\",\"code\":\"\"},"
           "{\"bidId\":\"" BID "\",\"code\":\"InlineAd\"}]}",
      KX_AD_NO_FILL, "unfilled_bid", 0, 0, 1 },

    /* 9 */

    { 200, "{" SESSION_MEMBER ",\"bids\":[" BID_OBJECT "]}",
      KX_AD_FILLED, "", 1, 0, 1 },
    { 299, " {" SESSION_MEMBER ",\"bids\":[" BID_OBJECT "],"
           "\"skip\":false,\"errCode\":null,\"new\":{\"a\":[1]}}\n",
      KX_AD_FILLED, "", 1, 0, 1 }
};


static void
test_rules(void **state)
{
    size_t  n;

    for (n = 0; n < sizeof(rules) / sizeof(answer_t); n++) {
        assert_answer(&rules[n], 0);
    }
}


/* only rule 9 is another one */

static void
test_rules_track_only(void **state)
{
    size_t    n;
    answer_t  t;

    for (n = 0; n < sizeof(rules) / sizeof(answer_t); n++) {
        t = rules[n];

        if (t.outcome == KX_AD_FILLED) {
            t.outcome = KX_AD_NO_FILL;
            t.code = "track_only";
            t.nbids = 0;
        }

        assert_answer(&t, 1);
    }
}


static void
test_not_decodable(void **state)
{
    size_t               n;
    kx_preload_answer_t  a;

    static const char  *bodies[] = {
        "",
        " ",
        "oops",
        "null",
        "true",
        "[]",
        "\"{}\"",
        "{",
        "{" SESSION_MEMBER,
        "{" SESSION_MEMBER "} x",
        "{" SESSION_MEMBER "}{}",
        "{" SESSION_MEMBER ",}",
        "{" SESSION_MEMBER ",\"a\":01}",
        "{" SESSION_MEMBER ",\"a\":+1}",
        "{" SESSION_MEMBER ",\"a\":NaN}",
        "{" SESSION_MEMBER ",\"a\":\"\\x\"}",
        "{" SESSION_MEMBER ",\"a\":\"\n\"}",
        "{" SESSION_MEMBER ",\"a\":\"\\u12g4\"}",
        "{" SESSION_MEMBER ",\"a\":\"\\ud800\"}",
        "{" SESSION_MEMBER ",\"a\":\"\\udc00\\ud800\"}",
        "{" SESSION_MEMBER ",\"a\":\"\xff\"}",
        "{" SESSION_MEMBER ",\"a\":\"\xc0\x80\"}",
        "{" SESSION_MEMBER ",\"a\":\"\xed\xa0\x80\"}",
        "{" SESSION_MEMBER ",\"a\":\"\xf0\x90\x80\"}",
        "{'a':1}",

        /* a session id that is none */

        "{\"sessionId\":\"\"}",
        "{\"sessionId\":\"x\",\"permanent\":true,\"errCode\":\"x\"}",
        "{\"sessionId\":7}",
        "{\"sessionId\":{}}",
        "{\"sessionId\":\"" SESSION "0\"}",
        "{\"sessionId\":\"" SESSION "\\u0000\"}",
        "{\"sessionId\":\"{" SESSION "}\"}",

        /* bids that are none, also where they would not be used */

        "{" SESSION_MEMBER ",\"bids\":{}}",
        "{" SESSION_MEMBER ",\"bids\":\"\"}",
        "{" SESSION_MEMBER ",\"bids\":false}",
        "{" SESSION_MEMBER ",\"bids\":[null]}",
        "{" SESSION_MEMBER ",\"bids\":[{}]}",
        "{" SESSION_MEMBER ",\"bids\":[[]]}",
        "{" SESSION_MEMBER ",\"bids\":[\"" BID "\"]}",
        "{" SESSION_MEMBER ",\"bids\":[{\"bidId\":\"" BID "\"}]}",
        "{" SESSION_MEMBER ",\"bids\":[{\"code\":\"inlineAd\"}]}",
        "{" SESSION_MEMBER ",\"bids\":[{\"bidId\":\"" BID "\","
            "\"code\":1}]}",
        "{" SESSION_MEMBER ",\"bids\":[{\"bidId\":\"1\","
            "\"code\":\"other\"}]}",
        "{" SESSION_MEMBER ",\"bids\":[" BID_OBJECT ",{\"bidId\":null,"
            "\"code\":\"inlineAd\"}]}",
        "{" SESSION_MEMBER ",\"errCode\":\"x\",\"bids\":[{}]}",
        "{" SESSION_MEMBER ",\"skip\":true,\"bids\":[{}]}"
    };

    for (n = 0; n < sizeof(bodies) / sizeof(char *); n++) {
        classify(&a, 200, bodies[n], 0);

        if (a.outcome != KX_AD_ERROR || strcmp(a.code, "request_failed")) {
            fail_msg("%s: outcome:%d code:\"%s\"", bodies[n],
                     (int) a.outcome, a.code);
        }

        assert_failed(&a);
    }
}


/* no zero byte ends a name, a code or an id early */

static void
test_zero_bytes(void **state)
{
    kx_preload_answer_t  a;

    static const unsigned char  raw[] = "{" SESSION_MEMBER ",\"a\":\"\0\"}";
    static const unsigned char  tail[] = "{" SESSION_MEMBER "}\0";

    kx_protocol_preload_answer(&a, 200, raw, sizeof(raw) - 1, placements, 2,
                               0);
    assert_failed(&a);

    kx_protocol_preload_answer(&a, 200, tail, sizeof(tail) - 1, placements, 2,
                               0);
    assert_failed(&a);

    classify(&a, 200, "{" SESSION_MEMBER ",\"bids\":[{\"bidId\":\"" BID "\","
             "\"code\":\"inlineAd\\u0000x\"}]}", 0);
    assert_string_equal(a.code, "unfilled_bid");

    classify(&a, 200, "{" SESSION_MEMBER ",\"errCode\":\"ok\\u0000bad\"}", 0);
    assert_string_equal(a.code, "unknown");

    classify(&a, 200, "{" SESSION_MEMBER ",\"errCode\\u0000\":\"x\"}", 0);
    assert_string_equal(a.code, "unfilled_bid");

    /* this one is a backslash and text */

    classify(&a, 200, "{" SESSION_MEMBER ",\"bids\":[{\"bidId\":\"" BID "\","
             "\"code\":\"inlineAd\",\"x\":\"\\\\u0000\"}]}", 0);
    assert_int_equal(a.outcome, KX_AD_FILLED);
}


static void
test_answer_depth(void **state)
{
    char                 body[256], open[64], close[64];
    unsigned             depth;
    kx_preload_answer_t  a;

    for (depth = 30; depth < 35; depth++) {
        memset(open, '[', depth - 1);
        open[depth - 1] = '\0';
        memset(close, ']', depth - 1);
        close[depth - 1] = '\0';

        snprintf(body, sizeof(body), "{" SESSION_MEMBER ",\"s\":\"[[[{\\\"{\","
                 "\"a\":%s%s}", open, close);

        classify(&a, 200, body, 0);

        if (depth <= 32) {
            assert_string_equal(a.code, "unfilled_bid");

        } else {
            assert_failed(&a);
        }
    }
}


static void
test_answer_size(void **state)
{
    char                 *body;
    size_t                len;
    kx_init_answer_t      init;
    kx_preload_answer_t   a;

    static const char  start[] = "{" SESSION_MEMBER ",\"a\":\"";

    body = malloc(KX_MAX_ANSWER + 2);
    assert_non_null(body);

    for (len = KX_MAX_ANSWER; len <= KX_MAX_ANSWER + 1; len++) {
        memset(body, 'x', len);
        memcpy(body, start, sizeof(start) - 1);
        memcpy(body + len - 2, "\"}", 3);

        classify(&a, 200, body, 0);
        kx_protocol_init_answer(&init, 200, (unsigned char *) body, len);

        if (len == KX_MAX_ANSWER) {
            assert_string_equal(a.code, "unfilled_bid");
            assert_int_equal(init.applied, 1);

        } else {
            assert_failed(&a);
            assert_int_equal(init.applied, 0);
            assert_int_equal(init.failed, 1);
        }
    }

    free(body);
}


static void
test_bids(void **state)
{
    unsigned char        id[KX_ID_LEN];
    kx_preload_answer_t  a;

    /* of two for the same placement the first, whatever their order */

    classify(&a, 200, "{" SESSION_MEMBER ",\"bids\":["
             "{\"bidId\":\"" BID "\",\"code\":\"other\",\"revenue\":9},"
             "{\"bidId\":\"" BID "\",\"code\":\"after\",\"revenue\":1},"
             "{\"bidId\":\"019A5C21-9F00-7D44-A1B2-3C4D5E6F7082\","
             "\"code\":\"inlineAd\"},"
             "{\"bidId\":\"" SESSION "\",\"code\":\"inlineAd\"},"
             "{\"bidId\":\"" SESSION "\",\"code\":\"after\"}]}", 0);

    assert_int_equal(a.outcome, KX_AD_FILLED);
    assert_int_equal(a.nbids, 2);

    assert_int_equal(a.bids[0].placement, 1);
    parse_uuid(id, BID);
    assert_memory_equal(a.bids[0].id, id, KX_ID_LEN);
    assert_true(a.bids[0].revenue == 1);

    assert_int_equal(a.bids[1].placement, 0);
    parse_uuid(id, BID2);
    assert_memory_equal(a.bids[1].id, id, KX_ID_LEN);
    assert_true(a.bids[1].revenue < 0);
}


/* more placements than a session may have */

static void
test_too_many_placements(void **state)
{
    char                 body[1024], names[8][8];
    size_t               len;
    unsigned             i;
    kx_str_t             many[8];
    kx_preload_answer_t  a;

    len = (size_t) snprintf(body, sizeof(body), "{" SESSION_MEMBER
                            ",\"bids\":[");

    for (i = 0; i < 8; i++) {
        snprintf(names[i], sizeof(names[i]), "p%u", i);
        many[i] = text(names[i]);

        len += (size_t) snprintf(body + len, sizeof(body) - len,
                                 "%s{\"bidId\":\"" BID "\",\"code\":\"p%u\"}",
                                 i ? "," : "", 7 - i);
    }

    snprintf(body + len, sizeof(body) - len, "]}");

    kx_protocol_preload_answer(&a, 200, (unsigned char *) body, strlen(body),
                               many, 8, 0);

    assert_int_equal(a.outcome, KX_AD_FILLED);
    assert_int_equal(a.nbids, KX_MAX_BIDS);

    for (i = 0; i < a.nbids; i++) {
        assert_true(a.bids[i].placement < KX_MAX_BIDS);
    }

    kx_protocol_preload_answer(&a, 200, (unsigned char *) body, strlen(body),
                               NULL, 0, 0);
    assert_string_equal(a.code, "unfilled_bid");
}


static void
test_revenue(void **state)
{
    char                 body[512];
    size_t               n;
    kx_preload_answer_t  a;

    static const revenue_t  values[] = {
        { "0.0042", 0.0042 },
        { "0", 0 },
        { "-0.0", 0 },
        { "12", 12 },
        { "1e-3", 0.001 },
        { "\"0.5\"", 0.5 },
        { "\"1e2\"", 100 },
        { "-1", -1 },
        { "1e999", -1 },
        { "null", -1 },
        { "true", -1 },
        { "{}", -1 },
        { "\"\"", -1 },
        { "\" 1\"", -1 },
        { "\"1 \"", -1 },
        { "\"1x\"", -1 },
        { "\"0x10\"", -1 },
        { "\"inf\"", -1 },
        { "\"nan\"", -1 },
        { "\"-2\"", -1 },
        { "\"1e999\"", -1 },
        { "\".\"", -1 }
    };

    for (n = 0; n < sizeof(values) / sizeof(revenue_t); n++) {
        snprintf(body, sizeof(body), "{" SESSION_MEMBER ",\"bids\":[{"
                 "\"bidId\":\"" BID "\",\"code\":\"inlineAd\","
                 "\"revenue\":%s}]}", values[n].value);

        classify(&a, 200, body, 0);

        if (a.nbids != 1
            || (values[n].revenue < 0 ? !(a.bids[0].revenue < 0)
                                 : a.bids[0].revenue != values[n].revenue))
        {
            fail_msg("%s: bids:%u revenue:%f", values[n].value, a.nbids,
                     a.bids[0].revenue);
        }
    }
}


static void
test_codes(void **state)
{
    char                 body[512], longest[KX_MAX_CODE + 2];
    size_t               n;
    unsigned             i;
    kx_preload_answer_t  a;

    static const char  *bad[] = {
        "a b", "a/b", "a\\\\b", "a\\\"b", "<b>", "a\\nb", "\xc3\xa9",
        "a\\u0000", "a,b", "a%b"
    };

    for (n = 0; n < sizeof(bad) / sizeof(char *); n++) {

        for (i = 0; i < 2; i++) {
            snprintf(body, sizeof(body), "{" SESSION_MEMBER ",%s\"%s\"}",
                     i ? "\"errCode\":" : "\"skip\":true,\"skipCode\":",
                     bad[n]);

            classify(&a, 200, body, 0);
            assert_int_equal(a.outcome, i ? KX_AD_ERROR : KX_AD_NO_FILL);
            assert_string_equal(a.code, "unknown");
        }
    }

    classify(&a, 200, "{" SESSION_MEMBER ",\"errCode\":\"Az09_.:-\"}", 0);
    assert_string_equal(a.code, "Az09_.:-");

    for (n = KX_MAX_CODE; n <= KX_MAX_CODE + 1; n++) {
        memset(longest, 'x', n);
        longest[n] = '\0';

        snprintf(body, sizeof(body), "{\"errCode\":\"%s\"}", longest);

        classify(&a, 200, body, 0);
        assert_string_equal(a.code, (n == KX_MAX_CODE) ? longest : "unknown");
    }
}


static void
parse_uuid(unsigned char id[KX_ID_LEN], const char *s)
{
    assert_int_equal(kx_uuid_parse(id, (const unsigned char *) s, strlen(s)),
                     KX_OK);
}


static void
test_frame_url(void **state)
{
    kx_ad_t         ad;
    kx_bid_t        bid;
    kx_str_t        codes[1] = { kx_string("inline Ad&x=1") };
    unsigned char   buf[512], *last;

    memset(&ad, 0, sizeof(kx_ad_t));
    memset(&bid, 0, sizeof(kx_bid_t));

    ad.origin = text("https://server.megabrain.co");
    ad.message_id = text("kx1_aZ09-._~");
    ad.sdk_name = text("sdk-js");
    ad.placements = placements;
    parse_uuid(bid.id, "019A5C21-9F00-7D44-A1B2-3C4D5E6F7081");

    last = kx_protocol_frame_url(buf, buf + sizeof(buf), &ad, &bid);
    assert_non_null(last);
    *last = '\0';

    assert_string_equal(buf,
        "https://server.megabrain.co/api/frame/" BID
        "?code=inlineAd&messageId=kx1_aZ09-._~&sdk=sdk-js");

    ad.placements = codes;
    ad.message_id = text("a/b?c#d+e\xc3\xa9\"'\r\n<>");
    ad.theme = text("v2-dark&sdk=x");

    last = kx_protocol_frame_url(buf, buf + sizeof(buf), &ad, &bid);
    assert_non_null(last);
    *last = '\0';

    assert_string_equal(buf,
        "https://server.megabrain.co/api/frame/" BID
        "?code=inline%20Ad%26x%3D1"
        "&messageId=a%2Fb%3Fc%23d%2Be%C3%A9%22%27%0D%0A%3C%3E"
        "&sdk=sdk-js&theme=v2-dark%26sdk%3Dx");
}


static void
test_member(void **state)
{
    kx_ad_t         ad;
    kx_bid_t        bids[2];
    unsigned char   buf[1024], *last;

    memset(&ad, 0, sizeof(kx_ad_t));
    memset(bids, 0, sizeof(bids));

    ad.origin = text("https://server.megabrain.co");
    ad.message_id = text("kx1_abc");
    ad.label = text("Sponsored");
    ad.sdk_name = text("sdk-js");
    ad.placements = placements;
    ad.bids = bids;
    ad.nbids = 1;
    parse_uuid(bids[0].id, BID);
    bids[0].revenue = 0.0042;

    last = kx_protocol_member(buf, buf + sizeof(buf), &ad);
    assert_non_null(last);
    *last = '\0';

    assert_string_equal(buf,
        "{\"messageId\":\"kx1_abc\",\"ads\":[{\"bidId\":\"" BID "\","
        "\"code\":\"inlineAd\",\"label\":\"Sponsored\",\"frameUrl\":"
        "\"https://server.megabrain.co/api/frame/" BID
        "?code=inlineAd&messageId=kx1_abc&sdk=sdk-js\"}]}");

    /* two ads, a label that is not ASCII, and one that tries to break out */

    parse_uuid(bids[1].id, BID2);
    bids[1].placement = 1;
    ad.nbids = 2;
    ad.label = text("\xd0\xa0\"}\n\xf0\x9f\x98\x80\xff");

    last = kx_protocol_member(buf, buf + sizeof(buf), &ad);
    assert_non_null(last);
    *last = '\0';

    assert_string_equal(buf,
        "{\"messageId\":\"kx1_abc\",\"ads\":[{\"bidId\":\"" BID "\","
        "\"code\":\"inlineAd\","
        "\"label\":\"\\u0420\\\"}\\u000a\\ud83d\\ude00\\ufffd\","
        "\"frameUrl\":\"https://server.megabrain.co/api/frame/" BID
        "?code=inlineAd&messageId=kx1_abc&sdk=sdk-js\"},"
        "{\"bidId\":\"" BID2 "\",\"code\":\"after\","
        "\"label\":\"\\u0420\\\"}\\u000a\\ud83d\\ude00\\ufffd\","
        "\"frameUrl\":\"https://server.megabrain.co/api/frame/" BID2
        "?code=after&messageId=kx1_abc&sdk=sdk-js\"}]}");
}


/* whatever room there is: all of it, or NULL and nothing beyond the end */

static void
test_writers_bounded(void **state)
{
    size_t          room, url, member;
    kx_ad_t         ad;
    kx_bid_t        bid;
    unsigned char   full[1024], *buf, *last;

    memset(&ad, 0, sizeof(kx_ad_t));
    memset(&bid, 0, sizeof(kx_bid_t));

    ad.origin = text("https://example.com:8443");
    ad.message_id = text("kx1 \xc3\xa9");
    ad.label = text("\xd0\xa0\"");
    ad.sdk_name = text("sdk-js");
    ad.theme = text("dark/1");
    ad.placements = placements;
    ad.bids = &bid;
    ad.nbids = 1;

    last = kx_protocol_frame_url(full, full + sizeof(full), &ad, &bid);
    assert_non_null(last);
    url = (size_t) (last - full);

    last = kx_protocol_member(full, full + sizeof(full), &ad);
    assert_non_null(last);
    member = (size_t) (last - full);

    for (room = 0; room <= member; room++) {

        /* of exactly this size, for the sanitizer's sake */

        buf = malloc(room ? room : 1);
        assert_non_null(buf);

        last = kx_protocol_frame_url(buf, buf + room, &ad, &bid);
        assert_true(last == (room < url ? NULL : buf + url));

        last = kx_protocol_member(buf, buf + room, &ad);
        assert_true(last == (room < member ? NULL : buf + member));

        free(buf);
    }
}


/* a URL that is too long makes no member */

static void
test_long_url(void **state)
{
    char            *theme;
    size_t           n, url;
    kx_ad_t          ad;
    kx_bid_t         bid;
    unsigned char   *buf, *last;

    theme = malloc(KX_MAX_FRAME_URL);
    buf = malloc(KX_MAX_MEMBER);
    assert_non_null(theme);
    assert_non_null(buf);
    memset(theme, 'x', KX_MAX_FRAME_URL);

    memset(&ad, 0, sizeof(kx_ad_t));
    memset(&bid, 0, sizeof(kx_bid_t));

    ad.origin = text("https://example.com");
    ad.placements = placements;
    ad.bids = &bid;
    ad.nbids = 1;
    ad.theme.data = (unsigned char *) theme;
    ad.theme.len = 1;

    last = kx_protocol_frame_url(buf, buf + KX_MAX_MEMBER, &ad, &bid);
    assert_non_null(last);
    url = (size_t) (last - buf);

    for (n = KX_MAX_FRAME_URL - url; n < KX_MAX_FRAME_URL - url + 3; n++) {
        ad.theme.len = n;

        last = kx_protocol_member(buf, buf + KX_MAX_MEMBER, &ad);

        if (url - 1 + n <= KX_MAX_FRAME_URL) {
            assert_non_null(last);

        } else {
            assert_null(last);
        }
    }

    free(theme);
    free(buf);
}


static void
test_time(void **state)
{
    char      dst[32];
    size_t    n;
    uint64_t  ms;

    static const struct {
        uint64_t     ms;
        const char  *time;
    } times[] = {
        { 0, "1970-01-01T00:00:00.000Z" },
        { 999, "1970-01-01T00:00:00.999Z" },
        { 86399999, "1970-01-01T23:59:59.999Z" },
        { 951782400000ULL, "2000-02-29T00:00:00.000Z" },
        { 951868800000ULL, "2000-03-01T00:00:00.000Z" },
        { 1709164800000ULL, "2024-02-29T00:00:00.000Z" },
        { 1735689599999ULL, "2024-12-31T23:59:59.999Z" },
        { 1772475611045ULL, "2026-03-02T18:20:11.045Z" },
        { 4107542400000ULL, "2100-03-01T00:00:00.000Z" },
        { 253402300799999ULL, "9999-12-31T23:59:59.999Z" },
        { 253402300800000ULL, "9999-12-31T23:59:59.999Z" },
        { UINT64_MAX, "9999-12-31T23:59:59.999Z" }
    };

    for (n = 0; n < sizeof(times) / sizeof(times[0]); n++) {
        memset(dst, 'x', sizeof(dst));
        kx_protocol_time(dst, times[n].ms);
        assert_string_equal(dst, times[n].time);
    }

    /* later is greater, day by day */

    for (ms = 0; ms < 4107542400000ULL; ms += 86400000) {
        char  next[32];

        kx_protocol_time(dst, ms);
        kx_protocol_time(next, ms + 86400000);
        assert_true(strcmp(dst, next) < 0);
    }
}


static void
test_install_id(void **state)
{
    uint64_t        ms;
    unsigned        i, n;
    kx_str_t        token, user, other;
    unsigned char   a[KX_UUID_LEN], b[KX_UUID_LEN], id[KX_ID_LEN];

    token = text("acme-dev");
    user = text("u-381");

    kx_protocol_install_id(a, &token, &user);
    kx_protocol_install_id(b, &token, &user);
    assert_memory_equal(a, b, KX_UUID_LEN);

    other = text("u-382");
    kx_protocol_install_id(b, &token, &other);
    assert_memory_not_equal(a, b, KX_UUID_LEN);

    other = text("acme-pro");
    kx_protocol_install_id(b, &other, &user);
    assert_memory_not_equal(a, b, KX_UUID_LEN);

    /* the border between the two counts */

    token = text("acme-devu");
    user = text("-381");
    kx_protocol_install_id(b, &token, &user);
    assert_memory_not_equal(a, b, KX_UUID_LEN);

    for (n = 0; n < 1000; n++) {
        user.data = (unsigned char *) &n;
        user.len = sizeof(n);

        kx_protocol_install_id(a, &token, &user);

        assert_int_equal(kx_uuid_parse(id, a, KX_UUID_LEN), KX_OK);
        assert_int_equal(id[6] >> 4, 7);
        assert_int_equal(id[8] >> 6, 2);

        ms = 0;

        for (i = 0; i < 6; i++) {
            ms = ms << 8 | id[i];
        }

        /* within 2025 */

        assert_in_range(ms, 1735689600000ULL, 1767225599999ULL);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_init_body),
        cmocka_unit_test(test_minimal_body),
        cmocka_unit_test(test_full_body),
        cmocka_unit_test(test_message_times),
        cmocka_unit_test(test_left_out),
        cmocka_unit_test(test_last_messages),
        cmocka_unit_test(test_other_roles),
        cmocka_unit_test(test_content_limit),
        cmocka_unit_test(test_content_cut),
        cmocka_unit_test(test_content_limit_ill_formed),
        cmocka_unit_test(test_ill_formed_text),
        cmocka_unit_test(test_reports),
        cmocka_unit_test(test_redacted),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_no_memory_report),
        cmocka_unit_test(test_no_memory_answer),
        cmocka_unit_test(test_init_answers),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_rules_track_only),
        cmocka_unit_test(test_not_decodable),
        cmocka_unit_test(test_zero_bytes),
        cmocka_unit_test(test_answer_depth),
        cmocka_unit_test(test_answer_size),
        cmocka_unit_test(test_bids),
        cmocka_unit_test(test_too_many_placements),
        cmocka_unit_test(test_revenue),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_frame_url),
        cmocka_unit_test(test_member),
        cmocka_unit_test(test_writers_bounded),
        cmocka_unit_test(test_long_url),
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_install_id)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
