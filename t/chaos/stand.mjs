// Copyright (C) the ngx_http_kontext_module authors
//
// What chaos and soak are made of: an nginx, a chat backend and an ad server that misbehave when told to, and clients
// that compare each byte.

import { spawn, execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, readSync, readdirSync, readlinkSync, rmSync,
         writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { randomUUID } from 'node:crypto';

import { FORMATS, answer, compare, hasAd, random } from './formats.mjs';

const STREAM_TIMEOUT = 90_000;          // ms: longer than any fault lasts

export { sleep };

function listen(server) {
    return new Promise((done, failed) => {
        server.once('error', failed);
        server.listen(0, '127.0.0.1', () => done(server.address().port));
    });
}

async function freePort() {
    const server = net.createServer();
    const port = await listen(server);

    await new Promise(done => server.close(done));
    return port;
}

export async function until(what, condition, ms = 30_000) {
    const end = Date.now() + ms;

    while (true) {
        const value = await condition();

        if (value) {
            return value;
        }

        if (Date.now() > end) {
            throw new Error(`waited in vain for ${what}`);
        }

        await sleep(20);
    }
}


// The chat backend.  The query says what to send, how fast, and what goes wrong: a reset or an end after so many
// frames.

export async function backend() {
    const server = http.createServer((req, res) => {
        const args = new URL(req.url, 'http://a').searchParams;
        const { frames } = answer(args.get('format'), Number(args.get('seed')));
        const at = Number(args.get('at') ?? -1), gap = Number(args.get('gap'));
        const rnd = random(Number(args.get('seed')) ^ 0x5bd1e995);
        let i = 0, rest = null;

        req.resume();
        res.on('error', () => {});

        const send = () => {
            if (res.destroyed) {
                return;
            }

            if (i === at) {
                args.get('fault') === 'reset' ? req.socket.resetAndDestroy() : req.socket.end();
                return;
            }

            // a frame in one piece, or cut somewhere

            const frame = rest ?? frames[i];

            if (!rest && rnd.below(4) === 0 && frame.length > 1) {
                const n = 1 + rnd.below(frame.length - 1);

                res.write(frame.subarray(0, n));
                rest = frame.subarray(n);

            } else {
                res.write(frame);
                rest = null;
                i++;
            }

            i < frames.length ? setTimeout(send, rnd.below(2 * gap)) : res.end();
        };

        req.on('end', () => {
            res.setHeader('Content-Type', FORMATS[args.get('format')].type);
            send();
        });
    });

    server.keepAliveTimeout = 0;

    return { server, port: await listen(server) };
}


// The ad server: its mode may change at any time.

const bids = () => JSON.stringify({ sessionId: randomUUID(), bids: [
    { bidId: randomUUID(), code: 'inlineAd', revenue: 0.004 }] });

const LIES = ['{', 'null', '[]', '{"sessionId":1}', '{"sessionId":"x","bids":{}}', '{"bids":[{"bidId":"<b>"}]}',
              '{"errCode":"down"}', '\u0000\u0000', `{"sessionId":"${'9'.repeat(70000)}"}`, '{"bids":'.repeat(2000),
              '{"sessionId":"0d5c1f2e-8a47-4b6b-9c3e-6f1d20b7a913","skip":true,"skipCode":"a\\r\\nb"}'];

export const MODES = ['ok', 'dead', 'hang', 'flood', 'lie', 'error', 'reset', 'slow', 'http'];

export async function adServer() {
    const sockets = new Set();
    const ads = { mode: 'ok', requests: 0, sockets };

    const server = net.createServer(socket => {
        let text = '';

        sockets.add(socket);
        socket.on('close', () => sockets.delete(socket));
        socket.on('error', () => {});

        if (ads.mode === 'dead') {
            socket.resetAndDestroy();
            return;
        }

        socket.on('data', data => {
            text += data.toString('latin1');

            const head = text.indexOf('\r\n\r\n');
            const length = head < 0 ? 0 : Number(/content-length: (\d+)/i.exec(text)?.[1] ?? 0);

            if (head < 0 || text.length < head + 4 + length) {
                return;
            }

            const path = text.split(' ')[1];

            text = '';
            ads.requests++;
            respond(socket, path);
        });
    });

    function respond(socket, path) {
        const write = data => !socket.destroyed && socket.write(data);
        const send = (status, body) => {
            write(`HTTP/1.1 ${status} X\r\nContent-Type: application/json\r\n`
                  + `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n`);
            write(body);
            socket.end();
        };
        const good = path === '/preload' ? bids() : path === '/init' ? '{"enabled":true,"reportDebug":true}' : '{}';

        switch (ads.mode) {

        case 'hang':
            return;

        case 'flood': {
            write('HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{"sessionId":"');

            const flood = () => {
                while (!socket.destroyed && socket.write('x'.repeat(16384))) { /* until it is full */ }
            };

            socket.on('drain', flood);
            flood();
            return;
        }

        case 'lie':
            return send(200, LIES[Math.floor(Math.random() * LIES.length)]);

        case 'error':
            return send([204, 301, 400, 404, 429, 500, 503][Math.floor(Math.random() * 7)], '');

        case 'reset':
            write(`HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n${good.slice(0, 20)}`);
            setTimeout(() => !socket.destroyed && socket.resetAndDestroy(), 5);
            return;

        case 'slow': {
            const body = `HTTP/1.1 200 OK\r\nContent-Length: ${good.length}\r\nConnection: close\r\n\r\n${good}`;
            let i = 0;
            const drip = () => {
                write(body.slice(i, i + 20));
                i += 20;
                i < body.length ? setTimeout(drip, 40) : socket.end();
            };

            return drip();
        }

        case 'http':
            write('\u0001\u0002 nothing HTTP has\r\nX: \u0000\r\n\r\n');
            socket.end();
            return;

        default:
            return send(path === '/preload' || path === '/init' ? 200 : 204,
                        path === '/preload' || path === '/init' ? good : '');
        }
    }

    ads.server = server;
    ads.port = await listen(server);
    ads.set = mode => {
        ads.mode = mode;

        if (mode === 'ok') {
            for (const socket of sockets) {
                socket.destroy();
            }
        }
    };

    return ads;
}


// nginx with two workers

export class Nginx {
    static async start({ backend, ads, zone, module, binary }) {
        const nginx = new Nginx();

        nginx.dir = mkdtempSync(join(tmpdir(), 'kontext-chaos-'));
        nginx.port = await freePort();
        nginx.binary = binary;

        for (const dir of ['logs', 'temp']) {
            mkdirSync(join(nginx.dir, dir));
        }

        const temp = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
            .map(n => `${n}_temp_path temp/${n};`).join(' ');

        writeFileSync(join(nginx.dir, 'nginx.conf'), `load_module ${module};
daemon off;
worker_processes 2;
pid logs/nginx.pid;
error_log logs/error.log notice;
${process.getuid() === 0 ? 'user root;' : ''}
worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http {
    ${temp}
    access_log off;
    kontext_zone ${zone};
    kontext_publisher_token acme-dev;
    kontext_grace 300ms;
    kontext_preload_timeout 2s;
    kontext_user_id $http_x_user;
    kontext_conversation_id $http_x_conversation;
    proxy_http_version 1.1;
    add_header X-Worker $pid always;
    server {
        listen 127.0.0.1:${nginx.port} backlog=4096;
        location /_kontext/ {
            internal;
            proxy_pass http://127.0.0.1:${ads}/;
            proxy_method POST;
            proxy_set_header Connection "";
            proxy_connect_timeout 2s;
        }
        location / { kontext on; proxy_pass http://127.0.0.1:${backend}; }
        location /text/ { kontext on; kontext_inject text; proxy_pass http://127.0.0.1:${backend}; }
        location /plain/ { proxy_pass http://127.0.0.1:${backend}; }
        location /kontext/ { kontext_api ping=1s; }
        location = /status { kontext_status; }
    }
}
`);

        nginx.child = spawn(binary, ['-p', `${nginx.dir}/`, '-c', `${nginx.dir}/nginx.conf`, '-e', 'logs/error.log'],
                            { stdio: 'ignore' });
        nginx.pid = nginx.child.pid;
        nginx.exited = new Promise(done => nginx.child.once('exit', code => { nginx.code = code; done(); }));

        process.once('exit', () => nginx.code === undefined && nginx.child.kill('SIGTERM'));

        await until('nginx', () => {
            if (nginx.code !== undefined) {
                throw new Error(`nginx does not start:\n${nginx.log()}`);
            }

            return nginx.workers().length === 2;
        });

        await until('an answer', () => nginx.get('/status').then(r => r.status === 200, () => false));

        return nginx;
    }

    log() {
        return readFileSync(join(this.dir, 'logs/error.log'), 'utf8');
    }

    complaints() {
        return this.log().split('\n')
            .filter(l => /\[(alert|emerg|crit)\]|exited on signal|exited with code [1-9]|Sanitizer/.test(l));
    }

    // all of them, those that are about to end as well

    workers() {
        try {
            return readFileSync(`/proc/${this.pid}/task/${this.pid}/children`, 'utf8').trim().split(' ')
                .filter(Boolean).map(Number).filter(pid => !/^State:\s*Z/m.test(this.proc(pid, 'status')));

        } catch {
            return [];
        }
    }

    proc(pid, file) {
        try {
            return readFileSync(`/proc/${pid}/${file}`, 'utf8');

        } catch {
            return 'State: Z';
        }
    }

    rss(pid) {
        return Number(/^RssAnon:\s*(\d+)/m.exec(this.proc(pid, 'status'))?.[1] ?? 0);
    }

    fds(pid) {
        return readdirSync(`/proc/${pid}/fd`).length;
    }

    zones(pid) {
        return this.proc(pid, 'maps').split('\n').filter(l => /rw-s.*\/dev\/zero/.test(l)).length;
    }

    // a copy of the shared memory, for the walk

    dump(pid, file) {
        const out = [];
        const mem = openSync(`/proc/${pid}/mem`, 'r');

        for (const line of this.proc(pid, 'maps').split('\n').filter(l => /rw-s.*\/dev\/zero/.test(l))) {
            const [start, end] = line.split(' ')[0].split('-').map(n => Number.parseInt(n, 16));
            const data = Buffer.alloc(end - start);

            readSync(mem, data, 0, data.length, start);
            out.push(data);
        }

        closeSync(mem);
        writeFileSync(file, Buffer.concat(out));
    }

    request(method, path, body, headers = {}) {
        return new Promise((done, failed) => {
            const req = http.request({ host: '127.0.0.1', port: this.port, method, path, agent: false,
                                       headers: { ...(body ? { 'Content-Type': 'application/json',
                                                               'Content-Length': Buffer.byteLength(body) } : {}),
                                                  ...headers } }, res => {
                let text = '';

                res.setEncoding('utf8');
                res.on('data', data => { text += data; });
                res.on('error', failed);
                res.on('end', () => done({ status: res.statusCode, text, worker: Number(res.headers['x-worker']) }));
            });

            req.on('error', failed);
            req.setTimeout(STREAM_TIMEOUT, () => req.destroy(new Error('timeout')));
            req.end(body);
        });
    }

    get(path) {
        return this.request('GET', path);
    }

    async status() {
        return JSON.parse((await this.get('/status')).text);
    }

    reload() {
        this.child.kill('SIGHUP');
    }

    async stop() {
        this.child.kill('SIGQUIT');

        const late = setTimeout(() => this.child.kill('SIGKILL'), 60_000);

        await this.exited;
        clearTimeout(late);
    }

    remove() {
        rmSync(this.dir, { recursive: true, force: true });
    }
}


// One chat.  open is the set of those under way.  What comes of it: { why, status, complete, worker, kills, bytes,
// wrong, ad, vanished }.

export function chat(nginx, open, { format, seed, gap, user, conversation, behaviour = {}, fault, plain }) {
    return new Promise(done => {
        const expected = answer(format, seed);
        const { uri, request } = FORMATS[format];
        const body = JSON.stringify(request(`What about ${seed}?`));
        const state = { format, seed, kills: new Set(), worker: undefined, fault, behaviour };
        const query = `format=${format}&seed=${seed}&gap=${gap}` + (fault ? `&fault=${fault.kind}&at=${fault.at}` : '');
        const socket = net.connect(nginx.port, '127.0.0.1');
        const chunks = [];
        let size = 0, settled = false, timer;

        open.add(state);

        const end = (why) => {
            if (settled) {
                return;
            }

            settled = true;
            clearTimeout(timer);
            open.delete(state);
            socket.destroy();

            const raw = Buffer.concat(chunks);
            const { status, payload, complete } = parse(raw);

            Object.assign(state, { why, status, complete, bytes: size });

            if (status === 200) {
                state.wrong = compare(expected, payload, complete);
                state.ad = complete && !state.wrong && hasAd(expected, payload);
            }

            done(state);
        };

        timer = setTimeout(() => end('timeout'), STREAM_TIMEOUT);

        socket.on('error', e => end(e.code));
        socket.on('close', () => end('close'));
        socket.on('end', () => end('end'));

        socket.on('data', data => {
            chunks.push(data);
            size += data.length;

            if (state.worker === undefined) {
                state.worker = Number(/\r\nX-Worker: (\d+)/.exec(Buffer.concat(chunks).toString('latin1'))?.[1]
                                      ?? Number.NaN);

                if (Number.isNaN(state.worker)) {
                    state.worker = undefined;
                }
            }

            if (behaviour.vanish !== undefined && size > behaviour.vanish) {
                state.vanished = true;
                behaviour.reset ? socket.resetAndDestroy() : socket.destroy();

            } else if (behaviour.slow) {
                socket.pause();
                setTimeout(() => socket.resume(), behaviour.slow);
            }
        });

        socket.write(`POST ${plain ? '/plain' : ''}${uri}?${query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n`
                     + `Content-Type: application/json\r\nX-User: ${user}\r\nX-Conversation: ${conversation}\r\n`
                     + `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
    });
}

// complete: the answer has the end that its header has promised

export function parse(raw) {
    const at = raw.indexOf('\r\n\r\n');

    if (at < 0) {
        return { status: 0, payload: Buffer.alloc(0), complete: false };
    }

    const head = raw.subarray(0, at).toString('latin1');
    const status = Number(head.split(' ')[1]);
    const rest = raw.subarray(at + 4);

    if (!/^transfer-encoding: chunked/mi.test(head)) {
        const length = /^content-length: (\d+)/mi.exec(head);

        return { status, payload: rest, complete: length !== null && rest.length === Number(length[1]) };
    }

    const parts = [];
    let pos = 0;

    while (true) {
        const eol = rest.indexOf('\r\n', pos);
        const length = eol < 0 ? Number.NaN : Number.parseInt(rest.subarray(pos, eol).toString('latin1'), 16);

        if (Number.isNaN(length)) {
            break;
        }

        if (length === 0) {
            return { status, payload: Buffer.concat(parts), complete: rest.length === eol + 4 };
        }

        parts.push(rest.subarray(eol + 2, eol + 2 + length));
        pos = eol + 2 + length + 2;
    }

    return { status, payload: Buffer.concat(parts), complete: false };
}

// the walk of a copy of the zone: a line of figures

export function walk(nginx, walker, pid) {
    const file = join(nginx.dir, 'zone');

    nginx.dump(pid, file);

    return execFileSync(walker, [file], { encoding: 'utf8' }).trim();
}

export function paths() {
    const root = process.env.KONTEXT_ROOT ?? process.cwd();
    const build = process.env.KONTEXT_BUILD ?? join(root, 'build');

    return { module: join(build, 'ngx_http_kontext_module.so'), walker: join(build, 'zone-walk'),
             binary: process.env.TEST_NGINX_BINARY ?? '/usr/sbin/nginx' };
}

// A client of the session API: sessions that are made, fed, listened to and closed, or left.  refused: what a call that
// could not be made, or a worker that has gone, comes to.

export async function apiClient(nginx, { rnd, running, leave, fed, refused }) {
    while (running()) {
        try {
            const made = await nginx.request('POST', '/kontext/sessions', JSON.stringify({
                userId: `u-${rnd.below(9)}`, conversationId: `api-${rnd.below(40)}` }));

            if (made.status >= 300) {
                await sleep(100);
                continue;
            }

            const path = `/kontext/sessions/${JSON.parse(made.text).sessionId}`;
            const events = rnd.below(2) ? nginx.request('GET', `${path}/events`).catch(() => null) : null;

            for (let i = rnd.below(6); i; i--) {
                await nginx.request('POST', `${path}/messages`, JSON.stringify({
                    id: `m-${fed()}`, role: i % 2 ? 'user' : 'assistant', content: 'x'.repeat(rnd.below(6000)) }));
                await sleep(rnd.below(300));
            }

            if (!leave || rnd.below(2)) {
                await nginx.request('DELETE', path);
                await events;
            }

        } catch (e) {
            refused(e);
            await sleep(50);
        }
    }
}


// The chats of one client after the other: some read slowly or vanish, some backends break off.

export async function chatClient(nginx, open, { rnd, running, number, gap, one, judge }) {
    while (running()) {
        const seed = number();
        const kind = rnd.below(one);
        const behaviour = kind === 0 ? { vanish: rnd.below(4000), reset: rnd.below(2) === 0 }
                          : kind === 1 ? { slow: 20 + rnd.below(100) } : {};
        const fault = kind === 2 ? { kind: rnd.pick(['reset', 'cut']), at: rnd.below(12) } : undefined;

        judge(await chat(nginx, open, { format: rnd.pick(Object.keys(FORMATS)), seed, gap, behaviour, fault,
                                        user: `u-${rnd.below(50)}`,
                                        conversation: `c-${rnd.below(8) ? seed : rnd.below(20)}` }));
    }
}


// What both programs begin with.

export async function stand(name, zone, argv) {
    const seconds = Number(argv[2]), streams = Number(argv[3]);
    const seed = Number(process.env.CHAOS_SEED ?? Date.now() % 1e9);
    const failures = [];
    const { module, walker, binary } = paths();
    const ads = await adServer(), llm = await backend();
    const nginx = await Nginx.start({ backend: llm.port, ads: ads.port, zone, module, binary });

    console.log(`${name}: seed ${seed}, ${streams} streams for ${seconds} s, nginx in ${nginx.dir}`);

    let chats = seed % 1e6;

    return {
        ads, nginx, seconds, streams, walker, rnd: random(seed), open: new Set(), number: () => chats++,

        fail(what) {
            failures.push(what);

            if (failures.length <= 20) {
                console.log(`FAILED: ${what}`);
            }
        },

        // the end: the log, what never happened and so was not tested, and the result

        async finish(count, musts, allowed) {
            await nginx.stop();

            for (const line of nginx.complaints().filter(l => !allowed?.test(l))) {
                this.fail(`the log: ${line}`);
            }

            console.log(Object.entries(count).map(([n, value]) => `${n} ${value}`).join(', ')
                        + `, ad calls ${ads.requests}`);

            for (const must of musts.filter(n => !count[n])) {
                this.fail(`not once: ${must}`);
            }

            console.log(failures.length ? `${name}: ${failures.length} failures` : `${name}: ok`);

            if (failures.length && process.env.KONTEXT_TEST_KEEP) {
                console.log(`kept: ${nginx.dir}`);

            } else {
                nginx.remove();
            }

            process.exit(failures.length ? 1 : 0);
        },
    };
}
