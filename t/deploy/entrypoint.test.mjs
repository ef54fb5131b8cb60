// Copyright (C) the ngx_http_kontext_module authors
//
// docker/entrypoint: what it makes of the variables, and what it says to bad
// ones.  Here nginx is the machine's and the module the one that was built;
// docker/test runs the image.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync,
         statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';

const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const root = path.resolve(here, '../..');
const build = path.resolve(root, process.env.BUILD ?? 'build');
const dir = mkdtempSync(path.join(tmpdir(), 'kontext-entrypoint.'));

// the variables that it knows, at the begin of the lines of its table

const known = readFileSync(path.join(root, 'docker/entrypoint'), 'utf8')
    .match(/^known='([^']*)'/m)[1].match(/^KONTEXT[A-Z_]*/gm);

after(() => rmSync(dir, { recursive: true }));

const good = {
    KONTEXT_PUBLISHER_TOKEN: 'acme-dev',
    KONTEXT_BACKEND: 'http://127.0.0.1:8000',
    KONTEXT_AD_SERVER: 'http://127.0.0.1:8001',
};


// Output goes to files: nginx opens /dev/stdout for its access log, which it can
// not when that is a socket, as Node.js makes them.

function run(variables, command = 'print', more = {}) {
    const names = ['out', 'err'].map((name) => path.join(dir, name));
    const files = names.map((name) => openSync(name, 'w'));

    const { status } = spawnSync(path.join(root, 'docker/entrypoint'), [command], {
        stdio: ['ignore', ...files],
        env: {
            PATH: `${process.env.PATH}:/usr/sbin`,
            TMPDIR: dir,
            NGX_MODULE: path.join(build, 'ngx_http_kontext_module.so'),
            NGX_SNIPPETS: path.join(root, 'conf'),
            ...more,
            ...variables,
        },
    });

    files.forEach(closeSync);

    const [stdout, stderr] = names.map((name) => readFileSync(name, 'utf8'));

    return { status, stdout, stderr };
}


