/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "hash.h"

#if (defined(__x86_64__) && defined(__GNUC__))

#include <cpuid.h>
#include <immintrin.h>

#define KX_SHA256_NI  1

#endif


#define kx_rotl64(x, n)  (((x) << (n)) | ((x) >> (64 - (n))))
#define kx_rotr32(x, n)  (((x) >> (n)) | ((x) << (32 - (n))))

#define kx_sip_round(v0, v1, v2, v3)                                          \
    v0 += v1;                                                                 \
    v2 += v3;                                                                 \
    v1 = kx_rotl64(v1, 13) ^ v0;                                              \
    v3 = kx_rotl64(v3, 16) ^ v2;                                              \
    v0 = kx_rotl64(v0, 32) + v3;                                              \
    v2 += v1;                                                                 \
    v1 = kx_rotl64(v1, 17) ^ v2;                                              \
    v3 = kx_rotl64(v3, 21) ^ v0;                                              \
    v2 = kx_rotl64(v2, 32)

#define kx_sha256_s0(x)  (kx_rotr32(x, 7) ^ kx_rotr32(x, 18) ^ ((x) >> 3))
#define kx_sha256_s1(x)  (kx_rotr32(x, 17) ^ kx_rotr32(x, 19) ^ ((x) >> 10))
#define kx_sha256_e0(x)                                                       \
    (kx_rotr32(x, 2) ^ kx_rotr32(x, 13) ^ kx_rotr32(x, 22))
#define kx_sha256_e1(x)                                                       \
    (kx_rotr32(x, 6) ^ kx_rotr32(x, 11) ^ kx_rotr32(x, 25))


static const unsigned char *kx_sip_words(kx_sip_t *h, const unsigned char *p,
    size_t n);
static void kx_sip_last(kx_sip_t *h);
static uint64_t kx_sip_digest(kx_sip_t *h);
static inline uint64_t kx_get64(const unsigned char *p);
static void kx_put64(unsigned char *p, uint64_t n);
static inline const unsigned char *kx_mix_words(kx_mix_t *h,
    const unsigned char *p, size_t n);
static inline uint64_t kx_mix_fold(uint64_t x, uint64_t y);
static const unsigned char *kx_sha256_blocks(kx_sha256_t *h,
    const unsigned char *p, size_t n);
static const unsigned char *kx_sha256_c(kx_sha256_t *h,
    const unsigned char *p, size_t n);

#if (KX_SHA256_NI)

static unsigned kx_sha256_has_ni(void);
static const unsigned char *kx_sha256_ni(kx_sha256_t *h,
    const unsigned char *p, size_t n)
    __attribute__((target("sha,ssse3,sse4.1")));

#endif

static int kx_hex(unsigned char c);


#if (KX_SHA256_NI)

/* what the processor has: 0 is not known yet, 1 the instructions, 2 none */

static unsigned        kx_sha256_cpu;

#endif


static const uint32_t  kx_sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5,
    0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
    0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5,
    0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
};


void
kx_sip_init(kx_sip_t *h, const unsigned char *key, unsigned wide)
{
    uint64_t  k0, k1;

    k0 = kx_get64(key);
    k1 = kx_get64(key + 8);

    h->v0 = k0 ^ 0x736f6d6570736575ULL;
    h->v1 = k1 ^ 0x646f72616e646f6dULL;
    h->v2 = k0 ^ 0x6c7967656e657261ULL;
    h->v3 = k1 ^ 0x7465646279746573ULL;

    if (wide) {
        h->v1 ^= 0xee;
    }

    h->total = 0;
    h->wide = wide;
}


