/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Anthropic Messages, see dialect.h.
 */


#include "dialect.h"


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    static const char *const  paths[] = {
        "/v1/messages",
        NULL
    };

    return fuzz_dialect(&kx_anthropic, paths, p, len);
}
