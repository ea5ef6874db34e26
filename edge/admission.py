"""Who is let in at the door: a place for each connection, while there are places and memory."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Final

from edge.addresses import ClientAddresses, group
from edge.config import EdgeSettings
from edge.limits import Full, Paces, Place, PlaceLimits, Places
from edge.memory import resident_bytes
from edge.metrics import Metrics
from edge.problem import Problem, retry_after
from eventbus.errors import ConfigError

__all__ = ["Admission"]

_COME_AGAIN_S: Final = 10.0
_SWEEP_S: Final = 5.0


class Admission:
    """Keeps what the node allows in all, and to each address, user and channel."""

    def __init__(self, settings: EdgeSettings, metrics: Metrics) -> None:
        """Raises ConfigError."""
        self.places = Places(
            PlaceLimits(
                settings.max_connections,
                settings.max_connections_per_address,
                settings.max_connections_per_user,
            )
        )
        rate = settings.max_whispers_per_channel
        self._whispers = Paces(rate, max(rate, 1.0))
        self._addresses = ClientAddresses(settings.trusted_proxies, settings.forwarded_header)
        self._max_memory = settings.max_memory
        self._metrics = metrics
        self._memory = 0
        self._swept = 0.0
        if self._max_memory and resident_bytes() is None:
            raise ConfigError(
                f"BROADCAST_MAX_MEMORY={self._max_memory}: this system does not tell the memory of "
                "a process (it has no /proc); allowed here: 0",
                variable="BROADCAST_MAX_MEMORY",
            )
        self.look(time.monotonic())

    @contextlib.contextmanager
    def arrival(self, peer: str | None, headers: Mapping[str, str]) -> Iterator[Place]:
        """Keep a place for one more connection, from its handshake to its end. Raises Problem."""
        if self._max_memory and self._memory >= self._max_memory:
            self._metrics.limits_reached.labels("memory").inc()
            message = f"this node has {self._max_memory} bytes of memory in use, its limit"
            raise Problem("unavailable", message, headers=retry_after(_COME_AGAIN_S))
        try:
            place = self.places.enter(group(self._addresses.of(peer, headers)))
        except Full as exc:
            raise self._too_many(exc) from None
        try:
            yield place
        finally:
            place.leave()

    def claim(self, place: Place, user_id: str) -> None:
        """Count a connection as its user's. Raises Full."""
        try:
            place.claim(user_id)
        except Full as exc:
            self._metrics.limits_reached.labels(exc.limit).inc()
            raise

    def claim_early(self, place: Place, user_id: str) -> None:
        """The same, before the connection is there. Raises Problem."""
        try:
            place.claim(user_id)
        except Full as exc:
            raise self._too_many(exc) from None

    def may_whisper(self, channel: str) -> bool:
        """Whether the node takes one more client event for the channel."""
        if self._whispers.take(channel, time.monotonic()):
            return True
        self._metrics.limits_reached.labels("whispers").inc()
        return False

    def look(self, now: float) -> None:
        """Measure, and forget what has rested. Call it now and then."""
        if (memory := resident_bytes()) is not None:
            self._memory = memory
            self._metrics.memory.set(memory)
        if now - self._swept >= _SWEEP_S:
            self._swept = now
            self._whispers.sweep(now)

    def _too_many(self, exc: Full) -> Problem:
        self._metrics.limits_reached.labels(exc.limit).inc()
        again = retry_after(_COME_AGAIN_S)
        return Problem("limit_exceeded", str(exc), status=429, headers=again)
