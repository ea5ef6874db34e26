"""How a client behaves, and the states in which it can be."""

import enum
from typing import Annotated

import msgspec

__all__ = ["ClientOptions", "ClientState", "StateChange"]

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ClientState(enum.StrEnum):
    """Where a client stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    """There is no connection, and there will be another one."""
    CLOSED = "closed"
    """For good: closed by its owner, or the edge says to stay away."""


class StateChange(msgspec.Struct, frozen=True, kw_only=True):
    """What observers of a client's state are told."""

    state: ClientState
    code: int | None = None
    """The close code with which the connection ended; 1006 where there was none."""
    reason: str = ""
    retry_in: float | None = None
    """After how many seconds the client connects again, when it is disconnected."""


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a client: times in seconds, frames in bytes. The defaults suit a service."""

    open_timeout: Seconds = 10.0
    """How long opening may take, tries included."""
    handshake_timeout: Seconds = 10.0
    """How long one try to connect may take, until the edge's greeting."""
    request_timeout: Seconds = 10.0
    """How long an answer of the edge may take."""
    token_timeout: Seconds = 30.0
    """How long the token function may take."""
    first_delay: Seconds = 0.5
    last_delay: Seconds = 30.0
    """The first and the longest wait before connecting again; it doubles, and is jittered."""
    steady_after: Seconds = 5.0
    """A connection that lived as long lets the next wait begin at the first one again."""
    buffer: Count = 1000
    """Messages of one subscription that may wait for its handlers, or for who iterates over it."""
    max_requests: Count = 1000
    """Requests that may wait for their answers."""
    max_frame_bytes: Count = 64 * 1024**2
    """The largest frame that is taken: a page of the history is one."""

    def __post_init__(self) -> None:
        # msgspec checks the bounds of types only where it decodes.
        for field in msgspec.structs.fields(type(self)):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)!r}: above 0 is allowed")
        if self.first_delay > self.last_delay:
            raise ValueError("first_delay is longer than last_delay")
