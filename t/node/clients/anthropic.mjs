// Copyright (C) the ngx_http_kontext_module authors

import Anthropic1 from '@anthropic-ai/sdk';
import Anthropic0 from 'anthropic-0';

import { QUESTION, SCHEMA, TOOLS, see, version } from './common.mjs';


function connect(Anthropic, base) {
    return new Anthropic({ baseURL: base, apiKey: 'sk-ant-test',
                           maxRetries: 0 });
}


function params(scenario) {
    return {
        model: 'claude-opus-4-6',
        max_tokens: 1024,
        messages: [{ role: 'user', content: QUESTION }],

        ...(scenario === 'tools' && {
            tools: TOOLS.map(({ parameters, ...tool }) => ({
                ...tool, input_schema: parameters,
            })),
        }),

        ...(scenario === 'json' && {
            output_config: { format: { type: 'json_schema', schema: SCHEMA } },
        }),
    };
}


function readMessage(out, message) {
    out.finish = [message.stop_reason, message.stop_sequence];
    out.usage = message.usage;
    out.tools = message.content.filter(block => block.type === 'tool_use');
    out.finalText = message.content
        .filter(block => block.type === 'text')
        .map(block => block.text)
        .join('');
}


// it is there twice, for those who see only one of the places

const PLACES = ['event.kontext', 'event.delta.kontext'];

function seeAd(out, event) {
    if (event.type === 'message_delta') {
        see(out, PLACES[0], event.kontext);
        see(out, PLACES[1], event.delta.kontext);
    }
}


async function loop(Anthropic, out, { base, scenario }) {
    const stream = await connect(Anthropic, base).messages.create({
        ...params(scenario), stream: true,
    });

    for await (const event of stream) {
        if (event.type === 'content_block_start'
            && event.content_block.type === 'tool_use')
        {
            const { id, name } = event.content_block;

            out.tools.push({ id, name, input: '' });

        } else if (event.delta?.type === 'input_json_delta') {
            out.tools.at(-1).input += event.delta.partial_json;

        } else if (event.delta?.type === 'text_delta') {
            out.text += event.delta.text;

        } else if (event.type === 'message_delta') {
            out.finish = [event.delta.stop_reason, event.delta.stop_sequence];
            out.usage = event.usage;
            seeAd(out, event);
        }
    }
}


async function helper(Anthropic, out, { base, scenario }) {
    const stream = connect(Anthropic, base).messages.stream(params(scenario));

    stream.on('text', text => { out.text += text; });
    stream.on('streamEvent', event => seeAd(out, event));

    readMessage(out, await stream.finalMessage());
}


async function whole(Anthropic, out, { base, scenario }) {
    const message = await connect(Anthropic, base).messages.create(
        params(scenario));

    readMessage(out, message);
    out.text = out.finalText;
    see(out, 'message.kontext', message.kontext);
}


export const rows = [
    ['@anthropic-ai/sdk', Anthropic1],
    ['anthropic-0', Anthropic0],
].flatMap(([directory, Anthropic]) => {
    const client = `@anthropic-ai/sdk ${version(directory)}`;

    return [
        {
            client, format: 'anthropic', how: 'messages.create()',
            places: { text: PLACES, whole: ['message.kontext'] },
            run: (out, given) => given.scenario === 'whole'
                                 ? whole(Anthropic, out, given)
                                 : loop(Anthropic, out, given),
        },
        {
            client, format: 'anthropic', how: 'messages.stream()',
            places: { text: PLACES },
            not: ['whole'],
            run: (out, given) => helper(Anthropic, out, given),
        },
    ];
});
