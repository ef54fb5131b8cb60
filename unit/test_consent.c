/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Who has said no: TCF, GPP and US Privacy strings, as their documents give
 * them and as they are put together here, bit by bit.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <stdio.h>
#include <setjmp.h>

#include "consent.h"

#include <cmocka.h>


#define DENIED(signal)  (1u << KX_SIGNAL_ ## signal)

/* of "GPP Extension: TCF EU" and of the documents of TCF 2 */

#define TC_NONE  "CPXxRfAPXxRfAAfKABENB-CgAAAAAAAAAAYgAAAAAAAA"
#define TC_BOTH  "COwxsONOwxsONKpAAAENAdCAAMAAAAAAAAAAAAAAAAAA"
#define TC_ONE   "COtybn4PA_zT4KjACBENAPCIAEBAAECAAIAAAAAAAAAA"


/* a string of bits, which becomes base64url */

typedef struct {
    char      text[1024];
    size_t    bits;
} bits_t;


static void
put(bits_t *b, unsigned n, unsigned value)
{
    size_t             at;
    unsigned           i, digit;
    static const char  alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                    "abcdefghijklmnopqrstuvwxyz0123456789-_";

    for (i = n; i > 0; i--, b->bits++) {
        at = b->bits / 6;

        if (b->bits % 6 == 0) {
            b->text[at] = 'A';
            b->text[at + 1] = '\0';
        }

        digit = (unsigned) (strchr(alphabet, b->text[at]) - alphabet);
        digit |= (value >> (i - 1) & 1) << (5 - b->bits % 6);
        b->text[at] = alphabet[digit];
    }
}


static void
zeroes(bits_t *b, size_t to)
{
    while (b->bits < to) {
        put(b, 1, 0);
    }
}


static void
fibonacci(bits_t *b, unsigned value)
{
    int       i, top;
    unsigned  f[24], bits[24];

    f[0] = 1;
    f[1] = 2;

    for (i = 2; i < 24; i++) {
        f[i] = f[i - 1] + f[i - 2];
    }

    memset(bits, 0, sizeof(bits));

    for (top = 23; f[top] > value; top--) {
        /* void */
    }

    for (i = top; i >= 0; i--) {
        if (f[i] <= value) {
            value -= f[i];
            bits[i] = 1;
        }
    }

    for (i = 0; i <= top; i++) {
        put(b, 1, bits[i]);
    }

    put(b, 1, 1);
}


/* a GPP string with these sections, up to 0 */

static char *
gpp(const unsigned *ids, const char *const *texts)
{
    bits_t       b;
    unsigned     i, n, last;
    static char  text[2048];

    for (n = 0; ids[n]; n++) {
        /* void */
    }

    memset(&b, 0, sizeof(b));
    put(&b, 6, 3);
    put(&b, 6, 1);
    put(&b, 12, n);

    for (i = 0, last = 0; i < n; last = ids[i++]) {
        put(&b, 1, 0);
        fibonacci(&b, ids[i] - last);
    }

    snprintf(text, sizeof(text), "%s", b.text);

    for (i = 0; i < n; i++) {
        strcat(text, "~");
        strcat(text, texts[i]);
    }

    return text;
}


/* the string of TCF 2, up to its vendors */

static void
tcf(bits_t *b, unsigned consents, unsigned one)
{
    memset(b, 0, sizeof(bits_t));
    put(b, 6, 2);
    zeroes(b, 152);
    put(b, 24, consents << 22);
    zeroes(b, 200);
    put(b, 1, one);
    zeroes(b, 213);
}


static void
nobody(kx_regulatory_t *g)
{
    memset(g, 0, sizeof(kx_regulatory_t));
    g->gdpr = -1;
    g->coppa = -1;
}


static void
string(kx_str_t *s, const char *text)
{
    static unsigned       n;
    static unsigned char  exact[8][4096];

    /* at the end of its memory, for the sanitizer's sake */

    s->len = strlen(text);
    s->data = exact[n % 8] + sizeof(exact[0]) - s->len;
    memcpy(s->data, text, s->len);
    n++;
}


static unsigned
denied_gdpr(int gdpr, const char *consent, unsigned vendor)
{
    kx_regulatory_t  g;

    nobody(&g);
    g.gdpr = gdpr;
    string(&g.gdpr_consent, consent);

    return kx_consent_denied(&g, 0, vendor);
}


