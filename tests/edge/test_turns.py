"""How clients that send much share the turns of the event loop, on a clock of the tests."""

import asyncio
import collections

import pytest

from eventbus_edge.turns import S_PER_BYTE, SHARE_S, TURN_S, Turns


class Clock:
    """Stands still unless it is advanced."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Client:
    """Uses its share `times` times, and records the turns in which it was served."""

    def __init__(self, clock, turns, times=1, *, cost=SHARE_S):
        self.served = []
        self._clock, self._turns, self._times, self._cost = clock, turns, times, cost

    def arrive(self):
        if self._turns.has_time:
            self._turns.serve(self.serve)
        else:
            self._turns.wait(self.serve)

    def serve(self):
        self.served.append(Client.turn)
        self._clock.now += self._cost
        self._times -= 1
        if self._times:
            self._turns.wait(self.serve)

    turn = 0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def turns(clock, monkeypatch):
    monkeypatch.setattr(Client, "turn", 0)
    return Turns(clock)


async def next_turn():
    await asyncio.sleep(0)
    Client.turn += 1


async def turns_pass(turns, most=1000):
    for _ in range(most):
        await next_turn()
        if not turns:
            break


async def test_client_is_served_at_once_while_the_turn_has_time(clock, turns):
    clients = [Client(clock, turns, cost=TURN_S / 4) for _ in range(3)]
    for client in clients:
        client.arrive()
    assert [client.served for client in clients] == [[0]] * 3


@pytest.mark.parametrize("count", [4, 400])
async def test_however_many_clients_share_the_time_of_a_turn(clock, turns, count):
    clients = [Client(clock, turns, times=3) for _ in range(count)]
    for client in clients:
        client.arrive()
    await turns_pass(turns)
    served = [turn for client in clients for turn in client.served]
    assert len(served) == 3 * count
    most = max(served.count(turn) for turn in set(served))
    assert most <= TURN_S / SHARE_S + 1


async def test_clients_that_wait_are_served_one_after_another(clock, turns):
    clients = [Client(clock, turns, times=5) for _ in range(40)]
    for client in clients:
        turns.wait(client.serve)
    await turns_pass(turns)
    for number in range(4):
        last = max(client.served[number] for client in clients)
        assert all(client.served[number + 1] >= last for client in clients)


async def test_client_that_arrives_while_others_wait_does_not_overtake_them(clock, turns):
    early = [Client(clock, turns, times=2) for _ in range(10)]
    for client in early:
        client.arrive()
    late = Client(clock, turns)
    late.arrive()
    await turns_pass(turns)
    assert late.served[0] >= max(client.served[0] for client in early)


async def test_much_that_is_read_next_takes_time_of_the_turn(clock, turns):
    served, size = [], 256 * 1024

    def take_and_read_on():
        served.append(Client.turn)
        turns.count_read(size)

    for _ in range(100):
        turns.wait(take_and_read_on)
    await turns_pass(turns)
    assert len(served) == 100
    assert max(served.count(turn) for turn in set(served)) <= TURN_S / (size * S_PER_BYTE) + 1


async def test_many_that_send_little_are_served_in_one_turn(clock, turns):
    clients = [Client(clock, turns, cost=TURN_S / 1001) for _ in range(1000)]
    for client in clients:
        turns.wait(client.serve)
    await next_turn()
    await next_turn()
    assert not turns


async def test_next_turn_has_its_whole_time_again(clock, turns):
    Client(clock, turns, cost=10 * TURN_S).arrive()
    assert not turns.has_time
    await turns_pass(turns)
    assert turns.has_time


async def test_client_that_fails_does_not_keep_the_others_waiting(clock, turns):
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: faults.append(about))

    def fail():
        raise ValueError("a fault")

    client = Client(clock, turns)
    turns.wait(fail)
    turns.wait(client.serve)
    await turns_pass(turns)
    assert len(client.served) == 1
    assert len(faults) == 1


async def test_task_that_pauses_goes_on_in_a_later_turn_as_one_of_those_that_wait(clock, turns):
    served = []

    async def work():
        for _ in range(3):
            await turns.pause()
            served.append(Client.turn)

    tasks = [asyncio.create_task(work()) for _ in range(20)]
    while not all(task.done() for task in tasks):
        await next_turn()
    assert len(served) == 60
    assert max(served.count(turn) for turn in set(served)) == TURN_S / SHARE_S


async def test_task_that_is_cancelled_while_it_pauses_costs_the_others_nothing(clock, turns):
    pausing = asyncio.create_task(turns.pause())
    await asyncio.sleep(0)
    client = Client(clock, turns)
    turns.wait(client.serve)
    pausing.cancel()
    await turns_pass(turns)
    assert pausing.cancelled()
    assert len(client.served) == 1


async def test_crowd_that_comes_at_once_is_spread_over_turns(turns):
    entered = collections.Counter()

    async def come():
        await turns.enter(TURN_S / 4)
        entered[Client.turn] += 1

    crowd = [asyncio.create_task(come()) for _ in range(40)]
    while not all(task.done() for task in crowd):
        await next_turn()
    assert sum(entered.values()) == 40
    assert max(entered.values()) <= 5
