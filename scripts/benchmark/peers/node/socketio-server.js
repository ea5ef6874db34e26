// Socket.IO: rooms. With a third argument, its Redis adapter and the publisher at Redis.

import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";
import { listenForLines } from "./lines.js";

const [port, publisherPort, redisPort] = process.argv.slice(2).map(Number);
const server = createServer();
const options = { transports: ["websocket"], perMessageDeflate: false, serveClient: false };
if (redisPort) {
  const publishing = createClient({ url: `redis://127.0.0.1:${redisPort}` });
  const subscribing = publishing.duplicate();
  await Promise.all([publishing.connect(), subscribing.connect()]);
  options.adapter = createAdapter(publishing, subscribing);
}
const io = new Server(server, options);

io.engine.on("connection", (socket) => {
  socket.request = null; // as its page on memory usage advises
});
io.on("connection", (socket) => {
  socket.on("join", async (names) => {
    await socket.join(names);
    socket.emit("joined");
  });
});
if (!redisPort) {
  listenForLines(publisherPort, (channel, payload) => {
    io.to(channel).emit("tick", JSON.parse(payload));
  });
}
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
