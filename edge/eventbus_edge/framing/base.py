"""Framings: each wraps the payloads of a protocol for one kind of transport."""

from typing import Protocol

from eventbus.drivers import Position

__all__ = ["Framing", "Located"]


class Located(Protocol):
    """What a framing may know about a payload: the position of its channel after it."""

    @property
    def channel(self) -> str:
        """The name of the channel."""

    @property
    def marked(self) -> Position | None:
        """The position with its mark; None for a payload that is not stored."""


class Framing(Protocol):
    """Turns payloads into the bytes for a socket. Any protocol works over any framing."""

    def message(self, payload: bytes, about: Located, /) -> bytes:
        """Wrap a message that many clients get."""

    def reply(self, payload: bytes, start: Located | None = None, /) -> bytes:
        """Wrap an answer for one client; `start` is where its subscription begins."""
