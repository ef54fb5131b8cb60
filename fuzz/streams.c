/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Random streams, splits and faults through the module's own filters:
 *
 *     streams SEED COUNT          as many answers, from this seed on
 *     streams SEED COUNT STEP     of a run that is shared out
 *
 * The files of the filter (filter, stream, whole, hold, out, answer) and the
 * core are what the module is made of; what they call of nginx and of the
 * rest of the module is below, as little of it as does the same.
 *
 * Each answer is one of a format, with texts and line ends of all kinds; whole
 * or damaged; cut anywhere into buffers that are overwritten as soon as they
 * were read; with an ad early, late, never, or taken back.  The client reads
 * slowly; memory runs out at any call, once or for good; the backend breaks
 * off; the way to the client fails.
 *
 *   - What arrives is what was sent, but for the ad: not a byte less, none
 *     more, none changed, at the end and at any time before.
 *   - The ad is there once at most, and it is there if nothing was wrong.
 *   - Nothing waits without a reason, no filter fails for want of memory.
 *
 * A seed that fails is printed; "streams SEED 1" is that answer again.
 */


#include "ngx_http_kontext.h"


#define STREAMS_MAX      (512 * 1024)
#define STREAMS_BUFS     8192
#define STREAMS_BLOCKS   65536
#define STREAMS_MARK     "KONTEXT-AD"
#define STREAMS_FAULTS   9


