"""The examples of docs/testing.md are files of one project, whose tests pass and type-check."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus.testing import EventFake, plugin

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def project(tmp_path):
    for name, code in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\npythonpath = .\n"
    )
    return tmp_path


def _run(folder, *command):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip


def test_every_example_is_a_file():
    assert PAGE.count("```python\n") == len(FILES) == 8


def test_the_tests_of_the_page_pass(project):
    done = _run(project, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    written = sum(code.count("def test_") for code in FILES.values())
    assert f"{written} passed" in done.stdout


def test_the_failure_on_the_page_is_the_real_one(project):
    [failure] = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (project / "test_failure.py").write_text(f"""
import pytest
from shop import InvoiceDue, OrderShipped

async def test_failure(event_fake):
    await OrderShipped(order_id=42, carrier="DHL").dispatch()
    await InvoiceDue(order_id=42).dispatch()
    with pytest.raises(AssertionError) as caught:
        event_fake.assert_dispatched(OrderShipped, lambda event: event.carrier == "UPS")
    assert str(caught.value) == {failure.strip()!r}
""")
    done = _run(project, "pytest", "-q", "-p", "no:cacheprovider", "test_failure.py")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(180)
@pytest.mark.xdist_group("type checker")
def test_the_examples_pass_the_type_checker(project):
    done = _run(ROOT, "mypy", "--strict", "--follow-imports=silent", str(project))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_fixture_and_every_assertion_is_on_the_page():
    assert set(re.findall(r"^\| `(\w+)` \| (?:test|session) \|", PAGE, re.MULTILINE)) == set(
        plugin.__all__
    )
    for name in dir(EventFake):
        if name.startswith("assert_"):
            assert f"| `{name}(" in PAGE
