/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#ifndef _GNU_SOURCE
#define _GNU_SOURCE                  /* memmem() */
#endif

#include "text_ad.h"


/* an object or an array that is open */

typedef struct {
    size_t                start;     /* of itself */
    size_t                element;   /* start of the current element */
    size_t                pending;   /* start of elements that go, with none
                                        in front of them that stays */
    size_t                last;      /* end of the element before */
    unsigned              object:1;
    unsigned              drop:1;    /* its text is nothing but ads */
    unsigned              empty:1;   /* an array of its own was, too */
    unsigned              ours:1;    /* its id is one of ours */
    unsigned              stays:1;   /* an element stays */
    unsigned              gone:1;    /* an element goes */
} kx_text_ad_level_t;


typedef struct {
    const unsigned char  *base;
    kx_range_t           *ranges;
    unsigned              n;
    const kx_str_t       *origin;
    unsigned              depth;
    kx_text_ad_level_t    levels[KX_JSON_MAX_DEPTH];
} kx_text_ad_t;


static unsigned kx_text_ad_item(const kx_str_t *id);
static const unsigned char *kx_text_ad_mark(const unsigned char *p,
    const unsigned char *last, size_t *len);
static unsigned kx_text_ad_string(kx_text_ad_t *t, const kx_str_t *raw);
static unsigned kx_text_ad_ours(kx_text_ad_t *t, const unsigned char *p,
    size_t len);
static const unsigned char *kx_text_ad_newlines(const unsigned char *start,
    const unsigned char *p);
static void kx_text_ad_element(kx_text_ad_t *t, size_t start);
static void kx_text_ad_value(kx_text_ad_t *t, size_t end, unsigned drop);
static unsigned kx_text_ad_close(kx_text_ad_t *t);
static void kx_text_ad_range(kx_text_ad_t *t, size_t start, size_t end);


static const unsigned char  kx_text_ad_utf8[] = "\xe2\x81\xa3";
static const unsigned char  kx_text_ad_escape[] = "\\u2063";
static const unsigned char  kx_text_ad_id[] = KX_TEXT_AD_ID;


unsigned char *
kx_text_ad_write(unsigned char *dst, const unsigned char *end,
    const kx_str_t *value)
{
    size_t                n;
    kx_str_t              part;
    const unsigned char  *p, *last, *mark;

    static const kx_str_t  open = kx_string("\\n\\n\\u2063");

    n = sizeof(kx_text_ad_escape) - 1;

    if (value->len > KX_MAX_TEXT_AD
        || (size_t) (end - dst) < open.len + n)
    {
        return NULL;
    }

    memcpy(dst, open.data, open.len);
    dst += open.len;

    p = value->data;
    last = p + value->len;

    while (p < last) {
        mark = memmem(p, (size_t) (last - p), kx_text_ad_utf8, 3);

        part.data = (unsigned char *) p;
        part.len = (size_t) ((mark ? mark : last) - p);

        dst = kx_json_escape(dst, end, &part);
        if (dst == NULL) {
            return NULL;
        }

        p = mark ? mark + 3 : last;
    }

    if ((size_t) (end - dst) < n) {
        return NULL;
    }

    memcpy(dst, kx_text_ad_escape, n);

    return dst + n;
}


