"""What the application's code raises: contained wherever it is called, and always shown."""

import asyncio
import functools
import gc
import signal
import threading
from typing import Any

import pytest
import uvloop

from eventbus.bus import EventBus
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.drivers.registry import unregister
from eventbus.errors import BusStateError, CallbackFailed, ConfigError, PublishFailed
from eventbus.events import Event, EventContext, Listeners, ShouldBroadcast
from eventbus.subscriptions.pool import Pool
from eventbus.user_code import (
    advice_on,
    call_apart,
    call_guarded,
    call_plain,
    guarded,
    only_cause,
    takes_context,
    text_of,
    traceback_of,
    type_name,
    valid_text,
)

WAIT_S = 20.0
MEMORY = Settings(driver="memory")


class Panic(BaseException):
    """As a Rust extension raises it (pyo3's PanicException is a BaseException)."""


LEAKS = [
    asyncio.CancelledError,
    SystemExit,
    GeneratorExit,
    Panic,
    lambda: BaseExceptionGroup("several", [Panic("x"), ValueError("y")]),
]
leaks = pytest.mark.parametrize("leak", LEAKS)


class Heard(Event, name="user_code.heard"):
    pass


class Told(Event, ShouldBroadcast, name="user_code.told", channel="told"):
    n: int


async def await_cancelled_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


# What passes


@leaks
@pytest.mark.parametrize("is_async", [True, False])
async def test_base_exception_becomes_an_exception_with_its_cause(leak, is_async):
    raised = leak()

    def plain() -> None:
        raise raised

    async def asynchronous() -> None:
        await asyncio.sleep(0)
        raise raised

    with pytest.raises(CallbackFailed) as caught:
        await call_guarded(asynchronous if is_async else plain)
    assert caught.value.__cause__ is raised
    assert type(raised).__name__ in str(caught.value)


async def test_exceptions_and_answers_pass_unchanged():
    error = ValueError("seven")

    def broken() -> None:
        raise error

    with pytest.raises(ValueError, match="seven") as caught:
        await call_guarded(broken)
    assert caught.value is error
    assert await call_guarded(lambda: 7) == 7


@leaks
async def test_base_exception_of_a_plain_function_becomes_an_exception_with_its_cause(leak):
    raised = leak()

    def plain() -> None:
        raise raised

    with pytest.raises(CallbackFailed) as caught:
        call_plain(plain)
    assert caught.value.__cause__ is raised


def test_plain_functions_exceptions_and_answers_pass_unchanged():
    error = ValueError("seven")

    def broken() -> None:
        raise error

    with pytest.raises(ValueError, match="seven") as caught:
        call_plain(broken)
    assert caught.value is error
    assert call_plain(lambda number: number, 7) == 7


async def test_plain_function_that_leaks_in_a_cancelled_task_does_not_end_it_instead():
    async def clean_up() -> None:
        try:
            await cancel_oneself()
        finally:
            with pytest.raises(CallbackFailed):
                call_plain(raise_cancelled)

    def raise_cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(clean_up())


async def test_leaked_cancellation_is_distinguished_from_the_tasks_own():
    with pytest.raises(CallbackFailed):
        await call_guarded(await_cancelled_task)
    begun = asyncio.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(call_guarded(endless))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_oneself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


async def swallow_a_cancellation() -> None:
    """As time limits of older libraries do: the task continues, and counts as cancelled."""
    try:
        await cancel_oneself()
    except asyncio.CancelledError:
        raise TimeoutError from None


async def test_leak_is_distinguished_from_the_tasks_own_end_after_a_swallowed_cancellation():
    async def one_after_the_other() -> None:
        with pytest.raises(TimeoutError):
            await call_guarded(swallow_a_cancellation)
        with pytest.raises(CallbackFailed):
            await call_guarded(await_cancelled_task)

    await asyncio.create_task(one_after_the_other())


@pytest.mark.parametrize(
    ("callback", "raised"),
    [(cancel_oneself, CallbackFailed), (swallow_a_cancellation, TimeoutError)],
)
async def test_callback_that_is_called_apart_cannot_cancel_its_caller(callback, raised):
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(raised):
        await call_apart(callback)
    assert task.cancelling() == 0


