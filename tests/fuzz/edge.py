"""The decoders of an edge, for data from clients, applications, identity providers and nodes."""

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import json
import logging
import socket
import types
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from eventbus.channels import ChannelKind, Subjects
from eventbus.cluster.cluster import Cluster
from eventbus.config import Settings
from eventbus.drivers import Delivery
from eventbus.errors import ConfigError
from eventbus.integrations.pusher import PusherApp
from eventbus.messages import encode_data
from eventbus_edge.access import AllowedOrigins, Hosts, Origins, TokenRejected, TokenVerifier
from eventbus_edge.access.addresses import ClientAddresses, group
from eventbus_edge.access.authorizers import _read_info
from eventbus_edge.access.jwks import BadKeySet, read_key_set
from eventbus_edge.access.origins import parse_host, parse_origin
from eventbus_edge.access.rules_file import parse_rules
from eventbus_edge.access.tickets import Tickets
from eventbus_edge.access.token_keys import TokenPolicy, algorithms_of, read_public_key
from eventbus_edge.access.tokens import _ById, bearer_token
from eventbus_edge.app import create_app, make_runner
from eventbus_edge.cluster.counts import SubscriptionCounts
from eventbus_edge.config import EdgeSettings
from eventbus_edge.framing.extensions import InvalidExtensions, negotiate_extensions
from eventbus_edge.framing.reader import TEXT, Fault, FrameReader
from eventbus_edge.framing.sse import decode_cursor, encode_cursor
from eventbus_edge.http.contract import _read as read_contract
from eventbus_edge.http.front import MAX_HEAD_BYTES, read_head
from eventbus_edge.lifecycle.holdings import CHANNELS, MEMBERS, Holdings, decode_announcement
from eventbus_edge.metrics.tally import Latencies
from eventbus_edge.metrics.workers import _decode as decode_families
from eventbus_edge.presence.members import decode_entry, token_of
from eventbus_edge.problem import Problem
from eventbus_edge.process.production import production_problems
from eventbus_edge.protocols import NATIVE, Malformed, Pusher, SignIn, Subscribe
from eventbus_edge.protocols.pusher import data_of
from eventbus_edge.pusher.apps import read_app
from eventbus_edge.pusher.signing import refusal
from eventbus_edge.sessions import ClientEvents
from eventbus_edge.transports.handshake import read_handshake
from tests.fuzz.library import in_file, text_of, variables_of
from tests.fuzz.target import target

