#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Answers in one piece: the ad is the last member of the top-level object, the
# length is right, and without an ad the response is the backend's.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Compress::Raw::Zlib ();
use POSIX ();
use Socket qw(SOL_SOCKET SO_RCVBUF);

use Kontext::Test;
use ChatSite qw(answer_of whole_of);

my $CHAT = '/v1/chat/completions';
my $JSON = 'application/json';
my $NO = JSON::PP::false();
my $BID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
my $MEGABYTE = 1024 * 1024;

my $second = Kontext::Mock->new(name => 'second backend');
my $refusing = Kontext::Mock->new(name => 'refusing ad server');

$refusing->refuse;

my $site = ChatSite->new(
    listen => ' sndbuf=64k',
    vars   => { second => $second->addr, refusing => $refusing->addr },
    http   => <<'CONF',
    proxy_cache_path @dir@/cache keys_zone=answers:1m;
CONF
    server => <<'CONF',
        kontext_publisher_token acme-dev;
        kontext_user_id         $http_x_user;
        kontext_conversation_id $http_x_conversation;

        location /_refusing/ {
            internal;
            proxy_pass http://@refusing@/;
        }

        location /unbuffered/ {
            kontext on;
            kontext_grace 25s;
            proxy_buffering off;
            proxy_pass http://@llm@/;
        }

        location /plain-unbuffered/ {
            proxy_buffering off;
            proxy_pass http://@llm@/;
        }

        location /upstream11/ {
            kontext on;
            kontext_grace 25s;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass http://@llm@/;
        }

        location /small/ {
            kontext on;
            kontext_grace 25s;
            sendfile on;
            proxy_buffer_size 1k;
            proxy_buffers 4 1k;
            proxy_busy_buffers_size 2k;
            proxy_pass http://@llm@/;
        }

        location /short/ {
            kontext on;
            kontext_grace 50ms;
            proxy_pass http://@llm@/;
        }

        location /default/ {
            kontext on;
            proxy_pass http://@llm@/;
        }

        location /timeout/ {
            kontext on;
            kontext_grace 25s;
            send_timeout 200ms;
            proxy_pass http://@llm@/;
        }

        location /never/ {
            kontext on;
            kontext_grace 0;
            proxy_pass http://@llm@/;
        }

        location /refused/ {
            kontext on;
            kontext_ad_server /_refusing;
            proxy_pass http://@llm@/;
        }

        location /ignorant/ {
            kontext on;
            kontext_grace 25s;
            proxy_ignore_client_abort on;
            proxy_pass http://@llm@/;
        }

        location /shadow/ {
            kontext on;
            kontext_grace 25s;
            kontext_inject none;
            proxy_pass http://@llm@/;
        }

        location /track/ {
            kontext track_only;
            kontext_grace 25s;
            proxy_pass http://@llm@/;
        }

        location /off/ {
            kontext off;
            proxy_pass http://@llm@/;
        }

        location /look/ {
            kontext on;
            kontext_grace 25s;
            kontext_label "Anzeige \"ä\" \\ 🚲";
            kontext_theme dark;
            kontext_frame_origin https://ads.example.com;
            proxy_pass http://@llm@/;
        }

        location /gzip/ {
            kontext on;
            kontext_grace 25s;
            gzip on;
            gzip_types application/json;
            gzip_min_length 0;
            proxy_pass http://@llm@/;
        }

        location /plain-gzip/ {
            gzip on;
            gzip_types application/json;
            gzip_min_length 0;
            proxy_pass http://@llm@/;
        }

        location /ranges/ {
            kontext on;
            kontext_grace 25s;
            proxy_force_ranges on;
            proxy_pass http://@llm@/;
        }

        location /cached/ {
            kontext on;
            kontext_grace 25s;
            sendfile on;
            proxy_cache answers;
            proxy_cache_methods POST;
            proxy_cache_key $http_x_key;
            proxy_cache_valid 200 1h;
            add_header X-Cache $upstream_cache_status;
            proxy_pass http://@llm@/;
        }

        location /stored/ {
            kontext on;
            kontext_grace 25s;
            proxy_store @dir@/stored.json;
            proxy_pass http://@llm@/;
        }

        location /fallback/ {
            kontext on;
            kontext_grace 25s;
            proxy_intercept_errors on;
            error_page 503 = @second;
            proxy_pass http://@llm@/;
        }

        location @second {
            kontext on;
            kontext_grace 25s;
            proxy_pass http://@second@;
        }
CONF
);

my $ads = $site->ads;
my $llm = $site->llm;
my $nginx = $site->nginx;

my $ANSWER = whole_of('Light ones.');
my @VALIDATORS = ('ETag' => '"strong"', 'Accept-Ranges' => 'bytes',
                  'Last-Modified' => 'Tue, 24 Nov 2026 10:00:00 GMT');
my @MORE = ('X-Request-Id' => 'r-1', 'Cache-Control' => 'no-store',
            'Set-Cookie' => 'a=b; Path=/', 'X-Many' => 'one',
            'X-Many' => 'two');

my $conversations = 0;


# a chat whose answer comes in one piece

sub question { return chat({ stream => $NO }, @_ ? @_ : 'Which shoes?') }


# sends it in a conversation of its own

