#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Answers that are not for an ad, answers that break off, and answers that
# come from elsewhere than the first backend.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Compress::Raw::Zlib ();
use Kontext::Test;

my $llm = Kontext::Mock->new(name => 'llm');
my $second = Kontext::Mock->new(name => 'second backend');
my $auth = Kontext::Mock->new(name => 'auth');
my $ads = Kontext::Mock->ad_server;

my $nginx = Kontext::Nginx->new(
    vars   => { llm => $llm->addr, second => $second->addr,
                auth => $auth->addr, ads => $ads->addr },
    http   => <<'CONF',
    log_format events escape=json
        '{"t":"$http_x_test","status":"$kontext_status","reason":"$kontext_reason",'
        '"injected":"$kontext_injected","http":"$status",'
        '"bid":"$kontext_bid_id"}';
CONF
    server => <<'CONF',
        access_log               logs/events.log events;

        kontext_publisher_token  acme-dev;
        kontext_user_id          u-1;
        kontext_conversation_id  $http_x_conversation_id;
        kontext_grace            25s;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /v1/ {
            kontext    on;
            proxy_pass http://@llm@;
        }

        location /unbuffered/ {
            kontext         on;
            proxy_pass      http://@llm@;
            proxy_buffering off;
        }

        location /named/ {
            kontext                on;
            proxy_pass             http://@llm@;
            proxy_intercept_errors on;
            error_page             502 503 = @second;
        }

        location @second {
            kontext    on;
            proxy_pass http://@second@;
        }

        location /redirect/ {
            kontext                on;
            proxy_pass             http://@llm@;
            proxy_intercept_errors on;
            error_page             503 = /second/chat/completions;
        }

        location /second/ {
            kontext    on;
            proxy_pass http://@second@;
        }

        location /page/ {
            kontext                on;
            proxy_pass             http://@llm@;
            proxy_intercept_errors on;
            error_page             503 /page.html;
        }

        location = /page.html {
            internal;
            return 503 "sorry\n";
        }

        location /plain-second/ {
            proxy_pass http://@second@;
        }

        location /leaves/ {
            kontext                on;
            proxy_pass             http://@llm@;
            proxy_intercept_errors on;
            error_page             503 = /plain-second/;
        }

        location /authorized/ {
            kontext      on;
            auth_request /auth;
            proxy_pass   http://@llm@;
        }

        location = /auth {
            internal;
            proxy_pass              http://@auth@;
            proxy_pass_request_body off;
            proxy_set_header        Content-Length "";
        }

        location /rewritten/ {
            kontext on;
            rewrite ^/rewritten(/.*) /v1$1 last;
        }

        location /retried/ {
            kontext             on;
            proxy_pass          http://pair;
            proxy_next_upstream error timeout http_503 non_idempotent;
        }
    }

    upstream pair {
        server @llm@ max_fails=0;
        server @second@ backup;
    }

    server {
        listen 127.0.0.1:@control_port@;
        server_name unused.example.com;
CONF
);

my $n = 0;


sub logged {
    my ($t) = @_;
    my $log = $nginx->wait_file('logs/events.log', qr/"t":"$t".*\n/);

    return json($log =~ /^(.*"t":"$t".*)$/m);
}


# starts a chat: (client, its name in the log)

