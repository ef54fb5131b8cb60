/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 *     load -m MODE [options] NAME=PORT:PID[:PID...] ...
 *
 * relay   streams that are open all the time; slices of -t ms, one target
 *         after the other, -k times; -b events a write, -r events a second
 *         in all, or the next event when the last one has arrived
 * chat    whole chats of -s bytes in slices, or -N of them
 * ttft    pairs of single chats
 * hold    streams that are open and silent: the memory they take
 * probe   which conversations nginx still knows, from -F down
 *
 * With -w it never sleeps: who wakes a process on another processor pays for
 * that, and it would be the target.
 *
 * The processes of a target (PID) are not touched: their CPU time is read.
 */


#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

#include "load.h"


#define LOAD_LATER   65536
#define LOAD_DELAYS  (1024 * 1024)
#define LOAD_WARM    5               /* ms */
#define LOAD_LIMIT   60000           /* ms, nothing takes longer */


typedef struct {
    uint64_t          due;
    uint32_t          serial;
    int               fd;
} load_later_t;


typedef struct {
    load_later_t      q[LOAD_LATER];
    unsigned          head;
    unsigned          tail;
} load_queue_t;


typedef struct {
    uint64_t          now;
    uint64_t          cpu;           /* of the target */
    uint64_t          own;
    uint64_t          events;
    uint64_t          bytes;
    unsigned          requests;
    unsigned          answers;
    unsigned          ads;
    unsigned          inits;
    unsigned          preloads;
} load_stamp_t;


static void load_options(int argc, char **argv);
static void load_target(char *spec);
static void load_streams(void);
static void load_loop(unsigned (*until)(void), unsigned ms);
static void load_timer(void);
static void load_arm(void);
static uint64_t load_cpu(load_target_t *t);
static uint64_t load_rss(load_target_t *t);
static void load_stamp(load_stamp_t *st, load_target_t *t);
static void load_report(const char *what, load_target_t *t, unsigned round,
    load_stamp_t *from, load_stamp_t *to);
static void load_delay(uint64_t from);
static int load_compare(const void *one, const void *two);
static void load_open(load_target_t *t);
static void load_relay(void);
static void load_relay_arrived(load_stream_t *s);
static void load_relay_send(load_stream_t *s);
static void load_chat(void);
static void load_chat_done(load_stream_t *s);
static void load_ttft(void);
static void load_hold(void);
static void load_probe(void);
static void load_nothing(load_stream_t *s);
static unsigned load_is_idle(void);
static unsigned load_has_arrived(void);


load_t        load;
load_hooks_t  load_hooks;
load_pool_t   load_pool;
char          load_buf[LOAD_READ];

static int            load_epoll;
static int            load_timerfd;
static uint64_t       load_idle;     /* ns that it spun */
static load_conn_t  **load_conns;
static unsigned       load_nconns;
static load_queue_t   load_tails;
static load_queue_t   load_ads;
static uint32_t       load_delays[LOAD_DELAYS];
static unsigned       load_ndelays;

/* the slice */

static load_target_t  *load_active;
static unsigned        load_running;
static unsigned        load_requests;
static unsigned        load_overtaken;
static unsigned        load_next;
static uint64_t        load_start;
static uint64_t        load_paced;


int
main(int argc, char **argv)
{
    struct rlimit  rl;

    load_options(argc, argv);

    if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
        rl.rlim_cur = rl.rlim_max;
        (void) setrlimit(RLIMIT_NOFILE, &rl);
    }

    (void) signal(SIGPIPE, SIG_IGN);
    (void) alarm(300);
    (void) prctl(PR_SET_PDEATHSIG, SIGKILL);

    setvbuf(stdout, NULL, _IOLBF, 0);

    load_epoll = epoll_create1(0);
    load_timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);

    if (load_epoll == -1 || load_timerfd == -1) {
        load_die("epoll", strerror(errno));
    }

    (void) load_conn(load_timerfd, NULL);

    sample_pool(&load_pool, load.format, load.samples);
    load_streams();

    backend_listen(load.backend_port);

    if (load.ad_port) {
        backend_listen(load.ad_port);
    }

    load_hooks.done = load_nothing;

    if (strcmp(load.mode, "relay") == 0) {
        load_relay();

    } else if (strcmp(load.mode, "chat") == 0) {
        load_chat();

    } else if (strcmp(load.mode, "ttft") == 0) {
        load_ttft();

    } else if (strcmp(load.mode, "hold") == 0) {
        load_hold();

    } else if (strcmp(load.mode, "probe") == 0) {
        load_probe();

    } else {
        load_die("no such mode", load.mode);
    }

    return 0;
}


