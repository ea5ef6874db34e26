"""Wires: a protocol over a framing, which is how replies and messages become a socket's bytes.

Connections of the same protocol and framing share one wire: a message is encoded once for all of
them. The wires of one protocol share its last payload, which is framed again, not encoded again.
"""

from collections.abc import Iterator

from eventbus_edge.framing import DeflatedFramings, Framing
from eventbus_edge.protocols import ChannelMessage, Notice, Reply, Subscribed, WireProtocol

__all__ = ["Wire", "Wires"]


class _Payloads:
    """The payloads of one protocol. The last one is kept for the other wires of the protocol."""

    __slots__ = ("_encode", "message", "payload", "protocol", "sent")

    def __init__(self, protocol: WireProtocol) -> None:
        self.protocol = protocol
        self.sent = 0
        """Messages pushed to clients of the protocol."""
        self._encode = protocol.message
        self.message: ChannelMessage | Notice | None = None
        """The last message that was encoded, and its payload."""
        self.payload: bytes | None = None

    def count(self, sent: int) -> None:
        """Count messages that were pushed to clients."""
        self.sent += sent

    def encode(self, message: ChannelMessage | Notice) -> bytes | None:
        """Encode another message."""
        payload = self.payload = self._encode(message)
        self.message = message
        return payload


class Wire:
    """One protocol over one framing; what the protocol does not have becomes None."""

    __slots__ = ("_frame", "_framing", "_payloads", "count", "is_shared", "protocol")

    def __init__(self, payloads: _Payloads, framing: Framing, *, is_shared: bool) -> None:
        """See `Wires`, which makes them."""
        self.is_shared = is_shared
        """Whether a message has the same bytes at any time, for any connection."""
        self.protocol = payloads.protocol
        self.count = payloads.count
        """Counts messages that were pushed to clients."""
        self._payloads = payloads
        self._frame = framing.message
        self._framing = framing

    def message(self, message: ChannelMessage | Notice) -> bytes | None:
        """The bytes of a message; None if the protocol does not have it."""
        last = self._payloads
        payload = last.payload if message is last.message else last.encode(message)
        return None if payload is None else self._frame(payload, message)

    def reply(self, reply: Reply) -> bytes | None:
        """The bytes of an answer; None if the protocol does not have it."""
        payload = self.protocol.reply(reply)
        if payload is None:
            return None
        return self._framing.reply(payload, reply if type(reply) is Subscribed else None)

    def heartbeat(self) -> bytes:
        """The bytes of the protocol's own heartbeat, besides the transport's; empty without one."""
        payload = self.protocol.liveness.heartbeat
        return b"" if payload is None else self._framing.reply(payload)


class Wires:
    """The wires of a node."""

    def __init__(self, deflated: DeflatedFramings | None = None) -> None:
        """`deflated` are the framings for clients that agreed on compression, if it is enabled."""
        self.deflated = deflated
        self._payloads: dict[WireProtocol, _Payloads] = {}
        self._shared: dict[tuple[WireProtocol, Framing], Wire] = {}

    def shared(self, protocol: WireProtocol, framing: Framing) -> Wire:
        """The one wire of a protocol and a framing; both live as long as the node."""
        found = self._shared.get((protocol, framing))
        if found is None:
            found = Wire(self._payloads_of(protocol), framing, is_shared=True)
            self._shared[protocol, framing] = found
        return found

    def own(self, protocol: WireProtocol, framing: Framing) -> Wire:
        """A wire for a framing that belongs to a single connection."""
        return Wire(self._payloads_of(protocol), framing, is_shared=False)

    def sent(self) -> Iterator[tuple[str, int]]:
        """The messages pushed to clients so far, by the name of each protocol's form."""
        for protocol, payloads in self._payloads.items():
            yield protocol.name, payloads.sent

    def _payloads_of(self, protocol: WireProtocol) -> _Payloads:
        payloads = self._payloads.get(protocol)
        if payloads is None:
            payloads = self._payloads[protocol] = _Payloads(protocol)
        return payloads
