"""The node that leads: it compares what is held with what has been told, and tells the rest."""

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

from eventbus.drivers.state import StateDriver
from eventbus.errors import EventBusError
from eventbus.messages import new_id
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
    Holdings,
    Kind,
    Told,
    decode_told,
    encode_told,
    kind_of,
    pending_batches,
)
from eventbus_edge.state.mirror import Mirror
from eventbus_edge.state.writer import EntryWriter

__all__ = ["Confirm", "Leader", "LeaderOptions", "Outlets"]


_log = logging.getLogger(__name__)

SETTLE_S: Final = 1.0
"""How long something must have been held by nobody before that is told."""
_BATCH_BYTES: Final = 32 * 1024
_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 5.0
_IDLE_S: Final = 0.1

Confirm = Callable[[Sequence[str]], Awaitable[frozenset[str]]]
"""Gets channels that seem to be vacated, and gives those that may be heard after all."""


class Outlets(Protocol):
    """Where events go."""

    async def tell(self, batch: str, events: Sequence[WebhookEvent]) -> None:
        """Tell a batch. Raises a DriverError when it is to be told again."""


class LeaderOptions(NamedTuple):
    """What a leader is told: `events` are those to be told, `wait_s` how long one may wait."""

    events: tuple[LifecycleName, ...]
    batch: int
    wait_s: float
    ttl_s: float
    """How long a node that gives no sign of life counts as alive."""


class _Side:
    """One kind of thing: its entries, and the nodes that are alive."""

    def __init__(self, driver: StateDriver, kind: Kind, wake: Callable[[], None]) -> None:
        self.kind = kind
        self.live: set[str] = set()
        self.holdings = Holdings(kind, self.live)
        self._wake = wake
        self.signs = Mirror(driver.state, f"{kind.signs}*", self._on_sign)
        self.entries = Mirror(driver.state, f"{kind.entries}>", self._on_entry)

    def _on_sign(self, key: str, value: bytes | None) -> None:
        node = key.removeprefix(self.kind.signs)
        if value is None:
            self.live.discard(node)
        else:
            self.live.add(node)
        self.holdings.refresh(node, time.monotonic())
        self._wake()

    def _on_entry(self, key: str, value: bytes | None) -> None:
        self.holdings.take(key, value, time.monotonic())
        self._wake()


