// ws: the broadcast of its documentation, to the clients of a channel.

import { createServer } from "node:http";
import { WebSocketServer } from "ws";
import { listenForLines } from "./lines.js";

const [port, publisherPort] = process.argv.slice(2).map(Number);
const channels = new Map();
const server = createServer();
const sockets = new WebSocketServer({ server, perMessageDeflate: false, clientTracking: false });

sockets.on("connection", (socket, request) => {
  const names = new URL(request.url, "http://localhost").searchParams.getAll("channel");
  for (const name of names) {
    if (!channels.has(name)) channels.set(name, new Set());
    channels.get(name).add(socket);
  }
  socket.on("error", () => {});
  socket.on("close", () => names.forEach((name) => channels.get(name).delete(socket)));
});
listenForLines(publisherPort, (channel, payload) => {
  const data = Buffer.from(payload); // encoded once for all clients
  for (const socket of channels.get(channel) ?? []) socket.send(data, { binary: false });
});
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
