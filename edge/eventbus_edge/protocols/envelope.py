"""Envelopes: the JSON of a message on the bus, which is also what native clients receive."""

import datetime
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus_edge.protocols.vocabulary import ChannelMessage

__all__ = ["encode_envelope", "encode_message"]


_encode: Final = msgspec.json.Encoder().encode


def encode_envelope(
    channel: str, event: str, data: Any, timestamp: datetime.datetime, **more: str | None
) -> bytes:
    """A new envelope; `more` are further fields."""
    fields = {"channel": channel, "event": event, "data": data, "timestamp": timestamp}
    return _encode(fields | more)


def encode_message(message: ChannelMessage) -> bytes:
    """A message's envelope as received, with its position spliced in if it has one."""
    if message.position is None:
        return message.body
    offset, epoch = message.position
    # The envelope is an object with members, whatever white space follows it: read_payload has
    # checked that.
    body = message.body.rstrip()[:-1]
    if message.mark is None:
        return b'%b,"offset":%d,"epoch":"%b"}' % (body, offset, epoch.encode())
    # Encoded, since anyone may publish any time on a live subject.
    mark = _encode(message.mark)
    return b'%b,"offset":%d,"epoch":"%b","mark":%b}' % (body, offset, epoch.encode(), mark)
