/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What each dialect has to do, whatever a request and an answer say.  Input:
 *
 *     framing  options  memory  path  cut  request  NUL  answer
 *
 * all but the last three being one byte each.  The request is scanned, and
 * the answer read as the module does it: once in one buffer, and once in many
 * and without shapes (shape.h).
 *
 *   - Both give the same frames, verdicts, text, ids and places.
 *   - The places are in the finish frame, in order.  With the ad in it, the
 *     frame is one of the same kind with valid JSON, if it was one, and the
 *     frames in front of it that the ad has brought are.
 *   - An answer with the ad is read as the one without it; if the ad is a
 *     text, it is at the end of the text.
 *   - Memory is bounded, and there may be none at any time.
 */


#ifndef _FUZZ_DIALECT_H_INCLUDED_
#define _FUZZ_DIALECT_H_INCLUDED_


#include <stdio.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

#include "check.h"
#include "core/chat/dialect.h"


#define FUZZ_HEADER     5            /* bytes before the request */

/* what may be taken from the pool: by a request for each of its bytes */

#define FUZZ_SCAN       4
#define FUZZ_MESSAGES   4

/* and without any, the list of messages and the first hashes; by an answer
   besides its state */

#define FUZZ_SCAN_MIN   (512 + KX_MAX_MESSAGES * sizeof(kx_kept_t))
#define FUZZ_ANSWER     20480

#define FUZZ_GO_ON      0x02         /* options: the first finish is none */
#define FUZZ_ALL        0x04         /* read on after the end of interest */
#define FUZZ_LARGE      0x08         /* some frames are too large */
#define FUZZ_PLAIN      0x100        /* read each frame */


typedef struct {
    void                **blocks;
    size_t                n;
    size_t                size;
    size_t                bytes;
    size_t                left;      /* allocations that succeed */
} fuzz_pool_t;


typedef struct {
    unsigned char        *start;
    size_t                len;
    size_t                size;
} fuzz_buf_t;


/* where an ad goes in the answer */

typedef struct {
    size_t                at;
    fuzz_buf_t            before;
    fuzz_buf_t            after;
} fuzz_place_t;


/* an answer, and what was read in it */

typedef struct {
    const unsigned char  *p;
    size_t                len;
    unsigned              options;

    kx_answer_t           answer;
    kx_framer_t           framer;
    size_t                start;     /* of the current frame */
    unsigned              first;     /* no frame was read */
    unsigned              finishes;
    unsigned              stop;

    kx_sink_pt            sink;      /* of the answer's text */
    void                 *data;

    /* what was kept: its start, and the framer in front of it */
    unsigned              kept;
    size_t                kept_start;
    size_t                kept_at;   /* with no BOM, nor half a line end */
    unsigned              kept_first;
    kx_framer_t           kept_framer;
    kx_framer_t           before;    /* in front of the current frame */

    uint64_t              history;   /* of frames, verdicts and refusals */

    /* the finish, with what was kept in front of it */
    unsigned              finished;
    unsigned              finish_first;
    unsigned              head;      /* only its beginning was read */
    unsigned              said;      /* it has text itself */
    size_t                finish_start;
    size_t                finish_at;
    size_t                finish_end;
    kx_framer_t           finish_framer;
    kx_reason_e           refused;
    int                   places;    /* what kx_answer_places() returned */
    int                   digested;
    unsigned char         digest[KX_ID_LEN];
    unsigned              block;     /* its text ends within a hidden block */
    size_t                text_len;  /* of text, up to here */
    unsigned              nplaces;
    fuzz_place_t          place[KX_MAX_PLACES];

    fuzz_buf_t            text;
} fuzz_run_t;


static fuzz_pool_t  fuzz_pool;


static const unsigned char  fuzz_key[] = "0123456789abcdef";


static inline void *
fuzz_alloc(void *data, size_t size)
{
    void         *p;
    fuzz_pool_t  *pool = data;

    if (pool->left == 0) {
        return NULL;
    }

    pool->left--;

    if (pool->n == pool->size) {
        pool->size = pool->size ? pool->size * 2 : 64;
        pool->blocks = realloc(pool->blocks, pool->size * sizeof(void *));
        check(pool->blocks != NULL);
    }

    p = malloc(size ? size : 1);
    check(p != NULL);

    memset(p, 0xa5, size);

    pool->blocks[pool->n++] = p;
    pool->bytes += size;

    return p;
}


