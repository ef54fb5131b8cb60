// Copyright (C) the ngx_http_kontext_module authors
//
// Soak: see util/soak.
//
//     node soak.mjs [seconds] [streams]

import { MODES, apiClient, chatClient, sleep, stand, until, walk } from './stand.mjs';

const GAP = 25;                         // ms between frames, on the average
const SAMPLES = 120;
const WARM = 0.25;                      // of the run, until all that is kept for later is there
const ENOUGH = 1200;                    // s: a shorter run is warm too late to tell
const GROWTH = 256;                     // kB that a worker may be larger afterwards: what one chat or another has

const house = await stand('soak', 'soak:512k store=128k idle=30s streams=20',
                          [, , process.argv[2] ?? 3600, process.argv[3] ?? 16]);
const { ads, nginx, open, rnd, seconds, streams, walker } = house;
const fail = what => house.fail(what);

const workers = nginx.workers();
const start = Date.now();
const end = start + seconds * 1000;
const running = () => Date.now() < end;
const count = { chats: 0, ads: 0, faults: 0, vanished: 0, api: 0 };

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

// at rest: what a worker has that had a chat, and nothing to do any more

const look = () => ({ rss: workers.map(pid => nginx.rss(pid)), fds: workers.map(pid => nginx.fds(pid)) });

const fresh = look();

const chats = { rnd, running, number: house.number, gap: GAP, one: 20, judge };
const api = { rnd, running, fed: () => count.api++, refused: e => fail(`the session API: ${e}`) };

await Promise.all([...Array.from({ length: streams }, () => chatClient(nginx, open, chats)),
                   ...Array.from({ length: 3 }, () => apiClient(nginx, api)), weather(), sampler()]);

ads.set('ok');

await until('the event streams to end', async () => (await nginx.status()).streams.open === 0, 60_000)
    .catch(e => fail(e.message));
await until('descriptors to be closed', () => look().fds.every((n, i) => n <= fresh.fds[i]), 60_000)
    .catch(e => fail(`${e.message}: ${look().fds} of ${fresh.fds}`));

const after = look();
const warm = samples.filter(s => s.at > seconds * WARM);

workers.forEach((pid, i) => {
    const points = warm.map(s => [s.at, s.rss[i]]);
    const perHour = slope(points);
    const grown = perHour * seconds * (1 - WARM) / 3600;

    console.log(`worker ${pid}: memory ${fresh.rss[i]} kB fresh, ${points[0]?.[1]} kB warm, ${after.rss[i]} kB at `
                + `rest, slope ${perHour.toFixed(1)} kB an hour; descriptors ${fresh.fds[i]} fresh, ${after.fds[i]} at rest`);

    if (grown > GROWTH && seconds >= ENOUGH) {
        fail(`worker ${pid} grows by ${perHour.toFixed(0)} kB an hour`);
    }
});

console.log(`zone: ${walk(nginx, walker, nginx.pid)}`);

const zone = warm.map(s => [s.at, s.sessions]).filter(p => p[1] !== undefined);

console.log(`sessions: ${slope(zone).toFixed(1)} an hour`);

await house.finish(count, Object.keys(count));
