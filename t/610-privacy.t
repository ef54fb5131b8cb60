#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Who has said no is not asked about, or not by name; and what is written in
# messages and is nobody's business is taken out.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use ApiSite ();
use ChatSite ();

my $YES = JSON::PP::true();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';

# TCF strings: purposes 1 and 2, and none

my $TC = 'COwxsONOwxsONKpAAAENAdCAAMAAAAAAAAAAAAAAAAAA';
my $TC_NONE = 'CPXxRfAPXxRfAAfKABENB-CgAAAAAAAAAAYgAAAAAAAA';

my $REGULATORY = <<'CONF';
kontext_regulatory gdpr=$http_x_gdpr gdpr_consent=$http_x_consent
                   coppa=$http_x_coppa gpp=$http_x_gpp
                   gpp_sid=$http_x_gpp_sid us_privacy=$http_x_usp;
CONF

my $n = 0;

sub conversation { return 'c-' . ++$n }

sub talk {
    my ($site, $headers, %args) = @_;

    return $site->turn($args{chat} // chat('Which shoes?'), %args,
                       headers => { 'X-Conversation' => conversation(),
                                    %$headers });
}


# what says no, and what does not

my @NO = (
    [ 'coppa'             => { 'X-Coppa' => '1' } ],
    [ 'Sec-GPC'           => { 'Sec-GPC' => '1' } ],
    [ 'no consent string' => { 'X-Gdpr' => '1' } ],
    [ 'no purposes'       => { 'X-Gdpr' => '1', 'X-Consent' => $TC_NONE } ],
    [ 'no purposes, and no word of GDPR' => { 'X-Consent' => $TC_NONE } ],
    [ 'us_privacy'        => { 'X-Usp' => '1YYN' } ],
    [ 'gpp, TCF'          => { 'X-Gpp' => "DBABMA~$TC_NONE" } ],
    [ 'gpp, US Privacy'   => { 'X-Gpp' => "DBACNYA~$TC~1NYN" } ],
);

my @YES = (
    [ 'nothing said'      => {} ],
    [ 'zeroes'            => { 'X-Gdpr' => '0', 'X-Coppa' => '0',
                               'Sec-GPC' => '0' } ],
    [ 'purposes'          => { 'X-Gdpr' => '1', 'X-Consent' => $TC } ],
    [ 'GDPR is not for this user' => { 'X-Gdpr' => '0',
                                       'X-Consent' => $TC_NONE } ],
    [ 'us_privacy'        => { 'X-Usp' => '1YNN' } ],
    [ 'gpp'               => { 'X-Gpp' => "DBACNYA~$TC~1YNN" } ],
    [ 'gpp, another section' => { 'X-Gpp' => "DBACNYA~$TC~1YYN",
                                  'X-Gpp-Sid' => '2' } ],
    [ 'TCF in gpp only'   => { 'X-Gdpr' => '1', 'X-Gpp' => "DBABMA~$TC" } ],
);

my @UNREADABLE = (
    [ 'consent'           => { 'X-Gdpr' => '1', 'X-Consent' => 'what' } ],
    [ 'gpp'               => { 'X-Gpp' => 'what' } ],
    [ 'gpp, no such section' => { 'X-Gpp' => 'DBAA', 'X-Gpp-Sid' => '7' } ],
    [ 'us_privacy'        => { 'X-Usp' => 'what' } ],
);


# as it is without a directive

{
    my $site = ChatSite->new(http => $REGULATORY);

    foreach my $case (@NO) {
        my ($name, $headers) = @$case;
        my $turn = talk($site, $headers);

        is($turn->why, 'bypass consent', "$name: no ad is asked for");
        ok($turn->untouched, "$name: the answer is as it was");
    }

    $site->nginx->barrier;
    is_deeply($site->asked_for, [], 'nothing has reached the ad server');

    foreach my $case (@YES, @UNREADABLE) {
        my ($name, $headers) = @$case;

        is(talk($site, $headers, asks => [ 'init', 'preload' ])->why,
           'filled ', "$name: an ad");
    }

    $site->stop_ok;
}


# the conversation goes on, and the answer may change with each turn

