// Copyright (C) the ngx_http_kontext_module authors
//
// Each client in each case: what it makes of an answer without the module,
// and with it.

import assert from 'node:assert/strict';

import { rows as openai } from './clients/openai.mjs';
import { rows as anthropic } from './clients/anthropic.mjs';
import { rows as ollama } from './clients/ollama.mjs';
import { rows as genai } from './clients/genai.mjs';
import { rows as aiSdk } from './clients/ai-sdk.mjs';
import { rows as aiSdkUi } from './clients/ai-sdk-ui.mjs';
import { rows as langchain } from './clients/langchain.mjs';

const RUN_TIMEOUT = 60_000;             // ms
export const AT_A_TIME = 6;
const JSON_VALUE = { city: 'Lisbon', days: 9 };

export const rows = [...openai, ...anthropic, ...ollama, ...genai, ...aiSdk,
                     ...aiSdkUi, ...langchain];

const UUID = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}';

const AD_TEXT = new RegExp(
    '^\\n\\n\\u2063\\[Sponsored\\]'
    + '\\((https://server\\.megabrain\\.co/api/frame/'
    + `${UUID}\\?[^)]*)\\)\\u2063$`);


// The columns.  A case runs without the module first, and then in its ways;
// what each way has to be seen as is joined to the cell.

const BOTH = ['member', 'text'];

export const columns = [
    { name: 'member', scenario: 'text', ways: ['member'], expect: 'read' },
    { name: 'text', scenario: 'text', ways: ['text'], expect: 'shown' },
    { name: 'tools', scenario: 'tools', ways: BOTH, expect: 'same' },
    { name: 'JSON mode', scenario: 'json', ways: BOTH, expect: 'same' },
    { name: 'error frame', scenario: 'error', ways: BOTH, expect: 'same' },
    { name: 'non-streamed', scenario: 'whole', ways: BOTH,
      expect: 'read, shown' },
];

// why there is no ad

const REASONS = {
    json: ['json_mode', 'forced_tools'],

    // on a busy machine all of it may have come before an ad was asked for

    tools: ['tool_calls', 'late'],
    error: ['error_frame', 'late'],
};

let runs = 0;

// some clients tell the console, where the table goes, about errors

for (const name of ['log', 'warn', 'error']) {
    console[name] = () => {};
}


// the first folder of its URLs is a run's own

export function newRun() {
    return `${process.pid}-${++runs}`;
}


// the request of a run that the backend got last

export function requestOf(stack, word) {
    const { url, body } = stack.seen(word) ?? { url: '' };

    return { url: url.replace(`/${word}/`, '/'), body };
}


async function run(row, stack, way, scenario) {
    const word = newRun();
    const out = { text: '', tools: [], ads: {} };
    let timer;

    const timeout = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error('the run takes too long')),
                           RUN_TIMEOUT);
    });

    try {
        await Promise.race([
            row.run(out, { base: `${stack[way]}/${word}/${scenario}`,
                           scenario }),
            timeout,
        ]);

    } catch (error) {
        out.error = { name: error.constructor.name, message: error.message,
                      status: error.status ?? error.statusCode };

    } finally {
        clearTimeout(timer);
    }

    return { word, out, request: requestOf(stack, word) };
}


// the plain run is what it is meant to be

function checkPlain(scenario, { out }) {
    assert.deepEqual(out.ads, {});

    // not all of them notice

    if (scenario === 'error') {
        return;
    }

    assert.equal(out.error, undefined);

    if (scenario === 'tools') {
        assert.ok(out.tools.length > 0, 'there are no tool calls');

    } else {
        assert.notEqual(out.text, '');
    }

    if (scenario === 'json') {
        assert.deepEqual(out.parsed ?? JSON.parse(out.text), JSON_VALUE);
    }
}


