package Kontext::Client;

# Copyright (C) the ngx_http_kontext_module authors
#
# A raw HTTP/1.1 client on one connection: sends exactly the bytes it is told
# to and shows the answer as it grows.

use strict;
use warnings;

use Carp qw(croak);
use Errno ();
use IO::Socket::INET ();
use JSON::PP ();
use Socket qw(SOL_SOCKET SO_LINGER SHUT_WR IPPROTO_TCP TCP_NODELAY);

use Kontext::HTTP ();
use Kontext::Wait qw(deadline left readable);

use constant READ_SIZE => 64 * 1024;


sub new {
    my ($class, %args) = @_;
    my $port = $args{port} // croak "a client needs a port";

    my $fh = IO::Socket::INET->new(
        PeerAddr => '127.0.0.1',
        PeerPort => $port,
        Proto    => 'tcp',
    ) or croak "connect to port $port: $@";

    setsockopt($fh, IPPROTO_TCP, TCP_NODELAY, 1);
    $fh->blocking(0);

    return bless {
        fh    => $fh,
        port  => $port,
        in    => '',
        raw   => '',
        heads => [],
    }, $class;
}


sub send {
    my ($self, $bytes) = @_;
    my $deadline = deadline();

    local $SIG{PIPE} = 'IGNORE';

    while (length $bytes) {
        my $n = syswrite($self->{fh}, $bytes);

        if (defined $n) {
            substr($bytes, 0, $n, '');
            next;
        }

        next if $!{EINTR};
        croak "send: $!" if !$!{EAGAIN};

        # a server that writes while we write must not block us

        $self->_read;

        vec(my $rd = '', fileno($self->{fh}), 1) = 1;
        my $wr = $rd;

        select($rd, $wr, undef, left($deadline));
        croak "send: waited in vain" if left($deadline) == 0;
    }

    return $self;
}


# request(method, uri, body, header => value ...): Host is there already, and
# Content-Length where there is a body

