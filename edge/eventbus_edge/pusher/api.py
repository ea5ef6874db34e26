"""The HTTP API for server libraries: publish, list channels and users, end connections.

Requests are signed with the app's secret. Statuses and bodies are those that the libraries expect.
"""

import datetime
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec
from aiohttp import web

from eventbus.channels import ChannelKind, validate_channel
from eventbus.cluster import MAX_LISTED, ChannelStats, Disconnect, ListQuery
from eventbus.errors import InvalidChannel, InvalidEventName
from eventbus.integrations.pusher import SOCKET_ID, PusherApp
from eventbus.messages import (
    encode_data,
    gather_receipts,
    json_decoder,
    new_id,
    validate_event_name,
)
from eventbus_edge.http import REFUND, bus_errors, read_body
from eventbus_edge.keys import node_of
from eventbus_edge.node import Node
from eventbus_edge.problem import Problem
from eventbus_edge.protocols import (
    INBOX,
    channel_of,
    data_of,
    has_cache,
    name_of,
    text_id,
    text_of,
)
from eventbus_edge.pusher.signing import read_parameters, refusal

__all__ = ["add_api"]


T = TypeVar("T")

MAX_CHANNELS: Final = 100
MAX_BATCH: Final = 10
MAX_NAME: Final = 200
_BODY_S: Final = 10.0
_FEW: Final = 3
"""Up to this many channels are requested one by one, since the list of all may be long."""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


class _Event(msgspec.Struct):
    name: _Name
    data: Any
    channels: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)] | None = (
        None
    )
    channel: str | None = None
    socket_id: str | None = None
    info: str | None = None