{
    my $site = ChatSite->new;
    my $chat = chat('Which shoes?');
    my $headers = { 'X-Conversation' => conversation() };

    my $turn = $site->turn($chat, headers => { %$headers, 'Sec-GPC' => '1' });
    is($turn->why, 'bypass consent', 'first no');

    $turn = $site->turn($chat, headers => $headers,
                        asks => [ 'init', 'preload' ]);
    is($turn->why, 'filled ', 'then yes: the same turn has its ad');

    # an ad is there already

    $turn = $site->turn($chat, headers => { %$headers, 'Sec-GPC' => '1' });
    is($turn->why, 'bypass consent', 'then no: the ad that there is stays');
    ok($turn->untouched, 'and the answer is as it was');

    $turn = $site->turn($chat, headers => $headers);
    is($turn->why, 'filled ', 'then yes: it is there');
    is_deeply($site->asked_for, [ 'init', 'preload' ],
              'the ad server was asked once');
    $site->stop_ok;
}


# each signal has its action, and the strictest one counts

{
    my $site = ChatSite->new(http => <<"CONF");
$REGULATORY
kontext_consent skip gpc=ask coppa=anonymous us_privacy=ask unreadable=skip;
CONF

    is(talk($site, { 'Sec-GPC' => '1' })->why, 'filled ', 'gpc=ask');
    is(talk($site, { 'X-Usp' => '1YYN' })->why, 'filled ', 'us_privacy=ask');
    is(talk($site, { 'X-Coppa' => '1' })->why, 'filled ', 'coppa=anonymous');
    is(talk($site, { 'X-Gdpr' => '1' })->why, 'bypass consent', 'the others');
    is(talk($site, { 'X-Coppa' => '1', 'X-Gdpr' => '1' })->why,
       'bypass consent', 'the strictest one');
    is(talk($site, $_->[1])->why, 'bypass consent', "unreadable: $_->[0]")
        foreach @UNREADABLE;
    $site->stop_ok;
}


# a vendor

{
    my $site = ChatSite->new(http => "$REGULATORY\nkontext_consent skip "
                                     . "vendor=755;");

    is(talk($site, { 'X-Gdpr' => '1', 'X-Consent' => $TC })->why,
       'bypass consent', 'the vendor has no consent');
    $site->stop_ok;
}


# anonymous: no id of anybody, and nothing that lasts

{
    my $site = ChatSite->new(
        http => <<'CONF',
kontext_consent anonymous;
kontext_user_email $http_x_email;
kontext_variant_id $http_x_variant;
kontext_install_id $http_x_install;
CONF
        server => <<'CONF',
        location /_addressed/ {
            internal;
            proxy_set_header Host ads;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Real-IP "<$remote_addr>";
            proxy_set_header X-Real-Port "<$remote_port>";
            proxy_pass http://@ads@/;
        }
CONF
        location => 'kontext_ad_server /_addressed;');
    my $ads = $site->ads;

    $ads->on('/preload', 200, $ads->bid(sessionId => $SESSION));

    my %who = ('X-User' => 'user-bob', 'X-Conversation' => 'talk-of-bob',
               'X-Email' => 'bob@example.com', 'X-Variant' => 'variant-b',
               'X-Install' => '019a5c20-11aa-7e02-8b6c-0d4e92f1a3c0',
               'User-Agent' => 'Agent-of-Bob/7.1 (iPhone)',
               'X-Forwarded-For' => '192.0.2.77', 'Cookie' => 'id=bob',
               'Sec-CH-UA-Platform-Version' => '"17.6.3"',
               'Sec-CH-Viewport-Width' => '1234');
    my @bodies;

    foreach my $text ('Which shoes?', 'And in red?') {
        my $turn = $site->turn(chat($text), headers => { %who,
                               'Sec-GPC' => '1' }, asks => [ 'preload' ]);
        my $call = $turn->asked('preload');

        is($turn->why, 'filled ', "anonymous: an ad for '$text'");
        push @bodies, $call->json;

        my $all = join("\n", $call->head, $call->body);

        is(join(' ', grep { index($all, $_) >= 0 }
                          'bob', 'Bob', 'variant-b', '019a5c20', '192.0.2.77',
                          '127.0.0.1', '17.6.3', '1234', $SESSION), '',
           "anonymous: nothing of the user in '$text'");
        is($call->header('X-Real-IP'), '<>', 'anonymous: no address');
        is($call->header('X-Real-Port'), '<>', 'anonymous: no port');
        is($call->json->{messages}[-1]{id}, 'm1', 'anonymous: a number');
        is_deeply({ map { $_ => $call->json->{device}{screen}{$_} }
                        'width', 'height', 'dpr' },
                  { width => 0, height => 0, dpr => 1 },
                  'anonymous: a screen, as the protocol demands');
        is($call->json->{messages}[-1]{content}, $text, 'and the text');
    }

    is(scalar(() = $ads->requests('/init')), 0, 'anonymous: no /init');

    foreach my $name ('userId', 'conversationId') {
        like($_->{$name}, qr/\Akxa_[a-z2-7]{26}\z/, "anonymous: $name")
            foreach @bodies;
        isnt($bodies[0]{$name}, $bodies[1]{$name},
             "anonymous: another $name each time");
    }

    is_deeply([ map { $_->{sessionId} } @bodies ], [ undef, undef ],
              'anonymous: no session goes on');

    # with a yes it is the user's own session, which knows of nothing

    my $turn = $site->turn(chat('In blue?'), headers => \%who,
                           asks => [ 'init', 'preload' ]);
    my $body = $turn->asked('preload')->json;

    is($body->{userId}, 'user-bob', 'a yes: the user');
    is($body->{conversationId}, 'talk-of-bob', 'a yes: the conversation');
    is($body->{sessionId}, undef, 'a yes: not the session of nobody');
    $site->stop_ok;
}


