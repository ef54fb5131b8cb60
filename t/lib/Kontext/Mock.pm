package Kontext::Mock;

# Copyright (C) the ngx_http_kontext_module authors
#
# A scripted HTTP server.  The server is a process of its own, so it accepts
# and reads whatever the test is doing; the test tells it over a socket pair
# which bytes to send when, and hears from it what happened.

use strict;
use warnings;

use Carp qw(croak);
use IO::Handle ();
use IO::Socket::INET ();
use JSON::PP ();
use POSIX ();
use Scalar::Util ();
use Socket qw(AF_UNIX PF_UNSPEC SOCK_STREAM SOL_SOCKET SO_LINGER SHUT_WR
              IPPROTO_TCP TCP_NODELAY);

use Kontext::HTTP ();
use Kontext::Wait qw(deadline left readable);

use constant {
    REQUEST_MAX => 64 * 1024 * 1024,
    READ_SIZE   => 64 * 1024,
};

my %REASON = (
    200 => 'OK', 201 => 'Created', 204 => 'No Content', 302 => 'Found',
    400 => 'Bad Request', 401 => 'Unauthorized', 403 => 'Forbidden',
    404 => 'Not Found', 429 => 'Too Many Requests',
    500 => 'Internal Server Error', 502 => 'Bad Gateway',
    503 => 'Service Unavailable',
);

my %LIVE;


# the test's side

sub new {
    my ($class, %args) = @_;
    my $name = $args{name} // 'mock';

    my $listener = IO::Socket::INET->new(
        Listen    => 128,
        LocalAddr => '127.0.0.1',
        LocalPort => $args{port} // 0,
        ReuseAddr => 1,
    ) or croak "$name: listen: $@";

    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
        or croak "$name: socketpair: $!";

    my $port = $listener->sockport;

    STDOUT->flush;
    STDERR->flush;

    my $pid = fork() // croak "$name: fork: $!";

    if ($pid == 0) {
        # the other mocks end when the test closes its end of their channel,
        # so no copy of it may live on here

        close($_->{control}) foreach grep { defined } values %LIVE;
        %LIVE = ();
        close($ours);

        eval {
            Kontext::Mock::Server->new($listener, $theirs, $port)->run;
            1;
        } or print STDERR "mock server $name: $@";

        POSIX::_exit(0);
    }

    close($theirs);
    close($listener);

    my $self = bless {
        name     => $name,
        port     => $port,
        pid      => $pid,
        owner    => $$,
        control  => $ours,
        in       => '',
        requests => [],
        taken    => 0,
        conns    => {},
        pings    => 0,
        pongs    => 0,
    }, $class;

    $LIVE{$pid} = $self;
    Scalar::Util::weaken($LIVE{$pid});

    return $self;
}


# an ad server which fills every preload; %args as in bid()

sub ad_server {
    my ($class, %args) = @_;
    my $self = $class->new(name => 'ad server');

    $self->on('/init', 200, { enabled => JSON::PP::true(),
                              preloadTimeout => 16000 });
    $self->on('/preload', 200, $self->bid(%args));
    $self->on('/error', 204);
    $self->on('/debug', 204);

    return $self;
}


# a filled answer to /preload

sub bid {
    my ($class, %args) = @_;

    return {
        sessionId => $args{sessionId}
                     // '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913',
        bids => [
            {
                bidId   => $args{bidId}
                           // '7c9e6679-7425-40de-944b-e07fc1f90ae7',
                code    => $args{code} // 'inlineAd',
                revenue => $args{revenue} // 0.0042,
            },
        ],
    };
}


sub port { $_[0]{port} }
sub addr { "127.0.0.1:$_[0]{port}" }
sub pid { $_[0]{pid} }


# from now on requests of this path are answered without the test's help:
# on(path, status, body, header => value ...); the path may be a qr//

sub on {
    my ($self, $path, $status, $body, @headers) = @_;

    $self->on_actions($path,
                      [ send => $self->response($status, $body, @headers) ]);
}


# on_actions(path, [ send => bytes ], [ close => ], [ reset => ] ...)

