"""Several drivers at once: which must take a message, which is subscribed to, and how faults are
reported."""

import asyncio
import logging

import pytest

from eventbus.bus import EventBus
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers import create_driver, stack as stack_module
from eventbus.drivers.base import NO_HEADERS, Capability
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.drivers.null import NullDriver
from eventbus.drivers.stack import StackDriver
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    EncodingError,
    NotSupported,
    PublishFailed,
    StreamMismatch,
)
from eventbus.testing.contracts import DriverContract
from eventbus.testing.contracts.driver import Inbox

SUBJECTS = Subjects()


class Faulty(MemoryDriver):
    """The memory driver as one over a broker that fails, or does not answer."""

    def __init__(self, name, *, opening=None, publishing=None, history=True):
        super().__init__()
        self.name = name
        self.opening = opening
        self.publishing = publishing
        self.gate = asyncio.Event()
        self.gate.set()
        self.taken = []
        self.closed = 0
        if not history:
            self.capabilities = frozenset()

    async def open(self):
        if self.opening is not None:
            raise self.opening
        await super().open()

    async def publish(self, subject, payload, headers=NO_HEADERS):
        await self.gate.wait()
        if self.publishing is not None:
            raise self.publishing
        self.taken.append(payload)
        return await super().publish(subject, payload, headers)

    async def aclose(self):
        self.closed += 1
        await super().aclose()


def stack_of(*drivers, required, **more):
    made = {driver.name: driver for driver in drivers}
    return StackDriver({name: lambda d=d: d for name, d in made.items()}, required, **more)


@pytest.fixture
def open_stack(opened):
    return lambda *drivers, **options: opened(stack_of(*drivers, **options))


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - a driver's own tasks bring it about
            await asyncio.sleep(0.001)


class TestStackOfMemory(DriverContract):
    @pytest.fixture
    def make_driver(self, opened):
        broker = MemoryBroker()
        drivers = {"null": NullDriver, "memory": lambda: MemoryDriver(broker)}
        return lambda: opened(StackDriver(drivers, ["null", "memory"]))


class TestStackOfNatsAndLog(DriverContract):
    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest.fixture
    def make_driver(self, nats_server, namespace, tmp_path, opened):
        settings = Settings(
            driver="stack",
            stack=("log", "nats"),
            nats_url=nats_server.url,
            namespace=namespace,
            history_bytes=4 * 1024**2,
            log_path=str(tmp_path / "audit.log"),
        )
        return lambda: opened(create_driver(settings))


async def test_every_driver_gets_every_message_in_order(open_stack):
    one, two = Faulty("one"), Faulty("two")
    stack = await open_stack(one, two, required=["one", "two"])
    for i in range(50):
        await stack.publish(SUBJECTS.event("a"), str(i).encode())
    assert one.taken == two.taken == [str(i).encode() for i in range(50)]


async def test_message_is_given_to_all_at_the_same_time(open_stack):
    one, two = Faulty("one"), Faulty("two")
    stack = await open_stack(one, two, required=["one", "two"])
    one.gate.clear()
    publishing = asyncio.create_task(stack.publish(SUBJECTS.event("a"), b"x"))
    await until(lambda: two.taken)
    assert not publishing.done()
    one.gate.set()
    await publishing
    assert one.taken == [b"x"]


async def test_positions_history_and_messages_are_the_readers(open_stack):
    plain = Faulty("plain", history=False)
    reader = Faulty("reader")
    stack = await open_stack(plain, reader, required=["plain", "reader"])
    inbox = Inbox()
    await reader.publish(SUBJECTS.event("a"), b"before")
    subscription = await stack.subscribe(SUBJECTS.live("a"), inbox)
    published = await stack.publish(SUBJECTS.event("a"), b"x")
    assert stack.capabilities == reader.capabilities >= {Capability.HISTORY}
    assert published.position == (2, reader.broker.epoch)
    assert subscription.position == (1, reader.broker.epoch)
    await inbox.until(1)
    assert inbox.payloads == [b"x"], "and not twice, though two drivers have it"
    page = await stack.read(SUBJECTS.live("a"), after=None, limit=10)
    assert [message.payload for message in page.messages] == [b"before", b"x"]


