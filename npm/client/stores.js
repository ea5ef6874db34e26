/**
 * Stores for user interfaces. Each follows one thing of a bus while it has listeners; making one has
 * no effects. `@eventbus/react` and `@eventbus/vue` are thin layers over them.
 */

import { EventBusError } from "./eventbus.js";

const CONNECTING = Object.freeze({ status: "connecting", transport: null, error: null });

const SYSTEM_EVENTS = [
  "eb:subscribed",
  "eb:unsubscribed",
  "eb:error",
  "eb:presence.joined",
  "eb:presence.left",
  "eb:presence.updated",
];

/** `start(set)` runs for the first listener, and the function that it returns after the last. */
class Store {
  #start;
  #stop = null;
  #snapshot;
  #listeners = new Set();

  constructor(initial, start) {
    this.#snapshot = initial;
    this.#start = start;
    this.getInitial = () => initial;
  }

  get = () => this.#snapshot;

  subscribe = (callback) => {
    const listener = () => callback();
    this.#listeners.add(listener);
    if (!this.#stop) this.#begin();
    return () => {
      if (this.#listeners.delete(listener) && !this.#listeners.size) this.#end();
    };
  };

  restart = () => {
    if (!this.#stop) return;
    this.#end();
    this.#begin();
  };

  #begin() {
    let isOver = false;
    const stop = this.#start((changes) => {
      if (isOver) return;
      this.#snapshot = { ...this.#snapshot, ...changes };
      for (const listener of [...this.#listeners]) listener();
    });
    this.#stop = () => {
      isOver = true;
      stop?.();
    };
  }

  #end() {
    const stop = this.#stop;
    this.#stop = null;
    stop();
  }
}

/** Follows the connection: `bus.state`. */
export function connectionStore(bus) {
  return {
    get: () => bus?.state ?? CONNECTING,
    getInitial: () => CONNECTING,
    subscribe: (callback) => bus?.onState(() => callback()) ?? (() => {}),
  };
}

/**
 * Follows a channel with the handlers that `handlers()` returns whenever a message arrives.
 *
 * Its snapshot is `{status, error}`. Without a bus or a channel, it does nothing.
 */
export function channelStore(bus, channel, handlers = () => null, options = {}) {
  let handle = null;
  const store = new Store(initial(channel), (set) => {
    if (!bus || !channel) return null;
    const following = follow(bus, channel, dispatch(handlers), options, set);
    handle = following.handle;
    return () => {
      handle = null;
      following.stop();
    };
  });
  store.whisper = async (event, data) => {
    if (!handle) throw notSubscribed(channel);
    return handle.whisper(event, data);
  };
  return store;
}

/**
 * Follows the state of a channel: what `load()` returned, changed by `reduce(data, message)` with
 * each later message of the channel. `initial` is an answer of `load` that the page already has.
 *
 * Its snapshot is `{status, data, error}`.
 */
export function stateStore(bus, channel, { load, reduce, initial: given }) {
  let first = given;
  const empty = { status: channel ? "loading" : "idle", data: undefined, error: null };
  const filled = { status: "ready", data: given?.data, error: null };
  const store = new Store(channel && given ? filled : empty, (set) => {
    if (!bus || !channel) return null;
    const life = new AbortController();
    let current = store.get().data;
    let isLoaded = false;
    const state = async () => {
      const answer = first ?? (await load({ signal: life.signal }));
      first = null; // after a gap, only `load` knows
      return answer;
    };
    const onState = (data) => {
      isLoaded = true;
      current = data;
      set({ status: "ready", data, error: null });
    };
    const onMessage = (_, message) => {
      // Whispers come from other clients, not from the service that owns the state.
      if (message.event.startsWith("client-")) return;
      current = reduce(current, message);
      set({ data: current });
    };
    const onStatus = ({ status, error }) => {
      if (status === "refused") set({ status: "error", error });
      else if (status === "joined" && store.get().status === "error") {
        set({ status: isLoaded ? "ready" : "loading", error: null });
      }
    };
    const { stop } = follow(bus, channel, { "*": onMessage }, { state, onState }, onStatus);
    return () => {
      life.abort();
      stop();
    };
  });
  store.reload = store.restart;
  return store;
}

/**
 * Follows the members of a presence channel. Its snapshot is `{status, error, members, count}`.
 * `update(changes)` changes the user's own info.
 */
export function presenceStore(bus, channel) {
  let handle = null;
  const none = { ...initial(channel), members: [], count: 0 };
  const store = new Store(none, (set) => {
    if (!bus || !channel) return null;
    let members = new Map();
    const changed = () => set({ members: [...members.values()], count: members.size });
    const put = (member) => {
      members.set(member.user_id, member);
      changed();
    };
    const remove = ({ user_id: id }) => {
      members.delete(id);
      changed();
    };
    const handlers = {
      "eb:subscribed": ({ members: present }) => {
        if (!present) return; // after a gap of messages, the members are still there
        members = new Map(present.map((member) => [member.user_id, member]));
        changed();
      },
      "eb:presence.joined": put,
      "eb:presence.updated": put,
      "eb:presence.left": remove,
    };
    const following = follow(bus, channel, handlers, {}, set);
    handle = following.handle;
    return () => {
      handle = null;
      following.stop();
    };
  });
  store.update = async (changes) => {
    if (!handle) throw notSubscribed(channel);
    return handle.presence(changes);
  };
  return store;
}

const initial = (channel) => ({ status: channel ? "joining" : "idle", error: null });

const notSubscribed = (channel) =>
  new EventBusError("not_subscribed", `not subscribed to ${channel}`, channel || null);

/** Subscribe, and report `{status, error}` by `set` until `stop` is called. */
function follow(bus, channel, handlers, options, set) {
  const refuse = (error) => set({ status: "refused", error });
  const joined = () => set({ status: "joined", error: null });
  const joining = () => set({ status: "joining", error: null });
  const first = (report, handler) => (data, message) => {
    report(data);
    handler?.(data, message);
  };
  const ended = ({ reason }) => refuse(new EventBusError("unsubscribed", reason, channel));
  const observed = {
    ...handlers,
    "eb:subscribed": first(joined, handlers["eb:subscribed"]),
    "eb:unsubscribed": first(ended, handlers["eb:unsubscribed"]),
    "eb:error": first(refuse, handlers["eb:error"]),
  };
  joining();
  let handle;
  try {
    handle = bus.subscribe(channel, observed, options);
  } catch (error) {
    if (!(error instanceof EventBusError)) throw error;
    refuse(error); // the bus is closed
    return { handle: null, stop: () => {} };
  }
  const off = bus.onState(({ status, reason, error }) => {
    if (status === "closed") {
      refuse(new EventBusError(error?.code ?? "closed", error?.message ?? reason, channel));
    } else if (status !== "connected") joining();
  });
  return {
    handle,
    stop() {
      off();
      handle.unsubscribe();
    },
  };
}

/** Handlers of a subscription that pass each message to those that `current()` returns then. */
function dispatch(current) {
  const call = (handlers, event, data, message) => {
    // An event may have the name of something that every object inherits.
    if (handlers && Object.hasOwn(handlers, event)) handlers[event]?.(data, message);
  };
  const all = {
    "*": (data, message) => {
      const handlers = current();
      if (typeof handlers === "function") return handlers(data, message);
      try {
        call(handlers, message.event, data, message);
      } finally {
        call(handlers, "*", data, message);
      }
    },
  };
  for (const event of SYSTEM_EVENTS) {
    all[event] = (data, message) => call(current(), event, data, message);
  }
  return all;
}
