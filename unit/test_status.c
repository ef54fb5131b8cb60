/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The status page: its two forms, and the buckets of its histograms.
 */


#include <stdarg.h>
#include <stdlib.h>
#include <stdio.h>
#include <setjmp.h>

#include "status.h"

#include <cjson/cJSON.h>
#include <cmocka.h>


typedef unsigned char *(*write_pt)(unsigned char *dst,
    const unsigned char *end, const kx_status_t *s);


static void
fill(kx_status_t *s)
{
    size_t     i;
    uint64_t  *n;

    memset(s, 0, sizeof(kx_status_t));

    s->version = "1.2.3";
    s->zone.data = (unsigned char *) "zone";
    s->zone.len = 4;
    s->sessions = UINT64_MAX;
    s->slots = 2;

    n = (uint64_t *) &s->n;

    for (i = 0; i < sizeof(kx_counters_t) / sizeof(uint64_t); i++) {
        n[i] = i + 1;
    }
}


static void
test_buckets(void **state)
{
    assert_int_equal(kx_status_bucket(0), 0);
    assert_int_equal(kx_status_bucket(5), 0);
    assert_int_equal(kx_status_bucket(6), 1);
    assert_int_equal(kx_status_bucket(10000), KX_STATUS_BUCKETS - 2);
    assert_int_equal(kx_status_bucket(10001), KX_STATUS_BUCKETS - 1);
    assert_int_equal(kx_status_bucket(UINT64_MAX), KX_STATUS_BUCKETS - 1);
}


static void
test_json(void **state)
{
    char            buf[KX_STATUS_MAX + 1];
    cJSON          *root;
    const cJSON    *calls;
    kx_status_t     s;
    unsigned char  *p;

    fill(&s);

    p = kx_status_json((unsigned char *) buf,
                       (unsigned char *) buf + KX_STATUS_MAX, &s);
    assert_non_null(p);
    *p = '\0';

    assert_non_null(strstr(buf, "\"live\":18446744073709551615,\"slots\":2"));

    root = cJSON_Parse(buf);
    assert_non_null(root);

    assert_string_equal(cJSON_GetStringValue(
                            cJSON_GetObjectItem(root, "version")), "1.2.3");

    calls = cJSON_GetObjectItem(cJSON_GetObjectItem(root, "calls"), "debug");
    assert_true(cJSON_GetObjectItem(calls, "cancelled")->valuedouble
                == (double) s.n.calls[3][KX_CALL_CANCELLED]);

    assert_true(cJSON_GetObjectItem(cJSON_GetObjectItem(root, "reasons"),
                                    "inject_none")->valuedouble
                == (double) s.n.reasons[KX_REASON_SHADOW]);

    cJSON_Delete(root);
}


static void
test_prometheus(void **state)
{
    char            buf[KX_STATUS_MAX + 1], line[128];
    uint64_t        sum;
    unsigned        i;
    kx_status_t     s;
    unsigned char  *p;

    fill(&s);
    s.n.hold.sum = 12034;

    p = kx_status_prometheus((unsigned char *) buf,
                             (unsigned char *) buf + KX_STATUS_MAX, &s);
    assert_non_null(p);
    *p = '\0';

    assert_int_equal(p[-1], '\n');
    assert_non_null(strstr(buf, "\nkontext_sessions 18446744073709551615\n"));
    assert_non_null(strstr(buf, "\nkontext_hold_seconds_sum 12.034\n"));
    assert_non_null(strstr(buf,
                           "\nkontext_hold_seconds_bucket{le=\"0.005\"} "));

    sum = 0;

    for (i = 0; i < KX_STATUS_BUCKETS; i++) {
        sum += s.n.preload.buckets[i];
    }

    snprintf(line, sizeof(line), "\nkontext_preload_seconds_bucket"
             "{le=\"+Inf\"} %llu\n", (unsigned long long) sum);
    assert_non_null(strstr(buf, line));
}


/* where there is no room nothing is written beyond it, and nothing is cut */

static void
test_room(void **state)
{
    size_t          len, size;
    unsigned        i;
    kx_status_t     s;
    unsigned char  *buf, *p;

    static const write_pt  forms[] = {
        kx_status_json, kx_status_prometheus
    };

    fill(&s);

    for (i = 0; i < 2; i++) {
        buf = malloc(KX_STATUS_MAX);
        assert_non_null(buf);

        p = forms[i](buf, buf + KX_STATUS_MAX, &s);
        assert_non_null(p);
        len = (size_t) (p - buf);
        free(buf);

        for (size = 1; size <= len; size++) {
            buf = malloc(size);
            assert_non_null(buf);
            assert_null(forms[i](buf, buf + size, &s));
            free(buf);
        }

        /* with the zero that printf() writes */

        buf = malloc(len + 1);
        assert_non_null(buf);
        assert_ptr_equal(forms[i](buf, buf + len + 1, &s), buf + len);
        free(buf);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_prometheus),
        cmocka_unit_test(test_room)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
