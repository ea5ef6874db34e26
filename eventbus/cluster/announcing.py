"""Revocations on the bus: sent to every node at once, and stored for nodes that start later."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Final, cast

import msgspec

from eventbus.attempts import RateLimitedLog
from eventbus.channels import Subjects
from eventbus.cluster.revocation import Revocation
from eventbus.drivers import Capability, Driver, StateDriver, StateStore
from eventbus.errors import EventBusError, NotSupported
from eventbus.messages import json_decoder

__all__ = [
    "REVOCATIONS",
    "announce_revocation",
    "encode_revocation",
    "read_revocation",
    "revocation_store",
    "store_revocation",
    "stored_revocations",
]


_faults = RateLimitedLog(logging.getLogger(__name__))

REVOCATIONS: Final = "revocation"
"""The first token of their keys in the store."""
_LONGER_S: Final = 600.0
"""Stored revocations outlive their end by this: nodes apply them for twice the leeway longer."""
encode_revocation: Final = msgspec.json.Encoder().encode
_decode: Final = json_decoder(Revocation)


def revocation_store(driver: Driver) -> StateStore | None:
    """The store of revocations, which outlives a restart of all nodes and of the broker."""
    can = Capability.PRESENCE in driver.capabilities
    return cast(StateDriver, driver).durable_state if can else None


async def announce_revocation(driver: Driver, subjects: Subjects, revocation: Revocation) -> None:
    """Send a revocation to every node, and store it for nodes that start before it ends.

    Nodes carry it out when it arrives. A driver that keeps no state reaches the running nodes only.
    Raises an EventBusError if one of the two failed; the other may have succeeded.
    """
    store = revocation_store(driver) if revocation.is_kept else None
    results: list[object] = []
    if store is not None:
        try:
            revocation = revocation.after(await _kept(store, revocation))
        except EventBusError as exc:
            results.append(exc)
    payload = encode_revocation(revocation)
    works: list[Coroutine[Any, Any, object]] = [driver.publish(subjects.control("revoke"), payload)]
    if store is not None:
        works.append(store_revocation(store, revocation))
    results += await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _kept(store: StateStore, like: Revocation) -> Revocation | None:
    """The stored revocation of the same user, token or channel."""
    key = f"{REVOCATIONS}.{like.key}"
    payload = (await store.entries(key)).get(key)
    return None if payload is None else read_revocation(payload)


async def store_revocation(store: StateStore, revocation: Revocation) -> None:
    """Store a revocation until no node applies it any more. Raises a DriverError."""
    left = revocation.until + _LONGER_S - time.time()
    if left > 0:
        key = f"{REVOCATIONS}.{revocation.key}"
        await store.put(key, encode_revocation(revocation), ttl_s=max(left, 1.0))


async def stored_revocations(driver: Driver) -> dict[str, Revocation]:
    """The revocations that hold in the whole cluster, by their keys.

    Raises NotSupported for a driver that keeps no state, and ConnectionFailed.
    """
    if (store := revocation_store(driver)) is None:
        raise NotSupported(
            f"the driver {driver.name} keeps no state: only running nodes know what is revoked",
            driver=driver.name,
        )
    now = time.time()
    found: dict[str, Revocation] = {}
    for payload in (await store.entries(f"{REVOCATIONS}.*")).values():
        revocation = read_revocation(payload)
        if revocation is not None and revocation.holds(now):
            found[revocation.key] = revocation
    return found


def read_revocation(payload: bytes) -> Revocation | None:
    """Decode a revocation; None for anything else, which any client of the bus may publish."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, ValueError) as exc:
        _faults.warning("a revocation that cannot be read was left out: %s", exc)
        return None
