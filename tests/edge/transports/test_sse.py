"""Server-Sent Events over real connections: the same rules and messages as WebSockets."""

import asyncio
import contextlib
import io
import json
import socket

import aiohttp
import pytest

PATIENCE_S = 40.0


class Stream:
    """One open stream, read event by event."""

    def __init__(self, response):
        self.response = response
        self.cursor = None
        self.comments = 0

    async def event(self):
        """The fields of the next event; None at the end."""
        fields = {}
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.response.content.readline():
                text = line.decode().rstrip("\n")
                if text.startswith(":"):
                    self.comments += 1
                elif text:
                    name, _, value = text.partition(": ")
                    assert name in {"data", "id", "retry"}
                    fields[name] = value
                elif "data" in fields:
                    self.cursor = fields.get("id", self.cursor)
                    return fields
        assert fields == {}
        return None

    async def next(self):
        """The envelope of the next event."""
        return json.loads((await self.event())["data"])

    async def subscribed(self):
        frame = await self.next()
        assert frame["event"] == "eb:subscribed", frame
        return frame


@pytest.fixture
def bus(each_bus):
    return each_bus


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def listen(http, clients):
    """Open a stream: `await listen(edge, "general", …)`; it ends with the test."""

    async def open_one(edge, *channels, token=None, cursor=None, **options):
        headers = options.pop("headers", {})
        if token is not None:
            headers = headers | {"Authorization": f"Bearer {token}"}
        if cursor is not None:
            headers = headers | {"Last-Event-ID": cursor}
        query = [("channel", name) for name in channels] + options.pop("query", [])
        request = http.get(edge.url + "/sse", params=query, headers=headers, **options)
        stream = Stream(await clients.enter_async_context(request))
        assert stream.response.status == 200, await stream.response.text()
        assert (await stream.next())["event"] == "eb:connected"
        return stream

    return open_one


async def refusal(http, edge, query, **headers):
    async with http.get(f"{edge.url}/sse{query}", headers=headers) as response:
        assert response.content_type == "application/problem+json"
        return response.status, (await response.json())["code"]


async def ended(edge, count=0):
    """Wait until the node has no more than so many connections."""
    async with asyncio.timeout(PATIENCE_S):
        while len(edge.node.connections) > count:  # noqa: ASYNC110 - the node has no event for it
            await asyncio.sleep(0.01)


async def test_stream_has_the_messages_that_websockets_have(edge, bus, listen):
    stream = await listen(edge, "general")
    socket = await edge.connect("/ws/general")
    assert (await stream.subscribed())["data"] == (await socket.next())["data"]
    await bus.publish("general", "e", {"text": "grüße\n"})
    await bus.publish("general", "v", 1, volatile=True)
    for _ in range(2):
        assert await stream.next() == await socket.next()


async def test_headers_keep_proxies_from_holding_events_back(edge, listen):
    headers = (await listen(edge, "general")).response.headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Accel-Buffering"] == "no"


