/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "shape.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif


static int kx_shape_read(kx_shape_t *s, const kx_str_t *frame,
    const kx_str_t *data, const kx_str_t *text, const kx_str_t *noise);
static unsigned kx_shape_noise(const kx_str_t *key, const kx_str_t *noise);
static int kx_shape_add(kx_shape_t *s, const unsigned char *p,
    const unsigned char *end);
static const unsigned char *kx_shape_string(const unsigned char *p,
    const unsigned char *last);
static const unsigned char *kx_shape_number(const unsigned char *p,
    const unsigned char *last);


void
kx_shape_learn(kx_shape_t *s, const kx_str_t *frame, const kx_str_t *data,
    const kx_str_t *text, const kx_str_t *noise)
{
    unsigned  i;

    s->n = 0;
    s->len = 0;

    if (frame->len > KX_SHAPE_SIZE * 2
        || kx_shape_read(s, frame, data, text, noise) != KX_OK)
    {
        s->n = 0;
        return;
    }

    for (i = 0; i < s->n; i++) {
        if (s->holes[i].text) {
            return;
        }
    }

    s->n = 0;
}


static int
kx_shape_read(kx_shape_t *s, const kx_str_t *frame, const kx_str_t *data,
    const kx_str_t *text, const kx_str_t *noise)
{
    int                   rc;
    unsigned              depth, hole, string;
    kx_str_t              key, raw;
    kx_json_t             j;
    kx_json_type_e        type;
    const unsigned char  *p;

    /* a bit for each open container that is an object */

    uint32_t              objects;

    p = frame->data;
    depth = 0;
    objects = 0;
    key.len = 0;

    kx_json_init(&j, data->data, data->len);

    for ( ;; ) {
        type = kx_json_type(&j);

        if (type == KX_JSON_OBJECT || type == KX_JSON_ARRAY) {

            if (kx_json_enter(&j) != KX_OK || depth == 31) {
                return KX_ERROR;
            }

            depth++;
            objects = objects << 1 | (type == KX_JSON_OBJECT);

        } else {
            string = (type == KX_JSON_STRING);

            rc = string ? kx_json_string(&j, &raw) : kx_json_skip(&j, &raw);

            if (rc != KX_OK) {
                return KX_ERROR;
            }

            hole = (string && raw.data == text->data);

            if (hole || ((string || type == KX_JSON_NUMBER)
                         && kx_shape_noise(&key, noise)))
            {
                if (s->n == KX_SHAPE_HOLES
                    || kx_shape_add(s, p, raw.data) != KX_OK)
                {
                    return KX_ERROR;
                }

                s->holes[s->n].at = (unsigned short) s->len;
                s->holes[s->n].string = (unsigned char) string;
                s->holes[s->n].text = (unsigned char) hole;
                s->n++;

                p = raw.data + raw.len;
            }
        }

        for ( ;; ) {

            if (depth == 0) {
                return (kx_json_end(&j) == KX_OK)
                       ? kx_shape_add(s, p, frame->data + frame->len)
                       : KX_ERROR;
            }

            key.len = 0;

            rc = (objects & 1) ? kx_json_member(&j, &key)
                               : kx_json_element(&j);

            if (rc == KX_OK) {
                break;
            }

            if (rc != KX_DONE) {
                return KX_ERROR;
            }

            depth--;
            objects >>= 1;
        }
    }
}


static unsigned
kx_shape_noise(const kx_str_t *key, const kx_str_t *noise)
{
    if (key->len == 0) {
        return 0;
    }

    for ( /* void */ ; noise->len; noise++) {
        if (key->len == noise->len
            && memcmp(key->data, noise->data, key->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


static int
kx_shape_add(kx_shape_t *s, const unsigned char *p, const unsigned char *end)
{
    size_t  n;

    n = (size_t) (end - p);

    if (n > KX_SHAPE_SIZE - s->len) {
        return KX_ERROR;
    }

    memcpy(s->bytes + s->len, p, n);
    s->len += (unsigned) n;

    return KX_OK;
}


const unsigned char *
kx_shape_match(const kx_shape_t *s, const unsigned char *p,
    const unsigned char *last, kx_str_t *raw)
{
    size_t                n;
    unsigned              i;
    const unsigned char  *end, *same;

    same = s->bytes;

    for (i = 0; i < s->n; i++) {
        n = (size_t) (s->bytes + s->holes[i].at - same);

        if ((size_t) (last - p) < n || memcmp(p, same, n) != 0) {
            return NULL;
        }

        same += n;
        p += n;

        end = s->holes[i].string ? kx_shape_string(p, last)
                                 : kx_shape_number(p, last);

        if (end == NULL) {
            return NULL;
        }

        if (s->holes[i].text) {
            raw->data = (unsigned char *) p;
            raw->len = (size_t) (end - p);
        }

        p = end;
    }

    n = (size_t) (s->bytes + s->len - same);

    return (s->n && (size_t) (last - p) >= n && memcmp(p, same, n) == 0)
           ? p + n : NULL;
}


/* the quote that ends the string, which is on one line */

static const unsigned char *
kx_shape_string(const unsigned char *p, const unsigned char *last)
{
#ifdef __SSE2__

    int      found;
    __m128i  v, control, quote, slash;

    control = _mm_set1_epi8(0x1f);
    quote = _mm_set1_epi8('"');
    slash = _mm_set1_epi8('\\');

#endif

    while (p < last) {

#ifdef __SSE2__

        if (last - p >= 16) {
            v = _mm_loadu_si128((const __m128i *) p);

            found = _mm_movemask_epi8(
                        _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, quote),
                                                  _mm_cmpeq_epi8(v, slash)),
                                     _mm_cmpeq_epi8(_mm_min_epu8(v, control),
                                                    v)));
            if (found == 0) {
                p += 16;
                continue;
            }

            p += __builtin_ctz((unsigned) found);
        }

#endif

        if (*p == '"') {
            return p;
        }

        if (*p < 0x20) {
            return NULL;
        }

        /* what is escaped may be a line end, too: then it is not JSON */

        if (*p == '\\' && (++p == last || *p < 0x20)) {
            return NULL;
        }

        p++;
    }

    return NULL;
}


/* the end of a whole number, for which JSON has but one form */

static const unsigned char *
kx_shape_number(const unsigned char *p, const unsigned char *last)
{
    const unsigned char  *start;

    start = p;

    while (p < last && *p >= '0' && *p <= '9') {
        p++;
    }

    return (p == start || (*start == '0' && p - start > 1)) ? NULL : p;
}
