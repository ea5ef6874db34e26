"""What a client gets through: edges that die or drain, tokens that end, consumers that are slow."""

import asyncio
import contextlib
import json
import signal

import aiohttp
import msgspec
import pytest
from aiohttp import web

from eventbus import BusStateError, ClientClosed, ClientDisconnected, ClientRefused, EncodingError
from eventbus.bus import EventBus
from eventbus.client import ClientOptions, ClientState, connect
from eventbus.messages import MAX_DATA_DEPTH

PATIENCE_S = 30


class States:
    """The states that a client went through."""

    def __init__(self, client):
        self.seen = []
        self._more = asyncio.Event()
        client.on_state(self._take)

    def _take(self, change):
        self.seen.append(change)
        self._more.set()

    async def until(self, state, *, times=1):
        async with asyncio.timeout(PATIENCE_S):
            while [change.state for change in self.seen].count(state) < times:
                self._more.clear()
                await self._more.wait()
        return [change for change in self.seen if change.state is state][times - 1]


class Reader:
    """Iterates over a subscription in the background."""

    def __init__(self, subscription, pause_s=0.0):
        self.got = []
        self.subscription = subscription
        self._more = asyncio.Event()
        self._pause_s = pause_s
        self.task = asyncio.create_task(self._read(subscription))

    async def _read(self, subscription):
        async for message in subscription:
            self.got.append(message)
            self._more.set()
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def until(self, count):
        async with asyncio.timeout(PATIENCE_S):
            while len(self.got) < count:
                self._more.clear()
                await self._more.wait()
        return [message.data for message in self.got]


@contextlib.asynccontextmanager
async def publishing(publisher, channel, count, per_second):
    """Publishes numbers at a rate, in the background; gives the task."""

    async def publish():
        loop = asyncio.get_running_loop()
        start, under_way = loop.time(), set()
        for n in range(count):
            task = asyncio.create_task(publisher.publish(channel, "n", n, id=f"{channel}-{n}"))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if (ahead := start + n / per_second - loop.time()) > 0:
                await asyncio.sleep(ahead)
        await asyncio.gather(*under_way)

    task = asyncio.create_task(publish())
    try:
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_edge_killed_under_2000_messages_a_second_each_comes_once_and_in_order(
    new_edge, publisher, token, quick
):
    edge = await new_edge()
    count = 8_000
    options = msgspec.structs.replace(quick, buffer=20_000)
    async with connect(edge.url, token=token(), options=options) as client:
        states = States(client)
        orders = await client.subscribe("orders.1")
        reader = Reader(orders)
        async with publishing(publisher, "orders.1", count, 2_000):
            for kills in (1, 2):
                await reader.until(len(reader.got) + 1_000)
                await edge.end(signal.SIGKILL)
                await edge.start()
                await states.until(ClientState.CONNECTED, times=kills)
        got = await reader.until(count)
        await client.ping()
        assert len(got) == count
        assert got == sorted(got), "a publisher's order is the stream's"
        assert [message.offset for message in reader.got] == sorted(
            {message.offset for message in reader.got}
        )
        assert set(got) == set(range(count))
        assert (orders.recovered, orders.gaps) == (True, 0)
        lost = await states.until(ClientState.DISCONNECTED)
        assert lost.code == 1006
        reader.task.cancel()


