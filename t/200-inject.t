#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Where the ad goes in a streamed answer, what it looks like there, and that
# nothing else of the answer changes.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Compress::Raw::Zlib ();
use Kontext::Test;

my $BID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
my $BID2 = '1b4e28ba-2fa1-41d2-883f-0016d3cca427';
my $FRAME = 'https://server.megabrain.co/api/frame';

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;
my $other_ads = Kontext::Mock->new(name => 'other ad server');

$other_ads->on('/init', 200, { enabled => JSON::PP::true() });

my $nginx = Kontext::Nginx->new(
    vars   => { llm => $llm->addr, ads => $ads->addr,
                other => $other_ads->addr },
    http   => <<'CONF',
    log_format events escape=json
        '{"t":"$arg_t","status":"$kontext_status","reason":"$kontext_reason",'
        '"injected":"$kontext_injected","message":"$kontext_message_id",'
        '"bid":"$kontext_bid_id","code":"$kontext_code",'
        '"revenue":"$kontext_revenue","url":"$kontext_frame_url",'
        '"label":"$kontext_label","format":"$kontext_format"}';
CONF
    server => <<'CONF',
        access_log               logs/events.log events;

        kontext_publisher_token  acme-dev;
        kontext_user_id          $http_x_user_id;
        kontext_conversation_id  $http_x_conversation_id;
        kontext_grace            20s;
        client_max_body_size     8m;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /_other/ {
            internal;
            proxy_pass http://@other@/;
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

        location /upstream11/ {
            kontext            on;
            proxy_pass         http://@llm@;
            proxy_http_version 1.1;
            proxy_set_header   Connection "";
        }

        location /gzip/ {
            kontext         on;
            proxy_pass      http://@llm@;
            gzip            on;
            gzip_types      text/event-stream;
            gzip_min_length 0;
        }

        location /look/ {
            kontext              on;
            kontext_label        $arg_label;
            kontext_theme        $arg_theme;
            kontext_frame_origin https://ads.example.com;
            kontext_sdk          name=sdk-react;
            proxy_pass           http://@llm@;
        }

        location /utf8/ {
            kontext       on;
            kontext_label "Anzeige \"ä\" \\ 🚲";
            kontext_theme "v2 dark&ä=1";
            proxy_pass    http://@llm@;
        }

        location /two/ {
            kontext            on;
            kontext_ad_server  /_other;
            kontext_placements inlineAd "side bar&x";
            proxy_pass         http://@llm@;
        }

        location /other/ {
            kontext           on;
            kontext_ad_server /_other;
            proxy_pass        http://@llm@;
        }

        location /shadow/ {
            kontext        on;
            kontext_inject none;
            proxy_pass     http://@llm@;
        }

        location /switch/ {
            kontext           $http_x_kontext;
            kontext_ad_server /_other;
            proxy_pass        http://@llm@;
        }
CONF
);

my $n = 0;


# what the access log says of a chat

sub logged {
    my ($t) = @_;
    my $log = $nginx->wait_file('logs/events.log', qr/"t":"$t".*\n/);

    return JSON::PP->new->decode($log =~ /^(.*"t":"$t".*)$/m);
}


# starts a chat: (client, the backend's request, its name in the log)

sub ask {
    my ($where, %args) = @_;
    my $t = 't' . ++$n;
    my $c = $nginx->client;

    $c->post_json("/$where/chat/completions?t=$t" . ($args{args} // ''),
                  $args{chat} // chat("Which shoes, $t?"),
                  'X-Conversation-Id' => $args{conversation} // $t,
                  'X-User-Id' => 'u-1', @{$args{headers} // []});

    return ($c, $llm->wait_request, $t);
}


# a whole chat whose answer is these bytes: (response, log line)

sub run {
    my ($where, $body, %args) = @_;
    my ($c, $req, $t) = ask($where, %args);

    if ($args{length}) {
        $req->respond(200, $body, 'Content-Type' => 'text/event-stream',
                      @{$args{answer} // []});

    } else {
        $req->start(200, @{$args{answer} // []})->chunk($body)->finish;
    }

    my $res = $c->read_response;

    ok($c->is_open, "$t: the connection stays") if !$args{closes};

    return ($res, logged($t));
}


# the body is the backend's, the chunk has the ad as its last member, the ad
# is what the log says; returns the member

sub injected_ok {
    my ($body, $sent, $chunk, $log, $name) = @_;
    my (undef, $member) = without_kontext($body);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    if (!defined $member) {
        fail("$name: no ad: " . json($log));
        diag($body);
        return {};
    }

    my $with = substr($chunk, 0, -1) . ",\"kontext\":$member}";

    (my $expected = $sent) =~ s/\Q$chunk\E/$with/ or die "no such chunk";

    is($body, $expected, "$name: the last member of the finish chunk, and "
                         . "no other byte changed");
    unlike($member, qr/[^\x20-\x7e]/, "$name: ASCII");

    my $ad = json($member);

    is($log->{status}, 'filled', "$name: filled");
    is($log->{injected}, 'member', "$name: injected as a member");
    is($log->{reason}, '', "$name: no reason against it");
    is($log->{message}, $ad->{messageId}, "$name: message id");

    return $ad;
}


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


my @ANSWER = (chat_role(), chat_chunk('Light'), chat_chunk(' ones'),
              chat_finish(), '[DONE]');


# the tokens come one by one while the ad server is silent

foreach my $where ('v1', 'unbuffered', 'upstream11', 'gzip') {
    $ads->hold('/preload');
    $ads->hold('/init');

    my @gzip = $where eq 'gzip' ? ('Accept-Encoding' => 'gzip') : ();
    my ($c, $req, $t) = ask($where, headers => \@gzip);
    my $init = $ads->wait_request(path => '/init');
    my $preload = $ads->wait_request(path => '/preload');

    is($req->path, "/$where/chat/completions", "$where: the backend is asked");

    my $zlib = Compress::Raw::Zlib::Inflate->new(
        -WindowBits => Compress::Raw::Zlib::WANT_GZIP());
    my ($taken, $text) = (0, '');

    my $body = sub {
        my $all = $c->peek->body;

        return $all if !@gzip;

        my $piece = substr($all, $taken);

        $taken = length $all;
        $zlib->inflate($piece, my $out);
        $text .= $out // '';

        return $text;
    };

    $req->start->event(chat_role());
    wait_until('the first chunk', sub { $body->() =~ /"role":"assistant"/ });
    is($c->response->status, 200, "$where: head and first chunk at once");

    foreach my $i (1 .. 5) {
        $req->event(chat_chunk("token $i;"));
        wait_until("token $i", sub { $body->() =~ /token $i;/ });
        unlike($body->(), qr/token @{[$i + 1]}/, "$where: token $i");
    }

    ok(!$init->closed && !$preload->closed, "$where: the ad is awaited still");

    $req->event(chat_finish(), '[DONE]')->finish;
    $preload->respond(200, Kontext::Mock->bid);
    $init->respond(200, {});
    wait_until('the end', sub { $body->(); $c->response->complete });

    my $sent = sse(chat_role(), (map { chat_chunk("token $_;") } 1 .. 5),
                   chat_finish(), '[DONE]');

    is($c->response->header('Content-Encoding'), 'gzip', 'gzip') if @gzip;
    is($req->header('Accept-Encoding') // 'identity', 'identity',
       "$where: the backend does not compress");

    injected_ok($body->(), $sent, chat_finish(), logged($t), $where);
    like($body->(), qr/data: \[DONE\]\n\n\z/, "$where: [DONE] is last");
}

$ads->on('/init', 200, { enabled => JSON::PP::true() });
$ads->on('/preload', 200, Kontext::Mock->bid);


# what is put in

{
    my ($res, $log) = run('v1', sse(@ANSWER));
    my $ad = injected_ok($res->body, sse(@ANSWER), chat_finish(), $log,
                         'a plain answer');
    my $id = $ad->{messageId} // 'none';

    like($id, qr/\Akx1_[A-Za-z0-9]+\z/, 'the id of the message');

    my $url = "$FRAME/$BID?code=inlineAd&messageId=$id&sdk=sdk-js";

    is_deeply($ad, {
        messageId => $id,
        ads       => [ { bidId => $BID, code => 'inlineAd',
                         label => 'Sponsored', frameUrl => $url } ],
    }, 'message id, bid id, code, label and frame URL, and nothing more');

    is($log->{bid}, $BID, '$kontext_bid_id');
    is($log->{code}, 'inlineAd', '$kontext_code');
    cmp_ok($log->{revenue}, '==', 0.0042, '$kontext_revenue');
    is($log->{url}, $url, '$kontext_frame_url');
    is($log->{label}, 'Sponsored', '$kontext_label');
    is($log->{format}, 'openai_chat', '$kontext_format');
    is($res->header('Content-Type'), 'text/event-stream', 'the type stays');
}


# the id in the answer is the one which the message has in the next turn

foreach my $case ([ 'text in chunks', [ 'Try ', 'light', ' ones.' ], undef ],
                  [ 'text in the finish chunk too', [ 'Try ' ], 'some.' ],
                  [ 'text in the finish chunk alone', [], 'Anything.' ],
                  [ 'white space and escapes',
                    [ "  Two\n\n", " \"lines\"\t\\ \x{e9} \x{1f6b2} " ],
                    undef ])
{
    my ($name, $texts, $last) = @$case;
    my $conversation = "ids-" . ++$n;
    my $finish = chat_finish();

    $finish =~ s/"delta":\{\}/"delta":{"content":"$last"}/ if defined $last;

    my $sent = sse(chat_role(), (map { chat_chunk($_) } @$texts), $finish,
                   '[DONE]');
    my ($res, $log) = run('v1', $sent, conversation => $conversation,
                          chat => chat('Which shoes?'));
    my $ad = injected_ok($res->body, $sent, $finish, $log, $name);

    my $chat = chat('Which shoes?', join('', @$texts, $last // ''), 'Thanks!');

    run('v1', sse(@ANSWER), conversation => $conversation, chat => $chat);

    my $preload = ($ads->requests('/preload'))[-1]->json;

    is(scalar @{$preload->{messages}}, 3, "$name: the history is sent");
    is($preload->{messages}[1]{id}, $ad->{messageId},
       "$name: the message has the same id in the next turn");
}


# the forms a stream may have

my $finish = chat_finish();
my ($head, $tail) = $finish =~ /\A(.*?,)("choices".*)\z/;

my @forms = (
    [ 'usage after the finish chunk',
      sse(chat_role(), chat_chunk('Hi'), $finish, chat_usage(), '[DONE]') ],
    [ 'no [DONE]', sse(chat_role(), chat_chunk('Hi'), $finish) ],
    [ 'CRLF', sse(@ANSWER) =~ s/\n/\r\n/gr ],
    [ 'CR', sse(@ANSWER) =~ s/\n/\r/gr ],
    [ 'CRLF, LF and CR mixed',
      join('', map { "data: $ANSWER[$_]" . ("\r\n\r\n", "\n\n", "\r\r",
                                            "\n\r\n", "\r\n\n")[$_] }
                   0 .. $#ANSWER) ],
    [ 'BOM', "\xef\xbb\xbf" . sse(@ANSWER) ],
    [ 'BOM ahead of an only event', "\xef\xbb\xbf"
      . sse($finish =~ s/"delta":\{\}/"delta":{"content":"x"}/r),
      $finish =~ s/"delta":\{\}/"delta":{"content":"x"}/r ],
    [ 'comments', ": keep-alive\n\n" . sse(@ANSWER[0 .. 1]) . ":\n\n: x\n"
      . sse($ANSWER[2]) . ": \"finish_reason\":\"stop\"\n"
      . "data: $finish\n: after\n\n: between\n\n" . sse('[DONE]') . ":end\n" ],
    [ 'no space after the colon', sse(@ANSWER) =~ s/data: /data:/gr ],
    [ 'other fields', join('', map { "event: chunk\nid: $_\nretry: 10\nx\n"
                                     . "data: $ANSWER[$_]\nunknown: y\n\n" }
                                   0 .. $#ANSWER) ],
    [ 'several data lines',
      sse(@ANSWER[0 .. 2]) . "data: $head\ndata: $tail\n\n" . sse('[DONE]'),
      $tail ],
    [ 'the closing brace on a line of its own',
      sse(@ANSWER[0 .. 2]) . 'data: ' . substr($finish, 0, -1)
      . "\ndata:}\n\n" . sse('[DONE]'), 'brace' ],
    [ 'white space after the object',
      sse(@ANSWER[0 .. 2]) . "data: $finish \t\n\n" . sse('[DONE]') ],
    [ 'a blank line more than needed', "\n\n" . join("\n", sse(@ANSWER)) . "\n" ],
    [ 'a finish chunk with text',
      sse(@ANSWER[0 .. 2], $finish =~ s/"delta":\{\}/"delta":{"content":"!"}/r,
          '[DONE]'),
      $finish =~ s/"delta":\{\}/"delta":{"content":"!"}/r ],
    [ 'finish_reason length',
      sse(@ANSWER[0 .. 2], chat_finish('length'), '[DONE]'),
      chat_finish('length') ],
    [ 'the order of members changed',
      sse('{"choices":[{"finish_reason":null,"index":0,"delta":'
          . '{"content":"Hi"}}],"id":"x"}',
          '{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],'
          . '"timings":{"a":[1,{}]}}', '[DONE]'),
      '{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],'
      . '"timings":{"a":[1,{}]}}' ],
    [ 'escapes and braces in strings',
      sse(chat_chunk("\"}],{\\\" finish_reason\":\"stop\" \x{1f6b2}"),
          $finish, '[DONE]') ],
    [ 'escaped member names',
      sse(@ANSWER[0 .. 2], $finish =~ s/finish_reason/finish\\u005freason/r,
          '[DONE]'), $finish =~ s/finish_reason/finish\\u005freason/r ],
    [ 'a chunk that repeats the finish', sse(@ANSWER[0 .. 2], $finish,
      $finish =~ s/"delta":\{\}/"delta":{"content":""}/r, '[DONE]') ],
);

foreach my $case (@forms) {
    my ($name, $sent, $chunk) = @$case;
    my ($res, $log) = run('v1', $sent);

    if (($chunk // '') eq 'brace') {
        my ($without, $member) = without_kontext($res->body);

        is($without, $sent, "$name: no other byte changed");
        ok(defined $member && json($member)->{messageId} eq $log->{message},
           "$name: with the ad");

        # the lines of an event, joined, are one object

        my ($event) = grep { /kontext/ } split /\n\n/, $res->body;
        my $joined = join("\n", map { s/\Adata: ?//r }
                                    split /\n/, $event // '');

        ok(eval { json($joined)->{kontext}{ads}[0]{bidId} eq $BID },
           "$name: in the object");
        next;
    }

    injected_ok($res->body, $sent, $chunk // $finish, $log, $name);
}


# several choices: the last one to finish carries the ad

{
    my @texts = map { my $i = $_;
                      map { chat_chunk($_) =~ s/"index":0/"index":$i/r }
                          "a$i", "b$i" } 0 .. 1;
    my @ends = map { chat_finish() =~ s/"index":0/"index":$_/r } 0 .. 1;

    foreach my $order ([ 0, 1 ], [ 1, 0 ]) {
        my $sent = sse(@texts[0, 2], $texts[1], $texts[3],
                       @ends[@$order], '[DONE]');
        my ($res, $log) = run('v1', $sent);

        injected_ok($res->body, $sent, $ends[$order->[1]], $log,
                    "n=2, finished in the order @$order");
    }

    my $sent = sse(@texts[0, 2], $ends[1], $texts[1], $ends[0], '[DONE]');
    my ($res, $log) = run('v1', $sent);

    injected_ok($res->body, $sent, $ends[0], $log,
                'n=2, text between the two ends');
}


# with a length

{
    my ($res, $log) = run('v1', sse(@ANSWER), length => 1);

    injected_ok($res->body, sse(@ANSWER), $finish, $log, 'with a length');
    is($res->header('Content-Length'), undef, 'the length is gone');
    is($res->header('Transfer-Encoding'), 'chunked', 'chunks instead');

    ($res, $log) = run('v1', sse(@ANSWER), length => 1,
                       answer => [ 'Content-Type' =>
                                   'text/event-stream; charset=utf-8' ]);

    injected_ok($res->body, sse(@ANSWER), $finish, $log, 'with a charset');
}


# label, theme, origin, SDK

{
    my ($res, $log) = run('look', sse(@ANSWER),
                          args => '&label=Anzeige&theme=v2-dark');
    my $ad = injected_ok($res->body, sse(@ANSWER), $finish, $log, 'a look');
    my $id = $ad->{messageId};

    is($ad->{ads}[0]{label}, 'Anzeige', 'a label from a variable');
    is($log->{label}, 'Anzeige', 'in the log as well');
    is($ad->{ads}[0]{frameUrl},
       "https://ads.example.com/api/frame/$BID?code=inlineAd&messageId=$id"
       . "&sdk=sdk-react&theme=v2-dark", 'origin, SDK and theme');

    ($res, $log) = run('look', sse(@ANSWER), args => '&label=%ff%00x');
    $ad = injected_ok($res->body, sse(@ANSWER), $finish, $log, 'no theme');
    unlike($ad->{ads}[0]{frameUrl}, qr/theme/, 'no theme');

    ($res, $log) = run('look', sse(@ANSWER), headers => [],
                       args => "&label=\xff\xc3(\x{80}&theme=x%20y");
    $ad = injected_ok($res->body, sse(@ANSWER), $finish, $log,
                      'a label that is not UTF-8');

    ($res, $log) = run('utf8', sse(@ANSWER));
    $ad = injected_ok($res->body, sse(@ANSWER), $finish, $log, 'in UTF-8');
    $id = $ad->{messageId};
    is($ad->{ads}[0]{label}, "Anzeige \"\x{e4}\" \\ \x{1f6b2}",
       'a label in UTF-8 with quotes');
    is($ad->{ads}[0]{frameUrl},
       "$FRAME/$BID?code=inlineAd&messageId=$id&sdk=sdk-js"
       . '&theme=v2%20dark%26%C3%A4%3D1', 'values are percent-encoded');
}


# several placements: the first bid of each code counts

{
    my $bid = Kontext::Mock->bid(revenue => 0.5);

    $bid->{bids} = [
        { bidId => '00000000-0000-4000-8000-000000000000', code => 'other',
          revenue => 8 },
        { bidId => uc $BID2, code => 'side bar&x', revenue => 0.25 },
        @{$bid->{bids}},
        { bidId => '00000000-0000-4000-8000-000000000001',
          code => 'inlineAd', revenue => 16 },
    ];

    $other_ads->on('/preload', 200, $bid);

    my ($res, $log) = run('two', sse(@ANSWER));
    my $ad = injected_ok($res->body, sse(@ANSWER), $finish, $log,
                         'two placements');
    my $id = $ad->{messageId};
    my %by_code = map { $_->{code} => $_ } @{$ad->{ads}};

    is(scalar @{$ad->{ads}}, 2, 'one ad for each code');
    is($by_code{inlineAd}{bidId}, $BID, 'the first bid of a code');
    is($by_code{inlineAd}{frameUrl},
       "$FRAME/$BID?code=inlineAd&messageId=$id&sdk=sdk-js", 'its frame');
    is($by_code{'side bar&x'}{bidId}, $BID2, 'ids in lower case');
    is($by_code{'side bar&x'}{frameUrl},
       "$FRAME/$BID2?code=side%20bar%26x&messageId=$id&sdk=sdk-js",
       'the code is percent-encoded');
    is($by_code{$_}{label}, 'Sponsored', "$_: with the label")
        foreach sort keys %by_code;
    cmp_ok($log->{revenue}, '==', 0.75, 'the revenue is the sum');
    unlike($res->body, qr/revenue/, 'and not for the client');
}


# without an ad the response is as if the module were not there

my %headers = ('X-Request-Id' => 'r-1', 'Cache-Control' => 'no-cache',
               'Set-Cookie' => 'a=b; Path=/', 'Server-Timing' => 'x;dur=1',
               'Expires' => '0', 'X-Many' => 'one');

my @without = (
    [ 'no fill by 204', sub { $other_ads->on('/preload', 204) },
      'no_fill', 'unfilled_bid' ],
    [ 'no bids', sub { $other_ads->on('/preload', 200,
                                      { %{Kontext::Mock->bid},
                                        bids => [] }) },
      'no_fill', 'unfilled_bid' ],
    [ 'skipped', sub { $other_ads->on('/preload', 200,
                                      { %{Kontext::Mock->bid},
                                        bids => undef,
                                        skip => JSON::PP::true(),
                                        skipCode => 'ad_skipped' }) },
      'no_fill', 'ad_skipped' ],
    [ 'an error of the ad server',
      sub { $other_ads->on('/preload', 200, { errCode => 'rate_limited' }) },
      'error', 'rate_limited' ],
    [ 'a status of the ad server',
      sub { $other_ads->on('/preload', 500, 'oops') }, 'error', 'unknown' ],
    [ 'an answer without text',
      sub { $other_ads->on('/preload', 200, Kontext::Mock->bid) },
      undef, 'no_text', body => sse(chat_role(), $finish, '[DONE]') ],
    [ 'bypassed', undef, 'bypass', 'no_user_turn',
      chat => chat('Hi', 'Ho') ],
    [ 'bypassed, with validators and a length', undef,
      'bypass', 'json_mode', length => 1,
      headers => { 'ETag' => '"strong"', 'Accept-Ranges' => 'bytes',
                   'Last-Modified' => 'Tue, 24 Nov 2026 10:00:00 GMT' },
      chat => chat({ response_format => { type => 'json_object' } }, 'Hi') ],
    [ 'switched off', undef, 'off', undef, kontext => 'off', length => 1 ],
    [ 'switched off by an empty value', undef, 'off', undef, kontext => '' ],
    [ 'an unknown value', undef, 'off', undef, kontext => 'yes' ],
);

foreach my $case (@without) {
    my ($name, $prepare, $status, $reason, %more) = @$case;
    my $body = $more{body} // sse(@ANSWER);
    my $extra = $more{headers} // {};
    my @responses;

    $prepare->() if $prepare;

    foreach my $kontext ($more{kontext} // 'on', 'off') {
        my ($res, $log) = run('switch', $body, length => $more{length},
                              chat => $more{chat} // chat('Which shoes?'),
                              conversation => "without-$n",
                              headers => [ 'X-Kontext' => $kontext ],
                              answer => [ (map { $_ => $headers{$_} }
                                               sort keys %headers),
                                          (map { $_ => $extra->{$_} }
                                               sort keys %$extra),
                                          'X-Many' => 'two' ]);
        my $head = $res->head;

        $head =~ s/^Date: .*\r?\n//m or die "no Date";

        if (!@responses) {
            is($log->{status}, $status, "$name: \$kontext_status")
                if defined $status;
            is($log->{reason}, $reason, "$name: \$kontext_reason")
                if defined $reason;
            is($log->{injected}, '', "$name: nothing is injected");
        }

        push @responses, [ $head, $res->body ];
    }

    is($responses[0][0], $responses[1][0], "$name: the headers are the same");
    is($responses[0][1], $responses[1][1], "$name: the body is the same");
    is($responses[0][1], $body, "$name: and the backend's");
}


# shadow mode

{
    my ($c, $req, $t) = ask('shadow');

    # nothing waits for it

    1 while $ads->wait_request(path => '/preload')->json->{conversationId}
            ne $t;
    $ads->sync;
    $nginx->barrier;
    $req->start->chunk(sse(@ANSWER))->finish;

    my ($res, $log) = ($c->read_response, logged($t));

    is($res->body, sse(@ANSWER), 'inject none: nothing is put in');
    is($log->{status}, 'filled', 'the ad is there');
    is($log->{reason}, 'inject_none', 'for this reason');
    is($log->{bid}, $BID, 'and on record');
}

$nginx->stop_ok;

done_testing;
