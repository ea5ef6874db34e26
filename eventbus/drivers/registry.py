"""The registry of drivers: built-in ones, registered ones, and those of installed packages."""

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import Capability, Driver
from eventbus.errors import ConfigError, EventBusError
from eventbus.user_code import cause_of, guarded, text_of, type_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

__all__ = [
    "ENTRY_POINTS",
    "Factory",
    "canonical_name",
    "check_name",
    "create",
    "create_driver",
    "driver_names",
    "drivers_of",
    "register",
    "unregister",
]

_logger = logging.getLogger(__name__)

Factory = Callable[[Settings], Driver]
"""Creates a driver, not yet open. Raises ConfigError for settings that do not work."""

ENTRY_POINTS: Final = "eventbus.drivers"
"""The entry point group of drivers of other packages: each is a Factory."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_ALIASES: Final = {"websocket": "nats"}
_METHODS: Final = ("open", "publish", "subscribe", "aclose")
_METHODS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "history": ("read",),
    "groups": ("subscribe_group",),
    "consumers": ("consume",),
    "maintenance": ("stored", "purge"),
}
"""The additional methods of a driver with a capability, by the capability's value."""

# Factories import their drivers, so that only the dependencies of the chosen driver are loaded.


def _memory(settings: Settings) -> Driver:
    from eventbus.drivers.memory import MemoryBroker, MemoryDriver  # noqa: PLC0415

    return MemoryDriver(
        MemoryBroker(
            Subjects(settings.namespace),
            history_messages=settings.history_messages,
            history_seconds=settings.history_seconds,
            retention=settings.retention,
        )
    )


def _nats(settings: Settings) -> Driver:
    from eventbus.drivers.nats import NatsDriver  # noqa: PLC0415

    return NatsDriver(settings)


def _redis(settings: Settings) -> Driver:
    try:
        from eventbus.drivers.redis import RedisDriver  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "redis":
            raise
        raise ConfigError(
            "BROADCAST_DRIVER='redis' needs redis-py: pip install 'eventbus[redis]'",
            variable="BROADCAST_DRIVER",
        ) from exc
    return RedisDriver(settings)


def _log(settings: Settings) -> Driver:
    from eventbus.drivers.log import LogDriver  # noqa: PLC0415

    return LogDriver(settings)


def _null(_settings: Settings) -> Driver:
    from eventbus.drivers.null import NullDriver  # noqa: PLC0415

    return NullDriver()


def _stack(settings: Settings) -> Driver:
    from eventbus.drivers.stack import StackDriver  # noqa: PLC0415

    variable = "BROADCAST_STACK"
    names = [canonical_name(name) for name in settings.stack]
    shown = f"{variable}={','.join(settings.stack)!r}"
    allowed = "allowed: two or more names of drivers, except stack, separated by commas"
    if not names:
        raise ConfigError(f"BROADCAST_DRIVER=stack needs {variable}; {allowed}", variable=variable)
    if "stack" in names:
        raise ConfigError(f"{shown}: a stack cannot contain a stack; {allowed}", variable=variable)
    if len(set(names)) < len(names):
        raise ConfigError(f"{shown} names a driver twice; {allowed}", variable=variable)

    def factory(name: str) -> Callable[[], Driver]:
        return lambda: create(name, settings, variable=variable)

    return StackDriver(
        {name: factory(name) for name in names},
        _required(settings, names),
        close_timeout=settings.publish_timeout,
    )


def _required(settings: Settings, names: list[str]) -> list[str] | Literal["any"]:
    required = [canonical_name(name) for name in settings.stack_required]
    if required == ["any"]:
        return "any"
    if required == ["all"]:
        return names
    if not required or not set(required) <= set(names):
        raise ConfigError(
            f"BROADCAST_STACK_REQUIRED={','.join(settings.stack_required)!r}; allowed: all, any, "
            f"or some of the names in BROADCAST_STACK: {', '.join(names)}",
            variable="BROADCAST_STACK_REQUIRED",
        )
    return required


_BUILT_IN: Final[Mapping[str, Factory]] = MappingProxyType(
    {
        "memory": _memory,
        "nats": _nats,
        "redis": _redis,
        "log": _log,
        "stack": _stack,
        "null": _null,
    }
)
_registered: dict[str, Factory] = {}


def _installed() -> "EntryPoints":
    """The entry points of drivers of installed packages."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow, and rarely needed

    return entry_points(group=ENTRY_POINTS)


def canonical_name(name: str) -> str:
    """Resolve an alias of a driver's name."""
    return _ALIASES.get(name, name)


def drivers_of(settings: Settings, name: str | None = None) -> tuple[str, ...]:
    """The drivers that open with the driver of that name, that of the settings when None.

    A stack opens others, and any other driver only itself.
    """
    name = canonical_name(name or settings.driver)
    return tuple(map(canonical_name, settings.stack)) if name == "stack" else (name,)


