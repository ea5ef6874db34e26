"""Several messages at once: all are sent concurrently, and failures are reported by channel."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from eventbus.errors import DispatchFailed
from eventbus.messages.message import Receipt
from eventbus.user_code import text_of

__all__ = ["gather_receipts"]


async def gather_receipts(
    channels: Iterable[str], sends: Sequence[Coroutine[Any, Any, Receipt | None]]
) -> tuple[Receipt, ...]:
    """Await all `sends`, one for each of `channels`; returns their receipts in order.

    One that returns None is left out.

    The error of a single one is raised as it is. Of several, all complete even if some fail, and
    DispatchFailed has the first error of each channel.
    """
    if len(sends) == 1:
        receipt = await sends[0]
        return () if receipt is None else (receipt,)
    gathered = await asyncio.gather(*sends, return_exceptions=True)
    done = [
        (channel, result)
        for channel, result in zip(channels, gathered, strict=True)
        if result is not None
    ]
    results = [result for _, result in done]
    receipts = tuple(result for result in results if isinstance(result, Receipt))
    if len(receipts) == len(results):
        return receipts
    failures: dict[str, Exception] = {}
    errors: list[Exception] = []
    for channel, result in done:
        if isinstance(result, Exception):
            failures.setdefault(channel, result)
            errors.append(result)
        elif isinstance(result, BaseException):
            raise result
    reasons = "; ".join(f"{channel}: {text_of(error)}" for channel, error in failures.items())
    raise DispatchFailed(
        f"{len(errors)} of {len(results)} messages were not published: {reasons}",
        failures=failures,
        receipts=receipts,
    ) from ExceptionGroup("messages not published", errors)
