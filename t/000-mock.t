#!/usr/bin/perl

# Copyright (C) the ngx_http_kontext_module authors
#
# The test bench itself, with a plain proxy_pass and without the module: what
# the stream tests rely on is shown here to work.

use FindBin ();
use lib "$FindBin::Bin/lib";

use Kontext::Test;


sub dies_like {
    my ($code, $re, $name) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $ok = eval { $code->(); 1 };

    return ok(0, "$name: it lived") if $ok;
    return like($@, $re, $name);
}


# messages

{
    my $text = "HTTP/1.1 100 Continue\r\n\r\n"
               . "HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\n"
               . "Transfer-Encoding: chunked\r\n\r\n"
               . "3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: z\r\n\r\nrest";

    foreach my $size (1, 3, 7, length $text) {
        my $m = Kontext::HTTP->new(kind => 'response');
        my ($buf, $left) = ('', $text);

        while (length $left && !$m->complete) {
            $buf .= substr($left, 0, $size, '');
            $m->feed(\$buf);
        }

        is($m->status, 200, "status, pieces of $size");
        is($m->body, 'abc0123456789', 'chunks decoded');
        is_deeply($m->chunks, [ 'abc', '0123456789' ], 'chunks kept');
        is($m->trailers, "T: z\r\n", 'trailers');
        is($m->header('A'), '1, 2', 'headers of one name joined');
        is_deeply($m->interim, [ 'HTTP/1.1 100 Continue' ], 'interim');
        is($buf . $left, 'rest', 'no byte more than its own');
    }

    foreach my $bad ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "nonsense\r\n\r\n",
                     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                     . "xyz\r\n",
                     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                     . "1\r\nabc\r\n")
    {
        my $m = Kontext::HTTP->new(kind => 'response');

        dies_like(sub { my $buf = $bad; $m->feed(\$buf) }, qr/bad|no line/,
                  'a broken message');
    }
}


my $llm = Kontext::Mock->new(name => 'llm');
my $ads = Kontext::Mock->ad_server(revenue => 0.5);

