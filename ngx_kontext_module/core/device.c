/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "device.h"


#define KX_MAX_AGENT         1024    /* bytes that are searched */
#define KX_MAX_PLATFORM      32
#define KX_MAX_LOCALE        35      /* RFC 5646, 4.4.1 */
#define KX_MAX_PIXELS        100000
#define KX_MAX_RATIO_LEN     8


/* a rule holds if both words are in the User-Agent; the first one counts */

typedef struct {
    kx_str_t              word;
    kx_str_t              also;      /* may be empty */
    kx_str_t              type;
} kx_device_type_t;


typedef struct {
    kx_str_t              word;
    kx_str_t              name;
    kx_str_t              before;    /* comes before the version, if any */
} kx_device_os_t;


typedef struct {
    kx_str_t              from;
    kx_str_t              to;
} kx_device_map_t;


static void kx_device_agent(kx_device_t *d, const kx_str_t *agent);
static void kx_device_platform(kx_device_t *d, const kx_str_t *platform);
static void kx_device_platform_version(kx_device_t *d,
    const kx_str_t *version);
static void kx_device_mobile(kx_device_t *d, const kx_str_t *mobile);
static void kx_device_locale(kx_device_t *d, const kx_str_t *languages);
static unsigned kx_device_dark(const kx_str_t *scheme);
static void kx_device_version(kx_str_t *version, const unsigned char *p,
    const unsigned char *last);
static void kx_device_set_version(kx_device_t *d, const kx_str_t *version);
static const kx_str_t *kx_device_map(const kx_device_map_t *map,
    const kx_str_t *from);
static int kx_device_range(kx_str_t *tag, const unsigned char *p,
    const unsigned char *last);
static int kx_device_quality(const kx_str_t *param);
static unsigned kx_device_is_tag(const kx_str_t *tag);
static int kx_device_pixels(const kx_str_t *s);
static double kx_device_ratio(const kx_str_t *s);
static void kx_device_unquote(kx_str_t *value, const kx_str_t *s);
static void kx_device_trim(kx_str_t *s, const unsigned char *p,
    const unsigned char *last);
static unsigned kx_device_equal(const kx_str_t *a, const kx_str_t *b);
static const unsigned char *kx_device_find(const kx_str_t *s,
    const kx_str_t *word);

#define kx_digit(c)  ((c) >= '0' && (c) <= '9')
#define kx_alpha(c)  (((c) | 0x20) >= 'a' && ((c) | 0x20) <= 'z')


static const kx_str_t  kx_device_handset = kx_string("handset");
static const kx_str_t  kx_device_tablet = kx_string("tablet");
static const kx_str_t  kx_device_desktop = kx_string("desktop");
static const kx_str_t  kx_device_tv = kx_string("tv");
static const kx_str_t  kx_device_other = kx_string("other");

static const kx_str_t  kx_device_windows = kx_string("Windows");
static const kx_str_t  kx_device_android = kx_string("Android");
static const kx_str_t  kx_device_ios = kx_string("iOS");


