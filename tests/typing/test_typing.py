"""The type checker accepts a service's code as documented, and rejects what cannot work."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus.events import event as events
from eventbus.events.listeners import isolated

pytestmark = pytest.mark.xdist_group("typing")  # one process fills the cache
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def _mypy(path, cache):
    """The errors of one file, as (line, code), and all that mypy said."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, "--no-error-summary",
         "--show-error-codes", path],
        cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=170,
    )  # fmt: skip
    found = re.findall(r":(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    return sorted((int(line), code) for line, code in found), done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", sorted((HERE / "accepted").glob("*.py")), ids=lambda p: p.stem)
def test_documented_code_passes_strict(path, cache):
    errors, output = _mypy(path, cache)
    assert (errors, output) == ([], "")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", sorted((HERE / "rejected").glob("*.py")), ids=lambda p: p.stem)
def test_each_mistake_is_found_and_nothing_more(path, cache):
    expected = [
        (number, match[1])
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := re.search(r"# expect: ([a-z-]+)$", line))
    ]
    errors, output = _mypy(path, cache)
    assert expected
    assert errors == expected, output


async def test_accepted_code_also_runs(monkeypatch):
    """The examples are more than types."""
    monkeypatch.setattr(events, "_types", dict(events._types))
    with isolated():
        for path in sorted((HERE / "accepted").glob("*.py")):
            spec = importlib.util.spec_from_file_location(f"accepted_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
            await module.main()
