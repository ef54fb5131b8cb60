// Copyright (C) the ngx_http_kontext_module authors
//
// docs/openapi.json against the module: the document is sound, each of its
// examples is taken, each of its calls is made with each outcome it has, and
// whatever nginx answers is described there, to the last member and header.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { Agent, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { Validator } from '@seriousme/openapi-schema-validator';
import Ajv2020 from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';

import { complaints, findModule, startAds, startNginx } from './nginx.mjs';

const TIMEOUT = 60_000;                 // ms, of an event that has to come

const KB = 1024;
const ORIGIN = 'https://app.example.com';

// what nginx adds to every answer

const OWN_HEADERS = ['connection', 'content-length', 'content-type', 'date',
                     'keep-alive', 'server', 'transfer-encoding'];

// outcomes that cannot be had from outside, and why

const UNREACHABLE = {
    'text/html 500': 'nginx has no memory',
};

const document = JSON.parse(await readFile(
    new URL('../../docs/openapi.json', import.meta.url), 'utf8'));

const { schemas, examples } = document.components;

// what has come, as "getAds no_ad 404" and "event ad.filled"

const seen = new Set();


// The document

function resolved(value) {
    if (value?.$ref === undefined) {
        return value;
    }

    return resolved(value.$ref.slice(2).split('/').reduce(
        (at, name) => at[name.replaceAll('~1', '/').replaceAll('~0', '~')],
        document));
}


// the same, with objects that have no members but those described

function closed(schema) {
    if (Array.isArray(schema)) {
        return schema.map(closed);
    }

    if (schema === null || typeof schema !== 'object') {
        return schema;
    }

    const copy = Object.fromEntries(Object.entries(schema).map(
        ([name, value]) => [name, closed(value)]));

    if (schema.type === 'object' && schema.properties !== undefined) {
        return { additionalProperties: false, ...copy };
    }

    return copy;
}


const ajv = new Ajv2020({ allErrors: true, strictTypes: false });

addFormats(ajv);
ajv.addVocabulary(['discriminator', 'example']);

const compiled = new Map();


// throws what is wrong with a value of this schema

function check(what, value, schema, { open = false } = {}) {
    const key = JSON.stringify([schema, open]);

    if (!compiled.has(key)) {
        const all = { ...schema, $defs: schemas };

        compiled.set(key, ajv.compile(JSON.parse(
            JSON.stringify(open ? all : closed(all))
            .replaceAll('"#/components/schemas/', '"#/$defs/'))));
    }

    const validate = compiled.get(key);

    if (!validate(value)) {
        throw new Error(`${what}: ${ajv.errorsText(validate.errors)} in `
                        + JSON.stringify(value));
    }
}


const operations = new Map();

for (const [path, item] of Object.entries(document.paths)) {
    const { parameters: shared = [], ...methods } = item;

    for (const [method, operation] of Object.entries(methods)) {
        operations.set(operation.operationId, {
            ...operation,
            path,
            method: method.toUpperCase(),
            parameters: [...shared, ...operation.parameters ?? []]
                        .map(resolved),
            content: operation.requestBody?.content ?? {},
            responses: Object.fromEntries(
                Object.entries(operation.responses)
                .map(([status, response]) => [status, resolved(response)])),
        });
    }
}

const withBody = [...operations.keys()]
                 .filter(id => operations.get(id).requestBody);


function errorCodes(media) {
    const { enum: many, const: one }
        = media.schema.allOf?.[1].properties.error.properties.code ?? {};

    return many ?? (one === undefined ? [] : [one]);
}


// what an operation may come to: "createSession 400 bad_json",
// "createSession 413 text/html", "getSession 200"

function outcomes() {
    const all = [];

    for (const [id, { responses }] of operations) {
        for (const [status, { content = {} }] of Object.entries(responses)) {
            const kinds = Object.entries(content).flatMap(
                ([type, media]) => type === 'text/html' ? [type]
                                                        : errorCodes(media));

            all.push(...kinds.length
                     ? kinds.map(kind => `${id} ${kind} ${status}`)
                     : [`${id} ${status}`]);
        }
    }

    return all;
}


// The events of a stream, as they come

