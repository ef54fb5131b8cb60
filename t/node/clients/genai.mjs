// Copyright (C) the ngx_http_kontext_module authors

import { GoogleGenAI as GenAI3 } from '@google/genai';
import { GoogleGenAI as GenAI2 } from 'genai-2';
import { GoogleGenAI as GenAI1 } from 'genai-1';

import { QUESTION, SCHEMA, TOOLS, see, version } from './common.mjs';


function connect(GenAI, base) {
    return new GenAI({ apiKey: 'test', httpOptions: { baseUrl: base } });
}


function config(scenario) {
    return {
        ...(scenario === 'tools' && {
            tools: [{
                functionDeclarations: TOOLS.map(({ parameters, ...tool }) => ({
                    ...tool, parametersJsonSchema: parameters,
                })),
            }],
        }),

        ...(scenario === 'json' && {
            responseMimeType: 'application/json',
            responseJsonSchema: SCHEMA,
        }),
    };
}


const PLACE = 'chunk.usageMetadata.kontext';

function read(out, chunk) {
    const [candidate] = chunk.candidates ?? [];
    const { kontext, ...usage } = chunk.usageMetadata ?? {};

    for (const part of candidate?.content?.parts ?? []) {
        if (part.text && !part.thought) {
            out.text += part.text;
        }
    }

    out.tools.push(...(chunk.functionCalls ?? []));
    out.finish = candidate?.finishReason;
    out.usage = usage;
    see(out, PLACE, kontext);
}


async function models(GenAI, out, { base, scenario }) {
    const { models } = connect(GenAI, base);
    const params = { model: 'gemini-2.5-flash', contents: QUESTION,
                     config: config(scenario) };

    if (scenario === 'whole') {
        read(out, await models.generateContent(params));
        return;
    }

    for await (const chunk of await models.generateContentStream(params)) {
        read(out, chunk);
    }
}


// a chat keeps a history, which the next question takes along

async function chat(GenAI, out, { base, scenario }) {
    const chat = connect(GenAI, base).chats.create({
        model: 'gemini-2.5-flash', config: config(scenario),
    });

    if (scenario === 'whole') {
        read(out, await chat.sendMessage({ message: QUESTION }));

    } else {
        const stream = await chat.sendMessageStream({ message: QUESTION });

        for await (const chunk of stream) {
            read(out, chunk);
        }
    }

    out.finalText = chat.getHistory()
        .filter(turn => turn.role === 'model')
        .flatMap(turn => turn.parts ?? [])
        .filter(part => !part.thought)
        .map(part => part.text ?? '')
        .join('');
}


export const rows = [
    ['@google/genai', GenAI3],
    ['genai-2', GenAI2],
    ['genai-1', GenAI1],
].flatMap(([directory, GenAI]) => {
    const client = `@google/genai ${version(directory)}`;
    const places = { text: [PLACE], whole: [PLACE] };

    return [
        {
            client, format: 'gemini', how: 'models.generateContentStream()',
            places,
            run: (out, given) => models(GenAI, out, given),
        },
        {
            client, format: 'gemini', how: 'chats.sendMessageStream()',
            places,
            run: (out, given) => chat(GenAI, out, given),
        },
    ];
});
