import type Pusher from "pusher-js";

/** A class like `Pusher`, whose connections receive after a reconnect what they have missed.
 *
 * Channels receive `eventbus:gap` where messages are lost. After a reconnect, the data of
 * `pusher:subscription_succeeded` says whether all that was missed follows: `recovered`. */
export function withResume<T extends typeof Pusher>(pusher: T): T;
