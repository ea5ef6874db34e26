"""The examples of docs/drivers.md run unchanged, and pass the type checker."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus.drivers.registry import driver_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "drivers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_examples_are_found_and_every_driver_has_its_row():
    assert len(EXAMPLES) == 6
    rows = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    assert rows == set(driver_names())


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(tmp_path, number):
    script = tmp_path / "test_example.py"
    script.write_text(EXAMPLES[number], encoding="utf-8")
    is_suite = "class Test" in EXAMPLES[number]
    runner = ["-m", "pytest", "-q", "-o", "asyncio_mode=auto"] if is_suite else ["-W", "error"]
    done = subprocess.run(
        [sys.executable, *runner, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(180)
@pytest.mark.xdist_group("type checker")
def test_examples_pass_the_type_checker(tmp_path):
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
