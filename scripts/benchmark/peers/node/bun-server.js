// Bun: its publish, which is that of uWebSockets.

const [port, publisherPort] = process.argv.slice(2).map(Number);

const server = Bun.serve({
  port,
  hostname: "127.0.0.1",
  fetch(request, server) {
    const names = new URL(request.url).searchParams.getAll("channel");
    if (server.upgrade(request, { data: names })) return undefined;
    return new Response("a WebSocket is expected", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    open(socket) {
      for (const name of socket.data) socket.subscribe(name);
    },
    message() {},
  },
});

Bun.listen({
  hostname: "127.0.0.1",
  port: publisherPort,
  socket: {
    open(socket) {
      socket.data = { rest: "", decoder: new TextDecoder() };
    },
    data(socket, bytes) {
      const text = socket.data.rest + socket.data.decoder.decode(bytes, { stream: true });
      const lines = text.split("\n");
      socket.data.rest = lines.pop();
      for (const line of lines) {
        const tab = line.indexOf("\t");
        server.publish(line.slice(0, tab), line.slice(tab + 1));
      }
    },
  },
});
