"""An application for workers in processes of their own: `eventbus queue work --app queue_app`."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from eventbus import Event, ShouldQueue, listen
from eventbus.events import current_bus


class WorkerWaits(Event, ShouldQueue, tries=10, backoff=0):
    n: int
    until: str = ""
    """A file that exists when the listener may end."""


class WorkerWaitsOnce(WorkerWaits, tries=1):
    pass


class WorkerWaitsTwice(WorkerWaits, tries=2):
    pass


class WorkerFails(WorkerWaits, tries=2):
    pass


class WorkerPauses(Event, ShouldQueue, tries=10, backoff=0):
    n: int


class WorkerDies(Event, ShouldQueue, tries=2):
    n: int


class WorkerExits(Event, ShouldQueue, tries=1):
    n: int


async def report(what: str, n: int) -> None:
    await current_bus().publish("told", what, {"n": n, "pid": os.getpid()})  # type: ignore[attr-defined]


@listen(WorkerWaits)
async def wait(event: WorkerWaits) -> None:
    await report("begun", event.n)
    while event.until and not Path(event.until).exists():  # noqa: ASYNC110, ASYNC240 - of a test
        await asyncio.sleep(0.02)
    await report("ended", event.n)


@listen(WorkerPauses)
async def pause(event: WorkerPauses) -> None:
    await report("begun", event.n)
    await asyncio.sleep(0.05)
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
