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
bus.state = "closed"; // expect: 2540
