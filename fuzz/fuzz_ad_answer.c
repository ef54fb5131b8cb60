/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The answers of an ad server.  The first byte is for what is asked, the rest
 * is the body; what comes out must be what a tree of the same text says.
 */


#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "hash.h"
#include "json_scan.h"
#include "protocol.h"
#include "tree.h"


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void fuzz_preload(const uint8_t *p, size_t len, unsigned track_only);
static int fuzz_bids(const cJSON *root, kx_bid_t bids[KX_MAX_BIDS],
    unsigned *nbids);
static int fuzz_uuid(unsigned char id[KX_ID_LEN], const cJSON *item);
static double fuzz_revenue(const cJSON *item);
static unsigned fuzz_code(const kx_preload_answer_t *a, const cJSON *item);
static void fuzz_init(const uint8_t *p, size_t len);
static unsigned fuzz_flag(const cJSON *root, const char *name,
    unsigned missing);


static const kx_str_t  fuzz_placements[] = {
    kx_string("inlineAd"),
    kx_string("b")
};


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    unsigned char  *body;

    if (len < 1) {
        return 0;
    }

    /* of exactly this size, for the sanitizer's sake */

    body = malloc(len);
    check(body != NULL);

    memcpy(body, p + 1, len - 1);

    fuzz_preload(body, len - 1, p[0] & 1);
    fuzz_init(body, len - 1);

    free(body);

    return 0;
}


static void
fuzz_preload(const uint8_t *p, size_t len, unsigned track_only)
{
    int                   rc;
    cJSON                *root;
    unsigned              i, nbids, session, error;
    kx_bid_t              bids[KX_MAX_BIDS];
    const cJSON          *item;
    unsigned char         id[KX_ID_LEN];
    kx_preload_answer_t   a;

    kx_protocol_preload_answer(&a, 200, p, len, fuzz_placements, 2,
                               track_only);

    check(a.nbids <= 2 && (a.nbids > 0) == (a.outcome == KX_AD_FILLED));
    check(memchr(a.code, '\0', sizeof(a.code)) != NULL);
    check((a.code[0] == '\0') == (a.outcome == KX_AD_FILLED));

    rc = kx_tree_read(&root, p, len, 1);

    if (rc != KX_OK && kx_json_plain(p, len)) {

        /* a tree has bounds of its own */

        return;
    }

    nbids = 0;
    session = 0;

    if (rc == KX_OK && cJSON_IsObject(root)) {
        item = kx_tree_get(root, "sessionId");
        session = (item != NULL);

        if (session) {
            rc = fuzz_uuid(id, item);
        }

        if (rc == KX_OK) {
            rc = fuzz_bids(root, bids, &nbids);
        }

    } else {
        rc = KX_DECLINED;
    }

    if (rc != KX_OK) {
        check(a.failed && a.outcome == KX_AD_ERROR && !a.has_session);
        check(strcmp(a.code, "request_failed") == 0);

        cJSON_Delete(root);
        return;
    }

    check(!a.failed && a.has_session == session);
    check(!session || memcmp(a.session, id, KX_ID_LEN) == 0);

    item = kx_tree_get(root, "errCode");
    error = (item != NULL || !session);

    check(a.disable
          == (error && cJSON_IsTrue(kx_tree_get(root, "permanent"))));

    if (error) {
        check(a.outcome == KX_AD_ERROR);
        check((a.disable && item == NULL)
              ? strcmp(a.code, "session_disabled") == 0
              : fuzz_code(&a, item));

    } else if (cJSON_IsTrue(kx_tree_get(root, "skip"))) {
        check(a.outcome == KX_AD_NO_FILL);
        check(fuzz_code(&a, kx_tree_get(root, "skipCode")));

    } else if (nbids == 0 || track_only) {
        check(a.outcome == KX_AD_NO_FILL);
        check(strcmp(a.code, nbids ? "track_only" : "unfilled_bid") == 0);

    } else {
        check(a.outcome == KX_AD_FILLED && a.nbids == nbids);

        for (i = 0; i < nbids; i++) {
            check(memcmp(a.bids[i].id, bids[i].id, KX_ID_LEN) == 0);
            check(a.bids[i].placement == bids[i].placement);
            check(a.bids[i].revenue == bids[i].revenue);
        }
    }

    cJSON_Delete(root);
}


