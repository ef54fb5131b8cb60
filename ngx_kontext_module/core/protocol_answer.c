/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "protocol.h"
#include "hash.h"
#include "json_scan.h"
#include "tree.h"

#include <math.h>
#include <stdlib.h>


#define KX_MAX_NUMBER_LEN      63
#define KX_MAX_REVENUE_LEN     32
#define KX_MAX_NAMED           6


/* members by their names: raw, and empty where there is none or a null */

typedef struct {
    const kx_str_t       *names;     /* up to an empty one */
    kx_str_t              values[KX_MAX_NAMED];
} kx_named_t;


static int kx_protocol_decode(kx_named_t *m, const unsigned char *body,
    size_t len);
static int kx_protocol_members(kx_named_t *m, kx_json_t *j);
static unsigned kx_protocol_true(const kx_str_t *value);
static unsigned kx_protocol_flag(const kx_str_t *value, unsigned missing);
static ssize_t kx_protocol_string(const kx_str_t *value, char *dst,
    size_t size);
static int kx_protocol_number(const kx_str_t *value, double *n);
static uint32_t kx_protocol_timeout(const kx_str_t *value);
static int kx_protocol_read(kx_preload_answer_t *a, const kx_named_t *m,
    const kx_str_t *placements, unsigned nplacements);
static int kx_protocol_read_uuid(unsigned char id[KX_ID_LEN],
    const kx_str_t *value);
static int kx_protocol_read_bid(kx_preload_answer_t *a, kx_json_t *j,
    const kx_str_t *placements, unsigned nplacements);
static double kx_protocol_revenue(const kx_str_t *value);
static void kx_protocol_classify(kx_preload_answer_t *a,
    const kx_named_t *m, unsigned track_only);
static void kx_protocol_outcome(kx_preload_answer_t *a,
    kx_ad_outcome_e outcome, const char *code);
static void kx_protocol_code(kx_preload_answer_t *a, kx_ad_outcome_e outcome,
    const kx_str_t *value);


enum {
    KX_INIT_ENABLED = 0,
    KX_INIT_REPORT_ERRORS,
    KX_INIT_REPORT_DEBUG,
    KX_INIT_TIMEOUT
};

static const kx_str_t  kx_init_members[] = {
    kx_string("enabled"),
    kx_string("reportErrors"),
    kx_string("reportDebug"),
    kx_string("preloadTimeout"),
    kx_string("")
};


enum {
    KX_PRELOAD_SESSION = 0,
    KX_PRELOAD_BIDS,
    KX_PRELOAD_ERROR,
    KX_PRELOAD_PERMANENT,
    KX_PRELOAD_SKIP,
    KX_PRELOAD_SKIP_CODE
};

static const kx_str_t  kx_preload_members[] = {
    kx_string("sessionId"),
    kx_string("bids"),
    kx_string("errCode"),
    kx_string("permanent"),
    kx_string("skip"),
    kx_string("skipCode"),
    kx_string("")
};


enum {
    KX_BID_ID = 0,
    KX_BID_CODE,
    KX_BID_REVENUE
};

static const kx_str_t  kx_bid_members[] = {
    kx_string("bidId"),
    kx_string("code"),
    kx_string("revenue"),
    kx_string("")
};


void
kx_protocol_init_answer(kx_init_answer_t *a, unsigned status,
    const unsigned char *body, size_t len)
{
    kx_named_t  m;

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

    m.names = kx_init_members;

    if (kx_protocol_decode(&m, body, len) != KX_OK) {
        a->failed = 1;
        return;
    }

    a->applied = 1;
    a->enabled = kx_protocol_flag(&m.values[KX_INIT_ENABLED], 1);
    a->report_errors = kx_protocol_flag(&m.values[KX_INIT_REPORT_ERRORS], 1);
    a->report_debug = kx_protocol_flag(&m.values[KX_INIT_REPORT_DEBUG], 0);
    a->preload_timeout = kx_protocol_timeout(&m.values[KX_INIT_TIMEOUT]);
}


void
kx_protocol_preload_answer(kx_preload_answer_t *a, unsigned status,
    const unsigned char *body, size_t len, const kx_str_t *placements,
    unsigned nplacements, unsigned track_only)
{
    kx_named_t  m;

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

    m.names = kx_preload_members;

    if (kx_protocol_decode(&m, body, len) != KX_OK
        || kx_protocol_read(a, &m, placements, nplacements) != KX_OK)
    {
        memset(a, 0, sizeof(kx_preload_answer_t));
        a->failed = 1;
        kx_protocol_outcome(a, KX_AD_ERROR, "request_failed");
        return;
    }

    kx_protocol_classify(a, &m, track_only);
}


