import inspect

import pytest
from redis import exceptions

from eventbus.drivers.redis.errors import (
    KINDS,
    Refused,
    mapped,
    to_error,
)
from eventbus.errors import ConnectionFailed, DriverError, PublishFailed

CLASSES = [
    cls
    for _, cls in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(cls, BaseException) and cls.__module__ == exceptions.__name__
]


def test_there_are_classes_to_look_at():
    assert len(CLASSES) > 25


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_of_redis_py_is_named_in_the_table(cls):
    assert cls in KINDS, f"say in KINDS what {cls.__name__} becomes"
    assert issubclass(KINDS[cls], DriverError)


def test_class_that_is_not_named_becomes_what_its_base_does():
    class New(exceptions.AuthenticationError):
        pass

    assert type(to_error(New("no"), "doing")) is Refused


@pytest.mark.parametrize("error", [exceptions.ResponseError("no"), OSError("no")])
def test_nothing_of_redis_py_or_the_network_leaves_the_border(error):
    with pytest.raises(ConnectionFailed, match="reading: no") as caught, mapped("reading"):
        raise error
    assert caught.value.driver == "redis"
    assert caught.value.__cause__ is error


def test_other_errors_pass_as_they_are():
    with pytest.raises(KeyError), mapped("reading"):
        raise KeyError


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (exceptions.AuthenticationError("Authentication required."), Refused, "PASSWORD"),
        (exceptions.AuthenticationError("HELLO must be called with …"), Refused, "PASSWORD"),
        (exceptions.AuthenticationError("another text"), Refused, "REDIS_USERNAME and"),
        (exceptions.ResponseError("DB index is out of range"), Refused, "BROADCAST_REDIS_DATABASE"),
        (exceptions.OutOfMemoryError("command not allowed"), PublishFailed, "command not allowed"),
        (exceptions.BusyLoadingError("Redis is loading the dataset"), ConnectionFailed, "starting"),
        (exceptions.TimeoutError(), ConnectionFailed, "TimeoutError"),
    ],
)
def test_errors_say_what_to_do(error, kind, hint):
    mapped_error = to_error(error, "doing it")
    assert type(mapped_error) is kind
    assert str(mapped_error).startswith("doing it: ")
    assert hint in str(mapped_error)
