// Copyright (C) the ngx_http_kontext_module authors
//
// The tests of clients.test.mjs.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { getTable } from './docs.mjs';
import { conversations, nextTurn } from './history.mjs';
import { AT_A_TIME, cell, columns, expected, rowName, rows, table }
    from './matrix.mjs';
import { startStack } from './nginx.mjs';

let stack;
const cells = new Map(rows.map(row => [row, new Map()]));


before(async () => {
    stack = await startStack();
});


after(async () => {
    await stack?.stop();
});


describe('clients', { concurrency: AT_A_TIME }, () => {
    for (const row of rows) {
        for (const column of columns) {
            test(`${rowName(row)}: ${column.name}`, async () => {
                const word = await cell(row, column, stack);

                cells.get(row).set(column, word);
                assert.equal(word, expected(row, column));
            });
        }
    }
});


describe('the next turn', { concurrency: AT_A_TIME }, () => {
    for (const conversation of conversations) {
        for (const way of ['member', 'text']) {
            test(`${conversation.name}: ${way}`, async () => {
                await nextTurn(conversation, way, stack);
            });
        }
    }
});


test('the table in docs/clients.md is this one', () => {
    assert.equal(getTable(), table(rows, (row, column) =>
        cells.get(row).get(column)), 'node t/node/table.mjs --update');
});


test('nginx has nothing to complain about', async () => {
    assert.deepEqual(await stack.complaints(), []);
});
