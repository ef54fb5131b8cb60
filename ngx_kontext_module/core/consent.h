/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Whether a user has said no, and what then becomes of an ad request.
 *
 * The signals: IAB TCF 2 (gdpr and its string), IAB GPP (with the sections
 * TCF, TCF Canada, US Privacy, US National and those of states), US Privacy,
 * COPPA, and the header Sec-GPC of the Global Privacy Control.  A string that
 * is there and cannot be read is a signal of its own: it says neither.
 */


#ifndef _KX_CONSENT_H_INCLUDED_
#define _KX_CONSENT_H_INCLUDED_


#include "protocol.h"


typedef enum {
    KX_SIGNAL_GDPR = 0,
    KX_SIGNAL_GPP,
    KX_SIGNAL_US_PRIVACY,
    KX_SIGNAL_COPPA,
    KX_SIGNAL_GPC,
    KX_SIGNAL_UNREADABLE             /* one of the three strings */
} kx_signal_e;

#define KX_SIGNALS  (KX_SIGNAL_UNREADABLE + 1)


/* what is done after a no, the strictest last */

typedef enum {
    KX_CONSENT_ASK = 0,
    KX_CONSENT_ANONYMOUS,            /* ask, but do not say for whom */
    KX_CONSENT_SKIP                  /* do not ask */
} kx_consent_e;


typedef struct {
    kx_consent_e         actions[KX_SIGNALS];
    unsigned             vendor;     /* whose consent TCF has to have, or 0 */
} kx_consent_conf_t;


/* what an anonymous request has in place of ids */

typedef struct {
    unsigned char        user[KX_MESSAGE_ID_LEN];
    unsigned char        conversation[KX_MESSAGE_ID_LEN];
    unsigned char        messages[KX_MAX_MESSAGES][4];
} kx_alias_t;


/*
 * The signals that say no, a bit (1 << KX_SIGNAL_GDPR ...) for each; vendor is
 * an id of the IAB's Global Vendor List, or 0.
 */
unsigned kx_consent_denied(const kx_regulatory_t *g, unsigned gpc,
    unsigned vendor);

/* The strictest of the actions of the signals that say no. */
kx_consent_e kx_consent(const kx_consent_conf_t *conf,
    const kx_regulatory_t *g, unsigned gpc);

/*
 * Takes out of a request what it can be told by whose it is: the ids of user,
 * installation, conversation, session and messages, the e-mail address, the
 * variant, the user agent, versions and sizes.  random has 2 * KX_ID_LEN bytes
 * which nobody can guess; alias lives as long as the request.  The user is
 * another one each time.
 */
void kx_consent_anonymise(kx_ad_request_t *ar, kx_alias_t *alias,
    const unsigned char *random);


#endif /* _KX_CONSENT_H_INCLUDED_ */