static void
load_options(int argc, char **argv)
{
    int  c;

    load.mode = "relay";
    load.samples = "../shared/samples";
    load.format = sample_format("openai_chat");
    load.nstreams = 100;
    load.batch = 1;
    load.slice = 100;
    load.rounds = 5;
    load.events = 1;
    load.turns = 10;
    load.conversation = 1;

    while ((c = getopt(argc, argv, "m:S:l:a:A:f:n:b:r:t:k:s:e:d:C:F:N:w"))
           != -1)
    {
        switch (c) {

        case 'm':
            load.mode = optarg;
            break;

        case 'S':
            load.samples = optarg;
            break;

        case 'l':
            load.backend_port = atoi(optarg);
            break;

        case 'a':
            load.ad_port = atoi(optarg);
            break;

        case 'A':
            load.ad_delay = atoi(optarg);
            break;

        case 'f':
            load.format = sample_format(optarg);
            break;

        case 'n':
            load.nstreams = (unsigned) atoi(optarg);
            break;

        case 'b':
            load.batch = (unsigned) atoi(optarg);
            break;

        case 'w':
            load.spin = 1;
            break;

        case 'r':
            load.rate = (unsigned) atoi(optarg);
            break;

        case 't':
            load.slice = (unsigned) atoi(optarg);
            break;

        case 'k':
            load.rounds = (unsigned) atoi(optarg);
            break;

        case 's':
            load.size = (size_t) atol(optarg);
            break;

        case 'e':
            load.events = (unsigned) atoi(optarg);
            break;

        case 'd':
            load.delay = (unsigned) atoi(optarg);
            break;

        case 'C':
            load.turns = (unsigned) atoi(optarg);
            break;

        case 'F':
            load.conversation = (unsigned) atoi(optarg);
            break;

        case 'N':
            load.count = (unsigned) atoi(optarg);
            break;

        default:
            load_die("usage: see bench/load.c", "");
        }
    }

    while (optind < argc) {
        load_target(argv[optind++]);
    }

    if (load.ntargets == 0 || load.backend_port == 0 || load.nstreams == 0
        || load.events == 0 || load.events >= LOAD_POOL
        || load.batch == 0 || load.batch >= LOAD_POOL)
    {
        load_die("usage: see bench/load.c", "");
    }
}


static void
load_target(char *spec)
{
    char           *p;
    load_target_t  *t;

    p = strchr(spec, '=');

    if (p == NULL || load.ntargets == LOAD_TARGETS) {
        load_die("bad target", spec);
    }

    t = &load.targets[load.ntargets++];

    *p++ = '\0';
    t->name = spec;
    t->port = atoi(p);

    while ((p = strchr(p, ':')) != NULL && t->npids < LOAD_PIDS) {
        t->pids[t->npids++] = atoi(++p);
    }
}


static void
load_streams(void)
{
    unsigned        i, k;
    load_stream_t  *s;

    load.total = load.ntargets * load.nstreams;
    load.streams = calloc(load.total, sizeof(load_stream_t));

    if (load.streams == NULL) {
        load_die("no memory", "");
    }

    s = load.streams;

    for (i = 0; i < load.ntargets; i++) {
        load.targets[i].streams = s;

        for (k = 0; k < load.nstreams; k++, s++) {
            s->id = (unsigned) (s - load.streams);
            s->target = &load.targets[i];
            s->pos = sample_random(LOAD_POOL);
        }
    }
}


uint64_t
load_now(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000000 + (uint64_t) ts.tv_nsec;
}