static const kx_device_type_t  kx_device_types[] = {
    { kx_string("SmartTV"), kx_string(""), kx_string("tv") },
    { kx_string("SMART-TV"), kx_string(""), kx_string("tv") },
    { kx_string("Smart-TV"), kx_string(""), kx_string("tv") },
    { kx_string("AppleTV"), kx_string(""), kx_string("tv") },
    { kx_string("Apple TV"), kx_string(""), kx_string("tv") },
    { kx_string("GoogleTV"), kx_string(""), kx_string("tv") },
    { kx_string("Android TV"), kx_string(""), kx_string("tv") },
    { kx_string("BRAVIA"), kx_string(""), kx_string("tv") },
    { kx_string("CrKey"), kx_string(""), kx_string("tv") },
    { kx_string("Roku"), kx_string(""), kx_string("tv") },
    { kx_string("HbbTV"), kx_string(""), kx_string("tv") },
    { kx_string("Web0S"), kx_string(""), kx_string("tv") },
    { kx_string("iPad"), kx_string(""), kx_string("tablet") },
    { kx_string("iPhone"), kx_string(""), kx_string("handset") },
    { kx_string("iPod"), kx_string(""), kx_string("handset") },
    { kx_string("Android"), kx_string("Mobile"), kx_string("handset") },

    /* an app, which unlike a browser does not tell phones from tablets */
    { kx_string("Android"), kx_string("Dalvik/"), kx_string("handset") },
    { kx_string("Android"), kx_string(""), kx_string("tablet") },

    /* a PC with a pen may have "Tablet PC" there */
    { kx_string("Windows NT"), kx_string(""), kx_string("desktop") },
    { kx_string("Tablet"), kx_string(""), kx_string("tablet") },
    { kx_string("Mobile"), kx_string(""), kx_string("handset") },
    { kx_string("Mozilla/"), kx_string(""), kx_string("desktop") },
    { kx_string("Chrome/"), kx_string(""), kx_string("desktop") },
    { kx_string("Safari/"), kx_string(""), kx_string("desktop") },
    { kx_string("Firefox/"), kx_string(""), kx_string("desktop") },
    { kx_string("Opera/"), kx_string(""), kx_string("desktop") },
    { kx_string(""), kx_string(""), kx_string("") }
};


static const kx_device_os_t  kx_device_systems[] = {
    { kx_string("Windows Phone"), kx_string("Windows Phone"),
      kx_string("Windows Phone ") },
    { kx_string("iPhone"), kx_string("iOS"), kx_string("OS ") },
    { kx_string("iPad"), kx_string("iOS"), kx_string("OS ") },
    { kx_string("iPod"), kx_string("iOS"), kx_string("OS ") },
    { kx_string("AppleTV"), kx_string("tvOS"), kx_string("tvOS ") },
    { kx_string("Apple TV"), kx_string("tvOS"), kx_string("OS ") },
    { kx_string("Web0S"), kx_string("webOS"), kx_string("") },
    { kx_string("Tizen"), kx_string("Tizen"), kx_string("Tizen ") },
    { kx_string("Android"), kx_string("Android"), kx_string("Android ") },
    { kx_string("CrOS"), kx_string("Chrome OS"), kx_string("") },
    { kx_string("Windows NT"), kx_string("Windows"),
      kx_string("Windows NT ") },
    { kx_string("Mac OS X"), kx_string("macOS"), kx_string("Mac OS X ") },
    { kx_string("Macintosh"), kx_string("macOS"), kx_string("") },
    { kx_string("Linux"), kx_string("Linux"), kx_string("") },
    { kx_string("X11"), kx_string("Linux"), kx_string("") },
    { kx_string(""), kx_string(""), kx_string("") }
};


/* Windows by the numbers of NT, and by those that client hints give to it */

static const kx_device_map_t  kx_device_nt[] = {
    { kx_string("10.0"), kx_string("10") },
    { kx_string("6.3"), kx_string("8.1") },
    { kx_string("6.2"), kx_string("8") },
    { kx_string("6.1"), kx_string("7") },
    { kx_string(""), kx_string("") }
};


static const kx_device_map_t  kx_device_nt_hints[] = {
    { kx_string("0.3"), kx_string("8.1") },
    { kx_string("0.3.0"), kx_string("8.1") },
    { kx_string("0.2"), kx_string("8") },
    { kx_string("0.2.0"), kx_string("8") },
    { kx_string("0.1"), kx_string("7") },
    { kx_string("0.1.0"), kx_string("7") },
    { kx_string(""), kx_string("") }
};


/* what a platform tells about a device that nothing else is known of */

static const kx_device_map_t  kx_device_platforms[] = {
    { kx_string("Windows"), kx_string("desktop") },
    { kx_string("macOS"), kx_string("desktop") },
    { kx_string("Linux"), kx_string("desktop") },
    { kx_string("Chrome OS"), kx_string("desktop") },
    { kx_string("Chromium OS"), kx_string("desktop") },
    { kx_string("Android"), kx_string("handset") },
    { kx_string("iOS"), kx_string("handset") },
    { kx_string(""), kx_string("") }
};