async def test_callback_that_is_called_apart_ends_with_its_caller():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(call_apart(endless))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@pytest.mark.parametrize("call", [call_guarded, call_apart])
async def test_timeout_around_a_call_stays_a_timeout(call):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await call(asyncio.sleep, 60)


def test_coroutine_of_a_loop_that_has_ended_is_closed_without_a_fault():
    ended_by = []

    async def endless() -> None:
        try:
            await call_guarded(asyncio.Event().wait)
        except BaseException as exc:
            ended_by.append(type(exc))
            raise

    loop = asyncio.new_event_loop()
    task = loop.create_task(endless())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False
    del task
    gc.collect()
    assert ended_by == [GeneratorExit]


@pytest.fixture
def pythons_own_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_ctrl_c")
def test_keyboard_interrupt_passes_where_ctrl_c_raises_it():
    async def in_a_runner() -> None:
        with pytest.raises(KeyboardInterrupt), guarded():
            raise KeyboardInterrupt

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), guarded():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        call_plain(interrupted)
    asyncio.run(in_a_runner())


@pytest.mark.usefixtures("pythons_own_ctrl_c")
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_keyboard_interrupt_is_contained_where_the_loop_takes_ctrl_c(new_loop):
    async def handled() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
        with pytest.raises(CallbackFailed), guarded():
            raise KeyboardInterrupt

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(handled())


def test_keyboard_interrupt_is_contained_in_other_threads():
    caught = []

    def run() -> None:
        try:
            with guarded():
                raise KeyboardInterrupt
        except CallbackFailed as exc:
            caught.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 1


# What is shown


class Unshowable(Exception):
    def __init__(self, raised: BaseException) -> None:
        super().__init__()
        self.raised = raised

    def __str__(self) -> str:
        raise self.raised

    __repr__ = __str__


@pytest.mark.parametrize("fault", [ValueError("x"), *[leak() for leak in LEAKS]])
def test_exception_whose_text_raises_is_shown_anyway(fault):
    exc = Unshowable(fault)
    assert type(fault).__name__ in text_of(exc)
    assert "Unshowable" in traceback_of(exc)
    group = ExceptionGroup("two", [exc, ValueError("seven")])
    assert "Unshowable" in text_of(group)
    assert "ValueError: seven" in text_of(group)
    assert "Unshowable" in traceback_of(group)


def test_text_that_utf8_cannot_encode_is_escaped():
    exc = ValueError("\ud800 and \udfff")
    exc.add_note("\udcff")
    assert text_of(exc) == "\\ud800 and \\udfff"
    assert "\\udcff" in traceback_of(exc)
    assert valid_text("ä\ud800€") == "ä\\ud800€"


def test_text_is_bounded():
    assert len(text_of(ValueError("x" * 10_000_000))) == 1000
    wide = ExceptionGroup("wide", [ValueError("x" * 1000) for _ in range(10_000)])
    assert len(text_of(wide)) == 1000
    deep: Exception = ValueError("seven")
    for _ in range(5000):
        deep = ExceptionGroup("deep", [deep, ValueError()])
    assert len(text_of(deep)) <= 1000
    assert "ExceptionGroup" in traceback_of(deep)
    assert len(type_name(type("X" * 100_000, (Exception,), {})())) <= 200


