/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "protocol.h"
#include "hash.h"
#include "json_scan.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>


#define KX_MAX_TIMEOUT  600000       /* ms that /init may name */


static cJSON *kx_protocol_sdk(const kx_ad_request_t *r);
static int kx_protocol_messages(cJSON *body, const kx_ad_request_t *r);
static unsigned kx_protocol_first(const kx_ad_request_t *r, size_t *cut);
static int kx_protocol_device(cJSON *body, const kx_device_t *d);
static int kx_protocol_character(cJSON *body, const kx_character_t *c);
static int kx_protocol_regulatory(cJSON *body, const kx_regulatory_t *r);
static char *kx_protocol_print(cJSON *body, int ok, size_t *len);
static cJSON *kx_protocol_object(cJSON *parent, const char *name);
static int kx_protocol_add(cJSON *object, const char *name,
    const kx_str_t *value);
static int kx_protocol_add_string(cJSON *object, const char *name,
    const kx_str_t *value);
static int kx_protocol_add_number(cJSON *object, const char *name,
    double value);
static char *kx_protocol_string(const unsigned char *p, size_t len);
static cJSON *kx_protocol_parse(const unsigned char *body, size_t len);
static size_t kx_protocol_utf8(const unsigned char *p, size_t len);
static unsigned kx_protocol_flag(const cJSON *object, const char *name,
    unsigned value);
static int kx_protocol_bids(kx_preload_answer_t *a, const cJSON *bids,
    const kx_str_t *placements, unsigned nplacements);
static double kx_protocol_revenue(const cJSON *bid);
static int kx_protocol_uuid(unsigned char id[KX_ID_LEN], const cJSON *item);
static void kx_protocol_code(kx_preload_answer_t *a, const char *code);
static void kx_protocol_server_code(kx_preload_answer_t *a,
    const cJSON *item);
static unsigned char *kx_protocol_encode(unsigned char *dst,
    const unsigned char *end, const kx_str_t *s);
static unsigned char *kx_protocol_copy(unsigned char *dst,
    const unsigned char *end, const void *p, size_t len);
static unsigned char *kx_protocol_quote(unsigned char *dst,
    const unsigned char *end, const kx_str_t *s);


#define kx_protocol_literal(dst, end, s)                                      \
    kx_protocol_copy(dst, end, s, sizeof(s) - 1)


char *
kx_protocol_init(const kx_ad_request_t *r, size_t *len)
{
    int     ok;
    cJSON  *body;

    body = cJSON_CreateObject();
    if (body == NULL) {
        return NULL;
    }

    ok = kx_protocol_add_string(body, "publisherToken", &r->publisher_token)
         && kx_protocol_add_string(body, "userId", &r->user_id)
         && kx_protocol_add(body, "installId", &r->install_id)
         && cJSON_AddItemToObject(body, "sdk", kx_protocol_sdk(r));

    return kx_protocol_print(body, ok, len);
}


char *
kx_protocol_preload(const kx_ad_request_t *r, size_t *len)
{
    int             ok;
    char           *code;
    cJSON          *body, *codes;
    unsigned        i;
    kx_str_t        session;
    unsigned char   uuid[KX_UUID_LEN];

    body = cJSON_CreateObject();
    if (body == NULL) {
        return NULL;
    }

    ok = kx_protocol_add_string(body, "publisherToken", &r->publisher_token)
         && kx_protocol_add_string(body, "userId", &r->user_id)
         && kx_protocol_add_string(body, "conversationId",
                                   &r->conversation_id)
         && kx_protocol_add(body, "installId", &r->install_id);

    if (ok && r->has_session) {
        session.data = uuid;
        session.len = (size_t) (kx_uuid_write(uuid, r->session) - uuid);

        ok = kx_protocol_add_string(body, "sessionId", &session);
    }

    codes = cJSON_AddArrayToObject(body, "enabledPlacementCodes");
    ok = ok && codes;

    for (i = 0; ok && i < r->nplacements; i++) {
        code = kx_protocol_string(r->placements[i].data,
                                  r->placements[i].len);

        ok = code && cJSON_AddItemToArray(codes, cJSON_CreateString(code));
        free(code);
    }

    ok = ok
         && kx_protocol_messages(body, r)
         && cJSON_AddItemToObject(body, "sdk", kx_protocol_sdk(r))
         && kx_protocol_device(body, &r->device)
         && kx_protocol_character(body, &r->character)
         && kx_protocol_regulatory(body, &r->regulatory)
         && kx_protocol_add(body, "userEmail", &r->user_email)
         && kx_protocol_add(body, "variantId", &r->variant_id);

    return kx_protocol_print(body, ok, len);
}


