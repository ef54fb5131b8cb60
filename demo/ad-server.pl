#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# ad-server.pl [port [seconds-per-preload]]
#
# A Kontext ad server for the demo: checks what it is sent as strictly as the
# protocol says, fills every preload with an ad that fits the last message,
# and shows its frame.  The brands are made up.

use strict;
use warnings;
use utf8;

use FindBin ();
use lib "$FindBin::Bin/lib";

use JSON::PP ();
use Kontext::Demo::Server ();

use constant {
    MAX_BODY     => 1024 * 1024,
    MAX_BIDS     => 10_000,
    MAX_SESSIONS => 10_000,
    LATENCY      => 0.4,                # s, an auction takes its time
};

my ($port, $latency) = @ARGV;

die "usage: ad-server.pl [port [seconds-per-preload]]\n"
    if @ARGV > 2 || grep { !/\A\d+(?:\.\d+)?\z/ } @ARGV;

$latency //= LATENCY;

my @ADS = (
    { words => qr/shoe|run|marathon|trainer/i, brand => 'Stride & Co.',
      icon => '👟', revenue => 0.0061, button => 'Find your pair',
      title => 'Shoes that go the whole 42 km',
      text  => 'Gait analysis at home, 60 days to try, free returns.' },
    { words => qr/cook|recipe|pasta|dinner|eat/i, brand => 'Casa Lunga',
      icon => '🍝', revenue => 0.0034, button => 'See the box',
      title => 'Pecorino and pepper, straight from Lazio',
      text  => 'Four boxes a year with what a good kitchen runs out of.' },
    { words => qr/travel|trip|visit|lisbon|city|weekend/i, brand => 'Nightline',
      icon => '🚆', revenue => 0.0078, button => 'Check dates',
      title => 'Wake up in Lisbon',
      text  => 'Sleeper trains across Europe from 49 €, bikes welcome.' },
    { words => qr/code|program|nginx|bug|python/i, brand => 'Tracewell',
      icon => '🔎', revenue => 0.0052, button => 'Start free',
      title => 'See every request, keep every millisecond',
      text  => 'Tracing for teams that read their own logs.' },
    { words => qr/./s, brand => 'Paperleaf',
      icon => '🌿', revenue => 0.0029, button => 'Have a look',
      title => 'The notebook that plans one step at a time',
      text  => 'Recycled paper, ninety days, no subscription.' },
);

my %SDK = map { $_ => 1 } qw(sdk sdk-js sdk-react sdk-react-native sdk-flutter
                             sdk-kotlin sdk-swift);
my %PLATFORM = map { $_ => 1 } qw(ios android web);
my %DEVICE = map { $_ => 1 } qw(handset tablet desktop tv other);
my $UUID = qr/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/;

my $json = JSON::PP->new->utf8;
my (%bids, @bids, %sessions, @sessions);

open(my $urandom, '<:raw', '/dev/urandom') or die "/dev/urandom: $!\n";


sub uuid {
    read($urandom, my $bytes, 16) == 16 or die "/dev/urandom: $!\n";

    vec($bytes, 6, 8) = vec($bytes, 6, 8) & 0x0f | 0x40;
    vec($bytes, 8, 8) = vec($bytes, 8, 8) & 0x3f | 0x80;

    return join '-', unpack('H8 H4 H4 H4 H12', $bytes);
}


# checks; each dies with what is wrong, as the path of the member and a text

sub wrong { die [ @_ ] }

sub is_number {
    my ($value) = @_;

    return defined $value && !ref $value
           && $value =~ /\A-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\z/;
}


sub want_string {
    my ($object, $name, $path, %args) = @_;
    my $value = $object->{$name};
    my $at = $path eq '' ? $name : "$path.$name";

    if (!exists $object->{$name}) {
        return if $args{optional};
        wrong($at, 'is required');
    }

    wrong($at, 'must be a string') if !defined $value || ref $value;
    wrong($at, 'must not be empty') if $value eq '' && !$args{empty};
    wrong($at, "must be $args{what}")
        if $args{like} && $value !~ /\A$args{like}\z/;
    wrong($at, "has an unknown value: $value")
        if $args{in} && !$args{in}{$value};

    return $value;
}


sub want_object {
    my ($object, $name, $path, %args) = @_;
    my $at = $path eq '' ? $name : "$path.$name";

    if (!exists $object->{$name}) {
        return if $args{optional};
        wrong($at, 'is required');
    }

    wrong($at, 'must be an object') if ref $object->{$name} ne 'HASH';

    return $object->{$name};
}


