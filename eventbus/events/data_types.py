"""The type of the data that an event broadcasts: its own, or what `broadcast_with` returns."""

import functools
import inspect
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
    qualified_name,
)

__all__ = ["data_decoder", "data_type"]


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
def data_decoder(cls: type[Event]) -> msgspec.json.Decoder[Any] | None:
    """The decoder of the data that an overridden `broadcast_with` returns; one per type.

    None if the data cannot be checked: there is no annotation, or it names a type that is unknown
    at run time or that msgspec cannot decode.
    """
    try:
        returned = data_type(cls)
        msgspec.json.schema(returned)  # raises for classes that msgspec can only encode
    except (EventDefinitionError, TypeError):
        return None
    return None if returned is Any else msgspec.json.Decoder(returned)
