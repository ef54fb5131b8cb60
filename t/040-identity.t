#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Who is who: the user, the conversation, and the messages' ids.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $site = ChatSite->new(
    server => <<'CONF',
        location /named-by-nobody/ {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_grace 25s;
            proxy_pass http://@llm@/;
        }
CONF
);

my $CHAT = '/v1/chat/completions';


# the event of a turn and what the ad server was told, which must agree

sub who {
    my ($chat, %args) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $asks = delete $args{asks} // ['init', 'preload'];
    my $turn = $site->turn($chat, %args, asks => $asks);
    my $event = $turn->event;

    if (my $preload = $turn->asked('preload')) {
        my $body = $preload->json;

        is($body->{userId}, $event->{session_user}, 'userId is the user');
        is($body->{conversationId}, $event->{session_conversation},
           'conversationId is the conversation');
    }

    if (my $init = $turn->asked('init')) {
        is($init->json->{userId}, $event->{session_user}, 'in /init, too');
    }

    return $event;
}


# A source is [ description, key, value ] where the key is a header or, with a
# dot before it, a path in the body.  All sources from one on are in the
# request: it has to win over the later ones, and the next test is without it.

sub put {
    my ($request, $key, $value) = @_;

    if ($key =~ /^\.(?:(\w+)\.)?(\w+)/) {
        ($1 ? $request->{body}{$1} //= {} : $request->{body})->{$2} = $value;

    } else {
        $request->{headers}{$key} = $value;
    }
}


sub lookup {
    my ($what, $variable, $fixed, @sources) = @_;

    foreach my $i (0 .. $#sources) {
        foreach my $empty ($i == 0 ? 0 : (0, 1)) {
            my %request = (headers => { 'X-User' => undef,
                                        'X-Conversation' => undef },
                           body => {});

            put(\%request, @$_) foreach @$fixed;
            put(\%request, $sources[$_][1], "$what-$_-$empty") foreach $i .. $#sources;

            # the one before is there, and empty

            put(\%request, $sources[$i - 1][1], '') if $empty;

            my $turn = $site->turn(
                chat($request{body}, "Which $what from $i, $empty?"),
                headers => $request{headers},
                asks => ['init', 'preload'],
            );

            is($turn->event->{$variable}, "$what-$i-$empty",
               "$what: $sources[$i][0]"
               . ($empty ? ", after an empty $sources[$i - 1][0]" : ''));
            is($turn->asked('preload')->json->{$what . 'Id'}, "$what-$i-$empty",
               "$what: so it is sent");
        }
    }
}


lookup('user', 'session_user', [ [ 'X-Conversation', 'c-fixed' ] ],
    [ 'kontext_user_id', 'X-User' ],
    [ 'X-OpenWebUI-User-Id', 'X-OpenWebUI-User-Id' ],
    [ 'safety_identifier', '.safety_identifier' ],
    [ 'user', '.user' ],
    [ 'metadata.user_id', '.metadata.user_id' ],
);

lookup('conversation', 'session_conversation', [ [ 'X-User', 'u-fixed' ] ],
    [ 'kontext_conversation_id', 'X-Conversation' ],
    [ 'X-OpenWebUI-Chat-Id', 'X-OpenWebUI-Chat-Id' ],
    [ 'session_id', '.session_id' ],
    [ 'X-Claude-Code-Session-Id', 'X-Claude-Code-Session-Id' ],
    [ 'Session-Id', 'Session-Id' ],
    [ 'X-Opencode-Session', 'X-Opencode-Session' ],
    [ 'X-Session-Id', 'X-Session-Id' ],
    [ 'X-Session-Affinity', 'X-Session-Affinity' ],
    [ 'metadata.chat_id', '.metadata.chat_id' ],
    [ 'metadata.conversation_id', '.metadata.conversation_id' ],
    [ 'metadata.thread_id', '.metadata.thread_id' ],
    [ 'metadata.session_id', '.metadata.session_id' ],
);


# the case of a header does not matter, what is no text is no name

{
    my $event = who(chat({ user => 42, safety_identifier => undef,
                           metadata => { user_id => 'of-metadata' } }, 'One'),
                    headers => { 'X-User' => undef,
                                 'x-openwebui-CHAT-ID' => 'lower',
                                 'X-Conversation' => undef });

    is($event->{session_user}, 'of-metadata', 'a number or null is no user');
    is($event->{session_conversation}, 'lower', 'header names in any case');

    $event = who(chat({ metadata => 'text', user => 'of-body' }, 'Two'),
                 headers => { 'X-User' => undef, 'X-Conversation' => 'odd' });
    is($event->{session_user}, 'of-body', 'metadata of another type');

    $event = who(chat({ user => "\x{e9}\x{1f6b2} \"\\/" }, 'Three'),
                 headers => { 'X-User' => undef, 'X-Conversation' => 'uni' });
    ok($event->{session_user}, 'any characters will do');

    my $body = ($site->ads->requests('/preload'))[-1]->json;
    is($body->{userId}, "\x{e9}\x{1f6b2} \"\\/", 'and are sent as they are');
}


# ids of more than 256 bytes: one of 256 is taken, a longer one is never cut
# into somebody else's

foreach my $source ([ 'a header', sub { ({}, 'X-User' => $_[0]) } ],
                    [ 'the body', sub { ({ user => $_[0] },
                                         'X-User' => undef) } ])
{
    my ($name, $of) = @$source;
    my $longest = 'x' x 256;
    my @ids;

    foreach my $id ($longest, $longest . 'a', 'y' x 4000) {
        my ($body, @headers) = $of->($id);
        my $event = who(chat($body, 'How long?'),
                        headers => { @headers, 'X-Conversation'
                                               => "long $name " . length $id,
                                     'Authorization' => 'Bearer k' });

        push @ids, $event->{session_user};
    }

    is($ids[0], $longest, "256 bytes of $name");
    isnt($ids[1], $longest, "257 bytes of $name are not cut");
    cmp_ok(length $ids[$_], '<=', 256, "and not sent as they are")
        foreach 1, 2;
}

{
    my $longest = 'c' x 256;
    my @ids = map { who(chat('How long?'),
                        headers => { 'X-Conversation' => $_ })
                    ->{session_conversation} } $longest, $longest . 'a';

    is($ids[0], $longest, '256 bytes of a conversation');
    isnt($ids[1], $longest, '257 bytes of a conversation are not cut');
    cmp_ok(length $ids[1], '<=', 256, 'and not sent as they are');
}


# nobody is named: the credential and the address stand for the user

sub weak_user {
    my (%headers) = @_;
    my $conversation = join(' ', 'weak', map { $_ // '' } %headers);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return who(chat('Who am I?'), headers => {
        'X-User' => undef, 'X-Conversation' => $conversation, %headers,
    })->{session_user};
}

my $anonymous = weak_user();

like($anonymous, qr/\Akxu_[a-z0-9]{16,}\z/, 'a user without a name');

foreach my $header ('Authorization', 'Api-Key', 'X-Api-Key') {
    my $one = weak_user($header => 'Bearer sk-one');

    like($one, qr/\Akxu_/, "$header: a user without a name");
    isnt($one, $anonymous, "$header: not the one without a credential");
    isnt(weak_user($header => 'Bearer sk-two'), $one,
         "$header: another key is another user");

    my $again = $site->turn(chat('Elsewhere'), asks => ['init', 'preload'],
        headers => { 'X-User' => undef, 'X-Conversation' => "again $header",
                     $header => 'Bearer sk-one' });
    is($again->event->{session_user}, $one,
       "$header: the same key in another conversation is the same user");
}

{
    my $other = ChatSite->new;
    my $turn = $other->turn(chat('Who am I?'),
                            headers => { 'X-User' => undef });

    like($turn->event->{session_user}, qr/\Akxu_/, 'on another machine');
    isnt($turn->event->{session_user}, $anonymous,
         'the hash has a key of its own, so nobody can look it up');
    $other->stop_ok;
}


# nothing names the conversation: the user and the first message do

{
    my %nobody = (headers => { 'X-User' => 'u-1', 'X-Conversation' => undef });
    my $long = 'word ' x 2000;
    my @turn = ($long . 'one', 'Answer', 'More');

    my $id = who(chat($turn[0]), %nobody)->{session_conversation};

    like($id, qr/\Akxc_[a-z0-9]{16,}\z/, 'a conversation without a name');

    is(who(chat(@turn), %nobody, asks => ['preload'])->{session_conversation},
       $id, 'is the same in the next turn');
    is(who(chat(@turn, 'Answer', 'And more'), %nobody,
           asks => ['preload'])->{session_conversation}, $id,
       'and in the one after that');
    is(who(chat({ model => 'another', messages => [
               { role => 'system', content => 'Be brief.' },
               { role => 'user', content => [ { type => 'text',
                                                text => $turn[0] } ] },
               { role => 'assistant', content => 'Answer' },
               { role => 'user', content => 'Something else' },
           ] }), %nobody, asks => ['preload'])->{session_conversation}, $id,
       'the model, a system prompt and the form do not matter');

    isnt(who(chat($long . 'two'), %nobody)->{session_conversation}, $id,
         'all of the first message counts');
    isnt(who(chat($turn[0]), headers => { 'X-User' => 'u-2',
                                          'X-Conversation' => undef })
         ->{session_conversation}, $id, 'and so does the user');
}


# without a word of configuration

{
    my $event = who(chat({ user => 'plain' }, 'Anything?'),
                    uri => "/named-by-nobody$CHAT");

    is($event->{session_user}, 'plain', 'user without a directive');
    like($event->{session_conversation}, qr/\Akxc_/,
         'conversation without a directive');
}


# The id of an answer is the id which that message has in the history of the
# next turn.

my %texts = (
    'a sentence'         => 'Light ones, for a start.',
    'several lines'      => "Three:\n\n1. One\r\n2. Two\n\n\tthree  \n",
    'spaces around'      => "  \n  Light ones.  \n\n",
    'markdown'           => "**Light** _ones_:\n```sh\necho \"\$HOME\" \\\n```\n",
    'other scripts'      => "\x{5b}\x{8dd1}\x{978b}\x{5d} caf\x{e9} \x{5d0}\x{5d1}",
    'emoji'              => "Go \x{1f6b2}\x{1f468}\x{200d}\x{1f469}\x{1f3fd}!",
    'line separators'    => "a\x{2028}b\x{2029}c\x{85}d",
    'quotes and escapes' => "\"\\/\b\f\a\x{7f}",
    'what looks like SSE' => "data: [DONE]\n\nevent: done\ndata: {}\n\n",
    'HTML'               => '<script>"&amp;"</script>',
    'one letter'         => 'x',
    'long'               => join(' ', 1 .. 5000),
);

foreach my $name (sort keys %texts) {
    my $text = $texts{$name};
    my %who = (headers => { 'X-Conversation' => "ids of $name" });
    my $first = $site->turn(chat('Which shoes?'), %who, text => $text,
                            asks => ['init', 'preload']);
    my $id = $first->event->{message_id};
    my $question = $first->asked('preload')->json->{messages}[0];

    like($id, qr/\Akx1_[a-z2-7]{26}\z/, "$name: the answer has an id");
    is($first->ad->{messageId}, $id, "$name: the ad is the answer's");

    my $second = $site->turn(chat('Which shoes?', $text, 'Why?'), %who,
                             asks => ['preload']);
    my @messages = @{$second->asked('preload')->json->{messages}};

    is($messages[1]{id}, $id, "$name: it has it in the next turn");
    is($messages[0]{id}, $question->{id}, "$name: so has the question");
    is(scalar(keys %{{ map { $_->{id} => 1 } @messages }}), 3,
       "$name: no two are the same");
}


# the same words again and again: each message has an id of its own, and keeps
# it

{
    my %who = (headers => { 'X-Conversation' => 'echo' });
    my @history = ('ok');
    my (@ids, %seen);

    foreach my $n (1 .. 5) {
        my $turn = $site->turn(chat(@history), %who, text => 'ok',
                               asks => $n == 1 ? ['init', 'preload']
                                               : ['preload']);
        my @now = map { $_->{id} }
                      @{$turn->asked('preload')->json->{messages}};

        is_deeply([ @now[0 .. $#ids] ], \@ids, "turn $n: ids stay")
            if @ids;

        @ids = (@now, $turn->event->{message_id});
        push @history, 'ok', 'ok';
    }

    $seen{$_}++ foreach @ids;
    is(scalar(keys %seen), scalar @ids, 'no id twice');
}


# what front ends do to an answer before they send it back

my %changes = (
    'without its thoughts' =>
        [ "<think>Hm.\nWhy not?</think>\n\nLight ones.", 'Light ones.' ],
    'with its thoughts folded away' =>
        [ 'Light ones.', '<details type="reasoning" done="true">'
                         . "<summary>Thought</summary>\n&gt; Hm.</details>\n"
                         . 'Light ones.' ],
    'with other line ends' => [ "Light\nones.", "Light\r\nones." ],
    'trimmed'              => [ "\n Light ones. \n", 'Light ones.' ],
    'with spaces merged'   => [ "Light  \t ones.", 'Light ones.' ],
);

foreach my $name (sort keys %changes) {
    my ($sent, $back) = @{$changes{$name}};
    my %who = (headers => { 'X-Conversation' => "sent back $name" });
    my $first = $site->turn(chat('Which shoes?'), %who, text => $sent,
                            asks => ['init', 'preload']);
    my $second = $site->turn(chat('Which shoes?', $back, 'Why?'), %who,
                             asks => ['preload']);

    is($second->asked('preload')->json->{messages}[1]{id},
       $first->event->{message_id}, "an answer sent back $name");
}


# the same words elsewhere have other ids

{
    my %ids;

    foreach my $conversation ('left', 'right') {
        my $turn = $site->turn(chat('Which shoes?'), text => 'Light ones.',
                               headers => { 'X-Conversation' => $conversation },
                               asks => ['init', 'preload']);

        $ids{$turn->event->{message_id}}++;
        $ids{$turn->asked('preload')->json->{messages}[0]{id}}++;
    }

    is(scalar(keys %ids), 4, 'ids are of one conversation');
}


# with tool calls in between, and parts for text

{
    my %who = (headers => { 'X-Conversation' => 'agent' });
    my $first = $site->turn(chat('Which shoes?'), %who, text => 'Light ones.',
                            asks => ['init', 'preload']);
    my $second = $site->turn(chat({ messages => [
        { role => 'system', content => 'Be brief.' },
        { role => 'user', content => [ { type => 'text',
                                         text => 'Which shoes?' } ] },
        { role => 'assistant', content => undef, tool_calls => [
            { id => 'call_1', type => 'function',
              function => { name => 'shop', arguments => '{}' } } ] },
        { role => 'tool', tool_call_id => 'call_1', content => 'in stock' },
        { role => 'assistant', content => [ { type => 'text',
                                              text => 'Light ones.' } ] },
        { role => 'user', content => 'Why?' },
    ] }), %who, asks => ['preload']);
    my @messages = @{$second->asked('preload')->json->{messages}};

    is(scalar @messages, 3, 'what nobody sees is no message');
    is($messages[1]{id}, $first->event->{message_id},
       'and does not change the ids of the others');
}


$site->stop_ok;

done_testing;