load_conn_t *
load_conn(int fd, void (*handler)(load_conn_t *c))
{
    load_conn_t         *c;
    struct epoll_event   ee;

    static uint32_t  serial;

    while ((unsigned) fd >= load_nconns) {
        load_nconns = load_nconns ? load_nconns * 2 : 1024;
        load_conns = realloc(load_conns, load_nconns * sizeof(c));

        if (load_conns == NULL) {
            load_die("no memory", "");
        }

        memset(load_conns + load_nconns / 2, 0,
               load_nconns / 2 * sizeof(c));

        if (load_nconns == 1024) {
            memset(load_conns, 0, load_nconns * sizeof(c));
        }
    }

    c = calloc(1, sizeof(load_conn_t));
    if (c == NULL) {
        load_die("no memory", "");
    }

    c->fd = fd;
    c->serial = ++serial;
    c->read = handler;

    load_conns[fd] = c;

    (void) fcntl(fd, F_SETFL, O_NONBLOCK);

    ee.events = EPOLLIN;
    ee.data.fd = fd;

    if (epoll_ctl(load_epoll, EPOLL_CTL_ADD, fd, &ee) == -1) {
        load_die("epoll_ctl", strerror(errno));
    }

    return c;
}


void
load_close(load_conn_t *c)
{
    load_conns[c->fd] = NULL;
    (void) close(c->fd);
    free(c);
}


void
load_send(load_conn_t *c, const void *data, size_t len)
{
    if (len == 0) {
        return;
    }

    if (c->nout == LOAD_PIECES) {
        load_die("too much to send", "");
    }

    c->out[c->nout].iov_base = (void *) data;
    c->out[c->nout++].iov_len = len;
}


void
load_flush(load_conn_t *c)
{
    size_t              size;
    ssize_t             n;
    struct iovec       *v;
    struct epoll_event  ee;

    while (c->first < c->nout) {
        n = writev(c->fd, c->out + c->first, (int) (c->nout - c->first));

        if (n == -1) {

            if (errno == EAGAIN) {
                break;
            }

            /* its end will be read */

            c->first = c->nout;
            break;
        }

        while (n > 0) {
            v = &c->out[c->first];
            size = v->iov_len < (size_t) n ? v->iov_len : (size_t) n;

            v->iov_base = (char *) v->iov_base + size;
            v->iov_len -= size;
            n -= (ssize_t) size;

            c->first += (v->iov_len == 0);
        }
    }

    if (c->first == c->nout) {
        c->first = 0;
        c->nout = 0;
    }

    if (c->writing != (c->nout > 0)) {
        c->writing = (c->nout > 0);

        ee.events = EPOLLIN | (c->writing ? EPOLLOUT : 0);
        ee.data.fd = c->fd;

        (void) epoll_ctl(load_epoll, EPOLL_CTL_MOD, c->fd, &ee);
    }
}


/* the number of bytes in load_buf, 0 when the connection is at its end */

size_t
load_read(load_conn_t *c)
{
    ssize_t  n;

    do {
        n = read(c->fd, load_buf, LOAD_READ);
    } while (n == -1 && (errno == EINTR || errno == EAGAIN));

    return n > 0 ? (size_t) n : 0;
}


/* the ad, or the end of the answer, some milliseconds from now */

void
load_later(load_conn_t *c, unsigned ad, unsigned ms)
{
    load_later_t  *l;
    load_queue_t  *q;

    q = ad ? &load_ads : &load_tails;

    if (q->tail - q->head == LOAD_LATER) {
        load_die("too many answers to be sent later", "");
    }

    l = &q->q[q->tail++ % LOAD_LATER];
    l->due = load_now() + (uint64_t) ms * 1000000;
    l->serial = c->serial;
    l->fd = c->fd;

    load_arm();
}


/* the earliest of what is to be done later */

static void
load_arm(void)
{
    uint64_t           due;
    load_queue_t      *q;
    struct itimerspec  ts;

    static uint64_t  armed;

    due = 0;

    for (q = &load_tails; q; q = (q == &load_tails) ? &load_ads : NULL) {
        if (q->head != q->tail
            && (due == 0 || q->q[q->head % LOAD_LATER].due < due))
        {
            due = q->q[q->head % LOAD_LATER].due;
        }
    }

    if (load_running && load.rate) {
        due = load_start + (load_paced + 1) * 1000000000 / load.rate
              * load.batch;
    }

    if (due == armed) {
        return;
    }

    armed = due;

    memset(&ts, 0, sizeof(ts));
    ts.it_value.tv_sec = (time_t) (due / 1000000000);
    ts.it_value.tv_nsec = (long) (due % 1000000000);

    (void) timerfd_settime(load_timerfd, TFD_TIMER_ABSTIME, &ts, NULL);
}


