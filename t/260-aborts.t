#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Clients that leave, a thousand of them, at random moments.  Nothing is left
# of them: no connection, no alert, no harm to others.
#
# KONTEXT_ABORTS is their number, KONTEXT_SEED repeats a run.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;
use List::Util qw(shuffle);

my $ABORTS = $ENV{KONTEXT_ABORTS} || 1000;
my $BATCH = 20;
my $LEFT = 10;
my $SEED = $ENV{KONTEXT_SEED} // int(rand(1_000_000_000));

srand($SEED);
diag("KONTEXT_SEED=$SEED KONTEXT_ABORTS=$ABORTS");

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;
my $silent = Kontext::Mock->new(name => 'silent ad server');
my $broken = Kontext::Mock->new(name => 'broken ad server');

$broken->on_actions(qr{/.*}, [ 'reset' ]);

my $nginx = Kontext::Nginx->new(
    log_level => 'info',
    vars      => { llm => $llm->addr, ads => $ads->addr,
                   silent => $silent->addr, broken => $broken->addr },
    server    => <<'CONF',
        kontext                  on;
        kontext_publisher_token  acme-dev;
        kontext_user_id          $http_x_user_id;
        kontext_conversation_id  $http_x_conversation_id;
        kontext_grace            20s;
        client_body_buffer_size  4k;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location /_silent/ {
            internal;
            proxy_pass http://@silent@/;
        }

        location /_broken/ {
            internal;
            proxy_pass http://@broken@/;
        }

        location /fast/ {
            proxy_pass http://@llm@;
        }

        location /silent/ {
            kontext_ad_server /_silent;
            proxy_pass        http://@llm@;
        }

        location /unbuffered/ {
            kontext_ad_server /_silent;
            proxy_pass        http://@llm@;
            proxy_buffering   off;
        }

        location /short/ {
            kontext_ad_server /_silent;
            kontext_grace     1ms;
            proxy_pass        http://@llm@;
        }

        location /broken/ {
            kontext_ad_server /_broken;
            kontext_grace     1ms;
            proxy_pass        http://@llm@;
        }

        # the backend is not told that the client has left

        location /ignorant/ {
            kontext_ad_server         /_silent;
            kontext_grace             1ms;
            proxy_ignore_client_abort on;
            proxy_pass                http://@llm@;
        }

        location = /connections {
            kontext     off;
            stub_status;
        }
CONF
);

my @PLACES = ('fast', 'silent', 'unbuffered', 'short', 'broken', 'ignorant');
my @MOMENTS = ('request', 'asked', 'answered', 'text', 'marker', 'end',
               'anytime');
my @ANSWER = (chat_role(), chat_chunk('Light'), chat_finish(), '[DONE]');
my @WAYS = ('close', 'reset', 'shutdown');

my (%places, %moments, %ways);


sub sse {
    return join('', map { "data: $_\n\n" } @_);
}


sub one_of { return $_[rand @_] }


# One client up to the moment of its abort.  What the moment needs is waited
# for, where it is one that can be seen from outside.

sub begin {
    my ($i) = @_;
    my $place = one_of(@PLACES);
    my $moment = one_of(@MOMENTS);
    my $path = "/$place/$i/chat/completions";

    # some share a conversation, some send a body of several buffers

    my $conversation = rand() < 0.3 ? 'shared' : $i;
    my $text = 'Which shoes?' . (rand() < 0.2 ? 'x' x 20_000 : '');
    my $body = json(chat($text));
    my $request = "POST $path HTTP/1.1\r\nHost: a\r\n"
                  . "Content-Type: application/json\r\n"
                  . "X-User-Id: u\r\nX-Conversation-Id: $conversation\r\n"
                  . 'Content-Length: ' . length($body) . "\r\n\r\n$body";
    my $client = $nginx->client;

    $places{$place}++;
    $moments{$moment}++;

    if ($moment eq 'request') {
        $client->send(substr($request, 0, 1 + rand(length($request) - 1)));
        return { client => $client };
    }

    $client->send($request);

    return { client => $client, moment => $moment, place => $place,
             path => $path };
}


