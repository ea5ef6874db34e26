"""What a client gets through: edges that die or drain, tokens that end, consumers that are slow."""

import asyncio
import contextlib
import signal

import aiohttp
import msgspec
import pytest
from aiohttp import web

from eventbus import ClientClosed, ClientDisconnected, ClientRefused
from eventbus.bus import EventBus
from eventbus.client import ClientOptions, ClientState, connect

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
    edge = await new_edge(JWT_LEEWAY="0", BROADCAST_TOKEN_GRACE="1")
    issued = []

    async def issue():
        issued.append(token(lifetime_s=2))
        return issued[-1]

    async with connect(edge.url, token=issue, options=quick) as client:
        states = States(client)
        orders = await client.subscribe("orders.1")
        async with asyncio.timeout(PATIENCE_S):
            while len(issued) < 4:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
        assert states.seen == []
        assert orders.is_active


async def test_token_that_could_not_be_renewed_is_asked_for_at_the_reconnect(
    new_edge, publisher, token, quick
):
    edge = await new_edge(JWT_LEEWAY="0", BROADCAST_TOKEN_GRACE="0.2")
    issued = 0

    async def issue():
        nonlocal issued
        issued += 1
        if issued == 2:
            raise OSError("the token service is away")
        return token(lifetime_s=2 if issued == 1 else 600)

    async with connect(edge.url, token=issue, options=quick) as client:
        states = States(client)
        orders = await client.subscribe("orders.1")
        reader = Reader(orders)
        await publisher.publish("orders.1", "n", 0)
        assert (await states.until(ClientState.DISCONNECTED)).code in (4202, 1006)
        await publisher.publish("orders.1", "n", 1)
        assert await reader.until(2) == [0, 1]
        assert orders.gaps == 0
        reader.task.cancel()


async def test_static_token_that_expires_ends_the_client_with_the_reason(new_edge, token, quick):
    edge = await new_edge(JWT_LEEWAY="0", BROADCAST_TOKEN_GRACE="0.1")
    async with connect(edge.url, token=token(lifetime_s=1), options=quick) as client:
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
        told = asyncio.Queue()
        taken.on("eb:unsubscribed", told.put)
        reader = Reader(kept)
        await _admin(edge, token, "disconnect", {"channel": "orders.1"})
        async with asyncio.timeout(PATIENCE_S):
            assert (await told.get())["reason"] == "revoked"
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
async def test_what_nats_has_lost_for_good_is_told(
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
        told = asyncio.Event()
        orders.on("eb:subscribed", lambda data: data.get("recovered") is False and told.set())
        reader = Reader(orders)
        await publisher.publish("orders.1", "tick", 0)
        await reader.until(1)
        stream = f"{own.namespace.upper()}_EVENTS"
        await publisher.driver._connection.client.request(f"$JS.API.STREAM.DELETE.{stream}")
        await own_nats_server.stop()
        await own_nats_server.start()
        async with asyncio.timeout(20):
            while not (told.is_set() and len(reader.got) > 1):
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


async def test_slow_consumer_is_told_of_what_the_history_no_longer_has(
    new_edge, settings, token, quick
):
    edge = await new_edge(BROADCAST_HISTORY_MESSAGES="100")
    options = msgspec.structs.replace(quick, buffer=20)
    async with (
        EventBus(settings) as publisher,
        connect(edge.url, token=token(), options=options) as client,
    ):
        orders = await client.subscribe("orders.1")
        told = asyncio.Event()
        orders.on("eb:subscribed", lambda data: data["recovered"] or told.set())

        async def one_more_after_the_gap():
            await told.wait()
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
        self.url = ""

    async def serve(self, request):
        self.connections += 1
        socket = web.WebSocketResponse(protocols=("eventbus.v1",), autoping=False)
        await socket.prepare(request)
        about = {"connection_id": "c", "node": "n", "heartbeat_s": self.heartbeat_s}
        await socket.send_json({"event": "eb:connected", "data": about})
        for frame in self.frames:
            await socket.send_str(frame)
        if self.farewell:
            request.transport.write(self.farewell)
            request.transport.close()
        async for _ in socket:  # it answers nothing, pings included
            pass
        return socket


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


@pytest.mark.parametrize(
    "frame", ["nonsense", "[1]", '{"event":7}', '{"event":"eb:error","data":7}', "[" * 100_000]
)
async def test_server_that_speaks_nonsense_is_left_and_tried_again(rogue, quick, frame):
    rogue.frames = [frame]
    async with connect(rogue.url, options=quick) as client:
        lost = await States(client).until(ClientState.DISCONNECTED)
        assert lost.code == 1002


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
