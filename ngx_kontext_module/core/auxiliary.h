/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Front ends ask the model questions of their own, for a title, for tags, for
 * what the user might ask next.  They look like a user's turn and are none
 * (chat-apis.md 11).
 */


#ifndef _KX_AUXILIARY_H_INCLUDED_
#define _KX_AUXILIARY_H_INCLUDED_


#include "kx.h"


#define KX_AUXILIARY_LEN  64         /* bytes that are looked at */


/*
 * Does a user's message, of whose canonical text p has the first len bytes,
 * KX_AUXILIARY_LEN if there are as many, begin as such a question does?
 */
unsigned kx_auxiliary(const unsigned char *p, size_t len);


#endif /* _KX_AUXILIARY_H_INCLUDED_ */
