/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "protocol.h"
#include "hash.h"
#include "json_scan.h"
#include "redact.h"
#include "tree.h"

#include <math.h>
#include <stdlib.h>


#define KX_MAX_PRELOAD_TIMEOUT 600000
#define KX_MAX_REVENUE_LEN     32

#define KX_DAY                 86400000
#define KX_LAST_TIME           253402300799999ULL    /* the end of 9999 */

#define KX_INSTALL_DOMAIN      "ngx_kontext install id 1"
#define KX_INSTALL_FROM        1735689600000ULL      /* the start of 2025 */
#define KX_INSTALL_SPAN        31536000000ULL        /* and its length */


/* pos is NULL once something did not fit */

typedef struct {
    unsigned char        *pos;
    const unsigned char  *end;
} kx_writer_t;


static int kx_protocol_additional(cJSON *body, const kx_ad_request_t *r,
    const unsigned char *session, const unsigned char *bid);
static int kx_ad_request_strings(void *dst, const void *src,
    const size_t *offsets, const kx_pool_t *pool);
static int kx_ad_request_string(kx_str_t *dst, const kx_str_t *src,
    const kx_pool_t *pool);
static int kx_protocol_common(cJSON *body, const kx_ad_request_t *r);
static int kx_protocol_placements(cJSON *body, const kx_ad_request_t *r);
static int kx_protocol_messages(cJSON *body, const kx_ad_request_t *r);
static char *kx_protocol_content(const kx_ad_request_t *r,
    const kx_message_t *m, size_t max, size_t *len, unsigned *cut);
static cJSON *kx_protocol_message(const kx_message_t *m, const char *content);
static int kx_protocol_sdk(cJSON *body, const kx_ad_request_t *r);
static int kx_protocol_device(cJSON *body, const kx_device_t *d);
static int kx_protocol_os(cJSON *device, const kx_device_t *d);
static int kx_protocol_screen(cJSON *device, const kx_device_t *d);
static int kx_protocol_character(cJSON *body, const kx_character_t *c);
static int kx_protocol_regulatory(cJSON *body, const kx_regulatory_t *g);

static int kx_protocol_add(cJSON *object, const char *name,
    const kx_str_t *s);
static int kx_protocol_add_text(cJSON *object, const char *name,
    const char *text);
static int kx_protocol_add_uuid(cJSON *object, const char *name,
    const unsigned char *id);
static int kx_protocol_add_given(cJSON *object, const char *name,
    const kx_str_t *s);
static int kx_protocol_add_item(cJSON *array, const kx_str_t *s);
static int kx_protocol_add_number(cJSON *object, const char *name, double n);
static int kx_protocol_add_flag(cJSON *object, const char *name, int flag);

static unsigned kx_protocol_flag(const cJSON *root, const char *name,
    unsigned missing);
static uint32_t kx_protocol_timeout(const cJSON *root);
static cJSON *kx_protocol_decode(const unsigned char *body, size_t len);
static int kx_protocol_read(kx_preload_answer_t *a, const cJSON *root,
    const kx_str_t *placements, unsigned nplacements);
static int kx_protocol_read_uuid(unsigned char id[KX_ID_LEN],
    const cJSON *item);
static int kx_protocol_read_bid(kx_preload_answer_t *a, const cJSON *item,
    const kx_str_t *placements, unsigned nplacements);
static double kx_protocol_revenue(const cJSON *item);
static void kx_protocol_classify(kx_preload_answer_t *a, const cJSON *root,
    unsigned track_only);
static void kx_protocol_outcome(kx_preload_answer_t *a,
    kx_ad_outcome_e outcome, const char *code);
static const char *kx_protocol_code(const cJSON *item);

static void kx_write_member(kx_writer_t *w, const kx_ad_t *ad);
static void kx_write_url(kx_writer_t *w, const kx_ad_t *ad,
    const kx_bid_t *bid);
static void kx_write_literal(kx_writer_t *w, const char *s);
static void kx_write_uuid(kx_writer_t *w, const unsigned char id[KX_ID_LEN]);
static void kx_write_json(kx_writer_t *w, const kx_str_t *s);
static void kx_write_uri(kx_writer_t *w, const kx_str_t *s);
static void kx_write(kx_writer_t *w, const void *p, size_t len);

static unsigned kx_time_leap(unsigned year);
static char *kx_time_digits(char *dst, unsigned n, unsigned width);


static const unsigned char  kx_time_days[] = {
    31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30
};


/* the strings of a request, up to an offset that is none */

#define KX_NO_OFFSET  ((size_t) -1)

static const size_t  kx_ad_request_whos[] = {
    offsetof(kx_ad_request_t, publisher_token),
    offsetof(kx_ad_request_t, user_id),
    offsetof(kx_ad_request_t, conversation_id),
    offsetof(kx_ad_request_t, install_id),
    offsetof(kx_ad_request_t, sdk_name),
    offsetof(kx_ad_request_t, sdk_platform),
    offsetof(kx_ad_request_t, sdk_version),
    KX_NO_OFFSET
};