async def test_edge_killed_under_load_patterns_and_channels_get_each_message_once_and_in_order(
    new_edge, publisher, token, quick
):
    edge = await new_edge()
    options = msgspec.structs.replace(quick, buffer=20_000)
    channels = ["orders.1", "orders.2", "orders.3", "orders.eu.1"]
    plan, enough = [], asyncio.Event()
    async with connect(edge.url, token=token(), options=options) as client:
        states = States(client)
        # Each message is for the channel, or else for the pattern that was joined first.
        readers = {
            name: Reader(await client.subscribe(name))
            for name in ("orders.*", "orders.1", "orders.>")
        }

        async def publish():
            while not enough.is_set():
                number = len(plan)
                plan.append(channels[number * 7 % 11 % 4])
                await publisher.publish(plan[-1], "e", number)
                await asyncio.sleep(0.001)

        writing = asyncio.create_task(publish())
        for kills in (1, 2):
            pattern = readers["orders.*"]
            await pattern.until(len(pattern.got) + 300)
            await edge.end(signal.SIGKILL)
            await edge.start()
            await states.until(ClientState.CONNECTED, times=kills)
        enough.set()
        await writing
        wanted = {
            "orders.1": [n for n, channel in enumerate(plan) if channel == "orders.1"],
            "orders.*": [n for n, channel in enumerate(plan) if channel in channels[1:3]],
            "orders.>": [n for n, channel in enumerate(plan) if channel == "orders.eu.1"],
        }
        for name, reader in readers.items():
            got = await reader.until(len(wanted[name]))
            assert [message.data for message in reader.got] == wanted[name], name
            assert len(got) == len(wanted[name])
            assert (reader.subscription.recovered, reader.subscription.gaps) == (True, 0)
        await client.ping()
        for name, reader in readers.items():
            assert len(reader.got) == len(wanted[name]), "nothing comes twice"
            reader.task.cancel()


async def test_slow_consumer_of_a_pattern_gets_everything_once(new_edge, publisher, token, quick):
    edge = await new_edge()
    options = msgspec.structs.replace(quick, buffer=20)
    async with connect(edge.url, token=token(), options=options) as client:
        go, got, done = asyncio.Event(), [], asyncio.Event()

        async def slow(data):
            await go.wait()
            got.append(data)
            if data == 398:
                done.set()

        orders = await client.subscribe("orders.*", slow)
        watching = Reader(await client.subscribe("orders.3"))
        for number in range(400):
            await publisher.publish(f"orders.{number % 4}", "e", number)
        await watching.until(100)
        go.set()
        async with asyncio.timeout(20):
            await done.wait()
        assert got == [number for number in range(400) if number % 4 != 3]
        assert (orders.gaps, orders.dropped) == (0, 0)
        assert orders.overflows > 0
        watching.task.cancel()


async def test_drained_node_sends_its_clients_to_another_at_once(
    new_edge, publisher, token, quick, proxy
):
    first, second = await new_edge(), await new_edge()
    proxy.ports = [first.port, second.port]
    async with connect(proxy.url, token=token(), options=quick) as client:
        states, before = States(client), client.connection_id
        orders = await client.subscribe("orders.1")
        reader = Reader(orders)
        async with publishing(publisher, "orders.1", 1_000, 500):
            await reader.until(100)
            proxy.ports = [second.port]
            await first.end(signal.SIGTERM)
        assert await reader.until(1_000) == list(range(1_000))
        lost = await states.until(ClientState.DISCONNECTED)
        assert lost.code == 4200
        assert lost.retry_in < quick.first_delay
        assert client.connection_id != before
        assert orders.gaps == 0
        reader.task.cancel()


