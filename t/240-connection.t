#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The client's connection: an ad call that hangs keeps nothing of it, and each
# way to ask, HTTP/1.0 to HTTP/2, gets its answer.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use H2 ();
use Kontext::Test;
use POSIX ();

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;
my $silent = Kontext::Mock->new(name => 'silent ad server');

my %vars = (llm => $llm->addr, ads => $ads->addr, silent => $silent->addr);

my $format = <<'CONF';
    log_format events escape=json
        '{"t":"$arg_t","status":"$kontext_status","reason":"$kontext_reason",'
        '"injected":"$kontext_injected","http":"$status",'
        '"protocol":"$server_protocol","connection":"$connection",'
        '"requests":"$connection_requests"}';
CONF

my $server = <<'CONF';
        access_log               logs/events.log events;

        kontext                  on;
        kontext_publisher_token  acme-dev;
        kontext_user_id          u-1;
        kontext_conversation_id  $arg_t;
        kontext_grace            25s;
        client_body_buffer_size  16k;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /_silent/ {
            internal;
            proxy_pass http://@silent@/;
        }

        location /v1/ {
            proxy_pass http://@llm@;
        }

        location /silent/ {
            kontext_ad_server /_silent;
            kontext_grace     20ms;
            proxy_pass        http://@llm@;
        }

        location /nowait/ {
            kontext_ad_server /_silent;
            kontext_grace     0;
            proxy_pass        http://@llm@;
            proxy_buffering   off;
        }

        location /held/ {
            kontext_ad_server /_silent;
            proxy_pass        http://@llm@;
        }

        location /static/ {
            kontext off;
            return 200 "static\n";
        }
CONF

my $nginx = Kontext::Nginx->new(vars => \%vars, http => $format,
                                server => $server);

my @ANSWER = (chat_role(), chat_chunk('Light'), chat_finish(), '[DONE]');
my $n = 0;


sub logged {
    my ($t, $from) = @_;
    my $log = ($from // $nginx)->wait_file('logs/events.log',
                                           qr/"t":"$t".*\n/);

    return json($log =~ /^(.*"t":"$t".*)$/m);
}


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


# sends a chat, returns its name

sub post {
    my ($c, $where, @headers) = @_;
    my $t = 't' . ++$n;

    $c->post_json("/$where/chat/completions?t=$t", chat('Which shoes?'),
                  @headers);

    return $t;
}


# the calls of a chat to the silent ad server

sub calls_of {
    my ($t) = @_;
    my ($init, $preload) = ($silent->wait_request(path => '/init'),
                            $silent->wait_request(path => '/preload'));

    $preload->json->{conversationId} eq $t or die "a call of another chat";

    return ($init, $preload);
}


# the ad server hangs: the client's next request is answered, the log line is
# there, the ad calls are gone

my $c = $nginx->client;

foreach my $where ('silent', 'nowait') {
    foreach my $round (1 .. 3) {
        my $name = "$where, chat $round";
        my $t = post($c, $where);
        my $req = $llm->wait_request;
        my @calls = calls_of($t);

        $req->start->event(@ANSWER)->finish;

        my $res = $c->read_response;

        is($res->body, sse(@ANSWER), "$name: the answer");
        like($res->header('Connection') // 'keep-alive', qr/keep-alive/,
             "$name: the connection is kept");

        my $log = logged($t);

        is($log->{status}, 'pending', "$name: the log line is there");
        is($log->{requests}, 2 * $round - 1 + ($where eq 'nowait' ? 6 : 0),
           "$name: on the same connection");

        $c->get('/static/');
        is($c->read_response->body, "static\n", "$name: the next request");

        foreach my $call (@calls) {
            is($call->wait_closed, 'eof',
               "$name: " . $call->path . ' has ended');
            ok(!$call->answered, "$name: without an answer");
        }

        is($silent->open_connections, 0, "$name: no ad call is left");
    }
}


# answers without a place for an ad: their ad calls end as well

