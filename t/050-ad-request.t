#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# What the ad server gets: every header and every member of /init and
# /preload, and nothing else.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite qw(nulls_in type_of);

my $UUID = qr/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/;
my $UUID_V7 = qr/[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}
                 -[0-9a-f]{12}/x;

my $site = ChatSite->new(
    http     => <<'CONF',
    kontext_character  id=$http_x_character name=$http_x_character_name
                       avatar_url=$http_x_avatar greeting=$http_x_greeting
                       persona=$http_x_persona tags=$http_x_tags
                       nsfw=$http_x_nsfw;
    kontext_regulatory gdpr=$http_x_gdpr coppa=$http_x_coppa
                       gdpr_consent=$http_x_consent gpp=$http_x_gpp
                       gpp_sid=$http_x_gpp_sid us_privacy=$http_x_usp;
    kontext_variant_id $http_x_variant;
    kontext_user_email $http_x_email;
    kontext_install_id $http_x_install;
CONF
    server   => <<'CONF',
        location /device/ {
            kontext on;
            kontext_publisher_token other-token;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            kontext_placements inlineAd box video second;
            kontext_sdk name=sdk-react platform=web version=4.0.1;
            kontext_device type=$http_x_d_type os=$http_x_d_os
                           os_version=$http_x_d_os_version
                           locale=$http_x_d_locale timezone=$http_x_d_timezone
                           width=$http_x_d_width height=$http_x_d_height
                           dpr=$http_x_d_dpr dark=$http_x_d_dark
                           user_agent=$http_x_d_user_agent;
            proxy_pass http://@llm@/;
        }

        location /_addressed/ {
            internal;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_pass http://@ads@/;
        }

        location /addressed/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_ad_server /_addressed;
            kontext_grace 25s;
            proxy_pass http://@llm@/;
        }

        location /spooled/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            client_body_buffer_size 1k;
            proxy_pass http://@llm@/;
        }

        location /in-file/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            client_body_in_file_only clean;
            proxy_pass http://@llm@/;
        }

        location /in-memory/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_conversation_id $http_x_conversation;
            kontext_grace 25s;
            client_body_buffer_size 16m;
            proxy_pass http://@llm@/;
        }
CONF
);

my $CHAT = '/v1/chat/completions';


# a conversation that is new to the ad server, and its calls

my $conversations = 0;

