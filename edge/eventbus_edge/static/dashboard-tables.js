/** The panels of nodes, channels, presence and failed jobs. Foreign text is never parsed as HTML. */

import { bytes, duration, rate, several, whole } from "./dashboard-numbers.js";
import { byId, make } from "./elements.js";

const MOST_ROWS = 50;
const MOST_MATCHES = 200;
const MOST_MEMBERS = 200;
const KNOWN = 200;

/** Set an element's text only if it has changed, to not disturb selections and screen readers. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Escape characters of foreign text that would hide or reorder other text, as JSON does. */
export const plain = (text) =>
  text.replace(
    /[\0-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

/** Table rows by key; rows that remain keep their elements. */
class Rows {
  #body;
  #make;
  #rows = new Map();

  constructor(body, makeRow) {
    this.#body = body;
    this.#make = makeRow;
  }

  /** `items` are `[key, value]`, in order; the `fill` of a row shows the value. */
  show(items) {
    const keys = new Set(items.map(([key]) => key));
    for (const [key, { row }] of this.#rows) {
      if (!keys.has(key)) {
        row.remove();
        this.#rows.delete(key);
      }
    }
    // A row under the pointer or with the focus must not jump away.
    const isHeld = this.#body.matches(":hover, :focus-within");
    items.forEach(([key, value], position) => {
      let entry = this.#rows.get(key);
      const isNew = !entry;
      if (isNew) {
        entry = this.#make(key);
        this.#rows.set(key, entry);
      }
      entry.fill(value);
      const there = this.#body.children[position];
      if (there !== entry.row && (isNew || !isHeld)) {
        this.#body.insertBefore(entry.row, there ?? null);
      }
    });
  }
}

const cells = (...kinds) => kinds.map((kind) => make("td", kind ? { class: kind } : {}));

export class Nodes {
  #rows = new Rows(byId("nodes"), (id) => {
    const name = make("th", { scope: "row" }, make("code", {}, id), make("span", { class: "sub" }));
    const badge = make("span", { class: "badge" });
    const rest = cells(...Array(7).fill("number"));
    const row = make("tr", {}, name, make("td", {}, badge), ...rest);
    const fill = ({ node, rates }) => {
      write(name.lastChild, node ? [node.address || node.host, ...protocolsOf(node)].join(" · ") : "");
      const [state, text] = stateOf(node);
      badge.dataset.state = state;
      write(badge, text);
      const texts = node
        ? [
            whole(node.connections),
            whole(node.channels),
            rate(rates?.in),
            rate(rates?.out),
            duration(node.bus_lag_s),
            bytes(node.memory_bytes),
            duration(node.uptime_s),
          ]
        : Array(7).fill("–");
      rest.forEach((cell, i) => write(cell, texts[i]));
    };
    return { row, fill };
  });

  show(sample, rates) {
    const items = sample.nodes.map((node) => [node.id, { node, rates: rates.nodes.get(node.id) }]);
    this.#rows.show([...items, ...sample.missing.map((id) => [id, { node: null }])]);
  }
}

/** What its connections speak, such as `["2 native", "1 pusher"]`. */
function protocolsOf(node) {
  return Object.entries(node.protocols ?? {}).map(([name, count]) => `${whole(count)} ${name}`);
}

function stateOf(node) {
  if (!node) return ["bad", "no answer"];
  if (!node.bus_connected) return ["bad", "no bus"];
  return node.draining ? ["wait", "draining"] : ["good", "ready"];
}

