/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * A text is read once, eight bytes at a time, until there is a digit, an "@"
 * or a long word.  From there it is looked back and ahead, within bounds that
 * do not depend on the text.
 */


#include "redact.h"

#include <cjson/cJSON.h>


#define KX_REDACT_MIN_DIGITS  6
#define KX_REDACT_MAX_GROUPS  12
#define KX_REDACT_MAX_DIGITS  40
#define KX_REDACT_MAX_SEPARATOR  3   /* characters between two groups */
#define KX_REDACT_MAX_LOCAL   128    /* bytes in front of the "@" */
#define KX_REDACT_MAX_DOMAIN  253
#define KX_REDACT_MIN_TOKEN   16
#define KX_REDACT_KEY_DOTS    2      /* within a key whose prefix has one */
#define KX_REDACT_CUE         40     /* bytes in front of a number */
#define KX_REDACT_PEM         240    /* of its first lines */
#define KX_REDACT_TAIL        4096  /* of a last word that was cut */


/* of 64 bits, a value in each byte */

#define KX_BYTES(c)      (0x0101010101010101ULL * (c))
#define KX_HIGH          KX_BYTES(0x80)


/* what stands between two groups of digits */

#define KX_SEP_SPACE     1
#define KX_SEP_DASH      2
#define KX_SEP_DOT       4
#define KX_SEP_SLASH     8
#define KX_SEP_OPEN      16
#define KX_SEP_CLOSE     32
#define KX_SEP_LINE      64
#define KX_SEP_MANY      128         /* more than one character */


typedef struct {
    const unsigned char  *text;
    const unsigned char  *last;
    const unsigned char  *done;      /* what is before it is in the copy */
    const unsigned char  *token;     /* the end of the last long word */
    unsigned              kinds;

    unsigned char        *copy;
    unsigned char        *pos;
    unsigned char        *end;
    unsigned              failed:1;
} kx_redact_t;


typedef struct {
    const unsigned char  *start;
    const unsigned char  *end;
    unsigned              n;         /* digits */
    unsigned              first;     /* the first one, an index */
    unsigned              sep;       /* in front of it, KX_SEP_* */
} kx_digits_t;


typedef struct {
    const unsigned char  *start;     /* with a "+" and a bracket */
    kx_digits_t           groups[KX_REDACT_MAX_GROUPS];
    unsigned              n;
    unsigned char         digits[KX_REDACT_MAX_DIGITS];
    unsigned              plus:1;
    unsigned              open:1;
    unsigned              price:1;
    int                   cue;       /* above zero: a telephone's */
} kx_number_t;


/* a key of a known maker: a prefix, and at least so many characters more */

typedef struct {
    const char           *prefix;
    unsigned              min;
    unsigned              upper;     /* nothing but capitals and digits */
} kx_key_t;


/* a word in front of a number or of a token */

typedef struct {
    const char           *word;
    unsigned              whole;     /* no letter may follow */
    int                   cue;
} kx_cue_t;


static const unsigned char *kx_redact_next(const kx_redact_t *r,
    const unsigned char *p);
static unsigned kx_redact_special(const unsigned char *p,
    const unsigned char *last);
static const unsigned char *kx_redact_at(kx_redact_t *r,
    const unsigned char *p);
static void kx_redact_put(kx_redact_t *r, const unsigned char *start,
    const unsigned char *end, const char *what);

static void kx_redact_tail(kx_str_t *text);
static unsigned kx_tail_begins(const unsigned char *start,
    const unsigned char *p, const unsigned char *last);
static const unsigned char *kx_tail_number(const unsigned char *start,
    const unsigned char *last);
static unsigned kx_digit_behind(const unsigned char *p,
    const unsigned char *start);

static const unsigned char *kx_redact_email(kx_redact_t *r,
    const unsigned char *p, size_t len);
static const unsigned char *kx_email_local(const kx_redact_t *r,
    const unsigned char *p);
static const unsigned char *kx_email_domain(const kx_redact_t *r,
    const unsigned char *p);
static const unsigned char *kx_email_labels(const unsigned char *p,
    const unsigned char *last, unsigned wide);
static unsigned kx_email_top(const unsigned char *p, size_t len);
static unsigned kx_letter_ahead(const unsigned char *p,
    const unsigned char *last, unsigned wide);
static unsigned kx_letter_behind(const unsigned char *p,
    const unsigned char *start, unsigned wide);

static const unsigned char *kx_redact_number(kx_redact_t *r,
    const unsigned char *p);
static const unsigned char *kx_number_skip(const kx_redact_t *r,
    const unsigned char *p);
static const unsigned char *kx_number_read(kx_number_t *n,
    const kx_redact_t *r, const unsigned char *p, unsigned *more);
static const unsigned char *kx_number_separator(const unsigned char *p,
    const unsigned char *last, unsigned *sep);
static void kx_number_trim(kx_number_t *n, const kx_redact_t *r);
static const unsigned char *kx_number_start(const kx_number_t *n, unsigned i,
    unsigned m);
static unsigned kx_number_value(const kx_number_t *n, unsigned group);
static unsigned kx_number_total(const kx_number_t *n, unsigned from,
    unsigned to);
static unsigned kx_number_prefix(const kx_number_t *n, unsigned group,
    const char *digits);
static unsigned kx_number_date(const kx_number_t *n, unsigned i);
static unsigned kx_number_card(const kx_number_t *n, unsigned i);
static unsigned kx_card_issuer(const unsigned char *d, unsigned n);
static unsigned kx_card_luhn(const unsigned char *d, unsigned n);
static unsigned kx_number_phone(const kx_number_t *n, unsigned i);
static unsigned kx_phone_any(const kx_number_t *n, unsigned i, unsigned min,
    unsigned max);
static unsigned kx_phone_national(const kx_number_t *n, unsigned i);
static int kx_number_cue(const kx_redact_t *r, const unsigned char *p);
static unsigned kx_number_is_price(const kx_redact_t *r,
    const unsigned char *start, const unsigned char *end);

static const unsigned char *kx_redact_token(kx_redact_t *r,
    const unsigned char *p);
static const unsigned char *kx_token_pem(kx_redact_t *r,
    const unsigned char *start);
static const unsigned char *kx_token_key(const unsigned char *p,
    const unsigned char *last);
static const unsigned char *kx_token_jwt(const unsigned char *p,
    const unsigned char *last);
static const unsigned char *kx_token_led(const kx_redact_t *r,
    const unsigned char *p, const unsigned char *last);
static unsigned kx_token_leads(const unsigned char *p,
    const unsigned char *start);
static unsigned kx_cue_find(const unsigned char *start,
    const unsigned char *last, int cue);
static unsigned kx_cue_first(unsigned char c);
static unsigned kx_cue_is(const kx_cue_t *cue, const unsigned char *p,
    const unsigned char *last);
static unsigned kx_digit(const unsigned char *p, const unsigned char *last,
    unsigned *digit);
static const void *kx_find(const unsigned char *p, const unsigned char *last,
    const char *s);


