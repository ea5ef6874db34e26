"""Pydantic models as data: what msgspec needs to encode, decode and describe them.

Pydantic is optional. Nothing imports it before the application does: without its module in
`sys.modules`, no value or type can be a model.
"""

import dataclasses
import functools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    Union,
    get_args,
    get_origin,
)

import msgspec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "MODEL_REF",
    "check_models",
    "decodable",
    "decode_model",
    "encode_model",
    "explained",
    "is_model",
    "may_have_models",
    "model_schemas",
]

MODEL_REF: Final = "#/models/"
"""Where the schemas of `model_schemas` refer to each other, followed by a name."""
_UNIONS: Final = (Union, types.UnionType)


class _AnyInstance(type):
    """msgspec checks what a hook returns with isinstance; Pydantic has checked it already."""

    annotation: Any = None

    def __instancecheck__(cls, instance: object) -> bool:
        return True


class _ModelUnion(metaclass=_AnyInstance):
    """Stands for a union of models in a type that msgspec decodes: it refuses such unions."""


def may_have_models() -> bool:
    """Whether the application uses Pydantic."""
    return "pydantic.main" in sys.modules


def is_model(type_: Any) -> bool:
    """Whether a type is a Pydantic model (of version 2), or stands for a union of them."""
    if not may_have_models():
        return False
    from pydantic import BaseModel  # noqa: PLC0415 - optional, and imported already

    return isinstance(type_, _AnyInstance) or (
        isinstance(type_, type) and issubclass(type_, BaseModel)
    )


def encode_model(value: Any) -> Any:
    """The `enc_hook` of msgspec: a model as JSON values, by its serialization aliases.

    Without warnings for values that do not fit the model's fields: the caller decodes the result.
    """
    if is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True, warnings=False)
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


def decode_model(type_: Any, value: Any) -> Any:
    """The `dec_hook` of msgspec: a model of decoded JSON; any other value is returned for msgspec.

    Validates JSON, not Python values: a strict model takes a date only from JSON's string.
    """
    if not is_model(type_):
        return value
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        return _adapter(type_).validate_json(msgspec.json.encode(value))
    except ValidationError as exc:
        raise _Mismatch(exc, value) from None
    except OverflowError as exc:
        raise ValueError(str(exc)) from None


class _Mismatch(ValueError):
    """Data that does not fit a model. Never shows the data, which may be confidential."""

    def __init__(self, exc: Any, value: Any) -> None:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{first['msg']}{more}")
        self.path = _path(first["loc"], value, is_missing=first["type"] == "missing")


def explained(exc: msgspec.ValidationError) -> msgspec.ValidationError:
    """The error with the whole path of the value: msgspec's ends at the model."""
    cause = exc.__cause__
    if not isinstance(cause, _Mismatch) or not cause.path:
        return exc
    outer = str(exc).removeprefix(str(cause)).removeprefix(" - at `").removesuffix("`") or "$"
    return msgspec.ValidationError(f"{cause} - at `{outer}{cause.path}`")


def _path(loc: Iterable[str | int], value: Any, *, is_missing: bool) -> str:
    """The path of a value inside a model, without the names of validators and union members."""
    path, parts = "", list(loc)
    for position, part in enumerate(parts):
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            path += f"[{part}]"
            value = value[part]
        elif isinstance(value, dict) and part in value:
            path += f".{part}"
            value = value[part]
        elif is_missing and position == len(parts) - 1:
            path += f".{part}"
    return path