class _Batch(msgspec.Struct):
    batch: Annotated[list[_Event], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


_decode_event: Final = json_decoder(_Event)
_decode_batch: Final = json_decoder(_Batch)


class _Checked(NamedTuple):
    """An event that may be published."""

    names: Sequence[str]
    channels: Sequence[str]
    event: str
    data: Any
    message_id: str
    socket_id: str | None
    info: frozenset[str]


class _Request(NamedTuple):
    """A request whose signature was checked."""

    node: Node
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes


Handler = Callable[[_Request], Awaitable[Any]]


def add_api(app: web.Application, apps: Sequence[PusherApp]) -> None:
    """Add the API's routes for all apps."""
    terminate = "/users/{user}/terminate_connections"
    add = app.router.add_route
    for each in apps:
        start = f"/apps/{each.id}"
        for method, path, handler in (
            ("POST", f"{start}/events", _publish),
            ("POST", f"{start}/batch_events", _publish_batch),
            ("GET", f"{start}/channels", _channels),
            ("GET", f"{start}/channels/{{name}}", _channel),
            ("GET", f"{start}/channels/{{name}}/users", _users),
            ("POST", f"{start}{terminate}", _terminate),
            ("GET", f"{start}/connections", _connections),
        ):
            methods = (method, "HEAD") if method == "GET" else (method,)
            signed = _signed([each], handler)
            for served in methods:
                add(served, path, signed)
            add("*", path, _refusing_all_but(methods))  # before the last route, which has any path
    add("POST", terminate, _signed(apps, _terminate))  # the Python library leaves out the app
    add("*", "/apps/{id}/{rest:.*}", _no_app)


def _refusing_all_but(methods: Sequence[str]) -> Callable[[web.Request], Awaitable[NoReturn]]:
    async def refuse(request: web.Request) -> NoReturn:
        raise web.HTTPMethodNotAllowed(request.method, methods)

    return refuse


async def _no_app(request: web.Request) -> web.Response:
    raise Problem(
        "not_found", f"there is no app {request.match_info['id']!r}, or no such path in it"
    )


def _signed(
    apps: Sequence[PusherApp], handler: Handler
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler for signed requests of these apps, which their keys identify."""
    by_key = {app.key: app for app in apps}

    async def handle(request: web.Request) -> web.Response:
        body = await read_body(request, _BODY_S)
        parameters = read_parameters(request.raw_path)
        app = by_key.get(parameters.get("auth_key", ""), apps[0])
        fault = refusal(app, request.method, request.raw_path, body, now=time.time())
        if fault is not None:
            raise Problem("unauthorized", fault)
        request[REFUND] = 1.0
        node = node_of(request.app, f"/apps/{app.id}")
        call = _Request(node, request.match_info, parameters, body)
        with bus_errors():
            answer = await handler(call)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    return handle


def _decode(body: bytes, decode: Callable[[str], T]) -> T:
    try:
        return decode(body.decode())
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Problem("bad_request", f"the body is not valid: {exc}") from None


# Publishing


async def _publish(request: _Request) -> Any:
    event = _check(request.node, _decode(request.body, _decode_event))
    [found] = await _attributes(request.node, [event])
    await _send(request.node, event)
    return {"channels": found} if event.info else {}


async def _publish_batch(request: _Request) -> Any:
    batch = _decode(request.body, _decode_batch).batch
    if any(event.channels is not None for event in batch):
        raise Problem("bad_request", "an event of a batch must have channel, not channels")
    events = [_check(request.node, event) for event in batch]
    attributes = await _attributes(request.node, events)
    for event in events:
        await _send(request.node, event)
    if not any(event.info for event in events):
        return {}
    return {"batch": [by_name.get(event.names[0], {})
                      for event, by_name in zip(events, attributes, strict=True)]}  # fmt: skip


def _check(node: Node, event: _Event) -> _Checked:
    if (event.channel is None) == (event.channels is None):
        raise Problem("bad_request", "exactly one of channel and channels is required")
    names = list(dict.fromkeys(event.channels or [event.channel or ""]))
    if len(names) > 1 and any(name.startswith("private-encrypted-") for name in names):
        message = "an event for an encrypted channel has no other channels: each has a key"
        raise Problem("bad_request", message)
    try:
        validate_event_name(event.name)
    except InvalidEventName as exc:
        raise Problem("bad_request", str(exc)) from None
    if event.socket_id is not None and not SOCKET_ID.fullmatch(event.socket_id):
        raise Problem("bad_request", "socket_id is not valid: it must look like 123.456")
    data, is_text = data_of(event.data)
    encode_data(data, f"the data of event {event.name!r}")
    return _Checked(
        names=names,
        channels=[_receiving(node, name) for name in names],
        event=event.name,
        data=data,
        message_id=text_id(new_id()) if is_text else new_id(),
        socket_id=event.socket_id,
        info=_info(event.info),
    )


def _channel_of(name: str) -> str:
    try:
        return validate_channel(channel_of(name)[0])
    except InvalidChannel as exc:
        raise Problem("invalid_channel", str(exc), status=400) from None


def _receiving(node: Node, name: str) -> str:
    """The channel to publish on.

    A public one is refused under the name of a private one: everybody would receive what is meant
    for few.
    """
    channel = _channel_of(name)
    if channel_of(name)[1] is not ChannelKind.PUBLIC and _kind_of(node, channel) is (
        ChannelKind.PUBLIC
    ):
        message = f"by its rule, {channel!r} is public: {name!r} is the name of no channel"
        raise Problem("invalid_channel", message, status=400)
    return channel


def _kind_of(node: Node, channel: str) -> ChannelKind:
    return node.access.rules.find(channel).kind


def _info(text: str | None) -> frozenset[str]:
    return frozenset(filter(None, (text or "").split(",")))


async def _send(node: Node, event: _Checked) -> None:
    sends = [
        node.bus.publish(
            channel,
            event.event,
            event.data,
            except_connection=event.socket_id,
            id=event.message_id,
        )
        for channel in event.channels
    ]
    await gather_receipts(event.channels, sends)


async def _attributes(node: Node, events: Sequence[_Checked]) -> list[dict[str, Any]]:
    """The attributes that each event asks for, by the names of its channels.

    They are requested before the events are sent, since a later refusal would look as if nothing
    had been sent. Many channels take one request to the other nodes, because these are limited.
    """
    asked = dict.fromkeys(channel for event in events if event.info for channel in event.channels)
    if len(asked) > _FEW:
        listed = await node.census.channels(ListQuery(limit=MAX_LISTED))
        known = {each.channel: each for each in listed.channels}
        ask = [channel for channel in asked if channel not in known] if listed.truncated else []
    else:
        known, ask = {}, list(asked)
    for channel in ask:
        known[channel] = await node.census.channel(channel)
    return [
        {
            name: await _attributes_of(node, _named(node, name, known.get(channel), channel),
                                       event.info)
            for name, channel in zip(event.names, event.channels, strict=True)
        }
        if event.info else {}
        for event in events
    ]  # fmt: skip


def _named(node: Node, name: str, stats: ChannelStats | None, channel: str) -> ChannelStats:
    """What is known of a channel under this name: nothing under a name of another kind."""
    kind = _kind_of(node, channel)
    if stats is None or name_of(channel, kind) != name:
        return ChannelStats(channel=channel, kind=kind, connections=0)
    return stats


# Channels and users


async def _channels(request: _Request) -> Any:
    prefix, info = request.query.get("filter_by_prefix", ""), _info(request.query.get("info"))
    if "user_count" in info and not prefix.startswith("presence-"):
        message = "user_count is for presence channels: filter_by_prefix must begin with presence-"
        raise Problem("bad_request", message)
    listed = await request.node.census.channels(ListQuery(limit=MAX_LISTED))
    found = {}
    for stats in listed.channels:
        name = name_of(stats.channel, stats.kind)
        if stats.connections and name.startswith(prefix) and not name.startswith(INBOX):
            found[name] = await _attributes_of(request.node, stats, info)
    return {"channels": found}


async def _channel(request: _Request) -> Any:
    name = request.path["name"]
    channel, info = _channel_of(name), _info(request.query.get("info"))
    if "user_count" in info and not name.startswith("presence-"):
        raise Problem("bad_request", "user_count is for presence channels only")
    stats = await request.node.census.channel(channel)
    stats = _named(request.node, name, stats, channel)
    return {"occupied": bool(stats.connections)} | await _attributes_of(request.node, stats, info)


async def _users(request: _Request) -> Any:
    name = request.path["name"]
    if not name.startswith("presence-"):
        raise Problem("bad_request", "only presence channels have users")
    channel = _channel_of(name)
    if _kind_of(request.node, channel) is not ChannelKind.PRESENCE:
        raise Problem("bad_request", f"by its rule, {channel!r} is not a presence channel")
    members = await request.node.presence.fetch(channel)
    return {"users": [{"id": member.user_id} for member in members]}


async def _attributes_of(node: Node, stats: ChannelStats, info: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    is_presence = stats.kind is ChannelKind.PRESENCE
    if "user_count" in info and is_presence:
        found["user_count"] = stats.members or 0
    if "subscription_count" in info and not is_presence:
        found["subscription_count"] = stats.connections
    if "cache" in info:
        found["cache"] = await _cached(node, stats.channel)
    return found


async def _cached(node: Node, channel: str) -> dict[str, Any] | None:
    if not has_cache(channel):
        return None
    page = await node.traffic.read_history(channel, None, 1)
    if not page.messages:
        return None
    message = page.messages[-1]
    ttl_s = node.bus.settings.history_seconds - _age_s(message.published)
    return {"data": text_of(message.body), "ttl": max(0, round(ttl_s))}


def _age_s(published: str | None) -> float:
    """The age of a message; 0 if its time is not known."""
    try:
        moment = datetime.datetime.fromisoformat(published or "")
    except ValueError:
        return 0.0
    return max(0.0, time.time() - moment.timestamp())


async def _connections(request: _Request) -> Any:
    """The number of connections of the app, as in Laravel Reverb."""
    nodes = (await request.node.census.stats()).nodes
    return {"connections": sum(node.connections for node in nodes)}


async def _terminate(request: _Request) -> Any:
    await request.node.census.disconnect(Disconnect(user_id=request.path["user"]))
    return {}
