"""Event types as TypeScript: what a browser gets, and a map from channel patterns to events."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from eventbus.contracts.catalogue import Contract, Kind, shared
from eventbus.contracts.jsonschema import Schema, schemas_of
from eventbus.contracts.words import facts
from eventbus.messages import CLIENT_EVENT_PREFIX

__all__ = ["declarations"]

_HEAD: Final = """\
// Made by `eventbus schema export --format typescript`. Changes here are lost.
"""
_CHANNELS: Final = "The events of each channel pattern: `connect<Channels>()`."
_CLIENT_EVENTS: Final = "What clients may send on each channel pattern, by the names they send."
_WORDS: Final = (
    "Channels ClientEvents Array Partial Record any bigint boolean never null number object "
    "string symbol undefined unknown void break case catch class const continue debugger "
    "default delete do else enum export extends false finally for function if import in "
    "instanceof new return super switch this throw true try typeof var while with implements "
    "interface let package private protected public static yield type await as from of"
)
_TAKEN: Final = frozenset(_WORDS.split())
_PLAIN: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*", re.ASCII)
_TYPES: Final = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}


def declarations(contracts: Iterable[Contract]) -> str:
    """A TypeScript module: an interface for each event and struct, `Channels`, `ClientEvents`.

    A field with a default may be missing: others than this application may publish, and history may
    be older than the field. Raises EventDefinitionError.
    """
    events = shared(contracts)
    data, components = schemas_of([each.data for each in events])
    writer = _Writer(components)
    parts = [_HEAD, *(writer.declare(name, schema) for name, schema in components.items())]
    types = {each.name: writer.type_of(s) for each, s in zip(events, data, strict=True)}
    parts.append(_map("Channels", _CHANNELS, _by_channel(events), types))
    sent = [each for each in events if each.kind is Kind.CLIENT]
    parts.append(_map("ClientEvents", _CLIENT_EVENTS, _by_channel(sent), types, bare=True))
    return "\n".join(parts)


def _by_channel(events: Iterable[Contract]) -> dict[str, list[str]]:
    channels: dict[str, list[str]] = {}
    for event in events:
        for text in event.channels:
            channels.setdefault(text, []).append(event.name)
    return {text: channels[text] for text in sorted(channels)}


def _map(
    name: str,
    doc: str,
    channels: Mapping[str, Iterable[str]],
    types: Mapping[str, str],
    *,
    bare: bool = False,
) -> str:
    lines = [f"/** {doc} */", f"export interface {name} {{"]
    for text, events in channels.items():
        lines.append(f"  {_literal(text)}: {{")
        for event in events:
            shown = event.removeprefix(CLIENT_EVENT_PREFIX) if bare else event
            lines.append(f"    {_literal(shown)}: {types[event]};")
        lines.append("  };")
    return "\n".join([*lines, "}", ""])


class _Writer:
    """Writes types that refer to named components."""

    def __init__(self, components: Mapping[str, Schema]) -> None:
        self._names: dict[str, str] = {}
        for component in components:
            name = re.sub(r"[^A-Za-z0-9_$]", "_", component)
            if not _PLAIN.fullmatch(name) or name in _TAKEN:
                name = f"{name}_" if _PLAIN.fullmatch(name) else f"_{name}"
            while name in self._names.values():
                name += "_"
            self._names[component] = name

    def declare(self, component: str, schema: Schema) -> str:
        """An exported interface, or a type for what is no object with properties."""
        name = self._names[component]
        lines = list(_comment([schema["description"]] if "description" in schema else []))
        if "properties" in schema:
            lines.append(f"export interface {name} {{")
            lines += self._members(schema)
            lines.append("}")
        else:
            lines.append(f"export type {name} = {self.type_of(schema)};")
        return "\n".join([*lines, ""])

    def type_of(self, schema: Schema | bool) -> str:
        """The type of what a schema accepts."""
        if isinstance(schema, bool):
            return "unknown" if schema else "never"
        if "$ref" in schema:
            return self._names[str(schema["$ref"]).rpartition("/")[2]]
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return " | ".join(map(_literal, schema["enum"]))
        if "anyOf" in schema:
            return " | ".join(dict.fromkeys(self.type_of(each) for each in schema["anyOf"]))
        match schema.get("type"):
            case "array":
                return self._array(schema)
            case "object" if "properties" in schema:
                return "{ " + " ".join(self._fields(schema)) + " }"
            case "object":
                values = self.type_of(schema.get("additionalProperties", True))
                names = schema.get("propertyNames", {}).get("enum")
                if names is None:
                    return f"Record<string, {values}>"
                return f"Partial<Record<{' | '.join(map(_literal, names))}, {values}>>"
            case str() as name:
                return _TYPES[name]
        return "unknown"

    def _array(self, schema: Schema) -> str:
        if "prefixItems" in schema:
            needed = schema.get("minItems", 0)
            parts = [
                f"{_grouped(self.type_of(item))}{'' if position < needed else '?'}"
                for position, item in enumerate(schema["prefixItems"])
            ]
            if schema.get("items") is not False and "maxItems" not in schema:
                parts.append("...unknown[]")
            return f"[{', '.join(parts)}]"
        if schema.get("maxItems") == 0:
            return "[]"
        return f"{_grouped(self.type_of(schema.get('items', True)))}[]"

    def _members(self, schema: Schema) -> Iterator[str]:
        for field, of_field in zip(
            self._fields(schema), schema["properties"].values(), strict=True
        ):
            told = [of_field["description"]] if "description" in of_field else []
            if limits := facts(of_field):
                told.append(f"{limits[0].upper()}{limits[1:]}.")
            yield from (f"  {line}" for line in _comment(told))
            yield f"  {field}"

    def _fields(self, schema: Schema) -> Iterator[str]:
        required = schema.get("required", ())
        for name, of_field in schema["properties"].items():
            key = name if _PLAIN.fullmatch(name) else _literal(name)
            yield f"{key}{'' if name in required else '?'}: {self.type_of(of_field)};"


def _grouped(text: str) -> str:
    return f"({text})" if " | " in text else text


def _comment(parts: Iterable[str]) -> Iterator[str]:
    lines = [line for part in parts for line in part.replace("*/", "*\\/").splitlines()]
    if len(lines) == 1:
        yield f"/** {lines[0]} */"
    elif lines:
        yield "/**"
        yield from (f" * {line}".rstrip() for line in lines)
        yield " */"


def _literal(value: Any) -> str:
    """A JSON value as a literal type; strings keep to ASCII line ends (ECMA-262, 12.3)."""
    text = msgspec.json.encode(value).decode()
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
