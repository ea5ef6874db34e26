"""What tests of integrations leave in their process: nothing."""

from collections.abc import Iterator

import pytest

from eventbus.events import current


@pytest.fixture(autouse=True)
def _no_default_bus_for_later_tests() -> Iterator[None]:
    """Frameworks let event loops use the default bus of the process, for as long as it lives."""
    yield
    current.provide_fallback(None)
