"""The Django app in a process of its own: its settings, events of models, and commands."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from eventbus import EventBus

PAGE = Path(__file__).parents[3] / "docs/django.md"

HEAD = """
    import django, sys
    from django.conf import settings
    settings.configure(
        INSTALLED_APPS=["eventbus.integrations.django"], USE_TZ=True, EVENTBUS=EVENTBUS,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    django.setup()
    from django.core.management import call_command
    from django.db import connection, models, transaction
    from eventbus import Event
    from eventbus.testing import fake
    from eventbus.integrations.django import broadcasts
"""


@pytest.fixture
def run(tmp_path):
    def run(code, eventbus='{"BROADCAST_DRIVER": "null"}', status=0):
        program = f"EVENTBUS = {eventbus}\n" + textwrap.dedent(HEAD) + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True,
            text=True, timeout=150, check=False, env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_events_of_a_model_follow_the_commit_and_have_its_types(run):
    run("""
    @broadcasts("shops.{shop}.orders.{pk}", fields=["status", "price", "note", "owner"])
    class Order(models.Model):
        shop = models.SlugField()
        status = models.CharField(max_length=20)
        price = models.DecimalField(max_digits=8, decimal_places=2)
        note = models.TextField(null=True)
        owner = models.ForeignKey("self", null=True, on_delete=models.CASCADE)

        class Meta:
            app_label = "eventbus"

    import decimal
    assert Order.events.created.__annotations__ == {
        "id": int, "shop": str, "status": str, "price": decimal.Decimal, "note": str | None,
        "owner": int | None,
    }
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    with fake() as events:
        with transaction.atomic():
            order = Order.objects.create(shop="a", status="new", price="9.50")
            events.assert_nothing_dispatched()
        events.assert_dispatched(Order.events.created, times=1)
        try:
            with transaction.atomic():
                order.status = "lost"
                order.save()
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        events.assert_not_dispatched(Order.events.updated)
        order.status = "shipped"
        order.save()
        events.assert_dispatched(Order.events.updated, lambda event: event.status == "shipped")
        order.delete()
        events.assert_dispatched(Order.events.deleted, lambda event: event.id == 1)
    """)


STOCK = """
    @broadcasts("orders.{pk}", fields=["status", "stock", "updated"])
    class Order(models.Model):
        status = models.CharField(max_length=20, default="new")
        stock = models.IntegerField(default=0)
        updated = models.DateTimeField(null=True)

        class Meta:
            app_label = "eventbus"

    def create_tables(*more):
        with connection.schema_editor() as editor:
            for model in (Order, *more):
                editor.create_model(model)

    def sent(events, cls, *names):
        return [tuple(getattr(event, name) for name in names) for event in events.dispatched(cls)]
"""


def test_event_of_an_object_without_some_of_its_fields_has_those_of_the_database(run):
    run(
        STOCK
        + """
    create_tables()
    for status in ("a", "b", "c"):
        Order.objects.create(status=status)
    with fake() as events:
        order = Order.objects.only("id").get(pk=1)
        order.stock = 5
        order.save(update_fields=["stock"])
        order.delete()
        Order.objects.defer("status").exclude(pk=3).delete()
        assert Order.objects.count() == 1
        assert sent(events, Order.events.updated, "id", "status", "stock") == [(1, "a", 5)]
        assert sent(events, Order.events.deleted, "id", "status", "stock") == [
            (1, "a", 5), (2, "b", 0)
        ]
    """
    )


def test_object_that_another_has_deleted_is_deleted_without_an_event_of_unknown_values(run):
    out = run(
        STOCK
        + """
    create_tables()
    Order.objects.create()
    order = Order.objects.only("id").get()
    with fake() as events:
        Order.objects.all().delete()
        order.delete()
        events.assert_dispatched(Order.events.deleted, times=1)
    """
    )
    assert "OrderDeleted is not sent: the object's row was deleted before" in out


def test_event_has_the_value_that_an_expression_had_in_the_database(run):
    run(
        STOCK
        + """
    import datetime
    from django.db.models.functions import Now
    create_tables()
    with fake() as events:
        order = Order.objects.create(stock=1)
        order.stock = models.F("stock") + 1
        order.save()
        order = Order.objects.get()
        order.stock, order.updated = models.F("stock") + 1, Now()
        with transaction.atomic():
            order.save()
        order = Order.objects.get()
        order.stock = models.F("stock") + 1
        order.save(update_fields=["stock"])
        order.delete()  # the attribute may still be the expression
        assert sent(events, Order.events.updated, "stock") == [(2,), (3,), (4,)]
        _, event, _ = events.dispatched(Order.events.updated)
        assert isinstance(event.updated, datetime.datetime)
        assert sent(events, Order.events.deleted, "id", "stock") == [(1, 4)]
    """
    )


def test_event_has_the_value_in_the_database_of_the_change(run):
    run(
        STOCK
        + """
    from django.db import connections

    class Other:  # objects are read elsewhere
        def db_for_read(self, model, **hints):
            return "other"

    settings.DATABASE_ROUTERS = [Other()]
    connections.settings["other"] = dict(connections.settings["default"])
    create_tables()
    with connections["other"].schema_editor() as editor:
        editor.create_model(Order)
    for using, stock in (("default", 1), ("other", 10)):
        Order(pk=1, stock=stock).save(using=using)
    with fake() as events:
        order = Order.objects.using("default").only("id").get()
        order.stock = models.F("stock") + 1
        order.save(update_fields=["stock"], using="default")
        order = Order.objects.only("id").get()
        order.delete(using="default")
        assert sent(events, Order.events.updated, "stock") == [(2,)]
        assert sent(events, Order.events.deleted, "stock") == [(2,)]
    connections["other"].close()
    """
    )


def test_async_save_of_an_expression_sends_the_value(run):
    run(
        STOCK
        + """
    import asyncio
    from asgiref.sync import sync_to_async
    connection.settings_dict["NAME"] = "shop.db"  # memory belongs to one thread
    create_tables()

    async def main():
        order = await Order.objects.acreate(stock=1)
        order.stock = models.F("stock") + 1
        await order.asave()
        order = await Order.objects.only("id").aget()
        await order.adelete()
        await sync_to_async(lambda: connection.close())()  # that of its thread

    with fake() as events:
        asyncio.run(main())
        assert sent(events, Order.events.updated, "stock") == [(2,)]
        assert sent(events, Order.events.deleted, "stock") == [(2,)]
    """
    )


def test_changes_by_way_of_a_subclass_send_the_events_of_the_model_once(run):
    run(
        STOCK
        + """
    class Archived(Order):
        class Meta:
            proxy = True
            app_label = "eventbus"

    class OldArchived(Archived):
        class Meta:
            proxy = True
            app_label = "eventbus"

    class Express(Order):
        hours = models.IntegerField(default=1)

        class Meta:
            app_label = "eventbus"

    @broadcasts("lost.{pk}", fields=["status"])
    class Lost(Order):
        class Meta:
            proxy = True
            app_label = "eventbus"

    class Plain(models.Model):
        class Meta:
            app_label = "eventbus"

    class Quiet(Plain):
        class Meta:
            proxy = True
            app_label = "eventbus"

    class Late(Quiet):
        class Meta:
            proxy = True
            app_label = "eventbus"

    broadcasts("plain.{pk}", fields=[])(Plain)
    create_tables(Express, Plain)
    for model, events_of in (
        (Archived, Order), (OldArchived, Order), (Express, Order), (Lost, Lost), (Late, Plain)
    ):
        with fake() as events:
            model.objects.create()
            changed = model.objects.get()
            changed.save()
            changed.delete()
            assert not Order.objects.exists() and not Plain.objects.exists()
            for what in events_of.events:
                events.assert_dispatched(what, times=1)
            assert len(events.dispatched(Event)) == 3, events.dispatched(Event)
    """
    )


@pytest.mark.parametrize(
    ("channel", "fields", "message"),
    [
        ("orders.{pk}", ["nothing"], "there is no field 'nothing'; allowed: id, name, parents"),
        ("orders.{shop}", [], "there is no field 'shop'"),
        ("orders.{pk}", ["children"], "not a column"),
        ("orders.{pk}", ["picture"], "type in an event is not known"),
        ("orders.{pk", [], "orders.{pk"),
    ],
)
def test_model_that_cannot_be_broadcast_is_refused_at_its_class(run, channel, fields, message):
    out = run(f"""
    class Parent(models.Model):
        class Meta:
            app_label = "eventbus"
    try:
        @broadcasts({channel!r}, fields={fields!r})
        class Order(models.Model):
            name = models.CharField(max_length=9)
            parents = models.ForeignKey(Parent, on_delete=models.CASCADE)
            picture = models.BinaryField()
            children = models.ManyToManyField(Parent, related_name="+")
            class Meta:
                app_label = "eventbus"
    except Exception as exc:
        print(type(exc).__name__, exc)
    """)
    assert message in out


def test_commands_of_eventbus_use_the_settings_of_django(run):
    out = run(
        'call_command("eventbus", "subjects", "list")',
        eventbus='{"NATS_URL": "nats://127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": 0.2}',
        status=1,
    )
    assert "127.0.0.1:1" in out


@pytest.mark.parametrize(
    "call",
    [
        'call_command("eventbus", "doctor")',
        'execute_from_command_line(["manage.py", "eventbus", "doctor"])',
    ],
    ids=["call_command", "manage.py"],
)
def test_output_of_commands_in_an_encoding_without_our_symbols_is_plain(run, monkeypatch, call):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out = run(f"""
    from django.core.management import CommandError, execute_from_command_line
    before = sys.stdout.errors
    try:
        {call}
    except (CommandError, SystemExit):
        pass  # it finds something to improve
    assert sys.stdout.errors == before
    """)
    assert "+ settings" in out


def test_commands_of_the_outbox_use_the_database_of_django(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "oracle://scott@db/another")
    out = run(f"""
    connection.settings_dict["NAME"] = {str(tmp_path / "shop.db")!r}
    from eventbus import Event, ShouldBroadcast
    from eventbus.integrations.django.models import OutboxRow, add_to_outbox

    class Placed(Event, ShouldBroadcast, channel="orders", name="dj.placed"):
        n: int

    call_command("migrate", verbosity=0)
    add_to_outbox(Placed(n=1), Placed(n=2))
    OutboxRow.objects.filter(pk=1).update(error="denied")
    connection.close()
    call_command("eventbus", "outbox", "list")
    call_command("eventbus", "outbox", "retry", "1")
    call_command("eventbus", "doctor")
    """)
    assert "waiting: 1 row" in out
    assert "dj.placed" in out
    assert "to be published again: 1 row" in out
    assert "waiting: 2 rows" in out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('{"NATS_UR": "nats://127.0.0.1"}', "not a variable of eventbus"),
        ('{"namespace": "shop"}', "not a variable of eventbus"),
        ('{"BROADCAST_CHANNELS_PREFIX": "Not One"}', "BROADCAST_CHANNELS_PREFIX"),
        ('{"BROADCAST_STACK": object()}', "of type object"),
        ('["NATS_URL"]', "EVENTBUS is a dict"),
    ],
)
def test_setting_that_is_wrong_stops_the_start(run, setting, message):
    assert message in run("", eventbus=setting, status=1)


def test_migration_is_complete(run):
    assert "No changes detected" in run('call_command("makemigrations", "--check", "--dry-run")')


AFTER_COMMIT = """
    from eventbus import Event, ShouldBroadcast, ShouldQueue, sync
    from eventbus.errors import EventFieldError

    class Placed(Event, ShouldBroadcast, channel="orders", name="dj.placed", after_commit=True):
        n: int

    class Mailed(Event, ShouldQueue, name="dj.mailed", queue="mails", after_commit=True):
        n: int

    def dispatched(events):
        return [event.n for event in events.dispatched(Placed)]
"""


def test_events_after_commit_wait_for_the_atomic_block(run):
    run(
        AFTER_COMMIT
        + """
    with fake() as events:
        with transaction.atomic():
            assert Placed(n=1).dispatch_sync() == ()
            Mailed(n=1).dispatch_sync()
            try:
                Placed(n="x").dispatch_sync()
            except EventFieldError:
                pass
            try:
                with transaction.atomic():
                    Placed(n=2).dispatch_sync()
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            with transaction.atomic():
                Placed(n=3).dispatch_sync()
            events.assert_nothing_dispatched()
        assert dispatched(events) == [1, 3]
        events.assert_queued(Mailed, times=1)
        try:
            with transaction.atomic():
                Placed(n=4).dispatch_sync()
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert len(Placed(n=5).dispatch_sync()) == 1
        assert dispatched(events) == [1, 3, 5]
    """
    )


def test_event_waits_for_all_databases_and_is_bounded(run):
    run(
        AFTER_COMMIT
        + """
    from django.db import connections
    from eventbus.errors import BusStateError
    from eventbus.events.transaction import MAX_HELD
    connections.settings["other"] = dict(connections.settings["default"])
    with fake() as events:
        with transaction.atomic():
            with transaction.atomic(using="other"):
                Placed(n=1).dispatch_sync()
            assert dispatched(events) == []
        assert dispatched(events) == [1]
        with sync.EventBus.from_env({"BROADCAST_DRIVER": "null"}) as bus, transaction.atomic():
            bus.dispatch(*[Placed(n=2)] * MAX_HELD)
            try:
                bus.dispatch(Placed(n=3))
            except BusStateError as exc:
                assert "at most 10000" in str(exc)
            else:
                raise AssertionError("there is room for more than MAX_HELD")
            transaction.set_rollback(True)
        assert dispatched(events) == [1]
    connections["other"].close()
    """
    )


def test_threads_of_async_code_hold_their_own_events(run):
    run(
        AFTER_COMMIT
        + """
    import asyncio, threading
    from asgiref.sync import sync_to_async

    def place(events, n, fails):
        try:
            with transaction.atomic():
                Placed(n=n).dispatch_sync()
                assert n not in dispatched(events)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        connection.close()

    async def main():
        with fake() as events:
            await asyncio.gather(*(
                sync_to_async(place, thread_sensitive=False)(events, n, n % 2) for n in range(6)
            ))
            assert len(await Placed(n=10).dispatch()) == 1  # no transaction here
            assert sorted(dispatched(events)) == [0, 2, 4, 10]

    asyncio.run(main())
    """
    )


def test_broker_that_is_away_at_the_commit_is_logged_and_fails_no_request(run):
    out = run(
        AFTER_COMMIT
        + """
    import logging
    logging.basicConfig(level=logging.WARNING)
    with transaction.atomic():
        for n in range(3):
            assert Placed(n=n).dispatch_sync() == ()
    assert sync.rescued() == 3
    sync.close()
    """,
        eventbus='{"NATS_URL": "nats://127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": 0.2}',
    )
    assert out.count("event 'dj.placed' could not be sent to orders after the commit") == 1


def test_relay_connects_with_the_options_of_the_database(run):
    run("""
    from django.db import connections
    from eventbus.integrations.django.management.commands.eventbus_relay import database_url
    connections.databases["other"] = {
        **connections.databases["default"], "ENGINE": "django.db.backends.postgresql",
        "NAME": "shop", "USER": "u", "PASSWORD": "p@/ss", "HOST": "db", "PORT": "5433",
        "OPTIONS": {"sslmode": "require", "connect_timeout": 5, "pool": True,
                    "options": "-c search_path=shop"},
    }
    import sqlalchemy as sa
    url = sa.make_url(database_url("other"))
    assert (url.password, url.host, url.port, url.database) == ("p@/ss", "db", 5433, "shop")
    assert dict(url.query) == {
        "sslmode": "require", "connect_timeout": "5", "options": "-c search_path=shop"
    }, url.query
    """)


BY_OUTBOX = """
    from django.db.transaction import TransactionManagementError
    from eventbus.integrations.django.models import OutboxRow

    @broadcasts("orders.{pk}", fields=["status"], outbox=True)
    class Order(models.Model):
        status = models.CharField(max_length=20)

        class Meta:
            app_label = "eventbus"

    def create_tables(using="default"):
        with django.db.connections[using].schema_editor() as editor:
            editor.create_model(Order)
            editor.create_model(OutboxRow)

    def rows(using="default"):
        rows = OutboxRow.objects.using(using).order_by("id")
        return [(row.event, row.channel, bytes(row.payload)) for row in rows]

    def names(using="default"):
        return [event for event, _, _ in rows(using)]
"""


def test_events_of_a_model_are_rows_of_the_outbox_in_the_transaction_of_the_change(run):
    run(
        BY_OUTBOX
        + """
    create_tables()
    with fake() as events:
        with transaction.atomic():
            order = Order.objects.create(status="new")
            assert names() == ["OrderCreated"]
            try:
                with transaction.atomic():
                    order.status = "lost"
                    order.save()
                    assert names() == ["OrderCreated", "OrderUpdated"]
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            assert names() == ["OrderCreated"]
            order.status = "shipped"
            order.save(update_fields=["status"])
        Order.objects.get_or_create(pk=7, defaults={"status": "new"})  # has a transaction
        order.delete()  # has one, too
        events.assert_nothing_dispatched()
    assert [(event, channel) for event, channel, _ in rows()] == [
        ("OrderCreated", "orders.1"), ("OrderUpdated", "orders.1"), ("OrderCreated", "orders.7"),
        ("OrderDeleted", "orders.1"),
    ]
    assert b'"status":"shipped"' in rows()[1][2]
    """
    )


def test_model_with_the_outbox_is_saved_within_a_transaction_only(run):
    out = run(
        BY_OUTBOX
        + """
    create_tables()
    for save in (
        lambda: Order.objects.create(status="new"),
        lambda: Order(status="new").save(),
        lambda: Order.objects.update_or_create(pk=1, defaults={"status": "new"}) and 1 / 0,
    ):
        try:
            save()
        except TransactionManagementError as exc:
            print(exc)
        except ZeroDivisionError:
            print("update_or_create has a transaction")
    assert (Order.objects.count(), names()) == (1, ["OrderCreated"])
    """
    )
    assert out.count("save it within `with transaction.atomic():`") == 2
    assert "update_or_create has a transaction" in out


def test_proxy_of_a_model_with_the_outbox_is_changed_within_a_transaction_only(run):
    run(
        BY_OUTBOX
        + """
    class Archived(Order):
        class Meta:
            proxy = True
            app_label = "eventbus"

    create_tables()
    try:
        Archived.objects.create(status="new")
    except TransactionManagementError as exc:
        assert "Archived broadcasts its changes by way of the outbox" in str(exc)
    else:
        raise AssertionError("it was saved")
    assert not Order.objects.exists()
    with transaction.atomic():
        archived = Archived.objects.create(status="new")
        archived.save()
    archived.delete()
    assert names() == ["OrderCreated", "OrderUpdated", "OrderDeleted"]
    """
    )


def test_outbox_of_a_model_is_in_the_database_of_the_change(run):
    run(
        BY_OUTBOX
        + """
    from django.db import connections
    connections.settings["other"] = dict(connections.settings["default"])
    create_tables()
    create_tables("other")
    with transaction.atomic(using="other"):
        Order(status="new").save(using="other")
        try:
            Order(status="new").save()  # that database has no transaction
        except TransactionManagementError:
            pass
        else:
            raise AssertionError("it was saved")
    assert (names(), names("other")) == ([], ["OrderCreated"])
    connections["other"].close()
    """
    )


async def test_relay_publishes_the_events_of_a_model(run, settings, tmp_path):
    eventbus = {"NATS_URL": settings.nats_url, "BROADCAST_CHANNELS_PREFIX": settings.namespace,
                "BROADCAST_HISTORY_BYTES": settings.history_bytes}  # fmt: skip
    run(
        f"connection.settings_dict['NAME'] = {str(tmp_path / 'shop.db')!r}\n"
        + textwrap.dedent(BY_OUTBOX)
        + textwrap.dedent("""
    from eventbus import EventBus
    from eventbus.integrations.django.conf import bus_settings
    from eventbus.integrations.django.management.commands.eventbus_relay import database_url
    from eventbus.outbox import Relay
    from eventbus.outbox.database import DatabaseOutbox, engine_of
    from eventbus.outbox.table import new_table
    import asyncio

    create_tables()
    with transaction.atomic():
        order = Order.objects.create(status="new")
        order.status = "shipped"
        order.save()
    connection.close()

    async def relay():
        engine = engine_of(database_url())
        async with EventBus(bus_settings()) as bus:
            assert await Relay(DatabaseOutbox(engine, new_table()), bus).drain() == 2
        await engine.dispose()

    asyncio.run(relay())
    """),
        eventbus=repr(eventbus),
    )
    async with EventBus(settings) as bus:
        page = await bus.history("orders.1")
    assert [(each.event, each.data["status"]) for each in page.messages] == [
        ("OrderCreated", "new"), ("OrderUpdated", "shipped"),
    ]  # fmt: skip


def test_tests_of_an_application_see_what_its_commits_send(run):
    out = run(
        AFTER_COMMIT
        + BY_OUTBOX
        + """
    import unittest
    from django.test import TestCase, TransactionTestCase
    from django.test.utils import setup_test_environment
    setup_test_environment()
    create_tables()

    def place(fails=False):
        with transaction.atomic():
            Placed(n=1).dispatch_sync()
            Order.objects.create(status="new")
            transaction.set_rollback(fails)

    class InOneTransaction(TestCase):
        def test_nothing_is_sent_without_a_commit(self):
            with fake() as events:
                place()
                events.assert_nothing_dispatched()
            assert names() == ["OrderCreated"]

        def test_captured_callbacks_send(self):
            with fake() as events, self.captureOnCommitCallbacks(execute=True):
                place()
                place(fails=True)
            events.assert_dispatched(Placed, times=1)
            assert names() == ["OrderCreated"]

    class WithCommits(TransactionTestCase):
        def test_commit_sends(self):
            with fake() as events:
                place()
                place(fails=True)
            events.assert_dispatched(Placed, times=1)
            assert names() == ["OrderCreated"]

    unittest.main(argv=["tests"], exit=False, verbosity=2)
    """
    )
    assert "Ran 3 tests" in out
    assert out.rstrip().endswith("OK")


def test_model_with_the_outbox_needs_the_app(tmp_path):
    program = """
    import django
    from django.conf import settings
    settings.configure(INSTALLED_APPS=["django.contrib.contenttypes"])
    django.setup()
    from django.db import models
    from eventbus.integrations.django import broadcasts
    @broadcasts("orders.{pk}", fields=[], outbox=True)
    class Order(models.Model):
        class Meta:
            app_label = "contenttypes"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True,
        text=True, timeout=150, check=False,
    )  # fmt: skip
    assert "outbox=True needs 'eventbus.integrations.django' in INSTALLED_APPS" in done.stderr