def test_notes_that_cannot_be_shown_do_not_hide_the_exception():
    class Noted(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise SystemExit

    assert "Noted: seven" in traceback_of(Noted("seven"))


def test_only_cause_is_what_the_application_raised():
    panic = Panic("seven")
    failed = CallbackFailed("…")
    failed.__cause__ = panic
    assert only_cause(ExceptionGroup("one", [ExceptionGroup("one", [failed])])) is panic
    assert "Panic: seven" in text_of(ExceptionGroup("two", [failed, ValueError()]))


def test_advice_is_for_code_that_refuses_to_block_an_event_loop_only():
    refused = BusStateError("it would block", would_block=True)
    of_django = type("SynchronousOnlyOperation", (Exception,), {"__module__": "django.core"})()
    for exc in (refused, of_django, ExceptionGroup("one", [refused])):
        assert "make it async" in advice_on(exc)
    for exc in (BusStateError("closed"), ZeroDivisionError(), ExceptionGroup("", [refused] * 2)):
        assert advice_on(exc) == ""


# Where it is called


@leaks
async def test_listener_that_leaks_is_reported_and_the_others_run(leak, caplog):
    received = []

    async def leaking(_event: Heard) -> None:
        await asyncio.sleep(0)
        raise leak()

    async with EventBus(MEMORY, listeners=Listeners()) as bus:
        bus.listen(Heard)(leaking)
        bus.listen(Heard)(received.append)
        event = Heard()
        assert await bus.dispatch(event) == ()
        assert received == [event]
        assert bus.listeners.errors == 1
        assert "leaking failed" in caplog.text
        with pytest.raises(ExceptionGroup) as caught:
            await bus.dispatch(event, raise_errors=True)
        assert type(only_cause(caught.value)) is type(leak())
        assert await bus.until(event) is None
        assert received == [event, event, event]


async def test_listener_that_awaits_a_cancelled_task_does_not_cancel_the_dispatch():
    received = []
    async with EventBus(MEMORY, listeners=Listeners()) as bus:
        bus.listen(Heard)(lambda _event: await_cancelled_task())
        bus.listen(Heard)(received.append)
        await bus.dispatch(Heard())
    assert len(received) == 1


@leaks
@pytest.mark.parametrize("options", [{}, {"group": "g"}, {"group": "g", "durable": True}])
async def test_subscription_whose_handler_leaks_counts_it_and_continues(leak, options):
    async with EventBus(MEMORY, listeners=Listeners()) as bus:
        handled: asyncio.Queue[int] = asyncio.Queue()
        attempts = []

        async def handler(event: Told) -> None:
            attempts.append(event.n)
            if event.n == 1 and attempts.count(1) == 1:
                raise leak()
            handled.put_nowait(event.n)

        more = {"backoff": (0.05,)} if options.get("durable") else {}
        subscription = await bus.subscribe(Told, handler, **options, **more)
        await bus.dispatch(Told(n=1))
        await bus.dispatch(Told(n=2))
        expected = {1, 2} if options.get("durable") else {2}
        async with asyncio.timeout(WAIT_S):
            got = {await handled.get() for _ in expected}
        assert got == expected
        assert subscription.failures == 1


@pytest.mark.parametrize("options", [{}, {"group": "g", "durable": True}])
async def test_subscription_whose_handler_cancels_its_own_task_counts_it_and_continues(options):
    async with EventBus(MEMORY, listeners=Listeners()) as bus:
        handled: asyncio.Queue[int] = asyncio.Queue()
        times: list[float] = []

        async def handler(event: Told) -> None:
            if event.n == 1 and len(times) < 2:
                times.append(asyncio.get_running_loop().time())
                await cancel_oneself()
            handled.put_nowait(event.n)

        more = {"backoff": (0.2,)} if options else {}
        subscription = await bus.subscribe(Told, handler, **options, **more)
        await bus.dispatch(Told(n=1))
        if not options:
            await bus.dispatch(Told(n=1))
        await bus.dispatch(Told(n=2))
        expected = {1, 2} if options else {2}
        async with asyncio.timeout(WAIT_S):
            got = {await handled.get() for _ in expected}
        assert got == expected
        assert subscription.failures == 2
        if options:
            assert times[1] - times[0] >= 0.2


@leaks
async def test_method_of_an_event_that_leaks_fails_its_dispatch_and_cancels_nobody(leak):
    class Leaking(Event, ShouldBroadcast, name="user_code.leaking", channel="told"):
        def broadcast_when(self) -> bool:
            raise leak()

    async with EventBus(MEMORY, listeners=Listeners()) as bus:
        with pytest.raises(CallbackFailed):
            await bus.dispatch(Leaking())
        with pytest.raises(CallbackFailed):
            await bus.process(Leaking())


@leaks
async def test_driver_that_leaks_when_it_publishes_or_opens_is_a_failure(leak):
    class Leaking(MemoryDriver):
        on_open = False

        async def open(self) -> None:
            if self.on_open:
                raise leak()
            await super().open()

        async def publish(self, *_arguments, **_options):
            raise leak()

    async with EventBus(MEMORY, Leaking()) as bus:
        with pytest.raises(PublishFailed):
            await bus.publish("told", "x", 1)
    driver = Leaking()
    driver.on_open = True
    with pytest.raises(CallbackFailed):
        await EventBus(MEMORY, driver).open()


@leaks
async def test_handler_of_a_driver_that_leaks_keeps_no_message_from_others(leak, caplog):
    subject = Subjects("eb").live("told")
    got: asyncio.Queue[object] = asyncio.Queue()
    async with EventBus(MEMORY) as bus:

        def leaking(_delivery) -> None:
            raise leak()

        await bus.driver.subscribe(subject, leaking)
        await bus.driver.subscribe(subject, got.put_nowait)
        await bus.publish("told", "x", 1)
        await asyncio.wait_for(got.get(), WAIT_S)
    assert "a handler of" in caplog.text


@leaks
async def test_work_of_a_pool_that_leaks_frees_its_slot_for_the_next(leak, caplog):
    done = asyncio.Event()

    async def leaking() -> None:
        raise leak()

    async def ending() -> None:
        done.set()

    pool = Pool(1, 2, "the pool")
    assert pool.offer(leaking)
    assert pool.offer(ending)
    async with asyncio.timeout(WAIT_S):
        await done.wait()
    assert await pool.aclose(1.0) == 0
    assert "the pool failed" in caplog.text


@leaks
def test_driver_factory_that_leaks_is_a_wrong_setting(leak):
    def factory(_settings):
        raise leak()

    EventBus.register_driver("leaking", factory)
    try:
        with pytest.raises(ConfigError, match="cannot be created"):
            EventBus(Settings(driver="leaking"))
    finally:
        unregister("leaking")  # the registry is the process's, and outlives the test


# Which callables are handlers


class Callables:
    async def method(self, event):
        """Take an event."""

    async def generator(self, event):
        yield event


class Called:
    async def __call__(self, event):
        """Take an event."""


class CalledGenerator:
    async def __call__(self, event):
        yield event


def generator(event):
    yield event


async def async_generator(event):
    yield event


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (lambda event: None, False),
        (lambda event, context: None, True),
        (lambda event, number=7: None, False),
        (lambda event, context=None: None, True),
        (lambda event, message=None: None, True),
        (lambda *events: None, False),
        (lambda event, **options: None, False),
        (lambda event, *, context=None: None, False),
        (Callables().method, False),
        (Called(), False),
        (functools.partial(lambda number, event: None, 7), False),
        (functools.partial(lambda event, context: None, context=7), False),
        (print, False),
        (dict, False),
    ],
)
def test_handler_takes_the_context_if_it_has_a_parameter_for_it(handler, expected):
    assert takes_context(handler) is expected


