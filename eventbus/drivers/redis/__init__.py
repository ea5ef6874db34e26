"""The Redis driver."""

from eventbus.drivers.redis.driver import RedisDriver
from eventbus.drivers.redis.link import CommandLink
from eventbus.drivers.redis.node import write_refusal
from eventbus.drivers.redis.target import Target

__all__ = [
    "CommandLink",
    "RedisDriver",
    "Target",
    "write_refusal",
]
