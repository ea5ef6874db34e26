"""Events of a shop, and the programs of npm that judge what is exported."""

import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from eventbus.contracts.catalogue import catalogue
from eventbus.events import event as events

HERE = Path(__file__).parent
NPM = HERE.parents[1] / "npm"


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


@pytest.fixture(scope="session")
def node_modules(pytestconfig) -> Path:
    """What tests/npm/package-lock.json names, installed once into pytest's cache folder."""
    lock = (NPM / "package-lock.json").read_bytes()
    folder = (
        pytestconfig.cache.mkdir("npm") / hashlib.sha256(lock).hexdigest()[:16] / "node_modules"
    )
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(NPM / name, made)
            subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
                cwd=made, check=True, timeout=240,
            )  # fmt: skip
            try:
                (Path(made) / "node_modules").rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    return folder


@pytest.fixture
def tsc(node_modules, tmp_path):
    """Compile TypeScript strictly: gives what is wrong, empty where nothing is."""

    def compile_(*paths):
        done = subprocess.run(
            ["node", node_modules / "typescript/bin/tsc", "--strict", "--noEmit", "--target",
             "es2022", "--module", "nodenext", "--exactOptionalPropertyTypes",
             "--lib", "es2022,dom", *paths],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert bool(done.returncode) is bool(done.stdout), done.stderr
        return done.stdout

    return compile_
