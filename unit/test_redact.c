/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is taken out of texts, and what stays.  t/615-canaries.t has a thousand
 * more.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <stdio.h>
#include <time.h>
#include <setjmp.h>

#include "redact.h"

#include <cjson/cJSON.h>

#include <cmocka.h>


#define MAX  65536


typedef struct {
    const char  *text;
    const char  *redacted;           /* NULL: nothing */
} case_t;


static int  failures;


static void
redact(const char *text, size_t len, unsigned kinds, unsigned cut,
    char *result)
{
    kx_str_t        s, out;
    unsigned char  *copy, *exact;

    /* of exactly this size, for the sanitizer's sake */

    exact = malloc(len ? len : 1);
    memcpy(exact, text, len);

    s.len = len;
    s.data = exact;

    assert_int_equal(kx_redact(&out, &copy, &s, kinds, cut), KX_OK);
    assert_memory_equal(exact, text, len);

    memcpy(result, out.data, out.len);
    result[out.len] = '\0';

    cJSON_free(copy);
    free(exact);
}


static void
check(const char *text, const char *expected)
{
    char  result[4096];

    redact(text, strlen(text), KX_REDACT_ALL, 0, result);

    if (strcmp(result, expected) != 0) {
        print_error("text:     %s\nis:       %s\nexpected: %s\n", text, result,
                    expected);
        failures++;
    }
}


/* by itself, and in the middle of a sentence */

static void
check_all(const case_t *c)
{
    char  text[2048], expected[2048];

    failures = 0;

    for ( /* void */ ; c->text != NULL; c++) {
        check(c->text, c->redacted ? c->redacted : c->text);

        snprintf(text, sizeof(text), "It is %s, as I said.", c->text);
        snprintf(expected, sizeof(expected), "It is %s, as I said.",
                 c->redacted ? c->redacted : c->text);
        check(text, expected);

        snprintf(text, sizeof(text), "\n\t\"%s\"\r\n", c->text);
        snprintf(expected, sizeof(expected), "\n\t\"%s\"\r\n",
                 c->redacted ? c->redacted : c->text);
        check(text, expected);
    }

    assert_int_equal(failures, 0);
}


static void
test_emails(void **state)
{
    static const case_t  cases[] = {
        { "bob@example.com", "[email]" },
        { "bob.smith+news@mail.example.co.uk", "[email]" },
        { "a@b.cd", "[email]" },
        { "O'Brien_99@EXAMPLE.ORG", "[email]" },
        { "12345678@qq.com", "[email]" },
        { "49171234567@example.com", "[email]" },
        { "mailto:bob@example.com", "mailto:[email]" },
        { "<bob@example.com>", "<[email]>" },
        { "bob@example.com.", "[email]." },
        { "bob@example.com:secret", "[email]:secret" },
        { "bob@example.com,ann@example.org", "[email],[email]" },
        { "https://example.com/?email=bob%40example.com&x=1",
          "https://example.com/?email=[email]&x=1" },
        { "\"john doe\"@example.com", "[email]" },
        { "j\xc3\xb6rg@m\xc3\xbcller.de", "[email]" },
        { "\xd0\xb8\xd0\xb2\xd0\xb0\xd0\xbd@\xd0\xbf\xd0\xbe\xd1\x87\xd1\x82"
          "\xd0\xb0.\xd1\x80\xd1\x84", "[email]" },
        { "\xe7\x94\xa8\xe6\x88\xb7@\xe4\xbe\x8b\xe5\xad\x90.\xe5\x85\xac"
          "\xe5\x8f\xb8", "[email]" },
        { "\xe6\x88\x91\xe7\x9a\x84" "bob@example.com\xe8\xb0\xa2",
          "\xe6\x88\x91\xe7\x9a\x84[email]\xe8\xb0\xa2" },
        { "bob\xef\xbc\xa0" "example.com", "[email]" },
        { "bob@xn--mller-kva.xn--p1ai", "[email]" },
        { "bob@exam\nple.com", "[email]" },
        { "bob@example.\ncom", "[email]" },
        { "bob\n@example.com", "[email]" },

        { "@example", NULL },
        { "@bob", NULL },
        { "a @ b.com", NULL },
        { "root@localhost", NULL },
        { "user@192.168.0.1", NULL },
        { "left-pad@1.3.0", NULL },
        { "npm i @angular/core@17.0.2", NULL },
        { "git@github.com:nginx/nginx.git", NULL },
        { "logo@2x.png", NULL },
        { "bundle@min.js", NULL },
        { "@app.route('/')", NULL },
        { "A@B.T", NULL },
        { "x@w.transpose()", NULL },
        { "5 @ 3.50", NULL },
        { "bob@", NULL },
        { "bob@example", NULL },
        { "bob@example.c", NULL },
        { NULL, NULL }
    };

    check_all(cases);
}


