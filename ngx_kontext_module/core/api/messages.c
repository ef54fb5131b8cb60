/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Messages that are fed (protocol.md 3.2).
 */


#include "body.h"


#define KX_API_LAST_TIME      253402300799999LL      /* the end of 9999 */
#define KX_API_DAY            86400000LL
#define KX_API_1970           2440588                /* as a Julian day */


static const kx_api_error_t *kx_api_messages(kx_api_message_t **messages,
    unsigned *n, const cJSON *root, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_message_whole(const cJSON *item);
static const kx_api_error_t *kx_api_message(kx_api_message_t *m,
    const cJSON *item, unsigned track_only, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_role(kx_role_e *role, const cJSON *item);
static const kx_api_error_t *kx_api_content(kx_str_t *content,
    const cJSON *item, const kx_pool_t *pool);
static const kx_api_error_t *kx_api_track_only(unsigned *track_only,
    const cJSON *item);
static const kx_api_error_t *kx_api_created(kx_api_message_t *m,
    const cJSON *item);
static int kx_api_time(int64_t *ms, const char *s);
static const char *kx_api_date(int64_t *ms, const char *p);
static const char *kx_api_clock(int64_t *ms, const char *p);
static const char *kx_api_offset(int64_t *ms, const char *p);
static const char *kx_api_digits(int64_t *value, const char *p, unsigned n,
    int64_t min, int64_t max);


const kx_api_error_t *
kx_api_read_messages(kx_api_message_t **messages, unsigned *n,
    const unsigned char *body, size_t len, const kx_pool_t *pool)
{
    cJSON                 *root;
    const kx_api_error_t  *error;

    *messages = NULL;
    *n = 0;

    error = kx_api_parse(&root, body, len, KX_API_MAX_BODY);

    if (error == NULL) {
        error = kx_api_messages(messages, n, root, pool);
    }

    cJSON_Delete(root);

    return error;
}


static const kx_api_error_t *
kx_api_messages(kx_api_message_t **messages, unsigned *n, const cJSON *root,
    const kx_pool_t *pool)
{
    unsigned               count, i, track_only;
    const cJSON           *item, *list, *first;
    kx_api_message_t      *m;
    const kx_api_error_t  *error;

    track_only = 0;
    list = cJSON_IsArray(root) ? root : kx_tree_get(root, "messages");

    if (list != NULL && list != root) {
        error = kx_api_track_only(&track_only, root);

        if (error != NULL) {
            return error;
        }

        if (!cJSON_IsArray(list)) {
            return &kx_api_bad_member;
        }
    }

    /* one message is a list of itself */

    first = list ? list->child : root;
    count = 0;

    for (item = first; item != NULL; item = item->next) {
        error = kx_api_message_whole(item);

        if (error != NULL) {
            return error;
        }

        count++;
    }

    if (count == 0) {
        return &kx_api_missing_member;
    }

    /* that of a few bytes of the body for each */

    m = pool->alloc(pool->data, count * sizeof(kx_api_message_t));
    if (m == NULL) {
        return &kx_api_no_memory;
    }

    for (i = 0, item = first; i < count; i++, item = item->next) {
        error = kx_api_message(&m[i], item, track_only, pool);

        if (error != NULL) {
            return error;
        }
    }

    *messages = m;
    *n = count;

    return NULL;
}


static const kx_api_error_t *
kx_api_message_whole(const cJSON *item)
{
    if (!cJSON_IsObject(item)) {
        return &kx_api_bad_member;
    }

    if (kx_tree_get(item, "id") == NULL
        || kx_tree_get(item, "role") == NULL
        || kx_tree_get(item, "content") == NULL)
    {
        return &kx_api_missing_member;
    }

    return NULL;
}


static const kx_api_error_t *
kx_api_message(kx_api_message_t *m, const cJSON *item, unsigned track_only,
    const kx_pool_t *pool)
{
    const kx_api_error_t  *error;

    memset(m, 0, sizeof(kx_api_message_t));

    error = kx_api_message_id(&m->message.id, kx_tree_get(item, "id"), pool);

    if (error == NULL) {
        error = kx_api_role(&m->message.role, kx_tree_get(item, "role"));
    }

    if (error == NULL) {
        error = kx_api_content(&m->message.content,
                               kx_tree_get(item, "content"), pool);
    }

    if (error == NULL) {
        error = kx_api_created(m, kx_tree_get(item, "createdAt"));
    }

    if (error == NULL) {
        m->track_only = track_only;
        error = kx_api_track_only(&m->track_only, item);
    }

    return error;
}


static const kx_api_error_t *
kx_api_role(kx_role_e *role, const cJSON *item)
{
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL) {
        return &kx_api_bad_role;
    }

    if (strcmp(s, "user") == 0) {
        *role = KX_ROLE_USER;
        return NULL;
    }

    if (strcmp(s, "assistant") == 0) {
        *role = KX_ROLE_ASSISTANT;
        return NULL;
    }

    return &kx_api_bad_role;
}


static const kx_api_error_t *
kx_api_content(kx_str_t *content, const cJSON *item, const kx_pool_t *pool)
{
    size_t       len;
    const char  *s;

    s = cJSON_GetStringValue(item);

    if (s == NULL) {
        return &kx_api_bad_member;
    }

    len = strlen(s);

    if (len > KX_MAX_CONTENT) {
        len = KX_MAX_CONTENT;

        while (len && ((unsigned char) s[len] & 0xc0) == 0x80) {
            len--;
        }
    }

    return kx_api_keep(content, s, len, pool);
}


/* leaves *track_only as it was when nothing is said */

static const kx_api_error_t *
kx_api_track_only(unsigned *track_only, const cJSON *item)
{
    const cJSON  *flag;

    flag = kx_tree_get(item, "trackOnly");

    if (flag == NULL) {
        return NULL;
    }

    if (!cJSON_IsBool(flag)) {
        return &kx_api_bad_member;
    }

    *track_only = (cJSON_IsTrue(flag) != 0);

    return NULL;
}


static const kx_api_error_t *
kx_api_created(kx_api_message_t *m, const cJSON *item)
{
    double       n;
    int64_t      when;
    const char  *s;

    if (item == NULL) {
        return NULL;
    }

    if (cJSON_IsNumber(item)) {
        n = item->valuedouble;

        if (!(n >= 0 && n < (double) (KX_API_LAST_TIME + 1))) {
            return &kx_api_bad_time;
        }

        m->message.created = (uint64_t) n;
        m->has_created = 1;

        return NULL;
    }

    s = cJSON_GetStringValue(item);

    if (s == NULL || kx_api_time(&when, s) != KX_OK
        || when < 0 || when > KX_API_LAST_TIME)
    {
        return &kx_api_bad_time;
    }

    m->message.created = (uint64_t) when;
    m->has_created = 1;

    return NULL;
}


/* RFC 3339, 5.6; KX_DECLINED: it is something else */

static int
kx_api_time(int64_t *ms, const char *s)
{
    const char  *p;

    *ms = 0;

    p = kx_api_date(ms, s);

    if (p == NULL || (*p != 'T' && *p != 't' && *p != ' ')) {
        return KX_DECLINED;
    }

    p = kx_api_clock(ms, p + 1);

    if (p == NULL) {
        return KX_DECLINED;
    }

    p = kx_api_offset(ms, p);

    return (p != NULL && *p == '\0') ? KX_OK : KX_DECLINED;
}


static const char *
kx_api_date(int64_t *ms, const char *p)
{
    int64_t  year, month, day, y, m, days;

    static const unsigned char  length[] = {
        31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31
    };

    p = kx_api_digits(&year, p, 4, 0, 9999);

    if (p == NULL || *p != '-') {
        return NULL;
    }

    p = kx_api_digits(&month, p + 1, 2, 1, 12);

    if (p == NULL || *p != '-') {
        return NULL;
    }

    days = length[month - 1];

    if (month == 2
        && ((year % 4 == 0 && year % 100 != 0) || year % 400 == 0))
    {
        days++;
    }

    p = kx_api_digits(&day, p + 1, 2, 1, days);

    /* years that start in March, from 4801 BC on */

    y = year + 4800 - (month < 3);
    m = (month + 9) % 12;

    days = day + (153 * m + 2) / 5 + 365 * y + y / 4 - y / 100 + y / 400
           - 32045;

    *ms += (days - KX_API_1970) * KX_API_DAY;

    return p;
}


static const char *
kx_api_clock(int64_t *ms, const char *p)
{
    int64_t  hour, minute, second, scale;

    p = kx_api_digits(&hour, p, 2, 0, 23);

    if (p == NULL || *p != ':') {
        return NULL;
    }

    p = kx_api_digits(&minute, p + 1, 2, 0, 59);

    if (p == NULL || *p != ':') {
        return NULL;
    }

    /* a leap second is the first one of the next minute */

    p = kx_api_digits(&second, p + 1, 2, 0, 60);

    if (p == NULL) {
        return NULL;
    }

    *ms += ((hour * 60 + minute) * 60 + second) * 1000;

    if (*p != '.') {
        return p;
    }

    p++;

    if (*p < '0' || *p > '9') {
        return NULL;
    }

    for (scale = 100; *p >= '0' && *p <= '9'; p++) {
        *ms += scale * (*p - '0');
        scale /= 10;
    }

    return p;
}


static const char *
kx_api_offset(int64_t *ms, const char *p)
{
    int64_t  hour, minute, sign;

    if (*p == 'Z' || *p == 'z') {
        return p + 1;
    }

    if (*p != '+' && *p != '-') {
        return NULL;
    }

    sign = (*p == '+') ? 1 : -1;

    p = kx_api_digits(&hour, p + 1, 2, 0, 23);

    if (p == NULL || *p != ':') {
        return NULL;
    }

    p = kx_api_digits(&minute, p + 1, 2, 0, 59);

    if (p != NULL) {
        *ms -= sign * (hour * 60 + minute) * 60000;
    }

    return p;
}


static const char *
kx_api_digits(int64_t *value, const char *p, unsigned n, int64_t min,
    int64_t max)
{
    *value = 0;

    for ( /* void */ ; n > 0; n--) {

        if (*p < '0' || *p > '9') {
            return NULL;
        }

        *value = *value * 10 + (*p++ - '0');
    }

    return (*value >= min && *value <= max) ? p : NULL;
}
