"""Every example of the documentation runs: the blocks ```python of each page, from top to bottom.

A page is one module: a block sees what those before it defined, and may `await` at its top level.
It runs against a real nats-server, which the environment names (NATS_URL, and a namespace of the
page's own), and passes the type checker under --strict.

The fence ```python is for what runs; a block that is not to be run has `<!-- not run: why -->` on
the line before its fence. A page whose blocks are programs, each by itself, has a test of its own
beside this one: test_<page>_page.py.
"""

import ast
import asyncio
import builtins
import inspect
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import NamedTuple

import pytest

from eventbus import sync
from eventbus.events import (
    current,
    event as events,
    listeners,
)

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: \S.*-->\n\Z")


class Block(NamedTuple):
    line: int
    code: str


def blocks_of(text):
    """The blocks of a page that run, with the numbers of their first lines."""
    for match in _BLOCK.finditer(text):
        if not _NOT_RUN.search(text[: match.start()]):
            yield Block(text[: match.start(1)].count("\n") + 1, match[1])


PAGES = sorted(
    page
    for page in (ROOT / "docs").glob("*.md")
    if any(blocks_of(page.read_text("utf-8")))
    and not (HERE / f"test_{page.stem.replace('-', '_')}_page.py").exists()
)


def run_page(page, name):
    """Run a page as the module `name`; errors bear the page's own line numbers."""
    module = types.ModuleType(name)
    module.__file__ = str(page)
    module.__builtins__ = builtins  # as modules have that are imported; SQLAlchemy reads them
    sys.modules[name] = module  # where msgspec looks up annotations
    try:
        with asyncio.Runner() as runner:
            for block in blocks_of(page.read_text("utf-8")):
                code = compile(
                    "\n" * (block.line - 1) + block.code, str(page), "exec",
                    flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                )  # fmt: skip
                made = types.FunctionType(code, vars(module))()
                if inspect.iscoroutine(made):
                    runner.run(asyncio.wait_for(made, 30))
    finally:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(events, "_types", dict(events._types))
    monkeypatch.setattr(current, "_entries", [])
    with listeners.isolated():
        yield
    sync.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_the_page_run(page, nats_server, namespace, monkeypatch, tmp_path):
    monkeypatch.setenv("NATS_URL", nats_server.url)
    monkeypatch.setenv("BROADCAST_CHANNELS_PREFIX", namespace)
    monkeypatch.setenv("BROADCAST_HISTORY_BYTES", str(4 * 1024**2))
    monkeypatch.chdir(tmp_path)
    run_page(page, f"docs_{page.stem.replace('-', '_')}")


@pytest.mark.timeout(180)
@pytest.mark.xdist_group("type checker")  # which shares its cache with no other process
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_the_page_pass_the_type_checker(page, tmp_path):
    code = "".join(block.code for block in blocks_of(page.read_text("utf-8")))
    module = tmp_path / f"{page.stem.replace('-', '_')}.py"
    module.write_text("async def page() -> None:\n" + textwrap.indent(code or "pass\n", "    "))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(module)],
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_pages_with_examples():
    assert "events" in {page.stem for page in PAGES}


PAGE = """\
```python
x = 1
```
text
<!-- not run: it needs another machine -->
```python
raise AssertionError
```
```python
import asyncio
await asyncio.sleep(0)
x += 1
```
```sh
exit 1
```
"""


def test_blocks_share_names_and_may_await_and_some_are_not_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE + "```python\nassert x == 2\n```\n")
    run_page(page, "docs_page")
    assert "docs_page" not in sys.modules


@pytest.mark.parametrize("code", ["1 / 0", "await asyncio.sleep(1 / 0)"])
def test_failing_example_fails_with_the_line_of_the_page(tmp_path, code):
    page = tmp_path / "page.md"
    page.write_text(PAGE + f"```python\n{code}\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page, "docs_page")
    frame = caught.traceback[-1]
    assert str(frame.path) == str(page)
    assert frame.lineno + 1 == PAGE.count("\n") + 2
