#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Ad calls for messages that were fed run when their request is over, and the
# ad server's location sees what it would have seen of that: the address of
# the client, whatever told it, and a limit on requests.  A listener that does
# not read is let go.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use IO::Socket::INET ();
use Socket qw(SOL_SOCKET SO_RCVBUF inet_aton pack_sockaddr_in);

use Kontext::Test;
use ApiSite;


# a raw call over a connection with the PROXY protocol: the answer's JSON

sub proxied {
    my ($site, $method, $path, $data) = @_;
    my $body = json($data);
    my $c = $site->nginx->client;

    $c->send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
             . "$method /kontext/$path HTTP/1.1\r\nHost: a\r\n"
             . "Content-Type: application/json\r\n"
             . 'Content-Length: ' . length($body)
             . "\r\nConnection: close\r\n\r\n$body");

    my $raw = '';

    wait_until('the answer', sub { $c->peek if $c->is_open; $raw = $c->raw;
                                   $raw =~ /\r\n\r\n\{.*\}/s });

    my ($text) = $raw =~ /\r\n\r\n(\{.*\})/s;

    return json($text);
}


{
    my $site = ApiSite->new(
        listen => ' proxy_protocol',
        server => <<'CONF',
        location /_proxied/ {
            internal;
            proxy_set_header X-Client-Address $proxy_protocol_addr;
            proxy_set_header X-Client-Port    $proxy_protocol_port;
            proxy_pass       http://@ads@/;
        }
CONF
        api => 'kontext_ad_server /_proxied;',
    );

    my $id = proxied($site, POST => 'sessions',
                     { userId => 'u-1', conversationId => 'c-1' })
             ->{sessionId};

    proxied($site, POST => "sessions/$id/messages",
            $site->message('m1', user => 'Which shoes?'));

    my $preload = $site->preload;

    is($preload->header('X-Client-Address'), '192.0.2.7',
       'PROXY protocol: the address of the client');
    is($preload->header('X-Client-Port'), 4711,
       'PROXY protocol: and its port');
    is($preload->json->{messages}[0]{content}, 'Which shoes?',
       'PROXY protocol: the message');

    $site->stop_ok;
}


# limit_req delays calls, and none is lost

{
    my $site = ApiSite->new(
        http   => '    limit_req_zone $uri zone=ads:1m rate=20r/s;',
        server => <<'CONF',
        location /_limited/ {
            internal;
            limit_req  zone=ads burst=20;
            proxy_pass http://@ads@/;
        }

        location /chats/ {
            kontext                  on;
            kontext_publisher_token  acme-dev;
            kontext_user_id          u-1;
            kontext_conversation_id  $http_x_conversation;
            kontext_grace            25s;
            kontext_ad_server        /_limited;
            proxy_pass               http://@llm@/;
        }
CONF
        api => 'kontext_ad_server /_limited;',
    );

    my @ids = map { $site->session } 1 .. 6;

    foreach my $id (@ids) {
        is($site->add($id, $site->message('m1', user => "Hi $id"))->status,
           202, 'limit_req: taken');
    }

    my @states = map { $site->settled($_)->{preload} } @ids;

    is(join(' ', @states), join(' ', ('filled') x @ids),
       'limit_req: each fed message has its ad, if later');

    # a session that is closed while its call is delayed

    my @others = map { $site->session } 1 .. 4;

    $site->add($_, $site->message('m1', user => "Hi $_")) foreach @others;
    $site->close($_) foreach @others;

    is($site->get($others[0])->status, 404, 'limit_req: closed in a delay');

    my $turn = $site->ask(chat('In a chat?'), uri => '/chats/v1/x',
                          headers => { 'X-Conversation' => 'limited' });

    $turn->answer('Light ones.');
    like($turn->why, qr/\A(?:filled|bypass unknown_format) ?/,
         'limit_req: a chat goes on');

    $site->stop_ok;
}


# a listener that does not read

{
    my $site = ApiSite->new(
        listen    => ' sndbuf=4k',
        log_level => 'info',
        api       => 'send_timeout 500ms;',
    );
    my $id = $site->session;

    $site->add($id, $site->message('m1', user => 'Hi'));
    $site->add($id, $site->message('m2', assistant => 'Hi.'));
    $site->settled($id, 'filled');

    my $fh = IO::Socket::INET->new(Proto => 'tcp') or die "socket: $@";

    setsockopt($fh, SOL_SOCKET, SO_RCVBUF, 2048);
    $fh->connect(pack_sockaddr_in($site->nginx->port,
                                  inet_aton('127.0.0.1')))
        or die "connect: $!";
    syswrite($fh, "GET /kontext/sessions/$id/events HTTP/1.1\r\n"
                  . "Host: a\r\n\r\n");

    my $report = {
        name => 'ad.viewed', code => 'inlineAd',
        payload => { bidId => Kontext::Mock->bid->{bids}[0]{bidId},
                     messageId => 'm2', content => 'x' x 3000,
                     format => 'x' },
    };

    # it is fed until nginx has no more room for it

    my $told = 0;

    wait_until('the listener to be dropped', sub {
        $told++ if $site->report($id, $report)->status == 202;

        return $site->nginx->grep_log(qr/client timed out/);
    });

    cmp_ok($told, '>', 1, "a listener that does not read: dropped");
    is($site->state($id)->{preload}, 'filled', 'the session lives on');
    $site->stop_ok;
}

done_testing;
