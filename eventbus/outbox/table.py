"""The table of an outbox."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event as sa_events
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus.outbox.postgres import TABLE, create_trigger, drop_trigger

__all__ = ["create", "new_table", "outbox_table"]


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """Declare the table `eventbus_outbox` in an application's metadata."""
    table = sa.Table(
        TABLE,
        metadata,
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("position", sa.BigInteger, index=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(),
                  nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("headers", sa.LargeBinary, nullable=False),
        sa.Column("volatile", sa.Boolean, nullable=False),
        sa.Column("error", sa.Text),
        sqlite_autoincrement=True,  # ids of deleted rows are not used again
    )  # fmt: skip
    create, drop = create_trigger(table.schema), drop_trigger(table.schema)[1:]
    for when, statements in (("after_create", create), ("after_drop", drop)):
        for statement in statements:
            ddl: Any = sa.DDL(statement.replace("%", "%%"))  # type: ignore[no-untyped-call]
            sa_events.listen(table, when, ddl.execute_if(dialect="postgresql"))
    return table


def new_table() -> sa.Table:
    """The table in a metadata of its own, for programs that have none."""
    return outbox_table(sa.MetaData())


async def create(engine: AsyncEngine) -> bool:
    """Create the table and what belongs to it; False if it exists already."""
    table = new_table()
    async with engine.begin() as connection:
        if await connection.run_sync(lambda sync: sa.inspect(sync).has_table(TABLE)):
            return False
        await connection.run_sync(table.metadata.create_all)
    return True
