"""Model broadcasting: typed events when objects of a model are created, changed and deleted."""

import datetime
import decimal
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import connections, models, transaction
from django.db.models.signals import post_delete, post_save, pre_save

from eventbus.events import Event, ShouldBroadcast

__all__ = ["ModelEvents", "broadcasts"]

M = TypeVar("M", bound=type[models.Model])

_APP: Final = "eventbus.integrations.django"
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
_TYPES: Final[Sequence[tuple[str, Any]]] = (  # the first that fits
    ("BooleanField", bool),
    ("UUIDField", uuid.UUID),
    ("DateTimeField", datetime.datetime),
    ("DateField", datetime.date),
    ("TimeField", datetime.time),
    ("DurationField", datetime.timedelta),
    ("DecimalField", decimal.Decimal),
    ("FloatField", float),
    ("IntegerField", int),
    ("AutoField", int),
    ("CharField", str),
    ("TextField", str),
    ("GenericIPAddressField", str),
    ("FileField", str),
    ("JSONField", Any),
)


class ModelEvents(NamedTuple):
    """The event types of a model, as `Model.events`."""

    created: type[Event]
    updated: type[Event]
    deleted: type[Event]


def broadcasts(
    channel: str, *, fields: Sequence[str], volatile: bool = False, outbox: bool = False
) -> Callable[[M], M]:
    """Broadcast the changes of a model's objects, after the commit of their transaction.

        @broadcasts("orders.{pk}", fields=["status", "carrier"])
        class Order(models.Model): ...

    `save()` and `delete()` then dispatch OrderCreated, OrderUpdated and OrderDeleted, which are
    event types like any other: `Order.events` has them. Their fields are the given ones, the
    primary key, and those of the channel's template. Changes by `QuerySet.update`, `bulk_create`
    and similar methods send no signal in Django, and so no event.

    An event that cannot be published is then logged, and does not fail the request: the events have
    `rescue=True`.

    With `outbox`, the events are rows of the outbox in the transaction of the change, so that a
    crash after the commit loses none. Objects are then saved within `transaction.atomic()` only:
    outside, `save()` raises TransactionManagementError and writes nothing.

    Raises ImproperlyConfigured for a field that the model does not have, or whose type is unknown,
    and with `outbox` if the app is not in INSTALLED_APPS.
    """

    def decorate(model: M) -> M:
        if outbox and not apps.is_installed(_APP):
            raise ImproperlyConfigured(
                f"@broadcasts on {model.__name__}: outbox=True needs {_APP!r} in INSTALLED_APPS"
            )
        events = _define(model, channel, fields, volatile=volatile)
        setattr(model, "events", events)  # noqa: B010 - the type of a model has no such attribute
        _connect(model, events, _add_to_outbox if outbox else _dispatch_after_commit)
        if outbox:
            pre_save.connect(
                _require_atomic, sender=model, dispatch_uid=f"eventbus.{model._meta.label}.atomic"
            )
        return model

    return decorate


def _define(
    model: type[models.Model], channel: str, fields: Sequence[str], *, volatile: bool
) -> ModelEvents:
    key = model._meta.pk.name
    template = _PLACEHOLDER.sub(
        lambda found: "{" + (key if found[1] == "pk" else found[1]) + "}", channel
    )
    named = (key, *_PLACEHOLDER.findall(template), *fields)
    types = {name: _type_of(model, name) for name in dict.fromkeys(named)}
    return ModelEvents(
        *(
            _event(model, what, template, types, volatile)
            for what in ("Created", "Updated", "Deleted")
        )
    )


def _event(
    model: type[models.Model], what: str, template: str, types: dict[str, Any], volatile: bool
) -> type[Event]:
    name = f"{model.__name__}{what}"
    namespace = {
        "__module__": model.__module__,
        "__qualname__": name,
        "__doc__": f"An object of {model.__name__} was {what.lower()}.",
        "__annotations__": dict(types),
    }
    metaclass: Any = type(Event)
    event_class: type[Event] = metaclass(
        name,
        (Event, ShouldBroadcast),
        namespace,
        channel=template,
        volatile=volatile,
        rescue=True,
        kw_only=True,
    )
    return event_class


def _connect(
    model: type[models.Model], events: ModelEvents, send: Callable[[Event, str], object]
) -> None:
    def saved(instance: models.Model, created: bool, raw: bool, using: str, **_: Any) -> None:
        if not raw:  # a fixture is loaded
            send(_new(events.created if created else events.updated, instance), using)

    def deleted(instance: models.Model, using: str, **_: Any) -> None:
        send(_new(events.deleted, instance), using)

    label = f"eventbus.{model._meta.label}"
    post_save.connect(saved, sender=model, weak=False, dispatch_uid=f"{label}.saved")
    post_delete.connect(deleted, sender=model, weak=False, dispatch_uid=f"{label}.deleted")


def _new(cls: type[Event], instance: models.Model) -> Event:
    """An event with the values that the object has now: a deleted one has no key at the commit."""
    return cls(**{name: _value(instance, name) for name in cls.__struct_fields__})


def _dispatch_after_commit(event: Event, using: str) -> None:
    transaction.on_commit(event.dispatch_sync, using=using, robust=True)


def _add_to_outbox(event: Event, using: str) -> None:
    from eventbus.integrations.django.models import add_to_outbox  # noqa: PLC0415 - needs the app

    add_to_outbox(event, using=using)


def _require_atomic(sender: type[models.Model], raw: bool, using: str, **_: Any) -> None:
    # Django sends post_save after the commit of a save without a transaction, and deletes within
    # one of its own.
    if not raw and not connections[using].in_atomic_block:
        raise transaction.TransactionManagementError(
            f"{sender.__name__} broadcasts its changes by way of the outbox, which needs their "
            "transaction: save it within `with transaction.atomic():`, or set ATOMIC_REQUESTS"
        )


def _value(instance: models.Model, name: str) -> Any:
    field = instance._meta.get_field(name)
    value = getattr(instance, field.attname)
    if isinstance(field, models.FileField):
        return value.name or ""
    return field.to_python(value)


def _type_of(model: type[models.Model], name: str) -> Any:
    try:
        field: Any = model._meta.get_field(name)
    except FieldDoesNotExist:
        allowed = ", ".join(each.name for each in model._meta.concrete_fields)
        raise ImproperlyConfigured(
            f"@broadcasts on {model.__name__}: there is no field {name!r}; allowed: {allowed}"
        ) from None
    if not getattr(field, "concrete", False) or field.many_to_many:
        raise ImproperlyConfigured(
            f"@broadcasts on {model.__name__}: {name!r} is not a column of the model's table"
        )
    is_null, base = field.null, field
    while base.is_relation:
        if isinstance(base.remote_field.model, str):
            raise ImproperlyConfigured(
                f"@broadcasts on {model.__name__}: {name!r} refers to {base.remote_field.model!r}, "
                "which is not defined yet: define that model first"
            )
        base = base.target_field
    bases = {each.__name__ for each in type(base).__mro__}
    for kind, type_ in _TYPES:
        if kind in bases or any(each.endswith(kind) for each in bases & {type(base).__name__}):
            return type_ | None if is_null and type_ is not Any else type_
    raise ImproperlyConfigured(
        f"@broadcasts on {model.__name__}: {name!r} is a {type(base).__name__}, whose type in an "
        "event is not known; dispatch an event of your own in a signal handler"
    )