sub ask {
    my ($where, %args) = @_;
    my $t = 't' . ++$n;
    my $c = $nginx->client;

    $c->post_json("/$where/chat/completions", chat('Which shoes?'),
                  'X-Test' => $t, 'X-Conversation-Id' => $t,
                  @{$args{headers} // []});

    return ($c, $t);
}


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


# the ad server has been asked for this chat, and its answer is through

sub ad_is_there {
    my ($t) = @_;

    1 while $ads->wait_request(path => '/preload')->json->{conversationId}
            ne $t;
    $ads->sync;
    $nginx->barrier;
}


my @ANSWER = (chat_role(), chat_chunk('Light'), chat_chunk(' ones'),
              chat_finish(), '[DONE]');


# a normal answer after all that may have gone wrong

sub still_fine_ok {
    my ($where, $c, $name) = @_;
    my $t = 't' . ++$n;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    $c->post_json("/$where/chat/completions", chat('Which shoes?'),
                  'X-Test' => $t, 'X-Conversation-Id' => $t);
    $llm->wait_request->start->event(@ANSWER)->finish;

    my ($body, $ad) = without_kontext($c->read_response->body);

    is($body, sse(@ANSWER), "$name: the next answer is whole");
    ok(defined $ad, "$name: and has its ad");

    logged($t);
}


# what the answer says

my $gzip = do {
    my ($z) = Compress::Raw::Zlib::Deflate->new(
        -WindowBits => Compress::Raw::Zlib::WANT_GZIP(),
        -AppendOutput => 1);
    my $out = '';

    $z->deflate(sse(@ANSWER), $out);
    $z->flush($out);
    $out;
};

my $role = chat_role();
my $light = chat_chunk('Light');
my $call = $light =~ s/"content":"Light"/"tool_calls":[{"index":0,"id":"c1",
    "type":"function","function":{"name":"f","arguments":"{}"}}]/r =~ s/\n\s*//gr;
my $refusal = $light =~ s/"content":"Light"/"refusal":"I cannot."/r;
my $reasoning = $light =~ s/"content"/"reasoning_content"/r;
my $error = '{"error":{"message":"overloaded","type":"server_error",'
            . '"param":null,"code":null}}';

my @cases = (
    [ 'status 500', 'response_status', sse(@ANSWER), status => 500 ],
    [ 'status 429', 'response_status', $error, status => 429,
      headers => [ 'Content-Type' => 'application/json',
                   'Retry-After' => '7' ] ],
    [ 'status 201', 'response_status', sse(@ANSWER), status => 201 ],
    [ 'JSON of another type', 'response_type',
      '{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}',
      headers => [ 'Content-Type' => 'application/jsonl' ] ],
    [ 'a stream called JSON', 'no_finish_marker', sse(@ANSWER),
      headers => [ 'Content-Type' => 'application/json' ] ],
    [ 'plain text', 'response_type', sse(@ANSWER),
      headers => [ 'Content-Type' => 'text/plain' ] ],
    [ 'a type that only begins alike', 'response_type', sse(@ANSWER),
      headers => [ 'Content-Type' => 'text/event-stream-x' ] ],
    [ 'an empty type', 'response_type', sse(@ANSWER),
      headers => [ 'Content-Type' => '' ] ],
    [ 'gzip although unasked for', 'encoded_response', $gzip,
      headers => [ 'Content-Encoding' => 'gzip' ] ],
    [ 'an encoding nobody knows', 'encoded_response', 'xyz',
      headers => [ 'Content-Encoding' => 'zstd' ] ],
    [ 'an error frame', 'error_frame', sse($role, $light, $error) ],
    [ 'an error frame, then a finish', 'error_frame',
      sse($role, $light, $error, chat_finish(), '[DONE]') ],
    [ 'an error beside the finish', 'error_frame',
      sse($role, $light,
          substr(chat_finish('error'), 0, -1) . ',"error":{"code":502}}',
          '[DONE]') ],
    [ 'an error as text', 'error_frame',
      sse($role, $light, '{"error":"overloaded"}') ],
    [ 'finish_reason tool_calls', qr/^(?:finish_reason|tool_calls)$/,
      sse($role, $light, chat_finish('tool_calls'), '[DONE]') ],
    [ 'finish_reason content_filter', 'finish_reason',
      sse($role, $light, chat_finish('content_filter'), '[DONE]') ],
    [ 'finish_reason function_call', qr/^(?:finish_reason|tool_calls)$/,
      sse($role, $light, chat_finish('function_call'), '[DONE]') ],
    [ 'finish_reason unheard of', 'finish_reason',
      sse($role, $light, chat_finish('eos'), '[DONE]') ],
    [ 'one choice of two filtered', 'finish_reason',
      sse($role, $light, chat_chunk('b') =~ s/"index":0/"index":1/r,
          chat_finish(),
          chat_finish('content_filter') =~ s/"index":0/"index":1/r,
          '[DONE]') ],
    [ 'a refusal', 'refusal', sse($role, $refusal, chat_finish(), '[DONE]') ],
    [ 'a refusal after text', 'refusal',
      sse($role, $light, $refusal, chat_finish(), '[DONE]') ],
    [ 'tool calls', 'tool_calls',
      sse($role, $call, chat_finish('tool_calls'), '[DONE]') ],
    [ 'text and tool calls, with a stop', 'tool_calls',
      sse($role, $light, $call, chat_finish(), '[DONE]') ],
    [ 'the old function_call', 'tool_calls',
      sse($role, $light, $light =~ s/"content":"Light"/"function_call":{
          "name":"f","arguments":""}/r =~ s/\n\s*//r, chat_finish(),
          '[DONE]') ],
    [ 'no text', 'no_text', sse($role, chat_finish(), '[DONE]') ],
    [ 'empty text', 'no_text',
      sse($role, chat_chunk(''), chat_finish(), '[DONE]') ],
    [ 'null for text', 'no_text',
      sse($role, $light =~ s/"Light"/null/r, chat_finish(), '[DONE]') ],
    [ 'white space for text', 'no_text',
      sse($role, chat_chunk(" \n\t "), chat_finish(), '[DONE]') ],
    [ 'reasoning alone', 'no_text',
      sse($role, $reasoning, chat_finish(), '[DONE]') ],
    [ 'no finish marker', 'no_finish_marker', sse($role, $light) ],
    [ 'no finish marker, but [DONE]', 'no_finish_marker',
      sse($role, $light, '[DONE]') ],
    [ 'one choice of two unfinished', 'no_finish_marker',
      sse($role, $light, chat_chunk('b') =~ s/"index":0/"index":1/r,
          chat_finish(), '[DONE]') ],
    [ 'an unterminated finish chunk', 'no_finish_marker',
      sse($role, $light) . 'data: ' . chat_finish() ],
    [ 'an unterminated finish chunk with a line end', 'no_finish_marker',
      sse($role, $light) . 'data: ' . chat_finish() . "\n" ],
    [ 'half a finish chunk', 'no_finish_marker',
      sse($role, $light) . 'data: ' . substr(chat_finish(), 0, -1) . "\n\n" ],
    [ 'a finish chunk that is no JSON', 'no_finish_marker',
      sse($role, $light, chat_finish() . ']', '[DONE]') ],
    [ 'a finish in an event without data', 'no_finish_marker',
      sse($role, $light) . ': ' . chat_finish() . "\n\n" . 'event: '
      . chat_finish() . "\n\n" ],
    [ 'no events at all', 'no_finish_marker', "hello\n\nworld" ],
    [ 'an empty body', 'no_finish_marker', '' ],
);

foreach my $case (@cases) {
    my ($name, $reason, $body, %args) = @$case;
    my ($c, $t) = ask('v1');
    my $req = $llm->wait_request;

    # the ad is there before the answer, so the reason is the answer's alone

    ad_is_there($t);

    my @headers = @{$args{headers} // []};

    push @headers, 'Content-Type' => 'text/event-stream'
        if !grep { lc eq 'content-type' } @headers;

    $req->start($args{status} // 200, @headers);
    $req->chunk($body) if length $body;
    $req->finish;

    my $res = $c->read_response;

    is($res->status, $args{status} // 200, "$name: the status");
    is($res->body, $body, "$name: the body as it was");

    my $log = logged($t);

    if (ref $reason) {
        like($log->{reason}, $reason, "$name: the reason");

    } else {
        is($log->{reason}, $reason, "$name: the reason");
    }

    is($log->{injected}, '', "$name: nothing injected");
    ok($c->is_open, "$name: the connection stays");
}


# an answer which is not for an ad does not wait for one

$ads->hold('/preload');

foreach my $case (@cases) {
    my ($name, $reason, $body, %args) = @$case;

    next if $args{status} || $args{headers};

    my ($c, $t) = ask('v1');
    my $req = $llm->wait_request;
    my $preload;

    1 while ($preload = $ads->wait_request(path => '/preload'))
            ->json->{conversationId} ne $t;

    $req->start;
    $req->chunk($body) if length $body;
    $req->finish->wait_sent;
    $nginx->barrier;

    ok($c->peek->complete, "$name: no wait");
    is($c->response->body, $body, "$name: the body as it was");
    is($preload->wait_closed, 'eof', "$name: the ad call ends");
    logged($t);
}


# upstreams that break off: what came from them reaches the client

my @breaks = (
    [ 'in the head', 0, '' ],
    [ 'after the head', 1, '' ],
    [ 'in a frame', 1, sse($role, $light) . 'data: {"id":"x","cho' ],
    [ 'between frames', 1, sse($role, $light) ],
    [ 'in the finish chunk', 1,
      sse($role, $light) . 'data: ' . substr(chat_finish(), 0, -3) ],
    [ 'in the line end of the finish chunk', 1,
      sse($role, $light) . 'data: ' . chat_finish() . "\n" ],
    [ 'after the finish chunk, while it is held', 1,
      sse($role, $light, chat_finish()) ],
    [ 'in [DONE], while it is held', 1,
      sse($role, $light, chat_finish()) . 'data: [DO' ],
    [ 'after [DONE], while it is held', 1,
      sse($role, $light, chat_finish(), '[DONE]') ],
);

foreach my $where ('v1', 'unbuffered') {
    foreach my $case (@breaks) {
        my ($what, $head, $body) = @$case;
        my $name = "$where, broken $what";
        my ($c, $t) = ask($where);
        my $req = $llm->wait_request;
        my $preload;

        1 while ($preload = $ads->wait_request(path => '/preload'))
                ->json->{conversationId} ne $t;

        if (!$head) {
            $req->send("HTTP/1.1 200 OK\r\nContent-Ty")->close;
            is($c->read_response->status, 502, "$name: nginx's own answer");

        } else {
            $req->start;

            # the client has the first frames before the end comes

            if ($body =~ /Light/) {
                $req->chunk($body);
                $c->read_until(qr/Light/);
            }

            if ($what =~ /held/) {
                $req->wait_sent;
                $nginx->barrier;
                unlike($c->peek->body, qr/"finish_reason":"stop"/,
                       "$name: it is held");
            }

            $req->close;
            $llm->sync;
            $nginx->barrier;

            if ($what =~ /held/) {
                # at once, or with the ad server's word

                $preload->respond(204);

            } else {
                ok(!$c->is_open, "$name: nothing waits for the ad");
            }

            is($c->wait_closed, 'eof', "$name: the client's connection ends");
            is($c->response->body, $body, "$name: all that came is there");
            ok(!$c->response->complete, "$name: and the client can tell");
        }

        is($preload->wait_closed, 'eof', "$name: the ad call ends");

        # nginx lingers for a client which does not close

        $c->close;
        is(logged($t)->{injected}, '', "$name: nothing injected");
    }
}

$ads->on('/preload', 200, Kontext::Mock->bid);
still_fine_ok('v1', $nginx->client, 'after broken answers');


# a second backend behind error_page, behind X-Accel-Redirect, behind
# proxy_next_upstream

{
    my ($c, $t) = ask('named');

    $llm->wait_request->respond(503, 'busy');
    $second->wait_request(path => '/named/chat/completions')
           ->start->event(@ANSWER)->finish;

    my $res = $c->read_response;
    my ($body, $ad) = without_kontext($res->body);

    is($res->status, 200, 'error_page to a named location: the status');
    is($body, sse(@ANSWER), 'error_page to a named location: the answer');
    ok(defined $ad, 'with its ad');
    is(logged($t)->{injected}, 'member', 'in the log as well');

    # tokens are not late there either, and the ad is waited for

    $ads->hold('/preload');
    ($c, $t) = ask('named');
    $llm->wait_request->close;

    my $req = $second->wait_request(path => '/named/chat/completions');
    my $preload;

    1 while ($preload = $ads->wait_request(path => '/preload'))
            ->json->{conversationId} ne $t;
    $req->start->event($role, $light);
    $c->read_until(qr/Light/);
    pass('a dead backend: the tokens of the second');
    $req->event(chat_finish(), '[DONE]')->finish->wait_sent;
    $nginx->barrier;
    unlike($c->peek->body, qr/"finish_reason":"stop"/, 'held for the ad');
    $preload->respond(200, Kontext::Mock->bid);

    ($body, $ad) = without_kontext($c->read_response->body);
    is($body, sse($role, $light, chat_finish(), '[DONE]'), 'the answer');
    ok(defined $ad, 'with its ad');
    is(scalar(grep { $_->json->{conversationId} eq $t }
                   $ads->requests('/preload')), 1, 'one preload was enough');
    logged($t);

    # both backends dead, the ad server silent

    ($c, $t) = ask('named');
    $llm->wait_request->close;
    $second->wait_request->close;
    is($c->read_response->status, 502, 'both dead: an error page');
    logged($t);
    ok($c->is_open, 'the connection stays');

    $ads->on('/preload', 200, Kontext::Mock->bid);

    ($c, $t) = ask('redirect');
    $llm->wait_request->respond(503, 'busy');
    $second->wait_request(path => '/second/chat/completions')
           ->start->event(@ANSWER)->finish;

    $res = $c->read_response;
    ($body, $ad) = without_kontext($res->body);
    is($res->status, 200, 'error_page to a URI: the status');
    is($body, sse(@ANSWER), 'error_page to a URI: the answer');
    logged($t);

    ($c, $t) = ask('leaves');
    $llm->wait_request->respond(503, 'busy');
    $second->wait_request(path => '/plain-second/')
           ->start->event(@ANSWER)->finish;
    ($body, $ad) = without_kontext($c->read_response->body);
    is($body, sse(@ANSWER),
       'error_page to a location without kontext: the answer');
    logged($t);
    ok($c->is_open, 'the connection stays');

    ($c, $t) = ask('page');
    $llm->wait_request->respond(503, 'busy');
    $res = $c->read_response;
    is($res->status, 503, 'error_page: the status');
    is($res->body, "sorry\n", 'error_page: the page');
    is(logged($t)->{injected}, '', 'nothing injected');

    foreach my $to ('@second', '/second/chat/completions') {
        ($c, $t) = ask('v1');
        $llm->wait_request->respond(200, '', 'X-Accel-Redirect' => $to);
        $second->wait_request->start->event(@ANSWER)->finish;

        $res = $c->read_response;
        ($body, $ad) = without_kontext($res->body);
        is($res->status, 200, "X-Accel-Redirect to $to: the status");
        is($body, sse(@ANSWER), "X-Accel-Redirect to $to: the answer");
        ok(defined $ad, "X-Accel-Redirect to $to: its ad") if $to =~ /^@/;
        logged($t);
        ok($c->is_open, 'the connection stays');
    }

    ($c, $t) = ask('retried');
    $llm->wait_request->respond(503, 'busy');
    $second->wait_request->start->event(@ANSWER)->finish;
    ($body, $ad) = without_kontext($c->read_response->body);
    is($body, sse(@ANSWER), 'the next upstream: the answer');
    ok(defined $ad, 'the next upstream: its ad');
    logged($t);

    ($c, $t) = ask('rewritten');
    $llm->wait_request(path => '/v1/chat/completions')
        ->start->event(@ANSWER)->finish;
    ($body, $ad) = without_kontext($c->read_response->body);
    is($body, sse(@ANSWER), 'a rewritten URI: the answer');
    ok(defined $ad, 'a rewritten URI: its ad');
    logged($t);
}


# auth_request in front

{
    my $before = $ads->requests;
    my ($c, $t) = ask('authorized');

    $auth->wait_request->respond(401);
    is($c->read_response->status, 401, 'not authorized');
    logged($t);
    is(scalar(my @now = $ads->requests), $before,
       'not authorized: the ad server is not asked');

    ($c, $t) = ask('authorized');
    $auth->wait_request->respond(204);
    $llm->wait_request->start->event(@ANSWER)->finish;

    my ($body, $ad) = without_kontext($c->read_response->body);

    is($body, sse(@ANSWER), 'authorized: the answer');
    ok(defined $ad, 'authorized: its ad');
    is(logged($t)->{status}, 'filled', 'authorized: filled');
}


# other methods in the same location

{
    my $before = $ads->requests;

    foreach my $method ('GET', 'HEAD', 'PUT', 'DELETE') {
        my $t = 't' . ++$n;
        my $c = $nginx->client;

        $c->request($method, "/v1/chat/completions", undef,
                    'X-Test' => $t, 'X-Conversation-Id' => $t);

        my $req = $llm->wait_request;

        is($req->method, $method, "$method: to the backend");

        if ($method eq 'HEAD') {
            $req->send("HTTP/1.1 200 OK\r\nContent-Length: 700\r\n"
                       . "Content-Type: text/event-stream\r\n\r\n")->close;

        } else {
            $req->respond(200, sse(@ANSWER),
                          'Content-Type' => 'text/event-stream');
        }

        my $res = $c->read_response;

        is($res->status, 200, "$method: status");
        is($res->body, $method eq 'HEAD' ? '' : sse(@ANSWER), "$method: body");
        is($res->header('Content-Length'),
           $method eq 'HEAD' ? 700 : length sse(@ANSWER), "$method: length");

        my $log = logged($t);

        is($log->{status}, 'bypass', "$method: bypass");
        is($log->{reason}, 'method', "$method: the reason");
        ok($c->is_open, "$method: the connection stays");
    }

    is(scalar(my @now = $ads->requests), $before,
       'the ad server is not asked');
}

still_fine_ok('v1', $nginx->client, 'after all');

$nginx->stop_ok;

done_testing;
