"""Requests to the edge that wait for their answers."""

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from eventbus.client.frames import ClientMessage, Frame, HistoryPage, Member
from eventbus.errors import ClientDisconnected, ClientError, ClientRefused
from eventbus.messages import json_decoder

__all__ = ["OnAnswer", "Requests", "members_in", "page_in", "unreadable"]

OnAnswer = Callable[[Frame], None]


class _Ref(msgspec.Struct):
    ref: int | str | None = None


class _Refusal(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Members(msgspec.Struct):
    members: tuple[Member, ...] = ()


class _Page(msgspec.Struct):
    messages: tuple[Frame, ...] = ()
    offset: int | None = None
    epoch: str | None = None


_decode_members = json_decoder(_Members)
_decode_page = json_decoder(_Page)
_decode_ref = json_decoder(_Ref)
_decode_refusal = json_decoder(_Refusal)


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
        """Take a frame that is an answer; False if no request waits for it.

        Raises ValueError if `on_answer` cannot read it; the request has failed then.
        """
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
                future.set_exception(_error_of(frame, action, channel))
            return True
        if on_answer is not None:
            try:
                on_answer(frame)
            except ValueError as exc:
                if not future.done():
                    future.set_exception(unreadable(action, exc))
                raise
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


def unreadable(action: str, exc: ValueError) -> ClientDisconnected:
    """The error of a request whose answer is malformed."""
    return ClientDisconnected(f"{action}: the edge's answer cannot be read: {exc}")


def members_in(answer: Frame) -> list[Member]:
    """The members in an answer to `presence`. Raises ClientDisconnected if it is malformed."""
    try:
        return list(_decode_members(answer.data).members)
    except ValueError as exc:
        raise unreadable("presence", exc) from exc


def page_in(answer: Frame) -> HistoryPage:
    """The messages in an answer to `history`. Raises ClientDisconnected if it is malformed."""
    try:
        page = _decode_page(answer.data)
    except ValueError as exc:
        raise unreadable("history", exc) from exc
    messages = tuple(ClientMessage.of(frame) for frame in page.messages)
    return HistoryPage(messages=messages, offset=page.offset, epoch=page.epoch)


def _error_of(frame: Frame, action: str, channel: str | None) -> ClientError:
    """The error in an `eb:error`."""
    try:
        answer = _decode_refusal(frame.data)
    except ValueError as exc:
        return unreadable(action, exc)
    what = f"{action} {channel}" if channel else action
    return ClientRefused(
        f"{what}: {answer.message} ({answer.code})", code=answer.code, channel=channel
    )
