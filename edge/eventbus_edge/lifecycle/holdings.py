"""Occupied channels and members of the whole cluster, and which events follow from them. Pure.

Every node keeps an entry on the bus for each channel that its clients subscribe to. One node, the
leader, compares the entries of all live nodes with the ledger of announced events: each difference
is an event. The ledger is on the bus too. An event is written to it before it is announced, so that
the next leader announces exactly the same event under the same id.
"""

import datetime
from collections.abc import (
    Collection,
    Mapping,
    Sequence,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec

from eventbus.messages import json_decoder
from eventbus.webhooks import (
    LifecycleName,
    WebhookEvent,
)

__all__ = [
    "CHANNELS",
    "HEARTBEATS",
    "LEADER",
    "LEDGER",
    "MARK",
    "MEMBERS",
    "Announcement",
    "Holdings",
    "Kind",
    "decode_announcement",
    "encode_announcement",
    "heartbeat_key",
    "interest_filter",
    "interest_key",
    "kind_of",
    "pending_batches",
]


LEADER: Final = "lifecycle.leader"
MARK: Final = "lifecycle.mark"
"""Names the leader, and is written once the ledger is complete.

If it is missing, the bus has lost its memory.
"""
LEDGER: Final = "lifecycle.told."
HEARTBEATS: Final = "lifecycle.node."
INTEREST: Final = "interest."

_encode: Final = msgspec.json.Encoder().encode


class Kind(NamedTuple):
    """A kind of entry: an occupied channel, or a member of a channel.

    An item of a kind is identified by the rest of its keys: `orders.1`, or `presence.a.<token>`.
    """

    letter: str
    """The prefix of its keys in the ledger."""
    entries: str
    """The prefix of the nodes' entries, followed by the node's id and the rest."""
    heartbeats: str
    """The prefix of the nodes' heartbeats."""
    begins: LifecycleName
    ends: LifecycleName

    def ledger_key(self, rest: str) -> str:
        """The key of an item in the ledger."""
        return f"{LEDGER}{self.letter}.{rest}"

    def parts_of(self, key: str) -> tuple[str, str]:
        """The node of an entry's key, and the rest of the key."""
        node, _, rest = key.removeprefix(self.entries).partition(".")
        return node, rest

    def channel_of(self, rest: str) -> str:
        """The channel of an item."""
        return rest if self is CHANNELS else rest.rpartition(".")[0]


CHANNELS: Final = Kind("c", INTEREST, HEARTBEATS, "channel_occupied", "channel_vacated")
MEMBERS: Final = Kind("m", "members.", "node.", "member_joined", "member_left")


def kind_of(key: str) -> tuple[Kind, str]:
    """The kind of a key of the ledger, and the rest of the key."""
    letter, _, rest = key.removeprefix(LEDGER).partition(".")
    return (MEMBERS if letter == MEMBERS.letter else CHANNELS), rest


def interest_key(node: str, channel: str) -> str:
    """The key of a node's entry for a channel that its clients subscribe to."""
    return f"{INTEREST}{node}.{channel}"


def interest_filter(node: str) -> str:
    """A filter for the channel entries of one node."""
    return f"{INTEREST}{node}.>"


def heartbeat_key(node: str) -> str:
    """The key of a node's heartbeat."""
    return HEARTBEATS + node


class Announcement(msgspec.Struct, frozen=True):
    """The ledger's record of one item: its last event."""

    event: WebhookEvent
    batch: str
    """The id of the batch that the event was, or will be, announced in."""
    is_done: bool = msgspec.field(name="is_told", default=False)
    """Whether the event has been announced."""


_decode_announcement: Final = json_decoder(Announcement)


def encode_announcement(announcement: Announcement) -> bytes:
    """A value for the ledger."""
    return _encode(announcement)


def decode_announcement(key: str, value: bytes) -> Announcement | None:
    """The value of a key of the ledger; None if no node could have written it."""
    try:
        found = _decode_announcement(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    kind, rest = kind_of(key)
    event = found.event
    fits = (
        key == kind.ledger_key(rest)
        and event.event in (kind.begins, kind.ends)
        and event.channel == kind.channel_of(rest)
        and (event.user_id is not None) == (kind is MEMBERS)
    )
    return found if fits else None


class _MemberEntry(msgspec.Struct):
    user_id: str
    info: dict[str, Any]
    at: int


_decode_member: Final = json_decoder(_MemberEntry)


def _read_member(value: bytes) -> _MemberEntry | None:
    try:
        return _decode_member(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Holdings:
    """The entries of all nodes, of one kind, and the items that may have changed."""

    def __init__(self, kind: Kind, live: Collection[str]) -> None:
        """`live` has the nodes whose entries count; call `refresh` after it has changed."""
        self.kind = kind
        self.dirty: dict[str, float] = {}
        """The items that may have changed, and when they last did."""
        self._live = live
        self._entries: dict[str, dict[str, bytes]] = {}
        self._of_node: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def items(self) -> Collection[str]:
        """All items that nodes, live or dead, have entries for."""
        return self._entries.keys()

    def has(self, key: str, value: bytes | None) -> bool:
        """Whether this is the known value of an entry; None means that there is no entry."""
        node, rest = self.kind.parts_of(key)
        return self._entries.get(rest, {}).get(node) == value

    def set(self, key: str, value: bytes | None, now: float) -> None:
        """Set a node's entry; None deletes it."""
        node, rest = self.kind.parts_of(key)
        if value is not None:
            self._entries.setdefault(rest, {})[node] = value
            self._of_node.setdefault(node, set()).add(rest)
        else:
            entries = self._entries.get(rest)
            if entries is None or entries.pop(node, None) is None:
                return
            self._of_node[node].discard(rest)
            if not self._of_node[node]:
                del self._of_node[node]
            if not entries:
                del self._entries[rest]
        self.dirty[rest] = now

    def refresh(self, node: str, now: float) -> None:
        """Mark the items of a node that has appeared or died."""
        for rest in self._of_node.get(node, ()):
            self.dirty[rest] = now

    def is_held(self, rest: str) -> bool:
        """Whether a live node has an entry for the item."""
        return any(node in self._live for node in self._entries.get(rest, ()))

    def event(
        self, rest: str, name: LifecycleName, id_: str, before: WebhookEvent | None
    ) -> WebhookEvent | None:
        """The event for an item that has begun or ended; None if no entry of it can be read.

        `before` is the last event announced for the item. It describes a member who has left, whose
        entries are gone.
        """
        channel, at = self.kind.channel_of(rest), datetime.datetime.now(datetime.UTC)
        if self.kind is CHANNELS:
            return WebhookEvent(id=id_, event=name, channel=channel, timestamp=at)
        if name == self.kind.ends:
            assert before is not None, "only a member whose joining was announced can leave"
            return msgspec.structs.replace(before, id=id_, event=name, timestamp=at)
        entries = [
            entry
            for node, value in self._entries.get(rest, {}).items()
            if node in self._live and (entry := _read_member(value)) is not None
        ]
        if not entries:
            return None
        newest = max(entries, key=lambda entry: entry.at)
        return WebhookEvent(
            id=id_,
            event=name,
            channel=channel,
            timestamp=at,
            user_id=newest.user_id,
            info=newest.info,
        )


def pending_batches(
    ledger: Mapping[str, Announcement],
) -> Sequence[tuple[str, dict[str, Announcement]]]:
    """Announcements that were recorded but may not have been made: by batch, oldest first."""
    batches: dict[str, dict[str, Announcement]] = {}
    for key, announcement in ledger.items():
        if not announcement.is_done:
            batches.setdefault(announcement.batch, {})[key] = announcement
    return sorted(batches.items())  # batch ids sort by time (UUIDv7)
