/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * The AI SDK'\''s user interface, see dialect.h.
 */


#include "dialect.h"


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    static const char *const  paths[] = {
        "/api/chat",
        NULL
    };

    return fuzz_dialect(&kx_ai_sdk_ui, paths, p, len);
}
