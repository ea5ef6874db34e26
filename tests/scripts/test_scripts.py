"""The scripts of bash: in a clean clone, and on machines that lack something."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN_TOOLS = ("bash", "cat", "chmod", "cmp", "cp", "dirname", "env", "mkdir")
NO_HOME = {"HOME": "/nowhere", "PYENV_ROOT": "/nowhere"}
"""Hides the Pythons that pyenv and uv have installed."""


def call(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=580, check=False
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


def fake_venv(folder: Path) -> None:
    """An environment that seems complete, whose programs print their arguments.

    The script of the real pytest would run this suite within itself.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for program in ("python", "pytest"):
        (programs / program).write_text('#!/usr/bin/env bash\nprintf "%s|" "$@"\n')
        (programs / program).chmod(0o755)
    shutil.copy(ROOT / "pyproject.toml", folder / ".installed-dev")


@pytest.fixture
def installed(copy: Path) -> Path:
    """The same with an environment."""
    fake_venv(copy / ".venv")
    return copy


@pytest.fixture
def add_python(bare_path: str):
    """Put an interpreter on the PATH: `add_python("3.13")`, with a level such as `candidate`."""

    def add(version: str, level: str = "final") -> None:
        path = Path(bare_path) / f"python{version}"
        output = f"{version.replace('.', '|')}|0|{level}|{path}"
        # Of `-m venv --clear FOLDER` it makes the programs of that folder.
        path.write_text(f"""#!/usr/bin/env bash
[[ $1 == -c ]] && echo "{output}" && exit
folder=${{@: -1}}/bin && mkdir -p "$folder" && echo "$0 $*" >"$folder/made"
printf '#!/usr/bin/env bash\\n[[ "$*" == *--version ]] || printf "%%s|" "$@"\\n' >"$folder/python"
cp "$folder/python" "$folder/uv" && chmod +x "$folder"/*
""")
        path.chmod(0o755)

    return add


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
@pytest.mark.timeout(600)
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
    done = call(copy / "scripts" / "install", cwd=copy, PATH=bare_path, **NO_HOME)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Python 3.11 or later with the venv module on PATH" in done.stderr
    assert "apt-get install python3" in done.stderr
    assert not (copy / ".venv").exists()


def test_pythons_are_the_supported_ones_with_the_oldest_first(copy, bare_path, add_python):
    for version in ("3.13", "3.12", "3.99", "3.10"):
        add_python(version)
    add_python("3.14", level="candidate")
    (Path(bare_path) / "python3.15").symlink_to("/bin/false")
    done = call(copy / "scripts" / "pythons", cwd="/", PATH=bare_path, **NO_HOME)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{v} {bare_path}/python{v}\n" for v in ("3.12", "3.13"))


@pytest.mark.parametrize(
    ("options", "folder", "version"),
    [([], ".venv", "3.13"), (["--python", "3.12"], ".venv-3.12", "3.12"),
     (["--lowest"], ".venv-lowest", "3.11")],
)  # fmt: skip
def test_install_takes_the_python_that_is_asked_for(
    copy, bare_path, add_python, options, folder, version
):
    for each in ("3.11", "3.12", "3.13"):
        add_python(each)
    script = copy / "scripts" / "install"
    done = call(script, *options, "dev", cwd="/", PATH=bare_path, **NO_HOME)
    assert (done.returncode, done.stderr) == (0, f"Installing eventbus[dev] into {folder}\n")
    assert f"/python{version} -m venv" in (copy / folder / "bin" / "made").read_text()
    assert ("--resolution|lowest-direct|" in done.stdout) == (options == ["--lowest"])
    assert done.stdout.endswith("--editable|.[dev]|")


def test_install_has_uv_get_a_python_that_is_not_there(copy, bare_path, add_python):
    script, plain = (
        copy / "scripts" / "install",
        {"PATH": bare_path} | NO_HOME,
    )
    add_python("3.11")
    done = call(script, "--python", "3.14", "dev", cwd="/", **plain)
    assert done.returncode == 1
    assert "there is no Python 3.14" in done.stderr
    uv = Path(bare_path) / "uv"
    uv.write_text(
        f'#!/usr/bin/env bash\necho "$*" >&2\n{bare_path}/python3.11 -m venv "${{@: -1}}"\n'
    )
    uv.chmod(0o755)
    done = call(script, "--python", "3.14", "dev", cwd="/", **plain)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("venv --quiet --seed --clear --python 3.14 .venv-3.14\n")


