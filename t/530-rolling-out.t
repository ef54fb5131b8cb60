#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# What docs/operations.md promises: the module goes in and out by reloads, and
# a new one comes and goes by a new master process, and no answer that is
# being written is cut, or has an ad that it should not have.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Cwd ();
use File::Temp ();
use Kontext::Test;
use POSIX ();

my @MODULES = split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '';
my ($MODULE) = grep { /kontext_module/ } @MODULES;

defined $MODULE or BAIL_OUT('no module in TEST_NGINX_LOAD_MODULES');

my $LOAD = 'load_module ' . Cwd::abs_path($MODULE) . ';';
my @OTHER = grep { $_ ne $MODULE } @MODULES;

my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server;
my $turns = 0;


# an answer that was begun; ad => whether the ad server is asked

sub begin {
    my ($client, %args) = @_;
    my $n = ++$turns;

    $client->post_json('/v1/chat/completions', chat("Question $n?"),
                       'X-Conversation-Id' => "c-$n");

    my $request = $llm->wait_request;

    $ads->wait_request(path => '/preload') if $args{ad};
    $request->start->event(chat_role(), chat_chunk('Light '));
    $client->read_until(qr/Light /);

    return { client => $client, request => $request, n => $n };
}


# the rest of it: an ad, or none, and nothing else that the backend has not
# written

sub end_ok {
    my ($answer, $ad, $name) = @_;
    my @data = (chat_role(), chat_chunk('Light '), chat_chunk('ones.'),
                chat_finish(), '[DONE]');

    $answer->{request}->event(@data[2 .. 4])->finish;

    my $body = $answer->{client}->read_response->body;

    # nginx would wait for that

    $answer->{client}->close;

    my ($plain, $member) = without_kontext($body);

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is($plain, join('', map { "data: $_\n\n" } @data), "$name: all of it");
    is(defined $member ? 'an ad' : 'no ad', $ad ? 'an ad' : 'no ad',
       "$name: " . ($ad ? 'an ad' : 'no ad')) or diag($body);
}


# Reloads: in, shadow mode, on, off, out

{
    my $plain = 'location / { proxy_pass http://@llm@; }';
    my $with = sub {
        my ($kontext) = @_;

        return <<"CONF";
    location /_kontext/ {
        internal;
        proxy_pass http://\@ads\@/;
    }

    location = /kontext_status {
        kontext_status;
    }

    location / {
        $kontext
        kontext_grace            25s;
        kontext_publisher_token  acme-dev;
        kontext_user_id          u-1;
        kontext_conversation_id  \$http_x_conversation_id;
        proxy_pass               http://\@llm\@;
    }
CONF
    };

    my $nginx = Kontext::Nginx->new(
        log_level => 'notice',
        modules   => \@OTHER,
        vars      => { llm => $llm->addr, ads => $ads->addr },
        main      => '',
        server    => $plain,
    );

    my %answers;
    my @steps = (
        [ 'before'             => 0 ],
        [ 'the module alone'   => 0, main => $LOAD ],
        [ 'shadow mode'        => 0,
          server => $with->('kontext on; kontext_inject none;'), asks => 1 ],
        [ 'ads'                => 1,
          server => $with->('kontext on;'), asks => 1 ],
        [ 'no ads any more'    => 0, server => $with->('kontext off;') ],
        [ 'out'                => 0, server => $plain, main => '' ],
        [ 'in again'           => 1,
          server => $with->('kontext on;'), main => $LOAD, asks => 1 ],
    );

    foreach my $step (@steps) {
        my ($name, $ad, %args) = @$step;
        my $asks = delete $args{asks};

        $nginx->reload(%args) if %args;
        $answers{$name} = begin($nginx->client, ad => $asks);
    }

    # sessions are where the module was all the time

    my $live = sub {
        return $nginx->client->get('/kontext_status')->read_response->json
                     ->{sessions}{live};
    };

    is($live->(), 1, 'in again: sessions begin anew');
    $nginx->reload;
    is($live->(), 1, 'a reload keeps them');

    end_ok($answers{$_->[0]}, $_->[1], $_->[0]) foreach @steps;

    $nginx->stop_ok;
}


# A nginx that is a daemon, as only such a one takes a new master process.  It
# is stopped at the end of the test by a process that sees it, however it ends.

my $dir = File::Temp::tempdir('kontext-daemon-XXXXXX', TMPDIR => 1,
                              CLEANUP => 1);
my $binary = Cwd::abs_path($ENV{TEST_NGINX_BINARY} || Kontext::Nginx::_find());
my $PID = "$dir/logs/nginx.pid";


sub file {
    my ($file) = @_;

    open(my $fh, '<:raw', $file) or return '';
    local $/;

    return scalar(<$fh>) // '';
}


sub pid_in { return file($_[0]) =~ /\A(\d+)\n/ ? $1 : 0 }
sub error_log { return file("$dir/logs/error.log") }


sub keep {
    pipe(my $end, my $open) or die "pipe: $!";

    my $pid = fork() // die "fork: $!";

    return $open if $pid != 0;

    close($open);
    setpgrp(0, 0);
    open(STDOUT, '>', '/dev/null');
    open(STDERR, '>', '/dev/null');
    sysread($end, my $byte, 1);
    kill('TERM', $_) foreach grep { $_ } map { pid_in($_) } glob("$PID*");
    POSIX::_exit(0);
}


