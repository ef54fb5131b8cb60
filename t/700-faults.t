#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Each call of the module that may fail, fails in turn: once alone, and once
# with all that follow it.  Memory of pools, of the system and of cJSON;
# subrequests and the requests they are made in; room in the zone and in its
# store; files, events and the way to the client.  The chat is what the backend
# sent, or that with the ad; only where nginx itself could not go on it is
# nginx's own failure.  Nothing is lost, and the conversation goes on.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use EverySplit ();
use File::Temp ();
use IO::Socket::INET ();
use Time::HiRes qw(time);

use constant LAYOUT => 'Q5 q3 Q Z48';

my $build = $ENV{KONTEXT_BUILD} || "$FindBin::Bin/../build";
my $module = "$build/ngx_http_kontext_faults_module.so";
my $bid = '7c9e6679-7425-40de-944b-e07fc1f90ae7';

# where a failure is what nginx itself would have met without the module

my $PLAIN = qr/\A(?:ngx_http_kontext_send_header|ngx_http_kontext_send_body
                  |ngx_http_send_header|ngx_http_output_filter)\z/x;

my $control = File::Temp->new;

syswrite($control, "\0" x 4096);
$ENV{KONTEXT_FAULTS} = $control->filename;

my %files = map { ("html/$_" => EverySplit::sample($_)) }
                qw(openai-chat.sse openai-chat.response.json
                   openai-responses.sse anthropic.sse ollama.ndjson gemini.sse
                   gemini-array.json ai-sdk-ui.sse);

my $answer = json({ sessionId => '0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913',
                    bids => [ { bidId => $bid, code => 'inlineAd',
                                revenue => 0.0042 } ] });

my @VARIABLES = map { "\$kontext_$_" }
                    qw(status reason injected format session session_user
                       session_conversation message_id bid_id code revenue
                       frame_url label preload_time hold_time event);

my $nginx = Kontext::Nginx->new(
    modules   => [ $module, "$build/ngx_http_chop_module.so" ],
    log_level => 'notice',
    files     => \%files,
    vars      => { variables => "@VARIABLES", answer => $answer },
    http      => <<'CONF',
    log_format event '@variables@';
    kontext_zone kontext:512k store=128k;

    server {
        listen 127.0.0.1:@port@;
        access_log logs/event.log event;
        send_timeout 60s;
        client_max_body_size 4m;

        kontext_publisher_token  acme-dev;
        kontext_user_id          $http_x_user;
        kontext_conversation_id  $http_x_conversation;
        kontext_grace            8s;
        kontext_character        id=c name=n tags=a,b greeting=hi;
        kontext_regulatory       gdpr=1 gdpr_consent=C gpp_sid=2,7;
        kontext_device           timezone=Europe/Prague width=100 dpr=2;

        location /_kontext/ {
            internal;
            proxy_pass http://127.0.0.1:@port@/ads/;
        }

        location = /ads/init    { return 200 '{"enabled":true,"reportDebug":true}'; }
        location = /ads/preload { return 200 '@answer@'; }
        location /ads/          { return 204; }

        location /ads-down/ {
            return 503 '{"error":"down","errCode":"down"}';
        }

        location /_down/ {
            internal;
            proxy_pass http://127.0.0.1:@port@/ads-down/;
        }

        location /backend/ {
            chop @dir@/html/$arg_file;
        }

        location /piped/ {
            kontext on;
            proxy_pass http://127.0.0.1:@port@/backend/;
        }

        location /down/ {
            kontext on;
            kontext_ad_server /_down;
            kontext_grace 50ms;
            proxy_pass http://127.0.0.1:@port@/backend/;
        }

        # what nodes would share, in files

        location = /_store {
            internal;
            proxy_pass http://127.0.0.1:@port@/kept/$arg_key;
        }

        location /kept/ {
            root @dir@/html;
            dav_methods PUT DELETE;
            create_full_put_path on;
            log_not_found off;
        }

        location /stored/ {
            kontext on;
            kontext_store /_store;
            client_body_buffer_size 1k;
            proxy_pass http://127.0.0.1:@port@/backend/;
        }

        location /text/ {
            kontext on;
            kontext_inject text;
            proxy_pass http://127.0.0.1:@port@/backend/;
        }

        location /spooled/ {
            kontext on;
            kontext_inject text;
            client_body_buffer_size 1k;
            proxy_pass http://127.0.0.1:@port@/backend/;
        }

        location /cut/ {
            kontext on;
            chop @dir@/html/$arg_file;
        }

        location /echo/ {
            proxy_pass http://127.0.0.1:@port@/body/;
        }

        location /api/ {
            kontext_api;
            kontext_store /_store;
            kontext_api_origin https://app.example.com;
        }

        location = /status {
            kontext_status;
        }
    }
CONF
);

