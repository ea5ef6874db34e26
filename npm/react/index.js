"use client";

import { connect } from "@eventbus/client";
import { channelStore, connectionStore, presenceStore, stateStore } from "@eventbus/client/stores";
import {
  createContext,
  createElement,
  useContext,
  useEffect,
  useInsertionEffect,
  useMemo,
  useRef,
  useState,
  useSyncExternalStore,
} from "react";

const Context = createContext(undefined);
Context.displayName = "EventBus";

/** Keeps the value of the last committed render, for callbacks that outlive it. */
function useLatest(value) {
  const latest = useRef(value);
  // Before the effects of any component, because those may call the callbacks.
  useInsertionEffect(() => {
    latest.current = value;
  });
  return latest;
}

/** A store has no effects until a committed component listens: abandoned renders leave nothing. */
function useStore(make, dependencies) {
  const bus = useEventBus();
  const store = useMemo(() => make(bus), [bus, ...dependencies]);
  return [store, useSyncExternalStore(store.subscribe, store.get, store.getInitial)];
}

export function EventBusProvider({ bus, children, ...options }) {
  if (bus !== undefined) return createElement(Context.Provider, { value: bus }, children);
  return createElement(Owner, options, children);
}

const tokenOf = (given) => (typeof given === "function" ? given() : given);

/** Opens a bus once it is mounted, so never on a server, and closes it when it is unmounted. */
function Owner({ children, token, ...options }) {
  const [bus, setBus] = useState(null);
  const owned = useRef(null);
  const latestToken = useLatest(token);
  const key = JSON.stringify(options); // also of URL objects

  useEffect(() => {
    if (owned.current?.key === key) {
      clearTimeout(owned.current.closing);
    } else {
      const token = () => tokenOf(latestToken.current);
      const opened = connect({ ...JSON.parse(key), token });
      owned.current = { key, bus: opened };
      setBus(opened);
    }
    const mine = owned.current;
    return () => {
      // StrictMode mounts twice: the second time, the bus is still there.
      mine.closing = setTimeout(() => {
        mine.bus.close();
        if (owned.current !== mine) return;
        owned.current = null;
        setBus(null);
      });
    };
  }, [key, latestToken]);

  return createElement(Context.Provider, { value: bus }, children);
}

export function useEventBus() {
  const bus = useContext(Context);
  if (bus === undefined) throw new Error("This component needs an <EventBusProvider> around it.");
  return bus;
}

export function useChannel(channel, handlers, { history } = {}) {
  const latest = useLatest(handlers);
  const make = (bus) => channelStore(bus, channel, () => latest.current, { history });
  return useStore(make, [channel, history])[1];
}

export function useEvent(channel, event, handler, options) {
  return useChannel(channel, { [event]: handler }, options);
}

export function useChannelState(channel, options) {
  const latest = useLatest(options);
  const [channels] = useState(() => new WeakMap()); // the first one that each `initial` came with
  const make = (bus) => {
    const { initial } = options;
    if (channel && initial && !channels.has(initial)) channels.set(initial, channel);
    return stateStore(bus, channel, {
      load: (request) => latest.current.load(request),
      reduce: (data, message) => latest.current.reduce(data, message),
      initial: channels.get(initial) === channel ? initial : null,
    });
  };
  const [{ reload }, snapshot] = useStore(make, [channel]);
  return useMemo(() => ({ ...snapshot, reload }), [snapshot, reload]);
}

export function usePresence(channel) {
  const [{ update }, snapshot] = useStore((bus) => presenceStore(bus, channel), [channel]);
  return useMemo(() => ({ ...snapshot, update }), [snapshot, update]);
}

export function useConnectionState() {
  return useStore(connectionStore, [])[1];
}

export function useWhisper(channel) {
  const bus = useEventBus();
  const store = useMemo(() => channelStore(bus, channel), [bus, channel]);
  useEffect(() => store.subscribe(() => {}), [store]);
  return store.whisper;
}
