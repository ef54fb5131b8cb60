/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Nothing that an ad server or a model says breaks out of the string it is
 * in: each entry of t/corpora/injections.json, in each member of an ad
 * server's answer and in each string of a model's that an ad is put next to,
 * for every format, framing and form.  Answers are read by cJSON and by a
 * reader of SSE that does what the standard says (WHATWG HTML 9.2.6).
 */


#include "chat.h"

#include <cjson/cJSON.h>

#include "core/protocol.h"
#include "core/text_ad.h"


#define NELTS(a)  (sizeof(a) / sizeof((a)[0]))

#define CORPUS      "t/corpora/injections.json"
#define ANSWERS     "t/corpora/answers.json"
#define ORIGIN      "https://server.megabrain.co"
#define BID         "7c9e6679-7425-40de-944b-e07fc1f90ae7"
#define SESSION     "019a5c20-11aa-7e02-8b6c-0d4e92f1a3c5"
#define MAX_EVENTS  64
#define MAX_KINDS   32


typedef struct {
    char            *text;           /* decoded; NULL: source only */
    char            *source;         /* as a value in JSON */
} entry_t;


typedef struct {
    char            *name;           /* of an SSE event, or NULL */
    char            *data;
} event_t;


typedef struct {
    event_t          events[MAX_EVENTS];
    unsigned         n;
} events_t;


typedef struct {
    events_t         events;
    cJSON           *json[MAX_EVENTS];       /* NULL: [DONE] */
} plain_t;


typedef struct {
    char                *name;
    const kx_dialect_t  *dialect;
    kx_framing_e         framing;
    char                *path;
    char                *request;
    char                *answer;     /* with %s where the model speaks */
} kind_t;


/* t/corpora/answers.json */

static kind_t     kinds[MAX_KINDS];
static unsigned   nkinds;

static plain_t    plains[MAX_KINDS][KX_FORM_TEXT + 1];


/* an ad server's answers, with %s where it says something */

static const struct {
    const char  *name;
    const char  *answer;
    unsigned     is_key;
    unsigned     fills;              /* whatever it says there */
} fields[] = {
    { "sessionId",
      "{\"sessionId\":%s,\"bids\":[{\"bidId\":\"" BID "\",\"code\":"
      "\"inlineAd\"}]}", 0, 0 },
    { "bidId",
      "{\"sessionId\":\"" SESSION "\",\"bids\":[{\"bidId\":%s,\"code\":"
      "\"inlineAd\"}]}", 0, 0 },
    { "the id of another bid",
      "{\"sessionId\":\"" SESSION "\",\"bids\":[{\"bidId\":\"" BID "\","
      "\"code\":\"inlineAd\"},{\"bidId\":%s,\"code\":\"x\"}]}", 0, 0 },
    { "code",
      "{\"sessionId\":\"" SESSION "\",\"bids\":[{\"bidId\":\"" BID "\","
      "\"code\":%s}]}", 0, 0 },
    { "the code of another bid",
      "{\"sessionId\":\"" SESSION "\",\"bids\":[{\"bidId\":\"" BID "\","
      "\"code\":\"inlineAd\"},{\"bidId\":\"" SESSION "\",\"code\":%s}]}",
      0, 0 },
    { "revenue",
      "{\"sessionId\":\"" SESSION "\",\"bids\":[{\"bidId\":\"" BID "\","
      "\"code\":\"inlineAd\",\"revenue\":%s}]}", 0, 1 },
    { "errCode",
      "{\"sessionId\":\"" SESSION "\",\"errCode\":%s,\"bids\":[{\"bidId\":\""
      BID "\",\"code\":\"inlineAd\"}]}", 0, 0 },
    { "errCode, for good", "{\"errCode\":%s,\"permanent\":true}", 0, 0 },
    { "skipCode",
      "{\"sessionId\":\"" SESSION "\",\"skip\":true,\"skipCode\":%s}", 0, 0 },
    { "skip",
      "{\"sessionId\":\"" SESSION "\",\"skip\":%s,\"bids\":[{\"bidId\":\""
      BID "\",\"code\":\"inlineAd\"}]}", 0, 0 },
    { "error",
      "{\"sessionId\":\"" SESSION "\",\"error\":%s,\"bids\":[{\"bidId\":\""
      BID "\",\"code\":\"inlineAd\"}]}", 0, 1 },
    { "bids", "{\"sessionId\":\"" SESSION "\",\"bids\":%s}", 0, 0 },
    { "a bid", "{\"sessionId\":\"" SESSION "\",\"bids\":[%s]}", 0, 0 },
    { "what is not the server's to say",
      "{\"sessionId\":\"" SESSION "\",\"messageId\":%s,\"label\":%s,"
      "\"origin\":%s,\"frameUrl\":%s,\"theme\":%s,\"bids\":[{\"bidId\":\""
      BID "\",\"code\":\"inlineAd\",\"label\":%s,\"frameUrl\":%s,\"url\":%s,"
      "\"iframeUrl\":%s,\"html\":%s,\"messageId\":%s,\"title\":%s}]}", 0, 1 },
    { "the name of a member",
      "{%s:1,\"sessionId\":\"" SESSION "\",\"bids\":[{%s:\"x\",\"bidId\":\""
      BID "\",\"code\":\"inlineAd\"}]}", 1, 1 }
};