async def test_curl_shows_events_as_they_come(edge, bus):
    process = await asyncio.create_subprocess_exec(
        "curl", "-sN", f"{edge.url}/sse?channel=general", stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"eb:subscribed" not in (line := await process.stdout.readline()):
                assert line, "curl has ended"
            await bus.publish("general", "e", "for curl")
            while b"for curl" not in (line := await process.stdout.readline()):
                assert line, "curl has ended"
    finally:
        process.kill()
        await process.communicate()
    await ended(edge)


async def test_old_http_client_gets_a_stream_without_chunks(edge, bus):
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET /sse?channel=general HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert (await reader.readuntil(b"\n\n")).startswith(b"data: {")
    writer.close()
    await writer.wait_closed()
    await ended(edge)


async def test_channel_needs_a_token_and_the_right_to_it(edge, http, token, listen):
    for query, expected in (
        ("", (400, "bad_request")),
        ("?channel=", (400, "invalid_channel")),
        ("?channel=a%20b", (400, "invalid_channel")),
        ("?channel=general&channel=user.7", (401, "unauthorized")),
        ("?channel=user.7&auth_token=x", (401, "unauthorized")),
        (f"?channel=user.8&auth_token={token('7')}", (403, "forbidden")),
    ):
        assert await refusal(http, edge, query) == expected
    assert edge.node.connections == {}
    for options in ({"token": token("7")}, {"query": [("auth_token", token("7"))]}):
        assert (await (await listen(edge, "user.7", **options)).subscribed())["channel"] == "user.7"


async def test_node_that_wants_tokens_refuses_a_stream_without_one(start_edge, bus, http):
    edge = await start_edge(bus, auth_required=True)
    assert await refusal(http, edge, "?channel=general") == (401, "unauthorized")


async def test_pages_of_allowed_origins_may_read_it_and_no_others(start_edge, bus, http, listen):
    edge = await start_edge(bus, cors_allowed_origins=("https://app.example",))
    good, bad = {"Origin": "https://app.example"}, {"Origin": "https://evil.example"}
    stream = await listen(edge, "general", headers=good)
    assert stream.response.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert stream.response.headers["Vary"] == "Origin"
    assert await refusal(http, edge, "?channel=general", **bad) == (403, "forbidden")
    async with http.get(edge.url + "/sse?channel=user.7", headers=good) as refused:
        assert refused.status == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://app.example"
    asked = {"Access-Control-Request-Method": "GET"}
    async with http.options(edge.url + "/sse", headers=good | asked) as allowed:
        assert allowed.status == 204
        assert "Last-Event-ID" in allowed.headers["Access-Control-Allow-Headers"]
    async with http.options(edge.url + "/sse", headers=bad | asked) as refused:
        assert refused.status == 403
        assert "Access-Control-Allow-Origin" not in refused.headers


@pytest.mark.parametrize("channels", [["general"], ["general", "announcements", "public"]])
async def test_stream_that_comes_back_gets_what_it_missed_of_every_channel(
    edge, bus, listen, channels
):
    stream = await listen(edge, *channels)
    for _ in channels:
        await stream.subscribed()
    for number in range(6):
        await bus.publish(channels[number % len(channels)], "e", number)
    for number in range(3):
        assert (await stream.next())["data"] == number
    stream.response.close()
    await ended(edge)
    again = await listen(edge, *reversed(channels), cursor=stream.cursor)
    received, recovered = [], []
    while len(received) < 3:
        frame = await again.next()
        if frame["event"] == "eb:subscribed":
            recovered.append(frame["data"]["recovered"])
        else:
            received.append(frame["data"])
    assert recovered == [True] * len(channels)
    assert sorted(received) == [3, 4, 5]
    await bus.publish(channels[0], "e", "live")
    assert (await again.next())["data"] == "live"


async def test_cursor_may_be_in_the_query_and_the_header_is_newer(edge, bus, listen):
    stream = await listen(edge, "general")
    await stream.subscribed()
    old = stream.cursor
    for number in range(2):
        await bus.publish("general", "e", number)
        await stream.next()
        if number == 0:
            middle = stream.cursor
    by_query = await listen(edge, "general", query=[("last_event_id", old)])
    assert (await by_query.subscribed())["data"]["recovered"] is True
    assert [(await by_query.next())["data"] for _ in range(2)] == [0, 1]
    both = await listen(edge, "general", query=[("last_event_id", old)], cursor=middle)
    await both.subscribed()
    assert (await both.next())["data"] == 1


@pytest.mark.parametrize("cursor", ["nonsense", "AAAA", "x" * 7000])
async def test_cursor_that_cannot_be_read_is_reported_as_not_recovered(edge, bus, listen, cursor):
    last = await bus.publish("general", "e", 0)
    stream = await listen(edge, "general", "public", cursor=cursor)
    answer = {
        answer["channel"]: answer["data"] for answer in [await stream.subscribed() for _ in "12"]
    }
    assert [data["recovered"] for data in answer.values()] == [False, False]
    assert answer["general"]["offset"] == last.offset
    await bus.publish("general", "e", 1)
    assert (await stream.next())["data"] == 1


async def test_first_visit_says_nothing_of_recovery_and_has_a_cursor_at_once(edge, bus, listen):
    stream = await listen(edge, "general")
    assert "recovered" not in (await stream.subscribed())["data"]
    cursor = stream.cursor
    stream.response.close()
    await bus.publish("general", "e", 0)
    again = await listen(edge, "general", cursor=cursor)
    assert (await again.subscribed())["data"]["recovered"] is True
    assert (await again.next())["data"] == 0


async def test_silent_stream_gets_comments_and_is_not_taken_for_dead(start_edge, bus, listen):
    edge = await start_edge(bus, heartbeat=0.1)
    stream = await listen(edge, "general")
    await stream.subscribed()

    async def publish_later():
        # Several heartbeats, none of which is answered.
        while stream.comments < 3:  # noqa: ASYNC110 - counted while lines are read
            await asyncio.sleep(0.05)
        await bus.publish("general", "e", 1)

    publishing = asyncio.create_task(publish_later())
    assert (await stream.next())["data"] == 1
    await publishing


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="an option of Linux")
async def test_member_whose_machine_has_vanished_leaves_after_two_heartbeats(
    start_edge, bus, token
):
    """A receive window that stays closed: the client's kernel accepts nothing any more."""
    edge = await start_edge(bus, heartbeat=0.5, presence_grace=0.0)
    with socket.socket() as vanished:
        vanished.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        vanished.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(vanished, ("127.0.0.1", edge.port))
        request = (
            "GET /sse?channel=presence.a HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {token('7')}\r\n\r\n"
        )
        await loop.sock_sendall(vanished, request.encode())
        async with asyncio.timeout(PATIENCE_S):
            while not edge.node.presence.count("presence.a"):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        # Much less than what makes a client too slow, and more than the two kernels buffer.
        for _ in range(8):
            await bus.publish("presence.a", "e", "x" * 60_000, volatile=True)
        async with asyncio.timeout(PATIENCE_S):
            while edge.node.presence.count("presence.a"):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
        await ended(edge)
        assert edge.node.metrics.closes.labels("4201")._value.get() == 0


