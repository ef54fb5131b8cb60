/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Answers and requests like real ones.  The frame of an event is that of a
 * recorded stream; its text changes from event to event, and so does its
 * length.
 */


#include "load.h"


static load_str_t sample_file(const char *dir, const char *name);
static unsigned sample_split(load_str_t *text, const char *end,
    load_str_t *events, unsigned max);
static unsigned sample_is_text(const load_format_t *f, load_str_t *ev);
static load_str_t sample_value(load_str_t *ev, const char *key);
static unsigned sample_is_word(load_str_t *s);
static load_str_t sample_chunks(load_str_t *events, unsigned n,
    unsigned last);
static void sample_add(load_str_t *s, const char *data, size_t len);


#define SAMPLE_EVENTS  1024
#define SAMPLE_MARK    "(--------) "


static const load_format_t  sample_formats[] = {

    { "openai_chat", "/v1/chat/completions?", "openai-chat.request.json",
      "openai-chat.sse", "text/event-stream", "\n\n",
      "\"delta\":{\"content\":\"", "\"content\":\"" },

    { "openai_responses", "/v1/responses?", "openai-responses.request.json",
      "openai-responses.sse", "text/event-stream", "\n\n",
      "event: response.output_text.delta", "\"delta\":\"" },

    { "anthropic", "/v1/messages?", "anthropic.request.json",
      "anthropic.sse", "text/event-stream", "\n\n",
      "\"type\":\"text_delta\"", "\"text\":\"" },

    { "ollama", "/api/chat?", "ollama.request.json",
      "ollama.ndjson", "application/x-ndjson", "\n",
      "\"done\":false", "\"content\":\"" },

    { "gemini", "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
      "?alt=sse&", "gemini.request.json",
      "gemini.sse", "text/event-stream", "\r\n\r\n",
      "\"}],\"role\":\"model\"},\"index\":0}", "\"text\":\"" },

    { "ai_sdk_ui", "/api/chat?", "ai-sdk-ui.request.json",
      "ai-sdk-ui.sse", "text/event-stream", "\n\n",
      "\"type\":\"text-delta\"", "\"delta\":\"" },

    { NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL }
};


static const char *const  sample_sentences[] = {
    "It depends on how often you run, and on what.",
    "Two of them are **40 g heavier** than the one you have now.",
    "\\n\\n1. **Weight** \\u2013 what you carry on a long day is what counts.",
    "\\n2. **Price**: you pay \\\"only\\\" 30 % more, and it lasts longer.",
    "For two runs a week I would take the first one and spend the rest on "
    "socks.",
    "If your knees hurt after longer runs, the softer foam makes a difference "
    "that you will notice from the first day on.",
    "The outsole lasts about 300 km longer than last year's.",
    "\\n\\n```sh\\ncurl -s https://example.org/sizes | jq '.eu[]'\\n```\\n",
    "That table is from the maker, so take it with a grain of salt.",
    "Most shops let you try them on a treadmill before you pay.",
    "In winter I would rather look at the grip than at the weight.",
    "Where do you mostly run: on the road, in the park, or on trails?",
    "Caf\xc3\xa9s along the way have water, so a bottle is enough.",
    "And what do you think about the second of these, is it worth it?",
    "Thanks, that helps a lot!",
    "I have about 120 euros to spend, a little more if it is worth it.",
    "Could you put that into a list, shortest first?",
    "My last pair was a size too small, which I noticed at km 30.",
};

#define SAMPLE_SENTENCES                                                      \
    (sizeof(sample_sentences) / sizeof(sample_sentences[0]))


uint32_t
sample_random(uint32_t n)
{
    static uint64_t  x = 88172645463325252ull;

    /* the same in each run */

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;

    return (uint32_t) (x >> 32) % n;
}


const load_format_t *
sample_format(const char *name)
{
    const load_format_t  *f;

    for (f = sample_formats; f->name; f++) {
        if (strcmp(f->name, name) == 0) {
            return f;
        }
    }

    load_die("no such format", name);
}


