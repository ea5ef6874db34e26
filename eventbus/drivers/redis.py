"""The driver over Redis: live by pub/sub, history by a stream for each channel.

One server, a master known to sentinels, or a cluster (then by sharded pub/sub). The modules
redis_* beside are parts of this one; together they are the only ones that import redis-py.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Iterable
from typing import Final

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Delivery,
    Handler,
    Headers,
    Page,
    Published,
)
from eventbus.drivers.redis_errors import DRIVER, Refused, mapped
from eventbus.drivers.redis_node import Node
from eventbus.drivers.redis_nodes import CHECK_S, Nodes
from eventbus.drivers.redis_publish import Publisher
from eventbus.drivers.redis_store import Store
from eventbus.drivers.redis_subscription import Cursor, RedisSubscription
from eventbus.drivers.redis_target import Target
from eventbus.drivers.redis_wire import (
    REPEATED_PREFIX,
    decode,
    glob_of,
    validate_filter,
    validate_subject,
)
from eventbus.errors import ConnectionFailed

__all__ = ["RedisDriver"]

_log = logging.getLogger(__name__)

DRAIN_S: Final = 5.0
FILL_PAGE: Final = 500
_FILLS_AT_ONCE: Final = 64
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 5.0
_RETRY_S: Final = 0.05


class RedisDriver:
    """Durable messages through a stream for each channel, others straight to who listens.

    Offsets count each channel's own messages, and each channel has its own epoch, for the keys of
    different channels lie on different nodes of a cluster. A filter's subscription has no position.
    """

    name = DRIVER
    capabilities = frozenset({Capability.HISTORY})

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError, naming the variable, for settings that cannot be."""
        self.subjects = Subjects(settings.namespace)
        self._live = f"{settings.namespace}.live."
        self._timeout = settings.connect_timeout
        self._nodes = Nodes(Target.of(settings), self._on_message, self._unsettle)
        self._store = Store(self._nodes, settings)
        self._publisher = Publisher(self._nodes, self._store, settings.publish_timeout)
        self._exact = "SSUBSCRIBE" if self._nodes.target.kind == "cluster" else "SUBSCRIBE"
        self._interests: dict[tuple[str, bytes], list[RedisSubscription]] = {}
        self._doubting: dict[Cursor, None] = {}
        self._unsettled = asyncio.Event()
        self._state = "new"
        self._keeper: asyncio.Task[None] | None = None
        self._refreshed = 0.0
        self._gaps = 0

    @property
    def is_connected(self) -> bool:
        """Whether a message could be carried at this moment; on a cluster, to every channel."""
        return self._state == "open" and self._nodes.is_connected

    @property
    def counters(self) -> dict[str, int]:
        """Totals since the start: lost connections, retried publishes, gaps not filled."""
        return {
            "losses": self._nodes.losses,
            "publish_retries": self._publisher.retries,
            "gaps": self._gaps,
        }

    async def open(self) -> None:
        """Connect, and check the server. Raises ConnectionFailed naming the setting to look at."""
        if self._state != "new":
            raise ConnectionFailed(f"the redis driver is {self._state}, not new", driver=DRIVER)
        self._state = "opening"
        try:
            await self._nodes.open()
        except BaseException:
            self._state = "closed"
            await self._nodes.aclose()
            raise
        self._state = "open"
        self._refreshed = time.monotonic()
        self._keeper = asyncio.create_task(self._keep())

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Carry one message; see `Driver.publish`.

        An event's is retried for `publish_timeout` with one id, given or made; others are tried
        once. Raises InvalidChannel too.
        """
        self._require_open()
        validate_subject(subject)
        live = self.subjects.live_of(subject)
        if live is None:
            await self._publisher.send(subject, payload, headers)
            return None
        return Published(*await self._publisher.store(live, payload, headers))

    async def subscribe(self, subject: str, handler: Handler) -> RedisSubscription:
        """Listen; see `Driver.subscribe`. Raises InvalidPattern too."""
        self._require_open()
        pattern = validate_filter(subject)
        subscription = RedisSubscription(
            pattern, handler, self._live, doubt=self._doubt, leave=self._leave
        )
        if pattern.is_exact:
            subscription.command, subscription.name = self._exact, subject.encode()
        else:
            subscription.command, subscription.name = "PSUBSCRIBE", glob_of(pattern)
        key = subscription.command, subscription.name
        self._interests.setdefault(key, []).append(subscription)
        try:
            await self._begin(subscription, key)
        except BaseException:
            await subscription.aclose()
            raise
        return subscription

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """What is kept of a live subject; see `HistoryDriver.read`.

        `complete` is True when the messages prove by themselves that none is missing: each one
        names the one before it. Raises InvalidChannel too.
        """
        self._require_open()
        self.subjects.channel_of(subject)
        failure: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    await self._nodes.wait(subject.encode())
                    try:
                        return await self._read(subject, after, limit)
                    except Refused:
                        raise
                    except ConnectionFailed as exc:
                        failure = exc
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise ConnectionFailed(
                f"reading {subject} from Redis has not succeeded within {self._timeout:g} s: "
                f"{failure or 'not connected'}",
                driver=DRIVER,
            ) from failure

    async def aclose(self) -> None:
        """Let what is in flight finish, in bounded time, and let go. Closing twice is harmless."""
        if self._state == "open":
            self._state = "closing"
            if not await self._publisher.drain(DRAIN_S):
                _log.warning("publishes were under way for more than %g s at the close", DRAIN_S)
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.gather(self._keeper, return_exceptions=True)
            for subscription in itertools.chain.from_iterable(self._interests.values()):
                subscription.detach()
            self._interests.clear()
            self._doubting.clear()
            await self._nodes.aclose()
        self._state = "closed"

    def _require_open(self) -> None:
        if self._state != "open":
            raise ConnectionFailed(f"the redis driver is not open ({self._state})", driver=DRIVER)

    def _unsettle(self) -> None:
        self._unsettled.set()

    def _doubt(self, cursor: Cursor) -> None:
        self._doubting[cursor] = None
        self._unsettled.set()

    def _leave(self, subscription: RedisSubscription) -> None:
        key = subscription.command, subscription.name
        listeners = self._interests.get(key, [])
        if subscription in listeners:
            listeners.remove(subscription)
            if not listeners:
                del self._interests[key]
                for node in self._nodes.all:
                    node.messages.unlisten(*key)

    def _on_message(self, node: Node, glob: bytes | None, channel: bytes, data: bytes) -> None:
        key = (self._exact, channel) if glob is None else ("PSUBSCRIBE", glob)
        listeners = self._interests.get(key)
        if not listeners:
            return
        if glob is not None and self._nodes.layout.slots is not None:
            run = b""
            if data.startswith(REPEATED_PREFIX):
                run, _, data = data[len(REPEATED_PREFIX) :].partition(b" ")
            if not self._nodes.tells(node, channel, run):
                return
        subject = channel.decode(errors="replace")
        delivery = decode(subject, data)
        if delivery.position is not None and not subject.startswith(self._live):
            delivery = Delivery(subject, delivery.payload, delivery.headers)
        for subscription in tuple(listeners):
            subscription.receive(delivery)

    async def _begin(self, subscription: RedisSubscription, key: tuple[str, bytes]) -> None:
        """Have the server confirm the subscription; then take the position where it begins."""
        failure: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        await self._place([key])
                        if (cursor := subscription.cursor) is not None:
                            page = await self._read(subscription.subject, None, 0)
                            subscription.position = page.position
                            cursor.epoch = page.position.epoch
                            if cursor in self._doubting:  # placed anew meanwhile: read first
                                cursor.last = page.position.offset
                                self._unsettled.set()
                            else:
                                cursor.release(page.position.offset)
                        return
                    except Refused:
                        raise
                    except ConnectionFailed as exc:
                        failure = exc
                        self._unsettled.set()
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise ConnectionFailed(
                f"listening to {subscription.subject} has not succeeded within "
                f"{self._timeout:g} s: {failure or 'no answer'}",
                driver=DRIVER,
            ) from failure

    async def _place(self, keys: Iterable[tuple[str, bytes]], *, anew: bool = False) -> None:
        """Have every subscription where it belongs. Raises the first ConnectionFailed of several.

        With `anew`, what is subscribed at a node for the first time is doubted.
        """
        confirmations: list[asyncio.Future[None]] = []
        failure: ConnectionFailed | None = None
        for command, name in keys:
            try:
                nodes = self._nodes.all if command == "PSUBSCRIBE" else [self._nodes.of(name)]
                for node in nodes:
                    if anew and not node.messages.listens(command, name):
                        for subscription in self._interests[command, name]:
                            subscription.hold()
                    confirmations.append(node.messages.listen(command, name))
            except ConnectionFailed as exc:
                failure = failure or exc
        if confirmations:
            await asyncio.wait(confirmations)
        for confirmation in confirmations:
            if isinstance(error := confirmation.exception(), ConnectionFailed):
                failure = failure or error
        if failure is None and not self._nodes.is_connected and not confirmations:
            failure = ConnectionFailed("not connected to Redis", driver=DRIVER)
        if failure is not None:
            raise failure

    async def _read(self, subject: str, after: int | None, limit: int) -> Page:
        with mapped(f"reading {subject} from Redis"):
            return await self._store.read(subject, after, limit)

    async def _keep(self) -> None:
        """For as long as the driver is open: reconnect, subscribe again, read what was missed."""
        pause, told = _FIRST_PAUSE_S, ""
        while True:
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._unsettled.wait()
            except TimeoutError:
                pass  # a look at the layout is due
            self._unsettled.clear()
            try:
                await self._settle()
            except ConnectionFailed as exc:
                if str(exc) != told:
                    told = str(exc)
                    _log.warning("%s; trying again", told)
                self._unsettled.set()
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
                pause = min(2 * pause, _MAX_PAUSE_S)
            else:
                if told:
                    _log.info("connected to Redis again")
                pause, told = _FIRST_PAUSE_S, ""

    async def _settle(self) -> None:
        failures = await self._nodes.settle()
        try:
            await self._place(list(self._interests), anew=True)
        except ConnectionFailed as exc:
            failures.append(exc)
        if time.monotonic() - self._refreshed > self._store.meta_seconds / 4:
            await self._refresh()
        failures += await self._fill_doubting()
        if failures:
            raise failures[0]

    async def _fill_doubting(self) -> list[ConnectionFailed]:
        """Read for all cursors that are in doubt and have begun."""
        failures: list[ConnectionFailed] = []
        cursors = [cursor for cursor in self._doubting if cursor.epoch]
        for start in range(0, len(cursors), _FILLS_AT_ONCE):
            some = cursors[start : start + _FILLS_AT_ONCE]
            results = await asyncio.gather(*map(self._fill, some), return_exceptions=True)
            for result in results:
                if isinstance(result, ConnectionFailed):
                    failures.append(result)
                elif isinstance(result, BaseException):
                    raise result
        return failures

    async def _fill(self, cursor: Cursor) -> None:
        while True:
            self._doubting.pop(cursor, None)
            try:
                page = await self._read(cursor.subject, cursor.last, FILL_PAGE)
            except BaseException:
                self._doubting[cursor] = None
                raise
            if page.position.epoch != cursor.epoch:
                self._gap(cursor, "Redis has lost its messages, and begins anew")
                cursor.begin_anew(page.position.epoch)
                continue
            if not page.complete:
                self._gap(cursor, "some messages were evicted before they could be read")
            cursor.fill(page)
            if len(page.messages) < FILL_PAGE and cursor not in self._doubting:
                cursor.release(page.position.offset)
                return

    def _gap(self, cursor: Cursor, why: str) -> None:
        self._gaps += 1
        _log.warning("%s was missed in part: %s", cursor.subject, why)

    async def _refresh(self) -> None:
        """Keep the epochs of the channels that are listened to."""
        self._refreshed = time.monotonic()
        for listeners in list(self._interests.values()):
            for cursor in [c for s in listeners if (c := s.cursor) is not None][:1]:
                try:
                    await self._read(cursor.subject, None, 0)
                except ConnectionFailed as exc:
                    _log.warning("%s", exc)
