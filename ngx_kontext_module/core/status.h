/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The status page: what is counted, and its two forms, JSON and the text of
 * Prometheus (exposition format 0.0.4).
 */


#ifndef _KX_STATUS_H_INCLUDED_
#define _KX_STATUS_H_INCLUDED_


#include "breaker.h"
#include "reason.h"


#define KX_STATUS_CHATS     6        /* off ... error, as $kontext_status */
#define KX_STATUS_CALLS     4        /* init, preload, error, debug */
#define KX_STATUS_BUCKETS   12       /* of a histogram, the last is "more" */
#define KX_STATUS_MAX       32768    /* bytes of either form */
#define KX_STATUS_NAME      128      /* bytes of a name that is shown */
#define KX_STATUS_BREAKER   4096     /* and more for each breaker */


/* how a call of the ad server has ended */

typedef enum {
    KX_CALL_FILLED = 0,              /* of /preload: an ad, none, an error */
    KX_CALL_NO_FILL,
    KX_CALL_ERROR,
    KX_CALL_OK,                      /* of the others: it was answered */
    KX_CALL_FAILED,                  /* no answer that could be read */
    KX_CALL_CANCELLED
} kx_call_outcome_e;

#define KX_CALL_OUTCOMES  6


typedef struct {
    uint64_t        buckets[KX_STATUS_BUCKETS];  /* not added up */
    uint64_t        sum;             /* ms */
} kx_histogram_t;


/* counters since the zone was made; all are uint64_t, so that they can be
   counted in shared memory by index */

typedef struct {
    uint64_t        chats[KX_STATUS_CHATS];
    uint64_t        reasons[KX_REASONS];
    uint64_t        injected[2];     /* member, text */
    uint64_t        attempts[KX_STATUS_CALLS];
    uint64_t        calls[KX_STATUS_CALLS][KX_CALL_OUTCOMES];
    uint64_t        dropped;         /* reports that were not sent */

    struct {
        uint64_t    found;           /* fetched: it was there */
        uint64_t    missing;
        uint64_t    unreadable;
        uint64_t    fetch_failed;
        uint64_t    saved;
        uint64_t    save_failed;
        uint64_t    bytes;           /* of those that were saved */
        uint64_t    deleted;
        uint64_t    refused;         /* not tried, to spare the store */
    } records;

    kx_histogram_t  preload;
    kx_histogram_t  hold;
} kx_counters_t;


typedef struct {
    kx_str_t        server;          /* KX_STATUS_NAME bytes at most */
    kx_str_t        location;        /* the same */
    kx_breaker_state_e  state;
    uint64_t        calls;           /* under way */
    uint64_t        max_calls;
    uint64_t        opened;
    uint64_t        refused;
    uint64_t        busy;
} kx_status_breaker_t;


typedef struct {
    const char     *version;
    kx_str_t        zone;            /* its name */
    uint64_t        size;            /* of the table and the store, bytes */
    uint64_t        sessions;
    uint64_t        slots;
    uint64_t        evicted;
    uint64_t        expired;
    uint64_t        repaired;
    uint64_t        blocks;
    uint64_t        used_blocks;
    uint64_t        streams;         /* of events, open */
    uint64_t        max_streams;
    kx_counters_t   n;
    kx_status_breaker_t  *breakers;
    unsigned        nbreakers;
} kx_status_t;


/* The bucket of a time, ms, in a histogram: below KX_STATUS_BUCKETS. */
unsigned kx_status_bucket(uint64_t ms);

/*
 * Write the status into dst, at most KX_STATUS_MAX bytes and for each breaker
 * KX_STATUS_BREAKER more; return the place after it, or NULL when there is no
 * room.  Names have no characters that JSON or a label would have to quote.
 */
unsigned char *kx_status_json(unsigned char *dst, const unsigned char *end,
    const kx_status_t *s);
unsigned char *kx_status_prometheus(unsigned char *dst,
    const unsigned char *end, const kx_status_t *s);


#endif /* _KX_STATUS_H_INCLUDED_ */