sub ask {
    my ($where, %args) = @_;
    my $headers = { 'X-Conversation' => 'c-' . ++$conversations,
                    %{delete $args{headers} // {}} };

    return $site->ask(delete $args{chat} // question(), %args,
                      uri => "$where$CHAT", headers => $headers);
}


# The same, and the ad server has been asked; its answer is there, if it has
# one.  What it was asked for turns before is of no interest.

sub ask_ad {
    $_->{taken} = 1 foreach $ads->requests;

    return ask(@_, asks => ['init', 'preload']);
}


# The ways of a backend to send a body.  Each sends it, but for the last byte
# or what says that it was the last, and returns the end.

my %FRAMINGS = (
    'length' => sub {
        my ($req, $body, @headers) = @_;

        $req->send(Kontext::Mock->response(200, $body, 'Content-Type' => $JSON,
                                           @headers));
        return sub {};
    },
    'chunked' => sub {
        my ($req, $body, @headers) = @_;

        $req->start(200, 'Content-Type' => $JSON, @headers);

        my $size = 37 + int(length($body) / 100);

        $req->chunk(unpack("(a$size)*", $body));
        return sub { $_[0]->finish };
    },
    'until closed' => sub {
        my ($req, $body, @headers) = @_;
        my $head = Kontext::Mock->response(200, '', 'Content-Type' => $JSON,
                                           @headers, 'Content-Length' => 0);

        $head =~ s/Content-Length: 0\r\n//;
        $req->send($head . $body);
        return sub { $_[0]->close };
    },
);


# a whole response of a framing, and the client has read it

sub respond {
    my ($turn, $framing, $body, @headers) = @_;

    $turn->{sent} = $body;
    $FRAMINGS{$framing}->($turn->request, $body, @headers)->($turn->request);
    $turn->{response} = $turn->client->read_response;

    return $turn;
}


# The answer has the ad as its last member, its length is right, and nothing
# else has changed.  Returns the ad.

sub injected_ok {
    my ($turn, $name) = @_;
    my $res = $turn->response;
    my ($body, $member) = without_kontext($res->body);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    if (!defined $member) {
        fail("$name: no ad: " . json($turn->event));
        return {};
    }

    is($body, $turn->{sent}, "$name: no other byte has changed");
    like($res->body, qr/,"kontext":\Q$member\E\s*\}\s*\z/,
         "$name: the last member of the top-level object");
    unlike($member, qr/[^\x20-\x7e]/, "$name: ASCII");
    is_deeply(eval { json($res->body)->{kontext} }, json($member),
              "$name: a parser finds it") if length($body) < 100_000;

    my $length = $res->header('Content-Length');

    is($length, length $res->body, "$name: the length is right")
        if defined $length;

    my $event = $turn->event;
    my $ad = json($member);

    is($turn->why, 'filled ', "$name: filled, and no reason against it");
    is($event->{injected}, 'member', "$name: injected as a member");
    is($event->{message_id}, $ad->{messageId}, "$name: with the message's id");
    is($ad->{ads}[0]{frameUrl}, $event->{frame_url}, "$name: and its frame");

    return $ad;
}


# the head of a response but for what differs with an ad, and for the time

sub head_of {
    my ($res) = @_;

    return $res->head =~ s/^Date: [^\r\n]*\r?\n//mr
                      =~ s/^Content-Length: \d+/Content-Length: n/mr;
}


# the turn has no ad for this reason, and the client has what it would have
# without the module; %how is for ask()

sub untouched_ok {
    my ($turn, $why, $name, $answer, %how) = @_;
    my $plain = ask($how{plain} // '/plain', headers => $how{headers} // {});

    $answer->($plain);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($turn->response->head =~ s/^Date: .*//mr,
       $plain->response->head =~ s/^Date: .*//mr,
       "$name: the headers are the same");
    is($turn->body, $plain->body, "$name: the body is the same");

    # chunks may be of other sizes

    is($turn->raw, $plain->raw, "$name: every byte is the same")
        if !$turn->response->header('Transfer-Encoding');

    is($turn->event->{injected}, '', "$name: nothing is injected");

    ref $why ? like($turn->why, $why, "$name: the reason")
             : is($turn->why, $why, "$name: the reason");
}


# what is put in

{
    my $turn = respond(ask_ad(''), 'length', $ANSWER, @MORE);
    my $ad = injected_ok($turn, 'an answer');
    my $id = $ad->{messageId} // 'none';

    like($id, qr/\Akx1_[a-z2-7]{26}\z/, 'the id of the message');
    is_deeply($ad, {
        messageId => $id,
        ads       => [ { bidId => $BID, code => 'inlineAd',
                         label => 'Sponsored',
                         frameUrl => 'https://server.megabrain.co/api/frame/'
                                     . "$BID?code=inlineAd&messageId=$id"
                                     . '&sdk=sdk-js' } ],
    }, 'message id, bid id, code, label and frame URL, and nothing more');

    is($turn->response->header('Content-Length'),
       length($ANSWER) + length(json($ad)) + length(',"kontext":'),
       'the length is that of both');

    my $plain = respond(ask('/plain'), 'length', $ANSWER, @MORE);

    is(head_of($turn->response), head_of($plain->response),
       'no other header has changed');
    is($turn->request->header('Accept-Encoding') // 'identity', 'identity',
       'the backend does not compress');
    ok($turn->client->is_open, 'the connection stays');

    $turn = respond(ask_ad('/look'), 'length', $ANSWER);
    $ad = injected_ok($turn, 'a look');
    is($ad->{ads}[0]{label}, "Anzeige \"\x{e4}\" \\ \x{1f6b2}", 'a label');
    like($ad->{ads}[0]{frameUrl},
         qr{\Ahttps://ads\.example\.com/api/frame/.*&theme=dark\z},
         'origin and theme');
}


# how it comes from the backend

foreach my $where ('', '/unbuffered', '/upstream11', '/small') {
    foreach my $framing (sort keys %FRAMINGS) {
        my $name = "$framing, " . ($where || 'by default');
        my $turn = respond(ask_ad($where), $framing, $ANSWER);

        injected_ok($turn, $name);

        my $length = $turn->response->header('Content-Length');
        my $coding = $turn->response->header('Transfer-Encoding');

        if ($framing eq 'length') {
            is($length, length $turn->body, "$name: a length stays a length");
            is($coding, undef, "$name: and no chunks");

        } else {
            is($length, undef, "$name: no length");
            is($coding, 'chunked', "$name: chunks");
        }

        like($turn->raw, qr/\r\n0\r\n\r\n\z/, "$name: whole")
            if defined $coding;
        ok($turn->client->is_open, "$name: the connection stays");
    }
}


# The validators of the backend are of other bytes.

{
    my $turn = respond(ask_ad(''), 'length', $ANSWER, @VALIDATORS);

    injected_ok($turn, 'with validators');
    isnt($turn->response->header('ETag') // '', '"strong"',
         'an ETag does not say that it is the same');
    is($turn->response->header($_), undef, "no $_")
        foreach 'Last-Modified', 'Accept-Ranges';

    my @digests = ('Content-MD5' => 'Q2hlY2sgSW50ZWdyaXR5IQ==',
                   'Digest' => 'sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7k',
                   'Content-Digest' => 'sha-256=:X48E9qOokqqrvdts8nOJRJN3OW=:',
                   'Repr-Digest' => 'sha-256=:X48E9qOokqqrvdts8nOJRJN3OW=:');

    $turn = respond(ask_ad(''), 'length', $ANSWER, @digests);
    injected_ok($turn, 'with digests');

    while (my ($digest) = splice(@digests, 0, 2)) {
        is($turn->response->header($digest), undef, "no $digest");
    }
}


# the forms an answer may have

my $pretty = JSON::PP->new->utf8->canonical->pretty;
my $stop = '"finish_reason":"stop"';

my %FORMS = (
    'a line end behind it'      => "$ANSWER\n",
    'white space around it'     => " \r\n\t$ANSWER\r\n \n",
    'indented'                  => $pretty->encode(json($ANSWER)),
    'indented by tabs, CRLF'    => $pretty->encode(json($ANSWER))
                                   =~ s/^ +/\t/mgr =~ s/\n/\r\n/gr,
    'the fewest members'        => '{"choices":[{"message":{"content":"Hi"},'
                                   . "$stop}]}",
    'the members turned around' => '{"usage":{"a":[1,{}]},"choices":[{'
                                   . "$stop,\"message\":{\"content\":\"Hi\","
                                   . '"role":"assistant"},"index":0}],'
                                   . '"id":"x"}',
    'choices last'              => '{"id":"x","choices":[{"index":0,'
                                   . '"message":{"content":"Hi"},'
                                   . "$stop}]}",
    'finish_reason length'      => $ANSWER =~ s/"stop"/"length"/r,
    'an error of null'          => substr($ANSWER, 0, -1) . ',"error":null}',
    'reasoning beside the text' => whole_of({ role => 'assistant',
                                              reasoning_content => 'Hm.',
                                              content => 'Light ones.' }),
    'tool calls of none'        => whole_of({ role => 'assistant',
                                              content => 'Light ones.',
                                              tool_calls => undef,
                                              function_call => undef }),
    'an empty list of calls'    => whole_of({ role => 'assistant',
                                              content => 'Light ones.',
                                              tool_calls => [] }),
    'braces and quotes in it'   => whole_of("}]}\"\\{\"kontext\" : [\x{1f6b2}"),
    'escapes'                   => JSON::PP->new->ascii->canonical->encode(
        json(whole_of("\x{1f6b2}\x{e9}\"\\\n\t\x{1}\x{2028}"))),
    'escaped member names'      => $ANSWER =~ s/"choices"/"\\u0063hoices"/r
                                           =~ s/"content"/"cont\\u0065nt"/r,
    'text of many kilobytes'    => whole_of(join(' ', 1 .. 40_000)),
);

foreach my $name (sort keys %FORMS) {
    foreach my $framing ('length', 'chunked') {
        injected_ok(respond(ask_ad(''), $framing, $FORMS{$name}),
                    "$name, $framing");
    }
}

foreach my $type ("$JSON; charset=utf-8", "$JSON;charset=UTF-8",
                  'Application/JSON')
{
    my $turn = ask_ad('');

    $turn->respond(200, $ANSWER, 'Content-Type' => $type);
    injected_ok($turn, "type $type");
    is($turn->response->header('Content-Type'), $type, "type $type: stays");
}


# It is the answer that tells: a backend that does not stream although it was
# asked to, and one that streams although it was not.

{
    my $turn = respond(ask_ad('', chat => chat('Which shoes?')), 'length',
                       $ANSWER);

    injected_ok($turn, 'not streamed, but asked to be');

    $turn = ask_ad('')->answer('Light ones.');

    my ($body, $ad) = without_kontext($turn->body);

    is($body, answer_of('Light ones.'), 'streamed unasked: the stream');
    ok(defined $ad, 'streamed unasked: with its ad');
}


# many pieces, each of them taken before the next one comes

my $SHORT = '{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}';

sub pieces {
    my ($turn, $framing, @pieces) = @_;
    my $req = $turn->request;
    my $body = join('', @pieces);

    $turn->{sent} = $body;

    if ($framing eq 'length') {
        my $all = Kontext::Mock->response(200, $body, 'Content-Type' => $JSON);

        $req->send(substr($all, 0, length($all) - length($body)));

    } else {
        $req->start(200, 'Content-Type' => $JSON);
    }

    foreach my $piece (@pieces) {
        $framing eq 'length' ? $req->send($piece) : $req->chunk($piece);
        $req->wait_sent;
        $nginx->barrier;
    }

    $req->finish if $framing ne 'length';
    $turn->{response} = $turn->client->read_response;

    return $turn;
}

foreach my $where ('', '/unbuffered') {
    foreach my $framing ('length', 'chunked') {
        my $name = "$framing, " . ($where || 'buffered');

        injected_ok(pieces(ask_ad($where), $framing,
                           $ANSWER =~ /(.{1,7})/gs), "$name, pieces of 7");
        injected_ok(pieces(ask_ad($where), $framing, split(//, $SHORT)),
                    "$name, byte by byte");

        my @bad;

        foreach my $at (1 .. length($SHORT) - 1) {
            my $turn = pieces(ask_ad($where), $framing, substr($SHORT, 0, $at),
                              substr($SHORT, $at));
            my ($body, $ad) = without_kontext($turn->body);
            my $length = $turn->response->header('Content-Length');

            push @bad, $at if $body ne $SHORT || !defined $ad
                              || ($framing eq 'length') != defined $length
                              || $framing eq 'length'
                                 && $length != length $turn->body;
        }

        is(join(' ', @bad), '', "$name, cut in two at every byte");
    }
}


# what goes through a temporary file on its way, and a client that reads late

{
    my $large = whole_of('x' x 600_000);

    foreach my $framing (sort keys %FRAMINGS) {
        injected_ok(respond(ask_ad('/small'), $framing, $large),
                    "many buffers, $framing");

        my $c = $nginx->client;

        setsockopt($c->{fh}, SOL_SOCKET, SO_RCVBUF, 65536);

        my $turn = ask_ad('/small', client => $c);

        $turn->{sent} = $large;
        $FRAMINGS{$framing}->($turn->request, $large)->($turn->request);
        $turn->request->wait_sent;
        $nginx->barrier;
        $turn->{response} = $c->read_response;
        injected_ok($turn, "a client that reads late, $framing");
    }
}


# sizes: up to a megabyte it may have an ad

sub of_size {
    my ($size) = @_;

    return whole_of('x' x ($size - length whole_of('')));
}

is(length of_size($MEGABYTE), $MEGABYTE, 'an answer of a megabyte');

foreach my $where ('', '/unbuffered') {
    foreach my $framing (sort keys %FRAMINGS) {
        foreach my $size ($MEGABYTE - 1, $MEGABYTE) {
            injected_ok(respond(ask_ad($where), $framing, of_size($size)),
                        "$size bytes, $framing " . ($where || 'buffered'));
        }

        foreach my $size ($MEGABYTE + 1, 3 * $MEGABYTE) {
            my $name = "$size bytes, $framing " . ($where || 'buffered');
            my $body = of_size($size);
            my $answer = sub { respond($_[0], $framing, $body, @VALIDATORS) };

            untouched_ok($answer->(ask_ad($where)), 'filled large_response',
                         $name, $answer, plain => $where eq ''
                                                  ? '/plain'
                                                  : '/plain-unbuffered');
        }
    }
}

# they wait for nothing: not for the ad, and not for their own end

$ads->hold('/preload');

foreach my $where ('', '/unbuffered') {
    foreach my $framing (sort keys %FRAMINGS) {
        my $name = "large, $framing " . ($where || 'buffered');
        my $turn = ask_ad($where);
        my $body = of_size(2 * $MEGABYTE);
        my $first = substr($body, 0, $MEGABYTE + 300_000);
        my $req = $turn->request;

        if ($framing eq 'chunked') {
            $req->start(200, 'Content-Type' => $JSON)->chunk($first);

        } else {
            my $head = Kontext::Mock->response(200, $body,
                                               'Content-Type' => $JSON);

            $head =~ s/Content-Length: \d+\r\n// if $framing ne 'length';
            $req->send(substr($head, 0, length($head) - length($body)), $first);
        }

        wait_until("$name: the beginning", sub {
            length $turn->client->peek->body > $MEGABYTE;
        });
        pass("$name: the client has the first megabyte");

        my $rest = substr($body, length $first);

        $framing eq 'chunked' ? $req->chunk($rest)->finish : $req->send($rest);
        $req->close if $framing eq 'until closed';

        is($turn->client->read_response->body, $body, "$name: all of it");
        is($turn->asked('preload')->wait_closed, 'eof',
           "$name: the ad call ends");
        is($turn->event->{reason}, 'large_response', "$name: the reason");
        is($turn->event->{injected}, '', "$name: nothing injected");
    }
}


# The answer is there and the ad is not: it waits.

sub held_ok {
    my ($turn, $framing, $name, $body) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    $turn->{sent} = $body // $ANSWER;
    $FRAMINGS{$framing}->($turn->request, $turn->{sent})->($turn->request);
    $turn->request->wait_sent;
    $nginx->barrier;
    ok(!$turn->client->peek->complete, "$name: it waits for the ad");

    return $turn;
}

sub released {
    my ($turn) = @_;

    $turn->{response} = $turn->client->read_response;

    return $turn;
}

foreach my $where ('', '/unbuffered') {
    foreach my $framing (sort keys %FRAMINGS) {
        my $name = "$framing, " . ($where || 'buffered');
        my $turn = held_ok(ask_ad($where), $framing, $name);

        $turn->asked('preload')->respond(200, Kontext::Mock->bid);
        injected_ok(released($turn), $name);
        like($turn->event->{hold_time}, qr/\A\d+\.\d{3}\z/, "$name: hold time");
        like($turn->event->{preload_time}, qr/\A\d+\.\d{3}\z/,
             "$name: preload time");
        ok($turn->client->is_open, "$name: the connection stays");
    }
}

# the ad server has none, or fails

foreach my $case ([ '204', sub { $_[0]->respond(204) },
                    'no_fill unfilled_bid' ],
                  [ 'a skip', sub { $_[0]->respond(200, {
                        sessionId => Kontext::Mock->bid->{sessionId},
                        bids => [], skip => JSON::PP::true(),
                        skipCode => 'frequency_cap' }) },
                    'no_fill frequency_cap' ],
                  [ '500', sub { $_[0]->respond(500, 'oops') },
                    'error unknown' ],
                  [ 'rubbish', sub { $_[0]->respond(200, '{"bids"') },
                    'error request_failed' ],
                  [ 'a reset, the next attempt later than the grace',
                    sub { $_[0]->reset }, 'error request_failed', '/default' ])
{
    my ($name, $act, $why, $where) = @$case;

    foreach my $framing ('length', 'chunked') {
        my @headers = @VALIDATORS;
        my $turn = ask_ad($where // '');

        $turn->{sent} = $ANSWER;
        $FRAMINGS{$framing}->($turn->request, $ANSWER, @headers)
                           ->($turn->request);
        $turn->request->wait_sent;
        $nginx->barrier;
        ok(!$turn->client->peek->complete, "$name, $framing: held");

        $act->($turn->asked('preload'));
        $ads->sync;
        $nginx->barrier;
        ok($turn->client->peek->complete, "$name, $framing: released at once");

        untouched_ok(released($turn), $why, "$name, $framing",
                     sub { respond($_[0], $framing, $ANSWER, @headers) });
    }
}

# the time is over: also by half the send_timeout, and by default

foreach my $where ('/short', '/default', '/timeout') {
    foreach my $framing (sort keys %FRAMINGS) {
        my $name = "$framing, $where";
        my $answer = sub { respond($_[0], $framing, $ANSWER, @VALIDATORS) };
        my $turn = $answer->(ask_ad($where));

        is($turn->asked('preload')->wait_closed, 'eof',
           "$name: the ad call ends");
        untouched_ok($turn, 'pending late', $name, $answer);
        like($turn->event->{hold_time}, qr/\A\d+\.\d{3}\z/,
             "$name: hold time");
        cmp_ok($turn->event->{hold_time}, '>', 0, "$name: it was held");
    }
}

# grace 0 never waits, but takes an ad that is there

foreach my $framing ('length', 'chunked') {
    my $name = "grace 0, $framing";
    my $answer = sub { respond($_[0], $framing, $ANSWER, @VALIDATORS) };
    my $turn = ask_ad('/never');

    $turn->{sent} = $ANSWER;
    $FRAMINGS{$framing}->($turn->request, $ANSWER, @VALIDATORS)
                       ->($turn->request);
    $turn->request->wait_sent;
    $nginx->barrier;
    ok($turn->client->peek->complete, "$name: no wait");
    untouched_ok(released($turn), 'pending late', $name, $answer);

    $turn = ask_ad('/never');
    $turn->asked('preload')->respond(200, Kontext::Mock->bid)->wait_sent;
    $nginx->barrier;
    injected_ok(respond($turn, $framing, $ANSWER), "$name, the ad is there");
}

# an ad server that is not there is not waited for

{
    my $answer = sub { respond($_[0], 'length', $ANSWER, @VALIDATORS) };
    my $turn = ask('/refused');

    $FRAMINGS{length}->($turn->request, $ANSWER, @VALIDATORS);
    $turn->request->wait_sent;
    $nginx->barrier;
    ok($turn->client->peek->complete, 'refused: no wait');
    untouched_ok(released($turn), 'error request_failed', 'refused', $answer);
}

# an answer that comes whole has its own end to wait for, the ad is no reason
# to wait longer: the ad is there before the last byte

{
    my $turn = ask_ad('');
    my $all = Kontext::Mock->response(200, $ANSWER, 'Content-Type' => $JSON);

    $turn->{sent} = $ANSWER;
    $turn->request->send(substr($all, 0, -1))->wait_sent;
    $turn->asked('preload')->respond(200, Kontext::Mock->bid)->wait_sent;
    $nginx->barrier;
    $turn->request->send(substr($all, -1))->wait_sent;
    $nginx->barrier;
    ok($turn->client->peek->complete, 'the ad is there: no wait');
    injected_ok(released($turn), 'the ad is there');
}


# two requests of the same turn: the second waits for the first one's ad

{
    my @same = (headers => { 'X-Conversation' => 'twice' });
    my $one = ask_ad('', @same);
    my $two = ask('', @same);

    held_ok($one, 'length', 'twice, the first');
    held_ok($two, 'chunked', 'twice, the second');
    is(scalar(grep { $_->json->{conversationId} eq 'twice' }
                   $ads->requests('/preload')), 1, 'twice: one preload');
    $one->asked('preload')->respond(200, Kontext::Mock->bid);
    injected_ok(released($_), 'twice: the ad') foreach $one, $two;
}

# the next turn while the last one is held: the user has gone on

{
    my @same = (headers => { 'X-Conversation' => 'gone on' });
    my $one = held_ok(ask_ad('', @same), 'length', 'gone on');
    my $two = $site->ask(question('Which shoes?', 'Light ones.', 'Which?'),
                         @same, asks => ['preload']);

    released($one);
    is($one->body, $ANSWER, 'gone on: the older one has no ad');
    is($one->response->header('Content-Length'), length $ANSWER,
       'gone on: and its own length');
    is($one->event->{reason}, 'superseded', 'gone on: for this reason');

    $two->asked('preload')->respond(200, Kontext::Mock->bid);
    injected_ok(respond($two, 'length', $ANSWER), 'gone on: the newer one');
}

# ... and while its ad is there already, and the answer is not

foreach my $framing (sort keys %FRAMINGS) {
    my @same = (headers => { 'X-Conversation' => "gone on, $framing" });

    $ads->on('/preload', 200, Kontext::Mock->bid);

    my $answer = sub { respond($_[0], $framing, $ANSWER, @VALIDATORS) };
    my $one = ask_ad('', @same);
    my $two = $site->ask(question('Which shoes?', 'Light ones.', 'Which?'),
                         @same, asks => ['preload']);

    untouched_ok($answer->($one), qr/ superseded\z/,
                 "gone on before it, $framing", $answer);
    injected_ok($answer->($two), "gone on before it, $framing, the newer one");
    $ads->hold('/preload');
}


# the client leaves: while it is held, or before the backend is through

foreach my $how ('close', 'reset', 'shutdown') {
    foreach my $framing (sort keys %FRAMINGS) {
        my $name = "$how while held, $framing";
        my $turn = held_ok(ask_ad(''), $framing, $name);

        # a backend that ends its answer so is gone already

        $turn->request->wait_closed if $framing eq 'until closed';

        $turn->client->$how;
        is($turn->asked('preload')->wait_closed, 'eof',
           "$name: the ad call ends");
        is($turn->request->wait_closed, $framing eq 'until closed' ? 'us'
                                                                   : 'eof',
           "$name: the backend is left");
        is($turn->event->{injected}, '', "$name: nothing injected");
    }

    my $name = "$how half-way";
    my $turn = ask_ad('');

    $turn->request->start(200, 'Content-Type' => $JSON)
                  ->chunk(substr($ANSWER, 0, 100))->wait_sent;
    $nginx->barrier;
    $turn->client->$how;
    is($turn->request->wait_closed, 'eof', "$name: the backend is told");
    is($turn->asked('preload')->wait_closed, 'eof', "$name: the ad call ends");
    is($turn->event->{injected}, '', "$name: nothing injected");
}

# ... and nginx does not know yet when the ad comes, or no ad

foreach my $where ('', '/unbuffered', '/ignorant') {
    foreach my $status (200, 204) {
        my $name = "left, $status to nobody, " . ($where || 'buffered');
        my $turn = held_ok(ask_ad($where), 'length', $name);
        my $pid = $nginx->worker_pid;

        # the worker finds it all at once: the ad first

        kill('STOP', $pid);
        wait_until('the worker to stop', sub {
            open(my $fh, '<', "/proc/$pid/stat") or return 0;
            return <$fh> =~ /\) [Tt] /;
        });
        $turn->asked('preload')->respond($status, $status == 200
                                                  ? Kontext::Mock->bid : ());
        $turn->asked('preload')->wait_sent;
        $turn->client->reset;
        kill('CONT', $pid);

        is($turn->asked('preload')->wait_closed, 'eof',
           "$name: the ad call ends");
        $turn->event;
        is($nginx->worker_pid, $pid, "$name: the worker lives");
    }
}

is($ads->open_connections, 0, 'no ad call is left');


# one connection for one after the other, late ads and all

{
    my $c = $nginx->client;

    foreach my $where ('/short', '/timeout', '/short') {
        my $turn = respond(ask_ad($where, client => $c), 'length', $ANSWER);

        is($turn->body, $ANSWER, "keep-alive, $where: without an ad");
    }

    $ads->on('/preload', 200, Kontext::Mock->bid);

    foreach my $framing ('length', 'chunked', 'length') {
        injected_ok(respond(ask_ad('', client => $c), $framing, $ANSWER),
                    "keep-alive, $framing");
    }

    my $turn = ask('', client => $c, chat => chat('Which shoes?'))
               ->answer('Light ones.');

    ok($turn->ad, 'keep-alive: a stream');
    injected_ok(respond(ask('', client => $c), 'chunked', $ANSWER),
                'keep-alive: and one piece again');

    # two at once

    my @start = ('X-User' => 'u-1', 'X-Conversation');

    $c->post_json($CHAT, question(), @start, "p-$_") foreach 1, 2;

    foreach my $n (1, 2) {
        $llm->wait_request->respond(200, whole_of("Answer $n."),
                                    'Content-Type' => $JSON);

        my $res = $c->read_response;
        my ($body, $ad) = without_kontext($res->body);

        is($body, whole_of("Answer $n."), "pipelined: answer $n");
        ok(defined $ad, "pipelined: answer $n has its ad");
        is($res->header('Content-Length'), length $res->body,
           "pipelined: answer $n has its length");
    }
}


# Answers that are not for an ad.  The ad is there already, so the reason is
# theirs alone.

my $call = { id => 'call_1', type => 'function',
             function => { name => 'shop', arguments => '{}' } };
my $gzipped = do {
    my ($z) = Compress::Raw::Zlib::Deflate->new(
        -WindowBits => Compress::Raw::Zlib::WANT_GZIP(), -AppendOutput => 1);
    my $out = '';

    $z->deflate($ANSWER, $out);
    $z->flush($out);
    $out;
};

sub finish { return $ANSWER =~ s/"finish_reason":\K"stop"/$_[0]/r }
sub message { return whole_of({ role => 'assistant', @_ }) }

my %NO_AD = (
    'tool calls' => [ 'tool_calls', message(content => undef,
                                            tool_calls => [ $call ])
                                    =~ s/"stop"/"tool_calls"/r ],
    'tool calls and text, with a stop' =>
        [ 'tool_calls', message(content => 'Hm.', tool_calls => [ $call ]) ],
    'the old function call' =>
        [ 'tool_calls', message(content => undef, function_call =>
                                { name => 'shop', arguments => '{}' }) ],
    'finish_reason tool_calls' => [ qr/finish_reason|tool_calls/,
                                    finish('"tool_calls"') ],
    'finish_reason content_filter' => [ 'finish_reason',
                                        finish('"content_filter"') ],
    'finish_reason function_call' => [ qr/finish_reason|tool_calls/,
                                       finish('"function_call"') ],
    'finish_reason error' => [ 'finish_reason', finish('"error"') ],
    'finish_reason unheard of' => [ 'finish_reason', finish('"eos"') ],
    'finish_reason of null' => [ qr/finish/, finish('null') ],
    'no finish_reason' => [ qr/finish/,
                            $ANSWER =~ s/,"finish_reason":"stop"//r ],
    'a refusal' => [ 'refusal', message(content => undef,
                                        refusal => 'I cannot.') ],
    'a refusal and text' => [ 'refusal', message(content => 'Hm.',
                                                 refusal => 'I cannot.') ],
    'content of null' => [ 'no_text', message(content => undef) ],
    'no content' => [ 'no_text', message() ],
    'empty content' => [ 'no_text', message(content => '') ],
    'white space' => [ 'no_text', message(content => " \n\t ") ],
    'reasoning alone' => [ 'no_text', message(content => undef,
                                              reasoning_content => 'Hm.') ],
    'an error object' => [ 'error_frame', '{"error":{"message":"overloaded",'
                                          . '"code":null}}' ],
    'an error of text' => [ 'error_frame', '{"error":"overloaded"}' ],
    'an error beside the text' => [ 'error_frame', substr($ANSWER, 0, -1)
                                    . ',"error":{"code":502}}' ],
    'an empty body' => [ 'no_finish_marker', '' ],
    'cut JSON' => [ 'no_finish_marker', substr($ANSWER, 0, -1) ],
    'JSON cut in a string' => [ 'no_finish_marker', substr($ANSWER, 0, 150) ],
    'text behind it' => [ 'no_finish_marker', $ANSWER . 'x' ],
    'a bracket too many' => [ 'no_finish_marker', $ANSWER . '}' ],
    'two answers' => [ 'no_finish_marker', "$ANSWER\n$ANSWER" ],
    'a comma too many' => [ 'no_finish_marker', substr($ANSWER, 0, -1)
                                                . ',}' ],
    'a zero byte' => [ 'no_finish_marker', "$ANSWER\0" ],
    'no JSON' => [ 'no_finish_marker', '<html>oops</html>' ],
    'an empty object' => [ 'no_finish_marker', '{}' ],
    'a list' => [ 'no_finish_marker', "[$ANSWER]" ],
    'a string' => [ 'no_finish_marker', '"Light ones."' ],
    'a number' => [ 'no_finish_marker', '42' ],
    'null' => [ 'no_finish_marker', 'null' ],
    'no choices' => [ 'no_finish_marker', '{"object":"list","data":[]}' ],
    'choices of nothing' => [ 'no_finish_marker', '{"choices":[]}' ],
    'choices of another type' => [ 'no_finish_marker', '{"choices":"Hi"}' ],
    'nested deeply' => [ 'no_finish_marker',
                         '{"choices":' . '[' x 100_000 . ']' x 100_000 . '}' ],
    'one choice of two filtered' =>
        [ 'finish_reason', whole_of([ map { { content => $_ } } 'a', 'b' ])
                           =~ s/.*\K"stop"/"content_filter"/r ],
    'tool calls in one choice of two' =>
        [ 'tool_calls', whole_of([ { content => 'a' },
                                   { content => undef,
                                     tool_calls => [ $call ] } ]) ],
    'status 500' => [ 'response_status', $ANSWER, status => 500 ],
    'status 429' => [ 'response_status', '{"error":{"message":"slow"}}',
                      status => 429, headers => [ 'Retry-After' => 7 ] ],
    'status 201' => [ 'response_status', $ANSWER, status => 201 ],
    'plain text' => [ 'response_type', $ANSWER,
                      headers => [ 'Content-Type' => 'text/plain' ] ],
    'a type that only begins alike' =>
        [ 'response_type', $ANSWER,
          headers => [ 'Content-Type' => 'application/jsonx' ] ],
    'gzip although unasked for' =>
        [ 'encoded_response', $gzipped,
          headers => [ 'Content-Encoding' => 'gzip' ] ],
    'an encoding nobody knows' =>
        [ 'encoded_response', 'xyz',
          headers => [ 'Content-Encoding' => 'zstd' ] ],
);

my @RESPONSE = map {
    my ($reason, $body, %args) = @{$NO_AD{$_}};
    my @headers = (@{$args{headers} // []}, @VALIDATORS);

    push @headers, 'Content-Type' => $JSON
        if !grep { $_ eq 'Content-Type' } @headers;

    [ $_, ref $reason ? qr/\Afilled .*(?:$reason)/ : "filled $reason",
      $args{status} // 200, $body, @headers ];
} sort keys %NO_AD;

foreach my $case (@RESPONSE) {
    my ($name, $why, $status, $body, @headers) = @$case;

    foreach my $framing ('length', 'chunked') {
        my $answer = sub {
            my ($turn) = @_;

            if ($framing eq 'length') {
                $turn->request->respond($status, $body, @headers);

            } else {
                $turn->request->start($status, @headers);
                $turn->request->chunk($body =~ /(.{1,4000})/gs);
                $turn->request->finish;
            }

            released($turn);
        };

        my $turn = ask_ad('');

        $answer->($turn);
        untouched_ok($turn, $why, "$name, $framing", $answer);
        is($turn->body, $body, "$name, $framing: the backend's");
        ok($turn->client->is_open, "$name, $framing: the connection stays");
    }
}

# they do not wait for one either

$ads->hold('/preload');

foreach my $case (@RESPONSE) {
    my ($name, $why, $status, $body, @headers) = @$case;
    my $turn = ask_ad('');

    $turn->request->respond($status, $body, @headers);
    is(released($turn)->body, $body, "$name: the body as it was");
    like($turn->event->{hold_time}, qr/\A(?:0\.000)?\z/, "$name: no wait");
    is($turn->asked('preload')->wait_closed, 'eof', "$name: the ad call ends");
}


# A backend that breaks off: the client gets what it gets without the module,
# but that the head comes when it is known that the connection will not stay.

my $HEAD = Kontext::Mock->response(200, $ANSWER, 'Content-Type' => $JSON);
my $CHUNKED = "HTTP/1.1 200 OK\r\nContent-Type: $JSON\r\n"
              . "Transfer-Encoding: chunked\r\n\r\n";
my $CHUNK = sprintf("%x\r\n%s\r\n", length($ANSWER), $ANSWER);

$HEAD = substr($HEAD, 0, length($HEAD) - length($ANSWER));

my %BREAKS = (
    'before the head' => '',
    'in the head' => substr($HEAD, 0, 30),
    'after the head' => $HEAD,
    'in the body' => $HEAD . substr($ANSWER, 0, 100),
    'a byte before the end' => $HEAD . substr($ANSWER, 0, -1),
    'after the head, chunked' => $CHUNKED,
    'in a chunk' => $CHUNKED . substr($CHUNK, 0, 100),
    'after a chunk' => $CHUNKED . $CHUNK,
    'in the size of the last chunk' => $CHUNKED . $CHUNK . '0',
    'a byte before the end, chunked' => $CHUNKED . $CHUNK . "0\r\n\r",
    'in the body, large' => $HEAD =~ s/Content-Length: \K\d+/3000000/r
                            . substr(of_size(3_000_000), 0, 2_000_000),
    'after a megabyte, chunked' => $CHUNKED
        . sprintf("%x\r\n%s\r\n", 1_200_000,
                  substr(of_size(3_000_000), 0, 1_200_000)),
    'a chunk size that is none' => $CHUNKED . $CHUNK . "zz\r\n",
);

# what a client sees of an answer that breaks off

sub outcome {
    my ($turn, $bytes, $how) = @_;
    my $c = $turn->client;

    if (length $bytes) {
        $turn->request->send($bytes)->wait_sent;
        $nginx->barrier;
    }

    $turn->request->$how;

    # either the answer is whole, as nginx sees it, or its end is an end of
    # the connection

    my $whole = eval { $c->read_response };
    my $res = $whole // $c->response;

    return { whole => $whole ? 1 : 0,
             head  => $res->has_head ? $res->head =~ s/^(?:Date|Connection):
                                                        .*//mxgr : '',
             body  => $res->has_head ? $res->body : '',
             open  => $whole ? $c->is_open : $c->wait_closed };
}

foreach my $where ('', '/unbuffered') {
    my $without = $where ? '/plain-unbuffered' : '/plain';

    foreach my $what (sort keys %BREAKS) {
        foreach my $how ('close', 'reset') {
            # what of a long answer a reset leaves of it is a matter of luck

            next if $how eq 'reset' && $what =~ /large|megabyte/;

            my $name = "broken $what by a $how, " . ($where || 'buffered');
            my $plain = ask($without);
            my $want = outcome($plain, $BREAKS{$what}, $how);

            $plain->client->close;

            # with the ad server silent, and with the ad there

            foreach my $ad ('', ', with an ad') {
                $ad ? $ads->on('/preload', 200, Kontext::Mock->bid)
                    : $ads->hold('/preload');

                my $turn = ask_ad($where);

                is_deeply(outcome($turn, $BREAKS{$what}, $how), $want,
                          "$name$ad: as without the module");
                is($turn->asked('preload')->wait_closed, 'eof',
                   "$name$ad: the ad call ends");

                # nginx lingers for a client which does not close

                $turn->client->close;
                is($turn->event->{injected}, '',
                   "$name$ad: nothing is put into half an answer");
            }
        }
    }
}

# more than its length: nginx takes what belongs to it

foreach my $where ('', '/unbuffered') {
    my $turn = ask_ad($where);

    $turn->{sent} = $ANSWER;
    $turn->request->send($HEAD . $ANSWER . '{"more":1}');
    injected_ok(released($turn), 'more than its length, '
                                 . ($where || 'buffered'));
}

$ads->on('/preload', 200, Kontext::Mock->bid);
injected_ok(respond(ask_ad(''), 'length', $ANSWER), 'after broken answers');


# HTTP/1.0

{
    my $body = json(question());
    my $ask = sub {
        my ($path, $n, @more) = @_;
        my $c = $nginx->client;

        $c->send(join("\r\n", "POST $path$CHAT HTTP/1.0", "Content-Type: $JSON",
                      'X-User: u-1', "X-Conversation: old-$n",
                      'Content-Length: ' . length $body, @more, '', $body));

        return $c;
    };

    foreach my $framing (sort keys %FRAMINGS) {
        my @responses = map {
            my $c = $ask->($_, $framing);
            my $req = $llm->wait_request;

            $FRAMINGS{$framing}->($req, $ANSWER)->($req);
            my $res = $c->read_response;

            is($c->wait_closed, 'eof', "HTTP/1.0, $framing: it closes");
            $res;
        } '', '/plain';

        my ($text, $ad) = without_kontext($responses[0]->body);

        is($text, $ANSWER, "HTTP/1.0, $framing: the answer");
        ok(defined $ad, "HTTP/1.0, $framing: its ad");
        is($responses[0]->header('Transfer-Encoding'), undef,
           "HTTP/1.0, $framing: no chunks");
        is($responses[0]->header('Content-Length'),
           $framing eq 'length' ? length $responses[0]->body : undef,
           "HTTP/1.0, $framing: the length");
        is(head_of($responses[0]), head_of($responses[1]),
           "HTTP/1.0, $framing: no other header has changed");
    }

    # the length is what keeps such a connection open

    my $c = $ask->('', 'kept', 'Connection: keep-alive');

    $llm->wait_request->respond(200, $ANSWER, 'Content-Type' => $JSON);

    my $res = $c->read_response;

    ok((without_kontext($res->body))[1], 'HTTP/1.0, kept alive: an ad');
    ok($c->is_open, 'HTTP/1.0, kept alive: it stays open');
    $c->get('/off/x');
    $llm->wait_request->respond(200, 'ok');
    is($c->read_response->body, 'ok', 'HTTP/1.0, kept alive: in order');
}


# HEAD: no body, and the length of one

{
    my $before = $ads->requests;
    my @turns = map {
        my $turn = ask($_, method => 'HEAD', chat => '');

        $turn->request->send($HEAD);
        released($turn);
    } '', '/plain';

    is($turns[0]->raw, $turns[1]->raw, 'HEAD: as without the module');
    is($turns[0]->response->header('Content-Length'), length $ANSWER,
       'HEAD: the length of the answer');
    is($turns[0]->why, 'bypass method', 'HEAD: the reason');
    ok($turns[0]->client->is_open, 'HEAD: the connection stays');
    is(scalar(my @now = $ads->requests), $before, 'HEAD: nothing is asked');
}


# told or recorded, and not shown: as it comes, at once

$ads->hold('/preload');

foreach my $case ([ '/shadow', 'inject_none' ], [ '/track', 'track_only' ]) {
    my ($where, $reason) = @$case;

    foreach my $framing ('length', 'chunked') {
        my $name = "$reason, $framing";
        my $answer = sub { respond($_[0], $framing, $ANSWER, @VALIDATORS) };

        # the ad server is silent

        my $turn = ask_ad($where);

        is($turn->asked('preload')->header('Kontextso-Is-Disabled'),
           $reason eq 'track_only' ? 1 : 0, "$name: the ad server is told");
        $FRAMINGS{$framing}->($turn->request, $ANSWER, @VALIDATORS)
                           ->($turn->request);
        $turn->request->wait_sent;
        $nginx->barrier;
        ok($turn->client->peek->complete, "$name: no wait");
        untouched_ok(released($turn), qr/\Apending (?:$reason|late)\z/, $name,
                     $answer);

        # it has answered

        $ads->on('/preload', 200, Kontext::Mock->bid);
        $turn = $answer->(ask_ad($where));
        untouched_ok($turn, qr/ $reason\z/, "$name, answered", $answer);
        is($turn->event->{bid_id}, $reason eq 'track_only' ? '' : $BID,
           "$name: the bid on record");
        $ads->hold('/preload');
    }
}

$ads->on('/preload', 200, Kontext::Mock->bid);


# The id of an answer is the id that the message has in the next turn.

my %TEXTS = (
    'a sentence'         => 'Light ones, for a start.',
    'several lines'      => "Three:\n\n1. One\r\n2. Two\n\n\tthree  \n",
    'spaces around'      => "  \n  Light ones.  \n\n",
    'other scripts'      => "\x{5b}\x{8dd1}\x{978b}\x{5d} caf\x{e9} \x{5d0}",
    'emoji'              => "Go \x{1f6b2}\x{1f468}\x{200d}\x{1f469}\x{1f3fd}!",
    'quotes and escapes' => "\"\\/\b\f\a\x{7f}",
    'thoughts'           => "<think>Hm.</think>\n\nLight ones.",
    'one letter'         => 'x',
    'long'               => join(' ', 1 .. 5000),
);

foreach my $name (sort keys %TEXTS) {
    my @in = (headers => { 'X-Conversation' => "ids of $name" });
    my $first = respond(ask_ad('', @in), 'length', whole_of($TEXTS{$name}));
    my $ad = injected_ok($first, "ids, $name");

    # the next turn is streamed, the one after that is not

    my $next = $site->turn(chat('Which shoes?', $TEXTS{$name}, 'Why?'), @in,
                           asks => ['preload'], text => 'Because.');
    my $messages = $next->asked('preload')->json->{messages};

    is($messages->[1]{id}, $ad->{messageId}, "ids, $name: the same in turn 2");
    is($next->asked('preload')->json->{sessionId},
       Kontext::Mock->bid->{sessionId}, "ids, $name: of the same session");
    ok($next->ad, "ids, $name: turn 2 has an ad");

    my $third = $site->ask(question('Which shoes?', $TEXTS{$name}, 'Why?',
                                    'Because.', 'Thanks'), @in,
                           asks => ['preload']);
    my @ids = map { $_->{id} } @{$third->asked('preload')->json->{messages}};

    is_deeply([ @ids[0 .. 2] ], [ map { $_->{id} } @$messages ],
              "ids, $name: the same in turn 3");
    is($ids[3], $next->event->{message_id}, "ids, $name: of turn 2 as well");
    injected_ok(respond($third, 'length', $ANSWER), "ids, $name: turn 3");
}

# the same turn again, streamed or not: one ad

{
    my @in = (headers => { 'X-Conversation' => 'again' });
    my $first = injected_ok(respond(ask_ad('', @in), 'length', $ANSWER),
                            'again, the first');
    my $before = $ads->requests('/preload');
    my $heavy = injected_ok(respond(ask('', @in), 'chunked',
                                    whole_of('Heavy ones.')), 'again');
    my $stream = $site->turn(chat('Which shoes?'), @in, text => 'Red ones.');

    is($heavy->{ads}[0]{bidId}, $first->{ads}[0]{bidId}, 'again: the same ad');
    isnt($heavy->{messageId}, $first->{messageId}, 'again: another message');
    ok($stream->ad, 'again, streamed: an ad');
    $nginx->barrier;
    is(scalar(my @now = $ads->requests('/preload')), $before,
       'again: nothing is asked');
}


# several choices: the first one's text is the message

foreach my $order ([ 0, 1 ], [ 1, 0 ]) {
    my $name = "n=2 in the order @$order";
    my @in = (headers => { 'X-Conversation' => $name });
    my @texts = ('First text.', 'Second text.');
    my $body = whole_of([ map { { role => 'assistant', content => $_ } }
                              @texts[@$order] ]);
    my $i = 0;

    $body =~ s/"index":\d/'"index":' . $order->[$i++]/ge;

    my $turn = respond(ask_ad('', @in), 'length', $body);
    my $ad = injected_ok($turn, $name);
    my $next = $site->turn(chat('Which shoes?', $texts[0], 'Why?'), @in,
                           asks => ['preload']);

    is($next->asked('preload')->json->{messages}[1]{id}, $ad->{messageId},
       "$name: the id of the first choice's text");
}


# nginx compresses on top of it

{
    my %gzip = (headers => { 'Accept-Encoding' => 'gzip' });

    foreach my $framing (sort keys %FRAMINGS) {
        my $turn = respond(ask_ad('/gzip', %gzip), $framing, $ANSWER, @MORE);

        is($turn->response->header('Content-Encoding'), 'gzip',
           "gzip, $framing: compressed");
        is($turn->request->header('Accept-Encoding') // 'identity', 'identity',
           "gzip, $framing: not by the backend");

        my $z = Compress::Raw::Zlib::Inflate->new(
            -WindowBits => Compress::Raw::Zlib::WANT_GZIP());
        my $status = $z->inflate($turn->body, my $text);

        cmp_ok($status, '==', Compress::Raw::Zlib::Z_STREAM_END(),
               "gzip, $framing: whole");

        my ($body, $ad) = without_kontext($text);

        is($body, $ANSWER, "gzip, $framing: the answer");
        ok(defined $ad, "gzip, $framing: its ad");
        is($turn->event->{injected}, 'member', "gzip, $framing: in the log");

        my $plain = respond(ask('/plain-gzip', %gzip), $framing, $ANSWER,
                            @MORE);

        is(head_of($turn->response), head_of($plain->response),
           "gzip, $framing: the headers");
    }

    $ads->on('/preload', 204);

    my $answer = sub { respond($_[0], 'length', $ANSWER, @VALIDATORS) };

    untouched_ok($answer->(ask_ad('/gzip', %gzip)), 'no_fill unfilled_bid',
                 'gzip without an ad', $answer, %gzip, plain => '/plain-gzip');
    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# A part of the answer is asked for.  Nobody has to give a part, but what
# comes has to be what the head says.

sub range_ok {
    my ($turn, $name) = @_;
    my $res = $turn->response;
    my (undef, $rest) = split /\r\n\r\n/, $turn->client->raw, 2;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is(length $rest, $res->header('Content-Length'),
       "$name: as many bytes as the head says");

    if ($res->status == 206) {
        is($res->header('Content-Range'), 'bytes 10-19/' . length $ANSWER,
           "$name: the range");
        is($rest, substr($ANSWER, 10, 10), "$name: its bytes");

    } else {
        is($res->status, 200, "$name: all of it");
        is((without_kontext($rest))[0], $ANSWER, "$name: every byte");
    }
}

foreach my $preload ([ 200, Kontext::Mock->bid ], [ 204 ]) {
    my $name = "a range, $preload->[0] of the ad server";
    my %range = (headers => { 'Range' => 'bytes=10-19',
                              'X-Key' => "ranges $preload->[0]" });

    $ads->on('/preload', @$preload);

    range_ok(respond(ask_ad('/ranges', %range), 'length', $ANSWER), $name);
    range_ok(respond(ask_ad('/cached', %range), 'length', $ANSWER),
             "$name, to be cached");

    my $c = $nginx->client;

    $c->post_json("/cached$CHAT", question(), 'X-User' => 'u-1',
                  'X-Conversation' => $name, %{$range{headers}});

    my $turn = bless { client => $c, response => $c->read_response },
                     'ChatSite::Turn';

    is($turn->response->header('X-Cache'), 'HIT', "$name, cached: a hit");
    range_ok($turn, "$name, cached");
}

$ads->on('/preload', 200, Kontext::Mock->bid);


# What nginx keeps has no ad in it, and what comes from there gets one.

{
    my $large = whole_of('x' x 200_000);

    foreach my $body ($ANSWER, $large) {
        my $size = length $body;
        my %key = (headers => { 'X-Key' => $size });
        my $turn = respond(ask_ad('/cached', %key), 'length', $body);
        my %ids = (injected_ok($turn, "cache, miss, $size")->{messageId} => 1);

        is($turn->response->header('X-Cache'), 'MISS', "cache, miss, $size");

        foreach my $n (1, 2) {
            my $c = $nginx->client;
            my $name = "cache, hit $n, $size";

            $c->post_json("/cached$CHAT", question(), 'X-Key' => $size,
                          'X-User' => 'u-1', 'X-Conversation' => $name);

            my $res = $c->read_response;
            my ($text, $ad) = without_kontext($res->body);

            is($res->header('X-Cache'), 'HIT', $name);
            is($text, $body, "$name: the answer");
            ok(defined $ad, "$name: its ad");
            is($res->header('Content-Length'), length $res->body,
               "$name: the length");
            $ids{json($ad // '{}')->{messageId} // ''} = 1;
        }

        is(scalar(keys %ids), 3, "cache, $size: each has an ad of its own");

        $turn = respond(ask_ad('/stored'), 'length', $body);
        injected_ok($turn, "store, $size");
        is($nginx->read_file('stored.json'), $body,
           "store, $size: the file has what the backend said");
    }
}


# from elsewhere than the first backend

{
    my $turn = ask_ad('/fallback');

    $turn->request->respond(503, 'busy');
    $turn->{sent} = $ANSWER;
    $second->wait_request->respond(200, $ANSWER, 'Content-Type' => $JSON);
    injected_ok(released($turn), 'the second backend');
}

is($ads->open_connections, 0, 'no ad call is left at the end');
$site->stop_ok;


# HTTP/2

SKIP: {
    skip 'no HTTP/2 in nginx', 1
        if `'@{[$nginx->binary]}' -V 2>&1` !~ /http_v2_module/;
    skip 'no curl with HTTP/2', 1
        if `curl --version 2>/dev/null` !~ /\bHTTP2\b/;

    my $new = $nginx->version >= 1025001;
    my $h2 = ChatSite->new(listen => $new ? '' : ' http2',
                           server => $new ? 'http2 on;' : '');

    my $fetch = sub {
        my ($n, $answer, $preload) = @_;
        my $dir = $h2->nginx->dir;

        $preload ? $h2->ads->on('/preload', 200, $preload)
                 : $h2->ads->on('/preload', 204);

        STDOUT->flush;
        STDERR->flush;

        my $pid = fork() // die "fork: $!";

        if ($pid == 0) {
            open(STDOUT, '>', "$dir/curl.status");
            open(STDERR, '>', "$dir/curl.errors");
            exec('curl', '-sS', '--http2-prior-knowledge', '-m', 60,
                 '-o', "$dir/curl.body", '-D', "$dir/curl.head",
                 '-w', '%{http_code} %{http_version}',
                 '-H', "Content-Type: $JSON", '-H', "X-Turn: $n",
                 '-H', 'X-User: u-1', '-H', "X-Conversation: h2-$n",
                 '-d', json(question()), 'http://' . $h2->nginx->addr . $CHAT)
                or POSIX::_exit(127);
        }

        $answer->($h2->llm->wait_request);
        waitpid($pid, 0);
        is($?, 0, "HTTP/2, $n: curl is content")
            or diag($h2->nginx->read_file('curl.errors'));
        is($h2->nginx->read_file('curl.status'), '200 2', "HTTP/2, $n: 200");

        my ($length) = $h2->nginx->read_file('curl.head')
                       =~ /^content-length: (\d+)/m;

        return ($h2->nginx->read_file('curl.body'), $length);
    };

    foreach my $framing (sort keys %FRAMINGS) {
        my $send = sub { $FRAMINGS{$framing}->($_[0], $ANSWER)->($_[0]) };
        my ($body, $length) = $fetch->("$framing with", $send,
                                       Kontext::Mock->bid);
        my ($text, $ad) = without_kontext($body);

        is($text, $ANSWER, "HTTP/2, $framing: the answer");
        ok(defined $ad, "HTTP/2, $framing: its ad");
        is($length, $framing eq 'length' ? length $body : undef,
           "HTTP/2, $framing: the length");

        ($body, $length) = $fetch->("$framing without", $send);
        is($body, $ANSWER, "HTTP/2, $framing: no ad");
        is($length, $framing eq 'length' ? length $ANSWER : undef,
           "HTTP/2, $framing: its length");
    }

    $h2->stop_ok;
}

done_testing;
