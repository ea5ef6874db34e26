"""Clients through nginx over TLS, two edges of two workers each, three NATS servers."""

import asyncio
import contextlib
import json
import signal

import aiohttp
import pytest
import trustme

from eventbus.bus import EventBus
from eventbus.cli.tokens import issue_token
from eventbus.client import connect
from eventbus.errors import EventBusError
from eventbus.message import HEADER_ID

pytestmark = [
    pytest.mark.nginx,
    pytest.mark.xdist_group("deployment"),
    pytest.mark.timeout(120),
]
CLIENTS = 200


class Front:
    """nginx before two edges."""

    def __init__(self, deployment):
        self.deployment = deployment
        self.port, *self.edge_ports = deployment.free_ports(3)
        self.url = f"https://localhost:{self.port}"
        self.tls = deployment.tls
        self.edges = [
            deployment.start_edge(f"edge-{port}", port, BROADCAST_WORKERS="2")
            for port in self.edge_ports
        ]
        deployment.start_nginx(self.port, self.edge_ports)

    def connect(self, **options):
        return connect(f"wss://localhost:{self.port}/ws", tls=self.tls, **options)

    def token(self, user="7", **claims):
        return issue_token(self.deployment.jwt_secret, user, **claims)

    def session(self, **options):
        connector = aiohttp.TCPConnector(ssl=self.tls)
        return aiohttp.ClientSession(self.url, connector=connector, **options)

    def api(self):
        return self.session(headers={"Authorization": f"Bearer {self.deployment.api_key}"})


@pytest.fixture(scope="module")
def front(deployment):
    made = Front(deployment)
    yield made
    for name in ("nginx", *(edge.name for edge in made.edges)):
        deployment.processes.pop(name).stop()


@pytest.fixture
async def publisher(deployment):
    async with EventBus(deployment.settings("publisher")) as bus:
        yield bus


async def publish(bus, channel, number):
    body = json.dumps({"event": "tick", "data": number}).encode()
    return await bus.driver.publish(bus.subjects.event(channel), body)


async def test_event_of_a_service_reaches_a_client_through_nginx(front, publisher):
    async with front.connect() as client:
        general = await client.subscribe("general")
        await publish(publisher, "general", 1)
        async with asyncio.timeout(10):
            assert (await anext(aiter(general))).data == 1


async def test_message_sent_again_while_the_replicas_still_write_it_is_stored_once(publisher):
    subject = publisher.subjects.event("again")
    body = b'{"event":"tick","data":1}'

    async def send(number):
        return await publisher.driver.publish(subject, body, {HEADER_ID: f"again-{number}"})

    kept = await asyncio.gather(*(send(number) for number in range(50) for _ in range(3)))
    assert len({each.position.offset for each in kept}) == 50


async def test_server_sent_events_pass_as_they_come(front, publisher):
    async with front.session() as session, session.get("/sse?channel=general") as response:
        assert response.status == 200
        lines = response.content
        async with asyncio.timeout(10):
            while b"eb:subscribed" not in await lines.readline():
                pass
            await publish(publisher, "general", 2)
            while b"tick" not in (line := await lines.readline()):
                pass
        assert json.loads(line.removeprefix(b"data:"))["data"] == 2
        # aiohttp cuts a stream that goes on; over TLS, Python 3.11 would warn of an open socket.
        response.connection.transport.abort()
        await asyncio.sleep(0)


async def test_token_is_checked_and_its_user_told(front):
    async with front.connect(token=front.token("42")) as client:
        await client.subscribe("user.42")
        with pytest.raises(EventBusError):
            await client.subscribe("user.43")


async def test_presence_is_the_same_on_all_edges(front):
    async with contextlib.AsyncExitStack() as stack:
        for user in range(8):
            client = await stack.enter_async_context(front.connect(token=front.token(f"u{user}")))
            joined = await client.subscribe("presence.hall")
        async with asyncio.timeout(10):
            while len(await joined.presence()) < 8:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)


async def test_api_answers_for_the_whole_cluster_and_wants_its_key(front):
    async with front.session() as stranger, stranger.get("/api/broadcast/stats") as response:
        assert response.status == 401
    async with front.api() as session, session.get("/api/broadcast/stats") as response:
        stats = await response.json()
    assert stats["driver"] == "nats"
    assert len(stats["nodes"]) == 4  # two edges of two workers


async def test_edge_may_not_publish_events_through_its_api_and_says_so(front):
    body = {"channel": "general", "event": "tick", "data": 1}
    async with (
        front.api() as session,
        session.post("/api/broadcast/events", json=body) as response,
    ):
        problem = await response.json()
    assert response.status == 503, problem
    assert "permission" in problem["detail"]


