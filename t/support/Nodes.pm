package Nodes;

# Copyright (C) the ngx_http_kontext_module authors
#
# Several nodes of a chat site, each an nginx of its own, that share a store
# of sessions, a backend and an ad server; and turns of conversations that go
# to one or another.

use strict;
use warnings;

use Carp qw(croak);
use IO::Socket::INET ();
use POSIX ();

use ChatSite ();
use Kontext::Mock ();
use Kontext::Nginx ();
use Kontext::Test ();
use Kontext::Wait qw(wait_until);

my @MODULES = split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '';

# where the nginx under test has its other modules

my ($MEMC) = map { s{[^/]+\z}{ngx_http_memc_module.so}r }
                 grep { m{/ngx_http_echo_module\.so\z} } @MODULES;

my $MEMC_STORE = <<'CONF';
        location = /kontext_store {
            internal;
            set $memc_key $arg_key;
            set $memc_exptime $arg_exptime;
            memc_connect_timeout 1s;
            memc_pass store;
        }
CONF

my $HTTP_STORE = <<'CONF';
        location = /kontext_store {
            internal;
            proxy_pass http://store;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
CONF


# Why there can be no nodes with memcached; an empty string: there can.

sub missing {
    return 'no module memc of this nginx' if !defined $MEMC || !-e $MEMC;

    foreach my $dir (split(/:/, $ENV{PATH}), '/usr/bin') {
        return '' if -x "$dir/memcached";
    }

    return 'no memcached';
}


# nodes => how many; store => a Kontext::Mock, or else there is a memcached;
# options => of the directive, or else it waits for long; location => is added
# to the locations; http => and server => as well

sub new {
    my ($class, %args) = @_;

    my $self = bless {
        llm     => Kontext::Mock->new(name => 'llm'),
        ads     => Kontext::Mock->ad_server,
        mock    => $args{store},
        args    => \%args,
        modules => [ @MODULES ],
        bids    => 0,
        owner   => $$,
    }, $class;

    $self->{ads}->hold('/preload');

    if ($self->{mock}) {
        $self->{addr} = $self->{mock}->addr;

    } else {
        push @{$self->{modules}}, $MEMC;
        $self->start_store;
    }

    $self->{nodes} = [ map { $self->_node($_) } 1 .. ($args{nodes} // 2) ];

    return $self;
}


sub _node {
    my ($self, $n) = @_;
    my $args = $self->{args};
    my $options = $args->{options} // 'timeout=10s';
    my $store = $args->{no_store} ? ''
                : "kontext_store /kontext_store $options;";

    return Kontext::Nginx->new(
        name      => "node $n",
        log_level => $args->{log_level} // 'notice',
        workers   => $args->{workers} // 1,
        modules   => $self->{modules},
        vars      => { llm => $self->{llm}->addr, ads => $self->{ads}->addr,
                       store => $self->{addr} },
        http      => <<"CONF",
    log_format event escape=json '{"n":"\$http_x_turn","s":"\$kontext_status",'
                                 '"reason":"\$kontext_reason",'
                                 '"session":"\$kontext_session",'
                                 '"user":"\$kontext_session_user"}';
    @{[ $args->{http} // '' ]}

    upstream store {
        server \@store\@ max_fails=0;
        keepalive 8;
    }
CONF
        server    => <<"CONF",
        access_log logs/event.log event;

        location /_kontext/ {
            internal;
            proxy_pass http://\@ads\@/;
        }

        @{[ $args->{no_store} ? '' : $self->{mock} ? $HTTP_STORE : $MEMC_STORE ]}

        location = /status {
            kontext_status;
        }

        @{[ $args->{server} // '' ]}

        location / {
            kontext on;
            kontext_publisher_token acme-dev;
            kontext_grace @{[ $args->{grace} // '25s' ]};
            kontext_user_id \$http_x_user;
            kontext_conversation_id \$http_x_conversation;
            $store
            @{[ $args->{location} // '' ]}
            proxy_pass http://\@llm\@;
        }
CONF
    );
}


sub llm { $_[0]{llm} }
sub ads { $_[0]{ads} }
sub node { $_[0]{nodes}[$_[1] - 1] }


# another nginx in the place of a node: with the sessions of nobody

sub replace {
    my ($self, $n) = @_;

    $self->node($n)->stop_ok;
    $self->{nodes}[$n - 1] = $self->_node($n);
}


sub status { return $_[0]->node($_[1])->client->get('/status')->read_response->json }


# what a test of another nginx needs: its modules, and something with an addr

sub modules { $_[0]{modules} }
sub memcached { return bless { addr => $_[0]{addr} }, 'Nodes::Memcached' }
sub Nodes::Memcached::addr { $_[0]{addr} }


# a number of the records of a node; and waits for it to be n

sub records { return $_[0]->status($_[1])->{records}{$_[2]} }

sub wait_records {
    my ($self, $node, $name, $n) = @_;

    wait_until("node $node: $name is $n",
               sub { $self->records($node, $name) >= $n });
}


# A turn: texts are those of user and assistant so far, the last one is what
# the user says now.  Arguments: on (the number of a node), conversation,
# user, headers, ask (0: no preload is expected), with => sub that is called
# with the preload while nginx waits for it, answer => of the preload.
# Returns a hash: ad (its bid, or undef), id (the message's), preload (what
# was asked), body, event.

sub turn {
    my ($self, @texts) = @_;
    my %args = ref $texts[-1] ? %{pop @texts} : ();
    my $n = ++$self->{turns};
    my $nginx = $self->node($args{on} // 1);
    my $client = $nginx->client;

    $client->post_json('/v1/chat/completions', Kontext::Test::chat(@texts),
                       'X-User' => $args{user} // 'u-1',
                       'X-Conversation' => $args{conversation} // 'c-1',
                       'X-Turn' => $n, %{$args{headers} // {}});

    my $turn = { n => $n };
    my $request = $self->{llm}->wait_request;

    $request->start->event(Kontext::Test::chat_role(),
                           Kontext::Test::chat_chunk("Answer $n."));
    $client->read_until(qr/Answer/);

    if ($args{ask} // 1) {
        my $preload = $self->{ads}->wait_request(path => '/preload');

        $turn->{preload} = $preload->json;
        $args{with}->($preload) if $args{with};

        $preload->respond(200, $args{answer} // Kontext::Mock->bid(
            sessionId => $turn->{preload}{sessionId} // session_id($n),
            bidId => sprintf('7c9e6679-7425-40de-944b-%012d',
                             ++$self->{bids})));
    }

    $request->event(Kontext::Test::chat_finish(), '[DONE]')->finish;

    my $body = $client->read_response->body;
    my ($plain, $member) = Kontext::Test::without_kontext($body);

    $client->close;

    if (defined $member) {
        $member = Kontext::Test::json($member);
        $turn->{ad} = $member->{ads}[0]{bidId};
        $turn->{id} = $member->{messageId};
    }

    $turn->{body} = $plain;
    $turn->{text} = "Answer $n.";
    $turn->{whole} = $plain eq join('', map { "data: $_\n\n" }
                                  Kontext::Test::chat_role(),
                                  Kontext::Test::chat_chunk("Answer $n."),
                                  Kontext::Test::chat_finish(), '[DONE]');

    my $log = $nginx->wait_file('logs/event.log', qr/^\{"n":"$n",.*\n/m);

    $turn->{event} = Kontext::Test::json($log =~ /^(\{"n":"$n",.*)\n/m);

    return $turn;
}


# a location for the session API

sub api {
    return <<'CONF';
        location /kontext/ {
            kontext_api;
            kontext_publisher_token acme-dev;
            kontext_user_id $http_x_user;
            kontext_store /kontext_store;
        }
CONF
}


sub session_id { return sprintf('0d5c1f2e-8a47-4b6b-9c3e-%012d', $_[0]) }


# how often the ad server was called so

sub calls { return scalar(my @all = $_[0]{ads}->requests($_[1])) }


sub start_store {
    my ($self) = @_;

    if (!defined $self->{port}) {
        my $socket = IO::Socket::INET->new(Listen => 1,
                                           LocalAddr => '127.0.0.1')
            or croak "a port: $@";

        $self->{port} = $socket->sockport;
        $self->{addr} = "127.0.0.1:$self->{port}";
    }

    my $pid = fork() // croak "fork: $!";

    if ($pid == 0) {
        $ENV{PATH} .= ':/usr/bin';
        exec 'memcached', '-l', '127.0.0.1', '-p', $self->{port}, '-U', '0',
             '-m', '16', '-t', '1', '-u', 'nobody'
            or POSIX::_exit(127);
    }

    $self->{store} = $pid;

    wait_until('memcached', sub { $self->store_says("version\r\n") });
}


sub stop_store {
    my ($self) = @_;
    my $pid = delete $self->{store} or return;

    kill 'KILL', $pid;
    waitpid($pid, 0);
}


# the first line of memcached's answer; undef: there is none

sub store_says {
    my ($self, $command) = @_;
    my $socket = IO::Socket::INET->new(PeerAddr => $self->{addr}, Timeout => 5)
        or return;

    print $socket $command;

    return scalar <$socket>;
}


sub stop_ok {
    my ($self, %args) = @_;

    $_->stop_ok(%args) foreach @{$self->{nodes}};
    $self->stop_store;
}


sub DESTROY {
    my ($self) = @_;

    local ($?, $!);

    $self->stop_store if $self->{owner} == $$;
}


1;