sub start {
    my ($port) = @_;
    my $user = $> == 0 ? 'user root;' : '';

    # a new master has nothing else of the environment

    my $env = 'env ASAN_OPTIONS; env UBSAN_OPTIONS;';
    my $load = join("\n", $LOAD, map { 'load_module ' . Cwd::abs_path($_) . ';' }
                                     @OTHER);

    open(my $fh, '>', "$dir/nginx.conf") or die $!;
    print $fh <<"CONF";
$load
$user
$env
worker_processes 1;
pid $PID;
error_log logs/error.log notice;
events { }

http {
    access_log off;
    client_body_temp_path temp/client_body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;

    server {
        listen 127.0.0.1:$port;

        location /_kontext/ {
            internal;
            proxy_pass http://${\$ads->addr}/;
        }

        location = /kontext_status {
            kontext_status;
            add_header X-Worker \$pid;
        }

        location / {
            kontext                  on;
            kontext_grace            25s;
            kontext_publisher_token  acme-dev;
            kontext_user_id          u-1;
            kontext_conversation_id  \$http_x_conversation_id;
            add_header               X-Worker \$pid;
            proxy_pass               http://${\$llm->addr};
        }
    }
}
CONF
    close($fh);

    return system($binary, '-p', "$dir/", '-c', "$dir/nginx.conf", '-e',
                  'logs/error.log') == 0;
}


# the workers that a master has started

sub workers {
    my ($master) = @_;

    my @workers = error_log() =~ /\b$master\#\d+: start worker process (\d+)/g;

    return @workers;
}


# an answer that is begun by a worker of this master

sub begin_at {
    my ($port, $master, $name) = @_;
    my $answer = begin(Kontext::Client->new(port => $port), ad => 1);
    my $worker = $answer->{client}->response->header('X-Worker');

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    ok(scalar(grep { $_ == $worker } workers($master)),
       "$name: the right master's");

    return $answer;
}


# a new master beside this one, with workers

sub upgrade {
    my ($old) = @_;

    kill('USR2', $old) or die "USR2: $!";

    return wait_until('a new master', sub {
        my $new = pid_in($PID);

        return $new && $new != $old && pid_in("$PID.oldbin") == $old
               && workers($new) && $new;
    });
}


sub wait_shutdown {
    my (@workers) = @_;

    foreach my $worker (@workers) {
        wait_until("worker $worker to stop accepting", sub {
            error_log() =~ /\b$worker\#\d+:[ ]gracefully[ ]shutting[ ]down
                            |worker[ ]process[ ]$worker[ ]exited/x;
        });
    }
}


mkdir("$dir/$_") foreach 'logs', 'temp';

my $kept = keep();
my $port;

foreach (1 .. 20) {
    $port = Kontext::Nginx::_free_port();
    last if start($port) || error_log() !~ /Address already in use/;
    unlink("$dir/logs/error.log");
}

my $first = wait_until('nginx', sub {
    my $pid = pid_in($PID);

    return $pid && workers($pid) && $pid;
});

my @answers = ([ begin_at($port, $first, 'before'), 'before' ]);


# there, and back

{
    my $new = upgrade($first);

    kill('WINCH', $first) or die "WINCH: $!";
    wait_shutdown(workers($first));
    push @answers, [ begin_at($port, $new, 'upgraded'), 'upgraded' ];

    is(Kontext::Client->new(port => $port)->get('/kontext_status')
            ->read_response->json->{sessions}{live}, 1,
       'a zone of its own');

    my $before = workers($first);

    kill('HUP', $first) or die "HUP: $!";
    wait_until('workers of the old master',
               sub { workers($first) > $before });
    kill('QUIT', $new) or die "QUIT: $!";
    wait_shutdown(workers($new));
    push @answers, [ begin_at($port, $first, 'back'), 'back' ];

    is(Kontext::Client->new(port => $port)->get('/kontext_status')
            ->read_response->json->{sessions}{live}, 2,
       'back: and the sessions of before');

    ok(kill(0, $new), 'back: the new master waits for its answer');
    end_ok($answers[1][0], 1, 'upgraded, after the way back');
    wait_until('the new master to go', sub { !-e "$PID.oldbin" });
    is(pid_in($PID), $first, 'back: the old master is the one');
    splice(@answers, 1, 1);
}


# there, and on

{
    my $new = upgrade($first);

    kill('WINCH', $first) or die "WINCH: $!";
    wait_shutdown(workers($first));
    push @answers, [ begin_at($port, $new, 'upgraded'), 'upgraded' ];
    kill('QUIT', $first) or die "QUIT: $!";
    push @answers, [ begin_at($port, $new, 'on'), 'on' ];

    ok(-e "$PID.oldbin", 'on: the old master waits for its answers');
    end_ok($_->[0], 1, $_->[1]) foreach @answers;
    wait_until('the old master to go', sub { !-e "$PID.oldbin" });
    is(pid_in($PID), $new, 'on: the new master is the one');

    kill('QUIT', $new) or die "QUIT: $!";
    wait_until('nginx to stop', sub { !-e $PID });
}

is(join("\n", grep { /\[(?:alert|emerg|crit|error)\]|on signal|code [1-9]/ }
                   split /\n/, error_log()), '', 'a clean log');

done_testing;