static const kx_key_t  kx_keys[] = {
    { "sk-", 20, 0 }, { "sk_live_", 16, 0 }, { "sk_test_", 16, 0 },
    { "rk_live_", 16, 0 }, { "rk_test_", 16, 0 }, { "whsec_", 20, 0 },
    { "ghp_", 30, 0 }, { "gho_", 30, 0 }, { "ghu_", 30, 0 },
    { "ghs_", 30, 0 }, { "ghr_", 30, 0 }, { "github_pat_", 30, 0 },
    { "glpat-", 20, 0 }, { "gldt-", 20, 0 }, { "AKIA", 16, 1 },
    { "ASIA", 16, 1 }, { "AIza", 30, 0 }, { "ya29.", 20, 0 },
    { "GOCSPX-", 20, 0 }, { "xoxb-", 20, 0 }, { "xoxp-", 20, 0 },
    { "xoxa-", 20, 0 }, { "xoxr-", 20, 0 }, { "xoxs-", 20, 0 },
    { "xapp-", 20, 0 }, { "hf_", 30, 0 }, { "npm_", 30, 0 },
    { "pypi-", 50, 0 }, { "dop_v1_", 40, 0 }, { "SG.", 30, 0 },
    { "gsk_", 30, 0 }, { "xai-", 40, 0 }, { "pplx-", 30, 0 },
    { "r8_", 30, 0 }, { "nvapi-", 40, 0 }, { "shpat_", 30, 0 },
    { "lin_api_", 30, 0 }, { "PMAK-", 40, 0 }, { "AGE-SECRET-KEY-1", 50, 1 },
    { NULL, 0, 0 }
};


/* words that a secret stands behind */

static const char *const  kx_leads[] = {
    "bearer", "basic", "api-key", "api_key", "apikey", "api key", "token",
    "secret", "secret_key", "secretkey", "access_key", "accesskey",
    "private_key", "account_key", "accountkey", "password", "passwd", NULL
};


/* in the order of their bytes, which are UTF-8 in lower case */

static const kx_cue_t  kx_cues[] = {
    { "anruf", 0, 1 }, { "appel", 0, 1 }, { "ara", 1, 1 },
    { "article", 0, -1 }, { "auftrag", 0, -1 }, { "bel", 1, 1 },
    { "bestell", 0, -1 }, { "bestelling", 0, -1 }, { "build", 0, -1 },
    { "call", 1, 1 }, { "case", 1, -1 }, { "cell", 1, 1 },
    { "cellulare", 0, 1 }, { "celular", 0, 1 }, { "chiama", 0, 1 },
    { "colis", 0, -1 }, { "commande", 0, -1 }, { "commit", 0, -1 },
    { "ean", 1, -1 }, { "factura", 0, -1 }, { "facture", 0, -1 },
    { "faktur", 0, -1 }, { "fattura", 0, -1 }, { "fatura", 0, -1 },
    { "fax", 1, 1 }, { "handy", 0, 1 }, { "hp", 1, 1 }, { "id", 1, -1 },
    { "invoice", 0, -1 }, { "isbn", 0, -1 }, { "issn", 0, -1 },
    { "item", 1, -1 }, { "kom\xc3\xb3rk", 0, 1 }, { "kundennummer", 0, -1 },
    { "ligar", 0, 1 }, { "ligue", 0, 1 }, { "llama", 0, 1 },
    { "ll\xc3\xa1ma", 0, 1 }, { "mobil", 0, 1 }, { "mobile", 0, 1 },
    { "m\xc3\xb3vil", 0, 1 }, { "no", 1, -1 }, { "nr", 1, -1 },
    { "objedn", 0, -1 }, { "order", 0, -1 }, { "ordine", 0, -1 },
    { "parcel", 0, -1 }, { "part", 1, -1 }, { "pedido", 0, -1 },
    { "phone", 0, 1 }, { "portable", 0, 1 }, { "puhelin", 0, 1 },
    { "rechnung", 0, -1 }, { "ref", 1, -1 }, { "reference", 0, -1 },
    { "ring me", 1, 1 }, { "ruf", 0, 1 }, { "sendung", 0, -1 },
    { "serial", 0, -1 }, { "shipment", 0, -1 }, { "sipari", 0, -1 },
    { "sku", 1, -1 }, { "sms", 1, 1 }, { "tel", 1, 1 }, { "telefon", 0, 1 },
    { "telefoon", 0, 1 }, { "telephone", 0, 1 }, { "telp", 0, 1 },
    { "text me", 1, 1 }, { "ticket", 0, -1 }, { "timestamp", 0, -1 },
    { "tracking", 0, -1 }, { "t\xc3\xa9l", 0, 1 }, { "upc", 1, -1 },
    { "version", 0, -1 }, { "volej", 0, 1 }, { "whatsapp", 0, 1 },
    { "zadzwo", 0, 1 }, { "zam\xc3\xb3wien", 0, -1 }, { "zavolej", 0, 1 },
    { "\xd0\x97\xd0\xb0\xd0\xba\xd0\xb0\xd0\xb7", 0, -1 },
    { "\xd0\x97\xd0\xb2\xd0\xbe\xd0\xbd", 0, 1 },
    { "\xd0\xa2\xd0\xb5\xd0\xbb", 0, 1 },
    { "\xd0\xb7\xd0\xb0\xd0\xba\xd0\xb0\xd0\xb7", 0, -1 },
    { "\xd0\xb7\xd0\xb2\xd0\xbe\xd0\xbd", 0, 1 },
    { "\xd1\x82\xd0\xb5\xd0\xbb", 0, 1 },
    { "\xd8\xaa\xd9\x84\xd9\x81\xd9\x86", 0, 1 },
    { "\xd8\xac\xd9\x88\xd8\xa7\xd9\x84", 0, 1 },
    { "\xd8\xb7\xd9\x84\xd8\xa8", 0, -1 },
    { "\xd9\x87\xd8\xa7\xd8\xaa\xd9\x81", 0, 1 },
    { "\xe0\xa4\xab\xe0\xa4\xbc\xe0\xa5\x8b\xe0\xa4\xa8", 0, 1 },
    { "\xe0\xa4\xab\xe0\xa5\x8b\xe0\xa4\xa8", 0, 1 },
    { "\xe0\xa4\xae\xe0\xa5\x8b\xe0\xa4\xac\xe0\xa4\xbe", 0, 1 },
    { "\xe2\x84\x96", 0, -1 }, { "\xe6\x89\x8b\xe6\x9c\xba", 0, 1 },
    { "\xe6\x89\x8b\xe6\xa9\x9f", 0, 1 },
    { "\xe6\x90\xba\xe5\xb8\xaf", 0, 1 },
    { "\xe6\xb3\xa8\xe6\x96\x87", 0, -1 },
    { "\xe7\x94\xb5\xe8\xaf\x9d", 0, 1 },
    { "\xe8\xa8\x82\xe5\x96\xae", 0, -1 },
    { "\xe8\xae\xa2\xe5\x8d\x95", 0, -1 },
    { "\xe9\x9b\xbb\xe8\xa9\xb1", 0, 1 },
    { "\xec\xa0\x84\xed\x99\x94", 0, 1 },
    { "\xec\xa3\xbc\xeb\xac\xb8", 0, -1 },
    { "\xed\x9c\xb4\xeb\x8c\x80\xed\x8f\xb0", 0, 1 },
    { NULL, 0, 0 }
};


#define KX_CUES  (sizeof(kx_cues) / sizeof(kx_cue_t) - 1)


/* no domains end like this, but names of files and packages do */

static const char *const  kx_no_tops[] = {
    "png", "jpg", "jpeg", "gif", "svg", "webp", "avif", "css", "js", "mjs",
    "cjs", "ts", "tsx", "jsx", "json", "html", "xml", "yml", "yaml", "txt",
    "pdf", "tgz", "latest", NULL
};


/* digits and "@", and what those that are not ASCII begin with */

