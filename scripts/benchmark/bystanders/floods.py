"""Floods: what a client sends endlessly, for each kind of frame and request."""

import json
import secrets
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from eventbus.integrations.pusher import PusherApp
from eventbus.tokens import issue_token
from scripts.benchmark.sizing.processes import SECRET

__all__ = ["APP", "FLOODS", "Flood", "frame", "handshake"]

APP: Final = PusherApp(id="1", key="bystanders", secret="a secret of this measurement")
BATCH: Final = 64 * 1024
"""Bytes that a flooding client writes to its socket at once."""
_MAX_FRAME: Final = 64 * 1024
"""The limit on the size of a frame: BROADCAST_MAX_FRAME_BYTES."""
_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # the client does not check the answer
_TEXT, _BINARY, _PING, _PONG, _CLOSE = 0x81, 0x82, 0x89, 0x8A, 0x88
_RSV1: Final = 0x40


class Flood(NamedTuple):
    """One kind of flood."""

    first: bytes
    """Sent once, on each connection."""
    repeated: bytes
    """Sent again and again."""
    comes_and_goes: bool = False
    """Whether the client reconnects after each answer."""


def frame(first: int, payload: bytes | str = b"") -> bytes:
    """A client's frame, masked with zeros (RFC 6455, section 5.3)."""
    data = payload.encode() if isinstance(payload, str) else payload
    size = len(data)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2)
    else:
        length = b"\xff" + size.to_bytes(8)
    return bytes((first,)) + length + bytes(4) + data


def handshake(path: str, *headers: str) -> bytes:
    """The opening handshake of a WebSocket."""
    return request(
        f"GET {path}", b"", "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {_KEY}", *headers,
    )  # fmt: skip


