#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# docs/api.md is as good as it looks: its shell session runs and says what the
# page shows, its JSON is JSON, its configuration is one, and its calls and
# codes are those of docs/openapi.json.
#
# In what the page shows, {...}, [...] and ... in a string stand for anything;
# times and UUIDs stand for others.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;
use Kontext::Wait qw(deadline readable);

use File::Temp ();

my $DOCS = "$FindBin::Bin/../docs";

# between the outputs of two blocks

my $MARK = "\x1e";

my $UUID = qr/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/;
my $TIME = qr/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/;

# a location for what the page shows of one, and an ad server

my $AROUND = <<'CONF';
        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
            proxy_method POST;
        }

CONF

my $page = slurp("$DOCS/api.md");
my $openapi = json(slurp("$DOCS/openapi.json"));


sub slurp {
    my ($file) = @_;

    open(my $fh, '<:raw', $file) or die "$file: $!\n";
    local $/;

    return scalar <$fh>;
}


# what is fenced: ([type, text], ...), and what is indented

sub fenced {
    my @blocks;

    push @blocks, [ $1, $2 ] while $page =~ /^```(\w*)\n(.*?)^```$/msg;

    return @blocks;
}


sub indented {
    my $text = $page =~ s/^```\w*\n.*?^```$//msgr;
    my @blocks;

    while ($text =~ /^((?: {4}.*\n|\n(?= {4}))+)/mg) {
        push @blocks, $1 =~ s/\A\n+//r =~ s/^ {4}//mgr;
    }

    return @blocks;
}


# JSON in the text: `{"id": 4}`