/* all but the first n blocks */

static inline void
fuzz_free(size_t n)
{
    while (fuzz_pool.n > n) {
        free(fuzz_pool.blocks[--fuzz_pool.n]);
    }

    fuzz_pool.bytes = 0;
}


static inline void
fuzz_buf_add(fuzz_buf_t *b, const void *p, size_t len)
{
    if (len == 0) {
        return;
    }

    if (b->size - b->len < len) {
        b->size = b->size * 2 + len;
        b->start = realloc(b->start, b->size);
        check(b->start != NULL);
    }

    memcpy(b->start + b->len, p, len);
    b->len += len;
}


static inline unsigned
fuzz_buf_same(const fuzz_buf_t *a, const fuzz_buf_t *b)
{
    return a->len == b->len
           && (a->len == 0 || memcmp(a->start, b->start, a->len) == 0);
}


static inline unsigned
fuzz_str_same(const kx_str_t *a, const kx_str_t *b)
{
    return a->len == b->len
           && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}


static inline unsigned
fuzz_valid(const kx_str_t *s)
{
    kx_json_t  j;

    kx_json_init(&j, s->data, s->len);

    return kx_json_skip(&j, NULL) == KX_OK && kx_json_end(&j) == KX_OK;
}


/* the canonical text, on its way to the hashes */

static inline void
fuzz_text(void *data, const unsigned char *p, size_t len)
{
    fuzz_run_t  *r = data;

    fuzz_buf_add(&r->text, p, len);

    if (!r->finished) {
        r->sink(r->data, p, len);
    }
}


static inline void
fuzz_note(fuzz_run_t *r, uint64_t value)
{
    r->history = (r->history ^ value) * 0x9e3779b97f4a7c15ULL;
    r->history ^= r->history >> 29;
}


static inline void
fuzz_line(const kx_str_t *s)
{
    if (s->len) {
        check(memchr(s->data, '\r', s->len) == NULL);
        check(memchr(s->data, '\n', s->len) == NULL);
    }
}


/* where the places are in the answer, as the module finds them */

static inline void
fuzz_places(fuzz_run_t *r, const unsigned char *p, const kx_frame_t *fr)
{
    size_t        n, at;
    unsigned      i;
    kx_place_t   *place;
    kx_answer_t  *a;

    a = &r->answer;

    check(a->nplaces <= KX_MAX_PLACES);

    at = 0;

    for (i = 0; i < a->nplaces; i++) {
        place = &a->places[i];

        if (place->at == NULL) {
            r->place[i].at = r->finish_at;

        } else {
            check(place->at >= fr->data.data
                  && place->at <= fr->data.data + fr->data.len);

            n = (size_t) (fr->data.data + fr->data.len - place->at);

            if (n > fr->tail.len) {
                r->nplaces = 0;
                return;
            }

            r->place[i].at = r->start
                             + (size_t) (fr->tail.data + fr->tail.len - n - p);
        }

        check(r->place[i].at >= r->finish_start);
        check(r->place[i].at <= r->finish_end);
        check(r->place[i].at >= at);

        at = r->place[i].at;

        if (place->at && (a->framing == KX_FRAMING_SSE
                          || a->framing == KX_FRAMING_LINES))
        {
            fuzz_line(&place->before);
            fuzz_line(&place->after);
        }

        fuzz_buf_add(&r->place[i].before, place->before.data,
                     place->before.len);
        fuzz_buf_add(&r->place[i].after, place->after.data,
                     place->after.len);
    }

    r->nplaces = a->nplaces;
}


static inline void
fuzz_finish(fuzz_run_t *r, const unsigned char *p, const kx_frame_t *fr,
    unsigned head)
{
    kx_str_t      cid = kx_string("c-1");
    kx_answer_t  *a;

    a = &r->answer;

    r->head = head;

    if (!head) {
        r->places = kx_answer_places(a, fr);

        check(r->places == KX_OK || r->places == KX_DECLINED
              || r->places == KX_ERROR);
        check(r->places == KX_OK || a->nplaces == 0);
        check(r->places != KX_ERROR || fuzz_pool.left == 0);
    }

    fuzz_places(r, p, fr);

    r->refused = a->refused;

    /* with the text that waits for more */

    kx_answer_decoded(a, r->p, 0);
    r->block = a->text.block;

    r->digested = kx_answer_digest(a, &cid, r->digest);

    check(r->digested == (r->text.len ? KX_OK : KX_DECLINED));

    r->text_len = r->text.len;
    r->finished = 1;
}


