"""The HTTP API under /api/broadcast and /api/queue, which covers the whole cluster."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import (
    PackageNotFoundError,
    version,
)
from types import MappingProxyType
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    NamedTuple,
    TypeVar,
)

import msgspec
from aiohttp import web

from eventbus.channels import (
    ChannelKind,
    validate_channel,
    validate_pattern,
)
from eventbus.cluster import (
    Channel,
    Channels,
    Disconnect,
    Disconnected,
    ListQuery,
    Member,
    Stats,
)
from eventbus.errors import (
    BusStateError,
    ClusterBusy,
    DispatchFailed,
    DriverError,
    EncodingError,
    InvalidChannel,
    InvalidName,
    InvalidPattern,
    NotSupported,
    PublishDenied,
)
from eventbus.messages import gather_receipts, json_decoder, new_id
from eventbus_edge.access import Claims
from eventbus_edge.http.body import (
    JSON,
    read_json_text,
)
from eventbus_edge.http.endpoints import require_admin
from eventbus_edge.http.middleware import REFUND
from eventbus_edge.http.openapi import (
    Parameter,
    Route,
    describe,
)
from eventbus_edge.http.queue import (
    FailedJobs,
    FailedQuery,
    JobDone,
    JobId,
    done,
    failed_answer,
    job_id,
)
from eventbus_edge.http.revocations import (
    Lifted,
    LiftQuery,
    RevocationList,
    RevocationsQuery,
    lift,
    revocation_list,
)
from eventbus_edge.http.types import (
    ChannelState,
    HistoryPage,
    HistoryQuery,
    Members,
    NoQuery,
    Publish,
    Published,
    PublishedMessage,
)
from eventbus_edge.keys import NODE
from eventbus_edge.node import Node
from eventbus_edge.problem import (
    Problem,
    retry_after,
)
from eventbus_edge.protocols import encode_message

__all__ = ["ROUTES", "add_api", "bus_errors", "document", "require_access"]


_log = logging.getLogger(__name__)

Q = TypeVar("Q")
B = TypeVar("B")

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
MAX_KEY: Final = 255
_RETRY_AFTER_S: Final = 2.0


class _Call(NamedTuple, Generic[Q, B]):
    """One request, with its parts validated by the types of its route."""

    node: Node
    path: Mapping[str, str]
    query: Q
    body: B
    headers: Mapping[str, str]

    @property
    def channel(self) -> str:
        """The path's channel. Raises InvalidChannel."""
        return validate_channel(self.path["name"])


async def _stats(call: _Call[ListQuery, None]) -> Stats:
    validate_pattern(call.query.pattern)
    return await call.node.census.stats(call.query)


async def _channels(call: _Call[ListQuery, None]) -> Channels:
    validate_pattern(call.query.pattern)
    return await call.node.census.channels(call.query)


async def _channel(call: _Call[NoQuery, None]) -> ChannelState:
    offset = epoch = mark = None
    try:
        position = await call.node.bus.position(call.channel)
        offset, epoch, mark = position.offset, position.epoch, position.mark
    except NotSupported:
        _log.debug("the driver has no stream: a channel has no position")
    stats = await call.node.census.channel(call.channel)
    return ChannelState(
        channel=stats.channel, kind=stats.kind, connections=stats.connections,
        members=stats.members, offset=offset, epoch=epoch, mark=mark,
    )  # fmt: skip


async def _members(call: _Call[NoQuery, None]) -> Members:
    channel = call.channel
    if call.node.access.rules.find(channel).kind is not ChannelKind.PRESENCE:
        raise Problem("not_found", f"{channel} is not a presence channel, so it has no members")
    present = await call.node.presence.fetch(channel)
    members = [Member(user_id=each.user_id, info=msgspec.Raw(each.info)) for each in present]
    return Members(channel=channel, members=members, count=len(members))


async def _history(call: _Call[HistoryQuery, None]) -> HistoryPage:
    query = call.query
    if call.node.access.rules.find(call.channel).most_history == 0:
        raise Problem("forbidden", f"the rules do not allow reading the history of {call.channel}")
    page = await call.node.traffic.read_history(call.channel, query.since, query.limit)
    offset, epoch = page.position or (None, None)
    return HistoryPage(
        messages=[msgspec.Raw(encode_message(message)) for message in page.messages],
        offset=offset,
        epoch=epoch,
        complete=page.complete,
    )


