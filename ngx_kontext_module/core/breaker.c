/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Every word is read and written by itself.  The parts of a ring say of which
 * time they are, so that nobody has to clean up: one of another time is empty.
 */


#include "breaker.h"


/* a part: its time in the upper half, below it one count or two */

#define KX_PART_BITS       32
#define KX_PART_MASK       0xffffffffULL
#define KX_HALF_BITS       16
#define KX_HALF_MASK       0xffffULL

/* of the state: two flags, and above them when the next probe is due */

#define KX_STATE_STALLED   1
#define KX_STATE_PROBED    2
#define KX_STATE_BITS      2

/* enough for any number of workers; who does not get through loses a count */

#define KX_BREAKER_TRIES   1000

/*
 * ms.  A worker's time is that of its last events: what another one has just
 * written may be ahead of it, by as much as "timer_resolution".
 */

#define KX_BREAKER_AHEAD   1000


static unsigned kx_breaker_is_open(kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t now, uint64_t *state);
static unsigned kx_breaker_failing(const kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t now);
static unsigned kx_breaker_stalled(const kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t now);
static void kx_breaker_open(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now, unsigned flags);
static void kx_breaker_close(kx_breaker_t *b, uint64_t now);
static void kx_breaker_success(kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t begun, uint64_t now);
static void kx_breaker_failure(kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t begun, uint64_t now);
static void kx_breaker_result(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now, unsigned failed);
static uint64_t kx_breaker_overdue(const kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t now);
static uint64_t kx_breaker_bound(const kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t now);
static void kx_breaker_count(uint64_t *ring, uint64_t time, int n);
static uint64_t kx_breaker_get(const uint64_t *word);
static uint64_t kx_breaker_past(const uint64_t *word, uint64_t now);
static void kx_breaker_set(uint64_t *word, uint64_t value);
static unsigned kx_breaker_swap(uint64_t *word, uint64_t *old,
    uint64_t value);
static void kx_breaker_add(uint64_t *word);


kx_breaker_e
kx_breaker_admit(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now)
{
    uint64_t      state, due;
    kx_breaker_e  rc;

    if (conf->max_calls && kx_breaker_calls(b, now) >= conf->max_calls) {
        kx_breaker_add(&b->busy);
        return KX_BREAKER_BUSY;
    }

    if (!kx_breaker_is_open(b, conf, now, &state)) {
        return KX_BREAKER_PASS;
    }

    due = state >> KX_STATE_BITS;
    rc = KX_BREAKER_OPEN;

    /* what lies beyond the next probe is damage, or of another interval */

    if (due <= now || due - now > conf->probe + KX_BREAKER_AHEAD) {

        due = ((now + conf->probe) << KX_STATE_BITS)
              | (state & KX_STATE_STALLED) | KX_STATE_PROBED;

        if (kx_breaker_swap(&b->state, &state, due)) {
            rc = KX_BREAKER_PROBE;
        }
    }

    if (rc == KX_BREAKER_OPEN) {
        kx_breaker_add(&b->refused);
    }

    return rc;
}


unsigned
kx_breaker_allows(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now)
{
    uint64_t  state;

    return !kx_breaker_is_open(b, conf, now, &state)
           && (conf->max_calls == 0
               || kx_breaker_calls(b, now) < conf->max_calls);
}


static unsigned
kx_breaker_is_open(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now, uint64_t *state)
{
    if (conf->off) {
        return 0;
    }

    *state = kx_breaker_get(&b->state);

    if (*state == 0 && kx_breaker_stalled(b, conf, now)) {
        kx_breaker_open(b, conf, now, KX_STATE_STALLED);
        *state = kx_breaker_get(&b->state);
    }

    return *state != 0;
}


void
kx_breaker_begin(kx_breaker_t *b, unsigned preload, uint64_t now)
{
    kx_breaker_count(b->calls, now, 1);

    if (preload) {
        kx_breaker_count(b->asked, now, 1);
    }
}


void
kx_breaker_end(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    unsigned preload, uint64_t begun, uint64_t now, kx_breaker_end_e end)
{
    kx_breaker_count(b->calls, begun, -1);

    if (!preload) {
        return;
    }

    /* one that is left when it was overdue stays: nobody has answered it */

    if (end == KX_BREAKER_LEFT && !conf->off
        && now - begun >= kx_breaker_bound(b, conf, now))
    {
        return;
    }

    kx_breaker_count(b->asked, begun, -1);

    if (conf->off) {
        return;
    }

    if (end == KX_BREAKER_ANSWERED) {
        kx_breaker_success(b, conf, begun, now);

    } else if (end == KX_BREAKER_FAILED) {
        kx_breaker_failure(b, conf, begun, now);
    }
}


