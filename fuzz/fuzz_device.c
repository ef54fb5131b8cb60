/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What a client's headers say of its device, and the bodies for the ad server
 * in which that and other words of strangers go.  The input is the headers in
 * the order of kx_device_headers_t, then the ids and texts of a request, each
 * ended by a zero byte.
 *
 *   - What is found lies in the headers or is a constant, and is in its
 *     bounds.
 *   - The bodies are JSON, and have what was said: valid UTF-8 comes back as
 *     it was.
 */


#include <stdio.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

#include "check.h"
#include "device.h"
#include "json_scan.h"


#define FUZZ_HEADERS  9


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void fuzz_next(kx_str_t *s, const uint8_t **p, const uint8_t *last);
static void fuzz_string(const kx_str_t *s, const char *const *known,
    const kx_device_headers_t *h);
static void fuzz_body(const char *body, size_t len, const kx_ad_request_t *r,
    unsigned preload);
static void fuzz_same(const cJSON *object, const char *name,
    const kx_str_t *s);


static const char *const  fuzz_types[] = {
    "handset", "tablet", "desktop", "tv", "other", NULL
};


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    char                 *body;
    size_t                i, size;
    kx_str_t             *header;
    kx_message_t          messages[2];
    const uint8_t        *last;
    kx_ad_request_t       r;
    kx_device_headers_t   h;

    last = p + len;
    header = (kx_str_t *) &h;

    check(sizeof(kx_device_headers_t) == FUZZ_HEADERS * sizeof(kx_str_t));

    for (i = 0; i < FUZZ_HEADERS; i++) {
        fuzz_next(&header[i], &p, last);
    }

    memset(&r, 0, sizeof(kx_ad_request_t));

    kx_device_detect(&r.device, &h);

    fuzz_string(&r.device.type, fuzz_types, NULL);
    fuzz_string(&r.device.os, NULL, &h);
    fuzz_string(&r.device.locale, NULL, &h);

    check(r.device.width >= 0 && r.device.height >= 0);
    check(r.device.dpr > 0 && r.device.dpr < 1000);
    check(r.device.dark == 0 || r.device.dark == 1);

    memset(messages, 0, sizeof(messages));

    r.publisher_token.data = (unsigned char *) "t";
    r.publisher_token.len = 1;
    r.sdk_name = r.publisher_token;
    r.sdk_platform = r.publisher_token;
    r.sdk_version = r.publisher_token;

    r.character.nsfw = -1;
    r.regulatory.gdpr = -1;
    r.regulatory.coppa = -1;

    fuzz_next(&r.user_id, &p, last);
    fuzz_next(&r.conversation_id, &p, last);
    fuzz_next(&r.variant_id, &p, last);
    fuzz_next(&r.user_email, &p, last);
    fuzz_next(&messages[0].id, &p, last);
    fuzz_next(&messages[0].content, &p, last);

    messages[0].role = KX_ROLE_ASSISTANT;
    messages[1] = messages[0];
    messages[1].role = KX_ROLE_USER;

    r.messages = messages;
    r.nmessages = 2;
    r.placements = &r.publisher_token;
    r.nplacements = 1;

    body = kx_protocol_init(&r, &size);
    check(body != NULL);
    fuzz_body(body, size, &r, 0);
    kx_protocol_free(body);

    body = kx_protocol_preload(&r, &size);
    check(body != NULL);
    fuzz_body(body, size, &r, 1);
    kx_protocol_free(body);

    return 0;
}


static void
fuzz_next(kx_str_t *s, const uint8_t **p, const uint8_t *last)
{
    const uint8_t  *end;

    end = (*p < last) ? memchr(*p, 0, (size_t) (last - *p)) : NULL;
    end = end ? end : last;

    s->data = (unsigned char *) *p;
    s->len = (size_t) (end - *p);

    *p = (end < last) ? end + 1 : last;
}


/* one of those that are known, or a part of a header, or some constant */

static void
fuzz_string(const kx_str_t *s, const char *const *known,
    const kx_device_headers_t *h)
{
    size_t           i;
    const kx_str_t  *header;

    check(s->len > 0);

    if (known) {

        for (i = 0; known[i]; i++) {
            if (strlen(known[i]) == s->len
                && memcmp(known[i], s->data, s->len) == 0)
            {
                return;
            }
        }

        check(0);
    }

    header = (const kx_str_t *) h;

    for (i = 0; i < FUZZ_HEADERS; i++) {
        if (s->data >= header[i].data
            && s->data < header[i].data + header[i].len)
        {
            check(s->data + s->len <= header[i].data + header[i].len);
            return;
        }
    }

    for (i = 0; i < s->len; i++) {
        check(s->data[i] >= ' ' && s->data[i] <= '~');
    }
}


static void
fuzz_body(const char *body, size_t len, const kx_ad_request_t *r,
    unsigned preload)
{
    size_t        i;
    cJSON        *json;
    kx_json_t     j;
    const char   *end;
    const cJSON  *item;

    check(strlen(body) == len);

    for (i = 0; i < len; i++) {
        check((unsigned char) body[i] >= ' ');
    }

    kx_json_init(&j, (const unsigned char *) body, len);
    check(kx_json_skip(&j, NULL) == KX_OK && kx_json_end(&j) == KX_OK);

    json = cJSON_ParseWithOpts(body, &end, 1);
    check(json != NULL);

    fuzz_same(json, "userId", &r->user_id);

    if (preload) {
        fuzz_same(json, "conversationId", &r->conversation_id);

        item = cJSON_GetObjectItemCaseSensitive(json, "messages");
        check(cJSON_GetArraySize(item) <= 2);

        cJSON_ArrayForEach(item, item) {
            fuzz_same(item, "id", &r->messages[0].id);
            fuzz_same(item, "content", &r->messages[0].content);
        }
    }

    cJSON_Delete(json);
}


/* what is no UTF-8 comes back as something else */

static void
fuzz_same(const cJSON *object, const char *name, const kx_str_t *s)
{
    const char           *value;
    const unsigned char  *p, *last;

    p = s->data;
    last = p + s->len;

    while (p < last) {
        if (kx_utf8_read(&p, last) == KX_BAD_UTF8) {
            return;
        }
    }

    value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object,
                                                                  name));

    if (value == NULL) {
        check(s->len == 0);
        return;
    }

    check(strlen(value) <= s->len);
    check(memcmp(value, s->data, strlen(value)) == 0);
}