async def _publish(call: _Call[NoQuery, Publish]) -> Published:
    body = call.body
    if (body.channel is None) == (body.channels is None):
        raise Problem("bad_request", "exactly one of channel and channels is required")
    channels = body.channels or [body.channel or ""]
    for channel in channels:
        validate_channel(channel)
    if len(set(channels)) < len(channels):
        raise Problem("bad_request", "channels contains a channel twice")
    message_id = _message_id(call.headers.get(IDEMPOTENCY_KEY), volatile=body.volatile)
    sends = [
        call.node.bus.publish(
            channel,
            body.event,
            body.data,
            volatile=body.volatile,
            except_connection=body.except_,
            id=message_id,
        )
        for channel in channels
    ]
    receipts = await gather_receipts(channels, sends)
    return Published(
        messages=[
            PublishedMessage(channel=r.channel, id=r.id, offset=r.offset, epoch=r.epoch)
            for r in receipts
        ]
    )


def _message_id(key: str | None, *, volatile: bool) -> str:
    """A message id derived from the key, so that the stream drops duplicates."""
    if key is None:
        return new_id()
    if volatile:
        message = f"{IDEMPOTENCY_KEY} does not work for volatile messages, which are not stored"
        raise Problem("bad_request", message)
    if not 1 <= len(key) <= MAX_KEY:
        raise Problem("bad_request", f"{IDEMPOTENCY_KEY} must have 1 to {MAX_KEY} characters")
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


async def _disconnect(call: _Call[NoQuery, Disconnect]) -> Disconnected:
    target = call.body
    if target.criteria() != 1:
        raise Problem(
            "bad_request", "exactly one of user_id, connection_id, jti and channel is required"
        )
    if target.channel is not None:
        validate_channel(target.channel)
        if target.reconnect:
            raise Problem("bad_request", "reconnect cannot be combined with channel")
    if target.issued_before is not None and (
        target.reconnect or (target.user_id is None and target.channel is None)
    ):
        raise Problem("bad_request", "issued_before needs user_id or channel, and no reconnect")
    disconnected = await call.node.census.disconnect(target)
    if not target.reconnect and target.connection_id is None:
        # Clients that were asked to reconnect may; others stay out until their tokens have expired.
        await call.node.access.revoker.revoke(
            user_id=target.user_id,
            jti=target.jti,
            channel=target.channel,
            issued_before=target.issued_before,
        )
    return disconnected


async def _revocations(call: _Call[RevocationsQuery, None]) -> RevocationList:
    return revocation_list(call.node.access.revoker.known, call.query.limit)


async def _lift(call: _Call[LiftQuery, None]) -> Lifted:
    return await lift(call.node.access.revoker, call.query)


async def _failed_jobs(call: _Call[FailedQuery, None]) -> FailedJobs:
    return await failed_answer(await call.node.bus.queues(), call.query.limit)


async def _retry_job(call: _Call[NoQuery, None]) -> JobDone:
    job = job_id(call.path["id"])
    store = await call.node.bus.queues()
    return done(job, was_there=await store.retry(job))


async def _forget_job(call: _Call[NoQuery, None]) -> JobDone:
    job = job_id(call.path["id"])
    store = await call.node.bus.queues()
    return done(job, was_there=await store.forget(job))


_BASE: Final = "/api/broadcast"
_QUEUE: Final = "/api/queue"
_KEY: Final = Parameter(
    IDEMPOTENCY_KEY,
    "Publishing again with the same key, on the same channels, stores nothing twice while the "
    "stream remembers the key (two minutes by default); the answer is that of the first request.",
    Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY)],
)
_NAME: Final = MappingProxyType({"name": Channel})
_ID: Final = MappingProxyType({"id": JobId})

ROUTES: Final[tuple[Route[Any, Any], ...]] = (
    Route("GET", f"{_BASE}/stats", "The cluster: nodes, channels, totals",
          _stats, ListQuery, None, Stats, (503,)),
    Route("GET", f"{_BASE}/channels", "Channels with subscribers",
          _channels, ListQuery, None, Channels, (503,)),
    Route("GET", f"{_BASE}/channels/{{name}}", "One channel",
          _channel, NoQuery, None, ChannelState, (503,), path_types=_NAME),
    Route("GET", f"{_BASE}/channels/{{name}}/members", "Members of a presence channel",
          _members, NoQuery, None, Members, (404, 503), path_types=_NAME),
    Route("GET", f"{_BASE}/channels/{{name}}/history", "Stored messages of a channel",
          _history, HistoryQuery, None, HistoryPage, (503,), path_types=_NAME),
    Route("POST", f"{_BASE}/events", "Publish a message",
          _publish, NoQuery, Publish, Published, (408, 413, 415, 503), (_KEY,)),
    Route("POST", f"{_BASE}/disconnect", "Disconnect clients, or remove subscribers of a channel",
          _disconnect, NoQuery, Disconnect, Disconnected, (408, 413, 415, 503)),
    Route("GET", f"{_BASE}/revocations", "Revocations, and when they end",
          _revocations, RevocationsQuery, None, RevocationList),
    Route("DELETE", f"{_BASE}/revocations", "Lift a revocation",
          _lift, LiftQuery, None, Lifted, (404, 503)),
    Route("GET", f"{_QUEUE}/failed", "Failed queued events, and queue lengths",
          _failed_jobs, FailedQuery, None, FailedJobs, (404, 503)),
    Route("POST", f"{_QUEUE}/failed/{{id}}/retry", "Queue a failed job again",
          _retry_job, NoQuery, None, JobDone, (404, 503), path_types=_ID),
    Route("DELETE", f"{_QUEUE}/failed/{{id}}", "Drop a failed job",
          _forget_job, NoQuery, None, JobDone, (404, 503), path_types=_ID),
)  # fmt: skip
"""All operations; they are validated, described and served from this list."""