# no report says who it was

{
    my $site = ChatSite->new(http => "kontext_consent anonymous;\n"
                                     . 'kontext_breaker off;');
    my $ads = $site->ads;

    $ads->on('/init', 200, { enabled => $YES, reportDebug => $YES,
                             reportErrors => $YES });

    # the session knows that it is to tell

    my %who = ('X-Conversation' => conversation());

    $site->turn(chat('Hi'), headers => \%who, asks => [ 'init', 'preload' ]);
    $site->turn(chat('Hello'), headers => \%who, asks => [ 'preload' ]);
    $ads->wait_request(path => '/debug');

    $site->nginx->barrier;

    my @before = $ads->requests;

    $ads->on('/preload', 200, '<html>');
    is($site->turn(chat('Bye'), headers => { %who, 'Sec-GPC' => '1' },
                   asks => [ 'preload' ])->why, 'error request_failed',
       'anonymous: it fails');
    $site->nginx->barrier;

    my @after = $ads->requests;

    is(join(' ', map { $_->path } @after[@before .. $#after]), '/preload',
       'anonymous: and nothing is reported');

    $site->turn(chat('So long'), headers => \%who, asks => [ 'preload' ]);
    like($ads->wait_request(path => '/error')->body, qr/"userId":"u-1"/,
         'a yes: it is');
    $site->stop_ok;
}


# the session API: the options of a session, and the header of its calls

{
    my $site = ApiSite->new;

    foreach my $case ([ coppa => { regulatory => { coppa => 1 } } ],
                      [ gdpr => { regulatory => { gdpr => 1 } } ],
                      [ usp => { regulatory => { usPrivacy => '1YYN' } } ])
    {
        my ($name, $options) = @$case;
        my $id = $site->session($options, init => 0);

        $site->add($id, $site->message('m1', user => 'Which shoes?'));
        is($site->settled($id, 'no_fill')->{preload}, 'no_fill',
           "api: $name: no ad");

        my $events = $site->nginx->client;

        $events->get("/kontext/sessions/$id/events", 'Last-Event-ID' => 0);
        like($events->read_until(qr/consent/), qr/consent/,
             "api: $name: and why");
    }

    my $id = $site->session({}, init => 0, headers => { 'Sec-GPC' => '1' });

    $site->add($id, $site->message('m1', user => 'Which shoes?'),
               headers => { 'Sec-GPC' => '1' });
    $site->settled($id, 'no_fill');
    $site->nginx->barrier;
    is_deeply($site->asked_for, [], 'api: nothing has been asked');

    # a yes

    $site->patch($id, { regulatory => { gdpr => 1, gdprConsent => $TC } });
    $site->add($id, [ $site->message('m2', assistant => 'Light ones.'),
                      $site->message('m3', user => 'In red?') ]);
    is($site->settled($id, 'filled')->{preload}, 'filled',
       'api: an ad after a yes');
    $site->stop_ok;
}


# what messages say is taken out, and nothing else changes by that

{
    my @messages = (
        { role => 'user', content => 'I am bob@example.com, +14155550132' },
        { role => 'assistant', content => 'Pay with 4111 1111 1111 1111?' },
        { role => 'user', content => [
            { type => 'text', text => 'No: AKIAIOSFODNN7EXAMPLE' },
            { type => 'text', text => 'Order 4155550132 of 2026-11-25' } ] },
    );
    my $chat = { model => 'gpt-5.1', stream => $YES, messages => \@messages };

    my $site = ChatSite->new(server => <<'CONF');
        location /off/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            kontext_redact off;
            proxy_pass http://@llm@/;
        }

        location /some/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            kontext_redact email card;
            proxy_pass http://@llm@/;
        }
CONF
    my %bodies;

    # one conversation: ids are made of the texts as they were

    foreach my $where ('', '/some', '/off') {
        my $turn = $site->turn($chat, uri => "$where/v1/chat/completions",
                               headers => { 'X-Conversation' =>
                                            "same-$where",
                                            'X-User' => "u-$where" },
                               asks => [ 'init', 'preload' ]);

        is($turn->why, 'filled ', "redact $where: an ad");
        is($turn->request->body, json($chat),
           "redact $where: the model gets it all");
        $bodies{$where} = $turn->asked('preload')->json->{messages};
    }

    is_deeply([ map { $_->{content} } @{$bodies{''}} ],
              [ 'I am [email], [phone]', 'Pay with [card]?',
                "No: [key]\nOrder 4155550132 of 2026-11-25" ], 'by default');
    is_deeply([ map { $_->{content} } @{$bodies{'/some'}} ],
              [ 'I am [email], +14155550132', 'Pay with [card]?',
                "No: AKIAIOSFODNN7EXAMPLE\nOrder 4155550132 of 2026-11-25" ],
              'some kinds');
    is_deeply([ map { $_->{content} } @{$bodies{'/off'}} ],
              [ $messages[0]{content}, $messages[1]{content},
                "No: AKIAIOSFODNN7EXAMPLE\nOrder 4155550132 of 2026-11-25" ],
              'off');

    # the ids of one conversation with and without

    my %ids;

    foreach my $where ('', '/off') {
        my $turn = $site->turn($chat, uri => "$where/v1/chat/completions",
                               headers => { 'X-Conversation' => 'ids' });

        is($turn->why, 'filled ', "ids $where: an ad");
        $ids{$where} = $turn->event->{message_id};
    }

    is($ids{''}, $ids{'/off'}, 'the answer has the same id');
    is(scalar(grep { $_->json->{conversationId} eq 'ids' }
                   $site->ads->requests('/preload')), 1,
       'and the second one was the same turn');
    $site->stop_ok;
}