void
kx_device_detect(kx_device_t *d, const kx_device_headers_t *h)
{
    static const kx_str_t  web = kx_string("web");
    static const kx_str_t  none = kx_string("");
    static const kx_str_t  en_us = kx_string("en-US");
    static const kx_str_t  utc = kx_string("UTC");

    memset(d, 0, sizeof(kx_device_t));

    d->type = kx_device_other;
    d->os = web;
    d->os_version = none;
    d->locale = en_us;
    d->timezone = utc;
    d->user_agent = h->user_agent;

    kx_device_agent(d, &h->user_agent);
    kx_device_platform(d, &h->ua_platform);
    kx_device_platform_version(d, &h->ua_platform_version);
    kx_device_mobile(d, &h->ua_mobile);
    kx_device_locale(d, &h->accept_language);

    d->width = kx_device_pixels(&h->width);
    d->height = kx_device_pixels(&h->height);
    d->dpr = kx_device_ratio(&h->dpr);
    d->dark = (int) kx_device_dark(&h->color_scheme);
}


static void
kx_device_agent(kx_device_t *d, const kx_str_t *agent)
{
    kx_str_t                 s, version;
    const kx_str_t          *name;
    const unsigned char     *p;
    const kx_device_os_t    *os;
    const kx_device_type_t  *type;

    s.len = (agent->len < KX_MAX_AGENT) ? agent->len : KX_MAX_AGENT;
    s.data = agent->data;

    for (type = kx_device_types; type->word.len; type++) {
        if (kx_device_find(&s, &type->word)
            && (type->also.len == 0 || kx_device_find(&s, &type->also)))
        {
            d->type = type->type;
            break;
        }
    }

    for (os = kx_device_systems; os->word.len; os++) {
        if (kx_device_find(&s, &os->word)) {
            break;
        }
    }

    if (os->word.len == 0) {
        return;
    }

    d->os = os->name;

    p = os->before.len ? kx_device_find(&s, &os->before) : NULL;

    if (p == NULL) {
        return;
    }

    kx_device_version(&version, p + os->before.len, s.data + s.len);

    if (kx_device_equal(&d->os, &kx_device_windows)) {
        name = kx_device_map(kx_device_nt, &version);

        if (name != NULL) {
            d->os_version = *name;
            return;
        }
    }

    kx_device_set_version(d, &version);
}


static void
kx_device_platform(kx_device_t *d, const kx_str_t *platform)
{
    size_t           i;
    kx_str_t         name;
    unsigned char    c;
    const kx_str_t  *type;

    static const kx_str_t  unknown = kx_string("Unknown");

    kx_device_unquote(&name, platform);

    if (name.len == 0 || name.len > KX_MAX_PLATFORM
        || kx_device_equal(&name, &unknown))
    {
        return;
    }

    for (i = 0; i < name.len; i++) {
        c = name.data[i];

        if (!kx_alpha(c) && !kx_digit(c)
            && c != ' ' && c != '.' && c != '-' && c != '_')
        {
            return;
        }
    }

    if (kx_device_equal(&d->os, &name)) {
        return;
    }

    /* the version that the User-Agent has is one of another system */

    d->os = name;
    d->os_version.len = 0;

    type = kx_device_map(kx_device_platforms, &name);

    if (type != NULL && kx_device_equal(&d->type, &kx_device_other)) {
        d->type = *type;
    }
}


static void
kx_device_platform_version(kx_device_t *d, const kx_str_t *version)
{
    size_t           i;
    unsigned         major;
    kx_str_t         s, found;
    const kx_str_t  *name;

    static const kx_str_t  ten = kx_string("10");
    static const kx_str_t  eleven = kx_string("11");

    kx_device_unquote(&s, version);

    if (s.len == 0) {
        return;
    }

    kx_device_version(&found, s.data, s.data + s.len);

    /* all of it or nothing */

    if (found.len != s.len) {
        return;
    }

    if (!kx_device_equal(&d->os, &kx_device_windows)) {
        kx_device_set_version(d, &found);
        return;
    }

    name = kx_device_map(kx_device_nt_hints, &found);

    if (name != NULL) {
        d->os_version = *name;
        return;
    }

    major = 0;

    for (i = 0; i < found.len && i < 4 && kx_digit(found.data[i]); i++) {
        major = major * 10 + (unsigned) (found.data[i] - '0');
    }

    if (major) {
        d->os_version = (major >= 13) ? eleven : ten;
    }
}


