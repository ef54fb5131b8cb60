// Copyright (C) the ngx_http_kontext_module authors
//
// docs/page.md: its tables have what kontext.js and its types have, its
// examples are none of yesterday, and its quick start starts.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import ts from 'typescript';

import { start } from '../node/stack.mjs';
import { launch, open } from './browser.mjs';

const read = name => readFileSync(new URL(`../../${name}`, import.meta.url),
                                  'utf8');

const page = read('docs/page.md');
const source = read('js/kontext.js');


// the first cells of the tables of a section: what they have between `s

function cells(heading) {
    const [, section] = page.split(`\n## ${heading}\n`);

    return section.split('\n## ')[0].split('\n')
        .flatMap(line => /^\| (`[^|]*) \|/.exec(line)?.[1] ?? [])
        .flatMap(cell => [...cell.matchAll(/`([\w.-]+)/g)])
        .map(([, name]) => name);
}


function snippets(language) {
    const found = [...page.matchAll(
        new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\`$`, 'gm'))];

    assert.notEqual(found.length, 0);

    return found.map(([, text]) => text);
}


// the names of the members of a type of kontext.d.ts, or of a union

const types = ts.createSourceFile('kontext.d.ts', read('js/kontext.d.ts'),
                                  ts.ScriptTarget.Latest, true);

function members(name) {
    const found = types.statements.find(one => one.name?.text === name);

    return found.members?.map(member => member.name.text)
           ?? found.type.types.map(({ literal }) => literal.text);
}


for (const [heading, name] of [['Options', 'KontextOptions'],
                               ['Methods', 'Kontext'],
                               ['Events', 'KontextEventName']]) {
    test(`${heading}: those of ${name}`, () => {
        assert.deepEqual(cells(heading).sort(), members(name).sort());
    });
}


test('The frame protocol: all messages that kontext.js heeds', () => {
    const heeded = [...source.matchAll(
        /^        '([\w-]+-iframe)'(?:\(|:)/gm)].map(([, type]) => type);

    assert.ok(heeded.length > 9);
    assert.deepEqual([...new Set(cells('The frame protocol'))].sort(),
                     [...new Set(heeded)].sort());
});


test('the sandbox, the limits and the classes are those of kontext.js', () => {
    const text = page.replace(/\s+/g, ' ');
    const [, sandbox] = /SANDBOX = ('[^;]*);/.exec(source);

    const words = [...sandbox.matchAll(/'([^']*)'/g)].map(([, word]) => word);

    assert.ok(text.includes(`\`${words.join('')}\``));

    for (const [name, says] of [
        ['MAX_TEXT', 'cut at _ characters'], ['MAX_URL', 'addresses at _;'],
        ['MAX_HEIGHT', '`maxHeight` | `_` |'], ['MAX_REPEATS', 'end after _.'],
        ['MODAL_WAIT', '`timeout` ms, _ if'],
    ]) {
        const [, value] = new RegExp(`const ${name} = (\\d+);`).exec(source);

        assert.ok(text.includes(says.replace('_', value)), name);
    }

    const made = source.matchAll(/(?:element\('\w+'|labelFor\([^)]*), '(\w+)'/g);

    for (const [, name] of made) {
        assert.ok(cells('Looks').includes(`.kontext-${name}`)
                  || text.includes(`.kontext-${name}`), name);
    }
});


test('the scripts are such', () => {
    for (const text of [...snippets('js'), ...snippets('jsx')]) {
        const { diagnostics } = ts.transpileModule(text, {
            reportDiagnostics: true, fileName: 'example.jsx',
            compilerOptions: { module: ts.ModuleKind.ESNext, allowJs: true,
                               target: ts.ScriptTarget.ESNext,
                               jsx: ts.JsxEmit.ReactJSX },
        });

        assert.deepEqual(diagnostics.map(({ messageText }) => messageText), []);
    }
});


// What belongs into a server; t/472 has all of them, with the module.

const inServer = snippets('nginx').filter(text => !/^server \{/m.test(text));

test('nginx takes the configuration', () => {
    const dir = mkdtempSync(join(tmpdir(), 'kontext-docs.'));

    try {
        writeFileSync(join(dir, 'nginx.conf'), `
            pid nginx.pid;
            events {}
            http {
                access_log off;
                server { listen 127.0.0.1:8080; ${inServer.join('')} }
            }`);
        execFileSync('nginx', ['-t', '-p', `${dir}/`, '-c', 'nginx.conf',
                               '-e', 'stderr', '-g', 'daemon off;'], {
            stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8',
            env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` },
        });

    } finally {
        rmSync(dir, { recursive: true });
    }
});


// The page's files, and all else from nginx.

async function serve(files, url) {
    const server = createServer((asked, response) => {
        const file = files[asked.url];

        if (file) {
            response.writeHead(200, file.headers);
            response.end(file.body);
            return;
        }

        const { method, headers } = asked;

        asked.pipe(request(url + asked.url, { method, headers }, answer => {
            response.writeHead(answer.statusCode, answer.headers);
            answer.pipe(response);
        }));
    });

    await new Promise(done => server.listen(0, '127.0.0.1', done));

    return server;
}


// As it says there, but for where the demo has its ad server.  The model is no
// faster than one is: nobody asks for a session before the first question.

process.env.KONTEXT_DEMO_RATE ??= '50';

test('the quick start, in front of the demo', async () => {
    const [stack, browser] = await Promise.all([start(), launch()]);
    const { frameOrigin } = await (await fetch(
        `${stack.url}/config.json`)).json();
    const demo = text => text.replaceAll('https://server.megabrain.co',
                                         frameOrigin);
    const [, policy] = /Policy "([^"]*)"/.exec(demo(inServer.join('')));
    const server = await serve({
        '/': {
            headers: { 'Content-Type': 'text/html',
                       'Content-Security-Policy': policy },
            body: snippets('html')[0],
        },
        '/app.js': {
            headers: { 'Content-Type': 'text/javascript' },
            body: demo(snippets('js')[0]),
        },
    }, stack.url);

    try {
        const { page, complaints, warnings } = await open(browser);

        await page.goto(`http://127.0.0.1:${server.address().port}/`);

        for (const n of [1, 2]) {
            const [reported] = await Promise.all([
                page.waitForResponse(response => /\/events$/.test(response.url())
                    && /ad\.viewed/.test(response.request().postData())),
                (async () => {
                    await page.getByRole('textbox').fill('Which shoes?');
                    await page.keyboard.press('Enter');

                    const answer = page.getByRole('article').nth(n - 1);

                    await answer.getByText('comfort beats speed').waitFor();
                    await answer.getByText('Sponsored').waitFor();
                    await answer.locator('iframe').scrollIntoViewIfNeeded();
                })(),
            ]);

            assert.equal(reported.status(), 202);
        }

        assert.deepEqual(complaints, []);
        assert.deepEqual(warnings, []);

    } finally {
        server.closeAllConnections();
        server.close();
        await browser.close();
        await stack.stop();
    }
});