static unsigned
denied_gpp(const char *text, int sid)
{
    int              sids[1];
    kx_regulatory_t  g;

    nobody(&g);
    string(&g.gpp, text);

    if (sid >= 0) {
        sids[0] = sid;
        g.gpp_sid = sids;
        g.ngpp_sid = 1;
    }

    return kx_consent_denied(&g, 0, 0);
}


static unsigned
denied_usp(const char *text)
{
    kx_regulatory_t  g;

    nobody(&g);
    string(&g.us_privacy, text);

    return kx_consent_denied(&g, 0, 0);
}


static void
test_nobody(void **state)
{
    kx_regulatory_t  g;

    nobody(&g);
    assert_int_equal(kx_consent_denied(&g, 0, 0), 0);
    assert_int_equal(kx_consent_denied(&g, 1, 0), DENIED(GPC));

    g.coppa = 0;
    assert_int_equal(kx_consent_denied(&g, 0, 0), 0);

    g.coppa = 1;
    assert_int_equal(kx_consent_denied(&g, 0, 0), DENIED(COPPA));
    assert_int_equal(kx_consent_denied(&g, 1, 7), DENIED(COPPA)
                                                  | DENIED(GPC));
}


static void
test_tcf(void **state)
{
    bits_t    b;
    size_t    len;
    unsigned  consents, one;

    assert_int_equal(denied_gdpr(1, "", 0), DENIED(GDPR));
    assert_int_equal(denied_gdpr(1, TC_NONE, 0), DENIED(GDPR));
    assert_int_equal(denied_gdpr(1, TC_BOTH, 0), 0);
    assert_int_equal(denied_gdpr(1, TC_BOTH ".YAAAAAAAAAA", 0), 0);
    assert_int_equal(denied_gdpr(1, TC_ONE, 0), 0);

    /* it does not apply; it is not known whether it does */

    assert_int_equal(denied_gdpr(0, "", 0), 0);
    assert_int_equal(denied_gdpr(0, TC_NONE, 0), 0);
    assert_int_equal(denied_gdpr(-1, "", 0), 0);
    assert_int_equal(denied_gdpr(-1, TC_BOTH, 0), 0);
    assert_int_equal(denied_gdpr(-1, TC_NONE, 0), DENIED(GDPR));

    /* purpose 2 is needed, and 1 unless that was not asked for */

    for (consents = 0; consents < 4; consents++) {
        for (one = 0; one < 2; one++) {
            tcf(&b, consents, one);
            put(&b, 16, 0);

            assert_int_equal(denied_gdpr(1, b.text, 0),
                             (consents & 1) && ((consents & 2) || one)
                             ? 0 : DENIED(GDPR));
        }
    }

    /* what cannot be read */

    assert_int_equal(denied_gdpr(1, "1", 0), DENIED(UNREADABLE));
    assert_int_equal(denied_gdpr(1, "BOEFEAyOEFEAyAHABDENAI4AAAB9vABAASA", 0),
                     DENIED(UNREADABLE));
    assert_int_equal(denied_gdpr(1, ".", 0), DENIED(UNREADABLE));
    assert_int_equal(denied_gdpr(1, "~", 0), DENIED(UNREADABLE));
    assert_int_equal(denied_gdpr(-1, "~", 0), DENIED(UNREADABLE));
    assert_int_equal(denied_gdpr(0, "~", 0), 0);

    tcf(&b, 3, 0);
    len = strlen(b.text);

    while (len--) {
        b.text[len] = '\0';

        /* the last one with a bit that is looked at */

        if (len && len <= 200 / 6) {
            assert_int_equal(denied_gdpr(1, b.text, 0), DENIED(UNREADABLE));
        }
    }

    tcf(&b, 3, 0);
    b.text[26] = '*';
    assert_int_equal(denied_gdpr(1, b.text, 0), 0);
    b.text[25] = '*';
    assert_int_equal(denied_gdpr(1, b.text, 0), DENIED(UNREADABLE));
}