load_str_t
sample_request(const load_format_t *f, const char *dir)
{
    return sample_file(dir, f->request);
}


void
sample_pool(load_pool_t *pool, const load_format_t *f, const char *dir)
{
    char        *p, size[16];
    unsigned     i, k, n, m, first, last, ntexts;
    load_str_t   text, ev, value, filler, *frame;

    static load_str_t  events[SAMPLE_EVENTS], frames[SAMPLE_EVENTS],
                       texts[SAMPLE_EVENTS];

    text = sample_file(dir, f->sample);
    n = sample_split(&text, f->end, events, SAMPLE_EVENTS);

    first = n;
    last = 0;
    ntexts = 0;

    for (i = 0; i < n; i++) {

        if (!sample_is_text(f, &events[i])) {
            continue;
        }

        if (first == n) {
            first = i;
        }

        last = i;

        value = sample_value(&events[i], f->key);

        if (sample_is_word(&value)) {
            frames[ntexts] = events[i];
            texts[ntexts++] = value;
        }
    }

    if (ntexts < 5) {
        load_die("no events with text", f->sample);
    }

    pool->nhead = first;
    pool->head = sample_chunks(events, first, 0);
    pool->ntail = n - last - 1;
    pool->tail = sample_chunks(events + last + 1, n - last - 1, 1);

    ev.data = NULL;
    ev.len = 0;

    for (i = 0; i < LOAD_POOL; i++) {
        m = sample_random(ntexts);
        frame = &frames[m];
        value = texts[m];
        k = sample_random(ntexts);

        /* OpenAI pads its events with noise */

        filler = sample_value(frame, "\"obfuscation\":\"");
        p = filler.len ? filler.data : frame->data + frame->len;
        m = filler.len ? 1 + sample_random(16) : 0;

        sprintf(size, "%zx\r\n",
                frame->len - value.len + texts[k].len - filler.len + m);

        pool->at[i] = ev.len;

        sample_add(&ev, size, strlen(size));
        sample_add(&ev, frame->data, (size_t) (value.data - frame->data));
        pool->text[i] = texts[k];
        sample_add(&ev, texts[k].data, texts[k].len);

        value.data += value.len;
        sample_add(&ev, value.data, (size_t) (p - value.data));

        while (m--) {
            sample_add(&ev, &"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqr"
                       "stuvwxyz0123456789"[sample_random(62)], 1);
        }

        p += filler.len;
        sample_add(&ev, p, (size_t) (frame->data + frame->len - p));
        sample_add(&ev, "\r\n", 2);
    }

    pool->at[i] = ev.len;
    pool->events = ev.data;
}


/* the messages of a chat, and the beginning of the last one */

load_str_t
sample_history(size_t size)
{
    unsigned     n, user;
    load_str_t   s;
    const char  *p;

    static const char  head[] =
        "{\"model\":\"gpt-5.1\",\"stream\":true,\"user\":\"u-1842\","
        "\"messages\":[{\"role\":\"system\",\"content\":\"You are a concise "
        "assistant for runners. Answer in Markdown.\"}";

    s.data = NULL;
    s.len = 0;

    sample_add(&s, head, sizeof(head) - 1);

    for (user = 1; s.len < size || !user; user = !user) {
        p = user ? ",{\"role\":\"user\",\"content\":\""
                 : ",{\"role\":\"assistant\",\"content\":\"";
        sample_add(&s, p, strlen(p));
        sample_add(&s, SAMPLE_MARK, sizeof(SAMPLE_MARK) - 1);

        for (n = user ? 1 + sample_random(2) : 4 + sample_random(6); n; n--) {
            p = sample_sentences[sample_random(SAMPLE_SENTENCES)];
            sample_add(&s, p, strlen(p));
            sample_add(&s, n > 1 ? " " : "\"}", n > 1 ? 1 : 2);
        }
    }

    return s;
}


