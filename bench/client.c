/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The clients: send chats, read streams, count their events.
 */


#include <errno.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "load.h"


#define CLIENT_HEAD   0
#define CLIENT_SIZE   1
#define CLIENT_DATA   2
#define CLIENT_END    3              /* the line end after a chunk */
#define CLIENT_LAST   4              /* and after the last one */


static void client_read(load_conn_t *c);
static char *client_head(load_conn_t *c, char *p, char *last);
static void client_data(load_conn_t *c, char *p, char *last);
static void client_add(load_stream_t *s, const char *text);
static void client_append(load_stream_t *s, const char *data, size_t len);


static load_str_t  client_history;


void
client_connect(load_stream_t *s)
{
    int                 fd, on;
    struct sockaddr_in  sin;

    fd = socket(AF_INET, SOCK_STREAM, 0);
    on = 1;

    memset(&sin, 0, sizeof(sin));
    sin.sin_family = AF_INET;
    sin.sin_port = htons((uint16_t) s->target->port);
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

    if (fd == -1
        || connect(fd, (struct sockaddr *) &sin, sizeof(sin)) == -1)
    {
        load_die("cannot connect", strerror(errno));
    }

    (void) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));

    s->client = load_conn(fd, client_read);
    s->client->stream = s;
}


void
client_ask(load_stream_t *s)
{
    char         text[128];
    size_t       len;
    unsigned     i;
    load_str_t  *said;

    if (client_history.data == NULL) {
        client_history = load.size ? sample_history(load.size)
                                   : sample_request(load.format,
                                                    load.samples);
    }

    if (s->conversation == 0 || s->turn == load.turns) {
        s->conversation = load.conversation++;
        s->turn = 0;
        s->more_len = 0;
    }

    s->turn++;

    if (load.size) {

        if (s->turn == 1) {

            /* the same chat never comes twice */

            client_append(s, client_history.data, client_history.len);
            sample_mark(s->more, s->more_len, s->conversation);

            client_add(s, ",{\"role\":\"user\",\"content\":\"");

        } else {
            s->more_len -= 2;
            client_add(s, ",{\"role\":\"assistant\",\"content\":\"");

            for (i = 0; i < load.events; i++) {
                said = &load_pool.text[s->said + i];
                client_append(s, said->data, said->len);
            }

            client_add(s, "\"},{\"role\":\"user\",\"content\":\"");
        }

        sprintf(text, "Question %u of chat %u: which ones, then?\"}]}",
                s->turn, s->conversation);
        client_add(s, text);
    }

    len = load.size ? s->more_len : client_history.len;

    sprintf(s->request,
            "POST %ss=%u HTTP/1.1\r\n"
            "Host: chat.example.com\r\n"
            "Content-Type: application/json\r\n"
            "Accept: application/json\r\n"
            "User-Agent: OpenAI/JS 6.9.1\r\n"
            "Authorization: Bearer sk-proj-0123456789abcdef\r\n"
            "X-Conversation-Id: c-%u\r\n"
            "Content-Length: %zu\r\n\r\n",
            load.format->path, s->id, s->conversation, len);

    s->busy = 1;
    s->tail = 0;
    s->ad = 0;
    s->known = 0;
    s->got = 0;
    s->sent = 0;
    s->first = 0;

    s->client->state = CLIENT_HEAD;
    s->client->head_len = 0;
    s->client->nl = 0;
    s->client->match = 0;

    s->asked = load_now();

    load_send(s->client, s->request, strlen(s->request));

    if (load.size) {
        load_send(s->client, s->more, s->more_len);

    } else {
        load_send(s->client, client_history.data, client_history.len);
    }

    load_flush(s->client);
}


static void
client_add(load_stream_t *s, const char *text)
{
    client_append(s, text, strlen(text));
}


static void
client_append(load_stream_t *s, const char *data, size_t len)
{
    if (s->more_len + len > s->more_size) {
        s->more_size = (s->more_len + len) * 2;
        s->more = realloc(s->more, s->more_size);

        if (s->more == NULL) {
            load_die("no memory", "");
        }
    }

    memcpy(s->more + s->more_len, data, len);
    s->more_len += len;
}


