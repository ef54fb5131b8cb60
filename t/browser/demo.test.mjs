// Copyright (C) the ngx_http_kontext_module authors
//
// The demo's chat page in Chromium, with nginx and the module behind it: as a
// user clicks through it, and as it looks.  Screenshots are left in
// build/screenshots.
//
//   KONTEXT_MODULE   the module; demo/run builds it if there is none

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { start } from '../node/stack.mjs';
import { launch, open } from './browser.mjs';

const SHOTS = fileURLToPath(new URL('../../build/screenshots/',
                                    import.meta.url));
const DESKTOP = { width: 1280, height: 860 };
const PHONE = { width: 390, height: 844 };

let stack, browser, frameOrigin;


before(async () => {
    [stack, browser] = await Promise.all([start(), launch()]);
    ({ frameOrigin } = await (await fetch(`${stack.url}/config.json`)).json());
    await mkdir(SHOTS, { recursive: true });
});

after(async () => {
    await browser?.close();
    await stack?.stop();
});

// Whatever is tried: nothing is complained of, nothing else is asked for, and
// no bid is loaded twice.

function visit(name, options, scenario) {
    test(name, async () => {
        const made = await open(browser, { viewport: DESKTOP, ...options });
        const { context, page, requests, complaints, warnings } = made;
        const response = await page.goto(stack.url);

        await page.waitForSelector('#session dd[title^="kxs_"]',
                                   { state: 'attached' });
        await scenario({ ...made, response });
        await context.close();

        const frames = requests.map(url => new URL(url).pathname)
                               .filter(path => path.startsWith('/api/frame/'));

        assert.deepEqual(complaints, []);
        assert.deepEqual(warnings, []);
        assert.deepEqual(requests.filter(url => ![stack.url, frameOrigin]
                                         .includes(new URL(url).origin)), []);
        assert.equal(new Set(frames).size, frames.length);
    });
}


async function answered(page, n) {
    await page.waitForFunction(n => {
        const articles = document.querySelectorAll('#log article');

        return articles.length === n
               && articles[n - 1].ariaBusy === 'false'
               && !document.querySelector('#send').dataset.busy;
    }, n);
}


// the n-th answer has an ad that can be seen

async function adUnder(page, n) {
    const article = page.locator('#log article').nth(n - 1);

    await article.locator('.kontext-label').waitFor();

    return article.frameLocator('iframe');
}


// what nginx says about the newest answer has come

function logged(page) {
    return page.waitForFunction(
        () => document.querySelector('#turns dd:last-child')?.title !== '…');
}


// how long nginx held the end of each answer of the chat, in milliseconds

async function holds(page) {
    const conversation = await page.locator('#session dd').nth(1)
                                   .getAttribute('title');
    const log = await (await fetch(`${stack.url}/chats.log`)).text();

    return log.trim().split('\n').map(line => JSON.parse(line).kontext)
        .filter(line => line.conversation === conversation)
        .map(line => Math.round(line.hold_time * 1000));
}


// the names of the events in the panel, the oldest first

function events(page) {
    return page.locator('#events li').evaluateAll(
        items => items.map(item => item.dataset.name).reverse());
}

async function seen(page, name, n) {
    await page.waitForFunction(
        ([name, n]) => document.querySelectorAll(
            `#events [data-name="${name}"]`).length === n, [name, n]);
}


// what the panel says of the newest answer, milliseconds as numbers

function facts(page) {
    return page.locator('#turns li').first().locator('dl').evaluate(
        list => Object.fromEntries([...list.querySelectorAll('dt')].map(dt => {
            const text = dt.nextSibling.textContent;

            return [dt.textContent,
                    / ms$/.test(text) ? parseInt(text, 10) : text];
        })));
}


async function ask(page, text, n) {
    await page.fill('#text', text);
    await page.click('#send');
    await answered(page, n);
}


// the event stream of the session up to its end

async function readEvents(id) {
    const url = `${stack.url}/kontext/sessions/${id}`;
    const stream = await fetch(`${url}/events`);

    await fetch(url, { method: 'DELETE' });

    return (await stream.text()).split('\n')
        .filter(line => line.startsWith('data: '))
        .map(line => JSON.parse(line.slice(6)));
}


