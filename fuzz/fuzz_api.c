/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The session API.  The first byte of the input chooses a function, the
 * second one the allocation that fails, if any; the rest is what a stranger
 * says or what is found in shared memory, in parts that end with a zero byte
 * where several are needed.
 *
 *   - What is kept is within its limits and valid UTF-8.  What is written is
 *     JSON on one line.
 *   - What was written is read again as what it was.
 *   - There is no memory only if some was refused, and no body without its
 *     last byte.
 */


#include <stdlib.h>

#include <cjson/cJSON.h>

#include "check.h"
#include "api.h"
#include "hash.h"


#define MAX_BLOCKS  65536
#define LAST_TIME   253402300799999ULL


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


static void *pool_alloc(void *data, size_t size);
static void *tree_alloc(size_t size);
static unsigned char *room(size_t size);
static unsigned char *exact(const unsigned char *p, size_t len);
static kx_str_t part(const uint8_t **p, size_t *len);
static char *c_string(const kx_str_t *s);
static size_t trimmed(const kx_str_t *s);
static unsigned no_memory(const kx_api_error_t *error);
static unsigned utf8(const kx_str_t *s);
static void check_line(const kx_str_t *s);
static unsigned same(const kx_str_t *a, const kx_str_t *b);
static void check_id(const kx_str_t *s, size_t max);
static void check_options(const kx_str_t *options);
static void fuzz_session(const kx_str_t *body);
static void fuzz_patch(const kx_str_t *body);
static void fuzz_merge(const kx_str_t *older, const kx_str_t *newer);
static void fuzz_apply(const kx_str_t *options);
static void fuzz_messages(const kx_str_t *body);
static void fuzz_event(const kx_str_t *body, double revenue);
static void check_event(const kx_api_event_t *e, double revenue);
static void fuzz_state(const uint8_t *p, size_t len);
static void fuzz_reports(const uint8_t *p, size_t len);
static void fuzz_id(const kx_str_t *text);


static void      *blocks[MAX_BLOCKS];
static size_t     nblocks;
static size_t     pool_left, trees_left;
static unsigned   refused;

static kx_pool_t  pool = { pool_alloc, NULL };

static const unsigned char  key[KX_SIP_KEY_LEN] = "0123456789abcdef";


static void *
pool_alloc(void *data, size_t size)
{
    if (pool_left == 0) {
        refused = 1;
        return NULL;
    }

    pool_left--;

    check(size > 0 && nblocks < MAX_BLOCKS);

    blocks[nblocks] = malloc(size);
    check(blocks[nblocks] != NULL);

    return blocks[nblocks++];
}


static void *
tree_alloc(size_t size)
{
    if (trees_left == 0) {
        refused = 1;
        return NULL;
    }

    trees_left--;

    return malloc(size);
}


/* memory that is not what is tested */

static unsigned char *
room(size_t size)
{
    size_t          left;
    unsigned char  *p;

    left = pool_left;
    pool_left = 1;
    p = pool.alloc(NULL, size ? size : 1);
    pool_left = left;

    return p;
}


static unsigned char *
exact(const unsigned char *p, size_t len)
{
    unsigned char  *copy;

    copy = room(len);

    if (len) {
        memcpy(copy, p, len);
    }

    return copy;
}


/* up to the next zero byte, in memory of its own */

static kx_str_t
part(const uint8_t **p, size_t *len)
{
    kx_str_t        s;
    const uint8_t  *end;

    end = *len ? memchr(*p, '\0', *len) : NULL;

    s.len = end ? (size_t) (end - *p) : *len;
    s.data = exact(*p, s.len);

    *p += s.len;
    *len -= s.len;

    if (*len) {
        (*p)++;
        (*len)--;
    }

    return s;
}


static char *
c_string(const kx_str_t *s)
{
    char  *text;

    text = (char *) room(s->len + 1);
    memcpy(text, s->data, s->len);
    text[s->len] = '\0';

    return text;
}


static size_t
trimmed(const kx_str_t *s)
{
    size_t  len;

    len = s->len;

    while (len && memchr(" \t\r\n", s->data[len - 1], 4) != NULL) {
        len--;
    }

    return len - 1;
}


