#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The questions that a front end asks on its own, for titles and tags, go to
# the same address in the same form: they get no ad and are no turn.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $CHAT = '/v1/chat/completions';
my $NO = JSON::PP::false();
my @BIDS = map { "7c9e6679-7425-40de-944b-e07fc1f90a0$_" } 0 .. 9;

my $site = ChatSite->new;
my $ads = $site->ads;

# as the front ends write them

my %QUESTIONS = (
    'Open WebUI, a title' => <<'END',
### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Guidelines:
- The title should clearly represent the main theme.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
USER: Which shoes?
ASSISTANT: Light ones.
</chat_history>
END
    'Open WebUI, tags' => "### Task:\nGenerate 1-3 broad tags categorizing the "
                          . "main themes of the chat history.\n",
    'Open WebUI, follow-ups' => "### Task:\nSuggest 3-5 relevant follow-up "
                                . "questions or prompts.\n",
    'Open WebUI, other line ends' => "### Task:\r\nAnalyze the chat history.",
    'Open WebUI, white space around' => "\n  ### Task:\n\nGenerate tags.\n",
    'LibreChat, a title' => "Please generate a concise, 5-word-or-less title "
                            . 'for the conversation, using its same language.',
    'LibreChat, another title' => 'Provide a concise, 5-word-or-less title '
                                  . 'for the conversation, using title case.',
    'LibreChat, the language as well' =>
        "Analyze this conversation and provide:\n1. The detected language of "
        . "the conversation\n2. A concise title in the detected language",
    'Claude Code, a title' => 'Please write a 5-10 word title for the '
                              . "following conversation:\n\nUser: Hi",
    'another title' => 'Generate a concise, 3-5 word title for this chat.',
    'one more title' => 'Create a concise, 3-5 word title for this chat.',
    'a phrase as a title' => 'Create a concise, 3-5 word phrase as a header '
                             . 'for the following query: Hi',
);

my $TITLE = $QUESTIONS{'Open WebUI, a title'};


sub in { return (headers => { 'X-Conversation' => $_[0] }) }


# what the ad server has been asked since the last call

my $seen = 0;