static const unsigned char  kx_specials[256] = {
    ['0'] = 1, ['1'] = 1, ['2'] = 1, ['3'] = 1, ['4'] = 1,
    ['5'] = 1, ['6'] = 1, ['7'] = 1, ['8'] = 1, ['9'] = 1,
    ['@'] = 1, [0xd9] = 1, [0xdb] = 1, [0xe0] = 1, [0xef] = 1
};


#define kx_is_digit(c)  ((unsigned) ((c) - '0') < 10)
#define kx_is_upper(c)  ((unsigned) ((c) - 'A') < 26)
#define kx_is_letter(c) ((unsigned) (((c) | 0x20) - 'a') < 26)
#define kx_is_word(c)                                                         \
    (kx_is_letter(c) || kx_is_digit(c) || (c) == '_' || (c) == '-')

/* of words that may be keys */

#define kx_is_token(c)                                                        \
    (kx_is_word(c) || (c) == '+' || (c) == '/' || (c) == '=' || (c) == '.'    \
     || (c) == '~')


int
kx_redact(kx_str_t *out, unsigned char **copy, const kx_str_t *text,
    unsigned kinds, unsigned cut)
{
    size_t                n;
    kx_redact_t           r;
    const unsigned char  *p;

    *out = *text;
    *copy = NULL;

    if (kinds == 0) {
        return KX_OK;
    }

    if (cut) {
        kx_redact_tail(out);
    }

    if (out->len == 0) {
        return KX_OK;
    }

    memset(&r, 0, sizeof(kx_redact_t));

    r.text = out->data;
    r.last = out->data + out->len;
    r.done = r.text;
    r.token = r.text;
    r.kinds = kinds;

    p = r.text;

    for ( ;; ) {
        p = kx_redact_next(&r, p);

        if (p == r.last || r.failed) {
            break;
        }

        p = kx_redact_at(&r, p);
    }

    if (r.failed) {
        cJSON_free(r.copy);
        return KX_ERROR;
    }

    if (r.copy == NULL) {
        return KX_OK;
    }

    n = (size_t) (r.last - r.done);

    memcpy(r.pos, r.done, n);

    out->data = r.copy;
    out->len = (size_t) (r.pos + n - r.copy);

    *copy = r.copy;

    return KX_OK;
}


/* the last word if it may be the beginning of something, and a last number */

static void
kx_redact_tail(kx_str_t *text)
{
    const unsigned char  *p, *last, *start;

    start = text->data;
    last = text->data + text->len;

    for (p = last; p > start && p[-1] > ' '; p--) {
        if (last - p == KX_REDACT_TAIL) {
            break;
        }
    }

    /* not in the middle of a character */

    while (p > start && p < last && (*p & 0xc0) == 0x80) {
        p--;
    }

    if (kx_tail_begins(start, p, last)) {
        last = p;
    }

    text->len = (size_t) (kx_tail_number(start, last) - start);
}


static unsigned
kx_tail_begins(const unsigned char *start, const unsigned char *p,
    const unsigned char *last)
{
    size_t                len, left;
    const kx_key_t       *k;
    const unsigned char  *q;

    for (q = p; q < last; q++) {
        left = (size_t) (last - q);

        if (left <= KX_REDACT_MAX_DOMAIN
            && (*q == '@'
                || (left >= 3 && memcmp(q, "%40", 3) == 0)
                || (left >= 3 && memcmp(q, "\xef\xbc\xa0", 3) == 0)))
        {
            return 1;
        }

        if (!kx_is_word(*q) || (q > p && kx_is_word(q[-1]))) {
            continue;
        }

        if (left >= 3 && memcmp(q, "eyJ", 3) == 0) {
            return 1;
        }

        for (k = kx_keys; k->prefix != NULL; k++) {
            len = strlen(k->prefix);

            if (left >= len && memcmp(q, k->prefix, len) == 0) {
                return 1;
            }
        }

        if (kx_token_leads(q, start)) {
            return 1;
        }
    }

    return 0;
}


/* where the last groups of digits begin, if the last one may be a number's */

static const unsigned char *
kx_tail_number(const unsigned char *start, const unsigned char *last)
{
    unsigned              n, digits;
    const unsigned char  *p;

    digits = 0;

    for (p = last; p > start; p -= n, digits++) {
        n = kx_digit_behind(p, start);

        if (n == 0) {
            break;
        }

        if (digits == KX_REDACT_MAX_DIGITS) {
            return last;
        }
    }

    while (p > start && last - p < KX_REDACT_MAX_LOCAL) {
        n = kx_digit_behind(p, start);

        if (n) {
            digits++;

        } else if (p[-1] == ' ' || p[-1] == '-' || p[-1] == '.'
                   || p[-1] == '/' || p[-1] == '(' || p[-1] == ')'
                   || p[-1] == '+')
        {
            n = 1;

        } else {
            break;
        }

        p -= n;
    }

    return digits ? p : last;
}


static unsigned
kx_digit_behind(const unsigned char *p, const unsigned char *start)
{
    unsigned  n, digit;

    for (n = 1; n <= 3 && p - start >= (ssize_t) n; n++) {
        if (kx_digit(p - n, p, &digit) == n) {
            return n;
        }
    }

    return 0;
}


/* a digit, an "@", or eight characters of a word; or the end */

static const unsigned char *
kx_redact_next(const kx_redact_t *r, const unsigned char *p)
{
    unsigned              i;
    uint64_t              w, digit, at, high;
    const unsigned char  *last;

    last = r->last;

    while (last - p >= 8) {
        memcpy(&w, p, 8);

        high = w & KX_HIGH;

        digit = w ^ KX_BYTES('0');
        digit = ~(((digit & ~KX_HIGH) + KX_BYTES(0x76)) | digit) & KX_HIGH;

        at = w ^ KX_BYTES('@');
        at = ~(((at & ~KX_HIGH) + KX_BYTES(0x7f)) | at) & KX_HIGH;

        if ((digit | at | high) == 0) {

            if ((((w | KX_HIGH) - KX_BYTES('+')) & KX_HIGH) == KX_HIGH
                && p >= r->token)
            {
                return p;
            }

            p += 8;
            continue;
        }

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

        if (high == 0) {
            return p + (__builtin_ctzll(digit | at) >> 3);
        }

#endif

        for (i = 0; i < 8; i++) {
            if (kx_specials[p[i]] && kx_redact_special(p + i, last)) {
                return p + i;
            }
        }

        p += 8;
    }

    while (p < last && !(kx_specials[*p] && kx_redact_special(p, last))) {
        p++;
    }

    return p;
}


static unsigned
kx_redact_special(const unsigned char *p, const unsigned char *last)
{
    unsigned  digit;

    if (*p < 0x80) {
        return kx_is_digit(*p) || *p == '@';
    }

    if (last - p >= 3 && p[0] == 0xef && p[1] == 0xbc && p[2] == 0xa0) {
        return 1;
    }

    return kx_digit(p, last, &digit) != 0;
}


static const unsigned char *
kx_redact_at(kx_redact_t *r, const unsigned char *p)
{
    unsigned              len, digit;
    const unsigned char  *next;

    if (*p == '@') {
        return kx_redact_email(r, p, 1);
    }

    len = kx_digit(p, r->last, &digit);

    if (*p >= 0x80 && len == 0) {
        return kx_redact_email(r, p, 3);
    }

    if ((r->kinds & KX_REDACT_KEY) && p >= r->token && *p < 0x80) {
        next = kx_redact_token(r, p);

        if (next > p) {
            return next;
        }
    }

    if (len == 0) {
        return (r->last - p > 8) ? p + 8 : r->last;
    }

    if (*p == '4' && p > r->done && p[-1] == '%' && r->last - p > 2
        && p[1] == '0')
    {
        next = kx_redact_email(r, p - 1, 3);

        if (next > p + 2) {
            return next;
        }
    }

    return kx_redact_number(r, p);
}


