/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "device.h"


typedef struct {
    const char  *agent;
    const char  *type;
    const char  *os;
    const char  *version;
} agent_t;


typedef struct {
    const char  *agent;
    const char  *platform;
    const char  *platform_version;
    const char  *mobile;
    const char  *type;
    const char  *os;
    const char  *version;
} hints_t;


typedef struct {
    const char  *value;
    const char  *locale;
} language_t;


typedef struct {
    const char  *value;
    double       number;
} number_t;


static kx_str_t text(const char *s);
static unsigned equal(const kx_str_t *s, const char *value);


#define WINDOWS  "Mozilla/5.0 (Windows NT 10.0; Win64; x64) "                 \
                 "AppleWebKit/537.36 (KHTML, like Gecko) "                    \
                 "Chrome/124.0.0.0 Safari/537.36"

#define PIXEL    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 "     \
                 "(KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36"


static const agent_t  agents[] = {
    { "", "other", "web", "" },
    { "curl/7.88.1", "other", "web", "" },
    { "python-requests/2.31.0", "other", "web", "" },
    { "Mozilla/5.0 (compatible)", "desktop", "web", "" },
    { WINDOWS, "desktop", "Windows", "10" },
    { PIXEL, "handset", "Android", "10" },
    { "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) "
      "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 "
      "Mobile/15E148 Safari/604.1", "handset", "iOS", "17.4" },
    { "Mozilla/5.0 (iPad; CPU OS 16_7_2 like Mac OS X) "
      "AppleWebKit/605.1.15 Version/16.6 Mobile/15E148 Safari/604.1",
      "tablet", "iOS", "16.7.2" },
    { "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) "
      "AppleWebKit/605.1.15 Version/17.4 Safari/605.1.15",
      "desktop", "macOS", "10.15.7" },
    { "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:125.0) "
      "Gecko/20100101 Firefox/125.0", "desktop", "macOS", "10.15" },
    { "Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 "
      "Firefox/125.0", "desktop", "Linux", "" },
    { "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 "
      "Chrome/124.0.0.0 Safari/537.36", "desktop", "Chrome OS", "" },
    { "Mozilla/5.0 (Android 14; Mobile; rv:125.0) Gecko/125.0 "
      "Firefox/125.0", "handset", "Android", "14" },
    { "Mozilla/5.0 (Android 13; Tablet; rv:125.0) Gecko/125.0 "
      "Firefox/125.0", "tablet", "Android", "13" },
    { "Mozilla/5.0 (Linux; Android 12; SM-X906C) AppleWebKit/537.36 "
      "Chrome/124.0.0.0 Safari/537.36", "tablet", "Android", "12" },
    { "Mozilla/5.0 (Linux; Android 9; BRAVIA 4K GB) AppleWebKit/537.36 "
      "Chrome/96.0 Safari/537.36", "tv", "Android", "9" },
    { "Roku/DVP-12.0", "tv", "web", "" },
    { "Mozilla/5.0 (Linux; Android 99999999999999999999; x) Mobile",
      "handset", "Android", NULL },
    { "Mozilla/5.0 (Windows NT 10.", "desktop", "Windows", NULL },
    { "Android ", "tablet", "Android", "" }
};


static const hints_t  hints[] = {

    /* more exact than a frozen agent */

    { PIXEL, "\"Android\"", "\"14.0.0\"", "?1",
      "handset", "Android", "14.0.0" },
    { PIXEL, "\"Android\"", "", "?1", "handset", "Android", "10" },
    { WINDOWS, "\"Windows\"", "", "?0", "desktop", "Windows", "10" },

    /* another system: the agent's version is not its version */

    { WINDOWS, "\"Linux\"", "", "?0", "desktop", "Linux", "" },
    { WINDOWS, "\"macOS\"", "\"14.4.1\"", "?0",
      "desktop", "macOS", "14.4.1" },

    /* without an agent */

    { "", "\"Android\"", "\"13\"", "?1", "handset", "Android", "13" },
    { "", "\"Windows\"", "", "?0", "desktop", "Windows", "" },
    { "", "\"Chrome OS\"", "", "", "desktop", "Chrome OS", "" },

    /* nothing usable */

    { WINDOWS, "\"Unknown\"", "", "", "desktop", "Windows", "10" },
    { WINDOWS, "\"\"", "\"\"", "", "desktop", "Windows", "10" },
    { WINDOWS, "\"<script>\"", "", "yes", "desktop", "Windows", "10" },
    { WINDOWS, "\"", "", "?", "desktop", "Windows", "10" }
};


