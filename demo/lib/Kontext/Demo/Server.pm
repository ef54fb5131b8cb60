package Kontext::Demo::Server;

# Copyright (C) the ngx_http_kontext_module authors
#
# A small HTTP/1.1 server for the demo: one process, one select() loop,
# keep-alive, chunked answers, timers.  It listens on 127.0.0.1 only, and ends
# with the process that started it.

use strict;
use warnings;

use IO::Handle ();
use IO::Socket::INET ();
use JSON::PP ();
use Socket qw(IPPROTO_TCP TCP_NODELAY);
use Time::HiRes ();

use constant {
    MAX_CONNECTIONS => 256,
    MAX_HEAD        => 32 * 1024,
    MAX_OUT         => 1024 * 1024,
    READ_SIZE       => 64 * 1024,
    IDLE            => 75,              # s
    PARENT_CHECK    => 1,               # s
};

my %REASON = (
    200 => 'OK', 204 => 'No Content', 400 => 'Bad Request',
    404 => 'Not Found', 405 => 'Method Not Allowed',
    408 => 'Request Timeout', 411 => 'Length Required',
    413 => 'Content Too Large', 415 => 'Unsupported Media Type',
    431 => 'Request Header Fields Too Large', 500 => 'Internal Server Error',
    501 => 'Not Implemented',
);


# port, max_body, handler => sub ($request); prints its URL when it listens

sub run {
    my ($class, %args) = @_;

    my $listener = IO::Socket::INET->new(
        Listen    => 128,
        LocalAddr => '127.0.0.1',
        LocalPort => $args{port},
        ReuseAddr => 1,
        Blocking  => 0,
    ) or die "listen on 127.0.0.1:$args{port}: $@\n";

    my $self = bless {
        %args,
        listener => $listener,
        conns    => {},
        timers   => [],
        parent   => getppid(),
    }, $class;

    $SIG{PIPE} = 'IGNORE';
    $SIG{TERM} = $SIG{INT} = $SIG{HUP} = sub { exit 0 };

    STDOUT->autoflush(1);
    STDERR->autoflush(1);
    print 'http://127.0.0.1:' . $listener->sockport . "\n";

    $self->_watch_parent;
    $self->_turn while 1;
}


# calls the sub once, in so many seconds

sub after {
    my ($self, $seconds, $sub) = @_;
    my $timer = { at => Time::HiRes::time() + $seconds, sub => $sub };
    my $timers = $self->{timers};
    my $i = @$timers;

    $i-- while $i > 0 && $timers->[$i - 1]{at} > $timer->{at};
    splice(@$timers, $i, 0, $timer);

    return;
}


sub _watch_parent {
    my ($self) = @_;

    exit 0 if getppid() != $self->{parent};

    my $idle = Time::HiRes::time() - IDLE;

    $self->_close($_) foreach grep { !$_->{request} && $_->{used} < $idle }
                                   values %{$self->{conns}};

    $self->after(PARENT_CHECK, sub { $self->_watch_parent });
}


sub _turn {
    my ($self) = @_;
    my ($rd, $wr) = ('', '');
    my $wait = $self->{timers}[0]{at} - Time::HiRes::time();

    vec($rd, fileno($self->{listener}), 1) = 1
        if keys %{$self->{conns}} < MAX_CONNECTIONS;

    foreach my $conn (values %{$self->{conns}}) {
        my $fd = fileno($conn->{fh});

        vec($rd, $fd, 1) = 1 if length $conn->{in} < READ_SIZE;
        vec($wr, $fd, 1) = 1 if length $conn->{out};
    }

    my $n = select($rd, $wr, undef, $wait > 0 ? $wait : 0);

    if ($n > 0) {
        foreach my $conn (values %{$self->{conns}}) {
            my $fd = fileno($conn->{fh});

            $self->_write($conn) if vec($wr, $fd, 1);
            $self->_read($conn) if !$conn->{closed} && vec($rd, $fd, 1);
        }

        $self->_accept if vec($rd, fileno($self->{listener}), 1);
    }

    my $now = Time::HiRes::time();

    while (@{$self->{timers}} && $self->{timers}[0]{at} <= $now) {
        (shift @{$self->{timers}})->{sub}->();
    }
}


sub _accept {
    my ($self) = @_;

    while (keys %{$self->{conns}} < MAX_CONNECTIONS) {
        my $fh = $self->{listener}->accept or return;

        $fh->blocking(0);
        setsockopt($fh, IPPROTO_TCP, TCP_NODELAY, 1);

        $self->{conns}{fileno($fh)} = {
            fh   => $fh,
            in   => '',
            out  => '',
            used => Time::HiRes::time(),
        };
    }
}


