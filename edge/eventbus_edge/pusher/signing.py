"""Signatures of requests to the HTTP API, as server libraries make them. Pure.

https://pusher.com/docs/channels/library_auth_reference/rest-api, "Authentication".
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote, unquote_plus

from eventbus.integrations.pusher import PusherApp

__all__ = ["MAX_SKEW_S", "read_parameters", "refusal"]


MAX_SKEW_S: Final = 600
"""How far the time of a request may be from the server's."""
_INDEX: Final = re.compile(r"\[[0-9]*\]$", re.ASCII)
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}", re.ASCII)


def refusal(app: PusherApp, method: str, target: str, body: bytes, *, now: float) -> str | None:
    """Why a request is refused; None if its signature is right.

    `target` is path and query as received, percent-encoding included. Libraries sign values that
    are not percent-encoded, and some sign the path before their HTTP client encodes it.
    """
    path, _, query = _unicode(target).partition("?")
    parameters = _joined(_parts(query, unquote))
    if not hmac.compare_digest(parameters.get("auth_key", "").encode(), app.key.encode()):
        return "auth_key is not the key of this app"
    if parameters.get("auth_version", "1.0") != "1.0":
        return "auth_version must be 1.0"
    timestamp = parameters.get("auth_timestamp", "")
    if not _TIMESTAMP.fullmatch(timestamp):
        return "auth_timestamp must be a time in seconds since 1970"
    skew = abs(now - int(timestamp))
    if skew > MAX_SKEW_S:
        return f"auth_timestamp is {skew:.0f} s away from this server's time: at most {MAX_SKEW_S}"
    digest = parameters.get("body_md5")
    if (digest is None and body) or (digest is not None and digest != _md5(body)):
        return "body_md5 is not the MD5 of the body"
    given = parameters.get("auth_signature", "").encode("utf-8", "replace")
    for decode in (unquote, unquote_plus):
        parts = _parts(query, decode)
        for signed in dict.fromkeys((_canonical(_joined(parts).items()), _canonical(parts))):
            for each in dict.fromkeys((path, unquote(path))):
                expected = app.signature(f"{method.upper()}\n{each}\n{signed}")
                if hmac.compare_digest(expected.encode(), given):
                    return None
    return "auth_signature is wrong"


def read_parameters(target: str) -> dict[str, str]:
    """The parameters of a request; the values of an array are joined by commas."""
    return _joined(_parts(_unicode(target).partition("?")[2], unquote_plus))


def _unicode(target: str) -> str:
    """The target without lone surrogates: bytes that are not UTF-8 come as such."""
    return target.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _parts(query: str, decode: Callable[[str], str]) -> list[tuple[str, str]]:
    parts = []
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        parts.append((unquote(name).lower(), decode(value)))
    return parts


def _joined(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Arrays, `name[]` or `name[0]`, as one parameter: libraries sign them so, or as they are."""
    found: dict[str, str] = {}
    for name, text in parts:
        key = _INDEX.sub("", name)
        found[key] = f"{found[key]},{text}" if key in found else text
    return found


def _canonical(parts: Iterable[tuple[str, str]]) -> str:
    signed = [part for part in parts if part[0] != "auth_signature"]
    signed.sort(key=lambda part: part[0])  # those of an array keep their order
    return "&".join(f"{name}={value}" for name, value in signed)


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
