"""Nodes ask each other: every one answers, and none that is slow or dead is waited for long."""

import asyncio
import contextlib
import time

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.cluster.cluster import (
    MAX_ASKING,
    Cluster,
    ClusterBusy,
)
from eventbus.cluster.gather import (
    Gather,
    Question,
)
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.errors import DriverError

PATIENCE_S = 1.5


class Asked(msgspec.Struct):
    word: str


class Answered(msgspec.Struct):
    node: str
    word: str


ECHO = Question("echo", Asked, Answered)


def answering(node, *words):
    """A handler that answers with the given words, or with what it is asked."""

    async def answer(asked):
        return [Answered(node, word) for word in words or [asked.word]]

    return answer


class Faults(list):
    """The words that a cluster gave of its faults."""

    def __call__(self, word):
        self.append(word)


@pytest.fixture(params=["memory", "nats"])
async def make_driver(request, settings):
    """Open drivers that reach each other, each as of another process."""
    broker = MemoryBroker()
    async with contextlib.AsyncExitStack() as stack:

        async def make():
            driver = MemoryDriver(broker) if request.param == "memory" else None
            bus = EventBus(settings, driver)
            return await stack.enter_async_context(bus)

        yield make


@pytest.fixture
async def join(make_driver):
    """Join a node: `await join("a")`; it answers ECHO."""
    async with contextlib.AsyncExitStack() as stack:

        async def join_one(name, *, answers=True, hello_s=0.4, **options):
            bus = await make_driver()
            faults = Faults()
            cluster = Cluster(
                bus.driver, bus.subjects, name, faults,
                **{"patience_s": PATIENCE_S, "hello_s": hello_s} | options,
            )  # fmt: skip
            cluster.faults, cluster.bus = faults, bus
            if answers:
                cluster.answer(ECHO, answering(name))
            await cluster.open()
            stack.push_async_callback(cluster.aclose)
            return cluster

        yield join_one


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - of state that has no event
            await asyncio.sleep(0.01)


async def settled(*clusters):
    """Wait until the nodes know each other, and know that they do."""
    names = {cluster.node_id for cluster in clusters}
    await until(lambda: all(c.nodes | {c.node_id} == names for c in clusters))
    await asyncio.sleep(PATIENCE_S)  # from then on, a gather ends when all have answered


def output(gathered):
    return {node: [answer.word for answer in parts] for node, parts in gathered.answers.items()}


async def early(ask):
    """The answers of a question that was over before its time.

    A loop that was blocked for long, on a busy machine, makes the next question wait for all nodes.
    """
    for _ in range(10):
        gathered, took = await timed(ask())
        if took < PATIENCE_S / 2:
            return gathered
    raise AssertionError(f"no question was over early: {took} s")


async def timed(asking):
    start = time.monotonic()
    return await asking, time.monotonic() - start


async def test_every_node_answers_the_asker_included_and_the_gather_ends_early(join):
    nodes = [await join(name) for name in ("a", "b", "c")]
    await settled(*nodes)
    for node in nodes:
        gathered = await early(lambda node=node: node.ask(ECHO, Asked("hi")))
        assert output(gathered) == {"a": ["hi"], "b": ["hi"], "c": ["hi"]}
        assert gathered.missing == frozenset()
        assert node.faults == []


async def test_a_node_that_dies_is_missed_once_and_then_forgotten(join):
    a, b, c = [await join(name, hello_s=0.4) for name in ("a", "b", "c")]
    await settled(a, b, c)
    await c._announcing.aclose()  # no goodbye: it is killed
    await c.bus.driver.aclose()
    gathered, took = await timed(a.ask(ECHO, Asked("hi")))
    assert output(gathered) == {"a": ["hi"], "b": ["hi"]}
    assert gathered.missing == {"c"}
    assert PATIENCE_S * 0.9 < took < PATIENCE_S + 10
    assert a.faults == ["unanswered"]
    await until(lambda: a.nodes == {"b"})
    gathered = await early(lambda: a.ask(ECHO, Asked("hi")))
    assert gathered.missing == frozenset()


async def test_a_node_that_says_goodbye_is_not_waited_for(join):
    a, b = await join("a"), await join("b", hello_s=60)
    await settled(a, b)
    await b.aclose()
    await until(lambda: not a.nodes)
    gathered = await early(lambda: a.ask(ECHO, Asked("hi")))
    assert output(gathered) == {"a": ["hi"]}


async def test_a_client_that_was_stopped_waits_for_all_nodes_again(join):
    nodes = [await join("a"), await join("b")]
    client = await join("client", answers=False, is_node=False)
    await until(lambda: client.nodes == {"a", "b"})
    await asyncio.sleep(PATIENCE_S)
    await early(lambda: client.ask(ECHO, Asked("hi")))
    time.sleep(1.5)  # noqa: ASYNC251 - the whole process, for longer than hellos count
    gathered = await client.ask(ECHO, Asked("hi"))
    assert output(gathered) == {node.node_id: ["hi"] for node in nodes}


async def test_a_client_that_was_stopped_while_hellos_were_due_waits_for_all_nodes(join):
    """A pause that is shorter than hellos count, and makes those of the others too old."""
    hello_s = 60
    nodes = [await join(name, hello_s=hello_s) for name in ("a", "b")]
    client = await join("client", answers=False, is_node=False, hello_s=hello_s)
    await until(lambda: client.nodes == {"a", "b"})
    await asyncio.sleep(PATIENCE_S)
    await early(lambda: client.ask(ECHO, Asked("hi")))
    now = asyncio.get_running_loop().time()
    client._announced_at = now - 1.6 * hello_s
    client._seen = dict.fromkeys(client._seen, now - 2.55 * hello_s)
    gathered = await client.ask(ECHO, Asked("hi"))
    assert output(gathered) == {node.node_id: ["hi"] for node in nodes}


