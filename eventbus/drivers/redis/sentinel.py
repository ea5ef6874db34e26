"""Asks sentinels for the master, and listens to their failover events."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from eventbus.attempts import RateLimitedLog
from eventbus.drivers.redis.errors import DRIVER, mapped
from eventbus.drivers.redis.link import ListenLink, disconnect
from eventbus.drivers.redis.target import Address, Target
from eventbus.errors import ConnectionFailed, SubscribeDenied

__all__ = ["SentinelEvents", "find_master"]


_log = logging.getLogger(__name__)

OTHERS_S: Final = 0.3
"""How long to wait for the other sentinels after the first answer."""
OPEN_S: Final = 1.0
_EVENTS: Final = (b"+promoted-slave", b"+failover-state-reconf-slaves", b"+switch-master")
"""In the order of a failover (redis.io, "High availability with Redis Sentinel")."""


class _Answer(NamedTuple):
    epoch: int
    """The master's configuration epoch, which increases with each failover."""
    is_news: bool
    address: Address


async def find_master(target: Target, known: Iterable[Address]) -> Address:
    """Ask all sentinels for the master. Without an answer, raises the first one's ConnectionFailed.

    The highest configuration epoch wins: a sentinel that was cut off has an older one. During a
    failover, sentinels that name another master than the `known` one are ahead of the others.
    """
    seconds = max(0.2, target.timeout / len(target.addresses))
    tasks = [
        asyncio.create_task(_ask(target, address, seconds, set(known)))
        for address in target.addresses
    ]
    try:
        pending, limit = set(tasks), None
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            if any(task.exception() is None for task in done):
                limit = OTHERS_S
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    answers = [task.result() for task in tasks if not task.cancelled() and not task.exception()]
    if answers:
        return max(answers, key=lambda answer: answer[:2]).address
    failure = tasks[0].exception()
    assert failure is not None
    raise failure


async def _ask(target: Target, address: Address, seconds: float, known: set[Address]) -> _Answer:
    connection = target.connection(address, sentinel=True)
    try:
        with mapped(
            f"asking {address} who the master is",
            "check BROADCAST_REDIS_URL, or BROADCAST_REDIS_SENTINELS",
        ):
            async with asyncio.timeout(seconds):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
                reply = await connection.read_response()
                if not reply:
                    raise ConnectionFailed(
                        f"the sentinel at {address} does not know a master {target.service!r} "
                        "(check BROADCAST_REDIS_SENTINEL_SERVICE)",
                        driver=DRIVER,
                    )
                await connection.send_command("SENTINEL", "MASTER", target.service)
                fields = await connection.read_response()
    except TimeoutError:
        raise ConnectionFailed(f"{address} does not answer", driver=DRIVER) from None
    finally:
        await disconnect(connection)
    info = dict(zip(fields[::2], fields[1::2], strict=False))
    master = Address(reply[0].decode(), int(reply[1]))
    return _Answer(int(info.get(b"config-epoch", 0)), master not in known, master)


class SentinelEvents:
    """Listens to all sentinels for failovers: a demoted master accepts messages for seconds."""

    def __init__(self, target: Target, on_switch: Callable[[], None]) -> None:
        """`on_switch` is called when the master may have changed."""
        self._target = target
        self._on_switch = on_switch
        self._links: dict[Address, ListenLink] = {}
        self._denials = RateLimitedLog(_log)

    async def settle(self) -> None:
        """Connect to all sentinels; one that does not answer is tried again the next time."""
        links = self._links
        missing = [
            address
            for address in self._target.addresses
            if address not in links or not links[address].is_open
        ]
        await asyncio.gather(*map(self._listen, missing))

    async def aclose(self) -> None:
        """Close all connections."""
        links, self._links = self._links, {}
        for link in links.values():
            await link.aclose()

    async def _listen(self, address: Address) -> None:
        if (old := self._links.pop(address, None)) is not None:
            await old.aclose()
        link = ListenLink(
            self._target.connection(address, sentinel=True),
            f"the sentinel {address}",
            self._on_switch,  # events may have been missed
            self._receive,
            lambda: None,
        )
        try:
            async with asyncio.timeout(min(OPEN_S, self._target.timeout)):
                await link.open()
                await asyncio.gather(*(link.listen("SUBSCRIBE", event) for event in _EVENTS))
        except (TimeoutError, ConnectionFailed) as exc:
            log = self._denials.warning if isinstance(exc, SubscribeDenied) else _log.debug
            log("not listening to the sentinel %s: %s", address, exc)
            await link.aclose()
        except BaseException:
            await link.aclose()
            raise
        else:
            self._links[address] = link

    def _receive(self, _glob: bytes | None, _event: bytes, data: bytes) -> None:
        if self._target.service.encode() in data.split():
            self._on_switch()