def add_api(app: web.Application) -> None:
    """Add the API's routes, and its description at /api/openapi.json."""
    for route in ROUTES:
        handler = _serve(route)
        app.router.add_route(route.method, route.path, handler)
        if route.method == "GET":
            app.router.add_route("HEAD", route.path, handler)  # required by RFC 9110 §9.1
    app.router.add_get("/api/openapi.json", _openapi)


def document() -> dict[str, Any]:
    """The API's OpenAPI document."""
    try:
        number = version("eventbus")
    except PackageNotFoundError:  # run from a folder that is not installed
        number = "0"
    return describe(
        ROUTES,
        title="eventbus",
        version=number,
        description="Publish to channels, and inspect and disconnect clients, on all nodes.",
    )


async def _openapi(request: web.Request) -> web.Response:
    await require_access(request)
    return web.Response(body=msgspec.json.encode(document()), content_type=JSON)


def _serve(route: Route[Any, Any]) -> Any:
    decode = None if route.body is None else json_decoder(route.body)

    async def handle(request: web.Request) -> web.Response:
        await require_access(request)
        query = _query(request, route.query)
        body = None if decode is None else await _body(request, decode)
        call = _Call(request.app[NODE], request.match_info, query, body, request.headers)
        with bus_errors():
            answer = await route.handler(call)
        return web.Response(
            body=msgspec.json.encode(answer),
            content_type=JSON,
            headers={"Cache-Control": "no-store"},
        )

    return handle


@contextlib.contextmanager
def bus_errors() -> Iterator[None]:
    """Raise the errors of the bus as Problems."""
    try:
        yield
    except InvalidChannel as exc:
        raise Problem("invalid_channel", str(exc)) from None
    except (InvalidName, InvalidPattern) as exc:
        raise Problem("bad_request", str(exc)) from None
    except EncodingError as exc:
        raise Problem("payload_too_large", str(exc)) from None
    except NotSupported as exc:
        raise Problem("not_found", str(exc)) from None
    except (DriverError, DispatchFailed, BusStateError, ClusterBusy) as exc:
        if _is_denied(exc):
            raise Problem("forbidden", str(exc)) from exc
        raise Problem("unavailable", str(exc), headers=retry_after(_RETRY_AFTER_S)) from exc


def _is_denied(exc: Exception) -> bool:
    """Whether the bus denied this node permission for all channels, so a retry is pointless."""
    failures = exc.failures.values() if isinstance(exc, DispatchFailed) else (exc,)
    return all(isinstance(failure, PublishDenied) for failure in failures)


async def require_access(request: web.Request) -> Claims | None:
    """Require access to the API; returns the claims of the client's token, if any. Raises Problem.

    A page of a foreign origin must not use the access of a browser on this host.
    """
    request.app[NODE].access.origins.require(request.headers.get("Origin"), request.host)
    claims = await require_admin(request)
    request[REFUND] = 1.0
    return claims


def _query(request: web.Request, type_: type[Q]) -> Q:
    given = request.query
    if len(set(given)) < len(given):
        raise Problem("bad_request", "a parameter is given more than once")
    try:
        return msgspec.convert(dict(given), type_, strict=False)
    except msgspec.ValidationError as exc:
        raise Problem("bad_request", f"the parameters are not valid: {exc}") from None


async def _body(request: web.Request, decode: Any) -> Any:
    text = await read_json_text(request, request.app[NODE].settings.request_timeout)
    try:
        return decode(text)  # as text: msgspec does not check UTF-8 within a Raw
    except msgspec.DecodeError as exc:
        raise Problem("bad_request", f"the body is not valid: {exc}") from None
