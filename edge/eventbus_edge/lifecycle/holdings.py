"""What is occupied and who is a member in the whole cluster, and what is to be told. Pure.

Every node keeps an entry for each channel that its clients hear. One node, which leads, takes in
the entries of all nodes that are alive, and compares them with the ledger of what has been told:
where they differ, there is an event. The ledger is kept by the bus; what stands in it is written
before the event is told, so that whoever leads next tells exactly the same, under the same id.
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

from eventbus.webhooks import (
    LifecycleName,
    WebhookEvent,
)

__all__ = [
    "CHANNELS",
    "LEADER",
    "LEDGER",
    "MARK",
    "MEMBERS",
    "SIGNS",
    "Holdings",
    "Kind",
    "Told",
    "decode_told",
    "encode_told",
    "interest_key",
    "kind_of",
    "own_interests",
    "pending_batches",
    "sign_key",
]


LEADER: Final = "lifecycle.leader"
MARK: Final = "lifecycle.mark"
"""Stands beside a whole ledger, and names the node that leads.

Where it is missing, the bus has lost its memory.
"""
LEDGER: Final = "lifecycle.told."
SIGNS: Final = "lifecycle.node."
INTEREST: Final = "interest."

_encode: Final = msgspec.json.Encoder().encode


class Kind(NamedTuple):
    """Something that nodes hold: a channel that is heard, or a member of one."""

    letter: str
    """Begins its keys in the ledger."""
    entries: str
    """Begins the keys of the nodes' entries: then comes the node, then the rest."""
    signs: str
    """Begins the keys that say which nodes are alive."""
    begins: LifecycleName
    ends: LifecycleName

    def ledger_key(self, rest: str) -> str:
        """Where it stands in the ledger what has been told of one thing."""
        return f"{LEDGER}{self.letter}.{rest}"

    def parts_of(self, key: str) -> tuple[str, str]:
        """The node of an entry's key, and the rest."""
        node, _, rest = key.removeprefix(self.entries).partition(".")
        return node, rest

    def channel_of(self, rest: str) -> str:
        """The channel of a thing."""
        return rest if self is CHANNELS else rest.rpartition(".")[0]


CHANNELS: Final = Kind("c", INTEREST, SIGNS, "channel_occupied", "channel_vacated")
MEMBERS: Final = Kind("m", "members.", "node.", "member_joined", "member_left")


def kind_of(key: str) -> tuple[Kind, str]:
    """What a key of the ledger is about: the kind, and the rest."""
    letter, _, rest = key.removeprefix(LEDGER).partition(".")
    return (MEMBERS if letter == MEMBERS.letter else CHANNELS), rest


def interest_key(node: str, channel: str) -> str:
    """The key under which a node says that its clients hear a channel."""
    return f"{INTEREST}{node}.{channel}"


def own_interests(node: str) -> str:
    """A filter over the keys of one node."""
    return f"{INTEREST}{node}.>"


def sign_key(node: str) -> str:
    """The key under which a node says that it is alive."""
    return SIGNS + node


class Told(msgspec.Struct, frozen=True):
    """What stands in the ledger of one thing: its last event."""

    event: WebhookEvent
    batch: str
    """The id of what it was, or will be, told with."""
    is_told: bool = False


_decode_told: Final = msgspec.json.Decoder(Told).decode


def encode_told(told: Told) -> bytes:
    """An entry of the ledger."""
    return _encode(told)


def decode_told(key: str, value: bytes) -> Told | None:
    """What stands in the ledger under a key; None for what no node would write."""
    try:
        told = _decode_told(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    kind, rest = kind_of(key)
    event = told.event
    fits = (
        key == kind.ledger_key(rest)
        and event.event in (kind.begins, kind.ends)
        and event.channel == kind.channel_of(rest)
        and (event.user_id is not None) == (kind is MEMBERS)
    )
    return told if fits else None


class _MemberEntry(msgspec.Struct):
    user_id: str
    info: dict[str, Any]
    at: int


_decode_member: Final = msgspec.json.Decoder(_MemberEntry).decode


def _read_member(value: bytes) -> _MemberEntry | None:
    try:
        return _decode_member(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Holdings:
    """The entries of all nodes, of one kind, and which things are to be looked at again."""

    def __init__(self, kind: Kind, live: Collection[str]) -> None:
        """`live` are the nodes that count; `refresh` is called when they have changed."""
        self.kind = kind
        self.dirty: dict[str, float] = {}
        """What may have changed, and when it did last."""
        self._live = live
        self._entries: dict[str, dict[str, bytes]] = {}
        self._of_node: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def things(self) -> Collection[str]:
        """All that nodes have entries of, alive or not."""
        return self._entries.keys()

    def take(self, key: str, value: bytes | None, now: float) -> None:
        """A node has set an entry, or ended it."""
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
        """A node has come to life, or has died."""
        for rest in self._of_node.get(node, ()):
            self.dirty[rest] = now

    def is_held(self, rest: str) -> bool:
        """Whether a node that is alive has an entry of it."""
        return any(node in self._live for node in self._entries.get(rest, ()))

    def event(
        self, rest: str, name: LifecycleName, id_: str, before: WebhookEvent | None
    ) -> WebhookEvent | None:
        """The event that a thing has begun or ended; None for an entry that cannot be read.

        `before` is the last event told of it: of a member who has left, no entry may be there.
        """
        channel, at = self.kind.channel_of(rest), datetime.datetime.now(datetime.UTC)
        if self.kind is CHANNELS:
            return WebhookEvent(id=id_, event=name, channel=channel, timestamp=at)
        if name == self.kind.ends:
            assert before is not None, "who was never told to have joined is not told to have left"
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


def pending_batches(ledger: Mapping[str, Told]) -> Sequence[tuple[str, dict[str, Told]]]:
    """What a leader had written down and may not have told: by batch, the oldest first."""
    batches: dict[str, dict[str, Told]] = {}
    for key, told in ledger.items():
        if not told.is_told:
            batches.setdefault(told.batch, {})[key] = told
    return sorted(batches.items())  # ids of batches are in order of time (UUIDv7)