sub want_number {
    my ($object, $name, $path) = @_;

    wrong("$path.$name", 'must be a number')
        if !is_number($object->{$name});
}


# unknown is said by leaving out, never by null

sub no_nulls {
    my ($root) = @_;
    my @left = ([ $root, '' ]);

    while (my $item = pop @left) {
        my ($value, $path) = @$item;

        if (ref $value eq 'HASH') {
            push @left, map { [ $value->{$_},
                                $path eq '' ? $_ : "$path.$_" ] } keys %$value;

        } elsif (ref $value eq 'ARRAY') {
            push @left, map { [ $value->[$_], $path . "[$_]" ] } 0 .. $#$value;

        } elsif (!defined $value) {
            wrong($path, 'must be left out, not null');
        }
    }
}


sub check_common {
    my ($request, $body) = @_;
    my $token = want_string($body, 'publisherToken', '');
    my $header = $request->header('Kontextso-Publisher-Token');

    wrong('Kontextso-Publisher-Token', 'must be the publisherToken')
        if !defined $header || $header ne $token;

    want_string($body, 'userId', '');

    my $sdk = want_object($body, 'sdk', '');

    want_string($sdk, 'name', 'sdk', in => \%SDK);
    want_string($sdk, 'platform', 'sdk', in => \%PLATFORM);
    want_string($sdk, 'version', 'sdk', like => qr/\d+\.\d+\.\d+/,
                what => 'major.minor.patch');
}


sub check_init {
    my ($request, $body) = @_;

    check_common($request, $body);
    want_string($body, 'installId', '', like => $UUID, what => 'a UUID');
}


sub check_messages {
    my ($messages) = @_;
    my %seen;

    wrong('messages', 'must be a list of 1 to 30')
        if ref $messages ne 'ARRAY' || @$messages < 1 || @$messages > 30;

    foreach my $i (0 .. $#$messages) {
        my ($message, $at) = ($messages->[$i], "messages[$i]");

        wrong($at, 'must be an object') if ref $message ne 'HASH';

        my $id = want_string($message, 'id', $at);

        wrong("$at.id", 'must be unique') if $seen{$id}++;

        want_string($message, 'role', $at,
                    in => { user => 1, assistant => 1 });
        want_string($message, 'content', $at);
        want_string($message, 'createdAt', $at,
                    like => qr/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/,
                    what => 'ISO 8601 in UTC with milliseconds');
    }

    wrong('messages', 'must end with the user')
        if $messages->[-1]{role} ne 'user';
}


sub check_preload {
    my ($request, $body) = @_;

    check_common($request, $body);

    my $disabled = $request->header('Kontextso-Is-Disabled') // '';

    wrong('Kontextso-Is-Disabled', 'must be 0 or 1')
        if $disabled !~ /\A[01]\z/;

    want_string($body, 'conversationId', '');
    want_string($body, $_, '', like => $UUID, what => 'a UUID', optional => 1)
        foreach 'installId', 'sessionId';
    want_string($body, $_, '', optional => 1)
        foreach 'userEmail', 'variantId', 'advertisingId', 'vendorId';

    my $codes = $body->{enabledPlacementCodes};

    wrong('enabledPlacementCodes', 'must be a list of codes')
        if ref $codes ne 'ARRAY' || !@$codes
           || grep { ref || $_ eq '' } @$codes;

    check_messages($body->{messages});

    my $device = want_object($body, 'device', '');
    my $hardware = want_object($device, 'hardware', 'device');
    my $os = want_object($device, 'os', 'device');
    my $screen = want_object($device, 'screen', 'device');

    want_string($hardware, 'type', 'device.hardware', in => \%DEVICE);
    want_string($os, $_, 'device.os', empty => 1)
        foreach 'name', 'version', 'locale', 'timezone';
    want_number($screen, $_, 'device.screen')
        foreach 'width', 'height', 'dpr';
    wrong('device.screen.darkMode', 'must be a boolean')
        if !JSON::PP::is_bool($screen->{darkMode});

    if (my $character = want_object($body, 'character', '', optional => 1)) {
        want_string($character, $_, 'character') foreach 'id', 'name';
    }

    if (my $regulatory = want_object($body, 'regulatory', '', optional => 1)) {
        wrong('regulatory', 'must be left out when empty') if !%$regulatory;

        foreach my $name ('gdpr', 'coppa') {
            wrong("regulatory.$name", 'must be 0 or 1')
                if exists $regulatory->{$name}
                   && $regulatory->{$name} !~ /\A[01]\z/;
        }
    }
}


