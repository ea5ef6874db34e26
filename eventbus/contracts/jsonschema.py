"""Event types as JSON Schema 2020-12 (https://json-schema.org/draft/2020-12)."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from eventbus.channels import Pattern
from eventbus.contracts.catalogue import Contract, Kind, shared
from eventbus.contracts.docs import class_doc, field_docs
from eventbus.errors import EventDefinitionError
from eventbus.events import qualified_name

__all__ = ["Schema", "channel_regex", "document", "envelope", "schemas_of"]

Schema: TypeAlias = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REF: Final = "#/$defs/{name}"
_TOKEN: Final = "[A-Za-z0-9_=@,;-]+"
_NAMED: Final = re.compile(r"\{\w+\}", re.ASCII)


def document(contracts: Iterable[Contract], *, title: str = "Events") -> Schema:
    """A schema of the messages on channels, and in `$defs` those of the events' data.

    A message is valid when its event is one of `contracts`, its channel one of the event's, and
    its data of the event's type. Raises EventDefinitionError for a type that has no schema.
    """
    events = shared(contracts)
    data, components = schemas_of([each.data for each in events])
    return {
        "$schema": DIALECT,
        "title": title,
        "description": "A message as clients and services receive it.",
        "anyOf": [envelope(*each) for each in zip(events, data, strict=True)] or [False],
        "$defs": components,
    }


def envelope(contract: Contract, data: Schema) -> Schema:
    """The schema of a message of one event, whose data have the schema `data`."""
    channel: Schema = {"type": "string"}
    if contract.channels:
        channel["pattern"] = channel_regex(contract.channels)
    properties: Schema = {
        "channel": channel,
        "event": {"const": contract.name},
        "data": data,
        "timestamp": {"type": "string", "format": "date-time"},
    }
    if contract.kind is Kind.CLIENT:
        properties["user_id"] = {"type": ["string", "null"], "description": "Who sent it."}
    else:
        properties["id"] = {"type": "string", "description": "The same for each of its channels."}
    if not contract.volatile:
        properties["offset"] = {"type": "integer", "description": "Its place in the stream."}
        properties["epoch"] = {"type": "string", "description": "The identity of the stream."}
    return {
        "title": contract.name,
        "type": "object",
        "properties": properties,
        "required": ["channel", "event", "data", "timestamp"],
    }


def channel_regex(patterns: Iterable[str]) -> str:
    """A regular expression that the channels of these patterns match, and no others."""
    return f"^(?:{'|'.join(map(_regex, patterns))})$"


def _regex(pattern: str) -> str:
    parts = []
    for token in Pattern(pattern).text.split("."):
        if token == ">":
            parts.append(rf"{_TOKEN}(?:\.{_TOKEN})*")
        elif token == "*" or _NAMED.fullmatch(token):
            parts.append(_TOKEN)
        else:
            parts.append(token)  # its characters mean nothing in a regular expression
    return r"\.".join(parts)


def schemas_of(
    types: Sequence[Any], *, ref_template: str = _REF
) -> tuple[list[Schema], dict[str, Schema]]:
    """The schema of each type, and the components that they refer to, by name and sorted.

    Descriptions are docstrings and the strings below fields. Raises EventDefinitionError for a type
    that has no schema.
    """
    structs = list(dict.fromkeys(_structs(types)))
    try:
        made, components = msgspec.json.schema_components(
            [*types, *structs], ref_template=ref_template
        )
    except TypeError as exc:
        raise EventDefinitionError(f"an event's data have no JSON Schema: {exc}") from None
    for cls, ref in zip(structs, made[len(types) :], strict=True):
        component = components[str(ref["$ref"]).rpartition("/")[2]]
        _describe(component, cls)
    return (
        [_clean(schema) for schema in made[: len(types)]],
        {name: _clean(components[name]) for name in sorted(components)},
    )


def _structs(types: Sequence[Any]) -> Iterator[type[msgspec.Struct]]:
    """The structs within types, nested ones included. Raises EventDefinitionError."""
    try:
        queue: list[Any] = list(msgspec.inspect.multi_type_info(types))
    except TypeError as exc:
        raise EventDefinitionError(f"an event's data have no JSON Schema: {exc}") from None
    seen: set[type] = set()
    while queue:
        match queue.pop():
            case msgspec.inspect.StructType(cls=cls) as info:
                if cls not in seen:
                    seen.add(cls)
                    yield cls
                    queue += info.fields
            case msgspec.Struct() as info:  # a type or a field, whose parts are types
                queue += [getattr(info, field) for field in info.__struct_fields__]
            case tuple() as parts:
                queue += parts
            case _:
                pass


def _describe(component: Schema, cls: type[msgspec.Struct]) -> None:
    """Give a struct's schema its descriptions, and defaults that do not depend on hashes."""
    component.pop("description", None)  # it may be that of a base
    if doc := class_doc(cls):
        component["description"] = doc
    docs, fields = field_docs(cls), msgspec.structs.fields(cls)
    kinds = msgspec.inspect.multi_type_info([field.type for field in fields])
    properties: Mapping[str, Schema] = component.get("properties", {})
    for position, field in enumerate(fields):
        if component["type"] == "array":
            schema = component["prefixItems"][position]
        else:
            schema = properties[field.encode_name]
        _name_times(kinds[position], schema)
        if field.name in docs:
            schema.setdefault("description", docs[field.name])
        if "default" in schema and field.default is not msgspec.NODEFAULT:  # else it is empty
            try:
                schema["default"] = msgspec.to_builtins(
                    field.default, str_keys=True, order="deterministic"
                )
            except TypeError as exc:
                raise EventDefinitionError(
                    f"{qualified_name(cls)}.{field.name}: its default has no JSON: {exc}"
                ) from None


def _name_times(kind: msgspec.inspect.Type, schema: Schema) -> None:
    """Say which strings are times: msgspec leaves out the format where no zone is demanded."""
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            _name_times(inner, schema)
        case msgspec.inspect.DateTimeType():
            schema["format"] = "date-time"
        case msgspec.inspect.TimeType(tz=None):
            schema["format"] = "time-local"  # spec.openapis.org/registry/format
        case msgspec.inspect.UnionType(types=kinds) if "anyOf" in schema:
            for each, member in zip(kinds, schema["anyOf"], strict=True):
                _name_times(each, member)
        case msgspec.inspect.TupleType(item_types=kinds):
            for each, member in zip(kinds, schema["prefixItems"], strict=True):
                _name_times(each, member)
        case msgspec.inspect.CollectionType(item_type=inner) if "items" in schema:
            _name_times(inner, schema["items"])
        case msgspec.inspect.DictType(value_type=inner) if "additionalProperties" in schema:
            _name_times(inner, schema["additionalProperties"])
        case _:
            pass


def _clean(value: Any) -> Any:
    """Without OpenAPI's `discriminator`: tags are told by the properties themselves."""
    if isinstance(value, dict):
        return {
            key: _clean(each)
            for key, each in value.items()
            if not (key == "discriminator" and "anyOf" in value)
        }
    return [_clean(each) for each in value] if isinstance(value, list) else value
