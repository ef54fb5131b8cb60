package Canaries;

# Copyright (C) the ngx_http_kontext_module authors
#
# A thousand texts, the same ones each time: 700 with something that must not
# reach an ad server, and 300 with what only looks like it, which has to.

use strict;
use warnings;
use utf8;

use Exporter 'import';

our @EXPORT_OK = qw(canaries);

my $UPPER = join('', 'A' .. 'Z');
my $LOWER = join('', 'a' .. 'z');
my $DIGIT = '0123456789';
my $WORD = $UPPER . $LOWER . $DIGIT;

my $seed;


# numbers of a generator of our own: Perl's may change

sub pick {
    my ($n) = @_;

    $seed = ($seed * 1103515245 + 12345) & 0x7fffffff;

    return ($seed >> 8) % $n;
}

sub one_of { return $_[pick(scalar @_)] }

sub some {
    my ($count, $chars) = @_;

    return join('', map { substr($chars, pick(length $chars), 1) }
                        1 .. $count);
}

sub number { return (1 + pick(9)) . some($_[0] - 1, $DIGIT) }


# What people write around it.  None has a digit or a word that says what a
# number is.

my @AROUND = (
    '%s', 'It is %s.', 'it is %s, thanks', "Hello!\n\n%s\n\nBye", '(%s)',
    '"%s"', 'You can reach me here: %s', '%s is mine, keep it safe',
    "- name: Bob\n- contact: %s\n", 'Meine Daten: %s. Danke!',
    'Voici : %s', '**%s**', "Can you put %s into the form?", '<%s>',
    "Это %s, спасибо", '我的是 %s 谢谢', '`%s`', "a\t%s\tb",
);


sub email {
    my $name = one_of(qw(bob ann-marie john.smith j.r.r.tolkien o'brien
                         info+news max_mustermann x Q.Public firstname1987
                         12345678 jörg иван user%ext));
    my $host = one_of(qw(example.com mail.example.co.uk EXAMPLE.ORG b.cd
                         sub.domain.example.travel müller.de почта.рф
                         xn--mller-kva.de my-company.io 163.com gmail.com));

    return "$name\@$host";
}


# by their countries' habits

my @PHONES = (
    '+1 4AA 5AA AAAA', '+14AA5AAAAAA', '+1 (4AA) 5AA-AAAA', '+1-4AA-5AA-AAAA',
    '+44 20 7AAA AAAA', '+44 (0)7AAA AAAAAA', '+447AAAAAAAAA',
    '+49 30 AAAAAAA', '+49 (0) 171 AAAAAAA', '+49-89-AAAAAA',
    '+33 6 AA AA AA AA', '+336AAAAAAAA', '+420 7AA AAA AAA', '+86 138 AAAA AAAA',
    '+7 (9AA) AAA-AA-AA', '+79AAAAAAAAA', '+91 98AAA AAAAA', '+81 90-AAAA-AAAA',
    '+55 (11) 9AAAA-AAAA', '+61 4AA AAA AAA', '+34 6AA AAA AAA',
    '+39 3AA AAA AAAA', '+48 AAA AAA AAA', '0049 30 AAAAAAAA',
    '0044 20 7AAA AAAA', '(4AA) 5AA-AAAA', '4AA-5AA-AAAA', '4AA.5AA.AAAA',
    '4AA 5AA AAAA', '1-4AA-5AA-AAAA', '020 7AAA AAAA', '077AA AAAAAA',
    '077AAAAAAAA', '0171/AAAAAAA', '0171 AAAAAAA', '030 AAAAAAAA',
    '06 AA AA AA AA', '06.AA.AA.AA.AA', '06AAAAAAAA', '090-AAAA-AAAA',
    '(11) 9AAAA-AAAA', '8 (9AA) AAA-AA-AA', '8-9AA-AAA-AA-AA', '89AAAAAAAAA',
    '138AAAAAAAA', '138 AAAA AAAA',
);

sub digits {
    my ($form) = @_;

    # no zeroes: groups of them are no number of anybody

    $form =~ s/A/1 + pick(9)/ge;

    return $form;
}

sub phone { return digits(one_of(@PHONES)) }


# only a word says what these are

