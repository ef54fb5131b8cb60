/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Ads as text.  The input is a request body, in which some bytes that JSON
 * does not have stand for ads:
 *
 *   - Nothing is found in what is no JSON.  What is left of JSON is JSON, and
 *     what a reader who goes by the words of text_ad.h over a parsed tree
 *     would leave.
 *   - The same with room for a few ranges only: some ads stay.
 *   - With all the ads taken out, again and again, there are none.
 *   - Whatever is written as an ad is found again.
 */


#define _GNU_SOURCE                  /* memmem() */

#include <stdio.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

#include "check.h"
#include "text_ad.h"


/* the same code again, with room for fewer ranges */

enum {
    MANY = KX_MAX_TEXT_ADS,
    FEW = 6
};


unsigned char *few_write(unsigned char *dst, const unsigned char *end,
    const kx_str_t *value);
unsigned few_marked(const unsigned char *p, size_t len);
unsigned few_find(kx_range_t *ranges, const unsigned char *p, size_t len,
    const kx_str_t *origin);

#define kx_text_ad_write   few_write
#define kx_text_ad_marked  few_marked
#define kx_text_ad_find    few_find

#undef KX_MAX_TEXT_ADS
#define KX_MAX_TEXT_ADS  FEW

#include "core/text_ad.c"

#undef kx_text_ad_write
#undef kx_text_ad_marked
#undef kx_text_ad_find


#define URL          "https://a.b/api/frame/"
#define RAW          "\xe2\x81\xa3"
#define ESC          "\\u2063"

#define MAX_SEGMENT  KX_MAX_TEXT_AD  /* longer ones might be no ad */


typedef struct {
    unsigned char  *start;
    size_t          len;
    size_t          size;
} buf_t;


