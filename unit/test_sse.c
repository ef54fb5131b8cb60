/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include <stdarg.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#include "sse.h"


#define NELTS(a)      (sizeof(a) / sizeof((a)[0]))

#define MAX_EVENTS    32
#define MAX_STREAM    4096


typedef struct {
    const char       *event;
    const char       *data;
} event_t;


/* what a stream was read as */

typedef struct {
    unsigned          nframes;
    unsigned          nevents;
    size_t            rest;          /* bytes of the unfinished frame */
    char              event[MAX_EVENTS][64];
    char              data[MAX_EVENTS][256];
} reading_t;


typedef struct {
    kx_sse_t          sse;
    size_t            len;           /* of the frame so far */
    unsigned char     frame[MAX_STREAM];
    reading_t        *reading;
} reader_t;


static void reader_feed(reader_t *r, const unsigned char *p, size_t len);
static void reader_frame(reader_t *r);
static void read_stream(reading_t *reading, const unsigned char *p,
    size_t len, const size_t *ends, size_t nends);
static void read_chunks(reading_t *reading, const unsigned char *p,
    size_t len, size_t chunk);
static void assert_events(const reading_t *reading, const event_t *events,
    unsigned n);
static void check_splits(const unsigned char *p, size_t len,
    const event_t *events, unsigned n, size_t rest);
static int parse(kx_sse_event_t *ev, const char *frame, unsigned first,
    unsigned char *scratch);


/* samples/sse-edge.sse, as samples/expected.json has it */

static const event_t  edge[] = {
    { "", "{\"n\":1}" },
    { "", "{\"n\":2}" },
    { "", " {\"n\":3}" },
    { "delta", "{\"n\":\n4}" },
    { "", "{\"n\":5}" },
    { "", "" },
    { "", "{\"n\":6,\"s\":\"data: [DONE]\\n\\nevent: x\"}" },
    { "", "{\"n\":7,\"s\":\"raw U+2028 \xe2\x80\xa8 and U+0085 \xc2\x85 "
          "inside\"}" },
    { "", "[DONE]" }
};


/* the last event of the file has no blank line */

static const char  edge_rest[] =
    "data: {\"n\":8,\"after\":\"done, and this last event has no blank "
    "line\"}";


static void
reader_feed(reader_t *r, const unsigned char *p, size_t len)
{
    unsigned char        *copy, *start, *last;
    const unsigned char  *next;

    /* memory that ends with the buffer */

    copy = malloc(len ? len : 1);
    assert_non_null(copy);

    memcpy(copy, p, len);

    start = copy;
    last = copy + len;

    for ( ;; ) {
        next = kx_sse_frame(&r->sse, start, last);

        if (next == NULL) {
            break;
        }

        assert_true(next > start && next <= last);

        memcpy(r->frame + r->len, start, (size_t) (next - start));
        r->len += (size_t) (next - start);

        reader_frame(r);

        start += next - start;
    }

    assert_true(r->len + (size_t) (last - start) <= MAX_STREAM);

    memcpy(r->frame + r->len, start, (size_t) (last - start));
    r->len += (size_t) (last - start);

    free(copy);
}


static void
reader_frame(reader_t *r)
{
    int              rc;
    reading_t       *reading;
    unsigned char   *frame, *scratch;
    kx_sse_event_t   ev;

    reading = r->reading;

    frame = malloc(r->len);
    scratch = malloc(r->len);
    assert_non_null(frame);
    assert_non_null(scratch);

    memcpy(frame, r->frame, r->len);

    rc = kx_sse_parse(&ev, frame, r->len, reading->nframes == 0, scratch);

    reading->nframes++;

    if (rc == KX_OK) {
        assert_true(ev.ndata > 0);
        assert_true(reading->nevents < MAX_EVENTS);
        assert_true(ev.event.len < sizeof(reading->event[0]));
        assert_true(ev.data.len < sizeof(reading->data[0]));

        (void) sprintf(reading->event[reading->nevents], "%.*s",
                       (int) ev.event.len,
                       ev.event.len ? (char *) ev.event.data : "");
        (void) sprintf(reading->data[reading->nevents], "%.*s",
                       (int) ev.data.len, (char *) ev.data.data);

        reading->nevents++;

    } else {
        assert_int_equal(rc, KX_DECLINED);
        assert_int_equal(ev.ndata, 0);
    }

    free(frame);
    free(scratch);

    r->len = 0;
}