sub _close {
    my ($self, $conn) = @_;

    return if $conn->{closed};

    delete $self->{conns}{fileno($conn->{fh})};
    close($conn->{fh});
    $conn->{closed} = 1;
}


sub _read {
    my ($self, $conn) = @_;
    my $n = sysread($conn->{fh}, $conn->{in}, READ_SIZE, length $conn->{in});

    return if !defined $n && ($!{EAGAIN} || $!{EINTR});

    if (!$n) {
        $self->_close($conn);
        return;
    }

    $conn->{used} = Time::HiRes::time();
    $self->_requests($conn);
}


# one request at a time; a pipelined one waits in the buffer

sub _requests {
    my ($self, $conn) = @_;

    while (!$conn->{closed} && !$conn->{request} && length $conn->{in}) {
        my $request = $conn->{reading};

        if (!$request) {
            $conn->{in} =~ s/\A(?:\r?\n)+//;

            if ($conn->{in} !~ s/\A(.{1,@{[MAX_HEAD]}}?)\r?\n\r?\n//s) {
                return if length $conn->{in} <= MAX_HEAD;
                return $self->_refuse($conn, 431);
            }

            $request = $conn->{reading} = $self->_head($conn, $1) or return;
        }

        if ($request->{chunked}) {
            my $more = $self->_chunks($conn, $request);

            return $self->_refuse($conn, $more) if $more > 1;
            return if $more;

        } else {
            my $rest = $request->{length} - length $request->{body};

            $request->{body} .= substr($conn->{in}, 0, $rest, '');
            return if length $request->{body} < $request->{length};
        }

        delete $conn->{reading};
        $conn->{request} = $request;

        if (!eval { $self->{handler}->($request); 1 }) {
            print STDERR "$request->{method} $request->{path}: $@";

            if ($request->{started}) {
                $self->_close($conn);

            } else {
                $request->respond(500);
            }
        }
    }
}


