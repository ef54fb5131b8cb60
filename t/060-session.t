#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The rules of a session: what is asked when, what is kept, and what an answer
# of the ad server means for this turn and for the next.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my @BIDS = map { "7c9e6679-7425-40de-944b-e07fc1f90a0$_" } 0 .. 9;
my $CHAT = '/v1/chat/completions';

my $site = ChatSite->new(
    http     => <<'CONF',
    map $http_x_kontext $mode {
        ""       on;
        default  $http_x_kontext;
    }
CONF
    location => 'kontext $mode;',
    server   => <<'CONF',
        kontext_user_id $http_x_user;
        kontext_conversation_id $http_x_conversation;

        location /short/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_grace 25s;
            kontext_preload_timeout 300ms;
            proxy_pass http://@llm@/;
        }

        location /long/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_grace 25s;
            kontext_preload_timeout 1h;
            proxy_pass http://@llm@/;
        }

        location /shadow/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_grace 25s;
            kontext_inject none;
            proxy_pass http://@llm@/;
        }

        location /of-another/ {
            kontext on;
            kontext_publisher_token another;
            kontext_grace 25s;
            proxy_pass http://@llm@/;
        }

        location /two-codes/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_grace 25s;
            kontext_placements inlineAd box;
            proxy_pass http://@llm@/;
        }
CONF
);

my $ads = $site->ads;


# Turns of a conversation: the n-th has a history of n - 1 turns.  The answers
# are all the same.

sub history { return map { $_ == $_[0] ? "q$_" : ("q$_", 'Light ones.') }
                         1 .. $_[0] }

sub in { return (headers => { 'X-Conversation' => @_ }) }

sub nth { my ($n, @args) = @_; return $site->turn(chat(history($n)), @args) }


# what the ad server has been asked since the last call

my $seen = 0;

