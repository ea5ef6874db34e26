import {
  useChannelState,
  useConnectionState,
  useEvent,
  usePresence,
  useWhisper,
} from "@eventbus/react";
import { useState } from "react";
import type { FormEvent } from "react";
import { fetchOrders, moveOrder, placeOrder } from "./api";
import type { OrderSaved, Status } from "./contracts";

const STEPS: readonly Status[] = ["new", "packed", "shipped", "delivered"];
const LABELS = { new: "New", packed: "Packed", shipped: "Shipped", delivered: "Delivered" };
const ACTIONS = { new: "Pack", packed: "Ship", shipped: "Deliver" } as const;
const WHISPER_MS = 5_000;

/** A move that the service has not confirmed, and who asked for it. */
interface Pending {
  status: Status;
  by: string;
}

interface Props {
  people: Record<string, string>;
  person: string;
  onPerson: (id: string) => void;
}

export function Orders({ people, person, onPerson }: Props) {
  const [fault, setFault] = useState("");
  const [pending, setPending] = useState<Record<number, Pending>>({});
  const whisper = useWhisper("presence.orders");

  const orders = useChannelState("orders.live", {
    load: ({ signal }) => fetchOrders(signal),
    // Sets, does not add: the data may contain the message already.
    reduce: (orders, { data: saved }) => [
      ...orders.filter(({ id }) => id !== saved.id),
      saved,
    ],
  });

  const settle = (id: number, only?: Pending) =>
    setPending((all) => {
      const { [id]: mine, ...others } = all;
      return only && only !== mine ? all : others;
    });
  const expect = (id: number, status: Status, by: string) => {
    const move = { status, by };
    setPending((all) => ({ ...all, [id]: move }));
    setTimeout(settle, WHISPER_MS, id, move); // whoever asked may have gone away
  };

  useEvent("orders.live", "order.saved", ({ id }) => settle(id));
  useEvent("presence.orders", "client-moving", ({ order_id, status }, { user_id }) =>
    expect(order_id, status, people[user_id ?? ""] ?? "Somebody"),
  );

  const attempt = async (change: () => Promise<unknown>) => {
    try {
      await change();
      setFault("");
      return true;
    } catch (error) {
      setFault((error as Error).message);
      return false;
    }
  };

  /** Every page shows the move at once; the event of the service confirms it. */
  const move = async (order: OrderSaved, status: Status) => {
    expect(order.id, status, "You");
    whisper("moving", { order_id: order.id, status }).catch(() => {}); // only a courtesy
    if (!(await attempt(() => moveOrder(order.id, status)))) settle(order.id);
  };

  const place = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = event.currentTarget;
    const data = new FormData(form);
    const change = () => placeOrder(String(data.get("customer")), String(data.get("item")));
    if (await attempt(change)) form.reset();
  };

  const problem = fault || orders.error?.message;
  const sorted = orders.data?.toSorted((one, other) => other.id - one.id);
  return (
    <main>
      <header>
        <h1>Orders</h1>
        <Connection />
        <Viewers />
        <label className="person">
          You are
          <select value={person} onChange={(event) => onPerson(event.target.value)}>
            {Object.entries(people).map(([id, name]) => (
              <option key={id} value={id}>
                {name}
              </option>
            ))}
          </select>
        </label>
      </header>

      {problem && <p role="alert">{problem}</p>}

      <form onSubmit={place}>
        <input name="customer" aria-label="Customer" placeholder="Customer" required />
        <input name="item" aria-label="Item" placeholder="Item" required />
        <button>Place order</button>
      </form>

      {!sorted && orders.status === "loading" && <p className="hint">Loading the orders…</p>}
      {sorted?.length === 0 && <p className="hint">No orders yet.</p>}
      <ul>
        {sorted?.map((order) => (
          <Order key={order.id} order={order} pending={pending[order.id]} onMove={move} />
        ))}
      </ul>
    </main>
  );
}

interface OrderProps {
  order: OrderSaved;
  pending: Pending | undefined;
  onMove: (order: OrderSaved, status: Status) => void;
}

function Order({ order, pending, onMove }: OrderProps) {
  const shown = pending?.status ?? order.status;
  const step = STEPS.indexOf(shown);
  const next = STEPS[step + 1];
  return (
    <li data-order={order.id} data-status={shown} data-pending={pending ? "" : undefined}>
      <span className="id">#{order.id}</span>
      <span className="what">
        <strong>{order.customer}</strong>
        {order.item}
      </span>
      <span className="status">
        <span className="steps" aria-hidden>
          {STEPS.map((each, index) => (
            <i key={each} data-done={index <= step ? "" : undefined} />
          ))}
        </span>
        <span>
          {LABELS[shown]}
          {pending && <em> {pending.by === "You" ? "saving…" : `${pending.by} is saving…`}</em>}
        </span>
      </span>
      {next && shown !== "delivered" ? (
        <button disabled={Boolean(pending)} onClick={() => onMove(order, next)}>
          {ACTIONS[shown]}
        </button>
      ) : (
        <span className="done">✓</span>
      )}
    </li>
  );
}

function Connection() {
  const { status, error } = useConnectionState();
  return (
    <span className="connection" data-state={status} title={error?.message} role="status">
      {status === "connected" ? "live" : status}
    </span>
  );
}

function Viewers() {
  const { members } = usePresence("presence.orders");
  const names = members.map(({ user_id, info }) => ({ id: user_id, name: info.name ?? user_id }));
  return (
    <span className="viewers" aria-label="Looking at this page">
      {names.map(({ id, name }) => (
        <span key={id} title={`${name} is looking`} style={{ "--hue": Number(id) * 130 } as object}>
          {String(name).slice(0, 1)}
        </span>
      ))}
      {names.length > 0 && <small>{names.length === 1 ? "only you" : `${names.length} here`}</small>}
    </span>
  );
}
