package Kontext::Test;

# Copyright (C) the ngx_http_kontext_module authors
#
# What a stream test needs, in one import.

use strict;
use warnings;

use Exporter ();
use JSON::PP ();
use Test::More;

use Kontext::Client ();
use Kontext::HTTP ();
use Kontext::Mock ();
use Kontext::Nginx ();
use Kontext::Wait qw(wait_until);

our @ISA = ('Exporter');
our @EXPORT = (qw(chat chat_chunk chat_finish chat_role chat_usage json
                  sse_data without_kontext wait_until),
               grep { /^\w/ } @Test::More::EXPORT);

my %CHUNK = (
    id      => 'chatcmpl-CkT2v9WqZr4mLx0bYdFhJpNs7AeUi',
    object  => 'chat.completion.chunk',
    created => 1795333201,
    model   => 'gpt-5.1-2025-11-13',
);


sub import {
    my ($class) = @_;

    strict->import;
    warnings->import;

    $class->export_to_level(1, $class, @EXPORT);
}


sub json {
    my ($data) = @_;

    return ref $data ? JSON::PP->new->utf8->canonical->encode($data)
                     : JSON::PP->new->utf8->decode($data);
}


# a streamed chat whose texts are user, assistant, user ... in turn;
# chat({ user => 'u-1' }, 'Hi') adds members to the request

sub chat {
    my $more = ref $_[0] ? shift : {};
    my @roles = ('user', 'assistant');
    my $i = 0;

    return {
        model    => 'gpt-5.1',
        stream   => JSON::PP::true(),
        messages => [ map { { role => $roles[$i++ % 2], content => $_ } } @_ ],
        %$more,
    };
}


# the data of the chunks of an answer, in the key order of real ones

sub _chunk {
    my ($delta, $finish) = @_;

    return qq({"id":"$CHUNK{id}","object":"$CHUNK{object}",)
           . qq("created":$CHUNK{created},"model":"$CHUNK{model}",)
           . qq("choices":[{"index":0,"delta":$delta,"logprobs":null,)
           . qq("finish_reason":$finish}]});
}


sub chat_role { return _chunk('{"role":"assistant","content":""}', 'null') }


sub chat_chunk {
    my ($text) = @_;
    my $json = JSON::PP->new->allow_nonref->encode($text);

    utf8::encode($json) if utf8::is_utf8($json);

    return _chunk(qq({"content":$json}), 'null');
}


sub chat_finish {
    my ($reason) = @_;

    return _chunk('{}', '"' . ($reason // 'stop') . '"');
}


sub chat_usage {
    return qq({"id":"$CHUNK{id}","object":"$CHUNK{object}",)
           . qq("created":$CHUNK{created},"model":"$CHUNK{model}",)
           . qq("choices":[],"usage":{"prompt_tokens":9,)
           . qq("completion_tokens":2,"total_tokens":11}});
}


# the data of each event of a body

sub sse_data {
    my ($body) = @_;

    return map { /^data: ?(.*)$/m ? $1 : () }
               split /(?:\r\n){2}|\n\n/, $body;
}


# a body with the injected member taken out again: (body, the member's JSON)

sub without_kontext {
    my ($body) = @_;
    my $member;

    # the value is an object without braces in its strings

    my $object = qr/(\{(?:[^{}]|(?1))*\})/;

    if ($body =~ s/"kontext":$object,// || $body =~ s/,?"kontext":$object//) {
        $member = $1;
    }

    return ($body, $member);
}


1;

__END__

=head1 NAME

Kontext::Test - stream tests for ngx_http_kontext_module

=head1 SYNOPSIS

    use lib 't/lib';
    use Kontext::Test;              # Test::More, strict, warnings as well

    my $llm = Kontext::Mock->new(name => 'llm');
    my $ads = Kontext::Mock->ad_server;

    $ads->hold('/preload');

    my $nginx = Kontext::Nginx->new(
        vars   => { llm => $llm->addr, ads => $ads->addr },
        server => <<'CONF',
            location /_kontext/ {
                internal;
                proxy_pass http://@ads@/;
            }
            location / {
                kontext on;
                kontext_publisher_token acme-dev;
                proxy_pass http://@llm@;
            }
    CONF
    );

    my $c = $nginx->client;
    $c->post_json('/v1/chat/completions', chat('Which shoes?'));

    my $answer = $llm->wait_request;
    my $preload = $ads->wait_request(path => '/preload');

    $answer->start->event(chat_role(), chat_chunk('Light'));
    $c->read_until(qr/Light/);      # the ad server is silent, the chat runs

    $preload->respond(200, Kontext::Mock->bid);
    $ads->sync;
    $answer->event(chat_finish(), '[DONE]')->finish;

    my ($body, $ad) = without_kontext($c->read_response->body);
    is(json($ad)->{ads}[0]{code}, 'inlineAd');

    $nginx->stop_ok;
    done_testing;

=head1 HOW TO WRITE ONE

The mock servers are processes of their own (L<Kontext::Mock>), the client is
in the test (L<Kontext::Client>), nginx runs in a directory of its own
(L<Kontext::Nginx>).  Nothing waits for a time: the test waits for an event
(a request, a text in the answer, the end of a connection, a log line) and
each wait has a generous deadline, at which it dies and shows what came.

To show that something does I<not> happen, wait for a later event that proves
nginx is through: C<< $nginx->barrier >> returns when the worker has processed
all that was in its sockets, C<< $mock->sync >> when the mock has read all that
was in its own.  Then look: C<< $c->peek->body >>, C<< $ads->requests >>.

    $llm_request->event(chat_finish())->wait_sent;
    $nginx->barrier;
    unlike($c->peek->body, qr/finish_reason":"stop/, 'held back');

=head1 FUNCTIONS

    chat('user text', 'assistant text', 'user text')    # a request, as data
    chat({ user => 'u-1', stream => JSON::PP::false }, 'user text')
    chat_role()  chat_chunk('text')  chat_finish('stop')  chat_usage()
                                    # the data of one event each
    sse_data($body)                 # the data of each event
    json($data_or_text)
    without_kontext($body)          # (the body as it was, the member's JSON)
    wait_until($what, sub { ... })

=cut
