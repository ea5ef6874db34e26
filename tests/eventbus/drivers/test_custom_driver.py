"""An example of another people's driver, which passes the contract suite: messages over files.

Each message is a line of JSON in one file, and subscribers follow the file. It has no history
for those who come later, though it could; it is the smallest driver that is more than memory.
"""

import asyncio
import base64
import json
import logging
from pathlib import Path

import pytest

from eventbus import EventBus, Settings, Subjects
from eventbus.channels import Pattern
from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Delivery,
    Driver,
    Handler,
    Headers,
    Position,
    Published,
)
from eventbus.drivers.registry import unregister
from eventbus.errors import ConfigError, ConnectionFailed
from eventbus.testing.contracts import DriverContract
from eventbus.testing.contracts.driver import Inbox


class FileSubscription:
    """Interest in a subject, until it is closed."""

    position: Position | None = None

    def __init__(self, driver: "FileDriver", subject: str, handler: Handler) -> None:
        self._driver = driver
        self._pattern = Pattern(subject)
        self._handler = handler

    def receive(self, delivery: Delivery) -> None:
        if self._pattern.match(delivery.subject) is None:
            return
        try:
            self._handler(delivery)
        except Exception:
            logging.getLogger(__name__).exception("a handler failed")

    async def aclose(self) -> None:
        self._driver.subscriptions.pop(self, None)


class FileDriver:
    """Carries messages through a file, which all its processes append to and follow."""

    name = "file"
    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, path: Path, subjects: Subjects) -> None:
        self.subscriptions: dict[FileSubscription, None] = {}
        self.is_connected = False
        self._path = path
        self._subjects = subjects
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._writer = self._path.open("ab", buffering=0)
        self._reader = self._path.open("rb")
        self._reader.seek(0, 2)
        self._following = asyncio.create_task(self._follow())
        self.is_connected = True

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        self._require_open()
        subject = self._subjects.live_of(subject) or subject
        line = [subject, base64.b64encode(payload).decode(), dict(headers)]
        self._writer.write(json.dumps(line).encode() + b"\n")
        return None

    async def subscribe(self, subject: str, handler: Handler) -> FileSubscription:
        self._require_open()
        self._read()  # earlier messages are not for this one
        subscription = FileSubscription(self, subject, handler)
        self.subscriptions[subscription] = None
        return subscription

    async def aclose(self) -> None:
        if not self.is_connected:
            return
        self.is_connected = False
        self.subscriptions.clear()
        assert self._following is not None
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        self._writer.close()
        self._reader.close()

    async def _follow(self) -> None:
        while True:
            self._read()
            await asyncio.sleep(0.001)

    def _read(self) -> None:
        for line in iter(self._reader.readline, b""):
            subject, payload, headers = json.loads(line)
            delivery = Delivery(subject, base64.b64decode(payload), headers)
            for subscription in list(self.subscriptions):
                if subscription in self.subscriptions:
                    subscription.receive(delivery)

    def _require_open(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed("the file driver is not open", driver=self.name)


class TestFileDriver(DriverContract):
    @pytest.fixture
    def make_driver(self, tmp_path, opened):
        return lambda: opened(FileDriver(tmp_path / "bus", Subjects()))


async def test_bus_over_a_custom_driver_that_was_registered(tmp_path):
    def make(settings: Settings) -> Driver:
        if not tmp_path.is_dir():
            raise ConfigError("the file driver needs a folder")
        return FileDriver(tmp_path / "bus", Subjects(settings.namespace))

    EventBus.register_driver("file", make)
    try:
        async with (
            EventBus(Settings(driver="file")) as sender,
            EventBus(Settings(driver="file")) as receiver,
        ):
            inbox = Inbox()
            await receiver.driver.subscribe(receiver.subjects.live("general"), inbox)
            receipt = await sender.publish("general", "news", {"a": 1})
            await inbox.until(1)
    finally:
        unregister("file")
    assert receipt.offset is None
    assert json.loads(inbox.payloads[0])["data"] == {"a": 1}
