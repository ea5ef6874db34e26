"""Bad input of every kind: a clear answer each time, and everyone is served after it."""

import asyncio
import json

import pytest

UPGRADE = (
    b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
DEEP = "[" * 20_000 + "]" * 20_000

BAD_CHANNELS = {
    "empty": "",
    "only a dot": ".",
    "leading dot": ".general",
    "trailing dot": "general.",
    "empty token": "user..7",
    "star": "*",
    "star token": "user.*",
    "rest": ">",
    "rest token": "user.>",
    "named token": "user.{user_id}",
    "space": "gen eral",
    "tab": "gen\teral",
    "line break": "general\r\nPUB x 1\r\n\r\n",
    "line feed at the end": "general\n",
    "NUL": "general\x00",
    "VT": "general\x0b",
    "FF": "general\x0c",
    "DEL": "general\x7f",
    "accent": "général",
    "full-width": "\uff47eneral",
    "emoji": "💥",
    "right to left": "\u202egeneral",
    "slash": "user/7",
    "dollar": "$SYS.REQ",
    "percent": "user%2e7",
    "201 bytes": "x" * 201,
    "long": "x" * 50_000,
}
CHANNEL_ACTIONS = {
    "subscribe": {},
    "join": {},
    "unsubscribe": {},
    "leave": {},
    "whisper": {"event": "e", "data": 1},
}


@pytest.fixture
async def well(edge):
    """Another client of the same node, which must notice nothing."""
    client = await edge.connect("/ws/general")
    await client.next()
    return client


async def all_are_served(edge, bus, well, *clients):
    """The others, the sender of what was bad, and who comes next."""
    newcomer = await edge.connect("/ws/general")
    await newcomer.next()
    for client in clients:
        assert await client.receives_nothing()
        await client.subscribe("general")
    await bus.publish("general", "e", "still here")
    for client in (well, newcomer, *clients):
        assert (await client.next())["data"] == "still here"


@pytest.mark.parametrize("name", BAD_CHANNELS.values(), ids=BAD_CHANNELS)
async def test_no_action_takes_a_name_that_is_not_a_channel(edge, bus, well, token, name):
    client = await edge.connect(token=token())
    for action, fields in CHANNEL_ACTIONS.items():
        answer = await client.ask(action, channel=name, ref=action, **fields)
        assert (answer["event"], answer["channel"]) == ("eb:error", None)
        assert answer["data"]["code"] == "invalid_channel"
        assert answer["data"]["ref"] == action
        assert "allowed: " in answer["data"]["message"]
        assert len(answer["data"]["message"]) < 400
    await all_are_served(edge, bus, well, client)


FRAMES = [
    # what is sent, the code of the answer, and what its message speaks of
    ("", "bad_request", "JSON|truncated"),
    (" ", "bad_request", "truncated"),
    ("hello", "bad_request", "malformed"),
    ("{", "bad_request", "truncated"),
    ("[]", "bad_request", "object"),
    ("null", "bad_request", "object"),
    ("{}", "bad_request", "action"),
    ('{"action":1}', "bad_request", "action"),
    ('{"action":""}', "unknown_action", "allowed are"),
    ('{"action":"SUBSCRIBE","channel":"general"}', "unknown_action", "allowed are"),
    ('{"action":"eb:connected"}', "unknown_action", "allowed are"),
    ('{"action":"' + "x" * 60_000 + '"}', "unknown_action", "allowed are"),
    ('{"action":"ping","data":NaN}', "bad_request", "malformed"),
    ('{"action":"ping","data":-Infinity}', "bad_request", "malformed"),
    (r'{"action":"ping","data":"\ud800"}', "bad_request", "truncated|surrogate"),
    (r'{"action":"ping","data":"\udc00\ud800"}', "bad_request", "surrogate|truncated"),
    ('{"action":"ping","data":' + DEEP + "}", "bad_request", "too deeply"),
    ('{"action":"ping","x":' + DEEP + "}", "bad_request", "too deeply"),
    ('{"action":"ping","ref":[1]}', "bad_request", "ref"),
    ('{"action":"ping","ref":1.5}', "bad_request", "ref"),
    ('{"action":"ping","ref":' + "9" * 60_000 + "}", "bad_request", "ref"),
    ('{"action":"auth"}', "bad_request", "data"),
    ('{"action":"auth","data":"token"}', "bad_request", "object"),
    ('{"action":"auth","data":{"token":7}}', "bad_request", "token"),
    ('{"action":"auth","data":{"token":""}}', "unauthorized", "empty"),
    ('{"action":"auth","data":{"token":"a b"}}', "unauthorized", "JWT"),
    ('{"action":"auth","data":{"token":"a.b.c"}}', "unauthorized", "JWT"),
    ('{"action":"auth","data":{"token":"é\\u0000\\r\\n"}}', "unauthorized", "JWT"),
    ('{"action":"auth","data":{"token":"' + "x" * 60_000 + '"}}', "unauthorized", "longer"),
    ('{"action":"subscribe"}', "bad_request", "channel"),
    ('{"action":"subscribe","channel":null}', "bad_request", "channel"),
    ('{"action":"subscribe","channel":["general"]}', "bad_request", "channel"),
    ('{"action":"subscribe","channel":"user.8"}', "forbidden", "user.8"),
    ('{"action":"subscribe","channel":"admin"}', "forbidden", "admin"),
    ('{"action":"subscribe","channel":"nobody.knows"}', "forbidden", "nobody.knows"),
    ('{"action":"subscribe","channel":"general","data":7}', "bad_request", "object"),
    ('{"action":"subscribe","channel":"general","data":{"offset":1}}', "bad_request", "epoch"),
    ('{"action":"subscribe","channel":"general","data":{"epoch":"e"}}', "bad_request", "offset"),
    ('{"action":"join","channel":"general","data":{"offset":-1,"epoch":"e"}}', "bad_request", "0"),
    ('{"action":"join","channel":"general","data":{"history":-1}}', "bad_request", "history"),
    ('{"action":"join","channel":"general","data":{"history":1e9}}', "bad_request", "history|int"),
    ('{"action":"unsubscribe"}', "bad_request", "channel"),
    ('{"action":"unsubscribe","channel":{}}', "bad_request", "channel"),
    ('{"action":"unsubscribe","channel":"public"}', "not_subscribed", "public"),
    ('{"action":"whisper"}', "bad_request", "channel|event"),
    ('{"action":"whisper","channel":"chat.1","data":1}', "bad_request", "event"),
    ('{"action":"whisper","channel":"chat.1","event":7,"data":1}', "bad_request", "event"),
    ('{"action":"whisper","channel":"chat.1","event":"e"}', "bad_request", "data"),
    ('{"action":"whisper","channel":"chat.2","event":"e","data":1}', "not_subscribed", "chat.2"),
    ('{"action":"whisper","channel":"chat.1","event":"","data":1}', "bad_request", "event name"),
    ('{"action":"whisper","channel":"chat.1","event":"pong","data":1}', "bad_request", "pong"),
    ('{"action":"whisper","channel":"chat.1","event":"eb:x","data":1}', "bad_request", "eb:"),
    ('{"action":"whisper","channel":"chat.1","event":"pusher:x","data":1}', "bad_request", "push"),
    (
        r'{"action":"whisper","channel":"chat.1","event":"a\r\nb","data":1}',
        "bad_request",
        "control",
    ),
    (
        '{"action":"whisper","channel":"chat.1","event":"' + "x" * 194 + '","data":1}',
        "bad_request",
        "200",
    ),
    (
        '{"action":"whisper","channel":"chat.1","event":"e","data":"' + "x" * 10_239 + '"}',
        "payload_too_large",
        "10240",
    ),
    (b"\x00\x01", "bad_request", "binary"),
    (b'{"action":"ping"}', "bad_request", "binary"),
]


@pytest.mark.parametrize(("frame", "code", "expected"), FRAMES, ids=range(len(FRAMES)))
async def test_a_bad_frame_is_answered_and_the_connection_continues(
    edge, bus, well, token, frame, code, expected
):
    client = await edge.connect("/ws/chat.1", token=token("7"))
    await client.next()
    await client.socket.send(frame)
    answer = await client.next()
    assert answer["event"] == "eb:error"
    assert answer["data"]["code"] == code
    assert any(word in answer["data"]["message"] for word in expected.split("|")), answer
    assert len(answer["data"]["message"]) < 500
    await all_are_served(edge, bus, well, client)


async def test_a_whisper_without_a_token_is_unauthorized(edge, bus, well):
    client = await edge.connect()
    assert await client.error("subscribe", channel="chat.1") == "unauthorized"
    whisper = {"channel": "chat.1", "event": "e", "data": 1}
    assert await client.error("whisper", **whisper) == "not_subscribed"
    await all_are_served(edge, bus, well, client)


async def test_a_whisper_on_a_channel_that_has_none_is_forbidden(edge, bus, well, token):
    client = await edge.connect("/ws/notifications", token=token())
    await client.next()
    whisper = {"channel": "notifications", "event": "e", "data": 1}
    assert await client.error("whisper", **whisper) == "forbidden"
    await all_are_served(edge, bus, well, client)


async def test_fields_injected_into_a_whisper_stay_data(edge, well, token):
    """Whatever a whisper holds, its receivers get JSON, with the fields that the node gave."""
    sender = await edge.connect("/ws/chat.1", token=token("7"))
    other = await edge.connect("/ws/chat.1", token=token("8"))
    await sender.next()
    await other.next()
    data = {"channel": "user.8", "event": "eb:connected", "</script>": "\u2028\x7f", "n": 1e308}
    await sender.send("whisper", channel="chat.1", event='","user_id":"admin', data=data)
    frame = await other.next()
    assert frame["event"] == 'client-","user_id":"admin'
    assert (frame["channel"], frame["user_id"], frame["data"]) == ("chat.1", "7", data)
    assert "offset" not in frame


async def test_one_channel_too_many_is_refused_and_the_connection_continues(start_edge, bus, token):
    edge = await start_edge(bus, max_channels_per_connection=2)
    client = await edge.connect("/ws?channel=chat.1&channel=chat.2", token=token())
    await client.next()
    await client.next()
    assert await client.error("subscribe", channel="chat.3") == "limit_exceeded"
    await client.ask("leave", channel="chat.1")
    await client.subscribe("chat.3")


# What closes the connection


@pytest.mark.parametrize(
    ("size", "code"), [(1024, None), (1025, 1009), (2**20, 1009)], ids=["at", "above", "far above"]
)
async def test_a_frame_above_the_limit_closes_with_1009(start_edge, bus, size, code):
    edge = await start_edge(bus, max_frame_bytes=1024)
    well = await edge.connect("/ws/general")
    await well.next()
    client = await edge.connect()
    frame = '{"action":"ping","data":"' + "x" * (size - 27) + '"}'
    assert len(frame) == size
    await client.socket.send(frame)
    if code is None:
        assert (await client.next())["event"] == "pong"
    else:
        assert await client.closed() == code
    await all_are_served(edge, bus, well)


async def test_fragments_that_add_up_to_more_than_the_limit_close_with_1009(start_edge, bus):
    edge = await start_edge(bus, max_frame_bytes=1024)
    client = await edge.connect()
    with_fragments = ["x" * 400] * 4
    await client.socket.send(with_fragments)
    assert await client.closed() == 1009


async def test_text_that_is_not_utf_8_closes_with_1007(edge, bus, well):
    client = await edge.connect()
    await client.socket.send(b'{"action":"\xff"}', text=True)
    assert await client.closed() == 1007
    await all_are_served(edge, bus, well)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x83\x80\x00\x00\x00\x00",  # a reserved opcode
        b"\xc1\x80\x00\x00\x00\x00",  # RSV1 without an extension
        b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + b"x" * 126,  # a long control frame
        b"\x80\x80\x00\x00\x00\x00",  # a continuation of nothing
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",  # 2^64-1 bytes
        b"\x88\x81\x00\x00\x00\x00x",  # a close frame of one byte
        b"\x88\x82\x00\x00\x00\x00\x00\x00",  # close code 0
    ],
    ids=["opcode", "rsv", "control", "continuation", "huge", "close-1", "close-0"],
)
async def test_invalid_websocket_frame_ends_its_connection_and_no_other(edge, bus, well, frame):
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET /ws HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame)
    async with asyncio.timeout(40):
        answer = await reader.read()  # to the end
    assert answer.startswith(b"HTTP/1.1 101 ")
    writer.close()
    await all_are_served(edge, bus, well)


