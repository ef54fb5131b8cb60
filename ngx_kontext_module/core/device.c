/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "device.h"

#include <ctype.h>
#include <stdlib.h>


#define KX_MAX_PIXELS  100000


typedef struct {
    const char  *token;              /* in the User-Agent */
    const char  *os;
    const char  *type;
} kx_device_rule_t;


static void kx_device_agent(kx_device_t *d, const kx_str_t *agent);
static void kx_device_version(kx_device_t *d, const unsigned char *p,
    const unsigned char *last);
static void kx_device_platform(kx_device_t *d, const kx_device_headers_t *h);
static void kx_device_locale(kx_device_t *d, const kx_str_t *languages);
static unsigned kx_device_tag(const kx_str_t *tag);
static int kx_device_quality(const unsigned char *p,
    const unsigned char *last);
static double kx_device_number(const kx_str_t *s);
static const unsigned char *kx_device_find(const kx_str_t *s,
    const char *token);
static void kx_device_set(kx_str_t *s, const char *value);
static void kx_device_unquote(kx_str_t *dst, const kx_str_t *src);
static unsigned kx_device_equal(const kx_str_t *s, const char *value);


/* the first rule that fits; a version follows the token of a system */

static const kx_device_rule_t  kx_device_rules[] = {
    { "SmartTV", NULL, "tv" },
    { "SMART-TV", NULL, "tv" },
    { "Smart TV", NULL, "tv" },
    { "AppleTV", NULL, "tv" },
    { "Apple TV", NULL, "tv" },
    { "BRAVIA", NULL, "tv" },
    { "CrKey", NULL, "tv" },
    { "Roku", NULL, "tv" },
    { "Web0S", NULL, "tv" },
    { "iPad", "iOS", "tablet" },
    { "iPhone", "iOS", "handset" },
    { "iPod", "iOS", "handset" },
    { "Windows Phone", "Windows", "handset" },
    { "Windows", "Windows", "desktop" },
    { "CrOS", "Chrome OS", "desktop" },
    { "Android", "Android", NULL },
    { "Macintosh", "macOS", "desktop" },
    { "X11", "Linux", "desktop" },
    { "Linux", "Linux", "desktop" },
    { NULL, NULL, NULL }
};


static const char  *kx_device_versions[][2] = {
    { "Windows NT ", "Windows" },
    { "Windows Phone ", "Windows" },
    { "Android ", "Android" },
    { "CPU iPhone OS ", "iOS" },
    { "CPU OS ", "iOS" },
    { "Mac OS X ", "macOS" },
    { NULL, NULL }
};


void
kx_device_detect(kx_device_t *d, const kx_device_headers_t *h)
{
    double    n;
    kx_str_t  s;

    memset(d, 0, sizeof(kx_device_t));

    d->user_agent = h->user_agent;

    kx_device_set(&d->type, "other");
    kx_device_set(&d->os, "web");
    kx_device_set(&d->os_version, "");
    kx_device_set(&d->locale, "en-US");
    kx_device_set(&d->timezone, "UTC");
    d->dpr = 1;

    kx_device_agent(d, &h->user_agent);
    kx_device_platform(d, h);
    kx_device_locale(d, &h->accept_language);

    kx_device_unquote(&s, &h->color_scheme);
    d->dark = (int) kx_device_equal(&s, "dark");

    n = kx_device_number(&h->dpr);

    if (n >= 0.1 && n <= 10) {
        d->dpr = n;
    }

    n = kx_device_number(&h->width);

    if (n >= 1 && n <= KX_MAX_PIXELS) {
        d->width = (int) n;
    }

    n = kx_device_number(&h->height);

    if (n >= 1 && n <= KX_MAX_PIXELS) {
        d->height = (int) n;
    }
}


static void
kx_device_agent(kx_device_t *d, const kx_str_t *agent)
{
    unsigned                 i;
    const unsigned char     *p;
    const kx_device_rule_t  *rule;

    if (kx_device_find(agent, "Mozilla/")) {
        kx_device_set(&d->type, "desktop");
    }

    for (rule = kx_device_rules; rule->token; rule++) {

        if (kx_device_find(agent, rule->token) == NULL) {
            continue;
        }

        if (rule->type) {
            kx_device_set(&d->type, rule->type);

        } else {
            kx_device_set(&d->type, kx_device_find(agent, "Mobile")
                                    ? "handset" : "tablet");
        }

        if (rule->os) {
            kx_device_set(&d->os, rule->os);
            break;
        }

        /* a television says more about its system further on */

        if (kx_device_find(agent, "Android")) {
            kx_device_set(&d->os, "Android");

        } else if (kx_device_find(agent, "Linux")) {
            kx_device_set(&d->os, "Linux");
        }

        break;
    }

    for (i = 0; kx_device_versions[i][0]; i++) {

        if (!kx_device_equal(&d->os, kx_device_versions[i][1])) {
            continue;
        }

        p = kx_device_find(agent, kx_device_versions[i][0]);

        if (p) {
            kx_device_version(d, p + strlen(kx_device_versions[i][0]),
                              agent->data + agent->len);

            if (d->os_version.len == 4
                && kx_device_equal(&d->os, "Windows")
                && kx_device_equal(&d->os_version, "10.0"))
            {
                d->os_version.len = 2;
            }

            return;
        }
    }
}


