#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Nothing that an ad server or a model says breaks out of the string it is in,
# nor do a client's words become lines of a header: the entries of
# t/corpora/injections.json in ad answers of all formats, each answer read by
# JSON::PP and by a reader of SSE as the standard has it.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ApiSite;
use EventStream;

my $ORIGIN = 'https://server.megabrain.co';
my $BID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
my $SESSION = '019a5c20-11aa-7e02-8b6c-0d4e92f1a3c5';
my $MARK = "\x{2063}";

my %TYPE = (sse => 'text/event-stream', lines => 'application/x-ndjson',
            array => 'application/json', whole => 'application/json');

my $URL = qr{\Q$ORIGIN\E/api/frame/\Q$BID\E\?code=inlineAd
             &messageId=[A-Za-z0-9._~%-]+&sdk=sdk-js}x;


sub slurp {
    my ($file) = @_;

    open(my $fh, '<:raw', "$FindBin::Bin/corpora/$file") or die "$file: $!";
    local $/;

    return json(scalar <$fh>);
}


my $groups = slurp('injections.json');
my $kinds = slurp('answers.json');

# [ text or undef, source ]

my @corpus = map {
    my $group = $_;

    map { $group eq 'json_source' ? [ undef, $_ ] : [ $_, source($_) ] }
        @{$groups->{$group}};
} sort keys %$groups;

cmp_ok(scalar @corpus, '>', 300, 'some hundred entries');


# a string as JSON

sub source {
    my ($text) = @_;

    return JSON::PP->new->ascii->allow_nonref->encode($text);
}


# where the ad server says something: its answer around it

