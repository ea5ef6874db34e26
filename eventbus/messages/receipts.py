"""Several messages at once: all are sent concurrently, and what failed is told by channel."""

import asyncio
from collections.abc import (
    Coroutine,
    Sequence,
)
from typing import Any

from eventbus.errors import DispatchFailed
from eventbus.messages.message import Receipt
from eventbus.user_code import text_of

__all__ = ["gather_receipts"]


async def gather_receipts(
    channels: Sequence[str], sends: Sequence[Coroutine[Any, Any, Receipt]]
) -> tuple[Receipt, ...]:
    """Await all `sends`, one for each of `channels`; gives their receipts in order.

    A lone one's error is raised as it is. Of several, none is given up because another failed;
    then DispatchFailed holds the first error of each channel that failed.
    """
    if len(sends) == 1:
        return (await sends[0],)
    results = await asyncio.gather(*sends, return_exceptions=True)
    receipts = tuple(result for result in results if isinstance(result, Receipt))
    if len(receipts) == len(results):
        return receipts
    failures: dict[str, Exception] = {}
    errors: list[Exception] = []
    for channel, result in zip(channels, results, strict=True):
        if isinstance(result, Exception):
            failures.setdefault(channel, result)
            errors.append(result)
        elif isinstance(result, BaseException):
            raise result
    told = "; ".join(f"{channel}: {text_of(error)}" for channel, error in failures.items())
    raise DispatchFailed(
        f"{len(errors)} of {len(results)} messages were not published: {told}",
        failures=failures,
        receipts=receipts,
    ) from ExceptionGroup("messages not published", errors)
