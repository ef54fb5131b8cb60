// Copyright (C) the ngx_http_kontext_module authors
//
// kontext.js in Chromium: what it does with an ad of the wire and with what a
// frame says, friendly or not.  The page has a strict policy, the frames have
// an origin of their own; a test speaks for a frame from within.

import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, test } from 'node:test';

import { launch, open } from './browser.mjs';
import { startSite } from './site.mjs';

const LIMIT = 600;                      // the most that a frame may take
const AROUND = 100;                     // and what stands around it

let site, browser, shown, page;
let next = 0;


before(async () => {
    [site, browser] = await Promise.all([startSite(), launch()]);
    shown = await open(browser, { viewport: { width: 800, height: 900 } });
    page = shown.page;
});

after(async () => {
    await browser?.close();
    site?.stop();
});

beforeEach(async () => {
    await page.goto(site.page);
    site.reset();
    shown.reset();
});

// in no test does the browser complain, or ask for anything else

afterEach(async () => {
    await page.evaluate(() => new Promise(done => setTimeout(done)));
    assert.deepEqual(shown.complaints, []);
    assert.deepEqual(shown.requests.filter(
        url => ![site.page, site.frames, site.stranger]
               .includes(new URL(url).origin)), []);
});


// what a test wants the browser to complain of

function expected(what) {
    const other = shown.complaints.filter(text => !what.test(text));

    shown.complaints.splice(0, shown.complaints.length, ...other);
}


function uuid() {
    return `00000000-0000-4000-8000-${String(++next).padStart(12, '0')}`;
}


function member({ bidId = uuid(), code = 'inlineAd', ...more } = {}) {
    return { messageId: 'kx1_m', ads: [{
        bidId, code, label: 'Sponsored',
        frameUrl: `${site.frames}/api/frame/${bidId}?code=${code}`
                  + '&messageId=kx1_m&sdk=sdk-test&theme=light',
        ...more,
    }] };
}


// kontext, events and clicks of the page

async function create(options = {}) {
    await page.evaluate(async ([frameOrigin, more]) => {
        const { createKontext } = await import('/kontext.js');

        window.events = [];
        window.clicks = [];
        window.kontext = createKontext({
            frameOrigin,
            onEvent: event => window.events.push(event),
            onClick: click => window.clicks.push(click),
            ...more,
        });
    }, [site.frames, options]);
}


// whether something was shown

function show(value, options = {}, target = '#chat') {
    return page.evaluate(([value, options, target]) => {
        window.ad = window.kontext.show(document.querySelector(target), value,
                                        options);
        return window.ad !== null;
    }, [value, options, target]);
}


async function frameOf(bidId) {
    const isIt = frame => frame.url().includes(`/api/frame/${bidId}`);
    const frame = page.frames().find(isIt)
                  ?? await page.waitForEvent('framenavigated', isIt);

    await frame.waitForLoadState();
    await frame.evaluate(() => {
        window.got ??= [];
        addEventListener('message', ({ data, origin }) => {
            window.got.push({ ...data, origin });
        });
    });

    return frame;
}


// an ad with a frame that is there

async function ad(options = {}, more = {}) {
    const value = member(more);

    await create(options);
    assert.ok(await show(value, { messages: [{ role: 'user', content: '?' }] }));

    return { value, bidId: value.ads[0].bidId,
             frame: await frameOf(value.ads[0].bidId) };
}


// Says something for a frame, and comes back when the page has heard it: an
// answer to a message of the test's own comes after that.

async function say(frame, ...messages) {
    await frame.evaluate(([messages]) => {
        for (const message of messages) {
            window.parent.postMessage(message, '*');
        }
    }, [messages]);
    await heard(frame);
}

async function heard(frame) {
    const token = `heard-${++next}`;
    const arrived = page.evaluate(token => new Promise(done => {
        addEventListener('message', function listener({ data }) {
            if (data === token) {
                removeEventListener('message', listener);
                done();
            }
        });
    }), token);

    // the listener is there when the next call is answered

    await page.evaluate(() => {});
    await frame.evaluate(token => window.parent.postMessage(token, '*'),
                         token);
    await arrived;
}

const says = (type, data = {}) => ({ type, data: { code: 'inlineAd', ...data } });


// the looks of what is shown

function looks() {
    return page.evaluate(() => {
        const box = element => element
            && element.getBoundingClientRect().toJSON();
        const element = document.querySelector('.kontext-ad');
        const frame = element?.querySelector('iframe');

        return {
            ads: document.querySelectorAll('.kontext-ad').length,
            frames: document.querySelectorAll('iframe').length,
            dialogs: document.querySelectorAll('dialog').length,
            display: element && getComputedStyle(element).display,
            label: element?.querySelector('.kontext-label')?.textContent,
            html: element?.innerHTML,
            box: box(element), frame: box(frame),
            url: location.href,
            events: window.events, clicks: window.clicks,
        };
    });
}


async function shownAd(options, more) {
    const made = await ad(options, more);

    await say(made.frame, says('init-iframe'), says('show-iframe'),
              says('resize-iframe', { height: 120 }));
    await page.evaluate(() => { window.events.length = 0; });

    return made;
}


// nothing of it makes a difference

async function noDifference(frame, ...messages) {
    const was = await looks();
    const calls = site.seen.calls.length;
    const frames = site.seen.frames.length;

    await say(frame, ...messages);

    assert.deepEqual(await looks(), was);
    assert.equal(site.seen.calls.length, calls);
    assert.equal(site.seen.frames.length, frames);
}


// the life of a friendly ad