static const size_t  kx_ad_request_others[] = {
    offsetof(kx_ad_request_t, variant_id),
    offsetof(kx_ad_request_t, user_email),
    offsetof(kx_ad_request_t, device.type),
    offsetof(kx_ad_request_t, device.os),
    offsetof(kx_ad_request_t, device.os_version),
    offsetof(kx_ad_request_t, device.locale),
    offsetof(kx_ad_request_t, device.timezone),
    offsetof(kx_ad_request_t, device.user_agent),
    offsetof(kx_ad_request_t, character.id),
    offsetof(kx_ad_request_t, character.name),
    offsetof(kx_ad_request_t, character.avatar_url),
    offsetof(kx_ad_request_t, character.greeting),
    offsetof(kx_ad_request_t, character.persona),
    offsetof(kx_ad_request_t, regulatory.gdpr_consent),
    offsetof(kx_ad_request_t, regulatory.gpp),
    offsetof(kx_ad_request_t, regulatory.us_privacy),
    KX_NO_OFFSET
};


int
kx_ad_request_who(kx_ad_request_t *dst, const kx_ad_request_t *src,
    const kx_pool_t *pool)
{
    memset(dst, 0, sizeof(kx_ad_request_t));

    dst->consent = src->consent;
    dst->has_session = src->has_session;
    memcpy(dst->session, src->session, KX_ID_LEN);

    return kx_ad_request_strings(dst, src, kx_ad_request_whos, pool);
}


int
kx_ad_request_copy(kx_ad_request_t *dst, const kx_ad_request_t *src,
    const kx_pool_t *pool)
{
    unsigned    i, n;
    kx_str_t   *tags;
    const int  *sids;

    *dst = *src;

    dst->messages = NULL;
    dst->nmessages = 0;

    if (kx_ad_request_strings(dst, src, kx_ad_request_whos, pool) != KX_OK
        || kx_ad_request_strings(dst, src, kx_ad_request_others, pool)
           != KX_OK)
    {
        return KX_ERROR;
    }

    n = src->character.ntags;

    if (n) {
        tags = pool->alloc(pool->data, n * sizeof(kx_str_t));
        if (tags == NULL) {
            return KX_ERROR;
        }

        for (i = 0; i < n; i++) {
            if (kx_ad_request_string(&tags[i], &src->character.tags[i], pool)
                != KX_OK)
            {
                return KX_ERROR;
            }
        }

        dst->character.tags = tags;
    }

    n = src->regulatory.ngpp_sid;
    sids = src->regulatory.gpp_sid;

    if (n) {
        dst->regulatory.gpp_sid = pool->alloc(pool->data, n * sizeof(int));
        if (dst->regulatory.gpp_sid == NULL) {
            return KX_ERROR;
        }

        memcpy(dst->regulatory.gpp_sid, sids, n * sizeof(int));
    }

    return KX_OK;
}


