// Copyright (C) the ngx_http_kontext_module authors
//
// The table of clients in docs/clients.md.

import { readFileSync, writeFileSync } from 'node:fs';

const FILE = new URL('../../docs/clients.md', import.meta.url);
const TABLE = /(?<=<!-- the table -->\n).*?(?=<!-- its end -->)/s;


export function getTable() {
    return TABLE.exec(readFileSync(FILE, 'utf8'))?.[0].trim();
}


export function putTable(table) {
    const text = readFileSync(FILE, 'utf8');

    writeFileSync(FILE, text.replace(TABLE, () => `\n${table}\n\n`));
}