sub asked_now {
    $site->nginx->barrier;

    my @calls = $ads->requests;
    my @new = @calls[$seen .. $#calls];

    $seen = @calls;

    return join(' ', sort map { $_->path =~ s{^/}{}r } @new);
}


# the question goes past the module: streamed and in one piece

sub auxiliary_ok {
    my ($name, $chat, %args) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    asked_now();

    foreach my $how ('answer', 'whole') {
        my %chat = (%$chat, $how eq 'whole' ? (stream => $NO) : ());
        my $plain = $site->ask(\%chat, %args, uri => "/plain$CHAT");
        my $turn = $site->ask(\%chat, %args);

        $_->$how('{ "title": "Shoes" }') foreach $plain, $turn;

        is($turn->why, 'bypass auxiliary', "$name: no turn ($how)");
        is($turn->request->body, $plain->request->body,
           "$name: the backend gets the question ($how)");
        is($turn->raw, $plain->raw, "$name: the client gets the answer ($how)");
        is(asked_now(), '', "$name: the ad server hears nothing ($how)");
    }
}


foreach my $name (sort keys %QUESTIONS) {
    auxiliary_ok($name, chat($QUESTIONS{$name}), in("c-$name"));
}


# also in parts, behind a system prompt, and behind the conversation itself

auxiliary_ok('a text part', chat({ messages => [
    { role => 'user', content => [ { type => 'text', text => $TITLE } ] },
] }), in('c-parts'));

auxiliary_ok('several text parts', chat({ messages => [
    { role => 'user', content => [ { type => 'text', text => '### Task:' },
                                   { type => 'text', text => 'A title!' } ] },
] }), in('c-several'));

auxiliary_ok('a system prompt in front', chat({ messages => [
    { role => 'system', content => 'You name conversations.' },
    { role => 'user', content => $TITLE },
] }), in('c-system'));

auxiliary_ok('the conversation in front',
             chat('Which shoes?', 'Light ones.', $TITLE), in('c-history'));

auxiliary_ok('a conversation without a name', chat($TITLE),
             headers => { 'X-Conversation' => undef });


# what only looks alike is a turn, and so is one after such a question

sub turn_ok {
    my ($name, $chat, %args) = @_;
    my $turn = $site->turn($chat, asks => ['init', 'preload'], %args);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($turn->why, 'filled ', "$name: a turn with an ad");
    ok($turn->ad, "$name: within the answer");

    return $turn;
}

my %ALIKE = (
    'another heading'      => "### Tasks:\nWalk the dog.",
    'a heading of less'    => "## Task:\nWalk the dog.",
    'not at the start'     => "Hello!\n### Task:\nWalk the dog.",
    'cut short'            => '### Task',
    'in small letters'     => "### task:\nWalk the dog.",
    'somebody wants one'   => 'Generate a concise title for my novel.',
    'about such a question' => 'What does "### Task: " mean?',
);

turn_ok($_, chat($ALIKE{$_}), in("c-$_")) foreach sort keys %ALIKE;

turn_ok('a system prompt alike',
        chat({ messages => [ { role => 'system', content => $TITLE },
                             { role => 'user', content => 'Hi' } ] }),
        in('c-alike-system'));
turn_ok('one in the history', chat($TITLE, 'Shoes', 'Which ones?'),
        in('c-in-history'));


# The title is asked for while the first answer's ad is on its way: nothing of
# it is superseded.

foreach my $case ([ 'the question alone', chat($TITLE) ],
                  [ 'the question behind the turn',
                    chat('Which shoes?', 'Light ones.', $TITLE) ])
{
    my ($name, $question) = @$case;
    my @in = in("pending, $name");

    $ads->hold('/preload');

    my $first = $site->ask(chat('Which shoes?'), @in,
                           asks => ['init', 'preload']);

    $first->request->start->event(chat_role(), chat_chunk('Light'));
    $first->client->read_until(qr/Light/);
    $first->request->event(chat_finish(), '[DONE]')->finish->wait_sent;

    my $title = $site->turn($question, @in);

    is($title->why, 'bypass auxiliary', "pending, $name: no turn");
    is($first->asked('preload')->closed, undef,
       "pending, $name: the ad call goes on");
    ok(!$first->client->peek->complete, "pending, $name: the end is held");

    $first->asked('preload')->respond(200, Kontext::Mock->bid);
    $first->{response} = $first->client->read_response;
    is($first->why, 'filled ', "pending, $name: the answer has its ad");
    ok($first->ad, "pending, $name: within it");

    $ads->on('/preload', 200, Kontext::Mock->bid);
}


# the same where the ad is there already and the answer is not

{
    $ads->on('/preload', 200, Kontext::Mock->bid(bidId => $BIDS[1]));

    my $first = $site->ask(chat('Which shoes?'), in('there'),
                           asks => ['init', 'preload']);

    $site->turn(chat($TITLE), in('there'));
    $first->answer('Light ones.');

    is($first->why, 'filled ', 'an ad that is there: not superseded');
    is($first->ad->{ads}[0]{bidId}, $BIDS[1], 'an ad that is there: put in');
}


# regenerated after a title was made: still the same turn, with the same ad

{
    my $first = $site->turn(chat('Which shoes?'), in('again'),
                            asks => ['init', 'preload']);

    $site->turn(chat($TITLE), in('again'));
    $site->turn(chat('Which shoes?', 'Light ones.', $TITLE), in('again'));

    $ads->on('/preload', 200, Kontext::Mock->bid(bidId => $BIDS[2]));
    asked_now();

    my $again = $site->turn(chat('Which shoes?'), in('again'),
                            text => 'Heavy ones.');

    is($again->ad->{ads}[0]{bidId}, $BIDS[1], 'regenerated: the ad of before');
    is(asked_now(), '', 'regenerated: nothing is asked');

    # and the next turn is the second one

    my $second = $site->turn(chat('Which shoes?', 'Heavy ones.', 'Why?'),
                             in('again'), asks => ['preload']);
    my $preload = $second->asked('preload')->json;

    is($second->ad->{ads}[0]{bidId}, $BIDS[2], 'the next turn: its own ad');
    is_deeply([ map { $_->{content} } @{$preload->{messages}} ],
              [ 'Which shoes?', 'Heavy ones.', 'Why?' ],
              'the next turn: its messages, and no question in between');
    is($preload->{messages}[1]{id}, $again->event->{message_id},
       'the next turn: the answer has its id');
    is($preload->{sessionId}, Kontext::Mock->bid->{sessionId},
       'the next turn: the same session');
    is(asked_now(), 'preload', 'the next turn: no /init');
}


# a question ahead of all turns makes no session

{
    $site->turn(chat($TITLE), in('title first'));
    is(asked_now(), '', 'a title first: nothing is asked');
    turn_ok('the first turn after a title', chat('Hi'), in('title first'));
    is(asked_now(), 'init preload', 'the first turn after a title: /init, too');
}

$site->stop_ok;

done_testing;
