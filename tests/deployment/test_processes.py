"""The deployment's tests end what they start, with all its descendants."""

import time
from pathlib import Path

from tests.deployment.conftest import Process

PATIENCE_S = 40


def running(name):
    """The processes whose command line has a word."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in path.read_bytes().decode(errors="replace").split("\0"):
                found.add(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def ends(name):
    """Whether all of them are gone soon; one that is killed takes a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while running(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(name)


def test_killed_process_takes_its_descendants_along(tmp_path):
    name = str(tmp_path)  # no other process has this argument
    script = f"bash -c 'sleep 1000; true' {name} & sleep 1000; true"
    process = Process("parent", ["bash", "-c", script, name], {}, tmp_path)
    process.wait_until(lambda: len(running(name)) >= 2)
    process.kill()
    assert ends(name)
