#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# What Kontext is told of failures (POST /error) and, if it asks, of the steps
# of a session (POST /debug): in its form, seldom, and at nobody's cost.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ApiSite;
use ChatSite qw(nulls_in);
use EventStream;

my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my $UUID = qr/\A[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\z/;
my $TEXT = 'words of the user';
my @SECRETS = ($TEXT, 'words of the model', 'cookie-of-the-user',
               'key-of-the-user');


sub message { return ApiSite->message(@_) }

sub stream {
    my ($site, $id) = @_;

    return EventStream->open($site->nginx->client,
                             "/kontext/sessions/$id/events");
}


# the next call of this path that is not answered by a rule

sub waiting {
    my ($site, $path) = @_;

    while (1) {
        my $req = $site->ads->wait_request(path => $path);

        return $req if !$req->answered;
    }
}


# what both reports have

sub report_ok {
    my ($name, $site, $req, %expected) = @_;
    my $data = $req->json;
    my $more = $data->{additionalData};
    my ($init) = grep { $_->json->{userId} eq $more->{userId} }
                      $site->ads->requests('/init');

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($req->method, 'POST', "$name: POST");
    is($req->header('Content-Type'), 'application/json', "$name: of JSON");
    is(join(' ', grep { /^(?:Kontextso-.*|Cookie|Authorization|X-User.*)$/i }
                      map { $_->[0] } @{$req->headers}), '',
       "$name: no header of ours with a token, none of the client's");
    is(join(' ', nulls_in($data)), '', "$name: no nulls");
    like($more->{installId}, $UUID, "$name: the install id");
    is($more->{installId}, $init->json->{installId},
       "$name: it is that of /init");
    is_deeply($more->{sdk}, $init->json->{sdk}, "$name: sdk as in /init");
    is_deeply({ %$more, installId => '', sdk => '' },
              { publisherToken => 'acme-dev', userId => 'u-1',
                installId => '', sdk => '', %expected },
              "$name: of whom, and nothing else");

    my $body = $req->body;

    is(join(', ', grep { index($body, $_) >= 0 } @SECRETS), '',
       "$name: no text, no secret");
}


sub error_ok {
    my ($name, $site, $req, $stack, %expected) = @_;
    my $data = $req->json;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is(join(' ', sort keys %$data), 'additionalData error stack',
       "$name: its members");
    ok(!ref $data->{error} && length $data->{error}, "$name: it says what");
    like($data->{stack}, $stack, "$name: and where");
    report_ok($name, $site, $req, %expected);
}


# A site whose ad server fails.  Each has a worker of its own: the same failure
# is told once a second.

sub site {
    my ($init, $preload, @args) = @_;

    # how often it fails is what these tests are about

    my $site = ApiSite->new(http => 'kontext_breaker off;', @args);

    $site->ads->on('/init', @{$init // [ 200, { enabled => $YES } ]});
    $site->ads->on('/preload', @$preload) if $preload;

    return $site;
}

my $PRELOAD = qr/^preload\b/i;
my @BROKEN = (200, '<html>It is closed</html>');


# What is tried again is no failure until the last time, which takes seven
# seconds: of all of these at once, and the others meanwhile.

my (%slow, %ids, %streams);

{
    my $dead = <<'CONF';
        location = /_dead/error {
            internal;
            proxy_pass http://@ads@/error;
        }

        location = /_dead/@good@ {
            internal;
            proxy_pass http://@ads@/@good@;
        }

        location /_dead/ {
            internal;
            proxy_pass http://127.0.0.1:1;
        }
CONF
    my @of_dead = (api => 'kontext_ad_server /_dead;', server => $dead);
    %slow = (
        '/init, refused'    => site(undef, undef, @of_dead,
                                    vars => { good => 'preload' }),
        'a preload, refused' => site(undef, undef, @of_dead,
                                     vars => { good => 'init' }),
        'a preload, reset'   => site(undef, undef),
        'a preload, 429'     => site(undef, [ 429, 'slow down' ]),
        'a preload, late'    => site(undef, undef, api =>
                                     'kontext_preload_timeout 200ms;'),
    );
    $slow{'a preload, reset'}->ads->on_actions('/preload', [ 'reset' ]);
    $slow{'a preload, late'}->ads->hold('/preload');

    foreach my $name (sort keys %slow) {
        my $site = $slow{$name};
        my $id = $site->session({ conversationId => 'c-1' },
                                init => $name !~ /init/);

        $streams{$name} = stream($site, $id);
        $ids{$name} = $id;
        $site->add($id, message(m1 => user => $TEXT)) if $name !~ /init/;
    }
}


# /init fails

foreach my $case ([ 'no JSON', @BROKEN ], [ 'a list', 200, [] ],
                  [ 'half of it', 200, '{"enabled":' ],
                  [ 'far too large', 200, '{"enabled":true,"x":"'
                                          . 'x' x (4 * 1024 * 1024) . '"}' ])
{
    my ($name, @answer) = @$case;
    my $site = site([ @answer ]);
    my $id = $site->session({ conversationId => 'c-1' }, init => 0, headers => {
        Cookie => 'id=cookie-of-the-user',
        Authorization => 'Bearer key-of-the-user',
    });

    error_ok("/init, $name", $site, $site->ads->wait_request(path => '/error'),
             qr/^Init\.fetch$/, conversationId => 'c-1');

    $site->add($id, message(m1 => user => $TEXT));
    is($site->settled($id, 'filled')->{disabled}, $NO,
       "/init, $name: nothing else comes of it");
    is(scalar(() = $site->ads->requests('/error')), 1,
       "/init, $name: one report");
    $site->stop_ok;
}


# a preload fails: the event, and the report

foreach my $case ([ 'no JSON', @BROKEN ], [ 'a list', 200, [] ],
                  [ 'no body', 200, '' ],
                  [ 'far too large', 200, '{"sessionId":"' . 'x'
                                          x (4 * 1024 * 1024) . '"}' ])
{
    my ($name, @answer) = @$case;
    my $site = site(undef, [ @answer ]);
    my $id = $site->session({ conversationId => 'c-1' });
    my $stream = stream($site, $id);

    $site->add($id, [ message(m1 => user => $TEXT),
                      message(m2 => assistant => 'words of the model') ],
               headers => { Cookie => 'id=cookie-of-the-user' });
    is($stream->wait_event(1)->{payload}{errCode}, 'request_failed',
       "a preload, $name: it has failed");
    error_ok("a preload, $name", $site,
             $site->ads->wait_request(path => '/error'),
             $PRELOAD, conversationId => 'c-1');
    $site->nginx->barrier;
    is(scalar(() = $site->ads->requests('/error')), 1,
       "a preload, $name: one report");
    is(scalar(() = $site->ads->requests('/preload')), 1,
       "a preload, $name: and no second try");
    $stream->close;
    $site->stop_ok;
}


# of a chat that nginx proxies

{
    my $site = site(undef, [ @BROKEN ]);
    my $turn = $site->ask(chat($TEXT), asks => ['init', 'preload'], headers => {
        Cookie => 'id=cookie-of-the-user',
        Authorization => 'Bearer key-of-the-user',
    });

    error_ok('a chat', $site, $site->ads->wait_request(path => '/error'),
             $PRELOAD, conversationId => 'c-1');
    $turn->answer('words of the model');
    ok($turn->untouched, 'a chat: its answer is as it was');
    is($turn->why, 'error request_failed', 'a chat: the failure is logged');
    $site->stop_ok;
}


# what is no failure of ours

{
    my $site = site(undef, undef);
    my $ads = $site->ads;
    my $seen = sub { return scalar(() = $ads->requests('/error')) };

    foreach my $case ([ '204', 204 ], [ 'no body', 200, '' ],
                      [ '500', 500, '<html>' ], [ '404', 404, '' ],
                      [ '302', 302, '' ],
                      [ 'wrong types', 200, { enabled => 'yes',
                                              preloadTimeout => 'soon',
                                              reportErrors => 'no' } ],
                      [ 'off', 200, { enabled => $NO } ])
    {
        my ($name, @answer) = @$case;

        $ads->on('/init', @answer);
        $site->session;
        $site->nginx->barrier;
        is($seen->(), 0, "/init, $name: no report");
    }

    $ads->on('/init', 200, { enabled => $YES });

    foreach my $case ([ '204', 204 ], [ '500', 500, '<html>' ],
                      [ '403', 403, { errCode => 'invalid_token',
                                      permanent => $YES } ],
                      [ 'skip', 200, { sessionId => $SESSION, skip => $YES,
                                       skipCode => 'ad_skipped' } ],
                      [ 'no bids', 200, { sessionId => $SESSION,
                                          bids => [] } ],
                      [ 'an error', 200, { errCode => 'generation_failed' } ],
                      [ 'a permanent one', 200, { errCode => 'geo_disabled',
                                                  permanent => $YES } ],
                      [ 'no session', 200, { bids => [] } ],
                      [ 'a bid', 200, Kontext::Mock->bid ])
    {
        my ($name, @answer) = @$case;
        my $id = $site->session;

        $ads->on('/preload', @answer);
        $site->add($id, message(m1 => user => $TEXT));
        $site->settled($id);
        $site->nginx->barrier;
        is($seen->(), 0, "a preload, $name: no report");
    }

    # cancelled

    $ads->hold('/preload');

    my $id = $site->session;

    $site->add($id, message(m1 => user => $TEXT));

    my $first = waiting($site, '/preload');

    $site->add($id, message(m2 => user => $TEXT));
    $first->wait_closed;

    my $second = waiting($site, '/preload');

    $site->close($id);
    is($second->wait_closed, 'eof', 'a closed session: its preload ends');

    $ads->hold('/init');
    $id = $site->session({}, init => 0);

    my $init = waiting($site, '/init');

    $site->close($id);
    is($init->wait_closed, 'eof', 'a closed session: its /init ends');
    $ads->on('/init', 200, { enabled => $YES });

    # another user goes on

    $id = $site->session({ conversationId => 'c-left' });
    $site->add($id, message(m1 => user => $TEXT));
    $first = waiting($site, '/preload');
    $site->session({ userId => 'u-2', conversationId => 'c-left' });
    is($first->wait_closed, 'eof', 'another user: the preload ends');

    $site->nginx->barrier;
    is($seen->(), 0, 'cancelled: no report');

    # a page's own errors are the page's

    $site->report($id = $site->session, {
        name => 'ad.error', payload => { errCode => 'iframe_error',
                                         message => 'It is broken' } });
    $site->nginx->barrier;
    is($seen->(), 0, 'the error of a page: no report');

    # and this one is told, so the others would have been

    $ads->on('/preload', @BROKEN);
    $site->add($id, message(m1 => user => $TEXT));
    $ads->wait_request(path => '/error');
    is($seen->(), 1, 'a failure at last: a report');

    $site->stop_ok;
}


# the ad server does not want them

{
    my $site = site([ 200, { enabled => $YES, reportErrors => $NO } ],
                    [ @BROKEN ]);
    my $id = $site->session;

    $site->add($id, message(m1 => user => $TEXT));
    $site->settled($id, 'error');
    $site->turn(chat($TEXT), headers => { 'X-Conversation' => 'c-quiet' },
                asks => ['init', 'preload']);
    $site->nginx->barrier;
    is(scalar(() = $site->ads->requests('/error')), 0,
       'reportErrors false: no report');

    # of another session it does

    $site->ads->on('/init', 200, { enabled => $YES, reportErrors => $YES });
    $id = $site->session({ conversationId => 'c-loud' });
    $site->add($id, message(m1 => user => $TEXT));
    error_ok('reportErrors true', $site,
             $site->ads->wait_request(path => '/error'), $PRELOAD,
             conversationId => 'c-loud');
    is(scalar(() = $site->ads->requests('/error')), 1,
       'reportErrors true: a report');
    is(scalar(() = $site->ads->requests('/debug')), 0,
       'no reportDebug: no steps are told');
    $site->stop_ok;
}


# the steps of a session

{
    my $site = site([ 200, { enabled => $YES, reportDebug => $YES } ],
                    [ 200, Kontext::Mock->bid ]);
    my $id = $site->session({ conversationId => 'c-1' });
    my %seen;

    $site->add($id, message(m1 => user => $TEXT));
    $site->settled($id, 'filled');
    $site->add($id, message(m2 => assistant => 'words of the model'));

    my @wanted = map { $site->ads->wait_request(path => '/debug') } 1 .. 3;

    $site->nginx->barrier;

    foreach my $req ($site->ads->requests('/debug')) {
        my $data = $req->json;
        my $name = "/debug $data->{name}";
        my %session = exists $data->{additionalData}{sessionId}
                      ? (sessionId => $SESSION) : ();

        next if $seen{$data->{name}}++;

        like($data->{name}, qr/\ASession: [a-z]/, "$name: of a session");
        is(join(' ', grep { !/^(?:additionalData|data|name)$/ } keys %$data),
           '', "$name: its members");
        ok(!exists $data->{data} || !ref $data->{data},
           "$name: data is a string") if exists $data->{data};
        report_ok($name, $site, $req, conversationId => 'c-1', %session);
    }

    is(scalar(grep { exists $_->json->{additionalData}{sessionId} }
                   $site->ads->requests('/debug')) > 0, 1,
       'the ad server\'s session is told as soon as it has one');

    # those of one that is not asked for them

    my $n = () = $site->ads->requests('/debug');

    $site->ads->on('/init', 200, { enabled => $YES, reportDebug => $NO });
    $id = $site->session;
    $site->add($id, message(m1 => user => $TEXT));
    $site->settled($id, 'filled');
    $site->nginx->barrier;
    is(scalar(() = $site->ads->requests('/debug')), $n,
       'reportDebug false: no steps are told');
    is(scalar(() = $site->ads->requests('/error')), 0,
       'and no failures, there being none');
    $site->stop_ok;
}


# nobody waits for a report, and few are under way

{
    my $site = site(undef, [ @BROKEN ]);
    my $ads = $site->ads;
    my $c = $site->nginx->client;

    $ads->hold('/error');

    # a chat, and the next request of its connection

    my $turn = $site->turn(chat($TEXT), client => $c,
                           asks => ['init', 'preload']);
    my $report = waiting($site, '/error');

    is($turn->why, 'error request_failed', 'a report hangs: the chat goes on');
    ok($turn->untouched, 'a report hangs: the chat is whole');
    $turn = $site->ask(chat($TEXT, 'Light ones.', 'q2'), client => $c,
                       asks => ['preload']);
    $turn->answer('Light ones.');
    ok($turn->untouched, 'a report hangs: the next chat of the connection');

    # an app, and the next calls of its connection

    my $id = $site->session({}, client => $c);

    is($site->add($id, message(m1 => user => $TEXT), client => $c)->status,
       202, 'a report hangs: a message of the same connection');
    is($site->settled($id, 'error', client => $c)->{sessionId}, $id,
       'a report hangs: the session of the same connection');

    # a client that leaves takes nothing with it

    $c->close;
    $site->nginx->barrier;
    ok(!$report->closed, 'a report hangs: although its client has gone');

    # debug reports, of many sessions: no more than four are under way

    $ads->on('/init', 200, { enabled => $YES, reportDebug => $YES });
    $ads->on('/preload', 200, Kontext::Mock->bid);
    $ads->hold('/debug');

    my @ids = map { $site->session } 1 .. 30;

    $site->add($_, message(m1 => user => $TEXT)) foreach @ids;
    $site->settled($_, 'filled') foreach @ids;
    $site->nginx->barrier;
    is(scalar(grep { !$_->closed } $ads->requests(qr{/(?:error|debug)})), 4,
       'reports hang: four of them, whatever happens');

    # they have their five seconds, and end

    is($report->wait_closed, 'eof', 'a report that hangs is given up');

    my $last = ($ads->requests('/debug'))[-1];

    $last->wait_closed;
    $ads->on($_, 204) foreach '/debug', '/error';
    $site->nginx->barrier;
    is(scalar(() = $ads->requests('/error')), 1,
       'a report that failed: no second try, and no report of it');

    # then others have their turn

    my $n = () = $ads->requests('/debug');

    $site->add($ids[0], message(m2 => user => $TEXT));
    wait_until('a report', sub { $n < (() = $ads->requests('/debug')) });
    pass('and others are sent');
    $site->stop_ok;
}


# A report that fails causes none.  The same failure again and again, until it
# is told the second time, which is a second after the first: each is told or
# counted.

{
    my %actions = (
        '500'           => [ [ send => Kontext::Mock->response(500, 'no') ] ],
        '429'           => [ [ send => Kontext::Mock->response(429, 'no') ] ],
        'no HTTP'       => [ [ send => "\x00\x01\x02\r\n" ], [ 'close' ] ],
        'a huge answer' => [ [ send => Kontext::Mock->response(
                               200, 'x' x (4 * 1024 * 1024)) ] ],
        'a reset'       => [ [ 'reset' ] ],
    );
    my %sites = map { $_ => site(undef, [ @BROKEN ]) } keys %actions;
    my (%session, %failures, %reports);

    foreach my $name (sort keys %sites) {
        $sites{$name}->ads->on_actions('/error', @{$actions{$name}});
        $session{$name} = $sites{$name}->session;
    }

    my $counted = sub {
        my ($name) = @_;
        my $n = 0;

        foreach my $req (@{$reports{$name}}) {
            $n += 1 + ($req->json->{error}
                       =~ /(\d+) (?:times )?more since the last report/
                       ? $1 : 0);
        }

        return $n;
    };

    # one after the other: many of them are to fail within the second

    foreach my $name (sort keys %sites) {
        my $site = $sites{$name};

        wait_until("$name: a second report", sub {
            $site->add($session{$name},
                       message('m' . ++$failures{$name} => user => $TEXT));
            $site->settled($session{$name}, 'error');
            $site->nginx->barrier;
            $reports{$name} = [ $site->ads->requests('/error') ];

            return $counted->($name) == $failures{$name}
                   && @{$reports{$name}} >= 2;
        }, 10);
    }

    foreach my $name (sort keys %sites) {
        is(scalar @{$reports{$name}}, 2, "$name: no report is made of a "
                                         . 'report, and none is sent again');
        cmp_ok($failures{$name}, '>', 5,
               "$name: of $failures{$name} failures");
        is($counted->($name), $failures{$name},
           "$name: the second one counts those between");
        unlike($reports{$name}[0]->json->{error}, qr/more since/,
               "$name: there were none before the first");
        like($reports{$name}[1]->json->{stack}, $PRELOAD,
             "$name: of the same place");
        $sites{$name}->stop_ok;
    }
}


# what was dropped because four were under way is counted as well

{
    my $site = site([ 200, { enabled => $YES, reportDebug => $YES } ],
                    [ 200, Kontext::Mock->bid ]);
    my $ads = $site->ads;

    $ads->hold('/debug');

    my @steps = map { $site->session } 1 .. 4;

    $site->add($_, message(m1 => user => $TEXT)) foreach @steps;
    $site->settled($_, 'filled') foreach @steps;
    $site->nginx->barrier;

    my @debug = $ads->requests('/debug');

    is(scalar @debug, 4, 'four reports hang');
    $ads->on('/init', 200, { enabled => $YES });
    $ads->on('/preload', @BROKEN);

    my $id = $site->session;
    my $failures = 0;
    my $fail = sub {
        $site->add($id, message('m' . ++$failures => user => $TEXT));
        $site->settled($id, 'error');
        $site->nginx->barrier;
    };

    $fail->() foreach 1 .. 3;
    is(scalar(() = $ads->requests('/error')), 0,
       'four reports hang: none of a failure');

    $_->respond(204)->wait_closed foreach @debug;
    $ads->on('/debug', 204);

    my @reports;

    is(eval {
        wait_until('a report that counts all', sub {
            $fail->();

            my $n = 0;

            foreach my $req (@reports = $ads->requests('/error')) {
                $n += 1 + ($req->json->{error}
                           =~ /(\d+) (?:times )?more since the last report/
                           ? $1 : 0);
            }

            return $n == $failures;
        }, 4);
    } // $@, 1, 'four reports hang: the failures are counted')
        or diag(join("\n", "of $failures:", map { $_->json->{error} }
                                               @reports));
    $site->stop_ok;
}


# many sessions, none of them with an ad: few reports

{
    my $site = site([ @BROKEN ], [ @BROKEN ]);
    my @ids = map { $site->session({}, init => 0) } 1 .. 100;

    $site->add($_, message(m1 => user => $TEXT)) foreach @ids;
    $site->settled($_, 'error') foreach @ids;
    $site->nginx->barrier;

    my %n;

    $n{$_->json->{stack}}++ foreach $site->ads->requests('/error');

    is(scalar keys %n, 2, 'two hundred failures of two kinds');
    cmp_ok($n{$_}, '<', 10, "few reports of $_: $n{$_}") foreach sort keys %n;
    $site->stop_ok;
}


# what has been tried again is over

{
    foreach my $name (grep { !/init/ } sort keys %slow) {
        my $site = $slow{$name};
        my $event = $streams{$name}->wait_event(1);

        is_deeply($event->{payload}, { errCode => 'request_failed',
                                       message => 'Error preloading ads' },
                  "$name: told as an event");
        error_ok($name, $site, $site->ads->wait_request(path => '/error'),
                 $PRELOAD, conversationId => 'c-1');
        is(scalar(() = $site->ads->requests('/preload')),
           $name =~ /refused/ ? 0 : 4, "$name: after four tries");
    }

    my $name = '/init, refused';
    my $site = $slow{$name};
    my $report = $site->ads->wait_request(path => '/error');

    is($report->json->{stack}, 'Init.fetch', "$name: a report");
    is($report->json->{additionalData}{conversationId}, 'c-1',
       "$name: of its session");
    $site->add($ids{$name}, message(m1 => user => $TEXT));
    is($streams{$name}->wait_event(1)->{event}, 'ad.filled',
       "$name: ads go on");

    foreach my $name (sort keys %slow) {
        $slow{$name}->nginx->barrier;
        is(scalar(() = $slow{$name}->ads->requests('/error')), 1,
           "$name: one report");
        $streams{$name}->close;
        $slow{$name}->stop_ok;
    }
}


done_testing;
