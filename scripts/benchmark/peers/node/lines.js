// The publisher of the servers without a broker: one connection, lines of "channel<tab>payload".

import { createServer } from "node:net";

/** Calls `publish(channel, payload)` for each line that arrives at the port. */
export function listenForLines(port, publish) {
  createServer((socket) => {
    let rest = "";
    socket.setEncoding("utf8");
    socket.on("error", () => {}); // the load generator has ended
    socket.on("data", (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const tab = line.indexOf("\t");
        publish(line.slice(0, tab), line.slice(tab + 1));
      }
    });
  }).listen(port, "127.0.0.1");
}
