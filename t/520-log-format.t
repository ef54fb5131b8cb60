#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# conf/kontext_log.conf: a line of JSON for each request, whatever clients and
# the ad server put into what is logged.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use ChatSite ();
use Recipe ();

my @MEMBERS = qw(time request_id server http_status request_time status reason
                 injected format user conversation session message bid code
                 revenue preload_time hold_time event);

my $MORE = <<'CONF';
    location /kontext/ {
        kontext_api;
        kontext_publisher_token  acme-dev;
        access_log               logs/kontext.log kontext;
    }

    location /elsewhere {
        access_log               logs/kontext.log kontext;
        return                   204;
    }

    # one that wants to know before there is anything to know

    location /first {
        kontext                  on;
        kontext_publisher_token  acme-dev;
        access_log               logs/kontext.log kontext;
        proxy_set_header         X-First "$kontext_log_preload_time";
        proxy_pass               http://llm/v1/chat/completions;
    }

CONF

my $site = Recipe->new('shadow', edit => sub {
    s/^\s*kontext_inject .*\n//m or die 'no kontext_inject';
    s/^(?=    location \/v1\/)/$MORE/m or die 'no location';
});

my $seen = 0;


# the lines since the last call, as data; each is JSON by itself

sub lines {
    my ($n, $name) = @_;
    my $text = $site->nginx->wait_file('logs/kontext.log', do {
        my $all = $seen + $n;
        qr/\A(?:[^\n]*\n){$all}\z/;
    });
    my @lines = (split /\n/, $text)[$seen .. $seen + $n - 1];
    my @data;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    foreach my $line (@lines) {
        my $data = eval { JSON::PP->new->utf8->decode($line) };

        ok($data, "$name: JSON") or diag("$@: $line");
        is(join(' ', sort keys %{$data // {}}), join(' ', sort @MEMBERS),
           "$name: all members");
        push @data, $data // {};
    }

    $seen += $n;

    return @data;
}


# a chat with an ad

{
    $site->turn(headers => { 'X-User-Id' => 'u-1',
                             'X-Conversation-Id' => 'c-1' }, log => 0);

    my ($line) = lines(1, 'an ad');

    is("$line->{status} $line->{injected} $line->{format} $line->{user} "
       . "$line->{conversation} $line->{code} $line->{http_status}",
       'filled member openai_chat u-1 c-1 inlineAd 200', 'an ad: as it was');
    like(ChatSite::type_of($line->{$_}), qr/^(?:integer|number)\z/,
         "an ad: $_ is a number")
        foreach 'preload_time', 'hold_time', 'request_time', 'revenue';
    cmp_ok($line->{revenue}, '==', 0.0042, 'an ad: its revenue');
    like($line->{$_}, qr/^[0-9a-f-]{36}\z/, "an ad: $_")
        foreach 'bid', 'session';
    like($line->{request_id}, qr/^[0-9a-f]{32}\z/, 'an ad: the request\'s id');
    like($line->{message}, qr/^kx1_/, 'an ad: the message');
}


# where there is nothing to say

{
    $site->nginx->client->get('/elsewhere')->read_response;
    $site->nginx->client->send("GARBAGE\r\n\r\n")->wait_closed;

    my $c = $site->nginx->client;

    $c->get('/v1/models');
    $site->llm->wait_request->respond(200, '{}');
    $c->read_response;

    my ($off, $get) = lines(2, 'nothing to say');

    is($off->{status}, 'off', 'elsewhere: off');
    is(ChatSite::type_of($off->{$_}), 'null', "elsewhere: no $_")
        foreach 'preload_time', 'hold_time', 'revenue';
    is("$get->{status} $get->{reason}", 'bypass method', 'a GET: why');
}


# a number that was not known when somebody first asked

{
    my $turn = $site->turn(uri => '/first', log => 0);
    my ($line) = lines(1, 'a variable that was evaluated before');

    is($turn->{request}->header('X-First'), 'null',
       'a variable that was evaluated before: there was nothing then');
    like(ChatSite::type_of($line->{preload_time}), qr/^(?:integer|number)\z/,
         'a variable that was evaluated before: the log has what came');
}


# What clients send.  A header may have anything but ends of lines, a body
# anything.

my %HOSTILE = (
    'a quote'          => 'u"1',
    'a backslash'      => 'u\\',
    'JSON'             => '","status":"filled","x":"',
    'a tab'            => "u\t1",
    'an escape'        => "u\e[2J1",
    'a line'           => "u\n{\"status\":\"filled\"}\n",
    'a carriage return' => "u\r1",
    'a line separator' => "u\x{2028}1",
    'an accent'        => "\x{e9}\x{4e2d}\x{1f45f}",
    'a delete'         => "u\x7f1",
    'the most'         => '"' x 256,
);

foreach my $name (sort keys %HOSTILE) {
    my $id = $HOSTILE{$name};

    $site->turn(body => chat({ user => $id,
                               metadata => { conversation_id => $id } },
                             'Which shoes?'), log => 0);

    my ($line) = lines(1, "$name in the body");

    # variables have no control characters

    my $shown = $id =~ s/[\x00-\x1f\x7f]/?/gr;

    is($line->{user}, $shown, "$name in the body: the user");
    is($line->{conversation}, $shown, "$name in the body: the conversation");

    next if $id =~ /[\r\n]/;

    my $header = $id;

    utf8::encode($header);
    $site->turn(headers => { 'X-User-Id' => $header,
                             'X-Conversation-Id' => $header }, log => 0);
    ($line) = lines(1, "$name in a header");
    is($line->{user}, $shown, "$name in a header: the user");
}


# what is no UTF-8

foreach my $id ("u\xff1", "u\xe2\x28\xa1", "\xc0\x80", "\xed\xa0\x80",
                "\xf4\x90\x80\x80", "\xe2\x82") {
    $site->turn(headers => { 'X-User-Id' => $id, 'X-Conversation-Id' => $id },
                log => 0);

    my ($line) = lines(1, 'no UTF-8 in a header');

    is("$line->{status} $line->{user} $line->{conversation}",
       'filled (no UTF-8) (no UTF-8)', 'no UTF-8 in a header: it says so');

    $site->turn(body => json(chat({ user => 'ID' }, 'Which shoes?'))
                        =~ s/ID/$id/r, log => 0);
    lines(1, 'no UTF-8 in a body');

    # the answer's own id

    $site->turn(
        uri    => '/v1/chat',
        body   => { id => 'c-' . unpack('H*', $id), messages => [ {
                    id => 'm', role => 'user',
                    parts => [ { type => 'text', text => 'Shoes?' } ] } ] },
        answer => [ 200, join('', map { "data: $_\n\n" }
                        qq({"type":"start","messageId":"$id\\""}),
                        '{"type":"start-step"}',
                        '{"type":"text-start","id":"t"}',
                        '{"type":"text-delta","id":"t","delta":"Light"}',
                        '{"type":"text-end","id":"t"}',
                        '{"type":"finish-step"}', '{"type":"finish"}',
                        '[DONE]'),
                    'Content-Type' => 'text/event-stream' ],
        log    => 0,
    );
    lines(1, 'no UTF-8 in the id of an answer');
}


# what the ad server says

foreach my $code ('a"b', "a\nb", '\\', "\x{2028}", "\x{e9}") {
    $site->ads->on('/preload', 200, {
        sessionId => Kontext::Mock->bid->{sessionId},
        skip => JSON::PP::true(), skipCode => $code });
    $site->turn(headers => { 'X-User-Id' => 'u-2',
                             'X-Conversation-Id' => 'c-2' }, log => 0);

    my ($line) = lines(1, 'a skipCode');

    is($line->{status}, 'no_fill', 'a skipCode: no fill');
}


# the session API: what is reported, and no id of a session

{
    my $res = $site->nginx->client->post_json('/kontext/sessions', {
        userId => "u\n\"3", conversationId => 'c-3' })->read_response;

    is($res->status, 201, 'a session');

    my $id = $res->json->{sessionId};

    $site->nginx->client->post_json("/kontext/sessions/$id/events", {
        name => "ad.\"viewed\n", payload => {} })->read_response;
    $site->nginx->client->get("/kontext/sessions/$id\"%0a")->read_response;

    my @lines = lines(3, 'the session API');

    is($lines[0]{user}, 'u?"3', 'the session API: the user');
    unlike($site->nginx->read_file('logs/kontext.log'), qr/\Q$id\E/,
           'the session API: the log has no key to a session');
}


$site->stop_ok;
done_testing;
