#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# A thousand canaries in messages (t/support/Canaries.pm): those that are
# somebody's reach no body of any ad call and no line of the error log, and
# those that only look like it arrive as they are.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use Encode qw(decode_utf8 encode_utf8);

use ApiSite ();
use Canaries qw(canaries);
use ChatSite ();

use constant TURNS => 25;            # cases of a chat

my $YES = JSON::PP::true();
my @CASES = canaries();

is(scalar(@CASES), 1000, 'a thousand cases');
is(scalar(grep { $_->{kind} eq 'none' } @CASES), 300, '300 are harmless');


# what has arrived against what should have

sub same {
    my ($name, $got, $cases) = @_;
    my @wrong = grep { ($got->[$_] // '') ne $cases->[$_]{expected} }
                     0 .. $#$cases;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is(scalar(@$got), scalar(@$cases), "$name: all of them have arrived");
    is(scalar(@wrong), 0, "$name: as they should");
    diag(encode_utf8("$cases->[$_]{text}\nis $got->[$_]\nnot "
                     . $cases->[$_]{expected})) foreach @wrong;
}


# are there secrets anywhere?

sub clean {
    my ($name, $site, @texts) = @_;
    my $text = join("\n", @texts);
    my @found = grep { index($text, $_) >= 0 }
                     map { my $s = encode_utf8($_); ($s, escaped($_)) }
                     map { @{$_->{secrets}} } @CASES;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    cmp_ok(length $text, '>', 0, "$name: there is something to look at");
    is(join(' ', @found), '', "$name: no canary");
}

sub escaped {
    my $text = JSON::PP->new->ascii->allow_nonref->encode($_[0]);

    return substr($text, 1, -1);
}

sub bodies { return map { ($_->head, $_->body) } $_[0]->ads->requests }


# of chats, in messages of both, in strings and in parts; ad calls of all kinds

foreach my $fails (0, 1) {
    my $name = $fails ? 'chats that fail' : 'chats';
    my $site = ChatSite->new(http => 'kontext_breaker off;');
    my $ads = $site->ads;
    my (@got, @again);

    $ads->on('/init', 200, { enabled => $YES, reportDebug => $YES,
                             reportErrors => $YES });
    $ads->on('/preload', 200, '<html>') if $fails;

    for (my $i = 0; $i < @CASES; $i += TURNS) {
        my @messages;

        foreach my $case (@CASES[$i .. $i + TURNS - 1]) {
            my $part = { type => 'text', text => $case->{text} };

            push @messages, {
                role => @messages % 2 ? 'assistant' : 'user',
                content => $i % 2 ? $case->{text} : [ $part ],
            };
        }

        my $turn = $site->turn({ model => 'gpt-5.1', stream => $YES,
                                 messages => \@messages },
                               headers => { 'X-Conversation' => "c-$i" },
                               text => $CASES[$i]{text},
                               asks => [ 'init', 'preload' ]);

        push @got, map { $_->{content} }
                       @{$turn->asked('preload')->json->{messages}};

        # the history comes again with the next turn, and is known by then

        push @messages, { role => 'assistant', content => 'Light ones.' },
                        { role => 'user', content => "And $i in red?" };

        $turn = $site->turn({ model => 'gpt-5.1', stream => $YES,
                              messages => \@messages },
                            headers => { 'X-Conversation' => "c-$i" },
                            asks => [ 'preload' ]);

        my @all = map { $_->{content} }
                      @{$turn->asked('preload')->json->{messages}};

        push @again, @all[0 .. $#all - 2];
    }

    same($name, \@got, \@CASES);
    same("$name, again", \@again, \@CASES);

    $ads->wait_request(path => $fails ? '/error' : '/debug');
    $site->nginx->barrier;

    clean("$name: bodies", $site, bodies($site));
    clean("$name: error log", $site, $site->nginx->error_log);

    ok((grep { $_->path eq '/debug' } $ads->requests), "$name: steps are told");
    ok((grep { $_->path eq '/error' } $ads->requests), "$name: failures, too")
        if $fails;
    $site->stop_ok;
}


# of the session API, which keeps texts until they are sent

{
    my $site = ApiSite->new(http => 'kontext_zone kontext:8m store=64k;');
    my ($ads, @got) = ($site->ads);

    for (my $i = 0; $i < @CASES; $i += TURNS) {
        my $id = $site->session({ conversationId => "api-$i" });
        my @messages;

        foreach my $case (@CASES[$i .. $i + TURNS - 1]) {
            push @messages, $site->message('m' . @messages, (@messages % 2
                            ? 'assistant' : 'user') => $case->{text});
        }

        $site->add($id, \@messages);

        my $body = $ads->wait_request(path => '/preload')->json;

        is($body->{conversationId}, "api-$i", "api: the preload of $i");
        push @got, map { $_->{content} } @{$body->{messages}};
    }

    same('api', \@got, \@CASES);
    clean('api: bodies', $site, bodies($site));
    clean('api: error log', $site, $site->nginx->error_log);
    $site->stop_ok;
}

done_testing;
