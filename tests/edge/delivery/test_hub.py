"""Fan-out: one encoding for each wire format, one write for each connection and turn."""

from hypothesis import given, strategies as st

from eventbus.channels import ChannelKind
from eventbus.drivers import Position
from eventbus_edge.delivery.hub import (
    MAX_RUN_BYTES,
    Hub,
)
from eventbus_edge.delivery.outbox import (
    Outbox,
    State,
)
from eventbus_edge.protocols.vocabulary import ChannelMessage, Subscribed


class Format:
    """A wire format that counts how often it encodes."""

    def __init__(self, name="f"):
        self.name = name
        self.encoded = 0
        self.sent = 0

    def count(self, sent):
        self.sent += sent

    def message(self, message):
        self.encoded += 1
        return b"%b:%b;" % (self.name.encode(), message.body)

    def reply(self, reply):
        return reply


class Sink:
    def __init__(self, *, stuck=False):
        self.writes = []
        self.stuck = stuck
        self.is_behind = stuck

    def write(self, data):
        self.writes.append(data)

    def unsent(self):
        return sum(map(len, self.writes)) if self.stuck else 0


class Turn:
    """A loop whose turn ends when the test says so."""

    def __init__(self):
        self.scheduled = []

    def __call__(self, callback):
        self.scheduled.append(callback)

    def end(self):
        scheduled, self.scheduled = self.scheduled, []
        for callback in scheduled:
            callback()


class Edge:
    """A hub, its turn, and who was reported as too slow."""

    def __init__(self):
        self.turn = Turn()
        self.too_slow = []
        self.hub = Hub(self.turn, self.too_slow.append)
        self.format = Format()

    def client(self, name, *channels, wire=None, stuck=False, limit=1000):
        sink = Sink(stuck=stuck)
        box = Outbox(name, wire or self.format, sink, limit)
        for channel in channels:
            self.hub.add(channel, box)
        return box, sink

    def send(self, channel, body=b"m", exclude=None):
        return self.hub.deliver(ChannelMessage(channel, "e", body, None, exclude))


def test_a_message_is_encoded_once_whatever_the_number_of_subscribers():
    edge = Edge()
    sinks = [edge.client(f"c{i}", "a")[1] for i in range(1000)]
    assert edge.send("a") == 1000
    edge.turn.end()
    assert edge.format.encoded == 1
    assert all(sink.writes == [b"f:m;"] for sink in sinks)
    assert len({id(sink.writes[0]) for sink in sinks}) == 1  # the very same bytes


def test_a_message_is_encoded_once_for_each_wire_format():
    edge = Edge()
    other = Format("g")
    sinks = [edge.client(f"c{i}", "a", wire=[edge.format, other][i % 2])[1] for i in range(10)]
    edge.send("a")
    edge.turn.end()
    assert (edge.format.encoded, other.encoded) == (1, 1)
    assert [sink.writes for sink in sinks] == [[b"f:m;"], [b"g:m;"]] * 5


def test_message_unknown_to_a_protocol_is_encoded_once_and_sent_to_nobody():
    class Without(Format):
        def message(self, message):
            self.encoded += 1

    edge, other = Edge(), Without()
    sinks = [edge.client(f"c{i}", "a", wire=[edge.format, other][i % 2])[1] for i in range(10)]
    assert edge.send("a") == 5
    edge.turn.end()
    assert (edge.format.encoded, other.encoded) == (1, 1)
    assert [sink.writes for sink in sinks] == [[b"f:m;"], []] * 5


def test_message_unknown_to_the_protocol_of_the_only_subscriber_is_not_sent():
    class Without(Format):
        def message(self, message):
            return b"" if message.body == b"empty" else None

    edge = Edge()
    _, sink = edge.client("c1", "a", wire=Without())
    assert (edge.send("a"), edge.send("a", b"empty")) == (0, 0)
    assert (edge.turn.scheduled, sink.writes) == ([], [])


def test_a_message_that_nobody_receives_is_not_encoded():
    edge = Edge()
    edge.client("c1", "b")
    assert edge.send("a") == 0
    assert (edge.format.encoded, edge.turn.scheduled) == (0, [])


def test_a_message_whose_only_listener_is_its_sender_is_not_encoded():
    edge = Edge()
    edge.client("c1", "a")
    assert edge.send("a", exclude="c1") == 0
    assert edge.format.encoded == 0


