// The same job in njs.
//
// A filter must not do anything asynchronous, and requests share nothing in
// Debian 12's njs 0.7.9 (js_shared_dict_zone is of 0.8.0): the ad is asked for
// before the request is passed on, and is on the path of the first token.

async function ask(r) {
    try {
        const body = JSON.parse(r.requestText);

        const messages = body.messages.slice(-30)
            .filter(m => m.role == 'user' || m.role == 'assistant')
            .map((m, i) => ({ id: String(i), role: m.role,
                              content: typeof m.content == 'string' ? m.content
                                  : m.content.map(p => p.text || '').join('') }));

        const reply = await ngx.fetch(`http://127.0.0.1:${r.variables.ads_port}/preload`, {
            method: 'POST',
            headers: { 'Content-Type': 'application/json',
                       'Kontextso-Publisher-Token': 'acme-dev' },
            body: JSON.stringify({ publisherToken: 'acme-dev', messages,
                                   userId: body.user,
                                   conversationId: r.headersIn['X-Conversation-Id'],
                                   enabledPlacementCodes: ['inlineAd'] })
        });

        const bid = (await reply.json()).bids[0];

        r.variables.ad = JSON.stringify({ ads: [{
            bidId: bid.bidId, code: bid.code, label: 'Sponsored',
            frameUrl: `https://server.megabrain.co/api/frame/${bid.bidId}?code=${bid.code}`
        }] });

    } catch (e) {
        r.variables.ad = '';
    }

    r.internalRedirect('@llm');
}


let rest = '';
let finished = false;

function filter(r, data, flags) {
    if (finished) {
        r.sendBuffer(data, flags);
        return;
    }

    data = rest + data;

    let pos = 0;
    let out = '';
    let end;

    while ((end = data.indexOf('\n\n', pos)) >= 0) {
        let event = data.slice(pos, end + 2);
        pos = end + 2;

        if (event.indexOf('"finish_reason":"') >= 0) {
            finished = true;

            if (r.variables.ad && event.indexOf('"finish_reason":"stop"') >= 0) {
                const at = event.lastIndexOf('}');
                event = event.slice(0, at) + ',"kontext":' + r.variables.ad
                        + event.slice(at);
            }
        }

        out += event;
    }

    rest = data.slice(pos);

    if (finished || flags.last) {
        out += rest;
        rest = '';
    }

    r.sendBuffer(out, flags);
}

export default { ask, filter };
