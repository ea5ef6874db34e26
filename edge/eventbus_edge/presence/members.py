"""Who is in a presence channel: the union of what the live nodes say of their own users. Pure.

Every node keeps an entry for each user of its own in each channel, and derives the members from
the entries of all nodes that are alive. From the same changes each node derives the same events,
for its own clients: nothing is announced twice, and nobody has to announce it to all.
"""

import hashlib
from collections.abc import (
    Collection,
    Iterable,
    Mapping,
)
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
)

import msgspec

from eventbus_edge.access.tokens import (
    MAX_INFO_DEPTH,
    is_deeper,
)

__all__ = [
    "Change",
    "Entry",
    "PresenceRefused",
    "Room",
    "Stays",
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
    """What a node says of one of its users; `info` is a JSON object."""

    user_id: str
    info: bytes
    at: int
    """When the info was given, in Unix milliseconds: the newest one holds."""


class PresenceRefused(Exception):
    """A channel has as many members as it may, or a member's info is not what it may be."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Change(NamedTuple):
    """What has changed for the subscribers of a channel; `info` is a JSON object."""

    kind: Literal["joined", "left", "updated"]
    user_id: str
    info: bytes


class _Wire(msgspec.Struct):
    user_id: str
    info: dict[str, Any]
    at: int


_decode: Final = msgspec.json.Decoder(_Wire).decode


def token_of(user_id: str) -> str:
    """A user's token in keys: ids may hold what keys cannot, and be longer than keys may be."""
    return hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def key_of(node: str, channel: str, token: str) -> str:
    """The key under which a node says that a user is in a channel."""
    return f"members.{node}.{channel}.{token}"


def keys_of(channel: str) -> str:
    """A filter over the keys of one channel: `*` stands for one token, so of no other."""
    return f"members.*.{channel}.*"


def own_keys_of(node: str) -> str:
    """A filter over the keys of one node."""
    return f"members.{node}.>"


def parts_of(key: str) -> tuple[str, str]:
    """Node and token of a key."""
    parts = key.split(".")
    return parts[1], parts[-1]


def encode_info(info: Mapping[str, Any], limit: int) -> bytes:
    """An info as JSON. Raises PresenceRefused where it is too large, or nested too deeply."""
    if is_deeper(info, MAX_INFO_DEPTH):
        raise PresenceRefused(
            "bad_request", f"the presence info is nested deeper than {MAX_INFO_DEPTH} levels"
        )
    encoded = _encode(dict(info))
    if len(encoded) > limit:
        raise PresenceRefused(
            "payload_too_large",
            f"the presence info has {len(encoded)} bytes: at most {limit} are allowed",
        )
    return encoded


def encode_entry(entry: Entry) -> bytes:
    """An entry as the other nodes read it."""
    info = msgspec.Raw(entry.info)
    return _encode({"user_id": entry.user_id, "info": info, "at": entry.at})


def decode_entry(token: str, value: bytes) -> Entry | None:
    """What stands under a key that ends with `token`; None for what no node would write."""
    try:
        wire = _decode(value)
        if token_of(wire.user_id) != token or not 0 <= wire.at <= _MAX_AT:
            return None
        return Entry(wire.user_id, _encode(wire.info), wire.at)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None


def _member(user_id: str, info: bytes) -> bytes:
    return b'{"user_id":%b,"info":%b}' % (_encode(user_id), info)


class Room:
    """One channel: the entries of all nodes, and the members that they make."""

    def __init__(self, live: Collection[str]) -> None:
        """`live` are the nodes that count; `refresh` is called when they have changed."""
        self._live = live
        self._entries: dict[str, dict[str, Entry]] = {}
        self._members: dict[str, tuple[Entry, bytes]] = {}
        self._list: bytes | None = None

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, token: str) -> bool:
        return token in self._members

    @property
    def members(self) -> bytes:
        """The members as a JSON array, made once for each change, from parts made once each."""
        if self._list is None:
            self._list = b"[%b]" % b",".join(encoded for _, encoded in self._members.values())
        return self._list

    def member(self, token: str) -> Entry | None:
        """What is known of a member."""
        found = self._members.get(token)
        return found[0] if found else None

    def entry(self, node: str, token: str) -> Entry | None:
        """What a node says of a user."""
        return self._entries.get(token, {}).get(node)

    def put(self, node: str, token: str, entry: Entry) -> list[Change]:
        """A node says that a user of its own is here."""
        self._entries.setdefault(token, {})[node] = entry
        return self._derive(token)

    def remove(self, node: str, token: str) -> list[Change]:
        """A node says so no more."""
        entries = self._entries.get(token)
        if entries is None or entries.pop(node, None) is None:
            return []
        if not entries:
            del self._entries[token]
        return self._derive(token)

    def refresh(self, node: str) -> list[Change]:
        """A node has come to life, or has died."""
        touched = [token for token, entries in self._entries.items() if node in entries]
        return [change for token in touched for change in self._derive(token)]

    def keys(self) -> Iterable[tuple[str, str]]:
        """Node and token of each entry."""
        return [(node, token) for token, nodes in self._entries.items() for node in nodes]

    def _derive(self, token: str) -> list[Change]:
        """Bring one member in line with the entries; gives what has changed for the others."""
        entries = [e for node, e in self._entries.get(token, {}).items() if node in self._live]
        before = self.member(token)
        if not entries:
            if before is None:
                return []
            del self._members[token]
            self._list = None
            return [Change("left", before.user_id, before.info)]
        if before is not None:
            entries.append(before)  # the node that gave the newest info may not have it any more
        after = max(entries, key=lambda entry: (entry.at, entry.info))
        if before is not None and before.info == after.info:
            self._members[token] = after, self._members[token][1]
            return []
        self._members[token] = after, _member(after.user_id, after.info)
        self._list = None
        return [Change("joined" if before is None else "updated", after.user_id, after.info)]


