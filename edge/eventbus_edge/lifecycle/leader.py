"""The leader: compares the entries of all nodes with the ledger, and announces what differs."""

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from typing import (
    Final,
    NamedTuple,
    Protocol,
)

from eventbus.attempts import Backoff, OutageLog
from eventbus.drivers import StateDriver, Subscription
from eventbus.errors import EventBusError
from eventbus.messages import new_id
from eventbus.pacing import paced
from eventbus.tasks import Tasks
from eventbus.webhooks import (
    LifecycleName,
    WebhookEvent,
    encode_event,
)
from eventbus_edge.lifecycle.holdings import (
    CHANNELS,
    LEDGER,
    MARK,
    MEMBERS,
    Announcement,
    Holdings,
    Kind,
    decode_announcement,
    encode_announcement,
    kind_of,
    pending_batches,
)
from eventbus_edge.state import EntryWriter, Mirror

__all__ = ["Announcer", "Confirm", "Leader", "LeaderOptions"]


_log = logging.getLogger(__name__)

SETTLE_S: Final = 1.0
"""How long an item must be without entries before its end is announced."""
_BATCH_BYTES: Final = 32 * 1024
_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 5.0
_IDLE_S: Final = 0.1
_RESTORE_S: Final = 1.0

Confirm = Callable[[Sequence[str]], Awaitable[frozenset[str]]]
"""Gets channels that seem to be vacated; returns those that may still have subscribers."""


class Announcer(Protocol):
    """Publishes and posts lifecycle events."""

    async def announce(self, batch: str, events: Sequence[WebhookEvent]) -> None:
        """Announce a batch. Raises a DriverError if it must be announced again."""


class LeaderOptions(NamedTuple):
    """`events` are the events to announce; `wait_s` is how long one may wait for a batch."""

    events: tuple[LifecycleName, ...]
    batch: int
    wait_s: float
    ttl_s: float
    """How long a node without a heartbeat counts as alive."""


class _Side:
    """One kind of entry: the entries of all nodes, and the ids of the live nodes."""

    def __init__(self, driver: StateDriver, kind: Kind, wake: Callable[[], None]) -> None:
        self.kind = kind
        self.live: set[str] = set()
        self.holdings = Holdings(kind, self.live)
        self._wake = wake
        self.heartbeats = Mirror(driver.state, f"{kind.heartbeats}*", self._on_heartbeat)
        self.entries = Mirror(driver.state, f"{kind.entries}>", self._on_entry)

    def _on_heartbeat(self, key: str, value: bytes | None) -> None:
        node, alive = key.removeprefix(self.kind.heartbeats), value is not None
        if alive == (node in self.live):
            return
        if alive:
            self.live.add(node)
        else:
            self.live.discard(node)
        self.holdings.refresh(node, time.monotonic())
        self._wake()

    def _on_entry(self, key: str, value: bytes | None) -> None:
        if not self.holdings.has(key, value):
            self.holdings.set(key, value, time.monotonic())
            self._wake()