def test_defaulted_parameter_takes_the_context_by_its_type():
    def by_type(event: Any, info: "EventContext | None" = None) -> None: ...
    def by_class(event: Any, info: EventContext | None = None) -> None: ...
    def other(event: Any, info: int | None = None) -> None: ...

    assert [takes_context(each) for each in (by_type, by_class, other)] == [True, True, False]


REFUSED = [
    None,
    7,
    "handler",
    lambda: None,
    lambda event, context, more: None,
    lambda event, *, key: None,
    generator,
    async_generator,
    Callables().generator,
    CalledGenerator(),
    functools.partial(async_generator),
]


class NeverHeard(Event, ShouldBroadcast, channel="general", name="user_code.never_heard"):
    n: int


@pytest.mark.parametrize("handler", REFUSED)
def test_callable_that_could_never_run_is_refused_where_it_is_registered(handler):
    bus = EventBus(Settings(driver="null"))
    registrations: list[Any] = [
        lambda: takes_context(handler),
        lambda: bus.subscribe(NeverHeard)(handler),
        lambda: Listeners().listen(NeverHeard)(handler),
        lambda: Listeners().listen("user_code.*")(handler),
    ]
    for register in registrations:
        with pytest.raises(TypeError):
            register()


async def test_generator_from_a_wrapper_is_an_error_and_not_silently_ignored():
    for made in (generator, async_generator):
        with pytest.raises(TypeError, match="is a generator: its code would not run"):
            await call_guarded(lambda event, made=made: made(event), 7)