@pytest.fixture
async def proxy():
    """A TCP proxy to the first of `ports` that answers."""

    class Proxy:
        ports = ()

    proxy = Proxy()
    writers = set()

    async def pipe(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        for port in proxy.ports:
            with contextlib.suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.close()
            return
        writers.update((writer, up_writer))
        await asyncio.gather(pipe(reader, up_writer), pipe(up_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
    yield proxy
    server.close()
    for writer in writers:
        writer.close()
    await server.wait_closed()


async def test_token_is_renewed_in_place_before_it_expires(new_edge, token, quick):
    # The grace is for a machine that stands still when a token ends; the client does not need it.
    edge = await new_edge(JWT_LEEWAY="0", BROADCAST_TOKEN_GRACE="10")
    issued = []

    async def issue():
        issued.append(token(lifetime=4))
        return issued[-1]

    async with connect(edge.url, token=issue, options=quick) as client:
        states = States(client)
        orders = await client.subscribe("orders.1")
        async with asyncio.timeout(PATIENCE_S):
            while len(issued) < 3:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
        assert states.seen == []
        assert orders.is_active


async def test_token_that_could_not_be_renewed_is_asked_for_at_the_reconnect(
    new_edge, publisher, token, quick
):
    edge = await new_edge(JWT_LEEWAY="0", BROADCAST_TOKEN_GRACE="0.2")
    asked, is_back = 0, asyncio.Event()

    async def issue():
        nonlocal asked
        asked += 1
        if asked > 1 and not is_back.is_set():
            raise OSError("the token service is away")
        return token(lifetime=4 if asked == 1 else 600)

    async with connect(edge.url, token=issue, options=quick) as client:
        states = States(client)
        orders = await client.subscribe("orders.1")
        reader = Reader(orders)
        await publisher.publish("orders.1", "n", 0)
        assert (await states.until(ClientState.DISCONNECTED)).code in (4202, 1006)
        is_back.set()
        await publisher.publish("orders.1", "n", 1)
        assert await reader.until(2) == [0, 1]
        assert orders.gaps == 0
        reader.task.cancel()


async def test_static_token_that_expires_ends_the_client_with_the_reason(new_edge, token, quick):
    edge = await new_edge(JWT_LEEWAY="0", BROADCAST_TOKEN_GRACE="0.1")
    async with connect(edge.url, token=token(lifetime=4), options=quick) as client:
        states = States(client)
        orders = await client.subscribe("orders.1")
        reader = Reader(orders)
        await states.until(ClientState.CLOSED)
        with pytest.raises(ClientClosed, match="the token has expired"):
            await reader.task
        with pytest.raises(ClientClosed, match="the token has expired"):
            await client.subscribe("orders.2")


async def _admin(edge, token, path, body):
    headers = {"Authorization": f"Bearer {token('admin', roles=['admin'])}"}
    url = f"http://127.0.0.1:{edge.port}/api/broadcast/{path}"
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()


async def test_revoked_user_is_not_connected_again(new_edge, token, quick):
    edge = await new_edge()
    async with connect(edge.url, token=token(), options=quick) as client:
        states = States(client)
        await client.subscribe("orders.1")
        await _admin(edge, token, "disconnect", {"user_id": "7"})
        closed = await states.until(ClientState.CLOSED)
        assert closed.code == 4003
        assert [change.state for change in states.seen] == [ClientState.CLOSED]


async def test_revoked_channel_ends_its_subscription_and_no_other(
    new_edge, publisher, token, quick
):
    edge = await new_edge()
    async with connect(edge.url, token=token(), options=quick) as client:
        taken, kept = await client.subscribe("orders.1"), await client.subscribe("orders.2")
        received = asyncio.Queue()
        taken.on("eb:unsubscribed", received.put)
        reader = Reader(kept)
        await _admin(edge, token, "disconnect", {"channel": "orders.1"})
        async with asyncio.timeout(PATIENCE_S):
            assert (await received.get())["reason"] == "revoked"
        assert isinstance(taken.error, ClientRefused)
        assert taken.error.code == "revoked"
        assert not taken.is_active
        await publisher.publish("orders.2", "n", 1)
        assert await reader.until(1) == [1]
        with pytest.raises(ClientRefused):
            await client.subscribe("orders.1")
        reader.task.cancel()


async def test_nats_restarted_under_the_edge_loses_nothing(
    new_edge, own_nats_server, settings, token, quick
):
    edge = await new_edge(NATS_URL=own_nats_server.url)
    own = msgspec.structs.replace(
        settings, nats_url=own_nats_server.url, history_messages=100_000, history_seconds=600.0
    )
    async with (
        EventBus(own) as publisher,
        connect(edge.url, token=token(), options=quick) as client,
    ):
        orders = await client.subscribe("orders.1")
        reader = Reader(orders)
        async with publishing(publisher, "orders.1", 400, 100):
            await reader.until(100)
            await own_nats_server.stop()
            await own_nats_server.start()
        assert sorted(await reader.until(400)) == list(range(400))
        offsets = [message.offset for message in reader.got]
        assert offsets == sorted(set(offsets))
        assert orders.gaps == 0
        reader.task.cancel()


@pytest.mark.parametrize("channel", ["orders.1", "orders.*"])
async def test_messages_that_nats_lost_are_reported(
    new_edge, own_nats_server, settings, token, quick, channel
):
    edge = await new_edge(NATS_URL=own_nats_server.url)
    own = msgspec.structs.replace(settings, nats_url=own_nats_server.url)
    access = token(channels=["orders.*"])
    async with (
        EventBus(own) as publisher,
        connect(edge.url, token=access, options=quick) as client,
    ):
        orders = await client.subscribe(channel)
        notified = asyncio.Event()
        orders.on("eb:subscribed", lambda data: data.get("recovered") is False and notified.set())
        reader = Reader(orders)
        await publisher.publish("orders.1", "tick", 0)
        await reader.until(1)
        stream = f"{own.namespace.upper()}_EVENTS"
        await publisher.driver._connection.client.request(f"$JS.API.STREAM.DELETE.{stream}")
        await own_nats_server.stop()
        await own_nats_server.start()
        async with asyncio.timeout(20):
            while not (notified.is_set() and len(reader.got) > 1):
                await publisher.publish("orders.1", "tick", 1)
                await asyncio.sleep(0.05)
        assert orders.gaps >= 1
        assert reader.got[1].after_gap
        reader.task.cancel()


async def test_slow_consumer_is_bounded_gets_everything_and_delays_no_other(
    new_edge, publisher, token, quick
):
    edge = await new_edge()
    options = msgspec.structs.replace(quick, buffer=50)
    async with connect(edge.url, token=token(), options=options) as client:
        slow, fast = await client.subscribe("orders.1"), await client.subscribe("orders.2")
        go, got = asyncio.Event(), []

        async def wait(n):
            await go.wait()
            got.append(n)

        slow.on("n", wait)
        reader = Reader(fast)
        async with publishing(publisher, "orders.1", 1_000, 2_000):
            pass
        await publisher.publish("orders.2", "n", "there")
        assert await reader.until(1) == ["there"]
        assert slow.overflows == 1
        assert 49 <= len(slow._for_handlers) <= 50, "one may have gone to the handler since"
        go.set()
        async with asyncio.timeout(PATIENCE_S):
            while len(got) < 1_000:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        assert got == list(range(1_000))
        assert (slow.gaps, slow.dropped) == (0, 0)
        reader.task.cancel()


async def test_slow_consumer_is_notified_of_what_the_history_no_longer_has(
    new_edge, settings, token, quick
):
    edge = await new_edge(BROADCAST_HISTORY_MESSAGES="100")
    options = msgspec.structs.replace(quick, buffer=20)
    async with (
        EventBus(settings) as publisher,
        connect(edge.url, token=token(), options=options) as client,
    ):
        orders = await client.subscribe("orders.1")
        notified = asyncio.Event()
        orders.on("eb:subscribed", lambda data: data["recovered"] or notified.set())

        async def one_more_after_the_gap():
            await notified.wait()
            await publisher.publish("orders.1", "n", 500)

        messages = aiter(orders)
        await publisher.publish("orders.1", "n", 0)
        assert (await anext(messages)).data == 0
        for n in range(1, 500):
            await publisher.publish("orders.1", "n", n)
        got, more = [], asyncio.create_task(one_more_after_the_gap())
        async with asyncio.timeout(PATIENCE_S):
            while not got or not got[-1].after_gap:
                got.append(await anext(messages))
            await more
        data = [message.data for message in got]
        assert data == sorted(set(data))
        assert orders.gaps == 1
        assert orders.recovered is False


async def test_messages_that_nobody_takes_are_counted_and_the_newest_kept(
    new_edge, publisher, token, quick
):
    edge = await new_edge()
    options = msgspec.structs.replace(quick, buffer=10)
    async with connect(edge.url, token=token(), options=options) as client:
        orders = await client.subscribe("orders.1")
        for n in range(25):
            await publisher.publish("orders.1", "n", n)
        async with asyncio.timeout(PATIENCE_S):
            while orders.dropped < 15:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        messages = aiter(orders)
        assert [(await anext(messages)).data for _ in range(10)] == list(range(15, 25))
        assert orders.overflows == 0


async def test_requests_fail_while_there_is_no_connection_and_joins_wait_for_it(
    new_edge, token, quick
):
    edge = await new_edge()
    async with connect(edge.url, token=token(), options=quick) as client:
        states = States(client)
        orders = await client.subscribe("orders.1")
        await edge.end()
        await states.until(ClientState.DISCONNECTED)
        with pytest.raises(ClientDisconnected, match="no connection now"):
            await orders.history()
        joining = asyncio.create_task(client.subscribe("orders.2"))
        await states.until(ClientState.DISCONNECTED, times=3)
        assert not joining.done()
        await edge.start()
        async with asyncio.timeout(PATIENCE_S):
            assert (await joining).is_active


async def test_many_channels_are_joined_again_within_the_edges_limits(new_edge, token, quick):
    edge = await new_edge(BROADCAST_MAX_CHANNELS_PER_CONNECTION="300", BROADCAST_ACTION_BURST="40")
    async with connect(edge.url, token=token(), options=quick) as client:
        states = States(client)
        async with asyncio.timeout(PATIENCE_S):
            joined = await asyncio.gather(*(client.subscribe(f"orders.{n}") for n in range(150)))
            assert all(each.is_active for each in joined)
        assert states.seen == []


class Rogue:
    """A server that says what the test wants."""

    def __init__(self):
        self.frames = []
        self.connections = 0
        self.heartbeat_s = 25.0
        self.farewell = b""
        self.greeting = ""
        self.answers = []
        self.url = ""

    async def serve(self, request):
        self.connections += 1
        socket = web.WebSocketResponse(protocols=("eventbus.v1",), autoping=False)
        await socket.prepare(request)
        about = {"connection_id": "c", "node": "n", "heartbeat_s": self.heartbeat_s}
        greeting = json.dumps({"event": "eb:connected", "data": about})
        await socket.send_str(self.greeting or greeting)
        await self._answer(socket)
        for frame in self.frames:
            await (socket.send_str if isinstance(frame, str) else socket.send_bytes)(frame)
        if self.farewell:
            request.transport.write(self.farewell)
            request.transport.close()
        async for _ in socket:  # it answers nothing else, pings included
            pass
        return socket

    async def _answer(self, socket):
        for answer in self.answers:
            data = answer | {"ref": (await socket.receive_json())["ref"]}
            await socket.send_json({"event": "eb:subscribed", "channel": "orders.1", "data": data})


@pytest.fixture
async def rogue():
    rogue = Rogue()
    app = web.Application()
    app.router.add_get("/ws", rogue.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rogue.url = f"ws://127.0.0.1:{runner.addresses[0][1]}/ws"
    yield rogue
    await runner.cleanup()


async def test_silent_edge_is_noticed_and_left(rogue, quick):
    rogue.heartbeat_s = 0.2
    async with connect(rogue.url, options=quick) as client:
        lost = await States(client).until(ClientState.DISCONNECTED)
        assert lost.reason == "the edge stopped answering"


DEEP = "[" * 1200 + "]" * 1200
UNREADABLE = [
    "nonsense",
    "",
    "[1]",
    "null",
    '{"event":7}',
    '{"channel":"orders.1","data":1}',
    '{"event":"a","channel":["orders.1"]}',
    '{"event":"a","channel":"orders.1","offset":"1"}',
    '{"event":"eb:error","data":7}',
    '{"event":"eb:news","data":7}',
    '{"event":"eb:unsubscribed","channel":"orders.1","data":[]}',
    "[" * 100_000,
    f'{{"event":"a","channel":"orders.1","data":{DEEP},"offset":7,"epoch":"e"}}',
    b"binary",
]


async def test_frames_that_cannot_be_read_are_skipped_counted_and_reported(rogue, quick, caplog):
    rogue.frames = [*UNREADABLE, '{"event":"last","channel":"orders.1","data":1}']
    rogue.answers = [{}]
    async with connect(rogue.url, options=quick) as client:
        orders = await client.subscribe("orders.1")
        async with asyncio.timeout(PATIENCE_S):
            message = await anext(orders.messages())
        assert message.event == "last"
        assert client.skipped == len(UNREADABLE)
        assert client.state is ClientState.CONNECTED
    assert rogue.connections == 1
    reports = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(reports) == len(UNREADABLE).bit_length()
    assert all(len(report) < 400 for report in reports)


async def test_message_too_deep_for_the_client_does_not_come_back_forever(
    new_edge, token, quick, publisher
):
    edge = await new_edge()
    async with connect(edge.url, token=token(), options=quick) as client:
        orders = await client.subscribe("orders.1", history=10)
        reader = Reader(orders)
        with pytest.raises(EncodingError, match="nested too deeply"):
            await publisher.publish("orders.1", "n", json.loads(DEEP[600:-600]))
        deepest = json.loads("[" * MAX_DATA_DEPTH + "]" * MAX_DATA_DEPTH)
        await publisher.publish("orders.1", "n", deepest)
        assert await reader.until(1) == [deepest]
        page = await orders.history()
        assert [message.data for message in page.messages] == [deepest]
        assert client.skipped == 0


async def test_message_larger_than_the_client_accepts_is_left_out_and_is_a_gap(
    new_edge, token, publisher
):
    options = ClientOptions(
        first_delay=0.05, last_delay=0.1, steady_after=60.0, max_frame_bytes=10_000
    )
    edge = await new_edge()
    async with connect(edge.url, token=token(), options=options) as client:
        orders = await client.subscribe("orders.1")
        reader, states, joins = Reader(orders), States(client), asyncio.Queue()
        orders.on("eb:subscribed", lambda _, message: joins.put(message))
        await publisher.publish("orders.1", "n", 1)
        await reader.until(1)
        await publisher.publish("orders.1", "n", "x" * 20_000)
        async with asyncio.timeout(PATIENCE_S):
            while not orders.gaps:
                await joins.get()
        await publisher.publish("orders.1", "n", 2)
        assert await reader.until(2) == [1, 2]
        assert reader.got[-1].after_gap
        assert client.skipped == 2
        assert [change.code for change in states.seen if change.code] == [1009, 1009]


async def test_join_whose_answer_cannot_be_read_is_tried_again(rogue, quick):
    rogue.answers = [{"offset": "7"}, {}]
    async with connect(rogue.url, options=quick) as client:
        orders = await client.subscribe("orders.1")
        assert orders.is_active
        assert client.skipped == 1
    assert rogue.connections == 1


async def test_request_whose_answer_cannot_be_read_fails_at_once(rogue, quick):
    rogue.answers = [{}, {"members": 7}, {"messages": [7]}]
    async with connect(rogue.url, options=quick) as client:
        orders = await client.subscribe("orders.1")
        with pytest.raises(ClientDisconnected, match="presence: the edge's answer cannot be read"):
            await orders.presence()
        with pytest.raises(ClientDisconnected, match="history: the edge's answer cannot be read"):
            await orders.history()
        assert client.state is ClientState.CONNECTED


async def test_server_whose_greeting_is_nonsense_is_left_and_tried_again(rogue, quick):
    rogue.greeting = "nonsense"
    client = connect(rogue.url, options=quick)
    states = States(client)
    opening = asyncio.create_task(client.open())
    assert (await states.until(ClientState.DISCONNECTED)).code == 1002
    opening.cancel()
    await client.aclose()


async def test_code_of_an_edge_that_does_not_wait_for_an_answer_counts(rogue, quick):
    rogue.farewell = b"\x88\x02" + (4001).to_bytes(2, "big")
    async with connect(rogue.url, options=quick) as client:
        assert (await States(client).until(ClientState.CLOSED)).code == 4001
    assert rogue.connections == 1


async def test_request_without_an_answer_fails_in_time(rogue):
    options = ClientOptions(request_timeout=0.1)
    async with connect(rogue.url, options=options) as client:
        with pytest.raises(ClientDisconnected, match=r"ping: no answer within 0\.1 s"):
            await client.ping()


async def test_close_while_the_edge_hangs_is_bounded_shared_and_outlasts_its_caller(
    new_edge, token, quick
):
    edge = await new_edge()
    client = connect(edge.url, token=token(), options=quick)
    await client.open()
    await client.subscribe("orders.1", lambda message: None)
    edge.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE_S):
            patient = asyncio.create_task(client.aclose())
            closing = asyncio.create_task(client.aclose())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            assert client.state is ClientState.CLOSED
            assert [t for t in asyncio.all_tasks() if "client of" in t.get_name()] == []
            await patient
            await client.aclose()
    finally:
        edge.process.send_signal(signal.SIGCONT)
    with pytest.raises(ClientClosed):
        await client.ping()


async def test_handlers_may_close_their_own_client(new_edge, token, quick, publisher):
    edge, closed = await new_edge(), []
    client = connect(edge.url, token=token(), options=quick)
    await client.open()

    async def close(message):
        await client.aclose()
        closed.append(message.channel)

    for channel in ("orders.1", "orders.2"):
        await client.subscribe(channel, {"*": lambda _data, message: close(message)})
    await asyncio.gather(
        *(publisher.publish(channel, "e", 1) for channel in ("orders.1", "orders.2"))
    )
    async with asyncio.timeout(PATIENCE_S):
        while not closed:  # noqa: ASYNC110 - the handlers' own tasks bring it about
            await asyncio.sleep(0.01)
        await client.aclose()
    assert client.state is ClientState.CLOSED


async def test_token_function_may_close_its_own_client(new_edge, quick):
    edge = await new_edge()

    async def close():
        await client.aclose()

    client = connect(edge.url, token=close, options=quick)
    with pytest.raises(ClientClosed):
        await client.open()
    assert client.state is ClientState.CLOSED


async def test_many_requests_that_are_cancelled_together_are_cancelled(new_edge, quick):
    edge = await new_edge()
    async with connect(edge.url, options=quick) as client:
        edge.process.send_signal(signal.SIGSTOP)
        tasks = [asyncio.create_task(client.ask("ping")) for _ in range(90)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        edge.process.send_signal(signal.SIGCONT)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        async with asyncio.timeout(PATIENCE_S):
            assert (await client.ask("ping")).event == "pong"


@pytest.mark.parametrize("turns", [0, 1, 3, 10])
async def test_client_closed_by_another_task_as_it_opens_says_so_and_leaves_nothing(
    new_edge, quick, turns
):
    edge = await new_edge()
    before = asyncio.all_tasks()
    client = connect(edge.url, options=quick)
    opening = asyncio.create_task(client.open())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing = [asyncio.create_task(client.aclose()) for _ in range(2)]
    await asyncio.sleep(0)
    closing[0].cancel()
    async with asyncio.timeout(PATIENCE_S):
        (result,) = await asyncio.gather(opening, return_exceptions=True)
        await asyncio.gather(*closing, return_exceptions=True)
    assert result is None or isinstance(result, ClientClosed)
    assert asyncio.all_tasks() == before
    with pytest.raises((ClientClosed, BusStateError)):
        await client.open()