sub go_on {
    my ($one) = @_;
    my $moment = $one->{moment} // return;

    $one->{request} = $llm->wait_request(path => $one->{path});

    return if $moment eq 'asked';

    $one->{request}->start;

    if ($moment eq 'answered') {
        return;
    }

    if ($moment eq 'anytime') {
        $one->{request}->event(@ANSWER[0 .. rand @ANSWER]);
        $one->{request}->finish if rand() < 0.5;
        return;
    }

    $one->{request}->event(@ANSWER[0, 1]);
    $one->{client}->read_until(qr/Light/);

    return if $moment eq 'text';

    $one->{request}->event($ANSWER[2]);

    if ($moment eq 'end') {
        $one->{request}->event($ANSWER[3])->finish;
        return;
    }

    $one->{request}->wait_sent;
}


my $done = 0;

while ($done < $ABORTS) {
    my @batch = map { begin(++$done) }
                    1 .. ($ABORTS - $done < $BATCH ? $ABORTS - $done : $BATCH);

    go_on($_) foreach @batch;

    # the silent ad server says something now and then: too late for some

    if (rand() < 0.5) {
        foreach my $call ($silent->requests) {
            next if $call->{taken}++ || rand() < 0.5;
            $call->respond(200, Kontext::Mock->bid);
        }
    }

    $nginx->barrier if rand() < 0.5;

    foreach my $one (shuffle(@batch)) {
        my $way = one_of(@WAYS);

        $ways{$way}++;
        $one->{client}->$way;
    }

    # what the backends say to nobody

    foreach my $one (grep { $_->{request} } @batch) {
        my $request = $one->{request};

        if ($one->{place} eq 'ignorant' || rand() < 0.3) {
            $request->close;

        } elsif (rand() < 0.3) {
            $request->event('late')->finish;
        }
    }

    # a healthy chat amid them

    if (rand() < 0.2) {
        my $client = $nginx->client;

        $client->post_json("/fast/h$done/chat/completions", chat('Hi'),
                           'X-User-Id' => 'healthy',
                           'X-Conversation-Id' => $done);
        $llm->wait_request(path => "/fast/h$done/chat/completions")
            ->start->event(@ANSWER)->finish;

        my ($body, $ad) = without_kontext($client->read_response->body);

        ok($body eq sse(@ANSWER) && defined $ad,
           "a healthy chat after $done aborts");
        $client->close;
    }

    # those which only half-closed

    $_->{client}->close foreach @batch;
}

note(join(', ', map { "$_: $places{$_}" } sort keys %places));
note(join(', ', map { "$_: $moments{$_}" } sort keys %moments));
note(join(', ', map { "$_: $ways{$_}" } sort keys %ways));

is($done, $ABORTS, "$ABORTS clients have left");


# all is closed, at each end

foreach my $case ([ $llm, 'backend' ], [ $ads, 'ad server' ],
                  [ $silent, 'silent ad server' ],
                  [ $broken, 'broken ad server' ])
{
    my ($mock, $name) = @$case;

    # sooner than by any timeout of an ad call

    wait_until("the connections of the $name",
               sub { $mock->open_connections == 0 }, $LEFT);
    pass("no connection to the $name is left");
}

my $client = $nginx->client;
my $active;

wait_until('the connections of the clients', sub {
    $client->get('/connections');
    ($active) = $client->read_response->body =~ /Active connections: (\d+)/;
    return $active == 1;
});
is($active, 1, 'no connection of a client is left');


# and the next chats have their ads: in a new conversation and in the one
# that the clients have shared

foreach my $conversation ('new', 'shared') {
    $client->post_json("/fast/$conversation/chat/completions",
                       chat('Which shoes?', 'Light', 'Which ones?'),
                       'X-User-Id' => 'u',
                       'X-Conversation-Id' => $conversation);
    $llm->wait_request(path => "/fast/$conversation/chat/completions")
        ->start->event(@ANSWER)->finish;

    my ($body, $ad) = without_kontext($client->read_response->body);

    is($body, sse(@ANSWER), "a chat in a $conversation conversation");
    ok(defined $ad, "a chat in a $conversation conversation: its ad");
}

$nginx->stop_ok;

done_testing;
