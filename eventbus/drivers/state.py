"""What every driver is: it moves subjects, headers and bytes, and never sees an event object."""

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

    Keys are dot-separated tokens as channels are, and may have 300 bytes. How long entries last is
    the driver's to say: see `StateDriver.state` and `StateDriver.durable_state`.
    Writes of one key must be made one after another; those of others may be concurrent.
    """

    @property
    def losses(self) -> int:
        """How often, since the start, changes may have passed untold or entries may be lost.

        Whoever watches looks at it from time to time, and when it has risen reads `entries` again.
        """

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Set an entry; it ends after `ttl_s` seconds (at least 1) unless it is set again.

        Raises PublishFailed, and InvalidPattern for what is no key.
        """

    async def claim(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set an entry unless it has another value; whether it has this one now.

        Of several that claim one key at once, one succeeds: with a value of its own, each can hold
        a lease so, and prolong it by claiming it again. Raises as `put` and `entries` do.
        """

    async def delete(self, key: str) -> None:
        """End an entry; one that is not there is no error. Raises as `put` does."""

    async def entries(self, pattern: str) -> Mapping[str, bytes]:
        """The entries whose keys match a filter, as of now. Raises ConnectionFailed."""

    async def watch(self, pattern: str, handler: "StateHandler") -> Subscription:
        """Be told of each change from now on: key and value, None where an entry has ended.

        An entry whose time is over is told within a second; an end may be told twice. Changes that
        pass while there is no connection are not told: see `losses`. Raises ConnectionFailed.
        """


class StateDriver(Driver, Protocol):
    """A driver with PRESENCE: it keeps what nodes say of themselves."""

    @property
    def state(self) -> StateStore:
        """What nodes can report again, such as presence: it may be lost with the broker's memory.

        Raises ConnectionFailed when the driver is not open.
        """

    @property
    def durable_state(self) -> StateStore:
        """What must outlive a restart of all nodes and of the broker, such as revocations.

        It is as durable as anything that the broker keeps. It may be the same store as `state`
        where that is so. Raises ConnectionFailed when the driver is not open.
        """


def validate_key(key: str) -> str:
    """Give `key` back when entries may have it. Raises InvalidPattern."""
    if not Pattern(key).is_exact:
        raise InvalidPattern(f"{key[:80]!r} is not a key: it matches more than one", name=key[:80])
    return key
