"""An application for workers in processes of their own: `eventbus queue work --app queue_app`."""

import asyncio
import os
import signal
import sys

from eventbus import Event, ShouldQueue, listen
from eventbus.events import current_bus


class WorkerSleeps(Event, ShouldQueue, tries=3, backoff=0):
    n: int
    seconds: float = 0.0


class WorkerSleepsOnce(WorkerSleeps, tries=1):
    pass


class WorkerSleepsTwice(WorkerSleeps, tries=2):
    pass


class WorkerFails(WorkerSleeps, tries=2):
    pass


class WorkerDies(Event, ShouldQueue, tries=2):
    n: int


class WorkerExits(Event, ShouldQueue, tries=1):
    n: int


async def report(what: str, n: int) -> None:
    await current_bus().publish("told", what, {"n": n, "pid": os.getpid()})  # type: ignore[attr-defined]


@listen(WorkerSleeps)
async def sleep(event: WorkerSleeps) -> None:
    await report("begun", event.n)
    await asyncio.sleep(event.seconds)
    await report("ended", event.n)


@listen(WorkerFails)
async def fail(event: WorkerFails) -> None:
    raise RuntimeError("seven")


@listen(WorkerExits)
def leave(event: WorkerExits) -> None:
    sys.exit(f"job {event.n}")


@listen(WorkerDies)
async def die(event: WorkerDies) -> None:
    await report("dying", event.n)
    os.kill(os.getpid(), signal.SIGKILL)
