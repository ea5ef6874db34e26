"""The plugin as another project has it: in a pytest of its own."""

import sys

import pytest

pytest_plugins = ["pytester"]

EVENT = """
import asyncio
import pytest
from eventbus import Event, ShouldBroadcast
from eventbus.testing import fake

class LampLit(Event, ShouldBroadcast, channel="lamps"):
    number: int
"""


@pytest.fixture
def run(pytester):
    """Run a test file; every warning is an error, as in a strict project."""

    def run(code, *options, mode="auto", **files):
        pytester.makeini(
            f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
        )
        pytester.makepyfile(test_lamps=EVENT + code, **files)
        return pytester.runpytest_subprocess("-W", "error", *options)

    return run


FAKED = """
async def test_async(event_fake):
    await LampLit(number=1).dispatch()
    event_fake.assert_dispatched(LampLit, times=1)

def test_plain(event_fake):
    asyncio.run(LampLit(number=1).dispatch())
    event_fake.assert_dispatched(LampLit, times=1)

def test_recorder_begins_empty(event_fake):
    event_fake.assert_nothing_dispatched()

@pytest.mark.xfail(strict=True, raises=Exception)
async def test_without_it():
    await LampLit(number=1).dispatch()
"""


def test_fixtures_are_there_by_themselves_and_are_described(run):
    result = run("", "--fixtures", "-v")
    names = ("event_fake", "nats_server [[]session scope[]]", "nats_settings", "event_bus",
             "edge_server", "websocket_client")  # fmt: skip
    for name in names:
        result.stdout.fnmatch_lines([f"{name}*-- *eventbus/testing/plugin.py:*"])
    result.stdout.no_fnmatch_line("*no docstring available*plugin.py*")


def test_event_fake_fakes_each_test_by_itself(run):
    run(FAKED).assert_outcomes(passed=3, xfailed=1)


def test_event_fake_works_in_parallel_processes(run):
    code = "@pytest.mark.parametrize('n', range(8))\n" + FAKED.lstrip().replace(
        "(event_fake)", "(event_fake, n)", 1
    )
    run(code, "-n", "2").assert_outcomes(passed=10, xfailed=1)


