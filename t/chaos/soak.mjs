// Copyright (C) the ngx_http_kontext_module authors
//
// Soak: see util/soak.
//
//     node soak.mjs [seconds] [streams]

import { FORMATS, random } from './formats.mjs';
import { MODES, Nginx, adServer, backend, chat, paths, sleep, until, walk } from './stand.mjs';

const GAP = 25;                         // ms between frames, on the average
const SAMPLES = 120;
const WARM = 0.25;                      // of the run, until all that is kept for later is there
const GROWTH = 256;                     // kB that a worker may be larger afterwards: what one chat or another has

const seconds = Number(process.argv[2] ?? 3600);
const streams = Number(process.argv[3] ?? 16);
const seed = Number(process.env.CHAOS_SEED ?? Date.now() % 1e9);
const rnd = random(seed);
const failures = [];

const fail = what => {
    failures.push(what);

    if (failures.length <= 20) {
        console.log(`FAILED: ${what}`);
    }
};

const { module, walker, binary } = paths();
const ads = await adServer();
const llm = await backend();
const nginx = await Nginx.start({ backend: llm.port, ads: ads.port, zone: 'soak:512k store=128k idle=30s streams=20',
                                  module, binary });

console.log(`soak: seed ${seed}, ${streams} streams for ${seconds} s, nginx in ${nginx.dir}`);

const open = new Set();
const workers = nginx.workers();
const start = Date.now();
const end = start + seconds * 1000;
const running = () => Date.now() < end;
const count = { chats: 0, ads: 0, faults: 0, vanished: 0, api: 0 };

let chats = seed % 1e6;

function judge(s) {
    const what = `${s.format} ${s.seed} (${s.bytes} bytes, status ${s.status}, ${s.why})`;

    count.chats++;

    if (s.wrong) {
        fail(`${what}: ${s.wrong}`);

    } else if (s.vanished) {
        count.vanished++;

    } else if (s.complete && s.status === 200) {
        count.ads += s.ad ? 1 : 0;

    } else if (s.fault && s.why !== 'timeout') {
        count.faults++;

    } else {
        fail(`${what}: not whole`);
    }
}

async function client() {
    while (running()) {
        const n = chats++;
        const kind = rnd.below(20);
        const behaviour = kind === 0 ? { vanish: rnd.below(4000), reset: rnd.below(2) === 0 }
                          : kind === 1 ? { slow: 10 + rnd.below(50) } : {};
        const fault = kind === 2 ? { kind: rnd.pick(['reset', 'cut']), at: rnd.below(12) } : undefined;

        judge(await chat(nginx, open, { format: rnd.pick(Object.keys(FORMATS)), seed: n, gap: GAP, behaviour, fault,
                                        user: `u-${rnd.below(50)}`,
                                        conversation: `c-${rnd.below(8) ? n : rnd.below(20)}` }));
    }
}

async function apiClient() {
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
                    id: `m-${count.api++}`, role: i % 2 ? 'user' : 'assistant', content: 'x'.repeat(rnd.below(6000)) }));
                await sleep(rnd.below(300));
            }

            await nginx.request('DELETE', path);
            await events;

        } catch (e) {
            fail(`the session API: ${e}`);
            await sleep(100);
        }
    }
}

async function weather() {
    while (running()) {
        ads.set(rnd.below(3) ? 'ok' : rnd.pick(MODES));
        await sleep(1000 + rnd.below(2000));
    }
}


// Samples are taken in the middle of the traffic: what counts is the line through all of them.

const samples = [];

async function sampler() {
    while (running()) {
        await sleep(seconds * 1000 / SAMPLES);

        const at = (Date.now() - start) / 1000;
        const s = await nginx.status().catch(() => null);
        const sample = { at, rss: workers.map(pid => nginx.rss(pid)), fds: workers.map(pid => nginx.fds(pid)),
                         master: nginx.rss(nginx.pid), sessions: s?.sessions.live, blocks: s?.store.used };

        samples.push(sample);

        if (samples.length % (SAMPLES / 12) === 0) {
            console.log(`${Math.round(at)} s: memory of the workers ${sample.rss} kB, descriptors ${sample.fds}, `
                        + `sessions ${sample.sessions}, blocks ${sample.blocks}, chats ${count.chats}`);
        }

        if (`${nginx.workers()}` !== `${workers}`) {
            fail(`the workers are others: ${nginx.workers()}, not ${workers}`);
            return;
        }
    }
}

// the slope of a line, per hour

function slope(points) {
    const n = points.length;
    const mx = points.reduce((s, p) => s + p[0], 0) / n, my = points.reduce((s, p) => s + p[1], 0) / n;
    const up = points.reduce((s, p) => s + (p[0] - mx) * (p[1] - my), 0);
    const down = points.reduce((s, p) => s + (p[0] - mx) ** 2, 0);

    return down ? up / down * 3600 : 0;
}

// at rest: no chat, no stream, no call

async function rest() {
    ads.set('ok');

    await until('the event streams to end', async () => (await nginx.status()).streams.open === 0, 60_000);
    await sleep(12_000);                // calls of the ad server that nobody waits for, and closing sessions

    return { rss: workers.map(pid => nginx.rss(pid)), fds: workers.map(pid => nginx.fds(pid)) };
}

const fresh = await rest();

await Promise.all([...Array.from({ length: streams }, client), ...Array.from({ length: 3 }, apiClient), weather(),
                   sampler()]);

const after = await rest();
const warm = samples.filter(s => s.at > seconds * WARM);

workers.forEach((pid, i) => {
    const points = warm.map(s => [s.at, s.rss[i]]);
    const perHour = slope(points);
    const grown = perHour * seconds * (1 - WARM) / 3600;

    console.log(`worker ${pid}: memory ${fresh.rss[i]} kB fresh, ${points[0]?.[1]} kB warm, ${after.rss[i]} kB at rest, `
                + `slope ${perHour.toFixed(1)} kB an hour; descriptors ${fresh.fds[i]} fresh, ${after.fds[i]} at rest`);

    if (grown > GROWTH) {
        fail(`worker ${pid} grows by ${perHour.toFixed(0)} kB an hour`);
    }

    if (after.fds[i] > fresh.fds[i]) {
        fail(`worker ${pid} has ${after.fds[i]} descriptors at rest, not ${fresh.fds[i]}`);
    }
});

console.log(`zone: ${walk(nginx, walker, nginx.pid)}`);

const zone = warm.map(s => [s.at, s.sessions]).filter(p => p[1] !== undefined);

console.log(`sessions: ${slope(zone).toFixed(1)} an hour`);

await nginx.stop();

for (const line of nginx.log().split('\n').filter(l => /\[(alert|emerg|crit)\]|exited on signal/.test(l))) {
    fail(`the log: ${line}`);
}

console.log(Object.entries(count).map(([name, n]) => `${name} ${n}`).join(', ') + `, ad calls ${ads.requests}`);

for (const name of Object.keys(count)) {
    if (!count[name]) {
        fail(`not once: ${name}`);
    }
}

console.log(failures.length ? `soak: ${failures.length} failures` : 'soak: ok');
nginx.remove();
process.exit(failures.length ? 1 : 0);