void
kx_protocol_no_answer(kx_preload_answer_t *a, kx_ad_outcome_e outcome,
    const char *code)
{
    memset(a, 0, sizeof(kx_preload_answer_t));

    kx_protocol_outcome(a, outcome, code);
}


/*
 * Nearly all answers are plain ASCII, for which the scanner checks all there
 * is to check.  Others must be what a strict reader takes, too.
 */

static int
kx_protocol_decode(kx_named_t *m, const unsigned char *body, size_t len)
{
    cJSON      *root;
    size_t      n;
    kx_json_t   j;

    if (len > KX_MAX_ANSWER) {
        return KX_DECLINED;
    }

    n = len;

    while (n && (body[n - 1] == '\n' || body[n - 1] == '\r')) {
        n--;
    }

    if (!kx_json_plain(body, n)) {

        if (kx_tree_read(&root, body, len, 1) != KX_OK) {
            return KX_DECLINED;
        }

        cJSON_Delete(root);
    }

    kx_json_init(&j, body, len);

    if (kx_protocol_members(m, &j) != KX_OK || kx_json_end(&j) != KX_OK) {
        return KX_DECLINED;
    }

    return KX_OK;
}


/* of members with the same name the first one counts */

static int
kx_protocol_members(kx_named_t *m, kx_json_t *j)
{
    int             rc;
    unsigned        i, seen;
    kx_str_t        key, value;
    kx_json_type_e  type;

    memset(m->values, 0, sizeof(m->values));

    if (kx_json_type(j) != KX_JSON_OBJECT || kx_json_enter(j) != KX_OK) {
        return KX_DECLINED;
    }

    seen = 0;

    while ((rc = kx_json_member(j, &key)) == KX_OK) {
        type = kx_json_type(j);

        if (kx_json_skip(j, &value) != KX_OK) {
            return KX_DECLINED;
        }

        for (i = 0; m->names[i].len; i++) {

            if ((seen & (1u << i))
                || !kx_json_name(&key, (char *) m->names[i].data,
                                 m->names[i].len))
            {
                continue;
            }

            seen |= 1u << i;

            if (type != KX_JSON_NULL) {
                m->values[i] = value;
            }

            break;
        }
    }

    return (rc == KX_DONE) ? KX_OK : KX_DECLINED;
}


static unsigned
kx_protocol_true(const kx_str_t *value)
{
    return value->len && value->data[0] == 't';
}


static unsigned
kx_protocol_flag(const kx_str_t *value, unsigned missing)
{
    if (value->len && (value->data[0] == 't' || value->data[0] == 'f')) {
        return kx_protocol_true(value);
    }

    return missing;
}


/* a C string of less than size bytes; its length, or -1: it is none */

static ssize_t
kx_protocol_string(const kx_str_t *value, char *dst, size_t size)
{
    ssize_t   n;
    kx_str_t  raw;

    if (value->len < 2 || value->data[0] != '"') {
        return -1;
    }

    raw.data = value->data + 1;
    raw.len = value->len - 2;

    n = kx_json_copy(&raw, (unsigned char *) dst, size - 1);

    if (n == -1 || memchr(dst, '\0', (size_t) n) != NULL) {
        return -1;
    }

    dst[n] = '\0';

    return n;
}


static int
kx_protocol_number(const kx_str_t *value, double *n)
{
    char  buf[KX_MAX_NUMBER_LEN + 1];

    if (value->len == 0 || value->len > KX_MAX_NUMBER_LEN
        || (value->data[0] != '-'
            && (value->data[0] < '0' || value->data[0] > '9')))
    {
        return KX_DECLINED;
    }

    memcpy(buf, value->data, value->len);
    buf[value->len] = '\0';

    *n = strtod(buf, NULL);

    return KX_OK;
}


static uint32_t
kx_protocol_timeout(const kx_str_t *value)
{
    double  ms;

    if (kx_protocol_number(value, &ms) != KX_OK
        || !(ms >= 1 && ms <= KX_MAX_PRELOAD_TIMEOUT)
        || ms != (double) (uint32_t) ms)
    {
        return 0;
    }

    return (uint32_t) ms;
}


