"""The address of an edge, as users write it and as a WebSocket and a log line take it. Pure."""

import enum
import urllib.parse
from typing import (
    Annotated,
    NamedTuple,
)

import msgspec

from eventbus.urls import (
    is_web_address,
    mask_url,
)

__all__ = ["Address", "ClientOptions", "ClientState", "StateChange", "parse_address"]


class Address(NamedTuple):
    """Where an edge is."""

    url: str
    """What the WebSocket connects to."""
    shown: str
    """What messages and logs say: without the query and credentials, which may be secrets."""

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse_address(url: str) -> Address:
    """The address in `ws://host:port/ws`, `wss://`, `http://` or `https://`; no path means `/ws`.

    Raises ValueError for anything else.
    """
    if not is_web_address(url, ("ws", "wss", "http", "https")):
        allowed = "ws://host:port/ws, wss://, http:// and https://"
        raise ValueError(f"{mask_url(url)!r} is no address of an edge; allowed: {allowed}")
    parts = urllib.parse.urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path not in ("", "/") else "/ws"
    host = parts.netloc.rpartition("@")[2]
    return Address(
        urllib.parse.urlunsplit((scheme, parts.netloc, path, parts.query, "")),
        f"{scheme}://{host}{path}",
    )


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
