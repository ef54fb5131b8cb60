#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# ad-server.pl [port [seconds-per-preload]]
#
# A Kontext ad server for the demo: checks what it is sent as strictly as the
# protocol says, fills every preload with an ad that fits the last message,
# and shows its frame, once, its full screen part, and where it leads.  The
# brands are made up.

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
      text  => 'Sleeper trains across Europe from 49 €, bikes welcome.' },
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


# a page of demo/creative with the values of @names@ put in

sub page {
    my ($request, $status, $name, %values) = @_;
    my $html = file("$name.html");

    $html =~ s/\@(\w+)\@/html($values{$1} \/\/ '')/ge;
    utf8::encode($html);

    $request->respond($status, $html,
        'Content-Type'            => 'text/html; charset=utf-8',
        'Cache-Control'           => 'no-store',
        'Referrer-Policy'         => 'no-referrer',
        'X-Content-Type-Options'  => 'nosniff',
        'Content-Security-Policy' => "default-src 'none'; style-src 'self'; "
            . "script-src 'self'; img-src data:; base-uri 'none'; "
            . "form-action 'none'");
    note($request, $status);
}


sub file {
    my ($name) = @_;

    open(my $fh, '<:encoding(UTF-8)', "$FindBin::Bin/creative/$name")
        or die "$name: $!\n";
    local $/;

    return scalar <$fh>;
}


sub values_of {
    my ($request, $id) = @_;
    my $bid = $bids{$id} or return;
    my $theme = ($request->arg('theme') // '') =~ /(light|dark)/ ? $1 : 'auto';

    return (
        %{$bid->{ad}},
        id        => $id,
        code      => $bid->{code},
        messageId => $request->arg('messageId') // '',
        theme     => $theme,
    );
}


# a bid is rendered once; who looks at the address in a tab renders nothing

sub frame {
    my ($request, $id) = @_;
    my %values = values_of($request, $id);
    my $embedded = ($request->header('Sec-Fetch-Dest') // '') eq 'iframe';

    return page($request, 404, 'error', message => 'No such bid') if !%values;
    return page($request, 200, 'error', message => 'Double render', %values)
        if $embedded && $bids{$id}{rendered}++;

    page($request, 200, 'inline', %values);
}


sub modal {
    my ($request, $id) = @_;
    my %values = values_of($request, $id);

    return page($request, 404, 'error', message => 'No such bid') if !%values;

    page($request, 200, 'modal', %values);
}


# where a click leads

sub landing {
    my ($request, $id) = @_;
    my %values = values_of($request, $id);

    page($request, %values ? 200 : 404, %values ? 'landing' : 'error',
         message => 'No such bid', %values);
}


sub asset {
    my ($request, $name, $type) = @_;
    my $text = file($name);

    utf8::encode($text);
    $request->respond(200, $text, 'Content-Type' => "$type; charset=utf-8",
                      'Cache-Control' => 'no-store',
                      'X-Content-Type-Options' => 'nosniff');
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

my %PAGES = (
    'api/frame' => \&frame,
    'api/modal' => \&modal,
    'landing'   => \&landing,
);

my %ASSETS = (
    '/creative/creative.css' => 'text/css',
    '/creative/creative.js'  => 'text/javascript',
);

my $PAGE = qr{\A/(@{[join '|', keys %PAGES]})/($UUID)\z};

Kontext::Demo::Server->run(
    port     => $port // 0,
    max_body => MAX_BODY,
    handler  => sub {
        my ($request) = @_;

        if (my $call = $CALLS{$request->path}) {
            return $call->($request) if $request->method eq 'POST';
            return $request->respond(405, '', Allow => 'POST');
        }

        if (my ($page, $rest) = $request->path =~ $PAGE) {
            return $request->respond(405, '', Allow => 'GET, HEAD')
                if $request->method !~ /\A(?:GET|HEAD)\z/;
            return $PAGES{$page}->($request, $rest);
        }

        if (my $type = $ASSETS{$request->path}) {
            return asset($request, $request->path =~ s{.*/}{}r, $type);
        }

        $request->respond(404, { error => 'nothing here' });
    },
);
