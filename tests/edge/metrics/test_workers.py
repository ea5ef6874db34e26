"""A scrape of several workers on one port, as real processes."""

import asyncio
import os
import re
import signal
import stat
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter as Counted
from prometheus_client.parser import text_string_to_metric_families

from eventbus_edge.metrics.workers import WorkersMetrics

PATIENCE_S = 40.0


async def scrape(edge, seconds=5.0):
    """The text of one scrape, over a connection of its own."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
        session.get(f"http://127.0.0.1:{edge.port}/metrics") as response,
    ):
        assert response.status == 200
        return await response.text()


def by_worker(text, name):
    return {
        sample.labels["worker"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def workers_of(edge):
    """The processes of the workers, and the folder of their sockets."""
    pid = edge.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    sockets = {}
    for child in map(int, children):
        environ = Path(f"/proc/{child}/environ").read_bytes().decode()
        found = re.search(r"EDGE_WORKER_SOCKET=([^\0]+)", environ)
        sockets[Path(found[1]).name] = child
        folder = Path(found[1]).parent
    return sockets, folder


async def test_scrape_of_any_worker_contains_all_workers(start_process, connect):
    edge = await start_process(BROADCAST_WORKERS="2")
    nodes, clients = Counter(), []
    while len(nodes) < 2 or len(clients) < 6:
        client = await connect(edge.port, "/ws/general")
        nodes[(await client.next())["data"]["node"]] += 1
        await client.next()
        clients.append(client)
    for _ in range(8):  # the kernel chooses who is asked
        text = await scrape(edge)
        connections = by_worker(text, "eventbus_edge_connections")
        assert connections.keys() == {"0", "1"}
        assert sorted(connections.values()) == sorted(nodes.values())
        assert sum(by_worker(text, "eventbus_edge_subscriptions").values()) == len(clients)
        assert sum(by_worker(text, "eventbus_edge_scrape_workers_missing_total").values()) == 0
    types = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(types) == len(set(types)), "one TYPE for each family"
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('worker="' in line for line in lines)
    assert len(lines) == len({line.rpartition(" ")[0] for line in lines}), "no series twice"


async def test_scrape_goes_without_a_worker_that_hangs_or_is_killed(start_process):
    edge = await start_process(BROADCAST_WORKERS="2")
    pids, _ = workers_of(edge)
    os.kill(pids["1"], signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE_S):
        while True:  # the kernel may give a connection to the worker that hangs
            try:
                text = await scrape(edge, 4.0)
            except TimeoutError:
                continue
            break
    assert by_worker(text, "eventbus_edge_connections") == {"0": 0}
    assert by_worker(text, "eventbus_edge_scrape_workers_missing_total")["0"] >= 1
    os.kill(pids["1"], signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                text = await scrape(edge, 4.0)
            except (TimeoutError, aiohttp.ClientError):  # it was given to the one that is gone
                continue
            reported = by_worker(text, "eventbus_edge_connections")
            assert "0" in reported or "1" in reported
            if reported.keys() == {"0", "1"}:  # the next node has the same name
                break


async def test_sockets_of_workers_are_for_their_user_only_and_end_with_them(start_process):
    edge = await start_process(BROADCAST_WORKERS="2", BROADCAST_DRAIN_TIME="0")
    _, folder = workers_of(edge)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {each.name for each in folder.iterdir()} == {"0", "1"}
    edge.terminate()
    assert (await edge.end())[0] == 0
    assert not folder.exists()


async def test_node_without_workers_has_no_such_label(edge):
    async with aiohttp.ClientSession() as session, session.get(f"{edge.url}/metrics") as response:
        assert 'worker="' not in await response.text()


@pytest.mark.parametrize("answer", [b"", b"\xc1nonsense", b"\x93\x01\x02\x03"])
async def test_sibling_that_answers_nonsense_is_left_out(tmp_path, answer):
    async def answered(_, writer):
        writer.write(answer)
        writer.close()

    missing = Counted("missing", "Left out.", registry=(registry := CollectorRegistry()))
    workers = WorkersMetrics(registry, tmp_path / "0", missing)
    await workers.open()
    server = await asyncio.start_unix_server(answered, tmp_path / "1")
    text = (await workers.exposition()).decode()
    assert by_worker(text, "missing_total") == {"0": 1}
    server.close()
    await workers.aclose()
    assert not (tmp_path / "0").exists()
