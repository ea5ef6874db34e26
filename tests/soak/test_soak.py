"""Two minutes of `scripts/soak` with a few hundred connections: nothing is left over."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONNECTIONS = 400
MOST_GROWTH = 64 * 1024**2
"""Bytes: caches of tokens fill up, and Python keeps memory; a leak of messages would be more."""


@pytest.mark.server  # it starts programs
@pytest.mark.timeout(900)
def test_nothing_is_left_of_connections_that_came_went_joined_and_left(tmp_path):
    options = {
        "connections": CONNECTIONS, "minutes": 1.0, "processes": 1, "reconnects": 20, "moves": 20,
        "rate": 1, "chats": 20, "every": 10, "out": tmp_path,
    }  # fmt: skip
    command = [sys.executable, "-m", "scripts.benchmark.soak"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "soak.json").read_bytes())
    assert result["left"] == {}
    assert result["end"]["resident"] - result["base"]["resident"] < MOST_GROWTH
    minutes = result["minutes"]
    assert sum(minute["messages"] for minute in minutes) > CONNECTIONS
    assert sum(minute["opened"] for minute in minutes) > CONNECTIONS
    assert sum(minute["joined"] for minute in minutes) > 2 * CONNECTIONS
    assert sum(minute["errors"] for minute in minutes) == 0
