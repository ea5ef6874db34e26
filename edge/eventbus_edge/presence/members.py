"""The members of a presence channel: the union of the entries that live nodes have written. Pure.

Each node writes one entry per user of its own per channel, and derives the members from the entries
of all live nodes. Every node derives the same events from the same changes, for its own clients. So
no event is announced twice, and no node has to announce it to the others.
"""

import hashlib
from collections.abc import (
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
)

import msgspec

from eventbus.messages import json_decoder
from eventbus_edge.access import MAX_INFO_DEPTH, is_deeper
from eventbus_edge.protocols import Members, PresentMember
from eventbus_edge.sessions import PresenceRefused

__all__ = [
    "Change",
    "Entry",
    "LocalMembers",
    "Room",
    "decode_entry",
    "encode_entry",
    "encode_info",
    "key_of",
    "keys_of",
    "own_keys_of",
    "parts_of",
    "token_of",
]


_MAX_AT: Final = 2**53 - 1

_encode: Final = msgspec.json.Encoder().encode


class Entry(NamedTuple):
    """One node's entry for one of its users; `info` is a JSON object."""

    user_id: str
    info: bytes
    at: int
    """When the info was set, in Unix milliseconds. Of several entries, the newest counts."""


class Change(NamedTuple):
    """A change of membership that the subscribers of a channel are notified of."""

    kind: Literal["joined", "left", "updated"]
    user_id: str
    info: bytes


class _Wire(msgspec.Struct):
    user_id: str
    info: dict[str, Any]
    at: int


_decode: Final = json_decoder(_Wire)


def token_of(user_id: str) -> str:
    """A user's token in keys: a hash, because ids may be too long or contain any character."""
    return hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def key_of(node: str, channel: str, token: str) -> str:
    """The key of a node's entry for a user in a channel."""
    return f"members.{node}.{channel}.{token}"


def keys_of(channel: str) -> str:
    """A filter for the keys of one channel; `*` matches exactly one token."""
    return f"members.*.{channel}.*"


def own_keys_of(node: str) -> str:
    """A filter for the keys of one node."""
    return f"members.{node}.>"


def parts_of(key: str) -> tuple[str, str]:
    """The node and the user's token of a key."""
    parts = key.split(".")
    return parts[1], parts[-1]


def encode_info(info: Mapping[str, Any], limit: int) -> bytes:
    """An info as JSON. Raises PresenceRefused if it is too large or nested too deeply."""
    if is_deeper(info, MAX_INFO_DEPTH):
        raise PresenceRefused(
            "bad_request", f"the presence info is nested deeper than {MAX_INFO_DEPTH} levels"
        )
    encoded = _encode(dict(info))
    if len(encoded) > limit:
        raise PresenceRefused(
            "payload_too_large",
            f"the presence info has {len(encoded)} bytes; at most {limit} are allowed",
        )
    return encoded


def encode_entry(entry: Entry) -> bytes:
    """An entry as the other nodes read it."""
    info = msgspec.Raw(entry.info)
    return _encode({"user_id": entry.user_id, "info": info, "at": entry.at})


def decode_entry(token: str, value: bytes) -> Entry | None:
    """The entry whose key ends with `token`; None if no node could have written it."""
    try:
        wire = _decode(value)
        if token_of(wire.user_id) != token or not 0 <= wire.at <= _MAX_AT:
            return None
        return Entry(wire.user_id, _encode(wire.info), wire.at)
    except (msgspec.MsgspecError, UnicodeError):
        return None


