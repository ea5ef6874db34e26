"""What is NATS's own: a user for each kind of service, replicas, a rolling restart; and nginx's."""

import asyncio
import contextlib
import json
import signal
import socket
import ssl

import aiohttp
import pytest
import trustme

from eventbus.bus import EventBus
from eventbus.messages import HEADER_ID

pytestmark = [
    pytest.mark.nginx,
    pytest.mark.xdist_group("deployment"),
    pytest.mark.timeout(240),
]
CLIENTS = 200


@pytest.fixture(scope="module")
def front(new_front):
    with new_front("nats") as made:
        yield made


@pytest.fixture(scope="module")
def deployment(front):
    return front.deployment


async def test_message_sent_again_while_the_replicas_still_write_it_is_stored_once(publish):
    async def send(number):
        return await publish("again", 1, **{HEADER_ID: f"again-{number}"})

    kept = await asyncio.gather(*(send(number) for number in range(50) for _ in range(3)))
    assert len({each.position.offset for each in kept}) == 50


async def test_edge_may_not_publish_events_through_its_api_and_says_so(front):
    body = {"channel": "general", "event": "tick", "data": 1}
    async with (
        front.api() as session,
        session.post("/api/broadcast/events", json=body) as response,
    ):
        problem = await response.json()
    assert (response.status, problem["code"]) == (403, "forbidden"), problem
    assert "permission" in problem["detail"]
    assert "Retry-After" not in response.headers


async def test_metrics_are_not_for_the_outside(front, http_session):
    async with front.session() as session, session.get("/metrics") as response:
        assert response.status == 404
    address = f"https://localhost:{front.edge_ports[0]}/metrics"
    async with (
        http_session() as session,
        session.get(address, ssl=front.deployment.client_tls) as prometheus,
        session.get(address, ssl=front.tls) as stranger,
    ):
        assert (prometheus.status, stranger.status) == (200, 403)


async def test_real_addresses_arrive_and_cannot_be_forged(deployment, front, http_session):
    """Over a limit of two connections for an address, the address counts that nginx saw."""
    (port,) = deployment.free_ports(1)
    strict = deployment.start_edge(
        "edge-strict", port, BROADCAST_WORKERS="1", BROADCAST_MAX_CONNECTIONS_PER_ADDRESS="2"
    )
    try:
        (nginx_port,) = deployment.free_ports(1)
        deployment.start_nginx(nginx_port, [port], name="nginx-strict")
        statuses = []
        async with contextlib.AsyncExitStack() as stack:
            for number in range(4):
                session = await stack.enter_async_context(http_session(front.tls))
                try:
                    await stack.enter_async_context(
                        session.ws_connect(
                            f"wss://localhost:{nginx_port}/ws",
                            headers={"X-Forwarded-For": f"203.0.113.{number}"},
                        )
                    )
                    statuses.append(101)
                except aiohttp.WSServerHandshakeError as exc:
                    statuses.append(exc.status)
            # From this machine, not through nginx, a trusted peer may report another address.
            async with (
                http_session(deployment.client_tls) as session,
                session.ws_connect(
                    f"wss://localhost:{port}/ws", headers={"X-Forwarded-For": "203.0.113.9"}
                ) as ws,
            ):
                assert not ws.closed
    finally:
        strict.stop(signal.SIGKILL)
        deployment.processes.pop("nginx-strict").stop()
    assert statuses == [101, 101, 429, 429]


async def test_client_past_nginx_without_a_certificate_is_refused_and_the_log_says_so(
    front, http_session
):
    edge = front.edges[1]
    async with http_session(front.tls) as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"wss://localhost:{front.edge_ports[1]}/ws")
    assert refused.value.status == 403
    edge.wait_until(lambda: "without a client certificate" in edge.tail())


@pytest.mark.parametrize(
    ("who", "files", "in_nginx", "at_edge"),
    [
        # The house's, and not an edge's: nginx goes away without a word.
        ("edge", {"CERT": "publisher.crt", "KEY": "publisher.key"},
         'upstream SSL certificate does not match "edge.eventbus"', None),
        # nginx's own is of no house that this edge knows.
        ("nginx", {"CLIENT_CA": "others.crt"},
         "upstream prematurely closed connection", "unable to get local issuer certificate"),
    ],
    ids=["edge", "nginx"],
)  # fmt: skip
async def test_wrong_certificate_between_nginx_and_edge_gives_502_and_the_logs_say_why(
    deployment, front, who, files, in_nginx, at_edge
):
    trustme.CA().cert_pem.write_to_path(deployment.secrets / "others.crt")
    changes = {
        f"BROADCAST_TLS_{key}": str(deployment.secrets / file) for key, file in files.items()
    }
    port, nginx_port = deployment.free_ports(2)
    names = f"edge-wrong-{who}", f"nginx-wrong-{who}"
    edge = deployment.start_edge(names[0], port, BROADCAST_WORKERS="1", **changes)
    try:
        nginx = deployment.start_nginx(nginx_port, [port], name=names[1], answers=502)
        nginx.wait_until(lambda: in_nginx in nginx.tail())
        edge.wait_until(lambda: at_edge is None or at_edge in edge.tail())
        nginx.stop()
    finally:
        edge.stop(signal.SIGKILL)