def request(line: str, body: bytes = b"", *headers: str) -> bytes:
    """A request, with a JSON body if one is given."""
    lines = [f"{line} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _token(user: str = "") -> str:
    return issue_token(user or f"flood-{secrets.token_hex(4)}", secret=SECRET)


def _native(*commands: Mapping[str, Any] | bytes, path: str = "/ws") -> Flood:
    """A client with a token that sends commands."""
    frames = (_as_frame(command) for command in commands)
    return Flood(handshake(path, f"Authorization: Bearer {_token()}"), b"".join(frames))


def _as_frame(command: Mapping[str, Any] | bytes) -> bytes:
    return command if isinstance(command, bytes) else frame(_TEXT, json.dumps(command))


def _pusher(*events: Mapping[str, Any]) -> Flood:
    """A client of the Pusher protocol that sends events."""
    path = f"/app/{APP.key}?protocol=7&client=flood&version=1"
    return Flood(handshake(path), b"".join(map(_as_frame, events)))


def _deflated(payload: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return frame(_TEXT | _RSV1, data.removesuffix(b"\x00\x00\xff\xff"))


def _compressed(payload: bytes) -> Flood:
    offer = "Sec-WebSocket-Extensions: permessage-deflate"
    return Flood(handshake("/ws", offer), _deflated(payload))


def _connecting(first: bytes) -> Flood:
    return Flood(first, b"", comes_and_goes=True)


def _join(channel: str, **data: Any) -> dict[str, Any]:
    return {"action": "subscribe", "channel": channel, "data": data or None}


def _leave(channel: str) -> dict[str, Any]:
    return {"action": "unsubscribe", "channel": channel}


def _frames() -> Iterator[tuple[str, Flood]]:
    """WebSocket frames, valid and invalid."""
    plain = handshake("/ws")
    yield "pings", Flood(plain, frame(_PING))
    yield "pings, 125 bytes", Flood(plain, frame(_PING, b"p" * 125))
    yield "pongs", Flood(plain, frame(_PONG))
    yield "empty fragments", Flood(plain + frame(0x01), frame(0x00))
    yield "fragments, 1 byte", Flood(plain + frame(0x01, b"["), frame(0x00, b"1"))
    yield "empty texts", Flood(plain, frame(_TEXT))
    yield "binary frames", Flood(plain, frame(_BINARY, b"x"))
    yield "binary frames, 60 kB", Flood(plain, frame(_BINARY, bytes(60_000)))
    yield "not JSON", Flood(plain, frame(_TEXT, b"{" * 100))
    yield "not JSON, 60 kB", Flood(plain, frame(_TEXT, b"[" + b"1," * 30_000))
    yield "deep JSON, 60 kB", Flood(plain, frame(_TEXT, b"[" * 30_000 + b"]" * 30_000))
    strings = b'{"action":"ping","data":[' + b'"\\"[",' * 9_000 + b"1]}"
    yield "JSON of brackets in strings", Flood(plain, frame(_TEXT, strings))
    yield "large texts", Flood(plain, frame(_TEXT, b"[" + b"1," * 30_000 + b"1]"))
    yield "frames beyond the limit", _connecting(plain + frame(_TEXT, b"x" * (_MAX_FRAME + 1)))
    yield "not UTF-8", _connecting(plain + frame(_TEXT, b"\xff\xfe"))
    yield "close frames", _connecting(plain + frame(_CLOSE, b"\x03\xe8"))
    yield "compressed pings", _compressed(b'{"action":"ping"}')
    yield (
        "compressed, 64 kB of zeros",
        _compressed(b'{"action":"ping","data":"%b"}' % (b"0" * 65_000)),
    )
    yield "compressed, beyond the limit", _compressed(bytes(50_000_000))


def _commands() -> Iterator[tuple[str, Flood]]:
    """Commands of the native protocol."""
    yield "ping", _native({"action": "ping"})
    yield "ping with a large echo", _native({"action": "ping", "data": "x" * 15_000})
    yield "unknown action", _native({"action": "destroy"})
    yield (
        "auth, wrong tokens",
        Flood(handshake("/ws"), _as_frame({"action": "auth", "data": {"token": _token() + "x"}})),
    )
    yield (
        "auth, fresh tokens",
        _native(*({"action": "auth", "data": {"token": _token("same")}} for _ in range(50))),
    )
    yield "subscribe and unsubscribe", _native(_join("public"), _leave("public"))
    yield "subscribe with history", _native(_join("general", history=100), _leave("general"))
    resume = _join("general", offset=1, epoch="other", mark="m")
    yield "subscribe and resume", _native(resume, _leave("general"))
    yield "subscribe, many channels", _native(*(_join(f"presence.{n}") for n in range(300)))
    yield "subscribe, denied", _native(_join("admin.secrets"))
    yield "subscribe, invalid name", _native(_join("a..b"))
    yield (
        "subscribe to a pattern",
        _native(
            {"action": "subscribe", "pattern": "user.*"},
            {"action": "unsubscribe", "pattern": "user.*"},
        ),
    )
    yield "presence, join and leave", _native(_join("presence.a"), _leave("presence.a"))
    asked = {"action": "presence", "channel": "presence.general"}
    yield "presence, list", _native(asked, path="/ws/presence.general")
    updates = ({**asked, "data": {"n": number}} for number in range(100))
    yield "presence, updates", _native(*updates, path="/ws/presence.general")
    whisper = {"action": "whisper", "channel": "presence.general", "event": "typing", "data": 1}
    yield "whispers", _native(whisper, path="/ws/presence.general")
    large = {**whisper, "data": "x" * 10_000}
    yield "whispers, 10 kB", _native(large, path="/ws/presence.general")
    yield "history", _native({"action": "history", "channel": "general", "data": {"limit": 100}})
    yield "history, empty", _native({"action": "history", "channel": "public"})
    yield "stats", _native({"action": "stats"})


def _events() -> Iterator[tuple[str, Flood]]:
    """Events of the Pusher protocol."""
    subscribe = {"event": "pusher:subscribe", "data": {"channel": "public"}}
    leave = {"event": "pusher:unsubscribe", "data": {"channel": "public"}}
    yield "pusher: ping", _pusher({"event": "pusher:ping", "data": {}})
    yield "pusher: pong", _pusher({"event": "pusher:pong", "data": {}})
    yield "pusher: subscribe and unsubscribe", _pusher(subscribe, leave)
    signed = {"channel": "private-a", "auth": f"{APP.key}:{'0' * 64}"}
    yield "pusher: wrong signatures", _pusher({"event": "pusher:subscribe", "data": signed})
    user = {"user_data": '{"id":"7"}', "auth": f"{APP.key}:{'0' * 64}"}
    yield "pusher: wrong sign-ins", _pusher({"event": "pusher:signin", "data": user})
    yield "pusher: client events", _pusher({"event": "client-a", "channel": "public", "data": {}})
    yield "pusher: unknown events", _pusher({"event": "a", "data": {}})
    connecting = _connecting(handshake(f"/app/{APP.key}?protocol=7"))
    yield "pusher: connect and disconnect", connecting
    yield "pusher: unknown apps", _connecting(handshake("/app/nobody?protocol=7"))


def _requests() -> Iterator[tuple[str, Flood]]:
    """Handshakes, streams and requests."""
    yield "connect and disconnect", _connecting(handshake("/ws"))
    yield "connect with a token", _connecting(handshake(f"/ws/general?auth_token={_token()}"))
    yield "connect with a wrong token", _connecting(handshake("/ws?auth_token=a.b.c"))
    forged = _token()[:-4] + "AAAA"
    yield "connect with a forged token", _connecting(handshake(f"/ws?auth_token={forged}"))
    channels = "&".join(f"channel=presence.{number}" for number in range(100))
    yield "connect to 100 channels", _connecting(handshake(f"/ws?auth_token={_token()}&{channels}"))
    yield "sockets without a request", _connecting(b"")
    yield "incomplete heads", Flood(b"GET /ws HTTP/1.1\r\n", b"X-A: b\r\n")
    yield "not HTTP", Flood(b"", b"\x16\x03\x01\x02\x00\x01\x00" * 50)
    yield "SSE", _connecting(request("GET /sse?channel=general"))
    yield "SSE by POST", _connecting(request("POST /sse", b"[%b]" % b",".join(
        [json.dumps(_join("general")).encode()] * 90
    )))  # fmt: skip
    for method, path in (
        ("GET", "/"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"),
        ("GET", "/eventbus.js"), ("GET", "/nothing"), ("OPTIONS", "/sse"),
        ("GET", "/api/openapi.json"), ("GET", "/api/broadcast/stats"),
        ("GET", "/api/broadcast/channels"), ("GET", "/api/broadcast/channels/general"),
        ("GET", "/api/broadcast/channels/presence.a/members"),
        ("GET", "/api/broadcast/channels/general/history"),
        ("GET", "/api/broadcast/revocations"), ("DELETE", "/api/broadcast/revocations"),
        ("GET", "/api/queue/failed"), ("POST", "/api/queue/failed/x/retry"),
        ("DELETE", "/api/queue/failed/x"),
    ):  # fmt: skip
        key = "Authorization: Bearer wrong"
        yield f"{method} {path}", Flood(b"", request(f"{method} {path}", b"", key))
    body = b'{"channel":"general","event":"e","data":"%b"}' % (b"x" * 500_000)
    for path in ("/api/broadcast/events", "/api/broadcast/disconnect", "/apps/1/events",
                 "/apps/1/batch_events", "/pusher/auth", "/pusher/user-auth", "/sse"):  # fmt: skip
        yield f"POST {path}, 500 kB", Flood(b"", request(f"POST {path}", body))
    signed = f"auth_key={APP.key}&auth_timestamp=1&auth_version=1.0&auth_signature={'0' * 64}"
    yield "GET /apps/1/channels, forged", Flood(b"", request(f"GET /apps/1/channels?{signed}"))


FLOODS: Final[Mapping[str, Flood]] = dict(
    item for part in (_frames, _commands, _events, _requests) for item in part()
)
"""All kinds of flood, by name."""
