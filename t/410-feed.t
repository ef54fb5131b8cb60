#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Messages that an app feeds itself: what is asked for them and when, which
# message an ad goes to, and how long it is there.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Scalar::Util ();

use Kontext::Test;
use ApiSite;
use ChatSite qw(nulls_in type_of);

my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my @SESSIONS = map { "019a5c20-11aa-7e02-8b6c-0d4e92f1a3c$_" } 0 .. 9;
my @BIDS = map { "7c9e6679-7425-40de-944b-e07fc1f90a0$_" } 0 .. 9;
my $UUID = qr/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/;
my $TIME = qr/\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\z/;

my $site = ApiSite->new(
    http   => "kontext_consent ask;\n",
    server => <<'CONF',
        location /two/ {
            kontext_api;
            kontext_publisher_token acme-dev;
            kontext_placements inlineAd box;
        }

        location /looks/ {
            kontext_api;
            kontext_publisher_token acme-dev;
            kontext_frame_origin https://frames.example:8443;
            kontext_theme "v2 light/dark&x";
            kontext_label 'Ad "here"';
            kontext_sdk name=sdk-react platform=web version=4.0.1;
        }

        # chats whose answers wait for no ad

        location /late/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 0;
            proxy_pass http://@llm@/;
        }
CONF
);

my $ads = $site->ads;
my $conversations = 0;
my $markers = 0;


