import asyncio
import tomllib
from pathlib import Path

import pytest
import pytest_asyncio
from nats import errors as nats_errors
from nats.aio.client import Client

from eventbus.drivers.nats import client as client_module
from eventbus.drivers.nats.client import (
    FastClient,
    WireHeaders,
    encode_headers,
    require_supported,
    unsupported,
)
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.errors import ConnectionFailed
from tests.eventbus.drivers.nats.conftest import opened

ROOT = Path(__file__).parents[4]


@pytest_asyncio.fixture
async def clients(nats_server):
    fast, plain = FastClient(), Client()
    for client in (fast, plain):
        await client.connect(nats_server.url)
    yield fast, plain
    for client in (fast, plain):
        await client.close()


@pytest.fixture
def fast(clients):
    return clients[0]


async def settle(client):
    """Wait until the server has what was sent: a first flush overtakes what is pending."""
    await client.flush()
    await client.flush()


class Got:
    def __init__(self):
        self.messages = []
        self.done = asyncio.Event()

    def __call__(self, subject, payload, headers):
        if payload == b"end":
            self.done.set()
        self.messages.append((subject, payload, dict(headers), headers.status, headers.stamp(b"S")))


STREAM = {
    "Nats-Stream": "S",
    "Nats-Sequence": "7",
    "Nats-Last-Sequence": "3",
    "Nats-Time-Stamp": "2026-01-01T00:00:00Z",
}

MESSAGES = [
    (b"", None),
    (b"x", None),
    (bytes(range(256)), {"A": "b"}),
    (b"\r\n", {"A": "größe €", "b": "", "C-D": "x: y: z"}),
    (b"x", STREAM),
    (b"x", {"Own": "1", **STREAM, "Last": "2"}),
    (b"x", {**STREAM, "Nats-Stream": "T"}),
    (b"x", {**STREAM, "Nats-Sequence": "x"}),
    (b"x", {"Nats-Sequence": "7", "Nats-Last-Sequence": "3"}),
    (b"x" * 60_000, {"A": "b" * 1000}),
    (b"end", None),
]


async def test_messages_and_headers_are_those_that_nats_py_itself_delivers(clients, namespace):
    fast, plain = clients
    got, theirs = Got(), []
    await fast.listen(f"{namespace}.>", got)

    async def receive(message):
        theirs.append((message.subject, message.data, message.headers or {}))

    await plain.subscribe(f"{namespace}.>", cb=receive)
    await settle(fast)
    await settle(plain)
    for payload, headers in MESSAGES:
        await fast.publish(f"{namespace}.a", payload, headers=headers)
    async with asyncio.timeout(30):
        await got.done.wait()
        while len(theirs) < len(MESSAGES):
            await settle(plain)
    assert [m[:3] for m in got.messages] == theirs
    assert [m[1] for m in got.messages] == [payload for payload, _ in MESSAGES]
    assert [m[4] is not None for m in got.messages] == [False] * 4 + [True] * 2 + [False] * 5
    assert got.messages[4][4] == (7, 3, "2026-01-01T00:00:00Z", 0)


@pytest.mark.parametrize("reply", ["", "a.reply"])
@pytest.mark.parametrize(
    ("payload", "headers"),
    [
        *MESSAGES,
        (b"x", {"A": "b\r\nC: d"}),
        (b"x", {" A ": " b "}),
        (b"x", {"A": "\tb\x00"}),
        (b"x", {"": "b", "A": "b"}),
    ],
)
async def test_sent_bytes_are_those_that_nats_py_itself_sends(
    fast, namespace, payload, headers, reply
):
    before = dict(fast.stats)
    await fast.publish(f"{namespace}.a", payload, reply, headers)
    theirs, counted = fast._pending[-1], dict(fast.stats)
    await settle(fast)
    fast.buffer(f"{namespace}.a", payload, encode_headers(headers or {}), reply)
    assert fast._pending[-1] == theirs
    for name in ("out_msgs", "out_bytes"):
        assert fast.stats[name] - counted[name] == counted[name] - before[name]
    await settle(fast)


async def test_messages_of_one_turn_ask_for_one_flush(fast, namespace):
    assert fast.buffer(f"{namespace}.a", b"")
    await fast.flush_soon()
    assert not fast.buffer(f"{namespace}.a", b"")
    assert len(fast._pending) == 2
    await settle(fast)
    assert not fast._pending