my $port = $nginx->port;
my $n = 0;

# each call fails, or in a short run one of so many

my $step = $ENV{KONTEXT_FAULT_STEP} || 5;

# memory that is held for as long as the worker lives

my @held = @{faults()}{qw(blocks pools)};


# what the worker and the test share

sub faults {
    my @values;

    sysseek($control, 0, 0);
    sysread($control, my $text, 4096);
    @values = unpack(LAYOUT, $text);

    return { at => $values[0], count => $values[2], failed => $values[3],
             blocks => $values[5], pools => $values[6],
             later => $values[7], where => $values[8], name => $values[9] };
}


sub set {
    my ($at, $on, $json) = @_;

    sysseek($control, 0, 0);
    syswrite($control, pack('Q5', $at, $on ? 1 : 0, 0, 0, $json ? 1 : 0));
}


# nothing fails any more; what has failed stays to be seen

sub disarm {
    sysseek($control, 0, 0);
    syswrite($control, pack('Q', 0));
}


# a request on a connection of its own; (status, body) or nothing when the
# answer is not whole

sub request {
    return finish(start(@_));
}


sub start {
    my ($method, $uri, $body, %headers) = @_;

    my $fh = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port",
                                   Timeout => 30) or die "connect: $@";

    $headers{'Content-Length'} = length $body if defined $body;
    $headers{'Content-Type'} //= 'application/json' if defined $body;

    my $out = join('', "$method $uri HTTP/1.1\r\nHost: a\r\n",
                       "Connection: close\r\n",
                       map { "$_: $headers{$_}\r\n" } sort keys %headers)
              . "\r\n" . ($body // '');

    local $SIG{PIPE} = 'IGNORE';

    syswrite($fh, $out);

    return $fh;
}


sub finish {
    my ($fh) = @_;
    my $in = '';

    local $SIG{ALRM} = sub { die "no end of the answer\n" };

    alarm(40);

    while (1) {
        my $got = sysread($fh, $in, 65536, length $in);

        last if !$got;
    }

    alarm(0);

    my ($head, $rest) = $in =~ /\A(HTTP\/1\.1 .*?\r\n)\r\n(.*)\z/s or return;
    my ($status) = $head =~ m{\AHTTP/1\.1 (\d+)};

    if ($head =~ /^Transfer-Encoding: chunked\r$/mi) {
        my $text = '';

        while ($rest =~ s/\A([0-9a-f]+)\r\n//i) {
            my $len = hex $1;

            return if length $rest < $len + 2;
            return ($status, $text) if $len == 0;

            $text .= substr($rest, 0, $len);
            substr($rest, 0, $len + 2, '');
        }

        return;
    }

    if ($head =~ /^Content-Length: (\d+)\r$/mi) {
        return if length $rest != $1;
    }

    return ($status, $rest);
}


# The session API: all its calls, one after the other.  A call does what it
# says, or says that it could not.

