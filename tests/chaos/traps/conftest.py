"""The edges of tests/edge, for traps that their clients see."""

from tests.edge.conftest import clients, runners, start_edge, token
from tests.eventbus.drivers.nats.conftest import own_settings

__all__ = ["clients", "own_settings", "runners", "start_edge", "token"]
