package ApiSite;

# Copyright (C) the ngx_http_kontext_module authors
#
# A chat site with the session API next to the chats: its calls, and sessions
# with the ids that a test has not used before.

use strict;
use warnings;

use Carp qw(croak);
use JSON::PP ();

use ChatSite ();
use Kontext::HTTP ();
use Kontext::Wait ();

our @ISA = ('ChatSite');

my @DEFAULTS = ('kontext_publisher_token' => 'acme-dev');

# what a path may have as it is

my $UNRESERVED = 'A-Za-z0-9._~-';


# api => is added to the API's location, where a directive is instead of the
# default; everything else is for ChatSite

sub new {
    my ($class, %args) = @_;
    my $api = delete $args{api} // '';
    my $server = delete $args{server} // '';

    for (my $i = 0; $i < @DEFAULTS; $i += 2) {
        my ($name, $value) = @DEFAULTS[$i, $i + 1];

        $api = "$name $value;\n$api" if $api !~ /(?:^|;)\s*$name\s/;
    }

    my $self = $class->SUPER::new(%args, server => <<"CONF");
        location /kontext/ {
            kontext_api;
            $api
        }

        $server
CONF

    $self->{made} = 0;

    return $self;
}


# One call: call(POST => 'sessions/kxs_...', $data, headers => {...}, client
# => $c, api => '/of-another').  A reference is sent as JSON, a string as it
# is, undef is no body.

sub call {
    my ($self, @args) = @_;

    return $self->start(@args)->read_response;
}


# the same without a wait for the answer: returns the client

