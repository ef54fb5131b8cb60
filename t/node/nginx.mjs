// Copyright (C) the ngx_http_kontext_module authors
//
// Three ways to the backend: through an nginx that knows nothing of the
// module, and through one with it, where the ad is a member or a text.
//
//   KONTEXT_MODULE      the module; build/ngx_http_kontext_module.so
//   TEST_NGINX_BINARY   nginx; the one in PATH

import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { startBackend } from './backend.mjs';

const START_TIMEOUT = 20_000;           // ms
const START_TRIES = 10;
const LOG_TIMEOUT = 10_000;
const GRACE = '10s';                    // no ad is ever late here

const root = fileURLToPath(new URL('../../', import.meta.url));

const AD_SERVER = `
        location /_kontext/ {
            internal;

            proxy_pass http://ads/;
            proxy_http_version 1.1;
            proxy_method POST;
            proxy_set_header Connection "";
            proxy_set_header Host server.megabrain.co;
        }
`;


// One that ends when this process does, however that ends, and takes its
// directory along.

function keep(dir, command, ...args) {
    const child = spawn('/bin/sh', [
        '-c',
        `trap "" INT TERM HUP
        "$@" < /dev/null & pid=$!
        cat > /dev/null
        kill $pid
        wait $pid
        if [ -z "$KONTEXT_TEST_KEEP" ]; then
            rm -rf "$0"
            rmdir "\${0%/*}" 2> /dev/null
        fi`,
        dir, command, ...args,
    ], { stdio: ['pipe', 'pipe', 'pipe'] });

    const ended = new Promise(done => child.once('exit', done));
    let errors = '';

    child.stderr.setEncoding('utf8').on('data', text => { errors += text; });

    return {
        child,
        errors: () => errors,
        stop: async () => {
            child.stdin.end();
            await ended;
        },
    };
}


export async function startAds(dir) {
    const ads = keep(dir, 'perl', join(root, 'demo/ad-server.pl'), '0', '0');

    for await (const line of createInterface({ input: ads.child.stdout })) {
        return { ...ads, address: line.replace('http://', '') };
    }

    throw new Error(`the ad server does not start: ${ads.errors()}`);
}


function findNginx() {
    const { TEST_NGINX_BINARY: binary, PATH } = process.env;
    const found = [...PATH.split(delimiter), '/usr/sbin']
                  .map(dir => join(dir, 'nginx'))
                  .find(file => existsSync(file));

    if (!binary && !found) {
        throw new Error('there is no nginx: set TEST_NGINX_BINARY');
    }

    return binary || found;
}


// below the range of outgoing connections

function anyPort() {
    return 12000 + Math.floor(Math.random() * 18000);
}


function listening(port) {
    return new Promise(done => {
        const socket = connect(port, '127.0.0.1');

        socket.once('connect', () => { socket.destroy(); done(true); });
        socket.once('error', () => done(false));
    });
}


function text(file) {
    return readFile(file, 'utf8').catch(() => '');
}


// up, 'taken' when another process has the port, or an error

async function wait(nginx, dir, port) {
    for (const end = Date.now() + START_TIMEOUT; Date.now() < end;) {
        if (await text(join(dir, 'nginx.pid')) !== ''
            && await listening(port))
        {
            return 'up';
        }

        const log = await text(join(dir, 'error.log')) + nginx.errors();

        if (log.includes('Address already in use')) {
            return 'taken';
        }

        if (log.includes('[emerg]')) {
            throw new Error(`nginx does not start: ${log}`);
        }

        await sleep(20);
    }

    throw new Error('nginx does not start in time');
}


// config(port, ...) is the main and the http context's

