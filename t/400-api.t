#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The session API but for the feed and the events: sessions, their options,
# who may do what, and what is refused.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Encode ();

use Kontext::Test;
use ApiSite;
use ChatSite qw(nulls_in);

my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my $CHAT = '/v1/chat/completions';
my $ID = qr/kxs_[A-Za-z0-9_-]{22,64}/;
my $TIME = qr/\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\z/;

# what must not be in the error log

my $TOKEN = 'token-of-the-publisher';
my $TEXT = 'words-of-the-user';

my $site = ApiSite->new(
    http     => "kontext_consent ask;\n",
    api      => "kontext_publisher_token $TOKEN;",
    location => <<"CONF",
            kontext_publisher_token $TOKEN;
            kontext_variant_id \$http_x_variant;
            kontext_regulatory gdpr=\$http_x_gdpr gdpr_consent=\$http_x_consent
                               us_privacy=\$http_x_usp;
CONF
    server   => <<"CONF",
        location /of-user/ {
            kontext_api;
            kontext_publisher_token $TOKEN;
            kontext_user_id \$http_x_user;
        }

        location /of-another/ {
            kontext_api;
            kontext_publisher_token another;
        }

        location /of-names/ {
            kontext_api;
            kontext_publisher_token $TOKEN;
            kontext_user_id \$http_x_user;
            kontext_conversation_id \$http_x_conversation;
        }

        # what a session says for itself goes before these

        location /directives/ {
            kontext_api;
            kontext_publisher_token $TOKEN;
            kontext_variant_id variant-of-directive;
            kontext_user_email directive\@example.com;
            kontext_regulatory gdpr=1 coppa=0 gdpr_consent=consent-of-directive
                               gpp=gpp-of-directive gpp_sid=2,6
                               us_privacy=1YNN;
            kontext_character  id=character-of-directive name=Directive
                               avatar_url=https://directive.example/a.png;
        }

        location /cors/ {
            kontext_api;
            kontext_publisher_token $TOKEN;
            kontext_api_origin https://app.example.com http://localhost:3000;
        }

        location /open/ {
            kontext_api;
            kontext_publisher_token $TOKEN;
            kontext_api_origin *;
        }
CONF
);

my $ads = $site->ads;
my $names = 0;

