"""How much one client may take: places on the node, and a pace for what it sends. Pure.

Times are monotonic seconds. A node counts its own: two nodes together hold twice as much.
"""

import enum
from collections import Counter
from typing import Final, Literal, NamedTuple, TypeAlias

__all__ = [
    "ANSWER_BYTES_PER_ACTION",
    "BYTES_PER_ACTION",
    "MAX_KEYS",
    "STRIKES",
    "Full",
    "Pace",
    "Paces",
    "Place",
    "PlaceLimits",
    "Places",
    "SessionLimits",
    "TokenBucket",
    "Verdict",
]

Limit: TypeAlias = Literal["connections", "address", "user"]

STRIKES: Final = 100
"""Refusals, without a rest between them, after which a client is not served any longer."""


MAX_KEYS: Final = 100_000
"""Channels, addresses or members whose pace is kept, some 200 bytes for each."""
BYTES_PER_ACTION: Final = 16 * 1024
"""A command costs an action more for each of these bytes, inflated."""
ANSWER_BYTES_PER_ACTION: Final = 64 * 1024
"""A command costs an action more for each of these bytes of its answer."""


class SessionLimits(NamedTuple):
    """What a connection may do; the defaults are those of the wire protocol."""

    heartbeat_s: float = 25.0
    max_channels: int = 100
    max_whisper_bytes: int = 10 * 1024
    token_required: bool = False
    token_timeout_s: float = 10.0
    token_grace_s: float = 10.0
    token_leeway_s: float = 0.0
    actions_per_s: float = 50.0
    action_burst: int = 100


class TokenBucket:
    """Lets `rate` takes a second pass, and `burst` at once after a rest."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._at = now

    def take(self, now: float, cost: float = 1.0) -> bool:
        """Whether there were `cost` tokens; if so, they are gone.

        What costs more than the bucket can hold needs a full one, and leaves a debt.
        """
        self._fill(now)
        if self._tokens < min(cost, self._burst):
            return False
        self._tokens -= cost
        return True

    def charge(self, now: float, cost: float) -> None:
        """Take `cost` tokens for what is done already, at the price of a debt."""
        self._fill(now)
        self._tokens = min(self._burst, self._tokens - cost)

    def debt_s(self, now: float) -> float:
        """How many seconds it takes until a debt is paid; 0 where there is none."""
        self._fill(now)
        return max(-self._tokens, 0.0) / self._rate

    def is_full(self, now: float) -> bool:
        """Whether it is as if nothing had ever been taken."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(now - self._at, 0.0) * self._rate)
        self._at = max(now, self._at)


class Verdict(enum.Enum):
    """What becomes of an action."""

    SERVE = "serve"
    REFUSE = "refuse"
    END = "end"
    """Refuse it, and end the connection: it has been refused again and again."""


class Pace:
    """The actions of one connection. Refusals count until it has rested, its bucket being full.

    Every frame is an action, whatever its kind; large and expensive commands cost several.
    """

    __slots__ = ("_bucket", "_strikes")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._bucket = TokenBucket(rate, burst, now)
        self._strikes = 0

    def judge(self, now: float, cost: float = 1.0) -> Verdict:
        """Count one action, or what costs as much as `cost` of them."""
        if self._strikes and self._bucket.is_full(now):
            self._strikes = 0
        if self._bucket.take(now, cost):
            return Verdict.SERVE
        self._strikes += 1
        return Verdict.END if self._strikes >= STRIKES else Verdict.REFUSE

    def charge(self, now: float, cost: float) -> None:
        """Count what an action that was served has cost beyond its price."""
        self._bucket.charge(now, cost)


class Paces:
    """A bucket per key; those that are full again are forgotten."""

    def __init__(self, rate: float, burst: float, most_keys: int = MAX_KEYS) -> None:
        """With more than `most_keys`, the key that is kept for longest is forgotten too early."""
        self.overflows = 0
        """How often that was so."""
        self._rate = rate
        self._burst = burst
        self._most_keys = most_keys
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float, cost: float = 1.0) -> bool:
        """Whether there were `cost` tokens for `key`."""
        return self._bucket(key, now).take(now, cost)

    def charge(self, key: str, now: float, cost: float) -> None:
        """Take tokens for what is done already; with a negative cost, give them back."""
        self._bucket(key, now).charge(now, cost)

    def debt_s(self, key: str, now: float) -> float:
        """How many seconds it takes until the debt of `key` is paid; 0 where there is none."""
        bucket = self._buckets.get(key)
        return 0.0 if bucket is None else bucket.debt_s(now)

    def _bucket(self, key: str, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most_keys:
                self.overflows += 1
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
        return bucket

    def sweep(self, now: float) -> None:
        """Forget the keys that have rested. Call it now and then: it is what bounds the memory."""
        rested = [key for key, bucket in self._buckets.items() if bucket.is_full(now)]
        for key in rested:
            del self._buckets[key]


class Full(Exception):
    """There is no place for one more."""

    def __init__(self, limit: Limit, message: str) -> None:
        super().__init__(message)
        self.limit: Limit = limit


class PlaceLimits(NamedTuple):
    """How many connections there may be; the defaults are those of the wire protocol."""

    connections: int = 50_000
    per_address: int = 1_000
    per_user: int = 100


class Places:
    """Connections in all, of each address and of each user."""

    def __init__(self, limits: PlaceLimits) -> None:
        self._limits = limits
        self._total = 0
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._total

    def enter(self, address: str) -> "Place":
        """Take a place, until it is left. Raises Full."""
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
    """One connection's place, from its handshake to its end."""

    __slots__ = ("_places", "_user_id", "address", "is_left")

    def __init__(self, places: Places, address: str) -> None:
        self.address = address
        self.is_left = False
        self._places = places
        self._user_id: str | None = None

    def claim(self, user_id: str) -> None:
        """Count the connection as the user's; again for the same one is as once. Raises Full."""
        if self._user_id is None:
            self._places._claim(user_id)  # noqa: SLF001 - a place is a part of its places
            self._user_id = user_id

    def leave(self) -> None:
        """Give the place free; twice is as once."""
        if not self.is_left:
            self.is_left = True
            self._places._leave(self.address, self._user_id)  # noqa: SLF001 - as above


def _drop(counts: Counter[str], key: str) -> None:
    """Count one less; what is at nothing is forgotten."""
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
