#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Sessions belong to all workers: to each of them, across reloads, in the
# smallest zone, and when a worker dies.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;
use POSIX ();

my $CONVERSATIONS = $ENV{KONTEXT_CONVERSATIONS} || 10_000;
my $CLIENTS = 4;
my $HEAD = 16384;

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;

my $format = <<'CONF';
    log_format events escape=json
        '{"t":"$arg_t","status":"$kontext_status","reason":"$kontext_reason",'
        '"injected":"$kontext_injected","session":"$kontext_session",'
        '"pid":"$pid"}';
CONF

my $server = <<'CONF';
        access_log               logs/events.log events;

        kontext                  on;
        kontext_publisher_token  acme-dev;
        kontext_user_id          $http_x_user_id;
        kontext_conversation_id  $http_x_conversation_id;
        kontext_grace            25s;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /v1/ {
            proxy_pass http://@llm@;
        }

        location /second/ {
            kontext_grace 1s;
            proxy_pass    http://@llm@;
        }

        location = /pid {
            kontext off;
            return  200 "$pid\n";
        }
CONF

my $nginx = Kontext::Nginx->new(
    workers => 2,
    vars    => { llm => $llm->addr, ads => $ads->addr },
    http    => $format,
    server  => $server,
);

my @ANSWER = (chat_role(), chat_chunk('Light'), chat_finish(), '[DONE]');
my $n = 0;


sub logged {
    my ($t) = @_;
    my $log = $nginx->wait_file('logs/events.log', qr/"t":"$t".*\n/);

    return json($log =~ /^(.*"t":"$t".*)$/m);
}


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


sub state_of {
    my ($pid) = @_;

    open(my $fh, '<', "/proc/$pid/stat") or return '';

    return <$fh> =~ /\) (\S)/ ? $1 : '';
}


sub workers {
    return grep { state_of($_) =~ /[^Z]/ } $nginx->worker_pids;
}


# a connection to this worker: the others are stopped until it is there

sub client_of {
    my ($pid) = @_;
    my @others = grep { $_ != $pid } workers();

    foreach my $other (@others) {
        kill('STOP', $other);
        wait_until("worker $other to stop",
                   sub { state_of($other) =~ /[TtZ]|^$/ });
    }

    my $c = $nginx->client;
    my $answer = $c->get('/pid')->read_response->body;

    kill('CONT', $_) foreach @others;

    is($answer, "$pid\n", "a connection to worker $pid");

    return $c;
}


# starts a turn: (the backend's request, its name)

sub ask {
    my ($c, $conversation, @texts) = @_;
    my $t = 't' . ++$n;
    my $where = 'v1';

    ($where, $conversation) = ($1, $2) if $conversation =~ m{\A(.*)/(.*)\z};

    $c->post_json("/$where/chat/completions?t=$t", chat(@texts),
                  'X-User-Id' => "u-$conversation",
                  'X-Conversation-Id' => $conversation);

    return ($llm->wait_request, $t);
}


# the calls of a conversation to the ad server, up to now, and the one that
# waits for its answer

sub calls {
    my ($path, $conversation) = @_;

    return grep { $_->json->{userId} eq "u-$conversation" }
                $ads->requests($path);
}


sub preload_of {
    my ($conversation) = @_;

    while (1) {
        my $req = $ads->wait_request(path => '/preload');

        return $req if !$req->answered
                       && $req->json->{conversationId} eq $conversation;
    }
}


# an answer, whether or not there is an ad; returns the ad

sub whole_ok {
    my ($c, $name) = @_;
    my ($body, $ad) = without_kontext($c->read_response->body);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($body, sse(@ANSWER), "$name: the answer is whole");

    return $ad;
}


