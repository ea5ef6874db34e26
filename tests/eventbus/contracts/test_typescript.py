"""TypeScript: programs that use the types rightly compile, and those that do not, do not."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from eventbus import Event, ShouldBroadcast
from eventbus.contracts.catalogue import catalogue
from eventbus.contracts.typescript import declarations

CLIENT = Path(__file__).parents[3] / "edge" / "eventbus_edge" / "static"

RIGHT = """
import type { Channels, ClientEvents, Line, OrderPaid, Size } from "./events.js";
import { connect } from "./eventbus.js";

const line: Line = { article: "A", price: 1.5, parent: { article: "B", price: 2 } };
const size: Size = "b";
const paid: OrderPaid = {
  order_id: 1, token: "6fa459ea-ee8a-3ca4-894e-db77e160355e", at: "2026-01-02T03:04:05Z",
  on: "2026-01-02", took: "PT1S", seal: "AAEC", total: "1.50", size, priority: 2,
  payment: { kind: "card", last: "1234" }, lines: [line], where: [1, 2], pair: [1, "a"], note: null,
};
const total: string = paid.total;
const given = paid.payment.kind === "cash" ? paid.payment.given : paid.payment.last;
const number: number | undefined = paid.limits?.["a"];
const typing: ClientEvents["chat.{room_id}"]["typing"] = { is_typing: true };
const tick: Channels["ticks.>"]["tick ü"] = { number: 1 };

const bus = connect<Channels>({ url: "/ws" });
bus.subscribe("orders.42", {
  "order.paid": (order) => { const id: number = order.order_id; return id; },
  Renamed: (data) => data["n"],
});
bus.subscribe("ticks.eu.1").on("tick ü", (data) => data.number.toFixed());
bus.subscribe("chat.7").on("client-typing", (data) => data.is_typing);
connect<Channels, ClientEvents>({ url: "/ws" })
  .subscribe("chat.7", { "client-typing": ({ is_typing }) => !is_typing })
  .whisper("typing", { is_typing: true });
export { given, number, tick, total, typing };
"""

WRONG = """
import type { Channels, ClientEvents, Line, OrderPaid, Size } from "./events.js";
import { connect } from "./eventbus.js";

declare const paid: OrderPaid;
const size: Size = "huge"; // wrong
const line: Line = { article: "A" }; // wrong
const total: number = paid.total; // wrong
const at: Date = paid.at; // wrong
const maybe: number = paid.maybe; // wrong
const note: string = paid.note; // wrong
const given = paid.payment.given; // wrong
const pair: [number, number] = paid.pair; // wrong
const where: Channels["orders.{order_id}"]["order.lost"] = paid; // wrong
const typing: ClientEvents["chat.{room_id}"]["typing"] = { is_typing: "yes" }; // wrong

const bus = connect<Channels>({ url: "/ws" });
bus.subscribe("order.42"); // wrong
bus.subscribe("orders.42", { "order.paid": (order) => order.nothing }); // wrong
bus.subscribe("orders.42").on("order.lost", () => 1); // wrong
bus.subscribe("ticks.eu").on("tick ü", (data) => data.number.length); // wrong
const talk = connect<Channels, ClientEvents>({ url: "/ws" });
talk.subscribe("chat.7").whisper("typing", { is_typing: "yes" }); // wrong
talk.subscribe("chat.7").whisper("typed", { is_typing: true }); // wrong
talk.subscribe("ticks.eu").whisper("typing", { is_typing: true }); // wrong
"""

pytestmark = [pytest.mark.npm, pytest.mark.xdist_group("npm"), pytest.mark.timeout(300)]


@pytest.fixture
def project(tmp_path, contracts):
    (tmp_path / "events.ts").write_text(declarations(contracts))
    for name in ("eventbus.js", "eventbus.d.ts"):
        shutil.copy(CLIENT / name, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    return tmp_path


def test_program_that_uses_the_types_rightly_compiles(project, tsc):
    (project / "right.ts").write_text(RIGHT)
    assert tsc("right.ts") == ""


def test_each_mistake_is_found_and_nothing_more(project, tsc):
    (project / "wrong.ts").write_text(WRONG)
    expected = [n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("// wrong")]
    output = tsc("wrong.ts")
    found = sorted({int(n) for n in re.findall(r"^wrong\.ts\((\d+),", output, re.MULTILINE)})
    assert found == expected, output
    assert len(expected) == 17


def test_names_that_typescript_cannot_have_are_changed(shop, tmp_path, tsc):
    class Record(msgspec.Struct):
        """Ends here: */ and continues."""

    class Channels(Event, ShouldBroadcast, channel="a", name='a"b'):
        record: Record
        fields: dict[str, list[int | None]] = msgspec.field(name="a-b", default_factory=dict)

    made = declarations(catalogue([Channels]))
    (tmp_path / "events.ts").write_text(made)
    assert tsc("events.ts") == ""
    assert "export interface Channels_ {" in made
    assert '"a-b"?: Record<string, (number | null)[]>;' in made
    assert '"a\\"b": Channels_;' in made


def test_no_events_are_two_empty_maps(tmp_path, tsc):
    (tmp_path / "events.ts").write_text(declarations(()))
    assert tsc("events.ts") == ""
