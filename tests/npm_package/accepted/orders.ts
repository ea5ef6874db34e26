import { connect, EventBusError } from "@eventbus/client";
import type { Loaded, Message, State, Subscribed, Subscription } from "@eventbus/client";

export interface OrderShipped {
  order_id: number;
  carrier: "dhl" | "ups";
}
export interface OrderPaid {
  order_id: number;
  amount: string;
}
export interface Alert {
  level: number;
}
export interface Channels {
  "orders.{order_id}": { "order.shipped": OrderShipped; OrderPaid: OrderPaid };
  "orders.all": { count: number };
  "orders.{order_id}.items": { added: string };
  "team.{team_id}.>": { note: string };
  general: { Alert: Alert };
}

const bus = connect<Channels>({ url: "/ws", token: async () => "a.jwt" });

bus.subscribe("orders.42", {
  "order.shipped": (data, message) => {
    const carrier: "dhl" | "ups" = data.carrier;
    const event: "order.shipped" = message.event;
    return [carrier, event, message.offset?.toFixed()];
  },
  OrderPaid: async ({ amount }) => amount.trim(),
  "client-typing": (data) => data.anything,
  "eb:subscribed": ({ recovered }: Subscribed) => recovered === false,
  "eb:presence.joined": ({ user_id }) => user_id.trim(),
  "eb:error": ({ code, message }) => `${code} ${message}`,
  "*": (data: OrderShipped | OrderPaid) => data.order_id.toFixed(),
});

// The very name comes before a pattern that matches it.
bus.subscribe("orders.all", { count: (count) => count.toFixed() });
bus.subscribe("orders.42.items", { added: (item) => item.trim() });
bus.subscribe("team.7.plans.today", { note: (text) => text.trim() });
bus.subscribe("general", { Alert: ({ level }) => level.toFixed() });
bus.subscribe("orders.*", { OrderPaid: ({ amount }) => amount.trim() });
bus.subscribe("orders.>", { added: (item) => item.trim() });

const id: number = 42;
const order = bus.subscribe(`orders.${id}`, {}, { history: 20 });
const off: () => void = order.on("order.shipped", ({ carrier }) => carrier.trim());
order.on("client-typing", () => off());
order.on("*", (data, message: Message) => [data, message.channel]);
bus.subscribe(`orders.${"x" as string}`, { OrderPaid: ({ amount }) => amount.trim() });

// A name that is only known at run time is not checked.
bus.subscribe("whatever" as string, { x: (data) => data.y });
bus.subscribe("orders.42", (data) => data.order_id.toFixed());

const told: Promise<Subscribed> = order.ready;
const present: Promise<number> = order.presence().then(({ count }) => count);
const others: Promise<number> = bus.presence("presence.lobby").then(({ count }) => count);
const alerts: Promise<Alert[]> = bus
  .history("general", { limit: 1 })
  .then(({ messages }) => messages.map(({ data }) => data));
const earlier: Promise<(OrderShipped | OrderPaid)[]> = order
  .history({ limit: 10, since: order.position?.offset })
  .then(({ messages }) => messages.map(({ data }) => data));
order.whisper("typing").catch((error: EventBusError) => error.code === "disconnected");

bus.on("state", (state: State) => {
  if (state.status === "waiting") return new Date(state.retryAt);
  if (state.status === "closed") return state.code.toFixed();
  if (state.status === "connected") return state.transport === "sse";
  return bus.transport === null && state.error?.message.trim();
});
const stop: () => void = bus.onState(({ status, error }) => [status, error?.code]);
stop();

// Each caller has a subscription of its own.
const another: Subscription<Channels["general"]> = bus.subscribe("general");
another.unsubscribe();
const here: string[] | undefined = order.members?.map(({ user_id }) => user_id);

// State, which onState receives.
interface Order {
  id: number;
  carrier?: string;
}
const load = async (): Promise<Loaded<Order>> => ({ data: { id: 42 }, offset: 7, epoch: "k3x9" });
bus.subscribe("orders.42", { OrderPaid: () => {} }, {
  state: load,
  onState: (data) => [data.id.toFixed(), data.carrier?.trim()],
});
bus.subscribe("orders.42", {}, {
  state: () => ({ data: [1, 2], offset: null, epoch: null, mark: null }),
  onState: (data) => data.map((n) => n.toFixed()),
});

// Whispers of the contract.
interface ClientEvents {
  "chat.{room_id}": { typing: { is_typing: boolean }; left: null };
}
interface Rooms extends Channels {
  "chat.{room_id}": { "client-typing": { is_typing: boolean } };
}
const rooms = connect<Rooms, ClientEvents>({ url: "/ws", token: "a.jwt" });
const chat = rooms.subscribe("chat.7", { "client-typing": ({ is_typing }) => !is_typing });
chat.whisper("typing", { is_typing: true });
chat.whisper("left");
chat.whisper("left", null);
bus.on("error", ({ code, channel }) => [code.trim(), channel?.trim()]);

// Without contracts, anything goes.
const plain = connect({ url: new URL("wss://edge.example.com/ws"), sseUrl: false, maxDelay: 5_000 });
plain.subscribe("any.channel", { anything: (data) => data.at.all });
plain.subscribe("any.channel", (data, { event }) => [data, event.trim()]);
plain.close();

plain.subscribe("any.channel").whisper("anything", { at: "all" });

export { earlier, here, present, told };
