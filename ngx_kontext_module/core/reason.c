/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "reason.h"


static const kx_str_t  kx_reasons[] = {
    kx_string(""),

    kx_string("method"),
    kx_string("content_type"),
    kx_string("encoded_body"),
    kx_string("no_body"),
    kx_string("large_body"),
    kx_string("bad_body"),
    kx_string("unknown_format"),
    kx_string("no_user_turn"),
    kx_string("auxiliary"),
    kx_string("json_mode"),
    kx_string("forced_tools"),
    kx_string("no_publisher_token"),
    kx_string("no_session"),
    kx_string("session_disabled"),
    kx_string("no_memory"),
    kx_string("consent"),
    kx_string("breaker_open"),
    kx_string("ad_calls_busy"),

    kx_string("response_status"),
    kx_string("response_type"),
    kx_string("encoded_response"),
    kx_string("large_response"),
    kx_string("error_frame"),
    kx_string("finish_reason"),
    kx_string("refusal"),
    kx_string("tool_calls"),
    kx_string("no_text"),
    kx_string("no_finish_marker"),
    kx_string("no_place"),
    kx_string("late"),
    kx_string("superseded"),
    kx_string("large_ad"),

    kx_string("track_only"),
    kx_string("inject_none")
};


const kx_str_t *
kx_reason_name(kx_reason_e reason)
{
    return &kx_reasons[reason];
}
