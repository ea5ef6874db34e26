"""One Redis server: a connection for commands and one for messages, with one life together."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Final

from redis import exceptions

from eventbus.drivers.redis_acks import Acks
from eventbus.drivers.redis_errors import DRIVER, Refused, mapped
from eventbus.drivers.redis_link import CommandLink, ListenLink
from eventbus.drivers.redis_script import SCRIPTS, Script
from eventbus.drivers.redis_target import Address, Target
from eventbus.errors import ConnectionFailed

__all__ = ["Node", "OnNodeMessage"]

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