sub called {
    return (one_of('tel. ', 'Tel: ', 'phone ', 'my phone number is ',
                   'Call me at ', 'mobile: ', 'WhatsApp ', 'SMS to ',
                   'Telefon: ', 'Handy ', 'tél. ', 'móvil ', 'teléfono ',
                   'тел. ', 'телефон ', '电话', '手机', 'Fax: '),
            digits(one_of('AAA AAA', 'AAA-AAAA', 'AAAAAAA', 'AAA AAA AAA',
                          'AAAAAAAAA', 'AAAAA AAAAA', 'AA AA AA AA',
                          'AAAA AAAA')));
}


sub luhn {
    my ($digits) = @_;
    my ($sum, $i) = (0, 1);

    foreach my $d (reverse split //, $digits) {
        my $n = $i++ % 2 ? $d * 2 : $d;

        $sum += $n > 9 ? $n - 9 : $n;
    }

    return $digits . (10 - $sum % 10) % 10;
}

sub card {
    my ($prefix, $len) = @{one_of(
        [ '4', 16 ], [ '4', 16 ], [ '4', 13 ], [ '4', 19 ],
        (map { [ $_, 16 ] } 51 .. 55), [ '2221', 16 ], [ '2720', 16 ],
        [ '34', 15 ], [ '37', 15 ], [ '6011', 16 ], [ '65', 16 ],
        [ '36', 14 ], [ '3528', 16 ], [ '62', 16 ], [ '5018', 16 ])};

    # not all of the same digit

    my $digits = luhn($prefix . '12' . some($len - length($prefix) - 3,
                                            $DIGIT));
    my $by = one_of('', ' ', '-');

    if ($len == 15) {
        $digits =~ s/\A(\d{4})(\d{6})/$1$by$2$by/;

    } elsif ($len == 14) {
        $digits =~ s/\A(\d{4})(\d{6})/$1$by$2$by/;

    } elsif ($len == 16) {
        $digits =~ s/(\d{4})(?=\d)/$1$by/g;
    }

    return $digits;
}


# what is before it, the key, what is behind it

sub key {
    my $n = pick(34);
    my @made = (
        [ '', 'sk-' . some(48, $WORD) ],
        [ '', 'sk-proj-' . some(60, $WORD . '_-') . 'A1z' ],
        [ '', 'sk-ant-api03-' . some(80, $WORD . '_-') . 'A1z' ],
        [ '', 'sk_live_' . some(24, $WORD) ],
        [ '', 'rk_test_' . some(24, $WORD) ],
        [ '', 'whsec_' . some(32, $WORD) ],
        [ '', 'ghp_' . some(36, $WORD) ],
        [ '', 'gho_' . some(36, $WORD) ],
        [ '', 'github_pat_' . some(22, $WORD) . '_' . some(59, $WORD) ],
        [ '', 'glpat-' . some(20, $WORD) ],
        [ '', 'AKIA' . some(16, $UPPER . '234567') ],
        [ '', 'ASIA' . some(16, $UPPER . '234567') ],
        [ '', 'AIza' . some(35, $WORD) ],
        [ '', 'xoxb-' . number(12) . '-' . number(12) . '-'
              . some(24, $WORD) ],
        [ '', 'hf_' . some(34, $WORD) ],
        [ '', 'npm_' . some(36, $WORD) ],
        [ '', 'SG.' . some(22, $WORD) . '.' . some(43, $WORD) ],
        [ '', 'gsk_' . some(52, $WORD) ],
        [ '', 'ya29.' . some(60, $WORD) ],
        [ '', 'eyJ' . some(33, $WORD) . '.eyJ' . some(60, $WORD) . '.'
              . some(43, $WORD . '_-') ],
        [ 'Authorization: Bearer ', 'A1z' . some(30, $WORD) ],
        [ 'authorization: bearer ', 'A1z' . some(30, $WORD . '._') . '9' ],
        [ 'Authorization: Basic ', 'dX' . some(28, $WORD) . 'Q1==' ],
        [ 'api_key=', 'A1z' . some(29, $WORD) ],
        [ 'OPENAI_API_KEY=', 'A1z' . some(29, $WORD) ],
        [ '"apiKey": "', 'A1z' . some(29, $WORD), '"' ],
        [ 'x-api-key: ', 'A1z' . some(29, $WORD) ],
        [ 'client_secret=', 'A1z' . some(29, $WORD) ],
        [ 'access_token=', 'A1z' . some(29, $WORD) ],
        [ 'aws_secret_access_key = ', 'A1z' . some(37, $WORD . '/+') ],
        [ 'password: ', 'A1z' . some(20, $WORD) ],
        [ 'AccountKey=', 'A1z' . some(83, $WORD . '/+') . '==' ],
        [ '', "-----BEGIN RSA PRIVATE KEY-----\n"
              . join("\n", map { 'MII' . some(61, $WORD . '/+') } 1 .. 4)
              . "\n-----END RSA PRIVATE KEY-----" ],
        [ '', "-----BEGIN PRIVATE KEY-----\n"
              . join("\n", map { 'MII' . some(61, $WORD . '/+') } 1 .. 3)
              . "\n-----END PRIVATE KEY-----" ],
    );

    return @{$made[$n]};
}


