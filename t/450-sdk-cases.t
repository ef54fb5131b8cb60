#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# What the SDKs' own tests show (docs/sdk-tests.md) and none of the other files
# here: how a call is tried again, which steps are told, and odds and ends.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use POSIX ();
use Time::HiRes ();

use Kontext::Test;
use ApiSite;

my $YES = JSON::PP::true();
my $NO = JSON::PP::false();
my $SESSION = '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913';
my $BID = Kontext::Mock->bid;


sub user { return ApiSite->message($_[0], user => $_[1] // 'Hi') }
sub reply { return ApiSite->message($_[0], assistant => $_[1] // 'Ho') }


# Calls that fail are tried again after one second, two and four, if it was the
# transport or 429; everything else is an answer.  Each case has a user of its
# own, and all of them are under way at the same time.

{
    my $site = ApiSite->new;
    my $ads = $site->ads;
    my (%given, %user);
    my $of = sub {
        my ($path, $user) = @_;

        return grep { ($user{$_} //= $_->json->{userId}) eq $user }
                    $ads->requests($path);
    };

    # the next call of a user

    my $attempt = sub {
        my ($path, $user) = @_;

        return wait_until("$path of $user", sub {
            my ($next) = grep { !$given{$_} } $of->($path, $user);

            $given{$next} = 1 if $next;

            return $next;
        });
    };
    my $answer = sub {
        my ($req, $what) = @_;

        return $req->reset if $what eq 'reset';
        return $req->respond(200, $what) if ref $what;
        return $req->respond($what, 'no', 'Retry-After' => 3600);
    };
    my %early = (enabled => $YES, preloadTimeout => 9000);
    my @cases = map { { path => $_->[0], name => "$_->[0]: $_->[1]",
                        becomes => $_->[2], answers => [ @$_[3 .. $#$_] ] } } (
        [ '/preload', 'a bid at once', 'filled', $BID ],
        [ '/preload', '429 twice, then a bid', 'filled', 429, 429, $BID ],
        [ '/preload', '429 four times', 'error', 429, 429, 429, 429 ],
        [ '/preload', 'a reset twice, then a bid', 'filled',
          'reset', 'reset', $BID ],
        [ '/preload', 'a reset four times', 'error', ('reset') x 4 ],
        [ '/preload', 'a reset, then 500', 'error', 'reset', 500 ],
        (map { [ '/preload', "$_ at once", 'error', $_ ] }
             400, 403, 404, 500, 502, 503),
        [ '/init', '429 twice, then an answer', 9000, 429, 429, \%early ],
        [ '/init', 'a reset, then an answer', 9000, 'reset', \%early ],
        [ '/init', '500 at once', 16000, 500 ],
        [ '/init', '404 at once', 16000, 404 ],
    );

    $ads->hold('/preload');

    foreach my $n (0 .. $#cases) {
        my $case = $cases[$n];
        my $init = $case->{path} eq '/init';

        $case->{user} = "u-again-$n";
        $init ? $ads->hold('/init') : $ads->on('/init', 204);
        $case->{id} = $site->session({ userId => $case->{user} },
                                     init => !$init);
        $site->add($case->{id}, user('m1')) if !$init;
    }

    # cancelled between two attempts

    my %left;

    $ads->on('/init', 204);

    foreach my $how ('a newer message', 'DELETE') {
        my $id = $site->session({ userId => "u-$how" });

        $site->add($id, user('m1'));

        my $first = $attempt->('/preload', "u-$how");

        $first->respond(429, 'no');
        $first->wait_closed;
        $site->nginx->barrier;
        is($site->state($id)->{preload}, 'pending',
           "$how: after 429 the preload is pending still");
        $left{$how} = $id;
    }

    $ads->hold('/init');

    $site->add($left{'a newer message'}, user('m2'));
    is($site->close($left{DELETE})->status, 204,
       'DELETE while a call waits for its next attempt');

    my $second = $attempt->('/preload', 'u-a newer message');

    is($second->json->{messages}[-1]{id}, 'm2',
       'a newer message: it is asked for at once');
    $second->respond(200, $BID);
    $site->settled($left{'a newer message'}, 'filled');

    foreach my $round (0 .. 3) {
        foreach my $case (grep { $round < @{$_->{answers}} } @cases) {
            my $name = $case->{name};
            my $req = $attempt->($case->{path}, $case->{user});
            my $now = Time::HiRes::time();

            if ($round == 0) {
                $case->{first} = $req->head . $req->body;

            } else {
                my $wait = 2 ** ($round - 1);

                cmp_ok($now - $case->{at}, '>', $wait - 0.1,
                       "$name: attempt " . ($round + 1)
                       . " is $wait s after the answer before");
                is($req->head . $req->body, $case->{first},
                   "$name: attempt " . ($round + 1) . ' says the same');
            }

            $case->{at} = $now;
            $answer->($req, $case->{answers}[$round]);
        }
    }

    foreach my $case (@cases) {
        my ($name, $id) = @$case{'name', 'id'};

        if ($case->{path} eq '/init') {
            is($site->wait_for($id, sub { $_[0]{flags}{init} })
               ->{flags}{preloadTimeout}, $case->{becomes},
               "$name: what comes of it");

        } else {
            is($site->settled($id)->{preload}, $case->{becomes},
               "$name: what comes of it");
        }

        cmp_ok(Time::HiRes::time() - $case->{at}, '<', 8,
               "$name: at once, without a wait behind the last attempt")
            if @{$case->{answers}} == 4;
    }

    # had there been one more attempt of those that had their last answer
    # first, it would have come in these seven seconds

    foreach my $case (@cases) {
        is(scalar(my @all = $of->($case->{path}, $case->{user})),
           scalar @{$case->{answers}},
           "$case->{name}: " . @{$case->{answers}} . ' attempts in all');
    }

    is(join(' ', map { $_->json->{messages}[-1]{id} }
                     $of->('/preload', 'u-a newer message')), 'm1 m2',
       'a newer message: the older one is not tried again');
    is(scalar(my @all = $of->('/preload', 'u-DELETE')), 1,
       'DELETE: nothing is tried again');

    $site->stop_ok;
}


# the steps of a session, by their names, where /init asks for them

{
    my $site = ApiSite->new;
    my $ads = $site->ads;
    my %seen;

    # one after the other, so that none is dropped

    my $step = sub {
        my ($name) = @_;
        my $n = ++$seen{$name};
        my @all;

        wait_until("the step $name", sub {
            @all = grep { $_->json->{name} eq "Session: $name" }
                        $ads->requests('/debug');

            return @all >= $n;
        });
        $all[$n - 1]->wait_closed;
        $site->nginx->barrier;

        return pass("a step is told: $name");
    };

    $ads->on('/init', 200, { enabled => $YES, reportDebug => $YES });

    my $id = $site->session;

    $site->add($id, user('m1'));
    $step->($_) foreach 'message-added', 'preload-start', 'preload-success';
    $site->add($id, reply('m2'));
    $step->($_) foreach 'message-added', 'bid-assigned';
    $site->patch($id, { variantId => 'b' });
    $step->('options-updated');
    $site->close($id);
    $step->('destroyed');

    $site->stop_ok;
}


# reports go on without the session that they are of

{
    my $site = ApiSite->new;
    my $ads = $site->ads;

    $ads->hold('/error');
    $ads->on('/preload', 200, '<html>');

    my $id = $site->session;

    $site->add($id, user('m1'));

    my $report = $ads->wait_request(path => '/error');

    is($site->close($id)->status, 204, 'DELETE while a report is under way');
    $site->nginx->barrier;
    is($report->closed, undef, 'DELETE: the report goes on');
    $report->respond(204);
    $report->wait_closed;
    $site->stop_ok;
}


# odds and ends

{
    my $site = ApiSite->new(api => 'kontext_variant_id of-directive;');
    my $id = $site->session({ variantId => 'a',
                              userEmail => 'a@example.com' });
    my $now = sub {
        my $time = Time::HiRes::time();

        return POSIX::strftime('%Y-%m-%dT%H:%M:%S', gmtime $time)
               . sprintf('.%03dZ', int($time * 1000) % 1000);
    };
    my $before = $now->();

    $site->add($id, user('m1'));

    my $message = $site->preload->json->{messages}[0];
    my $after = $now->();

    ok($before le $message->{createdAt} && $message->{createdAt} le $after,
       'a message without a time is of now')
        || diag("$before $message->{createdAt} $after");
    $site->settled($id, 'filled');
    $site->add($id, reply('m2'));

    my @ads = map { $site->ad($id, 'm2')->body } 1 .. 3;

    is(join("\n", @ads), join("\n", ($ads[0]) x 3),
       'an ad asked for again is the same, to the byte');

    # what is empty takes the place of what was said, and is not sent

    $site->patch($id, { variantId => '' });
    $site->add($id, user('m3'));

    my $body = $site->preload->json;

    ok(!exists $body->{variantId},
       'an empty text takes an option away, also that of the directive');
    is($body->{userEmail}, 'a@example.com', 'and no other');
    $site->stop_ok;
}


# nginx's error log is the callback for diagnostics, and its level the choice

foreach my $level ('notice', 'debug') {
    my $site = ApiSite->new(log_level => $level);
    my $id = $site->session;

    $site->add($id, user('m1', 'words of the user'));
    $site->preload;
    $site->settled($id, 'filled');

    my @lines = $site->nginx->grep_log(qr/\[debug\].* kontext /);

    SKIP: {
        if ($level ne 'debug') {
            is(scalar @lines, 0, "error_log of level $level: no steps");
            last SKIP;
        }

        my $binary = $site->nginx->binary;

        skip("$binary is without --with-debug", 6)
            if `'$binary' -V 2>&1` !~ /--with-debug\b/;

        foreach my $what (qr{kontext call "/_kontext/init"},
                          qr/kontext init: status:200/,
                          qr/kontext Session: preload-start/,
                          qr{kontext call "/_kontext/preload"},
                          qr/kontext preload: status:200/)
        {
            ok(scalar(grep { /$what/ } @lines),
               "error_log of level debug: $what");
        }

        is(scalar(grep { /words of the user/ } @lines), 0,
           'error_log of level debug: no texts');
    }

    $site->stop_ok;
}


done_testing;
