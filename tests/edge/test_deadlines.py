"""One timer for all: it says what a plain dictionary of deadlines would say."""

from hypothesis import given, strategies as st

from eventbus_edge.deadlines import Deadlines

KEYS = st.sampled_from("abcde")
TIMES = st.integers(0, 20).map(float)
STEPS = st.one_of(
    st.tuples(st.just("set"), KEYS, TIMES),
    st.tuples(st.just("cancel"), KEYS, st.none()),
    st.tuples(st.just("due"), st.none(), TIMES),
)


@given(st.lists(STEPS, max_size=200))
def test_due_keys_are_those_of_a_dictionary(steps):
    deadlines, model = Deadlines(), {}
    for step, key, when in steps:
        if step == "set":
            deadlines.set(key, when)
            model[key] = when
        elif step == "cancel":
            deadlines.cancel(key)
            model.pop(key, None)
        else:
            due = list(deadlines.due(when))
            assert sorted(due) == sorted(key for key in model if model[key] <= when)
            times = [model.pop(key) for key in due]
            assert times == sorted(times)
    following = deadlines.next()
    if model:
        assert following is not None
        assert following <= min(model.values())  # never late


def test_keys_come_due_in_the_order_of_their_deadlines():
    deadlines = Deadlines()
    for key, when in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        deadlines.set(key, when)
    assert list(deadlines.due(10.0)) == ["a", "b", "c"]


def test_a_key_is_due_once():
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    assert list(deadlines.due(1.0)) == ["a"]
    assert list(deadlines.due(2.0)) == []
    assert deadlines.next() is None


def test_a_later_deadline_replaces_an_earlier_one():
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("a", 5.0)
    assert list(deadlines.due(4.9)) == []
    assert list(deadlines.due(5.0)) == ["a"]


def test_a_key_may_be_set_again_while_due_keys_are_handled():
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("b", 1.0)
    seen = []
    for key in deadlines.due(1.0):
        seen.append(key)
        deadlines.set(key, 2.0)
    assert seen == ["a", "b"]
    assert list(deadlines.due(2.0)) == ["a", "b"]


def test_setting_a_few_keys_again_and_again_does_not_grow_the_heap():
    deadlines = Deadlines()
    for i in range(10_000):
        deadlines.set("abc"[i % 3], float(10_000 - i))
        assert len(deadlines._heap) <= 2 * 3 + 64
    assert sorted(deadlines.due(10_000.0)) == ["a", "b", "c"]


def test_keys_that_come_and_go_do_not_grow_the_heap():
    deadlines = Deadlines()
    for i in range(10_000):
        deadlines.set(f"k{i}", 1e9)
        deadlines.cancel(f"k{i}")
    assert len(deadlines._heap) <= 66