static void
client_read(load_conn_t *c)
{
    char           *p, *last;
    size_t          n;
    uint64_t        got;
    load_stream_t  *s;

    s = c->stream;
    got = s->got;

    n = load_read(c);

    if (n == 0) {
        load_die("a connection was closed by", s->target->name);
    }

    load.bytes += n;

    p = load_buf;
    last = p + n;

    if (!s->busy) {
        load_die("an answer without a question from", s->target->name);
    }

    if (c->state == CLIENT_HEAD) {
        p = client_head(c, p, last);
    }

    while (p < last) {

        switch (c->state) {

        case CLIENT_SIZE:
            if (*p == '\n') {
                c->state = c->rest ? CLIENT_DATA : CLIENT_LAST;

            } else if (*p >= '0' && *p <= '9') {
                c->rest = c->rest * 16 + (uint64_t) (*p - '0');

            } else if (*p >= 'a' && *p <= 'f') {
                c->rest = c->rest * 16 + (uint64_t) (*p - 'a' + 10);

            } else if (*p >= 'A' && *p <= 'F') {
                c->rest = c->rest * 16 + (uint64_t) (*p - 'A' + 10);

            } else if (*p != '\r') {
                load_die("bad chunk from", s->target->name);
            }

            p++;
            break;

        case CLIENT_DATA:
            n = (size_t) (last - p) < c->rest ? (size_t) (last - p)
                                              : (size_t) c->rest;
            client_data(c, p, p + n);

            p += n;
            c->rest -= n;

            if (c->rest == 0) {
                c->state = CLIENT_END;
            }

            break;

        case CLIENT_END:
            if (*p++ == '\n') {
                c->state = CLIENT_SIZE;
            }

            break;

        default: /* CLIENT_LAST */
            if (*p++ == '\n') {

                if (p != last || s->got < s->sent || !s->tail) {
                    load_die("a cut answer from", s->target->name);
                }

                s->busy = 0;
                s->target->answers++;
                s->target->ads += s->ad;
            }
        }
    }

    if (s->first == 0 && s->got > load_pool.nhead) {
        s->first = load_now();
    }

    if (!s->busy) {
        load_hooks.done(s);

    } else if (s->got != got && s->got >= s->sent && !s->tail
               && load_hooks.arrived)
    {
        load_hooks.arrived(s);
    }
}


static char *
client_head(load_conn_t *c, char *p, char *last)
{
    char    *end, *known;
    size_t   n, len;

    n = (size_t) (last - p);
    len = n < LOAD_HEAD - 1 - c->head_len ? n : LOAD_HEAD - 1 - c->head_len;

    memcpy(c->head + c->head_len, p, len);
    c->head[c->head_len + len] = '\0';

    end = strstr(c->head, "\r\n\r\n");

    if (end == NULL) {

        if (len < n) {
            load_die("too large a head", c->head);
        }

        c->head_len += len;
        return last;
    }

    end += 4;
    p += (size_t) (end - c->head) - c->head_len;
    *end = '\0';

    if (strncmp(c->head, "HTTP/1.1 200", 12) != 0
        || strcasestr(c->head, "\r\nTransfer-Encoding: chunked\r\n") == NULL)
    {
        load_die("unexpected answer", c->head);
    }

    known = strcasestr(c->head, "\r\nX-Kontext-Session: ");
    c->stream->known = (known
                        && known[sizeof("\r\nX-Kontext-Session: ") - 1]
                           != '\r');

    c->rest = 0;
    c->state = CLIENT_SIZE;

    return p;
}


static void
client_data(load_conn_t *c, char *p, char *last)
{
    char           *nl;
    load_stream_t  *s;

    static const char  word[] = "kontext";

    s = c->stream;

    if (s->tail && !s->ad) {
        for (nl = p; nl < last && !s->ad; nl++) {
            c->match = (*nl == word[c->match]) ? c->match + 1 : *nl == 'k';
            s->ad = (c->match == sizeof(word) - 1);
        }
    }

    if (load.format->end[1] == '\0') {

        while ((nl = memchr(p, '\n', (size_t) (last - p))) != NULL) {
            load.arrived++;
            s->got++;
            p = nl + 1;
        }

        return;
    }

    while (p < last) {

        if (c->nl) {

            if (*p == '\r') {
                p++;
                continue;
            }

            c->nl = 0;

            if (*p == '\n') {
                load.arrived++;
                s->got++;
                p++;
                continue;
            }
        }

        nl = memchr(p, '\n', (size_t) (last - p));

        if (nl == NULL) {
            break;
        }

        c->nl = 1;
        p = nl + 1;
    }
}
