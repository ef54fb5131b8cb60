/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What has to hold, for the fuzzers.
 */


#ifndef _FUZZ_CHECK_H_INCLUDED_
#define _FUZZ_CHECK_H_INCLUDED_


#include <stdio.h>
#include <stdlib.h>


#define check(cond)                                                           \
    do {                                                                      \
        if (!(cond)) {                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);        \
            abort();                                                          \
        }                                                                     \
    } while (0)


#endif /* _FUZZ_CHECK_H_INCLUDED_ */
