"""What PostgreSQL needs besides the table: rows are numbered in the order of the commits."""

from typing import Final

__all__ = ["CREATE_TRIGGER", "DROP_TRIGGER", "TABLE", "create_trigger", "drop_trigger", "qualified"]

TABLE: Final = "eventbus_outbox"
_LOCK_CLASS: Final = 722_583  # half of a key; any number that the application does not use


def create_trigger(schema: str | None = None) -> tuple[str, ...]:
    """The statements that a migration runs after it has created the table in `schema`."""
    table = qualified(TABLE, schema)
    function, position = (
        qualified(f"{TABLE}_commit", schema),
        qualified(f"{TABLE}_position", schema),
    )
    return (
        f"CREATE SEQUENCE IF NOT EXISTS {position}",
        f"""
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Runs when the transaction commits, and holds the lock until it has: positions grow in the
    -- order of the commits, whatever the order of the inserts was.
    PERFORM pg_advisory_xact_lock(({_LOCK_CLASS}::bigint << 32) | TG_RELID::bigint);
    UPDATE {table} SET position = nextval('{position}') WHERE id = NEW.id;
    PERFORM pg_notify('{TABLE}', '');
    RETURN NULL;
END $$""",  # noqa: S608 - names
        f"""
CREATE CONSTRAINT TRIGGER {TABLE}_commit AFTER INSERT ON {table}
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {function}()""",
    )


def drop_trigger(schema: str | None = None) -> tuple[str, ...]:
    """The statements that a migration runs before it drops the table in `schema`."""
    return (
        f"DROP TRIGGER IF EXISTS {TABLE}_commit ON {qualified(TABLE, schema)}",
        f"DROP FUNCTION IF EXISTS {qualified(f'{TABLE}_commit', schema)}()",
        f"DROP SEQUENCE IF EXISTS {qualified(f'{TABLE}_position', schema)}",
    )


def qualified(name: str, schema: str | None) -> str:
    """A name of the outbox, as statements contain it."""
    if schema is None:
        return name
    quoted = schema.replace('"', '""').replace("'", "''")
    return f'"{quoted}".{name}'


CREATE_TRIGGER: Final = create_trigger()
"""What PostgreSQL needs besides the table; `create_all` runs it, and a migration must."""
DROP_TRIGGER: Final = drop_trigger()
