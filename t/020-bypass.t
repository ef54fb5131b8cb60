#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Requests that get no ad.  Each goes through the module and past it: the
# backend gets the same bytes, the client gets the same bytes, and the ad
# server hears nothing.  One header may differ: where the body has to tell, the
# backend is asked not to compress before the body is looked at.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $site = ChatSite->new(
    http     => <<'CONF',
    map $http_x_plan $ads {
        default  on;
        paid     off;
        zero     0;
        nothing  "";
        rubbish  yes;
    }
CONF
    location => 'kontext $ads;',
    server   => <<'CONF',
        location /small/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id u-1;
            kontext_max_body 1k;
            kontext_grace 25s;
            proxy_pass http://@llm@/;
        }

        location /of-tenant/ {
            kontext on;
            kontext_publisher_token $http_x_tenant_token;
            proxy_pass http://@llm@/;
        }

        location /off/ {
            kontext off;
            proxy_pass http://@llm@/;
        }
CONF
);

my $CHAT = '/v1/chat/completions';
my $JSON = 'application/json';
my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my @WHOLE = (200, ChatSite::whole_of("Light ones.\n"), 'Content-Type' => $JSON,
             'ETag' => '"strong"', 'Accept-Ranges' => 'bytes',
             'Last-Modified' => 'Tue, 24 Nov 2026 10:00:00 GMT');


# what is known from the head of the request alone

my $HEAD = qr/\A(?:off|bypass[ ](?:method|content_type|encoded_body|no_body
                                 |large_body))/x;


# the request as the backend got it, but for its number

sub as_sent {
    my ($req) = @_;

    return $req->head =~ s/^X-Turn: \d+\r?\n//mr . "\n" . $req->body;
}


# where the ad server has heard something it is not for this test

my $heard = 0;

