/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the client's own headers tell about its device (protocol.md 3.6 and
 * 3.8).
 */


#ifndef _KX_DEVICE_H_INCLUDED_
#define _KX_DEVICE_H_INCLUDED_


#include "protocol.h"


/* header values as they came; an absent header is an empty string */

typedef struct {
    kx_str_t  user_agent;
    kx_str_t  accept_language;
    kx_str_t  ua_platform;           /* Sec-CH-UA-Platform */
    kx_str_t  ua_platform_version;   /* Sec-CH-UA-Platform-Version */
    kx_str_t  ua_mobile;             /* Sec-CH-UA-Mobile */
    kx_str_t  color_scheme;          /* Sec-CH-Prefers-Color-Scheme */
    kx_str_t  dpr;                   /* Sec-CH-DPR */
    kx_str_t  width;                 /* Sec-CH-Viewport-Width */
    kx_str_t  height;                /* Sec-CH-Viewport-Height */
} kx_device_headers_t;


/*
 * Fills in a device.  Strings point into the headers or to constants.  The
 * client hints win over the User-Agent.  Members that nothing tells get what
 * a required member needs (protocol.md 3.6): type "desktop" for an unknown
 * agent with a browser's name and "other" else, os "web", version "", locale
 * "en-US", timezone "UTC", width and height 0, dpr 1, dark 0.
 */
void kx_device_detect(kx_device_t *d, const kx_device_headers_t *h);


#endif /* _KX_DEVICE_H_INCLUDED_ */
