import asyncio
import datetime

from eventbus.drivers.memory import MemoryDriver
from eventbus.webhooks import WebhookEvent
from eventbus_edge.lifecycle.holdings import LEDGER, Announcement, encode_announcement
from eventbus_edge.lifecycle.leader import Leader, LeaderOptions

OPTIONS = LeaderOptions(("channel_occupied",), batch=10, wait_s=0.0, ttl_s=1.0)
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def occupied(number):
    event = WebhookEvent(
        id=str(number), event="channel_occupied", channel=f"c.{number}", timestamp=NOW
    )
    return Announcement(event, "batch", is_done=True)


async def test_ledger_may_change_while_the_leader_waits_until_it_is_written():
    may_write = asyncio.Event()
    driver = MemoryDriver()
    await driver.open()
    leader = Leader(
        driver, OPTIONS, announcer=None, node="a", may_lead=may_write.is_set, confirm=None
    )  # fmt: skip
    for number in range(3):
        leader._record(f"ledger.c.{number}", occupied(number))
    marking = asyncio.create_task(leader._mark())
    await asyncio.sleep(0)
    for number in (3, 4):  # one more than are removed: a dict notices a changed size only
        leader._record(f"ledger.c.{number}", occupied(number))
    leader._record("ledger.c.1", None)
    may_write.set()
    async with asyncio.timeout(40):
        await marking
    assert await leader.is_last()
    await leader.aclose()
    await driver.aclose()


async def test_leader_restores_what_an_earlier_leader_writes_late():
    driver = MemoryDriver()
    await driver.open()
    leader = Leader(driver, OPTIONS, announcer=None, node="a", may_lead=lambda: True, confirm=None)
    await leader._load(had_other_leader=False)
    key = f"{LEDGER}c.c.1"
    leader._record(key, occupied(1))
    await leader._written(key)
    late, foreign = encode_announcement(occupied(2)), f"{LEDGER}c.c.2"
    await driver.state.put(key, late)
    await driver.state.put(foreign, late)
    await asyncio.sleep(0)  # the leader's watch is called
    await leader.refresh(float("inf"))
    await leader._written(key)
    await leader._written(foreign)
    assert await driver.state.entries(f"{LEDGER}>") == {key: encode_announcement(occupied(1))}
    await leader.aclose()
    await driver.aclose()
