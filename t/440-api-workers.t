#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# A session of the API belongs to all workers: whichever is called, whichever
# has gone, and across reloads.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ApiSite;
use EventStream;

my $YES = JSON::PP::true();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my @BIDS = map { "7c9e6679-7425-40de-944b-e07fc1f90a0$_" } 0 .. 9;

# what is told to other workers is there long before the next comment

my $AT_ONCE = 5;


# a site whose kernel chooses the worker by the client's port

sub site {
    my ($workers, %args) = @_;

    my $site = ApiSite->new(
        workers => $workers,
        listen  => ' reuseport',
        http    => "kontext_consent ask;\n",
        server  => 'location = /pid { kontext off; return 200 "$pid\n"; }',
        %args,
    );

    $site->{killed} = [];
    $site->{turn} = 0;

    return $site;
}


# the workers that take connections, the oldest first

sub workers {
    my ($site) = @_;
    my $log = $site->nginx->error_log;
    my %gone = map { $_ => 1 } $log =~ /\b(\d+)\#\d+: gracefully shutting down/g,
                               $log =~ /worker process (\d+) exited/g;

    return grep { !$gone{$_} } $site->nginx->worker_pids;
}


# a connection to this worker

sub client_of {
    my ($site, $pid) = @_;

    return wait_until("a connection to worker $pid", sub {
        my $c = $site->nginx->client;

        return $c->get('/pid')->read_response->body == $pid ? $c : undef;
    });
}


# one to each in turn: (client => $c), as calls take it

sub in_turn {
    my ($site) = @_;
    my @pids = workers($site);

    $site->{pid} = $pids[$site->{turn}++ % @pids];

    return (client => client_of($site, $site->{pid}));
}


sub message { return ApiSite->message(@_) }

sub stream {
    my ($site, $id, $client, $last) = @_;

    return EventStream->open($client, "/kontext/sessions/$id/events",
                             defined $last ? ('Last-Event-ID' => $last) : ());
}


# the next preload that waits for its answer

sub waiting {
    my ($site, $timeout) = @_;

    while (1) {
        my $req = $site->ads->wait_request(path => '/preload',
                                           timeout => $timeout);

        return $req if !$req->answered;
    }
}


sub filled {
    return Kontext::Mock->bid(sessionId => $SESSION, bidId => $BIDS[$_[0]]);
}


# kills a worker, which is there no more and has a successor when this returns

sub kill_worker {
    my ($site, $pid) = @_;
    my $n = () = $site->nginx->worker_pids;

    kill('KILL', $pid) or die "kill $pid: $!";
    push @{$site->{killed}}, $pid;

    $site->nginx->wait_worker_exit($pid);
    wait_until('a new worker', sub { $n < (() = $site->nginx->worker_pids) });
}


# the old workers exit

sub reload {
    my ($site, $name, %args) = @_;
    my @old = workers($site);

    $site->nginx->reload(%args);
    $site->nginx->wait_worker_exit($_) foreach @old;

    is(scalar(grep { my $pid = $_; grep { $_ == $pid } @old } workers($site)),
       0, "$name: old workers exit");
}


# the log has the workers that were killed, and nothing else

sub stop_ok {
    my ($site, $name) = @_;
    my @alerts = $site->nginx->grep_log(qr/exited on signal/);
    my @killed = @{$site->{killed}};

    is(scalar @alerts, scalar @killed, "$name: no other worker has died");
    $site->stop_ok(name => "$name: a clean log and a clean exit",
                   allow => [ Kontext::Nginx::of_killed(@killed) ]);
}


# What becomes of a session from its first day to its last, each call by another
# worker, with something between any two of them.