# bad configuration

foreach my $case (
    [ 'kontext_consent never;', qr/invalid[ ]parameter[ ]"never"[ ]in
                                   [ ]"kontext_consent",[ ]write[ ]"skip"/x ],
    [ 'kontext_consent skip gpc;', qr/invalid parameter "gpc"/ ],
    [ 'kontext_consent skip gpc=no;', qr/invalid parameter "gpc=no"/ ],
    [ 'kontext_consent skip ccpa=ask;', qr/invalid parameter "ccpa=ask"/ ],
    [ 'kontext_consent skip vendor=0;', qr/"vendor=755"/ ],
    [ 'kontext_consent skip vendor=65536;', qr/"vendor=755"/ ],
    [ 'kontext_consent skip; kontext_consent ask;', qr/is duplicate/ ],
    [ 'kontext_redact names;', qr/invalid[ ]value[ ]"names"[ ]in
                                  [ ]"kontext_redact",[ ]write[ ]"on"/x ],
    [ 'kontext_redact off email;', qr/invalid value "off"/ ],
    [ 'kontext_redact on; kontext_redact off;', qr/is duplicate/ ],
) {
    my ($directive, $message) = @$case;
    my ($ok, $output) = Kontext::Nginx->test_config(http => <<"CONF");
    $directive
    server { listen 127.0.0.1:\@port\@; }
CONF

    ok(!$ok, "$directive fails");
    like($output, $message, "$directive says why");
}

done_testing;
