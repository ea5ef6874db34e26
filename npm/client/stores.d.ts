/** Stores for user interfaces, on which `@eventbus/react` and `@eventbus/vue` are built. */

import type {
  AnyChannels,
  Bus,
  EventBusError,
  EventsOf,
  Handler,
  Handlers,
  Known,
  Loaded,
  Member,
  Message,
  State,
} from "./eventbus.js";

/** A snapshot that changes while there are listeners. Its functions do not need `this`. */
export interface Store<Snapshot> {
  readonly get: () => Snapshot;
  /** The snapshot before anything has happened, as on a server. */
  readonly getInitial: () => Snapshot;
  /** Call `listener` after each change; returns a function that ends that. */
  readonly subscribe: (listener: () => void) => () => void;
}

/** A channel's name, or nothing while there is nothing to subscribe to. */
export type Maybe<Channel extends string> = Channel | null | undefined | false;

export interface ChannelSnapshot {
  /**
   * `idle` without a channel; `joining` until the edge has answered, and again while there is no
   * connection; `refused` with an `error`, which a later connection or token may overcome.
   */
  readonly status: "idle" | "joining" | "joined" | "refused";
  readonly error: EventBusError | null;
}

export interface PresenceSnapshot extends ChannelSnapshot {
  readonly members: readonly Member[];
  readonly count: number;
}

export type StateSnapshot<Data> =
  | { readonly status: "idle"; readonly data: undefined; readonly error: null }
  | { readonly status: "loading"; readonly data: Data | undefined; readonly error: null }
  | { readonly status: "ready"; readonly data: Data; readonly error: null }
  /** Loading or joining failed; `data` is the last known. */
  | { readonly status: "error"; readonly data: Data | undefined; readonly error: EventBusError };

/** A union of all messages of a channel; `event` tells which. */
export type MessageOf<Events> = {
  [E in keyof Events & string]: Message<Events[E], E>;
}[keyof Events & string];

export interface StateOptions<Data, Events> {
  /** Load the data and its position. `signal` aborts when the result is no longer needed. */
  load: (request: { signal: AbortSignal }) => Promise<Loaded<Data>>;
  /**
   * Returns the data after a message, and leaves the old data as it is. The data may contain the
   * message already, because its position is from before it was read: set values, do not add.
   */
  reduce: (data: Data, message: MessageOf<Events>) => Data;
  /**
   * An answer of `load` that the page already has, for example from the server that rendered it. It
   * is used for the channel that it was given with, and for no other.
   */
  initial?: Loaded<Data> | null | undefined;
}

type Subscriber<Events> = Handlers<Events> | Handler<Events[keyof Events]> | null | undefined;

export function connectionStore(bus: Bus<any, any> | null): Store<State>;

export function channelStore<Channels extends object = AnyChannels, const C extends string = string>(
  bus: Bus<Channels, any> | null,
  channel: Maybe<C & Known<Channels, C>>,
  handlers?: () => Subscriber<EventsOf<Channels, C>>,
  options?: { history?: number | undefined },
): Store<ChannelSnapshot> & {
  /** Send an event to the channel's other subscribers. */
  readonly whisper: (event: string, data?: unknown) => Promise<object>;
};

export function stateStore<
  Data,
  Channels extends object = AnyChannels,
  const C extends string = string,
>(
  bus: Bus<Channels, any> | null,
  channel: Maybe<C & Known<Channels, C>>,
  options: StateOptions<Data, EventsOf<Channels, C>>,
): Store<StateSnapshot<Data>> & {
  /** Load the data again. */
  readonly reload: () => void;
};

export function presenceStore<Channels extends object = AnyChannels, const C extends string = string>(
  bus: Bus<Channels, any> | null,
  channel: Maybe<C & Known<Channels, C>>,
): Store<PresenceSnapshot> & {
  /** Change the user's own info; resolves with all members. */
  readonly update: (
    changes: Record<string, unknown>,
  ) => Promise<{ members: Member[]; count: number }>;
};
