// Copyright (C) the ngx_http_kontext_module authors
//
// node table.mjs             prints the table of clients, and fails when a
//                            cell is not what it is expected to be
// node table.mjs --update    puts it into docs/clients.md, too
// node table.mjs WORD...     only the rows with all of these words

import { again, fits } from './runtime.mjs';

if (!fits) {
    const { status, stdout, stderr } = await again(...process.argv.slice(1));

    process.stdout.write(stdout);
    process.stderr.write(stderr);
    process.exit(status === 0 ? 0 : 1);
}

const { cell, columns, expected, each, rowName, rows, table }
    = await import('./matrix.mjs');
const { putTable } = await import('./docs.mjs');
const { startStack } = await import('./nginx.mjs');

const words = process.argv.slice(2).filter(word => word !== '--update');
const update = process.argv.includes('--update');

const chosen = rows.filter(row =>
    words.every(word => rowName(row).includes(word)));
const cells = new Map(chosen.map(row => [row, new Map()]));
const failures = [];
const stack = await startStack();

try {
    await each(chosen.flatMap(row => columns.map(column => [row, column])),
               async ([row, column]) => {
        let word, why = '';

        try {
            word = await cell(row, column, stack);

        } catch (error) {
            word = '**fails**';
            why = `\n${error.message}`;
        }

        cells.get(row).set(column, word);

        if (word !== expected(row, column)) {
            failures.push(`${rowName(row)}, ${column.name}: ${word}, expected `
                          + `is ${expected(row, column)}${why}`);
        }
    });

    failures.push(...await stack.complaints());

} finally {
    await stack.stop();
}

const markdown = table(chosen, (row, column) => cells.get(row).get(column));

process.stdout.write(`${markdown}\n`);

if (failures.length > 0) {
    process.stderr.write(`\n${failures.join('\n\n')}\n`);
    process.exitCode = 1;

} else if (update && words.length === 0) {
    putTable(markdown);
}
