#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The wait of a finished answer for an ad that is on its way: what waits, what
# does not, and what ends it.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;
my $refusing = Kontext::Mock->new(name => 'refusing ad server');

$ads->hold('/preload');
$refusing->refuse;

my $nginx = Kontext::Nginx->new(
    vars   => { llm => $llm->addr, ads => $ads->addr,
                refusing => $refusing->addr },
    http   => <<'CONF',
    log_format events escape=json
        '{"t":"$arg_t","status":"$kontext_status","reason":"$kontext_reason",'
        '"injected":"$kontext_injected","hold":"$kontext_hold_time",'
        '"preload":"$kontext_preload_time","http":"$status",'
        '"session":"$kontext_session"}';
CONF
    server => <<'CONF',
        access_log               logs/events.log events;

        # many of these ads come too late on purpose

        kontext_breaker          off;

        kontext                  on;
        kontext_publisher_token  acme-dev;
        kontext_user_id          u-1;
        kontext_conversation_id  $http_x_conversation_id;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /_refusing/ {
            internal;
            proxy_pass http://@refusing@/;
        }

        location /v1/ {
            kontext_grace 25s;
            proxy_pass    http://@llm@;
        }

        location /unbuffered/ {
            kontext_grace   25s;
            proxy_pass      http://@llm@;
            proxy_buffering off;
        }

        location /short/ {
            kontext_grace 50ms;
            proxy_pass    http://@llm@;
        }

        location /default/ {
            proxy_pass    http://@llm@;
        }

        location /never/ {
            kontext_grace 0;
            proxy_pass    http://@llm@;
        }

        location /timeout/ {
            kontext_grace 25s;
            send_timeout  200ms;
            proxy_pass    http://@llm@;
        }

        location /ignorant/ {
            kontext_grace             25s;
            proxy_ignore_client_abort on;
            proxy_pass                http://@llm@;
        }

        location /refused/ {
            kontext_ad_server /_refusing;
            proxy_pass        http://@llm@;
        }
CONF
);

my $n = 0;


sub logged {
    my ($t) = @_;
    my $log = $nginx->wait_file('logs/events.log', qr/"t":"$t".*\n/);

    return json($log =~ /^(.*"t":"$t".*)$/m);
}


# the preload of a conversation

sub preload_of {
    my ($conversation) = @_;

    while (1) {
        my $req = $ads->wait_request(path => '/preload');

        return $req if $req->json->{conversationId} eq $conversation;
    }
}


# starts a chat and the head of its answer: (client, the backend's request,
# the preload, its name in the log)

sub ask {
    my ($where, %args) = @_;
    my $t = 't' . ++$n;
    my $conversation = $args{conversation} // $t;
    my $c = $nginx->client;

    $c->post_json("/$where/chat/completions?t=$t",
                  $args{chat} // chat('Which shoes?'),
                  'X-Conversation-Id' => $conversation);

    my $req = $llm->wait_request;
    my $preload = $args{no_preload} ? undef : preload_of($conversation);

    $req->start->event(chat_role(), chat_chunk('Light'));
    $c->read_until(qr/Light/);

    return ($c, $req, $preload, $t);
}


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


my @HEAD = (chat_role(), chat_chunk('Light'));


# sends the end of the answer and shows that none of it comes

