"""What a real nats-server and nats-py do with subjects, which is why names are validated."""

import asyncio

import nats
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st
from nats.errors import BadSubjectError

from eventbus.channels import Pattern, Subjects, validate_channel
from eventbus.drivers.nats.client import (
    validate_filter,
    validate_subject,
)
from eventbus.errors import InvalidChannel, InvalidPattern


class Raw:
    """A connection without a client: what others may send, and what the server delivers."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, *lines: bytes) -> None:
        self.writer.writelines(lines)
        await self.writer.drain()

    async def flush(self) -> list[bytes]:
        """The lines that the server has sent until it has taken all that was sent."""
        await self.send(b"PING\r\n")
        lines = []
        async with asyncio.timeout(30):
            while (line := await self.reader.readline()) != b"PONG\r\n":
                assert line, "the server has closed the connection"
                if line == b"PING\r\n":  # the server's own, which may come at any time
                    await self.send(b"PONG\r\n")
                elif not line.startswith(b"INFO "):
                    lines.append(line)
        return lines


@pytest_asyncio.fixture
async def raw(nats_server):
    reader, writer = await asyncio.open_connection(nats_server.host, nats_server.port)
    raw = Raw(reader, writer)
    await raw.send(b'CONNECT {"verbose":false,"echo":true}\r\n')
    await raw.flush()
    yield raw
    writer.close()
    await writer.wait_closed()


async def settle(client) -> None:
    """Wait until the server has what was sent: a first flush overtakes what is pending."""
    await client.flush()
    await client.flush()


def pub(subject: bytes) -> bytes:
    return b"PUB " + subject + b" 1\r\nx\r\n"


async def delivered(raw: Raw, filters: list[str], subjects: list[bytes]) -> list[set[int]]:
    """For each filter the indexes of the subjects whose messages reach it."""
    for sid, text in enumerate(filters):
        await raw.send(f"SUB {text} {sid}\r\n".encode())
    for i, subject in enumerate(subjects):
        payload = str(i).encode()
        await raw.send(b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload))
    lines = await raw.flush()
    await raw.send(*(f"UNSUB {sid}\r\n".encode() for sid in range(len(filters))))
    reached: list[set[int]] = [set() for _ in filters]
    for head, payload in zip(lines[::2], lines[1::2], strict=True):
        assert head.startswith(b"MSG "), head
        reached[int(head.split()[2])].add(int(payload))
    return reached


token = st.sampled_from(["a", "b", "A", "0", "_", "a=@,;-"])
channels = st.lists(token, min_size=1, max_size=4).map(".".join)
filters = st.builds(
    lambda tokens, rest: ".".join([*tokens, ">"] if rest else tokens) or ">",
    st.lists(token | st.sampled_from(["*", "{x}"]), max_size=4),
    st.booleans(),
).filter(lambda text: text.count("{x}") <= 1)


@hypothesis_settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(filters, min_size=10, max_size=30),
    names=st.lists(channels, min_size=20, max_size=50),
)
async def test_patterns_match_what_a_server_delivers(raw, namespace, texts, names):
    subjects = Subjects(namespace)
    patterns = [Pattern(text) for text in texts]
    reached = await delivered(
        raw,
        [subjects.live_filter(pattern) for pattern in patterns],
        [subjects.live(name).encode() for name in names],
    )
    for pattern, indexes in zip(patterns, reached, strict=True):
        matched = {i for i, name in enumerate(names) if pattern.match(name) is not None}
        assert matched == indexes, pattern


def refused(name: str) -> None:
    """No part of eventbus makes a subject of it."""
    for check in (validate_channel, Subjects().event, Subjects().live, validate_subject):
        with pytest.raises(InvalidChannel):
            check(name)


@pytest.mark.parametrize("name", ["", "a b", "a\tb", "a\rb", "a\nb", "a\r\nPUB x 0\r\n\r\n"])
async def test_space_and_line_ends_are_refused_by_nats_py_too(nats_server, name):
    refused(name)
    nc = await nats.connect(nats_server.url)
    with pytest.raises(BadSubjectError):
        await nc.publish(name, b"x")
    await nc.close()


@pytest.mark.parametrize("name", [".a", "a.", "a..b", "."])
async def test_empty_tokens_are_sent_by_nats_py_and_never_delivered(nats_server, namespace, name):
    refused(name)
    nc = await nats.connect(nats_server.url)
    subscription = await nc.subscribe(f"{namespace}.>")
    await nc.publish(f"{namespace}.{name}", b"lost")
    await nc.publish(f"{namespace}.end", b"end")
    assert (await subscription.next_msg(timeout=30)).data == b"end"
    await nc.close()


@pytest.mark.parametrize("name", ["*", ">", "a.*", "a.>"])
async def test_wildcards_in_a_publish_are_delivered_as_literals(nats_server, namespace, name):
    refused(name)
    nc = await nats.connect(nats_server.url)
    subscription = await nc.subscribe(f"{namespace}.>")
    await nc.publish(f"{namespace}.{name}", b"x")
    assert (await subscription.next_msg(timeout=30)).subject == f"{namespace}.{name}"
    await nc.close()


@pytest.mark.parametrize("name", ["a\x00b", "a\x7fb", "ä", "日本", "\u202ea", "a\u00a0b"])
async def test_nul_del_and_unicode_are_delivered(nats_server, namespace, name):
    refused(name)
    nc = await nats.connect(nats_server.url)
    subscription = await nc.subscribe(f"{namespace}.>")
    await nc.publish(f"{namespace}.{name}", b"x")
    assert (await subscription.next_msg(timeout=30)).subject == f"{namespace}.{name}"
    await nc.close()


@pytest.mark.parametrize("name", ["a\x0bb", "a\x0cb"])
async def test_vertical_tab_and_form_feed_disconnect_subscribers_on_nats_py(
    raw, nats_server, namespace, name
):
    refused(name)
    lost = asyncio.Event()

    async def on_lost():
        lost.set()

    nc = await nats.connect(nats_server.url, disconnected_cb=on_lost)
    await nc.subscribe(f"{namespace}.>")
    await settle(nc)
    await raw.send(pub(f"{namespace}.{name}".encode()))
    await asyncio.wait_for(lost.wait(), 30)
    await nc.close()


async def test_bytes_that_are_not_utf8_end_the_reading_of_nats_py(raw, nats_server, namespace):
    nc = await nats.connect(nats_server.url)
    await nc.subscribe(f"{namespace}.>")
    await settle(nc)
    await raw.send(pub(namespace.encode() + b".\xff\xfe"))
    await asyncio.wait_for(asyncio.wait([nc._reading_task]), 30)
    assert nc.is_connected, "and it does not know"
    await nc.close()
    with pytest.raises(InvalidChannel):
        validate_channel(b"\xff\xfe")
    refused("\udcff\udcfe")


@pytest.mark.parametrize("text", ["", "a..b", ".a", "a.", "a.>.b", "a*", "a>", "**", "a b", "ä"])
def test_filters_that_never_match_or_break_the_protocol_are_refused(text):
    for check in (Pattern, validate_filter):
        with pytest.raises(InvalidPattern):
            check(text)


async def test_line_ends_in_header_values_become_spaces(nats_server, namespace):
    nc = await nats.connect(nats_server.url)
    subscription = await nc.subscribe(namespace)
    await nc.publish(namespace, b"x", headers={"A": "1\r\nB: 2"})
    assert (await subscription.next_msg(timeout=30)).headers == {"A": "1  B: 2"}
    await nc.close()
