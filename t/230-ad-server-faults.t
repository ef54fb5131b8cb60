#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Whatever the ad server does, the chat does not notice.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->new(name => 'ad server');
my $refusing = Kontext::Mock->new(name => 'refusing ad server');

$refusing->refuse;

# the files that ship, with another upstream and without TLS

my $conf = do {
    open(my $fh, '<', "$FindBin::Bin/../conf/kontext_ad_server.conf") or die $!;
    local $/;
    my $text = <$fh>;

    my $addr = $ads->addr;

    $text =~ s{^( *proxy_pass )https://[^;]+;}{$1http://$addr/;}m
        or die "no proxy_pass in the file";
    $text =~ s{^ *proxy_ssl_(?:trusted|verify).*\n}{}mg;
    $text;
};

my $nginx = Kontext::Nginx->new(
    vars   => { llm => $llm->addr, ads => $ads->addr,
                refusing => $refusing->addr },
    files  => { 'conf/kontext_ad_server.conf' => $conf },
    http   => <<'CONF',
    log_format events escape=json
        '{"t":"$arg_t","status":"$kontext_status","reason":"$kontext_reason",'
        '"injected":"$kontext_injected","hold":"$kontext_hold_time"}';
CONF
    server => <<'CONF',
        access_log               logs/events.log events;

        kontext                  on;
        kontext_publisher_token  acme-dev;
        kontext_user_id          $http_x_user_id;
        kontext_conversation_id  c-1;

        # one fault after the other

        kontext_breaker          off;

        include kontext_ad_server.conf;

        # the least of a location

        location /_plain/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /_refusing/ {
            internal;
            proxy_pass http://@refusing@/;
        }

        # the other side speaks no TLS

        location /_tls/ {
            internal;
            proxy_pass https://127.0.0.1:@control_port@/;
        }

        # nginx answers itself

        location /_denied/ {
            internal;
            return 403;
        }

        location /_silent/ {
            internal;
            return 444;
        }

        location /_static/ {
            internal;
            root @dir@/html;
        }

        location /elsewhere {
            internal;
            return 200 "not for the ad server to choose";
        }

        location @elsewhere {
            return 200 "not for the ad server to choose";
        }

        location /ships/ {
            proxy_pass http://@llm@;
        }

        location /plain/ {
            kontext_ad_server /_plain;
            proxy_pass        http://@llm@;
        }

        location /refusing/ {
            kontext_ad_server /_refusing;
            proxy_pass        http://@llm@;
        }

        location /tls/ {
            kontext_ad_server /_tls;
            proxy_pass        http://@llm@;
        }

        location /denied/ {
            kontext_ad_server /_denied;
            proxy_pass        http://@llm@;
        }

        location /silent/ {
            kontext_ad_server /_silent;
            proxy_pass        http://@llm@;
        }

        location /static/ {
            kontext_ad_server /_static;
            proxy_pass        http://@llm@;
        }

        location /short/ {
            kontext_grace 50ms;
            proxy_pass    http://@llm@;
        }
CONF
);

my $n = 0;
my @ANSWER = (chat_role(), chat_chunk('Light'), chat_chunk(' ones'),
              chat_finish(), '[DONE]');


sub logged {
    my ($t) = @_;
    my $log = $nginx->wait_file('logs/events.log', qr/"t":"$t".*\n/);

    return json($log =~ /^(.*"t":"$t".*)$/m);
}


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


# the call of a chat: each has a user of its own, who is in both bodies

sub call_of {
    my ($t, $path) = @_;

    while (1) {
        my $req = $ads->wait_request(path => $path);

        return $req if $req->json->{userId} eq $t;
    }
}


# A whole chat on a connection that has had others before.  The backend ends
# its answer when the ad server has been asked, and what it says is there:
# (the ad, log line).

sub run {
    my ($c, $where, $name) = @_;
    my $t = 't' . ++$n;

    $c->post_json("/$where/chat/completions?t=$t", chat('Which shoes?'),
                  'X-User-Id' => $t);

    my $req = $llm->wait_request(path => "/$where/chat/completions");

    $req->start->event(@ANSWER[0, 1]);
    $c->read_until(qr/Light/);
    pass("$name: the first token");

    call_of($t, $_) foreach '/init', '/preload';

    $ads->sync;
    $nginx->barrier;

    $req->event(@ANSWER[2 .. $#ANSWER])->finish;

    my $res = $c->read_response;
    my ($body, $ad) = without_kontext($res->body);

    is($res->status, 200, "$name: the status");
    is($body, sse(@ANSWER), "$name: the stream is whole");
    unlike($ad // '', qr/[^\x20-\x7e]/, "$name: ASCII");
    ok($c->is_open, "$name: the connection stays");

    return ($ad, logged($t));
}


my $good = json(Kontext::Mock->bid);
my $uuid = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my $http = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";


# what an ad server may say: name, actions, status, reason; an undefined
# status stands for "an ad or none, as long as the chat is whole"

sub says { return [ [ send => Kontext::Mock->response(@_) ] ] }


my @faults = (
    [ '204', says(204), 'no_fill', 'unfilled_bid' ],
    [ '500', says(500, { error => 'oops' }), 'error', 'unknown' ],
    [ '500 with a good body', says(500, Kontext::Mock->bid), 'error',
      'unknown' ],
    [ '404', says(404, '<html>'), 'error', 'unknown' ],
    [ '429 always', says(429, '', 'Retry-After' => 1), 'error',
      'request_failed' ],
    [ '302', says(302, '', 'Location' => 'http://127.0.0.1/elsewhere'),
      'error', 'unknown' ],
    [ 'garbage for a body', says(200, "\x00\xff{]\x80" x 100), 'error',
      'request_failed' ],
    [ 'garbage for HTTP', [ [ send => "\x00\xff?!\n\n\n" ], [ 'close' ] ],
      'error', 'request_failed' ],
    [ 'an empty 200', says(200, ''), 'error', 'request_failed' ],
    [ 'white space', says(200, " \r\n\t"), 'error', 'request_failed' ],
    [ 'HTML', says(200, '<!doctype html><title>502</title>',
                   'Content-Type' => 'text/html'),
      'error', 'request_failed' ],
    [ 'an array', says(200, '[]'), 'error', qr/./ ],
    [ 'a number', says(200, '1e999'), 'error', qr/./ ],
    [ 'two objects', says(200, $good . $good), undef ],
    [ 'an object cut short', says(200, substr($good, 0, -3)), 'error',
      'request_failed' ],
    [ '10 MB of white space ahead', says(200, (' ' x 10_000_000) . $good),
      'error', 'request_failed' ],
    [ '10 MB in chunks',
      [ [ send => $http . "Transfer-Encoding: chunked\r\n\r\n"
                  . "989680\r\n" . ('x' x 10_000_000) . "\r\n0\r\n\r\n" ] ],
      'error', 'request_failed' ],
    [ '10 MB up to the end of the connection',
      [ [ send => "$http\r\n" . ('y' x 10_000_000) ], [ 'close' ] ],
      'error', 'request_failed' ],
    [ '100,000 bids',
      says(200, qq({"sessionId":"$uuid","bids":[)
                . join(',', (qq({"code":"x","bidId":"$uuid"})) x 100_000)
                . ']}'),
      'error', 'request_failed' ],
    [ 'bad UTF-8 in a member nobody reads',
      says(200, substr($good, 0, -1) . ",\"x\":\"\xff\xc0\x80\xed\xa0\x80\"}"),
      undef ],
    [ 'bad UTF-8 in a code',
      says(200, $good =~ s/inlineAd/inlineAd\xff\xfe/r), undef ],
    [ 'bad UTF-8 for a skip code',
      says(200, qq({"sessionId":"$uuid","skip":true,"skipCode":"\xff\xfe"})),
      undef ],
    [ 'nested 2,000 deep', says(200, ('[' x 2000) . (']' x 2000)), 'error',
      'request_failed' ],
    [ 'nested 2,000 deep in a good answer',
      says(200, substr($good, 0, -1) . ',"x":' . ('{"a":' x 2000) . '1'
                . ('}' x 2000) . '}'),
      undef ],
    [ 'nested 500,000 deep', says(200, '[' x 500_000), 'error',
      'request_failed' ],
    [ 'members of other types',
      says(200, '{"sessionId":7,"bids":{"a":1},"skip":"yes","errCode":[]}'),
      'error', qr/./ ],
    [ 'bids of other types',
      says(200, qq({"sessionId":"$uuid","bids":[1,null,"x",[],{},)
                . qq({"bidId":5,"code":"inlineAd"},{"code":"inlineAd"}]})),
      undef ],
    [ 'a bid id that is a path',
      says(200, qq({"sessionId":"$uuid","bids":[{"bidId":"../../x?y=\\"z",)
                . qq("code":"inlineAd"}]})), undef, undef,
      sub { ok(!defined $_[0], "$_[1]: no such ad") } ],
    [ 'a bid id without dashes',
      says(200, qq({"sessionId":"$uuid","bids":[{"bidId":)
                . qq("7c9e6679742540de944be07fc1f90ae7",)
                . qq("code":"inlineAd"}]})), undef, undef,
      sub { ok(!defined $_[0], "$_[1]: no such ad") } ],
    [ 'a huge revenue',
      says(200, $good =~ s/0\.0042/1e308/r), undef ],
    [ 'an error code of 100 KB',
      says(200, '{"errCode":"' . ('e' x 100_000) . '"}'), 'error', qr/./ ],
    [ 'an error code with line ends',
      says(200, '{"errCode":"a\r\nb\u0000\u001b"}'), 'error', qr// ],
    [ 'a reset at once', [ [ 'reset' ] ], 'error', 'request_failed' ],
    [ 'an end at once', [ [ 'close' ] ], 'error', 'request_failed' ],
    [ 'half a head, then an end', [ [ send => 'HTTP/1.1 200 O' ],
                                    [ 'close' ] ],
      'error', 'request_failed' ],
    [ 'half an answer, then an end',
      [ [ send => $http . "Content-Length: 900\r\n\r\n"
                  . substr($good, 0, 30) ], [ 'close' ] ],
      'error', 'request_failed' ],
    [ 'half an answer in chunks, then an end',
      [ [ send => $http . "Transfer-Encoding: chunked\r\n\r\n"
                  . sprintf("%x\r\n%s", length $good, substr($good, 0, 30)) ],
        [ 'close' ] ],
      'error', 'request_failed' ],
    [ 'half an answer, then a reset',
      [ [ send => $http . "Content-Length: 900\r\n\r\n"
                  . substr($good, 0, 30) ], [ 'reset' ] ],
      'error', 'request_failed' ],
    [ 'a bad chunk', [ [ send => $http . "Transfer-Encoding: chunked\r\n\r\n"
                                 . "zz\r\n{}\r\n0\r\n\r\n" ] ],
      'error', 'request_failed' ],
    [ 'headers beyond any buffer',
      [ [ send => $http . join('', map { "X-$_: " . ('h' x 500) . "\r\n" }
                                       1 .. 400)
                  . 'Content-Length: ' . length($good) . "\r\n\r\n$good" ] ],
      'error', 'request_failed' ],
    [ 'an encoding nobody asked for',
      says(200, "\x1f\x8b\x08" . ('z' x 40), 'Content-Encoding' => 'gzip'),
      'error', 'request_failed' ],
    [ 'a body behind 204',
      [ [ send => "HTTP/1.1 204 No Content\r\n\r\n$good" ], [ 'close' ] ],
      'no_fill', 'unfilled_bid' ],
    [ '100 and nothing else',
      [ [ send => "HTTP/1.1 100 Continue\r\n\r\n" ], [ 'close' ] ],
      'error', qr/./ ],
    [ 'a status of 999', [ [ send => "HTTP/1.1 999 Odd\r\n"
                                     . "Content-Length: 0\r\n\r\n" ] ],
      'error', qr/./ ],
    [ 'X-Accel-Redirect', says(200, Kontext::Mock->bid,
                               'X-Accel-Redirect' => '/elsewhere'), undef ],
    [ 'X-Accel-Redirect to a name', says(200, Kontext::Mock->bid,
                                         'X-Accel-Redirect' => '@elsewhere'),
      undef ],
    [ 'X-Accel-Redirect to the chat', says(200, Kontext::Mock->bid,
                                           'X-Accel-Redirect' =>
                                           '/plain/chat/completions'),
      undef ],
    [ 'X-Accel-Limit-Rate and Buffering',
      says(200, Kontext::Mock->bid, 'X-Accel-Limit-Rate' => 1,
           'X-Accel-Buffering' => 'no', 'X-Accel-Expires' => 60,
           'Cache-Control' => 'max-age=60', 'Set-Cookie' => 'a=b'), undef ],
);

my $c = $nginx->client;


# faults of /preload, with the location that ships and with the least of one

foreach my $where ('ships', 'plain') {
    $ads->on('/init', 200, { enabled => JSON::PP::true() });

    foreach my $fault (@faults) {
        my ($what, $actions, $status, $reason, $more) = @$fault;
        my $name = "$where, $what";

        # a backend for who follows X-Accel-Redirect to the chat

        next if $what =~ /to the chat/;

        $ads->on_actions('/preload', @$actions);

        my ($ad, $log) = run($c, $where, $name);

        if (defined $status) {
            ok(!defined $ad, "$name: no ad");
            is($log->{status}, $status, "$name: \$kontext_status");
        }

        if (ref $reason) {
            like($log->{reason}, $reason, "$name: \$kontext_reason");

        } elsif (defined $reason) {
            is($log->{reason}, $reason, "$name: \$kontext_reason");
        }

        $more->($ad, $name) if $more;
    }

    # where no header of the ad server's does anything, the ad is there

    if ($where eq 'ships') {
        foreach my $fault (grep { $_->[0] =~ /X-Accel/ } @faults) {
            my ($what, $actions) = @$fault;

            $ads->on_actions('/preload', @$actions);

            my ($ad, $log) = run($c, $where, "$where, $what");

            ok(defined $ad, "$where, $what: the ad");
            is($log->{status}, 'filled', "$where, $what: filled");
        }
    }
}


# faults of /init: never fatal, the ad comes

$ads->on('/preload', 200, Kontext::Mock->bid);

foreach my $where ('ships', 'plain') {
    foreach my $fault (@faults) {
        my ($what, $actions) = @$fault;
        my $name = "$where, /init: $what";

        next if $what =~ /to the chat/;

        $ads->on_actions('/init', @$actions);

        my ($ad, $log) = run($c, $where, $name);

        ok(defined $ad, "$name: the ad all the same");
        is($log->{status}, 'filled', "$name: \$kontext_status");
    }

    # one by one through all members of other types

    foreach my $body ('{"enabled":"no","preloadTimeout":"soon"}',
                      '{"enabled":null,"preloadTimeout":-1}',
                      '{"preloadTimeout":1e300}', '{"preloadTimeout":0.5}',
                      '{"enabled":[],"preloadTimeout":{},"reportErrors":7}')
    {
        $ads->on('/init', 200, $body);

        my ($ad, $log) = run($c, $where, "$where, /init: $body");

        ok(defined $ad, "$where, /init: $body: the ad all the same");
    }
}

$ads->on('/init', 200, { enabled => JSON::PP::true() });


# not reached at all

foreach my $case ([ 'refusing', 'connections refused', 'request_failed' ],
                  [ 'tls', 'no TLS on the other side', 'request_failed' ],
                  [ 'denied', 'a location that returns 403', 'unknown' ],
                  [ 'silent', 'a location that returns 444', qr/./ ],
                  [ 'static', 'a location of files', 'unknown' ])
{
    my ($where, $name, $reason) = @$case;

    my $t = 't' . ++$n;

    $c->post_json("/$where/chat/completions?t=$t", chat('Which shoes?'),
                  'X-User-Id' => $t);

    my $req = $llm->wait_request(path => "/$where/chat/completions");

    $req->start->event(@ANSWER)->finish;

    my $res = $c->read_response;

    is($res->status, 200, "$name: the status");
    is($res->body, sse(@ANSWER), "$name: the stream as it was");
    ok($c->is_open, "$name: the connection stays");

    my $log = logged($t);

    is($log->{injected}, '', "$name: nothing injected");

    if (ref $reason) {
        like($log->{reason}, $reason, "$name: \$kontext_reason");

    } elsif (defined $reason) {
        is($log->{status}, 'error', "$name: \$kontext_status");
        is($log->{reason}, $reason, "$name: \$kontext_reason");
    }
}


# silence, and answers that stop in the middle

$ads->hold('/init');

foreach my $case ([ 'no answer', undef ],
                  [ 'half a head', 'HTTP/1.1 200 OK' . "\r\nContent-Le" ],
                  [ 'a head', $http . "Content-Length: 900\r\n\r\n" ],
                  [ 'half an answer', $http . "Content-Length: 900\r\n\r\n"
                                      . substr($good, 0, 30) ],
                  [ 'half a chunk', $http . "Transfer-Encoding: chunked\r\n\r\n"
                                    . "ff\r\n" . substr($good, 0, 30) ],
                  [ 'an answer and no end of it', "$http\r\n$good" ])
{
    my ($what, $bytes) = @$case;

    $ads->hold('/preload');
    $ads->on_actions('/preload', [ send => $bytes ]) if defined $bytes;

    my $name = "silence after $what";
    my $t = 't' . ++$n;

    $c->post_json("/short/chat/completions?t=$t", chat('Which shoes?'),
                  'X-User-Id' => $t);

    my $req = $llm->wait_request;

    # both are on their way when the answer ends

    my $preload = call_of($t, '/preload');
    my $init = call_of($t, '/init');

    $req->start->event(@ANSWER)->finish;
    is($c->read_response->body, sse(@ANSWER), "$name: the stream as it was");

    my $log = logged($t);

    is($log->{status}, 'pending', "$name: pending");
    is($log->{reason}, 'late', "$name: late");
    is($preload->wait_closed, 'eof', "$name: the preload ends");
    is($init->wait_closed, 'eof', "$name: the /init ends");
    ok($c->is_open, "$name: the connection stays");
}


# and it is a good ad server again

$ads->on('/init', 200, { enabled => JSON::PP::true() });
$ads->on('/preload', 200, Kontext::Mock->bid);

foreach my $where ('ships', 'plain') {
    my ($ad, $log) = run($c, $where, "$where, in the end");

    ok(defined $ad, "$where, in the end: the ad");
}

$nginx->stop_ok(allow => [ qr/SSL_do_handshake\(\) failed/ ]);

done_testing;
