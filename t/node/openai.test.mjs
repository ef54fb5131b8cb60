// Copyright (C) the ngx_http_kontext_module authors
//
// The official client of the OpenAI format reads its answers through nginx
// with the module: it must not notice, and an app that looks must find the ad.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import OpenAI from 'openai-6';

import { start } from './stack.mjs';

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const MESSAGE_ID = /^kx1_[0-9a-z]{26}$/i;

let stack, direct, turn = 0;


before(async () => {
    stack = await start();
    direct = new OpenAI({ baseURL: `${stack.backend}/v1`, apiKey: 'sk-test',
                          maxRetries: 0 });
});


after(async () => {
    await stack?.stop();
});


// a client of a user in a conversation of its own

function client(headers = {}) {
    return new OpenAI({
        baseURL: `${stack.url}/v1`,
        apiKey: 'sk-test',
        maxRetries: 0,
        timeout: 30_000,
        defaultHeaders: {
            'X-User-Id': 'user-1',
            'X-Conversation-Id': `conversation-${process.pid}-${++turn}`,
            ...headers,
        },
    });
}


function ask(text, more = {}) {
    return { model: 'demo-1', messages: [{ role: 'user', content: text }],
             ...more };
}


// what the backend says without the module

async function expected(params) {
    const { stream, stream_options, ...rest } = params;
    const answer = await direct.chat.completions.create(rest);

    return answer.choices[0].message.content;
}


async function read(stream) {
    const chunks = [];

    for await (const chunk of stream) {
        chunks.push(chunk);
    }

    return chunks;
}


function text(chunks) {
    return chunks.map(chunk => chunk.choices[0]?.delta?.content ?? '').join('');
}


function finish(chunks) {
    return chunks.filter(chunk => chunk.choices[0]?.finish_reason);
}


function checkAd(kontext) {
    assert.match(kontext.messageId, MESSAGE_ID);
    assert.equal(kontext.ads.length, 1);

    const [ad] = kontext.ads;

    assert.deepEqual(Object.keys(kontext), ['messageId', 'ads']);
    assert.deepEqual(Object.keys(ad), ['bidId', 'code', 'label', 'frameUrl']);
    assert.match(ad.bidId, UUID);
    assert.equal(ad.code, 'inlineAd');
    assert.equal(ad.label, 'Sponsored');

    const url = new URL(ad.frameUrl);

    assert.equal(url.pathname, `/api/frame/${ad.bidId}`);
    assert.equal(url.searchParams.get('code'), ad.code);
    assert.equal(url.searchParams.get('messageId'), kontext.messageId);
    assert.equal(url.searchParams.get('sdk'), 'sdk-js');
}


test('a streamed answer, and the ad on its finish chunk', async () => {
    const params = ask('Which shoes should I buy?', { stream: true });
    const chunks = await read(await client().chat.completions.create(params));

    assert.equal(text(chunks), await expected(params));

    const last = finish(chunks);

    assert.equal(last.length, 1);
    assert.equal(last[0].choices[0].finish_reason, 'stop');

    assert.deepEqual(chunks.filter(chunk => chunk.kontext), last);
    checkAd(last[0].kontext);
});


test('the frame of the ad can be fetched', async () => {
    const params = ask('What shall I cook?', { stream: true });
    const chunks = await read(await client().chat.completions.create(params));
    const [ad] = finish(chunks)[0].kontext.ads;

    const frame = await fetch(ad.frameUrl);

    assert.equal(frame.status, 200);
    assert.match(frame.headers.get('content-type'), /^text\/html/);
    assert.match(await frame.text(), /Sponsored/);

    const other = await fetch(
        ad.frameUrl.replace(ad.bidId, '00000000-0000-4000-8000-000000000000'));

    assert.equal(other.status, 404);
    await other.text();
});