LIMIT: Final = 4096
_SECRET: Final = "a-secret-of-tests-that-is-32-bytes-long"
_HANDSHAKE: Final = (
    b"GET /ws/general?channel=public HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def masked(first: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes((first,)) + length + bytes(4) + payload


# Frames and requests


@target(
    "eventbus_edge.http.front",
    seeds=[_HANDSHAKE, _HANDSHAKE.replace(b"Host", b"Origin: http://a\r\nhOST")],
)
def request_head(data: bytes) -> None:
    head = read_head(data, 16)
    if head is not None:
        assert head.size <= MAX_HEAD_BYTES
        assert data[head.size - 4 : head.size] == b"\r\n\r\n"
        assert head.headers.getall("Host") == [head.headers["Host"]]
        assert "/." not in head.path
        assert not {"content-length", "transfer-encoding"} & {k.lower() for k in head.headers}


@target(
    "eventbus_edge.framing.reader",
    seeds=[
        b"\x00\x05" + masked(0x81, b'{"action":"ping"}') + masked(0x89, b"p") + masked(0x88, b""),
        b"\x01\x40" + masked(0xC1, b"\xaaV*\xc9\xccM\x05\x00") + masked(0x88, b"\x03\xe8bye"),
        b"\x00\x01" + masked(0x01, b"a") + masked(0x89, b"") + masked(0x80, b"\xc3\xa9"),
    ],
    allowed=(Fault,),
)
def websocket_frames(data: bytes) -> None:
    options, stream = data[:2], data[2:]
    if len(options) < 2:
        return
    reader = FrameReader(LIMIT, deflates=bool(options[0] & 1))
    step = max(1, options[1])
    for start in range(0, len(stream), step):
        reader.feed(stream[start : start + step])
        while (frame := reader.read(drop=bool(options[0] & 2))) is not None:
            assert len(frame.payload) <= LIMIT
            assert frame.text.encode() == (frame.payload if frame.opcode == TEXT else b"")


@target(
    "eventbus_edge.framing.extensions",
    seeds=[
        "permessage-deflate; client_max_window_bits, x-webkit",
        "permessage-deflate; server_max_window_bits=9; server_no_context_takeover",
    ],
    allowed=(InvalidExtensions,),
)
def websocket_extensions(data: bytes) -> None:
    agreed = negotiate_extensions(data.decode("latin-1"))
    if agreed is not None:
        assert 9 <= agreed.window_bits <= 15
        assert agreed.answer.isascii()


_CURSOR: Final = encode_cursor(("a", "b"), {})


@target("eventbus_edge.framing.sse", seeds=[_CURSOR, _CURSOR + b"AA"])
def sse_cursor(data: bytes) -> None:
    for channels in (("a",), ("a", "b")):
        positions = decode_cursor(data.decode("latin-1"), channels)
        if positions is not None:
            again = encode_cursor(channels, positions)
            assert decode_cursor(again.decode(), channels) == positions


@target(
    "eventbus_edge.framing.sse", seeds=[b"\x95\xce\xe8\xb7\xbe\x43\x91\xa1e\x07\x08\x91\x92\0\0"]
)
def packed_sse_cursor(data: bytes) -> None:
    sse_cursor(base64.urlsafe_b64encode(data).rstrip(b"="))


@target(
    "eventbus_edge.protocols.native", "eventbus_edge.transports.sse",
    seeds=[
        b'{"action":"subscribe","channel":"a","data":{"offset":1,"epoch":"e","mark":"m"},"ref":1}',
        b'{"action":"subscribe","pattern":"a.>"}', b'{"action":"auth","data":{"token":"t"}}',
        b'{"action":"whisper","channel":"a","event":"e","data":[1]}',
        b'{"action":"presence","channel":"presence.a","data":{"n":1}}',
        b'{"action":"history","channel":"a","data":{"limit":5,"since":0}}',
        b'{"action":"stats","ref":"r"}', b'{"action":"ping","data":{"a":"\\u00e9"}}',
        b'{"action":"leave","channel":"a"}',
    ],
)  # fmt: skip
def native_command(data: bytes) -> None:
    command = NATIVE.decode(data.decode(errors="replace"))
    if isinstance(command, Malformed):
        assert command.message
    msgspec.json.encode(msgspec.to_builtins(command.ref, enc_hook=str))


_APP: Final = PusherApp(id="1", key="key", secret="a secret of tests")


def _kind(channel: str) -> ChannelKind:
    return ChannelKind.PRESENCE if channel.startswith("presence.") else ChannelKind.PUBLIC


_PUSHER: Final = Pusher(_APP, _kind, cursors=True)
_CHANNEL_DATA: Final = '{"user_id":7,"user_info":{"name":"a"}}'


def _pusher(event: str, data: object, **more: str) -> bytes:
    return json.dumps({"event": event, "data": data, **more}).encode()


@target(
    "eventbus_edge.protocols.pusher",
    seeds=[
        _pusher("pusher:subscribe", {"channel": "a", "cursor": '[1,"e","m"]'}),
        _pusher("pusher:subscribe", {
            "channel": "presence-a", "channel_data": _CHANNEL_DATA,
            "auth": _APP.sign_channel("1.2", "presence-a", _CHANNEL_DATA),
        }),
        _pusher("pusher:signin", {
            "user_data": '{"id":"7"}', "auth": _APP.sign_user("1.2", '{"id":"7"}'),
        }),
        _pusher("pusher:unsubscribe", {"channel": "#server-to-user-1"}),
        _pusher("client-a", {"n": 1}, channel="private-a"), _pusher("pusher:ping", "{}"),
    ],
)  # fmt: skip
def pusher_command(data: bytes) -> None:
    command = _PUSHER.decode(data.decode(errors="replace"))
    assert _PUSHER.prove is not None
    if isinstance(command, SignIn) or (isinstance(command, Subscribe) and command.proof):
        proven = _PUSHER.prove("1.2", command, None)
        assert proven.error is not None or proven.member is not None or command is not SignIn


@target("eventbus_edge.protocols.pusher", seeds=[
    '{"user_id":"7","user_info":{}}', '{"id":"7","watchlist":["8",9],"user_info":{"a":1}}'
])  # fmt: skip
def pusher_signed_data(data: bytes) -> None:
    text = data.decode(errors="replace")
    assert _PUSHER.prove is not None
    channel = {
        "channel": "presence-a", "channel_data": text,
        "auth": _APP.sign_channel("1.2", "presence-a", text),
    }  # fmt: skip
    user = {"user_data": text, "auth": _APP.sign_user("1.2", text)}
    for event, fields in (("pusher:subscribe", channel), ("pusher:signin", user)):
        command = _PUSHER.decode(_pusher(event, fields).decode())
        assert isinstance(command, Subscribe | SignIn), command
        proven = _PUSHER.prove("1.2", command, None)
        assert proven.error is not None or proven.member is not None
        msgspec.json.encode(proven.error)
        encode_data(data_of(text)[0], "the data")


@target("eventbus_edge.pusher.signing", seeds=[
    (b"/apps/1/events?auth_key=key&auth_timestamp=1795470000&auth_version=1.0&body_md5=00"
    b"&auth_signature=00\n{}"),
    b"/apps/1/channels?auth_key=key&filter_by_prefix=presence-&info[]=a&info[]=b\n",
])  # fmt: skip
def pusher_signature(data: bytes) -> None:
    target_text, _, body = data.partition(b"\n")
    why = refusal(_APP, "POST", text_of(target_text), body, now=1795470000.0)
    assert why, "a request without a right signature was accepted"


@target(
    "eventbus_edge.transports.handshake", "eventbus_edge.access.tokens",
    seeds=["/a%2eb\nchannel=a&auth_token=t\nAuthorization: Bearer x",
           "\n\nSec-WebSocket-Protocol: eventbus.v1, eventbus.bearer.abc"],
    allowed=(Problem,),
)  # fmt: skip
def handshake(data: bytes) -> None:
    path, query, *lines = (text_of(data) + "\n\n").split("\n")
    headers = CIMultiDict(
        (name, value.strip()) for name, _, value in (line.partition(":") for line in lines) if name
    )
    found = read_handshake(
        raw_path_channel=path[1:] if path.startswith("/") else None,
        query=parse_qsl(query, keep_blank_values=True),
        headers=CIMultiDictProxy(headers),
        max_channels=10,
        subprotocols=NATIVE.subprotocols,
    )
    assert len(found.channels) <= 10
    assert found.token != ""
    bearer_token(query)


# Access


_VERIFIER: Final = TokenVerifier(TokenPolicy(algorithms=("HS256",), secret=_SECRET))


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _signed(header: bytes, payload: bytes) -> str:
    body = f"{_part(header)}.{_part(payload)}"
    return f"{body}.{_part(hmac.digest(_SECRET.encode(), body.encode(), hashlib.sha256))}"


_HEADER: Final = b'{"alg":"HS256","typ":"JWT"}'
_CLAIMS: Final = (
    b'{"sub":"7","aud":"websocket","exp":4000000000,"iat":1795470000,"jti":"j","roles":["admin"],'
    b'"channels":["a.>"],"info":{"name":"a"}}'
)


def _verify(token: str) -> None:
    claims = _VERIFIER._signed_claims(token, _ById(_VERIFIER._key)).copy()
    _VERIFIER._check_claims(claims)
    claims.is_granted("a.b")
    msgspec.json.encode(claims.presence_info())


@target(
    "eventbus_edge.access.tokens",
    seeds=[_signed(_HEADER, _CLAIMS), "a.b.c", "eyJhbGciOiJub25lIn0.e30."],
    allowed=(TokenRejected,),
)
def jwt(data: bytes) -> None:
    _verify(text_of(data))


@target("eventbus_edge.access.tokens", seeds=[_CLAIMS], allowed=(TokenRejected,))
def jwt_claims(data: bytes) -> None:
    _verify(_signed(_HEADER, data))


@target(
    "eventbus_edge.access.tokens",
    seeds=[_HEADER, b'{"alg":"HS256","crit":["exp"],"b64":false}', b'{"alg":"RS256","kid":7}'],
    allowed=(TokenRejected,),
)
def jwt_header(data: bytes) -> None:
    _verify(_signed(data, _CLAIMS))


@target(
    "eventbus_edge.access.tickets",
    seeds=[Tickets(_SECRET).issue(None), "ebticket-a.b"],
    allowed=(TokenRejected,),
)
def ticket(data: bytes) -> None:
    Tickets(_SECRET).read(text_of(data))


_EC: Final = {"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
              "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}  # fmt: skip
"""RFC 7515, A.3."""


@target(
    "eventbus_edge.access.jwks",
    seeds=[
        json.dumps({"keys": [_EC | {"kid": "1", "use": "sig"}]}),
        '{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}',
    ],
    allowed=(BadKeySet,),
)
def jwks(data: bytes) -> None:
    assert read_key_set(data, frozenset({"RS256", "ES256", "EdDSA"}))


@target(
    "eventbus_edge.access.token_keys",
    seeds=["-----BEGIN PUBLIC KEY-----\\nMCowBQYDK2VwAyEA\\n-----END PUBLIC KEY-----", "key.pem"],
    allowed=(ConfigError,),
)
def public_key(data: bytes) -> None:
    text = read_public_key(data.decode(errors="replace"))
    for algorithm in algorithms_of(text):
        TokenVerifier(TokenPolicy(algorithms=(algorithm,), public_key=text))


@target(
    "eventbus_edge.access.rules_file",
    seeds=[
        (
            '[[rule]]\npattern = "orders.{shop}.>"\nkind = "private"\nwhisper = "authenticated"\n'
            'join = { roles = ["clerk"], user = "shop" }\nhistory = 10'
        ),
        '[[rule]]\npattern = "a"\nretain = true\nhistory = false',
        "a = 1979-05-27T07:32:00Z\nb = 0x10\nc = [1, 2]\nd = +1_000.5e3\n'e' = '''x'''",
    ],
    allowed=(ConfigError,),
)
def rules_file(data: bytes) -> None:
    for rule in parse_rules(data.decode(errors="replace"), "rules.toml"):
        rule.pattern.match("orders.1.2")


_PROXIES: Final = [ClientAddresses(("127.0.0.0/8", "::1"), name)
                   for name in ("X-Forwarded-For", "Forwarded")]  # fmt: skip


@target(
    "eventbus_edge.access.addresses",
    seeds=[
        "10.0.0.1, [2001:db8::1]:80",
        'for="[::1]:1";proto=https, for=127.0.0.2',
        "fe80::1%eth0",
    ],
)
def forwarded_addresses(data: bytes) -> None:
    text = data.decode("latin-1")
    for addresses in _PROXIES:
        headers = {"X-Forwarded-For": text, "Forwarded": text}
        found = addresses.of("127.0.0.1", headers)
        assert not set(found) & set(" ,\r\n\0")
        group(found)
    _PROXIES[0].of(text, {})
    group(text)


_ORIGINS: Final = Origins(("https://*.example.com", "null"), Hosts(()))


@target(
    "eventbus_edge.access.origins", "eventbus_edge.access.hosts",
    seeds=["https://a.example.com\nlocalhost:80", "null\n[::1]:8080", "capacitor://localhost\na"],
    allowed=(Problem,),
)  # fmt: skip
def origin(data: bytes) -> None:
    logging.getLogger("eventbus_edge.access.hosts").setLevel(logging.CRITICAL)
    origin, _, host = data.decode("latin-1").partition("\n")
    with contextlib.suppress(ConfigError):
        AllowedOrigins((origin,))
    parsed = parse_origin(origin)
    assert parsed is None or parsed.port is None or 0 < parsed.port < 65536
    parse_host(host)
    _ORIGINS.require_host(host)
    _ORIGINS.require(origin, host)


@target("eventbus_edge.access.authorizers", seeds=['{"name":"a","n":[1,2.5]}'], allowed=(
    TypeError, ValueError,
))  # fmt: skip
def authorizer_info(data: bytes) -> None:
    verdict = msgspec.json.decode(data)
    assert isinstance(_read_info(verdict), dict)


# Settings and documents


@target(
    "eventbus_edge.config.edge", "eventbus_edge.pusher.apps", "eventbus_edge.process.production",
    seeds=[
        "JWT_SECRET=0123456789abcdef0123456789abcdef\nBROADCAST_HEARTBEAT=25",
        "CORS_ALLOWED_ORIGINS=https://a,*\nBROADCAST_MAX_CONNECTIONS=7\nPUSHER_APP_ID=1",
        "BROADCAST_WEBHOOK_URL=https://a/b\nPUSHER_ENCRYPTION_KEY=AA==\nPUSHER_AUTH_COOKIE=a",
    ],
    allowed=(ConfigError,),
)  # fmt: skip
def edge_settings(data: bytes) -> None:
    settings = EdgeSettings.from_env(variables_of(data))
    repr(settings)
    read_app(settings)
    AllowedOrigins(settings.cors_allowed_origins)
    production_problems(settings)


_CONTRACT: Final = {
    "asyncapi": "3.0.0",
    "channels": {"c": {"address": "a", "messages": {"m": {
        "name": "client-e",
        "payload": {"properties": {"channel": {"const": "a"}, "data": {"type": "object"}}},
    }}}},
    "operations": {"o": {"action": "receive", "channel": {"$ref": "#/channels/c"},
                         "messages": [{"$ref": "#/channels/c/messages/m"}]}},
}  # fmt: skip


@target(
    "eventbus_edge.http.contract", "eventbus_edge.sessions.client_events",
    seeds=[json.dumps(_CONTRACT), '{"asyncapi":"3.0.0","operations":{"o":{"action":"receive"}}}'],
    allowed=(ConfigError,),
)  # fmt: skip
def contract_document(data: bytes) -> None:
    events = ClientEvents(read_contract(str(in_file(data))), strict=True)
    events.fault("a", "client-e", b"{}")


_DECLARED: Final = ClientEvents(_CONTRACT, strict=True)


@target("eventbus_edge.sessions.client_events", seeds=[b"{}", b"[[1e400]]", b'{"a":"\\ud800"}'])
def client_event_data(data: bytes) -> None:
    fault = _DECLARED.fault("a", "client-e", data)
    assert fault is None or msgspec.json.encode(fault)


# Other nodes


@target("eventbus_edge.presence.members", "eventbus_edge.presence.keeper", seeds=[
    b'{"user_id":"7","info":{"name":"a"},"at":1795470000000}'
])  # fmt: skip
def presence_entry(data: bytes) -> None:
    for user_id in ("7", "\ud800"):
        entry = decode_entry(token_of(user_id), data)
        if entry is not None:
            assert entry.user_id == user_id
            assert isinstance(msgspec.json.decode(entry.info), dict)


@target("eventbus_edge.lifecycle.holdings", seeds=[
    (b'{"event":{"id":"x","event":"channel_occupied","channel":"general",'
    b'"timestamp":"2026-11-24T03:00:12Z"},"batch":"b","is_told":false}'),
    b'{"user_id":"7","info":{"name":"a"},"at":1795470000000}',
])  # fmt: skip
def lifecycle_entry(data: bytes) -> None:
    found = decode_announcement("lifecycle.told.c.general", data)
    assert found is None or found.event.channel == "general"
    for kind, key in ((CHANNELS, "interest.n.general"), (MEMBERS, "members.n.presence.a.token")):
        holdings = Holdings(kind, {"n"})
        holdings.set(key, data, 0.0)
        assert holdings.has(key, data)


@target("eventbus_edge.metrics.tally", seeds=["2026-11-24T03:00:12Z", "0001-01-01T00:00:00+23:59"])
def published_time(data: bytes) -> None:
    Latencies().since(text_of(data))


@target("eventbus_edge.metrics.workers", seeds=[
    msgspec.msgpack.encode([("n", "d", "gauge", [("n", {"a": "b"}, 1.0)])])
], allowed=(msgspec.DecodeError, UnicodeDecodeError))  # fmt: skip
def worker_metrics(data: bytes) -> None:
    decode_families(data)


class _Bus:
    """The driver of a cluster without other members."""

    name = "none"
    is_connected = True

    async def publish(self, subject: str, payload: bytes, headers: Any = None) -> None:
        """Drop it."""


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _run(work: Any) -> Any:
    return _loop().run_until_complete(work)


@target(
    "eventbus.cluster.cluster", "eventbus_edge.cluster.counts",
    seeds=[
        b'{"type":"hello","node":"n"}', b'{"type":"bye","node":"n"}',
        b'{"type":"ask","id":"1","node":"n","question":"channels","body":{"pattern":">"}}',
        b'{"type":"answer","id":"1","node":"n","part":0,"parts":1,"body":{}}',
        b'{"type":"unanswered","id":"1","node":"n","reason":"r"}',
        b'{"node":"n","counts":{"a":1},"wanted":["b"]}',
    ],
)  # fmt: skip
def cluster_message(data: bytes) -> None:
    _run(_receive(data))


async def _receive(data: bytes) -> None:
    faults: list[str] = []
    subjects = Subjects()
    driver: Any = _Bus()
    cluster = Cluster(driver, subjects, "own", faults.append)
    cluster._receive(Delivery("eb.control.nodes", data))
    hub: Any = types.SimpleNamespace(count=lambda _: 0)
    counts = SubscriptionCounts(
        driver, subjects, cluster, hub, is_counted=lambda _: True, on_counted=lambda _: None
    )
    counts._receive(Delivery("eb.control.counts", data))
    await asyncio.sleep(0)
    await cluster._background.aclose()


# A whole node


@functools.cache
def _pair() -> tuple[socket.socket, socket.socket]:
    """An open socket, for code that checks whether it is open."""
    return socket.socketpair()


class _Socket(asyncio.Transport):
    """A socket that accepts everything."""

    def __init__(self) -> None:
        super().__init__(
            {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2), "socket": _pair()[0]}
        )
        self.written = bytearray()
        self.protocol: Any = None
        self.is_closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            _loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing more comes anyway."""

    def resume_reading(self) -> None:
        """Nothing more comes anyway."""

    def is_reading(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def get_write_buffer_size(self) -> int:
        return 0


class _Faults(logging.Handler):
    """Collects logged errors: each is a fault of the node, whatever it answered the client."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@functools.cache
def _node() -> tuple[web.AppRunner, _Faults]:
    faults = _Faults()
    for name in ("eventbus", "eventbus_edge", "asyncio", "aiohttp"):
        logging.getLogger(name).addHandler(faults)
    much: dict[str, Any] = {f"max_{what}_per_address": 1e7 for what in ("requests", "history")} | {
        "max_connections_per_address": 10**6,
        "max_connections": 10**6,
        "max_questions": 1e6,
    }
    settings = EdgeSettings(
        jwt_secret=_SECRET, pusher_app_id="1", pusher_app_key="key",
        pusher_app_secret="a secret of tests", compression=True, **much,
    )  # fmt: skip

    async def start() -> web.AppRunner:
        runner = make_runner(create_app(settings, Settings(driver="memory")))
        await runner.setup()
        return runner

    return _run(start()), faults


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings about what clients do, which are right and many."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


_TURNS: Final = 40
"""Of the event loop, for answers; a node over memory needs a few."""


async def _serve(runner: web.AppRunner, data: bytes) -> bytes:
    assert runner.server is not None
    client = _Socket()
    client.protocol = runner.server()
    client.protocol.connection_made(client)
    for piece in data.split(b"\n--\n"):  # packets
        if not client.is_closed:
            client.protocol.data_received(piece)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
    client.close()
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    return bytes(client.written)


def _request(line: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@target(
    "eventbus_edge.http.api", "eventbus_edge.http.body", "eventbus_edge.transports.sse",
    "eventbus_edge.pusher.api",
    seeds=[
        _HANDSHAKE + b"\n--\n" + masked(0x81, b'{"action":"subscribe","channel":"public"}'),
        _HANDSHAKE.replace(b"/ws/general?channel=public", b"/app/key?protocol=7&cursor=1")
        + masked(0x81, b'{"event":"pusher:subscribe","data":{"channel":"public"}}'),
        _request("POST /api/broadcast/events", b'{"channel":"a","event":"e","data":[1]}'),
        _request("POST /api/broadcast/disconnect", b'{"user_id":"7"}'),
        _request("GET /api/broadcast/stats?pattern=a.*&limit=5"),
        _request("GET /api/broadcast/channels/general/history?limit=2&since=0"),
        _request("GET /api/broadcast/channels/presence.a/members"),
        _request("GET /api/broadcast/revocations?limit=1"),
        _request("DELETE /api/broadcast/revocations?user_id=7"),
        _request("GET /api/queue/failed?limit=1") + _request("POST /api/queue/failed/x/retry"),
        _request("GET /sse?channel=general", b"", "Last-Event-ID: AA"),
        _request("POST /sse", b'[{"action":"subscribe","channel":"general"}]'),
        _request("GET /apps/1/channels?auth_key=key&auth_timestamp=1&auth_signature=0"),
        _request("POST /pusher/auth", b"socket_id=1.2&channel_name=private-a"),
        _request("GET /metrics") + _request("GET /readyz") + _request("OPTIONS /sse"),
        (b"POST /api/broadcast/events HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    ],
)  # fmt: skip
def connection(data: bytes) -> None:
    runner, faults = _node()
    with _quiet():
        written = _run(_serve(runner, data))
    assert not faults.found, faults.found.pop()
    assert not written.startswith((b"HTTP/1.1 500", b"HTTP/1.0 500")), written
