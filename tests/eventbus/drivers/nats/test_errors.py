import inspect

import nats.errors
import nats.js.errors
import pytest

from eventbus.drivers.nats.errors import (
    KINDS,
    mapped,
    to_error,
)
from eventbus.errors import ConnectionFailed, EncodingError, EventBusError, PublishFailed

ALL = sorted(
    {c for _, c in inspect.getmembers(nats.errors, inspect.isclass) if issubclass(c, Exception)},
    key=lambda c: c.__name__,
)


def made(kind):
    """An instance without its constructor, some of which take what only a client has."""
    exc = kind.__new__(kind)
    if kind is nats.errors.SlowConsumerError:
        exc.subject, exc.reply, exc.sid, exc.sub = "a", "", 1, None
    if kind is nats.errors.MsgAlreadyAckdError:
        exc._msg = None
    if kind is nats.errors.BadHeaderError:
        exc.key = "a b"
    return exc


@pytest.mark.parametrize("kind", ALL, ids=lambda c: c.__name__)
def test_every_error_of_nats_py_is_mapped_by_name(kind):
    assert kind in KINDS, f"say in KINDS what nats.errors.{kind.__name__} becomes"
    with pytest.raises(EventBusError, match=r"^doing it: ") as caught, mapped("doing it"):
        raise made(kind)
    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize("kind", [ConnectionRefusedError, TimeoutError, OSError])
def test_errors_of_the_network_are_connection_failures(kind):
    with pytest.raises(ConnectionFailed), mapped("x"):
        raise kind


def test_errors_of_jetstream_are_mapped_by_their_base():
    assert isinstance(to_error(nats.js.errors.NotFoundError(), "x"), ConnectionFailed)


def test_errors_of_the_publisher_differ_from_those_of_the_connection():
    assert isinstance(to_error(nats.errors.MaxPayloadError(), "x"), EncodingError)
    assert isinstance(to_error(nats.errors.OutboundBufferLimitError(), "x"), PublishFailed)


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), mapped("x"):
        raise ZeroDivisionError
