"""The plan of a run: the same faults in the same order for the same seed."""

import pytest

from eventbus.cli.chaos import Kind, make_plan

KINDS = [Kind(name, 10.0) for name in ("killed", "stopped", "cut", "drained", "erased")]


def test_same_seed_makes_the_same_plan():
    assert make_plan(7, KINDS, 300) == make_plan(7, KINDS, 300)


def test_another_seed_makes_another_order():
    orders = {tuple(step.fault for step in make_plan(seed, KINDS, 60)) for seed in range(20)}
    assert len(orders) > 10


def test_each_fault_comes_once_before_one_comes_again():
    names = {kind.name for kind in KINDS}
    order = [step.fault for step in make_plan(3, KINDS, 300)]
    assert len(order) > 2 * len(names)
    for first in range(0, len(order) - len(names), len(names)):
        assert set(order[first : first + len(names)]) == names


def test_a_short_run_has_each_fault_once():
    assert sorted(step.fault for step in make_plan(3, KINDS, 1)) == sorted(
        kind.name for kind in KINDS
    )


def test_a_longer_run_begins_like_a_shorter_one():
    short, long = make_plan(5, KINDS, 100), make_plan(5, KINDS, 400)
    assert long[: len(short)] == short


def test_choices_of_each_fault_have_a_seed_of_their_own():
    seeds = [step.seed for step in make_plan(5, KINDS, 300)]
    assert len(set(seeds)) == len(seeds)


def test_plan_without_faults_is_refused():
    with pytest.raises(ValueError, match="at least one fault"):
        make_plan(1, [], 60)
