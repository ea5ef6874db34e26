"""How declared settings are read from the environment, each checked where it enters.

This module is the library's only reader of the environment. A settings struct declares each value
once, with its variable, default and meaning; `load` reads it, and whoever makes a table of settings
reads the same declarations through `variables`.
"""

import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from eventbus.errors import ConfigError

__all__ = [
    "Count",
    "Port",
    "Positive",
    "SettingsStruct",
    "Var",
    "Variable",
    "child_environment",
    "load",
    "variables",
]

S = TypeVar("S", bound=msgspec.Struct)

MASK: Final = "***"
FILE_SUFFIX: Final = "_FILE"
MAX_SECRET_BYTES: Final = 65_536
_CREDENTIALS: Final = re.compile("://.*@", re.DOTALL)
_BOOLEANS: Final = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


class Var(NamedTuple):
    """Stands in a field's `Annotated`: its environment variable, and what it means."""

    name: str
    help: str
    allowed: str
    secret: bool = False
    aliases: Mapping[str, str] = {}
    """Other spellings of a value, and the value that each stands for."""


class Variable(NamedTuple):
    """One declared setting, as a table of settings shows it."""

    field: str
    name: str
    help: str
    allowed: str
    default: Any
    secret: bool


class SettingsStruct(msgspec.Struct, frozen=True, kw_only=True):
    """A struct of settings that does not show its secrets: in logs, tracebacks and debuggers."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        secrets = {variable.field for variable in variables(type(self)) if variable.secret}
        values = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, MASK if value and name in secrets else value) for name, value in values]


Positive = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of the process with `changes`, for one that it starts."""
    return {**os.environ, **changes}


def variables(struct: type[msgspec.Struct]) -> Iterator[Variable]:
    """The settings that a struct declares, in their order."""
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        var = _var(hints[field.name])
        if var is not None:
            yield Variable(field.name, var.name, var.help, var.allowed, field.default, var.secret)


def load(struct: type[S], environ: Mapping[str, str] | None = None) -> S:
    """Make a settings struct from `environ` (the process's environment when None).

    A variable that is empty counts as not set. A secret may stand in a file that is named by the
    variable with `_FILE` after its name, as container platforms hand them out. Raises ConfigError
    naming the variable, its value (secrets masked) and what is allowed; nothing falls back to a
    default in silence.
    """
    environ = os.environ if environ is None else environ
    hints = typing.get_type_hints(struct, include_extras=True)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        var = _var(hints[field.name])
        if var is None or not (text := _text(var, environ)):
            continue
        values[field.name] = _convert(text, field.type, var)
    return struct(**values)


def _text(var: Var, environ: Mapping[str, str]) -> str:
    text = environ.get(var.name, "").strip()
    name = f"{var.name}{FILE_SUFFIX}"
    path = environ.get(name, "").strip() if var.secret else ""
    if not path:
        return text
    if text:
        raise ConfigError(f"{var.name} and {name} are both set; allowed: one", variable=name)
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_SECRET_BYTES + 1).strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{name}={path!r} cannot be read ({exc.__class__.__name__}); allowed: the path of a "
            "file of text",
            variable=name,
        ) from None
    if not 0 < len(text) <= MAX_SECRET_BYTES:
        raise ConfigError(
            f"{name}={path!r} holds no secret; allowed: 1 to {MAX_SECRET_BYTES} characters",
            variable=name,
        )
    return text


def _convert(text: str, type_: Any, var: Var) -> Any:
    if not var.secret and _CREDENTIALS.search(text):  # errors about the value would quote it
        raise ConfigError(
            f"{var.name}={MASK}: it has a URL with credentials; {var.help}; allowed: {var.allowed}",
            variable=var.name,
        )
    text = var.aliases.get(text, text)
    plain = typing.get_args(type_)[0] if typing.get_origin(type_) is Annotated else type_
    value: Any = text
    if plain is bool:
        value = _BOOLEANS.get(text.lower(), text)
    elif typing.get_origin(plain) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.convert(value, type_, strict=plain is bool)
    except msgspec.ValidationError as exc:
        shown = MASK if var.secret else repr(text)
        raise ConfigError(
            f"{var.name}={shown}: {var.help}; allowed: {var.allowed}"
            + ("" if var.secret else f" ({exc})"),
            variable=var.name,
        ) from None


def _var(hint: Any) -> Var | None:
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Var):
            return extra
    return None
