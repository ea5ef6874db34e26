"""What `scripts/test` relies on: tests of one xdist_group run in one process."""

import subprocess
import sys

TESTS = """
import os, pytest
from pathlib import Path

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_group(number):
    Path(f"ran-{os.getpid()}").touch()
"""


def test_tests_of_a_group_run_in_one_process(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "test_it.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert len(list(tmp_path.glob("ran-*"))) == 1
