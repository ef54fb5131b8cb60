#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The status page: what it counts, and that Prometheus can read it.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;

use ApiSite ();
use EventStream ();

my $STATUS = <<'CONF';
        location = /status {
            kontext_status;
        }
CONF


sub status {
    my ($site, $args, @headers) = @_;

    return $site->nginx->client->get('/status' . ($args // ''), @headers)
                ->read_response;
}


# all samples of a page: name with labels => value; a test for each line

sub samples {
    my ($text, $name) = @_;
    my (%type, %value, $bad);

    foreach my $line (split /\n/, $text) {
        if ($line =~ /^# HELP (kontext_\w+) \S.*\.$/) {
            $bad = "HELP twice: $line" if $type{$1};
            $type{$1} = 'told';

        } elsif ($line =~ /^# TYPE (kontext_\w+) (counter|gauge|histogram)$/) {
            $bad = "TYPE without HELP: $line" if $type{$1} ne 'told';
            $type{$1} = $2;

        } elsif ($line =~ /^((kontext_\w+?)(?:_bucket|_sum|_count)?
                            (?:\{\w+="[^"\\]*"(?:,\w+="[^"\\]*")*\})?)
                           \ (\d+(?:\.\d+)?)$/x) {
            my ($sample, $family, $value) = ($1, $2, $3);

            ($family) = $sample =~ /^(\w+)/ if !$type{$family};
            $bad = "no TYPE: $line" if !$type{$family};
            $bad = "twice: $line" if exists $value{$sample};
            $bad = "no counter's name: $line"
                if ($type{$family} // '') eq 'counter'
                   && $family !~ /_total$/;
            $value{$sample} = $value;

        } else {
            $bad = "what is this: $line";
        }
    }

    is($bad, undef, "$name: the exposition format");

    foreach my $family (grep { $type{$_} eq 'histogram' } keys %type) {
        my @buckets = $text =~ /^\Q$family\E_bucket\{le="[^"]+"\} (\d+)$/mg;

        is("@buckets", join(' ', sort { $a <=> $b } @buckets),
           "$name: $family grows");
        is($buckets[-1], $value{"${family}_count"},
           "$name: $family has all in its last bucket");
    }

    return \%value;
}


foreach my $workers (1, 2) {
    my $site = ApiSite->new(workers => $workers, server => $STATUS,
                            http => 'kontext_zone "my zone:1m" streams=7;');
    my $name = "$workers workers";
    my $ads = $site->ads;

    # nothing has happened

    my $res = status($site);
    my $s = $res->json;

    is($res->status, 200, "$name: a status page");
    is($res->header('Content-Type'), 'application/json', "$name: JSON");
    is($res->header('Cache-Control'), 'no-store', "$name: not to be kept");
    is($s->{zone}{name}, 'my zone', "$name: the zone");
    is($s->{streams}{max}, 7, "$name: as many streams as configured");
    is(join(' ', map { $s->{chats}{$_} } sort keys %{$s->{chats}}),
       '0 0 0 0 0 0', "$name: no chats");
    cmp_ok($s->{sessions}{slots}, '>', 1000, "$name: room for sessions");
    cmp_ok($s->{store}{blocks}, '>', 500, "$name: room for what they keep");

    # chats with an ad, without one, with an error, and one that is none

    $site->turn(chat("fill $_"), asks => [ $_ == 1 ? 'init' : (), 'preload' ])
        foreach 1 .. 3;
    $ads->on('/preload', 204);
    $site->turn(chat('no fill'), asks => [ 'preload' ]);
    $ads->on('/preload', 500, 'oops');
    $site->turn(chat('an error'), asks => [ 'preload' ]);
    $ads->on('/preload', 200, 'no JSON');
    $site->turn(chat('a failure'), asks => [ 'preload' ]);
    $site->turn('{}', headers => { 'Content-Type' => 'text/plain' });

    wait_until("$name: all chats to be counted", sub {
        $s = status($site)->json;

        return $s->{chats}{error} == 2 && $s->{chats}{bypass} == 1;
    });

    is_deeply($s->{chats}, { off => 0, bypass => 1, pending => 0, filled => 3,
                             no_fill => 1, error => 2 },
              "$name: chats by their status");
    is($s->{reasons}{content_type}, 1, "$name: the reason of the bypass");
    is($s->{injected}{member}, 3, "$name: ads that went in");
    is($s->{injected}{text}, 0, "$name: none of them as text");
    is_deeply([ @{$s->{calls}{init}}{qw(attempts ok failed)} ], [ 1, 1, 0 ],
              "$name: one /init");
    is_deeply([ @{$s->{calls}{preload}}{qw(attempts filled no_fill error
                                           failed cancelled)} ],
              [ 6, 3, 1, 1, 1, 0 ], "$name: six preloads and their ends");
    is($s->{preload_ms}{count}, 6, "$name: their times");
    is($s->{hold_ms}{count}, 6, "$name: the times that answers were held");
    is($s->{sessions}{live}, 1, "$name: one session");
    is($s->{store}{used}, 0, "$name: of which nothing is kept");

    # the session API

    my $id = $site->session({}, init => 0);
    my $stream = EventStream->open($site->nginx->client,
                                   "/kontext/sessions/$id/events");

    $s = status($site)->json;
    is($s->{sessions}{live}, 2, "$name: two sessions");
    cmp_ok($s->{store}{used}, '>', 0, "$name: something is kept of one");
    is($s->{streams}{open}, 1, "$name: an event stream");

    $site->call(DELETE => "sessions/$id");
    $stream->wait_end;
    is(status($site)->json->{streams}{open}, 0, "$name: it is over");

    # Prometheus

    foreach my $how ([ '?format=prometheus' ],
                     [ '', Accept => 'application/openmetrics-text;version='
                       . '1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1' ],
                     [ '', Accept => 'text/plain' ]) {
        my ($args, @headers) = @$how;
        my $case = "$name, Prometheus '$args@headers'";

        $res = status($site, $args, @headers);
        is($res->header('Content-Type'),
           'text/plain; version=0.0.4; charset=utf-8', "$case: its type");

        my $n = samples($res->body, $case);

        is($n->{'kontext_chats_total{status="filled"}'}, 3, "$case: chats");
        is($n->{'kontext_calls_total{call="preload",outcome="failed"}'}, 1,
           "$case: calls");
        is($n->{'kontext_preload_seconds_count'}, 6, "$case: times");
        is($n->{'kontext_sessions'}, 1, "$case: sessions");
        ok(exists $n->{'kontext_info{version="0.1.0",zone="my zone"}'},
           "$case: the module");
    }

    SKIP: {
        skip 'no promtool', 1 if !grep { -x "$_/promtool" }
                                       split /:/, $ENV{PATH};

        open(my $tool, '|-', 'promtool check metrics >/dev/null 2>&1')
            or die "promtool: $!";
        print $tool $res->body;
        ok(close($tool), "$name: promtool has nothing to say");
    }

    is(status($site, '', Accept => 'text/html,*/*')->header('Content-Type'),
       'application/json', "$name: a browser gets JSON");
    is(status($site, '?format=json', Accept => 'text/plain')
           ->header('Content-Type'), 'application/json',
       "$name: what is asked for goes before what is accepted");

    # methods, and a reload

    is($site->nginx->client->post_json('/status', {})->read_response->status,
       405, "$name: no POST");
    $res = $site->nginx->client->request(HEAD => '/status')->read_response;
    is($res->status, 200, "$name: HEAD");
    is($res->body, '', "$name: HEAD has no body");

    $site->nginx->reload;
    is(status($site)->json->{chats}{filled}, 3,
       "$name: the counters survive a reload");

    $site->stop_ok;
}


# alone

{
    my $nginx = Kontext::Nginx->new(server => $STATUS);
    my $s = $nginx->client->get('/status')->read_response->json;

    is($s->{zone}{name}, 'kontext', 'without kontext anywhere: a page all the '
                                    . 'same');
    $nginx->stop_ok;

    my ($ok, $output) = Kontext::Nginx->test_config(
        server => 'location /s { kontext_status; kontext_status; }');

    ok(!$ok, 'kontext_status twice: refused');
    like($output, qr/"kontext_status" directive is duplicate/,
         'kontext_status twice: why');
}

done_testing;