static entry_t   *corpus;
static unsigned   nentries;

static chat_t     chat;


static unsigned read_kinds(void);
static void free_events(events_t *ev);


static cJSON *
read_file(const char *name)
{
    char   *text;
    long    size;
    FILE   *f;
    cJSON  *root;

    f = fopen(name, "rb");
    if (f == NULL) {
        fail_msg("cannot open %s", name);
        return NULL;
    }

    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);

    text = malloc((size_t) size + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t) size, f), size);
    text[size] = '\0';
    fclose(f);

    root = cJSON_Parse(text);
    assert_non_null(root);
    free(text);

    return root;
}


static int
setup(void **state)
{
    cJSON     *root, *group, *item;
    unsigned   max;

    root = read_file(CORPUS);
    max = 0;

    cJSON_ArrayForEach(group, root) {
        max += (unsigned) cJSON_GetArraySize(group);
    }

    corpus = calloc(max, sizeof(entry_t));
    assert_non_null(corpus);

    cJSON_ArrayForEach(group, root) {
        cJSON_ArrayForEach(item, group) {

            if (strcmp(group->string, "json_source") == 0) {
                corpus[nentries].source = strdup(item->valuestring);

            } else {
                corpus[nentries].text = strdup(item->valuestring);
                corpus[nentries].source = cJSON_PrintUnformatted(item);
            }

            nentries++;
        }
    }

    cJSON_Delete(root);

    return read_kinds() && nentries > 300 ? 0 : -1;
}


/* are there some of every format? */

static unsigned
read_kinds(void)
{
    cJSON       *root, *item;
    size_t       i;
    kind_t      *kind;
    unsigned     formats, all;
    const char  *name;

    static const struct {
        const char    *name;
        kx_framing_e   framing;
    } framings[] = {
        { "sse", KX_FRAMING_SSE },
        { "lines", KX_FRAMING_LINES },
        { "array", KX_FRAMING_ARRAY },
        { "whole", KX_FRAMING_WHOLE }
    };

    root = read_file(ANSWERS);
    formats = 0;

    cJSON_ArrayForEach(item, root) {
        assert_true(nkinds < MAX_KINDS);

        kind = &kinds[nkinds++];

        kind->name = strdup(chat_string(item, "name"));
        kind->path = strdup(chat_string(item, "path"));
        kind->request = strdup(chat_string(item, "request"));
        kind->answer = strdup(chat_string(item, "answer"));

        name = chat_string(item, "format");
        kind->dialect = kx_dialect_by_name((const unsigned char *) name,
                                           strlen(name));
        assert_non_null(kind->dialect);

        name = chat_string(item, "framing");

        for (i = 0; i < NELTS(framings); i++) {
            if (strcmp(name, framings[i].name) == 0) {
                kind->framing = framings[i].framing;
            }
        }

        assert_true(kind->framing != 0);

        for (i = 0; kx_dialects[i]; i++) {
            if (kx_dialects[i] == kind->dialect) {
                formats |= 1U << i;
            }
        }
    }

    cJSON_Delete(root);

    all = 0;

    for (i = 0; kx_dialects[i]; i++) {
        all |= 1U << i;
    }

    return formats == all;
}


