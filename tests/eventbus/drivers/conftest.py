"""Real Redis servers: one for each worker, a cluster of three, and some to be killed."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import pytest_asyncio

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers import Driver
from eventbus.drivers.redis.driver import RedisDriver

START_S = 30.0
D = TypeVar("D", bound=Driver)
MakeRedis = Callable[..., Awaitable[RedisDriver]]


def free_port() -> int:
    """A port that was free a moment ago, and the one 10,000 above it, for a cluster's own talk.

    Both are below those that the system gives to outgoing connections (from 32768 on Linux), one of
    which could take the port of a server that is down for a moment.
    """
    while True:
        port = 10_000 + secrets.randbelow(4_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


class RedisServer:
    """A redis-server process that can be killed, stopped, and started again where it was."""

    def __init__(self, folder: Path, *options: str, port: int = 0, tls: bool = False) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.options = options
        self.tls = tls
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = ["--port", "0", "--tls-port"] if self.tls else ["--port"]
        for _ in range(3):
            arguments = [*ports, str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
            with (self.folder / "log").open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    "redis-server", *self._head(), *arguments, "--save", "", *self.options,
                    stdout=log,
                )  # fmt: skip
            if await self._answers():
                return
            await self.kill()
        raise AssertionError((self.folder / "log").read_text())

    def _head(self) -> list[str]:
        return []

    async def _answers(self) -> bool:
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while self._process.returncode is None:
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                        writer.close()
                        await writer.wait_closed()
                        return True
                    await asyncio.sleep(0.02)
        return False

    async def command(self, *arguments: str) -> str:
        """What redis-cli prints."""
        process = await asyncio.create_subprocess_exec(
            "redis-cli", "-p", str(self.port), *arguments, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out.decode().strip()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it at once (-9)."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None


class Sentinel(RedisServer):
    """A sentinel for one master, that finds it dead in 6 s.

    A pause of the whole machine is shorter, so that it begins no failover.
    """

    def __init__(self, folder: Path, master: int) -> None:
        super().__init__(folder)
        self.master = master

    async def start(self) -> None:
        await super().start()
        # After a pause of 2 s it would do nothing for 30 s, which it calls TILT.
        assert await self.command("SENTINEL", "DEBUG", "TILT-TRIGGER", "60000") == "OK"

    def _head(self) -> list[str]:
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {self.master} 1\n"
            "sentinel down-after-milliseconds mymaster 6000\n"
            "sentinel failover-timeout mymaster 3000\n"
        )
        return [str(config), "--sentinel"]


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait for a state of other processes."""
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.05)


class Group:
    """A master, a replica, and three sentinels that know each other."""

    def __init__(
        self, master: RedisServer, replica: RedisServer, sentinels: list[Sentinel]
    ) -> None:
        self.master, self.replica, self.sentinels = master, replica, sentinels
        self.addresses = tuple(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)

    async def is_in_step(self) -> bool:
        if "state=online" not in await self.master.command("INFO", "replication"):
            return False
        for sentinel in self.sentinels:
            replicas = await sentinel.command("SENTINEL", "REPLICAS", "mymaster")
            others = await sentinel.command("SENTINEL", "SENTINELS", "mymaster")
            if str(self.replica.port) not in replicas or others.count("runid") != 2:
                return False
        return True

    async def fail_over(self) -> None:
        assert await self.sentinels[0].command("SENTINEL", "FAILOVER", "mymaster") == "OK"


class RedisCluster:
    """Three masters."""

    def __init__(self, folder: Path, *more: str, timeout_ms: int) -> None:
        """`timeout_ms` is how long a node is silent before the others declare it dead."""
        options = (*more, "--cluster-enabled", "yes", "--cluster-node-timeout", str(timeout_ms),
                   "--cluster-require-full-coverage", "no")  # fmt: skip
        self.nodes = [RedisServer(folder / str(i), *options) for i in range(3)]

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()
        share = [(0, 5460), (5461, 10922), (10923, 16383)]
        first = self.nodes[0]
        for i, (node, (low, high)) in enumerate(zip(self.nodes, share, strict=True)):
            await node.command("CLUSTER", "SET-CONFIG-EPOCH", str(i + 1))
            await node.command("CLUSTER", "ADDSLOTSRANGE", str(low), str(high))
            if node is not first:
                await first.command("CLUSTER", "MEET", "127.0.0.1", str(node.port))
        async with asyncio.timeout(20):
            for node in self.nodes:
                while not self._whole(await node.command("CLUSTER", "INFO")):  # noqa: ASYNC110 - theirs
                    await asyncio.sleep(0.05)

    async def node_of(self, channel: str) -> RedisServer:
        """The master of a channel's slot."""
        slot = int(await self.nodes[0].command("CLUSTER", "KEYSLOT", channel))
        shares = await self.nodes[0].command("CLUSTER", "NODES")
        for line in shares.splitlines():
            (
                _,
                address,
                *_,
            ) = parts = line.split()
            for share in parts[8:]:
                low, _, high = share.partition("-")
                if int(low) <= slot <= int(high or low):
                    port = int(address.split("@")[0].rsplit(":", 1)[1])
                    return next(node for node in self.nodes if node.port == port)
        raise AssertionError(shares)

    @staticmethod
    def _whole(info: str) -> bool:
        return all(
            part in info
            for part in ("cluster_state:ok", "cluster_slots_ok:16384", "cluster_size:3")
        )

    async def kill(self) -> None:
        for node in self.nodes:
            await node.kill()


