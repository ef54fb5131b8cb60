#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Several nodes with one store: a conversation may come back through any of
# them, and is the same session.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use Nodes ();

my $missing = Nodes::missing();

plan(skip_all => $missing) if $missing;


# each turn elsewhere: one /init, one sessionId, the history with the same ids

{
    my $site = Nodes->new(nodes => 3);
    my (@texts, @turns);

    foreach my $n (1 .. 6) {
        my $on = ($n - 1) % 3 + 1;
        my $before = $site->records($on, 'saved');

        push @texts, "Question $n?";
        push @turns, $site->turn(@texts, { on => $on });
        push @texts, $turns[-1]{text};

        ok($turns[-1]{whole}, "turn $n: the answer as it was");
        ok($turns[-1]{ad}, "turn $n: an ad");
        is($turns[-1]{preload}{sessionId},
           $n > 1 ? Nodes::session_id(1) : undef,
           "turn $n: the session's id");
        $site->wait_records($on, 'saved', $before + 1);
    }

    is($site->calls('/init'), 1, 'one /init');

    my @ids = map { $_->{id} } @{$turns[-1]{preload}{messages}};

    foreach my $n (1 .. 5) {
        my @earlier = map { $_->{id} } @{$turns[$n - 1]{preload}{messages}};

        is_deeply(\@earlier, [ @ids[0 .. $#earlier] ],
                  "turn $n: its messages had the ids that they have later");
        is($turns[$n - 1]{id}, $ids[2 * $n - 1],
           "turn $n: and so had the answer");
    }

    my %ads = map { $_->{ad} => 1 } @turns;

    is(keys %ads, 6, 'each turn has an ad of its own');

    # the last one again, on each node: the same ad, and nothing is asked

    pop @texts;

    foreach my $on (1, 2, 3) {
        my $again = $site->turn(@texts, { on => $on, ask => 0 });

        is($again->{ad}, $turns[-1]{ad}, "again on node $on: the same ad");
    }

    is($site->calls('/preload'), 6, 'again: nothing is asked');

    # an answer that is there again needs no store

    my $records = $site->status(1)->{records};

    is("$records->{missing} $records->{found} $records->{saved}", '1 2 2',
       'node 1 has asked three times, and written two turns');

    my $found = $site->records(2, 'found');

    $site->turn(@texts, { on => 2, ask => 0 });
    is($site->records(2, 'found'), $found, 'once more: nobody is asked');

    $site->stop_ok;
}


# disabled on one node

foreach my $how ('a preload', '/init') {
    my $site = Nodes->new(nodes => 3);

    if ($how eq '/init') {
        $site->ads->on('/init', 200, { enabled => JSON::PP::false() });
        $site->turn('One?', { on => 1 });

    } else {
        $site->turn('One?', { on => 1, answer => {
            errCode => 'session_disabled', permanent => JSON::PP::true() } });
    }

    $site->wait_records(1, 'saved', 1);

    foreach my $on (2, 3, 1) {
        my $turn = $site->turn('One?', 'So.', "Two on $on?",
                               { on => $on, ask => 0 });

        is("$turn->{event}{s} $turn->{event}{reason}",
           'bypass session_disabled', "disabled by $how: on node $on");
        ok($turn->{whole}, "disabled by $how: a chat on node $on");
    }

    is($site->calls('/init'), 1, "disabled by $how: one /init");
    is($site->calls('/preload'), 1, "disabled by $how: one preload");
    $site->stop_ok;
}


# users: another one has a session of their own, and one without a name is the
# same on all nodes if these have a secret in common

{
    my $site = Nodes->new(
        options => 'secret=0123456789abcdef timeout=5s');

    my $one = $site->turn('One?', { on => 1 });

    $site->wait_records(1, 'saved', 1);

    my $two = $site->turn('One?', 'So.', 'Two?', { on => 2, user => 'u-2' });

    is($two->{preload}{sessionId}, undef, 'another user: a session of theirs');
    is($site->calls('/init'), 2, 'another user: an /init of theirs');
    $site->wait_records(2, 'saved', 1);

    my $three = $site->turn('One?', 'So.', 'Two?', 'Well.', 'Three?',
                            { on => 1, user => 'u-2' });

    is($three->{preload}{sessionId}, Nodes::session_id($two->{n}),
       'another user: known on the other node, too');

    my @nobody = map {
        my $turn = $site->turn('Who am I?', {
            on => $_, user => '', conversation => 'c-nobody',
            ask => $_ == 1 });

        $site->wait_records(1, 'saved', 3) if $_ == 1;
        $turn;
    } 1, 2;

    like($nobody[0]{event}{user}, qr/^kxu_/, 'a user without a name');
    is($nobody[1]{event}{user}, $nobody[0]{event}{user},
       'a user without a name: the same on both');
    is($nobody[1]{ad}, $nobody[0]{ad},
       'a user without a name: the same session');

    $site->stop_ok;
}


# both are asked for the same message at once: it has one ad from then on, and
# the user who has gone on elsewhere is where they are

{
    my $site = Nodes->new;
    my $second;

    my $first = $site->turn('One?', { on => 1, with => sub {
        $second = $site->turn('One?', { on => 2 });
        $site->wait_records(2, 'saved', 1);
    } });

    $site->wait_records(1, 'saved', 1);

    my @again = map { $site->turn('One?', { on => $_, ask => 0 }) } 1, 2;

    isnt($second->{ad}, $first->{ad}, 'at once: two answers');
    is($again[0]{ad}, $first->{ad},
       'at once: the message keeps the ad that was asked for first');

    # node 2 has not looked since

    is($again[1]{ad}, $second->{ad}, 'at once: nor is there a third one');
    is($site->calls('/preload'), 2, 'at once: nothing more is asked');

    # an older turn that ends late does not take the newer one's place

    my $newer;
    my $older = $site->turn('One?', 'So.', 'Two?', { on => 1, with => sub {
        $newer = $site->turn('One?', 'So.', 'Two?', 'Well.', 'Three?',
                             { on => 2 });
        $site->wait_records(2, 'saved', 2);
    } });

    $site->wait_records(1, 'saved', 2);

    $site->replace(1);

    my $again = $site->turn('One?', 'So.', 'Two?', 'Well.', 'Three?',
                            { on => 1, ask => 0 });

    is($again->{ad}, $newer->{ad}, 'the newest turn is the one that stays');
    is($site->calls('/init'), 2, 'the newest turn: no further /init');
    $site->stop_ok;
}


# nodes come and go

{
    my $site = Nodes->new(nodes => 2);
    my $one = $site->turn('One?', { on => 1 });

    $site->wait_records(1, 'saved', 1);
    $site->replace(2);
    $site->replace(1);

    my $again = $site->turn('One?', { on => 1, ask => 0 });

    is($again->{ad}, $one->{ad}, 'a node that is new: the ad is there');

    my $two = $site->turn('One?', 'So.', 'Two?', { on => 2 });

    is($two->{preload}{sessionId}, Nodes::session_id(1),
       'nodes that are new: the session is there');
    is($site->calls('/init'), 1, 'nodes that are new: one /init');

    # the store is new, too: what a node knows is there again with its next
    # turn

    $site->wait_records(2, 'saved', 1);
    $site->stop_store;
    $site->start_store;

    my $three = $site->turn('One?', 'So.', 'Two?', 'Well.', 'Three?',
                            { on => 2 });

    $site->wait_records(2, 'saved', 2);

    my $four = $site->turn('One?', 'So.', 'Two?', 'Well.', 'Three?', 'Yes.',
                           'Four?', { on => 1 });

    is($four->{preload}{sessionId}, Nodes::session_id(1),
       'a store that is new: the session is there again');
    is($site->calls('/init'), 1, 'a store that is new: one /init');

    $site->stop_ok;
}


# sessions of the API are the same ones

{
    my $site = Nodes->new(server => Nodes::api());

    my $made = $site->node(1)->client->post_json('/kontext/sessions',
        { conversationId => 'c-1' }, 'X-User' => 'u-1')->read_response;

    is($made->status, 201, 'the API: a session');
    $site->wait_records(1, 'saved', 1);

    my $turn = $site->turn('One?', { on => 2 });

    is($site->calls('/init'), 1, 'the API: one /init, also elsewhere');
    $site->wait_records(2, 'saved', 1);

    my $id = $made->json->{sessionId};

    is($site->node(1)->client->request('DELETE', "/kontext/sessions/$id", '',
                                       'X-User' => 'u-1')
            ->read_response->status, 204, 'the API: closed');
    $site->wait_records(1, 'deleted', 1);
    $site->replace(2);

    my $next = $site->turn('One?', 'So.', 'Two?', { on => 2 });

    is($next->{preload}{sessionId}, undef, 'the API: closed on all nodes');
    is($site->calls('/init'), 2, 'the API: a new session');
    $site->stop_ok;
}


# what lies in the store says nothing of anybody

{
    my $site = Nodes->new(log_level => 'debug');

    $site->turn('A secret question', { on => 1 });
    $site->wait_records(1, 'saved', 1);

    my ($key) = $site->node(1)->error_log =~ /key=(kxs_[a-z2-7]{26})/;

    ok(defined $key, 'a key');

    my $socket = IO::Socket::INET->new(PeerAddr => $site->{addr});

    print $socket "get $key\r\n";

    my ($len) = scalar(<$socket>) =~ /^VALUE \S+ \d+ (\d+)/;

    read($socket, my $record, $len);
    like($record, qr/\Akxr\x01/, 'a record');
    cmp_ok($len, '<', 200, 'it is small');
    unlike($record, qr/secret|acme|u-1|c-1/, 'it has no names and no text');

    $site->stop_ok;
}


done_testing;
