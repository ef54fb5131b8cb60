/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Two records as a store may hand them out, sealed or not.  What is read is
 * written again as it was; merging two of them does not depend on the order;
 * and no session becomes one that the table would drop.
 */


#include <stdlib.h>

#include "check.h"
#include "record.h"
#include "session_table.h"


#define NOW   1790000000000ULL


int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len);


static const unsigned char  key[KX_ID_LEN + 1] = "a key of a store";
static const unsigned char  secret[KX_SIP_KEY_LEN + 1] = "the nodes' words";


/* the fuzzer does not find a seal */

static int
decode(kx_record_t *r, const unsigned char *p, size_t len)
{
    int            rc;
    kx_sip_t       sip;
    uint64_t       seal;
    unsigned       i;
    unsigned char  buf[KX_RECORD_MAX], again[KX_RECORD_MAX];

    if (kx_record_decode(r, p, len, key, secret, NOW) == KX_OK) {
        return KX_OK;
    }

    if (len < 4 || len > KX_RECORD_MAX - 8) {
        return KX_DECLINED;
    }

    memcpy(buf, p, len);
    memcpy(buf, "kxr\1", 4);

    kx_sip_init(&sip, secret, 0);
    kx_sip_field(&sip, key, KX_ID_LEN);
    kx_sip_field(&sip, buf, len);
    seal = kx_sip_final64(&sip);

    for (i = 0; i < 8; i++) {
        buf[len + i] = (unsigned char) (seal >> (8 * i));
    }

    rc = kx_record_decode(r, buf, len + 8, key, secret, NOW);

    if (rc == KX_OK) {
        check(kx_record_encode(again, r, key, secret) == again + len + 8);
        check(memcmp(again, buf, len + 8) == 0);
    }

    return rc;
}


int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t len)
{
    size_t         half;
    kx_record_t    a, b, ab, ba, taken;
    kx_session_t   s;
    unsigned char  message[KX_ID_LEN];

    if (len < 2) {
        return 0;
    }

    half = (data[0] | data[1] << 8) % (len - 1);
    data += 2;
    len -= 2;

    if (half > len) {
        half = len;
    }

    if (decode(&a, data, half) != KX_OK) {
        return 0;
    }

    memset(&s, 0, sizeof(s));
    memset(s.key, 1, KX_ID_LEN);
    s.live = 1;

    kx_record_give(&s, &a);
    check(kx_session_table_sane(&s));

    kx_record_take(&taken, &s, a.user);
    check(taken.flags == a.flags);
    check(taken.nturns <= 1);

    memset(message, 1, KX_ID_LEN);
    (void) kx_session_turn(&s, message, 0, 1, NOW, 100);
    check(kx_session_table_sane(&s));

    if (decode(&b, data + half, len - half) != KX_OK) {
        return 0;
    }

    ab = a;
    kx_record_merge(&ab, &b);
    ba = b;
    kx_record_merge(&ba, &a);

    /* of more turns than there is room for some are forgotten on the way */

    if (a.nturns + b.nturns <= KX_RECORD_TURNS) {
        check(memcmp(&ab, &ba, sizeof(kx_record_t)) == 0);
    }

    kx_record_give(&s, &ab);
    check(kx_session_table_sane(&s));

    return 0;
}