static void
test_phones(void **state)
{
    static const case_t  cases[] = {
        { "+1 415 555 0132", "[phone]" },
        { "+14155550132", "[phone]" },
        { "+1 (415) 555-0132", "[phone]" },
        { "+44 (0)20 7946 0958", "[phone]" },
        { "(+49) 30 123456", "[phone]" },
        { "+49-171-1234567", "[phone]" },
        { "+420 777 123 456", "[phone]" },
        { "+33 6 12 34 56 78", "[phone]" },
        { "+86 138 0013 8000", "[phone]" },
        { "+7 (912) 345-67-89", "[phone]" },
        { "+49\xc2\xa0" "30\xe2\x80\xaf" "1234\xe2\x80\x91" "5678",
          "[phone]" },
        { "0049 30 12345678", "[phone]" },
        { "00491711234567", "[phone]" },
        { "00 44 20 7946 0958", "[phone]" },
        { "(415) 555-0132", "[phone]" },
        { "415-555-0132", "[phone]" },
        { "415.555.0132", "[phone]" },
        { "415 555 0132", "[phone]" },
        { "1-415-555-0132", "[phone]" },
        { "020 7946 0958", "[phone]" },
        { "07700 900123", "[phone]" },
        { "07700900123", "[phone]" },
        { "0171/1234567", "[phone]" },
        { "030 / 123 456", "[phone]" },
        { "06 12 34 56 78", "[phone]" },
        { "06.12.34.56.78", "[phone]" },
        { "0612345678", "[phone]" },
        { "090-1234-5678", "[phone]" },
        { "(11) 91234-5678", "[phone]" },
        { "8 (912) 345-67-89", "[phone]" },
        { "8-912-345-67-89", "[phone]" },
        { "89123456789", "[phone]" },
        { "13800138000", "[phone]" },
        { "138 0013 8000", "[phone]" },
        { "tel. 612 345 678", "tel. [phone]" },
        { "Tel: 777123456", "Tel: [phone]" },
        { "my phone number is 98765 43210", "my phone number is [phone]" },
        { "call 555-0132", "call [phone]" },
        { "WhatsApp 5551234567", "WhatsApp [phone]" },
        { "m\xc3\xb3vil 612345678", "m\xc3\xb3vil [phone]" },
        { "\xe7\x94\xb5\xe8\xaf\x9d" "01012345678",
          "\xe7\x94\xb5\xe8\xaf\x9d[phone]" },
        { "\xd1\x82\xd0\xb5\xd0\xbb. 345-67-89",
          "\xd1\x82\xd0\xb5\xd0\xbb. [phone]" },
        { "\xd9\xa0\xd9\xa5\xd9\xa0 \xd9\xa1\xd9\xa2\xd9\xa3 "
          "\xd9\xa4\xd9\xa5\xd9\xa6\xd9\xa7", "[phone]" },
        { "\xef\xbc\x90\xef\xbc\x99\xef\xbc\x90-1234-5678", "[phone]" },
        { "0171 1234567,0172 7654321", "[phone],[phone]" },

        { "2026-11-25", NULL },
        { "25.11.2026", NULL },
        { "11/25/2026 14:30", NULL },
        { "2026-11-25 14:30:59", NULL },
        { "2026-11-25T14:30:59.123Z", NULL },
        { "1.2.3.4", NULL },
        { "192.168.100.200", NULL },
        { "10.0.0.1:8080", NULL },
        { "v1.26.3", NULL },
        { "nginx 1.30.0-2~deb13u1", NULL },
        { "1732579200", NULL },
        { "1732579200123", NULL },
        { "order 4155550132", NULL },
        { "order 0171 1234567", NULL },
        { "Bestellnummer 13800138000", NULL },
        { "ticket #07700900123", NULL },
        { "\xe8\xae\xa2\xe5\x8d\x95 13800138000", NULL },
        { "978-3-16-148410-0", NULL },
        { "12,345,678", NULL },
        { "1 234 567", NULL },
        { "1 234 567 890 EUR", NULL },
        { "$ 415 555 0132", NULL },
        { "550e8400-e29b-41d4-a716-446655440000", NULL },
        { "3.14159265358979", NULL },
        { "0.1234567890123", NULL },
        { "1998-2004", NULL },
        { "200 300 4000", NULL },
        { "x = 0123456789", NULL },
        { "0001234567890", NULL },
        { "#0123456", NULL },
        { "a1b2c3d4e5f6", NULL },
        { "0x00401000", NULL },
        { "48.8566, 2.3522", NULL },
        { "1920x1080", NULL },
        { "f(123) 456-7890", NULL },
        { "(2019) 123 4567", NULL },
        { "100%", NULL },
        { NULL, NULL }
    };

    check_all(cases);
}


