// Copyright (C) the ngx_http_kontext_module authors
//
// The side panel: the session, what became of each answer and when, and the
// events of the session as they come.

const LOG_TRIES = 100;
const LOG_PAUSE = 50;                   // ms
const NAMES = ['ad.filled', 'ad.no-fill', 'ad.error', 'ad.viewed', 'ad.clicked',
               'ad.render-started', 'ad.render-completed', 'video.started',
               'video.completed', 'reward.granted', 'events.lost',
               'session.closed'];

const byId = id => document.getElementById(id);


function node(name, className, text = '') {
    const made = document.createElement(name);

    made.className = className;
    made.textContent = text;

    return made;
}


function facts(list, entries) {
    list.replaceChildren(...entries.flatMap(([key, value, className = '']) => {
        const dd = node('dd', '', value);

        dd.title = value;

        return [node('dt', className, key), dd];
    }));
}


function ms(value) {
    return value === undefined ? '–' : `${Math.round(value)} ms`;
}


// seconds of nginx's log, which are "-" or empty where there are none

function logged(text) {
    return /^[\d.]+$/.test(text) ? Number(text) * 1000 : undefined;
}


// one answer: when things happened, in ms after the question was sent

class Turn {
    constructor(question) {
        this.id = crypto.randomUUID();
        this.start = performance.now();
        this.lanes = node('div', 'lanes');
        this.facts = node('dl', 'facts');
        this.status = '…';

        const item = node('li', '');
        const details = node('details', '');
        const summary = node('summary', '');

        for (const other of byId('turns').querySelectorAll('details')) {
            other.open = false;
        }

        summary.append(node('div', 'question', question), this.lanes);
        details.append(summary, this.facts);
        details.open = true;
        item.append(details);
        byId('turns').prepend(item);
        this.draw();
    }

    mark(name) {
        this[name] = performance.now() - this.start;
        this.first ??= this.last;
        this.waiting ??= requestAnimationFrame(() => this.draw());
    }

    lane(...parts) {
        const lane = node('div', 'lane');
        const all = Math.max(this.finish ?? 0, this.last ?? 0, this.ad ?? 0);

        for (const [className, from, to] of parts) {
            if (from !== undefined && to > from) {
                const part = node('span', className);

                part.style.left = `${100 * from / all}%`;
                part.style.width = `${100 * (to - from) / all}%`;
                lane.append(part);
            }
        }

        return lane;
    }

    draw() {
        this.waiting = undefined;

        const held = this.hold > 0 ? this.finish - this.hold : this.finish;

        this.lanes.replaceChildren(
            this.lane(['wait', 0, this.first],
                      ['write', this.first, Math.min(held ?? Infinity,
                                                     this.last)],
                      ['hold', held, this.finish]),
            this.lane(['ad', 0, this.ad]));

        facts(this.facts, [
            ['First token', ms(this.first), 'key wait'],
            ['Ad ready', ms(this.ad), 'key ad'],
            ['Finish', ms(this.finish), 'key write'],
            ['Held for the ad', ms(this.hold), 'key hold'],
            ['Ad', this.status],
        ]);
    }
}


export class Panel {
    constructor({ userId, conversationId, api }) {
        Object.assign(this, { userId, conversationId, api });
        byId('turns').replaceChildren();
        byId('events').replaceChildren();
        this.drawSession({});
    }

    drawSession({ sessionId = '…', serverSessionId = '…', disabled }) {
        facts(byId('session'), [
            ['User', this.userId],
            ['Conversation', this.conversationId],
            ['Session', disabled ? `${sessionId} (disabled)` : sessionId],
            ['At the ad server', serverSessionId],
        ]);
    }

    async refresh() {
        const response = await fetch(`${this.api}/sessions/${this.id}`);

        if (response.ok && !this.closed) {
            this.drawSession(await response.json());
        }
    }

    // the event stream of the session

    listen(id) {
        this.id = id;
        this.source = new EventSource(`${this.api}/sessions/${id}/events`);

        for (const name of NAMES) {
            this.source.addEventListener(name, event => {
                // an error of the connection has the name, and no data

                if (event.data) {
                    this.onEvent(JSON.parse(event.data));
                }
            });
        }

        return this.refresh();
    }

    onEvent({ name, payload = {} }) {
        if (name === 'session.closed') {
            this.source.close();
        }

        if (this.closed) {
            return;
        }

        const item = node('li', '');
        const line = node('div', 'event');
        const { bidId, skipCode, errCode, count, revenue, content, area }
            = payload;
        const detail = [
            bidId?.slice(0, 8), content, area, skipCode, errCode,
            revenue && `$${revenue.toFixed(4)}`, count && `${count} lost`,
        ].filter(Boolean).join(' · ');

        item.dataset.name = name;
        line.append(node('b', '', name),
                    node('time', '', new Date().toLocaleTimeString()));
        item.append(line);

        if (detail) {
            item.append(node('div', 'detail', detail));
        }

        byId('events').prepend(item);

        if (/^ad\.(filled|no-fill)$/.test(name)) {
            this.turn?.mark('ad');
            this.refresh();
        }
    }

    begin(question) {
        this.turn = new Turn(question);

        return this.turn;
    }

    // what nginx has logged; it does when the request is over

    async finish(turn) {
        for (let tries = 0; tries < LOG_TRIES; tries++) {
            const response = await fetch('/chats.log');
            const line = (await response.text()).split('\n')
                .find(text => text.includes(turn.id));

            if (line) {
                const { kontext } = JSON.parse(line);
                const { status, reason, injected } = kontext;

                turn.hold = logged(kontext.hold_time);
                turn.ad ??= logged(kontext.preload_time);
                turn.status = reason ? `${status}: ${reason}`
                              : injected ? `${status}, put in` : status;
                turn.draw();
                return;
            }

            await new Promise(done => setTimeout(done, LOG_PAUSE));
        }

        turn.status = 'nginx has not seen it';
        turn.draw();
    }

    // the stream ends with the session

    close() {
        this.closed = true;
    }
}
