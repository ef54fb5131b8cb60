package Kontext::HTTP;

# Copyright (C) the ngx_http_kontext_module authors
#
# One HTTP/1.x message, read piece by piece.  Both ends of the test bench use
# it: the mock servers for requests, the client for responses.

use strict;
use warnings;

use JSON::PP ();


# kind => 'request' or 'response'; no_body => 1 for the answer to a HEAD

sub new {
    my ($class, %args) = @_;

    return bless {
        kind     => $args{kind},
        no_body  => $args{no_body},
        state    => 'head',
        head     => '',
        start    => '',
        headers  => [],
        body     => '',
        chunks   => [],
        trailers => '',
        interim  => [],
    }, $class;
}


# takes what belongs to this message from the front of $$buf, returns true
# when the message is complete; $eof says that nothing will follow

sub feed {
    my ($self, $buf, $eof) = @_;

    while ($self->{state} ne 'done') {
        my $state = $self->{state};

        if ($state eq 'head') {
            # an empty line ahead of a request is allowed by the standard
            $$buf =~ s/\A(?:\r?\n)+// if $self->{kind} eq 'request';

            $$buf =~ s/\A(.*?\r?\n)\r?\n//s or last;
            $self->_head($1);
            next;
        }

        if ($state eq 'length') {
            my $piece = substr($$buf, 0, $self->{rest}, '');

            $self->{body} .= $piece;
            $self->{rest} -= length($piece);

            last if $self->{rest} > 0;

            $self->{state} = 'done';
            next;
        }

        if ($state eq 'chunk') {
            $$buf =~ s/\A([0-9a-fA-F]+)[^\r\n]*\r?\n// or do {
                die "bad chunk size: " . substr($$buf, 0, 40) . "\n"
                    if $$buf =~ /\n/;
                last;
            };

            $self->{rest} = hex($1);

            if ($self->{rest} == 0) {
                $self->{state} = 'trailers';

            } else {
                push @{$self->{chunks}}, '';
                $self->{state} = 'data';
            }

            next;
        }

        if ($state eq 'data') {
            my $piece = substr($$buf, 0, $self->{rest}, '');

            $self->{body} .= $piece;
            $self->{chunks}[-1] .= $piece;
            $self->{rest} -= length($piece);

            last if $self->{rest} > 0;

            $self->{state} = 'data_end';
            next;
        }

        if ($state eq 'data_end') {
            $$buf =~ s/\A\r?\n// or do {
                die "no line end after a chunk\n" if length($$buf) > 1;
                last;
            };

            $self->{state} = 'chunk';
            next;
        }

        if ($state eq 'trailers') {
            $$buf =~ s/\A([^\n]*\n)// or last;

            if ($1 =~ /\A\r?\n\z/) {
                $self->{state} = 'done';

            } else {
                $self->{trailers} .= $1;
            }

            next;
        }

        # until the connection closes

        $self->{body} .= $$buf;
        $$buf = '';

        last if !$eof;

        $self->{state} = 'done';
    }

    return $self->{state} eq 'done';
}


sub _head {
    my ($self, $head) = @_;
    my ($start, @lines) = split /\r?\n/, $head;
    my @headers;

    foreach my $line (@lines) {
        my ($name, $value) = $line =~ /\A([^:]+):[ \t]*(.*?)[ \t]*\z/
            or die "bad header line: $line\n";

        push @headers, [ $name, $value ];
    }

    if ($self->{kind} eq 'response' && $start =~ m{\AHTTP/1\.\d 1\d\d }) {
        push @{$self->{interim}}, $start;
        return;
    }

    $self->{head} = $head;
    $self->{start} = $start;
    $self->{headers} = \@headers;

    if ($self->{kind} eq 'response') {
        $start =~ m{\AHTTP/(1\.\d) (\d\d\d)} or die "bad status: $start\n";
        $self->{version} = $1;
        $self->{status} = $2;

    } else {
        $start =~ m{\A(\S+) (\S+) HTTP/(1\.\d)\z}
            or die "bad request line: $start\n";
        $self->{method} = $1;
        $self->{uri} = $2;
        $self->{version} = $3;
    }

    my $length = $self->header('Content-Length');

    if ($self->{no_body}
        || ($self->{kind} eq 'response' && $self->{status} =~ /\A[23]04\z/))
    {
        $self->{state} = 'done';

    } elsif (lc($self->header('Transfer-Encoding') // '') eq 'chunked') {
        $self->{state} = 'chunk';

    } elsif (defined $length) {
        $length =~ /\A\d+\z/ or die "bad Content-Length: $length\n";
        $self->{rest} = $length;
        $self->{state} = 'length';

    } elsif ($self->{kind} eq 'request') {
        $self->{state} = 'done';

    } else {
        $self->{state} = 'until_eof';
    }
}


# the values of all headers of this name, joined as the standard has it

sub header {
    my ($self, $name) = @_;
    my @values = map { $_->[1] } grep { lc($_->[0]) eq lc($name) }
                                      @{$self->{headers}};

    return @values ? join(', ', @values) : undef;
}


sub method { $_[0]{method} }
sub uri { $_[0]{uri} }
sub path { my ($path) = split /\?/, $_[0]{uri}, 2; return $path }
sub args { my (undef, $args) = split /\?/, $_[0]{uri}, 2; return $args }
sub version { $_[0]{version} }
sub status { $_[0]{status} }
sub head { $_[0]{head} }
sub headers { $_[0]{headers} }
sub body { $_[0]{body} }
sub chunks { $_[0]{chunks} }
sub trailers { $_[0]{trailers} }
sub interim { $_[0]{interim} }
sub has_head { $_[0]{state} ne 'head' }
sub complete { $_[0]{state} eq 'done' }


# the body as data

sub json {
    my ($self) = @_;

    return JSON::PP->new->utf8->decode($self->{body});
}


1;

__END__

=head1 NAME

Kontext::HTTP - one HTTP/1.x message, read piece by piece

=head1 METHODS

    $m->feed(\$buffer, $eof)    # true when complete; dies on a broken message
    $m->method  $m->uri  $m->path  $m->args      # of a request
    $m->status  $m->interim                      # of a response
    $m->version $m->head $m->headers             # [[name, value], ...]
    $m->header('Content-Type')                   # case does not matter
    $m->body    $m->json                         # decoded of chunks
    $m->chunks                                   # what each chunk carried
    $m->trailers
    $m->has_head $m->complete

=cut
