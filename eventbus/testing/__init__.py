"""Tools for testing services: a fake, and a pytest plugin with fixtures for real servers.

The fixtures are in `eventbus.testing.plugin`, which pytest loads automatically. The test suite for
authors of drivers is `eventbus.testing.contracts`.
"""

from eventbus.testing.errors import Refused
from eventbus.testing.faking import EventFake, fake
from eventbus.testing.records import RecordedMessage

__all__ = ["EventFake", "RecordedMessage", "Refused", "fake"]
