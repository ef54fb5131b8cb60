/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "hash.h"


typedef struct {
    const char  *text;
    const char  *hex;
} vector_t;


static void to_hex(char *dst, const unsigned char *p, size_t len);
static void sha256_hex(char *dst, const void *p, size_t len);


/* FIPS 180-4 and the examples that NIST gives with it */

static const vector_t  sha256_vectors[] = {
    { "",
      "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
    { "abc",
      "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
    { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
    { "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
      "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
      "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1" }
};


/*
 * The test vectors of the SipHash paper and its reference: key 00 01 .. 0f,
 * message 00 01 .. of the length that is the index.
 */

static const char  *sip64_vectors[] = {
    "310e0edd47db6f72",
    "fd67dc93c539f874",
    "5a4fa9d909806c0d",
    "2d7efbd796666785",
    "b7877127e09427cf",
    "8da699cd64557618",
    "cee3fe586e46c9cb",
    "37d1018bf50002ab",
    "6224939a79f5f593",
    "b0e4a90bdf82009e",
    "f3b9dd94c5bb5d7a",
    "a7ad6b22462fb3f4",
    "fbe50e86bc8f1e75",
    "903d84c02756ea14",
    "eef27a8e90ca23f7",
    "e545be4961ca29a1"
};


static const char  *sip128_vectors[] = {
    "a3817f04ba25a8e66df67214c7550293",
    "da87c1d86b99af44347659119b22fc45",
    "8177228da4a45dc7fca38bdef60affe4",
    "9c70b60c5267a94e5f33b6b02985ed51",
    "f88164c12d9c8faf7d0f6e7c7bcd5579",
    "1368875980776f8854527a07690e9627",
    "14eeca338b208613485ea0308fd7a15e",
    "a1f1ebbed8dbc153c0b84aa61ff08239"
};


static void
to_hex(char *dst, const unsigned char *p, size_t len)
{
    while (len--) {
        (void) sprintf(dst, "%02x", *p++);
        dst += 2;
    }

    *dst = '\0';
}


static void
sha256_hex(char *dst, const void *p, size_t len)
{
    kx_sha256_t    h;
    unsigned char  result[KX_SHA256_LEN];

    kx_sha256_init(&h);
    kx_sha256_update(&h, p, len);
    kx_sha256_final(&h, result);

    to_hex(dst, result, KX_SHA256_LEN);
}


static void
test_sha256_vectors(void **state)
{
    char    hex[2 * KX_SHA256_LEN + 1];
    size_t  i;

    for (i = 0; i < sizeof(sha256_vectors) / sizeof(vector_t); i++) {
        sha256_hex(hex, sha256_vectors[i].text,
                   strlen(sha256_vectors[i].text));

        assert_string_equal(hex, sha256_vectors[i].hex);
    }
}


static void
test_sha256_million(void **state)
{
    char            hex[2 * KX_SHA256_LEN + 1];
    size_t          left, n;
    kx_sha256_t     h;
    unsigned char   result[KX_SHA256_LEN], a[997];

    memset(a, 'a', sizeof(a));
    kx_sha256_init(&h);

    for (left = 1000000; left; left -= n) {
        n = (left < sizeof(a)) ? left : sizeof(a);
        kx_sha256_update(&h, a, n);
    }

    kx_sha256_final(&h, result);
    to_hex(hex, result, KX_SHA256_LEN);

    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67"
                             "f1809a48a497200e046d39ccc7112cd0");
}


/* all lengths around the end of a block, in all splits */

static void
test_sha256_splits(void **state)
{
    char            whole[2 * KX_SHA256_LEN + 1], split[2 * KX_SHA256_LEN + 1];
    size_t          len, at;
    kx_sha256_t     h;
    unsigned char   p[200], result[KX_SHA256_LEN];

    for (at = 0; at < sizeof(p); at++) {
        p[at] = (unsigned char) (at * 7 + 1);
    }

    for (len = 0; len <= sizeof(p); len++) {
        sha256_hex(whole, p, len);

        for (at = 0; at <= len; at++) {
            kx_sha256_init(&h);
            kx_sha256_update(&h, p, at);
            kx_sha256_update(&h, p + at, len - at);
            kx_sha256_final(&h, result);
            to_hex(split, result, KX_SHA256_LEN);

            assert_string_equal(split, whole);
        }
    }

    /* of these bytes, by sha256sum */

    sha256_hex(whole, p, 55);
    assert_string_equal(whole, "16fa57a0a3423a715d594516339f3618"
                               "9d6b5f93754a9714fef202616a9fabfe");
    sha256_hex(whole, p, 56);
    assert_string_equal(whole, "c37b44e5f1b18554b36966f4f8e08bfb"
                               "f3164c4b6c10374d12d89850892073c5");
    sha256_hex(whole, p, 64);
    assert_string_equal(whole, "66bd4633ed6f71c4ecfa4763bf7ba1c8"
                               "ec7612de9aa6c0578a7b675207c71e0b");
    sha256_hex(whole, p, 200);
    assert_string_equal(whole, "397276ea1f65a10cbd90e9d622ab533c"
                               "f9fc4e14056fc9915feb8f4a52d47dc7");
}


static void
test_sip64_vectors(void **state)
{
    char           hex[17];
    size_t         i;
    unsigned       n;
    uint64_t       hash;
    kx_sip_t       h;
    unsigned char  key[KX_SIP_KEY_LEN], msg[64], result[8];

    for (i = 0; i < sizeof(msg); i++) {
        msg[i] = (unsigned char) i;
    }

    memcpy(key, msg, KX_SIP_KEY_LEN);

    for (i = 0; i < sizeof(sip64_vectors) / sizeof(char *); i++) {
        kx_sip_init(&h, key, 0);
        kx_sip_update(&h, msg, i);
        hash = kx_sip_final64(&h);

        /* the reference writes it least significant byte first */

        for (n = 0; n < 8; n++) {
            result[n] = (unsigned char) (hash >> (8 * n));
        }

        to_hex(hex, result, 8);
        assert_string_equal(hex, sip64_vectors[i]);
    }

    kx_sip_init(&h, key, 0);
    kx_sip_update(&h, msg, 63);
    assert_true(kx_sip_final64(&h) == 0x958a324ceb064572ULL);
}


static void
test_sip128_vectors(void **state)
{
    char           hex[2 * KX_ID_LEN + 1];
    size_t         i;
    kx_sip_t       h;
    unsigned char  key[KX_SIP_KEY_LEN], msg[64], result[KX_ID_LEN];

    for (i = 0; i < sizeof(msg); i++) {
        msg[i] = (unsigned char) i;
    }

    memcpy(key, msg, KX_SIP_KEY_LEN);

    for (i = 0; i < sizeof(sip128_vectors) / sizeof(char *); i++) {
        kx_sip_init(&h, key, 1);
        kx_sip_update(&h, msg, i);
        kx_sip_final128(&h, result);

        to_hex(hex, result, KX_ID_LEN);
        assert_string_equal(hex, sip128_vectors[i]);
    }

    kx_sip_init(&h, key, 1);
    kx_sip_update(&h, msg, 63);
    kx_sip_final128(&h, result);
    to_hex(hex, result, KX_ID_LEN);
    assert_string_equal(hex, "5150d1772f50834a503e069a973fbd7c");
}


static void
test_sip_splits(void **state)
{
    size_t         len, at, last;
    uint64_t       whole;
    kx_sip_t       h;
    unsigned char  p[40], key[KX_SIP_KEY_LEN];

    memset(key, 0x5a, sizeof(key));

    for (at = 0; at < sizeof(p); at++) {
        p[at] = (unsigned char) (at * 11 + 3);
    }

    for (len = 0; len <= sizeof(p); len++) {
        kx_sip_init(&h, key, 0);
        kx_sip_update(&h, p, len);
        whole = kx_sip_final64(&h);

        for (at = 0; at <= len; at++) {
            for (last = at; last <= len; last++) {
                kx_sip_init(&h, key, 0);
                kx_sip_update(&h, p, at);
                kx_sip_update(&h, p + at, last - at);
                kx_sip_update(&h, p + last, len - last);

                assert_true(kx_sip_final64(&h) == whole);
            }
        }
    }
}


static void
test_fields(void **state)
{
    char           one[2 * KX_SHA256_LEN + 1], two[2 * KX_SHA256_LEN + 1];
    uint64_t       hash;
    kx_sip_t       sip;
    kx_sha256_t    sha;
    unsigned char  key[KX_SIP_KEY_LEN], result[KX_SHA256_LEN];

    static const char  plain[] = "\3\0\0\0\0\0\0\0abc\0\0\0\0\0\0\0\0";

    memset(key, 1, sizeof(key));

    kx_sha256_init(&sha);
    kx_sha256_field(&sha, "abc", 3);
    kx_sha256_field(&sha, NULL, 0);
    kx_sha256_final(&sha, result);
    to_hex(one, result, KX_SHA256_LEN);

    sha256_hex(two, plain, sizeof(plain) - 1);
    assert_string_equal(one, two);

    kx_sip_init(&sip, key, 0);
    kx_sip_field(&sip, "abc", 3);
    kx_sip_field(&sip, NULL, 0);
    hash = kx_sip_final64(&sip);

    kx_sip_init(&sip, key, 0);
    kx_sip_update(&sip, plain, sizeof(plain) - 1);
    assert_true(kx_sip_final64(&sip) == hash);

    /* neighbours do not run into each other */

    kx_sip_init(&sip, key, 0);
    kx_sip_field(&sip, "ab", 2);
    kx_sip_field(&sip, "c", 1);
    assert_true(kx_sip_final64(&sip) != hash);
}


static void
test_base32(void **state)
{
    unsigned char  id[KX_ID_LEN], dst[KX_BASE32_ID_LEN + 1];

    memset(dst, '#', sizeof(dst));
    memset(id, 0, sizeof(id));

    assert_ptr_equal(kx_base32_id(dst, id), dst + KX_BASE32_ID_LEN);
    assert_memory_equal(dst, "aaaaaaaaaaaaaaaaaaaaaaaaaa#", sizeof(dst));

    memset(id, 0xff, sizeof(id));
    (void) kx_base32_id(dst, id);
    assert_memory_equal(dst, "77777777777777777777777774#", sizeof(dst));

    memcpy(id, "foobarfoobarfoob", KX_ID_LEN);
    (void) kx_base32_id(dst, id);
    assert_memory_equal(dst, "mzxw6ytbojtg633cmfzgm33pmi#", sizeof(dst));
}


static void
test_uuid(void **state)
{
    unsigned       i, c;
    unsigned char  id[KX_ID_LEN], text[KX_UUID_LEN], dst[KX_UUID_LEN + 1];

    static const char           upper[] =
                                    "00112233-4455-6677-8899-AABBCCDDEEFF";
    static const unsigned char  bytes[] =
                                    "\x00\x11\x22\x33\x44\x55\x66\x77"
                                    "\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

    memcpy(text, upper, KX_UUID_LEN);

    assert_int_equal(kx_uuid_parse(id, text, KX_UUID_LEN), KX_OK);
    assert_memory_equal(id, bytes, KX_ID_LEN);

    memset(dst, '#', sizeof(dst));
    assert_ptr_equal(kx_uuid_write(dst, id), dst + KX_UUID_LEN);
    assert_memory_equal(dst, "00112233-4455-6677-8899-aabbccddeeff#",
                        sizeof(dst));

    assert_int_equal(kx_uuid_parse(id, dst, KX_UUID_LEN), KX_OK);
    assert_memory_equal(id, bytes, KX_ID_LEN);

    /* length */

    assert_int_equal(kx_uuid_parse(id, text, 0), KX_DECLINED);
    assert_int_equal(kx_uuid_parse(id, text, KX_UUID_LEN - 1), KX_DECLINED);
    assert_int_equal(kx_uuid_parse(id, dst, KX_UUID_LEN + 1), KX_DECLINED);

    /* any other character, anywhere */

    for (i = 0; i < KX_UUID_LEN; i++) {
        for (c = 0; c < 256; c++) {

            if (upper[i] == '-') {
                if (c == '-') {
                    continue;
                }

            } else if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')
                       || (c >= 'A' && c <= 'F'))
            {
                continue;
            }

            text[i] = (unsigned char) c;
            assert_int_equal(kx_uuid_parse(id, text, KX_UUID_LEN),
                             KX_DECLINED);
        }

        text[i] = (unsigned char) upper[i];
    }
}


/* SHA-256 in plain C, and as the processor can do it */

static int
plain(void **state)
{
    (void) state;

    kx_sha256_plain(1);

    return 0;
}


static int
fast(void **state)
{
    (void) state;

    kx_sha256_plain(0);

    return 0;
}


static void
test_sha256_twins(void **state)
{
    char           one[2 * KX_SHA256_LEN + 1], two[2 * KX_SHA256_LEN + 1];
    size_t         i, len;
    unsigned char  p[1000];

    for (i = 0; i < sizeof(p); i++) {
        p[i] = (unsigned char) (i * i * 31 + i / 3);
    }

    for (len = 0; len <= sizeof(p); len++) {
        kx_sha256_plain(1);
        sha256_hex(one, p, len);

        kx_sha256_plain(0);
        sha256_hex(two, p, len);

        assert_string_equal(one, two);
    }
}


static void
test_mix_splits(void **state)
{
    size_t         i, len, at;
    uint64_t       whole;
    kx_mix_t       h;
    unsigned char  p[100];

    for (i = 0; i < sizeof(p); i++) {
        p[i] = (unsigned char) (i * 7 + 1);
    }

    for (len = 0; len <= sizeof(p); len++) {
        kx_mix_init(&h, (unsigned char *) "0123456789abcdef");
        kx_mix_update(&h, p, len);
        whole = kx_mix_final(&h);

        for (at = 0; at <= len; at++) {
            kx_mix_init(&h, (unsigned char *) "0123456789abcdef");
            kx_mix_update(&h, p, at);
            kx_mix_update(&h, p + at, len - at);

            assert_true(kx_mix_final(&h) == whole);
        }
    }
}


static uint64_t
mix(const char *key, const unsigned char *p, size_t len)
{
    kx_mix_t  h;

    kx_mix_init(&h, (const unsigned char *) key);
    kx_mix_update(&h, p, len);

    return kx_mix_final(&h);
}


static uint64_t
mix_once(const char *key, const unsigned char *p, size_t len)
{
    return kx_mix_once((const unsigned char *) key, 3, 4, p, len);
}


/* another key, length or bit gives another value */

static void
mix_differs(uint64_t (*hash)(const char *, const unsigned char *, size_t),
    size_t size)
{
    size_t         i, j, n;
    uint64_t       seen[600];
    unsigned char  p[40];

    memset(p, 0, sizeof(p));
    n = 0;

    for (i = 0; i <= size; i++) {
        seen[n++] = hash("0123456789abcdef", p, i);
        seen[n++] = hash("fedcba9876543210", p, i);
    }

    for (i = 0; i < size * 8; i++) {
        p[i / 8] ^= (unsigned char) (1 << (i % 8));
        seen[n++] = hash("0123456789abcdef", p, size);
        p[i / 8] ^= (unsigned char) (1 << (i % 8));
    }

    for (i = 0; i < n; i++) {
        for (j = 0; j < i; j++) {
            assert_true(seen[i] != seen[j]);
        }
    }
}


static void
test_mix_differs(void **state)
{
    (void) state;

    mix_differs(mix, 40);
}


static void
test_mix_once_differs(void **state)
{
    size_t                size, i;
    const unsigned char  *key = (const unsigned char *) "0123456789abcdef";

    (void) state;

    for (size = 0; size <= 40; size++) {
        mix_differs(mix_once, size);
    }

    /* so do the words, and their order */

    for (i = 0; i <= 16; i += 8) {
        assert_true(kx_mix_once(key, 1, 2, key, i)
                    != kx_mix_once(key, 2, 1, key, i));
        assert_true(kx_mix_once(key, 1, 2, key, i)
                    != kx_mix_once(key, 1, 3, key, i));
    }

    assert_true(kx_mix_once(key, 1, 2, NULL, 0)
                == kx_mix_once(key, 1, 2, "", 0));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_sha256_vectors),
        cmocka_unit_test(test_sha256_million),
        cmocka_unit_test(test_sha256_splits),
        cmocka_unit_test_setup_teardown(test_sha256_vectors, plain, fast),
        cmocka_unit_test_setup_teardown(test_sha256_million, plain, fast),
        cmocka_unit_test_setup_teardown(test_sha256_splits, plain, fast),
        cmocka_unit_test(test_sha256_twins),
        cmocka_unit_test(test_mix_splits),
        cmocka_unit_test(test_mix_differs),
        cmocka_unit_test(test_mix_once_differs),
        cmocka_unit_test(test_sip64_vectors),
        cmocka_unit_test(test_sip128_vectors),
        cmocka_unit_test(test_sip_splits),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_base32),
        cmocka_unit_test(test_uuid)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
