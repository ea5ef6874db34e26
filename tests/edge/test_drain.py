"""A node that ends, one that is full, silent and slow clients, and a bus that is away."""

import asyncio
import contextlib
import socket
import time

import aiohttp
import pytest
from websockets.exceptions import ConnectionClosed

from eventbus.config import Settings
from eventbus_edge.access.rules import ChannelRules


async def get(url, path, **options):
    async with aiohttp.ClientSession() as http, http.get(url + path, **options) as response:
        return response.status, response.headers, await response.json(content_type=None)


# Draining


async def test_at_sigterm_clients_are_closed_over_the_drain_time_and_the_process_ends_with_0(
    start_process, connect
):
    edge = await start_process(BROADCAST_DRAIN_TIME="8")
    clients = [await connect(edge.port) for _ in range(5)]
    for client in clients:
        await client.next()
    assert (await get(edge.url, "/readyz"))[0] == 200
    edge.terminate()

    async def end(client):
        return await client.closed(), time.monotonic()

    ending = [asyncio.create_task(end(client)) for client in clients]
    await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
    status, headers, problem = await get(edge.url, "/readyz")
    assert (status, problem["code"]) == (503, "unavailable")
    assert int(headers["Retry-After"]) >= 1
    assert (await get(edge.url, "/healthz"))[0] == 200  # it lives, it only takes no more
    assert (await get(edge.url, "/ws"))[0] == 503
    ended = await asyncio.gather(*ending)
    code, log = await edge.end()
    assert [close for close, _ in ended] == [4200] * 5
    times = sorted(when for _, when in ended)
    assert times[-1] - times[0] > 0.2  # spread over that time, not all at once
    assert code == 0, log
    assert "Traceback" not in log
    assert "Error" not in log


async def test_a_second_sigterm_ends_the_process_at_once(start_process, connect):
    edge = await start_process(BROADCAST_DRAIN_TIME="60")
    clients = [await connect(edge.port) for _ in range(10)]
    edge.terminate()
    await asyncio.wait(
        [asyncio.create_task(client.closed()) for client in clients],
        return_when=asyncio.FIRST_COMPLETED,
    )
    start = time.monotonic()
    edge.terminate()
    code, log = await edge.end()
    assert code == 0, log
    assert time.monotonic() - start < 30


async def test_a_node_without_clients_ends_at_once(start_process):
    edge = await start_process(BROADCAST_DRAIN_TIME="60")
    edge.terminate()
    code, log = await edge.end()
    assert code == 0, log


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"BROADCAST_HEARTBEAT": "soon"}, "BROADCAST_HEARTBEAT='soon'"),
        ({"JWT_SECRET": "short-secret"}, "JWT_SECRET"),
        ({"EDGE_APP": "no_such_module"}, "EDGE_APP"),
        ({"BROADCAST_DRIVER": "pigeon"}, "BROADCAST_DRIVER"),
    ],
)
async def test_an_invalid_setting_ends_the_start_with_2_and_its_name(
    start_process, environ, expected
):
    with pytest.raises(AssertionError, match=expected) as caught:
        await start_process(**environ)
    assert "Traceback" not in str(caught.value)
    assert "short-secret" not in str(caught.value)


async def test_handshake_under_way_when_draining_begins_is_refused(start_edge, bus, token):
    rules, asked, answer = ChannelRules(), asyncio.Event(), asyncio.Event()

    @rules.authorize("team.{team_id}")
    async def wait(user, team_id):
        asked.set()
        await answer.wait()
        return True

    edge = await start_edge(bus, rules)
    refused = asyncio.create_task(edge.refusal("/ws/team.1", token=token()))
    await asked.wait()
    await edge.node.connections.drain()
    answer.set()
    status, _, problem = await refused
    assert (status, problem["code"]) == (503, "unavailable")


async def test_a_node_that_is_busy_with_quarantine_still_closes_with_the_right_code(edge):
    client = await edge.connect()

    async def wait():
        await asyncio.Event().wait()

    while edge.node._background.start(wait(), "a publish that hangs"):
        pass
    await edge.node.connections.drain()
    assert await client.closed() == 4200


# Limits


async def test_one_connection_too_many_is_refused_until_another_leaves(start_edge, bus):
    edge = await start_edge(bus, max_connections=2)
    first, _ = await edge.connect(), await edge.connect()
    status, headers, problem = await edge.refusal()
    assert (status, problem["code"]) == (429, "limit_exceeded")
    assert int(headers["Retry-After"]) >= 1
    await first.socket.close()
    async with asyncio.timeout(40):
        while len(edge.node.connections) > 1:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    await edge.connect()


async def test_connections_that_shake_hands_at_once_do_not_pass_the_limit(start_edge, bus, token):
    rules, answer, asked = ChannelRules(), asyncio.Event(), []

    @rules.authorize("team.{team_id}")
    async def wait(user, team_id):
        asked.append(team_id)
        if len(asked) == 2:  # the others are refused before anybody is asked
            asyncio.get_running_loop().call_later(0.2, answer.set)
        await answer.wait()
        return True

    edge = await start_edge(bus, rules, max_connections=2)
    results = await asyncio.gather(
        *(edge.connect(f"/ws/team.{n}", token=token()) for n in range(5)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, Exception)]
    assert [exc.response.status_code for exc in refused] == [429] * 3
    assert len(edge.node.connections) == 2
    assert len(asked) == 2


