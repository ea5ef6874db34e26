import asyncio

import pytest

from eventbus.attempts import SharedAttempt


class Work:
    """An operation that runs until the test decides how it ends."""

    def __init__(self):
        self.attempt = SharedAttempt()
        self.begun = 0
        self.ends = asyncio.Queue()

    async def run(self):
        async with self.attempt.turn():
            self.begun += 1
            if (fault := await self.ends.get()) is not None:
                raise fault

    async def begin(self, count):
        tasks = [asyncio.create_task(self.run()) for _ in range(count)]
        await asyncio.sleep(0)  # the first has begun, and the others wait for it
        return tasks


async def test_callers_that_waited_for_a_failed_attempt_share_its_error():
    work = Work()
    tasks = await work.begin(10)
    work.ends.put_nowait(ConnectionError("away"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["away"] * 10
    assert work.begun == 1


async def test_caller_that_comes_after_a_failure_makes_an_attempt_of_its_own():
    work = Work()
    work.ends.put_nowait(ConnectionError("away"))
    with pytest.raises(ConnectionError):
        await work.run()
    work.ends.put_nowait(None)
    await work.run()
    assert work.begun == 2


async def test_callers_take_turns_in_order_when_attempts_succeed():
    work, order = Work(), []

    async def run(number):
        async with work.attempt.turn():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(run(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]


async def test_error_of_one_caller_alone_is_not_shared():
    work = Work()
    work.attempt = SharedAttempt(ConnectionError)
    first, second = await work.begin(2)
    work.ends.put_nowait(ValueError("its own"))
    work.ends.put_nowait(None)
    with pytest.raises(ValueError, match="its own"):
        await first
    await second
    assert work.begun == 2


async def test_exclusive_block_runs_however_attempts_ended():
    work = Work()
    [first] = await work.begin(1)

    async def exclude():
        async with work.attempt.alone():
            return first.done()

    excluding = asyncio.create_task(exclude())
    await asyncio.sleep(0)
    work.ends.put_nowait(ConnectionError("away"))
    assert await excluding
    assert isinstance(first.exception(), ConnectionError)


async def test_cancelled_attempt_has_not_failed_and_the_next_caller_makes_its_own():
    work = Work()
    first, second = await work.begin(2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.ends.put_nowait(None)
    await second
    assert work.begun == 2
