"""A run: its faults in order, its end, and what it notices. Without servers."""

import asyncio
import time

import pytest

from eventbus.cli.chaos import (
    Log,
    NotAcknowledged,
    NothingFlows,
    Promise,
    Receiver,
    Run,
    Scale,
    Step,
    Workload,
)
from eventbus.cli.chaos.receivers import Access

CHANNEL = "chaos.x.0"
SETTLE_S = 0.3
"""Enough, since messages arrive while they are sent."""


class Wire:
    """Passes messages to receivers, unless it is cut."""

    def __init__(self):
        self.receivers = []
        self.takes = self.delivers = True

    async def send(self, publication):
        if not self.takes:
            raise NotAcknowledged("cut")
        if self.delivers:
            for each in self.receivers:
                each.log.received(publication.message, time.monotonic())


class Client(Receiver):
    kind = "websocket"

    def __init__(self, access, log, turn):
        super().__init__(access, log, turn)
        self.cuts = 0

    async def run(self):
        self.joined.set()
        await asyncio.Event().wait()

    def cut(self, away_s=0.0):
        self.cuts += 1


class Fault:
    hold_s = 0.05
    publish_limit_s = None
    unlimited = ()
    outcome = ""

    def __init__(self, name, wire, calls, *, heals=True):
        self.name, self._wire, self._calls, self._heals = name, wire, calls, heals
        self.broken = []

    async def begin(self):
        self._calls.append(f"begin {self.name}")
        self._wire.takes = False
        return "detail"

    async def heal(self):
        self._calls.append(f"heal {self.name}")
        self._wire.takes = self._heals


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
async def workload(wire):
    made = Workload([CHANNEL])
    made.add_receivers(2, [Client], Access(["http://nowhere"]))
    made.add_publisher("library", wire.send, 200)
    wire.receivers = made.receivers
    await made.start_receivers()
    made.start_publishers()
    yield made
    await made.aclose()


@pytest.fixture
def carry_out(workload, wire):
    """Run faults by name: `report, calls = await carry_out("a", "b", heals=False)`."""

    async def run(*names, heals=True, broken=(), patience=1.0):
        calls = []

        def make(step):
            fault = Fault(step.fault, wire, calls, heals=heals)
            fault.broken = list(broken)
            return fault

        steps = [Step(number, name, 0.0, "") for number, name in enumerate(names)]
        made = Run(
            workload, make, scale=Scale(patience=patience, settle_s=SETTLE_S), say=calls.append
        )
        return await made.run("here", 1, steps), calls

    return run


async def test_faults_begin_and_heal_in_their_order(carry_out, workload):
    report, calls = await carry_out("cut", "killed")
    assert report.broken == []
    assert report.plan == ["cut", "killed"]
    assert [each for each in calls if each.startswith(("begin", "heal"))] == [
        "begin cut", "heal cut", "begin killed", "heal killed",
    ]  # fmt: skip
    assert report.total.acknowledged * 2 == report.total.delivered > 0
    assert all(each.cuts == 1 for each in workload.receivers)  # at the end


async def test_workload_that_is_not_well_again_breaks_a_promise(carry_out):
    report, _ = await carry_out("killed", heals=False, patience=0.1)
    assert len(report.broken) == 1
    assert report.broken[0].startswith("killed: still no messages 6 s after its end: library")


async def test_what_a_fault_has_found_itself_is_in_the_report(carry_out):
    report, _ = await carry_out("mixed", broken=["histories differ"])
    assert report.broken == ["mixed: histories differ"]


async def test_message_that_is_acknowledged_and_not_delivered_is_lost(carry_out, workload, wire):
    lost = Log(workload.ledger, "durable 0", CHANNEL, Promise.AT_LEAST_ONCE)
    workload._others.append(lost)  # a receiver that nothing reaches
    report, _ = await carry_out("cut")
    assert len(report.broken) == 1
    assert report.broken[0].startswith("durable 0: ")
    assert report.total.lost == report.total.acknowledged > 0


async def test_without_messages_there_is_no_run(carry_out, wire):
    wire.delivers = False
    with pytest.raises(NothingFlows, match="websocket 0, websocket 1"):
        await carry_out("cut", patience=0.02)
