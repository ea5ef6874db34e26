"""A node's clock: ticks each connection when it is due, and the node a few times a second."""

import asyncio
import logging
import time
from collections.abc import (
    Callable,
    Mapping,
)
from typing import (
    Final,
    Protocol,
)

from eventbus.pacing import paced
from eventbus.tasks import Tasks
from eventbus.user_code import guarded
from eventbus_edge.deadlines import Deadlines
from eventbus_edge.protocols import CloseReason
from eventbus_edge.sessions.session import Session

__all__ = ["Clock", "Timed"]


_log = logging.getLogger(__name__)

_TURN_S: Final = 0.25


class Timed(Protocol):
    """What the clock uses of a connection."""

    id: str
    session: Session
    is_closing: bool

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The logger for the connection."""

    def tick(self, now: float) -> None:
        """Do what is due."""

    def close(self, reason: CloseReason, text: str) -> None:
        """Begin to close the connection."""


class Clock:
    """One timer for all connections of a node."""

    def __init__(
        self,
        connections: Mapping[str, Timed],
        *,
        heartbeat_s: float,
        on_turn: Callable[[float], None],
        on_lag: Callable[[float], None],
    ) -> None:
        """`on_turn` gets the time, a few times a second, before the connections are ticked.

        `on_lag` gets how late each turn was, in seconds.
        """
        self._connections = connections
        self._turn_s = min(_TURN_S, heartbeat_s / 4)
        self._on_turn = on_turn
        self._on_lag = on_lag
        self._deadlines = Deadlines()
        self._due: dict[str, float] = {}
        self._tasks = Tasks()

    def start(self) -> None:
        """Start the timer."""
        self._tasks.keep(self._run, "the node's clock")

    async def aclose(self) -> None:
        """Stop the timer."""
        await self._tasks.aclose()

    def expect(self, connection: Timed) -> None:
        """Make sure that the connection is ticked in time.

        A deadline mostly moves further away. Then the earlier one stays set: a tick too early does
        nothing.
        """
        due = connection.session.time.deadline()
        if not connection.is_closing and due < self._due.get(connection.id, float("inf")):
            self._due[connection.id] = due
            self._deadlines.set(connection.id, due)

    def forget(self, connection: Timed) -> None:
        """The connection has ended: never tick it again."""
        self._deadlines.cancel(connection.id)
        self._due.pop(connection.id, None)

    async def _run(self) -> None:
        while True:
            now = time.monotonic()
            try:
                with guarded():
                    self._on_turn(now)
            except Exception:  # noqa: BLE001 - without a clock, dead connections would stay
                _log.exception("a turn of the node's clock failed")
            async for connection_id in paced(self._deadlines.due(now)):
                self._tick(connection_id, now)
            await asyncio.sleep(self._turn_s)
            self._on_lag(max(0.0, time.monotonic() - now - self._turn_s))

    def _tick(self, connection_id: str, now: float) -> None:
        # A method of its own: the variables of `_run` would keep the last connection alive.
        self._due.pop(connection_id, None)
        connection = self._connections.get(connection_id)
        if connection is None or connection.is_closing:
            return
        try:
            with guarded():
                connection.tick(now)
                self.expect(connection)
        except Exception:
            connection.log.exception("its clock failed")
            connection.close(CloseReason.INTERNAL_ERROR, "an internal error")
