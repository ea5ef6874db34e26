"""`eventbus schema`: what its commands print and write, and how they fail."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EVENTS = '''
from eventbus import ClientEvent, Event, ShouldBroadcast, ShouldQueue


class OrderShipped(Event, ShouldBroadcast, channel="orders.{order_id}", name="order.shipped"):
    """An order is on its way."""

    order_id: int
    """Whose."""
    carrier: str = "DHL"


class Typing(Event, ClientEvent, channel="chat.*", name="typing"):
    is_typing: bool


class SendInvoice(Event, ShouldQueue, queue="mail"):
    order_id: int


class StockLow(Event):
    article: str
'''


@pytest.fixture
def shop(tmp_path):
    """A folder with an application's events."""
    (tmp_path / "shop.py").write_text(EVENTS)
    return tmp_path


@pytest.fixture
def run(run_command, shop):
    def run(*arguments, cwd=shop, **environment):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **environment}
        return run_command("schema", *arguments, cwd=cwd, env=env)

    return run


def change(shop, before, after):
    text = (shop / "shop.py").read_text()
    assert before in text
    (shop / "shop.py").write_text(text.replace(before, after))


def test_list_shows_every_event(run):
    done = run("list", "--app", "shop")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["event", "channels", "kind", "version", "fields", "queue"],
        ["SendInvoice", "-", "queued", "1", "order_id", "mail"],
        ["StockLow", "-", "local", "1", "article", "-"],
        ["client-typing", "chat.*", "client", "1", "is_typing", "-"],
        ["order.shipped", "orders.{order_id}", "broadcast", "1", "order_id,", "carrier", "-"],
    ]
    rows = json.loads(run("list", "--app", "shop", "--json").stdout)
    assert rows[3]["channels"] == ["orders.{order_id}"]
    assert rows[3]["type"] == "shop.OrderShipped"


@pytest.mark.parametrize("command", [["list"], ["show", "x"], ["export", "--format", "asyncapi"],
                                     ["check"], ["lock"]])  # fmt: skip