/* a frame that ends at end */

static inline void
fuzz_frame(fuzz_run_t *r, size_t end)
{
    size_t               n, limit, before, after, waits;
    uint32_t             high;
    unsigned             large, head;
    kx_text_t            text;
    kx_frame_e           verdict;
    kx_frame_t           fr;
    kx_framer_t          framer;
    kx_answer_t         *a;
    unsigned char       *p, *scratch;
    const kx_dialect_t  *d;

    a = &r->answer;
    d = a->dialect;
    n = end - r->start;
    verdict = KX_FRAME_PASS;

    /* the LF after a CR belongs to either of two frames, and counts for one */

    before = (r->framer.framing == KX_FRAMING_SSE && r->start
              && r->p[r->start - 1] == '\r' && r->p[r->start] == '\n');

    after = (r->framer.framing == KX_FRAMING_SSE && r->p[end - 1] == '\r'
             && end < r->len && r->p[end] == '\n');

    limit = (size_t) 8 << (r->options >> 4 & 7);

    large = (r->options & FUZZ_LARGE) && n - before + after > limit;
    head = large && d->head;

    framer = r->framer;

    if (head) {
        n = limit + before;
        framer.sse.single = 0;
    }

    /* memory that nobody can use any more afterwards */

    p = malloc(n);
    scratch = malloc(n);
    check(p != NULL && scratch != NULL);

    memcpy(p, r->p + r->start, n);
    memset(scratch, '#', n);

    if ((head || !large)
        && kx_frame_parse(&fr, &framer, p, n, r->first, scratch) == KX_OK)
    {
        high = a->decode.high;
        text = a->text;
        waits = a->nraw;
        a->nplaces = 0;

        if (head) {
            verdict = d->head(a, &fr);
            check(verdict == KX_FRAME_PASS || verdict == KX_FRAME_FINISH);

        } else if (r->framer.framing == KX_FRAMING_WHOLE) {
            verdict = d->whole(a, &fr);
            check(verdict == KX_FRAME_PASS || verdict == KX_FRAME_FINISH);

        } else if (r->options & FUZZ_PLAIN) {
            verdict = d->frame(a, &fr);

        } else {
            verdict = kx_answer_frame(a, &fr);
        }

        check(head || a->nplaces == 0);

        if (verdict == KX_FRAME_FINISH) {
            r->said = (a->decode.high != high || a->nraw != waits
                       || memcmp(&a->text, &text, sizeof(text)) != 0);

            check(a->complete);
            check(a->answers >= 1);

            if (!r->finishes++ && (r->options & FUZZ_GO_ON)) {

                /* more answers were asked for than was known */

                verdict = KX_FRAME_PASS;
                a->complete = 0;

            } else if (!r->finished) {
                r->finish_start = r->kept ? r->kept_start : r->start;
                r->finish_at = r->kept ? r->kept_at : r->start + fr.start;
                r->finish_first = r->kept ? r->kept_first : r->first;
                r->finish_framer = r->kept ? r->kept_framer : r->before;
                r->finish_end = end;

                fuzz_finish(r, p, &fr, head);

                r->stop |= !(r->options & FUZZ_ALL);
            }
        }
    }

    free(p);
    free(scratch);

    fuzz_note(r, end + after);
    fuzz_note(r, verdict);
    fuzz_note(r, a->refused);

    if (verdict == KX_FRAME_KEEP) {
        r->kept_start = r->start;
        r->kept_at = r->start + fr.start;
        r->kept_first = r->first;
        r->kept_framer = r->before;
    }

    if (verdict != KX_FRAME_FINISH && a->refused != KX_REASON_NONE) {
        r->stop |= !(r->options & FUZZ_ALL);
    }

    r->kept = (verdict == KX_FRAME_KEEP);
    r->first = 0;
    r->start = end;
    r->before = r->framer;
}


