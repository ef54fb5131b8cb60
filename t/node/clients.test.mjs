// Copyright (C) the ngx_http_kontext_module authors
//
// Official clients of every format read their answers through nginx with the
// module.  table.mjs shows what comes out.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { again, fits } from './runtime.mjs';

if (fits) {
    await import('./cases.mjs');

} else {
    test('with the Node.js of the packages', async () => {
        const { status, stdout, stderr } = await again(
            '--test', '--test-reporter=tap', fileURLToPath(import.meta.url));

        assert.equal(status, 0, stdout + stderr);
    });
}
