import pytest
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from eventbus.drivers.nats.client import MessageParser

OURS = 7
"""The id of a subscription whose messages go to `receive`."""
HEADERS = b"NATS/1.0\r\nA: 1\r\n\r\n"


def message(payload, *, sid=OURS, subject=b"eb.live.a", reply=b"", headers=b""):
    words = [b"HMSG" if headers else b"MSG", subject, b"%d" % sid]
    if reply:
        words.append(reply)
    if headers:
        words.append(b"%d" % len(headers))
    words.append(b"%d" % (len(headers) + len(payload)))
    return b"%b\r\n%b%b\r\n" % (b" ".join(words), headers, payload)


class Recorder:
    """The part of nats-py's client that its parser uses."""

    def __init__(self):
        self.stats = {"in_msgs": 0, "in_bytes": 0}
        self.calls = []

    def receive(self, sid, subject, payload, headers):
        if sid == OURS:
            self.calls.append((sid, subject, payload, headers))
        return sid == OURS

    async def _process_msg(self, sid, subject, reply, payload, headers):
        if sid == OURS:
            self.calls.append((sid, subject, payload, headers or b""))
        else:
            self.calls.append((sid, subject, reply, payload, headers))

    async def _process_ping(self):
        self.calls.append("ping")

    async def _process_pong(self):
        self.calls.append("pong")

    async def _process_err(self, text):
        self.calls.append(text)

    async def _process_info(self, info):
        self.calls.append(info)


def ours():
    recorder = Recorder()
    return recorder, MessageParser(recorder, recorder.receive)


def theirs():
    recorder = Recorder()
    return recorder, Parser(recorder)


STREAM = b"".join(
    [
        b'INFO {"max_payload": 1}\r\n',
        message(b"one"),
        message(b"two", headers=HEADERS),
        b"PING\r\n",
        message(b"", headers=HEADERS),
        message(b""),
        message(b"MSG a 7 3\r\nfoo\r\n"),
        b"+OK\r\n",
        message(b"three", reply=b"_INBOX.1", headers=HEADERS),
        message(b"four", sid=8, reply=b"_INBOX.2"),
        message(b"five", sid=8, headers=HEADERS),
        message(b"six", sid=8, reply=b"_INBOX.3", headers=HEADERS),
        b"-ERR 'Permissions Violation'\r\n",
        b"PONG\r\n",
        message(b"seven", subject=b"\xff\xfe"),
        message(b"8" * 5000),
        message(b"last"),
    ]
)


async def parsed(made, chunks):
    recorder, parser = made
    for chunk in chunks:
        await parser.parse(chunk)
    return recorder.calls


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 377, 4097, len(STREAM)])
async def test_stream_in_pieces_of_any_size_is_read_as_nats_py_reads_it(size):
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert await parsed(ours(), chunks) == await parsed(theirs(), [STREAM])


async def test_stream_cut_anywhere_is_read_as_nats_py_reads_it():
    expected = await parsed(theirs(), [STREAM])
    for at in range(1, len(STREAM)):
        assert await parsed(ours(), [STREAM[:at], STREAM[at:]]) == expected, at


async def test_messages_and_their_bytes_are_counted_without_headers():
    recorder, parser = ours()
    await parser.parse(message(b"one", headers=HEADERS) + message(b"three"))
    assert recorder.stats == {"in_msgs": 2, "in_bytes": 8}


@pytest.mark.parametrize(
    "line",
    [b"MSG a 7 x", b"MSG a x 3", b"MSG 7", b"HMSG a 7 3", b"MSG a 7 -3", b"GARBAGE", b"MSG"],
)
async def test_malformed_line_is_a_protocol_error_after_the_messages_before_it(line):
    recorder, parser = ours()
    with pytest.raises(ProtocolError):
        await parser.parse(message(b"one") + line + b"\r\n")
    assert [call[2] for call in recorder.calls] == [b"one"]


async def test_large_message_in_many_pieces_is_not_looked_at_before_it_is_whole():
    recorder, parser = ours()
    data = message(b"x" * 2_000_000, headers=HEADERS) + message(b"next")
    for at in range(0, len(data), 1000):
        await parser.parse(data[at : at + 1000])
    assert [len(call[2]) for call in recorder.calls] == [2_000_000, 4]


async def test_beginning_of_a_message_of_another_connection_is_dropped():
    recorder, parser = ours()
    await parser.parse(message(b"lost")[:-4])
    parser.reset()
    await parser.parse(message(b"one"))
    assert [call[2] for call in recorder.calls] == [b"one"]


async def test_line_without_an_end_is_left_to_nats_py():
    recorder, parser = ours()
    info = b'INFO {"xkey": "%b"}\r\n' % (b"x" * 10_000)
    for at in range(0, len(info), 3000):
        await parser.parse(info[at : at + 3000])
    assert [len(call["xkey"]) for call in recorder.calls] == [10_000]
    await parser.parse(message(b"one"))
    assert recorder.calls[-1][2] == b"one"
