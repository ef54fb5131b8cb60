/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * SipHash-2-4 (keyed; sessions), a faster keyed hash (equality of the texts
 * of one conversation), SHA-256 (FIPS 180-4; message ids), base32 (RFC 4648
 * section 6), UUIDs (RFC 9562).
 */


#ifndef _KX_HASH_H_INCLUDED_
#define _KX_HASH_H_INCLUDED_


#include "kx.h"


#define KX_SIP_KEY_LEN     16
#define KX_SHA256_LEN      32
#define KX_BASE32_ID_LEN   26     /* base32 of KX_ID_LEN bytes, no padding */


typedef struct {
    uint64_t       v0;
    uint64_t       v1;
    uint64_t       v2;
    uint64_t       v3;
    uint64_t       total;
    unsigned char  tail[8];
    unsigned       wide;
} kx_sip_t;


typedef struct {
    uint64_t       value;
    uint64_t       k0;
    uint64_t       k1;
    uint64_t       total;
    unsigned char  tail[16];
} kx_mix_t;


typedef struct {
    uint32_t       state[8];
    uint64_t       total;
    unsigned char  block[64];
} kx_sha256_t;


/*
 * Starts a hash with a secret key of KX_SIP_KEY_LEN bytes; wide chooses the
 * result of 128 bits (kx_sip_final128) instead of 64 (kx_sip_final64).
 */
void kx_sip_init(kx_sip_t *h, const unsigned char *key, unsigned wide);
void kx_sip_update(kx_sip_t *h, const void *p, size_t len);
uint64_t kx_sip_final64(kx_sip_t *h);
void kx_sip_final128(kx_sip_t *h, unsigned char result[KX_ID_LEN]);

/*
 * Adds a field so that neighbours cannot run into each other: its length in
 * 8 bytes, least significant first, and then its bytes.
 */
void kx_sip_field(kx_sip_t *h, const void *p, size_t len);

/*
 * A keyed hash of 64 bits by multiplication, several times as fast as SipHash:
 * for texts that a user could only make collide with other texts of their
 * own.  key has KX_SIP_KEY_LEN bytes.
 */
void kx_mix_init(kx_mix_t *h, const unsigned char *key);
void kx_mix_update(kx_mix_t *h, const void *p, size_t len);
uint64_t kx_mix_final(kx_mix_t *h);

/*
 * Another one of two words and len bytes at p at once, for what lies in one
 * piece.
 */
uint64_t kx_mix_once(const unsigned char *key, uint64_t a, uint64_t b,
    const void *p, size_t len);

/*
 * Where the processor has instructions for it, they are used, unless a test
 * asks for plain C.
 */
void kx_sha256_plain(unsigned plain);

void kx_sha256_init(kx_sha256_t *h);
void kx_sha256_update(kx_sha256_t *h, const void *p, size_t len);
void kx_sha256_final(kx_sha256_t *h, unsigned char result[KX_SHA256_LEN]);

/* as kx_sip_field() */
void kx_sha256_field(kx_sha256_t *h, const void *p, size_t len);

/*
 * Writes KX_BASE32_ID_LEN lower case characters for KX_ID_LEN bytes; no
 * terminating zero.  Returns the place after the last one.
 */
unsigned char *kx_base32_id(unsigned char *dst,
    const unsigned char id[KX_ID_LEN]);

/*
 * Reads a canonical UUID (8-4-4-4-12, either case) of exactly len bytes.
 * Returns KX_OK, or KX_DECLINED if it is none; id is then undefined.
 */
int kx_uuid_parse(unsigned char id[KX_ID_LEN], const unsigned char *p,
    size_t len);

/* Writes KX_UUID_LEN lower case characters; returns the place after them. */
unsigned char *kx_uuid_write(unsigned char *dst,
    const unsigned char id[KX_ID_LEN]);


#endif /* _KX_HASH_H_INCLUDED_ */