static int
teardown(void **state)
{
    unsigned  i, j, form;

    for (i = 0; i < nentries; i++) {
        free(corpus[i].text);
        free(corpus[i].source);
    }

    free(corpus);

    for (i = 0; i < nkinds; i++) {

        for (form = 0; form <= KX_FORM_TEXT; form++) {
            free_events(&plains[i][form].events);

            for (j = 0; j < MAX_EVENTS; j++) {
                cJSON_Delete(plains[i][form].json[j]);
            }
        }

        free(kinds[i].name);
        free(kinds[i].path);
        free(kinds[i].request);
        free(kinds[i].answer);
    }

    chat_done(&chat);

    return 0;
}


/* each %s of a text, replaced */

static char *
filled_in(const char *text, const char *value)
{
    char        *s, *p;
    size_t       n, len;
    const char  *at;

    len = strlen(value);
    n = 0;

    for (at = text; (at = strstr(at, "%s")) != NULL; at += 2) {
        n++;
    }

    s = malloc(strlen(text) + n * len + 1);
    assert_non_null(s);
    p = s;

    while ((at = strstr(text, "%s")) != NULL) {
        memcpy(p, text, (size_t) (at - text));
        p += at - text;
        memcpy(p, value, len);
        p += len;
        text = at + 2;
    }

    strcpy(p, text);

    return s;
}


static void
add_event(events_t *ev, const char *name, const char *data, size_t len)
{
    assert_true(ev->n < MAX_EVENTS);

    ev->events[ev->n].name = name ? strdup(name) : NULL;
    ev->events[ev->n].data = strndup(data, len);
    ev->n++;
}


static void
free_events(events_t *ev)
{
    while (ev->n) {
        ev->n--;
        free(ev->events[ev->n].name);
        free(ev->events[ev->n].data);
    }
}


/* WHATWG HTML 9.2.6, to the letter; a zero byte would end it all */

static void
read_sse(events_t *ev, const char *p, size_t len)
{
    char        *data, *name, *line, *value;
    size_t       n, ndata;
    const char  *last, *end;

    assert_null(memchr(p, 0, len));

    last = p + len;
    data = malloc(len + 2);
    line = malloc(len + 1);
    assert_non_null(data);
    assert_non_null(line);
    ndata = 0;
    name = NULL;

    while (p < last) {

        for (end = p; end < last && *end != '\r' && *end != '\n'; end++) {
            /* void */
        }

        n = (size_t) (end - p);
        memcpy(line, p, n);
        line[n] = '\0';

        p = end;

        if (p < last) {
            p += (*p == '\r' && p + 1 < last && p[1] == '\n') ? 2 : 1;
        }

        if (n == 0) {

            if (ndata) {
                add_event(ev, name, data, ndata - 1);
            }

            ndata = 0;
            free(name);
            name = NULL;
            continue;
        }

        if (line[0] == ':') {
            continue;
        }

        value = strchr(line, ':');

        if (value) {
            *value++ = '\0';
            value += (*value == ' ');

        } else {
            value = line + n;
        }

        if (strcmp(line, "event") == 0) {
            free(name);
            name = strdup(value);

        } else if (strcmp(line, "data") == 0) {
            memcpy(data + ndata, value, strlen(value));
            ndata += strlen(value);
            data[ndata++] = '\n';
        }
    }

    free(name);
    free(line);
    free(data);
}


