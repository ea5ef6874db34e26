/**
 * The browser's client of eventbus, for the native wire protocol (`eventbus.v1`).
 *
 *     import { connect } from "./eventbus.js";
 *
 *     const bus = connect({ url: "/ws", token: async () => (await fetch("/token")).text() });
 *     bus.on("state", ({ state }) => console.log(state));
 *     const room = bus.subscribe("chat.lobby", {
 *       ChatMessage: (data, message) => console.log(data, message.timestamp),
 *     });
 *     room.whisper("typing", {});
 *
 * A lost connection is made again with a jittered, growing delay, as the close code allows; each
 * channel then goes on from the last message that it received, and no message is handed on twice.
 * Nothing is buffered while there is no connection: what could not be sent is answered by `false`.
 */

const PROTOCOL = "eventbus.v1";
const HANDSHAKE_MS = 10_000;
const STEADY_MS = 5_000; // a connection that lived this long resets the delay
const FIRST_DELAY_MS = 500;
const LAST_DELAY_MS = 30_000;
const FAILED_TO_CONNECT = 1006; // the code that browsers give when there is no better one

/** Open a bus. `url` may be relative; `token` is an async function giving a JWT, or nothing. */
export function connect(options) {
  return new Bus(options);
}

/** Handlers by event name; `*` stands for every message of an application. */
class Emitter {
  #handlers = new Map();

  /** Call `handler(data, message)` for each `event`; gives a function that ends it. */
  on(event, handler) {
    if (!this.#handlers.has(event)) this.#handlers.set(event, new Set());
    this.#handlers.get(event).add(handler);
    return () => this.#handlers.get(event)?.delete(handler);
  }

  /** One handler's fault must not keep a message from the others: it is reported, not thrown. */
  _emit(event, data, message) {
    for (const handler of this.#handlers.get(event) ?? []) {
      try {
        handler(data, message);
      } catch (error) {
        reportError(error);
      }
    }
  }
}

/** One channel of a bus. Its events are the channel's own, and `eb:subscribed`, `eb:error`, …. */
class Subscription extends Emitter {
  #bus;
  #history;

  constructor(bus, channel, history) {
    super();
    this.#bus = bus;
    this.#history = history;
    this.channel = channel;
    this.position = null; // {offset, epoch} of the last message that was received
    this.active = false;
  }

  /** Send an event to the channel's other connections; false when there is no connection. */
  whisper(event, data) {
    return this.active && this.#bus._send({ action: "whisper", channel: this.channel, event, data });
  }

  /** Leave the channel. */
  unsubscribe() {
    this.#bus._leave(this);
  }

  _join() {
    const data = this.position ?? (this.#history ? { history: this.#history } : undefined);
    this.#bus._send({ action: "subscribe", channel: this.channel, data });
  }

  _receive(message) {
    const { event, data, offset, epoch } = message;
    if (event === "eb:subscribed") {
      this.active = true;
      this.position = data.epoch ? { offset: data.offset, epoch: data.epoch } : null;
    } else if (event === "eb:unsubscribed") {
      this.active = false;
    } else if (offset !== undefined) {
      if (epoch === this.position?.epoch && offset <= this.position.offset) return;
      this.position = { offset, epoch };
    }
    this._emit(event, data, message);
    if (!event.startsWith("eb:")) this._emit("*", data, message);
  }
}

/** A connection that is kept. Its events are `state`, `error`, and the server's own (`eb:…`). */
class Bus extends Emitter {
  #url;
  #token;
  #socket = null;
  #channels = new Map();
  #timers = new Map(); // at most one of each kind
  #attempt = 0; // raised whenever what is under way no longer counts
  #failures = 0;
  #idle = 0; // heartbeats without a word from the server

