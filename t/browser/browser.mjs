// Copyright (C) the ngx_http_kontext_module authors
//
// Chromium without a window, which can reach nothing but this machine.
//
//   CHROMIUM     the browser; chromium in PATH

import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';

import { chromium } from 'playwright-core';


function find() {
    const { CHROMIUM, PATH } = process.env;
    const found = PATH.split(delimiter).map(dir => join(dir, 'chromium'))
                      .find(file => existsSync(file));

    if (!CHROMIUM && !found) {
        throw new Error('there is no chromium: set CHROMIUM');
    }

    return CHROMIUM || found;
}


export function launch() {
    return chromium.launch({
        executablePath: find(),
        args: [
            '--no-sandbox',             // for root, as in containers
            '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
        ],
    });
}


// A page, and all that a page should not do: what it says on the console,
// what it throws, what it asks for and does not get, unless it gave it up.

export async function open(browser, options = {}) {
    const context = await browser.newContext(options);
    const requests = [];
    const complaints = [];
    const warnings = [];

    context.setDefaultTimeout(20_000);

    context.on('request', request => requests.push(request.url()));
    context.on('requestfailed', request => {
        const text = request.failure()?.errorText;

        if (text !== 'net::ERR_ABORTED') {
            complaints.push(`${request.url()}: ${text}`);
        }
    });
    context.on('weberror', error => complaints.push(String(error.error())));
    context.on('console', message => {
        const to = message.type() === 'error' ? complaints : warnings;

        if (['error', 'warning'].includes(message.type())) {
            to.push(message.text());
        }
    });

    return {
        context, requests, complaints, warnings,
        page: await context.newPage(),

        reset() {
            requests.length = complaints.length = warnings.length = 0;
        },
    };
}