static cJSON *
kx_protocol_sdk(const kx_ad_request_t *r)
{
    cJSON  *sdk;

    sdk = cJSON_CreateObject();

    if (kx_protocol_add_string(sdk, "name", &r->sdk_name)
        && kx_protocol_add_string(sdk, "platform", &r->sdk_platform)
        && kx_protocol_add_string(sdk, "version", &r->sdk_version))
    {
        return sdk;
    }

    cJSON_Delete(sdk);

    return NULL;
}


static int
kx_protocol_messages(cJSON *body, const kx_ad_request_t *r)
{
    char                 time[32];
    size_t               cut;
    cJSON               *list, *item;
    unsigned             i;
    kx_str_t             s;
    const kx_message_t  *m;

    list = cJSON_AddArrayToObject(body, "messages");
    if (list == NULL) {
        return 0;
    }

    for (i = kx_protocol_first(r, &cut); i < r->nmessages; i++) {
        m = &r->messages[i];

        if (m->role == KX_ROLE_OTHER) {
            continue;
        }

        item = cJSON_CreateObject();

        if (item == NULL || !cJSON_AddItemToArray(list, item)) {
            cJSON_Delete(item);
            return 0;
        }

        s = m->content;

        if (i == r->nmessages - 1 && s.len > cut) {
            s.len = cut;
        }

        kx_protocol_time(time, m->created);

        if (!kx_protocol_add_string(item, "id", &m->id)
            || cJSON_AddStringToObject(item, "role",
                                       m->role == KX_ROLE_USER ? "user"
                                                               : "assistant")
               == NULL
            || !kx_protocol_add_string(item, "content", &s)
            || cJSON_AddStringToObject(item, "createdAt", time) == NULL)
        {
            return 0;
        }
    }

    return 1;
}


/* the oldest message that may be sent, and how much of the newest one */

static unsigned
kx_protocol_first(const kx_ad_request_t *r, size_t *cut)
{
    size_t           room;
    unsigned         i;
    const kx_str_t  *s;

    *cut = KX_MAX_CONTENT;

    if (r->nmessages == 0) {
        return 0;
    }

    i = r->nmessages - 1;
    s = &r->messages[i].content;

    if (s->len > KX_MAX_CONTENT) {

        /* not within a character */

        while (*cut && (s->data[*cut] & 0xc0) == 0x80) {
            (*cut)--;
        }

        return i;
    }

    room = KX_MAX_CONTENT - s->len;

    while (i > 0
           && r->nmessages - i < KX_MAX_MESSAGES
           && r->messages[i - 1].content.len <= room)
    {
        i--;
        room -= r->messages[i].content.len;
    }

    return i;
}


static int
kx_protocol_device(cJSON *body, const kx_device_t *d)
{
    cJSON  *device, *o;

    device = kx_protocol_object(body, "device");

    o = kx_protocol_object(device, "hardware");

    if (!kx_protocol_add_string(o, "type", &d->type)) {
        return 0;
    }

    o = kx_protocol_object(device, "os");

    if (!kx_protocol_add_string(o, "name", &d->os)
        || !kx_protocol_add_string(o, "version", &d->os_version)
        || !kx_protocol_add_string(o, "locale", &d->locale)
        || !kx_protocol_add_string(o, "timezone", &d->timezone))
    {
        return 0;
    }

    o = kx_protocol_object(device, "screen");

    if (o == NULL
        || (d->width >= 0 && !kx_protocol_add_number(o, "width", d->width))
        || (d->height >= 0
            && !kx_protocol_add_number(o, "height", d->height))
        || (d->dpr >= 0 && !kx_protocol_add_number(o, "dpr", d->dpr))
        || (d->dark >= 0
            && cJSON_AddBoolToObject(o, "darkMode", d->dark) == NULL))
    {
        return 0;
    }

    if (d->user_agent.len == 0) {
        return 1;
    }

    o = kx_protocol_object(device, "network");

    return kx_protocol_add_string(o, "userAgent", &d->user_agent);
}


