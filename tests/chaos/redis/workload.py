"""Publishers on Redis and receivers of all kinds, whose lists are compared with each other."""

import asyncio
import collections
import contextlib
import json
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed

from eventbus.bus import EventBus
from eventbus.channels import Pattern, Subjects
from eventbus.drivers.base import Delivery
from eventbus.drivers.redis.driver import RedisDriver
from eventbus.errors import EventBusError

PATIENCE_S = 120.0
CHANNELS = ("orders", "prices", "chat")
PUBLISHERS = 3
PAUSE_S = 0.003


class Got(NamedTuple):
    """One received message."""

    number: int
    offset: int
    epoch: str


class Receiver:
    """What one receiver got, by channel, and where gaps were reported."""

    def __init__(self, name: str, *, is_filter: bool = False) -> None:
        self.name = name
        self.is_filter = is_filter
        self.got: dict[str, list[Got]] = collections.defaultdict(list)
        self.gaps: collections.Counter[str] = collections.Counter()
        self._more = asyncio.Event()

    def take(self, channel: str, got: Got) -> None:
        self.got[channel].append(got)
        self._more.set()

    def take_gap(self, channel: str) -> None:
        self.gaps[channel] += 1
        self._more.set()

    def numbers(self, channel: str) -> list[int]:
        return [got.number for got in self.got[channel]]

    async def until(self, channel: str, numbers: set[int]) -> None:
        """Wait until all of these were received."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while missing := numbers - set(self.numbers(channel)):
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            shown = sorted(missing)[:20]
            raise AssertionError(
                f"{self.name} lacks {len(missing)} of {channel}: {shown}"
            ) from None

    async def until_gap(self, channel: str) -> None:
        """Wait until a gap was reported."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not self.gaps[channel]:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"no gap of {channel} was reported to {self.name}") from None


