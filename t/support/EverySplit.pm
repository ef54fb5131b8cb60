package EverySplit;

# Copyright (C) the ngx_http_kontext_module authors
#
# Answers of any format, cut in two at every byte and in pieces of 1, 2, 3, 7
# and 64 bytes: what the client gets is what the backend sent plus the ad in
# its places, or exactly what the backend sent where no ad may go.  Each piece
# comes in memory that is overwritten and freed as soon as it is consumed (see
# t/chop).

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;
use IO::Socket::INET ();

use Exporter 'import';
our @EXPORT = qw(sample samples every_split);


# how many requests are on their way at a time
use constant PIPELINE => 32;

# every KONTEXT_SPLIT_STEP-th place only, for slow runs under instruments
my $step = $ENV{KONTEXT_SPLIT_STEP} || 1;

my $samples = ($ENV{KONTEXT_SHARED} || "$FindBin::Bin/../../shared")
              . '/samples';

my $build = $ENV{KONTEXT_BUILD} || "$FindBin::Bin/../build";

my $hi = '"messages":[{"role":"user","content":"hi"}]';

my %formats = (
    openai_chat      => [ '/v1/chat/completions',
                          qq({"model":"m","stream":true,$hi}) ],
    openai_responses => [ '/v1/responses',
                          '{"model":"m","stream":true,"input":"hi"}' ],
    anthropic        => [ '/v1/messages',
                          qq({"model":"m","stream":true,"max_tokens":9,$hi}) ],
    ollama           => [ '/api/chat', qq({"model":"m",$hi}) ],
    ollama_generate  => [ '/api/generate', '{"model":"m","prompt":"hi"}' ],
    gemini           => [ '/v1beta/models/g:streamGenerateContent',
                          '{"contents":[{"parts":[{"text":"hi"}]}]}' ],
    gemini_whole     => [ '/v1beta/models/g:generateContent',
                          '{"contents":[{"parts":[{"text":"hi"}]}]}' ],
    ai_sdk_ui        => [ '/ui/api/chat',
                          '{"id":"c","messages":[{"id":"m","role":"user",'
                          . '"parts":[{"type":"text","text":"hi"}]}]}' ],
);

my ($socket, $buf, $nginx);


sub sample {
    my ($file) = @_;

    open my $fh, '<:raw', "$samples/$file" or die "$samples/$file: $!";
    local $/;

    return scalar <$fh>;
}


# the names of those that a pattern describes

sub samples {
    my ($pattern) = @_;

    return sort map { s{.*/}{}r } glob "$samples/$pattern";
}


# $cases: { name => { format, ad => 0 or 1, answer => bytes (the sample of
# that name by default), type => file suffix (of the name by default) } }

sub every_split {
    my ($inject, $cases) = @_;
    my $ads = Kontext::Mock->ad_server;
    my %files;

    foreach my $name (keys %$cases) {
        my $case = $cases->{$name};

        $case->{answer} //= sample($name);
        $files{"html/$name"} = $case->{answer};
    }

    $nginx = Kontext::Nginx->new(
        modules   => [ (split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // ''),
                       "$build/ngx_http_chop_module.so" ],
        log_level => 'notice',
        files     => \%files,
        vars      => { ads => $ads->addr, inject => $inject },
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
                kontext_inject           @inject@;
                kontext_publisher_token  acme-dev;
                kontext_conversation_id  $arg_file;
                kontext_grace            30s;
                chop                     @dir@/html/$arg_file;
            }
CONF
    );

    one($inject, $_, $cases->{$_}) foreach sort keys %$cases;

    $nginx->stop_ok;
}


sub one {
    my ($inject, $file, $case) = @_;
    my $answer = $case->{answer};
    my $whole = run($file, $case, [ '' ])->[0];

    if (!$case->{ad}) {
        ok($whole eq $answer, "$file: no ad, and nothing is changed");

    } elsif ($inject eq 'text') {
        like($whole, qr/\\n\\n\\u2063.*\\u2063/, "$file: the text is there");
        ok(within($answer, $whole), "$file: nothing but that is added");

    } else {
        my ($n, $body) = (0, $whole);
        my $object = qr/(\{(?:[^{}]|(?1))*\})/;

        if ($case->{format} eq 'ai_sdk_ui') {
            $n = $body =~ s/data:[ ]\{"type":"data-kontext","data":$object,
                            "transient":true\}(\r?\n)\g{-1}//x;
        } else {
            $n = $body =~ s/,"kontext":$object|"kontext":$object,//g;
        }

        is($n, $case->{format} eq 'anthropic' && $file !~ /json$/ ? 2 : 1,
           "$file: the member is there");
        ok($body eq $answer, "$file: nothing but that is added");
    }

    foreach my $size (1, 2, 3, 7, 64) {
        ok(run($file, $case, [ "&size=$size" ])->[0] eq $whole,
           "$file: pieces of $size bytes");
    }

    my ($n, $bad, $first) = (0, 0);

    for (my $at = 1; $at < length $answer; ) {
        my @at;

        for (; $at < length $answer && @at < PIPELINE; $at += $step) {
            push @at, $at;
        }

        my $got = run($file, $case, [ map { "&at=$_" } @at ]);

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


# are the bytes of one all in the other, in that order?

sub within {
    my ($small, $large) = @_;
    my $at = 0;

    foreach my $piece (unpack '(a1)*', $small) {
        $at = index($large, $piece, $at) + 1;
        return 0 if !$at;
    }

    return 1;
}


# sends the requests at once and returns the bodies, without their chunks

sub run {
    my ($file, $case, $queries) = @_;
    my ($uri, $body) = @{$formats{$case->{format}}};

    $socket //= do {
        $buf = '';
        IO::Socket::INET->new(PeerAddr => $nginx->addr, Timeout => 30)
            or die "cannot connect: $@";
    };

    my $out = join '', map {
        "POST $uri?file=$file$_ HTTP/1.1\r\nHost: a\r\n"
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


1;