async def test_sending_raises_what_publishing_raises(fast, namespace):
    with pytest.raises(nats_errors.MaxPayloadError):
        fast.buffer(f"{namespace}.a", bytes(fast.max_payload + 1))
    with pytest.raises(nats_errors.BadHeaderError):
        encode_headers({"a b": "c"})
    await fast.close()
    with pytest.raises(nats_errors.ConnectionClosedError):
        fast.buffer(f"{namespace}.a", b"")


async def test_request_without_responders_has_status_503(fast, namespace):
    status = asyncio.get_running_loop().create_future()
    await fast.listen(f"{namespace}.reply", lambda *m: status.set_result(m[2]))
    await settle(fast)
    await fast.publish(f"{namespace}.nobody", b"", reply=f"{namespace}.reply")
    headers = await asyncio.wait_for(status, 30)
    assert headers.status == "503"
    assert headers["Status"] == "503"


async def test_handler_that_raises_does_not_affect_others(fast, namespace, caplog):
    def fail(*_):
        raise RuntimeError("on purpose")

    got = Got()
    await fast.listen(f"{namespace}.a", fail)
    await fast.listen(f"{namespace}.a", got)
    await settle(fast)
    await fast.publish(f"{namespace}.a", b"end")
    await asyncio.wait_for(got.done.wait(), 30)
    assert "on purpose" in caplog.text


async def test_nothing_is_delivered_after_unlisten(fast, namespace):
    gone, stays = Got(), Got()
    key = await fast.listen(f"{namespace}.a", gone)
    await fast.listen(f"{namespace}.a", stays)
    await fast.unlisten(key)
    await settle(fast)
    await fast.publish(f"{namespace}.a", b"end")
    await asyncio.wait_for(stays.done.wait(), 30)
    assert gone.messages == []


async def test_subscriptions_of_nats_py_itself_still_work_on_the_fast_client(fast, namespace):
    subscription = await fast.subscribe(f"{namespace}.a")
    await fast.publish(f"{namespace}.a", b"x", headers={"A": "b"})
    message = await subscription.next_msg(timeout=30)
    assert (message.data, message.headers) == (b"x", {"A": "b"})


async def test_subject_that_is_not_utf8_does_not_end_the_reading(fast, nats_server, namespace):
    got = Got()
    await fast.listen(f"{namespace}.>", got)
    await settle(fast)
    _, writer = await asyncio.open_connection(nats_server.host, nats_server.port)
    writer.write(b'CONNECT {"verbose":false}\r\n')
    writer.write(b"PUB " + namespace.encode() + b".\xff\xfe 1\r\nx\r\n")
    writer.write(b"PUB " + namespace.encode() + b".a 3\r\nend\r\nPING\r\n")
    await asyncio.wait_for(got.done.wait(), 30)
    assert [m[0] for m in got.messages] == [f"{namespace}.a"]
    assert fast.is_connected
    writer.close()
    await writer.wait_closed()


async def late_answer(client):
    """What a flush or rtt leaves behind that timed out before its answer came."""
    waiting = asyncio.get_running_loop().create_future()
    await client._send_ping(waiting)
    waiting.cancel()


async def test_late_answer_to_a_ping_does_not_end_the_reading(fast):
    await late_answer(fast)
    await fast.flush(timeout=10)
    assert not fast._reading_task.done()


async def test_late_answer_to_a_ping_ends_the_reading_of_nats_py_itself(clients):
    _, plain = clients
    await late_answer(plain)
    await asyncio.wait_for(asyncio.wait([plain._reading_task]), 30)
    assert plain.is_connected, "and it does not know: this is why there is a client of our own"


async def cancel_while_it_flushes(client, work):
    """Cancel a call while it waits for its bytes to be written."""
    client._max_pending_size = 1
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_publish_is_cancelled_while_it_flushes(fast):
    await cancel_while_it_flushes(fast, fast.publish("a", b"x"))


async def test_cancelled_subscription_is_cancelled_and_gone(fast, namespace):
    got = Got()
    await cancel_while_it_flushes(fast, fast.listen(f"{namespace}.a", got))
    assert not any(one._subject == f"{namespace}.a" for one in fast._subs.values())
    await fast.publish(f"{namespace}.a", b"x")
    await settle(fast)
    assert got.messages == []


async def test_cancelled_subscription_is_not_made_again_on_another_client(settings):
    async with opened(settings) as driver:
        connection = driver._connection
        before = len(connection.subscriptions)
        listening = connection.listen("a.b", lambda *_: None)
        await cancel_while_it_flushes(connection.client, listening)
        assert len(connection.subscriptions) == before