sub lifecycle {
    my ($name, $site, $between) = @_;
    my $ads = $site->ads;
    my ($seen, %before) = (0);

    $ads->on('/init', 200, { enabled => $YES, preloadTimeout => 8000 });
    $ads->hold('/preload');

    my $id = $site->session({ conversationId => 'c-life', variantId => 'a',
                              regulatory => { gdpr => 0 } }, in_turn($site));

    # new events of the session, all of them by now

    my $listen = sub {
        my ($step, @expected) = @_;
        my $stream = stream($site, $id, {in_turn($site)}->{client}, $seen);

        $stream->wait_id($seen + @expected, $AT_ONCE) if @expected;

        my @events = $stream->events;

        is(join(', ', map { "$_->{id} $_->{event}" } @events),
           join(', ', map { ++$seen . " $_" } @expected),
           "$name, $step: its events");
        $stream->close;

        return @events;
    };

    my $pause = sub {
        my ($step) = @_;
        my $state = $site->state($id, in_turn($site));
        my $stream = stream($site, $id, {in_turn($site)}->{client}, $seen);

        $between->($step, $stream);

        is_deeply($site->state($id, in_turn($site)), $state,
                  "$name, $step: all of it is there");
        $listen->("$step, afterwards");
        $stream->close;
    };

    $pause->('a session');

    is($site->create({ userId => 'u-1', conversationId => 'c-life' },
                     in_turn($site))->json->{sessionId}, $id,
       "$name: it is found again");

    # a message, and its ad

    is($site->add($id, message(m1 => user => 'Which shoes?'), in_turn($site))
       ->json->{preload}, 'scheduled', "$name: a message is taken");

    my $preload = waiting($site);

    is_deeply($preload->json->{regulatory}, { gdpr => 0 },
              "$name: the options of the session");
    $preload->respond(200, filled(1));
    $listen->('a preload', 'ad.filled');
    $pause->('a preload');

    is($site->add($id, message(m2 => assistant => 'Light ones.'),
                  in_turn($site))->status, 202, "$name: an answer is taken");
    $pause->('an answer');

    my $ad = $site->ad($id, 'm2', in_turn($site))->json;

    is($ad->{ads}[0]{bidId}, $BIDS[1], "$name: the answer has its ad");
    $pause->('an ad');

    # what a page reports

    is($site->report($id, { name => 'ad.viewed', code => 'inlineAd', payload => {
        bidId => $BIDS[1], messageId => 'm2', content => 'x',
        format => 'display' } }, in_turn($site))->json->{id}, $seen + 1,
       "$name: a report has its number");
    $listen->('a report', 'ad.viewed');
    $pause->('a report');

    # options

    is($site->patch($id, { variantId => 'b', regulatory => { gdpr => 1 } },
                    in_turn($site))->status, 200, "$name: options are changed");
    $pause->('options');

    # the next turn has all of it

    is($site->add($id, message(m3 => user => 'In red?'), in_turn($site))
       ->status, 202, "$name: another message");
    $preload = waiting($site);

    my $asked = $preload->json;

    is($asked->{variantId}, 'b', "$name: the new options");
    is_deeply($asked->{regulatory}, { gdpr => 1 }, "$name: all of them");
    is($asked->{sessionId}, $SESSION, "$name: the ad server's session");
    is(join('|', map { "$_->{id} $_->{role} $_->{content}" }
                     @{$asked->{messages}}),
       'm1 user Which shoes?|m2 assistant Light ones.|m3 user In red?',
       "$name: the messages");
    $preload->respond(200, { sessionId => $SESSION, skip => $YES,
                             skipCode => 'ad_skipped' });
    $listen->('no ad', 'ad.no-fill');
    $pause->('no ad');

    is($site->add($id, message(m3 => user => 'In red?'), in_turn($site))
       ->json->{repeated}, 1, "$name: a message sent again is known");

    my $state = $site->state($id, in_turn($site));

    is(join(' ', map { $_->{id} } @{$state->{messages}}), 'm1 m2 m3',
       "$name: all messages");
    is($state->{ads}{m2}[0]{bidId}, $BIDS[1], "$name: the ad stays");
    is($state->{flags}{preloadTimeout}, 8000, "$name: what /init has said");
    is($state->{serverSessionId}, $SESSION, "$name: the ad server's session");
    is(scalar(() = $ads->requests('/init')), 1, "$name: one /init");

    # and the end

    my $stream = stream($site, $id, {in_turn($site)}->{client}, $seen);

    is($site->close($id, in_turn($site))->status, 204, "$name: it is closed");
    is(join(' ', map { $_->{event} } $stream->wait_end($AT_ONCE)),
       'session.closed', "$name: who listens is told");
    $between->('the end', undef);
    is($site->get($id, in_turn($site))->status, 404,
       "$name: it is unknown to each worker") foreach workers($site);
}


