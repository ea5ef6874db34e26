"""A node's part in lifecycle events: says what its clients hear, and leads when it is its turn."""

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Sequence,
)
from typing import (
    Any,
    Final,
    cast,
)

import msgspec

from eventbus.bus import EventBus
from eventbus.drivers.base import (
    Capability,
    Subscription,
)
from eventbus.drivers.queues import QueueStore
from eventbus.drivers.state import StateDriver
from eventbus.errors import (
    ConfigError,
    EventBusError,
)
from eventbus.queue import Worker
from eventbus.tasks import Tasks
from eventbus_edge.cluster.cluster import Cluster
from eventbus_edge.cluster.gather import Question
from eventbus_edge.config import EdgeSettings
from eventbus_edge.lifecycle.holdings import (
    LEADER,
    SIGNS,
)
from eventbus_edge.lifecycle.interest import OwnChannels
from eventbus_edge.lifecycle.leader import (
    Leader,
    LeaderOptions,
)
from eventbus_edge.lifecycle.webhooks import (
    QUEUE,
    Outlet,
    Poster,
    webhook_queue,
)
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.presence.nodes import nobody_gone
from eventbus_edge.presence.watch import InStep

__all__ = ["Lifecycle"]


_log = logging.getLogger(__name__)

_TICK_S: Final = 0.1
_CLOSE_S: Final = 5.0
_GAUGE_S: Final = 5.0
_FIRST_S: Final = 5.0
"""How long, at least, the node that led before a loss has to claim the lease before others do."""


class _Heard(msgspec.Struct, frozen=True):
    channels: list[str]


_HEARD: Final = Question("heard", _Heard, _Heard)