sub asked_now {
    my @calls = $ads->requests;
    my @new = @calls[$seen .. $#calls];

    $seen = @calls;

    return join(' ', sort map { $_->path =~ s{^/}{}r } @new);
}

sub answers { $ads->on('/preload', 200, @_) }
sub bid { return Kontext::Mock->bid(bidId => $BIDS[$_[0]]) }


# /init once in a session

{
    asked_now();
    nth(1, in('once'), asks => ['init', 'preload']);
    is(asked_now(), 'init preload', 'the first turn: /init and /preload');

    foreach my $n (2 .. 6) {
        my $turn = nth($n, in('once'), asks => ['preload']);

        is($turn->why, 'filled ', "turn $n");
        is(asked_now(), 'preload', "turn $n: /preload only");
        is($turn->asked('preload')->json->{sessionId}, $SESSION,
           "turn $n: with the session's id");
    }

    is($site->turn(chat('q1'), in('another'), asks => ['init', 'preload'])->why,
       'filled ', 'another conversation');
    is(asked_now(), 'init preload', 'another conversation has its own /init');
}


# whatever /init says, ads go on; it is not asked again once it has answered

foreach my $case ([ '204', 204 ], [ '500', 500, 'oops' ],
                  [ 'no body', 200, '' ],
                  [ 'no JSON', 200, '<html>' ], [ 'a list', 200, [] ],
                  [ 'an empty object', 200, {} ],
                  [ 'wrong types', 200, { enabled => 'false',
                                          preloadTimeout => 'soon',
                                          reportErrors => 7 } ],
                  [ 'a timeout of zero', 200, { preloadTimeout => 0 } ],
                  [ 'nulls', 200, { enabled => undef,
                                    preloadTimeout => undef } ])
{
    my ($name, @answer) = @$case;

    $ads->on('/init', @answer);
    asked_now();
    is(nth(1, in("init $name"), asks => ['init', 'preload'])->why, 'filled ',
       "/init answers $name: this turn");
    is(nth(2, in("init $name"), asks => ['preload'])->why, 'filled ',
       "/init answers $name: the next turn");
    $site->nginx->barrier;
    unlike(asked_now(), qr/init.*init/, "/init answers $name: asked once")
        if $name !~ /JSON|list/;
}

$ads->on('/init', 200, { enabled => $YES });


# /init never holds anything up, and is asked again when it had no time

{
    $ads->hold('/init');

    my $turn = nth(1, in('no init'), asks => ['init', 'preload']);

    is($turn->why, 'filled ', 'no answer to /init: an ad all the same');
    is($turn->asked('init')->wait_closed, 'eof', 'the call ends with the turn');

    $ads->on('/init', 200, { enabled => $YES });
    is(nth(2, in('no init'), asks => ['init', 'preload'])->why, 'filled ',
       'asked again with the next turn');
    asked_now();
    nth(3, in('no init'), asks => ['preload']);
    $site->nginx->barrier;
    is(asked_now(), 'preload', 'and not again when it has answered');
}


# /init switches the session off; what was under way then is still good

{
    $ads->on('/init', 200, { enabled => $NO });
    $ads->hold('/preload');

    my $turn = $site->ask(chat(history(1)), in('off'),
                          asks => ['init', 'preload']);

    $turn->asked('preload')->respond(200, bid(1))->wait_closed;
    $turn->answer('Light ones.');
    is($turn->why, 'filled ', 'enabled:false: the running preload counts');
    is($turn->ad->{ads}[0]{bidId}, $BIDS[1], 'and its ad is shown');

    asked_now();
    $turn = nth(2, in('off'));
    is($turn->why, 'bypass session_disabled', 'enabled:false: the next turn');
    ok($turn->untouched, 'is left alone');
    $site->nginx->barrier;
    is(asked_now(), '', 'and nothing is asked');

    $ads->on('/init', 200, { enabled => $YES });
    answers(bid(2));
    is($site->turn(chat(history(3)), headers => { 'X-Conversation' => 'off',
                                                  'X-User' => 'u-2' },
                   asks => ['init', 'preload'])->why, 'filled ',
       'a new session is enabled again');
}


# the same user turn again: no second call, the ad is inherited

{
    answers(bid(3));
    my $first = nth(1, in('again'), asks => ['init', 'preload']);

    answers(bid(4));
    asked_now();

    my $again = nth(1, in('again'), text => 'Heavy ones.');

    is($again->why, 'filled ', 'regenerated: filled');
    is($again->ad->{ads}[0]{bidId}, $BIDS[3], 'with the ad of before');
    isnt($again->event->{message_id}, $first->event->{message_id},
         'as another message');
    is($again->ad->{messageId}, $again->event->{message_id},
       'the ad is of that one');
    like($again->ad->{ads}[0]{frameUrl},
         qr/messageId=\Q$again->{event}{message_id}\E/, 'and its frame, too');
    $site->nginx->barrier;
    is(asked_now(), '', 'nothing is asked');

    is(nth(1, in('again'))->ad->{ads}[0]{bidId}, $BIDS[3],
       'as often as it is sent');

    my $edited = $site->turn(chat('other words'), in('again'),
                             asks => ['preload']);

    is($edited->ad->{ads}[0]{bidId}, $BIDS[4], 'an edited turn is a new one');

    my $second = $site->turn(chat('other words', 'Light ones.', 'q2'),
                             in('again'), asks => ['preload']);

    is($second->why, 'filled ', 'and so is the next');
}

# no_fill holds for the turn, an error does not

{
    answers({ sessionId => $SESSION, bids => [], skip => $YES,
              skipCode => 'ad_skipped' });
    nth(1, in('nothing'), asks => ['init', 'preload']);
    answers(bid(1));
    asked_now();

    my $turn = nth(1, in('nothing'));

    is($turn->why, 'no_fill ad_skipped', 'regenerated after no_fill: the same');
    ok($turn->untouched, 'no ad');
    $site->nginx->barrier;
    is(asked_now(), '', 'nothing is asked');
    is(nth(2, in('nothing'), asks => ['preload'])->why, 'filled ',
       'the next turn is asked for');

    answers({ sessionId => $SESSION, errCode => 'busy' });
    nth(1, in('failed'), asks => ['init', 'preload']);
    answers(bid(1));
    is(nth(1, in('failed'), asks => ['preload'])->why, 'filled ',
       'regenerated after an error: asked again');
}

# the same turn while the first call for it runs: one call

{
    $ads->hold('/preload');
    asked_now();

    my $first = $site->ask(chat(history(1)), in('twice'),
                           asks => ['init', 'preload']);
    my $second = $site->ask(chat(history(1)), in('twice'));

    $site->nginx->barrier;
    is(asked_now(), 'init preload', 'sent twice at a time: one call');
    is($first->asked('preload')->closed, undef, 'which goes on');

    $first->asked('preload')->respond(200, bid(1))->wait_closed;
    is($first->answer('Light ones.')->why, 'filled ', 'the first has the ad');
    $second->answer('Light ones.');
    ok($second->untouched || $second->ad->{ads}[0]{bidId} eq $BIDS[1],
       'the second has the same one or none');

    $site->nginx->barrier;
    is(asked_now(), '', 'and nothing more is asked');
}


# the user goes on while an answer is under way

{
    $ads->hold('/preload');

    my $first = $site->ask(chat(history(1)), in('on'),
                           asks => ['init', 'preload']);

    asked_now();

    my $second = $site->ask(chat(history(2)), in('on'), asks => ['preload']);

    is($first->asked('preload')->wait_closed, 'eof',
       'superseded: the older call is cancelled');

    $second->asked('preload')->respond(200, bid(2))->wait_closed;
    is($second->answer('Light ones.')->why, 'filled ', 'the newer has its ad');
    is($second->ad->{ads}[0]{bidId}, $BIDS[2], 'its own');

    $first->answer('Light ones.');
    is($first->event->{reason}, 'superseded', 'superseded: the reason');
    is($first->event->{injected}, '', 'superseded: no ad');
    ok($first->untouched, 'superseded: the answer is the backend\'s');

    $site->nginx->barrier;
    is(asked_now(), 'preload', 'silent: nothing is said of the older');

    answers(bid(3));
    is(nth(3, in('on'), asks => ['preload'])->asked('preload')
       ->json->{sessionId}, $SESSION, 'and the session goes on');
}

# ... and when the ad for the first is there already, but not yet shown

{
    answers(bid(1));
    my $first = $site->ask(chat(history(1)), in('on later'),
                           asks => ['init', 'preload']);

    answers(bid(2));
    my $second = $site->ask(chat(history(2)), in('on later'),
                            asks => ['preload']);

    is($second->answer('Light ones.')->ad->{ads}[0]{bidId}, $BIDS[2],
       'the newer turn has its own ad');
    $first->answer('Light ones.');
    ok($first->untouched, 'a bid not shown before the user went on is lost');
    is($first->event->{reason}, 'superseded', 'for this reason');
}


# a client that goes away takes its call with it, and the next try asks again

{
    $ads->hold('/preload');

    my $turn = $site->ask(chat(history(1)), in('gone'),
                          asks => ['init', 'preload']);

    $turn->client->reset;
    is($turn->request->wait_closed, 'eof', 'nginx hangs up on the backend');
    is($turn->asked('preload')->wait_closed, 'eof', 'and on the ad server');

    answers(bid(1));
    is(nth(1, in('gone'), asks => ['preload'])->why, 'filled ',
       'the next try is asked for');
}


# another user in the same conversation: a session of its own

{
    nth(1, in('shared'), asks => ['init', 'preload']);

    foreach my $user ('u-2', 'u-1') {
        asked_now();

        my $turn = nth(2, headers => { 'X-Conversation' => 'shared',
                                       'X-User' => $user },
                       asks => ['init', 'preload']);

        is(asked_now(), 'init preload', "now it is $user: /init again");
        ok(!exists $turn->asked('preload')->json->{sessionId},
           "now it is $user: no sessionId of the other's");
        is($turn->why, 'filled ', "now it is $user: filled");
    }
}

# so has another publisher, for all that the names are the same

{
    nth(1, in('same names'), asks => ['init', 'preload']);

    my $turn = nth(2, in('same names'), uri => "/of-another$CHAT",
                   asks => ['init', 'preload']);

    ok(!exists $turn->asked('preload')->json->{sessionId},
       'another token, another session');

    asked_now();
    is(nth(2, in('same names'), asks => ['preload'])->asked('preload')
       ->json->{sessionId}, $SESSION, 'and the first one lives on');
}


# the time that an attempt may take

{
    $ads->on('/init', 200, { preloadTimeout => 16000 });
    $ads->hold('/preload');

    my $control = $site->ask(chat(history(1)), in('patient'),
                             asks => ['init', 'preload']);
    my $turn = $site->ask(chat(history(1)), in('impatient'),
                          uri => "/short$CHAT", asks => ['init', 'preload']);

    is($turn->asked('preload')->wait_closed, 'eof',
       'kontext_preload_timeout ends an attempt');
    is($control->asked('preload')->closed, undef,
       'one without it goes on');

    # a timeout is a failure of the transport, which is worth another attempt

    answers(bid(1));
    my $retry = $ads->wait_request(path => '/preload');

    is($retry->body, $turn->asked('preload')->body, 'the same is asked again');
    $retry->wait_closed;
    is($turn->answer('Light ones.')->why, 'filled ', 'and answered');

    $control->asked('preload')->respond(200, bid(2))->wait_closed;
    is($control->answer('Light ones.')->why, 'filled ', 'the patient one');

    # the ad server's own limit counts from the next turn on

    $ads->on('/init', 200, { preloadTimeout => 300 });

    foreach my $prefix ('', '/long') {
        my $name = $prefix ? 'below that of the configuration' : 'alone';

        answers(bid(1));
        nth(1, in("limit$prefix"), uri => "$prefix$CHAT",
            asks => ['init', 'preload']);

        $ads->hold('/preload');
        $turn = $site->ask(chat(history(2)), in("limit$prefix"),
                           uri => "$prefix$CHAT", asks => ['preload']);
        $control = $site->ask(chat(history(2)), in('patient'),
                              asks => ['preload']);

        is($turn->asked('preload')->wait_closed, 'eof',
           "/init's preloadTimeout $name ends an attempt");
        is($control->asked('preload')->closed, undef, 'one without it goes on');

        answers(bid(1));
        $control->asked('preload')->respond(200, bid(1))->wait_closed;
        $control->answer('Light ones.');
        $ads->wait_request(path => '/preload')->wait_closed;
        is($turn->answer('Light ones.')->why, 'filled ', 'and is made again');

        # the next round is another turn of the patient one

        $site->turn(chat('q2 again'), in('patient'), asks => ['preload']);
    }

    $ads->on('/init', 200, { enabled => $YES });
}


# no ad may come, and nothing about the answer is another for the module

sub same_as_plain {
    my ($name, $turn) = @_;
    my $plain = $site->turn(chat(history(1)), uri => "/plain$CHAT");

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return is($turn->raw, $plain->raw, $name);
}


# track_only: told and not shown

{
    answers(bid(1));

    my $turn = $site->turn(chat(history(1)),
        headers => { 'X-Conversation' => 'track', 'X-Kontext' => 'track_only' },
        asks => ['init', 'preload']);

    is($turn->asked('preload')->header('Kontextso-Is-Disabled'), '1',
       'track_only: the header says so');
    is($turn->asked('preload')->json->{messages}[0]{content}, 'q1',
       'track_only: the message is told');
    same_as_plain('track_only: the client gets the answer as it is', $turn);
    is($turn->event->{reason}, 'track_only', 'track_only: the reason');
    is($turn->event->{$_}, '', "track_only: bids are thrown away, $_")
        foreach 'injected', 'bid_id', 'frame_url', 'revenue';

    $turn = nth(2, in('track'), asks => ['preload']);
    is($turn->asked('preload')->header('Kontextso-Is-Disabled'), '0',
       'on again: the header');
    is($turn->asked('preload')->json->{sessionId}, $SESSION,
       'on again: the same session, with the id kept');
    is($turn->why, 'filled ', 'on again: an ad');
}


# inject none: asked and recorded

{
    my $turn = nth(1, in('shadow'), uri => "/shadow$CHAT",
                   asks => ['init', 'preload']);

    is($turn->asked('preload')->header('Kontextso-Is-Disabled'), '0',
       'kontext_inject none: asked for as any other');
    is($turn->why, 'filled inject_none', 'kontext_inject none: recorded');
    is($turn->event->{bid_id}, $BIDS[1], 'kontext_inject none: with its bid');
    is($turn->event->{injected}, '', 'kontext_inject none: not put in');
    same_as_plain('kontext_inject none: the client gets the answer as it is',
                  $turn);
}


# What an answer of the ad server means: protocol.md 4.3.  [ name, status and
# reason, the next turn's, answer ]

my $DISABLED = 'bypass session_disabled';
my $other = { bidId => $BIDS[5], code => 'other', revenue => 1 };
my $inline = bid(1)->{bids}[0];

my @table = (
    [ '2: no JSON', 'error request_failed', 'filled ', 200, '<html>' ],
    [ '2: cut JSON', 'error request_failed', 'filled ',
      200, '{"sessionId":"0d5c1f2e' ],
    [ '2: no body', 'error request_failed', 'filled ', 200, '' ],
    [ '2: a list', 'error request_failed', 'filled ', 200, [] ],
    [ '2: a bid id that is none', 'error request_failed', 'filled ',
      200, Kontext::Mock->bid(bidId => 'bid-1') ],
    [ '2: a session id that is none', 'error request_failed', 'filled ',
      200, Kontext::Mock->bid(sessionId => 'session-1') ],
    [ '3: 204', 'no_fill unfilled_bid', 'filled ', 204 ],
    (map { [ "4: $_ with a bid in it", 'error unknown', 'filled ',
             $_, bid(1) ] } 302, 400, 403, 404, 500, 503),
    [ '4: 500 is not permanent', 'error unknown', 'filled ',
      500, { errCode => 'geo_disabled', permanent => $YES } ],
    [ '5: permanent with a code', 'error geo_disabled', $DISABLED,
      200, { errCode => 'geo_disabled', permanent => $YES } ],
    [ '5: permanent with a code, a session and a bid', 'error geo_disabled',
      $DISABLED, 200, { %{bid(1)}, errCode => 'geo_disabled',
                        permanent => $YES } ],
    [ '5: permanent without anything', 'error session_disabled', $DISABLED,
      200, { permanent => $YES } ],
    [ '5: permanent and skip', 'error session_disabled', $DISABLED,
      200, { permanent => $YES, skip => $YES, skipCode => 'x' } ],
    [ '6: a code', 'error generation_failed', 'filled ',
      200, { errCode => 'generation_failed', error => 'Could not' } ],
    [ '6: a code, though there is a bid', 'error generation_failed', 'filled ',
      200, { %{bid(1)}, errCode => 'generation_failed' } ],
    [ '6: a code before skip', 'error generation_failed', 'filled ',
      200, { sessionId => $SESSION, errCode => 'generation_failed',
             skip => $YES, skipCode => 'x' } ],
    [ '6: not permanent', 'error generation_failed', 'filled ',
      200, { errCode => 'generation_failed', permanent => $NO } ],
    [ '6: no session, though there is a bid', 'error unknown', 'filled ',
      200, { bids => [ $inline ] } ],
    [ '6: nothing at all', 'error unknown', 'filled ', 200, {} ],
    [ '7: skip with a code', 'no_fill ivt_blocked', 'filled ',
      200, { sessionId => $SESSION, bids => [], skip => $YES,
             skipCode => 'ivt_blocked' } ],
    [ '7: skip without a code', 'no_fill unknown', 'filled ',
      200, { sessionId => $SESSION, skip => $YES } ],
    [ '7: skip before bids', 'no_fill ad_skipped', 'filled ',
      200, { %{bid(1)}, skip => $YES, skipCode => 'ad_skipped' } ],
    [ '8: no bids', 'no_fill unfilled_bid', 'filled ',
      200, { sessionId => $SESSION, bids => [] } ],
    [ '8: bids of null', 'no_fill unfilled_bid', 'filled ',
      200, { sessionId => $SESSION, bids => undef } ],
    [ '8: no such member', 'no_fill unfilled_bid', 'filled ',
      200, { sessionId => $SESSION } ],
    [ '8: of other placements only', 'no_fill unfilled_bid', 'filled ',
      200, { sessionId => $SESSION, bids => [ $other ] } ],
    [ '9: filled', 'filled ', 'filled ', 200, bid(1) ],
    [ '9: with status 201', 'filled ', 'filled ', 201, bid(1) ],
    [ '9: skip that is false', 'filled ', 'filled ',
      200, { %{bid(1)}, skip => $NO, errCode => undef, permanent => $NO } ],
    [ '9: permanent with a session and no code', 'filled ', 'filled ',
      200, { %{bid(1)}, permanent => $YES } ],
    [ '9: among others', 'filled ', 'filled ',
      200, { sessionId => $SESSION, bids => [ $other, $inline ] } ],
    [ '9: with members nobody knows', 'filled ', 'filled ',
      200, { %{bid(1)}, status => 'success', ads => [], x => { y => [] } } ],
    [ '9: without revenue', 'filled ', 'filled ',
      200, { sessionId => $SESSION,
             bids => [ { bidId => $BIDS[1], code => 'inlineAd' } ] } ],
    [ '9: with a trigger, measurement and a campaign', 'filled ', 'filled ',
      200, { sessionId => $SESSION, bids => [ {
          %$inline, impressionTrigger => 'someday',
          om => { creativeType => 'display' }, skan => { version => 4 } } ] } ],
);

foreach my $row (@table) {
    my ($name, $now, $next, @answer) = @$row;

    $ads->on('/preload', @answer);

    my $turn = nth(1, in("table $name"), asks => ['init', 'preload']);

    is($turn->why, $now, "rule $name");

    if ($now eq 'filled ') {
        is(scalar @{$turn->ad->{ads}}, 1, "rule $name: one ad");
        is($turn->ad->{ads}[0]{bidId}, $BIDS[1], "rule $name: the right one");

    } else {
        ok($turn->untouched, "rule $name: no ad");
    }

    answers(bid(2));
    asked_now();

    $turn = nth(2, in("table $name"),
                asks => $next eq $DISABLED ? [] : ['preload']);
    is($turn->why, $next, "rule $name: the next turn");

    $site->nginx->barrier;
    is(asked_now(), $next eq $DISABLED ? '' : 'preload',
       "rule $name: what is asked then");
}

# the first bid of a code wins, one ad for each code

{
    $ads->on('/preload', 200, { sessionId => $SESSION, bids => [
        map { { bidId => $BIDS[$_->[0]], code => $_->[1] } }
            [ 1, 'box' ], [ 2, 'inlineAd' ], [ 3, 'inlineAd' ], [ 4, 'box' ],
    ] });

    my $turn = nth(1, in('codes'), uri => "/two-codes$CHAT",
                   asks => ['init', 'preload']);

    is_deeply({ map { ($_->{code} => $_->{bidId}) } @{$turn->ad->{ads}} },
              { box => $BIDS[1], inlineAd => $BIDS[2] },
              'the first bid of each code');
    is(scalar @{$turn->ad->{ads}}, 2, 'and no more');
}

# a disabled session stays so, and keeps what is shown already

{
    answers(bid(1));
    nth(1, in('ends'), asks => ['init', 'preload']);
    answers({ errCode => 'publisher_disabled', permanent => $YES });
    is(nth(2, in('ends'), asks => ['preload'])->why,
       'error publisher_disabled', 'switched off in the second turn');
    answers(bid(1));
    asked_now();
    is(nth($_, in('ends'))->why, $DISABLED, "switched off: turn $_")
        foreach 3 .. 5;
    $site->nginx->barrier;
    is(asked_now(), '', 'and nothing is asked any more');
}

# too many requests: asked again in a while; other statuses are not

{
    $ads->hold('/preload');

    my $turn = $site->ask(chat(history(1)), in('busy'),
                          asks => ['init', 'preload']);

    $turn->asked('preload')->respond(429, 'slow down', 'Retry-After' => 3600);
    $ads->wait_request(path => '/preload')->respond(200, bid(1))->wait_closed;
    is($turn->answer('Light ones.')->why, 'filled ', '429 is asked again');
}


# a reload: the old worker's sessions are the new one's

{
    answers(bid(1));
    nth(1, in('reload'), asks => ['init', 'preload']);
    nth(1, in('again after reload'), asks => ['init', 'preload']);

    my $worker = $site->nginx->worker_pid;

    $site->nginx->reload;
    isnt($site->nginx->worker_pid, $worker, 'another worker');

    answers(bid(2));
    asked_now();
    is(nth(2, in('reload'), asks => ['preload'])->asked('preload')
       ->json->{sessionId}, $SESSION, 'after a reload: the same session');
    is(asked_now(), 'preload', 'after a reload: no /init');
    is(nth(1, in('again after reload'))->ad->{ads}[0]{bidId}, $BIDS[1],
       'after a reload: a turn sent again has the ad of before');
}

$site->stop_ok;


# two workers: one session

{
    my $two = ChatSite->new(workers => 2, listen => ' reuseport');
    my (%client, %turns);
    my $n = 0;
    my $next = sub {
        return $two->turn(chat(history(++$n)), asks => $n == 1
                              ? ['init', 'preload'] : ['preload'], @_);
    };

    # the kernel chooses the worker by the client's port

    wait_until('both workers to have had a turn', sub {
        my $client = $two->nginx->client;
        my $turn = $next->(client => $client);

        $client{$turn->event->{pid}} = $client;
        $turns{$turn->event->{pid}}++;
        is($turn->why, 'filled ', "turn $n");

        return keys %client == 2;
    });

    foreach my $pid (map { (sort keys %client)[$_ % 2] } 0 .. 9) {
        is($next->(client => $client{$pid})->why, 'filled ',
           "turn $n, in turns");
    }

    my @preloads = $two->ads->requests('/preload');

    is(scalar(() = $two->ads->requests('/init')), 1, 'two workers: one /init');
    is(scalar @preloads, $n, 'two workers: one /preload for each turn');
    is(scalar(grep { ($_->json->{sessionId} // '') ne $SESSION } @preloads), 1,
       'two workers: all but the first have the session\'s id');

    # a turn in one worker supersedes one in the other

    my ($one, $other) = sort keys %client;

    $two->ads->hold('/preload');

    my $first = $two->ask(chat(history(++$n)), client => $client{$one},
                          asks => ['preload']);
    my $second = $two->ask(chat(history(++$n)), client => $client{$other},
                           asks => ['preload']);

    $first->asked('preload')->respond(200, bid(1));
    $second->asked('preload')->respond(200, bid(2))->wait_closed;
    is($second->answer('Light ones.')->ad->{ads}[0]{bidId}, $BIDS[2],
       'two workers: the newer turn has its ad');
    $first->answer('Light ones.');
    ok($first->untouched, 'two workers: the older has none');
    is($first->event->{reason}, 'superseded', 'two workers: superseded');

    # the same turn in the other worker

    $two->ads->on('/preload', 200, bid(3));

    my $again = $two->turn(chat(history($n)), client => $client{$one});

    is($again->ad->{ads}[0]{bidId}, $BIDS[2],
       'two workers: a turn sent again to the other has the ad of before');

    $two->stop_ok;
}


# idle sessions are closed

{
    my $idle = ChatSite->new(
        http   => 'kontext_zone kontext:1m idle=1s;',
        server => <<'CONF',
        location = /pause {
            keepalive_timeout 2s;
            return 204;
        }
CONF
    );

    $idle->turn(chat(history(1)), asks => ['init', 'preload']);

    # nginx itself says when the time is over

    my $pause = $idle->nginx->client;

    $pause->get('/pause')->read_response;
    is($pause->wait_closed, 'eof', 'longer than idle=1s');

    my $turn = $idle->turn(chat(history(2)), asks => ['init', 'preload']);

    ok(!exists $turn->asked('preload')->json->{sessionId},
       'a session that was idle is closed: the next turn starts a new one');
    is($turn->why, 'filled ', 'with an ad');

    $idle->stop_ok;
}


# a full zone: the session not used for longest makes room

{
    my $small = ChatSite->new(http => 'kontext_zone kontext:@size@;',
                              vars => { size => '32k' });
    my $turns = 200;
    my $filled = 0;

    foreach my $n (1 .. $turns) {
        my $turn = $small->turn(chat('q1'), headers => {
            'X-Conversation' => "c-$n" }, asks => ['init', 'preload']);

        $filled++ if $turn->why eq 'filled ';
    }

    is($filled, $turns, 'a full zone: everybody has an ad');
    is($small->turn(chat('q1', 'Light ones.', 'q2'),
                    headers => { 'X-Conversation' => "c-$turns" },
                    asks => ['preload'])->asked('preload')->json->{sessionId},
       $SESSION, 'a full zone: the newest session is there');
    ok(!exists $small->turn(chat('q1', 'Light ones.', 'q2'),
                            headers => { 'X-Conversation' => 'c-1' },
                            asks => ['init', 'preload'])
       ->asked('preload')->json->{sessionId},
       'a full zone: the oldest session has made room');

    # of another size after a reload: a new zone, and nothing else happens

    $small->nginx->reload(vars => { size => '64k', llm => $small->llm->addr,
                                    ads => $small->ads->addr });
    is($small->turn(chat('q1', 'Light ones.', 'q2', 'Light ones.', 'q3'),
                    headers => { 'X-Conversation' => "c-$turns" },
                    asks => ['init', 'preload'])->why, 'filled ',
       'a zone of another size starts empty');

    $small->stop_ok;
}


done_testing;