async def test_stack_without_history_listens_to_its_first_and_says_that_it_cannot_read(open_stack):
    first, second = Faulty("first", history=False), NullDriver()
    stack = await open_stack(first, second, required=["first"])
    inbox = Inbox()
    await stack.subscribe(SUBJECTS.live("a"), inbox)
    await stack.publish(SUBJECTS.live("a"), b"x")
    await inbox.until(1)
    with pytest.raises(
        NotSupported, match="driver first, through which it subscribes, has no history"
    ):
        await stack.read(SUBJECTS.live("a"), after=None, limit=1)


async def test_failure_of_a_required_driver_names_it_and_the_others_have_the_message(open_stack):
    good = Faulty("good")
    bad = Faulty("bad", publishing=PublishFailed("no answer within 15 s", driver="bad"))
    stack = await open_stack(good, bad, required=["good", "bad"])
    with pytest.raises(PublishFailed, match=r"eb\.event\.a was not taken by bad: no answer") as e:
        await stack.publish(SUBJECTS.event("a"), b"x")
    assert e.value.driver == "bad"
    assert e.value.__cause__ is bad.publishing
    assert good.taken == [b"x"]
    assert stack.counters == {}, "what is raised is not counted as an optional driver's"


async def test_failure_of_several_names_them_all(open_stack):
    stack = await open_stack(
        Faulty("one", publishing=PublishFailed("slow", driver="one")),
        Faulty("two", publishing=RuntimeError("broken")),
        required=["one", "two"],
    )
    with pytest.raises(PublishFailed, match="by one: slow; two: broken") as caught:
        await stack.publish(SUBJECTS.event("a"), b"x")
    assert caught.value.driver == "one,two"


async def test_message_that_a_required_driver_will_never_take_is_reported_as_such(open_stack):
    stack = await open_stack(
        Faulty("one"), Faulty("two", publishing=EncodingError("too large")), required=["two"]
    )
    with pytest.raises(EncodingError, match="two: too large"):
        await stack.publish(SUBJECTS.event("a"), b"x")


@pytest.mark.parametrize(
    "fault", [PublishFailed("disk full", driver="audit"), RuntimeError("a bug")], ids=repr
)
async def test_optional_drivers_fault_is_counted_and_logged_once_and_never_raised(
    open_stack, caplog, fault
):
    main, audit = Faulty("main"), Faulty("audit", publishing=fault)
    stack = await open_stack(main, audit, required=["main"])
    for _ in range(5):
        assert (await stack.publish(SUBJECTS.event("a"), b"x")).position.epoch
    await until(lambda: stack.counters["audit.errors"] == 5)
    records = [r for r in caplog.records if r.name == stack_module.__name__]
    assert len(records) == 1, "a broken disk must not fill the log too"
    assert f"the stack's driver audit did not take a message: {fault}" in records[0].getMessage()
    assert bool(records[0].exc_info) == isinstance(fault, RuntimeError), "a bug has its traceback"


async def test_slow_optional_driver_delays_nobody_and_gets_its_messages_at_the_close():
    main, audit = Faulty("main"), Faulty("audit")
    stack = stack_of(main, audit, required=["main"])
    await stack.open()
    audit.gate.clear()
    for i in range(10):
        await stack.publish(SUBJECTS.event("a"), str(i).encode())
    assert len(main.taken) == 10
    assert audit.taken == []
    closing = asyncio.create_task(stack.aclose())
    await asyncio.sleep(0)
    audit.gate.set()
    await closing
    assert audit.taken == main.taken
    assert (main.closed, audit.closed) == (1, 1)