/* frames that are but compared with the one before, up to end */

static inline void
fuzz_repeat(fuzz_run_t *r, size_t end)
{
    const unsigned char  *p, *last, *next;

    if (r->kept || (r->options & (FUZZ_PLAIN|FUZZ_LARGE))) {
        return;
    }

    p = r->p + r->start;
    last = kx_answer_repeat(&r->answer, &r->framer, p, r->p + end);

    while (p < last) {
        next = kx_framer_next(&r->framer, p, last);

        check(next != NULL);

        fuzz_note(r, (uint64_t) (next - r->p));
        fuzz_note(r, KX_FRAME_PASS);
        fuzz_note(r, r->answer.refused);

        p = next;
    }

    r->start = (size_t) (p - r->p);
    r->before = r->framer;
}


static inline size_t
fuzz_piece(unsigned *cut, size_t left)
{
    size_t  n;

    /* all at once, in equal pieces, or in pieces of all kinds */

    if (*cut == 0) {
        return left;
    }

    if (*cut < 32) {
        n = *cut;

    } else {
        *cut = (*cut * 1103515245 + 12345) & 0x7fffffff;
        n = 1 + (*cut >> 16) % 100;
        *cut |= 32;
    }

    return (n < left) ? n : left;
}


static inline void
fuzz_run(fuzz_run_t *r, kx_conversation_t *cv, kx_framing_e framing,
    kx_form_e form, unsigned options, const unsigned char *p, size_t len,
    unsigned cut)
{
    size_t                pos, n, kept;
    const unsigned char  *next;

    memset(r, 0, sizeof(fuzz_run_t));

    kept = fuzz_pool.n;

    r->p = p;
    r->len = len;
    r->options = options;
    r->first = 1;

    if (kx_answer_init(&r->answer, cv, framing, form) != KX_OK) {
        check(fuzz_pool.left == 0);
        return;
    }

    r->sink = r->answer.text.sink;
    r->data = r->answer.text.data;
    r->answer.text.sink = fuzz_text;
    r->answer.text.data = r;

    kx_framer_init(&r->framer, framing);
    r->before = r->framer;

    for (pos = 0; pos < len && !r->stop; pos += n) {
        n = fuzz_piece(&cut, len - pos);

        while (!r->stop) {

            if (r->start >= pos) {
                fuzz_repeat(r, pos + n);
            }

            next = kx_framer_next(&r->framer, p + (r->start > pos ? r->start
                                                                  : pos),
                                  p + pos + n);
            if (next == NULL) {
                break;
            }

            fuzz_frame(r, (size_t) (next - p));
        }
    }

    if (!r->stop && r->start < len && kx_framer_last(&r->framer)) {
        fuzz_frame(r, len);
    }

    check(fuzz_pool.bytes <= cv->dialect->state + FUZZ_ANSWER);

    /* its text and its ids are not needed any more, but the latter are */

    fuzz_note(r, r->answer.message_id.len);
    fuzz_note(r, r->answer.response_id.len);

    for (n = 0; n < r->answer.message_id.len; n++) {
        fuzz_note(r, r->answer.message_id.data[n]);
    }

    for (n = 0; n < r->answer.response_id.len; n++) {
        fuzz_note(r, r->answer.response_id.data[n]);
    }

    fuzz_free(kept);
}


static inline void
fuzz_run_free(fuzz_run_t *r)
{
    unsigned  i;

    for (i = 0; i < KX_MAX_PLACES; i++) {
        free(r->place[i].before.start);
        free(r->place[i].after.start);
    }

    free(r->text.start);
}


/* line ends do not depend on where buffers end, nor does all else */

static inline void
fuzz_same(fuzz_run_t *a, fuzz_run_t *b)
{
    unsigned  i;

    check(a->history == b->history);
    check(a->finishes == b->finishes);
    check(a->finished == b->finished);
    check(a->answer.refused == b->answer.refused);
    check(a->answer.complete == b->answer.complete);
    check(a->answer.answers == b->answer.answers);
    check(fuzz_buf_same(&a->text, &b->text));

    if (!a->finished) {
        return;
    }

    check(a->refused == b->refused);
    check(a->head == b->head);
    check(a->places == b->places);
    check(a->nplaces == b->nplaces);
    check(a->digested == b->digested);
    check(a->digested != KX_OK
          || memcmp(a->digest, b->digest, KX_ID_LEN) == 0);

    for (i = 0; i < a->nplaces; i++) {
        check(a->place[i].at == b->place[i].at);
        check(fuzz_buf_same(&a->place[i].before, &b->place[i].before));
        check(fuzz_buf_same(&a->place[i].after, &b->place[i].after));
    }
}


