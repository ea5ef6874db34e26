"""The masters of a target, and the one of each channel."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from redis.crc import key_slot

from eventbus.drivers.redis.errors import DRIVER, mapped
from eventbus.drivers.redis.link import disconnect
from eventbus.drivers.redis.sentinel import find_master
from eventbus.drivers.redis.target import Address, Target
from eventbus.errors import ConnectionFailed

__all__ = ["Layout", "find_layout"]


SLOTS = 16_384


class Layout(NamedTuple):
    """The masters, and for a cluster, the index of the one of each slot (-1 for none)."""

    addresses: tuple[Address, ...]
    slots: tuple[int, ...] | None = None

    def address_of(self, channel: bytes) -> Address:
        """The server of a channel. Raises ConnectionFailed if no node has its slot."""
        if self.slots is None:
            return self.addresses[0]
        if (index := self.slots[key_slot(channel)]) < 0:
            raise ConnectionFailed(
                f"no node of the Redis cluster has the slot of {channel.decode(errors='replace')}",
                driver=DRIVER,
            )
        return self.addresses[index]


async def find_layout(target: Target, known: Sequence[Address] = ()) -> Layout:
    """Find the masters. Of a cluster, the `known` nodes are asked after the configured ones.

    Raises ConnectionFailed.
    """
    if not target.kind:
        return Layout(target.addresses[:1])
    if target.kind == "sentinel":
        return Layout((await find_master(target, known),))
    addresses = list(dict.fromkeys((*target.addresses, *known)))
    failures: list[ConnectionFailed] = []
    for address in addresses:
        try:
            async with asyncio.timeout(max(0.2, target.timeout / len(addresses))):
                return await _ask_cluster(target, address)
        except TimeoutError:
            failures.append(ConnectionFailed(f"{address} does not answer", driver=DRIVER))
        except ConnectionFailed as exc:
            failures.append(exc)
    raise failures[0]


async def _ask_cluster(target: Target, address: Address) -> Layout:
    connection = target.connection(address)
    try:
        with mapped(
            f"asking {address} for the cluster's nodes",
            "check BROADCAST_REDIS_URL, or BROADCAST_REDIS_HOST and BROADCAST_REDIS_PORT",
        ):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("CLUSTER", "SLOTS")
            reply = await connection.read_response()
    finally:
        await disconnect(connection)
    indexes: dict[Address, int] = {}
    slots = [-1] * SLOTS
    for first, last, master, *_ in reply:
        host = (master[0] or b"").decode()
        node = Address(host if host not in {"", "?"} else address.host, int(master[1]))
        index = indexes.setdefault(node, len(indexes))
        slots[first : last + 1] = [index] * (last - first + 1)
    if not indexes:
        raise ConnectionFailed(f"the node of the cluster at {address} has no slots", driver=DRIVER)
    return Layout(tuple(indexes), tuple(slots))
