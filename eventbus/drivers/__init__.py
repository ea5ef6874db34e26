"""Adapters: each carries messages over one system."""

from importlib.metadata import entry_points
from typing import Final, cast

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import Driver
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.errors import ConfigError

__all__ = ["ENTRY_POINTS", "create_driver"]

ENTRY_POINTS: Final = "eventbus.drivers"
"""The entry point group in which other packages offer drivers: callables from Settings."""

_BUILT_IN: Final = ("memory", "nats")


def create_driver(settings: Settings) -> Driver:
    """The driver that `settings.driver` names, not yet open.

    A driver's own dependency is imported here and only for the driver that is chosen. Raises
    ConfigError for a name that is neither ours nor an installed entry point's.
    """
    match settings.driver:
        case "memory":
            return MemoryDriver(
                MemoryBroker(
                    Subjects(settings.namespace),
                    history_messages=settings.history_messages,
                    history_seconds=settings.history_seconds,
                )
            )
        case "nats":
            from eventbus.drivers.nats import NatsDriver  # noqa: PLC0415 - only when chosen

            return NatsDriver(settings)
        case name:
            return _installed(name, settings)


def _installed(name: str, settings: Settings) -> Driver:
    offered = entry_points(group=ENTRY_POINTS)
    for entry in offered.select(name=name):
        try:
            return cast(Driver, entry.load()(settings))
        except (ImportError, AttributeError) as exc:
            raise ConfigError(
                f"BROADCAST_DRIVER={name!r}: the driver {entry.value} cannot be loaded: {exc}",
                variable="BROADCAST_DRIVER",
            ) from exc
    names = ", ".join(dict.fromkeys((*_BUILT_IN, *sorted(offered.names))))
    raise ConfigError(
        f"BROADCAST_DRIVER={name!r} is no driver; allowed: {names}, or the name of an entry point "
        f"in the group {ENTRY_POINTS}",
        variable="BROADCAST_DRIVER",
    )
