"""The benchmark against peers: its parts, its table, and a small run of the real thing."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmark import counted
from scripts.benchmark.__main__ import parser
from scripts.benchmark.cases import CASES, LETTERS, Case, Column, Goal
from scripts.benchmark.loader import (
    MARK,
    Order,
    Plan,
    Publication,
    Step,
    client_file,
    publisher_file,
    text_frame,
)
from scripts.benchmark.peers import PEERS
from scripts.benchmark.peers.base import Client, Resume
from scripts.benchmark.results import NOTHING, TIMES, Result, Results, System, verdict
from scripts.benchmark.tables import BEGIN, END, PAGE, tables
from scripts.benchmark.workloads import zipf_sizes

ROOT = Path(__file__).parents[2]
BY_NAME = {peer.name: peer for peer in PEERS}
FAST, SLOW = Column("per_s", "per s", 0, Goal(100)), Column("ms", "ms", 1, Goal(2), True)
CASE = Case("a", "messages", (FAST, SLOW), lambda *_: {})


def bench(*options):
    return subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.fixture
def results():
    systems = [
        System("limit", "C send() loop", "1", ""),
        System("eventbus", "eventbus on NATS", "1", ""),
        System("bun", "Bun publish", "1.4", "no compression"),
        System("channels", "Django Channels, Redis", "4", ""),
    ]
    machine = {"cpu": "EPYC", "cores": 2, "kernel": "6"}
    made = Results(machine, systems, {"runs": 3})
    for per_s in (100, 110, 120):
        made.add(CASE, "limit", {"per_s": 2 * per_s, "ms": 1})
        made.add(CASE, "eventbus", {"per_s": per_s, "ms": 4})
        made.add(CASE, "bun", {"per_s": 3 * per_s, "ms": 1, "lost": 7})
    return made


def lines_of(text):
    """The lines of a table by the first word of their system."""
    return {line.split()[0]: line for line in text.splitlines()[4:]}


# A small run of everything that needs no peers


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("taskset")) or len(os.sched_getaffinity(0)) < 2,
    reason="needs a C compiler, taskset, and a core for each side",
)
def test_small_run_measures_eventbus_and_the_limit(tmp_path):
    done = bench("--quick", "--scale", "0.01", "--only", "a,h", "--peers", "none",
                 "--output", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    found = {(row["workload"], row["system"]): row for row in rows}
    assert found["h", "limit"]["figures"] is None
    for name in ("limit", "eventbus"):
        figures = {key: each["median"] for key, each in found["a", name]["figures"].items()}
        assert figures["lost"] == 0
        assert 0 < figures["per_s"] <= 60 * 10 * 1.1
        assert abs(figures["frame_bytes"] - 256) <= 4
        row = found["a", name]
        assert (row["runs"], row["settings"]["seconds each"]) == (1, 1.0)
        assert row["machine"]["cores"] >= 2
        assert row["version"]
    assert found["h", "eventbus"]["figures"]["seconds"]["median"] > 0


@pytest.mark.timeout(300)
def test_node_does_no_more_work_than_it_should():
    done = bench("--counted")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(counted.LIMITS)


def test_count_that_has_grown_or_is_missing_is_reported():
    good = {name: max(bound.least, bound.most / 2) for name, bound in counted.LIMITS.items()}
    assert counted.exceeded(good) == []
    name = "history reads of 100 clients that missed 50 messages"
    assert counted.exceeded(good | {name: 100.0}) == [name]
    assert counted.exceeded(good | {name: 0.0}) == [name]
    del good[name]
    assert counted.exceeded(good) == [name]


# The table


def test_row_has_median_spread_and_ratios(results):
    table = results.table(CASE)
    assert max(map(len, table.splitlines())) <= 80
    rows = lines_of(table)
    assert rows["eventbus"].split()[3:6] == ["110", "±", "9%"]
    assert rows["Bun"].endswith(f"1.50  {TIMES} 3.00 AHEAD")
    assert rows["C"].endswith(f"1.00  {TIMES} 2.00")
    assert rows["Django"].split()[-1] == NOTHING
    assert "   ! 7 messages or clients were missing at the end" in table
    assert "goal: at least 100 per s: reached" in table
    assert "goal: at most 2.0 ms: missed" in table


def test_json_row_can_be_judged_by_itself(results):
    rows = results.records([CASE])["rows"]
    ours = rows[1]
    assert (ours["runs"], ours["figures"]["per_s"]["median"]) == (3, 110)
    assert ours["figures"]["per_s"]["values"] == [100, 110, 120]
    assert [goal["verdict"] for goal in ours["goals"].values()] == ["reached", "missed"]
    assert (rows[2]["version"], rows[2]["warnings"]) == (
        "1.4",
        ["7 messages or clients were missing at the end"],
    )
    assert rows[3]["figures"] is None
    assert all(row["machine"] == results.machine for row in rows)


def test_system_that_failed_is_not_shown_as_one_without_the_workload(results):
    results.fail(CASE, "channels", "it exited")
    assert lines_of(results.table(CASE))["Django"].endswith("failed: it exited")


@pytest.mark.parametrize(
    ("goal", "value", "expected"),
    [(Goal(0.75, True), 80, "reached"), (Goal(0.75, True), 70, "missed"), (Goal(60), 60, "reached"),
     (None, 1, "")],
)  # fmt: skip
def test_goal_is_a_value_or_a_ratio_to_the_limit(goal, value, expected):
    column = Column("per_s", "per s", 0, goal)
    assert verdict(column, Result({"per_s": [value]}), Result({"per_s": [100]})) == expected


def test_busy_load_generator_and_shared_core_are_reported():
    assert Result({"loader": [0.5, 0.95], "waited": [0, 0.5, 0.5]}).warnings() == [
        "the load generator used most of its core: it may be what was measured",
        "the server waited for its core, used by others: do not trust these",
    ]
    assert Result({"loader": [0.5], "waited": [0.05], "lost": [0]}).warnings() == []


def test_every_workload_fits_the_table_and_has_a_goal():
    for case in CASES:
        assert len(f"{case.key}  {case.title}") <= 80
        assert any(column.goal for column in case.columns)
        for column in case.columns:
            assert column.is_less_better == (not column.key.startswith("per_")), column
        assert len(case.columns) <= 2
    assert "".join(LETTERS) == "abcdefghijkl"
    assert all(len(peer.title) <= 22 for peer in PEERS)


# The page


def test_page_has_the_place_of_the_tables():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


def test_page_shows_goals_and_who_is_ahead(results):
    (unicast,) = (case for case in CASES if case.key == "c")
    for name, per_cpu_s in (("limit", 200_000), ("eventbus", 50_000), ("bun", 190_000)):
        results.add(unicast, name, {"per_cpu_s": per_cpu_s, "per_s": 1})
    lines = tables(results.records([unicast])).splitlines()
    assert (
        "| c: " + unicast.title + " | ≥ 60,000 per CPU s | 50,000 ± 0% | 0.25 | missed |" in lines
    )
    assert "| bun | **190,000** |" in lines
    assert "| limit | 200,000 |" in lines
    assert f"| channels | {NOTHING} |" in lines


# Files and frames


def test_channels_have_sizes_by_rank():
    sizes = zipf_sizes(100, 1000, 10)
    assert (sizes[0], sizes[1], sizes[9], sizes[99]) == (1000, 500, 100, 10)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_text_frame_is_masked_with_zeros(size):
    frame = text_frame(b"x" * size)
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    head = 2 if size < 126 else 4 if size < 65536 else 10
    assert frame[head:] == bytes(4) + b"x" * size
    if head > 2:
        assert int.from_bytes(frame[2:head]) == size


def test_client_file_has_the_request_and_the_steps():
    plan = Plan("/ws?channel=c0", [Step(b"joined", b"go", 3)], ["X-Token: t"])
    data = client_file(8080, [plan], [("2", "3")])
    assert data[:8] == struct.pack("<II", 8080, 1)
    assert b"GET /ws?channel=c0 HTTP/1.1\r\n" in data
    assert b"X-Token: t\r\n\r\n" in data
    assert data.endswith(struct.pack("<I6sII2s", 6, b"joined", 3, 2, b"go"))


def test_publisher_file_has_publications_and_their_order():
    data = publisher_file(b"HI", Order([Publication(b"one", 7)], [0, 0]))
    assert data == struct.pack("<I2sIII3sIII", 2, b"HI", 1, 7, 3, b"one", 2, 0, 0)


# Systems


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_publication_has_the_mark_and_grows_with_the_padding(peer):
    small, large = (peer.publication("c0", peer.payload("c0", n)) for n in (0, 50))
    assert 1 <= small.count(MARK.encode()) <= 4
    assert len(large) - len(small) == pytest.approx(50, abs=2)  # lengths in it may grow
    assert b"c0" in small


def frames_of(plan):
    return [json.loads(line) for step in plan.steps if step.send
            for line in step.send[step.send.index(bytes(4)) + 4:].splitlines()]  # fmt: skip


def test_centrifugo_resumes_from_the_offset_of_the_last_publication():
    sample = b'{"push":{"channel":"c0","pub":{"data":{},"offset":41}}}'
    plan = BY_NAME["centrifugo"].plan(Client(0, ["c0"], Resume("c0", sample)))
    assert frames_of(plan) == [
        {"id": 1, "connect": {}},
        {"id": 2, "subscribe": {"channel": "c0", "recover": True, "offset": 41, "epoch": ""}},
    ]


def test_anycable_resumes_from_the_position_of_its_stream():
    sample = b'{"identifier":"i","message":{},"stream_id":"c0","epoch":"e","offset":41}'
    plan = BY_NAME["anycable"].plan(Client(0, ["c0"], Resume("c0", sample)))
    (command,) = frames_of(plan)
    assert json.loads(command["identifier"]) == {"channel": "$pubsub", "stream_name": "c0"}
    assert command["history"] == {"streams": {"c0": {"offset": 41, "epoch": "e"}}}


def test_eventbus_resumes_from_offset_epoch_and_mark():
    sample = b'{"channel":"c0","offset":41,"epoch":"e","mark":"m","data":{}}'
    plan = BY_NAME["eventbus"].plan(Client(0, ["c0"], Resume("c0", sample)))
    (command,) = frames_of(plan)
    assert command == {
        "action": "subscribe", "channel": "c0",
        "data": {"offset": 41, "epoch": "e", "mark": "m"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--only", "a,z"), "workloads are a, b, c"),
        (("--peers", "ws,pusher"), "systems are limit, eventbus"),
        (("--runs", "0"), "'0' is not a number from 1 to 1000"),
        (("--scale", "nan"), "'nan' is not a factor"),
        (("--seconds", "0"), "'0' is not a time"),
    ],
)
def test_invalid_option_is_refused(options, complaint, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(options)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