static void
read_lines(events_t *ev, const char *p, size_t len)
{
    const char  *last, *end;

    last = p + len;

    while (p < last) {
        end = memchr(p, '\n', (size_t) (last - p));
        end = end ? end : last;

        add_event(ev, NULL, p, (size_t) (end - p));
        p = end + 1;
    }
}


/* as a client of this framing sees it */

static void
read_answer(events_t *ev, kx_framing_e framing, const unsigned char *p,
    size_t len)
{
    memset(ev, 0, sizeof(events_t));

    if (framing == KX_FRAMING_SSE) {
        read_sse(ev, (const char *) p, len);

    } else if (framing == KX_FRAMING_LINES) {
        read_lines(ev, (const char *) p, len);

    } else {
        add_event(ev, NULL, (const char *) p, len);
    }
}


static void
assert_same_name(const event_t *a, const event_t *b)
{
    assert_string_equal(a->name ? a->name : "", b->name ? b->name : "");
}


/* JSON, and nothing behind it; cJSON would let control characters pass */

static cJSON *
read_json(const char *data)
{
    cJSON       *json;
    unsigned     string;
    const char  *end, *p;

    json = cJSON_ParseWithOpts(data, &end, 1);

    if (json == NULL) {
        return NULL;
    }

    string = 0;

    for (p = data; *p; p++) {

        if (*p == '"') {
            string = !string;

        } else if (string && *p == '\\') {
            p++;

        } else if (string && (unsigned char) *p < ' ') {
            cJSON_Delete(json);
            return NULL;
        }
    }

    return json;
}


/*
 * Is b what a is, but for the strings of a that have CHAT_PAYLOAD: there b has
 * the same with the ad instead of it.
 */

static unsigned
same(const cJSON *a, const cJSON *b, const cJSON *ad, unsigned *places)
{
    size_t        head, tail, len;
    const char   *at, *s;
    const cJSON  *x, *y;

    if (cJSON_IsString(a)
        && (at = strstr(a->valuestring, CHAT_PAYLOAD)) != NULL)
    {
        (*places)++;

        if (!cJSON_IsString(ad)) {
            return strcmp(a->valuestring, CHAT_PAYLOAD) == 0
                   && cJSON_Compare(b, ad, 1);
        }

        if (!cJSON_IsString(b)) {
            return 0;
        }

        s = b->valuestring;
        head = (size_t) (at - a->valuestring);
        tail = strlen(at + sizeof(CHAT_PAYLOAD) - 1);
        len = strlen(ad->valuestring);

        return strlen(s) == head + len + tail
               && memcmp(s, a->valuestring, head) == 0
               && memcmp(s + head, ad->valuestring, len) == 0
               && strcmp(s + head + len, at + sizeof(CHAT_PAYLOAD) - 1) == 0;
    }

    if (!cJSON_IsArray(a) && !cJSON_IsObject(a)) {
        return cJSON_Compare(a, b, 1);
    }

    if ((a->type & 0xff) != (b->type & 0xff)) {
        return 0;
    }

    for (x = a->child, y = b->child; x && y; x = x->next, y = y->next) {

        if (x->string && strcmp(x->string, y->string) != 0) {
            return 0;
        }

        if (!same(x, y, ad, places)) {
            return 0;
        }
    }

    return x == NULL && y == NULL;
}


/* the answer of a kind, with this ad in it; 1 if it is */

static unsigned
run(const kind_t *kind, kx_form_e form, const char *model,
    const char *payload, chat_result_t *res)
{
    char  *stream;

    chat_start(&chat, kind->dialect, kind->path, kind->request, kind->framing,
               form);

    chat.payload.data = (unsigned char *) payload;
    chat.payload.len = strlen(payload);

    stream = filled_in(kind->answer, model);
    chat_feed_text(&chat, res, stream);

    if (res->finishes == 0 || res->places != KX_OK) {
        assert_int_equal(res->len, strlen(stream));
        assert_memory_equal(res->out, stream, res->len);
        free(stream);

        return 0;
    }

    free(stream);

    return 1;
}


/* an answer with CHAT_PAYLOAD for an ad, read once */

