package Kontext::Wait;

# Copyright (C) the ngx_http_kontext_module authors
#
# Every wait of the test bench is a loop on a condition with a deadline that
# no healthy run comes near to.

use strict;
use warnings;

use Carp qw(croak);
use Exporter 'import';
use Time::HiRes ();

our @EXPORT_OK = qw(deadline left readable wait_until);

our $TIMEOUT = $ENV{KONTEXT_TEST_TIMEOUT} || 30;


sub deadline {
    my ($timeout) = @_;

    return Time::HiRes::time() + ($timeout // $TIMEOUT);
}


sub left {
    my ($deadline) = @_;
    my $left = $deadline - Time::HiRes::time();

    return $left > 0 ? $left : 0;
}


# true when the handle has something to read, false at the deadline

sub readable {
    my ($fh, $deadline) = @_;

    while (1) {
        my $left = left($deadline);

        vec(my $set = '', fileno($fh), 1) = 1;
        my $n = select($set, undef, undef, $left);

        return 1 if $n > 0;
        return 0 if $n == 0 && left($deadline) == 0;
        die "select: $!\n" if $n < 0 && !$!{EINTR};
    }
}


# asks again and again until the condition is true and returns its value

sub wait_until {
    my ($what, $condition, $timeout) = @_;
    my $deadline = deadline($timeout);

    while (1) {
        my $value = $condition->();

        return $value if $value;

        croak("waited in vain for $what") if left($deadline) == 0;

        select(undef, undef, undef, 0.01);
    }
}


1;

__END__

=head1 NAME

Kontext::Wait - waits with a condition and a deadline

=head1 FUNCTIONS

    my $value = wait_until('the log line', sub { ... true value ... });
    wait_until($what, $condition, $seconds);

C<wait_until> dies with "waited in vain for $what" at the deadline: 30 seconds,
or C<KONTEXT_TEST_TIMEOUT>.

=cut
