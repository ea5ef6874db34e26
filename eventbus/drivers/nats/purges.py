"""Which messages were purged: recorded in the stream's metadata, one process at a time.

A reader whose position is before a purged message has missed it, which nothing else in the stream
shows.
"""

import asyncio
import contextlib
import secrets
from collections.abc import (
    AsyncIterator,
    Mapping,
)
from typing import (
    Any,
    Final,
)

from eventbus.channels import Pattern
from eventbus.drivers.nats.errors import DRIVER
from eventbus.drivers.state import StateStore
from eventbus.errors import ConnectionFailed

__all__ = ["purge_lease", "purged_of", "with_purge"]

MAX_PURGE_RECORDS: Final = 200
"""Subjects with a purge record of their own; beyond, the oldest become one for all subjects."""
_PURGED: Final = "eventbus.purged"
_PURGED_OF: Final = "eventbus.purged."
_LEASE: Final = "purging"
_LEASE_S: Final = 30.0
_LEASE_PAUSE_S: Final = 0.05


def purged_of(config: Mapping[str, Any], subject: str) -> int:
    """The offset up to which a subject was purged, according to the stream's configuration.

    For a filter, the highest of the matching subjects.
    """
    metadata = config.get("metadata") or {}
    offsets = [int(metadata.get(_PURGED, 0)), int(metadata.get(_PURGED_OF + subject, 0))]
    if "*" in subject or ">" in subject:
        pattern = Pattern(subject)
        offsets += [
            int(offset)
            for name, offset in metadata.items()
            if name.startswith(_PURGED_OF) and pattern.match(name[len(_PURGED_OF) :]) is not None
        ]
    return max(offsets)


def with_purge(
    metadata: Mapping[str, str], event: str, offset: int, *, first: int
) -> dict[str, str]:
    """Metadata with one more purge record; `first` is the stream's oldest offset."""
    purges = {key: int(value) for key, value in metadata.items() if key.startswith(_PURGED_OF)}
    purges[_PURGED_OF + event] = max(offset, purges.get(_PURGED_OF + event, 0))
    # A purge of what the stream has given up anyway needs no record.
    purges = {key: value for key, value in purges.items() if value >= first}
    of_all = int(metadata.get(_PURGED, 0))
    while len(purges) > MAX_PURGE_RECORDS:
        oldest = min(purges, key=purges.__getitem__)
        of_all = max(of_all, purges.pop(oldest))
    if of_all >= max(first, 1):
        purges[_PURGED] = of_all
    others = {key: value for key, value in metadata.items() if not key.startswith(_PURGED)}
    return others | {key: str(value) for key, value in purges.items()}


@contextlib.asynccontextmanager
async def purge_lease(state: StateStore, seconds: float) -> AsyncIterator[None]:
    """Exclude other purges: the metadata are read, and then written as a whole.

    Waits at most `seconds`. Raises ConnectionFailed.
    """
    token = secrets.token_hex(8).encode()
    deadline = asyncio.get_running_loop().time() + seconds
    while not await state.claim(_LEASE, token, ttl_s=_LEASE_S):
        if asyncio.get_running_loop().time() > deadline:
            raise ConnectionFailed(
                f"another purge has held the lease for {seconds:g} s; it ends at the latest "
                f"{_LEASE_S:g} s after it began, so try again in a moment",
                driver=DRIVER,
            )
        await asyncio.sleep(_LEASE_PAUSE_S)
    try:
        yield
    finally:
        await state.delete(_LEASE)
