/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "tree.h"
#include "json_scan.h"


#define KX_TREE_REPLACED_LEN  3

#define KX_TREE_NO_UNIT       0xffffffff


/* collects valid UTF-8 up to a limit */

typedef struct {
    unsigned char        *pos;
    size_t                left;
    unsigned              cut:1;
} kx_text_copy_t;


static int kx_tree_check(char *text, size_t len, unsigned strict);
static char *kx_tree_escape(char *p, char *last, unsigned strict);
static uint32_t kx_tree_unit(const char *p, const char *last);
static void kx_tree_text_sink(void *data, const unsigned char *p, size_t len);
static void kx_tree_text_put(kx_text_copy_t *copy, const void *p, size_t len);


/*
 * Everything is checked before cJSON sees it: the tree that it builds has a
 * bounded depth, no string in it ends early, and when there is none it was
 * for want of memory.
 */

int
kx_tree_read(cJSON **root, const unsigned char *text, size_t len,
    unsigned strict)
{
    int        rc;
    char      *copy;
    size_t     n;
    kx_str_t   s;
    unsigned   cut;

    *root = NULL;

    /* a zero byte is one of the control characters that JSON does not have */

    if (len == 0 || memchr(text, '\0', len) != NULL) {
        return KX_DECLINED;
    }

    s.len = len;
    s.data = (unsigned char *) text;

    copy = kx_tree_text(&s, len * KX_TREE_REPLACED_LEN, &n, &cut);
    if (copy == NULL) {
        return KX_ERROR;
    }

    /* a difference: it was not UTF-8 */

    if (strict && (n != len || memcmp(copy, text, len) != 0)) {
        rc = KX_DECLINED;

    } else {
        rc = kx_tree_check(copy, n, strict);
    }

    if (rc == KX_OK) {
        *root = cJSON_ParseWithLength(copy, n);
        rc = (*root != NULL) ? KX_OK : KX_ERROR;
    }

    cJSON_free(copy);

    return rc;
}


static int
kx_tree_check(char *text, size_t len, unsigned strict)
{
    char            *p, *last;
    unsigned         depth, quoted, scalar;
    kx_json_t        j;
    kx_json_type_e   type;

    kx_json_init(&j, (unsigned char *) text, len);

    type = kx_json_type(&j);

    if ((type != KX_JSON_OBJECT && type != KX_JSON_ARRAY)
        || kx_json_skip(&j, NULL) != KX_OK
        || kx_json_end(&j) != KX_OK)
    {
        return KX_DECLINED;
    }

    depth = 0;
    quoted = 0;
    scalar = 0;
    last = text + len;

    for (p = text; p < last; p++) {

        if (quoted) {

            if (*p == '\\') {
                p = kx_tree_escape(p, last, strict);

                if (p == NULL) {
                    return KX_DECLINED;
                }

            } else if (*p == '"') {
                quoted = 0;

            } else if ((unsigned char) *p < ' ') {
                return KX_DECLINED;
            }

            continue;
        }

        switch (*p) {

        case '"':
            quoted = 1;
            break;

        case '{':
        case '[':
            if (++depth > KX_TREE_MAX_DEPTH) {
                return KX_DECLINED;
            }

            break;

        case '}':
        case ']':
            depth--;
            break;

        case ',':
        case ':':
        case ' ':
        case '\t':
        case '\r':
        case '\n':
            break;

        default:
            if (++scalar > KX_TREE_MAX_NUMBER) {
                return KX_DECLINED;
            }

            continue;
        }

        scalar = 0;
    }

    return KX_OK;
}


/*
 * Goes to the last character of an escape.  What cJSON would not take or
 * would make a zero byte of becomes the escape of U+FFFD, which is as long.
 */

static char *
kx_tree_escape(char *p, char *last, unsigned strict)
{
    uint32_t  unit, low;

    if (last - p < 2) {
        return NULL;
    }

    if (p[1] != 'u') {
        return strchr("\"\\/bfnrt", p[1]) ? p + 1 : NULL;
    }

    unit = kx_tree_unit(p, last);

    if (unit == KX_TREE_NO_UNIT) {
        return NULL;
    }

    if (unit >= 0xd800 && unit <= 0xdbff) {
        low = kx_tree_unit(p + 6, last);

        if (low >= 0xdc00 && low <= 0xdfff) {
            return p + 11;
        }
    }

    if (unit >= 0xd800 && unit <= 0xdfff) {

        if (strict) {
            return NULL;
        }

        unit = 0;
    }

    if (unit == 0) {
        memcpy(p, "\\ufffd", 6);
    }

    return p + 5;
}


