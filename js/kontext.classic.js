// Copyright (C) the ngx_http_kontext_module authors

(() => {
'use strict';
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const MAX_TEXT = 256;
const MAX_URL = 2048;
const MAX_MESSAGES = 30;
const MAX_HEIGHT = 600;
const MAX_REPEATS = 20;
const MODAL_WAIT = 5000;
const SANDBOX = 'allow-scripts allow-same-origin allow-forms allow-popups '
                + 'allow-popups-to-escape-sandbox';
const EVENTS = new Map([
    ['ad.viewed', ['content', 'format']],
    ['ad.clicked', ['content', 'url', 'format', 'area']],
    ['ad.render-started', []],
    ['ad.render-completed', []],
    ['ad.error', []],
    ['video.started', []],
    ['video.completed', []],
    ['reward.granted', []],
]);
const PROPERTY = new RegExp(
    '^((margin|padding|border)(-(top|right|bottom|left))?|border-radius'
    + '|border-(color|style|width)|background-color|box-shadow'
    + '|((min|max)-)?width)$');
const VALUE = /^[a-z0-9 .,%#()]{1,64}$/i;
const CSS = `
:where(.kontext-ad) { margin: 12px 0 }
:where(.kontext-iframe) { color-scheme: normal }
:where(.kontext-label) { font-size: 12px; line-height: 18px; opacity: .75 }
:where(.kontext-modal) { inset: 0; width: 100%; height: 100%; padding: 0;
    border: 0; max-width: none; max-height: none }
:where(.kontext-modal[open]) { display: flex; flex-direction: column }
:where(.kontext-bar) { display: flex; align-items: center; padding: 4px 16px;
    justify-content: space-between }
:where(.kontext-close) { width: 44px; height: 44px; border: 0; padding: 0;
    font-size: 24px; color: inherit; background: none }
@media (prefers-reduced-motion: no-preference) {
    :where(.kontext-ad, .kontext-modal) { animation: kontext-in .25s }
}
@keyframes kontext-in { from { opacity: 0 } }
`;
let sheet;
const loaded = globalThis[Symbol.for('kontext.bids')] ??= new Set();
const gone = new Promise(
    done => globalThis.addEventListener?.('pagehide', done));
function kontextOf(value) {
    return [
        value?.type === 'data-kontext' ? value.data : null,
        value?.kontext, value?.delta?.kontext, value?.response?.kontext,
        value?.usageMetadata?.kontext, value,
    ].find(found => Array.isArray(found?.ads)) ?? null;
}
function string(value, max = MAX_TEXT) {
    return typeof value === 'string'
           ? value.slice(0, max).replace(/[\ud800-\udbff]$/, '') : '';
}
function address(text, base) {
    try {
        const url = new URL(string(text, MAX_URL) || 'none:', base);
        return /^https?:$/.test(url.protocol) ? string(url.href, MAX_URL) : '';
    } catch {
        return '';
    }
}
function json(value) {
    try {
        return encodeURIComponent(JSON.stringify(value));
    } catch {
        return ' '.repeat(MAX_URL);
    }
}
function snapshot(messages) {
    const turns = messages.filter(turn => /^(user|assistant)$/.test(turn.role));
    const end = turns.map(turn => turn.role).lastIndexOf('user') + 1;
    return turns.slice(Math.max(0, end - MAX_MESSAGES), end)
        .map(({ id, role, content, parts, createdAt }, i) => {
            const text = content ?? parts;
            const at = new Date(createdAt ?? NaN);
            return {
                id: String(id ?? i),
                role,
                content: Array.isArray(text)
                         ? text.filter(part => part.type === 'text')
                               .map(part => part.text).join('\n')
                         : String(text ?? ''),
                ...!isNaN(at) && { createdAt: at.toISOString() },
            };
        });
}
function element(name, className, styles) {
    const made = document.createElement(name);
    made.className = `kontext-${className}`;
    Object.assign(made.style, styles);
    return made;
}
function frameFor(label, styles) {
    const frame = element('iframe', 'iframe', {
        display: 'block', width: '100%', border: 0, ...styles });
    frame.title = label;
    frame.referrerPolicy = 'strict-origin';
    return frame;
}
function load(frame, url) {
    frame.setAttribute('sandbox', SANDBOX);
    if (frame.contentWindow) {
        frame.contentWindow.location.replace(url);
    } else {
        frame.src = url;
    }
}
function labelFor(label, styles) {
    const made = element('div', 'label', styles);
    made.textContent = label;
    return made;
}
function dress(target, styles) {
    for (const [key, value] of Object.entries(styles ?? {})) {
        const name = key.replace(/[A-Z]/g, c => `-${c.toLowerCase()}`);
        const text = typeof value === 'number' ? `${value}px` : string(value);
        if (PROPERTY.test(name) && VALUE.test(text)) {
            target.style.setProperty(name, text);
        }
    }
}
function addStyles(target) {
    const root = target.getRootNode();
    const { adoptedStyleSheets: sheets } = root.adoptedStyleSheets
                                           ? root : document;
    if (!sheet) {
        sheet = new CSSStyleSheet();
        sheet.replaceSync(CSS);
    }
    if (!sheets.includes(sheet)) {
        sheets.push(sheet);
    }
}
function createKontext(options = {}) {
    const { api, maxHeight = MAX_HEIGHT, onEvent, onClick } = options;
    const { origin } = new URL(options.frameOrigin
                               ?? 'https://server.megabrain.co');
    const ads = new Set();
    let { theme } = options;
    let closed;
    let sessionId;
    let queue = Promise.resolve();
    if (!/^https?:/.test(origin) || origin === location.origin) {
        throw new TypeError(`kontext: no origin for frames: ${origin}`);
    }
    async function call(path, body) {
        const response = await fetch(`${api}/sessions${path}`, {
            method: 'POST',
            headers: { 'Content-Type': 'application/json',
                       ...options.headers },
            body: JSON.stringify(body),
            credentials: options.credentials ?? 'same-origin',
            keepalive: true,
        });
        return response.json();
    }
    function session() {
        const { userId, conversationId, sessionId: known = null } = options;
        return sessionId ??= known || !api
            ? Promise.resolve(known)
            : call('', { userId, conversationId }).catch(() => ({}))
              .then(({ sessionId: id = null }) => {
                  sessionId = id && sessionId;
                  return id;
              });
    }
    async function report(event, again) {
        const id = await session();
        const answer = id && await call(`/${encodeURIComponent(id)}/events`,
                                        event);
        if (answer?.error?.code === 'unknown_session' && !again) {
            sessionId = null;
            await report(event, true);
        }
    }
    function emit(ad, name, members) {
        const event = { name, code: ad.code, payload: {
            bidId: ad.bidId, messageId: ad.messageId, ...members } };
        if (api && EVENTS.has(name)) {
            queue = Promise.race([queue, gone]).then(() => report(event))
                           .catch(() => {});
        }
        onEvent?.(event);
    }
    function isRare({ counts }, name, most = MAX_REPEATS) {
        counts[name] = (counts[name] ?? 0) + 1;
        return counts[name] <= most;
    }
    function fail(ad, message, errCode) {
        if (isRare(ad, 'ad.error')) {
            emit(ad, 'ad.error', { message, errCode });
        }
    }
    function onFrameEvent(ad, name, told) {
        if (name === 'ad.error') {
            fail(ad, string(told.message) || 'Ad error',
                 string(told.errCode) || 'unknown');
            return;
        }
        const needs = EVENTS.get(name);
        const members = {};
        for (const member of ['content', 'url', 'format', 'area']) {
            const text = member === 'url' ? address(told.url, origin)
                                          : string(told[member]);
            if (text) {
                members[member] = text;
            }
        }
        if (needs?.every(need => members[need])
            && isRare(ad, name, name === 'ad.clicked' ? MAX_REPEATS : 1))
        {
            emit(ad, name, members);
        }
    }
    function onFrameClick(ad, { url: to, content, target }) {
        const { bidId, code, messageId } = ad;
        const url = address(to, origin);
        if (url && isRare(ad, 'click')) {
            onClick?.({ bidId, code, messageId, url, content: string(content),
                        target: target === 'in-app' ? target : 'browser' });
        }
    }
    function closeModal(ad) {
        const { modal } = ad;
        if (modal) {
            ad.modal = null;
            clearTimeout(modal.timer);
            modal.dialog.onclose = null;
            modal.dialog.close();
            modal.dialog.remove();
            modal.before?.focus();
        }
    }
    function openModal(ad, { component, componentParams, timeout }) {
        const url = ad.url.href.replace('/api/frame/', '/api/modal/');
        let query = '';
        if (component !== 'modal' || ad.modal || options.modal === false
            || !isRare(ad, 'modal'))
        {
            return;
        }
        if (componentParams) {
            query = `&componentParams=${json(componentParams)}`;
            if (query.length > MAX_URL) {
                fail(ad, 'Bad componentParams', 'modal_component_error');
                return;
            }
        }
        const dialog = element('dialog', 'modal');
        const bar = element('div', 'bar');
        const button = element('button', 'close');
        const frame = frameFor(ad.label, { flex: 1 });
        dialog.ariaLabel = ad.label;
        button.ariaLabel = options.closeLabel ?? 'Close';
        button.textContent = '\u00d7';
        button.onclick = dialog.onclose = () => closeModal(ad);
        load(frame, url + query);
        bar.append(labelFor(ad.label), button);
        dialog.append(bar, frame);
        addStyles(document);
        document.body.append(dialog);
        ad.modal = { dialog, frame, timer: setTimeout(() => {
            closeModal(ad);
            fail(ad, 'The modal did not load', 'timeout');
        }, typeof timeout === 'number' && timeout > 0 ? timeout
                                                      : MODAL_WAIT) };
    }
    function post({ ready, frame, code }, type, data) {
        if (ready) {
            frame.contentWindow?.postMessage(
                { type, data: { code, ...data } }, origin);
        }
    }
    function otherParams({ url }) {
        const name = theme ?? url.searchParams.get('theme');
        return { ...options.params, ...name && { theme: name } };
    }
    function arrange(ad, shown, height = ad.height) {
        if (shown === ad.shown && height === ad.height) {
            return;
        }
        ad.shown = shown;
        ad.height = height;
        ad.element.style.display = shown ? 'block' : 'none';
        ad.mark.style.display = height ? 'block' : 'none';
        ad.frame.style.height = `${height}px`;
        if (shown && height) {
            emit(ad, 'ad.height', { height });
        }
    }
    const either = {
        __proto__: null,
        'close-component-iframe': closeModal,
        'click-iframe': onFrameClick,
        'event-iframe'(ad, { name, payload }) {
            onFrameEvent(ad, name, payload ?? {});
        },
    };
    const inline = {
        __proto__: either,
        'init-iframe'(ad) {
            ad.ready = true;
            post(ad, 'update-iframe', {
                sdk: ad.url.searchParams.get('sdk') ?? 'sdk-js',
                messageId: ad.messageId, messages: ad.messages,
                otherParams: otherParams(ad),
            });
        },
        'show-iframe'(ad) {
            arrange(ad, true);
        },
        'hide-iframe'(ad) {
            arrange(ad, false);
        },
        'resize-iframe'(ad, { height }) {
            if (typeof height === 'number' && height > 0) {
                arrange(ad, ad.shown, Math.min(Math.ceil(height), maxHeight));
            }
        },
        'set-styles-iframe'(ad, { containerStyles, iframeStyles }) {
            dress(ad.box, containerStyles);
            dress(ad.frame, iframeStyles);
        },
        'error-iframe'(ad) {
            ad.close();
            fail(ad, 'The ad could not be shown', 'iframe_error');
        },
        'open-component-iframe': openModal,
    };
    const modal = {
        __proto__: either,
        'init-component-iframe'({ modal: made }) {
            clearTimeout(made.timer);
            if (!made.dialog.open) {
                made.before = document.activeElement;
                made.dialog.showModal();
            }
        },
        'error-component-iframe'(ad, { message, errorType }) {
            closeModal(ad);
            fail(ad, string(message) || 'Modal error',
                 string(errorType) || 'modal_component_error');
        },
    };
    function onMessage({ source, origin: from, data: message }) {
        const { type, data } = message ?? {};
        const { code, component } = data ?? {};
        if (from !== origin || !source) {
            return;
        }
        for (const ad of ads) {
            const inModal = source === ad.modal?.frame.contentWindow;
            if ((inModal || source === ad.frame.contentWindow)
                && [undefined, ad.code].includes(code)
                && [undefined, 'modal'].includes(component))
            {
                ad.alive = true;
                (inModal ? modal : inline)[type]?.(ad, data ?? {});
            }
        }
    }
    addEventListener('message', onMessage);
    function refusal({ bidId, code, frameUrl }, messageId) {
        return !UUID.test(string(bidId)) || !string(code) || !string(messageId)
               ? 'it is not complete'
            : !address(frameUrl).startsWith(`${origin}/api/frame/${bidId}?`)
              ? `its frame is not of ${origin}`
            : loaded.has(bidId) && 'its bid was loaded before';
    }
    function show(target, value, { code, messages = [] } = {}) {
        const { messageId, ads: offers = [] } = kontextOf(value) ?? {};
        const offer = offers.find(one => one && (!code || one.code === code));
        if (!offer || closed) {
            return null;
        }
        const reason = refusal(offer, messageId);
        if (reason) {
            console.warn(`kontext: no ad is shown: ${reason}`);
            return null;
        }
        const { bidId } = offer;
        const label = options.label ?? (string(offer.label).trim()
                                        || 'Sponsored');
        const ad = {
            bidId, messageId, label,
            code: offer.code,
            url: new URL(offer.frameUrl.split('#')[0]),
            messages: snapshot(messages),
            counts: {}, height: 0, shown: false,
            element: element('div', 'ad', {
                display: 'none', maxWidth: '100%',
                maxHeight: `${maxHeight + 100}px`, overflow: 'hidden',
            }),
            mark: labelFor(label, { display: 'none' }),
            box: element('div', 'frame', { overflow: 'hidden' }),
            frame: frameFor(label, { height: 0 }),
        };
        for (const old of ads) {
            if (old.alive && !old.element.isConnected) {
                old.close();
            }
        }
        ad.close = () => {
            if (ads.delete(ad)) {
                closeModal(ad);
                ad.element.remove();
                if (!ad.asked) {
                    loaded.delete(bidId);
                }
            }
        };
        const ask = ad.frame.onload = () => {
            if (ad.frame.contentWindow && !ad.asked && ads.has(ad)) {
                ad.asked = true;
                load(ad.frame, ad.url.href);
            } else if (ad.alive && ad.frame.contentDocument) {
                ad.close();
            }
        };
        ad.element.role = 'group';
        ad.element.ariaLabel = label;
        ad.element.ariaLive = 'off';
        ad.box.append(ad.frame);
        ad.element.append(ad.mark, ad.box);
        target.append(ad.element);
        addStyles(target);
        loaded.add(bidId);
        ads.add(ad);
        queueMicrotask(ask);
        return { bidId, messageId, code: ad.code, element: ad.element,
                 close: ad.close };
    }
    return {
        show,
        session,
        setTheme(name) {
            theme = name;
            for (const ad of ads) {
                post(ad, 'update-iframe', { otherParams: otherParams(ad) });
            }
        },
        userEvent(name, payload) {
            for (const ad of ads) {
                post(ad, 'user-event-iframe',
                     { name, ...payload !== undefined && { payload } });
            }
        },
        close() {
            closed = true;
            removeEventListener('message', onMessage);
            ads.forEach(ad => ad.close());
        },
    };
}

globalThis.Kontext = { kontextOf, createKontext };
})();
