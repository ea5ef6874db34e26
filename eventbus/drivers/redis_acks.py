"""Waiting until replicas have what was written, on a connection of its own.

WAIT blocks the connection that sends it. It waits for all that the server had written when that
connection's last command before it was carried out, whoever wrote it: a PING just before WAIT makes
that everything up to now. One round serves all who wait for it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from eventbus.drivers.redis_errors import DRIVER, mapped
from eventbus.drivers.redis_link import CommandLink
from eventbus.drivers.redis_target import Address, Target
from eventbus.errors import ConnectionFailed

__all__ = ["Acks"]

WAIT_MS: Final = 1000


class Acks:
    """The acknowledgements of one server's replicas."""

    def __init__(self, target: Target, address: Address, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called when the connection ends by itself."""
        self._replicas = target.wait_replicas
        self._address = address
        self._link = CommandLink(target.connection(address), str(address), on_lost)
        self._next: asyncio.Future[int] | None = None
        self._rounds: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection serves."""
        return self._link.is_open

    @property
    def error(self) -> ConnectionFailed | None:
        """Why the connection is lost, once it is."""
        return self._link.error

    async def open(self) -> None:
        """Connect. Raises ConnectionFailed."""
        await self._link.open()

    async def wait(self) -> None:
        """Wait for what was written before this call.

        Raises ConnectionFailed where fewer replicas than asked for have it within a second.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if self._rounds is None or self._rounds.done():
                self._rounds = asyncio.create_task(self._run())
        with mapped(f"waiting for replicas of Redis at {self._address}"):
            count = await asyncio.shield(self._next)
        if count < self._replicas:
            raise ConnectionFailed(
                f"{count} replicas of Redis at {self._address} have the message, and "
                f"BROADCAST_REDIS_WAIT_REPLICAS asks for {self._replicas}",
                driver=DRIVER,
            )

    async def _run(self) -> None:
        while self._next is not None:
            waiting, self._next = self._next, None
            try:
                self._link.call("PING").add_done_callback(_retrieve)
                waiting.set_result(await self._link.call("WAIT", self._replicas, WAIT_MS))
            except Exception as exc:  # noqa: BLE001 - it is raised by those who wait
                waiting.set_exception(exc)
                waiting.exception()  # they may have gone

    async def aclose(self) -> None:
        """Let go; those who wait get ConnectionFailed."""
        await self._link.aclose()
        if self._rounds is not None:
            await asyncio.gather(self._rounds, return_exceptions=True)


def _retrieve(answer: "asyncio.Future[object]") -> None:
    """The answer to PING is of no interest, its error is WAIT's as well."""
    if not answer.cancelled():
        answer.exception()