static const plain_t *
get_plain(size_t k, kx_form_e form)
{
    plain_t        *plain;
    unsigned        i;
    chat_result_t   res;

    plain = &plains[k][form];

    if (plain->events.n) {
        return plain;
    }

    if (!run(&kinds[k], form, "\"m\"",
             form == KX_FORM_TEXT ? CHAT_PAYLOAD : "\"" CHAT_PAYLOAD "\"",
             &res))
    {
        fail_msg("%s has no ad: %.*s", kinds[k].name, (int) res.len, res.out);
    }

    read_answer(&plain->events, kinds[k].framing, res.out, res.len);
    chat_result_free(&res);

    for (i = 0; i < plain->events.n; i++) {

        if (strcmp(plain->events.events[i].data, "[DONE]") != 0) {
            plain->json[i] = read_json(plain->events.events[i].data);
            assert_non_null(plain->json[i]);
        }
    }

    return plain;
}


/* a payload of these bytes stays where it is put, in every kind of answer */

static void
assert_contained(kx_form_e form, const char *payload, const char *who)
{
    char           *data;
    cJSON          *ad, *json;
    size_t          k, i;
    events_t        ev;
    unsigned        places;
    chat_result_t   res;
    const plain_t  *plain;

    data = malloc(strlen(payload) + 3);
    assert_non_null(data);
    sprintf(data, form == KX_FORM_TEXT ? "\"%s\"" : "%s", payload);
    ad = read_json(data);
    free(data);

    if (ad == NULL) {
        fail_msg("%s: no JSON: %.300s", who, payload);
    }

    for (k = 0; k < nkinds; k++) {
        plain = get_plain(k, form);

        (void) run(&kinds[k], form, "\"m\"", payload, &res);

        read_answer(&ev, kinds[k].framing, res.out, res.len);

        if (ev.n != plain->events.n) {
            fail_msg("%s, %s: %u events, not %u: %.300s", kinds[k].name, who,
                     ev.n, plain->events.n, payload);
        }

        places = 0;

        for (i = 0; i < ev.n; i++) {
            assert_same_name(&plain->events.events[i], &ev.events[i]);

            if (plain->json[i] == NULL) {
                assert_string_equal(ev.events[i].data, "[DONE]");
                continue;
            }

            json = read_json(ev.events[i].data);

            if (json == NULL || !same(plain->json[i], json, ad, &places)) {
                fail_msg("%s, %s: %.600s\nis not %.600s", kinds[k].name, who,
                         ev.events[i].data, plain->events.events[i].data);
            }

            cJSON_Delete(json);
        }

        assert_true(places > 0);

        free_events(&ev);
        chat_result_free(&res);
    }

    cJSON_Delete(ad);
}


static kx_str_t
str(const char *s)
{
    kx_str_t  t;

    t.len = strlen(s);
    t.data = (unsigned char *) s;

    return t;
}


static const kx_ad_t  plain_ad = {
    kx_string(ORIGIN), kx_string("m-1"), kx_string("Sponsored"),
    kx_string("sdk-js"), { 0, NULL }, NULL, NULL, 0
};


/* one URL of the origin's, in which nothing is left to be quoted or ended */

static void
assert_url(const char *url)
{
    const char  *query;

    if (strncmp(url, ORIGIN "/api/frame/", sizeof(ORIGIN) + 10) != 0) {
        fail_msg("another place: %s", url);
    }

    query = url + sizeof(ORIGIN) + 10 + KX_UUID_LEN;

    assert_int_equal(strspn(url + sizeof(ORIGIN) + 10, "0123456789abcdef-"),
                     KX_UUID_LEN);
    assert_memory_equal(query, "?code=", 6);

    if (strspn(query, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                      "0123456789-._~%?&=")
        != strlen(query)
        || strchr(query + 1, '?') != NULL)
    {
        fail_msg("not a URL's: %s", url);
    }
}


/* the member and the text of an ad; the caller frees what is not NULL */

