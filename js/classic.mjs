#!/usr/bin/env node

// Copyright (C) the ngx_http_kontext_module authors
//
// Makes kontext.classic.js of kontext.js: for <script src> without
// type="module", the same in an object Kontext.

import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const here = name => fileURLToPath(new URL(name, import.meta.url));


export function classic(source = readFileSync(here('kontext.js'), 'utf8')) {
    const names = [...source.matchAll(/^export function (\w+)/gm)]
                  .map(([, name]) => name);
    const body = source.replace(/^export /gm, '').replace(/^ *\/\/.*\n/gm, '')
                       .replace(/ {2,}\/\/ .*$/gm, '').replace(/^\n+/gm, '');

    return `// Copyright (C) the ngx_http_kontext_module authors

(() => {
'use strict';
${body}
globalThis.Kontext = { ${names.join(', ')} };
})();
`;
}


if (process.argv[1] === fileURLToPath(import.meta.url)) {
    writeFileSync(here('kontext.classic.js'), classic());
}