static void
test_cards(void **state)
{
    static const case_t  cases[] = {
        { "4111111111111111", "[card]" },
        { "4111 1111 1111 1111", "[card]" },
        { "4111-1111-1111-1111", "[card]" },
        { "4111 1111\n1111 1111", "[card]" },
        { "5555555555554444", "[card]" },
        { "2223003122003222", "[card]" },
        { "378282246310005", "[card]" },
        { "3782 822463 10005", "[card]" },
        { "6011111111111117", "[card]" },
        { "30569309025904", "[card]" },
        { "3530111333300000", "[card]" },
        { "4222222222222", "[card]" },
        { "6212345678901232", "[card]" },
        { "4111 1111 1111 1111 12/27 123", "[card] 12/27 123" },
        { "4111111111111111,5555555555554444", "[card],[card]" },

        /* next to more digits than are looked at */

        { "894444444444444444424444444800138000\n4111111111111111",
          "894444444444444444424444444800138000\n[card]" },
        { "9-89-67-894444444444444444424444444800138000\n4111111111111111",
          "9-89-67-894444444444444444424444444800138000\n[card]" },
        { "\xef\xbc\x94" "111 1111 1111 1111", "[card]" },

        { "4111111111111112", NULL },
        { "4111 1111 1111 1112", NULL },
        { "0000000000000000", NULL },
        { "1234567812345670", NULL },
        { "41111111111111111111111", NULL },
        { "x4111111111111111", NULL },
        { "4111111111111111px", NULL },
        { "490154203237518", NULL },
        { "4111.1111.1111.1111", NULL },
        { NULL, NULL }
    };

    check_all(cases);
}