class Events {
    constructor(response) {
        this.response = response;
        this.list = [];
        this.waiting = [];
        this.ended = false;
        this.text = '';

        response.setEncoding('utf8');
        response.on('data', text => {
            this.text += text;
            this.parse();
            this.wake();
        });
        response.on('close', () => {
            this.ended = true;
            this.wake();
        });
    }

    parse() {
        const frames = this.text.split('\n\n');

        this.text = frames.pop();

        for (const frame of frames) {
            const fields = {};

            for (const line of frame.split('\n')) {
                const [, name, value] = /^([a-z]*): ?(.*)$/.exec(line)
                                        ?? assert.fail(`in a stream: ${line}`);

                fields[name] = value;
            }

            if (fields.data !== undefined) {
                this.list.push({ ...fields, data: JSON.parse(fields.data) });
            }
        }
    }

    wake() {
        for (const look of this.waiting.splice(0)) {
            look();
        }
    }

    // waits until there is something

    async until(what, get) {
        const timer = setTimeout(() => {
            this.late = true;
            this.wake();
        }, TIMEOUT);

        try {
            for (;;) {
                const found = get();

                if (found) {
                    return found;
                }

                if (this.ended || this.late) {
                    throw new Error(`no ${what} in ${JSON.stringify(
                        this.list)}`);
                }

                await new Promise(done => this.waiting.push(done));
            }

        } finally {
            clearTimeout(timer);
        }
    }

    event(name) {
        return this.until(name, () => this.list.find(
            one => one.event === name));
    }

    end() {
        return this.until('end', () => this.ended);
    }

    close() {
        this.response.destroy();
    }
}


// what a stream may have: the same number never twice

function checkEvents({ list }) {
    let last = 0;

    for (const { id, event, data } of list) {
        check(`event ${event}`, data, { $ref: '#/components/schemas/Event' });
        assert.equal(event, data.name);

        if (['events.lost', 'session.closed'].includes(event)) {
            assert.equal(id, undefined);

        } else {
            assert.ok(Number(id) > last, `event ${id} after ${last}`);
            last = Number(id);
        }

        seen.add(`event ${event}`);
    }
}


// Calls

const agent = new Agent({ keepAlive: true });

let dir, ads, nginx, crowded, origin, crowdedOrigin;


function urlOf({ path }, { api, session, message, query, at }) {
    const server = document.servers[0].url
                   .replace('{origin}', at ?? origin)
                   .replace('{api}', api ?? document.servers[0].variables
                                            .api.default);

    return server
           + path.replace('{sessionId}', session)
                 .replace('{messageId}', encodeURIComponent(message))
           + (query ? `?${new URLSearchParams(query)}` : '');
}


function send(url, { method, headers = {}, body }) {
    return new Promise((done, fail) => {
        const sent = request(url, {
            agent, method,
            headers: body === undefined ? headers
                     : { 'Content-Length': Buffer.byteLength(body),
                         ...headers },
        });

        sent.once('error', fail);
        sent.once('response', response => {
            const { statusCode: status, headers } = response;

            if (headers['content-type'] === 'text/event-stream'
                && method === 'GET')
            {
                done({ status, headers, events: new Events(response) });
                return;
            }

            let text = '';

            response.setEncoding('utf8');
            response.on('data', piece => { text += piece; });
            response.on('error', fail);
            response.on('end', () => done({ status, headers, text }));
        });

        sent.end(body);
    });
}


function checkHeaders(what, headers, documented = {}) {
    const known = new Map(Object.entries(documented).map(
        ([name, header]) => [name.toLowerCase(), resolved(header)]));

    for (const [name, value] of Object.entries(headers)) {
        if (!OWN_HEADERS.includes(name)) {
            assert.ok(known.has(name), `${what} has the header ${name}`);
            check(`${what}: ${name}`, value, known.get(name).schema);
        }
    }

    for (const [name, { required }] of known) {
        assert.ok(!required || name in headers, `${what} has no ${name}`);
    }
}


// a response is one that the operation is said to have: its outcome

