"""The outbox: events stored as rows in the application's own transaction, and the relay that
publishes them after the commit.
"""

from eventbus.outbox.postgres import CREATE_TRIGGER, DROP_TRIGGER, TABLE
from eventbus.outbox.relay import Relay
from eventbus.outbox.rows import Row, prepared, rows_of
from eventbus.outbox.store import OutboxStats, OutboxStore, SetAside, StoredRow

__all__ = [
    "CREATE_TRIGGER",
    "DROP_TRIGGER",
    "TABLE",
    "OutboxStats",
    "OutboxStore",
    "Relay",
    "Row",
    "SetAside",
    "StoredRow",
    "prepared",
    "rows_of",
]