def test_messages_of_one_turn_are_one_write_for_each_connection_in_their_order():
    edge = Edge()
    _, both = edge.client("c1", "a", "b")
    _, one = edge.client("c2", "b")
    for channel, body in (("a", b"1"), ("b", b"2"), ("a", b"3")):
        edge.send(channel, body)
    assert len(edge.turn.scheduled) == 1
    edge.turn.end()
    assert both.writes == [b"f:1;f:2;f:3;"]
    assert one.writes == [b"f:2;"]
    edge.send("b", b"4")
    edge.turn.end()
    assert both.writes[1:] == [b"f:4;"]


def test_replies_and_messages_of_one_turn_keep_their_order():
    edge = Edge()
    box, sink = edge.client("c1", "a")
    edge.hub.push(box, b"subscribed;")
    edge.send("a", b"1")
    edge.hub.push(box, b"pong;")
    edge.turn.end()
    assert sink.writes == [b"subscribed;f:1;pong;"]


def test_messages_that_follow_each_other_are_joined_once_for_all_subscribers():
    edge = Edge()
    other = Format("g")
    sinks = [edge.client(f"c{i}", "a", wire=[edge.format, other][i % 2])[1] for i in range(10)]
    for body in (b"1", b"2", b"3"):
        assert edge.send("a", body) == 10
    edge.turn.end()
    assert [sink.writes for sink in sinks] == [[b"f:1;f:2;f:3;"], [b"g:1;g:2;g:3;"]] * 5
    assert len({id(sink.writes[0]) for sink in sinks}) == 2
    assert (edge.format.encoded, other.encoded) == (3, 3)


def test_joined_messages_stay_in_order_with_replies_and_other_channels():
    edge = Edge()
    boxes = [edge.client(f"c{i}", "a", "b") for i in range(3)]
    edge.send("a", b"1")
    edge.send("a", b"2")
    edge.hub.push(boxes[0][0], b"pong;")
    edge.send("a", b"3")
    edge.send("b", b"4")
    edge.send("b", b"5", exclude="c1")
    edge.send("a", b"6")
    edge.turn.end()
    assert [sink.writes for _, sink in boxes] == [
        [b"f:1;f:2;pong;f:3;f:4;f:5;f:6;"], [b"f:1;f:2;f:3;f:4;f:6;"],
        [b"f:1;f:2;f:3;f:4;f:5;f:6;"],
    ]  # fmt: skip


def test_who_joins_or_leaves_within_a_turn_gets_the_messages_in_between():
    edge = Edge()
    (_, first), (_, second) = edge.client("c1", "a"), edge.client("c2", "a")
    edge.send("a", b"1")
    _, third = edge.client("c3", "a")
    edge.send("a", b"2")
    edge.hub.remove("a", "c2")
    edge.send("a", b"3")
    edge.turn.end()
    assert [sink.writes for sink in (first, second, third)] == [
        [b"f:1;f:2;f:3;"], [b"f:1;f:2;"], [b"f:2;f:3;"],
    ]  # fmt: skip


def test_a_message_reaches_a_connection_that_closes_later_in_the_turn():
    edge = Edge()
    (box, sink), (_, other) = edge.client("c1", "a"), edge.client("c2", "a")
    edge.send("a")
    edge.hub.settle()
    box.flush()
    box.close()
    edge.turn.end()
    assert (sink.writes, other.writes) == ([b"f:m;"], [b"f:m;"])


