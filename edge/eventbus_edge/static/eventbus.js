/** The browser client: docs/browser-client.md describes it, eventbus.d.ts has its types. */

const PROTOCOL = "eventbus.v1";
const ABNORMAL_CLOSE = 1006;
const HANDSHAKE_MS = 20_000;
const ANSWER_MS = 5_000;
const LEAVE_MS = 1_000;
const WEBSOCKET_RETRY_MS = 60_000;
const MAX_ITEMS = 1_000;
const MAX_UNSENT_BYTES = 1_000_000;
const MAX_MISSES = 2;
const CLOSE_ERRORS = {
  4001: "unauthorized",
  4003: "revoked",
  4008: "rate_limited",
  4202: "token_expired",
};
const TRANSIENT = /disconnected|unavailable|rate_limited|token_expired/;

export class EventBusError extends Error {
  constructor(code, message, channel = null) {
    super(message);
    Object.assign(this, { name: "EventBusError", code, channel });
  }
}

export const connect = (options) => new Bus(options);

const page = globalThis.location; // none where a server renders pages
const advice = (path) =>
  `It must be ${path} of an edge with CORS_ALLOWED_ORIGINS=${page?.origin ?? "*"}`;
const report = (error) => (globalThis.reportError ?? console.error)(error);
const isOffline = () => globalThis.navigator?.onLine === false;
const ignore = () => {};
const jittered = (ms) => ms * (0.5 + Math.random() / 2);
/** Without the query, which may contain a token. */
const withoutQuery = (url) => url.split("?")[0];

/** `types` are those of typeof; URL stands for its instances. */
function check(name, value, ...types) {
  const type = value instanceof URL ? "URL" : typeof value;
  if (!types.includes(type)) throw new TypeError(`${name} must be of type ${types.join(" or ")}`);
}

/** A promise that is settled from outside, and whose rejection need not be handled. */
function deferred() {
  let settle;
  const promise = new Promise((resolve, reject) => (settle = { resolve, reject }));
  promise.catch(ignore);
  return { promise, ...settle };
}

const positionOf = ({ offset, epoch, mark }) => (epoch ? { offset, epoch, mark } : null);

/** Whether a message is at or before a position. Offsets of two epochs cannot be compared. */
const isBefore = (position, { offset, epoch }) =>
  epoch && epoch === position?.epoch && offset <= position.offset;

class Emitter {
  #handlers = new Map();

  /** Vue's proxies, which `ref()` makes, cannot reach private fields. This is what markRaw() sets. */
  __v_skip = true;