sub _head {
    my ($self, $conn, $head) = @_;
    my ($start, @lines) = split /\r?\n/, $head;
    my %headers;

    $start =~ m{\A([A-Z]+) (/[^ ?]*)(?:\?([^ ]*))? HTTP/1\.([01])\z}
        or return $self->_refuse($conn, 400);

    my ($method, $path, $args, $minor) = ($1, $2, $3 // '', $4);

    foreach my $line (@lines) {
        $line =~ /\A([^:\s]+):[ \t]*(.*?)[ \t]*\z/
            or return $self->_refuse($conn, 400);
        $headers{lc $1} = $2;
    }

    my $length = $headers{'content-length'} // 0;
    my $chunked = 0;

    if (defined(my $coding = $headers{'transfer-encoding'})) {
        return $self->_refuse($conn, 501) if lc($coding) ne 'chunked';
        $chunked = 1;
    }

    return $self->_refuse($conn, 400) if $length !~ /\A\d{1,12}\z/;
    return $self->_refuse($conn, 413) if $length > $self->{max_body};

    if (lc($headers{expect} // '') eq '100-continue') {
        $conn->{out} .= "HTTP/1.1 100 Continue\r\n\r\n";
        $self->_write($conn);
    }

    my $connection = lc($headers{connection} // '');

    return Kontext::Demo::Request->new(
        server  => $self,
        conn    => $conn,
        method  => $method,
        path    => $path,
        args    => $args,
        minor   => $minor,
        headers => \%headers,
        length  => $length,
        chunked => $chunked,
        body    => '',
        alive   => $minor == 1 ? $connection ne 'close'
                               : $connection eq 'keep-alive',
    );
}


# 0: the body is complete, 1: more is needed, else the status to refuse with

sub _chunks {
    my ($self, $conn, $request) = @_;

    while (1) {
        if ($request->{trailers}) {
            $conn->{in} =~ s/\A([^\n]{0,1024})\n//
                or return length $conn->{in} > 1024 ? 400 : 1;
            return 0 if $1 eq "\r" || $1 eq '';

        } elsif ($request->{rest}) {
            my $piece = substr($conn->{in}, 0, $request->{rest}, '');

            $request->{body} .= $piece;
            $request->{rest} -= length $piece;
            return 1 if $request->{rest};
            $request->{line_end} = 1;

        } elsif ($request->{line_end}) {
            $conn->{in} =~ s/\A\r?\n// or return length $conn->{in} > 1
                                                 ? 400 : 1;
            $request->{line_end} = 0;

        } else {
            $conn->{in} =~ s/\A([0-9a-fA-F]{1,8})(?:;[^\n]{0,256})?\r?\n//
                or return length $conn->{in} > 300 ? 400 : 1;
            $request->{rest} = hex($1);
            $request->{trailers} = 1 if !$request->{rest};

            return 413 if $request->{rest} + length $request->{body}
                          > $self->{max_body};
        }
    }
}


# an answer to what is no proper request, and the end of the connection

sub _refuse {
    my ($self, $conn, $status) = @_;

    $conn->{in} = '';
    $conn->{last} = 1;
    $conn->{out} .= "HTTP/1.1 $status $REASON{$status}\r\n"
                    . "Content-Length: 0\r\nConnection: close\r\n\r\n";
    $self->_write($conn);

    return;
}


sub _write {
    my ($self, $conn) = @_;

    return if $conn->{closed};

    if (length $conn->{out}) {
        my $n = syswrite($conn->{fh}, $conn->{out});

        if (defined $n) {
            substr($conn->{out}, 0, $n, '');
            $conn->{used} = Time::HiRes::time();

        } elsif (!$!{EAGAIN} && !$!{EINTR}) {
            return $self->_close($conn);
        }
    }

    if (!length $conn->{out}) {
        $self->_close($conn) if $conn->{last};

    } elsif (length $conn->{out} > MAX_OUT) {
        # a reader that does not read

        $self->_close($conn);
    }
}


package Kontext::Demo::Request;

use strict;
use warnings;


sub new {
    my ($class, %args) = @_;

    return bless { %args }, $class;
}


sub method { $_[0]{method} }
sub path { $_[0]{path} }
sub body { $_[0]{body} }
sub header { $_[0]{headers}{lc $_[1]} }
sub server { $_[0]{server} }

# nobody is there to read the answer any more

sub gone { $_[0]{conn}{closed} }


# an argument of the query, decoded

sub arg {
    my ($self, $name) = @_;

    foreach my $pair (split /&/, $self->{args}) {
        my ($key, $value) = split /=/, $pair, 2;

        next if $key ne $name;

        $value //= '';
        $value =~ tr/+/ /;
        $value =~ s/%([0-9a-fA-F]{2})/chr(hex($1))/ge;

        return $value;
    }

    return;
}


# a whole answer; a reference as its body is sent as JSON

sub respond {
    my ($self, $status, $body, %headers) = @_;

    if (ref $body) {
        $body = JSON::PP->new->utf8->canonical->encode($body);
        $headers{'Content-Type'} //= 'application/json';
    }

    $body //= '';
    $headers{'Content-Length'} = length $body if $status != 204;

    $self->_head($status, \%headers);
    $self->_out($body) if $self->{method} ne 'HEAD';
    $self->_done;

    return;
}


# an answer in pieces: start(), write() ..., end()

sub start {
    my ($self, $status, %headers) = @_;

    if ($self->{minor} == 1) {
        $headers{'Transfer-Encoding'} = 'chunked';

    } else {
        $self->{alive} = 0;
    }

    $self->_head($status, \%headers);
}


sub write {
    my ($self, $bytes) = @_;

    $self->_out($self->{minor} == 1
                ? sprintf("%x\r\n%s\r\n", length $bytes, $bytes) : $bytes);
}


sub end {
    my ($self) = @_;

    $self->_out("0\r\n\r\n") if $self->{minor} == 1;
    $self->_done;
}


sub _head {
    my ($self, $status, $headers) = @_;
    my $reason = $REASON{$status} // 'Status';
    my $text = "HTTP/1.1 $status $reason\r\n";

    $headers->{Connection} = $self->{alive} ? 'keep-alive' : 'close';
    $text .= "$_: $headers->{$_}\r\n" foreach sort keys %$headers;

    $self->{started} = 1;
    $self->_out("$text\r\n");
}


sub _out {
    my ($self, $bytes) = @_;
    my $conn = $self->{conn};

    return if $conn->{closed};

    $conn->{out} .= $bytes;
    $self->{server}->_write($conn);
}


sub _done {
    my ($self) = @_;
    my $conn = $self->{conn};

    delete $conn->{request};

    return if $conn->{closed};

    if ($self->{alive}) {
        # the next one may be in the buffer already, and this one's handler
        # on the stack still

        $self->{server}->after(0, sub {
            $self->{server}->_requests($conn);
        }) if length $conn->{in};

    } else {
        $conn->{last} = 1;
        $self->{server}->_write($conn);
    }
}


1;