static void
kx_breaker_success(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t begun, uint64_t now)
{
    uint64_t  state, latency, took;

    latency = kx_breaker_get(&b->latency);
    took = (now > begun) ? now - begun : 0;

    if (took > KX_BREAKER_SPAN) {
        took = KX_BREAKER_SPAN;
    }

    if (latency == 0 || latency > KX_BREAKER_SPAN * 8
        || now - kx_breaker_past(&b->answered, now) > conf->window)
    {
        latency = took * 8;

    } else {
        latency += took - latency / 8;
    }

    kx_breaker_set(&b->latency, latency ? latency : 1);
    kx_breaker_set(&b->answered, now);
    kx_breaker_set(&b->failures, 0);

    kx_breaker_result(b, conf, now, 0);

    state = kx_breaker_get(&b->state);

    /* what began before may only be lucky */

    if (state != 0
        && ((state & KX_STATE_STALLED)
            || begun >= kx_breaker_past(&b->opened_at, now)))
    {
        kx_breaker_close(b, now);
    }
}


static void
kx_breaker_failure(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t begun, uint64_t now)
{
    if (begun < kx_breaker_past(&b->since, now)) {
        return;
    }

    kx_breaker_add(&b->failures);
    kx_breaker_result(b, conf, now, 1);

    if (kx_breaker_get(&b->state) != 0) {
        return;
    }

    if (kx_breaker_failing(b, conf, now)
        || kx_breaker_get(&b->failures) >= conf->min)
    {
        kx_breaker_open(b, conf, now, 0);
    }
}


/* by the share of failures in the window */

static unsigned
kx_breaker_failing(const kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now)
{
    unsigned  i;
    uint64_t  part, time, word, answered, failed;

    part = conf->window / KX_BREAKER_WINDOW + 1;
    time = now / part;

    answered = 0;
    failed = 0;

    for (i = 0; i < KX_BREAKER_WINDOW && i <= time; i++) {
        word = kx_breaker_get(&b->window[(time - i) % KX_BREAKER_WINDOW]);

        if (word >> KX_PART_BITS == ((time - i) & KX_PART_MASK)) {
            answered += (word >> KX_HALF_BITS) & KX_HALF_MASK;
            failed += word & KX_HALF_MASK;
        }
    }

    return failed >= conf->min
           && failed * 100 >= (answered + failed) * conf->failures;
}


static unsigned
kx_breaker_stalled(const kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now)
{
    uint64_t  n;

    n = kx_breaker_overdue(b, conf, now);

    return n && n + kx_breaker_get(&b->failures) >= conf->min
           && now - kx_breaker_past(&b->answered, now) >= conf->stall;
}


/* the calls that are, and were not when the last one was answered */

static uint64_t
kx_breaker_overdue(const kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now)
{
    unsigned  i;
    uint64_t  time, begun, word, bound, since, answered, n;

    bound = kx_breaker_bound(b, conf, now);
    since = kx_breaker_past(&b->since, now);
    answered = kx_breaker_past(&b->answered, now);

    time = now / KX_BREAKER_PART;
    n = 0;

    for (i = 0; i < KX_BREAKER_STARTS && i <= time; i++) {

        /* the last of those that began in a part is taken for all of them */

        begun = (time - i + 1) * KX_BREAKER_PART;

        if (begun + bound > now || begun + bound <= answered
            || begun - KX_BREAKER_PART < since)
        {
            continue;
        }

        word = kx_breaker_get(&b->asked[(time - i) % KX_BREAKER_STARTS]);

        if (word >> KX_PART_BITS == ((time - i) & KX_PART_MASK)) {
            n += word & KX_PART_MASK;
        }
    }

    return n;
}


static uint64_t
kx_breaker_bound(const kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now)
{
    uint64_t  latency, bound;

    latency = kx_breaker_get(&b->latency) / 8;

    if (latency > KX_BREAKER_SPAN / 2
        || now - kx_breaker_past(&b->answered, now) > conf->window)
    {
        latency = 0;
    }

    bound = latency + latency / 4;

    return (bound > conf->stall) ? bound : conf->stall;
}