test('the stream helper', async () => {
    const params = ask('A weekend in Lisbon?');
    const stream = client().chat.completions.stream(params);
    const ads = [];
    let deltas = '';

    stream.on('chunk', chunk => {
        if (chunk.kontext) {
            ads.push(chunk.kontext);
        }
    });
    stream.on('content', delta => { deltas += delta; });

    const completion = await stream.finalChatCompletion();
    const [choice] = completion.choices;

    assert.equal(choice.message.content, await expected(params));
    assert.equal(deltas, choice.message.content);
    assert.equal(choice.message.role, 'assistant');
    assert.equal(choice.finish_reason, 'stop');
    assert.equal(ads.length, 1);
    checkAd(ads[0]);
});


test('usage comes after the chunk with the ad', async () => {
    const params = ask('Which shoes?', {
        stream: true,
        stream_options: { include_usage: true },
    });
    const chunks = await read(await client().chat.completions.create(params));
    const usage = chunks.at(-1);

    assert.deepEqual(usage.choices, []);
    assert.ok(usage.usage.completion_tokens > 0);
    assert.equal(usage.kontext, undefined);
    checkAd(chunks.at(-2).kontext);
});


test('each turn of a conversation has an ad of its own', async () => {
    const openai = client();
    const messages = [];
    const seen = [];

    for (const question of ['Which shoes?', 'And for dinner?', 'Lisbon?']) {
        messages.push({ role: 'user', content: question });

        const params = { model: 'demo-1', messages, stream: true };
        const chunks = await read(await openai.chat.completions.create(params));

        assert.equal(text(chunks), await expected(params));

        const { kontext } = finish(chunks)[0];

        checkAd(kontext);
        seen.push(kontext);
        messages.push({ role: 'assistant', content: text(chunks) });
    }

    assert.equal(new Set(seen.map(ad => ad.messageId)).size, 3);
    assert.equal(new Set(seen.map(ad => ad.ads[0].bidId)).size, 3);
});


test('conversations side by side', async () => {
    const questions = ['shoes', 'pasta', 'Lisbon', 'nginx', 'hello'];

    const ads = await Promise.all(questions.map(async question => {
        const params = ask(question, { stream: true });
        const chunks = await read(await client().chat.completions
                                                .create(params));

        assert.equal(text(chunks), await expected(params));
        return finish(chunks)[0].kontext;
    }));

    ads.forEach(checkAd);
    assert.equal(new Set(ads.map(ad => ad.ads[0].bidId)).size, ads.length);
});


test('an answer cut by the token limit', async () => {
    const params = ask('Which shoes?', { stream: true,
                                         max_completion_tokens: 5 });
    const chunks = await read(await client().chat.completions.create(params));

    assert.equal(text(chunks), await expected(params));
    assert.equal(finish(chunks)[0].choices[0].finish_reason, 'length');
});


test('an answer in one piece', async () => {
    const params = ask('Which shoes?');
    const completion = await client().chat.completions.create(params);

    assert.equal(completion.choices[0].message.content, await expected(params));
    assert.equal(completion.choices[0].finish_reason, 'stop');
    checkAd(completion.kontext);
});


test('an answer that a machine reads has no ad', async () => {
    const params = ask('Which shoes?', {
        stream: true,
        response_format: { type: 'json_object' },
    });
    const chunks = await read(await client().chat.completions.create(params));

    assert.equal(text(chunks), await expected(params));
    assert.deepEqual(chunks.filter(chunk => chunk.kontext), []);
});


test('an aborted answer leaves the conversation usable', async () => {
    const openai = client();
    const params = ask('Which shoes?', { stream: true });
    const stream = await openai.chat.completions.create(params);

    for await (const chunk of stream) {
        if (chunk.choices[0].delta.content) {
            stream.controller.abort();
            break;
        }
    }

    const chunks = await read(await openai.chat.completions.create(params));

    assert.equal(text(chunks), await expected(params));
    assert.equal(finish(chunks)[0].choices[0].finish_reason, 'stop');
});


test('errors are the backend\'s own', async () => {
    await assert.rejects(
        client().chat.completions.create(ask('x', { stream: true, n: 2 })),
        error => error instanceof OpenAI.BadRequestError
                 && error.param === 'n');

    await assert.rejects(client().models.retrieve('nothing'),
                         OpenAI.NotFoundError);
});
