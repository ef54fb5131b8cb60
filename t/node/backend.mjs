// Copyright (C) the ngx_http_kontext_module authors
//
// A chat backend that speaks every format of the module: it answers with the
// sample streams, or with what is derived from them.  The path says which,
//
//     /RUN/SCENARIO/v1/chat/completions
//
// where RUN is a client's own word and SCENARIO one of
//
//     text    a plain answer             tools   an answer that calls tools
//     json    an answer in JSON mode     error   an answer that breaks off
//     whole   a plain answer in one piece
//
// Streams come in small pieces.  seen(RUN) is the request of that run.

import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const PIECE = 701;                      // bytes
const PAUSE = 1;                        // ms

const JSON_ANSWER = '{"city":"Lisbon","days":9}';

const SHARED = process.env.KONTEXT_SHARED
               || fileURLToPath(new URL('../../../shared', import.meta.url));

const SSE = 'text/event-stream';
const LINES = 'application/x-ndjson';


function sample(name) {
    return readFileSync(join(SHARED, 'samples', name), 'utf8');
}


// Calls change(data) for each frame of a stream: it changes the data in place
// or returns false for a frame that is to go.

function rewrite(stream, type, change) {
    const end = type === LINES ? '\n'
                : stream.includes('\r\n\r\n') ? '\r\n\r\n' : '\n\n';

    return stream.split(end).filter(frame => frame !== '').map(frame => {
        const [, head, json] = /^([^{[]*)(\{.*\})?/s.exec(frame);

        if (json === undefined) {
            return frame + end;
        }

        const data = JSON.parse(json);

        return change(data) === false ? ''
                                      : head + JSON.stringify(data) + end;
    }).join('');
}


// a format's visible text: the object that has it in a frame, and its name

const TEXT_OF = {
    openai_chat: data => [data.choices[0]?.delta, 'content'],
    openai_responses: data =>
        data.type === 'response.output_text.delta' ? [data, 'delta'] : [],
    anthropic: data =>
        data.delta?.type === 'text_delta' ? [data.delta, 'text'] : [],
    ollama: data => 'response' in data ? [data, 'response']
                                       : [data.message, 'content'],
    gemini: data => {
        const [part] = data.candidates[0].content.parts;

        return part.thought ? [] : [part, 'text'];
    },
};


function replaceStrings(value, from, to) {
    for (const [name, item] of Object.entries(value ?? {})) {
        if (item === from) {
            value[name] = to;

        } else if (typeof item === 'object') {
            replaceStrings(item, from, to);
        }
    }
}


function textOf(stream, type, format) {
    let text = '';

    rewrite(stream, type, data => {
        const [object, name] = TEXT_OF[format](data);

        text += object?.[name] ?? '';
    });

    return text;
}


// the same stream with JSON as its text, in two pieces

function inJson(stream, type, format) {
    const text = textOf(stream, type, format);
    const pieces = [JSON_ANSWER.slice(0, 9), JSON_ANSWER.slice(9)];

    return rewrite(stream, type, data => {
        const [object, name] = TEXT_OF[format](data);

        replaceStrings(data, text, JSON_ANSWER);

        if (!object?.[name]) {
            return true;
        }

        object[name] = pieces.shift() ?? '';

        return object[name] !== ''
               || Boolean(data.candidates?.[0].finishReason);
    });
}


// an answer to a tool choice that has the arguments as its result

function anthropicToolJson(name) {
    const events = [];
    const add = data => events.push(
        `event: ${data.type}\ndata: ${JSON.stringify(data)}\n\n`);

    rewrite(sample('anthropic.sse'), SSE, data => {
        if (data.type === 'message_start') {
            add(data);
            add({ type: 'content_block_start', index: 0, content_block: {
                type: 'tool_use', id: 'toolu_01Zk3QbT7mW1xYcR5nLpV0sD8a', name,
                input: {} } });

            for (const json of ['', JSON_ANSWER.slice(0, 9),
                                JSON_ANSWER.slice(9)]) {
                add({ type: 'content_block_delta', index: 0, delta: {
                    type: 'input_json_delta', partial_json: json } });
            }

            add({ type: 'content_block_stop', index: 0 });

        } else if (data.type === 'message_delta') {
            data.delta.stop_reason = 'tool_use';
            add(data);

        } else if (data.type === 'message_stop') {
            add(data);
        }
    });

    return events.join('');
}


function beginning(stream, type, frames) {
    let n = 0;

    return rewrite(stream, type, () => n++ < frames);
}


const FORMATS = {
    openai_chat: {
        text: 'openai-chat.sse',
        tools: 'openai-chat-tools.sse',
        error: 'openai-chat-error.sse',
        whole: 'openai-chat.response.json',
    },

    openai_responses: {
        text: 'openai-responses.sse',
        tools: 'openai-responses-tools.sse',
        error: 'openai-responses-failed.sse',
        whole: 'openai-responses.response.json',
    },

    anthropic: {
        text: 'anthropic.sse',
        tools: 'anthropic-thinking-tools.sse',
        error: 'anthropic-error.sse',
        whole: 'anthropic.response.json',
    },

    ollama: {
        type: LINES,
        text: 'ollama.ndjson',
        tools: 'ollama-tools.ndjson',
        error: 'ollama-error.ndjson',
        whole: 'ollama.response.json',
    },

    // the samples have nothing but a stream of it

    'ollama generate': {
        type: LINES,
        text: 'ollama-generate.ndjson',
        error: () => beginning(sample('ollama-generate.ndjson'), LINES, 20)
                     + '{"error":"unexpected EOF"}\n',
        whole: () => {
            const stream = sample('ollama-generate.ndjson');
            const last = JSON.parse(stream.trimEnd().split('\n').at(-1));

            return JSON.stringify({
                ...last, response: textOf(stream, LINES, 'ollama'),
            });
        },
    },

    gemini: {
        text: 'gemini.sse',
        tools: 'gemini-tools.sse',
        error: () => beginning(sample('gemini.sse'), SSE, 4)
                     + 'data: {"error":{"code":503,"message":"Overloaded",'
                     + '"status":"UNAVAILABLE"}}\r\n\r\n',
        whole: 'gemini.response.json',
    },

    ai_sdk_ui: {
        headers: { 'x-vercel-ai-ui-message-stream': 'v1',
                   'x-accel-buffering': 'no' },
        text: 'ai-sdk-ui.sse',
        tools: 'ai-sdk-ui-tools.sse',
        error: 'ai-sdk-ui-error.sse',
    },
};


const PATHS = [
    [/\/v1\/chat\/completions$/, 'openai_chat'],
    [/\/v1\/responses$/, 'openai_responses'],
    [/\/v1\/messages$/, 'anthropic'],
    [/\/ui\/api\/chat$/, 'ai_sdk_ui'],
    [/\/api\/chat$/, 'ollama'],
    [/\/api\/generate$/, 'ollama generate'],
    [/\/models\/[^/:]+:(streamGenerateContent|generateContent)$/, 'gemini'],
];


function answer(name, scenario, body) {
    const format = FORMATS[name];
    const type = scenario === 'whole' ? 'application/json'
                 : format.type ?? SSE;

    if (scenario === 'json') {
        const tool = body.tool_choice?.type === 'tool' && body.tool_choice.name;

        return { type, body: tool ? anthropicToolJson(tool)
                                  : inJson(sample(format.text), type,
                                           name.split(' ')[0]) };
    }

    const source = format[scenario];

    return { type, headers: format.headers,
             body: typeof source === 'function' ? source() : sample(source) };
}


async function serve(seen, request, response) {
    const url = new URL(request.url, 'http://backend');
    const [, run, scenario] = url.pathname.split('/');
    const [, format] = PATHS.find(([path]) => path.test(url.pathname)) ?? [];
    let body = '';

    for await (const piece of request.setEncoding('utf8')) {
        body += piece;
    }

    if (request.method !== 'POST' || !format) {
        response.writeHead(404, { 'content-type': 'application/json' });
        response.end('{"error":"not found"}');
        return;
    }

    seen.set(run, { url: request.url, headers: request.headers, body });

    const reply = answer(format, scenario, JSON.parse(body));
    const bytes = Buffer.from(reply.body);
    const headers = { 'content-type': reply.type, ...reply.headers };

    if (scenario === 'whole') {
        response.writeHead(200, { ...headers, 'content-length': bytes.length });
        response.end(bytes);
        return;
    }

    response.writeHead(200, headers);

    for (let at = 0; at < bytes.length && !response.destroyed; at += PIECE) {
        if (!response.write(bytes.subarray(at, at + PIECE))) {
            await Promise.race([once(response, 'drain'),
                                once(response, 'close')]);
        }

        await sleep(PAUSE);
    }

    response.end();
}


export async function startBackend() {
    const requests = new Map();

    const server = createServer((request, response) => {
        serve(requests, request, response).catch(error => {
            process.stderr.write(`${error.stack}\n`);
            response.destroy();
        });
    });

    server.listen(0, '127.0.0.1');
    await once(server, 'listening');

    return {
        address: `127.0.0.1:${server.address().port}`,
        seen: run => requests.get(run),
        stop: () => {
            server.close();
            server.closeAllConnections();
        },
    };
}
