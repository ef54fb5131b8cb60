// The same job as a proxy of its own, with Node's http alone.
//
//     node node.mjs PORT BACKEND_PORT AD_PORT

import http from 'node:http';

const [port, llmPort, adPort] = process.argv.slice(2).map(Number);
const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity, maxFreeSockets: 1024 });

function preload(body, conversationId) {
    const messages = body.messages.slice(-30)
        .filter(m => m.role === 'user' || m.role === 'assistant')
        .map((m, i) => ({ id: String(i), role: m.role,
                          content: typeof m.content === 'string' ? m.content
                              : m.content.map(p => p.text ?? '').join('') }));

    const data = JSON.stringify({ publisherToken: 'acme-dev', userId: body.user, conversationId,
                                  messages, enabledPlacementCodes: ['inlineAd'] });

    return new Promise(resolve => {
        const req = http.request({ agent, port: adPort, host: '127.0.0.1', method: 'POST', path: '/preload',
                                   headers: { 'Content-Type': 'application/json',
                                              'Kontextso-Publisher-Token': 'acme-dev',
                                              'Content-Length': Buffer.byteLength(data) } }, async res => {
            let text = '';

            try {
                for await (const piece of res) text += piece;

                const bid = JSON.parse(text).bids[0];

                resolve(JSON.stringify({ ads: [{
                    bidId: bid.bidId, code: bid.code, label: 'Sponsored',
                    frameUrl: `https://server.megabrain.co/api/frame/${bid.bidId}?code=${bid.code}`
                }] }));

            } catch {
                resolve(null);
            }
        });

        req.on('error', () => resolve(null));
        req.end(data);
    });
}

const server = http.createServer(async (req, res) => {
    const pieces = [];

    for await (const piece of req) pieces.push(piece);

    const text = Buffer.concat(pieces);
    let ad = Promise.resolve(null);

    const upstream = http.request({ agent, port: llmPort, host: '127.0.0.1', method: req.method, path: req.url,
                                    headers: { ...req.headers, 'content-length': text.length } }, async answer => {
        res.writeHead(answer.statusCode, { 'Content-Type': answer.headers['content-type'] });
        answer.setEncoding('utf8');

        let rest = '';
        let finished = false;

        for await (let data of answer) {
            if (finished) {
                res.write(data);
                continue;
            }

            data = rest + data;

            let pos = 0;
            let out = '';

            for (let end; !finished && (end = data.indexOf('\n\n', pos)) >= 0; ) {
                let event = data.slice(pos, end + 2);
                pos = end + 2;

                if (event.includes('"finish_reason":"')) {
                    if (out) res.write(out);
                    out = '';

                    let timer;
                    const found = await Promise.race([ad, new Promise(r => { timer = setTimeout(r, 500); })]);
                    clearTimeout(timer);

                    if (found && event.includes('"finish_reason":"stop"')) {
                        const at = event.lastIndexOf('}');
                        event = `${event.slice(0, at)},"kontext":${found}${event.slice(at)}`;
                    }

                    finished = true;
                }

                out += event;
            }

            rest = data.slice(pos);

            if (finished) {
                out += rest;
                rest = '';
            }

            if (out) res.write(out);
        }

        res.end(rest);
    });

    upstream.on('error', () => res.destroy());
    upstream.end(text);

    try {
        ad = preload(JSON.parse(text.toString()), req.headers['x-conversation-id']);
    } catch {
        // no ad
    }
});

// whoever has started it is gone

process.stdin.on('end', () => process.exit()).resume();

server.keepAliveTimeout = 300000;
server.requestTimeout = 0;
server.listen(port, '127.0.0.1', () => console.log('ready'));
