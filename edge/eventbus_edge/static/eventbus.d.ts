/** The types of eventbus.js; docs/browser-client.md describes its behavior. */

/**
 * Open a bus, which connects at once and stays connected until `close()`. Where there is no page,
 * as on a server that renders one, it connects when it is first used; a relative `url` never does.
 *
 * `Channels` maps channel patterns to their events, and `ClientEvents` to the events that clients
 * may send, as `eventbus schema export --format typescript` writes them; without them, nothing is
 * checked.
 *
 * @throws TypeError for options of a wrong type, and for a URL that is not valid.
 */
export function connect<
  Channels extends object = AnyChannels,
  ClientEvents extends object = AnyChannels,
>(options: Options): Bus<Channels, ClientEvents>;

export interface Options {
  /** The edge's WebSocket endpoint; may be relative to the page: `"/ws"`. */
  url: string | URL;
  /**
   * Returns a JWT, or nothing for an anonymous visitor. It is called when a token is needed: for the
   * first connection, shortly before a token expires, and after one was refused. A string is one
   * token that cannot be renewed.
   */
  token?: string | null | (() => Token | Promise<Token>);
  /** The edge's `POST /sse` endpoint; `false` disables this fallback. By default next to `url`. */
  sseUrl?: string | URL | false;
  /** Milliseconds before the first reconnect, doubled after each failed attempt. By default 500. */
  minDelay?: number;
  /** The maximum delay in milliseconds. By default 30,000. */
  maxDelay?: number;
}

export type Token = string | null | undefined | void;

/** A connection that reconnects automatically, and its channels. */
export interface Bus<
  Channels extends object = AnyChannels,
  ClientEvents extends object = AnyChannels,
> {
  /** The current state: a frozen object, replaced with each change. */
  readonly state: State;
  /** `state.transport`. */
  readonly transport: State["transport"];
  /** The server's id of this connection; publishers can exclude it (`except`). */
  readonly connectionId: string | null;
  /** How many frames could not be read, and were skipped. Each is also an `error`. */
  readonly skipped: number;

  /**
   * Join a channel or a pattern (`orders.*`, `team.7.>`), now and after each reconnect.
   *
   * Each call returns a subscription of its own. The channel is joined once for all of them, and
   * left a second after the last one has ended.
   *
   * @param handlers a function for every message, or functions by event name.
   * @throws TypeError for arguments of a wrong type, EventBusError with code `closed` if the bus is
   * closed.
   */
  subscribe<const C extends string, S = unknown>(
    channel: C & Known<Channels, C>,
    handlers?: Handlers<EventsOf<Channels, C>> | Handler<AnyOf<EventsOf<Channels, C>>>,
    options?: SubscribeOptions<S>,
  ): Subscription<EventsOf<Channels, C>, SentOn<ClientEvents, C>>;

  /**
   * The members of a presence channel that one may join. This does not join it.
   *
   * Rejects with `unauthorized` where a token is needed, and `forbidden` if one may not join.
   */
  presence(channel: string): Promise<{ members: Member[]; count: number }>;

  /** Stored messages of a channel that one may join: see `Subscription.history`. */
  history<const C extends string>(
    channel: C & Known<Channels, C>,
    options?: HistoryOptions,
  ): Promise<History<AnyOf<EventsOf<Channels, C>>>>;

  /** Listen to changes of `state`; returns a function that removes the handler. */
  onState(handler: (state: State) => unknown): () => void;

  /** Listen to the bus itself; returns a function that removes the handler. */
  on<E extends keyof BusEvents>(event: E, handler: (data: BusEvents[E]) => unknown): () => void;

  /**
   * Headers for the page's own requests to a service, so that its events can leave out this tab:
   * `fetch("/ship", { method: "POST", headers: bus.headers() })`. Empty without a connection.
   */
  headers(): Record<string, string>;

  /** Connect now, without waiting for the delay. */
  reconnect(): void;

  /** Close the connection for good. */
  close(): void;
}

/** The events of `bus.on`. */
export interface BusEvents {
  state: State;
  /** Errors without a promise: a refused subscription or token. Logged if there is no handler. */
  error: EventBusError;
  "eb:connected": { connection_id: string; node: string; heartbeat_s: number; actions_per_s: number; action_burst: number; protocol: string };
  "eb:authenticated": { user_id: string; expires_at: string };
  "eb:token.expiring": { expires_at: string; in_s: number };
}