# what has digits, "@" or long words, and is none of these

sub harmless {
    my $n = pick(44);
    my $day = sprintf('%02d', 1 + pick(28));
    my $month = sprintf('%02d', 1 + pick(12));
    my $year = 1950 + pick(90);
    my $hex = sub { some($_[0], '0123456789abcdef') };
    my $wrong = card();

    # one digit more or less is no card

    $wrong =~ s/(\d)\z/($1 + 1) % 10/e;

    my @made = (
        "$year-$month-$day", "$day.$month.$year", "$month/$day/$year",
        "$year-$month-$day 14:30:59", "${year}-${month}-${day}T08:15:00Z",
        'since ' . number(4) . ' or ' . number(4), '24/7', '9-to-5',
        join('.', 10, map { pick(256) } 1 .. 3) . ':8080',
        '192.168.' . pick(256) . '.' . pick(256),
        'v' . pick(9) . '.' . pick(40) . '.' . pick(20),
        'nginx 1.' . pick(30) . '.' . pick(9) . '-2~deb13u1',
        '$' . pick(900) . '.' . some(2, $DIGIT),
        number(3) . ',' . some(3, $DIGIT) . ',' . some(3, $DIGIT) . ' people',
        number(1) . ' ' . some(3, $DIGIT) . ' ' . some(3, $DIGIT) . ' EUR',
        'about ' . number(2) . '%', pick(90) . ' + ' . pick(90) . ' = ?',
        '0.' . some(14, $DIGIT), '3.14159265358979', number(2) . ' km/h',
        '1920x1080', number(4) . 'px', 'HTTP 404', 'RFC 9110, section '
        . pick(15), '#' . number(6), 'order no. ' . number(10),
        'invoice 2026-' . number(6), 'ticket #' . number(11),
        'ISBN 978-3-16-148410-0', "timestamp 17" . some(8, $DIGIT),
        '17' . some(11, $DIGIT), 'order ' . $wrong,
        $hex->(8) . '-' . $hex->(4) . '-4' . $hex->(3) . '-a' . $hex->(3)
        . '-' . $hex->(12),
        'commit ' . $hex->(40), 'sha256:' . $hex->(64),
        '@' . one_of(qw(bob nginx everyone)), 'npm i @angular/core@17.0.2',
        'git@github.com:nginx/nginx.git', 'root@localhost', 'logo@2x.png',
        '@app.route("/")', 'x = a @ b.T', 'https://example.com/a/2026/11/long'
        . '-title-of-some-article-about-shoes',
        'internationalization_of_all_the_components_of_a_page',
    );

    return $made[$n];
}


# Each is { kind, text, expected, secrets }: the text, what is to be left of
# it, and strings that may be nowhere.

sub canaries {
    my (@cases, %seen);

    $seed = 20261125;

    # each text once

    my $add = sub {
        my ($n, $kind, $make) = @_;

        while ($n) {
            my ($before, $secret, $after) = $make->();
            my $around = one_of(@AROUND);
            my $left = $kind eq 'none' ? $secret : "[$kind]";

            $_ = $around =~ s/%s/$before . $_ . ($after \/\/ '')/er
                foreach my ($text, $expected) = ($secret, $left);

            next if $seen{$text}++;

            push @cases, {
                kind => $kind, text => $text, expected => $expected,
                secrets => [ $kind eq 'none' ? () : split /\n/, $secret ],
            };
            $n--;
        }
    };

    $add->(170, email => sub { ('', email()) });
    $add->(15, email => sub { ('mailto:', email()) });
    $add->(15, email => sub { ('https://example.com/?email=',
                               email() =~ s/\@/%40/r, '&x=1') });
    $add->(150, phone => sub { ('', phone()) });
    $add->(50, phone => \&called);
    $add->(150, card => sub { ('', card()) });
    $add->(150, key => \&key);
    $add->(300, none => sub { ('', harmless()) });

    return @cases;
}

1;
