"""Carries out a plan: begins and heals its faults while messages flow, then reports."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

from eventbus.cli.chaos.plan import Step
from eventbus.cli.chaos.report import Report, Window, make_report
from eventbus.cli.chaos.workload import NothingFlows, Workload

__all__ = ["Fault", "Run", "Scale"]

_FLOWING_S: Final = 60.0
_SETTLED_S: Final = 600.0
_LOOK_S: Final = 0.5
_CHANGE_S: Final = 300.0
"""How long it may take to begin or heal a fault."""


class Scale(NamedTuple):
    """How long things take."""

    hold: float = 1.0
    """Multiplies how long faults last."""
    patience: float = 1.0
    """Multiplies how long recovery may take."""
    settle_s: float = 60.0
    """Missing messages count as lost after this time without any arrival."""
    publish_limit_s: float | None = None
    """How long a publisher may wait during faults that promise a limit; replaces theirs."""


class Fault(Protocol):
    """Something that goes wrong for a while."""

    @property
    def name(self) -> str:
        """Its name in plans and reports."""

    @property
    def hold_s(self) -> float:
        """How long it lasts, before it is scaled."""

    @property
    def publish_limit_s(self) -> float | None:
        """How long a publisher may wait during the fault, if that is promised."""

    @property
    def unlimited(self) -> Collection[str]:
        """Publishers to which that promise does not apply."""

    @property
    def broken(self) -> Sequence[str]:
        """Broken promises that the fault noticed itself."""

    @property
    def outcome(self) -> str:
        """What it did, for people, if that is known only at its end."""

    async def begin(self) -> str:
        """Start the fault. Returns what was chosen, for people."""

    async def heal(self) -> None:
        """Undo it."""


class Run:
    """A series of faults on one workload."""

    def __init__(
        self,
        workload: Workload,
        make: Callable[[Step], Fault],
        *,
        scale: Scale,
        say: Callable[[str], object],
        collect: Callable[[], object] = lambda: None,
        erased_at: Sequence[float] = (),
    ) -> None:
        """Does not start anything.

        make: makes the fault of a step. say: reports progress. collect: updates the logs of
        receivers that the workload does not run. erased_at: when faults erased the store.
        """
        self._workload = workload
        self._make = make
        self._scale = scale
        self._say = say
        self._collect = collect
        self._erased_at = erased_at
        self._began: list[tuple[Fault, str, float, float]] = []
        self._broken: list[str] = []

    async def run(
        self, where: str, seed: int, steps: Sequence[Step], notes: Sequence[str] = ()
    ) -> Report:
        """Carry out the steps, wait until everything has settled, and compare.

        `where` and `notes` are for the report. Raises NothingFlows, and any error of a fault or a
        receiver.
        """
        workload = self._workload
        began_at = time.monotonic()
        if await workload.flowing(began_at, _FLOWING_S * self._scale.patience) is None:
            raise NothingFlows(f"no messages flow: {', '.join(workload.not_flowing(began_at))}")
        for step in steps:
            await self._calm(step.pause_s)
            await self._step(step)
        stopped_at = time.monotonic()
        await self._end()
        ended_at = time.monotonic()
        starts = [each[2] for each in self._began[1:]]
        return make_report(
            where=where,
            seed=seed,
            plan=[step.fault for step in steps],
            ledger=workload.ledger,
            logs=workload.logs,
            windows=[
                Window(fault.name, detail, begin, healed, end, self._limit(fault), fault.unlimited)
                for (fault, detail, begin, healed), end in zip(
                    self._began, [*starts, ended_at], strict=True
                )
            ],
            began_at=began_at,
            stopped_at=stopped_at,
            ended_at=ended_at,
            erased_at=self._erased_at,
            gaps_allowed_from=min(self._erased_at, default=float("inf")),
            broken=self._broken,
            notes=notes,
        )

    async def _step(self, step: Step) -> None:
        fault = self._make(step)
        begin = time.monotonic()
        async with asyncio.timeout(_CHANGE_S * self._scale.patience):
            detail = await fault.begin()
        self._say(f"{step.number + 1}. {step.fault} {detail}".rstrip())
        await self._calm(fault.hold_s * self._scale.hold)
        async with asyncio.timeout(_CHANGE_S * self._scale.patience):
            await fault.heal()
        self._broken += [f"{step.fault}: {each}" for each in fault.broken]
        detail = f"{detail} {fault.outcome}".strip()
        healed = time.monotonic()
        patience = _FLOWING_S * self._scale.patience
        flowing = await self._workload.flowing(healed, patience)
        if flowing is None:
            waiting = ", ".join(self._workload.not_flowing(healed)[:8])
            self._broken.append(
                f"{step.fault}: still no messages {patience:.0f} s after its end: {waiting}"
            )
        else:
            self._say(f"   recovered {flowing - healed:.1f} s after its end")
        self._began.append((fault, detail, begin, healed))
        self._collect()

    def _limit(self, fault: Fault) -> float | None:
        limit = self._scale.publish_limit_s
        return fault.publish_limit_s if fault.publish_limit_s is None or limit is None else limit

    async def _calm(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._workload.check()
            await asyncio.sleep(min(left, 0.5))

    async def _end(self) -> None:
        """Stop publishing, and wait until everything has arrived.

        Then all receivers reconnect and get one more message: no earlier one may arrive again.
        """
        workload = self._workload
        await workload.stop_publishers()
        await self._settle()
        workload.cut()
        for publisher in workload.publishers:
            await publisher.send_to_all()
        await self._settle()

    async def _settle(self) -> None:
        """Wait until everything has arrived, or nothing more arrives."""
        workload = self._workload
        began_at = newest_at = time.monotonic()
        count = 0
        while True:
            self._collect()
            if not workload.waiting(self._erased_at):
                return
            now = time.monotonic()
            if (arrivals := workload.arrivals) > count:
                count, newest_at = arrivals, now
            if now - newest_at > self._scale.settle_s or now - began_at > _SETTLED_S:
                return
            workload.check()
            await asyncio.sleep(_LOOK_S)
