"""Channel templates: filled from an event's fields."""

import enum
import uuid
from typing import Any

from eventbus.channels import MAX_CHANNEL_BYTES, Pattern, validate_channel
from eventbus.errors import EventFieldError, InvalidChannel

__all__ = ["fill_template"]


def fill_template(template: Pattern, fields: Any, event: str) -> str:
    """The channel that `template` makes of the attributes of `fields`.

    `event` is the event's name, for errors. Raises EventFieldError.
    """
    values = {field: _token(getattr(fields, field), field, event, template)
              for field in template.names}  # fmt: skip
    try:
        return template.fill(values)
    except InvalidChannel:
        field = max(values, key=lambda field: len(values[field]))
        raise EventFieldError(
            f"event {event!r}: field {field!r} makes channel {template.text!r} too long: "
            f"{values[field][:80]!r} has {len(values[field])} characters",
            event=event,
            field=field,
        ) from None


def _token(value: object, field: str, event: str, template: Pattern) -> str:
    plain = value.value if isinstance(value, enum.Enum) else value
    if isinstance(plain, str | int | uuid.UUID) and not isinstance(plain, bool):
        text = str(plain)
        if _is_token(text):
            return text
    raise EventFieldError(
        f"event {event!r}: field {field!r} cannot stand in channel {template.text!r}: "
        f"{repr(value)[:80]} is not one token; allowed are str, int, UUID and enums of these, of "
        f"1 to {MAX_CHANNEL_BYTES} letters, digits and _ = @ , ; -",
        event=event,
        field=field,
    )


def _is_token(text: str) -> bool:
    try:
        return "." not in validate_channel(text)
    except InvalidChannel:
        return False