foreach my $workers (1, 2, 4) {
    my $site = site($workers);
    my $name = $workers == 1 ? '1 worker' : "$workers workers";

    is(scalar(my @pids = workers($site)), $workers, $name);

    lifecycle($name, $site, sub {});
    stop_ok($site, $name);

    # a reload, and a stream across it

    $site = site($workers);
    lifecycle("$name, reloads", $site, sub {
        my ($step, $stream) = @_;

        reload($site, "$name, a reload after $step");
        is(eval { $stream->wait_end; 1 } // 'cut off', 1,
           "$name, a reload after $step: the stream ends, with its last "
           . 'chunk') if $stream;
    });
    stop_ok($site, "$name, reloads");

    # the worker that was called last is killed, or the one with the stream

    $site = site($workers);

    my $kills = 0;

    lifecycle("$name, kills", $site, sub {
        my ($step, $stream) = @_;

        kill_worker($site, $site->{pid});
        is(scalar(@pids = workers($site)), $workers,
           "$name, a kill after $step: there is another worker");
        $kills++;
    });
    cmp_ok($kills, '>', 7, "$name: $kills workers were killed");
    stop_ok($site, "$name, kills");
}


# what happens in one worker, and in another

{
    my $site = site(4);
    my $ads = $site->ads;
    my @pids = workers($site);
    my $id = $site->session({ conversationId => 'c-all' });
    my @streams = map { stream($site, $id, client_of($site, $_)) } @pids;
    my $n = 0;

    my $everywhere = sub {
        my ($name) = @_;

        $n++;
        is(eval { $_->wait_id($n, $AT_ONCE)->{id} } // $@, $n,
           "$name: in the streams of each worker") foreach @streams;
    };

    foreach my $pid (@pids) {
        $site->report($id, { name => 'ad.error', payload => {
            errCode => 'x', message => 'y' } }, client => client_of($site, $pid));
        $everywhere->("a report in worker $pid");
    }

    foreach my $pid (@pids) {
        $site->add($id, message("m-$pid" => user => 'Hi'),
                   client => client_of($site, $pid));
        $everywhere->("a preload in worker $pid");
    }

    # a newer message

    $ads->hold('/preload');

    foreach my $i (0 .. 3) {
        my ($one, $other) = @pids[$i, ($i + 1) % 4];

        $site->add($id, message("a$i" => user => 'Hi'),
                   client => client_of($site, $one));

        my $older = waiting($site);

        $site->add($id, message("b$i" => user => 'No, wait'),
                   client => client_of($site, $other));
        is(eval { $older->wait_closed($AT_ONCE) } // $@, 'eof',
           "a newer message in worker $other: the call of $one ends");

        my $newer = waiting($site);

        is($newer->json->{messages}[-1]{id}, "b$i",
           "a newer message in worker $other: it is asked for");
        $newer->respond(200, filled($i));
        $everywhere->("its ad from worker $other");
        is(eval { $streams[0]->wait_id($n)->{payload}{bidId} }, $BIDS[$i],
           'it is the newer one\'s');
    }

    # a message that waits for its time in one worker, and a newer one

    foreach my $i (0 .. 3) {
        my @clients = map { client_of($site, $pids[$_]) } $i, ($i + 1) % 4;

        $site->start(POST => "sessions/$id/messages",
                     message("c$i" => user => 'Hi'), client => $clients[0]);
        $clients[0]->read_response;
        $site->add($id, message("d$i" => user => 'No, wait'),
                   client => $clients[1]);

        # the first one was quick, or it was never sent

        my $newer;

        do {
            $newer = waiting($site);
        } while ($newer->json->{messages}[-1]{id} ne "d$i");

        $newer->respond(200, filled($i));
        $everywhere->("the ad of the newest of two at once, $i");
        is(scalar(grep { !$_->closed && $_->json->{messages}[-1]{id} eq "c$i" }
                       $ads->requests('/preload')), 0,
           'nothing is under way for the older one');
    }

    # a close

    $site->add($id, message('last' => user => 'Hi'),
               client => client_of($site, $pids[0]));

    my $last = waiting($site);

    $site->close($id, client => client_of($site, $pids[1]));
    is(eval { $last->wait_closed($AT_ONCE) } // $@, 'eof',
       'a close in one worker: the call in another ends');
    is(eval { ($_->wait_end($AT_ONCE))[-1]{event} } // $@, 'session.closed',
       'a close in one worker: the streams of each end') foreach @streams;

    # and /init

    $ads->hold('/init');
    $id = $site->session({}, init => 0, client => client_of($site, $pids[2]));

    my $init;

    do { $init = $ads->wait_request(path => '/init') } while $init->answered;

    $site->close($id, client => client_of($site, $pids[3]));
    is(eval { $init->wait_closed($AT_ONCE) } // $@, 'eof',
       'a close in one worker: the /init of another ends');

    $ads->on('/init', 200, { enabled => $YES });
    $ads->on('/preload', 200, filled(0));
    is($ads->open_connections, 0, 'no ad call is left');
    stop_ok($site, 'four workers');
}


