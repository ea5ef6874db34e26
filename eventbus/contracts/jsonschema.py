"""Event types as JSON Schema 2020-12 (https://json-schema.org/draft/2020-12)."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from eventbus.channels import TOKEN_REGEX, Pattern
from eventbus.contracts.catalogue import Contract, Kind, channel_contracts
from eventbus.contracts.docs import class_doc, field_docs
from eventbus.errors import EventDefinitionError
from eventbus.events import qualified_name
from eventbus.messages import MODEL_REF, decodable, encode_model, model_schemas

__all__ = ["Schema", "channel_regex", "document", "envelope", "schemas_of"]

Schema: TypeAlias = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REF: Final = "#/$defs/{name}"
_NAMED: Final = re.compile(r"\{\w+\}", re.ASCII)
_Object: TypeAlias = (
    msgspec.inspect.StructType
    | msgspec.inspect.TypedDictType
    | msgspec.inspect.DataclassType
    | msgspec.inspect.NamedTupleType
)
"""A type with fields. Each becomes a component."""


def document(contracts: Iterable[Contract], *, title: str = "Events") -> Schema:
    """A schema for the messages on channels, with the schemas of the events' data in `$defs`.

    A message is valid if its event is in `contracts`, its channel is one of the event's, and its
    data has the event's type. Raises EventDefinitionError for a type without a schema.
    """
    events = channel_contracts(contracts)
    data, components = schemas_of([each.data for each in events])
    return {
        "$schema": DIALECT,
        "title": title,
        "description": "A message as clients and services receive it.",
        "anyOf": [envelope(*each) for each in zip(events, data, strict=True)] or [False],
        "$defs": components,
    }


def envelope(contract: Contract, data: Schema) -> Schema:
    """The schema of a message of one event, with `data` as the schema of its data."""
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
        properties["user_id"] = {"type": ["string", "null"], "description": "The sender."}
    else:
        properties["id"] = {"type": "string", "description": "The same on all its channels."}
    if not contract.volatile:
        properties["offset"] = {"type": "integer", "description": "The position in the stream."}
        properties["epoch"] = {"type": "string", "description": "The identity of the stream."}
    return {
        "title": contract.name,
        "type": "object",
        "properties": properties,
        "required": ["channel", "event", "data", "timestamp"],
    }


def channel_regex(patterns: Iterable[str]) -> str:
    """A regular expression that matches exactly the channels of these patterns."""
    return f"^(?:{'|'.join(map(_regex, patterns))})$"


def _regex(pattern: str) -> str:
    parts = []
    for token in Pattern(pattern).text.split("."):
        if token == ">":
            parts.append(rf"{TOKEN_REGEX}(?:\.{TOKEN_REGEX})*")
        elif token == "*" or _NAMED.fullmatch(token):
            parts.append(TOKEN_REGEX)
        else:
            parts.append(token)  # has no special characters
    return r"\.".join(parts)


def schemas_of(
    types: Sequence[Any], *, ref_template: str = _REF
) -> tuple[list[Schema], dict[str, Schema]]:
    """The schema of each type, and the components that they refer to, sorted by name.

    Descriptions come from docstrings and the strings below fields. Raises EventDefinitionError for
    a type without a schema.
    """
    types = [decodable(each) for each in types]
    objects, models = _objects(types)
    try:
        of_models, named = model_schemas(models)
        schemas, components = msgspec.json.schema_components(
            [*types, *objects], schema_hook=of_models.__getitem__, ref_template=ref_template
        )
    except (TypeError, NameError, KeyError) as exc:
        raise EventDefinitionError(f"the data of an event has no JSON Schema: {exc}") from None
    for info, ref in zip(objects.values(), schemas[len(types) :], strict=True):
        _describe(components[str(ref["$ref"]).rpartition("/")[2]], info)
    for kind, schema in zip(msgspec.inspect.multi_type_info(types), schemas, strict=False):
        _specify(kind, schema)
    refs = {}
    for name, schema in named.items():
        unique = name
        while unique in components:  # a struct has the model's name
            unique += "Model"
        components[unique] = schema
        refs[f"{MODEL_REF}{name}"] = ref_template.format(name=unique)
    return (
        [_clean(schema, refs) for schema in schemas[: len(types)]],
        {name: _clean(components[name], refs) for name in sorted(components)},
    )


def _objects(types: Sequence[Any]) -> tuple[dict[Any, _Object], list[type]]:
    """All types with fields in `types`, including nested ones, and all custom types.

    Raises EventDefinitionError.
    """
    try:
        queue: list[Any] = list(msgspec.inspect.multi_type_info(types))
    except TypeError as exc:
        raise EventDefinitionError(f"the data of an event has no JSON Schema: {exc}") from None
    found: dict[Any, _Object] = {}
    custom: list[type] = []
    while queue:
        match queue.pop():
            case info if isinstance(info, _Object):
                if info.cls not in found:
                    found[info.cls] = info
                    queue += info.fields
            case msgspec.inspect.CustomType(cls=cls):
                custom.append(cls)
            case msgspec.Struct() as info:  # a type or a field: its attributes are types
                queue += [getattr(info, field) for field in info.__struct_fields__]
            case tuple() as parts:
                queue += parts
            case _:
                pass
    return found, custom


def _describe(component: Schema, info: _Object) -> None:
    """Add descriptions, and defaults that do not depend on hash order."""
    component.pop("description", None)  # may be inherited from a base class
    if doc := class_doc(info.cls):
        component["description"] = doc
    docs = field_docs(info.cls)
    properties: Mapping[str, Schema] = component.get("properties", {})
    for position, field in enumerate(info.fields):
        if component["type"] == "array":
            schema = component["prefixItems"][position + _tags(info)]
        else:
            schema = properties[field.encode_name]
        _specify(field.type, schema)
        if field.name in docs:
            schema.setdefault("description", docs[field.name])
        if (
            "default" in schema and field.default is not msgspec.NODEFAULT
        ):  # else it is an empty container
            try:
                schema["default"] = msgspec.to_builtins(
                    field.default, str_keys=True, order="deterministic", enc_hook=encode_model
                )
            except TypeError as exc:
                raise EventDefinitionError(
                    f"{qualified_name(info.cls)}.{field.name}: the default cannot be encoded as "
                    f"JSON: {exc}"
                ) from None


def _tags(info: _Object) -> int:
    """The number of array positions before the fields: 1 if there is a tag."""
    return int(isinstance(info, msgspec.inspect.StructType) and info.tag_field is not None)


def _specify(kind: msgspec.inspect.Type, schema: Schema) -> None:
    """Add what msgspec leaves out: times without a zone, and the allowed keys of objects."""
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            _specify(inner, schema)
        case msgspec.inspect.DateTimeType(tz=False):
            schema["format"] = "date-time-local"  # spec.openapis.org/registry/format
        case msgspec.inspect.DateTimeType():
            schema["format"] = "date-time"
        case msgspec.inspect.TimeType(tz=None):
            schema["format"] = "time-local"
        case _:
            _specify_within(kind, schema)


def _specify_within(kind: msgspec.inspect.Type, schema: Schema) -> None:
    match kind:
        case msgspec.inspect.UnionType(types=kinds):
            for member in _members(schema):
                for each in kinds:
                    if _is_of(each, member):
                        _specify(each, member)
        case msgspec.inspect.TupleType(item_types=kinds) if "prefixItems" in schema:
            for each, member in zip(kinds, schema["prefixItems"], strict=True):
                _specify(each, member)
        case msgspec.inspect.CollectionType(item_type=inner) if "items" in schema:
            _specify(inner, schema["items"])
        case msgspec.inspect.DictType(key_type=key, value_type=inner):
            if names := _names(key):
                schema["propertyNames"] = names
            if "additionalProperties" in schema:
                _specify(inner, schema["additionalProperties"])
        case _:
            pass


def _names(key: msgspec.inspect.Type) -> Schema:
    """The schema of the keys of an object; empty if any string is allowed."""
    match key:
        case msgspec.inspect.EnumType(cls=cls):
            return {"enum": sorted(str(each.value) for each in cls)}
        case msgspec.inspect.LiteralType(values=values):
            return {"enum": sorted(map(str, values))}
        case msgspec.inspect.IntType():
            return {"pattern": "^-?(?:0|[1-9][0-9]*)$"}
        case msgspec.inspect.DateType():
            return {"format": "date"}
        case msgspec.inspect.UUIDType():
            return {"format": "uuid"}
        case _:
            return {}


def _members(schema: Schema) -> Iterator[Schema]:
    """The members of a union. Its structs are in a nested union."""
    for each in schema.get("anyOf", [schema]):
        if "anyOf" in each:
            yield from _members(each)
        else:
            yield each


def _is_of(kind: msgspec.inspect.Type, member: Schema) -> bool:
    """Whether a member of a union has this type. A union has at most one member per kind."""
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            return _is_of(inner, member)
        case msgspec.inspect.DateTimeType() | msgspec.inspect.TimeType():
            return member.get("type") == "string" and "enum" not in member
        case msgspec.inspect.TupleType():
            return "prefixItems" in member
        case msgspec.inspect.CollectionType():
            return "items" in member and "prefixItems" not in member
        case msgspec.inspect.DictType():
            return "additionalProperties" in member and "properties" not in member
        case _:
            return False


def _clean(value: Any, refs: Mapping[str, str]) -> Any:
    """Remove OpenAPI's `discriminator`: the properties already declare the tags.

    `refs` replaces references to Pydantic models, whose names are only known to be unique now.
    """
    if isinstance(value, dict):
        return {
            key: refs.get(each, each)
            if key == "$ref" and isinstance(each, str)
            else _clean(each, refs)
            for key, each in value.items()
            if not (key == "discriminator" and "anyOf" in value)
        }
    return [_clean(each, refs) for each in value] if isinstance(value, list) else value
