"""The window that bounds what is in flight."""

import asyncio

import pytest

from eventbus.drivers.redis.publish import Window


async def waiting(window, size):
    task = asyncio.create_task(window.take(size))
    await asyncio.sleep(0)
    return task


async def test_messages_and_bytes_are_bounded_and_who_waits_goes_on_in_order():
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
async def test_who_gives_up_leaves_its_room_to_others(turn_came):
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
    async with asyncio.timeout(1):
        await window.wait_idle()