sub start {
    my ($self, $method, $path, $data, %args) = @_;
    my $c = $args{client} // $self->nginx->client;
    my $uri = ($args{api} // '/kontext') . "/$path";
    my %headers = (defined $data ? ('Content-Type' => 'application/json') : (),
                   %{$args{headers} // {}});
    my $body = ref $data ? JSON::PP->new->utf8->canonical->encode($data)
                         : $data;

    return $c->request($method, $uri, $body,
                       map { ($_, $headers{$_}) }
                           grep { defined $headers{$_} } sort keys %headers);
}


# POST sessions

sub create {
    my ($self, $data, %args) = @_;

    return $self->call(POST => 'sessions', $data, %args);
}


# A new session, of the conversation "api-<n>" unless one is given: its id.
# init => 0 if the ad server does not answer /init, which is waited for
# otherwise.

sub session {
    my ($self, $data, %args) = @_;
    my $init = delete $args{init} // 1;
    my $res = $self->create({ userId => 'u-1',
                              conversationId => 'api-' . ++$self->{made},
                              %{$data // {}} }, %args);

    croak 'no new session: ' . $res->head . $res->body
        if $res->status != 201;

    my $id = $res->json->{sessionId};

    $self->wait_for($id, sub { $_[0]{flags}{init} }, %args) if $init;

    return $id;
}


# GET sessions/{id} as data, without the call's own checks

sub state {
    my ($self, $id, %args) = @_;
    my $res = $self->get($id, %args);

    croak "no session $id: " . $res->head . $res->body
        if $res->status != 200;

    return $res->json;
}


# waits until the session is as wanted and returns its state

sub wait_for {
    my ($self, $id, $wanted, %args) = @_;
    my $state;

    eval {
        Kontext::Wait::wait_until('the session', sub {
            $state = $self->state($id, %args);

            return $wanted->($state);
        });
        1;
    } or croak "$@; it is " . JSON::PP->new->canonical->encode($state // {});

    return $state;
}


# waits until "preload" is none of pending, or what is given

sub settled {
    my ($self, $id, $preload, %args) = @_;

    return $self->wait_for($id, sub {
        defined $preload ? $_[0]{preload} eq $preload
                         : $_[0]{preload} ne 'pending'
    }, %args);
}


sub get {
    my ($self, $id, %args) = @_;

    return $self->call(GET => "sessions/$id", undef, %args);
}


sub patch {
    my ($self, $id, $data, %args) = @_;

    return $self->call(PATCH => "sessions/$id", $data, %args);
}


# POST sessions/{id}/messages; message() makes one

sub add {
    my ($self, $id, $data, %args) = @_;

    return $self->call(POST => "sessions/$id/messages", $data, %args);
}


sub ad {
    my ($self, $id, $message, %args) = @_;

    return $self->call(GET => "sessions/$id/ads/" . encoded($message), undef,
                       %args);
}


# POST sessions/{id}/events

sub report {
    my ($self, $id, $data, %args) = @_;

    return $self->call(POST => "sessions/$id/events", $data, %args);
}


sub close {
    my ($self, $id, %args) = @_;

    return $self->call(DELETE => "sessions/$id", undef, %args);
}


# the next preload, as the ad server got it

sub preload {
    my ($self) = @_;

    return $self->ads->wait_request(path => '/preload');
}


# the next call that waits for the test's answer: held('/init')

sub held {
    my ($self, $path) = @_;

    while (1) {
        my $req = $self->ads->wait_request(path => $path);

        return $req if !$req->answered;
    }
}


# message('m1', user => 'text', createdAt => ...)

sub message {
    my (undef, $id, $role, $content, %more) = @_;

    return { id => $id, role => $role, content => $content, %more };
}


# the code of a refusal

sub code {
    my (undef, $res) = @_;
    my $data = eval { $res->json };

    return ref $data eq 'HASH' && ref $data->{error} eq 'HASH'
           ? $data->{error}{code} // 'no code' : 'no error: ' . $res->body;
}


# the characters of a string, percent-encoded for a path

sub encoded {
    my ($text) = @_;

    utf8::encode($text);

    return $text =~ s/([^$UNRESERVED])/sprintf('%%%02X', ord $1)/ger;
}


1;

__END__

=head1 NAME

ApiSite - a chat site with the session API

=head1 SYNOPSIS

    use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";
    use Kontext::Test;
    use ApiSite;

    my $site = ApiSite->new(api => 'kontext_api_origin https://a.example;');
    my $id = $site->session({ userId => 'u-1', conversationId => 'c-1' });

    is($site->add($id, $site->message('m1', user => 'Hi'))->status, 202);
    is($site->preload->json->{messages}[0]{id}, 'm1');
    is($site->settled($id)->{preload}, 'filled');

    $site->stop_ok;

It is a L<ChatSite>: C<turn> and C<ask> are chats of C<location />, and the
API is C<location /kontext/>, for any user.  C<api> adds directives to that,
C<server> other locations.

=head1 CALLS

Each returns the answer, a L<Kontext::HTTP>:

    $site->create($data)                # POST   sessions
    $site->get($id)                     # GET    sessions/{id}
    $site->patch($id, $data)            # PATCH  sessions/{id}
    $site->add($id, $data)              # POST   sessions/{id}/messages
    $site->ad($id, $message_id)         # GET    sessions/{id}/ads/{messageId}
    $site->report($id, $data)           # POST   sessions/{id}/events
    $site->close($id)                   # DELETE sessions/{id}
    $site->call(GET => 'any/path', undef)

All take C<< headers => {...} >> (undef leaves one out), C<< client => $c >>
and C<< api => '/another-location' >> behind their arguments.  Data which are
no reference are sent as they are.  C<start>, with the arguments of C<call>,
does not wait: it returns the client, also for an answer that never ends.

=head1 WHAT IS MADE OF THEM

    $site->session({...})           # a new session's id, /init has answered
    $site->session({...}, init => 0)    # the same without a wait
    $site->state($id)               # its state as data
    $site->wait_for($id, sub { ... })   # the state when the sub is true of it
    $site->settled($id, 'filled')   # when "preload" is that, or not pending
    $site->preload                  # the next /preload, as in wait_request
    $site->held('/init')            # the next that no rule has answered
    $site->message('m1', user => 'text', createdAt => ...)
    $site->code($response)          # the code of a refusal
    ApiSite::encoded('a/b')         # for a path

=cut
