/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Why no ad was asked for, or none was put in (design.md 3.4).  The names are
 * the values of $kontext_reason.
 */


#ifndef _KX_REASON_H_INCLUDED_
#define _KX_REASON_H_INCLUDED_


#include "kx.h"


typedef enum {
    KX_REASON_NONE = 0,

    /* seen in the request: nothing is asked */
    KX_REASON_METHOD,
    KX_REASON_CONTENT_TYPE,
    KX_REASON_ENCODED_BODY,
    KX_REASON_NO_BODY,
    KX_REASON_LARGE_BODY,
    KX_REASON_BAD_BODY,
    KX_REASON_FORMAT,
    KX_REASON_NO_USER_TURN,
    KX_REASON_AUXILIARY,
    KX_REASON_JSON_MODE,
    KX_REASON_FORCED_TOOLS,
    KX_REASON_NO_TOKEN,
    KX_REASON_NO_SESSION,
    KX_REASON_DISABLED,
    KX_REASON_NO_MEMORY,
    KX_REASON_CONSENT,
    KX_REASON_BREAKER,
    KX_REASON_BUSY,

    /* seen in the answer: nothing is put in */
    KX_REASON_STATUS,
    KX_REASON_RESPONSE_TYPE,
    KX_REASON_ENCODED_RESPONSE,
    KX_REASON_LARGE_RESPONSE,
    KX_REASON_ERROR_FRAME,
    KX_REASON_FINISH_REASON,
    KX_REASON_REFUSAL,
    KX_REASON_TOOL_CALLS,
    KX_REASON_NO_TEXT,
    KX_REASON_NO_FINISH,
    KX_REASON_NO_PLACE,
    KX_REASON_LATE,
    KX_REASON_SUPERSEDED,
    KX_REASON_LARGE_AD,

    /* by configuration */
    KX_REASON_TRACK_ONLY,
    KX_REASON_SHADOW
} kx_reason_e;

#define KX_REASONS  (KX_REASON_SHADOW + 1)


/* The name of a reason, a constant; "" for KX_REASON_NONE. */
const kx_str_t *kx_reason_name(kx_reason_e reason);


#endif /* _KX_REASON_H_INCLUDED_ */
