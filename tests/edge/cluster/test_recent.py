"""The last minutes of a node, and their sum over nodes."""

from eventbus_edge.cluster.recent import (
    MAX_STEPS,
    STEP_S,
    Recent,
    Step,
    merge,
)

START = 1000.0


def test_step_contains_what_passed_in_it():
    recent = Recent(START)
    recent.take(START + STEP_S, Step(3, 10, 20, (5, 5)))
    recent.take(START + 2 * STEP_S, Step(4, 14, 20, (5, 9)))
    assert recent.steps == [Step(3, 10, 20, [5, 5]), Step(4, 4, 0, [0, 4])]


def test_early_look_adds_no_step_and_loses_no_message():
    recent = Recent(START)
    recent.take(START + STEP_S / 2, Step(1, 5, 0, (1,)))
    assert recent.steps == []
    recent.take(START + STEP_S, Step(1, 7, 0, (2,)))
    assert recent.steps == [Step(1, 7, 0, [2])]


def test_late_look_spreads_messages_over_the_steps_that_it_took():
    recent = Recent(START)
    recent.take(START + 4.5 * STEP_S, Step(2, 8, 4, (3,)))
    assert recent.steps == [Step(2, 2, 1, ())] * 3 + [Step(2, 2, 1, [3])]
    recent.take(START + 5 * STEP_S, Step(2, 8, 4, (3,)))  # steps keep their rhythm
    assert recent.steps[4:] == [Step(2, 0, 0, ())]


def test_number_of_steps_is_bounded_whatever_the_pause():
    recent = Recent(START)
    for number in range(1, MAX_STEPS + 10):
        recent.take(START + number * STEP_S, Step(number, 0, 0, ()))
    assert len(recent.steps) == MAX_STEPS
    assert recent.steps[-1].connections == MAX_STEPS + 9
    recent.take(START + 1e9, Step(1, 0, 0, ()))
    assert recent.steps == [Step(1, 0, 0, ())] * MAX_STEPS


def test_sum_over_nodes_counts_backwards_from_now():
    old = [Step(1, 1, 1, [1, 0]), Step(2, 2, 2, ()), Step(3, 3, 3, [0, 2])]
    young = [Step(10, 10, 10, [5, 5])]
    assert merge([old, young]) == [
        Step(1, 1, 1, [1, 0]),
        Step(2, 2, 2, ()),
        Step(13, 13, 13, [5, 7]),
    ]
    assert merge([old, young]) == merge([young, old])
    assert merge([old, []]) == old
    assert merge([]) == []