test('an ad is loaded, hidden until its frame says so, and labelled',
     async () => {
    const { frame } = await ad();

    assert.equal((await looks()).display, 'none');

    await say(frame, says('init-iframe'));
    assert.equal((await looks()).display, 'none');

    await say(frame, says('show-iframe'),
              says('resize-iframe', { height: 120.2 }));

    const { display, label, frame: { height, width }, box } = await looks();

    assert.deepEqual([display, label, height, width],
                     ['block', 'Sponsored', 121, 784]);
    assert.equal(box.width, 784);

    await say(frame, says('hide-iframe'));
    assert.equal((await looks()).display, 'none');

    await say(frame, says('show-iframe'));
    assert.deepEqual((await looks()).frame.height, 121);

    assert.deepEqual(shown.warnings, []);
    assert.equal(site.seen.frames.length, 1);
});


test('a ready frame is told what the ad was made for', async () => {
    await create({ theme: 'dark', params: { font: 'serif' } });

    const value = member();
    const messages = [
        { role: 'system', content: 'secret' },
        ...Array.from({ length: 40 }, (_, i) => ({
            id: `m${i}`, role: i % 2 ? 'assistant' : 'user', content: `${i}`,
            createdAt: 1772475662310 + i,
        })),
        { role: 'user', content: [{ type: 'text', text: 'Look:' },
                                  { type: 'image_url', image_url: {} },
                                  { type: 'text', text: 'what is it?' }] },
        { role: 'tool', content: 'secret' },
        { role: 'user', id: 'ui', parts: [{ type: 'step-start' },
                                          { type: 'text', text: 'Well?' }] },
        { role: 'assistant', content: 'The answer itself' },
    ];

    await show(value, { messages });

    const frame = await frameOf(value.ads[0].bidId);

    await say(frame, says('init-iframe'));
    await frame.waitForFunction(() => window.got.length > 0);

    const [{ type, data, origin }] = await frame.evaluate(() => window.got);
    const { messages: told, ...rest } = data;

    assert.equal(type, 'update-iframe');
    assert.equal(origin, site.page);
    assert.deepEqual(rest, {
        code: 'inlineAd', sdk: 'sdk-test', messageId: 'kx1_m',
        otherParams: { font: 'serif', theme: 'dark' },
    });
    assert.equal(told.length, 30);
    assert.deepEqual(told[0], { id: 'm12', role: 'user', content: '12',
                                createdAt: '2026-03-02T18:21:02.322Z' });
    assert.deepEqual(told.slice(-2).map(({ role, content }) => [role, content]),
                     [['user', 'Look:\nwhat is it?'], ['user', 'Well?']]);
    assert.equal(told.at(-1).id, 'ui');
    assert.equal('createdAt' in told.at(-1), false);
    assert.doesNotMatch(JSON.stringify(told), /secret|itself/);
});


test('themes and user events reach the frames that are ready', async () => {
    const { frame } = await ad();

    await page.evaluate(() => window.kontext.setTheme('dark'));
    await say(frame, says('init-iframe'));
    await page.evaluate(() => {
        window.kontext.setTheme('light');
        window.kontext.userEvent('user.typing.started');
        window.kontext.userEvent('user.typing.started', { n: 1 });
    });
    await frame.waitForFunction(() => window.got.length === 4);

    const code = 'inlineAd';
    const [, ...got] = await frame.evaluate(() => window.got);

    assert.deepEqual(got.map(({ type, data }) => [type, data]), [
        ['update-iframe', { code, otherParams: { theme: 'light' } }],
        ['user-event-iframe', { code, name: 'user.typing.started' }],
        ['user-event-iframe', { code, name: 'user.typing.started',
                                payload: { n: 1 } }],
    ]);
});


test('a theme that nginx has put into the address stays', async () => {
    const { frame } = await ad();

    await page.evaluate(() => window.kontext.setTheme('dark'));
    await say(frame, says('init-iframe'));
    await page.evaluate(() => window.kontext.setTheme(undefined));
    await frame.waitForFunction(() => window.got.length === 2);

    assert.deepEqual(
        await frame.evaluate(() => window.got.map(
            ({ data }) => data.otherParams)),
        [{ theme: 'dark' }, { theme: 'light' }]);
});


test('events of a frame reach the page, with the bid of the ad', async () => {
    const { frame, bidId } = await shownAd();
    const common = { bidId, messageId: 'kx1_m' };

    await say(frame,
        says('event-iframe', { name: 'ad.render-started',
                               payload: { id: uuid() } }),
        says('event-iframe', { name: 'ad.viewed', payload: {
            id: uuid(), bidId: uuid(), messageId: 'other', content: 'Shoes',
            format: 'display', revenue: 100, more: {} } }),
        says('event-iframe', { name: 'ad.clicked', payload: {
            content: 'Shoes', format: 'display', area: 'button',
            url: '/landing' } }),
        says('event-iframe', { name: 'video.started' }),
        says('event-iframe', { name: 'reward.granted', payload: null }),
        says('event-iframe', { name: 'ad.error', payload: {
            message: 'Oh', errCode: 'no_video' } }),
        says('event-iframe', { name: 'ad.error' }),
        says('resize-iframe', { height: 150 }));

    assert.deepEqual((await looks()).events, [
        { name: 'ad.render-started', payload: common },
        { name: 'ad.viewed', payload: { ...common, content: 'Shoes',
                                        format: 'display' } },
        { name: 'ad.clicked', payload: {
            ...common, content: 'Shoes', url: `${site.frames}/landing`,
            format: 'display', area: 'button' } },
        { name: 'video.started', payload: common },
        { name: 'reward.granted', payload: common },
        { name: 'ad.error', payload: { ...common, message: 'Oh',
                                       errCode: 'no_video' } },
        { name: 'ad.error', payload: { ...common, message: 'Ad error',
                                       errCode: 'unknown' } },
        { name: 'ad.height', payload: { ...common, height: 150 } },
    ].map(event => ({ ...event, code: 'inlineAd' })));
});


