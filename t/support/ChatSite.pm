package ChatSite;

# Copyright (C) the ngx_http_kontext_module authors
#
# A chat site: nginx with the module, a backend and an ad server, and the
# turns of its conversations.

use strict;
use warnings;

use Carp qw(croak);
use Exporter 'import';
use JSON::PP ();
use Scalar::Util ();

use Kontext::Client ();
use Kontext::Mock ();
use Kontext::Nginx ();
use Kontext::Test ();

our @EXPORT_OK = qw(answer_of nulls_in type_of whole_of);

# an answer waits for its ad, so that no test depends on who is first

my @DEFAULTS = (
    'kontext'                 => 'on',
    'kontext_publisher_token' => 'acme-dev',
    'kontext_grace'           => '25s',
    'kontext_user_id'         => '$http_x_user',
    'kontext_conversation_id' => '$http_x_conversation',
);

my @VARIABLES = qw(status reason injected format session session_user
                   session_conversation message_id bid_id code revenue
                   frame_url label preload_time hold_time);


# http =>, server => and location => are added to the configuration at these
# places, where a location's directive is instead of the default; listen => to
# the directive; everything else is for Kontext::Nginx

sub new {
    my ($class, %args) = @_;

    my $self = bless {
        llm   => Kontext::Mock->new(name => 'llm'),
        ads   => Kontext::Mock->ad_server,
        turns => 0,
    }, $class;

    my $log = join(',', '"n":"$http_x_turn"', '"pid":"$pid"',
                        map { qq("$_":"\$kontext_$_") } @VARIABLES);

    my $http = delete $args{http} // '';
    my $server = delete $args{server} // '';
    my $location = delete $args{location} // '';
    my $listen = delete $args{listen} // '';

    foreach my $i (reverse 0 .. $#DEFAULTS / 2) {
        my ($name, $value) = @DEFAULTS[2 * $i, 2 * $i + 1];

        $location = "$name $value;\n$location"
            if $location !~ /(?:^|;)\s*$name\s/;
    }

    $self->{nginx} = Kontext::Nginx->new(
        log_level => 'notice',
        %args,
        vars => { %{$args{vars} // {}},
                  llm => $self->{llm}->addr, ads => $self->{ads}->addr },
        http => "    log_format event escape=json '{$log}';\n$http\n" . <<"CONF",
    server {
        listen 127.0.0.1:\@port\@$listen;
        access_log logs/event.log event;
        client_max_body_size 32m;

        location /_kontext/ {
            internal;
            proxy_pass http://\@ads\@/;
        }

        # what the module could have touched, untouched

        location /plain/ {
            proxy_pass http://\@llm\@/;
        }

        location / {
            $location
            proxy_pass http://\@llm\@;
        }

        $server
    }
CONF
    );

    return $self;
}


sub llm { $_[0]{llm} }
sub ads { $_[0]{ads} }
sub nginx { $_[0]{nginx} }
sub stop_ok { my $self = shift; return $self->{nginx}->stop_ok(@_) }


# Sends a chat and returns when the backend has it.  asks => [qw(init
# preload)] are the calls that the ad server gets for it, in any order: the
# turn goes on when nginx has their answers.

sub ask {
    my ($self, $chat, %args) = @_;
    my $n = ++$self->{turns};
    my $c = $args{client} // $self->{nginx}->client;
    my $method = $args{method} // 'POST';
    my $uri = $args{uri} // '/v1/chat/completions';
    my $body = ref $chat ? Kontext::Test::json($chat) : $chat;
    my %headers = ('Content-Type' => 'application/json',
                   'X-User' => 'u-1', 'X-Conversation' => 'c-1',
                   %{$args{headers} // {}}, 'X-Turn' => $n);

    my $turn = bless { site => $self, n => $n, client => $c,
                       start => length $c->raw }, 'ChatSite::Turn';

    $c->request($method, $uri, $body,
                map { ($_, $headers{$_}) }
                    grep { defined $headers{$_} } sort keys %headers);

    $turn->{request} = $self->{llm}->wait_request;

    foreach my $name (@{$args{asks} // []}) {
        $turn->{asked}{$name} = $self->{ads}->wait_request(path => "/$name");

        # nginx speaks HTTP/1.0 here: it closes when it has the answer

        $turn->{asked}{$name}->wait_closed
            if $turn->{asked}{$name}->answered;
    }

    return $turn;
}


# a whole turn

sub turn {
    my ($self, $chat, %args) = @_;

    return $self->ask($chat, %args)->answer($args{text} // 'Light ones.');
}


# what the ad server was asked, by the names of the calls

sub asked_for {
    my ($self) = @_;

    return [ sort map { $_->path =~ s{^/}{}r } $self->{ads}->requests ];
}


# the text of a backend's stream

sub answer_of {
    my ($text) = @_;
    my @events = (Kontext::Test::chat_role(),
                  (map { Kontext::Test::chat_chunk($_) }
                       $text =~ /(.{1,5})/gs),
                  Kontext::Test::chat_finish(), '[DONE]');

    return join('', map { "data: $_\n\n" } @events);
}


# the answer in one piece of a backend; a reference is the message, a list of
# them is several choices

sub whole_of {
    my ($message) = @_;
    my $encode = JSON::PP->new->utf8->canonical->allow_nonref;
    my $i = 0;

    $message = { role => 'assistant', content => $message, refusal => undef }
        if !ref $message;

    my $choices = join(',', map {
        '{"index":' . $i++ . ',"message":' . $encode->encode($_)
        . ',"logprobs":null,"finish_reason":"stop"}'
    } ref $message eq 'ARRAY' ? @$message : $message);

    return '{"id":"chatcmpl-CkT2v9WqZr4mLx0bYdFhJpNs7AeUi",'
           . '"object":"chat.completion","created":1795333201,'
           . qq("model":"gpt-5.1-2025-11-13","choices":[$choices],)
           . '"usage":{"prompt_tokens":9,"completion_tokens":2,'
           . '"total_tokens":11},"service_tier":"default"}';
}


# the type that a value has in JSON

sub type_of {
    my ($value) = @_;

    return 'null' if !defined $value;
    return 'object' if ref $value eq 'HASH';
    return 'array' if ref $value eq 'ARRAY';
    return 'boolean' if JSON::PP::is_bool($value);

    my $text = JSON::PP->new->allow_nonref->encode($value);

    return $text =~ /\A"/ ? 'string' : $text =~ /\A-?\d+\z/ ? 'integer'
                                                            : 'number';
}


# the paths of the null members

sub nulls_in {
    my ($value, $path) = @_;

    $path //= '';

    return $path if !defined $value;
    return map { nulls_in($value->{$_}, "$path.$_") } sort keys %$value
        if ref $value eq 'HASH';
    return map { nulls_in($value->[$_], "$path\[$_]") } 0 .. $#$value
        if ref $value eq 'ARRAY';
    return;
}


package ChatSite::Turn;

use strict;
use warnings;


sub request { $_[0]{request} }
sub client { $_[0]{client} }
sub asked { $_[0]{asked}{$_[1]} }


# the backend answers, and the client has read it

sub answer {
    my ($self, $text) = @_;

    return $self->respond(200, ChatSite::answer_of($text),
                          'Content-Type' => 'text/event-stream');
}


# the same with an answer in one piece

sub whole {
    my ($self, $text) = @_;

    return $self->respond(200, ChatSite::whole_of($text),
                          'Content-Type' => 'application/json');
}


sub respond {
    my ($self, @response) = @_;

    $self->{sent} = $response[1];
    $self->{request}->respond(@response);
    $self->{response} = $self->{client}->read_response;

    return $self;
}


sub response { $_[0]{response} }
sub body { $_[0]{response}->body }

# every byte of the answer but the time in it

sub raw {
    my ($self) = @_;

    return substr($self->{client}->raw, $self->{start})
           =~ s/^Date: [^\r\n]*\r\n//mr;
}


# the injected member as data

sub ad {
    my ($self) = @_;
    my (undef, $member) = Kontext::Test::without_kontext($self->body);

    return defined $member ? Kontext::Test::json($member) : undef;
}


# true when the client has exactly what the backend sent

sub untouched { return $_[0]->body eq $_[0]{sent} }


# the variables, as they were logged

sub event {
    my ($self) = @_;

    return $self->{event} //= do {
        my $n = $self->{n};
        my $text = $self->{site}{nginx}->wait_file('logs/event.log',
                                                   qr/^\{"n":"$n",.*\n/m);

        Kontext::Test::json($text =~ /^(\{"n":"$n",.*)\n/m);
    };
}


sub why { my $e = $_[0]->event; return "$e->{status} $e->{reason}" }


1;

__END__

=head1 NAME

ChatSite - a site with the module, and turns of its conversations

=head1 SYNOPSIS

    use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";
    use Kontext::Test;
    use ChatSite;

    my $site = ChatSite->new(location => 'kontext_label Ad;');

    my $turn = $site->turn(chat('Which shoes?'), asks => ['init', 'preload']);

    is($turn->ad->{ads}[0]{label}, 'Ad');
    is($turn->event->{status}, 'filled');
    is($turn->asked('preload')->json->{userId}, 'u-1');

    $site->stop_ok;

=head1 A TURN

    $site->turn($chat, asks => [...], headers => {...}, text => 'an answer')
    $site->ask(...)             # the same up to where the backend has it

Header C<X-User> and C<X-Conversation> are who is who, C<u-1> and C<c-1>; an
undefined value leaves a header out.  Also: C<client>, C<method>, C<uri>; a
chat that is no reference is a body as it is.

    $turn->answer('text')  $turn->whole('text')     # after ask(): a stream,
    $turn->respond(200, $body, ...)                 # in one piece, anything
    $turn->request              # as the backend got it
    $turn->asked('preload')     # as the ad server got it
    $turn->response  $turn->body  $turn->raw
    $turn->ad                   # the injected member, or undef
    $turn->untouched            # the client has what the backend sent
    $turn->event                # $kontext_* by name
    $turn->why                  # status and reason

=cut
