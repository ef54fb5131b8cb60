// Copyright (C) the ngx_http_kontext_module authors
//
// The little of Markdown that answers have, as nodes: no markup of an answer
// is ever parsed.

const SPAN = /\*\*(.+?)\*\*|\*(.+?)\*|`([^`]+)`/g;
const ITEM = /^\s*(?:([-*])|\d+\.)\s+(.*)$/;


function node(name, ...children) {
    const made = document.createElement(name);

    made.append(...children);

    return made;
}


function spans(text) {
    const found = [];
    let from = 0;

    for (const match of text.matchAll(SPAN)) {
        const [all, strong, em, code] = match;

        found.push(text.slice(from, match.index),
                   strong ? node('strong', strong)
                   : em ? node('em', em) : node('code', code));
        from = match.index + all.length;
    }

    return [...found, text.slice(from)];
}


function block(text) {
    const lines = text.split('\n');
    const first = ITEM.exec(lines[0]);

    if (!first) {
        return node('p', ...spans(lines.join(' ')));
    }

    return node(first[1] ? 'ul' : 'ol', ...lines.map(
        line => node('li', ...spans(ITEM.exec(line)?.[2] ?? line))));
}


export function render(text) {
    return text.split(/\n{2,}/).filter(part => part.trim() !== '').map(block);
}