static void
write_ad(const kx_ad_t *ad, char **member, char **text)
{
    char            line[1024];
    size_t          i;
    cJSON          *json, *ads, *item;
    kx_str_t        value;
    unsigned char   buf[KX_MAX_MEMBER], url[KX_MAX_FRAME_URL], *last;

    *member = NULL;
    *text = NULL;

    last = kx_protocol_member(buf, buf + sizeof(buf), ad);

    if (last) {
        *member = strndup((char *) buf, (size_t) (last - buf));

        for (i = 0; (*member)[i]; i++) {
            assert_true((*member)[i] >= ' ' && (*member)[i] <= '~');
        }

        json = read_json(*member);
        assert_non_null(json);

        assert_int_equal(cJSON_GetArraySize(json), 2);
        assert_true(cJSON_IsString(cJSON_GetObjectItem(json, "messageId")));

        ads = cJSON_GetObjectItem(json, "ads");
        assert_int_equal(cJSON_GetArraySize(ads), ad->nbids);

        cJSON_ArrayForEach(item, ads) {
            assert_int_equal(cJSON_GetArraySize(item), 4);
            assert_url(cJSON_GetObjectItem(item, "frameUrl")->valuestring);
        }

        cJSON_Delete(json);
    }

    last = kx_protocol_frame_url(url, url + sizeof(url) - 1, ad, ad->bids);

    if (last && ad->label.len < 512) {
        *last = '\0';
        assert_url((char *) url);

        if ((size_t) snprintf(line, sizeof(line), "[%.*s](%s)",
                              (int) ad->label.len, ad->label.data, url)
            < sizeof(line))
        {
            value = str(line);
            last = kx_text_ad_write(buf, buf + sizeof(buf), &value);

            if (last) {
                *text = strndup((char *) buf, (size_t) (last - buf));

                for (i = 0; (*text)[i]; i++) {
                    assert_true((*text)[i] >= ' ' && (*text)[i] <= '~');
                }
            }
        }
    }
}


/* What is the same has been looked at; so it is for nearly all of an ad
   server's answers, as nothing that it says is taken over as it is. */

static void
check_ad(const kx_ad_t *ad, const char *who)
{
    char         *member, *text;
    static char  *seen[2];

    write_ad(ad, &member, &text);

    if (member && (seen[0] == NULL || strcmp(seen[0], member) != 0)) {
        assert_contained(KX_FORM_MEMBER, member, who);
        free(seen[0]);
        seen[0] = strdup(member);
    }

    if (text && (seen[1] == NULL || strcmp(seen[1], text) != 0)) {
        assert_contained(KX_FORM_TEXT, text, who);
        free(seen[1]);
        seen[1] = strdup(text);
    }

    if (strcmp(who, "the end") == 0) {
        free(seen[0]);
        free(seen[1]);
        seen[0] = NULL;
        seen[1] = NULL;
    }

    free(member);
    free(text);
}


/* every entry in every member of an ad server's answer */