static unsigned
no_memory(const kx_api_error_t *error)
{
    if (error == &kx_api_no_memory) {
        check(refused);
    }

    return error != NULL;
}


static unsigned
utf8(const kx_str_t *s)
{
    size_t                i, n, k;
    uint32_t              c;
    const unsigned char  *p;

    static const uint32_t  least[] = { 0, 0x80, 0x800, 0x10000 };

    p = s->data;

    for (i = 0; i < s->len; i += n + 1) {

        if (p[i] < 0x80) {
            n = 0;
            c = p[i];

        } else if (p[i] >> 5 == 6) {
            n = 1;
            c = p[i] & 0x1f;

        } else if (p[i] >> 4 == 14) {
            n = 2;
            c = p[i] & 0x0f;

        } else if (p[i] >> 3 == 30) {
            n = 3;
            c = p[i] & 0x07;

        } else {
            return 0;
        }

        for (k = 1; k <= n; k++) {

            if (i + k >= s->len || p[i + k] >> 6 != 2) {
                return 0;
            }

            c = c * 64 + (p[i + k] & 0x3f);
        }

        if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) {
            return 0;
        }
    }

    return 1;
}


static void
check_line(const kx_str_t *s)
{
    cJSON   *root;
    size_t   i;

    trees_left = SIZE_MAX;

    check(s->len >= 2 && s->data[0] == '{' && s->data[s->len - 1] == '}');
    check(utf8(s));

    for (i = 0; i < s->len; i++) {
        check(s->data[i] >= ' ');

        if (s->len - i > 2 && memcmp(s->data + i, "\xe2\x80", 2) == 0) {
            check((s->data[i + 2] & 0xfe) != 0xa8);
        }
    }

    root = cJSON_ParseWithLength((char *) s->data, s->len);
    check(root != NULL);
    cJSON_Delete(root);
}


static unsigned
same(const kx_str_t *a, const kx_str_t *b)
{
    return a->len == b->len
           && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}


static void
check_id(const kx_str_t *s, size_t max)
{
    check(s->len <= max);

    if (s->len) {
        check(utf8(s));
        check(memchr(s->data, '\0', s->len) == NULL);
    }
}


/* good ones, to which nothing has to be done */

static void
check_options(const kx_str_t *options)
{
    kx_str_t  none = { 0, NULL }, again;

    pool_left = SIZE_MAX;

    check_line(options);
    check(options->len <= KX_API_MAX_OPTIONS);

    check(kx_options_merge(&again, &none, options, &pool) == NULL);
    check(same(&again, options));

    check(kx_options_merge(&again, options, options, &pool) == NULL);
    check(same(&again, options));

    check(kx_options_merge(&again, options, &none, &pool) == NULL);
    check(same(&again, options));

    fuzz_apply(options);
}


static void
fuzz_session(const kx_str_t *body)
{
    kx_api_session_t  s;

    if (no_memory(kx_api_read_session(&s, body->data, body->len, &pool))) {
        return;
    }

    check_id(&s.user_id, KX_MAX_IDENTITY);
    check_id(&s.conversation_id, KX_MAX_IDENTITY);
    check_options(&s.options);

    check(kx_api_read_session(&s, body->data, trimmed(body), &pool)
          == &kx_api_bad_json);
}


static void
fuzz_patch(const kx_str_t *body)
{
    kx_str_t               options;
    kx_api_session_t       s;
    const kx_api_error_t  *error;

    error = kx_api_read_patch(&options, body->data, body->len, &pool);

    if (no_memory(error)) {
        return;
    }

    check_options(&options);

    check(kx_api_read_session(&s, body->data, body->len, &pool) == NULL);
    check(same(&s.options, &options));
    check(kx_api_read_patch(&options, body->data, trimmed(body), &pool)
          == &kx_api_bad_json);
}


static void
fuzz_merge(const kx_str_t *older, const kx_str_t *newer)
{
    kx_str_t               result;
    const kx_api_error_t  *error;

    error = kx_options_merge(&result, older, newer, &pool);

    if (!no_memory(error)) {
        check_options(&result);
    }
}