#define check(cond)                                                           \
    do {                                                                      \
        if (!(cond)) {                                                        \
            streams_failed(__LINE__, #cond);                                  \
        }                                                                     \
    } while (0)


/* faults, any of which may meet any other */

#define STREAMS_CUT      0x001       /* the answer ends anywhere */
#define STREAMS_BYTES    0x002       /* bytes are changed */
#define STREAMS_PIECE    0x004       /* a piece is lost, or is there twice */
#define STREAMS_LARGE    0x008       /* an event is too large */
#define STREAMS_MEMORY   0x010
#define STREAMS_BROKEN   0x020       /* the backend is gone */
#define STREAMS_SEND     0x040       /* the client is */
#define STREAMS_TURN     0x080       /* the user went on, or it is no chat */
#define STREAMS_NO_AD    0x100


typedef struct {
    const char               *event;
    const char               *data;          /* '%' is a text */
} streams_frame_t;


typedef struct {
    const char               *name;
    const kx_dialect_t       *dialect;
    kx_framing_e              framing;
    const char               *path;
    const char               *request;
    streams_frame_t           head[4];
    streams_frame_t           text;
    streams_frame_t           tail[6];
} streams_format_t;


typedef struct {
    ngx_buf_t                *buf;
    u_char                   *data;          /* NULL: not the backend's */
} streams_pending_t;


static void streams_run(uint64_t seed);
static void streams_make(const streams_format_t *f);
static void streams_frame(const streams_format_t *f,
    const streams_frame_t *frame, unsigned large);
static void streams_text(unsigned large);
static void streams_damage(void);
static void streams_add(const void *p, size_t len);
static void streams_puts(const char *s);
static void streams_start(const streams_format_t *f);
static void streams_feed(void);
static void streams_links(ngx_chain_t *cl, ngx_chain_t *links, unsigned n);
static void streams_piece(ngx_buf_t *b, size_t n);
static ngx_buf_t *streams_buf(void);
static void streams_filter(ngx_chain_t *in);
static void streams_events(void);
static void streams_ad(void);
static void streams_end(void);
static void streams_reap(void);
static void streams_account(void);
static void streams_compare(void);
static ngx_int_t streams_header(ngx_http_request_t *r);
static ngx_int_t streams_body(ngx_http_request_t *r, ngx_chain_t *in);
static void *streams_alloc(size_t size);
static void *streams_pool(void *data, size_t size);
static void streams_failed(int line, const char *what);


#define CHAT  "{\"id\":\"c-1\",\"object\":\"chat.completion.chunk\","         \
              "\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
#define HI    "[{\"role\":\"user\",\"content\":\"hi\"}]"

static const streams_format_t  streams_formats[] = {

    { "openai_chat", &kx_openai_chat, KX_FRAMING_SSE, "/v1/chat/completions",
      "{\"model\":\"m\",\"stream\":true,\"messages\":" HI "}",
      { { NULL, CHAT "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                "\"finish_reason\":null}]}" } },
      { NULL, CHAT "\"delta\":{\"content\":\"%\"},\"logprobs\":null,"
              "\"finish_reason\":null}]}" },
      { { NULL, CHAT "\"delta\":{},\"logprobs\":null,"
                "\"finish_reason\":\"stop\"}]}" },
        { NULL, "{\"id\":\"c-1\",\"choices\":[],\"usage\":"
                "{\"total_tokens\":1401}}" },
        { NULL, "[DONE]" } } },

    { "openai_chat whole", &kx_openai_chat, KX_FRAMING_WHOLE,
      "/v1/chat/completions", "{\"model\":\"m\",\"messages\":" HI "}",
      { { NULL, NULL } },
      { NULL, "{\"id\":\"c-1\",\"object\":\"chat.completion\",\"choices\":["
              "{\"index\":0,\"message\":{\"role\":\"assistant\","
              "\"content\":\"%\"},\"finish_reason\":\"stop\"}],"
              "\"usage\":{\"total_tokens\":9}}" },
      { { NULL, NULL } } },

    { "openai_responses", &kx_openai_responses, KX_FRAMING_SSE,
      "/v1/responses", "{\"model\":\"m\",\"stream\":true,\"input\":\"hi\"}",
      { { "response.created",
          "{\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\","
          "\"status\":\"in_progress\",\"output\":[]},\"sequence_number\":0}" },
        { "response.output_item.added",
          "{\"type\":\"response.output_item.added\",\"output_index\":0,"
          "\"item\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":"
          "\"assistant\",\"content\":[]},\"sequence_number\":1}" } },
      { "response.output_text.delta",
        "{\"type\":\"response.output_text.delta\",\"item_id\":\"msg_1\","
        "\"output_index\":0,\"content_index\":0,\"delta\":\"%\","
        "\"sequence_number\":2}" },
      { { "response.completed",
          "{\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\","
          "\"status\":\"completed\",\"output\":[{\"id\":\"msg_1\",\"type\":"
          "\"message\",\"status\":\"completed\",\"content\":[{\"type\":"
          "\"output_text\",\"text\":\"%\"}],\"role\":\"assistant\"}],"
          "\"usage\":{\"total_tokens\":9}},\"sequence_number\":3}" } } },

    { "openai_responses whole", &kx_openai_responses, KX_FRAMING_WHOLE,
      "/v1/responses", "{\"model\":\"m\",\"input\":\"hi\"}",
      { { NULL, NULL } },
      { NULL, "{\"id\":\"resp_1\",\"object\":\"response\",\"status\":"
              "\"completed\",\"output\":[{\"id\":\"msg_1\",\"type\":"
              "\"message\",\"status\":\"completed\",\"content\":[{\"type\":"
              "\"output_text\",\"annotations\":[],\"text\":\"%\"}],"
              "\"role\":\"assistant\"}]}" },
      { { NULL, NULL } } },

    { "anthropic", &kx_anthropic, KX_FRAMING_SSE, "/v1/messages",
      "{\"model\":\"m\",\"stream\":true,\"max_tokens\":9,\"messages\":" HI "}",
      { { "message_start",
          "{\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"id\":"
          "\"msg_1\",\"type\":\"message\",\"role\":\"assistant\","
          "\"content\":[],\"stop_reason\":null}}" },
        { "content_block_start",
          "{\"type\":\"content_block_start\",\"index\":0,\"content_block\":"
          "{\"type\":\"text\",\"text\":\"\"}}" },
        { "ping", "{\"type\":\"ping\"}" } },
      { "content_block_delta",
        "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":"
        "\"text_delta\",\"text\":\"%\"}}" },
      { { "content_block_stop",
          "{\"type\":\"content_block_stop\",\"index\":0}" },
        { "message_delta",
          "{\"type\":\"message_delta\",\"delta\":{\"stop_reason\":"
          "\"end_turn\"},\"usage\":{\"output_tokens\":231}}" },
        { "message_stop", "{\"type\":\"message_stop\"}" } } },

    { "anthropic whole", &kx_anthropic, KX_FRAMING_WHOLE, "/v1/messages",
      "{\"model\":\"m\",\"max_tokens\":9,\"messages\":" HI "}",
      { { NULL, NULL } },
      { NULL, "{\"model\":\"m\",\"id\":\"msg_1\",\"type\":\"message\","
              "\"role\":\"assistant\",\"content\":[{\"type\":\"text\","
              "\"text\":\"%\"}],\"stop_reason\":\"end_turn\"}" },
      { { NULL, NULL } } },

    { "ollama", &kx_ollama, KX_FRAMING_LINES, "/api/chat",
      "{\"model\":\"m\",\"messages\":" HI "}",
      { { NULL, NULL } },
      { NULL, "{\"model\":\"m\",\"created_at\":\"2026-11-22T07:40:01Z\","
              "\"message\":{\"role\":\"assistant\",\"content\":\"%\"},"
              "\"done\":false}" },
      { { NULL, "{\"model\":\"m\",\"created_at\":\"2026-11-22T07:40:04Z\","
                "\"message\":{\"role\":\"assistant\",\"content\":\"\"},"
                "\"done\":true,\"done_reason\":\"stop\"}" } } },

    { "ollama whole", &kx_ollama, KX_FRAMING_WHOLE, "/api/chat",
      "{\"model\":\"m\",\"stream\":false,\"messages\":" HI "}",
      { { NULL, NULL } },
      { NULL, "{\"model\":\"m\",\"created_at\":\"2026-11-22T07:40:01Z\","
              "\"message\":{\"role\":\"assistant\",\"content\":\"%\"},"
              "\"done\":true,\"done_reason\":\"stop\",\"eval_count\":2}" },
      { { NULL, NULL } } },

    { "gemini", &kx_gemini, KX_FRAMING_SSE,
      "/v1beta/models/g:streamGenerateContent",
      "{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}",
      { { NULL, NULL } },
      { NULL, "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"%\"}],"
              "\"role\":\"model\"},\"index\":0}],\"usageMetadata\":"
              "{\"promptTokenCount\":148},\"responseId\":\"r\"}" },
      { { NULL, "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":"
                "\"%\"}],\"role\":\"model\"},\"finishReason\":\"STOP\","
                "\"index\":0}],\"usageMetadata\":{\"promptTokenCount\":148,"
                "\"totalTokenCount\":356},\"responseId\":\"r\"}" } } },

    { "gemini array", &kx_gemini, KX_FRAMING_ARRAY,
      "/v1beta/models/g:streamGenerateContent",
      "{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}",
      { { NULL, NULL } },
      { NULL, "{\"candidates\": [{\"content\": {\"parts\": [{\"text\": "
              "\"%\"}],\"role\": \"model\"},\"index\": 0}],"
              "\"usageMetadata\": {\"promptTokenCount\": 148}}" },
      { { NULL, "{\"candidates\": [{\"content\": {\"parts\": [{\"text\": "
                "\"%\"}],\"role\": \"model\"},\"finishReason\": \"STOP\","
                "\"index\": 0}],\"usageMetadata\": {\"promptTokenCount\": "
                "148}}" } } },

    { "gemini whole", &kx_gemini, KX_FRAMING_WHOLE,
      "/v1beta/models/g:generateContent",
      "{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}",
      { { NULL, NULL } },
      { NULL, "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"%\"}],"
              "\"role\":\"model\"},\"finishReason\":\"STOP\",\"index\":0}],"
              "\"usageMetadata\":{\"promptTokenCount\":148}}" },
      { { NULL, NULL } } },

    { "ai_sdk_ui", &kx_ai_sdk_ui, KX_FRAMING_SSE, "/ui/api/chat",
      "{\"id\":\"c\",\"messages\":[{\"id\":\"m\",\"role\":\"user\","
      "\"parts\":[{\"type\":\"text\",\"text\":\"hi\"}]}]}",
      { { NULL, "{\"type\":\"start\",\"messageId\":\"msg-1\"}" },
        { NULL, "{\"type\":\"start-step\"}" },
        { NULL, "{\"type\":\"text-start\",\"id\":\"txt-0\"}" } },
      { NULL, "{\"type\":\"text-delta\",\"id\":\"txt-0\",\"delta\":\"%\"}" },
      { { NULL, "{\"type\":\"text-end\",\"id\":\"txt-0\"}" },
        { NULL, "{\"type\":\"finish-step\"}" },
        { NULL, "{\"type\":\"finish\",\"finishReason\":\"stop\"}" },
        { NULL, "[DONE]" } } }
};


static const char *const  streams_texts[] = {
    "Great", " plan", "!", " a", "\\n\\n", "\\\"", "\\\\", "\\u0007", "\\t",
    "\\ud83d\\ude00", "\xf0\x9f\x91\x8b\xf0\x9f\x8f\xbd", "\xe2\x80\x94",
    "\xd7\xa9\xd7\x9c", " data: [DONE]", "event: done", "finish_reason",
    "\\\"finish_reason\\\":\\\"stop\\\"", "<script>", "{}", "[", "]", "}",
    "\xe2\x80\xa8", "\\u2028", "kontext", "Krumlov", " of", "\\/", "\xc3\xa1"
};


#define streams_count(a)  (sizeof(a) / sizeof((a)[0]))


/* of the run */

static uint64_t             streams_seed;
static uint64_t             streams_state;
static u_char               streams_in[STREAMS_MAX];
static size_t               streams_len;
static u_char               streams_out[2 * STREAMS_MAX];
static size_t               streams_got;
static size_t               streams_sent;    /* of streams_in */
static const char          *streams_eol;
static unsigned             streams_fault;
static unsigned             streams_nframes;
static unsigned             streams_joined;  /* data of several lines */
static unsigned             streams_last;    /* was fed */
static unsigned             streams_seen;    /* has arrived */
static unsigned             streams_headed;  /* the header has */
static unsigned             streams_flushed; /* and goes to the client */
static unsigned             streams_stop;    /* the client is gone */
static unsigned             streams_slow;
static unsigned             streams_more;    /* nginx is to run the request */
static unsigned             streams_nads;    /* how often it was made */
static unsigned             streams_ad_came;
static unsigned             streams_turned;
static unsigned             streams_bypass;

static void                *streams_blocks[STREAMS_BLOCKS];
static size_t               streams_sizes[STREAMS_BLOCKS];
static unsigned             streams_nblocks;
static unsigned             streams_allocs;
static unsigned             streams_fail;    /* 0: none does */
static unsigned             streams_fail_on;
static unsigned             streams_nfailed;

static streams_pending_t    streams_pending[STREAMS_BUFS];
static unsigned             streams_npending;
static ngx_buf_t           *streams_free[STREAMS_BUFS];
static unsigned             streams_nfree;
static ngx_buf_t            streams_bufs[STREAMS_BUFS];
static u_char              *streams_datas[STREAMS_BUFS];
static unsigned             streams_busy[STREAMS_BUFS];
static unsigned             streams_nbufs;

static ngx_http_request_t            streams_request;
static ngx_http_upstream_t           streams_upstream;
static ngx_connection_t              streams_connection;
static ngx_pool_t                    streams_ngx_pool;
static ngx_log_t                     streams_log;
static ngx_http_log_ctx_t            streams_log_ctx;
static ngx_http_core_loc_conf_t      streams_clcf;
static void                         *streams_loc_conf[1];
static ngx_http_kontext_loc_conf_t   streams_conf;
static ngx_http_kontext_ctx_t        streams_ctx;
static ngx_http_kontext_ask_t        streams_ask;


/* of all of them */

static uint64_t             streams_filled;
static uint64_t             streams_bytes;
static uint64_t             streams_met[STREAMS_FAULTS];

static const char *const    streams_names[STREAMS_FAULTS] = {
    "cut", "bytes", "pieces", "large", "memory", "broken", "send", "turn",
    "no ad"
};


/* what the filters find of nginx */

ngx_module_t                       ngx_http_core_module;
ngx_module_t                       ngx_http_kontext_module;
volatile ngx_msec_t                ngx_current_msec;
ngx_rbtree_t                       ngx_event_timer_rbtree;
ngx_queue_t                        ngx_posted_events;
ngx_http_output_header_filter_pt   ngx_http_top_header_filter;
ngx_http_output_body_filter_pt     ngx_http_top_body_filter;


int
main(int argc, char **argv)
{
    unsigned  i;
    uint64_t  n, count, seed, step;

    if (argc < 3) {
        fprintf(stderr, "usage: streams SEED COUNT [STEP]\n");
        return 2;
    }

    seed = strtoull(argv[1], NULL, 0);
    count = strtoull(argv[2], NULL, 0);
    step = (argc > 3) ? strtoull(argv[3], NULL, 0) : 1;

    ngx_http_top_header_filter = streams_header;
    ngx_http_top_body_filter = streams_body;

    (void) ngx_http_kontext_filter_init(NULL);

    for (n = 0; n < count; n++) {
        streams_run(seed + n * step);
    }

    printf("streams: %llu answers, %llu bytes, %llu with an ad, with ",
           (unsigned long long) count, (unsigned long long) streams_bytes,
           (unsigned long long) streams_filled);

    for (i = 0; i < STREAMS_FAULTS; i++) {
        printf("%s: %llu, ", streams_names[i],
               (unsigned long long) streams_met[i]);
    }

    printf("altered or lost: 0\n");

    /* what never happens is not tested */

    if (count >= 10000) {
        check(streams_filled > count / 20);

        for (i = 0; i < STREAMS_FAULTS; i++) {
            check(streams_met[i] > count / 1000);
        }
    }

    return 0;
}


static inline uint64_t
streams_random(void)
{
    uint64_t  z;

    /* splitmix64: seeds that are near to each other give others */

    z = (streams_state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;

    return z ^ (z >> 31);
}


static inline unsigned
streams_below(unsigned n)
{
    return (unsigned) ((streams_random() >> 32) * n >> 32);
}


static void
streams_run(uint64_t seed)
{
    unsigned                 i;
    const streams_format_t  *f;

    streams_seed = seed;
    streams_state = seed;

    streams_len = 0;
    streams_got = 0;
    streams_sent = 0;
    streams_nframes = 0;
    streams_joined = 0;
    streams_last = 0;
    streams_seen = 0;
    streams_headed = 0;
    streams_flushed = 0;
    streams_stop = 0;
    streams_more = 0;
    streams_nads = 0;
    streams_ad_came = 0;
    streams_turned = 0;
    streams_bypass = 0;
    streams_allocs = 0;
    streams_nfailed = 0;
    streams_fail = 0;
    streams_npending = 0;
    streams_nfree = 0;
    streams_nbufs = 0;

    /* one third without any fault, the others with one or more */

    streams_fault = 0;

    if (streams_below(3)) {
        do {
            streams_fault |= 1 << streams_below(STREAMS_FAULTS);
        } while (streams_below(3) == 0);
    }

    if ((streams_fault & STREAMS_LARGE) && streams_below(20)) {

        /* they take their time */

        streams_fault &= ~STREAMS_LARGE;
    }

    streams_slow = streams_below(4) == 0;

    f = &streams_formats[streams_below(streams_count(streams_formats))];

    streams_make(f);
    streams_damage();

    if (streams_fault & STREAMS_MEMORY) {
        streams_fail = 1 + streams_below(12);
        streams_fail_on = streams_below(2);
    }

    streams_start(f);

    while (!streams_last && !streams_stop) {
        streams_events();
        streams_feed();
    }

    streams_end();
    streams_compare();

    for (i = 0; i < STREAMS_FAULTS; i++) {
        streams_met[i] += streams_fault >> i & 1;
    }

    streams_met[4] -= (streams_fault & STREAMS_MEMORY) && !streams_nfailed;
    streams_bytes += streams_len;
    streams_filled += (streams_ctx.injected != 0);

    for (i = 0; i < streams_nbufs; i++) {
        free(streams_datas[i]);
        streams_datas[i] = NULL;
        streams_busy[i] = 0;
    }

    while (streams_nblocks) {
        free(streams_blocks[--streams_nblocks]);
    }
}


/* an answer */

static void
streams_make(const streams_format_t *f)
{
    unsigned  i, n, large;

    static const char *const  eols[] = { "\n", "\n", "\n", "\r\n", "\r" };

    streams_eol = eols[streams_below(f->framing == KX_FRAMING_LINES
                                     ? 4 : streams_count(eols))];

    if (f->framing == KX_FRAMING_WHOLE) {
        streams_frame(f, &f->text, streams_fault & STREAMS_LARGE);
        return;
    }

    if (f->framing == KX_FRAMING_SSE && streams_below(32) == 0) {
        streams_puts("\xef\xbb\xbf");
    }

    if (f->framing == KX_FRAMING_ARRAY) {
        streams_puts("[");
    }

    for (i = 0; i < streams_count(f->head) && f->head[i].data; i++) {
        streams_frame(f, &f->head[i], 0);
    }

    n = 1 + streams_below(streams_below(8) ? 6 : 40);

    large = (streams_fault & STREAMS_LARGE) ? streams_below(n) : n;

    for (i = 0; i < n; i++) {
        streams_frame(f, &f->text, i == large);
    }

    for (i = 0; i < streams_count(f->tail) && f->tail[i].data; i++) {
        streams_frame(f, &f->tail[i], 0);
    }

    if (f->framing == KX_FRAMING_ARRAY) {
        streams_puts("]");
        streams_puts(streams_below(2) ? "\n" : "");
    }
}


static void
streams_frame(const streams_format_t *f, const streams_frame_t *frame,
    unsigned large)
{
    const char  *p;

    if (f->framing == KX_FRAMING_ARRAY && streams_nframes++) {
        streams_puts(streams_below(2) ? "," : "\r\n,\n");
    }

    if (f->framing == KX_FRAMING_SSE) {

        if (streams_below(16) == 0) {
            streams_puts(": OPENROUTER PROCESSING");
            streams_puts(streams_eol);

            if (streams_below(2)) {
                streams_puts(streams_eol);
            }
        }

        if (frame->event) {
            streams_puts("event: ");
            streams_puts(frame->event);
            streams_puts(streams_eol);
        }

        if (streams_below(16) == 0) {
            streams_puts("id: 7");
            streams_puts(streams_eol);
        }

        streams_puts(streams_below(8) ? "data: " : "data:");
    }

    for (p = frame->data; *p; p++) {

        if (*p == '%') {
            streams_text(large);
            continue;
        }

        streams_add(p, 1);

        /* data of several lines */

        if (f->framing == KX_FRAMING_SSE && *p == ','
            && streams_below(256) == 0)
        {
            streams_joined = 1;
            streams_puts(streams_eol);
            streams_puts("data: ");
        }
    }

    if (f->framing == KX_FRAMING_SSE) {
        streams_puts(streams_eol);
        streams_puts(streams_eol);

    } else if (f->framing == KX_FRAMING_LINES) {
        streams_puts(streams_eol);
    }
}


static void
streams_text(unsigned large)
{
    size_t    start, size;
    unsigned  n;

    if (large) {
        size = streams_below(2) ? 5000 + streams_below(4000)
                                : 60000 + streams_below(80000);
        start = streams_len;

        while (streams_len - start < size) {
            streams_puts(streams_texts[streams_below(
                                           streams_count(streams_texts))]);
        }
    }

    n = streams_below(4);

    do {
        streams_puts(streams_texts[streams_below(
                                       streams_count(streams_texts))]);
    } while (n--);
}


static void
streams_damage(void)
{
    size_t    at, n;
    unsigned  i;

    if (streams_fault & STREAMS_PIECE) {
        at = streams_below((unsigned) streams_len);
        n = 1 + streams_below((unsigned) (streams_len - at));
        n = ngx_min(n, 2000);

        if (streams_below(2)) {
            ngx_memmove(streams_in + at, streams_in + at + n,
                        streams_len - at - n);
            streams_len -= n;

        } else {
            check(streams_len + n <= STREAMS_MAX);
            ngx_memmove(streams_in + at + n, streams_in + at,
                        streams_len - at);
            streams_len += n;
        }
    }

    if ((streams_fault & STREAMS_BYTES) && streams_len) {

        for (i = 1 + streams_below(4); i; i--) {
            at = streams_below((unsigned) streams_len);

            streams_in[at] = streams_below(2) ? (u_char) streams_below(256)
                                 : (u_char) "\r\n\"\\{}[]:, d"
                                            [streams_below(12)];
        }
    }

    if (streams_fault & STREAMS_CUT) {
        streams_len = streams_below((unsigned) streams_len + 1);
    }
}


static void
streams_puts(const char *s)
{
    streams_add(s, strlen(s));
}


static void
streams_add(const void *p, size_t len)
{
    check(streams_len + len <= STREAMS_MAX);

    ngx_memcpy(streams_in + streams_len, p, len);
    streams_len += len;
}


/* the request was read, and the header of the answer comes */

static void
streams_start(const streams_format_t *f)
{
    unsigned                 whole;
    kx_str_t                 path;
    ngx_int_t                rc;
    ngx_http_request_t      *r;
    ngx_http_kontext_ctx_t  *ctx;

    r = &streams_request;
    ctx = &streams_ctx;

    ngx_memzero(r, sizeof(ngx_http_request_t));
    ngx_memzero(ctx, sizeof(ngx_http_kontext_ctx_t));
    ngx_memzero(&streams_connection, sizeof(ngx_connection_t));
    ngx_memzero(&streams_ngx_pool, sizeof(ngx_pool_t));
    ngx_memzero(&streams_conf, sizeof(ngx_http_kontext_loc_conf_t));
    ngx_memzero(&streams_upstream, sizeof(ngx_http_upstream_t));

    ngx_queue_init(&ngx_posted_events);

    streams_log.data = &streams_log_ctx;
    streams_connection.log = &streams_log;
    streams_ngx_pool.max = 4095;
    streams_clcf.send_timeout = 60000;
    streams_loc_conf[0] = &streams_clcf;

    r->main = r;
    r->pool = &streams_ngx_pool;
    r->connection = &streams_connection;
    r->loc_conf = streams_loc_conf;

    if (streams_fault & STREAMS_BROKEN) {
        r->upstream = &streams_upstream;
        r->upstream->peer.connection = &streams_connection;
    }

    streams_conf.inject = streams_below(2) ? NGX_HTTP_KONTEXT_INJECT_TEXT
                                           : NGX_HTTP_KONTEXT_INJECT_MEMBER;
    streams_conf.grace = streams_below(8) ? 500 : 0;

    ctx->request = r;
    ctx->conf = &streams_conf;
    ctx->status = NGX_HTTP_KONTEXT_PENDING;
    ctx->body_done = 1;
    ctx->analysed = streams_below(2);
    ctx->pool.alloc = streams_pool;

    if (streams_below(4) == 0) {
        ctx->waiting = 1;

    } else {
        ctx->ask = &streams_ask;
    }

    ngx_str_set(&ctx->conversation, "c-1");

    /* the request itself is not what is tested here */

    path.data = (u_char *) f->path;
    path.len = strlen(f->path);

    whole = streams_fail;
    streams_fail = 0;

    kx_conversation_init(&ctx->cv, f->dialect, &path,
                         (const u_char *) "0123456789abcdef", &ctx->pool);

    check(kx_conversation_scan(&ctx->cv, (const u_char *) f->request,
                               strlen(f->request))
          == KX_REASON_NONE);

    streams_fail = whole;
    streams_allocs = 0;

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = -1;

    whole = (f->framing == KX_FRAMING_WHOLE);

    if (streams_below(2) && !(streams_fault & STREAMS_BROKEN)) {
        r->headers_out.content_length_n = (off_t) streams_len;
    }

    if (f->framing == KX_FRAMING_SSE) {
        ngx_str_set(&r->headers_out.content_type, "text/event-stream");

    } else if (f->framing == KX_FRAMING_LINES) {
        ngx_str_set(&r->headers_out.content_type, "application/x-ndjson");

    } else {
        ngx_str_set(&r->headers_out.content_type, "application/json");
    }

    rc = ngx_http_top_header_filter(r);

    check(rc == NGX_OK);
    check(streams_headed || whole);
}


/* some buffers of the backend, in links that nobody may keep */

static void
streams_feed(void)
{
    size_t        n;
    unsigned      i, nbufs, left;
    ngx_buf_t    *b;
    ngx_chain_t  *links, *in, **ll;

    left = (unsigned) (streams_len - streams_sent);
    nbufs = streams_below(4) ? 1 : 1 + streams_below(4);

    links = malloc(nbufs * sizeof(ngx_chain_t));
    check(links != NULL);

    ll = &in;

    for (i = 0; i < nbufs && !streams_last; i++) {

        b = streams_buf();

        if (left == 0) {

            /* the end, in a buffer of its own */

            streams_last = 1;

            if (streams_fault & STREAMS_BROKEN) {
                streams_upstream.peer.connection = NULL;
                b->flush = 1;

            } else {
                b->last_buf = 1;
            }

        } else if (streams_below(64) == 0) {
            b->flush = 1;

        } else {

            switch (streams_below(4)) {

            case 0:
                n = 1 + streams_below(4);
                break;

            case 1:
                n = 1 + streams_below(64);
                break;

            case 2:
                n = 1 + streams_below(2000);
                break;

            default:
                n = 1 + streams_below(left);
            }

            n = ngx_min(n, left);
            left -= (unsigned) n;

            streams_piece(b, n);

            if (left == 0 && !(streams_fault & STREAMS_BROKEN)
                && streams_below(2))
            {
                b->last_buf = 1;
                streams_last = 1;
            }
        }

        links[i].buf = b;
        *ll = &links[i];
        ll = &links[i].next;
    }

    *ll = NULL;

    streams_filter(in);

    streams_links(streams_ngx_pool.chain, links, nbufs);
    streams_links(streams_ctx.busy, links, nbufs);
    streams_links(streams_ctx.free, links, nbufs);

    ngx_memset(links, 0x5a, nbufs * sizeof(ngx_chain_t));
    free(links);
}


/* those of the backend are in no other chain */

static void
streams_links(ngx_chain_t *cl, ngx_chain_t *links, unsigned n)
{
    for ( /* void */ ; cl; cl = cl->next) {
        check(cl < links || cl >= links + n);
    }
}


static void
streams_piece(ngx_buf_t *b, size_t n)
{
    u_char    *p;
    unsigned   i;

    i = (unsigned) (b - streams_bufs);

    p = malloc(n);
    check(p != NULL);

    ngx_memcpy(p, streams_in + streams_sent, n);
    streams_sent += n;

    free(streams_datas[i]);
    streams_datas[i] = p;
    streams_busy[i] = 1;

    b->start = p;
    b->pos = p;
    b->last = p + n;
    b->end = p + n;
    b->temporary = 1;
}


/* one that was consumed, or a new one */

static ngx_buf_t *
streams_buf(void)
{
    ngx_buf_t  *b;

    if (streams_nfree && streams_below(2)) {
        b = streams_free[--streams_nfree];

    } else {
        check(streams_nbufs < STREAMS_BUFS);
        b = &streams_bufs[streams_nbufs++];
    }

    ngx_memzero(b, sizeof(ngx_buf_t));

    return b;
}


static void
streams_filter(ngx_chain_t *in)
{
    ngx_int_t  rc;

    rc = ngx_http_top_body_filter(&streams_request, in);

    /* want of memory is no failure of the answer */

    check(rc != NGX_ERROR || streams_stop);

    streams_account();
    streams_reap();
}


/* what happens between two buffers */

static void
streams_events(void)
{
    ngx_event_t  *ev;
    ngx_queue_t  *q;

    if (streams_below(8) == 0) {
        streams_ad();
    }

    if ((streams_fault & STREAMS_TURN) && streams_below(4) == 0) {

        if (!streams_ctx.analysed) {
            streams_bypass = 1;

        } else {
            streams_turned = 1;
        }
    }

    if (streams_ctx.grace.timer_set && streams_below(4) == 0) {
        streams_ctx.grace.timer_set = 0;
        streams_ctx.grace.handler(&streams_ctx.grace);
    }

    while (!ngx_queue_empty(&ngx_posted_events)) {
        q = ngx_queue_head(&ngx_posted_events);
        ev = ngx_queue_data(q, ngx_event_t, queue);

        ngx_delete_posted_event(ev);
        ev->handler(ev);
    }

    if (streams_more || streams_below(8) == 0) {

        /* nginx goes on with the request: the client may be read to again */

        streams_more = 0;

        if (streams_request.buffered || streams_npending) {
            streams_filter(NULL);
        }
    }
}


static void
streams_ad(void)
{
    ngx_http_kontext_ctx_t  *ctx;

    ctx = &streams_ctx;

    if (streams_ad_came || (streams_fault & STREAMS_NO_AD)) {
        return;
    }

    streams_ad_came = 1;

    if (ctx->waiting) {
        ngx_http_kontext_hold_wake(ctx);
        return;
    }

    ctx->ask = NULL;

    if (ctx->status == NGX_HTTP_KONTEXT_PENDING && !ctx->ended) {
        ctx->status = NGX_HTTP_KONTEXT_FILLED;
        ngx_http_kontext_hold_wake(ctx);
    }
}


/* all was fed: the rest comes without more of it */

static void
streams_end(void)
{
    unsigned  i;

    for (i = 0; i < 10000 && !streams_stop; i++) {

        if (!streams_ctx.holding && streams_npending == 0) {
            break;
        }

        streams_slow &= (i < 50);
        streams_events();

        if (streams_npending) {
            streams_filter(NULL);
        }

        if (streams_ctx.holding && i > 100) {

            /* the ad does not come any more */

            check(streams_ctx.grace.timer_set);
        }
    }

    check(i < 10000);
}


/* what the client's side does not need any more is overwritten */

static void
streams_reap(void)
{
    unsigned    i;
    ngx_buf_t  *b;

    for (i = 0; i < streams_nbufs; i++) {
        b = &streams_bufs[i];

        if (!streams_busy[i] || b->pos != b->last) {
            continue;
        }

        ngx_memset(streams_datas[i], 0x5a, (size_t) (b->end - b->start));
        free(streams_datas[i]);

        streams_datas[i] = NULL;
        streams_busy[i] = 0;

        /* one may wait for the client without data, with its marks */

        if (!b->last_buf) {
            streams_free[streams_nfree++] = b;
        }
    }
}


/* each byte that was fed has arrived, or is known to be somewhere */

static void
streams_account(void)
{
    size_t                   n;
    unsigned                 i;
    ngx_buf_t               *b;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = &streams_ctx;

    if (streams_stop) {
        return;
    }

    n = streams_got;

    for (i = 0; i < streams_npending; i++) {
        b = streams_pending[i].buf;
        n += (size_t) (b->last - b->pos);
    }

    check(n + ctx->frame_len + ctx->held_len
          == streams_sent + ctx->injected);

    /* with nothing to wait for, what is whole has gone */

    if (ctx->framer.framing != KX_FRAMING_WHOLE && !ctx->holding
        && !ctx->kept)
    {
        check(ctx->held_len == 0);
    }

    check(!ctx->passing || ctx->frame_len == 0);
}


static void
streams_compare(void)
{
    size_t                   in, out, past, n;
    unsigned                 i, found;
    kx_place_t              *place;
    ngx_http_kontext_ctx_t  *ctx;

    ctx = &streams_ctx;

    /* the bytes of the ad are those around its mark */

    in = 0;
    out = 0;
    past = 0;
    found = 0;

    while (out < streams_got) {

        n = 0;

        while (out + n < streams_got && in + n < streams_len
               && streams_out[out + n] == streams_in[in + n])
        {
            n++;
        }

        in += n;
        out += n;

        if (out == streams_got) {
            break;
        }

        /* the ad may begin with what follows it */

        check(ctx->injected);
        check(found < ctx->answer.nplaces);

        place = &ctx->answer.places[found++];
        n = place->before.len + sizeof(STREAMS_MARK) - 1 + place->after.len;

        for (i = 0; i <= in && i <= out - past; i++) {

            if (out - i + n > streams_got) {
                continue;
            }

            if (ngx_memcmp(streams_out + out - i, place->before.data,
                           place->before.len)
                == 0
                && ngx_memcmp(streams_out + out - i + place->before.len,
                              STREAMS_MARK, sizeof(STREAMS_MARK) - 1)
                   == 0
                && ngx_memcmp(streams_out + out - i + n - place->after.len,
                              place->after.data, place->after.len)
                   == 0)
            {
                break;
            }
        }

        if (i > in || i > out - past) {

            /* the client has gone in the middle of it */

            check(streams_stop && streams_got - out < n);
            return;
        }

        in -= i;
        out = out - i + n;
        past = out;
    }

    if (streams_stop) {
        return;
    }

    check(in == streams_len);
    check(streams_sent == streams_len);
    check(streams_headed && streams_flushed);
    check(streams_seen == !(streams_fault & STREAMS_BROKEN));
    check(ctx->ended || !ctx->streaming);
    check(!ctx->holding && !ctx->grace.timer_set && !ctx->wake.posted);
    check(found == (ctx->injected ? ctx->answer.nplaces : 0));
    check(found == 0 || streams_nads == 1);
    check(streams_request.buffered == 0);

    if (ctx->framer.framing == KX_FRAMING_WHOLE && ctx->streaming
        && streams_request.headers_out.content_length_n >= 0)
    {
        check(streams_request.headers_out.content_length_n
              == (off_t) streams_got);
    }

    /* nothing was wrong: the ad that came is there */

    if (streams_fault == 0 && streams_conf.grace
        && ctx->reason != KX_REASON_LATE && ctx->reason != KX_REASON_NO_TEXT)
    {
        check(ctx->reason == KX_REASON_NONE
              || (ctx->reason == KX_REASON_NO_PLACE && streams_joined));
        check(found || ctx->reason != KX_REASON_NONE);
    }
}


/* the way to the client */

static ngx_int_t
streams_header(ngx_http_request_t *r)
{
    check(!streams_headed);

    streams_headed = 1;

    return NGX_OK;
}


static ngx_int_t
streams_body(ngx_http_request_t *r, ngx_chain_t *in)
{
    size_t      n, room;
    unsigned    i;
    ngx_buf_t  *b;

    check(streams_headed);

    if ((streams_fault & STREAMS_SEND) && streams_below(6) == 0) {
        streams_stop = 1;
    }

    if (streams_stop) {
        return NGX_ERROR;
    }

    for ( /* void */ ; in; in = in->next) {
        b = in->buf;

        /* as nginx's last filter has it */

        check(ngx_buf_size(b) || ngx_buf_special(b) || b->last_buf);
        check(ngx_buf_size(b) || !ngx_buf_in_memory(b));
        check(streams_npending < STREAMS_BUFS);

        streams_pending[streams_npending++].buf = b;
        streams_flushed |= b->flush | b->last_buf;
    }

    room = streams_slow ? streams_below(2000) : (size_t) -1;

    for (i = 0; i < streams_npending; i++) {
        b = streams_pending[i].buf;
        n = ngx_min(room, (size_t) (b->last - b->pos));

        check(n == 0 || !streams_seen);
        check(streams_got + n <= sizeof(streams_out));

        if (n) {
            ngx_memcpy(streams_out + streams_got, b->pos, n);
        }

        streams_got += n;
        b->pos += n;
        room -= n;

        if (b->pos < b->last) {
            break;
        }

        check(!b->last_buf || !streams_seen);
        streams_seen |= b->last_buf;
    }

    streams_npending -= i;
    ngx_memmove(streams_pending, streams_pending + i,
                streams_npending * sizeof(streams_pending_t));

    r->connection->buffered = (streams_npending != 0);

    return streams_npending ? NGX_AGAIN : NGX_OK;
}


/* memory */

static void *
streams_alloc(size_t size)
{
    void  *p;

    streams_allocs++;

    if (streams_fail
        && (streams_allocs == streams_fail
            || (streams_fail_on && streams_allocs > streams_fail)))
    {
        streams_nfailed++;
        return NULL;
    }

    p = malloc(size ? size : 1);

    check(p != NULL);
    check(streams_nblocks < STREAMS_BLOCKS);

    ngx_memset(p, 0xa5, size);

    streams_sizes[streams_nblocks] = size;
    streams_blocks[streams_nblocks++] = p;

    return p;
}


static void *
streams_pool(void *data, size_t size)
{
    return streams_alloc(size);
}


void *
ngx_palloc(ngx_pool_t *pool, size_t size)
{
    return streams_alloc(size);
}


void *
ngx_pnalloc(ngx_pool_t *pool, size_t size)
{
    return streams_alloc(size);
}


void *
ngx_pcalloc(ngx_pool_t *pool, size_t size)
{
    void  *p;

    p = streams_alloc(size);

    if (p) {
        ngx_memzero(p, size);
    }

    return p;
}


ngx_int_t
ngx_pfree(ngx_pool_t *pool, void *p)
{
    unsigned  i;

    for (i = streams_nblocks; i--; /* void */ ) {

        if (streams_blocks[i] == p) {
            ngx_memset(p, 0x5a, streams_sizes[i]);
            free(p);

            streams_nblocks--;
            streams_blocks[i] = streams_blocks[streams_nblocks];
            streams_sizes[i] = streams_sizes[streams_nblocks];

            return NGX_OK;
        }
    }

    return NGX_DECLINED;
}


/* what is freed by its caller */

void *
ngx_alloc(size_t size, ngx_log_t *log)
{
    void  *p;

    p = streams_alloc(size);

    if (p) {
        streams_nblocks--;
    }

    return p;
}


ngx_chain_t *
ngx_alloc_chain_link(ngx_pool_t *pool)
{
    ngx_chain_t  *cl;

    cl = pool->chain;

    if (cl) {
        pool->chain = cl->next;
        return cl;
    }

    return streams_alloc(sizeof(ngx_chain_t));
}


ngx_buf_t *
ngx_create_temp_buf(ngx_pool_t *pool, size_t size)
{
    ngx_buf_t  *b;

    b = ngx_pcalloc(pool, sizeof(ngx_buf_t));
    if (b == NULL) {
        return NULL;
    }

    b->start = streams_alloc(size);
    if (b->start == NULL) {
        return NULL;
    }

    b->pos = b->start;
    b->last = b->start;
    b->end = b->start + size;
    b->temporary = 1;

    return b;
}


void
ngx_chain_update_chains(ngx_pool_t *pool, ngx_chain_t **free,
    ngx_chain_t **busy, ngx_chain_t **out, ngx_buf_tag_t tag)
{
    ngx_chain_t  *cl, **ll;

    for (ll = busy; *ll; ll = &(*ll)->next) { /* void */ }

    *ll = *out;
    *out = NULL;

    while (*busy && ngx_buf_size((*busy)->buf) == 0) {
        cl = *busy;
        *busy = cl->next;

        if (cl->buf->tag != tag) {
            ngx_free_chain(pool, cl);
            continue;
        }

        cl->buf->pos = cl->buf->start;
        cl->buf->last = cl->buf->start;

        cl->next = *free;
        *free = cl;
    }
}


/* the rest of nginx */

void
ngx_rbtree_insert(ngx_rbtree_t *tree, ngx_rbtree_node_t *node)
{
    /* void: the test looks at timer_set */
}


void
ngx_rbtree_delete(ngx_rbtree_t *tree, ngx_rbtree_node_t *node)
{
    /* void */
}


void
ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, ngx_err_t err,
    const char *fmt, ...)
{
    check(level == NGX_LOG_DEBUG);
}


ngx_int_t
ngx_strncasecmp(u_char *s1, u_char *s2, size_t n)
{
    return strncasecmp((char *) s1, (char *) s2, n);
}


void
ngx_http_weak_etag(ngx_http_request_t *r)
{
    /* void */
}


ngx_int_t
ngx_http_output_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    streams_filter(in);

    return NGX_OK;
}


