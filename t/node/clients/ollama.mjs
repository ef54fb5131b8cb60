// Copyright (C) the ngx_http_kontext_module authors

import { Ollama } from 'ollama/browser';

import { QUESTION, SCHEMA, TOOLS, see, version } from './common.mjs';


function read(out, part) {
    out.text += part.message?.content ?? part.response ?? '';
    out.tools.push(...(part.message?.tool_calls ?? []));

    if (part.done) {
        const { done_reason, message, response, context, created_at, kontext,
                ...usage } = part;

        out.finish = done_reason;
        out.usage = usage;
        see(out, 'part.kontext', kontext);
    }
}


async function answer(out, scenario, call) {
    if (scenario === 'whole') {
        read(out, await call({ stream: false }));
        return;
    }

    for await (const part of await call({ stream: true })) {
        read(out, part);
    }
}


const places = { text: ['part.kontext'], whole: ['part.kontext'] };
const client = `ollama ${version('ollama')}`;

export const rows = [
    {
        client, format: 'ollama', how: 'chat()', places,
        run: (out, { base, scenario }) => answer(out, scenario, more =>
            new Ollama({ host: base }).chat({
                model: 'qwen3:8b',
                messages: [{ role: 'user', content: QUESTION }],
                ...(scenario === 'tools' && {
                    tools: TOOLS.map(tool => ({ type: 'function',
                                                function: tool })),
                }),
                ...(scenario === 'json' && { format: SCHEMA }),
                ...more,
            })),
    },
    {
        client, format: 'ollama', how: 'generate()', places,
        not: ['tools'],
        run: (out, { base, scenario }) => answer(out, scenario, more =>
            new Ollama({ host: base }).generate({
                model: 'qwen3:8b',
                prompt: QUESTION,
                ...(scenario === 'json' && { format: 'json' }),
                ...more,
            })),
    },
];