def test_install_is_silent_until_pyproject_changes(installed, bare_path):
    script = installed / "scripts" / "install"
    assert call(script, "dev", cwd=installed, PATH=bare_path).stderr == ""
    with (installed / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    done = call(script, "dev", cwd=installed, PATH=bare_path)
    assert "Installing eventbus[dev] into .venv" in done.stderr
    assert "--editable|.[dev]|" in done.stdout
    assert call(script, "dev", cwd=installed, PATH=bare_path).stderr == ""


def test_bench_installs_its_extra_and_passes_its_options(installed, bare_path):
    done = call(installed / "scripts" / "bench", "--only", "a", cwd="/", PATH=bare_path)
    assert (done.returncode, done.stderr) == (0, "Installing eventbus[bench] into .venv\n")
    assert done.stdout.endswith("-m|scripts.benchmark|--only|a|")


def test_chaos_passes_its_options(installed, bare_path):
    done = call(installed / "scripts" / "chaos", "--list", cwd="/", PATH=bare_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "-m|scripts.chaos_lab|--list|"


def test_test_says_what_it_leaves_out(installed, bare_path):
    for program in ("redis-server", "nginx", "npm", "fusermount3"):
        (Path(bare_path) / program).symlink_to("/bin/true")
    done = call(installed / "scripts" / "test", "-x", cwd="/", PATH=bare_path, CI="")
    assert done.returncode == 0, done.stderr
    skipped = "scripts/test: skipping the tests marked 'browser': chromium is missing\n"
    assert done.stderr == skipped
    assert done.stdout.endswith("|-m|not browser|-x|")


COMPILED = "-m|compileall|-q|eventbus|edge/eventbus_edge|schemas|scripts|examples|"
"""What the fake interpreter prints of the compilation before the tests."""


def test_test_runs_in_the_environment_of_its_python(installed, bare_path):
    for program in ("redis-server", "nginx", "npm", "fusermount3", "chromium"):
        (Path(bare_path) / program).symlink_to("/bin/true")
    script = installed / "scripts" / "test"
    fake_venv(installed / ".venv-3.13")
    (installed / ".venv-3.13" / "bin" / "pytest").write_text("#!/usr/bin/env bash\necho 3.13 $*")
    done = call(script, "--python", "3.13", "--quick", "-x", cwd="/", PATH=bare_path)
    assert done.stdout == COMPILED + "3.13 -n auto --dist loadgroup -m not server -x\n"
    (installed / ".venv" / "bin" / "python3.12").touch()
    done = call(script, "--python", "3.12", cwd="/", PATH=bare_path)
    assert (done.stdout, done.stderr) == (COMPILED + "-n|auto|--dist|loadgroup|", "")
    done = call(script, "--python", cwd="/", PATH=bare_path)
    assert "a version is missing, such as 3.13" in done.stderr


@pytest.mark.parametrize(
    ("pythons", "runs"),
    [
        (["3.11"], ["check", "test"]),
        (["3.11", "3.12", "3.14"], ["check", "test --python 3.14 --quick", "test --python 3.11"]),
    ],
)
def test_ci_tests_the_oldest_and_the_newest_python(copy, pythons, runs):
    shutil.copytree(ROOT / ".ci", copy / ".ci")
    for script in ("check", "test"):
        (copy / "scripts" / script).write_text('#!/usr/bin/env bash\necho "${0##*/}" $*\n')
    install = '#!/usr/bin/env bash\necho "$*" >>installed\n'
    (copy / "scripts" / "install").write_text(install)
    lines = "".join(f"echo {version} /usr/bin/python\n" for version in pythons)
    (copy / "scripts" / "pythons").write_text("#!/usr/bin/env bash\n" + lines)
    done = call(copy / ".ci" / "run", cwd="/")
    assert (done.returncode, done.stdout.splitlines()) == (0, runs)
    assert all(version in done.stderr for version in (pythons[0], pythons[-1]))
    installed = copy / "installed"  # the environment that is not needed at first
    assert installed.exists() == (len(pythons) > 1)
    assert len(pythons) == 1 or installed.read_text() == "--python 3.11 dev\n"


def test_test_leaves_nothing_out_where_all_is_there(installed, bare_path):
    for program in ("redis-server", "nginx", "npm", "fusermount3", "chromium"):
        (Path(bare_path) / program).symlink_to("/bin/true")
    done = call(installed / "scripts" / "test", cwd="/", PATH=bare_path, CI="true")
    assert (done.returncode, done.stderr) == (0, "")
    assert "|-m|" not in done.stdout


def test_test_under_ci_refuses_to_leave_anything_out(installed, bare_path):
    (Path(bare_path) / "nginx").symlink_to("/bin/true")
    done = call(installed / "scripts" / "test", cwd="/", PATH=bare_path, CI="true")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not allow skipping tests. Install: redis-server npm fuse3 chromium" in done.stderr