static kx_str_t
text(const char *s)
{
    kx_str_t  str;

    str.len = strlen(s);
    str.data = (unsigned char *) s;

    return str;
}


static unsigned
equal(const kx_str_t *s, const char *value)
{
    return s->len == strlen(value) && memcmp(s->data, value, s->len) == 0;
}


static void
test_defaults(void **state)
{
    kx_device_t          d;
    kx_device_headers_t  h;

    memset(&h, 0, sizeof(kx_device_headers_t));
    memset(&d, 0xff, sizeof(kx_device_t));

    kx_device_detect(&d, &h);

    assert_true(equal(&d.type, "other"));
    assert_true(equal(&d.os, "web"));
    assert_int_equal(d.os_version.len, 0);
    assert_true(equal(&d.locale, "en-US"));
    assert_true(equal(&d.timezone, "UTC"));
    assert_int_equal(d.user_agent.len, 0);
    assert_int_equal(d.width, 0);
    assert_int_equal(d.height, 0);
    assert_true(d.dpr == 1);
    assert_int_equal(d.dark, 0);
}


static void
test_agents(void **state)
{
    size_t               n;
    kx_device_t          d;
    const agent_t       *t;
    kx_device_headers_t  h;

    for (n = 0; n < sizeof(agents) / sizeof(agent_t); n++) {
        t = &agents[n];

        memset(&h, 0, sizeof(kx_device_headers_t));
        h.user_agent = text(t->agent);

        kx_device_detect(&d, &h);

        if (!equal(&d.type, t->type) || !equal(&d.os, t->os)
            || (t->version && !equal(&d.os_version, t->version)))
        {
            fail_msg("%s: type:%.*s os:%.*s version:%.*s", t->agent,
                     (int) d.type.len, d.type.data, (int) d.os.len,
                     d.os.data, (int) d.os_version.len, d.os_version.data);
        }

        assert_true(equal(&d.user_agent, t->agent));
        assert_true(d.os_version.len <= 16);
    }
}


/* what is cut short anywhere is not read beyond its end */

static void
test_agents_cut(void **state)
{
    size_t               n, len;
    kx_device_t          d;
    unsigned char       *copy;
    kx_device_headers_t  h;

    memset(&h, 0, sizeof(kx_device_headers_t));

    for (n = 0; n < sizeof(agents) / sizeof(agent_t); n++) {

        for (len = 1; len <= strlen(agents[n].agent); len++) {
            copy = malloc(len);
            assert_non_null(copy);
            memcpy(copy, agents[n].agent, len);

            h.user_agent.data = copy;
            h.user_agent.len = len;

            kx_device_detect(&d, &h);

            assert_true(d.type.len > 0);
            assert_true(d.os.len > 0);
            assert_true(d.os_version.len <= 16);

            free(copy);
        }
    }
}


static void
test_hints(void **state)
{
    size_t               n;
    kx_device_t          d;
    const hints_t       *t;
    kx_device_headers_t  h;

    for (n = 0; n < sizeof(hints) / sizeof(hints_t); n++) {
        t = &hints[n];

        memset(&h, 0, sizeof(kx_device_headers_t));
        h.user_agent = text(t->agent);
        h.ua_platform = text(t->platform);
        h.ua_platform_version = text(t->platform_version);
        h.ua_mobile = text(t->mobile);

        kx_device_detect(&d, &h);

        if (!equal(&d.type, t->type) || !equal(&d.os, t->os)
            || !equal(&d.os_version, t->version))
        {
            fail_msg("%s, %s, %s, %s: type:%.*s os:%.*s version:%.*s",
                     t->agent, t->platform, t->platform_version, t->mobile,
                     (int) d.type.len, d.type.data, (int) d.os.len,
                     d.os.data, (int) d.os_version.len, d.os_version.data);
        }
    }
}


