/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "auxiliary.h"


static const kx_str_t  kx_auxiliaries[] = {

    /* Open WebUI: titles, tags, follow-ups, search queries, completions */
    kx_string("### Task: "),

    /* LibreChat: titles */
    kx_string("Please generate a concise, 5-word-or-less title for the"),
    kx_string("Provide a concise, 5-word-or-less title for the"),
    kx_string("Analyze this conversation and provide: 1. The detected"),

    /* Claude Code: titles */
    kx_string("Please write a 5-10 word title for the following"),

    /* others, after the same fashion */
    kx_string("Generate a concise, 3-5 word title"),
    kx_string("Create a concise, 3-5 word title"),
    kx_string("Create a concise, 3-5 word phrase"),

    kx_string("")
};


unsigned
kx_auxiliary(const unsigned char *p, size_t len)
{
    const kx_str_t  *s;

    for (s = kx_auxiliaries; s->len; s++) {
        if (len >= s->len && memcmp(p, s->data, s->len) == 0) {
            return 1;
        }
    }

    return 0;
}