sub user { return $site->message($_[0], user => $_[1] // "text of $_[0]",
                                 @_[2 .. $#_]) }
sub reply { return $site->message($_[0], assistant => $_[1] // "text of $_[0]",
                                  @_[2 .. $#_]) }
sub bid { return Kontext::Mock->bid(bidId => $BIDS[$_[0]],
                                    @_[1 .. $#_]) }
sub answers { $ads->on('/preload', 200, @_) }
sub ids { return join(' ', map { $_->{id} } @{$_[0]}) }


# a new session: its id and its conversation

sub fresh {
    my ($data, %args) = @_;
    my $conversation = 'feed-' . ++$conversations;

    return ($site->session({ conversationId => $conversation,
                             %{$data // {}} }, %args), $conversation);
}


# adds and returns the answer as data

sub feed {
    my ($id, $data, %args) = @_;
    my $res = $site->add($id, $data, %args);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($res->status, 202, 'messages are taken') || diag($res->body);

    return $res->status == 202 ? $res->json : {};
}


# the preloads of a conversation up to now, and the next one of them

my %conversation_of;

sub preloads {
    my ($conversation) = @_;

    return grep {
        ($conversation_of{Scalar::Util::refaddr($_)}
             //= $_->json->{conversationId}) eq $conversation
    } $ads->requests('/preload');
}

my %given;

sub next_preload {
    my ($conversation) = @_;

    return wait_until("a preload of $conversation", sub {
        my ($next) = grep { !$given{Scalar::Util::refaddr($_)} }
                          preloads($conversation);

        $given{Scalar::Util::refaddr($next)} = 1 if $next;

        return $next;
    });
}


# When this returns, what was due before would have been sent: a preload of
# another session, which became due later, is there.

sub later {
    my ($id, $conversation) = fresh();

    $site->add($id, user('later'));

    my $preload = next_preload($conversation);

    $preload->respond(200, bid(0)) if !$preload->answered;
    $site->settled($id);

    return;
}


# the bids that a message has: "<number>:<code> ...", or the refusal's code

sub ad_of {
    my ($id, $message, %args) = @_;
    my $res = $site->ad($id, $message, %args);
    my %number = map { ($BIDS[$_] => $_) } 0 .. $#BIDS;

    return $res->status . ' ' . $site->code($res) if $res->status != 200;

    return join(' ', map { ($number{$_->{bidId}} // $_->{bidId})
                           . ":$_->{code}" } @{$res->json->{ads}});
}


# what the readers of the events have been told, in short

sub events_of {
    my ($id) = @_;
    my $marker = 'marker-' . ++$markers;
    my $res = $site->report($id, { name => 'ad.error', payload => {
        errCode => $marker, message => 'x' } });

    die 'no event: ' . $res->body if $res->status != 202;

    my $c = $site->start(GET => "sessions/$id/events");
    my $text = $c->read_until(qr/\Q$marker\E.*\n\n/);

    $c->close;

    return join(', ', map {
        my $payload = $_->{payload};

        $_->{name} . ' ' . ($payload->{bidId} // $payload->{skipCode}
                            // $payload->{errCode} // '');
    } grep { ($_->{payload}{errCode} // '') !~ /\Amarker-/ }
      map { json($_) } sse_data($text));
}


# the worker stands still while the test does this, and has everything at once

sub at_once {
    my ($sub) = @_;
    my $pid = $site->nginx->worker_pid;
    my $state = sub {
        open(my $fh, '<', "/proc/$pid/stat") or return '';

        return <$fh> =~ /\) (\S)/ ? $1 : '';
    };

    kill('STOP', $pid);
    wait_until('the worker to stand still', sub { $state->() =~ /[Tt]/ });

    my @result = eval { $sub->() };
    my $error = $@;

    kill('CONT', $pid);
    die $error if $error;

    return @result;
}


# the plainest case, in full

{
    my ($id, $conversation) = fresh({ userId => 'u-plain' });
    my %headers = ('User-Agent' => 'Mozilla/5.0 (X11; Linux x86_64) Some/1.0',
                   'Accept-Language' => 'en-GB,en;q=0.8',
                   'Cookie' => 'secret=1', 'Authorization' => 'Bearer secret',
                   'X-Secret' => 'secret', 'Referer' => 'http://secret/');
    my ($init) = grep { $_->json->{userId} eq 'u-plain' }
                      $ads->requests('/init');

    is_deeply(feed($id, user('m1', 'Which shoes?'), headers => \%headers),
              { accepted => 1, repeated => 0, preload => 'scheduled' },
              'a user\'s message: a preload is due');

    my $preload = next_preload($conversation);
    my $body = $preload->json;

    is($preload->method, 'POST', '/preload: method');
    is($preload->uri, '/preload', '/preload: path, no query');
    is($preload->header('Content-Type'), 'application/json',
       '/preload: type');
    is($preload->header('Content-Length'), length $preload->body,
       '/preload: length');
    is($preload->header('Kontextso-Publisher-Token'), 'acme-dev',
       '/preload: token');
    is($preload->header('Kontextso-Is-Disabled'), '0',
       '/preload: ads are wanted');

    # nginx's own: it says "close" where connections are not kept by default

    my @own = $site->nginx->version < 1029007 ? 'connection' : ();

    is_deeply([ sort map { lc $_->[0] } @{$preload->headers} ],
              [ sort @own, qw(host content-length content-type
                        kontextso-publisher-token kontextso-is-disabled) ],
              '/preload: these headers and no other');
    is_deeply([ sort keys %$body ],
              [ sort qw(publisherToken userId conversationId installId
                        enabledPlacementCodes messages sdk device) ],
              '/preload: these members and no other');
    is_deeply([ @$body{qw(publisherToken userId conversationId)} ],
              [ 'acme-dev', 'u-plain', $conversation ], '/preload: who');
    is_deeply($body->{enabledPlacementCodes}, [ 'inlineAd' ],
              '/preload: placements');
    is($body->{installId}, $init->json->{installId},
       '/preload: installId is that of /init');
    like($body->{installId}, qr/\A$UUID\z/, '/preload: it is a UUID');
    is_deeply($body->{sdk}, $init->json->{sdk}, '/preload: so is sdk');
    is_deeply([ nulls_in($body) ], [], '/preload: no nulls');
    unlike($preload->head . $preload->body, qr/secret/i,
           '/preload: nothing of the client that is not asked for');
    is($body->{device}{network}{userAgent}, $headers{'User-Agent'},
       '/preload: the device is the user\'s');
    is($body->{device}{os}{locale}, 'en-GB', '/preload: its language');
    is_deeply([ sort map { keys %$_ } @{$body->{device}}{'hardware', 'os'} ],
              [ qw(locale name timezone type version) ],
              '/preload: what a device needs');

    my $message = $body->{messages}[0];

    is(scalar @{$body->{messages}}, 1, '/preload: one message');
    is_deeply([ sort keys %$message ], [ qw(content createdAt id role) ],
              '/preload: members of a message');
    is_deeply([ @$message{qw(id role content)} ],
              [ 'm1', 'user', 'Which shoes?' ], '/preload: the message');
    like($message->{createdAt}, $TIME, '/preload: its time');

    my $state = $site->settled($id, 'filled');

    is($state->{serverSessionId}, $SESSION, 'the session of the ad server');
    is_deeply($state->{messages},
              [ { id => 'm1', role => 'user',
                  createdAt => $message->{createdAt} } ],
              'the messages of the session, without their texts');
    is_deeply($state->{ads}, {}, 'the ad has no message yet');

    is_deeply(feed($id, reply('m2')),
              { accepted => 1, repeated => 0, preload => 'none' },
              'an answer: nothing is due');

    my $ad = { bidId => Kontext::Mock->bid->{bids}[0]{bidId},
               code => 'inlineAd', label => 'Sponsored',
               frameUrl => 'https://server.megabrain.co/api/frame/'
                           . Kontext::Mock->bid->{bids}[0]{bidId}
                           . '?code=inlineAd&messageId=m2&sdk=sdk-js' };
    my $res = $site->ad($id, 'm2');

    is($res->status, 200, 'the ad of the answer: 200');
    is_deeply($res->json, { messageId => 'm2', ads => [ $ad ] },
              'the ad of the answer: all of it, and no revenue');
    is_deeply($site->state($id)->{ads}, { m2 => [ $ad ] },
              'the ad of the answer: in the session');
    is(ad_of($id, 'm1'), '404 no_ad', 'the user\'s message has none');
    is(ad_of($id, 'm9'), '404 no_ad', 'nor has one that is not there');
    is($site->call(HEAD => "sessions/$id/ads/m2")->header('Content-Length'),
       length $res->body, 'HEAD of the ad');
    is(events_of($id), "ad.filled $ad->{bidId}", 'the event');
}

# with all that may be in it

{
    my %options = (
        character  => { id => 'a', name => 'A', avatarUrl => 'https://a.b/c',
                        greeting => 'Hi', persona => 'p', tags => [ 't' ],
                        isNsfw => $YES },
        regulatory => { gdpr => 0, coppa => 1, gdprConsent => 'c', gpp => 'g',
                        gppSid => [ 2 ], usPrivacy => '1YNN' },
        variantId  => 'v', userEmail => 'a@example.com',
    );
    my ($id, $conversation) = fresh(\%options);

    answers(Kontext::Mock->bid(sessionId => uc $SESSIONS[1]));
    feed($id, user('m1'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    feed($id, [ reply('m2'), user('m3') ]);

    my $body = next_preload($conversation)->json;

    is_deeply([ sort keys %$body ],
              [ sort qw(publisherToken userId conversationId installId
                        enabledPlacementCodes messages sdk device sessionId),
                     keys %options ], 'all members of /preload');
    is_deeply($body->{$_}, $options{$_}, "all members: $_")
        foreach sort keys %options;
    is($body->{sessionId}, $SESSIONS[1],
       'all members: sessionId, in lower case whatever came');
    is_deeply([ map { "$_->{id} $_->{role} $_->{content}" }
                    @{$body->{messages}} ],
              [ 'm1 user text of m1', 'm2 assistant text of m2',
                'm3 user text of m3' ], 'all members: messages, oldest first');
    is_deeply([ nulls_in($body) ], [], 'all members: no nulls');
    answers(bid(1));
}


# a burst is one preload

{
    my ($id, $conversation) = fresh();

    is_deeply(feed($id, [ map { user("m$_") } 1 .. 5 ]),
              { accepted => 5, repeated => 0, preload => 'scheduled' },
              'a burst in a list');
    is(ids(next_preload($conversation)->json->{messages}), 'm1 m2 m3 m4 m5',
       'a burst in a list: all of it, the newest last');
    later();
    is(scalar(my @all = preloads($conversation)), 1,
       'a burst in a list: one preload');

    # calls on one connection, without a wait

    ($id, $conversation) = fresh();

    my $c = $site->nginx->client;

    $c->send(join('', map {
        my $body = json(user("m$_"));

        "POST /kontext/sessions/$id/messages HTTP/1.1\r\nHost: x\r\n"
        . "Content-Type: application/json\r\nContent-Length: "
        . length($body) . "\r\n\r\n$body"
    } 1 .. 5));
    is($c->read_response->json->{preload}, 'scheduled',
       "a burst on a connection: call $_") foreach 1 .. 5;
    is(ids(next_preload($conversation)->json->{messages}), 'm1 m2 m3 m4 m5',
       'a burst on a connection: all of it');
    later();
    is(scalar(@all = preloads($conversation)), 1,
       'a burst on a connection: one preload');

    # calls on many connections at the same time

    ($id, $conversation) = fresh();

    my @clients = map { $site->nginx->client } 1 .. 6;

    $site->get($id, client => $_) foreach @clients;

    at_once(sub {
        foreach my $n (0 .. $#clients) {
            $site->start(POST => "sessions/$id/messages", user("m$n"),
                         client => $clients[$n]);
        }
    });
    is($_->read_response->status, 202, 'a burst on many connections')
        foreach @clients;

    my $sent = ids(next_preload($conversation)->json->{messages});

    is($sent, ids($site->state($id)->{messages}),
       'a burst on many connections: all of it, in the order of the session');
    is(join(' ', sort split / /, $sent), 'm0 m1 m2 m3 m4 m5',
       'a burst on many connections: each of them');
    later();
    is(scalar(@all = preloads($conversation)), 1,
       'a burst on many connections: one preload');
}


# a newer message of the user cancels what runs

{
    my ($id, $conversation) = fresh();

    $ads->hold('/preload');
    feed($id, user('m1'));

    my $first = next_preload($conversation);

    is($site->state($id)->{preload}, 'pending', 'a preload runs');
    feed($id, user('m2'));
    is($first->wait_closed, 'eof', 'a newer message: it is cancelled');

    my $second = next_preload($conversation);

    is(ids($second->json->{messages}), 'm1 m2',
       'a newer message: it is asked for');
    ok(!exists $second->json->{sessionId}, 'nothing has come of the first');
    $second->respond(200, bid(2));
    $site->settled($id, 'filled');
    feed($id, reply('m3'));
    is(ad_of($id, 'm3'), '2:inlineAd', 'the ad is that of the second');
    is(events_of($id), "ad.filled $BIDS[2]",
       'cancelled: without an event');
    $site->nginx->barrier;
    is(scalar(grep { ($_->json->{additionalData}{conversationId} // '')
                     eq $conversation } $ads->requests('/error')), 0,
       'cancelled: without a report');

    # when answer and message come at once, either may be first: the answer is
    # not used, but for its sessionId

    foreach my $round (1 .. 5) {
        my ($id, $conversation) = fresh();
        my $c = $site->nginx->client;

        $site->get($id, client => $c);
        feed($id, user('m1'));

        my $first = next_preload($conversation);

        at_once(sub {
            $first->respond(200, bid(3, sessionId => $SESSIONS[3]))
                  ->wait_sent;
            $site->start(POST => "sessions/$id/messages", user('m2'),
                         client => $c);
        });
        is($c->read_response->status, 202, "at once, round $round");

        my $second = next_preload($conversation);
        my $came = $second->json->{sessionId};
        my $filled = events_of($id) eq "ad.filled $BIDS[3]";

        ok(!defined $came || $came eq $SESSIONS[3],
           "at once, round $round: no other sessionId");
        is($came, $SESSIONS[3], "at once, round $round: it is kept")
            if $filled;
        $second->respond(200, { sessionId => $SESSIONS[4], bids => [] });
        $site->settled($id, 'no_fill');
        feed($id, reply('m3'));
        is(ad_of($id, 'm3'), '404 no_ad',
           "at once, round $round: its ad is lost");
    }

    answers(bid(1));
}


# an answer neither cancels nor asks

{
    my ($id, $conversation) = fresh();

    is_deeply(feed($id, [ reply('m1'), reply('m2') ]),
              { accepted => 2, repeated => 0, preload => 'none' },
              'answers alone: nothing is due');
    later();
    is(scalar(my @all = preloads($conversation)), 0,
       'answers alone: nothing is asked');
    is($site->state($id)->{preload}, 'none', 'answers alone: the state');

    $ads->hold('/preload');
    feed($id, user('m3'));

    my $preload = next_preload($conversation);

    feed($id, $_) foreach reply('m4'), reply('m5');
    later();
    is($preload->closed, undef, 'an answer: the preload goes on');
    is($site->state($id)->{preload}, 'pending', 'an answer: the state');
    is(scalar(@all = preloads($conversation)), 1,
       'an answer: nothing more is asked');
    $preload->respond(200, bid(1));
    $site->settled($id, 'filled');
    answers(bid(1));
}


# what is sent ends with the user's message, whatever comes behind it

{
    my ($id, $conversation) = fresh();

    feed($id, [ user('m1'), reply('m2'), reply('m3') ]);
    is(ids(next_preload($conversation)->json->{messages}), 'm1',
       'answers in the same call are not sent');
    $site->settled($id, 'filled');
    is(ids($site->state($id)->{messages}), 'm1 m2 m3', 'but they are there');

    # two calls at once

    ($id, $conversation) = fresh();

    my $c = $site->nginx->client;

    $c->send(join('', map {
        my $body = json($_);

        "POST /kontext/sessions/$id/messages HTTP/1.1\r\nHost: x\r\n"
        . "Content-Type: application/json\r\nContent-Length: "
        . length($body) . "\r\n\r\n$body"
    } user('m1'), reply('m2')));
    $c->read_response foreach 1 .. 2;
    is(ids(next_preload($conversation)->json->{messages}), 'm1',
       'nor are answers of the next call');
    $site->settled($id, 'filled');
    is(ad_of($id, 'm2'), '1:inlineAd', 'it has the ad');

    feed($id, user('m3'));
    is(ids(next_preload($conversation)->json->{messages}), 'm1 m2 m3',
       'the next time they are');
}


# the last 30 messages

{
    my $role = sub { return $_[0] % 2 ? user("m$_[0]") : reply("m$_[0]") };
    my $last = sub { return join(' ', map { "m$_" } $_[0] - 29 .. $_[0]) };
    my ($id, $conversation) = fresh();

    is(feed($id, [ map { $role->($_) } 1 .. 35 ])->{accepted}, 35,
       '35 messages');
    is(ids(next_preload($conversation)->json->{messages}), $last->(35),
       '35 messages: the last 30 are sent');
    is(ids($site->state($id)->{messages}), $last->(35),
       '35 messages: the last 30 are there');

    feed($id, $role->($_)) foreach 36 .. 39;
    next_preload($conversation) while scalar(preloads($conversation)) < 2;
    $site->settled($id, 'filled');

    my ($preload) = grep { $_->json->{messages}[-1]{id} eq 'm39' }
                         preloads($conversation);

    is(ids($preload->json->{messages}), $last->(39),
       'one by one: the last 30 are sent');
    is(ids($site->state($id)->{messages}), $last->(39),
       'one by one: the last 30 are there');

    ($id, $conversation) = fresh();
    feed($id, [ map { $role->($_) } 1 .. 29 ]);
    is(scalar @{next_preload($conversation)->json->{messages}}, 29,
       '29 messages: all are sent');
    feed($id, [ $role->(30), user('m31') ]);
    is(ids(next_preload($conversation)->json->{messages}), $last->(31),
       '31 messages: the first is not');
}


# a conversation taken up again is one preload

{
    my ($id, $conversation) = fresh();
    my @history = map { $_ % 2 ? user("h$_") : reply("h$_") } 1 .. 20;

    answers(bid(4));
    feed($id, \@history);

    my $preload = next_preload($conversation);

    is(ids($preload->json->{messages}), join(' ', map { "h$_" } 1 .. 19),
       'a history: for the newest message of the user');
    ok(!exists $preload->json->{sessionId}, 'a history: no sessionId');
    $site->settled($id, 'filled');
    is_deeply([ keys %{$site->state($id)->{ads}} ], [ 'h20' ],
              'a history that ends with an answer: that has the ad');
    later();
    is(scalar(my @all = preloads($conversation)), 1,
       'a history: one preload');

    ($id, $conversation) = fresh();
    feed($id, { messages => [ @history[0 .. 18] ] });
    next_preload($conversation);
    $site->settled($id, 'filled');
    is_deeply($site->state($id)->{ads}, {},
              'a history that ends with the user: nobody has the ad');
    feed($id, reply('h20'));
    is(ad_of($id, 'h20'), '4:inlineAd', 'the next answer has it');
    answers(bid(1));
}


# times

{
    my @times = (
        [ '2026-03-02T18:20:11Z', '2026-03-02T18:20:11.000Z' ],
        [ '2026-03-02T18:20:11.4Z', '2026-03-02T18:20:11.400Z' ],
        [ '2026-03-02T18:20:11.045Z', '2026-03-02T18:20:11.045Z' ],
        [ '2026-03-02T18:20:11.045999Z', '2026-03-02T18:20:11.045Z' ],
        [ '2026-03-02T18:20:11.123456789Z', '2026-03-02T18:20:11.123Z' ],
        [ '2026-03-02T20:20:11.5+02:00', '2026-03-02T18:20:11.500Z' ],
        [ '2026-03-01T23:20:11-05:30', '2026-03-02T04:50:11.000Z' ],
        [ '2026-01-01T00:30:00+01:00', '2025-12-31T23:30:00.000Z' ],
        [ '2024-02-29T00:00:00Z', '2024-02-29T00:00:00.000Z' ],
        [ '2024-02-29T23:59:59.999-00:01', '2024-03-01T00:00:59.999Z' ],
        [ '2026-03-02T18:20:11+00:00', '2026-03-02T18:20:11.000Z' ],
        [ 1772475611045, '2026-03-02T18:20:11.045Z' ],
        [ 1772475611000, '2026-03-02T18:20:11.000Z' ],
        [ 1000, '1970-01-01T00:00:01.000Z' ],
        [ 0, '1970-01-01T00:00:00.000Z' ],
        [ '1970-01-01T00:00:00Z', '1970-01-01T00:00:00.000Z' ],
    );
    my ($id, $conversation) = fresh();

    feed($id, [ map { user("t$_", "x", createdAt => $times[$_][0]) }
                    0 .. $#times ]);

    my $preload = next_preload($conversation);
    my $state = $site->state($id);

    foreach my $n (0 .. $#times) {
        is($preload->json->{messages}[$n]{createdAt}, $times[$n][1],
           "createdAt $times[$n][0]");
        is($state->{messages}[$n]{createdAt}, $times[$n][1],
           "createdAt $times[$n][0]: in the session");
    }

    foreach my $time ('', 'yesterday', '2026-03-02', '2026-03-02T18:20:11',
                      '18:20:11Z', '2026-13-02T18:20:11Z',
                      '2026-00-02T18:20:11Z', '2026-02-30T18:20:11Z',
                      '2025-02-29T18:20:11Z', '2026-03-00T18:20:11Z',
                      '2026-03-02T24:20:11Z', '2026-03-02T18:60:11Z',
                      '2026-03-02T18:20:61Z', '2026-03-02T18:20:11.Z',
                      '2026-03-02T18:20:11+2:00', '2026-03-02T18:20:11+0200',
                      '2026-03-02T18:20:11+25:00', '2026-03-02T18:20:11Zx',
                      'x2026-03-02T18:20:11Z', '26-03-02T18:20:11Z',
                      '1772475611045', $YES, [], {}, 1e300)
    {
        my $name = ref $time ? json([ $time ]) : "'$time'";
        my $res = $site->add($id, [ user('bad1'),
                                    user('bad2', 'x', createdAt => $time) ]);

        is($res->status, 400, "createdAt $name: 400");
        like($site->code($res), qr/\Abad_(?:time|member)\z/,
             "createdAt $name: the code");
        is($site->code($res), 'bad_time', "createdAt $name: bad_time")
            if !ref $time;
    }

    is_deeply($site->state($id)->{messages}, $state->{messages},
              'nothing of such calls is there');
}


# ids of messages

{
    foreach my $case (
        [ 'a slash', 'a/b' ], [ 'slashes', '/a//b/' ], [ 'a space', 'a b' ],
        [ 'letters', "\x{fc}\x{17e}\x{1f600}" ], [ 'a percent', 'a%2Fb' ],
        [ 'a query', 'a?b=c&d' ], [ 'a fragment', 'a#b' ], [ 'a plus', 'a+b' ],
        [ 'a path', 'a/../b/./c' ], [ 'quotes', q("a'\\) ],
        [ 'controls', "a\tb\nc\x{7f}" ], [ 'a percent alone', '100%' ],
        [ 'a semicolon and a colon', 'a;b:c' ], [ 'markup', '<a>&amp;' ],
        [ '256 bytes', 'x' x 256 ], [ '256 bytes of letters', "\x{e9}" x 128 ],
        [ 'a UUID', $SESSION ], [ 'a digit', '0' ],
    ) {
        my ($name, $message) = @$case;
        my ($id, $conversation) = fresh();

        feed($id, [ user("u$message" =~ s/\Aux{256}\z/u/r
                         =~ s/\Au\x{e9}{128}\z/u/r), reply($message) ]);
        next_preload($conversation);

        my $state = $site->settled($id, 'filled');

        is($state->{messages}[1]{id}, $message, "an id with $name");
        is_deeply([ keys %{$state->{ads}} ], [ $message ],
                  "an id with $name: it has an ad");

        my $res = $site->ad($id, $message);

        is($res->status, 200, "an id with $name: in a path");

        if ($res->status == 200) {
            my $frame = $res->json->{ads}[0]{frameUrl};
            my ($value) = $frame =~ /[?&]messageId=([^&]*)/;

            is($res->json->{messageId}, $message, "an id with $name: as it is");
            unlike($value, qr/[^A-Za-z0-9._~%-]/,
                   "an id with $name: encoded in the frame's address");
            $value =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
            utf8::decode($value);
            is($value, $message, "an id with $name: and whole");
        }

        is(ad_of($id, $message . 'x'), '404 no_ad',
           "an id with $name: another one") if length $message < 200;

        feed($id, user('next'));
        is(next_preload($conversation)->json->{messages}[1]{id}, $message,
           "an id with $name: on the wire");
    }
}


# contents

{
    my $kb64 = 64 * 1024;

    foreach my $case (
        [ 'empty', '', '' ],
        [ 'white space', " \t\r\n ", " \t\r\n " ],
        [ 'all kinds', "\"\\/\b\f\x01<>&\x{7f}\x{2028}\x{e9}\x{1f600}\x{fffd}",
          "\"\\/\b\f\x01<>&\x{7f}\x{2028}\x{e9}\x{1f600}\x{fffd}" ],
        [ 'Markdown', "# a\n\n* **b** [c](http://d)",
          "# a\n\n* **b** [c](http://d)" ],
        [ '64 KB', 'x' x $kb64, 'x' x $kb64 ],
        [ '64 KB and a byte', 'x' x ($kb64 + 1), 'x' x $kb64 ],
        [ '200 KB', 'x' x 200_000, 'x' x $kb64 ],
        [ 'two bytes over the end', 'x' x ($kb64 - 1) . "\x{e9}x",
          'x' x ($kb64 - 1) ],
        [ 'two bytes to the end', 'x' x ($kb64 - 2) . "\x{e9}x",
          'x' x ($kb64 - 2) . "\x{e9}" ],
        [ 'four bytes, three fit', 'x' x ($kb64 - 3) . "\x{1f600}x",
          'x' x ($kb64 - 3) ],
        [ 'four bytes, one fits', 'x' x ($kb64 - 1) . "\x{1f600}",
          'x' x ($kb64 - 1) ],
        [ 'three bytes of many', "\x{20ac}" x 30_000, "\x{20ac}" x 21_845 ],
    ) {
        my ($name, $content, $sent) = @$case;
        my ($id, $conversation) = fresh();

        feed($id, user('m1', $content));

        my $got = next_preload($conversation)->json->{messages}[0]{content};

        ok($got eq $sent, "a text: $name")
            || diag('length ', length $got, ' instead of ', length $sent);
    }

    # a character that no text has

    my ($id, $conversation) = fresh();

    feed($id, user('m1', "a\0b"));
    like(next_preload($conversation)->json->{messages}[0]{content},
         qr/\Aa.b\z/s, 'a NUL is not the end of a text');

    # 64 KB in all: the newest ones are whole

    ($id, $conversation) = fresh();

    feed($id, [ map { user("m$_", $_ x 25_000) } 1 .. 5 ]);

    my @messages = @{next_preload($conversation)->json->{messages}};
    my $total = 0;

    $total += length $_->{content} foreach @messages;
    cmp_ok($total, '<=', $kb64, '64 KB of text in all');
    is(ids([ @messages[-2, -1] ]), 'm4 m5', 'the newest two are sent');
    is($messages[-1]{content}, '5' x 25_000, 'the newest one is whole');
    is($messages[-2]{content}, '4' x 25_000, 'and the one before');

    feed($id, user('m6', '6' x $kb64));
    @messages = @{next_preload($conversation)->json->{messages}};
    is($messages[-1]{content}, '6' x $kb64, 'one that needs it all has it');
    is($site->add($id, user('m7', 'short'))->status, 202,
       'and there is room for the next');
    @messages = @{next_preload($conversation)->json->{messages}};
    is($messages[-1]{content}, 'short', 'which is whole');
    $site->settled($id, 'filled');
    feed($id, reply('m8'));
    is(ad_of($id, 'm8'), '1:inlineAd', 'and has its ad');
}


# the turn is counted, and no ad is taken

{
    my %lists = (
        'of a message'    => [ { %{user('m1')}, trackOnly => $YES } ],
        'in a list'       => [ [ user('m0'),
                                 { %{user('m1')}, trackOnly => $YES } ] ],
        'of a list'       => [ { messages => [ user('m0'), user('m1') ],
                                 trackOnly => $YES } ],
        'of both'         => [ { messages => [ { %{user('m1')},
                                                 trackOnly => $YES } ],
                                 trackOnly => $YES } ],
    );

    foreach my $name (sort keys %lists) {
        my ($id, $conversation) = fresh();

        answers(bid(5, sessionId => $SESSIONS[5]));
        is(feed($id, $lists{$name}[0])->{preload}, 'scheduled',
           "trackOnly $name: a preload is due");

        my $preload = next_preload($conversation);

        is($preload->header('Kontextso-Is-Disabled'), '1',
           "trackOnly $name: the header");
        is($preload->json->{messages}[-1]{id}, 'm1',
           "trackOnly $name: the messages are sent");
        is_deeply([ sort keys %{$preload->json->{messages}[-1]} ],
                  [ qw(content createdAt id role) ],
                  "trackOnly $name: and nothing else in them");
        $site->wait_for($id, sub { $_[0]{preload} ne 'pending' });
        is($site->state($id)->{serverSessionId}, $SESSIONS[5],
           "trackOnly $name: sessionId is kept");
        feed($id, reply('m2'));
        is(ad_of($id, 'm2'), '404 no_ad', "trackOnly $name: no ad");
        is(events_of($id), '', "trackOnly $name: no event");

        answers(bid(6, sessionId => $SESSIONS[5]));
        feed($id, user('m3'));
        $preload = next_preload($conversation);
        is($preload->header('Kontextso-Is-Disabled'), '0',
           "trackOnly $name: the next one is as usual");
        is($preload->json->{sessionId}, $SESSIONS[5],
           "trackOnly $name: with the sessionId");
        $site->settled($id, 'filled');
        feed($id, reply('m4'));
        is(ad_of($id, 'm4'), '6:inlineAd', "trackOnly $name: and has an ad");
    }

    # the newest message says it

    my ($id, $conversation) = fresh();

    feed($id, [ { %{user('m1')}, trackOnly => $YES },
                { %{user('m2')}, trackOnly => $NO } ]);
    is(next_preload($conversation)->header('Kontextso-Is-Disabled'), '0',
       'trackOnly of an older message does not count');
    $site->settled($id, 'filled');

    # ... and the bid of before is lost with it

    feed($id, { %{user('m3')}, trackOnly => $YES });
    next_preload($conversation);
    $site->wait_for($id, sub { $_[0]{preload} ne 'pending' });
    feed($id, reply('m4'));
    is(ad_of($id, 'm4'), '404 no_ad', 'a bid does not outlive a trackOnly turn');

    # what may be said there is said all the same

    foreach my $case ([ { sessionId => $SESSION, skip => $YES,
                          skipCode => 'ads_disabled' },
                        'ad.no-fill ads_disabled' ],
                      [ { errCode => 'busy' }, 'ad.error busy' ])
    {
        my ($answer, $event) = @$case;
        my ($id, $conversation) = fresh();

        answers($answer);
        feed($id, { %{user('m1')}, trackOnly => $YES });
        next_preload($conversation);
        $site->wait_for($id, sub { $_[0]{preload} ne 'pending' });
        is(events_of($id), $event, "trackOnly: $event");
    }

    answers(bid(1));

    foreach my $value ('yes', 1, [], undef) {
        my $name = json([ $value ]);

        next if !defined $value;
        is($site->code($site->add($id, { %{user('x')}, trackOnly => $value })),
           'bad_member', "trackOnly of $name");
        is($site->code($site->add($id, { messages => [ user('x') ],
                                         trackOnly => $value })),
           'bad_member', "trackOnly of $name for a list");
    }
}


# a message that is there already

{
    my ($id, $conversation) = fresh();

    answers(bid(1));
    feed($id, [ user('m1'), reply('m2'), user('m3') ]);
    next_preload($conversation);

    my $state = $site->settled($id, 'filled');

    is_deeply(feed($id, [ user('m1'), reply('m2'), user('m3') ]),
              { accepted => 0, repeated => 3, preload => 'none' },
              'the same call again');
    is_deeply(feed($id, [ user('m1', 'other words') ]),
              { accepted => 0, repeated => 1, preload => 'none' },
              'an older message again, with other words');
    is_deeply($site->state($id), $state, 'nothing has changed');
    is_deeply(feed($id, [ user('m3'), reply('m4') ]),
              { accepted => 1, repeated => 1, preload => 'none' },
              'one that is there and one that is not');
    is_deeply(feed($id, [ reply('m5'), reply('m5'), reply('m5', 'x') ]),
              { accepted => 1, repeated => 2, preload => 'none' },
              'the same one thrice in a call');
    is(ids($site->state($id)->{messages}), 'm1 m2 m3 m4 m5', 'each is there once');
    later();
    is(scalar(my @all = preloads($conversation)), 1, 'and nothing was asked');
    feed($id, user('m6'));
    is(next_preload($conversation)->json->{messages}[0]{content}, 'text of m1',
       'the words of the first call hold');

    # while it runs

    ($id, $conversation) = fresh();
    $ads->hold('/preload');
    feed($id, user('m1'));

    my $preload = next_preload($conversation);

    is(feed($id, user('m1'))->{repeated}, 1, 'again while its preload runs');
    later();
    is($preload->closed, undef, 'it goes on');
    is(scalar(@all = preloads($conversation)), 1, 'and is the only one');
    $preload->respond(200, bid(2));
    $site->settled($id, 'filled');

    # while it is due

    ($id, $conversation) = fresh();
    answers(bid(1));
    feed($id, [ user('m1'), user('m1') ]);
    next_preload($conversation);
    later();
    is(scalar(@all = preloads($conversation)), 1,
       'twice in a call: one preload');

    # after a failure, and after an answer that was none

    foreach my $case ([ 'a failure', 1, 200, { errCode => 'busy' } ],
                      [ 'status 500', 1, 500, 'oops' ],
                      [ 'an answer without an ad', 0, 204 ],
                      [ 'a skipped turn', 0, 200,
                        { sessionId => $SESSION, skip => $YES } ])
    {
        my ($name, $again, @answer) = @$case;
        my ($id, $conversation) = fresh();

        $ads->on('/preload', @answer);
        feed($id, [ user('m1'), reply('m2') ]);
        next_preload($conversation);
        $site->settled($id, $again ? 'error' : 'no_fill');
        answers(bid(7));
        is_deeply(feed($id, user('m1')),
                  { accepted => 0, repeated => 1,
                    preload => $again ? 'scheduled' : 'none' },
                  "again after $name");

        if ($again) {
            is(ids(next_preload($conversation)->json->{messages}), 'm1',
               "again after $name: it is asked");
            $site->settled($id, 'filled');
            is(ad_of($id, 'm2'), '7:inlineAd',
               "again after $name: the answer has the ad");

        } else {
            later();
            is(scalar(@all = preloads($conversation)), 1,
               "again after $name: it is not asked");
        }
    }

    # an older one never asks again

    ($id, $conversation) = fresh();
    answers({ errCode => 'busy' });
    feed($id, user('m1'));
    next_preload($conversation);
    $site->settled($id, 'error');
    answers(bid(7));
    feed($id, user('m2'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    is(feed($id, user('m1'))->{preload}, 'none', 'an older message again');
    later();
    is(scalar(@all = preloads($conversation)), 2, 'is not asked for');
}

# an answer is made anew

{
    my ($id, $conversation) = fresh();

    answers(bid(8));
    feed($id, user('m1'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    feed($id, reply('m2'));
    is(ad_of($id, 'm2'), '8:inlineAd', 'an answer has its ad');

    is(feed($id, user('m1'))->{repeated}, 1, 'the user\'s message again');
    feed($id, reply('m3'));
    is(ad_of($id, 'm3'), '8:inlineAd', 'the new answer inherits the ad');
    like($site->ad($id, 'm3')->json->{ads}[0]{frameUrl},
         qr/[?&]messageId=m3(?:&|\z)/, 'as its own');
    feed($id, reply('m4'));
    is(ad_of($id, 'm4'), '404 no_ad', 'but no other');
    later();
    is(scalar(my @all = preloads($conversation)), 1, 'nothing was asked');

    feed($id, user('m5'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    is(feed($id, user('m1'))->{repeated}, 1, 'an older message again');

    feed($id, reply('m6'));
    is(scalar(@all = preloads($conversation)), 2, 'has no part in it');
    answers(bid(1));
}


# what is no message leaves nothing

{
    my ($id, $conversation) = fresh();
    my $m = sub { return { %{user('x')}, @_ } };
    my $without = sub { my $m = user('x'); delete $m->{$_[0]}; return $m };

    foreach my $case (
        [ 'role system', 'bad_role', $m->(role => 'system') ],
        [ 'role User', 'bad_role', $m->(role => 'User') ],
        [ 'role tool', 'bad_role', $m->(role => 'tool') ],
        [ 'an empty role', 'bad_role', $m->(role => '') ],
        [ 'no role', 'missing_member', $without->('role') ],
        [ 'no id', 'missing_member', $without->('id') ],
        [ 'no content', 'missing_member', $without->('content') ],
        [ 'an empty id', 'bad_member', $m->(id => '') ],
        [ 'an id of 257 bytes', 'bad_member', $m->(id => 'x' x 257) ],
        [ 'a content that is a number', 'bad_member', $m->(content => 1) ],
        [ 'a content of parts', 'bad_member',
          $m->(content => [ { type => 'text', text => 'x' } ]) ],
        [ 'a content that is false', 'bad_member', $m->(content => $NO) ],
    ) {
        my ($name, $code, $message) = @$case;

        foreach my $form ([ 'alone', $message ],
                          [ 'in a list', [ user('ok1'), $message,
                                           user('ok2') ] ],
                          [ 'in messages', { messages => [
                              user('ok1'), $message ] } ])
        {
            my ($how, $data) = @$form;
            my $res = $site->add($id, $data);

            is($res->status . ' ' . $site->code($res), "400 $code",
               "$name, $how") || diag($res->body);
        }
    }

    foreach my $case ([ 'an empty list', [] ],
                      [ 'an empty object', {} ],
                      [ 'no messages', { messages => [] } ],
                      [ 'a list of lists', [ [ user('ok1') ] ] ],
                      [ 'a list of texts', [ 'x' ] ],
                      [ 'a null in the list', [ user('ok1'), undef ] ],
                      [ 'messages that are none', { messages => 'x' } ],
                      [ 'messages that are one', { messages => user('x') } ])
    {
        my ($name, $data) = @$case;
        my $res = $site->add($id, $data);

        is($res->status, 400, "$name: 400") || diag($res->body);
        like($site->code($res), qr/\A(?:bad|missing|unknown)_(?:member|json)\z/,
             "$name: the code");
    }

    later();
    is_deeply($site->state($id)->{messages}, [], 'nothing of it is there');
    is(scalar(my @all = preloads($conversation)), 0, 'nor was it asked for');

    # 1 and "1" would be the same message

    ($id, $conversation) = fresh();

    foreach my $value (1, 1.5, 0, $YES, [ 'x' ], {}) {
        is($site->code($site->add($id, { %{user('x')}, id => $value })),
           'bad_member', 'an id of ' . json([ $value ]));
    }

    is_deeply($site->state($id)->{messages}, [], 'nor is any of those there');
}


# who has the ad

{
    # first the ad, then the answer

    my ($id, $conversation) = fresh();

    answers(bid(1));
    feed($id, user('m1'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    is_deeply($site->state($id)->{ads}, {}, 'ad first: nobody has it yet');
    feed($id, reply('m2'));
    is(ad_of($id, 'm2'), '1:inlineAd', 'ad first: the answer has it');
    feed($id, reply('m3'));
    is(ad_of($id, 'm3'), '404 no_ad', 'a second answer has none');
    is(ad_of($id, 'm2'), '1:inlineAd', 'the first keeps it');

    answers(bid(2));
    feed($id, user('m4'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    is(ad_of($id, 'm2'), '1:inlineAd', 'the user goes on: it is still there');
    is(ad_of($id, 'm3'), '404 no_ad', 'the new ad is not for the older answer');
    feed($id, reply('m5'));
    is(ad_of($id, 'm5'), '2:inlineAd', 'but for the next one');
    is_deeply([ sort keys %{$site->state($id)->{ads}} ], [ 'm2', 'm5' ],
              'both are in the session');

    # both in one call

    ($id, $conversation) = fresh();
    answers(bid(1));
    feed($id, user('m1'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    feed($id, [ reply('m2'), reply('m3') ]);
    is(ad_of($id, 'm2'), '1:inlineAd', 'two answers in a call: the first');
    is(ad_of($id, 'm3'), '404 no_ad', 'two answers in a call: not the second');

    # first the answer, then the ad

    ($id, $conversation) = fresh();
    $ads->hold('/preload');
    feed($id, user('m1'));

    my $preload = next_preload($conversation);

    feed($id, reply('m2'));
    is(ad_of($id, 'm2'), '404 no_ad', 'answer first: no ad yet');
    $preload->respond(200, bid(3));
    $site->settled($id, 'filled');
    is(ad_of($id, 'm2'), '3:inlineAd', 'answer first: then it has it');

    # two answers, then the ad: the newest message has it

    ($id, $conversation) = fresh();
    feed($id, user('m1'));
    $preload = next_preload($conversation);
    feed($id, $_) foreach reply('m2'), reply('m3');
    $preload->respond(200, bid(3));
    $site->settled($id, 'filled');
    is(ad_of($id, 'm3'), '3:inlineAd', 'two answers first: the newest');
    is(ad_of($id, 'm2'), '404 no_ad', 'two answers first: not the older');

    # the user goes on before anybody has it

    ($id, $conversation) = fresh();
    answers(bid(4));
    feed($id, user('m1'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    answers({ sessionId => $SESSION, bids => [] });
    feed($id, user('m2'));
    next_preload($conversation);
    $site->settled($id, 'no_fill');
    feed($id, reply('m3'));
    is(ad_of($id, 'm3'), '404 no_ad', 'the user goes on: the bid is lost');

    # ... also when the next one is under way still

    ($id, $conversation) = fresh();
    answers(bid(4));
    feed($id, user('m1'));
    next_preload($conversation);
    $site->settled($id, 'filled');
    $ads->hold('/preload');
    feed($id, [ user('m2'), reply('m3') ]);
    $preload = next_preload($conversation);
    is(ad_of($id, 'm3'), '404 no_ad', 'the user goes on: lost at once');
    $preload->respond(200, bid(5));
    $site->settled($id, 'filled');
    is(ad_of($id, 'm3'), '5:inlineAd', 'it has the ad of its own turn');

    # a late ad is not for an answer of before

    ($id, $conversation) = fresh();
    feed($id, user('m1'));
    $preload = next_preload($conversation);
    feed($id, reply('m2'));
    feed($id, user('m3'));
    is($preload->wait_closed, 'eof', 'the user goes on: cancelled');
    $preload = next_preload($conversation);
    $preload->respond(200, bid(6));
    $site->settled($id, 'filled');
    is(ad_of($id, 'm2'), '404 no_ad', 'no ad for the answer of before');
    feed($id, reply('m4'));
    is(ad_of($id, 'm4'), '6:inlineAd', 'but for the next');
    answers(bid(1));
}


# placements

{
    my %two = (api => '/two');
    my ($id, $conversation) = fresh(undef, %two);

    answers({ sessionId => $SESSION, bids => [
        map { { bidId => $BIDS[$_->[0]], code => $_->[1], revenue => 0.5 } }
            [ 0, 'other' ], [ 1, 'box' ], [ 2, 'inlineAd' ],
            [ 3, 'inlineAd' ], [ 4, 'box' ], [ 5, 'Box' ],
    ] });
    feed($id, [ user('m1'), reply('m2') ], %two);
    is_deeply(next_preload($conversation)->json->{enabledPlacementCodes},
              [ 'inlineAd', 'box' ], 'two placements are asked for');
    $site->settled($id, 'filled', %two);
    is(join(' ', sort split / /, ad_of($id, 'm2', %two)), '1:box 2:inlineAd',
       'the first bid of each, and no other');
    unlike($site->ad($id, 'm2', %two)->body, qr/revenue|0\.5/,
           'what they bring is not for the client');
    is(join(', ', sort split /, /, events_of($id)),
       join(', ', map { "ad.filled $BIDS[$_]" } 1, 2), 'an event each');

    # one of two

    ($id, $conversation) = fresh(undef, %two);
    answers(bid(6, code => 'box'));
    feed($id, [ user('m1'), reply('m2') ], %two);
    next_preload($conversation);
    $site->settled($id, 'filled', %two);
    is(ad_of($id, 'm2', %two), '6:box', 'one placement has a bid');
    like($site->ad($id, 'm2', %two)->json->{ads}[0]{frameUrl},
         qr/[?&]code=box(?:&|\z)/, 'and the address says which');
    answers(bid(1));
}


# the address of a frame

{
    my %looks = (api => '/looks');
    my ($id, $conversation) = fresh(undef, %looks);
    my $message = "m/2 \x{e9}&=?#%";

    answers(Kontext::Mock->bid(bidId => uc $BIDS[3]));
    feed($id, [ user('m1'), reply($message) ], %looks);
    is(next_preload($conversation)->json->{sdk}{name}, 'sdk-react', 'the sdk');
    $site->settled($id, 'filled', %looks);

    my $ad = $site->ad($id, $message, %looks)->json->{ads}[0];

    is($ad->{bidId}, $BIDS[3], 'a bid in lower case, whatever came');
    is($ad->{label}, 'Ad "here"', 'the label');
    is($ad->{frameUrl}, "https://frames.example:8443/api/frame/$BIDS[3]"
       . '?code=inlineAd&messageId=m%2F2%20%C3%A9%26%3D%3F%23%25'
       . '&sdk=sdk-react&theme=v2%20light%2Fdark%26x', 'the address');
    answers(bid(1));
}


# how long an ad is there

{
    my ($id, $conversation) = fresh();

    answers(bid(7));
    feed($id, [ user('m1'), reply('m2') ]);
    next_preload($conversation);
    $site->settled($id, 'filled');
    feed($id, [ map { reply("n$_") } 1 .. 29 ]);
    is(ad_of($id, 'm2'), '7:inlineAd', 'the oldest of 30 messages has its ad');
    feed($id, reply('n30'));
    is(ad_of($id, 'm2'), '404 no_ad', 'the ad goes with its message');
    is_deeply($site->state($id)->{ads}, {}, 'and is not in the session');

    # it does not come back with a message of that id

    feed($id, reply('m2'));
    is(ad_of($id, 'm2'), '404 no_ad', 'the message again: without an ad');

    # several at a time

    ($id, $conversation) = fresh();

    foreach my $n (1 .. 14) {
        answers(bid($n % 10));
        feed($id, [ user("u$n"), reply("a$n") ]);
        next_preload($conversation);
        $site->settled($id, 'filled');
    }

    is(join(' ', map { ad_of($id, "a$_") } 1 .. 14),
       join(' ', map { $_ % 10 . ':inlineAd' } 1 .. 14),
       'fourteen answers with an ad each');

    # a disabled session keeps what it has

    answers({ errCode => 'geo_disabled', permanent => $YES });
    feed($id, user('u15'));
    next_preload($conversation);
    is($site->settled($id, 'error')->{disabled}, $YES, 'disabled for good');
    is(ad_of($id, 'a14'), '4:inlineAd', 'disabled: its ads stay');
    answers(bid(1));
    is(feed($id, [ reply('a15'), user('u16') ])->{preload}, 'disabled',
       'disabled: messages are taken');
    is(ad_of($id, 'a15'), '404 no_ad', 'disabled: no new ad');
    is(ad_of($id, 'a14'), '4:inlineAd', 'disabled: its ads still stay');
    is($site->state($id)->{messages}[-1]{id}, 'u16', 'disabled: kept');
    later();
    is(scalar(my @all = preloads($conversation)), 15,
       'disabled: nothing is asked');
}

# disabled while another preload would be under way: the newest turn counts

{
    my ($id, $conversation) = fresh();

    $ads->hold('/preload');
    feed($id, user('m1'));

    my $first = next_preload($conversation);

    $first->respond(200, { errCode => 'geo_disabled', permanent => $YES });
    $site->settled($id, 'error');
    feed($id, user('m2'));
    later();
    is(scalar(my @all = preloads($conversation)), 1,
       'a permanent error: no further preload');
    is(events_of($id), 'ad.error geo_disabled', 'a permanent error: one event');
    answers(bid(1));
}


# /init disables a session while a preload runs: the user's next message still
# cancels that, and nothing takes its place

{
    my $conversation = 'feed-' . ++$conversations;

    $ads->hold('/init');
    $ads->hold('/preload');

    my $id = $site->session({ conversationId => $conversation }, init => 0);
    my $init = $site->held('/init');

    feed($id, user('m1'));

    my $preload = next_preload($conversation);

    $init->respond(200, { enabled => $NO });
    $site->wait_for($id, sub { $_[0]{disabled} });
    $ads->on('/init', 200, { enabled => $YES });
    is($preload->closed, undef, 'disabled by /init: what runs goes on');
    is(feed($id, user('m2'))->{preload}, 'disabled',
       'disabled by /init: the next message');
    is($preload->wait_closed, 'eof', 'disabled by /init: cancels it');
    later();
    is(scalar(my @all = preloads($conversation)), 1,
       'disabled by /init: and is not asked for');
    feed($id, reply('m3'));
    is(ad_of($id, 'm3'), '404 no_ad', 'disabled by /init: no ad');
    is(events_of($id), 'ad.error session_disabled_by_init',
       'disabled by /init: one event');
    answers(bid(1));
}


# sessionId: of every answer, and kept

{
    my ($id, $conversation) = fresh();
    my @answers = (
        [ 'filled', 1, 200, bid(1, sessionId => $SESSIONS[1]) ],
        [ 'no bids', 2, 200, { sessionId => $SESSIONS[2], bids => [] } ],
        [ 'skip', 3, 200, { sessionId => $SESSIONS[3], skip => $YES,
                            skipCode => 'ad_skipped' } ],
        [ 'an error', 4, 200, { sessionId => $SESSIONS[4],
                                errCode => 'busy' } ],
        [ 'an error without it', 4, 200, { errCode => 'busy' } ],
        [ '204', 4, 204 ],
        [ '500', 4, 500, { sessionId => $SESSIONS[9] } ],
        [ 'no JSON', 4, 200, '<html>' ],
        [ 'one that is no UUID', 4, 200, bid(1, sessionId => 'x') ],
        [ 'null', 4, 200, { sessionId => undef, bids => [] } ],
        [ 'other placements', 5, 200, bid(1, sessionId => $SESSIONS[5],
                                          code => 'other') ],
        [ 'upper case', 6, 200, bid(1, sessionId => uc $SESSIONS[6]) ],
        [ 'an error with bids', 7, 200, { %{bid(1,
              sessionId => $SESSIONS[7])}, errCode => 'busy' } ],
    );
    my $known;
    my $n = 0;

    foreach my $case (@answers) {
        my ($name, $kept, @answer) = @$case;

        $ads->on('/preload', @answer);
        feed($id, user('s' . ++$n));
        is(next_preload($conversation)->json->{sessionId}, $known,
           "sessionId before $name");
        $site->settled($id);
        $known = $SESSIONS[$kept];
        is($site->state($id)->{serverSessionId}, $known,
           "sessionId after $name");
    }

    answers(bid(1));
    feed($id, user('last'));
    is(next_preload($conversation)->json->{sessionId}, $known,
       'sessionId of the last');
    $site->settled($id);

    answers({ sessionId => $SESSIONS[8], permanent => $YES,
              errCode => 'geo_disabled' });
    feed($id, user('disabled'));
    next_preload($conversation);
    $site->settled($id, 'error');
    is($site->state($id)->{serverSessionId}, $SESSIONS[8],
       'sessionId of a permanent error');
    answers(bid(1));
}


# What an answer of the ad server means: protocol.md 4.3.  [ name, state,
# event, disabled, answer ]

my $other = { bidId => $BIDS[5], code => 'other', revenue => 1 };
my $inline = bid(1)->{bids}[0];
my $FILLED = "ad.filled $BIDS[1]";

my @table = (
    [ '2: no JSON', 'error', 'ad.error request_failed', 0, 200, '<html>' ],
    [ '2: cut JSON', 'error', 'ad.error request_failed', 0,
      200, '{"sessionId":"0d5c1f2e' ],
    [ '2: no body', 'error', 'ad.error request_failed', 0, 200, '' ],
    [ '2: a list', 'error', 'ad.error request_failed', 0, 200, [] ],
    [ '2: a bid id that is none', 'error', 'ad.error request_failed', 0,
      200, Kontext::Mock->bid(bidId => 'bid-1') ],
    [ '2: a session id that is none', 'error', 'ad.error request_failed', 0,
      200, Kontext::Mock->bid(sessionId => 'session-1') ],
    [ '3: 204', 'no_fill', 'ad.no-fill unfilled_bid', 0, 204 ],
    (map { [ "4: $_ with a bid in it", 'error', 'ad.error unknown', 0,
             $_, bid(1) ] } 302, 400, 403, 404, 500, 503),
    [ '4: 500 is not permanent', 'error', 'ad.error unknown', 0,
      500, { errCode => 'geo_disabled', permanent => $YES } ],
    [ '5: permanent with a code', 'error', 'ad.error geo_disabled', 1,
      200, { errCode => 'geo_disabled', permanent => $YES } ],
    [ '5: permanent with a code, a session and a bid', 'error',
      'ad.error geo_disabled', 1,
      200, { %{bid(1)}, errCode => 'geo_disabled', permanent => $YES } ],
    [ '5: permanent without anything', 'error', 'ad.error session_disabled', 1,
      200, { permanent => $YES } ],
    [ '5: permanent and skip', 'error', 'ad.error session_disabled', 1,
      200, { permanent => $YES, skip => $YES, skipCode => 'x' } ],
    [ '6: a code', 'error', 'ad.error generation_failed', 0,
      200, { errCode => 'generation_failed', error => 'Could not' } ],
    [ '6: a code, though there is a bid', 'error',
      'ad.error generation_failed', 0,
      200, { %{bid(1)}, errCode => 'generation_failed' } ],
    [ '6: a code before skip', 'error', 'ad.error generation_failed', 0,
      200, { sessionId => $SESSION, errCode => 'generation_failed',
             skip => $YES, skipCode => 'x' } ],
    [ '6: not permanent', 'error', 'ad.error generation_failed', 0,
      200, { errCode => 'generation_failed', permanent => $NO } ],
    [ '6: no session, though there is a bid', 'error', 'ad.error unknown', 0,
      200, { bids => [ $inline ] } ],
    [ '6: nothing at all', 'error', 'ad.error unknown', 0, 200, {} ],
    [ '7: skip with a code', 'no_fill', 'ad.no-fill ivt_blocked', 0,
      200, { sessionId => $SESSION, bids => [], skip => $YES,
             skipCode => 'ivt_blocked' } ],
    [ '7: skip without a code', 'no_fill', 'ad.no-fill unknown', 0,
      200, { sessionId => $SESSION, skip => $YES } ],
    [ '7: skip before bids', 'no_fill', 'ad.no-fill ad_skipped', 0,
      200, { %{bid(1)}, skip => $YES, skipCode => 'ad_skipped' } ],
    [ '8: no bids', 'no_fill', 'ad.no-fill unfilled_bid', 0,
      200, { sessionId => $SESSION, bids => [] } ],
    [ '8: bids of null', 'no_fill', 'ad.no-fill unfilled_bid', 0,
      200, { sessionId => $SESSION, bids => undef } ],
    [ '8: no such member', 'no_fill', 'ad.no-fill unfilled_bid', 0,
      200, { sessionId => $SESSION } ],
    [ '8: of other placements only', 'no_fill', 'ad.no-fill unfilled_bid', 0,
      200, { sessionId => $SESSION, bids => [ $other ] } ],
    [ '9: filled', 'filled', $FILLED, 0, 200, bid(1) ],
    [ '9: with status 201', 'filled', $FILLED, 0, 201, bid(1) ],
    [ '9: skip that is false', 'filled', $FILLED, 0,
      200, { %{bid(1)}, skip => $NO, errCode => undef, permanent => $NO } ],
    [ '9: permanent with a session and no code', 'filled', $FILLED, 0,
      200, { %{bid(1)}, permanent => $YES } ],
    [ '9: among others', 'filled', $FILLED, 0,
      200, { sessionId => $SESSION, bids => [ $other, $inline ] } ],
    [ '9: with members nobody knows', 'filled', $FILLED, 0,
      200, { %{bid(1)}, status => 'success', ads => [], x => { y => [] } } ],
    [ '9: without revenue', 'filled', $FILLED, 0,
      200, { sessionId => $SESSION,
             bids => [ { bidId => $BIDS[1], code => 'inlineAd' } ] } ],
    [ '9: with a revenue that is none', 'filled', $FILLED, 0,
      200, { sessionId => $SESSION, bids => [
          { bidId => $BIDS[1], code => 'inlineAd', revenue => [] } ] } ],
    [ '9: with a trigger, measurement and a campaign', 'filled', $FILLED, 0,
      200, { sessionId => $SESSION, bids => [ {
          %$inline, impressionTrigger => 'someday',
          om => { creativeType => 'x' }, skan => 4 } ] } ],
);

foreach my $row (@table) {
    my ($name, $state, $event, $disabled, @answer) = @$row;
    my ($id, $conversation) = fresh();

    $ads->on('/preload', @answer);
    feed($id, [ user('m1'), reply('m2') ]);
    next_preload($conversation);

    my $now = $site->settled($id);

    is($now->{preload}, $state, "rule $name: the preload");
    is($now->{disabled}, $disabled ? $YES : $NO, "rule $name: disabled");
    is($now->{flags}{enabled}, $YES, "rule $name: /init has not said so");
    is(ad_of($id, 'm2'), $state eq 'filled' ? '1:inlineAd' : '404 no_ad',
       "rule $name: the ad");
    is(events_of($id), $event, "rule $name: the event");

    answers(bid(2));
    is(feed($id, user('m3'))->{preload}, $disabled ? 'disabled' : 'scheduled',
       "rule $name: the next turn");

    if ($disabled) {
        later();
        is(scalar(my @all = preloads($conversation)), 1,
           "rule $name: is not asked for");

    } else {
        next_preload($conversation);
        $site->settled($id, 'filled');
        feed($id, reply('m4'));
        is(ad_of($id, 'm4'), '2:inlineAd', "rule $name: has an ad");
    }
}


# the state of the newest turn

{
    my ($id, $conversation) = fresh();

    is($site->state($id)->{preload}, 'none', 'preload: none before a message');
    feed($id, reply('m0'));
    is($site->state($id)->{preload}, 'none', 'preload: none before the user');

    $ads->hold('/preload');

    foreach my $case ([ 'filled', 200, bid(1) ], [ 'no_fill', 204 ],
                      [ 'error', 500, 'oops' ], [ 'filled', 200, bid(2) ])
    {
        my ($state, @answer) = @$case;

        feed($id, user("before-$state-" . ++$conversations));
        is($site->state($id)->{preload}, 'pending', 'preload: pending');

        my $preload = next_preload($conversation);

        is($site->state($id)->{preload}, 'pending', 'preload: still pending');
        $preload->respond(@answer);
        is($site->settled($id)->{preload}, $state, "preload: $state");
        feed($id, reply("after-$state-" . ++$conversations));
        is($site->state($id)->{preload}, $state,
           "preload: $state, also with an answer");
    }

    answers(bid(1));
}


# chats and messages: one session

{
    my $conversation = 'mixed-1';
    my %in = (headers => { 'X-Conversation' => $conversation,
                           'X-User' => 'u-mixed' });

    answers(bid(1, sessionId => $SESSIONS[1]));

    my $turn = $site->turn(chat('q1'), %in, asks => ['init', 'preload']);
    my $res = $site->create({ userId => 'u-mixed',
                              conversationId => $conversation });
    my $id = $res->json->{sessionId};

    next_preload($conversation);
    is($res->status, 200, 'a chat has made the session');

    # what the chat shows, here is it as well

    my $message = $turn->event->{message_id};

    like($message, qr/\Akx1_/, 'an answer of a chat has an id');
    is_deeply($site->ad($id, $message)->json, $turn->ad,
              'the API has the ad that the chat has shown');
    is_deeply($site->state($id)->{ads}, { $message => $turn->ad->{ads} },
              'it is in the session');
    is($site->state($id)->{serverSessionId}, $SESSIONS[1],
       'and so is the ad server\'s id');

    # messages go on in it

    answers(bid(2));
    feed($id, user('m1'));

    my $preload = next_preload($conversation);

    is($preload->json->{sessionId}, $SESSIONS[1],
       'a message goes on with its sessionId');
    is($preload->json->{messages}[-1]{id}, 'm1', 'it is asked for');
    $site->settled($id, 'filled');
    feed($id, reply('m2'));
    is(ad_of($id, 'm2'), '2:inlineAd', 'its answer has the ad');

    # a chat cancels what runs for a message

    $ads->hold('/preload');
    feed($id, user('m3'));
    $preload = next_preload($conversation);

    $turn = $site->ask(chat('q1', 'Light ones.', 'q2'), %in);
    is($preload->wait_closed, 'eof', 'a chat cancels the preload of a message');
    $preload = next_preload($conversation);
    is($preload->json->{messages}[-1]{content}, 'q2', 'and is asked for');
    is($site->state($id)->{preload}, 'pending', 'its state is that of the session');
    $preload->respond(200, bid(3));
    $turn->answer('Light ones.');
    is($turn->ad->{ads}[0]{bidId}, $BIDS[3], 'the chat has its ad');
    is($site->state($id)->{preload}, 'filled', 'the state is filled');

    # and the other way round

    $turn = $site->ask(chat('q1', 'Light ones.', 'q2', 'Light ones.', 'q3'),
                       %in);
    $preload = next_preload($conversation);
    feed($id, user('m4'));
    is($preload->wait_closed, 'eof', 'a message cancels the preload of a chat');
    $preload = next_preload($conversation);
    is($preload->json->{messages}[-1]{id}, 'm4', 'and is asked for');
    $turn->answer('Light ones.');
    ok($turn->untouched, 'the answer of the chat has no ad');
    $preload->respond(200, bid(4));
    $site->settled($id, 'filled');
    feed($id, reply('m5'));
    is(ad_of($id, 'm5'), '4:inlineAd', 'the answer to the message has it');

    is(scalar(grep { $_->json->{userId} eq 'u-mixed' }
                   $ads->requests('/init')), 1, 'one /init for both');
    answers(bid(1));
}

# an ad that comes after the answer of a chat

{
    my $conversation = 'mixed-2';
    my %in = (headers => { 'X-Conversation' => $conversation },
              uri => '/late/v1/chat/completions');
    my $id = $site->session({ conversationId => $conversation });

    $ads->hold('/preload');

    my $turn = $site->ask(chat('q1'), %in);
    my $preload = next_preload($conversation);

    $turn->answer('Light ones.');
    ok($turn->untouched, 'late: the answer has gone without it');
    is($preload->closed, undef, 'late: the preload goes on');
    is($site->state($id)->{preload}, 'pending', 'late: pending');
    $preload->respond(200, bid(5));
    $site->settled($id, 'filled');

    my $message = $turn->event->{message_id};
    my @ads = %{$site->state($id)->{ads}};

    like($ads[0] // '', qr/\Akx1_/, 'late: an answer of the chat has the ad');
    is($ads[0], $message, 'late: it is that answer') if $message ne '';
    is(ad_of($id, $ads[0] // 'none'), '5:inlineAd',
       'late: the API hands it out');

    # the user goes on before it comes: it is lost

    $turn = $site->ask(chat('q1', 'Light ones.', 'q2'), %in);
    $preload = next_preload($conversation);
    $turn->answer('Heavy ones.');
    ok($turn->untouched, 'late again: without it');
    answers({ sessionId => $SESSION, bids => [] });
    $turn = $site->turn(chat('q1', 'Light ones.', 'q2', 'Heavy ones.', 'q3'),
                        %in);
    is($preload->wait_closed, 'eof', 'late, and the user goes on: cancelled');
    next_preload($conversation);
    $site->settled($id, 'no_fill');
    is_deeply([ keys %{$site->state($id)->{ads}} ], [ $ads[0] ],
              'late, and the user goes on: the older one stays, no other comes');
    answers(bid(1));
}


$site->stop_ok;
done_testing;
