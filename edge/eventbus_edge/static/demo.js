/** The page of the demo: measurements of this machine, a chat room, and events as they arrive. */

import { Chat } from "./demo-chat.js";
import { Chart } from "./demo-chart.js";
import { byId, make } from "./elements.js";
import { connect } from "./eventbus.js";

const MOST_ROWS = 40;
const percent = (value) => `${value.toFixed(0)} %`;
const decimals = (value) => value.toFixed(value < 10 ? 2 : 1);
const digits = (value) => value.toFixed(value < 10 ? 1 : 0);
const milliseconds = (value) => `${digits(value)} ms`;
const gigabytes = (bytes) => digits(bytes / 1024 ** 3);

/** The wall clock in milliseconds, with fractions, unlike Date.now(). */
let clockOrigin = performance.timeOrigin;
function now() {
  const fine = clockOrigin + performance.now();
  const coarse = Date.now();
  if (Math.abs(fine - coarse) < 5) return fine;
  clockOrigin = coarse - performance.now(); // the machine slept, or its clock was set
  return coarse;
}

/** An RFC 3339 time in milliseconds, with fractions, which Date.parse drops. */
function parseTime(text) {
  const finer = /\.\d{3}(\d+)/.exec(text)?.[1];
  return Date.parse(text) + (finer ? Number(`0.${finer}`) : 0);
}

// --- the guest of this tab

async function token() {
  const guest = sessionStorage.getItem("guest");
  const answer = await fetch(`demo/token${guest ? `?guest=${encodeURIComponent(guest)}` : ""}`);
  if (!answer.ok) throw new Error(`the demo answered ${answer.status}`);
  const given = await answer.json();
  sessionStorage.setItem("guest", given.user_id);
  chat.me = given.user_id;
  byId("try").textContent = `nats pub -s ${given.nats_url} eb.event.general '{"hello": "world"}'`;
  return given.token;
}

const isEcho = new URLSearchParams(location.search).get("client") === "echo";
for (const link of document.querySelectorAll(".clients a")) {
  if (link.search.includes("client=echo") === isEcho) link.setAttribute("aria-current", "page");
}
const bus = isEcho ? await connectEcho() : connect({ url: "ws", token });

async function connectEcho() {
  try {
    return await (await import("./demo-echo.js")).connect(token);
  } catch (error) {
    document.body.dataset.state = "closed";
    byId("status").textContent = "Not connected";
    byId("chat-input").placeholder = "There is no connection";
    document.querySelector("#chat-form button").disabled = true;
    byId("lost-title").textContent = "This tab could not start.";
    byId("lost-detail").textContent = error.message;
    byId("retry").textContent = "Reload";
    byId("retry").addEventListener("click", () => location.reload());
    byId("lost").hidden = false;
    return new Promise(() => {}); // the rest of the page has nothing to do
  }
}

const room = bus.subscribe("chat.lobby", {}, { history: 20 });
const guests = bus.subscribe("presence.lobby");
const chat = new Chat(room, guests);
const metrics = bus.subscribe("public", {}, { history: 100 });
const general = bus.subscribe("general");

// --- measurements

const charts = {};
for (const [id, name, format, max] of [
  ["cpu", "CPU", percent, 100],
  ["memory", "Memory", percent, 100],
  ["load", "Load", decimals],
  ["latency", "Event latency", milliseconds],
]) {
  charts[id] = new Chart(document.querySelector(`#${id} .chart`), { name, format, max });
}

function show(id, value, detail) {
  const card = byId(id);
  card.querySelector(".value").textContent = value;
  if (detail) card.querySelector(".detail").textContent = detail;
}