static int
kx_protocol_character(cJSON *body, const kx_character_t *c)
{
    char      *tag;
    cJSON     *o, *tags;
    unsigned   i;

    if (c->id.len == 0 || c->name.len == 0) {
        return 1;
    }

    o = kx_protocol_object(body, "character");

    if (!kx_protocol_add_string(o, "id", &c->id)
        || !kx_protocol_add_string(o, "name", &c->name)
        || !kx_protocol_add(o, "avatarUrl", &c->avatar_url)
        || !kx_protocol_add(o, "greeting", &c->greeting)
        || !kx_protocol_add(o, "persona", &c->persona))
    {
        return 0;
    }

    if (c->ntags) {
        tags = cJSON_AddArrayToObject(o, "tags");

        for (i = 0; i < c->ntags; i++) {
            tag = kx_protocol_string(c->tags[i].data, c->tags[i].len);

            if (tag == NULL
                || !cJSON_AddItemToArray(tags, cJSON_CreateString(tag)))
            {
                free(tag);
                return 0;
            }

            free(tag);
        }
    }

    return c->nsfw < 0 || cJSON_AddBoolToObject(o, "isNsfw", c->nsfw) != NULL;
}


static int
kx_protocol_regulatory(cJSON *body, const kx_regulatory_t *r)
{
    cJSON  *o, *sids;

    if (r->gdpr < 0 && r->coppa < 0 && r->gdpr_consent.len == 0
        && r->gpp.len == 0 && r->us_privacy.len == 0 && r->ngpp_sid == 0)
    {
        return 1;
    }

    o = kx_protocol_object(body, "regulatory");

    if (o == NULL
        || (r->gdpr >= 0 && !kx_protocol_add_number(o, "gdpr", r->gdpr))
        || !kx_protocol_add(o, "gdprConsent", &r->gdpr_consent)
        || (r->coppa >= 0 && !kx_protocol_add_number(o, "coppa", r->coppa))
        || !kx_protocol_add(o, "gpp", &r->gpp)
        || !kx_protocol_add(o, "usPrivacy", &r->us_privacy))
    {
        return 0;
    }

    if (r->ngpp_sid == 0) {
        return 1;
    }

    sids = cJSON_CreateIntArray(r->gpp_sid, (int) r->ngpp_sid);

    return sids && cJSON_AddItemToObject(o, "gppSid", sids);
}


static char *
kx_protocol_print(cJSON *body, int ok, size_t *len)
{
    char  *text;

    text = ok ? cJSON_PrintUnformatted(body) : NULL;

    cJSON_Delete(body);

    if (text) {
        *len = strlen(text);
    }

    return text;
}


void
kx_protocol_free(char *body)
{
    cJSON_free(body);
}


static cJSON *
kx_protocol_object(cJSON *parent, const char *name)
{
    return parent ? cJSON_AddObjectToObject(parent, name) : NULL;
}


/* an empty value is left out */

static int
kx_protocol_add(cJSON *object, const char *name, const kx_str_t *value)
{
    return value->len == 0 || kx_protocol_add_string(object, name, value);
}


static int
kx_protocol_add_string(cJSON *object, const char *name, const kx_str_t *value)
{
    char   *s;
    cJSON  *item;

    if (object == NULL) {
        return 0;
    }

    s = kx_protocol_string(value->data, value->len);
    if (s == NULL) {
        return 0;
    }

    item = cJSON_AddStringToObject(object, name, s);

    free(s);

    return item != NULL;
}


static int
kx_protocol_add_number(cJSON *object, const char *name, double value)
{
    return cJSON_AddNumberToObject(object, name, value) != NULL;
}


/*
 * A C string of valid UTF-8: what is ill-formed becomes U+FFFD, and so does a
 * zero byte, which would end it.  To be released with free().
 */

