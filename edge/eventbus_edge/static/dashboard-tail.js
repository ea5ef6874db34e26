/** The live tail of a channel, and the form to publish events. */

import { several, whole } from "./dashboard-numbers.js";
import { plain, write } from "./dashboard-tables.js";
import { byId, make } from "./elements.js";

const MOST_ROWS = 200;
const MOST_TEXT = 2_000;
const DRAW_MS = 200;
const PATTERN = /[*>{]/;
const STORED = 20; // messages that the tail of a channel begins with

export class Tail {
  #ask;
  #bus = null;
  #subscription = null;
  #channel = "";
  #turn = 0;
  #waiting = [];
  #later = null; // messages that came while stored ones are read
  #count = 0;
  #timer = null;

  constructor(ask) {
    this.#ask = ask;
    byId("tail-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.follow(byId("tail-channel").value.trim());
    });
    byId("tail-stop").addEventListener("click", () => this.stop());
  }

  /** Set the bus after signing in; null after signing out. */
  use(bus) {
    this.stop();
    this.#bus = bus;
    byId("tail").replaceChildren();
  }

  async follow(channel) {
    if (!channel || !this.#bus) return;
    this.stop();
    const turn = ++this.#turn;
    byId("tail-channel").value = channel;
    byId("tail").replaceChildren();
    this.#channel = channel;
    this.#count = 0;
    byId("tail-stop").hidden = false;
    this.#about("Joining …");
    let joined = channel;
    try {
      if (!PATTERN.test(channel)) joined = await this.#unnoticed(channel);
    } catch (error) {
      if (turn === this.#turn) this.#fail(error.message);
      return;
    }
    if (turn !== this.#turn) return;
    this.#later = joined === channel ? null : [];
    this.#subscription = this.#bus.subscribe(joined, {
      "*": (_, message) => {
        if (joined === channel || message.channel === channel) this.#take(message);
      },
      "eb:subscribed": ({ recovered }) => {
        if (turn !== this.#turn) return;
        if (this.#later) return this.#takeStored(turn);
        if (this.#count === 0) this.#about("Waiting for the first message.");
        else if (recovered === false) this.#about("Reconnected; messages sent in the meantime are not shown.");
      },
      "eb:unsubscribed": () => this.#fail("access to the channel was revoked"),
      "eb:error": (error) => this.#fail(error.message),
    }, PATTERN.test(joined) ? {} : { history: STORED });
  }

  /** Joining a presence channel would add a member, so a pattern that contains it is used instead. */
  async #unnoticed(channel) {
    const { kind } = await this.#ask(`api/broadcast/channels/${encodeURIComponent(channel)}`);
    return kind === "presence" ? channel.replace(/[^.]+$/, "*") : channel;
  }

  /** A pattern has no history of its own, so that of the channel comes through the API. */
  async #takeStored(turn) {
    let stored = [];
    try {
      const path = `api/broadcast/channels/${encodeURIComponent(this.#channel)}/history`;
      stored = (await this.#ask(`${path}?limit=${STORED}`)).messages;
    } catch (error) {
      if (error.status !== 403 && error.status !== 404) return turn === this.#turn && this.#fail(error.message);
    }
    if (turn !== this.#turn || !this.#later) return;
    const later = this.#later;
    const known = new Set(stored.map(({ id }) => id));
    this.#later = null;
    [...stored, ...later.filter(({ id }) => !known.has(id))].forEach((message) => this.#take(message));
    if (this.#count === 0) this.#about("Waiting for the first message.");
  }

  stop() {
    this.#turn += 1;
    this.#later = null;
    this.#subscription?.unsubscribe();
    this.#subscription = null;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#waiting = [];
    byId("tail-stop").hidden = true;
    if (this.#channel) this.#about("Stopped.");
    this.#channel = "";
  }

  #fail(text) {
    const channel = this.#channel;
    this.stop();
    write(byId("tail-about"), `${channel} cannot be followed: ${text}`);
  }

  #about(text) {
    write(byId("tail-about"), `${this.#channel}: ${text}`);
  }

  #take(message) {
    if (this.#later) {
      this.#later.push(message);
      if (this.#later.length > MOST_ROWS) this.#later.shift();
      return;
    }
    this.#count += 1;
    this.#waiting.push(message);
    if (this.#waiting.length > MOST_ROWS) this.#waiting.shift();
    this.#timer ??= setTimeout(() => this.#draw(), DRAW_MS);
  }

  #draw() {
    this.#timer = null;
    const list = byId("tail");
    const rows = this.#waiting.splice(0).reverse().map(row);
    list.prepend(...rows);
    while (list.children.length > MOST_ROWS) list.lastChild.remove();
    const all = several(this.#count, "message");
    const shown = this.#count > MOST_ROWS ? `, the last ${whole(MOST_ROWS)} are shown` : "";
    this.#about(`${all}${shown}; newest first.`);
  }
}

function row({ channel, event, data, timestamp }) {
  const at = new Date(timestamp);
  const time = Number.isNaN(at.getTime()) ? "" : at.toLocaleTimeString("en-GB");
  const text = JSON.stringify(data) ?? "";
  const cut = text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)}…` : text;
  return make(
    "li",
    {},
    make("time", { datetime: timestamp }, time),
    make("span", { class: "tail-channel" }, channel),
    make("b", {}, plain(event)),
    make("span", { class: "tail-data" }, plain(cut)),
  );
}

/** The form to publish an event; it reports the result. */
export function publishing(ask) {
  const result = byId("publish-result");
  const say = (state, text) => {
    result.dataset.state = state;
    write(result, text);
  };
  byId("publish").addEventListener("submit", async (event) => {
    event.preventDefault();
    let data;
    try {
      data = JSON.parse(byId("publish-data").value.trim() || "null");
      byId("publish-data").removeAttribute("aria-invalid");
    } catch (error) {
      byId("publish-data").setAttribute("aria-invalid", "true");
      byId("publish-data").focus();
      return say("bad", `The data is not JSON: ${error.message}`);
    }
    const asked = {
      channel: byId("publish-channel").value.trim(),
      event: byId("publish-event").value.trim(),
      data,
      volatile: byId("publish-volatile").checked,
    };
    const button = event.submitter;
    if (button) button.disabled = true;
    say("", "Publishing …");
    try {
      const body = JSON.stringify(asked);
      const { messages } = await ask("api/broadcast/events", { method: "POST", body });
      const { offset } = messages[0];
      say("good", `Published to ${asked.channel}${offset === null ? "" : ` at offset ${offset}`}.`);
    } catch (error) {
      say("bad", `Not published: ${error.message}`);
    } finally {
      if (button) button.disabled = false;
    }
  });
}
