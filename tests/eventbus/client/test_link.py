from hypothesis import given, strategies as st

from eventbus.client.link import (
    Liveness,
    Verdict,
)


def test_silence_is_asked_about_and_then_given_up():
    liveness = Liveness(20.0, now=0.0)
    seen = {}
    now = 0.0
    while Verdict.DEAD not in seen:
        now += liveness.check_every_s
        seen.setdefault(liveness.check(now), now)
    assert 25.0 <= seen[Verdict.PING] <= 27.5
    assert 10.0 <= seen[Verdict.DEAD] - seen[Verdict.PING] <= 12.5


def test_an_answer_in_time_starts_over():
    liveness = Liveness(20.0, now=0.0)
    step = liveness.check_every_s
    now = 0.0
    while liveness.check(now := now + step) is not Verdict.PING:
        pass
    liveness.received(now + step)
    assert liveness.check(now + 2 * step) is Verdict.WAIT
    assert liveness.check(now + 3 * step) is Verdict.WAIT


def test_a_process_that_slept_asks_before_it_gives_up():
    liveness = Liveness(20.0, now=0.0)
    assert liveness.check(1_000.0) is Verdict.PING
    assert liveness.check(1_000.0 + liveness.check_every_s) is Verdict.WAIT


@given(st.floats(0.1, 60.0))
def test_never_given_up_while_something_arrives_each_heartbeat(heartbeat):
    liveness, now = Liveness(heartbeat, now=0.0), 0.0
    step, received = liveness.check_every_s, 0.0
    for _ in range(200):
        now += step
        if now - received >= heartbeat - step:
            received = now
            liveness.received(now)
        assert liveness.check(now) is not Verdict.DEAD
