"""Stores that go back in time begin another epoch, and give no offset twice."""

import asyncio
import shutil

import pytest

from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.testing.contracts.driver import Inbox


@pytest.fixture
def own_settings(own_redis, namespace):
    return Settings(driver="redis", redis_port=own_redis.port, namespace=namespace)


class Backup:
    """The files of a server, as they were."""

    def __init__(self, server, name):
        self.server, self.copy = server, server.folder.parent / name

    async def take(self):
        await self.server.kill()
        shutil.copytree(self.server.folder, self.copy)
        await self.server.start()

    async def restore(self):
        await self.server.kill()
        shutil.rmtree(self.server.folder)
        shutil.copytree(self.copy, self.server.folder)
        await self.server.start()


async def publish(driver, subjects, *payloads, channel="room"):
    return [
        (await driver.publish(subjects.event(channel), payload)).position for payload in payloads
    ]


async def test_backup_older_than_the_last_restart_assigns_no_offset_twice(
    make_redis, own_settings, own_redis, subjects
):
    driver = await make_redis(own_settings)
    kept = await publish(driver, subjects, b"1", b"2", b"3")
    await driver.aclose()
    backup = Backup(own_redis, "backup")
    await backup.take()
    driver = await make_redis(own_settings)
    lost = await publish(driver, subjects, b"4", b"5")
    await driver.aclose()
    await backup.restore()
    driver = await make_redis(own_settings)  # knows nothing of earlier messages
    new = await publish(driver, subjects, b"6", b"7", b"8")
    offsets = [position.offset for position in (*kept, *lost, *new)]
    assert offsets == sorted(set(offsets))
    for seen in lost:
        page = await driver.read(subjects.live("room"), after=seen.offset, limit=9)
        assert seen.epoch != page.position.epoch or not page.complete
    page = await driver.read(subjects.live("room"), after=kept[-1].offset, limit=9)
    assert [d.payload for d in page.messages] == [b"6", b"7", b"8"]
    assert page.complete


async def test_subscribers_learn_of_a_restored_backup_by_another_epoch(
    make_redis, own_settings, own_redis, subjects
):
    listener, publisher = await make_redis(own_settings), await make_redis(own_settings)
    inbox, every, gaps = Inbox(), Inbox(), []
    await listener.subscribe(subjects.live("room"), inbox)
    subscription = await listener.subscribe(subjects.live_filter(Pattern("*")), every)
    subscription.on_gap = lambda: gaps.append(1)
    kept = await publish(publisher, subjects, b"1", b"2")
    backup = Backup(own_redis, "backup")
    await backup.take()
    lost = await publish(publisher, subjects, b"3", b"4")
    await inbox.until(4)
    await every.until(4)
    assert listener.counters["gaps"] == 0
    await publisher.aclose()
    await backup.restore()
    publisher = await make_redis(own_settings)  # knows nothing of earlier messages
    new = await publish(publisher, subjects, b"5", b"6", b"7")
    for box in (inbox, every):
        await box.until_payload(lambda payloads: b"7" in payloads)
        assert box.payloads == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]
        assert box.deliveries[-1].position.epoch != lost[-1].epoch
        assert box.deliveries[-1].position.offset == new[-1].offset
    assert listener.counters["gaps"] >= 1
    assert gaps
    # A client that resumes with any position of the replaced history learns of the loss.
    page = await publisher.read(subjects.live("room"), after=lost[-1].offset, limit=9)
    assert page.position.epoch not in {position.epoch for position in (*kept, *lost)}


async def test_publisher_that_has_seen_a_later_offset_begins_another_epoch(
    make_redis, own_settings, own_redis, subjects
):
    driver = await make_redis(own_settings)
    await publish(driver, subjects, b"1")
    backup = Backup(own_redis, "backup")
    await backup.take()
    lost = await publish(driver, subjects, b"2", b"3")
    await backup.restore()
    new = await publish(driver, subjects, b"4")
    assert new[0].epoch != lost[0].epoch
    assert new[0].offset > lost[-1].offset


