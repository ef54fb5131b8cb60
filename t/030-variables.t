#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Every variable in every outcome.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $site = ChatSite->new(
    location => 'add_header X-Early "$kontext_status/$kontext_format";',
    server   => <<'CONF',
        location /two/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            kontext_placements inlineAd box;
            kontext_label "$http_x_label";
            kontext_theme dark;
            kontext_frame_origin http://127.0.0.1:8081;
            proxy_pass http://@llm@/;
        }

        location /hasty/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 0;
            proxy_pass http://@llm@/;
        }

        location /shadow/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            kontext_inject none;
            proxy_pass http://@llm@/;
        }

        location /off/ {
            kontext off;
            proxy_pass http://@llm@/;
        }
CONF
);

my $CHAT = '/v1/chat/completions';
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my $BID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
my $TIME = qr/\A\d+\.\d{3}\z/;
my $MESSAGE = qr/\Akx1_[a-z2-7]{26}\z/;


# Compares all variables: those not named are empty.  A pattern is matched.

sub variables {
    my ($name, $turn, %want) = @_;
    my $event = $turn->event;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    foreach my $key (sort grep { !/^(?:n|pid)$/ } keys %$event) {
        my $value = $want{$key} // '';

        ref $value ? like($event->{$key}, $value, "$name: \$kontext_$key")
                   : is($event->{$key}, $value, "$name: \$kontext_$key");
    }
}


my %asked = (
    format               => 'openai_chat',
    session              => $SESSION,
    session_user         => 'u-1',
    message_id           => $MESSAGE,
    preload_time         => $TIME,
    hold_time            => qr/\A(?:\d+\.\d{3})?\z/,
);

sub frame {
    my ($turn, $origin, $rest) = @_;
    my $id = $turn->event->{message_id};

    return "$origin/api/frame/$BID?code=inlineAd&messageId=$id&sdk=sdk-js$rest";
}


{
    my $turn = $site->turn(chat('Which shoes?'), asks => ['init', 'preload']);

    variables('filled', $turn, %asked,
        status               => 'filled',
        injected             => 'member',
        session_conversation => 'c-1',
        bid_id               => $BID,
        code                 => 'inlineAd',
        revenue              => '0.0042',
        label                => 'Sponsored',
        frame_url            => frame($turn, 'https://server.megabrain.co', ''),
    );

    is($turn->ad->{ads}[0]{frameUrl}, $turn->event->{frame_url},
       'the frame URL is the one in the answer');
}

# the same of an answer in one piece

{
    my $turn = $site->ask(chat({ stream => JSON::PP::false() }, 'Which shoes?'),
                          headers => { 'X-Conversation' => 'c-whole' },
                          asks => ['init', 'preload']);

    $turn->whole('Light ones.');

    variables('filled, in one piece', $turn, %asked,
        status               => 'filled',
        injected             => 'member',
        session_conversation => 'c-whole',
        bid_id               => $BID,
        code                 => 'inlineAd',
        revenue              => '0.0042',
        label                => 'Sponsored',
        frame_url            => frame($turn, 'https://server.megabrain.co', ''),
    );

    is($turn->ad->{messageId}, $turn->event->{message_id},
       'the ad is that message\'s');
}

{
    my $bids = Kontext::Mock->bid(revenue => 0.25);

    push @{$bids->{bids}},
         { bidId => '11111111-2222-4333-8444-555555555555', code => 'box',
           revenue => 0.5 },
         { bidId => '21111111-2222-4333-8444-555555555555', code => 'other',
           revenue => 8 },
         { bidId => '31111111-2222-4333-8444-555555555555', code => 'box',
           revenue => 4 };

    $site->ads->on('/preload', 200, $bids);

    my $turn = $site->turn(chat('Which shoes?'), uri => "/two$CHAT",
                           asks => ['init', 'preload'],
                           headers => { 'X-Conversation' => 'c-two',
                                        'X-Label' => 'Ad "x"' });

    variables('two ads', $turn, %asked,
        status               => 'filled',
        injected             => 'member',
        session_conversation => 'c-two',
        bid_id               => $BID,
        code                 => 'inlineAd',
        revenue              => '0.75',
        label                => 'Ad "x"',
        frame_url            => frame($turn, 'http://127.0.0.1:8081',
                                      '&theme=dark'),
    );

    is_deeply([ map { $_->{code} } @{$turn->ad->{ads}} ], [ 'inlineAd', 'box' ],
              'one ad for each placement that is enabled');
    is($turn->ad->{ads}[$_]{label}, 'Ad "x"', 'each with the label')
        foreach 0, 1;
}