/** Knows up to 1,000 channels, refreshed every few seconds; the busiest in every sample. */
export class Channels {
  #known = new Map();
  #truncated = false;
  #total = 0;
  #follow;
  #rows = new Rows(byId("channels"), (channel) => {
    const button = make("button", { class: "link", type: "button", title: channel }, channel);
    button.addEventListener("click", () => this.#follow(channel));
    const name = make("th", { scope: "row" }, button);
    const rest = cells("kind", "number", "number");
    const fill = ([, kind, connections, perSecond]) => {
      [kind, whole(connections), rate(perSecond)].forEach((text, i) => write(rest[i], text));
    };
    return { row: make("tr", {}, name, ...rest), fill };
  });

  /** `follow` gets the channel to tail. */
  constructor(follow) {
    this.#follow = follow;
    byId("channel-filter").addEventListener("input", () => this.draw());
  }

  /** The names of presence channels, those with most connections first. */
  get withPresence() {
    return [...this.#known.values()].filter(([, kind]) => kind === "presence").map(([name]) => name);
  }

  kindOf(channel) {
    return this.#known.get(channel)?.[1] ?? null;
  }

  take(sample) {
    if (sample.whole) {
      this.#known.clear();
    } else {
      // Channels that are missing are idle, or not among the busiest.
      const listed = new Set(sample.channels.map(([name]) => name));
      const isAll = sample.channels.length < MOST_ROWS;
      for (const [name, entry] of this.#known) {
        if (listed.has(name)) continue;
        if (isAll) this.#known.delete(name);
        else entry[3] = Math.min(entry[3], sample.channels.at(-1)[3]);
      }
    }
    for (const entry of sample.channels) this.#known.set(entry[0], entry);
    this.#total = Math.max(0, ...sample.nodes.map((node) => node.channels));
    this.#truncated = sample.nodes.some((node) => node.truncated);
    if (sample.whole) this.#offer();
    this.draw();
  }

  draw() {
    const wanted = byId("channel-filter").value.trim().toLowerCase();
    const all = [...this.#known.values()].sort(
      (a, b) => b[3] - a[3] || b[2] - a[2] || (a[0] < b[0] ? -1 : 1),
    );
    const matching = wanted ? all.filter(([name]) => name.toLowerCase().includes(wanted)) : all;
    const shown = matching.slice(0, wanted ? MOST_MATCHES : MOST_ROWS);
    this.#rows.show(shown.map((entry) => [entry[0], entry]));
    const empty = byId("channels-empty");
    empty.hidden = shown.length > 0;
    write(
      empty,
      wanted
        ? "No channel matches."
        : "No channel is in use. Clients that subscribe show up here.",
    );
    const of = wanted ? `${several(matching.length, "match", "matches")} among` : "of";
    const parts = [];
    if (shown.length) parts.push(`${whole(shown.length)} shown, ${of} ${several(all.length, "channel")}`);
    if (this.#total > all.length + 1) parts.push(`a node has ${whole(this.#total)}; only the busiest are listed`);
    if (this.#truncated) parts.push("some busy channels are not counted");
    write(byId("channels-about"), parts.join("; "));
  }

  #offer() {
    const names = [...this.#known.keys()].slice(0, KNOWN);
    byId("known-channels").replaceChildren(...names.map((name) => make("option", { value: name })));
  }
}

export class Presence {
  #ask;
  #channels;
  #turn = 0;
  #rows = new Rows(byId("members"), (user) => {
    const [info] = cells("info");
    const row = make("tr", {}, make("th", { scope: "row" }, plain(user)), info);
    let before = null;
    const fill = (member) => {
      const now = JSON.stringify(member.info);
      if (now === before) return;
      before = now;
      info.replaceChildren(...fieldsOf(member.info));
    };
    return { row, fill };
  });

  /** `ask` sends requests to the HTTP API; `channels` is the panel of channels. */
  constructor(ask, channels) {
    this.#ask = ask;
    this.#channels = channels;
    byId("presence-channel").addEventListener("change", () => this.refresh());
  }

  async refresh() {
    const select = byId("presence-channel");
    const names = this.#channels.withPresence.slice(0, KNOWN);
    const chosen = names.includes(select.value) ? select.value : (names[0] ?? "");
    const before = [...select.options].map((option) => option.value);
    if (before.join() !== names.join()) {
      select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
      select.value = chosen;
    }
    select.hidden = names.length === 0;
    const turn = ++this.#turn;
    if (!chosen) return this.#show([], "");
    try {
      const path = `api/broadcast/channels/${encodeURIComponent(chosen)}/members`;
      const { members, count } = await this.#ask(path);
      if (turn !== this.#turn) return;
      const more = count > MOST_MEMBERS ? `, the first ${MOST_MEMBERS} are shown` : "";
      this.#show(members.slice(0, MOST_MEMBERS), `${several(count, "member")} in ${chosen}${more}`);
    } catch (error) {
      if (turn === this.#turn) write(byId("presence-about"), `Cannot be loaded: ${error.message}`);
    }
  }

  #show(members, about) {
    this.#rows.show(members.map((member) => [member.user_id, member]));
    byId("presence-empty").hidden = members.length > 0;
    write(byId("presence-about"), about);
  }
}

/** A member's info as fields, strings without quotes; other values as JSON. */
function fieldsOf(info) {
  const text = (value) => plain(typeof value === "string" ? value : JSON.stringify(value) ?? "");
  if (typeof info !== "object" || info === null || Array.isArray(info)) return [text(info)];
  const fields = Object.entries(info).map(([name, value]) =>
    make("div", {}, make("dt", {}, plain(name)), make("dd", {}, text(value))),
  );
  return fields.length ? [make("dl", {}, ...fields)] : [];
}

export class Failed {
  #ask;
  #shown = "";

  constructor(ask) {
    this.#ask = ask;
  }

  async refresh() {
    try {
      this.#show(await this.#ask("api/queue/failed?limit=50"));
    } catch (error) {
      const text = error.status === 404 ? "" : `Cannot be loaded: ${error.message}`;
      write(byId("failed-fault"), text);
      byId("failed-empty").hidden = error.status !== 404;
      if (error.status === 404) write(byId("failed-empty"), "The driver of this cluster does not support queues.");
    }
  }

  #show({ jobs, count, queues }) {
    write(byId("failed-fault"), "");
    byId("failed-empty").hidden = count > 0;
    write(byId("failed-count"), count > jobs.length ? `the oldest ${jobs.length} of ${whole(count)}` : "");
    const waiting = queues.map(
      ({ queue, ready, taken, delayed }) =>
        `${queue}: ${whole(ready)} ready, ${whole(taken)} taken, ${whole(delayed)} delayed`,
    );
    write(byId("queues"), waiting.join(" · "));
    const ids = JSON.stringify(jobs.map(({ id, failed_at: at }) => [id, at]));
    if (ids === this.#shown) return;
    this.#shown = ids;
    byId("failed").replaceChildren(...jobs.map((job) => this.#job(job)));
  }

  #job(job) {
    const title = make(
      "p",
      { class: "job-title" },
      make("b", {}, job.event || "a job that could not be read"),
      make("span", { class: "muted small" }, `${job.queue} · ${several(job.attempts, "try", "tries")} · `),
    );
    const at = new Date(job.failed_at);
    title.lastChild.append(make("time", { datetime: job.failed_at }, at.toLocaleString()));
    const why = make("p", { class: "job-error" }, plain(`${job.error}: ${job.message}`));
    const details = make(
      "details",
      {},
      make("summary", {}, "Traceback"),
      make("pre", { tabindex: "0", "aria-label": `Traceback of ${job.event}` }, job.traceback),
    );
    const path = `api/queue/failed/${encodeURIComponent(job.id)}`;
    const actions = make(
      "div",
      { class: "actions" },
      this.#action("Retry", `Retry ${job.event} ${job.id}`, () => this.#ask(`${path}/retry`, { method: "POST" })),
      this.#action("Forget", `Forget ${job.event} ${job.id}`, () => this.#ask(path, { method: "DELETE" })),
    );
    return make("li", {}, title, why, job.traceback ? details : null, actions);
  }

  #action(text, label, act) {
    const button = make("button", { class: "quiet", type: "button", "aria-label": label }, text);
    button.addEventListener("click", async () => {
      button.disabled = true;
      let fault = "";
      try {
        await act();
      } catch (error) {
        if (error.status !== 404) fault = `${text} failed: ${error.message}`;
      }
      button.disabled = false;
      await this.refresh();
      if (fault) write(byId("failed-fault"), fault);
    });
    return button;
  }
}
