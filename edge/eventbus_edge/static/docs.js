// The page of the contract: shows asyncapi.json. Text is never parsed as HTML.

import { byId, make } from "./elements.js";
import { markdown } from "./markdown.js";

const SOURCE = "asyncapi.json";
const DEPTH = 4;

async function load(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(SOURCE, { headers, cache: "no-store" });
  if (response.ok) return show(await response.json());
  const problem = await response.json().catch(() => ({ detail: response.statusText }));
  const askForKey = response.status === 401 || response.status === 403;
  byId("key").hidden = !askForKey;
  if (askForKey) {
    const why = response.status === 401 ? "neither the API key nor a valid token" : problem.detail;
    byId("refused").textContent = key ? `Refused: ${why}.` : "";
    byId("secret").focus();
  } else {
    complain(problem.detail);
  }
}

function complain(text) {
  byId("fault").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  byId("fault").hidden = false;
}

function show(contract) {
  byId("key").hidden = true;
  byId("title").textContent = contract.info.title;
  document.title = contract.info.title;
  const events = eventsOf(contract);
  const count = events.length === 1 ? "1 event" : `${events.length} events`;
  byId("about").textContent = `version ${contract.info.version} · ${count}`;
  byId("description").replaceChildren(...markdown(contract.info.description ?? ""));
  const entries = events.map((event, position) => {
    const id = `event-${position}`;
    const link = make("a", { href: `#${id}` }, event.name);
    byId("index").append(link);
    const drawn = card(event, id, contract);
    byId("events").append(drawn);
    const text = `${event.name} ${event.channels.join(" ")} ${event.summary ?? ""}`.toLowerCase();
    return { drawn, link, text };
  });
  const none = make("p", { class: "muted", hidden: "" }, "No event matches.");
  byId("events").append(none);
  byId("filter").addEventListener("input", () => {
    const wanted = byId("filter").value.trim().toLowerCase();
    for (const { drawn, link, text } of entries) {
      drawn.hidden = link.hidden = !text.includes(wanted);
    }
    none.hidden = entries.some(({ drawn }) => !drawn.hidden);
  });
  byId("contract").hidden = false;
}

/** The messages of the document, with their channels and direction. */
function eventsOf(contract) {
  const messages = contract.components?.messages ?? {};
  const uses = Object.values(contract.operations ?? {}).flatMap((operation) =>
    (operation.messages ?? []).map((message) => ({
      key: resolve(contract, message, true),
      address: resolve(contract, operation.channel).address,
      isSent: operation.action === "send",
    })),
  );
  return Object.entries(messages).map(([key, message]) => {
    const own = uses.filter((use) => use.key === key);
    return {
      ...message,
      name: message.name ?? key,
      channels: own.map((use) => use.address),
      fromClients: own.some((use) => !use.isSent),
    };
  });
}

/** Resolve references (RFC 6901); returns the value, or the last name of the path. */
function resolve(contract, value, wantsKey = false) {
  let key = "";
  for (let step = 0; value?.$ref && step < 8; step += 1) {
    const path = value.$ref.slice(2).split("/");
    key = path.at(-1);
    value = path.reduce(
      (found, token) => found?.[token.replaceAll("~1", "/").replaceAll("~0", "~")],
      contract,
    );
  }
  return wantsKey ? key : value;
}

function card(event, id, contract) {
  const data = event.payload?.properties?.data ?? event.payload ?? {};
  const heading = make(
    "h2",
    {},
    event.name,
    make(
      "span",
      { class: `tag ${event.fromClients ? "receives" : "sends"}` },
      event.fromClients ? "sent by clients" : "received by clients",
    ),
    event["x-version"] > 1 ? make("span", { class: "tag" }, `version ${event["x-version"]}`) : null,
    make("span", { class: "tag" }, event["x-durable"] ? "durable" : "volatile"),
  );
  const doc = [event.summary, event.description].filter(Boolean).join("\n\n");
  const channels = event.channels.length
    ? event.channels.map((address) => make("li", {}, make("code", {}, address)))
    : [make("li", { class: "muted" }, "The channels are chosen when it is sent.")];
  const example = {
    channel: (event.channels[0] ?? "general").replace(/\{\w+\}/g, "1"),
    event: event.name,
    data: sample(contract, data, 0),
    timestamp: "2026-01-02T03:04:05Z",
  };
  return make(
    "article",
    { class: "card", id },
    heading,
    ...markdown(doc),
    make("ul", { class: "channels", "aria-label": "Channels" }, ...channels),
    ...tables(contract, data),
    make(
      "details",
      {},
      make("summary", {}, "Example"),
      make("pre", { tabindex: "0" }, JSON.stringify(example, null, 2)),
    ),
  );
}

