#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# conf/kontext_ad_server.conf and kontext_upstream.conf as they ship, with a
# TLS server in the ad server's place.  Only the file of trusted certificates
# and the address of the upstream are the test's.  The module itself is needed
# for kontext.conf.example alone.

use FindBin ();
use lib "$FindBin::Bin/lib";

use File::Temp ();
use Kontext::Test;

my $CONF = "$FindBin::Bin/../conf";


sub slurp {
    my ($file) = @_;

    open(my $fh, '<', $file) or die "$file: $!";
    local $/;

    return <$fh>;
}


sub openssl {
    system("openssl @_ >/dev/null 2>&1") == 0 or die "openssl @_";
}


# two certificates of two authorities: the right name, another name

my $tls = File::Temp::tempdir(CLEANUP => 1);

foreach my $name ('server.megabrain.co', 'server.example.com') {
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout $tls/$name.key",
            "-out $tls/$name.crt -subj /CN=$name",
            "-addext subjectAltName=DNS:$name");
}

openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout $tls/stranger.key",
        "-out $tls/stranger.crt -subj /CN=server.megabrain.co",
        "-addext subjectAltName=DNS:server.megabrain.co");

open(my $fh, '>', "$tls/trusted.crt") or die $!;
print $fh slurp("$tls/$_.crt") foreach 'server.megabrain.co',
                                       'server.example.com';
close($fh);

my $ads = Kontext::Mock->new(name => 'ad server');

# the TLS side: an nginx in front of the mock

my $front = Kontext::Nginx->new(
    name    => 'ad server',
    modules => [],
    vars    => { ads => $ads->addr, tls => $tls,
                 cert => 'server.megabrain.co' },
    conf    => <<'CONF',
@preamble@
events {}
http {
    @control@
    log_format tls "$connection $connection_requests $ssl_server_name";

    server {
        listen 127.0.0.1:@port@ ssl;
        ssl_certificate @tls@/@cert@.crt;
        ssl_certificate_key @tls@/@cert@.key;
        access_log logs/tls.log tls;

        location / {
            proxy_pass http://@ads@;
            proxy_set_header Host $http_host;
            proxy_set_header Connection-Of $http_connection;
            proxy_pass_header X-Accel-Redirect;
            proxy_pass_header X-Accel-Limit-Rate;
            proxy_ignore_headers X-Accel-Redirect X-Accel-Limit-Rate;
        }
    }
}
CONF
);

my $conf = slurp("$CONF/kontext_ad_server.conf");
my $upstream = slurp("$CONF/kontext_upstream.conf");

$conf =~ s{/etc/ssl/certs/ca-certificates\.crt;}{$tls/trusted.crt;}
    or die "no trusted certificate in the file";
$upstream =~ s{^    server server\.megabrain\.co:443;}
              {'    server ' . $front->addr . ';'}me
    or die "no server in the file";

# the rewrite is an internal way in, as the module's subrequests are

my $nginx = Kontext::Nginx->new(
    modules => [],
    files   => { 'conf/kontext_ad_server.conf' => $conf,
                 'conf/kontext_upstream.conf'  => $upstream },
    http    => "    include kontext_upstream.conf;\n"
               . "    log_format line '\$uri';\n",
    server  => <<'CONF',
        access_log logs/access.log line;
        include kontext_ad_server.conf;

        location /module/ {
            rewrite ^/module(/.*)$ /_kontext$1 last;
        }

        location /elsewhere {
            return 200 "not for the ad server to choose";
        }
CONF
);

my $c = $nginx->client;


# from outside there is nothing

$c->post_json('/_kontext/preload', {});
is($c->read_response->status, 404, 'not reachable from outside');
is($ads->accepted, 0, 'and nothing is asked');


# what the ad server sees

$c->post_json('/module/preload', { a => 1 }, 'Kontextso-Is-Disabled' => 0,
              'Kontextso-Publisher-Token' => 'acme-dev',
              'Cookie' => 'secret=1', 'Authorization' => 'Bearer secret',
              'Accept-Encoding' => 'gzip');

my $req = $ads->wait_request;

