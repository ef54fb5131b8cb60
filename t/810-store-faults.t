#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# A store that is slow, dead or lies, or is not configured well: each node
# works as if it were alone, and no chat waits for it.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use Nodes ();

sub site {
    my (%args) = @_;

    return Nodes->new(nodes => 1, store => Kontext::Mock->new(name => 'store'),
                      %args);
}


# what goes over the wire; memcached takes more than 30 days for a date

foreach my $idle ([ '90s', 90 ], [ '40d', 2592000 ]) {
    my $site = site(http => "kontext_zone kontext:1m idle=$idle->[0];");
    my ($get, $put);

    $site->{mock}->on('/kontext_store', 404);
    $site->turn('One?');

    ($get) = $site->{mock}->wait_request;

    is($get->method, 'GET', 'at the start: GET');
    like($get->uri, qr{\A/kontext_store\?key=kxs_[a-z2-7]{26}\z},
         'at the start: the key');
    is($get->header('Authorization'), undef, 'and none of the client\'s headers');
    is($get->body, '', 'no body');

    $get = $site->{mock}->wait_request;
    is($get->method, 'GET', 'after the turn: GET');

    $put = $site->{mock}->wait_request;
    is($put->method, 'PUT', 'after the turn: PUT');
    is($put->uri, "@{[ $get->uri ]}&exptime=$idle->[1]",
       "after the turn: the same key, and how long it is kept: $idle->[0]");
    like($put->body, qr/\Akxr\x01/, 'after the turn: a record');
    is($put->header('Content-Length'), length $put->body,
       'after the turn: its length');

    $site->stop_ok;
}


# the first bytes of an answer, and all others until its finish, do not wait
# for the store; the end waits for it as for an ad

{
    my $site = site(options => 'timeout=10s');
    my $client = $site->node(1)->client;

    $client->post_json('/v1/chat/completions', chat('One?'),
                       'X-User' => 'u-1', 'X-Conversation' => 'c-1');

    my $fetch = $site->{mock}->wait_request;
    my $request = $site->llm->wait_request;

    $request->start->event(chat_role(), chat_chunk('Light '));
    $client->read_until(qr/Light /);
    $request->event(chat_chunk('ones.'));
    $client->read_until(qr/ones\./);

    is($site->calls('/preload'), 0, 'slow: nothing is asked before it answers');

    $request->event(chat_finish(), '[DONE]')->finish;
    $request->wait_sent;
    $site->node(1)->barrier;
    unlike($client->peek->body, qr/DONE/, 'slow: the end waits');

    $fetch->respond(404, '');
    $site->ads->wait_request(path => '/preload')
         ->respond(200, Kontext::Mock->bid);

    my ($plain, $member) = without_kontext($client->read_response->body);

    ok(defined $member, 'slow: and has its ad');
    $client->close;
    $site->stop_ok(signal => 'TERM');
}


# the grace is over first: no ad, and what is late is of no use

{
    my $site = site(options => 'timeout=10s',
                    grace => '20ms');
    my $client = $site->node(1)->client;

    $client->post_json('/v1/chat/completions', chat('One?'),
                       'X-User' => 'u-1', 'X-Conversation' => 'c-1',
                       'X-Turn' => 'late');

    my $fetch = $site->{mock}->wait_request;
    my $request = $site->llm->wait_request;

    $request->start->event(chat_role(), chat_chunk('Light ones.'),
                           chat_finish(), '[DONE]')->finish;

    my ($plain, $member) = without_kontext($client->read_response->body);

    is($member, undef, 'late: no ad');

    # the client's next request is at once

    $client->get('/status');
    is($client->read_response->status, 200, 'late: the connection is free');

    my $log = $site->node(1)->wait_file('logs/event.log', qr/"n":"late".*\n/);

    like($log, qr/"n":"late".*"reason":"late"/, 'late: the reason');
    $fetch->wait_closed;
    is($site->calls('/preload') + $site->calls('/init'), 0,
       'late: nothing is asked');
    $client->close;
    $site->stop_ok;
}