static void
test_vendors(void **state)
{
    bits_t    b;
    unsigned  i;

    /* a bit for each */

    tcf(&b, 3, 0);
    put(&b, 16, 12);
    put(&b, 1, 0);

    for (i = 1; i <= 12; i++) {
        put(&b, 1, i == 1 || i == 7 || i == 12);
    }

    for (i = 1; i <= 14; i++) {
        assert_int_equal(denied_gdpr(1, b.text, i),
                         (i == 1 || i == 7 || i == 12) ? 0 : DENIED(GDPR));
    }

    /* the end is missing */

    b.text[230 / 6] = '\0';
    assert_int_equal(denied_gdpr(1, b.text, 12), DENIED(UNREADABLE));

    /* ranges */

    tcf(&b, 3, 0);
    put(&b, 16, 755);
    put(&b, 1, 1);
    put(&b, 12, 2);
    put(&b, 1, 1);
    put(&b, 16, 3);
    put(&b, 16, 5);
    put(&b, 1, 0);
    put(&b, 16, 755);

    for (i = 1; i <= 760; i++) {
        assert_int_equal(denied_gdpr(1, b.text, i),
                         ((i >= 3 && i <= 5) || i == 755) ? 0
                                                          : DENIED(GDPR));
    }

    b.text[strlen(b.text) - 3] = '\0';
    assert_int_equal(denied_gdpr(1, b.text, 5), 0);
    assert_int_equal(denied_gdpr(1, b.text, 755), DENIED(UNREADABLE));
}


static void
test_usp(void **state)
{
    unsigned  i;

    static const char *const  yes[] = {
        "1---", "1YNN", "1YNY", "1NNN", "1-N-", "1yny", ""
    };

    static const char *const  no[] = {
        "1YYN", "1NYN", "1-Y-", "1yyy"
    };

    static const char *const  nothing[] = {
        "1YN", "1YNNN", "2YNN", "YYNN", "1Y N", "1", "1ZNN"
    };

    for (i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        assert_int_equal(denied_usp(yes[i]), 0);
    }

    for (i = 0; i < sizeof(no) / sizeof(no[0]); i++) {
        assert_int_equal(denied_usp(no[i]), DENIED(US_PRIVACY));
    }

    for (i = 0; i < sizeof(nothing) / sizeof(nothing[0]); i++) {
        assert_int_equal(denied_usp(nothing[i]), DENIED(UNREADABLE));
    }
}


static void
test_gpp(void **state)
{
    char              *text, with[1024];
    bits_t             b;
    unsigned           i, bit;

    const unsigned     two[] = { 2, 6, 0 };
    const char *const  both[] = { TC_BOTH, "1YNN" };
    const char *const  sold[] = { TC_BOTH, "1YYN" };
    const unsigned     usp[] = { 6, 0 };
    const char *const  usp_yes[] = { "1YNN" };
    const unsigned     other[] = { 99, 0 };
    const char *const  any[] = { "BAA" };

    /* of "Global Privacy Platform", as this makes it */

    text = gpp(two, both);
    assert_memory_equal(text, "DBACNY~", 7);
    assert_int_equal(denied_gpp(text, -1), 0);

    assert_int_equal(denied_gpp("DBACNYA~" TC_NONE "~1YNN", -1), DENIED(GPP));
    assert_int_equal(denied_gpp("DBABMA~" TC_NONE, -1), DENIED(GPP));
    assert_int_equal(denied_gpp("DBABMA~" TC_BOTH, -1), 0);

    /* only what applies counts, and that has to be there */

    text = gpp(two, sold);
    assert_int_equal(denied_gpp(text, -1), DENIED(GPP));
    assert_int_equal(denied_gpp(text, 2), 0);
    assert_int_equal(denied_gpp(text, 6), DENIED(GPP));
    assert_int_equal(denied_gpp(text, 7), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp(text, 0), 0);
    assert_int_equal(denied_gpp("", 7), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("", 0), 0);

    assert_int_equal(denied_gpp(gpp(usp, usp_yes), -1), 0);

    /* Canada */

    for (i = 0; i < 16; i++) {
        memset(&b, 0, sizeof(b));
        put(&b, 6, 1);
        zeroes(&b, 151);
        put(&b, 24, (i & 3) << 22);
        put(&b, 24, (i >> 2) << 22);

        snprintf(with, sizeof(with), "%s", b.text);

        {
            const unsigned     id[] = { 5, 0 };
            const char *const  canada[] = { with };

            assert_int_equal(denied_gpp(gpp(id, canada), -1),
                             ((i & 3) | (i >> 2)) == 3 ? 0 : DENIED(GPP));
        }
    }

    /* the states: each field that says "opted out" */

    for (i = 7; i <= 22; i++) {
        const unsigned  id[] = { i, 0 };
        const unsigned  first = (i == 7) ? 18 : (i == 11 || i == 18) ? 14
                                                                     : 12;
        const unsigned  last = first + ((i == 7) ? 4 : 2);

        for (bit = 6; bit < 30; bit += 2) {
            memset(&b, 0, sizeof(b));
            put(&b, 6, 1);
            zeroes(&b, bit);
            put(&b, 2, 1);
            zeroes(&b, 48);

            {
                const char *const  state_text[] = { b.text };

                assert_int_equal(denied_gpp(gpp(id, state_text), -1),
                                 (bit >= first && bit <= last) ? DENIED(GPP)
                                                               : 0);
            }
        }

        /* not opted out, but for the header */

        memset(&b, 0, sizeof(b));
        put(&b, 6, 1);
        zeroes(&b, first);
        put(&b, 6, 0x2a);
        zeroes(&b, 48);
        strcat(b.text, ".YA");

        {
            const char *const  gpc[] = { b.text };

            assert_int_equal(denied_gpp(gpp(id, gpc), -1), DENIED(GPP));
            b.text[strlen(b.text) - 2] = 'Q';
            assert_int_equal(denied_gpp(gpp(id, gpc), -1), 0);
        }

        {
            const char *const  cut[] = { "BA" };

            assert_int_equal(denied_gpp(gpp(id, cut), -1),
                             DENIED(UNREADABLE));
        }
    }

    /* what nobody knows, and what cannot be read */

    assert_int_equal(denied_gpp(gpp(other, any), -1), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("DBACNYA~" TC_BOTH, -1),
                     DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("DBABMA~" TC_BOTH "~1YNN", -1),
                     DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("DBABMA", -1), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("DBA", -1), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("CBABMA~" TC_BOTH, -1),
                     DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("DCABMA~" TC_BOTH, -1),
                     DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("~", -1), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("hello", -1), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("DB__________", -1), DENIED(UNREADABLE));
    assert_int_equal(denied_gpp("DBAA", -1), 0);
}