# The handshake


async def ask(edge, target, head=b"", upgrade=UPGRADE):
    """Send a request as bytes; gives the status, the headers and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    try:
        writer.write(b"GET " + target + b" HTTP/1.1\r\n" + upgrade + head + b"\r\n")
        async with asyncio.timeout(40):
            raw = await reader.readuntil(b"\r\n\r\n")
            lines = raw.decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        writer.close()
    return int(lines[0].split()[1]), headers, body


HANDSHAKES = {
    "empty path": (b"/ws/", b"", 400, "invalid_channel"),
    "two segments": (b"/ws/general/x", b"", 400, "invalid_channel"),
    "dots": (b"/ws/..", b"", 400, "invalid_channel"),
    "star": (b"/ws/*", b"", 400, "invalid_channel"),
    "rest": (b"/ws/user.%3e", b"", 400, "invalid_channel"),
    "encoded CRLF": (b"/ws/general%0d%0aX:y", b"", 400, "invalid_channel"),
    "encoded LF": (b"/ws/general%0a", b"", 400, "invalid_channel"),
    "encoded NUL": (b"/ws/general%00", b"", 400, "invalid_channel"),
    "encoded VT": (b"/ws/general%0b", b"", 400, "invalid_channel"),
    "encoded space": (b"/ws/gen%20eral", b"", 400, "invalid_channel"),
    "plus": (b"/ws/gen+eral", b"", 400, "invalid_channel"),
    "encoded slash": (b"/ws/user%2f7", b"", 400, "invalid_channel"),
    "encoded UTF-8": (b"/ws/g%C3%A9n", b"", 400, "invalid_channel"),
    "encoded invalid UTF-8": (b"/ws/g%ff%fe", b"", 400, "invalid_channel"),
    "encoded surrogate": (b"/ws/g%ed%a0%80", b"", 400, "invalid_channel"),
    "overlong": (b"/ws/user%c0%ae7", b"", 400, "invalid_channel"),
    "half an escape": (b"/ws/general%", b"", 400, "invalid_channel"),
    "no escape": (b"/ws/general%zz", b"", 400, "invalid_channel"),
    "doubly encoded": (b"/ws/user%252e7", b"", 400, "invalid_channel"),
    "201 bytes": (b"/ws/" + b"x" * 201, b"", 400, "invalid_channel"),
    "5000 bytes": (b"/ws/" + b"x" * 5000, b"", 400, "invalid_channel"),
    "bad parameter": (b"/ws?channel=a%20b", b"", 400, "invalid_channel"),
    "empty parameter": (b"/ws?channel=", b"", 400, "invalid_channel"),
    "invalid UTF-8 parameter": (b"/ws?channel=g%ff", b"", 400, "invalid_channel"),
    "NUL parameter": (b"/ws?channel=general%00", b"", 400, "invalid_channel"),
    "one bad of many": (b"/ws?channel=general&channel=*", b"", 400, "invalid_channel"),
    "good path, bad parameter": (b"/ws/general?channel=.", b"", 400, "invalid_channel"),
    "101 channels": (
        b"/ws?" + b"&".join(b"channel=c%d" % n for n in range(101)),
        b"",
        400,
        "limit_exceeded",
    ),
    "two tokens": (b"/ws?auth_token=a.b.c&auth_token=a.b.c", b"", 400, "bad_request"),
    "empty token": (b"/ws?auth_token=", b"", 401, "unauthorized"),
    "no JWT": (b"/ws?auth_token=abc", b"", 401, "unauthorized"),
    "token with CRLF": (b"/ws?auth_token=a%0d%0ab", b"", 401, "unauthorized"),
    "token of invalid UTF-8": (b"/ws?auth_token=%ff", b"", 401, "unauthorized"),
    "a private channel": (b"/ws/user.7", b"", 401, "unauthorized"),
    "basic": (b"/ws", b"Authorization: Basic dTpw\r\n", 401, "unauthorized"),
    "bearer of nothing": (b"/ws", b"Authorization: Bearer\r\n", 401, "unauthorized"),
    "bearer of bytes": (b"/ws", b"Authorization: Bearer \xff\xfe\r\n", 401, "unauthorized"),
    "two authorizations": (
        b"/ws",
        b"Authorization: Bearer a.b.c\r\nAuthorization: Bearer a.b.c\r\n",
        400,
        "bad_request",
    ),
    "only the token's protocol": (
        b"/ws",
        b"Sec-WebSocket-Protocol: eventbus.bearer.a.b.c\r\n",
        400,
        "bad_request",
    ),
    "an unknown protocol": (b"/ws", b"Sec-WebSocket-Protocol: graphql-ws\r\n", 400, "bad_request"),
    "an empty token's protocol": (
        b"/ws",
        b"Sec-WebSocket-Protocol: eventbus.v1, eventbus.bearer.\r\n",
        401,
        "unauthorized",
    ),
    "two tokens' protocols": (
        b"/ws",
        b"Sec-WebSocket-Protocol: eventbus.v1, eventbus.bearer.a, eventbus.bearer.b\r\n",
        400,
        "bad_request",
    ),
    "another origin": (b"/ws", b"Origin: https://evil.example\r\n", 403, "forbidden"),
    "the null origin": (b"/ws", b"Origin: null\r\n", 403, "forbidden"),
    "no origin": (b"/ws", b"Origin: \r\n", 403, "forbidden"),
    "an origin of bytes": (b"/ws", b"Origin: http://\xff\r\n", 403, "forbidden"),
    "an origin that begins alike": (b"/ws", b"Origin: http://a.evil\r\n", 403, "forbidden"),
}


@pytest.mark.parametrize(("target", "head", "status", "code"), HANDSHAKES.values(), ids=HANDSHAKES)
async def test_a_bad_handshake_is_refused_with_a_problem_that_says_why(
    edge, bus, well, target, head, status, code
):
    refused, headers, body = await ask(edge, target, head)
    problem = json.loads(body)
    assert (refused, problem["code"]) == (status, code)
    assert headers["content-type"].startswith("application/problem+json")
    assert problem["status"] == status
    assert problem["detail"]
    assert len(body) < 1000
    assert ("www-authenticate" in headers) == (status == 401)
    await all_are_served(edge, bus, well)


HTTP = {
    "no key": (b"/ws", UPGRADE.replace(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"")),
    "a bad key": (b"/ws", UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short")),
    "another upgrade": (b"/ws", UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c")),
}


@pytest.mark.parametrize(("target", "upgrade"), HTTP.values(), ids=HTTP)
async def test_invalid_websocket_handshake_is_a_bad_request(edge, bus, well, target, upgrade):
    status, _, body = await ask(edge, target, upgrade=upgrade)
    assert (status, json.loads(body)["code"]) == (400, "bad_request")
    await all_are_served(edge, bus, well)


ALLOWED_ORIGINS = [
    (b"", True),  # not a browser's
    (b"Origin: http://a\r\n", True),  # the request's own host
    (b"Origin: https://app.example\r\n", True),
    (b"Origin: https://app.example:8443\r\n", False),
    (b"Origin: http://app.example\r\n", False),
    (b"Origin: https://app.example.evil\r\n", False),
]


@pytest.mark.parametrize(("head", "allowed"), ALLOWED_ORIGINS, ids=range(len(ALLOWED_ORIGINS)))
async def test_an_origin_must_be_the_host_or_be_listed(start_edge, bus, head, allowed):
    edge = await start_edge(bus, cors_allowed_origins=("https://app.example",))
    status, _, _ = await ask(edge, b"/ws/general", head)
    assert status == (101 if allowed else 403)


async def test_unknown_parameters_are_ignored(edge):
    status, _, _ = await ask(edge, b"/ws/general?x=1&x=%ff&__proto__=1&channel[]=*")
    assert status == 101
