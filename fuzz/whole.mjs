// Copyright (C) the ngx_http_kontext_module authors
//
// A real nginx between a client, a chat backend and an ad server that are all random: requests, answers and ads are
// made up, damaged, and cut anywhere on their way.
//
//     node fuzz/whole.mjs [seconds [seed]]
//
//   - The backend gets the body that the client has sent, but for text ads of the past.
//   - The client gets what the backend has sent, or that with the ad.
//   - Nobody waits for ever, and nginx has nothing to complain about.

import { readFileSync, readdirSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { setImmediate as soon, setTimeout as sleep } from 'node:timers/promises';

import { FORMATS, answer, compare, random } from '../t/chaos/formats.mjs';
import { Nginx, parse, paths } from '../t/chaos/stand.mjs';

const CLIENTS = 24;
const TIMEOUT = 60_000;                 // ms
const UUID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
const SAMPLES = join(process.env.KONTEXT_SHARED ?? '../shared', 'samples');

const seconds = Number(process.argv[2] ?? 10);
const first = Number(process.argv[3] ?? Date.now() % 1e9);
const cases = new Map();
const failures = [];

const requests = readdirSync(SAMPLES).filter(f => /\.request\.json$/.test(f)).map(f => readFileSync(join(SAMPLES, f)));
const streams = readdirSync(SAMPLES).filter(f => /\.(sse|ndjson|response\.json)$/.test(f))
    .map(f => ({ body: readFileSync(join(SAMPLES, f)),
                 type: /sse$/.test(f) ? 'text/event-stream'
                       : /ndjson$/.test(f) ? 'application/x-ndjson' : 'application/json' }));

const PATHS = [...Object.values(FORMATS).map(f => f.uri), '/api/generate', '/v1beta/models/g:generateContent', '/x',
               '/text/v1/messages', '/text/v1/responses', '/text/api/chat', '/text/ui/api/chat'];

const TYPES = ['text/plain', 'application/json;x', 'multipart/form-data'];

const ANSWERS = [
    `{"sessionId":"${UUID}","bids":[{"bidId":"${UUID}","code":"inlineAd","revenue":0.1}]}`,
    `{"sessionId":"${UUID}","bids":[]}`, `{"sessionId":"${UUID}","skip":true,"skipCode":"x"}`, '{"errCode":"e"}',
    '{"errCode":"e","permanent":true}', '', '{', `{"bids":[{"bidId":"${UUID}"}]}`,
];

const fail = what => {
    failures.push(what);

    if (failures.length <= 10) {
        console.log(`FAILED: ${what}`);
    }
};


// bytes changed, lost, doubled, or cut off

function damage(rnd, data) {
    let bytes = Buffer.from(data);

    for (let n = 1 + rnd.below(3); n && bytes.length; n--) {
        const at = rnd.below(bytes.length);

        switch (rnd.below(4)) {

        case 0:
            bytes[at] = rnd.below(2) ? rnd.below(256) : '\r\n"\\{}[]:, d'.charCodeAt(rnd.below(12));
            break;

        case 1:
            bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + rnd.below(200))]);
            break;

        case 2:
            bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.max(0, at - rnd.below(500)))]);
            break;

        default:
            bytes = rnd.below(3) ? bytes : bytes.subarray(0, at);
        }
    }

    return bytes;
}

// written in pieces, some of which the other side sees on their own

async function drip(rnd, socket, data) {
    let at = 0;

    const limit = rnd.pick([1 << 20, 4000, 400, 40]);

    for (let n = 0; at < data.length && !socket.destroyed; n++) {
        const size = n > 60 ? data.length : 1 + rnd.below(limit);

        socket.write(data.subarray(at, at + size));
        at += size;
        await (rnd.below(4) ? soon() : sleep(1));
    }
}

