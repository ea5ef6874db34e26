"""Entries that must get to the bus, over a state that refuses, waits, and forgets."""

import asyncio

import pytest

from eventbus.errors import PublishFailed
from eventbus_edge.state import writer as presence_writer
from eventbus_edge.state.writer import EntryWriter


class State:
    """A state whose writes can be made to fail, or to wait."""

    def __init__(self):
        self.values = {}
        self.writes = []
        self.fail = False
        self.open = asyncio.Event()
        self.open.set()
        self.at_once = self.most_at_once = 0

    async def put(self, key, value, *, ttl_s=None):
        assert ttl_s == presence_writer.ENTRY_TTL_S
        await self._write(key, value)
        self.values[key] = value

    async def delete(self, key):
        await self._write(key, None)
        self.values.pop(key, None)

    async def _write(self, key, value):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            await self.open.wait()
            if self.fail:
                raise PublishFailed("on purpose", driver="test")
            self.writes.append((key, value))
        finally:
            self.at_once -= 1


class Driver:
    def __init__(self):
        self.state = State()


@pytest.fixture
def state(monkeypatch):
    monkeypatch.setattr(presence_writer, "_PAUSE_S", 0.01)
    return State()


@pytest.fixture
async def writer(state):
    driver = Driver()
    driver.state = state
    writer = EntryWriter(driver)
    yield writer
    await writer.aclose()


async def test_the_latest_value_is_written_with_one_write_per_key_at_a_time(writer, state):
    state.open.clear()
    writer.put("k", b"1")
    await asyncio.sleep(0)
    for value in (b"2", b"3", b"4"):
        writer.put("k", value)
    assert not await writer.written("k", 0.01)
    state.open.set()
    assert await writer.written("k", 40)
    assert state.writes == [("k", b"1"), ("k", b"4")]
    assert state.most_at_once == 1


async def test_an_entry_that_ended_while_it_was_written_is_not_there(writer, state):
    state.open.clear()
    writer.put("k", b"1")
    await asyncio.sleep(0)
    writer.delete("k")
    state.open.set()
    assert await writer.written("k", 40)
    assert state.values == {}


async def test_a_bus_that_refuses_is_retried_and_logged_once(writer, state, caplog):
    state.fail = True
    for i in range(5):
        writer.put(f"k{i}", b"1")
    assert not await writer.written("k0", 0.1)
    state.fail = False
    for i in range(5):
        assert await writer.written(f"k{i}", 40)
    assert len(state.values) == 5
    assert caplog.text.count("cannot be written yet") == 1


async def test_thousands_are_written_some_hundred_at_once(writer, state):
    state.open.clear()
    for i in range(2000):
        writer.put(f"k{i}", b"1")
    await asyncio.sleep(0.01)
    state.open.set()
    for i in range(2000):
        assert await writer.written(f"k{i}", 40)
    assert len(state.values) == 2000
    assert 1 < state.most_at_once <= 256


async def test_missing_entries_are_written_again_and_unwanted_ones_deleted(writer, state):
    for key in ("same", "lost", "changed"):
        writer.put(key, b"1")
        assert await writer.written(key, 40)
    state.writes.clear()
    await writer.repair({"same": b"1", "changed": b"0", "left over": b"1"})
    for key in ("lost", "changed", "left over"):
        assert await writer.written(key, 40)
    assert sorted(state.writes, key=str) == [
        ("changed", b"1"), ("left over", None), ("lost", b"1"),
    ]  # fmt: skip


async def test_entries_are_written_again_before_their_time_is_over(writer, state):
    writer.put("kept", b"1")
    writer.put("ended", b"1")
    assert await writer.written("kept", 40)
    writer.delete("ended")
    assert await writer.written("ended", 40)
    state.writes.clear()
    now = asyncio.get_running_loop().time()
    await writer.refresh(now + 1)
    await writer.refresh(now + presence_writer.ENTRY_TTL_S / 2)
    assert await writer.written("kept", 40)
    assert state.writes == [("kept", b"1")]


async def test_the_same_entry_again_costs_nothing(writer, state):
    writer.put("k", b"1")
    assert await writer.written("k", 40)
    writer.put("k", b"1")
    writer.delete("unknown")
    assert await writer.written("k", 40)
    assert state.writes == [("k", b"1")]
