"""Waiting until replicas have what was written, on a connection of its own.

WAIT blocks the connection that sends it. It waits for all that the server had written when that
connection's last command before it was carried out, whoever wrote it: a PING just before WAIT makes
that everything up to now. One round serves all who wait for it.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import (
    Any,
    Final,
)

from redis import exceptions

from eventbus.backoff import Backoff
from eventbus.drivers.redis.errors import (
    DRIVER,
    Refused,
    mapped,
)
from eventbus.drivers.redis.layout import (
    Layout,
    find_layout,
)
from eventbus.drivers.redis.link import (
    CommandLink,
    ListenLink,
)
from eventbus.drivers.redis.script import (
    SCRIPTS,
    Script,
)
from eventbus.drivers.redis.sentinel import SentinelEvents
from eventbus.drivers.redis.target import (
    Address,
    Target,
)
from eventbus.errors import ConnectionFailed

__all__ = ["Acks", "Node", "Nodes", "OnNodeMessage"]


WAIT_MS: Final = 1000


class Acks:
    """The acknowledgements of one server's replicas."""

    def __init__(self, target: Target, address: Address, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called when the connection ends by itself."""
        self._replicas = target.wait_replicas
        self._address = address
        self._link = CommandLink(target.connection(address), str(address), on_lost)
        self._next: asyncio.Future[int] | None = None
        self._rounds: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection serves."""
        return self._link.is_open

    @property
    def error(self) -> ConnectionFailed | None:
        """Why the connection is lost, once it is."""
        return self._link.error

    async def open(self) -> None:
        """Connect. Raises ConnectionFailed."""
        await self._link.open()

    async def wait(self) -> None:
        """Wait for what was written before this call.

        Raises ConnectionFailed where fewer replicas than asked for have it within a second.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if self._rounds is None or self._rounds.done():
                self._rounds = asyncio.create_task(self._run())
        with mapped(f"waiting for replicas of Redis at {self._address}"):
            count = await asyncio.shield(self._next)
        if count < self._replicas:
            raise ConnectionFailed(
                f"{count} replicas of Redis at {self._address} have the message, and "
                f"BROADCAST_REDIS_WAIT_REPLICAS asks for {self._replicas}",
                driver=DRIVER,
            )

    async def _run(self) -> None:
        while self._next is not None:
            waiting, self._next = self._next, None
            try:
                self._link.call("PING").add_done_callback(_retrieve)
                waiting.set_result(await self._link.call("WAIT", self._replicas, WAIT_MS))
            except Exception as exc:  # noqa: BLE001 - it is raised by those who wait
                waiting.set_exception(exc)
                waiting.exception()  # they may have gone

    async def aclose(self) -> None:
        """Let go; those who wait get ConnectionFailed."""
        await self._link.aclose()
        if self._rounds is not None:
            await asyncio.gather(self._rounds, return_exceptions=True)


def _retrieve(answer: "asyncio.Future[object]") -> None:
    """The answer to PING is of no interest, its error is WAIT's as well."""
    if not answer.cancelled():
        answer.exception()


OnNodeMessage = Callable[["Node", bytes | None, bytes, bytes], None]

MIN_VERSION: Final = (7, 0)


class Node:
    """When one of the two connections is lost, the node is: another one takes its place."""

    def __init__(
        self,
        target: Target,
        address: Address,
        on_message: OnNodeMessage,
        on_lost: Callable[["Node"], None],
        on_moved: Callable[[], None],
    ) -> None:
        """`on_lost` is called once, when the node is lost by itself; `on_moved`: see ListenLink."""
        self.address = address
        self.run = ""
        """The server's run: another after each of its starts."""
        self.durable = False
        """Whether a run of it has all that the run before had acknowledged: it keeps an append-only
        file, and was not promoted from a replica, which may lack what its master had."""
        self._target = target
        self._on_lost = on_lost
        self._lost = False
        self.commands = CommandLink(target.connection(address), str(address), self._lose)
        self.messages = ListenLink(
            target.connection(address),
            str(address),
            self._lose,
            lambda glob, channel, data: on_message(self, glob, channel, data),
            on_moved,
        )
        self._acks = Acks(target, address, self._lose) if target.wait_replicas else None

    @property
    def is_open(self) -> bool:
        """Whether all connections serve."""
        return (
            self.commands.is_open
            and self.messages.is_open
            and (self._acks is None or self._acks.is_open)
        )

    @property
    def error(self) -> ConnectionFailed:
        """Why it is lost."""
        return (
            self.commands.error
            or self.messages.error
            or (self._acks and self._acks.error)
            or ConnectionFailed(f"not connected to Redis at {self.address}", driver=DRIVER)
        )

    async def open(self) -> None:
        """Connect, and check what server it is. Raises ConnectionFailed, Refused for what lasts."""
        try:
            async with asyncio.timeout(self._target.timeout):
                await self.commands.open()
                await self._check()
                await self.messages.open()
                if self._acks is not None:
                    await self._acks.open()
        except TimeoutError:
            await self.aclose()
            raise ConnectionFailed(
                f"Redis at {self.address} does not answer (check BROADCAST_REDIS_HOST and "
                "BROADCAST_REDIS_PORT; and BROADCAST_REDIS_TLS, which is "
                f"{'false' if self._target.tls is None else 'true'})",
                driver=DRIVER,
            ) from None
        except BaseException:
            await self.aclose()
            raise

    async def evaluate(self, script: Script, keys: list[bytes], *args: bytes | str | int) -> Any:
        """Run a script. Raises ConnectionFailed, and the server's own answer as RedisError."""
        try:
            return await self.commands.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:  # after SCRIPT FLUSH
            return await self.commands.call("EVAL", script.text, len(keys), *keys, *args)

    async def check_role(self) -> None:
        """Find out whether it is a master still. Raises ConnectionFailed, Refused for what lasts.

        A server that has become a replica goes on sending messages, and may keep its connections.
        """
        with mapped(f"asking Redis at {self.address} what it is"):
            info = _parse(await self.commands.call("INFO", "replication"))
        self._require_master(info)

    async def wait_replicas(self) -> None:
        """Wait until replicas have what was written up to now, where a setting asks for that.

        Raises ConnectionFailed where fewer than asked for have it in time.
        """
        if self._acks is not None:
            await self._acks.wait()

    async def aclose(self) -> None:
        """Let go of all connections."""
        self._lost = True
        try:
            await self.commands.aclose()
        finally:  # also when the one who closes is cancelled
            try:
                await self.messages.aclose()
            finally:
                if self._acks is not None:
                    await self._acks.aclose()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._on_lost(self)

    async def _check(self) -> None:
        with mapped(f"asking Redis at {self.address} what it is"):
            for script in SCRIPTS:  # first, for while it reads its data a server takes none,
                await self.commands.call("SCRIPT", "LOAD", script.text)
            info = _parse(await self.commands.call("INFO"))  # and says that it has no AOF
        version = info.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < MIN_VERSION:
            raise self._refused(f"is version {version}: 7.0 or later is needed")
        cluster = self._target.kind == "cluster"
        if cluster and info.get("cluster_enabled") != "1":
            raise self._refused("is no cluster's node: leave BROADCAST_REDIS_CLUSTER false")
        if not cluster and info.get("cluster_enabled") == "1":
            raise self._refused("is a cluster's node: set BROADCAST_REDIS_CLUSTER=true")
        self._require_master(info)
        self.run = info.get("run_id", secrets.token_hex(8))[:16]
        # A promoted replica knows up to which offset it had followed its master.
        was_promoted = info.get("second_repl_offset", "-1") != "-1"
        self.durable = info.get("aof_enabled") == "1" and not was_promoted

    def _require_master(self, info: dict[str, str]) -> None:
        if info.get("role") != "master":
            message = f"Redis at {self.address} is a replica, which cannot be written to"
            if self._target.kind:  # during a failover
                raise ConnectionFailed(message, driver=DRIVER)
            raise self._refused("is a replica: BROADCAST_REDIS_HOST must name its master")

    def _refused(self, what: str) -> Refused:
        return Refused(f"Redis at {self.address} {what}", driver=DRIVER)


def _parse(info: bytes) -> dict[str, str]:
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")


_log = logging.getLogger(__name__)

CHECK_S: Final = 10.0
"""How often servers are asked again whether they are masters; and a cluster's nodes, or sentinels,
who the masters are."""
_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 1.0


class Nodes:
    """The masters of a target; `settle` makes them what they should be, as far as that goes."""

    def __init__(
        self, target: Target, on_message: OnNodeMessage, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called when there is reason to settle."""
        self.target = target
        self.layout = Layout(())
        self.losses = 0
        """How many connected servers were lost."""
        self._on_message = on_message
        self._on_change = on_change
        self._nodes: dict[Address, Node] = {}
        self._checked = 0.0
        self._news = asyncio.Event()
        self._closed = False
        self._events = SentinelEvents(target, self.doubt) if target.kind == "sentinel" else None

    @property
    def is_connected(self) -> bool:
        """Whether every master is connected."""
        addresses = self.layout.addresses
        return bool(addresses) and all(
            (node := self._nodes.get(address)) is not None and node.is_open for address in addresses
        )

    @property
    def all(self) -> list[Node]:
        """The nodes that are connected."""
        return [node for node in self._nodes.values() if node.is_open]

    def of(self, channel: bytes) -> Node:
        """The connected node of a channel. Raises ConnectionFailed."""
        if not self.layout.addresses:
            raise ConnectionFailed("not connected to Redis", driver=DRIVER)
        address = self.layout.address_of(channel)
        node = self._nodes.get(address)
        if node is None:
            raise ConnectionFailed(f"not connected to Redis at {address}", driver=DRIVER)
        if not node.is_open:
            raise ConnectionFailed(str(node.error), driver=DRIVER)
        return node

    def tells(self, node: Node, channel: bytes, run: bytes) -> bool:
        """Whether this node is the one to hear on a channel: the others repeat what it says.

        It is the one whose `run` it is; for what anybody else has sent, the one of the channel.
        """
        runs = {other.run.encode() for other in self._nodes.values()}
        if run in runs:
            return node.run.encode() == run
        try:
            return self.layout.address_of(channel) == node.address
        except ConnectionFailed:
            return False

    async def wait(self, channel: bytes) -> Node:
        """The node of a channel as soon as it is connected; the caller bounds the time."""
        while True:
            try:
                return self.of(channel)
            except ConnectionFailed:
                news = self._news
                self._on_change()
                await news.wait()

    async def evaluate(
        self,
        channel: bytes,
        script: Script,
        keys: list[bytes],
        arguments: Callable[[Node], tuple[bytes | str | int, ...]],
    ) -> Any:
        """Run a script at the node that has the channel. Raises ConnectionFailed, RedisError."""
        node = self.of(channel)
        try:
            return await node.evaluate(script, keys, *arguments(node))
        except (exceptions.MovedError, exceptions.ReadOnlyError, exceptions.ClusterDownError):
            self.doubt()
            raise
        except exceptions.AskError as exc:  # the slot is on its way to another node
            other = self._nodes.get(Address(*exc.node_addr))
            if other is None:
                self.doubt()
                raise
            other.commands.call("ASKING")
            return await other.evaluate(script, keys, *arguments(other))

    def doubt(self) -> None:
        """The layout may be another by now."""
        self._checked = 0.0
        self._on_change()

    async def open(self) -> None:
        """Connect to all. Raises ConnectionFailed in bounded time; at once for what will last."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.target.timeout
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while True:
            failures = await self.settle()
            if not failures:
                return
            lasting = next((f for f in failures if isinstance(f, Refused)), None)
            pause = backoff.next()
            if lasting is not None or loop.time() + pause >= deadline:
                raise lasting or failures[0]
            await asyncio.sleep(pause)

    async def settle(self) -> list[ConnectionFailed]:
        """Ask for the layout where that is due, and connect what is missing; gives what failed."""
        failures: list[ConnectionFailed] = []
        loop = asyncio.get_running_loop()
        if is_due := loop.time() - self._checked > CHECK_S or not self.is_connected:
            self._checked = loop.time()  # whoever doubts it from here on has it asked again
            if self._events is not None:
                await self._events.settle()
            try:
                self.layout = await find_layout(self.target, tuple(self._nodes))
            except ConnectionFailed as exc:
                failures.append(exc)
        failures += await self._drop(check=is_due)
        wanted = self.layout.addresses
        missing = [address for address in wanted if address not in self._nodes]
        results = await asyncio.gather(*map(self._connect, missing), return_exceptions=True)
        for result in results:
            if isinstance(result, ConnectionFailed):
                failures.append(result)
            elif isinstance(result, BaseException):
                raise result
        if failures:
            self._checked = 0.0
        self._news.set()
        self._news = asyncio.Event()
        return failures

    async def _drop(self, *, check: bool) -> list[ConnectionFailed]:
        """Let go of nodes that are lost, or are no masters of ours; gives what `check` found."""
        failures: list[ConnectionFailed] = []
        for address, node in list(self._nodes.items()):
            if node.is_open:
                if address in self.layout.addresses:
                    if not check:
                        continue
                    try:
                        await node.check_role()
                        continue
                    except ConnectionFailed as exc:
                        failures.append(exc)
                self.losses += 1
                _log.warning("Redis at %s is not a master any more", address)
            del self._nodes[address]
            await node.aclose()
        return failures

    async def aclose(self) -> None:
        """Let go of all."""
        self._closed = True
        if self._events is not None:
            await self._events.aclose()
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.aclose()

    async def _connect(self, address: Address) -> None:
        node = Node(self.target, address, self._on_message, self._lose, self.doubt)
        await node.open()
        if self._closed:
            await node.aclose()
        else:
            self._nodes[address] = node

    def _lose(self, node: Node) -> None:
        self.losses += 1
        _log.warning("%s", node.error)
        self.doubt()
