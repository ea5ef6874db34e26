"""The window that bounds what is in flight."""

import asyncio

import pytest

from eventbus.drivers.redis.publish import Window


async def waiting(window, size):
    task = asyncio.create_task(window.take(size))
    await asyncio.sleep(0)
    return task


async def test_messages_and_bytes_are_bounded_and_waiting_publishers_continue_in_order():
    window = Window(messages=2, size=100)
    await window.take(60)
    big, small = await waiting(window, 60), await waiting(window, 1)
    assert not big.done()
    assert not small.done(), "it would fit, and has come later"
    window.give(60)
    await asyncio.gather(big, small)
    third = await waiting(window, 1)
    assert not third.done(), "two messages are in flight"
    window.give(1)
    await third


async def test_one_message_larger_than_the_window_passes_alone():
    window = Window(messages=2, size=10)
    await window.take(50)
    other = await waiting(window, 1)
    assert not other.done()
    window.give(50)
    await other


@pytest.mark.parametrize("turn_came", [False, True])
async def test_publisher_that_gives_up_frees_its_room_for_others(turn_came):
    window = Window(messages=1)
    await window.take(1)
    gone, next_ = await waiting(window, 1), await waiting(window, 1)
    if turn_came:
        window.give(1)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert gone.cancelled()
    if not turn_came:
        assert not next_.done()
        window.give(1)
    await next_
    window.give(1)
    async with asyncio.timeout(30):
        await window.wait_idle()


@pytest.mark.parametrize("turn_comes", [False, True])
async def test_all_that_wait_may_be_cancelled_at_once(turn_comes):
    """As when a request with many publishes is cancelled while the server is away."""
    window = Window(messages=2)
    await window.take(1)
    await window.take(1)
    tasks = [await waiting(window, 1) for _ in range(5)]
    for task in tasks:
        task.cancel()
    if turn_comes:
        window.give(1)
        window.give(1)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 5
    if not turn_comes:
        window.give(1)
        window.give(1)
    async with asyncio.timeout(30):
        await window.wait_idle()
        await window.take(1)
        await window.take(1)
