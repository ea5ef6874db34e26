"""The masters of a target: which servers they are, and connections to all of them."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from redis import exceptions

from eventbus.attempts import Backoff
from eventbus.drivers.redis.errors import DRIVER, Refused
from eventbus.drivers.redis.layout import Layout, find_layout
from eventbus.drivers.redis.node import Node, OnNodeMessage
from eventbus.drivers.redis.script import Script
from eventbus.drivers.redis.sentinel import SentinelEvents
from eventbus.drivers.redis.target import Address, Target
from eventbus.errors import ConnectionFailed

__all__ = ["CHECK_S", "Nodes"]

_log = logging.getLogger(__name__)

CHECK_S: Final = 10.0
"""How often to check that servers are masters, and to ask the cluster or the sentinels for them."""
_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 1.0


class Nodes:
    """The masters of a target; `settle` brings the connections to them up to date."""

    def __init__(
        self, target: Target, on_message: OnNodeMessage, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called when `settle` is necessary."""
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
        self._events = SentinelEvents(target, self.recheck) if target.kind == "sentinel" else None

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

    def speaks_for(self, node: Node, channel: bytes, run: bytes) -> bool:
        """Whether to take a message of a channel from this node; others repeat it.

        `run` is the sending server's. If it is none of ours, the node of the channel counts.
        """
        runs = {other.run.encode() for other in self._nodes.values()}
        if run in runs:
            return node.run.encode() == run
        try:
            return self.layout.address_of(channel) == node.address
        except ConnectionFailed:
            return False

    async def wait(self, channel: bytes) -> Node:
        """Wait until the node of a channel is connected; the caller limits the time."""
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
        """Run a script on the node of the channel. Raises ConnectionFailed, RedisError."""
        node = self.of(channel)
        try:
            return await node.evaluate(script, keys, *arguments(node))
        except (exceptions.MovedError, exceptions.ReadOnlyError, exceptions.ClusterDownError):
            self.recheck()
            raise
        except exceptions.AskError as exc:  # the slot is moving to another node
            other = self._nodes.get(Address(*exc.node_addr))
            if other is None:
                self.recheck()
                raise
            other.commands.call("ASKING")
            return await other.evaluate(script, keys, *arguments(other))

    async def check(self) -> str:
        """Why one of the servers stores nothing; empty if all do, or if that is not known."""
        faults = await asyncio.gather(*(node.check() for node in self.all))
        return next(filter(None, faults), "")

    def recheck(self) -> None:
        """Ask for the layout again: it may have changed."""
        self._checked = 0.0
        self._on_change()

    async def open(self) -> None:
        """Connect to all. Raises ConnectionFailed in bounded time, at once if no retry can help."""
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
        """Ask for the layout if it is time, and connect to missing nodes; returns the failures."""
        failures: list[ConnectionFailed] = []
        loop = asyncio.get_running_loop()
        if is_due := loop.time() - self._checked > CHECK_S or not self.is_connected:
            self._checked = loop.time()  # a later recheck() asks again
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
        """Drop nodes that are lost or no longer masters; returns the failures of the check."""
        failures: list[ConnectionFailed] = []
        for address, node in list(self._nodes.items()):
            if node.is_open:
                if address in self.layout.addresses:
                    if not check:
                        continue
                    try:
                        await node.check_role()
                        if not await node.was_flushed():
                            continue
                        why = "has lost all its keys, by a command"
                    except ConnectionFailed as exc:
                        failures.append(exc)
                        why = "is no longer a master"
                else:
                    why = "is no longer a master"
                self.losses += 1
                _log.warning("Redis at %s %s", address, why)
            del self._nodes[address]
            await node.aclose()
        return failures

    async def aclose(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._events is not None:
            await self._events.aclose()
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.aclose()

    async def _connect(self, address: Address) -> None:
        node = Node(self.target, address, self._on_message, self._lose, self.recheck)
        await node.open()
        if self._closed:
            await node.aclose()
        else:
            self._nodes[address] = node

    def _lose(self, node: Node) -> None:
        self.losses += 1
        _log.warning("%s", node.error)
        self.recheck()