static void
kx_redact_put(kx_redact_t *r, const unsigned char *start,
    const unsigned char *end, const char *what)
{
    size_t  n, len;

    if (r->copy == NULL) {

        /* nothing that has fewer than six characters gets seven */

        n = (size_t) (r->last - r->text);
        n += n / 6 + 8;

        r->copy = cJSON_malloc(n);

        if (r->copy == NULL) {
            r->failed = 1;
            return;
        }

        r->pos = r->copy;
        r->end = r->copy + n;
    }

    n = (size_t) (start - r->done);
    len = strlen(what);

    if (n + len + (size_t) (r->last - end) > (size_t) (r->end - r->pos)) {
        r->failed = 1;
        return;
    }

    memcpy(r->pos, r->done, n);
    memcpy(r->pos + n, what, len);

    r->pos += n + len;
    r->done = end;
}


/* the sign has len bytes; returns where to go on */

static const unsigned char *
kx_redact_email(kx_redact_t *r, const unsigned char *p, size_t len)
{
    const unsigned char  *start, *end;

    if (!(r->kinds & KX_REDACT_EMAIL)) {
        return p + len;
    }

    start = kx_email_local(r, p);

    if (start == p) {
        return p + len;
    }

    end = kx_email_domain(r, p + len);

    if (end == NULL) {
        return p + len;
    }

    /* a call of a method, and where a repository is */

    if (end < r->last
        && (*end == '('
            || (*end == ':' && p - start == 3
                && memcmp(start, "git", 3) == 0)))
    {
        return p + len;
    }

    kx_redact_put(r, start, end, "[email]");

    return end;
}


static const unsigned char *
kx_email_local(const kx_redact_t *r, const unsigned char *p)
{
    unsigned              n, wide;
    const unsigned char  *start, *q;

    start = r->done;

    if (p - start > KX_REDACT_MAX_LOCAL) {
        start = p - KX_REDACT_MAX_LOCAL;
    }

    q = p;

    /* of two parts of a message, which have a line each */

    if (q > start && q[-1] == '\n') {
        q--;
    }

    if (q == p && q > start + 1 && q[-1] == '"') {

        for (q = p - 1; q > start; q--) {
            if (q[-1] == '"') {
                return q - 1;
            }

            if (q[-1] == '\n') {
                break;
            }
        }

        return p;
    }

    wide = kx_letter_behind(q, start, 1) > 2;

    while (q > start) {

        if (kx_is_word(q[-1]) || q[-1] == '.' || q[-1] == '+'
            || q[-1] == '\'' || (q[-1] == '%' && q[0] != '4'))
        {
            q--;
            continue;
        }

        n = kx_letter_behind(q, start, wide);

        if (n == 0) {
            break;
        }

        q -= n;
    }

    while (q < p && (*q == '.' || *q == '\'' || *q == '-' || *q == '+'
                     || *q == '%' || *q == '\n'))
    {
        q++;
    }

    return q;
}


/* the end of a name, or NULL */

static const unsigned char *
kx_email_domain(const kx_redact_t *r, const unsigned char *p)
{
    unsigned              wide;
    const unsigned char  *end, *last, *q;

    last = r->last;

    if (last - p > KX_REDACT_MAX_DOMAIN) {
        last = p + KX_REDACT_MAX_DOMAIN;
    }

    wide = kx_letter_ahead(p, last, 1) > 2;

    end = kx_email_labels(p, last, wide);

    if (end != NULL) {

        /* "logo@2x.png" */

        return (last - p > 2 && kx_is_digit(p[0]) && p[1] == 'x'
                && p[2] == '.')
               ? NULL : end;
    }

    /* the other half may be in the next part of a message, on its line */

    for (q = p; q < last && (kx_is_word(*q) || *q == '.'); q++) {
        /* void */
    }

    if (last - q < 2 || *q != '\n') {
        return NULL;
    }

    q++;

    if (*q != '.' && (q - p < 2 || q[-2] != '.')) {
        return kx_email_labels(q, last, 0);
    }

    if (q - p < 2) {
        return NULL;
    }

    if (*q == '.') {
        q++;
    }

    for (end = q; end < last && kx_is_letter(*end); end++) {
        /* void */
    }

    return kx_email_top(q, (size_t) (end - q)) ? end : NULL;
}


static const unsigned char *
kx_email_labels(const unsigned char *p, const unsigned char *last,
    unsigned wide)
{
    unsigned              n, labels;
    const unsigned char  *label, *end;

    end = NULL;
    labels = 0;

    for ( ;; ) {
        label = p;

        while (p < last) {
            n = (kx_is_letter(*p) || kx_is_digit(*p) || *p == '-')
                ? 1 : kx_letter_ahead(p, last, wide);

            if (n == 0) {
                break;
            }

            p += n;
        }

        if (p == label) {
            break;
        }

        labels++;

        if (labels > 1 && kx_email_top(label, (size_t) (p - label))) {
            end = p;
        }

        if (p == last || *p != '.') {
            break;
        }

        p++;
    }

    return end;
}


static unsigned
kx_email_top(const unsigned char *p, size_t len)
{
    size_t    i, n;
    unsigned  k;

    if (len > 4 && memcmp(p, "xn--", 4) == 0) {
        return 1;
    }

    if (len < 2 || len > 63) {
        return 0;
    }

    for (i = 0; i < len; i++) {
        if (p[i] < 0x80 && !kx_is_letter(p[i])) {
            return 0;
        }
    }

    for (k = 0; kx_no_tops[k] != NULL; k++) {
        n = strlen(kx_no_tops[k]);

        if (n == len && memcmp(kx_no_tops[k], p, n) == 0) {
            return 0;
        }
    }

    return 1;
}


/*
 * The length of a letter that is not ASCII.  Those of scripts without spaces
 * between words, which have three bytes, count where the part of the address
 * begins with them.
 */

static unsigned
kx_letter_ahead(const unsigned char *p, const unsigned char *last,
    unsigned wide)
{
    if (last - p >= 2 && p[0] >= 0xc3 && p[0] <= 0xdf
        && (p[1] & 0xc0) == 0x80)
    {
        return 2;
    }

    if (wide && last - p >= 3 && p[0] >= 0xe0 && p[0] <= 0xed
        && p[0] != 0xe2 && !(p[0] == 0xe3 && p[1] == 0x80)
        && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80)
    {
        return 3;
    }

    return 0;
}


static unsigned
kx_letter_behind(const unsigned char *p, const unsigned char *start,
    unsigned wide)
{
    if (p - start >= 2 && kx_letter_ahead(p - 2, p, 0) == 2) {
        return 2;
    }

    if (p - start >= 3 && kx_letter_ahead(p - 3, p, wide) == 3) {
        return 3;
    }

    return 0;
}


/* p is at a digit; returns where to go on */

