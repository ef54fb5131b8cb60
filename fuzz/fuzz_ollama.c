/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * Ollama, see dialect.h.
 */


#include "dialect.h"


int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);


int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    static const char *const  paths[] = {
        "/api/chat",
        "/api/generate",
        NULL
    };

    return fuzz_dialect(&kx_ollama, paths, p, len);
}
