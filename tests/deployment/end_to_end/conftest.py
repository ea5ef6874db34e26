"""nginx before two edges of two workers each, on NATS or on Redis, and clients of them."""

import asyncio
import contextlib
import functools
import json
import re
import subprocess

import pytest

from eventbus.bus import EventBus
from eventbus.client import connect
from eventbus.config import Settings
from eventbus.tokens import issue_token


class Front:
    """nginx before the edges of a deployment whose bus runs."""

    def __init__(self, deployment, publisher, http_session, **changes):
        """`publisher` are the settings of a service that publishes, `changes` those of edges."""
        self.deployment = deployment
        self.publisher = publisher
        self.port, *self.edge_ports = deployment.free_ports(3)
        self.url = f"https://localhost:{self.port}"
        self.tls = deployment.tls
        self._changes = changes
        self._http_session = http_session
        self.edges = [self.start_edge(f"edge-{port}", port) for port in self.edge_ports]
        deployment.start_nginx(self.port, self.edge_ports)

    def start_edge(self, name, port):
        return self.deployment.start_edge(name, port, **self._changes)

    def restart_edge(self, number, signal_number):
        """Take an edge out, see that it ends well, and put it back."""
        name, port = self.edges[number].name, self.edge_ports[number]
        assert self.edges[number].stop(signal_number) == 0
        self.edges[number] = self.start_edge(name, port)

    def connect(self, **options):
        return connect(f"wss://localhost:{self.port}/ws", tls=self.tls, **options)

    def token(self, user="7", **claims):
        return issue_token(user, secret=self.deployment.jwt_secret, **claims)

    def session(self, **options):
        return self._http_session(self.tls, self.url, **options)

    def api(self):
        return self.session(headers={"Authorization": f"Bearer {self.deployment.api_key}"})

    async def listen(self, stack, channel, count):
        """So many clients that keep what they get, each with a connection of its own."""

        async def one(user):
            client = await stack.enter_async_context(self.connect(token=self.token(f"u{user}")))
            return await Listener(client).listen(channel)

        found = []
        for start in range(0, count, 20):
            found += await asyncio.gather(*map(one, range(start, min(start + 20, count))))
        return found


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


class Publishing:
    """Publishes numbers, one after another, until it is asked to stop."""

    def __init__(self, publish, channel):
        self._publish = publish
        self._channel = channel
        self._stopping = asyncio.Event()
        self.count = 0

    async def run(self):
        while not self._stopping.is_set():
            await self._publish(self._channel, self.count)
            self.count += 1
            await asyncio.sleep(0.02)

    async def more(self, count=20):
        """Wait until so many more are out."""
        target = self.count + count
        while self.count < target:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)

    def stop(self):
        self._stopping.set()


@pytest.fixture(scope="session")
def new_front(new_deployment, http_session, tmp_path_factory):
    """Starts all of one kind: `with new_front("redis") as front:`."""

    @contextlib.contextmanager
    def start(kind):
        folder = tmp_path_factory.mktemp(kind)
        if kind == "redis":
            made = new_deployment(folder, "compose.redis.yaml")
            begin = functools.partial(on_redis, made, http_session)
        else:
            made = new_deployment(folder)
            begin = functools.partial(on_nats, made, http_session)
        try:
            yield begin()
        finally:
            made.stop()

    return start


def on_nats(deployment, http_session):
    deployment.start_cluster()
    done = deployment.eventbus("setup", environ=deployment.role("admin"))
    assert done.returncode == 0, done.stderr
    publisher = deployment.settings("publisher")
    return Front(deployment, publisher, http_session, BROADCAST_WORKERS="2")


# Redis


def on_redis(deployment, http_session):
    (port,) = deployment.free_ports(1)
    data = deployment.folder / "redis"
    data.mkdir()
    text = (deployment.files / "redis" / "redis.conf").read_text(encoding="utf-8")
    text = text.replace("/run/secrets", str(deployment.secrets)).replace("dir /data", f"dir {data}")
    text = re.sub("^tls-port .*", f"tls-port {port}\nbind 127.0.0.1", text, flags=re.MULTILINE)
    (data / "redis.conf").write_text(text, encoding="utf-8")
    start_redis(deployment, port)
    here = {"BROADCAST_REDIS_HOST": "localhost", "BROADCAST_REDIS_PORT": str(port)}
    publisher = deployment.environment("edge", **here) | {
        "BROADCAST_REDIS_USERNAME": "publisher",
        "BROADCAST_REDIS_PASSWORD_FILE": str(deployment.secrets / "redis_publisher_password"),
        "BROADCAST_REDIS_TLS_CERT": str(deployment.secrets / "publisher.crt"),
        "BROADCAST_REDIS_TLS_KEY": str(deployment.secrets / "publisher.key"),
        "BROADCAST_HISTORY_MESSAGES": "5000",
    }
    here |= {"BROADCAST_WORKERS": "2", "BROADCAST_DRAIN_TIME": "1"}
    front = Front(deployment, Settings.from_env(publisher), http_session, **here)
    front.restart_redis = functools.partial(restart_redis, deployment, port)
    return front


def start_redis(deployment, port):
    """redis-server with compose/redis/redis.conf; it is there when compose.yaml's check says so."""
    process = deployment.start(
        "redis", ["redis-server", deployment.folder / "redis" / "redis.conf"], {}
    )
    test = deployment.compose["services"]["redis"]["healthcheck"]["test"]
    check = [word.replace("/run/secrets", str(deployment.secrets)) for word in test[1:]]
    check[1:1] = ["-p", str(port)]

    def answers():
        done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=20)
        return done.stdout.strip() == "PONG"

    process.wait_until(answers)


def restart_redis(deployment, port, number):
    """End it by a signal, and put it back with what it had stored."""
    deployment.processes["redis"].stop(number)
    start_redis(deployment, port)


# Clients


@pytest.fixture
async def publish(front):
    """Publishes a number on a channel, as a service does."""
    async with EventBus(front.publisher) as bus:

        async def one(channel, number, **headers):
            body = json.dumps({"event": "tick", "data": number}).encode()
            return await bus.driver.publish(bus.subjects.event(channel), body, headers)

        yield one


@pytest.fixture
def publishing(publish):
    """Publishes on a channel until it is asked to stop: `publishing("chat.1")`."""
    return functools.partial(Publishing, publish)
