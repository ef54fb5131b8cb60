/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Server-sent events.  The first byte says how the rest is cut into buffers.
 * For every cut the frames together are the input, and the events in them
 * are those that a reader finds who goes by the letter of the standard, byte
 * by byte over the whole stream.
 */


#include <stdlib.h>

#include "check.h"
#include "sse.h"


/* events as bytes: a type, a zero, data, a zero, and so on */

typedef struct {
    unsigned char  *start;
    unsigned char  *last;
    unsigned char  *end;
} events_t;


static void events_init(events_t *ev, size_t size);
static void events_add(events_t *ev, const unsigned char *event,
    size_t event_len, const unsigned char *data, size_t data_len);
static void reference(events_t *ev, const unsigned char *p, size_t len);
static void read_frames(events_t *ev, const unsigned char *p, size_t len,
    unsigned cut);
static void read_frame(events_t *ev, const unsigned char *p, size_t len,
    unsigned first);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


static void
events_init(events_t *ev, size_t size)
{
    ev->start = malloc(size);
    check(ev->start != NULL);

    ev->last = ev->start;
    ev->end = ev->start + size;
}


static void
events_add(events_t *ev, const unsigned char *event, size_t event_len,
    const unsigned char *data, size_t data_len)
{
    check(event_len + data_len + 2 <= (size_t) (ev->end - ev->last));

    if (event_len) {
        memcpy(ev->last, event, event_len);
        ev->last += event_len;
    }

    *ev->last++ = '\0';

    if (data_len) {
        memcpy(ev->last, data, data_len);
        ev->last += data_len;
    }

    *ev->last++ = '\0';
}


static void
reference(events_t *ev, const unsigned char *p, size_t len)
{
    size_t          i, start, end, colon, value, nevent, ndata;
    unsigned        lines;
    unsigned char  *event, *data;

    event = malloc(len + 1);
    data = malloc(len + 1);
    check(event != NULL && data != NULL);

    nevent = 0;
    ndata = 0;
    lines = 0;
    i = 0;

    if (len >= 3 && p[0] == 0xef && p[1] == 0xbb && p[2] == 0xbf) {
        i = 3;
    }

    for ( ;; ) {
        start = i;

        while (i < len && p[i] != '\r' && p[i] != '\n') {
            i++;
        }

        if (i == len) {
            break;
        }

        end = i++;

        if (p[end] == '\r' && i < len && p[i] == '\n') {
            i++;
        }

        if (start == end) {

            if (lines) {
                events_add(ev, event, nevent, data, ndata);
            }

            nevent = 0;
            ndata = 0;
            lines = 0;
            continue;
        }

        colon = start;

        while (colon < end && p[colon] != ':') {
            colon++;
        }

        value = (colon < end) ? colon + 1 : end;

        if (value < end && p[value] == ' ') {
            value++;
        }

        if (colon - start == 5 && memcmp(p + start, "event", 5) == 0) {
            nevent = end - value;
            memcpy(event, p + value, nevent);
        }

        if (colon - start == 4 && memcmp(p + start, "data", 4) == 0) {

            if (lines++) {
                data[ndata++] = '\n';
            }

            memcpy(data + ndata, p + value, end - value);
            ndata += end - value;
        }
    }

    free(event);
    free(data);
}


static void
read_frames(events_t *ev, const unsigned char *p, size_t len, unsigned cut)
{
    size_t                n;
    kx_sse_t              sse;
    unsigned              first;
    const unsigned char  *frame, *pos, *last, *next, *end;

    memset(&sse, 0, sizeof(kx_sse_t));

    frame = p;
    pos = p;
    end = p + len;
    first = 1;

    while (pos < end) {

        /* all at once, in equal pieces, or in pieces of all kinds */

        if (cut == 0) {
            n = len;

        } else if (cut < 16) {
            n = cut;

        } else {
            cut = (cut * 1103515245 + 12345) & 0x7fffffff;
            n = 1 + (cut >> 16) % 40;
            cut |= 16;
        }

        last = ((size_t) (end - pos) < n) ? end : pos + n;

        while ((next = kx_sse_frame(&sse, pos, last)) != NULL) {
            check(next > pos && next <= last);

            read_frame(ev, frame, (size_t) (next - frame), first);

            first = 0;
            frame = next;
            pos = next;
        }

        pos = last;
    }
}


static void
read_frame(events_t *ev, const unsigned char *p, size_t len, unsigned first)
{
    int              rc;
    unsigned char   *frame, *scratch;
    kx_sse_event_t   e;

    frame = malloc(len);
    scratch = malloc(len);
    check(frame != NULL && scratch != NULL);

    memcpy(frame, p, len);
    memset(scratch, '#', len);

    rc = kx_sse_parse(&e, frame, len, first, scratch);

    check(rc == (e.ndata ? KX_OK : KX_DECLINED));

    if (rc == KX_OK) {
        check(e.tail.data >= frame);
        check(e.tail.data + e.tail.len <= frame + len);
        check(e.tail.len <= e.data.len);
        check(memcmp(e.data.data + e.data.len - e.tail.len, e.tail.data,
                     e.tail.len) == 0);

        if (e.ndata == 1) {
            check(e.data.data == e.tail.data && e.data.len == e.tail.len);

        } else {
            check(e.data.data == scratch && e.data.len <= len);
        }

        events_add(ev, e.event.data, e.event.len, e.data.data, e.data.len);
    }

    free(frame);
    free(scratch);
}


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    size_t    size;
    events_t  expected, found;

    if (len == 0) {
        return 0;
    }

    size = 2 * len + 2;

    events_init(&expected, size);
    events_init(&found, size);

    reference(&expected, p + 1, len - 1);
    read_frames(&found, p + 1, len - 1, p[0]);

    check(expected.last - expected.start == found.last - found.start);
    check(memcmp(expected.start, found.start,
                 (size_t) (found.last - found.start)) == 0);

    free(expected.start);
    free(found.start);

    return 0;
}
