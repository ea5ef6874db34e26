"""SQLAlchemy: events after the commit of a session, and an outbox.

sessions = async_sessionmaker(engine)
after_commit(sessions)  # events with `after_commit=True` wait for the commits of its sessions
outbox = Outbox(Base.metadata)  # its events survive a crash between commit and publishing

async with sessions.begin() as session:
    session.add(order)
    await OrderPlaced(order_id=order.id).dispatch()
    outbox.add(session, OrderPaid(order_id=order.id))

await outbox.relay(engine, bus).run()  # in a process of its own: `eventbus outbox relay`
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, registry, scoped_session

from eventbus.bus import EventBus
from eventbus.events import Event
from eventbus.integrations.sqlalchemy_sessions import after_commit
from eventbus.outbox import Relay, rows_of
from eventbus.outbox.database import DatabaseOutbox, engine_of
from eventbus.outbox.table import outbox_table

__all__ = ["DatabaseOutbox", "Outbox", "after_commit", "engine_of"]


class Outbox:
    """Events that are published if and only if the transaction that added them commits."""

    def __init__(self, metadata: sa.MetaData) -> None:
        """Declare the table in `metadata`; `metadata.create_all` or a migration creates it."""
        self.table = outbox_table(metadata)
        self._entity: type[Any] = type("OutboxRow", (), {})
        registry(metadata=metadata).map_imperatively(self._entity, self.table)

    def add(
        self,
        session: "Session | AsyncSession | scoped_session[Any] | async_scoped_session[Any]",
        *events: Event,
    ) -> None:
        """Add events to the session's transaction; nothing is awaited, and nothing is sent.

        They are checked and encoded here, as a dispatch does, and written when the session flushes
        next, at the latest at its commit. A rollback drops them, that of a savepoint those that
        were added since. Listeners of this process do not run. Raises EventFieldError,
        EventDefinitionError, EncodingError, InvalidChannel, InvalidEventName. The keywords
        `after_commit` and `rescue` of an event's class have no meaning here.
        """
        for row in [row for event in events for row in rows_of(event)]:
            entity = self._entity()
            for name in row.__struct_fields__:
                setattr(entity, name, getattr(row, name))
            session.add(entity)

    def relay(self, engine: AsyncEngine, bus: EventBus) -> Relay:
        """A relay of this outbox: `await outbox.relay(engine, bus).run()`."""
        return Relay(DatabaseOutbox(engine, self.table), bus)
