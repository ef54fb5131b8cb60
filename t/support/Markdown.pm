package Markdown;

# Copyright (C) the ngx_http_kontext_module authors
#
# The pages of the documentation: their blocks of code, headings and links.

use strict;
use warnings;

use Exporter 'import';
use File::Find ();
use FindBin ();

our @EXPORT_OK = qw(anchors blocks links pages prose slurp statements tables);

our $ROOT = "$FindBin::Bin/..";


sub slurp {
    my ($file) = @_;

    open(my $fh, '<:raw', "$ROOT/$file") or return '';
    local $/;

    return scalar(<$fh>) // '';
}


# all pages, as paths from the root of the repository

sub pages {
    my @pages;

    foreach my $dir ('.', 'docs') {
        File::Find::find({
            no_chdir => 1,
            wanted   => sub {
                $File::Find::prune = 1 if $dir eq '.' && -d
                                          && $_ ne "$ROOT/.";
                push @pages, s{^\Q$ROOT\E/(?:\./)?}{}r if /\.md\z/ && -f;
            },
        }, "$ROOT/$dir") if -d "$ROOT/$dir";
    }

    return sort @pages;
}


# the blocks of code of a text: { line, type, text }; type is what stands
# behind the fence, or "indented"

sub blocks {
    my ($text) = @_;
    my (@blocks, $fence, $in);
    my $n = 0;
    my $blank = 1;

    foreach my $line (split /\n/, $text) {
        $n++;

        if (defined $fence) {
            if ($line =~ /^\s*\Q$fence\E`*\s*\z/) {
                undef $fence;
                undef $in;
                $blank = 1;

            } else {
                $in->{text} .= "$line\n";
            }

            next;
        }

        if ($line =~ /^\s*(```+)\s*(\w*)/) {
            $fence = $1;
            $in = { line => $n + 1, type => $2, text => '' };
            push @blocks, $in;
            next;
        }

        if ($line =~ /^ {4}(.*)/ && ($in || $blank)) {
            push @blocks, $in = { line => $n, type => 'indented', text => '' }
                if !$in;
            $in->{text} .= "$1\n";

        } elsif ($line =~ /\S/) {
            undef $in;

        } elsif ($in) {
            $in->{text} .= "\n";
        }

        $blank = $line !~ /\S/;
    }

    s/\n+\z/\n/ foreach map { $_->{text} } @blocks;

    return @blocks;
}


# a text without its blocks of code, line by line

sub prose {
    my ($text) = @_;
    my @lines = split /\n/, $text, -1;

    foreach my $block (blocks($text)) {
        my $first = $block->{line} - 1;
        my $last = $first + ($block->{text} =~ tr/\n//) - 1;

        $_ = '' foreach @lines[$first .. $last];
    }

    s/^\s*```.*// foreach @lines;

    return join("\n", @lines);
}


# where links of a page may lead, as GitHub names them

sub anchors {
    my ($text) = @_;
    my (%anchors, %count);

    foreach my $heading (prose($text) =~ /^#{1,6}\s+(.*?)\s*#*$/mg) {
        $heading =~ s/\[([^\]]*)\]\([^)]*\)/$1/g;

        my $slug = lc $heading =~ tr/`*//dr;

        $slug =~ s/[^\w\s-]//g;
        $slug =~ s/\s/-/g;

        my $n = $count{$slug}++;

        $anchors{$n ? "$slug-$n" : $slug} = 1;
    }

    return \%anchors;
}


# the links of a page: [ line, target ]

sub links {
    my ($text) = @_;
    my @links;
    my $n = 0;

    foreach my $line (split /\n/, prose($text)) {
        $n++;
        $line =~ s/`[^`]*`/x/g;
        push @links, [ $n, $1 ] while $line =~ /\]\(\s*<?([^)\s>]+)>?[^)]*\)/g;
    }

    return @links;
}


# the rows of the tables of a page whose head begins with a word: lists of
# cells

sub tables {
    my ($text, $word) = @_;
    my (@rows, $in);

    foreach my $line (split /\n/, prose($text)) {
        if ($line !~ /^\|\s*(.*\S)\s*\|\s*\z/) {
            undef $in;
            next;
        }

        my @cells = split /\s*\|\s*/, $1, -1;

        if (!defined $in) {
            $in = $cells[0] eq $word;
            next;
        }

        push @rows, \@cells if $in && $line !~ /^\|[\s|:-]+\|\s*\z/;
    }

    return @rows;
}


# The statements of an nginx configuration, as texts: "name ...;" and "name ...
# { ... }".  Dies when there is something else.

sub statements {
    my ($text) = @_;
    my @statements;
    my $depth = 0;
    my $in = '';

    while ($text =~ /\G(?:(\s+)|(\#[^\n]*)|("(?:[^"\\]++|\\.)*+"
                          |'(?:[^'\\]++|\\.)*+')|([{};])
                          |((?:\$\{\w+\}|\\.|[^\s{};])))/gcxs)
    {
        my ($space, $comment, $quoted, $mark, $other) = ($1, $2, $3, $4, $5);

        # "#" and quotes count at the beginning of a word only

        if (defined($comment // $quoted) && $in =~ /[^\s{};]\z/) {
            $in .= substr($comment // $quoted, 0, 1);
            pos($text) -= length($comment // $quoted) - 1;
            next;
        }

        $in .= $space // $quoted // $mark // $other // '';

        next if !defined $mark;

        $depth += { '{' => 1, '}' => -1, ';' => 0 }->{$mark};
        die "a \"}\" too many\n" if $depth < 0;

        if ($depth == 0) {
            push @statements, $in =~ s/^\s+//r;
            $in = '';
        }
    }

    die "the end of \"$in\" is not there\n" if $depth || $in =~ /\S/;

    return @statements;
}


1;

__END__

=head1 NAME

Markdown - what a test wants to know of a page

=head1 FUNCTIONS

    my @pages = pages();                # README.md, docs/api.md ...
    my $text = slurp($page);
    my @blocks = blocks($text);         # { line, type, text } of code
    my $anchors = anchors($text);       # { 'the-event-log' => 1 }
    my @links = links($text);           # [ line, target ]
    my @rows = tables($text, 'reason'); # of tables with this first head
    my @statements = statements($conf); # of an nginx configuration

=cut
