"""What tests of services on eventbus need: a fake, and (as a pytest plugin) fixtures of real parts.

The fixtures are in `eventbus.testing.plugin`, which pytest finds by itself; `driver_contract` is
the suite for authors of drivers.
"""

from eventbus.testing.errors import Refused
from eventbus.testing.faking import EventFake, fake
from eventbus.testing.records import RecordedMessage

__all__ = ["EventFake", "RecordedMessage", "Refused", "fake"]
