"""Requests to NATS and their replies; every request ends, with a reply or without one."""

import asyncio
import secrets
from typing import Final

import msgspec

from eventbus.drivers.nats.client import NO_WIRE_HEADERS, WireHeaders
from eventbus.drivers.nats.errors import DRIVER
from eventbus.errors import (
    PublishDenied,
    PublishFailed,
)

__all__ = ["Replies", "Reply"]

_SWEEP_S: Final = 0.1
_HELD_UP_S: Final = 0.5
"""A sweep that is as late shows that this process, or its event loop, stood still."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A reply; its `status` is 503 when the subject has no subscribers."""

    payload: bytes
    status: str


class _Waiting(msgspec.Struct, frozen=True):
    future: "asyncio.Future[Reply | None]"
    subject: str
    deadline: float
    parts: list[tuple[bytes, WireHeaders]] | None


class Replies:
    """Pending requests by their reply subject; expired ones are swept.

    nats-py's `publish_async` never completes requests that were pending when a server died, and
    they fill its window for good. Here every future completes: with a reply, or with None.
    """

    def __init__(self, prefix: str = "_INBOX") -> None:
        """`prefix` begins all reply subjects."""
        self.prefix = f"{prefix}.{secrets.token_hex(11)}"
        self._first = f"{self.prefix}."
        self._waiting: dict[str, _Waiting] = {}
        self._next = 0
        self._denied = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0

    @property
    def filter(self) -> str:
        """The subject filter of all replies."""
        return f"{self.prefix}.*"

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self,
        subject: str,
        seconds: float,
        parts: list[tuple[bytes, WireHeaders]] | None = None,
    ) -> "tuple[str, asyncio.Future[Reply | None]]":
        """A reply subject for a request to `subject`, and its reply; None after `seconds`.

        With `parts`, messages are added to it until one with a status arrives, which is the reply.
        The caller passes the reply subject to `forget` in the end. Raises PublishFailed when the
        server has refused the subscription to replies.
        """
        if self._denied:
            raise self._denial()
        loop = asyncio.get_running_loop()
        self._next = number = self._next + 1
        reply_subject = f"{self._first}{number}"
        future: asyncio.Future[Reply | None] = loop.create_future()
        self._waiting[reply_subject] = _Waiting(future, subject, loop.time() + seconds, parts)
        if self._sweeper is None:
            self._sweep_later(loop)
        return reply_subject, future

    def forget(self, reply_subject: str) -> None:
        """Drop a request; unknown subjects are ignored."""
        self._waiting.pop(reply_subject, None)

    def receive(self, subject: str, payload: bytes, headers: WireHeaders) -> None:
        """Handle a message on a reply subject."""
        waiting = self._waiting.get(subject)
        if waiting is None:
            return
        status = "" if headers is NO_WIRE_HEADERS else headers.status
        if waiting.parts is not None and not status:
            waiting.parts.append((payload, headers))
            return
        del self._waiting[subject]
        if not waiting.future.done():
            waiting.future.set_result(Reply(payload, status))

    def give_up(self) -> None:
        """Complete all requests with None: they may be lost, and are retried at once."""
        self._denied = False
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_result(None)
        self._waiting.clear()

    def refuse(self, subject: str) -> None:
        """Fail the requests to `subject` (in lower case): the server denied the permission."""
        for reply_subject, waiting in list(self._waiting.items()):
            if waiting.subject.lower() == subject:
                del self._waiting[reply_subject]
                if not waiting.future.done():
                    waiting.future.set_exception(
                        PublishDenied(
                            f"no permission to publish to {waiting.subject}: the NATS user must "
                            "be granted it",
                            driver=DRIVER,
                        )
                    )

    def deny(self) -> None:
        """Fail all requests: the server denied the subscription to replies."""
        self._denied = True
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(self._denial())
        self._waiting.clear()

    def allow(self) -> None:
        """Accept requests again, because the subscription to replies is about to be resent."""
        self._denied = False

    def _denial(self) -> PublishFailed:
        return PublishFailed(
            f"no permission to subscribe to {self.filter}, where replies arrive: set "
            "NATS_INBOX_PREFIX to the prefix that the NATS user is granted",
            driver=DRIVER,
        )

    def close(self) -> None:
        """Complete all requests with None, and stop the timer."""
        self.give_up()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep_at = loop.time() + _SWEEP_S
        self._sweeper = loop.call_at(self._sweep_at, self._sweep)

    def _sweep(self) -> None:
        """Complete the requests whose time is up.

        The time in which this process stood still does not count: replies that arrived meanwhile
        are read only after this sweep, and the server may have stood still with it.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = now - self._sweep_at
        extra = late if late >= _HELD_UP_S else 0.0
        for reply_subject, waiting in list(self._waiting.items()):
            if waiting.deadline + extra <= now:
                del self._waiting[reply_subject]
                if not waiting.future.done():
                    waiting.future.set_result(None)
            elif extra:
                deadline = waiting.deadline + extra
                self._waiting[reply_subject] = msgspec.structs.replace(waiting, deadline=deadline)
        self._sweeper = None
        if self._waiting:
            self._sweep_later(loop)