# an event, and the end right behind it: nobody misses the event

{
    my $site = site(2);
    my @pids = workers($site);
    my %seen;

    foreach my $round (1 .. 20) {
        my $id = $site->session;
        my @streams = map { stream($site, $id, client_of($site, $_)) }
                          @pids, @pids;
        my $c = client_of($site, $pids[$round % 2]);

        $site->start(POST => "sessions/$id/events", {
            name => 'ad.error', payload => { errCode => 'x',
                                             message => 'y' } }, client => $c);
        $site->start(DELETE => "sessions/$id", undef, client => $c);

        is($c->read_response->status . ' ' . $c->read_response->status,
           '202 204', 'an event and the end of its session');
        $seen{join(' ', map { $_->{event} } $_->wait_end($AT_ONCE))}++
            foreach @streams;
    }

    is_deeply(\%seen, { 'ad.error session.closed' => 80 },
              'an event and the end: both are told, in any worker');
    stop_ok($site, 'an event and the end');
}


# chats, and calls for the same session

{
    my $site = site(2);
    my @pids = workers($site);
    my $id = $site->session({ conversationId => 'c-chat' },
                            client => client_of($site, $pids[0]));
    my $stream = stream($site, $id, client_of($site, $pids[0]));
    my $turn = $site->turn(chat('q1'), client => client_of($site, $pids[1]),
                           headers => { 'X-Conversation' => 'c-chat' },
                           asks => ['preload']);

    is($turn->event->{pid}, $pids[1], 'a chat in one worker');
    is($stream->wait_event(1, $AT_ONCE)->{event}, 'ad.filled',
       'a chat in one worker: its event is in a stream of the other');

    my $ad = $turn->ad;

    is($site->ad($id, $ad->{messageId}, client => client_of($site, $pids[0]))
       ->json->{ads}[0]{bidId}, $ad->{ads}[0]{bidId},
       'a chat in one worker: its ad is had from the other');
    is($site->report($id, { name => 'video.started',
                            id => $ad->{ads}[0]{bidId} },
                     client => client_of($site, $pids[0]))->status, 202,
       'a chat in one worker: its ad is reported to the other');
    $stream->close;

    # a call cancels what a chat has asked for, and the other way round

    $site->ads->hold('/preload');
    $site->add($id, message(m1 => user => 'Fed'),
               client => client_of($site, $pids[0]));

    my $fed = waiting($site);

    $turn = $site->ask(chat('q1', 'Light ones.', 'q2'),
                       client => client_of($site, $pids[1]),
                       headers => { 'X-Conversation' => 'c-chat' });
    is(eval { $fed->wait_closed($AT_ONCE) } // $@, 'eof',
       'a chat in one worker: the call for a fed message in the other ends');

    my $asked = waiting($site);

    $site->add($id, message(m2 => user => 'Fed'),
               client => client_of($site, $pids[0]));
    is(eval { $asked->wait_closed($AT_ONCE) } // $@, 'eof',
       'a fed message in one worker: the call for a chat in the other ends');
    waiting($site)->respond(200, filled(2));
    $turn->answer('Light ones.');
    ok($turn->untouched, 'the chat has no ad');
    is($turn->event->{reason}, 'superseded', 'the chat knows why');
    stop_ok($site, 'chats and calls');
}


# A worker dies with a preload on its way, or with one that is not sent yet:
# the next call makes it anew, whatever the call is.

