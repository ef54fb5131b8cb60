#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# What the documentation shows works: each configuration passes "nginx -t", and
# each curl gets its answer from the README's configuration.
#
# A part of a configuration is put where it belongs.  Of the statements at its
# top, those that only http { } may have go there, those of server { } into a
# server with kontext_ad_server.conf and a publisher token, all others into a
# location of that server; an upstream or a log_format that it names and does
# not have is added.  Addresses to listen on, paths of logs and certificates
# are the test's.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use File::Temp ();
use Kontext::Test;

use ChatSite ();
use Markdown qw(blocks pages slurp statements);
use Recipe ();

my $HTTP = qr/^(?:server|map|geo|upstream|split_clients|log_format
                 |limit_req_zone|limit_conn_zone|proxy_cache_path
                 |kontext_zone|js_import|otel_exporter)\b
              |^include\s+kontext_(?:upstream|log)\.conf/x;
my $SERVER = qr/^(?:listen|location|server_name)\b
                |^include\s+kontext_ad_server\.conf/x;
my $MAIN = qr/^(?:load_module|worker_\w+|user|events|http|pid|error_log|env
                 |daemon)\b/x;

my %FILES = Recipe::files();

my $V = do {
    my $nginx = $ENV{TEST_NGINX_BINARY} || Kontext::Nginx::_find();

    `'$nginx' -V 2>&1`;
};


# is it a configuration of nginx?

