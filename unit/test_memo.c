/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What is known of messages: it is found again, never for another one, and
 * makes no difference to what is sent.
 */


#include "chat.h"
#include "core/memo.h"
#include "core/redact.h"


#define SETS  8


static const unsigned char  key[] = "0123456789abcdef";

static unsigned char      mem[SETS * sizeof(kx_memo_set_t)]
                              __attribute__((aligned(KX_MEMO_ALIGN)));
static kx_memo_table_t    memos;
static chat_memory_t      memory;
static kx_pool_t          pool = { chat_alloc, &memory };
static kx_conversation_t  cv;
static kx_message_t       messages[KX_MAX_MESSAGES];
static unsigned char      digest[KX_ID_LEN];


static int
setup(void **state)
{
    (void) state;

    memset(mem, 0, sizeof(mem));
    kx_memo_init(&memos, mem, sizeof(mem));

    return 0;
}


static int
teardown(void **state)
{
    (void) state;

    chat_free(&memory);

    return 0;
}


static unsigned
read_all(const kx_dialect_t *dialect, const char *cid, const char *body)
{
    kx_str_t  id, path = kx_string("/");

    id.data = (unsigned char *) cid;
    id.len = strlen(cid);

    kx_conversation_init(&cv, dialect, &path, key, &pool);
    cv.memos = &memos;

    assert_int_equal(kx_conversation_scan(&cv, (const unsigned char *) body,
                                          strlen(body)),
                     KX_REASON_NONE);

    return kx_conversation_messages(&cv, &id, messages, digest);
}


static unsigned
is_known(uint64_t tag)
{
    uint64_t          hash;
    const kx_memo_t  *memo;

    return kx_memo_find(&memos, tag, &hash, &memo) == KX_OK;
}


static void
a_memo_is_found_by_its_tag(void **state)
{
    uint64_t          hash;
    kx_memo_t         memo;
    const kx_memo_t  *found;

    (void) state;

    memset(&memo, 0, sizeof(kx_memo_t));

    assert_false(is_known(7));

    memo.len = 1;
    kx_memo_put(&memos, 7, 70, &memo);

    memo.len = 2;
    kx_memo_put(&memos, 7 + SETS, 71, &memo);

    assert_int_equal(kx_memo_find(&memos, 7, &hash, &found), KX_OK);
    assert_int_equal(hash, 70);
    assert_int_equal(found->len, 1);

    assert_int_equal(kx_memo_find(&memos, 7 + SETS, &hash, &found), KX_OK);
    assert_int_equal(hash, 71);
    assert_int_equal(found->len, 2);

    assert_int_equal(kx_memo_find(&memos, 7, &hash, NULL), KX_OK);
    assert_int_equal(hash, 70);

    assert_false(is_known(8));
}


static void
a_memo_replaces_the_one_with_its_tag(void **state)
{
    unsigned   i, k, n;
    uint64_t   hash;
    kx_memo_t  memo;

    (void) state;

    memset(&memo, 0, sizeof(kx_memo_t));

    kx_memo_put(&memos, 7, 0, &memo);
    kx_memo_put(&memos, 7, 1, &memo);

    assert_int_equal(kx_memo_find(&memos, 7, &hash, NULL), KX_OK);
    assert_int_equal(hash, 1);

    for (i = 0, n = 0; i < SETS; i++) {
        for (k = 0; k < KX_MEMO_SET; k++) {
            n += (memos.sets[i].places[k].tag == 7);
        }
    }

    assert_int_equal(n, 1);
}


/* its place in a set is another one for each i */

static uint64_t
some_tag(uint64_t i)
{
    return i << 62 | i;
}