sub first_turn {
    my ($chat, %args) = @_;
    my $headers = { 'X-Conversation' => 'c-' . ++$conversations,
                    %{delete $args{headers} // {}} };

    return $site->turn($chat, %args, headers => $headers,
                       asks => ['init', 'preload']);
}


# the preload of a chat as data

sub preload {
    my ($chat, %args) = @_;

    return first_turn($chat, %args)->asked('preload')->json;
}


sub names { return [ sort map { lc $_->[0] } @{$_[0]->headers} ] }


# the plainest case, in full

{
    my $turn = first_turn(chat('Which shoes?'));
    my ($init, $preload) = map { $turn->asked($_) } 'init', 'preload';

    foreach my $call ($init, $preload) {
        my $name = $call->path;

        is($call->method, 'POST', "$name: method");
        is($call->header('Content-Type'), 'application/json', "$name: type");
        is($call->header('Content-Length'), length $call->body,
           "$name: length");
        is($call->header('Kontextso-Publisher-Token'), 'acme-dev',
           "$name: token");
        is($call->args, undef, "$name: no query");
        is_deeply([ nulls_in($call->json) ], [], "$name: no nulls");
        like($call->json->{installId}, qr/\A$UUID_V7\z/,
             "$name: installId is a UUID of version 7, in lower case");
        like($call->json->{sdk}{version}, qr/\A\d+\.\d+\.\d+\z/,
             "$name: a version");
    }

    is($preload->header('Kontextso-Is-Disabled'), '0', 'ads are wanted');

    # nginx's own: it says "close" where connections are not kept by default

    my @own = $site->nginx->version < 1029007 ? 'connection' : ();

    is_deeply(names($init), [ sort @own, qw(host content-length
                                      content-type kontextso-publisher-token) ],
              '/init: these headers and no other');
    is_deeply(names($preload),
              [ sort @own, qw(host content-length content-type
                        kontextso-publisher-token kontextso-is-disabled) ],
              '/preload: these headers and no other');

    my $body = $init->json;
    my $id = $body->{installId};
    my %sdk = (name => 'sdk-js', platform => 'web',
               version => $body->{sdk}{version});

    is_deeply($body, { publisherToken => 'acme-dev', userId => 'u-1',
                       installId => $id, sdk => \%sdk },
              '/init: these members and no other');

    $body = $preload->json;

    my $message = $body->{messages}[0];

    is_deeply([ sort keys %$body ],
              [ sort qw(publisherToken userId conversationId installId
                        enabledPlacementCodes messages sdk device) ],
              '/preload: these members and no other');
    is($body->{publisherToken}, 'acme-dev', 'publisherToken');
    is($body->{userId}, 'u-1', 'userId');
    is($body->{conversationId}, 'c-1', 'conversationId');
    is($body->{installId}, $id, 'installId is that of /init');
    is_deeply($body->{sdk}, \%sdk, 'sdk is that of /init');
    is_deeply($body->{enabledPlacementCodes}, [ 'inlineAd' ], 'placements');
    is(scalar @{$body->{messages}}, 1, 'one message');
    is_deeply([ sort keys %$message ], [ qw(content createdAt id role) ],
              'members of a message');
    is($message->{role}, 'user', 'its role');
    is($message->{content}, 'Which shoes?', 'its text');

    is_deeply({ map { my $part = $_;
                      map { ("$part.$_" => type_of($body->{device}{$part}{$_})) }
                          keys %{$body->{device}{$part}} }
                    keys %{$body->{device}} },
              { 'hardware.type' => 'string', 'os.name' => 'string',
                'os.version' => 'string', 'os.locale' => 'string',
                'os.timezone' => 'string', 'screen.width' => 'integer',
                'screen.height' => 'integer', 'screen.dpr' => 'integer',
                'screen.darkMode' => 'boolean' },
              'what the ad server requires of a device, of a client that '
              . 'says nothing');
}


# installId: one for each user of a publisher

{
    my %id = (
        'u-1'        => preload(chat('Hi')),
        'u-2'        => preload(chat('Hi'), headers => { 'X-User' => 'u-2' }),
        'u-1 again'  => preload(chat('Elsewhere')),
        'u-1 of another' => preload(chat('Hi'), uri => "/device$CHAT"),
    );

    $_ = $_->{installId} foreach values %id;

    is($id{'u-1 again'}, $id{'u-1'}, 'the same user, the same installId');
    isnt($id{'u-2'}, $id{'u-1'}, 'another user, another installId');
    isnt($id{'u-1 of another'}, $id{'u-1'}, 'another token, another installId');
    like($id{$_}, qr/\A$UUID_V7\z/, "$_: a UUID of version 7") foreach keys %id;

    my $own = '019a5c1e-7b40-7c3a-9d11-5a2f0c9e7b61';
    my $turn = first_turn(chat('Hi'), headers => { 'X-Install' => $own });

    is($turn->asked('init')->json->{installId}, $own, 'one of the site, /init');
    is($turn->asked('preload')->json->{installId}, $own, '/preload');

    is(preload(chat('Hi'), headers => { 'X-Install' => uc $own })->{installId},
       $own, 'UUIDs are sent in lower case');
    like(preload(chat('Hi'), headers => { 'X-Install' => 'install-1' })
         ->{installId}, qr/\A$UUID_V7\z/, 'what is no UUID is not sent');
}


# options that are not set are not there; those that are have their types

{
    my $body = preload(chat('Hi'), headers => {
        'X-Character' => 'ch-1', 'X-Character-Name' => "Ana \"\\",
        'X-Avatar' => 'https://cdn.example/a.png', 'X-Greeting' => 'Hello!',
        'X-Persona' => 'A coach.', 'X-Tags' => 'sport, running,calm',
        'X-Nsfw' => '0', 'X-Gdpr' => '1', 'X-Coppa' => '0',
        'X-Consent' => 'CPexampleTCstring', 'X-Gpp' => 'DBAA',
        'X-Gpp-Sid' => '2,6', 'X-Usp' => '1YNN', 'X-Variant' => 'b',
        'X-Email' => 'ana@example.com',
    });

    is_deeply([ sort keys %$body ],
              [ sort qw(publisherToken userId conversationId installId
                        enabledPlacementCodes messages sdk device character
                        regulatory variantId userEmail) ], 'all options');

    my $tags = delete $body->{character}{tags};

    is_deeply([ map { s/^ //r } @$tags ], [ 'sport', 'running', 'calm' ],
              'tags are a list');
    is(type_of($body->{character}{isNsfw}), 'boolean', 'isNsfw is a boolean');
    is_deeply($body->{character},
              { id => 'ch-1', name => "Ana \"\\",
                avatarUrl => 'https://cdn.example/a.png',
                greeting => 'Hello!', persona => 'A coach.',
                isNsfw => JSON::PP::false() }, 'character');

    my $regulatory = $body->{regulatory};

    is(type_of($regulatory->{$_}), 'integer', "$_ is a number")
        foreach 'gdpr', 'coppa';
    is(type_of($_), 'integer', "gppSid $_ is a number")
        foreach @{$regulatory->{gppSid}};
    is_deeply($regulatory,
              { gdpr => 1, coppa => 0, gdprConsent => 'CPexampleTCstring',
                gpp => 'DBAA', gppSid => [ 2, 6 ], usPrivacy => '1YNN' },
              'regulatory');
    is($body->{variantId}, 'b', 'variantId');
    is($body->{userEmail}, 'ana@example.com', 'userEmail');
    is_deeply([ nulls_in($body) ], [], 'no nulls');

    $body = preload(chat('Hi'), headers => { 'X-Character' => 'ch-1' });
    ok(!exists $body->{character}, 'a character without a name is none');

    $body = preload(chat('Hi'), headers => { 'X-Character-Name' => 'Ana' });
    ok(!exists $body->{character}, 'nor is one without an id');

    $body = preload(chat('Hi'), headers => { 'X-Character' => 'ch-1',
                                             'X-Character-Name' => 'Ana' });
    is_deeply($body->{character}, { id => 'ch-1', name => 'Ana' },
              'what is empty is left out');

    $body = preload(chat('Hi'), headers => { 'X-Gdpr' => '0' });
    is_deeply($body->{regulatory}, { gdpr => 0 }, 'a zero is not empty');

    $body = preload(chat('Hi'), headers => {
        'X-Gdpr' => 'maybe', 'X-Coppa' => '7', 'X-Gpp-Sid' => 'x,y',
    });
    ok(!exists $body->{regulatory},
       'values of variables that are no such values are left out')
        or diag(explain($body->{regulatory}));
}


# placements and sdk

{
    my $body = preload(chat('Hi'), uri => "/device$CHAT");

    is_deeply($body->{enabledPlacementCodes},
              [ 'inlineAd', 'box', 'video', 'second' ], 'four placements');
    is_deeply($body->{sdk}, { name => 'sdk-react', platform => 'web',
                              version => '4.0.1' }, 'another sdk');
    is($body->{publisherToken}, 'other-token', 'another token');

    my @calls = $site->ads->requests;

    is($calls[-1]->header('Kontextso-Publisher-Token'), 'other-token',
       'in the header, too');
}


# the device, as the client's own headers have it

sub device {
    my (%headers) = @_;

    return preload(chat('Hi'), headers => \%headers)->{device};
}

my %agents = (
    'Mozilla/5.0 (iPhone; CPU iPhone OS 17_4_1 like Mac OS X) '
    . 'AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Mobile/15E148 '
    . 'Safari/604.1'                     => [ 'handset', qr/^ios$/i, qr/^17[._]4/ ],
    'Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 '
    . '(KHTML, like Gecko) Version/16.6 Mobile/15E148 Safari/604.1'
                                         => [ 'tablet', qr/^(?:ipad)?os$|^ios$/i,
                                              qr/^16[._]6/ ],
    'Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like '
    . 'Gecko) Chrome/126.0.0.0 Mobile Safari/537.36'
                                         => [ 'handset', qr/^android$/i, qr/^14/ ],
    'Mozilla/5.0 (Linux; Android 13; SM-X900) AppleWebKit/537.36 (KHTML, like '
    . 'Gecko) Chrome/126.0.0.0 Safari/537.36'
                                         => [ 'tablet', qr/^android$/i, qr/^13/ ],
    'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like '
    . 'Gecko) Chrome/126.0.0.0 Safari/537.36'
                                         => [ 'desktop', qr/^windows/i, qr/^10/ ],
    'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 '
    . '(KHTML, like Gecko) Version/17.4 Safari/605.1.15'
                                         => [ 'desktop', qr/^mac ?os/i,
                                              qr/^10[._]15/ ],
    'Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0'
                                         => [ 'desktop', qr/^linux$/i, qr/^/ ],
    'Mozilla/5.0 (SMART-TV; Linux; Tizen 7.0) AppleWebKit/537.36 (KHTML, like '
    . 'Gecko) SamsungBrowser/2.2 Chrome/94.0 TV Safari/537.36'
                                         => [ 'tv', qr/./, qr/^/ ],
);

foreach my $agent (sort keys %agents) {
    my ($type, $name, $version) = @{$agents{$agent}};
    my ($short) = $agent =~ /\(([^)]*)\)/;
    my $device = device('User-Agent' => $agent);

    is($device->{network}{userAgent}, $agent, "$short: the user's own agent");
    is($device->{hardware}{type}, $type, "$short: type");
    like($device->{os}{name}, $name, "$short: system");
    like($device->{os}{version}, $version, "$short: version");
}

foreach my $case ([ 'de-AT,de;q=0.9,en;q=0.8', 'de-AT' ],
                  [ 'en;q=0.5, fr-CA;q=0.9', qr/^(?:fr-CA|en)$/ ],
                  [ 'cs', 'cs' ], [ 'pt_BR', qr/^(?!.*_)/ ],
                  [ '*', qr/^[a-z]{2}-[A-Z]{2}$/ ],
                  [ '"\\<script>', qr/^[A-Za-z0-9-]+$/ ])
{
    my ($header, $want) = @$case;
    my $locale = device('Accept-Language' => $header)->{os}{locale};

    ref $want ? like($locale, $want, "Accept-Language: $header")
              : is($locale, $want, "Accept-Language: $header");
}

{
    my $device = device(
        'User-Agent' => 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 '
                        . '(KHTML, like Gecko) Chrome/126.0.0.0 Mobile '
                        . 'Safari/537.36',
        'Sec-CH-UA-Platform' => '"Android"',
        'Sec-CH-UA-Platform-Version' => '"14.0.0"', 'Sec-CH-UA-Mobile' => '?1',
        'Sec-CH-Prefers-Color-Scheme' => 'dark',
        'Sec-CH-Viewport-Width' => '390', 'Sec-CH-Viewport-Height' => '844',
    );

    is($device->{os}{name}, 'Android', 'Sec-CH-UA-Platform');
    is($device->{os}{version}, '14.0.0',
       'Sec-CH-UA-Platform-Version knows more than User-Agent');
    is($device->{hardware}{type}, 'handset', 'Sec-CH-UA-Mobile');
    ok($device->{screen}{darkMode}, 'Sec-CH-Prefers-Color-Scheme');
    is(type_of($device->{screen}{darkMode}), 'boolean', 'a boolean');
    is($device->{screen}{width}, 390, 'Sec-CH-Viewport-Width');
    is($device->{screen}{height}, 844, 'Sec-CH-Viewport-Height');

    $device = device('Sec-CH-Prefers-Color-Scheme' => 'light',
                     'Sec-CH-DPR' => '2.5');
    ok(!$device->{screen}{darkMode}, 'a light scheme');
    is($device->{screen}{dpr}, 2.5, 'Sec-CH-DPR');

    # nothing of this is a number, and all of it has to be one

    foreach my $bad ('x', '-1', '1e400', 'NaN', '0x10', '', '99999999999999999999')
    {
        my $screen = device('Sec-CH-DPR' => $bad,
                            'Sec-CH-Viewport-Width' => $bad,
                            'Sec-CH-Viewport-Height' => $bad)->{screen};

        cmp_ok($screen->{width}, '>=', 0, "hints of '$bad': width");
        cmp_ok($screen->{dpr}, '>', 0, "hints of '$bad': dpr");
        is(type_of($screen->{$_}), 'integer', "hints of '$bad': $_ is whole")
            foreach 'width', 'height';
        isnt(type_of($screen->{dpr}), 'string', "hints of '$bad': a number");
    }
}

{
    my $device = preload(chat('Hi'), uri => "/device$CHAT", headers => {
        'User-Agent' => 'Mozilla/5.0 (X11; Linux x86_64)',
        'Accept-Language' => 'fr-FR', 'Sec-CH-DPR' => '1',
        'X-D-Type' => 'tablet', 'X-D-OS' => 'Haiku',
        'X-D-OS-Version' => 'r1', 'X-D-Locale' => 'cs-CZ',
        'X-D-Timezone' => 'Europe/Prague', 'X-D-Width' => '1920',
        'X-D-Height' => '1080', 'X-D-DPR' => '1.25', 'X-D-Dark' => '1',
        'X-D-User-Agent' => 'Phone/1.0',
    })->{device};

    is_deeply($device,
              { hardware => { type => 'tablet' },
                os => { name => 'Haiku', version => 'r1', locale => 'cs-CZ',
                        timezone => 'Europe/Prague' },
                screen => { width => 1920, height => 1080, dpr => 1.25,
                            darkMode => JSON::PP::true() },
                network => { userAgent => 'Phone/1.0' } },
              'kontext_device has the last word')
        or diag(explain($device));

    $device = preload(chat('Hi'), uri => "/device$CHAT", headers => {
        'User-Agent' => 'Mozilla/5.0 (X11; Linux x86_64)',
        'X-D-Timezone' => 'Europe/Prague', 'X-D-Type' => 'phone',
        'X-D-Width' => 'wide', 'X-D-DPR' => 'double',
    })->{device};

    is($device->{os}{timezone}, 'Europe/Prague', 'one of them alone');
    is($device->{network}{userAgent}, 'Mozilla/5.0 (X11; Linux x86_64)',
       'the others as derived');
    is($device->{hardware}{type}, 'desktop', 'a type that is none is not sent');
    is(type_of($device->{screen}{width}), 'integer', 'nor is such a width');
    cmp_ok($device->{screen}{dpr}, '>', 0, 'nor such a dpr');
}


# messages

{
    my @texts = map { "message $_" } 1 .. 41;
    my $body = preload(chat(@texts));
    my @messages = @{$body->{messages}};

    is(scalar @messages, 30, 'of 41 messages 30 are sent');
    is_deeply([ map { $_->{content} } @messages ], [ @texts[11 .. 40] ],
              'the last ones, in their order');
    is_deeply([ map { $_->{role} } @messages ],
              [ map { $_ % 2 ? 'user' : 'assistant' } 12 .. 41 ],
              'each with its role');
    is($messages[-1]{role}, 'user', 'ends with what the user said');

    my @times = map { $_->{createdAt} } @messages;

    is(scalar(grep { !/\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\z/ } @times), 0,
       'createdAt in UTC with milliseconds');
    is_deeply([ sort @times ], \@times, 'and it does not run backwards');
    is(scalar(keys %{{ map { $_->{id} => 1 } @messages }}), 30, 'ids differ');
    is_deeply([ nulls_in($body) ], [], 'no nulls');

    $body = preload(chat('one', 'two', 'three'));
    is(scalar @{$body->{messages}}, 3, 'a short history is sent whole');

    # what is not for the user's eyes does not count

    $body = preload(chat({ messages => [
        { role => 'system', content => 'system' },
        (map { ({ role => 'user', content => "u$_" },
                { role => 'assistant', content => '', tool_calls => [] },
                { role => 'tool', content => "t$_", tool_call_id => 'x' },
                { role => 'assistant', content => "a$_" }) } 1 .. 20),
        { role => 'user', content => 'last' },
    ] }));

    is(scalar @{$body->{messages}}, 30, '30 messages that have text');
    is($body->{messages}[0]{content}, 'a6', 'counted from the end');
}

# shapes of content

{
    my $body = preload(chat({ messages => [
        { role => 'user', content => [
            { type => 'text', text => 'Like' },
            { type => 'image_url', image_url => { url => 'https://x/y.png' } },
            { type => 'text', text => 'these?' } ] },
        { role => 'assistant', content => undef },
        { role => 'assistant', content => [ { type => 'text',
                                              text => 'Yes.' } ] },
        { content => 'Why?', name => 'ana', role => 'user' },
    ] }));

    is_deeply([ map { [ $_->{role}, $_->{content} ] } @{$body->{messages}} ],
              [ [ 'user', "Like\nthese?" ], [ 'assistant', 'Yes.' ],
                [ 'user', 'Why?' ] ],
              'parts are joined, null and images are nothing');
}

my %texts = (
    '"\u0041\n\t\"\\\\\/\b\f."'     => "A\n\t\"\\/\b\f.",
    '"a  b\n\n\tc\n    d"'          => "a  b\n\n\tc\n    d",
    '"\u00e9\u5b57\ud83d\udeb2"'    => "\x{e9}\x{5b57}\x{1f6b2}",
    "\"\xc3\xa9\xf0\x9f\x9a\xb2\""  => "\x{e9}\x{1f6b2}",
    '"a\ud83d"'                     => "a\x{fffd}",
    '"a\ud83d z"'                   => "a\x{fffd} z",
    '"\udeb2 a"'                    => "\x{fffd} a",
    '"\ud83d\ud83d\udeb2"'          => "\x{fffd}\x{1f6b2}",
    '"a\u0000b"'                    => qr/\Aa.?b\z/s,
    '"\u2028\u2029\u007f\u0001"'    => "\x{2028}\x{2029}\x{7f}\x{1}",
    '"**bold** `code` <b>tag</b>"'  => '**bold** `code` <b>tag</b>',
);

foreach my $json (sort keys %texts) {
    my $body = preload('{"stream":true,"messages":[{"role":"user","content":'
                       . $json . '},{"role":"user","content":"Hm?"}]}');
    my $name = $json =~ s/([^ -~])/sprintf("<%02x>", ord $1)/ger;
    my $got = $body->{messages}[0]{content};

    ref $texts{$json} ? like($got, $texts{$json}, "content $name")
                      : is($got, $texts{$json}, "content $name");
}

# what the ad server gets has a bound, and ends with the user's message

{
    my $body = preload(chat('Hi', 'word ' x 40_000, 'Why? ' x 40_000));
    my $last = $body->{messages}[-1];

    is($last->{role}, 'user', 'a text of 200 kB: the user\'s message is last');
    like($last->{content}, qr/\A(?:Why\? )+/, 'with its beginning');
    cmp_ok(length(json($body)), '<', 100_000, 'and with a bound');
}

# members in any order, escapes in names

{
    my $body = preload('{"messages":[{"content":"Hi","role":"user"}],'
                       . '"\u0073tream":true , "x":{"messages":[1]} }');

    is($body->{messages}[0]{content}, 'Hi', 'any order, names with escapes');
}


# how the body comes does not matter

{
    my @history = map { ("Question $_: " . 'why ' x 50,
                         "Answer $_: " . 'because ' x 100) } 1 .. 40;
    my @images = map { { role => 'user', content => [
        { type => 'text', text => "Picture $_" },
        { type => 'image_url', image_url => {
            url => 'data:image/png;base64,' . 'QUFB' x 300_000 } } ] } } 1;
    my %bodies = (
        'small'     => json(chat('Which shoes?')),
        '50k'       => json(chat(@history, 'Which shoes?')),
        '1 MB'      => json(chat({ messages => [
            @images, { role => 'user', content => 'Which shoes?' } ] })),
    );

    my $padding = 8 * 1024 * 1024 - length json(chat({ metadata => {
        pad => '' } }, 'Which shoes?'));

    $bodies{'8 MB'} = json(chat({ metadata => { pad => 'p' x $padding } },
                                'Which shoes?'));
    is(length $bodies{'8 MB'}, 8 * 1024 * 1024, 'a body of 8 megabytes');

    foreach my $size (sort keys %bodies) {
        foreach my $how ('in-memory', 'spooled', 'in-file') {
            my $turn = first_turn($bodies{$size}, uri => "/$how$CHAT");
            my $messages = $turn->asked('preload')->json->{messages};

            is($messages->[-1]{content}, 'Which shoes?', "$size, $how: read");
            is(scalar @$messages, { '50k' => 30, '1 MB' => 2 }->{$size} // 1,
               "$size, $how: all messages");
            ok($turn->request->body eq $bodies{$size},
               "$size, $how: and passed on as it was");
        }

        my $chunked = join('', map { sprintf("%x\r\n%s\r\n", length, $_) }
                                   $bodies{$size} =~ /(.{1,60001})/gs)
                      . "0\r\n\r\n";
        my $turn = first_turn($chunked, headers => {
            'Transfer-Encoding' => 'chunked' });

        is($turn->asked('preload')->json->{messages}[-1]{content},
           'Which shoes?', "$size, chunked: read");
        ok($turn->request->body eq $bodies{$size}, "$size, chunked: passed on");
    }
}


# sessionId is sent back from the first answer that has one, whatever it was

my $SESSION = '019a5c20-11aa-7e02-8b6c-0d4e92f1a3c5';
my $OTHER = '019a5c20-22bb-7e02-8b6c-0d4e92f1a3c5';

foreach my $case (
    [ 'filled',     200, Kontext::Mock->bid(sessionId => $SESSION) ],
    [ 'a skip',     200, { sessionId => $SESSION, skip => JSON::PP::true(),
                           skipCode => 'ad_skipped' } ],
    [ 'no bids',    200, { sessionId => $SESSION, bids => [] } ],
    [ 'an error',   200, { sessionId => $SESSION, errCode => 'busy' } ],
    [ 'upper case', 200, Kontext::Mock->bid(sessionId => uc $SESSION) ],
) {
    my ($name, @answer) = @$case;
    my %who = (headers => { 'X-Conversation' => "session of $name" });
    my @texts = ('one', 'Light ones.', 'two', 'Light ones.', 'three');

    $site->ads->on('/preload', @answer);

    my $turn = $site->turn(chat($texts[0]), %who, asks => ['init', 'preload']);

    ok(!exists $turn->asked('preload')->json->{sessionId},
       "$name: no sessionId before the ad server gave one");
    is($turn->event->{session}, $SESSION, "$name: it is known");

    # an answer without one does not take it away, another one replaces it

    $site->ads->on('/preload', 200, { errCode => 'busy' });
    $turn = $site->turn(chat(@texts[0 .. 2]), %who, asks => ['preload']);
    is($turn->asked('preload')->json->{sessionId}, $SESSION,
       "$name: sessionId is sent back");

    $site->ads->on('/preload', 200, Kontext::Mock->bid(sessionId => $OTHER));
    $turn = $site->turn(chat(@texts), %who, asks => ['preload']);
    is($turn->asked('preload')->json->{sessionId}, $SESSION,
       "$name: and kept over an answer without one");

    $turn = $site->turn(chat(@texts, 'Light ones.', 'four'), %who,
                        asks => ['preload']);
    is($turn->asked('preload')->json->{sessionId}, $OTHER,
       "$name: the newest counts");
}

$site->ads->on('/preload', 200, Kontext::Mock->bid);


# the end user's address, which only the location can give

{
    my $turn = first_turn(chat('Hi'), uri => "/addressed$CHAT",
                          headers => { 'X-Forwarded-For' => '10.1.2.3' });

    is($turn->asked($_)->header('X-Forwarded-For'), '127.0.0.1',
       "/$_: the address as the location has it")
        foreach 'init', 'preload';
}


# Nothing leaks.  Each place has a word of its own, and no ad call may have it.

{
    my $n = 0;
    my %places;
    my $canary = sub {
        my ($place) = @_;
        my $word = sprintf('canary%04x', 0xa000 + ++$n);

        $places{$word} = $place;
        return $word;
    };
    my %headers = map { $_ => $canary->("header $_") } (
        'Authorization', 'Proxy-Authorization', 'Cookie', 'X-Api-Key',
        'Api-Key', 'X-Goog-Api-Key', 'Referer', 'Origin', 'X-Real-IP',
        'X-Forwarded-For', 'X-Forwarded-Host', 'Forwarded', 'Via', 'From',
        'X-Request-Id', 'Traceparent', 'Baggage', 'X-Custom', 'Accept',
        'Idempotency-Key', 'OpenAI-Organization', 'OpenAI-Project',
        'X-Stainless-Lang', 'If-None-Match', 'Kontextso-Publisher-Token',
        'Kontextso-Is-Disabled', 'Kontextso-Other', 'Accept-Encoding',
        'X-CSRF-Token', 'TE',
    );

    $headers{Authorization} = "Bearer $headers{Authorization}";
    $headers{Cookie} = "session=$headers{Cookie}";
    $headers{Host} = $canary->('the host') . '.example';

    my $uri = "$CHAT?key=" . $canary->('the query');
    my $tool = { type => 'function', function => {
        name => $canary->('a tool'), description => $canary->('its purpose'),
        parameters => { type => 'object', properties => {
            $canary->('its parameter') => {} } } } };

    my $chat = {
        model => $canary->('the model'), stream => JSON::PP::true(),
        prompt_cache_key => $canary->('prompt_cache_key'),
        tools => [ $tool ], tool_choice => 'auto',
        stop => [ $canary->('a stop word') ],
        metadata => { note => $canary->('metadata') },
        prediction => { type => 'content',
                        content => $canary->('a prediction') },
        web_search_options => { user_location => $canary->('options') },
        unknown => { deep => [ { er => $canary->('an unknown member') } ] },
        messages => [
            { role => 'system', content => $canary->('the system prompt') },
            { role => 'developer', content => [
                { type => 'text', text => $canary->('the developer prompt') } ] },
            { role => 'user', name => $canary->('the name of a message'),
              content => [
                { type => 'text', text => 'Which shoes?' },
                { type => 'image_url', image_url => {
                    url => 'https://cdn.example/'
                           . $canary->('an image') . '.png' } },
                { type => 'image_url', image_url => {
                    url => 'data:image/png;base64,'
                           . $canary->('image data') } },
                { type => 'file', file => {
                    filename => $canary->('a file name'),
                    file_data => $canary->('file data') } },
                { type => 'input_audio', input_audio => {
                    data => $canary->('audio'), format => 'wav' } } ] },
            { role => 'assistant', content => undef,
              reasoning_content => $canary->('reasoning'),
              refusal => $canary->('a refusal'),
              tool_calls => [ { id => $canary->('the id of a call'),
                                type => 'function', function => {
                  name => $canary->('the name of a call'),
                  arguments => '{"a":"' . $canary->('arguments') . '"}' } } ] },
            { role => 'tool', tool_call_id => $canary->('the id of a result'),
              content => $canary->('a tool result') },
            { role => 'tool', tool_call_id => 'x', content => [
                { type => 'text', text => $canary->('a result in parts') } ] },
            { role => 'function', name => 'x',
              content => $canary->('a function result') },
            { role => 'assistant', content => 'Light ones.',
              audio => { id => $canary->('the id of audio') } },
            { role => $canary->('an unknown role'),
              content => $canary->('its content') },
            { role => 'user', content => 'Why?' },
        ],
    };

    my $turn = first_turn($chat, uri => $uri, headers => \%headers,
                          text => 'Because of ' . $canary->('the answer'));

    is($turn->why, 'filled ', 'a turn full of secrets');
    is_deeply([ map { $_->{content} }
                    @{$turn->asked('preload')->json->{messages}} ],
              [ 'Which shoes?', 'Light ones.', 'Why?' ],
              'what was said is sent');

    my @calls = map { $turn->asked($_) } 'init', 'preload';
    my $seen = lc join("\n", map { $_->head . $_->body } @calls);
    my $backend = $turn->request->head . $turn->request->body;

    foreach my $word (sort keys %places) {
        like($backend, qr/$word/, "the backend gets $places{$word}")
            if $places{$word} !~ /^(?:the[ ](?:host|answer)
                                     |header[ ](?:Accept-Encoding|TE))$/x;
        unlike($seen, qr/$word/, "the ad server does not: $places{$word}");
    }

    foreach my $call (@calls) {
        is_deeply([ grep { !/^(?:host|connection|content-(?:length|type)
                                |kontextso-(?:publisher-token|is-disabled))$/x }
                         @{names($call)} ], [],
                  $call->path . ': no header but its own');
        is($call->header('Kontextso-Publisher-Token'), 'acme-dev',
           $call->path . ': the token of the configuration');
    }

    is($calls[1]->header('Kontextso-Is-Disabled'), '0', 'the flag of its own');
}


$site->stop_ok;

done_testing;
