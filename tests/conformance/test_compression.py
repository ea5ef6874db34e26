"""RFC 7692: the cases 12 and 13 of the Autobahn test suite, by number.

The client is the sans-IO layer of `websockets`, so a different implementation of the extension
deflates what the node inflates, and vice versa. This file only moves the bytes. A node deflates
messages to many clients, but not answers to one client (RFC 7692, 6, allows both), so each size is
also published to a channel, and inflated by the client.

Autobahn sends 1,000 messages of each size; here there are fewer, as MESSAGES says.
"""

import asyncio
import functools
import itertools
import json
import random
import zlib

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.uri import parse_uri

from tests.conformance.cases import SECTIONS
from tests.conformance.wire import (
    ERROR,
    NATIVE,
    PATIENCE_S,
    PUSHER,
    PUSHER_PREFIX,
    TEXT,
    Refused,
    connect,
    frame,
)

SIZES = [
    *((2**power, 0) for power in (4, 6, 8, 10, 12, 13, 14, 15, 16, 17)),
    *((2**power, 256) for power in (13, 14, 15, 16, 17)),
    *((2**17, size) for size in (1024, 4096, 32_768)),
]  # fmt: skip
"""Bytes of a message, and of its fragments; 0: one frame."""
MESSAGES = 3


class Speaker:
    """A client from `websockets`, without I/O of its own."""

    def __init__(self, reader, writer, protocol):
        self.reader = reader
        self.writer = writer
        self.protocol = protocol
        self.events = []

    @classmethod
    async def open(cls, edge, dialect, factory, *, tls=False, query=""):
        scheme = "wss" if tls else "ws"
        uri = parse_uri(f"{scheme}://127.0.0.1:{edge.port(tls)}{dialect.path}{query}")
        protocol = ClientProtocol(uri, extensions=[factory] if factory else None, max_size=2**20)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
        )
        speaker = cls(reader, writer, protocol)
        protocol.send_request(protocol.connect())
        await speaker.next()
        assert protocol.handshake_exc is None
        await speaker.message()  # the greeting
        return speaker

    async def next(self):
        """The next event: the answer to the handshake, or a frame that is inflated."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.events:
                self.flush()
                data = await self.reader.read(65_536)
                self.protocol.receive_data(data) if data else self.protocol.receive_eof()
                if self.protocol.parser_exc is not None:
                    raise self.protocol.parser_exc
                self.events += self.protocol.events_received()
        self.flush()
        return self.events.pop(0)

    async def message(self):
        frame = await self.next()
        assert frame.opcode is Opcode.TEXT
        assert frame.fin
        return bytes(frame.data)

    def flush(self):
        for data in self.protocol.data_to_send():
            self.writer.write(data)

    def send(self, payload, size, *, binary=False):
        """Send a message, in fragments of `size` bytes if given."""
        parts = [payload[at : at + size] for at in range(0, len(payload), size)] if size else []
        parts = parts or [payload]
        send = self.protocol.send_binary if binary else self.protocol.send_text
        send(parts[0], fin=len(parts) == 1)
        for part in parts[1:]:
            self.protocol.send_continuation(part, fin=part is parts[-1])
        self.flush()

    @property
    def agreed(self):
        return bool(self.protocol.extensions)

    async def close(self):
        self.protocol.send_close(1000)
        frame = await self.next()
        assert frame.opcode is Opcode.CLOSE
        assert bytes(frame.data) == (1000).to_bytes(2)
        self.writer.transport.abort()


# 12 Different payloads


def _words(seed, end, joint=" "):
    rng = random.Random(seed)
    lexicon = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))
               for _ in range(400)]  # fmt: skip
    return joint.join(rng.choices(lexicon, k=40_000)) + end


@functools.cache
def corpora():
    """Data as compressible as Autobahn's five files, by their numbers; and whether it is binary.

    No text has characters that JSON escapes, since it is quoted.
    """
    rng = random.Random(7692)
    bitmap = bytes((row // 3 + column // 5) & 0xFF for row in range(512) for column in range(512))
    numbers = ",".join(f"id:{rng.randrange(10**6)};price:{rng.random():.4f}" for _ in range(9000))
    return {
        1: ("JSON", numbers.encode(), False),
        2: ("a bitmap", bitmap, True),
        3: ("prose", _words(1, ".").encode(), True),
        4: ("HTML", _words(2, "</p>", "</p> <p>").encode(), False),
        5: ("a file that is compressed already", rng.randbytes(2**18), True),
    }


def message_of(dialect, data, size, number, *, binary):
    """A message of `size` bytes, and what its answer quotes."""
    start = (number * size) % (len(data) // 2)
    if binary:
        return data[start : start + size], ERROR
    room = size - len(dialect.quoting(b""))
    if room < 0:  # too short for a command
        return data[start : start + size], ERROR
    text = data[start : start + room]
    return dialect.quoting(text), text.decode()


def answer_in(dialect, payload):
    text = dialect.read(payload)
    return text.removeprefix(PUSHER_PREFIX) if dialect is PUSHER else text


async def exchange(edge, dialect, factory, tls, data, size, part, *, binary):
    """Send messages, each after the answer to the one before; all with one context."""
    speaker = await Speaker.open(edge, dialect, factory, tls=tls)
    assert speaker.agreed
    for number in range(MESSAGES):
        sent, quoted = message_of(dialect, data, size, number, binary=binary)
        speaker.send(sent, part, binary=binary)
        assert answer_in(dialect, await speaker.message()) == quoted
    await speaker.close()


VARIANTS = list(itertools.product((NATIVE, PUSHER), (False, True)))


@pytest.mark.parametrize(
    ("corpus", "size", "part"),
    [
        pytest.param(corpus, *sizes, id=f"12.{corpus}.{number}")
        for corpus in range(1, 6)
        for number, sizes in enumerate(SIZES, 1)
    ],
)
async def test_deflated_messages_arrive_whole(edges, summarize, corpus, size, part):
    summarize(f"12 {SECTIONS[12]}", len(VARIANTS))
    _, data, binary = corpora()[corpus]
    await asyncio.gather(
        *(
            exchange(
                edges[True], dialect, ClientPerMessageDeflateFactory(), tls, data, size, part,
                binary=binary,
            )
            for dialect, tls in VARIANTS
        )
    )  # fmt: skip


# 13 Different parameters

OFFERS = {
    1: "permessage-deflate",
    2: "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    3: "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
    4: "permessage-deflate; server_max_window_bits=15; client_max_window_bits=15",
    5: "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; "
       "client_no_context_takeover; client_max_window_bits=9",
    6: "permessage-deflate; server_no_context_takeover; server_max_window_bits=15; "
       "client_no_context_takeover; client_max_window_bits=15",
    7: "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; "
       "client_no_context_takeover; client_max_window_bits=9, "
       "permessage-deflate; server_no_context_takeover, permessage-deflate",
}  # fmt: skip
FACTORIES = {
    1: ClientPerMessageDeflateFactory(),
    2: ClientPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True
    ),
    3: ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9),
    4: ClientPerMessageDeflateFactory(server_max_window_bits=15, client_max_window_bits=15),
}
for _number, _bits in ((5, 9), (6, 15), (7, 9)):
    FACTORIES[_number] = ClientPerMessageDeflateFactory(
        server_no_context_takeover=True,
        client_no_context_takeover=True,
        server_max_window_bits=_bits,
        client_max_window_bits=_bits,
    )
SERVER_BITS = {number: 9 if number in (3, 5, 7) else 15 for number in OFFERS}


async def published(edge, number, dialect, tls, text):
    """A message that the node sends to a channel, inflated with the negotiated window."""
    query = f"?extra={number}" if dialect is PUSHER else "?channel=general"
    offer = OFFERS[number]
    peer = await connect(edge.port(tls), dialect, tls=edge.context(tls), offer=offer, query=query)
    assert "server_no_context_takeover" in peer.head
    agreed = f"server_max_window_bits={SERVER_BITS[number]}"
    assert (agreed in peer.head) == ("server_max_window_bits" in offer)
    assert peer.head.count("permessage-deflate") == 1
    if dialect is PUSHER:
        peer.writer.write(PUBLIC)
    while b"subscri" not in (await peer.frame())[1]:
        pass
    peer.window = SERVER_BITS[number]
    return peer


PUBLIC = frame(TEXT, b'{"event":"pusher:subscribe","data":{"channel":"general"}}')


@pytest.mark.parametrize(
    ("number", "size", "part"),
    [
        pytest.param(number, *sizes, id=f"13.{number}.{each}")
        for number in OFFERS
        for each, sizes in enumerate(SIZES, 1)
    ],
)
async def test_parameters_are_agreed_on_and_kept(edges, summarize, number, size, part):
    summarize(f"13 {SECTIONS[13]}", len(VARIANTS))
    edge, (_, data, _) = edges[True], corpora()[1]
    await asyncio.gather(
        *(
            exchange(edge, dialect, FACTORIES[number], tls, data, size, part, binary=False)
            for dialect, tls in VARIANTS
        )
    )
    peers = [await published(edge, number, dialect, tls, data) for dialect, tls in VARIANTS]
    text = data[:size].decode()
    for count in range(2):  # the second one must not refer to the first
        await edge.run(edge.bus.publish("general", "e", {"n": count, "text": text}, volatile=True))
        for peer in peers:
            message = json.loads(await message_in_window(peer))
            content = message["data"]
            content = json.loads(content) if isinstance(content, str) else content
            assert content == {"n": count, "text": text}
    for peer in peers:
        peer.leave()


async def message_in_window(peer):
    """The next message, inflated with the negotiated window and without context."""
    async with asyncio.timeout(PATIENCE_S):
        first, size = await peer.reader.readexactly(2)
        if size > 125:
            size = int.from_bytes(await peer.reader.readexactly(2 if size == 126 else 8))
        payload = await peer.reader.readexactly(size)
    if not first & 0x40:
        return payload
    return zlib.decompressobj(-peer.window).decompress(payload + b"\0\0\xff\xff")


# RFC 7692, where Autobahn has no case

DECLINED = [
    "permessage-deflate; server_max_window_bits=8",  # zlib has no such window
    "permessage-deflate; server_max_window_bits",
    "permessage-deflate; server_max_window_bits=16",
    "permessage-deflate; server_max_window_bits=09",
    "permessage-deflate; client_max_window_bits=7",
    "permessage-deflate; server_no_context_takeover=1",
    "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; unknown",
    "x-webkit-deflate-frame",
    "permessage-bzip2",
]
MALFORMED = [
    "permessage-deflate;", ";", "permessage-deflate; =9", "permessage-deflate, ;", '"a"',
    "permessage-deflate; server_max_window_bits==9", "permessage deflate",
]  # fmt: skip


@pytest.mark.parametrize("offer", DECLINED)
@pytest.mark.parametrize("dialect", [NATIVE, PUSHER], ids=["native", "pusher"])
async def test_7692_5_1_offer_that_cannot_be_kept_is_declined(edges, summarize, dialect, offer):
    summarize("RFC 7692, beyond Autobahn", 1)
    edge = edges[True]
    for more in ("", ", permessage-deflate"):  # a later offer is accepted (RFC 7692, 5)
        peer = await connect(edge.plain, dialect, offer=offer + more)
        assert ("permessage-deflate" in peer.head) == bool(more)
        peer.leave()


@pytest.mark.parametrize("offer", MALFORMED)
@pytest.mark.parametrize("dialect", [NATIVE, PUSHER], ids=["native", "pusher"])
async def test_6455_9_1_malformed_offer_fails_the_handshake(edges, summarize, dialect, offer):
    summarize("RFC 7692, beyond Autobahn", 1)
    with pytest.raises(Refused, match=r"HTTP/1\.1 400 "):
        await connect(edges[True].plain, dialect, offer=offer)
