/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The chat backend and the ad server: HTTP/1.1 with kept connections.
 */


#include <errno.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "load.h"


#define BACKEND_HEAD  0
#define BACKEND_BODY  1


static void backend_accept(load_conn_t *l);
static void backend_read(load_conn_t *c);
static void backend_request(load_conn_t *c);
static void backend_chat(load_conn_t *c, const char *id);


void
backend_listen(int port)
{
    int                 fd, on;
    struct sockaddr_in  sin;

    fd = socket(AF_INET, SOCK_STREAM|SOCK_NONBLOCK, 0);
    on = 1;

    memset(&sin, 0, sizeof(sin));
    sin.sin_family = AF_INET;
    sin.sin_port = htons((uint16_t) port);
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

    if (fd == -1
        || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == -1
        || bind(fd, (struct sockaddr *) &sin, sizeof(sin)) == -1
        || listen(fd, 4096) == -1)
    {
        load_die("cannot listen", strerror(errno));
    }

    (void) load_conn(fd, backend_accept);
}


static void
backend_accept(load_conn_t *l)
{
    int  fd, on;

    on = 1;

    while ((fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK)) != -1) {
        (void) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void) load_conn(fd, backend_read);
    }

    if (errno != EAGAIN && errno != ECONNABORTED) {
        load_die("accept", strerror(errno));
    }
}


static void
backend_read(load_conn_t *c)
{
    char    *p, *end, *length;
    size_t   n, len;

    n = load_read(c);

    if (n == 0) {

        /* nginx has closed it */

        if (c->stream && c->stream->backend == c) {
            c->stream->backend = NULL;
        }

        load_close(c);
        return;
    }

    p = load_buf;

    if (c->state == BACKEND_HEAD) {
        len = n < LOAD_HEAD - 1 - c->head_len ? n
                                              : LOAD_HEAD - 1 - c->head_len;
        memcpy(c->head + c->head_len, p, len);
        c->head[c->head_len + len] = '\0';

        end = strstr(c->head, "\r\n\r\n");

        if (end == NULL) {
            c->head_len += len;

            if (len < n) {
                load_die("too large a head", c->head);
            }

            return;
        }

        end += 4;
        n -= (size_t) (end - c->head) - c->head_len;
        *end = '\0';

        length = strcasestr(c->head, "\r\nContent-Length:");
        if (length == NULL) {
            load_die("a request without a length", c->head);
        }

        c->rest = strtoull(length + sizeof("\r\nContent-Length:") - 1,
                           NULL, 10);
        c->state = BACKEND_BODY;
    }

    if (n > c->rest) {
        load_die("more than the request", c->head);
    }

    c->rest -= n;

    if (c->rest == 0) {
        c->state = BACKEND_HEAD;
        c->head_len = 0;

        backend_request(c);
    }
}


static void
backend_request(load_conn_t *c)
{
    char  *path, *end, *id;

    static const char  none[] = "HTTP/1.1 204 No Content\r\n\r\n";

    path = strchr(c->head, ' ');
    end = path ? strpbrk(path + 1, " \r") : NULL;

    if (end == NULL) {
        load_die("bad request", c->head);
    }

    *end = '\0';

    c->last = (strcasestr(end + 1, "\r\nConnection: close\r\n") != NULL);

    id = strstr(path, "s=");

    if (id) {
        backend_chat(c, id + 2);
        return;
    }

    if (end - path >= 7 && strcmp(end - 7, "/mirror") == 0) {
        load_send(c, none, sizeof(none) - 1);
        load_flush(c);
        return;
    }

    if (end - path >= 5 && strcmp(end - 5, "/init") == 0) {
        load.inits++;

    } else {
        load.preloads++;
    }

    if (load.ad_delay == 0) {
        backend_ad(c);

    } else if (load.ad_delay > 0) {
        load_later(c, 1, (unsigned) load.ad_delay);
    }
}


void
backend_ad(load_conn_t *c)
{
    static const char  answer[] =
        "{\"enabled\":true,\"preloadTimeout\":16000,"
        "\"sessionId\":\"0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913\","
        "\"bids\":[{\"bidId\":\"7c9e6679-7425-40de-944b-e07fc1f90ae7\","
        "\"code\":\"inlineAd\",\"revenue\":0.0042}]}";

    static char  head[256];

    if (head[0] == '\0') {
        sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                "Content-Length: %zu\r\n\r\n", sizeof(answer) - 1);
    }

    load_send(c, head, strlen(head));
    load_send(c, answer, sizeof(answer) - 1);
    load_flush(c);

    if (c->last) {
        load_close(c);
    }
}


static void
backend_chat(load_conn_t *c, const char *id)
{
    unsigned        n;
    load_stream_t  *s;

    static char  head[256];

    if (head[0] == '\0') {
        sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\n"
                "Cache-Control: no-cache\r\n"
                "X-Request-Id: req_9f2cQ1x9ZbT7mW3Y5kLp\r\n"
                "Transfer-Encoding: chunked\r\n\r\n", load.format->type);
    }

    n = (unsigned) atoi(id);

    if (n >= load.total) {
        load_die("no such stream", id);
    }

    s = &load.streams[n];
    s->backend = c;
    c->stream = s;

    load_send(c, head, strlen(head));
    load_send(c, load_pool.head.data, load_pool.head.len);

    s->sent = load_pool.nhead;

    backend_events(s, load.events);

    if (load.ends) {

        if (load.delay) {
            load_later(c, 0, load.delay);

        } else {
            backend_tail(s);
        }
    }
}


void
backend_events(load_stream_t *s, unsigned n)
{
    if (s->backend == NULL) {
        load_die("the backend's connection was closed", s->target->name);
    }

    if (s->pos + n > LOAD_POOL) {
        s->pos = 0;
    }

    load_send(s->backend, load_pool.events + load_pool.at[s->pos],
              load_pool.at[s->pos + n] - load_pool.at[s->pos]);

    if (s->sent == load_pool.nhead) {
        s->said = s->pos;
    }

    s->pos += n;
    s->sent += n;
    s->at = load_now();

    load_flush(s->backend);
}


void
backend_tail(load_stream_t *s)
{
    if (s->backend == NULL) {
        load_die("the backend's connection was closed", s->target->name);
    }

    s->tail = 1;
    s->sent += load_pool.ntail;

    load_send(s->backend, load_pool.tail.data, load_pool.tail.len);
    load_flush(s->backend);
}