/* a range of sections, and one that is too long */

static void
test_gpp_range(void **state)
{
    char      text[2048];
    bits_t    b;

    memset(&b, 0, sizeof(b));
    put(&b, 6, 3);
    put(&b, 6, 1);
    put(&b, 12, 1);
    put(&b, 1, 1);
    fibonacci(&b, 8);
    fibonacci(&b, 2);

    snprintf(text, sizeof(text), "%s~BAAAAA~BAAAAA~BAAAAA", b.text);
    assert_int_equal(denied_gpp(text, -1), 0);

    snprintf(text, sizeof(text), "%s~BAAAAA~BAAAAA~BAQAAA", b.text);
    assert_int_equal(denied_gpp(text, -1), DENIED(GPP));

    memset(&b, 0, sizeof(b));
    put(&b, 6, 3);
    put(&b, 6, 1);
    put(&b, 12, 1);
    put(&b, 1, 1);
    fibonacci(&b, 1);
    fibonacci(&b, 60000);

    assert_int_equal(denied_gpp(b.text, -1), DENIED(UNREADABLE));
}


/* with GPP there may be no other string */

static void
test_gdpr_in_gpp(void **state)
{
    kx_regulatory_t    g;

    const unsigned     eu[] = { 2, 0 };
    const char *const  yes[] = { TC_BOTH };
    const char *const  no[] = { TC_NONE };

    nobody(&g);
    g.gdpr = 1;
    string(&g.gpp, gpp(eu, yes));
    assert_int_equal(kx_consent_denied(&g, 0, 0), 0);

    string(&g.gpp, gpp(eu, no));
    assert_int_equal(kx_consent_denied(&g, 0, 0), DENIED(GDPR) | DENIED(GPP));

    string(&g.gpp, "x");
    assert_int_equal(kx_consent_denied(&g, 0, 0), DENIED(GDPR)
                                                  | DENIED(UNREADABLE));

    string(&g.gpp, "DBAA");
    assert_int_equal(kx_consent_denied(&g, 0, 0), DENIED(GDPR));
}