static void
old_memos_give_way_to_new_ones(void **state)
{
    unsigned          i, found;
    uint64_t          hash;
    kx_memo_t         memo;
    const kx_memo_t  *known;

    (void) state;

    memset(&memo, 0, sizeof(kx_memo_t));

    for (i = 1; i <= 1000; i++) {
        memo.len = i;
        kx_memo_put(&memos, some_tag(i), i, &memo);

        assert_true(is_known(some_tag(i)));
    }

    for (i = 1; i <= 1000; i++) {

        /* one that had to move is what it was */

        if (kx_memo_find(&memos, some_tag(i), &hash, &known) == KX_OK) {
            assert_int_equal(hash, i);
            assert_int_equal(known->len, i);
        }
    }

    for (i = 1, found = 0; i <= 1000; i++) {
        found += is_known(some_tag(i));
    }

    assert_int_equal(found, SETS * KX_MEMO_SET);
}


/* where it was fetched ahead from: nothing else has to be waited for */

static void
a_new_memo_is_in_its_first_place(void **state)
{
    unsigned          i;
    uint64_t          tag;
    kx_memo_t         memo;
    kx_memo_place_t  *place;

    (void) state;

    memset(&memo, 0, sizeof(kx_memo_t));

    for (i = 1; i <= 1000; i++) {
        tag = some_tag(i * i);
        kx_memo_put(&memos, tag, 0, &memo);

        place = &memos.sets[tag & memos.mask].places[kx_memo_first(tag)];

        assert_true(place->tag == tag);
    }
}


/* as many sets as there is room for a power of 2 of */

static void
a_table_has_a_size_that_is_a_power_of_two(void **state)
{
    unsigned   sets;
    kx_memo_t  memo;

    (void) state;

    memset(&memo, 0, sizeof(kx_memo_t));

    for (sets = 1; sets <= SETS; sets++) {
        memset(mem, 0, sizeof(mem));
        kx_memo_init(&memos, mem, (sets + 1) * sizeof(kx_memo_set_t) - 1);

        assert_true(memos.mask < sets && memos.mask * 2 + 2 > sets);

        kx_memo_put(&memos, ~(uint64_t) 0, 0, &memo);
        assert_true(is_known(~(uint64_t) 0));
    }
}


/* the same bytes in a message of the other role are another message */

static void
a_role_is_part_of_what_is_known(void **state)
{
    unsigned char  id[KX_MESSAGE_ID_LEN];

    (void) state;

    assert_int_equal(read_all(&kx_openai_chat, "c", "{\"messages\":["
        "{\"role\":\"user\",\"content\":\"hi\"}]}"), 1);

    memcpy(id, messages[0].id.data, KX_MESSAGE_ID_LEN);

    assert_int_equal(read_all(&kx_openai_chat, "c", "{\"messages\":["
        "{\"role\":\"assistant\",\"content\":\"hi\"},"
        "{\"role\":\"user\",\"content\":\"hi\"}]}"), 2);

    assert_memory_not_equal(messages[0].id.data, id, KX_MESSAGE_ID_LEN);
    assert_memory_equal(messages[1].id.data, id, KX_MESSAGE_ID_LEN);
}


