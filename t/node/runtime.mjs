// Copyright (C) the ngx_http_kontext_module authors
//
// Most of the clients want a newer Node.js than Debian 12 and 13 have.  One is
// among the packages: what is started with an older one starts itself again.

import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const NEEDED = 22;

export const fits = Number(process.versions.node.split('.')[0]) >= NEEDED;


// { status, stdout, stderr } of the same with the Node.js of the packages

export async function again(...args) {
    const node = fileURLToPath(new URL(
        `node_modules/node-linux-${process.arch}/bin/node`, import.meta.url));
    const { NODE_TEST_CONTEXT, ...env } = process.env;
    const child = spawn(node, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    const output = { stdout: '', stderr: '' };

    for (const name of ['stdout', 'stderr']) {
        child[name].setEncoding('utf8').on('data', text => {
            output[name] += text;
        });
    }

    const status = await new Promise((done, fail) => {
        child.once('error', fail);
        child.once('close', (code, signal) => done(signal ?? code));
    });

    return { status, ...output };
}
