// Copyright (C) the ngx_http_kontext_module authors
//
// The AI SDK on the publisher's server, with the providers of its generation.

import * as ai7 from 'ai';
import { createAnthropic as anthropic7 } from '@ai-sdk/anthropic';
import { createGoogleGenerativeAI as google7 } from '@ai-sdk/google';
import { createOpenAI as openai7 } from '@ai-sdk/openai';
import { createOpenAICompatible as compatible7 }
    from '@ai-sdk/openai-compatible';
import { createOllama as ollama7 } from 'ollama-ai-provider-v2';

import * as ai6 from 'ai-6';
import { createAnthropic as anthropic6 } from 'ai-6-anthropic';
import { createGoogleGenerativeAI as google6 } from 'ai-6-google';
import { createOpenAI as openai6 } from 'ai-6-openai';
import { createOpenAICompatible as compatible6 } from 'ai-6-openai-compatible';
import { createOllama as ollama6 } from 'ai-6-ollama';

import * as ai5 from 'ai-5';
import { createAnthropic as anthropic5 } from 'ai-5-anthropic';
import { createGoogleGenerativeAI as google5 } from 'ai-5-google';
import { createOpenAI as openai5 } from 'ai-5-openai';
import { createOpenAICompatible as compatible5 } from 'ai-5-openai-compatible';
import { createOllama as ollama5 } from 'ai-5-ollama';

import { QUESTION, SCHEMA, TOOLS, see, version } from './common.mjs';


// where a frame, or a whole answer, may have the ad

function seeIn(out, where, value) {
    see(out, `${where}.kontext`, value?.kontext);
    see(out, `${where}.delta.kontext`, value?.delta?.kontext);
    see(out, `${where}.response.kontext`, value?.response?.kontext);
    see(out, `${where}.usageMetadata.kontext`, value?.usageMetadata?.kontext);
}


function seeMetadata(out, result) {
    see(out, 'providerMetadata', result.providerMetadata?.kontext);
}


// openai-compatible has a place for what an API has of its own

const metadataExtractor = {
    extractMetadata: async ({ parsedBody: { kontext } }) =>
        kontext && { kontext },

    createStreamExtractor: () => {
        let ad;

        return {
            processChunk: chunk => { ad ??= chunk?.kontext; },
            buildMetadata: () => ad && { kontext: ad },
        };
    },
};


// numbers only: some generations add what came as it came

function numbers(usage) {
    const { raw, ...rest } = usage ?? {};

    return rest;
}


function call(ai, scenario, model) {
    return {
        model,
        prompt: QUESTION,
        maxRetries: 0,

        ...(scenario === 'tools' && {
            tools: Object.fromEntries(TOOLS.map(tool => [
                tool.name,
                ai.tool({
                    description: tool.description,
                    inputSchema: ai.jsonSchema(tool.parameters),
                }),
            ])),
        }),

        ...(scenario === 'json' && {
            [ai === ai5 ? 'experimental_output' : 'output']:
                ai.Output.object({ schema: ai.jsonSchema(SCHEMA) }),
        }),
    };
}


// the providers of Gemini and Ollama make up ids where there are none

function toolCall({ toolCallId, toolName, input }, ids) {
    return { ...(ids && { toolCallId }), toolName, input };
}


async function stream({ ai, model, ids, raw }, out, { base, scenario }) {
    const result = ai.streamText({
        ...call(ai, scenario, model(base)),
        ...(ai === ai7 ? { include: { rawChunks: true } }
                       : { includeRawChunks: true }),
        onError: () => {},
    });

    for await (const part of result.fullStream) {
        switch (part.type) {

        case 'text-delta':
            out.text += part.text;
            break;

        case 'tool-call':
            out.tools.push(toolCall(part, ids));
            break;

        case 'raw':
            if (raw) {
                seeIn(out, 'rawValue', part.rawValue);
            }

            break;

        case 'finish-step':
            see(out, 'usage.raw.kontext', part.usage.raw?.kontext);
            seeMetadata(out, part);
            break;

        case 'finish':
            out.finish = part.finishReason;
            out.usage = numbers(part.totalUsage ?? part.usage);
            break;

        case 'error':
            throw part.error;
        }
    }

    out.finalText = await result.text;

    if (scenario === 'json') {
        out.parsed = ai === ai5 ? JSON.parse(out.text) : await result.output;
    }
}


