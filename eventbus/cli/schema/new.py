"""`eventbus schema new`: creates an event class and its test."""

import errno
import importlib.machinery
import keyword
import re
import sys
from pathlib import Path
from typing import (
    Final,
    NamedTuple,
)

from eventbus.channels import (
    Pattern,
    validate_channel,
)
from eventbus.errors import (
    InvalidChannel,
    InvalidEventName,
    InvalidPattern,
)
from eventbus.messages import validate_event_name

__all__ = ["NewEvent"]


_CLASS: Final = re.compile(r"[A-Z][A-Za-z0-9]*", re.ASCII)
_EVENT: Final = re.compile(r"[a-z][a-z0-9]*(?:[._-][a-z0-9]+)*", re.ASCII)
_WORDS: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z]+[0-9]*", re.ASCII)

_INIT: Final = '''\
"""The events of this application."""

{import_line}

__all__ = ["{cls}"]
'''

_MODULE: Final = '''\
"""{title}."""

from eventbus import Event, ShouldBroadcast

__all__ = ["{cls}"]


class {cls}(
    Event, ShouldBroadcast, channel="{channel}", name="{event}", kw_only=True
):
    """Describe the event here. The description is part of the contract."""

{fields}
'''

_TEST: Final = '''\
"""Tests of the event {event}."""

import asyncio
{path_imports}
import pytest
from eventbus import EventBus, EventFieldError, Settings
{path}
{import_line}


def dispatch({variable}):
    async def main():
        async with EventBus(Settings(driver="memory")):
            return await {variable}.dispatch()

    return asyncio.run(main())


def test_{variable}_is_broadcast():
    [receipt] = dispatch({cls}({values}))
    assert receipt.channel == "{filled}"


def test_{variable}_refuses_a_field_of_a_wrong_type():
    with pytest.raises(EventFieldError, match="{first}"):
        dispatch({cls}({wrong}))
'''


_PATH: Final = """
sys.path.insert(0, {folder})  # for plain pytest
"""


class NewEvent(NamedTuple):
    """An event to create."""

    cls: str
    event: str
    variable: str
    channel: Pattern
    package: str
    folder: Path
    """The folder that the package is imported from."""
    module: Path
    init: Path
    test: Path

    @classmethod
    def named(
        cls, name: str, *, package: str, folder: Path, tests: Path, channel: str | None
    ) -> "NewEvent":
        """The event for a class name such as `OrderShipped` or a name such as `order.shipped`.

        `package` is looked up in the project's `folder`, and created if it does not exist. `tests`
        is relative to `folder`. Raises ValueError for an invalid name, channel or package.
        """
        words = _words(name)
        variable = "_".join(words)
        if not all(
            part.isidentifier() and not keyword.iskeyword(part) for part in package.split(".")
        ):
            raise ValueError(f"--package {package!r}: not a package name; allowed: shop.events")
        if keyword.iskeyword(variable):
            raise ValueError(f"{name!r}: {variable!r} is a Python keyword")
        home = _package_folder(package, folder)
        return cls(
            cls="".join(word.capitalize() for word in words) if name[0].islower() else name,
            event=".".join(words),
            variable=variable,
            channel=_channel(channel or f"{words[0]}.{{{words[0]}_id}}"),
            package=package,
            folder=home.parents[package.count(".")],
            module=home / f"{variable}.py",
            init=home / "__init__.py",
            test=folder / tests / f"test_{variable}.py",
        )

    @property
    def import_line(self) -> str:
        """The import statement for the class."""
        return f"from {self.package}.{self.variable} import {self.cls}"

    def write(self) -> list[Path]:
        """Write the module, its test, and the package if it does not exist. Returns the new files.

        Raises FileExistsError before anything is written, and OSError.
        """
        for path in (self.module, self.module.with_suffix("") / "__init__.py", self.test):
            if path.exists():
                raise FileExistsError(
                    errno.EEXIST, "already exists, and is not overwritten", str(path)
                )
        written = [self.module, self.test]
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
        fields = self.channel.names or ("message",)
        self.module.write_text(
            _MODULE.format(
                title=f"{self.event[:1].upper()}{self.event[1:]}",
                cls=self.cls,
                event=self.event,
                channel=self.channel.text,
                fields="\n".join(f"    {field}: str" for field in fields),
            ),
            encoding="utf-8",
        )
        self.test.write_text(self._test(fields), encoding="utf-8")
        if not self.init.exists():
            text = _INIT.format(import_line=self.import_line, cls=self.cls)
            self.init.write_text(text, encoding="utf-8")
            written.append(self.init)
        return written

    def _test(self, fields: tuple[str, ...]) -> str:
        values = dict.fromkeys(fields, '"1"')
        wrong = {**values, fields[0]: "1"}
        path_imports, path = self._path_lines()
        return _TEST.format(
            event=self.event,
            cls=self.cls,
            variable=self.variable,
            import_line=self.import_line,
            values=", ".join(f"{field}={value}" for field, value in values.items()),
            wrong=", ".join(f"{field}={value}" for field, value in wrong.items()),
            filled=self.channel.fill(dict.fromkeys(self.channel.names, "1")),
            first=fields[0],
            path_imports=path_imports,
            path=path,
        )

    def _path_lines(self) -> tuple[str, str]:
        """The imports and the statement with which a test can import a package not installed."""
        test, folder = self.test.resolve(), self.folder.resolve()
        if folder in _import_path():
            return "", ""
        if not test.is_relative_to(folder):
            return "import sys\n", _PATH.format(folder=repr(str(folder)))
        above = f"str(Path(__file__).parents[{len(test.relative_to(folder).parts) - 1}])"
        return "import sys\nfrom pathlib import Path\n", _PATH.format(folder=above)


