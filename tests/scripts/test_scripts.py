"""The scripts of bash: in a clean clone, and on machines that lack something."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN_TOOLS = ("bash", "cat", "chmod", "cmp", "cp", "dirname", "env", "mkdir")


def call(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH on which there is bash, and little else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in PLAIN_TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    return str(folder)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The scripts in a project of their own, without an environment."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def installed(copy: Path) -> Path:
    """The same with an environment that seems complete, whose pytest tells what it is called with.

    The script of the real one would run this suite within itself.
    """
    programs = copy / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in ("python", "pytest"):
        (programs / program).write_text('#!/usr/bin/env bash\nprintf "%s|" "$@"\n')
        (programs / program).chmod(0o755)
    shutil.copy(copy / "pyproject.toml", copy / ".venv" / ".installed-dev")
    return copy


@pytest.mark.timeout(300)
def test_clean_clone_needs_one_command(tmp_path):
    clone = tmp_path / "clone"
    call("git", "clone", "--quiet", ROOT, clone, cwd=tmp_path)
    first = call(clone / "scripts" / "run", "--once", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert " events of 2 types (" in first.stdout.splitlines()[-1]
    assert first.stderr == "Installing eventbus[demo] into .venv\n"

    again = call(clone / "scripts" / "run", "--once", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    ignored = call("git", "status", "--porcelain", cwd=clone)
    assert (ignored.returncode, ignored.stdout) == (0, "")


def test_install_without_a_fit_python_says_what_to_do(copy, bare_path):
    done = call(copy / "scripts" / "install", cwd=copy, PATH=bare_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Python 3.11 or later with the venv module is on PATH" in done.stderr
    assert "apt-get install python3" in done.stderr
    assert not (copy / ".venv").exists()


def test_install_is_silent_until_pyproject_changes(installed, bare_path):
    script = installed / "scripts" / "install"
    assert call(script, "dev", cwd=installed, PATH=bare_path).stderr == ""
    with (installed / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    done = call(script, "dev", cwd=installed, PATH=bare_path)
    assert "Installing eventbus[dev] into .venv" in done.stderr
    assert "--editable|.[dev]|" in done.stdout
    assert call(script, "dev", cwd=installed, PATH=bare_path).stderr == ""


def test_test_says_what_it_leaves_out(installed, bare_path):
    for program in ("redis-server", "nginx", "npm"):
        (Path(bare_path) / program).symlink_to("/bin/true")
    done = call(installed / "scripts" / "test", "-x", cwd="/", PATH=bare_path, CI="")
    assert done.returncode == 0, done.stderr
    skipped = "scripts/test: skipping the tests marked 'browser': chromium is not on PATH\n"
    assert done.stderr == skipped
    assert done.stdout.endswith("|-m|not browser|-x|")


def test_test_leaves_nothing_out_where_all_is_there(installed, bare_path):
    for program in ("redis-server", "nginx", "npm", "chromium"):
        (Path(bare_path) / program).symlink_to("/bin/true")
    done = call(installed / "scripts" / "test", cwd="/", PATH=bare_path, CI="true")
    assert (done.returncode, done.stderr) == (0, "")
    assert "|-m|" not in done.stdout


def test_test_under_ci_refuses_to_leave_anything_out(installed, bare_path):
    (Path(bare_path) / "nginx").symlink_to("/bin/true")
    done = call(installed / "scripts" / "test", cwd="/", PATH=bare_path, CI="true")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not allow skipping tests. Install: redis-server npm chromium" in done.stderr
