/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Takes out of a text what nobody else is to see: e-mail addresses, telephone
 * numbers, numbers of payment cards, keys and tokens.  In place of each is
 * "[email]", "[phone]", "[card]" or "[key]".
 *
 * Found are the shapes that people write: addresses with their domain, also
 * in letters of other scripts and as %40 in a URL; numbers with a country
 * code or in the groups of their country, or any that a word such as "tel"
 * stands before, also in digits of other scripts; card numbers that a card of
 * their prefix and length may have and whose check digit is right; keys by
 * the prefixes that their makers gave them, tokens behind "Bearer",
 * "api_key=" and the like, JSON web tokens, and private keys in PEM.  What
 * only has digits, as dates, versions, prices and numbers of orders, stays.
 *
 * The time is linear in the length of the text, and short where there is not
 * even a digit.  Bytes that are not UTF-8 are no part of anything.
 */


#ifndef _KX_REDACT_H_INCLUDED_
#define _KX_REDACT_H_INCLUDED_


#include "kx.h"


#define KX_REDACT_EMAIL  1
#define KX_REDACT_PHONE  2
#define KX_REDACT_CARD   4
#define KX_REDACT_KEY    8
#define KX_REDACT_ALL    15


/*
 * kinds: some of KX_REDACT_*.  cut: the text was cut, so that its end is left
 * out if it may be the beginning of something.  *out is the text itself, or
 * part of it, if nothing was found: *copy is NULL then, or else what is to be
 * released with cJSON_free().  KX_OK or KX_ERROR (no memory).
 */
int kx_redact(kx_str_t *out, unsigned char **copy, const kx_str_t *text,
    unsigned kinds, unsigned cut);


#endif /* _KX_REDACT_H_INCLUDED_ */
