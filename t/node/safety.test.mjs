// Copyright (C) the ngx_http_kontext_module authors
//
// What an ad server or a model says, as an application sees it: answers of all
// formats with the entries of t/corpora/injections.json in them, read by a
// client's parser of SSE, and text ads by a renderer of Markdown that lets
// HTML pass and makes links of addresses.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, before, describe, test } from 'node:test';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { createParser } from 'eventsource-parser';
import MarkdownIt from 'markdown-it';

import { complaints, findModule, startNginx } from './nginx.mjs';

const KINDS_OF_ENTRY = 4;               // the unit test has all of them
const AT_ONCE = 8;

const ORIGIN = 'https://server.megabrain.co';
const BID = '7c9e6679-7425-40de-944b-e07fc1f90ae7';
const SESSION = '019a5c20-11aa-7e02-8b6c-0d4e92f1a3c5';
const MARK = '\u2063';

const TYPES = { sse: 'text/event-stream', lines: 'application/x-ndjson',
                array: 'application/json', whole: 'application/json' };

const corpora = new URL('../corpora/', import.meta.url);
const read = async name => JSON.parse(await readFile(new URL(name, corpora)));

const kinds = await read('answers.json');
const entries = Object.entries(await read('injections.json'))
                .flatMap(([group, list]) => list.map(entry =>
                    group === 'json_source'
                    ? { source: entry }
                    : { text: entry, source: JSON.stringify(entry) }));

// answers of the ad server that are filled, whatever it says in them

const bid = `{"bidId":"${BID}","code":"inlineAd"`;

const FIELDS = [
    `{"sessionId":"${SESSION}","label":%s,"frameUrl":%s,"messageId":%s,`
    + `"bids":[${bid},"label":%s,"frameUrl":%s,"url":%s,"html":%s}]}`,
    `{"sessionId":"${SESSION}","bids":[${bid},"revenue":%s}]}`,
    `{"sessionId":"${SESSION}","error":%s,"origin":%s,"bids":[${bid}}]}`,
];

let dir, nginx, backend, ads;


// a server whose answers respond(path, body) gives: [type, text]

async function serve(respond) {
    const server = createServer((request, response) => {
        let body = '';

        request.setEncoding('utf8');
        request.on('data', piece => { body += piece; });
        request.on('end', () => {
            const [type, text] = respond(request.url, body);

            response.writeHead(200, { 'Content-Type': type });
            response.end(text);
        });
    });

    server.listen(0, '127.0.0.1');
    await once(server, 'listening');

    return server;
}


before(async () => {
    const module = findModule();

    dir = await mkdtemp(join(tmpdir(), 'kontext-safety-'));

    backend = await serve(path => {
        const [, , e, k] = path.split('/');

        return [TYPES[kinds[k].framing], said(kinds[k], entries[e])];
    });

    ads = await serve((path, body) => {
        if (path !== '/preload') {
            return ['application/json', '{"enabled":true}'];
        }

        const [e, k] = JSON.parse(body).conversationId.split('-').slice(1);

        return ['application/json',
                FIELDS[k % FIELDS.length]
                .replaceAll('%s', () => entries[e].source)];
    });

    nginx = await startNginx(join(dir, 'nginx'), 1, port => ({
        main: `load_module ${module};`,
        http: `
    access_log               off;
    kontext                  on;
    kontext_publisher_token  client-tests;
    kontext_user_id          u-1;
    kontext_grace            25s;
    kontext_breaker          off;

    server {
        listen 127.0.0.1:${port};

        location /_kontext/ {
            internal;
            proxy_pass http://127.0.0.1:${ads.address().port}/;
        }

        location ~ ^/member/(?<entry>\\d+)/(?<kind>\\d+)/ {
            kontext_conversation_id  m-$entry-$kind;
            kontext_inject           member;
            proxy_pass http://127.0.0.1:${backend.address().port};
        }

        location ~ ^/text/(?<entry>\\d+)/(?<kind>\\d+)/ {
            kontext_conversation_id  t-$entry-$kind;
            kontext_inject           text;
            proxy_pass http://127.0.0.1:${backend.address().port};
        }
    }
`,
    }));
});


after(async () => {
    await nginx?.stop();
    backend?.close();
    ads?.close();
    await rm(dir, { recursive: true, force: true });
});


// the model says the entry, or, where that is no string of its own, an m

function said(kind, entry) {
    const source = entry.text === undefined ? '"m"' : entry.source;

    return kind.answer.replaceAll('%s', () => source);
}


// what a client reads: [name, data] of each event

function parse(framing, text) {
    if (framing !== 'sse') {
        const parts = framing === 'lines' ? text.split('\n').slice(0, -1)
                                          : [text];

        return parts.map(part => ['', JSON.parse(part)]);
    }

    const events = [];

    const parser = createParser({
        onEvent: event => events.push([event.event ?? '', event.data]),
        onError: error => assert.fail(`${error}: ${text}`),
    });

    parser.feed(text);

    return events.map(([name, data]) =>
        [name, data === '[DONE]' ? data : JSON.parse(data)]);
}


// takes the ads out of parsed events

