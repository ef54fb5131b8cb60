/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Answers of an ad server.  The first two bytes choose the HTTP status and
 * the conditions, the rest is the body.
 */


#include <math.h>
#include <stdlib.h>
#include <cjson/cJSON.h>

#include "protocol.h"


#define FUZZ_TRACK_ONLY  1
#define FUZZ_PLACEMENTS  7           /* a mask, after a shift by one */


int LLVMFuzzerTestOneInput(const unsigned char *p, size_t len);
static void fuzz_preload(unsigned status, unsigned flags,
    const unsigned char *p, size_t len);
static void fuzz_member(const kx_preload_answer_t *a, kx_str_t *placements);
static void fuzz_init(unsigned status, const unsigned char *p, size_t len);
static void fuzz_check(int ok);


int
LLVMFuzzerTestOneInput(const unsigned char *p, size_t len)
{
    unsigned              flags, status;
    unsigned char        *body;

    static const unsigned  statuses[] = {
        200, 200, 200, 200, 0, 201, 204, 299, 300, 400, 429, 500
    };

    if (len < 2) {
        return 0;
    }

    status = statuses[p[0] % (sizeof(statuses) / sizeof(unsigned))];
    flags = p[1];

    p += 2;
    len -= 2;

    /* of exactly this size, for the sanitizer's sake */

    body = malloc(len ? len : 1);
    if (body == NULL) {
        return 0;
    }

    memcpy(body, p, len);

    fuzz_preload(status, flags, body, len);
    fuzz_init(status, body, len);

    /* the input is what it was */

    fuzz_check(memcmp(body, p, len) == 0);

    free(body);

    return 0;
}


static void
fuzz_preload(unsigned status, unsigned flags, const unsigned char *p,
    size_t len)
{
    size_t               n;
    unsigned             i, k, nplacements;
    kx_preload_answer_t  a;

    static kx_str_t    placements[] = {
        kx_string("inlineAd"), kx_string("a"), kx_string("b"),
        kx_string(""), kx_string("c"), kx_string("inlineAd")
    };
    static const char  allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                   "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789_.:-";

    nplacements = flags >> 1 & FUZZ_PLACEMENTS;

    if (nplacements > sizeof(placements) / sizeof(kx_str_t)) {
        nplacements = 1;
    }

    memset(&a, 0xff, sizeof(kx_preload_answer_t));

    kx_protocol_preload_answer(&a, status, p, len, placements, nplacements,
                               flags & FUZZ_TRACK_ONLY);

    fuzz_check(memchr(a.code, '\0', sizeof(a.code)) != NULL);

    n = strlen(a.code);

    fuzz_check(strspn(a.code, allowed) == n);
    fuzz_check(a.transport == (status == 0));
    fuzz_check(a.nbids <= KX_MAX_BIDS);

    switch (a.outcome) {

    case KX_AD_FILLED:
        fuzz_check(status >= 200 && status < 300 && status != 204);
        fuzz_check(!(flags & FUZZ_TRACK_ONLY));
        fuzz_check(a.nbids > 0 && a.has_session && !a.disable);
        fuzz_check(len <= KX_MAX_ANSWER);
        break;

    case KX_AD_NO_FILL:
        fuzz_check(n > 0 && a.nbids == 0 && !a.disable);
        fuzz_check(a.has_session || status == 204);
        break;

    case KX_AD_ERROR:
        fuzz_check(n > 0 && a.nbids == 0);
        fuzz_check(!a.has_session || (status >= 200 && status < 300));
        break;

    default:
        fuzz_check(0);
    }

    for (i = 0; i < a.nbids; i++) {
        fuzz_check(a.bids[i].placement < nplacements
                   && a.bids[i].placement < KX_MAX_BIDS);
        fuzz_check(isfinite(a.bids[i].revenue));

        for (k = 0; k < i; k++) {
            fuzz_check(a.bids[k].placement != a.bids[i].placement);
        }
    }

    if (a.outcome == KX_AD_FILLED) {
        fuzz_member(&a, placements);
    }
}


static void
fuzz_member(const kx_preload_answer_t *a, kx_str_t *placements)
{
    cJSON          *root;
    kx_ad_t         ad;
    kx_bid_t        bids[KX_MAX_BIDS];
    unsigned char   buf[KX_MAX_MEMBER], *p, *last;

    memset(&ad, 0, sizeof(kx_ad_t));
    memcpy(bids, a->bids, sizeof(bids));

    ad.placements = placements;
    ad.bids = bids;
    ad.nbids = a->nbids;

    last = kx_protocol_member(buf, buf + sizeof(buf), &ad);
    fuzz_check(last != NULL);

    for (p = buf; p < last; p++) {
        fuzz_check(*p >= ' ' && *p < 0x7f);
    }

    root = cJSON_ParseWithLength((char *) buf, (size_t) (last - buf));
    fuzz_check(root != NULL);

    cJSON_Delete(root);
}


static void
fuzz_init(unsigned status, const unsigned char *p, size_t len)
{
    kx_init_answer_t  a;

    memset(&a, 0xff, sizeof(kx_init_answer_t));

    kx_protocol_init_answer(&a, status, p, len);

    fuzz_check(!(a.applied && a.failed));
    fuzz_check(a.preload_timeout <= 600000);
    fuzz_check(a.failed || status != 0);

    if (!a.applied) {
        fuzz_check(a.enabled && a.report_errors && !a.report_debug
                   && a.preload_timeout == 0);
    }
}


static void
fuzz_check(int ok)
{
    if (!ok) {
        abort();
    }
}
