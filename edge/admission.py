"""Who is let in at the door: a place for each connection, while there are places and memory."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

from edge.addresses import ClientAddresses, group
from edge.config import EdgeSettings
from edge.limits import Full, Paces, Place, PlaceLimits, Places
from edge.memory import resident_bytes
from edge.metrics import Metrics
from edge.problem import Problem, retry_after
from eventbus.errors import ConfigError

__all__ = ["Admission"]

_log = logging.getLogger(__name__)

_COME_AGAIN_S: Final = 10.0
_REQUESTS_SAVED_S: Final = 20.0
_HISTORY_SAVED_S: Final = 10.0
_JOINS_SAVED_S: Final = 10.0
"""How many seconds' worth may be used at once after a rest."""
_PRICE_OF_A_CHANNEL: Final = 0.1
"""Of each channel that a handshake names, in requests."""
_SWEEP_S: Final = 5.0


class Admission:
    """Keeps what the node allows in all, and to each address, user and channel."""

    def __init__(
        self,
        settings: EdgeSettings,
        metrics: Metrics,
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_behind` tells whether too much is unsent to take anybody else. Raises ConfigError."""
        self.places = Places(
            PlaceLimits(
                settings.max_connections,
                settings.max_connections_per_address,
                settings.max_connections_per_user,
            )
        )
        rate = settings.max_whispers_per_channel
        self._whispers = Paces(rate, max(rate, 1.0))
        rate = settings.max_joins_per_member
        self._joins = Paces(rate, max(_JOINS_SAVED_S * rate, 1.0))
        rate = settings.max_requests_per_address
        # All connections of an address may come back at once, with something to spare.
        burst = max(_REQUESTS_SAVED_S * rate, 2.0 * settings.max_connections_per_address)
        self._requests = Paces(rate, burst)
        rate = settings.max_history_per_address
        self._history = Paces(rate, max(_HISTORY_SAVED_S * rate, 1.0))
        self._is_behind = is_behind
        self._sockets: Counter[str] = Counter()
        # What else than connections of clients there may be: requests, and sockets that are silent.
        self._max_sockets = 2 * settings.max_connections_per_address
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

    def opened(self, peer: str) -> bool:
        """Count a socket of an address, silent ones too; False when it has too many already."""
        if self._addresses.is_proxy(peer):
            return True
        key = group(peer)
        if self._sockets[key] >= self._max_sockets:
            return self._reached("sockets")
        self._sockets[key] += 1
        return True

    def ended(self, peer: str) -> None:
        """A socket that was counted has ended."""
        key = group(peer)
        self._sockets[key] -= 1
        if self._sockets[key] <= 0:
            del self._sockets[key]

    @contextlib.contextmanager
    def arrival(self, peer: str | None, headers: Mapping[str, str]) -> Iterator[Place]:
        """Keep a place for one more connection, from its handshake to its end. Raises Problem."""
        if self.is_behind():
            message = "too much waits for this node's slow clients"
            raise Problem("unavailable", message, headers=retry_after(_COME_AGAIN_S))
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

    def is_behind(self) -> bool:
        """Whether too much waits for the node's clients to take on anything more."""
        return self._is_behind() and not self._reached("unsent")

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
        return self._whispers.take(channel, time.monotonic()) or self._reached("whispers")

    def may_update(self, channel: str) -> bool:
        """Whether it takes one more change of a member's info, which all members are sent too."""
        return self._whispers.take(channel, time.monotonic()) or self._reached("presence")

    def may_join(self, channel: str, token: str) -> bool:
        """Whether a user, by the token in presence keys, may become a member once more."""
        return self._joins.take(f"{channel} {token}", time.monotonic()) or self._reached("joins")

    def request(self, peer: str | None, headers: Mapping[str, str], kind: str = "") -> str:
        """Count a request of an address; requests of another `kind` are counted apart.

        Gives the key under which they are counted. Raises Problem.
        """
        key = kind + group(self._addresses.of(peer, headers))
        now = time.monotonic()
        if not self._requests.take(key, now):
            self._reached("requests")
            raise Problem("rate_limited", "too many requests", headers=retry_after(1))
        return key

    def charge_requests(self, key: str, cost: float) -> None:
        """Count what a request has cost beyond its price; a negative cost is given back."""
        self._requests.charge(key, time.monotonic(), cost)

    def charge_channels(self, address: str, count: int) -> None:
        """Count the channels that a handshake has named."""
        self.charge_requests(address, _PRICE_OF_A_CHANNEL * count)

    def history_debt_s(self, address: str) -> float:
        """For how long no more stored messages are read for an address; 0: they are."""
        debt_s = self._history.debt_s(address, time.monotonic())
        if debt_s:
            self._reached("history")
        return debt_s

    def charge_history(self, address: str, messages: int) -> None:
        """Count stored messages that were read; a read without any costs as much as one."""
        self._history.charge(address, time.monotonic(), max(messages, 1))

    def look(self, now: float) -> None:
        """Measure, and forget what has rested. Call it now and then."""
        if (memory := resident_bytes()) is not None:
            self._memory = memory
            self._metrics.memory.set(memory)
        if now - self._swept >= _SWEEP_S:
            self._swept = now
            for name, paces in self._paces.items():
                paces.sweep(now)
                if paces.overflows:
                    _log.warning(
                        "%d %s were forgotten too early: their limit did not hold for them",
                        paces.overflows,
                        name,
                    )
                    paces.overflows = 0

    @property
    def _paces(self) -> Mapping[str, Paces]:
        return {
            "channels of client events": self._whispers,
            "members": self._joins,
            "addresses with requests": self._requests,
            "addresses with history": self._history,
        }

    def _reached(self, limit: str) -> Literal[False]:
        self._metrics.limits_reached.labels(limit).inc()
        return False

    def _too_many(self, exc: Full) -> Problem:
        self._metrics.limits_reached.labels(exc.limit).inc()
        again = retry_after(_COME_AGAIN_S)
        return Problem("limit_exceeded", str(exc), status=429, headers=again)