test('clicks are told to the page, with addresses of the web only',
     async () => {
    const { frame, bidId } = await shownAd();
    const click = data => says('click-iframe', data);

    await noDifference(frame, ...[
        'javascript:alert(1)', 'JaVaScRiPt:alert(1)', ' javascript:alert(1)',
        'java\nscript:alert(1)', 'data:text/html,<script>', 'file:///etc',
        'blob:http://x/y', 'about:blank', 'intent://x', '', 'http://', 7, {},
        null, undefined, ['https://example.com/'],
    ].map(url => click({ url })));

    await say(frame, click({ url: '/go?a=b', content: 'Shoes' }),
              click({ url: 'https://example.com/x', target: 'in-app' }),
              click({ url: '//example.com/y', target: 'self' }));

    const common = { bidId, code: 'inlineAd', messageId: 'kx1_m' };

    assert.deepEqual((await looks()).clicks, [
        { ...common, url: `${site.frames}/go?a=b`, content: 'Shoes',
          target: 'browser' },
        { ...common, url: 'https://example.com/x', content: '',
          target: 'in-app' },
        { ...common, url: 'http://example.com/y', content: '',
          target: 'browser' },
    ]);
    assert.equal(page.url(), `${site.page}/`);
});


test('error-iframe takes the ad away', async () => {
    const { frame, bidId } = await shownAd();

    await frame.evaluate(message => window.parent.postMessage(message, '*'),
                         says('error-iframe'));
    await page.waitForFunction(() => !document.querySelector('iframe'));

    const { ads, events } = await looks();

    assert.equal(ads, 0);
    assert.deepEqual(events, [{ name: 'ad.error', code: 'inlineAd', payload: {
        bidId, messageId: 'kx1_m', message: 'The ad could not be shown',
        errCode: 'iframe_error' } }]);
});


test('one of several placements is shown', async () => {
    const value = member();

    value.ads.push(member({ code: 'sidebar' }).ads[0]);
    await create();

    assert.equal(await show(value, { code: 'footer' }), false);
    assert.equal(await show(value, { code: 'sidebar' }), true);
    assert.equal(await show(value), true);

    assert.deepEqual(await page.evaluate(() => window.ad.code), 'inlineAd');
    assert.equal((await looks()).ads, 2);
    await Promise.all(value.ads.map(({ bidId }) => frameOf(bidId)));
});


test('the classic script does the same', async () => {
    const value = member();

    await page.evaluate(async frameOrigin => {
        const script = document.createElement('script');

        // a page has it in its markup; a policy of trusted types wants this
        // of a script that makes one

        script.setAttribute('async', '');
        window.events = [];
        await new Promise((done, fail) => {
            const url = '/kontext.classic.js';

            fetch(url).then(() => import(url)).then(done, fail);
        });
        window.kontext = window.Kontext.createKontext({ frameOrigin });
    }, site.frames);

    assert.equal(await show(value), true);
    await say(await frameOf(value.ads[0].bidId), says('show-iframe'),
              says('resize-iframe', { height: 50 }));
    assert.equal((await looks()).frame.height, 50);
});


test('styles: within a shadow root, too', async () => {
    const { bidId } = member().ads[0];
    const value = member({ bidId });

    await create();
    await page.evaluate(value => {
        const root = document.querySelector('#chat')
                             .attachShadow({ mode: 'open' });

        window.ad = window.kontext.show(root, value);
    }, value);
    await say(await frameOf(bidId), says('show-iframe'),
              says('resize-iframe', { height: 50 }));

    assert.deepEqual(await page.evaluate(() => [
        getComputedStyle(window.ad.element).marginTop,
        getComputedStyle(window.ad.element.firstChild).fontSize,
    ]), ['12px', '12px']);
});


// the colour of a point of the page

async function colour(x, y) {
    const png = (await page.screenshot()).toString('base64');
    const other = await shown.context.newPage();

    try {
        return await other.evaluate(async ([png, x, y]) => {
            const image = new Image();

            image.src = `data:image/png;base64,${png}`;
            await image.decode();

            const canvas = new OffscreenCanvas(image.width, image.height);
            const context = canvas.getContext('2d');

            context.drawImage(image, 0, 0);

            return [...context.getImageData(x, y, 1, 1).data.slice(0, 3)];
        }, [png, x, y]);

    } finally {
        await other.close();
    }
}


test('a frame without a background is transparent, on a dark page, too',
     async () => {
    await page.emulateMedia({ reducedMotion: 'reduce' });
    await page.evaluate(() => {
        document.documentElement.style.colorScheme = 'dark';
        document.body.style.backgroundColor = '#123456';
    });
    await shownAd();

    const { frame: { right, bottom } } = await looks();

    assert.deepEqual(await colour(right - 5, bottom - 5), [0x12, 0x34, 0x56]);
    await page.emulateMedia({ reducedMotion: null });
});


// accessibility

test('the ad is a named group that no live region reads out', async () => {
    const { frame } = await shownAd();

    assert.deepEqual(await page.evaluate(() => {
        const { element } = window.ad;
        const frame = element.querySelector('iframe');

        return [element.role, element.getAttribute('aria-label'),
                element.getAttribute('aria-live'), frame.title,
                document.activeElement.tagName];
    }), ['group', 'Sponsored', 'off', 'Sponsored', 'BODY']);

    await page.getByRole('group', { name: 'Sponsored' }).waitFor();
    await frame.getByText('An ad').waitFor();
});


test('the keyboard goes through the ad in the order of the page', async () => {
    const { frame } = await shownAd();
    const where = async () => {
        const here = await page.evaluate(
            () => document.activeElement.id || document.activeElement.tagName);

        return here === 'IFRAME' ? frame.evaluate(
            () => document.activeElement.textContent) : here;
    };
    const seen = [];

    await page.focus('#before');

    for (let i = 0; i < 3; i++) {
        await page.keyboard.press('Tab');
        seen.push(await where());
    }

    assert.deepEqual(seen, ['One', 'Two', 'after']);

    await page.keyboard.press('Shift+Tab');
    assert.equal(await where(), 'Two');

    // and an ad that is hidden is no stop

    await say(frame, says('hide-iframe'));
    await page.focus('#before');
    await page.keyboard.press('Tab');
    assert.equal(await where(), 'after');
});


