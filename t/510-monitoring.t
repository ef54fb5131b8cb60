#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The dashboard and the alerts of monitoring/: what they ask for is there,
# promtool has nothing to say, each alert has a test and a word of advice.

use FindBin ();
use lib "$FindBin::Bin/lib", "$FindBin::Bin/support";

use File::Temp ();
use Kontext::Test;

use Markdown qw(anchors slurp tables);

my $DIR = "$FindBin::Bin/../monitoring";

my $alerts = slurp('monitoring/kontext_alerts.yml');
my $tests = slurp('monitoring/kontext_alerts_test.yml');
my $board = json(slurp('monitoring/kontext_dashboard.json'));
my $page = slurp('docs/monitoring.md');


sub none {
    my ($name, @wrong) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    return is(join("\n", @wrong), '', $name);
}


# What there is: metrics, and the values of their labels

my $nginx = Kontext::Nginx->new(server => <<'CONF');
        location /kontext_status {
            kontext_status;
        }

        location /_kontext/ {
            internal;
            return 204;
        }

        location /v1/ {
            kontext                  on;
            kontext_publisher_token  acme-dev;
            return 204;
        }
CONF
my $status = $nginx->client->get('/kontext_status?format=prometheus')
                   ->read_response->body;
my (%metric, %value, %label);