void
kx_sip_update(kx_sip_t *h, const void *p, size_t len)
{
    size_t                n, used;
    const unsigned char  *src;

    if (len == 0) {
        return;
    }

    src = p;
    used = h->total & 7;
    h->total += len;

    if (used) {
        n = 8 - used;

        if (len < n) {
            memcpy(h->tail + used, src, len);
            return;
        }

        memcpy(h->tail + used, src, n);
        (void) kx_sip_words(h, h->tail, 1);

        src += n;
        len -= n;
    }

    src = kx_sip_words(h, src, len / 8);

    memcpy(h->tail, src, len & 7);
}


void
kx_sip_field(kx_sip_t *h, const void *p, size_t len)
{
    unsigned char  n[8];

    kx_put64(n, len);

    kx_sip_update(h, n, 8);
    kx_sip_update(h, p, len);
}


static const unsigned char *
kx_sip_words(kx_sip_t *h, const unsigned char *p, size_t n)
{
    uint64_t  v0, v1, v2, v3, m;

    v0 = h->v0;
    v1 = h->v1;
    v2 = h->v2;
    v3 = h->v3;

    while (n--) {
        m = kx_get64(p);
        p += 8;

        v3 ^= m;
        kx_sip_round(v0, v1, v2, v3);
        kx_sip_round(v0, v1, v2, v3);
        v0 ^= m;
    }

    h->v0 = v0;
    h->v1 = v1;
    h->v2 = v2;
    h->v3 = v3;

    return p;
}


uint64_t
kx_sip_final64(kx_sip_t *h)
{
    kx_sip_last(h);

    h->v2 ^= 0xff;

    return kx_sip_digest(h);
}


void
kx_sip_final128(kx_sip_t *h, unsigned char result[KX_ID_LEN])
{
    kx_sip_last(h);

    h->v2 ^= 0xee;
    kx_put64(result, kx_sip_digest(h));

    h->v1 ^= 0xdd;
    kx_put64(result + 8, kx_sip_digest(h));
}


static void
kx_sip_last(kx_sip_t *h)
{
    size_t  used;

    used = h->total & 7;

    memset(h->tail + used, 0, 8 - used);
    h->tail[7] = (unsigned char) h->total;

    (void) kx_sip_words(h, h->tail, 1);
}


static uint64_t
kx_sip_digest(kx_sip_t *h)
{
    unsigned  i;

    for (i = 0; i < 4; i++) {
        kx_sip_round(h->v0, h->v1, h->v2, h->v3);
    }

    return h->v0 ^ h->v1 ^ h->v2 ^ h->v3;
}


static inline uint64_t
kx_get64(const unsigned char *p)
{
    return (uint64_t) p[0]
           | (uint64_t) p[1] << 8
           | (uint64_t) p[2] << 16
           | (uint64_t) p[3] << 24
           | (uint64_t) p[4] << 32
           | (uint64_t) p[5] << 40
           | (uint64_t) p[6] << 48
           | (uint64_t) p[7] << 56;
}


static void
kx_put64(unsigned char *p, uint64_t n)
{
    unsigned  i;

    for (i = 0; i < 8; i++) {
        p[i] = (unsigned char) (n >> (8 * i));
    }
}


void
kx_mix_init(kx_mix_t *h, const unsigned char *key)
{
    h->k0 = kx_get64(key);
    h->k1 = kx_get64(key + 8);
    h->value = h->k0;
    h->total = 0;
}


void
kx_mix_update(kx_mix_t *h, const void *p, size_t len)
{
    size_t                n, used;
    const unsigned char  *src;

    if (len == 0) {
        return;
    }

    src = p;
    used = h->total & 15;
    h->total += len;

    if (used) {
        n = 16 - used;

        if (len < n) {
            memcpy(h->tail + used, src, len);
            return;
        }

        memcpy(h->tail + used, src, n);
        (void) kx_mix_words(h, h->tail, 1);

        src += n;
        len -= n;
    }

    src = kx_mix_words(h, src, len / 16);

    memcpy(h->tail, src, len & 15);
}


