"""What comes from an edge (docs/wire-protocol.md), and what a client's user sees of it. Pure."""

import functools
from typing import Any, Final, TypeVar

import msgspec

__all__ = ["ClientMessage", "Frame", "HistoryPage", "Member", "decode_frame", "encode_action"]

T = TypeVar("T")

_NULL: Final = msgspec.Raw(b"null")


class Frame(msgspec.Struct):
    """One frame of an edge; `data` is not decoded."""

    event: str
    channel: str | None = None
    data: msgspec.Raw = _NULL
    timestamp: str = ""
    id: str | None = None
    offset: int | None = None
    epoch: str | None = None
    mark: str | None = None
    user_id: str | None = None

    @property
    def is_system(self) -> bool:
        """Whether it is the edge's own word, and no application's message."""
        return self.event == "pong" or self.event.startswith("eb:")


class ClientMessage(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A message of a channel, or an event of the edge's own (`eb:…`) about it."""

    channel: str
    event: str
    raw: bytes
    """The data as they were published: JSON."""
    timestamp: str
    """RFC 3339, UTC."""
    id: str | None = None
    offset: int | None = None
    epoch: str | None = None
    """The message's place in the stream; None for a volatile one."""
    user_id: str | None = None
    """Of a client event: who sent it."""
    after_gap: bool = False
    """Messages before this one were missed, and could not be had again."""

    @functools.cached_property
    def data(self) -> Any:
        """The data, decoded when first asked for."""
        return msgspec.json.decode(self.raw)

    def decode(self, type: type[T]) -> T:  # noqa: A002 - as msgspec calls it
        """The data as a value of a type that msgspec knows. Raises msgspec.ValidationError."""
        return msgspec.json.decode(self.raw, type=type)

    @classmethod
    def of(cls, frame: Frame, *, after_gap: bool = False) -> "ClientMessage":
        """The message in a frame that names a channel."""
        return cls(
            channel=frame.channel or "",
            event=frame.event,
            raw=bytes(frame.data),
            timestamp=frame.timestamp,
            id=frame.id,
            offset=frame.offset,
            epoch=frame.epoch,
            user_id=frame.user_id,
            after_gap=after_gap,
        )


class Member(msgspec.Struct, frozen=True):
    """Somebody in a presence channel."""

    user_id: str
    info: dict[str, Any] = {}


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Stored messages of a channel, in order; offset and epoch are where its stream stands."""

    messages: tuple[ClientMessage, ...]
    offset: int | None = None
    epoch: str | None = None


_decode: Final = msgspec.json.Decoder(Frame).decode


def decode_frame(text: str) -> Frame:
    """Raises ValueError (msgspec's errors are such) for what is no frame."""
    try:
        return _decode(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def encode_action(action: str, fields: dict[str, Any]) -> str:
    """The text frame of a client's action; what is None is left out. Raises TypeError."""
    given = {name: value for name, value in fields.items() if value is not None}
    return msgspec.json.encode({"action": action, **given}).decode()