async def test_reader_that_has_seen_a_later_offset_begins_another_epoch(
    make_redis, own_settings, own_redis, subjects
):
    driver = await make_redis(own_settings)
    await publish(driver, subjects, b"1")
    backup = Backup(own_redis, "backup")
    await backup.take()
    [lost] = await publish(driver, subjects, b"2")
    await backup.restore()
    page = await driver.read(subjects.live("room"), after=lost.offset, limit=9)
    assert page.position.epoch != lost.epoch
    assert [d.payload for d in (await driver.read(
        subjects.live("room"), after=None, limit=9)).messages] == [b"1"]  # fmt: skip


async def test_restarts_with_an_intact_file_are_not_a_gap(
    make_redis, own_settings, own_redis, subjects
):
    driver, boxes, gaps = await make_redis(own_settings), {}, []
    for name in ("busy", "quiet", "empty"):
        boxes[name] = Inbox()
        await driver.subscribe(subjects.live(name), boxes[name])
    every = await driver.subscribe(subjects.live_filter(Pattern("x.*")), Inbox())
    [first] = await publish(driver, subjects, b"0", channel="quiet")
    positions = []
    for number in range(3):
        positions += await publish(driver, subjects, str(number).encode(), channel="busy")
        await own_redis.kill()
        await own_redis.start()
    for name, count in (("busy", 3), ("quiet", 1), ("empty", 0)):
        positions += await publish(driver, subjects, b"last", channel=name)
        await boxes[name].until(count + 1)
        assert boxes[name].payloads[-1] == b"last"
    assert {position.epoch for position in positions} == {first.epoch}
    assert driver.counters["gaps"] == 0
    page = await driver.read(subjects.live("quiet"), after=first.offset, limit=9)
    assert ([d.payload for d in page.messages], page.complete) == ([b"last"], True)
    assert every.position is None
    assert not gaps


async def test_store_that_comes_back_empty_has_another_epoch_in_receipts_and_positions(
    make_redis, own_settings, own_redis, subjects
):
    driver, inbox = await make_redis(own_settings), Inbox()
    start = await driver.subscribe(subjects.live("room"), inbox)
    before = await publish(driver, subjects, b"1", b"2")
    await inbox.until(2)
    await own_redis.kill()
    shutil.rmtree(own_redis.folder)
    await own_redis.start()
    [after] = await publish(driver, subjects, b"3")
    assert after.epoch not in {start.position.epoch, before[0].epoch}
    await inbox.until(3)
    assert inbox.deliveries[-1].position == after
    assert driver.counters["gaps"] == 1
    page = await driver.read(subjects.live("room"), after=None, limit=9)
    assert page.position == after


async def test_channel_whose_keys_are_deleted_assigns_no_offset_twice(
    make_redis, own_settings, own_redis, subjects
):
    driver = await make_redis(own_settings)
    before = await publish(driver, subjects, b"1", b"2")
    await driver.aclose()
    for part in "smij":
        await own_redis.command("DEL", f"{{{subjects.live('room')}}}:{part}")
    driver = await make_redis(own_settings)
    [after] = await publish(driver, subjects, b"3")
    assert after.offset > before[-1].offset
    page = await driver.read(subjects.live("room"), after=before[-1].offset, limit=9)
    assert not page.complete


async def test_channel_of_another_type_of_history_is_reported_once_by_several_subscribers(
    make_redis, own_settings, own_redis, subjects
):
    drivers, boxes = [await make_redis(own_settings) for _ in range(3)], []
    for driver in drivers:
        boxes.append(Inbox())
        await driver.subscribe(subjects.live("room"), boxes[-1])
    await publish(drivers[0], subjects, b"1")
    backup = Backup(own_redis, "backup")
    await backup.take()
    await publish(drivers[0], subjects, b"2")
    for box in boxes:
        await box.until(2)
    await backup.restore()
    async with asyncio.timeout(20):
        while not all(driver.counters["gaps"] for driver in drivers):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
    [new] = await publish(drivers[1], subjects, b"3")
    for driver, box in zip(drivers, boxes, strict=True):
        await box.until(3)
        assert box.payloads == [b"1", b"2", b"3"]
        assert box.deliveries[-1].position == new
        assert driver.counters["gaps"] == 1
