"""One connection's outbox: joined within a turn, bounded, and quiet once it is closed."""

import pytest
from hypothesis import given, strategies as st

from eventbus_edge.delivery.outbox import (
    Outbox,
    State,
    Unsent,
)


class Sink:
    """A socket that accepts `accepts` bytes and keeps the rest unsent."""

    def __init__(self, accepts=10**9):
        self.accepts = accepts
        self.writes = []

    @property
    def is_behind(self):
        return self.unsent() > 0

    def write(self, data):
        self.writes.append(data)

    def unsent(self):
        return max(0, sum(map(len, self.writes)) - self.accepts)

    def abort(self):
        self.writes = []


def outbox(sink, limit=100):
    return Outbox("c1", object(), sink, limit)


def test_frames_of_one_turn_are_one_write_in_their_order():
    sink = Sink()
    box = outbox(sink)
    for frame in (b"a", b"b", b"c"):
        box.push(frame)
    assert sink.writes == []
    box.flush()
    assert sink.writes == [b"abc"]


def test_a_lone_frame_is_written_without_a_copy():
    sink = Sink()
    box = outbox(sink)
    frame = b"a" * 50
    box.push(frame)
    box.flush()
    assert sink.writes[0] is frame


def test_only_the_first_push_of_a_turn_asks_for_a_flush():
    box = outbox(Sink())
    assert [box.push(b"a"), box.push(b"b")] == [True, False]
    box.flush()
    assert box.push(b"c")


def test_flushing_with_nothing_pending_writes_nothing():
    sink = Sink()
    outbox(sink).flush()
    assert sink.writes == []


@pytest.mark.parametrize(("unsent", "state"), [(100, State.OPEN), (101, State.TOO_SLOW)])
def test_an_outbox_is_too_slow_when_more_than_its_limit_is_unsent(unsent, state):
    box = outbox(Sink(accepts=0), limit=100)
    box.push(b"x" * unsent)
    box.flush()
    assert box.state is state


def test_an_outbox_that_is_too_slow_takes_no_more():
    sink = Sink(accepts=0)
    box = outbox(sink, limit=10)
    box.push(b"x" * 11)
    box.flush()
    assert box.push(b"y") is False
    box.flush()
    assert sink.writes == [b"x" * 11]


def test_a_closed_outbox_takes_nothing_and_drops_what_was_pending():
    sink = Sink()
    box = outbox(sink)
    box.push(b"a")
    box.close()
    assert box.push(b"b") is False
    box.flush()
    assert sink.writes == []


@given(frames=st.lists(st.binary(min_size=1, max_size=60), max_size=100), limit=st.integers(1, 200))
def test_one_turn_adds_at_most_the_bound_and_one_frame(frames, limit):
    sink = Sink(accepts=0)
    box = outbox(sink, limit)
    for frame in frames:
        box.push(frame)
    box.flush()
    written = b"".join(sink.writes)
    assert b"".join(frames).startswith(written)
    # Without a reader a connection never holds more than two bounds and a frame, even for a moment.
    assert len(written) <= 2 * limit + 60
    if sum(map(len, frames)) <= limit:
        assert (written, box.state) == (b"".join(frames), State.OPEN)


# All together


def behind(unsent, *sizes):
    """An outbox for each size, with so much unsent."""
    boxes = [outbox(Sink(accepts=0), limit=10**6) for _ in sizes]
    for box, size in zip(boxes, sizes, strict=True):
        box.push(b"x" * size)
        box.flush()
        unsent.note(box)
    return boxes


def test_the_unsent_bytes_of_all_are_summed_and_those_that_were_sent_are_taken_off():
    unsent = Unsent(1000)
    first, second = behind(unsent, 100, 200)
    assert unsent.total == 300
    first._sink.accepts = 60
    assert unsent.total == 300  # nobody has checked
    assert unsent.measure() == 240
    first._sink.accepts = second._sink.accepts = 10**6
    second.push(b"x")
    second.flush()
    unsent.note(second)
    assert unsent.total == 40
    assert unsent.measure() == 0


def test_above_the_limit_those_with_most_are_cut_until_there_is_room_again():
    cut = []
    unsent = Unsent(1000, cut.append)
    boxes = behind(unsent, 300, 100, 400, 150)
    unsent.relieve()
    assert cut == []
    boxes += behind(unsent, 200)
    assert unsent.is_over
    unsent.relieve()
    assert cut == [boxes[2]]
    assert (boxes[2].state, boxes[2].measure()) == (State.CLOSED, 0)
    assert unsent.total == unsent.measure() == 750
    assert not unsent.is_over
    unsent.held = 300  # of others, who are not cut for it
    assert unsent.is_over
    unsent.relieve()
    assert cut == [boxes[2]]


def test_hubs_that_share_a_limit_are_all_notified_of_who_is_cut():
    own, others = [], []
    unsent = Unsent(1000, own.append)
    assert unsent.share(others.append) is unsent
    boxes = behind(unsent, 900, 200)
    unsent.relieve()
    assert own == others == [boxes[0]]


def test_nobody_is_cut_for_bytes_that_have_been_sent_meanwhile():
    cut = []
    unsent = Unsent(1000, cut.append)
    for box in behind(unsent, 600, 600):
        box._sink.accepts = 300
    unsent.relieve()
    assert cut == []
    assert unsent.total == 600


def test_stored_messages_count_as_unsent_until_they_are_given_to_their_client():
    unsent = Unsent(1000)

    def read():
        with unsent.holding(600), unsent.holding(600):
            assert unsent.is_over
            raise OSError("the reader of a history fails")

    with pytest.raises(OSError, match="fails"):
        read()
    assert (unsent.held, unsent.is_over) == (0, False)


def test_sink_that_has_sent_all_is_not_asked_for_what_is_unsent():
    asked = []

    class Ready(Sink):
        is_behind = False

        def unsent(self):
            asked.append(self)
            return 0

    box = outbox(Ready())
    box.push(b"a")
    box.flush()
    assert asked == []
    assert box.unsent == 0


def test_sink_that_was_behind_is_asked_again_when_it_has_sent_all():
    sink = Sink(accepts=10)
    box = outbox(sink)
    box.push(b"a" * 30)
    box.flush()
    assert box.unsent == 20
    sink.accepts = 10**6
    box.push(b"a")
    box.flush()
    assert box.unsent == 0