foreach my $case ([ 'an error', sub { $_[0]->respond(500, 'oops') } ],
                  [ 'JSON', sub { $_[0]->respond(200, { a => 1 }) } ],
                  [ 'no body', sub { $_[0]->respond(204) } ],
                  [ 'an empty body',
                    sub { $_[0]->respond(200, '', 'Content-Type' =>
                                         'text/event-stream') } ],
                  [ 'not modified',
                    sub { $_[0]->send("HTTP/1.1 304 Not Modified\r\n\r\n")
                               ->close } ],
                  [ 'no finish marker',
                    sub { $_[0]->start->event(chat_role())->finish } ],
                  [ 'no backend', sub { $_[0]->close } ],
                  [ 'a reset', sub { $_[0]->reset } ])
{
    my ($name, $act) = @$case;
    my $t = post($c, 'held');
    my $req = $llm->wait_request;
    my @calls = calls_of($t);

    $act->($req);
    $c->read_response;
    $c->get('/static/');
    is($c->read_response->body, "static\n", "$name: the next request");
    is($_->wait_closed, 'eof', "$name: " . $_->path . ' has ended')
        foreach @calls;
    is(logged($t)->{injected}, '', "$name: the log line is there");
}


# an answer of nginx's own, to a request that has an ad call already

{
    my $d = $nginx->client;

    $llm->refuse;

    my $t = post($d, 'held');

    is($d->read_response->status, 502, 'no backend at all');
    $d->get('/static/');
    is($d->read_response->body, "static\n", 'no backend: the next request');
    logged($t);
    $llm->listen;
}


# the client has gone while the backend and the ad server are silent

{
    my $d = $nginx->client;
    my $t = post($d, 'held');
    my $req = $llm->wait_request;
    my @calls = calls_of($t);

    $d->close;
    is($req->wait_closed, 'eof', 'the client leaves: the backend is told');
    is($_->wait_closed, 'eof', 'the client leaves: ' . $_->path . ' ends')
        foreach @calls;
    is(logged($t)->{http}, 499, 'the client leaves: logged as such');
}


# pipelined requests: in order, each with its ad

{
    my $body = json(chat('Which shoes?'));
    my @t = map { 't' . ++$n } 1 .. 3;
    my $d = $nginx->client;

    $d->send(join('', map {
        "POST /v1/chat/completions?t=$_ HTTP/1.1\r\nHost: a\r\n"
        . "Content-Type: application/json\r\n"
        . 'Content-Length: ' . length($body) . "\r\n\r\n$body"
    } @t));

    foreach my $t (@t) {
        my $req = $llm->wait_request;

        is($req->args, "t=$t", 'pipelined: in order');
        $req->start->event(chat_role(), chat_chunk($t), chat_finish(),
                           '[DONE]')->finish;

        my ($text, $ad) = without_kontext($d->read_response->body);

        is($text, sse(chat_role(), chat_chunk($t), chat_finish(), '[DONE]'),
           'pipelined: the answer');
        ok(defined $ad, 'pipelined: its ad');
        is(logged($t)->{injected}, 'member', 'pipelined: logged');
    }

    # a chat whose ad server hangs, then another request at once

    my $t = 't' . ++$n;

    $d->send("POST /silent/chat/completions?t=$t HTTP/1.1\r\nHost: a\r\n"
             . "Content-Type: application/json\r\n"
             . 'Content-Length: ' . length($body) . "\r\n\r\n$body"
             . "GET /static/ HTTP/1.1\r\nHost: a\r\n\r\n");

    my $req = $llm->wait_request;
    my @calls = calls_of($t);

    $req->start->event(@ANSWER)->finish;
    is($d->read_response->body, sse(@ANSWER), 'pipelined, a silent ad server');
    is($d->read_response->body, "static\n", 'pipelined: the one behind it');
    is($_->wait_closed, 'eof', 'pipelined: ' . $_->path . ' has ended')
        foreach @calls;
}


# HTTP/1.0

