#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The files of recipes/, as they ship: each starts, and a chat through it has
# an ad, or has none where that is the point.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use File::Temp ();
use Kontext::Test;

use ChatSite ();
use Nodes ();
use Recipe ();

my $SAMPLES = ($ENV{KONTEXT_SHARED} || "$FindBin::Bin/../../shared")
              . '/samples';

my @SSE = ('Content-Type' => 'text/event-stream');
my %WHO = ('X-User-Id' => 'u-1', 'X-Conversation-Id' => 'c-1');

my %seen;


sub recipe {
    my ($name, %args) = @_;

    $seen{$name} = 1;

    return Recipe->new($name, %args);
}


sub sample { return Recipe::slurp("$SAMPLES/$_[0]") }


# the answer has the ad as a member, and nothing else is different

sub member_ok {
    my ($turn, $name) = @_;
    my ($body, $member) = without_kontext($turn->{body});

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    ok(defined $member && json($member)->{ads}[0]{bidId}, "$name: an ad")
        or diag($turn->{body});
    is($body, $turn->{sent}, "$name: and nothing else");
    is("$turn->{event}{status} $turn->{event}{injected}", 'filled member',
       "$name: filled");
}


sub text_ok {
    my ($turn, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    like($turn->{body}, qr{\[Sponsored\]\(https://server\.megabrain\.co/},
         "$name: an ad that can be read");
    is("$turn->{event}{status} $turn->{event}{injected}", 'filled text',
       "$name: filled");
}


sub untouched_ok {
    my ($turn, $why, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($turn->{body}, $turn->{sent}, "$name: the backend's answer");
    is(join(' ', grep { length } @{$turn->{event}}{qw(status reason)}), $why,
       "$name: $why");
}


# vLLM, llama.cpp, LiteLLM

{
    my $site = recipe('vllm');
    my $turn = $site->turn(headers => \%WHO,
                           answer => [ 200, sample('openai-chat-vllm.sse'),
                                       @SSE ]);

    member_ok($turn, 'vLLM');
    is($turn->{preload}->json->{userId}, 'u-1', 'vLLM: the user');
    is($turn->{preload}->json->{conversationId}, 'c-1',
       'vLLM: the conversation');

    my $calls = @{$site->calls};

    $turn = $site->turn(uri => '/v1/embeddings', ad => 0,
                        body => { model => 'm', input => 'Which shoes?' },
                        answer => [ 200, '{"object":"list","data":[]}',
                                    'Content-Type' => 'application/json' ]);
    untouched_ok($turn, 'bypass unknown_format', 'vLLM, embeddings');
    is(scalar @{$site->calls}, $calls, 'vLLM, embeddings: nothing is asked');

    $turn = $site->turn(uri => '/v1/responses', headers => \%WHO,
                        body => { model => 'm', input => 'Which shirt?',
                                  stream => JSON::PP::true() },
                        answer => [ 200, sample('openai-responses.sse'),
                                    @SSE ]);
    member_ok($turn, 'vLLM, Responses');
    $site->stop_ok;
}

{
    my $site = recipe('llama.cpp');
    my $turn = $site->turn(
        answer => [ 200, sample('openai-chat-llamacpp.sse'), @SSE ]);

    text_ok($turn, 'llama.cpp');
    like($turn->{event}{session_user}, qr/^kxu_/, 'llama.cpp: some user');
    like($turn->{event}{session_conversation}, qr/^kxc_/,
         'llama.cpp: some conversation');
    $site->stop_ok;
}

{
    my $site = recipe('litellm');
    my @users = (
        [ { 'X-LiteLLM-Customer-Id' => 'c', 'X-LiteLLM-End-User-Id' => 'e' },
          {}, 'c' ],
        [ { 'X-LiteLLM-End-User-Id' => 'e' }, { user => 'b' }, 'e' ],
        [ {}, { user => 'b' }, 'b' ],
    );

    foreach my $case (@users) {
        my ($headers, $body, $user) = @$case;
        my $turn = $site->turn(headers => $headers,
                               body => chat($body, "Which shoes, $user?"));

        member_ok($turn, "LiteLLM, user $user");
        is($turn->{preload}->json->{userId}, $user, "LiteLLM: user $user");
    }

    $site->stop_ok;
}


# Ollama

{
    my $site = recipe('ollama');
    my @ndjson = ('Content-Type' => 'application/x-ndjson');
    my $turn = $site->turn(uri => '/api/chat', headers => \%WHO,
                           body => { model => 'm', messages => [
                               { role => 'user', content => 'Shoes?' } ] },
                           answer => [ 200, sample('ollama.ndjson'),
                                       @ndjson ]);

    member_ok($turn, 'Ollama');
    is($turn->{event}{format}, 'ollama', 'Ollama: the format');
    is($turn->{request}->header('Host'), 'localhost:11434',
       'Ollama: a Host that it knows');

    member_ok($site->turn(uri => '/api/generate', headers => \%WHO,
                          body => { model => 'm', prompt => 'Shirts?' },
                          answer => [ 200, sample('ollama-generate.ndjson'),
                                      @ndjson ]), 'Ollama, generate');
    member_ok($site->turn(headers => \%WHO), 'Ollama, OpenAI\'s API');
    $site->stop_ok;
}


# Open WebUI, LibreChat

{
    my $site = recipe('open-webui');
    my %from = ('X-OpenWebUI-User-Id' => 'ou', 'X-OpenWebUI-Chat-Id' => 'oc',
                'X-OpenWebUI-User-Email' => 'somebody@example.com');
    my $turn = $site->turn(headers => \%from);

    text_ok($turn, 'Open WebUI');
    is($turn->{preload}->json->{userId}, 'ou', 'Open WebUI: the user');
    is($turn->{preload}->json->{conversationId}, 'oc',
       'Open WebUI: the conversation');
    unlike($turn->{preload}->body, qr/somebody/,
           'Open WebUI: no address, unless it is configured');

    my $calls = @{$site->calls};

    $turn = $site->turn(headers => { %from, 'X-Task' => 'title_generation' },
                        ad => 0);
    untouched_ok($turn, 'off', 'Open WebUI, a task of its own');

    $turn = $site->turn(headers => \%from, ad => 0,
                        body => chat("### Task:\nGenerate 1-3 broad tags "
                                     . "categorizing the main themes.\n"));
    untouched_ok($turn, 'bypass auxiliary', 'Open WebUI, a task without one');
    is(scalar @{$site->calls}, $calls, 'Open WebUI, tasks: nothing is asked');
    $site->stop_ok;
}

{
    my $site = recipe('librechat');
    my $turn = $site->turn(headers => \%WHO);

    text_ok($turn, 'LibreChat');
    is($turn->{preload}->json->{userId}, 'u-1', 'LibreChat: the user');
    is($turn->{preload}->json->{conversationId}, 'c-1',
       'LibreChat: the conversation');

    # the next turn has the ad in its history, and the model has not

    my ($ad) = grep { /Sponsored/ }
               map { eval { json($_)->{choices}[0]{delta}{content} } // () }
                   sse_data($turn->{body});

    $turn = $site->turn(headers => \%WHO,
                        body => chat('Question 1?', "Light ones.$ad", 'Why?'));
    unlike($turn->{request}->body, qr/Sponsored|megabrain/,
           'LibreChat: the model does not see the ad');
    like($turn->{request}->body, qr/"Light ones\."/,
         'LibreChat: but the rest of the answer');
    text_ok($turn, 'LibreChat, the next turn');

    $turn = $site->turn(headers => \%WHO, ad => 0, body => chat(
        'Please generate a concise, 5-word-or-less title for the '
        . 'conversation, using its same language.'));
    untouched_ok($turn, 'bypass auxiliary', 'LibreChat, a title');
    $site->stop_ok;

    # the way back of docs/operations.md: no new ads, and no old ones

    $site = recipe('librechat', edit => sub {
        s/^(\s*kontext\s+)on;/$1track_only;/m or die 'no kontext';
    });
    $turn = $site->turn(headers => \%WHO,
                        body => chat('Question 1?', "Light ones.$ad", 'Why?'));
    unlike($turn->{request}->body, qr/Sponsored|megabrain/,
           'LibreChat, on the way back: the model does not see the old ad');
    untouched_ok($turn, 'no_fill track_only', 'LibreChat, on the way back');
    $site->stop_ok;
}


# the AI SDK

{
    my $site = recipe('ai-sdk');
    my $turn = $site->turn(
        uri     => '/api/chat',
        headers => { Cookie => 'uid=u-7; theme=dark' },
        body    => { id => 'chat-1', trigger => 'submit-message',
                     messages => [ { id => 'm1', role => 'user', parts => [
                         { type => 'text', text => 'Shoes?' } ] } ] },
        answer  => [ 200, sample('ai-sdk-ui.sse'), @SSE,
                     'x-vercel-ai-ui-message-stream' => 'v1' ],
    );

    my ($part) = grep { $_->{type} eq 'data-kontext' }
                 map { eval { json($_) } // () } sse_data($turn->{body});

    ok($part && $part->{transient} && $part->{data}{ads}[0]{frameUrl},
       'the AI SDK: a part of its own') or diag($turn->{body});
    is($turn->{preload}->json->{userId}, 'u-7', 'the AI SDK: the user');
    is($turn->{preload}->json->{conversationId}, 'chat-1',
       'the AI SDK: the conversation');

    $turn = $site->turn(uri => '/', ad => 0,
                        answer => [ 200, '<p>Hello</p>',
                                    'Content-Type' => 'text/html' ]);
    untouched_ok($turn, 'off', 'the AI SDK, the page');
    $site->stop_ok;
}


# auth_request

{
    my $auth = Kontext::Mock->new(name => 'auth');
    my $site = recipe('auth-request',
                      backends => { '127.0.0.1:9000' => $auth });

    $auth->on('/check', 204, '', 'X-Auth-User' => 'known',
              'X-Auth-Plan' => 'free');

    my $turn = $site->turn(headers => { %WHO, 'X-Auth-User' => 'forged' });

    member_ok($turn, 'auth_request');
    is($turn->{preload}->json->{userId}, 'known',
       'auth_request: the user that was found');

    my $check = $auth->wait_request;

    is($check->header('X-Original-URI'), '/v1/chat/completions',
       'auth_request: what is asked for');
    is($check->body, '', 'auth_request: but not what is said');

    my $calls = @{$site->calls};

    $auth->on('/check', 204, '', 'X-Auth-User' => 'known',
              'X-Auth-Plan' => 'gold');
    untouched_ok($site->turn(ad => 0), 'off', 'auth_request, who has paid');

    $auth->on('/check', 204, '');
    untouched_ok($site->turn(ad => 0), 'off', 'auth_request, without a plan');

    $auth->on('/check', 401, '');

    my $refused = $site->ask;

    is($refused->{client}->read_response->status, 401,
       'auth_request: refused');
    is(scalar @{$site->calls}, $calls, 'auth_request: nothing is asked');
    $site->stop_ok;
}


# A chat by curl, for what Kontext::Client does not speak: what curl says is
# in the turn as curl, before the answer.

sub curl {
    my ($site, $tls, @options) = @_;
    my $n = ++$site->{turns};
    my $url = 'https://chat.test:' . $site->nginx->port
              . '/v1/chat/completions';
    my %turn = (n => $n, sent => ChatSite::answer_of('Light ones.'));

    local $ENV{HOME} = $tls;

    open(my $curl, '-|', 'curl', '-qsS', '-N', '--max-time', 60, '--noproxy',
         '*', '--cacert', "$tls/chat.crt", '--resolve',
         'chat.test:' . $site->nginx->port . ':127.0.0.1', @options,
         '-w', "\n%{http_version} %{http_code}", '-H', "X-Turn: $n",
         (map { ('-H', "$_: $WHO{$_}") } sort keys %WHO),
         '-H', 'Content-Type: application/json',
         '-d', json(chat("Question $n?")), $url) or die "curl: $!";

    my $request = $site->llm->wait_request;

    $turn{preload} = $site->ads->wait_request(path => '/preload');
    $site->ads->sync;
    $site->nginx->barrier;
    $request->respond(200, $turn{sent}, @SSE);

    my $out = do { local $/; scalar <$curl> };

    close($curl) or diag("curl: $?");
    @turn{'body', 'version', 'status'} = $out =~ /\A(.*)\n(\S+) (\d+)\z/s;
    $turn{event} = $site->event($n);

    return \%turn;
}


sub certificate {
    my $tls = File::Temp::tempdir(CLEANUP => 1);

    system("openssl req -x509 -newkey rsa:2048 -nodes -days 2 "
           . "-keyout $tls/chat.key -out $tls/chat.crt -subj /CN=chat.test "
           . "-addext subjectAltName=DNS:chat.test >/dev/null 2>&1") == 0
        or die 'openssl';

    return $tls;
}


# what nginx says of itself

my $V = do {
    my $nginx = $ENV{TEST_NGINX_BINARY} || Kontext::Nginx::_find();

    `'$nginx' -V 2>&1`;
};


sub nginx_version {
    my @v = $V =~ m{^nginx version: nginx/(\d+)\.(\d+)\.(\d+)}m
        or die "no version: $V";

    return $v[0] * 1000000 + $v[1] * 1000 + $v[2];
}


# TLS, HTTP/2

my $tls = certificate();

{
    # what the comment says of nginx 1.25.1 and later

    my %how = ('as it ships' => undef);

    $how{'in two lines'} = sub {
        s/listen (\S+) ssl http2;/listen $1 ssl;\n    http2 on;/
            or die 'no http2';
    } if nginx_version() >= 1025001;

    foreach my $how (sort keys %how) {
        my $site = recipe('tls-http2', tls => $tls, edit => $how{$how});
        my $turn = curl($site, $tls, '--http2');

        member_ok($turn, "HTTP/2, $how");
        is("$turn->{version} $turn->{status}", '2 200', "HTTP/2, $how: it is");

        $turn = curl($site, $tls, '--http1.1');
        member_ok($turn, "TLS, $how");
        is("$turn->{version} $turn->{status}", '1.1 200', "TLS, $how: it is");

        # "listen ... http2" is old for nginx 1.25.1 and later

        $site->stop_ok;
    }
}


# HTTP/3

SKIP: {
    $seen{http3} = 1;

    skip 'this nginx has no HTTP/3 ("nginx -V")', 1
        if $V !~ /--with-http_v3_module/;

    my $site = recipe('http3', tls => $tls);

    member_ok(curl($site, $tls, '--http2'), 'HTTP/3, a client without it');

    SKIP: {
        skip 'this curl has no HTTP/3 ("curl -V")', 2
            if `curl -V` !~ /^Features:.*\bHTTP3\b/m;

        my $turn = curl($site, $tls, '--http3-only');

        member_ok($turn, 'HTTP/3');
        is("$turn->{version} $turn->{status}", '3 200', 'HTTP/3: it is');
    }

    $site->stop_ok;
}


# proxy_cache

{
    my $site = recipe('proxy-cache');
    my $question = chat('Which shoes?');
    my $turn = $site->turn(headers => \%WHO, body => $question);

    member_ok($turn, 'proxy_cache, the first');
    is($turn->{response}->header('X-Cache'), 'MISS', 'proxy_cache: a miss');

    $site->ads->on('/preload', 200, Kontext::Mock->bid(
        bidId => 'aaaaaaaa-7425-40de-944b-e07fc1f90ae7'));

    my $hit = $site->ask(headers => { %WHO, 'X-User-Id' => 'u-2' },
                         body => $question);

    $hit->{response} = $hit->{client}->read_response;
    @$hit{qw(body sent)} = ($hit->{response}->body, $turn->{sent});
    $hit->{event} = $site->event($hit->{n});

    is($hit->{response}->header('X-Cache'), 'HIT', 'proxy_cache: a hit');
    member_ok($hit, 'proxy_cache, the second');
    like($hit->{body}, qr/aaaaaaaa-7425/, 'proxy_cache: another ad');
    is(scalar(() = $site->llm->requests), 1,
       'proxy_cache: the backend was asked once');

    my @files = grep { -f } glob($site->nginx->dir . '/temp/chats/*/*/*');

    is(scalar @files, 1, 'proxy_cache: one answer is kept');
    unlike(Recipe::slurp($files[0]), qr/"kontext"/,
           'proxy_cache: without an ad');

    # a question that is not in memory is not looked for

    my $large = chat('Which shoes? ' . 'x' x 300_000);

    foreach (1, 2) {
        $turn = $site->turn(headers => \%WHO, body => $large, log => 0,
                            ad => 0);
        isnt($turn->{response}->header('X-Cache'), 'HIT',
             'proxy_cache: a large question');
    }

    $site->stop_ok;
}


# limit_req

{
    my $site = recipe('limit-req');
    my @turns = map {
        $site->ask(headers => { %WHO, 'X-Conversation-Id' => "c-$_" })
    } 1 .. 7;

    # five go on and two are refused, whoever is first

    my @through = map { $site->llm->wait_request } 1 .. 5;

    $site->ads->wait_request(path => '/preload') foreach @through;
    $site->nginx->barrier;

    my @calls = grep { $_ eq 'preload' } @{$site->calls};

    is(scalar @calls, 5, 'limit_req: an ad call for each that went on');
    $_->respond(200, ChatSite::answer_of('Light ones.'), @SSE)
        foreach @through;

    my @status = sort map { $_->{client}->read_response->status } @turns;

    is("@status", '200 200 200 200 200 429 429', 'limit_req: as configured');

    my $turn = $site->turn(headers => { %WHO, 'X-User-Id' => 'u-2',
                                        'X-Conversation-Id' => 'c-2' });

    member_ok($turn, 'limit_req, another user');
    $site->stop_ok;
}


# OpenTelemetry

SKIP: {
    $seen{otel} = 1;

    my ($dir) = $V =~ /--modules-path=(\S+)/;
    my $module = ($dir // '/usr/lib/nginx/modules') . '/ngx_otel_module.so';

    skip 'no ngx_otel_module: no Debian release has a package of it', 1
        if !-e $module;

    my $site = recipe('otel', modules => [
        $module, split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '' ]);
    my $turn = $site->turn(headers => \%WHO);

    member_ok($turn, 'OpenTelemetry');
    like($turn->{request}->header('traceparent'), qr/^00-/,
         'OpenTelemetry: the backend has the trace');
    $site->stop_ok;
}


# several publishers

{
    my $site = recipe('publishers');

    foreach my $case ([ 'chat.example.com', 'acme-dev' ],
                      [ 'chat.example.net', 'other-dev' ],
                      [ 'EXAMPLE.example.NET', 'other-dev' ]) {
        my ($host, $token) = @$case;
        my $turn = $site->turn(headers => { %WHO, Host => $host,
                                            'X-Conversation-Id' => $host });

        member_ok($turn, "publishers, $host");
        is($turn->{preload}->header('Kontextso-Publisher-Token'), $token,
           "publishers: the token of $host");
    }

    my $calls = @{$site->calls};
    my $turn = $site->turn(headers => { %WHO, Host => 'example.org' },
                           ad => 0);

    untouched_ok($turn, 'bypass no_publisher_token', 'publishers, a stranger');
    is(scalar @{$site->calls}, $calls, 'publishers: nothing is asked');
    $site->stop_ok;
}


# an A/B test

{
    my $site = recipe('ab-test');
    my %label = (sponsored => 'Sponsored', ad => 'Ad');
    my %group;

    foreach my $n (1 .. 60) {
        last if keys %group == 3;

        my $turn = $site->turn(headers => { 'X-User-Id' => "u-$n",
                                            'X-Conversation-Id' => "c-$n" });
        my $group = $turn->{preload}->json->{variantId};

        next if $group{$group}++;

        if ($group eq 'control') {
            is($turn->{body}, $turn->{sent}, 'A/B, the control group: no ad');
            is($turn->{preload}->header('Kontextso-Is-Disabled'), 1,
               'A/B, the control group: the ad server knows');
            next;
        }

        member_ok($turn, "A/B, $group");
        like($turn->{body}, qr/"label":"$label{$group}"/,
             "A/B, $group: its label");

        # again, and the same

        $turn = $site->turn(headers => { 'X-User-Id' => "u-$n",
                                         'X-Conversation-Id' => "d-$n" });
        is($turn->{preload}->json->{variantId}, $group,
           "A/B, $group: it stays");
    }

    is(join(' ', sort keys %group), 'ad control sponsored',
       'A/B: all groups have users');
    $site->stop_ok;
}


# paying users

{
    my $site = recipe('paying-users');

    member_ok($site->turn(headers => { %WHO, 'X-Plan' => 'free' }),
              'paying users, free');
    member_ok($site->turn(headers => { %WHO, 'X-Plan' => 'trial' }),
              'paying users, trial');

    my $calls = @{$site->calls};

    foreach my $plan ('gold', '', undef) {
        my %plan = defined $plan ? ('X-Plan' => $plan) : ();
        my $turn = $site->turn(headers => { %WHO, %plan }, ad => 0);

        untouched_ok($turn, 'off', 'paying users, '
                                   . (defined $plan ? "'$plan'" : 'no plan'));
    }

    is(scalar @{$site->calls}, $calls, 'paying users: nothing is asked');
    $site->stop_ok;
}


# shadow mode

{
    my $site = recipe('shadow');
    my $turn = $site->turn(headers => \%WHO, log => 0);

    is($turn->{body}, $turn->{sent}, 'shadow mode: the backend\'s answer');

    my $line = json($site->nginx->wait_file('logs/kontext.log', qr/\n/));

    is("$line->{status} $line->{reason}", 'filled inject_none',
       'shadow mode: it would have been shown');
    is($line->{injected}, '', 'shadow mode: it was not');
    cmp_ok($line->{hold_time} // 0, '==', 0, 'shadow mode: nothing waits');

    my $status = $site->nginx->client->get('/kontext_status')
                      ->read_response->json;

    is($status->{reasons}{inject_none}, 1, 'shadow mode: it is counted');
    $site->stop_ok;
}


# the session API

{
    my $site = recipe('session-api');
    my $turn = $site->turn(headers => { 'X-Auth-User' => 'u-1',
                                        'X-Conversation-Id' => 'c-1' });

    member_ok($turn, 'the session API, a chat');

    my %call = ('Content-Type' => 'application/json',
                'X-Auth-User' => 'u-1', Origin => 'https://chat.example.com');
    my $res = $site->nginx->client->post_json('/kontext/sessions',
        { conversationId => 'c-1' }, %call)->read_response;

    is($res->status, 200, 'the session API: the session of the chat');
    is($res->header('Access-Control-Allow-Origin'), 'https://chat.example.com',
       'the session API: the page may ask');

    my $id = $res->json->{sessionId};
    my $url = "/kontext/sessions/$id/ads/" . (json(
        (without_kontext($turn->{body}))[1])->{messageId});

    $res = $site->nginx->client->get($url, %call)->read_response;
    is($res->status, 200, 'the session API: the ad of the chat');

    $res = $site->nginx->client->get("/kontext/sessions/$id",
                                     'X-Auth-User' => 'u-2')->read_response;
    is($res->status, 404, 'the session API: not for another user');
    unlike($site->nginx->read_file('logs/event.log'), qr/\Q$id\E/,
           'the session API: its ids are not logged');
    $site->stop_ok;
}


# several nodes: a store for them, or a balancer that knows the conversation

SKIP: {
    my $missing = Nodes::missing();

    $seen{'store-memcached'} = 1;
    skip($missing, 6) if $missing;

    my $nodes = Nodes->new(nodes => 0);
    my $memcached = $nodes->memcached;
    my $site = recipe('store-memcached', modules => $nodes->modules,
                      backends => { '127.0.0.1:11211' => $memcached,
                                    '127.0.0.1:11212' => $memcached },
                      edit => sub {
                          s{^server \{\n}{$&    location = /status { kontext_status; }\n}m;
                      });
    my $turn = $site->turn(headers => \%WHO);

    member_ok($turn, 'a store');

    my $n;

    wait_until('a record', sub {
        $n = $site->nginx->client->get('/status')->read_response
                  ->json->{records};
        return $n->{saved};
    });

    is($n->{missing}, 1, 'a store: it was asked');
    like($nodes->store_says("stats items\r\n"), qr/^STAT items/,
         'a store: there is something in it');
    is($n->{save_failed} + $n->{fetch_failed}, 0, 'a store: nothing fails');
    $site->stop_ok;
}

{
    my @nodes = map { Kontext::Mock->new(name => "node $_") } 0 .. 2;
    my $site = recipe('hash-balancer', backends => {
        map { ('127.0.0.1:800' . $_ => $nodes[$_]) } 0 .. 2 });
    my %where;
    my $gone = -1;

    my $send = sub {
        my ($conversation, $name, %args) = @_;
        my $c = $site->ask(%args, headers => {
            'X-Conversation-Id' => $conversation })->{client};
        my $found;

        wait_until("$name: a node", sub {
            ($found) = grep { my @all = $nodes[$_]->requests(qr/.*/);
                              @all > ($where{"n$_"} // 0) }
                            grep { $_ != $gone } 0 .. 2;
            return defined $found;
        });

        my $request;

        $request = $nodes[$found]->wait_request
            for ($where{"n$found"} // 0) .. $where{"n$found"} // 0;

        $where{"n$found"}++;
        $request->respond(200, ChatSite::answer_of('Light ones.'), @SSE);
        is($c->read_response->body, ChatSite::answer_of('Light ones.'),
           "$name: the node's answer");

        return $found;
    };

    my (%node, %used);

    # the ports are any, and so is which node a conversation is of: there are
    # as many as it takes until each node has one

    while (keys %node < 12 || (keys %used < 3 && keys %node < 200)) {
        my $n = 1 + keys %node;

        $used{$node{$n} = $send->("c-$n", "balancer, conversation $n")}++;
    }

    is(keys %used, 3, 'balancer: each node has some');

    foreach my $n (1 .. keys %node) {
        is($send->("c-$n", "balancer, conversation $n again"), $node{$n},
           "balancer, conversation $n: as before");
    }

    # a conversation that only its messages tell

    my @on = map { $send->('', "balancer, turn $_", body => chat(
        ('How is it?', 'So.', 'And now?')[0 .. 2 * $_ - 2])) } 1, 2;

    is($on[1], $on[0], 'balancer: a conversation without a name');

    # a node leaves: the others keep theirs

    $gone = $node{1};
    $nodes[$gone]->stop;

    foreach my $n (1 .. keys %node) {
        my $on = $send->("c-$n", "balancer, without a node, $n");

        is($on, $node{$n}, "balancer: conversation $n stays")
            if $node{$n} != $gone;
    }

    $site->stop_ok;
}


# all of them

is_deeply([ sort keys %seen ],
          [ sort map { m{([^/]+)\.conf\z} } glob("$FindBin::Bin/../recipes/*") ],
          'each file of recipes/ was started');

done_testing;