REDIS = {
    "own_cluster",
    "own_redis",
    "redis_cluster",
    "redis_server",
    "start_redis",
    "start_sentinel",
}
"""The fixtures that start a redis-server."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in this folder that need Redis."""
    folder = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if REDIS & fixtures_of(item) and str(item.path).startswith(folder):
            item.add_marker(pytest.mark.redis)


def fixtures_of(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def redis_folder():
    folder = Path(tempfile.mkdtemp(prefix="eb-redis-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_server(redis_folder) -> AsyncIterator[RedisServer]:
    """One server for all tests of a worker, which part by `namespace`; do not stop it."""
    server = RedisServer(redis_folder / "shared")
    await server.start()
    yield server
    await server.kill()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_cluster(redis_folder) -> AsyncIterator[RedisCluster]:
    """One cluster for all tests of a worker; do not stop it."""
    cluster = RedisCluster(redis_folder / "cluster", timeout_ms=15_000)
    await cluster.start()
    yield cluster
    await cluster.kill()


@pytest_asyncio.fixture
async def own_cluster(tmp_path) -> AsyncIterator[RedisCluster]:
    """A cluster of this test alone."""
    cluster = RedisCluster(
        tmp_path / "cluster", "--appendonly", "yes", "--appendfsync", "always", timeout_ms=2000
    )
    await cluster.start()
    yield cluster
    await cluster.kill()


@pytest_asyncio.fixture
async def start_sentinel(tmp_path) -> AsyncIterator[Callable[[int], Awaitable[Sentinel]]]:
    """Sentinels of this test alone, for a master's port."""
    sentinels: list[Sentinel] = []

    async def start(master: int) -> Sentinel:
        sentinels.append(Sentinel(tmp_path / f"sentinel-{len(sentinels)}", master))
        await sentinels[-1].start()
        return sentinels[-1]

    yield start
    for sentinel in sentinels:
        await sentinel.kill()


@pytest.fixture
def subjects(namespace) -> Subjects:
    return Subjects(namespace)


@pytest.fixture
def redis_settings(redis_server, namespace) -> Settings:
    return Settings(driver="redis", redis_port=redis_server.port, namespace=namespace)


@pytest.fixture
def cluster_settings(redis_cluster, namespace) -> Settings:
    return Settings(
        driver="redis",
        redis_port=redis_cluster.nodes[0].port,
        redis_cluster=True,
        namespace=namespace,
    )


@pytest_asyncio.fixture
async def start_redis(tmp_path) -> AsyncIterator[Callable[..., Awaitable[RedisServer]]]:
    """Servers of this test alone, with options of their own."""
    servers: list[RedisServer] = []

    async def start(*options: str, **how: object) -> RedisServer:
        servers.append(RedisServer(tmp_path / f"redis-{len(servers)}", *options, **how))
        await servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        await server.kill()


@pytest_asyncio.fixture
async def group(start_redis, start_sentinel) -> Group:
    """A master, a replica and three sentinels of this test alone."""
    keep = ("--appendonly", "yes", "--repl-diskless-sync-delay", "0")
    master = await start_redis(*keep)
    replica = await start_redis(*keep, "--replicaof", "127.0.0.1", str(master.port))
    sentinels = [await start_sentinel(master.port) for _ in range(3)]
    group = Group(master, replica, sentinels)
    await until(group.is_in_step)
    return group


@pytest_asyncio.fixture
async def own_redis(tmp_path) -> AsyncIterator[RedisServer]:
    """A server of this test alone, with an append-only file, to be killed and started again."""
    server = RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always")
    await server.start()
    yield server
    await server.kill()


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Callable[[D], Awaitable[D]]]:
    """Opens drivers, and closes them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_driver(driver: D) -> D:
            stack.push_async_callback(driver.aclose)
            await driver.open()
            return driver

        yield open_driver


@pytest.fixture
def make_redis(redis_settings, opened) -> MakeRedis:
    """Opened drivers, for the shared server or for other settings, with some fields changed."""

    def make(settings: Settings = redis_settings, **changes: object) -> Awaitable[RedisDriver]:
        return opened(RedisDriver(msgspec.structs.replace(settings, **changes)))

    return make