/* the next frame that has data; scratch has room for len bytes */

static inline unsigned
fuzz_next(kx_framer_t *f, const unsigned char *p, size_t len, size_t *pos,
    unsigned *first, unsigned char *scratch, kx_frame_t *fr)
{
    int                   rc;
    const unsigned char  *next;

    while (*pos < len) {
        next = kx_framer_next(f, p + *pos, p + len);

        if (next == NULL) {

            if (!kx_framer_last(f)) {
                return 0;
            }

            next = p + len;
        }

        rc = kx_frame_parse(fr, f, p + *pos, (size_t) (next - p) - *pos,
                            *first, scratch);

        *pos = (size_t) (next - p);
        *first = 0;

        if (rc == KX_OK) {
            return 1;
        }
    }

    return 0;
}


/* what is in front of the frames that were there, and what became of them */

static inline void
fuzz_ad_frames(const fuzz_run_t *r, const fuzz_buf_t *out, size_t out_end)
{
    size_t           pos, in_pos, more;
    unsigned         first, in_first, n, m;
    kx_frame_t       fr, in;
    kx_framer_t      f, in_f;
    unsigned char   *scratch, *in_scratch;

    scratch = malloc(out->len);
    in_scratch = malloc(r->len);
    check(scratch != NULL && in_scratch != NULL);

    /* how many were there, and how many there are */

    f = r->finish_framer;
    first = r->finish_first;
    pos = r->finish_start;

    for (m = 0;
         fuzz_next(&f, r->p, r->finish_end, &pos, &first, in_scratch, &in);
         m++)
    {
        /* void */
    }

    check(pos == r->finish_end);

    in_f = f;

    f = r->finish_framer;
    first = r->finish_first;
    pos = r->finish_start;

    for (n = 0;
         fuzz_next(&f, out->start, out_end, &pos, &first, scratch, &fr);
         n++)
    {
        /* void */
    }

    check(pos == out_end);
    check(memcmp(&f, &in_f, sizeof(f)) == 0);
    check(m >= 1 && n >= m);

    more = n - m;

    f = r->finish_framer;
    first = r->finish_first;
    pos = r->finish_start;

    in_f = f;
    in_first = first;
    in_pos = pos;

    while (n--) {
        check(fuzz_next(&f, out->start, out_end, &pos, &first, scratch, &fr));

        if (more) {

            /* what the ad has brought */

            check(fuzz_valid(&fr.data));
            more--;
            continue;
        }

        check(fuzz_next(&in_f, r->p, r->finish_end, &in_pos, &in_first,
                        in_scratch, &in));

        check(fuzz_str_same(&fr.event, &in.event));
        check(!fuzz_valid(&in.data) || fuzz_valid(&fr.data));

        if (n) {
            check(fuzz_str_same(&fr.data, &in.data));
        }
    }

    free(scratch);
    free(in_scratch);
}


/* the same answer with an ad */

