"""The image of the Dockerfile and containers of it, as far as they can be had without an engine.

The wheel is built of what .dockerignore lets through, and installed into an environment of its own;
what it depends on is what the tests have. A container is a process in namespaces of its own, with
the root file system of `container.sh`; where those are not to be had, it is a plain process in a
folder that it is not to write to.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from eventbus.server import find_binary
from tests.processes import kill_group

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
DEPENDENCIES = Path(aiohttp.__file__).parents[1]
SECRETS = "/run/secrets"
PATIENCE_S = 40


class Recipe(NamedTuple):
    """What the Dockerfile's last stage says of containers."""

    environ: dict[str, str]
    user: int
    workdir: str
    entrypoint: list[str]
    command: list[str]
    health: list[str]


@pytest.fixture(scope="session")
def recipe():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    last = text[text.rindex("\nFROM ") :]

    def output(instruction):
        return re.search(rf"^{instruction}\s+(.+)$", last, re.MULTILINE)[1]

    return Recipe(
        dict(word.split("=", 1) for word in shlex.split(output("ENV"))),
        int(output("USER")),
        output("WORKDIR"),
        json.loads(output("ENTRYPOINT")),
        json.loads(output("CMD")),
        json.loads(output("HEALTHCHECK .* CMD")),
    )


def copy_context(target):
    """Copy what the image's `COPY . .` has: of the project what .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert (rules[0], rules[-1]) == ("*", "**/__pycache__"), "no other file is understood here"
    target.mkdir()
    for rule in rules[1:-1]:
        source = ROOT / rule.removeprefix("!")
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / source.name, ignore=ignored)
        else:
            shutil.copy(source, target)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of what the image's build stage has."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_context(folder / "src")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
            "--wheel-dir", folder, folder / "src",
        ],
        check=True, timeout=120,
    )  # fmt: skip
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The folder that is /opt/eventbus in the image: an environment with the wheel."""
    folder = tmp_path_factory.mktemp("image") / "eventbus"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=150)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel],
        env=os.environ | {"PIP_PYTHON": str(folder / "bin" / "python")}, check=True, timeout=120,
    )  # fmt: skip
    [packages] = folder.glob("lib/python*/site-packages")
    # Files *.pth count in site-packages alone: those that lead to this project's sources do not.
    (packages / "dependencies.pth").write_text(f"/opt/dependencies\n{DEPENDENCIES}\n")
    shutil.copy(find_binary(), folder / "bin" / "nats-server")
    script = folder / "bin" / "eventbus"
    # By PATH, since the folder has another name in containers.
    script.write_text(re.sub(r"\A#!.*", "#!/usr/bin/env python", script.read_text()))
    return folder


class Container:
    """A process of the image, its log, and the folders that it may write to."""

    def __init__(self, command, environ, folder, workdir, *, is_confined):
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(word) for word in command], env=environ, cwd=workdir, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._is_confined = is_confined

    @property
    def pid(self):
        """The process itself, which is the child of what made the namespaces."""
        pid = self._process.pid
        if not self._is_confined:
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        self.wait_until(lambda: children.read_text().split())
        return int(children.read_text().split()[0])

    def send(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=PATIENCE_S):
        """Wait for its end; gives its exit code."""
        return self._process.wait(seconds)

    def text(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.poll() is None, f"it has ended:\n{self.text()}"
            assert time.monotonic() < deadline, f"in vain:\n{self.text()}"
            time.sleep(0.02)

    def kill(self):
        """Kill it and all that it has started.

        `unshare --kill-child` does not: the kernel drops that when the process changes its user.
        """
        kill_group(self._process)


class Engine:
    """Starts containers of the image."""

    def __init__(self, installed, recipe, folder):
        self.recipe = recipe
        self._installed = installed
        self._folder = folder
        self._started = []
        self._numbers = itertools.count()
        self.is_confined = True
        try:
            self.is_confined = self.run(*recipe.entrypoint, "--version")[0] == 0
        except FileNotFoundError:  # no unshare
            self.is_confined = False

    def start(self, *command, environ=None, secrets=None, mounts=None):
        """Start a command.

        secrets: files, by their names in /run/secrets. mounts: folders that may be written to, by
        where they are in the container.
        """
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        make = self._confined if self.is_confined else self._plain
        made = make(
            folder, command, self.recipe.environ | (environ or {}), secrets or {}, mounts or {}
        )
        container = Container(*made, is_confined=self.is_confined)
        self._started.append(container)
        return container

    def run(self, *command, seconds=PATIENCE_S, **options):
        """Run a command to its end; gives its exit code and all that it printed."""
        container = self.start(*command, **options)
        return container.wait(seconds), container.text()

    def stop(self):
        for container in self._started:
            container.kill()

    def _confined(self, folder, command, environ, secrets, mounts):
        binaries = Path(environ["PATH"].split(":")[0])
        environ["PATH"] = f"{binaries}:/usr/local/bin:/usr/bin:/bin"
        for name in ("root", "workdir"):
            (folder / name).mkdir()
        lines = [
            *(f"rw {source} {target}" for target, source in mounts.items()),
            f"ro {self._installed} {binaries.parent}",
            f"ro {DEPENDENCIES} /opt/dependencies",
            *(f"ro {source} {SECRETS}/{name}" for name, source in secrets.items()),
        ]
        if self.recipe.workdir not in mounts:
            lines.append(f"ro {folder}/workdir {self.recipe.workdir}")
        if not Path(sys.base_prefix).is_relative_to("/usr"):
            lines.append(f"ro {sys.base_prefix} {sys.base_prefix}")
        for source in mounts.values():
            os.chown(source, self.recipe.user, self.recipe.user)
        (folder / "mounts").write_text("\n".join(lines) + "\n")
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        root = [folder / "root", self.recipe.user, self.recipe.workdir, folder / "mounts"]
        reported = [f"{name}={value}" for name, value in environ.items()]
        made = [*own, "sh", HERE / "container.sh", *root, *reported, *command]
        return made, {"PATH": os.environ["PATH"]}, folder, folder

    def _plain(self, folder, command, environ, secrets, mounts):
        environ["PATH"] = f"{self._installed}/bin:{os.environ['PATH']}"
        if "/tmp" in mounts:
            environ["TMPDIR"] = str(mounts["/tmp"])
        (folder / "secrets").mkdir()
        for name, source in secrets.items():
            (folder / "secrets" / name).symlink_to(source)
        for name, value in environ.items():
            environ[name] = value.replace(SECRETS, str(folder / "secrets"))
        workdir = mounts.get(self.recipe.workdir, folder / "workdir")
        if not workdir.exists():
            workdir.mkdir(mode=0o555)
        return ["env", *command], environ, folder, workdir


@pytest.fixture(scope="module")
def engine(installed, recipe, tmp_path_factory):
    made = Engine(installed, recipe, tmp_path_factory.mktemp("containers"))
    yield made
    made.stop()
