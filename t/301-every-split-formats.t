#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Every sample answer of the other formats, the ad as a member.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use EverySplit;
use Samples;


my %cases = other_samples();

is_deeply([ sort keys %cases ],
          [ grep { !/^openai-chat|request|expected|sse-edge/ }
                 sort(samples('*.sse'), samples('*.ndjson'),
                      samples('*.json')) ],
          'all samples are known');

# a last line without an end is a line, too

$cases{'no-end.ndjson'} = { format => 'ollama', ad => 1,
                            answer => sample('ollama.ndjson') =~ s/\n\z//r };

every_split('member', \%cases);

done_testing;