for (const [reducedMotion, name] of [['reduce', 'none'],
                                     ['no-preference', 'kontext-in']]) {
    test(`prefers-reduced-motion: ${reducedMotion}`, async () => {
        await page.emulateMedia({ reducedMotion });

        const { frame } = await shownAd();

        await say(frame, says('open-component-iframe', { component: 'modal' }));
        assert.deepEqual(await page.evaluate(() => [
            getComputedStyle(window.ad.element).animationName,
            getComputedStyle(document.querySelector('dialog')).animationName,
        ]), [name, name]);
        await page.emulateMedia({ reducedMotion: null });
    });
}


test('the looks are the page\'s to change', async () => {
    await shownAd();

    assert.equal(await page.evaluate(() => {
        const sheet = new CSSStyleSheet();

        sheet.replaceSync('div { margin: 3px }');
        document.adoptedStyleSheets = [sheet, ...document.adoptedStyleSheets];

        return getComputedStyle(window.ad.element).marginTop;
    }), '3px');
});


// the full screen part

async function openModal(made, data = {}) {
    const [modal] = await Promise.all([
        page.waitForEvent('framenavigated',
                          frame => frame.url().includes('/api/modal/')),
        say(made.frame, says('open-component-iframe',
                             { component: 'modal', ...data })),
    ]);

    await modal.waitForLoadState();

    return modal;
}

const modalSays = (type, data = {}) => says(type, { component: 'modal',
                                                    ...data });
const dialogs = () => page.evaluate(
    () => [...document.querySelectorAll('dialog')].map(({ open }) => open));


test('modal: shown when its frame is ready, closed when it says so',
     async () => {
    const made = await shownAd();
    const modal = await openModal(made, { componentParams: { a: 'ü &#?' } });
    const url = new URL(modal.url());

    assert.equal(url.origin, site.frames);
    assert.equal(url.pathname, `/api/modal/${made.bidId}`);
    assert.equal(url.search, `${new URL(made.value.ads[0].frameUrl).search}`
        + '&componentParams=%7B%22a%22%3A%22%C3%BC%20%26%23%3F%22%7D');
    assert.deepEqual(await dialogs(), [false]);

    // one at a time

    await noDifference(made.frame, modalSays('open-component-iframe'));

    await say(modal, modalSays('init-component-iframe'));
    assert.deepEqual(await dialogs(), [true]);

    const dialog = page.getByRole('dialog', { name: 'Sponsored' });
    const box = await dialog.boundingBox();

    assert.deepEqual(box, { x: 0, y: 0, width: 800, height: 900 });
    assert.equal(await dialog.locator('iframe').getAttribute('title'),
                 'Sponsored');
    assert.ok((await dialog.locator('iframe').boundingBox()).height > 800);
    assert.equal(await page.evaluate(
        () => document.activeElement.getAttribute('aria-label')), 'Close');

    // what it says of itself does not change the inline frame

    const { frame: { height } } = await looks();

    await say(modal, says('resize-iframe', { height: 400 }),
              says('hide-iframe'), says('set-styles-iframe', {
                  iframeStyles: { width: 10 } }));
    assert.equal((await looks()).frame.height, height);

    await say(modal, says('event-iframe', { name: 'video.completed' }));
    assert.equal((await looks()).events.at(-1).name, 'video.completed');

    await modal.evaluate(message => window.parent.postMessage(message, '*'),
                         modalSays('close-component-iframe'));
    await page.waitForFunction(() => !document.querySelector('dialog'));
    assert.equal((await looks()).ads, 1);
});


for (const [how, close] of [
    ['Escape', () => page.keyboard.press('Escape')],
    ['its button', () => page.getByRole('button', { name: 'Zu' }).click()],
]) {
    test(`modal: the user closes it with ${how}, the focus goes back`,
         async () => {
        const made = await shownAd({ closeLabel: 'Zu' });

        await made.frame.getByText('One').focus();

        const modal = await openModal(made);

        await say(modal, modalSays('init-component-iframe'));
        assert.deepEqual(await dialogs(), [true]);

        await close();
        await page.waitForFunction(() => !document.querySelector('dialog'));
        assert.equal(await page.evaluate(
            () => document.activeElement.className), 'kontext-iframe');

        // another one, and what is left of the first does not close it

        const second = await openModal(made);

        await say(second, modalSays('init-component-iframe'));
        assert.deepEqual(await dialogs(), [true]);
    });
}


test('modal: one that does not get ready is given up', async () => {
    const { frame } = await shownAd();

    await say(frame, modalSays('open-component-iframe', { timeout: 50 }));
    await page.waitForFunction(() => window.events.length > 0);

    const { events, dialogs: left } = await looks();

    assert.equal(left, 0);
    assert.equal(events[0].name, 'ad.error');
    assert.equal(events[0].payload.errCode, 'timeout');
});


test('modal: an error of it closes it', async () => {
    const made = await shownAd();

    for (const [said, message, errCode] of [
        [{ message: 'Oh', errorType: 'no_video' }, 'Oh', 'no_video'],
        [{ message: 7, errorType: {} }, 'Modal error', 'modal_component_error'],
    ]) {
        const modal = await openModal(made);

        await modal.evaluate(message => window.parent.postMessage(message, '*'),
                             modalSays('error-component-iframe', said));
        await page.waitForFunction(() => !document.querySelector('dialog'));

        const { payload } = (await looks()).events.at(-1);

        assert.deepEqual([payload.message, payload.errCode],
                         [message, errCode]);
    }
});


test('modal: not one that cannot be', async () => {
    const { frame } = await shownAd();

    await noDifference(frame, says('open-component-iframe'),
                       says('open-component-iframe',
                            { component: 'skoverlay' }),
                       says('init-component-iframe'),
                       modalSays('init-component-iframe'),
                       modalSays('error-component-iframe'),
                       modalSays('close-component-iframe'));

    await frame.evaluate(() => {
        const cyclic = {};

        cyclic.self = cyclic;

        for (const componentParams of ['x'.repeat(3000), cyclic, { n: 1n }]) {
            window.parent.postMessage({ type: 'open-component-iframe', data: {
                component: 'modal', componentParams } }, '*');
        }
    });
    await heard(frame);

    const { events, dialogs: left } = await looks();

    assert.equal(left, 0);
    assert.deepEqual(events.map(({ payload }) => payload.errCode),
                     Array(3).fill('modal_component_error'));
});


