/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * For the tests: sends a file as a backend would stream it, in pieces that
 * the request names.  Its suffix tells the type: .sse, .ndjson, .json.
 *
 *     location /v1/chat/completions {
 *         chop  $document_root/sample.sse;
 *     }
 *
 *     POST /v1/chat/completions?at=17    two pieces, the first of 17 bytes
 *     POST /v1/chat/completions?size=3   pieces of 3 bytes
 *
 * Each piece is memory of its own that is overwritten and freed as soon as
 * the filters have consumed it: whoever keeps a pointer into it is found out.
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


typedef struct {
    ngx_http_complex_value_t  *file;
} ngx_http_chop_loc_conf_t;


static ngx_int_t ngx_http_chop_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_chop_read(ngx_http_request_t *r, ngx_str_t *path,
    ngx_str_t *text);
static void ngx_http_chop_type(ngx_http_request_t *r, ngx_str_t *path);
static size_t ngx_http_chop_arg(ngx_http_request_t *r, char *name);
static ngx_int_t ngx_http_chop_send(ngx_http_request_t *r, u_char *p,
    size_t len);
static void ngx_http_chop_cleanup(void *data);
static char *ngx_http_chop(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static void *ngx_http_chop_create_loc_conf(ngx_conf_t *cf);


static ngx_command_t  ngx_http_chop_commands[] = {

    { ngx_string("chop"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_chop,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_chop_loc_conf_t, file),
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_chop_module_ctx = {
    NULL,                                  /* preconfiguration */
    NULL,                                  /* postconfiguration */

    NULL,                                  /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_chop_create_loc_conf,         /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_chop_module = {
    NGX_MODULE_V1,
    &ngx_http_chop_module_ctx,             /* module context */
    ngx_http_chop_commands,                /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_chop_handler(ngx_http_request_t *r)
{
    size_t                     at, size, len, n;
    ngx_int_t                  rc;
    ngx_str_t                  path, text;
    ngx_http_chop_loc_conf_t  *clcf;

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_chop_module);

    if (ngx_http_complex_value(r, clcf->file, &path) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_chop_read(r, &path, &text);
    if (rc != NGX_OK) {
        return rc;
    }

    at = ngx_http_chop_arg(r, "at");
    size = ngx_http_chop_arg(r, "size");

    r->headers_out.status = NGX_HTTP_OK;
    ngx_http_chop_type(r, &path);

    rc = ngx_http_send_header(r);
    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    for (len = 0; len < text.len; len += n) {
        n = text.len - len;

        if (size && n > size) {
            n = size;

        } else if (at > len && at - len < n) {
            n = at - len;
        }

        if (ngx_http_chop_send(r, text.data + len, n) == NGX_ERROR) {
            return NGX_ERROR;
        }
    }

    return ngx_http_send_special(r, NGX_HTTP_LAST);
}


static ngx_int_t
ngx_http_chop_read(ngx_http_request_t *r, ngx_str_t *path, ngx_str_t *text)
{
    u_char           *name;
    ssize_t           n;
    ngx_file_t        file;
    ngx_file_info_t   fi;

    name = ngx_pnalloc(r->pool, path->len + 1);
    if (name == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_cpystrn(name, path->data, path->len + 1);

    ngx_memzero(&file, sizeof(ngx_file_t));
    file.name = *path;
    file.log = r->connection->log;

    file.fd = ngx_open_file(name, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (file.fd == NGX_INVALID_FILE) {
        ngx_log_error(NGX_LOG_CRIT, r->connection->log, ngx_errno,
                      ngx_open_file_n " \"%s\" failed", name);
        return NGX_HTTP_NOT_FOUND;
    }

    n = NGX_ERROR;

    if (ngx_fd_info(file.fd, &fi) != NGX_FILE_ERROR) {
        text->len = (size_t) ngx_file_size(&fi);
        text->data = ngx_pnalloc(r->pool, text->len);

        if (text->data) {
            n = ngx_read_file(&file, text->data, text->len, 0);
        }
    }

    ngx_close_file(file.fd);

    return (n == (ssize_t) text->len) ? NGX_OK
                                      : NGX_HTTP_INTERNAL_SERVER_ERROR;
}


static void
ngx_http_chop_type(ngx_http_request_t *r, ngx_str_t *path)
{
    ngx_str_t  *type;

    type = &r->headers_out.content_type;

    if (path->len > 7
        && ngx_strncmp(path->data + path->len - 7, ".ndjson", 7) == 0)
    {
        ngx_str_set(type, "application/x-ndjson");

    } else if (path->len > 5
               && ngx_strncmp(path->data + path->len - 5, ".json", 5) == 0)
    {
        ngx_str_set(type, "application/json");

    } else {
        ngx_str_set(type, "text/event-stream");
    }

    r->headers_out.content_type_len = type->len;
}


static size_t
ngx_http_chop_arg(ngx_http_request_t *r, char *name)
{
    ngx_int_t  n;
    ngx_str_t  value;

    if (ngx_http_arg(r, (u_char *) name, ngx_strlen(name), &value) != NGX_OK) {
        return 0;
    }

    n = ngx_atoi(value.data, value.len);

    return (n == NGX_ERROR) ? 0 : (size_t) n;
}


static ngx_int_t
ngx_http_chop_send(ngx_http_request_t *r, u_char *p, size_t len)
{
    u_char              *copy;
    ngx_buf_t           *b;
    ngx_int_t            rc;
    ngx_chain_t         *cl;
    ngx_pool_cleanup_t  *cln;

    cl = ngx_alloc_chain_link(r->pool);
    b = ngx_calloc_buf(r->pool);
    copy = ngx_alloc(len, r->connection->log);

    if (cl == NULL || b == NULL || copy == NULL) {
        ngx_free(copy);
        return NGX_ERROR;
    }

    ngx_memcpy(copy, p, len);

    b->start = copy;
    b->pos = copy;
    b->last = copy + len;
    b->end = b->last;
    b->temporary = 1;
    b->flush = 1;

    cl->buf = b;
    cl->next = NULL;

    rc = ngx_http_output_filter(r, cl);

    if (b->pos == b->last) {
        ngx_memset(copy, '#', len);
        ngx_free(copy);

    } else {

        /* the client is slow: the memory is still needed */

        cln = ngx_pool_cleanup_add(r->pool, 0);
        if (cln == NULL) {
            return NGX_ERROR;
        }

        cln->handler = ngx_http_chop_cleanup;
        cln->data = copy;
    }

    return rc;
}


static void
ngx_http_chop_cleanup(void *data)
{
    ngx_free(data);
}


static char *
ngx_http_chop(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char                      *rv;
    ngx_http_core_loc_conf_t  *clcf;

    rv = ngx_http_set_complex_value_slot(cf, cmd, conf);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_chop_handler;

    return NGX_CONF_OK;
}


static void *
ngx_http_chop_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_chop_loc_conf_t  *clcf;

    clcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_chop_loc_conf_t));
    if (clcf == NULL) {
        return NULL;
    }

    clcf->file = NULL;

    return clcf;
}
