/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Google Gemini, see dialect.h.
 */


#include "dialect.h"


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    static const char *const  paths[] = {
        "/v1beta/models/m:streamGenerateContent",
        "/v1beta/models/m:generateContent",
        "/v1beta/models/m:countTokens",
        NULL
    };

    return fuzz_dialect(&kx_gemini, paths, p, len);
}
