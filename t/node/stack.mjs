// Copyright (C) the ngx_http_kontext_module authors
//
// What the client tests talk to: nginx with the module between a chat backend
// and an ad server.  It is the demo's, or one that runs already:
//
//   KONTEXT_BASE_URL      nginx, for example http://127.0.0.1:8080
//   KONTEXT_BACKEND_URL   the backend behind it, without the module

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const START_TIMEOUT = 600_000;          // the demo may have to build first


export async function start() {
    const { KONTEXT_BASE_URL: url, KONTEXT_BACKEND_URL: backend } = process.env;

    if (url) {
        if (!backend) {
            throw new Error('KONTEXT_BASE_URL needs KONTEXT_BACKEND_URL');
        }

        return { url, backend, stop: async () => {} };
    }

    const run = fileURLToPath(new URL('../../demo/run', import.meta.url));
    const child = spawn(run, ['--serve'], {
        stdio: ['ignore', 'pipe', 'inherit'],
        env: { KONTEXT_DEMO_RATE: '400', ...process.env },
    });

    const ended = new Promise(resolve => child.once('exit', resolve));
    const timer = setTimeout(() => child.kill(), START_TIMEOUT);

    for await (const line of createInterface({ input: child.stdout })) {
        const ready = /^ready (\S+) (\S+)$/.exec(line);

        if (ready) {
            clearTimeout(timer);

            return {
                url: ready[1],
                backend: ready[2],
                stop: async () => {
                    child.kill();
                    await ended;
                },
            };
        }
    }

    clearTimeout(timer);
    throw new Error(`demo/run ended with ${await ended}`);
}