static inline void
fuzz_ad(fuzz_run_t *r, kx_conversation_t *cv)
{
    size_t           pos, end;
    unsigned         i, strict;
    kx_str_t         whole, payload;
    fuzz_buf_t       out, text;
    fuzz_run_t       with;
    kx_framing_e     framing;

    static const kx_str_t  object = kx_string("{\"bids\":[{\"code\":\"a\","
                                              "\"n\":[1,{}]}]}");
    static const kx_str_t  string = kx_string("\\n\\n\\u2063\\u00e9 \\\""
                                              "https://a.b/\\u2063");
    static const kx_str_t  ad = kx_string("\xe2\x81\xa3\xc3\xa9 \""
                                          "https://a.b/\xe2\x81\xa3");

    framing = r->framer.framing;

    payload = (r->answer.form == KX_FORM_TEXT) ? string : object;

    memset(&out, 0, sizeof(fuzz_buf_t));
    pos = 0;

    for (i = 0; i < r->nplaces; i++) {
        fuzz_buf_add(&out, r->p + pos, r->place[i].at - pos);
        pos = r->place[i].at;

        fuzz_buf_add(&out, r->place[i].before.start, r->place[i].before.len);
        fuzz_buf_add(&out, payload.data, payload.len);
        fuzz_buf_add(&out, r->place[i].after.start, r->place[i].after.len);
    }

    fuzz_buf_add(&out, r->p + pos, r->finish_end - pos);
    end = out.len;

    fuzz_buf_add(&out, r->p + r->finish_end, r->len - r->finish_end);

    fuzz_ad_frames(r, &out, end);

    if (framing == KX_FRAMING_ARRAY || framing == KX_FRAMING_WHOLE) {
        whole.data = (unsigned char *) r->p;
        whole.len = r->len;

        if (fuzz_valid(&whole)) {
            whole.data = out.start;
            whole.len = out.len;
            check(fuzz_valid(&whole));
        }
    }

    /* where a refusal or no text would have kept the ad out */

    if ((r->options & FUZZ_LARGE) || r->refused != KX_REASON_NONE
        || r->digested != KX_OK)
    {
        free(out.start);
        return;
    }

    /* as a client would see it */

    fuzz_run(&with, cv, framing, r->answer.form, r->options, out.start,
             out.len, 0);

    with.text.len = with.text_len;
    r->text.len = r->text_len;

    check(with.finished);
    check(with.finish_end == end);
    check(with.refused == r->refused);
    check(with.answer.answers == r->answer.answers);

    if (r->answer.form == KX_FORM_MEMBER) {
        check(fuzz_buf_same(&with.text, &r->text));

    } else if (!fuzz_buf_same(&with.text, &r->text)) {

        /* the rest of the text may be in the finish frame, behind the ad */

        strict = !r->said;

        for (i = 0; i < r->nplaces; i++) {
            strict |= (r->place[i].at > r->finish_at);
        }

        memset(&text, 0, sizeof(fuzz_buf_t));
        fuzz_buf_add(&text, r->text.start, r->text.len);

        if (text.len) {
            fuzz_buf_add(&text, " ", 1);
        }

        fuzz_buf_add(&text, ad.data, ad.len);

        check(!strict || fuzz_buf_same(&with.text, &text));

        free(text.start);

    } else {
        check(r->block);
    }

    fuzz_run_free(&with);
    free(out.start);
}


typedef struct {
    unsigned char  *pos;
    unsigned char  *last;
} fuzz_text_t;


static inline void
fuzz_text_sink(void *data, const unsigned char *p, size_t len)
{
    fuzz_text_t  *t = data;

    check(len <= (size_t) (t->last - t->pos));
    check(memcmp(t->pos, p, len) == 0);

    t->pos += len;
}


/* a raw string that is sent on says what is visible, to any parser */

static inline void
fuzz_raw(const kx_conversation_t *cv, const kx_message_t *m)
{
    cJSON          *json;
    unsigned        i;
    kx_text_t       text;
    fuzz_text_t     said;
    unsigned char  *quoted;

    quoted = malloc(m->raw.len + 3);
    check(quoted != NULL);

    quoted[0] = '"';
    memcpy(quoted + 1, m->raw.data, m->raw.len);
    quoted[m->raw.len + 1] = '"';
    quoted[m->raw.len + 2] = '\0';

    json = cJSON_ParseWithOpts((char *) quoted, NULL, 1);

    check(cJSON_IsString(json));
    check(strlen(json->valuestring) == m->content.len);

    for (i = 0; i < KX_MAX_MESSAGES && i < cv->nhashes; i++) {
        if (cv->kept[i].content.data + 1 == m->raw.data) {
            break;
        }
    }

    check(i < KX_MAX_MESSAGES && i < cv->nhashes);

    said.pos = (unsigned char *) json->valuestring;
    said.last = said.pos + m->content.len;

    kx_text_init(&text, KX_TEXT_VISIBLE, fuzz_text_sink, &said);
    cv->dialect->content(&cv->kept[i].content, kx_text_feed, &text);
    kx_text_finish(&text);

    check(said.pos == said.last);

    cJSON_Delete(json);
    free(quoted);
}


