// Copyright (C) the ngx_http_kontext_module authors
//
// Chats that are known in advance: the same seed gives the backend and the
// client the same answer, so that each byte can be compared.

const WORDS = ['Great', ' plan', '!', ' A', ' list', ':\n\n', '1.', ' **Tyres**', ' – 2 × 35 mm', ' "multi-tool"',
               ' C:\\tools', ' 🚲', ' 自転車', ' data: [DONE]', ' <script>', '\u0007', ' שלום', '\u2028',
               ' end.',
               ' kontext', ' {}', ' 👨‍👩‍👧‍👦'];

export function random(seed) {
    let a = seed >>> 0;

    const next = () => {
        a = (a + 0x6d2b79f5) >>> 0;

        let t = Math.imul(a ^ (a >>> 15), a | 1);

        t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
        return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };

    return { next, below: n => Math.floor(next() * n), pick: list => list[Math.floor(next() * list.length)] };
}

const sse = data => `data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`;
const named = data => `event: ${data.type}\n${sse(data)}`;
const line = data => `${JSON.stringify(data)}\n`;

const chunk = (delta, finish) => sse({ id: 'c-1', object: 'chat.completion.chunk', model: 'm',
                                       choices: [{ index: 0, delta, finish_reason: finish }] });

const gemini = (text, more) => sse({ candidates: [{ content: { parts: [{ text }], role: 'model' }, index: 0, ...more }],
                                     usageMetadata: { promptTokenCount: 148, totalTokenCount: 224 } });

const messages = text => [{ role: 'user', content: text }];

// frames: of an answer of these texts; finish: which of them may take the ad

export const FORMATS = {
    openai: {
        uri: '/v1/chat/completions', type: 'text/event-stream',
        request: text => ({ model: 'm', stream: true, messages: messages(text) }),
        frames: texts => [chunk({ role: 'assistant', content: '' }, null),
                          ...texts.map(t => chunk({ content: t }, null)), chunk({}, 'stop'), sse('[DONE]')],
        finish: n => n - 2,
    },
    responses: {
        uri: '/v1/responses', type: 'text/event-stream',
        request: text => ({ model: 'm', stream: true, input: text }),
        frames: texts => [
            named({ type: 'response.created', response: { id: 'resp_1', status: 'in_progress', output: [] } }),
            ...texts.map(delta => named({ type: 'response.output_text.delta', item_id: 'msg_1', output_index: 0,
                                          content_index: 0, delta })),
            named({ type: 'response.completed', response: { id: 'resp_1', status: 'completed', output: [
                { id: 'msg_1', type: 'message', status: 'completed', role: 'assistant',
                  content: [{ type: 'output_text', text: texts.join('') }] }] } }),
        ],
        finish: n => n - 1,
    },
    anthropic: {
        uri: '/v1/messages', type: 'text/event-stream',
        request: text => ({ model: 'm', stream: true, max_tokens: 99, messages: messages(text) }),
        frames: texts => [
            named({ type: 'message_start', message: { id: 'msg_1', type: 'message', role: 'assistant', content: [] } }),
            named({ type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } }),
            ...texts.map(text => named({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } })),
            named({ type: 'content_block_stop', index: 0 }),
            named({ type: 'message_delta', delta: { stop_reason: 'end_turn' }, usage: { output_tokens: 9 } }),
            named({ type: 'message_stop' }),
        ],
        finish: n => n - 2,
    },
    ollama: {
        uri: '/api/chat', type: 'application/x-ndjson',
        request: text => ({ model: 'm', messages: messages(text) }),
        frames: texts => [
            ...texts.map(content => line({ model: 'm', message: { role: 'assistant', content }, done: false })),
            line({ model: 'm', message: { role: 'assistant', content: '' }, done: true, done_reason: 'stop' }),
        ],
        finish: n => n - 1,
    },
    gemini: {
        uri: '/v1beta/models/g:streamGenerateContent', type: 'text/event-stream',
        request: text => ({ contents: [{ role: 'user', parts: [{ text }] }] }),
        frames: texts => [...texts.map(t => gemini(t, {})), gemini('.', { finishReason: 'STOP' })],
        finish: n => n - 1,
    },
    ui: {
        uri: '/ui/api/chat', type: 'text/event-stream',
        request: text => ({ id: 'c', messages: [{ id: 'm', role: 'user', parts: [{ type: 'text', text }] }] }),
        frames: texts => [
            sse({ type: 'start', messageId: 'msg-1' }), sse({ type: 'text-start', id: 't' }),
            ...texts.map(delta => sse({ type: 'text-delta', id: 't', delta })),
            sse({ type: 'text-end', id: 't' }), sse({ type: 'finish', finishReason: 'stop' }), sse('[DONE]'),
        ],
        finish: n => n - 2,
    },
    whole: {
        uri: '/v1/chat/completions', type: 'application/json',
        request: text => ({ model: 'm', messages: messages(text) }),
        frames: texts => [JSON.stringify({ id: 'c-1', object: 'chat.completion', choices: [
            { index: 0, message: { role: 'assistant', content: texts.join('') }, finish_reason: 'stop' }] })],
        finish: () => 0,
    },
};