async function whole({ ai, model }, out, { base, scenario }) {
    const result = await ai.generateText({
        ...call(ai, scenario, model(base)),
        ...(ai === ai7 && { include: { responseBody: true } }),
    });

    out.text = result.text;
    out.finish = result.finishReason;
    out.usage = numbers(result.totalUsage ?? result.usage);
    see(out, 'usage.raw.kontext', result.usage.raw?.kontext);
    seeMetadata(out, result);
    seeIn(out, 'response.body', result.response.body);
}


const FORMATS = [
    {
        format: 'openai_chat', provider: 'openai-compatible',
        package: '@ai-sdk/openai-compatible',
        places: () => ({
            text: ['rawValue.kontext', 'providerMetadata'],
            whole: ['providerMetadata', 'response.body.kontext'],
        }),
        model: (create, base) => create({
            name: 'test', baseURL: `${base}/v1`, apiKey: 'sk-test',
            includeUsage: true, supportsStructuredOutputs: true,
            metadataExtractor,
        })('gpt-5.1'),
    },
    {
        format: 'openai_chat', provider: 'openai', package: '@ai-sdk/openai',
        how: ' chat()',
        places: () => ({ text: ['rawValue.kontext'],
                         whole: ['response.body.kontext'] }),
        model: (create, base) => create({
            baseURL: `${base}/v1`, apiKey: 'sk-test',
        }).chat('gpt-5.1'),
    },
    {
        format: 'openai_responses', provider: 'openai',
        package: '@ai-sdk/openai', how: ' responses()',
        places: () => ({ text: ['rawValue.response.kontext'],
                         whole: ['response.body.kontext'] }),
        model: (create, base) => create({
            baseURL: `${base}/v1`, apiKey: 'sk-test',
        }).responses('gpt-5.1'),
    },
    {
        format: 'anthropic', provider: 'anthropic',
        package: '@ai-sdk/anthropic',
        places: () => ({ text: ['rawValue.kontext', 'rawValue.delta.kontext'],
                         whole: ['response.body.kontext'] }),
        model: (create, base) => create({
            baseURL: `${base}/v1`, apiKey: 'sk-ant-test',
        })('claude-opus-4-6'),
    },
    {
        format: 'gemini', provider: 'google', package: '@ai-sdk/google',
        places: ai => ({
            text: ['rawValue.usageMetadata.kontext',
                   ...(ai === ai5 ? [] : ['usage.raw.kontext'])],
            whole: [...(ai === ai5 ? [] : ['usage.raw.kontext']),
                    'response.body.usageMetadata.kontext'],
        }),
        ids: false,
        model: (create, base) => create({
            baseURL: `${base}/v1beta`, apiKey: 'test',
        })('gemini-2.5-flash'),
    },
    {
        format: 'ollama', provider: 'ollama',
        package: 'ollama-ai-provider-v2',
        places: () => ({ whole: ['response.body.kontext'] }),
        ids: false,

        // a raw chunk of it is what happens to come in one piece, or less

        raw: false,
        expect: { member: 'ok' },
        model: (create, base) => create({
            baseURL: `${base}/api`,
        })('qwen3:8b'),
    },
];


// the older generations have their packages under names of their own

const GENERATIONS = [
    {
        ai: ai7, directory: 'ai', of: one => one.package,
        create: { 'openai-compatible': compatible7, openai: openai7,
                  anthropic: anthropic7, google: google7, ollama: ollama7 },
    },
    {
        ai: ai6, directory: 'ai-6', of: one => `ai-6-${one.provider}`,
        create: { 'openai-compatible': compatible6, openai: openai6,
                  anthropic: anthropic6, google: google6, ollama: ollama6 },
    },
    {
        ai: ai5, directory: 'ai-5', of: one => `ai-5-${one.provider}`,
        create: { 'openai-compatible': compatible5, openai: openai5,
                  anthropic: anthropic5, google: google5, ollama: ollama5 },
    },
];


export const models = GENERATIONS.flatMap(({ ai, directory, of, create }) =>
    FORMATS.map(one => ({
        name: `ai ${version(directory)} ${one.package}${one.how ?? ''}`,
        ai,
        model: base => one.model(create[one.provider], base),
        row: {
            client: `ai ${version(directory)}`,
            format: one.format,
            how: `${one.package} ${version(of(one))}${one.how ?? ''}`,
            expect: one.expect,
            places: one.places(ai),
        },
        ids: one.ids ?? true,
        raw: one.raw ?? true,
    })));


export const rows = models.map(one => ({
    ...one.row,
    run: (out, given) => given.scenario === 'whole'
                         ? whole(one, out, given)
                         : stream(one, out, given),
}));
