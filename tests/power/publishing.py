"""Publishers that record what was acknowledged, to compare it with what is stored later."""

import asyncio
import contextlib

from eventbus.drivers.nats import NatsDriver
from eventbus.errors import ConnectionFailed, PublishFailed

ALL = 10_000
PUBLISHERS = 8


class Publishers:
    """Publish until stopped; `acknowledged` has the acknowledged payloads by offset."""

    def __init__(self, settings, channel="orders.1"):
        self.acknowledged = {}
        self._driver = NatsDriver(settings)
        self._subject = f"{settings.namespace}.event.{channel}"
        self._tasks = []
        self._changed = asyncio.Condition()

    async def __aenter__(self):
        await self._driver.open()
        return self

    async def __aexit__(self, *exc_info):
        await self.stop()
        await self._driver.aclose()

    def begin(self):
        self._tasks += [asyncio.create_task(self._publish(n)) for n in range(PUBLISHERS)]

    async def _publish(self, number):
        for count in range(ALL):
            payload = b'{"data":"%d-%d"}' % (number, count)
            published = await self._driver.publish(self._subject, payload)
            async with self._changed:
                self.acknowledged[published.position.offset] = payload
                self._changed.notify_all()

    async def more(self, count):
        """Wait for that many more acknowledgements."""
        wanted = len(self.acknowledged) + count
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.acknowledged) >= wanted)

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(ConnectionFailed, PublishFailed):
            for error in await asyncio.gather(*self._tasks, return_exceptions=True):
                if not isinstance(error, asyncio.CancelledError):
                    raise error
        self._tasks.clear()

    @property
    def server(self):
        """The embedded server."""
        return self._driver.server

    async def leader(self, brokers):
        """The broker that leads the event stream."""
        info = await self._driver._stream.stream.info()
        [leader] = [one for one in brokers if one.name == info.cluster.leader]
        return leader

    async def caught_up(self, copies):
        """Wait until all copies of the event stream are current."""
        async with asyncio.timeout(60):
            while True:
                answer = await self._driver._stream.stream.ask("INFO")
                replicas = answer.body["cluster"].get("replicas", [])
                current = [one for one in replicas if one.get("current") and not one.get("offline")]
                if answer.body["cluster"].get("leader") and len(current) == copies - 1:
                    return
                await asyncio.sleep(0.1)

    async def stored(self):
        """The payloads of the channel by offset."""
        live = self._subject.replace(".event.", ".live.")
        page = await self._driver.read(live, after=None, limit=ALL)
        return {one.position.offset: bytes(one.payload) for one in page.messages}


async def stored(settings, channel="orders.1"):
    """The payloads of a channel by offset."""
    async with Publishers(settings, channel) as reader:
        return await reader.stored()


def lost(acknowledged, stored):
    """The offsets whose acknowledged payload is not stored."""
    return {offset for offset, payload in acknowledged.items() if stored.get(offset) != payload}