test('modal: none where the page wants none, and no endless row of them',
     async () => {
    const { frame } = await shownAd({ modal: false });

    await noDifference(frame, modalSays('open-component-iframe'));

    await page.reload();

    const other = await shownAd();
    const open = modalSays('open-component-iframe');
    const close = modalSays('close-component-iframe');

    await say(other.frame, ...Array(30).fill([open, close]).flat(), open);
    assert.equal((await looks()).dialogs, 0);
});


// a bid is loaded once

test('never twice: a bid that was shown, wherever and by whomever',
     async () => {
    const { value } = await shownAd();

    assert.equal(await show(value), false);
    assert.equal(await show(value, {}, '#other'), false);

    await page.evaluate(() => window.ad?.close());
    assert.equal(await show(value), false);

    await create();
    assert.equal(await show(value), false);

    await page.evaluate(async frameOrigin => {
        await import('/kontext.classic.js');
        window.kontext = window.Kontext.createKontext({ frameOrigin });
    }, site.frames);
    assert.equal(await show(value), false);

    assert.equal(site.seen.frames.length, 1);
    assert.equal(shown.warnings.length, 5);
    assert.ok(shown.warnings.every(text => /loaded before/.test(text)));
});


test('never twice: a frame that is moved in the document is taken away',
     async () => {
    const { value } = await shownAd();

    await page.evaluate(() => document.querySelector('#other').append(
        window.ad.element));
    await page.waitForFunction(() => !document.querySelector('iframe'));
    assert.equal((await looks()).ads, 0);
    assert.equal(await show(value), false);
    assert.equal(site.seen.frames.length, 1);
});


test('never twice: one that was made before it was put into the page',
     async () => {
    const value = member();

    await create();
    assert.equal(await page.evaluate(value => {
        const target = document.createElement('div');

        target.id = 'late';
        window.ad = window.kontext.show(target, value);

        return window.kontext.show(target, value) === null
               && new Promise(done => setTimeout(() => {
                   document.querySelector('#chat').append(target);
                   done(true);
               }));
    }, value), true);

    await say(await frameOf(value.ads[0].bidId), says('init-iframe'),
              says('show-iframe'), says('resize-iframe', { height: 50 }));
    assert.equal((await looks()).frame.height, 50);

    await page.evaluate(() => document.querySelector('#other').append(
        document.querySelector('#late')));
    await page.waitForFunction(() => !document.querySelector('iframe'));
    assert.equal(site.seen.frames.length, 1);
});


test('one that is closed at once was not loaded: it can be shown still',
     async () => {
    const value = member();

    await create();
    assert.equal(await page.evaluate(value => {
        const chat = document.querySelector('#chat');

        window.kontext.show(chat, value).close();

        return window.kontext.show(chat, value) !== null
               && window.kontext.show(chat, value) === null;
    }, value), true);

    await frameOf(value.ads[0].bidId);
    assert.equal(site.seen.frames.length, 1);
});


test('an ad of a message that is gone listens no more', async () => {
    const { frame } = await shownAd();

    await page.evaluate(() => document.querySelector('#chat')
                                      .replaceChildren());
    assert.equal(frame.isDetached(), true);
    assert.equal(await show(member()), true);
    assert.equal((await looks()).ads, 1);

    await page.evaluate(() => window.kontext.close());
    assert.equal((await looks()).ads, 0);

    // nobody would hear it, and its bid would be lost

    const value = member();

    assert.equal(await show(value), false);
    await create();
    assert.equal(await show(value), true);
    await frameOf(value.ads[0].bidId);
});


// a hostile wire

const HOSTILE = {
    'a frame of javascript:': { frameUrl: 'javascript:alert(1)' },
    'a frame of data:': { frameUrl: 'data:text/html,<script>alert(1)</script>' },
    'a frame of the page itself': ({ bidId }) =>
        ({ frameUrl: `${site.page}/api/frame/${bidId}?code=inlineAd` }),
    'a frame of somebody else': ({ bidId }) =>
        ({ frameUrl: `${site.stranger}/api/frame/${bidId}?code=inlineAd` }),
    'a frame of the default origin, where another is configured':
        ({ bidId }) => ({ frameUrl:
            `https://server.megabrain.co/api/frame/${bidId}?code=inlineAd` }),
    'a frame with a login': ({ frameUrl }) =>
        ({ frameUrl: frameUrl.replace('://', '://user:word@') }),
    'a frame whose origin only begins like that': ({ frameUrl }) =>
        ({ frameUrl: frameUrl.replace('/api', '.example.com/api') }),
    'a frame of another bid': ({ frameUrl }) =>
        ({ frameUrl: frameUrl.replace(/[0-9a-f-]{36}/, uuid()) }),
    'another path': ({ frameUrl }) =>
        ({ frameUrl: frameUrl.replace('/api/frame/', '/api/modal/') }),
    'a path that goes elsewhere': ({ frameUrl }) =>
        ({ frameUrl: frameUrl.replace('?', '/../../../other?') }),
    'a relative address': ({ bidId }) =>
        ({ frameUrl: `/api/frame/${bidId}?code=inlineAd` }),
    'an address that is no text': ({ frameUrl }) => ({ frameUrl: [frameUrl] }),
    'no address': { frameUrl: undefined },
    'a bid that is no UUID': ({ frameUrl }) => ({
        bidId: '../..', frameUrl: frameUrl.replace(/[0-9a-f-]{36}/, '../..') }),
    'a bid in a list': ({ bidId }) => ({ bidId: [bidId] }),
    'no bid': { bidId: null },
    'no code': { code: '' },
    'a code that is no text': { code: { toString: 1 } },
};

