// Lets pusher-js, and so Laravel Echo, receive after a reconnect what was published before it.
//
//     import Pusher from "pusher-js";
//     import { withResume } from "@eventbus/echo";
//     const echo = new Echo({ broadcaster: "reverb", Pusher: withResume(Pusher), … });
//
// The edge adds a cursor to each stored message, and takes one back with a subscription. pusher-js
// drops what it does not know, so the cursors are read from the socket.

const cursorsOf = new Map(); // of the latest sockets, by their ids: channel to cursor
const MAX_SOCKETS = 10;

function record(socket) {
  let cursors = new Map();
  socket.addEventListener("message", ({ data }) => {
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return; // pusher-js reports it
    }
    if (frame.event === "pusher:connection_established") {
      cursorsOf.set(JSON.parse(frame.data).socket_id, cursors);
      if (cursorsOf.size > MAX_SOCKETS) cursorsOf.delete(cursorsOf.keys().next().value);
    } else if (frame.cursor) {
      cursors.set(frame.channel, frame.cursor);
    }
  });
  return socket;
}

function instrument(runtime) {
  if (runtime.recordsCursors) return;
  const create = runtime.createWebSocket;
  runtime.recordsCursors = true;
  runtime.createWebSocket = (url) => record(create.call(runtime, `${url}&cursor=1`));
}

// The channel that continues by an event: a user's events come without a subscription.
function resumed(name, data) {
  if (name === "pusher:subscribe") return data.channel;
  return name === "pusher:signin" && `#server-to-user-${JSON.parse(data.user_data).id}`;
}

/** A class like `Pusher`, whose connections resume. Channels receive `eventbus:gap` where messages
 * are lost, and `recovered: false` in the data of `pusher:subscription_succeeded`. */
export function withResume(Pusher) {
  instrument(Pusher.Runtime);
  return class extends Pusher {
    send_event(name, data, channel) {
      const id = this.connection.socket_id;
      this.cursors ??= new Map();
      if (id !== this.cursorsFrom) {
        for (const entry of cursorsOf.get(this.cursorsFrom) ?? []) this.cursors.set(...entry);
        cursorsOf.delete(this.cursorsFrom);
        this.cursorsFrom = id;
      }
      if (name === "pusher:unsubscribe") {
        this.cursors.delete(data.channel);
        cursorsOf.get(id)?.delete(data.channel);
      }
      const cursor = this.cursors.get(resumed(name, data));
      return super.send_event(name, cursor ? { ...data, cursor } : data, channel);
    }
  };
}