my $ad = qq({"bidId":"$BID","code":"inlineAd");

my @fields = (
    [ sessionId => qq({"sessionId":%s,"bids":[$ad}]}) ],
    [ bidId => qq({"sessionId":"$SESSION","bids":[{"bidId":%s,)
               . '"code":"inlineAd"}]}' ],
    [ code => qq({"sessionId":"$SESSION","bids":[$ad},{"bidId":"$SESSION",)
              . '"code":%s}]}' ],
    [ 'the only code' => qq({"sessionId":"$SESSION","bids":[{"bidId":"$BID",)
                         . '"code":%s}]}' ],
    [ revenue => qq({"sessionId":"$SESSION","bids":[$ad,"revenue":%s}]}) ],
    [ errCode => qq({"sessionId":"$SESSION","errCode":%s,"error":%s}) ],
    [ 'errCode for good' => '{"errCode":%s,"permanent":true}' ],
    [ skipCode => qq({"sessionId":"$SESSION","skip":true,"skipCode":%s}) ],
    [ bids => qq({"sessionId":"$SESSION","bids":%s}) ],
    [ 'members of no meaning' => qq({"sessionId":"$SESSION","label":%s,)
      . qq("messageId":%s,"frameUrl":%s,"theme":%s,"bids":[$ad,"label":%s,)
      . '"frameUrl":%s,"url":%s,"html":%s,"messageId":%s}]}' ],
    [ 'a header' => qq({"sessionId":"$SESSION","bids":[$ad}]}) ],
);


# events, lines or the one value of a body: [ name, data ]

sub frames {
    my ($framing, $body) = @_;

    return map { [ '', $_ ] } split /\n/, $body if $framing eq 'lines';
    return [ '', $body ] if $framing ne 'sse';

    die 'a zero byte' if $body =~ /\0/;

    # WHATWG HTML 9.2.6

    my (@frames, @data, $name);

    foreach my $line (split /\r\n|\n|\r/, $body, -1) {
        if ($line eq '') {
            push @frames, [ $name // '', join("\n", @data) ] if @data;
            @data = ();
            undef $name;

        } elsif ($line =~ /\Adata(?:: ?(.*))?\z/s) {
            push @data, $1 // '';

        } elsif ($line =~ /\Aevent: ?(.*)\z/s) {
            $name = $1;
        }
    }

    return @frames;
}


sub decoded {
    my ($framing, $body) = @_;

    return map { [ $_->[0], $_->[1] eq '[DONE]' ? '[DONE]'
                                                : json($_->[1]) ] }
               frames($framing, $body);
}


# takes the members "kontext", and the AI SDK's part, out of decoded frames

sub without {
    my ($found, @frames) = @_;

    my $clean;
    $clean = sub {
        my ($value) = @_;

        if (ref $value eq 'HASH') {
            push @$found, delete $value->{kontext} if exists $value->{kontext};
            $clean->($_) foreach values %$value;

        } elsif (ref $value eq 'ARRAY') {
            $clean->($_) foreach @$value;
        }
    };

    return grep {
        my $data = $_->[1];

        $clean->($data);

        if (ref $data eq 'HASH' && ($data->{type} // '') eq 'data-kontext') {
            push @$found, $data->{data};
            undef $data;
        }

        defined $data;
    } @frames;
}


# each string in decoded frames

sub strings {
    my ($value) = @_;

    return map { strings($_) } @$value if ref $value eq 'ARRAY';
    return map { strings($_) } values %$value if ref $value eq 'HASH';
    return defined $value ? $value : ();
}


# what is wrong with an answer, of which this was sent

sub wrong {
    my ($kind, $form, $sent, $turn) = @_;
    my $body = $turn->{body};
    my $event = $turn->{event};

    return if $event->{injected} eq '' && $body eq $sent;
    return 'changed, without an ad' if $event->{injected} eq '';

    my @was = decoded($kind->{framing}, $sent);
    my @is = eval { decoded($kind->{framing}, $body) } or return "bad: $@";

    return "not on the origin: $event->{frame_url}"
        if $event->{frame_url} !~ /\A$URL\z/;

    if ($form eq 'member') {
        my @found;

        @is = without(\@found, @is);

        return 'no ad' if !@found;
        return 'something else changed' if json(\@is) ne json(\@was);

        foreach my $member (@found) {
            my $ads = delete $member->{ads};

            return 'another member' if join(' ', keys %$member) ne 'messageId'
                                       || ref $ads ne 'ARRAY' || @$ads != 1;
            return 'another ad' if json($ads->[0]) ne json({
                bidId => $BID, code => 'inlineAd', label => 'Sponsored',
                frameUrl => $event->{frame_url},
            });
        }

        return;
    }

    # the strings of the ad are the text and nothing else; an answer's own
    # strings are there still

    my $text = "$MARK\[Sponsored]($event->{frame_url})$MARK";
    my @ads = grep { /\Q$MARK\E\[Sponsored\]/ } strings(\@is);
    my %has = map { $_ => 1 } strings(\@is);

    return 'no ad' if !@ads;

    foreach my $ad (@ads) {
        return "not the ad alone: $ad"
            if $ad !~ /\A(.*)\n\n\Q$text\E\z/s
               || ($1 ne '' && !grep { $_ eq $1 } strings(\@was));
    }

    foreach my $string (strings(\@was)) {
        return "lost: $string"
            if !$has{$string} && !$has{"$string\n\n$text"};
    }

    return;
}


# answers that are no JSON are among them: the breaker would open

my $site = ApiSite->new(
    http   => "    kontext_breaker off;\n",
    server => <<'CONF',
        kontext_publisher_token  acme-dev;
        kontext_breaker          off;
        kontext_user_id          $http_x_user;
        kontext_conversation_id  $http_x_conversation;
        kontext_grace            25s;

        location /text/ {
            kontext         on;
            kontext_inject  text;
            proxy_pass      http://@llm@/;
        }

        # values that clients and models have chosen, in headers

        location /headers/ {
            kontext                  on;
            kontext_user_id          "";
            kontext_conversation_id  "";
            proxy_http_version       1.1;
            proxy_set_header         X-The-User $kontext_session_user;
            proxy_set_header         X-The-Chat $kontext_session_conversation;
            proxy_set_header         X-The-Reason $kontext_reason;
            add_header               X-User $kontext_session_user always;
            add_header               X-Chat $kontext_session_conversation;
            add_trailer              X-Message $kontext_message_id;
            add_trailer              X-Why $kontext_reason;
            proxy_pass               http://@llm@/;
        }
CONF
);

my $n = 0;


# one chat: the model says the entry in each of its strings, the ad server in
# one field

sub chat_of {
    my ($kind, $form, $field, $ad_says, $model_says) = @_;
    my ($name, $answer) = @$field;
    my $sent = $kind->{answer} =~ s/%s/$model_says/gr;
    my @header = ('X-Evil' => 'x');

    $n++;

    if ($name eq 'a header' && $ad_says =~ /\A"/) {
        my $text = eval { JSON::PP->new->allow_nonref->decode($ad_says) };

        @header = ('X-Evil' => encoded($text), 'Set-Cookie' => encoded($text),
                   'Location' => encoded($text));
    }

    $site->ads->on('/preload', 200, $answer =~ s/%s/$ad_says/gr,
                   'Content-Type' => 'application/json', @header);
    $site->ads->sync;

    my $turn = $site->ask($kind->{request},
        uri     => ($form eq 'text' ? '/text' : '') . $kind->{path},
        headers => { 'X-Conversation' => "c-$n" });

    $turn->respond(200, $sent, 'Content-Type' => $TYPE{$kind->{framing}});

    return ({ body => $turn->body, event => $turn->event,
              head => $turn->response->head }, $sent);
}


# as much of a text as may be in a header's value

sub encoded {
    my ($text) = @_;

    $text //= '';
    utf8::encode($text);

    return substr($text =~ tr/\x20-\x7e\x80-\xff//cdr, 0, 1024);
}


# every kind of answer, as member and as text, every field, every entry

{
    my (@wrong, %ads, %seen);
    my $i = 0;

    foreach my $entry (@corpus) {
        my ($text, $source) = @$entry;

        # two kinds of answer for an entry, the next ones for the next; the
        # unit test has all of them for each

        foreach (1 .. 2) {
            my $kind = $kinds->[$i % @$kinds];
            my $form = ('member', 'text')[$i / @$kinds % 2];
            my $field = $fields[$i++ % @fields];

            my ($turn, $sent) = chat_of($kind, $form, $field, $source,
                                        defined $text ? $source : '"m"');
            my $name = "$kind->{name}, $form, $field->[0], "
                       . substr($source, 0, 200);

            push @wrong, map { "$name: $_" } wrong($kind, $form, $sent, $turn);
            push @wrong, "$name: a header of the ad server's"
                if $turn->{head} =~ /X-Evil|Set-Cookie|Location/i;

            my $word = qr/[A-Za-z0-9_.:-]{0,63}/;

            push @wrong, "$name: \$kontext_reason $turn->{event}{reason}"
                if $turn->{event}{reason} !~ /\A$word\z/;
            push @wrong, "$name: \$kontext_session $turn->{event}{session}"
                if $turn->{event}{session} !~ /\A(?:[0-9a-f-]{36})?\z/;
            push @wrong, "$name: \$kontext_revenue $turn->{event}{revenue}"
                if $turn->{event}{revenue} !~ /\A[0-9.]*\z/;

            $ads{"$kind->{name}, $form"}++ if $turn->{event}{injected} ne '';
            $seen{"$kind->{name}, $form"}++;
        }
    }

    is(join("\n", @wrong[0 .. ($#wrong < 20 ? $#wrong : 20)]), '',
       "$n answers: nothing breaks out");

    foreach my $what (sort keys %seen) {
        cmp_ok($ads{$what} // 0, '>', 5, "$what: $ads{$what} had an ad");
    }
}


# the same kind of answer with every field

foreach my $i (0 .. $#fields) {
    my $field = $fields[$i];
    my $m = $i;
    my @wrong;

    foreach my $entry (grep { defined $_->[0] } @corpus) {
        next if $m++ % 16;

        my ($turn, $sent) = chat_of($kinds->[0], 'member', $field,
                                    $entry->[1], '"m"');

        push @wrong, map { "$entry->[1]: $_" }
                         wrong($kinds->[0], 'member', $sent, $turn);
    }

    is(join("\n", @wrong), '', "$field->[0]: nothing breaks out");
}


# ids of the client's and the model's do not become lines of a header

{
    my $body = sub {
        my ($user, $chat) = map { source($_) } @_;

        return qq({"model":"m","user":$user,"session_id":$chat,)
               . '"messages":[{"role":"user","content":"hi"}]}';
    };

    $site->ads->on('/preload', 200, Kontext::Mock->bid);
    $site->ads->sync;

    my ($lines, $chats) = (0, 0);

    foreach my $text (grep { $_ ne '' && length $_ < 60 }
                          @{$groups->{line}}, @{$groups->{sse}})
    {
        my $turn = $site->ask($body->("u$text.", "c$text."),
            uri     => '/headers/v1/chat/completions',
            headers => { 'X-User' => undef, 'X-Conversation' => undef });

        $chats++;
        $turn->answer("Light ones.");

        my $shown = $text =~ s/[\x00-\x1f\x7f]/?/gr;

        utf8::encode($shown);

        my $request = $turn->request;
        my $response = $turn->response;

        $lines++ if ($request->header('X-The-User') // '') ne "u$shown."
                    || ($request->header('X-The-Chat') // '') ne "c$shown."
                    || ($response->header('X-User') // '') ne "u$shown."
                    || ($response->header('X-Chat') // '') ne "c$shown.";

        foreach my $http ($request, $response) {
            $lines++ if defined $http->header('X-Injected')
                        || defined $http->header('X');
        }
    }

    is($lines, 0, "$chats chats: users and conversations in headers");

    # the id of a message is the model's in some formats

    my ($kind) = grep { $_->{name} eq 'ai_sdk_ui' } @$kinds;

    foreach my $text ("a\r\nX-Injected: 1", "a\0b\x7fc") {
        my $turn = $site->ask($kind->{request},
                              uri => "/headers$kind->{path}");
        my $id = source($text);

        $turn->respond(200, $kind->{answer} =~ s/%s/$id/gr,
                       'Content-Type' => 'text/event-stream');

        my ($line, @more) = split /\r\n/, $turn->response->trailers;

        is($line, 'X-Message: ' . ($text =~ s/[\x00-\x1f\x7f]/?/gr),
           'a message id in a trailer');
        is(join('|', @more), '', 'and no line of its own');
    }
}


# what the session API tells of an ad server's answers and of a page's reports

{
    my @wrong;
    my $told = 0;
    my $id = $site->session;
    my $stream = EventStream->open($site->nginx->client,
                                   "/kontext/sessions/$id/events");
    my $m = 0;

    $site->ads->on('/preload', 200, Kontext::Mock->bid);
    $site->ads->sync;

    $site->add($id, $site->message('m1', user => 'Hi'));
    $site->add($id, $site->message('m2', assistant => 'Hi.'));
    $site->settled($id, 'filled');
    is($stream->next_event->{event}, 'ad.filled', 'an ad to report on');

    foreach my $entry (grep { defined $_->[0] && $_->[0] =~ /\A[^\0]+\z/ }
                           @corpus)
    {
        my ($text, $source) = @$entry;

        next if $m++ % 4;

        my $code = length encoded($text) < 32 ? $source : '"inlineAd"';
        my $res = $site->report($id, qq({"name":"ad.clicked","code":$code,)
            . qq("payload":{"bidId":"$BID","messageId":"m2","url":$source,)
            . qq("content":$source,"format":$source,"area":$source,)
            . qq("x":$source}}));

        if ($res->status != 202) {
            push @wrong, "$source: " . $res->body
                if $site->code($res) ne 'too_large';
            next;
        }

        $told++;

        # EventStream reads nothing but whole events of one line each

        my $event = $stream->next_event;

        push @wrong, "$source: " . json($event)
            if $event->{event} ne 'ad.clicked';
        push @wrong, "$source: in another form"
            if ($event->{payload}{content} // "") ne $text;
    }

    is(join("\n", @wrong), '', "reports of a page: $told are told");
    cmp_ok($told, '>', 50, 'most of them');
    $stream->close;
}

{
    my @wrong;
    my $m = 0;
    my $told = 0;

    foreach my $entry (@corpus) {
        my ($text, $source) = @$entry;

        next if $m++ % 6;

        $site->ads->on('/preload', 200,
                       $m % 4 ? qq({"sessionId":"$SESSION","errCode":$source})
                              : qq({"sessionId":"$SESSION","skip":true,)
                                . qq("skipCode":$source}),
                       'Content-Type' => 'application/json');
        $site->ads->sync;

        my $id = $site->session;
        my $stream = EventStream->open($site->nginx->client,
                                       "/kontext/sessions/$id/events");

        $site->add($id, $site->message('m1', user => 'Hi'));

        my $event = $stream->next_event;

        $told++;
        push @wrong, "$source: " . json($event)
            if $event->{event} !~ /\Aad\.(?:error|no-fill|filled)\z/;
        push @wrong, "$source: the state"
            if ref $site->state($id)->{ads} ne 'HASH';

        $stream->close;
        $site->close($id);
    }

    is(join("\n", @wrong), '', "$told codes of the ad server are told");
}

$site->stop_ok;

done_testing;