static void
kx_device_mobile(kx_device_t *d, const kx_str_t *mobile)
{
    static const kx_str_t  yes = kx_string("?1");
    static const kx_str_t  no = kx_string("?0");

    if (kx_device_equal(mobile, &yes)) {

        if (!kx_device_equal(&d->type, &kx_device_tv)) {
            d->type = kx_device_handset;
        }

        return;
    }

    if (kx_device_equal(mobile, &no)
        && kx_device_equal(&d->type, &kx_device_handset))
    {
        if (kx_device_equal(&d->os, &kx_device_android)
            || kx_device_equal(&d->os, &kx_device_ios))
        {
            d->type = kx_device_tablet;

        } else {
            d->type = kx_device_desktop;
        }
    }
}


/* the first language of those with the highest quality */

static void
kx_device_locale(kx_device_t *d, const kx_str_t *languages)
{
    int                   quality, best;
    kx_str_t              tag;
    const unsigned char  *p, *last, *comma;

    if (languages->len == 0) {
        return;
    }

    best = 0;

    p = languages->data;
    last = p + languages->len;

    while (p < last) {
        comma = memchr(p, ',', (size_t) (last - p));

        if (comma == NULL) {
            comma = last;
        }

        quality = kx_device_range(&tag, p, comma);

        if (quality > best) {
            best = quality;
            d->locale = tag;
        }

        p = comma + 1;
    }
}


static unsigned
kx_device_dark(const kx_str_t *scheme)
{
    kx_str_t  s;

    static const kx_str_t  dark = kx_string("dark");

    /* a token in the first drafts, a string today */

    kx_device_unquote(&s, scheme);

    return kx_device_equal(&s, &dark) || kx_device_equal(scheme, &dark);
}


/* numbers joined by dots or underscores, at the start of the text */

static void
kx_device_version(kx_str_t *version, const unsigned char *p,
    const unsigned char *last)
{
    const unsigned char  *start;

    start = p;

    while (p < last && (kx_digit(*p)
                        || ((*p == '.' || *p == '_')
                            && p > start && kx_digit(p[-1]))))
    {
        p++;
    }

    if (p > start && !kx_digit(p[-1])) {
        p--;
    }

    version->len = (size_t) (p - start);
    version->data = (unsigned char *) start;
}


/* one that is too long is no version */

static void
kx_device_set_version(kx_device_t *d, const kx_str_t *version)
{
    size_t  i;

    if (version->len > sizeof(d->version)) {
        return;
    }

    for (i = 0; i < version->len; i++) {
        d->version[i] = version->data[i];

        if (d->version[i] == '_') {
            d->version[i] = '.';
        }
    }

    d->os_version.len = version->len;
    d->os_version.data = d->version;
}


static const kx_str_t *
kx_device_map(const kx_device_map_t *map, const kx_str_t *from)
{
    for ( /* void */ ; map->from.len; map++) {
        if (kx_device_equal(&map->from, from)) {
            return &map->to;
        }
    }

    return NULL;
}


/* the quality of a language range in thousandths, 0: not to be used */

static int
kx_device_range(kx_str_t *tag, const unsigned char *p,
    const unsigned char *last)
{
    int                   quality;
    kx_str_t              param;
    const unsigned char  *semicolon;

    semicolon = NULL;
    quality = 1000;

    if (p < last) {
        semicolon = memchr(p, ';', (size_t) (last - p));
    }

    if (semicolon != NULL) {
        kx_device_trim(&param, semicolon + 1, last);
        quality = kx_device_quality(&param);
        last = semicolon;
    }

    kx_device_trim(tag, p, last);

    return kx_device_is_tag(tag) ? quality : 0;
}


/* q=0.123 (RFC 9110, 12.4.2) */

