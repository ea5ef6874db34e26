"""Which drivers there are: built in, registered, installed; and objects that are not drivers."""

import sys

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers import registry
from eventbus.drivers.base import Capability
from eventbus.drivers.memory import MemoryDriver
from eventbus.drivers.registry import create, create_driver, driver_names, register, unregister
from eventbus.errors import ConfigError

BUILT_IN = ("memory", "nats", "redis", "log", "stack", "null")


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def registered():
    """Registers drivers, and takes them back."""
    names = []

    def add(name, factory):
        register(name, factory)
        names.append(name)

    yield add
    for name in names:
        unregister(name)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Leaves a package with drivers, as an installer does."""
    packages = []

    def install(package, entries, source=""):
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{entries}\n")
        packages.append(package)

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for package in packages:
        sys.modules.pop(package, None)


def memory(_settings):
    return MemoryDriver()


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_built_in_driver_is_created_by_its_name_and_says_it(name):
    settings = Settings(driver=name, stack=("memory", "null"))
    assert create_driver(settings).name == name


def test_all_names_are_listed(registered, installed):
    registered("mine", memory)
    installed("theirs", "kafka = theirs:Driver")
    assert driver_names() == (*BUILT_IN, "mine", "kafka")


async def test_websocket_is_nats_wherever_a_driver_is_named(settings):
    assert create("websocket", settings).name == "nats"


async def test_registered_driver_is_chosen_by_the_setting(registered):
    given = []

    def factory(settings):
        given.append(settings)
        return MemoryDriver()

    registered("mine", factory)
    async with EventBus.from_env({"BROADCAST_DRIVER": "mine"}) as bus:
        assert (await bus.publish("a", "b", 1)).offset == 1
    assert given == [Settings(driver="mine")]


def test_bus_registers_drivers_too(registered):
    EventBus.register_driver("mine", memory)
    registered("mine", memory)
    assert "mine" in driver_names()
    unregister("mine")
    unregister("mine")
    assert "mine" not in driver_names()


@pytest.mark.parametrize("name", [*BUILT_IN, "websocket"])
def test_name_of_a_built_in_driver_cannot_be_registered(name):
    with pytest.raises(ConfigError, match=f"'{name}' is the name of a built-in driver"):
        register(name, memory)


@pytest.mark.parametrize("name", ["", "Mine", "a,b", "1st", "a b", "ü", "x" * 33, "all\n"])
def test_name_that_a_setting_could_not_name_cannot_be_registered(name):
    with pytest.raises(ConfigError, match="not a driver's name: 1 to 32 of a-z"):
        register(name, memory)


def test_two_factories_cannot_have_one_name(registered):
    registered("mine", memory)
    registered("mine", memory)
    with pytest.raises(ConfigError, match="'mine' is already registered with another factory"):
        register("mine", lambda _settings: MemoryDriver())


def test_factory_must_be_callable():
    with pytest.raises(ConfigError, match="is not callable"):
        register("mine", MemoryDriver())
    assert "mine" not in driver_names()


def test_installed_driver_with_a_built_in_name_is_reported_and_not_used(installed, caplog):
    installed("theirs", "memory = theirs:Driver")
    assert type(create_driver(Settings(driver="memory"))) is MemoryDriver
    assert "theirs:Driver has the name of the built-in driver memory" in caplog.text


def test_two_packages_that_offer_one_name_are_both_named(installed):
    installed("one", "kafka = one:Driver")
    installed("two", "kafka = two:Driver")
    with pytest.raises(ConfigError, match=r"'kafka' is offered by several packages: one:.* two:D"):
        create_driver(Settings(driver="kafka"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise RuntimeError('no licence')", "theirs:make cannot be loaded: no licence"),
        ("", "theirs:make cannot be loaded: .*make"),
        ("make = 7", "theirs:make cannot be created: TypeError"),
        ("def make(): ...", "theirs:make cannot be created: TypeError"),
        ("def make(settings): raise OSError('no key')", "cannot be created: OSError: no key"),
        ("def make(settings): ...", "theirs:make has no name: None"),
        ("async def make(settings): ...", "is created by a coroutine function"),
    ],
)
def test_entry_point_that_gives_no_driver_is_named_with_what_is_wrong(installed, source, expected):
    installed("theirs", "kafka = theirs:make", source)
    with pytest.raises(ConfigError, match=f"BROADCAST_DRIVER='kafka': .*{expected}") as caught:
        create_driver(Settings(driver="kafka"))
    assert caught.value.variable == "BROADCAST_DRIVER"


def test_setting_that_a_factory_refuses_is_reported_in_its_own_words(registered):
    def factory(_settings):
        raise ConfigError("KAFKA_URL is missing", variable="KAFKA_URL")

    registered("mine", factory)
    with pytest.raises(ConfigError, match=r"^KAFKA_URL is missing$") as caught:
        create_driver(Settings(driver="mine"))
    assert caught.value.variable == "KAFKA_URL"


class Lacking:
    """What a driver has, but for its methods."""

    name = "lacking"
    capabilities = frozenset({Capability.HISTORY, Capability.GROUPS})
    is_connected = False
    open = None

    async def publish(self, subject, payload, headers=None): ...


def test_object_that_lacks_methods_is_refused_naming_each(registered):
    registered("mine", lambda _settings: Lacking())
    with pytest.raises(ConfigError, match="lacks open, subscribe, aclose, read, subscribe_group"):
        create_driver(Settings(driver="mine"))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", 7, "has no name"),
        ("capabilities", {Capability.HISTORY}, "has no capabilities, a frozenset"),
        ("capabilities", frozenset({"history"}), "has no capabilities, a frozenset"),
        ("is_connected", None, "lacks is_connected"),
    ],
)
def test_object_with_a_wrong_field_is_refused(registered, field, value, expected):
    driver = MemoryDriver()
    setattr(driver, field, value)
    registered("mine", lambda _settings: driver)
    with pytest.raises(ConfigError, match=expected):
        create_driver(Settings(driver="mine"))


def test_redis_without_its_package_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("eventbus.drivers.redis")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"pip install 'eventbus\[redis\]'"):
        create_driver(Settings(driver="redis"))