/* what is known of messages makes no difference */

static inline void
fuzz_memos(kx_conversation_t *cv, const kx_str_t *cid,
    const kx_message_t *messages, unsigned n, const unsigned char *newest)
{
    unsigned              i, k, m;
    kx_message_t          others[KX_MAX_MESSAGES];
    unsigned char         other[KX_ID_LEN];
    kx_memo_table_t       memos;
    kx_conversation_t     again;
    static unsigned char  mem[8 * sizeof(kx_memo_set_t)]
                              __attribute__((aligned(KX_MEMO_ALIGN)));

    memset(mem, 0, sizeof(mem));
    kx_memo_init(&memos, mem, sizeof(mem));

    for (k = 0; k < 2; k++) {
        again = *cv;
        again.memos = &memos;

        m = kx_conversation_messages(&again, cid, others, other);

        if (m == 0) {
            check(fuzz_pool.left == 0);
            return;
        }

        check(m == n && memcmp(other, newest, KX_ID_LEN) == 0);

        for (i = 0; i < n; i++) {
            check(others[i].role == messages[i].role);
            check(others[i].content.len == messages[i].content.len);
            check(others[i].id.len == messages[i].id.len);
            check(memcmp(others[i].id.data, messages[i].id.data,
                         others[i].id.len) == 0);
            check(others[i].raw.data == messages[i].raw.data);
            check(others[i].raw.len == messages[i].raw.len);

            if (others[i].content.data) {
                check(memcmp(others[i].content.data, messages[i].content.data,
                             others[i].content.len) == 0);
            }
        }
    }
}


static inline void
fuzz_messages(kx_conversation_t *cv, size_t len)
{
    size_t          room, kept;
    unsigned        i, n;
    kx_str_t        cid = kx_string("c-1");
    kx_message_t    messages[KX_MAX_MESSAGES];
    unsigned char   digest[KX_ID_LEN], newest[KX_ID_LEN];

    kept = fuzz_pool.n;

    check(cv->user.value.len <= KX_MAX_IDENTITY);
    check(cv->conversation.value.len <= KX_MAX_IDENTITY);
    check(cv->previous.len <= KX_MAX_IDENTITY);
    check((cv->user.rank == KX_IDENTITY_NONE) == (cv->user.value.len == 0));
    check((cv->conversation.rank == KX_IDENTITY_NONE)
          == (cv->conversation.value.len == 0));
    check(cv->choices >= 1 && cv->choices <= KX_MAX_CHOICES);
    check(!cv->user_turn || cv->nhashes);
    check(!cv->auxiliary || cv->user_turn);
    check(!cv->nhashes || cv->has_messages);

    kx_conversation_derive(cv, &cid, digest);

    if (cv->nhashes == 0) {
        return;
    }

    n = kx_conversation_messages(cv, &cid, messages, newest);

    if (n == 0) {
        check(fuzz_pool.left == 0);
        fuzz_free(kept);
        return;
    }

    check(n <= KX_MAX_MESSAGES && n <= cv->nhashes);
    check(!cv->user_turn || messages[n - 1].role == KX_ROLE_USER);

    room = KX_MAX_CONTENT;

    for (i = 0; i < n; i++) {
        check(messages[i].role == KX_ROLE_USER
              || messages[i].role == KX_ROLE_ASSISTANT);
        check(messages[i].id.len > 0 && messages[i].id.len <= KX_MAX_IDENTITY);
        check(messages[i].content.len > 0);
        check(messages[i].content.len <= room);

        room -= messages[i].content.len;

        if (messages[i].raw.len) {
            fuzz_raw(cv, &messages[i]);
        }
    }

    check(fuzz_pool.bytes <= FUZZ_MESSAGES * len
                             + n * (KX_MAX_IDENTITY + KX_MESSAGE_ID_LEN));

    fuzz_memos(cv, &cid, messages, n, newest);

    fuzz_free(kept);
}