static void
load_timer(void)
{
    uint64_t        n, now;
    load_conn_t    *c;
    load_later_t   *l;
    load_queue_t   *q;
    load_stream_t  *s;

    (void) (read(load_timerfd, &n, sizeof(n)) + 1);

    now = load_now();

    for (q = &load_tails; q; q = (q == &load_tails) ? &load_ads : NULL) {

        while (q->head != q->tail) {
            l = &q->q[q->head % LOAD_LATER];

            if (l->due > now) {
                break;
            }

            q->head++;

            c = load_conns[l->fd];

            if (c == NULL || c->serial != l->serial) {
                continue;
            }

            if (q == &load_ads) {
                backend_ad(c);

            } else {
                backend_tail(c->stream);
            }
        }
    }

    if (load_running && load.rate) {
        n = (now - load_start) * load.rate / load.batch / 1000000000;

        while (load_paced < n) {
            load_paced++;

            s = &load_active->streams[load_next++ % load.nstreams];

            if (s->got < s->sent) {
                load_overtaken++;
            }

            load_relay_send(s);
        }
    }

    load_arm();
}


/* until the condition, or for so many milliseconds without one */

static void
load_loop(unsigned (*until)(void), unsigned ms)
{
    int                 i, n, fd, wait;
    uint64_t            now, end;
    load_conn_t        *c;
    struct epoll_event  events[512];

    now = load_now();
    end = now + (uint64_t) ms * 1000000;

    while (until == NULL || !until()) {

        now = load_now();

        if (now >= end) {

            if (until) {
                load_die("waited in vain", load_active ? load_active->name
                                                       : "");
            }

            return;
        }

        wait = load.spin ? 0 : (int) ((end - now + 999999) / 1000000);

        n = epoll_wait(load_epoll, events, 512, wait);

        if (n == -1 && errno != EINTR) {
            load_die("epoll_wait", strerror(errno));
        }

        if (n == 0 && load.spin) {
            load_idle += load_now() - now;
        }

        for (i = 0; i < n; i++) {
            fd = events[i].data.fd;

            if (fd == load_timerfd) {
                load_timer();
                continue;
            }

            c = load_conns[fd];

            if (c && (events[i].events & EPOLLOUT)) {
                load_flush(c);
            }

            if (c && (events[i].events & ~(uint32_t) EPOLLOUT)) {
                c->read(c);
            }
        }
    }
}


static uint64_t
load_cpu(load_target_t *t)
{
    unsigned         i;
    uint64_t         cpu;
    clockid_t        clock;
    struct timespec  ts;

    cpu = 0;

    for (i = 0; i < t->npids; i++) {

        if (clock_getcpuclockid(t->pids[i], &clock) != 0
            || clock_gettime(clock, &ts) == -1)
        {
            load_die("a process is gone of", t->name);
        }

        cpu += (uint64_t) ts.tv_sec * 1000000000 + (uint64_t) ts.tv_nsec;
    }

    return cpu;
}


static uint64_t
load_rss(load_target_t *t)
{
    char      path[64], line[256];
    FILE     *f;
    unsigned  i;
    uint64_t  rss;

    rss = 0;

    for (i = 0; i < t->npids; i++) {
        sprintf(path, "/proc/%d/status", t->pids[i]);

        f = fopen(path, "r");
        if (f == NULL) {
            load_die("a process is gone of", t->name);
        }

        while (fgets(line, sizeof(line), f)) {
            if (strncmp(line, "RssAnon:", 8) == 0) {
                rss += strtoull(line + 8, NULL, 10);
            }
        }

        fclose(f);
    }

    return rss;
}


static void
load_stamp(load_stamp_t *st, load_target_t *t)
{
    struct timespec  ts;

    if (load.spin) {
        st->own = load_now() - load_idle;

    } else {
        (void) clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);

        st->own = (uint64_t) ts.tv_sec * 1000000000 + (uint64_t) ts.tv_nsec;
    }

    st->cpu = load_cpu(t);
    st->events = load.arrived;
    st->bytes = load.bytes;
    st->requests = load_requests;
    st->answers = t->answers;
    st->ads = t->ads;
    st->inits = load.inits;
    st->preloads = load.preloads;
    st->now = load_now();
}