my $server = <<'CONF';
        access_log logs/access.log events;
        client_max_body_size 32m;

        location / {
            proxy_pass http://@llm@;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }

        location /ads/ {
            proxy_pass http://@ads@/;
        }

        location = /generation {
            return 200 "@generation@";
        }
CONF

my $nginx = Kontext::Nginx->new(
    modules => [],
    vars    => { llm => $llm->addr, ads => $ads->addr, generation => 1 },
    http    => "    log_format events '\$status \$uri';\n",
    server  => $server,
);

cmp_ok($nginx->version, '>=', 1022000, 'version');


# a stream under control, event by event

my $c = $nginx->client;
my $req;

{
    $c->post_json('/v1/chat/completions', chat({ user => 'u-1' }, 'Hi'),
                  'X-Test' => 'yes');

    $req = $llm->wait_request;
    is($req->method, 'POST', 'method');
    is($req->path, '/v1/chat/completions', 'path');
    is($req->header('x-test'), 'yes', 'header');
    is($req->json->{messages}[0]{content}, 'Hi', 'body');
    is($req->json->{user}, 'u-1', 'members of the request');
    ok(!$req->answered, 'waits for the test');

    $req->start(200, 'X-Answer' => '42');
    is($c->read_head->status, 200, 'the head comes before the body');
    is($c->response->header('X-Answer'), 42, 'with its headers');
    is($c->response->header('Content-Type'), 'text/event-stream', 'as SSE');

    $req->event(chat_role(), chat_chunk("Hel\"lo \x{e9}\x{1f6b2}"));
    $c->read_until(qr/Hel\\"lo/);
    unlike($c->peek->body, qr/world/, 'nothing is there before it is sent');
    ok(!$c->response->complete, 'and the answer is open');

    $req->event(chat_chunk(' world'), chat_finish(), chat_usage(), '[DONE]');
    $req->finish;

    my $res = $c->read_response;
    my @data = sse_data($res->body);

    is(scalar @data, 6, 'all events');
    is(json($data[1])->{choices}[0]{delta}{content},
       "Hel\"lo \x{e9}\x{1f6b2}", 'text in UTF-8');
    is(json($data[3])->{choices}[0]{finish_reason}, 'stop', 'finish');
    is($data[5], '[DONE]', 'done');
    ok($c->is_open, 'the connection stays');
}


# the same connection again, at both ends

{
    my $conn = $req->conn->id;

    $c->get('/second?a=b');
    $req = $llm->wait_request(path => '/second');
    is($req->args, 'a=b', 'query');
    is($req->body, '', 'no body');
    $req->respond(404, { error => 'none' });

    my $res = $c->read_response;
    is($res->status, 404, 'status');
    is_deeply($res->json, { error => 'none' }, 'data as JSON');

    $c->request('HEAD', '/head');
    $llm->wait_request(path => '/head')
        ->send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    is($c->read_response->header('Content-Length'), 5, 'HEAD has no body');

    $c->get('/none');
    $llm->wait_request->respond(204);
    is($c->read_response->status, 204, '204 has no body');
}


# rules, and several connections at once

{
    my @clients = map { $nginx->client } 1 .. 5;
    my @heads;

    $clients[$_]->get("/parallel/$_") foreach reverse 0 .. $#clients;

    foreach my $i (0 .. $#clients) {
        $req = $llm->wait_request(path => "/parallel/$i");
        $req->start->chunk("<$i>");
        push @heads, $req;
    }

    $clients[$_]->read_until(qr/<$_>/) foreach 0 .. $#clients;
    $heads[$_]->finish foreach 0 .. $#heads;

    is($clients[$_]->read_response->body, "<$_>", "connection $_")
        foreach 0 .. $#clients;

    $c->post_json('/ads/init', {});
    is($c->read_response->json->{preloadTimeout}, 16000, 'a rule answers');
    $c->post_json('/ads/preload', {});
    is($c->read_response->json->{bids}[0]{revenue}, 0.5, 'another rule');
    $c->post_json('/ads/debug', {});
    is($c->read_response->status, 204, 'and a third');

    is(scalar(my @all = $ads->requests), 3, 'all are on record');
    is(scalar(@all = $ads->requests(qr{/(?:init|debug)})), 2, 'by pattern');
    ok($ads->wait_request(path => '/init')->answered, 'and known as answered');

    $ads->on(qr{/p.*}, 503, 'sorry', 'Retry-After' => 9);
    $c->post_json('/ads/preload', {});
    is($c->read_response->status, 200, 'the first rule that matches wins');

    $ads->hold('/preload');
    $c->post_json('/ads/preload', {});

    my $res = $c->read_response;
    is($res->status, 503, 'a rule less, the next one matches');
    is($res->header('Retry-After'), 9, 'with its headers');

    $ads->hold(qr{/p.*});
    $c->post_json('/ads/preload', {});
    $nginx->barrier;

    $req = ($ads->requests('/preload'))[-1];
    ok(!$req->answered, 'no rule: the request waits');
    ok(!$c->peek->has_head, 'and so does the client');

    $req->send('HTTP/1.1 200 OK', "\r\nContent-Length: 2\r\n\r\nok");
    is($c->read_response->body, 'ok', 'raw bytes in pieces');
}


# ends of connections

{
    my $d = $nginx->client;

    $d->get('/cut');
    $req = $llm->wait_request(path => '/cut');
    $req->start->chunk('partial');
    $d->read_until(qr/partial/);
    $req->close;
    is($req->wait_closed, 'us', 'we closed');
    dies_like(sub { $d->read_response }, qr/ended \(eof\) before the end/,
              'a cut answer is seen as such');

    $d = $nginx->client;
    $d->get('/reset');
    $llm->wait_request(path => '/reset')->reset;
    is($d->read_response->status, 502, 'reset instead of an answer');
    like($nginx->wait_log(qr/\[error\].*reset by peer/), qr/reset by peer/,
         'as a reset, not as an end');

    $d = $nginx->client;
    $d->get('/abort');
    $req = $llm->wait_request(path => '/abort');
    $req->start->chunk('x');
    $d->read_until(qr/x/);
    ok(!$req->closed, 'open while the client is there');
    $d->reset;
    is($req->wait_closed, 'eof', 'the client aborts, nginx hangs up');

    $d = $nginx->client;
    $d->get('/until-eof');
    $req = $llm->wait_request(path => '/until-eof');
    $req->send("HTTP/1.0 200 OK\r\n\r\nall of it")->close;
    is($d->read_response->body, 'all of it', 'a body up to the end');

    $d = $nginx->client;
    $d->send("GET /one HTTP/1.0\r\n\r\n");
    $llm->wait_request(path => '/one')->respond(200, '1.0');
    is($d->read_response->body, '1.0', 'an HTTP/1.0 client');
    is($d->wait_closed, 'eof', 'is hung up on');

    $llm->refuse;

    # connections kept alive outlive the listener

    $d = $nginx->client;
    $d->get('/refused');
    is($d->read_response->status, 502, 'refused');
    $llm->listen;
    $d->get('/again');
    $llm->wait_request(path => '/again')->respond(200, 'back');
    is($d->read_response->body, 'back', 'and back');
}


# sizes beyond any socket buffer, in both directions at once

{
    my $big = join('', map { "line $_\n" } 1 .. 700_000);

    $c->request('POST', '/big', $big);
    $req = $llm->wait_request(path => '/big');
    ok($req->body eq $big, 'a request of ' . length($big) . ' bytes');
    $req->respond(200, $big);
    ok($c->read_response->body eq $big, 'a response of that size');

    $c->request('POST', '/chunked', "4\r\nabcd\r\n0\r\n\r\n",
                'Transfer-Encoding' => 'chunked');
    $req = $llm->wait_request(path => '/chunked');
    is($req->body, 'abcd', 'a chunked request');
    $req->respond(200, '');
    is($c->read_response->body, '', 'an empty body');

    # the client reads later: the server must not block on it

    my $d = $nginx->client;
    $d->get('/late');
    $req = $llm->wait_request(path => '/late');
    $req->respond(200, $big x 4);
    $c->get('/meanwhile');
    $llm->wait_request(path => '/meanwhile')->respond(200, 'served');
    is($c->read_response->body, 'served', 'others are served meanwhile');
    ok($d->read_response->body eq $big x 4, 'a slow reader gets all');
    $req->wait_sent;
}


# waits end

dies_like(sub { $llm->wait_request(path => '/never', timeout => 0.05) },
          qr{llm: waited in vain for a request of /never.*GET /late}s,
          'no such request');
dies_like(sub { $c->get('/silent'); $c->read_response(0.05) },
          qr/waited in vain for the end of the response/, 'no answer');
$llm->wait_request(path => '/silent')->respond(200, 'text');
dies_like(sub { $c->read_until(qr/other/) },
          qr/the response ended without .*other.*text/s, 'no such text');
dies_like(sub { wait_until('it', sub { 0 }, 0.05) }, qr/in vain for it/,
          'no such condition');


# reload

{
    my $old = $nginx->worker_pid;
    my $d = $nginx->client;

    $d->get('/across');
    $req = $llm->wait_request(path => '/across');
    $req->start->chunk('before ');
    $d->read_until(qr/before/);

    $nginx->reload(vars => { llm => $llm->addr, ads => $ads->addr,
                             generation => 2 });

    isnt($nginx->worker_pid, $old, 'another worker');
    is_deeply([ $nginx->worker_pids ], [ $old, $nginx->worker_pid ],
              'the workers so far');

    my $e = $nginx->client;
    is($e->get('/generation')->read_response->body, 2, 'new configuration');

    $req->chunk('after')->finish;
    is($d->read_response->body, 'before after', 'the old request ends well');

    $nginx->wait_worker_exit($old);

    dies_like(sub { $nginx->reload(server => 'nonsense;') },
              qr/reload failed.*nonsense/s, 'a reload that fails');
}


# logs

like($nginx->wait_file('logs/access.log', qr{^200 /big$}m), qr{^204 /none$}m,
     'an access log');
is(scalar(() = $nginx->grep_log(qr/start worker process \d+/)), 2,
   'lines of the error log');

ok(!-e $nginx->dir . '/nonsense', 'no stray file');

$nginx->stop_ok(allow => [ qr/unknown directive "nonsense"/ ]);

{
    my ($ok, $output) = Kontext::Nginx->test_config(modules => [],
                                                    server => '');

    ok($ok, 'a good configuration') or diag($output);

    ($ok, $output) = Kontext::Nginx->test_config(modules => [],
                                                 http => 'nonsense on;');

    ok(!$ok, 'a bad configuration');
    like($output, qr/\[emerg\].*unknown directive "nonsense"/, 'and why');

    dies_like(sub { Kontext::Nginx->new(modules => [], http => 'nonsense;') },
              qr/does not start.*nonsense/s, 'which does not start');
    dies_like(sub { Kontext::Nginx->test_config(http => '@typo@') },
              qr/no value for \@typo\@/, 'an unknown placeholder');
}


# a run that is not sound is found out

{
    my $n = Kontext::Nginx->new(modules => [], workers => 2, server => '');
    my @pids = $n->worker_pids;

    is(scalar @pids, 2, 'two workers');
    kill('SEGV', $pids[0]);
    $n->wait_log(qr/exited on signal 11/);
    $n->stop;
    like(join("\n", $n->complaints), qr/$pids[0] exited on signal 11/,
         'a crash is a complaint');
    is(scalar($n->complaints(allow => [ qr/signal 11/ ])), 0,
       'unless it is allowed');

    $n->write_file('logs/error.log', "x.c:1:2: runtime error: shift\n"
                   . "==1==ERROR: AddressSanitizer: heap-use-after-free\n"
                   . "2026/01/01 [alert] 1#1: zero size buf\n"
                   . "2026/01/01 [error] 1#1: only an error\n");
    is(scalar(my @found = $n->complaints), 3, 'sanitizers and alerts, too');
    $n->{checked} = 1;
}


# nothing stays behind

{
    my @pids = ($llm->pid, $ads->pid);

    $_->stop foreach $llm, $ads;
    is(scalar(grep { kill(0, $_) } @pids), 0, 'the mock servers are gone');

    pipe(my $rd, my $wr) or die "pipe: $!";

    my $pid = fork() // die "fork: $!";

    if ($pid == 0) {
        # a test that is killed in the middle

        my $m = Kontext::Mock->new;
        my $n = Kontext::Nginx->new(modules => [], server => '');
        my $o = Kontext::Mock->new;

        syswrite($wr, join(' ', $n->dir, $m->pid, $n->pid, $o->pid));
        kill('KILL', $$);
    }

    waitpid($pid, 0);
    sysread($rd, my $text, 4096);
    (my $dir, @pids) = split(/ /, $text);
    is(scalar @pids, 3, 'the servers of a test that was killed');

    my $gone = sub {
        foreach my $server (@pids) {
            open(my $fh, '<', "/proc/$server/stat") or next;
            return 0 if <$fh> !~ /\) Z /;
        }

        return !-e $dir;
    };

    ok(wait_until('them to end', $gone), 'they end by themselves');
}


done_testing;
