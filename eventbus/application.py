"""The application of a command: the modules that define its events, rules and listeners.

`--app` names it (for an edge EDGE_APP), or else pyproject.toml:

    [tool.eventbus]
    app = "shop.events"    # or a list of modules

The nearest pyproject.toml counts, from the working folder upwards. There is no default.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from eventbus.errors import ConfigError, EventBusError

__all__ = [
    "HOW_TO_NAME_ONE",
    "Application",
    "application_version",
    "configured_application",
    "import_modules",
]

HOW_TO_NAME_ONE: Final = (
    'give --app shop.events, or write app = "shop.events" under [tool.eventbus] in pyproject.toml'
)
_PYPROJECT: Final = "pyproject.toml"


class Application(NamedTuple):
    """The modules of an application, and the folder to import them from."""

    modules: Sequence[str]
    folder: Path
    """It is added to the import path, as `python -m` does with the working folder."""
    source: str
    """Where the modules are named, such as `--app `: the beginning of errors about them."""

    def load(self) -> None:
        """Import the modules. Raises ConfigError, see `import_modules`."""
        import_modules(self.modules, self.folder, self.source)


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    app: str | list[str] = []


class _Tool(msgspec.Struct):
    eventbus: _Table = msgspec.field(default_factory=_Table)


class _Project(msgspec.Struct):
    tool: _Tool = msgspec.field(default_factory=_Tool)


def configured_application() -> Application | None:
    """The application of the nearest pyproject.toml; None if there is none.

    Raises ConfigError, which names the file, if it cannot be read or has a wrong value.
    """
    path = _nearest_pyproject()
    if path is None:
        return None
    try:
        app = msgspec.toml.decode(path.read_bytes(), type=_Project).tool.eventbus.app
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror or exc}") from None
    except (ValueError, RecursionError) as exc:  # msgspec's, and tomllib's for a long number
        raise ConfigError(
            f'{path}: {exc}; allowed under [tool.eventbus]: app = "shop.events", or a list of '
            "modules"
        ) from None
    modules = [app] if isinstance(app, str) else app
    return Application(modules, path.parent, f"{path}: app = ") if modules else None


def application_version(module: str) -> str | None:
    """The version of the application that has a module; None if it is not known.

    It is that of the installed distribution, or else `version` in the nearest pyproject.toml.
    """
    from importlib.metadata import packages_distributions, version  # noqa: PLC0415 - slow

    top = module.partition(".")[0]
    for distribution in packages_distributions().get(top, ()):
        return version(distribution)
    path = _nearest_pyproject()
    with contextlib.suppress(OSError, ValueError, RecursionError):  # reported by others
        if path is not None:
            return msgspec.toml.decode(path.read_bytes(), type=_Versioned).project.version
    return None


class _Metadata(msgspec.Struct):
    version: str | None = None


class _Versioned(msgspec.Struct):
    project: _Metadata = msgspec.field(default_factory=_Metadata)


def import_modules(modules: Sequence[str], folder: Path, source: str) -> None:
    """Import modules, also from `folder`. Errors begin with `source`, which names them.

    Raises ConfigError for a module that does not exist, or that raises an error of eventbus. Any
    other error of a module is raised as it is.
    """
    if (entry := str(folder)) not in sys.path:
        sys.path.insert(0, entry)
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConfigError(
                f"{source}{module[:80]!r}: not a module name; allowed: a dotted module name, "
                "such as shop.events"
            )
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
                raise
            raise ConfigError(
                f"{source}{module}: there is no such module (also looked in {folder})"
            ) from exc
        except EventBusError as exc:
            raise ConfigError(f"{source}{module}: {exc}") from exc


def _nearest_pyproject() -> Path | None:
    with contextlib.suppress(OSError):  # the folder was deleted, or is not accessible
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (path := folder / _PYPROJECT).is_file():
                return path
    return None