ngx_int_t
ngx_http_post_request(ngx_http_request_t *r, ngx_http_posted_request_t *pr)
{
    check(pr != NULL);

    streams_more = 1;

    return NGX_OK;
}


void
ngx_http_run_posted_requests(ngx_connection_t *c)
{
    /* void: see streams_events() */
}


/* the rest of the module */

ngx_http_kontext_ctx_t *
ngx_http_kontext_get_ctx(ngx_http_request_t *r)
{
    return &streams_ctx;
}


ngx_http_kontext_call_t *
ngx_http_kontext_call_of(ngx_http_request_t *r)
{
    return NULL;
}


ngx_int_t
ngx_http_kontext_call_header(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call)
{
    return NGX_ERROR;
}


ngx_int_t
ngx_http_kontext_call_body(ngx_http_request_t *r,
    ngx_http_kontext_call_t *call, ngx_chain_t *in)
{
    return NGX_ERROR;
}


void
ngx_http_kontext_refuse(ngx_http_kontext_ctx_t *ctx, kx_reason_e reason)
{
    if (ctx->reason == KX_REASON_NONE) {
        ctx->reason = reason;
    }
}


void
ngx_http_kontext_analyse(ngx_http_kontext_ctx_t *ctx)
{
    ctx->analysed = 1;

    if (streams_bypass) {
        ctx->status = NGX_HTTP_KONTEXT_BYPASS;
        ctx->reason = KX_REASON_NO_USER_TURN;
    }
}