static void
read_stream(reading_t *reading, const unsigned char *p, size_t len,
    const size_t *ends, size_t nends)
{
    size_t    i, start;
    reader_t  r;

    memset(&r, 0, sizeof(reader_t));
    memset(reading, 0, sizeof(reading_t));

    r.reading = reading;
    start = 0;

    for (i = 0; i < nends; i++) {
        reader_feed(&r, p + start, ends[i] - start);
        start = ends[i];
    }

    reader_feed(&r, p + start, len - start);

    reading->rest = r.len;
}


static void
read_chunks(reading_t *reading, const unsigned char *p, size_t len,
    size_t chunk)
{
    size_t  n, ends[MAX_STREAM];

    assert_true(len <= MAX_STREAM);

    for (n = 0; (n + 1) * chunk <= len; n++) {
        ends[n] = (n + 1) * chunk;
    }

    read_stream(reading, p, len, ends, n);
}


static void
assert_events(const reading_t *reading, const event_t *events, unsigned n)
{
    unsigned  i;

    assert_int_equal(reading->nevents, n);

    for (i = 0; i < n; i++) {
        assert_string_equal(reading->event[i], events[i].event);
        assert_string_equal(reading->data[i], events[i].data);
    }
}


/* in one piece, cut at any one and any two places, and in small pieces */

static void
check_splits(const unsigned char *p, size_t len, const event_t *events,
    unsigned n, size_t rest)
{
    size_t     i, j, ends[2];
    reading_t  whole, split;

    static const size_t  chunks[] = { 1, 2, 3, 7 };

    read_stream(&whole, p, len, NULL, 0);
    assert_events(&whole, events, n);
    assert_int_equal(whole.rest, rest);

    for (i = 0; i <= len; i++) {
        ends[0] = i;

        read_stream(&split, p, len, ends, 1);
        assert_events(&split, events, n);
        assert_int_equal(split.nframes, whole.nframes);

        /* it may have been cut in the CRLF that ends the last frame */

        if (split.rest != rest) {
            assert_true(rest == 0 && split.rest == 1 && i + 1 == len);
        }

        for (j = i; len <= 64 && j <= len; j++) {
            ends[1] = j;

            read_stream(&split, p, len, ends, 2);
            assert_events(&split, events, n);
            assert_int_equal(split.nframes, whole.nframes);
        }
    }

    for (i = 0; i < NELTS(chunks); i++) {
        read_chunks(&split, p, len, chunks[i]);
        assert_events(&split, events, n);
        assert_int_equal(split.nframes, whole.nframes);
    }
}


static int
parse(kx_sse_event_t *ev, const char *frame, unsigned first,
    unsigned char *scratch)
{
    return kx_sse_parse(ev, (const unsigned char *) frame, strlen(frame),
                        first, scratch);
}


static void
test_edge_sample(void **state)
{
    char            path[1024];
    FILE           *f;
    size_t          len;
    const char     *shared;
    unsigned char   p[MAX_STREAM];

    shared = getenv("KONTEXT_SHARED");

    (void) snprintf(path, sizeof(path), "%s/samples/sse-edge.sse",
                    shared ? shared : "../shared");

    f = fopen(path, "rb");

    if (f == NULL) {
        fail_msg("cannot open %s, set KONTEXT_SHARED", path);
    }

    len = fread(p, 1, sizeof(p), f);
    (void) fclose(f);

    assert_int_equal(len, 367);

    check_splits(p, len, edge, NELTS(edge), sizeof(edge_rest) - 1);
    assert_memory_equal(p + len - (sizeof(edge_rest) - 1), edge_rest,
                        sizeof(edge_rest) - 1);
}


static void
test_line_ends(void **state)
{
    size_t  i;

    static const event_t  events[] = {
        { "", "1" },
        { "", "2" },
        { "", "3" }
    };

    static const char  *streams[] = {
        "data:1\n\ndata:2\n\ndata:3\n\n",
        "data:1\r\rdata:2\r\rdata:3\r\r",
        "data:1\r\n\r\ndata:2\r\n\r\ndata:3\r\n\r\n",
        "data:1\n\rdata:2\r\n\rdata:3\r\r",
        "data:1\r\n\ndata:2\n\r\ndata:3\r\r\n",
        "data:1\n\n\n\ndata:2\n\n\ndata:3\n\n",
        "\n\r\r\n\r\ndata:1\r\r\r\ndata:2\r\n\r\n\r\ndata:3\n\r\n",
        "\357\273\277data:1\n\ndata:2\n\ndata:3\n\n",
        "\xef\xbb\xbf\r\n\r\ndata:1\n\ndata:2\n\ndata:3\n\n",
        "\xef\xbb\xbf\ndata:1\n\ndata:2\n\ndata:3\n\n",
        ":\n\n:c\n\nid: data\n\ndata:1\n\nevent:data\n\ndata:2\n\ndata:3\n\n"
    };

    for (i = 0; i < NELTS(streams); i++) {
        check_splits((const unsigned char *) streams[i], strlen(streams[i]),
                     events, 3, 0);
    }
}