def test_messages_of_a_turn_are_joined_up_to_a_limit():
    edge = Edge()
    boxes = [edge.client(f"c{i}", "a", limit=10**9) for i in range(2)]
    for _ in range(10):
        edge.send("a", b"x" * (MAX_RUN_BYTES // 4))
    assert all(box.waiting >= MAX_RUN_BYTES for box, _ in boxes)
    edge.turn.end()
    for _, sink in boxes:
        assert b"".join(sink.writes).count(b";") == 10


def test_a_slow_connection_drops_every_joined_message():
    edge = Edge()
    (slow, _), _ = edge.client("slow", "a", stuck=True, limit=1), edge.client("well", "a")
    edge.send("a")
    edge.turn.end()
    assert (edge.too_slow, slow.dropped) == ([slow], 0)
    for _ in range(3):
        edge.send("a")
    edge.turn.end()
    assert slow.dropped == 3


def test_the_excluded_connection_gets_nothing_and_all_others_do():
    edge = Edge()
    sinks = {name: edge.client(name, "a")[1] for name in ("c1", "c2", "c3")}
    assert edge.send("a", exclude="c2") == 2
    edge.turn.end()
    assert {name: len(sink.writes) for name, sink in sinks.items()} == {"c1": 1, "c2": 0, "c3": 1}


def test_messages_are_counted_by_wire_however_many_receive_them():
    edge, other = Edge(), Format("g")
    edge.client("c1", "a")
    edge.client("alone", "b", wire=other)
    for channel in ("a", "b"):
        edge.send(channel)
    edge.client("c2", "a", wire=other)
    edge.client("c3", "a", wire=other)
    for _ in range(3):
        edge.send("a")
    edge.send("a", exclude="c3")
    edge.turn.end()
    assert (edge.format.sent, other.sent) == (1 + 3 + 1, 1 + 6 + 1)


def test_adding_a_connection_twice_delivers_once():
    edge = Edge()
    box, sink = edge.client("c1", "a")
    edge.hub.add("a", box)
    edge.send("a")
    edge.turn.end()
    assert (edge.hub.count("a"), sink.writes) == (1, [b"f:m;"])


def test_a_slow_connection_is_reported_once_and_others_get_everything():
    edge = Edge()
    slow, stuck = edge.client("slow", "a", stuck=True, limit=100)
    _, well = edge.client("well", "a", limit=100)
    for turn in range(5):
        for _ in range(10):
            edge.send("a", b"%d" % turn * 10)
        edge.turn.end()
    assert edge.too_slow == [slow]
    assert slow.state is State.CLOSED
    assert sum(map(len, stuck.writes)) <= 2 * 100 + 20
    assert b"".join(well.writes).count(b";") == 50


def test_a_connection_that_passes_its_bound_within_one_turn_is_reported_at_its_end():
    edge = Edge()
    slow, _ = edge.client("slow", "a", stuck=True, limit=100)
    for _ in range(100):
        edge.send("a", b"x" * 50)
    assert edge.too_slow == []  # never within the fan-out
    edge.turn.end()
    assert edge.too_slow == [slow]


def test_slow_outbox_may_be_removed_by_its_report():
    turn, reported = Turn(), []

    def cut(outbox):
        reported.append(outbox.connection_id)
        hub.remove("a", outbox.connection_id)

    hub = Hub(turn, cut)
    for name in ("c1", "c2", "c3"):
        hub.add("a", Outbox(name, Format(), Sink(stuck=True), 1))
    hub.deliver(ChannelMessage("a", "e", b"m", None, None))
    turn.end()
    assert (reported, hub.count("a"), list(hub.channels)) == (["c1", "c2", "c3"], 0, [])


def test_nothing_is_delivered_after_remove():
    edge = Edge()
    _, sink = edge.client("c1", "a")
    edge.hub.remove("a", "c1")
    assert edge.send("a") == 0
    edge.turn.end()
    assert sink.writes == []


def test_removing_what_is_not_there_is_harmless():
    edge = Edge()
    edge.client("c1", "a")
    edge.hub.remove("a", "c2")
    edge.hub.remove("b", "c1")
    assert edge.hub.count("a") == 1


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.sampled_from("xyz"))))
def test_the_hub_holds_what_a_set_of_pairs_would_hold_and_shrinks_to_nothing(steps):
    edge = Edge()
    boxes = {name: edge.client(name)[0] for name in "xyz"}
    pairs = set()
    for adds, channel, name in steps:
        if adds:
            edge.hub.add(channel, boxes[name])
            pairs.add((channel, name))
        else:
            edge.hub.remove(channel, name)
            pairs.discard((channel, name))
        assert set(edge.hub.channels) == {channel for channel, _ in pairs}
    for channel in "abc":
        assert edge.send(channel) == sum(1 for pair in pairs if pair[0] == channel)
    for channel, name in pairs:
        edge.hub.remove(channel, name)
    assert list(edge.hub.channels) == []


def test_first_and_last_subscriber_of_a_channel_are_reported():
    uses = []
    hub = Hub(Turn(), print, on_use=lambda channel, is_used: uses.append((channel, is_used)))
    boxes = [Outbox(name, Format(), Sink(), 1000) for name in "ab"]
    for box in boxes:
        hub.add("general", box)
    for box in boxes:
        hub.remove("general", box.connection_id)
        hub.remove("general", box.connection_id)
    assert uses == [("general", True), ("general", False)]


def test_gap_is_reported_to_those_without_the_messages_behind_it_only():
    edge = Edge()
    edge.format.reply = lambda _gap: b"gap;"
    sinks = {}
    for name, ahead in (("behind", None), ("ahead", Position(9, "e")), ("level", Position(5, "e"))):
        outbox, sinks[name] = edge.client(name)
        edge.hub.add("c", outbox, ahead=ahead)
    gap = Subscribed("c", ChannelKind.PUBLIC, Position(5, "e"), recovered=False, ref=None)
    edge.hub.announce_gap(gap)
    edge.turn.end()
    assert [name for name, sink in sinks.items() if sink.writes] == ["behind", "level"]
