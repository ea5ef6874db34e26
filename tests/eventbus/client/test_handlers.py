"""Which handlers a subscription of a client accepts, and what it does with unfitting data."""

import msgspec
import pytest

from eventbus.client.frames import ClientMessage
from eventbus.client.handlers import Handlers


class Parcel(msgspec.Struct):
    weight: int


class Letter(msgspec.Struct):
    pages: int


async def generator(data):
    yield data


@pytest.mark.parametrize("handler", [generator, None, lambda: None, lambda data, *, key: None])
def test_handler_that_could_never_run_is_refused(handler):
    with pytest.raises(TypeError):
        Handlers("x").add("sent", handler, None, "orders.1")


@pytest.mark.parametrize("kind", [Parcel | Letter, list[Parcel | Letter]])
def test_type_that_cannot_be_decoded_is_refused(kind):
    with pytest.raises(TypeError, match="all Struct types must be tagged"):
        Handlers("x").add("sent", lambda data: None, kind, "orders.1")


@pytest.mark.parametrize("raw", [b"7", b'{"weight":"7"}', b"{}", b"[" * 1200, b"not JSON"])
async def test_data_that_does_not_fit_is_counted_and_the_next_message_is_handled(raw, caplog):
    handlers, got = Handlers("x"), []
    handlers.add("sent", got.append, Parcel, "orders.1")
    for each in (raw, b'{"weight":7}'):
        message = ClientMessage(channel="orders.1", event="sent", raw=each, timestamp="", id="i")
        await handlers.call(message)
    assert got == [Parcel(7)]
    assert handlers.failures == 1
    assert "the handler of 'sent' of the x failed" in caplog.text


async def test_defaulted_parameter_named_message_gets_the_message():
    handlers, got = Handlers("x"), []
    handlers.add("sent", lambda data, message=None: got.append((data, message)), None, "orders.1")
    message = ClientMessage(channel="orders.1", event="sent", raw=b"7", timestamp="")
    await handlers.call(message)
    assert got == [(7, message)]