{
    $site->ads->on('/preload', 200, Kontext::Mock->bid);

    my $turn = $site->turn(chat('Which shoes?'), uri => "/shadow$CHAT",
                           asks => ['init', 'preload'],
                           headers => { 'X-Conversation' => 'c-shadow' });

    variables('filled, not to be shown', $turn, %asked,
        status               => 'filled',
        reason               => 'inject_none',
        session_conversation => 'c-shadow',
        bid_id               => $BID,
        code                 => 'inlineAd',
        revenue              => '0.0042',
        label                => qr/\A(?:Sponsored)?\z/,
        frame_url            => qr{\A(?:https://server\.megabrain\.co/.*)?\z},
    );

    ok($turn->untouched, 'and not shown');
}

{
    $site->ads->on('/preload', 200, { sessionId => $SESSION, bids => [],
                                      skip => JSON::PP::true(),
                                      skipCode => 'frequency_cap' });

    variables('no_fill',
              $site->turn(chat('Which shoes?'), asks => ['init', 'preload'],
                          headers => { 'X-Conversation' => 'c-skip' }),
        %asked,
        status               => 'no_fill',
        reason               => 'frequency_cap',
        session_conversation => 'c-skip',
    );
}

{
    $site->ads->on('/preload', 200, { sessionId => $SESSION,
                                      errCode => 'generation_failed',
                                      error => 'Could not build an ad' });

    variables('error',
              $site->turn(chat('Which shoes?'), asks => ['init', 'preload'],
                          headers => { 'X-Conversation' => 'c-error' }),
        %asked,
        status               => 'error',
        reason               => 'generation_failed',
        session_conversation => 'c-error',
    );
}


# no answer in time: the ad server never says anything

{
    $site->ads->hold('/preload');

    my $turn = $site->ask(chat('Which shoes?'), uri => "/hasty$CHAT",
                          asks => ['init', 'preload'],
                          headers => { 'X-Conversation' => 'c-late' });

    $turn->answer('Light ones.');

    variables('pending', $turn, %asked,
        status               => 'pending',
        reason               => 'late',
        session              => '',
        session_conversation => 'c-late',
        preload_time         => qr/\A(?:\d+\.\d{3})?\z/,
    );
    ok($turn->untouched, 'and nothing is shown');
    is($turn->asked('preload')->wait_closed, 'eof',
       'the call ends with its answer');

    $site->ads->on('/preload', 200, Kontext::Mock->bid);
}


# the backend's answer is none for an ad: what is known of the ad is there

{
    my $turn = $site->ask(chat('Which shoes?'), asks => ['init', 'preload'],
                          headers => { 'X-Conversation' => 'c-429' });

    $turn->respond(429, { error => 'slow down' });

    is($turn->event->{reason}, 'response_status', 'an error of the backend');
    is($turn->event->{injected}, '', 'nothing is put in');
    is($turn->event->{session_user}, 'u-1', 'the user is known');
}


# nothing was asked

{
    my $turn = $site->turn(
        chat({ response_format => { type => 'json_object' } }, 'Hi'));

    variables('bypass', $turn,
        status               => 'bypass',
        reason               => 'json_mode',
        format               => qr/\A(?:openai_chat)?\z/,
        session_user         => qr/\A(?:u-1)?\z/,
        session_conversation => qr/\A(?:c-1)?\z/,
    );

    $turn = $site->turn('{', headers => { 'X-Conversation' => 'c-bad' });
    is($turn->why, 'bypass bad_body', 'bypass: a body that is none');
    is($turn->event->{$_}, '', "bypass: \$kontext_$_")
        foreach qw(injected bid_id code revenue frame_url preload_time
                   hold_time message_id);
}

variables('off', $site->turn(chat('Hi'), uri => "/off$CHAT"),
          status => 'off');
variables('a location that says nothing',
          $site->turn(chat('Hi'), uri => "/plain$CHAT"), status => 'off');


# hold_time is the time of a held end, and of nothing else

{
    $site->ads->hold('/preload');

    my $turn = $site->ask(chat('Which shoes?'), asks => ['init', 'preload'],
                          headers => { 'X-Conversation' => 'c-held' });

    $turn->request->start->event(chat_role(), chat_chunk('Light'));
    $turn->client->read_until(qr/Light/);
    $turn->request->event(chat_finish(), '[DONE]')->finish;
    $turn->request->wait_sent;
    $site->nginx->barrier;
    unlike($turn->client->peek->body, qr/finish_reason":"stop/, 'held');

    $turn->asked('preload')->respond(200, Kontext::Mock->bid);
    $turn->{response} = $turn->client->read_response;

    is($turn->response->header('X-Early'), 'pending/openai_chat',
       'a header, sent before there is an ad, has the state of that time');
    is($turn->why, 'filled ', 'the log has the last one');
    like($turn->event->{hold_time}, $TIME, 'hold_time is a time');
    cmp_ok($turn->event->{preload_time}, '>=', $turn->event->{hold_time},
           'no longer than the ad server took');
}


$site->stop_ok;

done_testing;
