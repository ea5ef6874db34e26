import type { Loaded } from "@eventbus/react";
import type { OrderSaved, Status } from "./contracts";

/** A request to the service; throws with the service's own words if it fails. */
async function request(path: string, init?: RequestInit): Promise<Response> {
  const answer = await fetch(`/api/${path}`, init);
  if (answer.ok) return answer;
  const { detail } = await answer.json().catch(() => ({ detail: answer.statusText }));
  throw new Error(typeof detail === "string" ? detail : answer.statusText);
}

const post = (path: string, body: object) =>
  request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

/** Your own sign-in goes here. */
export function signIn(person: string): void {
  document.cookie = `person=${person}; path=/; SameSite=Lax`;
}

export async function fetchToken(person: string): Promise<string> {
  signIn(person); // another tab may have signed in as another person
  return (await request("token")).text();
}

export const fetchPeople = async (): Promise<Record<string, string>> =>
  (await request("people")).json();

export const fetchOrders = async (signal: AbortSignal): Promise<Loaded<OrderSaved[]>> =>
  (await request("orders", { signal })).json();

export const placeOrder = (customer: string, item: string) => post("orders", { customer, item });

export const moveOrder = (id: number, status: Status) => post(`orders/${id}`, { status });