class Lifecycle:
    """Nothing at all where no lifecycle events are asked for."""

    def __init__(
        self,
        bus: EventBus,
        cluster: Cluster,
        settings: EdgeSettings,
        metrics: Metrics,
        *,
        drop_gone: Callable[[], Awaitable[object]] = nobody_gone,
    ) -> None:
        """For `drop_gone` see OwnChannels.

        Raises ConfigError for settings that cannot be, and for a driver that cannot do it.
        """
        settings.check_webhook()
        self.is_on = bool(settings.lifecycle_events)
        self._bus = bus
        self._cluster = cluster
        self._settings = settings
        self._metrics = metrics
        self._node = cluster.node_id
        self._ttl_s = settings.presence_ttl
        if self.is_on and Capability.PRESENCE not in bus.driver.capabilities:
            raise ConfigError(
                f"lifecycle events (BROADCAST_LIFECYCLE, BROADCAST_WEBHOOK_URL) need a driver that "
                f"keeps the nodes' state, and {bus.driver.name} keeps none; allowed: nats, redis, "
                "memory",
                variable="BROADCAST_LIFECYCLE",
            )
        self._driver = cast(StateDriver, bus.driver)
        self._own = OwnChannels(
            self._driver,
            self._node,
            ttl_s=self._ttl_s,
            linger_s=settings.lifecycle_linger,
            drop_gone=drop_gone,
        )
        self._leader: Leader | None = None
        self._outlet: Outlet | None = None
        self._store: QueueStore | None = None
        self._poster: Poster | None = None
        self._worker: Worker | None = None
        self._lease_until = float("-inf")
        self._hold_until = float("-inf")
        """Before this time, only who leads already claims to."""
        self._repaired = 0
        """The losses of the bus's state after which this node has put back what it holds."""
        self._claim_at = 0.0
        self._claiming = asyncio.Lock()
        self._look_at = 0.0
        self._strange_holder: bytes | None = None
        self._knew_of_another = False
        self._watch: Subscription | None = None
        self._tasks = Tasks()
        self._posting = Tasks()
        self._working: asyncio.Task[Any] | None = None
        cluster.answer(_HEARD, self._heard)

    async def prepare(self) -> None:
        """Raises ConfigError where posts cannot be queued, DriverError."""
        if self.is_on and self._settings.webhook_url:
            self._store = await webhook_queue(self._bus, self._settings)

    async def start(self) -> None:
        """Begin. Raises a DriverError."""
        if not self.is_on:
            return
        settings = self._settings
        if self._store is not None:
            self._poster = Poster(settings, self._metrics)
            self._working = self._posting.keep(self._post, "posting webhooks")
        self._outlet = Outlet(self._bus, settings, self._store, self._metrics)
        losses = self._repaired = self._driver.state.losses
        await self._own.beat()
        self._watch = await self._driver.state.watch(LEADER, self._on_lease)
        step = InStep(
            self._driver, losses, self._synchronize, certain_s=self._ttl_s, what="lifecycle events"
        )
        self._tasks.keep(step.run, "lifecycle: losses")
        self._tasks.keep(self._keep_time, "lifecycle: time")
        self._tasks.keep(self._campaign, "lifecycle: the lease")
        self._tasks.keep(self._read_queue, "lifecycle: the queue's length")

    async def aclose(self) -> None:
        """End. What is heard here still counts while it would linger; another node leads."""
        if self._worker is not None:
            self._worker.stop()
            assert self._working is not None, "the task that runs the worker"
            await asyncio.wait({self._working}, timeout=2 * _CLOSE_S)
        await self._posting.aclose()
        await self._tasks.aclose()
        if self._poster is not None:
            await self._poster.aclose()
        led = self._leader is not None and self._may_lead()
        await self._resign()
        if not self.is_on:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                if self._watch is not None:
                    await self._watch.aclose()
                if led:
                    await self._driver.state.delete(LEADER)
                await self._own.aclose()
        except (TimeoutError, EventBusError) as exc:
            _log.warning("lifecycle events were not closed in order: %s", exc)

    async def _post(self) -> None:
        """Run a worker of the queue of posts; a new one when the last one has failed."""
        self._worker = Worker(
            self._bus,
            queues=[QUEUE],
            concurrency=self._settings.webhook_concurrency,
            connection=self._settings.webhook_queue_connection or None,
            grace=_CLOSE_S,
            processor=self._poster,
        )
        try:
            await self._worker.run()
        finally:
            self._worker = None

    # What clients hear

    def use(self, channel: str, is_heard: bool) -> None:
        """The first client of this node hears a channel, or the last one does no more."""
        if self.is_on:
            self._own.use(channel, is_heard)

    def _heard(self, asked: _Heard) -> Sequence[_Heard]:
        return [_Heard([channel for channel in asked.channels if channel in self._own])]

    async def _confirm(self, channels: Sequence[str]) -> frozenset[str]:
        """The channels that are heard somewhere; all of them while a node owes its answer."""
        gathered = await self._cluster.ask(_HEARD, _Heard(list(channels)))
        if gathered.missing and self._leader is not None and gathered.missing & self._leader.nodes:
            return frozenset(channels)
        return frozenset(channel for part in gathered.all for channel in part.channels)

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic()
            self._own.tick(now)
            if self._leader is not None and self._may_lead():
                self._leader.refresh(now)
            self._metrics.lifecycle_pending.set(self._leader.pending if self._leader else 0)
            self._metrics.lifecycle_leader.set(self._leader is not None and self._may_lead())
            await asyncio.sleep(_TICK_S)

    async def _synchronize(self, keep_missing: bool) -> None:
        losses = self._driver.state.losses
        await self._own.repair()
        if keep_missing:
            self._repaired = losses
            self._hold_until = time.monotonic() + max(self._ttl_s, _FIRST_S)
        if self._leader is not None and not self._may_lead():
            await self._claim()  # another may lead by now, and its ledger counts
        if self._leader is not None:
            await self._leader.synchronize(keep_missing=keep_missing)

    # Who leads

    def _may_lead(self) -> bool:
        return time.monotonic() < self._lease_until

    async def _campaign(self) -> None:
        """Give signs of life, and hold the lease or try to get it, three times while it lasts."""
        beat_at = 0.0
        while True:
            now = time.monotonic()
            try:
                losses = self._driver.state.losses
                # After a loss, who led before remembers what was told: let it be the first; and let
                # all put back what they hold.
                if self._repaired != losses or not self._driver.is_connected:
                    self._hold_until = now + max(self._ttl_s, _FIRST_S)
                if now >= beat_at:
                    beat_at = now + self._ttl_s / 3
                    await self._own.beat()
                if now >= self._claim_at and (self._leader is not None or now >= self._hold_until):
                    self._claim_at = now + self._ttl_s / 3
                    await self._claim()
            except EventBusError as exc:
                _log.warning("this node cannot take part in lifecycle events now: %s", exc)
            await asyncio.sleep(_TICK_S)

    def _on_lease(self, _key: str, value: bytes | None) -> None:
        if value is None:
            self._claim_at = 0.0

    async def _claim(self) -> None:
        async with self._claiming:
            await self._claim_alone()

    async def _claim_alone(self) -> None:
        asked = time.monotonic()
        if not await self._driver.state.claim(LEADER, self._node.encode(), ttl_s=self._ttl_s):
            self._knew_of_another = True
            self._lease_until = float("-inf")
            await self._resign()
            if asked >= self._look_at:
                self._look_at = asked + 2 * self._ttl_s
                await self._end_strange_lease()
            return
        if self._leader is not None and not self._leader.is_running:
            await self._resign()
        # After a pause, another may have led and ended: what this node knows is out of date.
        if self._leader is not None and not self._may_lead() and not await self._leader.is_last():
            self._knew_of_another = True
            await self._resign()
        self._lease_until = asked + self._ttl_s
        if self._leader is None:
            self._lead()

    async def _end_strange_lease(self) -> None:
        """End a lease whose holder has shown no sign of life for longer than a lease lasts.

        No node wrote it, or it has lost its time to live: it would keep all nodes from leading.
        """
        state = self._driver.state
        holder = (await state.entries(LEADER)).get(LEADER)
        signs = {key.encode() for key in await state.entries(f"{SIGNS}*")}
        if holder is None or SIGNS.encode() + holder in signs:
            self._strange_holder = None
        elif holder == self._strange_holder:
            _log.warning("the lease of lifecycle events was held by %r, which is no node", holder)
            self._strange_holder = None
            await state.delete(LEADER)
        else:
            self._strange_holder = holder

    def _lead(self) -> None:
        assert self._outlet is not None, "made at the start"
        settings = self._settings
        options = LeaderOptions(
            settings.lifecycle_events,
            settings.webhook_batch,
            settings.webhook_wait,
            self._ttl_s,
        )
        self._leader = Leader(
            self._driver,
            options,
            self._outlet,
            node=self._node,
            may_lead=self._may_lead,
            confirm=self._confirm,
        )
        _log.info("node %s tells of lifecycle events", self._node)
        self._leader.start(knew_of_another=self._knew_of_another)

    async def _resign(self) -> None:
        leader, self._leader = self._leader, None
        if leader is not None:
            await leader.aclose()

    async def _read_queue(self) -> None:
        while self._store is not None:
            waiting = 0
            try:
                for stats in await self._store.stats():
                    if stats.queue == QUEUE:
                        waiting = stats.ready + stats.taken + stats.delayed
                self._metrics.webhook_queue.set(waiting)
            except EventBusError as exc:
                _log.debug("the queue of webhooks: %s", exc)
            await asyncio.sleep(_GAUGE_S)
