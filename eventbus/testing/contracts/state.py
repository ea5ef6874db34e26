"""Tests that drivers with PRESENCE share state between processes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

import pytest_asyncio

from eventbus.drivers import Capability, StateDriver
from eventbus.testing.contracts.probes import (
    TIMEOUT_S,
    Changes,
    Contract,
    MakeDriver,
)

__all__ = ["StateContract"]

MakeState = Callable[[], Awaitable[StateDriver]]

_MANY: Final = 1007
"""More than one page at every broker."""


class StateContract(Contract):
    """Tests for shared state. Drivers without the capability skip them."""

    @pytest_asyncio.fixture
    async def make_state(self, make_driver: MakeDriver) -> MakeState:
        """Makes drivers with shared state."""

        async def make() -> StateDriver:
            return cast(StateDriver, await self.driver_with(Capability.PRESENCE, make_driver))

        return make

    async def test_entries_are_visible_to_all_and_sent_to_watchers(
        self, make_state: MakeState
    ) -> None:
        one, two, changes, others = await make_state(), await make_state(), Changes(), Changes()
        mine, theirs = one.state, two.state
        key = "node.0-A." + "x" * 200 + "." + "=" * 60
        await mine.put("room.before", b"0")
        await mine.put(key, bytes(range(256)))
        subscription = await theirs.watch("room.*", changes)
        await theirs.watch("other.>", others)
        await mine.put("room.a", b"1")
        await mine.put("room.a", b"")
        await mine.put("room.a.b", b"deeper")
        await mine.delete("room.never")
        await mine.delete("room.before")
        await changes.until("room.before", None)
        assert [change for change in changes.received if change != ("room.never", None)] == [
            ("room.a", b"1"), ("room.a", b""), ("room.before", None),
        ]  # fmt: skip
        assert await theirs.entries("room.*") == {"room.a": b""}
        assert await theirs.entries("room.>") == {"room.a": b"", "room.a.b": b"deeper"}
        assert await theirs.entries("*.0-A.>") == {key: bytes(range(256))}
        assert await theirs.entries("nothing.>") == {}
        assert mine.losses == theirs.losses == 0
        await subscription.aclose()
        await subscription.aclose()
        count = len(changes.received)
        last = Changes()
        await theirs.watch("room.*", last)
        await mine.put("room.late", b"x")
        await last.until("room.late", b"x")
        assert len(changes.received) == count
        assert others.received == []

    async def test_entry_with_a_ttl_expires_unless_it_is_set_again(
        self, make_state: MakeState
    ) -> None:
        one, two, changes = await make_state(), await make_state(), Changes()
        mine, theirs = one.state, two.state
        await mine.put("node.before", b"1", ttl_s=1)
        await theirs.watch("node.*", changes)
        loop = asyncio.get_running_loop()
        await mine.put("node.short", b"1", ttl_s=1)
        start = loop.time()
        await mine.put("node.long", b"1", ttl_s=1)
        await mine.put("node.long", b"2", ttl_s=30)
        await mine.put("node.kept", b"1", ttl_s=1)
        await mine.put("node.kept", b"2")
        await changes.until("node.short", None)
        assert 0.9 < loop.time() - start < TIMEOUT_S / 2
        await changes.until("node.before", None)
        assert await theirs.entries("node.*") == {"node.long": b"2", "node.kept": b"2"}
        assert ("node.long", None) not in changes.received
        assert ("node.kept", None) not in changes.received

    async def test_only_one_of_concurrent_claims_succeeds_until_it_expires(
        self, make_state: MakeState
    ) -> None:
        states = [(await make_state()).state for _ in range(3)]
        changes, loop = Changes(), asyncio.get_running_loop()
        await states[0].watch("lease.*", changes)
        for turn in range(5):
            key = f"lease.{turn}"
            results = await asyncio.gather(
                *(
                    state.claim(key, f"{i}-{again}".encode(), ttl_s=30)
                    for i, state in enumerate(states)
                    for again in range(3)
                )
            )
            assert results.count(True) == 1
        assert not await states[0].claim("lease.0", b"late", ttl_s=30)
        await states[0].delete("lease.0")
        assert await states[1].claim("lease.0", b"next", ttl_s=30)
        await changes.until("lease.0", b"next")
        assert await states[0].claim("lease.short", b"mine", ttl_s=1)
        await asyncio.sleep(0.5)
        start = loop.time()
        assert await states[0].claim("lease.short", b"mine", ttl_s=1), "the holder can renew it"
        while not await states[1].claim("lease.short", b"other", ttl_s=30):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert 0.8 < loop.time() - start < TIMEOUT_S / 2
        assert not await states[0].claim("lease.short", b"mine", ttl_s=1)
        assert await states[2].entries("lease.short") == {"lease.short": b"other"}

    async def test_durable_entries_are_visible_to_all(self, make_state: MakeState) -> None:
        one, two, changes = await make_state(), await make_state(), Changes()
        mine, theirs = one.durable_state, two.durable_state
        await theirs.watch("kept.*", changes)
        await mine.put("kept.a", b"1")
        await mine.put("kept.short", b"1", ttl_s=3)
        await changes.until("kept.short", b"1")
        assert await theirs.entries("kept.*") == {"kept.a": b"1", "kept.short": b"1"}
        await changes.until("kept.short", None)
        assert await mine.entries("kept.*") == {"kept.a": b"1"}
        assert await theirs.claim("kept.b", b"two", ttl_s=30)
        assert not await mine.claim("kept.b", b"one", ttl_s=30)
        await mine.delete("kept.a")
        await changes.until("kept.a", None)
        assert mine.losses == theirs.losses == 0

    async def test_thousands_of_entries_are_read_completely(self, make_state: MakeState) -> None:
        state = (await make_state()).state
        expected = {f"many.{i}": str(i).encode() for i in range(_MANY)}
        await asyncio.gather(*(state.put(key, value) for key, value in expected.items()))
        assert await state.entries("many.*") == expected
