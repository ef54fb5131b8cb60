/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The content of a message: a string, or an array of parts some of which are
 * text.
 */


#ifndef _KX_CONTENT_H_INCLUDED_
#define _KX_CONTENT_H_INCLUDED_


#include "json_scan.h"


/*
 * Gives the decoded text of raw content, a value that was scanned, to the
 * sink, its parts joined with LF.  A part is text if it has a string "text"
 * and its "type" is one of types, a list that ends with an empty string.  All
 * else is nothing.
 */
void kx_content_text(const kx_str_t *content, const kx_str_t *types,
    kx_sink_pt sink, void *data);


#endif /* _KX_CONTENT_H_INCLUDED_ */