class Leader:
    """Leads from `start` until `aclose`, while `may_lead` says that this node may."""

    def __init__(
        self,
        driver: StateDriver,
        options: LeaderOptions,
        outlets: Outlets,
        *,
        node: str,
        may_lead: Callable[[], bool],
        confirm: Confirm,
    ) -> None:
        self._driver = driver
        self._node = node
        self._options = options
        self._outlets = outlets
        self._may_lead = may_lead
        self._confirm = confirm
        self._changed = asyncio.Event()
        self._writer = EntryWriter(driver, "the lifecycle ledger", may_lead)
        self._ledger: dict[str, Told] = {}
        kinds = [k for k in (CHANNELS, MEMBERS) if {k.begins, k.ends} & set(options.events)]
        self._sides = {kind: _Side(driver, kind, self._changed.set) for kind in kinds}
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None
        self._is_ready = False

    @property
    def pending(self) -> int:
        """How many things are to be looked at."""
        return sum(len(side.holdings.dirty) for side in self._sides.values())

    @property
    def is_running(self) -> bool:
        """Whether it has not come to an end by a fault."""
        return self._task is not None and not self._task.done()

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes that are alive, as far as they tell of channels."""
        side = self._sides.get(CHANNELS)
        return frozenset(side.live) if side is not None else frozenset()

    def start(self, *, knew_of_another: bool) -> None:
        """Take in what there is, and begin to tell.

        `knew_of_another`: somebody has led before while this node was there. Then a ledger that is
        not there any more is lost, with the bus's memory, and what is held counts as told.
        """
        # Where it fails, the node makes another leader: what this one knew may be the reason.
        self._task = self._tasks.start(self._run(knew_of_another), "telling lifecycle events")

    async def _take_in(self, knew_of_another: bool) -> None:
        state = self._driver.state
        for side in self._sides.values():
            await side.signs.start()
            await side.entries.start()
        is_lost = knew_of_another and not await state.entries(MARK)
        if is_lost:
            await asyncio.sleep(self._options.ttl_s)  # in which the nodes put back what they hold
        found = await state.entries(f"{LEDGER}>")
        for key, value in found.items():
            if (told := decode_told(key, value)) is not None:
                self._note(key, told)
            else:
                _log.warning("%s is ignored: it is no entry of the lifecycle ledger", key)
        if is_lost:
            self._adopt()
        now = time.monotonic()
        for key in self._ledger:
            kind, rest = kind_of(key)
            if kind in self._sides:
                self._sides[kind].holdings.dirty.setdefault(rest, now)
        await self._mark()
        self._is_ready = True

    async def synchronize(self, *, keep_missing: bool) -> None:
        """After a loss: put the ledger back, and take in what the nodes say. Raises DriverError."""
        if not self._is_ready:
            return
        for side in self._sides.values():
            await side.signs.read(keep_missing=keep_missing)
            await side.entries.read(keep_missing=keep_missing)
        self._writer.repair(await self._driver.state.entries(f"{LEDGER}>"))
        await self._mark()

    async def aclose(self) -> None:
        """Lead no more; the ledger stays."""
        await self._tasks.aclose()
        await self._writer.aclose()
        for side in self._sides.values():
            for mirror in (side.signs, side.entries):
                try:
                    await mirror.aclose()
                except EventBusError as exc:
                    _log.warning("the state is still watched: %s", exc)

    def refresh(self, now: float) -> None:
        """Write the ledger's entries again before they end."""
        self._writer.refresh(now)

    def _adopt(self) -> None:
        _log.warning("the bus has lost what was told: what is held now counts as told")
        batch = new_id()
        for side in self._sides.values():
            for rest in side.holdings.things:
                event = side.holdings.event(rest, side.kind.begins, new_id(), None)
                if event is not None:
                    self._note(side.kind.ledger_key(rest), Told(event, batch, is_told=True))

    async def _mark(self) -> None:
        """Say that the ledger is whole: when all of it is written."""
        for key in self._ledger:
            await self._written(key)
        await self._driver.state.put(MARK, self._node.encode())

    async def is_last(self) -> bool:
        """Whether nobody has led since, as far as the bus remembers. Raises a DriverError."""
        mark = (await self._driver.state.entries(MARK)).get(MARK)
        return mark is None or mark == self._node.encode()

    def _note(self, key: str, told: Told | None) -> None:
        if told is None:
            self._ledger.pop(key, None)
            self._writer.delete(key)
        else:
            self._ledger[key] = told
            self._writer.put(key, encode_told(told))

    async def _written(self, key: str) -> None:
        while not await self._writer.written(key, _MAX_PAUSE_S):
            pass

    async def _run(self, knew_of_another: bool) -> None:
        await self._take_in(knew_of_another)
        for batch, tolds in pending_batches(self._ledger):  # of one who led before
            await self._tell(batch, tolds)
        while True:
            self._changed.clear()
            tolds = await self._due()
            if tolds:
                batch = next(iter(tolds.values())).batch
                for key, told in tolds.items():
                    self._note(key, told)
                for key in tolds:
                    await self._written(key)
                await self._tell(batch, tolds)
            elif self.pending:
                await asyncio.sleep(_IDLE_S)
            else:
                await self._changed.wait()
                await asyncio.sleep(self._options.wait_s)

    async def _due(self) -> dict[str, Told]:
        """Up to a batch of what has begun or ended, and is to be told now."""
        if not self._may_lead():
            return {}
        now, batch = time.monotonic(), new_id()
        due: dict[str, Told] = {}
        size = 0
        for side in self._sides.values():
            for rest, since in list(side.holdings.dirty.items()):
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
                    _log.warning("an entry of %s cannot be read, and is left out", rest)
                    continue
                size += len(encode_event(event))
                if due and (len(due) >= self._options.batch or size > _BATCH_BYTES):
                    break
                due[key] = Told(event, batch)
        return await self._confirmed(due)

    async def _confirmed(self, due: dict[str, Told]) -> dict[str, Told]:
        """Without the channels that somebody hears: what they wrote may be on its way."""
        channels = {
            told.event.channel: key
            for key, told in due.items()
            if told.event.event == CHANNELS.ends
        }
        if channels:
            try:
                heard = await self._confirm(list(channels))
            except EventBusError as exc:
                _log.warning("whether channels are vacated is not known yet: %s", exc)
                heard = frozenset(channels)
            for channel in heard & channels.keys():
                del due[channels[channel]]
                self._sides[CHANNELS].holdings.dirty[channel] = time.monotonic()
        return due

    async def _tell(self, batch: str, tolds: Mapping[str, Told]) -> None:
        """Tell what stands in the ledger, until it is safe."""
        pause = _PAUSE_S
        wanted = [told.event for told in tolds.values() if told.event.event in self._options.events]
        while True:
            try:
                if self._may_lead():
                    await self._outlets.tell(batch, wanted)
                    break
            except EventBusError as exc:
                _log.warning("lifecycle events wait to be told: %s", exc)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)
        for key, told in tolds.items():
            kind, rest = kind_of(key)
            has_ended = told.event.event == kind.ends
            self._note(key, None if has_ended else Told(told.event, batch, is_told=True))
            if kind in self._sides:  # what has changed meanwhile is looked at again
                self._sides[kind].holdings.dirty.setdefault(rest, time.monotonic())