sub inline {
    return $page =~ /`([{\[]\s*"[^`]*)`/g;
}


# {...} and [...] are ["..."] then, so that they can be told

sub filled {
    my ($json) = @_;

    $json =~ s/\{\.\.\.\}|\[\.\.\.\]/["..."]/g;

    return $json;
}


sub parsed {
    my ($json) = @_;

    return eval { json(filled($json)) };
}


# where a value differs from what is shown, as a path; nothing if it does not

sub difference {
    my ($got, $shown, $at) = @_;

    return if ref $shown eq 'ARRAY' && @$shown == 1 && !ref $shown->[0]
              && $shown->[0] eq '...' && ref $got;

    return "$at is not of the same type" if ref $got ne ref $shown;

    if (ref $shown eq 'HASH') {
        my %all = (%$got, %$shown);

        foreach my $name (sort keys %all) {
            return "$at.$name is not there" if !exists $got->{$name};
            return "$at.$name is not shown" if !exists $shown->{$name};

            my $found = difference($got->{$name}, $shown->{$name},
                                   "$at.$name");

            return $found if defined $found;
        }

        return;
    }

    if (ref $shown eq 'ARRAY') {
        return "$at has not as many" if @$got != @$shown;

        foreach my $i (0 .. $#$shown) {
            my $found = difference($got->[$i], $shown->[$i], $at . "[$i]");

            return $found if defined $found;
        }

        return;
    }

    return if like_shown($got, $shown);
    return "$at is " . ($got // 'null') . ', not ' . ($shown // 'null');
}


sub like_shown {
    my ($got, $shown) = @_;

    return !defined $got && !defined $shown if !defined $got
                                               || !defined $shown;

    my $re = join('', map {
        $_ eq '...'          ? '.+?'
        : /\A$UUID\z/        ? $UUID
        : /\A$TIME\z/        ? $TIME
        : quotemeta($_)
    } split /(\.\.\.|$UUID|$TIME)/, $shown);

    return $got =~ /\A$re\z/s;
}


# an event stream: what is after "data: " is JSON

sub check_text {
    my ($got, $shown, $name) = @_;
    my @got = split /\n/, $got, -1;
    my @shown = split /\n/, $shown, -1;

    is(scalar @got, scalar @shown, "$name: as many lines") or diag($got);

    foreach my $i (0 .. $#shown) {
        my ($data) = $shown[$i] =~ /\Adata: (.*)/;

        if (!defined $data) {
            is($got[$i], $shown[$i], "$name: line " . ($i + 1));
            next;
        }

        my ($line) = ($got[$i] // '') =~ /\Adata: (.*)/;

        check_json($line // '', $data, "$name: line " . ($i + 1));
    }
}


sub check_json {
    my ($got, $shown, $name) = @_;
    my $data = eval { json($got) };

    ok(defined $data, "$name: JSON") or return diag($got);
    is(difference($data, parsed($shown), 'it'), undef, $name) or diag($got);
}


# runs them as one session: the output of each

sub session {
    my ($addr, @blocks) = @_;
    my $dir = File::Temp->newdir;
    my $found = 0;
    my $script = '';

    foreach my $block (@blocks) {
        $found += $block =~ s{http://localhost:8080/}{http://$addr/}g;
        $script .= "$block\nprintf '\\036'\n";
    }

    is($found, 1, 'the address is said once');

    STDOUT->flush;
    STDERR->flush;

    pipe(my $rd, my $wr) or die "pipe: $!\n";
    my $pid = fork() // die "fork: $!\n";

    if ($pid == 0) {
        $SIG{$_} = 'DEFAULT' foreach 'INT', 'TERM', 'HUP', 'PIPE';
        delete @ENV{grep { /_proxy\z/i } keys %ENV};

        # the environment of a user who has no configuration of curl

        $ENV{HOME} = $ENV{CURL_HOME} = "$dir";

        chdir($dir) && open(STDIN, '<', '/dev/null')
            && open(STDOUT, '>&', $wr) && open(STDERR, '>', 'stderr')
            && close($wr) && close($rd) && setpgrp()
            && exec('/bin/sh', '-c', $script);

        POSIX::_exit(127);
    }

    close($wr);

    my $deadline = deadline();
    my $out = '';

    while (readable($rd, $deadline)) {
        last if !sysread($rd, $out, 65536, length $out);
    }

    # a session that hangs does so with its curl

    my $ended = $out =~ tr/\x1e// == @blocks;

    kill('KILL', -$pid) if !$ended;
    waitpid($pid, 0);

    ok($ended, 'the session ends') or diag($out);
    is($?, 0, 'and has done all');
    is(slurp("$dir/stderr"), '', 'without a complaint');

    return split /$MARK/, $out, -1;
}


# The shell session

my $ads = Kontext::Mock->ad_server;
my @configs = grep { /^\s*location\b/ } indented();

is(scalar @configs, 1, 'the page has a location') or BAIL_OUT('no location');

my $nginx = Kontext::Nginx->new(
    vars   => { ads => $ads->addr },
    server => $AROUND . $configs[0],
);

{
    my @all = fenced();
    my @steps;

    foreach my $block (@all) {
        my ($type, $text) = @$block;

        if ($type eq 'sh') {
            push @steps, { sh => $text };

        } else {
            ok(@steps && !exists $steps[-1]{shown}, 'an output has its input')
                or next;
            @{$steps[-1]}{'type', 'shown'} = ($type, $text);
        }
    }

    cmp_ok(scalar @steps, '>', 5, 'the page has a shell session');

    my @outputs = session($nginx->addr, map { $_->{sh} } @steps);

    foreach my $i (0 .. $#steps) {
        my ($step, $got) = ($steps[$i], $outputs[$i] // '');
        my $name = 'step ' . ($i + 1);

        if (!defined $step->{shown}) {
            is($got, '', "$name says nothing");

        } elsif ($step->{type} eq 'json') {
            check_json($got, $step->{shown}, $name);

        } else {
            check_text($got, $step->{shown}, $name);
        }
    }

    # each call of the page is one of the session

    my $shell = join('', map { $_->{sh} } @steps);

    foreach my $path ('$api/sessions"', '$session"', '$session/messages"',
                      '$session/ads/m4"', '$session/events"')
    {
        ok(index($shell, $path) >= 0, "the session has a call of $path");
    }

    like($shell, qr/-X $_ /, "and a $_") foreach 'PATCH', 'DELETE';
}


# JSON of the rest

{
    my @json = ((grep { /\A[{\[]/ } indented()), inline());

    push @json, map { /^data: (.*)$/mg } indented();

    cmp_ok(scalar @json, '>', 8, 'the page has JSON');

    foreach my $text (@json) {
        ok(defined parsed($text), 'JSON: ' . substr($text, 0, 40) =~ s/\n/ /gr)
            or diag("$text\n$@");
    }

    # and everything indented is something

    is_deeply([ grep { !/\A(?:[{\[]|id: |\s*location\b)/ } indented() ], [],
              'no other kind of example');
}


# The configuration

foreach my $config (@configs) {
    my ($ok, $output) = Kontext::Nginx->test_config(
        vars => { ads => $ads->addr }, server => $AROUND . $config);

    ok($ok, 'nginx -t') or diag($output);
}


# The same calls, limits and codes as in openapi.json

{
    my %described;

    foreach my $path (keys %{$openapi->{paths}}) {
        foreach my $method (keys %{$openapi->{paths}{$path}}) {
            next if $method =~ /\A(?:parameters|head|options)\z/;
            $described{uc($method) . ' {api}'
                       . $path =~ s/\{sessionId\}/{id}/r}++;
        }
    }

    is_deeply([ sort $page =~ /^### `(\S+ \S+)`$/mg ], [ sort keys %described ],
              'the calls of openapi.json');

    my @refusals = $page =~ /^\| (\d{3}) \| (.*) \|$/mg;
    my (%codes, %found);

    while (my ($status, $text) = splice(@refusals, 0, 2)) {
        $codes{$_}{$status} = 1 foreach $text =~ /`(\w+)`/g;
    }

    is_deeply([ sort keys %codes ],
              [ sort @{$openapi->{components}{schemas}{ErrorCode}{enum}} ],
              'its error codes');

    $found{$_->[1]}{$_->[0]} = 1 foreach refusals();
    is_deeply(\%found, \%codes, 'with their status');

    my %events = map { $_ => 1 }
                     map { /`([a-z-]+\.[a-z-]+)`/g }
                         $page =~ /^\| event \|.*?\n\n/msg;

    is_deeply([ sort keys %events ],
              [ sort keys %{$openapi->{components}{schemas}{Event}
                                    {discriminator}{mapping}} ],
              'its events');
}


# [status, code] of each refusal of openapi.json

sub refusals {
    my @found = ([ 404, 'unknown_path' ]);

    foreach my $item (values %{$openapi->{paths}}) {
        foreach my $operation (grep { ref eq 'HASH' } values %$item) {
            foreach my $status (keys %{$operation->{responses}}) {
                my $response = $operation->{responses}{$status};
                my $ref = $response->{'$ref'} // '';

                $response = $openapi->{components}{responses}{$1}
                    if $ref =~ m{([^/]+)\z};

                my $examples = $response->{content}{'application/json'}
                                        {examples} // {};

                push @found, map { [ $status, $_ ] } keys %$examples
                    if $status >= 400;
            }
        }
    }

    return @found;
}


$nginx->stop_ok;
done_testing;
