"""Steps that must not be cut between two calls to the broker, such as to store and then to drop."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["complete"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
WITHIN_S: Final = 5.0


async def complete(work: Coroutine[Any, Any, T], *, within: float = WITHIN_S) -> T:
    """Run `work` to its end, although the caller is cancelled meanwhile.

    The cancellation is raised then. After it, `work` has `within` seconds; then it is cancelled.
    """
    loop = asyncio.get_running_loop()
    task, name = loop.create_task(work), getattr(work, "__qualname__", "a step")
    cancelled: asyncio.CancelledError | None = None
    deadline = float("inf")
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([task], timeout=None if cancelled is None else left)
        except asyncio.CancelledError as exc:
            if cancelled is None:
                deadline = loop.time() + within
            cancelled = exc
    if cancelled is None:
        return task.result()
    if not task.done():
        task.cancel()
        _log.warning("%s did not end within %g s and is cut", name, within)
    elif not task.cancelled() and (fault := task.exception()) is not None:
        _log.error("%s failed", name, exc_info=fault)
    raise cancelled