for (const [name, change] of Object.entries(HOSTILE)) {
    test(`hostile wire: ${name}`, async () => {
        const value = member();
        const [good] = value.ads;

        value.ads[0] = { ...good, ...typeof change === 'function'
                                      ? change(good) : change };
        await create();
        assert.equal(await show(value), false);

        const { ads, frames } = await looks();

        assert.deepEqual([ads, frames], [0, 0]);
        assert.equal(site.seen.frames.length, 0);
        assert.equal(shown.warnings.length, 1);
        assert.match(shown.warnings[0], /^kontext: no ad is shown: /);
    });
}


test('hostile wire: no ad in what is none', async () => {
    await create();

    for (const value of [null, 0, 'kontext', [], {}, { ads: null },
                         { ads: [] }, { ads: [null, 0, ''] },
                         { kontext: { ads: [] } },
                         { messageId: 'm', ads: { length: 1 } }]) {
        assert.equal(await show(value), false);
    }

    for (const value of [{ ads: member().ads }, { messageId: 'm', ads: [1] },
                         { messageId: [], ads: member().ads },
                         { messageId: '', ads: member().ads }]) {
        assert.equal(await show(value), false);
    }

    assert.equal((await looks()).frames, 0);
});


test('hostile wire: a label is text, and never too much of it', async () => {
    await create();

    for (const [label, text] of [
        ['<img src=x onerror=alert(1)>', '<img src=x onerror=alert(1)>'],
        ['x'.repeat(100000), 'x'.repeat(256)],
        ['   ', 'Sponsored'], [7, 'Sponsored'], [null, 'Sponsored'],
    ]) {
        const value = member({ label });

        assert.equal(await show(value), true);
        assert.deepEqual(await page.evaluate(() => [
            window.ad.element.firstChild.textContent,
            window.ad.element.querySelectorAll('img').length,
        ]), [text, 0]);
        await frameOf(value.ads[0].bidId);
        await page.evaluate(() => window.ad.close());
    }
});


test('frames of the page\'s own origin, or of none, are a mistake', async () => {
    for (const frameOrigin of [site.page, 'about:blank', 'data:,', 'file:///x',
                               'not an address', '']) {
        await assert.rejects(create({ frameOrigin }), /TypeError/);
    }
});


// a hostile frame

test('hostile frame: another code, component or type', async () => {
    const { frame } = await shownAd();

    await noDifference(frame, ...[
        says('resize-iframe', { height: 300, code: 'sidebar' }),
        says('resize-iframe', { height: 300, code: ['inlineAd'] }),
        says('resize-iframe', { height: 300, code: null }),
        says('hide-iframe', { code: 'inlineAd ' }),
        says('hide-iframe', { component: 'inline' }),
        says('hide'), says('HIDE-IFRAME'), says('hide-iframe '),
        says('__proto__'), says('constructor'), says('toString'),
        says('view-iframe'), says('open-skoverlay-iframe'),
        { type: 'hide-iframe', data: { code: 'other' }, code: 'inlineAd' },
    ]);
});


test('hostile frame: what is no message', async () => {
    const { frame } = await shownAd();
    const was = await looks();

    await frame.evaluate(() => {
        const cyclic = { type: 'hide' };

        cyclic.data = cyclic;

        for (const message of [
            null, undefined, 0, 1n, NaN, '', 'hide-iframe', [], ['hide-iframe'],
            {}, cyclic, new Map([['type', 'hide-iframe']]), new Date(),
            { type: null }, { type: 7, data: {} }, { type: {}, data: {} },
            { type: 'resize-iframe' }, { type: 'resize-iframe', data: null },
            { type: 'resize-iframe', data: 7 },
            { type: 'resize-iframe', data: 'height' },
            { type: 'event-iframe', data: [] },
            { type: 'event-iframe', data: { name: {} } },
            { type: 'event-iframe', data: { name: 'ad.viewed', payload: 7 } },
            { type: 'click-iframe', data: null },
            { type: 'set-styles-iframe', data: null },
            { type: 'set-styles-iframe',
              data: { containerStyles: 7, iframeStyles: 'all' } },
            { type: 'open-component-iframe', data: null },
            { type: 'x'.repeat(1 << 20), data: {} },
        ]) {
            window.parent.postMessage(message, '*');
        }
    });
    await heard(frame);
    assert.deepEqual(await looks(), was);
});


test('hostile frame: sizes', async () => {
    const { frame } = await shownAd();
    const was = await looks();

    await frame.evaluate(() => {
        for (const height of [0, -1, -Infinity, NaN, '300', '300px', null, [300],
                              { valueOf: 300 }, true, 1n, undefined]) {
            window.parent.postMessage({ type: 'resize-iframe', data: {
                height, code: 'inlineAd' } }, '*');
        }
    });
    await heard(frame);
    assert.deepEqual(await looks(), was);

    for (const height of [1e9, Number.MAX_VALUE, Infinity, LIMIT + 0.1]) {
        await say(frame, says('resize-iframe', { height: 10 }));
        await frame.evaluate(height => window.parent.postMessage({
            type: 'resize-iframe', data: { height } }, '*'), height);
        await heard(frame);
        assert.equal((await looks()).frame.height, LIMIT);
    }
});


