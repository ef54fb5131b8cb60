// Copyright (C) the ngx_http_kontext_module authors
//
// The circuit breaker under load: see util/breaker.
//
//     node breaker.mjs [streams]

import { chatClient, sleep, stand } from './stand.mjs';

const GAP = 40;                         // ms between frames, on the average
const POLL = 25;
const WARM = 4000;
const OPEN_WITHIN = 1000;               // ms
const DOWN = 3000;
const BACK_WITHIN = 5000;

const house = await stand('breaker', 'breaker:8m', [, , 30, process.argv[2] ?? 200]);
const { ads, nginx, open, rnd, streams } = house;
const count = { chats: 0, whole: 0, ads: 0 };
let running = true;

function judge(s) {
    count.chats++;
    count.ads += s.ad ? 1 : 0;

    if (s.complete && s.status === 200 && !s.wrong) {
        count.whole++;

    } else {
        house.fail(`${s.format} ${s.seed}: ${s.wrong || s.why}`);
    }
}

const circuit = async () => (await nginx.status()).breakers[0];

// ms until the condition holds

async function time(condition, limit) {
    const start = Date.now();

    while (!condition(await circuit())) {
        if (Date.now() - start > 3 * limit) {
            return Infinity;
        }

        await sleep(POLL);
    }

    return Date.now() - start;
}

// clients and backends do nothing wrong here

const chats = { rnd, running: () => running, number: house.number, gap: GAP, one: Infinity, judge };
const clients = Array.from({ length: streams }, () => chatClient(nginx, open, chats));

await sleep(WARM);

for (const mode of ['dead', 'hang', 'flood']) {
    const { opened } = await circuit();

    ads.set(mode);

    const down = await time(c => c.opened > opened, OPEN_WITHIN);

    await sleep(DOWN);
    ads.set('ok');

    const back = await time(c => c.state === 'closed', BACK_WITHIN);

    console.log(`${mode}: open after ${down} ms, closed ${back} ms after the ad server was back`);

    if (down > OPEN_WITHIN || back > BACK_WITHIN) {
        house.fail(`${mode}: open within ${OPEN_WITHIN} ms and back within ${BACK_WITHIN} ms`);
    }

    await sleep(1000);
}

running = false;
await Promise.all(clients);

console.log(`chats that are whole: ${(count.whole / count.chats * 100).toFixed(3)} %`);
await house.finish(count, Object.keys(count));