async def test_close_does_not_wait_forever_for_an_optional_driver(caplog):
    main, audit = Faulty("main"), Faulty("audit")
    stack = stack_of(main, audit, required=["main"], close_timeout=0.05)
    await stack.open()
    audit.gate.clear()
    await stack.publish(SUBJECTS.event("a"), b"x")
    await stack.aclose()
    assert "closes with 1 messages not yet taken" in caplog.text
    assert (main.closed, audit.closed) == (1, 1)


async def test_messages_for_a_driver_that_hangs_are_bounded(open_stack, monkeypatch, caplog):
    monkeypatch.setattr(stack_module, "MAX_BEHIND", 3)
    main, audit = Faulty("main"), Faulty("audit")
    stack = await open_stack(main, audit, required=["main"])
    audit.gate.clear()
    for i in range(5):
        await stack.publish(SUBJECTS.event("a"), str(i).encode())
    assert stack.counters == {"audit.errors": 2}
    assert "audit is 3 messages behind, and does not get this one" in caplog.text
    audit.gate.set()
    await until(lambda: len(audit.taken) == 3)
    assert audit.taken == [b"0", b"1", b"2"]


async def test_message_that_no_driver_can_take_in_time_is_not_lost_in_silence(
    open_stack, monkeypatch
):
    monkeypatch.setattr(stack_module, "MAX_BEHIND", 1)
    one = Faulty("one")
    stack = await open_stack(one, required="any")
    one.gate.clear()
    first = asyncio.create_task(stack.publish(SUBJECTS.event("a"), b"1"))
    await asyncio.sleep(0)
    with pytest.raises(PublishFailed, match="one are each 1 messages behind") as caught:
        await stack.publish(SUBJECTS.event("a"), b"2")
    assert caught.value.driver == "one"
    one.gate.set()
    await first
    assert one.taken == [b"1"]


async def test_publisher_is_notified_when_the_stack_closes_before_a_required_driver_answers():
    main = Faulty("main")
    stack = stack_of(main, required=["main"], close_timeout=0.05)
    await stack.open()
    main.gate.clear()
    publishing = asyncio.create_task(stack.publish(SUBJECTS.event("a"), b"x"))
    await asyncio.sleep(0)
    await stack.aclose()
    with pytest.raises(PublishFailed, match="by main: the stack was closed"):
        await publishing


async def test_driver_that_cancels_a_message_itself_has_failed(open_stack):
    main = Faulty("main", publishing=asyncio.CancelledError())
    stack = await open_stack(main, required=["main"])
    with pytest.raises(PublishFailed, match="by main: the driver gave up on the message"):
        await stack.publish(SUBJECTS.event("a"), b"x")


async def test_queues_groups_and_consumers_are_the_readers(open_stack):
    main = Faulty("main")
    stack = await open_stack(NullDriver(), main, required=["main"])
    inboxes = [Inbox(), Inbox()]
    for inbox in inboxes:
        await stack.subscribe_group(SUBJECTS.live("a"), "workers", inbox)
    consumer = await stack.consume("billing", SUBJECTS.live("a"), ConsumerSettings())
    await stack.publish(SUBJECTS.event("a"), b"x")
    [held] = await consumer.take(10)
    assert held.delivery.payload == b"x"
    await held.ack()
    await until(lambda: sum(len(inbox.deliveries) for inbox in inboxes) == 1)
    assert stack.queues is main.queues
    await consumer.aclose()


async def test_capability_that_the_reader_lacks_is_not_supported(open_stack):
    stack = await open_stack(NullDriver(), required=["null"])
    assert stack.capabilities == frozenset()
    with pytest.raises(NotSupported, match="has no groups") as caught:
        await stack.subscribe_group(SUBJECTS.live("a"), "workers", Inbox())
    assert caught.value.driver == "null"
    with pytest.raises(NotSupported, match="has no consumers"):
        await stack.consume("a", SUBJECTS.live("a"), ConsumerSettings())
    with pytest.raises(NotSupported, match="has no queue"):
        _ = stack.queues


