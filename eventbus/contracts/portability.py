"""Fields whose values other languages may read differently, as warnings for `eventbus schema`."""

import enum
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from eventbus.contracts.catalogue import Contract, channel_contracts

__all__ = ["MAX_SAFE_INTEGER", "warnings_of"]

MAX_SAFE_INTEGER: Final = 2**53 - 1
"""JavaScript reads integers beyond it, and below its negative, as other numbers (ECMA-262)."""
_MAX_NAMED: Final = 8
_WIDE: Final = (
    "JavaScript reads integers beyond 2^53 as other numbers: limit them, as in "
    "Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)], or send strings"
)
_NAIVE: Final = (
    "RFC 3339, which the exported type promises, requires a time zone, and these accept values "
    "without one: declare Annotated[datetime, msgspec.Meta(tz=True)]"
)


def warnings_of(contracts: Iterable[Contract]) -> list[str]:
    """At most one warning per kind, which names the fields of all events; their limit is bounded.

    Events that stay in their process are left out.
    """
    wide: list[str] = []
    naive: list[str] = []
    for contract in channel_contracts(contracts):
        for path, kind, default in _leaves(msgspec.inspect.type_info(contract.data), "", ()):
            name = f"{contract.name}{path}"
            if _is_wide(kind) or _is_wide_value(default):
                wide.append(name)
            elif isinstance(kind, msgspec.inspect.DateTimeType) and kind.tz is None:
                naive.append(name)
    return [f"{_named(names)}: {why}" for names, why in ((wide, _WIDE), (naive, _NAIVE)) if names]


def _named(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _leaves(
    kind: msgspec.inspect.Type, path: str, within: tuple[Any, ...], default: Any = None
) -> Iterator[tuple[str, msgspec.inspect.Type, Any]]:
    """Each type without parts inside a type, with its path, such as `.lines[].price`."""
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            yield from _leaves(inner, path, within, default)
        case (
            msgspec.inspect.StructType()
            | msgspec.inspect.TypedDictType()
            | msgspec.inspect.DataclassType()
            | msgspec.inspect.NamedTupleType()
        ):
            if kind.cls not in within:
                for field in kind.fields:
                    yield from _leaves(
                        field.type,
                        f"{path}.{field.encode_name}",
                        (*within, kind.cls),
                        field.default,
                    )
        case msgspec.inspect.UnionType(types=members):
            for member in members:
                yield from _leaves(member, path, within, default)
        case msgspec.inspect.TupleType(item_types=members):
            for position, member in enumerate(members):
                yield from _leaves(member, f"{path}[{position}]", within)
        case msgspec.inspect.CollectionType(item_type=inner):
            yield from _leaves(inner, f"{path}[]", within)
        case msgspec.inspect.DictType(value_type=inner):
            yield from _leaves(inner, f"{path}.*", within)
        case _:
            yield path, kind, default


def _is_wide(kind: msgspec.inspect.Type) -> bool:
    match kind:
        case msgspec.inspect.IntType():
            low = kind.ge if kind.ge is not None else kind.gt
            high = kind.le if kind.le is not None else kind.lt
            return not _is_within(low) or not _is_within(high)
        case msgspec.inspect.LiteralType(values=values):
            return any(map(_is_wide_value, values))
        case msgspec.inspect.EnumType(cls=cls):
            return any(_is_wide_value(member.value) for member in cls)
        case _:
            return False


def _is_within(limit: int | None) -> bool:
    return limit is not None and abs(limit) <= MAX_SAFE_INTEGER + 1


def _is_wide_value(value: Any) -> bool:
    plain = value.value if isinstance(value, enum.Enum) else value
    return type(plain) is int and abs(plain) > MAX_SAFE_INTEGER