async def test_metrics_are_not_for_the_outside(front):
    async with front.session() as session, session.get("/metrics") as response:
        assert response.status == 404
    address = f"https://localhost:{front.edge_ports[0]}/metrics"
    async with (
        aiohttp.ClientSession() as session,
        session.get(address, ssl=front.deployment.client_tls) as prometheus,
        session.get(address, ssl=front.tls) as stranger,
    ):
        assert (prometheus.status, stranger.status) == (200, 403)


async def test_real_addresses_arrive_and_cannot_be_forged(deployment, front):
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
                session = await stack.enter_async_context(
                    aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=front.tls))
                )
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
            # From this machine, not through nginx, somebody trusted may tell another address.
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(
                    f"wss://localhost:{port}/ws",
                    headers={"X-Forwarded-For": "203.0.113.9"},
                    ssl=deployment.client_tls,
                ) as ws,
            ):
                assert not ws.closed
    finally:
        strict.stop(signal.SIGKILL)
        deployment.processes.pop("nginx-strict").stop()
    assert statuses == [101, 101, 429, 429]


async def test_client_past_nginx_without_a_certificate_is_refused_and_the_log_says_so(front):
    edge = front.edges[1]
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"wss://localhost:{front.edge_ports[1]}/ws", ssl=front.tls)
    assert refused.value.status == 403
    edge.wait_until(lambda: "for want of a client certificate" in edge.tail())


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


class Listener:
    """A client that keeps what it gets."""

    def __init__(self, client):
        self._client = client
        self.got = []

    async def listen(self, channel):
        self._subscription = await self._client.subscribe(channel, self._take)
        return self

    def _take(self, data):
        self.got.append(data)

    @property
    def gaps(self):
        return self._subscription.gaps


async def listen(front, stack, channel):
    """CLIENTS of them, each with a connection of its own."""

    async def one(user):
        client = await stack.enter_async_context(front.connect(token=front.token(f"u{user}")))
        return await Listener(client).listen(channel)

    found = []
    for start in range(0, CLIENTS, 20):
        found += await asyncio.gather(*map(one, range(start, start + 20)))
    return found


class Publishing:
    """Publishes numbers, one after another, until it is asked to stop."""

    def __init__(self, bus, channel):
        self._bus = bus
        self._channel = channel
        self._stopping = asyncio.Event()
        self.count = 0

    async def run(self):
        while not self._stopping.is_set():
            await publish(self._bus, self._channel, self.count)
            self.count += 1
            await asyncio.sleep(0.02)

    async def more(self, count=20):
        """Wait until so many more are out."""
        target = self.count + count
        while self.count < target:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)

    def stop(self):
        self._stopping.set()


async def in_thread(call, *args):
    return await asyncio.get_running_loop().run_in_executor(None, call, *args)


def restart(deployment, name, start, number):
    """Take a process out, see that it ends well, and put it back."""
    assert deployment.processes[name].stop(number) == 0
    start()


async def test_nothing_is_lost_when_edges_and_nats_servers_are_restarted(
    deployment, front, publisher
):
    async with contextlib.AsyncExitStack() as stack:
        listeners = await listen(front, stack, "chat.restart")
        publishing = Publishing(publisher, "chat.restart")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publishing.run())
            await publishing.more()
            edge, port = front.edges[0].name, front.edge_ports[0]
            await in_thread(
                restart,
                deployment,
                edge,
                lambda: deployment.start_edge(edge, port, BROADCAST_WORKERS="2"),
                signal.SIGTERM,
            )
            await publishing.more()
            for number in deployment.nats_ports:
                await in_thread(
                    restart,
                    deployment,
                    f"nats-{number}",
                    lambda number=number: deployment.start_nats(number, wait=True),
                    signal.SIGUSR2,
                )
                await publishing.more()
            publishing.stop()
        expected = list(range(publishing.count))
        async with asyncio.timeout(30):
            while any(len(listener.got) < len(expected) for listener in listeners):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
        wrong = [each for each in listeners if each.got != expected or each.gaps]
        assert wrong == []


def test_no_edge_was_refused_anything_but_publishing_events(deployment, front):
    """Last of the module: what the user EDGE is granted is all that edges ask for."""
    for edge in front.edges:
        refused = [line for line in edge.lines() if "permissions violation" in line.lower()]
        assert [line for line in refused if "eb.event." not in line] == []
