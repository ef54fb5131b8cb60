/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the frames of an answer say: its dialect reads them, finds the finish
 * and the places of the ad in it.
 */


#include "ngx_http_kontext.h"


static void ngx_http_kontext_answer_places(ngx_http_kontext_ctx_t *ctx,
    const u_char *p, size_t len, const kx_frame_t *fr);
static ngx_int_t ngx_http_kontext_answer_id(ngx_http_kontext_ctx_t *ctx);


ngx_int_t
ngx_http_kontext_answer_open(ngx_http_kontext_ctx_t *ctx,
    kx_framing_e framing)
{
    kx_form_e  form;

    form = (ctx->conf->inject == NGX_HTTP_KONTEXT_INJECT_TEXT)
           ? KX_FORM_TEXT : KX_FORM_MEMBER;

    if (kx_answer_init(&ctx->answer, &ctx->cv, framing, form) != KX_OK) {
        return NGX_ERROR;
    }

    kx_framer_init(&ctx->framer, framing);

    ctx->first = 1;

    return NGX_OK;
}


kx_frame_e
ngx_http_kontext_answer_frame(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len, ngx_uint_t head)
{
    u_char              *scratch, buf[4096];
    unsigned             first;
    kx_frame_e           verdict;
    kx_frame_t           fr;
    const kx_dialect_t  *dialect;

    dialect = ctx->answer.dialect;

    first = ctx->first;
    ctx->first = 0;

    /* several data lines, which hardly anybody sends, are joined in it */

    scratch = buf;

    if (len > sizeof(buf) && ctx->framer.framing == KX_FRAMING_SSE) {
        scratch = ngx_alloc(len, ctx->request->connection->log);
        if (scratch == NULL) {
            return KX_FRAME_PASS;
        }
    }

    verdict = KX_FRAME_PASS;

    if (kx_frame_parse(&fr, &ctx->framer, p, len, first, scratch) == KX_OK) {

        if (head) {
            verdict = dialect->head(&ctx->answer, &fr);

        } else if (ctx->framer.framing == KX_FRAMING_WHOLE) {
            verdict = dialect->whole(&ctx->answer, &fr);

        } else {
            verdict = kx_answer_frame(&ctx->answer, &fr);
        }

        if (verdict == KX_FRAME_FINISH && !ctx->analysed) {

            /* the whole answer came at once */

            ngx_http_kontext_analyse(ctx);

            if (ctx->status == NGX_HTTP_KONTEXT_BYPASS) {
                verdict = KX_FRAME_PASS;
                ctx->passing = 1;

            } else if (ctx->answer.answers < ctx->cv.choices) {

                /* more answers were asked for than it was known */

                verdict = KX_FRAME_PASS;
                ctx->answer.complete = 0;
            }
        }

        if (verdict == KX_FRAME_KEEP) {
            ctx->start = fr.start;
        }

        if (verdict == KX_FRAME_FINISH) {
            ctx->finished = 1;

            if (!head && kx_answer_places(&ctx->answer, &fr) == KX_ERROR) {
                ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
                ctx->answer.nplaces = 0;
            }

            ngx_http_kontext_answer_places(ctx, p, len, &fr);
        }
    }

    if (scratch != buf) {
        ngx_free(scratch);
    }

    if (verdict != KX_FRAME_FINISH
        && ctx->answer.refused != KX_REASON_NONE)
    {
        ngx_http_kontext_refuse(ctx, ctx->answer.refused);
        ctx->passing = 1;
    }

    return verdict;
}


/* where the places are in the frame, which is about to be copied */

static void
ngx_http_kontext_answer_places(ngx_http_kontext_ctx_t *ctx, const u_char *p,
    size_t len, const kx_frame_t *fr)
{
    size_t         n;
    ngx_uint_t     i;
    kx_place_t    *place;
    const u_char  *at;

    for (i = 0; i < ctx->answer.nplaces; i++) {
        place = &ctx->answer.places[i];

        if (place->at == NULL) {
            ctx->at[i] = ctx->kept ? ctx->start : fr->start;
            continue;
        }

        /* counted from the end, as the data may have been joined */

        n = fr->data.data + fr->data.len - place->at;

        if (n > fr->tail.len) {
            ctx->answer.nplaces = 0;
            return;
        }

        at = fr->tail.data + fr->tail.len - n;

        ctx->at[i] = ctx->held_len + (at - p);
    }
}


void
ngx_http_kontext_answer_finish(ngx_http_kontext_ctx_t *ctx)
{
    ngx_int_t  rc;

    rc = kx_answer_digest(&ctx->answer, &ctx->conversation, ctx->message);

    if (ctx->answer.refused != KX_REASON_NONE) {
        ngx_http_kontext_refuse(ctx, ctx->answer.refused);

    } else if (rc != KX_OK) {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_TEXT);

    } else if (ctx->answer.nplaces == 0) {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_PLACE);
    }

    if (rc == KX_OK && ngx_http_kontext_answer_id(ctx) != NGX_OK) {
        ngx_http_kontext_refuse(ctx, KX_REASON_NO_MEMORY);
    }

    if (rc == KX_OK && ctx->reason == KX_REASON_NONE && !ctx->track_only) {
        ngx_http_kontext_session_assistant(&ctx->turn, ctx->message,
                                           &ctx->message_id);
    }

    if (ctx->answer.response_id.len) {
        ngx_http_kontext_session_response(ctx);
    }
}


static ngx_int_t
ngx_http_kontext_answer_id(ngx_http_kontext_ctx_t *ctx)
{
    u_char  *id;

    if (ctx->answer.message_id.len) {
        ctx->message_id = ctx->answer.message_id;
        return NGX_OK;
    }

    id = ngx_pnalloc(ctx->request->pool, KX_MESSAGE_ID_LEN);
    if (id == NULL) {
        return NGX_ERROR;
    }

    kx_message_id(id, ctx->message);

    ctx->message_id.data = id;
    ctx->message_id.len = KX_MESSAGE_ID_LEN;

    return NGX_OK;
}