  constructor({ url, token }) {
    super();
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#token = token;
    this.state = "connecting";
    globalThis.addEventListener?.("online", this.#online);
    globalThis.addEventListener?.("offline", this.#offline);
    this.#open();
  }

  /**
   * Join a channel, now and after each reconnect. `handlers` is a function for every message, or an
   * object of functions by event name; `history` asks for up to that many earlier messages.
   */
  subscribe(channel, handlers = {}, { history = 0 } = {}) {
    let subscription = this.#channels.get(channel);
    if (!subscription) {
      subscription = new Subscription(this, channel, history);
      this.#channels.set(channel, subscription);
      if (this.state === "connected") subscription._join();
    }
    const named = typeof handlers === "function" ? { "*": handlers } : handlers;
    for (const [event, handler] of Object.entries(named)) subscription.on(event, handler);
    return subscription;
  }

  /** Connect at once, rather than when the delay is over. */
  reconnect() {
    if (this.state === "disconnected") this.#open();
  }

  /** End the connection for good. */
  close() {
    globalThis.removeEventListener?.("online", this.#online);
    globalThis.removeEventListener?.("offline", this.#offline);
    this.#drop();
    this.#become("closed", { code: 1000, reason: "closed by the page" });
  }

  _send(frame) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  _leave(subscription) {
    if (this.#channels.get(subscription.channel) !== subscription) return;
    this.#channels.delete(subscription.channel);
    subscription.active = false;
    this._send({ action: "unsubscribe", channel: subscription.channel });
  }

  // --- the connection's life

  async #open() {
    this.#drop();
    const attempt = this.#attempt;
    this.#become("connecting");
    let token;
    try {
      token = await this.#token?.();
    } catch (error) {
      if (attempt === this.#attempt) this.#lost(FAILED_TO_CONNECT, `no token: ${error.message}`);
      return;
    }
    if (attempt !== this.#attempt) return;
    const socket = new WebSocket(this.#url, PROTOCOL);
    this.#socket = socket;
    this.#after("handshake", HANDSHAKE_MS, () => this.#lost(FAILED_TO_CONNECT, "no answer"));
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    socket.onmessage = ({ data }) => {
      this.#idle = 0;
      this.#receive(JSON.parse(data), token);
    };
  }

  #receive(message, token) {
    const { channel, event, data } = message;
    if (channel !== null && this.#channels.has(channel)) {
      if (event === "eb:error" && (data.code === "rate_limited" || data.code === "unavailable")) {
        this.#rejoinLater(channel);
      }
      this.#channels.get(channel)._receive(message);
      return;
    }
    switch (event) {
      case "eb:connected":
        this.#watch(data.heartbeat_s);
        // A bad token is answered by an error frame here; in the handshake it would be a bare 1006.
        if (token) this._send({ action: "auth", data: { token } });
        else this.#ready();
        break;
      case "eb:authenticated":
        this.#ready();
        break;
      case "eb:token.expiring":
        this.#refresh();
        break;
      case "eb:error":
        this._emit("error", data, message);
        this.#ready(); // without a name, public channels still work
        break;
    }
    this._emit(event, data, message);
  }

  #ready() {
    if (this.state !== "connecting") return;
    this.#cancel("handshake");
    this.#after("steady", STEADY_MS, () => (this.#failures = 0));
    this.#become("connected");
    for (const subscription of this.#channels.values()) subscription._join();
  }

  async #refresh() {
    const attempt = this.#attempt;
    try {
      const token = await this.#token?.();
      if (token && attempt === this.#attempt) this._send({ action: "auth", data: { token } });
    } catch (error) {
      this._emit("error", { code: "unauthorized", message: `no token: ${error.message}` });
    }
  }

  /** A browser does not show the server's heartbeats, so ask when nothing else was heard. */
  #watch(seconds = 25) {
    const beat = () => {
      this.#idle += 1;
      if (this.#idle > 2) return this.#lost(FAILED_TO_CONNECT, "the server fell silent");
      if (this.#idle > 1) this._send({ action: "ping" });
      this.#after("heartbeat", seconds * 1000, beat);
    };
    this.#idle = 0;
    this.#after("heartbeat", seconds * 1000, beat);
  }

  #rejoinLater(channel) {
    this.#after(`join ${channel}`, 1000 + Math.random() * 1000, () => {
      const subscription = this.#channels.get(channel);
      if (subscription && !subscription.active) subscription._join();
    });
  }

  #lost(code, reason) {
    this.#drop();
    // The bands of close codes: 40xx stay away, 41xx come back later, 42xx come back at once.
    if (code >= 4000 && code < 4100) return this.#become("closed", { code, reason });
    const atOnce = code >= 4200 && code < 4300 && this.#failures === 0;
    const limit = Math.min(LAST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures);
    const delay = atOnce ? Math.random() * FIRST_DELAY_MS : limit * (0.5 + Math.random() / 2);
    this.#failures += 1;
    this.#after("retry", delay, () => this.#open());
    this.#become("disconnected", { code, reason, retryAt: Date.now() + delay });
  }

  /** Let go of the socket, and of whatever waits for it. */
  #drop() {
    this.#attempt += 1;
    for (const timer of [...this.#timers.keys()]) this.#cancel(timer);
    for (const subscription of this.#channels.values()) subscription.active = false;
    if (!this.#socket) return;
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close();
    this.#socket = null;
  }

  #online = () => this.reconnect();

  #offline = () => {
    if (this.state !== "closed") this.#lost(FAILED_TO_CONNECT, "the browser is offline");
  };

  #become(state, detail = {}) {
    this.state = state;
    this._emit("state", { state, ...detail });
  }

  #after(name, ms, callback) {
    this.#cancel(name);
    this.#timers.set(name, setTimeout(callback, ms));
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
