import { EventBusProvider, provideEventBus, useChannel, useChannelState, useEvent } from "@eventbus/vue";
import { useEventBus, usePresence, useWhisper } from "@eventbus/vue";
import { h, ref } from "vue";
import type {} from "../accepted/vue.js";

export function wrong() {
  useChannel("order.42", {}); // expect: 2345
  useChannel(ref(42), {}); // expect: 2345
  useChannel(() => "order.42" as const, {}); // expect: 2345
  useChannel("orders.42", { "order.lost": () => {} }); // expect: 2353
  useChannel("orders.42", { OrderPaid: ({ total }) => total }); // expect: 2339
  useChannel("general", {}, { history: "all" }); // expect: 2322
  useEvent("general", "Alarm", () => {}); // expect: 2345
  useEvent("general", "Alert", ({ text }) => text); // expect: 2339
  usePresence("presence.hall.7"); // expect: 2345
  useWhisper("presence.room.7")("typed", { at: 1 }); // expect: 2345
  useWhisper("presence.room.7")("typing", { at: "now" }); // expect: 2322
  useWhisper("presence.room.7")("typing"); // expect: 2554
  useEventBus().value.reconnect(); // expect: 2531
  const load = async () => ({ data: { level: 1 }, offset: 1, epoch: "e" });
  useChannelState("general", { load, reduce: (data) => data.levels }); // expect: 2551
  useChannelState("general", { load, reduce: (data, { event }) => (event === "Alarm" ? data : data) }); // expect: 2367
  const { data } = useChannelState("general", { load, reduce: (data) => data });
  data.value.level.toFixed(); // expect: 18048
  data.value = { level: 2 }; // expect: 2540
  provideEventBus({ token: () => "a.jwt" }); // expect: 2345
}

export const nodes = [
  h(EventBusProvider, {}), // expect: 2769
  h(EventBusProvider, { url: 7 }), // expect: 2769
];