static char *
kx_protocol_string(const unsigned char *p, size_t len)
{
    char    *s, *dst;
    size_t   n, i, size;

    size = 1;

    for (i = 0; i < len; i += n ? n : 1) {
        n = kx_protocol_utf8(p + i, len - i);
        size += n ? n : 3;
    }

    s = malloc(size);
    if (s == NULL) {
        return NULL;
    }

    dst = s;

    for (i = 0; i < len; i += n ? n : 1) {
        n = kx_protocol_utf8(p + i, len - i);

        memcpy(dst, n ? (const char *) p + i : "\xef\xbf\xbd", n ? n : 3);
        dst += n ? n : 3;
    }

    *dst = '\0';

    return s;
}


/* the length of the character at p, or 0: it is ill-formed, or a zero byte */

static size_t
kx_protocol_utf8(const unsigned char *p, size_t len)
{
    size_t         n, i;
    unsigned char  low, high;

    if (p[0] < 0x80) {
        return p[0] != '\0';
    }

    /* the second byte excludes overlong forms, surrogates and > U+10FFFF */

    low = 0x80;
    high = 0xbf;

    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        n = 2;

    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        n = 3;
        low = (p[0] == 0xe0) ? 0xa0 : 0x80;
        high = (p[0] == 0xed) ? 0x9f : 0xbf;

    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        n = 4;
        low = (p[0] == 0xf0) ? 0x90 : 0x80;
        high = (p[0] == 0xf4) ? 0x8f : 0xbf;

    } else {
        return 0;
    }

    if (len < n || p[1] < low || p[1] > high) {
        return 0;
    }

    for (i = 2; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }

    return n;
}


void
kx_protocol_init_answer(kx_init_answer_t *a, unsigned status,
    const unsigned char *body, size_t len)
{
    double        timeout;
    cJSON        *answer;
    const cJSON  *item;

    memset(a, 0, sizeof(kx_init_answer_t));

    a->enabled = 1;
    a->report_errors = 1;

    if (status == 0) {
        a->failed = 1;
        return;
    }

    if (status < 200 || status > 299 || status == 204 || len == 0) {
        return;
    }

    answer = kx_protocol_parse(body, len);

    if (answer == NULL) {
        a->failed = 1;
        return;
    }

    a->applied = 1;
    a->enabled = kx_protocol_flag(answer, "enabled", 1);
    a->report_errors = kx_protocol_flag(answer, "reportErrors", 1);
    a->report_debug = kx_protocol_flag(answer, "reportDebug", 0);

    item = cJSON_GetObjectItemCaseSensitive(answer, "preloadTimeout");

    if (cJSON_IsNumber(item)) {
        timeout = item->valuedouble;

        if (timeout >= 1 && timeout <= KX_MAX_TIMEOUT) {
            a->preload_timeout = (uint32_t) timeout;
        }
    }

    cJSON_Delete(answer);
}


/* rules 2 to 9 of protocol.md 4.3 */

