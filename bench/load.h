/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The load of the benchmarks: clients, the chat backend and the ad server in
 * one process, so that an event is sent when the one before it has arrived,
 * and both ends have the same clock.
 */


#ifndef _LOAD_H_INCLUDED_
#define _LOAD_H_INCLUDED_


#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/types.h>
#include <sys/uio.h>


#define LOAD_HEAD     8192          /* of a request or a response */
#define LOAD_POOL     4096          /* events that are different */
#define LOAD_READ     (256 * 1024)
#define LOAD_PIECES   8
#define LOAD_TARGETS  16
#define LOAD_PIDS     8


typedef struct load_conn_s    load_conn_t;
typedef struct load_stream_s  load_stream_t;


typedef struct {
    char             *data;
    size_t            len;
} load_str_t;


/* an API: what its requests and its answers look like */

typedef struct {
    const char       *name;
    const char       *path;
    const char       *request;
    const char       *sample;
    const char       *type;
    const char       *end;           /* of an event */
    const char       *marker;        /* of an event with text */
    const char       *key;           /* of the text */
} load_format_t;


/* the events of the answers, as chunks */

typedef struct {
    load_str_t        head;
    load_str_t        tail;
    unsigned          nhead;         /* events */
    unsigned          ntail;

    char             *events;
    size_t            at[LOAD_POOL + 1];
    load_str_t        text[LOAD_POOL];
} load_pool_t;


typedef struct {
    const char       *name;
    int               port;
    int               pids[LOAD_PIDS];
    unsigned          npids;
    load_stream_t    *streams;       /* nstreams of them */

    unsigned          answers;
    unsigned          ads;
} load_target_t;


struct load_conn_s {
    int               fd;
    uint32_t          serial;
    unsigned          writing;       /* waits for EPOLLOUT */

    struct iovec      out[LOAD_PIECES];
    unsigned          nout;
    unsigned          first;

    void            (*read)(load_conn_t *c);

    load_stream_t    *stream;

    int               state;
    unsigned          last;          /* request on this connection */
    uint64_t          rest;
    unsigned          nl;            /* the last byte was a line end */
    unsigned          match;         /* bytes of "kontext" */

    char              head[LOAD_HEAD];
    size_t            head_len;
};


struct load_stream_s {
    unsigned          id;
    load_target_t    *target;
    load_conn_t      *client;
    load_conn_t      *backend;

    uint64_t          sent;          /* events of this answer */
    uint64_t          got;
    uint64_t          at;            /* when the last ones were sent */
    uint64_t          asked;
    uint64_t          first;         /* when the first event was there */

    unsigned          pos;           /* in the pool */
    unsigned          said;          /* where this answer began in it */
    unsigned          busy;          /* a request is on its way */
    unsigned          tail;          /* the end of the answer was sent */
    unsigned          ad;
    unsigned          known;         /* nginx knows the session */

    unsigned          conversation;
    unsigned          turn;

    char              request[512];
    char             *more;          /* the newest messages */
    size_t            more_len;
    size_t            more_size;
};


typedef struct {
    const char       *mode;
    const char       *samples;
    const load_format_t  *format;
    int               backend_port;
    int               ad_port;
    int               ad_delay;      /* ms, -1: never */
    unsigned          nstreams;
    unsigned          batch;
    unsigned          rate;          /* events a second, 0: closed loop */
    unsigned          slice;         /* ms */
    unsigned          spin;          /* never sleep */
    unsigned          rounds;
    size_t            size;          /* of the history, 0: the sample's */
    unsigned          events;        /* of an answer, to begin with */
    unsigned          ends;          /* an answer, by itself */
    unsigned          delay;         /* ms before the end of an answer */
    unsigned          turns;         /* of a conversation */
    unsigned          conversation;
    unsigned          count;

    load_target_t     targets[LOAD_TARGETS];
    unsigned          ntargets;
    load_stream_t    *streams;
    unsigned          total;         /* of all targets */

    uint64_t          arrived;       /* events */
    uint64_t          bytes;
    unsigned          inits;
    unsigned          preloads;
} load_t;


/* what a mode wants to hear of */

typedef struct {
    void            (*arrived)(load_stream_t *s);  /* all that was sent */
    void            (*done)(load_stream_t *s);
} load_hooks_t;


/* load.c */

extern load_t        load;
extern load_hooks_t  load_hooks;
extern load_pool_t   load_pool;
extern char          load_buf[LOAD_READ];

uint64_t load_now(void);
load_conn_t *load_conn(int fd, void (*handler)(load_conn_t *c));
void load_close(load_conn_t *c);
void load_send(load_conn_t *c, const void *data, size_t len);
void load_flush(load_conn_t *c);
size_t load_read(load_conn_t *c);
void load_later(load_conn_t *c, unsigned ad, unsigned ms);
void load_die(const char *what, const char *more)
    __attribute__((noreturn));

/* client.c */

void client_connect(load_stream_t *s);
void client_ask(load_stream_t *s);

/* backend.c */

void backend_listen(int port);
void backend_events(load_stream_t *s, unsigned n);
void backend_tail(load_stream_t *s);
void backend_ad(load_conn_t *c);

/* sample.c */

const load_format_t *sample_format(const char *name);
void sample_pool(load_pool_t *pool, const load_format_t *f,
    const char *dir);
load_str_t sample_request(const load_format_t *f, const char *dir);
load_str_t sample_history(size_t size);
void sample_mark(char *p, size_t len, unsigned chat);
uint32_t sample_random(uint32_t n);


#endif /* _LOAD_H_INCLUDED_ */