static void
test_frame_ends(void **state)
{
    kx_sse_t              sse;
    const unsigned char  *p, *last;

    static const char  text[] = "a\n\n" "b\r\n\r\n" "\n" "\r\n" "\r" "c\n\r"
                                "d\r\r\n" "e\n\ne";

    memset(&sse, 0, sizeof(sse));

    p = (const unsigned char *) text;
    last = p + sizeof(text) - 1;

    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 3);
    p += 3;
    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 5);
    p += 5;
    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 1);
    p += 1;
    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 2);
    p += 2;
    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 1);
    p += 1;
    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 3);
    p += 3;
    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 4);
    p += 4;
    assert_ptr_equal(kx_sse_frame(&sse, p, last), p + 3);
    p += 3;
    assert_null(kx_sse_frame(&sse, p, last));

    /* the state is that of a line begun */

    p = (const unsigned char *) "\n\nx";
    assert_ptr_equal(kx_sse_frame(&sse, p, p + 3), p + 2);

    assert_null(kx_sse_frame(&sse, p, p));
    assert_null(kx_sse_frame(&sse, NULL, NULL));
}


/* a CR that ends a frame does not wait for its LF */

static void
test_late_lf(void **state)
{
    kx_sse_t              sse;
    const unsigned char  *p;

    memset(&sse, 0, sizeof(sse));

    p = (const unsigned char *) "data:1\r\n\r";
    assert_ptr_equal(kx_sse_frame(&sse, p, p + 9), p + 9);

    p = (const unsigned char *) "\n";
    assert_null(kx_sse_frame(&sse, p, p + 1));

    p = (const unsigned char *) "data:2\n\n";
    assert_ptr_equal(kx_sse_frame(&sse, p, p + 8), p + 8);

    /* a second LF is a blank line */

    memset(&sse, 0, sizeof(sse));

    p = (const unsigned char *) "data:1\r\r";
    assert_ptr_equal(kx_sse_frame(&sse, p, p + 8), p + 8);

    p = (const unsigned char *) "\n\n";
    assert_ptr_equal(kx_sse_frame(&sse, p, p + 2), p + 2);
}