void
kx_protocol_preload_answer(kx_preload_answer_t *a, unsigned status,
    const unsigned char *body, size_t len, const kx_str_t *placements,
    unsigned nplacements, unsigned track_only)
{
    cJSON        *answer;
    const cJSON  *err, *session;

    memset(a, 0, sizeof(kx_preload_answer_t));

    a->outcome = KX_AD_ERROR;

    if (status == 0) {
        a->transport = 1;
        kx_protocol_code(a, "request_failed");
        return;
    }

    if (status == 204) {
        a->outcome = KX_AD_NO_FILL;
        kx_protocol_code(a, "unfilled_bid");
        return;
    }

    if (status < 200 || status > 299) {
        kx_protocol_code(a, "unknown");
        return;
    }

    answer = kx_protocol_parse(body, len);

    if (answer == NULL) {
        kx_protocol_code(a, "request_failed");
        return;
    }

    /* an id that is none makes the whole answer one that is none */

    session = cJSON_GetObjectItemCaseSensitive(answer, "sessionId");

    if (session && !cJSON_IsNull(session)) {

        if (kx_protocol_uuid(a->session, session) != KX_OK) {
            goto failed;
        }

        a->has_session = 1;
    }

    if (kx_protocol_bids(a, cJSON_GetObjectItemCaseSensitive(answer, "bids"),
                         placements, nplacements)
        != KX_OK)
    {
        goto failed;
    }

    err = cJSON_GetObjectItemCaseSensitive(answer, "errCode");

    if (cJSON_IsNull(err)) {
        err = NULL;
    }

    if (err || !a->has_session) {
        a->nbids = 0;

        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(answer,
                                                          "permanent")))
        {
            a->disable = 1;
            kx_protocol_code(a, "session_disabled");
        }

        if (err) {
            kx_protocol_server_code(a, err);

        } else if (!a->disable) {
            kx_protocol_code(a, "unknown");
        }

    } else if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(answer,
                                                             "skip")))
    {
        a->nbids = 0;
        a->outcome = KX_AD_NO_FILL;
        kx_protocol_server_code(a,
                       cJSON_GetObjectItemCaseSensitive(answer, "skipCode"));

    } else if (a->nbids == 0) {
        a->outcome = KX_AD_NO_FILL;
        kx_protocol_code(a, "unfilled_bid");

    } else if (track_only) {
        a->nbids = 0;
        a->outcome = KX_AD_NO_FILL;
        kx_protocol_code(a, "track_only");

    } else {
        a->outcome = KX_AD_FILLED;
    }

    cJSON_Delete(answer);

    return;

failed:

    cJSON_Delete(answer);

    memset(a, 0, sizeof(kx_preload_answer_t));

    a->outcome = KX_AD_ERROR;
    kx_protocol_code(a, "request_failed");
}


/* a JSON object; bounded in size and depth before a tree is made of it */

static cJSON *
kx_protocol_parse(const unsigned char *body, size_t len)
{
    size_t      i, n;
    cJSON      *answer;
    kx_json_t   j;

    if (len == 0 || len > KX_MAX_ANSWER) {
        return NULL;
    }

    for (i = 0; i < len; i += n) {
        n = kx_protocol_utf8(body + i, len - i);

        if (n == 0) {
            return NULL;
        }
    }

    kx_json_init(&j, body, len);

    if (kx_json_type(&j) != KX_JSON_OBJECT
        || kx_json_skip(&j, NULL) != KX_OK
        || kx_json_end(&j) != KX_OK)
    {
        return NULL;
    }

    answer = cJSON_ParseWithLength((const char *) body, len);

    if (answer && !cJSON_IsObject(answer)) {
        cJSON_Delete(answer);
        return NULL;
    }

    return answer;
}


static unsigned
kx_protocol_flag(const cJSON *object, const char *name, unsigned value)
{
    const cJSON  *item;

    item = cJSON_GetObjectItemCaseSensitive(object, name);

    return cJSON_IsBool(item) ? (unsigned) cJSON_IsTrue(item) : value;
}


/* KX_DECLINED: one of them is not what a bid must be */

static int
kx_protocol_bids(kx_preload_answer_t *a, const cJSON *bids,
    const kx_str_t *placements, unsigned nplacements)
{
    size_t          len;
    kx_bid_t        bid;
    unsigned        i, taken;
    const cJSON    *item, *code;

    if (bids == NULL || cJSON_IsNull(bids)) {
        return KX_OK;
    }

    if (!cJSON_IsArray(bids)) {
        return KX_DECLINED;
    }

    taken = 0;

    cJSON_ArrayForEach(item, bids) {

        code = cJSON_GetObjectItemCaseSensitive(item, "code");

        if (kx_protocol_uuid(bid.id,
                             cJSON_GetObjectItemCaseSensitive(item, "bidId"))
            != KX_OK
            || !cJSON_IsString(code))
        {
            return KX_DECLINED;
        }

        len = strlen(code->valuestring);

        for (i = 0; i < nplacements && i < KX_MAX_BIDS; i++) {

            if (placements[i].len != len
                || memcmp(placements[i].data, code->valuestring, len) != 0
                || (taken & (1u << i)))
            {
                continue;
            }

            taken |= 1u << i;

            bid.placement = i;
            bid.revenue = kx_protocol_revenue(item);

            a->bids[a->nbids++] = bid;
            break;
        }
    }

    return KX_OK;
}


