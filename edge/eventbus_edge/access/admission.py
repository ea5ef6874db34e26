"""Which new connections and requests a node accepts: limits on number, rate and memory."""

import logging
import os
import time
from collections import Counter
from collections.abc import (
    Callable,
    Mapping,
)
from pathlib import Path
from typing import (
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
)

from eventbus.errors import ConfigError
from eventbus_edge.access.addresses import (
    ClientAddresses,
    group,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics import Metrics
from eventbus_edge.problem import (
    Problem,
    retry_after,
)

__all__ = [
    "MAX_KEYS",
    "PRICE_OF_A_CHANNEL",
    "Admission",
    "ConnectionLimitReached",
    "Paces",
    "Slot",
    "SlotLimits",
    "Slots",
    "TokenBucket",
    "resident_bytes",
]


_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """The size of the resident set, from proc(5); None on systems without it.

    `resource.getrusage` is not a substitute: it reports the peak, which never falls.
    """
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


Limit: TypeAlias = Literal["connections", "process", "address", "user"]


MAX_KEYS: Final = 100_000
_SWEEP_KEYS: Final = 5000
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
        if self._tokens < cost and self._tokens < self._burst:
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
        passed = now - self._at
        if passed > 0.0:  # the hot path: comparing is faster than max and min
            tokens = self._tokens + passed * self._rate
            self._tokens = min(self._burst, tokens)
            self._at = now


class Paces:
    """A bucket per key; full buckets are dropped."""

    def __init__(self, rate: float, burst: float, most_keys: int = MAX_KEYS) -> None:
        """Beyond `most_keys`, the oldest key is dropped before its bucket is full."""
        self.overflows = 0
        """How often that happened."""
        self.rate = rate
        """Tokens that a bucket gets per second."""
        self._burst = burst
        self._most_keys = most_keys
        self._buckets: dict[str, TokenBucket] = {}
        self._unswept: list[str] = []

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
            bucket = self._buckets[key] = TokenBucket(self.rate, self._burst, now)
        return bucket

    def sweep(self, now: float) -> None:
        """Drop keys with a full bucket. Call it regularly: it frees memory.

        A call looks at some keys only, so that it takes a few milliseconds at most.
        """
        if not self._unswept:
            self._unswept = list(self._buckets)
        looked_at = self._unswept[-_SWEEP_KEYS:]
        del self._unswept[-_SWEEP_KEYS:]
        for key in looked_at:
            bucket = self._buckets.get(key)
            if bucket is not None and bucket.is_full(now):
                del self._buckets[key]


class ConnectionLimitReached(Exception):
    """A limit on connections is reached."""

    def __init__(self, limit: Limit, message: str) -> None:
        super().__init__(message)
        self.limit: Limit = limit


class SlotLimits(NamedTuple):
    """The limits on connections; the defaults are documented with the wire protocol."""

    connections: int = 50_000
    per_address: int = 1_000
    per_user: int = 100


class Slots:
    """Counts connections: all, per address and per user."""

    def __init__(self, limits: SlotLimits, within: "Slots | None" = None) -> None:
        """`within` is the slots of the whole process, in which each connection counts too."""
        self._limits = limits
        self._within = within
        self._total = 0
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._total

    def enter(self, address: str) -> "Slot":
        """Count one more connection, until its slot is released. Raises ConnectionLimitReached."""
        limits = self._limits
        if self._total >= limits.connections:
            raise ConnectionLimitReached(
                "connections",
                f"this node has {limits.connections} connections: it allows no more "
                f"({self._named('max_connections')})",
            )
        if self._addresses[address] >= limits.per_address:
            raise ConnectionLimitReached(
                "address",
                f"{address} has {limits.per_address} connections: this node allows no more "
                "per address (BROADCAST_MAX_CONNECTIONS_PER_ADDRESS)",
            )
        outer = None if self._within is None else self._enter_process(self._within, address)
        self._total += 1
        self._addresses[address] += 1
        return Slot(self, address, outer)

    def _named(self, limit: str) -> str:
        """The setting of a limit, as errors name it."""
        return f"BROADCAST_{limit.upper()}" if self._within is None else f"{limit} of the app"

    def _enter_process(self, process: "Slots", address: str) -> "Slot":
        try:
            return process.enter(address)
        except ConnectionLimitReached as exc:
            limit: Limit = "process" if exc.limit == "connections" else exc.limit
            raise ConnectionLimitReached(limit, str(exc)) from None

    def _claim(self, user_id: str) -> None:
        if self._users[user_id] >= self._limits.per_user:
            raise ConnectionLimitReached(
                "user",
                f"this user has {self._limits.per_user} connections: this node allows no more per "
                f"user ({self._named('max_connections_per_user')})",
            )
        self._users[user_id] += 1

    def _release(self, address: str, user_id: str | None) -> None:
        self._total -= 1
        _drop(self._addresses, address)
        if user_id is not None:
            _drop(self._users, user_id)


class Slot:
    """One counted connection, from its handshake to its end."""

    __slots__ = ("_outer", "_slots", "_user_id", "address", "is_released")

    def __init__(self, slots: Slots, address: str, outer: "Slot | None") -> None:
        """`outer` is its slot in the whole process; None if `slots` already counts all of it."""
        self.address = address
        self._outer = outer
        self.is_released = False
        self._slots = slots
        self._user_id: str | None = None

    def claim(self, user_id: str) -> None:
        """Count the connection for its user, once. Raises ConnectionLimitReached."""
        if self._user_id is None:
            self._slots._claim(user_id)  # noqa: SLF001 - a slot is a part of its slots
            self._user_id = user_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Stop counting the connection. Does nothing the second time."""
        if not self.is_released:
            self.is_released = True
            self._slots._release(self.address, self._user_id)  # noqa: SLF001 - as above
            if self._outer is not None:
                self._outer.release()


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
PRICE_OF_A_CHANNEL: Final = 0.1
"""The cost of each channel in a handshake, or that is signed for a user, in requests."""
_REPORT_S: Final = 5.0


class ByAddress(NamedTuple):
    """The rates per address, which all nodes of a process share."""

    requests: Paces
    history: Paces


def _by_address(settings: EdgeSettings) -> ByAddress:
    rate = settings.max_requests_per_address
    # All connections of an address may reconnect at once, with something to spare.
    burst = max(_REQUESTS_SAVED_S * rate, 2.0 * settings.max_connections_per_address)
    requests = Paces(rate, burst)
    rate = settings.max_history_per_address
    return ByAddress(requests, Paces(rate, max(_HISTORY_SAVED_S * rate, 1.0)))


class Admission:
    """Enforces the limits of the node, per address, per user and per channel."""

    def __init__(
        self,
        settings: EdgeSettings,
        metrics: Metrics,
        is_behind: Callable[[], bool] = lambda: False,
        *,
        within: "Admission | None" = None,
    ) -> None:
        """`is_behind`: whether too much is unsent to accept connections.

        `within` enforces the limits of the whole process: the number of its connections, and the
        limits per address. Raises ConfigError.
        """
        self.slots: Slots = Slots(
            SlotLimits(
                settings.max_connections,
                settings.max_connections_per_address,
                settings.max_connections_per_user,
            ),
            None if within is None else within.slots,
        )
        rate = settings.max_whispers_per_channel
        self._whispers = Paces(rate, max(rate, 1.0))
        rate = settings.max_joins_per_member
        self._joins = Paces(rate, max(_JOINS_SAVED_S * rate, 1.0))
        self.by_address: ByAddress = _by_address(settings) if within is None else within.by_address
        self._requests, self._history = self.by_address
        self._is_behind = is_behind
        self._sockets: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()
        # Sockets beyond those of connections: requests in progress, and silent sockets.
        self._max_sockets = 2 * settings.max_connections_per_address
        self._addresses = ClientAddresses(settings.trusted_proxies, settings.forwarded_header)
        self._max_memory = settings.max_memory
        self._metrics = metrics
        self._memory = 0
        self._reported = 0.0
        if self._max_memory and resident_bytes() is None:
            raise ConfigError(
                f"BROADCAST_MAX_MEMORY={self._max_memory}: this system does not report the memory "
                "of a process (it has no /proc); allowed here: 0",
                variable="BROADCAST_MAX_MEMORY",
            )
        self.measure(time.monotonic())

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
        _drop(self._sockets, group(peer))

    def begin_handshake(self, peer: str) -> bool:
        """Count a TLS handshake of an address; False if it has too many sockets already."""
        if self._addresses.is_proxy(peer):
            return True
        key = group(peer)
        if self._sockets[key] + self._handshakes[key] >= self._max_sockets:
            return self._reached("sockets")
        self._handshakes[key] += 1
        return True

    def end_handshake(self, peer: str) -> None:
        """A counted handshake is complete, or has failed."""
        _drop(self._handshakes, group(peer))

    def arrive(self, peer: str | None, headers: Mapping[str, str]) -> Slot:
        """Count one more connection, until its slot is released. Raises Problem."""
        if self.is_behind():
            message = "too much data waits for this node's slow clients"
            raise Problem("unavailable", message, headers=retry_after(_COME_AGAIN_S))
        if self._max_memory and self._memory >= self._max_memory:
            self._metrics.limits_reached.labels("memory").inc()
            message = f"this node has {self._max_memory} bytes of memory in use, its limit"
            raise Problem("unavailable", message, headers=retry_after(_COME_AGAIN_S))
        try:
            return self.slots.enter(group(self._addresses.of(peer, headers)))
        except ConnectionLimitReached as exc:
            raise self._too_many(exc) from None

    def is_behind(self) -> bool:
        """Whether too much is unsent to the node's clients to accept more work."""
        return self._is_behind() and not self._reached("unsent")

    def claim(self, slot: Slot, user_id: str) -> None:
        """Count a connection for its user. Raises ConnectionLimitReached."""
        try:
            slot.claim(user_id)
        except ConnectionLimitReached as exc:
            self._metrics.limits_reached.labels(exc.limit).inc()
            raise

    def claim_early(self, slot: Slot, user_id: str) -> None:
        """The same during the handshake. Raises Problem."""
        try:
            slot.claim(user_id)
        except ConnectionLimitReached as exc:
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
            raise Problem(
                "rate_limited",
                f"too many requests from this address: at most {self._requests.rate:g} a second "
                "are allowed (BROADCAST_MAX_REQUESTS_PER_ADDRESS)",
                headers=retry_after(1),
            )
        return key

    def charge_requests(self, key: str, cost: float) -> None:
        """Count further cost of a request; a negative cost is returned to the address."""
        self._requests.charge(key, time.monotonic(), cost)

    def charge_channels(self, address: str, count: int) -> None:
        """Count the channels of a handshake."""
        self.charge_requests(address, PRICE_OF_A_CHANNEL * count)

    def history_debt_s(self, address: str) -> float:
        """Seconds until stored messages may be read for an address; 0 if they may be now."""
        debt_s = self._history.debt_s(address, time.monotonic())
        if debt_s:
            self._reached("history")
        return debt_s

    def charge_history(self, address: str, messages: int) -> None:
        """Count stored messages that were read; an empty read costs as much as one message."""
        self._history.charge(address, time.monotonic(), max(messages, 1))

    def measure(self, now: float) -> None:
        """Measure memory, and drop full buckets. Call it regularly."""
        if (memory := resident_bytes()) is not None:
            self._memory = memory
            self._metrics.memory.set(memory)
        for paces in self._paces.values():
            paces.sweep(now)
        if now - self._reported >= _REPORT_S:
            self._reported = now
            for name, paces in self._paces.items():
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

    def _too_many(self, exc: ConnectionLimitReached) -> Problem:
        self._metrics.limits_reached.labels(exc.limit).inc()
        again = retry_after(_COME_AGAIN_S)
        if exc.limit == "process":
            return Problem("unavailable", str(exc), headers=again)
        return Problem("limit_exceeded", str(exc), status=429, headers=again)