/* hints that contradict the agent, and the numbers Windows has in them */

static void
test_hints_win(void **state)
{
    size_t               n;
    kx_device_t          d;
    kx_device_headers_t  h;

    static const struct {
        const char  *hint;
        const char  *version;
    } windows[] = {
        { "\"15.0.0\"", "11" }, { "\"13.0.0\"", "11" },
        { "\"10.0.0\"", "10" }, { "\"1.0.0\"", "10" },
        { "\"0.3.0\"", "8.1" }, { "\"0.1.0\"", "7" },
        { "\"15.0.0 beta\"", "10" }, { "\"99999999999999999999\"", "11" },
        { "\"x\"", "10" }, { "15.0.0", "10" }
    };

    memset(&h, 0, sizeof(kx_device_headers_t));
    h.user_agent = text(WINDOWS);
    h.ua_platform = text("\"Windows\"");

    for (n = 0; n < sizeof(windows) / sizeof(windows[0]); n++) {
        h.ua_platform_version = text(windows[n].hint);

        kx_device_detect(&d, &h);

        if (!equal(&d.os_version, windows[n].version)) {
            fail_msg("%s: %.*s", windows[n].hint, (int) d.os_version.len,
                     d.os_version.data);
        }
    }

    memset(&h, 0, sizeof(kx_device_headers_t));
    h.user_agent = text(PIXEL);
    h.ua_mobile = text("?0");

    kx_device_detect(&d, &h);
    assert_true(equal(&d.type, "tablet"));

    h.user_agent = text(WINDOWS);
    h.ua_mobile = text("?1");

    kx_device_detect(&d, &h);
    assert_true(equal(&d.type, "handset"));

    h.user_agent = text("Mozilla/5.0 (Linux; Android 9; BRAVIA 4K)");

    kx_device_detect(&d, &h);
    assert_true(equal(&d.type, "tv"));
}


static void
test_languages(void **state)
{
    size_t               n;
    kx_device_t          d;
    kx_device_headers_t  h;

    static const language_t  languages[] = {
        { "", "en-US" },
        { "cs-CZ", "cs-CZ" },
        { "de", "de" },
        { "zh-Hant-TW", "zh-Hant-TW" },
        { "de-DE,de;q=0.9,en;q=0.8", "de-DE" },
        { "en;q=0.8, fr-CH, fr;q=0.9", "fr-CH" },
        { "fr;q=0.5,de;q=0.5", "fr" },
        { "\tfr ;\tq=0.5 , de ; q=0.51 ", "de" },
        { "*", "en-US" },
        { "*, de;q=0.1", "de" },
        { "de;q=0", "en-US" },
        { "de;q=0.000,fr;q=0.001", "fr" },
        { "de;q=1.000,fr", "de" },
        { "de;q=1.001,fr;q=0.2", "fr" },
        { "de;q=2,fr;q=0.2", "fr" },
        { "de;q=-1,fr;q=0.2", "fr" },
        { "de;q=0.9999,fr;q=0.2", "fr" },
        { "de;q=x,fr;q=0.2", "fr" },
        { "de;q=,fr;q=0.2", "fr" },
        { "de;Q=0.3,fr;q=0.2", "de" },
        { "en_US,fr;q=0.2", "fr" },
        { "-de,fr;q=0.2", "fr" },
        { "de-,fr;q=0.2", "fr" },
        { "de--DE,fr;q=0.2", "fr" },
        { "1de,fr;q=0.2", "fr" },
        { "d\xc3\xa9,fr;q=0.2", "fr" },
        { "<b>,fr;q=0.2", "fr" },
        { ",,;,fr;q=0.2,", "fr" },
        { ",", "en-US" },
        { ";", "en-US" },
        { "abcdefgh-abcdefgh-abcdefgh-abcdefgh", "abcdefgh-abcdefgh-"
          "abcdefgh-abcdefgh" },
        { "abcdefgh-abcdefgh-abcdefgh-abcdefgh-x", "en-US" }
    };

    memset(&h, 0, sizeof(kx_device_headers_t));

    for (n = 0; n < sizeof(languages) / sizeof(language_t); n++) {
        h.accept_language = text(languages[n].value);

        kx_device_detect(&d, &h);

        if (!equal(&d.locale, languages[n].locale)) {
            fail_msg("\"%s\": %.*s", languages[n].value, (int) d.locale.len,
                     d.locale.data);
        }
    }
}


