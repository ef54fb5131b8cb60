package Kontext::Nginx;

# Copyright (C) the ngx_http_kontext_module authors
#
# Runs the nginx under test in a directory of its own and looks at its logs
# afterwards.

use strict;
use warnings;

use Carp qw(croak);
use Cwd ();
use File::Temp ();
use IO::Socket::INET ();
use POSIX qw(WNOHANG);
use Scalar::Util ();
use Test::More ();

use Kontext::Client ();
use Kontext::Wait qw(wait_until);

use constant {
    START_TRIES => 20,
    PORT_MIN    => 12000,
    PORT_RANGE  => 18000,
};

my %LIVE;

my $SANITIZER = qr/(?:Address|Leak|Thread|Memory|UndefinedBehavior)Sanitizer
                   |\bruntime[ ]error:/x;


sub new {
    my ($class, %args) = @_;

    my $self = bless {
        name    => $args{name} // 'nginx',
        args    => { %args },
        dir     => File::Temp::tempdir('kontext-nginx-XXXXXX', TMPDIR => 1),
        binary  => $args{binary} // $ENV{TEST_NGINX_BINARY} // _find(),
        modules => $args{modules}
                   // [ split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '' ],
        workers => $args{workers} // 1,
        owner   => $$,
    }, $class;

    # with a master as root the workers run as somebody else

    chmod(0755, $self->{dir});
    mkdir("$self->{dir}/$_") foreach 'logs', 'temp', 'html', 'conf';

    while (my ($file, $content) = each %{$args{files} // {}}) {
        $self->write_file($file, $content);
    }

    $LIVE{Scalar::Util::refaddr($self)} = $self;
    Scalar::Util::weaken($LIVE{Scalar::Util::refaddr($self)});

    $self->_start;

    return $self;
}


# the result of "nginx -t" of the same arguments: (true or false, output)

sub test_config {
    my ($class, %args) = @_;

    my $self = bless {
        name    => 'nginx -t',
        args    => { %args },
        dir     => File::Temp::tempdir('kontext-nginx-XXXXXX', TMPDIR => 1,
                                       CLEANUP => 1),
        binary  => $args{binary} // $ENV{TEST_NGINX_BINARY} // _find(),
        modules => $args{modules}
                   // [ split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '' ],
        workers => 1,
        owner   => 0,
    }, $class;

    mkdir("$self->{dir}/$_") foreach 'logs', 'temp', 'html', 'conf';

    while (my ($file, $content) = each %{$args{files} // {}}) {
        $self->write_file($file, $content);
    }

    $self->{ports} = { port => _free_port(), control_port => _free_port() };
    $self->_write_config;

    my $pid = $self->_spawn('-t');

    waitpid($pid, 0);

    return ($? == 0, $self->read_file('logs/stderr'));
}


sub dir { $_[0]{dir} }
sub port { $_[0]{ports}{port} }
sub addr { "127.0.0.1:$_[0]{ports}{port}" }
sub pid { $_[0]{pid} }
sub binary { $_[0]{binary} }


# a connection to the server under test

sub client {
    my ($self, %args) = @_;

    return Kontext::Client->new(port => $self->port, %args);
}


# (major, minor, patch) as one number: 1.22.1 is 1022001

sub version {
    my ($self) = @_;

    if (!defined $self->{version}) {
        my $text = `'$self->{binary}' -v 2>&1`;

        $text =~ m{nginx/(\d+)\.(\d+)\.(\d+)} or croak "no version: $text";
        $self->{version} = $1 * 1000000 + $2 * 1000 + $3;
    }

    return $self->{version};
}


sub worker_pids {
    my ($self) = @_;
    my $log = $self->error_log;

    return $log =~ /start worker process (\d+)/g;
}


# When this returns, the only worker has processed everything that was in
# its sockets' buffers before the call.  Ready events are taken in batches,
# so the first answer may belong to the batch under way; the second one
# cannot.

sub barrier {
    my ($self) = @_;

    croak "a barrier needs a single worker" if $self->{workers} != 1;

    $self->worker_pid foreach 1 .. 2;

    return $self;
}


# the pid of the worker that answers now

sub worker_pid {
    my ($self) = @_;
    my $c = Kontext::Client->new(port => $self->{ports}{control_port});
    my ($pid) = $c->get('/')->read_response->body =~ /\A(\d+)\n\z/
        or croak "no pid from the control server";

    return $pid;
}


# A new configuration (arguments as in new, those not given stay) or the
# same again.  Returns when the new workers answer and every old one has
# stopped accepting; those may have requests to finish still.

sub reload {
    my ($self, %args) = @_;
    my %old = map { $_ => 1 } $self->worker_pids;
    my $offset = length $self->error_log;

    $self->{args} = { %{$self->{args}}, %args };
    $self->{workers} = $args{workers} if $args{workers};
    $self->_write_config;

    kill('HUP', $self->{pid}) or croak "$self->{name}: HUP: $!";

    wait_until('new workers', sub {
        my $log = substr($self->error_log, $offset);

        croak "reload failed:\n$log" if $log =~ /\[emerg\]/;

        my @new = $log =~ /start worker process (\d+)/g;

        return @new >= $self->{workers};
    });

    foreach my $pid (keys %old) {
        wait_until("worker $pid to stop accepting", sub {
            $self->error_log =~ /\b$pid\#\d+:[ ]gracefully[ ]shutting[ ]down
                                 |worker[ ]process[ ]$pid[ ]exited/x;
        });
    }

    wait_until('an answer of a new worker',
               sub { !$old{$self->worker_pid} });

    return $self;
}


sub wait_worker_exit {
    my ($self, $pid, $timeout) = @_;

    wait_until("worker $pid to exit", sub {
        $self->error_log =~ /worker process $pid exited/;
    }, $timeout);

    return $self;
}


sub error_log { $_[0]->read_file('logs/error.log') }


sub grep_log {
    my ($self, $re) = @_;

    return grep { /$re/ } split /\n/, $self->error_log;
}


sub wait_log {
    my ($self, $re, $timeout) = @_;

    return $self->wait_file('logs/error.log', $re, $timeout);
}


# waits until the file's text matches and returns the text

sub wait_file {
    my ($self, $file, $re, $timeout) = @_;

    return wait_until("$re in $file", sub {
        my $text = $self->read_file($file);

        return $text =~ $re ? $text : undef;
    }, $timeout);
}


sub read_file {
    my ($self, $file) = @_;

    open(my $fh, '<:raw', "$self->{dir}/$file") or return '';
    local $/;

    return scalar(<$fh>) // '';
}


sub write_file {
    my ($self, $file, $content) = @_;

    open(my $fh, '>:raw', "$self->{dir}/$file") or croak "$file: $!";
    print $fh $content;
    CORE::close($fh) or croak "$file: $!";

    return $self;
}


# a graceful stop; 'TERM' and 'INT' are fast ones

sub stop {
    my ($self, $signal) = @_;

    return $self if !$self->{pid};

    local ($?, $!);

    kill($signal // 'QUIT', $self->{pid});

    my $stopped = eval {
        wait_until('nginx to stop', sub { $self->_exited });
        1;
    };

    if (!$stopped) {
        push @{$self->{complaints}},
            "nginx did not stop at " . ($signal // 'QUIT');
        $self->_kill;
    }

    $self->{pid} = 0;
    $self->_release;

    return $self;
}


# What a sound run does not leave behind; of valgrind, all that it says.
# allow => [ qr/.../ ] names lines that are expected.

sub complaints {
    my ($self, %args) = @_;
    my @allow = @{$args{allow} // []};
    my @lines = @{$self->{complaints} // []};

    foreach my $file ('logs/error.log', 'logs/stderr') {
        my %seen;

        push @lines, grep { !$seen{$_}++ } grep {
            /\[(?:alert|emerg|crit)\]/ || /$SANITIZER/
            || /exited on signal/ || /exited with code [1-9]/
        } split /\n/, $self->read_file($file);
    }

    foreach my $log (glob("$self->{dir}/logs/valgrind.*")) {
        my ($file) = $log =~ m{(logs/[^/]+)\z};

        push @lines, split /\n/, $self->read_file($file);
    }

    push @lines, "nginx exited with status $self->{status}"
        if $self->{status};

    return grep { my $line = $_; !grep { $line =~ $_ } @allow } @lines;
}


# stops nginx and is a test: no alerts, no crashes, no sanitizer reports

sub stop_ok {
    my ($self, %args) = @_;

    $self->stop($args{signal});
    $self->{checked} = 1;

    my @lines = $self->complaints(%args);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return Test::More::ok(!@lines, $args{name}
                                   // 'a clean log and a clean exit')
        || Test::More::diag(join("\n", @lines));
}


# What the log may say of workers that were killed, for allow: one may have had
# the lock of a zone, which nginx then opens.

sub of_killed {
    return if !@_;

    my $pids = join('|', @_);

    return (qr/worker process (?:$pids) exited on signal 9/,
            qr/shared memory zone "\w+" was locked by (?:$pids)\z/);
}


sub DESTROY {
    my ($self) = @_;

    return if $self->{owner} != $$;

    local ($?, $!, $@);

    delete $LIVE{Scalar::Util::refaddr($self)};
    $self->_end;
}


END {
    my $status = $?;

    foreach my $self (grep { defined && $_->{owner} == $$ } values %LIVE) {
        $self->_end or $status ||= 1;
    }

    $? = $status;
}


# the end of a run which no stop_ok() has looked at

sub _end {
    my ($self) = @_;
    my $sound = 1;

    return 1 if $self->{ended}++;

    $self->stop('TERM');

    if (!$self->{checked} && (my @lines = $self->complaints)) {
        Test::More::diag(join("\n", "$self->{name}:", @lines));
        $sound = 0;
    }

    if ($ENV{KONTEXT_TEST_KEEP}) {
        Test::More::diag("kept: $self->{dir}");

    } else {
        require File::Path;
        File::Path::remove_tree($self->{dir}, { safe => 0 });
    }

    return $sound;
}


sub _find {
    foreach my $dir (split(/:/, $ENV{PATH} // ''), '/usr/sbin') {
        return "$dir/nginx" if -x "$dir/nginx" && !-d _;
    }

    croak "no nginx: set TEST_NGINX_BINARY";
}


# Another process may take the port before nginx does: _start tries again.
# The range lies below the one the kernel takes for outgoing connections.

sub _free_port {
    while (1) {
        my $port = PORT_MIN + int(rand(PORT_RANGE));

        return $port if IO::Socket::INET->new(
            Listen    => 1,
            LocalAddr => '127.0.0.1',
            LocalPort => $port,
            ReuseAddr => 1,
        );
    }
}


sub _start {
    my ($self) = @_;

    foreach (1 .. START_TRIES) {
        $self->{ports} = { port => _free_port(), control_port => _free_port() };
        delete $self->{status};
        unlink("$self->{dir}/logs/error.log");

        $self->_write_config;
        $self->{pid} = $self->_spawn;

        my $up = wait_until('nginx to listen', sub {
            return 'exited' if $self->_exited;

            # the master listens before it makes workers

            return $self->error_log =~ /start worker process \d+/
                   && IO::Socket::INET->new(
                          PeerAddr => '127.0.0.1',
                          PeerPort => $self->{ports}{port},
                      ) && 'up';
        });

        if ($up eq 'up') {
            $self->_keep;
            wait_until('the workers', sub {
                my @pids = $self->worker_pids;

                return @pids >= $self->{workers};
            });
            return;
        }

        $self->{pid} = 0;

        last if $self->read_file('logs/stderr')
                . $self->error_log !~ /Address already in use/;
    }

    $self->{checked} = 1;
    croak "nginx does not start:\n" . $self->read_file('logs/stderr')
          . $self->error_log;
}


sub _spawn {
    my ($self, @args) = @_;

    STDOUT->flush;
    STDERR->flush;

    my $pid = fork() // croak "fork: $!";

    return $pid if $pid != 0;

    # what the test's own handlers and end blocks do is not for this child

    open(STDIN, '<', '/dev/null');
    open(STDOUT, '>', "$self->{dir}/logs/stderr");
    open(STDERR, '>&', \*STDOUT);

    $SIG{$_} = 'DEFAULT' foreach 'INT', 'TERM', 'HUP', 'PIPE';
    $ENV{LD_PRELOAD} = $ENV{TEST_NGINX_LD_PRELOAD}
        if $ENV{TEST_NGINX_LD_PRELOAD};

    my @command = ($self->_valgrind, $self->{binary}, '-p', "$self->{dir}/",
                   '-c', "$self->{dir}/conf/nginx.conf",
                   '-e', 'logs/error.log', @args);

    { no warnings 'exec';
      exec { $command[0] } @command; }

    print STDERR "exec $command[0]: $!\n";
    POSIX::_exit(127);
}


# Each process of nginx has a log of its own, which stays empty when nothing is
# wrong.  As in Test::Nginx a value that is no number stands for the options.

sub _valgrind {
    my ($self) = @_;
    my $use = $ENV{TEST_NGINX_USE_VALGRIND} or return;

    return ('valgrind', '-q', '--num-callers=40', '--error-exitcode=99',
            "--log-file=$self->{dir}/logs/valgrind.%p",
            $use =~ /^\d+$/ ? () : split ' ', $use);
}


# nginx knows nothing of the test, so a process of its own stops it when the
# test is killed

sub _keep {
    my ($self) = @_;

    pipe(my $rd, $self->{keeper_pipe}) or croak "pipe: $!";

    $self->{keeper} = fork() // croak "fork: $!";

    return if $self->{keeper} != 0;

    $SIG{$_} = 'IGNORE' foreach 'INT', 'HUP', 'TERM', 'PIPE';

    # other children of the test see its end by the end of their pipes

    my $own = fileno($rd);

    foreach my $fd (0 .. POSIX::sysconf(&POSIX::_SC_OPEN_MAX) - 1) {
        last if $fd > 1023;
        POSIX::close($fd) if $fd != $own;
    }

    if (!sysread($rd, my $byte, 1)) {
        kill('TERM', $self->{pid});

        # a zombie that nobody reaps has removed its pid file all the same

        eval {
            wait_until('nginx to stop', sub {
                !-e "$self->{dir}/logs/nginx.pid"
            });
            1;
        } or $self->_kill;

        require File::Path;
        File::Path::remove_tree($self->{dir}, { safe => 0 });
    }

    POSIX::_exit(0);
}


sub _release {
    my ($self) = @_;

    return if !$self->{keeper};

    local ($?, $!);

    syswrite($self->{keeper_pipe}, 'x');
    CORE::close(delete $self->{keeper_pipe});
    waitpid(delete $self->{keeper}, 0);

    return;
}


# reaps nginx if it is gone

sub _exited {
    my ($self) = @_;

    return 1 if defined $self->{status};
    return 0 if waitpid($self->{pid}, WNOHANG) != $self->{pid};

    $self->{status} = $?;

    return 1;
}


sub _kill {
    my ($self) = @_;

    kill('KILL', $self->{pid}, grep { kill(0, $_) } $self->worker_pids);
    waitpid($self->{pid}, 0);
}


sub _write_config {
    my ($self) = @_;
    my %args = %{$self->{args}};
    my $text;

    if (defined $args{conf}) {
        $text = $args{conf};

    } else {
        my $http = $args{http} // '';

        $http .= "    server {\n        listen 127.0.0.1:\@port\@;\n"
                 . "$args{server}\n    }\n" if defined $args{server};

        $text = "\@preamble\@\n" . ($args{main} // '')
                . "\nevents {\n    worker_connections 1024;\n"
                . ($args{events} // '') . "\n}\n\n"
                . "http {\n\@control\@\n$http\n}\n";
    }

    my %vars = (%{$self->{ports}}, dir => $self->{dir}, %{$args{vars} // {}});

    $vars{preamble} = $self->_preamble;
    $vars{control} = $self->_control($vars{control_port});

    $text =~ s/\@(\w+)\@/$vars{$1} \/\/ croak "no value for \@$1\@"/ge;

    $self->write_file('conf/nginx.conf', $text);
}


sub _preamble {
    my ($self) = @_;
    my $level = $self->{args}{log_level} // $ENV{TEST_NGINX_LOG_LEVEL}
                // 'debug';

    return join("\n",
        "daemon off;",
        "worker_processes $self->{workers};",
        "error_log logs/error.log $level;",
        "pid logs/nginx.pid;",

        # coverage and core files are written by the workers

        ($> == 0 ? "user root;" : ()),

        map { 'load_module ' . Cwd::abs_path($_) . ';' } @{$self->{modules}});
}


# the temporary files stay in the run's directory, and a server that answers
# with the worker's pid

sub _control {
    my ($self, $port) = @_;

    return join("\n",
        (map { "    ${_}_temp_path temp/$_;" }
             'client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'),
        "    access_log off;",
        "    server {",
        "        listen 127.0.0.1:$port;",
        "        location / { return 200 \"\$pid\\n\"; }",
        "    }");
}


1;

__END__

=head1 NAME

Kontext::Nginx - runs the nginx under test

=head1 SYNOPSIS

    my $nginx = Kontext::Nginx->new(
        vars   => { llm => $llm->addr },
        http   => "log_format events ... ;",
        server => <<'CONF',
            access_log logs/events.log events;
            location / { proxy_pass http://@llm@; }
    CONF
    );

    my $c = $nginx->client;
    ...
    $nginx->stop_ok;

=head1 THE CONFIGURATION

C<main>, C<events>, C<http> and C<server> are put into the block of that name;
C<server> listens on C<< $nginx->port >>.  C<conf> is a whole configuration
instead, with C<@preamble@> in the main and C<@control@> in the http context
(plus C<listen 127.0.0.1:@port@>).  C<@name@> is replaced by the value of
C<vars>, by C<@port@>, C<@control_port@> and C<@dir@>; an unknown name dies.

Further arguments: C<workers> (1), C<files> (name => content, below the run's
directory), C<log_level> (debug), C<modules> (an array of .so files),
C<binary>, C<name>.

=head1 METHODS

    $n->port  $n->addr  $n->pid  $n->dir  $n->version  # 1022001 for 1.22.1
    $n->client                      # Kontext::Client
    $n->barrier                     # the worker is through with what it had
    $n->worker_pid  $n->worker_pids

    $n->reload(server => ...)       # HUP, waits for the change of workers
    $n->wait_worker_exit($pid)

    $n->error_log  $n->grep_log(qr/.../)  $n->wait_log(qr/.../)
    $n->read_file('logs/events.log')
    $n->wait_file('logs/events.log', qr/.../)
    $n->write_file($name, $content)

    $n->stop('TERM')                # QUIT by default
    $n->complaints(allow => [qr/.../])
    $n->stop_ok(allow => [qr/.../], signal => 'TERM', name => ...)

    my ($ok, $output) = Kontext::Nginx->test_config(server => ...);

C<stop_ok> is a test: fails when the log has an alert, emerg or crit line,
a process that crashed, or a report of a sanitizer.  A run that ends without
it is checked all the same, and makes the test file fail.

=head1 ENVIRONMENT

C<TEST_NGINX_BINARY>, C<TEST_NGINX_LOAD_MODULES>, C<TEST_NGINX_LOG_LEVEL>,
C<TEST_NGINX_LD_PRELOAD>, C<TEST_NGINX_USE_VALGRIND> as in Test::Nginx, but that
a report of valgrind is a failure; C<KONTEXT_TEST_KEEP=1> keeps the
directories; C<KONTEXT_TEST_TIMEOUT>, see L<Kontext::Wait>.

=cut