static int
kx_protocol_read(kx_preload_answer_t *a, const kx_named_t *m,
    const kx_str_t *placements, unsigned nplacements)
{
    int              rc;
    kx_json_t        j;
    const kx_str_t  *value;

    value = &m->values[KX_PRELOAD_SESSION];

    if (value->len) {

        if (kx_protocol_read_uuid(a->session, value) != KX_OK) {
            return KX_ERROR;
        }

        a->has_session = 1;
    }

    value = &m->values[KX_PRELOAD_BIDS];

    if (value->len == 0) {
        return KX_OK;
    }

    kx_json_init(&j, value->data, value->len);

    if (kx_json_type(&j) != KX_JSON_ARRAY || kx_json_enter(&j) != KX_OK) {
        return KX_ERROR;
    }

    while ((rc = kx_json_element(&j)) == KX_OK) {
        if (kx_protocol_read_bid(a, &j, placements, nplacements) != KX_OK) {
            return KX_ERROR;
        }
    }

    return (rc == KX_DONE) ? KX_OK : KX_ERROR;
}


static int
kx_protocol_read_uuid(unsigned char id[KX_ID_LEN], const kx_str_t *value)
{
    char     uuid[KX_UUID_LEN + 1];
    ssize_t  n;

    n = kx_protocol_string(value, uuid, sizeof(uuid));

    if (n == -1) {
        return KX_DECLINED;
    }

    return kx_uuid_parse(id, (unsigned char *) uuid, (size_t) n);
}


/* a bad bid is an error, one that is of no use is not */

static int
kx_protocol_read_bid(kx_preload_answer_t *a, kx_json_t *j,
    const kx_str_t *placements, unsigned nplacements)
{
    char             code[KX_MAX_CODE + 1];
    ssize_t          len;
    unsigned         i, n;
    kx_bid_t         bid;
    kx_named_t       m;
    const kx_str_t  *value;

    m.names = kx_bid_members;

    if (kx_protocol_members(&m, j) != KX_OK
        || kx_protocol_read_uuid(bid.id, &m.values[KX_BID_ID]) != KX_OK)
    {
        return KX_ERROR;
    }

    value = &m.values[KX_BID_CODE];

    if (value->len == 0 || value->data[0] != '"') {
        return KX_ERROR;
    }

    /* what is too long for a placement is none */

    len = kx_protocol_string(value, code, sizeof(code));
    n = (nplacements < KX_MAX_BIDS) ? nplacements : KX_MAX_BIDS;

    for (i = 0; i < n; i++) {
        if (len > 0 && placements[i].len == (size_t) len
            && memcmp(placements[i].data, code, placements[i].len) == 0)
        {
            break;
        }
    }

    if (i == n) {
        return KX_OK;
    }

    bid.placement = i;
    bid.revenue = kx_protocol_revenue(&m.values[KX_BID_REVENUE]);

    for (i = 0; i < a->nbids; i++) {
        if (a->bids[i].placement == bid.placement) {
            return KX_OK;
        }
    }

    a->bids[a->nbids++] = bid;

    return KX_OK;
}


static double
kx_protocol_revenue(const kx_str_t *value)
{
    char     buf[KX_MAX_NUMBER_LEN + 1], *end;
    double   revenue;
    ssize_t  n;

    if (value->len && value->data[0] == '"') {
        n = kx_protocol_string(value, buf, sizeof(buf));

        /* no blanks, hexadecimals and names, which strtod() also takes */

        if (n <= 0 || n > KX_MAX_REVENUE_LEN
            || strspn(buf, "0123456789.eE+-") != (size_t) n)
        {
            return -1;
        }

        revenue = strtod(buf, &end);

        if (*end != '\0') {
            return -1;
        }

    } else if (kx_protocol_number(value, &revenue) != KX_OK) {
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
kx_protocol_classify(kx_preload_answer_t *a, const kx_named_t *m,
    unsigned track_only)
{
    const kx_str_t  *error;

    error = &m->values[KX_PRELOAD_ERROR];

    if (error->len || !a->has_session) {

        if (kx_protocol_true(&m->values[KX_PRELOAD_PERMANENT])) {
            a->disable = 1;

            if (error->len == 0) {
                kx_protocol_outcome(a, KX_AD_ERROR, "session_disabled");
                return;
            }
        }

        kx_protocol_code(a, KX_AD_ERROR, error);
        return;
    }

    if (kx_protocol_true(&m->values[KX_PRELOAD_SKIP])) {
        kx_protocol_code(a, KX_AD_NO_FILL, &m->values[KX_PRELOAD_SKIP_CODE]);
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

static void
kx_protocol_code(kx_preload_answer_t *a, kx_ad_outcome_e outcome,
    const kx_str_t *value)
{
    char     code[KX_MAX_CODE + 1];
    ssize_t  n;

    static const char  allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                   "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789_.:-";

    n = kx_protocol_string(value, code, sizeof(code));

    kx_protocol_outcome(a, outcome,
                        (n > 0 && strspn(code, allowed) == (size_t) n)
                        ? code : "unknown");
}
