"""Adapters: each carries messages over one system."""

from eventbus.drivers.registry import ENTRY_POINTS, create_driver

__all__ = ["ENTRY_POINTS", "create_driver"]
