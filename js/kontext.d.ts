// Copyright (C) the ngx_http_kontext_module authors

/** One ad, as nginx puts it into an answer. */
export interface KontextOffer {
    bidId: string;
    code: string;
    label: string;
    frameUrl: string;
}

/** The member `kontext` of an answer. */
export interface KontextMember {
    messageId: string;
    ads: KontextOffer[];
}

/** A message of the conversation, as OpenAI, Anthropic or the AI SDK have it. */
export interface KontextMessage {
    role: string;
    id?: string;
    content?: unknown;
    parts?: readonly unknown[];
    createdAt?: string | number | Date;
}

export type KontextEventName =
    | 'ad.viewed'
    | 'ad.clicked'
    | 'ad.render-started'
    | 'ad.render-completed'
    | 'ad.error'
    | 'ad.height'
    | 'video.started'
    | 'video.completed'
    | 'reward.granted';

export interface KontextEvent {
    name: KontextEventName;
    code: string;
    payload: {
        bidId: string;
        messageId: string;
        content?: string;
        format?: string;
        url?: string;
        area?: string;
        /** Of `ad.error`. */
        message?: string;
        errCode?: string;
        /** Of `ad.height`, in CSS pixels. */
        height?: number;
    };
}

export interface KontextClick {
    /** An http or https address. */
    url: string;
    content: string;
    target: 'browser' | 'in-app';
    bidId: string;
    code: string;
    messageId: string;
}

export interface KontextOptions {
    /** The origin of the frames, as in `kontext_frame_origin`. */
    frameOrigin?: string;
    /** The address of the session API; without it nothing is reported. */
    api?: string;
    /** The user and the conversation, as the chat requests name them. */
    userId?: string;
    conversationId?: string;
    /** The session, where the application knows it. */
    sessionId?: string;
    /** More headers for calls of the session API. */
    headers?: Record<string, string>;
    /** As in fetch(): same-origin. */
    credentials?: RequestCredentials;
    /** For the creative: `light`, `dark` or what the publisher agreed on. */
    theme?: string;
    /** More for the creative, its `otherParams`. */
    params?: Record<string, unknown>;
    /** In place of the label that came with the ad. */
    label?: string;
    /** The name of the button that closes the full screen part: Close. */
    closeLabel?: string;
    /** The most a frame may take, in CSS pixels: 600. */
    maxHeight?: number;
    /** false: no full screen part. */
    modal?: boolean;
    onEvent?: (event: KontextEvent) => void;
    onClick?: (click: KontextClick) => void;
}

export interface KontextShowOptions {
    /** The placement; the first ad, if it is left out. */
    code?: string;
    /** The conversation, for the creative. */
    messages?: readonly KontextMessage[];
}

export interface KontextAd {
    readonly bidId: string;
    readonly messageId: string;
    readonly code: string;
    readonly element: HTMLElement;
    /** Removes the ad.  Its bid cannot be shown again. */
    close(): void;
}

export interface Kontext {
    /**
     * Shows an ad at the end of target.  value is whatever the ad came in: see
     * kontextOf().  null: there is none, or it is not one to be shown; the
     * console says why.
     */
    show(target: Element | ShadowRoot, value: unknown,
         options?: KontextShowOptions): KontextAd | null;
    /** The id of the session in the session API, or null. */
    session(): Promise<string | null>;
    setTheme(theme: string | undefined): void;
    /** Tells the creatives of `user.typing.started`, say. */
    userEvent(name: string, payload?: unknown): void;
    /** Removes all ads and listens no more. */
    close(): void;
}

export function createKontext(options?: KontextOptions): Kontext;

/**
 * The ads in a chunk, event, part or answer of any format: the member itself,
 * or what has it as `kontext`, `delta.kontext`, `response.kontext`,
 * `usageMetadata.kontext`, or a part `data-kontext` of the AI SDK; or null.
 */
export function kontextOf(value: unknown): KontextMember | null;

declare global {
    /** What kontext.classic.js defines. */
    var Kontext: {
        createKontext: typeof createKontext;
        kontextOf: typeof kontextOf;
    } | undefined;
}