class Leader:
    """Leads from `start` until `aclose`, whenever `may_lead` returns True."""

    def __init__(
        self,
        driver: StateDriver,
        options: LeaderOptions,
        announcer: Announcer,
        *,
        node: str,
        may_lead: Callable[[], bool],
        confirm: Confirm,
    ) -> None:
        self._driver = driver
        self._node = node
        self._options = options
        self._announcer = announcer
        self._may_lead = may_lead
        self._confirm = confirm
        self._changed = asyncio.Event()
        self._writer = EntryWriter(driver, "the lifecycle ledger", may_lead)
        self._ledger: dict[str, Announcement] = {}
        kinds = [k for k in (CHANNELS, MEMBERS) if {k.begins, k.ends} & set(options.events)]
        self._sides = {kind: _Side(driver, kind, self._changed.set) for kind in kinds}
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None
        self._watch: Subscription | None = None
        self._changes: dict[str, bytes | None] = {}
        """Unchecked changes of the ledger, by this node or another one."""
        self._restore_at = 0.0
        self._is_ready = False

    @property
    def pending(self) -> int:
        """The number of items that may have changed."""
        return sum(len(side.holdings.dirty) for side in self._sides.values())

    @property
    def is_running(self) -> bool:
        """Whether the leader has started and has not failed."""
        return self._task is not None and not self._task.done()

    @property
    def nodes(self) -> frozenset[str]:
        """The live nodes, as far as channel events are announced."""
        side = self._sides.get(CHANNELS)
        return frozenset(side.live) if side is not None else frozenset()

    def start(self, *, had_other_leader: bool) -> None:
        """Load the ledger and all entries, and begin to announce.

        `had_other_leader`: another node has led while this node was running. In that case a missing
        ledger was lost with the bus's memory, and all current items count as announced.
        """
        # A failed leader is replaced by a new one: its own state may be the reason of the failure.
        self._task = self._tasks.start(self._run(had_other_leader), "announcing lifecycle events")

    async def _load(self, had_other_leader: bool) -> None:
        state = self._driver.state
        for side in self._sides.values():
            await side.heartbeats.start()
            await side.entries.start()
        self._watch = await state.watch(f"{LEDGER}>", self._on_ledger)
        is_lost = had_other_leader and not await state.entries(MARK)
        if is_lost:
            await asyncio.sleep(self._options.ttl_s)  # the nodes write their entries again
        found = await state.entries(f"{LEDGER}>")
        async for key, value in paced(found.items()):
            if (announcement := decode_announcement(key, value)) is not None:
                self._record(key, announcement)
            else:
                _log.warning("%s is ignored: it is not an entry of the lifecycle ledger", key)
        if is_lost:
            await self._adopt()
        now = time.monotonic()
        async for key in paced(list(self._ledger)):
            kind, rest = kind_of(key)
            if kind in self._sides:
                self._sides[kind].holdings.dirty.setdefault(rest, now)
        await self._mark()
        self._is_ready = True

    def _on_ledger(self, key: str, value: bytes | None) -> None:
        """Record a change: late writes of an earlier leader may arrive after this one took over."""
        if self._is_ready:
            self._changes[key] = value

    async def synchronize(self, *, keep_missing: bool) -> None:
        """Write the ledger again after a loss, and read all entries. Raises a DriverError."""
        if not self._is_ready:
            return
        for side in self._sides.values():
            await side.heartbeats.read(keep_missing=keep_missing)
            await side.entries.read(keep_missing=keep_missing)
        await self._writer.repair(await self._driver.state.entries(f"{LEDGER}>"))
        await self._mark()

    async def aclose(self) -> None:
        """Stop leading; the ledger stays on the bus."""
        await self._tasks.aclose()
        await self._writer.aclose()
        watches = [
            each for side in self._sides.values() for each in (side.heartbeats, side.entries)
        ]
        for watch in (*watches, self._watch):
            try:
                if watch is not None:
                    await watch.aclose()
            except EventBusError as exc:
                _log.warning("could not stop watching the nodes' entries: %s", exc)

    async def refresh(self, now: float) -> None:
        """Renew the ledger's entries before they expire, and restore those that others changed.

        It restores at most once per _RESTORE_S: for a moment, two nodes may believe that they lead.
        """
        await self._writer.refresh(now)
        if now >= self._restore_at:
            self._restore_at = now + _RESTORE_S
            changes, self._changes = self._changes, {}
            async for key, value in paced(changes.items()):
                self._writer.restore(key, value)

    async def _adopt(self) -> None:
        _log.warning(
            "the bus has lost the lifecycle ledger: occupied channels and members count as "
            "announced"
        )
        batch = new_id()
        for side in self._sides.values():
            async for rest in paced(list(side.holdings.items)):
                event = side.holdings.event(rest, side.kind.begins, new_id(), None)
                if event is not None:
                    key = side.kind.ledger_key(rest)
                    self._record(key, Announcement(event, batch, is_done=True))

    async def _mark(self) -> None:
        """Write the mark once the whole ledger is written."""
        for key in tuple(self._ledger):  # it changes while this waits
            await self._written(key)
        await self._driver.state.put(MARK, self._node.encode())

    async def is_last(self) -> bool:
        """Whether no other node has led since, as far as the bus knows. Raises a DriverError."""
        mark = (await self._driver.state.entries(MARK)).get(MARK)
        return mark is None or mark == self._node.encode()

    def _record(self, key: str, announcement: Announcement | None) -> None:
        if announcement is None:
            self._ledger.pop(key, None)
            self._writer.delete(key)
        else:
            self._ledger[key] = announcement
            self._writer.put(key, encode_announcement(announcement))

    async def _written(self, key: str) -> None:
        while not await self._writer.written(key, _MAX_PAUSE_S):
            pass

    async def _run(self, had_other_leader: bool) -> None:
        await self._load(had_other_leader)
        for batch, pending in pending_batches(self._ledger):  # left by an earlier leader
            await self._announce(batch, pending)
        while True:
            self._changed.clear()
            due = await self._next_batch()
            if due:
                batch = next(iter(due.values())).batch
                for key, announcement in due.items():
                    self._record(key, announcement)
                for key in due:
                    await self._written(key)
                await self._announce(batch, due)
            elif self.pending:
                await asyncio.sleep(_IDLE_S)
            else:
                await self._changed.wait()
                await asyncio.sleep(self._options.wait_s)

    async def _next_batch(self) -> dict[str, Announcement]:
        """Announcements of items that have begun or ended; at most one batch."""
        if not self._may_lead():
            return {}
        now, batch = time.monotonic(), new_id()
        due: dict[str, Announcement] = {}
        size = 0
        for side in self._sides.values():
            async for rest, since in paced(list(side.holdings.dirty.items())):
                key = side.kind.ledger_key(rest)
                before = self._ledger.get(key)
                is_held = side.holdings.is_held(rest)
                if is_held == (before is not None):
                    del side.holdings.dirty[rest]
                    continue
                if not is_held and now - since < SETTLE_S:
                    continue
                name = side.kind.begins if is_held else side.kind.ends
                event = side.holdings.event(rest, name, new_id(), before.event if before else None)
                if event is None:
                    del side.holdings.dirty[rest]
                    _log.warning("an entry of %s cannot be read and is ignored", rest)
                    continue
                size += len(encode_event(event))
                if due and (len(due) >= self._options.batch or size > _BATCH_BYTES):
                    break
                due[key] = Announcement(event, batch)
        return await self._confirmed(due)

    async def _confirmed(self, due: dict[str, Announcement]) -> dict[str, Announcement]:
        """`due` without channels that still have subscribers, whose entries may be on their way."""
        channels = {
            announcement.event.channel: key
            for key, announcement in due.items()
            if announcement.event.event == CHANNELS.ends
        }
        if channels:
            try:
                occupied = await self._confirm(list(channels))
            except EventBusError as exc:
                _log.warning("cannot confirm yet that channels are vacated: %s", exc)
                occupied = frozenset(channels)
            for channel in occupied & channels.keys():
                del due[channels[channel]]
                self._sides[CHANNELS].holdings.dirty[channel] = time.monotonic()
        return due

    async def _announce(self, batch: str, announcements: Mapping[str, Announcement]) -> None:
        """Announce a recorded batch, and retry until it is safe in the queue."""
        backoff = Backoff(_PAUSE_S, _MAX_PAUSE_S)
        outage = OutageLog(_log, "lifecycle events can be announced again")
        wanted = [
            announcement.event
            for announcement in announcements.values()
            if announcement.event.event in self._options.events
        ]
        while True:
            try:
                if self._may_lead():
                    await self._announcer.announce(batch, wanted)
                    outage.ended()
                    break
            except EventBusError as exc:
                outage.failed("lifecycle events cannot be announced yet: %s", exc)
            await asyncio.sleep(backoff.next())
        for key, announcement in announcements.items():
            kind, rest = kind_of(key)
            event = announcement.event
            has_ended = event.event == kind.ends
            self._record(key, None if has_ended else Announcement(event, batch, is_done=True))
            if kind in self._sides:  # the item may have changed in the meantime
                self._sides[kind].holdings.dirty.setdefault(rest, time.monotonic())
