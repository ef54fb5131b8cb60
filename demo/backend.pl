#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# backend.pl [port [tokens-per-second]]
#
# A chat backend for the demo.  It speaks the format of OpenAI's chat
# completions and knows a few answers, which it types at the pace of a model.

use strict;
use warnings;
use utf8;

use FindBin ();
use lib "$FindBin::Bin/lib";

use JSON::PP ();
use Kontext::Demo::Server ();

use constant {
    MAX_BODY    => 16 * 1024 * 1024,
    FIRST_TOKEN => 0.25,                # s, a model thinks before it speaks
    RATE        => 25,                  # tokens/s
};

my ($port, $rate) = @ARGV;

die "usage: backend.pl [port [tokens-per-second]]\n"
    if @ARGV > 2 || grep { !/\A\d+\z/ } @ARGV;

$rate ||= RATE;


# the first whose words are in the user's last message

my @ANSWERS = (
    [ qr/\bhello\b/i, "Hello!\n" ],

    [ qr/shoe|run|marathon|trainer/i, <<'END' ],
For a first marathon, comfort beats speed. Look for **8–10 mm of drop**, plenty of cushioning and half a size more than your street shoes: feet swell on long runs.

1. Try them on in the evening, with your running socks.
2. Take two pairs and alternate them; foam needs a day to recover.
3. Replace them after 500–800 km.

And never race in new shoes. 🏃
END

    [ qr/cook|recipe|pasta|dinner|eat/i, <<'END' ],
Try *cacio e pepe*: four ingredients, twenty minutes.

Cook 200 g of spaghetti in little, barely salted water. Toast crushed pepper in a dry pan, add a ladle of the starchy water, then the pasta. Off the heat, stir in 100 g of finely grated pecorino mixed to a paste with cold water – if the pan is too hot, the cheese turns to rubber. Serve at once. Buon appetito!
END

    [ qr/travel|trip|visit|lisbon|city|weekend/i, <<'END' ],
Three days are perfect for Lisbon.

- **Day 1:** Alfama on foot before the crowds, tram 28 only for the photo, sunset at Miradouro da Graça.
- **Day 2:** Belém – the monastery at opening time, then pastéis de nata still warm.
- **Day 3:** The train to Sintra; book the Pena Palace for the first slot.

May and September are the best months: 22 °C and half the queues.
END

    [ qr/code|program|nginx|bug|python/i, <<'END' ],
When a stream stalls behind nginx, look at buffering first. `proxy_buffering off;` in the location hands every piece on as it comes, and `proxy_http_version 1.1;` with an empty `Connection` header keeps the upstream connection open.

Then watch it yourself: `curl -N` shows each event when it arrives. If the events come in bursts, something between you and the model still collects them.
END

    [ qr/./s, <<'END' ],
Good question! Here is how I would go about it: write down what you want to have in the end, in one sentence. Then find the smallest step that gets you closer and that you can finish today. Do it, look at the result, and only then plan the next one.

If you tell me a little more, I can be more specific – ask me about running shoes, dinner, a weekend in Lisbon or nginx.
END
);

my $json = JSON::PP->new->utf8->allow_nonref;


