"""Several regions, from compose/nats/: a home region with the streams, another behind a gateway,
and a site behind a leaf node, whose line can be cut.
"""

import asyncio
import contextlib
import itertools
import json
import re
import runpy
import signal
import socket
import threading
import urllib.request

import pytest

from eventbus.bus import EventBus
from eventbus.client import connect
from eventbus.errors import PublishFailed
from eventbus.server import find_binary
from eventbus.tokens import issue_token

pytestmark = [pytest.mark.xdist_group("deployment"), pytest.mark.timeout(240)]
PATIENCE_S = 60


class Line:
    """A line between two servers: connections to `port` go on to `target` until it is cut."""

    def __init__(self, port, target):
        self._port = port
        self._target = target
        self._open = []
        self.heal()

    def heal(self):
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def cut(self):
        """End all connections, and refuse others."""
        _shut(self._listener)
        self._accepting.join()
        for each in self._open:
            _shut(each)
        self._open.clear()

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:  # it is cut
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=30)
            except OSError:  # the server is not up
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    @staticmethod
    def _pass_on(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        _shut(source)
        _shut(target)


def _shut(end):
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class Regions:
    """The processes of all regions. `home` is a deployment of its own."""

    def __init__(self, home):
        self.home = home
        ports = iter(home.free_ports(16))
        self._gateways = dict(zip(home.nats_ports, ports, strict=False))
        self._leaf_ports = dict(zip(home.nats_ports, ports, strict=False))
        self._region_gateway, self._line_port = next(ports), next(ports)
        self.ports = {"region": next(ports), "site": next(ports)}
        self._monitors = {"region": next(ports), "site": next(ports)}
        self._region_cluster = next(ports)
        self.edge_ports = {name: next(ports) for name in ("home", "region", "site")}
        for name in ("region", "site"):
            home.make_certificate(name, "localhost", "127.0.0.1")
        self.line = Line(self._line_port, self._leaf_ports[1])

    def start(self):
        """The cluster, of which its servers make the home region; then the others."""
        self.home.start_cluster()
        done = self.home.eventbus("setup", environ=self.home.role("admin"))
        assert done.returncode == 0, done.stderr
        self._start_edge("home", self.home.nats_ports[1])
        self.moved = asyncio.run(self._move())
        self.start_region()
        self._start_site()
        self._start_edge("region", self.ports["region"])
        self._start_edge("site", self.ports["site"], NATS_NKEY=str(self._site_seed))

    async def _move(self):
        """Server by server, to home.conf; returns the messages published meanwhile, and those that
        arrived."""
        sent, got = itertools.count(), []
        async with self.publisher() as publish, self.connect("home") as client:
            chat = await client.subscribe("chat.moved", got.append)
            async with going_on(publish, "chat.moved", sent):
                for number in self._gateways:
                    await asyncio.to_thread(self._restart_at_home, number)
            last = next(sent)
            await publish("chat.moved", last)
            async with asyncio.timeout(PATIENCE_S):
                while not got or got[-1] != last:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.05)
            return last, got, chat.gaps

    def _restart_at_home(self, number):
        assert self.home.processes[f"nats-{number}"].stop(signal.SIGUSR2) == 0
        self.home.nats_file = "home.conf"
        self.home.start_nats(
            number,
            wait=True,
            NATS_GATEWAY_PORT=str(self._gateways[number]),
            NATS_LEAF_PORT=str(self._leaf_ports[number]),
            NATS_REGION_GATEWAY=f"tls://127.0.0.1:{self._region_gateway}",
        )

    def start_region(self):
        route = f"tls://127.0.0.1:{self._region_cluster}"
        gateways = {
            f"NATS_HOME_GATEWAY_{number}": f"tls://127.0.0.1:{port}"
            for number, port in self._gateways.items()
        }
        self._start_server(
            "region",
            NATS_CLUSTER_PORT=str(self._region_cluster),
            NATS_GATEWAY_PORT=str(self._region_gateway),
            **{f"NATS_ROUTE_{number}": route for number in self._gateways},
            **gateways,
            **self.home.nats_users,
            NATS_DATA=str(self.home.folder / "none"),
        )

    def _start_site(self):
        """With users that the home region does not know."""
        logins = runpy.run_path(str(self.home.files / "make_secrets.py"))["make_logins"]()
        self._site_seed = self.home.folder / "site-edge.nk"
        self._site_seed.write_bytes(logins["edge.nk"])
        self.site_admin_seed = self.home.folder / "site-admin.nk"
        self.site_admin_seed.write_bytes(logins["admin.nk"])
        users = dict(line.split("=", 1) for line in logins["nats.env"].decode().splitlines())
        self._start_server(
            "site",
            **users,
            **{
                f"NATS_HOME_LEAF_{number}": f"tls://127.0.0.1:{self._line_port}" for number in "123"
            },
            NATS_SITE_SEED=(self.home.secrets / "site.nk").read_text(),
        )

    def _start_server(self, name, **environ):
        command = [find_binary(), "-c", self.home.files / "nats" / f"{name}.conf"]
        secrets = self.home.secrets
        environ |= {
            "NATS_NAME": name,
            "NATS_PORT": str(self.ports[name]),
            "NATS_MONITOR_PORT": str(self._monitors[name]),
            "NATS_CERT": str(secrets / f"{name}.crt"),
            "NATS_KEY": str(secrets / f"{name}.key"),
            "NATS_CA": str(secrets / "ca.crt"),
        }
        self.home.start(f"nats-{name}", command, environ)

    def _start_edge(self, name, nats_port, **changes):
        self.home.start_edge(
            f"edge-{name}", self.edge_ports[name],
            NATS_URL=f"tls://127.0.0.1:{nats_port}", BROADCAST_WORKERS="1",
            BROADCAST_HISTORY_SECONDS="8", BROADCAST_CONNECT_TIMEOUT="30", **changes,
        )  # fmt: skip

    # Clients

    def connect(self, where, user="7"):
        url = f"wss://127.0.0.1:{self.edge_ports[where]}/ws"
        token = issue_token(user, secret=self.home.jwt_secret)
        return connect(url, tls=self.home.client_tls, token=token)

    @contextlib.asynccontextmanager
    async def publisher(self, where="home"):
        """Publishes a number on a channel."""
        changes = {} if where == "home" else {"NATS_URL": f"tls://127.0.0.1:{self.ports[where]}"}
        async with EventBus(self.home.settings("publisher", **changes)) as bus:

            async def one(channel, number):
                body = json.dumps({"event": "tick", "data": number}).encode()
                return await bus.driver.publish(bus.subjects.event(channel), body)

            yield one

    # The site's line

    @property
    def site_is_linked(self):
        url = f"http://127.0.0.1:{self._monitors['site']}/leafz"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["leafnodes"] == 1

    async def cut(self):
        self.line.cut()
        await self._until(lambda: not self.site_is_linked)

    async def heal(self):
        self.line.heal()
        await self._until(lambda: self.site_is_linked)

    async def _until(self, condition):
        process = self.home.processes["nats-site"]
        await asyncio.to_thread(process.wait_until, condition)