def decodable(type_: Any) -> Any:
    """The type with a stand-in for each union of models, or the type itself if it has none."""
    if not may_have_models():
        return type_
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is None and hasattr(type_, "__value__"):  # a type alias, PEP 695
        inner = decodable(type_.__value__)
        return type_ if inner is type_.__value__ else inner
    if origin is None or origin in (Literal, ClassVar):
        return type_
    if origin is Annotated:
        inner = decodable(arguments[0])
        if inner is arguments[0]:
            return type_
        if isinstance(inner, _AnyInstance):
            return _stand_in(type_)  # the annotations may hold the union's discriminator
        return Annotated[(inner, *arguments[1:])]
    if origin in _UNIONS:
        members = [each for each in arguments if each is not types.NoneType]
        if len(members) > 1 and (
            any(is_model(_bare(each)) for each in members) or sum(map(_has_model, members)) > 1
        ):
            return _stand_in(type_)
    replaced = [decodable(each) for each in arguments]
    if all(one is other for one, other in zip(replaced, arguments, strict=True)):
        return type_
    return Union[tuple(replaced)] if origin in _UNIONS else origin[tuple(replaced)]  # noqa: UP007


def check_models(type_: Any) -> bool:
    """Whether msgspec finds models in a type. Raises TypeError for one that cannot be sent.

    Raises what `msgspec.inspect.type_info` does, and NameError for a model that is not complete.
    """
    if not may_have_models():
        return False
    found = [each for each in _custom_types(type_) if is_model(each)]
    for each in found:
        for member in _parts(each.annotation) if isinstance(each, _AnyInstance) else ():
            _refuse_dataclass(member)
        _check_secrets(each)
    return bool(found)