function checkResponse(id, operation, { status, headers, text, events }) {
    const what = `${id} ${status}`;
    const documented = operation.responses[status]
                       ?? assert.fail(`${what} is not described: ${text}`);
    const type = headers['content-type'];

    // the page of nginx itself has nginx's headers only

    if (type === 'text/html') {
        assert.ok(documented.content?.[type], `${what} is a page: ${text}`);
        checkHeaders(what, headers);

        return `${id} ${type} ${status}`;
    }

    checkHeaders(what, headers, documented.headers);

    if (documented.content === undefined) {
        assert.equal(text, '', what);

        return `${id} ${status}`;
    }

    const media = documented.content[type]
                  ?? assert.fail(`${what} is ${type}: ${text}`);

    if (events) {
        return `${id} ${status}`;
    }

    const body = JSON.parse(text);

    check(what, body, media.schema);

    return body.error ? `${id} ${body.error.code} ${status}`
                      : `${id} ${status}`;
}


// One call of an operation, which comes to what is said: call('getAds',
// 'no_ad 404', { session, message }).  The body is what JSON is made of, or
// text as it is.

async function call(id, outcome, { body, type, headers, ...where } = {}) {
    const operation = operations.get(id);

    if (body !== undefined) {
        type ??= 'application/json';
    }

    const response = await send(urlOf(operation, where), {
        method: operation.method,
        headers: { ...(type ? { 'Content-Type': type } : {}), ...headers },
        body: typeof body === 'object' ? JSON.stringify(body) : body,
    });

    const came = checkResponse(id, operation, response);

    assert.equal(came, `${id} ${outcome}`, response.text);
    seen.add(came);

    return { ...response,
             body: response.text && response.headers['content-type']
                                    === 'application/json'
                   ? JSON.parse(response.text) : undefined };
}


// The same with a body that the schema refuses, too, or takes, too

async function callWith(body, id, outcome, where) {
    const { schema } = operations.get(id).content['application/json'];
    let fits = true;

    try {
        check(id, body, schema, { open: true });

    } catch {
        fits = false;
    }

    assert.equal(fits, /^2/.test(outcome), `${id}: ${JSON.stringify(body)} `
                                           + `and its schema`);

    return await call(id, outcome, { ...where, body });
}


let made = 0;

async function createSession(where = {}) {
    const { body } = await call('createSession', '201', { ...where, body: {
        userId: `user-${++made}`, conversationId: `conversation-${made}`,
    } });

    return body.sessionId;
}


const TURN = [
    { id: 'm3', role: 'user', content: 'Which shoes would you pick?' },
    { id: 'm4', role: 'assistant', content: 'Light ones.' },
];


async function listen(session, where = {}) {
    const { events } = await call('getEvents', '200', { session, ...where });

    return events;
}


// a session whose m4 has an ad: its bid, too

async function sessionWithAd() {
    const session = await createSession();
    const events = await listen(session);

    await call('addMessages', '202', { session, body: TURN });

    const { data } = await events.event('ad.filled');

    events.close();
    checkEvents(events);

    return { session, bidId: data.payload.bidId };
}


// the same with another id of the bid

function withBid(value, bidId) {
    return JSON.parse(JSON.stringify(value).replaceAll(
        examples.filled.value.ads.m4[0].bidId, bidId));
}


// the ad server, and three that do not fill: these are nginx itself

const PREFIX = '/_';

function config(zone) {
    const others = ['none', 'failing', 'off'];

    const locations = others.map(name => `
        location ${PREFIX}${name}/ {
            internal;
            proxy_pass http://others/${name}/;
            proxy_method POST;
        }

        location /${name}/ {
            kontext_api;
            kontext_ad_server ${PREFIX}${name};
        }
`);

    return (others, port) => ({
        main: `load_module ${findModule()};`,
        http: `
    access_log off;

    upstream ads { server ${ads.address}; keepalive 4; }
    upstream others { server 127.0.0.1:${others}; }

    kontext_zone             kontext:${zone};
    kontext_publisher_token  openapi-tests;
    kontext_frame_origin     https://ads.example.com;

    server {
        listen 127.0.0.1:${others};
        default_type application/json;

        location /none/init      { return 200 '{}'; }
        location /none/preload   { return 200 '{"sessionId":
            "019a5c20-11aa-7e02-8b6c-0d4e92f1a3c5", "bids": [], "skip": true,
            "skipCode": "no_demand"}'; }
        location /failing/init   { return 200 '{}'; }
        location /failing/       { return 200 '{"errCode": "out_of_ads"}'; }
        location /off/init       { return 200 '{"enabled": false}'; }
        location /               { return 204; }
    }

    server {
        listen 127.0.0.1:${port};

        location /_kontext/ {
            internal;
            proxy_pass http://ads/;
            proxy_http_version 1.1;
            proxy_method POST;
            proxy_set_header Connection "";
        }

        location /kontext/ {
            kontext_api;
            kontext_api_origin ${ORIGIN};
            kontext_user_id    $http_x_user_id;
        }

        location /everybody/ {
            kontext_api;
            kontext_api_origin *;
        }
${locations.join('')}
    }
`,
    });
}


