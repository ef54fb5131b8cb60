/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "consent.h"
#include "hash.h"


#define KX_CONSENT_MAX_SECTIONS  32  /* of a GPP string */

#define KX_TCF_VERSION       2
#define KX_TCF_CONSENTS      152     /* bits: where its purposes are */
#define KX_TCF_ONE           200     /* purpose 1 was not asked for */
#define KX_TCF_VENDORS       213
#define KX_TCFCA_EXPRESS     151
#define KX_TCFCA_IMPLIED     175

#define KX_GPP_TYPE          3
#define KX_GPP_TCFEU         2
#define KX_GPP_TCFCA         5
#define KX_GPP_USP           6
#define KX_GPP_GPC           1       /* type of a segment */


/* what a string says */

typedef enum {
    KX_SAYS_YES = 0,
    KX_SAYS_NO,
    KX_SAYS_NOTHING                  /* it cannot be read */
} kx_says_e;


/* base64url, read bit by bit; failed once there are none */

typedef struct {
    const unsigned char  *text;
    size_t                len;
    size_t                bit;
    unsigned              failed:1;
} kx_bits_t;


/* a section that a GPP string has */

typedef struct {
    unsigned              id;
    kx_str_t              text;
} kx_gpp_part_t;


/* a section of US states: where its fields "opt out" are, of two bits each */

typedef struct {
    unsigned              id;
    unsigned              bit;
    unsigned              n;
} kx_gpp_section_t;


static unsigned kx_consent_signal(kx_says_e says, kx_signal_e signal);
static kx_says_e kx_tcf_says(const kx_str_t *s, unsigned vendor);
static unsigned kx_tcf_vendor(kx_bits_t *b, unsigned vendor);
static kx_says_e kx_tcfca_says(const kx_str_t *s);
static kx_says_e kx_usp_says(const kx_str_t *s);
static kx_says_e kx_gpp_says(const kx_regulatory_t *g, unsigned vendor);
static unsigned kx_gpp_read(const kx_str_t *gpp, kx_gpp_part_t *parts);
static unsigned kx_gpp_ids(const kx_str_t *header, unsigned *ids);
static unsigned kx_gpp_fibonacci(kx_bits_t *b);
static unsigned kx_gpp_applies(const kx_regulatory_t *g, unsigned id);
static const kx_str_t *kx_gpp_find(const kx_gpp_part_t *parts, unsigned n,
    unsigned id);
static kx_says_e kx_gpp_section_says(unsigned id, const kx_str_t *s,
    unsigned vendor);
static kx_says_e kx_gpp_state_says(const kx_gpp_section_t *section,
    const kx_str_t *s);
static unsigned kx_consent_next(kx_str_t *rest, unsigned char delimiter,
    kx_str_t *item);
static void kx_bits_init(kx_bits_t *b, const kx_str_t *s);
static unsigned kx_bits_get(kx_bits_t *b, unsigned n);
static unsigned kx_bits_at(kx_bits_t *b, size_t bit, unsigned n);
static void kx_consent_id(kx_str_t *dst, unsigned char *p,
    const unsigned char *random);


/* IAB "GPP Extension" documents, the core segments of version 1 */

static const kx_gpp_section_t  kx_gpp_sections[] = {
    { 7, 18, 3 },                    /* national */
    { 8, 12, 2 },                    /* California */
    { 9, 12, 2 },                    /* Virginia */
    { 10, 12, 2 },                   /* Colorado */
    { 11, 14, 2 },                   /* Utah */
    { 12, 12, 2 },                   /* Connecticut */
    { 13, 12, 2 },                   /* Florida */
    { 14, 12, 2 },                   /* Montana */
    { 15, 12, 2 },                   /* Oregon */
    { 16, 12, 2 },                   /* Texas */
    { 17, 12, 2 },                   /* Delaware */
    { 18, 14, 2 },                   /* Iowa */
    { 19, 12, 2 },                   /* Nebraska */
    { 20, 12, 2 },                   /* New Hampshire */
    { 21, 12, 2 },                   /* New Jersey */
    { 22, 12, 2 },                   /* Tennessee */
    { 0, 0, 0 }
};


