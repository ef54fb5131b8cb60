/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Consent strings.  Flags, a vendor and the number of a section are followed
 * by a TCF, a GPP and a US Privacy string, with a zero between them:
 *
 *   - Nothing is read beyond the end of a string.
 *   - What they say is no action, or the strictest of those of its signals.
 *   - A header Sec-GPC adds one signal and changes no other.
 *   - Who asks for a vendor, too, is told no where he was without.
 */


#include <stdlib.h>

#include "check.h"
#include "consent.h"


static kx_str_t piece(const unsigned char **p, const unsigned char *last);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


/* a string of its own, of exactly its size */

static kx_str_t
piece(const unsigned char **p, const unsigned char *last)
{
    kx_str_t              s;
    const unsigned char  *start;

    for (start = *p; *p < last && **p; (*p)++) {
        /* void */
    }

    s.len = (size_t) (*p - start);
    s.data = malloc(s.len ? s.len : 1);
    check(s.data != NULL);

    if (s.len) {
        memcpy(s.data, start, s.len);
    }

    if (*p < last) {
        (*p)++;
    }

    return s;
}


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    int                   sid;
    unsigned              i, denied, strict, flags, vendor;
    kx_consent_e          action;
    kx_regulatory_t       g;
    kx_consent_conf_t     conf;
    const unsigned char  *last;

    if (len < 3) {
        return 0;
    }

    last = p + len;
    flags = p[0];
    vendor = p[1];
    sid = p[2];
    p += 3;

    memset(&g, 0, sizeof(kx_regulatory_t));

    g.gdpr = (int) (flags & 3) - 1;
    g.coppa = (flags & 4) ? 1 : 0;
    g.gpp_sid = &sid;
    g.ngpp_sid = (flags & 8) ? 1 : 0;
    g.gdpr_consent = piece(&p, last);
    g.gpp = piece(&p, last);
    g.us_privacy = piece(&p, last);

    denied = kx_consent_denied(&g, 0, vendor);

    check(denied < 1u << KX_SIGNALS);
    check(kx_consent_denied(&g, 1, vendor) == (denied | 1 << KX_SIGNAL_GPC));
    check(!(denied & 1 << KX_SIGNAL_COPPA) == !(flags & 4));
    check(g.gdpr != 0 || !(denied & 1 << KX_SIGNAL_GDPR));

    conf.vendor = vendor;
    strict = KX_CONSENT_ASK;

    for (i = 0; i < KX_SIGNALS; i++) {
        conf.actions[i] = (kx_consent_e) ((flags >> (i % 4)) % 3);

        if ((denied & 1u << i) && conf.actions[i] > strict) {
            strict = conf.actions[i];
        }
    }

    action = kx_consent(&conf, &g, 0);

    check(action == strict);

    /* a yes of this vendor's is one for all the others, too */

    if (!(denied & (1 << KX_SIGNAL_GDPR | 1 << KX_SIGNAL_UNREADABLE))) {
        check(!(kx_consent_denied(&g, 0, 0) & 1 << KX_SIGNAL_GDPR));
    }

    free(g.gdpr_consent.data);
    free(g.gpp.data);
    free(g.us_privacy.data);

    return 0;
}
