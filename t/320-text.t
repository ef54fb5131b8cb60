#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The ad as visible text of the answer, and how it is taken out again when it
# comes back with the history: for the model and for the ad server.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite qw(answer_of whole_of);

my $CHAT = '/v1/chat/completions';
my $JSON = 'application/json';
my $SSE = 'text/event-stream';
my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my $ORIGIN = 'https://server.megabrain.co';
my $BID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
my $MARK = "\x{2063}";

my $second = Kontext::Mock->new(name => 'second backend');

my $site = ChatSite->new(
    location => 'kontext_inject text;',
    vars     => { second => $second->addr },
    http     => <<'CONF',
    map $http_x_plan $ads {
        default  on;
        paid     off;
        tracked  track_only;
    }
CONF
    server   => <<'CONF',
        kontext_publisher_token acme-dev;
        kontext_user_id         $http_x_user;
        kontext_conversation_id $http_x_conversation;
        kontext_grace           25s;
        kontext_inject          text;

        location /unbuffered/ {
            kontext on;
            proxy_buffering off;
            proxy_pass http://@llm@/;
        }

        location /short/ {
            kontext on;
            kontext_grace 50ms;
            proxy_pass http://@llm@/;
        }

        location /look/ {
            kontext on;
            kontext_label "Anzeige \"ä\" \\ 🚲";
            kontext_theme "v2 dark";
            kontext_frame_origin https://ads.example.com;
            kontext_text "---\n> **$kontext_label**: <$kontext_frame_url> \"\\ ü\n$http_x_text";
            proxy_pass http://@llm@/;
        }

        location /url/ {
            kontext on;
            kontext_text $kontext_frame_url;
            proxy_pass http://@llm@/;
        }

        location /by-plan/ {
            kontext $ads;
            proxy_pass http://@llm@/;
        }

        # ways of a request body

        location /spooled/ {
            kontext on;
            client_body_buffer_size 1k;
            proxy_pass http://@llm@/;
        }

        location /in-file/ {
            kontext on;
            client_body_in_file_only clean;
            proxy_pass http://@llm@/;
        }

        location /in-memory/ {
            kontext on;
            client_body_buffer_size 16m;
            client_body_in_single_buffer on;
            proxy_pass http://@llm@/;
        }

        location /straight/ {
            kontext on;
            proxy_request_buffering off;
            proxy_http_version 1.1;
            proxy_pass http://@llm@/;
        }

        location /length/ {
            kontext on;
            client_body_buffer_size 1k;
            proxy_set_header X-Length "$content_length";
            proxy_pass http://@llm@/;
        }

        location /small/ {
            kontext on;
            kontext_max_body 1k;
            proxy_pass http://@llm@/;
        }

        location /fallback/ {
            kontext on;
            client_body_buffer_size 1k;
            proxy_intercept_errors on;
            error_page 503 = @second;
            proxy_pass http://@llm@/;
        }

        location @second {
            kontext on;
            client_body_buffer_size 1k;
            proxy_pass http://@second@;
        }

        location /retried/ {
            kontext on;
            client_body_buffer_size 1k;
            proxy_next_upstream error http_503 non_idempotent;
            proxy_pass http://pair/;
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

my $ads = $site->ads;
my $llm = $site->llm;
my $nginx = $site->nginx;

my $conversations = 0;


sub question { return chat({ stream => $NO }, @_ ? @_ : 'Which shoes?') }


# sends a chat in a conversation of its own

sub ask {
    my ($where, $chat, %args) = @_;
    my $headers = { 'X-Conversation' => 'c-' . ++$conversations,
                    %{delete $args{headers} // {}} };

    return $site->ask($chat, %args, uri => "$where$CHAT",
                      headers => $headers);
}


# the same, and the ad server has been asked and has answered

sub ask_ad {
    my ($where, $chat, %args) = @_;

    $_->{taken} = 1 foreach $ads->requests;

    return ask($where, $chat // chat('Which shoes?'),
               asks => ['init', 'preload'], %args);
}


sub sse { return join('', map { "data: $_\n\n" } @_) }


# the events of a stream, with their ends

sub events {
    my ($body) = @_;
    my @events = $body =~ /(.+?(?:\r\n\r\n|\n\n|\r\r(?!\n)|\z))/gs;

    return @events;
}


# the data of an event

sub data_of {
    my ($event) = @_;

    return join("\n", map { /\A\x{ef}?\x{bb}?\x{bf}?data: ?(.*)\z/s ? $1 : () }
                          split /\r\n|\n|\r/, $event);
}


# the text of each choice of a stream, by its index

sub texts_of {
    my ($body) = @_;
    my %texts;

    foreach my $event (events($body)) {
        my $data = data_of($event);

        next if $data eq '' || $data eq '[DONE]';

        foreach my $choice (@{json($data)->{choices} // []}) {
            $texts{$choice->{index} // 0} .= $choice->{delta}{content} // '';
        }
    }

    return \%texts;
}


# the ad as the client sees it, going by the log

sub ad_of {
    my ($event) = @_;

    return "\n\n$MARK\[$event->{label}]($event->{frame_url})$MARK";
}


# what the log says of a turn with its ad in it

sub logged_ok {
    my ($turn, $name) = @_;
    my $event = $turn->event;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($turn->why, 'filled ', "$name: filled");
    is($event->{injected}, 'text', "$name: injected as text");
    like($event->{message_id}, qr/\Akx1_[a-z2-7]{26}\z/, "$name: message id");
    like($event->{frame_url},
         qr{\Ahttps://[^?]+/api/frame/$BID\?code=inlineAd&messageId=
            $event->{message_id}&}x, "$name: frame URL");

    return $event;
}


# A stream with the ad as an event of its own in front of the event with this
# data.  Returns the text of the ad.

sub event_ok {
    my ($turn, $finish, $name) = @_;
    my $body = $turn->body;
    my @events = events($body);
    my @ours = grep { $events[$_] =~ /\\u2063/ } 0 .. $#events;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    if (@ours != 1) {
        is(scalar @ours, 1, "$name: one event more");
        diag(json($turn->event), "\n", $body);
        return '';
    }

    my ($event, $next) = @events[$ours[0], $ours[0] + 1];

    splice(@events, $ours[0], 1);
    is(join('', @events), $turn->{sent}, "$name: no other byte has changed");
    is(data_of($next), $finish, "$name: in front of the finish chunk");
    unlike($event, qr/[^\x20-\x7e\r\n]/, "$name: ASCII");

    my ($end) = $turn->{sent} =~ /(\r\n|\n|\r)/;

    like($event, qr/\Adata: \{[^\r\n]*\}$end$end\z/,
         "$name: one line, with the line ends of the others");

    my ($chunk, $of) = (json(data_of($event)), json($finish));

    # an object of this type even where the backend does not say so

    is_deeply([ map { $chunk->{$_} } qw(id object created model) ],
              [ $of->{id}, $of->{object} // 'chat.completion.chunk',
                $of->{created}, $of->{model} ],
              "$name: id, object, created and model are those of the answer");
    is(scalar @{$chunk->{choices}}, 1, "$name: one choice");

    my $choice = $chunk->{choices}[0];

    is($choice->{finish_reason}, undef, "$name: not finished");
    is_deeply([ keys %{$choice->{delta}} ], [ 'content' ],
              "$name: a delta with content");
    is($choice->{index}, $of->{choices}[0]{index} // 0, "$name: the index");
    is($choice->{delta}{content}, ad_of($turn->event), "$name: the text");
    logged_ok($turn, $name);

    return $choice->{delta}{content};
}


# A response with the ad at the end of a string in it.  Returns the text.

sub appended_ok {
    my ($turn, $string, $name) = @_;
    my $body = $turn->body;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    if ($body !~ s/((?:\\n|\\u000[aA]){2}\\u2063.*?\\u2063)//s) {
        fail("$name: no ad: " . json($turn->event));
        diag($body);
        return '';
    }

    my ($ad, $before, $behind) = ($1, $`, $');

    is($body, $turn->{sent}, "$name: no other byte has changed");
    ok(substr($before, -length $string) eq $string && $behind =~ /\A"/,
       "$name: at the end of the content");
    unlike($ad, qr/[^\x20-\x7e]/, "$name: ASCII");

    my $text = json("[\"$ad\"]")->[0];

    is($text, ad_of($turn->event), "$name: the text");
    logged_ok($turn, $name);

    my $length = $turn->response->header('Content-Length');

    is($length, length $turn->body, "$name: the length is right")
        if defined $length;

    return $text;
}


# The turn has no ad for this reason, and the response is the backend's.

sub untouched_ok {
    my ($turn, $why, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($turn->body, $turn->{sent}, "$name: the answer as it was");
    is($turn->event->{injected}, '', "$name: nothing is injected");

    ref $why ? like($turn->why, $why, "$name: the reason")
             : is($turn->why, $why, "$name: the reason");
}


sub stream {
    my ($turn, $body) = @_;

    return $turn->respond(200, $body, 'Content-Type' => $SSE);
}


# a stream

my $finish = chat_finish();
my @HEAD = (chat_role(), chat_chunk('Light'), chat_chunk(' ones.'));

foreach my $where ('', '/unbuffered') {
    my $turn = stream(ask_ad($where), sse(@HEAD, $finish, '[DONE]'));
    my $ad = event_ok($turn, $finish, $where || 'buffered');

    is_deeply(texts_of($turn->body), { 0 => "Light ones.$ad" },
              'the text of the answer, then the ad');
    is($turn->response->header('Content-Length'), undef, 'no length');

    # the tokens are not late, and the end waits for the ad

    $ads->hold('/preload');
    $turn = ask_ad($where);
    $turn->{sent} = sse(@HEAD, $finish, chat_usage(), '[DONE]');

    my $req = $turn->request->start;

    foreach my $i (0 .. $#HEAD) {
        $req->event($HEAD[$i]);
        wait_until("token $i", sub {
            $turn->client->peek->body eq sse(@HEAD[0 .. $i])
        });
        pass("held: token $i at once");
    }

    $req->event($finish, chat_usage(), '[DONE]')->finish->wait_sent;
    $nginx->barrier;
    is($turn->client->peek->body, sse(@HEAD), 'held: the end waits');
    $turn->asked('preload')->respond(200, Kontext::Mock->bid);
    $turn->{response} = $turn->client->read_response;
    event_ok($turn, $finish, 'held, ' . ($where || 'buffered'));
    like($turn->event->{hold_time}, qr/\A\d+\.\d{3}\z/, 'held: hold time');
    ok($turn->client->is_open, 'held: the connection stays');
    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# the forms a stream may have

{
    my $fields = sub { join('', map { "event: chunk\nid: $_\ndata: $_[$_]\n\n" }
                                    0 .. $#_) };
    my $usage = chat_usage();
    my $odd = '{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],'
              . '"timings":{"a":[1,{}]}}';
    my $model = $finish =~ s/gpt[^"]*/mod\\u00e8le \\"\\\\\\ud83d\\udeb2\//r;
    my $raw = $finish =~ s/gpt[^"]*/mod\xc3\xa8le \xf0\x9f\x9a\xb2/r;
    my ($start, $rest) = $finish =~ /\A(.*?,)("choices".*)\z/;

    my @forms = (
        [ 'usage behind it', sse(@HEAD, $finish, $usage, '[DONE]') ],
        [ 'no [DONE]', sse(@HEAD, $finish) ],
        [ 'CRLF', sse(@HEAD, $finish, '[DONE]') =~ s/\n/\r\n/gr ],
        [ 'CRLF, no space', sse(@HEAD, $finish, '[DONE]') =~ s/\n/\r\n/gr
                                                        =~ s/data: /data:/gr ],
        [ 'CR', sse(@HEAD, $finish, '[DONE]') =~ s/\n/\r/gr ],
        [ 'BOM', "\xef\xbb\xbf" . sse(@HEAD, $finish, '[DONE]') ],
        [ 'comments between', ": hello\n\n" . sse(@HEAD) . ": wait\n\n"
                              . sse($finish) . ": bye\n\n" . sse('[DONE]') ],
        [ 'other fields', $fields->(@HEAD, $finish, '[DONE]') ],
        [ 'several data lines', sse(@HEAD) . "data: $start\ndata: $rest\n\n"
                                . sse('[DONE]'), "$start\n$rest" ],
        [ 'finish_reason length', sse(@HEAD, chat_finish('length'), '[DONE]'),
          chat_finish('length') ],
        [ 'no id, no model', sse('{"choices":[{"index":0,"delta":'
                                 . '{"content":"Hi"},"finish_reason":null}]}',
                                 $odd, '[DONE]'), $odd ],
        [ 'a model with escapes', sse(@HEAD, $model, '[DONE]'), $model ],
        [ 'a model in UTF-8', sse(@HEAD, $raw, '[DONE]'), $raw ],
        [ 'ids of null', sse(@HEAD, $finish =~ s/"id":"[^"]*"/"id":null/r,
                             '[DONE]'), $finish =~ s/"id":"[^"]*"/"id":null/r ],
        [ 'content of null at the end',
          sse(@HEAD, $finish =~ s/\{\}/{"content":null}/r, '[DONE]'),
          $finish =~ s/\{\}/{"content":null}/r ],
        [ 'another finish behind it',
          sse(@HEAD, $finish, $finish =~ s/\{\}/{"content":""}/r, '[DONE]') ],
    );

    foreach my $form (@forms) {
        my ($name, $body, $chunk) = @$form;

        event_ok(stream(ask_ad(''), $body), $chunk // $finish, $name);
    }
}


# the finish chunk has text itself: it is continued there

foreach my $string ('!', ' \"ones\"\\\\ ', "\xf0\x9f\x9a\xb2", '\ud83d\udeb2',
                    'C:\\\\', '\\\\\"')
{
    my $end = $finish =~ s/\{\}/{"content":"$string"}/r;

    foreach my $head (\@HEAD, [ chat_role() ]) {
        my $name = "a finish chunk with $string after " . @$head . ' chunks';
        my $turn = stream(ask_ad(''), sse(@$head, $end, '[DONE]'));
        my $ad = appended_ok($turn, $string, $name);

        is(texts_of($turn->body)->{0}, texts_of($turn->{sent})->{0} . $ad,
           "$name: the text of the answer, then the ad");
    }
}

# an empty one is as good as none

{
    my $empty = $finish =~ s/\{\}/{"role":"assistant","content":""}/r;
    my $turn = stream(ask_ad(''), sse(@HEAD, $empty, '[DONE]'));

    is_deeply(texts_of($turn->body),
              { 0 => 'Light ones.' . ad_of(logged_ok($turn, 'empty content')) },
              'a finish chunk with empty content: the text, then the ad');
    is($turn->body =~ s/data: \{[^\n]*\\u2063[^\n]*\n\n//r
                   =~ s/\\n\\n\\u2063.*\\u2063//r, $turn->{sent},
       'a finish chunk with empty content: no other byte has changed');
}


# several choices: one ad, at the end

foreach my $order ([ 0, 1 ], [ 1, 0 ]) {
    my @texts = map { chat_chunk("text $_") =~ s/"index":0/"index":$_/r } 0, 1;
    my @ends = map { $finish =~ s/"index":0/"index":$_/r } @$order;
    my $name = "n=2, finished in the order @$order";
    my $turn = stream(ask_ad(''), sse(chat_role(), @texts, @ends, '[DONE]'));
    my $texts = texts_of($turn->body);
    my $ad = ad_of(logged_ok($turn, $name));

    is(scalar(grep { /\\u2063/ } events($turn->body)), 1, "$name: one ad");
    is(join('', grep { !/\\u2063/ } events($turn->body)), $turn->{sent},
       "$name: no other byte has changed");
    is(scalar(grep { $texts->{$_} eq "text $_$ad" } 0, 1), 1,
       "$name: behind the text of one of them");
    is(scalar(grep { $texts->{$_} eq "text $_" } 0, 1), 1,
       "$name: and not of the other");
}


# other words, and what they may have in them

{
    my %text = (
        'nothing'        => '',
        'plain'          => 'Thanks!',
        'quotes'         => '"quoted" \\ </script>',
        'UTF-8'          => "\xc3\xa9\xf0\x9f\x9a\xb2",
        'a line of many' => 'x' x 2000,
    );

    foreach my $name (sort keys %text) {
        my $said = $text{$name};
        my $want = sub {
            my ($event) = @_;
            my $label = "Anzeige \"\x{e4}\" \\ \x{1f6b2}";

            utf8::decode(my $more = $said);

            return "\n\n$MARK---\n> **$label**: <$event->{frame_url}> \"\\ "
                   . "\x{fc}\n$more$MARK";
        };

        my %with = (headers => { 'X-Text' => $said });
        my $turn = stream(ask_ad('/look', undef, %with),
                          sse(@HEAD, $finish, '[DONE]'));
        my $event = logged_ok($turn, "kontext_text, $name");

        is(texts_of($turn->body)->{0}, 'Light ones.' . $want->($event),
           "kontext_text, $name: the text");
        is(join('', grep { !/\\u2063/ } events($turn->body)), $turn->{sent},
           "kontext_text, $name: no other byte has changed");
        unlike((grep { /\\u2063/ } events($turn->body))[0], qr/[^\x20-\x7e\n]/,
               "kontext_text, $name: ASCII");
        like($event->{frame_url},
             qr{\Ahttps://ads\.example\.com/.*&theme=v2%20dark},
             "kontext_text, $name: origin and theme");

        $turn = ask_ad('/look', question(), %with)->whole('Light ones.');
        $event = logged_ok($turn, "kontext_text, $name, in one piece");
        is(json($turn->body)->{choices}[0]{message}{content},
           'Light ones.' . $want->($event),
           "kontext_text, $name, in one piece: the text");
        is($turn->response->header('Content-Length'), length $turn->body,
           "kontext_text, $name, in one piece: the length");
    }

    # its own mark within it would end it too early

    my $turn = stream(ask_ad('/look', undef, headers => {
                                 'X-Text' => "one\xe2\x81\xa3two" }),
                      sse(@HEAD, $finish, '[DONE]'));
    my $text = texts_of($turn->body)->{0};

    is(scalar(() = $text =~ /$MARK/g), 2, 'a mark in the text: left out');
    like($text, qr/onetwo$MARK\z/, 'a mark in the text: but no more');

    # not UTF-8: whatever it is, JSON it is

    $turn = stream(ask_ad('/look', undef, headers => {
                              'X-Text' => "\xff\xc3(" }),
                   sse(@HEAD, $finish, '[DONE]'));
    logged_ok($turn, 'no UTF-8');
    like(texts_of($turn->body)->{0}, qr/$MARK.*\($MARK\z/s,
         'no UTF-8: a text all the same');

    # too much

    foreach my $body ([ 'a stream', sse(@HEAD, $finish, '[DONE]'), $SSE ],
                      [ 'one piece', whole_of('Light ones.'), $JSON ])
    {
        $turn = ask_ad('/look', undef, headers => { 'X-Text' => 'x' x 5000 });
        $turn->respond(200, $body->[1], 'Content-Type' => $body->[2]);
        untouched_ok($turn, 'filled large_ad', "a large text, $body->[0]");
        is($turn->response->header('Content-Length'), length $body->[1],
           "a large text, $body->[0]: the length") if $body->[2] eq $JSON;
    }

    $turn = stream(ask_ad('/url'), sse(@HEAD, $finish, '[DONE]'));
    is(texts_of($turn->body)->{0},
       "Light ones.\n\n$MARK$turn->{event}{frame_url}$MARK",
       'the frame URL alone') if $turn->event;
}


# in one piece

{
    my $encode = JSON::PP->new->utf8->canonical->allow_nonref;
    my %contents = (
        'a sentence'   => 'Light ones.',
        'many lines'   => "1.\n2.\n",
        'quotes'       => 'He said "\\"',
        'a backslash'  => 'C:\\',
        'other scripts' => "\x{8dd1}\x{978b} \x{1f6b2}",
        'brackets'     => '"content":"x"}],{}',
        'long'         => join(' ', 1 .. 20_000),
    );

    foreach my $name (sort keys %contents) {
        my $string = substr($encode->encode($contents{$name}), 1, -1);

        foreach my $length (1, 0) {
            my $turn = ask_ad('', question());
            my $what = "$name, " . ($length ? 'with a length' : 'chunked');

            if ($length) {
                $turn->whole($contents{$name});

            } else {
                $turn->{sent} = whole_of($contents{$name});
                $turn->request->start(200, 'Content-Type' => $JSON)
                     ->chunk($turn->{sent} =~ /(.{1,4000})/gs)->finish;
                $turn->{response} = $turn->client->read_response;
            }

            my $ad = appended_ok($turn, $string, $what);

            is(json($turn->body)->{choices}[0]{message}{content},
               $contents{$name} . $ad, "$what: a parser finds it");
            is($turn->response->header('Content-Length'),
               $length ? length $turn->body : undef, "$what: the length");
        }
    }

    my $pretty = JSON::PP->new->utf8->canonical->pretty
                 ->encode(json(whole_of('Light ones.')));

    foreach my $form ([ 'indented', $pretty ],
                      [ 'the message last',
                        '{"id":"x","choices":[{"finish_reason":"stop",'
                        . '"message":{"role":"assistant","content":'
                        . '"Light ones."}}]}' ],
                      [ 'content in other places, too',
                        '{"content":"no","choices":[{"content":"no",'
                        . '"message":{"reasoning_content":"no","content":'
                        . '"Light ones.","x":{"content":"no"}},'
                        . '"finish_reason":"stop"}],"usage":{"content":""}}' ])
    {
        my $turn = ask_ad('', question());

        $turn->respond(200, $form->[1], 'Content-Type' => $JSON);
        appended_ok($turn, 'Light ones.', $form->[0]);
    }

    # several choices

    my $turn = ask_ad('', question());

    $turn->respond(200, whole_of([ map { { content => "text $_" } } 0, 1 ]),
                   'Content-Type' => $JSON);

    my $ad = ad_of(logged_ok($turn, 'n=2'));
    my @texts = map { $_->{message}{content} } @{json($turn->body)->{choices}};

    is(scalar(grep { $texts[$_] eq "text $_$ad" } 0, 1), 1,
       'n=2: behind the text of one of them');
    is(scalar(grep { $texts[$_] eq "text $_" } 0, 1), 1,
       'n=2: and not of the other');
    is($turn->body =~ s/\\n\\n\\u2063.*?\\u2063//r, $turn->{sent},
       'n=2: no other byte has changed');

    # held for it, and late

    $ads->hold('/preload');
    $turn = ask_ad('', question());
    $turn->{sent} = whole_of('Light ones.');
    $turn->request->respond(200, $turn->{sent}, 'Content-Type' => $JSON)
         ->wait_sent;
    $nginx->barrier;
    ok(!$turn->client->peek->complete, 'held: the answer waits');
    $turn->asked('preload')->respond(200, Kontext::Mock->bid);
    $turn->{response} = $turn->client->read_response;
    appended_ok($turn, 'Light ones.', 'held');

    foreach my $how ('answer', 'whole') {
        $turn = ask_ad('/short')->$how('Light ones.');
        untouched_ok($turn, 'pending late', "late, $how");
    }

    $ads->on('/preload', 204);

    foreach my $how ('answer', 'whole') {
        $turn = ask_ad('')->$how('Light ones.');
        untouched_ok($turn, 'no_fill unfilled_bid', "no ad, $how");
    }

    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# Never where the answer is not for a reader.

{
    my $call = [ { index => 0, id => 'c1', type => 'function',
                   function => { name => 'shop', arguments => '{}' } } ];
    my $delta = sub {
        chat_chunk('x') =~ s/\{"content":"x"\}/json($_[0])/er;
    };
    my %streams = (
        'tool calls' => [ 'tool_calls', chat_role(),
                          $delta->({ tool_calls => $call }),
                          chat_finish('tool_calls') ],
        'text and tool calls' => [ 'tool_calls', @HEAD,
                                   $delta->({ tool_calls => $call }),
                                   chat_finish('tool_calls') ],
        'text and tool calls, with a stop' =>
            [ 'tool_calls', @HEAD, $delta->({ tool_calls => $call }),
              $finish ],
        'a refusal' => [ 'refusal', chat_role(),
                         $delta->({ refusal => 'I cannot.' }), $finish ],
        'a filter' => [ 'finish_reason', @HEAD,
                        chat_finish('content_filter') ],
        'a filter at text' => [ 'finish_reason', @HEAD,
                                chat_finish('content_filter')
                                =~ s/\{\}/{"content":"!"}/r ],
        'an error' => [ 'error_frame', @HEAD, '{"error":{"message":"x"}}' ],
        'no text' => [ 'no_text', chat_role(), $finish ],
        'thoughts alone' => [ 'no_text', chat_role(),
                              $delta->({ reasoning_content => 'Hm.' }),
                              $finish ],
        'no end' => [ 'no_finish_marker', @HEAD ],
    );

    foreach my $name (sort keys %streams) {
        my ($reason, @chunks) = @{$streams{$name}};
        my $turn = stream(ask_ad(''), sse(@chunks, '[DONE]'));

        untouched_ok($turn, "filled $reason", "$name, a stream");
    }

    my $message = sub { whole_of({ role => 'assistant', @_ }) };
    my %wholes = (
        'tool calls' => [ 'tool_calls', $message->(content => undef,
                                                   tool_calls => $call) ],
        'text and tool calls' => [ 'tool_calls',
                                   $message->(content => 'Hm.',
                                              tool_calls => $call) ],
        'a refusal' => [ 'refusal', $message->(content => undef,
                                               refusal => 'I cannot.') ],
        'a filter' => [ 'finish_reason', whole_of('Hm.')
                                         =~ s/"stop"/"content_filter"/r ],
        'an error' => [ 'error_frame', '{"error":{"message":"x"}}' ],
        'no text' => [ 'no_text', $message->(content => '') ],
        'thoughts alone' => [ 'no_text', $message->(content => undef,
                                                    reasoning => 'Hm.') ],
        'no JSON' => [ 'no_finish_marker', whole_of('Hm.') . ']' ],
    );

    foreach my $name (sort keys %wholes) {
        my ($reason, $body) = @{$wholes{$name}};
        my $turn = ask_ad('', question());

        $turn->respond(200, $body, 'Content-Type' => $JSON);
        untouched_ok($turn, "filled $reason", "$name, in one piece");
        is($turn->response->header('Content-Length'), length $body,
           "$name, in one piece: the length");
    }

    # content that is a list has no end of a string to put it at

    my $parts = whole_of({ role => 'assistant', content => [
        { type => 'text', text => 'Hm.' } ] });
    my $turn = ask_ad('', question());

    $turn->respond(200, $parts, 'Content-Type' => $JSON);
    untouched_ok($turn, qr/ no_place\z/, 'content of parts, in one piece');
    is($turn->response->header('Content-Length'), length $parts,
       'content of parts, in one piece: the length');

    $turn = stream(ask_ad(''),
                   sse(@HEAD, $finish =~ s/\{\}/{"content":[{"type":"text",
                                                "text":"The end."}]}/r
                                      =~ s/\s+"text":/"text":/r, '[DONE]'));
    unlike($turn->body, qr/\\u2063.*The end\./s,
           'content of parts in a finish chunk: no ad in front of it');

    # what only a program reads is not even asked for

    foreach my $case ([ 'json_mode', { response_format =>
                                       { type => 'json_object' } } ],
                      [ 'json_mode', { response_format =>
                                       { type => 'json_schema',
                                         json_schema => { name => 'x' } } } ],
                      [ 'forced_tools', { tools => [ { type => 'function' } ],
                                          tool_choice => 'required' } ])
    {
        my ($reason, $more) = @$case;
        my $before = $ads->requests;

        foreach my $how ('answer', 'whole') {
            my $turn = ask('', chat($more, 'Which shoes?'))
                       ->$how('{"a":1}');

            untouched_ok($turn, "bypass $reason", "$reason, $how");
        }

        $nginx->barrier;
        is(scalar(my @now = $ads->requests), $before,
           "$reason: nothing is asked");
    }
}


# It comes back.  The ways in which a front end may write a text as JSON:

sub escaped {
    my ($text, $escape) = @_;

    return join('', map { $escape->($_) } split //, $text);
}

sub unit {
    my ($c) = @_;
    my $n = ord $c;

    return sprintf('\\u%04x', $n) if $n < 0x10000;
    return sprintf('\\u%04x\\u%04x', 0xd800 + (($n - 0x10000) >> 10),
                                     0xdc00 + (($n - 0x10000) & 0x3ff));
}

my %WRITE = (
    'in UTF-8' => sub {
        substr(JSON::PP->new->utf8->allow_nonref->encode($_[0]), 1, -1)
    },
    'in ASCII' => sub {
        substr(JSON::PP->new->ascii->allow_nonref->encode($_[0]), 1, -1)
    },
    'with slashes escaped' => sub {
        substr(JSON::PP->new->ascii->allow_nonref->escape_slash->encode($_[0]),
               1, -1)
    },
    'in UTF-8, with slashes escaped' => sub {
        substr(JSON::PP->new->utf8->allow_nonref->escape_slash->encode($_[0]),
               1, -1)
    },
    'with &, < and > escaped' => sub {
        substr(JSON::PP->new->utf8->allow_nonref->encode($_[0]), 1, -1)
            =~ s/([&<>])/unit($1)/ger
    },
    'with line ends in hexadecimal' => sub {
        substr(JSON::PP->new->ascii->allow_nonref->encode($_[0]), 1, -1)
            =~ s/\\n/\\u000A/gr
    },
    'with every character escaped' => sub { escaped($_[0], \&unit) },
);

# an ad as it was put in

sub an_ad {
    my ($n, $label) = @_;
    my $id = sprintf('7c9e6679-7425-40de-944b-e07fc1f9%04x', $n // 1);

    return "\n\n$MARK\[" . ($label // 'Sponsored') . "]($ORIGIN/api/frame/$id"
           . '?code=inlineAd&messageId=kx1_' . ('a' x 26)
           . "&sdk=sdk-js)$MARK";
}

# A request body whose history is these messages, as they are written; the
# user's question is the last one.

sub history {
    my ($messages, %more) = @_;
    my $stream = $more{stream} // 'true';

    return '{"model":"gpt-5.1", "messages":['
           . '{"role":"system","content":"Be brief."},'
           . '{"role":"user","content":"Which shoes?"},'
           . join(',', @$messages)
           . ($more{last} // ',{"role":"user","content":"Why?"}')
           . '],"stream":' . $stream . ($more{members} // '')
           . ',"temperature":0.70,"x":"\u00e9 /\/"}' . ($more{behind} // '');
}

sub says { return qq({"role":"assistant","content":"$_[0]"}) }


# The backend gets $clean, where the client has sent $body, and with nothing
# else changed.

sub retracted_ok {
    my ($turn, $clean, $name) = @_;
    my $req = $turn->request;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($req->body, $clean, "$name: the model does not see the ad");
    is($req->header('Content-Length'), length $clean,
       "$name: the length is right")
        if !defined $req->header('Transfer-Encoding');
}

# ... and neither does the ad server

sub not_told_ok {
    my ($turn, $texts, $name) = @_;
    my $preload = $turn->asked('preload');

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    unlike($preload->body, qr/2063|\xe2\x81\xa3|frame/i,
           "$name: the ad server does not see it");
    is_deeply([ map { $_->{content} } @{$preload->json->{messages}} ], $texts,
              "$name: but the rest");
}


# a conversation, in every way of writing

foreach my $how (sort keys %WRITE) {
    foreach my $kind ('answer', 'whole') {
        my $name = "written $how, $kind";
        my $write = $WRITE{$how};
        my $said = "Light ones: \"a/b\" <\x{1f6b2}> & more.\nAh!";
        my @in = (headers => { 'X-Conversation' => "c $name" });
        my $first = ask_ad('', undef, @in)->$kind($said);
        my $text = $kind eq 'answer'
                   ? texts_of($first->body)->{0}
                   : json($first->body)->{choices}[0]{message}{content};

        is($text, $said . ad_of($first->event), "$name: the first answer");

        # with it, and as if there had never been any

        my ($body, $clean) = map { history([ says($write->($_)) ]) }
                                 $text, $said;
        my $turn = $site->ask($body, @in, asks => ['preload']);

        retracted_ok($turn, $clean, $name);
        not_told_ok($turn, [ 'Which shoes?', $said, 'Why?' ], $name);

        my @ids = map { $_->{id} } @{$turn->asked('preload')->json->{messages}};

        is($ids[1], $first->event->{message_id},
           "$name: the message has its id");
        $turn->answer('Because.');
        logged_ok($turn, "$name: the second turn");

        # sent again without it, it is the same turn

        my $before = $ads->requests('/preload');
        my $again = $site->ask($clean, @in);

        is($again->request->body, $clean, "$name: nothing to take out");
        $again->answer('Therefore.');
        is($again->event->{bid_id}, $BID, "$name: the same turn, the same ad");
        is(scalar(my @now = $ads->requests('/preload')), $before,
           "$name: nothing is asked for it");

        # and in the third turn all ids are what they were

        my $third = $site->ask(
            history([ says($write->($said)),
                      '{"role":"user","content":"Why?"}',
                      says($write->('Because.'
                                    . ad_of($turn->event))) ]),
            @in, asks => ['preload']);

        retracted_ok($third, history([ says($write->($said)),
                                       '{"role":"user","content":"Why?"}',
                                       says($write->('Because.')) ]),
                     "$name, turn 3");

        my @all = map { $_->{id} }
                      @{$third->asked('preload')->json->{messages}};

        is_deeply([ @all[0 .. 2] ], \@ids, "$name, turn 3: the ids of before");
        is($all[3], $turn->event->{message_id},
           "$name, turn 3: the id of the second answer");
        $third->answer('Yes.');
    }
}


# where it may be

my $AD = an_ad();
my $BARE = $AD =~ s/\A\n\n//r;

{
    my $w = $WRITE{'in UTF-8'};
    my ($ad, $bare) = ($w->($AD), $w->($BARE));
    my $other = $w->(an_ad(2));
    my $part = sub { qq({"type":"text","text":"$_[0]"}) };
    my $parts = sub {
        '{"role":"assistant","content":[' . join(',', @_) . ']}'
    };
    my $image = '{"type":"image_url","image_url":{"url":"data:,x"}}';

    # [ the history with the ad, without it, the texts for the ad server ]

    my %places = (
        'at the end' => [ [ says("Hi.$ad") ], [ says('Hi.') ], [ 'Hi.' ] ],
        'in the middle' => [ [ says("Hi.$ad Ho.") ], [ says('Hi. Ho.') ],
                             [ 'Hi. Ho.' ] ],
        'at the start' => [ [ says("${ad}Hi.") ], [ says('Hi.') ],
                            [ 'Hi.' ] ],
        'without its line ends' => [ [ says("Hi. $bare") ], [ says('Hi. ') ],
                                     [ 'Hi. ' ] ],
        'one line end' => [ [ says("Hi.\\n$bare") ], undef, undef ],
        'three line ends' => [ [ says("Hi.\\n$ad") ], [ says('Hi.\\n') ],
                               [ "Hi.\n" ] ],
        'twice' => [ [ says("Hi.$ad Ho.$other") ], [ says('Hi. Ho.') ],
                     [ 'Hi. Ho.' ] ],
        'twice, one behind the other' => [ [ says("Hi.$ad$other") ],
                                           [ says('Hi.') ], [ 'Hi.' ] ],
        'in two messages' =>
            [ [ says("Hi.$ad"), '{"role":"user","content":"Ah."}',
                says("Ho.$other") ],
              [ says('Hi.'), '{"role":"user","content":"Ah."}', says('Ho.') ],
              [ 'Hi.', 'Ah.', 'Ho.' ] ],
        'behind a mark of somebody else' =>
            [ [ says("f$MARK(x).$ad") =~ s/\x{2063}/\xe2\x81\xa3/r ],
              [ says("f\xe2\x81\xa3(x).") ], undef ],
        'between marks of somebody else' =>
            [ [ says("\\u2063a\\u2063 b$ad\\u2063c") ],
              [ says('\\u2063a\\u2063 b\\u2063c') ], undef ],
        'in front of a mark of somebody else' =>
            [ [ says("Hi.$ad f\\u2063(x)") ], [ says('Hi. f\\u2063(x)') ],
              undef ],
        'in a text part' =>
            [ [ $parts->($part->("Hi.$ad")) ], [ $parts->($part->('Hi.')) ],
              [ 'Hi.' ] ],
        'a part of its own, last' =>
            [ [ $parts->($part->('Hi.'), $part->($ad)) ],
              [ $parts->($part->('Hi.')) ], [ 'Hi.' ] ],
        'a part of its own, without its line ends' =>
            [ [ $parts->($part->('Hi.'), $part->($bare)) ],
              [ $parts->($part->('Hi.')) ], [ 'Hi.' ] ],
        'a part of its own, first' =>
            [ [ $parts->($part->($ad), $part->('Hi.')) ],
              [ $parts->($part->('Hi.')) ], [ 'Hi.' ] ],
        'a part of its own, in the middle' =>
            [ [ $parts->($part->('Hi.'), $part->($ad), $part->('Ho.')) ],
              [ $parts->($part->('Hi.'), $part->('Ho.')) ], [ "Hi.\nHo." ] ],
        'two parts of their own' =>
            [ [ $parts->($part->('Hi.'), $part->($ad), $part->($other)) ],
              [ $parts->($part->('Hi.')) ], [ 'Hi.' ] ],
        'two parts of their own, first' =>
            [ [ $parts->($part->($ad), $part->($other), $part->('Hi.')) ],
              [ $parts->($part->('Hi.')) ], [ 'Hi.' ] ],
        'a part of its own with other members' =>
            [ [ $parts->($part->('Hi.'),
                         '{"text":"' . $ad . '","type":"text",'
                         . '"cache_control":{"type":"ephemeral","x":[{}]}}') ],
              [ $parts->($part->('Hi.')) ], [ 'Hi.' ] ],
        'a part of its own beside an image' =>
            [ [ $parts->($image, $part->($ad)) ], [ $parts->($image) ], [] ],
        'two ads in a part of their own' =>
            [ [ $parts->($part->('Hi.'), $part->("$ad$other")) ],
              [ $parts->($part->('Hi.')) ], [ 'Hi.' ] ],
        'a part with an ad and white space' =>
            [ [ $parts->($part->('Hi.'), $part->("$ad ")) ],
              [ $parts->($part->('Hi.'), $part->(' ')) ], [ "Hi.\n " ] ],
    );

    foreach my $name (sort keys %places) {
        my ($with, $without, $texts) = @{$places{$name}};

        foreach my $escape (0, 1) {
            my ($body, $clean) = map {
                my $text = defined $_ ? history($_) : undef;

                $text =~ s{\xe2\x81\xa3}{\\u2063}g if defined $text && $escape;
                $text;
            } $with, $without;

            my $turn = ask_ad('', $body);
            my $what = "$name, " . ($escape ? 'escaped' : 'UTF-8');

            defined $clean ? retracted_ok($turn, $clean, $what)
                           : unlike($turn->request->body, qr/api.?.frame/,
                                    "$what: the model does not see the ad");
            ok(eval { json($turn->request->body) }, "$what: it is JSON still");
            not_told_ok($turn, [ 'Which shoes?', @$texts, 'Why?' ], $what)
                if $texts;
            $turn->answer('Because.');
            is($turn->why, 'filled ', "$what: the turn goes on");
        }
    }

    # an answer that was nothing but the ad

    foreach my $case ([ 'a string', says($ad) ],
                      [ 'a part', $parts->($part->($ad)) ])
    {
        my ($name, $message) = @$case;
        my $turn = ask_ad('', history([ says('Hi.'),
                                        '{"role":"user","content":"Ah."}',
                                        $message ]));
        my $chat = eval { json($turn->request->body) };

        ok($chat, "nothing but the ad, $name: it is JSON still");
        unlike($turn->request->body, qr/2063|\xe2\x81\xa3|frame/,
               "nothing but the ad, $name: the model does not see it");
        is_deeply([ map { $_->{content} } @{$chat->{messages}}[0 .. 3] ],
                  [ 'Be brief.', 'Which shoes?', 'Hi.', 'Ah.' ],
                  "nothing but the ad, $name: the others are there");
        is($chat->{messages}[-1]{content}, 'Why?',
           "nothing but the ad, $name: and the question");
        $turn->answer('Because.');
    }

    # written with white space

    my $history = json(history([ says("Hi.$ad"),
                                 '{"role":"user","content":"Ah."}',
                                 $parts->($part->('Ho.'), $part->($ad)) ]));
    my $clean = json(history([ says('Hi.'), '{"role":"user","content":"Ah."}',
                               $parts->($part->('Ho.')) ]));

    foreach my $json (JSON::PP->new->utf8->canonical->pretty,
                      JSON::PP->new->ascii->canonical->space_after)
    {
        my $body = $json->encode($history);
        my $turn = ask_ad('', $body);

        is_deeply(json($turn->request->body), $clean,
                  'white space: the history without the ads');
        is($turn->request->body =~ s/\s+//gr,
           $json->encode($clean) =~ s/\s+//gr,
           'white space: and nothing else has changed');
        is($turn->request->header('Content-Length'),
           length $turn->request->body, 'white space: the length');
        $turn->answer('Because.');
    }
}


# many of them

foreach my $n (2, 100, 200) {
    my $w = $WRITE{'in ASCII'};
    my (@with, @without);

    foreach my $i (1 .. $n) {
        push @with, says("answer $i" . $w->(an_ad($i))),
                    qq({"role":"user","content":"q$i"});
        push @without, says("answer $i"),
                       qq({"role":"user","content":"q$i"});
    }

    my $turn = ask_ad('', history(\@with));

    retracted_ok($turn, history(\@without), "$n ads");
    unlike($turn->asked('preload')->body, qr/2063|\xe2\x81\xa3|frame/,
           "$n ads: the ad server sees none");
    $turn->answer('Because.');
}


# with other words around the frame URL

{
    my @in = (headers => { 'X-Conversation' => 'c-look',
                           'X-Text' => 'Buy "now"!' });
    my $first = ask_ad('/look', undef, @in)->answer('Light ones.');
    my $text = texts_of($first->body)->{0};

    like($text, qr/Buy "now"!$MARK\z/, 'other words: the first answer');

    foreach my $how (sort keys %WRITE) {
        my $turn = ask_ad('/look', history([ says($WRITE{$how}->($text)) ]));

        retracted_ok($turn, history([ says('Light ones.'
                                           =~ s/(.)/$WRITE{$how}->($1)/ger) ]),
                     "other words, $how");
        not_told_ok($turn, [ 'Which shoes?', 'Light ones.', 'Why?' ],
                    "other words, $how");
        $turn->answer('Because.');
    }
}


# What only looks like one stays.

{
    my $w = $WRITE{'in UTF-8'};
    my $mark = $w->($MARK);
    my %alike = (
        'a mark alone' => "f$mark(x)",
        'marks around other text' => "${mark}Hi!$mark",
        'marks around another link' =>
            "$mark\[x](https://example.com/api/frame/1?code=inlineAd)$mark",
        'an origin that begins alike' =>
            "$mark\[x]($ORIGIN.example.com/api/frame/$BID)$mark",
        'an origin that ends alike' =>
            "$mark\[x](https://evil-server.megabrain.co/api/frame/$BID)$mark",
        'another scheme' =>
            "$mark\[x](http://server.megabrain.co/api/frame/$BID)$mark",
        'the origin alone' => "$mark\[x]($ORIGIN)$mark",
        'another page of the origin' => "$mark\[x]($ORIGIN/docs)$mark",
        'the frame URL without marks' =>
            "[Sponsored]($ORIGIN/api/frame/$BID?code=inlineAd)",
        'a mark that is not closed' =>
            "$mark\[Sponsored]($ORIGIN/api/frame/$BID?code=inlineAd)",
        'a mark that was not opened' =>
            "[Sponsored]($ORIGIN/api/frame/$BID?code=inlineAd)$mark",
        'the frame URL between two pairs' =>
            "${mark}a$mark $ORIGIN/api/frame/$BID ${mark}b$mark" =~ s/ .* //r,
        'a mark whose backslash is escaped' =>
            "\\\\u2063[x]($ORIGIN/api/frame/$BID)\\\\u2063",
    );

    foreach my $name (sort keys %alike) {
        foreach my $escape (0, 1) {
            my $body = history([ says("Hi. $alike{$name} Ho.") ]);

            $body =~ s{\xe2\x81\xa3}{\\u2063}g if $escape;

            my $turn = ask_ad('', $body);
            my $what = "$name, " . ($escape ? 'escaped' : 'UTF-8');

            is($turn->request->body, $body, "$what: stays");
            $turn->answer('Because.');
            is($turn->why, 'filled ', "$what: the turn goes on");
        }
    }

    # the two halves of an ad in two messages are none

    my ($half, $rest) = $w->($AD) =~ /\A(.{60})(.*)\z/s;
    my $body = history([ says("Hi.$half"), '{"role":"user","content":"A"}',
                         says("$rest Ho.") ]);
    my $turn = ask_ad('', $body);

    is($turn->request->body, $body, 'marks in two messages: stay');
    $turn->answer('Because.');

    # the origin is the one of the location

    foreach my $case ([ '/look', 'another location\'s' ]) {
        my $body = history([ says('Hi.' . $w->($AD)) ]);
        my $turn = ask_ad($case->[0], $body);

        is($turn->request->body, $body, "$case->[1] origin: stays");
        $turn->answer('Because.');
    }
}


# Bodies that are not understood pass as they are.

{
    my $ad = $WRITE{'in UTF-8'}->($AD);
    my $body = history([ says("Hi.$ad") ]);
    my %bad = (
        'cut' => [ 'bad_body', substr($body, 0, -1) ],
        'cut in the ad' => [ 'bad_body', substr($body, 0,
                                                index($body, 'inlineAd')) ],
        'text behind it' => [ 'bad_body', $body . 'x' ],
        'twice' => [ 'bad_body', $body . $body ],
        'a comma too many' => [ 'bad_body', $body =~ s/\}\z/,}/r ],
        'no messages' => [ 'bad_body', qq({"prompt":"Hi.$ad"}) ],
        'no JSON' => [ 'bad_body', "Hi.$ad" ],
    );

    foreach my $name (sort keys %bad) {
        my ($reason, $text) = @{$bad{$name}};

        foreach my $where ('', '/spooled') {
            my $turn = ask($where, $text)->answer('Because.');

            is($turn->why, "bypass $reason", "bad body, $name: the reason");
            is($turn->request->body, $text, "bad body, $name: unchanged")
                if $name ne 'no messages';
            ok($turn->untouched, "bad body, $name: and the answer");
        }
    }

    my %other = (
        'of another type' => [ '', 'content_type',
                               { 'Content-Type' => 'text/plain' } ],
        'encoded' => [ '', 'encoded_body', { 'Content-Encoding' => 'br' } ],
        'too large' => [ '/small', 'large_body', {}, 'x' x 1024 ],
    );

    foreach my $name (sort keys %other) {
        my ($where, $reason, $headers, $more) = @{$other{$name}};
        my $text = history([ says("Hi.$ad") ],
                           last => ',{"role":"user","content":"Why?'
                                   . ($more // '') . '"}');
        my $turn = ask($where, $text, headers => $headers)->answer('So.');

        is($turn->why, "bypass $reason", "a body $name: the reason");
        is($turn->request->body, $text, "a body $name: unchanged");
    }

    # switched off it is as if there were no module

    my $turn = ask('/by-plan', $body, headers => { 'X-Plan' => 'paid' })
               ->answer('Because.');

    is($turn->why, 'off ', 'off: the reason');
    is($turn->request->body, $body, 'off: unchanged');
}


# Where there is no ad for this turn, those of the past are taken out all the
# same.

{
    my $ad = $WRITE{'in UTF-8'}->($AD);
    my %bypassed = (
        'json_mode' => { members => ',"response_format":{"type":'
                                    . '"json_object"}' },
        'forced_tools' => { members => ',"tools":[{"type":"function"}],'
                                       . '"tool_choice":"required"' },
        'no_user_turn' => { last => ',{"role":"assistant","content":null,'
                                    . '"tool_calls":[]},{"role":"tool",'
                                    . '"tool_call_id":"c","content":"42"}' },
        'auxiliary' => { last => ',{"role":"user","content":'
                                 . '"### Task:\nA title, please."}' },
    );

    foreach my $reason (sort keys %bypassed) {
        my @more = %{$bypassed{$reason}};
        my $turn = ask('', history([ says("Hi.$ad") ], @more));

        retracted_ok($turn, history([ says('Hi.') ], @more), $reason);
        $turn->answer('{"a":1}');
        untouched_ok($turn, "bypass $reason", $reason);
    }

    my $turn = ask_ad('/by-plan', history([ says("Hi.$ad") ]),
                      headers => { 'X-Plan' => 'tracked' });

    retracted_ok($turn, history([ says('Hi.') ]), 'track_only');
    not_told_ok($turn, [ 'Which shoes?', 'Hi.', 'Why?' ], 'track_only');
    $turn->answer('Because.');
    untouched_ok($turn, qr/ track_only\z/, 'track_only');

    my @in = (headers => { 'X-Conversation' => 'disabled' });

    $ads->on('/preload', 200, { errCode => 'geo_disabled', permanent => $YES });
    ask_ad('', undef, @in)->answer('Hi.');
    $ads->on('/preload', 200, Kontext::Mock->bid);
    $turn = ask('', history([ says("Hi.$ad") ]), @in);
    retracted_ok($turn, history([ says('Hi.') ]), 'session_disabled');
    $turn->answer('Because.');
    untouched_ok($turn, 'bypass session_disabled', 'session_disabled');

    # an ad server that does not answer is no reason to wait

    $ads->hold('/preload');
    $turn = ask_ad('', history([ says("Hi.$ad") ], stream => 'false'));
    retracted_ok($turn, history([ says('Hi.') ], stream => 'false'),
                 'a silent ad server');
    $turn->asked('preload')->respond(204);
    $turn->whole('Because.');
    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# However the body comes, and wherever it is kept.

{
    my $ad = $WRITE{'in UTF-8'}->($AD);

    foreach my $where ('', '/spooled', '/in-file', '/in-memory', '/straight') {
        my $name = $where || 'by default';

        foreach my $size (10, 900, 1024, 5000, 70_000, 700_000) {
            my @last = (last => ',{"role":"user","content":"'
                                . ('x' x $size) . '"}');
            my ($body, $clean) = map { history([ says("Hi.$_") ], @last) }
                                     $ad, '';

            my $turn = ask_ad($where, $body);

            retracted_ok($turn, $clean, "$name, $size bytes");
            unlike($turn->asked('preload')->body, qr/2063|\xe2\x81\xa3|frame/,
                   "$name, $size bytes: the ad server does not see it");
            $turn->answer('Because.');

            my $chunks = join('', map { sprintf("%x\r\n%s\r\n", length, $_) }
                                      unpack('(a' . (77 + int($size / 50))
                                             . ')*', $body)) . "0\r\n\r\n";

            $turn = ask_ad($where, $chunks,
                           headers => { 'Transfer-Encoding' => 'chunked' });
            retracted_ok($turn, $clean, "$name, $size bytes, chunked");
            $turn->answer('Because.');
        }

        # piece by piece, the ad in two of them

        foreach my $at (1, 20, 60, 120) {
            my $body = history([ says("Hi.$ad") ]);
            my $cut = index($body, $ad) + $at;
            my $c = $nginx->client;
            my $conversation = 'c-' . ++$conversations;

            $c->send("POST $where$CHAT HTTP/1.1\r\nHost: a\r\n"
                     . "Content-Type: $JSON\r\nX-User: u-1\r\n"
                     . "X-Conversation: $conversation\r\nContent-Length: "
                     . length($body) . "\r\n\r\n" . substr($body, 0, $cut));
            $nginx->barrier;
            $c->send(substr($body, $cut));

            my $req = $llm->wait_request;

            is($req->body, history([ says('Hi.') ]),
               "$name, in two pieces cut at $at");
            $req->respond(200, answer_of('So.'), 'Content-Type' => $SSE);
            $c->read_response;
        }
    }

    # the ad across the edges of nginx's buffers

    foreach my $where ('', '/spooled') {
        my @bad;

        foreach my $pad (map { 7 * $_ } 0 .. 200) {
            my ($body, $clean) = map {
                history([ says('x' x $pad . $_), says("Hi.$_") ])
            } $ad, '';
            my $turn = ask($where, $body);

            push @bad, $pad if $turn->request->body ne $clean
                               || $turn->request->header('Content-Length')
                                  != length $clean;
            $turn->answer('So.');
        }

        is(join(' ', @bad), '', 'at every place of a buffer, '
                                . ($where || 'by default'));
    }

    # a body of two megabytes with ads at its start and at its end

    my ($body, $clean) = map {
        history([ says("Hi.$_"), '{"role":"user","content":"'
                                 . ('x' x 2_000_000) . '"}', says("Ho.$_") ])
    } $ad, '';

    foreach my $where ('', '/spooled', '/in-memory') {
        my $turn = ask_ad($where, $body);

        ok($turn->request->body eq $clean, "2 megabytes, $where");
        is($turn->request->header('Content-Length'), length $clean,
           "2 megabytes, $where: the length");
        $turn->answer('So.');
    }

    # the next request on the connection is not disturbed

    my $c = $nginx->client;

    foreach my $where ('/spooled', '', '/spooled') {
        my $turn = ask_ad($where, history([ says("Hi.$ad") ]), client => $c);

        retracted_ok($turn, history([ says('Hi.') ]), "keep-alive, $where");
        $turn->answer('So.');
        logged_ok($turn, "keep-alive, $where");
    }

    # what else of nginx asks for the length, FastCGI parameters for one

    foreach my $size (0, 5000) {
        my ($body, $clean) = map {
            history([ says("Hi.$_") ], last => ',{"role":"user","content":"Why?'
                                               . ('x' x $size) . '"}')
        } $ad, '';
        my $turn = ask('/length', $body);

        retracted_ok($turn, $clean, "\$content_length, $size");
        is($turn->request->header('X-Length'), length $clean,
           "\$content_length, $size: that of what is passed on");
        $turn->answer('So.');
    }

    # no header but the length differs from what the client has sent

    my $plain = ask('/plain', history([ says('Hi.') ]))->answer('So.');
    my $turn = ask_ad('', history([ says("Hi.$ad") ]))->answer('So.');
    my ($got, $want) = map {
        $_->request->head =~ s/^(?:X-Turn|X-Conversation|Accept-Encoding):
                               .*\n//mxgr
    } $turn, $plain;

    is($got, $want, 'the head of the request is that of one without an ad');
}


# every backend that gets the request gets it without

{
    my $ad = $WRITE{'in UTF-8'}->($AD);

    foreach my $case ([ '/fallback', 'busy' ], [ '/retried', 'busy' ],
                      [ '/retried', 'gone' ])
    {
        my ($where, $how) = @$case;

        foreach my $size (0, 5000) {
            my @last = (last => ',{"role":"user","content":"Why?'
                                . ('x' x $size) . '"}');
            my ($body, $clean) = map { history([ says("Hi.$_") ], @last) }
                                     $ad, '';
            my $name = "$where, $how, $size";
            my $turn = ask($where, $body);

            retracted_ok($turn, $clean, "$name, the first backend");

            $how eq 'busy' ? $turn->request->respond(503, 'busy')
                           : $turn->request->close;

            my $req = $second->wait_request;

            is($req->body, $clean, "$name: the second backend");
            is($req->header('Content-Length'), length $clean,
               "$name: the length");
            $turn->{sent} = answer_of('Because.');
            $req->respond(200, $turn->{sent}, 'Content-Type' => $SSE);
            $turn->{response} = $turn->client->read_response;
            event_ok($turn, $finish, "$name: the answer");
        }
    }
}


$site->stop_ok;


# HTTP/2

SKIP: {
    skip 'no HTTP/2 in nginx', 1
        if `'@{[$nginx->binary]}' -V 2>&1` !~ /http_v2_module/;
    skip 'no curl with HTTP/2', 1
        if `curl --version 2>/dev/null` !~ /\bHTTP2\b/;

    my $new = $nginx->version >= 1025001;
    my $h2 = ChatSite->new(listen => $new ? '' : ' http2',
                           server => $new ? 'http2 on;' : '',
                           location => 'kontext_inject text;');
    my $ad = $WRITE{'in UTF-8'}->($AD);
    my $n = 0;

    foreach my $size (0, 100_000) {
        foreach my $length (1, 0) {
            my @last = (last => ',{"role":"user","content":"Why?'
                                . ('x' x $size) . '"}');
            my ($body, $clean) = map { history([ says("Hi.$_") ], @last) }
                                     $ad, '';
            my $dir = $h2->nginx->dir;
            my $name = "HTTP/2, $size, "
                       . ($length ? 'with a length' : 'without a length');

            $h2->nginx->write_file('body', $body);
            $n++;
            STDOUT->flush;
            STDERR->flush;

            my $pid = fork() // die "fork: $!";

            if ($pid == 0) {
                open(STDIN, '<', "$dir/body");
                open(STDOUT, '>', "$dir/curl.status");
                open(STDERR, '>', "$dir/curl.errors");
                exec('curl', '-sS', '--http2-prior-knowledge', '-m', 60,
                     '-o', "$dir/curl.body", '-w', '%{http_code}',
                     '-H', "Content-Type: $JSON", '-H', "X-Conversation: $n",
                     '-H', 'X-User: u-1',
                     ($length ? ('--data-binary', "\@$dir/body")
                              : ('-X', 'POST', '-T', '-')),
                     'http://' . $h2->nginx->addr . $CHAT)
                    or POSIX::_exit(127);
            }

            my $req = $h2->llm->wait_request;

            ok($req->body eq $clean, "$name: the model does not see the ad");
            is($req->header('Content-Length'), length $clean,
               "$name: the length");
            $req->respond(200, answer_of('Because.'), 'Content-Type' => $SSE);
            waitpid($pid, 0);
            is($?, 0, "$name: curl is content")
                or diag($h2->nginx->read_file('curl.errors'));
            like(texts_of($h2->nginx->read_file('curl.body'))->{0},
                 qr/\ABecause\.\n\n$MARK/, "$name: the answer, with its ad");
        }
    }

    $h2->stop_ok;
}

done_testing;