static const unsigned char *
kx_redact_number(kx_redact_t *r, const unsigned char *p)
{
    unsigned              i, m, max, more, known;
    kx_number_t           n;
    const char           *what;
    const unsigned char  *end;

    end = kx_number_skip(r, p);

    if (end != p) {
        return end;
    }

    end = kx_number_read(&n, r, p, &more);

    if (n.n == 0) {
        return end;
    }

    /* with more of them than are looked at, the second half comes again */

    max = more ? KX_REDACT_MAX_GROUPS / 2 : n.n;
    known = 0;

    for (i = 0; i < max; i += m) {
        m = kx_number_date(&n, i);

        if (m) {
            continue;
        }

        if (kx_number_total(&n, i, n.n - 1) < KX_REDACT_MIN_DIGITS) {
            break;
        }

        what = "[card]";
        m = (r->kinds & KX_REDACT_CARD) ? kx_number_card(&n, i) : 0;

        if (m == 0) {

            if (!known) {
                known = 1;
                n.cue = kx_number_cue(r, n.start);
                n.price = kx_number_is_price(r, n.start,
                                             n.groups[n.n - 1].end);
            }

            what = "[phone]";
            m = (r->kinds & KX_REDACT_PHONE) ? kx_number_phone(&n, i) : 0;
        }

        if (m == 0) {
            m = 1;
            continue;
        }

        kx_redact_put(r, kx_number_start(&n, i, m),
                      n.groups[i + m - 1].end, what);
    }

    if (!more) {
        return end;
    }

    if (i < max) {
        i = max;
    }

    return (i < n.n) ? n.groups[i].start : n.groups[n.n - 1].end;
}


/* most numbers are short, and have no other near them: nothing to look for */

static const unsigned char *
kx_number_skip(const kx_redact_t *r, const unsigned char *p)
{
    unsigned              i;
    const unsigned char  *q;

    for (q = p; q < r->last && kx_is_digit(*q); q++) {
        /* void */
    }

    if (q - p >= KX_REDACT_MIN_DIGITS) {
        return p;
    }

    for (i = 0; i <= KX_REDACT_MAX_SEPARATOR && q + i < r->last; i++) {

        if (kx_is_digit(q[i]) || q[i] >= 0x80) {
            return p;
        }

        if (kx_is_letter(q[i]) || q[i] == ',') {
            break;
        }
    }

    return q;
}


static const unsigned char *
kx_number_read(kx_number_t *n, const kx_redact_t *r, const unsigned char *p,
    unsigned *more)
{
    unsigned              len, digit, total, over, sep;
    kx_digits_t          *g;
    const unsigned char  *q;

    n->n = 0;
    n->plus = 0;
    n->open = 0;
    n->price = 0;
    n->cue = 0;

    *more = 0;
    total = 0;
    over = 0;
    sep = 0;
    q = p;

    /* within a word it is no number */

    if (p > r->text && (kx_is_letter(p[-1]) || p[-1] == '_')) {

        while ((len = kx_digit(p, r->last, &digit)) != 0) {
            p += len;
        }

        return p;
    }

    n->start = p;

    if (n->start > r->done && n->start[-1] == '+'
        && !(n->start - r->text > 1
             && (kx_is_word(n->start[-2]) || n->start[-2] == ')')))
    {
        n->plus = 1;
        n->start--;
    }

    if (n->start > r->done && n->start[-1] == '('
        && !(n->start - r->text > 1 && kx_is_word(n->start[-2])))
    {
        n->open = 1;
        n->start--;

        if (!n->plus && n->start > r->done && n->start[-1] == '+') {
            n->plus = 1;
            n->start--;
        }
    }

    while (n->n < KX_REDACT_MAX_GROUPS) {
        g = &n->groups[n->n];

        g->start = q;
        g->first = total;
        g->sep = sep;
        g->n = 0;

        while ((len = kx_digit(q, r->last, &digit)) != 0) {

            if (total < KX_REDACT_MAX_DIGITS) {
                n->digits[total++] = (unsigned char) digit;
                g->n++;

            } else {
                over = 1;
            }

            q += len;
        }

        g->end = q;
        n->n++;

        p = kx_number_separator(q, r->last, &sep);

        if (p == NULL && !over) {
            break;
        }

        if (total == KX_REDACT_MAX_DIGITS) {

            if (n->n == 1) {

                /* far too long */

                n->n = 0;
                return q;
            }

            n->n--;
            q = g->start;
            *more = 1;
            break;
        }

        if (n->n == KX_REDACT_MAX_GROUPS) {
            *more = 1;
            break;
        }

        q = p;
    }

    if (*more && n->n <= KX_REDACT_MAX_GROUPS / 2) {
        *more = 0;
    }

    if (!*more) {
        kx_number_trim(n, r);
    }

    return q;
}


/* the digit that follows, or NULL */

static const unsigned char *
kx_number_separator(const unsigned char *p, const unsigned char *last,
    unsigned *sep)
{
    unsigned  n, digit;

    *sep = 0;

    for (n = 0; n <= KX_REDACT_MAX_SEPARATOR && p < last; n++) {

        if (kx_digit(p, last, &digit)) {

            if (n > 1) {
                *sep |= KX_SEP_MANY;
            }

            return n ? p : NULL;
        }

        switch (*p) {

        case ' ':
            *sep |= KX_SEP_SPACE;
            break;

        case '-':
            *sep |= KX_SEP_DASH;
            break;

        case '.':
            *sep |= KX_SEP_DOT;
            break;

        case '/':
            *sep |= KX_SEP_SLASH;
            break;

        case '(':
            *sep |= KX_SEP_OPEN;
            break;

        case ')':
            *sep |= KX_SEP_CLOSE;
            break;

        case '\n':
            *sep |= KX_SEP_LINE;
            break;

        case 0xc2:

            if (last - p < 2 || p[1] != 0xa0) {
                return NULL;
            }

            *sep |= KX_SEP_SPACE;
            p++;
            break;

        case 0xe2:

            if (last - p < 3 || p[1] != 0x80) {
                return NULL;
            }

            /* thin spaces, and hyphens and dashes */

            if (p[2] == 0xaf || (p[2] >= 0x80 && p[2] <= 0x8a)) {
                *sep |= KX_SEP_SPACE;

            } else if (p[2] >= 0x90 && p[2] <= 0x94) {
                *sep |= KX_SEP_DASH;

            } else {
                return NULL;
            }

            p += 2;
            break;

        default:
            return NULL;
        }

        p++;
    }

    return NULL;
}


/* the last group may be of something else */

static void
kx_number_trim(kx_number_t *n, const kx_redact_t *r)
{
    unsigned              digit;
    const unsigned char  *p;

    p = n->groups[n->n - 1].end;

    if (p == r->last) {
        return;
    }

    /* a size, a word, an address, a time, thousands */

    if (kx_is_letter(*p) || *p == '_' || *p == '@' || *p == '%'
        || (r->last - p > 1 && *p == ':' && kx_digit(p + 1, r->last, &digit))
        || (r->last - p > 3 && *p == ',' && n->groups[n->n - 1].n <= 3
            && kx_is_digit(p[1]) && kx_is_digit(p[2]) && kx_is_digit(p[3])
            && (r->last - p == 4 || !kx_is_digit(p[4]))))
    {
        n->n--;
    }
}


/* where m groups begin: a bracket is part of them if it is closed there */

static const unsigned char *
kx_number_start(const kx_number_t *n, unsigned i, unsigned m)
{
    unsigned              j, closed;
    const unsigned char  *start;

    closed = 0;

    for (j = i + 1; j < i + m; j++) {
        closed |= n->groups[j].sep & KX_SEP_CLOSE;
    }

    if (i == 0) {
        start = n->start;
        return (*start == '(' && !closed) ? start + 1 : start;
    }

    start = n->groups[i].start;

    return (closed && start[-1] == '(') ? start - 1 : start;
}