/** A table of the data's fields, and one per nested struct. */
function tables(contract, data) {
  const drawn = [];
  const queue = [["", data]];
  const seen = new Set();
  while (queue.length) {
    const [title, given] = queue.shift();
    const schema = resolve(contract, given) ?? {};
    for (const ref of refsIn(given.$ref ? schema : given)) {
      if (!seen.has(ref) && ref !== data.$ref) {
        seen.add(ref);
        queue.push([nameOf(ref), { $ref: ref }]);
      }
    }
    if (title) drawn.push(make("h3", {}, title));
    if (title && schema.description) drawn.push(make("div", { class: "muted" }, ...markdown(schema.description)));
    drawn.push(schema.properties ? table(schema) : line(schema));
  }
  return drawn;
}

function line(schema) {
  return make("p", {}, [typeOf(schema), facts(schema)].filter(Boolean).join(" · "));
}

function table(schema) {
  const rows = Object.entries(schema.properties).map(([name, field]) => {
    const about = [...markdown(field.description ?? ""), make("p", { class: "facts" }, facts(field))];
    return make(
      "tr",
      {},
      make("td", {}, make("code", {}, name)),
      make("td", {}, typeOf(field) + (schema.required?.includes(name) ? "" : ", optional")),
      make("td", {}, ...about.filter((each) => each.textContent)),
    );
  });
  const head = ["Field", "Type", "About"].map((title) => make("th", { scope: "col" }, title));
  const body = make("tbody", {}, ...rows);
  const drawn = make("table", {}, make("thead", {}, make("tr", {}, ...head)), body);
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Fields" }, drawn);
}

function refsIn(schema) {
  if (Array.isArray(schema)) return schema.flatMap(refsIn);
  if (typeof schema !== "object" || schema === null) return [];
  return Object.entries(schema).flatMap(([key, value]) =>
    key === "$ref" ? [value] : key === "default" ? [] : refsIn(value),
  );
}

const nameOf = (ref) => ref.split("/").at(-1);
const json = (value) => JSON.stringify(value);

function typeOf(schema) {
  if (schema === true || !schema) return "anything";
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(typeOf))].join(" or ");
  if ("const" in schema) return json(schema.const);
  if (schema.enum) return schema.enum.map(json).join(" or ");
  if (schema.type === "array") {
    if (Array.isArray(schema.items)) return `(${schema.items.map(typeOf).join(", ")})`;
    return `${schema.uniqueItems ? "set" : "list"} of ${typeOf(schema.items)}`;
  }
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return `object of ${typeOf(schema.additionalProperties)}`;
  }
  return [schema.type ?? "anything"].flat().join(" or ");
}

function facts(schema) {
  const range = (low, high, unit) => {
    if (low === undefined && high === undefined) return "";
    if (high === undefined) return `${low} or more${unit}`;
    return low === undefined ? `at most ${high}${unit}` : `${low} to ${high}${unit}`;
  };
  const parts = [
    schema.format,
    schema.contentEncoding,
    range(schema.minimum, schema.maximum, ""),
    "exclusiveMinimum" in schema ? `above ${schema.exclusiveMinimum}` : "",
    "exclusiveMaximum" in schema ? `below ${schema.exclusiveMaximum}` : "",
    "multipleOf" in schema ? `a multiple of ${schema.multipleOf}` : "",
    range(schema.minLength, schema.maxLength, " characters"),
    schema.pattern ? `matches ${schema.pattern}` : "",
    Array.isArray(schema.items) ? "" : range(schema.minItems, schema.maxItems, " items"),
    "default" in schema ? `${json(schema.default)} by default` : "",
  ];
  return parts.filter(Boolean).join(", ");
}

const SAMPLES = {
  "date-time": "2026-01-02T03:04:05Z",
  date: "2026-01-02",
  time: "03:04:05Z",
  "time-local": "03:04:05",
  duration: "PT1M",
  uuid: "019b7d2c-6e1a-7000-8000-000000000001",
  decimal: "1.50",
};

/** An example value for the schema; patterns are ignored. */
function sample(contract, given, depth) {
  const schema = resolve(contract, given) ?? {};
  if ("default" in schema) return schema.default;
  if ("const" in schema) return schema.const;
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf) return sample(contract, schema.anyOf[0], depth);
  switch ([schema.type].flat()[0]) {
    case "string":
      return SAMPLES[schema.format] ?? "text".padEnd(schema.minLength ?? 0, "-");
    case "integer":
    case "number":
      return schema.minimum ?? (schema.exclusiveMinimum ?? 0) + 1;
    case "boolean":
      return true;
    case "array":
      if (Array.isArray(schema.items)) {
        return schema.items.map((item) => sample(contract, item, depth + 1));
      }
      return depth < DEPTH ? [sample(contract, schema.items ?? {}, depth + 1)] : [];
    case "object":
      return Object.fromEntries(
        Object.entries(depth < DEPTH ? (schema.properties ?? {}) : {}).map(([name, field]) => [
          name,
          sample(contract, field, depth + 1),
        ]),
      );
    default:
      return null;
  }
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("secret").value.trim();
  load(key).catch((error) => complain(`The events cannot be shown: ${error.message}`));
});
load("").catch((error) => complain(`The events cannot be shown: ${error.message}`));
