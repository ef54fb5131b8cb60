/*
 * Copyright (C) the ngx_http_kontext_module authors
 */


#include "content.h"


static unsigned kx_content_part(kx_json_t *j, const kx_str_t *types,
    kx_str_t *text);


void
kx_content_text(const kx_str_t *content, const kx_str_t *types,
    kx_sink_pt sink, void *data)
{
    unsigned     parts;
    kx_str_t     raw;
    kx_json_t    j;
    kx_decode_t  decode;

    if (content->len == 0) {
        return;
    }

    kx_json_init(&j, content->data, content->len);
    kx_decode_init(&decode);

    switch (kx_json_type(&j)) {

    case KX_JSON_STRING:

        raw = *content;

        if (raw.data[0] != '"' || raw.len < 2
            || raw.data[raw.len - 1] != '"')
        {

            /* with white space around it */

            if (kx_json_string(&j, &raw) != KX_OK) {
                return;
            }

        } else {
            raw.data++;
            raw.len -= 2;
        }

        kx_decode(&decode, &raw, sink, data);
        kx_decode_finish(&decode, sink, data);

        break;

    case KX_JSON_ARRAY:

        if (kx_json_enter(&j) != KX_OK) {
            return;
        }

        parts = 0;

        while (kx_json_element(&j) == KX_OK) {

            if (!kx_content_part(&j, types, &raw)) {
                continue;
            }

            if (parts++) {
                sink(data, (unsigned char *) "\n", 1);
            }

            kx_decode(&decode, &raw, sink, data);
            kx_decode_finish(&decode, sink, data);
        }

        break;

    default:
        break;
    }
}


/* consumes a part; is it one of text? */

static unsigned
kx_content_part(kx_json_t *j, const kx_str_t *types, kx_str_t *text)
{
    int              rc;
    unsigned         is_text, has_text;
    kx_str_t         key, raw;
    const kx_str_t  *type;

    if (kx_json_type(j) != KX_JSON_OBJECT) {
        (void) kx_json_skip(j, NULL);
        return 0;
    }

    if (kx_json_enter(j) != KX_OK) {
        return 0;
    }

    is_text = 0;
    has_text = 0;

    while ((rc = kx_json_member(j, &key)) == KX_OK) {

        if (kx_json_type(j) != KX_JSON_STRING) {
            rc = kx_json_skip(j, NULL);

        } else if (kx_json_is(&key, "type")) {
            rc = kx_json_string(j, &raw);

            if (rc == KX_OK) {
                is_text = 0;

                for (type = types; type->len; type++) {
                    is_text |= (unsigned) kx_json_equal(&raw,
                                      (const char *) type->data, type->len);
                }
            }

        } else if (kx_json_is(&key, "text")) {
            rc = kx_json_string(j, text);
            has_text = (rc == KX_OK);

        } else {
            rc = kx_json_skip(j, NULL);
        }

        if (rc != KX_OK) {
            return 0;
        }
    }

    return rc == KX_DONE && is_text && has_text;
}