function configuration(variables, more) {
    const { status, stdout, stderr } = run({ ...good, ...variables }, 'print', more);

    assert.equal(status, 0, stderr);

    return stdout.replace(/^ *#.*\n/gm, '').replace(/ +/g, ' ');
}


function says(variables, ...messages) {
    const { status, stderr } = run({ ...good, ...variables });

    assert.equal(status, 1, stderr);

    for (const message of messages) {
        assert.ok(stderr.includes(message), `${stderr}\nhas no: ${message}`);
    }
}


test('token and backend are all it takes', () => {
    const conf = configuration({});

    assert.match(conf, /listen 8080;/);
    assert.match(conf, /listen 8081;/);
    assert.match(conf, /kontext_publisher_token "acme-dev";/);
    assert.match(conf, /kontext_user_id "\$http_x_user_id";/);
    assert.match(conf, /upstream llm \{\s+server 127\.0\.0\.1:8000;/);
    assert.match(conf, /location \/v1\/ \{ include chat\.conf; \}/);
    assert.match(conf, /location \/ \{ include proxy\.conf; \}/);
    assert.doesNotMatch(conf, /kontext_api;|real_ip|\$\{(KONTEXT|NGX)/);
});

test('each variable gets to its directive', () => {
    const conf = configuration({
        KONTEXT: '$http_x_ads',
        KONTEXT_ACCESS_LOG: 'off',
        KONTEXT_API: '/kontext/',
        KONTEXT_API_ORIGIN: 'https://a.example.com https://b.example.com',
        KONTEXT_BACKEND: 'https://localhost',
        KONTEXT_BACKEND_TLS_VERIFY: 'off',
        KONTEXT_CLIENT_MAX_BODY: '64m',
        KONTEXT_CONVERSATION_ID: '$http_x_tenant-${http_x_chat}',
        KONTEXT_FORMAT: 'anthropic',
        KONTEXT_FRAME_ORIGIN: 'https://ads.example.com',
        KONTEXT_GRACE: '250ms',
        KONTEXT_INJECT: 'none',
        KONTEXT_LABEL: 'Anzeige – Werbung',
        KONTEXT_LISTEN: '127.0.0.1:9090',
        KONTEXT_LOG_LEVEL: 'warn',
        KONTEXT_MAX_BODY: '4m',
        KONTEXT_PATHS: '/chat/',
        KONTEXT_READ_TIMEOUT: '600s',
        KONTEXT_STATUS_LISTEN: '9091',
        KONTEXT_TRUSTED_PROXIES: '10.0.0.0/8 fd00::/8',
        KONTEXT_USER_ID: '$remote_user',
        KONTEXT_WORKERS: '3',
        KONTEXT_ZONE_IDLE: '1h',
        KONTEXT_ZONE_SIZE: '64m',
    });

    for (const line of [
        'kontext $http_x_ads;', 'access_log off;', 'location /kontext/ {\n kontext_api;',
        'kontext_api_origin https://a.example.com https://b.example.com;',
        'server localhost:443;', 'proxy_pass https://llm;',
        'proxy_set_header Host localhost;', 'proxy_ssl_verify off;',
        'client_max_body_size 64m;',
        'kontext_conversation_id "$http_x_tenant-${http_x_chat}";',
        'kontext_format anthropic;', 'kontext_frame_origin https://ads.example.com;',
        'kontext_grace 250ms;', 'kontext_inject none;',
        'kontext_label "Anzeige – Werbung";', 'listen 127.0.0.1:9090;',
        'error_log stderr warn;', 'kontext_max_body 4m;',
        'location /chat/ { include chat.conf; }', 'proxy_read_timeout 600s;',
        'listen 9091;', 'set_real_ip_from 10.0.0.0/8;',
        'set_real_ip_from fd00::/8;', 'real_ip_header X-Forwarded-For;',
        'kontext_user_id "$remote_user";', 'worker_processes 3;',
        'kontext_zone kontext:64m idle=1h;',
    ]) {
        assert.ok(conf.includes(line), `no ${line} in\n${conf}`);
    }

    assert.doesNotMatch(conf, /\/v1\//);
});

test('the ad server takes the place of the one that ships', () => {
    const conf = configuration({ KONTEXT_AD_SERVER: 'http://localhost:8001' });

    assert.match(conf, /upstream kontext_ad_server \{\s+server localhost:8001;/);
    assert.match(conf, /proxy_pass http:\/\/kontext_ad_server\/;/);
    assert.match(conf, /proxy_set_header Host localhost:8001;/);
    assert.match(conf, /proxy_ssl_name localhost;/);
    assert.doesNotMatch(conf, /megabrain\.co[:/;]*;?\s*$(?<!frame_origin .*)/m);
});

test('an ad server that cannot be looked up keeps no chat from starting', () => {
    const { status, stdout, stderr } =
        run({ ...good, KONTEXT_AD_SERVER: 'https://ads.invalid:8443' });

    assert.equal(status, 0, stderr);
    assert.match(stderr, /ads\.invalid cannot be looked up now: chats go on/);
    assert.match(stdout, /set \$kontext_ad_server ads\.invalid:8443;/);
    assert.match(stdout, /resolver \S.* valid=30s;/);
});

test('the token may be in a file, and is for nobody else', () => {
    const file = path.join(dir, 'token');

    writeFileSync(file, 'from-a-file\n');

    const conf = configuration({ KONTEXT_PUBLISHER_TOKEN: '',
                                 KONTEXT_PUBLISHER_TOKEN_FILE: file });

    assert.match(conf, /kontext_publisher_token "from-a-file";/);
    assert.equal(statSync(path.join(dir, 'kontext/nginx.conf')).mode & 0o077, 0);

    says({ KONTEXT_PUBLISHER_TOKEN_FILE: file }, 'leave one of them out');
    says({ KONTEXT_PUBLISHER_TOKEN: '', KONTEXT_PUBLISHER_TOKEN_FILE: '/none' },
         'KONTEXT_PUBLISHER_TOKEN is not set', 'or its file, which user');
});

test('a limit of processors is a limit of workers', () => {
    const cgroup = path.join(dir, 'cgroup');

    mkdirSync(cgroup);
    writeFileSync(path.join(cgroup, 'cpu.max'), '50000 100000\n');
    assert.match(configuration({}, { NGX_CGROUP: cgroup }), /worker_processes 1;/);

    writeFileSync(path.join(cgroup, 'cpu.max'), 'max 100000\n');
    assert.match(configuration({}, { NGX_CGROUP: cgroup }), /worker_processes \d+;/);
});

test('off needs no token', () => {
    const conf = configuration({ KONTEXT: 'off', KONTEXT_PUBLISHER_TOKEN: '' });

    assert.match(conf, /kontext off;/);
});

test('what is wrong is told with what to write instead, all of it at once', () => {
    says({ KONTEXT_PUBLISHER_TOKEN: '' },
         'KONTEXT_PUBLISHER_TOKEN is not set; write the token that Kontext gave you');

    for (const value of ['', 'llm:8000', 'http://llm/v1', 'http://me:pw@llm',
                         'http://l;m', 'ftp://llm', 'http://'])
    {
        says({ KONTEXT_BACKEND: value }, 'write it as in KONTEXT_BACKEND=http://llm:8000');
    }

    says({ KONTEXT_BACKEND: 'http://llm.invalid' }, 'the name llm.invalid cannot be looked up');
    says({ KONTEXT_AD_SERVER: 'server.megabrain.co' },
         'write it as in KONTEXT_AD_SERVER=https://server.megabrain.co');
    says({ KONTEXT_LISTEN: '8081' }, 'are the same port');
    says({ KONTEXT_PATHS: 'v1' }, "KONTEXT_PATHS='/v1/ /api/'");
    says({ KONTEXT_API: 'kontext' }, 'kontext is no path');
    says({ KONTEXT_ZONE: '64m' }, 'KONTEXT_ZONE is no variable of this image');
    says({ KONTEXT_PATHS: 'v1', KONTEXT_ZONE: '64m' }, 'v1 is no path', 'KONTEXT_ZONE is');
});

test('of the rest nginx says what is wrong', () => {
    for (const [name, value, message] of [
        ['KONTEXT', 'yes', '"kontext"'],
        ['KONTEXT_API_ORIGIN', 'app.example.com', '"kontext_api_origin"'],
        ['KONTEXT_BACKEND', 'http://127.0.0.1:70000', 'invalid port'],
        ['KONTEXT_BACKEND_TLS_VERIFY', 'no', '"proxy_ssl_verify"'],
        ['KONTEXT_FORMAT', 'openai', 'kontext_format'],
        ['KONTEXT_FRAME_ORIGIN', 'ads.example.com', 'kontext_frame_origin'],
        ['KONTEXT_GRACE', 'soon', 'kontext_grace'],
        ['KONTEXT_INJECT', 'html', 'kontext_inject'],
        ['KONTEXT_LISTEN', 'eth0:x', 'listen'],
        ['KONTEXT_TRUSTED_PROXIES', '10.0.0.0/99', '10.0.0.0/99'],
        ['KONTEXT_WORKERS', 'many', 'worker_processes'],
        ['KONTEXT_ZONE_SIZE', '32 MB', 'kontext:32'],
    ]) {
        const { status, stderr } = run({ ...good, KONTEXT_API: '/kontext/', [name]: value },
                                       'check');

        assert.equal(status, 1, `${name}=${value}: ${stderr}`);
        assert.ok(stderr.includes(message), `${name}=${value}: ${stderr}`);
    }
});

test('no value ends its directive', () => {
    const names = known.filter((name) => name !== 'KONTEXT_PUBLISHER_TOKEN_FILE');

    for (const value of ['a"; return 200; #', 'a\nb', 'a;b', 'a}b', 'a{b', 'a\\', '${a']) {
        says(Object.fromEntries(names.map((name) => [name, value])),
             ...names.map((name) => `${name} has a line end,`));
    }
});

test('a token is never printed', () => {
    const { stderr } = run({ ...good, KONTEXT_PUBLISHER_TOKEN: 'se"cret' });

    assert.match(stderr, /KONTEXT_PUBLISHER_TOKEN has a line end/);
    assert.doesNotMatch(stderr, /se"cret/);
});

test('what Kubernetes sets for a Service of that name is passed over', () => {
    configuration({ KONTEXT_PORT: 'tcp://10.0.0.1:80', KONTEXT_SERVICE_HOST: '10.0.0.1',
                    KONTEXT_SERVICE_PORT: '80', KONTEXT_SERVICE_PORT_HTTP: '80',
                    KONTEXT_PORT_80_TCP: 'tcp://10.0.0.1:80',
                    KONTEXT_PORT_80_TCP_ADDR: '10.0.0.1',
                    KONTEXT_GATEWAY_PORT: 'tcp://10.0.0.1:80',
                    KONTEXT_GATEWAY_SERVICE_HOST: '10.0.0.1' });
});

test('a directory that cannot be written to is named', () => {
    const { status, stderr } = run(good, 'check', { TMPDIR: '/proc' });

    assert.equal(status, 1);
    assert.match(stderr, /\/proc cannot be written to; mount a tmpfs there/);
});

test('each variable is in docs/install.md, and none that there is not', () => {
    const documented = readFileSync(path.join(root, 'docs/install.md'), 'utf8')
        .match(/^\| `KONTEXT[A-Z_]*`/gm).map((line) => line.slice(3, -1));

    assert.deepEqual(documented.sort(), [...known].sort());
});

test('scripts are clean for shellcheck', () => {
    const scripts = ['docker/entrypoint', 'docker/test', 'util/package',
                     'util/package-build', 'util/package-try', 'util/first-ad',
                     'debian/tests/demo', 'debian/tests/first-ad'];
    const { status, stdout } = spawnSync('shellcheck', ['-x', ...scripts],
                                         { cwd: root, encoding: 'utf8' });

    assert.equal(status, 0, stdout);
    assert.ok(existsSync(path.join(root, 'debian/tests/servers')));
});