function checkAd(kontext, out, log) {
    assert.deepEqual(Object.keys(kontext), ['messageId', 'ads']);
    assert.equal(kontext.ads.length, 1);

    // a format with ids of its own keeps them

    if (out.id) {
        assert.equal(kontext.messageId, out.id);

    } else {
        assert.match(kontext.messageId, /^kx1_[0-9a-z]{26}$/i);
    }

    const [ad] = kontext.ads;

    assert.deepEqual(Object.keys(ad), ['bidId', 'code', 'label', 'frameUrl']);
    assert.match(ad.bidId, new RegExp(`^${UUID}$`));
    assert.equal(ad.code, 'inlineAd');
    assert.equal(ad.label, 'Sponsored');
    assert.equal(ad.frameUrl, log.frameUrl);
}


// without the ad that is at the end

function withoutText(text, ad) {
    assert.ok(text.endsWith(ad), 'the ad is not everywhere in the text');

    return text.slice(0, text.length - ad.length);
}


// What a run with the module is seen as, compared with the plain one:
//
//   same    no ad, and all else is equal
//   ok      an ad that the client does not show the app; all else is equal
//   read    an ad that the app can read; all else is equal
//   shown   an ad at the end of the text; all else is equal

function judge(row, scenario, plain, { out, request }, log) {
    const { ads, ...rest } = out;
    let word;

    assert.deepEqual(request, plain.request,
                     'the backend sees another request');

    if (log.injected === 'text') {
        const ad = out.text.slice(plain.out.text.length);
        const [, frameUrl] = AD_TEXT.exec(ad) ?? [];

        assert.ok(frameUrl, `no text of an ad: ${JSON.stringify(ad)}`);
        assert.equal(frameUrl, log.frameUrl);
        assert.deepEqual(ads, {});

        rest.text = withoutText(rest.text, ad);

        if (rest.finalText !== undefined) {
            rest.finalText = withoutText(rest.finalText, ad);
        }

        word = 'shown';

    } else if (log.injected === 'member') {
        const places = Object.keys(ads);

        Object.values(ads).forEach(ad => checkAd(ad, out, log));

        // the app finds it wherever it may look

        if (places.length > 0) {
            assert.deepEqual(places, row.places?.[scenario]);
        }

        word = places.length > 0 ? 'read' : 'ok';

    } else {
        assert.deepEqual(ads, {});
        assert.ok(REASONS[scenario]?.includes(log.reason),
                  `there is no ad because of ${log.reason}`);

        word = 'same';
    }

    assert.deepEqual({ ...rest, ads: {} }, plain.out);
    assert.equal(log.format, row.format);

    return word;
}


export function expected(row, column) {
    return row.not?.includes(column.scenario) ? '–'
           : row.expect?.[column.name] ?? column.expect;
}


// the word, or words, in a cell; throws when a client is disturbed

export async function cell(row, column, stack) {
    const { scenario } = column;

    if (row.not?.includes(scenario)) {
        return '–';
    }

    const plain = await run(row, stack, 'plain', scenario);

    checkPlain(scenario, plain);

    const words = [];

    for (const way of column.ways) {
        const done = await run(row, stack, way, scenario);
        const log = await stack.log(done.word);

        try {
            words.push(judge(row, scenario, plain, done, log));

        } catch (error) {
            error.message = `${way}: ${error.message}\n${JSON.stringify(log)}`;
            throw error;
        }
    }

    return [...new Set(words)].join(', ');
}


export function rowName(row) {
    return [row.client, row.format, row.how].filter(Boolean).join(' | ');
}


// the table as Markdown; cell(row, column) is what stands in it

export function table(rows, cell) {
    const head = ['client', 'format', 'way', ...columns.map(one => one.name)];
    const lines = [head, head.map(() => '---'), ...rows.map(row => [
        row.client, `\`${row.format}\``, row.how ? `\`${row.how}\`` : '',
        ...columns.map(column => cell(row, column)),
    ])];

    return lines.map(line => `| ${line.join(' | ')} |`).join('\n');
}


// calls work for each item, some at a time

export async function each(items, work) {
    const queue = [...items];

    await Promise.all(Array.from({ length: AT_A_TIME }, async () => {
        while (queue.length > 0) {
            await work(queue.shift());
        }
    }));
}
