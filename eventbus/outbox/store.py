"""What a relay needs of the database that holds an outbox."""

import datetime
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from eventbus.outbox.rows import Row

__all__ = ["OutboxReader", "OutboxStats", "OutboxStore", "SetAside", "StoredRow"]


class StoredRow(msgspec.Struct, frozen=True):
    """A committed row that was not published yet. Positions grow in the order of the commits."""

    id: int
    row: Row


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """A row that could not be published, and why."""

    id: int
    message_id: str
    channel: str
    event: str
    created_at: datetime.datetime
    error: str


class OutboxStats(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows an outbox has."""

    waiting: int
    set_aside: int
    lag_s: float
    """The age of the oldest waiting row in seconds; 0 without any."""


class OutboxReader(Protocol):
    """The rows of an outbox, for the one relay that is active."""

    async def fetch(self, limit: int, without: Collection[str] = ()) -> Sequence[StoredRow]:
        """The first rows that wait, in the order of their commits, but none of some channels."""

    async def delete(self, ids: Sequence[int]) -> None:
        """Delete published rows."""

    async def set_aside(self, id: int, error: str) -> None:  # noqa: A002
        """Set aside a row that cannot be published."""

    async def wait(self, seconds: float) -> None:
        """Wait until rows may have been committed, at most that long."""

    def kept(self) -> AbstractAsyncContextManager[None]:
        """Stay the active relay, within a block that uses the reader for nothing else."""

    def leads(self) -> bool:
        """Whether this is certainly still the active relay: it may have been stopped for a while.

        Within `kept` only.
        """


class OutboxStore(Protocol):
    """The outbox of one database. Methods raise what the database's library raises."""

    def lead(self) -> AbstractAsyncContextManager[OutboxReader]:
        """Wait until no other relay is active, and be the active one within the block."""

    async def stats(self) -> OutboxStats:
        """How many rows wait, and since when."""

    async def failures(self, limit: int) -> Sequence[SetAside]:
        """The oldest rows that were set aside."""

    async def retry(self, ids: Sequence[int]) -> int:
        """Let rows that were set aside wait again, at their old positions; returns how many."""

    async def forget(self, ids: Sequence[int]) -> int:
        """Delete rows that were set aside; returns how many."""
