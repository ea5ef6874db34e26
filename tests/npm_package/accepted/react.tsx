import { connect } from "@eventbus/client";
import type { Member, State } from "@eventbus/client";
import {
  EventBusProvider,
  useChannel,
  useChannelState,
  useConnectionState,
  useEvent,
  useEventBus,
  usePresence,
  useWhisper,
} from "@eventbus/react";
import type { MessageOf } from "@eventbus/react";
import type { Channels, ClientEvents } from "./contracts.js";

declare module "@eventbus/react" {
  interface Register {
    channels: Channels;
    clientEvents: ClientEvents;
  }
}

interface Order {
  carrier: "dhl" | "ups" | null;
  paid: boolean;
}

export function Shown({ id, room }: { id: number; room: string | null }) {
  const { status, error } = useChannel(`orders.${id}`, {
    "order.shipped": ({ carrier }, message) => {
      const known: "dhl" | "ups" = carrier;
      const event: "order.shipped" = message.event;
      return [known, event];
    },
    "eb:subscribed": ({ recovered }) => recovered === false,
  });
  useChannel("orders.42", (data) => data.order_id.toFixed(), { history: 20 });
  useChannel("orders.*", { OrderPaid: ({ amount }) => amount.trim() });
  useChannel(room && (`presence.room.${room}` as const));
  useChannel(id > 0 && "general", { Alert: ({ level }) => level.toFixed() });
  useChannel("whatever" as string, { x: (data) => data.y });
  useEvent("general", "Alert", ({ level }, { offset }) => [level.toFixed(), offset?.toFixed()]);
  useEvent("presence.room.7", "client-typing", ({ at }) => at.toFixed());

  const order = useChannelState("orders.42", {
    load: async ({ signal }) => {
      const answer = await fetch(`/orders/${id}`, { signal });
      return (await answer.json()) as { data: Order; offset: number | null; epoch: string | null };
    },
    reduce: (order, message) => {
      if (message.event === "OrderPaid") return { ...order, paid: message.data.amount !== "0" };
      return { ...order, carrier: message.data.carrier };
    },
  });
  if (order.status === "ready") {
    const data: Order = order.data;
    const none: null = order.error;
    order.reload();
    return <p>{[data.carrier, none]}</p>;
  }
  const late: Order | undefined = order.data;
  const reduced = (message: MessageOf<Channels["general"]>): number => message.data.level;

  const { members, count, update } = usePresence("presence.room.7");
  const all: readonly Member[] = members;
  const updated: Promise<number> = update({ mood: "busy" }).then(({ count }) => count);

  const connection: State = useConnectionState();
  const waiting = connection.status === "waiting" ? connection.retryAt : connection.error?.message;

  const whisper = useWhisper("presence.room.7");
  const sent: Promise<object> = whisper("typing", { at: 1 });
  whisper("left").catch(() => sent);

  const headers = useEventBus()?.headers() ?? {};
  fetch("/", { headers });
  const shown = [status, error?.code, late?.carrier, all.length, count, waiting];
  return <p onClick={() => [reduced, updated]}>{shown}</p>;
}

const bus = connect<Channels, ClientEvents>({ url: "/ws" });

export const app = (
  <>
    <EventBusProvider url="/ws" token={async () => "a.jwt"} sseUrl={false}>
      <Shown id={1} room={null} />
    </EventBusProvider>
    <EventBusProvider bus={null} />
    <EventBusProvider bus={bus}>text</EventBusProvider>
    <EventBusProvider bus={connect({ url: "/ws" })} />
  </>
);