static void
kx_breaker_open(kx_breaker_t *b, const kx_breaker_conf_t *conf, uint64_t now,
    unsigned flags)
{
    uint64_t  closed;

    closed = 0;

    if (kx_breaker_swap(&b->state, &closed,
                        ((now + conf->probe) << KX_STATE_BITS) | flags))
    {
        kx_breaker_set(&b->opened_at, now);
        kx_breaker_add(&b->opened);
    }
}


static void
kx_breaker_close(kx_breaker_t *b, uint64_t now)
{
    unsigned  i;

    kx_breaker_restart(b, now);

    for (i = 0; i < KX_BREAKER_WINDOW; i++) {
        kx_breaker_set(&b->window[i], 0);
    }

    kx_breaker_set(&b->state, 0);
}


void
kx_breaker_restart(kx_breaker_t *b, uint64_t now)
{
    kx_breaker_set(&b->since, now);
    kx_breaker_set(&b->failures, 0);
}


static void
kx_breaker_result(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now, unsigned failed)
{
    unsigned   i;
    uint64_t   time, word, old, *part, half;

    time = now / (conf->window / KX_BREAKER_WINDOW + 1);

    part = &b->window[time % KX_BREAKER_WINDOW];
    old = kx_breaker_get(part);

    for (i = 0; i < KX_BREAKER_TRIES; i++) {
        word = old;

        if (word >> KX_PART_BITS != (time & KX_PART_MASK)) {
            word = time << KX_PART_BITS;
        }

        half = failed ? word & KX_HALF_MASK
                      : (word >> KX_HALF_BITS) & KX_HALF_MASK;

        if (half == KX_HALF_MASK) {
            return;
        }

        word += failed ? 1 : 1ULL << KX_HALF_BITS;

        if (kx_breaker_swap(part, &old, word)) {
            return;
        }
    }
}


/* one more, or one less, of what began at a time */

static void
kx_breaker_count(uint64_t *ring, uint64_t time, int n)
{
    unsigned   i;
    uint64_t   word, old, *part;

    time /= KX_BREAKER_PART;

    part = &ring[time % KX_BREAKER_STARTS];
    old = kx_breaker_get(part);

    for (i = 0; i < KX_BREAKER_TRIES; i++) {
        word = old;

        if (word >> KX_PART_BITS != (time & KX_PART_MASK)) {

            /* it is not counted any more */

            if (n < 0) {
                return;
            }

            word = time << KX_PART_BITS;
        }

        if ((word & KX_PART_MASK) == (n < 0 ? 0 : KX_PART_MASK)) {
            return;
        }

        word = (n < 0) ? word - 1 : word + 1;

        if (kx_breaker_swap(part, &old, word)) {
            return;
        }
    }
}


uint64_t
kx_breaker_calls(const kx_breaker_t *b, uint64_t now)
{
    unsigned  i, part;
    uint64_t  time, word, n;

    time = now / KX_BREAKER_PART;
    part = time % KX_BREAKER_STARTS;
    n = 0;

    for (i = 0; i < KX_BREAKER_STARTS && i <= time; i++) {
        word = kx_breaker_get(&b->calls[part]);

        if (word >> KX_PART_BITS == ((time - i) & KX_PART_MASK)) {
            n += word & KX_PART_MASK;
        }

        part = (part ? part : KX_BREAKER_STARTS) - 1;
    }

    return n;
}


kx_breaker_state_e
kx_breaker_state(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now)
{
    uint64_t  state;

    if (!kx_breaker_is_open(b, conf, now, &state)) {
        return KX_BREAKER_CLOSED;
    }

    return (state & KX_STATE_PROBED) ? KX_BREAKER_HALF_OPEN
                                     : KX_BREAKER_IS_OPEN;
}


static uint64_t
kx_breaker_get(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}


/* a time up to now, or 0 where damage has made it one that is still to come */

static uint64_t
kx_breaker_past(const uint64_t *word, uint64_t now)
{
    uint64_t  time;

    time = kx_breaker_get(word);

    if (time <= now) {
        return time;
    }

    return (time - now <= KX_BREAKER_AHEAD) ? now : 0;
}


static void
kx_breaker_set(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}


/* *old is what the word is, if it was not what it should have been */

static unsigned
kx_breaker_swap(uint64_t *word, uint64_t *old, uint64_t value)
{
    return __atomic_compare_exchange_n(word, old, value, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}


static void
kx_breaker_add(uint64_t *word)
{
    (void) __atomic_fetch_add(word, 1, __ATOMIC_RELAXED);
}