static void
test_actions(void **state)
{
    unsigned           i;
    kx_regulatory_t    g;
    kx_consent_conf_t  conf;

    memset(&conf, 0, sizeof(conf));

    for (i = 0; i < KX_SIGNALS; i++) {
        conf.actions[i] = KX_CONSENT_SKIP;
    }

    nobody(&g);
    assert_int_equal(kx_consent(&conf, &g, 0), KX_CONSENT_ASK);
    assert_int_equal(kx_consent(&conf, &g, 1), KX_CONSENT_SKIP);

    conf.actions[KX_SIGNAL_GPC] = KX_CONSENT_ANONYMOUS;
    assert_int_equal(kx_consent(&conf, &g, 1), KX_CONSENT_ANONYMOUS);

    /* the strictest of all */

    g.coppa = 1;
    assert_int_equal(kx_consent(&conf, &g, 1), KX_CONSENT_SKIP);

    conf.actions[KX_SIGNAL_COPPA] = KX_CONSENT_ASK;
    assert_int_equal(kx_consent(&conf, &g, 0), KX_CONSENT_ASK);
    assert_int_equal(kx_consent(&conf, &g, 1), KX_CONSENT_ANONYMOUS);
}


static void
test_anonymise(void **state)
{
    unsigned           i;
    kx_str_t           id;
    kx_alias_t         alias;
    kx_message_t       messages[KX_MAX_MESSAGES];
    unsigned char      random[2 * KX_ID_LEN];
    kx_ad_request_t    ar;

    memset(&ar, 0, sizeof(ar));
    memset(messages, 0, sizeof(messages));

    for (i = 0; i < sizeof(random); i++) {
        random[i] = (unsigned char) (i * 7);
    }

    string(&id, "bob");

    ar.publisher_token = id;
    ar.user_id = id;
    ar.conversation_id = id;
    ar.install_id = id;
    ar.user_email = id;
    ar.variant_id = id;
    ar.device.user_agent = id;
    ar.device.os_version = id;
    ar.device.os = id;
    ar.device.locale = id;
    ar.device.width = 100;
    ar.device.height = 100;
    ar.device.dpr = 2;
    ar.has_session = 1;
    memset(ar.session, 1, KX_ID_LEN);

    ar.messages = messages;
    ar.nmessages = KX_MAX_MESSAGES;

    for (i = 0; i < KX_MAX_MESSAGES; i++) {
        messages[i].id = id;
        messages[i].content = id;
    }

    kx_consent_anonymise(&ar, &alias, random);

    assert_int_equal(ar.publisher_token.len, 3);
    assert_int_equal(ar.device.os.len, 3);
    assert_int_equal(ar.device.locale.len, 3);

    assert_int_equal(ar.user_id.len, KX_MESSAGE_ID_LEN);
    assert_memory_equal(ar.user_id.data, "kxa_", 4);
    assert_int_equal(ar.conversation_id.len, KX_MESSAGE_ID_LEN);
    assert_memory_not_equal(ar.user_id.data, ar.conversation_id.data,
                            KX_MESSAGE_ID_LEN);

    assert_int_equal(ar.install_id.len, 0);
    assert_int_equal(ar.user_email.len, 0);
    assert_int_equal(ar.variant_id.len, 0);
    assert_int_equal(ar.device.user_agent.len, 0);
    assert_int_equal(ar.device.os_version.len, 0);
    assert_int_equal(ar.device.width, 0);
    assert_int_equal(ar.device.height, 0);
    assert_true(ar.device.dpr == 1);
    assert_int_equal(ar.has_session, 0);
    assert_int_equal(ar.session[0], 0);

    assert_int_equal(messages[0].id.len, 2);
    assert_memory_equal(messages[0].id.data, "m1", 2);
    assert_int_equal(messages[9].id.len, 3);
    assert_memory_equal(messages[9].id.data, "m10", 3);
    assert_memory_equal(messages[KX_MAX_MESSAGES - 1].id.data, "m30", 3);
    assert_memory_equal(messages[0].content.data, "bob", 3);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_tcf),
        cmocka_unit_test(test_vendors),
        cmocka_unit_test(test_usp),
        cmocka_unit_test(test_gpp),
        cmocka_unit_test(test_gpp_range),
        cmocka_unit_test(test_gdpr_in_gpp),
        cmocka_unit_test(test_actions),
        cmocka_unit_test(test_anonymise),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
