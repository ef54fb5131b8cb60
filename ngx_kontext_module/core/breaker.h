/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The circuit breaker of an ad server, and the count of the calls that it has
 * not answered.  The record lies in shared memory and is used by all workers
 * without a lock.  Whatever is found there is harmless: a record that was
 * damaged is like a new one soon.
 *
 * A call is answered, has failed, or is left: given up before it was
 * answered, which says nothing unless it had waited for long.  The breaker
 * opens when
 *
 *   - of the calls of the last window the share that failed is as large as
 *     configured, and at least min of them did;
 *   - min calls have failed or are overdue since one was answered, the last
 *     time longer ago than the stall time.  A call is overdue when it waits
 *     for longer than the stall time and for a quarter more than calls have
 *     taken lately.  So an ad server that hangs is found out before any call
 *     ends, and one that always takes its time is not taken for one.
 *
 * While it is open, one call an interval is let through.  It is a lease: who
 * dies with it has held nothing up.  One that is answered closes the breaker;
 * after a stall so does any answer.
 *
 * Nothing waits for a call for ever: who died with some has them counted for
 * KX_BREAKER_SPAN at the most.
 *
 * Times are ms of a clock that never goes back and is the same for all; a
 * worker may be somewhat behind another one.
 */


#ifndef _KX_BREAKER_H_INCLUDED_
#define _KX_BREAKER_H_INCLUDED_


#include "kx.h"


#define KX_BREAKER_WINDOW  16        /* parts of the window */
#define KX_BREAKER_STARTS  115       /* parts of the span */
#define KX_BREAKER_PART    140       /* ms, one of them */
#define KX_BREAKER_SPAN    (KX_BREAKER_STARTS * KX_BREAKER_PART)


typedef struct {
    uint64_t        key;             /* whose it is, 0: nobody's */

    uint64_t        state;           /* 0: closed */
    uint64_t        since;           /* earlier calls say nothing any more */
    uint64_t        opened_at;
    uint64_t        answered;        /* the last time */
    uint64_t        latency;         /* of answers lately, ms * 8 */
    uint64_t        failures;        /* since then, one after the other */

    /* for the status page */
    uint64_t        opened;
    uint64_t        refused;
    uint64_t        busy;

    uint64_t        window[KX_BREAKER_WINDOW];   /* answered and failed */
    uint64_t        calls[KX_BREAKER_STARTS];    /* by when they began */
    uint64_t        asked[KX_BREAKER_STARTS];    /* the same of preloads */
} kx_breaker_t;


typedef struct {
    unsigned        off;             /* never opens */
    unsigned        failures;        /* per cent, 1 to 100 */
    unsigned        min;             /* 1 or more */
    uint32_t        window;          /* ms, 1 or more */
    uint32_t        probe;           /* ms between two probes, 1 or more */
    uint32_t        stall;           /* ms, 1 or more */
    uint32_t        max_calls;       /* 0: any number */
} kx_breaker_conf_t;


typedef enum {
    KX_BREAKER_PASS = 0,
    KX_BREAKER_PROBE,                /* one to find out with: it is to end */
    KX_BREAKER_OPEN,
    KX_BREAKER_BUSY                  /* there are max_calls already */
} kx_breaker_e;


typedef enum {
    KX_BREAKER_CLOSED = 0,
    KX_BREAKER_IS_OPEN,
    KX_BREAKER_HALF_OPEN             /* a probe was sent */
} kx_breaker_state_e;


/* how a call has ended */

typedef enum {
    KX_BREAKER_ANSWERED = 0,
    KX_BREAKER_FAILED,
    KX_BREAKER_LEFT
} kx_breaker_end_e;


/* May a preload be sent?  Counts what is refused. */
kx_breaker_e kx_breaker_admit(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now);

/*
 * May anything else be sent, or a preload once more?  Only while the breaker
 * is closed and there is room; takes no probe and counts nothing.
 */
unsigned kx_breaker_allows(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    uint64_t now);

/*
 * A call begins, and ends: begun is the time of its kx_breaker_begin().  Only
 * preloads tell how the ad server is doing.
 */
void kx_breaker_begin(kx_breaker_t *b, unsigned preload, uint64_t now);
void kx_breaker_end(kx_breaker_t *b, const kx_breaker_conf_t *conf,
    unsigned preload, uint64_t begun, uint64_t now, kx_breaker_end_e end);

/* Forgets what is under way: a worker may have died with it. */
void kx_breaker_restart(kx_breaker_t *b, uint64_t now);

/* For the status page; opens the breaker if it is time to. */
kx_breaker_state_e kx_breaker_state(kx_breaker_t *b,
    const kx_breaker_conf_t *conf, uint64_t now);

/* The calls under way. */
uint64_t kx_breaker_calls(const kx_breaker_t *b, uint64_t now);


#endif /* _KX_BREAKER_H_INCLUDED_ */
