/** Vue composables for eventbus; docs/frontend.md describes them. */

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
import type { ChannelSnapshot, Maybe, StateOptions, StateSnapshot } from "@eventbus/client/stores";
import type { DefineSetupFnComponent, MaybeRefOrGetter, Ref, ShallowRef, SlotsType } from "vue";

export type { Loaded } from "@eventbus/client";
export type { Maybe, MessageOf } from "@eventbus/client/stores";

/**
 * Your contracts, for the types of all composables:
 *
 *     declare module "@eventbus/vue" {
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

/** A bus that you opened, and that you close, or options for one of its own. */
export type EventBusProviderProps =
  | { bus: Bus<any, any> | null }
  | ({ bus?: undefined } & Options);

/**
 * Gives the components in its slot a bus: yours, or one of its own.
 *
 * Its own is opened once the page has mounted, never on a server, and closed on unmounting. Another
 * `url` opens another bus; another user needs another `key`.
 */
export const EventBusProvider: DefineSetupFnComponent<
  EventBusProviderProps,
  {},
  SlotsType<{ default?: () => unknown }>
>;

/** The same for the components below the one that calls it. */
export function provideEventBus(
  given: MaybeRefOrGetter<Bus<any, any> | null | Options>,
): Readonly<ShallowRef<Bus<RegisteredChannels, RegisteredClientEvents> | null>>;

/**
 * The bus; null on a server and before mounting, if the provider opens it, or if yours is null.
 *
 * @throws Error outside of a provider.
 */
export function useEventBus(): Readonly<ShallowRef<Bus<RegisteredChannels, RegisteredClientEvents> | null>>;

/** A channel, or a ref or getter of one. */
export type Source = MaybeRefOrGetter<Maybe<string>>;

/** The names that a source can have. */
type Name<S> = S extends () => infer Value
  ? Name<Value>
  : S extends Ref<infer Value>
    ? Name<Value>
    : S extends "" | null | undefined | false
      ? never
      : S & string;

/** A source whose names the contracts know. */
type Checked<S> =
  Name<S> extends Known<RegisteredChannels, Name<S>> ? S : Known<RegisteredChannels, Name<S>>;

/**
 * Subscribe while the component is mounted, to another channel when the ref or getter changes.
 * Without a channel (null, undefined or false), it does not subscribe.
 */
export function useChannel<const S extends Source>(
  channel: S & Checked<S>,
  handlers?:
    | Handlers<EventsOf<RegisteredChannels, Name<S>>>
    | Handler<EventsOf<RegisteredChannels, Name<S>>[keyof EventsOf<RegisteredChannels, Name<S>>]>
    | null,
  options?: ChannelOptions,
): RefsOf<ChannelSnapshot>;

export interface ChannelOptions {
  /** The maximum number of earlier messages to receive first. */
  history?: number | undefined;
}

/** A read-only ref per property. */
export type RefsOf<Snapshot> = { readonly [Name in keyof Snapshot]: Readonly<Ref<Snapshot[Name]>> };

/** Call a handler with one event of a channel, as `useChannel` does. */
export function useEvent<
  const S extends Source,
  const E extends (keyof EventsOf<RegisteredChannels, Name<S>> & string) | `client-${string}`,
>(
  channel: S & Checked<S>,
  event: E,
  handler: (
    data: DataOf<EventsOf<RegisteredChannels, Name<S>>, E>,
    message: Message<DataOf<EventsOf<RegisteredChannels, Name<S>>, E>, E>,
  ) => unknown,
  options?: ChannelOptions,
): RefsOf<ChannelSnapshot>;

type DataOf<Events, E extends string> = E extends keyof Events ? Events[E] : any;

/**
 * The state of a channel: what `load` returns, changed by `reduce` with each message after its
 * position, and loaded again after a gap.
 */
export function useChannelState<Data, const S extends Source>(
  channel: S & Checked<S>,
  options: StateOptions<Data, EventsOf<RegisteredChannels, Name<S>>>,
): {
  readonly status: Readonly<Ref<StateSnapshot<Data>["status"]>>;
  readonly data: Readonly<Ref<Data | undefined>>;
  readonly error: Readonly<Ref<StateSnapshot<Data>["error"]>>;
  /** Load the data again. */
  readonly reload: () => void;
};

/** Join a presence channel, and follow who is in it. */
export function usePresence<const S extends Source>(
  channel: S & Checked<S>,
): RefsOf<ChannelSnapshot> & {
  readonly members: Readonly<Ref<readonly Member[]>>;
  readonly count: Readonly<Ref<number>>;
  /** Change the user's own info; resolves with all members. */
  readonly update: (
    changes: Record<string, unknown>,
  ) => Promise<{ members: Member[]; count: number }>;
};

/** `bus.state`, now and after each change. */
export function useConnectionState(): Readonly<ShallowRef<State>>;

/**
 * A function that sends a client event to the channel's other subscribers. It rejects with an
 * EventBusError while there is no connection.
 */
export function useWhisper<const S extends Source>(
  channel: S & Checked<S>,
): <E extends keyof SentOn<RegisteredClientEvents, Name<S>> & string>(
  event: E,
  ...data: WhisperData<SentOn<RegisteredClientEvents, Name<S>>[E]>
) => Promise<object>;

/** Data that may be null or undefined may be left out. */
type WhisperData<Data> = null extends Data
  ? [data?: Data]
  : undefined extends Data
    ? [data?: Data]
    : [data: Data];
