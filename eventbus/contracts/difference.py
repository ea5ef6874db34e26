"""Compares two JSON Schemas made by msgspec, and finds out which side each difference breaks.

A change breaks

- readers, if the new schema allows data that the old one refuses: services and pages that are not
  yet updated cannot read it;
- writers, if the new schema refuses data that the old one allows: that of publishers that are not
  yet updated, and that in history and queues.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from eventbus.contracts.bounds import bounds
from eventbus.contracts.views import BOTH, NOBODY, READERS, WRITERS, Difference, Views
from eventbus.contracts.words import json_text, type_in_words

__all__ = ["BOTH", "NOBODY", "READERS", "WRITERS", "Difference", "Views", "differences"]

_TYPES: Final = ("$ref", "anyOf", "enum", "const", "type")


def differences(old: Any, new: Any) -> Iterator[Difference]:
    """Yield the differences between two complete schemas, with all references in their `$defs`."""
    comparison = _Comparison(old.get("$defs", {}), new.get("$defs", {}))
    return comparison.compare(old, new, "")


class _Comparison:
    def __init__(self, old_defs: Any, new_defs: Any) -> None:
        self._old_defs, self._new_defs = old_defs, new_defs
        self._seen: set[tuple[int, int]] = set()

    def compare(self, old: Any, new: Any, place: str) -> Iterator[Difference]:
        """Yield the differences at a place and inside it."""
        old, new = self._resolved(old, self._old_defs), self._resolved(new, self._new_defs)
        if _is_any(old) or _is_any(new):
            if not _is_any(old):
                words = f"type widened from {type_in_words(old)} to anything"
                yield Difference(place, words, READERS)
            elif not _is_any(new):
                words = f"type narrowed from anything to {type_in_words(new)}"
                yield Difference(place, words, WRITERS)
            return
        olds, old_null = self._members(old, self._old_defs)
        news, new_null = self._members(new, self._new_defs)
        if new_null and not old_null:
            yield Difference(place, "can now be null", READERS)
        elif old_null and not new_null:
            yield Difference(place, "can no longer be null", WRITERS)
        if len(olds) == len(news) == 1:
            [before], [after] = olds.values(), news.values()
            yield from self._one(before, after, place)
            return
        _pair_numbers(olds, news)
        for key in sorted(olds.keys() | news.keys()):
            if key not in news:
                yield Difference(place, f"{_named(key, olds)} is no longer allowed", WRITERS)
            elif key not in olds:
                yield Difference(place, f"{_named(key, news)} is now also allowed", READERS)
            else:
                yield from self._one(olds[key], news[key], place)

    def _resolved(self, schema: Any, defs: Any) -> Any:
        name = _ref(schema)
        return defs[name] if name else schema

    def _members(self, schema: Any, defs: Any) -> tuple[dict[str, Any], bool]:
        """The members of a union by their distinguishing key, and whether null is one of them."""
        members: dict[str, Any] = {}
        has_null = False
        choices = schema.get("anyOf", [schema])
        keys = _keys([self._resolved(each, defs) for each in choices], choices)
        for each, key in zip(choices, keys, strict=True):
            member = self._resolved(each, defs)
            if member.get("type") == "null":
                has_null = True
            elif "anyOf" in member:
                inner, inner_null = self._members(member, defs)
                members |= inner
                has_null |= inner_null
            elif "enum" in member:
                values = member["enum"]
                has_null |= None in values
                for kind in dict.fromkeys(_kind_of(each) for each in values if each is not None):
                    same = [each for each in values if _kind_of(each) == kind and each is not None]
                    members[kind] = member | {"enum": same}
            else:
                members[key] = member
        return members, has_null

    def _one(self, old: Any, new: Any, place: str) -> Iterator[Difference]:
        """Compare two schemas that are not unions."""
        if "enum" in old or "enum" in new:
            yield from _values(old, new, place)
            return
        kinds = _kind(old), _kind(new)
        if kinds[0] != kinds[1]:
            words = f"from {_shown(old)} to {_shown(new)}"
            if kinds == ("integer", "number"):
                yield Difference(place, f"type widened {words}", READERS)
            elif kinds == ("number", "integer"):
                yield Difference(place, f"type narrowed {words}", WRITERS)
            else:
                yield Difference(place, f"type changed {words}", BOTH)
                return
        yield from bounds(old, new, place)
        if old.get("contentEncoding") != new.get("contentEncoding"):
            yield Difference(place, f"type changed from {_shown(old)} to {_shown(new)}", BOTH)
        match kinds[1]:
            case "struct":
                pair = id(old), id(new)
                if pair not in self._seen:  # reported only once; also ends recursion
                    self._seen.add(pair)
                    yield from self._fields(old, new, place)
            case "map":
                inner = f"{place}.*" if place else "*"
                was, is_ = ({"type": "string", **e.get("propertyNames", {})} for e in (old, new))
                yield from self.compare(was, is_, f"keys of {place}" if place else "keys")
                yield from self.compare(
                    old.get("additionalProperties", {}), new.get("additionalProperties", {}), inner
                )
            case "array":
                yield from self.compare(old.get("items", {}), new.get("items", {}), f"{place}[]")
            case "tuple":
                yield from self._positions(old, new, place)
            case _:
                pass

    def _positions(self, old: Any, new: Any, place: str) -> Iterator[Difference]:
        olds, news = old["prefixItems"], new["prefixItems"]
        for position, (before, after) in enumerate(zip(olds, news, strict=False)):
            yield from self.compare(before, after, f"{place}[{position}]")
        if len(olds) != len(news):
            # Array-like structs ignore unknown items. `bounds` compares their required fields.
            closed = old.get("items") is False or new.get("items") is False
            words = f"{len(news)} positions instead of {len(olds)}"
            yield Difference(place, words, BOTH if closed else NOBODY)

    def _fields(self, old: Any, new: Any, place: str) -> Iterator[Difference]:
        olds, news = old.get("properties", {}), new.get("properties", {})
        needed, needs = set(old.get("required", ())), set(new.get("required", ()))
        was_closed = old.get("additionalProperties") is False
        is_closed = new.get("additionalProperties") is False
        if is_closed and not was_closed:
            yield Difference(place, "unknown fields are now refused", WRITERS)
        elif was_closed and not is_closed:
            yield Difference(place, "unknown fields are now allowed", NOBODY)
        for name in sorted(olds.keys() | news.keys()):
            inner = f"{place}.{name}" if place else name
            if name not in news:
                breaks = READERS if name in needed else NOBODY
                words = "field removed" if name in needed else "optional field removed"
                yield Difference(inner, words, breaks | (WRITERS if is_closed else NOBODY))
            elif name not in olds:
                breaks = WRITERS if name in needs else NOBODY
                words = f"{'required' if name in needs else 'optional'} field added"
                yield Difference(inner, words, breaks | (READERS if was_closed else NOBODY))
            else:
                yield from _presence(olds[name], news[name], inner, name in needed, name in needs)
                yield from self.compare(olds[name], news[name], inner)


def _presence(
    old: Any, new: Any, place: str, was_needed: bool, is_needed: bool
) -> Iterator[Difference]:
    if is_needed and not was_needed:
        yield Difference(place, "now required, was optional", WRITERS)
    elif was_needed and not is_needed:
        yield Difference(place, "now optional, was required", READERS)
    elif json_text(old.get("default")) != json_text(new.get("default")):
        words = f"default changed from {_default(old)} to {_default(new)}"
        yield Difference(place, words, NOBODY)


def _default(schema: Any) -> str:
    return json_text(schema["default"]) if "default" in schema else "a generated value"


def _values(old: Any, new: Any, place: str) -> Iterator[Difference]:
    """Compare two enums, or an enum with a plain type."""
    if "enum" not in new or "enum" not in old:
        is_wider = "enum" in old
        base = type_in_words(new if is_wider else old)
        kinds = {_kind_of(value) for value in (old if is_wider else new)["enum"]}
        if kinds <= {base} | ({"integer"} if base == "number" else set()):
            words = (
                f"any {base} is now allowed, was {_shown(old)}"
                if is_wider
                else f"type narrowed from any {base} to {_shown(new)}"
            )
            yield Difference(place, words, READERS if is_wider else WRITERS)
        else:
            words = f"type changed from {_shown(old)} to {_shown(new)}"
            yield Difference(place, words, BOTH)
        return
    olds, news = set(map(json_text, old["enum"])), set(map(json_text, new["enum"]))
    if len(olds) == len(news) == 1 and olds != news:
        yield Difference(place, f"must be {_shown(new)}, was {_shown(old)}", BOTH)
        return
    for value in sorted(olds - news):
        yield Difference(place, f"value {value} removed", WRITERS)
    for value in sorted(news - olds):
        yield Difference(place, f"value {value} added", READERS)


def _ref(schema: Any) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2] if isinstance(schema, dict) else ""


def _is_any(schema: Any) -> bool:
    return schema is True or (isinstance(schema, dict) and not schema.keys() & set(_TYPES))


def _kind(schema: Any) -> str:
    match schema["type"]:
        case "object":
            return "struct" if "properties" in schema else "map"
        case "array" if "prefixItems" in schema:
            return "tuple"
        case kind:
            return str(kind)


def _kind_of(value: Any) -> str:
    return "string" if isinstance(value, str) else "integer"


def _keys(members: Sequence[Any], choices: Sequence[Any]) -> list[str]:
    """The keys that distinguish the members of a union.

    A msgspec union has at most one member per kind. A union of Pydantic models may have several:
    their names distinguish models, and other members are the same only if nothing has changed.
    """
    keys = [_key(member) for member in members]
    return [
        _ref(choice) or f"{key} {json_text(choice)}" if keys.count(key) > 1 else key
        for key, choice in zip(keys, choices, strict=True)
    ]


def _key(member: Any) -> str:
    """The key that distinguishes a member of a union: its tag, or its kind of type."""
    if "anyOf" in member or _is_any(member):
        return ""
    for name, field in member.get("properties", {}).items():
        if len(field.get("enum", ())) == 1:
            return f"{name} = {json_text(field['enum'][0])}"
    if "prefixItems" in member and len(member["prefixItems"][0].get("enum", ())) == 1:
        return f"[0] = {json_text(member['prefixItems'][0]['enum'][0])}"
    return "array" if member.get("type") == "array" else _shown(member)


def _named(key: str, members: Any) -> str:
    """A member of a union in words."""
    return key if " = " in key else _shown(members[key])


def _pair_numbers(olds: dict[str, Any], news: dict[str, Any]) -> None:
    """Treat `integer` as a subset of `number`: drop it next to `number`, or pair the two."""
    for members in (olds, news):
        if {"integer", "number"} <= members.keys() and "enum" not in members["number"]:
            del members["integer"]
    for some, others in ((olds, news), (news, olds)):
        if "integer" in some and "integer" not in others and "number" in others:
            some["number"] = some.pop("integer")


def _shown(schema: Any) -> str:
    words = {"struct": "an object with fields", "map": "a map", "tuple": "a tuple"}
    kind = _kind(schema) if "type" in schema else ""
    encoding = f" of {schema['contentEncoding']}" if "contentEncoding" in schema else ""
    return words.get(kind) or type_in_words(schema) + encoding