sub api {
    my ($id, $strict) = @_;
    my ($events, $session) = ('', '');

    my $call = sub {
        my ($expect, $method, $path, $body, %headers) = @_;

        my ($status, $got) = request($method, "/api/sessions$path", $body,
                                     'X-User' => 'u', Origin =>
                                     'https://app.example.com', %headers);

        $status //= 'broken';
        die "$method $path: $status\n"
            if $status ne $expect && ($strict || $status !~ /\A5|broken/);

        json($got) if defined $got && $status ne '204' && length $got
                      && $got !~ /\A<html>/;

        return $status eq $expect ? $got : undef;
    };

    # events that were missed are kept for who asks for them

    my $made = $call->(201, 'POST', '', json({
        conversationId => $id, userEmail => 'a@b.c', variantId => 'v',
        character => { id => 'c', name => 'n', tags => [ 't' ] },
        regulatory => { gdpr => 1 } })) or return '';

    $session = '/' . json($made)->{sessionId};

    $call->(200, 'POST', '', json({ conversationId => $id, userEmail =>
        'a@b.c', variantId => 'v', regulatory => { gdpr => 1 },
        character => { id => 'c', name => 'n', tags => [ 't' ] } }));
    $call->(202, 'POST', "$session/messages",
            '[{"id":"m1","role":"user","content":"Which shoes?"},'
            . '{"id":"m2","role":"assistant","content":"Light ones."},'
            . '{"id":"m3","role":"user","content":"And then?"}]') // return '';

    # the preload is debounced, and its ad belongs to the answer

    my $stream = start('GET', "/api/sessions$session/events", undef,
                       'Last-Event-ID' => 0, 'X-User' => 'u');

    if ($strict) {
        wait_until('the preload', sub {
            my (undef, $text) = request('GET', "/api/sessions$session", undef,
                                        'X-User' => 'u');
            return $text =~ /"preload":"filled"/;
        });
    }

    $call->(202, 'POST', "$session/messages",
            '{"id":"m4","role":"assistant","content":"Light ones."}');
    $call->(200, 'GET', $session);

    my ($status) = request('GET', "/api/sessions$session/ads/m4", undef,
                           'X-User' => 'u');

    die 'GET ads: ' . ($status // 'broken') . "\n"
        if $strict && $status != 200
           || defined $status && $status !~ /\A(?:200|404|5..)\z/;

    $call->(200, 'PATCH', $session, '{"regulatory":{"gdpr":0}}');
    $call->(202, 'POST', "$session/events",
            '{"name":"ad.viewed","code":"inlineAd","payload":{"bidId":"'
            . $bid . '","messageId":"m4","content":"c","format":"f"}}')
        if defined $status && $status == 200;
    $call->(204, 'DELETE', $session);

    # it ends with the session, or it never was one

    disarm() if !$strict;
    $call->(204, 'DELETE', $session);

    ($status, my $text) = finish($stream);

    die "GET events: $status $text\n"
        if $strict && ($status != 200 || $text !~ /event: session.closed/);

    return '';
}


# Message ids are different in each conversation, and without memory for the
# one that the backend gave the message has one of ours.

sub same {
    my ($body) = @_;

    return $body =~ s/kx1_[\w-]+/ID/gr
                 =~ s/("messageId":")[\w-]+(?=","ads":)/$1ID/gr
                 =~ s/(&messageId=)[\w-]+/$1ID/gr;
}


# The member with the ad, and the answer without it: a frame that there is no
# memory to keep takes the ad at its beginning.

sub member {
    my ($body) = @_;
    my $member = qr/"kontext":\{"messageId":"ID","ads":\[[^\]]*\]\}/;

    return $body =~ s/($member),// || $body =~ s/,($member)// ? ($1, $body) : '';
}


# all that a run has taken is given back; events of the worker may still be on
# their way

sub settled {
    return eval {
        wait_until('the memory', sub {
            my $f = faults();

            $nginx->worker_pid;
            return $f->{blocks} == $held[0] && $f->{pools} == $held[1];
        });
        1;
    };
}


# Runs a scenario with each of its calls failing.  run => sub { my ($name) }
# returns what went wrong, or nothing; before => unharmed, the same; after =>
# what has to work again.

