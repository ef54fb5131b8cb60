#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Reads a streamed chat answer on its standard input, shows its text as it
# comes, and the ad that came with it.  The exit status is 0 if there was an
# ad, and [DONE] was the last event.

use strict;
use warnings;

use JSON::PP ();

my $json = JSON::PP->new->utf8;
my $pretty = JSON::PP->new->utf8->pretty->canonical->indent_length(2);
my ($ad, $finish, $done, $late, $chunks) = (undef, '', 0, 0, 0);

$| = 1;

while (my $line = <STDIN>) {
    next if $line !~ /\Adata: ?(.*?)\r?\n\z/;

    my $data = $1;

    $late = 1 if $done;

    if ($data eq '[DONE]') {
        $done = 1;
        next;
    }

    my $chunk = eval { $json->decode($data) };

    if (ref $chunk ne 'HASH') {
        print "\n  not a chunk: $data\n";
        exit 1;
    }

    my $choice = ref $chunk->{choices} eq 'ARRAY' ? $chunk->{choices}[0] : {};
    my $text = $choice->{delta}{content} // '';

    utf8::encode($text);
    $text =~ s/\n/\n  /g;

    print '  ' if $text ne '' && !$chunks++;
    print $text;

    $finish = $choice->{finish_reason} if defined $choice->{finish_reason};
    $ad = $chunk->{kontext} if $chunk->{kontext};
}

print "\n\n";

if (!$done || $late) {
    print "  The stream did not end with [DONE].\n";
    exit 1;
}

if (!$ad) {
    print "  No ad came with the answer.\n";
    exit 1;
}

my $text = $pretty->encode({ kontext => $ad });

$text =~ s/^/  /mg;
print "The ad, a member of the chunk with finish_reason \"$finish\":\n\n$text";