uint64_t
kx_mix_final(kx_mix_t *h)
{
    size_t  used;

    used = h->total & 15;

    memset(h->tail + used, 0, 16 - used);

    (void) kx_mix_words(h, h->tail, 1);

    return kx_mix_fold(h->value ^ h->total, h->k0);
}


/*
 * The last block overlaps the one before, or, if there is none, is filled with
 * zeros: the length tells one from the other.
 */

uint64_t
kx_mix_once(const unsigned char *key, uint64_t a, uint64_t b, const void *p,
    size_t len)
{
    kx_mix_t              h;
    const unsigned char  *last;

    kx_mix_init(&h, key);

    h.value = kx_mix_fold(a ^ h.k1, b ^ h.k0);
    last = p;

    if (len >= 16) {
        (void) kx_mix_words(&h, p, (len - 1) / 16);
        last += len - 16;

    } else {
        memset(h.tail, 0, sizeof(h.tail));

        if (len) {
            memcpy(h.tail, p, len);
        }

        last = h.tail;
    }

    (void) kx_mix_words(&h, last, 1);

    return kx_mix_fold(h.value ^ len, h.k0);
}


static inline const unsigned char *
kx_mix_words(kx_mix_t *h, const unsigned char *p, size_t n)
{
    uint64_t  value;

    value = h->value;

    while (n--) {
        value = kx_mix_fold(kx_get64(p) ^ h->k1, kx_get64(p + 8) ^ value);
        p += 16;
    }

    h->value = value;

    return p;
}


/* both halves of the product, one over the other */

static inline uint64_t
kx_mix_fold(uint64_t x, uint64_t y)
{
#ifdef __SIZEOF_INT128__

    __extension__ unsigned __int128  product;

    product = x;
    product *= y;

    return (uint64_t) product ^ (uint64_t) (product >> 64);

#else

    uint64_t  a, b, c, d, m, low;

    a = (x >> 32) * (y >> 32);
    b = (x >> 32) * (y & 0xffffffff);
    c = (x & 0xffffffff) * (y >> 32);
    d = (x & 0xffffffff) * (y & 0xffffffff);

    m = (d >> 32) + (b & 0xffffffff) + (c & 0xffffffff);
    low = m << 32 | (d & 0xffffffff);

    return low ^ (a + (b >> 32) + (c >> 32) + (m >> 32));

#endif
}


void
kx_sha256_init(kx_sha256_t *h)
{
    h->state[0] = 0x6a09e667;
    h->state[1] = 0xbb67ae85;
    h->state[2] = 0x3c6ef372;
    h->state[3] = 0xa54ff53a;
    h->state[4] = 0x510e527f;
    h->state[5] = 0x9b05688c;
    h->state[6] = 0x1f83d9ab;
    h->state[7] = 0x5be0cd19;

    h->total = 0;
}


void
kx_sha256_update(kx_sha256_t *h, const void *p, size_t len)
{
    size_t                n, used;
    const unsigned char  *src;

    if (len == 0) {
        return;
    }

    src = p;
    used = h->total & 63;
    h->total += len;

    if (used) {
        n = 64 - used;

        if (len < n) {
            memcpy(h->block + used, src, len);
            return;
        }

        memcpy(h->block + used, src, n);
        (void) kx_sha256_blocks(h, h->block, 1);

        src += n;
        len -= n;
    }

    src = kx_sha256_blocks(h, src, len / 64);

    memcpy(h->block, src, len & 63);
}


void
kx_sha256_field(kx_sha256_t *h, const void *p, size_t len)
{
    unsigned char  n[8];

    kx_put64(n, len);

    kx_sha256_update(h, n, 8);
    kx_sha256_update(h, p, len);
}