# Silent and slow clients


async def test_a_client_that_answers_no_heartbeat_is_closed_with_4203(start_edge, bus):
    edge = await start_edge(bus, heartbeat=1.5)
    well = await edge.connect("/ws/general")
    await well.next()
    reader, writer = await raw_websocket(edge.port)
    frames = await asyncio.wait_for(reader.read(), 40)  # to the end; it answers nothing
    writer.close()
    assert b"\x89\x00" in frames  # it was asked
    assert frames[frames.index(b"\x88") + 2 :][:2] == (4203).to_bytes(2)
    assert await well.receives_nothing()  # the other client pongs by itself


async def test_a_client_that_only_pings_stays(start_edge, bus):
    edge = await start_edge(bus, heartbeat=1.5)
    client = await edge.connect()
    for _ in range(8):
        await asyncio.sleep(0.5)
        await (await client.socket.ping(b"payload"))  # the pong must carry the payload back
    assert await client.receives_nothing()


async def raw_websocket(port, path="/ws"):
    """A client that reads nothing by itself, and answers nothing."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readline()
    while (await reader.readline()).strip():
        pass
    return reader, writer


async def test_a_client_that_stops_reading_is_cut_and_the_others_receive_everything_on_time(
    start_edge, bus
):
    edge = await start_edge(bus, max_unsent_bytes=64 * 1024)
    well = await edge.connect("/ws/general")
    await well.next()
    _, writer = await raw_websocket(edge.port, "/ws/general")
    payload, cut_after = "x" * 50_000, None
    for n in range(400):
        await bus.publish("general", "e", [n, payload], volatile=True)
        assert (await well.next())["data"][0] == n
        if len(edge.node.connections) == 1:
            cut_after = n
            break
    assert cut_after is not None
    closes = edge.node.metrics.closes.labels("4201")._value.get()
    assert closes == 1
    await bus.publish("general", "e", "on")
    assert (await well.next())["data"] == "on"
    writer.close()


ACTION = b"\x81\x91\x00\x00\x00\x00" + b'{"action":"ping"}'


async def test_a_client_that_asks_and_does_not_read_the_answers_is_cut(start_edge, bus):
    pace = {"max_actions_per_second": 1e6, "action_burst": 1_000_000}
    edge = await start_edge(bus, max_unsent_bytes=64 * 1024, **pace)
    _, writer = await raw_websocket(edge.port)
    async with asyncio.timeout(30):
        while edge.node.connections:
            writer.write(ACTION * 1000)
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(writer.drain(), 0.5)
    writer.transport.abort()
    assert edge.node.metrics.closes.labels("4201")._value.get() == 1


async def test_a_client_that_is_behind_when_it_is_closed_still_gets_what_was_sent(start_edge, bus):
    edge = await start_edge(bus, max_unsent_bytes=8 * 1024 * 1024)
    client = await edge.connect("/ws/general", max_queue=1)
    await client.next()
    (connection,) = edge.node.connections.values()
    sent = 0
    while connection.outbox._sink.unsent() < 300_000:
        await bus.publish("general", "n", [sent, "x" * 50_000], volatile=True)
        sent += 1
        await asyncio.sleep(0.01)
    await edge.node.connections.drain()
    await asyncio.sleep(0.2)
    received = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            received.append((await client.next())["data"][0])
    assert received == list(range(sent))
    assert await client.closed() == 4200


# A bus that is away


async def test_without_its_bus_a_node_is_not_ready_and_takes_no_connections_until_it_is_back(
    start_edge, own_nats_server, namespace
):
    settings = Settings(
        nats_url=own_nats_server.url, namespace=namespace, history_bytes=4 * 1024**2
    )
    edge = await start_edge(settings)
    client = await edge.connect("/ws/general")
    await client.next()
    assert (await get(edge.url, "/readyz"))[0] == 200
    await own_nats_server.stop()
    await until_readiness(edge, 503)
    status, headers, problem = await edge.refusal()
    assert (status, problem["code"]) == (503, "unavailable")
    assert int(headers["Retry-After"]) >= 1
    assert (await get(edge.url, "/healthz"))[0] == 200
    assert await client.receives_nothing()  # the connection is kept, and answered
    await own_nats_server.start()
    await until_readiness(edge, 200)
    await edge.node.bus.publish("general", "e", "back")
    assert (await client.next())["data"] == "back"
    again = await edge.connect("/ws/general")
    await again.next()


async def until_readiness(edge, status):
    async with asyncio.timeout(40):
        while (await get(edge.url, "/readyz"))[0] != status:  # noqa: ASYNC110 - it is polled
            await asyncio.sleep(0.05)
