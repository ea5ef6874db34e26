"""The comparison of acknowledged messages with received ones notices each kind of fault."""

import pytest

from eventbus.cli.chaos import Ledger, Log, Message, Promise, examine

CHANNEL = "chaos.x.0"


@pytest.fixture
def ledger():
    return Ledger()


def publish(ledger, publisher="a", count=5, *, acknowledged=True, channel=CHANNEL):
    made = [Message(publisher, number) for number in range(count)]
    for at, message in enumerate(made):
        publication = ledger.sent(message, channel, float(at))
        if acknowledged:
            publication.acknowledged_at = at + 0.5
    return made


def receive(ledger, entries, promise=Promise.EACH_ONCE, channel=CHANNEL):
    log = Log(ledger, "sse 3", channel, promise)
    for at, entry in enumerate(entries):
        if entry is None:
            log.gap(float(at))
        else:
            log.received(entry, float(at))
    return log


def found(ledger, entries, promise=Promise.EACH_ONCE, **options):
    return examine(ledger, receive(ledger, entries, promise), **options)


def numbers(publications):
    return [each.message.number for each in publications]


@pytest.mark.parametrize("promise", Promise)
def test_a_whole_list_breaks_no_promise(ledger, promise):
    findings = found(ledger, publish(ledger), promise)
    assert findings.broken == []
    assert findings.delivered == 5


@pytest.mark.parametrize("dropped", range(5))
def test_a_dropped_message_is_lost_wherever_it_was(ledger, dropped):
    sent = publish(ledger)
    findings = found(ledger, [each for each in sent if each.number != dropped])
    assert numbers(findings.lost) == [dropped]
    assert findings.broken == [f"sse 3: 1 lost: a #{dropped}"]


@pytest.mark.parametrize("promise", [Promise.EACH_ONCE, Promise.AT_LEAST_ONCE])
def test_a_receiver_that_got_nothing_lost_everything(ledger, promise):
    publish(ledger)
    assert numbers(found(ledger, [], promise).lost) == list(range(5))


def test_volatile_messages_may_be_missing_and_may_not_come_twice(ledger):
    first, *_ = publish(ledger)
    assert found(ledger, [first], Promise.AT_MOST_ONCE).broken == []
    twice = found(ledger, [first, first], Promise.AT_MOST_ONCE)
    assert twice.broken == ["sse 3: 1 received twice: a #0"]


def test_a_copy_breaks_the_promise_of_each_once_only(ledger):
    sent = publish(ledger)
    entries = [*sent, sent[1], sent[1]]
    assert found(ledger, entries).broken == ["sse 3: 2 received twice: a #1, a #1"]
    assert found(ledger, entries, Promise.AT_LEAST_ONCE).broken == []
    assert found(ledger, entries).delivered == 5


def test_a_message_after_a_later_one_of_its_publisher_is_out_of_order(ledger):
    a, b, c, d, e = publish(ledger)
    findings = found(ledger, [a, c, b, d, e])
    assert [message for message, _ in findings.out_of_order] == [b]
    assert findings.broken == ["sse 3: 1 received out of order: a #1"]
    assert found(ledger, [a, c, b, d, e], Promise.AT_LEAST_ONCE).broken == []


def test_receivers_that_disagree_about_the_order_of_two_publishers_are_noticed(ledger):
    a, b = publish(ledger, "a", 1)[0], publish(ledger, "b", 1)[0]
    assert found(ledger, [a, b], order=[a, b]).out_of_order == []
    assert found(ledger, [b, a], order=[a, b]).broken == ["sse 3: 1 received out of order: a #0"]


def test_a_message_without_acknowledgement_may_come_or_not_and_in_any_place(ledger):
    sent = publish(ledger)
    (late,) = publish(ledger, "b", 1, acknowledged=False)
    assert found(ledger, sent).broken == []
    findings = found(ledger, [late, *sent], order=[*sent, late])
    assert findings.broken == []
    assert findings.unacknowledged == 1
    assert found(ledger, [late, *sent, late]).broken == ["sse 3: 1 received twice: b #0"]


