package H2;

# Copyright (C) the ngx_http_kontext_module authors
#
# As much of an HTTP/2 client as several streams of one connection take.

use strict;
use warnings;

use IO::Socket::INET ();
use Socket qw(SOL_SOCKET SO_RCVBUF inet_aton pack_sockaddr_in);

use Kontext::Wait qw(wait_until);


# rcvbuf => bytes, for a client that does not read and is soon full

sub new {
    my ($class, %args) = @_;
    my $fh = IO::Socket::INET->new(Proto => 'tcp') or die "socket: $@";

    setsockopt($fh, SOL_SOCKET, SO_RCVBUF, $args{rcvbuf}) if $args{rcvbuf};

    $fh->connect(pack_sockaddr_in($args{port}, inet_aton('127.0.0.1')))
        or die "connect: $!";

    $fh->blocking(0);

    my $self = bless { fh => $fh, in => '', next => 1 }, $class;

    # windows beyond anything the tests read

    $self->_send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                 . _frame(4, 0, 0, pack('nN', 4, 0x3fffffff))
                 . _frame(8, 0, 0, pack('N', 0x3fffffff)));

    return $self;
}


sub post {
    my ($self, $path, $body) = @_;
    my $stream = $self->{next};
    my @headers = (':method', 'POST', ':scheme', 'http', ':path', $path,
                   ':authority', 'localhost', 'content-type',
                   'application/json', 'content-length', length $body);

    $self->{next} += 2;
    $self->_send(_frame(1, 4, $stream,
                        pack('(x C/a* C/a*)*', @headers))
                 . _frame(0, 1, $stream, $body));

    return $stream;
}


sub get {
    my ($self, $path) = @_;
    my $stream = $self->{next};
    my @headers = (':method', 'GET', ':scheme', 'http', ':path', $path,
                   ':authority', 'localhost');

    $self->{next} += 2;
    $self->_send(_frame(1, 5, $stream, pack('(x C/a* C/a*)*', @headers)));

    return $stream;
}


sub cancel {
    my ($self, $stream) = @_;

    $self->_send(_frame(3, 0, $stream, pack('N', 8)));
}


sub peek {
    my ($self, $stream) = @_;

    $self->_read;

    return $self->{body}{$stream} // '';
}


sub read_until {
    my ($self, $stream, $re) = @_;

    wait_until("$re in stream $stream", sub { $self->peek($stream) =~ $re });
}


sub read_response {
    my ($self, $stream) = @_;

    wait_until("the end of stream $stream",
               sub { $self->_read; $self->{done}{$stream} });

    return $self->{body}{$stream} // '';
}


sub close { close($_[0]{fh}) }


sub _frame {
    my ($type, $flags, $stream, $payload) = @_;

    return substr(pack('N', length $payload), 1)
           . pack('CCN', $type, $flags, $stream) . $payload;
}


sub _send {
    my ($self, $bytes) = @_;

    $self->{fh}->blocking(1);
    syswrite($self->{fh}, $bytes) == length $bytes or die "send: $!";
    $self->{fh}->blocking(0);
}


sub _read {
    my ($self) = @_;

    while (sysread($self->{fh}, $self->{in}, 65536, length $self->{in})) { }

    while (length $self->{in} >= 9) {
        my $len = unpack('N', "\0" . substr($self->{in}, 0, 3));

        last if length $self->{in} < 9 + $len;

        my (undef, $type, $flags, $stream, $payload)
            = unpack("a3 C C N a$len", substr($self->{in}, 0, 9 + $len, ''));

        if ($type == 0) {
            $self->{body}{$stream} .= $payload;

        } elsif ($type == 3) {
            die "stream $stream was reset\n";

        } elsif ($type == 4 && !($flags & 1)) {
            $self->_send(_frame(4, 1, 0, ''));

        } elsif ($type == 7) {
            die "the server gave up: " . unpack('x4N', $payload) . "\n";
        }

        $self->{done}{$stream} = 1 if $type <= 1 && $flags & 1;
    }
}


1;
