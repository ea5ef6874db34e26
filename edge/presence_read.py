"""The members of a presence channel, for who is no node."""

from typing import Any

import msgspec

from edge.presence import Room, decode_entry, keys_of, parts_of
from edge.presence_nodes import signs_of
from eventbus.drivers.base import StateDriver

__all__ = ["read_members", "read_room"]


async def read_room(driver: StateDriver, nodes: set[str], channel: str) -> Room:
    """A channel's members as the bus has them, of the nodes that live. Raises a DriverError."""
    room = Room(nodes)
    for key, value in (await driver.state.entries(keys_of(channel))).items():
        node, token = parts_of(key)
        if (entry := decode_entry(token, value)) is not None:
            room.put(node, token, entry)
    return room


async def read_members(driver: StateDriver, channel: str) -> list[dict[str, Any]]:
    """A channel's members, each a user_id and info. Raises a DriverError."""
    room = await read_room(driver, await signs_of(driver), channel)
    return msgspec.json.decode(room.members, type=list[dict[str, Any]])