static void
test_pixels(void **state)
{
    size_t               n;
    kx_device_t          d;
    kx_device_headers_t  h;

    static const number_t  pixels[] = {
        { "1", 1 }, { "1920", 1920 }, { "100000", 100000 },
        { "100001", 0 }, { "99999999999999999999", 0 }, { "0", 0 },
        { "-1", 0 }, { "+1", 0 }, { " 1", 0 }, { "1 ", 0 }, { "0x10", 0 },
        { "1e3", 0 }, { "x", 0 }, { "12px", 0 }, { "1.5", 0 }
    };

    for (n = 0; n < sizeof(pixels) / sizeof(number_t); n++) {
        memset(&h, 0, sizeof(kx_device_headers_t));
        h.width = text(pixels[n].value);

        kx_device_detect(&d, &h);

        if (d.width != (int) pixels[n].number || d.height != 0) {
            fail_msg("\"%s\": %d %d", pixels[n].value, d.width, d.height);
        }

        h.height = h.width;
        h.width = text("360");

        kx_device_detect(&d, &h);

        if (d.height != (int) pixels[n].number || d.width != 360) {
            fail_msg("\"%s\": %d %d", pixels[n].value, d.width, d.height);
        }
    }
}


static void
test_dpr(void **state)
{
    size_t               n;
    kx_device_t          d;
    kx_device_headers_t  h;

    static const number_t  ratios[] = {
        { "1", 1 }, { "2", 2 }, { "2.0", 2 }, { "2.625", 2.625 },
        { "0.1", 0.1 }, { "10", 10 }, { "10.0", 10 }, { "0.09", 1 },
        { "10.01", 1 }, { "11", 1 }, { "0", 1 }, { "-2", 1 }, { "+2", 1 },
        { "2x", 1 }, { "2,5", 1 }, { "2.5.1", 1 }, { ".", 1 }, { "2.", 1 },
        { ".5", 1 }, { "nan", 1 }, { "inf", 1 }, { "0x2", 1 }, { "2e0", 1 },
        { "99999999999999999999", 1 }, { " 2", 1 }
    };

    memset(&h, 0, sizeof(kx_device_headers_t));

    for (n = 0; n < sizeof(ratios) / sizeof(number_t); n++) {
        h.dpr = text(ratios[n].value);

        kx_device_detect(&d, &h);

        if (d.dpr != ratios[n].number) {
            fail_msg("\"%s\": %f", ratios[n].value, d.dpr);
        }
    }
}


static void
test_dark(void **state)
{
    size_t               n;
    kx_device_t          d;
    kx_device_headers_t  h;

    static const number_t  schemes[] = {
        { "dark", 1 }, { "\"dark\"", 1 }, { "light", 0 }, { "\"light\"", 0 },
        { "", 0 }, { "\"\"", 0 }, { "\"", 0 }, { "darker", 0 }, { "dar", 0 }
    };

    memset(&h, 0, sizeof(kx_device_headers_t));

    for (n = 0; n < sizeof(schemes) / sizeof(number_t); n++) {
        h.color_scheme = text(schemes[n].value);

        kx_device_detect(&d, &h);

        if (d.dark != (int) schemes[n].number) {
            fail_msg("%s: %d", schemes[n].value, d.dark);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_agents),
        cmocka_unit_test(test_agents_cut),
        cmocka_unit_test(test_hints),
        cmocka_unit_test(test_hints_win),
        cmocka_unit_test(test_languages),
        cmocka_unit_test(test_pixels),
        cmocka_unit_test(test_dpr),
        cmocka_unit_test(test_dark)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
