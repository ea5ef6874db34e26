"""A node's part in lifecycle events: it publishes its channels, and leads if it has the lease."""

import asyncio
import functools
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

from eventbus.attempts import OutageLog
from eventbus.bus import EventBus
from eventbus.cluster import Cluster, Question
from eventbus.drivers import Capability, QueueStore, StateDriver, Subscription
from eventbus.errors import (
    ConfigError,
    EventBusError,
)
from eventbus.queue import Worker
from eventbus.tasks import Tasks
from eventbus.webhooks import LIFECYCLE_EVENTS, LifecycleName
from eventbus_edge.config import EdgeSettings
from eventbus_edge.lifecycle.holdings import (
    HEARTBEATS,
    LEADER,
)
from eventbus_edge.lifecycle.interest import OwnChannels
from eventbus_edge.lifecycle.leader import (
    Leader,
    LeaderOptions,
)
from eventbus_edge.lifecycle.receivers import Activity, Receiver, native_receivers
from eventbus_edge.lifecycle.webhooks import (
    Activities,
    EventAnnouncer,
    Poster,
    PostQueue,
    webhook_queue,
)
from eventbus_edge.metrics import Metrics
from eventbus_edge.presence import drop_nothing
from eventbus_edge.state import Resync

__all__ = ["Lifecycle"]


_log = logging.getLogger(__name__)

_TICK_S: Final = 0.1
_CLOSE_S: Final = 5.0
_GAUGE_S: Final = 5.0
_FIRST_S: Final = 5.0
"""How long, at least, other nodes wait after a loss, so that the old leader can claim the lease."""


class _ChannelsInUse(msgspec.Struct, frozen=True):
    channels: list[str]


_IN_USE: Final = Question("heard", _ChannelsInUse, _ChannelsInUse)


