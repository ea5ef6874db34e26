"""Server-Sent Events as browsers read them (HTML, 9.2), and the requests for them (RFC 9110).

The reader follows the algorithm of the standard step by step, and shares no code with the project.
"""

import asyncio
import json

import pytest

from tests.conformance.wire import PATIENCE_S


class Stream:
    """Reads a stream as section 9.2.6 says; `events` are (id, name, data)."""

    def __init__(self):
        self.events = []
        self.last_id = ""
        self.retry = None
        self.comments = 0
        self._text = ""
        self._data = []
        self._name = ""
        self._id = ""
        self._is_first = True

    def feed(self, data):
        text = data.decode()  # strict: a stream is UTF-8 (9.2.5)
        if self._is_first and text:
            text, self._is_first = text.removeprefix("\ufeff"), False
        self._text += text
        while (cut := self._line_end()) is not None:
            line, self._text = self._text[: cut[0]], self._text[cut[1] :]
            self._line(line)

    def _line_end(self):
        """Where the first line ends and the next begins: CR LF, LF, or CR."""
        ends = [at for at in (self._text.find("\r"), self._text.find("\n")) if at >= 0]
        if not ends:
            return None
        at = min(ends)
        if self._text[at] == "\r" and at + 1 == len(self._text):
            return None  # a line feed may follow
        return at, at + 1 + (self._text[at : at + 2] == "\r\n")

    def _line(self, line):
        if not line:
            self._dispatch()
        elif line.startswith(":"):
            self.comments += 1
        else:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "event":
                    self._name = value
                case "data":
                    self._data.append(value)
                case "id" if "\0" not in value:
                    self._id = value
                case "retry" if value.isascii() and value.isdigit():
                    self.retry = int(value)
                case "id" | "retry":
                    pass
                case _:
                    raise AssertionError(f"the standard has no field {name!r}")

    def _dispatch(self):
        self.last_id = self._id
        if self._data:
            self.events.append((self.last_id, self._name or "message", "\n".join(self._data)))
        self._data, self._name = [], ""


class Client:
    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.stream = Stream()
        self.status = 0
        self.headers = {}

    @classmethod
    async def open(cls, edge, *headers, tls=False, method="GET", query="channel=general", body=b""):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
        )
        client = cls(reader, writer)
        lines = [f"{method} /sse?{query} HTTP/1.1", "Host: a", *headers, "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + body)
        async with asyncio.timeout(PATIENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        client.status = int(head[0].split()[1])
        client.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])
        }
        return client

    async def next(self):
        """The next event, and the id with which the client would reconnect."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.stream.events:
                size = int(await self.reader.readline(), 16)
                if not size:
                    raise EOFError
                self.stream.feed(await self.reader.readexactly(size))
                assert await self.reader.readexactly(2) == b"\r\n"
        return self.stream.events.pop(0)

    async def message(self):
        """The next event's envelope, with that id; not the greeting."""
        last_id, name, data = await self.next()
        assert name == "message", "onmessage of an EventSource receives all of them"
        message = json.loads(data)
        return await self.message() if message["event"] == "eb:connected" else (last_id, message)

    def leave(self):
        self.writer.transport.abort()


over_both = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

PAYLOADS = {
    "line feeds": "a\nb\n\nc",
    "carriage returns": "a\rb\r\rc",
    "both": "a\r\nb\r\n\r\nc",
    "fields": "\ndata: x\n\nid: 9\nretry: 1\nevent: e\n: c\n\n",
    "NUL": "a\0b",
    "a byte order mark": "\ufeffa",
    "other line ends": "a\u0085b\u2028c\u2029d\x0be\x0cf\x1cg",
    "all controls": "".join(map(chr, range(32))) + "\x7f",
    "a colon": ": a",
    "spaces": "  a  ",
    "nothing": "",
    "beyond the first plane": "\U0001f600\U0010ffff",
    "a long text": "x" * 60_000,
}


@over_both
@pytest.mark.parametrize("name", PAYLOADS)
async def test_html_9_2_6_no_text_breaks_its_event(edges, summarize, tls, name):
    summarize("Server-Sent Events, HTML 9.2", 1)
    edge, text = edges[False], PAYLOADS[name]
    client = await Client.open(edge, tls=tls)
    assert (await client.message())[1]["event"] == "eb:subscribed"
    await edge.run(edge.bus.publish("general", "e", {"text": text}))
    assert (await client.message())[1]["data"] == {"text": text}
    await edge.run(edge.bus.publish("general", "next", None))
    assert (await client.message())[1]["event"] == "next"
    assert client.stream.retry is None
    client.leave()


@over_both
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\n", "\r\n\r\n"], ids=repr)
async def test_html_9_2_6_line_ends_between_tokens_of_an_envelope_do_not_end_its_event(
    edges, summarize, tls, end
):
    """An envelope is forwarded as it was published, in whatever layout."""
    summarize("Server-Sent Events, HTML 9.2", 1)
    edge = edges[False]
    client = await Client.open(edge, tls=tls)
    await client.message()
    envelope = end.join(['{"event"', ":", '"e"', ",", '"data"', ":", "[1,", "2]", "}"])
    bus = edge.bus
    await edge.run(bus.driver.publish(bus.subjects.event("general"), envelope.encode(), {}))
    message = (await client.message())[1]
    assert (message["event"], message["data"]) == ("e", [1, 2])
    client.leave()


