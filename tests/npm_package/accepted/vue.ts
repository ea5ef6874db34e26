import { connect } from "@eventbus/client";
import type { Member, State } from "@eventbus/client";
import {
  EventBusProvider,
  provideEventBus,
  useChannel,
  useChannelState,
  useConnectionState,
  useEvent,
  useEventBus,
  usePresence,
  useWhisper,
} from "@eventbus/vue";
import { computed, defineComponent, h, ref } from "vue";
import type { Channels, ClientEvents } from "./contracts.js";

declare module "@eventbus/vue" {
  interface Register {
    channels: Channels;
    clientEvents: ClientEvents;
  }
}

interface Order {
  carrier: "dhl" | "ups" | null;
  paid: boolean;
}

export const Shown = defineComponent({
  props: { id: { type: Number, required: true } },
  setup(props) {
    const { status, error } = useChannel(() => `orders.${props.id}` as const, {
      "order.shipped": ({ carrier }, message) => {
        const known: "dhl" | "ups" = carrier;
        const event: "order.shipped" = message.event;
        return [known, event];
      },
    });
    const room = ref<string | null>(null);
    useChannel("orders.42", (data) => data.order_id.toFixed(), { history: 20 });
    useChannel(computed(() => room.value && (`presence.room.${room.value}` as const)));
    useChannel(room, { x: (data) => data.y });
    useEvent("general", "Alert", ({ level }, { offset }) => [level.toFixed(), offset?.toFixed()]);
    useEvent("presence.room.7", "client-typing", ({ at }) => at.toFixed());

    const order = useChannelState("orders.42", {
      load: async ({ signal }) => {
        const answer = await fetch(`/orders/${props.id}`, { signal });
        return (await answer.json()) as { data: Order; offset: number | null; epoch: string | null };
      },
      reduce: (order, message) => {
        if (message.event === "OrderPaid") return { ...order, paid: message.data.amount !== "0" };
        return { ...order, carrier: message.data.carrier };
      },
    });
    const data: Order | undefined = order.data.value;
    order.reload();

    const { members, count, update } = usePresence("presence.room.7");
    const all: readonly Member[] = members.value;
    const updated: Promise<number> = update({ mood: "busy" }).then(({ count }) => count);

    const connection = useConnectionState();
    const state: State = connection.value;

    const whisper = useWhisper("presence.room.7");
    const sent: Promise<object> = whisper("typing", { at: 1 });
    whisper("left").catch(() => sent);

    const headers = useEventBus().value?.headers() ?? {};
    fetch("/", { headers });
    const code: string | undefined = error.value?.code;
    return () => h("p", [status.value, code, data?.carrier, all.length, count.value, state.status, String(updated)]);
  },
});

const bus = connect<Channels, ClientEvents>({ url: "/ws" });

export const App = defineComponent(() => {
  provideEventBus(bus);
  provideEventBus({ url: "/ws", token: async () => "a.jwt" });
  provideEventBus(() => bus);
  provideEventBus(ref(bus));
  return () => [
    h(EventBusProvider, { url: "/ws", sseUrl: false }, () => h(Shown, { id: 1 })),
    h(EventBusProvider, { bus }, { default: () => "text" }),
  ];
});
