/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "device.h"


#define KX_MAX_VERSION       15
#define KX_MAX_PLATFORM      32
#define KX_MAX_LOCALE        35      /* RFC 5646, 4.4.1 */
#define KX_MAX_PIXELS        100000
#define KX_MAX_DPR_DIGITS    8

#define KX_QUALITY           1000
#define KX_QUALITY_BAD       -1

#define kx_digit(c)          ((c) >= '0' && (c) <= '9')
#define kx_alpha(c)          (((c) | 0x20) >= 'a' && ((c) | 0x20) <= 'z')


/* the first rule whose words are both in the User-Agent holds */

typedef struct {
    kx_str_t         word;
    kx_str_t         also;           /* may be empty */
    kx_str_t         value;
} kx_device_rule_t;


typedef struct {
    kx_str_t         word;
    kx_str_t         os;
    kx_str_t         before;         /* what the version comes after */
} kx_device_os_t;


typedef struct {
    kx_str_t         from;
    kx_str_t         to;
} kx_device_name_t;


static void kx_device_agent(kx_device_t *d, const kx_str_t *agent);
static void kx_device_platform(kx_device_t *d, const kx_device_headers_t *h);
static void kx_device_mobile(kx_device_t *d, const kx_device_headers_t *h);
static void kx_device_screen(kx_device_t *d, const kx_device_headers_t *h);
static void kx_device_locale(kx_device_t *d, const kx_str_t *languages);
static void kx_device_range(kx_str_t *tag, int *quality, const kx_str_t *s);
static int kx_device_quality(const kx_str_t *s);
static unsigned kx_device_tag(const kx_str_t *s);
static void kx_device_version(kx_str_t *version, const kx_str_t *s);
static const kx_str_t *kx_device_name(const kx_device_name_t *names,
    const kx_str_t *s);
static int kx_device_number(const kx_str_t *s, int max);
static double kx_device_ratio(const kx_str_t *s);
static void kx_device_unquote(kx_str_t *value, const kx_str_t *s);
static void kx_device_trim(kx_str_t *s);
static unsigned kx_device_equal(const kx_str_t *a, const kx_str_t *b);
static unsigned char *kx_device_find(const kx_str_t *s, const kx_str_t *word);


static const kx_str_t  kx_desktop = kx_string("desktop");
static const kx_str_t  kx_handset = kx_string("handset");
static const kx_str_t  kx_tablet = kx_string("tablet");
static const kx_str_t  kx_other = kx_string("other");
static const kx_str_t  kx_tv = kx_string("tv");

static const kx_str_t  kx_android = kx_string("Android");
static const kx_str_t  kx_ios = kx_string("iOS");
static const kx_str_t  kx_windows = kx_string("Windows");
static const kx_str_t  kx_web = kx_string("web");


static const kx_device_rule_t  kx_device_types[] = {
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
    { kx_string("Tizen"), kx_string("TV"), kx_string("tv") },
    { kx_string("iPad"), kx_string(""), kx_string("tablet") },
    { kx_string("iPhone"), kx_string(""), kx_string("handset") },
    { kx_string("iPod"), kx_string(""), kx_string("handset") },
    { kx_string("Android"), kx_string("Mobile"), kx_string("handset") },
    /* an app on Android says so, and not whether it is a phone */
    { kx_string("Android"), kx_string("Dalvik/"), kx_string("handset") },
    { kx_string("Android"), kx_string(""), kx_string("tablet") },
    /* a PC with a pen has "Tablet PC" there */
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
    { kx_string("Apple TV"), kx_string("tvOS"), kx_string("tvOS ") },
    { kx_string("Tizen"), kx_string("Tizen"), kx_string("Tizen ") },
    { kx_string("Web0S"), kx_string("webOS"), kx_string("Web0S ") },
    { kx_string("Android"), kx_string("Android"), kx_string("Android ") },
    { kx_string("CrOS"), kx_string("Chrome OS"), kx_string("CrOS ") },
    { kx_string("Windows NT"), kx_string("Windows"),
      kx_string("Windows NT ") },
    { kx_string("Mac OS X"), kx_string("macOS"), kx_string("Mac OS X ") },
    { kx_string("Macintosh"), kx_string("macOS"), kx_string("Mac OS X ") },
    { kx_string("Linux"), kx_string("Linux"), kx_string("Linux ") },
    { kx_string("X11"), kx_string("Linux"), kx_string("Linux ") },
    { kx_string(""), kx_string(""), kx_string("") }
};


/* systems without a version of their own name the processor instead */

static const kx_device_name_t  kx_device_versionless[] = {
    { kx_string("Chrome OS"), kx_string("") },
    { kx_string("Linux"), kx_string("") },
    { kx_string(""), kx_string("") }
};


static const kx_device_name_t  kx_device_nt[] = {
    { kx_string("10.0"), kx_string("10") },
    { kx_string("6.3"), kx_string("8.1") },
    { kx_string("6.2"), kx_string("8") },
    { kx_string("6.1"), kx_string("7") },
    { kx_string("6.0"), kx_string("Vista") },
    { kx_string("5.1"), kx_string("XP") },
    { kx_string(""), kx_string("") }
};
