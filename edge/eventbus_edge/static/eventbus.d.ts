/** The types of eventbus.js; docs/browser-client.md describes its behaviour. */

/**
 * Open a bus, which connects at once and stays connected until `close()`.
 *
 * `Channels` maps channel patterns to their events, as `eventbus schema export --format typescript`
 * writes it; without it, nothing is checked.
 *
 * @throws TypeError for an invalid URL.
 */
export function connect<Channels extends object = AnyChannels>(options: Options): Bus<Channels>;

export interface Options {
  /** The edge's WebSocket endpoint; may be relative to the page: `"/ws"`. */
  url: string | URL;
  /**
   * Returns a JWT, or nothing for an anonymous visitor. It is called when a token is needed: for the
   * first connection, shortly before a token expires, and after one was refused.
   */
  token?: () => Token | Promise<Token>;
  /** The edge's `POST /sse` endpoint; `false` disables this fallback. By default next to `url`. */
  sseUrl?: string | URL | false;
  /** Milliseconds before the first reconnect, doubled after each failed attempt. By default 500. */
  minDelay?: number;
  /** The maximum delay in milliseconds. By default 30,000. */
  maxDelay?: number;
}

export type Token = string | null | undefined | void;

/** A connection that reconnects automatically, and its channels. */
export interface Bus<Channels extends object = AnyChannels> {
  readonly state: State["state"];
  /** The transport while connected. With `"sse"`, only receiving works. */
  readonly transport: "websocket" | "sse" | null;
  /** The server's id of this connection; publishers can exclude it (`except`). */
  readonly connectionId: string | null;

  /**
   * Join a channel or a pattern (`orders.*`, `team.7.>`), now and after each reconnect.
   *
   * A second call for the same channel adds its handlers to the same subscription.
   *
   * @param handlers a function for every message, or functions by event name.
   * @throws EventBusError with code `closed` if the bus is closed.
   */
  subscribe<const C extends string>(
    channel: C & Known<Channels, C>,
    handlers?: Handlers<EventsOf<Channels, C>> | Handler<AnyOf<EventsOf<Channels, C>>>,
    options?: SubscribeOptions,
  ): Subscription<EventsOf<Channels, C>>;

  /** Listen to the bus itself; returns a function that removes the handler. */
  on<E extends keyof BusEvents>(event: E, handler: (data: BusEvents[E]) => unknown): () => void;

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
  | { state: "connecting" }
  | { state: "connected"; transport: "websocket" | "sse" }
  /** The next attempt is at `retryAt` (like Date.now()). */
  | { state: "waiting" | "offline"; code: number; reason: string; retryAt: number }
  /** For good: by `close()` (1000), or by the server (4000 to 4099). */
  | { state: "closed"; code: number; reason: string };

export interface SubscribeOptions {
  /** The maximum number of earlier messages to receive when joining for the first time. */
  history?: number;
}

/** One channel, or one pattern, of a bus. */
export interface Subscription<Events = Record<string, any>> {
  readonly channel: string;
  /** Whether the subscription currently receives messages. */
  readonly active: boolean;
  /** The position of the last message that was received. */
  readonly position: Position | null;
  /** Resolves when first joined; rejects with an EventBusError if that was refused. */
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
  whisper(event: string, data?: unknown): Promise<object>;

  /** The members of a presence channel; `changes` updates your own info first. */
  presence(changes?: Record<string, unknown>): Promise<{ members: Member[]; count: number }>;

  /** Stored messages: the first `limit` after the offset `since`, or the last. */
  history(options?: { limit?: number; since?: number }): Promise<History<AnyOf<Events>>>;

  /** Leave, for all handlers. */
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
   * Set if the channel was joined before. False if missed messages cannot be recovered, so that the
   * page must reload its state.
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
} & { [event: `client-${string}`]: Handler<any> };

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
  /** Server-Sent Events can only receive. */
  | "no_websocket"
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