# the user goes on, and what was asked for first is answered last: the newer
# turn stays

{
    my $site = site(options => 'timeout=10s');
    my $client = $site->node(1)->client;

    $client->post_json('/v1/chat/completions', chat('One?'),
                       'X-User' => 'u-1', 'X-Conversation' => 'c-1',
                       'X-Turn' => 'older');

    my $fetch = $site->{mock}->wait_request;
    my $request = $site->llm->wait_request;

    $request->start->event(chat_role(), chat_chunk('Light '));
    $client->read_until(qr/Light /);

    $site->{mock}->on('/kontext_store', 404);

    my $newer = $site->turn('One?', 'So.', 'Two?');

    $fetch->respond(404, '');
    $request->event(chat_finish(), '[DONE]')->finish;

    my ($plain, $member) = without_kontext($client->read_response->body);

    is($member, undef, 'out of order: the older turn has no ad');

    my $log = $site->node(1)->wait_file('logs/event.log', qr/"n":"older".*\n/);

    like($log, qr/"n":"older".*"reason":"superseded"/,
         'out of order: the reason');
    is($site->turn('One?', 'So.', 'Two?', { ask => 0 })->{ad}, $newer->{ad},
       'out of order: the newer one has kept its ad');
    is($site->calls('/preload'), 1, 'out of order: nothing more is asked');
    $client->close;
    $site->stop_ok;
}


# a client that goes away takes the call with it

{
    my $site = site(options => 'timeout=10s');
    my $client = $site->node(1)->client;

    $client->post_json('/v1/chat/completions', chat('One?'),
                       'X-User' => 'u-1', 'X-Conversation' => 'c-1');

    my $fetch = $site->{mock}->wait_request;

    $site->llm->wait_request->start->event(chat_role(), chat_chunk('Light '));
    $client->read_until(qr/Light /);
    $client->reset;
    $fetch->wait_closed;
    ok($fetch->closed, 'gone: the store is not waited for');
    $site->stop_ok;
}


# what waits for the store is kept in memory, and there is an end to it: who
# comes then has an ad without it

SKIP: {
    skip('eight take longer than the store may', 13)
        if $ENV{TEST_NGINX_USE_VALGRIND};

    my $site = site(options => 'timeout=10s',
                    location => 'client_max_body_size 16m;');
    my $big = 'x' x 8_000_000;
    my @waiting;

    my $chat = sub {
        my ($n) = @_;
        my $client = $site->node(1)->client;

        $client->post_json('/v1/chat/completions', chat($big, 'So.', 'One?'),
                           'X-User' => 'u-1', 'X-Conversation' => "c-$n");

        my $request = $site->llm->wait_request;

        $request->start->event(chat_role(), chat_chunk('Light '));
        $client->read_until(qr/Light /);

        return ($client, $request);
    };

    my $rest = sub {
        my ($client, $request) = @_;

        $site->ads->wait_request(path => '/preload')
             ->respond(200, Kontext::Mock->bid);
        $request->event(chat_finish(), '[DONE]')->finish;

        my ($plain, $member) = without_kontext($client->read_response->body);

        $client->close;

        return defined $member;
    };

    foreach my $n (1 .. 8) {
        push @waiting, [ $chat->($n), $site->{mock}->wait_request ];
    }

    is($site->calls('/preload'), 0, 'memory: eight wait for the store');
    ok($rest->($chat->(9)), 'memory: the ninth does not, and has its ad');
    is($site->records(1, 'refused'), 1, 'memory: which is counted');

    # its record is written, and that needs no memory

    is($site->{mock}->wait_request->method, 'GET', 'memory: it is written');

    foreach my $waiting (@waiting) {
        my $fetch = pop @$waiting;

        $fetch->respond(404, '');
        ok($rest->(@$waiting), 'memory: one that waited has its ad');
        $site->{mock}->wait_request;
    }

    my @next = $chat->(10);

    $site->{mock}->wait_request->respond(404, '');
    ok($rest->(@next), 'memory: there is room again');
    $site->stop_ok(signal => 'TERM');
}


