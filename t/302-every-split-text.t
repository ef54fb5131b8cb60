#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# Every sample answer of all formats, the ad as a text.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use Kontext::Test;
use EverySplit;
use Samples;


my %cases = (openai_samples(), other_samples());

every_split('text', \%cases);

done_testing;
