// Copyright (C) the ngx_http_kontext_module authors

import OpenAI7 from 'openai';
import * as parser7 from 'openai/lib/parser.mjs';
import OpenAI6 from 'openai-6';
import * as parser6 from 'openai-6/lib/parser.mjs';
import OpenAI5 from 'openai-5';
import * as parser5 from 'openai-5/lib/parser.mjs';
import OpenAI4 from 'openai-4';
import * as parser4 from 'openai-4/lib/parser.mjs';

import { QUESTION, SCHEMA, TOOLS, see, version } from './common.mjs';


function connect(OpenAI, base) {
    return new OpenAI({ baseURL: `${base}/v1`, apiKey: 'sk-test',
                        maxRetries: 0 });
}


// Chat Completions

function chatParams(scenario, parser) {
    const params = {
        model: 'gpt-5.1',
        messages: [{ role: 'user', content: QUESTION }],
    };

    if (scenario === 'tools') {
        params.tools = TOOLS.map(tool => ({ type: 'function',
                                            function: tool }));
    }

    // what zodResponseFormat() makes of a schema

    if (scenario === 'json') {
        params.response_format = parser.makeParseableResponseFormat({
            type: 'json_schema',
            json_schema: { name: 'trip', strict: true, schema: SCHEMA },
        }, JSON.parse);
    }

    return params;
}


async function chatLoop(OpenAI, parser, out, { base, scenario }) {
    const stream = await connect(OpenAI, base).chat.completions.create({
        ...chatParams(scenario, parser),
        stream: true,
        stream_options: { include_usage: true },
    });

    for await (const chunk of stream) {
        const [choice] = chunk.choices;

        out.text += choice?.delta?.content ?? '';
        out.finish ??= choice?.finish_reason ?? undefined;
        out.usage ??= chunk.usage ?? undefined;

        for (const { index, id, function: { name, arguments: text } }
             of choice?.delta?.tool_calls ?? [])
        {
            out.tools[index] ??= { id, name, arguments: '' };
            out.tools[index].arguments += text ?? '';
        }

        see(out, 'chunk.kontext', chunk.kontext);
    }
}


async function chatHelper(OpenAI, parser, out, { base, scenario }) {
    const { chat, beta } = connect(OpenAI, base);
    const helper = chat.completions.stream ? chat : beta.chat;

    const stream = helper.completions.stream({
        ...chatParams(scenario, parser),
        stream_options: { include_usage: true },
    });

    stream.on('content', delta => { out.text += delta; });
    stream.on('chunk', chunk => see(out, 'chunk.kontext', chunk.kontext));

    const completion = await stream.finalChatCompletion();
    const [choice] = completion.choices;

    out.finalText = choice.message.content ?? '';
    out.finish = choice.finish_reason;
    out.usage = completion.usage;
    out.tools = choice.message.tool_calls ?? [];
    out.parsed = choice.message.parsed;
    see(out, 'finalChatCompletion().kontext', completion.kontext);
}


async function chatWhole(OpenAI, out, { base, scenario }) {
    const completion = await connect(OpenAI, base).chat.completions.create(
        chatParams(scenario));
    const [choice] = completion.choices;

    out.text = choice.message.content;
    out.finish = choice.finish_reason;
    out.usage = completion.usage;
    see(out, 'completion.kontext', completion.kontext);
}


// Responses

function responsesParams(scenario, parser) {
    const params = { model: 'gpt-5.1', input: QUESTION };

    if (scenario === 'tools') {
        params.tools = TOOLS.map(tool => ({ type: 'function', strict: true,
                                            ...tool }));
    }

    if (scenario === 'json') {
        params.text = {
            format: parser.makeParseableTextFormat({
                type: 'json_schema', name: 'trip', strict: true,
                schema: SCHEMA,
            }, JSON.parse),
        };
    }

    return params;
}


function readResponse(out, response) {
    out.finish = [response.status, response.incomplete_details,
                  response.error];
    out.usage = response.usage;
    out.tools = response.output.filter(item => item.type === 'function_call');
    out.finalText = response.output
        .filter(item => item.type === 'message')
        .flatMap(item => item.content)
        .map(part => part.text)
        .join('');
}


async function responsesLoop(OpenAI, parser, out, { base, scenario }) {
    const stream = await connect(OpenAI, base).responses.create({
        ...responsesParams(scenario, parser), stream: true,
    });

    for await (const event of stream) {
        if (event.type === 'response.output_text.delta') {
            out.text += event.delta;

        } else if (/^response\.(completed|incomplete|failed)$/.test(event.type))
        {
            readResponse(out, event.response);
            see(out, 'event.response.kontext', event.response.kontext);
        }
    }
}


async function responsesHelper(OpenAI, parser, out, { base, scenario }) {
    const stream = connect(OpenAI, base).responses.stream(
        responsesParams(scenario, parser));

    stream.on('response.output_text.delta', event => {
        out.text += event.delta;
    });

    const response = await stream.finalResponse();

    readResponse(out, response);
    out.parsed = response.output_parsed;
    see(out, 'finalResponse().kontext', response.kontext);
}


async function responsesWhole(OpenAI, out, { base, scenario }) {
    const response = await connect(OpenAI, base).responses.create(
        responsesParams(scenario));

    readResponse(out, response);
    out.text = response.output_text;
    see(out, 'response.kontext', response.kontext);
}


const clients = [
    ['openai', OpenAI7, parser7],
    ['openai-6', OpenAI6, parser6],
    ['openai-5', OpenAI5, parser5],
    ['openai-4', OpenAI4, parser4],
];


export const rows = clients.flatMap(([directory, OpenAI, parser]) => {
    const client = `openai ${version(directory)}`;

    const row = (format, how, places, stream, whole) => ({
        client, format, how, places,
        run: (out, given) => given.scenario === 'whole'
                             ? whole(OpenAI, out, given)
                             : stream(OpenAI, parser, out, given),
        ...(whole ? {} : { not: ['whole'] }),
    });

    return [
        row('openai_chat', 'chat.completions.create()',
            { text: ['chunk.kontext'], whole: ['completion.kontext'] },
            chatLoop, chatWhole),
        row('openai_chat', 'chat.completions.stream()',
            { text: ['chunk.kontext', 'finalChatCompletion().kontext'] },
            chatHelper),
        row('openai_responses', 'responses.create()',
            { text: ['event.response.kontext'], whole: ['response.kontext'] },
            responsesLoop, responsesWhole),
        row('openai_responses', 'responses.stream()',
            { text: ['finalResponse().kontext'] },
            responsesHelper),
    ];
});