def test_there_is_no_default_application(run, shop, command):
    done = run(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no application is named: give --app shop.events, or write app =" in done.stderr
    assert not (shop / "schemas").exists()


def test_shared_events_are_in_the_catalogue_of_an_application_that_imports_them(run, shop):
    rows = json.loads(run("list", "--json", "--app", "eventbus.notifications").stdout)
    assert [row["event"] for row in rows] == ["alert", "notification"]


@pytest.mark.parametrize("name", ["order.shipped", "OrderShipped"])
def test_show_describes_one_event(run, name):
    done = run("show", name, "--app", "shop")
    assert done.returncode == 0, done.stderr
    assert "order.shipped  broadcast event, version 1\n\nAn order is on its way." in done.stdout
    assert "channels: orders.{order_id}" in done.stdout
    assert "order_id  integer            Whose.\n" in done.stdout
    assert 'carrier   string   optional  default: "DHL"\n' in done.stdout
    output = json.loads(run("show", name, "--app", "shop", "--json").stdout)
    assert output["$defs"]["OrderShipped"]["required"] == ["order_id"]


def test_show_names_what_there_is(run):
    done = run("show", "order.lost", "--app", "shop")
    assert (done.returncode, done.stdout) == (1, "")
    assert "unknown event 'order.lost'; known: SendInvoice, StockLow" in done.stderr


def test_export_is_the_same_in_every_process(run):
    for format_ in ("asyncapi", "jsonschema", "typescript"):
        arguments = ("export", "--format", format_, "--app", "shop", "--app", "schemas")
        first, second = (run(*arguments, PYTHONHASHSEED=seed) for seed in ("1", "2"))
        assert first.returncode == 0, first.stderr
        assert first.stdout == second.stdout
        assert "order.shipped" in first.stdout


def test_export_writes_a_file(run, shop):
    arguments = ("export", "--format", "asyncapi", "--app", "shop", "--output", "events.json")
    done = run(*arguments, "--edge", "wss://live.example.com/ws", "--title", "Shop")
    assert (done.returncode, done.stdout) == (0, "")
    document = json.loads((shop / "events.json").read_text())
    assert document["info"]["title"] == "Shop"
    assert document["servers"]["edge"]["host"] == "live.example.com"
    assert document["servers"]["api"]["protocol"] == "https"


@pytest.mark.parametrize(
    ("arguments", "code", "fault"),
    [
        (["--format", "yaml"], 2, "yaml"),
        (["--format", "asyncapi", "--edge", "http://x"], 2, "allowed: ws://host:port"),
        (["--format", "asyncapi", "--nats", "nats://u:secret@x"], 2, "without credentials"),
        (["--format", "typescript", "--output", "no/such/folder.ts"], 1, "No such file"),
        (["--format", "typescript", "--app", "nowhere"], 2, "there is no such module"),
    ],
)
def test_export_says_what_is_wrong(run, arguments, code, fault):
    done = run("export", *arguments, *(() if "--app" in arguments else ("--app", "shop")))
    assert (done.returncode, done.stdout) == (code, "")
    assert fault in done.stderr
    assert "secret" not in done.stderr


def test_type_without_a_schema_is_named(run, shop):
    change(shop, "article: str", "article: str\n\nclass Bad(Event, ShouldBroadcast, "
           'channel="a"):\n    what: complex')  # fmt: skip
    done = run("export", "--format", "jsonschema", "--app", "shop")
    assert done.returncode == 2
    assert "complex" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_reports_breaking_changes_and_fails(run, shop):
    assert run("lock", "--app", "shop").stdout == "wrote schemas/schemas.lock.json with 3 events\n"
    same = run("check", "--app", "shop", "--locked")
    assert (same.returncode, same.stdout) == (0, "no changes\n")

    change(shop, "is_typing: bool", "is_typing: bool | None")
    change(shop, "article: str", "article: bytes")  # local: not part of any document
    done = run("check", "--app", "shop")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].split(maxsplit=3) == [
        *("breaking", "client-typing", "is_typing", "can now be null  readers"),
    ]
    assert "raise the version of the breaking events" in done.stderr
    output = json.loads(run("check", "--app", "shop", "--json").stdout)
    assert output["breaking"]
    assert output["changes"][0]["breaks"] == ["readers"]

    refused = run("lock", "--app", "shop")
    assert refused.returncode == 1
    assert "nothing was written" in refused.stderr
    change(shop, 'name="typing"', 'name="typing", version=2')
    raised = run("check", "--app", "shop")
    assert raised.returncode == 0, raised.stderr
    assert "new version" in raised.stdout
    assert run("lock", "--app", "shop").returncode == 0
    assert run("check", "--app", "shop", "--locked").returncode == 0


def test_check_can_demand_a_lock_that_is_up_to_date(run, shop):
    run("lock", "--app", "shop", "--lock", "my.lock.json")
    change(shop, 'carrier: str = "DHL"', 'carrier: str = "DHL"\n    weight: float = 0.0')
    arguments = ("check", "--app", "shop", "--lock", "my.lock.json")
    assert run(*arguments).returncode == 0
    done = run(*arguments, "--locked")
    assert done.returncode == 1
    assert "optional field added" in done.stdout
    assert "my.lock.json is not up to date: run `eventbus schema lock`" in done.stderr


def test_check_without_a_lock_says_how_to_make_one(run):
    done = run("check", "--app", "shop")
    assert done.returncode == 1
    assert "does not exist: create the lock file with `eventbus schema lock`" in done.stderr