def shown_by_nginx(front):
    with (
        socket.create_connection(("localhost", front.port)) as plain,
        front.tls.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True))


def shown_by_nats(front, number):
    """TLS begins after the server's first line."""
    address = ("localhost", front.deployment.nats_ports[number])
    with socket.create_connection(address) as plain:
        while plain.recv(1) != b"\n":
            pass
        with front.deployment.client_tls.wrap_socket(plain, server_hostname="localhost") as secured:
            return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True))


async def test_servers_show_renewed_certificates_after_sighup_and_clients_stay(
    deployment, front, publish
):
    async with front.connect() as client:
        general = await client.subscribe("general")
        states = []
        client.on_state(states.append)
        deployment.make_certificate("nginx", "localhost", "127.0.0.1", "nginx")
        deployment.make_certificate("nats-1", "localhost", "127.0.0.1", "nats-1")
        deployment.give_nats_its_certificate(1)
        for name, shown in (
            ("nginx", lambda: shown_by_nginx(front)),
            ("nats-1", lambda: shown_by_nats(front, 1)),
        ):
            renewed = (deployment.secrets / f"{name}.crt").read_text()
            assert await asyncio.to_thread(shown) not in renewed
            server = deployment.processes[name]
            server.send(signal.SIGHUP)
            await asyncio.to_thread(server.wait_until, lambda: shown() in renewed)  # noqa: B023 - at once
        await publish("general", 1)
        async with asyncio.timeout(30):
            assert (await anext(aiter(general))).data == 1
        assert states == []


def restart(deployment, name, start, number):
    """Take a process out, see that it ends well, and put it back."""
    assert deployment.processes[name].stop(number) == 0
    start()


async def test_nothing_is_lost_when_edges_and_nats_servers_are_restarted(
    deployment, front, publishing
):
    async with contextlib.AsyncExitStack() as stack:
        listeners = await front.listen(stack, "chat.restart", CLIENTS)
        numbers = publishing("chat.restart")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(numbers.run())
            await numbers.more()
            await asyncio.to_thread(front.restart_edge, 0, signal.SIGTERM)
            await numbers.more()
            for number in deployment.nats_ports:
                await asyncio.to_thread(
                    restart,
                    deployment,
                    f"nats-{number}",
                    lambda number=number: deployment.start_nats(number, wait=True),
                    signal.SIGUSR2,
                )
                await numbers.more()
            numbers.stop()
        assert await in_disorder(listeners, numbers.count) == []


async def in_disorder(listeners, count):
    """Who has not got all numbers, once and in order."""
    expected = list(range(count))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while any(len(listener.got) < count for listener in listeners):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
    return [each for each in listeners if each.got != expected or each.gaps]


async def leader_of_events(deployment):
    """The number of the server that leads the stream's replicas."""
    async with EventBus(deployment.settings("admin")) as admin:
        client = admin.driver._connection.client
        answer = await client.request("$JS.API.STREAM.INFO.EB_EVENTS", timeout=10)
        return int(json.loads(answer.data)["cluster"]["leader"].removeprefix("nats-"))


async def test_nothing_is_lost_when_the_server_that_leads_the_stream_is_killed(
    deployment, front, publishing
):
    async with contextlib.AsyncExitStack() as stack:
        channels = [f"chat.killed-{number}" for number in range(3)]
        listeners = [await front.listen(stack, channel, 20) for channel in channels]
        each_numbers = [publishing(channel) for channel in channels]
        async with asyncio.TaskGroup() as tasks:
            for numbers in each_numbers:
                tasks.create_task(numbers.run())
            await asyncio.gather(*(numbers.more() for numbers in each_numbers))
            leader = await leader_of_events(deployment)
            await asyncio.to_thread(deployment.processes[f"nats-{leader}"].stop, signal.SIGKILL)
            await asyncio.gather(*(numbers.more() for numbers in each_numbers))
            assert await leader_of_events(deployment) != leader
            await asyncio.to_thread(deployment.start_nats, leader, wait=True)
            await asyncio.gather(*(numbers.more() for numbers in each_numbers))
            for numbers in each_numbers:
                numbers.stop()
        for received, numbers in zip(listeners, each_numbers, strict=True):
            assert await in_disorder(received, numbers.count) == []


def test_no_edge_was_refused_anything_but_publishing_events(deployment, front):
    """Last of the module: what the user EDGE is granted is all that edges ask for."""
    for edge in front.edges:
        refused = [line for line in edge.lines() if "permissions violation" in line.lower()]
        assert [line for line in refused if "eb.event." not in line] == []