function withoutAds(events, found) {
    const clean = value => {
        if (value === null || typeof value !== 'object') {
            return;
        }

        if (Object.hasOwn(value, 'kontext') && !Array.isArray(value)) {
            found.push(value.kontext);
            delete value.kontext;
        }

        Object.values(value).forEach(clean);
    };

    return events.filter(([, data]) => {
        if (data.type === 'data-kontext') {
            found.push(data.data);
            return false;
        }

        clean(data);
        return true;
    });
}


function strings(value) {
    return typeof value === 'string' ? [value]
           : value !== null && typeof value === 'object'
             ? Object.values(value).flatMap(strings) : [];
}


async function chat(form, e, k) {
    const kind = kinds[k];
    const response = await fetch(
        `http://127.0.0.1:${nginx.ports[0]}/${form}/${e}/${k}${kind.path}`,
        { method: 'POST', body: kind.request,
          headers: { 'Content-Type': 'application/json' } });

    assert.equal(response.status, 200);

    return response.text();
}


function assertFrame(frameUrl) {
    const url = new URL(frameUrl);

    assert.equal(url.origin, ORIGIN);
    assert.equal(url.pathname, `/api/frame/${BID}`);
    assert.deepEqual([...url.searchParams.keys()],
                     ['code', 'messageId', 'sdk']);
    assert.equal(url.searchParams.get('code'), 'inlineAd');
    assert.equal(url.hash, '');
    assert.equal(url.username, '');
    assert.match(frameUrl, /^[\w.~:/?&=%-]+$/);
}


// each entry with some of the kinds, by turns; seen(entry, kind, text)

async function each(form, seen) {
    const todo = entries.flatMap((entry, e) =>
        Array.from({ length: KINDS_OF_ENTRY },
                   (_, i) => [e, (e * KINDS_OF_ENTRY + i) % kinds.length]));
    let n = 0;

    await Promise.all(Array.from({ length: AT_ONCE }, async () => {
        for (let next; (next = todo.pop());) {
            const [e, k] = next;

            try {
                seen(entries[e], kinds[k], await chat(form, e, k));
                n++;
            } catch (error) {
                error.message = `${kinds[k].name}, ${entries[e].source
                                 .slice(0, 200)}: ${error.message}`;
                throw error;
            }
        }
    }));

    assert.equal(n, entries.length * KINDS_OF_ENTRY);
}


// Tags that a browser acts on, with what is in them.

function tags(html) {
    return html.match(/<[a-z][^>]*>?/gi) ?? [];
}


// what is in one list and not in the other, each as often as it is there

function more(list, than) {
    const rest = [...than];

    return list.filter(item => {
        const at = rest.indexOf(item);

        if (at >= 0) {
            rest.splice(at, 1);
        }

        return at < 0;
    });
}


describe('what an application sees', () => {
    test('members: the ad and nothing else', async () => {
        let found = 0;

        await each('member', (entry, kind, text) => {
            const was = said(kind, entry);

            if (text === was) {
                return;
            }

            const members = [];
            const left = withoutAds(parse(kind.framing, text), members);

            assert.deepEqual(left, parse(kind.framing, was));
            assert.ok(members.length > 0);

            for (const { messageId, ads: list, ...others } of members) {
                assert.deepEqual(others, {});
                assert.equal(typeof messageId, 'string');
                assert.equal(list.length, 1);

                const [{ frameUrl, ...ad }] = list;

                assert.deepEqual(ad, { bidId: BID, code: 'inlineAd',
                                       label: 'Sponsored' });
                assertFrame(frameUrl);
            }

            found++;
        });

        assert.ok(found > entries.length * KINDS_OF_ENTRY * 0.9, `${found}`);
    });

    test('texts: one link, and no other tag than without it', async () => {
        const markdown = new MarkdownIt({ html: true, linkify: true,
                                          typographer: true });
        const ad = new RegExp(`\\n\\n(${MARK}\\[Sponsored\\]\\(([^)]*)\\)`
                              + `${MARK})$`);
        let found = 0;

        await each('text', (entry, kind, text) => {
            const was = said(kind, entry);

            if (text === was) {
                return;
            }

            const matches = strings(parse(kind.framing, text))
                            .map(string => ad.exec(string)).filter(Boolean);

            assert.ok(matches.length > 0);

            for (const [, shown, frameUrl] of matches) {
                assertFrame(frameUrl);

                // alone, as a text block of its own

                const escaped = markdown.utils.escapeHtml(frameUrl);
                const link = `<a href="${escaped}">`;

                assert.equal(markdown.render(shown),
                             `<p>${MARK}${link}Sponsored</a>${MARK}</p>\n`);

                // and at the end of what the model has said

                const said = entry.text ?? 'm';
                const html = markdown.render(`${said}\n\n${shown}`);
                const added = more(tags(html), tags(markdown.render(said)));

                assert.deepEqual(added.filter(tag => tag !== link
                                                     && tag !== '<p>'), [],
                                 html);
            }

            found++;
        });

        assert.ok(found > entries.length * KINDS_OF_ENTRY * 0.85, `${found}`);
    });

    test('nginx has nothing to complain of', async () => {
        assert.deepEqual(await complaints(nginx), []);
    });
});
