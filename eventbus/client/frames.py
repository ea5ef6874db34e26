"""Frames from an edge (docs/wire-protocol.md), and messages as the application sees them. Pure."""

import functools
from typing import Any, Final, TypeVar

import msgspec

from eventbus.messages import decode_json, json_decoder

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
        """Whether it is an edge's own frame, and not an application's message."""
        return self.event == "pong" or self.event.startswith("eb:")


class ClientMessage(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A message of a channel, or an edge's own event (`eb:…`) about it."""

    channel: str
    event: str
    raw: bytes
    """The data as it was published: JSON."""
    timestamp: str
    """RFC 3339, UTC."""
    id: str | None = None
    offset: int | None = None
    epoch: str | None = None
    """The message's position in the stream; None for a volatile one."""
    user_id: str | None = None
    """The sender of a client event."""
    after_gap: bool = False
    """Whether messages before this one were lost for good."""

    @functools.cached_property
    def data(self) -> Any:
        """The data, decoded on first access. Raises msgspec.DecodeError, in rare cases."""
        return decode_json(self.raw)

    def decode(self, type: type[T]) -> T:  # noqa: A002 - as msgspec calls it
        """The data as a value of a type that msgspec knows. Raises msgspec.ValidationError."""
        return json_decoder(type)(self.raw)

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
    """A member of a presence channel."""

    user_id: str
    info: dict[str, Any] = {}


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Stored messages of a channel, in order; offset and epoch are the end of its stream."""

    messages: tuple[ClientMessage, ...]
    offset: int | None = None
    epoch: str | None = None


_decode: Final = json_decoder(Frame)


def decode_frame(text: str) -> Frame:
    """Decode a frame. Raises ValueError (which msgspec's errors are) for anything else."""
    return _decode(text)


def encode_action(action: str, fields: dict[str, Any]) -> str:
    """The text frame of a client's action, without fields that are None. Raises TypeError."""
    given = {name: value for name, value in fields.items() if value is not None}
    return msgspec.json.encode({"action": action, **given}).decode()