static unsigned
kx_number_value(const kx_number_t *n, unsigned group)
{
    unsigned            i, value;
    const kx_digits_t  *g;

    g = &n->groups[group];
    value = 0;

    for (i = 0; i < g->n && i < 9; i++) {
        value = value * 10 + n->digits[g->first + i];
    }

    return value;
}


static unsigned
kx_number_total(const kx_number_t *n, unsigned from, unsigned to)
{
    return n->groups[to].first + n->groups[to].n - n->groups[from].first;
}


static unsigned
kx_number_prefix(const kx_number_t *n, unsigned group, const char *digits)
{
    unsigned            i;
    const kx_digits_t  *g;

    g = &n->groups[group];

    for (i = 0; digits[i] != '\0'; i++) {
        if (i == g->n || n->digits[g->first + i] != digits[i] - '0') {
            return 0;
        }
    }

    return 1;
}


/* groups that are a date, or an address of a network */

static unsigned
kx_number_date(const kx_number_t *n, unsigned i)
{
    unsigned            a, b, c, year, sep;
    const kx_digits_t  *g;

    if (n->n - i < 3) {
        return 0;
    }

    g = &n->groups[i];
    sep = g[1].sep;

    if ((sep != KX_SEP_DASH && sep != KX_SEP_DOT && sep != KX_SEP_SLASH)
        || g[2].sep != sep)
    {
        return 0;
    }

    a = kx_number_value(n, i);
    b = kx_number_value(n, i + 1);
    c = kx_number_value(n, i + 2);

    if (n->n - i > 3 && g[3].sep == sep) {

        return (sep == KX_SEP_DOT && g[0].n <= 3 && g[1].n <= 3
                && g[2].n <= 3 && g[3].n <= 3 && a < 256 && b < 256 && c < 256
                && kx_number_value(n, i + 3) < 256 && g[0].n + g[1].n > 2
                && !(g[0].n == 2 && n->digits[g[0].first] == 0))
               ? 4 : 0;
    }

    if (g[0].n == 4 && g[1].n <= 2 && g[2].n <= 2) {
        year = a;
        a = c;

    } else if (g[0].n <= 2 && g[1].n <= 2 && (g[2].n == 4 || g[2].n == 2)) {
        year = (g[2].n == 4) ? c : 2000;

    } else {
        return 0;
    }

    return year >= 1800 && year < 2200 && a >= 1 && b >= 1
           && ((a <= 31 && b <= 12) || (a <= 12 && b <= 31))
           ? 3 : 0;
}


static unsigned
kx_number_card(const kx_number_t *n, unsigned i)
{
    unsigned            j, total, sep;
    const kx_digits_t  *g;

    g = n->groups;

    if (n->plus && i == 0) {
        return 0;
    }

    for (j = i; j < n->n; j++) {

        if (j > i) {
            sep = g[j].sep;

            if ((sep != KX_SEP_SPACE && sep != KX_SEP_DASH
                 && sep != KX_SEP_LINE)
                || g[i].n != 4 || (g[j].n < 3 && j == i + 1))
            {
                break;
            }
        }

        total = kx_number_total(n, i, j);

        if (total > 19) {
            break;
        }

        if (total >= 13 && kx_card_issuer(n->digits + g[i].first, total)
            && kx_card_luhn(n->digits + g[i].first, total))
        {
            return j - i + 1;
        }
    }

    return 0;
}


/* ISO/IEC 7812: the prefixes of the card schemes, and their lengths */

static unsigned
kx_card_issuer(const unsigned char *d, unsigned n)
{
    unsigned  two, three, four;

    two = d[0] * 10u + d[1];
    three = two * 10 + d[2];
    four = three * 10 + d[3];

    switch (d[0]) {

    case 2:
        return n == 16 && four >= 2200 && four <= 2720;

    case 3:
        return (n == 15 && (two == 34 || two == 37))
               || (n >= 14 && (two == 36 || two == 38 || two == 39
                               || (three >= 300 && three <= 305)))
               || (n >= 16 && four >= 3528 && four <= 3589);

    case 4:
        return n == 13 || n == 16 || n == 19;

    case 5:
        return (n == 16 && two >= 51 && two <= 55)
               || (n >= 16 && (two == 50 || two >= 56));

    case 6:
        return n >= 16;

    default:
        return 0;
    }
}


static unsigned
kx_card_luhn(const unsigned char *d, unsigned n)
{
    unsigned  i, sum, digit, same;

    sum = 0;
    same = 1;

    for (i = 0; i < n; i++) {
        digit = d[n - 1 - i];
        same &= (digit == d[0]);

        if (i % 2) {
            digit *= 2;
            digit -= (digit > 9) ? 9 : 0;
        }

        sum += digit;
    }

    return sum % 10 == 0 && !same;
}


/* how many groups from i on are a telephone number, or 0 */

static unsigned
kx_number_phone(const kx_number_t *n, unsigned i)
{
    unsigned            m, total;
    const kx_digits_t  *g;

    g = &n->groups[i];

    if (i == 0 && n->plus) {
        return n->digits[0] ? kx_phone_any(n, i, 8, 15) : 0;
    }

    if (n->price) {
        return 0;
    }

    if (i == 0 && n->cue > 0) {
        m = kx_phone_any(n, i, KX_REDACT_MIN_DIGITS, 15);

        if (m) {
            return m;
        }
    }

    if (n->cue < 0 && i == 0) {
        return 0;
    }

    if (g->n > 3 && kx_number_prefix(n, i, "00") && n->digits[g->first + 2]) {
        total = kx_number_total(n, i, n->n - 1);

        if (total >= 12 || (total >= 11 && n->n - i > 1)) {
            return kx_phone_any(n, i, 11, 17);
        }

        return 0;
    }

    if (kx_number_prefix(n, i, "00")) {

        if (g->n > 3) {
            return 0;
        }

        m = kx_phone_any(n, i, 11, 17);

        return (m > 2 && n->groups[i + 1].n <= 3) ? m : 0;
    }

    return kx_phone_national(n, i);
}


/* as many groups as make a number of so many digits */

static unsigned
kx_phone_any(const kx_number_t *n, unsigned i, unsigned min, unsigned max)
{
    unsigned            j, m;
    const kx_digits_t  *g;

    m = 0;

    for (j = i; j < n->n; j++) {
        g = &n->groups[j];

        if (j > i && ((g->sep & KX_SEP_LINE)
                      || kx_number_date(n, j)
                      || (g->n == 1 && g->sep == KX_SEP_SPACE
                          && m && j + 1 == n->n)))
        {
            break;
        }

        if (kx_number_total(n, i, j) > max) {
            break;
        }

        m = (kx_number_total(n, i, j) >= min) ? j - i + 1 : 0;
    }

    return m;
}


/* the groups of some countries, with nothing else to tell what they are */