def model_schemas(
    found: Iterable[type],
) -> tuple[dict[type, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The JSON Schema of each model or stand-in, and the schemas that they refer to, by name.

    They are what a model publishes. Computed fields are not required: clients and other
    applications need not send them, and stored messages may be older. Raises TypeError.
    """
    handled = [each for each in dict.fromkeys(found) if is_model(each)]
    if not handled:
        return {}, {}
    from pydantic import TypeAdapter  # noqa: PLC0415
    from pydantic.errors import PydanticInvalidForJsonSchema  # noqa: PLC0415

    try:
        schemas, whole = TypeAdapter.json_schemas(
            [(position, "serialization", _adapter(each)) for position, each in enumerate(handled)],
            ref_template=f"{MODEL_REF}{{model}}",
            schema_generator=_generator(),
        )
    except PydanticInvalidForJsonSchema as exc:
        raise TypeError(str(exc)) from None
    named = whole.get("$defs", {})
    for tag, name in _tags([*schemas.values(), named]):
        # Pydantic requires it in a union, even if it has a default.
        required = named[name].setdefault("required", [])
        if tag not in required:
            required.append(tag)
    return (
        {each: _plain(schemas[position, "serialization"]) for position, each in enumerate(handled)},
        {name: _plain(schema) for name, schema in named.items()},
    )


def _bare(type_: Any) -> Any:
    return _bare(get_args(type_)[0]) if get_origin(type_) is Annotated else type_


def _has_model(type_: Any) -> bool:
    return is_model(type_) or any(map(_has_model, get_args(type_)))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for each in get_args(annotation):
        yield from _parts(each)


def _stand_in(annotation: Any) -> type:
    name = str(annotation) if get_origin(annotation) in _UNIONS else "union of models"
    return _AnyInstance(name, (_ModelUnion,), {"annotation": annotation})


@functools.lru_cache(maxsize=1024)
def _adapter(type_: Any) -> "TypeAdapter[Any]":
    """Raises NameError for a model that refers to types that are not defined yet, and TypeError."""
    from pydantic import TypeAdapter  # noqa: PLC0415
    from pydantic.errors import (  # noqa: PLC0415
        PydanticSchemaGenerationError,
        PydanticUserError,
    )

    try:
        adapter = TypeAdapter(type_.annotation if isinstance(type_, _AnyInstance) else type_)
        adapter.rebuild(raise_errors=True)
    except PydanticSchemaGenerationError as exc:
        raise TypeError(
            f"a union of Pydantic models can have only members that Pydantic knows: {exc}"
        ) from None
    except PydanticUserError as exc:
        if exc.code != "class-not-fully-defined":
            raise TypeError(str(exc)) from None
        raise NameError(str(exc)) from None
    return adapter


@functools.cache
def _generator() -> Any:
    from pydantic.json_schema import GenerateJsonSchema  # noqa: PLC0415

    class Generator(GenerateJsonSchema):
        ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    return Generator


@functools.cache
def _lenient_generator() -> Any:
    """For types without a schema too."""

    class Lenient(_generator()):  # type: ignore[misc] # pydantic is optional
        def handle_invalid_for_json_schema(self, _schema: Any, _info: str) -> dict[str, Any]:
            return {}

    return Lenient


def _custom_types(type_: Any) -> Iterator[Any]:
    """Types inside a type that msgspec leaves to hooks. Raises TypeError for Pydantic dataclasses.

    msgspec would encode these itself: without their aliases, and without serializers that mask.
    """
    queue: list[Any] = [msgspec.inspect.type_info(type_)]
    seen = set[Any]()
    while queue:
        match queue.pop():
            case msgspec.inspect.CustomType(cls=cls):
                yield cls
            case msgspec.Struct() as info:
                owner: Any = getattr(info, "cls", None)
                if owner in seen:
                    continue
                if owner is not None:
                    seen.add(owner)
                    _refuse_dataclass(owner)
                queue += [getattr(info, field) for field in info.__struct_fields__]
            case tuple() as parts:
                queue += parts
            case _:
                pass


def _refuse_dataclass(type_: Any) -> None:
    name = getattr(type_, "__name__", str(type_))
    if dataclasses.is_dataclass(type_) and hasattr(type_, "__pydantic_validator__"):
        raise TypeError(
            f"{name} is a Pydantic dataclass, which msgspec would encode without "
            f"Pydantic: make it a BaseModel, or declare RootModel[{name}]"
        )


@functools.lru_cache(maxsize=1024)
def _check_secrets(type_: Any) -> None:
    schema = _adapter(type_).json_schema(
        mode="serialization", schema_generator=_lenient_generator()
    )
    for name, secret in _secrets(schema, ""):
        raise TypeError(
            f"{secret or type_.__name__}: {name or 'its value'} is a secret, which Pydantic "
            "would publish masked: leave it out with Field(exclude=True), or declare a str"
        )


def _secrets(schema: Any, name: str, model: str = "") -> Iterator[tuple[str, str]]:
    """The fields of secret types, with the model that has them."""
    if isinstance(schema, list):
        for each in schema:
            yield from _secrets(each, name, model)
    elif isinstance(schema, dict):
        if schema.get("writeOnly") is True:
            yield name, model
        for key, each in schema.items():
            if key in ("default", "enum", "const", "examples"):
                continue
            if key == "properties":
                for field, inner in each.items():
                    yield from _secrets(inner, repr(field), str(schema.get("title", model)))
            else:
                yield from _secrets(each, name, model)


def _tags(schema: Any) -> Iterator[tuple[str, str]]:
    """The fields that distinguish the models of a union, each with the name of such a model."""
    if isinstance(schema, list):
        for each in schema:
            yield from _tags(each)
    elif isinstance(schema, dict):
        match schema.get("discriminator"):
            case {"propertyName": str() as tag, "mapping": dict() as mapping}:
                for ref in mapping.values():
                    yield tag, str(ref).removeprefix(MODEL_REF)
            case _:
                pass
        for each in schema.values():
            yield from _tags(each)


def _plain(schema: Any) -> Any:
    """A schema in the keywords that msgspec's schemas have, without titles."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for key, each in schema.items():
        match key:
            case "title" | "discriminator":
                pass
            case "properties" | "patternProperties":
                plain[key] = {name: _plain(inner) for name, inner in each.items()}
            case "const":
                plain["enum"] = [each]
            case "oneOf":
                plain["anyOf"] = _plain(each)
            case "default" | "enum" | "examples":
                plain[key] = each
            case _:
                plain[key] = _plain(each)
    if "required" in plain:
        properties = plain.get("properties", {})
        plain["required"] = [
            name for name in plain["required"] if not properties.get(name, {}).get("readOnly")
        ]
    return plain
