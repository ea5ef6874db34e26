"""Drivers that are closed while they open, twice, by several tasks, or by a cancelled one."""

import asyncio
import os
import signal

import msgspec
import psutil
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers import create_driver
from eventbus.errors import BusStateError, ConnectionFailed, EventBusError
from eventbus.events import Event, ShouldQueue

PATIENCE_S = 20


@pytest.fixture
async def leftovers(nats_server):
    """What a driver must not leave behind: tasks, and child processes."""
    tasks, me = asyncio.all_tasks(), psutil.Process()
    children = set(me.children(recursive=True))

    def look():
        new = set(me.children(recursive=True)) - children
        return (
            list(asyncio.all_tasks() - tasks - {asyncio.current_task()}),
            [child for child in new if child.status() != psutil.STATUS_ZOMBIE],
        )

    return look


@pytest.fixture(params=["embedded", "nats", "redis", "stack", "log", "memory", "null"])
async def driver_settings(request, tmp_path, namespace, nats_server, redis_server):
    """Settings of a driver of each kind."""
    folder = str(tmp_path / "nats")
    base = Settings(
        namespace=namespace,
        nats_data=folder,
        nats_port=0,
        history_bytes=2**22,
        publish_timeout=1.0,
        log_path=str(tmp_path / "log"),
    )
    changes = {"driver": request.param}
    if request.param == "embedded":
        changes = {"driver": "nats"}
    elif request.param == "nats":
        changes["nats_url"] = nats_server.url
    elif request.param == "redis":
        changes["redis_port"] = redis_server.port
    elif request.param == "stack":
        changes["stack"] = ("nats", "log")
    return msgspec.structs.replace(base, **changes)


class Steps:
    """Runs a coroutine for a number of loop turns, and then lets the test interfere."""

    def __init__(self, work, turns):
        self.task = asyncio.create_task(work)
        self._turns = turns

    async def run(self):
        for _ in range(self._turns):
            await asyncio.sleep(0 if self._turns < 5 else 0.005)


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16])
async def test_close_during_open_ends_both_and_leaves_nothing(driver_settings, leftovers, turns):
    driver = create_driver(driver_settings)
    opening = Steps(driver.open(), turns)
    await opening.run()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(driver.aclose(), driver.aclose())
        (result,) = await asyncio.gather(opening.task, return_exceptions=True)
    assert result is None or isinstance(result, EventBusError)
    if driver_settings.driver not in ("memory", "null"):  # these open again
        assert not driver.is_connected
    assert leftovers() == ([], [])


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16])
async def test_cancelled_open_leaves_nothing(driver_settings, leftovers, turns):
    driver = create_driver(driver_settings)
    opening = Steps(driver.open(), turns)
    await opening.run()
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(3):
            opening.task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(opening.task, return_exceptions=True)
        await driver.aclose()
    assert leftovers() == ([], [])


async def test_close_is_shared_and_completed_by_cancelled_callers(driver_settings, leftovers):
    driver = create_driver(driver_settings)
    await driver.open()
    subjects = EventBus(driver_settings, driver).subjects
    await driver.publish(subjects.event("room"), b"{}")
    async with asyncio.timeout(PATIENCE_S):
        closing = [asyncio.create_task(driver.aclose()) for _ in range(3)]
        await asyncio.sleep(0)
        closing[0].cancel()
        closing[1].cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        assert leftovers() == ([], [])
        await driver.aclose()
    assert not driver.is_connected
    with pytest.raises(ConnectionFailed):
        await driver.publish(subjects.event("room"), b"{}")


@pytest.mark.parametrize("name", ["nats", "redis", "log", "stack"])
async def test_driver_that_was_closed_does_not_open(name, tmp_path, leftovers):
    settings = Settings(
        driver=name, nats_data=str(tmp_path), nats_port=0, log_path=str(tmp_path / "l"),
        stack=("nats",),
    )  # fmt: skip
    driver = create_driver(settings)
    await driver.aclose()
    with pytest.raises(ConnectionFailed):
        await driver.open()
    assert leftovers() == ([], [])


async def test_bus_whose_embedded_server_hangs_closes_wholly(tmp_path, namespace, leftovers):
    settings = Settings(
        nats_data=str(tmp_path), nats_port=0, namespace=namespace, history_bytes=2**22,
        publish_timeout=1.0,
    )  # fmt: skip
    bus = EventBus(settings)
    await bus.open()
    os.kill(bus.driver.server.pid, signal.SIGSTOP)
    publishing = asyncio.create_task(bus.publish("room", "hello", 1))
    await asyncio.sleep(0)
    # Only now can it end without being killed, which would take five seconds.
    asyncio.get_running_loop().call_later(2.5, os.kill, bus.driver.server.pid, signal.SIGCONT)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.aclose(), 0.1)
    await bus.aclose()
    await asyncio.gather(publishing, return_exceptions=True)
    assert leftovers() == ([], [])


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16, 32])
async def test_bus_that_is_closed_by_another_task_as_it_opens_says_so(
    tmp_path, namespace, leftovers, turns
):
    settings = Settings(nats_data=str(tmp_path), nats_port=0, namespace=namespace)
    bus = EventBus(settings)
    opening = Steps(bus.open(), turns)
    await opening.run()
    async with asyncio.timeout(PATIENCE_S):
        await bus.aclose()
        (result,) = await asyncio.gather(opening.task, return_exceptions=True)
    assert result is None or isinstance(result, BusStateError)
    assert leftovers() == ([], [])


class QueuedNumber(Event, ShouldQueue):
    number: int


async def cancel_many(settings, send_signal, *, queued=False):
    """Cancel many publishes or dispatches together while the server is stopped."""

    def send(number):
        return QueuedNumber(number).dispatch() if queued else bus.publish("room", "hello", number)

    async with EventBus(settings) as bus:
        await send(0)
        send_signal(signal.SIGSTOP)
        try:
            tasks = [asyncio.create_task(send(n)) for n in range(1500)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            send_signal(signal.SIGCONT)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(send(n) for n in range(1500)))


async def test_many_publishes_to_redis_that_are_cancelled_together_are_cancelled(
    own_redis, namespace
):
    settings = Settings(
        driver="redis", redis_port=own_redis.port, namespace=namespace, publish_timeout=60.0
    )
    await cancel_many(settings, own_redis.signal)


@pytest.mark.parametrize("queued", [False, True])
async def test_many_publishes_to_nats_that_are_cancelled_together_are_cancelled(
    own_nats_server, namespace, queued
):
    settings = Settings(
        nats_url=own_nats_server.url, namespace=namespace, history_bytes=2**22, publish_timeout=60.0
    )
    await cancel_many(settings, lambda number: os.kill(own_nats_server.pid, number), queued=queued)
