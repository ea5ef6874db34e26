"""What a connection's URL and headers ask for, and whether its origin may ask. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from edge.problem import Problem, bad_token
from edge.protocols.native import BEARER_PREFIX, PROTOCOL
from eventbus.channels import MAX_CHANNEL_BYTES, validate_channel
from eventbus.errors import InvalidChannel

__all__ = [
    "MAX_PARAMETERS_BYTES",
    "Handshake",
    "Origin",
    "check_origin",
    "is_origin",
    "parse_host",
    "parse_origin",
    "read_handshake",
]

MAX_PARAMETERS_BYTES: Final = 32 * 1024
"""Names and values of all query parameters: a token, and a hundred channels of the longest name."""

_BEARER: Final = re.compile(r"Bearer +(\S+) *", re.ASCII | re.IGNORECASE)  # RFC 6750 §2.1
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Handshake(NamedTuple):
    """What a connection asks for: its channels (the path's first), token and subprotocol."""

    channels: tuple[str, ...]
    token: str | None
    subprotocol: str | None


class Origin(NamedTuple):
    """A web origin (RFC 6454). `port` is the scheme's default where it has one, else None."""

    scheme: str
    host: str
    port: int | None


def read_handshake(
    *,
    raw_path_channel: str | None,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    max_channels: int,
) -> Handshake:
    """Read a connection's request; every channel is validated, the token is not.

    `raw_path_channel` is the path's part after `/ws/` as it came, percent-encoded; None for the
    form without one. `query` holds the decoded parameters, unknown ones are ignored. A `headers`
    with several values of a name must give each of them in its `items()`.

    Raises Problem, with status 400 or 401.
    """
    if sum(len(name) + len(value) for name, value in query) > MAX_PARAMETERS_BYTES:
        raise Problem("bad_request", f"the query is longer than {MAX_PARAMETERS_BYTES} characters")
    asked = [value for name, value in query if name == "channel"]
    if raw_path_channel is not None:
        asked.insert(0, _unquote(raw_path_channel))
    channels = _read_channels(asked, max_channels)
    subprotocol, offered_token = _read_protocols(_values(headers, "sec-websocket-protocol"))
    query_token = _at_most_one(
        [value for name, value in query if name == "auth_token"], "the parameter auth_token"
    )
    token = _read_authorization(_values(headers, "authorization"))
    for later in (offered_token, query_token):
        if token is None:
            token = later
    if token == "":
        raise bad_token("unauthorized", "the token is empty")
    return Handshake(channels, token, subprotocol)


def parse_origin(text: str) -> Origin | None:
    """Read `scheme://host[:port]`, without anything more; None when it is not that."""
    scheme, separator, authority = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return None
    scheme = scheme.lower()
    parsed = parse_host(authority, _DEFAULT_PORTS.get(scheme))
    return None if parsed is None else Origin(scheme, *parsed)


def is_origin(entry: str) -> bool:
    """Whether an entry of the allowed origins is one that `check_origin` could ever match."""
    if entry in ("*", "null"):
        return True
    return (parse_origin(entry) if "://" in entry else parse_host(entry, None)) is not None


def check_origin(origin: str | None, host: str, allowed: Sequence[str]) -> bool:
    """Whether a request may come from `origin`, its Origin header (None: it has none).

    `host` is the request's Host header. It is the same host when name and port are, a port not
    given being that of the origin's scheme: behind a proxy that ends TLS the node cannot know its
    own. `allowed` has origins, bare hosts (`app.example.com:3000`: by http and https), `*` for
    every origin but `null`, and `null` for that one.
    """
    if origin is None:
        return True
    if origin == "null":
        return "null" in allowed
    given = parse_origin(origin)
    if given is None:
        return False
    if "*" in allowed or _is_host(given, host):
        return True
    return any(
        parse_origin(entry) == given if "://" in entry else _is_host(given, entry)
        for entry in allowed
    )


def _is_host(origin: Origin, host: str) -> bool:
    if origin.scheme not in _DEFAULT_PORTS:  # an app's own, such as capacitor://localhost
        return False
    return parse_host(host, _DEFAULT_PORTS.get(origin.scheme)) == (origin.host, origin.port)


def parse_host(text: str, default_port: int | None = None) -> tuple[str, int | None] | None:
    """The name, in lower case, and port of a Host header; None when it is not one."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    host, digits = match.groups()
    port = int(digits) if digits else default_port
    if port is not None and not 0 < port <= 65535:
        return None
    return host.lower(), port


def _values(headers: Mapping[str, str], lower_name: str) -> list[str]:
    return [value for name, value in headers.items() if name.lower() == lower_name]


def _at_most_one(values: Sequence[str], what: str) -> str | None:
    if len(values) > 1:
        raise Problem("bad_request", f"{what} is given {len(values)} times; allowed is once")
    return values[0] if values else None


def _unquote(raw: str) -> str:
    """Decode percent-encoding. What is not ASCII then stays as it came, and is no channel name."""
    if len(raw) > 3 * MAX_CHANNEL_BYTES:
        return raw
    decoded = unquote_to_bytes(raw.encode("utf-8", "surrogatepass"))
    return decoded.decode("ascii") if decoded.isascii() else raw


def _read_channels(asked: Iterable[str], max_channels: int) -> tuple[str, ...]:
    channels = dict.fromkeys(asked)
    if len(channels) > max_channels:
        raise Problem(
            "limit_exceeded",
            f"{len(channels)} channels are asked for; allowed are {max_channels} on a connection",
        )
    try:
        return tuple(validate_channel(name) for name in channels)
    except InvalidChannel as exc:
        raise Problem("invalid_channel", str(exc)) from None


def _read_protocols(headers: Sequence[str]) -> tuple[str | None, str | None]:
    """The subprotocol to select and the token offered beside it. No text shows what was offered."""
    header = _at_most_one(headers, "the header Sec-WebSocket-Protocol")
    if header is None:
        return None, None
    offered = [protocol.strip(" \t") for protocol in header.split(",")]
    tokens = [
        protocol[len(BEARER_PREFIX) :]
        for protocol in offered
        if protocol.lower().startswith(BEARER_PREFIX)
    ]
    if PROTOCOL not in offered:
        # A client that gets none of those it offered must fail the connection (RFC 6455 §4.1);
        # this tells it why.
        beside = f", beside {BEARER_PREFIX}<jwt>" if tokens else ""
        raise Problem(
            "bad_request",
            f"none of the subprotocols offered can be selected; offer {PROTOCOL}{beside}",
        )
    return PROTOCOL, _at_most_one(tokens, f"the subprotocol {BEARER_PREFIX}<jwt>")


def _read_authorization(headers: Sequence[str]) -> str | None:
    header = _at_most_one(headers, "the header Authorization")
    if header is None:
        return None
    match = _BEARER.fullmatch(header)
    if match is None:
        raise bad_token(
            "unauthorized", "the header Authorization is not of the form: Bearer <token>"
        )
    return match[1]
