"""The npm package: what is in it, and what TypeScript makes of its types."""

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
from pathlib import Path

import pytest

from eventbus_edge.app import STATIC

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NPM = ROOT / "npm"

pytestmark = [pytest.mark.npm, pytest.mark.timeout(180)]


def run(*command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The package as `npm pack` makes it, in a copy: other tests read the tree meanwhile."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copytree(NPM, copy / "npm")
    shutil.copytree(STATIC, copy / "edge" / "eventbus_edge" / "static")
    shutil.copy(ROOT / "LICENSE", copy)
    done = run("npm", "pack", "--silent", "--offline", cwd=copy / "npm")
    assert done.returncode == 0, done.stdout + done.stderr
    [archive] = (copy / "npm").glob("*.tgz")
    archive = archive.rename(copy / archive.name)
    assert {path.name for path in (copy / "npm").iterdir()} == {"package.json", "README.md"}
    with tarfile.open(archive) as tar:
        tar.extractall(copy, filter="data")
    return copy / "package"


@pytest.fixture(scope="session")
def node_modules():
    """The compiler, installed once for each version that package.json pins."""
    manifest = HERE / "package.json"
    name = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
    ready = Path(tempfile.gettempdir()) / f"eventbus-npm-{name}"
    if not ready.exists():
        making = Path(tempfile.mkdtemp(prefix="eventbus-npm-"))
        shutil.copy(manifest, making)
        done = run("npm", "install", "--silent", "--no-audit", "--no-fund", cwd=making)
        assert done.returncode == 0, done.stdout + done.stderr
        try:
            making.rename(ready)
        except OSError:  # another process was faster
            shutil.rmtree(making)
    return ready / "node_modules"


@pytest.fixture(scope="module")
def project(packed, node_modules, tmp_path_factory):
    """A program's folder, in which the package is installed."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "node_modules" / "@eventbus").mkdir(parents=True)
    (folder / "node_modules" / "@eventbus" / "client").symlink_to(packed)
    (folder / "package.json").write_text('{"type": "module"}')
    for name in ("accepted", "rejected"):
        shutil.copytree(HERE / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def compile_strictly(project, node_modules):
    """Compile files; gives the errors as (file, line, number), and all that was said."""

    def compile_(*files, more=()):
        options = ("--strict", "--noEmit", "--target", "es2022", "--lib", "es2022,dom")
        done = run(
            *(
                node_modules / ".bin" / "tsc",
                *options,
                *more,
                "--module",
                "nodenext",
                "--pretty",
                "false",
                *files,
            ),
            cwd=project,
        )
        found = re.findall(r"^(\S+)\((\d+),\d+\): error TS(\d+)", done.stdout, re.MULTILINE)
        return [(name, int(line), int(number)) for name, line, number in found], done.stdout

    return compile_


def test_package_holds_client_types_readme_and_licence_as_they_are(packed):
    files = {path.name for path in packed.iterdir()}
    assert files == {"package.json", "eventbus.js", "eventbus.d.ts", "README.md", "LICENSE"}
    for name, source in (
        ("eventbus.js", STATIC),
        ("eventbus.d.ts", STATIC),
        ("LICENSE", ROOT),
        ("README.md", NPM),
    ):
        assert (packed / name).read_bytes() == (source / name).read_bytes()


def test_package_has_the_version_of_the_project_and_no_dependencies():
    manifest = json.loads((NPM / "package.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert manifest["version"] == project["version"]
    assert not {"dependencies", "peerDependencies", "devDependencies"} & manifest.keys()
    assert "import" not in re.findall(r"^\w+", (STATIC / "eventbus.js").read_text(), re.MULTILINE)


def test_program_that_uses_the_contracts_rightly_compiles(compile_strictly):
    assert compile_strictly("accepted/orders.ts", more=["--skipLibCheck", "false"]) == ([], "")


def test_each_mistake_is_found_and_nothing_else(compile_strictly, project):
    lines = (project / "rejected" / "orders.ts").read_text().splitlines()
    expected = [
        ("rejected/orders.ts", number, int(match[1]))
        for number, line in enumerate(lines, 1)
        if (match := re.search(r"// expect: (\d+)$", line))
    ]
    errors, said = compile_strictly("rejected/orders.ts")
    assert expected
    assert errors == expected, said


def test_misspelt_channel_is_named_in_the_error(compile_strictly):
    _, said = compile_strictly("rejected/orders.ts")
    assert """no channel of the contracts matches": "ordres.42\"""" in said


def test_documented_program_has_the_one_error_that_it_shows(compile_strictly, project):
    page = (ROOT / "docs" / "browser-client.md").read_text(encoding="utf-8")
    [program] = re.findall(r"^```ts\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (project / "documented.ts").write_text(program)
    wrong = [n for n, line in enumerate(program.splitlines(), 1) if "// error:" in line]
    errors, said = compile_strictly("documented.ts")
    assert [line for _, line, _ in errors] == wrong, said
    assert len(wrong) == 1