/* makes each message of a history one that no other chat has */

void
sample_mark(char *p, size_t len, unsigned chat)
{
    char         mark[sizeof(SAMPLE_MARK)];
    const char  *last;

    last = p + len;
    sprintf(mark, "(%08x) ", chat);

    for ( ;; ) {
        p = memmem(p, (size_t) (last - p), SAMPLE_MARK,
                   sizeof(SAMPLE_MARK) - 1);

        if (p == NULL) {
            return;
        }

        memcpy(p, mark, sizeof(SAMPLE_MARK) - 1);
        p += sizeof(SAMPLE_MARK) - 1;
    }
}


static load_str_t
sample_file(const char *dir, const char *name)
{
    long         size;
    char         path[4096];
    FILE        *f;
    load_str_t   s;

    snprintf(path, sizeof(path), "%s/%s", dir, name);

    f = fopen(path, "rb");
    if (f == NULL) {
        load_die("cannot read", path);
    }

    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);

    s.len = (size_t) size;
    s.data = malloc(s.len + 1);

    if (s.data == NULL || fread(s.data, 1, s.len, f) != s.len) {
        load_die("cannot read", path);
    }

    s.data[s.len] = '\0';
    fclose(f);

    return s;
}


static unsigned
sample_split(load_str_t *text, const char *end, load_str_t *events,
    unsigned max)
{
    char      *p, *q;
    unsigned   n;

    n = 0;

    for (p = text->data; *p; p = q) {

        if (n == max) {
            load_die("too many events", "");
        }

        q = strstr(p, end);
        q = q ? q + strlen(end) : text->data + text->len;

        events[n].data = p;
        events[n++].len = (size_t) (q - p);
    }

    return n;
}


static unsigned
sample_is_text(const load_format_t *f, load_str_t *ev)
{
    return memmem(ev->data, ev->len, f->marker, strlen(f->marker)) != NULL;
}


/* a string without its quotes; empty if there is none */

static load_str_t
sample_value(load_str_t *ev, const char *key)
{
    char        *p, *last;
    load_str_t   s;

    s.data = ev->data + ev->len;
    s.len = 0;

    p = memmem(ev->data, ev->len, key, strlen(key));
    if (p == NULL) {
        return s;
    }

    last = ev->data + ev->len;
    s.data = p + strlen(key);

    for (p = s.data; p < last && *p != '"'; p++) {
        if (*p == '\\') {
            p++;
        }
    }

    s.len = (size_t) (p - s.data);

    return s;
}


/* an answer of one event shall have a text to be seen */

static unsigned
sample_is_word(load_str_t *s)
{
    size_t  i;

    for (i = 0; i < s->len; i++) {
        if ((s->data[i] | 0x20) >= 'a' && (s->data[i] | 0x20) <= 'z'
            && (i == 0 || s->data[i - 1] != '\\'))
        {
            return 1;
        }
    }

    return 0;
}


static load_str_t
sample_chunks(load_str_t *events, unsigned n, unsigned last)
{
    char         size[16];
    unsigned     i;
    load_str_t   s;

    s.data = NULL;
    s.len = 0;

    for (i = 0; i < n; i++) {
        sprintf(size, "%zx\r\n", events[i].len);

        sample_add(&s, size, strlen(size));
        sample_add(&s, events[i].data, events[i].len);
        sample_add(&s, "\r\n", 2);
    }

    if (last) {
        sample_add(&s, "0\r\n\r\n", 5);
    }

    return s;
}


static void
sample_add(load_str_t *s, const char *data, size_t len)
{
    size_t  size;

    for (size = 4096; size < s->len; size *= 2) { /* void */ }

    if (s->data == NULL || s->len + len > size) {
        while (s->len + len > size) {
            size *= 2;
        }

        s->data = realloc(s->data, size);
        if (s->data == NULL) {
            load_die("no memory", "");
        }
    }

    memcpy(s->data + s->len, data, len);
    s->len += len;
}