void
ngx_http_kontext_analyse_post(ngx_http_kontext_ctx_t *ctx)
{
    if (!ctx->analysed && streams_below(2)) {
        ngx_http_kontext_analyse(ctx);
    }
}


void
ngx_http_kontext_end(ngx_http_kontext_ctx_t *ctx)
{
    ctx->ended = 1;

    if (ctx->wake.posted) {
        ngx_delete_posted_event(&ctx->wake);
    }

    if (ctx->grace.timer_set) {
        ngx_del_timer(&ctx->grace);
    }

    if (ctx->status == NGX_HTTP_KONTEXT_PENDING) {
        ngx_http_kontext_refuse(ctx, KX_REASON_LATE);
    }
}


void
ngx_http_kontext_superseded(ngx_http_kontext_ctx_t *ctx)
{
    ngx_http_kontext_refuse(ctx, KX_REASON_SUPERSEDED);

    ctx->waiting = 0;
    ctx->ask = NULL;

    ngx_http_kontext_hold_wake(ctx);
}


void
ngx_http_kontext_reuse(ngx_http_kontext_ctx_t *ctx,
    ngx_http_kontext_session_t *s)
{
    ctx->waiting = 0;
    ctx->status = NGX_HTTP_KONTEXT_FILLED;
}


ngx_int_t
ngx_http_kontext_ad(ngx_http_kontext_ctx_t *ctx, ngx_str_t *payload)
{
    payload->len = sizeof(STREAMS_MARK) - 1;
    payload->data = ngx_pnalloc(ctx->request->pool, payload->len);

    if (payload->data == NULL) {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
        return NGX_DECLINED;
    }

    ngx_memcpy(payload->data, STREAMS_MARK, payload->len);

    streams_nads++;

    return NGX_OK;
}