# the body as data, or nothing after a 400

sub body_of {
    my ($request, $check) = @_;
    my $body;

    my $ok = eval {
        wrong('Content-Type', 'must be application/json')
            if ($request->header('Content-Type') // '')
               !~ m{\Aapplication/json\s*(?:;|\z)}i;

        $body = eval { $json->decode($request->body) };

        wrong('body', 'is not a JSON object') if ref $body ne 'HASH';
        no_nulls($body);
        $check->($request, $body);
        1;
    };

    return $body if $ok;
    die $@ if ref $@ ne 'ARRAY';

    my ($path, $what) = @{$@};

    $request->respond(400, {
        errCode => 'invalid_request',
        error   => "$path $what",
    });
    note($request, 400, "$path $what");

    return;
}


sub note {
    my ($request, $status, $what) = @_;
    my $line = join ' ', $request->method, $request->path, $status, $what // '';

    utf8::encode($line) if utf8::is_utf8($line);
    $line =~ s/[\x00-\x1f]/?/g;

    print STDERR "$line\n";
}


# one session for a conversation of a user, for as long as we remember it

sub session_of {
    my ($body) = @_;
    my $key = $json->encode([ map { $body->{$_} } 'publisherToken', 'userId',
                                                  'conversationId' ]);

    if (!$sessions{$key}) {
        $sessions{$key} = uuid();
        push @sessions, $key;
        delete $sessions{shift @sessions} if @sessions > MAX_SESSIONS;
    }

    return $sessions{$key};
}


sub init {
    my ($request) = @_;

    body_of($request, \&check_init) or return;

    $request->respond(200, {
        enabled        => JSON::PP::true,
        preloadTimeout => 8000,
        reportErrors   => JSON::PP::true,
        reportDebug    => JSON::PP::false,
    });
    note($request, 200);
}


sub preload {
    my ($request) = @_;
    my $body = body_of($request, \&check_preload) or return;
    my $answer = { sessionId => session_of($body) };
    my $note;

    if ($request->header('Kontextso-Is-Disabled') eq '1') {
        $answer->{bids} = [];
        $answer->{skip} = JSON::PP::true;
        $answer->{skipCode} = $note = 'ads_disabled';

    } else {
        my $question = $body->{messages}[-1]{content};
        my ($ad) = grep { $question =~ $_->{words} } @ADS;
        my $id = uuid();

        $bids{$id} = { ad => $ad, code => $body->{enabledPlacementCodes}[0] };
        push @bids, $id;
        delete $bids{shift @bids} if @bids > MAX_BIDS;

        $answer->{bids} = [ {
            bidId             => $id,
            code              => $bids{$id}{code},
            revenue           => $ad->{revenue},
            impressionTrigger => 'immediate',
        } ];
        $note = "$ad->{brand} $id";
    }

    $request->server->after($latency, sub {
        $request->respond(200, $answer) if !$request->gone;
        note($request, $request->gone ? 499 : 200, $note);
    });
}


sub html {
    my ($text) = @_;
    my %entity = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;',
                  '"' => '&quot;', "'" => '&#39;');

    $text =~ s/([&<>"'])/$entity{$1}/g;

    return $text;
}


sub script {
    my ($value) = @_;
    my $text = JSON::PP->new->ascii->allow_nonref->encode($value);

    # neither the end of the script nor a comment may be in it

    $text =~ s/([<>&])/sprintf('\u%04x', ord $1)/ge;

    return $text;
}


sub frame {
    my ($request, $id) = @_;
    my $bid = $bids{$id};

    if (!$bid) {
        $request->respond(404, { error => 'no such bid' });
        note($request, 404);
        return;
    }

    my $ad = $bid->{ad};
    my $theme = ($request->arg('theme') // '') =~ /(light|dark)/ ? $1 : 'auto';
    my %text = map { $_ => html($ad->{$_}) } qw(brand icon title text button);
    my $data = script({
        id        => $id,
        code      => $bid->{code},
        messageId => $request->arg('messageId') // '',
        content   => $ad->{title},
    });

    my $page = <<"END";
<!DOCTYPE html>
<html lang="en" data-theme="$theme">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sponsored: $text{brand}</title>
<style>
:root { color-scheme: light dark; --ink: #1a1c20; --soft: #666c76;
        --card: #fff; --edge: #e3e6ea; --mark: #3a5bd9; --glow: #eef2ff; }
\@media (prefers-color-scheme: dark) {
    :root:not([data-theme=light]) { --ink: #f1f3f6; --soft: #a3aab5;
        --card: #1d2026; --edge: #343943; --mark: #8ea6ff; --glow: #262c3d; }
}
:root[data-theme=light] { color-scheme: light; }
:root[data-theme=dark] { color-scheme: dark; --ink: #f1f3f6; --soft: #a3aab5;
    --card: #1d2026; --edge: #343943; --mark: #8ea6ff; --glow: #262c3d; }
* { box-sizing: border-box; margin: 0; }
body { background: transparent; color: var(--ink); padding: 8px;
       font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto,
             sans-serif; }
.ad { display: flex; flex-wrap: wrap; align-items: center; gap: 14px;
      max-width: 560px; padding: 14px 16px; background: var(--card);
      border: 1px solid var(--edge); border-radius: 14px; }
.icon { flex: none; width: 52px; height: 52px; border-radius: 12px;
        display: grid; place-items: center; font-size: 28px;
        background: var(--glow); }
.words { flex: 1 1 220px; min-width: 0; }
.label { color: var(--soft); font-size: 12px; letter-spacing: .02em; }
.label b { font-weight: 600; color: var(--ink); }
h1 { font-size: 16px; line-height: 1.3; margin: 2px 0; }
p { color: var(--soft); font-size: 14px; }
a { flex: none; padding: 8px 14px; border-radius: 999px; font-weight: 600;
    font-size: 14px; text-decoration: none; color: var(--card);
    background: var(--mark); }
a:focus-visible { outline: 2px solid var(--ink); outline-offset: 2px; }
</style>
</head>
<body>
<main class="ad">
<div class="icon" aria-hidden="true">$text{icon}</div>
<div class="words">
<div class="label">Sponsored · <b>$text{brand}</b></div>
<h1>$text{title}</h1>
<p>$text{text}</p>
</div>
<a href="https://example.com/" target="_blank"
   rel="sponsored noopener">$text{button}</a>
</main>
<script>
var ad = $data;
function tell(type, data) {
    data.code = ad.code;
    if (window.parent !== window) {
        window.parent.postMessage({ type: type, data: data }, '*');
    }
}
function size() {
    tell('resize-iframe', { height: document.documentElement.offsetHeight });
}
addEventListener('message', function (e) {
    if (e.source !== window.parent || !e.data
        || e.data.type !== 'update-iframe') { return; }
    var other = e.data.data && e.data.data.otherParams;
    var theme = /light|dark/.exec(other && other.theme || '');
    if (theme) { document.documentElement.dataset.theme = theme[0]; }
    tell('show-iframe', {});
    size();
    tell('ad-done-iframe', { id: ad.id, content: ad.content });
});
addEventListener('resize', size);
document.querySelector('a').addEventListener('click', function () {
    tell('event-iframe', { name: 'ad.clicked', payload: { id: ad.id,
        messageId: ad.messageId, content: ad.content, url: this.href,
        format: 'text', area: 'button' } });
});
tell('init-iframe', {});
</script>
</body>
</html>
END

    utf8::encode($page);
    $request->respond(200, $page,
        'Content-Type'  => 'text/html; charset=utf-8',
        'Cache-Control' => 'no-store',
        'Referrer-Policy' => 'no-referrer',
        'Content-Security-Policy' => "default-src 'none'; "
            . "style-src 'unsafe-inline'; script-src 'unsafe-inline'");
    note($request, 200);
}


sub report {
    my ($request) = @_;

    note($request, 204, $request->body);
    $request->respond(204);
}


my %CALLS = (
    '/init'    => \&init,
    '/preload' => \&preload,
    '/error'   => \&report,
    '/debug'   => \&report,
);

Kontext::Demo::Server->run(
    port     => $port // 0,
    max_body => MAX_BODY,
    handler  => sub {
        my ($request) = @_;

        if (my $call = $CALLS{$request->path}) {
            return $call->($request) if $request->method eq 'POST';
            return $request->respond(405, '', Allow => 'POST');
        }

        if ($request->path =~ m{\A/api/frame/($UUID)\z}) {
            my $id = $1;

            return frame($request, $id)
                if $request->method =~ /\A(?:GET|HEAD)\z/;
            return $request->respond(405, '', Allow => 'GET, HEAD');
        }

        $request->respond(404, { error => 'nothing here' });
    },
);
