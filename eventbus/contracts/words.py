"""Schemas in words, for people: a short name of the type, and its constraints."""

from typing import Any, Final

import msgspec

__all__ = ["constraints_of", "json_text", "type_in_words"]

_FORMATS: Final = {
    "date-time": "date and time, RFC 3339",
    "date-time-local": "date and time without a zone",
    "date": "date, RFC 3339",
    "time": "time, RFC 3339",
    "time-local": "time, ISO 8601",
    "duration": "duration, ISO 8601",
    "uuid": "UUID",
    "decimal": "decimal number",
}


def json_text(value: Any) -> str:
    """A value as JSON."""
    return msgspec.json.encode(value).decode()


def type_in_words(schema: Any) -> str:
    """A type such as `integer or null`, `list of string`, `OrderLine`."""
    if isinstance(schema, bool) or not schema.keys() & {"$ref", "anyOf", "enum", "const", "type"}:
        return "nothing" if schema is False else "anything"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(type_in_words, schema["anyOf"])))
    if "const" in schema:
        return json_text(schema["const"])
    if "enum" in schema:
        return " or ".join(map(json_text, schema["enum"]))
    match schema["type"]:
        case "array" if "prefixItems" in schema:
            return f"({', '.join(map(type_in_words, schema['prefixItems']))})"
        case "array":
            kind = "set" if schema.get("uniqueItems") else "list"
            return f"{kind} of {type_in_words(schema.get('items', True))}"
        case "object" if "additionalProperties" in schema and "properties" not in schema:
            return f"object of {type_in_words(schema['additionalProperties'])}"
        case str() as name:
            return name
        case names:
            return " or ".join(names)


def constraints_of(schema: Any) -> str:
    """The constraints of a schema apart from its type, such as `1 to 4000 characters`."""
    if isinstance(schema, bool):
        return ""
    parts = []
    if "format" in schema:
        parts.append(_FORMATS.get(schema["format"], schema["format"]))
    if "contentEncoding" in schema:
        parts.append(str(schema["contentEncoding"]))
    parts += [_range(schema, "minimum", "maximum", ""), _exclusive(schema)]
    if "multipleOf" in schema:
        parts.append(f"a multiple of {json_text(schema['multipleOf'])}")
    parts.append(_range(schema, "minLength", "maxLength", "characters"))
    if "pattern" in schema:
        parts.append(f"matches {schema['pattern']}")
    if "prefixItems" not in schema:
        parts.append(_range(schema, "minItems", "maxItems", "items"))
    parts.append(_range(schema, "minProperties", "maxProperties", "entries"))
    if "default" in schema:
        parts.append(f"default: {json_text(schema['default'])}")
    return ", ".join(part for part in parts if part)


def _range(schema: Any, low: str, high: str, unit: str) -> str:
    words = ""
    if low in schema and schema[low] == schema.get(high):
        words = f"exactly {json_text(schema[low])}"
    elif low in schema and high in schema:
        words = f"{json_text(schema[low])} to {json_text(schema[high])}"
    elif low in schema:
        words = f"{json_text(schema[low])} or more"
    elif high in schema:
        words = f"at most {json_text(schema[high])}"
    return f"{words} {unit}".strip() if words else ""


def _exclusive(schema: Any) -> str:
    words = []
    if "exclusiveMinimum" in schema:
        words.append(f"above {json_text(schema['exclusiveMinimum'])}")
    if "exclusiveMaximum" in schema:
        words.append(f"below {json_text(schema['exclusiveMaximum'])}")
    return " and ".join(words)