class _Stay:
    """One user's connections to a channel on this node."""

    __slots__ = ("connections", "until")

    def __init__(self) -> None:
        self.connections: set[str] = set()
        self.until = float("-inf")


class Stays:
    """Which connections of this node hold which members of a channel, and who may still return.

    A user stays as long as one connection does, and for a grace time after one was lost. Whoever
    joins in that time is taken for the lost one that returns.
    """

    def __init__(self) -> None:
        self._stays: dict[str, _Stay] = {}

    def __len__(self) -> int:
        return len(self._stays)

    def join(self, token: str, connection_id: str) -> None:
        """A connection holds the member."""
        stay = self._stays.setdefault(token, _Stay())
        stay.connections.add(connection_id)
        stay.until = float("-inf")

    def leave(self, token: str, connection_id: str, *, now: float, grace_s: float) -> float | None:
        """A connection holds it no more; with `grace_s` it may come back.

        Gives the time until which the member stays, None when it stays by other connections.
        """
        stay = self._stays.get(token)
        if stay is None or connection_id not in stay.connections:
            return None
        stay.connections.discard(connection_id)
        if grace_s > 0:
            stay.until = now + grace_s
        return None if stay.connections else max(stay.until, now)

    def lost(self) -> list[str]:
        """The members whom no connection holds any more, and who may still return."""
        return [token for token, stay in self._stays.items() if not stay.connections]

    def returned(self, token: str) -> None:
        """Whoever was lost here has come back elsewhere: nobody is waited for."""
        if (stay := self._stays.get(token)) is not None:
            stay.until = float("-inf")

    def end(self, token: str, now: float) -> bool:
        """Forget a member whom nothing holds any more; whether it was so."""
        stay = self._stays.get(token)
        if stay is None or stay.connections or stay.until > now:
            return False
        del self._stays[token]
        return True