async def test_client_that_leaves_is_forgotten_at_once(edge, listen):
    stream = await listen(edge, "general")
    await stream.subscribed()
    assert len(edge.node.connections) == 1
    stream.response.close()
    await ended(edge)
    assert edge.node._hub.count("general") == 0


async def test_drain_ends_streams_with_the_reason(edge, listen):
    stream = await listen(edge, "general")
    await stream.subscribed()
    await edge.node.connections.drain()
    event = await stream.event()
    body = json.loads(event["data"])
    assert (body["event"], body["data"]["code"]) == ("eb:closing", 4200)
    assert int(event["retry"]) <= 1000
    assert await stream.event() is None


async def test_disconnected_user_is_asked_not_to_reconnect(edge, listen, http, token):
    stream = await listen(edge, "general", token=token("7"))
    await stream.subscribed()
    async with http.post(edge.url + "/api/broadcast/disconnect", json={"user_id": "7"}) as response:
        assert (await response.json())["count"] == 1
    assert (await stream.next())["data"]["code"] == 4003
    assert await stream.event() is None


async def test_expired_token_ends_the_stream(start_edge, bus, listen, token):
    edge = await start_edge(bus, token_grace=0.0, jwt_leeway=0.0, heartbeat=0.5)
    stream = await listen(edge, "user.7", token=token("7", lifetime=8))
    await stream.subscribed()
    events = [await stream.next()]
    while events[-1]["event"] != "eb:closing":
        events.append(await stream.next())
    assert [event["event"] for event in events] == ["eb:token.expiring", "eb:closing"]
    assert events[-1]["data"]["code"] == 4202
    assert await stream.event() is None


async def test_slow_client_is_cut_and_another_receives_everything(start_edge, bus, listen):
    edge = await start_edge(bus, max_unsent_bytes=32_768)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, limit=1024)
    writer.write(b"GET /sse?channel=general HTTP/1.1\r\nHost: x\r\n\r\n")
    other = await listen(edge, "general")
    await other.subscribed()
    async with asyncio.timeout(PATIENCE_S):
        while edge.node._hub.count("general") < 2:  # noqa: ASYNC110 - it reads no answer
            await asyncio.sleep(0.01)
    number = 0
    async with asyncio.timeout(30):
        while len(edge.node.connections) > 1:
            await bus.publish("general", "e", [number, "x" * 20_000])
            assert (await other.next())["data"][0] == number
            number += 1
    assert edge.node.metrics.closes.labels("4201")._value.get() == 1
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await reader.read(-1)


async def test_limits_of_connections_hold_for_streams(start_edge, bus, http, listen):
    edge = await start_edge(bus, max_connections=1)
    stream = await listen(edge, "general")
    assert await refusal(http, edge, "?channel=general") == (429, "limit_exceeded")
    stream.response.close()
    await ended(edge)
    await listen(edge, "general")


async def test_head_opens_no_stream(edge, http):
    async with http.head(edge.url + "/sse?channel=general") as response:
        assert response.status == 200
    assert edge.node.connections == {}


async def test_streams_of_one_channel_share_their_format_so_that_a_message_is_made_once(
    edge, listen
):
    for channel in ("general", "general", "public"):
        await listen(edge, channel)
    assert len({id(c.outbox.format) for c in edge.node.connections.values()}) == 1


@pytest.fixture
def command(http, clients):
    """Open a stream by POST: `await command(edge, {"action": "subscribe", …}, …)`."""

    async def open_one(edge, *commands, token=None):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = http.post(edge.url + "/sse", json=commands, headers=headers)
        stream = Stream(await clients.enter_async_context(request))
        assert stream.response.status == 200, await stream.response.text()
        assert (await stream.next())["event"] == "eb:connected"
        return stream

    return open_one


def subscribe(channel, ref=None, **data):
    return {"action": "subscribe", "channel": channel, "data": data, "ref": ref}