async def test_a_client_that_is_stopped_while_it_asks_waits_for_the_answers_afterwards(join):
    nodes = [await join(name, hello_s=60) for name in ("a", "b")]
    client = await join("client", answers=False, is_node=False, hello_s=60)
    await settled(*nodes)
    stopped = []

    async def answer(asked):
        if not stopped:
            stopped.append(time.sleep(2 * PATIENCE_S))  # noqa: ASYNC251 - the whole process
        return [Answered("a", asked.word)]

    nodes[0].answer(ECHO, answer)
    gathered = await client.ask(ECHO, Asked("hi"))
    assert output(gathered) == {node.node_id: ["hi"] for node in nodes}
    assert gathered.missing == frozenset()


async def test_a_node_that_just_started_waits_for_nodes_unknown_to_it(join):
    await join("a", hello_s=60)
    new = await join("b", hello_s=60)
    assert output(await new.ask(ECHO, Asked("hi"))) == {"a": ["hi"], "b": ["hi"]}


async def test_an_answer_in_many_parts_is_whole_or_missing(join):
    a, b = await join("a"), await join("b", answers=False)
    b.answer(ECHO, answering("b", *map(str, range(300))))
    await settled(a, b)
    gathered = await a.ask(ECHO, Asked("hi"))
    assert output(gathered)["b"] == [str(n) for n in range(300)]


async def test_one_that_only_asks_gets_answers_and_gives_none(join):
    a, b = await join("a"), await join("b")
    watcher = await join("watcher", answers=False, is_node=False)
    await settled(a, b)
    await until(lambda: watcher.nodes == {"a", "b"})
    assert output(await watcher.ask(ECHO, Asked("hi"))) == {"a": ["hi"], "b": ["hi"]}
    assert set((await a.ask(ECHO, Asked("hi"))).answers) == {"a", "b"}
    assert "watcher" not in a.nodes


async def test_a_node_that_does_not_know_the_question_says_so_at_once(join):
    a, b = await join("a"), await join("b", answers=False)
    await settled(a, b)
    gathered = await early(lambda: a.ask(ECHO, Asked("hi")))
    assert (set(gathered.answers), gathered.missing) == ({"a"}, {"b"})


async def test_a_node_whose_answer_fails_says_so_at_once_and_not_why(join, caplog):
    a, b = await join("a"), await join("b", answers=False)

    async def fail(asked):
        raise RuntimeError("a secret of b's")

    b.answer(ECHO, fail)
    await settled(a, b)
    gathered = await early(lambda: a.ask(ECHO, Asked("hi")))
    assert gathered.missing == {"b"}
    records = [record for record in caplog.records if "does not answer" in record.message]
    assert records
    assert not any("secret" in record.getMessage() for record in records)


BAD = [
    b"", b"\xff", b"{}", b"[1]", b'{"type":"hello"}', b'{"type":"nothing","node":"x"}',
    b'{"type":"hello","node":"a b"}', b'{"type":"hello","node":"x.>"}', b"[" * 20000,
    b'{"type":"ask","id":"1","node":"x","question":"echo","body":{"word":1}}',
    b'{"type":"ask","id":"1","node":"x","question":"echo","body":{"word":"\xff"}}',
    b'{"type":"ask","id":"1","node":"*","question":"echo","body":{"word":"w"}}',
]  # fmt: skip


async def test_foreign_cluster_message_is_counted_and_harmless(join):
    a, b = await join("a"), await join("b")
    await settled(a, b)
    subject = a.bus.subjects.control("nodes")
    for number, payload in enumerate(BAD, 1):
        await a.bus.driver.publish(subject, payload)
        await until(lambda: len(b.faults) == number)  # noqa: B023 - awaited at once
    assert set(b.faults) == {"malformed"}
    assert set((await a.ask(ECHO, Asked("hi"))).answers) == {"a", "b"}


async def test_questions_under_way_are_bounded(join):
    a, b = await join("a"), await join("b")
    await settled(a, b)
    await b.bus.driver.aclose()
    asking = [asyncio.create_task(a.ask(ECHO, Asked("hi"))) for _ in range(MAX_ASKING)]
    await asyncio.sleep(0)
    with pytest.raises(ClusterBusy):
        await a.ask(ECHO, Asked("hi"))
    await asyncio.gather(*asking)
    await b._announcing.aclose()


async def test_without_a_bus_the_client_gets_an_error(join):
    a = await join("a")
    await a.bus.driver.aclose()
    with pytest.raises(DriverError):
        await a.ask(ECHO, Asked("hi"))


def test_an_incomplete_answer_does_not_count_and_impossible_parts_are_ignored():
    done = []
    gather = Gather(ECHO, {"a", "b"}, lambda: done.append(1), has_strangers=False)
    gather.add("a", 0, 2, Answered("a", "x"))
    for part, parts in ((-1, 2), (2, 2), (0, 0), (0, 10**9)):
        gather.add("b", part, parts, Answered("b", "x"))
    assert not done
    assert (dict(gather.result().answers), gather.result().missing) == ({}, {"a", "b"})
    gather.add("a", 1, 2, Answered("a", "y"))
    gather.leave("b")
    assert done
    assert output(gather.result()) == {"a": ["x", "y"]}
