"""One Redis server: a connection for commands, one for messages, one that waits for replicas."""

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import Any, Final

from redis import exceptions

from eventbus.drivers.redis.errors import DRIVER, Refused, is_denied, mapped, to_error
from eventbus.drivers.redis.link import CommandLink, ListenLink
from eventbus.drivers.redis.script import PROBE, SCRIPTS, Script
from eventbus.drivers.redis.target import Address, Target
from eventbus.errors import ConnectionFailed
from eventbus.tasks import Tasks

__all__ = ["Acks", "Node", "OnNodeMessage", "write_refusal"]

OnNodeMessage = Callable[["Node", bytes | None, bytes, bytes], None]

MIN_VERSION: Final = (7, 0)
WAIT_MS: Final = 1000
CLOSE_S: Final = 2.0
_FLUSHES: Final = ("flushall", "flushdb", "swapdb")
"""Commands that delete keys although server and connection stay the same."""
_CALLS: Final = re.compile(r"calls=(\d+)")


class Node:
    """The connections to one server. If one of them is lost, the node is, and is replaced."""

    def __init__(
        self,
        target: Target,
        address: Address,
        on_message: OnNodeMessage,
        on_lost: Callable[["Node"], None],
        on_moved: Callable[[], None],
    ) -> None:
        """`on_lost` is called once, if the node is lost without being closed.

        For `on_moved` see ListenLink.
        """
        self.address = address
        self.run = ""
        """The id of the server's current run, which changes with each start."""
        self.durable = False
        """Whether a restart keeps all acknowledged messages: the server has an append-only file,
        and was not promoted from a replica, which may lack messages of its master."""
        self._target = target
        self._on_lost = on_lost
        self._lost = False
        self._flushes = 0
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
        """Whether all connections can be used."""
        return (
            self.commands.is_open
            and self.messages.is_open
            and (self._acks is None or self._acks.is_open)
        )

    @property
    def error(self) -> ConnectionFailed:
        """Why it was lost."""
        return (
            self.commands.error
            or self.messages.error
            or (self._acks and self._acks.error)
            or ConnectionFailed(f"not connected to Redis at {self.address}", driver=DRIVER)
        )

    async def open(self) -> None:
        """Connect, and check the server. Raises ConnectionFailed, Refused if no retry can help."""
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
        """Run a script. Raises ConnectionFailed, and error replies as RedisError."""
        try:
            return await self.commands.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:  # after SCRIPT FLUSH
            return await self.commands.call("EVAL", script.text, len(keys), *keys, *args)

    async def check_role(self) -> None:
        """Check that it is still a master. Raises ConnectionFailed, Refused if no retry can help.

        A server that becomes a replica continues to send messages, and may keep its connections.
        """
        with mapped(f"asking Redis at {self.address} what it is"):
            info = _parse(await self.commands.call("INFO", "replication"))
        self._require_master(info)

    async def was_flushed(self) -> bool:
        """Whether all keys were deleted since the connection was made.

        Redis does not notify clients of this; it only counts the commands. Raises ConnectionFailed.
        """
        return await self._count_flushes() > self._flushes

    async def _count_flushes(self) -> int:
        with mapped(f"asking Redis at {self.address} for its commands"):
            info = _parse(await self.commands.call("INFO", "commandstats"))
        counts = (_CALLS.match(info.get(f"cmdstat_{name}", "")) for name in _FLUSHES)
        return sum(int(found[1]) for found in counts if found)

    async def check(self) -> str:
        """Why the server stores nothing; empty if it does, or if that is not known."""
        try:
            if refusal := await write_refusal(self.commands):
                return refusal
            await self.wait_replicas()
        except ConnectionFailed as exc:
            return str(exc) if self.is_open else ""  # readiness reports a lost connection
        return ""

    async def wait_replicas(self) -> None:
        """Wait until replicas have everything written so far, if the settings require it.

        Raises ConnectionFailed if too few of them have it in time.
        """
        if self._acks is not None:
            await self._acks.wait()

    async def aclose(self) -> None:
        """Close all connections."""
        self._lost = True
        try:
            await self.commands.aclose()
        finally:  # also when the caller is cancelled
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
            for script in SCRIPTS:  # first: a server that is loading its data refuses scripts,
                await self.commands.call("SCRIPT", "LOAD", script.text)
            info = _parse(await self.commands.call("INFO"))  # and reports that it has no AOF
        version = info.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < MIN_VERSION:
            raise self._refused(f"is version {version}: 7.0 or later is needed")
        cluster = self._target.kind == "cluster"
        if cluster and info.get("cluster_enabled") != "1":
            raise self._refused("is not a node of a cluster: leave BROADCAST_REDIS_CLUSTER false")
        if not cluster and info.get("cluster_enabled") == "1":
            raise self._refused("is a node of a cluster: set BROADCAST_REDIS_CLUSTER=true")
        self._require_master(info)
        self._flushes = await self._count_flushes()
        self.run = info.get("run_id", secrets.token_hex(8))[:16]
        # A promoted replica records the offset up to which it followed its master.
        was_promoted = info.get("second_repl_offset", "-1") != "-1"
        self.durable = info.get("aof_enabled") == "1" and not was_promoted

    def _require_master(self, info: dict[str, str]) -> None:
        if info.get("role") != "master":
            message = f"Redis at {self.address} is a read-only replica"
            if self._target.kind:  # during a failover
                raise ConnectionFailed(message, driver=DRIVER)
            raise self._refused("is a replica: BROADCAST_REDIS_HOST must name its master")

    def _refused(self, what: str) -> Refused:
        return Refused(f"Redis at {self.address} {what}", driver=DRIVER)


