"""Falsifies the logs of some receivers, to show that the comparison notices it."""

from collections.abc import Callable, Sequence
from typing import Final

from eventbus.cli.chaos import Log, Message

__all__ = ["sabotage"]

_AT: Final = 3
"""The message that is falsified, counted per log."""

Record = Callable[[Message, float], None]


def sabotage(logs: Sequence[Log]) -> None:
    """Make the first log of each of four kinds lose, duplicate or swap messages."""
    for prefix, falsify in _WAYS.items():
        log = next(each for each in logs if each.name.startswith(prefix))
        _replace(log, falsify)


def _lose(record: Record, message: Message, now: float, count: int) -> None:
    if count != _AT:
        record(message, now)


def _duplicate(record: Record, message: Message, now: float, count: int) -> None:
    record(message, now)
    if count == _AT:
        record(message, now)


def _swap() -> Callable[[Record, Message, float, int], None]:
    waiting: list[Message] = []

    def falsify(record: Record, message: Message, now: float, count: int) -> None:
        if count == _AT:
            waiting.append(message)
            return
        record(message, now)
        if waiting and message.publisher == waiting[0].publisher:
            record(waiting.pop(), now)

    return falsify


_WAYS: Final = {"websocket": _lose, "pusher": _duplicate, "sse": _swap(), "queue": _lose}


def _replace(log: Log, falsify: Callable[[Record, Message, float, int], None]) -> None:
    record, count = log.received, 0

    def received(message: Message, now: float) -> None:
        nonlocal count
        count += 1
        falsify(record, message, now, count)

    log.received = received  # type: ignore[method-assign]
