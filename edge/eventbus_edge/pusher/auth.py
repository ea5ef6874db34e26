"""Signs subscriptions and users for browsers, by the user's token and the channel rules.

No backend is needed for that. An application may also sign by itself, with the app's secret: both
signatures are accepted.
"""

from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from eventbus.channels import ChannelKind, validate_channel
from eventbus.errors import InvalidChannel
from eventbus.integrations.pusher import ENCRYPTED, SOCKET_ID, PusherApp, shared_secret
from eventbus_edge.access import (
    PRICE_OF_A_CHANNEL,
    Claims,
    Denied,
    TokenRejected,
    bearer_token,
)
from eventbus_edge.http import REFUND, read_form_or_json
from eventbus_edge.keys import node_of
from eventbus_edge.node import Access
from eventbus_edge.problem import Problem, bad_token
from eventbus_edge.protocols import channel_of, name_of
from eventbus_edge.pusher.apps import App, read_key

__all__ = ["add_auth"]


_BODY_S: Final = 10.0


def add_auth(app: web.Application, pusher_app: App, path: str) -> None:
    """Add the endpoints below `path` that browsers request signatures from. Raises ConfigError."""
    settings = pusher_app.settings
    signer = _Signer(pusher_app.credentials, settings.pusher_auth_cookie, read_key(settings))
    app.router.add_post(f"{path}/auth", signer.sign_subscription)
    app.router.add_post(f"{path}/user-auth", signer.sign_user)


class _Connection(msgspec.Struct):
    socket_id: str


class _Subscription(_Connection):
    channel_name: str


_C = TypeVar("_C", bound=_Connection)


class _Signed(msgspec.Struct, omit_defaults=True):
    auth: str
    channel_data: str | None = None
    user_data: str | None = None
    shared_secret: str | None = None
    """The key of an encrypted channel."""


class _Signer:
    """Answers both endpoints."""

    def __init__(self, app: PusherApp, cookie: str, key: bytes) -> None:
        """The cookie, if it has a name, holds a token. `key` is that of encrypted channels."""
        self._app = app
        self._cookie = cookie
        self._key = key

    async def sign_subscription(self, request: web.Request) -> web.Response:
        """Sign a subscription that the user's token allows. Raises Problem."""
        asked = await self._read(request, _Subscription)
        name = asked.channel_name
        channel, kind = _read_name(name)
        claims = await self._claims(request)
        decision = await _access(request).authorizers.decide(channel, claims)
        if isinstance(decision, Denied):
            raise Problem(decision.code, decision.message)
        right = name_of(channel, decision.rule.kind)
        if right != name or kind is ChannelKind.PUBLIC:
            how = "without one" if right == name else f"to {right!r}"
            raise Problem("forbidden", f"{name!r} gets no signature: subscribe {how}")
        data = None
        if kind is ChannelKind.PRESENCE:
            info = {"id": claims.user_id} | claims.presence_info() | dict(decision.info)
            data = _encode({"user_id": claims.user_id, "user_info": info})
        auth = self._app.sign_channel(asked.socket_id, name, data)
        return _respond(_Signed(auth, data, shared_secret=self._shared_secret(name)))

    async def sign_user(self, request: web.Request) -> web.Response:
        """Sign who the user of the token is. Raises Problem."""
        asked = await self._read(request, _Connection)
        claims = await self._claims(request)
        user = {"id": claims.user_id, "user_info": claims.presence_info()}
        if claims.watchlist:
            user["watchlist"] = claims.watchlist
        data = _encode(user)
        auth = self._app.sign_user(asked.socket_id, data)
        return _respond(_Signed(auth, user_data=data))

    def _shared_secret(self, name: str) -> str | None:
        if not self._key or not name.startswith(ENCRYPTED):
            return None
        return shared_secret(name, self._key)

    async def _read(self, request: web.Request, type_: type[_C]) -> _C:
        _access(request).origins.require(request.headers.get("Origin"), request.host)
        fields = await read_form_or_json(request, _BODY_S)
        try:
            asked = msgspec.convert(fields, type_)
        except msgspec.ValidationError as exc:
            raise Problem("bad_request", f"the body is not valid: {exc}") from None
        if not SOCKET_ID.fullmatch(asked.socket_id):
            raise Problem("bad_request", "socket_id is not valid: it must look like 123.456")
        return asked

    async def _claims(self, request: web.Request) -> Claims:
        token = self._token(request)
        if not token:
            raise Problem(
                "unauthorized", "the request has no token: send it as Authorization: Bearer"
            )
        try:
            claims = await _access(request).authenticator.verify(token)
        except TokenRejected as exc:
            raise bad_token(exc.code, str(exc)) from None
        # Each channel of a client costs a request here, and many clients may come back at once.
        request[REFUND] = 1.0 - PRICE_OF_A_CHANNEL
        return claims

    def _token(self, request: web.Request) -> str | None:
        header = request.headers.get("Authorization")
        if header is None:
            return request.cookies.get(self._cookie) if self._cookie else None
        return bearer_token(header)


def _access(request: web.Request) -> Access:
    return node_of(request.app, request.path).access


def _read_name(name: str) -> tuple[str, ChannelKind]:
    channel, kind = channel_of(name)
    try:
        return validate_channel(channel), kind
    except InvalidChannel as exc:
        raise Problem("invalid_channel", str(exc)) from None


def _encode(data: dict[str, Any]) -> str:
    return msgspec.json.encode(data).decode()


def _respond(signed: _Signed) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(signed),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
