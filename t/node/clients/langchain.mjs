// Copyright (C) the ngx_http_kontext_module authors

import { ChatAnthropic } from '@langchain/anthropic';
import { concat } from '@langchain/core/utils/stream';
import { ChatGoogleGenerativeAI } from '@langchain/google-genai';
import { ChatOllama } from '@langchain/ollama';
import { ChatOpenAI } from '@langchain/openai';

import { QUESTION, SCHEMA, TOOLS, see, version } from './common.mjs';


// tools as all of them take them

const tools = TOOLS.map(tool => ({ type: 'function', function: tool }));


function textOf(message) {
    return typeof message.content === 'string'
           ? message.content
           : message.content.filter(part => part.type === 'text')
                            .map(part => part.text)
                            .join('');
}


function read(out, message, { finish, ids }) {
    out.finish = message.response_metadata[finish];
    out.usage = message.usage_metadata;
    out.tools = (message.tool_calls ?? []).map(({ id, name, args }) => ({
        ...(ids && { id }), name, args,
    }));
}


async function run(out, { base, scenario }, how) {
    let model = how.model(base, scenario);

    if (scenario === 'tools') {
        model = model.bindTools(tools);
    }

    const options = scenario === 'json' ? how.json : {};

    if (scenario === 'whole') {
        const message = await model.invoke(QUESTION, options);

        out.text = textOf(message);
        read(out, message, how);
        see(out, how.place, how.ad(message));

        return;
    }

    let all;

    for await (const chunk of await model.stream(QUESTION, options)) {
        out.text += textOf(chunk);
        all = all ? concat(all, chunk) : chunk;
        see(out, how.place, how.ad(chunk));
    }

    out.finalText = textOf(all);
    read(out, all, how);
}


const clients = [
    {
        package: '@langchain/openai', format: 'openai_chat', how: '',
        finish: 'finish_reason', ids: true,
        model: base => new ChatOpenAI({
            model: 'gpt-5.1', apiKey: 'sk-test', maxRetries: 0,
            streamUsage: true, __includeRawResponse: true,
            configuration: { baseURL: `${base}/v1` },
        }),
        json: { response_format: { type: 'json_schema', json_schema: {
            name: 'trip', strict: true, schema: SCHEMA } } },
        place: 'additional_kwargs.__raw_response.kontext',
        ad: message => message.additional_kwargs.__raw_response?.kontext,
    },
    {
        package: '@langchain/openai', format: 'openai_responses',
        how: 'useResponsesApi', finish: 'status', ids: true,
        expect: { 'non-streamed': 'ok, shown' },
        model: base => new ChatOpenAI({
            model: 'gpt-5.1', apiKey: 'sk-test', maxRetries: 0,
            useResponsesApi: true,
            configuration: { baseURL: `${base}/v1` },
        }),
        json: { response_format: { type: 'json_schema', json_schema: {
            name: 'trip', strict: true, schema: SCHEMA } } },
        place: 'response_metadata.kontext',
        ad: message => message.response_metadata.kontext,
    },
    {
        package: '@langchain/anthropic', format: 'anthropic', how: '',
        finish: 'stop_reason', ids: true,
        model: base => new ChatAnthropic({
            model: 'claude-opus-4-6', apiKey: 'sk-ant-test', maxRetries: 0,
            anthropicApiUrl: base,
        }),
        json: { outputConfig: { format: { type: 'json_schema',
                                          schema: SCHEMA } } },
        place: 'additional_kwargs.kontext',
        ad: message => message.additional_kwargs.kontext,
    },
    {
        package: '@langchain/ollama', format: 'ollama', how: '',
        finish: 'done_reason', ids: false,
        model: (base, scenario) => new ChatOllama({
            model: 'qwen3:8b', baseUrl: base, maxRetries: 0,
            ...(scenario === 'json' && { format: SCHEMA }),
        }),
        place: 'response_metadata.kontext',
        ad: message => message.response_metadata.kontext,
    },
    {
        package: '@langchain/google-genai', format: 'gemini', how: '',
        finish: 'finishReason', ids: false,
        expect: { member: 'ok', 'non-streamed': 'ok, shown' },
        model: (base, scenario) => new ChatGoogleGenerativeAI({
            model: 'gemini-2.5-flash', apiKey: 'test', maxRetries: 0,
            baseUrl: base, json: scenario === 'json',
        }),
        place: 'response_metadata.usageMetadata.kontext',
        ad: message => message.response_metadata.usageMetadata?.kontext,
    },
];


export const rows = clients.map(how => ({
    client: `${how.package} ${version(how.package)}`,
    format: how.format,
    how: how.how,
    places: { text: [how.place], whole: [how.place] },
    expect: how.expect,
    run: (out, given) => run(out, given, how),
}));