static int
kx_ad_request_strings(void *dst, const void *src, const size_t *offsets,
    const kx_pool_t *pool)
{
    kx_str_t        *to;
    const kx_str_t  *from;

    for ( /* void */ ; *offsets != KX_NO_OFFSET; offsets++) {
        to = (kx_str_t *) ((char *) dst + *offsets);
        from = (const kx_str_t *) ((const char *) src + *offsets);

        if (kx_ad_request_string(to, from, pool) != KX_OK) {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


static int
kx_ad_request_string(kx_str_t *dst, const kx_str_t *src,
    const kx_pool_t *pool)
{
    size_t          len;
    unsigned char  *p;

    len = src->len;

    if (len == 0) {
        dst->len = 0;
        dst->data = NULL;
        return KX_OK;
    }

    p = pool->alloc(pool->data, len);
    if (p == NULL) {
        return KX_ERROR;
    }

    memcpy(p, src->data, len);

    dst->data = p;
    dst->len = len;

    return KX_OK;
}


char *
kx_protocol_init(const kx_ad_request_t *r, size_t *len)
{
    cJSON  *body;

    body = cJSON_CreateObject();

    if (kx_protocol_common(body, r) != KX_OK
        || kx_protocol_sdk(body, r) != KX_OK)
    {
        cJSON_Delete(body);
        return NULL;
    }

    return kx_tree_print(body, len);
}


char *
kx_protocol_preload(const kx_ad_request_t *r, size_t *len)
{
    cJSON  *body;

    body = cJSON_CreateObject();

    if (kx_protocol_common(body, r) != KX_OK
        || kx_protocol_add(body, "conversationId", &r->conversation_id)
           != KX_OK
        || kx_protocol_add_uuid(body, "sessionId",
                                r->has_session ? r->session : NULL)
           != KX_OK
        || kx_protocol_placements(body, r) != KX_OK
        || kx_protocol_messages(body, r) != KX_OK
        || kx_protocol_sdk(body, r) != KX_OK
        || kx_protocol_device(body, &r->device) != KX_OK
        || kx_protocol_character(body, &r->character) != KX_OK
        || kx_protocol_regulatory(body, &r->regulatory) != KX_OK
        || kx_protocol_add_given(body, "userEmail", &r->user_email) != KX_OK
        || kx_protocol_add_given(body, "variantId", &r->variant_id) != KX_OK)
    {
        cJSON_Delete(body);
        return NULL;
    }

    return kx_tree_print(body, len);
}


char *
kx_protocol_error_report(const kx_ad_request_t *r, const char *error,
    const char *stack, const unsigned char *bid, size_t *len)
{
    cJSON  *body;

    body = cJSON_CreateObject();

    if (kx_protocol_add_text(body, "error", error) != KX_OK
        || kx_protocol_add_text(body, "stack", stack) != KX_OK
        || kx_protocol_additional(body, r, NULL, bid) != KX_OK)
    {
        cJSON_Delete(body);
        return NULL;
    }

    return kx_tree_print(body, len);
}


char *
kx_protocol_debug_report(const kx_ad_request_t *r, const char *name,
    const char *data, size_t *len)
{
    cJSON  *body;

    body = cJSON_CreateObject();

    if (kx_protocol_add_text(body, "name", name) != KX_OK
        || kx_protocol_add_text(body, "data", data) != KX_OK
        || kx_protocol_additional(body, r, r->has_session ? r->session : NULL,
                                  NULL)
           != KX_OK)
    {
        cJSON_Delete(body);
        return NULL;
    }

    return kx_tree_print(body, len);
}


static int
kx_protocol_additional(cJSON *body, const kx_ad_request_t *r,
    const unsigned char *session, const unsigned char *bid)
{
    cJSON  *data;

    data = cJSON_AddObjectToObject(body, "additionalData");
    if (data == NULL) {
        return KX_ERROR;
    }

    if (kx_protocol_add_given(data, "publisherToken", &r->publisher_token)
        != KX_OK
        || kx_protocol_add_given(data, "conversationId", &r->conversation_id)
           != KX_OK
        || kx_protocol_add_given(data, "userId", &r->user_id) != KX_OK
        || kx_protocol_add_given(data, "installId", &r->install_id) != KX_OK
        || kx_protocol_add_uuid(data, "sessionId", session) != KX_OK
        || kx_protocol_add_uuid(data, "bidId", bid) != KX_OK)
    {
        return KX_ERROR;
    }

    return kx_protocol_sdk(data, r);
}


void
kx_protocol_free(char *body)
{
    cJSON_free(body);
}


static int
kx_protocol_common(cJSON *body, const kx_ad_request_t *r)
{
    if (kx_protocol_add(body, "publisherToken", &r->publisher_token) != KX_OK
        || kx_protocol_add(body, "userId", &r->user_id) != KX_OK)
    {
        return KX_ERROR;
    }

    /* better none than one that is no UUID: older SDKs send none */

    return kx_protocol_add_given(body, "installId", &r->install_id);
}


static int
kx_protocol_placements(cJSON *body, const kx_ad_request_t *r)
{
    cJSON           *array;
    unsigned         i;
    const kx_str_t   inline_ad = kx_string("inlineAd");

    array = cJSON_AddArrayToObject(body, "enabledPlacementCodes");

    if (r->nplacements == 0) {
        return kx_protocol_add_item(array, &inline_ad);
    }

    for (i = 0; i < r->nplacements; i++) {
        if (kx_protocol_add_item(array, &r->placements[i]) != KX_OK) {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


/*
 * From the newest to the oldest.  What is left out is always the beginning
 * of the conversation: a gap would change its meaning.
 */

static int
kx_protocol_messages(cJSON *body, const kx_ad_request_t *r)
{
    char                *content;
    cJSON               *array, *item;
    size_t               len, left;
    unsigned             cut, i, n;
    const kx_message_t  *m;

    array = cJSON_AddArrayToObject(body, "messages");
    if (array == NULL) {
        return KX_ERROR;
    }

    left = KX_MAX_CONTENT;
    n = 0;

    for (i = r->nmessages; i > 0 && n < KX_MAX_MESSAGES; i--) {
        m = &r->messages[i - 1];

        if (m->role != KX_ROLE_USER && m->role != KX_ROLE_ASSISTANT) {
            continue;
        }

        content = kx_protocol_content(r, m, left, &len, &cut);
        if (content == NULL) {
            return KX_ERROR;
        }

        if (cut && n) {
            cJSON_free(content);
            break;
        }

        item = kx_protocol_message(m, content);

        cJSON_free(content);

        if (item == NULL) {
            return KX_ERROR;
        }

        if (!cJSON_InsertItemInArray(array, 0, item)) {
            cJSON_Delete(item);
            return KX_ERROR;
        }

        left -= len;
        n++;

        if (cut) {
            break;
        }
    }

    return KX_OK;
}


static char *
kx_protocol_content(const kx_ad_request_t *r, const kx_message_t *m,
    size_t max, size_t *len, unsigned *cut)
{
    char           *content;
    kx_str_t        text;
    unsigned char  *copy;

    /* one as long as there may be has been cut, with what was in its way */

    if (kx_redact(&text, &copy, &m->content, r->redact,
                  m->content.len > KX_MAX_CONTENT - 4)
        != KX_OK)
    {
        return NULL;
    }

    content = kx_tree_text(&text, max, len, cut);

    free(copy);

    return content;
}


static cJSON *
kx_protocol_message(const kx_message_t *m, const char *content)
{
    char         time[32];
    cJSON       *item;
    const char  *role;

    role = (m->role == KX_ROLE_USER) ? "user" : "assistant";

    kx_protocol_time(time, m->created);

    item = cJSON_CreateObject();

    if (kx_protocol_add(item, "id", &m->id) != KX_OK
        || cJSON_AddStringToObject(item, "role", role) == NULL
        || cJSON_AddStringToObject(item, "content", content) == NULL
        || cJSON_AddStringToObject(item, "createdAt", time) == NULL)
    {
        cJSON_Delete(item);
        return NULL;
    }

    return item;
}


static int
kx_protocol_sdk(cJSON *body, const kx_ad_request_t *r)
{
    cJSON  *sdk;

    sdk = cJSON_AddObjectToObject(body, "sdk");

    if (kx_protocol_add(sdk, "name", &r->sdk_name) != KX_OK
        || kx_protocol_add(sdk, "platform", &r->sdk_platform) != KX_OK)
    {
        return KX_ERROR;
    }

    return kx_protocol_add(sdk, "version", &r->sdk_version);
}


static int
kx_protocol_device(cJSON *body, const kx_device_t *d)
{
    cJSON  *device, *hardware, *network;

    device = cJSON_AddObjectToObject(body, "device");
    hardware = cJSON_AddObjectToObject(device, "hardware");

    if (kx_protocol_add(hardware, "type", &d->type) != KX_OK
        || kx_protocol_os(device, d) != KX_OK
        || kx_protocol_screen(device, d) != KX_OK)
    {
        return KX_ERROR;
    }

    if (d->user_agent.len == 0) {
        return KX_OK;
    }

    network = cJSON_AddObjectToObject(device, "network");

    return kx_protocol_add(network, "userAgent", &d->user_agent);
}


static int
kx_protocol_os(cJSON *device, const kx_device_t *d)
{
    cJSON  *os;

    os = cJSON_AddObjectToObject(device, "os");

    if (kx_protocol_add(os, "name", &d->os) != KX_OK
        || kx_protocol_add(os, "version", &d->os_version) != KX_OK
        || kx_protocol_add(os, "locale", &d->locale) != KX_OK)
    {
        return KX_ERROR;
    }

    return kx_protocol_add(os, "timezone", &d->timezone);
}


static int
kx_protocol_screen(cJSON *device, const kx_device_t *d)
{
    cJSON  *screen;

    screen = cJSON_AddObjectToObject(device, "screen");
    if (screen == NULL) {
        return KX_ERROR;
    }

    if (kx_protocol_add_number(screen, "width", d->width) != KX_OK
        || kx_protocol_add_number(screen, "height", d->height) != KX_OK
        || kx_protocol_add_number(screen, "dpr", d->dpr) != KX_OK)
    {
        return KX_ERROR;
    }

    return kx_protocol_add_flag(screen, "darkMode", d->dark);
}


static int
kx_protocol_character(cJSON *body, const kx_character_t *c)
{
    cJSON     *character, *tags;
    unsigned   i;

    if (c->id.len == 0 || c->name.len == 0) {
        return KX_OK;
    }

    character = cJSON_AddObjectToObject(body, "character");

    if (kx_protocol_add(character, "id", &c->id) != KX_OK
        || kx_protocol_add(character, "name", &c->name) != KX_OK
        || kx_protocol_add_given(character, "avatarUrl", &c->avatar_url)
           != KX_OK
        || kx_protocol_add_given(character, "greeting", &c->greeting) != KX_OK
        || kx_protocol_add_given(character, "persona", &c->persona) != KX_OK
        || kx_protocol_add_flag(character, "isNsfw", c->nsfw) != KX_OK)
    {
        return KX_ERROR;
    }

    if (!c->has_tags) {
        return KX_OK;
    }

    tags = cJSON_AddArrayToObject(character, "tags");
    if (tags == NULL) {
        return KX_ERROR;
    }

    for (i = 0; i < c->ntags; i++) {

        if (c->tags[i].len == 0) {
            continue;
        }

        if (kx_protocol_add_item(tags, &c->tags[i]) != KX_OK) {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


static int
kx_protocol_regulatory(cJSON *body, const kx_regulatory_t *g)
{
    cJSON  *regulatory, *sids;

    if (g->gdpr < 0 && g->coppa < 0 && g->gdpr_consent.len == 0
        && g->gpp.len == 0 && g->us_privacy.len == 0 && !g->has_gpp_sid)
    {
        return KX_OK;
    }

    regulatory = cJSON_AddObjectToObject(body, "regulatory");
    if (regulatory == NULL) {
        return KX_ERROR;
    }

    if (kx_protocol_add_number(regulatory, "gdpr", g->gdpr) != KX_OK
        || kx_protocol_add_given(regulatory, "gdprConsent", &g->gdpr_consent)
           != KX_OK
        || kx_protocol_add_number(regulatory, "coppa", g->coppa) != KX_OK
        || kx_protocol_add_given(regulatory, "gpp", &g->gpp) != KX_OK
        || kx_protocol_add_given(regulatory, "usPrivacy", &g->us_privacy)
           != KX_OK)
    {
        return KX_ERROR;
    }

    if (!g->has_gpp_sid) {
        return KX_OK;
    }

    sids = g->ngpp_sid ? cJSON_CreateIntArray(g->gpp_sid, (int) g->ngpp_sid)
                       : cJSON_CreateArray();

    if (!cJSON_AddItemToObject(regulatory, "gppSid", sids)) {
        cJSON_Delete(sids);
        return KX_ERROR;
    }

    return KX_OK;
}


/* object may be NULL here and below: there was no memory for it */

static int
kx_protocol_add(cJSON *object, const char *name, const kx_str_t *s)
{
    return kx_tree_add(object, name, s, KX_MAX_CONTENT);
}


/* nothing is added for NULL, here and below */

static int
kx_protocol_add_text(cJSON *object, const char *name, const char *text)
{
    kx_str_t  s;

    if (text == NULL) {
        return KX_OK;
    }

    s.len = strlen(text);
    s.data = (unsigned char *) text;

    return kx_protocol_add(object, name, &s);
}


static int
kx_protocol_add_uuid(cJSON *object, const char *name, const unsigned char *id)
{
    kx_str_t       s;
    unsigned char  uuid[KX_UUID_LEN];

    if (id == NULL) {
        return KX_OK;
    }

    s.data = uuid;
    s.len = (size_t) (kx_uuid_write(uuid, id) - uuid);

    return kx_protocol_add(object, name, &s);
}


static int
kx_protocol_add_given(cJSON *object, const char *name, const kx_str_t *s)
{
    return s->len ? kx_protocol_add(object, name, s) : KX_OK;
}


static int
kx_protocol_add_item(cJSON *array, const kx_str_t *s)
{
    char      *text;
    cJSON     *item;
    size_t     len;
    unsigned   cut;

    text = kx_tree_text(s, KX_MAX_CONTENT, &len, &cut);
    if (text == NULL) {
        return KX_ERROR;
    }

    item = cJSON_CreateString(text);

    cJSON_free(text);

    if (!cJSON_AddItemToArray(array, item)) {
        cJSON_Delete(item);
        return KX_ERROR;
    }

    return KX_OK;
}


static int
kx_protocol_add_number(cJSON *object, const char *name, double n)
{
    /* cJSON would print null for a number that is not finite */

    if (!isfinite(n) || n < 0) {
        return KX_OK;
    }

    return cJSON_AddNumberToObject(object, name, n) ? KX_OK : KX_ERROR;
}


static int
kx_protocol_add_flag(cJSON *object, const char *name, int flag)
{
    if (flag < 0) {
        return KX_OK;
    }

    return cJSON_AddBoolToObject(object, name, flag != 0) ? KX_OK : KX_ERROR;
}


void
kx_protocol_init_answer(kx_init_answer_t *a, unsigned status,
    const unsigned char *body, size_t len)
{
    cJSON  *root;

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

    root = kx_protocol_decode(body, len);
    if (root == NULL) {
        a->failed = 1;
        return;
    }

    a->applied = 1;
    a->enabled = kx_protocol_flag(root, "enabled", 1);
    a->report_errors = kx_protocol_flag(root, "reportErrors", 1);
    a->report_debug = kx_protocol_flag(root, "reportDebug", 0);
    a->preload_timeout = kx_protocol_timeout(root);

    cJSON_Delete(root);
}


static unsigned
kx_protocol_flag(const cJSON *root, const char *name, unsigned missing)
{
    const cJSON  *item;

    item = kx_tree_get(root, name);

    return cJSON_IsBool(item) ? (cJSON_IsTrue(item) != 0) : missing;
}


static uint32_t
kx_protocol_timeout(const cJSON *root)
{
    double        ms;
    const cJSON  *item;

    item = kx_tree_get(root, "preloadTimeout");

    if (!cJSON_IsNumber(item)) {
        return 0;
    }

    ms = item->valuedouble;

    if (!(ms >= 1 && ms <= KX_MAX_PRELOAD_TIMEOUT)
        || ms != (double) (uint32_t) ms)
    {
        return 0;
    }

    return (uint32_t) ms;
}


void
kx_protocol_preload_answer(kx_preload_answer_t *a, unsigned status,
    const unsigned char *body, size_t len, const kx_str_t *placements,
    unsigned nplacements, unsigned track_only)
{
    cJSON  *root;

    memset(a, 0, sizeof(kx_preload_answer_t));

    if (status == 0) {
        a->transport = 1;
        a->failed = 1;
        kx_protocol_outcome(a, KX_AD_ERROR, "request_failed");
        return;
    }

    if (status == 204) {
        kx_protocol_outcome(a, KX_AD_NO_FILL, "unfilled_bid");
        return;
    }

    if (status < 200 || status > 299) {
        kx_protocol_outcome(a, KX_AD_ERROR, "unknown");
        return;
    }

    root = kx_protocol_decode(body, len);

    if (root == NULL
        || kx_protocol_read(a, root, placements, nplacements) != KX_OK)
    {
        memset(a, 0, sizeof(kx_preload_answer_t));
        a->failed = 1;
        kx_protocol_outcome(a, KX_AD_ERROR, "request_failed");

    } else {
        kx_protocol_classify(a, root, track_only);
    }

    cJSON_Delete(root);
}


void
kx_protocol_no_answer(kx_preload_answer_t *a, kx_ad_outcome_e outcome,
    const char *code)
{
    memset(a, 0, sizeof(kx_preload_answer_t));

    kx_protocol_outcome(a, outcome, code);
}


static cJSON *
kx_protocol_decode(const unsigned char *body, size_t len)
{
    cJSON  *root;

    if (len > KX_MAX_ANSWER
        || kx_tree_read(&root, body, len, 1) != KX_OK)
    {
        return NULL;
    }

    if (!cJSON_IsObject(root)) {
        cJSON_Delete(root);
        return NULL;
    }

    return root;
}


static int
kx_protocol_read(kx_preload_answer_t *a, const cJSON *root,
    const kx_str_t *placements, unsigned nplacements)
{
    const cJSON  *item, *bids;

    item = kx_tree_get(root, "sessionId");

    if (item != NULL) {

        if (kx_protocol_read_uuid(a->session, item) != KX_OK) {
            return KX_ERROR;
        }

        a->has_session = 1;
    }

    bids = kx_tree_get(root, "bids");

    if (bids == NULL) {
        return KX_OK;
    }

    if (!cJSON_IsArray(bids)) {
        return KX_ERROR;
    }

    cJSON_ArrayForEach(item, bids) {
        if (kx_protocol_read_bid(a, item, placements, nplacements) != KX_OK) {
            return KX_ERROR;
        }
    }

    return KX_OK;
}


static int
kx_protocol_read_uuid(unsigned char id[KX_ID_LEN], const cJSON *item)
{
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL) {
        return KX_DECLINED;
    }

    return kx_uuid_parse(id, (const unsigned char *) s, strlen(s));
}


/* a bad bid is an error, one that is of no use is not */

static int
kx_protocol_read_bid(kx_preload_answer_t *a, const cJSON *item,
    const kx_str_t *placements, unsigned nplacements)
{
    size_t       len;
    unsigned     i, n;
    kx_bid_t     bid;
    const char  *code;

    if (kx_protocol_read_uuid(bid.id, kx_tree_get(item, "bidId"))
        != KX_OK)
    {
        return KX_ERROR;
    }

    code = cJSON_GetStringValue(kx_tree_get(item, "code"));
    if (code == NULL) {
        return KX_ERROR;
    }

    len = strlen(code);
    n = (nplacements < KX_MAX_BIDS) ? nplacements : KX_MAX_BIDS;

    for (i = 0; i < n; i++) {
        if (len && placements[i].len == len
            && memcmp(placements[i].data, code, len) == 0)
        {
            break;
        }
    }

    if (i == n) {
        return KX_OK;
    }

    bid.placement = i;
    bid.revenue = kx_protocol_revenue(kx_tree_get(item, "revenue"));

    for (i = 0; i < a->nbids; i++) {
        if (a->bids[i].placement == bid.placement) {
            return KX_OK;
        }
    }

    a->bids[a->nbids++] = bid;

    return KX_OK;
}


static double
kx_protocol_revenue(const cJSON *item)
{
    char        *end;
    size_t       len;
    double       revenue;
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s != NULL) {

        /* no blanks, hexadecimals and names, which strtod() also takes */

        len = strlen(s);

        if (len == 0 || len > KX_MAX_REVENUE_LEN
            || strspn(s, "0123456789.eE+-") != len)
        {
            return -1;
        }

        revenue = strtod(s, &end);

        if (*end != '\0') {
            return -1;
        }

    } else if (cJSON_IsNumber(item)) {
        revenue = item->valuedouble;

    } else {
        return -1;
    }

    if (!isfinite(revenue) || revenue < 0) {
        return -1;
    }

    /* not the zero with a sign */

    return (revenue > 0) ? revenue : 0;
}


/* rules 5 to 9 */

static void
kx_protocol_classify(kx_preload_answer_t *a, const cJSON *root,
    unsigned track_only)
{
    const cJSON  *error;

    error = kx_tree_get(root, "errCode");

    if (error != NULL || !a->has_session) {

        if (cJSON_IsTrue(kx_tree_get(root, "permanent"))) {
            a->disable = 1;
            kx_protocol_outcome(a, KX_AD_ERROR,
                                error ? kx_protocol_code(error)
                                      : "session_disabled");
            return;
        }

        kx_protocol_outcome(a, KX_AD_ERROR, kx_protocol_code(error));
        return;
    }

    if (cJSON_IsTrue(kx_tree_get(root, "skip"))) {
        kx_protocol_outcome(a, KX_AD_NO_FILL,
                        kx_protocol_code(kx_tree_get(root, "skipCode")));
        return;
    }

    if (a->nbids == 0) {
        kx_protocol_outcome(a, KX_AD_NO_FILL, "unfilled_bid");
        return;
    }

    if (track_only) {
        kx_protocol_outcome(a, KX_AD_NO_FILL, "track_only");
        return;
    }

    a->outcome = KX_AD_FILLED;
}


/* an outcome without an ad; code has KX_MAX_CODE bytes at most */

static void
kx_protocol_outcome(kx_preload_answer_t *a, kx_ad_outcome_e outcome,
    const char *code)
{
    a->outcome = outcome;
    a->nbids = 0;

    memset(a->bids, 0, sizeof(a->bids));
    memcpy(a->code, code, strlen(code) + 1);
}


/* what the server calls it, if that can be shown and logged as it is */

static const char *
kx_protocol_code(const cJSON *item)
{
    size_t             len;
    const char        *s;
    static const char  allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                   "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789_.:-";

    s = cJSON_GetStringValue(item);

    if (s == NULL) {
        return "unknown";
    }

    len = strlen(s);

    if (len == 0 || len > KX_MAX_CODE || strspn(s, allowed) != len) {
        return "unknown";
    }

    return s;
}


unsigned char *
kx_protocol_frame_url(unsigned char *dst, const unsigned char *end,
    const kx_ad_t *ad, const kx_bid_t *bid)
{
    kx_writer_t  w;

    w.pos = dst;
    w.end = end;

    kx_write_url(&w, ad, bid);

    return w.pos;
}


unsigned char *
kx_protocol_member(unsigned char *dst, const unsigned char *end,
    const kx_ad_t *ad)
{
    kx_writer_t  w;

    w.pos = dst;
    w.end = end;

    kx_write_member(&w, ad);

    return w.pos;
}


static void
kx_write_member(kx_writer_t *w, const kx_ad_t *ad)
{
    unsigned         i;
    kx_str_t         s;
    unsigned char    url[KX_MAX_FRAME_URL], *last;
    const kx_bid_t  *bid;

    kx_write_literal(w, "{\"messageId\":\"");
    kx_write_json(w, &ad->message_id);
    kx_write_literal(w, "\",\"ads\":[");

    for (i = 0; i < ad->nbids; i++) {
        bid = &ad->bids[i];

        /* this checks bid->placement, too */

        last = kx_protocol_frame_url(url, url + KX_MAX_FRAME_URL, ad, bid);

        if (last == NULL) {
            w->pos = NULL;
            return;
        }

        s.len = (size_t) (last - url);
        s.data = url;

        kx_write_literal(w, i ? ",{\"bidId\":\"" : "{\"bidId\":\"");
        kx_write_uuid(w, bid->id);
        kx_write_literal(w, "\",\"code\":\"");
        kx_write_json(w, &ad->placements[bid->placement]);
        kx_write_literal(w, "\",\"label\":\"");
        kx_write_json(w, &ad->label);
        kx_write_literal(w, "\",\"frameUrl\":\"");
        kx_write_json(w, &s);
        kx_write_literal(w, "\"}");
    }

    kx_write_literal(w, "]}");
}


static void
kx_write_url(kx_writer_t *w, const kx_ad_t *ad, const kx_bid_t *bid)
{
    if (bid->placement >= KX_MAX_BIDS) {
        w->pos = NULL;
        return;
    }

    kx_write(w, ad->origin.data, ad->origin.len);
    kx_write_literal(w, "/api/frame/");
    kx_write_uuid(w, bid->id);
    kx_write_literal(w, "?code=");
    kx_write_uri(w, &ad->placements[bid->placement]);
    kx_write_literal(w, "&messageId=");
    kx_write_uri(w, &ad->message_id);
    kx_write_literal(w, "&sdk=");
    kx_write_uri(w, &ad->sdk_name);

    if (ad->theme.len) {
        kx_write_literal(w, "&theme=");
        kx_write_uri(w, &ad->theme);
    }
}


static void
kx_write_literal(kx_writer_t *w, const char *s)
{
    kx_write(w, s, strlen(s));
}


static void
kx_write_uuid(kx_writer_t *w, const unsigned char id[KX_ID_LEN])
{
    unsigned char  uuid[KX_UUID_LEN];

    (void) kx_uuid_write(uuid, id);

    kx_write(w, uuid, KX_UUID_LEN);
}


static void
kx_write_json(kx_writer_t *w, const kx_str_t *s)
{
    if (w->pos != NULL) {
        w->pos = kx_json_escape(w->pos, w->end, s);
    }
}


/* all but the unreserved characters of RFC 3986 is encoded */

static void
kx_write_uri(kx_writer_t *w, const kx_str_t *s)
{
    size_t             i;
    unsigned char      c, code[3];
    static const char  hex[] = "0123456789ABCDEF";

    for (i = 0; i < s->len && w->pos != NULL; i++) {
        c = s->data[i];

        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
            || (c >= '0' && c <= '9')
            || c == '-' || c == '.' || c == '_' || c == '~')
        {
            kx_write(w, &c, 1);
            continue;
        }

        code[0] = '%';
        code[1] = (unsigned char) hex[c >> 4];
        code[2] = (unsigned char) hex[c & 15];

        kx_write(w, code, 3);
    }
}


static void
kx_write(kx_writer_t *w, const void *p, size_t len)
{
    if (w->pos == NULL || len == 0) {
        return;
    }

    if (len > (size_t) (w->end - w->pos)) {
        w->pos = NULL;
        return;
    }

    memcpy(w->pos, p, len);

    w->pos += len;
}


void
kx_protocol_time(char dst[32], uint64_t ms)
{
    char      *p;
    unsigned   day, msec, year, month, n;

    if (ms > KX_LAST_TIME) {
        ms = KX_LAST_TIME;
    }

    day = (unsigned) (ms / KX_DAY);
    msec = (unsigned) (ms % KX_DAY);

    for (year = 1970; /* void */ ; year++) {
        n = kx_time_leap(year) ? 366 : 365;

        if (day < n) {
            break;
        }

        day -= n;
    }

    for (month = 1; month < 12; month++) {
        n = kx_time_days[month - 1];

        if (month == 2 && kx_time_leap(year)) {
            n++;
        }

        if (day < n) {
            break;
        }

        day -= n;
    }

    p = kx_time_digits(dst, year, 4);
    *p++ = '-';
    p = kx_time_digits(p, month, 2);
    *p++ = '-';
    p = kx_time_digits(p, day + 1, 2);
    *p++ = 'T';
    p = kx_time_digits(p, msec / 3600000, 2);
    *p++ = ':';
    p = kx_time_digits(p, msec / 60000 % 60, 2);
    *p++ = ':';
    p = kx_time_digits(p, msec / 1000 % 60, 2);
    *p++ = '.';
    p = kx_time_digits(p, msec % 1000, 3);
    *p++ = 'Z';
    *p = '\0';
}


static unsigned
kx_time_leap(unsigned year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}


static char *
kx_time_digits(char *dst, unsigned n, unsigned width)
{
    unsigned  i;

    for (i = width; i > 0; i--) {
        dst[i - 1] = (char) ('0' + n % 10);
        n /= 10;
    }

    return dst + width;
}


void
kx_protocol_install_id(unsigned char *dst, const kx_str_t *token,
    const kx_str_t *user)
{
    unsigned       i;
    uint64_t       ms;
    kx_sha256_t    sha;
    unsigned char  digest[KX_SHA256_LEN], id[KX_ID_LEN];

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, KX_INSTALL_DOMAIN, sizeof(KX_INSTALL_DOMAIN) - 1);
    kx_sha256_field(&sha, token->data, token->len);
    kx_sha256_field(&sha, user->data, user->len);
    kx_sha256_final(&sha, digest);

    /* the time comes out of bytes that nothing else is made of */

    ms = 0;

    for (i = KX_ID_LEN; i < KX_ID_LEN + 8; i++) {
        ms = ms << 8 | digest[i];
    }

    ms = KX_INSTALL_FROM + ms % KX_INSTALL_SPAN;

    for (i = 0; i < 6; i++) {
        id[i] = (unsigned char) (ms >> (40 - 8 * i));
    }

    memcpy(id + 6, digest, KX_ID_LEN - 6);

    id[6] = (unsigned char) (0x70 | (id[6] & 0x0f));
    id[8] = (unsigned char) (0x80 | (id[8] & 0x3f));

    (void) kx_uuid_write(dst, id);
}