async def write_refusal(commands: CommandLink) -> str:
    """Why a server accepts no writes; empty if it does. Raises ConnectionFailed."""
    try:
        await commands.call("EVAL", PROBE.text, 0)
    except exceptions.RedisError as exc:
        if not is_denied(exc):
            return str(to_error(exc, f"Redis at {commands.address} stores nothing"))
    return ""


class Acks:
    """Waits for the replicas of one server to have what was written, on a connection of its own.

    WAIT blocks the connection that sends it. It waits for everything that the server had written
    when it carried out the previous command of that connection, whoever wrote it: with a PING just
    before WAIT, that is everything up to now. One round serves all who wait for it.
    """

    def __init__(self, target: Target, address: Address, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called if the connection is lost without being closed."""
        self._replicas = target.wait_replicas
        self._address = address
        self._link = CommandLink(target.connection(address), str(address), on_lost)
        self._next: asyncio.Future[int] | None = None
        self._is_running = False
        self._tasks = Tasks()

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used."""
        return self._link.is_open

    @property
    def error(self) -> ConnectionFailed | None:
        """Why the connection was lost or closed."""
        return self._link.error

    async def open(self) -> None:
        """Connect. Raises ConnectionFailed."""
        await self._link.open()

    async def wait(self) -> None:
        """Wait until replicas have everything written before this call.

        Raises ConnectionFailed if too few of them have it within a second.
        """
        if self.error is not None:
            raise self.error
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if not self._is_running:
                self._is_running = True
                self._tasks.start(self._run(), f"waiting for replicas of Redis at {self._address}")
        with mapped(f"waiting for replicas of Redis at {self._address}"):
            count = await asyncio.shield(self._next)
        if count < self._replicas:
            raise ConnectionFailed(
                f"{count} replicas of Redis at {self._address} have the message, but "
                f"BROADCAST_REDIS_WAIT_REPLICAS requires {self._replicas}",
                driver=DRIVER,
            )

    async def _run(self) -> None:
        while (waiting := self._next) is not None:
            self._next = None
            try:
                self._link.call("PING").add_done_callback(_retrieve)
                waiting.set_result(await self._link.call("WAIT", self._replicas, WAIT_MS))
            except Exception as exc:  # noqa: BLE001 - the callers of wait() raise it
                waiting.set_exception(exc)
                waiting.exception()  # there may be no caller left
        self._is_running = False

    async def aclose(self) -> None:
        """Close the connection; calls of `wait` raise ConnectionFailed."""
        await self._link.aclose()  # which ends the round under way
        await self._tasks.join(CLOSE_S)
        await self._tasks.aclose()


def _retrieve(answer: "asyncio.Future[object]") -> None:
    """Ignore the answer to PING: an error of it is one of WAIT, too."""
    if not answer.cancelled():
        answer.exception()


def _parse(info: bytes) -> dict[str, str]:
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")
