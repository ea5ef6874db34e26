"""Reads declared settings from the environment and validates them, wherever they come from.

Only this module reads the environment. A settings struct declares each value once, with its
variable, default and meaning. `load` reads the values; `variables` lists the declarations, for
tables of settings.
"""

import difflib
import functools
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from eventbus.errors import ConfigError

__all__ = [
    "Count",
    "Port",
    "Positive",
    "SettingsStruct",
    "UnknownVariable",
    "Var",
    "Variable",
    "child_environment",
    "load",
    "read_secret",
    "set_environment",
    "unknown_variables",
    "variables",
]

S = TypeVar("S", bound=msgspec.Struct)

MASK: Final = "***"
FILE_SUFFIX: Final = "_FILE"
_URL: Final = "_URL"
_QUOTES: Final = "\"'"
MAX_SECRET_BYTES: Final = 65_536
_OURS: Final = ("BROADCAST_", "EDGE_")
_NEAR: Final = ("JWT_", "NATS_", "CORS_")
"""Prefixes that other programs use too: only near misses of our names are reported."""
_CREDENTIALS: Final = re.compile("://.*@", re.DOTALL)
_BOOLEANS: Final = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


class Var(NamedTuple):
    """Metadata of a settings field, in its `Annotated`: environment variable and description."""

    name: str
    help: str
    allowed: str
    secret: bool = False
    aliases: Mapping[str, str] = {}
    """Alternative spellings of a value, mapped to that value."""


class Variable(NamedTuple):
    """One declared setting, as tables of settings show it."""

    field: str
    name: str
    help: str
    allowed: str
    default: Any
    secret: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The variable, and that of the path of a file with its value."""
        return (self.name, f"{self.name}{FILE_SUFFIX}") if self.secret else (self.name,)


class UnknownVariable(NamedTuple):
    """A variable of the environment that looks like a setting but is not one."""

    name: str
    nearest: str
    """The setting that may be meant; empty if none has a similar name."""


class SettingsStruct(msgspec.Struct, frozen=True, kw_only=True):
    """A settings struct. It checks its values, and its repr hides secrets.

    So secrets are not in logs, tracebacks and debuggers, and settings that are made in code have
    the limits of those in the environment. A list is accepted for a tuple, and a path for a string.
    """

    def __post_init__(self) -> None:
        """Raises ConfigError with the field, its variable, its value and what is allowed."""
        for name, type_, var in _declarations(type(self)):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            try:
                checked = msgspec.convert(value, type_)
            except (msgspec.ValidationError, UnicodeEncodeError) as exc:
                raise _invalid(f"{type(self).__name__}({name}=…)", value, var, exc) from None
            if checked is not getattr(self, name):
                msgspec.structs.force_setattr(self, name, checked)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        secrets = {variable.field for variable in variables(type(self)) if variable.secret}
        values = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, MASK if value and name in secrets else value) for name, value in values]


Positive = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""Brokers store 64 bits."""
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


