"""Requests to the edge that wait for their answers."""

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from eventbus.client.frames import Frame
from eventbus.errors import ClientDisconnected, ClientError, ClientRefused

__all__ = ["OnAnswer", "Requests"]

OnAnswer = Callable[[Frame], None]


class _Ref(msgspec.Struct):
    ref: int | str | None = None


class _Refusal(msgspec.Struct):
    code: str = ""
    message: str = ""


_decode_ref = msgspec.json.Decoder(_Ref).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class Requests:
    """Finds the request that a frame answers, by the `ref` in its data."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._refs = itertools.count(1)
        self._waiting: dict[
            int, tuple[asyncio.Future[Frame], str, str | None, OnAnswer | None]
        ] = {}

    def expect(
        self, action: str, channel: str | None, on_answer: OnAnswer | None = None
    ) -> tuple[int, "asyncio.Future[Frame]"]:
        """A new ref and the future of its answer. Raises ClientDisconnected if too many wait.

        `on_answer` is called with the frame at once, before any frame that follows it is read.
        """
        if len(self._waiting) >= self._limit:
            raise ClientDisconnected(f"{self._limit} requests wait for their answers")
        ref = next(self._refs)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[ref] = (future, action, channel, on_answer)
        return ref, future

    def forget(self, ref: int) -> None:
        """Stop waiting for an answer."""
        self._waiting.pop(ref, None)

    def answer(self, frame: Frame) -> bool:
        """Take a frame that is an answer; False if no request waits for it."""
        try:
            ref = _decode_ref(frame.data).ref
        except msgspec.DecodeError:
            return False
        waiting = self._waiting.pop(ref, None) if isinstance(ref, int) else None
        if waiting is None:
            return False
        future, action, channel, on_answer = waiting
        if frame.event == "eb:error":
            if not future.done():
                future.set_exception(refusal(frame, action, channel))
            return True
        if on_answer is not None:
            on_answer(frame)
        if not future.done():
            future.set_result(frame)
        return True

    def fail(self, error: Callable[[], ClientError]) -> None:
        """Fail all requests: no answer will come."""
        waiting, self._waiting = self._waiting, {}
        for future, *_ in waiting.values():
            if not future.done():
                future.set_exception(error())
                future.exception()  # perhaps nobody waits for it any more


def refusal(frame: Frame, action: str, channel: str | None) -> ClientRefused:
    """The error in an `eb:error`."""
    answer = _decode_refusal(frame.data)
    what = f"{action} {channel}" if channel else action
    return ClientRefused(
        f"{what}: {answer.message} ({answer.code})", code=answer.code, channel=channel
    )