test('hostile frame: styles', async () => {
    const { frame } = await shownAd();
    const bad = {
        position: 'fixed', inset: '0', zIndex: '2147483647', display: 'none',
        transform: 'scale(50)', opacity: '0', visibility: 'hidden',
        height: '5000px', maxHeight: 'none', top: '-100px', left: '0',
        background: `url(${site.stranger}/track)`, color: 'transparent',
        marginTop: '-200px', 'margin-left': '-1px', marginRight: -50,
        backgroundColor: `url(${site.stranger}/track)`, content: '"x"',
        boxShadow: '0 0 0 100px red; position: fixed',
        padding: '1px; position: fixed', border: '1px solid red !important',
        filter: 'blur(9px)', backgroundImage: `url(${site.stranger}/track)`,
        '--x': '1', cssText: 'position: fixed', setProperty: 'x', all: 'unset',
        __proto__: 'x', 'border-image': `url(${site.stranger}/track)`,
        width: {}, maxWidth: ['10px'], minWidth: null,
        borderColor: 'x'.repeat(100),
    };

    await noDifference(frame, says('set-styles-iframe', {
        containerStyles: bad, iframeStyles: bad }));

    // what it may say stays within the place it has

    const big = { margin: '9999px', padding: 5000, minWidth: '9999px',
                  border: '900px solid red' };
    const target = await page.locator('#chat').boundingBox();

    await say(frame, says('set-styles-iframe', { containerStyles: big,
                                                 iframeStyles: big }));

    const { box, label } = await looks();

    assert.ok(box.height <= LIMIT + AROUND, `${box.height}`);
    assert.ok(box.width <= target.width, `${box.width}`);
    assert.equal(box.x, target.x);
    assert.equal(label, 'Sponsored');
    assert.ok(await page.locator('.kontext-label').isVisible());
    assert.equal(await page.evaluate(
        () => document.documentElement.scrollWidth), 800);

    await say(frame, says('set-styles-iframe', {
        containerStyles: { margin: 0, padding: '4px 8px', minWidth: 0,
                           border: 'none', backgroundColor: '#123456' },
        iframeStyles: { margin: 0, padding: 0, minWidth: 0, border: 0,
                        borderRadius: 12 } }));

    assert.deepEqual(await page.evaluate(() => {
        const box = window.ad.element.querySelector('.kontext-frame');
        const { padding, backgroundColor } = getComputedStyle(box);

        return [padding, backgroundColor,
                getComputedStyle(box.firstChild).borderRadius];
    }), ['4px 8px', 'rgb(18, 52, 86)', '12px']);
});


test('hostile frame: events that are none, or too many', async () => {
    const { frame } = await shownAd({ api: '/api' });
    const event = (name, payload) => says('event-iframe', { name, payload });
    const viewed = { content: 'Shoes', format: 'display' };
    const clicked = { ...viewed, area: 'button' };

    await noDifference(frame, ...[
        'ad.filled', 'ad.no-fill', 'ad.height', 'ad.cleared', 'session.closed',
        'events.lost', '__proto__', 'constructor', 'AD.VIEWED', '', 7, null,
        ['ad.viewed'],
    ].map(name => event(name, viewed)),
        event('ad.viewed'), event('ad.viewed', { content: 'Shoes' }),
        event('ad.viewed', { ...viewed, format: 7 }),
        event('ad.viewed', { ...viewed, content: '' }),
        event('ad.clicked', clicked),
        event('ad.clicked', { ...clicked, url: 'javascript:alert(1)' }),
        event('ad.clicked', { ...clicked, url: 'data:,' }));

    await say(frame,
        ...Array(50).fill(event('ad.viewed', viewed)),
        ...Array(50).fill(event('ad.render-started')),
        ...Array(50).fill(event('ad.clicked', { ...clicked, url: '/x' })),
        ...Array(50).fill(event('ad.error')));

    const names = (await looks()).events.map(({ name }) => name);
    const count = name => names.filter(one => one === name).length;

    assert.deepEqual(['ad.viewed', 'ad.render-started', 'ad.clicked',
                      'ad.error'].map(count), [1, 1, 20, 20]);

    await say(frame, event('ad.render-completed', {
        content: 'é'.repeat(1 << 20), url: `/${'u'.repeat(1 << 20)}` }));

    const { content, url } = (await looks()).events.at(-1).payload;

    assert.deepEqual([content.length, url.length <= 2048], [256, true]);
});


test('hostile frame: it stays in its sandbox', async () => {
    const { frame } = await shownAd();
    const dialogs = [];
    const listener = dialog => {
        dialogs.push(dialog.message());
        dialog.dismiss();
    };

    page.on('dialog', listener);

    assert.deepEqual(await frame.evaluate(url => {
        const tried = [];
        const go = (name, code) => {
            try {
                tried.push([name, String(code())]);
            } catch (error) {
                tried.push([name, error.name]);
            }
        };

        go('top', () => { window.top.location = url; });
        go('parent', () => window.parent.document.title);
        go('sandbox', () => window.frameElement?.removeAttribute('sandbox'));
        go('alert', () => window.alert('hello'));
        go('confirm', () => window.confirm('hello'));

        return tried;
    }, `${site.stranger}/gone`), [
        ['top', 'SecurityError'], ['parent', 'SecurityError'],
        ['sandbox', 'undefined'], ['alert', 'undefined'],
        ['confirm', 'false'],
    ]);

    page.off('dialog', listener);
    assert.deepEqual(dialogs, []);
    assert.equal(page.url(), `${site.page}/`);
    assert.equal((await looks()).ads, 1);

    // Chromium says so itself

    expected(/sandboxed|Unsafe attempt/);
});


test('hostile page: messages of other origins and of other frames',
     async () => {
    const { frame, bidId } = await shownAd();
    const was = await looks();
    const lies = [
        says('resize-iframe', { height: 300 }), says('hide-iframe'),
        says('error-iframe'), modalSays('open-component-iframe'),
        says('event-iframe', { name: 'ad.viewed', payload: {
            bidId, content: 'x', format: 'x' } }),
        says('click-iframe', { url: 'https://example.com/' }),
    ];

    // the page itself

    await page.evaluate(lies => {
        for (const lie of lies) {
            window.postMessage(lie, '*');
        }
    }, lies);

    // somebody else's frame, and one of the ad server's that is no ad

    for (const url of [`${site.stranger}/frame`, `${site.frames}/frame`]) {
        await page.evaluate(url => {
            const frame = document.createElement('iframe');

            frame.id = 'liar';
            frame.src = url;
            document.querySelector('#other').append(frame);

            return new Promise(done => { frame.onload = done; });
        }, url);

        const liar = page.frames().find(one => one.url() === url);

        await say(liar, ...lies);
        await page.evaluate(() => document.querySelector('#liar').remove());
    }

    assert.deepEqual(await looks(), was);

    // the ad's own frame, when it has gone elsewhere

    await Promise.all([
        page.waitForEvent('framenavigated'),
        frame.evaluate(url => { location = url; }, `${site.stranger}/away`),
    ]);
    await frame.waitForLoadState();
    await say(frame, ...lies);
    assert.deepEqual(await looks(), was);
});