export type State =
  /** `error` is why the previous attempt failed. */
  | { readonly status: "connecting"; readonly transport: null; readonly error: StateError | null }
  /** With the transport `"sse"`, only receiving works. */
  | { readonly status: "connected"; readonly transport: "websocket" | "sse"; readonly error: null }
  /** The next attempt is at `retryAt` (like Date.now()). */
  | {
      readonly status: "waiting" | "offline";
      readonly transport: null;
      readonly error: StateError;
      readonly code: number;
      readonly reason: string;
      readonly retryAt: number;
    }
  /** For good: by `close()` (1000, without an error), by the server (4000 to 4099), or refused. */
  | {
      readonly status: "closed";
      readonly transport: null;
      readonly error: StateError | null;
      readonly code: number;
      readonly reason: string;
    };

/** Why there is no connection; `message` says what to change. */
export interface StateError {
  readonly code: ErrorCode;
  readonly message: string;
}

export interface SubscribeOptions<S = unknown> {
  /** The maximum number of earlier messages to receive first. Without effect with `state`. */
  history?: number;
  /**
   * Loads what the page shows, with the position of the channel at which it was read. It is called
   * when the channel is joined, and again after each gap. Then exactly the messages after that
   * position are delivered.
   */
  state?: () => Loaded<S> | Promise<Loaded<S>>;
  /** Receives the `data` of `state`, before the messages that follow it. */
  onState?: (data: S) => unknown;
}

/** What `state` of a subscription returns. */
export interface Loaded<S = unknown> {
  data: S;
  /** Null where the channel has no history: then messages may repeat what `data` contains. */
  offset: number | null;
  epoch: string | null;
  mark?: string | null;
}

/** One caller's share of a channel, or of a pattern. */
export interface Subscription<Events = Record<string, any>, Sent = Record<string, any>> {
  readonly channel: string;
  /** Whether the subscription currently receives messages. */
  readonly active: boolean;
  /** The position of the last message that was received. */
  readonly position: Position | null;
  /** The current members of a presence channel, in no particular order; null before it is joined. */
  readonly members: Member[] | null;
  /**
   * Resolves when first joined; rejects with an EventBusError if that was refused, and with the code
   * `unsubscribed` if the channel was left before the answer.
   */
  readonly ready: Promise<Subscribed>;

  /** Listen to an event; returns a function that removes the handler. `"*"`: all application events. */
  on<E extends keyof Events & string>(
    event: E,
    handler: Handler<Events[E], E>,
  ): () => void;
  on<E extends keyof SystemEvents>(event: E, handler: Handler<SystemEvents[E], E>): () => void;
  on(event: `client-${string}`, handler: Handler<any>): () => void;
  on(event: "*", handler: Handler<AnyOf<Events>>): () => void;

  /** Send an event to the channel's other connections, which receive it as `client-<event>`. */
  whisper<E extends keyof Sent & string>(event: E, ...data: DataOf<Sent[E]>): Promise<object>;

  /**
   * The members of a presence channel; `changes` updates your own info first. All handles of this bus
   * on the channel then receive `eb:presence.updated`.
   */
  presence(changes?: Record<string, unknown>): Promise<{ members: Member[]; count: number }>;

  /** Stored messages: the first `limit` after the offset `since`, or the last. */
  history(options?: HistoryOptions): Promise<History<AnyOf<Events>>>;

  /** End this subscription, and remove its handlers. Others on the channel continue. */
  unsubscribe(): void;
}

export interface Position {
  offset: number;
  epoch: string;
  /** Identifies the message at the offset to the server. */
  mark?: string;
}

export interface Member {
  user_id: string;
  info: any;
}

export interface HistoryOptions {
  limit?: number;
  since?: number;
}

export interface History<Data = any> {
  messages: Message<Data>[];
  offset: number | null;
  epoch: string | null;
}

/** The answer to joining a channel. */
export interface Subscribed {
  kind: "public" | "private" | "presence";
  offset?: number | null;
  epoch?: string | null;
  mark?: string;
  /**
   * Set if the channel was joined before. False if missed messages cannot be recovered: load the
   * state of the page again.
   */
  recovered?: boolean;
  /** Of presence channels. */
  members?: Member[];
}

/** The events of a subscription in addition to the application's events. */
export interface SystemEvents {
  "eb:subscribed": Subscribed;
  "eb:unsubscribed": { reason: string };
  "eb:error": EventBusError;
  "eb:presence.joined": Member;
  "eb:presence.left": Member;
  "eb:presence.updated": Member;
}