static double
kx_protocol_revenue(const cJSON *bid)
{
    char         *end;
    double        revenue;
    const cJSON  *item;

    item = cJSON_GetObjectItemCaseSensitive(bid, "revenue");

    if (cJSON_IsNumber(item)) {
        revenue = item->valuedouble;

    } else if (cJSON_IsString(item) && item->valuestring[0] != '\0') {
        revenue = strtod(item->valuestring, &end);

        if (*end != '\0') {
            return -1;
        }

    } else {
        return -1;
    }

    return (isfinite(revenue) && revenue >= 0) ? revenue : -1;
}


static int
kx_protocol_uuid(unsigned char id[KX_ID_LEN], const cJSON *item)
{
    if (!cJSON_IsString(item)) {
        return KX_DECLINED;
    }

    return kx_uuid_parse(id, (const unsigned char *) item->valuestring,
                         strlen(item->valuestring));
}


static void
kx_protocol_code(kx_preload_answer_t *a, const char *code)
{
    snprintf(a->code, sizeof(a->code), "%s", code);
}


/* a code of the server's, which goes into logs and variables */

static void
kx_protocol_server_code(kx_preload_answer_t *a, const cJSON *item)
{
    size_t       n;
    const char  *s;

    static const char  allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                   "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789_.:-";

    if (cJSON_IsString(item)) {
        s = item->valuestring;
        n = strlen(s);

        if (n > 0 && n <= KX_MAX_CODE && strspn(s, allowed) == n) {
            kx_protocol_code(a, s);
            return;
        }
    }

    kx_protocol_code(a, "unknown");
}


unsigned char *
kx_protocol_frame_url(unsigned char *dst, const unsigned char *end,
    const kx_ad_t *ad, const kx_bid_t *bid)
{
    unsigned char  uuid[KX_UUID_LEN];

    (void) kx_uuid_write(uuid, bid->id);

    dst = kx_protocol_copy(dst, end, ad->origin.data, ad->origin.len);
    dst = kx_protocol_literal(dst, end, "/api/frame/");
    dst = kx_protocol_copy(dst, end, uuid, KX_UUID_LEN);
    dst = kx_protocol_literal(dst, end, "?code=");
    dst = kx_protocol_encode(dst, end, &ad->placements[bid->placement]);
    dst = kx_protocol_literal(dst, end, "&messageId=");
    dst = kx_protocol_encode(dst, end, &ad->message_id);
    dst = kx_protocol_literal(dst, end, "&sdk=");
    dst = kx_protocol_encode(dst, end, &ad->sdk_name);

    if (ad->theme.len) {
        dst = kx_protocol_literal(dst, end, "&theme=");
        dst = kx_protocol_encode(dst, end, &ad->theme);
    }

    return dst;
}


unsigned char *
kx_protocol_member(unsigned char *dst, const unsigned char *end,
    const kx_ad_t *ad)
{
    unsigned        i;
    kx_str_t        url;
    unsigned char  *last;
    unsigned char   buf[KX_MAX_FRAME_URL], uuid[KX_UUID_LEN];

    buf[0] = '\0';

    dst = kx_protocol_literal(dst, end, "{\"messageId\":");
    dst = kx_protocol_quote(dst, end, &ad->message_id);
    dst = kx_protocol_literal(dst, end, ",\"ads\":[");

    for (i = 0; i < ad->nbids; i++) {

        last = kx_protocol_frame_url(buf, buf + sizeof(buf), ad,
                                     &ad->bids[i]);
        if (last == NULL) {
            return NULL;
        }

        url.data = buf;
        url.len = (size_t) (last - buf);

        (void) kx_uuid_write(uuid, ad->bids[i].id);

        if (i) {
            dst = kx_protocol_literal(dst, end, ",");
        }

        dst = kx_protocol_literal(dst, end, "{\"bidId\":\"");
        dst = kx_protocol_copy(dst, end, uuid, KX_UUID_LEN);
        dst = kx_protocol_literal(dst, end, "\",\"code\":");
        dst = kx_protocol_quote(dst, end,
                                &ad->placements[ad->bids[i].placement]);
        dst = kx_protocol_literal(dst, end, ",\"label\":");
        dst = kx_protocol_quote(dst, end, &ad->label);
        dst = kx_protocol_literal(dst, end, ",\"frameUrl\":");
        dst = kx_protocol_quote(dst, end, &url);
        dst = kx_protocol_literal(dst, end, "}");
    }

    return kx_protocol_literal(dst, end, "]}");
}