unsigned
kx_consent_denied(const kx_regulatory_t *g, unsigned gpc, unsigned vendor)
{
    unsigned         n, denied;
    kx_gpp_part_t    parts[KX_CONSENT_MAX_SECTIONS];
    const kx_str_t  *consent;

    denied = 0;
    consent = &g->gdpr_consent;

    if (g->gdpr == 1 && consent->len == 0) {

        /* it may have been given in the other string */

        n = kx_gpp_read(&g->gpp, parts);

        consent = (n <= KX_CONSENT_MAX_SECTIONS)
                  ? kx_gpp_find(parts, n, KX_GPP_TCFEU) : NULL;
    }

    if (consent == NULL) {
        denied |= 1 << KX_SIGNAL_GDPR;

    } else if (g->gdpr != 0 && consent->len) {
        denied |= kx_consent_signal(kx_tcf_says(consent, vendor),
                                    KX_SIGNAL_GDPR);
    }

    if (g->gpp.len || g->ngpp_sid) {
        denied |= kx_consent_signal(kx_gpp_says(g, vendor), KX_SIGNAL_GPP);
    }

    if (g->us_privacy.len) {
        denied |= kx_consent_signal(kx_usp_says(&g->us_privacy),
                                    KX_SIGNAL_US_PRIVACY);
    }

    if (g->coppa == 1) {
        denied |= 1 << KX_SIGNAL_COPPA;
    }

    if (gpc) {
        denied |= 1 << KX_SIGNAL_GPC;
    }

    return denied;
}


static unsigned
kx_consent_signal(kx_says_e says, kx_signal_e signal)
{
    switch (says) {

    case KX_SAYS_NO:
        return 1 << signal;

    case KX_SAYS_NOTHING:
        return 1 << KX_SIGNAL_UNREADABLE;

    default:
        return 0;
    }
}


kx_consent_e
kx_consent(const kx_consent_conf_t *conf, const kx_regulatory_t *g,
    unsigned gpc)
{
    unsigned      i, denied;
    kx_consent_e  action;

    denied = kx_consent_denied(g, gpc, conf->vendor);
    action = KX_CONSENT_ASK;

    for (i = 0; denied; denied >>= 1, i++) {
        if ((denied & 1) && conf->actions[i] > action) {
            action = conf->actions[i];
        }
    }

    return action;
}


/* IAB TCF 2.2: purpose 1 is to store, purpose 2 is to select basic ads */

static kx_says_e
kx_tcf_says(const kx_str_t *s, unsigned vendor)
{
    unsigned   one, consents;
    kx_str_t   rest, core;
    kx_bits_t  b;

    rest = *s;
    (void) kx_consent_next(&rest, '.', &core);

    kx_bits_init(&b, &core);

    if (kx_bits_get(&b, 6) != KX_TCF_VERSION) {
        return KX_SAYS_NOTHING;
    }

    consents = kx_bits_at(&b, KX_TCF_CONSENTS, 2);
    one = kx_bits_at(&b, KX_TCF_ONE, 1);

    if (b.failed) {
        return KX_SAYS_NOTHING;
    }

    if (!(consents & 1) || !((consents & 2) || one)) {
        return KX_SAYS_NO;
    }

    if (vendor && !kx_tcf_vendor(&b, vendor)) {
        return b.failed ? KX_SAYS_NOTHING : KX_SAYS_NO;
    }

    return KX_SAYS_YES;
}


static unsigned
kx_tcf_vendor(kx_bits_t *b, unsigned vendor)
{
    unsigned  n, first, last;

    if (vendor > kx_bits_at(b, KX_TCF_VENDORS, 16)) {
        return 0;
    }

    if (!kx_bits_get(b, 1)) {
        return kx_bits_at(b, b->bit + vendor - 1, 1);
    }

    for (n = kx_bits_get(b, 12); n > 0 && !b->failed; n--) {
        last = kx_bits_get(b, 1);
        first = kx_bits_get(b, 16);
        last = last ? kx_bits_get(b, 16) : first;

        if (vendor >= first && vendor <= last) {
            return 1;
        }
    }

    return 0;
}


/* IAB TCF Canada: a purpose has express consent, or an implied one */

static kx_says_e
kx_tcfca_says(const kx_str_t *s)
{
    unsigned   consents;
    kx_str_t   rest, core;
    kx_bits_t  b;

    rest = *s;
    (void) kx_consent_next(&rest, '.', &core);

    kx_bits_init(&b, &core);

    if (kx_bits_get(&b, 6) == 0) {
        return KX_SAYS_NOTHING;
    }

    consents = kx_bits_at(&b, KX_TCFCA_EXPRESS, 2)
               | kx_bits_at(&b, KX_TCFCA_IMPLIED, 2);

    if (b.failed) {
        return KX_SAYS_NOTHING;
    }

    return (consents == 3) ? KX_SAYS_YES : KX_SAYS_NO;
}


/* IAB US Privacy: "1YNN", the third character is the sale opted out of? */

static kx_says_e
kx_usp_says(const kx_str_t *s)
{
    size_t         i;
    unsigned char  c;

    if (s->len != 4 || s->data[0] != '1') {
        return KX_SAYS_NOTHING;
    }

    for (i = 1; i < 4; i++) {
        c = s->data[i];

        if (c != 'Y' && c != 'N' && c != '-' && c != 'y' && c != 'n') {
            return KX_SAYS_NOTHING;
        }
    }

    return (s->data[2] == 'Y' || s->data[2] == 'y') ? KX_SAYS_NO : KX_SAYS_YES;
}


