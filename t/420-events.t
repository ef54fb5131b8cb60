#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The events of a session: what happens, as it happens, once and in order, to
# whoever listens; and what pages report of their ads.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ApiSite;
use EventStream;

my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my @BIDS = map { "7c9e6679-7425-40de-944b-e07fc1f90a0$_" } 0 .. 9;
my $KEPT = 64;
my $KEPT_BYTES = 16 * 1024;

my @VARIABLES = qw(event bid_id code message_id revenue session_user
                   session_conversation reason);

my $site = ApiSite->new(
    http   => "log_format page escape=json '{\"status\":\"\$status\","
              . join(',', map { qq("$_":"\$kontext_$_") } @VARIABLES)
              . "}';\n",
    server => <<'CONF',
        access_log logs/page.log page;

        location /two-codes/ {
            kontext_api;
            kontext_publisher_token acme-dev;
            kontext_placements inlineAd box;
        }

        location /ping/ {
            kontext_api ping=50ms;
            kontext_publisher_token acme-dev;
        }
CONF
);

my $ads = $site->ads;


sub stream {
    my ($id, %args) = @_;
    my $at = $args{site} // $site;
    my $api = $args{api} // '/kontext';

    return EventStream->open($args{client} // $at->nginx->client,
                             "$api/sessions/$id/events" . ($args{args} // ''),
                             defined $args{last}
                                 ? ('Last-Event-ID' => $args{last}) : ());
}


sub ids { return join(' ', map { $_->{id} // $_->{event} } @_) }

sub message { return ApiSite->message(@_) }


# the next call that waits for its answer; those that a rule has answered are
# none

sub waiting {
    my ($path) = @_;

    while (1) {
        my $req = $ads->wait_request(path => $path);

        return $req if !$req->answered;
    }
}


# what has come after the time that a browser waits before it comes again

sub text_of { return $_[0]->body =~ s/\Aretry: \d+\n\n//r }


# an event that needs no ad: its number

sub mark {
    my ($id, $text, %args) = @_;
    my $res = ($args{site} // $site)->report($id, {
        name => 'ad.error', payload => { errCode => 'mark',
                                         message => $text },
    }, %args);

    $res->status == 202 or die 'no mark: ' . $res->head . $res->body;

    return $res->json->{id};
}


# what a preload has told

sub told { return [ map { [ $_->{event}, $_->{payload} ] } @_ ] }

sub no_fill { return [ 'ad.no-fill', { skipCode => $_[0] } ] }

sub failed {
    return [ 'ad.error', { errCode => $_[0], message => $_[1] } ];
}

my $SKIPPED = 'Ad generation skipped';
my $DISABLED = 'Session is disabled';


# Every answer of the ad server, in the order of the classification.  The
# session's stream has the events of it and nothing else: a mark behind them
# has the next number.

my @FILLED = ([ 'ad.filled', { bidId => $BIDS[1], code => 'inlineAd',
                               revenue => 0.0042 } ]);
my $bid = { bidId => $BIDS[1], code => 'inlineAd', revenue => 0.0042 };
my @answered = (
    [ 'no JSON', [ 200, '<html>' ],
      failed('request_failed', 'Error preloading ads') ],
    [ 'a list', [ 200, [] ],
      failed('request_failed', 'Error preloading ads') ],
    [ 'an empty body', [ 200, '' ],
      failed('request_failed', 'Error preloading ads') ],
    [ '204', [ 204 ], no_fill('unfilled_bid') ],
    (map { [ "$_, whatever is in it",
             [ $_, { errCode => 'geo_disabled', permanent => $YES } ],
             failed('unknown', $SKIPPED) ] } 302, 400, 403, 500, 503),
    [ 'permanent with a code',
      [ 200, { errCode => 'geo_disabled', permanent => $YES,
               sessionId => $SESSION, error => 'Country not served' } ],
      failed('geo_disabled', $DISABLED) ],
    [ 'permanent with a code, without a session',
      [ 200, { errCode => 'invalid_token', permanent => $YES } ],
      failed('invalid_token', $DISABLED) ],
    [ 'permanent without a code and a session',
      [ 200, { permanent => $YES } ], failed('session_disabled', $DISABLED) ],
    [ 'permanent without a code, with a session',
      [ 200, { permanent => $YES, sessionId => $SESSION, bids => [ $bid ] } ],
      @FILLED ],
    (map { [ "the code $_",
             [ 200, { errCode => $_, error => 'Not for you',
                      sessionId => $SESSION, skip => $YES,
                      bids => [ $bid ] } ], failed($_, $SKIPPED) ] }
         'generation_failed', 'rate_limited', 'of-tomorrow'),
    [ 'no session', [ 200, { bids => [ $bid ] } ],
      failed('unknown', $SKIPPED) ],
    [ 'no session, skip', [ 200, { skip => $YES, skipCode => 'ad_skipped' } ],
      failed('unknown', $SKIPPED) ],
    (map { [ "skip $_", [ 200, { sessionId => $SESSION, skip => $YES,
                                 skipCode => $_, bids => [] } ],
             no_fill($_) ] }
         qw(ads_disabled ad_skipped ivt_blocked unfilled_bid
            session_disabled unknown frequency_cap of-tomorrow)),
    [ 'skip with bids', [ 200, { sessionId => $SESSION, skip => $YES,
                                 skipCode => 'ad_skipped',
                                 bids => [ $bid ] } ],
      no_fill('ad_skipped') ],
    [ 'skip without a code', [ 200, { sessionId => $SESSION,
                                      skip => $YES } ],
      no_fill('unknown') ],
    [ 'no bids', [ 200, { sessionId => $SESSION, bids => [] } ],
      no_fill('unfilled_bid') ],
    [ 'a session and nothing else', [ 200, { sessionId => $SESSION } ],
      no_fill('unfilled_bid') ],
    [ 'no bids, a skip code without skip',
      [ 200, { sessionId => $SESSION, bids => [], skipCode => 'x' } ],
      no_fill('unfilled_bid') ],
    [ 'bids of other codes',
      [ 200, { sessionId => $SESSION, bids => [
          { bidId => $BIDS[1], code => 'box' },
          { bidId => $BIDS[2], code => 'inlinead' } ] } ],
      no_fill('unfilled_bid') ],
    [ 'a bid', [ 200, { sessionId => $SESSION, bids => [ $bid ] } ],
      @FILLED ],
    [ 'a bid without revenue',
      [ 200, { sessionId => $SESSION, bids => [
          { bidId => $BIDS[1], code => 'inlineAd' } ] } ],
      [ 'ad.filled', { bidId => $BIDS[1], code => 'inlineAd' } ] ],
    [ 'a bid for nothing',
      [ 200, { sessionId => $SESSION, bids => [ { %$bid, revenue => 0 } ] } ],
      [ 'ad.filled', { bidId => $BIDS[1], code => 'inlineAd',
                       revenue => 0 } ] ],
    [ 'an id in capitals',
      [ 200, { sessionId => $SESSION, bids => [
          { bidId => uc $BIDS[1], code => 'inlineAd', revenue => 0.0042 } ]
      } ], @FILLED ],
    [ 'two bids of a code: the first',
      [ 200, { sessionId => $SESSION, bids => [
          $bid, { %$bid, bidId => $BIDS[2] } ] } ], @FILLED ],
    [ 'bids of this and other codes',
      [ 200, { sessionId => $SESSION, bids => [
          { bidId => $BIDS[2], code => 'box' }, $bid ] } ], @FILLED ],
);

foreach my $case (@answered) {
    my ($name, $answer, @expected) = @$case;
    my $id = $site->session;
    my $stream = stream($id);

    $ads->on('/preload', @$answer);
    $site->add($id, message(m1 => user => 'Hi'));
    $stream->wait_event(scalar @expected);

    # the session's state follows what was told, at once

    my $state = $site->state($id);

    is(mark($id, 'behind it'), @expected + 1,
       "$name: its events have the first numbers");
    $stream->wait_event(@expected + 1);

    my @events = $stream->events;

    is_deeply(told(@events[0 .. $#expected]), \@expected, "$name: told");
    is(ids(@events), join(' ', 1 .. @expected + 1), "$name: numbered");
    is($state->{preload}, { 'ad.filled' => 'filled', 'ad.error' => 'error',
                            'ad.no-fill' => 'no_fill' }->{$expected[0][0]},
       "$name: the state of the session");
    is(($state->{disabled} ? 'off' : 'on'),
       ($expected[0][1]{message} // '') eq $DISABLED ? 'off' : 'on',
       "$name: the session is " . ($state->{disabled} ? 'off' : 'on'));

    $stream->close;
}


# per bid where there are several codes

{
    my $id = $site->session({}, api => '/two-codes');
    my $stream = stream($id, api => '/two-codes');

    $ads->on('/preload', 200, { sessionId => $SESSION, bids => [
        { bidId => $BIDS[3], code => 'box', revenue => 2.5 }, $bid ] });
    $site->add($id, message(m1 => user => 'Hi'), api => '/two-codes');
    $stream->wait_event(2);

    is_deeply([ sort { $a->[1]{code} cmp $b->[1]{code} }
                     @{told($stream->events)} ],
              [ [ 'ad.filled', { bidId => $BIDS[3], code => 'box',
                                 revenue => 2.5 } ], @FILLED ],
              'two codes: an event for each bid');
    is(join(' ', sort map { $_->{json}{code} } $stream->events),
       'box inlineAd', 'two codes: each with its own');
    is(mark($id, 'behind it'), 3, 'two codes: two events');
    $stream->close;
}


# the form

{
    my $id = $site->session;
    my $c = $site->nginx->client;
    my $stream = stream($id, client => $c);
    my $head = $stream->head;

    is($stream->status, 200, 'a stream is 200');
    like($head->header('Content-Type'), qr{^text/event-stream\b},
         'a stream is text/event-stream');
    like($head->header('Cache-Control'), qr/no-(?:store|cache)/,
         'a stream is not for caches');
    is(text_of($stream), '', 'nothing has happened: the head comes, and nothing');

    $ads->on('/preload', 200, Kontext::Mock->bid);
    $site->add($id, message(m1 => user => 'Hi'));
    $stream->wait_event(1);
    is(text_of($stream), 'id: 1' . "\n" . 'event: ad.filled' . "\n" . 'data: '
       . '{"name":"ad.filled","code":"inlineAd","payload":{"bidId":'
       . '"7c9e6679-7425-40de-944b-e07fc1f90ae7","code":"inlineAd",'
       . '"revenue":0.0042}}' . "\n\n", 'an event, to the byte');

    mark($id, 'x');
    is($stream->wait_event(2)->{json}{name}, $stream->wait_event(2)->{event},
       'the name in the data is the name of the event');
    $site->close($id);
    is(($stream->wait_end)[-1]{event}, 'session.closed',
       'the stream of a closed session ends');
    is(stream($id)->status, 404, 'and no other is opened');

    $c->get("/kontext/sessions/$id");
    is($c->read_response->status, 404, 'the connection goes on');
}


# /init switches off

{
    $ads->hold($_) foreach '/init', '/preload';

    my $id = $site->session({}, init => 0);
    my $init = waiting('/init');
    my $stream = stream($id);

    $site->add($id, message(m1 => user => 'Hi'));

    my $preload = waiting('/preload');

    is(text_of($stream), '', 'nothing is answered: no event');
    $init->respond(200, { enabled => $NO, reportErrors => $NO });

    my $event = $stream->next_event;

    is_deeply(told($event), [ failed('session_disabled_by_init', $DISABLED) ],
              'enabled:false: an ad.error');
    is($event->{id}, 1, 'enabled:false: it is the first event');
    ok($site->state($id)->{disabled}, 'enabled:false: the session is off');

    $preload->respond(200, { sessionId => $SESSION, bids => [ $bid ] });
    is_deeply(told($stream->next_event), \@FILLED,
              'enabled:false: what was under way is told still');

    is($site->add($id, message(m2 => user => 'More'))->json->{preload},
       'disabled', 'enabled:false: no preload any more');
    is(mark($id, 'behind it'), 3, 'enabled:false: and no event');

    $ads->on('/init', 200, { enabled => $YES });
    $ads->on('/preload', 200, { sessionId => $SESSION, bids => [ $bid ] });
    $stream->close;
}


# cancelled and track-only preloads: no event

{
    my $id = $site->session;
    my $stream = stream($id);

    $ads->hold('/preload');
    $site->add($id, message(m1 => user => 'Hi'));

    my $first = waiting('/preload');

    $site->add($id, message(m2 => user => 'No, wait'));
    $first->wait_closed;
    waiting('/preload')->respond(200, { sessionId => $SESSION, bids => [],
                                   skip => $YES, skipCode => 'ad_skipped' });
    is_deeply(told($stream->wait_event(1)), [ no_fill('ad_skipped') ],
              'a newer message: the event is that of its preload');
    is($stream->wait_event(1)->{id}, 1, 'the older one had none');

    $site->add($id, { messages => [ message(m3 => user => 'Only count me') ],
                      trackOnly => $YES });

    my $track = waiting('/preload');

    is($track->header('Kontextso-Is-Disabled'), '1', 'a turn is counted only');
    $track->respond(200, { sessionId => $SESSION, bids => [ $bid ] })
          ->wait_closed;
    $site->nginx->barrier;
    is(mark($id, 'behind it'), 2, 'counted only: no event');

    $site->add($id, { messages => [ message(m4 => user => 'Me, too') ],
                      trackOnly => $YES });
    waiting('/preload')->respond(200, { errCode => 'geo_disabled',
                                   permanent => $YES });
    is_deeply(told($stream->wait_event(3)), [ failed('geo_disabled',
                                                     $DISABLED) ],
              'counted only: a failure is told');

    $ads->on('/preload', 200, { sessionId => $SESSION, bids => [ $bid ] });
    $stream->close;
}


# chats that nginx proxies

{
    my $id = $site->session({ conversationId => 'c-chats' });
    my $stream = stream($id);
    my @in = (headers => { 'X-Conversation' => 'c-chats' });

    is($site->turn(chat('q1'), @in, asks => ['preload'])->why, 'filled ',
       'a chat has its ad');
    is_deeply(told($stream->wait_event(1)), \@FILLED,
              'a chat: its event is in the stream of its session');

    $site->add($id, message(m1 => user => 'Fed'));
    $stream->wait_event(2);

    $ads->on('/preload', 200, { sessionId => $SESSION, skip => $YES,
                                skipCode => 'ad_skipped' });
    $site->turn(chat('q1', 'Light ones.', 'q2'), @in, asks => ['preload']);
    is_deeply(told($stream->wait_event(3)), [ no_fill('ad_skipped') ],
              'a chat: no fill is told');
    $ads->on('/preload', 200, { errCode => 'rate_limited' });
    $site->turn(chat('q1', 'Light ones.', 'q2', 'Light ones.', 'q3'), @in,
                asks => ['preload']);
    is_deeply(told($stream->wait_event(4)), [ failed('rate_limited',
                                                     $SKIPPED) ],
              'a chat: an error is told');
    is(ids($stream->events), '1 2 3 4',
       'chats and fed messages: one order, one numbering');

    $ads->on('/preload', 200, { sessionId => $SESSION, bids => [ $bid ] });
    $stream->close;
}


# where a stream starts

{
    my $id = $site->session;

    mark($id, "event $_") foreach 1 .. 9;

    my $of = sub {
        my $stream = stream($id, @_);

        # a mark of its own ends what was there before

        my $n = mark($id, 'the end');

        $stream->wait_id($n);
        $stream->close;

        return ids($stream->events);
    };

    is($of->(), join(' ', 1 .. 10), 'a stream starts with what is kept');
    is($of->(), join(' ', 1 .. 11), 'each one does');
    is($of->(last => $_), join(' ', $_ + 1 .. 12 + $_),
       "Last-Event-ID $_: it starts behind it") foreach 0 .. 3;
    is($of->(last => 15), '16', 'Last-Event-ID of the newest: the new ones');
    is($of->(args => '?lastEventId=12'), join(' ', 13 .. 17),
       'lastEventId as an argument');
    is($of->(args => '?x=1&lastEventId=17'), '18',
       'lastEventId as one of the arguments');
    is($of->(last => 18, args => '?lastEventId=3'), '19',
       'the header is of the last connection, the argument of the first');

    my $newest = 19;

    foreach my $what ('', 'x', '-1', '3x', '0x3', ' ', '1.5', '+1', "\xff",
                      '9' x 40, 'y' x 300)
    {
        my $name = length $what > 20 ? length($what) . ' x '
                                       . substr($what, 0, 1) : $what;

        is($of->(last => $what), join(' ', 1 .. ++$newest),
           "Last-Event-ID \"$name\" is none: the stream starts with what is "
           . 'kept');
    }

    is($of->(args => '?lastEventId=%00'), join(' ', 1 .. ++$newest),
       'lastEventId=%00 is none');

    # of an event that has not happened: what happens then is not missed

    foreach my $what ($newest + 1000, 4294967295, '18446744073709551615') {
        like($of->(last => $what), qr/\b${\ ++$newest}\z/,
             "Last-Event-ID $what, too large: new events come");
    }
}


# cut and resumed, again and again, while things happen: each event once

{
    my $id = $site->session;
    my ($n, @seen) = (0);

    foreach my $round (1 .. 12) {
        my $c = $site->nginx->client;
        my $stream = stream($id, client => $c, last => @seen ? $seen[-1]{id} : 0);
        my $more = $round % 4;

        mark($id, 'event ' . ++$n) foreach 1 .. 5;
        $stream->wait_event($more) if $more;

        # some have come and are not looked at: they are lost with it

        push @seen, ($stream->events)[0 .. $more - 1];
        $round % 2 ? $c->reset : $c->close;
    }

    my $stream = stream($id, last => $seen[-1]{id});

    $stream->wait_event($n - @seen);
    push @seen, $stream->events;
    is(ids(@seen), join(' ', 1 .. $n), 'cut and resumed: each event once');
    is(join(' ', map { $_->{payload}{message} =~ /(\d+)/ } @seen),
       join(' ', 1 .. $n), 'cut and resumed: in order');
    $stream->close;
}


# several readers

{
    my $id = $site->session;
    my @streams = map { stream($id) } 1 .. 5;

    mark($id, "event $_") foreach 1 .. 3;

    foreach my $i (0 .. $#streams) {
        $streams[$i]->wait_event(3);
        is(ids($streams[$i]->events), '1 2 3', "reader $i has them all");
    }

    my $of_another = stream($site->session);

    mark($id, 'event 4');
    $_->wait_event(4) foreach @streams;
    is(text_of($of_another), '', 'another session has its own events');
    $_->close foreach @streams, $of_another;
}


# what is kept

{
    my $id = $site->session;
    my $total = 3 * $KEPT + 7;

    mark($id, "event $_") foreach 1 .. $KEPT;

    my $stream = stream($id);

    $stream->wait_event($KEPT);
    is(ids($stream->events), join(' ', 1 .. $KEPT), "$KEPT events are kept");
    $stream->close;

    mark($id, "event $_") foreach $KEPT + 1 .. $total;
    $stream = stream($id);
    $stream->wait_event($KEPT + 1);

    my @events = $stream->events;
    my $lost = shift @events;

    is($lost->{event}, 'events.lost', 'a late reader is told first');
    is_deeply($lost->{payload}, { count => $total - $KEPT },
              'how many it has missed');
    is($lost->{json}{name}, 'events.lost', 'by an event like others');
    is(ids(@events), join(' ', $total - $KEPT + 1 .. $total),
       'and has those that are kept');
    is($lost->{id} // $total - $KEPT, $total - $KEPT,
       'the numbers stay as they are');
    $stream->close;

    # resumed where some were dropped, where the last one dropped is known,
    # and where nothing was

    foreach my $case ([ 100, $total - $KEPT - 100 ],
                      [ $total - $KEPT - 1, 1 ],
                      [ $total - $KEPT, 0 ], [ $total - 3, 0 ])
    {
        my ($last, $missed) = @$case;
        my $first = $last + $missed + 1;

        $stream = stream($id, last => $last);
        $stream->wait_event(($missed ? 1 : 0) + $total - $first + 1);
        @events = $stream->events;
        is_deeply(told($missed ? shift @events : ()),
                  $missed ? [ [ 'events.lost', { count => $missed } ] ] : [],
                  "Last-Event-ID $last: $missed are lost");
        is(ids(@events), join(' ', $first .. $total),
           "Last-Event-ID $last: and on from $first");
        $stream->close;
    }
}

{
    my $id = $site->session;
    my $total = 30;

    mark($id, "event $_ " . 'x' x 3000) foreach 1 .. $total;

    my $stream = stream($id, last => 0);

    $stream->wait_id($total);

    my ($lost, @events) = $stream->events;
    my $kept = 0;

    $kept += length $_->{data} foreach @events;

    is($lost->{event}, 'events.lost', 'large events: older ones are lost');
    is($lost->{payload}{count} + @events, $total,
       'large events: all are kept or counted');
    is(ids(@events), join(' ', $lost->{payload}{count} + 1 .. $total),
       'large events: those kept are the newest');
    cmp_ok($kept, '<=', $KEPT_BYTES, "large events: $KEPT_BYTES bytes at most");
    cmp_ok($kept, '>', $KEPT_BYTES - 2 * 3100, 'large events: and no fewer');
    $stream->close;
}


# nothing happens

{
    my $id = $site->session;
    my $stream = stream($id, api => '/ping');

    $stream->wait_comment(3);
    is(scalar(() = $stream->events), 0, 'nothing happens: comments come');

    mark($id, 'event 1');
    is($stream->wait_event(1)->{id}, 1, 'an event between them');
    $stream->wait_comment(1 + $stream->comments);
    mark($id, 'event 2');
    $stream->wait_event(2);
    is(ids($stream->events), '1 2', 'they have no numbers');
    $site->close($id);
    is(($stream->wait_end)[-1]{event}, 'session.closed', 'and they end');
}


# the end of a session

{
    my $id = $site->session;
    my @streams = map { stream($id) } 1 .. 3;

    mark($id, 'event 1');
    is($site->close($id)->status, 204, 'DELETE');

    foreach my $stream (@streams) {
        my @events = $stream->wait_end;

        is(join(' ', map { $_->{event} } @events), 'ad.error session.closed',
           'DELETE: what was there, then the end');
        is($events[-1]{json}{name}, 'session.closed', 'DELETE: told');
    }

    is($site->code($site->call(GET => "sessions/$id/events")),
       'unknown_session', 'DELETE: its events are gone');
    is($site->code($site->report($id, { name => 'ad.error', payload => {
        errCode => 'x', message => 'y' } })), 'unknown_session',
       'DELETE: nothing can be reported');
}

foreach my $how ('a chat', 'a call') {
    my $id = $site->session({ conversationId => "c-of $how" });
    my $stream = stream($id);

    $site->add($id, message(m1 => user => 'Hi'));
    $stream->wait_event(1);

    my $other;

    if ($how eq 'a chat') {
        $site->turn(chat('q1'), asks => ['init', 'preload'],
                    headers => { 'X-User' => 'u-2',
                                 'X-Conversation' => "c-of $how" });

    } else {
        $other = $site->session({ userId => 'u-2',
                                  conversationId => "c-of $how" });
    }

    is(join(' ', map { $_->{event} } $stream->wait_end),
       'ad.filled session.closed', "another user, $how: the stream ends");
    is($site->get($id)->status, 404, "another user, $how: and the session");

    next if !$other;

    $stream = stream($other);
    is(mark($other, 'event 1'), 1, 'another user: numbered from 1');
    is($stream->wait_event(1)->{id}, 1, 'another user: the other session');
    $stream->close;
}


# HEAD, and what there is not

{
    my $id = $site->session;
    my $c = $site->nginx->client;
    my $unknown = 'kxs_' . 'a' x (length($id) - 4);

    mark($id, 'event 1');
    $c->request(HEAD => "/kontext/sessions/$id/events", undef);

    my $head = $c->read_response;

    is($head->status, 200, 'HEAD is answered as GET');
    like($head->header('Content-Type'), qr{^text/event-stream\b},
         'HEAD: of the same type');
    $c->get("/kontext/sessions/$id");
    is($c->read_response->json->{sessionId}, $id,
       'HEAD: no body, and the connection goes on');

    foreach my $path ($unknown, 'x', 'kxs_', "${id}x", uc $id) {
        is($site->code($site->call(GET => "sessions/$path/events")),
           'unknown_session', "no stream of $path");
    }

    is($site->call(HEAD => "sessions/$unknown/events")->status, 404,
       'HEAD: an unknown session');
    is($site->code($site->call(GET => "sessions/$id/events/1")),
       'unknown_path', 'nothing is below');
    is($site->code($site->call(PUT => "sessions/$id/events", '{}')),
       'bad_method', 'no PUT');
}


# What a page reports.  A session with an ad that has its message.

my $id = $site->session({ userId => 'u-7', conversationId => 'c-page' });
my $stream = stream($id);

$site->add($id, [ message(m3 => user => 'Which shoes?'),
                  message(m4 => assistant => 'Light ones.') ]);
$site->wait_for($id, sub { $_[0]{ads}{m4} });
$stream->wait_event(1);

my $last = 1;
my %all = (bidId => $BIDS[1], messageId => 'm4', content => 'Light shoes',
           format => 'display', url => 'https://shop.example/?a=1&b=2',
           area => 'cta');
my %needs = (
    'ad.viewed'           => [qw(content format)],
    'ad.clicked'          => [qw(content format url area)],
    'ad.render-started'   => [],
    'ad.render-completed' => [],
    'video.started'       => [],
    'video.completed'     => [],
    'reward.granted'      => [],
);


# reports and returns the event

sub reported {
    my ($name, $data, %args) = @_;
    my $res = $site->report($id, $data, %args);

    is($res->status, 202, "$name: accepted")
        or diag($res->body);
    is_deeply($res->json, { id => $last + 1 }, "$name: its number");

    return $stream->wait_event(++$last);
}


sub refused {
    my ($name, $data, $status, $code, %args) = @_;
    my $res = $site->report($args{id} // $id, $data, %args);

    is($res->status . ' ' . $site->code($res), "$status $code", $name);
}


foreach my $name (sort keys %needs) {
    my %members = (bidId => $BIDS[1], messageId => 'm4',
                   map { $_ => $all{$_} } @{$needs{$name}});
    my $event = reported($name, { name => $name, code => 'inlineAd',
                                  payload => \%members });
    my $payload = $event->{payload};

    is($event->{event}, $name, "$name: in the stream");
    is($event->{json}{name}, $name, "$name: with its name");
    is($event->{json}{code}, 'inlineAd', "$name: with the code");
    is($payload->{$_}, $members{$_}, "$name: with $_")
        foreach 'bidId', @{$needs{$name}};

    # the bid by its other name, beside the name

    delete $members{bidId};
    $event = reported("$name, flat", { name => $name, code => 'inlineAd',
                                       id => $BIDS[1], %members });
    is_deeply($event->{payload}, $payload, "$name, flat: the same");
    is_deeply($event->{json}{code}, 'inlineAd', "$name, flat: with the code");

    # as a creative has it

    $event = reported("$name, id", { name => $name, code => 'inlineAd',
                                     payload => { %members,
                                                  id => uc $BIDS[1] } });
    is_deeply($event->{payload}, $payload,
              "$name, id in capitals: the same");

    # and what it is not without

    refused("$name: not without the bid",
            { name => $name, code => 'inlineAd', payload => { %members } },
            400, 'bad_event');

    foreach my $member (@{$needs{$name}}) {
        my %rest = %members;

        delete $rest{$member};
        refused("$name: not without $member",
                { name => $name, payload => { id => $BIDS[1], %rest } },
                400, 'bad_event');
        refused("$name: $member is a string",
                { name => $name, payload => { id => $BIDS[1], %members,
                                              $member => 7 } },
                400, 'bad_event');
    }

    refused("$name: an ad of nobody",
            { name => $name, payload => { %members, bidId => $BIDS[9] } },
            404, 'unknown_ad');
    refused("$name: no id at all",
            { name => $name, payload => { %members, bidId => 'mine' } },
            400, 'bad_event');
}

{
    my $viewed = { name => 'ad.viewed', code => 'inlineAd',
                   payload => { %all{qw(bidId content format)} } };
    my $payload = reported('ad.viewed', $viewed)->{payload};

    cmp_ok($payload->{revenue} // 'none', '==', 0.0042,
           'ad.viewed: the revenue of the bid is added');
    is($payload->{messageId}, 'm4', 'ad.viewed: the message is the ad\'s');
    cmp_ok(reported('ad.viewed with revenue', { %$viewed, payload => {
        %{$viewed->{payload}}, revenue => 1000 } })->{payload}{revenue},
        '==', 0.0042, 'ad.viewed: the page\'s own revenue does not count');

    is_deeply(reported('ad.error of the page',
                       { name => 'ad.error', payload => {
                           errCode => 'iframe_error',
                           message => 'It is broken' } })->{payload},
              { errCode => 'iframe_error', message => 'It is broken' },
              'ad.error: needs no bid');

    my $error = reported('ad.error of an ad',
                         { name => 'ad.error', payload => {
                             bidId => $BIDS[1], errCode => 'timeout',
                             message => 'No modal' } })->{payload};

    is("$error->{errCode}/$error->{message}", 'timeout/No modal',
       'ad.error: may have one');

    $error = reported('ad.error without anything',
                      { name => 'ad.error' })->{payload};
    is(join(' ', sort keys %{$error // {}}), 'errCode message',
       'ad.error: there is a code and a message at any rate');
    refused('ad.error: an ad of nobody',
            { name => 'ad.error', payload => { bidId => $BIDS[9],
                                               errCode => 'x',
                                               message => 'y' } },
            404, 'unknown_ad');

    # members that it does not know are nobody's

    my $more = { name => 'ad.viewed', code => 'inlineAd', who => 'me',
                 payload => { %{$viewed->{payload}}, who => 'me',
                              skan => { version => '4.0' }, price => 7 } };

    is_deeply(reported('ad.viewed with more', $more)->{payload}, $payload,
              'ad.viewed: members of other names are not told');

    # a beacon

    foreach my $type ('text/plain', 'text/plain;charset=UTF-8',
                      'application/json; charset=utf-8', 'TEXT/PLAIN')
    {
        is(reported("$type", $viewed,
                    headers => { 'Content-Type' => $type })->{event},
           'ad.viewed', "$type: taken");
    }

    foreach my $type ('text/html', 'application/x-www-form-urlencoded',
                      'multipart/form-data; boundary=x', 'text/plainer')
    {
        refused("$type: not taken", $viewed, 415, 'media_type',
                headers => { 'Content-Type' => $type });
    }

    # of another session

    my $mine = $site->session;
    my $other = $site->session;

    $ads->on('/preload', 200, { sessionId => $SESSION, bids => [
        { %$bid, bidId => $BIDS[5] } ] });
    $site->add($other, message(m1 => user => 'Hi'));
    $site->settled($other, 'filled');
    refused('the ad of another session',
            { name => 'video.started', payload => { id => $BIDS[5] } },
            404, 'unknown_ad', id => $mine);
    is($site->report($other, { name => 'video.started',
                               payload => { id => $BIDS[5] } })->status, 202,
       'its own ad, although it has no message yet');
    $ads->on('/preload', 200, { sessionId => $SESSION, bids => [ $bid ] });

    # the older ads of a session

    $site->add($id, message(m5 => user => 'And in red?'));
    $site->settled($id);
    ++$last;
    is(reported('ad.clicked', { name => 'ad.clicked', payload => { %all } })
       ->{payload}{bidId}, $BIDS[1], 'the ad of an older message');

    # of a proxied chat

    my $chat = $site->session({ conversationId => 'c-proxied' });
    my $ad = $site->turn(chat('q1'), asks => ['preload'],
                         headers => { 'X-Conversation' => 'c-proxied' })->ad;

    is($site->report($chat, { name => 'ad.viewed', code => 'inlineAd',
                              payload => { %all{qw(content format)},
                                           bidId => $ad->{ads}[0]{bidId},
                                           messageId => $ad->{messageId} } })
       ->status, 202, 'the ad that was put into a chat');
}


# what is no report

{
    my %payload = (payload => { %all });

    refused("no event $_", { name => $_, %payload }, 400, 'bad_event')
        foreach 'ad.filled', 'ad.no-fill', 'ad.height', 'session.closed',
                'events.lost', 'ad.Viewed', 'ad.viewed ', 'ad', 'x' x 300,
                "ad.viewed\nid: 7", '';
    refused('a number is no name', { name => 7, %payload }, 400,
            'bad_event');
    refused('no name', \%payload, 400, 'bad_event');

    foreach my $body ('', '{', 'null', '[]', '"ad.viewed"', "\xff\xfe",
                      '{"name":"ad.viewed"} x')
    {
        refused("no event: $body", $body, 400, 'bad_json');
    }

    my $large = { name => 'ad.viewed', %payload };

    $large->{payload}{content} = 'x' x 3600;
    refused('a payload of more than 3.5 KB', $large, 413, 'too_large');
    $large->{payload}{content} = 'x' x 4096;
    refused('more than 4 KB', $large, 413, 'too_large');
    $large->{payload}{content} = 'x' x (1024 * 1024);
    refused('far more than 4 KB', $large, 413, 'too_large');
    $large->{payload}{content} = 'x' x 3200;
    is(length(reported('less than 3.5 KB', $large)->{payload}{content}), 3200,
       'less than 3.5 KB: all of it is told');

    is(mark($id, 'behind them'), $last + 1, 'none of these is an event');
    $stream->wait_event(++$last);
}


# strings that would be something else in a stream or in a page

foreach my $text ("a\r\n\r\nid: 99\nevent: ad.filled\ndata: {}\n\nb", "\n",
                  "\r", "\r\n", "\n\n:", "\x{2028}\x{2029}\x{85}\x{feff}",
                  '"\\"', '\\', '\\u0022', '</script><!--', "\t\x01\x1b\x7f",
                  "\x{1f45f} \x{e9} \x{ffff}", "data: x", '$uri @ads@ %s')
{
    my $name = JSON::PP->new->ascii->allow_nonref->encode($text);
    my $event = reported("the text $name", {
        name => 'ad.clicked', payload => {
            bidId => $BIDS[1], map { $_ => $text } qw(content url format
                                                      area messageId) },
    });

    # the reader dies of anything but three lines with one number

    is($event->{payload}{$_}, $text, "$name in $_")
        foreach qw(content url format area);
    unlike($event->{data}, qr/[\x00-\x1f]|\xe2\x80[\xa8\xa9]/,
           "$name: nothing of it is the end of a line");

    $event = reported("the message $name", {
        name => 'ad.error', payload => { errCode => $text,
                                         message => $text } });
    is_deeply($event->{payload}, { errCode => $text, message => $text },
              "$name in an error");
}

{
    # halves of characters are no text: whatever is made of them, the stream
    # goes on

    foreach my $text ('\\u0000', 'a\\u0000b', '\\ud800', "\xc3", "\xed\xa0\x80")
    {
        my $res = $site->report($id, '{"name":"ad.error","payload":'
                                     . '{"errCode":"x","message":"' . $text
                                     . '"}}');

        like($res->status, qr/^(?:202|400)$/, "the text $text");

        next if $res->status != 202;

        is($res->json->{id}, ++$last, "the text $text: its number");
        is($stream->wait_event($last)->{id}, $last, "the text $text: one event");
    }
}

is(ids($stream->events), join(' ', 1 .. $last),
   'a page\'s events: one numbering, without a gap');


# the log

{
    my $seen = $site->nginx->read_file('logs/page.log');
    my $of = sub {
        my ($data) = @_;
        my $offset = length $seen;

        $site->report($id, $data);
        ++$last;
        $seen = wait_until('the log', sub {
            my $log = $site->nginx->read_file('logs/page.log');

            return length $log > $offset && $log =~ /\n\z/ ? $log : undef;
        });

        return json(substr($seen, $offset));
    };

    is_deeply($of->({ name => 'ad.viewed', code => 'inlineAd',
                      payload => { %all{qw(bidId messageId content
                                           format)} } }),
              { status => 202, event => 'ad.viewed', bid_id => $BIDS[1],
                code => 'inlineAd', message_id => 'm4', revenue => '0.0042',
                session_user => 'u-7', session_conversation => 'c-page',
                reason => '' },
              'the log of a report: who saw what, and what it earned');

    my $log = $of->({ name => 'video.completed', id => $BIDS[1] });

    is($log->{event}, 'video.completed', 'the log of another: its name');
    is($log->{bid_id}, $BIDS[1], 'the log of another: its bid');
    is($log->{session_user}, 'u-7', 'the log of another: its user');

    $log = $of->({ name => 'ad.error', payload => { errCode => 'x',
                                                    message => 'y' } });
    is("$log->{event}/$log->{bid_id}/$log->{revenue}", 'ad.error//',
       'the log of an error: no bid');
}

# a graceful stop ends what listens

{
    my @streams = ($stream, map { stream($id) } 1 .. 3);

    $site->nginx->stop;
    is(eval { $_->wait_end; 'ends' } // 'is cut off', 'ends',
       'nginx stops: a stream ends, with its last chunk') foreach @streams;
}

$site->stop_ok;


# Readers that do not read.  The kernel takes some hundred kilobytes, and nginx
# has to keep what is left, or not to.

sub memory_of {
    my ($pid) = @_;

    open(my $fh, '<', "/proc/$pid/status") or die "status of $pid: $!";
    local $/;

    return <$fh> =~ /^VmRSS:\s+(\d+) kB/m ? $1 : die 'no VmRSS';
}

{
    my $slow = ApiSite->new(listen => ' sndbuf=4k');
    my $id = $slow->session;
    my $c = $slow->nginx->client;
    my ($n, $text) = (0, 'x' x 2000);
    my $more = sub {
        my $poster = $slow->nginx->client;
        mark($id, 'event ' . ++$n . " $text", site => $slow,
             client => $poster) foreach 1 .. $_[0];
    };

    my $stream = stream($id, site => $slow, client => $c);

    is($stream->status, 200, 'a slow reader');
    $more->(100);

    my $pid = $slow->nginx->worker_pid;
    my $memory = memory_of($pid);

    $more->(500);

    my $grown = memory_of($pid) - $memory;

    SKIP: {
        skip 'memory that is free is kept by the sanitizer', 1
            if $slow->nginx->binary =~ /asan/;

        cmp_ok($grown, '<', 512, 'a slow reader costs no memory')
            or diag("$grown KB");
    }

    $stream->wait_id($n);

    my @events = $stream->events;
    my ($at, $lost, $wrong) = (0, 0, 0);

    while (my $event = shift @events) {
        if ($event->{event} eq 'events.lost') {
            $at += $event->{payload}{count};
            $lost += $event->{payload}{count};
            next;
        }

        $wrong++ if $event->{id} != ++$at;
    }

    is($wrong, 0, 'a slow reader: what has come, and what it was told is '
                  . 'lost, make all of them');
    is($at, $n, 'a slow reader: up to the last');
    cmp_ok($lost, '>', $n / 2, 'a slow reader: most are lost');

    # and on, with no loss

    my @seen = $stream->events;

    foreach (1 .. 40) {
        $more->(1);
        $stream->wait_event(scalar(@seen) + $_);
    }

    my @new = $stream->events;

    is(ids(@new[@seen .. $#new]), join(' ', $n - 39 .. $n),
       'a slow reader that reads again: all in order');
    $stream->close;

    # a quick one for long

    SKIP: {
        skip 'memory that is free is kept by the sanitizer', 1
            if $slow->nginx->binary =~ /asan/;

        $c = $slow->nginx->client;
        $stream = stream($id, site => $slow, client => $c, last => $n);
        $memory = memory_of($pid);

        foreach (1 .. 40) {
            $more->(25);
            $c->read_until(qr/"event $n /);

            # what was read has not to be read again

            $c->response->{body} = $c->{raw} = '';
            $c->response->{chunks} = [];
        }

        $grown = memory_of($pid) - $memory;
        cmp_ok($grown, '<', 512, 'a stream of a thousand events costs no '
                                 . 'memory') or diag("$grown KB");
        $stream->close;
    }

    # many at once, and nobody reads: they end all the same, and who has not
    # had everything is told

    my @streams = map { stream($id, site => $slow, last => $n) } 1 .. 4;
    my $from = $n;

    $more->(200);
    $slow->close($id);

    foreach my $stream (@streams) {
        my @events = $stream->wait_end;
        my $n = $from;

        is($events[-1]{event}, 'session.closed',
           'a slow reader: told of the end');
        $n += defined $_->{id} ? 1 : $_->{payload}{count} // 0
            foreach @events;
        is($n, $from + 200,
           'a slow reader: what has come and what is lost is all there was');
    }

    $slow->stop_ok;
}


# idle sessions, and a full zone

{
    my $idle = ApiSite->new(
        http   => 'kontext_zone kontext:1m idle=1s;',
        server => <<'CONF',
        location /ping/ {
            kontext_api ping=200ms;
            kontext_publisher_token acme-dev;
        }
CONF
    );
    my $id = $idle->session;
    my $stream = stream($id, site => $idle, api => '/ping');

    mark($id, 'event 1', site => $idle);
    is(join(' ', map { $_->{event} } $stream->wait_end),
       'ad.error session.closed', 'an idle session: told, and the end');
    is($idle->get($id)->status, 404, 'an idle session is closed');
    $idle->stop_ok;
}

{
    my $small = ApiSite->new(
        http   => 'kontext_zone kontext:48k;',
        server => <<'CONF',
        location /ping/ {
            kontext_api ping=200ms;
            kontext_publisher_token acme-dev;
        }
CONF
    );
    my $id = $small->session;
    my $stream = stream($id, site => $small, api => '/ping');
    my $n = 0;

    mark($id, 'event 1', site => $small);
    $stream->wait_event(1);

    wait_until('the zone to be full', sub {
        my $res = $small->create({ userId => "u-$n",
                                   conversationId => 'other-' . $n++ });

        is($res->status, 201, "session $n") if $res->status != 201;

        return $stream->ended;
    });

    cmp_ok($n, '>', 10, "a full zone: $n sessions have come");
    is(join(' ', map { $_->{event} } $stream->wait_end),
       'ad.error session.closed',
       'a full zone: the session not used for longest makes room, and tells');
    is($small->get($id)->status, 404, 'a full zone: it is closed');
    $small->stop_ok;
}


# as many streams as the zone allows

{
    my $two = ApiSite->new(
        workers => 2,
        listen  => ' reuseport',
        http    => 'kontext_zone kontext:1m streams=2;',
        server  => 'location = /pid { kontext off; return 200 "$pid\n"; }',
    );
    my @ids = map { $two->session } 1 .. 2;
    my $free = sub { $two->nginx->client->get('/pid')->read_response };

    # a connection to this worker; the kernel chooses it by the client's port

    my $client_of = sub {
        my ($pid) = @_;

        return wait_until("a connection to worker $pid", sub {
            my $c = $two->nginx->client;

            return $c->get('/pid')->read_response->body == $pid ? $c : undef;
        });
    };
    my @workers = $two->nginx->worker_pids;
    my $open = sub {
        my ($n, $worker) = @_;

        return stream($ids[$n], site => $two,
                      client => $client_of->($worker));
    };
    my $refused = sub {
        my ($name) = @_;

        foreach my $pid (@_[1 .. $#_]) {
            my $res = $open->(0, $pid);

            is($res->status, 503, "$name: no third one in worker $pid");
            is($two->code($res->client->read_response), 'too_many_streams',
               "$name: says why");
        }
    };

    my @streams = ($open->(0, $workers[0]), $open->(1, $workers[1]));

    is($_->status, 200, 'two streams') foreach @streams;
    $refused->('two streams', @workers);
    is($two->call(HEAD => "sessions/$ids[0]/events")->status =~ /^(?:200|503)$/
       ? 'answered' : 'not', 'answered', 'HEAD is answered all the same');

    # those that are there are not harmed

    mark($ids[0], 'event 1', site => $two);
    is($streams[0]->wait_event(1)->{id}, 1, 'the others go on');

    # the client goes away: when nginx has seen it, there is room

    foreach my $how ('close', 'reset') {
        $streams[0]->client->$how;
        $streams[0] = wait_until('room', sub {
            my $stream = $open->(0, $workers[1]);

            return $stream->status == 200 ? $stream : undef;
        });
        is($streams[0]->status, 200, "$how: there is room");
        $refused->("$how, and another has come", $workers[0]);
    }

    # the session ends

    $two->close($ids[1]);
    is(($streams[1]->wait_end)[-1]{event}, 'session.closed',
       'a session is closed');
    $ids[1] = $two->session;
    $streams[1] = $open->(1, $workers[1]);
    is($streams[1]->status, 200, 'a stream has ended: there is room');
    $refused->('and another has come', $workers[0]);

    # HEAD takes no room for long

    $_->close foreach @streams;
    wait_until('room', sub {
        my $stream = $open->(0, $workers[0]);

        $stream->close;
        return $stream->status == 200;
    });

    foreach (1 .. 5) {
        wait_until('HEAD to be answered', sub {
            $two->call(HEAD => "sessions/$ids[0]/events")->status == 200;
        });
    }

    @streams = map {
        my $n = $_;

        wait_until('room', sub {
            my $stream = $open->($n, $workers[1]);

            return $stream->status == 200 ? $stream : undef;
        });
    } 0, 1;
    $refused->('both in one worker', $workers[0]);

    # the worker is killed

    kill('KILL', $workers[1]);
    like($_->client->wait_closed, qr/eof|reset/, 'a worker is killed')
        foreach @streams;
    $two->nginx->wait_log(qr/worker process $workers[1] exited/);

    my ($new) = wait_until('a new worker', sub {
        my @pids = $two->nginx->worker_pids;

        return @pids > 2 ? $pids[2] : undef;
    });

    @streams = ($open->(0, $workers[0]), $open->(1, $new));
    is($_->status, 200, 'a worker is killed: there is room for two')
        foreach @streams;
    $refused->('a worker is killed', $workers[0], $new);
    mark($ids[0], 'event 2', site => $two);
    is($streams[0]->wait_event(2)->{id}, 2,
       'a worker is killed: the numbers go on');
    $_->close foreach @streams;

    $two->stop_ok(allow => [ Kontext::Nginx::of_killed($workers[1]) ]);
}


done_testing;
