#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The directives: where they may stand, what they inherit, and what is said to
# whoever writes a wrong one.
#
# Sections of our own:  "good" and "bad" are directives of a location with
# "kontext on", a token and an ad server around them; "bad" has to be refused,
# and "says" is what the message must have for the reader to go on with.

use strict;
use warnings;

use Cwd ();
use File::Temp ();

# The server root is made in ./t whatever TEST_NGINX_SERVROOT says, and the
# source tree may be read-only.

our $root;

BEGIN {
    $ENV{TEST_NGINX_LOAD_MODULES} = join(' ', map { Cwd::abs_path($_) }
        split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '');

    $root = File::Temp::tempdir('kontext-config-XXXXXX', TMPDIR => 1,
                                CLEANUP => 1);
    chmod(0755, $root);
    mkdir("$root/t") && chdir($root) or die "$root: $!";
}

END { chdir('/') }

use Test::Nginx::Socket;

our $ad_server = <<'CONF';
    location /_kontext/ {
        internal;
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/ad-server/;
    }
CONF

# a hundred servers more

our $many = '';

$many .= <<"CONF" foreach 1 .. 100;
server {
    listen 127.0.0.2:\$TEST_NGINX_SERVER_PORT;
    server_name s$_;
    location /_kontext/ { internal; return 204; }
}
CONF


# a backend and an ad server without a process of their own

our $others = <<'CONF' . $ad_server;
    location /backend {
        default_type text/event-stream;
        return 200 'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n';
    }

    location = /ad-server/init {
        default_type application/json;
        return 200 '{}';
    }

    location = /ad-server/preload {
        default_type application/json;
        return 200 '{"sessionId":"0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913","bids":[{"bidId":"7c9e6679-7425-40de-944b-e07fc1f90ae7","code":"inlineAd"}]}';
    }
CONF