sub is_config {
    my ($block) = @_;

    return 1 if $block->{type} eq 'nginx';
    return 0 if $block->{type} !~ /^(?:indented|text|conf|)\z/;
    return 0 if $block->{text} =~ /^\s*(?:Syntax:|\$ |curl |[{\[])/;
    return $block->{text} =~ /^\s*(?:kontext\w*|location|server|http|map
                                   |upstream|split_clients|log_format
                                   |load_module|proxy_\w+|listen)
                              (?:\s[^:]*)?[;{]\s*(?:\#.*)?$/mx;
}


# what cannot be tried with this nginx

sub missing {
    my ($text) = @_;

    return 'HTTP/3' if $text =~ /\b(?:quic|http3)\b/
                       && $V !~ /http_v3_module/;
    return 'OpenTelemetry' if $text =~ /^\s*otel_/m;
    return;
}


# upstreams and formats that are somewhere else

sub added {
    my ($text) = @_;
    my $added = '';
    my %upstream = map { $_ => 1 } $text =~ /\bupstream\s+([\w.-]+)/g;
    my %format = map { $_ => 1 } $text =~ /\blog_format\s+(\w+)/g;

    $format{kontext} = 1 if $text =~ /kontext_log\.conf/;

    foreach my $name ($text =~ m{\bproxy_pass\s+https?://([a-z_]+)(?=[/;])}g) {
        $added .= "upstream $name { server 127.0.0.1:1; }\n"
            if !$upstream{$name}++;
    }

    foreach my $name ($text =~ /\baccess_log\s+\S+\s+(\w+)/g) {
        $added .= "log_format $name '\$status';\n" if !$format{$name}++;
    }

    return $added;
}


# the whole of a configuration for Kontext::Nginx

sub whole {
    my ($text) = @_;
    my @statements = statements($text);
    my (@http, @server, @location);

    my %here = (
        qr{\blisten\s+(?:[\d.]+:)?\d+}  => 'listen 127.0.0.1:@port@',
        qr{/var/log/nginx/}             => 'logs/',
        qr{/var/cache/nginx/}           => 'temp/',
        qr{/etc/nginx/ssl/}             => '@tls@/',
    );

    foreach my $statement (@statements) {
        while (my ($re, $to) = each %here) {
            $statement =~ s/$re/$to/g;
        }
    }

    # the test has a module and an events { } already

    if (grep { /$MAIN/ } @statements) {
        my @rest = grep { !/^(?:http|events|load_module)\b/ } @statements;
        my ($http) = grep { /^http\b/ } @statements;

        return (main => join("\n", @rest)) if !defined $http;

        $http =~ s/^http\s*\{(.*)\}\z/$1/s;

        return (main => join("\n", @rest), http => added($http) . $http);
    }

    foreach my $statement (@statements) {
        push @{$statement =~ $HTTP     ? \@http
               : $statement =~ $SERVER ? \@server
                                       : \@location}, $statement;
    }

    if (@server || @location) {
        unshift @server, 'include kontext_ad_server.conf;'
            if !grep { /kontext_ad_server|\/_kontext/ } @server;
        push @http, 'server {', 'listen 127.0.0.1:@port@;',
             'kontext_publisher_token acme-dev;', @server,
             'location /the-example/ {', @location, '}', '}';
        unshift @http, 'include kontext_upstream.conf;'
            if !grep { /kontext_upstream/ } @http;
    }

    my $http = join("\n", @http);

    # the name of the ad server is not to be looked up

    $http = "include kontext_upstream.conf;\n$http"
        if $http =~ /kontext_ad_server\.conf/
           && $http !~ /kontext_upstream\.conf/;

    return (http => added($http) . $http);
}


my $tls = File::Temp::tempdir(CLEANUP => 1);

system("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout $tls/chat.key "
       . "-out $tls/chat.crt -subj /CN=localhost >/dev/null 2>&1") == 0
    or die 'openssl';

my %vars = (ads => '127.0.0.1:1', tls => $tls);


sub passes {
    my ($text) = @_;
    my %files = %FILES;

    s/\@ads\@/$vars{ads}/ foreach values %files;

    my %whole = eval { whole($text) };

    return (0, $@) if $@;
    return Kontext::Nginx->test_config(files => \%files, vars => \%vars,
                                       %whole);
}


# what does not work is found out

{
    my ($ok, $output) = passes(<<'CONF');
map $cookie_plan $ads {
    default  on;
}

kontext $adds;
CONF
    ok(!$ok, 'an unknown variable is found out');
    like($output, qr/unknown "adds" variable/, 'for what it is');

    ($ok, $output) = passes("location /v1/ {\n    kontext maybe;\n}\n");
    ok(!$ok, 'a wrong value is found out');
    like($output, qr/invalid value "maybe"/, 'for what it is');

    ($ok, $output) = passes("kontext_api ping=15s;\n");
    ok($ok, 'what is right passes') or diag($output);

    ($ok, $output) = passes("kontext on\n");
    ok(!$ok, 'half a statement is found out');
}


# all configurations

my $configs = 0;

foreach my $page (pages()) {
    foreach my $block (blocks(slurp($page))) {
        next if !is_config($block);

        my $name = "$page:$block->{line}: nginx -t";

        $configs++;

        SKIP: {
            my $missing = missing($block->{text});

            skip "$name: this nginx has no $missing", 1 if $missing;

            my ($ok, $output) = passes($block->{text});

            ok($ok, $name) or diag($output);
        }
    }
}

cmp_ok($configs, '>', 10, 'there are configurations');


# The README's configuration runs, with the two locations that other pages
# have, and each curl has it as its server.  docs/api.md has a test of its own.

my ($readme) = grep { is_config($_) && $_->{text} =~ /load_module/ }
                    blocks(slurp('README.md'));

ok($readme, 'the README has a configuration') or BAIL_OUT('no configuration');

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;

$llm->on('/v1/chat/completions', 200, ChatSite::answer_of('Light ones.'),
         'Content-Type' => 'text/event-stream');

my %files = %FILES;

s/\@ads\@/$ads->addr/e foreach values %files;

my %whole = whole($readme->{text});

$whole{http} =~ s/\bupstream\s+llm\s+\{\s*server\s+\K[^;]+/$llm->addr/e
    or BAIL_OUT('no backend');
$whole{http} =~ s/(?=location \/v1\/)/<<'CONF'/e or BAIL_OUT('no location');
location = /kontext_status {
    kontext_status;
}

location /kontext/ {
    kontext_api;
    kontext_publisher_token  acme-dev;
}

CONF

my $nginx = Kontext::Nginx->new(files => \%files, vars => \%vars, %whole);


sub run {
    my ($script) = @_;
    my $dir = File::Temp->newdir;
    my $addr = $nginx->addr;
    my $found = $script =~ s/\b(?:localhost|127\.0\.0\.1):8080\b/$addr/g;

    open(my $rc, '>', "$dir/.curlrc") or die "$dir: $!";
    print $rc "fail\nmax-time = 60\nnoproxy = *\n";
    close($rc);
    open(my $sh, '>', "$dir/example") or die "$dir: $!";
    print $sh $script;
    close($sh);

    local %ENV = (PATH => $ENV{PATH}, HOME => "$dir", CURL_HOME => "$dir");

    my $output = `cd $dir && /bin/sh -eu example 2>&1 </dev/null`;

    return ($? == 0 && $found, $output, "$dir");
}


{
    my ($ok) = run("curl -s localhost:8080/kontext/nothing\n");

    ok(!$ok, 'a curl without an answer is found out');
}


# what this machine is not to do

my $ELSEWHERE = qr/^\s*(?:sudo|apt(?:-get)?|docker|kubectl|podman|systemctl)\b/m;

my $curls = 0;

foreach my $page (grep { $_ ne 'docs/api.md' } pages()) {
    foreach my $block (blocks(slurp($page))) {
        next if $block->{text} !~ /(?:^|[|(;&\$]\s*)curl\s/m;
        next if $block->{type} !~ /^(?:sh|bash|shell|console|text|indented|)\z/;

        my $name = "$page:$block->{line}: curl";

        SKIP: {
            skip "$name: is for another machine", 1
                if $block->{text} =~ $ELSEWHERE;

            $curls++;

            my ($ok, $output) = run($block->{text} =~ s/^\$ //mgr);

            ok($ok, $name) or diag($output);
        }
    }
}

cmp_ok($curls, '>', 1, 'there are calls of curl');

# one of them was a chat, with an ad

is($nginx->client->get('/kontext_status')->read_response->json
         ->{calls}{init}{attempts}, 1, 'a chat of them was one');

$nginx->stop_ok;
done_testing;