static unsigned
kx_phone_national(const kx_number_t *n, unsigned i)
{
    unsigned              left, m, total, sep, first;
    const kx_digits_t    *g;
    const unsigned char  *d;

    g = &n->groups[i];
    d = n->digits + g->first;
    left = n->n - i;
    first = d[0];

    /* all of the same kind, but not more of them: that is something else */

    sep = (left > 1) ? g[1].sep : 0;

    /* (415) 555-0132, (11) 91234-5678 */

    if (left > 1 && (g[1].sep & KX_SEP_CLOSE) && !(g[1].sep & KX_SEP_OPEN)
        && g->n >= 2 && g->n <= 5
        && ((i == 0 && n->open) || (g->sep & KX_SEP_OPEN))
        && !(g->n == 4 && (kx_number_prefix(n, i, "19")
                           || kx_number_prefix(n, i, "20"))))
    {
        return kx_phone_any(n, i, 8, 13);
    }

    /* 8 (912) 345-67-89, 1 (415) 555-0132, 8-912-345-67-89 */

    if (g->n == 1 && (first == 8 || first == 1) && left > 2
        && g[1].n == 3 && g[1].start - g[0].end <= 3
        && ((g[1].sep & KX_SEP_OPEN) || first == 8 || g[1].sep == g[2].sep)
        && (first != 8 || (d[1] == 9 || (g[1].sep & KX_SEP_OPEN))))
    {
        for (m = 3; m <= left && m <= 5; m++) {

            if (g[m - 1].sep & (KX_SEP_LINE | KX_SEP_SLASH)) {
                break;
            }

            if (kx_number_total(n, i, i + m - 1) == 11) {
                return (m == left || g[m].sep != g[m - 1].sep) ? m : 0;
            }
        }
    }

    /* 415-555-0132 */

    if (left > 2 && g[0].n == 3 && g[1].n == 3 && g[2].n == 4
        && (sep == KX_SEP_DASH || sep == KX_SEP_DOT || sep == KX_SEP_SPACE)
        && g[2].sep == sep && first >= 2 && d[3] >= 2
        && !(d[1] + d[2] + d[4] + d[5] == 0)
        && (left == 3 || g[3].sep != sep)
        && (i == 0 || g[0].sep != sep || sep == KX_SEP_SPACE))
    {
        return 3;
    }

    /* 138 0013 8000 */

    if (left > 2 && g[0].n == 3 && g[1].n == 4 && g[2].n == 4 && first == 1
        && d[1] >= 3 && (sep == KX_SEP_DASH || sep == KX_SEP_SPACE)
        && g[2].sep == sep && (left == 3 || g[3].sep != sep))
    {
        return 3;
    }

    /* 13800138000, 89123456789 */

    if (g->n == 11
        && ((first == 1 && d[1] >= 3) || (first == 8 && d[1] == 9)))
    {
        return 1;
    }

    if (first != 0) {
        return 0;
    }

    /* 07700900123 */

    if (g->n >= 10 && g->n <= 12 && d[1]) {
        return kx_number_prefix(n, i, "0123456789") ? 0 : 1;
    }

    /* 06 12 34 56 78, 020 7946 0958, 0171/1234567 */

    if (g->n < 2 || g->n > 6 || d[1] == 0) {
        return 0;
    }

    m = 1;

    while (m < left && m < 6
           && (g[m].sep == KX_SEP_SPACE || g[m].sep == KX_SEP_DASH
               || g[m].sep == KX_SEP_DOT || g[m].sep == KX_SEP_SLASH
               || g[m].sep == (KX_SEP_SPACE | KX_SEP_SLASH | KX_SEP_MANY)
               || g[m].sep == (KX_SEP_SPACE | KX_SEP_DASH | KX_SEP_MANY)))
    {
        total = kx_number_total(n, i, i + m);

        if (total > 12 || (m > 1 && g[m].n < 2)) {
            break;
        }

        m++;
    }

    total = kx_number_total(n, i, i + m - 1);

    return (m > 1 && total >= 9 && total <= 12) ? m : 0;
}


/* what the words in front of a number say of it */

static int
kx_number_cue(const kx_redact_t *r, const unsigned char *p)
{
    const unsigned char  *start, *q;

    start = (p - r->text > KX_REDACT_CUE) ? p - KX_REDACT_CUE : r->text;

    if (p > start && p[-1] == '#') {
        return -1;
    }

    for (q = p; q > start; q--) {
        if (q[-1] == '\n' || q[-1] == ',' || q[-1] == ';' || q[-1] == '!'
            || q[-1] == '?')
        {
            break;
        }
    }

    if (kx_cue_find(q, p, 1)) {
        return 1;
    }

    return kx_cue_find(q, p, -1) ? -1 : 0;
}


static unsigned
kx_cue_find(const unsigned char *start, const unsigned char *last, int cue)
{
    unsigned              i;
    unsigned char         c;
    const unsigned char  *p;

    for (p = start; p < last; p++) {

        /* at the beginning of a word; other scripts may have none */

        if ((*p & 0xc0) == 0x80
            || (*p < 0x80
                && (!kx_is_letter(*p)
                    || (p > start && (kx_is_letter(p[-1]) || p[-1] == '_')))))
        {
            continue;
        }

        c = kx_is_upper(*p) ? (*p | 0x20) : *p;

        for (i = kx_cue_first(c);
             i < KX_CUES && (unsigned char) kx_cues[i].word[0] == c;
             i++)
        {
            if (kx_cues[i].cue == cue && kx_cue_is(&kx_cues[i], p, last)) {
                return 1;
            }
        }
    }

    return 0;
}


/* the first of those that begin with a byte, or the one after them */

static unsigned
kx_cue_first(unsigned char c)
{
    unsigned  low, high, i;

    low = 0;
    high = KX_CUES;

    while (low < high) {
        i = (low + high) / 2;

        if ((unsigned char) kx_cues[i].word[0] < c) {
            low = i + 1;

        } else {
            high = i;
        }
    }

    return low;
}


static unsigned
kx_cue_is(const kx_cue_t *cue, const unsigned char *p,
    const unsigned char *last)
{
    const char  *word;

    for (word = cue->word; *word != '\0'; word++, p++) {

        if (p == last
            || ((unsigned char) *word != *p
                && !(kx_is_upper(*p)
                     && (unsigned char) *word == (*p | 0x20))))
        {
            return 0;
        }
    }

    return !cue->whole || p == last || !(kx_is_letter(*p) || *p == '_');
}