unsigned
kx_text_ad_find(kx_range_t *ranges, const unsigned char *p, size_t len,
    const kx_str_t *origin)
{
    int                  rc;
    size_t               start;
    unsigned             drop, text, id;
    kx_str_t             raw, key;
    kx_json_t            j;
    kx_text_ad_t         t;
    kx_json_type_e       type;
    kx_text_ad_level_t  *level;

    if (!kx_text_ad_marked(p, len)) {
        return 0;
    }

    t.base = p;
    t.ranges = ranges;
    t.n = 0;
    t.origin = origin;
    t.depth = 0;

    text = 0;
    id = 0;

    kx_json_init(&j, p, len);

    for ( ;; ) {
        type = kx_json_type(&j);
        start = (size_t) (j.pos - p);
        drop = 0;

        kx_text_ad_element(&t, start);

        if (type == KX_JSON_OBJECT || type == KX_JSON_ARRAY) {

            if (kx_json_enter(&j) != KX_OK) {
                return 0;
            }

            level = &t.levels[t.depth++];

            memset(level, 0, sizeof(kx_text_ad_level_t));
            level->start = start;
            level->object = (type == KX_JSON_OBJECT);

        } else if (type == KX_JSON_STRING) {

            if (kx_json_string(&j, &raw) != KX_OK) {
                return 0;
            }

            if (kx_text_ad_string(&t, &raw) && text) {
                t.levels[t.depth - 1].drop = 1;
            }

            if (id && kx_text_ad_item(&raw)) {
                t.levels[t.depth - 1].ours = 1;
            }

            kx_text_ad_value(&t, (size_t) (j.pos - p), 0);

        } else {

            if (kx_json_skip(&j, NULL) != KX_OK) {
                return 0;
            }

            kx_text_ad_value(&t, (size_t) (j.pos - p), 0);
        }

        /* to the next value, over the ends of what is open */

        text = 0;
        id = 0;

        for ( ;; ) {

            if (t.depth == 0) {
                return kx_json_end(&j) == KX_OK ? t.n : 0;
            }

            if (t.levels[t.depth - 1].object) {
                rc = kx_json_member(&j, &key);
                text = (rc == KX_OK && kx_json_is(&key, "text"));
                id = (rc == KX_OK && kx_json_is(&key, "id"));

                if (text) {

                    /* the last one of that name counts */

                    t.levels[t.depth - 1].drop = 0;
                }

                if (id) {
                    t.levels[t.depth - 1].ours = 0;
                }

            } else {
                rc = kx_json_element(&j);
            }

            if (rc == KX_OK) {
                break;
            }

            if (rc != KX_DONE) {
                return 0;
            }

            drop = kx_text_ad_close(&t);
            t.depth--;

            kx_text_ad_value(&t, (size_t) (j.pos - p), drop);
        }
    }
}


unsigned
kx_text_ad_marked(const unsigned char *p, size_t len)
{
    return len
           && (memmem(p, len, kx_text_ad_utf8, 3) != NULL
               || memmem(p, len, kx_text_ad_escape,
                         sizeof(kx_text_ad_escape) - 1)
                  != NULL
               || memmem(p, len, kx_text_ad_id, sizeof(kx_text_ad_id) - 1)
                  != NULL);
}


/* clients that keep items on the server send back no more than their ids */

static unsigned
kx_text_ad_item(const kx_str_t *id)
{
    size_t  n;

    n = sizeof(kx_text_ad_id) - 1;

    return id->len >= n && memcmp(id->data, kx_text_ad_id, n) == 0;
}


/* the first mark in a raw string, and its length there */

static const unsigned char *
kx_text_ad_mark(const unsigned char *p, const unsigned char *last,
    size_t *len)
{
    for ( /* void */ ; p < last; p++) {

        if (*p == '\\') {

            if (last - p >= 6 && memcmp(p, kx_text_ad_escape, 6) == 0) {
                *len = 6;
                return p;
            }

            p++;
            continue;
        }

        if (*p == 0xe2 && last - p >= 3 && memcmp(p, kx_text_ad_utf8, 3) == 0)
        {
            *len = 3;
            return p;
        }
    }

    return NULL;
}


/* takes the ads out of a raw string; is nothing left of it by that? */

static unsigned
kx_text_ad_string(kx_text_ad_t *t, const kx_str_t *raw)
{
    size_t                n, m, gone;
    const unsigned char  *p, *last, *start, *open, *close;

    p = raw->data;
    last = p + raw->len;
    start = p;
    gone = 0;

    while (p < last) {
        open = kx_text_ad_mark(p, last, &n);
        if (open == NULL) {
            break;
        }

        close = kx_text_ad_mark(open + n, last, &m);
        if (close == NULL) {
            break;
        }

        if (!kx_text_ad_ours(t, open + n, (size_t) (close - open - n))) {
            p = close;
            continue;
        }

        open = kx_text_ad_newlines(start, open);
        close += m;

        kx_text_ad_range(t, (size_t) (open - t->base),
                         (size_t) (close - t->base));

        gone += (size_t) (close - open);
        start = close;
        p = close;
    }

    return gone && gone == raw->len;
}