UNDER_ASGI = """
    import asyncio
    from asgiref.sync import async_to_sync, sync_to_async
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse
    from django.urls import path
    from eventbus import ShouldBroadcast, listen, sync

    connection.settings_dict["NAME"] = "shop.db"  # memory belongs to one thread
    settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = __name__, ["*"]
    settings.SECRET_KEY = "of a test"

    class Placed(Event, ShouldBroadcast, channel="orders.{n}", name="dj.placed"):
        n: int

    class Order(models.Model):
        class Meta:
            app_label = "eventbus"

    def get(path):
        async def main():
            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
                "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
                "scheme": "http", "server": ("x", 80), "client": ("x", 1), "root_path": "",
            }
            requests, sent = asyncio.Queue(), []
            requests.put_nowait({"type": "http.request", "body": b"", "more_body": False})

            async def send(message):
                sent.append(message)

            await get_asgi_application()(scope, requests.get, send)
            assert sent[0]["status"] == 200, sent

        asyncio.run(main())
"""


def test_async_listener_of_a_sync_view_under_asgi_uses_the_database(run):
    """It would wait for the thread of the request, in which the view waits for the listener."""
    run(
        UNDER_ASGI
        + """
    def view(request):
        Placed(n=1).dispatch_sync()
        return HttpResponse("")

    def by_async_to_sync(request):
        async_to_sync(Placed(n=2).dispatch)()
        return HttpResponse("")

    async def async_view(request):
        await Placed(n=3).dispatch()
        return HttpResponse("")

    urlpatterns = [
        path("view", view), path("by_async_to_sync", by_async_to_sync), path("async", async_view)
    ]
    heard = []

    @listen(Placed)
    async def count(event):
        heard.append((event.n, await Order.objects.acount()))
        await sync_to_async(lambda: connection.close())()

    with connection.schema_editor() as editor:
        editor.create_model(Order)
    for each in ("/view", "/by_async_to_sync", "/async"):
        get(each)
    assert heard == [(1, 0), (2, 0), (3, 0)], heard
    sync.close()
    connection.close()
    """
    )