static void buf_add(buf_t *b, const void *p, size_t len);
static void expand(buf_t *b, const unsigned char *p, size_t len);
static unsigned valid(const unsigned char *p, size_t len);
static unsigned find(const buf_t *b, buf_t *out, unsigned few);
static unsigned escape(const unsigned char *p, size_t len);
static unsigned comparable(const buf_t *b);
static cJSON *parse(const buf_t *b);
static unsigned tree(cJSON *item);
static unsigned tree_string(char *s);
static void fuzz_write(const unsigned char *p, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


static const kx_str_t  origin = kx_string("https://a.b");


/* the reference came across what it cannot judge */

static unsigned  unsure;


static void
buf_add(buf_t *b, const void *p, size_t len)
{
    if (b->size - b->len < len || b->start == NULL) {
        b->size = b->size * 2 + len + 1;
        b->start = realloc(b->start, b->size);
        check(b->start != NULL);
    }

    if (len) {
        memcpy(b->start + b->len, p, len);
        b->len += len;
    }
}


static void
expand(buf_t *b, const unsigned char *p, size_t len)
{
    size_t  i;

    static const char *const  words[] = {
        "\\n\\n" ESC "Ad: " URL "1" ESC,
        RAW "[x](" URL ")" RAW,
        ESC "https:\\/\\/a.b\\/api\\/frame\\/" RAW,
        "{\"type\":\"text\",\"text\":\"\\n\\n" ESC URL ESC "\"}",
        "{\"role\":\"a\",\"content\":[{\"text\":\"" RAW URL RAW "\"}]}",
        ESC "x",
        URL,
        "{\"id\":\"" KX_TEXT_AD_ID "\"}"
    };

    for (i = 0; i < len; i++) {
        if (p[i] >= 1 && p[i] <= 8) {
            buf_add(b, words[p[i] - 1], strlen(words[p[i] - 1]));

        } else {
            buf_add(b, &p[i], 1);
        }
    }
}


static unsigned
valid(const unsigned char *p, size_t len)
{
    kx_json_t  j;

    kx_json_init(&j, p, len);

    return kx_json_skip(&j, NULL) == KX_OK && kx_json_end(&j) == KX_OK;
}


/* what is left without the ranges, and their number */

static unsigned
find(const buf_t *b, buf_t *out, unsigned few)
{
    size_t          pos;
    unsigned        i, n;
    kx_range_t     *ranges;
    unsigned char  *copy;

    ranges = malloc((few ? FEW : MANY) * sizeof(kx_range_t));
    check(ranges != NULL);

    copy = malloc(b->len ? b->len : 1);
    check(copy != NULL);

    if (b->len) {
        memcpy(copy, b->start, b->len);
    }

    n = few ? few_find(ranges, copy, b->len, &origin)
            : kx_text_ad_find(ranges, copy, b->len, &origin);

    check(n <= (few ? FEW : MANY));
    check(n == 0 || kx_text_ad_marked(copy, b->len));

    memset(out, 0, sizeof(buf_t));
    pos = 0;

    for (i = 0; i < n; i++) {
        check(ranges[i].start < ranges[i].end);
        check(ranges[i].end <= b->len);
        check(i == 0 || ranges[i].start > ranges[i - 1].end);

        buf_add(out, copy + pos, ranges[i].start - pos);
        pos = ranges[i].end;
    }

    buf_add(out, copy + pos, b->len - pos);

    free(copy);
    free(ranges);

    return n;
}


/* one that is right, and no letter */

static unsigned
escape(const unsigned char *p, size_t len)
{
    size_t  i;

    if (len < 6 || p[1] != 'u') {
        return 1;
    }

    for (i = 2; i < 6; i++) {
        if (p[i] == '\0' || strchr("0123456789abcdefABCDEF", p[i]) == NULL) {
            return 0;
        }
    }

    return memcmp(p + 2, "00", 2) != 0
           || strchr("0567", p[4]) == NULL
           || memcmp(p + 2, "000a", 4) == 0;
}


/*
 * The tree of cJSON ends strings at zeroes, makes LF of LF, and decodes the
 * letters of an id.
 */

static unsigned
comparable(const buf_t *b)
{
    size_t    i;
    unsigned  string;

    string = 0;

    for (i = 0; i < b->len; i++) {

        if (b->start[i] == '"') {
            string = !string;

        } else if (b->start[i] == '\\') {

            if (!escape(b->start + i, b->len - i)) {
                return 0;
            }

            i++;

        } else if (b->start[i] == '\0' || (b->start[i] == '\n' && string)) {
            return 0;
        }
    }

    return 1;
}


static cJSON *
parse(const buf_t *b)
{
    return cJSON_ParseWithLength((char *) b->start, b->len);
}


/* takes the ads out of a tree; does this go as an element of an array? */

static unsigned
tree(cJSON *item)
{
    cJSON     *child, *next;
    unsigned   gone, drop, empty, ours;

    if (cJSON_IsString(item)) {
        (void) tree_string(item->valuestring);
        return 0;
    }

    if (cJSON_IsArray(item)) {

        for (child = item->child; child; child = next) {
            next = child->next;

            if (tree(child)) {
                cJSON_Delete(cJSON_DetachItemViaPointer(item, child));
            }
        }

        return 0;
    }

    if (!cJSON_IsObject(item)) {
        return 0;
    }

    drop = 0;
    empty = 0;
    ours = 0;

    for (child = item->child; child; child = child->next) {
        gone = 0;

        if (strcmp(child->string, "id") == 0) {
            ours = cJSON_IsString(child)
                   && strncmp(child->valuestring, KX_TEXT_AD_ID,
                              sizeof(KX_TEXT_AD_ID) - 1)
                      == 0;
        }

        if (cJSON_IsString(child)) {
            gone = tree_string(child->valuestring);

        } else if (cJSON_IsArray(child) && child->child) {
            (void) tree(child);
            empty |= (child->child == NULL);

        } else {
            (void) tree(child);
        }

        if (strcmp(child->string, "text") == 0) {
            drop = gone;
        }
    }

    return drop || empty || ours;
}


/* is nothing left of a string by that? */

static unsigned
tree_string(char *s)
{
    char      *from, *open, *close, *p, *start;
    unsigned   gone;

    from = s;
    start = s;
    gone = 0;

    while ((open = strstr(from, RAW)) != NULL) {
        close = strstr(open + 3, RAW);

        if (close == NULL) {
            break;
        }

        if (close - open > MAX_SEGMENT) {
            unsure = 1;
        }

        p = strstr(open, URL);

        if (p == NULL || p > close) {
            from = close;
            continue;
        }

        if (open > start && open[-1] == '\n') {
            open--;

            if (open > start && open[-1] == '\n') {
                open--;
            }
        }

        memmove(open, close + 3, strlen(close + 3) + 1);

        gone = 1;
        from = open;
        start = open;
    }

    return gone && *s == '\0';
}


/* an ad with a URL and whatever behind it */

static void
fuzz_write(const unsigned char *p, size_t len)
{
    buf_t           out, body;
    size_t          room;
    kx_str_t        value;
    unsigned char  *text, *last, *end;

    value.len = sizeof(URL) - 1 + len;
    value.data = malloc(value.len);
    room = 64 + 6 * value.len;
    text = malloc(room);
    check(value.data != NULL && text != NULL);

    memcpy(value.data, URL, sizeof(URL) - 1);

    if (len) {
        memcpy(value.data + sizeof(URL) - 1, p, len);
    }

    last = kx_text_ad_write(text, text + room, &value);

    check((last == NULL) == (value.len > KX_MAX_TEXT_AD));

    if (last) {
        memset(&body, 0, sizeof(buf_t));

        buf_add(&body, "[\"x", 3);
        buf_add(&body, text, (size_t) (last - text));
        buf_add(&body, "y\",{\"text\":\"", 12);
        buf_add(&body, text, (size_t) (last - text));
        buf_add(&body, "\"}]", 3);

        check(find(&body, &out, 0) == 2);
        check(out.len == 6 && memcmp(out.start, "[\"xy\"]", 6) == 0);

        free(out.start);
        free(body.start);

        /* to the byte, and not with one less */

        end = realloc(text, (size_t) (last - text) - 1);
        check(end != NULL);
        check(kx_text_ad_write(end, end + (last - text) - 1, &value) == NULL);
        text = end;
    }

    free(text);
    free(value.data);
}


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    char      *printed, *expected;
    cJSON     *json, *left;
    buf_t      body, once, twice;
    unsigned   n, is_valid;

    fuzz_write(p, len);

    memset(&body, 0, sizeof(buf_t));
    expand(&body, p, len);

    is_valid = valid(body.start, body.len);

    n = find(&body, &once, 1);
    check(is_valid || n == 0);
    check(valid(once.start, once.len) == is_valid);
    free(once.start);

    n = find(&body, &once, 0);
    check(is_valid || n == 0);
    check(valid(once.start, once.len) == is_valid);

    if (n && n < MANY && comparable(&body)
        && (json = parse(&body)) != NULL)
    {
        unsure = 0;

        (void) tree(json);

        left = parse(&once);
        check(left != NULL);

        if (!unsure) {
            printed = cJSON_PrintUnformatted(left);
            expected = cJSON_PrintUnformatted(json);
            check(printed != NULL && expected != NULL);

            check(strcmp(printed, expected) == 0);

            cJSON_free(printed);
            cJSON_free(expected);
        }

        cJSON_Delete(left);
        cJSON_Delete(json);
    }

    /* two halves may have become one, but not for ever */

    while (n) {
        n = find(&once, &twice, 0);

        check(n == 0 || twice.len < once.len);
        check(valid(twice.start, twice.len));

        free(once.start);
        once = twice;
    }

    free(once.start);
    free(body.start);

    return 0;
}