def test_lock_by_force(run, shop):
    run("lock", "--app", "shop")
    (shop / "schemas/schemas.lock.json").write_text("<<<<<<< ours")
    assert "is not a lock file" in run("lock", "--app", "shop").stderr
    assert run("lock", "--app", "shop", "--force").returncode == 0
    assert run("check", "--app", "shop", "--locked").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "module", "name", "channel"),
    [
        (["OrderShipped"], "order_shipped", "order.shipped", "order.{order_id}"),
        (["invoice.paid-late"], "invoice_paid_late", "invoice.paid.late", "invoice.{invoice_id}"),
        (["Ping", "--channel", "general"], "ping", "ping", "general"),
        (["HTTPFailed", "--channel", "a.{b}.{c}"], "http_failed", "http.failed", "a.{b}.{c}"),
    ],
)
def test_new_event_is_there_and_its_test_passes(run, tmp_path, arguments, module, name, channel):
    folder = tmp_path / "app"
    folder.mkdir()
    done = run("new", *arguments, "--package", "my.events", cwd=folder)
    assert done.returncode == 0, done.stderr
    test = f"tests/schemas/test_{module}.py"
    assert done.stdout.splitlines() == [
        f"wrote my/events/{module}.py",
        f"wrote {test}",
        "wrote my/events/__init__.py",
        f"Run its test: pytest {test}",
    ]
    tried = run_pytest(test, cwd=folder)
    assert "2 passed" in tried.stdout, tried.stdout
    [row] = json.loads(run("list", "--app", "my.events", "--json", cwd=folder).stdout)
    assert (row["event"], row["channels"]) == (name, [channel])
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "E,F,I", "--line-length", "100", "."],
        cwd=folder, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert linted.returncode == 0, linted.stdout