static void
test_keys(void **state)
{
    static const case_t  cases[] = {
        { "sk-abcdefghijklmnopqrstuvwxyz123456", "[key]" },
        { "sk-proj-Ab3_dEfGhIjKlMnOpQrStUvWxYz-0123456789", "[key]" },
        { "sk-ant-api03-AbCdEfGhIjKlMnOpQrStUvWx", "[key]" },
        { "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "[key]" },
        { "ghp_0123456789abcdefghijABCDEFGHIJ012345", "[key]" },
        { "github_pat_11ABCDEFG0123456789_abcdefghijklmnop", "[key]" },
        { "glpat-xYz0123456789abcdefg", "[key]" },
        { "AKIAIOSFODNN7EXAMPLE", "[key]" },
        { "ASIAABCDEFGHIJKLMNOP", "[key]" },
        { "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "[key]" },
        { "xoxb-123456789012-abcdefghijkl", "[key]" },
        { "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "[key]" },
        { "SG.abcdefghijklmnopqrstuv.ABCDEFGHIJKLMNOP0123456789",
          "[key]" },
        { "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."
          "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U", "[key]" },
        { "Authorization: Bearer abcdef0123456789abcdef",
          "Authorization: Bearer [key]" },
        { "authorization: basic dXNlcjpwYXNzd29yZDEyMw==",
          "authorization: basic [key]" },
        { "OPENAI_API_KEY=abcdef0123456789abcdef",
          "OPENAI_API_KEY=[key]" },
        { "\"api_key\": \"abcdef0123456789abcdef\"",
          "\"api_key\": \"[key]\"" },
        { "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
          "aws_secret_access_key = [key]" },
        { "https://example.com/?key=AKIAIOSFODNN7EXAMPLE&x=1",
          "https://example.com/?key=[key]&x=1" },
        { "x@sk-abcdefghijklmnopqrst12345.example.com()",
          "x@[key].example.com()" },
        { "git@sk-abcdefghijklmnopqrst12345.com:x",
          "git@[key].com:x" },
        { "-----BEGIN RSA PRIVATE KEY-----\n"
          "MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy0AHB7MhgwMbRvI0MBZhpI\n"
          "JJcds3xfn/ygWyF8PbnGy0AHB7MhgwMbRvI0MBZhpI0Z3VS5\n"
          "-----END RSA PRIVATE KEY-----", "[key]" },

        { "sk-learn", NULL },
        { "sk-SK", NULL },
        { "task-force-2024-committee-meeting-notes", NULL },
        { "ghp_short", NULL },
        { "AKIA", NULL },
        { "eyJhbGciOiJIUzI1NiJ9", NULL },
        { "the bearer of bad news arrived", NULL },
        { "Bearer authentication-scheme", NULL },
        { "da39a3ee5e6b4b0d3255bfef95601890afd80709", NULL },
        { "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b",
          NULL },
        { "internationalization_of_components.md", NULL },
        { "https://example.com/a/very/long/path/with/2026/11/25/in-it",
          NULL },
        { "-----BEGIN CERTIFICATE-----\n"
          "MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy0AHB7MhgwMbRvI0MBZhpI\n"
          "-----END CERTIFICATE-----", NULL },
        { "my PRIVATE KEY is in https://example.com/docs/how-to-make-keys-1",
          NULL },
        { "token count is limited to 128000", NULL },
        { NULL, NULL }
    };

    check_all(cases);
}


static void
test_kinds(void **state)
{
    char         result[256];
    const char  *text;

    text = "bob@example.com +14155550132 4111111111111111 "
           "AKIAIOSFODNN7EXAMPLE";

    redact(text, strlen(text), 0, 0, result);
    assert_string_equal(result, text);

    redact(text, strlen(text), KX_REDACT_EMAIL, 0, result);
    assert_string_equal(result, "[email] +14155550132 4111111111111111 "
                                "AKIAIOSFODNN7EXAMPLE");

    redact(text, strlen(text), KX_REDACT_PHONE, 0, result);
    assert_string_equal(result, "bob@example.com [phone] 4111111111111111 "
                                "AKIAIOSFODNN7EXAMPLE");

    redact(text, strlen(text), KX_REDACT_CARD, 0, result);
    assert_string_equal(result, "bob@example.com +14155550132 [card] "
                                "AKIAIOSFODNN7EXAMPLE");

    redact(text, strlen(text), KX_REDACT_KEY, 0, result);
    assert_string_equal(result, "bob@example.com +14155550132 "
                                "4111111111111111 [key]");
}


/* nothing found, no memory */

/*
 * What is not there for some kinds is not there for fewer of them, nor for two
 * sets of them together: so it is remembered of a message (memo.h).
 */

static void
test_kinds_apart(void **state)
{
    char      text[512], result[1024];
    unsigned  i, k, a, b, found[KX_REDACT_ALL + 1];

    static const char *const  parts[] = {
        "bob", "@", "example.com", "415-555-0132", "+49 171 1234567", " ",
        "4111 1111 1111 1111", "sk-abcdefghijklmnopqrst12345", "token=",
        "abcdefghijkl12345678", ".", "(", ")", "-", "%40", "\n", "tel ",
        "git@github.com:", "1234567", "x", "/", "\"", "=", "0171", " 12",
        "eyJhbGciOiJI.eyJzdWIiOiIx.abc123", "\xef\xbc\xa0", ":",
        "x@sk-abcdefghijklmnopqrst12345.", "example.com("
    };

    srand(11);

    for (i = 0; i < 4000; i++) {
        text[0] = '\0';

        for (k = 0; k <= i % 7; k++) {
            strcat(text, parts[(size_t) rand()
                               % (sizeof(parts) / sizeof(parts[0]))]);
        }

        for (a = 0; a <= KX_REDACT_ALL; a++) {
            redact(text, strlen(text), a, 0, result);
            found[a] = (strcmp(text, result) != 0);
        }

        for (a = 0; a <= KX_REDACT_ALL; a++) {
            for (b = 0; b <= KX_REDACT_ALL; b++) {
                if (found[a | b] != (found[a] || found[b])) {
                    fail_msg("%u, %u: %s", a, b, text);
                }
            }
        }
    }
}


static void
test_untouched(void **state)
{
    kx_str_t        s, out;
    unsigned char  *copy;

    s.data = (unsigned char *) "Which shoes for a marathon in 2026?";
    s.len = strlen((char *) s.data);

    assert_int_equal(kx_redact(&out, &copy, &s, KX_REDACT_ALL, 0), KX_OK);
    assert_ptr_equal(out.data, s.data);
    assert_int_equal(out.len, s.len);
    assert_null(copy);

    s.data = NULL;
    s.len = 0;

    assert_int_equal(kx_redact(&out, &copy, &s, KX_REDACT_ALL, 1), KX_OK);
    assert_int_equal(out.len, 0);
}


/* of a text that was cut nothing is told that may have been more */

static void
test_cut(void **state)
{
    char      result[8192], text[4097];
    unsigned  i;

    static const char *const  cases[][2] = {
        { "Write to bob@exam", "Write to " },
        { "Write to bob@example.c", "Write to " },
        { "Write to bob@", "Write to " },
        { "Write to bob%40example", "Write to " },
        { "Write to bob\xef\xbc\xa0" "example", "Write to " },
        { "Call (415) 555-01", "Call" },
        { "Call +49", "Call" },
        { "Pay 4111 1111 1111 11", "Pay" },
        { "Pay \xef\xbc\x94\xef\xbc\x91", "Pay" },
        { "Use sk-abcdefghijklmn", "Use " },
        { "Use {\"key\":\"AKIAABC", "Use " },
        { "Use eyJhbGciOiJIUzI1NiJ9.eyJzdW", "Use " },
        { "Use API_KEY=abc", "Use " },
        { "Authorization: Bearer abc", "Authorization: Bearer " },
        { "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/yg"
          "\nMII", "[key]" },

        { "All is well.", NULL },
        { "All is well. ", NULL },
        { "caf\xc3\xa9", NULL },
        { "task", NULL },
        { "01234567890123456789012345678901234567890", NULL },
        { "w", NULL },
    };

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        redact(cases[i][0], strlen(cases[i][0]), KX_REDACT_ALL, 1, result);
        assert_string_equal(result, cases[i][1] ? cases[i][1] : cases[i][0]);
    }

    /* a word without an end */

    for (i = 0; i < 4096; i++) {
        text[i] = (i % 3) ? '\xa9' : '\xe2';
    }

    redact(text, 4096, KX_REDACT_ALL, 1, result);
    assert_memory_equal(result, text, 4096);
}


/* at each place of each length up to a word */

static void
test_places(void **state)
{
    char      text[256], expected[256], result[512];
    size_t    before, after;
    unsigned  i;

    static const char *const  cases[][2] = {
        { "bob@example.com", "[email]" },
        { "+14155550132", "[phone]" },
        { "4111111111111111", "[card]" },
        { "AKIAABCDEFGHIJKLMNOP", "[key]" },
        { "ghp_abcdefghijABCDEFGHIJabcdefghijABCDEF", "[key]" },
    };

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (before = 0; before < 20; before++) {
            for (after = 0; after < 20; after++) {
                snprintf(text, sizeof(text), "%.*s%s%.*s", (int) before,
                         "  x  yy zz a bb cc dd ", cases[i][0], (int) after,
                         " is it, and no more of it");

                if (before && text[before - 1] != ' ') {
                    text[before - 1] = ' ';
                }

                snprintf(expected, sizeof(expected), "%.*s%s%.*s",
                         (int) before, text, cases[i][1], (int) after,
                         " is it, and no more of it");

                redact(text, strlen(text), KX_REDACT_ALL, 0, result);
                assert_string_equal(result, expected);
            }
        }
    }
}


/* the same twice is the same once */

static void
test_again(void **state)
{
    char      text[512], once[1024], twice[2048];
    size_t    i, len;
    unsigned  round;

    static const char  bytes[] = "0123456789012345+-. ()/@@..abcxyz_%4 \n:,"
                                 "sk-ghp_AKIA=eyJ\xc3\xa9\xd9\xa1\xef\xbc"
                                 "\xa0\xe2\x80\xaf";

    srand(7);

    for (round = 0; round < 30000; round++) {
        len = (size_t) rand() % 400;

        for (i = 0; i < len; i++) {
            text[i] = bytes[(size_t) rand() % (sizeof(bytes) - 1)];
        }

        redact(text, len, KX_REDACT_ALL, 0, once);
        assert_true(strlen(once) <= len + len / 6 + 8);

        redact(once, strlen(once), KX_REDACT_ALL, 0, twice);
        assert_true(strlen(twice) <= sizeof(twice));
    }
}


/* linear: what looks like much of something takes no longer than its length */

static void
test_time(void **state)
{
    char      *text, *result;
    size_t     i, n;
    double     short_time, long_time;
    clock_t    start;
    unsigned   c, k;

    static const char *const  units[] = {
        "a", "1", "@", "1 ", "a1", "a@", "1-", "@a.", "a@b.", "(1)", "+1",
        "=a", "=a1b2c3d4e5f6g7h8", "eyJa.", "eyJaaaaaaaaaa.", "sk-", "AKIA",
        "-", "-----BEGIN ", "-----BEGIN PRIVATE KEY\n", "bearer ", "tel 1",
        "1234567 ", "415 ", "4111 ", "%40", "a%40b.", "\xd9\xa1",
        "\xef\xbc\xa0", "bob@example.com ", "4111111111111111 ", "00",
        "\xe7\x94\xb5", "\"", "a\n@", "www.", "x/", "2026-11-25 ",
        "PRIVATE KEY", "0171 1234567 ", "password=a1", "aA0_",
        "=", "SG.", "ya29.",
    };

    text = malloc(16 * MAX);
    result = malloc(32 * MAX);

    for (c = 0; c < sizeof(units) / sizeof(units[0]); c++) {
        n = strlen(units[c]);

        for (i = 0; i < 16 * MAX; i++) {
            text[i] = units[c][i % n];
        }

        short_time = 0;

        for (k = 0; k < 16; k++) {
            start = clock();
            redact(text, MAX, KX_REDACT_ALL, 0, result);
            short_time += (double) (clock() - start);
        }

        start = clock();
        redact(text, 16 * MAX, KX_REDACT_ALL, 0, result);
        long_time = (double) (clock() - start);

        if (long_time > 6 * short_time + 0.05 * CLOCKS_PER_SEC) {
            fail_msg("\"%s\": %.0f us in pieces, %.0f us in one", units[c],
                     short_time * 1e6 / CLOCKS_PER_SEC,
                     long_time * 1e6 / CLOCKS_PER_SEC);
        }
    }

    free(text);
    free(result);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_emails),
        cmocka_unit_test(test_phones),
        cmocka_unit_test(test_cards),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_kinds_apart),
        cmocka_unit_test(test_untouched),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_again),
        cmocka_unit_test(test_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
