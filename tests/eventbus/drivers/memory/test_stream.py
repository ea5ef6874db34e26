"""What a memory broker keeps, without a broker."""

import pytest

from eventbus.channels import Subjects
from eventbus.drivers.memory import stream as memory_stream
from eventbus.drivers.memory.stream import MemoryStream
from eventbus.retention import Retention


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(memory_stream, "time", clock)
    return clock


def new_stream(*, count=100, seconds=600.0):
    return MemoryStream(Subjects(), Retention("", count=count, seconds=seconds))


def test_previous_is_the_last_message_retained_on_the_subject(clock):
    stream = new_stream(seconds=10)
    deliveries = []
    for pause_s in (0, 0, 10):
        clock.now += pause_s
        deliveries.append(stream.append("eb.live.a", b"x", {})[1])
    assert [each.previous for each in deliveries] == [0, 1, 0]
    assert [each.position.offset for each in deliveries] == [1, 2, 3]


def test_history_of_a_channel_is_bounded_by_count():
    stream = new_stream(count=3)
    for i in range(10):
        stream.append("eb.live.a", str(i).encode(), {})
    page = stream.read("eb.live.a", after=None, limit=100)
    assert [d.payload for d in page.messages] == [b"7", b"8", b"9"]
    assert page.position == stream.position == (10, stream.epoch)


def test_channels_whose_messages_expired_are_forgotten(clock):
    stream = new_stream(seconds=10)
    for i in range(50):
        stream.append(f"eb.live.c{i}", b"x", {})
    clock.now += 11
    stream.append("eb.live.new", b"x", {})
    assert list(stream._channels) == ["eb.live.new"]
    assert [list(order) for order in stream._order.values()] == [["eb.live.new"]]


def test_message_ids_are_remembered_for_the_window_only(clock):
    stream, headers = new_stream(), {"Nats-Msg-Id": "1"}
    first, _ = stream.append("eb.live.a", b"x", headers)
    clock.now += memory_stream.DUPLICATE_WINDOW_S - 1
    again, delivery = stream.append("eb.live.a", b"x", headers)
    assert again == (first.position, True)
    assert delivery is None
    clock.now += 2
    later, delivery = stream.append("eb.live.a", b"x", headers)
    assert later.duplicate is False
    assert delivery is not None


def test_remembered_ids_are_bounded(monkeypatch):
    monkeypatch.setattr(memory_stream, "MAX_REMEMBERED_IDS", 5)
    stream = new_stream()
    for i in range(50):
        stream.append("eb.live.a", b"x", {"Nats-Msg-Id": str(i)})
    assert len(stream._ids) <= 6
