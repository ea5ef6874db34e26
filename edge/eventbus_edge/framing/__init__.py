"""Framings, which turn the payloads of a protocol into bytes for a socket."""

from eventbus_edge.framing import sse
from eventbus_edge.framing.base import Framing
from eventbus_edge.framing.deflate import DeflatedFramings
from eventbus_edge.framing.extensions import Deflate, InvalidExtensions, negotiate_extensions
from eventbus_edge.framing.frames import (
    PING_FRAME,
    TEXT_FRAMES,
    close_frame,
    close_reason,
    pong_frame,
)
from eventbus_edge.framing.reader import BINARY, CLOSE, PING, TEXT, Fault, FrameReader

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PING_FRAME",
    "TEXT",
    "TEXT_FRAMES",
    "Deflate",
    "DeflatedFramings",
    "Fault",
    "FrameReader",
    "Framing",
    "InvalidExtensions",
    "close_frame",
    "close_reason",
    "negotiate_extensions",
    "pong_frame",
    "sse",
]
