#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Every sample answer of the OpenAI chat format, the ad as a member.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use EverySplit;
use Samples;


my %cases = openai_samples();

is_deeply([ sort keys %cases ],
          [ sort(samples('openai-chat*.sse'),
                 samples('openai-chat*.response.json')) ],
          'all samples are known');


# the same with CR as line ends, with a BOM, and with frames of no interest

my $short = sample('openai-chat-split-surrogate.sse');

my %more = (
    'cr.sse'    => $short =~ s/\r?\n/\r/gr,
    'mixed.sse' => "\xef\xbb\xbf:\r\n\r\n" . $short =~ s/\n\n/\r\r\n/gr,
    'many-fields.sse' =>
        $short =~ s/^data: /: comment\nid: 7\nevent: x\ndata:/mgr,

    # its finish chunk is not terminated
    'no-end.sse' => $short =~ s/\n\ndata: \[DONE\]\n\n\z//r,
);

$cases{$_} = { format => 'openai_chat', ad => $_ ne 'no-end.sse',
               answer => $more{$_} } foreach keys %more;

every_split('member', \%cases);

done_testing;
