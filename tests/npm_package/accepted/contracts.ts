/** Contracts as `eventbus schema export --format typescript` writes them. */

export interface OrderShipped {
  order_id: number;
  carrier: "dhl" | "ups";
}
export interface OrderPaid {
  order_id: number;
  amount: string;
}
export interface Channels {
  "orders.{order_id}": { "order.shipped": OrderShipped; OrderPaid: OrderPaid };
  "presence.room.{room}": { "client-typing": { at: number }; "client-left": null };
  general: { Alert: { level: number } };
}
export interface ClientEvents {
  "presence.room.{room}": { typing: { at: number }; left: null };
}