foreach my $line (split /\n/, $status) {
    my ($name, $labels) = $line =~ /^(kontext_\w+)(?:\{(.*)\})? / or next;

    $metric{$name} = 1;

    while (($labels // '') =~ /(\w+)="([^"]*)"/g) {
        $label{"$name $1"} = 1;
        $value{"$name $1 $2"} = 1;
    }
}

$nginx->stop_ok;
cmp_ok(scalar keys %metric, '>', 20, 'the status page has metrics');


# what an expression, or anything else, asks for and is not there

sub missing {
    my ($text) = @_;
    my %wrong;

    while ($text =~ /\b(kontext_\w+)(?:\{([^{}]*)\})?/g) {
        my ($name, $selectors) = ($1, $2 // '');

        next if $name =~ /^kontext_(?:alerts|dashboard|alerts_test|status)\z/;

        if (!$metric{$name}) {
            $wrong{$name} = 1;
            next;
        }

        while ($selectors =~ /(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"/g) {
            my ($label, $op, $values) = ($1, $2, $3);

            # what Prometheus adds

            next if $label =~ /^(?:instance|job|zone|version)\z/;

            if (!$label{"$name $label"}) {
                $wrong{"$name\{$label}"} = 1;
                next;
            }

            foreach my $value ($op =~ /~/ ? split(/\|/, $values) : $values) {
                $wrong{"$name\{$label=$value}"} = 1
                    if !$value{"$name $label $value"};
            }
        }
    }

    return sort keys %wrong;
}

is(join(' ', missing('rate(kontext_chats_total{status="fille"}[5m])'
                     . ' / kontext_chat + kontext_sessions{form="text"}'
                     . ' + kontext_chats_total{status=~"filled|x"}')),
   'kontext_chat kontext_chats_total{status=fille} '
   . 'kontext_chats_total{status=x} kontext_sessions{form}',
   'what is not there is found out');

none('the alerts ask for what there is', missing($alerts));
none('so do their tests', missing($tests));


# the page has all of them, and a histogram by its name

{
    my %family = map { s/_(?:bucket|sum|count)\z//r => 1 } keys %metric;
    my %named = map { $_ => 1 } map { $_->[0] =~ /`(\w+)`/g }
                tables($page, 'metric');

    is_deeply([ sort keys %named ], [ sort keys %family ],
              'docs/monitoring.md: all metrics');
}


# the alerts

my @alerts = $alerts =~ /^\s*- alert: (\w+)$/mg;
my $headings = anchors($page);

cmp_ok(scalar @alerts, '>', 5, 'there are alerts');

foreach my $alert (@alerts) {
    my ($rule) = $alerts =~ /- alert: $alert\n(.*?)(?=\n\s*- alert:|\z)/s;

    like($rule, qr/^\s*severity: (?:page|warning)$/m, "$alert: a severity");
    like($rule, qr/^\s*summary: \S/m, "$alert: a summary");
    like($rule, qr/^\s*description: \S/m, "$alert: a description");
    ok($headings->{lc $alert}, "$alert: docs/monitoring.md says what to do");
    like($tests, qr/alertname: $alert\n\s*exp_alerts:\n\s*- exp_labels/,
         "$alert: a test in which it fires");
    like($tests, qr/eval_time: \w+, alertname: $alert \}/,
         "$alert: a test in which it does not");
}

none('docs/monitoring.md: and no other alert',
     grep { my $name = $_; !grep { $_ eq $name } @alerts }
          $page =~ /^### (Kontext\w+)/mg);


# the dashboard

my @panels = @{$board->{panels}};
my (%ids, @cells, @exprs);

foreach my $panel (@panels) {
    my $name = "dashboard, $panel->{title}";
    my $at = $panel->{gridPos};

    ok(!$ids{$panel->{id}}++, "$name: an id of its own");

    foreach my $y ($at->{y} .. $at->{y} + $at->{h} - 1) {
        foreach my $x ($at->{x} .. $at->{x} + $at->{w} - 1) {
            $cells[$y][$x] //= $panel->{title};
            ok(0, "$name: on top of $cells[$y][$x]")
                if $cells[$y][$x] ne $panel->{title};
        }
    }

    next if $panel->{type} eq 'row';

    cmp_ok(scalar @{$panel->{targets}}, '>', 0, "$name: something to show");

    foreach my $target (@{$panel->{targets}}) {
        push @exprs, $target->{expr};
        none("$name: asks for what there is", missing($target->{expr}));
        is($target->{datasource}{uid}, '${datasource}',
           "$name: of the data source that was chosen");
        like($target->{expr}, qr/instance=~"\$instance"/,
             "$name: of the nginx that was chosen");
    }
}

ok(!(grep { @$_ > 24 } @cells), 'dashboard: not wider than it may be');
is_deeply([ map { $_->{name} } @{$board->{templating}{list}} ],
          [ 'datasource', 'instance' ], 'dashboard: what can be chosen');

# each metric is somewhere

{
    my %shown = map { $_ => 1 } join(' ', @exprs) =~ /\b(kontext_\w+)/g;

    none('dashboard: nothing is left out',
         grep { !$shown{$_} && !/^kontext_(?:zone_bytes|hold_seconds_sum
                                           |hold_seconds_count)\z/x }
              sort keys %metric);
}


# promtool

SKIP: {
    skip 'no promtool: package prometheus', 5
        if !grep { -x "$_/promtool" } split /:/, $ENV{PATH};

    my $dir = File::Temp->newdir;

    my $promtool = sub {
        my ($how, $file) = @_;
        my $output = `cd $DIR && promtool $how rules $file 2>&1`;

        return ($? == 0, $output);
    };

    my ($ok, $output) = $promtool->('check', 'kontext_alerts.yml');

    ok($ok, 'promtool check rules') or diag($output);
    ($ok, $output) = $promtool->('test', 'kontext_alerts_test.yml');
    ok($ok, 'promtool test rules') or diag($output);

    # a threshold that is lost is noticed

    my $lost = $alerts =~ s/> 0\.2/> 0.9/gr;

    foreach my $file ([ 'kontext_alerts.yml', $lost ],
                      [ 'kontext_alerts_test.yml', $tests ]) {
        open(my $fh, '>', "$dir/$file->[0]") or die $!;
        print $fh $file->[1];
        close($fh);
    }

    ($ok) = $promtool->('test', "$dir/kontext_alerts_test.yml");
    ok(!$ok, 'promtool: tests can fail');

    # the dashboard's expressions are expressions

    my $n = 0;
    my $rules = "groups:\n- name: dashboard\n  rules:\n" . join('', map {
        my $expr = s/\$__rate_interval/5m/gr =~ s/\$instance/.*/gr;

        "  - record: panel:" . $n++ . "\n    expr: |\n      $expr\n"
    } @exprs);

    open(my $fh, '>', "$dir/dashboard.yml") or die $!;
    print $fh $rules;
    close($fh);

    ($ok, $output) = $promtool->('check', "$dir/dashboard.yml");
    ok($ok, 'promtool: the expressions of the dashboard') or diag($output);
    like($output, qr/\b$n rules found/, 'promtool: all of them');
}

done_testing;
