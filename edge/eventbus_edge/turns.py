"""Shares each turn of the event loop among the clients that send.

Everything of a node runs in one thread: while the data of some clients is handled, the others wait.
So only a little time of each turn is spent on received data. Clients that have sent more wait for
a later turn, one after another, and meanwhile nothing more is read from their sockets.
"""

import asyncio
import collections
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, TypeVar

__all__ = ["SHARE_S", "S_PER_BYTE", "TURN_S", "Turns"]


T = TypeVar("T")

TURN_S: Final = 0.001
"""How much time of a turn is spent on data that clients have sent. A message for a client may need
four turns, from the socket of the bus to the client's.
"""
SHARE_S: Final = 0.0005
"""How much of that one client may use before the next one is served."""
S_PER_BYTE: Final = 0.2e-9
"""What it takes to read data from a socket: 0.05 ms for the 256 KiB that are read at once."""


class Turns:
    """Serves clients at once while a turn has time left, and later in the order of their arrival.

    A client is a function that handles a part of what it has sent, in at most about SHARE_S.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._waiting: collections.deque[Callable[[], object]] = collections.deque()
        self._left = TURN_S
        self._is_scheduled = False

    def __len__(self) -> int:
        """The number of clients that wait."""
        return len(self._waiting)

    @property
    def has_time(self) -> bool:
        """Whether a client may be served at once."""
        return self._left > 0 and not self._waiting

    def serve(self, client: Callable[[], object]) -> None:
        """Serve a client at once."""
        self._schedule()
        self._run(client)

    def wait(self, client: Callable[[], object]) -> None:
        """Serve a client in a later turn."""
        self._schedule()
        self._waiting.append(client)

    def count_read(self, size: int, s_per_byte: float = S_PER_BYTE) -> None:
        """Count what it takes to read so many bytes, at once or before a turn can prevent it."""
        self._left -= size * s_per_byte

    async def enter(self, cost: float = SHARE_S) -> None:
        """Wait until a turn has time left, and use `cost` seconds of it, which may be an estimate.

        For work that is done once, such as a handshake: a crowd of clients that come at once is
        spread over many turns.
        """
        if self.has_time:
            self._schedule()
            self._left -= cost
        else:
            await self.pause(cost)

    async def pause(self, cost: float = SHARE_S) -> None:
        """Wait for a later turn, in which the caller may go on for about `cost` seconds."""
        turn = asyncio.get_running_loop().create_future()

        def come() -> None:
            self._left -= cost
            if not turn.done():  # the caller was cancelled
                turn.set_result(None)

        self.wait(come)
        await turn

    async def paced(self, items: Iterable[T]) -> AsyncIterator[T]:
        """Iterate, and pause after each SHARE_S."""
        end = self.clock() + SHARE_S
        for item in items:
            yield item
            if self.clock() >= end:
                await self.pause()
                end = self.clock() + SHARE_S

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Begin a turn with those that wait."""
        self._is_scheduled = False
        self._left = TURN_S
        if self._waiting:
            self._schedule()
        for _ in range(len(self._waiting)):  # each client once
            if self._left <= 0:
                break
            self._run(self._waiting.popleft())

    def _run(self, client: Callable[[], object]) -> None:
        begin = self.clock()
        try:
            client()
        finally:
            self._left -= self.clock() - begin