class Workload:
    """Publishes numbers to all channels until stopped."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.acked: dict[str, dict[int, Any]] = {channel: {} for channel in CHANNELS}
        """The receipts of acknowledged numbers, by channel."""
        self.failed: list[EventBusError] = []
        self.receivers: list[Receiver] = []
        self.drivers: list[RedisDriver] = []
        self._number = 0
        self._stop = asyncio.Event()
        self._publishing: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.Task[None]] = []

    async def receive_by_client(self, edge: Any, **options: Any) -> Receiver:
        """A client of an edge, in all channels."""
        client = await edge.connect(**options)
        receiver = Receiver(f"a client of {edge.url}")
        for channel in CHANNELS:
            await client.subscribe(channel)
        self.receivers.append(receiver)
        self._reading.append(asyncio.create_task(self._read(client, receiver)))
        return receiver

    async def receive_by_driver(self, stack: contextlib.AsyncExitStack) -> None:
        """A driver of its own, with exact subscriptions and one to a filter."""
        driver = RedisDriver(self.settings)
        stack.push_async_callback(driver.aclose)
        await driver.open()
        self.drivers.append(driver)
        subjects = Subjects(self.settings.namespace)
        exact, every = Receiver("exact subscriptions"), Receiver("a filter", is_filter=True)

        def handler(receiver: Receiver) -> Any:
            def handle(delivery: Delivery) -> None:
                message = json.loads(delivery.payload)
                assert delivery.position is not None
                receiver.take(message["channel"], Got(message["data"], *delivery.position))

            return handle

        for channel in CHANNELS:
            subscription = await driver.subscribe(subjects.live(channel), handler(exact))
            subscription.on_gap = lambda channel=channel: exact.take_gap(channel)
        subscription = await driver.subscribe(subjects.live_filter(Pattern(">")), handler(every))
        subscription.on_gap = lambda: [every.take_gap(channel) for channel in CHANNELS]
        self.receivers += [exact, every]

    def begin(self, bus: EventBus) -> None:
        """Publish from several tasks at once."""
        self._publishing = [asyncio.create_task(self._publish(bus)) for _ in range(PUBLISHERS)]

    def count(self) -> int:
        """The lowest number of acknowledged messages of a channel."""
        return min(map(len, self.acked.values()))

    def snapshot(self) -> dict[str, set[int]]:
        """The numbers that have been acknowledged so far."""
        return {channel: set(acked) for channel, acked in self.acked.items()}

    async def until_more(self, count: int) -> None:
        """Wait until `count` more messages of each channel are acknowledged."""
        wanted = self.count() + count
        async with asyncio.timeout(PATIENCE_S):
            while self.count() < wanted:  # noqa: ASYNC110 - several tasks raise it
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Stop publishing, and wait for messages in flight."""
        self._stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._publishing)

    async def aclose(self) -> None:
        for task in (*self._publishing, *self._reading):
            task.cancel()
        await asyncio.gather(*self._publishing, *self._reading, return_exceptions=True)

    async def nothing_is_missing(
        self, *, since: dict[str, set[int]] | None = None, once: bool = True
    ) -> None:
        """Check that each receiver got each acknowledged message once, in the order of offsets.

        With `since`, those that were acknowledged before are not required. Without `once`, a
        message may arrive again in another epoch: it was delivered, lost with its history, and then
        stored again by the publisher's retry.
        """
        for receiver in self.receivers:
            for channel, acked in self.acked.items():
                required = set(acked) - (since or {}).get(channel, set())
                await receiver.until(channel, required)
                got = receiver.got[channel]
                seen = [one.number if once else (one.number, one.epoch) for one in got]
                twice = [one for one, times in collections.Counter(seen).items() if times > 1]
                assert not twice, f"{receiver.name} got these of {channel} twice: {twice}"
                self._in_order(receiver, channel)

    def no_gap_was_reported(self) -> None:
        """Check that no gap was reported, except to filters.

        After each loss, a filter may have missed a channel that it does not know.
        """
        for receiver in self.receivers:
            assert receiver.is_filter or not receiver.gaps, f"{receiver.name}: {receiver.gaps}"

    async def every_loss_was_reported(self) -> None:
        """Check that each receiver that lacks an acknowledged message was notified of a gap."""
        for receiver in self.receivers:
            for channel, acked in self.acked.items():
                if set(acked) - set(receiver.numbers(channel)):
                    await receiver.until_gap(channel)

    def lost(self) -> int:
        """The number of acknowledged messages that the worst receiver lacks."""
        return max(
            sum(len(set(acked) - set(receiver.numbers(channel))) for channel, acked in
                self.acked.items())
            for receiver in self.receivers
        )  # fmt: skip

    def _in_order(self, receiver: Receiver, channel: str) -> None:
        """Check that offsets rise within each epoch, and that no earlier epoch comes back."""
        epochs: list[str] = []
        last = 0
        for got in receiver.got[channel]:
            if not epochs or got.epoch != epochs[-1]:
                assert got.epoch not in epochs, f"{receiver.name}: {channel} is at {got} again"
                epochs.append(got.epoch)
                last = 0
            assert got.offset > last, f"{receiver.name}: {channel} goes back to {got}"
            last = got.offset

    async def _publish(self, bus: EventBus) -> None:
        while not self._stop.is_set():
            self._number += 1
            number = self._number
            for channel in CHANNELS:
                try:
                    receipt = await bus.publish(channel, "tick", number)
                except EventBusError as exc:
                    self.failed.append(exc)
                else:
                    self.acked[channel][number] = receipt
            await asyncio.sleep(PAUSE_S)

    async def _read(self, client: Any, receiver: Receiver) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = json.loads(await client.socket.recv())
                if frame["event"] == "eb:subscribed":
                    if not frame["data"]["recovered"]:
                        receiver.take_gap(frame["channel"])
                elif not frame["event"].startswith("eb:"):
                    got = Got(frame["data"], frame["offset"], frame["epoch"])
                    receiver.take(frame["channel"], got)