async def test_any_is_content_with_one_and_does_not_wait_for_the_rest(open_stack):
    slow, good = Faulty("slow"), Faulty("good")
    bad = Faulty("bad", publishing=PublishFailed("no", driver="bad"))
    stack = await open_stack(bad, slow, good, required="any")
    slow.gate.clear()
    assert await stack.publish(SUBJECTS.event("a"), b"x") is None, "bad is the reader"
    assert good.taken == [b"x"]
    assert stack.counters["bad.errors"] == 1
    slow.gate.set()


async def test_any_fails_when_all_do_and_names_them(open_stack):
    stack = await open_stack(
        Faulty("one", publishing=PublishFailed("no", driver="one")),
        Faulty("two", publishing=PublishFailed("neither", driver="two")),
        required="any",
    )
    with pytest.raises(PublishFailed, match="one: no; two: neither"):
        await stack.publish(SUBJECTS.event("a"), b"x")


async def test_required_driver_that_does_not_open_fails_the_start_and_closes_the_others():
    good = Faulty("good")
    fault = StreamMismatch("its stream is another's", driver="bad")
    bad = Faulty("bad", opening=fault)
    stack = stack_of(good, bad, required=["bad"])
    with pytest.raises(StreamMismatch, match="another's"):
        await stack.open()
    assert (good.closed, good.is_connected, stack.is_connected) == (1, False, False)
    with pytest.raises(ConnectionFailed, match="not open"):
        await stack.publish(SUBJECTS.event("a"), b"x")


async def test_several_that_do_not_open_are_all_named():
    stack = stack_of(
        Faulty("one", opening=OSError("refused")),
        Faulty("two", opening=ConnectionFailed("gone", driver="two")),
        required=["one", "two"],
    )
    with pytest.raises(ConnectionFailed, match="cannot open: one: refused; two: gone") as caught:
        await stack.open()
    assert caught.value.driver == "one,two"


async def test_wrong_setting_fails_the_start_even_of_an_optional_driver(tmp_path):
    settings = Settings(
        stack=("memory", "log"),
        stack_required=("memory",),
        driver="stack",
        log_path=str(tmp_path / "no" / "file.log"),
    )
    with pytest.raises(ConfigError, match="BROADCAST_LOG_PATH") as caught:
        await EventBus(settings).open()
    assert caught.value.variable == "BROADCAST_LOG_PATH"


async def test_optional_driver_that_does_not_open_is_tried_until_it_does(
    open_stack, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(stack_module, "_FIRST_PAUSE_S", 0.01)
    made = []

    def audit():
        refused = ConnectionFailed("refused", driver="audit") if len(made) < 3 else None
        made.append(Faulty("audit", opening=refused))
        return made[-1]

    main = Faulty("main")
    stack = StackDriver({"main": lambda: main, "audit": audit}, ["main"])
    await stack.open()
    try:
        assert stack.is_connected
        assert "audit" not in stack.drivers
        assert "audit did not open, and is tried again: refused" in caplog.text
        await until(lambda: "audit" in stack.drivers)
        await stack.publish(SUBJECTS.event("a"), b"x")
        await until(lambda: made[-1].taken == [b"x"])
        assert len(made) == 4
        assert [driver.closed for driver in made] == [1, 1, 1, 0], "none is left behind half open"
    finally:
        await stack.aclose()
    assert [driver.closed for driver in made] == [1, 1, 1, 1]


async def test_stack_whose_optional_reader_is_not_open_publishes_and_says_that_none_can_subscribe(
    open_stack,
):
    reader = Faulty("reader", opening=ConnectionFailed("refused", driver="reader"))
    log = Faulty("log", history=False)
    stack = await open_stack(reader, log, required=["log"])
    assert await stack.publish(SUBJECTS.event("a"), b"x") is None
    assert log.taken == [b"x"]
    assert not stack.is_connected
    with pytest.raises(ConnectionFailed, match="driver reader is not open yet") as caught:
        await stack.subscribe(SUBJECTS.live("a"), Inbox())
    assert caught.value.driver == "reader"


async def test_any_fails_the_start_only_when_none_opens(open_stack):
    refused = ConnectionFailed("refused", driver="one")
    stack = await open_stack(Faulty("one", opening=refused), Faulty("two"), required="any")
    assert list(stack.drivers) == ["two"]
    with pytest.raises(ConnectionFailed, match="refused"):
        await open_stack(Faulty("one", opening=refused), required="any")


async def test_driver_that_fails_to_close_does_not_keep_the_others_open(caplog):
    class Stuck(Faulty):
        async def aclose(self):
            raise RuntimeError("stuck")

    good = Faulty("good")
    stack = stack_of(Stuck("stuck"), good, required=["good"])
    await stack.open()
    await stack.aclose()
    await stack.aclose()
    assert good.closed == 1
    assert "stuck could not be closed" in caplog.text


async def test_close_of_a_stack_is_completed_and_shared_although_a_caller_runs_out_of_time():
    main, audit = Faulty("main"), Faulty("audit")
    stack = stack_of(main, audit, required=["main"], close_timeout=0.2)
    await stack.open()
    audit.gate.clear()
    await stack.publish("eb.event.a", b"1")
    patient = asyncio.create_task(stack.aclose())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stack.aclose(), 0.01)
    assert (main.closed, audit.closed) == (1, 1)
    await patient
    await stack.aclose()
    assert (main.closed, audit.closed) == (1, 1)
    assert not stack.is_connected