static int
fuzz_bids(const cJSON *root, kx_bid_t bids[KX_MAX_BIDS], unsigned *nbids)
{
    unsigned      i, placement;
    kx_bid_t      bid;
    const char   *code;
    const cJSON  *list, *item;

    list = kx_tree_get(root, "bids");

    if (list == NULL) {
        return KX_OK;
    }

    if (!cJSON_IsArray(list)) {
        return KX_DECLINED;
    }

    cJSON_ArrayForEach(item, list) {
        code = cJSON_GetStringValue(kx_tree_get(item, "code"));

        if (!cJSON_IsObject(item)
            || fuzz_uuid(bid.id, kx_tree_get(item, "bidId")) != KX_OK
            || code == NULL)
        {
            return KX_DECLINED;
        }

        for (placement = 0; placement < 2; placement++) {
            if (strcmp((char *) fuzz_placements[placement].data, code) == 0) {
                break;
            }
        }

        for (i = 0; i < *nbids && bids[i].placement != placement; i++) {
            /* void */
        }

        if (placement < 2 && i == *nbids) {
            bid.placement = placement;
            bid.revenue = fuzz_revenue(kx_tree_get(item, "revenue"));
            bids[(*nbids)++] = bid;
        }
    }

    return KX_OK;
}


static int
fuzz_uuid(unsigned char id[KX_ID_LEN], const cJSON *item)
{
    const char  *s;

    s = cJSON_GetStringValue(item);

    return s ? kx_uuid_parse(id, (const unsigned char *) s, strlen(s))
             : KX_DECLINED;
}


static double
fuzz_revenue(const cJSON *item)
{
    char        *end;
    double       revenue;
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s != NULL) {
        revenue = strtod(s, &end);

        if (*s == '\0' || *end != '\0' || strlen(s) > 32
            || strspn(s, "0123456789.eE+-") != strlen(s))
        {
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

    return revenue + 0.0;
}


static unsigned
fuzz_code(const kx_preload_answer_t *a, const cJSON *item)
{
    size_t       i;
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL || *s == '\0' || strlen(s) > KX_MAX_CODE) {
        s = "unknown";
    }

    for (i = 0; s[i] != '\0'; i++) {
        if (!((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z')
              || (s[i] >= '0' && s[i] <= '9') || s[i] == '_' || s[i] == '.'
              || s[i] == ':' || s[i] == '-'))
        {
            s = "unknown";
            break;
        }
    }

    return strcmp(a->code, s) == 0;
}


static void
fuzz_init(const uint8_t *p, size_t len)
{
    cJSON             *root;
    const cJSON       *item;
    kx_init_answer_t   a;

    kx_protocol_init_answer(&a, 200, p, len);

    check(a.applied + a.failed == (len > 0));
    check(a.applied || (a.enabled && a.report_errors && !a.report_debug));

    if (kx_tree_read(&root, p, len, 1) != KX_OK) {
        check(!a.applied || kx_json_plain(p, len));
        return;
    }

    check(a.applied == (cJSON_IsObject(root) != 0));

    if (a.applied) {
        check(a.enabled == fuzz_flag(root, "enabled", 1));
        check(a.report_errors == fuzz_flag(root, "reportErrors", 1));
        check(a.report_debug == fuzz_flag(root, "reportDebug", 0));

        item = kx_tree_get(root, "preloadTimeout");

        check(a.preload_timeout == 0
              || (cJSON_IsNumber(item)
                  && item->valuedouble == a.preload_timeout));
    }

    cJSON_Delete(root);
}


static unsigned
fuzz_flag(const cJSON *root, const char *name, unsigned missing)
{
    const cJSON  *item;

    item = kx_tree_get(root, name);

    return cJSON_IsBool(item) ? (cJSON_IsTrue(item) != 0) : missing;
}
