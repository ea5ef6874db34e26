"""The relay: publishes the rows of an outbox, in the order of their commits within a channel."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from eventbus.attempts import Backoff
from eventbus.bus import EventBus
from eventbus.errors import (
    ConfigError,
    EncodingError,
    EventBusError,
    InvalidName,
    InvalidPayload,
    NotSupported,
    PublishDenied,
)
from eventbus.outbox.rows import error_text, prepared
from eventbus.outbox.store import OutboxReader, OutboxStore, StoredRow

__all__ = ["BATCH", "Relay"]

_log = logging.getLogger(__name__)

BATCH: Final = 500
"""Rows that are read at once; as many may be published a second time after a crash."""
POLL_S: Final = 1.0
"""How long a relay waits for rows at most before it looks for some."""
MAX_PAUSE_S: Final = 5.0
MAX_STUCK: Final = 100
"""Channels that are left out while the broker refuses them, and the others go on."""
_PERMANENT: Final = (
    ConfigError,
    EncodingError,
    InvalidName,
    InvalidPayload,
    NotSupported,
    PublishDenied,
)
"""Errors that a retry does not fix."""


class Relay:
    """Publishes rows until it is cancelled. Several may run: one is active, the others wait.

    A row is deleted once the broker has acknowledged it. If the relay dies in between, the next one
    publishes the row again with the same id, and the stream drops the copy, within its window for
    duplicates (2 minutes on NATS by default).
    """

    def __init__(
        self,
        store: OutboxStore,
        bus: EventBus,
        *,
        batch: int = BATCH,
        on_published: Callable[[int], object] = lambda _rows: None,
        on_set_aside: Callable[[int], object] = lambda _rows: None,
    ) -> None:
        """`bus` is open. The callbacks get numbers of rows, for metrics."""
        self._store = store
        self._bus = bus
        self._batch = batch
        self._on_published = on_published
        self._on_set_aside = on_set_aside
        self._published: list[int] = []  # acknowledged, but not deleted yet; at most a batch
        self.is_active = False

    async def run(self) -> None:
        """Publish until cancelled. Faults of the database and of the broker are retried."""
        backoff = Backoff(0.1, MAX_PAUSE_S)
        while True:
            pause, begun = 0.0, time.monotonic()
            try:
                async with self._store.lead() as reader:
                    self.is_active = True
                    _log.info("the relay is active")
                    await self._lead(reader, backoff)
            except Exception as exc:  # noqa: BLE001 - whatever it was, the rows must be published
                if time.monotonic() - begun > MAX_PAUSE_S:
                    backoff.reset()  # it waited for the lead, and is to take over in time next time
                pause = backoff.next()
                _log.warning(
                    "the outbox cannot be read; next attempt in %.1f s: %s",
                    pause, str(exc).partition("\n")[0] or type(exc).__name__,  # SQL follows
                )  # fmt: skip
            finally:
                self.is_active = False
            await asyncio.sleep(pause)

    async def _lead(self, reader: OutboxReader, backoff: Backoff) -> None:
        pauses = Backoff(0.1, MAX_PAUSE_S)
        stuck: set[str] = set()
        while True:
            await self._delete_published(reader)
            rows = await reader.fetch(self._batch, stuck)
            backoff.reset()
            if rows:
                stuck |= (failed := await self._publish(reader, rows)).keys()
                if not failed:
                    continue
                _log.warning(
                    "the broker takes no messages of %d channels; rows wait: %s",
                    len(failed), next(iter(failed.values())),
                )  # fmt: skip
                if len(stuck) <= MAX_STUCK:
                    continue  # with the other channels
            if stuck:
                stuck.clear()
                async with reader.kept():
                    await asyncio.sleep(pauses.next())
            else:
                pauses.reset()
                await reader.wait(POLL_S)

    async def drain(self) -> int:
        """Publish the waiting rows, and return their number. For tests and scripts.

        Raises the first error that a retry may fix.
        """
        published = 0
        async with self._store.lead() as reader:
            await self._delete_published(reader)
            while rows := await reader.fetch(self._batch):
                for error in (await self._publish(reader, rows)).values():
                    raise error
                published += len(rows)
        return published

    async def _publish(
        self, reader: OutboxReader, rows: Sequence[StoredRow]
    ) -> Mapping[str, EventBusError]:
        """Publish rows, each channel's in order, and all channels concurrently.

        Returns the channels that failed for now, with their errors: their rows wait.
        """
        channels: dict[tuple[str, str], list[StoredRow]] = {}
        for stored in rows:
            channels.setdefault((stored.row.kind, stored.row.channel), []).append(stored)
        refused: list[tuple[StoredRow, Exception]] = []
        failed: dict[str, EventBusError] = {}

        async def publish(rows: Sequence[StoredRow]) -> None:
            for stored in rows:
                if not reader.leads():
                    return
                try:
                    await self._bus.send(prepared(stored.row))
                except _PERMANENT as exc:
                    refused.append((stored, exc))
                except EventBusError as exc:
                    failed[stored.row.channel] = exc
                    return
                except Exception as exc:  # noqa: BLE001 - it must not block the rows after it
                    refused.append((stored, exc))
                else:
                    self._published.append(stored.id)

        async with reader.kept():
            await asyncio.gather(*map(publish, channels.values()))
        await self._delete_published(reader)
        for stored, error in refused:
            row = stored.row
            await reader.set_aside(stored.id, error_text(error))
            _log.error(
                "row %d of the outbox (event %s on %s) cannot be published and is set aside: %s",
                stored.id, row.event, row.channel, error_text(error),
            )  # fmt: skip
            self._on_set_aside(1)
        return failed

    async def _delete_published(self, reader: OutboxReader) -> None:
        """Delete acknowledged rows.

        They are remembered until that succeeds, however long the database is away or locked:
        published again later than the stream remembers ids, they would arrive twice.
        """
        if self._published:
            await reader.delete(self._published)
            self._on_published(len(self._published))
            self._published.clear()