static void
test_parse(void **state)
{
    size_t          i;
    unsigned char   scratch[256];
    kx_sse_event_t  ev;

    static const struct {
        const char  *frame;
        unsigned     first;
        unsigned     ndata;
        const char  *event;
        const char  *data;
        const char  *tail;
    } frames[] = {
        { "data: x\n\n", 0, 1, "", "x", "x" },
        { "data:x\n\n", 0, 1, "", "x", "x" },
        { "data:  x \n\n", 0, 1, "", " x ", " x " },
        { "data:\tx\n\n", 0, 1, "", "\tx", "\tx" },
        { "data:x:y: z\n\n", 0, 1, "", "x:y: z", "x:y: z" },
        { "data\n\n", 0, 1, "", "", "" },
        { "data:\n\n", 0, 1, "", "", "" },
        { "data: \n\n", 0, 1, "", "", "" },
        { "data:a\ndata:b\n\n", 0, 2, "", "a\nb", "b" },
        { "data:a\r\ndata:b\r\n\r\n", 0, 2, "", "a\nb", "b" },
        { "data:a\rdata:b\r\r", 0, 2, "", "a\nb", "b" },
        { "data\ndata\n\n", 0, 2, "", "\n", "" },
        { "data\ndata\ndata:\n\n", 0, 3, "", "\n\n", "" },
        { "data:a\ndata\ndata:c\n\n", 0, 3, "", "a\n\nc", "c" },
        { "data:a\nid:7\ndata:b\n\n", 0, 2, "", "a\nb", "b" },
        { "event: e\ndata: x\n\n", 0, 1, "e", "x", "x" },
        { "data: x\nevent:e\n\n", 0, 1, "e", "x", "x" },
        { "event: e\nevent: f\ndata: x\n\n", 0, 1, "f", "x", "x" },
        { "event: e\nevent\ndata: x\n\n", 0, 1, "", "x", "x" },
        { "\ndata: x\n\n", 0, 1, "", "x", "x" },
        { "data: x", 0, 1, "", "x", "x" },

        { "", 0, 0, "", "", "" },
        { "\n", 0, 0, "", "", "" },
        { "\r\n", 0, 0, "", "", "" },
        { ": data: x\n\n", 0, 0, "", "", "" },
        { ":data: x\n\n", 0, 0, "", "", "" },
        { " data: x\n\n", 0, 0, "", "", "" },
        { "data : x\n\n", 0, 0, "", "", "" },
        { "Data: x\n\n", 0, 0, "", "", "" },
        { "datax: x\n\n", 0, 0, "", "", "" },
        { "dat: x\n\n", 0, 0, "", "", "" },
        { "dat\n\n", 0, 0, "", "", "" },
        { "event: e\n\n", 0, 0, "e", "", "" },
        { "events: e\n\n", 0, 0, "", "", "" },
        { "retry: 1\nid\n\n", 0, 0, "", "", "" },

        { "\xef\xbb\xbf" "data: x\n\n", 1, 1, "", "x", "x" },
        { "\xef\xbb\xbf" "data: x\n\n", 0, 0, "", "", "" },
        { "\xef\xbb\xbf\xef\xbb\xbf" "data: x\n\n", 1, 0, "", "", "" },
        { "\xef\xbb" "data: x\n\n", 1, 0, "", "", "" },
        { "\xef\xbb\xbf\n\n", 1, 0, "", "", "" },
        { "data: \xef\xbb\xbfx\n\n", 1, 1, "", "\xef\xbb\xbfx",
          "\xef\xbb\xbfx" }
    };

    for (i = 0; i < NELTS(frames); i++) {

        assert_int_equal(parse(&ev, frames[i].frame, frames[i].first,
                               scratch),
                         frames[i].ndata ? KX_OK : KX_DECLINED);

        assert_int_equal(ev.ndata, frames[i].ndata);
        assert_int_equal(ev.event.len, strlen(frames[i].event));
        assert_int_equal(ev.data.len, strlen(frames[i].data));
        assert_int_equal(ev.tail.len, strlen(frames[i].tail));

        if (ev.event.len) {
            assert_memory_equal(ev.event.data, frames[i].event,
                                ev.event.len);
        }

        if (ev.data.len) {
            assert_memory_equal(ev.data.data, frames[i].data, ev.data.len);
        }

        if (ev.tail.len) {
            assert_memory_equal(ev.tail.data, frames[i].tail, ev.tail.len);
        }
    }
}


static void
test_parse_places(void **state)
{
    const char      *frame;
    unsigned char    scratch[64];
    kx_sse_event_t   ev;

    memset(scratch, '#', sizeof(scratch));

    /* one line: in place, the scratch is not touched */

    frame = "event: e\ndata: {}\n\n";
    assert_int_equal(parse(&ev, frame, 0, NULL), KX_OK);
    assert_ptr_equal(ev.event.data, frame + 7);
    assert_ptr_equal(ev.data.data, frame + 15);
    assert_ptr_equal(ev.tail.data, frame + 15);

    /* several: joined, and the last of them in place all the same */

    frame = "data: {\ndata: }\n: end\n\n";
    assert_int_equal(parse(&ev, frame, 0, scratch), KX_OK);
    assert_ptr_equal(ev.data.data, scratch);
    assert_memory_equal(scratch, "{\n}#", 4);
    assert_ptr_equal(ev.tail.data, frame + 14);
    assert_int_equal(ev.tail.len, 1);
}


/* lines longer than what is searched at a time, of all lengths around it */

static void
test_long_lines(void **state)
{
    size_t           n, len, i;
    kx_sse_t         sse;
    unsigned char   *p;
    kx_sse_event_t   ev;

    static const char  *ends[] = { "\n\n", "\r\r", "\r\n\r\n" };

    for (i = 0; i < NELTS(ends); i++) {
        for (n = 490; n < 1060; n++) {
            len = 5 + n + strlen(ends[i]);

            p = malloc(len);
            assert_non_null(p);

            memcpy(p, "data:", 5);
            memset(p + 5, 'x', n);
            memcpy(p + 5 + n, ends[i], strlen(ends[i]));

            memset(&sse, 0, sizeof(sse));
            assert_ptr_equal(kx_sse_frame(&sse, p, p + len), p + len);
            assert_int_equal(kx_sse_parse(&ev, p, len, 1, NULL), KX_OK);
            assert_int_equal(ev.data.len, n);

            memset(&sse, 0, sizeof(sse));
            assert_null(kx_sse_frame(&sse, p, p + len - strlen(ends[i])));

            free(p);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_edge_sample),
        cmocka_unit_test(test_line_ends),
        cmocka_unit_test(test_frame_ends),
        cmocka_unit_test(test_late_lf),
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_parse_places),
        cmocka_unit_test(test_long_lines)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
