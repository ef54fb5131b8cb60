#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Every sample stream of the OpenAI format, cut in two at every byte and in
# pieces of 1, 2, 3, 7 and 64 bytes: what the client gets is what the backend
# sent plus the ad at its one place, or exactly what the backend sent where no
# ad may go.  Each piece comes in memory that is overwritten and freed as soon
# as it is consumed (see t/chop).

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;
use IO::Socket::INET ();


# how many requests are on their way at a time
use constant PIPELINE => 32;

# every KONTEXT_SPLIT_STEP-th place only, for slow runs under instruments
my $step = $ENV{KONTEXT_SPLIT_STEP} || 1;

my $samples = ($ENV{KONTEXT_SHARED} || "$FindBin::Bin/../../shared")
              . '/samples';

my $build = $ENV{KONTEXT_BUILD} || "$FindBin::Bin/../build";

my %has_ad = (
    'openai-chat.sse'                 => 1,
    'openai-chat-azure.sse'           => 1,
    'openai-chat-crlf.sse'            => 1,
    'openai-chat-llamacpp.sse'        => 1,
    'openai-chat-n2.sse'              => 1,
    'openai-chat-openrouter.sse'      => 1,
    'openai-chat-split-surrogate.sse' => 1,
    'openai-chat-vllm.sse'            => 1,
    'openai-chat-error.sse'           => 0,
    'openai-chat-tools.sse'           => 0,
);

my @files = map { s{.*/}{}r } glob "$samples/openai-chat*.sse";

is_deeply([ sort @files ], [ sort keys %has_ad ], 'all samples are known');


# the same with CR as line ends, with a BOM, and with frames of no interest

my %streams;

foreach my $file (@files) {
    open my $fh, '<:raw', "$samples/$file" or die "$samples/$file: $!";
    local $/;
    $streams{$file} = <$fh>;
}

my $short = $streams{'openai-chat-split-surrogate.sse'};

$streams{'cr.sse'} = $short =~ s/\r?\n/\r/gr;
$streams{'mixed.sse'} = "\xef\xbb\xbf:\r\n\r\n" . $short =~ s/\n\n/\r\r\n/gr;
$streams{'no-end.sse'} = $short =~ s/\n\ndata: \[DONE\]\n\n\z//r;
$streams{'many-fields.sse'} =
    $short =~ s/^data: /: comment\nid: 7\nevent: x\ndata:/mgr;

$has_ad{'cr.sse'} = 1;
$has_ad{'mixed.sse'} = 1;
$has_ad{'many-fields.sse'} = 1;

# its finish chunk is not terminated
$has_ad{'no-end.sse'} = 0;


my $ads = Kontext::Mock->ad_server;

my $nginx = Kontext::Nginx->new(
    modules   => [ (split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // ''),
                   "$build/ngx_http_chop_module.so" ],
    log_level => 'notice',
    files     => { map { ("html/$_" => $streams{$_}) } keys %streams },
    vars      => { ads => $ads->addr },
    server    => <<'CONF',
        access_log off;
        keepalive_requests 100000000;
        send_timeout 300s;

        location /_kontext/ {
            internal;
            proxy_pass http://@ads@/;
        }

        location / {
            kontext                  on;
            kontext_publisher_token  acme-dev;
            kontext_format           openai_chat;
            kontext_conversation_id  $uri;
            kontext_grace            30s;
            chop                     @dir@/html$uri;
        }
CONF
);


foreach my $file (sort keys %streams) {
    my $stream = $streams{$file};

    my $whole = run($file, [ '' ])->[0];
    my ($body, $ad) = without_kontext($whole);

    is($body, $stream, "$file: nothing is changed");
    is(defined $ad ? 1 : 0, $has_ad{$file},
       "$file: " . ($has_ad{$file} ? 'an ad' : 'no ad'));

    foreach my $size (1, 2, 3, 7, 64) {
        my $got = run($file, [ "?size=$size" ])->[0];
        ok($got eq $whole, "$file: pieces of $size bytes");
    }

    my ($n, $bad, $first) = (0, 0);

    for (my $at = 1; $at < length $stream; ) {
        my @at;

        for (; $at < length $stream && @at < PIPELINE; $at += $step) {
            push @at, $at;
        }

        my $got = run($file, [ map { "?at=$_" } @at ]);

        foreach my $i (0 .. $#at) {
            $n++;

            if ($got->[$i] ne $whole) {
                $bad++;
                $first //= $at[$i];
            }
        }
    }

    is($bad, 0, "$file: cut at each of $n places"
                . (defined $first ? ", first at $first" : ''));
}

$nginx->stop_ok;

done_testing;


my ($socket, $buf);


# sends the requests at once and returns the bodies, without their chunks

sub run {
    my ($file, $queries) = @_;

    my $body = '{"model":"m","stream":true,'
               . '"messages":[{"role":"user","content":"hi"}]}';

    $socket //= do {
        $buf = '';
        IO::Socket::INET->new(PeerAddr => $nginx->addr, Timeout => 30)
            or die "cannot connect: $@";
    };

    my $out = join '', map {
        "POST /$file$_ HTTP/1.1\r\nHost: a\r\n"
        . "Content-Type: application/json\r\n"
        . 'Content-Length: ' . length($body) . "\r\n\r\n$body"
    } @$queries;

    syswrite($socket, $out) == length $out or die "short write: $!";

    return [ map { answer() } @$queries ];
}


sub answer {
    my $pos;

    more() while ($pos = index($buf, "\r\n\r\n")) < 0;

    my $head = substr($buf, 0, $pos);
    die "unexpected answer: $head" unless $head =~ m{\AHTTP/1\.1 200 };
    die "not chunked: $head" unless $head =~ /chunked/;

    my @chunks;
    $pos += 4;

    while (1) {
        my $end;
        more() while ($end = index($buf, "\r\n", $pos)) < 0;

        my $len = hex substr($buf, $pos, $end - $pos);
        $pos = $end + 2;

        more() while length($buf) < $pos + $len + 2;

        last unless $len;

        push @chunks, substr($buf, $pos, $len);
        $pos += $len + 2;
    }

    substr($buf, 0, $pos + 2, '');

    return join '', @chunks;
}


sub more {
    my $n = sysread($socket, $buf, 1 << 20, length $buf);
    die 'the connection ended: ' . ($! || 'eof') unless $n;
}