/*
 * Is there a frame URL of the origin in it?  A byte that was no UTF-8 has
 * come back as the three of U+FFFD.
 */

static unsigned
kx_text_ad_ours(kx_text_ad_t *t, const unsigned char *p, size_t len)
{
    ssize_t               n;
    kx_str_t              raw;
    unsigned char         buf[KX_MAX_TEXT_AD * 3];
    const unsigned char  *q, *last;

    static const kx_str_t  path = kx_string("/api/frame/");

    raw.data = (unsigned char *) p;
    raw.len = len;

    n = kx_json_copy(&raw, buf, sizeof(buf));
    if (n <= 0 || t->origin->len == 0) {
        return 0;
    }

    q = buf;
    last = buf + n;

    while (q < last) {
        q = memmem(q, (size_t) (last - q), t->origin->data, t->origin->len);
        if (q == NULL) {
            return 0;
        }

        q += t->origin->len;

        if ((size_t) (last - q) >= path.len
            && memcmp(q, path.data, path.len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/* the place of up to two line feeds in front of p */

static const unsigned char *
kx_text_ad_newlines(const unsigned char *start, const unsigned char *p)
{
    unsigned              i;
    const unsigned char  *q, *slash;

    for (i = 0; i < 2; i++) {

        if (p - start >= 2 && memcmp(p - 2, "\\n", 2) == 0) {
            q = p - 2;

        } else if (p - start >= 6
                   && (memcmp(p - 6, "\\u000a", 6) == 0
                       || memcmp(p - 6, "\\u000A", 6) == 0))
        {
            q = p - 6;

        } else {
            break;
        }

        /* not where the backslash is the second one of a pair */

        slash = q;

        while (slash > start && slash[-1] == '\\') {
            slash--;
        }

        if ((q - slash) % 2) {
            break;
        }

        p = q;
    }

    return p;
}


/* a value begins, maybe an element of an array */

static void
kx_text_ad_element(kx_text_ad_t *t, size_t start)
{
    kx_text_ad_level_t  *level;

    if (t->depth == 0) {
        return;
    }

    level = &t->levels[t->depth - 1];

    if (level->object) {
        return;
    }

    level->element = start;

    if (level->gone && !level->stays) {

        /* with the comma behind them */

        kx_text_ad_range(t, level->pending, start);
        level->gone = 0;
    }
}


/* a value has ended; drop: as an element of an array, it goes */

static void
kx_text_ad_value(kx_text_ad_t *t, size_t end, unsigned drop)
{
    kx_text_ad_level_t  *level;

    if (t->depth == 0) {
        return;
    }

    level = &t->levels[t->depth - 1];

    if (level->object) {
        return;
    }

    if (!drop) {
        level->stays = 1;

    } else if (level->stays) {

        /* with the comma in front of it */

        kx_text_ad_range(t, level->last, end);

    } else {
        level->gone = 1;
        level->pending = level->element;
    }

    level->last = end;
}


/* an object or array ends: does it go, as an element of an array? */

static unsigned
kx_text_ad_close(kx_text_ad_t *t)
{
    kx_text_ad_level_t  *level, *outer;

    level = &t->levels[t->depth - 1];

    if (level->object) {
        return (level->drop || level->empty || level->ours) && t->depth > 1
               && !t->levels[t->depth - 2].object;
    }

    if (!level->gone || level->stays) {
        return 0;
    }

    /* nothing is left in it */

    kx_text_ad_range(t, level->pending, level->last);

    if (t->depth > 2 && t->levels[t->depth - 2].object
        && !t->levels[t->depth - 3].object)
    {
        outer = &t->levels[t->depth - 2];
        outer->empty = 1;
    }

    return 0;
}


/* adds a range; those that it covers are parts of it */

static void
kx_text_ad_range(kx_text_ad_t *t, size_t start, size_t end)
{
    while (t->n && t->ranges[t->n - 1].start >= start) {
        t->n--;
    }

    if (t->n && t->ranges[t->n - 1].end >= start) {
        t->ranges[t->n - 1].end = end;
        return;
    }

    if (t->n < KX_MAX_TEXT_ADS) {
        t->ranges[t->n].start = start;
        t->ranges[t->n].end = end;
        t->n++;
    }
}