static void
load_report(const char *what, load_target_t *t, unsigned round,
    load_stamp_t *from, load_stamp_t *to)
{
    unsigned  i, n, at;

    static const unsigned  parts[] = { 500, 900, 990, 999 };

    printf("%s target=%s round=%u wall=%lu cpu=%lu own=%lu events=%lu "
           "bytes=%lu answers=%u ads=%u inits=%u preloads=%u overtaken=%u",
           what, t->name, round, to->now - from->now, to->cpu - from->cpu,
           to->own - from->own, to->events - from->events,
           to->bytes - from->bytes, to->answers - from->answers,
           to->ads - from->ads, to->inits - from->inits,
           to->preloads - from->preloads, load_overtaken);

    n = load_ndelays < LOAD_DELAYS ? load_ndelays : LOAD_DELAYS;

    qsort(load_delays, n, sizeof(uint32_t), load_compare);

    for (i = 0; i < 4 && n; i++) {
        at = (unsigned) ((uint64_t) n * parts[i] / 1000);
        printf(" p%u=%u", parts[i], load_delays[at]);
    }

    printf("\n");
}


static int
load_compare(const void *one, const void *two)
{
    uint32_t  a, b;

    a = *(const uint32_t *) one;
    b = *(const uint32_t *) two;

    return (a > b) - (a < b);
}


static void
load_delay(uint64_t from)
{
    load_delays[load_ndelays++ % LOAD_DELAYS] = (uint32_t) (load_now() - from);
}


/* a stream each, with the first events there and the ad asked for */

static void
load_open(load_target_t *t)
{
    unsigned  i;

    load_active = t;

    for (i = 0; i < load.nstreams; i++) {
        client_connect(&t->streams[i]);
        client_ask(&t->streams[i]);

        /* not more of them at once than nginx can take */

        if (i % 64 == 63) {
            load_loop(load_has_arrived, LOAD_LIMIT);
        }
    }

    load_loop(load_has_arrived, LOAD_LIMIT);
}


static void
load_relay(void)
{
    unsigned        i, k, round;
    load_stamp_t    from, to;
    load_target_t  *t;

    for (i = 0; i < load.ntargets; i++) {
        load_open(&load.targets[i]);
    }

    load_loop(NULL, 200);

    load_hooks.arrived = load_relay_arrived;

    for (round = 0; round < load.rounds; round++) {

        for (i = 0; i < load.ntargets; i++) {

            /* in both directions */

            k = (round & 1) ? load.ntargets - 1 - i : i;
            t = &load.targets[k];

            load_active = t;
            load_running = 1;
            load_start = load_now();
            load_paced = 0;

            if (load.rate) {
                load_arm();

            } else {
                for (k = 0; k < load.nstreams; k++) {
                    load_relay_send(&t->streams[k]);
                }
            }

            load_loop(NULL, LOAD_WARM);

            load_overtaken = 0;
            load_ndelays = 0;

            load_stamp(&from, t);
            load_loop(NULL, load.slice);
            load_stamp(&to, t);

            load_running = 0;
            load_loop(load_has_arrived, LOAD_LIMIT);

            load_report("slice", t, round, &from, &to);
        }
    }

    load_hooks.arrived = NULL;

    for (i = 0; i < load.ntargets; i++) {
        t = &load.targets[i];
        load_active = t;

        for (k = 0; k < load.nstreams; k++) {
            backend_tail(&t->streams[k]);
        }

        load_loop(load_is_idle, LOAD_LIMIT);

        printf("end target=%s answers=%u ads=%u events=%lu\n", t->name,
               t->answers, t->ads, load.arrived);
    }
}


static void
load_relay_send(load_stream_t *s)
{
    backend_events(s, load.batch);
}


static void
load_relay_arrived(load_stream_t *s)
{
    load_delay(s->at);

    if (load_running && load.rate == 0) {
        load_relay_send(s);
    }
}


