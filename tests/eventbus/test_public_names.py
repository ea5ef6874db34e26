"""The names of `eventbus`, which are imported when they are first used."""

import subprocess
import sys

import pytest

import eventbus


def modules_after(code):
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True, text=True, check=True, timeout=150,
    )  # fmt: skip
    return set(shown.stdout.split())


def test_import_of_the_package_alone_loads_nothing_else():
    loaded = modules_after("import eventbus")
    assert {name for name in loaded if name.startswith("eventbus")} == {"eventbus"}
    assert loaded & {"asyncio", "msgspec", "ssl"} == set()


def test_bus_loads_no_driver_and_no_registry_of_packages():
    loaded = modules_after("from eventbus import EventBus, Event, Worker")
    unused = {"importlib.metadata", "eventbus.drivers.stack", "eventbus.server", "nats", "redis"}
    assert loaded & unused == set()


def test_each_name_is_an_attribute_and_stays_the_same():
    for name in eventbus.__all__:
        value = getattr(eventbus, name)
        assert getattr(eventbus, name) is value
        assert name in vars(eventbus)
    assert set(eventbus.__all__) <= set(dir(eventbus))


def test_all_names_can_be_imported_at_once_and_by_threads():
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import eventbus\n"
        "names = eventbus.__all__ * 4\n"
        "with ThreadPoolExecutor(16) as pool:\n"
        "    values = list(pool.map(lambda name: getattr(eventbus, name), names))\n"
        "from eventbus import *\n"
        "assert len({id(value) for value in values}) == len(eventbus.__all__)\n"
    )
    assert "eventbus.bus" in modules_after(code)


def test_unknown_name_is_an_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'eventbus' has no attribute 'Evnt'"):
        eventbus.Evnt  # noqa: B018
    with pytest.raises(ImportError, match="Evnt"):
        exec("from eventbus import Evnt")