add_block_preprocessor(sub {
    my ($block) = @_;
    my $in = $block->good // $block->bad;

    if (defined $in) {
        $block->set_value('config', <<"CONF");
$ad_server
    location /chat {
        kontext on;
        kontext_publisher_token acme-dev;
        $in
    }

    location /alive {
        return 204;
    }
CONF
    }

    if (defined $block->good) {
        $block->set_value('request', 'GET /alive');
        $block->set_value('error_code', 204);
    }

    my $says = $block->says;

    if (defined $says) {
        $block->set_value('must_die', 1);
        $block->set_value('error_log',
                          [ '[emerg]', ref $says eq 'ARRAY' ? @$says
                                       : ref $says ? $says
                                       : $says =~ s/\s+\z//r ]);
        $block->set_value('suppress_stderr', 1);

    } elsif (!defined $block->no_error_log) {
        $block->set_value('no_error_log', "[error]\n[alert]\n[emerg]\n");
    }
});

no_long_string();
no_shuffle();
no_root_location();
run_tests();
Test::More::done_testing();

__DATA__

=== every directive is accepted in http
--- http_config
kontext_zone            kontext:2m idle=10m;
kontext                 on;
kontext_publisher_token acme-dev;
kontext_user_id         $http_x_user_id;
kontext_conversation_id $http_x_conversation_id;
kontext_ad_server       /_kontext;
kontext_frame_origin    https://server.megabrain.co;
kontext_format          auto;
kontext_inject          member;
kontext_text            '[$kontext_label]($kontext_frame_url)';
kontext_label           Sponsored;
kontext_grace           500ms;
kontext_preload_timeout 5s;
kontext_placements      inlineAd second third fourth;
kontext_character       id=$http_x_a name=n avatar_url=https://a.b/c greeting=g
                        persona=p tags=a,b nsfw=1;
kontext_regulatory      gdpr=1 coppa=0 gdpr_consent=$cookie_c gpp=g gpp_sid=2,6
                        us_privacy=1YNN;
kontext_device          type=tv os=o os_version=1 locale=en-US
                        timezone=Europe/Prague width=1 height=2 dpr=1.5 dark=1
                        user_agent=$http_user_agent;
kontext_variant_id      b;
kontext_user_email      $http_x_email;
kontext_theme           dark;
kontext_install_id      $http_x_install_id;
kontext_sdk             name=sdk-js platform=web version=4.0.2;
kontext_max_body        8m;
--- config
    location /_kontext/ {
        internal;
        return 204;
    }

    location /alive {
        return 204;
    }
--- request
GET /alive
--- error_code: 204


=== every directive but the zone is accepted in server
--- config
    kontext                 on;
    kontext_publisher_token $http_x_token;
    kontext_user_id         u;
    kontext_conversation_id c;
    kontext_ad_server       /_kontext;
    kontext_frame_origin    http://127.0.0.1:8080;
    kontext_format          openai_chat;
    kontext_inject          none;
    kontext_text            "Ad: ${kontext_frame_url} $http_x_text";
    kontext_label           $http_x_label;
    kontext_grace           0;
    kontext_preload_timeout 100ms;
    kontext_placements      inlineAd;
    kontext_character       id=i name=n;
    kontext_regulatory      gdpr=0;
    kontext_device          type=other;
    kontext_variant_id      $cookie_variant;
    kontext_user_email      a@example.com;
    kontext_theme           $cookie_theme;
    kontext_install_id      0199a0b1-1111-7222-8333-444455556666;
    kontext_sdk             version=4.1.0;
    kontext_max_body        64k;

    location /_kontext/ {
        internal;
        return 204;
    }

    location /alive {
        return 204;
    }
--- request
GET /alive
--- error_code: 204


=== every directive but the zone is accepted in location
--- config
    location /_kontext/ {
        internal;
        return 204;
    }

    location / {
        kontext                 track_only;
        kontext_publisher_token acme-dev;
        kontext_user_id         u;
        kontext_conversation_id c;
        kontext_ad_server       /_kontext;
        kontext_frame_origin    https://[::1]:443;
        kontext_format          auto;
        kontext_inject          text;
        kontext_text            $kontext_frame_url;
        kontext_label           'Ad by "someone"';
        kontext_grace           1s;
        kontext_preload_timeout 1m;
        kontext_placements      a b c d;
        kontext_character       id=i name=n;
        kontext_regulatory      gdpr=;
        kontext_device          type=desktop;
        kontext_variant_id      v;
        kontext_user_email      $http_x_email;
        kontext_theme           light;
        kontext_install_id      $cookie_install;
        kontext_sdk             name=sdk-react platform=web version=1.2.3;
        kontext_max_body        1m;
        return 204;
    }
--- request
GET /
--- error_code: 204


=== what is said in http holds in a server that says nothing
--- http_config
kontext                 on;
kontext_publisher_token acme-dev;
kontext_user_id         user-of-http;
kontext_conversation_id conversation-of-http;
kontext_frame_origin    https://http.example;
kontext_label           http-label;
kontext_theme           http-theme;
kontext_grace           20s;
--- config eval
$::others . <<'CONF'
    location / {
        add_header X-Who "$kontext_session_user $kontext_session_conversation";
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/backend;
    }
CONF
--- request eval
qq(POST /v1/chat/completions
{"stream":true,"messages":[{"role":"user","content":"Which shoes?"}]})
--- more_headers
Content-Type: application/json
--- response_headers
X-Who: user-of-http conversation-of-http
--- response_body_like eval
qr{"label":"http-label","frameUrl":"https://http\.example/api/frame/7c9e6679-7425-40de-944b-e07fc1f90ae7\?[^"]*theme=http-theme}


=== a server overrides http, a location overrides both, for each directive alone
--- http_config
kontext                 on;
kontext_publisher_token acme-dev;
kontext_user_id         user-of-http;
kontext_conversation_id conversation-of-http;
kontext_frame_origin    https://http.example;
kontext_label           http-label;
kontext_theme           http-theme;
kontext_grace           20s;
--- config eval
$::others . <<'CONF'
    kontext_conversation_id conversation-of-server;
    kontext_label           server-label;
    kontext_theme           server-theme;

    location / {
        kontext_theme location-theme;
        add_header X-Who "$kontext_session_user $kontext_session_conversation";
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/backend;
    }
CONF
--- request eval
qq(POST /v1/chat/completions
{"stream":true,"messages":[{"role":"user","content":"Which shoes?"}]})
--- more_headers
Content-Type: application/json
--- response_headers
X-Who: user-of-http conversation-of-server
--- response_body_like eval
qr{"label":"server-label","frameUrl":"https://http\.example/api/frame/[^"]*theme=location-theme}


