#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The documentation says what the module does: all directives with their
# syntax, default and context, all variables, all reasons, all lines of the
# log; and its links lead somewhere.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use File::Basename qw(dirname);
use Kontext::Test;

use Markdown qw(anchors blocks links pages prose slurp tables);

my @PAGES = pages();
my %TEXT = map { $_ => slurp($_) } @PAGES;
my $SOURCES = 'ngx_kontext_module';


sub none {
    my ($name, @wrong) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return is(join("\n", @wrong), '', $name);
}


# the module's own files

sub sources {
    return map { s{^\Q$Markdown::ROOT\E/}{}r }
               map { glob("$Markdown::ROOT/$SOURCES/$_") }
                   '*.c', 'core/*.c', 'core/*/*.c';
}


# a text of C without comments, its neighbouring strings joined

sub c_text {
    my ($file) = @_;

    return slurp($file) =~ s{/\*.*?\*/}{}gsr =~ s/"\s*\n\s*"//gr;
}


cmp_ok(scalar @PAGES, '>', 10, 'there are pages');


# Links

sub wrong_links {
    my ($page, $text) = @_;
    my @wrong;

    foreach my $link (links($text)) {
        my ($n, $target) = @$link;

        next if $target =~ /^(?:https?|mailto):/;

        my ($file, $anchor) = $target =~ /^([^#]*)(?:#(.*))?\z/;
        my $path = $file eq '' ? $page : dirname($page) . "/$file";

        1 while $path =~ s{(?:^|(?<=/))(?!\.\.?/)[^/]+/\.\./}{};
        $path =~ s{(?:^|(?<=/))\./}{}g;

        if ($path ne $page && !-e "$Markdown::ROOT/$path") {
            push @wrong, "$page:$n: $target: no such file";

        } elsif (defined $anchor
                 && !anchors($path eq $page ? $text : slurp($path))->{$anchor})
        {
            push @wrong, "$page:$n: $target: no such heading";
        }
    }

    return @wrong;
}

is(join("\n", wrong_links('docs/x.md', <<'TEXT')), <<'WRONG' =~ s/\n\z//r,
# A heading, of `code`

[a](#a-heading-of-code) [b](#another) [c](../README.md#see-it)
[d](../README.md#see-nothing) [e](nothing.md) [f](../docs/api.md)
`[g](in-code.md)`

    [h](in-a-block.md)
TEXT
docs/x.md:3: #another: no such heading
docs/x.md:4: ../README.md#see-nothing: no such heading
docs/x.md:4: nothing.md: no such file
WRONG
   'links that lead nowhere are found out');

none("$_: links", wrong_links($_, $TEXT{$_})) foreach @PAGES;


# files that are named

foreach my $page (@PAGES) {
    my %wrong;

    foreach my $file ($TEXT{$page} =~ m{`(?:\./)?((?:t|util|docs|conf|demo|bench
                                        |recipes|monitoring|docker|debian)
                                        /[\w./-]*\w)(?=[`:\s])}xg)
    {
        $wrong{$file} = 1 if !-e "$Markdown::ROOT/$file";
    }

    none("$page: files that it names", sort keys %wrong);
}


# each page can be found from the README

{
    my %found = ('README.md' => 1);
    my @next = ('README.md');

    while (defined(my $page = shift @next)) {
        foreach my $link (links($TEXT{$page})) {
            my $path = dirname($page) . '/' . $link->[1] =~ s/#.*//r;

            1 while $path =~ s{(?:^|(?<=/))(?!\.\.?/)[^/]+/\.\./}{};
            $path =~ s{(?:^|(?<=/))\./}{}g;
            push @next, $path if $TEXT{$path} && !$found{$path}++;
        }
    }

    none('each page of docs/ can be reached from the README',
         grep { m{^docs/} && !$found{$_} } @PAGES);
}


# the figures of the README are those that were measured

{
    my ($costs) = $TEXT{'README.md'} =~ /^## What it costs\n(.*?)^## /ms;
    my $results = slurp('bench/RESULTS.md');
    my @figures = $costs =~ /(?<![\d.])(\d+(?:\.\d+)?[ ](?:us|ms|KB|bytes)\b
                             |x\d+\.\d+)/xg;

    cmp_ok(scalar @figures, '>', 20, 'the README says what the module costs');

    none('figures of the README that bench/RESULTS.md does not have',
         grep { $results !~ /(?<![\d.])\Q$_\E/ } @figures);
}


# Directives

my $MODULE = c_text("$SOURCES/ngx_http_kontext_module.c");

sub directives {
    my %directives;

    while ($MODULE =~ /\{\s*ngx_string\("(kontext\w*)"\),\s*
                       ([A-Z0-9_|\s]+),\s*(\w+),\s*\w+,\s*([^\n]+),\n/xg)
    {
        my ($name, $flags, $field) = ($1, $2, $4);
        my %flag = map { $_ => 1 } split /\s*\|\s*/, $flags;
        my ($min, $max);

        $directives{$name}{context} = join(', ',
            ('http') x !!$flag{NGX_HTTP_MAIN_CONF},
            ('server') x !!$flag{NGX_HTTP_SRV_CONF},
            ('location') x !!$flag{NGX_HTTP_LOC_CONF});

        $field = $field =~ /offsetof\(\w+,\s*(\w+)\)/ ? $1
                                                      : $name =~ s/^kontext_//r;
        $directives{$name}{field} = $field;

        foreach my $flag (keys %flag) {
            my @n = $flag eq 'NGX_CONF_NOARGS'           ? (0)
                  : $flag eq 'NGX_CONF_FLAG'             ? (1)
                  : $flag =~ /^NGX_CONF_TAKE(\d+)\z/     ? split(//, $1)
                  : $flag =~ /^NGX_CONF_(\d)MORE\z/      ? ($1, 99)
                  : $flag eq 'NGX_CONF_ANY'              ? (0, 99)
                                                         : next;

            foreach my $n (@n) {
                $min = $n if !defined $min || $n < $min;
                $max = $n if !defined $max || $n > $max;
            }
        }

        $directives{$name}{args} = "$min to $max arguments";
    }

    return %directives;
}


# "a b [c] | d ...": how many arguments

sub args {
    my ($syntax) = @_;
    my ($min, $max) = (99, 0);

    foreach my $form ($syntax eq '' ? '' : split / \| /, $syntax) {
        my ($least, $most) = (0, 0);

        while ($form =~ /\G\s*(\[[^\]]*\]|\S+)/gc) {
            if ($1 eq '...') {
                $most = 99;
                next;
            }

            $least++ if $1 !~ /^\[/;
            $most++ if $most < 99;
        }

        $min = $least if $least < $min;
        $max = $most if $most > $max;
    }

    return "$min to $max arguments";
}

is(args('a | b | c'), '1 to 1 arguments', 'syntax: alternatives');
is(args(''), '0 to 0 arguments', 'syntax: nothing');
is(args('a:b [c=d] [e=f]'), '1 to 3 arguments', 'syntax: what may be left out');
is(args('a ... | off'), '1 to 99 arguments', 'syntax: any number');

my %DIRECTIVES = directives();
my %documented;

cmp_ok(scalar keys %DIRECTIVES, '>', 20, 'the module has directives');

foreach my $page (@PAGES) {
    foreach my $block (blocks($TEXT{$page})) {
        my ($syntax, $default, $context) = $block->{text} =~
            /\A\s*Syntax:\ +(.*?;)\n\s*Default:\ +(.*?)\n
             \s*Context:\ +(.*?)\s*\z/xs or next;

        foreach my $line (split /\n\s*/, $syntax) {
            my ($name, $args) = $line =~ /^(\w+)\s*(.*);$/;

            push @{$documented{$name}}, {
                page => $page, args => args($args), context => $context,
                default => $default, line => $block->{line},
            };
        }
    }
}

none('each directive is documented once',
     map { my $n = @{$documented{$_} // []}; $n == 1 ? () : "$_: $n times" }
         sort keys %DIRECTIVES);
none('and no other one',
     grep { !$DIRECTIVES{$_} } sort keys %documented);


# What the C code has as default: the last argument of a merge

my %merge;

$merge{$2} = [ $1, $3 ] while $MODULE =~
    /ngx_conf_merge_(\w+)_value\(conf->(\w+),\s*prev->\w+,\s*([^;]+)\);/g;

sub c_default {
    my ($field) = @_;
    my ($type, $value) = @{$merge{$field} // return};

    return $1 if $type eq 'str' && $value =~ /^"(.*)"\z/;
    return $value ? 'on' : 'off' if $type eq 'value' && $value =~ /^[01]\z/;
    return lc $1 if $value =~ /^NGX_HTTP_KONTEXT_[A-Z]+_(\w+)\z/;
    return if $value !~ /^[\d\s*]+\z/;

    return eval $value;
}


sub number {
    my ($text) = @_;
    my %unit = (ms => 1, s => 1000, m => 60_000, h => 3_600_000,
                k => 1024, M => 1048576);
    my ($n, $unit, $size) = $text =~ /^(\d+)(ms|[smhk]?)\z/ or return $text;

    return $n * ($unit{$unit} // 1);
}


foreach my $name (sort keys %DIRECTIVES) {
    my $is = $DIRECTIVES{$name};
    my $said = ($documented{$name} // [])->[0] or next;
    my $where = "$said->{page}: $name";

    is($said->{context}, $is->{context}, "$where: its context");
    is($said->{args}, $is->{args}, "$where: its arguments");

    my ($default) = $said->{default} =~ /^\Q$name\E (.*);\z/;

    ok(defined $default || $said->{default} =~ /^(?:none|derived .*)\z/,
       "$where: a default") or diag($said->{default});

    my $c = c_default($is->{field}) // next;

    if ($c eq '0' && !defined $default) {
        is($said->{default}, 'none', "$where: its default");
        next;
    }

    # a size or a time: "8m" is 8 megabytes or 8 minutes

    my $got = number($default // $said->{default});

    $got = $1 * 1048576 if $merge{$is->{field}}[0] eq 'size'
                           && ($default // '') =~ /^(\d+)m\z/;
    is($got, $c, "$where: its default");
}


# the table of all directives

{
    my %row = map {
        my ($link, undef, $context) = @$_;
        my ($name) = $link =~ /^\[(\w+)\]/;

        ($name => { context => $context, link => $link })
    } tables($TEXT{'docs/directives.md'}, 'directive');

    is_deeply([ sort keys %row ], [ sort keys %DIRECTIVES ],
              'docs/directives.md: all directives');

    foreach my $name (sort keys %row) {
        is($row{$name}{context}, ($DIRECTIVES{$name} // {})->{context},
           "docs/directives.md: $name: its context");

        my $page = ($documented{$name} // [])->[0]{page} // '';

        is($row{$name}{link},
           "[$name](" . $page =~ s{^docs/}{}r . "#$name)",
           "docs/directives.md: $name: where it is described");
    }
}


# Variables

{
    my %variables = map { $_ => 1 }
        c_text("$SOURCES/ngx_http_kontext_variables.c")
            =~ /\{\s*ngx_string\("(kontext_\w+)"\),\s*NULL/g;
    my %described;

    cmp_ok(scalar keys %variables, '>', 10, 'the module has variables');

    foreach my $row (tables($TEXT{'docs/variables.md'}, 'variable')) {
        $described{$_}++ foreach $row->[0] =~ /`\$(\w+)`/g;
    }

    is_deeply([ sort keys %described ], [ sort keys %variables ],
              'docs/variables.md: all variables');
    none('docs/variables.md: each of them once',
         grep { $described{$_} > 1 } sort keys %described);

    foreach my $page (@PAGES) {
        my %unknown = map { $_ => 1 }
                      grep { !$variables{$_} && !/^kontext_log_/ }
                           $TEXT{$page} =~ /\$\{?(kontext_\w+)/g;

        none("$page: no other variables", sort keys %unknown);
    }
}


# Reasons

{
    my %reasons = map { $_ => 1 } grep { length }
                  c_text("$SOURCES/core/reason.c") =~ /kx_string\("(\w*)"\)/g;
    my %codes;

    foreach my $file (sources()) {
        my $text = c_text($file);

        $codes{$_} = 1 foreach
            $text =~ /\bngx_http_kontext_set_code\(ctx, "(\w+)"\)/g,
            $text =~ /\bkx_protocol_outcome\(a, \w+, "(\w+)"\)/g;
    }

    cmp_ok(scalar keys %reasons, '>', 25, 'the module has reasons');
    cmp_ok(scalar keys %codes, '>', 2, 'and codes of its own');

    my %described;

    foreach my $row (tables($TEXT{'docs/operations.md'}, 'reason')) {
        $described{$_}++ foreach $row->[0] =~ /`(\w+)`/g;
    }

    none('docs/operations.md: each reason is explained',
         grep { !$described{$_} } sort keys %reasons, keys %codes);

    # what the ad server says is not for us to list; these are the known ones

    my %of_server = map { $_ => 1 } qw(ad_skipped ads_disabled ivt_blocked
                                       session_disabled);

    none('docs/operations.md: and none that is none',
         grep { !$reasons{$_} && !$codes{$_} && !$of_server{$_} }
              sort keys %described);
}


# The log

{
    my (%lines, @wrong);
    my @rows = tables($TEXT{'docs/operations.md'}, 'level');

    foreach my $file (sources()) {
        my $text = c_text($file);

        while ($text =~ /\bngx_log_error\(NGX_LOG_(\w+),\s*([^,]+),\s*[^,]+,
                         \s*"((?:[^"\\]|\\.)*)"/xg)
        {
            my ($level, $log, $format) = (lc $1, $2, $3);

            # what "nginx -t" says

            next if $log eq 'cf->log';

            $format =~ s/\\"/"/g;
            $lines{"$level $format"} = 1;
        }
    }

    cmp_ok(scalar keys %lines, '>', 5, 'the module writes to the log');

    my %matched;

    foreach my $line (sort keys %lines) {
        my ($level, $format) = split / /, $line, 2;
        my $re = join('.+', map { quotemeta }
                            split /%(?:\*?[0-9.]*)?[a-zA-Z]+/, $format, -1);
        my @found = grep {
            $rows[$_][0] eq "`$level`" && $rows[$_][1] =~ /^`$re`\z/
        } 0 .. $#rows;

        push @wrong, $line if !@found;
        $matched{$_} = 1 foreach @found;
    }

    none('docs/operations.md: each line of the log is explained', @wrong);
    none('docs/operations.md: and no other one',
         map { $rows[$_][1] } grep { !$matched{$_} } 0 .. $#rows);
}

done_testing;
