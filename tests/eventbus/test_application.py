"""The application that commands work for, and where it is found."""

import os
from pathlib import Path

import pytest

from eventbus.application import (
    application_version,
    configured_application,
    import_modules,
)
from eventbus.errors import ConfigError

ROOT = Path(__file__).parents[2]
NEEDED = [["schema", "list"], ["schema", "check"], ["subjects", "tail", "a", "--decode"]]
STARTED = [["queue", "work"], ["edge", "run"], ["broadcast", "websocket"]]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder, from whose inner folder things are started."""
    inner = tmp_path / "project" / "docs" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return tmp_path / "project"


@pytest.fixture
def run(run_command):
    def run(*arguments, cwd=None, **environ):
        environ = {
            **os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "BROADCAST_DRIVER": "memory",
            "BROADCAST_WEBSOCKET_PORT": "0", **environ,
        }  # fmt: skip
        return run_command(*arguments, cwd=cwd or Path.cwd(), env=environ)

    return run


def test_the_nearest_pyproject_decides(project):
    assert configured_application() is None
    (project / "pyproject.toml").write_text('[tool.eventbus]\napp = "outer.events"\n')
    found = configured_application()
    assert (found.modules, found.folder) == (["outer.events"], project)
    (project / "docs/pyproject.toml").write_text('[project]\nname = "inner"\n')
    assert configured_application() is None
    (project / "docs/pyproject.toml").write_text('[tool.eventbus]\napp = ["one", "two"]\n')
    assert configured_application().modules == ["one", "two"]


def test_folder_of_that_name_is_not_a_file(project):
    (project / "docs/pyproject.toml").mkdir()
    (project / "pyproject.toml").write_text('[tool.eventbus]\napp = "a"\n')
    assert configured_application().folder == project


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[tool.eventbus]\napp = 3", "$.tool.eventbus.app"),
        (b"[tool.eventbus]\napp = ['a', 3]", "$.tool.eventbus.app[1]"),
        (b"[tool.eventbus]\napps = 'a'", "unknown field `apps`"),
        (b"[tool]\neventbus = 'a'", "$.tool.eventbus"),
        (b"tool = 3", "$.tool"),
        (b"[[tool.eventbus]]\napp = 'a'", "$.tool.eventbus"),
        (b"[tool.eventbus\napp = 'a'", "line 1"),
        (b"[tool.eventbus]\napp = '\xff'", "utf-8"),
        (b"a = " + b"[" * 100_000, "recursion"),
        (b"a = " + b"9" * 5000, "digits"),
    ],
)
def test_pyproject_that_is_wrong_is_named(project, content, fault):
    (project / "pyproject.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        configured_application()
    assert str(caught.value).startswith(f"{project / 'pyproject.toml'}: ")
    assert fault in str(caught.value)


@pytest.mark.parametrize("command", [*NEEDED, *STARTED], ids=" ".join)
def test_every_command_names_the_pyproject_that_is_wrong(run, project, command):
    (project / "pyproject.toml").write_text("[tool.eventbus]\napps = 'a'\n")
    done = run(*command)
    assert done.returncode == 2, done.stderr
    assert f"error: {project / 'pyproject.toml'}: Object contains unknown field" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [*NEEDED, *STARTED], ids=" ".join)
def test_every_command_imports_the_application_of_the_project(run, project, command):
    """Seen by one that cannot be imported."""
    (project / "pyproject.toml").write_text("[tool.eventbus]\napp = ['shop_start', 'shop_lost']\n")
    (project / "shop_start.py").write_text("print('shop_start was imported')\n")
    done = run(*command)
    assert (done.returncode, done.stdout) == (2, "shop_start was imported\n"), done.stderr
    assert f"app = shop_lost: there is no such module (also looked in {project})" in done.stderr


@pytest.mark.parametrize("command", [*NEEDED, *STARTED], ids=" ".join)
def test_option_goes_before_the_project(run, project, command):
    (project / "pyproject.toml").write_text("[tool.eventbus]\napps = 'wrong'\n")
    (project / "lost_app.py").touch()  # not in the working folder
    done = run(*command, "--app", "lost_app")
    assert done.returncode == 2
    assert "lost_app: there is no such module" in done.stderr
    assert "apps" not in done.stderr


def test_variable_of_the_edge_goes_before_the_project(run, project):
    (project / "pyproject.toml").write_text("[tool.eventbus]\napps = 'wrong'\n")
    done = run("edge", "run", EDGE_APP="lost_app")
    assert done.returncode == 2
    assert "EDGE_APP=lost_app: there is no such module" in done.stderr


def test_lock_file_is_beside_the_pyproject_that_names_the_application(run, project):
    (project / "pyproject.toml").write_text("[tool.eventbus]\napp = 'eventbus.notifications'\n")
    done = run("schema", "lock")
    assert done.stdout == "wrote ../../schemas/schemas.lock.json with 2 events\n", done.stderr
    assert run("schema", "check", "--locked", cwd=project).returncode == 0


@pytest.mark.parametrize("module", ["", ".relative", "a..b", "shop/events.py", "two words"])
def test_name_that_no_module_has_is_refused(tmp_path, module):
    with pytest.raises(ConfigError, match=r"--app .*: not a module name; allowed: a dotted"):
        import_modules([module], tmp_path, "--app ")


def test_version_is_that_of_the_distribution_or_of_the_nearest_pyproject(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert application_version("pytest") == pytest.__version__
    assert application_version("shop.events") is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "shop"\nversion = "4.5.6"\n')
    assert application_version("shop.events") == "4.5.6"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "shop"\ndynamic = ["version"]\n')
    assert application_version("shop.events") is None
    (tmp_path / "pyproject.toml").write_text("[project")
    assert application_version("shop.events") is None
