// Copyright (C) the ngx_http_kontext_module authors
//
// docker/entrypoint: what it makes of the variables, and what it says to bad
// ones.  Here nginx is the machine's and the module the one that was built;
// docker/test runs the image.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync,
         statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';

const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const root = path.resolve(here, '../..');
const build = path.resolve(root, process.env.BUILD ?? 'build');
const dir = mkdtempSync(path.join(tmpdir(), 'kontext-entrypoint.'));

after(() => rmSync(dir, { recursive: true }));

const good = {
    KONTEXT_PUBLISHER_TOKEN: 'acme-dev',
    KONTEXT_BACKEND: 'http://127.0.0.1:8000',
    KONTEXT_AD_SERVER: 'http://127.0.0.1:8001',
};


function run(variables, command = 'print', more = {}) {
    const { status, stdout, stderr } = spawnSync(
        path.join(root, 'docker/entrypoint'), [command], {
            encoding: 'utf8',
            env: {
                PATH: `${process.env.PATH}:/usr/sbin`,
                TMPDIR: dir,
                NGX_MODULE: path.join(build, 'ngx_http_kontext_module.so'),
                NGX_SNIPPETS: path.join(root, 'conf'),
                ...more,
                ...variables,
            },
        });

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
        KONTEXT_FRAME_ORIGIN: 'https://ads.example.com/',
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
        KONTEXT_USER_ID: '',
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
        'kontext_user_id "";', 'worker_processes 3;',
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
    assert.match(stdout, /resolver \S+ valid=30s;/);
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
         'write the path of a file that user');
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
    says({ KONTEXT_BACKEND: '' }, 'as in KONTEXT_BACKEND=http://llm:8000');
    says({ KONTEXT_BACKEND: 'llm:8000' }, 'write KONTEXT_BACKEND=http://llm:8000 or');
    says({ KONTEXT_BACKEND: 'http://llm/v1' }, 'write KONTEXT_BACKEND=http://llm, paths');
    says({ KONTEXT_BACKEND: 'http://me:pw@llm' }, 'write KONTEXT_BACKEND=http://llm');
    says({ KONTEXT_BACKEND: 'http://l;m' }, 'is no address');
    says({ KONTEXT_BACKEND: 'http://llm:70000' }, 'write one of 1 to 65535');
    says({ KONTEXT_BACKEND: 'http://llm.invalid' }, 'the name llm.invalid cannot be looked up');
    says({ KONTEXT: 'yes' }, 'write one of: on track_only off');
    says({ KONTEXT_FORMAT: 'openai' }, 'openai_chat openai_responses anthropic');
    says({ KONTEXT_INJECT: 'html' }, 'write one of: member text none');
    says({ KONTEXT_GRACE: 'soon' }, 'write it as in KONTEXT_GRACE=500ms');
    says({ KONTEXT_ZONE_SIZE: '32 MB' }, 'write it as in KONTEXT_ZONE_SIZE=32m');
    says({ KONTEXT_LISTEN: 'eth0' }, 'write it as in KONTEXT_LISTEN=8080');
    says({ KONTEXT_LISTEN: '8081' }, 'are the same port');
    says({ KONTEXT_PATHS: 'v1' }, "KONTEXT_PATHS='/v1/ /api/'");
    says({ KONTEXT_API: 'kontext' }, 'write it as in KONTEXT_API=/kontext/');
    says({ KONTEXT_API_ORIGIN: 'app.example.com' },
         'KONTEXT_API_ORIGIN=https://app.example.com');
    says({ KONTEXT_TRUSTED_PROXIES: 'all' }, 'is no range of addresses');
    says({ KONTEXT_WORKERS: '0' }, 'write it as in KONTEXT_WORKERS=2');
    says({ KONTEXT_ZONE: '64m' }, 'KONTEXT_ZONE is no variable of this image (KONTEXT_ZONE_');
    says({ KONTEXT_TOKEN: 'x' }, '(KONTEXT_PUBLISHER_TOKEN?)');
    says({ KONTEXT_GRACE: 'soon', KONTEXT_INJECT: 'html' },
         'KONTEXT_GRACE=soon', 'KONTEXT_INJECT=html');
});

test('nothing of a value becomes configuration', () => {
    for (const value of ['a"; return 200; #', 'a\nb', 'a;b', 'a}b', 'a\\']) {
        for (const name of ['KONTEXT_USER_ID', 'KONTEXT_LABEL', 'KONTEXT_PATHS',
                            'KONTEXT_PUBLISHER_TOKEN', 'KONTEXT_BACKEND',
                            'KONTEXT_GRACE', 'KONTEXT', 'KONTEXT_LISTEN',
                            'KONTEXT_API', 'KONTEXT_API_ORIGIN',
                            'KONTEXT_TRUSTED_PROXIES', 'KONTEXT_AD_SERVER',
                            'KONTEXT_FRAME_ORIGIN', 'KONTEXT_ACCESS_LOG'])
        {
            // a list may have line ends in it

            if (value === 'a\nb' && /PATHS|ORIGIN|PROXIES/.test(name)) {
                continue;
            }

            says({ [name]: value }, name);
        }
    }
});

test('a token is never printed', () => {
    const { stderr } = run({ ...good, KONTEXT_PUBLISHER_TOKEN: 'se cret' });

    assert.match(stderr, /KONTEXT_PUBLISHER_TOKEN has characters/);
    assert.doesNotMatch(stderr, /se cret/);
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
    const known = readFileSync(path.join(root, 'docker/entrypoint'), 'utf8')
        .match(/^known='([^']*)'/m)[1].trim().split(/\s+/);
    const documented = readFileSync(path.join(root, 'docs/install.md'), 'utf8')
        .match(/^\| `KONTEXT[A-Z_]*`/gm).map((line) => line.slice(3, -1));

    assert.deepEqual(documented.sort(), known.sort());
});

test('scripts are clean for shellcheck', () => {
    const scripts = ['docker/entrypoint', 'docker/test', 'util/package',
                     'util/package-build', 'util/package-try',
                     'debian/tests/demo', 'debian/tests/first-ad'];
    const { status, stdout } = spawnSync('shellcheck', ['-x', ...scripts],
                                         { cwd: root, encoding: 'utf8' });

    assert.equal(status, 0, stdout);
    assert.ok(existsSync(path.join(root, 'debian/tests/servers')));
});
