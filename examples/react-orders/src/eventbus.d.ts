import type { Channels, ClientEvents } from "./contracts";

declare module "@eventbus/react" {
  interface Register {
    channels: Channels;
    clientEvents: ClientEvents;
  }
}
