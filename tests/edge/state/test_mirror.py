"""Mirrors of state entries: changes are newer than what is read, and losses are repaired."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import ConnectionFailed
from eventbus_edge.state import mirror as state_mirror
from eventbus_edge.state.mirror import Mirror, Resync


class SlowState:
    """The state of a driver, whose reads can be held up, or fail."""

    def __init__(self, state):
        self._state = state
        self.watches = 0
        self.fail = False
        self.on_read = None

    async def watch(self, pattern, on_change):
        self.watches += 1
        return await self._state.watch(pattern, on_change)

    async def entries(self, pattern):
        if self.fail:
            raise ConnectionFailed("on purpose", driver="test")
        found = await self._state.entries(pattern)
        if self.on_read is not None:
            await self.on_read()
        return found


@pytest.fixture
async def driver():
    driver = MemoryDriver()
    await driver.open()
    yield driver
    await driver.aclose()


@pytest.fixture
def state(driver):
    return SlowState(driver.state)


@pytest.fixture
async def mirror(state):
    known = {}
    calls = []

    def on_entry(key, value):
        calls.append((key, value))
        if value is None:
            known.pop(key, None)
        else:
            known[key] = value

    mirror = Mirror(state, "a.*", on_entry)
    yield SimpleNamespace(mirror=mirror, known=known, calls=calls)
    await mirror.aclose()


async def test_existing_entries_and_later_changes_are_reported(driver, mirror):
    await driver.state.put("a.1", b"x")
    await driver.state.put("b.1", b"other")
    await mirror.mirror.start()
    assert mirror.known == {"a.1": b"x"}
    await driver.state.put("a.2", b"y")
    await driver.state.delete("a.1")
    await asyncio.sleep(0)
    assert mirror.known == {"a.2": b"y"}


async def test_changes_during_a_read_win_over_what_was_read(driver, state, mirror):
    for key in ("a.changes", "a.ends"):
        await driver.state.put(key, b"old")
    await mirror.mirror.start()

    async def change():
        await driver.state.put("a.changes", b"new")
        await driver.state.put("a.begins", b"new")
        await driver.state.delete("a.ends")
        await asyncio.sleep(0)

    state.on_read = change
    await mirror.mirror.read(keep_missing=False)
    assert mirror.known == {"a.changes": b"new", "a.begins": b"new"}


async def test_missing_entries_are_kept_until_a_read_says_that_they_are_gone(driver, state, mirror):
    await driver.state.put("a.1", b"x")
    await mirror.mirror.start()

    async def nothing(_pattern):
        return {}

    state.entries = nothing
    await mirror.mirror.read(keep_missing=True)
    assert mirror.known == {"a.1": b"x"}
    await mirror.mirror.read(keep_missing=False)
    assert mirror.known == {}
    count = len(mirror.calls)
    await mirror.mirror.read(keep_missing=False)
    assert len(mirror.calls) == count  # a deletion is reported once


async def test_start_after_a_failed_read_watches_only_once(driver, state, mirror):
    await driver.state.put("a.1", b"x")
    state.fail = True
    with pytest.raises(ConnectionFailed):
        await mirror.mirror.start()
    state.fail = False
    await mirror.mirror.start()
    assert state.watches == 1
    assert mirror.calls == [("a.1", b"x")]


async def test_each_loss_is_synchronized_twice_and_a_failed_one_is_retried(monkeypatch):
    monkeypatch.setattr(state_mirror, "_CHECK_S", 0.005)
    monkeypatch.setattr(state_mirror, "_RETRY_S", 0.005)
    driver = SimpleNamespace(state=SimpleNamespace(losses=1))
    calls, done, fail = [], asyncio.Event(), [True]

    async def synchronize(keep_missing):
        if fail.pop() if fail else False:
            raise ConnectionFailed("on purpose", driver="test")
        calls.append(keep_missing)
        if not keep_missing:
            done.set()

    resync = Resync(lambda: driver.state.losses, 1, synchronize, settle_s=0.02, what="test")
    task = asyncio.create_task(resync.run())
    for losses in (2, 3):
        driver.state.losses = losses
        async with asyncio.timeout(40):
            await done.wait()
        done.clear()
    task.cancel()
    await asyncio.wait({task})
    assert calls == [True, False] * 2


async def test_time_in_which_the_process_was_stopped_does_not_count_as_time_for_the_other_nodes():
    driver = SimpleNamespace(state=SimpleNamespace(losses=1))
    calls = asyncio.Queue()

    async def synchronize(keep_missing):
        calls.put_nowait(keep_missing)

    resync = Resync(lambda: driver.state.losses, 1, synchronize, settle_s=1.2, what="test")
    task = asyncio.create_task(resync.run())
    driver.state.losses = 2
    async with asyncio.timeout(40):
        assert await calls.get() is True
        time.sleep(2)  # noqa: ASYNC251 - the whole process, for longer than the others have
        continued = time.monotonic()
        assert await calls.get() is False
    assert time.monotonic() - continued > 0.5
    task.cancel()
    await asyncio.wait({task})