static void
fuzz_apply(const kx_str_t *options)
{
    int               rc;
    char             *body;
    size_t            len;
    kx_str_t          s;
    kx_message_t      m;
    kx_ad_request_t   ar, before;

    memset(&m, 0, sizeof(m));
    memset(&ar, 0, sizeof(ar));

    ar.messages = &m;
    ar.nmessages = 1;
    ar.character.nsfw = -1;
    ar.regulatory.gdpr = -1;
    ar.regulatory.coppa = -1;

    before = ar;

    rc = kx_options_apply(&ar, options, &pool);

    if (rc != KX_OK) {
        check(memcmp(&ar, &before, sizeof(ar)) == 0);
        return;
    }

    check(ar.character.ntags <= KX_API_MAX_OPTIONS);
    check(ar.regulatory.ngpp_sid <= KX_API_MAX_OPTIONS);
    check(ar.regulatory.gdpr <= 1 && ar.regulatory.coppa <= 1);

    trees_left = SIZE_MAX;

    body = kx_protocol_preload(&ar, &len);
    check(body != NULL);

    s.len = len;
    s.data = (unsigned char *) body;
    check(utf8(&s));

    kx_protocol_free(body);
}


static void
fuzz_messages(const kx_str_t *body)
{
    unsigned               n, i;
    kx_api_message_t      *m;
    const kx_api_error_t  *error;

    error = kx_api_read_messages(&m, &n, body->data, body->len, &pool);

    if (no_memory(error)) {
        return;
    }

    check(n >= 1 && n <= body->len / 30);

    for (i = 0; i < n; i++) {
        check(m[i].message.id.len >= 1);
        check_id(&m[i].message.id, KX_API_MAX_MESSAGE_ID);
        check_id(&m[i].message.content, KX_MAX_CONTENT);
        check(m[i].message.role == KX_ROLE_USER
              || m[i].message.role == KX_ROLE_ASSISTANT);
        check(m[i].message.created <= LAST_TIME);
        check(m[i].track_only <= 1);
    }

    pool_left = SIZE_MAX;
    trees_left = SIZE_MAX;

    check(kx_api_read_messages(&m, &n, body->data, trimmed(body), &pool)
          == &kx_api_bad_json);
}


static void
fuzz_event(const kx_str_t *body, double revenue)
{
    kx_str_t        s;
    kx_api_event_t  e, again;

    if (no_memory(kx_api_read_event(&e, body->data, body->len, &pool))) {
        return;
    }

    check_id(&e.code, KX_MAX_CODE);
    check_id(&e.message_id, KX_API_MAX_MESSAGE_ID);
    check(e.payload.len <= KX_API_MAX_PAYLOAD);
    check_line(&e.payload);

    s = kx_api_event(&e, revenue, &pool);
    check(s.len != 0 || refused);

    pool_left = SIZE_MAX;

    check_event(&e, revenue);

    /* the event of a page that repeats what it was sent */

    s = kx_api_event(&e, revenue, &pool);
    check(kx_api_read_event(&again, s.data, s.len, &pool) == NULL);
    check(same(&e.name, &again.name) && same(&e.payload, &again.payload));
    check(same(&e.code, &again.code));

    check(kx_api_read_event(&again, body->data, trimmed(body), &pool)
          == &kx_api_bad_json);
}


/* also with all that can be added to it */

static void
check_event(const kx_api_event_t *e, double revenue)
{
    kx_str_t        s;
    unsigned char   longest[KX_API_MAX_MESSAGE_ID];
    kx_api_event_t  full;

    s = kx_api_event(e, revenue, &pool);
    check_line(&s);
    check(s.len <= KX_API_MAX_EVENT);

    memset(longest, 1, sizeof(longest));

    full = *e;

    if (full.code.len == 0) {
        full.code.len = KX_MAX_CODE;
        full.code.data = longest;
    }

    if (full.message_id.len == 0) {
        full.message_id.len = sizeof(longest);
        full.message_id.data = longest;
    }

    s = kx_api_event(&full, revenue, &pool);
    check_line(&s);
    check(s.len <= KX_API_MAX_EVENT);
}


/* whatever lies in the memory of the sessions */

