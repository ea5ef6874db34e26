"""`rescue=True`: a broker that is away fails no dispatch, and nothing else is hidden."""

import json
import logging

import pytest
from prometheus_client import REGISTRY

from eventbus import EventBus, sync
from eventbus.broadcasting import broadcast
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import (
    BusStateError,
    ConfigError,
    ConnectionFailed,
    DispatchFailed,
    EncodingError,
    EventFieldError,
    InvalidChannel,
    NotSupported,
    PublishFailed,
)
from eventbus.events import Event, ShouldBroadcast, ShouldQueue, current, default_listeners
from eventbus.server import NatsServer

NOWHERE = Settings(nats_url="nats://127.0.0.1:1", connect_timeout=0.2, publish_timeout=0.2)


class Pinged(Event, ShouldBroadcast, channel="pings.{n}", name="rescue.pinged", rescue=True):
    n: int


class Strict(Event, ShouldBroadcast, channel="strict", name="rescue.strict"):
    n: int


class Queued(Event, ShouldQueue, name="rescue.queued", queue="mails", rescue=True):
    n: int


class Later(Event, ShouldBroadcast, channel="later", name="rescue.later", rescue=True,
            after_commit=True):  # fmt: skip
    n: int


class Away(MemoryDriver):
    """A broker that takes nothing while it is away."""

    def __init__(self):
        super().__init__()
        self.error = PublishFailed("the broker is away", driver="away")

    async def publish(self, subject, payload, headers):
        if self.error is not None and b"strict" not in payload:
            raise self.error
        return await super().publish(subject, payload, headers)


@pytest.fixture
async def bus():
    async with EventBus(Settings(), Away()) as opened:
        yield opened


@pytest.fixture
def _no_sync_bus():
    yield
    sync.close()
    sync.configure(Settings(driver="memory"))


def _lines(caplog):
    return [each.getMessage() for each in caplog.records if each.name == "eventbus.events.rescue"]


async def test_broker_that_is_away_fails_no_dispatch_and_is_logged_at_a_limited_rate(bus, caplog):
    for n in range(50):
        assert await Pinged(n=n).dispatch() == ()
    assert bus.rescued == 50
    (line,) = _lines(caplog)
    assert line == (
        "event 'rescue.pinged' could not be sent to pings.0, and its dispatch does not fail "
        "(rescue): the broker is away"
    )
    bus.driver.error = None
    assert len(await Pinged(n=1).dispatch()) == 1
    assert bus.rescued == 50


def _counted(reason):
    return REGISTRY.get_sample_value("eventbus_rescued_total", {"reason": reason})


async def test_prometheus_sees_what_was_rescued_and_zero_before(bus):
    before = _counted("rescue")
    assert before is not None
    assert _counted("commit") is not None
    await bus.dispatch(Pinged(n=1), Pinged(n=2))
    await broadcast("general", "note", 1).rescue()
    assert _counted("rescue") == before + 3


async def test_listeners_run_though_the_broadcast_was_rescued(bus):
    heard = []
    bus.listen(Pinged)(heard.append)
    await Pinged(n=1).dispatch()
    assert heard == [Pinged(n=1)]


async def test_several_events_have_the_receipts_of_those_that_were_sent(bus):
    receipts = await bus.dispatch(Pinged(n=1), Strict(n=1), Pinged(n=2), Strict(n=2))
    assert [each.channel for each in receipts] == ["strict", "strict"]
    assert bus.rescued == 2


async def test_event_without_rescue_fails_the_dispatch_of_several(bus):
    class Other(Event, ShouldBroadcast, channel="others", name="rescue.other"):
        pass

    with pytest.raises(DispatchFailed) as failed:
        await bus.dispatch(Pinged(n=1), Other(), Strict(n=1))
    assert list(failed.value.failures) == ["others"]
    assert [each.channel for each in failed.value.receipts] == ["strict"]
    with pytest.raises(PublishFailed):
        await Other().dispatch()
    assert bus.rescued == 1


@pytest.mark.parametrize(
    ("event", "error"),
    [(Pinged(n="x"), EventFieldError), (Queued(n="x"), EventFieldError)],
)
async def test_invalid_event_is_never_rescued(bus, event, error):
    with pytest.raises(error):
        await event.dispatch()
    assert bus.rescued == 0


@pytest.mark.parametrize(
    "error",
    [EncodingError("too large"), NotSupported("no queue", driver="x"), ConfigError("wrong"),
     ZeroDivisionError()],
)  # fmt: skip
async def test_error_that_is_not_the_brokers_is_raised(bus, error):
    bus.driver.error = error
    with pytest.raises(type(error)):
        await Pinged(n=1).dispatch()
    with pytest.raises(type(error)):
        await broadcast("general", "note", 1).rescue()
    assert bus.rescued == 0