async def test_commands_of_a_post_are_answered_as_a_websocket_answers_them(
    edge, bus, command, token
):
    for number in range(3):
        at = await bus.publish("general", "e", number)
    grants = token("7", channels=["orders.*"])
    commands = (
        subscribe("user.7", "mine"),
        subscribe("user.8", "not mine"),
        subscribe("general", "resumed", offset=at.offset - 1, epoch=at.epoch),
        {"action": "subscribe", "pattern": "orders.*", "ref": "pattern"},
        subscribe("a b", "no name"),
        {"action": "subscribe", "ref": "malformed"},
    )
    stream = await command(edge, *commands, token=grants)
    socket = await edge.connect("/ws", token=grants)
    for each in commands:
        await socket.send(**each)
    frame = [await stream.next() for _ in range(7)]
    alike = [
        [{**message, "timestamp": None} for message in messages]
        for messages in (frame, [await socket.next() for _ in range(7)])
    ]
    assert alike[0] == alike[1]
    assert [message["data"].get("code") for message in frame if message["event"] == "eb:error"] == [
        "forbidden",
        "invalid_channel",
        "bad_request",
    ]
    assert [message["data"] for message in frame if message["event"] == "e"] == [2]
    await bus.publish("orders.42", "e", "by the pattern")
    await bus.publish("general", "e", "live")
    assert {(await stream.next())["data"] for _ in "12"} == {"by the pattern", "live"}


async def test_stream_by_post_resumes_each_channel_where_its_client_says(edge, bus, command):
    first = [await bus.publish(name, "e", [name, 0]) for name in ("general", "public")]
    for number in range(1, 4):
        for name in ("general", "public"):
            last = await bus.publish(name, "e", [name, number])
    stream = await command(
        edge,
        subscribe("general", offset=first[0].offset, epoch=first[0].epoch),
        subscribe("public", offset=last.offset, epoch="another"),
        subscribe("announcements"),
    )
    received, recovered = [], {}
    while len(recovered) < 3 or len(received) < 3:
        frame = await stream.next()
        if frame["event"] == "eb:subscribed":
            recovered[frame["channel"]] = frame["data"].get("recovered")
        else:
            received.append(frame["data"])
    assert recovered == {"general": True, "public": False, "announcements": None}
    assert received == [["general", 1], ["general", 2], ["general", 3]]


@pytest.mark.parametrize(
    ("body", "query", "expected"),
    [
        (b"{}", "", 400),
        (b"[1", "", 400),
        (b"\xff", "", 400),
        (b"[" * 100_000, "", 400),
        (json.dumps([subscribe("general")] * 3).encode(), "", 400),
        (json.dumps([{"action": "ping"}]).encode(), "", 400),
        (json.dumps([subscribe("general")]).encode(), "?channel=general", 400),
        (json.dumps([subscribe("general")]).encode(), "?auth_token=x", 401),
        (b"[" * 150_000, "", 413),
        (b" " * 2_000_000, "", 413),
    ],
)
async def test_body_that_is_not_a_list_of_subscribes_opens_no_stream(
    start_edge, bus, http, body, query, expected
):
    edge = await start_edge(bus, max_channels_per_connection=2)
    headers = {"Content-Type": "application/json"}
    async with http.post(
        edge.url + "/sse" + query, data=io.BytesIO(body), headers=headers
    ) as response:
        assert response.status == expected
        assert response.content_type == "application/problem+json"
    assert edge.node.connections == {}


async def test_stream_without_commands_waits_for_its_client_to_know_better(edge, command):
    stream = await command(edge)
    await edge.node.connections.drain()
    assert (await stream.next())["event"] == "eb:closing"


async def test_body_of_another_type_or_origin_is_refused(edge, http):
    for headers, expected in (
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json", "Origin": "https://evil.example"}, 403),
    ):
        body = json.dumps([subscribe("general")])
        async with http.post(edge.url + "/sse", data=body, headers=headers) as response:
            assert response.status == expected


async def test_body_that_does_not_come_is_not_waited_for(start_edge, bus):
    edge = await start_edge(bus, request_timeout=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(
        b"POST /sse HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 50\r\n\r\n["
    )
    async with asyncio.timeout(PATIENCE_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await reader.read(-1)


async def test_node_that_wants_tokens_takes_commands_only_with_one(
    start_edge, bus, http, command, token
):
    edge = await start_edge(bus, auth_required=True)
    async with http.post(edge.url + "/sse", json=[subscribe("general")]) as response:
        assert response.status == 401
    stream = await command(edge, subscribe("general"), token=token("7"))
    assert (await stream.subscribed())["channel"] == "general"


async def test_streams_by_post_share_their_format_so_that_a_message_is_made_once(edge, command):
    for names in (("general",), ("general", "public")):
        await command(edge, *map(subscribe, names))
    assert len({id(c.outbox.format) for c in edge.node.connections.values()}) == 1