export async function startNginx(dir, ports, config) {
    for (let tries = 0; tries < START_TRIES; tries++) {
        const taken = Array.from({ length: ports }, anyPort);
        const { main, http } = config(...taken);

        await rm(dir, { recursive: true, force: true });
        await mkdir(dir, { recursive: true });
        await writeFile(join(dir, 'nginx.conf'), `
${main}
${process.getuid() === 0 ? 'user root;' : ''}
daemon off;
worker_processes 1;
pid ${dir}/nginx.pid;
error_log ${dir}/error.log notice;

events {
    worker_connections 1024;
}

http {
    client_body_temp_path ${dir}/body;
    proxy_temp_path ${dir}/proxy;
    fastcgi_temp_path ${dir}/fastcgi;
    uwsgi_temp_path ${dir}/uwsgi;
    scgi_temp_path ${dir}/scgi;

${http}
}
`);

        const nginx = keep(dir, findNginx(), '-p', `${dir}/`,
                           '-c', `${dir}/nginx.conf`, '-e', `${dir}/error.log`);

        if (await wait(nginx, dir, taken.at(-1)) === 'up') {
            return { ...nginx, dir, ports: taken };
        }

        await nginx.stop();
    }

    throw new Error('nginx finds no port');
}


const PROXY = `
            proxy_pass http://llm;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
`;


function plain(backend) {
    return port => ({
        main: '',
        http: `
    access_log off;

    upstream llm { server ${backend}; keepalive 16; }

    server {
        listen 127.0.0.1:${port};

        location / {${PROXY}        }
    }
`,
    });
}


// each run has a user and a conversation of its own

function withModule(module, dir, backend, ads) {
    return (member, text) => ({
        main: `load_module ${module};`,
        http: `
    upstream llm { server ${backend}; keepalive 16; }
    upstream ads { server ${ads}; keepalive 16; }

    map $uri $run {
        ~^/(?<word>[^/]+)/  $word;
    }

    log_format kontext '$run|$kontext_format|$kontext_status|$kontext_reason|'
                       '$kontext_injected|$kontext_frame_url';

    access_log               ${dir}/chats.log kontext;
    kontext                  on;
    kontext_publisher_token  client-tests;
    kontext_user_id          user-$run;
    kontext_conversation_id  conversation-$run;
    kontext_grace            ${GRACE};

    server {
        listen 127.0.0.1:${member};
        ${AD_SERVER}
        location / {${PROXY}        }
    }

    server {
        listen 127.0.0.1:${text};

        kontext_inject text;
        ${AD_SERVER}
        location / {${PROXY}        }
    }
`,
    });
}


export function findModule() {
    const module = resolve(process.env.KONTEXT_MODULE
                           || join(root, 'build/ngx_http_kontext_module.so'));

    if (!existsSync(module)) {
        throw new Error(`there is no ${module}`);
    }

    return module;
}


// what a sound run does not leave behind

export async function complaints(nginx) {
    const log = await text(join(nginx.dir, 'error.log')) + nginx.errors();

    return log.split('\n').filter(line =>
        /\[(alert|emerg|crit|error)\]|Sanitizer|exited on signal/.test(line));
}


export async function startStack() {
    const module = findModule();
    const dir = await mkdtemp(join(tmpdir(), 'kontext-clients-'));
    const started = [];

    const stop = async () => {
        await Promise.all(started.map(one => one.stop()));

        if (!process.env.KONTEXT_TEST_KEEP) {
            await rm(dir, { recursive: true, force: true });
        }
    };

    const start = async starting => {
        started.push(await starting);
        return started.at(-1);
    };

    try {
        const backend = await start(startBackend());
        const ads = await start(startAds(`${dir}/ads`));
        const without = await start(startNginx(`${dir}/plain`, 1,
                                               plain(backend.address)));
        const nginx = await start(startNginx(
            `${dir}/module`, 2,
            withModule(module, `${dir}/module`, backend.address, ads.address)));

        const url = port => `http://127.0.0.1:${port}`;

        return {
            dir,
            plain: url(without.ports[0]),
            member: url(nginx.ports[0]),
            text: url(nginx.ports[1]),
            seen: backend.seen,
            ads: ads.errors,
            stop,

            // what nginx says about a run, which it does when it is over

            log: async run => {
                for (const end = Date.now() + LOG_TIMEOUT; Date.now() < end;) {
                    const line = (await text(`${dir}/module/chats.log`))
                                 .split('\n')
                                 .find(one => one.startsWith(`${run}|`));

                    if (line !== undefined) {
                        const [, format, status, reason, injected, frameUrl]
                            = line.split('|');

                        return { format, status, reason, injected, frameUrl };
                    }

                    await sleep(5);
                }

                throw new Error(`nginx has no log of ${run}`);
            },

            complaints: () => complaints(nginx),
        };

    } catch (error) {
        await stop();
        throw error;
    }
}
