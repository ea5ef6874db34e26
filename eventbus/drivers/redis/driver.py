"""The Redis driver: live messages by pub/sub, history in one stream per channel.

It works with one server, with a master that sentinels watch, and with a cluster (then by sharded
pub/sub). Only the modules of this package import redis-py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from eventbus.attempts import Backoff, OutageLog
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Handler,
    Headers,
    Page,
    Published,
)
from eventbus.drivers.redis.errors import DRIVER, Refused
from eventbus.drivers.redis.foreign import Foreign
from eventbus.drivers.redis.listeners import RETRY_REFUSED_S, Listeners
from eventbus.drivers.redis.nodes import CHECK_S, Nodes
from eventbus.drivers.redis.publish import Publisher
from eventbus.drivers.redis.state import LIFE_S, RedisState
from eventbus.drivers.redis.store import Store
from eventbus.drivers.redis.subscription import RedisSubscription
from eventbus.drivers.redis.target import Target
from eventbus.drivers.redis.wire import validate_filter, validate_subject
from eventbus.errors import ConnectionFailed, SubscribeDenied
from eventbus.tasks import Shutdown, Tasks
from eventbus.user_code import is_cancelled

__all__ = ["RedisDriver"]


T = TypeVar("T")
_log = logging.getLogger(__name__)

DRAIN_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 5.0
_RETRY_S: Final = 0.05
_LOG_AGAIN_S: Final = 10.0


class RedisDriver:
    """Publishes durable messages through one stream per channel, others only to subscribers.

    Each channel has its own offsets and its own epoch, because the keys of different channels are
    on different nodes of a cluster. The subscription to a filter has no position.
    """

    name = DRIVER
    capabilities = frozenset({Capability.HISTORY, Capability.PRESENCE, Capability.MAINTENANCE})

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError, naming the variable, for bad settings."""
        self.subjects = Subjects(settings.namespace)
        self._live = f"{settings.namespace}.live."
        self._timeout = settings.connect_timeout
        self._unsettled = asyncio.Event()
        self._foreign = Foreign()
        self._listeners = Listeners(self._live, self._unsettled.set, self._foreign)
        self._nodes = Nodes(Target.of(settings), self._listeners.on_message, self._unsettled.set)
        self._store = store = Store(self._nodes, settings, self._foreign)
        self._listeners.attach(self._nodes, store)
        self._publisher = Publisher(self._nodes, store, settings.publish_timeout)
        self._entries, self._durable = (
            RedisState(
                self._nodes,
                self._publisher,
                f"{settings.namespace}.{purpose}",
                subscribe=self.subscribe,
                attempt=self._try,
                foreign=self._foreign,
                life_s=life_s,
            )
            for purpose, life_s in (("state", LIFE_S), ("durable", None))
        )
        self._refusals = 0
        self._fault = ""
        self._stores = OutageLog(_log, "Redis stores messages again")
        self._state = "new"
        self._tasks = Tasks()
        self._shutdown = Shutdown()

    @property
    def is_connected(self) -> bool:
        """Whether the driver could publish now; on a cluster, to every channel."""
        return self._state == "open" and self._nodes.is_connected

    @property
    def counters(self) -> dict[str, int]:
        """Totals since the start, by name."""
        return {
            "losses": self._nodes.losses,
            "refusals": self._refusals,
            "publish_retries": self._publisher.retries,
            "gaps": self._listeners.gaps,
            "foreign": self._foreign.count,
        }

    @property
    def state(self) -> RedisState:
        """Shared entries; see `StateDriver.state`."""
        self._require_open()
        return self._entries

    @property
    def durable_state(self) -> RedisState:
        """Shared entries that outlive a restart; see `StateDriver.durable_state`."""
        self._require_open()
        return self._durable

    async def open(self) -> None:
        """Connect, and check the server. Raises ConnectionFailed naming the setting to check."""
        if self._state != "new":
            raise ConnectionFailed(f"the redis driver is {self._state}, not new", driver=DRIVER)
        self._state = "opening"
        try:
            async with self._shutdown.opening(
                lambda: ConnectionFailed(
                    "the redis driver was closed while it opened", driver=DRIVER
                )
            ):
                await self._nodes.open()
                self._state = "open"
        except BaseException:
            await self.aclose()
            raise
        self._tasks.keep(self._keep, "keeping the connections to Redis")

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Publish one message; see `Driver.publish`.

        A message on an event subject is retried for `publish_timeout` with the same id; others are
        sent once. Also raises InvalidChannel.
        """
        self._require_open()
        validate_subject(subject)
        live = self.subjects.live_of(subject)
        if live is None:
            await self._publisher.send(subject, payload, headers)
            return None
        return Published(*await self._publisher.store(live, payload, headers))

    async def subscribe(self, subject: str, handler: Handler) -> RedisSubscription:
        """Subscribe; see `Driver.subscribe`. Also raises InvalidPattern.

        Raises SubscribeDenied at once when the Redis user has no permission for it.
        """
        self._require_open()
        subscription = RedisSubscription(
            validate_filter(subject),
            handler,
            self._live,
            exact=self._listeners.exact,
            recheck=self._listeners.recheck,
            leave=self._listeners.remove,
        )
        self._listeners.add(subscription)
        try:
            await self._try(
                f"subscribing to {subject}", lambda: self._listeners.begin(subscription)
            )
        except BaseException:
            await subscription.aclose()
            raise
        return subscription

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """The stored messages of a live subject; see `HistoryDriver.read`.

        `complete` is True if the messages prove that none is missing: each names the one before
        it. Also raises InvalidChannel.
        """
        self._require_open()
        self.subjects.channel_of(subject)
        return await self._try(
            f"reading {subject}", lambda: self._listeners.read(subject, after, limit)
        )

    async def stored(self, pattern: str, limit: int) -> dict[str, int]:
        """The number of stored messages per channel; see `MaintenanceDriver.stored`.

        It scans every key.
        """
        self._require_open()
        found = validate_filter(pattern)
        return await self._try("looking for streams", lambda: self._store.kept(found, limit))

    async def purge(self, subject: str) -> int:
        """Delete the stored messages of a live subject; see `MaintenanceDriver.purge`."""
        self._require_open()
        self.subjects.channel_of(subject)
        return await self._try(f"purging {subject}", lambda: self._store.purge(subject))

    async def check(self) -> str:
        """Why messages cannot be stored or do not arrive; see `CheckedDriver.check`.

        The check writes nothing: it runs an empty script, which Redis refuses as it refuses writes.
        """
        self._require_open()
        fault = await self._nodes.check()
        if fault and not self._fault:
            self._stores.failed("messages cannot be stored: %s", fault, level=logging.ERROR)
        elif self._fault and not fault:
            self._stores.ended()
        self._fault = fault
        return fault or self._listeners.fault

    async def aclose(self) -> None:
        """Wait for what is in flight, in bounded time, and close.

        Closing twice is harmless; all callers wait for the same close.
        """
        await self._shutdown.run(self._close)

    async def _close(self) -> None:
        was_open, self._state = self._state == "open", "closing"
        async with contextlib.AsyncExitStack() as parts:  # from the last one to the first
            parts.callback(self._end)
            parts.push_async_callback(self._nodes.aclose)
            parts.callback(self._listeners.clear)
            for part in (self._durable, self._entries, self._tasks):
                parts.push_async_callback(part.aclose)
            if was_open and not await self._publisher.drain(DRAIN_S):
                _log.warning("publishes were in flight for more than %g s at the close", DRAIN_S)

    def _end(self) -> None:
        self._state = "closed"

    def _require_open(self) -> None:
        if self._state != "open":
            raise ConnectionFailed(f"the redis driver is not open ({self._state})", driver=DRIVER)

    async def _try(self, doing: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, and retry while the connection is lost, for up to `connect_timeout`."""
        failure: ConnectionFailed | None = None
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await work()
                    except (Refused, SubscribeDenied):
                        raise
                    except ConnectionFailed as exc:
                        failure = exc
                    self._unsettled.set()
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise ConnectionFailed(
                f"{doing} on Redis has not succeeded within {self._timeout:g} s: "
                f"{failure or 'no answer'}",
                driver=DRIVER,
            ) from failure

    async def _keep(self) -> None:
        """Reconnect, subscribe again and read missed messages, until the driver closes."""
        backoff, logged, at = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S), "", 0.0
        outage = OutageLog(_log, "connected to Redis again")
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(RETRY_REFUSED_S if self._listeners.fault else CHECK_S):
                    await self._unsettled.wait()
            except TimeoutError:
                pass  # time to check the servers again, or to retry what they refuse
            self._unsettled.clear()
            if (failure := await self._settle()) is None:
                outage.ended()
                backoff.reset()
                logged = ""
                continue
            is_refused = isinstance(failure, Refused)
            self._refusals += is_refused
            if str(failure) != logged or (is_refused and loop.time() - at >= _LOG_AGAIN_S):
                logged, at = str(failure), loop.time()
                level = logging.ERROR if is_refused else logging.WARNING
                outage.begin()
                # An unexpected error is a bug in this program: log its traceback.
                cause = None if isinstance(failure, ConnectionFailed) else failure
                _log.log(level, "%s; trying again", logged or repr(failure), exc_info=cause)
            self._unsettled.set()
            await asyncio.sleep(backoff.next())

    async def _settle(self) -> BaseException | None:
        """Bring connections and subscriptions up to date; returns the first failure."""
        try:
            failures = await self._nodes.settle()
            failures += await self._listeners.settle()
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            return exc  # leaked by something that was awaited
        except Exception as exc:  # noqa: BLE001 - whatever it is, the driver must recover
            return exc
        return failures[0] if failures else None
