"""The address of the edge, and the options and states of a client. Pure."""

import enum
import urllib.parse
from typing import (
    Annotated,
    Final,
    NamedTuple,
)

import msgspec

from eventbus.urls import (
    is_web_address,
    mask_url,
)

__all__ = [
    "Address",
    "ClientOptions",
    "ClientState",
    "StateChange",
    "check_history",
    "check_type",
    "parse_address",
]


MAX_HISTORY: Final = 1000
"""The most messages that an edge gives at once."""


class Address(NamedTuple):
    """The address of an edge."""

    url: str
    """The URL that the WebSocket connects to."""
    shown: str
    """The form for errors and logs, without query and credentials, which may be secret."""

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse_address(url: str) -> Address:
    """Parse `ws://host:port/ws`, `wss://`, `http://` or `https://`; the default path is `/ws`.

    Raises ValueError for anything else, and TypeError for what is no string.
    """
    check_type("url", url, str)
    if not is_web_address(url, ("ws", "wss", "http", "https")):
        allowed = "ws://host:port/ws, wss://, http:// and https://"
        raise ValueError(f"{mask_url(url)!r} is not the address of an edge; allowed: {allowed}")
    parts = urllib.parse.urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path not in ("", "/") else "/ws"
    host = parts.netloc.rpartition("@")[2]
    return Address(
        urllib.parse.urlunsplit((scheme, parts.netloc, path, parts.query, "")),
        f"{scheme}://{host}{path}",
    )


def check_type(name: str, value: object, wanted: type) -> None:
    """Check an argument of `connect`. Raises TypeError."""
    if not isinstance(value, wanted):
        # Its value may be secret.
        raise TypeError(f"{name} is a {wanted.__name__}, not a {type(value).__name__}")


def check_history(history: object, *, is_pattern: bool) -> None:
    """Check how many earlier messages are requested. Raises TypeError and ValueError."""
    if not isinstance(history, int) or isinstance(history, bool):
        raise TypeError(f"history is a number of messages, not {history!r:.40}")
    if not 0 <= history <= MAX_HISTORY:
        raise ValueError(f"history={history}: 0 to {MAX_HISTORY} earlier messages can be requested")
    if history and is_pattern:
        raise ValueError("a pattern has no history: subscribe to the channel for it")


Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ClientState(enum.StrEnum):
    """The state of a client."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    """There is no connection, and the client will connect again."""
    CLOSED = "closed"
    """Closed for good, by its owner or because the edge does not allow reconnecting."""


class StateChange(msgspec.Struct, frozen=True, kw_only=True):
    """What observers of a client's state receive."""

    state: ClientState
    code: int | None = None
    """The close code of the connection; 1006 if it ended without one."""
    reason: str = ""
    retry_in: float | None = None
    """When disconnected: seconds until the client connects again."""


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a client: times in seconds, frames in bytes. The defaults suit a service."""

    open_timeout: Seconds = 10.0
    """How long opening may take, including retries."""
    handshake_timeout: Seconds = 10.0
    """How long one attempt to connect may take, up to the edge's greeting."""
    request_timeout: Seconds = 10.0
    """How long an answer of the edge may take."""
    token_timeout: Seconds = 30.0
    """How long the token function may take."""
    first_delay: Seconds = 0.5
    last_delay: Seconds = 30.0
    """The first and the longest delay before connecting again; it doubles, with jitter."""
    steady_after: Seconds = 5.0
    """After a connection of this duration, the next delay is `first_delay` again."""
    buffer: Count = 1000
    """Messages of one subscription that may wait for its handlers, or for its iteration."""
    max_requests: Count = 1000
    """Requests that may wait for their answers."""
    max_frame_bytes: Count = 64 * 1024**2
    """The largest accepted frame; a page of history is one frame."""

    def __post_init__(self) -> None:
        # msgspec checks the limits of types only when it converts.
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as exc:
                raise ValueError(f"{field.name}={value!r}: {exc}") from None
        if self.first_delay > self.last_delay:
            raise ValueError("first_delay is longer than last_delay")