async def test_stack_that_is_closed_while_it_opens_leaves_nothing_open():
    opening = asyncio.Event()

    class Slow(Faulty):
        async def open(self):
            opening.set()
            await self.gate.wait()
            await super().open()

    main = Slow("main")
    main.gate.clear()
    stack = stack_of(main, required=["main"])
    task = asyncio.create_task(stack.open())
    await opening.wait()
    await stack.aclose()
    main.gate.set()
    with pytest.raises(ConnectionFailed, match="the stack driver was closed"):
        await task
    assert not stack.is_connected
    assert not main.is_connected


STACK, REQUIRED = "BROADCAST_STACK", "BROADCAST_STACK_REQUIRED"


@pytest.mark.parametrize(
    ("environ", "variable", "expected"),
    [
        ({}, STACK, "BROADCAST_DRIVER=stack needs BROADCAST_STACK"),
        ({STACK: "memory,stack"}, STACK, "a stack cannot contain a stack"),
        ({STACK: "memory,memory"}, STACK, "names a driver twice"),
        ({STACK: "nats,websocket"}, STACK, "names a driver twice"),
        ({STACK: "memory,kafka"}, STACK, "'kafka' is not a driver; allowed: memory, "),
        ({STACK: "memory,log", REQUIRED: "nats"}, REQUIRED, "BROADCAST_STACK: memory, log"),
        ({STACK: "memory,log", REQUIRED: "all,log"}, REQUIRED, "'all,log'; allowed: all, any"),
        ({STACK: "memory,log", REQUIRED: ","}, REQUIRED, "allowed: all, any"),
    ],
)
def test_invalid_setting_is_refused_with_its_name(environ, variable, expected):
    with pytest.raises(ConfigError) as caught:
        EventBus.from_env({"BROADCAST_DRIVER": "stack", **environ})
    assert expected in str(caught.value)
    assert caught.value.variable == variable


async def test_required_comes_from_the_setting(tmp_path):
    environ = {
        "BROADCAST_DRIVER": "stack",
        STACK: "memory,log",
        "BROADCAST_LOG_PATH": "/dev/full",
    }
    async with EventBus.from_env({**environ, REQUIRED: "memory"}) as bus:
        assert (await bus.publish("general", "news", 1)).offset == 1
    async with EventBus.from_env(environ) as bus:
        with pytest.raises(PublishFailed, match=r"by log: .*No space left on device"):
            await bus.publish("general", "news", 1)
