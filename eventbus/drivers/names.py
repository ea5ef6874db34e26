"""The names of drivers, and those that the settings name."""

from typing import Final

from eventbus.config import Settings

__all__ = ["canonical_name", "drivers_of"]

_ALIASES: Final = {"websocket": "nats"}


def canonical_name(name: str) -> str:
    """Resolve an alias of a driver's name."""
    return _ALIASES.get(name, name)


def drivers_of(settings: Settings, name: str | None = None) -> tuple[str, ...]:
    """The drivers that open with the driver of that name, that of the settings when None.

    A stack opens others, and any other driver only itself.
    """
    name = canonical_name(name or settings.driver)
    return tuple(map(canonical_name, settings.stack)) if name == "stack" else (name,)