def test_listener_of_the_documentation_uses_the_database(run):
    section = PAGE.read_text("utf-8").partition("\n## Listeners that use the database\n")[2]
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL
    )
    run(
        textwrap.dedent("""
    from eventbus import ShouldBroadcast, sync
    connection.settings_dict["NAME"] = "shop.db"  # memory belongs to one thread

    class OrderShipped(
        Event, ShouldBroadcast, channel="orders", name="dj.shipped", after_commit=True
    ):
        order_id: int

    class Order(models.Model):
        status = models.CharField(max_length=20)

        class Meta:
            app_label = "eventbus"

    with connection.schema_editor() as editor:
        editor.create_model(Order)
    """)
        + block
        + textwrap.dedent("""
    with transaction.atomic():
        order = Order.objects.create(status="new")
        OrderShipped(order_id=order.pk).dispatch_sync()
    order.refresh_from_db()
    assert order.status == "shipped"
    sync.close()
    connection.close()
    """)
    )


def test_log_says_how_a_plain_listener_can_use_the_database(run):
    out = run("""
    from eventbus import ShouldBroadcast, listen, sync
    from eventbus.integrations.django.models import OutboxRow

    class Placed(Event, ShouldBroadcast, channel="orders", name="dj.placed"):
        n: int

    @listen(Placed)
    def count(event):
        OutboxRow.objects.count()

    Placed(n=1).dispatch_sync()
    sync.close()
    """)
    assert "SynchronousOnlyOperation" in out
    assert "await asyncio.to_thread(function, event)" in out
