import { connect } from "@eventbus/client";
import type { Channels } from "../accepted/orders.js";

const bus = connect<Channels>({ url: "/ws" });

bus.subscribe("ordres.42", {}); // expect: 2345
bus.subscribe("orders", {}); // expect: 2345
bus.subscribe("orders.42.parts", {}); // expect: 2345
bus.subscribe("team.7", {}); // expect: 2345
bus.subscribe("orders.42", { "order.shiped": () => {} }); // expect: 2353
bus.subscribe("orders.all", { OrderPaid: () => {} }); // expect: 2353
bus.subscribe("general", { Alert: ({ message }) => message }); // expect: 2339
bus.subscribe("orders.42", { OrderPaid: (data: { amount: number }) => data }); // expect: 2322
bus.subscribe("general").on("Alarm", () => {}); // expect: 2769
bus.subscribe("general", {}, { history: "all" }); // expect: 2322
connect({ token: async () => "a.jwt" }); // expect: 2345
connect({ url: "/ws", token: async () => 7 }); // expect: 2322
bus.on("message", () => {}); // expect: 2345
bus.state = { status: "closed" }; // expect: 2540
bus.state.status = "closed"; // expect: 2540
if (bus.state === "closed") bus.close(); // expect: 2367
connect({ url: "/ws", token: 7 }); // expect: 2322
connect({ url: "/ws", minDelay: "1s" }); // expect: 2322
bus.subscribe("general", {}, { state: async () => ({ offset: 1, epoch: "e" }) }); // expect: 2322
bus.subscribe("general", {}, { state: async () => ({ data: 1 }) }); // expect: 2322
bus.subscribe("general", {}, { state: 7 }); // expect: 2322
bus.history("ordres.42"); // expect: 2345
bus.history("general", { limit: "all" }); // expect: 2322
const state = async () => ({ data: { id: 1 }, offset: 1, epoch: "e" });
bus.subscribe("general", {}, { state, onState: (data) => data.name }); // expect: 2339

interface ClientEvents {
  "chat.{room_id}": { typing: { is_typing: boolean } };
}
interface Rooms {
  "chat.{room_id}": { "client-typing": { is_typing: boolean } };
  general: {};
}
const rooms = connect<Rooms, ClientEvents>({ url: "/ws" });
rooms.subscribe("chat.7", { "client-typing": ({ since }) => since }); // expect: 2339
rooms.subscribe("chat.7", { "client-typed": () => {} }); // expect: 2353
rooms.subscribe("chat.7").whisper("typed", { is_typing: true }); // expect: 2345
rooms.subscribe("chat.7").whisper("typing", { is_typing: "yes" }); // expect: 2322
rooms.subscribe("chat.7").whisper("typing"); // expect: 2554
rooms.subscribe("general").whisper("typing", { is_typing: true }); // expect: 2345