sub on_actions {
    my ($self, $path, @actions) = @_;
    my $pattern = ref $path ? "$path" : quotemeta($path);

    $self->_command('rule', $pattern, map { $_->[0], $_->[1] // '' } @actions);
    $self->sync;
}


# requests of this path wait for the test again

sub hold {
    my ($self, $path) = @_;
    my $pattern = ref $path ? "$path" : quotemeta($path);

    $self->_command('norule', $pattern);
    $self->sync;
}


# connections are refused / taken again, on the same port

sub refuse { $_[0]->_command('refuse'); $_[0]->sync }
sub listen { $_[0]->_command('listen'); $_[0]->sync }


# a whole response in bytes; a reference as a body is sent as JSON

sub response {
    my ($class, $status, $body, @headers) = @_;
    my $text = "HTTP/1.1 $status " . ($REASON{$status} // 'Status') . "\r\n";
    my %seen = map { lc($_) => 1 } @headers[grep { $_ % 2 == 0 } 0 .. $#headers];

    if (ref $body) {
        $body = JSON::PP->new->utf8->canonical->encode($body);
        unshift @headers, 'Content-Type', 'application/json'
            if !$seen{'content-type'};
    }

    $body //= '';

    push @headers, 'Content-Length', length($body)
        if $status != 204 && !$seen{'content-length'}
           && !$seen{'transfer-encoding'};

    while (my ($name, $value) = splice(@headers, 0, 2)) {
        $text .= "$name: $value\r\n";
    }

    return "$text\r\n$body";
}


# the next request which no wait_request() has returned yet; with path =>
# (string or qr//) the next one of that path

sub wait_request {
    my ($self, %args) = @_;
    my $path = $args{path};

    return $self->_wait("a request" . (defined $path ? " of $path" : ''),
                        sub {
        foreach my $req (@{$self->{requests}}) {
            next if $req->{taken};
            next if defined $path
                    && (ref $path ? $req->path !~ $path
                                  : $req->path ne $path);

            $req->{taken} = 1;
            return $req;
        }

        return;
    }, $args{timeout});
}


# all requests up to now, in the order of their arrival, oldest first;
# complete in the sense of sync()

sub requests {
    my ($self, $path) = @_;

    $self->sync;

    return grep { !defined $path
                  || (ref $path ? $_->path =~ $path : $_->path eq $path) }
                @{$self->{requests}};
}


# connections accepted up to now, and those of them open still

sub accepted { $_[0]->sync; return scalar keys %{$_[0]{conns}} }

sub open_connections {
    my ($self) = @_;

    $self->sync;

    return scalar grep { !$_->{closed} } values %{$self->{conns}};
}


# waits until the n-th connection (from 1) is there

sub wait_accepted {
    my ($self, $n, $timeout) = @_;

    return $self->_wait("connection $n",
                        sub { $self->{conns}{$n} }, $timeout);
}


# when this returns, everything the kernel had for the server before the
# call has been read and reported

sub sync {
    my ($self) = @_;
    my $ping = ++$self->{pings};

    $self->_command('ping', $ping);
    $self->_wait('the mock server', sub { $self->{pongs} >= $ping });

    return $self;
}


sub stop {
    my ($self) = @_;

    return if !$self->{pid} || $self->{owner} != $$;

    local ($?, $!);

    delete $LIVE{$self->{pid}};
    close($self->{control});
    kill('TERM', $self->{pid});
    waitpid($self->{pid}, 0);
    $self->{pid} = 0;

    return;
}


sub DESTROY { $_[0]->stop }


sub _command {
    my ($self, @fields) = @_;
    my $frame = pack('N/a*', pack('(N/a*)*', @fields));

    local $SIG{PIPE} = 'IGNORE';

    while (length $frame) {
        my $n = syswrite($self->{control}, $frame);

        if (!defined $n) {
            next if $!{EINTR};
            croak "$self->{name}: the mock server is gone: $!";
        }

        substr($frame, 0, $n, '');
    }

    return;
}


sub _wait {
    my ($self, $what, $condition, $timeout) = @_;
    my $deadline = deadline($timeout);

    while (1) {
        my $value = $condition->();

        return $value if $value;

        if (!readable($self->{control}, $deadline)) {
            croak "$self->{name}: waited in vain for $what; seen so far: "
                  . $self->_history;
        }

        $self->_read;
    }
}


sub _history {
    my ($self) = @_;

    return join('; ', map { "$_->{method} $_->{uri}"
                            . ($_->{taken} ? '' : ' (not taken)') }
                          @{$self->{requests}})
           || 'nothing';
}


sub _read {
    my ($self) = @_;
    my $n = sysread($self->{control}, $self->{in}, READ_SIZE,
                    length $self->{in});

    if (!defined $n) {
        return if $!{EINTR};
        croak "$self->{name}: control channel: $!";
    }

    croak "$self->{name}: the mock server is gone" if $n == 0;

    while (length $self->{in} >= 4) {
        my $len = unpack('N', $self->{in});

        last if length $self->{in} < 4 + $len;

        my $frame = substr($self->{in}, 0, 4 + $len, '');

        $self->_event(unpack('(N/a*)*', substr($frame, 4)));
    }

    return;
}


sub _event {
    my ($self, $name, @args) = @_;

    if ($name eq 'pong') {
        $self->{pongs} = $args[0];
        return;
    }

    if ($name eq 'accepted') {
        $self->{conns}{$args[0]}
            = bless { id => $args[0], mock => $self, sent => 0, acked => 0 },
                    'Kontext::Mock::Connection';
        Scalar::Util::weaken($self->{conns}{$args[0]}{mock});
        return;
    }

    my $conn = $self->{conns}{$args[0]};

    if ($name eq 'request') {
        my $buf = $args[1];
        my $req = Kontext::HTTP->new(kind => 'request');

        $req->feed(\$buf);
        $req->{body} = $args[2];
        $req->{state} = 'done';
        $req->{conn} = $conn;
        $req->{answered} = $args[3];

        push @{$self->{requests}}, bless $req, 'Kontext::Mock::Request';

    } elsif ($name eq 'closed') {
        $conn->{closed} = $args[1];

    } elsif ($name eq 'sent') {
        $conn->{acked} = $args[1];

    } else {
        croak "$self->{name}: $name: $args[1]";
    }

    return;
}


package Kontext::Mock::Connection;

use strict;
use warnings;


# bytes as they are

sub send {
    my ($self, @pieces) = @_;

    foreach my $piece (@pieces) {
        $self->{mock}->_command('send', $self->{id}, ++$self->{sent}, $piece);
    }

    return $self;
}


# waits until the kernel has taken every byte

sub wait_sent {
    my ($self, $timeout) = @_;

    $self->{mock}->_wait('the bytes to be taken',
                         sub { $self->{closed}
                               || $self->{acked} >= $self->{sent} },
                         $timeout);

    return $self;
}


# after the bytes sent so far: a normal close, a close of our direction only,
# a reset

sub close { $_[0]{mock}->_command('close', $_[0]{id}); return $_[0] }
sub shutdown { $_[0]{mock}->_command('shutdown', $_[0]{id}); return $_[0] }
sub reset { $_[0]{mock}->_command('reset', $_[0]{id}); return $_[0] }


# "eof", "reset", or "us" when we closed it

sub wait_closed {
    my ($self, $timeout) = @_;

    return $self->{mock}->_wait('the peer to close',
                                sub { $self->{closed} }, $timeout);
}


sub closed { $_[0]{mock}->sync; return $_[0]{closed} }
sub id { $_[0]{id} }


package Kontext::Mock::Request;

use strict;
use warnings;

our @ISA = ('Kontext::HTTP');


sub conn { $_[0]{conn} }
sub send { my $self = shift; $self->{conn}->send(@_); return $self }
sub close { $_[0]{conn}->close; return $_[0] }
sub reset { $_[0]{conn}->reset; return $_[0] }
sub shutdown { $_[0]{conn}->shutdown; return $_[0] }
sub wait_sent { my $self = shift; $self->{conn}->wait_sent(@_); return $self }
sub wait_closed { my $self = shift; return $self->{conn}->wait_closed(@_) }
sub closed { $_[0]{conn}->closed }


# a rule of on() answered it

sub answered { $_[0]{answered} }


# the whole answer at once: respond(status, body, header => value ...)

sub respond {
    my ($self, @args) = @_;

    return $self->send(Kontext::Mock->response(@args));
}


# the head of an answer whose body follows in chunk(), event() and finish()

sub start {
    my ($self, $status, @headers) = @_;

    push @headers, 'Content-Type', 'text/event-stream'
        if !grep { lc($_) eq 'content-type' } @headers;

    return $self->send(Kontext::Mock->response($status // 200, '', @headers,
                                               'Transfer-Encoding',
                                               'chunked'));
}


# each argument is one chunk

sub chunk {
    my ($self, @pieces) = @_;

    return $self->send(map { sprintf("%x\r\n%s\r\n", length($_), $_) }
                           @pieces);
}


# each argument is the data of one server-sent event

sub event {
    my ($self, @data) = @_;

    return $self->chunk(map { "data: $_\n\n" } @data);
}


sub finish { return $_[0]->send("0\r\n\r\n") }


package Kontext::Mock::Server;

# The server's side, in the child.  It never blocks: neither on a connection
# nor on the test, which may be busy elsewhere.

use strict;
use warnings;

use Socket qw(SOL_SOCKET SO_LINGER SHUT_WR IPPROTO_TCP TCP_NODELAY);


sub new {
    my ($class, $listener, $control, $port) = @_;

    $_->blocking(0) foreach $listener, $control;

    return bless {
        listener => $listener,
        control  => $control,
        port     => $port,
        in       => '',
        out      => '',
        conns    => {},
        rules    => [],
        pings    => [],
        last     => 0,
    }, $class;
}


sub run {
    my ($self) = @_;

    $SIG{PIPE} = 'IGNORE';
    $SIG{TERM} = sub { POSIX::_exit(0) };
    $SIG{INT} = 'IGNORE';

    while (1) {
        my $busy = $self->_turn(@{$self->{pings}} ? 0 : undef);

        # nothing was ready at all: everything before the ping is reported

        if (!$busy) {
            $self->_report('pong', $_) foreach @{$self->{pings}};
            $self->{pings} = [];
        }
    }
}


sub _turn {
    my ($self, $timeout) = @_;
    my ($rd, $wr) = ('', '');
    my $busy = 0;

    vec($rd, fileno($self->{control}), 1) = 1;
    vec($wr, fileno($self->{control}), 1) = 1 if length $self->{out};
    vec($rd, fileno($self->{listener}), 1) = 1 if $self->{listener};

    foreach my $conn (values %{$self->{conns}}) {
        my $fd = fileno($conn->{fh});

        vec($rd, $fd, 1) = 1 if !$conn->{eof};
        vec($wr, $fd, 1) = 1 if @{$conn->{out}};
    }

    my $n = select($rd, $wr, undef, $timeout);

    if ($n < 0) {
        return 1 if $!{EINTR};
        die "select: $!\n";
    }

    return 0 if $n == 0;

    if (length $self->{out} && vec($wr, fileno($self->{control}), 1)) {
        my $sent = syswrite($self->{control}, $self->{out});

        if (defined $sent) {
            substr($self->{out}, 0, $sent, '');

        } elsif (!$!{EAGAIN} && !$!{EINTR}) {
            POSIX::_exit(0);
        }

        # a channel which the test does not read now must not keep its ping
        # waiting, so this does not count as business
    }

    foreach my $conn (sort { $a->{id} <=> $b->{id} }
                           values %{$self->{conns}})
    {
        my $fd = fileno($conn->{fh});

        if (@{$conn->{out}} && vec($wr, $fd, 1)) {
            $busy = 1;
            $self->_write($conn);
            next if $conn->{gone};
        }

        if (!$conn->{eof} && vec($rd, $fd, 1)) {
            $busy = 1;
            $self->_read($conn);
        }
    }

    if ($self->{listener} && vec($rd, fileno($self->{listener}), 1)) {
        $busy = 1;
        $self->_accept;
    }

    if (vec($rd, fileno($self->{control}), 1)) {
        $busy = 1;
        $self->_control;
    }

    return $busy;
}


sub _report {
    my ($self, @fields) = @_;

    $self->{out} .= pack('N/a*', pack('(N/a*)*', @fields));
}


sub _accept {
    my ($self) = @_;

    while (my $fh = $self->{listener}->accept) {
        my $id = ++$self->{last};

        $fh->blocking(0);
        setsockopt($fh, IPPROTO_TCP, TCP_NODELAY, 1);

        $self->{conns}{$id} = { id => $id, fh => $fh, in => '', out => [] };
        $self->_report('accepted', $id);
    }
}


sub _read {
    my ($self, $conn) = @_;
    my $n = sysread($conn->{fh}, $conn->{in}, Kontext::Mock::READ_SIZE,
                    length $conn->{in});

    if (!defined $n) {
        return if $!{EAGAIN} || $!{EINTR};
        $self->_drop($conn, 'reset');
        return;
    }

    if ($n == 0) {
        # our direction may have bytes to send still

        $conn->{eof} = 1;
        $self->_report('closed', $conn->{id}, 'eof');
        $self->_drop($conn) if !@{$conn->{out}};
        return;
    }

    while (length $conn->{in}) {
        my $req = $conn->{req} //= Kontext::HTTP->new(kind => 'request');

        if (!eval { $req->feed(\$conn->{in}); 1 }) {
            $self->_report('broken request', $conn->{id}, $@);
            $self->_drop($conn, 'us');
            return;
        }

        if (length($req->body) + length($conn->{in})
            > Kontext::Mock::REQUEST_MAX)
        {
            $self->_report('huge request', $conn->{id}, '');
            $self->_drop($conn, 'us');
            return;
        }

        last if !$req->complete;

        delete $conn->{req};

        my $rule = $self->_rule($req->path);

        $self->_report('request', $conn->{id}, $req->head . "\r\n",
                       $req->body, $rule ? 1 : 0);

        next if !$rule;

        push @{$conn->{out}}, map { [ @$_ ] } @{$rule->{actions}};
        $self->_write($conn);
        return if $conn->{gone};
    }
}


sub _rule {
    my ($self, $path) = @_;

    foreach my $rule (@{$self->{rules}}) {
        return $rule if $path =~ $rule->{re};
    }

    return;
}


sub _write {
    my ($self, $conn) = @_;

    while (@{$conn->{out}}) {
        my ($action, $data, $seq) = @{$conn->{out}[0]};

        if ($action eq 'send') {
            while (length $data) {
                my $n = syswrite($conn->{fh}, $data);

                if (!defined $n) {
                    next if $!{EINTR};

                    if ($!{EAGAIN}) {
                        $conn->{out}[0][1] = $data;
                        return;
                    }

                    $self->_drop($conn, 'reset');
                    return;
                }

                substr($data, 0, $n, '');
            }

            $self->_report('sent', $conn->{id}, $seq) if defined $seq;

        } elsif ($action eq 'shutdown') {
            shutdown($conn->{fh}, SHUT_WR);

        } else {
            setsockopt($conn->{fh}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0))
                if $action eq 'reset';

            $self->_drop($conn, 'us');
            return;
        }

        shift @{$conn->{out}};
    }

    $self->_drop($conn) if $conn->{eof};
}


sub _drop {
    my ($self, $conn, $why) = @_;

    $self->_report('closed', $conn->{id}, $why) if defined $why && !$conn->{eof};

    close($conn->{fh});
    $conn->{gone} = 1;
    delete $self->{conns}{$conn->{id}};
}


sub _control {
    my ($self) = @_;
    my $n = sysread($self->{control}, $self->{in}, Kontext::Mock::READ_SIZE,
                    length $self->{in});

    if (!defined $n) {
        return if $!{EAGAIN} || $!{EINTR};
        POSIX::_exit(0);
    }

    # the test is gone

    POSIX::_exit(0) if $n == 0;

    while (length $self->{in} >= 4) {
        my $len = unpack('N', $self->{in});

        last if length $self->{in} < 4 + $len;

        my $frame = substr($self->{in}, 0, 4 + $len, '');

        $self->_command(unpack('(N/a*)*', substr($frame, 4)));
    }
}


sub _command {
    my ($self, $name, @args) = @_;

    if ($name eq 'ping') {
        push @{$self->{pings}}, $args[0];

    } elsif ($name eq 'rule') {
        my $re = shift @args;
        my @actions;

        push @actions, [ splice(@args, 0, 2) ] while @args;

        @{$self->{rules}} = grep { $_->{text} ne $re } @{$self->{rules}};
        push @{$self->{rules}},
            { text => $re, re => qr/\A(?:$re)\z/, actions => \@actions };

    } elsif ($name eq 'norule') {
        @{$self->{rules}} = grep { $_->{text} ne $args[0] } @{$self->{rules}};

    } elsif ($name eq 'refuse') {
        close(delete $self->{listener}) if $self->{listener};

    } elsif ($name eq 'listen') {
        return if $self->{listener};

        $self->{listener} = IO::Socket::INET->new(
            Listen    => 128,
            LocalAddr => '127.0.0.1',
            LocalPort => $self->{port},
            ReuseAddr => 1,
        ) or die "listen again: $@\n";
        $self->{listener}->blocking(0);

    } else {
        my ($id, $seq, $data) = @args;
        my $conn = $self->{conns}{$id} or return;

        push @{$conn->{out}}, [ $name, $data, $seq ];
        $self->_write($conn);
    }
}


1;

__END__

=head1 NAME

Kontext::Mock - a scripted HTTP server for stream tests

=head1 SYNOPSIS

    my $llm = Kontext::Mock->new(name => 'llm');
    my $ads = Kontext::Mock->ad_server;         # fills every preload

    # ... a client sends a chat through nginx ...

    my $req = $llm->wait_request;
    is($req->path, '/v1/chat/completions');
    $req->start(200)->event(chat_chunk('Hello'));

    # ... check that the client has 'Hello' now, then go on ...

    $req->event(chat_finish(), '[DONE]')->finish;

=head1 THE SERVER

    Kontext::Mock->new(name => ..., port => ...)    # port 0: any free one
    Kontext::Mock->ad_server(bidId => ..., sessionId => ..., revenue => ...,
                             code => ...)
    $m->port  $m->addr  $m->pid

    $m->on('/init', 200, { enabled => ... }, 'X-Header' => 'value');
    $m->on_actions('/preload', [ send => $bytes ], [ 'reset' ]);
    $m->hold('/preload');       # no rule: the request waits for the test

    $m->refuse;  $m->listen;    # ECONNREFUSED from here on / no longer

    my $req = $m->wait_request(path => '/preload', timeout => 5);
    my @all = $m->requests('/preload');
    $m->accepted  $m->open_connections  $m->wait_accepted($n)
    $m->sync;
    $m->stop;                   # also when the object goes out of scope

A path is a string or a C<qr//>; either has to match all of the path, without
the query.  Later rules for the same path replace earlier ones.

C<requests>, C<accepted> and C<open_connections> call C<sync> first: when it
returns, everything that had reached the server's sockets before is known to
the test.  "The server was not asked" is therefore a test without a pause, if
the test has first seen that nginx is through with the request (see
C<barrier> in L<Kontext::Nginx>).

=head1 A REQUEST

What L<Kontext::HTTP> offers, and:

    $req->respond(200, $body_or_data, 'Name' => 'value', ...);
    $req->start(200, 'Content-Type' => ...);    # chunked; SSE by default
    $req->chunk($bytes, ...);                   # a chunk each
    $req->event($data, ...);                    # an SSE event, a chunk each
    $req->finish;                               # the last chunk
    $req->send($bytes, ...);                    # as they are, a write each
    $req->close  $req->reset  $req->shutdown    # after what was sent
    $req->wait_sent                             # the kernel has the bytes
    $req->wait_closed                           # "eof", "reset" or "us"
    $req->closed  $req->answered  $req->conn

The calls return the request, so they can be chained.  Without a Content-Type
in the way, C<respond> sends data (a reference) as JSON.

=cut
