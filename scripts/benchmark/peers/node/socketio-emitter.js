// Publishes to Socket.IO through Redis, as another process does: @socket.io/redis-emitter.

import { Emitter } from "@socket.io/redis-emitter";
import { createClient } from "redis";
import { listenForLines } from "./lines.js";

const [publisherPort, redisPort] = process.argv.slice(2).map(Number);
const client = createClient({ url: `redis://127.0.0.1:${redisPort}` });
await client.connect();
const emitter = new Emitter(client);
listenForLines(publisherPort, (channel, payload) => {
  emitter.to(channel).emit("tick", JSON.parse(payload));
});
