// Copyright (C) the ngx_http_kontext_module authors
//
// The AI SDK in the browser: what useChat() is made of.

import * as ai7 from 'ai';
import * as ai6 from 'ai-6';
import * as ai5 from 'ai-5';

import { QUESTION, see, version } from './common.mjs';


function transport(ai, base) {
    return new ai.DefaultChatTransport({ api: `${base}/ui/api/chat` });
}


function question() {
    return { id: 'question-1', role: 'user',
             parts: [{ type: 'text', text: QUESTION }] };
}


function readMessage(out, message) {
    const kind = part => part.type === 'dynamic-tool'
                         || part.type.startsWith('tool-');

    out.text = message.parts
        .filter(part => part.type === 'text')
        .map(part => part.text)
        .join('');
    out.tools = message.parts.filter(kind);
    out.others = message.parts
        .filter(part => part.type !== 'text' && !kind(part));
    out.usage = message.metadata;
    out.id = message.id;
}


async function read(ai, out, { base }) {
    const stream = await transport(ai, base).sendMessages({
        trigger: 'submit-message',
        chatId: 'chat-1',
        messageId: undefined,
        messages: [question()],
        abortSignal: undefined,
    });

    for await (const message of ai.readUIMessageStream({
        stream, terminateOnError: true,
    })) {
        readMessage(out, message);
    }
}


// a state as the ones of React, Vue and Svelte

class State {
    constructor() {
        this.status = 'ready';
        this.error = undefined;
        this.messages = [];
    }

    pushMessage(message) {
        this.messages = [...this.messages, message];
    }

    popMessage() {
        this.messages = this.messages.slice(0, -1);
    }

    replaceMessage(index, message) {
        this.messages = this.messages.with(index, message);
    }

    snapshot(value) {
        return structuredClone(value);
    }
}


export function startChat(ai, base, more) {
    class Chat extends ai.AbstractChat {
        constructor(init) {
            super({ ...init, state: new State() });
        }
    }

    return new Chat({ id: 'chat-1', transport: transport(ai, base), ...more });
}


const PLACE = 'onData';

async function chat(ai, out, { base }) {
    let error;

    const chat = startChat(ai, base, {
        onData: part => {
            if (part.type === 'data-kontext') {
                see(out, PLACE, part.data);
            }
        },
        onFinish: ({ message, ...rest }) => {
            const { isAbort, isError, isDisconnect, finishReason } = rest;

            out.finish = { isAbort, isError, isDisconnect, finishReason };
        },
        onError: one => { error = one; },
    });

    await chat.sendMessage(question());

    readMessage(out, chat.lastMessage);
    out.status = chat.status;

    if (error) {
        throw error;
    }
}


const generations = [
    [ai7, 'ai'],
    [ai6, 'ai-6'],
    [ai5, 'ai-5'],
];


export const chats = generations.map(([ai, directory]) => ({
    name: `ai ${version(directory)} useChat`, ai,
}));


export const rows = generations.flatMap(([ai, directory]) => {
    const client = `ai ${version(directory)}`;

    return [
        {
            client, format: 'ai_sdk_ui', how: 'readUIMessageStream()',
            not: ['json', 'whole'],
            expect: { member: 'ok', tools: 'ok, shown' },
            run: (out, given) => read(ai, out, given),
        },
        {
            client, format: 'ai_sdk_ui', how: 'AbstractChat (useChat)',
            not: ['json', 'whole'],
            places: { text: [PLACE], tools: [PLACE] },
            expect: { tools: 'read, shown' },
            run: (out, given) => chat(ai, out, given),
        },
    ];
});
