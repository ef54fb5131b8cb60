#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The values of name=value parameters: yes and no in each way of writing them,
# numbers and lists, and what is left out because it is none.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use ChatSite;

my $site = ChatSite->new(location => <<'CONF');
    kontext_consent     ask;
    kontext_character   id=c name=Coach nsfw=$http_x_flag;
    kontext_regulatory  gdpr=$http_x_flag gpp_sid=$http_x_list;
    kontext_device      dark=$http_x_flag width=$http_x_number
                        height=$http_x_number dpr=$http_x_number;
CONF

my $n = 0;


# the body of /preload

sub preload {
    my (%headers) = @_;

    $n++;

    my $turn = $site->turn(chat("Which shoes, $n?"),
        asks    => ['init', 'preload'],
        headers => { 'X-Conversation' => "c-$n", %headers });

    return $turn->asked('preload')->json;
}


foreach my $case ([ '1', 1 ], [ 'on', 1 ], [ 'true', 1 ],
                  [ '0', 0 ], [ 'off', 0 ], [ 'false', 0 ],
                  map { [ $_, undef ] } '2', 'no', 'yes', 'of', 'onn', 'tru',
                                        'trues', 'fals', 'On', '-1', '01')
{
    my ($text, $is) = @$case;
    my $body = preload('X-Flag' => $text);

    is(json({ nsfw => $body->{character}{isNsfw},
              gdpr => $body->{regulatory}{gdpr} }),
       json({ nsfw => !defined $is ? undef : $is ? JSON::PP::true()
                                                 : JSON::PP::false(),
              gdpr => $is }),
       "a flag of \"$text\" is " . (defined $is ? $is : 'none'));
}

foreach my $case ([ '2', [ 2 ] ], [ '2,7', [ 2, 7 ] ], [ '2,,7', [ 2, 7 ] ],
                  [ ',', undef ], [ 'x', undef ],
                  [ '99999999999999999999', undef ])
{
    my ($text, $is) = @$case;
    my $sid = preload('X-List' => $text)->{regulatory}{gppSid};

    ok(ref $sid eq 'ARRAY' || !defined $sid, "gpp_sid=$text: numbers or none");
    is(json($sid // []), json($is // []), "gpp_sid=$text");
}

$site->stop_ok;

done_testing;
