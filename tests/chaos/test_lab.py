"""Runs of scripts/chaos on real servers: its report, its exit code, and that it notices a loss."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.chaos_lab.__main__ import main
from scripts.chaos_lab.faults import FAULTS

ROOT = Path(__file__).parents[2]
LIGHT = (
    "--clients", "12", "--rate", "3", "--crowd", "100", "--patience", "4", "--settle", "120",
    "--publish-limit", "120",
)  # fmt: skip
"""A light load, and enough patience for a busy machine."""
pytestmark = [pytest.mark.server, pytest.mark.xdist_group("chaos")]


@pytest.fixture
def chaos(tmp_path):
    """Run it: `code, runs, text = chaos("--faults", "nats-killed")`."""

    def run(*options):
        path = tmp_path / "report.json"
        done = subprocess.run(
            [sys.executable, "-m", "scripts.chaos_lab", "--folder", tmp_path / "run",
             "--json", path, *LIGHT, *options],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert path.exists(), done.stderr
        return done.returncode, json.loads(path.read_bytes())["runs"], done.stdout

    return run


@pytest.mark.timeout(1200)
def test_no_promise_is_broken_by_any_fault(chaos):
    code, runs, text = chaos("--minutes", "2", "--hold", "0.4", "--seed", "7")
    assert [each for run in runs for each in run["broken"]] == []
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    skipped = {note.split(":")[0] for run in runs for note in run["notes"]}
    happened = {fault for run in runs for fault in run["plan"]}
    assert {f"skipped {name}" for name in set(FAULTS) - happened} <= skipped
    for run in runs:
        assert set(run["receivers"]) == {
            "client", "durable", "pusher", "queue", "sse", "volatile", "websocket",
        }  # fmt: skip
        assert run["total"]["delivered"] > run["total"]["acknowledged"] > 0
        erased = [row for row in run["rows"] if row["fault"] == "nats-erased"]
        assert all(row["gaps"] for row in erased)


@pytest.mark.timeout(300)
def test_comparison_notices_lost_duplicated_and_swapped_messages(chaos):
    code, (report,), text = chaos(
        "--sabotage", "--minutes", "0.1", "--settle", "15", "--faults", "clients-cut"
    )
    assert code == 1
    problems = {re.split("[ :]", line)[0]: line for line in report["broken"]}
    assert set(problems) == {"websocket", "pusher", "sse", "queue"}, report["broken"]
    assert len(report["broken"]) == 4
    assert ": 1 lost: " in problems["websocket"]
    assert ": 1 received twice: " in problems["pusher"]
    assert ": 1 received out of order: " in problems["sse"]
    assert ": 1 lost: " in problems["queue"]
    assert report["total"]["lost"] == 2
    assert report["total"]["duplicates"] == 1
    assert "BROKEN: 4" in text


def test_seed_repeats_the_order_of_faults(capsys):
    def plan(seed):
        assert main(["--plan", "--minutes", "10", "--seed", str(seed)]) == 0
        return capsys.readouterr().out

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def test_list_names_every_fault_with_one_line(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FAULTS)
    assert max(map(len, lines)) <= 80


def test_unknown_faults_are_refused_by_name(capsys):
    assert main(["--faults", "nats-killed,gremlin"]) == 2
    assert "gremlin" in capsys.readouterr().err
