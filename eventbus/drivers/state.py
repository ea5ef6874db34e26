"""What a driver with shared state offers: small entries that every process sees and can watch."""

import functools
from collections.abc import Mapping
from typing import Protocol

from eventbus.channels import Pattern
from eventbus.drivers.base import (
    Driver,
    StateHandler,
    Subscription,
)
from eventbus.errors import InvalidPattern

__all__ = ["StateDriver", "StateStore", "validate_key"]


class StateStore(Protocol):
    """Small entries that every process of the cluster sees.

    Keys are dot-separated tokens like channels, up to 300 bytes long. The driver decides how long
    entries last: see `StateDriver.state` and `StateDriver.durable_state`. Writes to one key must be
    sequential; writes to different keys may be concurrent.
    """

    @property
    def losses(self) -> int:
        """How many times, since the start, changes may have been missed or entries lost.

        Watchers check it from time to time, and read `entries` again when it has grown.
        """

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Set an entry; it expires after `ttl_s` seconds (at least 1) unless it is set again.

        Raises PublishFailed, and InvalidPattern for an invalid key.
        """

    async def claim(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set an entry unless it has a different value; whether it has this value now.

        When several processes claim a key at once, exactly one succeeds. With a value of its own,
        a process can hold a lease this way, and renew it by claiming again. Raises like `put` and
        `entries`.
        """

    async def delete(self, key: str) -> None:
        """Delete an entry; a missing one is not an error. Raises like `put`."""

    async def entries(self, pattern: str) -> Mapping[str, bytes]:
        """The current entries whose keys match a filter. Raises ConnectionFailed."""

    async def watch(self, pattern: str, handler: "StateHandler") -> Subscription:
        """Call `handler` for each change from now on: key and value, None for a removed entry.

        Expired entries are reported within a second; a removal may be reported twice. Changes made
        while there is no connection are not reported: see `losses`. Raises ConnectionFailed.
        """


class StateDriver(Driver, Protocol):
    """A driver with PRESENCE: it stores what nodes publish about themselves."""

    @property
    def state(self) -> StateStore:
        """Entries that nodes can publish again, such as presence; the broker may lose them.

        Raises ConnectionFailed when the driver is not open.
        """

    @property
    def durable_state(self) -> StateStore:
        """Entries that must survive a restart of all nodes and the broker, such as revocations.

        They are as durable as anything in the broker. This may be the same store as `state`.
        Raises ConnectionFailed when the driver is not open.
        """


@functools.lru_cache(maxsize=4096)  # nodes renew the same entries again and again
def validate_key(key: str) -> str:
    """Return `key` when it is valid for an entry. Raises InvalidPattern."""
    if not Pattern(key).is_exact:
        raise InvalidPattern(f"{key[:80]!r} is not a key: it matches more than one", name=key[:80])
    return key