def set_environment(values: Mapping[str, str]) -> None:
    """Set variables of this process, as if it had been started with them."""
    os.environ.update(values)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child process: that of this process with `changes`."""
    return {**os.environ, **changes}


def variables(struct: type[msgspec.Struct]) -> Iterator[Variable]:
    """The settings that a struct declares, in order of declaration."""
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        var = _var(hints[field.name])
        if var is not None:
            yield Variable(field.name, var.name, var.help, var.allowed, field.default, var.secret)


def unknown_variables(
    structs: Iterable[type[msgspec.Struct]], environ: Mapping[str, str] | None = None
) -> list[UnknownVariable]:
    """The variables, sorted, that look like settings of `structs`, such as misspelt ones."""
    settings = [variable for struct in structs for variable in variables(struct)]
    read = {name for variable in settings for name in variable.names}
    known = {variable.name for variable in settings}
    found = []
    for name in sorted((os.environ if environ is None else environ).keys() - read):
        if not name.startswith(_OURS + _NEAR):
            continue
        nearest = next(iter(difflib.get_close_matches(name, known, 1, 0.8)), "")
        if nearest or name.startswith(_OURS):
            found.append(UnknownVariable(name, nearest))
    return found


def load(struct: type[S], environ: Mapping[str, str] | None = None) -> S:
    """Make a settings struct from `environ`, by default the environment of the process.

    An empty variable counts as not set. A secret can be in a file, as on container platforms: its
    path is in the variable of the same name with the suffix `_FILE`. Raises ConfigError with the
    variable, its value (secrets masked) and what is allowed. An invalid value never falls back to
    the default.
    """
    environ = os.environ if environ is None else environ
    hints = typing.get_type_hints(struct, include_extras=True)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        var = _var(hints[field.name])
        if var is None or not (text := _text(var, environ)):
            continue
        if var.name.endswith(_URL) and text[0] in _QUOTES:  # as in a file of docker --env-file
            raise ConfigError(
                f"{var.name}={MASK}: the value is in quotes, which do not belong to it: remove "
                f"them; allowed: {var.allowed}",
                variable=var.name,
            )
        values[field.name] = _convert(text, field.type, var)
    return struct(**values)


def read_secret(name: str, environ: Mapping[str, str] | None = None) -> str:
    """The secret of a variable, or of the file that its `_FILE` variable names; empty if not set.

    Raises ConfigError if both are set, or the file cannot be read.
    """
    return _text(Var(name, "", "", secret=True), os.environ if environ is None else environ)


def _text(var: Var, environ: Mapping[str, str]) -> str:
    text = environ.get(var.name, "").strip()
    name = f"{var.name}{FILE_SUFFIX}"
    path = environ.get(name, "").strip() if var.secret else ""
    if not path:
        return text
    if text:
        raise ConfigError(f"{var.name} and {name} are both set; set only one", variable=name)
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_SECRET_BYTES + 1).strip()
    except (OSError, ValueError) as exc:  # not UTF-8, or no path at all
        raise ConfigError(
            f"{name}={path!r} cannot be read ({exc.__class__.__name__}); allowed: the path of a "
            "text file",
            variable=name,
        ) from None
    if not 0 < len(text) <= MAX_SECRET_BYTES:
        raise ConfigError(
            f"{name}={path!r} is empty or too long for a secret; allowed: 1 to {MAX_SECRET_BYTES} "
            "characters",
            variable=name,
        )
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _convert(text: str, type_: Any, var: Var) -> Any:
    if not var.secret and _CREDENTIALS.search(text):  # errors quote the value
        raise ConfigError(
            f"{var.name}={MASK}: the value has a URL with credentials; {var.help}; "
            f"allowed: {var.allowed}",
            variable=var.name,
        )
    if not _is_unicode(text):  # os.environ has lone surrogates for bytes that are not UTF-8
        raise ConfigError(
            f"{var.name}={MASK}: the value is not UTF-8; allowed: {var.allowed}", variable=var.name
        )
    text = var.aliases.get(text, text)
    plain = typing.get_args(type_)[0] if typing.get_origin(type_) is Annotated else type_
    value: Any = text
    if plain is bool:
        value = _BOOLEANS.get(text.lower(), text)
    elif typing.get_origin(plain) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
        if not value:  # such as "${A},${B}" of variables that are not set
            shown = MASK if var.secret else repr(text)
            raise ConfigError(
                f"{var.name}={shown}: the list has no entries; {var.help}; allowed: {var.allowed}",
                variable=var.name,
            )
    try:
        return msgspec.convert(value, type_, strict=plain is bool)
    except msgspec.ValidationError as exc:
        shown = MASK if var.secret else repr(text)
        raise ConfigError(
            f"{var.name}={shown}: {var.help}; allowed: {var.allowed}"
            + ("" if var.secret else f" ({exc})"),
            variable=var.name,
        ) from None


@functools.cache
def _declarations(struct: type[msgspec.Struct]) -> tuple[tuple[str, Any, Var | None], ...]:
    hints = typing.get_type_hints(struct, include_extras=True)
    return tuple(
        (field.name, field.type, _var(hints[field.name]))
        for field in msgspec.structs.fields(struct)
    )


def _invalid(where: str, value: Any, var: Var | None, exc: Exception) -> ConfigError:
    """The error of a value that was given in code."""
    shown = repr(value)[:200]
    if var is None:
        return ConfigError(f"{where}: {shown}: {exc}")
    if var.secret or _CREDENTIALS.search(shown):
        return ConfigError(
            f"{where}, {var.name}={MASK}: {var.help}; allowed: {var.allowed}", variable=var.name
        )
    return ConfigError(
        f"{where}, {var.name}={shown}: {var.help}; allowed: {var.allowed} ({exc})",
        variable=var.name,
    )


def _var(hint: Any) -> Var | None:
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Var):
            return extra
    return None
