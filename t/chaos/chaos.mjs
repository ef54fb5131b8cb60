// Copyright (C) the ngx_http_kontext_module authors
//
// Chaos: see util/chaos.
//
//     node chaos.mjs [seconds] [streams]

import { FORMATS } from './formats.mjs';
import { MODES, apiClient, chat, chatClient, sleep, stand, until, walk } from './stand.mjs';

const KILL_EVERY = 1200;                // ms
const MODE_EVERY = 1700;
const RELOAD_EVERY = 5300;
const WALK_EVERY = 5;                   // kills
const LATER_CHATS = 20;
const GAP = 60;                         // ms between frames, on the average

const house = await stand('chaos', 'chaos:192k store=64k idle=20s streams=40',
                          [, , process.argv[2] ?? 150, process.argv[3] ?? 200]);
const { ads, nginx, open, rnd, seconds, streams, walker } = house;
const fail = what => house.fail(what);

const count = { chats: 0, whole: 0, ads: 0, killed: 0, faults: 0, vanished: 0, slow: 0, kills: 0,
                reloads: 0, api: 0, walks: 0, repaired: 0 };
const end = Date.now() + seconds * 1000;
const running = () => Date.now() < end;

// what a fresh worker has open, and the master

await chat(nginx, open, { format: 'openai', seed: 1, gap: 1, user: 'u', conversation: 'first' });
await sleep(500);

const baseline = { fds: nginx.workers().map(pid => nginx.fds(pid)), master: nginx.fds(nginx.pid),
                   zones: nginx.zones(nginx.pid), rss: nginx.rss(nginx.pid) };


// clients

function judge(s) {
    const what = `${s.format} ${s.seed} (worker ${s.worker}, ${s.bytes} bytes, status ${s.status}, ${s.why})`;

    count.chats++;
    count.slow += s.behaviour.slow ? 1 : 0;

    if (s.wrong) {
        fail(`${what}: ${s.wrong}`);
        return;
    }

    if (s.vanished) {
        count.vanished++;
        return;
    }

    if (s.why === 'timeout') {
        fail(`${what}: no end`);
        return;
    }

    if (s.complete && s.status === 200) {
        count.whole++;
        count.ads += s.ad ? 1 : 0;
        return;
    }

    // cut: by the end of its worker, or by the backend

    if (s.worker === undefined ? s.kills.size : s.kills.has(s.worker)) {
        count.killed++;
        return;
    }

    if (s.fault && (s.status === 200 || s.status === 502)) {
        count.faults++;
        return;
    }

    fail(`${what}: cut, and nobody has killed its worker`);
}


// what goes wrong

async function killer() {
    while (running()) {
        await sleep(KILL_EVERY);

        const pids = nginx.workers();

        if (pids.length === 0) {
            continue;
        }

        const pid = rnd.pick(pids);

        for (const state of open) {
            state.kills.add(pid);
        }

        process.kill(pid, 'SIGKILL');
        count.kills++;

        if (count.kills % WALK_EVERY === 0) {
            frozenWalk();
        }
    }
}

// the zone as the dead worker has left it: nobody else may change it meanwhile

function frozenWalk() {
    const pids = nginx.workers();
    const signal = name => pids.forEach(pid => {
        try {
            process.kill(pid, name);

        } catch { /* it has gone */ }
    });

    signal('SIGSTOP');

    try {
        walk(nginx, walker, nginx.pid);
        count.walks++;

    } catch (e) {
        fail(`the walk after kill ${count.kills}: ${e.stderr ?? e}`);

    } finally {
        signal('SIGCONT');
    }
}

async function weather() {
    while (running()) {
        const mode = rnd.pick([...MODES, 'ok', 'ok', 'ok']);

        ads.set(mode);
        await sleep(MODE_EVERY / 2 + rnd.below(MODE_EVERY));
    }
}

