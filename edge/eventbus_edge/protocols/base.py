"""Protocols: how one kind of client and a node talk, over any transport and framing.

A protocol is pure. It is registered with a path in `eventbus_edge.app`, and one object serves all
connections of that path. No other package knows which protocol a connection speaks.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import (
    NamedTuple,
    Protocol,
    TypeAlias,
)

from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    CloseReason,
    Closing,
    Command,
    Failed,
    Member,
    Notice,
    Reply,
    SignIn,
    Subscribe,
)

__all__ = ["Liveness", "Prove", "Proven", "Subprotocols", "WireProtocol", "random_connection_id"]


class Liveness(NamedTuple):
    """How a node learns that a client is still there."""

    heartbeat: bytes | None = None
    """The protocol's own question for a sign of life, besides the ping frame of WebSockets."""
    control_frames: bool = True
    """Whether pings and pongs of WebSockets are signs of life. A client's messages always are."""


class Subprotocols(NamedTuple):
    """What the header Sec-WebSocket-Protocol may offer."""

    name: str
    """The subprotocol that is selected."""
    bearer_prefix: str
    """An offer that begins with it has the token as its rest."""


class Proven(NamedTuple):
    """The verdict on a command that carries a proof."""

    member: Member | None
    """The user who subscribes, or signs in, if the proof names one."""
    error: str | None = None
    """Why the proof is not accepted; None if it is."""
    code: str = "forbidden"
    """The code of that error."""
    inbox: str = ""
    """The channel that a user who signs in receives without subscribing to it."""
    watched: Sequence[str] = ()
    """The inboxes of users whose coming and going a user who signs in wants to know."""
    closes: CloseReason | None = None
    """The reason if the error ends the connection."""


Prove: TypeAlias = Callable[[str, Subscribe | SignIn, Member | None], Proven]
"""Gets the id of the connection, a command that has a proof, and the user who has signed in.

It must not block.
"""


class WireProtocol(Protocol):
    """One protocol. Payloads have no framing yet: `eventbus_edge.framing` adds it."""

    @property
    def name(self) -> str:
        """The name that statistics and metrics show; several forms of a protocol share it."""

    @property
    def liveness(self) -> Liveness:
        """How a client shows that it is there."""

    @property
    def subprotocols(self) -> Subprotocols | None:
        """What the handshake of a WebSocket negotiates; None: offers are ignored."""

    @property
    def announces_close(self) -> bool:
        """Whether `reply(Closing)` is sent as a last message before a WebSocket's close frame."""

    @property
    def refuse(self) -> Callable[[Failed], Closing] | None:
        """How a handshake that fails is answered.

        None: by HTTP, with a problem and without an upgrade. Otherwise within the socket: after
        the upgrade, the error is sent as a reply, unless the close is announced, and the socket is
        closed as this function says.
        """

    @property
    def prove(self) -> Prove | None:
        """How proofs of subscriptions and users are checked; None for a protocol without them."""

    def agree(self, query: Mapping[str, str], /) -> "WireProtocol | Failed":
        """The form of the protocol that a handshake asks for in its parameters, or its refusal."""

    def connection_id(self) -> str:
        """An id for a new connection: unique in the cluster, and hard to guess."""

    def decode(self, frame: str | bytes) -> Command:
        """Decode a client's message, text or binary. Never raises: an invalid one is Malformed."""

    def message(self, message: ChannelMessage | Notice) -> bytes | None:
        """The payload of a message for subscribers; None if the protocol has no such thing."""

    def reply(self, reply: Reply) -> bytes | None:
        """The payload of an answer for one client; None if the protocol has no such thing."""

    def closing(self, reason: CloseReason, text: str) -> Closing:
        """The close code for a reason, and whether the client may reconnect."""


def random_connection_id() -> str:
    """An id for protocols that allow any text."""
    return secrets.token_urlsafe(16)