static void
test_ad_server(void **state)
{
    char                 *answer;
    size_t                f;
    kx_ad_t               ad;
    unsigned              i, n, fills;
    kx_bid_t              bid;
    kx_str_t              placements[] = { kx_string("inlineAd") };
    unsigned char         id[KX_ID_LEN];
    kx_preload_answer_t   a;

    assert_int_equal(kx_uuid_parse(id, (const unsigned char *) BID,
                                   KX_UUID_LEN),
                     KX_OK);

    for (f = 0; f < NELTS(fields); f++) {
        fills = 0;
        n = 0;

        for (i = 0; i < nentries; i++) {

            if (fields[f].is_key && corpus[i].text == NULL) {
                continue;
            }

            n++;
            answer = filled_in(fields[f].answer, corpus[i].source);

            kx_protocol_preload_answer(&a, 200, (unsigned char *) answer,
                                       strlen(answer), placements, 1, 0);

            assert_true(strspn(a.code, "abcdefghijklmnopqrstuvwxyz"
                                       "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                       "0123456789_.:-")
                        == strlen(a.code));

            if (a.outcome == KX_AD_FILLED) {
                fills++;

                assert_int_equal(a.nbids, 1);
                assert_memory_equal(a.bids[0].id, id, KX_ID_LEN);

                bid = a.bids[0];
                ad = plain_ad;
                ad.placements = placements;
                ad.bids = &bid;
                ad.nbids = 1;

                check_ad(&ad, fields[f].name);
            }

            free(answer);
        }

        /* what is said where nobody listens does no harm either */

        if (fields[f].fills && fills < n * 9 / 10) {
            fail_msg("%s: %u ads of %u", fields[f].name, fills, n);
        }
    }
}


/* the same for what an ad has of others: the operator and the model */

static void
test_ad(void **state)
{
    size_t         f;
    kx_ad_t        ad;
    unsigned       i;
    kx_bid_t       bid;
    kx_str_t       placement, s;
    const char    *names[] = { "message id", "label", "sdk", "theme", "code" };

    memset(&bid, 0, sizeof(kx_bid_t));

    for (i = 0; i < nentries; i++) {

        if (corpus[i].text == NULL) {
            continue;
        }

        s = str(corpus[i].text);

        for (f = 0; f < NELTS(names); f++) {
            placement = str("inlineAd");

            ad = plain_ad;
            ad.placements = &placement;
            ad.bids = &bid;
            ad.nbids = 1;

            switch (f) {
            case 0: ad.message_id = s; break;
            case 1: ad.label = s; break;
            case 2: ad.sdk_name = s; break;
            case 3: ad.theme = s; break;
            case 4: placement = s; break;
            }

            check_ad(&ad, names[f]);
        }
    }

    placement = str("inlineAd");
    ad = plain_ad;
    ad.placements = &placement;
    ad.bids = &bid;
    ad.nbids = 1;

    check_ad(&ad, "the end");
}


/*
 * The model says it, next to an ad, some of which takes over what the model
 * said.  The answer has the events that it would have otherwise, all of them
 * valid.
 */

static void
test_model(void **state)
{
    char            *marker;
    cJSON           *json;
    size_t           k;
    events_t         a;
    unsigned         i, j, ads, form, own;
    chat_result_t    res;
    const events_t  *plain;

    for (k = 0; k < nkinds; k++) {
        for (form = 0; form <= KX_FORM_TEXT; form++) {
            ads = 0;
            marker = form == KX_FORM_TEXT ? CHAT_PAYLOAD
                                          : "\"" CHAT_PAYLOAD "\"";

            plain = &get_plain(k, form)->events;

            for (i = 0; i < nentries; i++) {

                /* a model that sends bad JSON had it before */

                json = read_json(corpus[i].source);
                cJSON_Delete(json);

                if (run(&kinds[k], form, corpus[i].source, marker, &res)
                    && json != NULL)
                {
                    ads++;

                    read_answer(&a, kinds[k].framing, res.out, res.len);

                    /* a text that there is none of is one of its own */

                    own = corpus[i].text == NULL || *corpus[i].text == '\0';

                    if (a.n != plain->n && !(own && a.n == plain->n + 1)) {
                        fail_msg("%s, %s: %u events, not %u", kinds[k].name,
                                 corpus[i].source, a.n, plain->n);
                    }

                    for (j = 0; j < a.n; j++) {
                        if (!own) {
                            assert_same_name(&a.events[j], &plain->events[j]);
                        }

                        if (strcmp(a.events[j].data, "[DONE]") == 0) {
                            assert_int_equal(j, a.n - 1);
                            continue;
                        }

                        json = read_json(a.events[j].data);

                        if (json == NULL) {
                            fail_msg("%s: %.900s", kinds[k].name,
                                     a.events[j].data);
                        }

                        cJSON_Delete(json);
                    }

                    free_events(&a);
                }

                chat_result_free(&res);
            }

            if (ads < nentries * 3 / 4) {
                fail_msg("%s: %u ads of %u", kinds[k].name, ads, nentries);
            }
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_ad_server),
        cmocka_unit_test(test_ad),
        cmocka_unit_test(test_model)
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
