"""Events of a shop, and the programs of npm that judge what is exported."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from eventbus.contracts.catalogue import catalogue
from eventbus.events import event as events

HERE = Path(__file__).parent


@pytest.fixture
def shop(monkeypatch):
    """The module `shop`, whose events are the only ones."""
    monkeypatch.setattr(events, "_types", {})
    spec = importlib.util.spec_from_file_location("shop", HERE / "shop.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "shop", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def contracts(shop):
    return catalogue()


@pytest.fixture
def tsc(node_modules, tmp_path):
    """Compile TypeScript strictly: returns the errors, empty without any."""

    def compile_(*paths):
        done = subprocess.run(
            ["node", node_modules / "typescript/bin/tsc", "--strict", "--noEmit",
             "--skipDefaultLibCheck",  # of its own files, which takes most of the time
             "--target", "es2022", "--module", "nodenext", "--exactOptionalPropertyTypes",
             "--lib", "es2022,dom", *paths],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert bool(done.returncode) is bool(done.stdout), done.stderr
        return done.stdout

    return compile_