metrics.on("DashboardMetrics", (data, { timestamp }) => {
  const at = timestamp ? parseTime(timestamp) : now();
  charts.cpu.add(at, data.cpu_percent);
  charts.memory.add(at, data.memory_percent);
  charts.load.add(at, data.load.one);
  show("cpu", data.cpu_percent.toFixed(0), `${data.cpu_count} cores`);
  const memory = `${gigabytes(data.memory_used_bytes)} of ${gigabytes(data.memory_total_bytes)} GB`;
  show("memory", data.memory_percent.toFixed(0), memory);
  const load = `${decimals(data.load.five)} in 5 min, ${decimals(data.load.fifteen)} in 15`;
  show("load", decimals(data.load.one), load);
  const disk = `${gigabytes(data.disk_used_bytes)} of ${gigabytes(data.disk_total_bytes)} GB`;
  show("disk", data.disk_percent.toFixed(0), disk);
  const bar = document.querySelector("#disk .bar");
  bar.setAttribute("aria-valuenow", data.disk_percent);
  bar.firstElementChild.style.width = `${data.disk_percent}%`;
  byId("host").textContent = `Live measurements of ${data.host}`;
});

// --- events as they arrive, and their latency

let count = 0;

function arrived(subscription) {
  let since = Infinity; // older events are replayed: their age is not a latency
  subscription.on("eb:subscribed", () => (since = now()));
  subscription.on("*", (data, { channel, event, timestamp }) => {
    const sent = parseTime(timestamp);
    const latency = !timestamp || sent < since ? null : Math.max(0, now() - sent);
    if (latency !== null) showLatency(sent, latency);
    if (event === "client-typing") return;
    count += 1;
    byId("tail-count").textContent = count.toLocaleString();
    byId("tail-empty").hidden = true;
    const row = make(
      "li",
      null,
      make("b", null, event),
      make("span", null, channel),
      make("span", null, age(timestamp, latency)),
      make("span", { class: "data" }, JSON.stringify(data)?.slice(0, 300) ?? ""),
    );
    const tail = byId("tail");
    tail.prepend(row);
    while (tail.children.length > MOST_ROWS) tail.lastElementChild.remove();
  });
}

function age(timestamp, latency) {
  if (!timestamp) return "";
  return latency === null ? "replayed" : milliseconds(latency);
}

function showLatency(sent, latency) {
  charts.latency.add(sent, latency);
  const sorted = charts.latency.values.sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  const detail = `Median ${digits(median)}, max ${milliseconds(sorted.at(-1))}`;
  show("latency", digits(latency), detail);
}

[metrics, room, guests, general].forEach(arrived);
if (isEcho) {
  document.querySelector("#latency .unit").hidden = true;
  show("latency", "–", "Not with Echo: its messages carry no time");
}

byId("copy").addEventListener("click", async ({ currentTarget: button }) => {
  try {
    await navigator.clipboard.writeText(byId("try").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("try")); // the page may not write to the clipboard
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
});

// --- the connection's state

const WORDS = {
  connecting: "Connecting",
  connected: "Live",
  waiting: "Reconnecting",
  offline: "Offline",
  closed: "Disconnected",
};
let retryAt = 0;
let countdown;

bus.onState(({ status: state, code, reason, retryAt: at }) => {
  document.body.dataset.state = state;
  byId("status").textContent = WORDS[state];
  clearInterval(countdown);
  if (state === "connected") {
    byId("lost").hidden = true;
    return;
  }
  chat.offline();
  if (state === "waiting" || state === "offline") {
    retryAt = at;
    byId("lost-title").textContent =
      state === "offline" ? "This browser is offline." : "The connection is lost.";
    byId("retry").textContent = "Try now";
    countdown = setInterval(showRetry, 500);
    showRetry();
    byId("lost").hidden = false;
  } else if (state === "closed") {
    byId("lost-title").textContent = "The server closed this connection.";
    byId("lost-detail").textContent = `The close code is ${code}${reason ? `: ${reason}` : "."}`;
    byId("retry").textContent = "Reload";
    byId("lost").hidden = false;
  }
});

function showRetry() {
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  byId("lost-detail").textContent =
    `Reconnecting automatically ${seconds ? `in ${seconds} s` : "now"}.`;
}

byId("retry").addEventListener("click", () => {
  if (bus.state.status === "closed") location.reload();
  else bus.reconnect();
});
