#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Clients that do not read, and streams of many megabytes: the worker keeps
# what its buffers take and no more, and every byte arrives.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;
use Socket qw(SOL_SOCKET SO_RCVBUF);

# More than sockets take: the client's and nginx's towards it are small, and
# a receive buffer grows only with what is read.

my $SIZE = 8 * 1024 * 1024;
my $GROWTH = 4 * 1024;                      # kilobytes

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;

my $nginx = Kontext::Nginx->new(
    log_level => 'notice',
    vars      => { llm => $llm->addr, ads => $ads->addr },
    http      => <<'CONF',
    log_format events escape=json
        '{"t":"$arg_t","status":"$kontext_status","reason":"$kontext_reason",'
        '"injected":"$kontext_injected","sent":"$body_bytes_sent"}';

    server {
        listen 127.0.0.1:@port@ sndbuf=64k;

        access_log               logs/events.log events;

        # clients that do not read are what this is about, however long it takes

        send_timeout             600s;
        proxy_read_timeout       600s;

        kontext                  on;
        kontext_publisher_token  acme-dev;
        kontext_user_id          u-1;
        kontext_conversation_id  $arg_t;
        kontext_grace            20s;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /v1/ {
            proxy_pass http://@llm@;
        }

        location /unbuffered/ {
            proxy_pass      http://@llm@;
            proxy_buffering off;
        }

        location /small/ {
            proxy_pass        http://@llm@;
            proxy_buffer_size 1k;
            proxy_buffers     4 1k;
            proxy_busy_buffers_size 2k;
        }

        location /large/ {
            proxy_pass        http://@llm@;
            proxy_buffer_size 256k;
            proxy_buffers     4 256k;
            proxy_busy_buffers_size 256k;
            output_buffers    2 64k;
        }

        location /gzip/ {
            proxy_pass     http://@llm@;
            gzip           on;
            gzip_types     text/event-stream;
        }
    }
CONF
);

my $pid = $nginx->worker_pid;
my $n = 0;

# the figures are of nginx, not of a sanitizer or of a simulated processor

my $plain = do {
    open(my $fh, '<', "/proc/$pid/maps") or die "maps: $!";
    !grep { /lib[at]san|vgpreload/ } <$fh>;
} && `nm -D '@{[$nginx->binary]}' 2>/dev/null` !~ /__asan_/;


sub logged {
    my ($t) = @_;
    my $log = $nginx->wait_file('logs/events.log', qr/"t":"$t".*\n/);

    return json($log =~ /^(.*"t":"$t".*)$/m);
}


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


# the worker's memory in kilobytes: now, and its highest since the last call
# of forget_peak()

sub memory {
    my ($what) = @_;

    open(my $fh, '<', "/proc/$pid/status") or die "status: $!";
    my ($value) = join('', <$fh>) =~ /^$what:\s+(\d+) kB/m
        or die "no $what";

    return $value;
}


sub forget_peak {
    open(my $fh, '>', "/proc/$pid/clear_refs") or return;
    syswrite($fh, "5\n");
}


sub ask {
    my ($where) = @_;
    my $t = 't' . ++$n;
    my $c = $nginx->client;

    setsockopt($c->{fh}, SOL_SOCKET, SO_RCVBUF, 65536);
    $c->post_json("/$where/chat/completions?t=$t", chat('Tell me all.'));

    return ($c, $llm->wait_request, $t);
}


# Nothing moves any more: what the backend can give is given, what the worker
# can pass on is passed on.  A round that moves nothing is the proof.

