// Copyright (C) the ngx_http_kontext_module authors
//
// Clients send an answer back with the next question.  The model must not see
// the ad that was in it: the backend gets the request that it would have got
// without the module.

import assert from 'node:assert/strict';

import Anthropic from '@anthropic-ai/sdk';
import { GoogleGenAI } from '@google/genai';
import { AIMessage, HumanMessage } from '@langchain/core/messages';
import { ChatAnthropic } from '@langchain/anthropic';
import { ChatOpenAI } from '@langchain/openai';
import { Ollama } from 'ollama/browser';
import OpenAI from 'openai';

import { models } from './clients/ai-sdk.mjs';
import { chats, startChat } from './clients/ai-sdk-ui.mjs';
import { QUESTION } from './clients/common.mjs';
import { newRun, requestOf } from './matrix.mjs';

const AGAIN = 'And for the rain?';


async function openaiChat(base) {
    const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'sk-test' });
    const messages = [];

    for (const content of [QUESTION, AGAIN]) {
        messages.push({ role: 'user', content });

        const stream = openai.chat.completions.stream({ model: 'gpt-5.1',
                                                        messages });

        messages.push((await stream.finalChatCompletion()).choices[0].message);
    }
}


async function openaiResponses(base) {
    const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'sk-test' });
    const input = [];

    for (const content of [QUESTION, AGAIN]) {
        input.push({ role: 'user', content });

        const stream = openai.responses.stream({ model: 'gpt-5.1', input });

        input.push(...(await stream.finalResponse()).output);
    }
}


async function anthropic(base) {
    const client = new Anthropic({ baseURL: base, apiKey: 'sk-ant-test' });
    const messages = [];

    for (const content of [QUESTION, AGAIN]) {
        messages.push({ role: 'user', content });

        const stream = client.messages.stream({
            model: 'claude-opus-4-6', max_tokens: 1024, messages,
        });
        const message = await stream.finalMessage();

        messages.push({ role: 'assistant', content: message.content });
    }
}


async function ollama(base) {
    const client = new Ollama({ host: base });
    const messages = [];

    for (const content of [QUESTION, AGAIN]) {
        messages.push({ role: 'user', content });

        const answer = { role: 'assistant', content: '' };

        for await (const part of await client.chat({
            model: 'qwen3:8b', messages, stream: true,
        })) {
            answer.content += part.message.content;
        }

        messages.push(answer);
    }
}


async function genai(base) {
    const chat = new GoogleGenAI({
        apiKey: 'test', httpOptions: { baseUrl: base },
    }).chats.create({ model: 'gemini-2.5-flash' });

    for (const message of [QUESTION, AGAIN]) {
        for await (const chunk of await chat.sendMessageStream({ message })) {
            assert.ok(chunk);
        }
    }
}


function aiSdk({ ai, model }) {
    return async base => {
        const messages = [];

        for (const content of [QUESTION, AGAIN]) {
            messages.push({ role: 'user', content });

            const result = ai.streamText({ model: model(base), messages });

            await result.consumeStream();
            messages.push(...(await result.response).messages);
        }
    };
}


function aiSdkUi(ai) {
    return async base => {
        const chat = startChat(ai, base);
        let id = 0;

        for (const text of [QUESTION, AGAIN]) {
            await chat.sendMessage({ id: `question-${++id}`, role: 'user',
                                     parts: [{ type: 'text', text }] });
        }
    };
}


function langchain(start) {
    return async base => {
        const messages = [];

        for (const content of [QUESTION, AGAIN]) {
            let all;

            messages.push(new HumanMessage(content));

            for await (const chunk of await start(base).stream(messages)) {
                all = all ? all.concat(chunk) : chunk;
            }

            messages.push(new AIMessage({ content: all.content }));
        }
    };
}


export const conversations = [
    { name: 'openai chat.completions', talk: openaiChat },
    { name: 'openai responses', talk: openaiResponses },
    { name: '@anthropic-ai/sdk', talk: anthropic },
    { name: 'ollama', talk: ollama },
    { name: '@google/genai chats', talk: genai },
    { name: '@langchain/openai', talk: langchain(base => new ChatOpenAI({
        model: 'gpt-5.1', apiKey: 'sk-test',
        configuration: { baseURL: `${base}/v1` },
    })) },
    { name: '@langchain/anthropic', talk: langchain(base => new ChatAnthropic({
        model: 'claude-opus-4-6', apiKey: 'sk-ant-test', anthropicApiUrl: base,
    })) },
    ...models.map(one => ({ name: one.name, talk: aiSdk(one) })),
    ...chats.map(({ name, ai }) => ({ name, talk: aiSdkUi(ai) })),
];


export async function nextTurn({ talk }, way, stack) {
    const requests = [];

    for (const one of ['plain', way]) {
        const word = newRun();

        await talk(`${stack[one]}/${word}/text`);
        requests.push(requestOf(stack, word));
    }

    assert.ok(requests[0].body.includes(AGAIN));
    assert.deepEqual(requests[1], requests[0]);
}
