"""The suite itself, started as a shell starts a background job."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_interrupts_reach_what_tests_start_in_a_suite_that_was_started_without_them(tmp_path):
    test = (
        "tests/eventbus/server/test_server.py"
        "::test_server_ends_with_its_parent_however_that_ends[2]"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", test]
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'inner'}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert "1 passed" in done.stdout, done.stdout
