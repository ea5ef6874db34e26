"""`eventbus schema new`: an event class and its test, ready to edit."""

import keyword
import re
from pathlib import Path
from typing import Final, NamedTuple

from eventbus.channels import Pattern, validate_channel
from eventbus.errors import InvalidChannel, InvalidEventName, InvalidPattern
from eventbus.message import validate_event_name

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
    """Say here what has happened, for those who read the contract."""

{fields}
'''

_TEST: Final = '''\
"""The event {event}: where it is broadcast, and what it refuses."""

import asyncio

import pytest
from eventbus import EventBus, EventFieldError, Settings

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


class NewEvent(NamedTuple):
    """An event that is to be written."""

    cls: str
    event: str
    variable: str
    channel: Pattern
    package: str
    module: Path
    init: Path
    test: Path

    @classmethod
    def named(cls, name: str, *, package: str, tests: Path, channel: str | None) -> "NewEvent":
        """The event of a class name such as `OrderShipped`, or of a name such as `order.shipped`.

        Raises ValueError for what is neither, and for a channel or a package that cannot be.
        """
        words = _words(name)
        variable = "_".join(words)
        if not all(
            part.isidentifier() and not keyword.iskeyword(part) for part in package.split(".")
        ):
            raise ValueError(f"--package {package!r}: a dotted module name is allowed")
        if keyword.iskeyword(variable):
            raise ValueError(f"{name!r}: {variable!r} is a word of Python's own")
        folder = Path(*package.split("."))
        return cls(
            cls="".join(word.capitalize() for word in words) if name[0].islower() else name,
            event=".".join(words),
            variable=variable,
            channel=_channel(channel or f"{words[0]}.{{{words[0]}_id}}"),
            package=package,
            module=folder / f"{variable}.py",
            init=folder / "__init__.py",
            test=tests / f"test_{variable}.py",
        )

    @property
    def import_line(self) -> str:
        """How the class is imported."""
        return f"from {self.package}.{self.variable} import {self.cls}"

    def write(self) -> list[Path]:
        """Write the module and its test, and the package where there is none; gives what was made.

        Raises FileExistsError, before anything is written, and OSError.
        """
        for path in (self.module, self.test):
            if path.exists():
                raise FileExistsError(17, "it is there already, and is not written over", str(path))
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
        return _TEST.format(
            event=self.event,
            cls=self.cls,
            variable=self.variable,
            import_line=self.import_line,
            values=", ".join(f"{field}={value}" for field, value in values.items()),
            wrong=", ".join(f"{field}={value}" for field, value in wrong.items()),
            filled=self.channel.fill(dict.fromkeys(self.channel.names, "1")),
            first=fields[0],
        )


def _words(name: str) -> list[str]:
    """The words of a name, in lower case. Raises ValueError."""
    if not (_CLASS.fullmatch(name) or _EVENT.fullmatch(name)):
        raise ValueError(
            f"{name[:80]!r} is no name for an event: allowed are a class name such as "
            "OrderShipped, and an event name such as order.shipped"
        )
    words = [word.lower() for word in _WORDS.findall(name)]
    try:
        validate_event_name(".".join(words))
    except InvalidEventName as exc:
        raise ValueError(str(exc)) from None
    return words


def _channel(text: str) -> Pattern:
    try:
        pattern = Pattern(text)
        validate_channel(pattern.fill(dict.fromkeys(pattern.names, "1")))
    except (InvalidPattern, InvalidChannel) as exc:
        raise ValueError(f"--channel {text!r}: {exc}") from None
    if any(keyword.iskeyword(name) for name in pattern.names):
        raise ValueError(f"--channel {text!r}: a word of Python's own cannot be a field")
    return pattern