def run_pytest(*arguments, cwd):
    """The program itself: `python -m pytest` would add the working folder to the import path."""
    return subprocess.run(
        [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider", *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=150,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
@pytest.mark.parametrize("tests", ["tests", "tests/deep/down", "../elsewhere"])
def test_test_of_a_new_event_passes_wherever_it_is(run, tmp_path, mode, tests):
    folder = tmp_path / "app"
    (folder / "tests").mkdir(parents=True)
    (folder / "tests/__init__.py").touch()
    (folder / "tests/conftest.py").touch()
    done = run("new", "OrderShipped", "--package", "my", "--tests", tests, cwd=folder)
    assert done.returncode == 0, done.stderr
    tried = run_pytest("--import-mode", mode, f"{tests}/test_order_shipped.py", cwd=folder)
    assert "2 passed" in tried.stdout, tried.stdout


def test_test_of_a_new_event_leaves_the_import_path_of_an_installed_package_alone(run, tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    path = f"{ROOT}{os.pathsep}{folder}"
    run("new", "OrderShipped", "--package", "my", cwd=folder, PYTHONPATH=path)
    assert "sys" not in (folder / "tests/schemas/test_order_shipped.py").read_text()


def test_new_never_writes_over_what_exists(run, tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    assert run("new", "OrderShipped", "--package", "my", cwd=folder).returncode == 0
    module = folder / "my/order_shipped.py"
    module.write_text("# mine")
    arguments = ("new", "OrderShipped", "--package", "my", "--channel", "general")
    done = run(*arguments, cwd=folder)
    assert done.returncode == 1
    assert "already exists, and is not overwritten" in done.stderr
    assert module.read_text() == "# mine"
    other = run("new", "OrderLost", "--package", "my", cwd=folder)
    reported = "Now import it in my/__init__.py: from my.order_lost import OrderLost"
    assert reported in other.stdout


def test_new_refuses_a_package_beside_a_module_of_its_name(run, tmp_path):
    (tmp_path / "my/events/order_shipped").mkdir(parents=True)
    (tmp_path / "my/events/order_shipped/__init__.py").touch()
    (tmp_path / "my/rules.py").touch()
    before = sorted(tmp_path.rglob("*"))
    for package, fault in {
        "shop": "shop is a module (",
        "shop.inner": "shop is a module (",
        "my.rules": "my.rules is a module (",
        "json": "json is a package outside of this project",
        "sys": "sys is a module (",
        "my.events": "already exists",
    }.items():
        done = run("new", "OrderShipped", "--package", package, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1 if package == "my.events" else 2, "")
        assert fault in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_new_follows_a_package_to_where_it_is(run, tmp_path):
    package = tmp_path / "src/shop_live"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    path = f"{ROOT}{os.pathsep}{tmp_path / 'src'}"
    done = run("new", "Ping", "--package", "shop_live", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert (package / "ping.py").exists()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["order shipped"], "is not an event name"),
        (["Bestellung\u00e4"], "is not an event name"),
        (["class"], "a Python keyword"),
        (["Order", "--channel", "orders.*"], "--channel"),
        (["Order", "--channel", "orders..x"], "--channel"),
        (["Order", "--package", "../x"], "--package"),
        (["Order"], "no package is set: use --package"),
    ],
)
def test_new_refuses_invalid_names(run, tmp_path, arguments, fault):
    options = () if arguments == ["Order"] or "--package" in arguments else ("--package", "my")
    done = run("new", *arguments, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert fault in done.stderr
    assert not (tmp_path / "my").exists()


def test_own_lock_file_is_up_to_date(run):
    assert importlib.util.find_spec("schemas")
    done = run("check", "--locked", cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "no changes\n"), done.stderr


WIDE_AND_NAIVE = """
import datetime
import enum
from typing import Annotated, Literal
import msgspec
from eventbus import Event, ShouldBroadcast

class Code(enum.IntEnum):
    SMALL = 1
    HUGE = 2**60

class Line(msgspec.Struct):
    sku: int
    lines: "list[Line]" = []

class Recorded(Event, ShouldBroadcast, channel="general", name="recorded"):
    bare: int
    above: Annotated[int, msgspec.Meta(ge=0, le=2**60)]
    half: Annotated[int, msgspec.Meta(ge=0)]
    chosen: Literal[1, 9007199254740993]
    code: Code
    optional: int | None
    lines: list[Line]
    counts: dict[str, int]
    pair: tuple[int, str]
    at: datetime.datetime
    times: list[datetime.datetime | None]
    safe: Annotated[int, msgspec.Meta(ge=-(2**53 - 1), le=2**53 - 1)] = 0
    open_ended: Annotated[int, msgspec.Meta(gt=-(2**53), lt=2**53)] = 0
    small: Literal[1, 2] = 1
    flag: bool = True
    zoned: Annotated[datetime.datetime, msgspec.Meta(tz=True)] | None = None
    local: Annotated[datetime.datetime, msgspec.Meta(tz=False)] | None = None
    day: datetime.date | None = None

class Inside(Event, name="inside"):
    bare: int
    at: datetime.datetime
"""


@pytest.mark.parametrize(
    "command", [("lock",), ("check",), ("export", "--format", "typescript")], ids=" ".join
)
def test_fields_that_other_languages_read_differently_are_warned_of(run, shop, command):
    (shop / "shop.py").write_text(WIDE_AND_NAIVE)
    assert run("lock", "--force", "--app", "shop").returncode == 0
    done = run(*command, "--app", "shop")
    assert done.returncode == 0, done.stderr
    wide, naive = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    named = ["bare", "above", "half", "chosen", "code", "optional", "lines[].sku", "counts.*"]
    assert wide.startswith(
        "warning: " + ", ".join(f"recorded.{name}" for name in named) + " and 1 more: JavaScript"
    )
    assert naive.startswith("warning: recorded.at, recorded.times[]: RFC 3339")
    assert "warning" not in done.stdout


def test_catalogue_that_is_portable_is_not_warned_of(run, shop):
    (shop / "shop.py").write_text(
        WIDE_AND_NAIVE.split("    bare: int\n", maxsplit=1)[0].replace("sku: int", "sku: str")
        + "    at: Annotated[datetime.datetime, msgspec.Meta(tz=True)]\n"
        + "    n: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]\n"
    )
    done = run("export", "--format", "asyncapi", "--app", "shop")
    assert (done.returncode, done.stderr) == (0, "")
