"""Which new connections and requests a node accepts: limits on number, rate and memory."""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import (
    Callable,
    Iterator,
    Mapping,
)
from pathlib import Path
from typing import (
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
)

from eventbus.errors import ConfigError
from eventbus_edge.access.addresses import (
    ClientAddresses,
    group,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.problem import (
    Problem,
    retry_after,
)

__all__ = [
    "MAX_KEYS",
    "Admission",
    "Full",
    "Paces",
    "Place",
    "PlaceLimits",
    "Places",
    "TokenBucket",
    "resident_bytes",
]


_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """The size of the resident set, from proc(5); None on systems without it.

    `resource.getrusage` is not a substitute: it reports the peak, which never sinks.
    """
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


Limit: TypeAlias = Literal["connections", "address", "user"]


MAX_KEYS: Final = 100_000
"""Channels, addresses or members whose rate is limited, about 200 bytes per key."""


class TokenBucket:
    """Allows `rate` tokens per second, and `burst` at once after a rest."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._at = now

    def take(self, now: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens; False if there were not enough.

        A cost above `burst` needs a full bucket, and leaves a debt.
        """
        self._fill(now)
        if self._tokens < min(cost, self._burst):
            return False
        self._tokens -= cost
        return True

    def charge(self, now: float, cost: float) -> None:
        """Take `cost` tokens for work that is done already, even if that leaves a debt."""
        self._fill(now)
        self._tokens = min(self._burst, self._tokens - cost)

    def debt_s(self, now: float) -> float:
        """Seconds until the debt is paid; 0 without a debt."""
        self._fill(now)
        return max(-self._tokens, 0.0) / self._rate

    def is_full(self, now: float) -> bool:
        """Whether the bucket is full: then it need not be kept."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(now - self._at, 0.0) * self._rate)
        self._at = max(now, self._at)


class Paces:
    """A bucket per key; full buckets are dropped."""

    def __init__(self, rate: float, burst: float, most_keys: int = MAX_KEYS) -> None:
        """Beyond `most_keys`, the oldest key is dropped before its bucket is full."""
        self.overflows = 0
        """How often that happened."""
        self._rate = rate
        self._burst = burst
        self._most_keys = most_keys
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens of `key`; False if there were not enough."""
        return self._bucket(key, now).take(now, cost)

    def charge(self, key: str, now: float, cost: float) -> None:
        """Take tokens for work that is done already; a negative cost returns tokens."""
        self._bucket(key, now).charge(now, cost)

    def debt_s(self, key: str, now: float) -> float:
        """Seconds until the debt of `key` is paid; 0 without a debt."""
        bucket = self._buckets.get(key)
        return 0.0 if bucket is None else bucket.debt_s(now)

    def take_overflows(self) -> int:
        """How often a key was dropped too early since the last call."""
        overflows, self.overflows = self.overflows, 0
        return overflows

    def _bucket(self, key: str, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most_keys:
                self.overflows += 1
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
        return bucket

    def sweep(self, now: float) -> None:
        """Drop the keys with a full bucket. Call it regularly: it frees memory."""
        rested = [key for key, bucket in self._buckets.items() if bucket.is_full(now)]
        for key in rested:
            del self._buckets[key]


class Full(Exception):
    """A limit on connections is reached."""

    def __init__(self, limit: Limit, message: str) -> None:
        super().__init__(message)
        self.limit: Limit = limit


class PlaceLimits(NamedTuple):
    """The limits on connections; the defaults are documented with the wire protocol."""

    connections: int = 50_000
    per_address: int = 1_000
    per_user: int = 100


class Places:
    """Counts connections: all, per address and per user."""

    def __init__(self, limits: PlaceLimits) -> None:
        self._limits = limits
        self._total = 0
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._total

    def enter(self, address: str) -> "Place":
        """Count one more connection, until its place is left. Raises Full."""
        limits = self._limits
        if self._total >= limits.connections:
            raise Full(
                "connections", f"this node holds {limits.connections} connections, its limit"
            )
        if self._addresses[address] >= limits.per_address:
            raise Full(
                "address",
                f"{address} has {limits.per_address} connections, the limit for an address",
            )
        self._total += 1
        self._addresses[address] += 1
        return Place(self, address)

    def _claim(self, user_id: str) -> None:
        if self._users[user_id] >= self._limits.per_user:
            raise Full(
                "user", f"this user has {self._limits.per_user} connections, the limit for a user"
            )
        self._users[user_id] += 1

    def _leave(self, address: str, user_id: str | None) -> None:
        self._total -= 1
        _drop(self._addresses, address)
        if user_id is not None:
            _drop(self._users, user_id)


class Place:
    """One counted connection, from its handshake to its end."""

    __slots__ = ("_places", "_user_id", "address", "is_left")

    def __init__(self, places: Places, address: str) -> None:
        self.address = address
        self.is_left = False
        self._places = places
        self._user_id: str | None = None

    def claim(self, user_id: str) -> None:
        """Count the connection for its user, once. Raises Full."""
        if self._user_id is None:
            self._places._claim(user_id)  # noqa: SLF001 - a place is a part of its places
            self._user_id = user_id

    def leave(self) -> None:
        """Stop counting the connection. Does nothing the second time."""
        if not self.is_left:
            self.is_left = True
            self._places._leave(self.address, self._user_id)  # noqa: SLF001 - as above


def _drop(counts: Counter[str], key: str) -> None:
    """Count one less, and drop a key at zero."""
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


_log = logging.getLogger(__name__)

_COME_AGAIN_S: Final = 10.0
_REQUESTS_SAVED_S: Final = 20.0
_HISTORY_SAVED_S: Final = 10.0
_JOINS_SAVED_S: Final = 10.0
"""How many seconds of a rate may be used at once after a rest."""
_PRICE_OF_A_CHANNEL: Final = 0.1
"""The cost of each channel in a handshake, in requests."""
_SWEEP_S: Final = 5.0


class Admission:
    """Enforces the limits of the node, per address, per user and per channel."""

    def __init__(
        self,
        settings: EdgeSettings,
        metrics: Metrics,
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_behind`: whether too much is unsent to accept connections. Raises ConfigError."""
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
        # All connections of an address may reconnect at once, with something to spare.
        burst = max(_REQUESTS_SAVED_S * rate, 2.0 * settings.max_connections_per_address)
        self._requests = Paces(rate, burst)
        rate = settings.max_history_per_address
        self._history = Paces(rate, max(_HISTORY_SAVED_S * rate, 1.0))
        self._is_behind = is_behind
        self._sockets: Counter[str] = Counter()
        # Sockets beyond those of connections: requests in progress, and silent sockets.
        self._max_sockets = 2 * settings.max_connections_per_address
        self._addresses = ClientAddresses(settings.trusted_proxies, settings.forwarded_header)
        self._max_memory = settings.max_memory
        self._metrics = metrics
        self._memory = 0
        self._swept = 0.0
        if self._max_memory and resident_bytes() is None:
            raise ConfigError(
                f"BROADCAST_MAX_MEMORY={self._max_memory}: this system does not report the memory "
                "of a process (it has no /proc); allowed here: 0",
                variable="BROADCAST_MAX_MEMORY",
            )
        self.look(time.monotonic())

    def opened(self, peer: str) -> bool:
        """Count a new socket of an address, silent or not; False if it has too many already."""
        if self._addresses.is_proxy(peer):
            return True
        key = group(peer)
        if self._sockets[key] >= self._max_sockets:
            return self._reached("sockets")
        self._sockets[key] += 1
        return True

    def ended(self, peer: str) -> None:
        """A counted socket has ended."""
        key = group(peer)
        self._sockets[key] -= 1
        if self._sockets[key] <= 0:
            del self._sockets[key]

    @contextlib.contextmanager
    def arrival(self, peer: str | None, headers: Mapping[str, str]) -> Iterator[Place]:
        """Count one more connection, from its handshake to its end. Raises Problem."""
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
        """Whether too much is unsent to the node's clients to accept more work."""
        return self._is_behind() and not self._reached("unsent")

    def claim(self, place: Place, user_id: str) -> None:
        """Count a connection for its user. Raises Full."""
        try:
            place.claim(user_id)
        except Full as exc:
            self._metrics.limits_reached.labels(exc.limit).inc()
            raise

    def claim_early(self, place: Place, user_id: str) -> None:
        """The same during the handshake. Raises Problem."""
        try:
            place.claim(user_id)
        except Full as exc:
            raise self._too_many(exc) from None

    def may_whisper(self, channel: str) -> bool:
        """Whether the channel may have one more client event now."""
        return self._whispers.take(channel, time.monotonic()) or self._reached("whispers")

    def may_update(self, channel: str) -> bool:
        """Whether the channel may have one more change of a member's info, sent to all members."""
        return self._whispers.take(channel, time.monotonic()) or self._reached("presence")

    def may_join(self, channel: str, token: str) -> bool:
        """Whether a user, by its token in presence keys, may become a member again now."""
        return self._joins.take(f"{channel} {token}", time.monotonic()) or self._reached("joins")

    def request(self, peer: str | None, headers: Mapping[str, str], kind: str = "") -> str:
        """Count a request of an address; each `kind` is counted separately.

        Returns the key of the count. Raises Problem.
        """
        key = kind + group(self._addresses.of(peer, headers))
        now = time.monotonic()
        if not self._requests.take(key, now):
            self._reached("requests")
            raise Problem("rate_limited", "too many requests", headers=retry_after(1))
        return key

    def charge_requests(self, key: str, cost: float) -> None:
        """Count further cost of a request; a negative cost is returned to the address."""
        self._requests.charge(key, time.monotonic(), cost)

    def charge_channels(self, address: str, count: int) -> None:
        """Count the channels of a handshake."""
        self.charge_requests(address, _PRICE_OF_A_CHANNEL * count)

    def history_debt_s(self, address: str) -> float:
        """Seconds until stored messages may be read for an address; 0 if they may be now."""
        debt_s = self._history.debt_s(address, time.monotonic())
        if debt_s:
            self._reached("history")
        return debt_s

    def charge_history(self, address: str, messages: int) -> None:
        """Count stored messages that were read; an empty read costs as much as one message."""
        self._history.charge(address, time.monotonic(), max(messages, 1))

    def look(self, now: float) -> None:
        """Measure memory, and drop full buckets. Call it regularly."""
        if (memory := resident_bytes()) is not None:
            self._memory = memory
            self._metrics.memory.set(memory)
        if now - self._swept >= _SWEEP_S:
            self._swept = now
            for name, paces in self._paces.items():
                paces.sweep(now)
                if overflows := paces.take_overflows():
                    _log.warning(
                        "%d %s were forgotten too early: their limit did not hold for them",
                        overflows,
                        name,
                    )

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
