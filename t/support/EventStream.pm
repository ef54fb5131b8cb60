package EventStream;

# Copyright (C) the ngx_http_kontext_module authors
#
# A reader of server-sent events: what has come, in order, and nothing that
# the format does not have.

use strict;
use warnings;

use Carp qw(croak);
use JSON::PP ();

use Kontext::Client ();
use Kontext::Wait qw(deadline readable);

# comments, the time before a reconnect, an event: whole lines, in one form

my $COMMENT = qr/(?::[^\n]*\n)+\n?/;
my $RETRY = qr/retry:[ ][0-9]+\n\n/;
my $EVENT = qr/(?:id:[ ](?<id>[0-9]+)\n)?event:[ ](?<event>[a-z.-]+)\n
               data:[ ](?<data>\{[^\n\r]*\})\n\n/x;


# open(client, uri, header => value ...): the answer's head is there, whatever
# its status is

sub open {
    my ($class, $client, $uri, @headers) = @_;

    $client->get($uri, Accept => 'text/event-stream', @headers);

    my $self = bless {
        client   => $client,
        at       => 0,
        events   => [],
        comments => [],
        returned => 0,
    }, $class;

    $self->{head} = $client->read_head;

    return $self;
}


sub client { $_[0]{client} }
sub head { $_[0]{head} }
sub status { $_[0]{head}->status }
sub body { $_[0]{client}->peek; return $_[0]{head}->body }
sub close { $_[0]{client}->close; return $_[0] }


# what has come; complete ones only

sub events { return @{$_[0]->_parse->{events}} }
sub comments { return @{$_[0]->_parse->{comments}} }


# waits until the n-th event (from 1) is there, and returns it

sub wait_event {
    my ($self, $n, $timeout) = @_;

    $self->_wait("event $n", sub { @{$self->{events}} >= $n }, $timeout);

    return $self->{events}[$n - 1];
}


# waits for the event of this number

sub wait_id {
    my ($self, $id, $timeout) = @_;
    my ($i, $found) = (0);

    $self->_wait("the event with the number $id", sub {
        while (!$found && $i < @{$self->{events}}) {
            my $event = $self->{events}[$i++];

            $found = $event if ($event->{id} // '') eq $id;
        }

        return $found;
    }, $timeout);

    return $found;
}


# the next event that no next_event() has returned

sub next_event {
    my ($self, $timeout) = @_;

    return $self->wait_event(++$self->{returned}, $timeout);
}


# waits for the n-th comment

sub wait_comment {
    my ($self, $n, $timeout) = @_;

    $self->_wait("comment $n", sub { @{$self->{comments}} >= $n }, $timeout);

    return $self->{comments}[$n - 1];
}


# waits for the end of the stream and returns all of its events

sub wait_end {
    my ($self, $timeout) = @_;

    $self->{ended} //= $self->{client}->read_response($timeout);

    return $self->events;
}


sub ended {
    my ($self) = @_;

    $self->{client}->peek if !$self->{ended};

    return $self->{head}->complete;
}


sub _wait {
    my ($self, $what, $condition, $timeout) = @_;
    my $deadline = deadline($timeout);

    while (1) {
        my $over = $self->ended || !$self->{client}->is_open;

        $self->_parse;

        return if $condition->();

        croak "the stream has ended before $what:\n" . $self->_shown if $over;

        readable($self->{client}{fh}, $deadline)
            or croak "waited in vain for $what; so far:\n" . $self->_shown;
    }
}


sub _shown {
    my ($self) = @_;
    my $text = $self->{head}->body;

    $text = '[...]' . substr($text, -2000) if length $text > 2000;

    return $self->{head}->head . "\n$text";
}


# the whole text, to the byte

sub _parse {
    my ($self) = @_;

    $self->{client}->peek if !$self->{ended};

    my $text = substr($self->{head}->body, $self->{at});

    while ($text =~ /\G(?:(?<comment>$COMMENT)|$RETRY|$EVENT)/gc) {
        if (defined $+{comment}) {
            push @{$self->{comments}}, $+{comment};
            next;
        }

        next if !defined $+{event};

        my %event = (%+, text => $&);

        $event{json} = JSON::PP->new->utf8->decode($event{data});
        $event{payload} = $event{json}{payload};

        push @{$self->{events}}, \%event;
    }

    my $n = pos($text) // 0;

    $self->{at} += $n;

    # the rest is on its way

    my $rest = substr($text, $n);

    croak "not in a stream of events:\n$rest" if $rest =~ /\n\n/;

    return $self;
}


1;

__END__

=head1 NAME

EventStream - a reader of server-sent events

=head1 SYNOPSIS

    use EventStream;

    my $stream = EventStream->open($nginx->client, "/kontext/sessions/$id/events",
                                   'Last-Event-ID' => 3);

    is($stream->status, 200);
    is($stream->wait_event(1)->{event}, 'ad.filled');
    $stream->wait_comment(1);

    my @all = $stream->wait_end;

=head1 AN EVENT

    $event->{id}  $event->{event}  $event->{data}   # as they came
    $event->{json}  $event->{payload}               # of the data
    $event->{text}                                  # the lines

=head1 METHODS

    EventStream->open($client, $uri, 'Name' => 'value', ...)
    $s->status  $s->head  $s->client  $s->body  $s->close
    $s->events  $s->comments        # all up to now
    $s->wait_event($n)              # the n-th one of this stream, from 1
    $s->wait_id($id)                # the one with this number
    $s->next_event                  # one after the other
    $s->wait_comment($n)
    $s->wait_end                    # all events of the stream, which is over
    $s->ended

A text that is no stream of events dies.

=cut