@pytest.fixture(scope="module")
def regions(new_deployment, tmp_path_factory):
    home = new_deployment(tmp_path_factory.mktemp("regions"))
    regions = Regions(home)
    try:
        regions.start()
        yield regions
    finally:
        home.stop()
        regions.line.cut()


def test_cluster_becomes_a_home_region_server_by_server_and_nothing_is_lost(regions):
    last, got, gaps = regions.moved
    assert got == list(range(last + 1))
    assert gaps == 0


def test_site_may_do_what_an_edge_may_by_the_domain_of_the_home_region(regions):
    folder = regions.home.files / "nats"
    edge = subjects_of("EDGE", folder / "permissions.conf")
    by_domain = {"$JS.API.": "$JS.home.API.", "$KV.": "$JS.home.API.$KV."}
    for prefix, by in by_domain.items():
        edge = [re.sub(f"^{re.escape(prefix)}", by, subject) for subject in edge]
    assert subjects_of("SITE", folder / "site-permissions.conf") == edge


def subjects_of(block, file):
    text = re.search(rf"^{block} {{.*?^}}", file.read_text(), re.DOTALL | re.MULTILINE)[0]
    return re.findall(r'^[^#\n]*"(.+?)"', text, re.MULTILINE)


async def data_of(messages, count):
    async with asyncio.timeout(PATIENCE_S):
        return [(await anext(messages)).data for _ in range(count)]


@contextlib.asynccontextmanager
async def going_on(publish, channel, numbers):
    """Publish number after number.

    What passes before the servers know who listens is found missing by the next one.
    """
    stopping = asyncio.Event()

    async def run():
        while not stopping.is_set():
            await publish(channel, next(numbers))
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        try:
            yield
        finally:
            stopping.set()