ngx_uint_t
ngx_http_kontext_ask_failing(ngx_http_kontext_ask_t *ask)
{
    return 0;
}


ngx_uint_t
ngx_http_kontext_ask_later(ngx_http_kontext_ask_t *ask, ngx_msec_t limit)
{
    return 0;
}


void
ngx_http_kontext_watch(ngx_http_kontext_zone_t *zone,
    ngx_http_kontext_watch_t *watch, const u_char *key)
{
    /* void */
}


void
ngx_http_kontext_unwatch(ngx_http_kontext_watch_t *watch)
{
    /* void */
}


ngx_uint_t
ngx_http_kontext_session_turned(ngx_http_kontext_turn_t *turn,
    ngx_atomic_uint_t *turns)
{
    return streams_turned;
}


ngx_int_t
ngx_http_kontext_session_look(ngx_http_kontext_turn_t *turn,
    ngx_http_kontext_session_t *s)
{
    if (streams_turned) {
        return NGX_DECLINED;
    }

    return streams_ad_came ? NGX_OK : NGX_AGAIN;
}


void
ngx_http_kontext_session_assistant(ngx_http_kontext_turn_t *turn,
    u_char *message, ngx_str_t *id)
{
    /* void */
}


void
ngx_http_kontext_session_response(ngx_http_kontext_ctx_t *ctx)
{
    /* void */
}


static void
streams_failed(int line, const char *what)
{
    FILE  *f;

    fprintf(stderr, "streams: seed %llu, line %d: %s\n",
            (unsigned long long) streams_seed, line, what);
    fprintf(stderr, "faults 0x%x, sent %zu of %zu, got %zu, held %zu, "
            "frame %zu, injected %zu, reason %d, status %d\n",
            streams_fault, streams_sent, streams_len, streams_got,
            streams_ctx.held_len, streams_ctx.frame_len,
            streams_ctx.injected, streams_ctx.reason, streams_ctx.status);

    f = getenv("STREAMS_DUMP") ? fopen(getenv("STREAMS_DUMP"), "w") : NULL;

    if (f) {
        fprintf(f, "== sent\n%.*s\n== got\n%.*s\n", (int) streams_len,
                streams_in, (int) streams_got, streams_out);
        fclose(f);
    }

    abort();
}