foreach my $workers (1, 2, 4) {
    my $site = site($workers);
    my $ads = $site->ads;
    my $name = "a kill among $workers";

    $ads->hold('/preload');

    my @calls = (
        state   => sub { $site->get($_[0], in_turn($site)) },
        answer  => sub { $site->add($_[0], message(m2 => assistant => 'Yes'),
                                    in_turn($site)) },
        again   => sub { $site->add($_[0], message(m1 => user => 'Hi'),
                                    in_turn($site)) },
        ad      => sub { $site->ad($_[0], 'm2', in_turn($site)) },
        stream  => sub { stream($site, $_[0], {in_turn($site)}->{client}) },
        report  => sub { $site->report($_[0], { name => 'ad.error', payload => {
                             errCode => 'x', message => 'y' } },
                             in_turn($site)) },
        options => sub { $site->patch($_[0], { variantId => 'b' },
                                      in_turn($site)) },
        create  => sub { $site->create({ userId => 'u-1',
                                         conversationId => $_[1] },
                                       in_turn($site)) },
    );

    # among two all of them, which is the same code among one and four

    splice(@calls, 4) if $workers != 2;

    while (my ($call, $make) = splice(@calls, 0, 2)) {
        foreach my $when ('sent', 'not sent') {
            my $what = "$name, a preload $when, then $call";
            my $id = $site->session({ conversationId => $what },
                                    in_turn($site));
            my %client = in_turn($site);
            my $pid = $site->{pid};

            $site->add($id, message(m1 => user => 'Hi'), %client);

            my $first = $when eq 'sent' ? waiting($site) : undef;

            kill_worker($site, $pid);
            is($first->wait_closed, 'eof', "$what: the call has died")
                if $first;

            $make->($id, $what);

            my $preload = eval { waiting($site, $AT_ONCE) };

            # one that was sent after all has died as well

            $preload = eval { waiting($site, $AT_ONCE) }
                if $preload && $preload->closed;

            ok($preload, "$what: it is made anew") or next;

            is($preload->json->{messages}[-1]{id}, 'm1',
               "$what: it is of the same message");
            $preload->respond(200, filled(3));
            is($site->settled($id, 'filled')->{preload}, 'filled',
               "$what: it has its ad");
            $site->add($id, message(m2 => assistant => 'Yes'),
                       in_turn($site));
            is($site->ad($id, 'm2', in_turn($site))->json->{ads}[0]{bidId},
               $BIDS[3], "$what: the answer has the ad");
            is($site->state($id, in_turn($site))->{preload}, 'filled',
               "$what: once");
        }
    }

    is(scalar(grep { !$_->closed } grep { !$_->answered }
                   $ads->requests('/preload')), 0,
       "$name: no preload was made twice");
    stop_ok($site, $name);
}


# /init dies with its worker

{
    my $site = site(2);
    my $ads = $site->ads;

    $ads->hold('/init');

    my %client = in_turn($site);
    my $pid = $site->{pid};
    my $id = $site->session({}, init => 0, %client);

    $ads->wait_request(path => '/init');
    kill_worker($site, $pid);
    $ads->on('/init', 200, { enabled => $YES });
    $site->add($id, message(m1 => user => 'Hi'), in_turn($site));
    $site->settled($id, 'filled');
    ok(eval { $ads->wait_request(path => '/init', timeout => $AT_ONCE) },
       'a kill with /init on its way: it is asked again with the next turn');
    stop_ok($site, 'a kill with /init on its way');
}


# streams of a worker that is killed

{
    my $site = site(2);
    my @pids = workers($site);
    my $id = $site->session;
    my @streams = map { stream($site, $id, client_of($site, $_)) } @pids;
    my $report = sub {
        my ($pid) = @_;

        return $site->report($id, { name => 'ad.error', payload => {
            errCode => 'x', message => 'y' } },
            client => client_of($site, $pid))->json->{id};
    };

    is($report->($pids[0]), 1, 'an event before the kill');
    $_->wait_id(1, $AT_ONCE) foreach @streams;
    kill_worker($site, $pids[0]);
    like($streams[0]->client->wait_closed, qr/eof|reset/,
         'a kill: the stream of the worker ends');

    my ($other, $new) = workers($site);

    is($report->($_), $streams[1]->wait_id($_ == $other ? 2 : 3)->{id},
       'a kill: reports go on') foreach $other, $new;

    my $resumed = stream($site, $id, client_of($site, $new), 1);

    $resumed->wait_id(3, $AT_ONCE);
    is(join(' ', map { $_->{id} } $resumed->events), '2 3',
       'a kill: the stream is resumed in another worker');
    $report->($other);
    is($resumed->wait_id(4, $AT_ONCE)->{id}, 4,
       'a kill: what happens in the other worker is in it');
    $site->close($id);
    is(($_->wait_end($AT_ONCE))[-1]{event}, 'session.closed',
       'a kill: the end is told') foreach $resumed, $streams[1];
    stop_ok($site, 'a kill with streams');
}