is($req->uri, '/preload', 'the prefix is taken off');
is($req->method, 'POST', 'method');
is_deeply($req->json, { a => 1 }, 'body');
is($req->header('Host'), 'server.megabrain.co', 'Host');
is($req->header('X-Forwarded-For'), '127.0.0.1', 'the address of the user');
is($req->header('Kontextso-Publisher-Token'), 'acme-dev', 'headers pass');
is($req->header('Kontextso-Is-Disabled'), '0', 'all of them');
is($req->header('Content-Type'), 'application/json', 'and the type');
is($req->header($_), undef, "no $_")
    foreach 'Cookie', 'Authorization', 'Accept-Encoding', 'Connection-Of';

$req->respond(200, { ok => JSON::PP::true() }, 'Set-Cookie' => 'x=1',
              'X-Accel-Redirect' => '/elsewhere', 'X-Accel-Limit-Rate' => 1);

is_deeply($c->read_response->json, { ok => JSON::PP::true() },
          'X-Accel-* does nothing');


# statuses and redirects come back as they are

$c->post_json('/module/init', {});
$ads->wait_request->respond(302, '', 'Location' => 'https://elsewhere/');
is($c->read_response->status, 302, 'a redirect is not followed');

$c->post_json('/module/init', {});
$ads->wait_request->respond(503, { error => 'busy' });
is_deeply($c->read_response->json, { error => 'busy' }, 'nor an error hidden');


# connections are kept, with the server's name in the handshake

my $log = $front->wait_file('logs/tls.log', qr/(?:.*\n){3}/);
my @lines = split /\n/, $log;
my ($id) = split / /, $lines[0];

is_deeply(\@lines, [ map { "$id $_ server.megabrain.co" } 1 .. 3 ],
          'one connection, one handshake, the right name');


# a request that was sent is not sent again

$c->post_json('/module/preload', {});
$req = $ads->wait_request;
$front->stop('TERM');
is($c->read_response->status, 502, 'the ad server goes away');
is(scalar(() = $ads->requests('/preload')), 2, 'no second try');
$front->stop_ok;


# who is not the ad server gets nothing

foreach my $case ([ 'server.example.com', 'another name',
                    qr/does not match "server\.megabrain\.co"/ ],
                  [ 'stranger', 'the right name, an authority unknown',
                    qr/certificate verify error/ ])
{
    my ($cert, $what, $why) = @$case;
    my $other = Kontext::Nginx->new(
        name    => $cert,
        modules => [],
        vars    => { tls => $tls, cert => $cert },
        conf    => <<'CONF',
@preamble@
events {}
http {
    @control@

    server {
        listen 127.0.0.1:@port@ ssl;
        ssl_certificate @tls@/@cert@.crt;
        ssl_certificate_key @tls@/@cert@.key;
        access_log logs/access.log;

        location / { return 200 "got it"; }
    }
}
CONF
    );

    my $to = $upstream;

    $to =~ s/127\.0\.0\.1:\d+/$other->addr/e;
    $nginx->write_file('conf/kontext_upstream.conf', $to);
    $nginx->reload;

    my $d = $nginx->client;

    $d->post_json('/module/preload', { secret => 1 });
    is($d->read_response->status, 502, $what);
    like($nginx->wait_log($why), $why, 'for this reason');
    is($other->read_file('logs/access.log'), '', 'and no request was sent');

    $other->stop_ok;
}


# one include is enough: without the group the same file names the host

{
    my ($ok, $output) = Kontext::Nginx->test_config(
        modules => [],
        files   => { 'conf/ads.conf' => $conf =~ s/server\.megabrain\.co\/;
                                                  /localhost\/;/xr },
        server  => 'include ads.conf;',
    );

    ok($ok, 'kontext_ad_server.conf alone') or diag($output);
}


# the example, with the module

{
    my $example = slurp("$CONF/kontext.conf.example");

    $example =~ s/listen 8080;/listen 127.0.0.1:\@port\@;/
        or die "no listen in the example";

    my %test = (
        files => { 'conf/kontext_ad_server.conf' => $conf,
                   'conf/kontext_upstream.conf'  => $upstream },
        http  => $example,
    );

    my ($ok, $output) = Kontext::Nginx->test_config(%test);

    ok($ok, 'kontext.conf.example') or diag($output);

    $test{http} =~ s/^ *kontext_publisher_token .*\n//m
        or die "no token in the example";
    ($ok, $output) = Kontext::Nginx->test_config(%test);
    ok(!$ok, 'which needs its token');
    like($output, qr/kontext_publisher_token/, 'and says so');
}

is($nginx->read_file('logs/access.log'), '', 'ad calls are not logged');

$nginx->stop_ok;

done_testing;
