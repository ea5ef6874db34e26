"""Model broadcasting: typed events when objects of a model are created, changed and deleted."""

import datetime
import decimal
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import connections, models, transaction
from django.db.models.signals import (
    class_prepared,
    post_delete,
    post_save,
    pre_delete,
    pre_save,
)

from eventbus.events import Event, ShouldBroadcast

__all__ = ["ModelEvents", "broadcasts"]

M = TypeVar("M", bound=type[models.Model])

_log = logging.getLogger(__name__)

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


class _Broadcast(NamedTuple):
    """What `@broadcasts` was given for a model."""

    model: type[models.Model]
    events: ModelEvents
    outbox: bool


_broadcasts: Final[dict[type[models.Model], _Broadcast]] = {}
_STORED: Final = "_eventbus_stored"
"""Where an object that is being deleted has the values of `_stored`."""


def broadcasts(
    channel: str, *, fields: Sequence[str], volatile: bool = False, outbox: bool = False
) -> Callable[[M], M]:
    """Broadcast the changes of a model's objects, after the commit of their transaction.

        @broadcasts("orders.{pk}", fields=["status", "carrier"])
        class Order(models.Model): ...

    `save()` and `delete()` then dispatch OrderCreated, OrderUpdated and OrderDeleted, which are
    event types like any other: `Order.events` has them. Their fields are the given ones, the
    primary key, and those of the channel's template. Changes by way of a subclass, such as a proxy
    model, dispatch these events too, unless it has `@broadcasts` of its own. Changes by
    `QuerySet.update`, `bulk_create` and similar methods send no signal in Django, and so no event.

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
        _broadcasts[model] = _Broadcast(model, events, outbox)
        for each in _with_subclasses(model):
            _connect(each)
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


def _with_subclasses(model: type[models.Model]) -> Iterator[type[models.Model]]:
    yield model
    for each in model.__subclasses__():
        yield from _with_subclasses(each)


def _connect(model: type[models.Model]) -> None:
    # A receiver of all senders would keep Django from its fast deletion of other models' objects.
    pre_save.connect(_saving, sender=model)
    post_save.connect(_saved, sender=model)
    pre_delete.connect(_deleting, sender=model)
    post_delete.connect(_deleted, sender=model)


def _connect_subclass(sender: type[models.Model], **_: Any) -> None:
    if any(each in _broadcasts for each in sender.__mro__):
        _connect(sender)


class_prepared.connect(_connect_subclass)


def _broadcast_of(sender: type[models.Model]) -> _Broadcast:
    return next(_broadcasts[each] for each in sender.__mro__ if each in _broadcasts)


def _saving(sender: type[models.Model], raw: bool, using: str, **_: Any) -> None:
    # Django sends post_save after the commit of a save without a transaction, and deletes within
    # one of its own.
    if raw or connections[using].in_atomic_block or not _broadcast_of(sender).outbox:
        return
    raise transaction.TransactionManagementError(
        f"{sender.__name__} broadcasts its changes by way of the outbox, which needs their "
        "transaction: save it within `with transaction.atomic():`, or set ATOMIC_REQUESTS"
    )


def _saved(
    sender: type[models.Model],
    instance: models.Model,
    created: bool,
    raw: bool,
    using: str,
    **_: Any,
) -> None:
    if raw:  # a fixture is loaded
        return
    broadcast = _broadcast_of(sender)
    cls = broadcast.events.created if created else broadcast.events.updated
    _send(broadcast, cls, instance, _stored(cls, instance, using), using)


def _deleting(sender: type[models.Model], instance: models.Model, using: str, **_: Any) -> None:
    # At post_delete, the row is gone.
    cls = _broadcast_of(sender).events.deleted
    instance.__dict__[_STORED] = _stored(cls, instance, using)


def _deleted(sender: type[models.Model], instance: models.Model, using: str, **_: Any) -> None:
    stored = instance.__dict__.pop(_STORED, {})
    broadcast = _broadcast_of(sender)
    # An object of a subclass with a table of its own is deleted there first: Django sends the
    # signal for its row of the parent's table as well.
    if sender._meta.concrete_model is broadcast.model._meta.concrete_model:
        _send(broadcast, broadcast.events.deleted, instance, stored, using)


def _send(
    broadcast: _Broadcast,
    cls: type[Event],
    instance: models.Model,
    stored: Mapping[str, Any] | None,
    using: str,
) -> None:
    if stored is None:
        _log.warning(
            "%s is not sent: the object's row was deleted before its fields could be read",
            cls.__name__,
        )
        return
    # With the values that the object has now: a deleted one has no key at the commit.
    names = cls.__struct_fields__
    event = cls(**{n: stored[n] if n in stored else _value(instance, n) for n in names})
    if broadcast.outbox:
        from eventbus.integrations.django.models import (  # noqa: PLC0415 - needs the app
            add_to_outbox,
        )

        add_to_outbox(event, using=using)
    else:
        transaction.on_commit(event.dispatch_sync, using=using, robust=True)


def _stored(cls: type[Event], instance: models.Model, using: str) -> Mapping[str, Any] | None:
    """The database's values of the event's fields that the object does not have.

    They are deferred, or an expression that the database evaluates, such as `F("stock") + 1`. None
    if there is no such row.
    """
    deferred = instance.get_deferred_fields()
    names = [
        name
        for name in cls.__struct_fields__
        if (attname := instance._meta.get_field(name).attname) in deferred
        or hasattr(instance.__dict__[attname], "resolve_expression")
    ]
    if not names:
        return {}
    rows = type(instance)._base_manager.using(using).only(*names)
    found = rows.filter(pk=instance.pk).first()
    return None if found is None else {name: _value(found, name) for name in names}


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