sub text_of {
    my ($message) = @_;
    my $content = $message->{content};

    return $content if !ref $content;
    return '' if ref $content ne 'ARRAY';

    return join "\n", map { $_->{text} }
                      grep { ref eq 'HASH' && ($_->{type} // '') eq 'text'
                             && defined $_->{text} && !ref $_->{text} }
                           @$content;
}


sub answer_to {
    my ($messages) = @_;
    my ($last) = grep { ref eq 'HASH' && ($_->{role} // '') eq 'user' }
                      reverse @$messages;
    my $question = $last ? text_of($last) // '' : '';

    $question = ' ' if $question eq '';

    foreach my $answer (@ANSWERS) {
        my ($words, $text) = @$answer;

        chomp $text;
        return $text if $question =~ $words;
    }
}


# pieces such as a tokenizer's

sub tokens {
    my ($text) = @_;

    return $text =~ /( ?\w{1,7}| ?[^\w\s]{1,2}|\n+|\s)/g;
}


sub failure {
    my ($request, $status, $message, $param) = @_;

    $request->respond($status, { error => {
        message => $message,
        type    => 'invalid_request_error',
        param   => $param,
        code    => undef,
    } });
}


sub random_id {
    my @alphabet = ('A' .. 'Z', 'a' .. 'z', 0 .. 9);

    return 'chatcmpl-' . join '', map { $alphabet[rand @alphabet] } 1 .. 29;
}


# members stand in the order in which real ones come

sub completions {
    my ($request) = @_;
    my $chat = eval { $json->decode($request->body) };

    return failure($request, 400, 'The body is not JSON.')
        if ref $chat ne 'HASH';
    return failure($request, 400, 'messages must be a list of messages.',
                   'messages')
        if ref $chat->{messages} ne 'ARRAY' || !@{$chat->{messages}};
    return failure($request, 400, 'Only n = 1 is served here.', 'n')
        if ($chat->{n} // 1) ne '1';

    my @tokens = tokens(answer_to($chat->{messages}));
    my $limit = $chat->{max_completion_tokens} // $chat->{max_tokens};
    my $reason = 'stop';

    if (defined $limit && $limit =~ /\A[1-9]\d*\z/ && $limit < @tokens) {
        $#tokens = $limit - 1;
        $reason = 'length';
    }

    my $prompt = 0;

    foreach my $message (@{$chat->{messages}}) {
        next if ref $message ne 'HASH';

        my @words = tokens(text_of($message) // '');

        $prompt += 4 + @words;
    }

    my $usage = sprintf('{"prompt_tokens":%d,"completion_tokens":%d,'
                        . '"total_tokens":%d}', $prompt, scalar @tokens,
                        $prompt + @tokens);
    my $model = $chat->{model};

    $model = 'demo-1' if !defined $model || ref $model || $model eq '';

    my $id = random_id();
    my $head = sub {
        my ($object) = @_;

        return sprintf('{"id":"%s","object":"%s","created":%d,"model":%s,',
                       $id, $object, time, $json->encode($model));
    };

    if (!$chat->{stream}) {
        my $text = $json->encode(join '', @tokens);

        return $request->respond(200, $head->('chat.completion')
            . qq("choices":[{"index":0,"message":{"role":"assistant",)
            . qq("content":$text,"refusal":null},"logprobs":null,)
            . qq("finish_reason":"$reason"}],"usage":$usage,)
            . qq("service_tier":"default","system_fingerprint":null}),
            'Content-Type' => 'application/json');
    }

    my $options = $chat->{stream_options};
    my $wants_usage = ref $options eq 'HASH' && $options->{include_usage};

    $head = $head->('chat.completion.chunk')
            . '"service_tier":"default","system_fingerprint":null,';

    my $tail = $wants_usage ? ',"usage":null}' : '}';
    my $event = sub {
        my ($delta, $finish) = @_;

        $request->write(qq(data: $head"choices":[{"index":0,"delta":$delta,)
                        . qq("logprobs":null,"finish_reason":$finish}])
                        . "$tail\n\n");
    };

    $request->start(200, 'Content-Type' => 'text/event-stream; charset=utf-8',
                    'Cache-Control' => 'no-cache');
    $event->('{"role":"assistant","content":"","refusal":null}', 'null');

    my $next;

    $next = sub {
        if ($request->gone) {
            undef $next;
            return;
        }

        if (@tokens) {
            $event->('{"content":' . $json->encode(shift @tokens) . '}',
                     'null');
            $request->server->after(1 / $rate, $next);
            return;
        }

        $event->('{}', qq("$reason"));
        $request->write(qq(data: $head"choices":[],"usage":$usage}\n\n))
            if $wants_usage;
        $request->write("data: [DONE]\n\n");
        $request->end;
        undef $next;
    };

    $request->server->after(FIRST_TOKEN, $next);
}


sub models {
    my ($request) = @_;

    $request->respond(200, { object => 'list', data => [ {
        id       => 'demo-1',
        object   => 'model',
        created  => 1767225600,
        owned_by => 'demo',
    } ] });
}


Kontext::Demo::Server->run(
    port     => $port // 0,
    max_body => MAX_BODY,
    handler  => sub {
        my ($request) = @_;
        my $call = $request->method . ' ' . $request->path;

        return completions($request)
            if $call =~ m{\APOST (?:/v1)?/chat/completions\z};
        return models($request) if $call eq 'GET /v1/models';

        failure($request, 404, "There is no $call here.");
    },
);
