/*
 * Copyright (C) the ngx_http_kontext_module authors
 *
 * What the session API says when it refuses.
 */


#include "../api.h"


const kx_api_error_t  kx_api_bad_json = {
    400, kx_string("bad_json"),
    kx_string("The body is not what is read here: send one JSON object (or "
              "an array of messages) in UTF-8, nested at most 32 deep.")
};

const kx_api_error_t  kx_api_bad_member = {
    400, kx_string("bad_member"),
    kx_string("A member has the wrong type or length: send userId, "
              "conversationId and message ids as strings of 1 to 256 bytes, "
              "texts as strings, and the others as they are documented.")
};

const kx_api_error_t  kx_api_unknown_member = {
    400, kx_string("unknown_member"),
    kx_string("There is a member that is not known: send userId, "
              "conversationId, character, regulatory, variantId and "
              "userEmail only.")
};

const kx_api_error_t  kx_api_missing_member = {
    400, kx_string("missing_member"),
    kx_string("A member is missing: send userId and conversationId of a "
              "session, id and name of a character, and id, role and content "
              "of each message, of which there must be one.")
};

const kx_api_error_t  kx_api_bad_role = {
    400, kx_string("bad_role"),
    kx_string("The role of a message is not known: send \"user\" or "
              "\"assistant\", and leave all other messages out.")
};

const kx_api_error_t  kx_api_bad_time = {
    400, kx_string("bad_time"),
    kx_string("createdAt is not a time: send a string like "
              "\"2026-01-31T09:08:07.123Z\" or milliseconds since 1970.")
};

const kx_api_error_t  kx_api_bad_event = {
    400, kx_string("bad_event"),
    kx_string("The event is not known or not complete: send its name and, in "
              "payload, the bid's UUID as bidId; ad.viewed needs content and "
              "format, too, ad.clicked content, url, format and area.")
};

const kx_api_error_t  kx_api_forbidden_user = {
    403, kx_string("forbidden_user"),
    kx_string("The userId is not that of the user who calls: send the one "
              "that the server knows the user by, or none.")
};

const kx_api_error_t  kx_api_unknown_path = {
    404, kx_string("unknown_path"),
    kx_string("There is nothing at this path: send calls to /sessions, "
              "/sessions/{id} or its /messages, /events and "
              "/ads/{messageId}.")
};

const kx_api_error_t  kx_api_unknown_session = {
    404, kx_string("unknown_session"),
    kx_string("There is no such session, or it is closed: send POST "
              "/sessions to get a new one.")
};

const kx_api_error_t  kx_api_unknown_ad = {
    404, kx_string("unknown_ad"),
    kx_string("The session has no ad with this bid: send the bidId of an ad "
              "that it was given.")
};

const kx_api_error_t  kx_api_no_ad = {
    404, kx_string("no_ad"),
    kx_string("The message has no ad, or not yet: wait for the event "
              "ad.filled, or send the id of an assistant message.")
};

const kx_api_error_t  kx_api_bad_method = {
    405, kx_string("bad_method"),
    kx_string("The method is not for this path: send one of those in the "
              "header Allow.")
};

const kx_api_error_t  kx_api_immutable = {
    409, kx_string("immutable"),
    kx_string("A member cannot be changed while the session lives: send "
              "regulatory, variantId and userEmail only, or close the "
              "session and start another.")
};

const kx_api_error_t  kx_api_too_large = {
    413, kx_string("too_large"),
    kx_string("That is too much: send at most 262144 bytes at once, 8192 of "
              "options and 3584 of an event's payload.")
};

const kx_api_error_t  kx_api_media_type = {
    415, kx_string("media_type"),
    kx_string("The body is not said to be JSON: send it with Content-Type: "
              "application/json and without Content-Encoding.")
};

const kx_api_error_t  kx_api_too_many_streams = {
    503, kx_string("too_many_streams"),
    kx_string("There are too many event streams: close one, or send the "
              "call again later.")
};

const kx_api_error_t  kx_api_no_room = {
    503, kx_string("no_room"),
    kx_string("There is no room for more in the memory of the sessions: send "
              "less, or send the call again later.")
};

const kx_api_error_t  kx_api_no_memory = {
    500, kx_string("no_memory"),
    kx_string("The server has no memory for this call: send it again later.")
};