@over_both
async def test_html_9_2_5_stream_has_the_type_and_is_not_cached(edges, summarize, tls):
    summarize("Server-Sent Events, HTML 9.2", 1)
    edge = edges[False]
    client = await Client.open(edge, "Accept: text/event-stream", tls=tls)
    assert client.status == 200
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["cache-control"] == "no-store"
    assert client.headers["x-accel-buffering"] == "no"
    assert client.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in client.headers
    client.leave()


@over_both
async def test_html_9_2_4_client_that_returns_with_its_last_id_misses_and_repeats_nothing(
    edges, summarize, tls
):
    summarize("Server-Sent Events, HTML 9.2", 1)
    edge = edges[False]
    client = await Client.open(edge, tls=tls)
    await client.message()
    await edge.run(edge.bus.publish("general", "e", "seen"))
    last_id, message = await client.message()
    assert message["data"] == "seen"
    client.leave()
    for number in range(3):
        await edge.run(edge.bus.publish("general", "e", number))
    for headers, query in (
        ([f"Last-Event-ID: {last_id}"], "channel=general"),
        ([], f"channel=general&last_event_id={last_id}"),
        # The header is newer: a browser sends it when it reconnects to the same URL.
        ([f"Last-Event-ID: {last_id}"], "channel=general&last_event_id=old"),
    ):
        client = await Client.open(edge, *headers, tls=tls, query=query)
        assert (await client.message())[1]["data"]["recovered"] is True
        assert [(await client.message())[1]["data"] for _ in range(3)] == [0, 1, 2]
        client.leave()


@over_both
@pytest.mark.parametrize(
    "last_id", ["x", "0", "%00", "9" * 9000, "\xe9", "AAAA", "-", '{"a":1}'], ids=range(8)
)
async def test_html_9_2_4_id_of_another_server_is_a_gap_and_not_an_error(
    edges, summarize, tls, last_id
):
    summarize("Server-Sent Events, HTML 9.2", 1)
    client = await Client.open(edges[False], f"Last-Event-ID: {last_id}", tls=tls)
    if client.status != 200:
        assert client.status == 431
        assert len(last_id) > 8000
    else:
        assert (await client.message())[1]["data"]["recovered"] is False
    client.leave()


@over_both
async def test_html_9_2_3_end_of_a_stream_says_when_to_return(edges, summarize, tls):
    """`retry:`: a browser returns whatever happened, unless the status is not 200."""
    summarize("Server-Sent Events, HTML 9.2", 1)
    edge = edges[False]
    client = await Client.open(edge, tls=tls)
    await client.message()
    connections = edge.node.connections

    def end():
        for connection in list(connections.values()):
            connections.close_slow(connection.outbox)

    await edge.call(end)
    assert (await client.message())[1]["event"] == "eb:closing"
    assert client.stream.retry == 1000
    with pytest.raises(EOFError):
        await client.next()
    client.leave()


@over_both
async def test_html_9_2_7_silent_stream_gets_comments(edges, summarize, tls):
    summarize("Server-Sent Events, HTML 9.2", 1)
    edge = edges[False]
    client = await Client.open(edge, tls=tls)
    await client.message()

    def ping():
        for connection in list(edge.node.connections.values()):
            connection._peer.ping()

    await edge.call(ping)
    await edge.run(edge.bus.publish("general", "e", 1))
    await client.message()
    assert client.stream.comments >= 1
    client.leave()


@over_both
@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", 200), ("OPTIONS", 204), ("PUT", 405), ("DELETE", 405), ("PATCH", 405)],
)
async def test_9110_9_other_methods_get_no_stream(edges, summarize, tls, method, status):
    summarize("Server-Sent Events, HTML 9.2", 1)
    client = await Client.open(edges[False], method=method, tls=tls)
    assert client.status == status
    if status == 405 or method == "OPTIONS":
        assert set(client.headers["allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
    if method == "HEAD":
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    client.leave()


@over_both
async def test_9112_7_1_stream_for_http_1_0_is_not_chunked(edges, summarize, tls):
    summarize("Server-Sent Events, HTML 9.2", 1)
    edge = edges[False]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
    )
    writer.write(b"GET /sse?channel=general HTTP/1.0\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        stream = Stream()
        while not stream.events:
            stream.feed(await reader.read(65_536))
    assert json.loads(stream.events[0][2])["event"] == "eb:connected"
    writer.transport.abort()


@over_both
async def test_stream_by_post_needs_no_long_url(edges, summarize, tls):
    summarize("Server-Sent Events, HTML 9.2", 1)
    body = b'[{"action":"subscribe","channel":"general","ref":1}]'
    client = await Client.open(
        edges[False],
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        tls=tls, method="POST", query="", body=body,
    )  # fmt: skip
    assert client.status == 200
    assert (await client.message())[1]["event"] == "eb:subscribed"
    client.leave()
