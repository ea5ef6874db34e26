"""Sending after the commit of a database's transaction, from the hook that its library calls."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from eventbus.events import Held
from eventbus.sync.thread import LoopCalls

__all__ = ["send_committed"]


def send_committed(
    held: Sequence[Held], await_: Callable[[Awaitable[None]], object] | None = None
) -> None:
    """Send what a commit has released, and wait for it; raises nothing.

    In a thread whose event loop is running, it waits by `await_`; without that, it goes on in the
    background. The transaction has committed: errors are logged and counted (`EventBus.rescued`).
    """
    groups: dict[Any, list[Held]] = {}
    for each in held:
        groups.setdefault((each.bus, each.loop), []).append(each)
    for (bus, loop), group in groups.items():
        work = functools.partial(bus.send_committed, group)
        here = _running_loop()
        try:
            if here is None:
                LoopCalls(loop).run(work)
            elif await_ is None:
                bus.send_soon(group, loop)
            elif here is loop:
                await_(work())
            else:
                await_(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop)))
        except Exception as exc:  # noqa: BLE001 - whatever it is, the transaction has committed
            bus.report_lost(group, exc)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
