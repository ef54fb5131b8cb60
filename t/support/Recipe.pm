package Recipe;

# Copyright (C) the ngx_http_kontext_module authors
#
# A file of recipes/ in an nginx of its own, as it is but for addresses, paths
# of logs and caches, and certificates; with the files of conf/ that it
# includes, as they are but for the address of the ad server.

use strict;
use warnings;

use Carp qw(croak);
use FindBin ();

use ChatSite ();
use Kontext::Mock ();
use Kontext::Nginx ();
use Kontext::Test ();

my $ROOT = "$FindBin::Bin/..";


sub slurp {
    my ($file) = @_;

    open(my $fh, '<:raw', $file) or croak "$file: $!";
    local $/;

    return scalar <$fh>;
}


# the files of conf/, with the ad server at @ads@

sub files {
    my %files = map { ("conf/$_" => slurp("$ROOT/conf/$_")) }
                    qw(kontext_ad_server.conf kontext_upstream.conf
                       kontext_log.conf);

    $files{'conf/kontext_ad_server.conf'}
        =~ s{proxy_pass https://server\.megabrain\.co/;}
            {proxy_pass http://server.megabrain.co/;}
            or croak 'no ad server in kontext_ad_server.conf';

    # whether or not the machine has the package ca-certificates

    $files{'conf/kontext_ad_server.conf'}
        =~ s{^\s*proxy_ssl_trusted_certificate .*\n}{}m
            or croak 'no trusted certificates in kontext_ad_server.conf';

    $files{'conf/kontext_upstream.conf'}
        =~ s{^    server server\.megabrain\.co:443;}{    server \@ads\@;}m
            or croak 'no server in kontext_upstream.conf';

    return %files;
}


# A recipe as it can run here.  backends => { '127.0.0.1:9000' => $mock } are
# addresses of others than the chat backend, which is all the rest; port => 1
# leaves the ports of "listen" alone.

sub text {
    my ($name, %args) = @_;
    my $text = slurp("$ROOT/recipes/$name.conf");
    my %backends = %{$args{backends} // {}};

    $text =~ s{^(\s*listen )\d+}{${1}127.0.0.1:\@port\@}mg
        or croak "$name: no listen";

    $text =~ s{^(\s*server )(127\.0\.0\.1:\d+)(?=[ ;])}
              {$1 . ($backends{$2} ? $backends{$2}->addr : '@llm@')}mge
        or croak "$name: no backend";

    $text =~ s{/var/log/nginx/}{logs/}g;
    $text =~ s{/var/cache/nginx/}{temp/}g;
    $text =~ s{/etc/nginx/ssl/}{$args{tls}/}g if $args{tls};

    return $text;
}


# tls => a directory with chat.crt and chat.key; edit => sub { $_ is the text };
# everything else is for Kontext::Nginx

sub new {
    my ($class, $name, %args) = @_;
    my $backends = delete $args{backends} // {};
    my $edit = delete $args{edit};
    my $tls = delete $args{tls};

    my $self = bless {
        llm   => Kontext::Mock->new(name => 'llm'),
        ads   => Kontext::Mock->ad_server,
        turns => 0,
    }, $class;

    my %vars = (llm => $self->{llm}->addr, ads => $self->{ads}->addr);
    my %files = files();

    foreach (values %files) {
        s/\@(llm|ads)\@/$vars{$1}/g;
    }

    local $_ = text($name, backends => $backends, tls => $tls);

    s/^server \{\n/$&    access_log logs\/event.log event;\n/mg;

    $edit->() if $edit;

    my $log = join(',', map { qq("$_":"\$kontext_$_") }
                            qw(status reason injected format session_user
                               session_conversation preload_time hold_time));

    # no test depends on who is first

    $self->{nginx} = Kontext::Nginx->new(
        log_level => 'notice',
        %args,
        files => { %files, %{$args{files} // {}} },
        vars  => { %vars, %{$args{vars} // {}} },
        http  => "    log_format event escape=json "
                 . qq('{"n":"\$http_x_turn",$log}';\n)
                 . "    kontext_grace 25s;\n$_",
    );

    return $self;
}


sub llm { $_[0]{llm} }
sub ads { $_[0]{ads} }
sub nginx { $_[0]{nginx} }
sub stop_ok { my $self = shift; return $self->{nginx}->stop_ok(@_) }


# A chat of a POST: the backend has it when this returns.  Arguments: uri,
# body (data or text), headers.

sub ask {
    my ($self, %args) = @_;
    my $n = ++$self->{turns};
    my $c = $args{client} // $self->{nginx}->client;
    my $body = $args{body} // Kontext::Test::chat("Question $n?");
    my %headers = ('Content-Type' => 'application/json',
                   %{$args{headers} // {}}, 'X-Turn' => $n);

    $body = Kontext::Test::json($body) if ref $body;

    $c->request($args{method} // 'POST',
                $args{uri} // '/v1/chat/completions', $body,
                map { ($_, $headers{$_}) } sort keys %headers);

    return { n => $n, client => $c };
}


# The rest of it: answer => [200, $text, headers ...].  ad => 0 or 1, whether
# the ad server is asked; the backend answers when nginx has its answer.
# Returns a hash: response, request, preload, sent, event.

sub turn {
    my ($self, %args) = @_;
    my $turn = $self->ask(%args);
    my @answer = @{$args{answer} // [ 200, ChatSite::answer_of('Light ones.'),
                                      'Content-Type' => 'text/event-stream' ]};

    $turn->{request} = $self->{llm}->wait_request;

    if ($args{ad} // 1) {
        $turn->{preload} = $self->{ads}->wait_request(path => '/preload');
        $self->{ads}->sync;
        $self->{nginx}->barrier;
    }

    $turn->{sent} = $answer[1];
    $turn->{request}->respond(@answer);
    $turn->{response} = $turn->{client}->read_response;
    $turn->{body} = $turn->{response}->body;
    $turn->{event} = $self->event($turn->{n}) if $args{log} // 1;

    return $turn;
}


# the variables of a chat, as they were logged

sub event {
    my ($self, $n) = @_;
    my $text = $self->{nginx}->wait_file('logs/event.log',
                                         qr/^\{"n":"$n",.*\n/m);

    return Kontext::Test::json($text =~ /^(\{"n":"$n",.*)\n/m);
}


# the calls that the ad server has got

sub calls {
    my ($self) = @_;

    $self->{nginx}->barrier;

    return [ map { $_->path =~ s{^/}{}r } $self->{ads}->requests ];
}


1;

__END__

=head1 NAME

Recipe - runs a file of recipes/

=head1 SYNOPSIS

    use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";
    use Kontext::Test;
    use Recipe;

    my $site = Recipe->new('vllm');
    my $turn = $site->turn(headers => { 'X-User-Id' => 'u-1' });

    is($turn->{event}{status}, 'filled');
    is($turn->{preload}->json->{userId}, 'u-1');

    $site->stop_ok;

=cut
