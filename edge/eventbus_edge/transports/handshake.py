"""The handshake of any transport: read the request, authenticate, decide, be ready to open.

The transport then opens the connection: see `Acceptor.accept` and `Connection.open`.
"""

import contextlib
import re
from collections.abc import (
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import (
    Final,
    NamedTuple,
)
from urllib.parse import unquote_to_bytes

from aiohttp import web

from eventbus.channels import (
    MAX_CHANNEL_BYTES,
    validate_channel,
)
from eventbus.errors import InvalidChannel
from eventbus_edge.access.admission import Place
from eventbus_edge.access.rules import (
    Allowed,
    Denied,
)
from eventbus_edge.access.tokens import (
    Claims,
    TokenRejected,
)
from eventbus_edge.http.traces import handshake
from eventbus_edge.node import (
    Access,
    Node,
)
from eventbus_edge.problem import (
    Problem,
    bad_token,
)
from eventbus_edge.protocols.base import (
    Subprotocols,
    WireProtocol,
)
from eventbus_edge.protocols.vocabulary import Subscribe

__all__ = [
    "MAX_PARAMETERS_BYTES",
    "Admitted",
    "Handshake",
    "admit",
    "arrival",
    "read_handshake",
]


MAX_PARAMETERS_BYTES: Final = 32 * 1024
"""The total of all query parameters: enough for a token and a hundred of the longest names."""


class Handshake(NamedTuple):
    """What a connection asks for: its channels (the path's first), token and subprotocol."""

    channels: tuple[str, ...]
    token: str | None
    subprotocol: str | None


def read_handshake(
    *,
    raw_path_channel: str | None,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    max_channels: int,
    subprotocols: Subprotocols | None,
) -> Handshake:
    """Read a connection's request; every channel is validated, the token is not.

    `raw_path_channel` is the path's part after `/ws/` as it came, percent-encoded; None for the
    form without one. `query` holds the decoded parameters, unknown ones are ignored. A `headers`
    with several values of a name must give each of them in its `items()`. Without `subprotocols`,
    offers of subprotocols are ignored.

    Raises Problem, with status 400 or 401.
    """
    if sum(len(name) + len(value) for name, value in query) > MAX_PARAMETERS_BYTES:
        raise Problem("bad_request", f"the query is longer than {MAX_PARAMETERS_BYTES} characters")
    asked = [value for name, value in query if name == "channel"]
    if raw_path_channel is not None:
        asked.insert(0, _unquote(raw_path_channel))
    channels = _read_channels(asked, max_channels)
    subprotocol, offered_token = _read_protocols(
        _values(headers, "sec-websocket-protocol"), subprotocols
    )
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


_BEARER: Final = re.compile(r"Bearer +(\S+) *", re.ASCII | re.IGNORECASE)  # RFC 6750 §2.1


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


def _read_protocols(
    headers: Sequence[str], known: Subprotocols | None
) -> tuple[str | None, str | None]:
    """The subprotocol to select and the token offered beside it. No text shows what was offered."""
    if known is None:
        return None, None
    header = _at_most_one(headers, "the header Sec-WebSocket-Protocol")
    if header is None:
        return None, None
    offered = [protocol.strip(" \t") for protocol in header.split(",")]
    tokens = [
        protocol[len(known.bearer_prefix) :]
        for protocol in offered
        if protocol.lower().startswith(known.bearer_prefix)
    ]
    if known.name not in offered:
        # A client that gets none of those it offered must fail the connection (RFC 6455 §4.1);
        # this says why.
        beside = f", beside {known.bearer_prefix}<jwt>" if tokens else ""
        raise Problem(
            "bad_request",
            f"none of the subprotocols offered can be selected; offer {known.name}{beside}",
        )
    return known.name, _at_most_one(tokens, f"the subprotocol {known.bearer_prefix}<jwt>")


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


class Admitted(NamedTuple):
    """The client's claims, and the channels of the URL with the decision that allows each."""

    claims: Claims | None
    channels: list[tuple[Subscribe, Allowed]]


@contextlib.contextmanager
def arrival(node: Node, request: web.Request) -> Iterator[Place]:
    """A place for one more connection, from its handshake to its end. Raises Problem."""
    node.require_ready()
    with node.access.admission.arrival(request.remote, request.headers) as place:
        yield place


async def admit(
    node: Node,
    request: web.Request,
    place: Place,
    raw_path_channel: str | None,
    protocol: WireProtocol,
) -> Admitted:
    """Check origin, token and channels of a request, and count it for its user. Raises Problem.

    `raw_path_channel` is the channel in the path, percent-encoded as received; None without one.
    """
    access = node.access
    with handshake(request):  # one span around all of it
        access.origins.require(request.headers.get("Origin"), request.host)
        asked = read_handshake(
            raw_path_channel=raw_path_channel,
            query=list(request.query.items()),
            headers=request.headers,
            max_channels=node.settings.max_channels_per_connection,
            subprotocols=protocol.subprotocols,
        )
        access.admission.charge_channels(place.address, len(asked.channels))
        claims = await _authenticate(access, asked.token, place)
        channels = [
            (Subscribe(channel, None, 0, None), await _decide(access, channel, claims))
            for channel in asked.channels
        ]
        node.require_ready()  # draining may have begun meanwhile
        return Admitted(claims, channels)


async def _authenticate(access: Access, token: str | None, place: Place) -> Claims | None:
    """The claims of the token, if there is one; counts the connection for its user."""
    if token is None:
        return None
    try:
        claims = await access.authenticator.verify(token)
    except TokenRejected as exc:
        raise bad_token(exc.code, str(exc)) from None
    access.admission.claim_early(place, claims.user_id)
    return claims


async def _decide(access: Access, channel: str, claims: Claims | None) -> Allowed:
    """The decision that allows a channel. Raises Problem for one that is denied."""
    decision = await access.authorizers.decide(channel, claims)
    if isinstance(decision, Denied):
        raise Problem(decision.code, decision.message)
    return decision