foreach my $keepalive (0, 1) {
    my $name = 'HTTP/1.0' . ($keepalive ? ' with keep-alive' : '');
    my $body = json(chat('Which shoes?'));
    my $t = 't' . ++$n;
    my $d = $nginx->client;

    $d->send("POST /v1/chat/completions?t=$t HTTP/1.0\r\n"
             . ($keepalive ? "Connection: keep-alive\r\n" : '')
             . "Content-Type: application/json\r\n"
             . 'Content-Length: ' . length($body) . "\r\n\r\n$body");

    my $req = $llm->wait_request;

    $req->start->event(@ANSWER[0, 1]);
    $d->read_until(qr/Light/);
    pass("$name: the tokens come at once");
    $req->event(@ANSWER[2, 3])->finish;

    my $res = $d->read_response;
    my ($text, $ad) = without_kontext($res->body);

    is($text, sse(@ANSWER), "$name: the answer");
    ok(defined $ad, "$name: its ad");
    is($res->header('Transfer-Encoding'), undef, "$name: no chunks");
    is($d->wait_closed, 'eof', "$name: ends with the connection");
    $d->close;
    is(logged($t)->{protocol}, 'HTTP/1.0', "$name: as such");
}


# Connection: close

{
    my $d = $nginx->client;
    my $t = post($d, 'silent', 'Connection' => 'close');
    my $req = $llm->wait_request;
    my @calls = calls_of($t);

    $req->start->event(@ANSWER)->finish;
    is($d->read_response->body, sse(@ANSWER), 'Connection: close: the answer');
    is($_->wait_closed, 'eof', 'Connection: close: ' . $_->path . ' has ended')
        foreach @calls;
    $d->shutdown;
    is($d->wait_closed, 'eof', 'Connection: close: it is closed');
    logged($t);
}


# Expect: 100-continue

{
    my $body = json(chat('Which shoes?'));
    my $t = 't' . ++$n;
    my $d = $nginx->client;

    $d->send("POST /v1/chat/completions?t=$t HTTP/1.1\r\nHost: a\r\n"
             . "Content-Type: application/json\r\nExpect: 100-continue\r\n"
             . 'Content-Length: ' . length($body) . "\r\n\r\n");
    wait_until('100 Continue', sub { @{$d->peek->interim} });
    is($d->response->interim->[0], 'HTTP/1.1 100 Continue', '100-continue');
    $d->send($body);

    my $req = $llm->wait_request;

    is($req->body, $body, '100-continue: the body');
    $req->start->event(@ANSWER)->finish;

    my ($text, $ad) = without_kontext($d->read_response->body);

    is($text, sse(@ANSWER), '100-continue: the answer');
    ok(defined $ad, '100-continue: its ad');
    logged($t);
}


# bodies in chunks, in pieces, larger than a buffer

foreach my $size (0, 100_000) {
    my $body = json(chat('Which shoes? ' . ('x' x $size)));

    foreach my $form ('chunks', 'pieces', 'bytes') {
        next if $form eq 'bytes' && $size;

        my $name = "$size more bytes in $form";
        my $t = 't' . ++$n;
        my $d = $nginx->client;
        my $head = "POST /v1/chat/completions?t=$t HTTP/1.1\r\nHost: a\r\n"
                   . "Content-Type: application/json\r\n";
        my $step = $form eq 'bytes' ? 1 : int(length($body) / 7) + 1;
        my @pieces = unpack("(a$step)*", $body);

        if ($form eq 'chunks') {
            $d->send($head . "Transfer-Encoding: chunked\r\n\r\n");

            foreach my $piece (@pieces) {
                $d->send(sprintf("%x\r\n", length $piece));
                $nginx->barrier;
                $d->send("$piece\r\n");
                $nginx->barrier;
            }

            $d->send("0\r\n\r\n");

        } else {
            $d->send($head . 'Content-Length: ' . length($body) . "\r\n\r\n");

            foreach my $piece (@pieces) {
                $d->send($piece);
                $nginx->barrier;
            }
        }

        my $req = $llm->wait_request;

        ok($req->body eq $body, "$name: the backend has the body");
        $req->start->event(@ANSWER)->finish;

        my ($text, $ad) = without_kontext($d->read_response->body);

        is($text, sse(@ANSWER), "$name: the answer");
        ok(defined $ad, "$name: its ad");
        ok($d->is_open, "$name: the connection stays");
        logged($t);
    }
}

is($ads->open_connections, 0, 'no ad call is left');
is($silent->open_connections, 0, 'none of the silent server either');


# HTTP/2