  on(event, handler) {
    check(`handler of ${event}`, handler, "function");
    const handlers = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  _emit(event, data, message) {
    const handlers = this.#handlers.get(event) ?? new Set();
    if (!handlers.size && event === "error") report(data);
    for (const handler of [...handlers]) {
      if (!handlers.has(handler)) continue;
      try {
        handler(data, message);
      } catch (error) {
        report(error);
      }
    }
  }

  _off() {
    for (const handlers of this.#handlers.values()) handlers.clear();
  }
}

/** What `subscribe` returns: one caller's share of a channel. */
class Handle extends Emitter {
  #bus;
  #source;
  #state;
  #ready = deferred();
  #hasJoined = false;
  #isEnded = false;
  /** Messages up to here are part of what was loaded, or were received already. */
  #floor = null;
  /** Messages that wait for what is being loaded: all after `#start`. */
  #buffer = null;
  #start = null;
  #isLoading = false;
  #isStale = false;
  #loads = 0;
  /** Loaded, but older than the subscription, which begins again from there. */
  #older = null;

  constructor(bus, source, handlers, { history = 0, state, onState }) {
    super();
    this.#bus = bus;
    this.#source = source;
    this.#state = state;
    this.channel = source.name;
    this._history = state || source.pattern ? 0 : history;
    this.ready = this.#ready.promise;
    const byEvent = typeof handlers === "function" ? { "*": handlers } : handlers;
    for (const [event, handler] of Object.entries({ ...byEvent, "eb:state": onState })) {
      if (handler) this.on(event, handler);
    }
  }

  get active() {
    return !this.#isEnded && this.#source.isActive;
  }

  get position() {
    return this.#source.position;
  }

  get members() {
    return this.#source.members;
  }

  whisper(event, data = null) {
    return this.#bus._ask("whisper", this.channel, data, event);
  }

  presence(changes) {
    return this.#bus._ask("presence", this.channel, changes);
  }

  history(options) {
    return this.#bus._ask("history", this.channel, options);
  }

  unsubscribe() {
    this._end();
    this.#ready.resolve(this.#source.answered);
    this.#source.remove(this);
  }

  _end(error) {
    this.#isEnded = true;
    this._off();
    if (error) this.#ready.reject(error);
  }

  _refused(error) {
    this.#ready.reject(error);
    this._emit("eb:error", error);
  }

  /** The channel is joined, with `requested` earlier messages. */
  _joined(answer, message, requested = 0) {
    const { recovered, ...first } = answer;
    const isFirst = !this.#hasJoined;
    const isGap = !isFirst && recovered === false;
    const older = this.#older;
    this.#older = null;
    this.#hasJoined = true;
    if (isFirst || isGap || older) this.#start = positionOf(answer);
    if (isGap) this.#floor = null;
    this.#ready.resolve(first);
    this._emit("eb:subscribed", isFirst ? first : answer, message);
    if (this.#isEnded) return;
    if (older && recovered && answer.offset <= older.offset) {
      this.#show({ ...older, epoch: answer.epoch });
    } else if (older || (isGap && this.#state)) this.#load(this.#bus._delay(this.#loads));
    else if (isFirst && (this.#state || this._history > requested)) this.#load(0);
  }

  _receive(message) {
    if (this.#isEnded || isBefore(this.#floor, message)) return;
    const { event, data } = message;
    if (event.startsWith("eb:")) return this._emit(event, data, message);
    if (this.#buffer) {
      this.#buffer.push(message);
      if (this.#buffer.length <= MAX_ITEMS) return;
      this.#start = positionOf(this.#buffer.shift()) ?? this.#start;
    } else {
      this._emit(event, data, message);
      this._emit("*", data, message);
    }
  }

  /** Another handle makes the channel begin again from an earlier position. */
  _skipTo(position) {
    if (position && !isBefore(this.#floor, position)) this.#floor = position;
  }

  async #load(delay) {
    this.#buffer = [];
    this.#isStale = true;
    if (this.#isLoading) return;
    this.#isLoading = true;
    let loaded;
    while (this.#isStale || !loaded) {
      if (delay) await new Promise((resolve) => setTimeout(resolve, delay));
      if (this.#isEnded) return;
      delay = this.#bus._delay(this.#loads++);
      this.#isStale = false;
      loaded = await (this.#state ? this.#loadState() : this.#loadHistory());
      if (this.#isEnded) return;
    }
    this.#isLoading = false;
    const { offset, epoch } = loaded;
    const isNewer = epoch === this.position?.epoch && offset >= this.#start?.offset;
    if (!this.#start || !epoch || isNewer) return this.#show(loaded);
    this.#older = loaded;
    this.#buffer = [];
    this.#floor = null; // all after `loaded` comes again
    this.#source.rejoin(loaded, this);
  }

  async #loadState() {
    try {
      const state = await this.#state();
      const isPlaced = !this.#start || (state?.epoch && state.offset >= 0);
      if (state?.data !== undefined && isPlaced) return state;
      throw new TypeError("it must be {data, offset, epoch}");
    } catch (error) {
      if (this.#isEnded) return;
      const text = `the state of ${this.channel} could not be loaded: ${error?.message}`;
      const failed = new EventBusError("state_failed", text, this.channel);
      this._emit("eb:error", failed);
      this.#bus._emit("error", failed);
    }
  }

  /** The earlier messages of a channel that was joined without them. */
  async #loadHistory() {
    try {
      const { messages, offset, epoch } = await this.history({ limit: this._history });
      return { messages, offset: Math.max(offset, messages.at(-1)?.offset ?? 0), epoch };
    } catch (error) {
      if (TRANSIENT.test(error.code)) return;
      this.#bus._emit("error", error);
      return {};
    }
  }

  #show(loaded) {
    const waiting = this.#buffer;
    const received = this.#floor;
    this.#buffer = this.#floor = null;
    this.#loads = 0;
    if (this.#state) this._emit("eb:state", loaded.data);
    for (const message of loaded.messages ?? []) this._receive(message);
    const floor = (this.#floor = positionOf(loaded));
    for (const message of waiting) this._receive(message);
    this.#floor = received;
    this._skipTo(floor);
  }
}

/** A channel or a pattern that the bus joins once for all its handles. */
class Channel {
  handles = new Set();
  isActive = false;
  /** The join that awaits its answer. */
  joining = null;
  /** That of the last message, to resume from. */
  position = null;
  /** Where the subscription begins. */
  start = null;
  #bus;
  #answer = null;
  #members = null;
  #refusals = 0;
  #answered = deferred();
  /** Of patterns: the last position in each channel, the one heard last at the end. */
  #seen = new Map();
  /** Of patterns: the last position in channels that are no longer in `#seen`. */
  #floor = null;
  /** Of patterns: the server leaves out what channels bring, even before the pattern resumes. */
  #resumes;

  constructor(bus, name) {
    this.#bus = bus;
    this.name = name;
    this.answered = this.#answered.promise;
    this.address = { channel: name };
    if (!/[*>{]/.test(name)) return;
    this.address = { pattern: name };
    const tokens = name.replace(/\./g, "\\.").replace(/\*|\{\w+\}/g, "[^.]+");
    this.pattern = new RegExp(`^${tokens.replace(/>$/, ".+")}$`);
  }

  get members() {
    return this.#members && [...this.#members.values()];
  }

  add(handle) {
    this.handles.add(handle);
    if (!this.isActive) return;
    queueMicrotask(() => {
      if (!this.isActive) return;
      const members = this.#members && { members: this.members };
      handle._joined({ ...this.#answer, ...this.position, ...members });
    });
  }

  remove(handle) {
    if (this.handles.delete(handle) && !this.handles.size) this.#bus._leave(this);
  }

  /** The channel is left, or the bus closed. */
  end(error) {
    this.joining = null;
    this.isActive = false;
    this.#answered.reject(error);
    for (const handle of this.handles) handle._end(error);
    this.handles.clear();
  }

  join() {
    if (this.joining) return;
    const attempt = (this.joining = {});
    // What channels have brought since a pattern ended would be left out of what it missed.
    if (this.pattern && !this.#resumes) this.position = null;
    const [history, ...others] = new Set([...this.handles].map((each) => each._history));
    const requested = this.position || others.length ? 0 : history;
    const data = this.position ?? (requested ? { history: requested } : undefined);
    this.#bus._request(
      { action: "subscribe", ...this.address, data },
      (answer, message) => {
        if (attempt !== this.joining) return;
        this.joining = null;
        // Without a position, messages were missed.
        if (this.#answer) answer.recovered ??= false;
        this.#refusals = 0;
        this.#bus._joined(this);
        this.#begin(answer, message, requested);
      },
      (error) => attempt === this.joining && this.#refused(error),
    );
  }

  /** Join again from an earlier position, for one handle. */
  rejoin(position, handle) {
    for (const other of this.handles) if (other !== handle) other._skipTo(this.position);
    this.position = positionOf(position);
    this.isActive = this.#resumes = false;
    this.joining = null; // of an answer that is on its way, nothing is left after this
    this.#bus._request({ action: "unsubscribe", ...this.address });
    this.join();
  }

  #begin(answer, message, requested) {
    const { offset, epoch, mark, recovered, members, ...about } = answer;
    this.#answer = about;
    // A stream that went back assigns the same offsets again.
    if (recovered === false) {
      this.#seen.clear();
      this.#floor = null;
    }
    this.position = this.start = positionOf(answer);
    if (members) this.#members = new Map(members.map((each) => [each.user_id, each]));
    this.isActive = true;
    this.#resumes = this.pattern;
    this.#answered.resolve(answer);
    for (const handle of [...this.handles]) handle._joined(answer, message, requested);
  }

  /** An answer with all members: the server announces one's own changes only to the others. */
  #compare(message) {
    for (const data of message.data.members ?? []) {
      const known = this.#members?.get(data.user_id);
      const hasChanged = known && JSON.stringify(known) !== JSON.stringify(data);
      if (hasChanged) this.receive({ ...message, event: "eb:presence.updated", data });
    }
  }

  #see(channel, position) {
    this.#seen.delete(channel);
    this.#seen.set(channel, position);
    if (this.#seen.size <= MAX_ITEMS) return;
    const [[oldest, last]] = this.#seen;
    this.#seen.delete(oldest);
    // Never beyond the pattern's own position: what follows that is still to come.
    if (isBefore(this.position, last)) this.#floor = last;
  }

  #refused(error) {
    this.joining = null;
    if (error.code === "disconnected") return;
    if (TRANSIENT.test(error.code)) {
      return this.#bus._setTimer(this, this.#bus._delay(2 + this.#refusals++), () => this.join());
    }
    this.#resumes = false;
    this.#answered.reject(error);
    for (const handle of [...this.handles]) handle._refused(error);
    this.#bus._emit("error", error);
  }

  /** Whether the message is for this subscription; that of a channel and patterns overlap. */
  covers(message) {
    const matches = this.pattern?.test(message.channel) ?? message.channel === this.name;
    return (this.isActive || this.#resumes) && matches && !isBefore(this.start, message);
  }

  /** `isOwn`: the server sent it for this subscription, whose position it becomes. */
  receive(message, isOwn = true) {
    const { channel, event, data, epoch } = message;
    if (!this.isActive && (isOwn || !this.#resumes)) return;
    if (event === "eb:subscribed") return this.#begin({ ...this.#answer, ...data }, message);
    if (event === "eb:presence") return this.#compare(message);
    if (event === "eb:unsubscribed") this.isActive = this.#resumes = false;
    if (epoch) {
      const last = this.pattern ? (this.#seen.get(channel) ?? this.#floor) : this.position;
      if (isBefore(last, message)) return;
      if (this.pattern) this.#see(channel, positionOf(message));
      if (isOwn && (this.position || !this.pattern)) this.position = positionOf(message);
    }
    if (event === "eb:presence.left") this.#members?.delete(data.user_id);
    else if (event.startsWith("eb:presence.")) this.#members?.set(data.user_id, data);
    for (const handle of [...this.handles]) handle._receive(message);
  }
}

class Bus extends Emitter {
  #httpUrl;
  #sseUrl;
  #getToken;
  #token;
  #minDelay;
  #maxDelay;
  #canOpen;
  #socket = null;
  #trial = null;
  #stream = null;
  #frames = null;
  #channels = new Map();
  #requests = new Map();
  #ref = 0;
  #timers = new Map();
  #attempt = 0;
  #failures = 0;
  #misses = MAX_MISSES; // WebSockets in a row without a greeting
  #wasConnected = false;
  #hasWarned = false;
  #hasHeard = false;
  #heartbeat;
  #pace = {};
  #pageEvents = new AbortController();

  constructor(options) {
    super();
    const { url, token, sseUrl = "sse", minDelay = 500, maxDelay = 30_000 } = options;
    check("url", url, "string", "URL");
    if (sseUrl !== false) check("sseUrl", sseUrl, "string", "URL");
    check("token", token ?? "", "function", "string");
    for (const delay of [minDelay, maxDelay]) {
      if (delay === +delay && delay > 0 && delay < 2 ** 31) continue;
      throw new TypeError("minDelay and maxDelay must be positive numbers");
    }
    // Where there is no page, nothing connects before it is used: servers render pages, too.
    this.#canOpen = page || /^[a-z]+:/i.test(url);
    const { href } = new URL(url, page?.href ?? "http://localhost");
    this.#httpUrl = new URL(href.replace(/^ws/, "http"));
    this.#httpUrl.hash = "";
    if (!/^http/.test(this.#httpUrl)) throw new TypeError("url must start with ws: or http:");
    this.#sseUrl = sseUrl && new URL(sseUrl, this.#httpUrl);
    this.#getToken = typeof token === "string" ? () => token : token;
    this.#minDelay = minDelay;
    this.#maxDelay = maxDelay;
    this.#setState("connecting");
    this.connectionId = null;
    this.skipped = 0;
    const onPageEvent = ({ type }) => {
      if (/offline|pagehide/.test(type)) this.#retry(ABNORMAL_CLOSE, new EventBusError(type, type));
      else this.#wake();
    };
    // Back restores a page without its connections.
    for (const event of ["pageshow", "pagehide", "online", "offline", "resume", "visibilitychange"]) {
      globalThis.addEventListener?.(event, onPageEvent, this.#pageEvents);
    }
    if (page) this.#open();
  }

  get transport() {
    return this.state.transport;
  }

  onState(handler) {
    return this.on("state", handler);
  }

  subscribe(name, handlers = {}, options = {}) {
    check("channel", name, "string");
    check("state", options.state ?? check, "function");
    check("onState", options.onState ?? check, "function");
    if (this.state.status === "closed") throw new EventBusError("closed", "the bus is closed", name);
    const channel = this.#channels.get(name) ?? new Channel(this, name);
    const handle = new Handle(this, channel, handlers, options);
    this.#channels.set(name, channel);
    this.#clearTimer(channel);
    channel.add(handle);
    if (!channel.isActive && (this.#stream || this.state.status === "connected")) channel.join();
    else if (!this.#attempt && this.#canOpen) this.#open();
    return handle;
  }

  reconnect() {
    if (/waiting|offline/.test(this.state.status)) this.#open();
  }

  headers() {
    return this.connectionId ? { "X-Eventbus-Connection": this.connectionId } : {};
  }

  close() {
    this.#close(1000, new EventBusError("closed", "the bus is closed"));
  }

  presence(channel) {
    return this._ask("presence", channel);
  }

  history(channel, options) {
    return this._ask("history", channel, options);
  }

  _ask(action, channel, data, event) {
    return new Promise((resolve, reject) =>
      this._request({ action, channel, event, data }, resolve, reject),
    );
  }

  _request(frame, done = ignore, failed = ignore) {
    const fail = (code, message) => failed(new EventBusError(code, message, frame.channel));
    const pace = this.#pace;
    const now = Date.now();
    const request = { ...frame, ref: ++this.#ref };
    if (this.#frames) {
      this.#frames.push(request);
    } else if (this.#stream && !frame.action.endsWith("subscribe")) {
      return fail("no_websocket", "no WebSocket");
    } else if (this.#stream || !this.connectionId) {
      if (this.#stream) this._setTimer("stream", 0, () => this.#open(true));
      return fail("disconnected", "no connection");
    } else if (this.#requests.size >= MAX_ITEMS || this.#socket.bufferedAmount > MAX_UNSENT_BYTES) {
      return fail("limit_exceeded", "too many actions");
    } else if (pace.due > now + pace.gap * pace.burst) {
      return fail("rate_limited", "too many actions");
    } else {
      pace.due = Math.max(now, pace.due) + pace.gap;
      this.#socket.send(JSON.stringify(request));
    }
    this.#requests.set(this.#ref, [done, fail]);
  }

  /** The server decides by the order of joining which pattern an overlapping message is for. */
  _joined(channel) {
    this.#channels.delete(channel.name);
    this.#channels.set(channel.name, channel);
  }

  _leave(channel) {
    let isKnown;
    const later = (callback) => this._setTimer(channel, LEAVE_MS, callback);
    const leave = () => {
      if (!isKnown || this.#channels.has(channel.name)) return;
      this._request({ action: "unsubscribe", ...channel.address }, ignore, ({ code }) => {
        if (code === "rate_limited") later(leave);
      });
    };
    later(() => {
      isKnown = channel.isActive || channel.joining;
      this.#forget(channel);
      leave();
    });
  }

  #all() {
    return [...this.#channels.values()];
  }

  #forget(channel) {
    this.#channels.delete(channel.name);
    channel.end(new EventBusError("unsubscribed", "the channel was left", channel.name));
  }

  async #open(byStream = false) {
    this.#drop("reconnecting");
    const attempt = this.#attempt;
    if (byStream) this.#stream = new AbortController();
    else this.#setState("connecting", this.state.error);
    this._setTimer("handshake", HANDSHAKE_MS, () => this.#lost(ABNORMAL_CLOSE, "no answer"));
    try {
      await this.#fetchToken();
      if (attempt !== this.#attempt) return;
      if (byStream) await this.#read(attempt);
      else this.#socket = this.#dial(attempt, this.#onFrame, this.#lost);
    } catch (error) {
      if (attempt === this.#attempt) this.#failed(error);
    }
  }

  async #fetchToken() {
    const token = (this.#token ??= await this.#getToken?.());
    if (typeof (token ?? "") === "string") return;
    this.#token = null;
    throw new EventBusError("unauthorized", "token() must return a string");
  }

  #dial(attempt, onMessage, onClose) {
    const socket = new WebSocket(this.#httpUrl.href.replace(/^http/, "ws"), PROTOCOL);
    socket.onmessage = ({ data }) => attempt === this.#attempt && onMessage(data);
    socket.onclose = ({ code, reason }) => attempt === this.#attempt && onClose?.(code, reason);
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
    const { signal } = this.#stream;
    const answer = await fetch(this.#sseUrl, { method: "POST", headers, body, signal });
    if (!answer.ok) {
      if (answer.status === 401) this.#token = null;
      throw await this.#refusal(answer);
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("disconnected");
      this.#hasHeard = true;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (attempt !== this.#attempt) return;
        const data = event.match(/^data:[^\n]*/gm);
        if (data) this.#onFrame(data.map((line) => line.slice(5)).join("\n"));
      }
    }
  }

  /** Skips what it cannot read: a resume would bring it again. */
  #onFrame = (text) => {
    this.#hasHeard = true;
    try {
      this.#receive(JSON.parse(text));
    } catch (error) {
      this.skipped += 1;
      this._emit("error", new EventBusError("bad_frame", error.message));
    }
  };

  #receive(message) {
    const { channel, event, data } = message;
    const isSystem = event.startsWith("eb:");
    const request = isSystem && this.#requests.get(data.ref);
    if (request) {
      this.#requests.delete(data.ref);
      delete data.ref;
      if (event === "eb:presence") this.#channels.get(channel)?.receive(message);
      if (event === "eb:error") request[1](data.code, data.message);
      else request[0](data, message);
    } else if (channel === null) {
      this.#control(event, data, message);
      this._emit(event, data, message);
    } else if (isSystem) {
      this.#channels.get(channel)?.receive(message);
    } else {
      const patterns = this.#all().filter((each) => each.pattern);
      const covering = [this.#channels.get(channel), ...patterns].filter((each) =>
        each?.covers(message),
      );
      const own = covering.find((each) => each.isActive);
      for (const each of covering) each.receive(message, each === own);
    }
  }

  #control(event, data, message) {
    this.#channels.get(data.pattern)?.receive(message); // a gap
    if (event === "eb:token.expiring") this.#refresh();
    if (event === "eb:closing") this.#lost(data.code, data.reason);
    if (event === "eb:error") this._emit("error", new EventBusError(data.code, data.message));
    if (event !== "eb:connected") return;
    this.#wasConnected = true;
    this.connectionId = data.connection_id;
    this.#heartbeat = data.heartbeat_s * 1000;
    // With 10% to spare: a network may bunch messages.
    this.#pace = { due: 0, gap: 1100 / data.actions_per_s, burst: data.action_burst * 0.9 };
    this.#listen();
    if (this.#socket) this.#misses = 0;
    // A failed handshake would not say why.
    if (this.#socket && this.#token) this.#authenticate();
    else this.#ready();
  }

  #ready() {
    this.#clearTimer("handshake");
    this._setTimer("steady", ANSWER_MS, () => (this.#failures = 0));
    if (this.state.status === "connecting") {
      this.#setState("connected", null, { transport: this.#socket ? "websocket" : "sse" });
    }
    if (this.#socket) this.#join();
    else this.#tryWebSocket();
  }

  /**
   * Patterns after channels that resume: the server leaves out of them what those bring. New channels
   * last: what comes before they begin is for the patterns, and has to arrive first.
   */
  #join() {
    const channels = this.#all().filter((each) => each.handles.size);
    const rank = ({ pattern, position }) => (pattern ? 1 : position ? 0 : 2);
    channels.sort((one, other) => rank(one) - rank(other));
    for (const channel of channels) if (!channel.isActive) channel.join();
  }

  #tryWebSocket() {
    this._setTimer("trial", jittered(WEBSOCKET_RETRY_MS), () => {
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
      else this._setTimer("token", ANSWER_MS, () => this.#refresh());
    });
  }

  async #refresh(isLast) {
    const attempt = this.#attempt;
    this.#token = null;
    try {
      await this.#fetchToken();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this._emit("error", new EventBusError("unauthorized", `no token: ${error?.message}`));
      return this._setTimer("token", ANSWER_MS, () => this.#refresh());
    }
    if (attempt !== this.#attempt) return;
    if (this.#stream) this.#open(true);
    else if (this.#token) this.#authenticate(isLast);
    else this.#ready();
  }

  /** Pages do not see the server's pings. */
  #listen(pings = 0) {
    this.#hasHeard = false;
    if (pings) this.#socket?.send('{"action":"ping"}');
    this._setTimer("silence", pings ? ANSWER_MS : this.#heartbeat, () => {
      // Twice: a busy page's timer may run before the answer.
      if (this.#hasHeard) this.#listen();
      else if (pings < 2) this.#listen(pings + 1);
      else this.#lost(ABNORMAL_CLOSE, "no answer");
    });
  }

  #wake() {
    if (globalThis.document?.hidden) return;
    const { status } = this.state;
    if (status === "connected") {
      if (this.#socket) this.#listen(1);
    } else if (status !== "connecting") {
      this._setTimer("retry", Math.random() * this.#minDelay, () => this.reconnect());
    }
  }

  /** The connection has ended. 40xx: stay away; 41xx: come back later; 42xx: at once. */
  #lost = (code, reason) => {
    const text = reason || `no connection (${code})`;
    const error = new EventBusError(CLOSE_ERRORS[code] ?? "disconnected", text);
    if (/^40/.test(code)) return this.#close(code, error);
    if (code === 4202) this.#token = null;
    const isMiss = this.#socket && !this.connectionId;
    if (isMiss && ++this.#misses > MAX_MISSES && !isOffline()) this.#askWhy(error.message);
    else this.#retry(code, error);
  };

  /** An attempt has failed with an exception. */
  #failed(reason) {
    const isOurs = reason instanceof EventBusError;
    const error = isOurs ? reason : new EventBusError("disconnected", reason?.message ?? "no token");
    if (error.isFinal) this.#close(ABNORMAL_CLOSE, error);
    else this.#retry(ABNORMAL_CLOSE, error);
  }

  /** A WebSocket has ended without a greeting. Browsers do not say why, so ask by HTTP. */
  async #askWhy(reason) {
    this.#drop(reason);
    const attempt = this.#attempt;
    const cause = await this.#diagnose();
    if (attempt !== this.#attempt) return;
    if (cause) this.#failed(cause);
    else this.#open(true);
  }

  /** Why the WebSocket failed; null if only Server-Sent Events are left. */
  async #diagnose() {
    let answer;
    try {
      answer = await fetch(this.#httpUrl, { signal: AbortSignal.timeout(HANDSHAKE_MS) });
    } catch {
      const where = withoutQuery(this.#httpUrl.href);
      return new EventBusError("unreachable", `${where} cannot be reached. ${advice("/ws")}`);
    }
    const error = await this.#refusal(answer);
    const isBlocked = /upgrade_required|websocket_disabled/.test(error.code);
    return isBlocked && this.#sseUrl ? null : error;
  }

  /** What an HTTP answer that is no success says, in problem JSON (RFC 9457) from an edge. */
  async #refusal(answer) {
    const { status, url } = answer;
    // Another server's answer may be no JSON.
    const problem = (await answer.json().catch(ignore)) ?? {};
    const { code = `http_${status}`, detail = advice(this.#stream ? "/sse" : "/ws") } = problem;
    const error = new EventBusError(code, `${withoutQuery(url)} answered ${status}: ${detail}`);
    // Once connected, it was right: a proxy may have lost its edges for a moment.
    error.isFinal = /40[034]/.test(status) && (problem.code || !this.#wasConnected);
    return error;
  }

  #retry(code, error) {
    const reason = error.message;
    this.#drop(reason);
    const atOnce = /^42/.test(code) && !this.#failures;
    let delay = atOnce ? Math.random() * this.#minDelay : this._delay(this.#failures);
    let status = "waiting";
    if (isOffline()) {
      status = "offline";
      delay = this.#maxDelay;
    } else if (!this.#wasConnected) this.#warn(reason);
    this.#failures += 1;
    this._setTimer("retry", delay, () => this.#open());
    this.#setState(status, error, { code, reason, retryAt: Date.now() + delay });
  }

  /** Once, and only to developers. */
  #warn(message) {
    const isDevelopment = /localhost$|^127\.|^\[::1/.test(page?.hostname);
    if (isDevelopment && !this.#hasWarned) console.warn(`eventbus cannot connect: ${message}`);
    this.#hasWarned = true;
  }

  _delay(times) {
    return jittered(Math.min(this.#maxDelay, this.#minDelay * 2 ** times));
  }

  #close(code, error) {
    if (this.state.status === "closed") return;
    const reason = error.message;
    this.#pageEvents.abort();
    this.#drop(reason);
    for (const channel of this.#channels.values()) channel.end(error);
    const isWanted = error.code === "closed";
    if (!isWanted) this.#warn(reason);
    this.#setState("closed", isWanted ? null : error, { code, reason });
  }

  #drop(reason) {
    this.#attempt += 1;
    for (const timer of this.#timers.keys()) this.#clearTimer(timer);
    this.#socket?.close();
    this.#trial?.close();
    this.#stream?.abort();
    this.#socket = this.#trial = this.#stream = this.connectionId = null;
    for (const channel of this.#all()) {
      channel.isActive = false;
      if (!channel.handles.size) this.#forget(channel);
    }
    for (const [, fail] of this.#requests.values()) fail("disconnected", reason);
    this.#requests.clear();
  }

  #setState(status, error = null, detail = {}) {
    const why = error && { code: error.code, message: error.message };
    this.state = Object.freeze({ status, transport: null, error: why, ...detail });
    this._emit("state", this.state);
  }

  _setTimer(name, ms, callback) {
    this.#clearTimer(name);
    if (this.state.status === "closed") return;
    this.#timers.set(name, setTimeout(callback, ms));
  }

  #clearTimer(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