static int
kx_device_quality(const kx_str_t *param)
{
    int                   quality, unit;
    const unsigned char  *p, *last;

    if (param->len < 3 || param->len > 7
        || (param->data[0] | 0x20) != 'q' || param->data[1] != '='
        || (param->data[2] != '0' && param->data[2] != '1'))
    {
        return 0;
    }

    quality = (param->data[2] - '0') * 1000;

    p = param->data + 3;
    last = param->data + param->len;

    if (p == last) {
        return quality;
    }

    if (*p++ != '.') {
        return 0;
    }

    for (unit = 100; p < last; p++, unit /= 10) {

        if (!kx_digit(*p)) {
            return 0;
        }

        quality += (*p - '0') * unit;
    }

    return (quality <= 1000) ? quality : 0;
}


/* as much of BCP 47 as keeps out what is no tag */

static unsigned
kx_device_is_tag(const kx_str_t *tag)
{
    size_t         i;
    unsigned char  c;

    if (tag->len == 0 || tag->len > KX_MAX_LOCALE
        || !kx_alpha(tag->data[0]) || tag->data[tag->len - 1] == '-')
    {
        return 0;
    }

    for (i = 0; i < tag->len; i++) {
        c = tag->data[i];

        if (c == '-' && tag->data[i - 1] != '-') {
            continue;
        }

        if (!kx_alpha(c) && !kx_digit(c)) {
            return 0;
        }
    }

    return 1;
}


static int
kx_device_pixels(const kx_str_t *s)
{
    int     n;
    size_t  i;

    n = 0;

    for (i = 0; i < s->len; i++) {

        if (!kx_digit(s->data[i])) {
            return 0;
        }

        n = n * 10 + (s->data[i] - '0');

        if (n > KX_MAX_PIXELS) {
            return 0;
        }
    }

    return n;
}


static double
kx_device_ratio(const kx_str_t *s)
{
    int     n, unit;
    size_t  i, dot;

    if (s->len == 0 || s->len > KX_MAX_RATIO_LEN) {
        return 1;
    }

    n = 0;
    unit = 1;
    dot = s->len;

    for (i = 0; i < s->len; i++) {

        if (s->data[i] == '.' && dot == s->len && i > 0 && i + 1 < s->len) {
            dot = i;
            continue;
        }

        if (!kx_digit(s->data[i])) {
            return 1;
        }

        n = n * 10 + (s->data[i] - '0');

        if (i > dot) {
            unit *= 10;
        }
    }

    /* from 0.1 to 10 */

    if ((int64_t) n * 10 < unit || n > (int64_t) unit * 10) {
        return 1;
    }

    return (double) n / unit;
}


/* the inside of a structured field string (RFC 8941, 3.3.3), or nothing */

static void
kx_device_unquote(kx_str_t *value, const kx_str_t *s)
{
    value->len = 0;
    value->data = s->data;

    if (s->len >= 2 && s->data[0] == '"' && s->data[s->len - 1] == '"') {
        value->len = s->len - 2;
        value->data = s->data + 1;
    }
}


static void
kx_device_trim(kx_str_t *s, const unsigned char *p, const unsigned char *last)
{
    while (p < last && (*p == ' ' || *p == '\t')) {
        p++;
    }

    while (last > p && (last[-1] == ' ' || last[-1] == '\t')) {
        last--;
    }

    s->len = (size_t) (last - p);
    s->data = (unsigned char *) p;
}


static unsigned
kx_device_equal(const kx_str_t *a, const kx_str_t *b)
{
    return a->len == b->len
           && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}


static const unsigned char *
kx_device_find(const kx_str_t *s, const kx_str_t *word)
{
    const unsigned char  *p, *last;

    if (s->len < word->len) {
        return NULL;
    }

    p = s->data;

    /* after the last place where the word could start */

    last = p + (s->len - word->len) + 1;

    while (p < last) {
        p = memchr(p, word->data[0], (size_t) (last - p));

        if (p == NULL) {
            return NULL;
        }

        if (memcmp(p, word->data, word->len) == 0) {
            return p;
        }

        p++;
    }

    return NULL;
}
