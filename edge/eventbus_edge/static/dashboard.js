// The dashboard: signs in, subscribes to samples of the cluster, and passes them to the panels.

import { connect } from "./eventbus.js";
import { Chart } from "./dashboard-charts.js";
import { Rates, bytes, duration, past, rate, several, whole } from "./dashboard-numbers.js";
import { Channels, Failed, Nodes, Presence, write } from "./dashboard-tables.js";
import { Tail, publishing } from "./dashboard-tail.js";
import { byId } from "./elements.js";

const KEY = "eventbus-dashboard-key";
const SILENT_MS = 6_000;
const POLL_MS = 5_000;

const STATES = {
  starting: "Connecting",
  connecting: "Connecting",
  connected: "Live",
  waiting: "Reconnecting",
  offline: "Offline",
  closed: "Disconnected",
  "signed-out": "Signed out",
};

/** Send a request with the key; throws an Error with the problem's detail, status and code. */
async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (options.body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const why = answer?.detail ?? answer?.title ?? `the edge answered ${response.status}`;
  throw Object.assign(new Error(why), { status: response.status, code: answer?.code });
}

let bus = null;
let lastSample = 0;
const rates = new Rates();
const nodes = new Nodes();
const tail = new Tail(ask);
const channels = new Channels((channel) => {
  tail.follow(channel);
  byId("tail-box").scrollIntoView({ block: "nearest" });
});
const presence = new Presence(ask, channels);
const failed = new Failed(ask);
const charts = {
  connections: new Chart(byId("connections-chart"), {
    title: "Connections",
    lines: [{ label: "open", color: "series-1", fill: true }],
    format: rate,
    least: 4,
    isWhole: true,
  }),
  messages: new Chart(byId("messages-chart"), {
    title: "Messages per second",
    lines: [
      { label: "in", color: "series-2" },
      { label: "out", color: "series-1" },
    ],
    format: rate,
    least: 4,
  }),
  latency: new Chart(byId("latency-chart"), {
    title: "Delivery latency",
    lines: [
      { label: "p50", color: "series-2" },
      { label: "p95", color: "series-3" },
      { label: "p99", color: "series-4" },
    ],
    format: duration,
    least: 0.002,
  }),
};

// Signing in and out

async function ticket() {
  try {
    const { token } = await ask("dashboard/ticket", { method: "POST" });
    if (byId("dashboard").hidden) showDashboard();
    return token;
  } catch (error) {
    if (error.status === 401 || error.status === 403) signOut(error);
    throw error;
  }
}

function start() {
  become("connecting");
  bus = connect({ url: "ws", token: ticket, maxDelay: 5_000 });
  const own = bus;
  own.on("state", (detail) => own === bus && stateChanged(detail));
  own.on("error", (error) => own === bus && trouble(error.message));
  own.subscribe("admin.stats", { "eb:stats": (sample) => own === bus && take(sample) });
  tail.use(own);
}

function showDashboard() {
  byId("sign-in").hidden = true;
  byId("dashboard").hidden = false;
  byId("sign-out").hidden = !sessionStorage.getItem(KEY);
  if (document.activeElement === document.body) return;
  byId("main").focus({ preventScroll: true });
}

function whyRefused({ status, code, message }) {
  if (code === "token_expired") return "that token has expired";
  return status === 401 ? "that is neither the API key nor a valid token" : message;
}

function signOut(error = null) {
  const had = sessionStorage.getItem(KEY);
  const ended = bus;
  bus = null;
  tail.use(null);
  ended?.close();
  sessionStorage.removeItem(KEY);
  byId("dashboard").hidden = byId("sign-out").hidden = true;
  byId("sign-in").hidden = false;
  become("signed-out");
  // Without a key, the form asks for one; if none is configured, the reason is shown.
  const isRefused = error && (had || error.status === 403);
  byId("refused").hidden = !isRefused;
  write(byId("refused"), isRefused ? `Refused: ${had ? whyRefused(error) : error.message}.` : "");
  byId("secret").focus();
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const secret = byId("secret").value.trim();
  byId("secret").value = "";
  if (/[^\x21-\x7e]/.test(secret)) {
    byId("refused").hidden = false;
    return write(byId("refused"), "Refused: a key or token contains only printable ASCII characters, without spaces.");
  }
  sessionStorage.setItem(KEY, secret);
  start();
});
byId("sign-out").addEventListener("click", () => signOut());