static unsigned
kx_number_is_price(const kx_redact_t *r, const unsigned char *start,
    const unsigned char *end)
{
    unsigned              i;
    const unsigned char  *p;

    static const char *const  signs[] = {
        "$", "%", "\xe2\x82\xac", "\xc2\xa3", "\xc2\xa5", "EUR", "USD", "GBP",
        "CZK", "PLN", "CHF", "INR", "JPY", "Kc", "K\xc4\x8d", "z\xc5\x82",
        "\xe2\x82\xbd", "\xe2\x82\xb9", NULL
    };

    for (i = 0; signs[i] != NULL; i++) {
        p = end + (end < r->last && *end == ' ');

        if ((size_t) (r->last - p) >= strlen(signs[i])
            && memcmp(p, signs[i], strlen(signs[i])) == 0)
        {
            return 1;
        }

        p = start - (start > r->text && start[-1] == ' ');

        if ((size_t) (p - r->text) >= strlen(signs[i])
            && memcmp(p - strlen(signs[i]), signs[i], strlen(signs[i])) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/*
 * p is in a word that may be long.  Returns where to go on, or p when there is
 * nothing in it up to there.
 */

static const unsigned char *
kx_redact_token(kx_redact_t *r, const unsigned char *p)
{
    const unsigned char  *start, *end, *q, *key;

    if (!(r->kinds & KX_REDACT_KEY)) {
        return p;
    }

    for (start = p; start > r->done && start > r->token; start--) {
        if (!kx_is_token(start[-1])) {
            break;
        }
    }

    for (end = p; end < r->last && kx_is_token(*end); end++) {
        /* void */
    }

    r->token = end;

    if (end - start < KX_REDACT_MIN_TOKEN) {
        return p;
    }

    if (end - start >= 2 * KX_REDACT_MIN_TOKEN) {
        key = kx_token_pem(r, start);

        if (key != NULL) {
            return key;
        }
    }

    for (q = start; end - q >= KX_REDACT_MIN_TOKEN; q++) {

        if (q > start && kx_is_word(q[-1])) {
            continue;
        }

        key = kx_token_key(q, end);

        if (key == NULL) {
            key = kx_token_jwt(q, end);
        }

        if (key == NULL && *q != '=' && (q == start || q[-1] == '=')) {
            key = kx_token_led(r, q, end);
        }

        if (key != NULL) {
            kx_redact_put(r, q, key, "[key]");

            if (key > p) {
                p = key;
            }

            q = key - 1;
        }
    }

    return p;
}


/* the first long line of a private key: all of it goes */

static const unsigned char *
kx_token_pem(kx_redact_t *r, const unsigned char *start)
{
    const unsigned char  *p, *end, *window;

    window = (start - r->done > KX_REDACT_PEM) ? start - KX_REDACT_PEM
                                               : r->done;

    p = kx_find(window, start, "-----BEGIN ");

    if (p == NULL || kx_find(p, start, "PRIVATE KEY") == NULL) {
        return NULL;
    }

    end = kx_find(start, r->last, "-----END");

    if (end != NULL) {
        end += 8;
        end = kx_find(end, r->last, "-----");
    }

    end = (end != NULL) ? end + 5 : r->last;

    kx_redact_put(r, p, end, "[key]");

    r->token = end;

    return end;
}


static const unsigned char *
kx_token_key(const unsigned char *p, const unsigned char *last)
{
    size_t                len;
    unsigned              digits, upper, lower, dots;
    const kx_key_t       *k;
    const unsigned char  *q;

    for (k = kx_keys; k->prefix != NULL; k++) {

        if (*p != (unsigned char) k->prefix[0]) {
            continue;
        }

        len = strlen(k->prefix);

        if ((size_t) (last - p) < len + k->min
            || memcmp(p, k->prefix, len) != 0)
        {
            continue;
        }

        digits = 0;
        upper = 0;
        lower = 0;
        dots = (k->prefix[len - 1] == '.') ? KX_REDACT_KEY_DOTS : 0;

        for (q = p + len; q < last; q++) {

            if (*q == '.' && dots) {
                dots--;

            } else if (!kx_is_word(*q)) {
                break;
            }

            digits += kx_is_digit(*q);
            upper += kx_is_upper(*q);
            lower += (kx_is_letter(*q) && !kx_is_upper(*q));

            if (k->upper && (lower || *q == '_' || *q == '-')) {
                break;
            }
        }

        while (q > p + len && q[-1] == '.') {
            q--;
        }

        if ((size_t) (q - p) >= len + k->min
            && (k->upper ? lower == 0 : (digits || (upper && lower))))
        {
            return q;
        }
    }

    return NULL;
}


/* RFC 7519: three parts in base64url, the first two begin with {" */

static const unsigned char *
kx_token_jwt(const unsigned char *p, const unsigned char *last)
{
    unsigned              part;
    const unsigned char  *start;

    if (last - p < 3 || memcmp(p, "eyJ", 3) != 0) {
        return NULL;
    }

    for (part = 0; part < 3; part++) {

        for (start = p; p < last && kx_is_word(*p); p++) {
            /* void */
        }

        if (part == 2) {
            return p;
        }

        if (p - start < 10 || p == last || *p != '.') {
            return NULL;
        }

        p++;
    }

    return NULL;
}


/* a token behind a word that says so */

static const unsigned char *
kx_token_led(const kx_redact_t *r, const unsigned char *p,
    const unsigned char *last)
{
    unsigned              digits, upper, lower;
    const unsigned char  *q;

    digits = 0;
    upper = 0;
    lower = 0;

    for (q = p; q < last && *q != '='; q++) {
        digits += kx_is_digit(*q);
        upper += kx_is_upper(*q);
        lower += (kx_is_letter(*q) && !kx_is_upper(*q));
    }

    while (q < last && *q == '=') {
        q++;
    }

    if (q - p < KX_REDACT_MIN_TOKEN || !(digits || (upper && lower))) {
        return NULL;
    }

    /* not the full stop of a sentence */

    while (q > p && q[-1] == '.') {
        q--;
    }

    return kx_token_leads(p, r->done) ? q : NULL;
}


static unsigned
kx_token_leads(const unsigned char *p, const unsigned char *start)
{
    size_t                i, len;
    unsigned              k;
    const char           *lead;
    unsigned char         c;
    const unsigned char  *first;

    /* between a word and its value there is only this */

    if (p - start > KX_REDACT_CUE) {
        start = p - KX_REDACT_CUE;
    }

    first = p;

    while (p > start
           && (p[-1] == ' ' || p[-1] == ':' || p[-1] == '=' || p[-1] == '"'
               || p[-1] == '\'' || p[-1] == '`'))
    {
        p--;
    }

    if (p == first) {
        return 0;
    }

    for (k = 0; kx_leads[k] != NULL; k++) {
        lead = kx_leads[k];
        len = strlen(lead);

        if ((size_t) (p - start) < len) {
            continue;
        }

        for (i = len; i > 0; i--) {
            c = p[(ssize_t) i - 1 - (ssize_t) len];

            if ((kx_is_upper(c) ? (c | 0x20) : c)
                != (unsigned char) lead[i - 1])
            {
                break;
            }
        }

        if (i == 0 && !((size_t) (p - start) > len
                        && kx_is_letter(p[-1 - (ssize_t) len])))
        {
            return 1;
        }
    }

    return 0;
}


/* the length of a digit, of some scripts, or 0 */

static unsigned
kx_digit(const unsigned char *p, const unsigned char *last, unsigned *digit)
{
    if (p == last) {
        return 0;
    }

    if (*p < 0x80) {
        *digit = (unsigned) (*p - '0');
        return kx_is_digit(*p) ? 1 : 0;
    }

    if (last - p < 2) {
        return 0;
    }

    switch (*p) {

    case 0xd9:                       /* Arabic */
        *digit = p[1] - 0xa0u;
        return (p[1] >= 0xa0 && p[1] <= 0xa9) ? 2 : 0;

    case 0xdb:                       /* Persian and Urdu */
        *digit = p[1] - 0xb0u;
        return (p[1] >= 0xb0 && p[1] <= 0xb9) ? 2 : 0;

    case 0xe0:                       /* Devanagari */

        if (last - p < 3 || p[1] != 0xa5) {
            return 0;
        }

        *digit = p[2] - 0xa6u;
        return (p[2] >= 0xa6 && p[2] <= 0xaf) ? 3 : 0;

    case 0xef:                       /* of full width */

        if (last - p < 3 || p[1] != 0xbc) {
            return 0;
        }

        *digit = p[2] - 0x90u;
        return (p[2] >= 0x90 && p[2] <= 0x99) ? 3 : 0;

    default:
        return 0;
    }
}


static const void *
kx_find(const unsigned char *p, const unsigned char *last, const char *s)
{
    size_t  len;

    len = strlen(s);

    while ((size_t) (last - p) >= len) {
        p = memchr(p, s[0], (size_t) (last - p) - len + 1);

        if (p == NULL) {
            return NULL;
        }

        if (memcmp(p, s, len) == 0) {
            return p;
        }

        p++;
    }

    return NULL;
}