static void
load_chat(void)
{
    unsigned        i, k, round;
    load_stamp_t    from, to;
    load_target_t  *t;

    load.ends = 1;
    load_hooks.done = load_chat_done;

    for (i = 0; i < load.total; i++) {
        client_connect(&load.streams[i]);
    }

    for (round = 0; round < load.rounds; round++) {

        for (i = 0; i < load.ntargets; i++) {
            k = (round & 1) ? load.ntargets - 1 - i : i;
            t = &load.targets[k];

            load_active = t;
            load_running = 1;
            load_requests = 0;
            load_ndelays = 0;

            load_stamp(&from, t);

            for (k = 0; k < load.nstreams; k++) {
                if (load.count == 0 || load_requests < load.count) {
                    load_requests++;
                    client_ask(&t->streams[k]);
                }
            }

            if (load.count) {
                load_loop(load_is_idle, 280000);

            } else {
                load_loop(NULL, load.slice);
                load_running = 0;
                load_loop(load_is_idle, LOAD_LIMIT);
            }

            load_running = 0;

            /* ad calls that go on after the answer, and timers */

            load_stamp(&to, t);

            load_report("chats", t, round, &from, &to);
        }
    }
}


static void
load_chat_done(load_stream_t *s)
{
    load_delays[load_ndelays++ % LOAD_DELAYS] = (uint32_t)
                                                (s->first - s->asked);

    if (load_running && (load.count == 0 || load_requests < load.count)) {
        load_requests++;
        client_ask(s);
    }
}


static void
load_ttft(void)
{
    unsigned        i, k, round;
    load_stream_t  *s;

    load.ends = 1;

    for (i = 0; i < load.total; i++) {
        client_connect(&load.streams[i]);
    }

    for (round = 0; round < load.rounds; round++) {

        for (i = 0; i < load.ntargets; i++) {
            k = (round & 1) ? load.ntargets - 1 - i : i;

            load_active = &load.targets[k];
            s = &load_active->streams[0];

            client_ask(s);
            load_loop(load_is_idle, LOAD_LIMIT);
        }

        printf("ttft round=%u", round);

        for (i = 0; i < load.ntargets; i++) {
            s = &load.targets[i].streams[0];
            printf(" %s=%lu", load.targets[i].name, s->first - s->asked);
        }

        printf("\n");
    }

    for (i = 0; i < load.ntargets; i++) {
        printf("end target=%s answers=%u ads=%u\n", load.targets[i].name,
               load.targets[i].answers, load.targets[i].ads);
    }
}


static void
load_hold(void)
{
    unsigned        i;
    uint64_t        before, after;
    load_target_t  *t;

    for (i = 0; i < load.ntargets; i++) {
        t = &load.targets[i];

        before = load_rss(t);
        load_open(t);
        load_loop(NULL, 1000);
        after = load_rss(t);

        printf("memory target=%s streams=%u before=%lu after=%lu "
               "preloads=%u\n", t->name, load.nstreams, before, after,
               load.preloads);
    }
}


static void
load_probe(void)
{
    unsigned        n;
    load_stream_t  *s;

    load.ends = 1;
    load.turns = 1;
    load_active = &load.targets[0];

    s = &load.streams[0];
    client_connect(s);

    for (n = 0; load.conversation && n < load.count; n++) {
        client_ask(s);
        load_loop(load_is_idle, LOAD_LIMIT);

        if (!s->known) {
            break;
        }

        /* client_ask() has counted up */

        load.conversation -= 2;
    }

    printf("probe target=%s known=%u\n", load.targets[0].name, n);
}


static void
load_nothing(load_stream_t *s)
{
    (void) s;
}


static unsigned
load_is_idle(void)
{
    unsigned  i;

    for (i = 0; i < load.nstreams; i++) {
        if (load_active->streams[i].busy) {
            return 0;
        }
    }

    return 1;
}


static unsigned
load_has_arrived(void)
{
    unsigned        i;
    load_stream_t  *s;

    for (i = 0; i < load.nstreams; i++) {
        s = &load_active->streams[i];

        if (s->busy && (s->got < s->sent || s->got == 0)) {
            return 0;
        }
    }

    return 1;
}


void
load_die(const char *what, const char *more)
{
    fprintf(stderr, "load: %s: %s\n", what, more);
    exit(1);
}