def test_a_message_of_another_channel_is_noticed(ledger):
    sent = publish(ledger)
    (other,) = publish(ledger, "z", 1, channel="chaos.x.1")
    findings = found(ledger, [*sent, other])
    assert findings.broken == ["sse 3: 1 received, but not published there: z #0"]


def test_only_messages_missing_at_a_reported_gap_are_excused(ledger):
    a, _, c, _, e = publish(ledger)
    findings = found(ledger, [a, None, c, e])
    assert numbers(findings.excused) == [1]
    assert numbers(findings.lost) == [3]
    assert findings.gaps == [1.0]


def test_a_gap_at_the_start_or_at_the_end_excuses_messages_missing_there(ledger):
    a, b, c, d, e = publish(ledger)
    assert numbers(found(ledger, [None, c, d, e]).excused) == [0, 1]
    assert numbers(found(ledger, [a, b, None]).excused) == [2, 3, 4]
    assert numbers(found(ledger, [None]).excused) == [0, 1, 2, 3, 4]
    assert numbers(found(ledger, [b, None, c, d, e]).lost) == [0]


def test_a_gap_excuses_each_publisher_between_its_own_neighbours(ledger):
    a, b = publish(ledger, "a", 3), publish(ledger, "b", 3)
    findings = found(ledger, [a[0], b[0], None, b[1], b[2], a[2]])
    assert findings.excused == [ledger.of_channel(CHANNEL)[a[1]]]
    assert findings.lost == []
    findings = found(ledger, [a[0], b[0], a[2], None, b[2]])
    assert [each.message for each in findings.lost] == [a[1]]
    assert [each.message for each in findings.excused] == [b[1]]


def test_an_erased_store_excuses_what_a_subscription_had_not_handled_by_then(ledger):
    sent = publish(ledger)
    findings = found(ledger, sent[4:], Promise.AT_LEAST_ONCE, erased_at=[1.2])
    assert numbers(findings.excused) == [0, 1]
    assert numbers(findings.lost) == [2, 3]


def test_findings_name_a_few_messages_and_count_the_others(ledger):
    publish(ledger, count=20)
    assert found(ledger, []).broken == [
        "sse 3: 20 lost: a #0, a #1, a #2, a #3, a #4 and 15 more",
    ]


def test_message_under_way_while_the_store_is_erased_may_come_twice_and_anywhere(ledger):
    a, b, c, d, e = publish(ledger)  # b is sent at 1.0 and acknowledged at 1.5
    log = Log(ledger, "sse 3", CHANNEL, Promise.EACH_ONCE)
    for at, message in enumerate([a, b, c, d, e]):
        log.received(message, at + 0.6)
    log.received(b, 9.0)
    assert examine(ledger, log, erased_at=[1.2]).broken == []
    assert examine(ledger, log, [a, c, b, d, e], erased_at=[1.2]).broken == []
    assert examine(ledger, log, erased_at=[0.9]).broken == ["sse 3: 1 received twice: a #1"]
    assert examine(ledger, log, erased_at=[5.0]).broken == ["sse 3: 1 received twice: a #1"]
    assert examine(ledger, log, [a, c, b, d, e]).broken[1] == "sse 3: 1 received out of order: a #2"


def test_volatile_message_may_come_again_on_another_connection_only(ledger):
    (sent,) = publish(ledger, count=1)
    log = Log(ledger, "volatile 0", CHANNEL, Promise.AT_MOST_ONCE)
    log.joined(0.0)
    log.received(sent, 1.0)
    log.joined(2.0)
    log.received(sent, 3.0)
    assert examine(ledger, log).broken == []
    log.received(sent, 4.0)
    assert examine(ledger, log).broken == ["volatile 0: 1 received twice: a #0"]
