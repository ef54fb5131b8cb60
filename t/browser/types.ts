// Copyright (C) the ngx_http_kontext_module authors
//
// Uses kontext.js as a page in TypeScript does; only checked, never run.

import { createKontext, kontextOf } from '../../js/kontext.js';
import type { Kontext, KontextAd, KontextEvent, KontextMember }
    from '../../js/kontext.js';

const kontext: Kontext = createKontext({
    frameOrigin: 'https://ads.example.com',
    api: '/kontext',
    userId: 'u',
    conversationId: 'c',
    headers: { 'X-User-Id': 'u' },
    credentials: 'include',
    maxHeight: 400,
    onEvent(event: KontextEvent) {
        const name: 'ad.viewed' | string = event.name;
        const bid: string = event.payload.bidId;
        const height: number | undefined = event.payload.height;

        void [name, bid, height];
    },
    onClick: click => void click.url.startsWith('https:'),
});

// messages of the AI SDK and of OpenAI's client

type UIMessage = { id: string; role: 'system' | 'user' | 'assistant';
                   parts: Array<{ type: 'text'; text: string }
                                | { type: 'step-start' }> };
type Param = { role: 'user'; content: string | Array<{ type: 'text';
                                                       text: string }> };

declare const target: HTMLElement;
declare const chunk: unknown;
declare const ui: UIMessage[];
declare const params: readonly Param[];

const ad: KontextAd | null = kontext.show(target, chunk, { messages: ui });

kontext.show(target, chunk, { code: 'inlineAd', messages: params });
kontext.show(target, chunk);
ad?.element.classList.add('mine');
ad?.close();

const member: KontextMember | null = kontextOf(chunk);
const label: string | undefined = member?.ads[0]?.label;
const id: Promise<string | null> = kontext.session();

kontext.setTheme('dark');
kontext.setTheme(undefined);
kontext.userEvent('user.typing.started');
kontext.close();
globalThis.Kontext?.createKontext().close();
createKontext();

// @ts-expect-error: the ad may be none
ad.close();

// @ts-expect-error: a misspelt option
createKontext({ frameorigin: 'https://ads.example.com' });

// @ts-expect-error: not the way to say it
kontext.show('#chat', chunk);

// @ts-expect-error: no such event
const none: KontextEvent['name'] = 'ad.filled';

void [label, id, none];