async function reloader() {
    while (running()) {
        await sleep(RELOAD_EVERY);
        nginx.reload();
        count.reloads++;
    }
}


const chats = { rnd, running, number: house.number, gap: GAP, one: 10, judge };
const api = { rnd, running, leave: true, fed: () => count.api++, refused: () => {} };

await Promise.all([...Array.from({ length: streams }, () => chatClient(nginx, open, chats)),
                   ...Array.from({ length: 8 }, () => apiClient(nginx, api)), killer(), weather(), reloader()]);


// Afterwards: two workers, an empty house, and all as it was.

ads.set('ok');

try {
    await until('two workers', () => nginx.workers().length === 2, 60_000);
    await until('the streams to end', async () => {
        const s = await nginx.status().catch(() => null);

        return s && s.streams.open === 0;
    }, 60_000);

    // Later chats have ads, of both workers: it takes a moment until nothing of the chaos is remembered.

    const workers = new Set();
    let row = 0;

    for (let i = 0; i < 500 && (row < LATER_CHATS || workers.size < 2); i++) {
        const s = await chat(nginx, open, { format: rnd.pick(Object.keys(FORMATS)), seed: 5e8 + i, gap: 2, user: 'u',
                                            conversation: `later-${i}` });

        workers.add(s.worker);
        row = s.ad ? row + 1 : 0;

        if (!s.complete || s.wrong) {
            fail(`a later chat: ${s.wrong || s.why}`);
        }
    }

    if (row < LATER_CHATS) {
        fail(`later chats have no ads: ${JSON.stringify((await nginx.status()).reasons)}`);
    }

    // the API

    const made = await nginx.request('POST', '/kontext/sessions', '{"userId":"u","conversationId":"api-later"}');
    const path = `/kontext/sessions/${JSON.parse(made.text).sessionId}`;
    const events = nginx.request('GET', `${path}/events`);

    await nginx.request('POST', `${path}/messages`, '{"id":"m1","role":"user","content":"Which shoes?"}');
    await until('the ad of the session', async () => /"preload":"filled"/.test((await nginx.get(path)).text));
    await nginx.request('DELETE', path);

    if (!/session.closed/.test((await events).text)) {
        fail('an event stream without its end');
    }

    // descriptors and memory

    const settled = () => {
        const fds = nginx.workers().map(pid => nginx.fds(pid));

        return fds.length === 2 && fds.every(n => n <= Math.max(...baseline.fds)) && fds;
    };
    const fds = await until('descriptors to be closed', settled, 30_000)
        .catch(e => fail(`${e.message}: ${nginx.workers().map(pid => nginx.fds(pid))} of ${baseline.fds}`));
    const master = { fds: nginx.fds(nginx.pid), zones: nginx.zones(nginx.pid), rss: nginx.rss(nginx.pid) };

    if (master.fds > baseline.master) {
        fail(`the master has ${master.fds} descriptors, not ${baseline.master}`);
    }

    if (master.zones !== baseline.zones) {
        fail(`the master has ${master.zones} blocks of shared memory, not ${baseline.zones}`);
    }

    // the zone, at rest

    const line = walk(nginx, walker, nginx.pid);

    count.walks++;
    count.repaired = Number(/repaired:(\d+)/.exec(line)?.[1] ?? 0);

    console.log(`zone: ${line}`);
    console.log(`descriptors of the workers: ${baseline.fds} before, ${fds} after; of the master: ${baseline.master}, `
                + `${master.fds}; its memory: ${baseline.rss} kB, ${master.rss} kB`);

} catch (e) {
    fail(`afterwards: ${e.stack}`);
}

// the log has the kills, and what nginx says of them

await house.finish(count, ['whole', 'ads', 'killed', 'faults', 'vanished', 'slow', 'kills', 'reloads', 'api', 'walks'],
                   /worker process \d+ exited on signal 9|shared memory zone "[^"]*" was locked by \d+/);
