"""The handshake of any transport: read the request, authenticate, decide, prepare to open.

The transport then opens the connection: see `Acceptor.accept` and `Connection.open`.
"""

from collections.abc import (
    Iterable,
    Sequence,
)
from typing import (
    Final,
    NamedTuple,
    Self,
)
from urllib.parse import unquote_to_bytes

from aiohttp import web
from multidict import CIMultiDictProxy

from eventbus import tracing
from eventbus.channels import (
    MAX_CHANNEL_BYTES,
    validate_channel,
)
from eventbus.errors import InvalidChannel
from eventbus_edge.access import Allowed, Claims, Denied, Slot, TokenRejected, bearer_token
from eventbus_edge.http import route_of
from eventbus_edge.node import (
    Access,
    Node,
)
from eventbus_edge.problem import (
    Problem,
    bad_token,
)
from eventbus_edge.protocols import Subprotocols, Subscribe, WireProtocol

__all__ = [
    "MAX_PARAMETERS_BYTES",
    "Admitted",
    "Handshake",
    "Request",
    "admit",
    "arrive",
    "offered_protocols",
    "read_handshake",
    "require_upgrade",
]


MAX_PARAMETERS_BYTES: Final = 32 * 1024
"""The total of all query parameters: enough for a token and a hundred of the longest names."""


def require_upgrade(headers: CIMultiDictProxy[str]) -> None:
    """Raise Problem, 426, for a request that asks for no upgrade at all (RFC 9110 §15.5.22).

    Usually a proxy has dropped the header, or somebody has opened the address as a page.
    """
    connection = ",".join(headers.getall("Connection", ())).lower().split(",")
    if "Upgrade" in headers and "upgrade" in (option.strip() for option in connection):
        return
    raise Problem(
        "upgrade_required",
        "this address takes WebSockets, and the request lacks the headers Upgrade: websocket and "
        "Connection: Upgrade. If the client sent them, a proxy in front of this node has dropped "
        "them; nginx passes them on with: proxy_http_version 1.1; proxy_set_header Upgrade "
        '$http_upgrade; proxy_set_header Connection "upgrade";',
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )


class Handshake(NamedTuple):
    """What a connection asks for: its channels (the path's first), token and subprotocol."""

    channels: tuple[str, ...]
    token: str | None
    subprotocol: str | None


def read_handshake(
    *,
    raw_path_channel: str | None,
    query: Sequence[tuple[str, str]],
    headers: CIMultiDictProxy[str],
    max_channels: int,
    subprotocols: Subprotocols | None,
) -> Handshake:
    """Read a connection's request; every channel is validated, the token is not.

    `raw_path_channel` is the path's part after `/ws/` as it came, percent-encoded; None for the
    form without one. `query` holds the decoded parameters, unknown ones are ignored. Without
    `subprotocols`, offers of subprotocols are ignored.

    Raises Problem, with status 400 or 401.
    """
    size, asked, tokens = 0, [], []
    for name, value in query:
        size += len(name) + len(value)
        if name == "channel":
            asked.append(value)
        elif name == "auth_token":
            tokens.append(value)
    if size > MAX_PARAMETERS_BYTES:
        raise Problem("bad_request", f"the query is longer than {MAX_PARAMETERS_BYTES} characters")
    if raw_path_channel is not None:
        asked.insert(0, _unquote(raw_path_channel))
    channels = _read_channels(asked, max_channels)
    subprotocol, offered_token = _read_protocols(
        headers.getall("Sec-WebSocket-Protocol", ()), subprotocols
    )
    query_token = _at_most_one(tokens, "the parameter auth_token")
    token = _read_authorization(headers.getall("Authorization", ()))
    for later in (offered_token, query_token):
        if token is None:
            token = later
    if token == "":
        raise bad_token("unauthorized", "the token is empty")
    return Handshake(channels, token, subprotocol)


def _at_most_one(values: Sequence[str], what: str) -> str | None:
    if len(values) > 1:
        raise Problem("bad_request", f"{what} is given {len(values)} times: only once is allowed")
    return values[0] if values else None


def _unquote(raw: str) -> str:
    """Decode percent-encoding. Other than ASCII stays as it is, and is not a channel name."""
    if len(raw) > 3 * MAX_CHANNEL_BYTES:
        return raw
    decoded = unquote_to_bytes(raw.encode("utf-8", "surrogatepass"))
    return decoded.decode("ascii") if decoded.isascii() else raw


