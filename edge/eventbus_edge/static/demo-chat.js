/**
 * The chat room. Browsers may not publish an application's events, so a guest's message is a whisper
 * to the other connections of the presence channel; the service's own messages are `ChatMessage`
 * events. The edge sets the `user_id` of a whisper to the authenticated sender, so names are derived
 * from it.
 */

import { byId, make } from "./elements.js";

const MOST_MESSAGES = 200;
const MOST_NAMES = 6;
const TYPING_EVERY_MS = 2_000;
const TYPING_ENDS_MS = 4_000;

const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

/** `amber-otter-4821` is Amber Otter. */
export function guestName(userId) {
  const words = String(userId ?? "somebody").split("-").filter((word) => !/^\d+$/.test(word));
  return words.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join(" ");
}

export class Chat {
  #guests;
  #members = new Set();
  #me = null;
  #log = byId("chat-log");
  #input = byId("chat-input");
  #button = document.querySelector("#chat-form button");
  #typists = new Map(); // user id -> the timer that removes it
  #lastTyping = 0;

  /** `room` has the service's messages; `guests` is the presence channel. */
  constructor(room, guests) {
    this.#guests = guests;
    room.on("ChatMessage", (data, { timestamp }) => this.#fromService(data, timestamp));
    guests.on("client-message", (data, message) => this.#fromGuest(data, message));
    guests.on("client-typing", (data, { user_id }) => this.#typing(user_id));
    guests.on("eb:subscribed", ({ members }) => {
      this.#members = new Set(members.map((member) => member.user_id));
      this.#showMembers();
      this.#ready(true);
    });
    guests.on("eb:presence.joined", ({ user_id: userId }) => {
      this.#members.add(userId);
      this.#showMembers();
    });
    guests.on("eb:presence.left", ({ user_id: userId }) => {
      this.#members.delete(userId);
      this.#showMembers();
      this.#stopTyping(userId);
    });
    for (const channel of [room, guests]) {
      channel.on("eb:error", ({ message }) => this.#add({ kind: "fault", text: message }));
    }
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#input.addEventListener("input", () => this.#sendTyping());
    this.#ready(false);
  }

  set me(userId) {
    this.#me = userId;
    byId("me").textContent = `You are ${guestName(userId)}`;
  }

  /** Disable sending while there is no connection; text in the input field stays. */
  offline() {
    this.#ready(false);
    for (const userId of [...this.#typists.keys()]) this.#stopTyping(userId);
  }

  #showMembers() {
    const others = [...this.#members].filter((userId) => userId !== this.#me).map(guestName);
    const names = ["you", ...others.slice(0, MOST_NAMES)];
    const more = others.length - MOST_NAMES;
    if (more > 0) names.push(`${more} more`);
    byId("chat-members").textContent = `Here now: ${names.join(", ")}`;
    byId("chat-members").hidden = false;
  }

  #ready(is) {
    this.#button.disabled = !is;
    this.#input.placeholder = is ? "Say something" : "Waiting for the connection";
  }

  async #send() {
    const text = this.#input.value.trim();
    if (!text || !this.#guests.active) return;
    this.#input.value = "";
    this.#lastTyping = 0;
    try {
      await this.#guests.whisper("message", { text });
      this.#add({ kind: "mine", name: "You", text, timestamp: Date.now() });
    } catch (error) {
      this.#add({ kind: "fault", text: `Not sent: ${error.message}` });
      this.#input.value ||= text;
    }
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #sendTyping() {
    const now = Date.now();
    if (!this.#input.value || now - this.#lastTyping < TYPING_EVERY_MS) return;
    if (!this.#guests.active) return;
    this.#lastTyping = now;
    this.#guests.whisper("typing", {}).catch(() => (this.#lastTyping = 0)); // the next key press retries
  }

  #fromService({ name, text }, timestamp) {
    this.#add({ kind: "machine", name, text, timestamp });
  }

  #fromGuest(data, { user_id: userId, timestamp }) {
    this.#stopTyping(userId);
    if (typeof data?.text !== "string") return; // another client may whisper anything
    const mine = userId === this.#me;
    const name = mine ? "You, in another tab" : guestName(userId);
    this.#add({ kind: mine ? "mine" : "theirs", name, text: data.text, timestamp });
  }

  #typing(userId) {
    clearTimeout(this.#typists.get(userId));
    this.#typists.set(userId, setTimeout(() => this.#stopTyping(userId), TYPING_ENDS_MS));
    this.#showTyping();
  }

  #stopTyping(userId) {
    clearTimeout(this.#typists.get(userId));
    this.#typists.delete(userId);
    this.#showTyping();
  }

  #showTyping() {
    const names = [...this.#typists.keys()].map(guestName);
    const several = names.length > 2 ? "Several guests are typing…" : `${names.join(" and ")} are typing…`;
    byId("chat-typing").textContent =
      names.length > 1 ? several : names.length ? `${names[0]} is typing…` : "";
  }

  #add({ kind, name, text, timestamp }) {
    byId("chat-empty")?.remove();
    const log = this.#log;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const at = name ? ` ${time.format(new Date(timestamp ?? Date.now()))}` : "";
    const who = name ? make("p", { class: "who" }, make("b", null, name), at) : null;
    log.append(make("div", { class: `message ${kind}` }, who, make("p", { class: "text" }, text)));
    while (log.children.length > MOST_MESSAGES) log.firstElementChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight; // otherwise the user is reading older messages
  }
}
