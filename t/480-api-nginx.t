#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The session API among all the rest of nginx: blocks of conditions, paths that
# nginx has rewritten, methods of connection processing, HTTP/2.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use ApiSite ();
use EventStream ();
use H2 ();

my $BID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';


sub message {
    my ($id, $role, $text) = @_;

    return { id => $id, role => $role, content => $text };
}


sub viewed {
    my ($n, $size) = @_;

    return { name => 'ad.viewed',
             payload => { bidId => $BID, format => 'display',
                          content => "$n-" . 'x' x $size } };
}


# a session whose message m2 has the ad

sub with_ad {
    my ($site, %args) = @_;
    my $id = $site->session({}, %args);

    $site->call(POST => "sessions/$id/messages",
                [message(m1 => user => 'Which shoes?'),
                 message(m2 => assistant => 'Light ones.')]);
    $site->wait_for($id, sub { $_[0]{preload} eq 'filled' });

    return $id;
}


# "if" and "limit_except" make a configuration of their own in a location

{
    my $site = ApiSite->new(api => <<'CONF');
        kontext_publisher_token acme-dev;

        if ($http_x_condition) {
            set $condition 1;
        }

        limit_except GET POST {
            allow 127.0.0.1;
            deny all;
        }
CONF

    my $id = with_ad($site);
    my $stream = EventStream->open($site->nginx->client,
                                   "/kontext/sessions/$id/events",
                                   'X-Condition' => 1);

    is($stream->wait_event(1)->{event}, 'ad.filled',
       'within an "if": the event stream');
    is($site->call(POST => "sessions/$id/events", viewed(1, 1),
                   headers => { 'X-Condition' => 1 })->status, 202,
       'within an "if": a report');
    is($stream->wait_event(2)->{event}, 'ad.viewed',
       'within an "if": the stream goes on');
    $site->nginx->barrier;
    is(scalar($stream->comments), 0, 'within an "if": comments as configured');

    is($site->call(DELETE => "sessions/$id")->status, 204,
       'within a "limit_except": a call that it allows');
    is($stream->wait_event(3)->{event}, 'session.closed',
       'within a "limit_except": it was closed');

    $site->stop_ok;
}


# what the client wrote comes into no header

