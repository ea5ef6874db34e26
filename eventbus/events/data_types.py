"""The type of the data that an event broadcasts: its own, or what `broadcast_with` returns."""

import functools
import inspect
from collections.abc import Callable
from typing import (
    Any,
    Self,
    get_type_hints,
)

import msgspec

from eventbus.errors import EventDefinitionError
from eventbus.events.event import (
    Event,
    ShouldBroadcast,
    event_decoder,
    event_definition,
    qualified_name,
)
from eventbus.messages import check_models, decodable, is_model, json_decoder

__all__ = ["data_decoder", "data_has_models", "data_type"]


def data_type(cls: type[Event]) -> Any:
    """The type of a broadcast event's data; Any if `broadcast_with` has no annotation.

    Raises EventDefinitionError for an annotation that cannot be resolved.
    """
    method = inspect.getattr_static(cls, "broadcast_with")
    if method is inspect.getattr_static(ShouldBroadcast, "broadcast_with"):
        return cls
    try:
        returned = get_type_hints(method, include_extras=True).get("return", Any)
    except (NameError, TypeError) as exc:
        raise EventDefinitionError(
            f"{qualified_name(cls)}.broadcast_with(): its annotation cannot be resolved: {exc}"
        ) from None
    if returned is Self:
        return cls
    return Any if returned is object else returned


@functools.lru_cache(maxsize=1024)
def data_decoder(cls: type[Event]) -> Callable[[bytes], Any] | None:
    """Decodes the data that an overridden `broadcast_with` returns; one function per type.

    None if the data cannot be checked: there is no annotation, or it names a type that is unknown
    at run time or that msgspec cannot decode.
    """
    try:
        returned = data_type(cls)
        # Raises for classes that msgspec can only encode.
        msgspec.json.schema(decodable(returned), schema_hook=_schema_hook)
    except (EventDefinitionError, TypeError):
        return None
    data_has_models(cls)
    return None if returned is Any else json_decoder(returned)


@functools.lru_cache(maxsize=1024)
def data_has_models(cls: type[Event]) -> bool:
    """Whether a broadcast event's data is or has Pydantic models.

    Raises EventDefinitionError for models that cannot be sent.
    """
    returned = data_type(cls)
    if returned is cls:
        event_decoder(cls)  # completes the definition
        return event_definition(cls).has_models
    try:
        return check_models(decodable(returned))
    except TypeError as exc:
        raise EventDefinitionError(f"{qualified_name(cls)}.broadcast_with(): {exc}") from None


def _schema_hook(type_: type) -> dict[str, Any]:
    if not is_model(type_):
        raise NotImplementedError
    return {"type": "object"}  # not used: msgspec only needs to have one