function chunked(rnd, body, end) {
    const parts = [];

    for (let at = 0; at < body.length; /* void */ ) {
        const piece = body.subarray(at, at + 1 + rnd.below(rnd.below(2) ? 60 : 5000));

        parts.push(Buffer.from(`${piece.length.toString(16)}${rnd.below(20) ? '' : ';x=y'}\r\n`), piece,
                   Buffer.from('\r\n'));
        at += piece.length;
    }

    if (end) {
        parts.push(Buffer.from('0\r\n\r\n'));
    }

    return Buffer.concat(parts);
}

function makeCase(seed) {
    const rnd = random(seed);
    const format = FORMATS[rnd.pick(Object.keys(FORMATS))];
    const c = { rnd, seed };

    // a request that fits the answer, or any other

    if (rnd.below(4)) {
        const name = Object.keys(FORMATS).find(n => FORMATS[n] === format);

        c.uri = format.uri;
        c.body = Buffer.from(JSON.stringify(format.request(`hi ${seed}`)));
        c.answer = answer(name, seed).body;
        c.type = format.type;

    } else {
        const stream = rnd.pick(streams);

        c.uri = rnd.pick(PATHS);
        c.body = rnd.pick(requests);
        c.answer = stream.body;
        c.type = rnd.below(6) ? stream.type : rnd.pick(['text/plain', 'text/event-stream; charset=utf-8', '']);
    }

    c.body = rnd.below(4) ? c.body : damage(rnd, c.body);
    c.answer = rnd.below(4) ? c.answer : damage(rnd, c.answer);
    c.status = rnd.below(12) ? 200 : rnd.pick([201, 400, 429, 500, 503]);
    c.cut = rnd.below(10) === 0;

    const how = rnd.below(3);
    const sent = c.cut ? c.answer.subarray(0, rnd.below(c.answer.length + 1)) : c.answer;

    c.raw = Buffer.concat([
        Buffer.from(`HTTP/1.1 ${c.status} OK\r\nConnection: close\r\n`
                    + (c.type ? `Content-Type: ${c.type}\r\n` : '')
                    + (rnd.below(30) ? '' : 'Content-Encoding: gzip\r\n')
                    + (rnd.below(30) ? '' : 'Content-Encoding: identity\r\n')
                    + (how === 0 ? 'Transfer-Encoding: chunked\r\n'
                       : how === 1 ? `Content-Length: ${c.answer.length}\r\n` : '') + '\r\n'),
        how === 0 ? chunked(rnd, sent, !c.cut) : sent]);

    // where the end of the connection is the end of the answer nobody can know that more was to come

    if (how === 2) {
        c.answer = sent;
        c.cut = false;
    }

    return c;
}


const backend = net.createServer(async socket => {
    const parts = [];
    let size = 0, need = -1, c = null;

    socket.on('error', () => {});
    socket.on('data', async data => {
        parts.push(data);
        size += data.length;

        if (need < 0) {
            const text = Buffer.concat(parts).toString('latin1');
            const head = text.indexOf('\r\n\r\n');

            if (head < 0) {
                return;
            }

            c = cases.get(/^x-case: (\d+)/mi.exec(text)?.[1]);
            need = head + 4 + Number(/^content-length: (\d+)/mi.exec(text)?.[1] ?? 0);
        }

        if (size < need || !c || c.asked) {
            return;
        }

        c.asked = true;

        const body = Buffer.concat(parts).subarray(-c.body.length || size);

        if (c.body.length && !body.equals(c.body)) {
            fail(`case ${c.seed}: the backend got another request`);
        }

        await drip(c.rnd, socket, c.raw);
        socket.end();
    });
});

