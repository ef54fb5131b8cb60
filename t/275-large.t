#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Frames and ads beyond their bounds: what is too large to be kept passes
# unread, but for the last event of Responses, which has the whole answer in
# it and takes the ad at its beginning.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $site = ChatSite->new(
    server => <<'CONF',
        kontext_publisher_token  acme-dev;
        kontext_user_id          u-1;
        kontext_conversation_id  $http_x_conversation;
        kontext_grace            25s;

        location /text/ {
            kontext         on;
            kontext_inject  text;
            proxy_pass      http://@llm@/;
        }

        location /themes/ {
            kontext         on;
            kontext_theme   $http_x_theme;
            proxy_pass      http://@llm@/;
        }
CONF
);

my $LARGE = 200_000;
my $n = 0;


# A chat whose answer comes in pieces of this size, when its ad is there: what
# is too large to be kept cannot wait for it.

sub in_pieces {
    my ($size, $answer, %args) = @_;
    my $turn = $site->ask($args{chat} // chat('Which shoes, ' . ++$n . '?'),
        uri     => $args{uri} // '/v1/chat/completions',
        asks    => [ 'init', 'preload' ],
        headers => { 'X-Conversation' => 'c-' . ++$n,
                     %{$args{headers} // {}} });
    my $c = $turn->client;
    my $request = $turn->request;

    $request->start(200);

    # each piece is with the client, or nginx has it, before the next one goes

    foreach my $piece (unpack("(a$size)*", $answer)) {
        $request->chunk($piece);
        $request->wait_sent;
        $c->peek;
    }

    $request->finish;

    return ($c->read_response->body, $turn->event);
}


# with the members in the order of the API's

sub responses {
    my ($text) = @_;
    my $item = '{"id":"msg_1","type":"message","role":"assistant","content":'
               . qq([{"type":"output_text","text":"$text"}]});
    my @events = (
        '{"type":"response.created","response":{"id":"resp_1"}}',
        (map { '{"type":"response.output_text.delta","output_index":0,'
               . qq("content_index":0,"delta":"$_"}) }
             unpack('(a5000)*', $text)),
        '{"type":"response.completed","response":{"id":"resp_1","object":'
        . '"response","status":"completed","error":null,'
        . qq("incomplete_details":null,"output":[$item]}}),
    );

    return join('', map { my ($type) = /"type":"([^"]+)"/;
                          "event: $type\ndata: $_\n\n" } @events);
}


# the last event of Responses

foreach my $size ($LARGE * 4, 30_000, 1_777) {
    my $answer = responses('shoes ' x ($LARGE / 6));
    my ($body, $event) = in_pieces($size, $answer, uri => '/v1/responses',
        chat => { model => 'm', stream => JSON::PP::true(),
                  input => "Hi $size" });
    my ($without, $member) = without_kontext($body);

    is("$event->{injected} $event->{reason}", 'member ',
       "pieces of $size bytes: an ad");
    ok($without eq $answer, "pieces of $size bytes: and no other byte");
    is(json($member)->{ads}[0]{code}, 'inlineAd', "pieces of $size: whose");
    ok(eval { my ($last) = $body =~ /^data: (.*)\n\n\z/m;
              json($last)->{response}{kontext}{ads}[0]{bidId} },
       "pieces of $size bytes: in the object");
}

# as a text it would have to go to the end, which nobody waits for

{
    my $answer = responses('shoes ' x ($LARGE / 6));
    my ($body, $event) = in_pieces(30_000, $answer,
        uri => '/text/v1/responses',
        chat => { model => 'm', stream => JSON::PP::true(), input => 'Hi' });

    ok($body eq $answer, 'a text in an event that large: none');
    is($event->{injected}, '', 'a text in an event that large: not put in');
    isnt($event->{reason}, '', 'a text in an event that large: a reason');
}

# frames of others

foreach my $size ($LARGE * 4, 30_000) {
    my $large = chat_chunk('x' x $LARGE);
    my $answer = "data: $large\n\n" . ChatSite::answer_of('Light ones.');
    my ($body, $event) = in_pieces($size, $answer);

    is($event->{injected}, 'member',
       "after a large frame in pieces of $size bytes: an ad");
    ok((without_kontext($body))[0] eq $answer,
       "after a large frame in pieces of $size bytes: no other byte");

    my $finish = chat_finish() =~ s/\{"index"/{"x":"@{['x' x $LARGE]}","index"/r;

    $answer = 'data: ' . chat_chunk('Hi') . "\n\ndata: $finish\n\n"
              . "data: [DONE]\n\n";
    ($body, $event) = in_pieces($size, $answer);

    ok($body eq $answer,
       "a finish frame that large, in pieces of $size bytes: untouched");
    is($event->{reason}, 'no_finish_marker',
       "a finish frame that large, in pieces of $size bytes: the reason");
}

# an ad whose address does not fit

foreach my $theme ('x' x 1000, 'x' x 4000) {
    my $answer = ChatSite::answer_of('Light ones.');
    my ($body, $event) = in_pieces(10_000, $answer,
        uri     => '/themes/v1/chat/completions',
        headers => { 'X-Theme' => $theme });

    if (length $theme < 2000) {
        is($event->{injected}, 'member', 'a theme of 1000 bytes');
        next;
    }

    ok($body eq $answer, 'a theme of 4000 bytes: the answer');
    is($event->{reason}, 'large_ad', 'a theme of 4000 bytes: the reason');
}

$site->stop_ok;

done_testing;
