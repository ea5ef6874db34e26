"""The npm packages: what is in them, and what linters and TypeScript make of them."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from eventbus_edge.app import STATIC
from tests import packages

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NPM = ROOT / "npm"

pytestmark = [
    pytest.mark.npm,
    pytest.mark.xdist_group("npm"),
    pytest.mark.timeout(300),
]

FROM_EDGE = {"eventbus.js", "eventbus.d.ts", "user-channel.js", "user-channel.d.ts"}
FILES = {
    "client": FROM_EDGE | {"stores.js", "stores.d.ts"},
    "react": {"index.js", "index.d.ts"},
    "vue": {"index.js", "index.d.ts"},
}
PEERS = {
    "client": {},
    "react": {"@eventbus/client": "^0.1.0", "react": ">=18"},
    "vue": {"@eventbus/client": "^0.1.0", "vue": ">=3.5"},
}

PROGRAMS = ("orders.ts", "react.tsx", "vue.ts")

programs = pytest.mark.parametrize("file", PROGRAMS)
all_packages = pytest.mark.parametrize("name", packages.OURS)


@pytest.fixture(scope="module")
def project(program):
    """The program's folder, with the files that are to be compiled."""
    for name in ("accepted", "rejected"):
        shutil.copytree(HERE / name, program / name, dirs_exist_ok=True)
    return program


@pytest.fixture(scope="module")
def compile_strictly(project, node_modules):
    """Compile files; gives the errors as (file, line, number), and all that was said."""

    def compile_(*files, more=()):
        options = ("--strict", "--noEmit", "--target", "es2022", "--lib", "es2023,dom")
        options += ("--skipDefaultLibCheck",)  # of its own files, which takes most of the time
        done = subprocess.run(
            [node_modules / ".bin" / "tsc", *options, *more, "--module", "nodenext", "--jsx",
             "react-jsx", "--pretty", "false", *files],
            cwd=project, capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = re.findall(r"^(\S+)\((\d+),\d+\): error TS(\d+)", done.stdout, re.MULTILINE)
        return [(name, int(line), int(number)) for name, line, number in found], done.stdout

    return compile_


@all_packages
def test_package_holds_sources_types_readme_and_licence_as_they_are(program, name):
    packed = program / "node_modules" / "@eventbus" / name
    files = {path.name for path in packed.iterdir()}
    assert files == {"package.json", "README.md", "LICENSE"} | FILES[name]
    for file in files - {"package.json"}:
        source = ROOT if file == "LICENSE" else STATIC if file in FROM_EDGE else NPM / name
        assert (packed / file).read_bytes() == (source / file).read_bytes(), file


@all_packages
def test_package_has_the_version_of_the_project_and_no_dependencies(name):
    manifest = json.loads((NPM / name / "package.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert manifest["version"] == project["version"]
    assert manifest.get("peerDependencies", {}) == PEERS[name]
    assert not {"dependencies", "devDependencies", "optionalDependencies"} & manifest.keys()
    for file in FILES[name]:
        source = (STATIC if file in FROM_EDGE else NPM / name) / file
        imported = re.findall(r"""from ["']([^"']+)["']""", source.read_text())
        allowed = {"./eventbus.js", "@eventbus/client/stores", *PEERS[name]}
        assert {module for module in imported if file.endswith(".js")} <= allowed


@all_packages
def test_linters_of_packages_find_nothing(archives, node_modules, name):
    packages.run(
        *(node_modules / ".bin" / "publint", "--strict", archives[name]),
        cwd=archives[name].parent,
    )
    packages.run(
        *(node_modules / ".bin" / "attw", archives[name], "--profile", "esm-only"),
        cwd=archives[name].parent,
    )


@pytest.mark.parametrize(
    ("source", "options", "limit"),
    [
        ("@eventbus/client/eventbus.js", [], 6_144),
        ("@eventbus/client/stores.js", [], 1_536),
        ("@eventbus/react/index.js", [], 1_024),
        ("@eventbus/vue/index.js", [], 1_024),
        ("@eventbus/react/index.js", ["--bundle", "--external:react"], 8_448),
        ("@eventbus/vue/index.js", ["--bundle", "--external:vue"], 8_448),
    ],
)
def test_packages_are_small_when_minified_and_compressed(
    program, node_modules, capsys, source, options, limit
):
    esbuild = node_modules / ".bin" / "esbuild"
    path = Path("node_modules", source)
    made = packages.run(esbuild, path, "--minify", "--format=esm", *options, cwd=program)
    size = len(gzip.compress(made.encode(), 9))
    with capsys.disabled():
        about = " with all that it imports" if options else ""
        sys.stdout.write(f"\n{source}{about}: {len(made)} bytes minified, {size} gzipped\n")
    assert size < limit


@all_packages
def test_package_asks_for_no_version_of_node(name):
    assert "engines" not in json.loads((NPM / name / "package.json").read_text())


@pytest.fixture(scope="module")
def compiled(compile_strictly):
    """What the compiler finds in all programs together."""
    files = [f"{folder}/{name}" for folder in ("accepted", "rejected") for name in PROGRAMS]
    return compile_strictly(*files)


@programs
def test_program_that_uses_the_contracts_rightly_compiles(compiled, file):
    errors, output = compiled
    assert [each for each in errors if each[0] == f"accepted/{file}"] == [], output
    assert {name.partition("/")[0] for name, _, _ in errors} == {"rejected"}, output


@programs
def test_each_mistake_is_found_and_nothing_more(compiled, project, file):
    name = f"rejected/{file}"
    expected = [
        (name, number, int(match[1]))
        for number, line in enumerate((project / name).read_text().splitlines(), 1)
        if (match := re.search(r"// expect: (\d+)$", line))
    ]
    errors, output = compiled
    assert expected
    assert [each for each in errors if each[0] == name] == expected, output


def test_misspelt_channel_is_named_in_the_error(compiled):
    _, output = compiled
    assert """no channel of the contracts matches": "ordres.42\"""" in output


@pytest.fixture(scope="module")
def documented(compile_strictly, project):
    """The programs of the documentation, and what the compiler finds in them."""
    shown = {"client": "docs/browser-client.md", "docs": "docs/frontend.md"}
    shown |= {"react": "npm/react/README.md"}
    programs = {}
    for name, page in shown.items():
        blocks = re.findall(
            r"^```(tsx?)\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        for number, (ending, text) in enumerate(blocks):
            if "declare module" not in text:  # the others are compiled without contracts
                programs[f"documented/{name}-{number}.{ending}"] = text
    (project / "documented").mkdir(exist_ok=True)
    for file, text in programs.items():
        (project / file).write_text(text)
    return programs, compile_strictly(*programs)


def test_documented_programs_have_only_the_errors_that_they_show(documented):
    programs, (errors, output) = documented
    expected = [
        (file, number)
        for file, text in programs.items()
        for number, line in enumerate(text.splitlines(), 1)
        if "// error:" in line
    ]
    assert [(file, line) for file, line, _ in errors] == expected, output
    assert len(expected) == 1
    assert len(programs) >= 4
