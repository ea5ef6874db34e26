"""Ways to break the code on purpose. The simulation must notice each."""

from eventbus.client.cursor import Cursor
from eventbus.drivers.nats.history import StreamReader
from eventbus.drivers.nats.subscriptions import NatsSubscription, Subscriptions
from eventbus_edge.access.revocation import Revocations
from eventbus_edge.delivery import interest
from eventbus_edge.delivery.history import CaughtUp, History
from eventbus_edge.delivery.hub import Hub
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.delivery.wildcards import Wildcards
from eventbus_edge.lifecycle.holdings import Holdings
from eventbus_edge.presence.members import Change, LocalMembers, Room
from eventbus_edge.presence.nodes import LiveNodes
from eventbus_edge.protocols import Subscribed
from eventbus_edge.state import EntryWriter


def deliver_the_backlog_twice():
    """A resuming client gets messages from the history, and again from the backlog."""
    CaughtUp.live = lambda _self, backlog, _live: list(backlog.messages)


def claim_full_recovery():
    """A resume never reports that messages are missing."""
    after = History._after

    async def lie(self, *arguments):
        return (await after(self, *arguments))._replace(recovered=True)

    History._after = lie


def keep_no_backlog():
    """Messages that arrive while a client reads its history are dropped."""
    CaughtUp.live = lambda _self, _backlog, _live: []


def reverse_unsent_frames():
    """The frames of one turn are sent in the wrong order."""
    flush = Outbox.flush

    def reversed_flush(self):
        if self._more is not None:
            frames = [self._first, *self._more][::-1]
            self._first, self._more = frames[0], frames[1:]
        flush(self)

    Outbox.flush = reversed_flush


def hide_gaps():
    """Clients are not notified of lost messages."""
    interest._is_gap = lambda _delivery, _position, _last: False


def forget_to_remove_subscribers():
    """A client that leaves a channel still gets its messages."""
    Hub.remove = lambda _self, _channel, _connection_id: None


def ignore_dead_nodes():
    """The members of a dead node stay."""
    on_heartbeat = LiveNodes._on_heartbeat

    def only_births(self, key, value):
        if value is not None:
            on_heartbeat(self, key, value)

    LiveNodes._on_heartbeat = only_births


def announce_each_tab():
    """Each entry of a user is announced as a member."""
    put = Room.put

    def announce(self, node, token, entry):
        return put(self, node, token, entry) or [Change("joined", entry.user_id, entry.info)]

    Room.put = announce


def leave_with_the_first_tab():
    """A user leaves when the first of two connections ends."""
    leave = LocalMembers.leave

    def all_leave(self, token, connection_id, *, now, grace_s):
        if (stay := self._stays.get(token)) is not None:
            stay.connections &= {connection_id}
        return leave(self, token, connection_id, now=now, grace_s=grace_s)

    LocalMembers.leave = all_leave


def ignore_revocations():
    """Nodes receive a revocation but do not apply it."""
    Revocations.add = lambda _self, _revocation, _now: False


def count_dead_nodes():
    """Channels of dead nodes stay occupied."""
    Holdings.is_held = lambda self, rest: bool(self._entries.get(rest))


def resume_from_the_start():
    """Clients resume one message too early."""
    ask = Cursor.ask

    def earlier(self):
        position = ask(self)
        if position and position.get("offset"):
            position = {"offset": position["offset"] - 1, "epoch": position["epoch"]}
        return position

    Cursor.ask = earlier


def report_gaps_behind_the_history():
    """Clients are notified of gaps that lie before messages they got from the history."""

    def announce_gap(self, gap):
        for backlog in self._backlogs.get(gap.channel, ()):
            backlog.note_gap(gap)
        self.announce(gap.channel, gap)

    Hub.announce_gap = announce_gap


def repeat_messages_of_a_new_history():
    """Messages of a new history arrive twice, if the node had not recognized it yet."""

    def live(self, backlog, _live):
        start = self.start
        return [
            one
            for one in backlog.messages
            if one.position is None
            or one.position.epoch != start.epoch
            or one.position.offset + isinstance(one, Subscribed) > self.last
        ]

    CaughtUp.live = live


def trust_the_first_position():
    """A new history is reported with a position in the old one."""
    report = interest.Interest._report_new_history

    def always(self, channel, entry, subscription):
        entry.began = None
        report(self, channel, entry, subscription)

    interest.Interest._report_new_history = always


def let_earlier_leaders_write():
    """Late writes of an earlier leader stay in the ledger."""
    EntryWriter.restore = lambda _self, _key, _found: None


def follow_filters_as_a_whole():
    """What one subject of a filter lost is hidden by later messages of other subjects."""
    NatsSubscription._follow_subject = lambda *_: None


def forget_to_remove_subscribers_of_patterns():
    """A client that leaves a pattern still gets its messages."""
    Wildcards.leave = lambda _self, _pattern, _connection_id: None


class _Unchanged:
    """Equal to every count of changes."""

    def __ne__(self, _count):
        return False


def deliver_what_was_read_during_a_loss():
    """What a node read while the stream went back comes under the epoch before."""
    read = Subscriptions._read
    Subscriptions._read = lambda self, one, epoch, _: read(self, one, epoch, _Unchanged())
    StreamReader._of_one_history = lambda _self, read_page: read_page()


BREAKS = {
    each.__name__.replace("_", "-"): each
    for each in (
        deliver_the_backlog_twice,
        claim_full_recovery,
        keep_no_backlog,
        reverse_unsent_frames,
        hide_gaps,
        forget_to_remove_subscribers,
        ignore_dead_nodes,
        announce_each_tab,
        leave_with_the_first_tab,
        ignore_revocations,
        count_dead_nodes,
        resume_from_the_start,
        report_gaps_behind_the_history,
        repeat_messages_of_a_new_history,
        trust_the_first_position,
        let_earlier_leaders_write,
        deliver_what_was_read_during_a_loss,
        follow_filters_as_a_whole,
        forget_to_remove_subscribers_of_patterns,
    )
}
