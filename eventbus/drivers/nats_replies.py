"""Answers from NATS: many requests in flight over one inbox, each with an end."""

import asyncio
import secrets
from typing import Final, NamedTuple

from eventbus.drivers.nats_errors import DRIVER
from eventbus.drivers.nats_wire import WireHeaders
from eventbus.errors import PublishDenied, PublishFailed

__all__ = ["ATTEMPT_S", "Replies", "Reply"]

ATTEMPT_S: Final = 2.0
"""How long one attempt waits for its answer; retries follow while the caller has time."""
_SWEEP_S: Final = 0.1


class Reply(NamedTuple):
    """An answer; `status` is 503 when nobody was there to give one."""

    payload: bytes
    status: str


class _Waiting(NamedTuple):
    future: "asyncio.Future[Reply | None]"
    subject: str
    deadline: float
    parts: list[tuple[bytes, WireHeaders]] | None


class Replies:
    """Futures by the last token of their reply subject, swept of those whose time is over.

    nats-py's own `publish_async` never completes what was under way when a server dies, and its
    window stays taken; here each future completes: with a reply, or with None.
    """

    def __init__(self, prefix: str = "_INBOX") -> None:
        """`prefix` is what the reply subjects begin with."""
        self.prefix = f"{prefix}.{secrets.token_hex(11)}"
        self._waiting: dict[str, _Waiting] = {}
        self._next = 0
        self._denied = False
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def filter(self) -> str:
        """What to subscribe to."""
        return f"{self.prefix}.*"

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self,
        subject: str,
        seconds: float,
        parts: list[tuple[bytes, WireHeaders]] | None = None,
    ) -> "tuple[str, asyncio.Future[Reply | None]]":
        """A reply subject for a request to `subject`, and its answer; None after `seconds`.

        With `parts`, messages are added to it until one with a status comes, which is the answer.
        Whoever awaits the future gives the reply subject to `forget` in the end. Raises
        PublishFailed where the server has refused to deliver answers.
        """
        if self._denied:
            raise self._denial()
        loop = asyncio.get_running_loop()
        self._next += 1
        token = str(self._next)
        future: asyncio.Future[Reply | None] = loop.create_future()
        self._waiting[token] = _Waiting(future, subject, loop.time() + seconds, parts)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        return f"{self.prefix}.{token}", future

    def forget(self, reply_subject: str) -> None:
        """Drop what was expected; unknown subjects are ignored."""
        self._waiting.pop(reply_subject.rpartition(".")[2], None)

    def receive(self, subject: str, payload: bytes, headers: WireHeaders) -> None:
        """Take an answer off the wire."""
        token = subject.rpartition(".")[2]
        waiting = self._waiting.get(token)
        if waiting is None:
            return
        if waiting.parts is not None and not headers.status:
            waiting.parts.append((payload, headers))
            return
        del self._waiting[token]
        if not waiting.future.done():
            waiting.future.set_result(Reply(payload, headers.status))

    def give_up(self) -> None:
        """Answer None to all, so that they try again at once: their requests may be lost."""
        self._denied = False
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_result(None)
        self._waiting.clear()

    def refuse(self, subject: str) -> None:
        """Fail the requests to `subject` (in lower case), which the server does not permit."""
        for token, waiting in list(self._waiting.items()):
            if waiting.subject.lower() == subject:
                del self._waiting[token]
                if not waiting.future.done():
                    waiting.future.set_exception(
                        PublishDenied(
                            f"no permission to publish to {waiting.subject}: the NATS user must "
                            "be granted it",
                            driver=DRIVER,
                        )
                    )

    def deny(self) -> None:
        """Fail all: the server does not permit to listen to the answers."""
        self._denied = True
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(self._denial())
        self._waiting.clear()

    def _denial(self) -> PublishFailed:
        return PublishFailed(
            f"no permission to listen to {self.filter}, where answers come: set "
            "NATS_INBOX_PREFIX to the prefix that the NATS user is granted",
            driver=DRIVER,
        )

    def close(self) -> None:
        """Answer None to all, and stop the timer."""
        self.give_up()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for token, waiting in list(self._waiting.items()):
            if waiting.deadline <= now:
                del self._waiting[token]
                if not waiting.future.done():
                    waiting.future.set_result(None)
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep) if self._waiting else None
