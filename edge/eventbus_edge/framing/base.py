"""What a framing is: it wraps a protocol's payloads for one kind of transport."""

from typing import Protocol

from eventbus.drivers.base import Position

__all__ = ["Framing", "Located"]


class Located(Protocol):
    """What a framing may know of a payload: where its channel stands afterwards."""

    @property
    def channel(self) -> str:
        """The name of the channel."""

    @property
    def marked(self) -> Position | None:
        """The position with its mark; None for what is not stored."""


class Framing(Protocol):
    """Payloads to the bytes that go to a socket. Any protocol works over any framing."""

    def message(self, payload: bytes, about: Located, /) -> bytes:
        """Wrap a message that many clients get."""

    def reply(self, payload: bytes, start: Located | None = None, /) -> bytes:
        """Wrap an answer for one client; `start` is where a subscription begins, in its answer."""
