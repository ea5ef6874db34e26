"""The end of a socket, step by step; tests/conformance/test_floods.py uses real sockets."""

import asyncio

import pytest

from eventbus_edge import lingering
from eventbus_edge.lingering import MAX_SURPLUS, MUCH, Linger
from eventbus_edge.turns import Turns

SIZE = 1024


class Transport:
    """Records what a Linger calls on its transport, in order."""

    def __init__(self, *, can_write_eof=True, is_reading=True):
        self.calls = []
        self.protocol = None
        self._can_write_eof = can_write_eof
        self._is_reading = is_reading

    def set_protocol(self, protocol):
        self.protocol = protocol

    def can_write_eof(self):
        return self._can_write_eof

    def is_closing(self):
        return "close" in self.calls or "abort" in self.calls

    def is_reading(self):
        return self._is_reading

    def pause_reading(self):
        self._is_reading = False
        self.calls.append("pause")

    def resume_reading(self):
        self._is_reading = True
        self.calls.append("resume")

    def write_eof(self):
        self.calls.append("eof")

    def close(self):
        self.calls.append("close")

    def abort(self):
        self.calls.append("abort")


class Ends:
    """Counts what a Linger reports."""

    def __init__(self):
        self.ended = self.surplus = 0

    def on_end(self, _):
        self.ended += 1

    def on_surplus(self):
        self.surplus += 1

    def linger(self, transport, **options):
        return Linger(transport, Turns(), self.on_end, self.on_surplus, **options)


@pytest.fixture
def ends():
    return Ends()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lingering, "LINGER_S", 0.05)
    monkeypatch.setattr(lingering, "QUIET_S", 0.01)


async def called(transport, last):
    async with asyncio.timeout(40):
        while not transport.calls or transport.calls[-1] != last:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)


async def test_own_side_ends_first_and_what_arrives_is_dropped(ends):
    transport = Transport(is_reading=False)
    linger = ends.linger(transport)
    assert transport.protocol is linger
    assert transport.calls == ["resume", "eof"]
    linger.data_received(b"x" * 1000)
    assert not linger.eof_received()  # the transport closes itself then
    linger.connection_lost(None)
    assert (ends.ended, ends.surplus) == (1, 0)


async def test_peer_that_does_not_end_is_cut_after_its_time(ends, quick):
    transport = Transport()
    ends.linger(transport)
    await called(transport, "abort")
    assert transport.calls == ["eof", "abort"]


async def test_nothing_is_read_beyond_the_bound_and_the_peer_keeps_its_time(ends):
    transport = Transport()
    linger = ends.linger(transport)
    for _ in range(MAX_SURPLUS // SIZE):
        linger.data_received(b"x" * SIZE)
    assert (transport.calls, ends.surplus) == (["eof"], 0)
    linger.data_received(b"x")
    linger.data_received(b"x")  # a loop may deliver what it had read
    assert (transport.calls, ends.surplus) == (["eof", "pause"], 1)
    linger.connection_lost(None)


async def test_peer_that_sends_much_is_read_once_in_a_turn_and_others_go_first(ends):
    transport = Transport()
    linger = ends.linger(transport)
    linger.data_received(b"x" * MUCH)
    assert transport.calls == ["eof", "pause"]
    await called(transport, "resume")
    assert (transport.calls, ends.surplus) == (["eof", "pause", "resume"], 0)
    linger.connection_lost(None)


async def test_peer_that_is_aborted_while_others_go_first_is_not_read_on(ends):
    transport = Transport()
    linger = ends.linger(transport)
    linger.data_received(b"x" * MUCH)
    linger.abort()
    for _ in range(5):
        await asyncio.sleep(0)
    assert transport.calls == ["eof", "pause", "abort"]
    linger.connection_lost(None)


async def test_room_that_was_used_before_counts(ends):
    transport = Transport()
    linger = ends.linger(transport, room=-1)
    assert (transport.calls, ends.surplus) == (["eof", "pause"], 1)
    linger.connection_lost(None)


async def test_peer_that_sends_nothing_more_is_closed_once_all_is_sent(ends, quick):
    transport = Transport()
    ends.linger(transport, is_done=True)
    assert transport.calls == ["close"]
    await called(transport, "abort")  # the peer has not read the unsent data


async def test_tls_is_closed_between_two_messages_of_the_peer(ends, quick, monkeypatch):
    monkeypatch.setattr(lingering, "LINGER_S", 30.0)
    transport = Transport(can_write_eof=False)
    linger = ends.linger(transport)
    assert transport.calls == []
    await called(transport, "close")
    linger.connection_lost(None)


async def test_tls_of_a_peer_that_never_stops_is_closed_at_the_end_of_its_time(
    ends, quick, monkeypatch
):
    transport = Transport(can_write_eof=False)
    linger = ends.linger(transport)
    async with asyncio.timeout(40):
        while "close" not in transport.calls:
            linger.data_received(b"x")
            await asyncio.sleep(0)
    await called(transport, "abort")
    assert transport.calls == ["close", "abort"]


async def test_socket_that_the_peer_has_reset_is_no_fault(ends, monkeypatch):
    transport = Transport()

    def write_eof():
        raise OSError(107, "not connected")

    monkeypatch.setattr(transport, "write_eof", write_eof)
    linger = ends.linger(transport)
    assert transport.calls == ["abort"]
    linger.connection_lost(None)
    assert ends.ended == 1