static inline int
fuzz_request(kx_conversation_t *cv, const kx_dialect_t *dialect,
    const kx_str_t *path, const kx_pool_t *pool, const unsigned char *p,
    size_t len)
{
    kx_str_t      body;
    kx_reason_e   reason;
    kx_members_t  members;

    kx_conversation_init(cv, dialect, path, fuzz_key, pool);

    reason = kx_conversation_scan(cv, p, len);

    check(reason == KX_REASON_NONE || reason == KX_REASON_BAD_BODY
          || (reason == KX_REASON_NO_MEMORY && fuzz_pool.left == 0));

    check(fuzz_pool.bytes <= FUZZ_SCAN_MIN + FUZZ_SCAN * len);
    fuzz_pool.bytes = 0;

    body.data = (unsigned char *) p;
    body.len = len;

    if (reason == KX_REASON_NONE) {
        check(fuzz_valid(&body));
    }

    if (kx_members_read(&members, p, len) == KX_OK) {
        (void) dialect->body(&members);
    }

    (void) dialect->path(path);
    (void) kx_dialect_by_body(path, p, len);

    return reason == KX_REASON_NONE ? KX_OK : KX_ERROR;
}


static inline int
fuzz_dialect(const kx_dialect_t *dialect, const char *const *paths,
    const uint8_t *p, size_t len)
{
    size_t                n;
    unsigned              i, options, memory, cut, framing, npaths;
    kx_str_t              path;
    kx_pool_t             pool;
    kx_form_e             form;
    fuzz_run_t            once, cuts;
    unsigned char        *request, *stream;
    const uint8_t        *nul;
    kx_conversation_t     cv;

    static const unsigned char  empty[] = "{}";

    if (len < FUZZ_HEADER) {
        return 0;
    }

    /* of the framings that it has, the one whose turn it is */

    n = 0;

    for (framing = 1; framing <= KX_FRAMING_WHOLE; framing <<= 1) {
        n += ((dialect->framings & framing) != 0);
    }

    n = p[0] % n;

    for (framing = 1; ; framing <<= 1) {
        if ((dialect->framings & framing) && n-- == 0) {
            break;
        }
    }

    options = p[1];
    form = (options & 1) ? KX_FORM_TEXT : KX_FORM_MEMBER;
    memory = p[2];
    cut = p[4];

    for (npaths = 0; paths[npaths]; npaths++) { /* void */ }

    path.data = (unsigned char *) paths[p[3] % npaths];
    path.len = strlen(paths[p[3] % npaths]);

    p += FUZZ_HEADER;
    len -= FUZZ_HEADER;

    nul = len ? memchr(p, '\0', len) : NULL;
    n = nul ? (size_t) (nul - p) : len;

    request = malloc(n ? n : 1);
    check(request != NULL);

    if (n) {
        memcpy(request, p, n);
    }

    p += n + (nul != NULL);
    len -= n + (nul != NULL);

    stream = malloc(len ? len : 1);
    check(stream != NULL);

    if (len) {
        memcpy(stream, p, len);
    }

    pool.alloc = fuzz_alloc;
    pool.data = &fuzz_pool;

    /* memory: 0 is enough, an even number is for the request */

    fuzz_pool.left = (memory && memory % 2 == 0) ? memory / 2 - 1
                                                 : (size_t) -1;
    fuzz_pool.bytes = 0;

    i = 1;

    if (fuzz_request(&cv, dialect, &path, &pool, request, n) == KX_OK) {
        fuzz_messages(&cv, n);

    } else {
        fuzz_free(0);
        fuzz_pool.left = (size_t) -1;

        i = fuzz_request(&cv, dialect, &path, &pool, empty, 2) == KX_OK;
    }

    if (i) {
        memory = memory % 2 ? memory / 2 : 0;

        fuzz_pool.left = memory ? memory - 1 : (size_t) -1;
        fuzz_run(&once, &cv, (kx_framing_e) framing, form, options, stream,
                 len, 0);

        fuzz_pool.left = memory ? memory - 1 : (size_t) -1;
        fuzz_run(&cuts, &cv, (kx_framing_e) framing, form,
                 options | FUZZ_PLAIN, stream, len, cut);

        fuzz_same(&once, &cuts);
        fuzz_run_free(&cuts);

        if (once.finished && once.nplaces) {
            fuzz_pool.left = (size_t) -1;
            fuzz_ad(&once, &cv);
        }

        fuzz_run_free(&once);
    }

    fuzz_free(0);

    free(request);
    free(stream);

    return 0;
}


#endif /* _FUZZ_DIALECT_H_INCLUDED_ */