# a session is closed: its record has to go, or had gone

{
    my $site = site(server => Nodes::api());
    my $client = $site->node(1)->client;
    my $n = 0;

    foreach my $case ([ 204, 'deleted' ], [ 404, 'deleted' ],
                      [ 500, 'save_failed' ])
    {
        my ($status, $counter) = @$case;

        $site->{mock}->on('/kontext_store', 404);

        my $saved = $site->records(1, 'save_failed');
        my $id = $client->post_json('/kontext/sessions',
            { conversationId => 'c-' . ++$n }, 'X-User' => 'u-1')
            ->read_response->json->{sessionId};

        # the PUT was answered 404, too

        $site->wait_records(1, 'save_failed', $saved + 1);

        my $before = $site->records(1, $counter);

        $site->{mock}->on('/kontext_store', $status);

        is($client->request('DELETE', "/kontext/sessions/$id", '',
                            'X-User' => 'u-1')->read_response->status, 204,
           "closed, $status: the session");
        $site->wait_records(1, $counter, $before + 1);
        pass("closed, $status: $counter");
    }

    $client->close;
    $site->stop_ok;
}


# whatever the store does, the chat has its ad, as if the node were alone

my $other = 'kxr' . "\x01" . ("\0" x 26);

my %faults = (
    'an error'      => [ [ send => Kontext::Mock->response(500, 'no') ] ],
    'a redirect'    => [ [ send => Kontext::Mock->response(302, '',
                             'Location' => 'http://127.0.0.1/') ] ],
    'a reset'       => [ [ 'reset' ] ],
    'half an answer' => [ [ send => "HTTP/1.1 200 OK\r\nContent-Length: 99"
                                    . "\r\n\r\nkxr\x01" ], [ 'close' ] ],
    'no HTTP'       => [ [ send => "VALUE kxs 0 3\r\nabc\r\nEND\r\n" ],
                         [ 'close' ] ],
    'nothing'       => [ [ send => Kontext::Mock->response(200, '') ] ],
    'a page'        => [ [ send => Kontext::Mock->response(
                             200, '<html>Welcome</html>') ] ],
    'what was not sealed' => [ [ send => Kontext::Mock->response(
                                     200, $other) ] ],
    'a version to come' => [ [ send => Kontext::Mock->response(
                                     200, "kxr\x02" . 'x' x 99) ] ],
    'too much'      => [ [ send => Kontext::Mock->response(
                             200, 'kxr' . 'x' x 1_000_000) ] ],
    'no answer'     => [],
);

foreach my $name (sort keys %faults) {
    my $site = site(options => 'timeout=100ms');

    $site->{mock}->on_actions('/kontext_store', @{$faults{$name}})
        if @{$faults{$name}};

    my $one = $site->turn('One?');
    my $two = $site->turn('One?', 'So.', 'Two?');

    ok($one->{whole} && $two->{whole}, "$name: the answers as they were");
    ok($one->{ad} && $two->{ad}, "$name: ads");
    is($two->{preload}{sessionId}, Nodes::session_id($one->{n}),
       "$name: the node has its session");
    is($site->calls('/init'), 1, "$name: one /init");

    my $again = $site->turn('One?', 'So.', 'Two?', { ask => 0 });

    is($again->{ad}, $two->{ad}, "$name: the same ad");

    my $n = $site->status(1)->{records};

    is($n->{found} + $n->{missing}, 0, "$name: nothing was found");
    is($n->{fetch_failed} + $n->{unreadable}, 2, "$name: counted");

    $site->stop_ok;
}


# a record of one conversation that is handed out for another one