static void
a_message_of_another_conversation_has_another_id(void **state)
{
    unsigned char  id[KX_MESSAGE_ID_LEN];

    static const char  body[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";

    (void) state;
    (void) read_all(&kx_openai_chat, "c", body);
    memcpy(id, messages[0].id.data, KX_MESSAGE_ID_LEN);

    (void) read_all(&kx_openai_chat, "d", body);
    assert_memory_not_equal(messages[0].id.data, id, KX_MESSAGE_ID_LEN);

    (void) read_all(&kx_openai_chat, "c", body);
    assert_memory_equal(messages[0].id.data, id, KX_MESSAGE_ID_LEN);
}


/* "hi" alone, and "hi" after another "hi" */

static void
the_place_among_equal_messages_counts(void **state)
{
    unsigned       i;
    unsigned char  first[KX_MESSAGE_ID_LEN], second[KX_MESSAGE_ID_LEN];

    static const char  one[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";

    static const char  two[] = "{\"messages\":["
        "{\"role\":\"user\",\"content\":\"hi\"},"
        "{\"role\":\"user\",\"content\":\"hi\"}]}";

    (void) state;

    for (i = 0; i < 3; i++) {
        assert_int_equal(read_all(&kx_openai_chat, "c", one), 1);

        if (i) {
            assert_memory_equal(messages[0].id.data, first,
                                KX_MESSAGE_ID_LEN);
        }

        memcpy(first, messages[0].id.data, KX_MESSAGE_ID_LEN);

        assert_int_equal(read_all(&kx_openai_chat, "c", two), 2);

        assert_memory_equal(messages[0].id.data, first, KX_MESSAGE_ID_LEN);
        assert_memory_not_equal(messages[1].id.data, first,
                                KX_MESSAGE_ID_LEN);

        if (i) {
            assert_memory_equal(messages[1].id.data, second,
                                KX_MESSAGE_ID_LEN);
        }

        memcpy(second, messages[1].id.data, KX_MESSAGE_ID_LEN);
    }
}


/* of which only the hash is made at first */

static void
a_message_far_back_is_known_too(void **state)
{
    char     *p, body[65536];
    unsigned  i, k;
    uint64_t  hashes[2][100];

    (void) state;

    p = body + sprintf(body, "{\"messages\":[");

    for (i = 0; i < 100; i++) {
        p += sprintf(p, "%s{\"role\":\"%s\",\"content\":\"message %u\"}",
                     i ? "," : "", (i & 1) ? "user" : "assistant", i % 40);
    }

    (void) sprintf(p, "]}");

    for (k = 0; k < 2; k++) {
        assert_int_equal(read_all(&kx_openai_chat, "c", body),
                         KX_MAX_MESSAGES);
        assert_int_equal(cv.nhashes, 100);
        memcpy(hashes[k], cv.hashes, sizeof(hashes[k]));
    }

    assert_memory_equal(hashes[0], hashes[1], sizeof(hashes[0]));

    /* one that was far back is among the last ones now */

    assert_int_equal(read_all(&kx_openai_chat, "c", "{\"messages\":["
        "{\"role\":\"assistant\",\"content\":\"message 0\"},"
        "{\"role\":\"user\",\"content\":\"message 1\"}]}"), 2);

    assert_int_equal(messages[1].raw.len, 9);
    assert_memory_equal(messages[1].raw.data, "message 1", 9);
    assert_int_equal(cv.hashes[1], hashes[0][1]);
}


/* as it was sent, if that is what any parser makes the same of */

static void
a_clean_string_is_sent_on_as_it_is(void **state)
{
    char      body[256];
    unsigned  i;

    static const struct {
        const char  *raw;
        int          clean;
    } cases[] = {
        { "hi", 1 },
        { "a\\n\\\"b\\\" \\/ \\t", 1 },
        { "caf\xc3\xa9 \\u00e9 \xf0\x9f\x98\x80 \\ud83d\\ude00", 1 },
        { "1 < 2, and <b>", 1 },
        { "a<thin", 1 },
        { "a\\r\\nb", 0 },
        { "a\\u000db", 0 },
        { "a\\u0000b", 0 },
        { "a\nb", 0 },
        { "a\tb", 0 },
        { "a\\xb", 0 },
        { "a\\ud83d", 0 },
        { "a\\ud83dx", 0 },
        { "a\\ud83d\\u0041", 0 },
        { "a\\ude00", 0 },
        { "a\\u12", 0 },
        { "a\xff", 0 },
        { "a\xc3", 0 },
        { "a<think>b</think>c", 0 },
        { "a\\u003cthink>b</think>c", 0 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]) * 2; i++) {
        snprintf(body, sizeof(body), "{\"messages\":[{\"role\":\"user\","
                 "\"content\":\"%s\"}]}", cases[i / 2].raw);

        assert_int_equal(read_all(&kx_openai_chat, "c", body), 1);

        if (cases[i / 2].clean) {
            assert_int_equal(messages[0].raw.len, strlen(cases[i / 2].raw));
            assert_memory_equal(messages[0].raw.data, cases[i / 2].raw,
                                messages[0].raw.len);

        } else {
            assert_int_equal(messages[0].raw.len, 0);
            assert_non_null(messages[0].content.data);
        }
    }
}


static void
assert_sent(const char *body, unsigned redact, const char *text,
    unsigned found)
{
    char             *sent;
    size_t            len;
    unsigned          n;
    kx_ad_request_t   ar;

    n = read_all(&kx_openai_chat, "c", body);

    memset(&ar, 0, sizeof(kx_ad_request_t));
    ar.messages = messages;
    ar.nmessages = n;
    ar.redact = redact;

    sent = kx_protocol_preload(&ar, &len);
    assert_non_null(sent);

    if ((strstr(sent, text) != NULL) != found) {
        fail_msg("%s in %s: not %u", text, sent, found);
    }

    kx_protocol_free(sent);

    kx_conversation_learn(&cv, messages, n);
}


/* a process that has no memory for memos */

static void
nothing_is_learned_without_memos(void **state)
{
    (void) state;

    assert_int_equal(read_all(&kx_openai_chat, "c", "{\"messages\":["
        "{\"role\":\"user\",\"content\":\"hi\"}]}"), 1);

    messages[0].clean = KX_REDACT_ALL;
    cv.memos = NULL;

    kx_conversation_learn(&cv, messages, 1);

    assert_int_equal(read_all(&kx_openai_chat, "c", "{\"messages\":["
        "{\"role\":\"user\",\"content\":\"hi\"}]}"), 1);
    assert_int_equal(messages[0].clean, 0);
}


/* each time, although the message is known, and whatever was asked before */

static void
what_is_known_is_redacted_again(void **state)
{
    unsigned  i;

    static const char  body[] = "{\"messages\":["
        "{\"role\":\"user\",\"content\":\"to ann@example.org\"},"
        "{\"role\":\"assistant\",\"content\":\"sent\"},"
        "{\"role\":\"user\",\"content\":\"thanks\"}]}";

    (void) state;

    for (i = 0; i < 3; i++) {
        assert_sent(body, KX_REDACT_ALL, "ann@", 0);
        assert_sent(body, KX_REDACT_ALL, "to [email]", 1);
        assert_sent(body, KX_REDACT_CARD, "ann@", 1);
        assert_sent(body, KX_REDACT_CARD | KX_REDACT_EMAIL, "ann@", 0);
        assert_sent(body, 0, "ann@", 1);
    }
}


static void
what_is_clean_is_not_looked_through_again(void **state)
{
    static const char  body[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";

    (void) state;

    assert_sent(body, KX_REDACT_EMAIL, "hi", 1);
    assert_int_equal(messages[0].clean, KX_REDACT_EMAIL);

    (void) read_all(&kx_openai_chat, "c", body);
    assert_int_equal(messages[0].clean, KX_REDACT_EMAIL);

    assert_sent(body, KX_REDACT_ALL, "hi", 1);

    (void) read_all(&kx_openai_chat, "d", body);
    assert_int_equal(messages[0].clean, KX_REDACT_ALL);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup(a_memo_is_found_by_its_tag, setup),
        cmocka_unit_test_setup(a_memo_replaces_the_one_with_its_tag, setup),
        cmocka_unit_test_setup(a_new_memo_is_in_its_first_place, setup),
        cmocka_unit_test_setup(old_memos_give_way_to_new_ones, setup),
        cmocka_unit_test_setup(a_table_has_a_size_that_is_a_power_of_two,
                               setup),
        cmocka_unit_test_setup_teardown(nothing_is_learned_without_memos,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_role_is_part_of_what_is_known,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_message_of_another_conversation_has_another_id, setup,
            teardown),
        cmocka_unit_test_setup_teardown(
            the_place_among_equal_messages_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(a_message_far_back_is_known_too,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_clean_string_is_sent_on_as_it_is,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_known_is_redacted_again,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(
            what_is_clean_is_not_looked_through_again, setup, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