=== a text of http, a label of the server, the form of the location
--- http_config
kontext                 on;
kontext_publisher_token acme-dev;
kontext_frame_origin    https://http.example;
kontext_text            "http-text $kontext_label $kontext_frame_url end";
kontext_grace           20s;
--- config eval
$::others . <<'CONF'
    kontext_label           server-label;

    location / {
        kontext_inject text;
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/backend;
    }
CONF
--- request eval
qq(POST /v1/chat/completions
{"stream":true,"messages":[{"role":"user","content":"Which shoes?"}]})
--- more_headers
Content-Type: application/json
--- response_body_like eval
qr{http-text server-label https://http\.example/api/frame/7c9e6679-7425-40de-944b-e07fc1f90ae7\?[^" ]* end}


=== a location switches off what is on above it
--- http_config
kontext                 on;
kontext_publisher_token acme-dev;
--- config eval
$::others . <<'CONF'
    location / {
        kontext off;
        add_header X-Status "$kontext_status";
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/backend;
    }
CONF
--- request eval
qq(POST /v1/chat/completions
{"stream":true,"messages":[{"role":"user","content":"Which shoes?"}]})
--- more_headers
Content-Type: application/json
--- response_headers
X-Status: off
--- response_body eval
qq(data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n)


=== a zone of another name and size
--- http_config
kontext_zone ads:32k;
kontext      on;
kontext_publisher_token acme-dev;
--- config eval
$::others . <<'CONF'
    location / {
        kontext_grace 20s;
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/backend;
    }
CONF
--- request eval
qq(POST /v1/chat/completions
{"stream":true,"messages":[{"role":"user","content":"Which shoes?"}]})
--- more_headers
Content-Type: application/json
--- response_body_like eval
qr{"kontext":\{"messageId":"kx1_}


=== many servers and the smallest zone there may be
--- http_config eval
<<'CONF' . $::many
kontext_zone kontext:32k;
kontext      on;
kontext_publisher_token acme-dev;
CONF
--- config eval
$::others . <<'CONF'
    location / {
        kontext_grace 20s;
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/backend;
    }
CONF
--- request eval
qq(POST /v1/chat/completions
{"stream":true,"messages":[{"role":"user","content":"Which shoes?"}]})
--- more_headers
Content-Type: application/json
--- response_body_like eval
qr{"kontext":\{"messageId":"kx1_}


=== loaded and not used: requests are served, variables are empty or "off"
--- config
    location / {
        add_header X-Status "[$kontext_status]";
        add_header X-Others "[$kontext_reason$kontext_injected$kontext_session$kontext_bid_id$kontext_message_id]";
        return 200 "ok\n";
    }
--- request
GET /
--- response_headers
X-Status: [off]
X-Others: []
--- response_body
ok


=== kontext: zero and the empty string are off, and need nothing else
--- config
    kontext 0;

    location /alive {
        kontext "";
        return 204;
    }
--- request
GET /alive
--- error_code: 204


=== the internal location may be of any prefix
--- config
    location /ads/of/kontext/ {
        internal;
        return 204;
    }

    location / {
        kontext on;
        kontext_publisher_token acme-dev;
        kontext_ad_server /ads/of/kontext;
        return 204;
    }
--- request
GET /
--- error_code: 204


=== a grace of zero, a time without a unit
--- good
kontext_grace 0;
kontext_preload_timeout 5;


=== kontext: a word it does not know
--- bad: kontext_label x; } location /other { kontext yes;
--- says
invalid value "yes" in "kontext", it must be "on", "off", "track_only", "identify" or a variable


=== kontext: nothing
--- bad: } location /other { kontext;
--- says
invalid number of arguments in "kontext" directive


=== kontext: twice
--- bad: kontext off;
--- says
"kontext" directive is duplicate


=== kontext: not within "if"
--- bad: if ($arg_a) { kontext off; }
--- says
"kontext" directive is not allowed here


=== on without a token
--- config eval
"$::ad_server location / { kontext on; }"
--- says
there is no publisher token, write "kontext_publisher_token <token>;"


=== track_only without a token
--- config eval
"$::ad_server location / { kontext track_only; }"
--- says
there is no publisher token, write "kontext_publisher_token <token>;"


=== a variable that may say "on", without a token
--- config eval
"$::ad_server location / { kontext \$arg_ads; }"
--- says
there is no publisher token, write "kontext_publisher_token <token>;"


=== a token that is empty as it is written
--- config eval
"$::ad_server location / { kontext on; kontext_publisher_token ''; }"
--- says
there is no publisher token, write "kontext_publisher_token <token>;"


=== a token in http is enough for all
--- http_config
kontext_publisher_token acme-dev;
--- config eval
"$::ad_server location / { kontext on; return 204; }"
--- request
GET /
--- error_code: 204


=== no internal location
--- config
    location / { kontext on; kontext_publisher_token acme-dev; }
--- says
has no internal location "/_kontext/" for the ad server, write "include kontext_ad_server.conf;"


=== a location that everybody can reach
--- config
    location /_kontext/ { return 204; }
    location / { kontext on; kontext_publisher_token acme-dev; }
--- says
has no internal location "/_kontext/" for the ad server, write "include kontext_ad_server.conf;"


=== another prefix than the internal location's
--- config
    location /_kontext/ { internal; return 204; }

    location / {
        kontext on;
        kontext_publisher_token acme-dev;
        kontext_ad_server /ads;
    }
--- says
has no internal location "/ads/" for the ad server


=== the internal location of one server is none of another
--- http_config
server {
    listen 127.0.0.1:$TEST_NGINX_SERVER_PORT;
    server_name ads.example;
    location /_kontext/ { internal; return 204; }
}
--- config
    location / { kontext on; kontext_publisher_token acme-dev; }
--- says
has no internal location "/_kontext/" for the ad server


=== kontext_ad_server: no slash at its start
--- bad: kontext_ad_server _kontext;
--- says
invalid value "_kontext" in "kontext_ad_server", it must be the prefix of an internal location, such as "/_kontext"


=== kontext_ad_server: a variable
--- bad: kontext_ad_server $arg_a;
--- says
invalid value "$arg_a" in "kontext_ad_server", it must be the prefix of an internal location, such as "/_kontext"


=== kontext_zone: too small
--- http_config
kontext_zone kontext:8k;
--- config
--- says
zone "kontext:8k" is too small, it must have at least 32k


=== kontext_zone: no size
--- http_config
kontext_zone kontext;
--- config
--- says
invalid zone "kontext" in "kontext_zone", write "name:size", such as "kontext:32m"


=== kontext_zone: no name
--- http_config
kontext_zone :32m;
--- config
--- says
invalid zone ":32m" in "kontext_zone", write "name:size", such as "kontext:32m"


=== kontext_zone: a size that is none
--- http_config
kontext_zone kontext:big;
--- config
--- says
invalid size "big" in "kontext_zone", write a number with "k" or "m"


=== kontext_zone: a time that is none
--- http_config
kontext_zone kontext:32m idle=soon;
--- config
--- says
invalid time "soon" in "kontext_zone", write such as "idle=30m"


=== kontext_zone: an idle time of zero
--- http_config
kontext_zone kontext:32m idle=0;
--- config
--- says
invalid time "0" in "kontext_zone", write such as "idle=30m"


=== kontext_zone: a parameter it does not know
--- http_config
kontext_zone kontext:32m ttl=30m;
--- config
--- says
invalid parameter "ttl=30m" in "kontext_zone", it must be "idle=time"


=== kontext_zone: twice
--- http_config
kontext_zone kontext:32m;
kontext_zone other:32m;
--- config
--- says
"kontext_zone" directive is duplicate


=== kontext_zone: a name that is taken
--- http_config
limit_req_zone $remote_addr zone=kontext:32m rate=1r/s;
kontext_zone   kontext:32m;
--- config
--- says
"kontext" is already declared for a different use


=== kontext_zone: not in a server
--- config
    kontext_zone kontext:32m;
--- says
"kontext_zone" directive is not allowed here


=== kontext_frame_origin: no scheme
--- bad: kontext_frame_origin server.megabrain.co;
--- says
invalid value "server.megabrain.co" in "kontext_frame_origin", it must be "https://host" or "https://host:port" without a path


=== kontext_frame_origin: another scheme
--- bad: kontext_frame_origin ftp://server.megabrain.co;
--- says
in "kontext_frame_origin", it must be "https://host" or "https://host:port" without a path


=== kontext_frame_origin: a path
--- bad: kontext_frame_origin https://server.megabrain.co/api;
--- says
in "kontext_frame_origin", it must be "https://host" or "https://host:port" without a path


=== kontext_frame_origin: a query
--- bad: kontext_frame_origin https://server.megabrain.co?a=b;
--- says
in "kontext_frame_origin", it must be "https://host" or "https://host:port" without a path


=== kontext_frame_origin: no host
--- bad: kontext_frame_origin https://;
--- says
in "kontext_frame_origin", it must be "https://host" or "https://host:port" without a path


=== kontext_frame_origin: a quote in the host
--- bad: kontext_frame_origin 'https://a"b';
--- says
in "kontext_frame_origin", it must be "https://host" or "https://host:port" without a path


=== kontext_frame_origin: empty
--- bad: kontext_frame_origin "";
--- says
in "kontext_frame_origin", it must be "https://host" or "https://host:port" without a path


=== kontext_format: a format it does not know
--- bad: kontext_format json;
--- says
unknown format "json" in "kontext_format", it must be "auto", "openai_responses", "gemini", "ai_sdk_ui", "anthropic", "openai_chat" or "ollama"


=== kontext_inject: a form it does not know
--- bad: kontext_inject banner;
--- says eval
[qr/"banner" in "kontext_inject"/, qr/it must be "member", "text" or "none"/]


=== kontext_inject: twice
--- bad: kontext_inject text; kontext_inject text;
--- says
"kontext_inject" directive is duplicate


=== kontext_text: an ad without its frame
--- bad: kontext_text "Ad: $kontext_label";
--- says
"kontext_text" must have $kontext_frame_url in it, such as "[$kontext_label]($kontext_frame_url)"


=== kontext_text: the name of the variable alone
--- bad: kontext_text kontext_frame_url;
--- says
"kontext_text" must have $kontext_frame_url in it


=== kontext_text: empty
--- bad: kontext_text "";
--- says
"kontext_text" must have $kontext_frame_url in it


=== kontext_text: also where nobody uses it
--- config
    location / {
        kontext_text Ad;
        return 204;
    }
--- says
"kontext_text" must have $kontext_frame_url in it


=== kontext_text: a variable that is not there
--- bad: kontext_text "$kontext_frame_url $no_such_variable";
--- says
unknown "no_such_variable" variable


=== kontext_text: two words need quotes
--- bad: kontext_text Ad: $kontext_frame_url;
--- says
invalid number of arguments in "kontext_text" directive


=== kontext_text: twice
--- bad: kontext_text $kontext_frame_url; kontext_text $kontext_frame_url;
--- says
"kontext_text" directive is duplicate


=== kontext_grace: no time
--- bad: kontext_grace soon;
--- says
"kontext_grace" directive invalid value


=== kontext_grace: less than nothing
--- bad: kontext_grace -1;
--- says
"kontext_grace" directive invalid value


=== kontext_preload_timeout: no time
--- bad: kontext_preload_timeout soon;
--- says
"kontext_preload_timeout" directive invalid value


=== kontext_max_body: no size
--- bad: kontext_max_body much;
--- says
"kontext_max_body" directive invalid value


=== kontext_placements: more than four
--- bad: kontext_placements a b c d e;
--- says
too many codes in "kontext_placements", at most 4


=== kontext_placements: twice the same
--- bad: kontext_placements a a;
--- says
duplicate code "a" in "kontext_placements"


=== kontext_placements: an empty code
--- bad: kontext_placements "";
--- says
invalid code "" in "kontext_placements", it must have 1 to 63 characters


=== kontext_placements: none
--- bad: kontext_placements;
--- says
invalid number of arguments in "kontext_placements" directive


=== kontext_character: a name it does not know
--- bad: kontext_character title=t;
--- says eval
[qr/"title=t" in "kontext_character"/, qr/name=value/]


=== kontext_character: no value
--- bad: kontext_character id;
--- says eval
[qr/"id" in "kontext_character"/, qr/name=value/]


=== kontext_character: twice the same
--- bad: kontext_character id=1 id=2;
--- says
duplicate parameter "id" in "kontext_character"


=== kontext_character: nsfw is 0 or 1
--- bad: kontext_character id=1 name=n nsfw=yes;
--- says
invalid value "yes" of parameter "nsfw", it must be one of "0", "1"


=== kontext_regulatory: a name it does not know
--- bad: kontext_regulatory ccpa=1;
--- says eval
[qr/"ccpa=1" in "kontext_regulatory"/, qr/name=value/]


=== kontext_regulatory: gdpr is 0 or 1
--- bad: kontext_regulatory gdpr=yes;
--- says
invalid value "yes" of parameter "gdpr", it must be one of "0", "1"


=== kontext_regulatory: coppa is 0 or 1
--- bad: kontext_regulatory coppa=2;
--- says
invalid value "2" of parameter "coppa", it must be one of "0", "1"


=== kontext_regulatory: gpp_sid is made of numbers
--- bad: kontext_regulatory gpp_sid=two,six;
--- says eval
qr/invalid value "two,six" of parameter "gpp_sid", it must be/


=== kontext_regulatory: twice the same
--- bad: kontext_regulatory gdpr=1 gdpr=0;
--- says
duplicate parameter "gdpr" in "kontext_regulatory"


=== kontext_device: a name it does not know
--- bad: kontext_device colour=red;
--- says eval
[qr/"colour=red" in "kontext_device"/, qr/name=value/]


=== kontext_device: a type it does not know
--- bad: kontext_device type=phone;
--- says
invalid value "phone" of parameter "type", it must be one of "handset", "tablet", "desktop", "tv", "other"


=== kontext_device: a width is a number
--- bad: kontext_device width=wide;
--- says eval
qr/invalid value "wide" of parameter "width", it must be/


=== kontext_device: a height is a number
--- bad: kontext_device height=1.5;
--- says eval
qr/invalid value "1\.5" of parameter "height", it must be/


=== kontext_device: dpr is a number
--- bad: kontext_device dpr=double;
--- says eval
qr/invalid value "double" of parameter "dpr", it must be/


=== kontext_install_id: a UUID
--- bad: kontext_install_id install-1;
--- says eval
qr/"install-1" in "kontext_install_id", it must be .*UUID/


=== kontext_sdk: a name it does not know
--- bad: kontext_sdk vendor=me;
--- says eval
[qr/"vendor=me" in "kontext_sdk"/, qr/name=value/]


=== kontext_sdk: the ad server accepts known names only
--- bad: kontext_sdk name=nginx;
--- says eval
qr/invalid value "nginx" of parameter "name", it must be one of .*"sdk-js"/


=== kontext_sdk: nothing
--- bad: kontext_sdk;
--- says
invalid number of arguments in "kontext_sdk" directive


=== kontext_label: two words need quotes
--- bad: kontext_label Sponsored by;
--- says
invalid number of arguments in "kontext_label" directive


=== kontext_user_id: a variable that is not there
--- bad: kontext_user_id $no_such_variable;
--- says
unknown "no_such_variable" variable
