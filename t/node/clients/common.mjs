// Copyright (C) the ngx_http_kontext_module authors
//
// What all clients ask.

import { readFileSync } from 'node:fs';

export const QUESTION = 'What should I pack for nine days?';

export const TOOLS = [
    {
        name: 'get_weather',
        description: 'The weather of a city',
        parameters: {
            type: 'object',
            properties: {
                city: { type: 'string' },
                unit: { type: 'string' },
            },
            required: ['city', 'unit'],
            additionalProperties: false,
        },
    },
    {
        name: 'find_rides',
        description: 'Bicycle rides nearby',
        parameters: {
            type: 'object',
            properties: {
                query: { type: 'string' },
                tags: { type: 'array', items: { type: 'string' } },
            },
            required: ['query', 'tags'],
            additionalProperties: false,
        },
    },
];

export const SCHEMA = {
    type: 'object',
    properties: {
        city: { type: 'string' },
        days: { type: 'integer' },
    },
    required: ['city', 'days'],
    additionalProperties: false,
};


// An app that looks there finds an ad, or nothing.

export function see(out, place, ad) {
    if (ad) {
        out.ads[place] = ad;
    }
}


export function version(directory) {
    const file = new URL(`../node_modules/${directory}/package.json`,
                         import.meta.url);

    return JSON.parse(readFileSync(file)).version;
}
