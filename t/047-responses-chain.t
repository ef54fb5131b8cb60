#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# A request of the Responses API that names the answer before it, instead of
# sending the history again, belongs to that answer's conversation.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $site = ChatSite->new(location => 'kontext_conversation_id "";');
my $n = 0;


# a turn: its variables

sub turn {
    my ($text, %args) = @_;
    my $id = $args{id} // 'resp_' . ++$n;

    my $turn = $site->ask({
            model => 'gpt-5.1', stream => JSON::PP::true(), input => $text,
            %{$args{body} // {}},
        },
        uri     => '/v1/responses',
        headers => { 'X-Conversation' => undef, 'X-User' => $args{user}
                                                            // 'u-1' });

    my @events = (
        { type => 'response.created', response => { id => $id } },
        { type => 'response.output_text.delta', output_index => 0,
          content_index => 0, delta => 'Light ones.' },
        { type => 'response.completed', response => {
            id => $id, status => $args{status} // 'completed', output => [ {
                id => 'msg_1', type => 'message', role => 'assistant',
                content => [ { type => 'output_text',
                               text => 'Light ones.' } ],
            } ],
        } },
    );

    $turn->respond(200, join('', map { "event: $_->{type}\ndata: "
                                       . json($_) . "\n\n" } @events),
                   'Content-Type' => 'text/event-stream');

    return ($turn->event, $id);
}


{
    my ($first, $id) = turn('Which shoes?');

    like($first->{session_conversation}, qr/\Akxc_/,
         'nothing names the conversation: a digest does');
    is($first->{injected}, 'member', 'an ad');

    my ($second, $id2) = turn('In red?',
                              body => { previous_response_id => $id });

    is($second->{session_conversation}, $first->{session_conversation},
       'the answer before: its conversation');
    is($second->{session}, $first->{session}, 'and its session');

    my ($third) = turn('In blue?', body => { previous_response_id => $id2 });

    is($third->{session_conversation}, $first->{session_conversation},
       'the answer before that: the same one');

    # a branch off the first answer is the same conversation

    my ($branch) = turn('And boots?', body => { previous_response_id => $id });

    is($branch->{session_conversation}, $first->{session_conversation},
       'an older answer: the same one, too');

    my ($other) = turn('In red?', body => { previous_response_id => $id },
                       user => 'u-2');

    isnt($other->{session_conversation}, $first->{session_conversation},
         'of another user: nothing that somebody else may name');

    my ($unknown) = turn('In red?',
                         body => { previous_response_id => 'resp_unknown' });

    like($unknown->{session_conversation}, qr/\Akxc_/,
         'an answer that nobody knows: a conversation of its own');
    isnt($unknown->{session_conversation}, $first->{session_conversation},
         'and not one of the others');

    # the same words, after another unknown answer, are another conversation

    my ($again) = turn('In red?',
                       body => { previous_response_id => 'resp_unheard_of' });

    isnt($again->{session_conversation}, $unknown->{session_conversation},
         'what was said before counts, although it is not there');
}

# what names the conversation itself goes before the answer

{
    my ($first, $id) = turn('Hello?',
                            body => { conversation => 'conv_1' });

    is($first->{session_conversation}, 'conv_1', 'conversation, a string');

    my ($second) = turn('Again?', body => { conversation => { id => 'conv_2' },
                                            previous_response_id => $id });

    is($second->{session_conversation}, 'conv_2',
       'conversation, an object: before previous_response_id');
}

# in one piece

{
    my $body = sub {
        return { model => 'gpt-5.1', input => $_[0],
                 defined $_[1] ? (previous_response_id => $_[1]) : () };
    };
    my @events;

    foreach my $id (undef, 'resp_whole_1') {
        my $turn = $site->ask($body->('In one piece?' . ($id // ''), $id),
            uri => '/v1/responses', headers => { 'X-Conversation' => undef });

        $turn->respond(200, json({
            id => $id ? 'resp_whole_2' : 'resp_whole_1',
            object => 'response', status => 'completed', output => [ {
                id => 'msg_1', type => 'message', role => 'assistant',
                content => [ { type => 'output_text', text => 'Yes.' } ] } ],
        }), 'Content-Type' => 'application/json');

        push @events, $turn->event;
    }

    is($events[1]{session_conversation}, $events[0]{session_conversation},
       'answers in one piece are known as well');
}

$site->stop_ok;

done_testing;