export interface Message<Data = any, Event extends string = string> {
  channel: string;
  event: Event;
  data: Data;
  /** RFC 3339, UTC. */
  timestamp: string;
  id?: string;
  offset?: number;
  epoch?: string;
  mark?: string;
  /** Of whispers: the authenticated sender. */
  user_id?: string | null;
}

export type Handler<Data = any, Event extends string = string> = (
  data: Data,
  message: Message<Data, Event>,
) => unknown;

export type Handlers<Events> = {
  [E in (keyof Events & string) | keyof SystemEvents | "*"]?: E extends keyof Events
    ? Handler<Events[E], E>
    : E extends keyof SystemEvents
      ? Handler<SystemEvents[E], E>
      : Handler<AnyOf<Events>>;
} & ([Extract<keyof Events, `client-${string}`>] extends [never]
  ? { [event: `client-${string}`]: Handler<any> }
  : {});

/** A refusal; `code` is an error code of the wire protocol or of this client. */
export class EventBusError extends Error {
  constructor(code: ErrorCode, message: string, channel?: string | null);
  readonly name: "EventBusError";
  readonly code: ErrorCode;
  readonly channel: string | null;
}

export type ErrorCode =
  | "bad_request"
  | "unknown_action"
  | "invalid_channel"
  | "unauthorized"
  | "token_expired"
  | "forbidden"
  | "not_subscribed"
  | "rate_limited"
  | "limit_exceeded"
  | "payload_too_large"
  | "unavailable"
  /** There is no connection, or it was lost before the reply. */
  | "disconnected"
  /** Of `state.error`: the browser is offline; nothing answers at `url`; no edge does. */
  | "offline"
  | "unreachable"
  | `http_${number}`
  /** Of `state.error`: nothing is served at `url`, or at `sseUrl`. */
  | "not_found"
  /** Of `state.error`: only Server-Sent Events are left, and `sseUrl` is false. */
  | "upgrade_required"
  | "websocket_disabled"
  | "revoked"
  /** The function `state` of a subscription failed. It is called again. */
  | "state_failed"
  /** Server-Sent Events can only receive. */
  | "no_websocket"
  /** A frame of the server could not be read, and was skipped. */
  | "bad_frame"
  | "unsubscribed"
  | "closed"
  | (string & {});

// From channel patterns to types

export interface AnyChannels {
  ">": Record<string, any>;
}

/** A channel of the contracts, or any channel whose name is only known at run time. */
export type Known<Channels, C extends string> = string extends C
  ? C
  : [PatternsFor<Channels, C>] extends [never]
    ? { "no channel of the contracts matches": C }
    : C;

/** The events of a channel: those of its exact name, otherwise of all matching patterns. */
export type EventsOf<Channels, C extends string> = string extends C
  ? Record<string, any>
  : C extends keyof Channels
    ? Channels[C]
    : Merged<Channels[PatternsFor<Channels, C> & keyof Channels]>;

export type PatternsFor<Channels, C extends string> = C extends keyof Channels
  ? C
  : { [P in keyof Channels & string]: Matches<C, P> extends true ? P : never }[keyof Channels &
      string];

/** The events that clients may send on a channel: none if the contracts have none for it. */
export type SentOn<ClientEvents, C extends string> = [ClientEvents, AnyChannels] extends [
  AnyChannels,
  ClientEvents,
]
  ? Record<string, any>
  : EventsOf<ClientEvents, C>;

/** Data that may be null or undefined may be left out. */
type DataOf<Data> = null extends Data
  ? [data?: Data]
  : undefined extends Data
    ? [data?: Data]
    : [data: Data];

type AnyOf<Events> = Events[keyof Events];

/** One map of all events of a union of maps. */
type Merged<Union> = (Union extends unknown ? (map: Union) => void : never) extends (
  map: infer All,
) => void
  ? All
  : never;

/** Token by token, because `string` in a template type would span dots. */
type Matches<C extends string, P extends string> = P extends ">"
  ? true
  : C extends ">"
    ? true
    : P extends `${infer PatternToken}.${infer PatternRest}`
      ? C extends `${infer Token}.${infer Rest}`
        ? MatchesToken<Token, PatternToken> extends true
          ? Matches<Rest, PatternRest>
          : false
        : false
      : C extends `${string}.${string}`
        ? false
        : MatchesToken<C, P>;

type MatchesToken<T extends string, P extends string> = P extends "*" | `{${string}}`
  ? true
  : T extends "*" | `{${string}}`
    ? true
    : T extends P
      ? true
      : false;
