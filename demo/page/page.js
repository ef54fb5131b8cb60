// Copyright (C) the ngx_http_kontext_module authors
//
// A chat page: it streams answers of the OpenAI format, and shows the ads that
// nginx has put into them with kontext.js.

import { createKontext } from './kontext.js';
import { render } from './markdown.js';
import { Panel } from './panel.js';

const API = '/kontext';

const byId = id => document.getElementById(id);
const scroll = byId('scroll');
const log = byId('log');
const input = byId('text');
const send = byId('send');
const root = document.documentElement;

const { frameOrigin } = await (await fetch('/config.json')).json();
const userId = `user-${crypto.randomUUID()}`;

let chat;


function add(parent, name, className, text = '') {
    const made = document.createElement(name);

    made.className = className;
    made.textContent = text;
    parent.append(made);

    return made;
}


// what is written stays in sight, unless the reader has scrolled up

let pinned = true;

function follow() {
    if (pinned) {
        scroll.scrollTop = scroll.scrollHeight;
    }
}

scroll.addEventListener('scroll', () => {
    pinned = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;
}, { passive: true });


// the data of each event of a stream, as it comes

async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream())
                                .getReader();
    let rest = '';

    for (;;) {
        const { value, done } = await reader.read();

        if (done) {
            return;
        }

        const parts = (rest + value).split(/\r?\n\r?\n/);

        rest = parts.pop();

        for (const part of parts) {
            const line = /^data: ?(.*)$/m.exec(part);

            if (line) {
                yield line[1];
            }
        }
    }
}


class Chat {
    constructor() {
        const conversationId = `chat-${crypto.randomUUID()}`;

        this.messages = [];
        this.headers = { 'Content-Type': 'application/json',
                         'X-User-Id': userId,
                         'X-Conversation-Id': conversationId };
        this.kontext = createKontext({
            frameOrigin, api: API, userId, conversationId,
            theme: isDark() ? 'dark' : 'light',
            onEvent: ({ name }) => name === 'ad.height' && follow(),
        });
        this.panel = new Panel({ userId, conversationId, api: API });
        this.session = this.kontext.session().then(
            id => id && this.panel.listen(id));

        log.replaceChildren();
        byId('welcome').hidden = false;
    }

    async ask(text) {
        byId('welcome').hidden = true;
        await this.session;

        this.messages.push({ role: 'user', content: text });
        this.stop = new AbortController();

        const { panel, messages } = this;

        add(log, 'div', 'message user', text);

        const message = add(log, 'article', 'message');
        const answer = add(message, 'div', 'answer');
        const turn = panel.begin(text);
        let content = '';
        let waiting;

        // not more often than it can be seen

        const draw = () => {
            waiting = undefined;
            answer.replaceChildren(...render(content));
            follow();
        };

        message.ariaBusy = 'true';
        pinned = true;
        follow();

        try {
            const response = await fetch('/v1/chat/completions', {
                method: 'POST',
                headers: { ...this.headers, 'X-Turn': turn.id },
                signal: this.stop.signal,
                body: JSON.stringify({ model: 'demo-1', stream: true,
                                       messages }),
            });

            if (!response.ok) {
                throw new Error(`The answer has status ${response.status}.`);
            }

            for await (const data of events(response)) {
                if (data === '[DONE]') {
                    break;
                }

                const chunk = JSON.parse(data);
                const choice = chunk.choices[0];

                if (choice?.delta.content) {
                    content += choice.delta.content;
                    waiting ??= requestAnimationFrame(draw);
                    turn.mark('last');
                }

                if (choice?.finish_reason) {
                    turn.mark('finish');
                }

                this.kontext.show(message, chunk, { messages });
            }

        } catch (error) {
            if (error.name !== 'AbortError') {
                add(message, 'div', 'failed', error.message);
            }
        }

        cancelAnimationFrame(waiting);
        draw();

        if (content === '') {
            answer.remove();
        }

        messages.push({ role: 'assistant', content });
        message.ariaBusy = 'false';
        panel.finish(turn);
    }

    // the session ends with the chat

    async close() {
        this.stop?.abort();
        this.kontext.close();
        this.panel.close();

        const id = await this.kontext.session();

        if (id) {
            await fetch(`${API}/sessions/${id}`, { method: 'DELETE' });
        }
    }
}


async function ask(text) {
    if (text === '' || send.dataset.busy) {
        return;
    }

    const asked = chat;

    input.value = '';
    send.dataset.busy = 'yes';
    send.textContent = 'Stop';

    try {
        await asked.ask(text);

    } finally {
        delete send.dataset.busy;
        send.textContent = 'Send';
    }
}


byId('form').addEventListener('submit', event => {
    event.preventDefault();

    if (send.dataset.busy) {
        chat.stop?.abort();

    } else {
        ask(input.value.trim());
        input.focus();
    }
});

input.addEventListener('keydown', event => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();

        if (!send.dataset.busy) {
            ask(input.value.trim());
        }
    }
});

byId('ideas').addEventListener('click', ({ target }) => {
    if (target.matches('button')) {
        ask(target.textContent);
        input.focus();
    }
});

byId('new').addEventListener('click', () => {
    chat.close();
    chat = new Chat();
    input.focus();
});


// light and dark, as the system has it until somebody chooses

const dark = matchMedia('(prefers-color-scheme: dark)');

function isDark() {
    return root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches;
}

function applyTheme() {
    byId('theme').textContent = isDark() ? 'Light' : 'Dark';
    chat.kontext.setTheme(isDark() ? 'dark' : 'light');
}

byId('theme').addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    applyTheme();
});

dark.addEventListener('change', applyTheme);


// the panel, where the window is narrow

byId('more').addEventListener('click', () => {
    const open = document.body.classList.toggle('panel');

    byId('more').ariaExpanded = String(open);
    byId('more').textContent = open ? 'Back to the chat' : 'What happened';
});

chat = new Chat();
applyTheme();
input.focus();
