/** React hooks for eventbus; docs/frontend.md describes them. */

import type {
  AnyChannels,
  Bus,
  EventsOf,
  Handler,
  Handlers,
  Known,
  Member,
  Message,
  Options,
  SentOn,
  State,
} from "@eventbus/client";
import type {
  ChannelSnapshot,
  Maybe,
  PresenceSnapshot,
  StateOptions,
  StateSnapshot,
} from "@eventbus/client/stores";
import type { ReactElement, ReactNode } from "react";

export type { Loaded } from "@eventbus/client";
export type { Maybe, MessageOf } from "@eventbus/client/stores";

/**
 * Your contracts, for the types of all hooks:
 *
 *     declare module "@eventbus/react" {
 *       interface Register { channels: Channels; clientEvents: ClientEvents }
 *     }
 */
export interface Register {}

// An application's `Register` sees the names of this module: it must not have a type `Channels`.

export type RegisteredChannels = Register extends { channels: infer C extends object }
  ? C
  : AnyChannels;
export type RegisteredClientEvents = Register extends { clientEvents: infer C extends object }
  ? C
  : AnyChannels;

export type EventBusProviderProps = { children?: ReactNode } & (
  | {
      /** A bus that you opened, and that you close; null while you have none. */
      bus: Bus<any, any> | null;
    }
  | ({
      bus?: undefined;
    } & Options)
);

/**
 * Gives the components inside it a bus: yours, or one of its own.
 *
 * Its own is opened once the page has mounted, never on a server, and closed on unmounting. Another
 * `url` opens another bus; another user needs another `key`.
 */
export function EventBusProvider(props: EventBusProviderProps): ReactElement;

/**
 * The bus; null on a server and in the first render, if the provider opens it, or if yours is null.
 *
 * @throws Error outside of a provider.
 */
export function useEventBus(): Bus<RegisteredChannels, RegisteredClientEvents> | null;

/**
 * Subscribe while the component is mounted. The newest handlers are called, so they need no memo.
 * Without a channel (null, undefined or false), it does not subscribe.
 */
export function useChannel<const C extends string>(
  channel: Maybe<C & Known<RegisteredChannels, C>>,
  handlers?:
    | Handlers<EventsOf<RegisteredChannels, C>>
    | Handler<EventsOf<RegisteredChannels, C>[keyof EventsOf<RegisteredChannels, C>]>
    | null,
  options?: ChannelOptions,
): ChannelSnapshot;

export interface ChannelOptions {
  /** The maximum number of earlier messages to receive first. */
  history?: number | undefined;
}

/** Call a handler with one event of a channel, as `useChannel` does. */
export function useEvent<
  const C extends string,
  const E extends (keyof EventsOf<RegisteredChannels, C> & string) | `client-${string}`,
>(
  channel: Maybe<C & Known<RegisteredChannels, C>>,
  event: E,
  handler: (
    data: DataOf<EventsOf<RegisteredChannels, C>, E>,
    message: Message<DataOf<EventsOf<RegisteredChannels, C>, E>, E>,
  ) => unknown,
  options?: ChannelOptions,
): ChannelSnapshot;

type DataOf<Events, E extends string> = E extends keyof Events ? Events[E] : any;

/**
 * The state of a channel: what `load` returns, changed by `reduce` with each message after its
 * position, and loaded again after a gap.
 */
export function useChannelState<Data, const C extends string>(
  channel: Maybe<C & Known<RegisteredChannels, C>>,
  options: StateOptions<Data, EventsOf<RegisteredChannels, C>>,
): StateSnapshot<Data> & {
  /** Load the data again. */
  readonly reload: () => void;
};

/** Join a presence channel, and follow who is in it. */
export function usePresence<const C extends string>(
  channel: Maybe<C & Known<RegisteredChannels, C>>,
): PresenceSnapshot & {
  /** Change the user's own info; resolves with all members. */
  readonly update: (
    changes: Record<string, unknown>,
  ) => Promise<{ members: Member[]; count: number }>;
};

/** `bus.state`, now and after each change. */
export function useConnectionState(): State;

/**
 * A function that sends a client event to the channel's other subscribers. It is the same in each
 * render, and rejects with an EventBusError while there is no connection.
 */
export function useWhisper<const C extends string>(
  channel: Maybe<C & Known<RegisteredChannels, C>>,
): <E extends keyof SentOn<RegisteredClientEvents, C> & string>(
  event: E,
  ...data: WhisperData<SentOn<RegisteredClientEvents, C>[E]>
) => Promise<object>;

/** Data that may be null or undefined may be left out. */
type WhisperData<Data> = null extends Data
  ? [data?: Data]
  : undefined extends Data
    ? [data?: Data]
    : [data: Data];