sub each_fault {
    my ($name, %args) = @_;

    set(0);
    $args{before}->("$name-0") if $args{before};
    set(0);

    my $wrong = $args{run}->("c-$name-0", '');
    my $start = faults();

    is($wrong // '', '', "$name: nothing fails");
    cmp_ok($start->{count}, '>', $args{least} // 10,
           "$name: calls that may fail");
    ok(settled(), "$name: memory is free again") or diag(json(faults()));

    foreach my $on (0, 1) {
        my $step = $step == 1 ? 1 : $step * ($args{step} // 1);
        my ($runs, @wrong, %names) = (0);

        for (my $at = 1 + int(rand $step); ; $at += $step) {
            my $id = "$name-$on-$at";

            $args{before}->($id) if $args{before};

            set($at, $on, $args{json});

            my $start = time;
            my @got = eval { $args{run}->($id) };
            my $died = $@;
            my $took = time - $start;
            my $f = faults();

            set(0);

            last if $f->{failed} == 0;

            $runs++;
            $names{$f->{name}}++;

            my $what = sprintf('%s at %d, %s+0x%x', $f->{name}, $at,
                               'module', $f->{where});

            push @wrong, "$what: $died" if $died;
            push @wrong, map { "$what: $_" }
                             grep { !($f->{name} =~ $PLAIN && /\Abroken/) }
                             @got;

            push @wrong, sprintf('%s: took %.1f s', $what, $took)
                if $took > 4;

            push @wrong, "$what: memory is not given back: "
                         . json(faults())
                if !settled();

            my $after = $args{after} ? eval { $args{after}->($id) } // $@ : '';

            push @wrong, "$what: afterwards: $after" if $after;

            last if @wrong > 20;
        }

        is(join("\n", @wrong), '',
           sprintf('%s: %s, %d times', $name,
                   $on ? 'all from one call on fail' : 'one call fails',
                   $runs));
        note(join(', ', map { "$_ $names{$_}" } sort keys %names));
    }
}


# a chat: the answer is the backend's, or the one with the ad

my $hi = '"messages":[{"role":"user","content":"Which shoes?"},'
         . '{"role":"assistant","content":"Light ones."},'
         . '{"role":"user","content":"And then?"}]';

my %formats = (
    openai_chat      => [ 'v1/chat/completions',
                          qq({"model":"m","stream":true,$hi}) ],
    openai_responses => [ 'v1/responses',
                          '{"model":"m","stream":true,"input":"hi"}' ],
    anthropic        => [ 'v1/messages',
                          qq({"model":"m","stream":true,"max_tokens":9,$hi}) ],
    ollama           => [ 'api/chat', qq({"model":"m",$hi}) ],
    gemini           => [ 'v1beta/models/g:streamGenerateContent',
                          '{"contents":[{"parts":[{"text":"hi"}]}]}' ],
    ai_sdk_ui        => [ 'ui/api/chat',
                          '{"id":"c","messages":[{"id":"m","role":"user",'
                          . '"parts":[{"type":"text","text":"hi"}]}]}' ],
);

sub chat_faults {
    my ($where, $format, $file, %args) = @_;
    my ($uri, $body) = @{$formats{$format}};
    my $plain = $files{"html/$file"};
    my $ad;

    $body = $args{body} if $args{body};
    $uri = "/$where/$uri?file=$file&size=" . ($args{size} // 97);

    my $run = sub {
        my ($id) = @_;

        my ($status, $got) = request('POST', $uri, $body,
                                     'X-User' => 'u', 'X-Conversation' => $id,
                                     'User-Agent' => 'Mozilla/5.0 (X11; Linux)',
                                     'Accept-Language' => 'de-DE,de;q=0.7');

        settled() if $args{stored};

        return 'broken' if !defined $status || $status =~ /\A5/;
        return "status $status" if $status != 200;
        return if $got eq $plain || same($got) eq ($ad // '');

        my ($member, $rest) = member(same($got));

        return if $member && $member eq (member($ad // ''))[0]
                  && $rest eq $plain;
        return "broken: not the answer: $got";
    };

    if (!$args{none}) {
        my (undef, $got) = request('POST', $uri, $body, 'X-User' => 'u',
                                   'X-Conversation' => 'first-' . ++$n);

        like($got, qr/\Q$bid\E/, "$where, $file: the ad is there");
        $ad = same($got);
    }

    # the next turn of the same conversation has its ad

    my $next = $body =~ s/And then\?|(?<=")hi(?=")/What else?/r;

    my $after = sub {
        my ($id) = @_;

        my ($status, $got) = request('POST', $uri, $next, 'X-User' => 'u',
                                     'X-Conversation' => $id);

        return 'broken' if !defined $status;
        return "status $status" if $status != 200;
        return $args{none} && $got eq $plain ? ''
               : same($got) ne ($ad // '') ? 'no ad' : '';
    };

    # one before is in the store, and the session

    my $before = sub {
        my ($id) = @_;

        request('POST', $uri, $body =~ s/And then\?|(?<=")hi(?=")/And?/r,
                'X-User' => 'u', 'X-Conversation' => $id);
        settled();
    };

    each_fault("$where-" . ($args{name} // $file), run => $run,
               after => $after, json => $args{json},
               $args{stored} && $args{stored} eq 'known'
               ? (before => $before) : ());
}


chat_faults('piped', 'openai_chat', 'openai-chat.sse', json => 1);
chat_faults('cut', 'openai_chat', 'openai-chat.sse', size => 7);
chat_faults('piped', 'openai_chat', 'openai-chat.response.json');
chat_faults('text', 'openai_chat', 'openai-chat.sse');
chat_faults('text', 'openai_chat', 'openai-chat.response.json');
chat_faults('piped', 'openai_responses', 'openai-responses.sse');
chat_faults('piped', 'anthropic', 'anthropic.sse');
chat_faults('piped', 'ollama', 'ollama.ndjson');
chat_faults('piped', 'gemini', 'gemini.sse');
chat_faults('piped', 'gemini', 'gemini-array.json');
chat_faults('piped', 'ai_sdk_ui', 'ai-sdk-ui.sse');
chat_faults('down', 'openai_chat', 'openai-chat.sse', none => 1);

# a session that is new to the store, and one that is there

chat_faults('stored', 'openai_chat', 'openai-chat.sse', stored => 'new');
chat_faults('stored', 'openai_chat', 'openai-chat.sse', stored => 'known',
            name => 'known');
chat_faults('stored', 'openai_chat', 'openai-chat.sse', stored => 'known',
            name => 'spooled', body => $formats{openai_chat}[1]
                                       =~ s/Light ones/'x' x 5000/re);

{
    my (undef, $text) = request('GET', '/status');
    my ($store) = grep { $_->{location} eq '/_store' }
                      @{json($text)->{breakers}};
    my $n = json($text)->{records};

    is($store->{opened}, 0, 'the store was not left alone');
    cmp_ok($n->{$_}, '>', 10, "the store: $_") foreach qw(found missing saved);
}


# text ads of the past, taken out of a body in memory and of one in a file

{
    my ($uri, $body) = @{$formats{openai_chat}};
    my (undef, $got) = request('POST', "/text/$uri?file=openai-chat.sse",
                               $body, 'X-User' => 'u',
                               'X-Conversation' => 'past');

    my ($ad) = $got =~ /(\\n\\n\\u2063[^"]*\\u2063)/;

    ok(defined $ad, 'an ad of the past');

    foreach my $where ('text', 'spooled') {
        # larger than what a worker keeps for bodies

        my $long = $where eq 'spooled' ? 'x' x 2_200_000 : '';

        chat_faults($where, 'openai_chat', 'openai-chat.sse',
                    name => 'with-an-ad', body =>
                    $body =~ s/Light ones\./Light ones.$long$ad/r);
    }
}

each_fault('session-api', json => 1, step => 5,
           run   => sub { api($_[0], 0); return },
           after => sub { api("$_[0]-after", 1) });

foreach my $query ('', '?format=prometheus') {
    my $run = sub {
        my ($status, $got) = request('GET', "/status$query");

        return if !defined $status || $status =~ /\A5/;
        return "status $status" if $status != 200 || $got !~ /injected/;
        return;
    };

    each_fault("status$query", least => 1, run => $run,
               after => sub { $run->() // '' });
}

# what a timer frees

ok(eval { wait_until('the timers', sub { faults()->{later} == 0 }); 1 },
   'what the sessions had is free again');

$nginx->stop_ok;

done_testing;