sub passes {
    my ($name, $want, $chat, %args) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $prefix = delete $args{prefix} // '';
    my $uri = delete $args{uri} // $CHAT;
    my @answer = @{delete $args{answer}
                   // [ 200, ChatSite::answer_of("Light ones.\n"),
                        'Content-Type' => 'text/event-stream',
                        'X-Backend' => 'yes' ]};

    # no body comes with the answer to a HEAD

    my $head = ($args{method} // '') eq 'HEAD';
    my %headers = ('Accept-Encoding' => 'gzip, br', %{$args{headers} // {}});
    my @turns = map { $site->ask($chat, %args, headers => { %headers },
                                 uri => "$_$uri") } '/plain', $prefix;

    foreach my $turn (@turns) {
        if ($head) {
            $turn->request->send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"
                                 . "Content-Type: text/event-stream\r\n\r\n");
            $turn->{response} = $turn->client->read_response;

        } else {
            $turn->respond(@answer);
        }
    }

    my ($plain, $turn) = @turns;

    my $sent = as_sent($plain->request);

    $sent =~ s/^(Accept-Encoding: )[^\r\n]*/$1identity/m
        if $want !~ $HEAD || $headers{'Transfer-Encoding'};

    is($turn->why, $want, "$name: $want");
    is(as_sent($turn->request), $sent,
       "$name: the backend gets the request as it is");
    is($turn->raw, $plain->raw, "$name: the client gets the answer as it is");

    $site->nginx->barrier;
    my $n = () = $site->ads->requests;
    is($n - $heard, 0, "$name: nothing is sent to the ad server");
    $heard = $n;

    return $turn;
}


sub gets_ad {
    my ($name, $chat, %args) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $turn = $site->turn($chat, %args);

    is($turn->why, 'filled ', "$name: gets an ad")
        or diag(explain($turn->event));
    ok($turn->ad, "$name: within the answer");

    $heard = () = $site->ads->requests;

    return $turn;
}


# a conversation of its own, so that no turn is one of before

my $conversation = 0;

sub fresh { return ('X-Conversation' => 'fresh-' . ++$conversation) }


# the method

foreach my $method ('GET', 'HEAD', 'PUT', 'DELETE') {
    passes($method, 'bypass method',
           $method =~ /GET|HEAD/ ? undef : chat('Hi'), method => $method);
}


# the type

foreach my $type (undef, 'text/plain', 'application/x-www-form-urlencoded',
                  'multipart/form-data; boundary=x', 'application/jsonp',
                  'application/x-ndjson', 'text/json-not', 'json')
{
    passes('type ' . ($type // 'missing'), 'bypass content_type', chat('Hi'),
           headers => { 'Content-Type' => $type });
}

foreach my $type ("$JSON; charset=utf-8", "$JSON;charset=UTF-8",
                  'Application/JSON', 'application/vnd.llm.v1+json',
                  'application/vnd.llm+json; charset=utf-8')
{
    gets_ad("type $type", chat('Hi'),
            headers => { fresh(), 'Content-Type' => $type });
}


# the encoding

foreach my $encoding ('gzip', 'br', 'zstd') {
    passes("a body in $encoding", 'bypass encoded_body', "\x1f\x8b\x08rubbish",
           headers => { 'Content-Encoding' => $encoding });
}


# the body's size

passes('a body of no bytes', 'bypass no_body', '');
passes('no body at all', 'bypass no_body', undef,
       method => 'POST');
passes('a chunked body of no bytes', 'bypass no_body', "0\r\n\r\n",
       headers => { 'Transfer-Encoding' => 'chunked' });

{
    my $short = json(chat(''));
    my $fits = json(chat('x' x (1024 - length $short)));
    my $large = json(chat('x' x (1025 - length $short)));
    my $chunks = join('', map { sprintf("%x\r\n%s\r\n", length, $_) }
                              $large =~ /(.{1,100})/gs) . "0\r\n\r\n";

    is(length $fits, 1024, 'a body of exactly kontext_max_body');

    gets_ad('exactly kontext_max_body', $fits,
            uri => "/small$CHAT", headers => { fresh() });
    passes('one byte more', 'bypass large_body', $large, prefix => '/small');
    passes('one byte more, chunked', 'bypass large_body', $chunks,
           prefix => '/small',
           headers => { 'Transfer-Encoding' => 'chunked' });
    gets_ad('chunked, within the default', $chunks,
            headers => { fresh(), 'Transfer-Encoding' => 'chunked' });

    passes('above 8 megabytes, the default', 'bypass large_body',
           json(chat('x' x (8 * 1024 * 1024))));
}


# the body

my %bad = (
    'cut'                  => '{"stream":true,"messages":[{"role":"user",',
    'not JSON'             => 'Which shoes?',
    'a list'               => '[{"role":"user","content":"Hi"}]',
    'a string'             => '"Hi"',
    'a number'             => '42',
    'null'                 => 'null',
    'space'                => "  \r\n\t ",
    'text behind it'       => json(chat('Hi')) . 'x',
    'twice'                => json(chat('Hi')) . json(chat('Hi')),
    'a comma too many'     => '{"stream":true,"messages":[],}',
    'single quotes'        => "{'stream':true}",
    'messages of a string' => '{"stream":true,"messages":"Hi"}',
    'messages of an object' => '{"stream":true,"messages":{"role":"user"}}',
    'no messages'          => '{"stream":true,"prompt":"Hi"}',
    'a message of a string' => '{"stream":true,"messages":["Hi"]}',
    'nested without end'   => '{"stream":true,"messages":' . '[' x 100_000,
    'nested deeply'        => '{"stream":true,"messages":[],"x":'
                              . '[' x 100_000 . ']' x 100_000 . '}',
    'a zero byte'          => "\0" . json(chat('Hi')),
);

passes("bad body, $_", 'bypass bad_body', $bad{$_}) foreach sort keys %bad;


# the format

foreach my $uri ('/v1/embeddings', '/', '/v1/chat/completions/x') {
    passes("$uri with a body that says nothing", 'bypass unknown_format',
           { stream => $YES, input => 'Hi' }, uri => $uri);
}

foreach my $uri ('/openai/deployments/gpt/chat/completions?api-version=1',
                 '/chat/completions', '/llm')
{
    gets_ad("$uri with a chat", chat('Hi'), uri => $uri,
            headers => { fresh() });
}


# The stream: an answer in one piece gets its ad as well, whatever "stream"
# is that does not ask for one.

sub whole_gets_ad {
    my ($name, $chat) = @_;
    my %who = (headers => { fresh(), 'Accept-Encoding' => 'gzip, br' });

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $plain = $site->ask($chat, %who, uri => "/plain$CHAT");
    my $turn = $site->ask($chat, %who);

    $_->whole("Light ones.\n") foreach $plain, $turn;

    is($turn->why, 'filled ', "$name: gets an ad");
    is(as_sent($turn->request),
       as_sent($plain->request) =~ s/^(Accept-Encoding: )[^\r\n]*/$1identity/mr,
       "$name: the backend gets the request as it is");

    my ($body, $ad) = without_kontext($turn->body);

    is($body, $plain->body, "$name: the answer is the backend's");
    ok(defined $ad, "$name: with the ad");

    $heard = () = $site->ads->requests;
}

foreach my $stream (undef, $NO, 'true', 1, 0, [], {}) {
    my $chat = chat({ stream => $stream }, 'Hi');
    my $what = ref $stream && !JSON::PP::is_bool($stream)
               ? json($stream) : $stream // 'null';

    whole_gets_ad("stream of $what", $chat);
}

{
    my $chat = chat('Hi');

    delete $chat->{stream};
    whole_gets_ad('no stream', $chat);
}


# the turn

my $user = { role => 'user', content => 'Which shoes?' };
my $assistant = { role => 'assistant', content => 'Light ones.' };
my $call = { role => 'assistant', content => undef, tool_calls => [
    { id => 'call_1', type => 'function',
      function => { name => 'shop', arguments => '{}' } },
] };
my $image = { type => 'image_url',
              image_url => { url => 'data:image/png;base64,AAAA' } };

my %no_turn = (
    'a tool result last'   => [ $user, $call,
                                { role => 'tool', tool_call_id => 'call_1',
                                  content => 'in stock' } ],
    'a function result last' => [ $user, { role => 'function', name => 'shop',
                                           content => 'in stock' } ],
    'assistant last'       => [ $user, $assistant ],
    'system last'          => [ $user, { role => 'system', content => 'Be.' } ],
    'developer only'       => [ { role => 'developer', content => 'Be.' } ],
    'an image only'        => [ { role => 'user', content => [ $image ] } ],
    'an image only, later' => [ $user, $assistant,
                                { role => 'user', content => [ $image ] } ],
    'empty text'           => [ { role => 'user', content => '' } ],
    'white space'          => [ { role => 'user', content => " \n\t " } ],
    'empty parts'          => [ { role => 'user', content => [] } ],
    'an empty part'        => [ { role => 'user',
                                  content => [ { type => 'text',
                                                 text => '' } ] } ],
    'null'                 => [ { role => 'user', content => undef } ],
    'no messages'          => [],
);

passes("no turn, $_", 'bypass no_user_turn',
       chat({ messages => $no_turn{$_} })) foreach sort keys %no_turn;

passes("no turn, not streamed, $_", 'bypass no_user_turn',
       chat({ messages => $no_turn{$_}, stream => $NO }), answer => \@WHOLE)
    foreach sort keys %no_turn;

gets_ad('an image with text',
        chat({ messages => [ { role => 'user', content => [
            $image, { type => 'text', text => 'Like these?' } ] } ] }),
        headers => { fresh() });


# answers for a machine

foreach my $format ({ type => 'json_object' },
                    { type => 'json_schema',
                      json_schema => { name => 'x', schema => {} } })
{
    passes("response_format $format->{type}", 'bypass json_mode',
           chat({ response_format => $format }, 'Hi'));
    passes("response_format $format->{type}, not streamed",
           'bypass json_mode',
           chat({ response_format => $format, stream => $NO }, 'Hi'),
           answer => \@WHOLE);
}

gets_ad('response_format text',
        chat({ response_format => { type => 'text' } }, 'Hi'),
        headers => { fresh() });

my @tools = ({ type => 'function', function => { name => 'shop' } });

foreach my $choice ('required',
                    { type => 'function', function => { name => 'shop' } })
{
    my $name = 'tool_choice ' . (ref $choice ? 'of a function' : $choice);

    passes($name, 'bypass forced_tools',
           chat({ tools => \@tools, tool_choice => $choice }, 'Hi'));
    passes("$name, not streamed", 'bypass forced_tools',
           chat({ tools => \@tools, tool_choice => $choice, stream => $NO },
                'Hi'), answer => \@WHOLE);
}

foreach my $choice ('auto', 'none') {
    gets_ad("tool_choice $choice",
            chat({ tools => \@tools, tool_choice => $choice }, 'Hi'),
            headers => { fresh() });
}


# the token

passes('no token for this tenant', 'bypass no_publisher_token', chat('Hi'),
       prefix => '/of-tenant');
passes('an empty token', 'bypass no_publisher_token', chat('Hi'),
       prefix => '/of-tenant', headers => { 'X-Tenant-Token' => '' });


# the session

{
    my @who = ('X-Conversation' => 'disabled');

    $site->ads->on('/preload', 200, { errCode => 'geo_disabled',
                                      permanent => $YES });
    is($site->turn(chat('Hi'), headers => { @who })->why,
       'error geo_disabled', 'the ad server switches the session off');

    $heard = () = $site->ads->requests;
    passes('the turn after that', 'bypass session_disabled',
           chat('Hi', 'Ho', 'Hm?'), headers => { @who });
    passes('and the same again', 'bypass session_disabled',
           chat('Hi', 'Ho', 'Hm?'), headers => { @who });
}


# the switch

passes("plan $_", 'off ', chat('Hi'), headers => { 'X-Plan' => $_ })
    foreach 'paid', 'zero', 'nothing', 'rubbish';
passes('kontext off', 'off ', chat('Hi'), prefix => '/off');
passes('off, and no chat at all', 'off ', undef, method => 'GET',
       prefix => '/off', uri => '/page');


# the module is not even loaded

{
    my @modules = grep { !/kontext/ } split ' ',
                       $ENV{TEST_NGINX_LOAD_MODULES} // '';
    my @answers;

    foreach my $modules (undef, \@modules) {
        my $nginx = Kontext::Nginx->new(
            (defined $modules ? (modules => $modules) : ()),
            vars   => { llm => $site->llm->addr },
            server => 'location / { proxy_pass http://@llm@; }',
        );

        my $c = $nginx->client;

        $c->post_json($CHAT, chat('Hi'), 'Host' => 'chat.example');

        my $req = $site->llm->wait_request;

        $req->respond(200, ChatSite::answer_of('Light ones.'),
                      'Content-Type' => 'text/event-stream');
        $c->read_response;

        push @answers, $req->head . $req->body
                       . $c->raw =~ s/^Date: [^\r\n]*\r\n//mr;

        $nginx->stop_ok;
    }

    is($answers[0], $answers[1], 'loaded and not used: nothing differs');
}


$site->stop_ok;

done_testing;
