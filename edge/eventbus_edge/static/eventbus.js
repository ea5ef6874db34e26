/** eventbus.d.ts describes it. */

const PROTOCOL = "eventbus.v1";
const FAILED = 1006;
const HANDSHAKE_MS = 20_000;
const STEADY_MS = 5_000;
const ASK_MS = 5_000;
const WEBSOCKET_AGAIN_MS = 60_000;
const MOST = 1_000;
const MOST_UNSENT_BYTES = 1_000_000;

export class EventBusError extends Error {
  constructor(code, message, channel = null) {
    super(message);
    Object.assign(this, { name: "EventBusError", code, channel });
  }
}

export const connect = (options) => new Bus(options);

const report = (error) => (globalThis.reportError ?? console.error)(error);
const jittered = (ms) => ms * (0.5 + Math.random() / 2);

class Emitter {
  #handlers = new Map();

  on(event, handler) {
    const handlers = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  _emit(event, data, message) {
    const handlers = [...(this.#handlers.get(event) ?? [])];
    if (!handlers[0] && event === "error") handlers.push(report);
    for (const handler of handlers) {
      try {
        handler(data, message);
      } catch (error) {
        report(error);
      }
    }
  }
}

class Subscription extends Emitter {
  #bus;
  #history;
  #ready;
  #refusals = 0;
  #joined = false;
  #asked = false;
  #positions = new Map();

  constructor(bus, channel, history) {
    super();
    this.#bus = bus;
    this.#history = history;
    this.channel = channel;
    this.active = false;
    this.ready = new Promise((resolve, reject) => (this.#ready = { resolve, reject }));
    this.ready.catch(() => {});
    this._name = { channel };
    if (/[*>{]/.test(channel)) {
      this._name = { pattern: channel };
      const tokens = channel.replaceAll(".", "\\.").replace(/\*|\{\w+\}/g, "[^.]+");
      this._pattern = new RegExp(`^${tokens.replace(/>$/, ".+")}$`);
    }
  }

  get position() {
    return this.#positions.get(this.channel) ?? null;
  }

  whisper(event, data = null) {
    return this.#ask("whisper", { event, data });
  }

  presence(changes) {
    return this.#ask("presence", { data: changes });
  }

  history(options) {
    return this.#ask("history", { data: options });
  }

  unsubscribe() {
    this.#bus._leave(this);
  }

  #ask(action, frame) {
    const asked = { action, channel: this.channel, ...frame };
    return new Promise((resolve, reject) => this.#bus._request(asked, resolve, reject));
  }

  _join() {
    if (this.#asked) return;
    this.#asked = true;
    const first = this.#history ? { history: this.#history } : undefined;
    const data = this._pattern ? undefined : (this.position ?? first);
    this.#bus._request(
      { action: "subscribe", ...this._name, data },
      (answer, message) => {
        this.#asked = false;
        if (this._left) return;
        // Without a position, messages were missed.
        if (this.#joined) answer.recovered ??= false;
        const { offset, epoch, mark } = answer;
        if (epoch) this.#positions.set(this.channel, { offset, epoch, mark });
        else this.#positions.delete(this.channel);
        this.#refusals = 0;
        this.active = this.#joined = true;
        this.#ready.resolve(answer);
        this._emit("eb:subscribed", answer, message);
      },
      (error) => this.#refused(error),
    );
  }

  #refused(error) {
    this.#asked = false;
    if (this._left || error.code === "disconnected") return;
    if (/unavailable|rate_limited|token_expired/.test(error.code)) {
      return this.#bus._rejoin(this, this.#refusals++);
    }
    this._end(error.code, error.message);
    this._emit("eb:error", error);
    this.#bus._emit("error", error);
  }

  _end(code, message = code) {
    this.active = false;
    this.#ready.reject(new EventBusError(code, message, this.channel));
  }

  _receive(message) {
    const { channel, event, data, offset, epoch, mark } = message;
    if (!this.active) return;
    this.active = event !== "eb:unsubscribed";
    if (epoch) {
      const last = this.#positions.get(channel);
      if (epoch === last?.epoch && offset <= last.offset) return;
      if (this.#positions.size >= MOST) this.#positions.clear();
      this.#positions.set(channel, { offset, epoch, mark });
    }
    this._emit(event, data, message);
    if (!this._left && !event.startsWith("eb:")) this._emit("*", data, message);
  }
}

class Bus extends Emitter {
  #url;
  #sseUrl;
  #getToken;
  #token;
  #minDelay;
  #maxDelay;
  #socket = null;
  #trial = null;
  #stream = null;
  #frames = null;
  #subscriptions = new Map();
  #requests = new Map();
  #ref = 0;
  #timers = new Map();
  #attempt = 0;
  #failures = 0;
  #misses = 2; // without a greeting; the first counts as the third
  #heard = false;
  #heartbeat = 25_000;
  #pace = {};
  #life = new AbortController();

  constructor({ url, token, sseUrl = "sse", minDelay = 500, maxDelay = 30_000 }) {
    super();
    this.#url = new URL(url, globalThis.location?.href).href.replace(/^http/, "ws");
    this.#sseUrl = sseUrl && new URL(sseUrl, this.#url.replace(/^ws/, "http"));
    this.#getToken = token;
    this.#minDelay = minDelay;
    this.#maxDelay = maxDelay;
    this.state = "connecting";
    this.transport = this.connectionId = null;
    const hear = ({ type }) => {
      if (type === "offline" || type === "pagehide") this.#lost(FAILED, type);
      else this.#wake();
    };
    // The browser's Back keeps pages without connections.
    for (const event of ["pageshow", "pagehide", "online", "offline", "resume", "visibilitychange"]) {
      globalThis.addEventListener?.(event, hear, this.#life);
    }
    this.#open();
  }

  subscribe(channel, handlers = {}, { history } = {}) {
    if (this.state === "closed") throw new EventBusError("closed", "it is closed");
    let subscription = this.#subscriptions.get(channel);
    const isNew = !subscription;
    if (isNew) {
      subscription = new Subscription(this, channel, history);
      this.#subscriptions.set(channel, subscription);
    }
    const named = typeof handlers === "function" ? { "*": handlers } : handlers;
    for (const event in named) subscription.on(event, named[event]);
    if (isNew && (this.#stream || this.state === "connected")) subscription._join();
    return subscription;
  }

  reconnect() {
    if (this.state === "waiting" || this.state === "offline") this.#open();
  }

  close() {
    this.#close(1000, "closed");
  }

  _request(frame, done, failed) {
    const fail = (code, message) => failed(new EventBusError(code, message, frame.channel));
    const socket = this.#socket;
    const pace = this.#pace;
    const now = Date.now();
    const asked = { ...frame, ref: ++this.#ref };
    if (this.#frames) {
      this.#frames.push(asked);
    } else if (this.#stream) {
      if (!frame.action.endsWith("subscribe")) return fail("no_websocket", "no WebSocket");
      this.#after("stream", 0, () => this.#open(true));
      return fail("disconnected", "asked again");
    } else if (!this.connectionId) {
      return fail("disconnected", "no connection");
    } else if (this.#requests.size >= MOST || socket.bufferedAmount > MOST_UNSENT_BYTES) {
      return fail("limit_exceeded", "too much unanswered");
    } else if (pace.due > now + pace.gap * pace.burst) {
      return fail("rate_limited", "too many actions");
    } else {
      pace.due = Math.max(now, pace.due) + pace.gap;
      socket.send(JSON.stringify(asked));
    }
    this.#requests.set(this.#ref, [done, fail]);
  }

  _rejoin(subscription, refusals) {
    this.#after(subscription, this.#delay(refusals + 2), () => subscription._join());
  }

  _leave(subscription) {
    const { channel, _name: name } = subscription;
    if (this.#subscriptions.get(channel) !== subscription) return;
    this.#subscriptions.delete(channel);
    this.#cancel(subscription);
    subscription._left = true;
    subscription._end("unsubscribed");
    const leave = () => {
      if (this.#subscriptions.has(channel)) return;
      this._request({ action: "unsubscribe", ...name }, () => {}, ({ code }) => {
        if (code === "rate_limited") this.#after(subscription, 1_000, leave);
      });
    };
    leave();
  }

  async #open(byStream = false) {
    this.#drop("reconnecting");
    const attempt = this.#attempt;
    if (byStream) this.#stream = new AbortController();
    else this.#become("connecting");
    this.#after("handshake", HANDSHAKE_MS, () => this.#lost(FAILED, "no answer"));
    try {
      this.#token ??= await this.#getToken?.();
      if (attempt !== this.#attempt) return;
      if (byStream) await this.#read(attempt);
      else this.#socket = this.#dial(attempt, (data) => this.#receive(data), this.#lost);
    } catch (error) {
      if (attempt === this.#attempt) this.#lost(FAILED, error?.message);
    }
  }

  #dial(attempt, onmessage, onclose) {
    const socket = new WebSocket(this.#url, PROTOCOL);
    socket.onmessage = ({ data }) => attempt === this.#attempt && onmessage(JSON.parse(data));
    socket.onclose = ({ code, reason }) => attempt === this.#attempt && onclose?.(code, reason);
    return socket;
  }

  /** An EventSource would need the token in its URL. */
  async #read(attempt) {
    this.#frames = [];
    this.#join();
    const body = JSON.stringify(this.#frames);
    this.#frames = null;
    const headers = { "Content-Type": "application/json" };
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    const options = { method: "POST", headers, body, signal: this.#stream.signal };
    const answer = await fetch(this.#sseUrl, options);
    if (!answer.ok) {
      if (answer.status === 401) this.#token = null;
      throw new Error(`${answer.status} ${await answer.text()}`);
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the stream has ended");
      this.#heard = true;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:"));
        if (attempt !== this.#attempt) return;
        if (data[0]) this.#receive(JSON.parse(data.map((line) => line.slice(5)).join("\n")));
      }
    }
  }

  #receive(message) {
    this.#heard = true;
    const { channel, event, data } = message;
    const isSystem = event.startsWith("eb:");
    const request = isSystem && this.#requests.get(data.ref);
    if (request) {
      this.#requests.delete(data.ref);
      delete data.ref;
      if (event === "eb:error") request[1](data.code, data.message);
      else request[0](data, message);
    } else if (channel === null) {
      this.#control(event, data, message);
      this._emit(event, data, message);
    } else {
      this.#subscriptions.get(channel)?._receive(message);
      for (const subscription of this.#subscriptions.values()) {
        if (!isSystem && subscription._pattern?.test(channel)) subscription._receive(message);
      }
    }
  }

  #control(event, data, message) {
    this.#subscriptions.get(data.pattern)?._receive(message); // a gap
    switch (event) {
      case "eb:connected":
        this.connectionId = data.connection_id;
        this.#heartbeat = data.heartbeat_s * 1000;
        // With 10% to spare: a network may bunch messages.
        this.#pace = { due: 0, gap: 1100 / data.actions_per_s, burst: data.action_burst * 0.9 };
        this.#listen();
        if (this.#socket) this.#misses = 0;
        // A failed handshake would not say why.
        if (this.#socket && this.#token) this.#authenticate();
        else this.#ready();
        break;
      case "eb:token.expiring":
        this.#refresh();
        break;
      case "eb:closing":
        this.#lost(data.code, data.reason);
        break;
      case "eb:error":
        this._emit("error", new EventBusError(data.code, data.message));
    }
  }

  #ready() {
    this.#cancel("handshake");
    this.#after("steady", STEADY_MS, () => (this.#failures = 0));
    this.transport = this.#socket ? "websocket" : "sse";
    if (this.state === "connecting") this.#become("connected", { transport: this.transport });
    if (this.#socket) this.#join();
    else this.#tryWebSocket();
  }

  #join() {
    for (const subscription of this.#subscriptions.values()) {
      if (!subscription.active) subscription._join();
    }
  }

  #tryWebSocket() {
    this.#after("trial", jittered(WEBSOCKET_AGAIN_MS), () => {
      this.#trial?.close();
      try {
        this.#trial = this.#dial(this.#attempt, () => this.#open());
      } catch {} // a policy may forbid it
      this.#tryWebSocket();
    });
  }

  #authenticate(isLast) {
    const done = (data, message) => {
      this._emit("eb:authenticated", data, message);
      this.#ready();
    };
    this._request({ action: "auth", data: { token: this.#token } }, done, (error) => {
      const { code } = error;
      if (code === "disconnected") return;
      if (!isLast && /unauthorized|token_expired/.test(code)) return this.#refresh(true);
      this._emit("error", error);
      if (!/unavailable|rate_limited/.test(code)) this.#ready();
      else this.#after("token", ASK_MS, () => this.#refresh());
    });
  }

  async #refresh(isLast) {
    const attempt = this.#attempt;
    this.#token = null;
    try {
      this.#token ??= await this.#getToken?.();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this._emit("error", new EventBusError("unauthorized", `no token: ${error?.message}`));
      return this.#after("token", ASK_MS, () => this.#refresh());
    }
    if (attempt !== this.#attempt) return;
    if (this.#stream) this.#open(true);
    else if (this.#token) this.#authenticate(isLast);
    else this.#ready();
  }

  /** Pages do not see the server's pings. */
  #listen(asked = 0) {
    this.#heard = false;
    if (asked) this.#socket?.send('{"action":"ping"}');
    this.#after("silence", asked ? ASK_MS : this.#heartbeat, () => {
      // Twice: a busy page's timer may run before the answer.
      if (this.#heard) this.#listen();
      else if (asked < 2) this.#listen(asked + 1);
      else this.#lost(FAILED, "the server fell silent");
    });
  }

  #wake() {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.state === "connected") {
      if (this.#socket) this.#listen(1);
    } else if (this.state !== "connecting") {
      this.#after("retry", Math.random() * this.#minDelay, () => this.reconnect());
    }
  }

  #lost = (code, reason) => {
    const isMiss = this.#socket && !this.connectionId;
    // 40xx: stay away; 41xx: come back later; 42xx: at once.
    if (code >= 4000 && code < 4100) return this.#close(code, reason);
    if (code === 4202) this.#token = null;
    const isOffline = globalThis.navigator?.onLine === false;
    if (isMiss && ++this.#misses > 2 && this.#sseUrl && !isOffline) return this.#open(true);
    this.#drop(reason);
    const atOnce = code >= 4200 && code < 4300 && this.#failures === 0;
    let delay = atOnce ? Math.random() * this.#minDelay : this.#delay(this.#failures);
    if (isOffline) delay = this.#maxDelay;
    this.#failures += 1;
    this.#after("retry", delay, () => this.#open());
    this.#become(isOffline ? "offline" : "waiting", { code, reason, retryAt: Date.now() + delay });
  };

  #delay(times) {
    return jittered(Math.min(this.#maxDelay, this.#minDelay * 2 ** times));
  }

  #close(code, reason) {
    if (this.state === "closed") return;
    this.#life.abort();
    this.#drop(reason);
    for (const each of this.#subscriptions.values()) each._end("closed", reason);
    this.#become("closed", { code, reason });
  }

  #drop(reason) {
    this.#attempt += 1;
    for (const timer of [...this.#timers.keys()]) this.#cancel(timer);
    this.#socket?.close();
    this.#trial?.close();
    this.#stream?.abort();
    this.#socket = this.#trial = this.#stream = this.transport = this.connectionId = null;
    for (const each of this.#subscriptions.values()) each.active = false;
    const requests = this.#requests;
    this.#requests = new Map();
    for (const [, fail] of requests.values()) fail("disconnected", reason);
  }

  #become(state, detail = {}) {
    this.state = state;
    this._emit("state", { state, ...detail });
  }

  #after(name, ms, callback) {
    this.#cancel(name);
    if (this.state === "closed") return;
    this.#timers.set(name, setTimeout(callback, ms));
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