{
    my $site = ApiSite->new(server => <<'CONF');
        merge_slashes off;

        location "/with space/" {
            kontext_api;
            kontext_publisher_token acme-dev;
        }
CONF

    my $body = { userId => 'u-1', conversationId => 'c-1' };
    my $res = $site->call(POST => 'sessions//%0d%0aX-Inj:%20yes%0d%0aa/', $body);

    is($res->status, 404, 'more than a slash after "sessions": not found');
    is($res->header('X-Inj'), undef, 'and no header of the client\'s making');

    $res = $site->call(POST => 'sessions', $body, api => '/with%20space');

    is($res->status, 201, 'a location with a space');
    like($res->header('Location'), qr{^(?:http://[^/]+)?/with%20space/sessions/kxs_},
         'its Location is escaped');
    is($site->call(GET => 'sessions/' . $res->json->{sessionId}, undef,
                   api => '/with%20space')->status, 200, 'and is there');

    $site->stop_ok;
}


# a chat is none where the API is

{
    my $site = ApiSite->new(api => <<'CONF');
        kontext_publisher_token acme-dev;
        kontext on;
CONF

    my $id = $site->session({ conversationId => 'no chat' });

    ok($id, 'kontext is on in the location of the API: a session');
    is(scalar($site->ads->requests('/preload')), 0, 'and no preload of it');

    $site->stop_ok;
}


# the ad calls have no socket towards a client that could be watched

foreach my $method (qw(epoll poll select)) {
    my ($known) = Kontext::Nginx->test_config(events => "use $method;",
                                              server => '');

    # Debian builds epoll only

    next if !$known && $method ne 'epoll';

    my $site = ApiSite->new(
        events => "use $method;",
        server => <<'CONF',
        location /unbuffered/ {
            internal;
            proxy_pass http://@ads@/;
            proxy_buffering off;
        }

        location /slow/ {
            internal;
            proxy_pass http://@ads@/;
            limit_req zone=slow burst=100;
        }

        location /of-unbuffered/ {
            kontext_api;
            kontext_publisher_token acme-dev;
            kontext_ad_server /unbuffered;
        }

        location /of-slow/ {
            kontext_api;
            kontext_publisher_token acme-dev;
            kontext_ad_server /slow;
        }
CONF
        http => '    limit_req_zone $server_name zone=slow:32k rate=20r/s;');

    foreach my $api ('/kontext', '/of-unbuffered', '/of-slow') {
        my $name = "$method, $api";
        my $id = $site->session({ conversationId => "c $name" }, api => $api);

        $site->call(POST => "sessions/$id/messages",
                    [message(m1 => user => 'Hi'),
                     message(m2 => assistant => 'Ho')], api => $api);

        is($site->wait_for($id, sub { $_[0]{preload} ne 'pending' },
                           api => $api)->{preload}, 'filled',
           "$name: the preload");
    }

    # a call is given up while it is delayed

    my @ids = map { $site->session({ conversationId => "$method $_" },
                                   api => '/of-slow', init => 0) } 1 .. 5;

    foreach my $id (@ids) {
        $site->call(POST => "sessions/$id/messages",
                    message(m1 => user => 'Hi'), api => '/of-slow');
        is($site->call(DELETE => "sessions/$id", undef,
                       api => '/of-slow')->status, 204,
           "$method: closed while its calls are delayed");
    }

    my $id = with_ad($site, api => '/kontext');

    ok($id, "$method: all others go on");
    $site->stop_ok(name => "$method: a clean log and a clean exit");
}


# HTTP/2 may hold a part of the stream when the request is over

SKIP: {
    my $probe = ApiSite->new;
    my $new = $probe->nginx->version >= 1025001;

    $probe->stop_ok;

    my ($ok) = Kontext::Nginx->test_config(
        server => $new ? 'http2 on;' : '',
        http => $new ? '' : 'server { listen 127.0.0.1:@control_port@ http2; }');

    skip 'no HTTP/2 in nginx', 1 if !$ok && $new;

    my $site = ApiSite->new(
        listen => ($new ? '' : ' http2') . ' sndbuf=8k',
        server => $new ? 'http2 on;' : '');
    my $h2 = H2->new(port => $site->nginx->port, rcvbuf => 4096);
    my $other = H2->new(port => $site->nginx->port);
    my $call = sub {
        my ($path, $data) = @_;

        return json($other->read_response($other->post($path, json($data))));
    };

    my $id = $call->('/kontext/sessions',
                     { userId => 'u', conversationId => 'c' })->{sessionId};

    like($id, qr/^kxs_/, 'HTTP/2: a session');

    $call->("/kontext/sessions/$id/messages",
            [message(m1 => user => 'Hi'), message(m2 => assistant => 'Ho')]);

    my $stream = $h2->get("/kontext/sessions/$id/events");

    $h2->read_until($stream, qr/event: ad\.filled\n/);

    # from here on it does not read: nginx has more than it can send

    foreach my $n (1 .. 80) {
        $call->("/kontext/sessions/$id/events", viewed($n, 3000));
    }

    $h2->cancel($stream);
    $site->nginx->barrier;

    # what was on its way before is events of the session and nothing else

    my $last = $h2->get("/kontext/sessions/$id/events");

    $h2->read_until($last, qr/"80-x+"/);

    my $text = $h2->peek($stream) . $h2->peek($last);

    unlike($text, qr/[^\x20-\x7e\n]/, 'HTTP/2: a stream that was cancelled '
                                      . 'while it was held has no foreign bytes');
    like($h2->peek($last), qr/event: events\.lost\n/,
         'HTTP/2: another stream starts with what is kept');

    $h2->close;
    $other->close;
    $site->stop_ok(name => 'HTTP/2: a clean log and a clean exit');
}

done_testing;