// and as text

FORMATS.text = { ...FORMATS.openai, uri: '/text/v1/chat/completions' };
FORMATS.textResponses = { ...FORMATS.responses, uri: '/text/v1/responses' };

// the answer to a seed: { frames, body, from, to } with the bytes where an ad may be

export function answer(format, seed) {
    const rnd = random(seed);
    const texts = Array.from({ length: 4 + rnd.below(24) }, () => rnd.pick(WORDS));
    const frames = FORMATS[format].frames(texts).map(f => Buffer.from(f));
    const finish = FORMATS[format].finish(frames.length);
    const from = frames.slice(0, finish).reduce((n, f) => n + f.length, 0);

    return { frames, body: Buffer.concat(frames), from, to: from + frames[finish].length };
}

// What is wrong with the bytes that came, or '' when they are the backend's with an ad at most; complete: is it all?

export function compare(expected, got, complete) {
    const { body, from, to } = expected;
    let prefix = 0;

    while (prefix < body.length && prefix < got.length && body[prefix] === got[prefix]) {
        prefix++;
    }

    if (got.length === prefix) {
        return !complete || prefix === body.length ? '' : `only ${prefix} of ${body.length} bytes`;
    }

    if (!complete) {
        const near = got.subarray(Math.max(0, prefix - 60), prefix + 900).toString('latin1');

        return prefix >= from && prefix <= to && /kontext|frame/.test(near) ? '' : `byte ${prefix} is another`;
    }

    let suffix = 0;

    while (suffix < body.length && suffix < got.length
           && body[body.length - 1 - suffix] === got[got.length - 1 - suffix]) {
        suffix++;
    }

    const more = got.length - body.length;

    if (prefix + suffix < body.length) {
        const ad = got.subarray(from, to + more).toString('latin1');
        const rest = withoutMembers(ad) ?? withoutMessage(ad);

        if (rest !== null && body.equals(Buffer.concat([got.subarray(0, from), Buffer.from(rest, 'latin1'),
                                                        got.subarray(to + more)]))) {
            return '';
        }

        return `bytes ${prefix} to ${body.length - suffix} are others`;
    }

    if (prefix < from || body.length - suffix > to) {
        return `an ad at byte ${prefix}, not within ${from} to ${to}`;
    }

    const ad = got.subarray(Math.max(0, body.length - suffix), prefix + more).toString();

    return onlyAd(ad) ? '' : `bytes that are no ad: ${ad}`;
}

function onlyAd(text) {
    return new Set(text.match(/\/api\/frame\/[0-9a-f-]{36}/g)).size === 1;
}

// an ad of two parts, which Anthropic's clients need, is taken out part by part

const MEMBER = /"kontext":\{"messageId":"[\w-]+","ads":\[\{[^{}]*\}\]\}/;

function withoutMembers(text) {
    const parts = text.match(new RegExp(MEMBER, 'g')) ?? [];

    if (parts.length !== 2 || parts[0] !== parts[1]) {
        return null;
    }

    return text.replace(new RegExp(`${MEMBER.source},|,${MEMBER.source}`, 'g'), '');
}

// and so is a text ad of the Responses API: the six events of a message, and the message in the response's output

const EVENT = new RegExp('(?:event: [\\w.]+\\s+)?data: \\{"type":"response\\.(?:output_item|content_part|output_text)\\.'
                         + '[^\\r\\n]*"msg_kontext\\w*"[^\\r\\n]*\\s+', 'g');

function withoutMessage(text) {
    const events = text.match(EVENT) ?? [];
    const joined = events.join('');
    const message = /"item":(\{.*"role":"assistant"\})/.exec(events.at(-1))?.[1];
    const parts = text.split(joined);

    if (events.length !== 6 || parts.length !== 2 || !onlyAd(joined)) {
        return null;
    }

    const around = parts[1].split(message);

    if (around.length !== 2) {
        return null;
    }

    return `${parts[0]}${around[0].replace(/,$/, '')}${around[1]}`;
}

export function hasAd(expected, got) {
    return got.length > expected.body.length;
}