def _words(name: str) -> list[str]:
    """The words of a name, in lower case. Raises ValueError."""
    if not (_CLASS.fullmatch(name) or _EVENT.fullmatch(name)):
        raise ValueError(
            f"{name[:80]!r} is not an event name; allowed: a class name such as OrderShipped, or "
            "an event name such as order.shipped"
        )
    words = [word.lower() for word in _WORDS.findall(name)]
    try:
        validate_event_name(".".join(words))
    except InvalidEventName as exc:
        raise ValueError(str(exc)) from None
    return words


def _package_folder(package: str, root: Path) -> Path:
    """The package's folder in the project, which may not exist yet.

    Raises ValueError if the name belongs to a module, or to a package outside of the project: a new
    package would hide it.
    """
    path, folder = [str(root), *map(str, _import_path())], root
    names = package.split(".")
    for number, name in enumerate(names, 1):
        found = importlib.machinery.PathFinder.find_spec(name, path)
        known = ".".join(names[:number])
        if found is None or found.submodule_search_locations is None:
            if found is not None or known in sys.stdlib_module_names:
                where = found.origin if found is not None else "Python itself"
                raise ValueError(
                    f"--package {package}: {known} is a module ({where}); use a package"
                )
            return folder.joinpath(*names[number - 1 :])
        path = list(found.submodule_search_locations)
        folder = Path(path[0])
        if not folder.resolve().is_relative_to(root.resolve()):
            raise ValueError(
                f"--package {package}: {known} is a package outside of this project ({folder}); "
                "use one of your own"
            )
    return folder


def _import_path() -> list[Path]:
    """The folders that Python and its tools import from, whatever the working folder is."""
    return [Path(entry).resolve() for entry in sys.path[1:] if entry and Path(entry).is_dir()]


def _channel(text: str) -> Pattern:
    try:
        pattern = Pattern(text)
        validate_channel(pattern.fill(dict.fromkeys(pattern.names, "1")))
    except (InvalidPattern, InvalidChannel) as exc:
        raise ValueError(f"--channel {text!r}: {exc}") from None
    if any(keyword.iskeyword(name) for name in pattern.names):
        raise ValueError(f"--channel {text!r}: a Python keyword cannot be a field")
    return pattern
