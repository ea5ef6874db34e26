"""What the application holds for its handlers."""

from typing import Final

from aiohttp import web

from edge.node import Node

__all__ = ["NODE"]

NODE: Final = web.AppKey("NODE", Node)