async def test_queued_event_that_no_queue_takes_is_rescued(nats_server_config, tmp_path, caplog):
    async with NatsServer(tmp_path, config=nats_server_config) as server:
        settings = Settings(
            nats_url=server.url, history_bytes=4 * 1024**2, connect_timeout=1, publish_timeout=1.5
        )
        bus = EventBus(settings)
        await bus.open()
        assert len(await bus.dispatch(Queued(n=1), Pinged(n=1))) == 2
    try:  # the server has ended
        assert await bus.dispatch(Queued(n=2), Pinged(n=2), Pinged(n=3)) == ()
        assert bus.rescued == 3
        lines = "\n".join(_lines(caplog))
        assert "'rescue.queued' could not be sent to queue mails" in lines
        assert "'rescue.pinged' could not be sent to pings.2" in lines
        assert await broadcast("general", "note", 1).rescue().send() == ()
        assert await broadcast("general", "note", 1).after(3).rescue() == ()
        assert bus.rescued == 5
        with pytest.raises(PublishFailed):
            await broadcast("general", "note", 1)
        with pytest.raises(EventFieldError):
            await bus.dispatch(Queued(n=2), Pinged(n="x"))
    finally:
        await bus.aclose()


async def test_broadcast_that_is_rescued_has_receipts_of_the_channels_that_took_it(bus, caplog):
    pending = broadcast().channels(["strict", "other"]).event("note").with_({"n": 1}).rescue()
    (receipt,) = await pending
    assert receipt.channel == "strict"
    assert ["'note' could not be sent to other" in line for line in _lines(caplog)] == [True]
    assert bus.rescued == 1
    with pytest.raises(ValueError, match="lacks"):
        await broadcast().rescue().send()
    with pytest.raises(EncodingError):
        await broadcast("other", "note", object()).rescue()


async def test_event_of_a_transaction_is_rescued_at_its_end(bus):
    async with bus.transaction():
        await Later(n=1).dispatch()
        assert bus.rescued == 0
    assert bus.rescued == 1


async def test_closed_bus_is_an_error_of_the_program():
    bus = EventBus(Settings(driver="memory"))
    with pytest.raises(BusStateError):
        await bus.dispatch(Pinged(n=1))


@pytest.mark.usefixtures("_no_sync_bus")
def test_sync_code_is_rescued_also_before_the_bus_has_ever_been_open(caplog):
    sync.configure(NOWHERE)
    assert Pinged(n=1).dispatch_sync() == ()
    assert Queued(n=1).dispatch_sync() == ()
    assert broadcast("general", "note", 1).rescue().send_sync() == ()
    assert broadcast("general", "note", 1).after(3).rescue().send_sync() == ()
    assert sync.rescued() == 4
    assert "rescue.pinged" in _lines(caplog)[0]
    with pytest.raises(ConnectionFailed):
        Strict(n=1).dispatch_sync()
    with pytest.raises(ConnectionFailed):
        broadcast("general", "note", 1).send_sync()
    with pytest.raises(EventFieldError):
        Pinged(n="x").dispatch_sync()
    with pytest.raises(InvalidChannel):
        broadcast("not a channel", "note", 1).rescue().send_sync()
    with pytest.raises(ConnectionFailed):
        sync.connect()


@pytest.mark.usefixtures("_no_sync_bus")
def test_sync_listeners_run_though_the_bus_could_not_open():
    heard = []
    sync.configure(NOWHERE)

    default_listeners.listen(Pinged)(heard.append)
    try:
        Pinged(n=7).dispatch_sync()
    finally:
        default_listeners.forget(Pinged, heard.append)
    assert heard == [Pinged(n=7)]


@pytest.mark.usefixtures("_no_sync_bus")
async def test_event_loops_without_a_bus_of_their_own_are_rescued():
    sync.configure(NOWHERE)
    sync.serve_event_loops()
    try:
        assert await Pinged(n=1).dispatch() == ()
        assert await broadcast("general", "note", 1).rescue() == ()
        with pytest.raises(ConnectionFailed):
            await Strict(n=1).dispatch()
        assert sync.rescued() == 2
    finally:
        current.provide_fallback(None)


def test_sync_bus_counts_what_it_rescues(caplog):
    caplog.set_level(logging.WARNING)
    driver = Away()
    with sync.EventBus(Settings(), driver) as bus:
        bus.dispatch(Pinged(n=1), Strict(n=1))
        with bus.transaction():
            bus.dispatch(Later(n=1))
        assert bus.rescued == 2
    assert len(_lines(caplog)) == 2


async def test_worker_retries_a_broadcast_and_does_not_rescue_it(bus):
    class Job(Event, ShouldQueue, ShouldBroadcast, channel="jobs", name="rescue.job", rescue=True):
        pass

    with pytest.raises(PublishFailed):
        await bus.process(Job())
    assert bus.rescued == 0


async def test_log_has_no_data_of_the_event(bus, caplog):
    await Pinged(n=4242).to_others("tab").dispatch()
    assert json.dumps({"n": 4242}) not in caplog.text
