import { connect } from "@eventbus/client";
import { EventBusProvider, useChannel, useChannelState, useEvent, useEventBus } from "@eventbus/react";
import { usePresence, useWhisper } from "@eventbus/react";
import type {} from "../accepted/react.js";

export function Wrong() {
  useChannel("order.42", {}); // expect: 2345
  useChannel(42, {}); // expect: 2345
  useChannel("orders.42", { "order.lost": () => {} }); // expect: 2353
  useChannel("orders.42", { OrderPaid: ({ total }) => total }); // expect: 2339
  useChannel("general", {}, { history: "all" }); // expect: 2322
  useEvent("general", "Alarm", () => {}); // expect: 2345
  useEvent("general", "Alert", ({ text }) => text); // expect: 2339
  useEvent("general", "Alert"); // expect: 2554
  usePresence("presence.hall.7"); // expect: 2345
  useWhisper("presence.room.7")("typed", { at: 1 }); // expect: 2345
  useWhisper("presence.room.7")("typing", { at: "now" }); // expect: 2322
  useWhisper("presence.room.7")("typing"); // expect: 2554
  useWhisper("general")("typing"); // expect: 2345
  useEventBus().reconnect(); // expect: 2531
  useEventBus()?.subscribe("order.42"); // expect: 2345
  const load = async () => ({ data: { level: 1 }, offset: 1, epoch: "e" });
  useChannelState("general", { load, reduce: (data) => data.levels }); // expect: 2551
  useChannelState("general", { load, reduce: (data, { event }) => (event === "Alarm" ? data : data) }); // expect: 2367
  useChannelState("general", { load: async () => ({ level: 1 }), reduce: (data) => data }); // expect: 2322
  const { status, data } = useChannelState("general", { load, reduce: (data) => data });
  return status === "loading" ? data.level : data; // expect: 18048
}

export const wrong = [
  <EventBusProvider />, // expect: 2322
  <EventBusProvider url="/ws" token={7} />, // expect: 2322
  <EventBusProvider url="/ws" bus={connect({ url: "/ws" })} />, // expect: 2322
];
