#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# docs/conformance.md, docs/sdk-tests.md and docs/security.md: each test that
# they name is there, no row is without one, and the numbers are right.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;

my $ROOT = "$FindBin::Bin/..";
my $TEST = qr/`((?:t|unit)\/[\w.\/-]+):[ ]([^`]+)`/;

my %files;


sub slurp {
    my ($file) = @_;

    return $files{$file} //= do {
        local $/;

        open(my $fh, '<:raw', "$ROOT/$file") or return '';
        scalar <$fh>;
    };
}


# what is wrong with the name of a test

sub wrong {
    my ($file, $name) = @_;

    if ($file =~ /\Aunit\//) {
        my $text = slurp("$file.c");

        return "$file.c: no such file" if $text eq '';
        return $text =~ /^\Q$name\E\(void \*\*state\)/m
               && $text =~ /\bcmocka_unit_test\w*\(\s*\Q$name\E\b/
               ? () : "$file.c: $name is no test";
    }

    my $text = slurp($file);

    return "$file: no such file" if $text eq '';
    return index($text, $name) >= 0 ? () : "$file: nothing has \"$name\"";
}


# the tests in a text, as [ file, name ]

sub tests {
    my ($text) = @_;
    my @tests;

    push @tests, [ $1, $2 ] while $text =~ /$TEST/g;

    return @tests;
}


# the rows of a page: [ number of the line, heading above, cells ]

sub rows {
    my ($page) = @_;
    my (@rows, $heading, $n, $in);

    foreach my $line (split /\n/, slurp($page)) {
        $n++;
        $heading = $1 if $line =~ /^#+ (.*)/;

        if ($line !~ /^\|\s*(.*\S)\s*\|\z/) {
            $in = 0;
            next;
        }

        my @cells = split /\s*\|\s*/, $1, -1;

        # the first two lines are the head of the table

        push @rows, [ $n, $heading, @cells ] if $in++ > 1;
    }

    return @rows;
}


sub none {
    my ($name, @wrong) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return is(join("\n", @wrong), '', $name);
}


# they are found out

is(join("\n", map { wrong(@$_) } tests(<<'TEXT')), <<'WRONG' =~ s/\n\z//r,
`t/410-feed.t: the plainest case, in full`, `t/410-feed.t: the plainest of all`
`t/409-feed.t: x`, `unit/test_feed: test_open`, `unit/test_feed: test_ope`
`unit/test_feed: test_feed_traffic`, `unit/test_fed: test_open`
TEXT
t/410-feed.t: nothing has "the plainest of all"
t/409-feed.t: no such file
unit/test_feed.c: test_ope is no test
unit/test_feed.c: test_feed_traffic is no test
unit/test_fed.c: no such file
WRONG
   'tests that are not there are found out');

foreach my $page ('docs/conformance.md', 'docs/sdk-tests.md') {
    my @tests = tests(slurp($page));

    cmp_ok(scalar @tests, '>', 50, "$page: names tests");
    none("$page: they are there", map { wrong(@$_) } @tests);
    none("$page: so are the files",
         grep { !-e "$ROOT/$_" } slurp($page) =~ /`(t\/[\w.\/-]+)`/g);
}


# docs/conformance.md: rows of the protocol, rows of the SDKs

{
    my (%count, %seen, @wrong);

    foreach my $row (rows('docs/conformance.md')) {
        my ($n, $heading, $number, @cells) = @$row;
        my $list = @cells == 2 ? 'protocol' : 'SDKs';

        push @wrong, "$n: no test in t/"
            if !grep { $_->[0] =~ /\At\// } tests($cells[-1]);
        push @wrong, "$n: nothing but tests belongs there"
            if $cells[-1] !~ /\A$TEST(?:, $TEST)*\z/;
        push @wrong, "$n: an empty cell" if grep { !/\S/ } @cells;
        push @wrong, "$n: $number again" if $seen{"$list $number"}++;
        $count{$list}++;
    }

    none('docs/conformance.md: each row has a test in t/', @wrong);
    is_deeply([ sort grep { /^protocol / } keys %seen ],
              [ sort map { "protocol $_" } 1 .. 14 ],
              'docs/conformance.md: all of the protocol\'s list');
    is($count{SDKs}, 42,
       'docs/conformance.md: all of the SDKs\' features for a server');
}


# docs/security.md: each row about a promise has its tests, fuzzers or tools

{
    my $page = slurp('docs/security.md');
    my $file = qr/(?:t|unit|fuzz|util|bench)\/[\w.\/-]+/;
    my $name = qr/`$file(?:: [^`]+)?`/;
    my ($rows, @wrong) = (0);

    foreach my $row (rows('docs/security.md')) {
        my ($n, $heading, @cells) = @$row;

        next if $heading eq 'The parties';

        $rows++;
        push @wrong, "$n: tests and nothing else belong into the last cell"
            if @cells != 3 || $cells[2] !~ /\A$name(?:, $name)*\z/;
    }

    cmp_ok($rows, '>', 30, 'docs/security.md: promises');
    none('docs/security.md: each has what shows it', @wrong);
    none('docs/security.md: the tests are there',
         map { wrong(@$_) } tests($page));

    # a unit test goes by its name

    none('docs/security.md: so are the files',
         grep { !-e "$ROOT/$_" && !-e "$ROOT/$_.c" } $page =~ /`($file)/g);
    like(slurp('SECURITY.md'), qr/\]\(docs\/security\.md\)/,
         'SECURITY.md: leads to it');
}


# docs/sdk-tests.md

{
    my $page = slurp('docs/sdk-tests.md');
    my (%rows, %cases, %of_file, %of_suite, @wrong, $suite);
    my %suite_at;
    my $line = 0;

    foreach (split /\n/, $page) {
        $line++;
        $suite = $1 if /^## `([^`]+)`/;
        $suite_at{$line} = $suite;
    }

    foreach my $row (grep { @$_ == 6 } rows('docs/sdk-tests.md')) {
        my ($n, $heading, $names, $what, $applies, $ours) = @$row;

        next if !defined $suite_at{$n};

        my $cases = () = $names =~ /`[^`]+`/g;
        my ($kind) = $applies =~ /\A(yes|page|no)(?: \(.+\))?\z/;

        if (!$kind) {
            push @wrong, "$n: applies $applies";
            next;
        }

        $of_file{"$suite_at{$n} $heading"} += $cases;
        $of_suite{$suite_at{$n}}{$kind} += $cases;

        if ($kind ne 'yes') {
            push @wrong, "$n: applies $kind, and has $ours" if $ours =~ /\S/;
            next;
        }

        my $is = $ours =~ /\Adiffers: \S/        ? 'differs'
                 : $ours =~ /\Ano counterpart: \S/ ? 'no counterpart'
                 : $ours =~ /\A$TEST(?:, $TEST)*\z/ ? 'shown'
                                                    : 'nothing';

        push @wrong, "$n: \"$ours\" is neither tests nor \"differs: ...\" nor "
                     . '"no counterpart: ..."' if $is eq 'nothing';
        $rows{$_}++, $cases{$_} += $cases foreach $is, 'all';
    }

    none('docs/sdk-tests.md: each row that applies says what is ours', @wrong);

    is_deeply([ map { [ @$_[2 .. 4] ] } grep { @$_ == 5 }
                    rows('docs/sdk-tests.md') ],
              [ map { [ $_, $rows{$_}, $cases{$_} ] }
                    'shown', 'differs', 'no counterpart', 'all' ],
              'docs/sdk-tests.md: the totals')
        || diag(explain(\%rows, \%cases));

    none('docs/sdk-tests.md: the number of cases of each file', map {
        my $n = /\((\d+)\)\z/ ? $1 : 'none';

        $n eq $of_file{$_} ? () : "$_: $of_file{$_}"
    } sort keys %of_file);

    # suite, version, files, cases, yes, page, no

    foreach my $row (grep { @$_ == 9 } rows('docs/sdk-tests.md')) {
        my ($name, $files, @numbers) = map { tr/`//dr } @$row[2, 4 .. 8];
        my @suites = grep { $name eq 'both' || /\A\Q$name\E\z/ }
                          keys %of_suite;
        my %sum;

        foreach my $suite (@suites) {
            foreach my $kind ('yes', 'page', 'no') {
                $sum{$kind} += $of_suite{$suite}{$kind} // 0;
                $sum{cases} += $of_suite{$suite}{$kind} // 0;
            }

            $sum{files} += grep { /\A\Q$suite\E / } keys %of_file;
        }

        is(join(' ', $files, @numbers),
           join(' ', map { $_ // 0 } @sum{qw(files cases yes page no)}),
           "docs/sdk-tests.md: the numbers of $name");
    }
}


done_testing;