class Lifecycle:
    """Does nothing unless lifecycle events are enabled."""

    def __init__(
        self,
        bus: EventBus,
        cluster: Cluster,
        settings: EdgeSettings,
        metrics: Metrics,
        *,
        receivers: Sequence[Receiver] = (),
        drop_gone: Callable[[], Awaitable[object]] = drop_nothing,
    ) -> None:
        """`receivers` get webhooks beside that of the settings. For `drop_gone` see OwnChannels.

        Raises ConfigError for invalid settings, and for a driver without a state store.
        """
        settings.check_webhook()
        self._receivers = [*native_receivers(settings), *receivers]
        self._events = _lifecycle_events(settings, receivers)
        self.is_on = bool(self._events)
        self._bus = bus
        self._cluster = cluster
        self._settings = settings
        self._metrics = metrics
        self._node = cluster.node_id
        self._ttl_s = settings.presence_ttl
        if self.is_on and Capability.PRESENCE not in bus.driver.capabilities:
            raise ConfigError(
                "lifecycle events (BROADCAST_LIFECYCLE, or a URL for webhooks) need a driver with "
                f"a state store, and {bus.driver.name} has none; allowed: nats, redis, memory",
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
        self._announcer: EventAnnouncer | None = None
        self._store: QueueStore | None = None
        self._activities: list[Activities] = []
        self._posters: list[Poster] = []
        self._workers: dict[str, Worker] = {}
        self._lease_until = float("-inf")
        self._hold_until = float("-inf")
        """Until this time, only the current leader claims the lease."""
        self._repaired = 0
        """The loss count of the state store as of this node's last repair of its entries."""
        self._claim_at = 0.0
        self._claiming = asyncio.Lock()
        self._look_at = 0.0
        self._unknown_holder: bytes | None = None
        self._had_other_leader = False
        self._watch: Subscription | None = None
        self._tasks = Tasks()
        self._posting = Tasks()
        self._recording = Tasks()
        self._working: list[asyncio.Task[Any]] = []
        cluster.answer(_IN_USE, self._in_use)

    async def prepare(self) -> None:
        """Open the queue for posts. Raises ConfigError if there is none, and DriverError."""
        if self._receivers:
            self._store = await webhook_queue(self._bus, self._settings)

    async def start(self) -> None:
        """Start. Raises a DriverError."""
        queues = self._start_posting()
        if not self.is_on:
            return
        self._announcer = EventAnnouncer(self._bus, queues, self._metrics)
        state = self._driver.state
        losses = self._repaired = state.losses
        await self._own.beat()
        self._watch = await self._driver.state.watch(LEADER, self._on_lease)
        resync = Resync(
            lambda: state.losses,
            losses,
            self._synchronize,
            settle_s=self._ttl_s,
            what="lifecycle events",
        )
        self._tasks.keep(resync.run, "lifecycle: losses")
        self._tasks.keep(self._keep_time, "lifecycle: time")
        self._tasks.keep(self._campaign, "lifecycle: the lease")

    def _start_posting(self) -> Sequence[PostQueue]:
        if self._store is None:
            return ()
        settings, metrics = self._settings, self._metrics
        queues = [PostQueue(each, settings, self._store, metrics) for each in self._receivers]
        for queue in queues:
            poster = Poster(queue.receiver, settings, metrics)
            self._posters.append(poster)
            post = functools.partial(self._post, queue.receiver.queue, poster)
            if (task := self._posting.keep(post, "posting webhooks")) is not None:
                self._working.append(task)
            activities = Activities(queue, settings, metrics)
            self._activities.append(activities)
            self._recording.keep(activities.run, "queueing webhooks")
        self._tasks.keep(self._read_queue, "lifecycle: the queue's length")
        return queues

    def record(self, activity: Activity) -> None:
        """Post what clients did, to the receivers that want it."""
        for activities in self._activities:
            activities.add(activity)

    async def aclose(self) -> None:
        """Stop. Channels stay occupied for the linger time; another node becomes the leader."""
        await self._recording.aclose()
        await self._flush_activities()
        for worker in self._workers.values():
            worker.stop()
        if self._working:
            await asyncio.wait(self._working, timeout=2 * _CLOSE_S)
        await self._posting.aclose()
        await self._tasks.aclose()
        for poster in self._posters:
            await poster.aclose()
        was_leader = self._leader is not None and self._may_lead()
        await self._resign()
        if not self.is_on:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                if self._watch is not None:
                    await self._watch.aclose()
                if was_leader:
                    await self._driver.state.delete(LEADER)
                await self._own.aclose()
        except (TimeoutError, EventBusError) as exc:
            _log.warning("lifecycle events could not be closed cleanly: %s", exc)

    async def _flush_activities(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_S):
                for activities in self._activities:
                    await activities.flush()
        except TimeoutError:
            _log.warning("some webhook events of clients could not be queued, and are lost")

    async def _post(self, queue: str, poster: Poster) -> None:
        """Run a worker for a webhook queue; after a failure, the task starts a new one."""
        worker = self._workers[queue] = Worker(
            self._bus,
            queues=[queue],
            concurrency=self._settings.webhook_concurrency,
            connection=self._settings.webhook_queue_connection or None,
            grace=_CLOSE_S,
            processor=poster,
        )
        try:
            await worker.run()
        finally:
            del self._workers[queue]

    # Channels of this node

    def use(self, channel: str, is_used: bool) -> None:
        """Note that a channel got its first subscriber on this node, or lost its last one."""
        if self.is_on:
            self._own.use(channel, is_used)

    async def _in_use(self, question: _ChannelsInUse) -> Sequence[_ChannelsInUse]:
        return [_ChannelsInUse([channel for channel in question.channels if channel in self._own])]

    async def _confirm(self, channels: Sequence[str]) -> frozenset[str]:
        """The channels with subscribers on any node; all of them if a live node did not answer."""
        gathered = await self._cluster.ask(_IN_USE, _ChannelsInUse(list(channels)))
        if gathered.missing and self._leader is not None and gathered.missing & self._leader.nodes:
            return frozenset(channels)
        return frozenset(channel for part in gathered.all for channel in part.channels)

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic()
            await self._own.tick(now)
            if self._leader is not None and self._may_lead():
                await self._leader.refresh(now)
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
            await self._claim()  # another node may lead by now, and then its ledger counts
        if self._leader is not None:
            await self._leader.synchronize(keep_missing=keep_missing)

    # Leadership

    def _may_lead(self) -> bool:
        return time.monotonic() < self._lease_until

    async def _campaign(self) -> None:
        """Write heartbeats, and claim or renew the lease, three times in the lifetime of each."""
        beat_at = 0.0
        outage = OutageLog(_log, "this node takes part in lifecycle events again")
        while True:
            now = time.monotonic()
            try:
                losses = self._driver.state.losses
                # After a loss, the previous leader still knows what was announced: let it claim the
                # lease first. All nodes need time to write their entries again.
                if self._repaired != losses or not self._driver.is_connected:
                    self._hold_until = now + max(self._ttl_s, _FIRST_S)
                if now >= beat_at:
                    beat_at = now + self._ttl_s / 3
                    await self._own.beat()
                if now >= self._claim_at and (self._leader is not None or now >= self._hold_until):
                    self._claim_at = now + self._ttl_s / 3
                    await self._claim()
            except EventBusError as exc:
                outage.failed("this node cannot take part in lifecycle events now: %s", exc)
            else:
                outage.ended()
            await asyncio.sleep(_TICK_S)

    def _on_lease(self, _key: str, value: bytes | None) -> None:
        if value is None:
            self._claim_at = 0.0

    async def _claim(self) -> None:
        async with self._claiming:
            await self._claim_locked()

    async def _claim_locked(self) -> None:
        started = time.monotonic()
        if not await self._driver.state.claim(LEADER, self._node.encode(), ttl_s=self._ttl_s):
            self._had_other_leader = True
            self._lease_until = float("-inf")
            await self._resign()
            if started >= self._look_at:
                self._look_at = started + 2 * self._ttl_s
                await self._end_unknown_lease()
            return
        if self._leader is not None and not self._leader.is_running:
            await self._resign()
        # During a pause another node may have led and stopped: then this ledger is out of date.
        if self._leader is not None and not self._may_lead() and not await self._leader.is_last():
            self._had_other_leader = True
            await self._resign()
        self._lease_until = started + self._ttl_s
        if self._leader is None:
            self._lead()

    async def _end_unknown_lease(self) -> None:
        """Delete a lease whose holder has had no heartbeat for longer than a lease lasts.

        It was not written by a node, or has lost its time to live, and would block all nodes.
        """
        state = self._driver.state
        holder = (await state.entries(LEADER)).get(LEADER)
        heartbeats = {key.encode() for key in await state.entries(f"{HEARTBEATS}*")}
        if holder is None or HEARTBEATS.encode() + holder in heartbeats:
            self._unknown_holder = None
        elif holder == self._unknown_holder:
            _log.warning(
                "deleted the lease of lifecycle events: its holder %r is not a live node", holder
            )
            self._unknown_holder = None
            await state.delete(LEADER)
        else:
            self._unknown_holder = holder

    def _lead(self) -> None:
        assert self._announcer is not None, "created at the start"
        settings = self._settings
        options = LeaderOptions(
            self._events,
            settings.webhook_batch,
            settings.webhook_wait,
            self._ttl_s,
        )
        self._leader = Leader(
            self._driver,
            options,
            self._announcer,
            node=self._node,
            may_lead=self._may_lead,
            confirm=self._confirm,
        )
        _log.info("node %s leads: it announces lifecycle events", self._node)
        self._leader.start(had_other_leader=self._had_other_leader)

    async def _resign(self) -> None:
        leader, self._leader = self._leader, None
        if leader is not None:
            await leader.aclose()

    async def _read_queue(self) -> None:
        queues = {receiver.queue for receiver in self._receivers}
        while self._store is not None:
            waiting = 0
            try:
                for stats in await self._store.stats():
                    if stats.queue in queues:
                        waiting += stats.ready + stats.taken + stats.delayed
                self._metrics.webhook_queue.set(waiting)
            except EventBusError as exc:
                _log.debug("the length of the webhook queue cannot be read: %s", exc)
            await asyncio.sleep(_GAUGE_S)


def _lifecycle_events(
    settings: EdgeSettings, receivers: Sequence[Receiver]
) -> tuple[LifecycleName, ...]:
    """The events to announce: those of the settings, and what receivers want."""
    if settings.lifecycle == "off":
        return ()
    wanted = {name for receiver in receivers for name in receiver.lifecycle_events}
    wanted.update(settings.lifecycle_events)
    return tuple(name for name in LIFECYCLE_EVENTS if name in wanted)
