// Copyright (C) the ngx_http_kontext_module authors
//
// js/kontext.js without a browser: its size, its other forms, its types, and
// where it finds an ad.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import vm from 'node:vm';

import { classic } from '../../js/classic.mjs';
import * as kontext from '../../js/kontext.js';

const MAX_SIZE = 6000;                  // bytes, gzipped

const path = name => fileURLToPath(new URL(name, import.meta.url));
const read = name => readFileSync(path(`../../js/${name}`), 'utf8');

const member = { messageId: 'm', ads: [] };


for (const name of ['kontext.js', 'kontext.classic.js']) {
    test(`${name}: under 6 KB gzipped`, () => {
        const size = gzipSync(read(name), { level: 9 }).length;

        assert.ok(size < MAX_SIZE, `${size} bytes`);
    });

    test(`${name}: depends on nothing and makes no code or markup`, () => {
        const text = read(name);

        for (const word of [/^import\b/m, /\bimport\(/, /\brequire\(/,
                            /innerHTML|outerHTML|insertAdjacent|srcdoc/,
                            /\beval\b|new Function|document\.write/,
                            /\blocalStorage|sessionStorage|document\.cookie/])
        {
            assert.doesNotMatch(text, word);
        }
    });
}


test('kontext.classic.js is kontext.js: js/classic.mjs makes it', () => {
    assert.equal(read('kontext.classic.js'), classic());
});


test('kontext.classic.js has in Kontext what kontext.js exports', () => {
    const context = vm.createContext({});

    vm.runInContext(read('kontext.classic.js'), context);

    assert.deepEqual(Object.keys(context.Kontext).sort(),
                     Object.keys(kontext).sort());
    assert.equal(vm.runInContext(
        'Kontext.kontextOf({ kontext: { ads: [1] } }).ads[0]', context), 1);
});


// each line of types.ts that must be an error says so itself

test('kontext.d.ts: what uses it is checked', () => {
    const tsc = createRequire(import.meta.url)
                .resolve('typescript/bin/tsc');

    execFileSync(process.execPath, [
        tsc, '--noEmit', '--strict', '--target', 'es2022', '--module', 'nodenext',
        '--lib', 'es2022,dom', path('types.ts'),
    ], { stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' });
});


test('kontext.d.ts exports what kontext.js exports', () => {
    const names = [...read('kontext.d.ts')
                   .matchAll(/^export (?:declare )?function (\w+)/gm)]
                  .map(([, name]) => name);

    assert.deepEqual(names.sort(), Object.keys(kontext).sort());
});


for (const [where, value] of [
    ['the member itself', member],
    ['a chunk or a message', { choices: [], kontext: member }],
    ['message_delta of Anthropic', { type: 'message_delta',
                                     delta: { kontext: member } }],
    ['response.completed', { type: 'response.completed',
                             response: { kontext: member } }],
    ['a chunk of Gemini', { usageMetadata: { kontext: member } }],
    ['a part of the AI SDK', { type: 'data-kontext', data: member,
                               transient: true }],
]) {
    test(`kontextOf: ${where}`, () => {
        assert.equal(kontext.kontextOf(value), member);
    });
}


for (const value of [
    undefined, null, '', 'kontext', 0, 1n, true, [], {}, () => {},
    { kontext: null }, { kontext: {} }, { kontext: { ads: {} } },
    { kontext: 'ads' }, { type: 'data-other', data: member },
    { response: null, delta: null, usageMetadata: null },
]) {
    test(`kontextOf: nothing in ${typeof value === 'bigint' ? value
                                  : JSON.stringify(value)}`, () => {
        assert.equal(kontext.kontextOf(value), null);
    });
}


test('kontext.js can be loaded where there is no document', () => {
    assert.equal(typeof document, 'undefined');
    assert.equal(typeof kontext.createKontext, 'function');
});