static void
fuzz_state(const uint8_t *p, size_t len)
{
    kx_ad_t          ads[2];
    kx_bid_t         bid;
    kx_str_t         s, placement;
    kx_message_t     m;
    kx_api_state_t   st;

    memset(&st, 0, sizeof(st));
    memset(ads, 0, sizeof(ads));
    memset(&bid, 0, sizeof(bid));
    memset(&m, 0, sizeof(m));

    st.options = part(&p, &len);
    st.id = part(&p, &len);
    st.user_id = part(&p, &len);
    st.conversation_id = part(&p, &len);
    s = part(&p, &len);
    st.preload = c_string(&s);
    m.id = part(&p, &len);
    ads[0].message_id = m.id;
    ads[1].message_id = part(&p, &len);
    placement = part(&p, &len);
    ads[0].label = part(&p, &len);
    ads[1].origin = part(&p, &len);

    bid.placement = (unsigned) len;
    m.created = (uint64_t) len << 33;
    m.role = len % 3;
    ads[0].bids = &bid;
    ads[0].nbids = placement.len ? 1 : 0;
    ads[0].placements = &placement;
    bid.placement = 0;

    st.messages = &m;
    st.nmessages = 1;
    st.ads = ads;
    st.nads = 2;
    st.has_server_id = len % 2;
    st.created = m.created;
    st.preload_timeout = (uint32_t) len;

    s = kx_api_write_state(&st, &pool);
    check(s.len != 0 || refused);

    if (s.len) {
        check_line(&s);
    }
}


static void
fuzz_reports(const uint8_t *p, size_t len)
{
    char             *body, *name, *data;
    size_t            n;
    kx_str_t          s;
    unsigned          i;
    kx_ad_request_t   ar;

    memset(&ar, 0, sizeof(ar));

    s = part(&p, &len);
    name = c_string(&s);
    s = part(&p, &len);
    data = s.len ? c_string(&s) : NULL;
    ar.user_id = part(&p, &len);
    ar.conversation_id = part(&p, &len);
    ar.has_session = len % 2;

    for (i = 0; i < 2; i++) {
        body = i ? kx_protocol_debug_report(&ar, name, data, &n)
                 : kx_protocol_error_report(&ar, name, data,
                                            (len & 2) ? key : NULL, &n);

        check(body != NULL || refused);

        if (body != NULL) {
            s.len = n;
            s.data = (unsigned char *) body;
            check(n == strlen(body) && utf8(&s));
            check(strchr(body, '\n') == NULL && strchr(body, '\r') == NULL);
            kx_protocol_free(body);
        }
    }
}


static void
fuzz_id(const kx_str_t *text)
{
    uint32_t       root;
    unsigned char  id[KX_ID_LEN], dst[KX_API_ID_LEN];

    if (kx_api_id_read(&root, id, text, key) == KX_OK) {
        kx_api_id_write(dst, root, id, key);
        check(memcmp(dst, text->data, KX_API_ID_LEN) == 0);
    }
}


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    unsigned     what, fail;
    kx_str_t     s, other;
    cJSON_Hooks  hooks;

    if (len < 2) {
        return 0;
    }

    what = p[0];
    fail = p[1];
    p += 2;
    len -= 2;

    hooks.malloc_fn = tree_alloc;
    hooks.free_fn = free;
    cJSON_InitHooks(&hooks);

    refused = 0;
    pool_left = SIZE_MAX;
    trees_left = SIZE_MAX;

    s.len = len;
    s.data = exact(p, len);

    if (fail % 2) {
        pool_left = fail / 2;

    } else if (fail) {
        trees_left = fail / 2;
    }

    switch (what % 9) {

    case 0:
        fuzz_session(&s);
        break;

    case 1:
        fuzz_patch(&s);
        break;

    case 2:
        s = part(&p, &len);
        other = part(&p, &len);
        fuzz_merge(&s, &other);
        break;

    case 3:
        fuzz_apply(&s);
        break;

    case 4:
        fuzz_messages(&s);
        break;

    case 5:
        fuzz_event(&s, what * 1.1e-3 - 0.01);
        break;

    case 6:
        fuzz_state(p, len);
        break;

    case 7:
        fuzz_reports(p, len);
        break;

    default:
        fuzz_id(&s);
    }

    while (nblocks) {
        free(blocks[--nblocks]);
    }

    return 0;
}
