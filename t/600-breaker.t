#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# An ad server that fails is left alone, and is asked again when it is back.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use Time::HiRes qw(time);

use ApiSite ();
use ChatSite qw(answer_of);

my $STREAMS = 200;

# Within this time (s) it opens, after the ad server has had as many chats as it
# takes (min=20), and is back after the ad server is.

my $SLOWER = $ENV{TEST_NGINX_USE_VALGRIND} ? 10 : 1;
my ($OPEN, $BACK) = (1 * $SLOWER, 5 * $SLOWER);

my $STATUS = <<'CONF';
        location = /status {
            kontext_status;
        }
CONF

my $ANSWER = answer_of('Light ones.');


sub site {
    my ($breaker, %args) = @_;
    my $class = delete $args{class} // 'ChatSite';
    my $location = delete $args{location} // '';

    $location .= 'kontext_grace 50ms;' if $location !~ /kontext_grace/;

    return $class->new(
        http => "kontext_breaker $breaker;\n" . (delete $args{http} // ''),
        server => $STATUS . (delete $args{server} // ''),
        location => $location, %args);
}


sub breaker {
    my ($site) = @_;

    return $site->nginx->client->get('/status')->read_response
                ->json->{breakers}[0];
}


# a whole chat of a conversation of its own

my ($n, $chats) = (0, 0);

sub talk {
    my ($site, %args) = @_;

    return $site->turn(chat('Which shoes?'), %args,
                       headers => { 'X-Conversation' => 'c-' . ++$n,
                                    %{$args{headers} // {}} });
}


sub until_open {
    my ($site, $name, %args) = @_;
    my ($turn, $turns);

    wait_until("$name: an open breaker", sub {
        $turn = talk($site, %args);
        $turns++;
        ok($turn->untouched, "$name: chat $turns is as it was");

        return $turn->why eq 'bypass breaker_open';
    });

    return $turns;
}


# what an ad server that is broken does: it opens; a chat then costs nothing

my %faults = (
    'a 500'          => [ [ send => Kontext::Mock->response(500, 'no') ] ],
    'no JSON'        => [ [ send => Kontext::Mock->response(200, 'no') ] ],
    'a reset'        => [ [ 'reset' ] ],
    'a huge answer'  => [ [ send => Kontext::Mock->response(
                            200, 'x' x 1_000_000) ] ],
    'too many'       => [ [ send => Kontext::Mock->response(429, '') ] ],
);

foreach my $name (sort keys %faults) {

    # long enough for a failure, and not for a second attempt

    my $site = site('min=3 probe=10m', location => 'kontext_grace 900ms;');

    $site->ads->on_actions('/preload', @{$faults{$name}});

    my $turns = until_open($site, $name);

    is($turns, 4, "$name: three chats, and then no more");

    $site->nginx->barrier;

    my @before = @{$site->asked_for};

    talk($site) foreach 1 .. 3;
    $site->nginx->barrier;
    is_deeply($site->asked_for, \@before,
              "$name: neither /preload nor /init, /error or /debug");

    my $b = breaker($site);

    is($b->{state}, 'open', "$name: the state");
    is($b->{location}, '/_kontext', "$name: of which location");
    is($b->{opened}, 1, "$name: it has opened once");
    is($b->{refused}, 4, "$name: what was not asked");
    is($b->{calls}, 0, "$name: no calls");
    $site->stop_ok;
}


# refused connections; off

{
    my $site = site('min=3 probe=10m');

    $site->ads->refuse;
    is(until_open($site, 'refused'), 4, 'refused: three chats');
    $site->stop_ok;

    $site = site('off');
    $site->ads->on('/preload', 500, 'no');
    is(talk($site)->why, 'error unknown', "off: chat $_ asks") foreach 1 .. 20;
    is(breaker($site)->{state}, 'closed', 'off: closed');
    $site->stop_ok;
}


# answers are no failures, whatever they say

foreach my $what ([ 204 ], [ 404, 'no' ], [ 200, { errCode => 'x' } ]) {
    my $site = site('min=2');

    $site->ads->on('/preload', @$what);
    talk($site) foreach 1 .. 6;
    is(breaker($site)->{state}, 'closed', "$what->[0]: closed");
    $site->stop_ok;
}


# /init may fail as often as it likes

{
    my $site = site('min=2', location => 'kontext_grace 20s;');

    $site->ads->on('/init', 500, 'no');
    is(talk($site)->why, 'filled ', "/init fails: chat $_") foreach 1 .. 5;
    is(breaker($site)->{state}, 'closed', '/init fails: closed');
    $site->stop_ok;
}


# probes: one at a time; the breaker closes when one is answered, also when its
# chat is over by then; a reload changes nothing; a worker may die with one

foreach my $workers (1, 2) {
    my $name = "$workers workers";
    my $site = site('min=3 probe=300ms', workers => $workers);
    my $ads = $site->ads;

    $ads->on('/preload', 500, 'no');
    until_open($site, $name);

    $site->nginx->reload;
    isnt(breaker($site)->{state}, 'closed', "$name: open after a reload");
    is(breaker($site)->{opened}, 1, "$name: the same record");

    # the next probe waits for the test

    $ads->hold('/preload');

    my $probe;

    wait_until("$name: a probe", sub {
        talk($site);
        ($probe) = grep { !$_->answered } $ads->requests('/preload');

        return $probe;
    });

    is(breaker($site)->{state}, 'half_open', "$name: half open");
    $site->nginx->barrier if $workers == 1;
    ok(!$probe->closed, "$name: the chat is over, the probe is not");

    my @pids;

    if ($workers == 2) {
        @pids = $site->nginx->worker_pids;

        kill('KILL', @pids);
        $probe->wait_closed;
        wait_until('new workers', sub {
            return @pids + 2 == (() = $site->nginx->worker_pids);
        });

        wait_until("$name: another probe", sub {
            talk($site);
            ($probe) = grep { !$_->answered && !$_->closed }
                            $ads->requests('/preload');

            return $probe;
        });
        pass("$name: a worker dies with a probe: another one is sent");
    }

    $ads->on('/preload', 200, $ads->bid);
    $probe->respond(200, $ads->bid);

    wait_until("$name: a closed breaker", sub {
        return breaker($site)->{state} eq 'closed';
    });

    isnt(talk($site)->why, 'bypass breaker_open', "$name: chats ask again");
    $site->stop_ok(allow => [ Kontext::Nginx::of_killed(@pids) ]);
}


# no second attempt while it is open

{
    my $site = site('min=3 probe=10m', location => 'kontext_grace 20s;');
    my @turns;

    $site->ads->on_actions('/preload', [ 'reset' ]);

    push @turns, $site->ask(chat('Which shoes?'), asks => [ 'preload' ],
                            headers => { 'X-Conversation' => "open-$_" })
        foreach 1 .. 3;

    wait_until('an open breaker', sub { breaker($site)->{state} eq 'open' });

    foreach my $turn (@turns) {
        $turn->answer('Light ones.');
        ok($turn->untouched, 'the answer is as it was');
        is($turn->why, 'error request_failed', 'an error, and no more of it');
    }

    is(scalar(() = $site->ads->requests('/preload')), 3,
       'three attempts for three chats');
    $site->stop_ok;
}


# as many calls as there may be

{
    my $site = site('off', http => 'kontext_max_calls 2;',
                    location => 'kontext_grace 20s;');
    my $ads = $site->ads;
    my @turns;

    $ads->hold('/preload');
    $ads->hold('/init');

    # /init and /preload are two

    push @turns, $site->ask(chat('Which shoes?'),
                            asks => [ 'init', 'preload' ]);

    my $turn = talk($site);

    is($turn->why, 'bypass ad_calls_busy', 'no room for a third call');
    ok($turn->untouched, 'the answer is as it was');
    is(breaker($site)->{calls}, 2, 'two calls');
    is(breaker($site)->{max_calls}, 2, 'of two');
    is(breaker($site)->{busy}, 1, 'one was not made');

    $turns[0]->asked('init')->respond(200, {});
    $turns[0]->asked('preload')->respond(200, $ads->bid);
    $turns[0]->answer('Light ones.');
    is($turns[0]->why, 'filled ', 'the first one has its ad');
    is(breaker($site)->{calls}, 0, 'no calls');

    $ads->on('/preload', 200, $ads->bid);
    $ads->on('/init', 200, {});
    is(talk($site)->why, 'filled ', 'and so have those that come later');
    $site->stop_ok;
}


# the session API: what was fed while it is open

{
    my $site = site('min=1 probe=10m', class => 'ApiSite');

    $site->ads->on('/preload', 500, 'no');
    until_open($site, 'api');

    my $id = $site->session({}, init => 0);

    $site->add($id, $site->message('m1', user => 'Which shoes?'));

    is($site->settled($id, 'error')->{preload}, 'error',
       'api: nothing is asked for a message');

    my $events = $site->nginx->client;

    $events->get("/kontext/sessions/$id/events", 'Last-Event-ID' => 0);
    $events->read_until(qr/breaker_open/);
    pass('api: and its listeners know why');

    is(scalar(grep { $_->path ne '/preload' && $_->head =~ /api-1/ }
                   $site->ads->requests), 0, 'api: no /init');
    $site->stop_ok;
}


# 200 streams, and an ad server that is dead, hangs or floods: all of them are
# whole, it opens, and is back soon after the ad server is

foreach my $how ('dead', 'hanging', 'flooding') {
    my $site = site('failures=50%', location => 'kontext_grace 500ms;',
                    workers => 2);
    my ($ads, $llm) = ($site->ads, $site->llm);

    $llm->on('/v1/chat/completions', 200, $ANSWER,
             'Content-Type' => 'text/event-stream');

    talk_fast($site, 20);
    is(breaker($site)->{state}, 'closed', "$how: closed before");

    if ($how eq 'dead') {
        $ads->refuse;

    } elsif ($how eq 'hanging') {
        $ads->hold('/preload');
        $ads->hold('/init');

    } else {
        $ads->on_actions($_, [ send => "HTTP/1.1 200 OK\r\n\r\n"
                                       . ('{' x 1_000_000) ])
            foreach '/preload', '/init';
    }

    my ($from, $opened);
    my ($start, $bad) = (time(), 0);

    $chats = 0;

    while (!defined $opened && time() - $start < 20) {
        $bad += talk_fast($site, $STREAMS, sub {
            my ($sent) = @_;
            my $b = breaker($site);

            $from //= time() if $sent >= 20;
            $opened //= time() - ($from // time())
                if $b->{state} ne 'closed';
        });
    }

    is($bad, 0, "$how: every chat is whole");
    ok(defined $opened, "$how: the breaker has opened");
    note(sprintf("%s: open after %.2f s", $how, $opened // -1));
    cmp_ok($opened // 99, '<', $OPEN, "$how: soon");

    my $preloads = () = $ads->requests('/preload');

    $bad = talk_fast($site, $STREAMS);
    is($bad, 0, "$how: chats are whole while it is open");
    cmp_ok(scalar(() = $ads->requests('/preload')) - $preloads, '<', 20,
           "$how: but for probes nothing is asked");

    $from = time();

    if ($how eq 'dead') {
        $ads->listen;

    } else {
        $ads->on('/preload', 200, $ads->bid);
        $ads->on('/init', 200, {});
    }

    wait_until("$how: a closed breaker", sub {
        talk_fast($site, 5);

        return breaker($site)->{state} eq 'closed';
    });

    my $back = time() - $from;

    note(sprintf("%s: back after %.2f s", $how, $back));
    cmp_ok($back, '<', $BACK, "$how: back soon");

    my $turn = talk($site);

    isnt($turn->why, 'bypass breaker_open', "$how: chats ask again");
    note("$how: $chats chats of $STREAMS at a time, all whole")
        if !$bad;
    $site->stop_ok;
}


# chats at the same time; how many were not whole

sub talk_fast {
    my ($site, $count, $meanwhile) = @_;
    my (@clients, $bad);

    foreach (1 .. $count) {
        my $c = $site->nginx->client;

        $c->post_json('/v1/chat/completions', chat('Which shoes?'),
                      'X-User' => 'u-1', 'X-Conversation' => 'c-' . ++$n);
        push @clients, $c;

        $meanwhile->(scalar @clients) if $meanwhile && @clients % 10 == 0;
    }

    $bad = 0;

    $chats += @clients;

    foreach my $c (@clients) {
        my ($body) = without_kontext($c->read_response->body);

        $bad++ if $body ne $ANSWER;
        $meanwhile->(scalar @clients) if $meanwhile;
        $c->close;
    }

    return $bad;
}

done_testing;