void
kx_sha256_final(kx_sha256_t *h, unsigned char result[KX_SHA256_LEN])
{
    size_t    used;
    uint32_t  word;
    uint64_t  bits;
    unsigned  i;

    used = h->total & 63;
    bits = h->total * 8;

    h->block[used++] = 0x80;

    if (used > 56) {
        memset(h->block + used, 0, 64 - used);
        (void) kx_sha256_blocks(h, h->block, 1);
        used = 0;
    }

    memset(h->block + used, 0, 56 - used);

    for (i = 0; i < 8; i++) {
        h->block[56 + i] = (unsigned char) (bits >> (56 - 8 * i));
    }

    (void) kx_sha256_blocks(h, h->block, 1);

    for (i = 0; i < 8; i++, result += 4) {
        word = h->state[i];

        result[0] = (unsigned char) (word >> 24);
        result[1] = (unsigned char) (word >> 16);
        result[2] = (unsigned char) (word >> 8);
        result[3] = (unsigned char) word;
    }
}


void
kx_sha256_plain(unsigned plain)
{
#if (KX_SHA256_NI)
    kx_sha256_cpu = plain ? 2 : 0;
#endif
}


static const unsigned char *
kx_sha256_blocks(kx_sha256_t *h, const unsigned char *p, size_t n)
{
#if (KX_SHA256_NI)

    if (kx_sha256_cpu == 0) {
        kx_sha256_cpu = kx_sha256_has_ni() ? 1 : 2;
    }

    if (kx_sha256_cpu == 1) {
        return kx_sha256_ni(h, p, n);
    }

#endif

    return kx_sha256_c(h, p, n);
}


#if (KX_SHA256_NI)

static unsigned
kx_sha256_has_ni(void)
{
    unsigned  a, b, c, d;

    if (!__get_cpuid(1, &a, &b, &c, &d)
        || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
    {
        return 0;
    }

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}


/* four rounds at a time; w holds the last 16 words of the schedule */

static const unsigned char *
kx_sha256_ni(kx_sha256_t *h, const unsigned char *p, size_t n)
{
    __m128i   w[4], s0, s1, t, abef, cdgh, swap;
    unsigned  i;

    swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);

    t = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *) &h->state[0]),
                          0xb1);
    s1 = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *) &h->state[4]),
                           0x1b);
    s0 = _mm_alignr_epi8(t, s1, 8);
    s1 = _mm_blend_epi16(s1, t, 0xf0);

    while (n--) {
        abef = s0;
        cdgh = s1;

        for (i = 0; i < 16; i++) {

            if (i < 4) {
                w[i] = _mm_shuffle_epi8(
                           _mm_loadu_si128((const __m128i *) (p + 16 * i)),
                           swap);

            } else {
                t = _mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]);
                t = _mm_add_epi32(t, _mm_alignr_epi8(w[(i + 3) & 3],
                                                     w[(i + 2) & 3], 4));
                w[i & 3] = _mm_sha256msg2_epu32(t, w[(i + 3) & 3]);
            }

            t = _mm_add_epi32(w[i & 3],
                    _mm_loadu_si128((const __m128i *) &kx_sha256_k[4 * i]));

            s1 = _mm_sha256rnds2_epu32(s1, s0, t);
            s0 = _mm_sha256rnds2_epu32(s0, s1, _mm_shuffle_epi32(t, 0x0e));
        }

        s0 = _mm_add_epi32(s0, abef);
        s1 = _mm_add_epi32(s1, cdgh);

        p += 64;
    }

    t = _mm_shuffle_epi32(s0, 0x1b);
    s1 = _mm_shuffle_epi32(s1, 0xb1);

    _mm_storeu_si128((__m128i *) &h->state[0], _mm_blend_epi16(t, s1, 0xf0));
    _mm_storeu_si128((__m128i *) &h->state[4], _mm_alignr_epi8(s1, t, 8));

    return p;
}

#endif


