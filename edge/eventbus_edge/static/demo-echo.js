/**
 * The page's connection over Laravel Echo, with the part of the interface of `eventbus.js` that the
 * page uses. The packages are not the edge's own: `scripts/run` gets them from npm.
 */

const APP_KEY = "demo"; // of scripts/demo
const PUBLIC = new Set(["general", "public"]);
const PRESENCE = "presence.";

/** Resolves with a bus; rejects if the packages are missing. */
export async function connect(token) {
  const [{ default: Echo }, { withResume }] = await load();
  const { hostname, port, protocol } = location;
  const prefix = new URL("..", import.meta.url).pathname.slice(0, -1); // of a proxy
  const echo = new Echo({
    broadcaster: "reverb",
    Pusher: withResume(window.Pusher),
    key: APP_KEY,
    wsHost: hostname,
    wsPort: port || 80,
    wssPort: port || 443,
    wsPath: prefix,
    forceTLS: protocol === "https:",
    enabledTransports: ["ws", "wss"],
    // A page with one token for all its life sets bearerToken instead. These tokens expire, and
    // each start of the demo has its own secret.
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, callback) => {
        authorize(token, `${prefix}/broadcasting/auth`, socketId, channelName).then(
          (signed) => callback(null, signed),
          (error) => callback(error, null),
        );
      },
    },
  });
  return new Bus(echo);
}

async function load() {
  try {
    return await Promise.all([
      import("../demo/echo/laravel-echo.js"),
      import("../demo/echo/resume.js"),
      import("../demo/echo/pusher.js"), // a script, which sets window.Pusher
    ]);
  } catch {
    throw new Error(
      "Laravel Echo and pusher-js are not installed here. Run scripts/demo/packages, which needs " +
        "npm and a network, and reload this page.",
    );
  }
}

async function authorize(token, endpoint, socketId, channelName) {
  const answer = await fetch(endpoint, {
    method: "POST",
    headers: { Authorization: `Bearer ${await token()}` },
    body: new URLSearchParams({ socket_id: socketId, channel_name: channelName }),
  });
  if (!answer.ok) throw new Error(`${endpoint} answered ${answer.status}`);
  return answer.json();
}

class Bus {
  #echo;
  #connection;
  #wasConnected = false;
  #retryAt = 0;
  #refusal = {};

  constructor(echo) {
    this.#echo = echo;
    this.#connection = echo.connector.pusher.connection;
  }

  subscribe(channel) {
    if (PUBLIC.has(channel)) return new Subscription(channel, this.#echo.channel(channel));
    if (!channel.startsWith(PRESENCE)) return new Subscription(channel, this.#echo.private(channel));
    return new Subscription(channel, this.#echo.join(channel.slice(PRESENCE.length)));
  }

  onState(handler) {
    const show = () => handler(this.state);
    this.#connection.bind("error", ({ error, data }) => {
      this.#refusal = error?.data ?? data ?? {};
    });
    this.#connection.bind("state_change", show);
    this.#connection.bind("connecting_in", (seconds) => {
      this.#retryAt = Date.now() + seconds * 1000;
      show();
    });
    if (this.#connection.state === "connected") show();
  }

  reconnect() {
    this.#connection.disconnect();
    this.#connection.connect();
  }

  get state() {
    const { code, message: reason } = this.#refusal;
    switch (this.#connection.state) {
      case "connected":
        this.#wasConnected = true;
        return { status: "connected" };
      case "disconnected":
      case "failed":
        return { status: "closed", code, reason };
      default:
        if (!this.#wasConnected) return { status: "connecting" };
        return { status: "waiting", retryAt: this.#retryAt };
    }
  }
}

class Subscription {
  #channel;
  #name;

  constructor(name, channel) {
    this.#name = name;
    this.#channel = channel;
  }

  get active() {
    return this.#channel.subscription.subscribed;
  }

  on(event, handler) {
    const channel = this.#channel;
    const member = (info) => ({ user_id: info.id, info });
    const message = (name, metadata) => ({
      channel: this.#name,
      event: name,
      user_id: metadata?.user_id,
    });
    switch (event) {
      case "eb:subscribed":
        if (channel.here) channel.here((users) => handler({ members: users.map(member) }));
        else channel.subscribed(() => handler({}));
        break;
      case "eb:presence.joined":
        channel.joining((info) => handler(member(info)));
        break;
      case "eb:presence.left":
        channel.leaving((info) => handler(member(info)));
        break;
      case "eb:error":
        channel.error(({ error }) => handler({ message: error }));
        break;
      case "*":
        channel.listenToAll((name, data) => handler(data, message(name.replace(/^\./, ""))));
        break;
      default: // the dot: without Echo's namespace of PHP
        channel.listen(`.${event}`, (data, metadata) => handler(data, message(event, metadata)));
    }
  }

  async whisper(event, data) {
    this.#channel.whisper(event, data);
  }
}
