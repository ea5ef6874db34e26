"""Creates the table of the outbox, and on PostgreSQL the trigger that numbers its rows."""

from collections.abc import Callable, Sequence
from typing import Any

from django.db import migrations, models

from eventbus.outbox import CREATE_TRIGGER, DROP_TRIGGER


def _run(statements: Sequence[str]) -> Callable[[Any, Any], None]:
    def run(_apps: Any, schema_editor: Any) -> None:
        if schema_editor.connection.vendor == "postgresql":
            for statement in statements:
                schema_editor.execute(statement)

    return run


class Migration(migrations.Migration):
    """The first one."""

    initial = True
    operations = [
        migrations.CreateModel(
            name="OutboxRow",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("position", models.BigIntegerField(db_index=True, editable=False, null=True)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("message_id", models.TextField()),
                ("kind", models.TextField()),
                ("channel", models.TextField()),
                ("event", models.TextField()),
                ("payload", models.BinaryField()),
                ("headers", models.BinaryField()),
                ("volatile", models.BooleanField()),
                ("error", models.TextField(null=True)),
            ],
            options={
                "db_table": "eventbus_outbox",
                "verbose_name": "row of the outbox",
                "verbose_name_plural": "rows of the outbox",
            },
        ),
        migrations.RunPython(_run(CREATE_TRIGGER), _run(DROP_TRIGGER)),
    ]