describe('the page', { concurrency: 3 }, () => {

visit('a conversation of three turns, clicked through', {},
      async ({ page, context, requests, response }) => {
    const policy = response.headers()['content-security-policy'];

    assert.notEqual(frameOrigin, stack.url);
    assert.match(policy, /default-src 'none'/);
    assert.match(policy, new RegExp(`frame-src ${frameOrigin};`));
    assert.doesNotMatch(policy, /unsafe|\*|http:(?!\/\/127)/);

    // 1: an idea of the page

    await page.getByRole('button', { name: /marathon/ }).click();
    await answered(page, 1);
    await (await adUnder(page, 1)).getByText('Stride & Co.').waitFor();
    await seen(page, 'ad.viewed', 1);

    await logged(page);

    const first = await facts(page);

    assert.ok(first['First token'] > 0);
    assert.ok(first['Ad ready'] > 0);
    assert.ok(first.Finish > first['First token']);
    assert.deepEqual([first['Held for the ad']], await holds(page));
    assert.equal(first.Ad, 'filled, put in');

    const answer = page.locator('#log article').first();

    assert.match(await answer.innerText(), /comfort beats speed[^]*Sponsored/);
    assert.equal(await answer.locator('ol li').count(), 3);
    assert.equal(await answer.locator('strong').first().innerText(),
                 '8–10 mm of drop');

    // 2: written, and sent with the keyboard

    await page.fill('#text', 'A weekend in Lisbon?');
    await page.keyboard.press('Enter');
    await answered(page, 2);
    await (await adUnder(page, 2)).getByText('Nightline').waitFor();
    await seen(page, 'ad.viewed', 2);

    // 3: an answer that is short, so that its end may wait for the ad

    await ask(page, 'Just say hello', 3);
    await (await adUnder(page, 3)).getByText('Paperleaf').waitFor();
    await seen(page, 'ad.viewed', 3);

    await logged(page);

    const third = await facts(page);

    assert.equal(third['Held for the ad'], (await holds(page)).at(-1));
    assert.ok(third.Finish >= third['Held for the ad']);

    // older ads are where they were, all labelled, under their answers

    assert.equal(await page.locator('.kontext-ad:visible').count(), 3);
    assert.deepEqual(await page.locator('.kontext-label').allInnerTexts(),
                     Array(3).fill('Sponsored'));
    assert.equal(await page.locator('#turns li').count(), 3);

    // in sight without scrolling: what was written last

    assert.ok(await page.locator('#scroll').evaluate(
        ({ scrollTop, scrollHeight, clientHeight }) =>
            scrollHeight - scrollTop - clientHeight < 2));

    // a click leads to a tab of its own, and is told

    const [popup] = await Promise.all([
        context.waitForEvent('page'),
        (await adUnder(page, 3)).getByRole('link').click(),
    ]);

    await popup.getByText('advertiser\'s own page').waitFor();
    assert.equal(new URL(popup.url()).origin, frameOrigin);
    await popup.close();
    await seen(page, 'ad.clicked', 1);

    // the session and all that happened in it, as the API has it

    const id = await page.locator('#session dd').nth(2).getAttribute('title');
    const session = await (await fetch(
        `${stack.url}/kontext/sessions/${id}`)).json();
    const all = await readEvents(id);
    const bids = Object.values(session.ads).map(([{ bidId }]) => bidId);

    assert.equal(bids.length, 3);
    assert.match(session.serverSessionId, /^[0-9a-f-]{36}$/);
    assert.equal(session.serverSessionId,
                 await page.locator('#session dd').nth(3)
                           .getAttribute('title'));

    for (const name of ['ad.filled', 'ad.render-started', 'ad.render-completed',
                        'ad.viewed'])
    {
        assert.deepEqual(all.filter(event => event.name === name)
                            .map(({ payload }) => payload.bidId).sort(),
                         [...bids].sort(), name);
    }

    const { payload } = all.find(({ name }) => name === 'ad.clicked');

    assert.equal(payload.content,
                 'The notebook that plans one step at a time');
    assert.equal(payload.url, `${frameOrigin}/landing/${payload.bidId}`);
    assert.equal(payload.area, 'button');

    // the panel has had the same, live, and knows that it is over

    await seen(page, 'session.closed', 1);
    assert.deepEqual(await events(page), all.map(({ name }) => name));

    assert.equal(requests.filter(url => /\/api\/frame\//.test(url)).length, 3);
});


visit('an ad that came in sight as it was measured is seen as one', {},
      async ({ context, page }) => {

    // two changes in one call, which is what a busy browser makes of them

    await context.addInitScript(() => {
        const { IntersectionObserver } = globalThis;

        globalThis.IntersectionObserver = class extends IntersectionObserver {
            constructor(heard, options) {
                super(entries => heard(
                    [{ intersectionRatio: 0, isIntersecting: false },
                     ...entries]), options);
            }
        };
    });

    await ask(page, 'Which shoes?', 1);
    await adUnder(page, 1);
    await seen(page, 'ad.viewed', 1);
});


visit('the full screen part: opened, labelled, closed, the focus back', {},
     async ({ page }) => {

    await ask(page, 'What shall I cook tonight?', 1);

    const ad = await adUnder(page, 1);
    const dialog = page.getByRole('dialog', { name: 'Sponsored' });

    for (const close of [
        () => page.keyboard.press('Escape'),
        () => dialog.getByRole('button', { name: 'Close' }).click(),
        () => page.frameLocator('dialog iframe')
                  .getByRole('button', { name: 'Back to the chat' }).click(),
    ]) {
        await ad.getByRole('button', { name: 'Details' }).click();
        await dialog.waitFor();
        await page.frameLocator('dialog iframe').getByText('Casa Lunga')
                  .first().waitFor();
        assert.deepEqual(await dialog.boundingBox(),
                         { x: 0, y: 0, ...DESKTOP });

        await close();
        await dialog.waitFor({ state: 'detached' });
        assert.equal(await page.evaluate(() => document.activeElement.tagName),
                     'IFRAME');
    }

    assert.ok(await ad.getByText('Pecorino and pepper').isVisible());
});


visit('all of it with the keyboard', {}, async ({ page }) => {
    const focused = () => page.evaluate(() => document.activeElement.id);

    assert.equal(await focused(), 'text');
    await page.keyboard.type('Which shoes?');
    await page.keyboard.press('Enter');
    await answered(page, 1);
    await adUnder(page, 1);
    assert.equal(await focused(), 'text', 'the ad leaves the focus alone');

    // from the message box back to the chat: the two in the ad are the last

    const inAd = () => page.frames()
        .find(frame => frame.url().startsWith(`${frameOrigin}/api/frame/`))
        .evaluate(() => document.activeElement.textContent);

    await page.keyboard.press('Shift+Tab');
    assert.equal(await inAd(), 'Details');
    await page.keyboard.press('Enter');
    await page.getByRole('dialog').waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.ariaLabel),
                 'Close');
    await page.keyboard.press('Enter');
    await page.getByRole('dialog').waitFor({ state: 'detached' });
    assert.equal(await inAd(), 'Details');
    await page.keyboard.press('Shift+Tab');
    assert.equal(await inAd(), 'Find your pair');
});


visit('the ad resizes with the window, and the chat does not overflow', {},
     async ({ page }) => {

    await ask(page, 'Which shoes?', 1);
    await adUnder(page, 1);

    const fits = () => page.waitForFunction(() => {
        const frame = document.querySelector('.kontext-ad iframe');

        return document.documentElement.scrollWidth <= innerWidth
               && frame.clientHeight > 60 && frame.clientWidth < innerWidth;
    });
    const height = () => page.locator('.kontext-ad iframe').evaluate(
        frame => frame.clientHeight);

    await fits();

    const wide = await height();

    await page.setViewportSize(PHONE);
    await page.waitForFunction(wide => document.querySelector(
        '.kontext-ad iframe').clientHeight > wide, wide);
    await fits();

    await page.setViewportSize(DESKTOP);
    await page.waitForFunction(wide => document.querySelector(
        '.kontext-ad iframe').clientHeight === wide, wide);
});


visit('an answer that is stopped has no ad; the chat goes on', {},
      async ({ page }) => {
    const url = '**/v1/chat/completions';
    const asked = page.waitForRequest(url);

    await page.route(url, () => {});
    await page.fill('#text', 'A weekend in Lisbon?');
    await page.keyboard.press('Enter');
    await asked;
    await page.getByRole('button', { name: 'Stop' }).click();
    await answered(page, 1);
    assert.equal(await page.locator('#log iframe').count(), 0);

    await page.unroute(url);
    await ask(page, 'Which shoes?', 2);
    await adUnder(page, 2);
    assert.equal(await page.locator('#log iframe').count(), 1);
});


visit('a new chat is a new session, and ends the one before', {},
      async ({ page }) => {
    const id = () => page.locator('#session dd').nth(2).getAttribute('title');
    const url = `${stack.url}/kontext/sessions`;
    const first = await id();

    await ask(page, 'Which shoes?', 1);
    await adUnder(page, 1);
    await page.getByRole('button', { name: 'New chat' }).click();
    await page.waitForFunction(first => {
        const dd = document.querySelectorAll('#session dd')[2];

        return /^kxs_/.test(dd.title) && dd.title !== first;
    }, first);

    assert.equal(await page.locator('#log article, #log iframe').count(), 0);
    assert.ok(await page.getByText('What is on your mind?').isVisible());

    for (let status = 200; status !== 404;) {
        ({ status } = await fetch(`${url}/${first}`));
    }

    assert.equal((await fetch(`${url}/${await id()}`)).status, 200);

    await ask(page, 'A weekend in Lisbon?', 1);
    await (await adUnder(page, 1)).getByText('Nightline').waitFor();
});


visit('what a user or an answer says is never markup', {}, async ({ page }) => {
    const text = '<img src=x onerror=alert(1)> **<b>hello</b>**';

    await ask(page, text, 1);
    assert.equal(await page.locator('.user').innerText(), text);
    assert.equal(await page.locator('#log img, #log b, #turns img').count(), 0);
});


// how it looks, for who wants to see it

for (const [name, options] of [
    ['light', { viewport: DESKTOP, colorScheme: 'light' }],
    ['dark', { viewport: DESKTOP, colorScheme: 'dark' }],
    ['390', { viewport: PHONE, deviceScaleFactor: 2, colorScheme: 'light',
              hasTouch: true, isMobile: true }],
]) {
    visit(`screenshots: ${name}`, { ...options, reducedMotion: 'reduce' },
          async ({ page }) => {
        const shot = part => page.screenshot({
            path: `${SHOTS}${name}${part}.png` });
        const dark = name === 'dark';

        await shot('-start');
        await ask(page, 'Which shoes should I buy for my first marathon?', 1);
        await adUnder(page, 1);
        await seen(page, 'ad.render-completed', 1);
        await ask(page, 'A weekend in Lisbon', 2);
        await adUnder(page, 2);
        await seen(page, 'ad.render-completed', 2);
        await ask(page, 'Just say hello', 3);
        await adUnder(page, 3);
        await seen(page, 'ad.render-completed', 3);
        await logged(page);
        await shot('');

        // page and ad are of one mind

        const first = await adUnder(page, 1);
        const back = locator => locator.evaluate(element => {
            const [r] = getComputedStyle(element).backgroundColor
                        .match(/\d+/g).map(Number);

            return r < 128;
        });

        assert.equal(await back(page.locator('body')), dark);
        assert.equal(await back(first.locator('.ad')), dark);
        assert.ok(await page.evaluate(
            () => document.documentElement.scrollWidth <= innerWidth));

        if (name === '390') {
            await page.getByRole('button', { name: 'What happened' }).click();
            await shot('-panel');
            assert.ok(await page.getByText('Events of the session')
                                .isVisible());
            await page.getByRole('button', { name: 'Back to the chat' })
                      .click();

        } else {
            await page.getByRole('button',
                                 { name: dark ? 'Light' : 'Dark' }).click();
            assert.equal(await back(page.locator('body')), !dark);
            await first.locator(
                `html[data-theme="${dark ? 'light' : 'dark'}"]`).waitFor();
            assert.equal(await back(first.locator('.ad')), !dark);
            await page.getByRole('button',
                                 { name: dark ? 'Dark' : 'Light' }).click();
        }

        const third = await adUnder(page, 3);

        await third.getByRole('button', { name: 'Details' }).click();
        await page.getByRole('dialog').waitFor();
        await page.frameLocator('dialog iframe').getByRole('link').waitFor();
        await shot('-modal');
    });
}

});
