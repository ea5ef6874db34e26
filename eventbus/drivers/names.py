"""The names of drivers, and those that the settings name."""

from typing import Final

from eventbus.config import Settings

__all__ = ["canonical_name", "drivers_of"]

_ALIASES: Final = {"websocket": "nats"}


def canonical_name(name: str) -> str:
    """Resolve an alias of a driver's name."""
    return _ALIASES.get(name, name)


def drivers_of(settings: Settings) -> tuple[str, ...]:
    """The names of the drivers that carry messages: those of the stack, or the one driver."""
    driver = canonical_name(settings.driver)
    return tuple(map(canonical_name, settings.stack)) if driver == "stack" else (driver,)