# a reload with a preload on its way, or with one that is not sent yet

foreach my $when ('sent', 'not sent') {
    my $site = site(2);
    my $ads = $site->ads;
    my $id = $site->session({}, in_turn($site));
    my $name = "a reload, a preload $when";
    my @old = workers($site);
    my $stream = stream($site, $id, {in_turn($site)}->{client});

    $ads->hold('/preload');
    $site->add($id, message(m1 => user => 'Hi'), in_turn($site));

    my $preload = $when eq 'sent' ? waiting($site) : undef;

    $site->nginx->reload;
    is(eval { $stream->wait_end($AT_ONCE); 1 } // $@, 1,
       "$name: the stream ends");

    # by the worker that goes, or by one that has come

    $site->state($id, in_turn($site));
    $preload //= waiting($site);
    $preload = waiting($site) if $preload->closed;
    $stream = stream($site, $id, {in_turn($site)}->{client}, 0);
    $preload->respond(200, filled(4));
    is($stream->wait_id(1, $AT_ONCE)->{event}, 'ad.filled',
       "$name: its event is in a stream of a new worker");
    $site->add($id, message(m2 => assistant => 'Yes'), in_turn($site));
    is($site->ad($id, 'm2', in_turn($site))->json->{ads}[0]{bidId}, $BIDS[4],
       "$name: the answer has the ad");
    $site->nginx->wait_worker_exit($_) foreach @old;
    pass("$name: the old workers exit");
    is(scalar(grep { !$_->closed } grep { !$_->answered }
                   $ads->requests('/preload')), 0,
       "$name: it was made once");

    # a newer message in a new worker cancels what an old one has under way

    @old = workers($site);
    $site->add($id, message(m3 => user => 'Hi'), in_turn($site));
    $preload = waiting($site);
    $site->nginx->reload;
    $site->add($id, message(m4 => user => 'No, wait'), in_turn($site));

    my $newer = waiting($site);

    $newer = waiting($site) if $newer->json->{messages}[-1]{id} ne 'm4';
    is(eval { $preload->wait_closed($AT_ONCE) } // $@, 'eof',
       "$name: a newer message ends the call of an old worker");
    $site->nginx->wait_worker_exit($_) foreach @old;
    pass("$name: which exits");
    $newer->respond(200, filled(5));
    is($site->settled($id)->{preload}, 'filled', "$name: the newer has its ad");
    $stream->close;
    stop_ok($site, $name);
}


# as many workers as it takes

{
    my $site = site(1);
    my $id = $site->session;

    $site->add($id, message(m1 => user => 'Hi'));
    $site->settled($id, 'filled');

    foreach my $workers (4, 2, 1) {
        reload($site, "$workers workers", workers => $workers);

        my @streams = map { stream($site, $id, client_of($site, $_)) }
                          workers($site);

        is(scalar @streams, $workers, "$workers workers after a reload");

        my $n = $site->report($id, { name => 'ad.error', payload => {
            errCode => 'x', message => 'y' } }, in_turn($site))->json->{id};

        is(eval { $_->wait_id($n, $AT_ONCE)->{id} } // $@, $n,
           "$workers workers: an event is in each") foreach @streams;
        is($site->add($id, message(m2 => assistant => 'Yes'), in_turn($site))
           ->status, 202, "$workers workers: a message");
        is($site->ad($id, 'm2', in_turn($site))->json->{ads}[0]{code},
           'inlineAd', "$workers workers: the ad");
        $_->close foreach @streams;
    }

    stop_ok($site, 'more workers and fewer');
}


done_testing;