def _read_channels(names: Iterable[str], max_channels: int) -> tuple[str, ...]:
    channels = dict.fromkeys(names)
    if len(channels) > max_channels:
        raise Problem(
            "limit_exceeded",
            f"the request names {len(channels)} channels: at most {max_channels} per connection "
            "are allowed",
        )
    try:
        return tuple(validate_channel(name) for name in channels)
    except InvalidChannel as exc:
        raise Problem("invalid_channel", str(exc)) from None


def offered_protocols(headers: Iterable[str]) -> list[str]:
    """The subprotocols that a client offers: several headers are one list (RFC 6455, 11.3.4)."""
    return [protocol.strip(" \t") for protocol in ",".join(headers).split(",")]


def _read_protocols(
    headers: Sequence[str], known: Subprotocols | None
) -> tuple[str | None, str | None]:
    """The subprotocol to select, and the token offered with it. Errors do not quote the offers."""
    if known is None:
        return None, None
    if not headers:
        return None, None
    offered = offered_protocols(headers)
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
    token = bearer_token(header)
    if token is None:
        raise bad_token(
            "unauthorized", "the header Authorization is not of the form: Bearer <token>"
        )
    return token


class Admitted(NamedTuple):
    """The client's claims, and the channels of the URL with the decision that allows each."""

    claims: Claims | None
    channels: list[tuple[Subscribe, Allowed]]


class Request(NamedTuple):
    """What a handshake reads of an HTTP request."""

    method: str
    route: str
    """The template of its path."""
    remote: str | None
    """The other end of the socket; None if it has no address."""
    host: str
    headers: CIMultiDictProxy[str]
    query: Sequence[tuple[str, str]]
    """The decoded parameters."""
    raw_channel: str | None = None
    """The channel in the path, percent-encoded as received; None without one."""

    @classmethod
    def of(cls, request: web.Request, raw_channel: str | None = None) -> Self:
        """The same of a request of aiohttp."""
        return cls(
            request.method,
            route_of(request),
            request.remote,
            request.host,
            request.headers,
            list(request.query.items()),
            raw_channel,
        )


def arrive(node: Node, request: Request) -> Slot:
    """Reserve a slot for one more connection; the caller must release it. Raises Problem."""
    node.require_ready()
    return node.access.admission.arrive(request.remote, request.headers)


async def admit(node: Node, request: Request, slot: Slot, protocol: WireProtocol) -> Admitted:
    """Check origin, token and channels of a request, and count it for its user. Raises Problem."""
    with tracing.serving(request.method, request.route, request.headers) as answered:
        try:
            return await _admit(node, request, slot, protocol)
        except Problem as problem:
            answered(problem.status)
            raise


async def _admit(node: Node, request: Request, slot: Slot, protocol: WireProtocol) -> Admitted:
    access, headers = node.access, request.headers
    access.origins.require(headers.get("Origin"), request.host)
    handshake = read_handshake(
        raw_path_channel=request.raw_channel,
        query=request.query,
        headers=headers,
        max_channels=node.settings.max_channels_per_connection,
        subprotocols=protocol.subprotocols,
    )
    access.admission.charge_channels(slot.address, len(handshake.channels))
    claims = await _authenticate(access, handshake.token, slot)
    channels = [
        (Subscribe(channel, None, 0, None), await _decide(access, channel, claims))
        async for channel in node.connections.turns.paced(handshake.channels)
    ]
    node.require_ready()  # draining may have begun meanwhile
    return Admitted(claims, channels)


async def _authenticate(access: Access, token: str | None, slot: Slot) -> Claims | None:
    """The claims of the token, if there is one; counts the connection for its user."""
    if token is None:
        return None
    try:
        claims = await access.authenticator.verify(token)
    except TokenRejected as exc:
        raise bad_token(exc.code, str(exc)) from None
    access.admission.claim_early(slot, claims.user_id)
    return claims


async def _decide(access: Access, channel: str, claims: Claims | None) -> Allowed:
    """The decision that allows a channel. Raises Problem for one that is denied."""
    decision = await access.authorizers.decide(channel, claims)
    if isinstance(decision, Denied):
        raise Problem(decision.code, decision.message)
    return decision