const ads = net.createServer(socket => {
    const rnd = random(Math.floor(Math.random() * 2 ** 32));
    let text = '', done = false;

    socket.on('error', () => {});
    socket.on('data', async data => {
        text += data.toString('latin1');

        const head = text.indexOf('\r\n\r\n');

        if (done || head < 0
            || text.length < head + 4 + Number(/^content-length: (\d+)/mi.exec(text)?.[1] ?? 0)) {
            return;
        }

        done = true;

        let body = Buffer.from(text.startsWith('POST /init') ? '{"enabled":true}' : rnd.below(2) ? ANSWERS[0]
                               : rnd.pick(ANSWERS));

        body = rnd.below(6) ? body : damage(rnd, body);

        let raw = Buffer.from(`HTTP/1.1 ${rnd.below(10) ? 200 : rnd.pick([204, 302, 404, 500])} OK\r\n`
                              + 'Content-Type: application/json\r\n');

        raw = rnd.below(2)
              ? Buffer.concat([raw, Buffer.from(`Content-Length: ${body.length}\r\n\r\n`), body])
              : Buffer.concat([raw, Buffer.from('Transfer-Encoding: chunked\r\n\r\n'), chunked(rnd, body, true)]);

        await drip(rnd, socket, rnd.below(12) ? raw : damage(rnd, raw));
        socket.end();
    });
});

const listen = server => new Promise(done => server.listen(0, '127.0.0.1', () => done(server.address().port)));
const { module, binary } = paths();
const nginx = await Nginx.start({ backend: await listen(backend), ads: await listen(ads), module, binary,
                                  zone: 'fuzz:256k store=64k' });

const count = { cases: 0, whole: 0, ads: 0, cut: 0, refused: 0 };

function run(c) {
    return new Promise(done => {
        const socket = net.connect(nginx.port, '127.0.0.1');
        const parts = [];
        let timer = setTimeout(() => { c.late = true; socket.destroy(); }, TIMEOUT);

        socket.on('error', () => {});
        socket.on('data', data => parts.push(data));
        socket.on('close', () => {
            clearTimeout(timer);
            done(parse(Buffer.concat(parts)));
        });

        const { rnd } = c;

        drip(rnd, socket, Buffer.concat([
            Buffer.from(`POST ${c.uri} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Case: ${c.seed}\r\n`
                        + `Content-Type: ${rnd.below(20) ? 'application/json' : rnd.pick(TYPES)}\r\n`
                        + (rnd.below(30) ? '' : 'Content-Encoding: gzip\r\n')
                        + (rnd.below(2) ? `X-User: u${rnd.below(9)}\r\nX-Conversation: c${rnd.below(99)}\r\n` : '')
                        + `Content-Length: ${c.body.length}\r\n\r\n`), c.body]));
    });
}

const end = Date.now() + seconds * 1000;
let next = first;

async function client() {
    while (Date.now() < end) {
        const c = makeCase(next++);

        cases.set(String(c.seed), c);

        const { status, payload, complete } = await run(c);

        cases.delete(String(c.seed));
        count.cases++;

        if (c.late) {
            fail(`case ${c.seed}: no end`);
            continue;
        }

        if (status !== c.status) {

            // nginx could make nothing of it

            if (c.cut && status === 502 || status === 0 && c.cut) {
                count.refused++;

            } else {
                fail(`case ${c.seed}: status ${status}, not ${c.status}`);
            }

            continue;
        }

        if (!complete && !c.cut) {
            fail(`case ${c.seed}: ${payload.length} of ${c.answer.length} bytes`);
            continue;
        }

        const wrong = compare({ body: c.answer, from: 0, to: c.answer.length }, payload, complete);

        if (wrong) {
            fail(`case ${c.seed}: ${wrong}`);
        }

        count[complete ? 'whole' : 'cut']++;
        count.ads += payload.length > c.answer.length ? 1 : 0;
    }
}

await Promise.all(Array.from({ length: CLIENTS }, client));
await nginx.stop();

for (const line of nginx.complaints()) {
    fail(`the log: ${line}`);
}

for (const [name, n] of Object.entries(count)) {
    if (!n && name !== 'refused') {
        fail(`not once: ${name}`);
    }
}

console.log(`fuzz/whole: seed ${first}, ${Object.entries(count).map(([name, n]) => `${name} ${n}`).join(', ')}, `
            + (failures.length ? `${failures.length} failures` : 'ok'));

if (!process.env.KONTEXT_TEST_KEEP) {
    nginx.remove();
}

process.exit(failures.length ? 1 : 0);