@pytest.mark.parametrize("published_in", ["home", "region"])
async def test_event_reaches_clients_of_region_and_site_and_stands_in_their_history(
    regions, published_in
):
    channel = f"chat.from-{published_in}"
    async with (
        regions.publisher(published_in) as publish,
        regions.connect("region") as near,
        regions.connect("site") as far,
    ):
        chats = [await client.subscribe(channel) for client in (near, far)]
        for number in range(3):
            await publish(channel, number)
        for chat in chats:
            assert await data_of(aiter(chat), 3) == [0, 1, 2]
            page = await chat.history(2)
            assert [message.data for message in page.messages] == [1, 2]


async def test_whispers_and_presence_pass_between_regions(regions):
    received = asyncio.Queue()
    async with regions.connect("region", "near") as near, regions.connect("site", "far") as far:
        hall = [await client.subscribe("presence.hall") for client in (near, far)]
        for each in hall:
            async with asyncio.timeout(PATIENCE_S):
                while {member.user_id for member in await each.presence()} != {"near", "far"}:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.05)
        await near.subscribe("chat.whispers", received.put_nowait)
        whispering = await far.subscribe("chat.whispers")
        await whispering.whisper("typing", 1)
        async with asyncio.timeout(PATIENCE_S):
            assert await received.get() == 1


async def test_messages_that_a_site_missed_during_an_outage_arrive_before_later_ones(regions):
    async with regions.publisher() as publish, regions.connect("site") as client:
        chat = await client.subscribe("chat.cut")
        states = []
        client.on_state(states.append)
        await publish("chat.cut", 0)
        await regions.cut()
        for number in range(1, 20):
            await publish("chat.cut", number)
        await regions.heal()
        async with going_on(publish, "chat.cut", itertools.count(20)):
            assert await data_of(aiter(chat), 25) == list(range(25))
        assert chat.gaps == 0
        assert states == []


async def test_client_of_a_site_is_notified_of_lost_messages_after_reconnecting(regions):
    async with (
        regions.publisher() as publish,
        EventBus(regions.home.settings("admin")) as admin,
        regions.connect("site") as client,
    ):
        chat = await client.subscribe("chat.gone")
        messages = aiter(chat)
        await publish("chat.gone", 0)
        assert await data_of(messages, 1) == [0]
        await regions.cut()
        await publish("chat.gone", 1)
        await admin.driver.purge(admin.subjects.live("chat.gone"))
        await publish("chat.gone", 2)
        await regions.heal()
        async with going_on(publish, "chat.gone", itertools.count(3)):
            assert await data_of(messages, 3) == [2, 3, 4]
        async with asyncio.timeout(PATIENCE_S):
            while not chat.gaps:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)


async def test_site_publishes_no_events_where_the_home_region_grants_it_none(regions):
    changes = {
        "NATS_URL": f"tls://127.0.0.1:{regions.ports['site']}",
        "NATS_NKEY": str(regions.site_admin_seed),
        "NATS_INBOX_PREFIX": "_INBOX.edge",
        "BROADCAST_PUBLISH_TIMEOUT": "1",
    }
    async with (
        EventBus(regions.home.settings("edge", **changes)) as site,
        EventBus(regions.home.settings("admin")) as home,
    ):
        live = home.subjects.live("chat.site")
        await home.driver.publish(home.subjects.event("chat.site"), b"1")
        assert len((await site.driver.read(live, after=None, limit=9)).messages) == 1
        with pytest.raises(PublishFailed):
            await site.driver.publish(site.subjects.event("chat.site"), b"2")
        assert len((await home.driver.read(live, after=None, limit=9)).messages) == 1


async def test_home_region_continues_without_the_other_whose_clients_miss_nothing(regions):
    async with regions.publisher() as publish, regions.connect("region") as client:
        chat = await client.subscribe("chat.alone")
        await publish("chat.alone", 0)
        server = regions.home.processes["nats-region"]
        server.stop(signal.SIGKILL)
        for number in range(1, 10):
            await publish("chat.alone", number)
        await asyncio.to_thread(regions.start_region)
        assert await data_of(aiter(chat), 10) == list(range(10))
        assert chat.gaps == 0


@pytest.mark.parametrize(
    "name", ["edge-home", "edge-region", "edge-site", "nats-region", "nats-site"]
)
def test_nobody_was_refused_anything(regions, name):
    """Last of the module: what an edge may is all that the edges of regions and sites ask for."""
    lines = regions.home.processes[name].lines()
    assert [line for line in lines if "violation" in line.lower()] == []


def test_home_servers_refused_nothing_but_the_sites_event(regions):
    lines = [
        line
        for number in regions.home.nats_ports
        for line in regions.home.processes[f"nats-{number}"].lines()
        if "violation" in line.lower()
    ]
    assert [line for line in lines if "eb.event.chat.site" not in line] == []
