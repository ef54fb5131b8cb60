/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * OpenAI Responses, see dialect.h.
 */


#include "dialect.h"


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    static const char *const  paths[] = {
        "/v1/responses",
        NULL
    };

    return fuzz_dialect(&kx_openai_responses, paths, p, len);
}
