"""Loops that are cut into slices: nothing else has to wait for their end."""

import asyncio
import heapq
import itertools

from hypothesis import given, strategies as st

from eventbus import pacing
from eventbus.pacing import paced, smallest


async def test_other_tasks_run_between_slices(monkeypatch):
    monkeypatch.setattr(pacing, "SLICE_S", 0.0)
    order = []

    def note(what):
        order.append(what)

    async def other():
        for number in range(3):
            note(f"other {number}")
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for number in paced(range(3)):
        note(f"item {number}")
    await task
    assert order == ["item 0", "other 0", "item 1", "other 1", "item 2", "other 2"]


async def test_short_loop_is_not_cut():
    ran = asyncio.create_task(asyncio.sleep(0))
    assert [number async for number in paced(range(10))] == list(range(10))
    assert not ran.done()
    await ran


@given(st.lists(st.tuples(st.integers(0, 5), st.text(max_size=2))), st.integers(0, 20))
def test_smallest_rows_are_those_of_heapq(rows, count):
    assert asyncio.run(smallest(count, rows)) == heapq.nsmallest(count, rows)


async def test_smallest_rows_of_many_are_those_of_heapq():
    rows = [(number * 7919 % 10_007, str(number)) for number in range(10_007)]
    for count in (0, 1, 5000, 20_000):
        assert await smallest(count, iter(rows)) == heapq.nsmallest(count, rows)


async def test_hundred_thousand_rows_never_hold_the_loop_for_long():
    """As turns of the loop, since times mean little on a busy machine."""
    turns = itertools.count()

    async def count_turns():
        while True:
            next(turns)
            await asyncio.sleep(0)

    task = asyncio.create_task(count_turns())
    await smallest(10_000, ((-number, str(number)) for number in range(100_000)))
    task.cancel()
    assert next(turns) > 5