sub answer_ok {
    my ($c, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    ok(defined whole_ok($c, $name), "$name: it has its ad");
}


# a chat and the backend's answer; returns its number for the log

sub chat_on {
    my ($c, $conversation, @texts) = @_;
    my ($req, $t) = ask($c, $conversation, @texts);

    $req->start->event(@ANSWER)->finish;

    return $t;
}


# a whole turn

sub turn_ok {
    my ($c, $name, $conversation, @texts) = @_;
    my $t = chat_on($c, $conversation, @texts);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    answer_ok($c, $name);

    return logged($t);
}


# the same, whether or not there is an ad; returns the ad

sub whole_turn_ok {
    my ($c, $name, $conversation, @texts) = @_;

    chat_on($c, $conversation, @texts);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return whole_ok($c, $name);
}


# all of the zone but what nginx itself has there, in front

sub write_zone {
    my ($byte) = @_;
    my ($start, $end);

    no warnings 'portable';     # of more than 32 bits

    open(my $maps, '<', "/proc/$nginx->{pid}/maps") or die "maps: $!";

    while (<$maps>) {
        ($start, $end) = (hex $1, hex $2)
            if /^([0-9a-f]+)-([0-9a-f]+) rw-s / && hex($2) - hex($1) == 2 ** 20;
    }

    die 'no zone' if !$end;

    open(my $mem, '+<:raw', "/proc/$nginx->{pid}/mem") or die "mem: $!";
    sysseek($mem, $start + $HEAD, 0) or die "seek: $!";
    syswrite($mem, $byte x ($end - $start - $HEAD))
        == $end - $start - $HEAD or die "write: $!";
}


# one conversation, turn by turn on either worker

my @history = ('Question 0?');

{
    my @clients = map { client_of($_) } workers();
    my %pids;

    is(scalar @clients, 2, 'two workers');

    foreach my $i (1 .. 6) {
        my $log = turn_ok($clients[$i % 2], "turn $i", 'one', @history);

        $pids{$log->{pid}}++;
        push @history, 'Light', "Question $i?";
    }

    is(join(' ', sort values %pids), '3 3', 'each worker has had three turns');
    is(scalar(my @inits = calls('/init', 'one')), 1, 'one /init');

    my @preloads = calls('/preload', 'one');

    is(scalar @preloads, 6, 'a preload for each turn');
    is($preloads[0]->json->{sessionId}, undef, 'the first one has no session');
    is($preloads[$_]->json->{sessionId}, Kontext::Mock->bid->{sessionId},
       "turn " . ($_ + 1) . ': the session of the turns before')
        foreach 1 .. 5;

    # the same turn on both workers: one preload, and the ad for both

    $ads->hold('/preload');

    my ($req1, $t1) = ask($clients[0], 'shared', 'Hi');
    my $preload = preload_of('shared');
    my ($req2, $t2) = ask($clients[1], 'shared', 'Hi');

    $_->start->event(@ANSWER)->finish foreach $req1, $req2;
    $clients[$_]->read_until(qr/Light/) foreach 0, 1;
    $preload->respond(200, Kontext::Mock->bid);
    answer_ok($clients[0], 'the same turn, the worker with the ad call');
    answer_ok($clients[1], 'the same turn, the other worker');
    is(scalar(my @both = calls('/preload', 'shared')), 1,
       'the same turn: one preload');
    isnt(logged($t1)->{pid}, logged($t2)->{pid}, 'on two workers');

    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# reload in the middle of a stream

{
    my ($old) = workers();
    my $c = client_of($old);
    my ($req, $t) = ask($c, 'one', @history);

    $req->start->event(@ANSWER[0, 1]);
    $c->read_until(qr/Light/);

    $nginx->reload;

    ok(state_of($old) =~ /[^Z]/, 'the old worker lives on for its stream');
    $req->event(@ANSWER[2, 3])->finish;
    answer_ok($c, 'a reload in a stream');

    # nginx lingers for a client which does not close

    $c->close;
    is(logged($t)->{pid}, $old, 'by the old worker');
    $nginx->wait_worker_exit($old);
    pass('the old worker exits');

    push @history, 'Light', 'After the reload?';

    my $log = turn_ok($nginx->client, 'the turn after', 'one', @history);

    isnt($log->{pid}, $old, 'by a new worker');
    is(scalar(my @inits = calls('/init', 'one')), 1,
       'the session is kept: no new /init');
    is((calls('/preload', 'one'))[-1]->json->{sessionId},
       Kontext::Mock->bid->{sessionId}, 'and its id');
}


# reload while the end of an answer is held

{
    my ($old) = workers();
    my $c = client_of($old);

    $ads->hold('/preload');

    my ($req, $t) = ask($c, 'held', 'Hi');
    my $preload = preload_of('held');

    $req->start->event(@ANSWER)->finish;
    $c->read_until(qr/Light/);

    $nginx->reload;

    is($c->peek->body, sse(@ANSWER[0, 1]), 'a reload in a hold: held still');
    $preload->respond(200, Kontext::Mock->bid);
    answer_ok($c, 'a reload in a hold');
    $c->close;
    logged($t);
    $nginx->wait_worker_exit($old);
    pass('the old worker exits');

    $ads->on('/preload', 200, Kontext::Mock->bid);
    turn_ok($nginx->client, 'the turn after', 'held', 'Hi', 'Light', 'More?');
    is(scalar(my @inits = calls('/init', 'held')), 1,
       'the session is kept: no new /init');

    # the ad does not come: the old worker keeps the time

    ($old) = workers();
    $c = client_of($old);
    $ads->hold('/preload');
    ($req, $t) = ask($c, 'second/late', 'Hi');
    $preload = preload_of('late');
    $req->start->event(@ANSWER[0, 1]);
    $c->read_until(qr/Light/);

    $nginx->reload;

    $req->event(@ANSWER[2, 3])->finish;
    is($c->read_response->body, sse(@ANSWER),
       'a reload, and no ad: the answer is whole');
    $c->close;
    is(logged($t)->{reason}, 'late', 'late');
    is($preload->wait_closed, 'eof', 'the ad call ends');
    $nginx->wait_worker_exit($old);
    pass('the old worker exits');
    $ads->on('/preload', 200, Kontext::Mock->bid);

    # the client leaves while the old worker holds for it

    ($old) = workers();
    $c = client_of($old);
    $ads->hold('/preload');
    ($req, $t) = ask($c, 'leaver', 'Hi');
    $preload = preload_of('leaver');
    $req->start->event(@ANSWER)->finish;
    $c->read_until(qr/Light/);

    $nginx->reload;

    $c->close;
    is($preload->wait_closed, 'eof', 'a reload, the client leaves');
    $nginx->wait_worker_exit($old);
    pass('the old worker exits');
    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# a zone of another size is a new one

{
    $nginx->reload(http => $format . "    kontext_zone kontext:1m;\n");

    push @history, 'Light', 'With another zone?';
    turn_ok($nginx->client, 'another size', 'one', @history);
    is(scalar(my @inits = calls('/init', 'one')), 2,
       'a zone of another size: a new /init');

    $nginx->reload;
    push @history, 'Light', 'The same again?';
    turn_ok($nginx->client, 'the same size', 'one', @history);
    is(scalar(@inits = calls('/init', 'one')), 2,
       'the same size again: none');
}


# A worker may write anywhere in the zone.  What it is made of is not read from
# there, by nobody: chats go on, and so does a reload.  The first pages are
# those of nginx itself, with the lock.

foreach my $byte ("\xff", "\0", "\x5a") {
    my $name = sprintf('a zone full of %02x', ord $byte);

    write_zone($byte);

    foreach my $i (1 .. 4) {
        whole_turn_ok($nginx->client, $name, "damaged-$i", 'Hi');
    }

    $nginx->reload;

    foreach my $i (1 .. 4) {
        whole_turn_ok($nginx->client, "$name, a reload", "damaged-$i",
                      'Hi again');
    }

    # what was written there ends, and there are ads again

    my $i = 0;

    wait_until("$name: an ad", sub {
        return defined whole_turn_ok($nginx->client, $name,
                                     'after-' . ++$i, 'Hi');
    });
}


# a worker is killed

my ($victim, $other) = workers();

{
    my $c1 = client_of($victim);
    my $c2 = client_of($other);

    turn_ok($c1, 'before the kill, worker 1', 'killed', 'Hi');
    turn_ok($c2, 'before the kill, worker 2', 'survivor', 'Hi');

    $ads->hold('/preload');

    my ($req1) = ask($c1, 'killed', 'Hi', 'Light', 'More?');
    my ($req2) = ask($c2, 'survivor', 'Hi', 'Light', 'More?');
    my $preload1 = preload_of('killed');
    my $preload2 = preload_of('survivor');

    $_->start->event(@ANSWER[0, 1]) foreach $req1, $req2;
    $_->read_until(qr/Light/) foreach $c1, $c2;

    kill('KILL', $victim);
    like($c1->wait_closed, qr/eof|reset/, 'the stream of the killed worker ends');
    is($preload1->wait_closed, 'eof', 'its ad call ends');
    wait_until('a new worker', sub { 2 == grep { $_ != $victim } workers() });
    pass('the master makes a new worker');

    $req2->event(@ANSWER[2, 3])->finish;
    $preload2->respond(200, Kontext::Mock->bid);
    answer_ok($c2, 'the stream of the other worker');

    $ads->on('/preload', 200, Kontext::Mock->bid);

    # the same turn again: whatever became of the ad call that died, the
    # answer is whole and in time; the next turn has its ad

    foreach my $pid (grep { $_ != $victim } workers()) {
        my $c = client_of($pid);
        my ($req, $t) = ask($c, 'second/killed', 'Hi', 'Light', 'More?');

        $req->start->event(@ANSWER)->finish;

        my ($body, $ad) = without_kontext($c->read_response->body);

        is($body, sse(@ANSWER), "after the kill, the same turn on $pid");
        logged($t);
    }

    my $i = 0;

    foreach my $pid (grep { $_ != $victim } workers()) {
        my $c = client_of($pid);

        turn_ok($c, "after the kill, the next turn on $pid", 'killed',
                'Hi', 'Light', 'More?', 'Light', 'Next ' . ++$i);
        turn_ok($c, "after the kill, the next turn on $pid", 'survivor',
                'Hi', 'Light', 'More?', 'Light', 'Next ' . $i);
        turn_ok($c, "after the kill, a new conversation on $pid", "new$i",
                'Hi');
    }

    is(scalar(my @inits = calls('/init', $_)), 1,
       "after the kill: the session of $_ is kept") foreach 'killed',
                                                            'survivor';
}

is($ads->open_connections, 0, 'no ad call is left');

$nginx->stop_ok(allow => [ Kontext::Nginx::of_killed($victim) ]);


# Many conversations at once, in the smallest zone.  Backend and ad server
# are of another nginx, which is fast.

{
    my $uuid = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
    my $backend = Kontext::Nginx->new(
        name      => 'backend',
        modules   => [],
        log_level => 'notice',
        vars      => { body => sse(@ANSWER) =~ s/(["\\\$])/\\$1/gr },
        server    => <<'CONF',
            keepalive_requests 1000000;

            location /v1/ {
                default_type text/event-stream;
                return       200 "@body@";
            }

            location /init {
                default_type application/json;
                return       200 '{"enabled":true}';
            }

            location /preload {
                default_type application/json;
                return       200 '{"sessionId":"7c9e6679-7425-40de-944b-e07fc1f90ae7","bids":[{"bidId":"7c9e6679-7425-40de-944b-e07fc1f90ae7","code":"inlineAd"}]}';
            }
CONF
    );

    my $small = Kontext::Nginx->new(
        name      => 'nginx with a small zone',
        log_level => 'notice',
        workers   => 2,
        vars      => { llm => 'fast', ads => 'fast' },
        http      => "    kontext_zone small:32k;\n    upstream fast {\n"
                     . '        server ' . $backend->addr . ";\n"
                     . "        keepalive 16;\n    }\n$format",
        server    => "proxy_http_version 1.1;\nproxy_set_header Connection "
                     . "\"\";\nkeepalive_requests 1000000;\n"
                     . $server =~ s/access_log .*;/access_log off;/r,
    );

    # as many clients, each with conversations of its own; and all of them
    # with one conversation

    foreach my $case ([ 'conversations', $CONVERSATIONS, 1 ],
                      [ 'requests of one conversation',
                        $CONVERSATIONS / 10, 0 ])
    {
        my ($what, $count, $own) = @$case;
        my (@pipes, @pids);

        foreach my $client (1 .. $CLIENTS) {
            pipe(my $rd, my $wr) or die "pipe: $!";

            STDOUT->flush;
            STDERR->flush;

            my $pid = fork() // die "fork: $!";

            if ($pid) {
                push @pipes, $rd;
                push @pids, $pid;
                next;
            }

            my ($failed, $with_ad, $why) = (0, 0, '');

            eval {
                my $c = $small->client;
                my $expected = sse(@ANSWER);

                foreach my $i (1 .. $count / $CLIENTS) {
                    my $id = $own ? "$client-$i" : 'one';

                    $c->post_json('/v1/chat/completions', chat("Hi $i"),
                                  'X-User-Id' => "u-$id",
                                  'X-Conversation-Id' => $id);

                    my $res = $c->read_response;
                    my ($body, $ad) = without_kontext($res->body);

                    # the bytes are not needed any more

                    $c->{raw} = '';

                    if ($res->status ne 200 || $body ne $expected) {
                        $failed++;
                        $why = $res->head . $res->body;
                    }

                    $with_ad++ if defined $ad;
                }

                1;
            } or $why = $@;

            $failed++ if $why;
            syswrite($wr, json({ failed => $failed, ads => $with_ad,
                                 why => $why }));
            POSIX::_exit(0);
        }

        my ($failed, $with_ad) = (0, 0);

        foreach my $rd (@pipes) {
            local $/;
            my $result = json(scalar <$rd>);

            $failed += $result->{failed};
            $with_ad += $result->{ads};
            diag($result->{why}) if $result->{why};
        }

        waitpid($_, 0) foreach @pids;

        is($failed, 0, "32k: each of $count $what has its whole answer");
        cmp_ok($with_ad, '>', 0, '32k: with ads');
        note("$with_ad of $count with an ad");
    }

    $small->stop_ok(name => '32k: a clean log and a clean exit');
    $backend->stop_ok(name => 'backend: a clean log and a clean exit');
}

done_testing;