static const unsigned char *
kx_sha256_c(kx_sha256_t *h, const unsigned char *p, size_t n)
{
    uint32_t  a, b, c, d, e, f, g, x, t, u, w[64];
    unsigned  i;

    while (n--) {

        for (i = 0; i < 16; i++, p += 4) {
            w[i] = (uint32_t) p[0] << 24 | (uint32_t) p[1] << 16
                   | (uint32_t) p[2] << 8 | (uint32_t) p[3];
        }

        for ( /* void */ ; i < 64; i++) {
            w[i] = w[i - 16] + kx_sha256_s0(w[i - 15]) + w[i - 7]
                   + kx_sha256_s1(w[i - 2]);
        }

        a = h->state[0];
        b = h->state[1];
        c = h->state[2];
        d = h->state[3];
        e = h->state[4];
        f = h->state[5];
        g = h->state[6];
        x = h->state[7];

        for (i = 0; i < 64; i++) {
            t = x + kx_sha256_e1(e) + ((e & f) ^ (~e & g)) + kx_sha256_k[i]
                + w[i];
            u = kx_sha256_e0(a) + ((a & b) ^ (a & c) ^ (b & c));

            x = g;
            g = f;
            f = e;
            e = d + t;
            d = c;
            c = b;
            b = a;
            a = t + u;
        }

        h->state[0] += a;
        h->state[1] += b;
        h->state[2] += c;
        h->state[3] += d;
        h->state[4] += e;
        h->state[5] += f;
        h->state[6] += g;
        h->state[7] += x;
    }

    return p;
}


unsigned char *
kx_base32_id(unsigned char *dst, const unsigned char id[KX_ID_LEN])
{
    static const char  alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

    unsigned  i;
    uint64_t  bits;

    /* five bytes are eight characters */

    for (i = 0; i < KX_ID_LEN - 1; i += 5) {
        bits = (uint64_t) id[i] << 32
               | (uint64_t) id[i + 1] << 24
               | (uint64_t) id[i + 2] << 16
               | (uint64_t) id[i + 3] << 8
               | (uint64_t) id[i + 4];

        dst[0] = (unsigned char) alphabet[bits >> 35];
        dst[1] = (unsigned char) alphabet[bits >> 30 & 31];
        dst[2] = (unsigned char) alphabet[bits >> 25 & 31];
        dst[3] = (unsigned char) alphabet[bits >> 20 & 31];
        dst[4] = (unsigned char) alphabet[bits >> 15 & 31];
        dst[5] = (unsigned char) alphabet[bits >> 10 & 31];
        dst[6] = (unsigned char) alphabet[bits >> 5 & 31];
        dst[7] = (unsigned char) alphabet[bits & 31];

        dst += 8;
    }

    *dst++ = (unsigned char) alphabet[id[i] >> 3];
    *dst++ = (unsigned char) alphabet[id[i] << 2 & 31];

    return dst;
}


int
kx_uuid_parse(unsigned char id[KX_ID_LEN], const unsigned char *p, size_t len)
{
    int       high, low;
    unsigned  i;

    if (len != KX_UUID_LEN) {
        return KX_DECLINED;
    }

    for (i = 0; i < KX_ID_LEN; i++) {

        if (i == 4 || i == 6 || i == 8 || i == 10) {

            if (*p++ != '-') {
                return KX_DECLINED;
            }
        }

        high = kx_hex(*p++);
        low = kx_hex(*p++);

        if (high < 0 || low < 0) {
            return KX_DECLINED;
        }

        id[i] = (unsigned char) (high << 4 | low);
    }

    return KX_OK;
}


static int
kx_hex(unsigned char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }

    c |= 0x20;

    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }

    return -1;
}


unsigned char *
kx_uuid_write(unsigned char *dst, const unsigned char id[KX_ID_LEN])
{
    static const char  hex[] = "0123456789abcdef";

    unsigned  i;

    for (i = 0; i < KX_ID_LEN; i++) {

        if (i == 4 || i == 6 || i == 8 || i == 10) {
            *dst++ = '-';
        }

        *dst++ = (unsigned char) hex[id[i] >> 4];
        *dst++ = (unsigned char) hex[id[i] & 15];
    }

    return dst;
}