/* all but the unreserved characters of RFC 3986, 2.3 */

static unsigned char *
kx_protocol_encode(unsigned char *dst, const unsigned char *end,
    const kx_str_t *s)
{
    size_t         i;
    unsigned char  c, hex[3];

    static const char  digits[] = "0123456789ABCDEF";

    for (i = 0; i < s->len && dst; i++) {
        c = s->data[i];

        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
            || (c >= '0' && c <= '9')
            || c == '-' || c == '.' || c == '_' || c == '~')
        {
            dst = kx_protocol_copy(dst, end, &c, 1);
            continue;
        }

        hex[0] = '%';
        hex[1] = (unsigned char) digits[c >> 4];
        hex[2] = (unsigned char) digits[c & 15];

        dst = kx_protocol_copy(dst, end, hex, 3);
    }

    return dst;
}


/* the one place that writes: NULL, once something did not fit, stays NULL */

static unsigned char *
kx_protocol_copy(unsigned char *dst, const unsigned char *end, const void *p,
    size_t len)
{
    if (dst == NULL || len > (size_t) (end - dst)) {
        return NULL;
    }

    memcpy(dst, p, len);

    return dst + len;
}


static unsigned char *
kx_protocol_quote(unsigned char *dst, const unsigned char *end,
    const kx_str_t *s)
{
    dst = kx_protocol_literal(dst, end, "\"");

    if (dst) {
        dst = kx_json_escape(dst, end, s);
    }

    return kx_protocol_literal(dst, end, "\"");
}


void
kx_protocol_time(char dst[32], uint64_t ms)
{
    int64_t   days, era, doe, yoe, doy, mp, year;
    unsigned  day, month, rest;

    /* no year that would not fit */

    if (ms > 253402300799999ULL) {
        ms = 253402300799999ULL;
    }

    rest = (unsigned) (ms % 86400000);

    /* days since 1 March of year 0, in eras of 400 years */

    days = (int64_t) (ms / 86400000) + 719468;
    era = days / 146097;
    doe = days - era * 146097;
    yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    mp = (5 * doy + 2) / 153;

    day = (unsigned) (doy - (153 * mp + 2) / 5 + 1);
    month = (unsigned) (mp < 10 ? mp + 3 : mp - 9);
    year = yoe + era * 400 + (month <= 2);

    snprintf(dst, 32, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ",
             (unsigned) (year % 10000), month % 100, day % 100,
             rest / 3600000, rest / 60000 % 60, rest / 1000 % 60,
             rest % 1000);
}


void
kx_protocol_install_id(unsigned char *dst, const kx_str_t *token,
    const kx_str_t *user)
{
    uint64_t       ms;
    kx_sha256_t    sha;
    unsigned char  id[KX_SHA256_LEN];

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "kx-iid-1", 8);
    kx_sha256_field(&sha, token->data, token->len);
    kx_sha256_field(&sha, user->data, user->len);
    kx_sha256_final(&sha, id);

    /* the time of version 7, somewhere in 2025: RFC 9562, 5.7 */

    ms = ((uint64_t) id[16] << 24 | (uint64_t) id[17] << 16
          | (uint64_t) id[18] << 8 | id[19]);

    ms = 1735689600000ULL + ms * 7;

    id[0] = (unsigned char) (ms >> 40);
    id[1] = (unsigned char) (ms >> 32);
    id[2] = (unsigned char) (ms >> 24);
    id[3] = (unsigned char) (ms >> 16);
    id[4] = (unsigned char) (ms >> 8);
    id[5] = (unsigned char) ms;
    id[6] = (unsigned char) ((id[6] & 0x0f) | 0x70);
    id[8] = (unsigned char) ((id[8] & 0x3f) | 0x80);

    (void) kx_uuid_write(dst, id);
}
