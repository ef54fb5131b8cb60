#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Time to the first byte of the answer through the module next to plain nginx:
# the same backend, the same requests, one of each in turn. Prints the medians
# and how far the middle half of the paired differences spreads.
#
#     perl bench/ttft.pl [pairs]

use FindBin ();
use lib "$FindBin::Bin/../t/lib";

use Kontext::Test;
use IO::Socket::INET ();
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);


my $pairs = shift || 2000;

# The worker has a processor of its own: on one with the client it would let
# it wait for what it does after the first byte was sent.

my $pin = do { my $n = `nproc`; $n > 1 };

system("taskset -acp 1 $$ > /dev/null") if $pin;

my $build = $ENV{KONTEXT_BUILD} || "$FindBin::Bin/../build";

my $event = qq(data: {"id":"c","object":"chat.completion.chunk","created":1,)
            . qq("model":"m","choices":[{"index":0,"delta":%s,)
            . qq("finish_reason":%s}]}\n\n);

my $first = sprintf($event, '{"role":"assistant","content":"Hello"}', 'null');
my $rest = sprintf($event, '{}', '"stop"') . "data: [DONE]\n\n";

# the first token at once, the end of the answer some milliseconds later

my $backend = Kontext::Nginx->new(
    modules   => [ '/usr/lib/nginx/modules/ngx_http_echo_module.so' ],
    log_level => 'notice',
    server    => <<"CONF",
        access_log off;
        error_log logs/error.log emerg;
        keepalive_requests 1000000;
        client_body_buffer_size 4m;
        default_type text/event-stream;

        location / {
            echo_read_request_body;
            echo -n '$first';
            echo_flush;
            echo_sleep 0.01;
            echo -n '$rest';
        }
CONF
);

my @cases = (
    [ 'answers at once', sub { $_[0] } ],
    [ 'never answers',   sub { $_[0]->hold('/preload'); $_[0]->hold('/init') } ],
    [ 'is dead',         sub { $_[0]->refuse } ],
);

printf "%-18s %8s %10s %10s %10s %22s\n", 'ad server', 'body', 'plain, us',
       'module, us', 'difference', 'middle half of pairs';

foreach my $case (@cases) {
    my $ads = Kontext::Mock->ad_server;
    $case->[1]->($ads);

    my $nginx = Kontext::Nginx->new(
        modules   => [ "$build/ngx_http_kontext_module.so" ],
        log_level => 'notice',
        vars      => { llm => $backend->addr, ads => $ads->addr },
        http      => 'upstream llm { server @llm@; keepalive 8; }',
        server    => <<'CONF',
            access_log off;
            keepalive_requests 1000000;
            client_body_buffer_size 4m;
            error_log logs/error.log emerg;
            proxy_http_version 1.1;
            proxy_set_header Connection "";

            location /_kontext/ {
                internal;
                proxy_pass http://@ads@/;
            }

            location /plain/ { proxy_buffering off; proxy_pass http://llm; }

            location /kontext/ {
                kontext                  on;
                kontext_format           openai_chat;
                kontext_publisher_token  acme-dev;
                kontext_grace            0;
                kontext_conversation_id  $http_x_conversation;
                proxy_buffering          off;
                proxy_pass               http://llm;
            }
CONF
    );

    if ($pin) {
        my $pid = $nginx->worker_pid;
        system("taskset -acp 0 $pid > /dev/null");
    }

    foreach my $size (1_000, 16_000, 200_000) {
        measure($case->[0], $size, $nginx);
    }
}


sub measure {
    my ($name, $size, $nginx) = @_;

    my %socket = map {
        $_ => IO::Socket::INET->new(PeerAddr => $nginx->addr) // die $!
    } 'plain', 'kontext';

    my (%time, @diff);
    my $n = $size > 100_000 ? $pairs / 4 : $pairs;

    foreach my $i (1 .. $n + 50) {
        my %t;

        foreach my $path ($i % 2 ? ('plain', 'kontext')
                                 : ('kontext', 'plain'))
        {
            $t{$path} = once($socket{$path}, $path, $size, $i);
        }

        next if $i <= 50;       # warm

        push @{$time{$_}}, $t{$_} foreach keys %t;
        push @diff, $t{kontext} - $t{plain};
    }

    printf "%-18s %8d %10.0f %10.0f %+10.1f %12.1f .. %+.1f\n", $name, $size,
           quantile(0.5, $time{plain}), quantile(0.5, $time{kontext}),
           quantile(0.5, \@diff), quantile(0.25, \@diff),
           quantile(0.75, \@diff);
}


sub once {
    my ($socket, $path, $size, $i) = @_;

    my $turn = '{"role":"user","content":"' . ('word ' x 40) . $i . '"},'
               . '{"role":"assistant","content":"' . ('text ' x 40) . '"},';

    my $body = '{"model":"m","stream":true,"messages":['
               . $turn x int($size / length $turn)
               . qq({"role":"user","content":"turn $i"}]});

    my $out = "POST /$path/ HTTP/1.1\r\nHost: a\r\nX-Conversation: c-$size\r\n"
              . "Content-Type: application/json\r\nContent-Length: "
              . length($body) . "\r\n\r\n$body";

    my $start = clock_gettime(CLOCK_MONOTONIC);

    for (my $sent = 0; $sent < length $out; ) {
        $sent += syswrite($socket, $out, length($out) - $sent, $sent) // die $!;
    }

    my ($buf, $first) = ('');

    until ($buf =~ /\r\n0\r\n\r\n\z/) {
        sysread($socket, $buf, 65536, length $buf) or die "ended: $buf";
        $first //= clock_gettime(CLOCK_MONOTONIC) if $buf =~ /Hello/;
    }

    return ($first - $start) * 1e6;
}


sub quantile {
    my ($q, $values) = @_;

    my @v = sort { $a <=> $b } @$values;

    return $v[int($q * $#v)];
}
