// Copyright (C) the ngx_http_kontext_module authors
//
// Three origins: a page with kontext.js under a strict policy, which is also
// the session API; an ad server, whose frames do what a test has them do; and
// somebody else.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';

const source = name => readFileSync(new URL(`../../js/${name}`,
                                            import.meta.url));

const FRAME = `<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>An ad</title>
<link rel="icon" href="data:,">
<body><p id="text">An ad</p><button>One</button><button>Two</button>`;

const PAGE = `<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>A page</title>
<link rel="icon" href="/icon.svg">
<body>
<button id="before">Before</button>
<div id="chat"></div>
<div id="other"></div>
<button id="after">After</button>`;


async function listen(handler) {
    const server = createServer(handler);

    await new Promise(done => server.listen(0, '127.0.0.1', done));

    return { server, origin: `http://127.0.0.1:${server.address().port}` };
}


async function body(request) {
    let text = '';

    for await (const piece of request.setEncoding('utf8')) {
        text += piece;
    }

    return text;
}


export async function startSite() {
    const seen = { frames: [], calls: [] };
    const site = { seen };

    const frames = await listen((request, response) => {
        seen.frames.push(request.url);
        response.setHeader('Content-Type', 'text/html; charset=utf-8');
        response.end(FRAME);
    });

    const stranger = await listen((request, response) => {
        response.setHeader('Content-Type', 'text/html; charset=utf-8');
        response.end(FRAME);
    });

    const page = await listen(async (request, response) => {
        const { pathname } = new URL(request.url, 'http://page');
        const send = (type, text, status = 200) => {
            response.statusCode = status;
            response.setHeader('Content-Type', type);
            response.end(text);
        };

        if (request.method === 'POST') {
            const { method, url, headers } = request;
            const call = { method, url, headers,
                           body: JSON.parse(await body(request)) };

            seen.calls.push(call);

            const [status, answer] = await site.answer(call);

            send('application/json', JSON.stringify(answer), status);

        } else if (/^\/kontext(\.classic)?\.js$/.test(pathname)) {
            send('text/javascript', source(pathname.slice(1)));

        } else if (pathname === '/icon.svg') {
            send('image/svg+xml', '<svg xmlns="http://www.w3.org/2000/svg"/>');

        } else {
            response.setHeader('Content-Security-Policy', [
                "default-src 'none'", "script-src 'self'", "style-src 'self'",
                "img-src 'self'", "connect-src 'self'", "base-uri 'none'",
                `frame-src ${frames.origin} ${stranger.origin}`,
                "require-trusted-types-for 'script'", "trusted-types 'none'",
            ].join('; '));
            send('text/html; charset=utf-8', PAGE);
        }
    });

    return Object.assign(site, {
        page: page.origin,
        frames: frames.origin,
        stranger: stranger.origin,

        // what the session API says to a call, now or later: [ status, body ]

        answer: ({ url }) => url.endsWith('/sessions')
            ? [201, { sessionId: 'kxs_1' }]
            : [202, { id: 1 }],

        reset() {
            seen.frames.length = seen.calls.length = 0;
        },

        stop() {
            for (const { server } of [page, frames, stranger]) {
                server.closeAllConnections();
                server.close();
            }
        },
    });
}