static kx_says_e
kx_gpp_says(const kx_regulatory_t *g, unsigned vendor)
{
    unsigned       i, n;
    kx_says_e      says, one;
    kx_gpp_part_t  parts[KX_CONSENT_MAX_SECTIONS];

    n = kx_gpp_read(&g->gpp, parts);

    if (n > KX_CONSENT_MAX_SECTIONS) {
        return KX_SAYS_NOTHING;
    }

    says = KX_SAYS_YES;

    for (i = 0; i < n; i++) {

        if (!kx_gpp_applies(g, parts[i].id)) {
            continue;
        }

        one = kx_gpp_section_says(parts[i].id, &parts[i].text, vendor);

        if (one == KX_SAYS_NO) {
            return KX_SAYS_NO;
        }

        if (one == KX_SAYS_NOTHING) {
            says = KX_SAYS_NOTHING;
        }
    }

    /* one that applies and is not there */

    for (i = 0; i < g->ngpp_sid; i++) {
        if (g->gpp_sid[i] > 0
            && kx_gpp_find(parts, n, (unsigned) g->gpp_sid[i]) == NULL)
        {
            says = KX_SAYS_NOTHING;
        }
    }

    return says;
}


/* the sections of a string, or more than there can be: it cannot be read */

static unsigned
kx_gpp_read(const kx_str_t *gpp, kx_gpp_part_t *parts)
{
    unsigned  i, n, ids[KX_CONSENT_MAX_SECTIONS];
    kx_str_t  rest, header;

    if (gpp->len == 0) {
        return 0;
    }

    rest = *gpp;

    (void) kx_consent_next(&rest, '~', &header);

    n = kx_gpp_ids(&header, ids);

    for (i = 0; i < n && n <= KX_CONSENT_MAX_SECTIONS; i++) {
        parts[i].id = ids[i];

        if (!kx_consent_next(&rest, '~', &parts[i].text)) {
            return KX_CONSENT_MAX_SECTIONS + 1;
        }
    }

    return rest.len ? KX_CONSENT_MAX_SECTIONS + 1 : n;
}


/* the sections of a header, or more than there can be: it cannot be read */

static unsigned
kx_gpp_ids(const kx_str_t *header, unsigned *ids)
{
    unsigned   n, items, id, last, range;
    kx_bits_t  b;

    kx_bits_init(&b, header);

    if (kx_bits_get(&b, 6) != KX_GPP_TYPE || kx_bits_get(&b, 6) != 1) {
        return KX_CONSENT_MAX_SECTIONS + 1;
    }

    items = kx_bits_get(&b, 12);
    last = 0;
    n = 0;

    while (items--) {
        range = kx_bits_get(&b, 1);

        id = last + kx_gpp_fibonacci(&b);
        last = range ? id + kx_gpp_fibonacci(&b) : id;

        if (b.failed || last - id >= KX_CONSENT_MAX_SECTIONS) {
            return KX_CONSENT_MAX_SECTIONS + 1;
        }

        for ( /* void */ ; id <= last; id++) {

            if (n == KX_CONSENT_MAX_SECTIONS) {
                return KX_CONSENT_MAX_SECTIONS + 1;
            }

            ids[n++] = id;
        }
    }

    return b.failed ? KX_CONSENT_MAX_SECTIONS + 1 : n;
}


/* a sum of Fibonacci numbers, which two bits in a row end */

static unsigned
kx_gpp_fibonacci(kx_bits_t *b)
{
    unsigned  bit, before, value, one, two, i;

    value = 0;
    before = 0;
    one = 1;
    two = 2;

    for (i = 0; i < 24; i++) {
        bit = kx_bits_get(b, 1);

        if (bit && before) {
            return value;
        }

        if (bit) {
            value += one;
        }

        before = bit;

        two += one;
        one = two - one;
    }

    b->failed = 1;

    return 0;
}


/* what is not known to apply might */

static unsigned
kx_gpp_applies(const kx_regulatory_t *g, unsigned id)
{
    unsigned  i;

    for (i = 0; i < g->ngpp_sid; i++) {
        if (g->gpp_sid[i] >= 0 && (unsigned) g->gpp_sid[i] == id) {
            return 1;
        }
    }

    return g->ngpp_sid == 0;
}


static const kx_str_t *
kx_gpp_find(const kx_gpp_part_t *parts, unsigned n, unsigned id)
{
    unsigned  i;

    for (i = 0; i < n; i++) {
        if (parts[i].id == id) {
            return &parts[i].text;
        }
    }

    return NULL;
}