def test_failure_shows_what_was_dispatched_and_the_line_of_the_test(run):
    result = run("""
async def test_fails(event_fake):
    await LampLit(number=1).dispatch()
    event_fake.assert_dispatched(LampLit, lambda event: event.number == 2)  # the line
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*> *event_fake.assert_dispatched(*# the line",
            "E *LampLit that matches the predicate was dispatched never, expected at least*",
            "E *1. LampLit(number=1) on lamps",
            "test_lamps.py:*: AssertionError",
        ]
    )
    result.stdout.no_fnmatch_line("*recorder.py*")


REAL = """
from eventbus.testing import Refused

{mark}
async def test_memory(websocket_client, event_bus):
    client = await websocket_client("lamps", user="1", grants=["lamps"])
    await LampLit(number=1).dispatch()
    assert (await client.receive())["data"] == {{"number": 1}}
    assert event_bus.driver.name == "memory"

class TestNats:
    @pytest.fixture
    def event_bus_settings(self, nats_settings):
        return nats_settings

    {mark}
    async def test_nats(self, websocket_client, event_bus):
        client = await websocket_client("lamps", user="1", grants=["lamps"])
        await LampLit(number=1).dispatch()
        assert (await client.receive())["data"] == {{"number": 1}}
        assert event_bus.driver.name == "nats"
"""


@pytest.mark.parametrize(
    ("mode", "mark"), [("auto", ""), ("strict", "@pytest.mark.asyncio")], ids=["auto", "strict"]
)
def test_real_parts_work_in_both_modes_of_pytest_asyncio(run, mode, mark):
    run(REAL.format(mark=mark), mode=mode).assert_outcomes(passed=2)


SYNC = """
from eventbus import sync

def view(number):
    LampLit(number=number).dispatch_sync()

async def test_thread_of_an_async_test(websocket_client):
    client = await websocket_client("lamps", user="1", grants=["lamps"])
    await asyncio.to_thread(view, 1)
    assert (await client.receive())["data"] == {"number": 1}

def test_fake(event_fake):
    view(2)
    event_fake.assert_dispatched(LampLit, times=1)

def test_plain_test(sync_event_bus):
    view(3)
    assert [each.data for each in sync_event_bus.history("lamps").messages] == [{"number": 3}]

class TestNats:
    @pytest.fixture
    def event_bus_settings(self, nats_settings):
        return nats_settings

    def test_plain_test(self, sync_event_bus):
        view(4)
        assert sync_event_bus.history("lamps").messages[0].data == {"number": 4}
        assert sync.run(driver) == "nats"

    async def test_thread_of_an_async_test(self, websocket_client):
        client = await websocket_client("lamps", user="1", grants=["lamps"])
        await asyncio.to_thread(view, 5)
        assert (await client.receive())["data"] == {"number": 5}

async def driver():
    from eventbus.events import current
    return current.current_bus().driver.name

def test_plain_test_with_the_async_bus(event_bus, monkeypatch):
    monkeypatch.setenv("BROADCAST_DRIVER", "null")  # its loop does not run: this is the default bus
    assert LampLit(number=6).dispatch_sync()[0].offset is None
    sync.close()
"""


def test_parts_work_for_sync_code(run):
    run(SYNC).assert_outcomes(passed=6)


def test_sync_test_has_the_nats_server_for_any_event_loop(run):
    run("""
from eventbus import EventBus

async def publish(settings):
    async with EventBus(settings) as bus:
        return await bus.publish("lamps", "lit", 1)

def test_first(nats_settings):
    assert asyncio.run(publish(nats_settings)).offset

def test_second(nats_settings, nats_server):
    assert asyncio.run(publish(nats_settings)).offset
    assert nats_server.is_running
""").assert_outcomes(passed=2)


def test_nats_server_takes_further_settings(run):
    run(
        """
from eventbus import EncodingError, EventBus

async def test_limit(nats_settings):
    async with EventBus(nats_settings) as bus:
        with pytest.raises(EncodingError):
            await bus.publish("lamps", "lit", "x" * 10_000)
""",
        conftest="""
import pytest

@pytest.fixture(scope="session")
def nats_server_config():
    return {"max_payload": 4096}
""",
    ).assert_outcomes(passed=1)


def test_rules_of_the_application_hold_at_the_edge(run):
    run(
        """
import msgspec
from eventbus.testing import Refused

@pytest.fixture
def edge_settings(edge_settings):
    return msgspec.structs.replace(edge_settings, app="lamp_rules")

async def test_owner(websocket_client):
    await websocket_client("lamp.1", user="1")
    with pytest.raises(Refused, match="forbidden"):
        await websocket_client("lamp.1", user="2")
""",
        lamp_rules="""
from eventbus_edge import channels

@channels.authorize("lamp.{owner}")
async def is_owner(user, owner):
    return user.user_id == owner
""",
    ).assert_outcomes(passed=1)


def test_plugin_loads_nothing_heavy_until_a_fixture_needs_it(run):
    run("""
import sys

def test_light(event_fake):
    heavy = {"aiohttp", "nats", "edge", "jwt", "typer", "redis"}
    assert heavy.isdisjoint(sys.modules)
""").assert_outcomes(passed=1)


def test_plugin_works_without_pytest_asyncio(pytester):
    """Its import fails here as if it were not installed."""
    pytester.makepyfile(
        sitecustomize="""
import builtins
really = builtins.__import__

def without(name, *rest, **keywords):
    if name == "pytest_asyncio":
        raise ModuleNotFoundError(name=name)
    return really(name, *rest, **keywords)

builtins.__import__ = without
""",
        test_lamps=EVENT
        + """
import sys

def test_fake(event_fake, nats_server):
    assert "pytest_asyncio" not in sys.modules
    asyncio.run(LampLit(number=1).dispatch())
    event_fake.assert_dispatched(LampLit)
    assert nats_server.is_running
""",
    )
    pytester.makeini("[pytest]")
    result = pytester.runpytest_subprocess("-p", "no:asyncio", "-W", "error")
    result.assert_outcomes(passed=1)


def test_library_does_not_load_pytest(pytester):
    code = (
        "import sys, eventbus, eventbus.testing, eventbus.testing.websocket, eventbus.testing.edge;"
        "assert not {'pytest', 'pytest_asyncio'} & set(sys.modules)"
    )
    assert pytester.run(sys.executable, "-W", "error", "-c", code).ret == 0


LIFESPAN = """
import contextlib
import os
from eventbus import EventBus

@contextlib.asynccontextmanager
async def lifespan():
    async with EventBus.from_env() as bus:
        yield bus

async def test_application_with_a_bus_in_its_lifespan(event_fake):
    async with lifespan():
        await LampLit(number=1).dispatch()
    event_fake.assert_dispatched(LampLit, times=1)
    assert not os.path.exists(".eventbus")

def test_in_plain_code(event_fake):
    async def serve():
        async with lifespan():
            await LampLit(number=2).dispatch()
    asyncio.run(serve())
    event_fake.assert_dispatched(LampLit, times=1)
    assert not os.path.exists(".eventbus")
"""


def test_application_that_opens_a_bus_starts_no_server_in_a_faked_test(run):
    run(LIFESPAN).assert_outcomes(passed=2)