sub settle {
    my ($req) = @_;
    my $before = -1;

    for ( ;; ) {
        $llm->sync;
        $nginx->barrier;

        my $now = memory('VmRSS') . '/' . ($req->conn->{acked} // '');

        last if $now eq $before;
        $before = $now;
    }
}


sub frames_of {
    my ($size) = @_;
    my $text = join('', map { chr(97 + $_ % 26) } 1 .. $size);

    return map { my $i = sprintf('%08d', $_);
                 'data: ' . chat_chunk("$i $text") . "\n\n" }
               1 .. $SIZE / ($size + 200);
}


my $end = sse(chat_finish(), '[DONE]');

# one run to have what a first run allocates

{
    my ($c, $req, $t) = ask('v1');

    $req->start->event(chat_role(), chat_chunk('Light'))->chunk($end)->finish;
    $c->read_response;
    logged($t);
}


# a client that does not read

foreach my $case ([ 'frames of 60 KB, whole', 60_000, 0 ],
                  [ 'frames of 60 KB, cut every 7,001 bytes', 60_000, 7001 ],
                  [ 'frames of 300 bytes, cut every 977 bytes', 300, 977 ],
                  [ 'frames of 100 KB, whole', 100_000, 0 ],
                  [ 'frames of 1 MB, cut every 5,003 bytes', 1_000_000,
                    5003 ])
{
    my ($what, $size, $cut) = @$case;
    my $body = join('', sse(chat_role(), chat_chunk('Light')),
                        frames_of($size));
    my @pieces = $cut ? unpack("(a$cut)*", $body)
                      : $body =~ /(.*?\n\n)/gs;

    foreach my $where ('v1', 'unbuffered', 'small') {
        my $name = "$where, $what";

        forget_peak();

        my $before = memory('VmRSS');
        my ($c, $req, $t) = ask($where);

        # a chunk for each piece; the mock writes as nginx reads

        $req->start->chunk(@pieces, $end)->finish;
        settle($req);

        my $held = memory('VmRSS') - $before;

        ok(!$c->{closed} && $req->conn->{acked} < $req->conn->{sent},
           "$name: the backend waits for the client");

        my $res = $c->read_response;
        my ($whole, $ad) = without_kontext($res->body);

        $req->wait_sent;

        ok($whole eq $body . $end, "$name: every byte arrives");
        ok(defined $ad, "$name: and the ad") or diag(json(logged($t)));

        my $peak = memory('VmHWM') - $before;

      SKIP: {
            skip 'memory of a sanitizer', 2 if !$plain;

            cmp_ok($held, '<', $GROWTH,
                   "$name: $held kilobytes while the client does not read");
            cmp_ok($peak, '<', $GROWTH, "$name: $peak kilobytes at most");
        }

        $c->close;
        logged($t);
    }
}


# many clients that do not read, at the same time; others are served

{
    my @pieces = frames_of(60_000);
    my $body = join('', @pieces);
    my $before = memory('VmRSS');
    my @all = map { [ ask('v1') ] } 1 .. 4;

    $_->[1]->start->chunk(@pieces, $end)->finish foreach @all;
    settle($_->[1]) foreach @all;

    my $held = memory('VmRSS') - $before;

  SKIP: {
        skip 'memory of a sanitizer', 1 if !$plain;

        cmp_ok($held, '<', $GROWTH, "4 that do not read: $held kilobytes");
    }

    my ($c, $req, $t) = ask('v1');

    $req->start->event(chat_role(), chat_chunk('Light'))->chunk($end)->finish;
    like($c->read_response->body, qr/"kontext":/,
         '4 that do not read: the fifth is served');
    logged($t);

    foreach my $one (@all) {
        my ($whole, $ad) = without_kontext($one->[0]->read_response->body);

        ok($whole eq $body . $end, '4 that did not read: every byte arrives');
        ok(defined $ad, '4 that did not read: and the ad')
            or diag(json(logged($one->[2])));
        $one->[0]->close;
    }
}


# the client does not read, then leaves

foreach my $how ('close', 'reset') {
    my ($c, $req, $t) = ask('v1');

    $req->start->chunk(frames_of(60_000));
    settle($req);
    $c->$how;
    like($req->wait_closed, qr/eof|reset/,
         "$how by a client that does not read: the backend is left");
    logged($t);
}


# the end of an answer is held behind a client that does not read

foreach my $status (200, 204) {
    $ads->hold('/preload');

    my $body = join('', frames_of(60_000));
    my ($c, $req, $t) = ask('v1');
    my $preload;

    1 while ($preload = $ads->wait_request(path => '/preload'))
            ->json->{conversationId} ne $t;

    $req->start->chunk($body, $end)->finish;
    settle($req);
    $preload->respond($status, $status == 200 ? Kontext::Mock->bid : ());

    my ($whole, $ad) = without_kontext($c->read_response->body);

    ok($whole eq $body . $end,
       "an ad server that says $status meanwhile: every byte arrives");
    is(defined $ad ? 200 : 204, $status,
       "an ad server that says $status meanwhile: the ad");
    logged($t);
    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# a client that reads byte by byte what it gets

{
    my @texts = map { "word $_ " } 1 .. 40;
    my ($c, $req, $t) = ask('small');
    my $body = sse(chat_role(), map { chat_chunk($_) } @texts);

    $req->start->chunk($body, $end)->finish->wait_sent;

    my ($raw, $fh) = ('', $c->{fh});

    # past the library, which reads as much as there is

    $fh->blocking(1);

    while ($raw !~ /0\r\n\r\n\z/) {
        sysread($fh, $raw, 1, length $raw) or last;
    }

    my $res = Kontext::HTTP->new(kind => 'response');

    ok($res->feed(\$raw), 'byte by byte: the answer ends');

    my ($whole, $ad) = without_kontext($res->body);

    is($whole, $body . $end, 'byte by byte: every byte');
    ok(defined $ad, 'byte by byte: the ad');
    logged($t);
}


# frames larger than what is read

foreach my $where ('v1', 'unbuffered', 'small', 'large') {
    foreach my $size (65_000, 65_536, 66_000, 200_000, 3_000_000) {
        my $name = "$where, a frame of $size bytes";
        my $big = chat_chunk('x' x $size);
        my $body = sse(chat_role(), chat_chunk('Light'), $big,
                       chat_chunk(' ones')) . $end;

        foreach my $cut (0, 30_011) {
            my ($c, $req, $t) = ask($where);

            $req->start->chunk($cut ? unpack("(a$cut)*", $body) : $body)
                ->finish;

            my ($whole, $ad) = without_kontext($c->read_response->body);

            ok($whole eq $body, "$name, cut by $cut: it passes");
            logged($t);
        }
    }

    # the marker in such a frame is not seen; the bytes are the backend's

    my $finish = chat_finish() =~ s/"delta":\{\}/'"delta":{"content":"'
                                                 . 'x' x 200_000 . '"}'/re;
    my $body = sse(chat_role(), chat_chunk('Light'), $finish, '[DONE]');
    my ($c, $req, $t) = ask($where);

    $req->start->chunk($body)->finish;
    ok($c->read_response->body eq $body,
       "$where, a finish chunk of 200,000 bytes: it passes as it was");
    is(logged($t)->{injected}, '', "$where: nothing injected");

    # no end of the line for megabytes, and no end of the frame

    $body = sse(chat_role()) . ('y' x 3_000_000);
    ($c, $req, $t) = ask($where);
    $req->start->chunk($body)->finish;
    ok($c->read_response->body eq $body, "$where, a line without an end");
    is(logged($t)->{injected}, '', "$where: nothing injected");

    $body = sse(chat_role()) . ("data: y\n" x 300_000);
    ($c, $req, $t) = ask($where);
    $req->start->chunk($body)->finish;
    ok($c->read_response->body eq $body, "$where, a frame without an end");
    is(logged($t)->{injected}, '', "$where: nothing injected");
}


# gzip behind it, with a client that reads late

{
    my $t = 't' . ++$n;
    my $c = $nginx->client;
    my $body = join('', frames_of(30_000));

    $c->post_json("/gzip/chat/completions?t=$t", chat('Tell me all.'),
                  'Accept-Encoding' => 'gzip');

    my $req = $llm->wait_request;

    $req->start->chunk(unpack('(a9973)*', $body), $end)->finish;
    settle($req);

    require IO::Uncompress::Gunzip;

    my $packed = $c->read_response->body;

    IO::Uncompress::Gunzip::gunzip(\$packed, \my $plain_text)
        or die "gunzip failed";

    my ($whole, $ad) = without_kontext($plain_text);

    ok($whole eq $body . $end, 'gzip: every byte');
    ok(defined $ad, 'gzip: and the ad');
    logged($t);
}

$nginx->stop_ok;

done_testing;