static uint32_t
kx_tree_unit(const char *p, const char *last)
{
    char      c;
    unsigned  i;
    uint32_t  unit;

    if (last - p < 6 || p[0] != '\\' || p[1] != 'u') {
        return KX_TREE_NO_UNIT;
    }

    unit = 0;

    for (i = 2; i < 6; i++) {
        c = p[i];

        if (c >= '0' && c <= '9') {
            unit = unit << 4 | (uint32_t) (c - '0');
            continue;
        }

        c |= 0x20;

        if (c < 'a' || c > 'f') {
            return KX_TREE_NO_UNIT;
        }

        unit = unit << 4 | (uint32_t) (c - 'a' + 10);
    }

    return unit;
}


const cJSON *
kx_tree_get(const cJSON *object, const char *name)
{
    const cJSON  *item;

    item = cJSON_GetObjectItemCaseSensitive(object, name);

    return cJSON_IsNull(item) ? NULL : item;
}


char *
kx_tree_text(const kx_str_t *s, size_t max, size_t *len, unsigned *cut)
{
    char                 *text;
    size_t                n;
    kx_str_t              run;
    kx_decode_t           decode;
    kx_text_copy_t        copy;
    const unsigned char  *p, *last;

    /*
     * The text never gets shorter: what lies more than a character beyond
     * the limit cannot come into it.
     */

    n = (s->len < max + 4) ? s->len : max + 4;

    copy.left = (n < max / KX_TREE_REPLACED_LEN) ? n * KX_TREE_REPLACED_LEN
                                                 : max;
    copy.cut = (n < s->len);

    text = cJSON_malloc(copy.left + 1);
    if (text == NULL) {
        return NULL;
    }

    copy.pos = (unsigned char *) text;

    p = s->data;
    last = n ? p + n : p;

    /* the decoder checks UTF-8; a backslash is nothing special here */

    while (p < last) {
        run.data = (unsigned char *) p;

        p = memchr(p, '\\', (size_t) (last - p));

        if (p == NULL) {
            p = last;
        }

        run.len = (size_t) (p - run.data);

        kx_decode_init(&decode);
        kx_decode(&decode, &run, kx_tree_text_sink, &copy);

        if (p < last) {
            kx_tree_text_put(&copy, p++, 1);
        }
    }

    *copy.pos = '\0';

    *len = (size_t) ((char *) copy.pos - text);
    *cut = copy.cut;

    return text;
}


static void
kx_tree_text_sink(void *data, const unsigned char *p, size_t len)
{
    kx_text_copy_t       *copy = data;
    const unsigned char  *zero, *last;

    last = p + len;

    while (p < last) {
        zero = memchr(p, '\0', (size_t) (last - p));

        if (zero == NULL) {
            kx_tree_text_put(copy, p, (size_t) (last - p));
            return;
        }

        kx_tree_text_put(copy, p, (size_t) (zero - p));
        kx_tree_text_put(copy, KX_TREE_REPLACED, KX_TREE_REPLACED_LEN);

        p = zero + 1;
    }
}


/* p starts and ends with a whole character */

static void
kx_tree_text_put(kx_text_copy_t *copy, const void *p, size_t len)
{
    const unsigned char  *text = p;

    if (len > copy->left) {
        len = copy->left;

        while (len && (text[len] & 0xc0) == 0x80) {
            len--;
        }

        copy->cut = 1;
        copy->left = len;
    }

    memcpy(copy->pos, text, len);

    copy->pos += len;
    copy->left -= len;
}


int
kx_tree_add(cJSON *object, const char *name, const kx_str_t *s, size_t max)
{
    char      *text;
    cJSON     *item;
    size_t     len;
    unsigned   cut;

    text = kx_tree_text(s, max, &len, &cut);
    if (text == NULL) {
        return KX_ERROR;
    }

    item = cJSON_AddStringToObject(object, name, text);

    cJSON_free(text);

    return (item != NULL) ? KX_OK : KX_ERROR;
}