sub message { return $site->message(@_) }
sub user { return message($_[0], user => $_[1] // $TEXT) }
sub reply { return message($_[0], assistant => $_[1] // $TEXT) }
sub conversation { return 'new-' . ++$names }


# a refusal: status, code, and a message for whoever reads it

sub refused {
    my ($res, $status, $code, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($res->status . ' ' . $site->code($res), "$status $code", $name)
        || diag($res->head, $res->body);

    my $data = eval { $res->json };

    ok(($res->header('Content-Type') // '') =~ m{\Aapplication/json\b}
       && join(' ', sort keys %$data) eq 'error'
       && join(' ', sort keys %{$data->{error}}) eq 'code message'
       && length $data->{error}{message}, "$name: in the form of a refusal")
        || diag($res->head, $res->body);
}


sub is_utf8 {
    my ($bytes) = @_;

    return eval { Encode::decode('UTF-8', $bytes,
                                 Encode::FB_CROAK() | Encode::LEAVE_SRC()); 1 };
}


# what the ad server was asked for a conversation

sub calls {
    my ($path, $conversation) = @_;

    return grep { ($_->json->{conversationId} // '') eq $conversation }
                $ads->requests($path);
}


# the /init of a user, as the ad server got it

sub init_of {
    my ($user) = @_;

    return wait_until("/init of $user", sub {
        my ($init) = grep { $_->json->{userId} eq $user }
                          $ads->requests('/init');

        return $init;
    });
}


# A user's message and its preload as data.  A message of the same session
# with another id each time.

my $messages = 0;

sub preload_of {
    my ($id, %args) = @_;
    my $message = user('p-' . ++$messages);

    is($site->add($id, $message, %args)->status, 202, 'a message is taken');

    my $preload;

    do { $preload = $site->preload->json }
        until $preload->{messages}[-1]{id} eq $message->{id};

    $site->settled($id, undef, %args);

    return $preload;
}


# a new session and the same again

{
    my $conversation = conversation();
    my $res = $site->create({ userId => 'u-1',
                              conversationId => $conversation });
    my $state = $res->json;
    my $id = $state->{sessionId};

    is($res->status, 201, 'a new session: 201');
    like($res->header('Content-Type'), qr{\Aapplication/json\b}, 'as JSON');
    like($id, qr/\A$ID\z/, 'its id');
    is($res->header('Location'), "/kontext/sessions/$id", 'its Location');
    is($state->{userId}, 'u-1', 'its user');
    is($state->{conversationId}, $conversation, 'its conversation');
    like($state->{createdAt}, $TIME, 'its time');
    is_deeply([ @$state{qw(disabled preload messages ads)} ],
              [ $NO, 'none', [], {} ], 'nothing has happened in it');
    ok(!exists $state->{serverSessionId},
       'the ad server has not given an id yet');
    is_deeply([ sort keys %$state ],
              [ sort qw(sessionId userId conversationId createdAt disabled
                        preload flags messages ads) ],
              'a session has these members');
    is_deeply([ nulls_in($state) ], [], 'and no nulls');

    my $init = $ads->wait_request(path => '/init');
    my $body = $init->json;

    is_deeply([ sort keys %$body ],
              [ sort qw(publisherToken userId installId sdk) ],
              '/init: these members and no other');
    is($body->{userId}, 'u-1', '/init: of the user');
    is($body->{publisherToken}, $TOKEN, '/init: with the token');
    is($init->header('Kontextso-Publisher-Token'), $TOKEN,
       '/init: and in the header');

    $state = $site->wait_for($id, sub { $_[0]{flags}{init} });
    is_deeply($state->{flags},
              { enabled => $YES, preloadTimeout => 16000, init => $YES,
                reportErrors => $YES, reportDebug => $NO },
              'the flags after /init');

    my $again = $site->create({ userId => 'u-1',
                                conversationId => $conversation });

    is($again->status, 200, 'the same again: 200');
    is($again->header('Location'), "/kontext/sessions/$id",
       'the same again: its Location');
    is_deeply($again->json, $state, 'the same again: the same session');

    my $get = $site->call(GET => "sessions/$id");

    is($get->status, 200, 'GET: 200');
    is_deeply($get->json, $state, 'GET: the session');
    is_deeply($site->nginx->client->get($res->header('Location'))
              ->read_response->json, $state, 'GET of the Location');

    my $head = $site->call(HEAD => "sessions/$id");

    is($head->status, 200, 'HEAD: 200');
    is($head->header('Content-Length'), length $get->body,
       'HEAD: the length of what GET would say');
    is($head->body, '', 'HEAD: no body');
    like($get->header('Cache-Control') // '', qr/no-store|private/,
         'nobody else may keep it');

    is($site->get("$id?x=1")->status, 200, 'an argument does not matter');

    my %others = (
        'another conversation' => { userId => 'u-1',
                                    conversationId => conversation() },
        'another user elsewhere' => { userId => 'u-2',
                                      conversationId => conversation() },
    );

    foreach my $name (sort keys %others) {
        my $other = $site->create($others{$name});

        is($other->status, 201, "$name: 201");
        isnt($other->json->{sessionId}, $id, "$name: another id");
    }

    is($site->get($id)->status, 200, 'and the first one lives on');
}


# /init does not hold the answer up, and is sent once

{
    my $conversation = conversation();
    my %who = (userId => 'u-slow-init', conversationId => $conversation);

    $ads->hold('/init');

    my $id = $site->session(\%who, init => 0);
    my $init = $site->held('/init');

    ok(!$site->state($id)->{flags}{init},
       'a session without an answer to /init');
    is_deeply($site->state($id)->{flags},
              { enabled => $YES, preloadTimeout => 16000, init => $NO,
                reportErrors => $YES, reportDebug => $NO },
              'it has the defaults');
    is($site->create(\%who)->status, 200, 'made again while /init runs');
    $site->add($id, user('m1'));
    is($site->preload->json->{conversationId}, $conversation,
       'a preload does not wait for /init');
    $site->settled($id, 'filled');

    $init->respond(200, { enabled => $YES, preloadTimeout => 9000,
                          reportErrors => $NO, reportDebug => $YES });
    $site->wait_for($id, sub { $_[0]{flags}{init} });
    is_deeply($site->state($id)->{flags},
              { enabled => $YES, preloadTimeout => 9000, init => $YES,
                reportErrors => $NO, reportDebug => $YES },
              'a late answer to /init is applied');

    $ads->on('/init', 200, { enabled => $YES });
    is($site->create(\%who)->status, 200, 'made again after /init');
    $site->add($id, user('m2'));
    $site->preload;
    $site->settled($id, 'filled');
    $site->turn(chat('Hi'), asks => ['preload'],
                headers => { 'X-User' => 'u-slow-init',
                             'X-Conversation' => $conversation });
    $site->nginx->barrier;
    is(scalar(grep { $_->json->{userId} eq 'u-slow-init' }
                   $ads->requests('/init')), 1,
       'one /init, whatever happens in the session');
}


# made at the same time on many connections: one session

{
    my %who = (userId => 'u-many', conversationId => conversation());
    my @clients = map { $site->start(POST => 'sessions', \%who) } 1 .. 8;
    my @answers = map { $_->read_response } @clients;
    my %ids = map { ($_->json->{sessionId} => 1) } @answers;

    is(join(' ', sort map { $_->status } @answers),
       join(' ', (200) x 7, 201), 'made eight times at once: one is new');
    is(scalar keys %ids, 1, 'and all are the same');
    $site->nginx->barrier;
    is(scalar(grep { $_->json->{userId} eq 'u-many' }
                   $ads->requests('/init')), 1, 'with one /init');
}


# what /init says

$ads->on('/init', 200, { enabled => $NO });

{
    my $conversation = conversation();
    my $id = $site->session({ conversationId => $conversation });
    my $state = $site->state($id);

    is($state->{disabled}, $YES, 'enabled:false: the session is disabled');
    is($state->{flags}{enabled}, $NO, 'enabled:false: the flag');

    my $res = $site->add($id, [ user('m1'), reply('m2') ]);

    is($res->status, 202, 'disabled: messages are taken still');
    is_deeply($res->json, { accepted => 2, repeated => 0,
                            preload => 'disabled' }, 'disabled: and it says so');
    is_deeply([ map { $_->{id} } @{$site->state($id)->{messages}} ],
              [ 'm1', 'm2' ], 'disabled: messages are kept');
    refused($site->ad($id, 'm2'), 404, 'no_ad', 'disabled: no ad');
    is($site->create({ userId => 'u-1', conversationId => $conversation })
       ->json->{disabled}, $YES, 'disabled: made again, it still is');

    # a preload of another session is later than one of this would be

    $ads->on('/init', 200, { enabled => $YES });
    preload_of($site->session);
    is(scalar(my @calls = calls('/preload', $conversation)), 0,
       'disabled: nothing is asked');

    is($site->close($id)->status, 204, 'disabled: closed');
    $id = $site->session({ conversationId => $conversation });
    is($site->state($id)->{disabled}, $NO, 'a new session is enabled');
    preload_of($id);
}

# enabled:false while a preload runs

{
    my $conversation = conversation();

    $ads->hold('/init');
    $ads->hold('/preload');

    my $id = $site->session({ conversationId => $conversation }, init => 0);
    my $init = $site->held('/init');

    $site->add($id, user('m1'));

    my $preload = $site->preload;

    $init->respond(200, { enabled => $NO });
    $site->wait_for($id, sub { $_[0]{disabled} });
    is($site->state($id)->{preload}, 'pending',
       'enabled:false, late: the running preload goes on');
    is($preload->closed, undef, 'enabled:false, late: it is not cancelled');
    $preload->respond(200, Kontext::Mock->bid);
    $site->settled($id, 'filled');
    is($site->add($id, reply('m2'))->status, 202,
       'enabled:false, late: the answer is taken');
    is($site->ad($id, 'm2')->status, 200,
       'enabled:false, late: and what has run already has its ad');

    $ads->on('/init', 200, { enabled => $YES });
    $ads->on('/preload', 200, Kontext::Mock->bid);
}

# other answers

{
    my %defaults = (enabled => $YES, preloadTimeout => 16000,
                    reportErrors => $YES, reportDebug => $NO);

    foreach my $case (
        [ 'all flags', { enabled => $YES, preloadTimeout => 8000,
                         reportErrors => $NO, reportDebug => $YES },
          200, { enabled => $YES, preloadTimeout => 8000, reportErrors => $NO,
                 reportDebug => $YES } ],
        [ 'status 201', { preloadTimeout => 8000 },
          201, { preloadTimeout => 8000 } ],
        [ 'an empty object', {}, 200, {} ],
        [ 'nulls', {}, 200, { map { ($_ => undef) } keys %defaults } ],
        [ 'wrong types', {}, 200, { enabled => 'false', reportErrors => 0,
                                    reportDebug => 'true' } ],
        [ 'a wrong type and a right one', { reportErrors => $NO },
          200, { preloadTimeout => 'soon', reportErrors => $NO } ],
        [ 'no time', {}, 200, { preloadTimeout => 0 } ],
        [ 'a time before now', {}, 200, { preloadTimeout => -5 } ],
        [ 'unknown members', {}, 200, { x => [ { y => 1 } ] } ],
        [ '204', {}, 204 ],
        [ 'no body', {}, 200, '' ],
        [ '500', {}, 500, { enabled => $NO } ],
        [ '404', {}, 404, { enabled => $NO } ],
        [ 'no JSON', {}, 200, '<html>', 'Content-Type' => 'text/html' ],
        [ 'cut JSON', {}, 200, '{"enabled":false' ],
        [ 'a list', {}, 200, [] ],
    ) {
        my ($name, $flags, @answer) = @$case;

        $ads->on('/init', @answer);

        my $id = $site->session({ userId => "u-$name" }, init => 0);

        init_of("u-$name")->wait_closed;

        # nginx has the answer before it reads what comes now

        $site->nginx->barrier;

        my $state = $site->state($id);
        my $answered = delete $state->{flags}{init};

        is_deeply($state->{flags}, { %defaults, %$flags },
                  "/init answers $name: the flags");
        is($state->{disabled}, $NO, "/init answers $name: enabled");
        is($answered, $YES, "/init answers $name: it has answered")
            if $name !~ /JSON|list/;
        ok(preload_of($id), "/init answers $name: there are ads");
    }

    $ads->on('/init', 200, { enabled => $YES });
}


# ids are not to be guessed

{
    my @ids = map { $site->session(undef, init => 0) } 1 .. 64;
    my %seen = map { ($_ => 1) } @ids;
    my %lengths = map { (length($_) => 1) } @ids;
    my $moving = grep {
        my $i = $_;
        my %letters = map { (substr($_, $i, 1) => 1) } @ids;

        keys %letters > 8
    } 4 .. length($ids[0]) - 1;

    is(scalar keys %seen, 64, 'all ids are different');
    is(scalar keys %lengths, 1, 'and of the same length');

    # 128 bits are 22 characters even if each of them has all six bits

    cmp_ok($moving, '>=', 22, 'and differ nearly everywhere');

    my $id = $ids[7];
    my @mutations = (
        (map { my $i = $_; map { my $m = $id;
                                 substr($m, $i, 1) = $_; $m }
                               grep { $_ ne substr($id, $i, 1) }
                                    'a', 'b', '2', 'A', '-' }
             0 .. length($id) - 1),
        uc($id), substr($id, 0, -1), substr($id, 1), substr($id, 4),
        "${id}a", "a$id", "$id%01", "$id%20", "%20$id", 'kxs_', 'x', '%ff',
        'kxs_' . 'a' x 32, 'kxs_' . 'a' x 5000, '..', $SESSION,
    );
    my @found = grep { $site->get($_)->status != 404 } @mutations;

    is(join(' ', @found), '', 'no other id is a session: '
       . scalar(@mutations) . ' tries');
    is($site->get($id)->status, 200, 'but the right one');
}


# another user goes on in a conversation

{
    my $conversation = conversation();
    my %by = map { ($_ => { userId => $_, conversationId => $conversation }) }
                 'u-1', 'u-2';
    my $first = $site->session($by{'u-1'});

    preload_of($first);
    $site->add($first, reply('a1'));
    is($site->state($first)->{serverSessionId}, $SESSION,
       'the first user has a session of the ad server');

    my $second = $site->session($by{'u-2'});

    isnt($second, $first, 'another user: another session');
    refused($site->get($first), 404, 'unknown_session',
            'another user: the older session is closed');
    refused($site->ad($first, 'a1'), 404, 'unknown_session',
            'another user: its ads are gone');
    is_deeply([ @{$site->state($second)}{'messages', 'ads'} ], [ [], {} ],
              'another user: nothing of the older one');
    ok(!exists preload_of($second)->{sessionId},
       'another user: no sessionId of the older one');

    my $third = $site->session($by{'u-1'});

    ok($third ne $first && $third ne $second,
       'the first user again: a third session');
    refused($site->get($second), 404, 'unknown_session',
            'the first user again: the second is closed');
    ok(!exists preload_of($third)->{sessionId},
       'the first user again: no sessionId');

    # a chat does the same

    $site->turn(chat('Hi'), asks => ['init', 'preload'],
                headers => { 'X-User' => 'u-2',
                             'X-Conversation' => $conversation });
    refused($site->get($third), 404, 'unknown_session',
            'another user in a chat: the session is closed');
}


# sessions of chats are the same sessions

{
    my $conversation = conversation();
    my %in = (headers => { 'X-Conversation' => $conversation });
    my $turn = $site->turn(chat('Hi'), %in, asks => ['init', 'preload']);
    my $res = $site->create({ userId => 'u-1',
                              conversationId => $conversation });

    is($res->status, 200, 'a chat has made the session already');
    is($res->json->{serverSessionId}, $SESSION, 'with the ad server\'s id');
    is($res->json->{preload}, 'filled', 'with its preload');

    my $id = $res->json->{sessionId};

    like($id, qr/\A$ID\z/, 'it has an id');
    is(preload_of($id)->{sessionId}, $SESSION, 'and goes on');
    is($site->close($id)->status, 204, 'closed by the API');
    ok(!exists $site->turn(chat('Hi', 'Light ones.', 'And?'), %in,
                           asks => ['init', 'preload'])
       ->asked('preload')->json->{sessionId}, 'the chat has a new one then');
    refused($site->get($id), 404, 'unknown_session', 'which has another id');
}


# the character of a session

my %character = (
    id => 'char-1', name => "Zo\x{e9} \"Z\"", isNsfw => $NO, tags => [ 'a', 'b' ],
    avatarUrl => 'https://c.example/a.png?x=1&y=%20', greeting => 'Hello',
    persona => "line\nline",
);

{
    my $conversation = conversation();
    my %who = (userId => 'u-1', conversationId => $conversation);
    my $id = $site->session({ %who, character => \%character });

    is_deeply(preload_of($id)->{character}, \%character,
              'a character is sent as it is');
    is($site->create({ %who, character => \%character })->status, 200,
       'the same character again: 200');
    is($site->create(\%who)->status, 200, 'no character: 200');

    my $json = JSON::PP->new->utf8->canonical;
    my $turned = join(",\n ", reverse map { $json->allow_nonref->encode($_)
                                  . ' : ' . $json->encode($character{$_}) }
                          sort keys %character);

    is($site->create(qq({"character": {$turned}, "conversationId": )
                     . qq("$conversation", "userId": "u-1"}))->status, 200,
       'the same one, written otherwise: 200');

    foreach my $other ({ %character, id => 'char-2' },
                       { %character, name => 'Zoe' },
                       { %character, tags => [ 'b', 'a' ] },
                       { %character, isNsfw => $YES },
                       { id => 'char-1', name => $character{name} })
    {
        refused($site->create({ %who, character => $other, variantId => 'x' }),
                409, 'immutable', 'another character');
    }

    refused($site->patch($id, { character => \%character }), 409, 'immutable',
            'PATCH of a character');

    my $preload = preload_of($id);

    is_deeply($preload->{character}, \%character, 'it is as it was');
    ok(!exists $preload->{variantId}, 'and nothing else of such a call is taken');

    is($site->close($id)->status, 204, 'closed');
    $id = $site->session({ %who, character => { id => 'char-2', name => 'B',
                                                tags => [] } });
    is_deeply(preload_of($id)->{character},
              { id => 'char-2', name => 'B', tags => [] },
              'a new session has another one; an empty list stays a list');

    $id = $site->session({ %who, conversationId => conversation() });
    ok(!exists preload_of($id)->{character}, 'no character, no member');

    $id = $site->session({ %who, conversationId => conversation(),
                           character => \%character }, api => '/directives');
    is_deeply(preload_of($id, api => '/directives')->{character}, \%character,
              'it goes before the directive');

    $id = $site->session({ %who, conversationId => conversation() },
                         api => '/directives');
    is(preload_of($id, api => '/directives')->{character}{id},
       'character-of-directive', 'without one there is the directive');
}


# what can be changed, and how it reaches the ad server

my %regulatory = (gdpr => 0, gdprConsent => 'CPtext', coppa => 1,
                  gpp => 'DBAA', gppSid => [ 7, 8 ], usPrivacy => '1YYY');
my %of_directives = (gdpr => 1, coppa => 0, gppSid => [ 2, 6 ],
                     gdprConsent => 'consent-of-directive',
                     gpp => 'gpp-of-directive', usPrivacy => '1YNN');

{
    my %who = (userId => 'u-1', conversationId => conversation());
    my $id = $site->session({ %who, regulatory => \%regulatory,
                              variantId => 'v-1',
                              userEmail => 'a@example.com' });
    my $preload = preload_of($id);

    is_deeply($preload->{regulatory}, \%regulatory, 'regulatory, of POST');
    is($preload->{variantId}, 'v-1', 'variantId, of POST');
    is($preload->{userEmail}, 'a@example.com', 'userEmail, of POST');

    my $res = $site->patch($id, { variantId => 'v-2' });

    is($res->status, 200, 'PATCH: 200');
    is($res->json->{sessionId}, $id, 'PATCH: with the session');
    $preload = preload_of($id);
    is($preload->{variantId}, 'v-2', 'PATCH replaces');
    is($preload->{userEmail}, 'a@example.com', 'PATCH leaves what it has not');
    is_deeply($preload->{regulatory}, \%regulatory, 'PATCH leaves regulatory');

    is($site->patch($id, { variantId => undef, userEmail => 'b@example.com',
                           regulatory => undef })->status, 200,
       'PATCH with null: 200');
    $preload = preload_of($id);
    is($preload->{variantId}, 'v-2', 'null leaves variantId');
    is($preload->{userEmail}, 'b@example.com', 'and the other is taken');
    is_deeply($preload->{regulatory}, \%regulatory, 'null leaves regulatory');

    is($site->patch($id, {})->status, 200, 'PATCH of nothing: 200');
    is($site->patch($id, { regulatory => { gppSid => [], gdpr => 1 } })->status,
       200, 'PATCH of regulatory');
    $preload = preload_of($id);
    is_deeply($preload->{regulatory}, { gppSid => [], gdpr => 1 },
              'PATCH replaces regulatory; an empty list stays a list');

    is($site->create({ %who, variantId => 'v-3' })->status, 200,
       'POST of a session that lives');
    $preload = preload_of($id);
    is($preload->{variantId}, 'v-3', 'is as good as PATCH');
    is($preload->{userEmail}, 'b@example.com', 'and leaves the rest');

    foreach my $case ([ userId => 'u-2' ], [ conversationId => 'c-9' ],
                      [ sessionId => $SESSION ], [ disabled => $NO ],
                      [ publisherToken => 'x' ], [ flags => {} ],
                      [ colour => 'red' ])
    {
        refused($site->patch($id, { variantId => 'v-4', @$case }), 409,
                'immutable', "PATCH of $case->[0]");
    }

    is(preload_of($id)->{variantId}, 'v-3', 'nothing of such a call is taken');

    foreach my $case ([ variantId => 7 ], [ userEmail => [] ],
                      [ regulatory => 'x' ], [ regulatory => [] ])
    {
        refused($site->patch($id, { @$case }), 400, 'bad_member',
                "PATCH of $case->[0] of a wrong type");
    }

    # not to be changed while a preload runs

    $ads->hold('/preload');
    $site->add($id, user('now'));

    my $running = $site->preload;

    is($site->patch($id, { variantId => 'v-5' })->status, 200,
       'PATCH while a preload runs');
    is($running->closed, undef, 'it goes on');
    $running->respond(200, Kontext::Mock->bid);
    $site->settled($id, 'filled');
    $ads->on('/preload', 200, Kontext::Mock->bid);
    is(preload_of($id)->{variantId}, 'v-5', 'the next one has it');
}

# before the directives

{
    my %at = (api => '/directives');
    my $id = $site->session(undef, %at);
    my $preload = preload_of($id, %at);

    is_deeply($preload->{regulatory}, \%of_directives,
              'regulatory of the directives');
    is($preload->{variantId}, 'variant-of-directive', 'variantId of the directive');
    is($preload->{userEmail}, 'directive@example.com',
       'userEmail of the directive');

    $site->patch($id, { variantId => 'own', userEmail => 'own@example.com' },
                 %at);
    $preload = preload_of($id, %at);
    is($preload->{variantId}, 'own', 'variantId of the session wins');
    is($preload->{userEmail}, 'own@example.com', 'userEmail, too');
    is_deeply($preload->{regulatory}, \%of_directives, 'the rest is as it was');

    foreach my $member (sort keys %regulatory) {
        $id = $site->session({ regulatory => {
            $member => $regulatory{$member} } }, %at);
        is_deeply(preload_of($id, %at)->{regulatory},
                  { %of_directives, $member => $regulatory{$member} },
                  "regulatory of the session wins member by member: $member");
    }

    # chats of that session

    my $conversation = conversation();
    my %chat = (headers => { 'X-Conversation' => $conversation,
                             'X-Variant' => 'of-chat', 'X-GDPR' => 1,
                             'X-Consent' => 'of-chat', 'X-USP' => '1NNN' });

    $id = $site->session({ conversationId => $conversation,
                           variantId => 'own', regulatory => { gdpr => 0 } });

    my $turn = $site->turn(chat('Hi'), %chat, asks => ['preload']);

    $preload = $turn->asked('preload')->json;
    is($preload->{variantId}, 'own', 'a chat has the variantId of the session');
    is_deeply($preload->{regulatory},
              { gdpr => 0, gdprConsent => 'of-chat', usPrivacy => '1NNN' },
              'and its regulatory, member by member');

    $site->patch($id, { regulatory => { gdprConsent => 'of-patch' },
                        userEmail => 'c@example.com' });
    $preload = $site->turn(chat('Hi', 'Light ones.', 'And?'), %chat,
                           asks => ['preload'])->asked('preload')->json;
    is_deeply($preload->{regulatory},
              { gdpr => 1, gdprConsent => 'of-patch', usPrivacy => '1NNN' },
              'what is patched counts from the next turn of the chat on');
    is($preload->{userEmail}, 'c@example.com', 'each member of it');
}


# what POST sessions takes and what not

{
    my %who = (userId => 'u-1', conversationId => conversation());
    my $sub = sub { return { %who, @_ } };
    my $as = sub { return { %who, character => { id => 'a', name => 'A',
                                                 @_ } } };

    foreach my $case (
        [ 'a misspelt member', $sub->(regulatroy => {}), 'unknown_member' ],
        [ 'a token', $sub->(publisherToken => 'x'), 'unknown_member' ],
        [ 'an id', $sub->(sessionId => 'kxs_x'), 'unknown_member' ],
        [ 'placements', $sub->(enabledPlacementCodes => []), 'unknown_member' ],
        [ 'a member in other letters', $sub->(userid => 'u-1'),
          'unknown_member' ],
        [ 'no user', { conversationId => 'c' }, 'missing_member' ],
        [ 'no conversation', { userId => 'u' }, 'missing_member' ],
        [ 'nothing', {}, 'missing_member' ],
        [ 'an empty user', $sub->(userId => ''), 'bad_member' ],
        [ 'an empty conversation', $sub->(conversationId => ''), 'bad_member' ],
        [ 'a user of 257 bytes', $sub->(userId => 'u' x 257), 'bad_member' ],
        [ 'a user of 129 letters of two bytes',
          $sub->(userId => "\x{e9}" x 129), 'bad_member' ],
        [ 'a conversation of 257 bytes', $sub->(conversationId => 'c' x 257),
          'bad_member' ],
        [ 'a user that is a number', $sub->(userId => 1), 'bad_member' ],
        [ 'a user that is a list', $sub->(userId => [ 'u-1' ]), 'bad_member' ],
        [ 'a variantId that is a number', $sub->(variantId => 1),
          'bad_member' ],
        [ 'a userEmail that is true', $sub->(userEmail => $YES),
          'bad_member' ],
        [ 'a character that is a string', $sub->(character => 'x'),
          'bad_member' ],
        [ 'a character that is a list', $sub->(character => []),
          'bad_member' ],
        [ 'a name that is a number', $as->(name => 1),
          'bad_member' ],
        [ 'tags that are a string', $as->(tags => 'a'),
          'bad_member' ],
        [ 'tags of numbers', $as->(tags => [ 1 ]),
          'bad_member' ],
        [ 'isNsfw that is a string', $as->(isNsfw => 'no'),
          'bad_member' ],
        [ 'regulatory that is a list', $sub->(regulatory => []),
          'bad_member' ],
        [ 'gdpr that is true', $sub->(regulatory => { gdpr => $YES }),
          'bad_member' ],
        [ 'gdpr that is a word', $sub->(regulatory => { gdpr => 'yes' }),
          'bad_member' ],
        [ 'gdpr of 2', $sub->(regulatory => { gdpr => 2 }), 'bad_member' ],
        [ 'coppa of 0.5', $sub->(regulatory => { coppa => 0.5 }),
          'bad_member' ],
        [ 'coppa of -1', $sub->(regulatory => { coppa => -1 }),
          'bad_member' ],
        [ 'gppSid that is a string', $sub->(regulatory => { gppSid => '2' }),
          'bad_member' ],
        [ 'gppSid of strings', $sub->(regulatory => { gppSid => [ '2' ] }),
          'bad_member' ],
        [ 'gpp that is a number', $sub->(regulatory => { gpp => 1 }),
          'bad_member' ],
    ) {
        my ($name, $data, $code) = @$case;

        refused($site->create($data), 400, $code, $name);
    }

    is($site->create(\%who)->status, 201,
       'none of these calls has made a session');

    # what is misspelt there is lost as well

    foreach my $case ([ regulatory => { gdpr => 1, gdprConsnt => 'x' } ],
                      [ character => { id => 'a', name => 'A',
                                       isNSFW => $YES } ])
    {
        refused($site->create({ %who, conversationId => conversation(),
                                @$case }), 400, 'unknown_member',
                "a misspelt member of $case->[0]");
    }

    foreach my $case (
        [ '256 bytes', 'u' x 256, 'c' x 256 ],
        [ 'one byte', 'u', 'c' ],
        [ 'letters of two bytes', "\x{e9}" x 128, "\x{e9}" x 128 ],
        [ 'all kinds', "u/1 \"\\\x{2028}\x{1f600}<%2f>?&#", "c/../\t\n" ],
    ) {
        my ($name, $user, $conversation) = @$case;
        my $res = $site->create({ userId => $user,
                                  conversationId => $conversation });

        is($res->status, 201, "ids of $name: 201");
        is($res->json->{userId}, $user, "ids of $name: the user");
        is($res->json->{conversationId}, $conversation,
           "ids of $name: the conversation");

        my $preload = preload_of($res->json->{sessionId});

        is($preload->{userId}, $user, "ids of $name: the user, on the wire");
        is($preload->{conversationId}, $conversation,
           "ids of $name: the conversation, on the wire");
    }
}


# what is no JSON

my @NO_JSON = (
    [ 'nothing', '' ],
    [ 'white space', " \r\n" ],
    [ 'a text', 'userId=u-1' ],
    [ 'an open object', '{' ],
    [ 'an open string', '{"userId":"u' ],
    [ 'a cut object', '{"userId":"u-1","conversationId":"c-1"' ],
    [ 'no value', '{"userId":}' ],
    [ 'no colon', '{"userId" "u-1"}' ],
    [ 'no comma', '{"userId":"u-1" "conversationId":"c-1"}' ],
    [ 'a comma at the end', '{"userId":"u-1","conversationId":"c-1",}' ],
    [ 'two commas', '{"userId":"u-1",,"conversationId":"c-1"}' ],
    [ 'a name without quotes', '{userId:"u-1","conversationId":"c-1"}' ],
    [ 'single quotes', q({'userId':'u-1','conversationId':'c-1'}) ],
    [ 'something behind', '{"userId":"u-1","conversationId":"c-1"}x' ],
    [ 'two objects', '{"userId":"u-1","conversationId":"c-1"}{}' ],
    [ 'a brace too many', '{"userId":"u-1","conversationId":"c-1"}}' ],
    [ 'a comment', '{"userId":"u-1",/**/"conversationId":"c-1"}' ],
    [ 'a word that is none', '{"userId":"u-1","conversationId":True}' ],
    [ 'no number', '{"userId":"u-1","conversationId":NaN}' ],
    [ 'a number that is none', '{"userId":"u-1","conversationId":01}' ],
    [ 'a minus', '{"userId":"u-1","conversationId":-}' ],
    [ 'a bad escape', '{"userId":"u\x","conversationId":"c-1"}' ],
    [ 'a short escape', '{"userId":"u\u12","conversationId":"c-1"}' ],
    [ 'a line end in a string', qq({"userId":"u\n1","conversationId":"c-1"}) ],
    [ 'a NUL in a string', qq({"userId":"u\0","conversationId":"c-1"}) ],
    [ 'a NUL behind', qq({"userId":"u-1","conversationId":"c-1"}\0) ],
    [ 'UTF-16', join('', map { "$_\0" } split //, '{"userId":"u-1"}') ],
    [ 'many brackets', '[' x 100_000 ],
    [ 'many objects', '{"userId":' x 20_000 ],
    [ 'many closed brackets', '{"userId":' . '[' x 50_000 . ']' x 50_000 . '}' ],
);

{
    my $id = $site->session;
    my $c = $site->nginx->client;

    foreach my $case (@NO_JSON) {
        my ($name, $body) = @$case;

        foreach my $call ([ POST => 'sessions' ], [ PATCH => "sessions/$id" ],
                          [ POST => "sessions/$id/messages" ],
                          [ POST => "sessions/$id/events" ])
        {
            my ($method, $path) = @$call;
            my $where = $method . ' ' . $path =~ s/\Q$id\E/{id}/r;

            refused($site->call($method, $path, $body, client => $c),
                    400, 'bad_json', "$name: $where");
        }
    }

    # JSON, but no object

    foreach my $body ('null', 'true', '1', '"x"', '[]', '[{}]') {
        foreach my $call ([ POST => 'sessions' ], [ PATCH => "sessions/$id" ],
                          [ POST => "sessions/$id/events" ])
        {
            my $res = $site->call(@$call, $body);

            is($res->status, 400, "$body is nothing for $call->[0]: 400");
            like($site->code($res), qr/\Abad_(?:json|member|event)\z/,
                 "$body is nothing for $call->[0]: the code");
        }
    }

    is_deeply($site->state($id)->{messages}, [], 'nothing has come of all that');
}

# what is JSON, but no UTF-8: refused, or what is made of it is UTF-8

foreach my $case ([ 'a byte that is none', "\xff" ],
                  [ 'a character that is too long', "\xc0\xaf" ],
                  [ 'a cut character', "\xc3" ],
                  [ 'a surrogate', "\xed\xa0\x80" ],
                  [ 'what is no character any more', "\xf4\x90\x80\x80" ],
                  [ 'half a surrogate pair', '\ud83d' ],
                  [ 'the other half', '\ude00' ],
                  [ 'a pair the wrong way round', '\ude00\ud83d' ])
{
    my ($name, $bytes) = @$case;
    my $conversation = conversation();
    my $id = $site->session({ conversationId => $conversation });
    my @answers = map { $site->call(@$_) } (
        [ POST => 'sessions', qq({"userId":"u$bytes","conversationId":"c"}) ],
        [ POST => 'sessions', qq({"userId":"u-1","conversationId":)
                              . qq("$conversation","variantId":"v$bytes"}) ],
        [ PATCH => "sessions/$id", qq({"variantId":"v$bytes"}) ],
        [ POST => "sessions/$id/messages",
          qq([{"id":"m$bytes","role":"assistant","content":"x"}]) ],
        [ POST => "sessions/$id/messages",
          qq({"id":"m1","role":"assistant","content":"x$bytes"}) ],
        [ GET => "sessions/$id" ]);
    my $preload;

    $site->add($id, user('m2'));

    do { $preload = $site->preload }
        until index($preload->body, qq("$conversation")) >= 0;

    foreach my $answer (@answers, $preload) {
        my $text = $answer->body;
        my $what = $answer == $preload ? '/preload' : $answer->status;

        like($answer->status, qr/\A(?:20\d|400)\z/,
             "not UTF-8, $name: $what") if $answer != $preload;
        ok(is_utf8($text), "not UTF-8, $name: $what is") || diag($text);
    }
}

# members that are there twice: refused, or one of them counts

{
    my $id = $site->session;
    my $conversation = conversation();

    foreach my $case (
        [ POST => 'sessions', qq({"userId":"u-1","userId":"u-2",)
                              . qq("conversationId":"$conversation"}) ],
        [ POST => 'sessions', qq({"userId":"u-1","\\u0075serId":"u-2",)
                              . qq("conversationId":"$conversation"}) ],
        [ POST => 'sessions', qq({"userId":"u-1","conversationId":)
                              . qq("$conversation","regulatory":{"gdpr":0},)
                              . qq("regulatory":{"gdpr":1}}) ],
        [ POST => 'sessions', qq({"userId":"u-1","conversationId":)
                              . qq("$conversation","regulatory":)
                              . qq({"gdpr":0,"gdpr":1}}) ],
        [ PATCH => "sessions/$id", '{"variantId":"a","variantId":"b"}' ],
        [ POST => "sessions/$id/messages",
          '{"id":"m1","id":"m2","role":"assistant","content":"x"}' ],
    ) {
        my $res = $site->call(@$case);

        like($res->status, qr/\A(?:20[012]|400)\z/,
             "$case->[0] with a member twice: no harm")
            || diag("$case->[2]\n", $res->body);
    }

    cmp_ok(scalar @{$site->state($id)->{messages}}, '<', 2,
           'a message with two ids is not two messages');
}

# escapes are only another way to write it

{
    my $conversation = conversation();
    my $res = $site->create(qq(\n { "user\\u0049d" : "u\\/\\u0031\\ud83d\\ude00",)
                            . qq(\t"conversationId":"$conversation"}\r\n ));

    is($res->status, 201, 'escapes and white space');
    is($res->json->{userId}, "u/1\x{1f600}", 'are read');
    is($site->create({ userId => "u/1\x{1f600}",
                       conversationId => $conversation })->status, 200,
       'and are the same when they are written otherwise');
}


# nginx says who the user is

{
    my %at = (api => '/of-user');
    my %as1 = (%at, headers => { 'X-User' => 'u-1' });
    my %as2 = (%at, headers => { 'X-User' => 'u-2' });
    my $conversation = conversation();
    my $res = $site->create({ conversationId => $conversation }, %as1);
    my $id = $res->json->{sessionId};

    is($res->status, 201, 'userId left out: 201');
    is($res->json->{userId}, 'u-1', 'userId left out: nginx has it');
    is($res->header('Location'), "/of-user/sessions/$id",
       'the Location is in this location');
    is($site->create({ conversationId => $conversation, userId => 'u-1' },
                     %as1)->status, 200, 'userId said as well: 200');
    refused($site->create({ conversationId => $conversation, userId => 'u-2' },
                          %as1), 403, 'forbidden_user', 'another userId');
    is($site->get($id, %as1)->status, 200, 'the session lives on');

    $site->add($id, [ user('m1') ], %as1);
    $site->preload;
    $site->settled($id, 'filled', %as1);
    $site->add($id, reply('m2'), %as1);

    my $state = $site->state($id, %as1);

    refused($site->get($id, %as2), 404, 'unknown_session',
            'of another user: GET');
    refused($site->patch($id, { variantId => 'x' }, %as2), 404,
            'unknown_session', 'of another user: PATCH');
    refused($site->add($id, user('m3'), %as2), 404, 'unknown_session',
            'of another user: POST messages');
    refused($site->ad($id, 'm2', %as2), 404, 'unknown_session',
            'of another user: GET ads');
    refused($site->call(GET => "sessions/$id/events", undef, %as2), 404,
            'unknown_session', 'of another user: GET events');
    refused($site->report($id, { name => 'video.started', payload => {
                bidId => Kontext::Mock->bid->{bids}[0]{bidId} } }, %as2), 404,
            'unknown_session', 'of another user: POST events');
    $site->close($id, %as2);
    is_deeply($site->state($id, %as1), $state,
              'of another user: nothing has changed, nor is it closed');
    is($site->ad($id, 'm2', %as1)->status, 200, 'of the user: the ad');

    # where nginx has no user it is as without the directive

    refused($site->create({ conversationId => conversation() }, %at), 400,
            'missing_member', 'no user by nginx: userId is needed');
    is($site->create({ conversationId => conversation(), userId => 'u-9' },
                     %at)->json->{userId}, 'u-9',
       'no user by nginx: userId is taken');

    # the same user, seen from a location that asks for no user, and back

    my $other = $site->session({ userId => 'u-2' });

    refused($site->get($other, %as1), 404, 'unknown_session',
            'made elsewhere: not of this user');
    is($site->get($other, %as2)->status, 200, 'made elsewhere: of this user');

    # another user's conversation

    my $theirs = $site->create({ conversationId => $conversation }, %as2);

    is($theirs->status, 201, 'in the conversation of another: a new session');
    is_deeply([ @{$theirs->json}{'messages', 'ads', 'preload'} ],
              [ [], {}, 'none' ], 'with nothing of the other');
    refused($site->get($id, %as1), 404, 'unknown_session',
            'and the other is closed');

    # both by directives

    my %named = (api => '/of-names', headers => { 'X-User' => 'u-3',
        'X-Conversation' => 'conversation-of-directive' });

    $res = $site->create({}, %named);
    is($res->status, 201, 'nothing said at all: 201');
    is($res->json->{userId}, 'u-3', 'the user is the directive\'s');
    is($res->json->{conversationId}, 'conversation-of-directive',
       'and so is the conversation');
}


# another publisher

{
    my %there = (api => '/of-another');
    my %who = (userId => 'u-1', conversationId => conversation());
    my $here = $site->session(\%who);
    my $other = $site->session(\%who, %there);

    isnt($here, $other, 'two tokens, two sessions');
    is($site->get($here)->status, 200, 'one does not close the other');
    is(preload_of($other, %there)->{publisherToken}, 'another',
       'each with its token');

    refused($site->get($here, %there), 404, 'unknown_session',
            'of another token: GET');
    refused($site->get($other), 404, 'unknown_session',
            'of another token: GET, the other way');
    refused($site->patch($here, { variantId => 'x' }, %there), 404,
            'unknown_session', 'of another token: PATCH');
    refused($site->add($here, user('m1'), %there), 404, 'unknown_session',
            'of another token: POST messages');
    refused($site->call(GET => "sessions/$here/events", undef, %there), 404,
            'unknown_session', 'of another token: GET events');
    $site->close($here, %there);
    is($site->get($here)->status, 200, 'of another token: DELETE has no effect');
    is($site->state($here)->{preload}, 'none',
       'of another token: nothing has happened');
}


# DELETE

{
    my $conversation = conversation();
    my $id = $site->session({ conversationId => $conversation,
                              character => { id => 'a', name => 'A' } });

    preload_of($id);
    $site->add($id, reply('m2'));
    is($site->ad($id, 'm2')->status, 200, 'there is an ad');

    my $res = $site->close($id);

    is($res->status, 204, 'DELETE: 204');
    is($res->body, '', 'DELETE: no body');
    is($site->close($id)->status, 204, 'DELETE again: 204');
    is($site->close('kxs_' . 'a' x 32)->status, 204,
       'DELETE of what never was: 204');
    refused($site->close('kxs_x'), 404, 'unknown_session',
            'DELETE of what no id can be');

    refused($site->get($id), 404, 'unknown_session', 'closed: GET');
    refused($site->patch($id, {}), 404, 'unknown_session', 'closed: PATCH');
    refused($site->add($id, user('m3')), 404, 'unknown_session',
            'closed: POST messages');
    refused($site->ad($id, 'm2'), 404, 'unknown_session', 'closed: GET ads');
    refused($site->call(GET => "sessions/$id/events", undef), 404,
            'unknown_session', 'closed: GET events');
    refused($site->report($id, { name => 'ad.error', payload => {
                errCode => 'x', message => 'y' } }), 404, 'unknown_session',
            'closed: POST events');

    my $next = $site->session({ conversationId => $conversation,
                                character => { id => 'b', name => 'B' } });

    isnt($next, $id, 'made again: another session');
    is_deeply([ @{$site->state($next)}{'messages', 'ads', 'preload'} ],
              [ [], {}, 'none' ], 'made again: it starts empty');
    ok(!exists preload_of($next)->{sessionId}, 'made again: no sessionId');
}

# ... cancels what is under way, without a word

{
    my $conversation = conversation();

    $ads->hold('/init');
    $ads->hold('/preload');

    my $id = $site->session({ conversationId => $conversation }, init => 0);
    my $init = $site->held('/init');

    $site->add($id, user('m1'));

    my $preload = $site->preload;

    is($site->close($id)->status, 204, 'DELETE while /init and /preload run');
    is($preload->wait_closed, 'eof', 'DELETE cancels /preload');
    is($init->wait_closed, 'eof', 'DELETE cancels /init');
    $ads->on('/init', 200, { enabled => $YES });
    $ads->on('/preload', 200, Kontext::Mock->bid);
    is(scalar(grep { ($_->json->{additionalData}{conversationId} // '')
                     eq $conversation } $ads->requests('/error')), 0,
       'DELETE: nothing is reported');

    # not yet under way: the same packet brings message and end

    $conversation = conversation();
    $id = $site->session({ conversationId => $conversation });

    my $c = $site->nginx->client;
    my $body = json(user('m1'));

    $c->send("POST /kontext/sessions/$id/messages HTTP/1.1\r\nHost: x\r\n"
             . "Content-Type: application/json\r\nContent-Length: "
             . length($body) . "\r\n\r\n$body"
             . "DELETE /kontext/sessions/$id HTTP/1.1\r\nHost: x\r\n\r\n");
    is($c->read_response->json->{preload}, 'scheduled', 'a preload is due');
    is($c->read_response->status, 204, 'and the session closed');
    preload_of($site->session);
    is(scalar(my @calls = calls('/preload', $conversation)), 0,
       'DELETE cancels a preload that is due');
}

# ... and so does another user

{
    my $conversation = conversation();
    my $id = $site->session({ conversationId => $conversation });

    $ads->hold('/preload');
    $site->add($id, user('m1'));

    my $preload = $site->preload;

    $ads->on('/preload', 200, Kontext::Mock->bid);
    $site->session({ conversationId => $conversation, userId => 'u-2' });
    is($preload->wait_closed, 'eof',
       'another user in the conversation cancels a preload');
}


# methods

{
    my $id = $site->session;
    my %allowed = (
        'sessions'              => [ qw(POST) ],
        "sessions/$id"          => [ qw(GET HEAD PATCH DELETE) ],
        "sessions/$id/messages" => [ qw(POST) ],
        "sessions/$id/ads/m1"   => [ qw(GET HEAD) ],
        "sessions/$id/events"   => [ qw(GET HEAD POST) ],
    );

    foreach my $path (sort keys %allowed) {
        my %ok = map { ($_ => 1) } @{$allowed{$path}};
        my $name = $path =~ s/\Q$id\E/{id}/r;

        foreach my $method (grep { !$ok{$_} }
                                 qw(GET HEAD POST PUT PATCH DELETE COPY))
        {
            my $res = $site->call($method, $path,
                                  $method =~ /\AP/ ? {} : undef);

            is($res->status, 405, "$method $name: 405");
            is($site->code($res), 'bad_method', "$method $name: the code")
                if $method ne 'HEAD';

            my %allow = map { ($_ => 1) } split /\s*,\s*/,
                            $res->header('Allow') // '';

            is_deeply([ grep { $allow{$_} } @{$allowed{$path}} ],
                      $allowed{$path}, "$method $name: Allow has what is right");
            ok(!$allow{$method}, "$method $name: and not this");
        }
    }

    is($site->call(HEAD => "sessions/$id/events")->status, 200,
       'HEAD of the events');
    is($site->state($id)->{preload}, 'none', 'nothing has happened to it');
}


# paths

{
    my $id = $site->session;

    foreach my $path ('', 'x', 'session', 'sessionsx', 'Sessions',
                      "sessions/$id/x", "sessions/$id/messages/m1",
                      "sessions/$id/ads", "sessions/$id/messagesx",
                      "sessions/$id/events/1", "x/sessions/$id")
    {
        my $name = $path =~ s/\Q$id\E/{id}/r;

        refused($site->call(GET => $path), 404, 'unknown_path',
                "/kontext/$name");
    }

    is($site->call(GET => "sessions/$id")->status, 200, 'the right one');
}


# media types

{
    my $id = $site->session;
    my %of = (type => 1);
    my @calls = ([ POST => 'sessions', { userId => 'u-1', conversationId =>
                                         conversation() } ],
                 [ PATCH => "sessions/$id", {} ],
                 [ POST => "sessions/$id/messages", user('m1') ]);

    foreach my $call (@calls) {
        my ($method, $path, $data) = @$call;
        my $name = "$method " . $path =~ s/\Q$id\E/{id}/r;

        foreach my $type (undef, '', 'text/plain', 'text/json', 'application',
                          'application/x-www-form-urlencoded', 'application/',
                          'application/jsonx', 'application/xjson',
                          'xapplication/json', 'text/plain; application/json',
                          'multipart/form-data; boundary=x')
        {
            refused($site->call($method, $path, $data,
                                headers => { 'Content-Type' => $type }),
                    415, 'media_type', "$name as " . ($type // 'nothing'));
        }

        foreach my $type ('application/json; charset=utf-8',
                          'application/json;charset=UTF-8',
                          'Application/JSON', 'application/json ;x=y')
        {
            like($site->call($method, $path, $data,
                             headers => { 'Content-Type' => $type })->status,
                 qr/\A20\d\z/, "$name as $type");
        }
    }

    $site->preload;

    foreach my $type (undef, 'text/html', 'application/x-www-form-urlencoded',
                      'text/plainx')
    {
        refused($site->report($id, { name => 'ad.error', payload => {
                    errCode => 'x', message => 'y' } },
                              headers => { 'Content-Type' => $type }),
                415, 'media_type', 'an event as ' . ($type // 'nothing'));
    }
}


# sizes

{
    my $id = $site->session;
    my $max = 256 * 1024;

    # a list of messages of this size, each of them with 40 KB of text

    my $list = sub {
        my ($size) = @_;
        my @list = map { message("s$_", assistant => 'x' x 40_000) } 1 .. 6;

        push @list, message('s7', user => '');
        $list[-1]{content} = 'x' x ($size - length json(\@list));

        return json(\@list);
    };

    is(length $list->($max), $max, 'a body of 256 KB');
    is($site->add($id, $list->($max))->status, 202, 'a body of 256 KB: 202');
    $site->preload;
    refused($site->add($id, $list->($max + 1)), 413, 'too_large',
            'a body of a byte more');
    refused($site->add($id, ' ' x ($max + 1)), 413, 'too_large',
            'a body of white space');

    my $chunked = sub {
        my ($body, $size) = @_;
        my $text = join('', map { sprintf("%x\r\n%s\r\n", length, $_) }
                                $body =~ /(.{1,$size})/gs) . "0\r\n\r\n";

        return $site->call(POST => "sessions/$id/messages", $text,
                           headers => { 'Transfer-Encoding' => 'chunked' });
    };

    $site->close($id);
    $id = $site->session;
    is($chunked->($list->($max), 30_000)->status, 202,
       'a body of 256 KB in chunks: 202');
    $site->preload;
    is($chunked->(json([ reply('t1') ]), 1)->status, 202,
       'a body of chunks of a byte: 202');
    refused($chunked->($list->($max + 1), 30_000), 413, 'too_large',
            'a body of a byte more in chunks');

    # not to be read to its end

    my $c = $site->nginx->client;

    $c->send("POST /kontext/sessions/$id/messages HTTP/1.1\r\nHost: x\r\n"
             . "Content-Type: application/json\r\n"
             . "Content-Length: 20000000\r\n\r\n[");
    is($c->read_response->status, 413, 'a length of 20 MB: 413 at once');

    $c = $site->nginx->client;
    $c->send("POST /kontext/sessions/$id/messages HTTP/1.1\r\nHost: x\r\n"
             . "Content-Type: application/json\r\n"
             . "Content-Length: 300000\r\nExpect: 100-continue\r\n\r\n");
    is($c->read_response->status, 413, 'nor is it asked for');

    foreach my $call ([ POST => 'sessions' ], [ PATCH => "sessions/$id" ],
                      [ POST => "sessions/$id/events" ])
    {
        refused($site->call(@$call, '{"variantId":"' . 'x' x $max . '"}'),
                413, 'too_large', "$call->[0] $call->[1] of more than 256 KB");
    }

    # the options of a session

    my %who = (userId => 'u-1', conversationId => conversation());

    foreach my $case ([ variantId => 'x' x 9000 ],
                      [ userEmail => 'x' x 9000 ],
                      [ regulatory => { gdprConsent => 'x' x 9000 } ],
                      [ regulatory => { gppSid => [ (1) x 9000 ] } ],
                      [ character => { id => 'a', name => 'A',
                                       persona => 'x' x 9000 } ],
                      [ character => { id => 'a', name => 'A',
                                       tags => [ ('x' x 90) x 100 ] } ],
                      [ variantId => 'x' x 3000, userEmail => 'x' x 3000,
                        regulatory => { gpp => 'x' x 3000 } ])
    {
        refused($site->create({ %who, @$case }), 413, 'too_large',
                "$case->[0] of 9 KB");
    }

    $id = $site->session(\%who);
    refused($site->patch($id, { variantId => 'x' x 9000 }), 413, 'too_large',
            'PATCH of 9 KB');

    $site->patch($id, { variantId => 'x' x 3000, userEmail => 'y' x 2500 });
    refused($site->patch($id, { regulatory => { gpp => 'z' x 3000 } }), 413,
            'too_large', 'PATCH of 3 KB, for which there is no room any more');

    my $preload = preload_of($id);

    is(length $preload->{variantId}, 3000, 'options of 5.5 KB: one');
    is(length $preload->{userEmail}, 2500, 'options of 5.5 KB: the other');
    ok(!exists $preload->{regulatory}, 'what was refused is not there');
}


# pages of another origin

{
    my $id = $site->session;
    my %of = map { ($_ => { api => $_ }) } '/kontext', '/cors', '/open';
    my $call = sub {
        my ($api, $origin, $method, $path, $data, %headers) = @_;

        return $site->call($method, $path, $data, api => $api, headers => {
            Origin => $origin, %headers });
    };
    my $acao = 'Access-Control-Allow-Origin';

    # off

    foreach my $origin (undef, 'https://app.example.com', 'null') {
        my $name = $origin // 'nobody';

        foreach my $try ([ GET => "sessions/$id" ], [ POST => 'sessions', {} ],
                         [ OPTIONS => "sessions/$id" ], [ GET => 'x' ])
        {
            my $res = $call->('/kontext', $origin, @$try);

            unlike($res->head, qr/^Access-Control-/mi,
                   "no kontext_api_origin: nothing for $name, $try->[0]");
        }
    }

    # a list

    foreach my $origin ('https://app.example.com', 'http://localhost:3000') {
        foreach my $try ([ 200, GET => "sessions/$id" ],
                         [ 200, HEAD => "sessions/$id" ],
                         [ 400, POST => 'sessions', {} ],
                         [ 404, GET => 'x' ], [ 405, GET => 'sessions' ],
                         [ 404, GET => "sessions/$id/ads/m1" ],
                         [ 404, GET => 'sessions/kxs_x' ],
                         [ 202, POST => "sessions/$id/messages", reply('m1') ],
                         [ 204, DELETE => 'sessions/kxs_' . 'a' x 32 ])
        {
            my ($status, $method, $path, $data) = @$try;
            my $name = "$origin, $method " . $path =~ s/\Q$id\E/{id}/r;
            my $res = $call->('/cors', $origin, $method, $path, $data);

            is($res->status, $status, "$name: the status");
            is($res->header($acao), $origin, "$name: allowed");
            is($res->header('Access-Control-Allow-Credentials'), 'true',
               "$name: with its cookies, which may say who the user is");
            like($res->header('Vary') // '', qr/\bOrigin\b/i, "$name: Vary");
        }
    }

    foreach my $origin (undef, 'https://evil.example', 'null', '*',
                        'http://app.example.com', 'https://app.example.com:444',
                        'https://app.example.com.evil.example',
                        'https://xapp.example.com', 'https://app.example.co',
                        'https://app.example.com/', 'http://localhost',
                        'https://app.example.com http://localhost:3000')
    {
        my $name = $origin // 'nobody';
        my $res = $call->('/cors', $origin, GET => "sessions/$id");

        is($res->header($acao), undef, "not in the list: $name");
        like($res->header('Vary') // '', qr/\bOrigin\b/i,
             "not in the list, Vary all the same: $name");

        $res = $call->('/cors', $origin, OPTIONS => "sessions/$id", undef,
                       'Access-Control-Request-Method' => 'PATCH');
        is($res->header($acao), undef, "not in the list, preflight: $name");
    }

    # before a call

    my %paths = ('sessions' => [ 'POST' ],
                 "sessions/$id" => [ qw(GET PATCH DELETE) ],
                 "sessions/$id/messages" => [ 'POST' ],
                 "sessions/$id/ads/m1" => [ 'GET' ],
                 "sessions/$id/events" => [ qw(GET POST) ]);

    foreach my $api ('/cors', '/open') {
        foreach my $path (sort keys %paths) {
            foreach my $method (@{$paths{$path}}) {
                my $name = "preflight in $api of $method "
                           . $path =~ s/\Q$id\E/{id}/r;
                my $res = $call->($api, 'https://app.example.com',
                    OPTIONS => $path, undef,
                    'Access-Control-Request-Method' => $method,
                    'Access-Control-Request-Headers' => 'content-type');
                my $has = sub {
                    return lc($res->header("Access-Control-Allow-$_[0]") // '');
                };

                like($res->status, qr/\A20[04]\z/, "$name: the status");
                like($has->('Origin'),
                     $api eq '/open' ? qr{\A(?:\*|https://app\.example\.com)\z}
                                     : qr{\Ahttps://app\.example\.com\z},
                     "$name: the origin");
                like($has->('Methods'), qr/\b\L$method\b/, "$name: the method");
                like($has->('Headers'), qr/\bcontent-type\b/,
                     "$name: the header");
            }
        }
    }

    # everybody, without their cookies

    foreach my $origin ('https://app.example.com', 'null') {
        my $res = $call->('/open', $origin, GET => "sessions/$id");

        is($res->header($acao), '*', "*: allowed for $origin");
        isnt($res->header('Access-Control-Allow-Credentials') // '', 'true',
             "*: no credentials for $origin");
    }
}


# what may not be in the configuration

{
    my $api = 'kontext_publisher_token t;';
    my $server = <<'CONF';
        location /_kontext/ {
            internal;
            return 204;
        }
CONF

    my $says = sub {
        my ($name, $re, %args) = @_;
        my ($ok, $output) = Kontext::Nginx->test_config(%args);

        ok(!$ok, "$name: refused");
        like($output, $re, "$name: what to write instead");
    };

    my $location = sub {
        my ($where, $text) = @_;

        return (server => "$server location $where { $text }");
    };

    $says->('kontext_api in an exact location',
            qr/"kontext_api".*must be.*prefix.*"location \/kontext\/"/,
            $location->('= /kontext', "kontext_api; $api"));
    $says->('kontext_api in a location of a regular expression',
            qr/"kontext_api".*must be.*prefix.*"location \/kontext\/"/,
            $location->('~ ^/kontext', "kontext_api; $api"));
    $says->('kontext_api in a named location',
            qr/"kontext_api".*must be.*prefix.*"location \/kontext\/"/,
            $location->('@kontext', "kontext_api; $api"));
    $says->('kontext_api with a value',
            qr/"on" in "kontext_api".*must be "ping=time"/,
            $location->('/kontext/', "kontext_api on; $api"));
    $says->('kontext_api with no time',
            qr/"soon" in "kontext_api".*"ping=15s"/,
            $location->('/kontext/', "kontext_api ping=soon; $api"));
    $says->('kontext_api twice', qr/"kontext_api" directive is duplicate/,
            $location->('/kontext/', "kontext_api; kontext_api; $api"));
    $says->('kontext_api in server', qr/"kontext_api" directive is not allowed/,
            server => "$server kontext_api; $api");
    $says->('kontext_api without a token',
            qr/"kontext_api".*token.*"kontext_publisher_token <token>;"/,
            $location->('/kontext/', 'kontext_api;'));

    foreach my $origin ('app.example.com', 'https://app.example.com/',
                        'https://', 'HTTPS://app.example.com', 'null',
                        'https://App.example.com', 'https://*.example.com',
                        'https://app.example.com/path', '""',
                        '"https://a.example https://b.example"')
    {
        $says->("kontext_api_origin $origin",
                qr{in "kontext_api_origin".*"https://app\.example\.com".*"\*".*"off"},
                $location->('/kontext/',
                            "kontext_api; kontext_api_origin $origin; $api"));
    }

    $says->('kontext_api_origin off and another',
            qr{"off" in "kontext_api_origin".*"https://app\.example\.com"},
            $location->('/kontext/', 'kontext_api; kontext_api_origin '
                                     . "off https://a.example; $api"));

    foreach my $case ([ 'store=x' => 'x', '"store=8m"' ],
                      [ 'store=' => '', '"store=8m"' ],
                      [ 'store=4m' => '4m', '"store=8m", at most three '
                                            . 'quarters of the zone' ],
                      [ 'streams=x' => 'x', '"streams=1024"' ],
                      [ 'streams=-1' => '-1', '"streams=1024"' ],
                      [ 'stream=1' => 'stream=1', '"streams=number"' ])
    {
        my ($param, $value, $instead) = @$case;

        $says->("kontext_zone $param",
                qr/"\Q$value\E" in "kontext_zone".*\Q$instead\E/,
                http => "kontext_zone kontext:4m $param;", server => $server);
    }

    my ($ok, $output) = Kontext::Nginx->test_config(
        http   => 'kontext_zone kontext:4m idle=1m store=3m streams=0;'
                  . ' kontext_api_origin https://a.example;',
        $location->('/kontext/', "kontext_api ping=1s; kontext_api_origin "
                    . "http://[::1]:3000 http://127.0.0.1 *; $api"));

    ok($ok, 'and what may be') || diag($output);
}


# a store that is too small

{
    my $small = ApiSite->new(http => 'kontext_zone kontext:64k store=8k;');
    my %turn = (headers => { 'X-Conversation' => 'c-1' });
    my $busy = 0;

    is($small->turn(chat('Hi'), %turn, asks => ['init', 'preload'])->why,
       'filled ', 'a small store: a chat has its ad');

    my $id = $small->session;

    is($small->add($id, user('m1'))->status, 202, 'a small store: a message');
    $small->preload;
    $small->settled($id, 'filled');

    # more than there is

    my $res = $small->add($id, user('m2', 'x' x 60_000));

    refused($res, 503, 'no_room', 'a message larger than the store');
    is_deeply([ map { $_->{id} } @{$small->state($id)->{messages}} ], [ 'm1' ],
              'it is not there, the others are');
    is($small->add($id, reply('m3'))->status, 202, 'a small one is taken');
    is($small->ad($id, 'm3')->status, 200, 'and has the ad of before');

    # many sessions: the oldest ones make room

    foreach my $n (1 .. 100) {
        my $made = $small->create({ userId => 'u-1', variantId => 'x' x 500,
                                    conversationId => "many-$n" });

        $busy++ if $made->status != 201;
        $busy++ if $small->add($made->json->{sessionId}, reply('m1'))
                   ->status != 202;
    }

    is($busy, 0, 'a small store: there is always room for a new session');
    is($small->turn(chat('Hi'), asks => ['init', 'preload'],
                    headers => { 'X-Conversation' => 'c-2' })->why, 'filled ',
       'a small store: a new chat has its ad');
    $small->stop_ok;
}

# no store at all

{
    my $none = ApiSite->new(http => 'kontext_zone kontext:1m store=0;');
    my $res = $none->create({ userId => 'u-1', conversationId => 'c-1',
                              variantId => 'v' });

    refused($res, 503, 'no_room', 'no store: no session with options');
    is($none->turn(chat('Hi'), asks => ['init', 'preload'])->why, 'filled ',
       'no store: chats have their ads');
    $none->stop_ok;
}


# the error log has no word of all that

{
    my $id = $site->session({ userId => 'somebody-known' });

    # what goes wrong at the ad server is said

    $ads->refuse;
    $site->add($id, user('secret-message'));
    $site->nginx->wait_log(qr/connect\(\) failed/);
    $site->close($id);
    $ads->listen;

    # a client that leaves in its request

    my $c = $site->nginx->client;

    $c->send("POST /kontext/sessions/$id/messages HTTP/1.1\r\nHost: x\r\n"
             . "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
             . qq([{"id":"secret-message","content":"$TEXT));
    $c->reset;
    $site->nginx->barrier;
}

$site->stop_ok;

{
    # nginx itself names the request in what it says, as in an access log

    my $log = $site->nginx->error_log
              =~ s/, request: "[A-Z]+ [^ "]* HTTP\/1\.1"//gr;

    foreach my $case ([ 'texts', $TEXT ], [ 'the token', $TOKEN ],
                      [ 'ids of sessions', 'kxs_' ],
                      [ 'ids of the ad server', $SESSION ],
                      [ 'users', 'somebody-known' ],
                      [ 'conversations', 'new-1' ],
                      [ 'messages', 'secret-message' ])
    {
        my ($name, $text) = @$case;
        my @lines = grep { index($_, $text) >= 0 } split /\n/, $log;

        is(scalar @lines, 0, "the error log has no $name")
            || diag(join("\n", @lines));
    }
}


done_testing;
