"""Signatures for clients of the Pusher protocol, such as pusher-js and Laravel Echo.

An edge signs by itself at /broadcasting/auth, by a user's token and the channel rules. An
application that decides by itself answers that request instead:

    sign("1234.5678", "private-orders.42")
    sign("1234.5678", "presence-chat.1", user_id="7", user_info={"name": "Ada"})
    sign("1234.5678", "private-encrypted-bank.7", encryption_key=key)

See https://pusher.com/docs/channels/library_auth_reference/auth-signatures.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Self

import msgspec

from eventbus.environment import SettingsStruct, Var, load
from eventbus.errors import InvalidName
from eventbus.messages import encode_data

__all__ = [
    "ENCRYPTED", "SOCKET_ID", "PusherApp", "decode_key", "shared_secret", "sign", "sign_user",
]  # fmt: skip

MAX_WATCHED: Final = 100
ENCRYPTED: Final = "private-encrypted-"
KEY_BYTES: Final = 32
SOCKET_ID: Final = re.compile(r"[0-9]{1,20}\.[0-9]{1,20}", re.ASCII)
"""The id of a connection: two numbers with a dot."""
_CHANNEL: Final = re.compile(r"(private|presence)-[A-Za-z0-9_=@,.;~-]{1,190}", re.ASCII)


class PusherApp(SettingsStruct, frozen=True, kw_only=True):
    """What clients and applications identify themselves with; edges have the same settings."""

    id: Annotated[
        Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}$")],
        Var("PUSHER_APP_ID", "the id of the app", "1 to 20 digits"),
    ] = ""
    key: Annotated[
        Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")],
        Var("PUSHER_APP_KEY", "the key of the app", "1 to 64 letters, digits, _ and -"),
    ] = ""
    secret: Annotated[
        Annotated[str, msgspec.Meta(min_length=8)],
        Var("PUSHER_APP_SECRET", "the secret of the app", "8 characters or more", secret=True),
    ] = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The app of `environ`, the process's environment when None. Raises ConfigError."""
        return load(cls, environ)

    def sign_channel(self, socket_id: str, name: str, channel_data: str | None = None) -> str:
        """The `auth` of a subscription; `channel_data` is signed as the text that is sent."""
        signed = f"{socket_id}:{name}"
        return self._auth(signed if channel_data is None else f"{signed}:{channel_data}")

    def sign_user(self, socket_id: str, user_data: str) -> str:
        """The `auth` of a user who signs in; `user_data` is signed as the text that is sent."""
        return self._auth(f"{socket_id}::user::{user_data}")

    def signature(self, text: str) -> str:
        """HMAC-SHA256 of a text, in lower-case hexadecimal digits."""
        signed = text.encode("utf-8", "surrogatepass")
        return hmac.new(self.secret.encode(), signed, hashlib.sha256).hexdigest()

    def _auth(self, text: str) -> str:
        return f"{self.key}:{self.signature(text)}"


def sign(
    socket_id: str,
    channel_name: str,
    *,
    user_id: str | int | None = None,
    user_info: Mapping[str, Any] | None = None,
    encryption_key: str = "",
    app: PusherApp | None = None,
) -> dict[str, str]:
    """The JSON answer to a request for /broadcasting/auth of a user who may subscribe.

    `socket_id` and `channel_name` are those of the request. A presence channel needs a `user_id`;
    `user_info` is what the other members see, besides the id. A `private-encrypted-…` channel
    needs the master key of the publishers, 32 bytes in Base64, which no edge needs to have. `app`
    defaults to that of the environment.

    Raises InvalidName, ValueError (no `user_id`, or no valid key), EncodingError, ConfigError.
    """
    _check(socket_id)
    if not _CHANNEL.fullmatch(channel_name):
        shown = repr(channel_name)[:80]
        raise InvalidName(
            f"{shown} is not the name of a private-… or presence-… channel: others are not signed",
            name=shown,
        )
    app = app or PusherApp.from_env()
    if channel_name.startswith(ENCRYPTED):
        key = decode_key(encryption_key)
        if not key:
            raise ValueError(
                f"{channel_name} is an encrypted channel: it needs an encryption_key of "
                f"{KEY_BYTES} bytes in Base64, such as from `openssl rand -base64 {KEY_BYTES}`"
            )
        auth = app.sign_channel(socket_id, channel_name)
        return {"auth": auth, "shared_secret": shared_secret(channel_name, key)}
    if not channel_name.startswith("presence-"):
        return {"auth": app.sign_channel(socket_id, channel_name)}
    if user_id in {None, ""}:
        raise ValueError(f"{channel_name} is a presence channel: it needs a user_id")
    info = {"id": str(user_id), **(user_info or {})}
    data = _encode({"user_id": str(user_id), "user_info": info})
    return {"auth": app.sign_channel(socket_id, channel_name, data), "channel_data": data}


def sign_user(
    socket_id: str,
    user_id: str | int,
    *,
    user_info: Mapping[str, Any] | None = None,
    watchlist: Sequence[str | int] = (),
    app: PusherApp | None = None,
) -> dict[str, str]:
    """The JSON answer to a request for /broadcasting/user-auth: who the user is.

    `watchlist` names up to 100 users; clients are notified when these come and go. Otherwise as
    `sign`.
    """
    _check(socket_id)
    if user_id in {None, ""}:
        raise ValueError("user_id is empty")
    if len(watchlist) > MAX_WATCHED:
        raise ValueError(f"watchlist has {len(watchlist)} users: at most {MAX_WATCHED} are allowed")
    data: dict[str, Any] = {"id": str(user_id)}
    if user_info:
        data["user_info"] = dict(user_info)
    if watchlist:
        data["watchlist"] = [str(each) for each in watchlist]
    text = _encode(data)
    app = app or PusherApp.from_env()
    return {"auth": app.sign_user(socket_id, text), "user_data": text}


def decode_key(text: str) -> bytes | None:
    """The master key of encrypted channels; empty for an empty text, None if it is not valid."""
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return key if len(key) in {0, KEY_BYTES} else None


def shared_secret(channel_name: str, key: bytes) -> str:
    """The key of one encrypted channel, in Base64, which its subscribers get.

    See https://pusher.com/docs/channels/using_channels/encrypted-channels.
    """
    return base64.b64encode(hashlib.sha256(channel_name.encode() + key).digest()).decode()


def _check(socket_id: str) -> None:
    if not SOCKET_ID.fullmatch(socket_id):
        shown = repr(socket_id)[:80]
        raise InvalidName(f"{shown} is not a socket id: it must look like 123.456", name=shown)


def _encode(data: Mapping[str, Any]) -> str:
    return encode_data(data, "the data of the user").decode()
