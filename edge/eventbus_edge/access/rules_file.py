"""Channel rules from a TOML file: the same as in Python, for deployments without own code.

    [[rule]]
    pattern = "orders.{shop}.>"
    kind = "private"
    join = { roles = ["clerk"], user = "shop" }
    whisper = "authenticated"

Rules apply in order, before the default ones; see docs/access.md.
"""

from pathlib import Path
from typing import (
    Annotated,
    Literal,
    TypeAlias,
)

import msgspec

from eventbus.channels import (
    ChannelKind,
    Pattern,
)
from eventbus.errors import ConfigError, InvalidPattern
from eventbus_edge.access.rules import (
    ANYONE,
    AUTHENTICATED,
    NOBODY,
    Rule,
    Who,
)

__all__ = ["MAX_RULES", "VARIABLE", "parse_rules", "read_rules"]


VARIABLE = "BROADCAST_RULES"
MAX_RULES = 1000
"""Every join may check all of them in turn."""
_MAX_BYTES = 1024 * 1024
Names: TypeAlias = Annotated[frozenset[str], msgspec.Meta(min_length=1)]


class _Who(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    user: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    roles: Names | None = None
    permissions: Names | None = None


class _Rule(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pattern: str
    kind: ChannelKind = ChannelKind.PRIVATE
    join: Literal["anyone", "authenticated", "authorizer", "nobody"] | _Who | None = None
    whisper: Literal["authenticated", "nobody"] | _Who = "nobody"
    retain: bool = False
    history: bool | Annotated[int, msgspec.Meta(ge=0)] = True


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    rule: list[object] = []


_KEYS = (
    "pattern (required); kind: public, private or presence; join: anyone, authenticated, "
    "authorizer, nobody or a table of user, roles and permissions; whisper: authenticated, "
    "nobody or such a table; retain: true or false; history: true, false or the number "
    "of messages clients may read"
)


def read_rules(path: str) -> list[Rule]:
    """The rules of a file, in order. Raises ConfigError, which names file, table and fault."""
    try:
        size = Path(path).stat().st_size
        text = Path(path).read_text(encoding="utf-8") if size <= _MAX_BYTES else None
    except (OSError, ValueError) as exc:
        raise _wrong(path, str(exc), "the path of a TOML file that can be read") from None
    if text is None:
        raise _wrong(path, f"has {size} bytes", f"at most {_MAX_BYTES}")
    return parse_rules(text, path)


def parse_rules(text: str, source: str) -> list[Rule]:
    """The rules of a file's text; `source` names it in errors. Raises ConfigError."""
    try:
        tables = msgspec.toml.decode(text, type=_File).rule
    except (ValueError, RecursionError) as exc:
        # The message for invalid TOML includes line and column. tomllib raises a plain ValueError
        # for a number with too many digits; msgspec's errors are ValueErrors, too.
        raise _wrong(source, str(exc), "TOML whose only tables are [[rule]]") from None
    if len(tables) > MAX_RULES:
        raise _wrong(source, f"has {len(tables)} rules", f"at most {MAX_RULES}")
    rules: list[Rule] = []
    seen: dict[str, int] = {}
    for number, table in enumerate(tables, 1):
        where = f"[[rule]] number {number}"
        if isinstance(table, dict) and isinstance(table.get("pattern"), str):
            where += f" (pattern {table['pattern']!r})"
        try:
            rule = _rule(msgspec.convert(table, _Rule))
        except InvalidPattern as exc:  # it says what is allowed
            raise _error(source, f"{where}: {exc}") from None
        except (msgspec.ValidationError, ValueError) as exc:
            raise _wrong(source, f"{where}: {exc}", _KEYS) from None
        if (earlier := seen.setdefault(rule.pattern.filter, number)) != number:
            problem = f"{where} has the same channels as number {earlier}, and would never apply"
            raise _wrong(source, problem, "each pattern once")
        rules.append(rule)
    return rules


def _rule(given: _Rule) -> Rule:
    return Rule(
        Pattern(given.pattern),
        given.kind,
        _join(given),
        _who(given.whisper),
        retain=given.retain,
        history=given.history,
    )


def _join(given: _Rule) -> Who | None:
    if given.join is None:
        # A public channel is for anyone; other channels need `join` or an authorizer.
        return ANYONE if given.kind is ChannelKind.PUBLIC else None
    return None if given.join == "authorizer" else _who(given.join)


def _who(given: str | _Who) -> Who:
    match given:
        case "anyone":
            return ANYONE
        case "authenticated":
            return AUTHENTICATED
        case _Who(user, roles, permissions) if user or roles or permissions:
            return Who(
                user=user or "",
                roles=roles or frozenset(),
                permissions=permissions or frozenset(),
            )
        case _Who():
            raise ValueError(
                'an empty table matches nobody: give user, roles or permissions, or write "nobody"'
            )
        case _:
            return NOBODY


def _wrong(source: str, problem: str, allowed: str) -> ConfigError:
    return _error(source, f"{problem}; allowed: {allowed}")


def _error(source: str, message: str) -> ConfigError:
    return ConfigError(f"{VARIABLE}={source}: {message}", variable=VARIABLE)