SKIP: {
    skip 'no HTTP/2 in nginx', 1
        if `'@{[$nginx->binary]}' -V 2>&1` !~ /http_v2_module/;

    my $new = $nginx->version >= 1025001;
    my $h2 = Kontext::Nginx->new(
        name => 'nginx with HTTP/2',
        vars => { %vars, listen => $new ? '' : ' http2',
                  http2 => $new ? 'http2 on;' : '' },
        conf => "\@preamble\@\nevents {}\nhttp {\n\@control\@\n$format"
                . "    server {\n        listen 127.0.0.1:\@port\@\@listen\@;\n"
                . "        \@http2\@\n$server\n    }\n}\n",
    );

    my $body = json(chat('Which shoes?'));
    my $preload;

    # curl: token by token, then the ad

  SKIP: {
        skip 'no curl with HTTP/2', 1
            if `curl --version 2>/dev/null` !~ /\bHTTP2\b/;

        my $t = 't' . ++$n;
        my $url = 'http://' . $h2->addr . "/v1/chat/completions?t=$t";

        $ads->hold('/preload');

        STDOUT->flush;
        STDERR->flush;

        my $pid = fork() // die "fork: $!";

        if ($pid == 0) {
            open(STDOUT, '>', $h2->dir . '/curl.status');
            open(STDERR, '>', $h2->dir . '/curl.errors');
            exec('curl', '-sS', '-N', '--http2-prior-knowledge', '-m', 60,
                 '-o', $h2->dir . '/curl.body',
                 '-w', '%{http_code} %{http_version}',
                 '-H', 'Content-Type: application/json', '-d', $body, $url)
                or POSIX::_exit(127);
        }

        my $req = $llm->wait_request;

        1 while ($preload = $ads->wait_request(path => '/preload'))
                ->json->{conversationId} ne $t;

        $req->start->event(@ANSWER[0, 1]);
        $h2->wait_file('curl.body', qr/Light/);
        pass('curl: the tokens come at once');
        $req->event(@ANSWER[2, 3])->finish->wait_sent;
        $h2->barrier;
        $preload->respond(200, Kontext::Mock->bid);
        waitpid($pid, 0);
        is($?, 0, 'curl: it is content')
            or diag($h2->read_file('curl.errors'));
        is($h2->read_file('curl.status'), '200 2', 'curl: 200, version 2');

        my ($text, $ad) = without_kontext($h2->read_file('curl.body'));

        is($text, sse(@ANSWER), 'curl: the answer');
        ok(defined $ad, 'curl: its ad');
        is(logged($t, $h2)->{protocol}, 'HTTP/2.0', 'curl: HTTP/2');

        $ads->on('/preload', 200, Kontext::Mock->bid);
    }

    my $client = H2->new(port => $h2->port);
    my $h2_post = sub {
        my ($where) = @_;
        my $t = 't' . ++$n;

        return ($client->post("/$where/chat/completions?t=$t", $body), $t);
    };

    # two streams at once, the ad server of the first one silent: it is held
    # while the second one comes and goes

    my ($s1, $t1) = $h2_post->('held');
    my ($s2, $t2) = $h2_post->('v1');
    my $req1 = $llm->wait_request(path => '/held/chat/completions');
    my $req2 = $llm->wait_request(path => '/v1/chat/completions');
    my @calls = calls_of($t1);

    $req1->start->event(@ANSWER[0, 1]);
    $req2->start->event(@ANSWER[0, 1]);
    $client->read_until($_, qr/Light/) foreach $s1, $s2;
    pass('HTTP/2, two streams: the tokens of both');
    $req1->event(@ANSWER[2, 3])->finish->wait_sent;
    $h2->barrier;
    $req2->event(@ANSWER[2, 3])->finish;

    my ($text, $ad) = without_kontext($client->read_response($s2));

    is($text, sse(@ANSWER), 'HTTP/2, two streams: the second is through');
    ok(defined $ad, 'HTTP/2, two streams: with its ad');
    is($client->peek($s1), sse(@ANSWER[0, 1]),
       'HTTP/2, two streams: the first is held');

    my $log2 = logged($t2, $h2);

    $calls[1]->respond(200, Kontext::Mock->bid);
    ($text, $ad) = without_kontext($client->read_response($s1));
    is($text, sse(@ANSWER), 'HTTP/2, two streams: the first one as well');
    ok(defined $ad, 'HTTP/2, two streams: with its ad');

    my $log1 = logged($t1, $h2);

    is($log1->{connection}, $log2->{connection},
       'HTTP/2, two streams: of one connection');
    is($calls[0]->wait_closed, 'eof', 'HTTP/2, two streams: /init has ended');

    # the same twice at once, both held, the ads in the other order

    ($s1, $t1) = $h2_post->('held');
    $req1 = $llm->wait_request(path => '/held/chat/completions');
    my @calls1 = calls_of($t1);

    ($s2, $t2) = $h2_post->('held');
    $req2 = $llm->wait_request(path => '/held/chat/completions');
    my @calls2 = calls_of($t2);

    $_->start->event(@ANSWER)->finish->wait_sent foreach $req1, $req2;
    $h2->barrier;
    is($client->peek($_), sse(@ANSWER[0, 1]), 'HTTP/2, both held: no end yet')
        foreach $s1, $s2;
    $calls2[1]->respond(200, Kontext::Mock->bid);
    like($client->read_response($s2), qr/"kontext":/,
         'HTTP/2, both held: the second is through');
    is($client->peek($s1), sse(@ANSWER[0, 1]),
       'HTTP/2, both held: not the first');
    $calls1[1]->respond(204);
    is($client->read_response($s1), sse(@ANSWER),
       'HTTP/2, both held: the first is through');
    logged($_, $h2) foreach $t1, $t2;

    # a silent ad server, and a request behind it on the connection

    ($s1, $t1) = $h2_post->('silent');
    $req1 = $llm->wait_request(path => '/silent/chat/completions');
    @calls = calls_of($t1);
    $req1->start->event(@ANSWER)->finish;
    is($client->read_response($s1), sse(@ANSWER),
       'HTTP/2, a silent ad server: the answer');
    is($_->wait_closed, 'eof',
       'HTTP/2, a silent ad server: ' . $_->path . ' has ended')
        foreach @calls;

    ($s2, $t2) = $h2_post->('v1');
    $llm->wait_request(path => '/v1/chat/completions')
        ->start->event(@ANSWER)->finish;
    ($text, $ad) = without_kontext($client->read_response($s2));
    is($text, sse(@ANSWER), 'HTTP/2, a silent ad server: the next answer');
    is(logged($t1, $h2)->{connection}, logged($t2, $h2)->{connection},
       'HTTP/2, a silent ad server: one connection');

    # a stream is cancelled while it is held; another one lives on

    ($s1, $t1) = $h2_post->('held');
    $req1 = $llm->wait_request(path => '/held/chat/completions');
    @calls = calls_of($t1);
    ($s2, $t2) = $h2_post->('v1');
    $req2 = $llm->wait_request(path => '/v1/chat/completions');
    $req2->start->event(@ANSWER[0, 1]);
    $client->read_until($s2, qr/Light/);
    $req1->start->event(@ANSWER)->finish->wait_sent;
    $client->read_until($s1, qr/Light/);
    $client->cancel($s1);
    is($_->wait_closed, 'eof', 'HTTP/2, a stream is cancelled: '
                               . $_->path . ' has ended') foreach @calls;
    is(logged($t1, $h2)->{injected}, '', 'HTTP/2, a stream is cancelled');
    $req2->event(@ANSWER[2, 3])->finish;
    ($text, $ad) = without_kontext($client->read_response($s2));
    is($text, sse(@ANSWER), 'HTTP/2, a stream is cancelled: not the other');
    ok(defined $ad, 'HTTP/2, a stream is cancelled: its ad');
    logged($t2, $h2);

    # the client goes away while a stream of it is held

    ($s1, $t1) = $h2_post->('held');
    $req1 = $llm->wait_request(path => '/held/chat/completions');
    @calls = calls_of($t1);
    $req1->start->event(@ANSWER)->finish;
    $client->read_until($s1, qr/Light/);
    $client->close;
    is($_->wait_closed, 'eof', 'HTTP/2, the client leaves: '
                               . $_->path . ' has ended') foreach @calls;
    is(logged($t1, $h2)->{injected}, '', 'HTTP/2, the client leaves: logged');

    $h2->stop_ok(name => 'HTTP/2: a clean log and a clean exit');
}

$nginx->stop_ok;

done_testing;
