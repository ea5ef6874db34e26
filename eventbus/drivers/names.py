"""The names of drivers, and those that the settings name."""

from eventbus.config import DRIVER_ALIASES, Settings

__all__ = ["canonical_name", "drivers_of"]


def canonical_name(name: str) -> str:
    """Resolve an alias of a driver's name."""
    return DRIVER_ALIASES.get(name, name)


def drivers_of(settings: Settings, name: str | None = None) -> tuple[str, ...]:
    """The drivers that open with the driver of that name, that of the settings when None.

    A stack opens others, and any other driver only itself.
    """
    name = canonical_name(name or settings.driver)
    return tuple(map(canonical_name, settings.stack)) if name == "stack" else (name,)
