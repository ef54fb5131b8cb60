#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Directives that are said twice, ways to write the ad server's prefix, and
# where its location is found among others.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;


# the result of nginx -t: (true or false, output)

sub config {
    my ($location, %args) = @_;
    my $ads = $args{ads} // 'location /_kontext/ { internal; return 204; }';

    return Kontext::Nginx->test_config(server => <<"CONF");
        kontext_publisher_token acme-dev;
        $ads
        location /chat {
            kontext on;
            $location
            return 204;
        }
CONF
}


sub good {
    my ($name, @args) = @_;
    my ($ok, $output) = config(@args);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    ok($ok, $name) || diag($output);
}


sub bad {
    my ($name, $says, @args) = @_;
    my ($ok, $output) = config(@args);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    ok(!$ok, "$name: refused");
    like($output, $says, "$name: and why");
}


foreach my $value ('kontext_ad_server /_kontext', 'kontext_grace 1s',
                   'kontext_frame_origin https://a.example',
                   'kontext_format auto', 'kontext_inject text',
                   'kontext_placements inlineAd', 'kontext_label x',
                   'kontext_character id=a name=b', 'kontext_regulatory gdpr=1',
                   'kontext_device type=tv', 'kontext_sdk name=sdk-js',
                   'kontext_text $kontext_frame_url',
                   'kontext_install_id $http_x', 'kontext_max_body 1m',
                   'kontext_api_origin https://a.example',
                   'kontext_api_origin *', 'kontext_theme x',
                   'kontext_user_id x', 'kontext_publisher_token x')
{
    my ($name) = split / /, $value;

    good("$value, once", "$value;");
    bad("$value, twice", qr/"\Q$name\E" directive is duplicate/,
        "$value;\n            $value;");
}

good('kontext_api_origin off', 'kontext_api_origin off;');
good('kontext_ad_server with a slash at the end',
     'kontext_ad_server /_kontext/;');
bad('no location of another prefix', qr/no internal location "\/other\/"/,
    'kontext_ad_server /other;');


# the location is the longest prefix, wherever it is in nginx's tree

my $others = join("\n        ",
                  map { "location /$_/ { return 200; }" }
                      '_a', '_k', '_ko', '_konte', '_kontext-is-longer', '_z',
                      'a', 'b', 'm', 'z', '_kontext/preload-is-longer',
                      '_kontext/other');

good('among many locations', '', ads =>
     "location /_kontext/ { internal; return 204; }\n        $others");
good('for each call', '', ads =>
     "location = /_kontext/init { internal; return 204; }\n"
     . "        location = /_kontext/preload { internal; return 204; }\n"
     . "        $others");
good('within another location', '', ads =>
     "location /_ { return 403;\n"
     . "            location /_kontext/ { internal; return 204; } }\n");
good('a location of a regular expression may be it', '', ads =>
     'location ~ ^/_kontext/ { internal; return 204; }');
bad('a shorter prefix that is not internal', qr/no internal location/, '',
    ads => "location /_k { return 204; }\n        $others");
bad('a longer prefix that is not internal', qr/no internal location/, '',
    ads => "location /_kontext/ { internal; return 204; }\n"
           . "        location /_kontext/pre { return 204; }");
bad('nothing but others', qr/no internal location/, '', ads => $others);


# each parameter of kontext_breaker, and what is said to wrong ones

good("kontext_breaker $_", "kontext_breaker $_;")
    foreach 'off', 'failures=1%', 'failures=100%', 'min=1', 'min=10000',
            'window=10ms', 'probe=10m', 'stall=1s',
            'failures=50% window=10s min=5 probe=2s stall=1s';

bad("kontext_breaker $_->[0]", $_->[1], "kontext_breaker $_->[0];")
    foreach [ 'failures=0%', qr/invalid share "0%"/ ],
            [ 'failures=101%', qr/invalid share "101%"/ ],
            [ 'failures=50', qr/write "failures=1%" to "failures=100%"/ ],
            [ 'failures=', qr/invalid share ""/ ],
            [ 'min=0', qr/invalid number "0"/ ],
            [ 'min=10001', qr/write "min=1" to "min=10000"/ ],
            [ 'window=9ms', qr/write "window=10ms" to "window=10m"/ ],
            [ 'probe=601s', qr/invalid time "601s"/ ],
            [ 'stall=soon', qr/invalid time "soon"/ ],
            [ 'retries=3', qr/invalid parameter "retries=3"/ ],
            [ 'on', qr/invalid parameter "on"/ ],
            [ 'min=1 off', qr/invalid parameter "off"/ ];

bad('kontext_breaker twice', qr/"kontext_breaker" directive is duplicate/,
    "kontext_breaker off;\n            kontext_breaker off;");


# "if" and "limit_except" are of their location

{
    my $nginx = Kontext::Nginx->new(server => <<'CONF');
        location = /status {
            kontext_status;

            if ($http_x_debug) {
                add_header X-Debug yes;
            }
        }
CONF
    my $plain = $nginx->client->get('/status')->read_response;
    my $inside = $nginx->client->get('/status', 'X-Debug' => 'yes')
                 ->read_response;

    is($plain->status, 200, 'kontext_status');
    is($inside->status, 200, 'kontext_status, with an "if" that holds');
    is($inside->header('X-Debug'), 'yes', 'and what the "if" says holds');
    ok(exists $inside->json->{sessions}, 'and it is the status page');

    $nginx->stop_ok;
}

done_testing;