static void
kx_device_version(kx_device_t *d, const unsigned char *p,
    const unsigned char *last)
{
    size_t  n;

    for (n = 0; p < last && n < sizeof(d->version); p++) {

        if (*p == '_') {
            d->version[n++] = '.';

        } else if (isdigit(*p) || *p == '.') {
            d->version[n++] = *p;

        } else {
            break;
        }
    }

    d->os_version.data = d->version;
    d->os_version.len = n;
}


/* client hints are more exact than the agent, which browsers have frozen */

static void
kx_device_platform(kx_device_t *d, const kx_device_headers_t *h)
{
    unsigned  i, mobile;
    kx_str_t  s;

    static const char  *systems[] = {
        "Windows", "macOS", "Linux", "Chrome OS", "Android", "iOS", NULL
    };

    mobile = kx_device_equal(&h->ua_mobile, "?1");

    kx_device_unquote(&s, &h->ua_platform);

    for (i = 0; systems[i]; i++) {

        if (!kx_device_equal(&s, systems[i])) {
            continue;
        }

        if (!kx_device_equal(&d->os, systems[i])) {
            kx_device_set(&d->os, systems[i]);
            kx_device_set(&d->os_version, "");
        }

        if (kx_device_equal(&d->type, "other")) {
            kx_device_set(&d->type, mobile ? "handset"
                                    : i < 4 ? "desktop" : "tablet");
        }

        kx_device_unquote(&s, &h->ua_platform_version);

        if (s.len) {
            kx_device_version(d, s.data, s.data + s.len);
        }

        break;
    }

    if (mobile && (kx_device_equal(&d->type, "other")
                   || kx_device_equal(&d->type, "desktop")))
    {
        kx_device_set(&d->type, "handset");
    }
}


/* the language with the highest quality; the first one of equals */

static void
kx_device_locale(kx_device_t *d, const kx_str_t *languages)
{
    int                   q, best;
    kx_str_t              tag;
    const unsigned char  *p, *last, *end, *semicolon;

    best = 0;
    p = languages->data;
    last = p + languages->len;

    while (p < last) {
        end = memchr(p, ',', (size_t) (last - p));

        if (end == NULL) {
            end = last;
        }

        while (p < end && (*p == ' ' || *p == '\t')) {
            p++;
        }

        semicolon = memchr(p, ';', (size_t) (end - p));

        tag.data = (unsigned char *) p;
        tag.len = (size_t) ((semicolon ? semicolon : end) - p);

        while (tag.len && tag.data[tag.len - 1] == ' ') {
            tag.len--;
        }

        q = semicolon ? kx_device_quality(semicolon + 1, end) : 1000;

        if (q > best && kx_device_tag(&tag)) {
            best = q;
            d->locale = tag;
        }

        p = end + 1;
    }
}


static unsigned
kx_device_tag(const kx_str_t *tag)
{
    size_t  i;

    if (tag->len == 0 || tag->len > 35 || !isalpha(tag->data[0])) {
        return 0;
    }

    for (i = 0; i < tag->len; i++) {
        if (!isalnum(tag->data[i]) && tag->data[i] != '-') {
            return 0;
        }
    }

    return 1;
}


/* "q=0.8" in thousandths (RFC 9110, 12.4.2), -1 if it is none */

static int
kx_device_quality(const unsigned char *p, const unsigned char *last)
{
    int  q, unit;

    while (p < last && *p == ' ') {
        p++;
    }

    if (last - p < 3 || (p[0] != 'q' && p[0] != 'Q') || p[1] != '='
        || (p[2] != '0' && p[2] != '1'))
    {
        return -1;
    }

    q = (p[2] - '0') * 1000;
    p += 3;

    if (p < last && *p == '.') {
        p++;

        for (unit = 100; unit && p < last && isdigit(*p); unit /= 10) {
            q += (*p++ - '0') * unit;
        }
    }

    return (q <= 1000) ? q : -1;
}


/* a number of digits and at most one dot, or -1 */

static double
kx_device_number(const kx_str_t *s)
{
    char      buf[16];
    size_t    i;
    unsigned  dots;

    if (s->len == 0 || s->len >= sizeof(buf)) {
        return -1;
    }

    dots = 0;

    for (i = 0; i < s->len; i++) {

        if (s->data[i] == '.') {
            dots++;

        } else if (!isdigit(s->data[i])) {
            return -1;
        }
    }

    if (dots > 1 || dots == s->len) {
        return -1;
    }

    memcpy(buf, s->data, s->len);
    buf[s->len] = '\0';

    return strtod(buf, NULL);
}


static const unsigned char *
kx_device_find(const kx_str_t *s, const char *token)
{
    size_t                n;
    const unsigned char  *p, *last;

    n = strlen(token);

    if (s->len < n) {
        return NULL;
    }

    last = s->data + s->len - n + 1;

    for (p = s->data; p < last; p++) {

        p = memchr(p, token[0], (size_t) (last - p));

        if (p == NULL) {
            return NULL;
        }

        if (memcmp(p, token, n) == 0) {
            return p;
        }
    }

    return NULL;
}


static void
kx_device_set(kx_str_t *s, const char *value)
{
    s->data = (unsigned char *) value;
    s->len = strlen(value);
}


static void
kx_device_unquote(kx_str_t *dst, const kx_str_t *src)
{
    *dst = *src;

    if (dst->len >= 2 && dst->data[0] == '"'
        && dst->data[dst->len - 1] == '"')
    {
        dst->data++;
        dst->len -= 2;
    }
}


static unsigned
kx_device_equal(const kx_str_t *s, const char *value)
{
    return s->len == strlen(value) && memcmp(s->data, value, s->len) == 0;
}
