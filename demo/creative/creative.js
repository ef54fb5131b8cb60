// Copyright (C) the ngx_http_kontext_module authors
//
// A creative's side of the frame protocol.

const { kind, id, code, messageId, content } = document.body.dataset;
const embedded = window.parent !== window;


function tell(type, data = {}) {
    if (embedded) {
        window.parent.postMessage({ type, data: { ...data, code } }, '*');
    }
}


function report(name, payload = {}) {
    tell('event-iframe', { name, payload: { id, messageId, ...payload } });
}


function inline() {
    let rendered = false;

    const size = () => tell('resize-iframe', {
        height: document.body.getBoundingClientRect().height,
    });

    addEventListener('message', ({ source, data: message }) => {
        if (source !== window.parent || message?.type !== 'update-iframe') {
            return;
        }

        const theme = /light|dark/.exec(message.data?.otherParams?.theme);

        document.documentElement.dataset.theme = theme?.[0] ?? 'auto';

        if (!rendered) {
            rendered = true;
            report('ad.render-started');
            tell('show-iframe');
            size();
            tell('ad-done-iframe', { id, content });
            report('ad.render-completed');
            watch();
        }
    });

    new ResizeObserver(size).observe(document.body);

    // the focus comes back to the frame, and from here to the button

    document.querySelector('[data-open-modal]').onclick = ({ target }) => {
        addEventListener('focus', () => target.focus(), { once: true });
        tell('open-component-iframe', { component: 'modal', timeout: 5000 });
    };

    tell('init-iframe');
}


// an impression: half of it was in sight for a second

function watch() {
    let timer;

    const observer = new IntersectionObserver(entries => {
        clearTimeout(timer);

        if (entries.at(-1).intersectionRatio >= 0.5) {
            timer = setTimeout(() => {
                observer.disconnect();
                report('ad.viewed', { content, format: 'display' });
            }, 1000);
        }
    }, { threshold: 0.5 });

    observer.observe(document.querySelector('.ad'));
}


function modal() {
    const close = () => tell('close-component-iframe', { component: 'modal' });

    document.querySelector('[data-close-modal]').onclick = close;
    addEventListener('keydown', event => event.key === 'Escape' && close());

    tell('init-component-iframe', { component: 'modal' });
    tell('ad-done-component-iframe', { component: 'modal' });
}


document.querySelector('a')?.addEventListener('click', ({ target }) => {
    const { href, dataset: { area } } = target;

    tell('click-iframe', { id, messageId, content, url: href });
    report('ad.clicked', { content, url: href, format: 'display', area });
});

switch (kind) {
case 'inline':
    inline();
    break;

case 'modal':
    modal();
    break;

case 'error':
    tell(location.pathname.includes('/modal/') ? 'error-component-iframe'
                                               : 'error-iframe',
         { message: document.title, errorType: 'double_render' });
}
