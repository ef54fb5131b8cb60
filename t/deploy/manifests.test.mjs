// Copyright (C) the ngx_http_kontext_module authors
//
// The compose files and Kubernetes manifests against the schemas of those who
// read them, and against what the image knows.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync,
         writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';

import Ajv from 'ajv/dist/2019.js';
import addFormats from 'ajv-formats';
import { parse, parseAllDocuments } from 'yaml';

const require = createRequire(import.meta.url);
const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const root = path.resolve(here, '../..');

const read = (file) => readFileSync(path.join(root, file), 'utf8');
const files = (dir, pattern) =>
    readdirSync(path.join(root, dir)).filter((name) => pattern.test(name))
                                     .map((name) => `${dir}/${name}`);

const composeFiles = files('docker', /^compose.*\.yaml$/);
const manifests = files('kubernetes', /\.yaml$/);

// the variables that the entrypoint knows

const known = new Set(read('docker/entrypoint')
    .match(/^known='([^']*)'/m)[1].match(/^KONTEXT[A-Z_]*/gm));

const dockerfile = read('docker/Dockerfile');


function objects(file) {
    return parseAllDocuments(read(file)).map((document) => {
        assert.deepEqual(document.errors, [], file);
        return document.toJS();
    }).filter((object) => object !== null);
}


function kindOf(object) {
    const [group, version] = object.apiVersion.includes('/')
                             ? object.apiVersion.split('/')
                             : ['', object.apiVersion];

    return { module: path.posix.join('kubernetes-models', group, version),
             name: object.kind };
}


test('there are files to check', () => {
    assert.ok(composeFiles.length >= 2);
    assert.ok(manifests.length >= 2);
});


for (const file of composeFiles) {
    test(`${file} is what the Compose Specification says`, () => {
        const ajv = new Ajv({ strict: false, allErrors: true });
        const schema = path.join(here,
            'node_modules/dclint/schemas/compose.schema.json');
        const duration = /^(\d+(\.\d+)?(us|ms|s|m|h))+$/;

        addFormats(ajv);
        ajv.addFormat('duration', duration);
        ajv.addFormat('expose', true);
        ajv.addFormat('ports', true);

        const { $schema, ...rest } = JSON.parse(readFileSync(schema, 'utf8'));
        const valid = ajv.compile(rest);

        assert.ok(valid(parse(read(file))), ajv.errorsText(valid.errors));
    });

    test(`${file}: the image is run as meant, with variables that it knows`, () => {
        const { services } = parse(read(file));
        const ours = Object.values(services)
            .filter((service) => /^kontext-/.test(service.image));

        assert.ok(ours.length > 0);

        for (const service of ours) {
            assert.equal(service.read_only, true);
            assert.notEqual(service.user?.split(':')[0] ?? '0', '0');
            assert.deepEqual(service.cap_drop, ['ALL']);

            for (const name of Object.keys(service.environment ?? {})) {
                assert.ok(known.has(name), name);
            }
        }
    });
}


for (const file of manifests) {
    test(`${file} is what the Kubernetes API takes`, async () => {
        for (const object of objects(file)) {
            const { module, name } = kindOf(object);
            const { [name]: Model } = await import(`${module}/${name}`);

            new Model(object).validate();
        }
    });

    test(`${file}: pods are hardened, selectors and names fit`, () => {
        const all = objects(file);
        const find = (kind, name) => all.find((object) =>
            object.kind === kind && object.metadata.name === name);
        const ports = new Set();
        let labels;

        for (const { spec } of all.filter(({ kind }) => kind === 'Deployment')) {
            const pod = spec.template.spec;

            labels = spec.template.metadata.labels;
            assert.deepEqual(spec.selector.matchLabels, labels);
            assert.equal(pod.enableServiceLinks, false);

            for (const container of pod.containers) {
                const context = { ...pod.securityContext,
                                  ...container.securityContext };

                assert.equal(context.runAsNonRoot, true);
                assert.ok(context.runAsUser > 0);
                assert.equal(context.readOnlyRootFilesystem, true);
                assert.equal(context.allowPrivilegeEscalation, false);
                assert.deepEqual(context.capabilities.drop, ['ALL']);

                for (const port of container.ports ?? []) {
                    ports.add(port.name);
                }

                for (const { name, valueFrom } of container.env ?? []) {
                    assert.ok(known.has(name), name);

                    if (valueFrom?.secretKeyRef) {
                        const { name: secret, key } = valueFrom.secretKeyRef;

                        assert.ok(key in find('Secret', secret).stringData);
                    }
                }

                for (const mount of container.volumeMounts ?? []) {
                    const volume = pod.volumes.find(({ name }) => name === mount.name);

                    assert.ok(volume, mount.name);

                    if (volume.configMap) {
                        assert.ok(mount.subPath in
                                  find('ConfigMap', volume.configMap.name).data);
                    }
                }

                for (const probe of [container.readinessProbe,
                                     container.livenessProbe]) {
                    assert.ok(!probe || ports.has(probe.httpGet.port));
                }
            }
        }

        assert.ok(labels);

        for (const { spec } of all.filter(({ kind }) => kind === 'Service')) {
            assert.deepEqual(spec.selector, labels);
            spec.ports.forEach((port) => assert.ok(ports.has(port.targetPort)));
            assert.ok(!spec.ports.some((port) => port.targetPort === 'status'));
        }
    });
}


// A schema of Kubernetes lets names pass that it does not know, and an API
// server drops them.  The compiler does not.

test('no manifest has a name that the Kubernetes API does not know', () => {
    const dir = mkdtempSync(path.join(tmpdir(), 'kontext-deploy.'));
    const imports = [];
    const constants = [];

    manifests.flatMap(objects).forEach((object, i) => {
        const { module, name } = kindOf(object);

        imports.push(`import type { I${name} as T${i} } from '${module}/${name}';`);
        constants.push(`export const x${i}: T${i} = ${JSON.stringify(object, null, 1)};`);
    });

    try {
        symlinkSync(path.join(here, 'node_modules'), path.join(dir, 'node_modules'));
        writeFileSync(path.join(dir, 'manifests.mts'),
                      [...imports, ...constants, ''].join('\n'));
        execFileSync(process.execPath,
            [require.resolve('typescript/lib/tsc.js'), '--noEmit', '--strict',
             '--skipLibCheck', '--module', 'nodenext',
             path.join(dir, 'manifests.mts')],
            { cwd: dir, encoding: 'utf8', stdio: 'pipe' });
    } catch (error) {
        assert.fail(error.stdout || error.message);
    } finally {
        rmSync(dir, { recursive: true });
    }
});


test('the Dockerfile is of Debian, in stages, and not run by root', () => {
    assert.match(dockerfile, /^ARG BASE=debian:/m);
    assert.match(dockerfile, /^FROM \$\{BASE\}$/m);
    assert.equal(dockerfile.match(/^USER (\d+):\d+$/gm).length, 2);

    for (const [, sources] of dockerfile.matchAll(/^COPY (?!--)(.*) \S+$/gm)) {
        sources.split(' ').forEach((source) =>
            assert.ok(existsSync(path.join(root, source)), source));
    }
});