{
    my $site = site();

    $site->{mock}->on('/kontext_store', 404);
    $site->turn('One?');

    my $put;

    do {
        $put = $site->{mock}->wait_request;
    } while ($put->method ne 'PUT');

    $site->{mock}->on('/kontext_store', 200, $put->body,
                      'Content-Type' => 'application/octet-stream');

    my $other = $site->turn('One?', { conversation => 'c-2' });

    is($other->{preload}{sessionId}, undef, 'mixed up: a session of its own');
    is($site->records(1, 'found'), 0, 'mixed up: not found');
    $site->stop_ok;
}


# a store that is dead is left alone, and the chats do not notice

{
    my $site = site(options => 'timeout=200ms');
    my $addr = $site->{mock}->addr;

    $site->{mock}->refuse;

    my $n = 0;

    wait_until('an open breaker', sub {
        my $turn = $site->turn('One?', { conversation => 'c-' . ++$n });

        ok($turn->{ad} && $turn->{whole}, "dead: chat $n has its ad");

        my ($store) = grep { $_->{location} eq '/kontext_store' }
                          @{$site->status(1)->{breakers}};

        return $store->{state} eq 'open';
    });

    my $failed = $site->records(1, 'fetch_failed');

    ok($site->turn('One?', { conversation => 'c-last' })->{ad},
       'dead: an ad');
    is($site->records(1, 'fetch_failed'), $failed, 'dead: it is not asked');
    cmp_ok($site->records(1, 'refused'), '>=', 2, 'dead: which is counted');

    my ($ads) = grep { $_->{location} eq '/_kontext' }
                    @{$site->status(1)->{breakers}};

    is($ads->{state}, 'closed', 'dead: the ad server has a breaker of its own');

    $site->{mock}->on('/kontext_store', 404);
    $site->{mock}->listen;

    wait_until('the store again', sub {
        $site->turn('One?', { conversation => 'c-' . ++$n });
        return $site->records(1, 'missing') > 0;
    });

    pass('back: it is asked again');
    $site->stop_ok;
}


# nginx -t

my %bad = (
    'kontext_store kontext;'
        => qr/invalid value "kontext" in "kontext_store", it must be the prefix/,
    'kontext_store /s timeout=0;' => qr/invalid time "0" in "kontext_store"/,
    'kontext_store /s timeout=1h;' => qr/invalid time "1h" in "kontext_store"/,
    'kontext_store /s secret=abc;' => qr/the secret in "kontext_store" is too/,
    'kontext_store /s ttl=3;'
        => qr/invalid parameter "ttl=3" in "kontext_store", it must be "timeout/,
    'kontext_store /s; kontext_store /s;' => qr/"kontext_store" directive is dup/,
    'kontext_store /none;'
        => qr/which has no internal location "\/none", write "location = \/none/,
    'kontext_store /open;' => qr/no internal location "\/open"/,
);

sub conf {
    my ($kontext) = @_;

    return <<"CONF";
        location /_kontext/ { internal; return 204; }
        location = /s { internal; return 404; }
        location = /open { return 404; }
        location / {
            kontext on;
            kontext_publisher_token acme-dev;
            $kontext
            return 204;
        }
CONF
}

foreach my $line (sort keys %bad) {
    my ($ok, $output) = Kontext::Nginx->test_config(server => conf($line));

    ok(!$ok, "nginx -t: $line fails");
    like($output, $bad{$line}, "nginx -t: $line: what to write instead");
}

foreach my $line ('kontext_store /s;', 'kontext_store off;',
                  'kontext_store /s timeout=1s secret=0123456789abcdef;')
{
    my ($ok, $output) = Kontext::Nginx->test_config(server => conf($line));

    ok($ok, "nginx -t: $line") or diag($output);
}


# a balancer needs nothing but the directive

{
    my ($ok, $output) = Kontext::Nginx->test_config(
        server => 'location / { kontext identify; return 204; }');

    ok($ok, 'nginx -t: kontext identify alone') or diag($output);
}


done_testing;