def driver_names() -> tuple[str, ...]:
    """The names of all drivers: built in, registered, and of installed packages."""
    installed = sorted(_installed().names)
    return tuple(dict.fromkeys((*_BUILT_IN, *_registered, *installed)))


def check_name(name: str, variable: str) -> None:
    """Raises ConfigError, naming `variable`, for an unknown driver."""
    known = name in _ALIASES or name in _BUILT_IN or name in _registered
    if not known and name not in driver_names():
        raise ConfigError(
            f"{variable}={name!r} is not a driver; allowed: {', '.join(driver_names())}, or the "
            f"name of an entry point in the group {ENTRY_POINTS}",
            variable=variable,
        )


def register(name: str, factory: Factory) -> None:
    """Register a driver in this process; `name` is 1 to 32 of a-z 0-9 _ -, a letter first.

    The same factory may be registered again. Raises ConfigError for a name that is not allowed, or
    that a built-in driver or another factory has. It replaces the driver of an installed package.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a driver's name: 1 to 32 of a-z 0-9 _ - are, a letter first"
        )
    if name in _BUILT_IN or name in _ALIASES:
        raise ConfigError(f"{name!r} is the name of a built-in driver: choose another")
    if _registered.get(name, factory) is not factory:
        raise ConfigError(f"a driver {name!r} is already registered with another factory")
    if not callable(factory):
        raise ConfigError(f"the factory of driver {name!r} is not callable: {factory!r}")
    _registered[name] = factory


def unregister(name: str) -> None:
    """Undo `register`; an unknown name is harmless."""
    _registered.pop(name, None)


def create_driver(settings: Settings) -> Driver:
    """The driver that `settings.driver` names, not yet open; raises ConfigError."""
    return create(settings.driver, settings)


def create(name: str, settings: Settings, *, variable: str = "BROADCAST_DRIVER") -> Driver:
    """The driver of that name, not yet open.

    Raises ConfigError, naming `variable`, for a name that no package or several packages offer, for
    a factory that fails, and for one that does not return a driver.
    """
    name = canonical_name(name)
    if (built_in := _BUILT_IN.get(name)) is not None:
        _log_shadowed(name)
        return built_in(settings)
    if (registered := _registered.get(name)) is not None:
        return _make(registered, settings, f"{variable}={name!r}: the registered driver", variable)
    check_name(name, variable)
    entries = tuple(_installed().select(name=name))
    offers = sorted({entry.value for entry in entries})
    if len(offers) > 1:
        raise ConfigError(
            f"{variable}={name!r} is offered by several packages: {', '.join(offers)}; "
            "uninstall all but one",
            variable=variable,
        )
    what = f"{variable}={name!r}: the driver of entry point {offers[0]}"
    try:
        with guarded():
            factory = entries[0].load()
    except Exception as exc:
        raise ConfigError(f"{what} cannot be loaded: {text_of(exc)}", variable=variable) from exc
    return _make(factory, settings, what, variable)


def _log_shadowed(name: str) -> None:
    # Not an error: an installed package must not keep the built-in driver from starting.
    for entry in _installed().select(name=name):
        _logger.error(
            "the entry point %s has the name of the built-in driver %s and is not used: its "
            "package must choose another name",
            entry.value,
            name,
        )


def _make(factory: Any, settings: Settings, what: str, variable: str) -> Driver:
    try:
        with guarded():
            driver = factory(settings)
    except Exception as exc:
        if isinstance(exc, EventBusError) and cause_of(exc) is exc:
            raise
        raise ConfigError(
            f"{what} cannot be created: {type_name(exc)}: {text_of(exc)}", variable=variable
        ) from exc
    if problem := _problem(driver):
        raise ConfigError(f"{what} {problem}; see eventbus.drivers.base.Driver", variable=variable)
    return cast(Driver, driver)


def _problem(driver: Any) -> str:
    """What is wrong with a driver, or an empty string."""
    if inspect.iscoroutine(driver):
        driver.close()
        return "is created by a coroutine function: a plain one is expected"
    capabilities = getattr(driver, "capabilities", None)
    if not isinstance(getattr(driver, "name", None), str):
        return f"has no name: {driver!r}"
    if not isinstance(capabilities, frozenset) or not all(
        isinstance(each, Capability) for each in capabilities
    ):
        return f"has no capabilities, a frozenset of Capability, but {capabilities!r}"
    required = {method for each in capabilities for method in _METHODS_OF.get(each.value, ())}
    methods = (*_METHODS, *sorted(required))
    missing = [name for name in methods if not callable(getattr(driver, name, None))]
    if not isinstance(getattr(driver, "is_connected", None), bool):
        missing.append("is_connected")
    return f"lacks {', '.join(missing)}" if missing else ""