def test_installed_nats_py_is_the_one_that_was_measured():
    assert unsupported() == ""
    require_supported()


async def test_other_version_of_nats_py_is_refused_at_the_start(monkeypatch, settings):
    monkeypatch.setattr(client_module.importlib.metadata, "version", lambda name: "2.17.0")
    driver = NatsDriver(settings)
    with pytest.raises(ConnectionFailed, match=r"version 2\.17\.0 .* needs nats-py 2\.16\.x"):
        await driver.open()
    await driver.aclose()


def test_pyproject_pins_the_supported_version():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [pin] = [one for one in dependencies if one.startswith("nats-py")]
    assert f">={client_module.SUPPORTED}".rstrip(".") + "," in pin


def test_changed_private_part_is_refused(monkeypatch):
    monkeypatch.delattr(Client, "_parse_header_lines")
    with pytest.raises(ConnectionFailed, match="_parse_header_lines"):
        require_supported()


def test_changed_signature_is_refused(monkeypatch):
    async def changed(self, message):
        pass

    monkeypatch.setattr(Client, "_process_msg", changed)
    assert "different parameters" in unsupported()


def test_headers_are_a_mapping_parsed_once_when_asked():
    headers = WireHeaders(b"NATS/1.0\r\nA: 1\r\nB:2\r\nbad line\r\nA: 3\r\n\r\n")
    assert headers._parsed is None
    assert headers.stamp(b"S") is None
    assert headers._parsed is None, "looking for the stamp does not parse"
    assert dict(headers) == {"A": "3", "B": "2"}
    assert len(headers) == 2
    assert "A" in headers
    assert headers.get("C") is None
    with pytest.raises(KeyError):
        headers["C"]


@pytest.mark.parametrize(
    "raw",
    [
        b"NATS/1.0\r\nA: 1\r\nAB: 2\r\nB:3\r\nA: 4\r\nC:\xc3\xa4 \xff\r\n\r\n",
        b"NATS/1.0 503 No Responders\r\nA: 1\r\n\r\n",
        b"NATS/1.0\r\nA: cut",
        b"",
    ],
)
def test_one_header_is_found_without_parsing_as_it_is_with(raw):
    for key in ("A", "AB", "B", "C", "D", "Status", "Description", "NATS/1.0", "", "ä"):
        alone, all_of_them = WireHeaders(raw), dict(WireHeaders(raw))
        assert alone.get(key) == all_of_them.get(key), key
        assert alone.get(key, "-") == all_of_them.get(key, "-"), key


@pytest.mark.parametrize("raw", [b"", b"NATS/1.0", b"NATS/1.0\r\n\r\n", b"\xff\xff", b"NATS/1.0 "])
def test_broken_headers_are_empty_or_a_status_and_never_an_error(raw):
    headers = WireHeaders(raw)
    assert set(headers) <= {"Status"}
    assert headers.stamp(b"S") is None
    assert isinstance(headers.status, str)


APPENDED = (
    b"Nats-Stream: S\r\nNats-Subject: a\r\nNats-Sequence: 7\r\nNats-Time-Stamp: t\r\n%b"
    b"Nats-Last-Sequence: 5\r\n\r\n"
)


@pytest.mark.parametrize("more", [b"", b"Nats-Num-Pending: 99\r\nNats-Stream: S\r\n"])
def test_stamp_of_an_answer_says_how_many_follow_and_that_of_other_messages_does_not(more):
    head = b"NATS/1.0\r\n" + more  # the publisher's own headers come first
    answer = WireHeaders(head + APPENDED % b"Nats-Num-Pending: 12\r\n")
    assert answer.stamp(b"S") == (7, 5, "t", 12)
    assert WireHeaders(head + APPENDED % b"").stamp(b"S") == (7, 5, "t", 0)
    assert answer.stamp(b"T") is None


def test_truncated_stamp_is_none():
    raw = b"NATS/1.0\r\nNats-Stream: S\r\nNats-Sequence: 1"
    assert WireHeaders(raw).stamp(b"S") is None


async def test_idle_listener_takes_no_task_and_no_queue(fast, namespace):
    before = len(asyncio.all_tasks())
    for i in range(100):
        await fast.listen(f"{namespace}.{i}", lambda *_: None)
    assert len(asyncio.all_tasks()) == before