// Connection state

function become(state) {
  document.body.dataset.state = state;
  write(byId("status-text"), STATES[state]);
}

function stateChanged({ status: state, reason }) {
  become(state);
  const isLost = state === "waiting" || state === "offline" || state === "closed";
  if (state === "connected") {
    lastSample = Date.now();
    byId("lost").hidden = true;
    failed.refresh();
  } else if (isLost) {
    rates.forget();
    for (const chart of Object.values(charts)) chart.pause(Date.now() / 1000);
    byId("lost").hidden = false;
    write(byId("lost"), lostText(state, reason));
    if (state === "waiting") explain();
  }
}

function lostText(state, reason) {
  if (state === "offline") return "This device is offline. The numbers below are out of date.";
  if (state === "closed") return `The edge closed this connection: ${reason}. Reload the page to continue.`;
  return "The edge cannot be reached. The numbers below are out of date until it is back.";
}

/** Show why a node that is up accepts no connections. */
async function explain() {
  try {
    await ask("readyz");
  } catch (error) {
    if (error.status && document.body.dataset.state !== "connected") {
      write(byId("lost"), `The edge accepts no connections: ${error.message}. Retrying.`);
    }
  }
}

function trouble(text) {
  byId("trouble").hidden = !text;
  write(byId("trouble"), text);
}

setInterval(() => {
  const isSilent = document.body.dataset.state === "connected" && Date.now() - lastSample > SILENT_MS;
  if (isSilent) trouble("The edge sends no numbers at present; those below are out of date.");
}, 1000);

// Samples

function take(sample) {
  lastSample = Date.now();
  const current = rates.take(sample);
  const total = (name) => sample.nodes.reduce((sum, node) => sum + node[name], 0);
  const connections = total("connections");
  const [p50, p95, p99] = current.percentiles;
  const without = sample.nodes.filter((node) => !node.bus_connected).length;
  write(byId("about"), `Dashboard · ${sample.driver} · ${several(sample.nodes.length, "node")}`);
  write(byId("now-nodes"), whole(sample.nodes.length));
  write(byId("now-nodes-about"), sample.missing.length ? `${sample.missing.length} not responding` : "all responding");
  write(byId("now-connections"), whole(connections));
  write(byId("now-connections-about"), several(total("subscriptions"), "subscription"));
  write(byId("now-in"), `${rate(current.in)}/s`);
  write(byId("now-in-about"), `${whole(total("messages_in"))} in total`);
  write(byId("now-out"), `${rate(current.out)}/s`);
  write(byId("now-out-about"), `${bytes(current.bytes)}/s`);
  write(byId("now-p95"), duration(p95));
  write(byId("now-p95-about"), p95 === null ? "no messages lately" : `p50 ${duration(p50)}, p99 ${duration(p99)}`);
  const most = (name) => Math.max(0, ...sample.nodes.map((node) => node[name]));
  write(byId("now-present"), whole(most("presence_members")));
  write(byId("now-present-about"), `in ${several(most("presence_channels"), "channel")}`);
  trouble(
    without
      ? `${several(without, "node has", "nodes have")} lost the bus: no messages get through there until it is back.`
      : "",
  );
  const now = Date.now() / 1000;
  if (sample.history) {
    fill(past(sample, now)); // rates need a second sample
  } else {
    charts.messages.add(now, current.in, current.out);
    charts.latency.add(now, p50, p95, p99);
  }
  charts.connections.add(now, connections);
  nodes.show(sample, current);
  channels.take(sample);
  if (sample.whole) presence.refresh();
}

/** Draw the last minutes before the page was opened, or while it was disconnected. */
function fill(points) {
  charts.connections.fill(points.map(([at, connections]) => [at, connections]));
  charts.messages.fill(points.map(([at, , received, sent]) => [at, received, sent]));
  charts.latency.fill(points.map(([at, , , , percentiles]) => [at, ...percentiles]));
}

async function poll() {
  if (!document.hidden && document.body.dataset.state === "connected") await failed.refresh();
  setTimeout(poll, POLL_MS);
}

publishing(ask);
start();
poll();