async function start() {
    dir = await mkdtemp(join(tmpdir(), 'kontext-openapi-'));
    ads = await startAds(`${dir}/ads`);
    nginx = await startNginx(`${dir}/nginx`, 2, config('2m'));
    crowded = await startNginx(`${dir}/crowded`, 2, config('32k streams=1'));
    origin = `http://127.0.0.1:${nginx.ports[1]}`;
    crowdedOrigin = `http://127.0.0.1:${crowded.ports[1]}`;
}


async function stop() {
    agent.destroy();

    const started = [nginx, crowded].filter(Boolean);

    await Promise.all([...started, ads].map(one => one?.stop()));

    const said = (await Promise.all(started.map(complaints))).flat()
                 .filter(line => !/client intended to send too large/
                                  .test(line));

    if (!process.env.KONTEXT_TEST_KEEP) {
        await rm(dir, { recursive: true, force: true });
    }

    assert.deepEqual(said, []);
}


const theDocument = () => {
    test('is OpenAPI 3.1', async () => {
        const validator = new Validator();
        const { valid, errors } = await validator.validate(
            structuredClone(document));

        assert.ok(valid, JSON.stringify(errors));
        assert.equal(validator.version, '3.1');
        assert.equal(document.openapi, '3.1.0');
    });

    test('says where it is with example.com only', () => {
        const hosts = JSON.stringify(document)
                      .match(/(?<=:\/\/)[^/?"{}]+/g)
                      .filter(host => !/(^|\.)example\.com$/.test(host));

        assert.deepEqual(hosts, []);
    });

    test('has examples that are as it says', () => {
        for (const [id, operation] of operations) {
            for (const [type, { schema, examples }] of
                 Object.entries(operation.content))
            {
                for (const [name, { value }] of Object.entries(examples)) {
                    check(`${id} ${type} ${name}`, value, schema,
                          { open: true });
                }
            }

            for (const [status, { content = {}, headers = {} }] of
                 Object.entries(operation.responses))
            {
                for (const [type, { schema, examples = {} }] of
                     Object.entries(content))
                {
                    for (const [name, example] of Object.entries(examples)) {
                        check(`${id} ${status} ${type} ${name}`,
                              resolved(example).value, schema);
                    }

                    assert.deepEqual(errorCodes({ schema }),
                                     errorCodes({ schema }).length
                                     ? Object.keys(examples) : []);
                }

                for (const [name, header] of Object.entries(headers)) {
                    const { schema, example } = resolved(header);

                    if (example !== undefined) {
                        check(`${id} ${status} ${name}`, example, schema);
                    }
                }
            }

            for (const { name, schema, example } of operation.parameters) {
                check(`${id} ${name}`, example, schema);
            }
        }
    });

    test('has a stream that is as it says', () => {
        const { examples, 'x-event-data': schema }
            = operations.get('getEvents').responses[200]
              .content['text/event-stream'];
        const lines = examples.stream.value.match(/(?<=^data: ).*$/gm);

        assert.ok(lines.length > 0);

        for (const line of lines) {
            check(line, JSON.parse(line), schema);
        }
    });

    test('names each error code of each refusal', () => {
        const codes = [...operations.values()].flatMap(
            ({ responses }) => Object.values(responses).flatMap(
                ({ content = {} }) => Object.values(content).flatMap(
                    errorCodes)));

        assert.deepEqual([...new Set([...codes, 'unknown_path'])].sort(),
                         [...schemas.ErrorCode.enum].sort());
    });
};


const itsExamples = () => {
    for (const id of withBody) {
        for (const [type, { examples }] of
             Object.entries(operations.get(id).content))
        {
            for (const [name, { value }] of Object.entries(examples)) {
                test(`${id}, ${type}: ${name}`, async () => {
                    if (id === 'createSession') {
                        await call(id, '201', { body: value, type });
                        await call(id, '200', { body: value, type });
                        return;
                    }

                    const outcome = id === 'changeSession' ? '200' : '202';
                    const { session, bidId } = id === 'reportEvent'
                        ? await sessionWithAd()
                        : { session: await createSession() };

                    await call(id, outcome, {
                        session, body: withBid(value, bidId), type });
                });
            }
        }
    }
};


const calls = () => {
    const NOBODY = 'kxs_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa';
    const NO_BID = '00000000-0000-4000-8000-000000000000';

    test('createSession', async () => {
        const character = { id: 'c', name: 'C' };
        const mine = { userId: 'u', conversationId: 'c', character };
        const first = await callWith(mine, 'createSession', '201');
        const again = await callWith(mine, 'createSession', '200');

        assert.equal(again.body.sessionId, first.body.sessionId);
        assert.equal(again.headers.location, first.headers.location);

        const there = await send(new URL(first.headers.location, origin),
                                 { method: 'GET' });

        assert.equal(JSON.parse(there.text).sessionId, first.body.sessionId);

        const refused = (outcome, body, where) =>
            callWith(body, 'createSession', outcome, where);

        await call('createSession', 'immutable 409', {
            body: { ...mine, character: { id: 'd', name: 'D' } } });

        for (const body of [[], '"text"', '{']) {
            await call('createSession', 'bad_json 400', { body });
        }

        for (const more of [
            { userId: 3 }, { userId: '' }, { userId: 'u'.repeat(257) },
            { conversationId: '' }, { variantId: 3 }, { userEmail: [] },
            { character: 'C' }, { character: { ...character, tags: 'one' } },
            { character: { ...character, isNsfw: 1 } },
            { regulatory: { gdpr: 2 } }, { regulatory: { gdpr: '1' } },
            { regulatory: { coppa: true } }, { regulatory: { gppSid: '7' } },
            { regulatory: [] },
        ]) {
            await refused('bad_member 400', { ...mine, ...more });
        }

        await refused('unknown_member 400', { ...mine, regulatry: {} });
        await refused('missing_member 400',
                      { ...mine, character: { id: 'c' } });

        // whether directives have them is not in the schema

        await call('createSession', 'missing_member 400', { body: {} });
        await call('createSession', 'missing_member 400',
                   { body: { userId: 'u' } });
        await call('createSession', 'forbidden_user 403',
                   { body: mine, headers: { 'X-User-Id': 'another' } });
    });

    test('getSession, headSession', async () => {
        const { session } = await sessionWithAd();

        const { body } = await call('getSession', '200', { session });

        assert.equal(body.preload, 'filled');
        assert.equal(body.ads.m4.length, 1);
        await call('headSession', '200', { session });

        for (const where of [{ session: NOBODY }, { session: 'kxs_1' },
                             { session, headers: { 'X-User-Id': 'another' } }])
        {
            await call('getSession', 'unknown_session 404', where);
            await call('headSession', '404', where);
        }
    });

    test('changeSession', async () => {
        const session = await createSession();
        const change = (outcome, body) =>
            callWith(body, 'changeSession', outcome, { session });

        await change('200', { regulatory: { gdpr: 1 }, variantId: 'b',
                              userEmail: 'jo@example.com' });
        await change('200', { regulatory: { usPrivacy: '1YNN' },
                              variantId: null });

        const { body } = await change('200', {});

        assert.deepEqual(body.regulatory, { usPrivacy: '1YNN' });
        assert.equal(body.variantId, 'b');
        assert.equal(body.userEmail, 'jo@example.com');

        await call('changeSession', 'bad_json 400', { session, body: '{' });
        await call('changeSession', 'bad_json 400', { session, body: [] });

        for (const body of [{ variantId: 3 }, { userEmail: {} },
                            { regulatory: 'none' },
                            { regulatory: { gdpr: true } }])
        {
            await change('bad_member 400', body);
        }

        for (const body of [{ userId: 'u' }, { character: null },
                            { variant: 'b' }])
        {
            await change('immutable 409', body);
        }

        await call('changeSession', 'unknown_session 404',
                   { session: NOBODY, body: {} });
    });

    test('closeSession', async () => {
        const session = await createSession();

        await call('closeSession', '204', { session });
        await call('closeSession', '204', { session });
        await call('getSession', 'unknown_session 404', { session });
        await call('closeSession', '204', { session: NOBODY });
        await call('closeSession', 'unknown_session 404',
                   { session: 'kxs_1' });
    });

    test('addMessages', async () => {
        const session = await createSession();
        const add = (outcome, body) =>
            callWith(body, 'addMessages', outcome, { session });
        const message = { id: 'm', role: 'user', content: 'Hi' };

        assert.deepEqual((await add('202', message)).body,
                         { accepted: 1, repeated: 0, preload: 'scheduled' });
        assert.equal((await add('202', message)).body.repeated, 1);
        assert.equal((await add('202', { id: 'n', role: 'assistant',
                                         content: 'Hello' })).body.preload,
                     'none');

        for (const body of ['{', '3', '"text"', 'null']) {
            await call('addMessages', 'bad_json 400', { session, body });
        }

        for (const body of [[3], { ...message, id: '' },
                            { ...message, id: ['m'] },
                            { ...message, id: 'm'.repeat(257) },
                            { ...message, content: 3 },
                            { ...message, trackOnly: 'yes' },
                            { messages: [message], trackOnly: 1 },
                            { messages: message }])
        {
            await add('bad_member 400', body);
        }

        for (const name of ['id', 'role', 'content']) {
            await add('missing_member 400', { ...message, [name]: undefined });
        }

        await add('missing_member 400', []);
        await add('missing_member 400', { messages: [] });

        for (const role of ['system', 'User', 3]) {
            await add('bad_role 400', { ...message, role });
        }

        for (const createdAt of ['yesterday', '2026-13-01T00:00:00Z', -1,
                                 true])
        {
            await add('bad_time 400', { ...message, createdAt });
        }

        await call('addMessages', 'unknown_session 404',
                   { session: NOBODY, body: message });
    });

    test('addMessages, to a session that is switched off', async () => {
        const where = { api: '/off' };
        const session = await createSession(where);

        // no event tells that /init has answered

        const end = Date.now() + TIMEOUT;
        let state;

        do {
            state = (await call('getSession', '200',
                                { session, ...where })).body;
        } while (!state.flags.init && Date.now() < end);

        assert.equal(state.disabled, true);
        assert.equal((await call('addMessages', '202',
                                 { session, body: TURN, ...where }))
                     .body.preload, 'disabled');
    });

    test('getAds, headAds', async () => {
        const { session, bidId } = await sessionWithAd();
        const { body } = await call('getAds', '200',
                                    { session, message: 'm4' });

        assert.equal(body.ads[0].bidId, bidId);
        await call('headAds', '200', { session, message: 'm4' });

        for (const message of ['m3', 'a/b ü']) {
            await call('getAds', 'no_ad 404', { session, message });
            await call('headAds', '404', { session, message });
        }

        await call('getAds', 'unknown_session 404',
                   { session: NOBODY, message: 'm4' });
    });

    test('reportEvent, and getEvents', async () => {
        const { session, bidId } = await sessionWithAd();
        const report = (outcome, body) =>
            callWith(body, 'reportEvent', outcome, { session });
        const events = await listen(session);
        const { examples } = operations.get('reportEvent')
                             .content['application/json'];
        let last = 1;

        for (const { value } of Object.values(examples)) {
            const { body } = await report('202', withBid(value, bidId));

            assert.equal(body.id, ++last);
        }

        await events.until('all events', () => events.list.at(-1)?.id
                                               === String(last));

        for (const body of ['{', '3', []]) {
            await call('reportEvent', 'bad_json 400', { session, body });
        }

        for (const body of [
            {}, { name: 3 }, { name: 'ad.filled', payload: { bidId } },
            { name: 'ad.viewed', payload: { bidId } },
            { name: 'ad.viewed', payload: { content: 'A', format: 'text' } },
            { name: 'ad.viewed', payload: { bidId: 3, content: 'A',
                                            format: 'text' } },
            { name: 'ad.clicked', payload: { bidId, content: 'A',
                                             format: 'text' } },
            { name: 'video.started' },
        ]) {
            await report('bad_event 400', body);
        }

        await call('reportEvent', 'unknown_ad 404', { session, body: {
            name: 'video.started', payload: { bidId: NO_BID } } });
        await call('reportEvent', 'unknown_session 404', {
            session: NOBODY, body: { name: 'ad.error' } });

        // on from where it was

        for (const where of [{ headers: { 'Last-Event-ID': '2' } },
                             { query: { lastEventId: '2' } }])
        {
            const more = await listen(session, where);

            await more.until('all events', () => more.list.at(-1)?.id
                                                 === String(last));
            more.close();
            assert.equal(more.list[0].id, '3');
            checkEvents(more);
        }

        // more than are kept

        for (let n = 0; n < 64; n++) {
            await call('reportEvent', '202', { session, body: {
                name: 'ad.error', payload: { errCode: 'e', message: 'M' } } });
        }

        const late = await listen(session, { query: { lastEventId: '1' } });
        const { data } = await late.event('events.lost');

        assert.equal(data.payload.count, last - 1);

        await call('closeSession', '204', { session });

        for (const stream of [events, late]) {
            await stream.event('session.closed');
            await stream.end();
            assert.equal(stream.list.at(-1).event, 'session.closed');
            checkEvents(stream);
        }
    });

    test('getEvents, headEvents', async () => {
        const session = await createSession();

        await call('headEvents', '200', { session });

        for (const where of [{ session: NOBODY }, { session: 'kxs_1' }]) {
            await call('getEvents', 'unknown_session 404', where);
            await call('headEvents', '404', where);
        }
    });

    test('getEvents, of an ad server that has no ad', async () => {
        for (const [api, name, preload] of [
            ['/none', 'ad.no-fill', 'no_fill'],
            ['/failing', 'ad.error', 'error'],
        ]) {
            const session = await createSession({ api });
            const events = await listen(session, { api });

            await call('addMessages', '202', { api, session, body: TURN });
            await events.event(name);
            events.close();
            checkEvents(events);

            const { body } = await call('getSession', '200', { api, session });

            assert.equal(body.preload, preload);
        }
    });

    test('getEvents, where there are streams enough', async () => {
        const at = crowdedOrigin;
        const session = await createSession({ at });
        const events = await listen(session, { at });

        await call('getEvents', 'too_many_streams 503', { at, session });
        events.close();
    });

    test('where there is no room', async () => {
        const at = crowdedOrigin;
        const session = await createSession({ at });
        const options = { userEmail: 'x'.repeat(7 * KB) };

        for (const [id, body] of [
            ['createSession', { userId: 'u', conversationId: 'r',
                                ...options }],
            ['changeSession', options],
            ['addMessages', { id: 'm', role: 'user',
                              content: 'x'.repeat(60 * KB) }],
            ['reportEvent', { name: 'ad.error', payload: {
                errCode: 'e', message: 'x'.repeat(3 * KB) } }],
        ]) {
            await call(id, 'no_room 503', { at, session, body });
        }
    });

    test('bodies that are too large, or no JSON', async () => {
        const session = await createSession();
        const options = { userEmail: 'x'.repeat(8 * KB) };

        for (const [id, body] of [
            ['createSession', { userId: 'u', conversationId: 'l',
                                ...options }],
            ['changeSession', options],
            ['reportEvent', { name: 'ad.error', payload: {
                errCode: 'e', message: 'x'.repeat(4 * KB) } }],
        ]) {
            await call(id, 'too_large 413', { session, body });
        }

        for (const id of withBody) {
            await call(id, 'too_large 413',
                       { session, body: ' '.repeat(256 * KB) + '{}' });
            await call(id, 'text/html 413',
                       { session, body: ' '.repeat(1024 * KB) + '{}' });
            await call(id, 'media_type 415',
                       { session, body: '{}', type: 'text/html' });

            if (!operations.get(id).content['text/plain']) {
                await call(id, 'media_type 415',
                           { session, body: '{}', type: 'text/plain' });
            }
        }
    });

    test('other methods, and OPTIONS', async () => {
        const where = { session: await createSession(), message: 'm4' };

        for (const [id, operation] of operations) {
            if (operation.responses[405]) {
                const response = await send(urlOf(operation, where),
                                            { method: 'PUT' });

                seen.add(checkResponse(id, operation, response));
            }

            if (operation.method === 'OPTIONS') {
                await call(id, '204', where);

                const methods = Object.keys(document.paths[operation.path])
                                .filter(name => name !== 'parameters')
                                .map(name => name.toUpperCase());

                assert.deepEqual(operation.responses[204].headers.Allow
                                 .schema.const.split(', ').sort(),
                                 methods.sort(), id);
            }
        }
    });

    test('other paths', async () => {
        const operation = { responses: {
            404: resolved(document.components.responses.UnknownPath) } };

        for (const path of ['', 'session', 'sessions/kxs_1/ad',
                            'sessions/kxs_1/ads/'])
        {
            const response = await send(`${origin}/kontext/${path}`,
                                        { method: 'GET' });

            assert.equal(checkResponse(path, operation, response),
                         `${path} unknown_path 404`);
        }
    });

    test('pages of other origins', async () => {
        const session = await createSession();

        const headersFor = async (id, outcome, origin, where) => {
            const { headers } = await call(id, outcome, {
                session, ...where, headers: {
                    Origin: origin,
                    'Access-Control-Request-Method': 'PATCH',
                    'Access-Control-Request-Headers': 'content-type' } });

            return headers;
        };

        for (const [id, outcome] of [['getSession', '200'],
                                     ['optionsOfSession', '204'],
                                     ['closeSession', '204'],
                                     ['getSession', 'unknown_session 404']])
        {
            const mine = await headersFor(id, outcome, ORIGIN);

            assert.equal(mine['access-control-allow-origin'], ORIGIN, id);
            assert.equal(mine['access-control-allow-credentials'], 'true', id);
            assert.match(mine.vary, /\bOrigin\b/);

            const others = await headersFor(id, outcome,
                                            'https://other.example.com');

            assert.equal(others['access-control-allow-origin'], undefined, id);
            assert.equal(others['access-control-allow-credentials'],
                         undefined, id);
        }

        const all = await headersFor('optionsOfSession', '204', ORIGIN,
                                     { api: '/everybody' });

        assert.equal(all['access-control-allow-origin'], '*');
        assert.equal(all['access-control-allow-credentials'], undefined);
        assert.match(all['access-control-allow-methods'], /\bPATCH\b/);
        assert.match(all['access-control-allow-headers'], /\bContent-Type\b/i);
    });
};


const allOfIt = () => {
    test('each outcome has been seen, but for what cannot be', t => {
        const cannot = outcome => Object.keys(UNREACHABLE).find(
            kind => outcome.endsWith(` ${kind}`));
        const all = outcomes();

        assert.deepEqual(all.filter(one => !seen.has(one) && !cannot(one)),
                         []);
        assert.deepEqual(all.filter(one => seen.has(one) && cannot(one)), []);

        for (const [kind, why] of Object.entries(UNREACHABLE)) {
            t.diagnostic(`not reached: ${kind}, in ${
                all.filter(one => cannot(one) === kind).length
            } operations: ${why}`);
        }
    });

    test('so has each event', () => {
        const names = Object.keys(schemas.Event.discriminator.mapping);

        assert.deepEqual(names.filter(name => !seen.has(`event ${name}`)), []);
    });
};


describe('docs/openapi.json', () => {
    before(start);
    after(stop);

    describe('the document', theDocument);
    describe('its examples are taken', itsExamples);
    describe('calls', calls);
    describe('all of it', allOfIt);
});