sub request {
    my ($self, $method, $uri, $body, @headers) = @_;
    my %seen = map { lc($_) => 1 } @headers[grep { $_ % 2 == 0 } 0 .. $#headers];
    my $text = "$method $uri HTTP/1.1\r\n";

    unshift @headers, 'Host', "127.0.0.1:$self->{port}" if !$seen{host};

    push @headers, 'Content-Length', length($body)
        if defined $body && !$seen{'content-length'}
           && !$seen{'transfer-encoding'};

    while (my ($name, $value) = splice(@headers, 0, 2)) {
        $text .= "$name: $value\r\n";
    }

    push @{$self->{heads}}, $method eq 'HEAD';

    return $self->send("$text\r\n" . ($body // ''));
}


sub get {
    my ($self, $uri, @headers) = @_;

    return $self->request('GET', $uri, undef, @headers);
}


# a reference is sent as JSON, a string as it is

sub post_json {
    my ($self, $uri, $data, @headers) = @_;

    $data = JSON::PP->new->utf8->canonical->encode($data) if ref $data;

    return $self->request('POST', $uri, $data,
                          'Content-Type' => 'application/json', @headers);
}


# the answer being read, as far as it is there; the next one after
# read_response() has returned the last

sub response {
    my ($self) = @_;

    return $self->{response} //= Kontext::HTTP->new(
        kind    => 'response',
        no_body => shift @{$self->{heads}},
    );
}


# waits for the head

sub read_head {
    my ($self, $timeout) = @_;

    $self->_wait('a response head', sub { $_[0]->has_head }, $timeout);

    return $self->response;
}


# waits until the body, with the chunks' framing gone, matches

sub read_until {
    my ($self, $re, $timeout) = @_;

    $self->_wait("$re", sub { $_[0]->body =~ $re }, $timeout);

    return $self->response->body;
}


# waits for the end of the answer and returns it

sub read_response {
    my ($self, $timeout) = @_;

    $self->_wait('the end of the response', sub { $_[0]->complete }, $timeout);

    return delete $self->{response};
}


# what has come up to now, without a wait

sub peek {
    my ($self) = @_;

    1 while $self->_read;

    return $self->response;
}


# waits for the end of the connection: "eof" or "reset"

sub wait_closed {
    my ($self, $timeout) = @_;
    my $deadline = deadline($timeout);

    while (!$self->{closed}) {
        next if $self->_read;
        last if $self->{closed};

        readable($self->{fh}, $deadline)
            or croak "waited in vain for the end of the connection";
    }

    return $self->{closed};
}


# true while the peer has not closed, as far as the kernel knows

sub is_open {
    my ($self) = @_;

    1 while $self->_read;

    return !$self->{closed};
}


sub raw { $_[0]{raw} }
sub port { $_[0]{port} }


sub shutdown {
    my ($self) = @_;

    CORE::shutdown($self->{fh}, SHUT_WR);

    return $self;
}


sub close {
    my ($self) = @_;

    CORE::close($self->{fh});
    $self->{closed} //= 'us';

    return $self;
}


# an abort: the peer gets a reset

sub reset {
    my ($self) = @_;

    setsockopt($self->{fh}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));

    return $self->close;
}


# true when something came; feeds what came to the current answer

sub _read {
    my ($self) = @_;

    return 0 if $self->{closed};

    my $n = sysread($self->{fh}, my $piece, READ_SIZE);

    if (!defined $n) {
        return 0 if $!{EAGAIN} || $!{EINTR};
        $self->{closed} = 'reset';
        $n = 0;

    } elsif ($n == 0) {
        $self->{closed} = 'eof';

    } else {
        $self->{in} .= $piece;
        $self->{raw} .= $piece;
    }

    $self->_feed;

    return $n > 0;
}


sub _feed {
    my ($self) = @_;

    # the next answer's kind is known when its request is sent

    return if !$self->{response} && !length $self->{in};

    my $response = $self->response;

    return if $response->complete;

    $response->feed(\$self->{in}, ($self->{closed} // '') eq 'eof');
}


sub _wait {
    my ($self, $what, $condition, $timeout) = @_;
    my $deadline = deadline($timeout);

    $self->_feed;

    while (1) {
        my $response = $self->response;

        return if $condition->($response);

        if ($response->complete) {
            croak "the response ended without $what:\n" . $self->_shown;
        }

        next if $self->_read;

        if ($self->{closed}) {
            next if $response->complete || $condition->($response);
            croak "the connection ended ($self->{closed}) before $what:\n"
                  . $self->_shown;
        }

        readable($self->{fh}, $deadline)
            or croak "waited in vain for $what; so far:\n" . $self->_shown;
    }
}


sub _shown {
    my ($self) = @_;
    my $text = $self->{raw};

    $text = '[...]' . substr($text, -4000) if length $text > 4000;

    return $text;
}


1;

__END__

=head1 NAME

Kontext::Client - a raw HTTP/1.1 client on one connection

=head1 SYNOPSIS

    my $c = Kontext::Client->new(port => $nginx->port);

    $c->post_json('/v1/chat/completions', { ... }, 'X-User-Id' => 'u1');
    is($c->read_head->status, 200);
    $c->read_until(qr/Hello/);          # the decoded body, as it grows
    my $res = $c->read_response;        # Kontext::HTTP, complete

    $c->get('/again');                  # the same connection
    is($c->read_response->status, 200);

=head1 METHODS

    $c->send($bytes)                    # as they are; also in many pieces
    $c->request($method, $uri, $body, 'Name' => 'value', ...)
    $c->get($uri, ...)  $c->post_json($uri, $data_or_string, ...)

    $c->read_head  $c->read_until(qr/.../)  $c->read_response
    $c->response                        # the one being read
    $c->peek                            # the same, with all that is there now
    $c->wait_closed                     # "eof" or "reset"
    $c->is_open
    $c->raw                             # every byte that came, undecoded

    $c->shutdown  $c->close  $c->reset  # half-close, close, RST

The waits take a timeout in seconds as their last argument and die with what
has come so far when it is over, when the answer ends without what is waited
for, or when the connection does.

=cut