sub held_ok {
    my ($c, $req, $end, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    $req->event(chat_chunk(' ones'));
    $c->read_until(qr/ ones/);
    pass("$name: text passes");

    $end->($req);
    $req->wait_sent;
    $nginx->barrier;

    is($c->peek->body, sse(@HEAD, chat_chunk(' ones')),
       "$name: the finish chunk waits, and all after it");
    ok(!$c->peek->complete, "$name: and the end");
}


my %ENDS = (
    'the backend open, no [DONE] yet'
        => [ sub { $_[0]->event(chat_finish()) },
             sub { $_[0]->event(chat_usage(), '[DONE]')->finish },
             [ chat_finish(), chat_usage(), '[DONE]' ] ],
    'the backend open after [DONE]'
        => [ sub { $_[0]->event(chat_finish(), '[DONE]') },
             sub { $_[0]->finish },
             [ chat_finish(), '[DONE]' ] ],
    'the backend is through'
        => [ sub { $_[0]->event(chat_finish(), chat_usage(), '[DONE]')
                        ->finish },
             sub {},
             [ chat_finish(), chat_usage(), '[DONE]' ] ],
    'the backend has closed'
        => [ sub { $_[0]->event(chat_finish(), '[DONE]')->finish->close },
             sub {},
             [ chat_finish(), '[DONE]' ] ],
    'the marker and what follows in one write'
        => [ sub { $_[0]->chunk(sse(chat_finish(), '[DONE]'))->finish },
             sub {},
             [ chat_finish(), '[DONE]' ] ],
    'a frame under way behind the marker'
        => [ sub { $_[0]->chunk(sse(chat_finish()) . 'data: [DO') },
             sub { $_[0]->chunk("NE]\n\n")->finish },
             [ chat_finish(), '[DONE]' ] ],
);


# released with the ad

foreach my $where ('v1', 'unbuffered') {
    foreach my $name (sort keys %ENDS) {
        my ($first, $rest, $tail) = @{$ENDS{$name}};
        my ($c, $req, $preload, $t) = ask($where);

        held_ok($c, $req, $first, "$where, $name");

        $preload->respond(200, Kontext::Mock->bid);
        $c->read_until(qr/"kontext":/);
        pass("$where, $name: the ad releases it");

        $rest->($req);

        my ($body, $ad) = without_kontext($c->read_response->body);

        is($body, sse(@HEAD, chat_chunk(' ones'), @$tail),
           "$where, $name: all of it, in order");
        is(json($ad)->{ads}[0]{code}, 'inlineAd', "$where, $name: with the ad");

        my $log = logged($t);

        is($log->{status}, 'filled', "$where, $name: filled");
        like($log->{hold}, qr/\A\d+\.\d{3}\z/, "$where, $name: hold time");
        like($log->{preload}, qr/\A\d+\.\d{3}\z/,
             "$where, $name: preload time");
        ok($c->is_open, "$where, $name: the connection stays");
    }
}


# text of other choices passes the finish of one; the last one waits

{
    my ($c, $req, $preload, $t) = ask('v1');
    my $other = chat_chunk('Other') =~ s/"index":0/"index":1/r;
    my $end = chat_finish() =~ s/"index":0/"index":1/r;

    $req->event($other, chat_finish(), chat_chunk('More')
                                       =~ s/"index":0/"index":1/r);
    $c->read_until(qr/More/);
    pass('n=2: the first finish does not wait');

    $req->event($end)->wait_sent;
    $nginx->barrier;
    unlike($c->peek->body, qr/"index":1,"delta":\{\}/, 'the last one does');

    $preload->respond(200, Kontext::Mock->bid);
    $req->event('[DONE]')->finish;
    like($c->read_response->body, qr/"index":1,"delta":\{\}[^\n]*"kontext":/,
         'and has the ad');
    is(logged($t)->{injected}, 'member', 'in the log as well');
}


# released by other answers of the ad server

foreach my $case ([ 'no fill', sub { $_[0]->respond(204) }, 'no_fill',
                    'unfilled_bid' ],
                  [ 'an error', sub { $_[0]->respond(500, 'oops') }, 'error',
                    'unknown' ],
                  [ 'not JSON', sub { $_[0]->respond(200, '{"bids"') },
                    'error', 'request_failed' ],
                  [ 'not HTTP, the next attempt later than the grace',
                    sub { $_[0]->send("?\n")->close }, 'error',
                    'request_failed', 'default' ],
                  [ 'a reset, the next attempt later than the grace',
                    sub { $_[0]->reset }, 'error', 'request_failed',
                    'default' ])
{
    my ($name, $act, $status, $reason, $where) = @$case;
    my ($c, $req, $preload, $t) = ask($where // 'v1');

    held_ok($c, $req, sub { $_[0]->event(chat_finish(), '[DONE]')->finish },
            $name);
    $act->($preload);
    $ads->sync;
    $nginx->barrier;

    ok($c->peek->complete, "$name: releases it at once");
    is($c->read_response->body,
       sse(@HEAD, chat_chunk(' ones'), chat_finish(), '[DONE]'),
       "$name: releases it as it was");

    my $log = logged($t);

    is($log->{status}, $status, "$name: status");
    is($log->{reason}, $reason, "$name: reason");
    is($log->{injected}, '', "$name: nothing injected");
    like($log->{hold}, qr/\A\d+\.\d{3}\z/, "$name: hold time");
}


# the time is over: also by half the send_timeout, and by default

foreach my $where ('short', 'default', 'timeout') {
    foreach my $name (sort keys %ENDS) {
        my ($first, $rest, $tail) = @{$ENDS{$name}};
        my ($c, $req, $preload, $t) = ask($where);

        # the backend goes on only when the client has the finish chunk

        $first->($req);
        $c->read_until(qr/"finish_reason":"stop"/);
        $rest->($req);

        my $res = $c->read_response;

        is($res->body, sse(@HEAD, @$tail),
           "$where, $name: released without an ad");
        is($preload->wait_closed, 'eof', "$where, $name: the ad call ends");

        my $log = logged($t);

        is($log->{status}, 'pending', "$where, $name: pending");
        is($log->{reason}, 'late', "$where, $name: late");
        is($log->{injected}, '', "$where, $name: nothing injected");
        like($log->{hold}, qr/\A\d+\.\d{3}\z/, "$where, $name: hold time");
        cmp_ok($log->{hold}, '>', 0, "$where, $name: it was held");
        ok($c->is_open, "$where, $name: the connection stays");
    }
}


# an ad after the time is over is not put in any more

{
    my ($c, $req, $preload, $t) = ask('short');

    $req->event(chat_finish());
    $c->read_until(qr/"finish_reason":"stop"/);
    $preload->respond(200, Kontext::Mock->bid)->wait_sent;
    $nginx->barrier;
    $req->event(chat_usage(), '[DONE]')->finish;

    is($c->read_response->body,
       sse(@HEAD, chat_finish(), chat_usage(), '[DONE]'),
       'an ad behind the finish chunk is late');
    is(logged($t)->{reason}, 'late', 'for this reason');
}


# grace 0 never waits, but takes an ad that is there

{
    my ($c, $req, $preload, $t) = ask('never');

    $req->event(chat_finish())->wait_sent;
    $nginx->barrier;
    is($c->peek->body, sse(@HEAD, chat_finish()), 'grace 0: no wait');
    $req->event('[DONE]')->finish;
    is($c->read_response->body, sse(@HEAD, chat_finish(), '[DONE]'),
       'grace 0: to the end');
    is($preload->wait_closed, 'eof', 'grace 0: the ad call ends');

    my $log = logged($t);

    is($log->{status}, 'pending', 'grace 0: pending');
    is($log->{reason}, 'late', 'grace 0: late');

    ($c, $req, $preload, $t) = ask('never');
    $preload->respond(200, Kontext::Mock->bid)->wait_sent;
    $nginx->barrier;
    $req->event(chat_finish(), '[DONE]')->finish;

    my ($body, $ad) = without_kontext($c->read_response->body);

    is($body, sse(@HEAD, chat_finish(), '[DONE]'), 'grace 0, the ad is there');
    ok(defined $ad, 'grace 0: it is put in');
    is(logged($t)->{injected}, 'member', 'grace 0: injected');
}


# what waits is bounded by its size

foreach my $where ('v1', 'unbuffered') {
    my ($c, $req, $preload, $t) = ask($where);

    # a little is held, so the wait has begun

    held_ok($c, $req, sub { $_[0]->event(chat_finish()) },
            "$where, the bound");

    my @more = map { ': ' . sprintf('%04d', $_) . ('x' x 1016) } 1 .. 256;

    $req->chunk(map { "$_\n\n" } @more);
    $c->read_until(qr/: 0001/);
    unlike($c->response->body, qr/kontext/, "$where: 256k behind the marker "
                                            . 'are not held');
    $req->event('[DONE]')->finish;

    is($c->read_response->body,
       sse(@HEAD, chat_chunk(' ones'), chat_finish())
       . join('', map { "$_\n\n" } @more) . sse('[DONE]'),
       "$where: all of it, in order");
    is($preload->wait_closed, 'eof', "$where: the ad call ends");
    is(logged($t)->{injected}, '', "$where: nothing injected");

    # below the bound the ad is awaited

    ($c, $req, $preload, $t) = ask($where);
    held_ok($c, $req, sub { $_[0]->event(chat_finish())
                                 ->chunk(map { "$_\n\n" } @more[0 .. 40]) },
            "$where, 41k behind the marker");
    $preload->respond(200, Kontext::Mock->bid);
    $req->event('[DONE]')->finish;

    my ($body, $ad) = without_kontext($c->read_response->body);

    is($body, sse(@HEAD, chat_chunk(' ones'), chat_finish())
              . join('', map { "$_\n\n" } @more[0 .. 40]) . sse('[DONE]'),
       "$where: all of it");
    ok(defined $ad, "$where: with the ad");
}


# an ad server that is not there is not waited for

{
    my ($c, $req, undef, $t) = ask('refused', no_preload => 1);

    $req->event(chat_finish(), '[DONE]')->finish->wait_sent;
    $nginx->barrier;
    ok($c->peek->complete, 'refused: no wait');
    is($c->read_response->body, sse(@HEAD, chat_finish(), '[DONE]'),
       'refused: the answer as it was');

    my $log = logged($t);

    is($log->{status}, 'error', 'refused: an error');
    is($log->{reason}, 'request_failed', 'refused: its reason');
    ok($c->is_open, 'refused: the connection stays');
}


# two requests of the same turn: the second waits for the first one's ad

foreach my $order ('first', 'second') {
    my $conversation = "twice-$order";
    my ($c1, $req1, $preload, $t1) = ask('v1',
                                         conversation => $conversation);
    my ($c2, $req2, undef, $t2) = ask('v1', no_preload => 1,
                                      conversation => $conversation);
    my @all = $ads->requests('/preload');

    is(($all[-1])->conn->id, $preload->conn->id,
       "twice: one preload for both ($order ends first)");

    my @ends = ([ $c1, $req1 ], [ $c2, $req2 ]);

    foreach my $end ($order eq 'first' ? @ends : reverse @ends) {
        held_ok($end->[0], $end->[1],
                sub { $_[0]->event(chat_finish(), '[DONE]')->finish },
                "twice ($order ends first)");
    }

    $preload->respond(200, Kontext::Mock->bid);

    foreach my $end (@ends) {
        my ($body, $ad) = without_kontext($end->[0]->read_response->body);

        is($body, sse(@HEAD, chat_chunk(' ones'), chat_finish(), '[DONE]'),
           'twice: the answer');
        ok(defined $ad, 'twice: with the ad');
        is(json($ad // '{}')->{ads}[0]{bidId}, Kontext::Mock->bid->{bids}[0]{bidId},
           'twice: the same one');
    }

    is(logged($_)->{status}, 'filled', 'twice: filled') foreach $t1, $t2;
}


# the one with the ad call goes away: the other one ends all the same

{
    my ($c1, $req1, $preload) = ask('v1', conversation => 'leaves');
    my ($c2, $req2, undef, $t2) = ask('short', no_preload => 1,
                                      conversation => 'leaves');

    $c1->close;
    is($req1->wait_closed, 'eof', 'the first leaves, its backend is told');
    is($preload->wait_closed, 'eof', 'and the ad server');

    $req2->event(chat_finish(), '[DONE]')->finish;
    is($c2->read_response->body, sse(@HEAD, chat_finish(), '[DONE]'),
       'the second is whole');
    is(logged($t2)->{injected}, '', 'without an ad');

    # the same turn again asks again

    my ($c3, $req3, $again, $t3) = ask('v1', conversation => 'leaves');

    $again->respond(200, Kontext::Mock->bid);
    $req3->event(chat_finish(), '[DONE]')->finish;
    like($c3->read_response->body, qr/"kontext":/,
         'the third asks again and has its ad');
    is(logged($t3)->{status}, 'filled', 'filled');
}


# the next turn while the last one is held: the user has gone on

{
    my ($c1, $req1, $preload1, $t1) = ask('v1', conversation => 'on');

    held_ok($c1, $req1,
            sub { $_[0]->event(chat_finish(), '[DONE]')->finish }, 'gone on');

    my ($c2, $req2, $preload2, $t2)
        = ask('v1', conversation => 'on',
              chat => chat('Which shoes?', 'Light ones', 'Which ones?'));

    $preload2->respond(200, Kontext::Mock->bid);
    $req2->event(chat_finish(), '[DONE]')->finish;
    like($c2->read_response->body, qr/"kontext":/, 'the newer turn has its ad');

    # what the older one gets is nothing, now or when its ad comes

    $preload1->respond(200, Kontext::Mock->bid);
    is($c1->read_response->body,
       sse(@HEAD, chat_chunk(' ones'), chat_finish(), '[DONE]'),
       'the older one has none');
    is(logged($t1)->{reason}, 'superseded', 'for this reason');
}


# the client leaves while its answer is held

foreach my $how ('close', 'reset', 'shutdown') {
    foreach my $name ('the backend open, no [DONE] yet',
                      'the backend is through')
    {
        my ($c, $req, $preload, $t) = ask('v1');

        held_ok($c, $req, $ENDS{$name}[0], "$how, $name");

        $c->$how;
        is($preload->wait_closed, 'eof', "$how, $name: the ad call ends");

        # a backend that waits for the next request has nothing to be told

        is($req->wait_closed, 'eof', "$how, $name: the backend is left");
        is(logged($t)->{injected}, '', "$how, $name: nothing injected");
    }
}


# the client has left and nginx does not know yet when the ad comes, or no ad:
# the end of the answer is written to nobody

foreach my $where ('ignorant', 'v1', 'unbuffered') {
    foreach my $name (sort keys %ENDS) {
        foreach my $case ([ 200, 'answered' ], [ 204, 'answered' ],
                          [ 200, 'silent' ])
        {
            my ($status, $init) = @$case;
            my $what = "$where, $name, /init $init, "
                       . "/preload says $status to nobody";

            $ads->hold('/init') if $init eq 'silent';

            my ($c, $req, $preload, $t) = ask($where);
            my $pid = $nginx->worker_pid;

            held_ok($c, $req, $ENDS{$name}[0], $what);

            # the worker finds it all at once: the ad first

            kill('STOP', $pid);
            wait_until('the worker to stop', sub {
                open(my $fh, '<', "/proc/$pid/stat") or return 0;
                return <$fh> =~ /\) [Tt] /;
            });
            $preload->respond($status, $status == 200 ? Kontext::Mock->bid
                                                      : ());
            $preload->wait_sent;
            $c->reset;
            kill('CONT', $pid);

            is($preload->wait_closed, 'eof', "$what: the ad call ends");
            $req->finish->close;
            logged($t);
            is($nginx->worker_pid, $pid, "$what: the worker lives");
            $ads->on('/init', 200, { enabled => JSON::PP::true() });
        }
    }
}

is($ads->open_connections, 0, 'no ad call is left');

$nginx->stop_ok;

done_testing;