static kx_says_e
kx_gpp_section_says(unsigned id, const kx_str_t *s, unsigned vendor)
{
    const kx_gpp_section_t  *section;

    switch (id) {

    case KX_GPP_TCFEU:
        return kx_tcf_says(s, vendor);

    case KX_GPP_TCFCA:
        return kx_tcfca_says(s);

    case KX_GPP_USP:
        return kx_usp_says(s);
    }

    for (section = kx_gpp_sections; section->id; section++) {
        if (section->id == id) {
            return kx_gpp_state_says(section, s);
        }
    }

    /* one that nobody knows here */

    return KX_SAYS_NOTHING;
}


static kx_says_e
kx_gpp_state_says(const kx_gpp_section_t *section, const kx_str_t *s)
{
    unsigned   i;
    kx_str_t   rest, segment;
    kx_bits_t  b;

    rest = *s;
    (void) kx_consent_next(&rest, '.', &segment);

    kx_bits_init(&b, &segment);

    for (i = 0; i < section->n; i++) {
        if (kx_bits_at(&b, section->bit + 2 * i, 2) == 1) {
            return KX_SAYS_NO;
        }
    }

    if (b.failed) {
        return KX_SAYS_NOTHING;
    }

    while (kx_consent_next(&rest, '.', &segment)) {
        kx_bits_init(&b, &segment);

        if (kx_bits_get(&b, 2) == KX_GPP_GPC && kx_bits_get(&b, 1)) {
            return KX_SAYS_NO;
        }
    }

    return KX_SAYS_YES;
}


/* takes what is in front of a delimiter off a string */

static unsigned
kx_consent_next(kx_str_t *rest, unsigned char delimiter, kx_str_t *item)
{
    size_t  n;

    *item = *rest;

    if (rest->len == 0) {
        return 0;
    }

    for (n = 0; n < rest->len && rest->data[n] != delimiter; n++) {
        /* void */
    }

    item->len = n;

    if (n < rest->len) {
        n++;
    }

    rest->data += n;
    rest->len -= n;

    return 1;
}


static void
kx_bits_init(kx_bits_t *b, const kx_str_t *s)
{
    b->text = s->data;
    b->len = s->len;
    b->bit = 0;
    b->failed = 0;
}


static unsigned
kx_bits_get(kx_bits_t *b, unsigned n)
{
    unsigned       value, bits;
    unsigned char  c;

    value = 0;

    while (n--) {

        if (b->failed || b->bit / 6 >= b->len) {
            b->failed = 1;
            return 0;
        }

        c = b->text[b->bit / 6];

        if (c >= 'A' && c <= 'Z') {
            bits = c - 'A';

        } else if (c >= 'a' && c <= 'z') {
            bits = c - 'a' + 26u;

        } else if (c >= '0' && c <= '9') {
            bits = c - '0' + 52u;

        } else if (c == '-') {
            bits = 62;

        } else if (c == '_') {
            bits = 63;

        } else {
            b->failed = 1;
            return 0;
        }

        value = value << 1 | (bits >> (5 - b->bit % 6) & 1);
        b->bit++;
    }

    return value;
}


static unsigned
kx_bits_at(kx_bits_t *b, size_t bit, unsigned n)
{
    b->bit = bit;

    return kx_bits_get(b, n);
}


void
kx_consent_anonymise(kx_ad_request_t *ar, kx_alias_t *alias,
    const unsigned char *random)
{
    unsigned        i, n;
    unsigned char  *p;
    const kx_str_t  empty = { 0, NULL };

    kx_consent_id(&ar->user_id, alias->user, random);
    kx_consent_id(&ar->conversation_id, alias->conversation,
                  random + KX_ID_LEN);

    ar->has_session = 0;
    memset(ar->session, 0, KX_ID_LEN);

    ar->install_id = empty;
    ar->user_email = empty;
    ar->variant_id = empty;

    ar->device.user_agent = empty;
    ar->device.os_version = empty;

    /* protocol.md 3.8 demands them: as of a screen that is not known */

    ar->device.width = 0;
    ar->device.height = 0;
    ar->device.dpr = 1;

    for (i = 0; i < ar->nmessages && i < KX_MAX_MESSAGES; i++) {
        p = alias->messages[i];
        n = i + 1;

        ar->messages[i].id.data = p;

        *p++ = 'm';

        if (n >= 10) {
            *p++ = (unsigned char) ('0' + n / 10);
        }

        *p++ = (unsigned char) ('0' + n % 10);

        ar->messages[i].id.len = (size_t) (p - alias->messages[i]);
    }
}


static void
kx_consent_id(kx_str_t *dst, unsigned char *p, const unsigned char *random)
{
    memcpy(p, "kxa_", 4);
    kx_base32_id(p + 4, random);

    dst->data = p;
    dst->len = KX_MESSAGE_ID_LEN;
}