class Room:
    """One channel: the entries of all nodes, and the members derived from them."""

    def __init__(self, live: Collection[str]) -> None:
        """`live` has the nodes whose entries count; call `refresh` after it has changed."""
        self._live = live
        self._entries: dict[str, dict[str, Entry]] = {}
        self._members: dict[str, tuple[Entry, PresentMember]] = {}
        self._list: Members | None = None
        self.size = 0
        """About how many bytes a list of all members takes."""

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, token: str) -> bool:
        return token in self._members

    @property
    def members(self) -> Members:
        """The members; the same object until they change."""
        if self._list is None:
            self._list = Members(member for _, member in self._members.values())
        return self._list

    def member(self, token: str) -> Entry | None:
        """The entry that counts for a member; None for a user who is not a member."""
        found = self._members.get(token)
        return found[0] if found else None

    def entry(self, node: str, token: str) -> Entry | None:
        """A node's entry for a user."""
        return self._entries.get(token, {}).get(node)

    def of_node(self, node: str) -> list[Entry]:
        """A node's entries for all users."""
        return [nodes[node] for nodes in self._entries.values() if node in nodes]

    def put(self, node: str, token: str, entry: Entry) -> list[Change]:
        """Set a node's entry for a user."""
        self._entries.setdefault(token, {})[node] = entry
        return self._derive(token)

    def remove(self, node: str, token: str) -> list[Change]:
        """Remove a node's entry for a user."""
        entries = self._entries.get(token)
        if entries is None or entries.pop(node, None) is None:
            return []
        if not entries:
            del self._entries[token]
        return self._derive(token)

    def refresh(self, node: str) -> Iterator[list[Change]]:
        """Update the members with entries of a node that has appeared or died, one by one.

        The caller may pause between them, and change the room meanwhile.
        """
        touched = [token for token, entries in self._entries.items() if node in entries]
        return (self._derive(token) for token in touched)

    def keys(self) -> Iterable[tuple[str, str]]:
        """The node and token of each entry."""
        return [(node, token) for token, nodes in self._entries.items() for node in nodes]

    def _derive(self, token: str) -> list[Change]:
        """Update one member from the entries; returns what changed for subscribers."""
        entries = [e for node, e in self._entries.get(token, {}).items() if node in self._live]
        before = self.member(token)
        if not entries:
            if before is None:
                return []
            self._list = None
            self.size -= self._members.pop(token)[1].size
            return [Change("left", before.user_id, before.info)]
        if before is not None:
            entries.append(before)  # the node with the newest info may have removed its entry
        after = max(entries, key=lambda entry: (entry.at, entry.info))
        if before is not None and before.info == after.info:
            self._members[token] = after, self._members[token][1]
            return []
        if before is not None:
            self.size -= self._members[token][1].size
        member = PresentMember(after.user_id, after.info)
        self._members[token] = after, member
        self._list = None
        self.size += member.size
        return [Change("joined" if before is None else "updated", after.user_id, after.info)]


class _Stay:
    """One user's connections to a channel on this node."""

    __slots__ = ("connections", "until")

    def __init__(self) -> None:
        self.connections: set[str] = set()
        self.until = float("-inf")


class LocalMembers:
    """The connections of this node per member of a channel, and the members that may still return.

    A user stays a member while one connection is subscribed, and for a grace time after a
    connection was lost. A user who joins within that time counts as having returned.
    """

    def __init__(self) -> None:
        self._stays: dict[str, _Stay] = {}

    def __len__(self) -> int:
        return len(self._stays)

    def join(self, token: str, connection_id: str) -> None:
        """A connection of the member has joined."""
        stay = self._stays.setdefault(token, _Stay())
        stay.connections.add(connection_id)
        stay.until = float("-inf")

    def leave(self, token: str, connection_id: str, *, now: float, grace_s: float) -> float | None:
        """A connection of the member has left; with `grace_s`, the user may come back.

        Returns the time until which the member stays; None if other connections remain.
        """
        stay = self._stays.get(token)
        if stay is None or connection_id not in stay.connections:
            return None
        stay.connections.discard(connection_id)
        if grace_s > 0:
            stay.until = now + grace_s
        return None if stay.connections else max(stay.until, now)

    def lost(self) -> list[str]:
        """The members without a connection, which may still return."""
        return [token for token, stay in self._stays.items() if not stay.connections]

    def returned(self, token: str) -> None:
        """End a member's grace time, because the user has come back on another node."""
        if (stay := self._stays.get(token)) is not None:
            stay.until = float("-inf")

    def end(self, token: str, now: float) -> bool:
        """Forget a member without connections whose grace time is over; False if it stays."""
        stay = self._stays.get(token)
        if stay is None or stay.connections or stay.until > now:
            return False
        del self._stays[token]
        return True
