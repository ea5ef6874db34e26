import asyncio

import pytest
import pytest_asyncio
from nats.aio.client import Client

from eventbus.drivers.nats import client as nats_fast
from eventbus.drivers.nats.client import (
    FastClient,
    PlainClient,
    RawHeaders,
    client_class,
    unsupported,
)


@pytest_asyncio.fixture
async def clients(nats_server):
    fast, plain = FastClient(), PlainClient()
    for client in (fast, plain):
        await client.connect(nats_server.url)
    yield fast, plain
    for client in (fast, plain):
        await client.close()


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


async def test_both_forms_deliver_the_same(clients, namespace):
    got = []
    for client in clients:
        got.append(Got())
        await client.listen(f"{namespace}.>", got[-1])
        await settle(client)
    fast, _ = clients
    for payload, headers in MESSAGES:
        await fast.publish(f"{namespace}.a", payload, headers=headers)
    for each in got:
        await asyncio.wait_for(each.done.wait(), 10)
    assert got[0].messages == got[1].messages
    assert [m[1] for m in got[0].messages] == [payload for payload, _ in MESSAGES]
    assert [m[4] is not None for m in got[0].messages] == [False] * 4 + [True] * 2 + [False] * 5
    assert got[0].messages[4][4] == (7, 3, "2026-01-01T00:00:00Z")


async def test_both_forms_see_that_nobody_answers(clients, namespace):
    for client in clients:
        status = asyncio.get_running_loop().create_future()
        await client.listen(f"{namespace}.reply", lambda *m, f=status: f.set_result(m[2]))
        await settle(client)
        await client.publish(f"{namespace}.nobody", b"", reply=f"{namespace}.reply")
        headers = await asyncio.wait_for(status, 5)
        assert headers.status == "503"
        assert headers["Status"] == "503"
        await client.close()


async def test_handler_that_raises_harms_nobody_in_either_form(clients, namespace, caplog):
    def fail(*_):
        raise RuntimeError("on purpose")

    for client in clients:
        got = Got()
        await client.listen(f"{namespace}.a", fail)
        await client.listen(f"{namespace}.a", got)
        await settle(client)
        await client.publish(f"{namespace}.a", b"end")
        await asyncio.wait_for(got.done.wait(), 5)
    assert "on purpose" in caplog.text


async def test_nothing_comes_after_unlisten_in_either_form(clients, namespace):
    for client in clients:
        gone, stays = Got(), Got()
        key = await client.listen(f"{namespace}.a", gone)
        await client.listen(f"{namespace}.a", stays)
        await client.unlisten(key)
        await settle(client)
        await client.publish(f"{namespace}.a", b"end")
        await asyncio.wait_for(stays.done.wait(), 5)
        assert gone.messages == []


async def test_subscriptions_of_nats_py_itself_still_work_on_the_fast_client(clients, namespace):
    fast, _ = clients
    subscription = await fast.subscribe(f"{namespace}.a")
    await fast.publish(f"{namespace}.a", b"x", headers={"A": "b"})
    message = await subscription.next_msg(timeout=5)
    assert (message.data, message.headers) == (b"x", {"A": "b"})


async def test_subject_that_is_not_utf8_does_not_end_the_reading(clients, nats_server, namespace):
    fast, _ = clients
    got = Got()
    await fast.listen(f"{namespace}.>", got)
    await settle(fast)
    _, writer = await asyncio.open_connection(nats_server.host, nats_server.port)
    writer.write(b'CONNECT {"verbose":false}\r\n')
    writer.write(b"PUB " + namespace.encode() + b".\xff\xfe 1\r\nx\r\n")
    writer.write(b"PUB " + namespace.encode() + b".a 3\r\nend\r\nPING\r\n")
    await asyncio.wait_for(got.done.wait(), 5)
    assert [m[0] for m in got.messages] == [f"{namespace}.a"]
    assert fast.is_connected
    writer.close()
    await writer.wait_closed()


async def late_answer(client):
    """What a flush or rtt leaves behind that timed out before its answer came."""
    waiting = asyncio.get_running_loop().create_future()
    await client._send_ping(waiting)
    waiting.cancel()


async def test_late_answer_to_a_ping_does_not_end_the_reading(clients):
    fast, _ = clients
    await late_answer(fast)
    await fast.flush(timeout=10)
    assert not fast._reading_task.done()


async def test_late_answer_to_a_ping_ends_the_reading_of_nats_py_itself(clients):
    _, plain = clients
    await late_answer(plain)
    await asyncio.wait_for(asyncio.wait([plain._reading_task]), 10)
    assert plain.is_connected, "and it does not know: this is why there is a client of our own"


def test_installed_nats_py_is_the_one_that_was_measured():
    assert unsupported() == ""
    assert client_class() is FastClient


def test_other_version_of_nats_py_takes_the_public_way(monkeypatch, caplog):
    monkeypatch.setattr(nats_fast.importlib.metadata, "version", lambda name: "2.17.0")
    assert client_class() is PlainClient
    assert "nats-py 2.17.0 is not 2.16.x" in caplog.text


def test_changed_private_part_takes_the_public_way(monkeypatch):
    monkeypatch.delattr(Client, "_parse_header_lines")
    assert "_parse_header_lines" in unsupported()
    assert client_class() is PlainClient


def test_changed_signature_takes_the_public_way(monkeypatch):
    async def changed(self, message):
        pass

    monkeypatch.setattr(Client, "_process_msg", changed)
    assert "other parameters" in unsupported()


def test_headers_are_a_mapping_parsed_once_when_asked():
    headers = RawHeaders(b"NATS/1.0\r\nA: 1\r\nB:2\r\nbad line\r\nA: 3\r\n\r\n")
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
        alone, all_of_them = RawHeaders(raw), dict(RawHeaders(raw))
        assert alone.get(key) == all_of_them.get(key), key
        assert alone.get(key, "-") == all_of_them.get(key, "-"), key


@pytest.mark.parametrize("raw", [b"", b"NATS/1.0", b"NATS/1.0\r\n\r\n", b"\xff\xff", b"NATS/1.0 "])
def test_broken_headers_are_empty_or_a_status_and_never_an_error(raw):
    headers = RawHeaders(raw)
    assert set(headers) <= {"Status"}
    assert headers.stamp(b"S") is None
    assert isinstance(headers.status, str)


def test_truncated_stamp_is_none():
    raw = b"NATS/1.0\r\nNats-Stream: S\r\nNats-Sequence: 1"
    assert RawHeaders(raw).stamp(b"S") is None


async def test_idle_listener_takes_no_task_and_no_queue(clients, namespace):
    fast, _ = clients
    before = len(asyncio.all_tasks())
    for i in range(100):
        await fast.listen(f"{namespace}.{i}", lambda *_: None)
    assert len(asyncio.all_tasks()) == before