test('hostile page: one ad cannot speak for another', async () => {
    const first = await shownAd();
    const value = member();

    assert.equal(await show(value, {}, '#other'), true);

    const other = await frameOf(value.ads[0].bidId);

    await noDifference(other, says('resize-iframe', { height: 0 }),
        says('event-iframe', { name: 'ad.viewed', payload: {
            bidId: first.bidId, content: 'x' } }));
    await say(other, says('event-iframe', { name: 'ad.viewed', payload: {
        bidId: first.bidId, content: 'x', format: 'x' } }), says('hide-iframe'));

    const { events, display } = await looks();

    assert.deepEqual(events.map(({ payload }) => payload.bidId),
                     [value.ads[0].bidId]);
    assert.equal(display, 'block');
});


// reports to the session API

const view = says('event-iframe', { name: 'ad.viewed', payload: {
    content: 'Shoes', format: 'display' } });

async function calls(n) {
    for (const end = Date.now() + 10_000; site.seen.calls.length < n;) {
        assert.ok(Date.now() < end, `${site.seen.calls.length} calls`);
        await heard(page);
    }

    return site.seen.calls;
}


test('reports: in order, to the session of the conversation', async () => {
    const { frame, bidId } = await shownAd({
        api: '/api', userId: 'u', conversationId: 'c',
        headers: { 'X-User-Id': 'u' },
    });

    await say(frame, says('event-iframe', { name: 'ad.render-started' }), view,
              says('resize-iframe', { height: 77 }),
              says('event-iframe', { name: 'ad.error' }));

    const [session, ...events] = await calls(4);
    const common = { bidId, messageId: 'kx1_m' };

    assert.equal(session.url, '/api/sessions');
    assert.deepEqual(session.body, { userId: 'u', conversationId: 'c' });
    assert.ok(events.every(({ url, headers }) =>
        url === '/api/sessions/kxs_1/events' && headers['x-user-id'] === 'u'
        && headers['content-type'] === 'application/json'));
    assert.deepEqual(events.map(({ body }) => body), [
        { name: 'ad.render-started', code: 'inlineAd', payload: common },
        { name: 'ad.viewed', code: 'inlineAd', payload: {
            ...common, content: 'Shoes', format: 'display' } },
        { name: 'ad.error', code: 'inlineAd', payload: {
            ...common, message: 'Ad error', errCode: 'unknown' } },
    ]);
    assert.equal(await page.evaluate(() => window.kontext.session()), 'kxs_1');
    assert.equal(site.seen.calls.length, 4);
});


test('reports: to a session that the page knows', async () => {
    const { frame } = await shownAd({ api: '/api', sessionId: 'kxs_/?' });

    await say(frame, view);

    const [{ url }] = await calls(1);

    assert.equal(url, '/api/sessions/kxs_%2F%3F/events');
});


test('reports: a session that has ended begins anew, once', async () => {
    const { answer } = site;
    let n = 0;

    site.answer = ({ url }) => url.endsWith('/sessions')
        ? [201, { sessionId: `kxs_${++n}` }]
        : /kxs_2/.test(url) ? [202, { id: 1 }]
                            : [404, { error: { code: 'unknown_session' } }];

    try {
        const { frame } = await shownAd({ api: '/api' });

        await say(frame, view);
        assert.deepEqual((await calls(4)).map(({ url }) => url), [
            '/api/sessions', '/api/sessions/kxs_1/events',
            '/api/sessions', '/api/sessions/kxs_2/events',
        ]);
        expected(/status of 404/);

    } finally {
        site.answer = answer;
    }
});


test('reports: an API that fails is asked again with the next event',
     async () => {
    const { answer } = site;

    site.answer = () => [503, 'not what was asked for'];

    try {
        const { frame } = await shownAd({ api: '/api' });

        await say(frame, view);
        await calls(1);
        assert.equal(await page.evaluate(() => window.kontext.session()), null);
        site.reset();
        site.answer = answer;
        await say(frame, says('event-iframe', { name: 'video.started' }));
        assert.deepEqual((await calls(2)).map(({ url }) => url),
                         ['/api/sessions', '/api/sessions/kxs_1/events']);
        expected(/status of 503/);

    } finally {
        site.answer = answer;
    }
});


test('reports: what waits for others goes out when the user leaves',
     async () => {
    const { answer } = site;
    let release;
    const held = new Promise(done => { release = done; });

    site.answer = async call => {
        if (call.body.name === 'ad.render-started') {
            await held;
        }

        return answer(call);
    };

    try {
        const { frame } = await shownAd({ api: '/api' });

        await say(frame, says('event-iframe', { name: 'ad.render-started' }));
        await calls(2);
        await say(frame, says('event-iframe', { name: 'ad.render-completed' }),
                  view);
        assert.equal(site.seen.calls.length, 2);

        await page.goto(site.page);
        assert.deepEqual((await calls(4)).slice(2).map(({ body }) => body.name)
                                          .sort(),
                         ['ad.render-completed', 'ad.viewed']);

    } finally {
        release();
        site.answer = answer;
    }
});


test('reports: none without an API', async () => {
    const { frame } = await shownAd();

    await say(frame, view);
    assert.equal((await looks()).events.length, 1);
    assert.equal(await page.evaluate(() => window.kontext.session()), null);
    assert.equal(site.seen.calls.length, 0);
});
